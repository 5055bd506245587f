//! What administrators ask, over a connection, in every version: sizes, elections, reassignments,
//! features, configs of groups and of client metrics, producers; and the metrics that clients push.

use std::collections::BTreeSet;

use kafka_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use kafka_protocol::messages::describe_log_dirs_request::DescribableLogDirTopic;
use kafka_protocol::messages::describe_producers_request::TopicRequest as ProducersTopic;
use kafka_protocol::messages::elect_leaders_request::TopicPartitions;
use kafka_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::update_features_request::FeatureUpdateKey;
use kafka_protocol::messages::{
    AlterPartitionReassignmentsRequest, BrokerId, ConsumerGroupHeartbeatRequest, CreatePartitionsRequest,
    DeleteRecordsRequest, DeleteTopicsRequest, DescribeLogDirsRequest, DescribeProducersRequest,
    ElectLeadersRequest, GetTelemetrySubscriptionsRequest, GetTelemetrySubscriptionsResponse, GroupId,
    IncrementalAlterConfigsRequest, ListConfigResourcesRequest, ListPartitionReassignmentsRequest,
    PushTelemetryRequest, UpdateFeaturesRequest,
};
use kafka_protocol::records::{Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType};
use strandline_metadata::backend::faulty::{FaultPlan, FaultyBackend};
use strandline_metadata::backend::{Backend, KeyRange, Op, Txn};
use strandline_metadata::keys::{Key, Keyspace};
use strandline_metadata::values::{BrokerValue, ClusterValue, VALUE_FORMAT, Value};
use strandline_storage::format::segment::{SegmentVersion, read_index};
use tokio::time::Duration;

use super::*;
use crate::configs::{BROKER, BROKER_LOGGER, CLIENT_METRICS, GROUP, TOPIC};

/// Topic, partition, bytes.
type Sizes = Vec<(String, i32, i64)>;

async fn sizes(client: &mut TestClient, topics: Option<Vec<(&str, Vec<i32>)>>, version: i16) -> Sizes {
    let topics = topics.map(|topics| {
        let asked = |(topic, partitions): (&str, Vec<i32>)| {
            DescribableLogDirTopic::default().with_topic(name(topic)).with_partitions(partitions)
        };
        topics.into_iter().map(asked).collect()
    });
    let response = client.call(&DescribeLogDirsRequest::default().with_topics(topics), version).await;
    assert_eq!((response.error_code, response.results.len()), (0, 1), "version {version}");
    let store = &response.results[0];
    assert!(store.log_dir.starts_with("file:"), "{}", store.log_dir);
    assert_eq!((store.error_code, store.total_bytes, store.usable_bytes), (0, -1, -1));
    let topics = store
        .topics
        .iter()
        .flat_map(|t| t.partitions.iter().map(|p| (t.name.to_string(), p.partition_index, p.partition_size)));
    topics.collect()
}

#[tokio::test]
async fn sizes_in_every_version() {
    let (_opened, mut client, id) = ready().await;
    let written = batch(Compression::None, NOW_MS, 5);
    let bytes = i64::try_from(written.len()).unwrap();
    produce(&mut client, 9, id, vec![(1, written)]).await;
    let size = |partition, bytes| ("t".to_owned(), partition, bytes);
    for version in describe_log_dirs::VERSIONS {
        assert_eq!(sizes(&mut client, None, version).await, [size(0, 0), size(1, bytes)]);
        let twice = vec![("t", vec![1, 7]), ("missing", vec![0]), ("t", vec![1, -1])];
        assert_eq!(sizes(&mut client, Some(twice), version).await, [size(1, bytes)]);
        assert_eq!(sizes(&mut client, Some(Vec::new()), version).await, []);
    }
}

