//! One request: the faults that come before it, the request itself, the faults that come after.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use s3s::service::S3Service;
use s3s::{Body, HttpError, HttpResponse};

use crate::faults::{Fault, Faults, Operation, deletes_many};

/// How often a request that hangs looks whether it may end.
const HANG_POLL: Duration = Duration::from_millis(50);

/// What every connection does with its requests.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) s3: S3Service,
    pub(crate) faults: Arc<Faults>,
}

impl Service {
    /// Answers a request. An error closes the connection.
    pub(crate) async fn call(&self, request: Request<Incoming>) -> Result<HttpResponse, HttpError> {
        let operation = Operation::of(request.method(), request.uri());
        let (latency, fault) = self.faults.draw(operation);
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        if fault.is_none()
            && self.faults.refuses_bulk_delete()
            && deletes_many(request.method(), request.uri())
        {
            let message = "A header or query that implies functionality that is not implemented.";
            return refuse(request, StatusCode::NOT_IMPLEMENTED, "NotImplemented", message).await;
        }
        match fault {
            None => self.s3.call(request.map(Body::from)).await,
            Some(Fault::Error) => {
                refuse(request, StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "An injected fault.")
                    .await
            }
            Some(Fault::SlowDown) => {
                refuse(
                    request,
                    StatusCode::SERVICE_UNAVAILABLE,
                    "SlowDown",
                    "Please reduce your request rate.",
                )
                .await
            }
            Some(Fault::Deny) => {
                refuse(request, StatusCode::FORBIDDEN, "AccessDenied", "Access Denied").await
            }
            Some(Fault::Missing) => {
                refuse(request, StatusCode::NOT_FOUND, "NoSuchKey", "The specified key does not exist.").await
            }
            Some(Fault::Reset) => Err(reset()),
            Some(Fault::Hang) => {
                while self.faults.hangs() {
                    tokio::time::sleep(HANG_POLL).await;
                }
                Err(reset())
            }
            Some(Fault::LostAnswer) => {
                self.s3.call(request.map(Body::from)).await?;
                Err(reset())
            }
            Some(Fault::Truncate) => damage(self.s3.call(request.map(Body::from)).await?, cut).await,
            Some(Fault::Flip(place)) => {
                damage(self.s3.call(request.map(Body::from)).await?, |bytes| flip(bytes, place)).await
            }
        }
    }
}

/// Answers with an error as S3 words it, after the whole request was read: otherwise the client
/// would see a closed connection, and not the error.
async fn refuse(
    request: Request<Incoming>,
    status: StatusCode,
    code: &str,
    message: &str,
) -> Result<HttpResponse, HttpError> {
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/xml")
        .body(Body::from(xml))
        .map_err(|error| HttpError::new(error.into()))
}

fn reset() -> HttpError {
    HttpError::new("an injected fault closes the connection".into())
}

/// Replaces the body of an answer by a damaged one, under the same headers.
async fn damage(answer: HttpResponse, how: impl FnOnce(&Bytes) -> Body) -> Result<HttpResponse, HttpError> {
    let (head, body) = answer.into_parts();
    if !head.status.is_success() {
        return Ok(Response::from_parts(head, body));
    }
    let bytes = body.collect().await.map_err(HttpError::new)?.to_bytes();
    Ok(Response::from_parts(head, how(&bytes)))
}

/// The first half, and then no more.
fn cut(bytes: &Bytes) -> Body {
    let half = bytes.slice(..bytes.len() / 2);
    let error: s3s::StdError = "an injected fault cuts the answer".into();
    Body::http_body_unsync(StreamBody::new(stream::iter([Ok(Frame::data(half)), Err(error)])))
}

fn flip(bytes: &Bytes, place: u16) -> Body {
    let at = (bytes.len() * usize::from(place)) >> u16::BITS;
    // The object may share this buffer: only the answer is damaged.
    let mut damaged = BytesMut::from(&bytes[..]);
    if let Some(byte) = damaged.get_mut(at) {
        *byte ^= 0x40;
    }
    Body::from(damaged.freeze())
}
