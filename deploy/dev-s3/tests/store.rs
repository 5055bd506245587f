//! The storage crate's own S3 backend against this server: the conformance suite, and every fault
//! that the server can make. So each is held to the other, and both to what `object_store` does
//! with S3.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests are outside of what clippy calls a test"
)]

use std::fs;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, put};
use bytes::Bytes;
use strandline_dev_s3::{Config, FaultPlan, Operation as ServerOperation, Place, Server, Tls};
use strandline_storage::format::checksum::Crc32c;
use strandline_storage::store::{
    Checksum, ObjectStoreBackend, Payload, Secret, StoreUrl, conformance, open_backend,
};
use strandline_storage::{
    Clock, ObjectKey, StorageMetrics, Store, StoreConfig, StoreError, SystemClock, open,
};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;

const BUCKET: &str = "test-bucket";

/// A server that serves as long as this lives.
struct Running {
    url: String,
    set: Box<dyn Fn(FaultPlan) -> Result<(), String>>,
    requests: Box<dyn Fn(ServerOperation) -> u64>,
    _tasks: JoinSet<()>,
}

impl Running {
    async fn start(config: Config) -> Self {
        let server = Server::start(config).await.unwrap();
        let (url, set) = (server.url(), Box::new(server.fault_setter()));
        let requests = Box::new(server.request_counter());
        let mut tasks = JoinSet::new();
        tasks.spawn(server.run(pending()));
        Self { url, set, requests, _tasks: tasks }
    }

    async fn in_memory() -> Self {
        Self::start(Config::in_memory(BUCKET)).await
    }

    fn config(&self) -> StoreConfig {
        let url = StoreUrl::S3 { bucket: BUCKET.into(), prefix: "operator/prefix".into() };
        StoreConfig {
            prefix: "cluster-1".into(),
            endpoint: Some(self.url.clone()),
            access_key_id: Some("test".into()),
            secret_access_key: Some(Secret::new("test-secret")),
            allow_http: true,
            ..StoreConfig::new(url)
        }
    }

    fn bare(&self) -> Arc<dyn Store> {
        open_backend(&self.config()).unwrap()
    }

    fn deletes(&self) -> u64 {
        (self.requests)(ServerOperation::Delete)
    }

    fn faults(&self, plan: FaultPlan) {
        (self.set)(plan).unwrap();
    }
}

struct TempFolder(PathBuf);

impl TempFolder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("strandline-dev-s3-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::parse(name).unwrap()
}

fn payload() -> Payload {
    vec![Bytes::from(vec![1; 100_000]), Bytes::from(vec![2; 100_000])].into()
}

#[tokio::test]
async fn s3_in_memory_conforms() {
    let server = Running::in_memory().await;
    conformance::run(&*server.bare()).await;
}

#[tokio::test]
async fn s3_in_a_folder_conforms() {
    let folder = TempFolder::new("conforms");
    let place = Place::Folder(folder.0.clone());
    let server = Running::start(Config { place, ..Config::in_memory(BUCKET) }).await;
    conformance::run(&*server.bare()).await;
}

#[tokio::test]
async fn every_checksum_is_accepted() {
    let server = Running::in_memory().await;
    for checksum in [Checksum::None, Checksum::Crc32c, Checksum::Crc64Nvme, Checksum::Sha256] {
        let store = open_backend(&StoreConfig { checksum, ..server.config() }).unwrap();
        store.put(&key("a"), payload()).await.unwrap();
        assert_eq!(store.get(&key("a"), Some(99_999..100_001)).await.unwrap(), [1, 2][..]);
    }
}

/// The sum that comes with the bytes is sent along under a signature, and not one of what is sent.
#[tokio::test]
async fn bytes_that_have_changed_since_they_were_summed_up_are_refused() {
    let server = Running::in_memory().await;
    let config = server.config();
    assert_eq!(config.checksum, Checksum::Crc32c, "it is the default");
    let changed = Payload::summed(vec![Bytes::from_static(b"changed")], Crc32c::of(b"sent as"));
    let refused = open_backend(&config).unwrap().put(&key("a"), changed.clone()).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("crc32c")));
    let unchecked = StoreConfig { checksum: Checksum::None, ..config };
    open_backend(&unchecked).unwrap().put(&key("a"), changed).await.unwrap();
}

