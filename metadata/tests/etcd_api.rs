//! What an embedded store answers over etcd's API: to this crate's own client for etcd, to a raw
//! client, and to `etcdctl`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "tests may fail loudly and read their environment"
)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use etcd_client::{Client, GetOptions, SortOrder, SortTarget, WatchFilterType, WatchOptions, WatchStream};
use serde_json::Value;
use strandline_metadata::backend::embedded::{Embedded, api};
use strandline_metadata::backend::etcd::{EtcdConfig, EtcdReader};
use strandline_metadata::backend::{
    Backend, BackendError, ChangedRequest, ChangedResponse, KeyRange, Op, RangeRequest, RangeResponse,
    ReadBackend, Txn, TxnResponse, Watch, conformance,
};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A store, and its API on a port of its own.
struct Served {
    store: Embedded,
    address: String,
    _tasks: JoinSet<()>,
}

impl Served {
    async fn start() -> Self {
        let store = Embedded::in_memory();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut tasks = JoinSet::new();
        let served = store.clone();
        tasks.spawn(async move { api::serve(served, listener).await.unwrap() });
        Self { store, address, _tasks: tasks }
    }

    async fn reader(&self) -> EtcdReader {
        EtcdReader::new(&EtcdConfig::new([format!("http://{}", self.address)])).await.unwrap()
    }

    async fn client(&self) -> Client {
        Client::connect([&self.address], None).await.unwrap()
    }

    /// A client that has room for little of an answer that it does not look at.
    async fn client_with_little_room(&self) -> Client {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        let endpoint = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
        let channel = endpoint.connect().await.unwrap();
        Client::from_channel(etcd_client::Channel::Tonic(channel), None).await.unwrap()
    }

    async fn put(&self, key: &str, value: &str) -> i64 {
        self.run(Op::put(key.to_owned(), value.to_owned())).await
    }

    async fn run(&self, op: Op) -> i64 {
        self.store.txn(Txn { then: vec![op], ..Txn::default() }).await.unwrap().revision
    }

    /// What `etcdctl` prints.
    fn ctl(&self, args: &[&str]) -> String {
        self.try_ctl(args).unwrap_or_else(|why| panic!("etcdctl {args:?}: {why}"))
    }

    /// What `etcdctl` prints; an error is what it complains of.
    fn try_ctl(&self, args: &[&str]) -> Result<String, String> {
        let done = self.command(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        if done.status.success() { Ok(text(done.stdout)) } else { Err(text(done.stderr)) }
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ctl(&[args, &["-w", "json"]].concat())).unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.address]).args(args);
        command
    }
}

/// Whether there is an `etcdctl` to test with. Says so loudly if not.
fn has_ctl(test: &str) -> bool {
    let found = Command::new("etcdctl").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return true;
    }
    let required = std::env::var("STRANDLINE_REQUIRE_ETCD").is_ok_and(|value| value == "1");
    assert!(!required, "{test}: there is no etcdctl on the PATH, and STRANDLINE_REQUIRE_ETCD=1 asks for one");
    println!("SKIPPED {test}: there is no etcdctl on the PATH");
    false
}

/// Reads over the API, and writes to the store itself.
#[derive(Debug)]
struct ReadsOverApi {
    reader: EtcdReader,
    store: Embedded,
}

#[async_trait]
impl ReadBackend for ReadsOverApi {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, BackendError> {
        self.reader.range(request).await
    }

    async fn changed(&self, request: ChangedRequest) -> Result<ChangedResponse, BackendError> {
        self.reader.changed(request).await
    }

    async fn watch(&self, keys: KeyRange, revision: i64) -> Result<Box<dyn Watch>, BackendError> {
        self.reader.watch(keys, revision).await
    }
}

#[async_trait]
impl Backend for ReadsOverApi {
    async fn txn(&self, txn: Txn) -> Result<TxnResponse, BackendError> {
        self.store.txn(txn).await
    }

    async fn lease_grant(&self, ttl_s: i64) -> Result<i64, BackendError> {
        self.store.lease_grant(ttl_s).await
    }

    async fn lease_keep_alive(&self, lease: i64) -> Result<i64, BackendError> {
        self.store.lease_keep_alive(lease).await
    }

    async fn lease_revoke(&self, lease: i64) -> Result<(), BackendError> {
        self.store.lease_revoke(lease).await
    }

