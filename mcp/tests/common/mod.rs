//! An observer in this process, over a store in memory and metrics endpoints that misbehave on
//! demand.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests"
)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};
use strandline_mcp::clock::SystemClock;
use strandline_mcp::config::{self, Parsed};
use strandline_mcp::http::router;
use strandline_mcp::limits::CONNECTIONS;
use strandline_mcp::tasks::TaskSet;
use strandline_mcp::{Observer, Parts};
use strandline_metadata::backend::{
    BackendError, ChangedRequest, ChangedResponse, Event, KeyRange, KeyValue, RangeRequest, RangeResponse,
    ReadBackend, Watch, WatchBatch,
};
use strandline_metadata::keys::{Key, Keyspace};
use strandline_metadata::values::group::{
    Blob, ClassicGroupValue, ClassicMemberValue, ClassicStateValue, CommittedOffset, GroupState, GroupValue,
    OffsetsValue, ProtocolValue,
};
use strandline_metadata::values::transaction::{
    OpenPartitionValue, OpenTransactionValue, OpenTransactionsValue, TransactionStateValue, TransactionValue,
};
use strandline_metadata::values::watermarks::{Watermarks, WatermarksValue};
use strandline_metadata::values::{
    BrokerValue, ClusterValue, ConfigsValue, LeaderValue, TopicValue, VALUE_FORMAT,
};
use strandline_settings::serve_http;
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use uuid::Uuid;

pub const TOKEN: &str = "local-dev-token";

/// What goes wrong in the store.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub down: bool,
    pub slow: Option<Duration>,
    pub compacted: bool,
}

/// An open transaction: its id, since when, and topics with partitions and first offsets.
pub type OpenOne<'a> = (&'a str, i64, &'a [(Uuid, u32, i64)]);

/// A revision, and the keys as of it.
type Kvs = (i64, BTreeMap<Bytes, KeyValue>);

/// A store in memory that can only be read.
#[derive(Debug)]
pub struct Store {
    kvs: Mutex<Kvs>,
    pub faults: Mutex<Faults>,
    pub reads: AtomicU64,
    events: broadcast::Sender<(i64, Event)>,
    keys: Keyspace,
}

impl Store {
    pub fn new() -> Arc<Self> {
        let (events, _) = broadcast::channel(1_024);
        let store = Self {
            kvs: Mutex::new((10, BTreeMap::new())),
            faults: Mutex::default(),
            reads: AtomicU64::new(0),
            events,
            keys: Keyspace::new("t").unwrap(),
        };
        Arc::new(store)
    }

    pub fn put(&self, key: &Key, value: &impl strandline_metadata::values::Value) {
        self.put_raw(key, value.encode());
    }

    pub fn put_raw(&self, key: &Key, value: Vec<u8>) {
        let key = self.keys.encode(key);
        let mut kvs = self.kvs.lock().unwrap();
        kvs.0 += 1;
        let revision = kvs.0;
        let create_revision = kvs.1.get(&key).map_or(revision, |kv| kv.create_revision);
        let kv = KeyValue {
            key: key.clone(),
            value: value.into(),
            create_revision,
            mod_revision: revision,
            version: 1,
            lease: 7,
        };
        kvs.1.insert(key, kv.clone());
        let _ = self.events.send((revision, Event::Put(kv)));
    }

    pub fn delete(&self, key: &Key) {
        let key = self.keys.encode(key);
        let mut kvs = self.kvs.lock().unwrap();
        kvs.0 += 1;
        let revision = kvs.0;
        kvs.1.remove(&key);
        let _ = self.events.send((revision, Event::Delete { key, revision }));
    }

    pub fn topic(&self, name: &str, partitions: u32, configs: &[(&str, &str)]) -> Uuid {
        let topic_id =
            Uuid::from_u128(u128::from(name.bytes().fold(7_u64, |h, b| h.wrapping_mul(31) + u64::from(b))));
        let configs = configs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let value = TopicValue {
            format: VALUE_FORMAT,
            topic_id,
            partitions,
            configs,
            created_at_ms: 1_700_000_000_000,
            unknown: std::collections::BTreeMap::new(),
            replication_factor: None,
        };
        self.put(&Key::Topic(name.to_owned()), &value);
        topic_id
    }

