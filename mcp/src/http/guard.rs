//! Host and Origin, checked on every route: a web page must not reach a server on the operator's
//! machine by a name of its own (DNS rebinding), nor by its visitor's browser.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header, uri::Authority};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use crate::Observer;
use crate::metrics::RefusedFor;

pub(super) async fn check(State(observer): State<Arc<Observer>>, request: Request, next: Next) -> Response {
    if !is_host_allowed(&request, &observer.config.allowed_hosts) {
        observer.metrics.refused(RefusedFor::Host);
        return (StatusCode::FORBIDDEN, "this server is not known by that name (see allowed_hosts)\n")
            .into_response();
    }
    if !is_origin_allowed(request.headers(), &observer.config.allowed_origins) {
        observer.metrics.refused(RefusedFor::Origin);
        return (StatusCode::FORBIDDEN, "this origin is not allowed (see allowed_origins)\n").into_response();
    }
    let length =
        request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|bytes| bytes > crate::limits::REQUEST_BYTES as u64) {
        observer.metrics.refused(RefusedFor::Size);
        return (StatusCode::PAYLOAD_TOO_LARGE, "the request is too large\n").into_response();
    }
    next.run(request).await
}

fn is_host_allowed(request: &Request, allowed: &[String]) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok(),
        (None, _) => request.uri().authority().map(Authority::as_str),
        (Some(_), Some(_)) => None,
    };
    let Some(authority) = host.and_then(|h| h.parse::<Authority>().ok()) else { return false };
    // `user@host` is no Host header.
    if authority.as_str().contains('@') {
        return false;
    }
    let plain = |host: &str| host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let host = plain(authority.host());
    allowed.iter().any(|entry| match entry.parse::<Authority>() {
        Ok(entry) if entry.port().is_some() => {
            plain(entry.host()) == host && entry.port_u16() == authority.port_u16()
        }
        _ => plain(entry) == host,
    })
}

fn is_origin_allowed(headers: &HeaderMap, allowed: &[String]) -> bool {
    headers.get_all(header::ORIGIN).iter().all(|origin| {
        let origin = origin.to_str().unwrap_or_default();
        allowed.iter().any(|entry| with_port(entry) == with_port(origin))
    })
}

/// An origin with its port written out, so that `https://a` and `https://a:443` are the same.
fn with_port(origin: &str) -> Option<(String, String, u16)> {
    let (scheme, rest) = origin.split_once("://")?;
    let authority: Authority = rest.parse().ok()?;
    let default = match scheme {
        "https" => 443,
        "http" => 80,
        _ => return None,
    };
    let port = authority.port_u16().unwrap_or(default);
    Some((scheme.to_ascii_lowercase(), authority.host().to_ascii_lowercase(), port))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn host(value: &str) -> bool {
        let request = Request::builder().header("host", value).body(Body::empty()).unwrap();
        let allowed = ["localhost", "127.0.0.1", "::1", "observer.example:8443"].map(str::to_owned);
        is_host_allowed(&request, &allowed)
    }

    #[test]
    fn only_known_names_are_answered_to() {
        for good in ["localhost", "LOCALHOST:8090", "127.0.0.1:1", "[::1]:8090", "observer.example:8443"] {
            assert!(host(good), "{good}");
        }
        for bad in
            ["evil.example", "observer.example", "observer.example:80", "x@localhost", "localhost.evil", ""]
        {
            assert!(!host(bad), "{bad}");
        }
    }

    #[test]
    fn an_origin_must_be_listed_and_none_is_fine() {
        let origin = |value: Option<&str>, allowed: &[&str]| {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert("origin", value.parse().unwrap());
            }
            let allowed: Vec<String> = allowed.iter().map(|a| (*a).to_owned()).collect();
            is_origin_allowed(&headers, &allowed)
        };
        assert!(origin(None, &[]));
        assert!(!origin(Some("http://localhost:8090"), &[]));
        assert!(!origin(Some("null"), &["https://a"]));
        assert!(origin(Some("https://a"), &["https://a:443"]));
        assert!(!origin(Some("https://a:444"), &["https://a"]));
        assert!(!origin(Some("http://a"), &["https://a"]));
    }
}