#[tokio::test]
async fn s3_conforms_through_faults_behind_retries() {
    let server = Running::in_memory().await;
    server.faults(FaultPlan {
        error_rate: 0.03,
        slowdown_rate: 0.001,
        lost_answer_rate: 0.03,
        reset_rate: 0.03,
        truncate_rate: 0.03,
        latency_jitter_ms: 1,
        ..FaultPlan::default()
    });
    let metrics = StorageMetrics::unregistered();
    let store = open(&server.config(), &metrics, Arc::new(SystemClock), 1).unwrap();
    conformance::run(&*store).await;
}

#[tokio::test]
async fn each_fault_is_the_error_that_it_should_be() {
    let server = Running::in_memory().await;
    let store = server.bare();
    store.put(&key("a"), payload()).await.unwrap();
    let get = async || store.get(&key("a"), None).await.map(|bytes| bytes.len());

    server.faults(FaultPlan { error_rate: 1.0, ..FaultPlan::default() });
    assert!(matches!(get().await, Err(StoreError::Unavailable { message, .. }) if message.contains("500")));
    server.faults(FaultPlan { slowdown_rate: 1.0, ..FaultPlan::default() });
    assert!(
        matches!(get().await, Err(StoreError::Throttled { message, .. }) if message.contains("SlowDown"))
    );
    let put = store.put(&key("b"), payload()).await;
    assert!(matches!(put, Err(StoreError::Throttled { .. })), "{put:?}");
    let list = store.list("", None, 10).await;
    assert!(matches!(list, Err(StoreError::Throttled { .. })), "{list:?}");
    server.faults(FaultPlan { deny: true, ..FaultPlan::default() });
    assert!(
        matches!(get().await, Err(StoreError::Denied { message, .. }) if message.contains("AccessDenied"))
    );
    let list = store.list("", None, 10).await;
    assert!(matches!(list, Err(StoreError::Denied { .. })), "{list:?}");
    server.faults(FaultPlan { reset_rate: 1.0, ..FaultPlan::default() });
    assert!(matches!(get().await, Err(StoreError::Unavailable { .. })));
    server.faults(FaultPlan { truncate_rate: 1.0, ..FaultPlan::default() });
    assert!(matches!(get().await, Err(StoreError::Unavailable { .. })));
    server.faults(FaultPlan { missing_rate: 1.0, ..FaultPlan::default() });
    assert_eq!(get().await, Err(StoreError::NotFound { key: "a".into() }));

    server.faults(FaultPlan { lost_answer_rate: 1.0, ..FaultPlan::default() });
    let put = store.put(&key("b"), payload()).await;
    assert!(matches!(put, Err(StoreError::Unavailable { .. })), "{put:?}");
    server.faults(FaultPlan { flip_rate: 1.0, ..FaultPlan::default() });
    let flipped = store.get(&key("b"), None).await.unwrap();
    assert_eq!(flipped.iter().zip(payload().concat()).filter(|(a, b)| **a != *b).count(), 1);
    server.faults(FaultPlan::default());
    assert_eq!(
        store.get(&key("b"), None).await.unwrap(),
        payload().concat(),
        "the PUT whose answer was lost"
    );
}

fn deletable(count: usize) -> Vec<ObjectKey> {
    (0..count).map(|number| key(&format!("wal/{number}"))).collect()
}

#[tokio::test]
async fn many_objects_are_deleted_with_few_requests() {
    let server = Running::in_memory().await;
    let store = server.bare();
    let keys = deletable(2500);
    for key in keys.iter().step_by(50) {
        store.put(key, payload()).await.unwrap();
    }
    assert_eq!(store.keys_per_delete(), 1000);
    assert!(store.delete_many(&keys).await.iter().all(Result::is_ok));
    assert_eq!(server.deletes(), 3);
    assert_eq!(store.list("", None, 10).await.unwrap(), []);
}