    /// Log start and end of each partition.
    pub fn marks(&self, topic_id: Uuid, marks: &[(i64, i64)]) {
        let marks: Vec<_> = marks.iter().map(|&(log_start, end)| (log_start, end, end)).collect();
        self.stable_marks(topic_id, &marks);
    }

    /// Log start, last stable offset and end of each partition.
    pub fn stable_marks(&self, topic_id: Uuid, marks: &[(i64, i64, i64)]) {
        let partitions = marks.iter().map(|&(log_start, last_stable, end)| Watermarks {
            log_start,
            end,
            last_stable,
            bytes: u64::try_from(end - log_start).unwrap() * 100,
            last_timestamp_ms: 1_700_000_001_000,
        });
        let revision = self.kvs.lock().unwrap().0;
        let value = WatermarksValue { format: VALUE_FORMAT, revision, partitions: partitions.collect() };
        self.put(&Key::Watermarks { topic_id, part: 0 }, &value);
    }

    pub fn commit(&self, group: &str, topic: &str, topic_id: Uuid, offsets: &[(u32, i64)], time_ms: i64) {
        let commit = |offset: i64| CommittedOffset {
            after: 0,
            offset,
            leader_epoch: -1,
            time_ms,
            metadata: "m\u{202e}\u{7}eta".to_owned(),
            expires_ms: None,
        };
        let partitions = offsets.iter().map(|&(p, o)| (p, commit(o))).collect();
        let value = OffsetsValue { format: VALUE_FORMAT, writer: 1, write: 1, topic_id, partitions };
        self.put(&Key::Offsets { group: group.to_owned(), topic: topic.to_owned(), part: 0 }, &value);
    }

