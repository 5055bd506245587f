//! A broker in memory, under a clock that stands still and a time that passes when nobody works.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::{CreateTopicsRequest, IncrementalAlterConfigsRequest};
use kafka_protocol::protocol::Request;
use strandline_broker::config::{self, Advertised, Parsed};
use strandline_broker::metrics::Metrics;
use strandline_broker::run::{self, Leases, Opened, Parts};
use strandline_broker::server;
use strandline_broker::tasks::TaskSet;
use strandline_metadata::backend::Backend;
use strandline_metadata::backend::embedded::Embedded;
use strandline_storage::clock::Clock;
use strandline_storage::store::{ObjectStoreBackend, Store};
use strandline_tests::client::{frame, text, topic};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Duration, sleep, timeout};

/// Milliseconds since 1970.
pub(crate) const NOW_MS: i64 = 1_700_000_000_000;
/// Simulated time in which every request is answered, or its connection closed.
const PATIENCE: Duration = Duration::from_mins(10);
/// Simulated time for which a client stays: longer than any produce or fetch waits.
const LISTENS: Duration = Duration::from_mins(3);
/// What waits between the two ends of a connection.
const PIPE_BYTES: usize = 1 << 20;

#[derive(Debug)]
struct StoppedClock;

impl Clock for StoppedClock {
    fn now_ms(&self) -> i64 {
        NOW_MS
    }
}

/// Runs it on a runtime of its own, whose time stands still while there is something to do.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(work)
}

/// A broker with the topic `t`, whose batches are stored as they come, and the topic `z`, whose
/// batches are packed anew.
pub(crate) async fn broker() -> Opened {
    broker_on(Arc::new(Embedded::in_memory()), Arc::new(ObjectStoreBackend::memory())).await
}

/// The same, with everything that it keeps in these.
pub(crate) async fn broker_on(backend: Arc<dyn Backend>, store: Arc<dyn Store>) -> Opened {
    let flags = [
        "--dev",
        "--put-budget-per-s=100000",
        "--linger-ms=0",
        "--group-initial-rebalance-delay-ms=0",
        "--max-request-bytes=2000000",
        "--request-memory-bytes=4000000",
        "--flush-bytes=1000000",
        "--buffer-bytes=8000000",
        "--cache-bytes=8000000",
    ];
    let Ok(Parsed::Run(config)) = config::parse(flags.map(str::to_owned), |_| None) else {
        panic!("these flags are right")
    };
    let leases = Leases { backend: backend.clone(), runtime: None };
    let parts = Parts {
        backend,
        open_store: Box::new(move |_| Ok(store.clone())),
        clock: Arc::new(StoppedClock),
        metrics: Metrics::new().expect("metrics have distinct names"),
        advertised: Advertised { host: "localhost".to_owned(), port: 9092 },
        metrics_url: String::new(),
        seed: 1,
        tasks: TaskSet::default(),
        leases,
        aside: None,
    };
    let opened = run::open(*config, parts).await.expect("a broker in memory opens");
    let packed =
        CreatableTopicConfig::default().with_name(text("compression.type")).with_value(Some(text("zstd")));
    let wanted = CreatableTopic::default().with_num_partitions(2).with_replication_factor(1);
    let topics =
        vec![wanted.clone().with_name(topic("t")), wanted.with_name(topic("z")).with_configs(vec![packed])];
    // What clients push is taken only where somebody wants it.
    let everything = [("metrics", "*"), ("interval.ms", "1000")]
        .map(|(name, value)| AlterableConfig::default().with_name(text(name)).with_value(Some(text(value))));
    let resource = AlterConfigsResource::default()
        .with_resource_type(16)
        .with_resource_name(text("all"))
        .with_configs(everything.into());
    let mut conversation = frame(&CreateTopicsRequest::default().with_topics(topics), 7, 1, "fuzz").to_vec();
    conversation.extend(frame(
        &IncrementalAlterConfigsRequest::default().with_resources(vec![resource]),
        1,
        2,
        "fuzz",
    ));
    let answers = say(&opened, &conversation).await;
    assert_eq!(answers.len(), 2, "both are answered");
    opened
}

/// Says this on a connection, and nothing after it; gives the answers.
pub(crate) async fn say(opened: &Opened, bytes: &[u8]) -> Vec<Bytes> {
    let (client, far) = tokio::io::duplex(PIPE_BYTES);
    let serving = server::serve(opened.broker.clone(), far, "fuzz".to_owned());
    let (mut reading, mut writing) = tokio::io::split(client);
    let speaking = async {
        // The broker may close the connection at any byte.
        let _ = writing.write_all(bytes).await;
        // A client that has gone gets no answers.
        sleep(LISTENS).await;
        let _ = writing.shutdown().await;
    };
    let listening = async {
        let mut answers = Vec::new();
        while let Ok(length) = reading.read_i32().await {
            let mut body = vec![0; usize::try_from(length).expect("an answer has a length")];
            reading.read_exact(&mut body).await.expect("an answer is whole");
            answers.push(body.into());
        }
        answers
    };
    let all = async { tokio::join!(serving, speaking, listening) };
    timeout(PATIENCE, all).await.expect("everything is answered, or the connection is closed").2
}

/// A request as a frame.
pub(crate) fn request<R: Request>(request: &R, version: i16) -> Vec<u8> {
    frame(request, version, 7, "fuzz").to_vec()
}
