//! What strangers do to the port of the metrics.

use std::time::Duration;

use axum::routing::{get, post};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;

use super::*;

struct Served {
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

async fn serve(connections: usize) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let whoami = |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() };
    let echo = |body: String| async move { body };
    let routes = Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/who", get(whoami))
        .route("/echo", post(echo));
    let (stop, stopped) = oneshot::channel::<()>();
    let server =
        async move { serve_http(listener, routes, connections, async { drop(stopped.await) }).await };
    let runtime = tokio::runtime::Handle::current();
    drop(runtime.spawn(server));
    Served { address, _stop: stop }
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn dripping_connections_do_not_silence_the_health_check() {
    let served = serve(64).await;
    let mut crowd = Vec::new();
    for i in 0..100 {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        if i % 2 == 0 {
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: ").await.unwrap();
        }
        crowd.push(stream);
    }
    for _ in 0..5 {
        let answer =
            timeout(Duration::from_secs(20), ask(served.address, HEALTH)).await.expect("it is answered");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("alive\n"), "{answer}");
        for stream in &mut crowd {
            // Some of them have been closed.
            let _ = stream.write_all(b"a").await;
        }
    }
}

#[tokio::test]
async fn routes_know_who_asks_and_bodies_come_through() {
    let served = serve(64).await;
    let answer = ask(served.address, "GET /who HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("\r\n\r\n127.0.0.1:"), "{answer}");
    let request = "POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello";
    assert!(ask(served.address, request).await.ends_with("hello"));
}

#[tokio::test(start_paused = true)]
async fn a_head_or_a_body_that_does_not_come_is_not_waited_for() {
    for request in ["", "GET /healthz HT", "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhel"] {
        let served = serve(64).await;
        // Time passes by itself while nothing else can be done.
        let answer = timeout(HTTP_HEAD_TIME + HTTP_BODY_TIME, ask(served.address, request)).await;
        let answer = answer.expect("the connection is closed");
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}
