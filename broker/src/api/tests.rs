//! Every advertised version of every API through decode, handle, encode: over a connection, and
//! answered with what the API promises. A version whose handler forgets a field fails here.

mod admin;
mod bounds;
mod group_errors;
mod groups;
mod topics;
mod transactions;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_topic_partitions_request::{Cursor, TopicRequest};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    AlterConfigsRequest, ApiVersionsRequest, CreatePartitionsRequest, CreateTopicsRequest,
    DeleteTopicsRequest, DescribeClusterRequest, DescribeConfigsRequest, DescribeTopicPartitionsRequest,
    FetchRequest, FetchResponse, IncrementalAlterConfigsRequest, InitProducerIdRequest, ListOffsetsRequest,
    MetadataRequest, OffsetForLeaderEpochRequest, ProduceRequest, ProduceResponse, TopicName,
    TransactionalId, incremental_alter_configs_request,
};
use kafka_protocol::records::Compression;
use uuid::Uuid;

use super::*;
use crate::records::tests::batch;
use crate::run::Opened;
use crate::testing::{NOW_MS, TestClient, World, frame};

fn name(name: &str) -> TopicName {
    TopicName(text(name))
}

fn creatable(topic: &str, partitions: i32) -> CreatableTopic {
    CreatableTopic::default()
        .with_name(name(topic))
        .with_num_partitions(partitions)
        .with_replication_factor(1)
}

/// One broker without a PUT budget to wait for, a client, and a topic `t` of two partitions.
async fn ready() -> (Opened, TestClient, Uuid) {
    let opened =
        World::new().broker(1, &["--put-budget-per-s", "100000", "--put-budget-burst", "100000"]).await;
    let mut client = TestClient::connect(&opened.broker);
    let id = client.create_topic("t", 2, &[]).await;
    (opened, client, id)
}

fn produce_request(version: i16, id: Uuid, data: Vec<(i32, Bytes)>) -> ProduceRequest {
    let partitions = data
        .into_iter()
        .map(|(index, batch)| PartitionProduceData::default().with_index(index).with_records(Some(batch)))
        .collect();
    let topic = TopicProduceData::default().with_partition_data(partitions);
    let topic = if version >= 13 { topic.with_topic_id(id) } else { topic.with_name(name("t")) };
    ProduceRequest::default().with_acks(-1).with_timeout_ms(10_000).with_topic_data(vec![topic])
}

async fn produce(
    client: &mut TestClient,
    version: i16,
    id: Uuid,
    data: Vec<(i32, Bytes)>,
) -> ProduceResponse {
    client.call(&produce_request(version, id, data), version).await
}

fn fetch_request(version: i16, id: Uuid, offset: i64) -> FetchRequest {
    let partition = FetchPartition::default()
        .with_partition(0)
        .with_fetch_offset(offset)
        .with_partition_max_bytes(1 << 20)
        .with_current_leader_epoch(if version >= 9 { 0 } else { -1 });
    let topic = FetchTopic::default().with_partitions(vec![partition]);
    let topic = if version >= 13 { topic.with_topic_id(id) } else { topic.with_topic(name("t")) };
    let request = FetchRequest::default().with_max_wait_ms(500).with_min_bytes(1).with_max_bytes(1 << 20);
    request.with_topics(vec![topic]).with_session_epoch(if version >= 7 { 0 } else { -1 })
}