#[tokio::test]
async fn a_server_without_bulk_deletes_is_asked_once_and_then_for_single_ones() {
    let server = Running::in_memory().await;
    server.faults(FaultPlan { refuse_bulk_delete: true, ..FaultPlan::default() });
    let metrics = StorageMetrics::unregistered();
    let store = open(&server.config(), &metrics, Arc::new(SystemClock), 1).unwrap();
    let keys = deletable(50);
    for key in &keys {
        store.put(key, payload()).await.unwrap();
    }
    assert!(store.delete_many(&keys).await.iter().all(Result::is_ok));
    assert_eq!(server.deletes(), 51, "the refused one, and one for each");
    assert_eq!(store.list("", None, 10).await.unwrap(), []);
    assert_eq!(store.keys_per_delete(), 1);
    assert!(store.delete_many(&keys).await.iter().all(Result::is_ok));
    assert_eq!(server.deletes(), 101);
    assert!(metrics.health().healthy, "that is no failure");
}

#[tokio::test]
async fn an_object_that_cannot_be_deleted_stops_no_other_one() {
    let server = Running::in_memory().await;
    let undeletable = vec!["operator/prefix/cluster-1/wal/3".to_owned()];
    for refuse_bulk_delete in [false, true] {
        let undeletable = undeletable.clone();
        server.faults(FaultPlan { refuse_bulk_delete, undeletable, ..FaultPlan::default() });
        let config = StoreConfig { retry_budget: Duration::from_secs(1), ..server.config() };
        let store = open(&config, &StorageMetrics::unregistered(), Arc::new(SystemClock), 1).unwrap();
        let keys = deletable(10);
        for key in &keys {
            store.put(key, payload()).await.unwrap();
        }
        let results = store.delete_many(&keys).await;
        for (number, result) in results.into_iter().enumerate() {
            match result {
                Err(StoreError::Denied { key, message, .. }) if number == 3 => {
                    assert_eq!(key, "wal/3");
                    assert!(message.contains("AccessDenied"), "{message}");
                }
                other => assert_eq!((other, number == 3), (Ok(()), false)),
            }
        }
        let left = store.list("", None, 10).await.unwrap();
        assert_eq!(left.iter().map(|meta| meta.key.as_str()).collect::<Vec<_>>(), ["wal/3"]);
    }
}

#[tokio::test]
async fn a_bulk_delete_that_fails_as_a_whole_is_the_error_of_each_key() {
    let server = Running::in_memory().await;
    let store = server.bare();
    let keys = deletable(3);
    let fails_as = async |plan: FaultPlan, is_expected: fn(&StoreError) -> bool| {
        server.faults(plan.clone());
        for (key, result) in keys.iter().zip(store.delete_many(&keys).await) {
            let error = result.unwrap_err();
            assert!(is_expected(&error), "{plan:?}: {error}");
            assert_eq!(error.key(), Some(key.as_str()));
        }
    };
    let unavailable = |error: &StoreError| matches!(error, StoreError::Unavailable { .. });
    fails_as(FaultPlan { error_rate: 1.0, ..FaultPlan::default() }, unavailable).await;
    fails_as(FaultPlan { reset_rate: 1.0, ..FaultPlan::default() }, unavailable).await;
    fails_as(FaultPlan { lost_answer_rate: 1.0, ..FaultPlan::default() }, unavailable).await;
    fails_as(FaultPlan { deny: true, ..FaultPlan::default() }, |e| matches!(e, StoreError::Denied { .. }))
        .await;
    let throttled = |error: &StoreError| matches!(error, StoreError::Throttled { .. });
    fails_as(FaultPlan { slowdown_rate: 1.0, ..FaultPlan::default() }, throttled).await;
    server.faults(FaultPlan::default());
    assert!(store.delete_many(&keys).await.iter().all(Result::is_ok), "none of that is remembered");
    assert_eq!(store.keys_per_delete(), 1000);
    let url = StoreUrl::S3 { bucket: "no-such-bucket".into(), prefix: String::new() };
    let store = open_backend(&StoreConfig { url, ..server.config() }).unwrap();
    let missing = store.delete_many(&keys[..1]).await;
    assert!(
        matches!(&missing[..], [Err(StoreError::Invalid { what })] if what.contains("bucket")),
        "{missing:?}"
    );
}