#[tokio::test]
async fn each_partition_is_counted_by_one_broker() {
    let world = World::new();
    // Neither is in the client's zone, so it is led to both.
    let brokers = [world.broker(2, &[]).await, world.broker(3, &[]).await];
    let mut clients = brokers.each_ref().map(|b| TestClient::connect(&b.broker));
    for broker in &brokers {
        while broker.broker.replica.read(|view| view.names.brokers().len()) < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    clients[0].create_topic("t", 20, &[]).await;
    let first = sizes(&mut clients[0], None, 4).await;
    let second = sizes(&mut clients[1], None, 4).await;
    assert!(!first.is_empty() && !second.is_empty());
    let mut all: Vec<i32> = first.iter().chain(&second).map(|(_, partition, _)| *partition).collect();
    all.sort_unstable();
    assert_eq!(all, (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn records_are_deleted_in_every_version() {
    for version in delete_records::VERSIONS {
        let (_opened, mut client, _) = ready().await;
        client.create_topic("compacted", 1, &[("cleanup.policy", "compact")]).await;
        for _ in 0..5 {
            client.produce("t", [batch(Compression::None, NOW_MS, 10)]).await;
        }
        let mut delete = async |topic: &str, asked: &[(i32, i64)]| {
            let partition = |(index, offset): &(i32, i64)| {
                DeleteRecordsPartition::default().with_partition_index(*index).with_offset(*offset)
            };
            let partitions = asked.iter().map(partition).collect();
            let topic = DeleteRecordsTopic::default().with_name(name(topic)).with_partitions(partitions);
            let request = DeleteRecordsRequest::default().with_topics(vec![topic]).with_timeout_ms(1_000);
            let mut response = client.call(&request, version).await;
            let results = response.topics.remove(0).partitions;
            results.iter().map(|p| (p.error_code, p.low_watermark)).collect::<Vec<_>>()
        };
        let out_of_range = (ResponseError::OffsetOutOfRange.code(), -1);
        let unknown = (ResponseError::UnknownTopicOrPartition.code(), -1);
        // In the middle of a batch, where the log starts already, below it, beyond the end.
        assert_eq!(delete("t", &[(0, 13)]).await, [(0, 13)]);
        assert_eq!(delete("t", &[(0, 13)]).await, [(0, 13)]);
        assert_eq!(delete("t", &[(0, 5)]).await, [(0, 13)]);
        assert_eq!(delete("t", &[(0, 51)]).await, [out_of_range]);
        assert_eq!(delete("t", &[(0, -2)]).await, [out_of_range]);
        assert_eq!(delete("t", &[(99, 0), (-1, 0)]).await, [unknown, unknown]);
        assert_eq!(delete("missing", &[(0, 0)]).await, [unknown]);
        let policy = ResponseError::PolicyViolation.code();
        assert_eq!(delete("compacted", &[(0, 0)]).await, [(policy, -1)]);
        // The offset that is named last counts; −1 is the high watermark.
        assert_eq!(delete("t", &[(0, 40), (0, 20)]).await, [(0, 20)]);
        assert_eq!(delete("t", &[(0, -1)]).await, [(0, 50)]);
    }
}

#[tokio::test]
async fn nothing_is_elected_in_every_version() {
    let (_opened, mut client, _) = ready().await;
    for version in elect_leaders::VERSIONS {
        let topic = |n: &str| TopicPartitions::default().with_topic(name(n)).with_partitions(vec![0, 9]);
        let request =
            ElectLeadersRequest::default().with_topic_partitions(Some(vec![topic("t"), topic("missing")]));
        let response = client.call(&request, version).await;
        let codes: Vec<i16> = response
            .replica_election_results
            .iter()
            .flat_map(|t| t.partition_result.iter().map(|p| p.error_code))
            .collect();
        let unknown = ResponseError::UnknownTopicOrPartition.code();
        assert_eq!(codes, [ResponseError::ElectionNotNeeded.code(), unknown, unknown, unknown]);
        let all = ElectLeadersRequest::default().with_topic_partitions(None);
        let response = client.call(&all, version).await;
        assert_eq!((response.error_code, response.replica_election_results.len()), (0, 0));
        if version >= 1 {
            let odd = client.call(&all.with_election_type(7), version).await;
            assert_eq!(odd.error_code, ResponseError::InvalidRequest.code());
        }
    }
}

#[tokio::test]
async fn nothing_is_reassigned_in_every_version() {
    let (_opened, mut client, _) = ready().await;
    for version in alter_partition_reassignments::VERSIONS {
        let to = |partition, replicas: Option<&[i32]>| {
            ReassignablePartition::default()
                .with_partition_index(partition)
                .with_replicas(replicas.map(|r| r.iter().map(|id| BrokerId(*id)).collect()))
        };
        let partitions =
            vec![to(0, Some(&[1])), to(1, Some(&[1, 2])), to(1, Some(&[])), to(0, None), to(9, None)];
        let topic =
            |n: &str, partitions| ReassignableTopic::default().with_name(name(n)).with_partitions(partitions);
        let topics = vec![topic("t", partitions), topic("missing", vec![to(0, Some(&[1]))])];
        let request = AlterPartitionReassignmentsRequest::default().with_topics(topics);
        let request = request.with_allow_replication_factor_change(version == 0);
        let response = client.call(&request, version).await;
        let codes: Vec<i16> =
            response.responses.iter().flat_map(|t| t.partitions.iter().map(|p| p.error_code)).collect();
        let unknown = ResponseError::UnknownTopicOrPartition.code();
        let invalid = ResponseError::InvalidReplicaAssignment.code();
        let idle = ResponseError::NoReassignmentInProgress.code();
        assert_eq!(codes, [0, invalid, invalid, idle, unknown, unknown], "version {version}");
        assert!(response.responses[0].partitions[1].error_message.is_some());
    }
    let response = client.call(&ListPartitionReassignmentsRequest::default(), 0).await;
    assert_eq!((response.error_code, response.topics.len()), (0, 0));
}

#[tokio::test]
async fn features_are_named_and_stay_in_every_version() {
    let (_opened, mut client, _) = ready().await;
    for version in 3..=4 {
        let request = ApiVersionsRequest::default()
            .with_client_software_name(text("apache-kafka-java"))
            .with_client_software_version(text("4.1.0"));
        let response = client.call(&request, version).await;
        let supported: Vec<_> =
            response.supported_features.iter().map(|f| (&*f.name, f.min_version, f.max_version)).collect();
        let all = [
            ("group.version", 0, 1),
            ("metadata.version", 30, 30),
            ("strandline.version", 1, 5),
            ("transaction.version", 0, 2),
        ];
        // What may be off is not named to clients that would take it for a range from 0.
        let expected: Vec<_> = all.into_iter().filter(|(_, least, _)| version >= 4 || *least > 0).collect();
        assert_eq!(supported, expected);
        let finalized = &response.finalized_features[0];
        assert_eq!((&*finalized.name, finalized.max_version_level), ("group.version", 1));
        assert_eq!(&*response.finalized_features[1].name, "metadata.version");
        assert_eq!(&*response.finalized_features[2].name, "strandline.version");
        let transactions = &response.finalized_features[3];
        assert_eq!((&*transactions.name, transactions.max_version_level), ("transaction.version", 2));
        assert!(response.finalized_features_epoch >= 0);
    }
    for version in update_features::VERSIONS {
        let update = |name: &str, level| {
            let key = FeatureUpdateKey::default().with_feature(text(name)).with_max_version_level(level);
            UpdateFeaturesRequest::default().with_feature_updates(vec![key]).with_validate_only(version >= 1)
        };
        let response = client.call(&update("group.version", 1), version).await;
        assert_eq!((response.error_code, response.results.len()), (0, usize::from(version <= 1)));
        for request in [update("group.version", 0), update("transaction.version", 3)] {
            let response = client.call(&request, version).await;
            assert_eq!(response.error_code, ResponseError::InvalidUpdateVersion.code());
            assert!(response.error_message.unwrap().contains(&*request.feature_updates[0].feature));
        }
    }
}

/// The level of the cluster's log, as clients are told.
async fn log_level(client: &mut TestClient) -> i16 {
    let request = ApiVersionsRequest::default()
        .with_client_software_name(text("test"))
        .with_client_software_version(text("1"));
    let finalized = client.call(&request, 4).await.finalized_features;
    finalized.iter().find(|feature| &*feature.name == "strandline.version").unwrap().max_version_level
}

/// The versions of the layout that the write objects in a store have.
async fn object_versions(world: &World) -> BTreeSet<SegmentVersion> {
    let mut versions = BTreeSet::new();
    for object in world.store.list("wal/", None, 1000).await.unwrap() {
        versions.insert(read_index(&*world.store, &object.key, object.size).await.unwrap().version);
    }
    versions
}

#[tokio::test]
async fn the_level_of_an_older_cluster_is_raised_when_every_broker_knows_the_next() {
    let world = World::new();
    let keys = Keyspace::new("strandline").unwrap();
    let cluster = ClusterValue {
        format: VALUE_FORMAT,
        cluster_id: "founded-long-ago-00000".to_owned(),
        feature_level: 1,
        unknown: std::collections::BTreeMap::new(),
    };
    let put =
        |key: &Key, value: Vec<u8>| Txn { then: vec![Op::put(keys.encode(key), value)], ..Txn::default() };
    // As a person might have written it: what counts is what it says.
    let written = serde_json::to_vec_pretty(&cluster).unwrap();
    world.backend.txn(put(&Key::Cluster, written)).await.unwrap();
    let flags = ["--linger-ms", "1", "--put-budget-per-s", "1000", "--job-interval-ms", "10"];
    let opened = world.broker(1, &flags).await;
    let mut client = TestClient::connect(&opened.broker);
    client.create_topic("t", 1, &[]).await;
    client.produce("t", [batch(Compression::None, 0, 1)]).await;
    assert_eq!(log_level(&mut client).await, 1);
    assert_eq!(object_versions(&world).await, BTreeSet::from([SegmentVersion::V1]));

    let old = BrokerValue { node_id: 7, version: "0.1.9".to_owned(), ..opened.broker.as_registered() };
    world.backend.txn(put(&Key::Broker(7), old.encode())).await.unwrap();
    let raise = |validate_only| {
        let key = FeatureUpdateKey::default()
            .with_feature(text("strandline.version"))
            .with_max_version_level(2)
            .with_upgrade_type(1);
        UpdateFeaturesRequest::default().with_feature_updates(vec![key]).with_validate_only(validate_only)
    };
    let refused = client.call(&raise(false), 2).await;
    assert_eq!(refused.error_code, ResponseError::InvalidUpdateVersion.code());
    assert!(refused.error_message.unwrap().contains("Broker 7 has version 0.1.9"));

    let gone = Op::Delete(KeyRange::Key(keys.encode(&Key::Broker(7))));
    world.backend.txn(Txn { then: vec![gone], ..Txn::default() }).await.unwrap();
    assert_eq!(client.call(&raise(true), 2).await.error_code, 0);
    assert_eq!(log_level(&mut client).await, 1, "it was only asked whether that would do");
    assert_eq!(client.call(&raise(false), 2).await.error_code, 0);
    assert_eq!(log_level(&mut client).await, 2);
    client.produce("t", [batch(Compression::None, 0, 1)]).await;
    assert_eq!(object_versions(&world).await, BTreeSet::from([SegmentVersion::V1, SegmentVersion::V2]));

    // Whoever comes later finds the new level, also a process that was started before.
    let other = world.broker(2, &flags).await;
    let mut client = TestClient::connect(&other.broker);
    assert_eq!(log_level(&mut client).await, 2);
    assert_eq!(client.call(&raise(false), 2).await.error_code, 0, "it is as it is asked for");
}

#[tokio::test]
async fn a_new_cluster_is_at_the_level_of_its_founder() {
    let world = World::new();
    let opened = world.broker(1, &["--job-interval-ms", "3600000"]).await;
    let mut client = TestClient::connect(&opened.broker);
    let founded = async {
        while log_level(&mut client).await < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), founded).await.expect("the log is told");
}

/// Alters one config; gives the code and the message.
async fn alter(
    client: &mut TestClient,
    resource: (i8, &str),
    key: &str,
    value: Option<&str>,
) -> (i16, String) {
    use incremental_alter_configs_request as incremental;
    let config = incremental::AlterableConfig::default()
        .with_name(text(key))
        .with_config_operation(i8::from(value.is_none()))
        .with_value(value.map(text));
    let resource = incremental::AlterConfigsResource::default()
        .with_resource_type(resource.0)
        .with_resource_name(text(resource.1))
        .with_configs(vec![config]);
    let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
    let response = client.call(&request, 1).await.responses.remove(0);
    (response.error_code, response.error_message.unwrap_or_default().to_string())
}

/// A config's value with its source, and the sources of its synonyms.
async fn config(client: &mut TestClient, resource: (i8, &str), key: &str) -> (String, i8, Vec<i8>) {
    let asked = DescribeConfigsResource::default()
        .with_resource_type(resource.0)
        .with_resource_name(text(resource.1))
        .with_configuration_keys(Some(vec![text(key)]));
    let request = DescribeConfigsRequest::default()
        .with_resources(vec![asked])
        .with_include_synonyms(true)
        .with_include_documentation(true);
    let response = client.call(&request, 4).await;
    let found = &response.results[0].configs[0];
    assert!(found.documentation.as_ref().is_some_and(|d| !d.is_empty()), "{key}");
    let sources = found.synonyms.iter().map(|s| s.source).collect();
    (found.value.clone().unwrap().to_string(), found.config_source, sources)
}

async fn heartbeat_interval(client: &mut TestClient, group: &str) -> i32 {
    let request = ConsumerGroupHeartbeatRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_member_id(text("m"))
        .with_rebalance_timeout_ms(30_000)
        .with_subscribed_topic_names(Some(vec![name("t")]))
        .with_topic_partitions(Some(Vec::new()));
    let response = client.call(&request, 1).await;
    assert_eq!(response.error_code, 0, "{:?}", response.error_message);
    response.heartbeat_interval_ms
}

#[tokio::test]
async fn configs_of_groups_count_while_they_are_set() {
    let opened = World::new().broker(1, &["--group-consumer-session-timeout-ms", "30000"]).await;
    let mut client = TestClient::connect(&opened.broker);
    client.create_topic("t", 1, &[]).await;
    let (group, heartbeat, session) =
        ((GROUP, "a/b"), "consumer.heartbeat.interval.ms", "consumer.session.timeout.ms");
    assert_eq!(heartbeat_interval(&mut client, "a/b").await, 5_000);
    assert_eq!(config(&mut client, group, heartbeat).await, ("5000".to_owned(), 5, vec![5]));
    assert_eq!(config(&mut client, group, session).await, ("30000".to_owned(), 4, vec![4, 5]));
    assert_eq!(alter(&mut client, group, heartbeat, Some("700")).await.0, 0);
    assert_eq!(config(&mut client, group, heartbeat).await, ("700".to_owned(), 8, vec![8, 5]));
    // The group looks at its configs now and then, also when nobody asks.
    while heartbeat_interval(&mut client, "a/b").await != 700 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(heartbeat_interval(&mut client, "other").await, 5_000);
    for (resource, key, value) in [
        (group, session, "700"),
        (group, session, "soon"),
        (group, "share.session.timeout.ms", "45000"),
        (group, "no.such.config", "1"),
        ((GROUP, ""), session, "45000"),
    ] {
        let (code, why) = alter(&mut client, resource, key, Some(value)).await;
        assert!(code != 0 && !why.is_empty(), "{resource:?} {key} {value}");
    }
    assert_eq!(alter(&mut client, group, heartbeat, None).await.0, 0);
    assert_eq!(config(&mut client, group, heartbeat).await.1, 5);
    let listed = ListConfigResourcesRequest::default().with_resource_types(vec![GROUP]);
    assert!(client.call(&listed, 1).await.config_resources.is_empty(), "nothing is left");
}

#[tokio::test]
async fn resources_with_configs_are_listed_in_every_version() {
    let (_opened, mut client, _) = ready().await;
    assert_eq!(alter(&mut client, (CLIENT_METRICS, "m"), "interval.ms", Some("1000")).await.0, 0);
    assert_eq!(alter(&mut client, (GROUP, "g"), "consumer.session.timeout.ms", Some("9000")).await.0, 0);
    let listed = |types: Vec<i8>| ListConfigResourcesRequest::default().with_resource_types(types);
    for version in list_config_resources::VERSIONS {
        let response = client.call(&listed(Vec::new()), version).await;
        let found: Vec<_> =
            response.config_resources.iter().map(|r| (r.resource_type, &*r.resource_name)).collect();
        let all = vec![(TOPIC, "t"), (BROKER, "1"), (CLIENT_METRICS, "m"), (GROUP, "g")];
        assert_eq!(found, if version >= 1 { all } else { vec![(CLIENT_METRICS, "m")] });
    }
    let response = client.call(&listed(vec![GROUP, GROUP]), 1).await;
    assert_eq!((response.error_code, response.config_resources.len()), (0, 1));
    for unknown in [BROKER_LOGGER, 99] {
        let response = client.call(&listed(vec![unknown, GROUP]), 1).await;
        assert_eq!(response.error_code, ResponseError::UnsupportedVersion.code());
    }
}

#[tokio::test]
async fn brokers_are_described_by_kafkas_names_too() {
    let opened =
        World::new().broker(1, &["--group-initial-rebalance-delay-ms", "7", "--num-partitions", "3"]).await;
    let mut client = TestClient::connect(&opened.broker);
    let broker = (BROKER, "1");
    for (key, value, source) in [
        ("group.initial.rebalance.delay.ms", "7", 4),
        ("group.max.size", "2000", 5),
        ("min.insync.replicas", "1", 5),
        ("node.id", "1", 5),
        ("log.retention.ms", "604800000", 5),
        ("num.partitions", "3", 4),
        ("broker.rack", "zone-1", 4),
        ("advertised.listeners", "PLAINTEXT://localhost:9092", 4),
        ("listeners", "PLAINTEXT://127.0.0.1:9092", 4),
        ("log.retention.hours", "168", 4),
        ("log.cleaner.backoff.ms", "15000", 5),
        ("inter.broker.protocol.version", "4.3-IV0", 5),
    ] {
        let (found, from, _) = config(&mut client, broker, key).await;
        assert_eq!((&*found, from), (value, source), "{key}");
        if !["log.retention.ms", "num.partitions"].contains(&key) {
            assert_ne!(alter(&mut client, (BROKER, ""), key, Some("1")).await.0, 0, "{key} is read-only");
        }
    }
    // Tools that reassign partitions set throttles and clear them, whether they were ever set or
    // not.
    let throttle = "leader.replication.throttled.rate";
    assert_eq!(alter(&mut client, broker, throttle, None).await.0, 0);
    assert_eq!(alter(&mut client, broker, throttle, Some("1000")).await.0, 0);
    assert_eq!(config(&mut client, broker, throttle).await.0, "1000");
    assert_eq!(alter(&mut client, broker, throttle, None).await.0, 0);
    assert_eq!(config(&mut client, broker, throttle).await.0, "9223372036854775807");
}

#[tokio::test]
async fn a_config_of_one_broker_counts_there_and_nowhere_else() {
    let world = World::new();
    let one = world.broker(1, &[]).await;
    let two = world.broker(2, &[]).await;
    let (mut first, mut second) = (TestClient::connect(&one.broker), TestClient::connect(&two.broker));
    first.create_topic("t", 1, &[]).await;
    let key = "message.max.bytes";
    assert_eq!(alter(&mut first, (BROKER, ""), key, Some("1000000")).await.0, 0);
    assert_eq!(alter(&mut first, (BROKER, "1"), key, Some("70")).await.0, 0);
    assert_ne!(alter(&mut first, (BROKER, "2"), key, Some("70")).await.0, 0, "that is another broker");
    let refused = alter(&mut first, (BROKER, "1"), key, Some("x")).await;
    assert_eq!(refused.0, ResponseError::InvalidRequest.code(), "as Kafka says it of brokers");
    let (value, source, _) = config(&mut first, (BROKER, "1"), key).await;
    assert_eq!((&*value, source), ("70", 2));
    let (value, source, _) = config(&mut first, (BROKER, ""), key).await;
    assert_eq!((&*value, source), ("1000000", 3));
    let (value, source, _) = config(&mut first, (TOPIC, "t"), "max.message.bytes").await;
    assert_eq!((&*value, source), ("70", 2));
    two.broker.replica.barrier().await.unwrap();
    let (value, source, _) = config(&mut second, (TOPIC, "t"), "max.message.bytes").await;
    assert_eq!((&*value, source), ("1000000", 3));
    let request = produce_request(9, Uuid::nil(), vec![(0, batch(Compression::None, NOW_MS, 1))]);
    let code = |response: ProduceResponse| response.responses[0].partition_responses[0].error_code;
    assert_eq!(code(first.call(&request, 9).await), ResponseError::MessageTooLarge.code());
    assert_eq!(code(second.call(&request, 9).await), 0);
}

pub(super) fn idempotent_batch(producer_id: i64, first: i32, count: i32) -> Bytes {
    let records: Vec<Record> = (0..count)
        .map(|i| Record {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: -1,
            producer_id,
            producer_epoch: 0,
            timestamp_type: TimestampType::Creation,
            offset: i64::from(i),
            sequence: first + i,
            timestamp: NOW_MS,
            key: None,
            value: None,
            headers: kafka_protocol::indexmap::IndexMap::default(),
        })
        .collect();
    let mut out = BytesMut::new();
    let options = RecordEncodeOptions { version: 2, compression: Compression::None };
    RecordBatchEncoder::encode(&mut out, &records, &options).unwrap();
    out.freeze()
}

#[tokio::test]
async fn producers_are_described() {
    let (_opened, mut client, id) = ready().await;
    let init = InitProducerIdRequest::default().with_transactional_id(None);
    let producer = client.call(&init, 5).await.producer_id;
    for (first, count) in [(0, 3), (3, 4)] {
        let written = vec![(1, idempotent_batch(producer.0, first, count))];
        let response = produce(&mut client, 9, id, written).await;
        assert_eq!(response.responses[0].partition_responses[0].error_code, 0);
    }
    let topic =
        |n: &str, partitions| ProducersTopic::default().with_name(name(n)).with_partition_indexes(partitions);
    let topics = vec![topic("t", vec![1, 0, 9, 1, -1]), topic("missing", vec![0])];
    for version in describe_producers::VERSIONS {
        let request = DescribeProducersRequest::default().with_topics(topics.clone());
        let response = client.call(&request, version).await;
        let found: Vec<_> = response
            .topics
            .iter()
            .flat_map(|t| &t.partitions)
            .map(|p| (p.partition_index, p.error_code, p.active_producers.len()))
            .collect();
        let unknown = ResponseError::UnknownTopicOrPartition.code();
        assert_eq!(found, [(-1, unknown, 0), (0, 0, 0), (1, 0, 1), (9, unknown, 0), (0, unknown, 0)]);
        let state = &response.topics[0].partitions[2].active_producers[0];
        assert_eq!((state.producer_id, state.producer_epoch, state.last_sequence), (producer, 0, 6));
        assert_eq!(
            (state.last_timestamp, state.coordinator_epoch, state.current_txn_start_offset),
            (-1, -1, -1)
        );
    }
}

async fn subscriptions(client: &mut TestClient, id: Uuid) -> GetTelemetrySubscriptionsResponse {
    let request = GetTelemetrySubscriptionsRequest::default().with_client_instance_id(id);
    client.call(&request, *get_telemetry_subscriptions::VERSIONS.end()).await
}

#[tokio::test]
async fn metrics_of_clients_arrive_in_ours_once_they_are_wanted() {
    let (opened, mut client, _) = ready().await;
    let told = subscriptions(&mut client, Uuid::nil()).await;
    assert_eq!((told.error_code, told.push_interval_ms), (0, 300_000));
    assert!(told.requested_metrics.is_empty() && !told.client_instance_id.is_nil(), "off by default");
    let id = told.client_instance_id;
    assert_eq!(
        subscriptions(&mut client, id).await.error_code,
        ResponseError::ThrottlingQuotaExceeded.code()
    );

    let resource = (CLIENT_METRICS, "all of ours");
    for (key, value) in [("interval.ms", "100"), ("match", "client_id=test.*"), ("metrics", "org.a.,org.b.")]
    {
        let altered = alter(&mut client, resource, key, Some(value)).await;
        assert_eq!(altered, (0, String::new()), "{key}");
        assert_eq!(config(&mut client, resource, key).await, (value.to_owned(), 7, vec![7, 5]));
    }
    let told = subscriptions(&mut client, id).await;
    let wanted: Vec<&str> = told.requested_metrics.iter().map(|m| &**m).collect();
    assert_eq!(
        (wanted, told.push_interval_ms, told.delta_temporality),
        (vec!["org.a.", "org.b."], 100, true)
    );
    assert_eq!((told.accepted_compression_types.len(), told.telemetry_max_bytes), (4, 1 << 20));

    let payload = crate::telemetry::payload(("org.a.sent", 2.0), ("org.b.rate", 7.5));
    let push = PushTelemetryRequest::default()
        .with_client_instance_id(id)
        .with_subscription_id(told.subscription_id)
        .with_metrics(payload.clone().into());
    let version = *push_telemetry::VERSIONS.end();
    assert_eq!(client.call(&push, version).await.error_code, 0);
    assert_eq!(client.call(&push, version).await.error_code, ResponseError::ThrottlingQuotaExceeded.code());
    tokio::time::sleep(Duration::from_millis(110)).await;
    let zipped = zstd::encode_all(&payload[..], 0).unwrap();
    let again = push.clone().with_compression_type(4).with_metrics(zipped.into());
    assert_eq!(client.call(&again, version).await.error_code, 0);
    let shown = String::from_utf8(opened.broker.metrics.render(&opened.broker).unwrap()).unwrap();
    let labels = |metric: &str| {
        format!("{{attributes=\"node_id=3\",client_id=\"test zone=zone-1\",metric=\"{metric}\"}}")
    };
    for line in [
        format!("strandline_client_telemetry_total{} 4\n", labels("org.a.sent")),
        format!("strandline_client_telemetry{} 7.5\n", labels("org.b.rate")),
    ] {
        assert!(shown.contains(&line), "{line}\nis not in\n{shown}");
    }

    let bomb = zstd::encode_all(&vec![0; 9 << 20][..], 0).unwrap();
    for (request, error) in [
        (push.clone().with_client_instance_id(Uuid::nil()), ResponseError::InvalidRequest),
        (push.clone().with_subscription_id(told.subscription_id + 1), ResponseError::UnknownSubscriptionId),
        (push.clone().with_compression_type(9), ResponseError::UnsupportedCompressionType),
        (push.clone().with_metrics(vec![0; (1 << 20) + 1].into()), ResponseError::TelemetryTooLarge),
        (again.clone().with_metrics(bomb.into()), ResponseError::TelemetryTooLarge),
        (push.clone().with_metrics(Bytes::from_static(b"what?")), ResponseError::InvalidRecord),
        (push.clone().with_terminating(true).with_metrics(Bytes::new()), ResponseError::UnknownServerError),
        (push.clone(), ResponseError::InvalidRequest),
    ] {
        tokio::time::sleep(Duration::from_millis(110)).await;
        let code = client.call(&request, version).await.error_code;
        // The last push may be empty, and is taken.
        let expected = if request.terminating { 0 } else { error.code() };
        assert_eq!(code, expected, "{error:?}");
    }
    for key in ["interval.ms", "match", "metrics"] {
        assert_eq!(alter(&mut client, resource, key, None).await.0, 0);
    }
    let nothing = subscriptions(&mut client, Uuid::nil()).await;
    assert!(nothing.requested_metrics.is_empty());
}

#[tokio::test(start_paused = true)]
async fn nobody_is_told_that_a_topic_is_gone_by_a_broker_that_cannot_know() {
    let world = World::new();
    let faulty = FaultyBackend::new(Arc::new(world.backend.clone()), 1);
    let faults = faulty.faults();
    let opened = world.broker_over(Arc::new(faulty), 1, &[]).await;
    let mut client = TestClient::connect(&opened.broker);
    let delete = DeleteTopicsRequest::default().with_topic_names(vec![name("t")]).with_timeout_ms(1000);
    let grown = CreatePartitionsTopic::default().with_name(name("t")).with_count(3);
    let grow = CreatePartitionsRequest::default().with_topics(vec![grown]);
    let change = AlterableConfig::default().with_name(text("retention.ms")).with_value(Some(text("1")));
    let resource = AlterConfigsResource::default()
        .with_resource_type(TOPIC)
        .with_resource_name(text("t"))
        .with_configs(vec![change]);
    let alter = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
    let sure = ResponseError::UnknownTopicOrPartition.code();
    for (unavailable, code) in [(0.0, sure), (1.0, ResponseError::RequestTimedOut.code())] {
        faults.set_plan(FaultPlan { unavailable, ..FaultPlan::default() });
        assert_eq!(client.call(&delete, 5).await.responses[0].error_code, code);
        assert_eq!(client.call(&grow, 3).await.results[0].error_code, code);
        assert_eq!(client.call(&alter, 1).await.responses[0].error_code, code);
    }
}