#[tokio::test]
async fn what_is_spoken_is_advertised_and_tested() {
    let (_opened, mut client, _) = ready().await;
    for version in api_versions::VERSIONS {
        let request = ApiVersionsRequest::default()
            .with_client_software_name(text("apache-kafka-java"))
            .with_client_software_version(text("4.1.0"));
        let request = if version >= 3 { request } else { ApiVersionsRequest::default() };
        let response = client.call(&request, version).await;
        assert_eq!((response.error_code, response.api_keys.len()), (0, SUPPORTED.len()), "version {version}");
        let produce = response.api_keys.iter().find(|k| k.api_key == 0).unwrap();
        assert_eq!((produce.min_version, produce.max_version), (0, 13), "as librdkafka before 2.8 needs it");
    }
    // It is listed, and whoever sends it is disconnected, as by Kafka.
    client.send_raw(&[0, 0, 0, 10, 0, 0, 0, 2, 0, 0, 0, 1, 0xff, 0xff]).await;
    assert_eq!(client.receive_raw().await, None);
    // The tests below walk these; an API that is added to the table must be added here, with its
    // own walk.
    let walked = [
        0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 32, 33, 35,
        37, 42, 43, 44, 45, 46, 47, 57, 60, 61, 65, 66, 68, 69, 71, 72, 74, 75,
    ];
    let mut spoken: Vec<i16> = SUPPORTED.iter().map(|api| api.key as i16).collect();
    spoken.sort_unstable();
    assert_eq!(spoken, walked);
}

#[tokio::test]
async fn versions_that_are_not_spoken_are_answered_or_refused() {
    let (opened, mut client, _) = ready().await;
    let mut newer = frame(&ApiVersionsRequest::default(), 0, 5).to_vec();
    newer[6..8].copy_from_slice(&99_i16.to_be_bytes());
    client.send_raw(&newer).await;
    let mut body = client.receive_raw().await.unwrap();
    assert_eq!(body.get_i32(), 5);
    let response = kafka_protocol::messages::ApiVersionsResponse::decode(&mut body, 0).unwrap();
    assert_eq!(response.error_code, ResponseError::UnsupportedVersion.code());
    let listed: Vec<_> =
        response.api_keys.iter().map(|k| (k.api_key, k.min_version, k.max_version)).collect();
    assert_eq!(listed, [(18, 0, *api_versions::VERSIONS.end())], "who asked asks again");
    // Nonsense in a software name is refused, without closing the connection.
    let odd = ApiVersionsRequest::default().with_client_software_name(text("<script>"));
    assert_eq!(client.call(&odd, 3).await.error_code, ResponseError::InvalidRequest.code());
    for (at, value) in [(4, 999_i16), (6, 99)] {
        let mut client = TestClient::connect(&opened.broker);
        let mut bad = frame(&MetadataRequest::default(), 5, 5).to_vec();
        bad[at..at + 2].copy_from_slice(&value.to_be_bytes());
        client.send_raw(&bad).await;
        assert!(client.receive_raw().await.is_none(), "the connection is closed");
    }
}

#[tokio::test]
async fn bytes_behind_a_request_mean_nothing() {
    let (_opened, mut client, _) = ready().await;
    // What librdkafka 2.16 sends to ask for all topics: three bytes too many.
    let request = MetadataRequest::default().with_topics(None).with_allow_auto_topic_creation(false);
    let mut odd = [&frame(&request, 13, 5)[..], &[1, 0, 0]].concat();
    let length = i32::try_from(odd.len() - 4).unwrap();
    odd[..4].copy_from_slice(&length.to_be_bytes());
    client.send_raw(&odd).await;
    let answer = client.receive_raw().await.expect("as Kafka does, it answers");
    assert_eq!(&answer[..4], 5_i32.to_be_bytes());
}