    /// A stable classic group with one member that subscribes to `topic`.
    pub fn group(&self, id: &str, topic: &str) {
        let mut subscription = vec![0, 0, 0, 0, 0, 1, 0, u8::try_from(topic.len()).unwrap()];
        subscription.extend_from_slice(topic.as_bytes());
        subscription.extend_from_slice(&[255, 255, 255, 255]);
        let mut assignment = vec![0, 0, 0, 0, 0, 1, 0, u8::try_from(topic.len()).unwrap()];
        assignment.extend_from_slice(topic.as_bytes());
        assignment.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 255, 255, 255, 255]);
        let member = ClassicMemberValue {
            instance_id: None,
            client_id: "app\u{0}\u{200b}".to_owned(),
            client_host: "/10.1.2.3".to_owned(),
            session_timeout_ms: 45_000,
            rebalance_timeout_ms: 300_000,
            protocols: vec![ProtocolValue { name: "range".to_owned(), metadata: Blob(subscription.into()) }],
            assignment: Blob(assignment.into()),
        };
        let classic = ClassicGroupValue {
            state: ClassicStateValue::Stable,
            protocol_type: "consumer".to_owned(),
            generation: 3,
            protocol: Some("range".to_owned()),
            leader: Some("member-1".to_owned()),
            members: BTreeMap::from([("member-1".to_owned(), member)]),
        };
        let value = GroupValue {
            format: VALUE_FORMAT,
            writer: 1,
            write: 1,
            state_since_ms: 1_700_000_000_000,
            group: GroupState::Classic(classic),
        };
        self.put(&Key::Group(id.to_owned()), &value);
    }

    /// A transactional id with a time-out of 15 minutes that commits for the group `a.shop`.
    pub fn transactional_id(&self, id: &str, producer_id: i64, state: TransactionStateValue) {
        let value = TransactionValue {
            format: VALUE_FORMAT,
            producer_id,
            epoch: 3,
            last_epoch: 2,
            previous_producer_id: -1,
            timeout_ms: 900_000,
            state,
            groups: ["a.shop", "b.audit"].map(str::to_owned).into(),
            updated_ms: 1_700_000_000_000,
        };
        self.put(&Key::Transaction(id.to_owned()), &value);
    }

    /// The open transactions, each with a time-out of 15 minutes.
    pub fn open_transactions(&self, open: &[OpenOne<'_>]) {
        let oldest = open.iter().map(|(id, since_ms, partitions)| OpenTransactionValue {
            transactional_id: (*id).to_owned(),
            producer_id: 7,
            epoch: 3,
            since_ms: *since_ms,
            timeout_ms: 900_000,
            partitions: partitions.len() as u64,
            first: partitions
                .iter()
                .map(|&(topic_id, partition, first_offset)| OpenPartitionValue {
                    topic_id,
                    partition,
                    first_offset,
                })
                .collect(),
        });
        let value =
            OpenTransactionsValue { format: VALUE_FORMAT, open: open.len() as u64, oldest: oldest.collect() };
        self.put(&Key::OpenTransactions, &value);
    }

    pub fn broker(&self, node_id: i32, metrics_url: &str) {
        let value = BrokerValue {
            format: VALUE_FORMAT,
            node_id,
            process_id: Uuid::nil(),
            host: "10.9.8.7".to_owned(),
            port: 9092,
            zone: "a".to_owned(),
            version: "0.1.0".to_owned(),
            metrics_url: metrics_url.to_owned(),
            registered_at_ms: 1_700_000_000_000,
            draining: false,
        };
        self.put(&Key::Broker(node_id), &value);
    }

    pub fn defaults(&self, configs: &[(&str, &str)]) {
        let configs = configs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        self.put(&Key::BrokerConfig(None), &ConfigsValue { format: VALUE_FORMAT, configs });
    }

    /// A small cluster: two brokers, two topics of one tenant and one of another, groups that lag,
    /// are empty, never committed; transactional ids of which two have an open transaction, one in
    /// topics of both tenants and one in those of the other.
    pub fn furnish(&self, metrics: &[String], now_ms: i64) {
        self.put(
            &Key::Cluster,
            &ClusterValue {
                format: VALUE_FORMAT,
                cluster_id: "cid".to_owned(),
                feature_level: 1,
                unknown: std::collections::BTreeMap::new(),
            },
        );
        self.broker(1, metrics.first().map_or("", String::as_str));
        self.broker(2, metrics.get(1).map_or("", String::as_str));
        self.put(
            &Key::Leader("jobs".to_owned()),
            &LeaderValue { format: VALUE_FORMAT, node_id: 1, incarnation: 12 },
        );
        self.defaults(&[("log.retention.bytes", "5000"), ("sasl.password", "hunter2")]);
        let orders = self.topic("a.orders", 2, &[("retention.ms", "60000")]);
        self.stable_marks(orders, &[(10, 20_090, 20_100), (0, 5, 5)]);
        let payments = self.topic("b.payments", 1, &[("cleanup.policy", "compact")]);
        self.stable_marks(payments, &[(0, 45, 50)]);
        self.topic("a.new", 1, &[]);
        self.group("a.shop", "a.orders");
        self.commit("a.shop", "a.orders", orders, &[(0, 100), (1, 5)], now_ms - 120_000);
        self.commit("b.audit", "b.payments", payments, &[(0, 20)], now_ms);
        self.group("b.idle", "b.payments");
        self.commit("a.late", "a.orders", orders, &[(0, 4)], now_ms);
        self.transactional_id("a.pay", 7, TransactionStateValue::CompleteCommit);
        self.transactional_id("b.bill", 8, TransactionStateValue::Ongoing);
        self.transactional_id("a.done", 9, TransactionStateValue::CompleteAbort);
        self.open_transactions(&[
            ("b.bill", now_ms - 30_000, &[(payments, 0, 48)]),
            ("a.pay", now_ms - 60_000, &[(orders, 0, 20_090), (payments, 0, 45)]),
        ]);
    }
}

#[async_trait]
impl ReadBackend for Store {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, BackendError> {
        let kvs = self.read(request.revision).await?;
        let found = kvs.1.values().filter(|kv| request.keys.contains(&kv.key)).cloned().collect();
        Ok(RangeResponse { revision: kvs.0, kvs: found, more: false })
    }

