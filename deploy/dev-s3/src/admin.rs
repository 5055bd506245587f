//! The port that faults are controlled on.
//!
//! | request | answer |
//! |---|---|
//! | `GET /faults` | the plan in force |
//! | `PUT /faults` | takes a plan as JSON, whole: what it does not mention does not happen |
//! | `DELETE /faults` | nothing goes wrong any more |
//! | `GET /stats` | requests by operation, and how many were hit |

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Serialize;

use crate::faults::{FaultPlan, Faults};

pub(crate) fn router(faults: Arc<Faults>) -> Router {
    Router::new()
        .route("/faults", get(plan).put(set).delete(clear))
        .route("/stats", get(stats))
        .with_state(faults)
}

async fn plan(State(faults): State<Arc<Faults>>) -> Response {
    json(&faults.plan())
}

async fn set(State(faults): State<Arc<Faults>>, body: Bytes) -> Response {
    let plan = serde_json::from_slice::<FaultPlan>(&body).map_err(|error| error.to_string());
    match plan.and_then(|plan| faults.set(plan)) {
        Ok(()) => json(&faults.plan()),
        Err(what) => (StatusCode::BAD_REQUEST, format!("{what}\n")).into_response(),
    }
}

async fn clear(State(faults): State<Arc<Faults>>) -> Response {
    // The empty plan is valid.
    let _ = faults.set(FaultPlan::default());
    json(&faults.plan())
}

async fn stats(State(faults): State<Arc<Faults>>) -> Response {
    json(&faults.stats())
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text + "\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
