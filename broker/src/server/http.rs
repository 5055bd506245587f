//! HTTP for people and monitors: `/metrics`, `/healthz`, `/readyz`.

use std::future::Future;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use strandline_settings::serve_http;
use tokio::net::TcpListener;
use tracing::warn;

use super::{ListenError, descriptors};
use crate::Broker;
use crate::readiness::{self, Capability};

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
    serve_http(listener, routes, descriptors::room_for_http(), stop).await;
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

/// What clients can do here, as JSON: 503 if any of writes, reads and groups is not possible, or if
/// the one is not that the query names, such as `?for=reads`.
async fn ready(State(broker): State<OpenedBroker>, RawQuery(query): RawQuery) -> Response {
    let Some(broker) = broker.get() else { return unavailable(OPENING) };
    let only = match query.as_deref().unwrap_or_default() {
        "" => None,
        query => match query.strip_prefix("for=").and_then(Capability::named) {
            Some(only) => Some(only),
            None => return (StatusCode::BAD_REQUEST, "for is writes, reads or groups\n").into_response(),
        },
    };
    let (ready, page) = readiness::page(&broker.readiness.look(broker), only);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CONTENT_TYPE, "application/json")], page).into_response()
}