    async fn changed(&self, request: ChangedRequest) -> Result<ChangedResponse, BackendError> {
        let kvs = self.read(request.revision).await?;
        let all: Vec<&KeyValue> = kvs.1.values().filter(|kv| request.keys.contains(&kv.key)).collect();
        let young = all.iter().filter(|kv| kv.mod_revision > request.after).map(|kv| (*kv).clone());
        Ok(ChangedResponse { revision: kvs.0, kvs: young.collect(), count: all.len() })
    }

    async fn watch(&self, keys: KeyRange, revision: i64) -> Result<Box<dyn Watch>, BackendError> {
        Ok(Box::new(Following { keys, revision, events: self.events.subscribe() }))
    }
}

impl Store {
    /// What there is now: no test changes it between the two reads of a call.
    async fn read(&self, revision: Option<i64>) -> Result<MutexGuard<'_, Kvs>, BackendError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let faults = self.faults.lock().unwrap().clone();
        if let Some(slow) = faults.slow {
            tokio::time::sleep(slow).await;
        }
        if faults.down {
            return Err(BackendError::Unavailable("http://10.6.6.6:2379 refused".to_owned()));
        }
        if faults.compacted && revision.is_some() {
            return Err(BackendError::Compacted { oldest: 99 });
        }
        Ok(self.kvs.lock().unwrap())
    }
}

#[derive(Debug)]
struct Following {
    keys: KeyRange,
    revision: i64,
    events: broadcast::Receiver<(i64, Event)>,
}

#[async_trait]
impl Watch for Following {
    async fn next(&mut self) -> Result<WatchBatch, BackendError> {
        loop {
            let (revision, event) =
                self.events.recv().await.map_err(|e| BackendError::Unavailable(e.to_string()))?;
            if revision >= self.revision && self.keys.contains(event.key()) {
                return Ok(WatchBatch { events: vec![event], revision });
            }
        }
    }
}

/// An observer that is being served.
pub struct Served {
    pub observer: Arc<Observer>,
    pub url: String,
    pub http: reqwest::Client,
    _tasks: TaskSet,
}

/// Serves an observer with these flags; they come after the harness's own.
pub async fn serve(store: &Arc<Store>, flags: &[&str]) -> Served {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let own = [
        "--cluster",
        "t",
        "--audit-log",
        "off",
        "--scrape-interval-ms",
        "200",
        "--scrape-timeout-ms",
        "1000",
    ];
    let has_auth =
        flags.iter().any(|f| ["--token", "--tokens-file", "--no-auth", "--jwt-issuer"].contains(f));
    let auth = if has_auth { [].as_slice() } else { ["--token", TOKEN].as_slice() };
    let mut all: Vec<String> = Vec::new();
    for pair in own.chunks(2).filter(|pair| !flags.contains(&pair[0])) {
        all.extend(pair.iter().map(|f| (*f).to_owned()));
    }
    all.extend(auth.iter().chain(flags).map(|f| (*f).to_owned()));
    let Parsed::Run(config) = config::parse(all, |_| None).unwrap() else { panic!("it is to run") };
    let parts = Parts { reader: store.clone(), clock: Arc::new(SystemClock), random: [5; 32] };
    let observer = Observer::open(*config, parts).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let routes = router(&observer);
    let tasks = TaskSet::default();
    tasks.start("server", serve_http(listener, routes, CONNECTIONS, std::future::pending()));
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    Served { observer, url, http, _tasks: tasks }
}

