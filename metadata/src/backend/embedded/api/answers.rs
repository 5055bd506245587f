//! How many answers are in memory at a time: one that its client does not take holds its place
//! until it does, or until the connection is given up.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::Frame;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::limits::API_PIECE_BYTES;

/// The call whose answers may be large.
const RANGE: &str = "/etcdserverpb.KV/Range";

/// Lets so many ranges be answered at a time, over all connections.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    places: Arc<Semaphore>,
}

/// A service behind [`Answers`].
#[derive(Clone, Debug)]
pub(super) struct Limited<S> {
    service: S,
    places: Arc<Semaphore>,
}

impl Answers {
    pub(super) fn new(most: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(most)) }
    }
}

impl<S> Layer<S> for Answers {
    type Service = Limited<S>;

    fn layer(&self, service: S) -> Self::Service {
        Limited { service, places: self.places.clone() }
    }
}

impl<S> Service<Request<Body>> for Limited<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The one that is ready is called, and its clone takes its place.
        let clone = self.service.clone();
        let mut service = std::mem::replace(&mut self.service, clone);
        if request.uri().path() != RANGE {
            return Box::pin(service.call(request));
        }
        let places = self.places.clone();
        Box::pin(async move {
            // The semaphore is never closed.
            let place = places.acquire_owned().await.ok();
            let response = service.call(request).await?;
            Ok(response.map(|body| Body::new(PlacedResponse { body, rest: Bytes::new(), _place: place })))
        })
    }
}

/// An answer that has a place.
struct PlacedResponse {
    body: Body,
    /// What is left of the frame that was taken last.
    rest: Bytes,
    _place: Option<OwnedSemaphorePermit>,
}

impl http_body::Body for PlacedResponse {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if !self.rest.is_empty() {
                let piece = self.rest.len().min(API_PIECE_BYTES);
                return Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))));
            }
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            match frame.into_data() {
                Ok(data) => self.rest = data,
                Err(other) => return Poll::Ready(Some(Ok(other))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }
}