#[tokio::test]
async fn produce_and_fetch_in_every_version() {
    let (_opened, mut client, id) = ready().await;
    let mut expected = 0;
    for version in produce::VERSIONS {
        let response = produce(
            &mut client,
            version,
            id,
            vec![(0, batch(Compression::None, NOW_MS, 3)), (7, Bytes::new())],
        )
        .await;
        let [good, bad] = &response.responses[0].partition_responses[..] else { panic!("two partitions") };
        assert_eq!((good.error_code, good.base_offset), (0, expected), "version {version}");
        assert_eq!(bad.error_code, ResponseError::UnknownTopicOrPartition.code());
        assert_eq!(bad.error_message.is_some(), version >= 8);
        expected += 3;
    }
    for version in fetch::VERSIONS {
        let response: FetchResponse = client.call(&fetch_request(version, id, 4), version).await;
        assert_eq!(response.session_id > 0, version >= 7);
        let topic = &response.responses[0];
        assert!(if version >= 13 { topic.topic_id == id } else { &*topic.topic == "t" });
        let partition = &topic.partitions[0];
        assert_eq!((partition.error_code, partition.high_watermark), (0, expected));
        let mut records = partition.records.clone().unwrap();
        let first = kafka_protocol::records::RecordBatchDecoder::decode(&mut records).unwrap();
        // A fetch starts at the batch that contains the offset.
        assert_eq!(first.records[0].offset, 3, "version {version}");
    }
    for version in 13..=18 {
        let response = client.call(&fetch_request(version, Uuid::from_u128(5), 0), version).await;
        assert_eq!(response.responses[0].partitions[0].error_code, ResponseError::UnknownTopicId.code());
    }
}

#[tokio::test]
async fn a_state_at_its_limit_refuses_producers_and_serves_consumers() {
    let opened = World::new().broker(1, &["--max-state-ranges", "1"]).await;
    let mut client = TestClient::connect(&opened.broker);
    let id = client.create_topic("t", 2, &[]).await;
    let one = || vec![(0, batch(Compression::None, NOW_MS, 1))];
    assert_eq!(produce(&mut client, 9, id, one()).await.responses[0].partition_responses[0].error_code, 0);
    let refused = &produce(&mut client, 9, id, one()).await.responses[0].partition_responses[0];
    assert_eq!(refused.error_code, ResponseError::KafkaStorageError.code());
    assert!(refused.error_message.as_ref().is_some_and(|m| m.contains("max_state_ranges")));
    let response = client.call(&fetch_request(12, id, 0), 12).await;
    assert_eq!(response.responses[0].partitions[0].high_watermark, 1);
}

#[tokio::test]
async fn list_offsets_in_every_version() {
    let (_opened, mut client, id) = ready().await;
    for codec in [Compression::None, Compression::Zstd] {
        produce(&mut client, 9, id, vec![(0, batch(codec, NOW_MS, 5))]).await;
    }
    for version in list_offsets::VERSIONS {
        let mut asked = vec![
            (-1, Ok((10, -1))),
            (-2, Ok((0, -1))),
            (NOW_MS + 3, Ok((3, NOW_MS + 3))),
            (NOW_MS + 99, Ok((-1, -1))),
        ];
        asked.push((
            -3,
            if version >= 7 { Ok((4, NOW_MS + 4)) } else { Err(ResponseError::UnsupportedVersion) },
        ));
        asked.push((-4, if version >= 8 { Ok((0, -1)) } else { Err(ResponseError::UnsupportedVersion) }));
        asked.push((-5, if version >= 9 { Ok((-1, -1)) } else { Err(ResponseError::UnsupportedVersion) }));
        for (timestamp, expected) in asked {
            let partition =
                |index| ListOffsetsPartition::default().with_partition_index(index).with_timestamp(timestamp);
            let topic = ListOffsetsTopic::default()
                .with_name(name("t"))
                .with_partitions(vec![partition(0), partition(9)]);
            let response =
                client.call(&ListOffsetsRequest::default().with_topics(vec![topic]), version).await;
            let [found, unknown] = &response.topics[0].partitions[..] else { panic!("two partitions") };
            let got = match ResponseError::try_from_code(found.error_code) {
                None => Ok((found.offset, found.timestamp)),
                Some(error) => Err(error),
            };
            assert_eq!(got, expected, "version {version}, timestamp {timestamp}");
            assert_eq!(unknown.error_code, ResponseError::UnknownTopicOrPartition.code());
        }
    }
}

