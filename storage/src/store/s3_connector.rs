//! What lies below the S3 client: sends the CRC-32C of an object along with its PUT, and notes the
//! server's clock, which every answer has in its `Date`.
//!
//! The S3 client can compute a checksum of what it sends, which takes another pass over the bytes,
//! but not be told one. So the header is added below it, to a request that is ready to be sent. S3
//! takes no `x-amz-` header that is not signed, so the request is then signed once more.

use std::sync::{Arc, OnceLock};
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use http::header::{AUTHORIZATION, DATE};
use object_store::ClientOptions;
use object_store::aws::{AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};

use crate::clock::ServerClock;
use crate::format::checksum::Crc32c;

/// S3's header for it.
const CHECKSUM_HEADER: &str = "x-amz-checksum-crc32c";
/// The service that requests are signed for.
pub(super) const SERVICE: &str = "s3";

/// Makes clients that send along the checksum that a request's extensions hold, if they are to.
#[derive(Clone, Debug)]
pub(super) struct S3Connector {
    region: Arc<str>,
    sends_checksum: bool,
    server_clock: ServerClock,
    credentials: Arc<OnceLock<AwsCredentialProvider>>,
}

impl S3Connector {
    /// Signs for this region.
    pub(super) fn new(region: String, sends_checksum: bool, server_clock: ServerClock) -> Self {
        Self { region: region.into(), sends_checksum, server_clock, credentials: Arc::default() }
    }

    /// Says whose signature it is, which is known only when the S3 client is made.
    pub(super) fn sign_with(&self, credentials: AwsCredentialProvider) {
        // Once for each connector.
        let _ = self.credentials.set(credentials);
    }
}

impl HttpConnector for S3Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(S3Service { client, connector: self.clone() }))
    }
}

/// The time that a `Date` names, in milliseconds since the Unix epoch.
fn date_ms(value: &HeaderValue) -> Option<i64> {
    let date = httpdate::parse_http_date(value.to_str().ok()?).ok()?;
    i64::try_from(date.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
}

#[derive(Debug)]
struct S3Service {
    client: HttpClient,
    connector: S3Connector,
}

#[async_trait]
impl HttpService for S3Service {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let checksum = request.extensions().get::<Crc32c>().copied();
        if let Some(checksum) = checksum.filter(|_| self.connector.sends_checksum) {
            let unsigned = |error: object_store::Error| HttpError::new(HttpErrorKind::Unknown, error);
            let text = STANDARD.encode(checksum.value().to_be_bytes());
            if let (Ok(value), Some(credentials)) =
                (HeaderValue::try_from(text), self.connector.credentials.get())
            {
                let credential = credentials.get_credential().await.map_err(unsigned)?;
                request.headers_mut().remove(AUTHORIZATION);
                request.headers_mut().insert(CHECKSUM_HEADER, value);
                AwsAuthorizer::new(&credential, SERVICE, &self.connector.region)
                    .with_sign_payload(false)
                    .try_authorize(&mut request, None)
                    .map_err(unsigned)?;
            }
        }
        let answer = self.client.execute(request).await?;
        if let Some(now_ms) = answer.headers().get(DATE).and_then(date_ms) {
            self.connector.server_clock.note(now_ms);
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_read_and_nonsense_is_none() {
        let date_of = |text: &str| date_ms(&HeaderValue::from_str(text).unwrap());
        assert_eq!(date_of("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777_000));
        for nonsense in ["", "now", "Sun, 06 Nov 1884 08:49:37 GMT"] {
            assert_eq!(date_of(nonsense), None, "{nonsense}");
        }
    }
}