    async fn compact(&self, revision: i64) -> Result<(), BackendError> {
        self.store.compact(revision).await
    }
}

#[tokio::test]
async fn read_over_the_api_the_store_behaves_as_every_backend() {
    let served = Served::start().await;
    let store: Arc<dyn Backend> =
        Arc::new(ReadsOverApi { reader: served.reader().await, store: served.store.clone() });
    conformance::run_all(async || Arc::clone(&store)).await;
}

#[tokio::test]
async fn ranges_count_sort_and_filter_as_in_etcd() {
    let served = Served::start().await;
    for (key, value) in [("/a", "3"), ("/b", "1"), ("/c", "2"), ("/b", "4"), ("other", "")] {
        served.put(key, value).await;
    }
    let mut client = served.client().await;
    let mut get = async |key: &str, options: GetOptions| {
        let found = client.get(key, Some(options)).await.unwrap();
        let keys: Vec<String> = found.kvs().iter().map(|kv| kv.key_str().unwrap().to_owned()).collect();
        (keys.join(" "), found.count(), found.more())
    };
    let prefix = || GetOptions::new().with_prefix();
    let found = |keys: &str, count, more| (keys.to_owned(), count, more);
    assert_eq!(get("/", prefix()).await, found("/a /b /c", 3, false));
    assert_eq!(get("/", prefix().with_limit(2)).await, found("/a /b", 3, true));
    assert_eq!(get("/", prefix().with_count_only()).await, found("", 3, false));
    assert_eq!(get("/", prefix().with_revision(3)).await, found("/a /b", 2, false));
    assert_eq!(get("/", prefix().with_serializable()).await, found("/a /b /c", 3, false));
    assert_eq!(get("/b", GetOptions::new().with_from_key()).await, found("/b /c other", 3, false));
    assert_eq!(get("", GetOptions::new().with_all_keys()).await, found("/a /b /c other", 4, false));
    assert_eq!(get("/missing", GetOptions::new()).await, found("", 0, false));
    for (target, order, expected) in [
        (SortTarget::Key, SortOrder::Descend, "/c /b /a"),
        (SortTarget::Value, SortOrder::Ascend, "/c /a /b"),
        (SortTarget::Mod, SortOrder::Descend, "/b /c /a"),
        (SortTarget::Version, SortOrder::Descend, "/b /a /c"),
        (SortTarget::Create, SortOrder::None, "/a /b /c"),
    ] {
        let sorted = get("/", prefix().with_sort(target, order)).await;
        assert_eq!(sorted, found(expected, 3, false), "{target:?} {order:?}");
    }
    let limited = prefix().with_sort(SortTarget::Mod, SortOrder::Descend).with_limit(1);
    assert_eq!(get("/", limited).await, found("/b", 3, true), "what is left out is chosen after sorting");
    assert_eq!(get("/", prefix().with_min_mod_revision(4)).await, found("/b /c", 3, false));
    assert_eq!(get("/", prefix().with_max_create_revision(3)).await, found("/a /b", 3, false));
    let keys_only = client.get("/a", Some(GetOptions::new().with_keys_only())).await.unwrap();
    assert_eq!((keys_only.kvs()[0].value(), keys_only.kvs()[0].mod_revision()), (&b""[..], 2));
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_refused_so_that_clients_ask_for_less() {
    let served = Served::start().await;
    for i in 0..5 {
        served.put(&format!("/k{i}"), &"x".repeat(1_000_000)).await;
    }
    let reader = served.reader().await;
    let all = |limit| RangeRequest { keys: KeyRange::prefix("/k"), revision: None, limit, keys_only: false };
    let refused = reader.range(all(0)).await.unwrap_err();
    assert!(matches!(&refused, BackendError::TooLarge(why) if why.contains("limit")), "{refused:?}");
    assert_eq!(reader.range(all(3)).await.unwrap().kvs.len(), 3);
    assert_eq!(reader.range(RangeRequest { keys_only: true, ..all(0) }).await.unwrap().kvs.len(), 5);
}

/// Long enough for an answer that is not held back.
const A_WHILE: Duration = Duration::from_millis(500);

#[tokio::test]
async fn answers_that_nobody_takes_and_connections_hold_others_back_and_no_more() {
    let served = Served::start().await;
    for i in 0..3 {
        served.put(&format!("/large{i}"), &"x".repeat(1_300_000)).await;
    }
    served.put("/small", "x").await;
    let mut untaken = Vec::new();
    for _ in 0..4 {
        let client = served.client_with_little_room().await;
        for _ in 0..2 {
            let mut kv = client.kv_client();
            let all = GetOptions::new().with_prefix();
            let mut call = Box::pin(async move { kv.get("/large", Some(all)).await });
            // Sent, and never looked at again.
            assert!(futures::poll!(&mut call).is_pending());
            untaken.push(call);
        }
    }
    tokio::time::sleep(A_WHILE).await;
    let mut probe = served.client().await;
    let mut answer = Box::pin(async move { probe.get("/small", None).await });
    assert!(timeout(A_WHILE, &mut answer).await.is_err(), "there are as many answers in memory as may be");
    drop(untaken);
    assert_eq!(timeout(PATIENCE, answer).await.expect("there is room").unwrap().count(), 1);

    let mut idle = Vec::new();
    for _ in 0..8 {
        idle.push(tokio::net::TcpStream::connect(&served.address).await.unwrap());
    }
    let mut answer = Box::pin(async { served.client().await.get("/small", None).await });
    assert!(timeout(A_WHILE, &mut answer).await.is_err(), "there are as many connections as may be");
    drop(idle);
    assert_eq!(timeout(PATIENCE, answer).await.expect("there is room").unwrap().count(), 1);
}

/// The next message of a watch.
async fn message(stream: &mut WatchStream) -> etcd_client::WatchResponse {
    timeout(PATIENCE, stream.message()).await.expect("something comes").unwrap().expect("the stream goes on")
}

fn revisions(answer: &etcd_client::WatchResponse) -> Vec<i64> {
    answer.events().iter().map(|e| e.kv().unwrap().mod_revision()).collect()
}

#[tokio::test]
async fn one_stream_has_watches_that_come_and_go() {
    let served = Served::start().await;
    for _ in 0..3 {
        served.put("/a", "x").await;
    }
    let mut client = served.client().await;
    let from_past = WatchOptions::new().with_start_revision(3);
    let mut stream = client.watch("/a", Some(from_past)).await.unwrap();
    let created = message(&mut stream).await;
    assert_eq!((created.created(), created.watch_id()), (true, 0));
    assert_eq!(revisions(&message(&mut stream).await), [3, 4], "from the past");
    // Another, from now on, of a prefix, without deletions.
    let filtered = WatchOptions::new().with_prefix().with_filters([WatchFilterType::NoDelete]);
    stream.watch("/b", Some(filtered)).await.unwrap();
    assert_eq!(message(&mut stream).await.watch_id(), 1);
    served.put("/b1", "x").await;
    let answer = message(&mut stream).await;
    assert_eq!((answer.watch_id(), revisions(&answer)), (1, vec![5]));
    served.run(Op::Delete(KeyRange::key("/b1"))).await;
    served.run(Op::Delete(KeyRange::key("/a"))).await;
    let answer = message(&mut stream).await;
    assert_eq!((answer.watch_id(), revisions(&answer)), (0, vec![7]), "the deletion of /b1 is not wanted");
    // A watch that is asked for twice, by its number.
    for canceled in [false, true] {
        stream.watch("/c", Some(WatchOptions::new().with_watch_id(9))).await.unwrap();
        assert_eq!(message(&mut stream).await.canceled(), canceled);
    }
    stream.cancel(0).await.unwrap();
    let answer = message(&mut stream).await;
    assert_eq!((answer.watch_id(), answer.canceled()), (0, true));
    served.put("/a", "unheard").await;
    served.put("/c", "x").await;
    let answer = message(&mut stream).await;
    assert_eq!((answer.watch_id(), revisions(&answer)), (9, vec![9]));
}

#[tokio::test]
async fn progress_is_told_after_everything_that_it_covers() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let all = WatchOptions::new().with_prefix().with_start_revision(1);
    let mut stream = client.watch("/", Some(all)).await.unwrap();
    assert!(message(&mut stream).await.created());
    let mut heard = 1;
    for _ in 0..50 {
        let newest = served.put("/k", "x").await;
        stream.request_progress().await.unwrap();
        loop {
            let answer = message(&mut stream).await;
            if answer.events().is_empty() {
                let covered = answer.header().unwrap().revision();
                assert!(covered >= newest && heard >= covered, "{heard} of {covered} were sent");
                break;
            }
            heard = *revisions(&answer).last().unwrap();
        }
    }
    // Without being asked, if that is wanted.
    let reports = WatchOptions::new().with_progress_notify();
    let mut stream = client.watch("/quiet", Some(reports)).await.unwrap();
    assert!(message(&mut stream).await.created());
    let report = message(&mut stream).await;
    assert_eq!((report.events().len(), report.header().unwrap().revision()), (0, heard));
}