#[tokio::test]
async fn metadata_in_every_version() {
    let (_opened, mut client, id) = ready().await;
    for version in metadata::VERSIONS {
        let asked = |topic: &str| MetadataRequestTopic::default().with_name(Some(name(topic)));
        let topics = vec![asked("t"), asked("no/such")];
        let mut request = MetadataRequest::default().with_topics(Some(topics));
        if version >= 8 {
            request = request.with_include_topic_authorized_operations(true);
        }
        let response = client.call(&request, version).await;
        assert_eq!(response.brokers[0].node_id.0, 1);
        assert_eq!(response.brokers[0].rack.as_deref(), (version >= 1).then_some("zone-1"));
        let [known, invalid] = &response.topics[..] else { panic!("two topics") };
        assert_eq!((known.error_code, known.partitions.len()), (0, 2), "version {version}");
        assert_eq!(known.topic_id, if version >= 10 { id } else { Uuid::nil() });
        assert!(known.partitions.iter().all(|p| p.leader_id.0 == 1));
        assert_eq!(invalid.error_code, ResponseError::InvalidTopicException.code());
        let all = if version == 0 { Some(Vec::new()) } else { None };
        let response = client.call(&MetadataRequest::default().with_topics(all), version).await;
        assert_eq!(response.topics.len(), 1, "version {version}");
        if version >= 12 {
            let by_id = vec![
                MetadataRequestTopic::default().with_topic_id(id).with_name(None),
                MetadataRequestTopic::default().with_topic_id(Uuid::from_u128(3)).with_name(None),
            ];
            let response = client.call(&MetadataRequest::default().with_topics(Some(by_id)), version).await;
            assert_eq!(response.topics[0].name.as_deref().map(ToString::to_string), Some("t".to_owned()));
            assert_eq!(response.topics[1].error_code, ResponseError::UnknownTopicId.code());
        }
    }
}

#[tokio::test]
async fn of_names_that_differ_in_dots_and_underlines_the_first_is_created() {
    let (opened, mut client, _) = ready().await;
    let asked = ["a.b", "a_b", "a.b", "c_d", "c.d", "e"];
    let named = asked.map(|topic| MetadataRequestTopic::default().with_name(Some(name(topic))));
    let request =
        MetadataRequest::default().with_topics(Some(named.to_vec())).with_allow_auto_topic_creation(true);
    let response = client.call(&request, 9).await;
    let unknown = ResponseError::UnknownTopicOrPartition.code();
    let codes: Vec<i16> = response.topics.iter().map(|t| t.error_code).collect();
    assert_eq!(codes, [0, unknown, 0, unknown, 0], "a name that comes twice is answered once");
    let topics: Vec<String> =
        opened.broker.replica.read(|view| view.names.topics().keys().cloned().collect());
    assert_eq!(topics, ["a.b", "c_d", "e", "t"]);
}