#[tokio::test]
async fn faults_hit_only_the_operations_that_they_name() {
    let server = Running::in_memory().await;
    let store = server.bare();
    server.faults(FaultPlan { deny: true, operations: vec![ServerOperation::Get], ..FaultPlan::default() });
    store.put(&key("a"), payload()).await.unwrap();
    assert_eq!(store.list("", None, 10).await.unwrap().len(), 1);
    assert!(store.get(&key("a"), None).await.is_err());
    store.delete(&key("a")).await.unwrap();
}

#[tokio::test]
async fn an_outage_ends_without_help() {
    let server = Running::in_memory().await;
    let metrics = StorageMetrics::unregistered();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let config = StoreConfig { request_timeout: Duration::from_millis(300), ..server.config() };
    let store = open(&config, &metrics, clock, 1).unwrap();
    let key = key("a");
    for plan in [
        FaultPlan { hang: true, ..FaultPlan::default() },
        FaultPlan { deny: true, ..FaultPlan::default() },
        FaultPlan { slowdown_rate: 1.0, ..FaultPlan::default() },
        FaultPlan { reset_rate: 1.0, ..FaultPlan::default() },
    ] {
        server.faults(plan.clone());
        let put = async { store.put(&key, payload()).await };
        let heal = async {
            tokio::time::sleep(Duration::from_millis(2500)).await;
            assert!(!metrics.health().healthy, "{plan:?}");
            server.faults(FaultPlan::default());
        };
        let begin = Instant::now();
        let (put, ()) = futures::future::join(put, heal).await;
        put.unwrap();
        assert!(begin.elapsed() < Duration::from_secs(15), "{plan:?}: {:?}", begin.elapsed());
        assert!(metrics.health().healthy, "{plan:?}");
    }
}

#[tokio::test]
async fn wrong_credentials_and_missing_buckets_are_told_apart() {
    let server = Running::in_memory().await;
    for (id, secret) in [("test", "wrong"), ("wrong", "test-secret")] {
        let config = StoreConfig {
            access_key_id: Some(id.into()),
            secret_access_key: Some(Secret::new(secret)),
            ..server.config()
        };
        let error = open_backend(&config).unwrap().put(&key("a"), payload()).await.unwrap_err();
        assert!(matches!(error, StoreError::Denied { .. }), "{error}");
        assert!(!error.to_string().contains("test-secret"), "{error}");
    }
    let url = StoreUrl::S3 { bucket: "no-such-bucket".into(), prefix: String::new() };
    let store = open_backend(&StoreConfig { url, ..server.config() }).unwrap();
    for error in [
        store.put(&key("a"), payload()).await.unwrap_err(),
        store.get(&key("a"), None).await.unwrap_err(),
        store.list("", None, 1).await.unwrap_err(),
    ] {
        assert!(matches!(&error, StoreError::Invalid { what } if what.contains("bucket")), "{error}");
    }
}

