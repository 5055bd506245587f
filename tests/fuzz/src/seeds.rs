//! What fuzzing begins with: sound inputs of every kind, made by the product and by the clients of
//! the tests.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterPartitionReassignmentsRequest, ApiVersionsRequest,
    ConsumerGroupDescribeRequest, ConsumerGroupHeartbeatRequest, CreatePartitionsRequest,
    CreateTopicsRequest, DeleteGroupsRequest, DeleteRecordsRequest, DeleteTopicsRequest,
    DescribeClusterRequest, DescribeConfigsRequest, DescribeGroupsRequest, DescribeLogDirsRequest,
    DescribeProducersRequest, DescribeTopicPartitionsRequest, ElectLeadersRequest, FetchRequest,
    FindCoordinatorRequest, HeartbeatRequest, IncrementalAlterConfigsRequest, InitProducerIdRequest,
    JoinGroupRequest, LeaveGroupRequest, ListGroupsRequest, ListOffsetsRequest, MetadataRequest,
    OffsetCommitRequest, OffsetDeleteRequest, OffsetFetchRequest, OffsetForLeaderEpochRequest,
    SyncGroupRequest, UpdateFeaturesRequest,
};
use kafka_protocol::protocol::Message;
use kafka_protocol::records::Compression;
use strandline_metadata::backend::embedded::Embedded;
use strandline_metadata::backend::{Backend, RangeRequest};
use strandline_metadata::keys::{Key, Keyspace};
use strandline_metadata::snapshot;
use strandline_storage::format::batch::BatchHeader;
use strandline_storage::format::merged::{MergeBuilder, MergeFlags};
use strandline_storage::path::ObjectKey;
use strandline_storage::store::{ObjectStoreBackend, Store};
use strandline_tests::client::{fetch_request, produce_request, text, topic};
use strandline_tests::member::Group;
use strandline_tests::records::batch;
use strandline_tests::table::keyed_batch;

use crate::{batches, compaction, join, objects, observer, world};

/// A request that every broker answers.
pub(crate) fn api_versions() -> Vec<u8> {
    world::request(&ApiVersionsRequest::default(), 0)
}

/// By target and name.
pub fn all() -> BTreeMap<(&'static str, String), Vec<u8>> {
    let mut seeds = BTreeMap::new();
    let mut add = |target, name: &str, data: Vec<u8>| {
        assert!(seeds.insert((target, name.to_owned()), data).is_none(), "{target}/{name} is there twice");
    };
    let frames = conversation();
    let bodies: Vec<&[u8]> = frames.iter().map(|frame| &frame[4..]).collect();
    add("requests", "conversation", [&[0], &join(&bodies)[..]].concat());
    add("requests", "conversation-raw", [&[1], &frames.concat()[..]].concat());
    for (name, frame) in plain_requests() {
        add("requests", &name, [&[0], &join(&[&frame])[..]].concat());
    }
    let codecs =
        [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];
    for codec in codecs {
        let name = format!("{codec:?}").to_lowercase();
        let values = ["first", "second, which is longer", ""];
        add("batches", &name, batches::input(&batch(&values, world::NOW_MS, None, codec)));
        let of_a_producer = batch(&values, world::NOW_MS, Some((0, 0, 0)), codec);
        add("batches", &format!("{name}-idempotent"), batches::input(&of_a_producer));
        add("batches", &format!("{name}-whole"), [&[2], &of_a_producer[..]].concat());
    }
    for (how, name) in [(0, "keys"), (1, "keys-timed")] {
        let changes = ["a", "b", "a", "c"].map(|key| (key.to_owned(), (key != "b").then(|| "v".to_owned())));
        add("compaction", name, compaction::input(how, &keyed_batch(&changes)));
    }
    for codec in codecs {
        let packed = batch(&["first", "second, which is longer", ""], world::NOW_MS, None, codec);
        add("compaction", &format!("{codec:?}").to_lowercase(), compaction::input(0, &packed));
    }
    for (name, stored) in bombs() {
        let mut bomb = batch(&["x"], world::NOW_MS, None, Compression::None)[..61].to_vec();
        bomb[22] = name.0;
        bomb.extend(stored);
        add("batches", name.1, batches::input(&bomb));
        // The others are long, and would be in the repository twice.
        if name.1 == "bomb-zstd" {
            add("compaction", name.1, compaction::input(0, &bomb));
        }
    }
    add("batches", "pushed", [&[1, 0], &otlp()[..]].concat());
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(&otlp()).expect("memory takes everything");
    add("batches", "pushed-gzip", [&[1, 1], &packed.finish().expect("memory takes everything")[..]].concat());
    kept(&mut add, &frames);
    add("objects", "merged", merged());
    let broker =
        "node_id = 3\ncluster = \"c\"\nlinger_ms = 5\nstore_url = \"s3://b/p\"\nmetadata = \"etcd\"\n";
    add("configs", "broker", [&[0], broker.as_bytes()].concat());
    let observer_file = "cluster = \"c\"\nlisten = \"127.0.0.1:8090\"\naudit_log = \"off\"\ntoken = \"x\"\n";
    add("configs", "observer", [&[1], observer_file.as_bytes()].concat());
    let tokens = format!(
        "[[principal]]\nname = \"a\"\ntoken_sha256 = \"{}\"\nscopes = [\"read\", \"plan\"]\n\
         topic_prefixes = [\"t.\"]\nexpires = \"2027-01-01T00:00:00Z\"\n",
        "ab".repeat(32)
    );
    add("configs", "tokens", [&[2], tokens.as_bytes()].concat());
    let page = "# HELP a b\n# TYPE strandline_produced_bytes_total counter\n\
                strandline_produced_bytes_total{topic=\"t\"} 12\nx_bucket{le=\"+Inf\"} 4 1700000000000\n";
    add("observer", "page", [&[observer::PAGE], page.as_bytes()].concat());
    add("observer", "talk", [&[0], &join(&talk())[..]].concat());
    seeds
}