#[tokio::test]
async fn topics_are_created_grown_and_deleted_in_every_version() {
    let (_opened, mut client, _) = ready().await;
    for version in create_topics::VERSIONS {
        let topic = format!("created-{version}");
        let config =
            CreatableTopicConfig::default().with_name(text("retention.ms")).with_value(Some(text("5000")));
        let bad = CreatableTopicConfig::default().with_name(text("no.such")).with_value(Some(text("5000")));
        let topics = vec![
            creatable(&topic, 3).with_configs(vec![config]),
            creatable("t", 1),
            creatable("bad", 1).with_configs(vec![bad]),
            creatable("none", 0),
            creatable(&topic.replace('-', "."), 1),
        ];
        let mut request = CreateTopicsRequest::default().with_topics(topics);
        let response = client.call(&request.clone().with_validate_only(true), version).await;
        assert_eq!(response.topics[0].error_code, 0, "version {version}");
        let response = client.call(&request, version).await;
        let codes: Vec<i16> = response.topics.iter().map(|t| t.error_code).collect();
        let (exists, config, partitions) = (
            ResponseError::TopicAlreadyExists,
            ResponseError::InvalidConfig,
            ResponseError::InvalidPartitions,
        );
        assert_eq!(codes, [0, exists.code(), config.code(), partitions.code(), 0], "version {version}");
        if version >= 5 {
            let configs = response.topics[0].configs.as_ref().unwrap();
            let retention = configs.iter().find(|c| &*c.name == "retention.ms").unwrap();
            assert_eq!((retention.value.as_deref(), retention.config_source), (Some("5000"), 1));
            assert_eq!(response.topics[0].num_partitions, 3);
        }
        assert_eq!(response.topics[0].topic_id.is_nil(), version < 7);
        // A name that differs only in '.' and '_' collides.
        request = CreateTopicsRequest::default().with_topics(vec![creatable(&topic.replace('-', "_"), 1)]);
        let response = client.call(&request, version).await;
        assert_eq!(response.topics[0].error_code, ResponseError::InvalidTopicException.code());
    }
    for version in create_partitions::VERSIONS {
        let grow = |count| {
            let topic = CreatePartitionsTopic::default()
                .with_name(name("created-2"))
                .with_count(count)
                .with_assignments(None);
            CreatePartitionsRequest::default().with_topics(vec![topic])
        };
        let count = 4 + i32::from(version);
        assert_eq!(
            client.call(&grow(count).with_validate_only(true), version).await.results[0].error_code,
            0
        );
        assert_eq!(client.call(&grow(count), version).await.results[0].error_code, 0, "version {version}");
        let again = client.call(&grow(count), version).await;
        assert_eq!(again.results[0].error_code, ResponseError::InvalidPartitions.code());
    }
    for version in delete_topics::VERSIONS {
        let topic = format!("created-{}", version.max(2));
        let mut request = DeleteTopicsRequest::default();
        if version >= 6 {
            let by_name = |n: &str| DeleteTopicState::default().with_name(Some(name(n)));
            let by_id = DeleteTopicState::default().with_name(None).with_topic_id(Uuid::from_u128(9));
            request.topics = vec![by_name(&topic), by_name("missing"), by_id];
        } else {
            request.topic_names = vec![name(&topic), name("missing")];
        }
        let response = client.call(&request, version).await;
        // Version 1 has deleted what version 2 asks for.
        let first = if version == 2 { ResponseError::UnknownTopicOrPartition.code() } else { 0 };
        assert_eq!(response.responses[0].error_code, first, "version {version}");
        assert_eq!(response.responses[1].error_code, ResponseError::UnknownTopicOrPartition.code());
        if version >= 6 {
            assert!(!response.responses[0].topic_id.is_nil());
            assert_eq!(response.responses[2].error_code, ResponseError::UnknownTopicId.code());
        }
    }
}

#[tokio::test]
async fn producer_ids_in_every_version() {
    let (_opened, mut client, _) = ready().await;
    let mut ids = std::collections::BTreeSet::new();
    for version in init_producer_id::VERSIONS {
        let request = InitProducerIdRequest::default().with_transactional_id(None);
        let response = client.call(&request, version).await;
        assert_eq!((response.error_code, response.producer_epoch), (0, 0), "version {version}");
        assert!(ids.insert(response.producer_id.0), "an id is handed out once");
        let transactional = request.with_transactional_id(Some(TransactionalId(text("x"))));
        let transactional = transactional.with_transaction_timeout_ms(60_000);
        let response = client.call(&transactional, version).await;
        assert_eq!((response.error_code, response.producer_epoch), (0, version), "version {version}");
        let empty = InitProducerIdRequest::default().with_transactional_id(Some(TransactionalId(text(""))));
        assert_eq!(client.call(&empty, version).await.error_code, ResponseError::InvalidRequest.code());
    }
}