impl Served {
    /// A request of the versions with `initialize`.
    pub async fn post(&self, token: Option<&str>, headers: &[(&str, &str)], body: String) -> (u16, String) {
        let mut request = self
            .http
            .post(format!("{}/mcp", self.url))
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.body(body).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    pub async fn rpc_as(&self, token: &str, method: &str, params: Value) -> Value {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
        let (status, text) = self.post(Some(token), &[], body).await;
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    pub async fn rpc(&self, method: &str, params: Value) -> Value {
        self.rpc_as(TOKEN, method, params).await
    }

    /// The structured answer of a tool.
    pub async fn call_as(&self, token: &str, tool: &str, arguments: Value) -> Value {
        let answer = self.rpc_as(token, "tools/call", json!({"name": tool, "arguments": arguments})).await;
        let result = &answer["result"];
        assert!(result.is_object(), "{answer}");
        let content = result["structuredContent"].clone();
        let text: Value = serde_json::from_str(result["content"][0]["text"].as_str().unwrap()).unwrap();
        assert_eq!(text, content, "the text is the same JSON");
        assert_eq!(result["isError"], content.get("error").is_some());
        content
    }

    pub async fn call(&self, tool: &str, arguments: Value) -> Value {
        self.call_as(TOKEN, tool, arguments).await
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        let response = self.http.get(format!("{}{path}", self.url)).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// Waits until `check` holds of a tool's answer.
    pub async fn until(&self, tool: &str, arguments: Value, check: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..300 {
            let answer = self.call(tool, arguments.clone()).await;
            if check(&answer) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{tool} never answers so: {}", self.call(tool, arguments).await);
    }
}

/// How a metrics endpoint behaves.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// So many records and restarts of the counter.
    Counting,
    Says(u16, String),
    Redirects,
    Huge,
    Slow,
}

/// A broker's metrics endpoint.
pub struct Endpoint {
    pub url: String,
    pub behaviour: Arc<Mutex<Behaviour>>,
    pub counter: Arc<AtomicU64>,
    pub hits: Arc<AtomicU64>,
    _tasks: TaskSet,
}

pub async fn endpoint() -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/metrics", listener.local_addr().unwrap());
    let behaviour = Arc::new(Mutex::new(Behaviour::Counting));
    let (counter, hits) = (Arc::new(AtomicU64::new(1_000)), Arc::new(AtomicU64::new(0)));
    let (b, c, h) = (behaviour.clone(), counter.clone(), hits.clone());
    let serve = move || {
        let (b, c, h) = (b.clone(), c.clone(), h.clone());
        async move {
            use axum::response::IntoResponse as _;
            h.fetch_add(1, Ordering::SeqCst);
            let behaviour = b.lock().unwrap().clone();
            match behaviour {
                Behaviour::Counting => metrics_text(c.fetch_add(100, Ordering::SeqCst)).into_response(),
                Behaviour::Says(status, text) => {
                    (axum::http::StatusCode::from_u16(status).unwrap(), text).into_response()
                }
                Behaviour::Redirects => {
                    (axum::http::StatusCode::FOUND, [("location", "http://169.254.169.254/")], "")
                        .into_response()
                }
                Behaviour::Huge => "strandline_connections 1\n".repeat(400_000).into_response(),
                Behaviour::Slow => {
                    tokio::time::sleep(Duration::from_secs(30)).await;
                    "".into_response()
                }
            }
        }
    };
    let routes = axum::Router::new().route("/metrics", axum::routing::get(serve));
    let tasks = TaskSet::default();
    tasks.start("metrics", async move { axum::serve(listener, routes).await.unwrap() });
    Endpoint { url, behaviour, counter, hits, _tasks: tasks }
}

pub fn metrics_text(n: u64) -> String {
    format!(
        "strandline_produced_records_total{{topic=\"a\"}} {n}\n\
         strandline_produced_bytes_total{{topic=\"a\"}} {}\n\
         strandline_request_seconds_bucket{{api=\"Produce\",le=\"0.01\"}} {n}\n\
         strandline_request_seconds_bucket{{api=\"Produce\",le=\"+Inf\"}} {n}\n\
         strandline_request_seconds_count{{api=\"Produce\"}} {n}\n\
         strandline_object_store_requests_total{{operation=\"put\",outcome=\"ok\"}} {n}\n\
         strandline_object_store_request_seconds_bucket{{operation=\"put\",le=\"0.1\"}} {n}\n\
         strandline_object_store_request_seconds_bucket{{operation=\"put\",le=\"+Inf\"}} {n}\n\
         strandline_object_store_healthy 1\nstrandline_registered 1\nstrandline_connections 3\n",
        n * 100
    )
}
