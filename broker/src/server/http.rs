//! HTTP for people and monitors: `/metrics`, `/healthz`, `/readyz`.

use std::future::Future;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use strandline_settings::Limited;
use tokio::net::TcpListener;
use tracing::warn;

use super::{ListenError, descriptors};
use crate::Broker;

/// Binds `address`.
pub async fn bind(address: &str) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|e| ListenError::new(address, "--http-listen", e))
}

/// The broker, once it is open: until then the process is alive and not ready.
pub type OpenedBroker = Arc<OnceLock<Arc<Broker>>>;

/// Serves until `stop` is done.
pub async fn run(
    listener: TcpListener,
    broker: OpenedBroker,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .with_state(broker);
    let listener = Limited::new(listener, descriptors::room_for_http());
    if let Err(error) = axum::serve(listener, routes).with_graceful_shutdown(stop).await {
        warn!(%error, "the HTTP server ended");
    }
}

fn unavailable(why: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
}

/// What is answered before the broker is open.
const OPENING: &str = "this broker is still opening: it waits for the metadata store or the object store";

async fn metrics(State(broker): State<OpenedBroker>) -> Response {
    let Some(broker) = broker.get() else { return unavailable(OPENING) };
    match broker.metrics.render(broker) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            warn!(%error, "metrics cannot be rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Ready means: registered, not leaving, and the store answers as far as is known.
async fn ready(State(broker): State<OpenedBroker>) -> Response {
    match broker.get().map(|b| b.not_ready()) {
        None => unavailable(OPENING),
        Some(Some(why)) => unavailable(&why),
        Some(None) => (StatusCode::OK, "ready\n").into_response(),
    }
}
