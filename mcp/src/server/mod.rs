//! The Model Context Protocol, and the only module that knows `rmcp`.
//!
//! One endpoint serves both eras: the versions with `initialize` (2025-06-18, 2025-11-25), without
//! sessions, and 2026-07-28. Lists are written by hand over one enum of tools, so that each caller
//! sees what it may use; nothing that depends on the caller may be cached for others.

mod catalogue;
mod handler;

use std::sync::Arc;

use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use tower::Service as _;

pub(crate) use self::handler::Handler;
use crate::Observer;
use crate::access::Principal;
use crate::limits::REQUEST_BYTES;

/// Who makes a request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who was let in.
    pub principal: Arc<Principal>,
    /// The address that it calls from.
    pub peer: String,
    /// The client as its `User-Agent` says.
    pub client: Option<String>,
}

/// Who answers the protocol behind the door: the observer, or what the protocol's conformance suite
/// is tried with.
pub trait Answers: Clone + Send + Sync + 'static {
    /// Answers one request.
    type Handler: rmcp::ServerHandler + Clone;

    /// For a request of somebody who was let in. It is made for this request, so it always knows
    /// its caller.
    fn handler(&self, observer: &Arc<Observer>, caller: Caller) -> Self::Handler;
}

/// The observer's own answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Own;

impl Answers for Own {
    type Handler = Handler;

    fn handler(&self, observer: &Arc<Observer>, caller: Caller) -> Handler {
        Handler::new(observer.clone(), caller)
    }
}

/// Answers one request of somebody who was let in.
pub(crate) async fn serve<A: Answers>(
    observer: &Arc<Observer>,
    answers: &A,
    caller: Caller,
    request: Request,
) -> Response {
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(false)
        .with_json_response(true)
        .with_allowed_hosts(observer.config.allowed_hosts.iter())
        .with_allowed_origins(observer.config.allowed_origins.iter())
        .enforce_origin_validation()
        .with_max_request_body_bytes(REQUEST_BYTES)
        .with_cancellation_token(observer.stop.child_token());
    let handler = answers.handler(observer, caller);
    let sessions = Arc::new(NeverSessionManager::default());
    let mut service = StreamableHttpService::new(move || Ok(handler.clone()), sessions, config);
    match service.call(request).await {
        Ok(response) => response.into_response(),
        Err(never) => match never {},
    }
}