#[tokio::test]
async fn offsets_for_leader_epochs_in_every_version() {
    let (_opened, mut client, id) = ready().await;
    produce(&mut client, 9, id, vec![(0, batch(Compression::None, NOW_MS, 5))]).await;
    for version in offset_for_leader_epoch::VERSIONS {
        let asked = |epoch| OffsetForLeaderPartition::default().with_partition(0).with_leader_epoch(epoch);
        let topic =
            OffsetForLeaderTopic::default().with_topic(name("t")).with_partitions(vec![asked(0), asked(3)]);
        let request = OffsetForLeaderEpochRequest::default().with_topics(vec![topic]);
        let response = client.call(&request, version).await;
        let [known, unknown] = &response.topics[0].partitions[..] else { panic!("two epochs") };
        assert_eq!((known.error_code, known.leader_epoch, known.end_offset), (0, 0, 5), "version {version}");
        assert_eq!((unknown.error_code, unknown.leader_epoch, unknown.end_offset), (0, -1, -1));
    }
}

async fn retention(client: &mut TestClient, version: i16, resource: (i8, &str), key: &str) -> (String, i8) {
    let asked = DescribeConfigsResource::default()
        .with_resource_type(resource.0)
        .with_resource_name(text(resource.1))
        .with_configuration_keys(Some(vec![text(key)]));
    let mut request =
        DescribeConfigsRequest::default().with_resources(vec![asked]).with_include_synonyms(true);
    if version >= 3 {
        request = request.with_include_documentation(true);
    }
    let response = client.call(&request, version).await;
    let result = &response.results[0];
    assert_eq!((result.error_code, result.configs.len()), (0, 1), "version {version}");
    let config = &result.configs[0];
    assert!(!config.synonyms.is_empty());
    assert!(version < 3 || config.documentation.as_ref().is_some_and(|d| !d.is_empty()));
    (config.value.as_ref().unwrap().to_string(), config.config_source)
}

#[tokio::test]
async fn configs_are_described_and_altered_in_every_version() {
    let (_opened, mut client, _) = ready().await;
    let (topic, cluster) = ((crate::configs::TOPIC, "t"), (crate::configs::BROKER, ""));
    for version in describe_configs::VERSIONS {
        assert_eq!(retention(&mut client, version, topic, "retention.ms").await, ("604800000".to_owned(), 5));
        assert_eq!(retention(&mut client, version, (crate::configs::BROKER, "1"), "node_id").await.0, "1");
    }
    for version in alter_configs::VERSIONS {
        let alter = |key: &str, value: &str| {
            let config = AlterableConfig::default().with_name(text(key)).with_value(Some(text(value)));
            let resource =
                AlterConfigsResource::default().with_resource_type(topic.0).with_resource_name(text(topic.1));
            AlterConfigsRequest::default().with_resources(vec![resource.with_configs(vec![config])])
        };
        let value = (1000 + i32::from(version)).to_string();
        assert_eq!(
            client.call(&alter("retention.ms", "7").with_validate_only(true), version).await.responses[0]
                .error_code,
            0
        );
        assert_eq!(client.call(&alter("retention.ms", &value), version).await.responses[0].error_code, 0);
        assert_eq!(retention(&mut client, 4, topic, "retention.ms").await, (value, 1));
        let refused = client.call(&alter("retention.ms", "soon"), version).await;
        assert_eq!(refused.responses[0].error_code, ResponseError::InvalidConfig.code());
    }
    for version in incremental_alter_configs::VERSIONS {
        use incremental_alter_configs_request as incremental;
        let alter = |resource: (i8, &str), key: &str, operation, value: Option<&str>| {
            let config = incremental::AlterableConfig::default()
                .with_name(text(key))
                .with_config_operation(operation)
                .with_value(value.map(text));
            let resource = incremental::AlterConfigsResource::default()
                .with_resource_type(resource.0)
                .with_resource_name(text(resource.1))
                .with_configs(vec![config]);
            IncrementalAlterConfigsRequest::default().with_resources(vec![resource])
        };
        for (resource, key, operation, value, expected) in [
            (topic, "cleanup.policy", 2, Some("compact"), Some("delete,compact")),
            (topic, "cleanup.policy", 3, Some("delete"), Some("compact")),
            (topic, "cleanup.policy", 1, None, Some("delete")),
            (cluster, "log.retention.ms", 0, Some("4000"), Some("4000")),
        ] {
            let response = client.call(&alter(resource, key, operation, value), version).await;
            assert_eq!(
                response.responses[0].error_code, 0,
                "{key} {operation}: {:?}",
                response.responses[0].error_message
            );
            assert_eq!(Some(&*retention(&mut client, 4, resource, key).await.0), expected);
        }
        // The cluster's default counts for topics that set nothing themselves.
        client.call(&alter(topic, "retention.ms", 1, None), version).await;
        assert_eq!(retention(&mut client, 4, topic, "retention.ms").await, ("4000".to_owned(), 3));
        for (resource, key, operation, value) in [
            (topic, "retention.ms", 2, Some("5")),
            (topic, "retention.ms", 0, None),
            (topic, "retention.ms", 9, Some("5")),
            (cluster, "node_id", 0, Some("5")),
            ((crate::configs::BROKER, "2"), "log.retention.ms", 0, Some("5")),
            ((crate::configs::TOPIC, "missing"), "retention.ms", 0, Some("5")),
            ((99, "x"), "retention.ms", 0, Some("5")),
        ] {
            let response = client.call(&alter(resource, key, operation, value), version).await;
            assert_ne!(response.responses[0].error_code, 0, "{resource:?} {key} {operation}");
            assert!(response.responses[0].error_message.is_some());
        }
    }
}