#[tokio::test]
async fn watches_that_cannot_be_are_canceled_with_a_reason() {
    let served = Served::start().await;
    for _ in 0..5 {
        served.put("/a", "x").await;
    }
    served.store.compact(4).await.unwrap();
    let mut client = served.client().await;
    let mut stream = client.watch("/a", Some(WatchOptions::new().with_start_revision(2))).await.unwrap();
    assert!(message(&mut stream).await.created());
    let answer = message(&mut stream).await;
    assert_eq!((answer.canceled(), answer.compact_revision()), (true, 4));
    for options in [WatchOptions::new().with_range("/Z"), WatchOptions::new().with_prev_key()] {
        stream.watch("/a", Some(options)).await.unwrap();
        let answer = message(&mut stream).await;
        assert!(answer.created() && answer.canceled() && !answer.cancel_reason().is_empty(), "{answer:?}");
    }
    // Invariant 9: a stream has no more watches than it may.
    let mut opened = 0;
    let refused = loop {
        stream.watch("/a", None).await.unwrap();
        let answer = message(&mut stream).await;
        if answer.canceled() {
            break answer;
        }
        opened += 1;
    };
    assert!((10..1_000).contains(&opened), "{opened}");
    assert!(refused.cancel_reason().contains("at most"), "{}", refused.cancel_reason());
    served.put("/a", "still served").await;
    assert_eq!(revisions(&message(&mut stream).await), [7]);
}

