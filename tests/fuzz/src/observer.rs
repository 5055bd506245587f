//! What an assistant sends to the observer, and what brokers' metrics pages tell it.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use strandline_mcp::clock::SystemClock;
use strandline_mcp::config::{self, Config, ConfigError, Parsed};
use strandline_mcp::http::router;
use strandline_mcp::source::exposition;
use strandline_mcp::{Observer, Parts};
use strandline_metadata::backend::embedded::Embedded;
use tokio::time::{Duration, timeout};
use tower::ServiceExt;

use crate::{pieces, world};

const TOKEN: &str = "a-token-of-this-fuzzer";
const PATIENCE: Duration = Duration::from_mins(10);
/// The most of an answer that is read: some never end.
const ANSWER_BYTES: usize = 8 << 20;
/// The first byte of an input that is a metrics page.
pub(crate) const PAGE: u8 = 255;

/// Bodies, one after the other, to one observer.
pub(crate) fn run(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else { return };
    if *how == PAGE {
        let _ = exposition::parse(&String::from_utf8_lossy(rest));
        return;
    }
    world::block_on(async {
        let flags = ["--cluster", "t", "--audit-log", "off", "--token", TOKEN, "--plans", "true"];
        let Ok(Parsed::Run(config)) = config::parse(flags.map(str::to_owned), |_| None) else {
            panic!("these flags are right")
        };
        let observer = open(*config).expect("an observer opens");
        for body in pieces(rest) {
            let mut request = Request::post("/mcp")
                .header("host", "127.0.0.1:8090")
                .header("content-type", "application/json")
                .header("accept", "application/json, text/event-stream")
                .header("authorization", format!("Bearer {TOKEN}"))
                .body(Body::from(body.to_vec()))
                .expect("a request");
            request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 1))));
            let answering = async {
                let answer = router(&observer).oneshot(request).await.expect("every request is answered");
                // A stream of events may stay open: what has come by then is enough.
                let reading = axum::body::to_bytes(answer.into_body(), ANSWER_BYTES);
                let _ = timeout(Duration::from_secs(5), reading).await;
            };
            timeout(PATIENCE, answering).await.expect("it is answered");
        }
    });
}

/// An observer of an etcd that has nothing.
pub(crate) fn open(config: Config) -> Result<Arc<Observer>, ConfigError> {
    // As its process does.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let parts =
        Parts { reader: Arc::new(Embedded::in_memory()), clock: Arc::new(SystemClock), random: [5; 32] };
    Observer::open(config, parts)
}
