//! HTTP for people and monitors: `/metrics`, `/healthz`, `/readyz`.

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tracing::warn;

use super::ListenError;
use crate::Broker;

/// Binds `address`.
pub async fn bind(address: &str) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|e| ListenError::new(address, "--http-listen", e))
}

/// Serves until `stop` is done.
pub async fn run(
    listener: TcpListener,
    broker: Arc<Broker>,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .with_state(broker);
    if let Err(error) = axum::serve(listener, routes).with_graceful_shutdown(stop).await {
        warn!(%error, "the HTTP server ended");
    }
}

async fn metrics(State(broker): State<Arc<Broker>>) -> Response {
    match broker.metrics.render(&broker) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            warn!(%error, "metrics cannot be rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Ready means: registered, not leaving, and the store answers as far as is known.
async fn ready(State(broker): State<Arc<Broker>>) -> Response {
    match broker.not_ready() {
        None => (StatusCode::OK, "ready\n").into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}