#[tokio::test]
async fn nothing_can_be_changed() {
    let served = Served::start().await;
    let lease = served.store.lease_grant(60).await.unwrap();
    served.put("/a", "x").await;
    let mut client = served.client().await;
    let txn = etcd_client::Txn::new().and_then([etcd_client::TxnOp::delete("/a", None)]);
    let refused = [
        client.put("/a", "y", None).await.err(),
        client.put("/a", "y".repeat(1_500_000), None).await.err(),
        client.delete("/a", None).await.err(),
        client.txn(txn).await.err(),
        client.compact(2, None).await.err(),
        client.lease_grant(60, None).await.err(),
        client.lease_revoke(lease).await.err(),
        client.lease_keep_alive(lease).await.err(),
        client.member_add(["http://127.0.0.1:1".to_owned()], None).await.err(),
        client.member_remove(1).await.err(),
        client.member_update(1, ["http://127.0.0.1:1".to_owned()]).await.err(),
        client.member_promote(1).await.err(),
        client.defragment().await.err(),
        client.move_leader(1).await.err(),
        client.alarm(etcd_client::AlarmAction::Activate, etcd_client::AlarmType::Nospace, None).await.err(),
    ];
    for (number, error) in refused.into_iter().enumerate() {
        match error {
            Some(etcd_client::Error::GRpcStatus(status)) => {
                assert_eq!(status.code(), tonic::Code::PermissionDenied, "{number}: {status:?}");
                assert!(status.message().contains("only the broker changes them"), "{status:?}");
            }
            other => panic!("{number}: {other:?}"),
        }
    }
    let found = client.get("/a", None).await.unwrap();
    assert_eq!((found.kvs()[0].value_str().unwrap(), found.header().unwrap().revision()), ("x", 2));
    assert_eq!(served.store.lease_keep_alive(lease).await.unwrap(), 60, "the lease is as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_reads() {
    if !has_ctl("etcdctl_reads") {
        return;
    }
    let served = Served::start().await;
    served.put("/strandline/c/topics/a", "one").await;
    served.put("/strandline/c/topics/b", "two").await;
    served.put("/strandline/c/topics/a", "three").await;
    let prefix = "/strandline/";
    assert_eq!(
        served.ctl(&["get", "--prefix", prefix]),
        "/strandline/c/topics/a\nthree\n/strandline/c/topics/b\ntwo\n"
    );
    assert_eq!(served.ctl(&["get", "--prefix", prefix, "--rev", "2", "--print-value-only"]), "one\n");
    assert_eq!(served.ctl(&["get", "--from-key", "/strandline/c/topics/b", "--print-value-only"]), "two\n");
    let sorted = ["get", "--prefix", prefix, "--sort-by", "MODIFY", "--order", "ASCEND", "--limit", "1"];
    assert_eq!(served.ctl(&[&sorted[..], &["--print-value-only"]].concat()), "two\n");
    let found = served.json(&["get", "--prefix", prefix, "--limit", "1", "--keys-only"]);
    assert_eq!((&found["count"], &found["more"]), (&Value::from(2), &Value::from(true)));
    let key = STANDARD.decode(found["kvs"][0]["key"].as_str().unwrap()).unwrap();
    assert_eq!(key, b"/strandline/c/topics/a");
    let future = served.try_ctl(&["get", "x", "--rev", "99"]).unwrap_err();
    assert!(future.contains("required revision is a future revision"), "{future}");
    served.store.compact(4).await.unwrap();
    let past = served.try_ctl(&["get", "x", "--rev", "2"]).unwrap_err();
    assert!(past.contains("required revision has been compacted"), "{past}");
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_asks_how_the_store_is_and_changes_nothing() {
    if !has_ctl("etcdctl_asks_how_the_store_is_and_changes_nothing") {
        return;
    }
    let served = Served::start().await;
    let lease = served.store.lease_grant(60).await.unwrap();
    served.run(Op::Put { key: "/leased".into(), value: "x".into(), lease }).await;
    let status = &served.json(&["endpoint", "status"])[0]["Status"];
    assert_eq!(status["header"]["revision"], 2);
    assert_eq!((&status["leader"], &status["header"]["member_id"]), (&Value::from(1), &Value::from(1)));
    assert_eq!((&status["dbSize"], &status["dbSizeInUse"]), (&Value::from(8), &Value::from(8)));
    assert!(status["version"].as_str().unwrap().starts_with("3."), "{status}");
    served.ctl(&["endpoint", "health"]);
    let members = served.json(&["member", "list"]);
    assert_eq!(members["members"][0]["clientURLs"][0], format!("http://{}", served.address));
    assert_eq!(served.ctl(&["alarm", "list"]), "");
    let id = format!("{lease:016x}");
    assert!(served.ctl(&["lease", "list"]).contains(&id));
    let told = served.ctl(&["lease", "timetolive", "--keys", &id]);
    assert!(told.contains("granted with TTL(60s)") && told.contains("/leased"), "{told}");
    let gone = served.ctl(&["lease", "timetolive", "77"]);
    assert!(gone.contains("already expired"), "{gone}");
    for args in [
        &["put", "/a", "x"][..],
        &["del", "/leased"],
        &["compact", "2"],
        &["lease", "grant", "60"],
        &["lease", "revoke", &id],
        &["member", "remove", "1"],
        &["defrag"],
    ] {
        let why = served.try_ctl(args).unwrap_err();
        assert!(why.contains("PermissionDenied") && why.contains("only the broker"), "{args:?}: {why}");
    }
    assert_eq!(served.ctl(&["get", "/leased", "--print-value-only"]), "x\n");
}

/// A child that does not outlive its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_watches() {
    if !has_ctl("etcdctl_watches") {
        return;
    }
    let served = Served::start().await;
    served.put("/a", "past").await;
    let mut child = served
        .command(&["watch", "--prefix", "/", "--rev", "2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map(Ended)
        .unwrap();
    let out = child.0.stdout.take().unwrap();
    let (heard, mut lines) = tokio::sync::mpsc::channel(16);
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if heard.blocking_send(line).is_err() {
                break;
            }
        }
    });
    let mut expect = async |expected: &[&str]| {
        for line in expected {
            let heard = timeout(PATIENCE, lines.recv()).await.expect("etcdctl tells it");
            assert_eq!(heard.as_deref(), Some(*line));
        }
    };
    expect(&["PUT", "/a", "past"]).await;
    served.put("/b", "present").await;
    expect(&["PUT", "/b", "present"]).await;
    served.run(Op::Delete(KeyRange::key("/a"))).await;
    expect(&["DELETE", "/a", ""]).await;
}