#[tokio::test]
async fn the_cluster_and_its_topics_are_described_in_every_version() {
    let (opened, mut client, id) = ready().await;
    for version in describe_cluster::VERSIONS {
        let response = client.call(&DescribeClusterRequest::default().with_endpoint_type(1), version).await;
        assert_eq!((response.error_code, response.brokers.len()), (0, 1), "version {version}");
        assert_eq!(&*response.cluster_id, &*opened.broker.cluster.cluster_id);
        if version >= 1 {
            let response =
                client.call(&DescribeClusterRequest::default().with_endpoint_type(2), version).await;
            assert_eq!(response.error_code, ResponseError::UnsupportedEndpointType.code());
        }
    }
    client.create_topic("u", 3, &[]).await;
    let mut cursor: Option<Cursor> = None;
    let mut seen = Vec::new();
    for _ in 0..10 {
        let topics = ["t", "u", "missing"].map(|t| TopicRequest::default().with_name(name(t))).to_vec();
        let request = DescribeTopicPartitionsRequest::default()
            .with_topics(topics)
            .with_response_partition_limit(2)
            .with_cursor(cursor.take());
        let response = client.call(&request, 0).await;
        for topic in &response.topics {
            let topic_name = topic.name.as_ref().unwrap().to_string();
            assert_eq!(topic.error_code == 0, topic_name != "missing");
            if topic_name == "t" {
                assert_eq!(topic.topic_id, id);
            }
            assert!(topic.partitions.iter().all(|p| p.eligible_leader_replicas.is_some()));
            seen.extend(topic.partitions.iter().map(|p| (topic_name.clone(), p.partition_index)));
        }
        let Some(next) = response.next_cursor else { break };
        cursor = Some(
            Cursor::default().with_topic_name(next.topic_name).with_partition_index(next.partition_index),
        );
    }
    let expected = [("t", 0), ("t", 1), ("u", 0), ("u", 1), ("u", 2)].map(|(t, p)| (t.to_owned(), p));
    assert_eq!(seen, expected);
}