/// What a real cluster keeps after a conversation: keys and values, records, a snapshot, objects.
fn kept(add: &mut impl FnMut(&'static str, &str, Vec<u8>), frames: &[Vec<u8>]) {
    world::block_on(async {
        let backend: Arc<dyn Backend> = Arc::new(Embedded::in_memory());
        let store: Arc<dyn Store> = Arc::new(ObjectStoreBackend::memory());
        let opened = world::broker_on(backend.clone(), store.clone()).await;
        assert_eq!(world::say(&opened, &frames.concat()).await.len(), frames.len(), "all is answered");
        let keys = Keyspace::new("strandline").expect("a name");
        let all = RangeRequest { keys: keys.all(), revision: None, limit: 0, keys_only: false };
        let found = backend.range(all).await.expect("memory answers").kvs;
        let (mut pairs, mut records): (Vec<Bytes>, Vec<Vec<u8>>) = (Vec::new(), Vec::new());
        for kv in found {
            let behind = kv.key.slice("/strandline/strandline/".len()..);
            if matches!(keys.parse(&kv.key), Some(Key::Log { .. })) {
                records.push([&[0], &kv.value[..]].concat());
            }
            pairs.extend([behind, kv.value]);
        }
        assert!(records.len() > 3 && pairs.len() > 12, "there is something to begin with");
        add("metadata", "cluster", join(&pairs));
        add("log", "records", join(&records));
        let state = opened.broker.replica().read(|view| view.state.clone());
        let written = snapshot::SnapshotWriter::default()
            .write(store.as_ref(), &state, snapshot::SnapshotStamp::default(), None)
            .await
            .expect("it is written");
        let manifest = ObjectKey::parse(&written.object).expect("a key");
        let manifest = store.get(&manifest, None).await.expect("it is there");
        add("snapshots", "manifest", [&[1], &manifest[..]].concat());
        for (number, meta) in store.list("wal/", None, 3).await.expect("memory lists").iter().enumerate() {
            let object = store.get(&meta.key, None).await.expect("it is there");
            add("objects", &format!("wal-{number}"), [&[1], &object[..]].concat());
        }
    });
}

/// A merged object of two partitions, the second one compacted.
fn merged() -> Vec<u8> {
    let mut builder = MergeBuilder::new(objects::MERGED_ID);
    for (partition, gap) in [(0, 0), (7, 5)] {
        let flags = MergeFlags { compacted: gap > 0 };
        builder.begin([1; 16], partition, flags).expect("partitions ascend");
        let stored = batch(&["first", "second"], world::NOW_MS, None, Compression::None);
        let header = BatchHeader::parse(&stored).expect("it is a batch");
        for number in 0..3 {
            builder.push_pieces(&header, [&stored].into_iter(), number * (2 + gap)).expect("offsets ascend");
        }
    }
    let merged = builder.finish().expect("it is a merged object");
    [&[objects::SEALED | objects::MERGED], &merged.payload.concat()[..]].concat()
}

/// What clients say who write, read and are in a group.
fn conversation() -> Vec<Vec<u8>> {
    let values = ["first", "second"];
    let stored = |producer| batch(&values, world::NOW_MS, producer, Compression::None);
    let grown = CreatePartitionsTopic::default().with_name(topic("t")).with_count(3).with_assignments(None);
    let mut session = fetch_request("z", &[(0, 0)], 10, 1 << 20);
    session.session_epoch = 0;
    let group = Group::new("g", Vec::new());
    vec![
        api_versions(),
        world::request(&InitProducerIdRequest::default(), 4),
        world::request(&produce_request("t", &[(0, stored(Some((0, 0, 0)))), (1, stored(None))], -1), 9),
        world::request(&produce_request("z", &[(0, stored(None))], 1), 9),
        world::request(&CreatePartitionsRequest::default().with_topics(vec![grown]).with_timeout_ms(1000), 3),
        world::request(&fetch_request("t", &[(0, 0), (1, 1)], 10, 1 << 20), 11),
        world::request(&session, 12),
        world::request(&by_id(), 16),
        world::request(&FindCoordinatorRequest::default().with_coordinator_keys(vec![text("g")]), 4),
        world::request(&group.commit_request("", -1, 0, 1), 8),
    ]
}

fn by_id() -> FetchRequest {
    let wanted = FetchPartition::default().with_partition(0).with_partition_max_bytes(1 << 20);
    let topic = FetchTopic::default().with_topic_id(uuid::Uuid::from_u128(7)).with_partitions(vec![wanted]);
    FetchRequest::default().with_max_bytes(1 << 20).with_session_epoch(-1).with_topics(vec![topic])
}

/// A frame without its length for each kind of request, of two versions, with nothing in it.
fn plain_requests() -> Vec<(String, Vec<u8>)> {
    let mut frames = Vec::new();
    macro_rules! each {
        ($($request:ident),* $(,)?) => {$({
            let versions = $request::VERSIONS;
            for version in BTreeSet::from([versions.max, i16::midpoint(versions.min, versions.max)]) {
                let frame = world::request(&$request::default(), version);
                let name = stringify!($request).trim_end_matches("Request").to_lowercase();
                frames.push((format!("{name}-{version}"), frame[4..].to_vec()));
            }
        })*};
    }
    each!(
        AlterConfigsRequest,
        AlterPartitionReassignmentsRequest,
        ConsumerGroupDescribeRequest,
        ConsumerGroupHeartbeatRequest,
        CreateTopicsRequest,
        DeleteGroupsRequest,
        DeleteRecordsRequest,
        DeleteTopicsRequest,
        DescribeClusterRequest,
        DescribeConfigsRequest,
        DescribeGroupsRequest,
        DescribeLogDirsRequest,
        DescribeProducersRequest,
        DescribeTopicPartitionsRequest,
        ElectLeadersRequest,
        HeartbeatRequest,
        IncrementalAlterConfigsRequest,
        JoinGroupRequest,
        LeaveGroupRequest,
        ListGroupsRequest,
        ListOffsetsRequest,
        MetadataRequest,
        OffsetCommitRequest,
        OffsetDeleteRequest,
        OffsetFetchRequest,
        OffsetForLeaderEpochRequest,
        SyncGroupRequest,
        UpdateFeaturesRequest,
    );
    frames
}

/// A few bytes that become many: the codec's number, a name, and what is stored.
fn bombs() -> Vec<((u8, &'static str), Vec<u8>)> {
    let zeros = vec![0; 160 << 20];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&zeros).expect("memory takes everything");
    let zstd = zstd::bulk::compress(&zeros, 3).expect("memory takes everything");
    let mut lz4 = lz4::EncoderBuilder::new().build(Vec::new()).expect("an encoder");
    lz4.write_all(&zeros).expect("memory takes everything");
    let (lz4, ended) = lz4.finish();
    ended.expect("memory takes everything");
    // It says that it becomes 4 GiB, and is as long as this.
    let snappy = b"\xff\xff\xff\xff\x0f\x00\x00".to_vec();
    vec![
        ((1, "bomb-gzip"), gzip.finish().expect("memory takes everything")),
        ((2, "bomb-snappy"), snappy),
        ((3, "bomb-lz4"), lz4),
        ((4, "bomb-zstd"), zstd),
    ]
}

/// One metric as a client pushes it: ResourceMetrics, ScopeMetrics, Metric, Gauge, NumberDataPoint.
fn otlp() -> Vec<u8> {
    let field = |tag: u8, bytes: &[u8]| [&[tag << 3 | 2, bytes.len() as u8], bytes].concat();
    let point = [&[3 << 3 | 1][..], &[1; 8], &[4 << 3 | 1], &2.5_f64.to_le_bytes()].concat();
    let gauge = field(5, &field(1, &point));
    let metric = [field(1, b"org.apache.kafka.producer.x"), gauge].concat();
    field(1, &field(2, &field(2, &metric)))
}

/// What an assistant says.
fn talk() -> Vec<Vec<u8>> {
    let call = |name: &str, arguments: serde_json::Value| {
        serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
            "params": {"name": name, "arguments": arguments}})
    };
    let method = |method: &str, params: serde_json::Value| serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    let client = serde_json::json!({"protocolVersion": "2025-06-18", "capabilities": {},
        "clientInfo": {"name": "fuzz", "version": "1"}});
    let said = [
        method("initialize", client),
        method("tools/list", serde_json::json!({})),
        method("resources/list", serde_json::json!({})),
        method("prompts/list", serde_json::json!({})),
        call("list_topics", serde_json::json!({"prefix": "t", "limit": 3})),
        call("cluster_overview", serde_json::json!({})),
    ];
    said.iter().map(|value| value.to_string().into_bytes()).collect()
}