#[tokio::test]
async fn nobody_listening_is_unavailable() {
    let server = Running::in_memory().await;
    let endpoint = Some("http://127.0.0.1:1".into());
    let store = open_backend(&StoreConfig { endpoint, ..server.config() }).unwrap();
    let error = store.get(&key("a"), None).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn a_session_token_is_sent() {
    let server = Running::in_memory().await;
    let session_token = Some(Secret::new("a-token"));
    let store = open_backend(&StoreConfig { session_token, ..server.config() }).unwrap();
    // The server signs with every header that the client signed: a token that were not sent would
    // not verify.
    store.put(&key("a"), payload()).await.unwrap();
}

/// An instance's metadata service that knows one role. Its first answers are refusals, as while a
/// machine boots.
fn metadata_service(refusals: u32) -> Router {
    let refused = Arc::new(AtomicU32::new(0));
    let token = move || async move {
        if refused.fetch_add(1, Ordering::Relaxed) < refusals {
            return (StatusCode::NOT_FOUND, "no role yet");
        }
        (StatusCode::OK, "a-token")
    };
    let credentials = || async {
        r#"{"AccessKeyId": "test", "SecretAccessKey": "test-secret", "Token": "t", "Expiration": "2100-01-01T00:00:00Z"}"#
    };
    Router::new()
        .route("/latest/api/token", put(token))
        .route("/latest/meta-data/iam/security-credentials/", get(|| async { "a-role" }))
        .route("/latest/meta-data/iam/security-credentials/a-role", get(credentials))
}

#[tokio::test]
async fn the_credentials_of_an_instance_are_used_once_they_are_there() {
    let server = Running::in_memory().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { axum::serve(listener, metadata_service(2)).await.unwrap() });
    let config = StoreConfig {
        access_key_id: None,
        secret_access_key: None,
        metadata_endpoint: Some(endpoint),
        ..server.config()
    };
    let error = open_backend(&config).unwrap().put(&key("a"), payload()).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Denied { message, .. } if message.contains("credentials")),
        "{error}"
    );
    let store = open(&config, &StorageMetrics::unregistered(), Arc::new(SystemClock), 1).unwrap();
    store.put(&key("a"), payload()).await.unwrap();
    assert_eq!(server.bare().get(&key("a"), None).await.unwrap().len(), 200_000);
}

#[tokio::test]
async fn many_requests_at_once_are_served() {
    let server = Running::in_memory().await;
    let store = server.bare();
    let keys: Vec<ObjectKey> = (0..200).map(|n| key(&format!("many/{n}"))).collect();
    let puts = keys.iter().map(|key| store.put(key, payload()));
    futures::future::try_join_all(puts).await.unwrap();
    let gets = futures::future::try_join_all(keys.iter().map(|key| store.get(key, Some(99_990..100_010))));
    assert!(gets.await.unwrap().iter().all(|bytes| bytes[..] == [[1; 10], [2; 10]].concat()));
}

fn certificate(folder: &Path) -> (Tls, PathBuf) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let tls = Tls { certificate: folder.join("cert.pem"), key: folder.join("key.pem") };
    fs::write(&tls.certificate, made.cert.pem()).unwrap();
    fs::write(&tls.key, made.signing_key.serialize_pem()).unwrap();
    let ca = tls.certificate.clone();
    (tls, ca)
}

#[tokio::test]
async fn tls_works_with_a_certificate_of_ones_own_and_only_with_it() {
    let folder = TempFolder::new("tls");
    let (tls, ca) = certificate(&folder.0);
    let server = Running::start(Config { tls: Some(tls), ..Config::in_memory(BUCKET) }).await;
    assert!(server.url.starts_with("https://"));
    let config = StoreConfig { allow_http: false, ..server.config() };
    let refused = open_backend(&config).unwrap().put(&key("a"), payload()).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "an unknown certificate: {refused:?}");
    let store = open_backend(&StoreConfig { ca_file: Some(ca), ..config }).unwrap();
    conformance::run(&*store).await;
}

#[tokio::test]
async fn one_bucket_serves_several_clusters() {
    let server = Running::in_memory().await;
    let one = ObjectStoreBackend::open(&server.config()).unwrap();
    let two =
        ObjectStoreBackend::open(&StoreConfig { prefix: "cluster-2".into(), ..server.config() }).unwrap();
    one.put(&key("wal/a"), payload()).await.unwrap();
    assert!(matches!(two.get(&key("wal/a"), None).await, Err(StoreError::NotFound { .. })));
    assert_eq!(two.list("", None, 10).await.unwrap(), []);
    assert_eq!(one.list("", None, 10).await.unwrap().len(), 1);
}
