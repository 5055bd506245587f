//! The HTTP server: one router for `/mcp`, `/healthz`, `/readyz`, `/metrics`.
//!
//! ```text
//!   request ─▶ guard (Host, Origin) ─▶ route
//!                                       /mcp ─▶ in flight? ─▶ failures of the address? ─▶ token ─▶ server (rmcp)
//! ```

mod guard;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get};
use serde_json::json;

use crate::Observer;
use crate::access::{Principal, Refusal};
use crate::audit::AuditLine;
use crate::clock::rfc3339;
use crate::foreign::clean;
use crate::metrics::RefusedFor;
use crate::server::{self, Answers, Caller, Own};

/// Where RFC 9728 says that the metadata of `/mcp` are.
const METADATA_PATH: &str = "/.well-known/oauth-protected-resource/mcp";

/// Every route.
pub fn router(observer: &Arc<Observer>) -> Router {
    router_to(observer, Own)
}

/// Every route, with somebody else's answers at `/mcp`.
pub fn router_to<A: Answers>(observer: &Arc<Observer>, answers: A) -> Router {
    let answer = move |State(observer): State<Arc<Observer>>,
                       ConnectInfo(peer): ConnectInfo<SocketAddr>,
                       request: Request| {
        let answers = answers.clone();
        async move { mcp(&observer, &answers, peer, request).await }
    };
    let mut routes = Router::new()
        .route("/mcp", any(answer))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics));
    if observer.access.jwt().is_some() {
        routes = routes
            .route(METADATA_PATH, get(resource_metadata))
            .route("/.well-known/oauth-protected-resource", get(resource_metadata));
    }
    routes.layer(middleware::from_fn_with_state(observer.clone(), guard::check)).with_state(observer.clone())
}

/// Ready once etcd has been read and answers still; says no more than that.
async fn readyz(State(observer): State<Arc<Observer>>) -> Response {
    if observer.etcd.is_reachable() {
        (StatusCode::OK, "ready\n").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "etcd does not answer\n").into_response()
    }
}

async fn metrics(State(observer): State<Arc<Observer>>) -> Response {
    match observer.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// RFC 9728: who gives out tokens for this server.
async fn resource_metadata(State(observer): State<Arc<Observer>>) -> Response {
    let Some(jwt) = observer.access.jwt() else { return StatusCode::NOT_FOUND.into_response() };
    let metadata = json!({
        "resource": jwt.resource_url,
        "authorization_servers": [jwt.issuer],
        "bearer_methods_supported": ["header"],
        "scopes_supported": crate::access::Scope::ALL.map(crate::access::Scope::as_str),
    });
    ([(header::CONTENT_TYPE, "application/json")], metadata.to_string()).into_response()
}

async fn mcp<A: Answers>(
    observer: &Arc<Observer>,
    answers: &A,
    peer: SocketAddr,
    request: Request,
) -> Response {
    let Ok(_permit) = observer.requests.try_acquire() else {
        observer.metrics.refused(RefusedFor::Busy);
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "too many requests at a time", Some(1));
    };
    let client = request.headers().get(header::USER_AGENT).and_then(|v| v.to_str().ok()).map(clean);
    match admit(observer, peer, &request) {
        Ok(principal) => {
            let caller = Caller { principal, peer: peer.ip().to_string(), client };
            server::serve(observer, answers, caller, request).await
        }
        Err(refusal) => {
            let now_ms = observer.clock.now_ms();
            observer.audit.note(AuditLine {
                time: rfc3339(now_ms).unwrap_or_default(),
                request_id: observer.next_request_id(),
                client,
                peer: Some(peer.ip().to_string()),
                method: request.method().to_string(),
                outcome: refusal.outcome.to_owned(),
                ..AuditLine::default()
            });
            refusal.response
        }
    }
}

/// Why a request did not get in.
struct NotAdmitted {
    outcome: &'static str,
    response: Response,
}

fn admit(
    observer: &Observer,
    peer: SocketAddr,
    request: &Request,
) -> Result<Arc<Principal>, Box<NotAdmitted>> {
    let address = peer.ip();
    if let Err(wait) = observer.failures.check(&address) {
        observer.metrics.refused(RefusedFor::Failures);
        let response = refuse(
            StatusCode::TOO_MANY_REQUESTS,
            "too many failed authentications",
            Some(wait.as_secs() + 1),
        );
        return Err(Box::new(NotAdmitted { outcome: "rate_limited", response }));
    }
    let failed = |status, why: &str| {
        observer.metrics.refused(RefusedFor::Token);
        // The bucket is empty already when this fails: the next request is told to wait.
        let _ = observer.failures.take(&address, 1);
        let mut response = refuse(status, why, None);
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge(observer));
        }
        Err(Box::new(NotAdmitted { outcome: "permission_denied", response }))
    };
    // A token in a URL ends up in logs and histories: it is not taken even if it is right.
    let query = request.uri().query().unwrap_or_default().to_ascii_lowercase();
    if query.split('&').any(|pair| pair.split('=').next().is_some_and(|key| key.contains("token"))) {
        return failed(
            StatusCode::BAD_REQUEST,
            "a token belongs into the Authorization header, never into the URL",
        );
    }
    let token = match bearer(request) {
        Ok(token) => token,
        Err(why) => return failed(StatusCode::UNAUTHORIZED, why),
    };
    match observer.access.authenticate(token.as_deref(), observer.clock.now_ms()) {
        Ok(principal) => Ok(principal),
        // Which of them it was is nobody's business but the log's.
        Err(refusal) => {
            tracing::info!(%refusal, peer = %address, "a request was not let in");
            let why = match refusal {
                Refusal::Missing => "a bearer token is needed",
                Refusal::Unknown | Refusal::Expired | Refusal::Invalid(_) => {
                    "the bearer token is not accepted"
                }
            };
            failed(StatusCode::UNAUTHORIZED, why)
        }
    }
}

fn bearer(request: &Request) -> Result<Option<String>, &'static str> {
    let mut values = request.headers().get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err("the Authorization header is there more than once");
    }
    let text = value.to_str().map_err(|_| "the Authorization header cannot be read")?;
    let (scheme, token) = text.split_once(' ').ok_or("the Authorization header is not: Bearer <token>")?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err("the Authorization header is not: Bearer <token>");
    }
    Ok(Some(token.trim().to_owned()))
}

fn challenge(observer: &Observer) -> HeaderValue {
    let plain = HeaderValue::from_static("Bearer");
    let Some(jwt) = observer.access.jwt() else { return plain };
    let Ok(url) = reqwest::Url::parse(&jwt.resource_url).and_then(|url| url.join(METADATA_PATH)) else {
        return plain;
    };
    HeaderValue::from_str(&format!("Bearer resource_metadata=\"{url}\"")).unwrap_or(plain)
}

fn refuse(status: StatusCode, why: &str, retry_after_s: Option<u64>) -> Response {
    let body = json!({"jsonrpc": "2.0", "id": null, "error": {"code": -32000, "message": why}});
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = retry_after_s {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
