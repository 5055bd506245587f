//! Tokens of an issuer whose keys are behind a URL: they are fetched, and fetched again when the
//! issuer changes them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by ending what is wrong")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::{Served, Store, serve};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use strandline_mcp::clock::{Clock as _, SystemClock};
use strandline_mcp::tasks::TaskSet;
use tokio::net::TcpListener;

/// A key of the issuer, with its id.
struct Key {
    id: &'static str,
    pair: Ed25519KeyPair,
}

impl Key {
    fn new(id: &'static str) -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self { id, pair: Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap() }
    }

    fn jwk(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.pair.public_key().as_ref());
        json!({"kty": "OKP", "crv": "Ed25519", "kid": self.id, "use": "sig", "x": x})
    }

    /// A token that this key signs, good for an hour.
    fn token(&self) -> String {
        let encode = |v: Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let header = encode(json!({"alg": "EdDSA", "kid": self.id}));
        let claims = encode(json!({
            "iss": "https://issuer.example", "aud": "strandline", "sub": "ana", "scope": "read",
            "exp": SystemClock.now_ms() / 1000 + 3_600,
        }));
        let signed = format!("{header}.{claims}");
        let signature = URL_SAFE_NO_PAD.encode(self.pair.sign(signed.as_bytes()).as_ref());
        format!("{signed}.{signature}")
    }
}

/// An issuer's web server: what it says is what `set` holds, with its status.
struct Issuer {
    url: String,
    set: Arc<Mutex<(u16, Value)>>,
    asked: Arc<AtomicUsize>,
    _tasks: TaskSet,
}

async fn issuer(status: u16, keys: &[&Key]) -> Issuer {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
    let set = Arc::new(Mutex::new((status, set_of(keys))));
    let asked = Arc::new(AtomicUsize::new(0));
    let (shown, counted) = (set.clone(), asked.clone());
    let answer = move || {
        counted.fetch_add(1, Ordering::SeqCst);
        let (status, set) = shown.lock().unwrap().clone();
        async move { (axum::http::StatusCode::from_u16(status).unwrap(), set.to_string()) }
    };
    let routes = axum::Router::new().route("/jwks.json", axum::routing::get(answer));
    let tasks = TaskSet::default();
    tasks.start("issuer", async move { axum::serve(listener, routes).await.unwrap() });
    Issuer { url, set, asked, _tasks: tasks }
}

fn set_of(keys: &[&Key]) -> Value {
    json!({"keys": keys.iter().map(|k| k.jwk()).collect::<Vec<_>>()})
}

async fn observer(issuer: &Issuer) -> Served {
    let flags = [
        "--jwt-issuer",
        "https://issuer.example",
        "--jwt-audience",
        "strandline",
        "--jwt-jwks",
        &issuer.url,
        "--resource-url",
        "https://observer.example/mcp",
        "--auth-failures-per-minute",
        "100000",
    ];
    serve(&Store::new(), &flags).await
}

async fn status(served: &Served, token: &str) -> u16 {
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}).to_string();
    served.post(Some(token), &[], body).await.0
}

async fn until(served: &Served, token: &str, wanted: u16) {
    for _ in 0..600 {
        if status(served, token).await == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the token is never answered with {wanted}");
}

/// Lets time pass for every timer of this test.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn keys_are_fetched_and_a_rotation_is_noticed_by_the_first_token_of_the_new_key() {
    let (old, new, foreign) = (Key::new("old"), Key::new("new"), Key::new("foreign"));
    let issuer = issuer(200, &[&old]).await;
    let served = observer(&issuer).await;
    until(&served, &old.token(), 200).await;
    assert_eq!(status(&served, &foreign.token()).await, 401);
    // Another's key under a known name is no better.
    assert_eq!(status(&served, &Key::new("old").token()).await, 401);

    *issuer.set.lock().unwrap() = (200, set_of(&[&new]));
    assert_eq!(status(&served, &new.token()).await, 401, "keys are not fetched for every token");
    assert_eq!(status(&served, &old.token()).await, 200);
    // Less than the ten minutes after which they are fetched anyway.
    pass(Duration::from_secs(61)).await;
    until(&served, &new.token(), 200).await;
    assert_eq!(status(&served, &old.token()).await, 401, "a key that was withdrawn counts no more");
}

#[tokio::test]
async fn an_issuer_that_fails_at_first_is_asked_again_and_known_keys_outlive_a_failure() {
    let (old, new) = (Key::new("old"), Key::new("new"));
    let issuer = issuer(503, &[&old]).await;
    let served = observer(&issuer).await;
    assert_eq!(status(&served, &old.token()).await, 401);
    issuer.set.lock().unwrap().0 = 200;
    pass(Duration::from_secs(6)).await;
    until(&served, &old.token(), 200).await;

    for garbage in [(500, set_of(&[&new])), (200, json!({"keys": []})), (200, json!("x".repeat(300 * 1024)))]
    {
        *issuer.set.lock().unwrap() = garbage;
        assert_eq!(status(&served, &new.token()).await, 401);
        let before = issuer.asked.load(Ordering::SeqCst);
        pass(Duration::from_secs(61)).await;
        for _ in 0..600 {
            if issuer.asked.load(Ordering::SeqCst) > before {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(issuer.asked.load(Ordering::SeqCst) > before, "the issuer is never asked again");
        assert_eq!(status(&served, &new.token()).await, 401);
        assert_eq!(status(&served, &old.token()).await, 200);
    }
}
