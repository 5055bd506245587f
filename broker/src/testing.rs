//! A whole broker in memory, for tests: embedded metadata, a store in memory, no socket.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    ApiKey, CreatePartitionsRequest, CreateTopicsRequest, FetchRequest, ListOffsetsRequest, ProduceRequest,
    RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use kafka_protocol::records::{Record, RecordBatchDecoder};
use strandline_metadata::backend::Backend;
use strandline_metadata::backend::embedded::Embedded;
use strandline_storage::clock::Clock;
use strandline_storage::store::{FaultHandle, Faulty, ObjectStoreBackend, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use uuid::Uuid;

use crate::Broker;
use crate::api::text;
use crate::config::{self, Advertised, Config, Parsed};
use crate::metrics::Metrics;
use crate::run::{self, Leases, OpenError, Opened, Parts};
use crate::tasks::{TaskKind, TaskSet};

/// A clock that stands still until it is told.
#[derive(Debug, Default)]
pub(crate) struct StoppedClock(pub(crate) AtomicI64);

impl Clock for StoppedClock {
    fn now_ms(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Partitions that one request may create.
const PARTITIONS_AT_ONCE: i32 = 10_000;

/// What clusters of a test share.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) backend: Embedded,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<StoppedClock>,
}

pub(crate) const NOW_MS: i64 = 1_700_000_000_000;

impl World {
    pub(crate) fn new() -> Self {
        Self::with_store(Arc::new(ObjectStoreBackend::memory()))
    }

    pub(crate) fn with_store(store: Arc<dyn Store>) -> Self {
        Self { backend: Embedded::in_memory(), store, clock: Arc::new(StoppedClock(NOW_MS.into())) }
    }

    /// One whose objects are in a store that fails when it is told to.
    pub(crate) fn faulty() -> (Self, FaultHandle) {
        let store = Faulty::new(Arc::new(ObjectStoreBackend::memory()), 1);
        let faults = store.handle();
        (Self::with_store(Arc::new(store)), faults)
    }

    /// Opens a broker of this world.
    pub(crate) async fn broker(&self, node_id: i32, flags: &[&str]) -> Opened {
        self.broker_over(Arc::new(self.backend.clone()), node_id, flags).await
    }

    /// Opens a broker of this world that sees its metadata through `backend`.
    pub(crate) async fn broker_over(
        &self,
        backend: Arc<dyn Backend>,
        node_id: i32,
        flags: &[&str],
    ) -> Opened {
        self.try_broker_over(backend, node_id, flags).await.unwrap()
    }

    /// Opens a broker of this world, if it opens.
    pub(crate) async fn try_broker(&self, node_id: i32, flags: &[&str]) -> Result<Opened, OpenError> {
        self.try_broker_over(Arc::new(self.backend.clone()), node_id, flags).await
    }

    async fn try_broker_over(
        &self,
        backend: Arc<dyn Backend>,
        node_id: i32,
        flags: &[&str],
    ) -> Result<Opened, OpenError> {
        let all = ["--dev", "--node-id", &node_id.to_string(), "--zone", &format!("zone-{node_id}")];
        let all = all.iter().chain(flags).map(|f| (*f).to_owned()).collect::<Vec<_>>();
        let Ok(Parsed::Run(config)) = config::parse(all, |_| None) else { panic!("these flags are wrong") };
        let store = self.store.clone();
        let leases = Leases { backend: backend.clone(), runtime: None };
        let parts = Parts {
            backend,
            open_store: Box::new(move |_| Ok(store.clone())),
            clock: self.clock.clone(),
            metrics: Metrics::new().unwrap(),
            advertised: Advertised { host: "localhost".to_owned(), port: 9092 },
            metrics_url: String::new(),
            seed: node_id.unsigned_abs().into(),
            tasks: TaskSet::default(),
            leases,
            aside: None,
        };
        run::open(Config { ..*config }, parts).await
    }
}

/// A client's end of a connection to a broker of the same process.
#[derive(Debug)]
pub(crate) struct TestClient {
    io: DuplexStream,
    next_id: i32,
}

impl TestClient {
    pub(crate) fn connect(broker: &Arc<Broker>) -> Self {
        Self::connect_by(broker, 1 << 20)
    }

    /// Connects by sockets that hold so many bytes in each direction.
    pub(crate) fn connect_by(broker: &Arc<Broker>, socket_bytes: usize) -> Self {
        let (near, far) = tokio::io::duplex(socket_bytes);
        let serving = broker.clone();
        broker.tasks.start(TaskKind::Connection, "connection", async move {
            crate::server::serve(serving, far, "test".to_owned()).await;
        });
        Self { io: near, next_id: 7 }
    }

    pub(crate) async fn send_raw(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.unwrap();
    }

    /// The next frame; `None` if the broker closed the connection.
    pub(crate) async fn receive_raw(&mut self) -> Option<Bytes> {
        let length = self.io.read_i32().await.ok()?;
        let mut body = vec![0; usize::try_from(length).unwrap()];
        self.io.read_exact(&mut body).await.ok()?;
        Some(body.into())
    }

    pub(crate) async fn call<R: Request>(&mut self, request: &R, version: i16) -> R::Response {
        self.next_id += 1;
        let frame = frame(request, version, self.next_id);
        self.send_raw(&frame).await;
        let mut body = self.receive_raw().await.expect("the broker closed the connection");
        let header = ResponseHeader::decode(&mut body, R::Response::header_version(version)).unwrap();
        assert_eq!(header.correlation_id, self.next_id);
        let response = R::Response::decode(&mut body, version).unwrap();
        assert!(!body.has_remaining(), "{} bytes are left over", body.remaining());
        response
    }

    /// Creates a topic with these configs, in as many requests as it takes; gives its id.
    pub(crate) async fn create_topic(
        &mut self,
        name: &str,
        partitions: i32,
        configs: &[(&str, &str)],
    ) -> Uuid {
        let configs = configs.iter().map(|(key, value)| {
            CreatableTopicConfig::default().with_name(text(*key)).with_value(Some(text(*value)))
        });
        let topic = CreatableTopic::default()
            .with_name(TopicName(text(name)))
            .with_num_partitions(partitions.min(PARTITIONS_AT_ONCE))
            .with_replication_factor(-1)
            .with_configs(configs.collect());
        let created = self.call(&CreateTopicsRequest::default().with_topics(vec![topic]), 7).await;
        assert_eq!(created.topics[0].error_code, 0);
        let mut count = PARTITIONS_AT_ONCE;
        while count < partitions {
            count = partitions.min(count + PARTITIONS_AT_ONCE);
            let grown = CreatePartitionsTopic::default().with_name(TopicName(text(name))).with_count(count);
            let request = CreatePartitionsRequest::default().with_topics(vec![grown.with_assignments(None)]);
            assert_eq!(self.call(&request, 3).await.results[0].error_code, 0);
        }
        created.topics[0].topic_id
    }

    /// Writes a batch to each of the first partitions of a topic, in one request.
    pub(crate) async fn produce(&mut self, topic: &str, batches: impl IntoIterator<Item = Bytes>) -> i32 {
        self.produce_to(topic, (0..).zip(batches)).await
    }

    /// Writes batches to these partitions of a topic, in one request. Gives the throttle time.
    pub(crate) async fn produce_to(
        &mut self,
        topic: &str,
        batches: impl IntoIterator<Item = (i32, Bytes)>,
    ) -> i32 {
        let data = batches.into_iter().map(|(partition, batch)| {
            PartitionProduceData::default().with_index(partition).with_records(Some(batch))
        });
        let topic =
            TopicProduceData::default().with_name(TopicName(text(topic))).with_partition_data(data.collect());
        let request = ProduceRequest::default().with_acks(-1).with_timeout_ms(10_000);
        let answer = self.call(&request.with_topic_data(vec![topic]), 9).await;
        for part in &answer.responses[0].partition_responses {
            assert_eq!(part.error_code, 0, "partition {}", part.index);
        }
        answer.throttle_time_ms
    }

    /// The records of a partition from the batch that contains `offset` on, up to `max_bytes` but
    /// for the first batch.
    pub(crate) async fn fetch(
        &mut self,
        topic: &str,
        partition: i32,
        offset: i64,
        max_bytes: i32,
    ) -> Vec<Record> {
        let partition = FetchPartition::default()
            .with_partition(partition)
            .with_fetch_offset(offset)
            .with_partition_max_bytes(max_bytes);
        let topic = FetchTopic::default().with_topic(TopicName(text(topic))).with_partitions(vec![partition]);
        let request = FetchRequest::default().with_max_wait_ms(500).with_min_bytes(1).with_max_bytes(1 << 24);
        let mut answer = self.call(&request.with_topics(vec![topic]), 11).await;
        let mut fetched = answer.responses.remove(0).partitions.remove(0);
        assert_eq!(fetched.error_code, 0);
        let Some(records) = fetched.records.as_mut() else { return Vec::new() };
        let sets = RecordBatchDecoder::decode_all(records).unwrap();
        sets.into_iter().flat_map(|set| set.records).collect()
    }

    /// The first offset of partition 0 whose record has at least this timestamp; −1 if there is
    /// none.
    pub(crate) async fn offset_at(&mut self, topic: &str, timestamp: i64) -> i64 {
        let partition = ListOffsetsPartition::default().with_timestamp(timestamp);
        let topic =
            ListOffsetsTopic::default().with_name(TopicName(text(topic))).with_partitions(vec![partition]);
        let answer = self.call(&ListOffsetsRequest::default().with_topics(vec![topic]), 5).await;
        let found = &answer.topics[0].partitions[0];
        assert_eq!(found.error_code, 0);
        found.offset
    }
}

/// The bytes of a request, length included.
pub(crate) fn frame<R: Request>(request: &R, version: i16, correlation_id: i32) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i32(0);
    let api = ApiKey::try_from(R::KEY).unwrap();
    RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(version)
        .with_correlation_id(correlation_id)
        .with_client_id(Some(StrBytes::from_static_str("test zone=zone-1")))
        .encode(&mut out, api.request_header_version(version))
        .unwrap();
    request.encode(&mut out, version).unwrap();
    let length = i32::try_from(out.len() - 4).unwrap();
    out[..4].copy_from_slice(&length.to_be_bytes());
    out.freeze()
}

/// What a broker's page of metrics says of one, with its labels: nothing before its first time.
pub(crate) fn metric<T: FromStr + Default>(opened: &Opened, name: &str) -> T {
    let page = String::from_utf8(opened.broker.metrics.render(&opened.broker).unwrap()).unwrap();
    page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()).unwrap_or_default()
}
