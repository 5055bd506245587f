//! What one request may ask for: the same thing twice, very many things, and things that take long.

use bytes::BytesMut;
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::describe_producers_request::TopicRequest as ProducersOfTopic;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use kafka_protocol::messages::offset_fetch_response::OffsetFetchResponseTopics;
use kafka_protocol::messages::{
    ConsumerGroupDescribeRequest, DeleteGroupsRequest, DescribeGroupsRequest, DescribeProducersRequest,
    ElectLeadersRequest, FindCoordinatorRequest, GroupId, OffsetCommitRequest, OffsetFetchRequest,
    OffsetFetchResponse, elect_leaders_request,
};
use strandline_storage::format::batch::crc32c;
use strandline_storage::path::ObjectKey;
use tokio::time::{Duration, timeout};

use super::*;
use crate::compute::Kind;
use crate::limits::{
    BATCHES_OPENED_AT_ONCE, DESCRIBED_CONFIGS, FLUSH_ENTRIES, GROWING_AT_ONCE, LARGE_ANSWERS_AT_ONCE,
    LARGE_REQUEST_BYTES, LOOKUPS_AT_ONCE, REQUEST_PART_ENTRIES,
};
use crate::testing::metric;

const INVALID_REQUEST: i16 = 42;
const POLICY_VIOLATION: i16 = 44;

/// Long enough for anything to happen that is going to.
const A_WHILE: Duration = Duration::from_millis(300);

async fn opened_with(flags: &[&str]) -> (Opened, TestClient) {
    let eager = ["--put-budget-per-s", "100000", "--put-budget-burst", "100000"];
    let opened = World::new().broker(1, &[&eager, flags].concat()).await;
    let client = TestClient::connect(&opened.broker);
    (opened, client)
}

fn names_of(topics: &[&str]) -> Vec<MetadataRequestTopic> {
    topics.iter().map(|topic| MetadataRequestTopic::default().with_name(Some(name(topic)))).collect()
}

/// A batch of one record by this producer.
fn by_producer(producer_id: i64, sequence: i32) -> Bytes {
    let mut bytes = BytesMut::from(&batch(Compression::None, NOW_MS, 1)[..]);
    bytes[43..51].copy_from_slice(&producer_id.to_be_bytes());
    bytes[51..53].copy_from_slice(&0_i16.to_be_bytes());
    bytes[53..57].copy_from_slice(&sequence.to_be_bytes());
    let crc = crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes.freeze()
}

#[tokio::test]
async fn large_requests_are_decoded_as_far_as_there_is_memory_for_them() {
    let (opened, mut client) = opened_with(&[]).await;
    let budget = &opened.broker.decoded_memory;
    let others = budget.account("/192.0.2.1").take(budget.limit());
    let names: Vec<String> = (0..LARGE_REQUEST_BYTES / 32).map(|i| format!("t{i}")).collect();
    let large = MetadataRequest::default().with_allow_auto_topic_creation(false);
    let large = large.with_topics(Some(names_of(&names.iter().map(String::as_str).collect::<Vec<_>>())));
    assert!(timeout(A_WHILE, client.call(&large, 12)).await.is_err(), "there is no memory for it");
    // What is small needs none of it.
    let mut other = TestClient::connect(&opened.broker);
    let small = MetadataRequest::default().with_topics(Some(names_of(&["none"])));
    other.call(&small.with_allow_auto_topic_creation(false), 12).await;
    drop(others);
    assert!(client.receive_raw().await.is_some(), "it is answered");
    assert_eq!(budget.used(), 0);
}

#[tokio::test]
async fn a_topic_that_is_named_twice_is_described_once() {
    let (_opened, mut client, id) = ready().await;
    let by_id = MetadataRequestTopic::default().with_topic_id(id).with_name(None);
    let mut topics = names_of(&["t", "none", "t", "none"]);
    topics.extend([by_id.clone(), by_id]);
    let request = MetadataRequest::default().with_topics(Some(topics)).with_allow_auto_topic_creation(false);
    let answer = client.call(&request, 12).await;
    assert_eq!(answer.topics.iter().map(|t| t.partitions.len()).collect::<Vec<_>>(), [2, 0, 2]);
}

#[tokio::test]
async fn configs_of_a_resource_that_is_named_twice_are_described_once() {
    let (_opened, mut client, _) = ready().await;
    let resource = |keys: Option<&[&str]>| {
        let keys = keys.map(|keys| keys.iter().map(|key| text(*key)).collect());
        DescribeConfigsResource::default()
            .with_resource_type(2)
            .with_resource_name(text("t"))
            .with_configuration_keys(keys)
    };
    for (resources, expected) in [
        (vec![resource(Some(&["retention.ms"])), resource(Some(&["retention.bytes"]))], Some(2)),
        (vec![resource(None); 3], None),
        (vec![resource(Some(&["retention.ms"])), resource(None)], None),
    ] {
        let answer = client.call(&DescribeConfigsRequest::default().with_resources(resources), 4).await;
        let [described] = &answer.results[..] else { panic!("{} results", answer.results.len()) };
        assert!(expected.map_or(described.configs.len() > 10, |count| described.configs.len() == count));
    }
}

#[tokio::test]
async fn made_up_resources_do_not_make_an_answer_without_end() {
    let (_opened, mut client, _) = ready().await;
    let group = |i: usize| {
        DescribeConfigsResource::default().with_resource_type(32).with_resource_name(text(format!("g{i}")))
    };
    let one = DescribeConfigsRequest::default().with_resources(vec![group(0)]);
    let each = client.call(&one, 4).await.results[0].configs.len();
    let count = DESCRIBED_CONFIGS / each + 2;
    let many = DescribeConfigsRequest::default().with_resources((0..count).map(group).collect());
    let answer = client.call(&many, 4).await;
    let described: usize = answer.results.iter().map(|r| r.configs.len()).sum();
    assert!(described >= DESCRIBED_CONFIGS && described < DESCRIBED_CONFIGS + each);
    assert_eq!(answer.results.last().unwrap().error_code, INVALID_REQUEST);
}

#[tokio::test]
async fn partitions_that_are_looked_up_twice_are_refused_once() {
    let (_opened, mut client, _) = ready().await;
    let partition = |index, timestamp| {
        ListOffsetsPartition::default().with_partition_index(index).with_timestamp(timestamp)
    };
    let topic = |partitions| ListOffsetsTopic::default().with_name(name("t")).with_partitions(partitions);
    let topics =
        vec![topic(vec![partition(0, -1), partition(1, -2), partition(0, -1)]), topic(vec![partition(0, 5)])];
    let answer = client.call(&ListOffsetsRequest::default().with_topics(topics), 5).await;
    let [topic] = &answer.topics[..] else { panic!("{} topics", answer.topics.len()) };
    let found: Vec<_> = topic.partitions.iter().map(|p| (p.partition_index, p.error_code)).collect();
    assert_eq!(found, [(0, INVALID_REQUEST), (1, 0)]);
}

#[tokio::test]
async fn epochs_producers_and_elections_are_answered_once_for_each_partition() {
    let (_opened, mut client, _) = ready().await;
    let asked = OffsetForLeaderPartition::default().with_partition(1).with_leader_epoch(0);
    let topic = OffsetForLeaderTopic::default().with_topic(name("t")).with_partitions(vec![asked; 3]);
    let request = OffsetForLeaderEpochRequest::default().with_topics(vec![topic.clone(), topic]);
    let answer = client.call(&request, 4).await;
    assert_eq!((answer.topics.len(), answer.topics[0].partitions.len()), (1, 1));
    let topic = ProducersOfTopic::default().with_name(name("t")).with_partition_indexes(vec![1, 0, 1]);
    let request = DescribeProducersRequest::default().with_topics(vec![topic.clone(), topic]);
    let answer = client.call(&request, 0).await;
    assert_eq!((answer.topics.len(), answer.topics[0].partitions.len()), (1, 2));
    let topic =
        elect_leaders_request::TopicPartitions::default().with_topic(name("t")).with_partitions(vec![1, 1]);
    let request = ElectLeadersRequest::default().with_topic_partitions(Some(vec![topic.clone(), topic]));
    let answer = client.call(&request, 2).await;
    let results = &answer.replica_election_results;
    assert_eq!((results.len(), results[0].partition_result.len()), (1, 1));
}

#[tokio::test]
async fn groups_that_are_named_twice_are_answered_once() {
    let (_opened, mut client, _) = ready().await;
    let ids = || vec![GroupId(text("b")), GroupId(text("a")), GroupId(text("b"))];
    let answer = client.call(&DescribeGroupsRequest::default().with_groups(ids()), 5).await;
    assert_eq!(answer.groups.iter().map(|g| g.group_id.to_string()).collect::<Vec<_>>(), ["b", "a"]);
    let answer = client.call(&ConsumerGroupDescribeRequest::default().with_group_ids(ids()), 1).await;
    assert_eq!(answer.groups.len(), 2);
    let answer = client.call(&DeleteGroupsRequest::default().with_groups_names(ids()), 2).await;
    assert_eq!(answer.results.len(), 2);
    let keys = vec![text("b"), text("a"), text("b")];
    let answer = client.call(&FindCoordinatorRequest::default().with_coordinator_keys(keys), 4).await;
    assert_eq!(answer.coordinators.len(), 2);
}

#[tokio::test]
async fn offsets_are_fetched_once_whatever_is_named_twice() {
    let (_opened, mut client, _) = ready().await;
    let topic = |partitions: &[i32]| {
        OffsetFetchRequestTopics::default().with_name(name("t")).with_partition_indexes(partitions.to_vec())
    };
    let group =
        |topics| OffsetFetchRequestGroup::default().with_group_id(GroupId(text("g"))).with_topics(topics);
    let groups = vec![group(Some(vec![topic(&[0, 1, 0]), topic(&[1])])), group(Some(vec![topic(&[2])]))];
    let answer = client.call(&OffsetFetchRequest::default().with_groups(groups), 8).await;
    let [found] = &answer.groups[..] else { panic!("{} groups", answer.groups.len()) };
    let [topic] = &found.topics[..] else { panic!("{} topics", found.topics.len()) };
    assert_eq!(topic.partitions.iter().map(|p| p.partition_index).collect::<Vec<_>>(), [0, 1, 2]);
    // One that asks for all stands for the others.
    let groups = vec![group(Some(Vec::new())), group(None), group(Some(Vec::new()))];
    let answer = client.call(&OffsetFetchRequest::default().with_groups(groups), 8).await;
    assert_eq!((answer.groups.len(), answer.groups[0].topics.len()), (1, 0));
}

#[tokio::test]
async fn of_a_partition_that_is_fetched_twice_the_last_counts() {
    let (_opened, mut client, id) = ready().await;
    for _ in 0..2 {
        produce(&mut client, 9, id, vec![(0, batch(Compression::None, NOW_MS, 1))]).await;
    }
    let request = |version, named: &[i64]| {
        let mut request = fetch_request(version, id, 0);
        let [topic] = &mut request.topics[..] else { panic!("one topic") };
        let part = topic.partitions[0].clone();
        topic.partitions = named.iter().map(|offset| part.clone().with_fetch_offset(*offset)).collect();
        request
    };
    for version in [4, 7, 13] {
        let answer = client.call(&request(version, &[0, 99, 1]), version).await;
        let [part] = &answer.responses[0].partitions[..] else { panic!("version {version}") };
        let mut records = part.records.clone().unwrap();
        let first = kafka_protocol::records::RecordBatchDecoder::decode(&mut records).unwrap();
        assert_eq!((part.error_code, first.records[0].offset), (0, 1), "version {version}");
    }
}

#[tokio::test]
async fn a_topic_that_is_to_be_deleted_twice_stays() {
    let (opened, mut client, id) = ready().await;
    let named = |topic: &str| DeleteTopicState::default().with_name(Some(name(topic)));
    let by_id = |id| DeleteTopicState::default().with_topic_id(id).with_name(None);
    for (topics, results) in [
        (vec![named("t"), named("t"), named("t")], 1),
        (vec![by_id(id), by_id(id)], 1),
        (vec![named("t"), by_id(id)], 1),
        (vec![by_id(id), named("t"), named("none")], 2),
        (vec![by_id(Uuid::nil())], 1),
    ] {
        let what = format!("{topics:?}");
        let answer = client.call(&DeleteTopicsRequest::default().with_topics(topics), 6).await;
        assert_eq!(answer.responses.len(), results, "{what}");
        let refused = answer.responses.iter().filter(|r| r.error_code == INVALID_REQUEST).count();
        assert_eq!(refused, 1, "{what}");
    }
    assert!(opened.broker.replica.read(|view| view.names.topic("t").is_some()));
}

#[tokio::test]
async fn a_resource_that_is_altered_twice_is_not_altered() {
    let (_opened, mut client, _) = ready().await;
    let config = AlterableConfig::default().with_name(text("retention.ms")).with_value(Some(text("5000")));
    let resource = |topic: &str| {
        AlterConfigsResource::default()
            .with_resource_type(2)
            .with_resource_name(text(topic))
            .with_configs(vec![config.clone()])
    };
    let resources = vec![resource("t"), resource("t")];
    let answer = client.call(&AlterConfigsRequest::default().with_resources(resources), 2).await;
    assert_eq!(answer.responses.iter().map(|r| r.error_code).collect::<Vec<_>>(), [INVALID_REQUEST; 2]);
    let config = incremental_alter_configs_request::AlterableConfig::default()
        .with_name(text("retention.ms"))
        .with_value(Some(text("5000")));
    let resource = incremental_alter_configs_request::AlterConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(text("t"))
        .with_configs(vec![config]);
    let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource.clone(), resource]);
    let answer = client.call(&request, 1).await;
    assert_eq!(answer.responses.iter().map(|r| r.error_code).collect::<Vec<_>>(), [INVALID_REQUEST; 2]);
}

#[tokio::test]
async fn a_request_creates_so_many_partitions_and_no_more() {
    let (opened, mut client) = opened_with(&[]).await;
    let topics = vec![creatable("a", 5_000), creatable("b", 5_000), creatable("c", 1)];
    let answer = client.call(&CreateTopicsRequest::default().with_topics(topics), 7).await;
    assert_eq!(answer.topics.iter().map(|t| t.error_code).collect::<Vec<_>>(), [POLICY_VIOLATION; 3]);
    assert_eq!(opened.broker.replica.read(|view| view.state.partition_count()), 0);
    client.create_topic("a", 10_000, &[]).await;
    let grown = |count| {
        let topic = CreatePartitionsTopic::default().with_name(name("a")).with_count(count);
        CreatePartitionsRequest::default().with_topics(vec![topic.with_assignments(None)])
    };
    for (count, code) in [(20_001, POLICY_VIOLATION), (20_000, 0)] {
        assert_eq!(client.call(&grown(count), 3).await.results[0].error_code, code, "{count}");
    }
    assert_eq!(opened.broker.replica.read(|view| view.state.partition_count()), 20_000);
}

#[tokio::test]
async fn the_cluster_has_room_for_so_many_partitions() {
    let (opened, mut client) = opened_with(&["--max-partitions", "5", "--num-partitions", "2"]).await;
    client.create_topic("a", 3, &[]).await;
    for validate_only in [true, false] {
        let request = CreateTopicsRequest::default().with_topics(vec![creatable("b", 3)]);
        let answer = client.call(&request.with_validate_only(validate_only), 7).await;
        assert_eq!(answer.topics[0].error_code, POLICY_VIOLATION);
        assert!(answer.topics[0].error_message.as_ref().unwrap().contains("max_partitions"));
    }
    // By naming them, one of two topics is created.
    let request = MetadataRequest::default().with_topics(Some(names_of(&["n1", "n2"])));
    let answer = client.call(&request.with_allow_auto_topic_creation(true), 9).await;
    let unknown = ResponseError::UnknownTopicOrPartition.code();
    assert_eq!(answer.topics.iter().map(|t| t.error_code).collect::<Vec<_>>(), [0, unknown]);
    let topic = CreatePartitionsTopic::default().with_name(name("a")).with_count(4).with_assignments(None);
    let answer = client.call(&CreatePartitionsRequest::default().with_topics(vec![topic]), 3).await;
    assert_eq!(answer.results[0].error_code, POLICY_VIOLATION);
    // What is deleted makes room.
    let gone = DeleteTopicState::default().with_name(Some(name("a")));
    client.call(&DeleteTopicsRequest::default().with_topics(vec![gone]), 6).await;
    client.create_topic("b", 3, &[]).await;
    assert_eq!(opened.broker.replica.read(|view| view.state.partition_count()), 5);
}

#[tokio::test]
async fn a_cluster_that_remembers_as_many_producers_as_it_may_takes_those_and_no_more() {
    let (opened, mut client) = opened_with(&["--max-producers", "2"]).await;
    let id = client.create_topic("t", 2, &[]).await;
    let first =
        client.call(&InitProducerIdRequest::default().with_transactional_id(None), 4).await.producer_id.0;
    let code = async |client: &mut TestClient, partition, batch| {
        produce(client, 9, id, vec![(partition, batch)]).await.responses[0].partition_responses[0].error_code
    };
    assert_eq!(code(&mut client, 0, by_producer(first, 0)).await, 0);
    assert_eq!(code(&mut client, 1, by_producer(first, 0)).await, 0);
    let second =
        client.call(&InitProducerIdRequest::default().with_transactional_id(None), 4).await.producer_id.0;
    assert_eq!(code(&mut client, 0, by_producer(second, 0)).await, POLICY_VIOLATION);
    assert_eq!(code(&mut client, 0, by_producer(first, 1)).await, 0, "whoever is known goes on");
    assert_eq!(code(&mut client, 0, batch(Compression::None, NOW_MS, 1)).await, 0);
    assert_eq!(opened.broker.replica.read(|view| view.state.producer_count()), 2);
}

#[tokio::test]
async fn a_produce_to_more_partitions_than_a_flush_takes_is_written_as_a_whole() {
    let (opened, mut client) = opened_with(&[]).await;
    let partitions = FLUSH_ENTRIES + 1;
    let topics = partitions.div_ceil(10_000);
    for topic in 0..topics {
        client.create_topic(&format!("t{topic}"), 10_000, &[]).await;
    }
    let one = batch(Compression::None, NOW_MS, 1);
    let data = |topic: usize| {
        let count = (partitions - topic * 10_000).min(10_000);
        let data = PartitionProduceData::default().with_records(Some(one.clone()));
        let data = (0..).take(count).map(|index| data.clone().with_index(index)).collect();
        TopicProduceData::default().with_name(name(&format!("t{topic}"))).with_partition_data(data)
    };
    let request = ProduceRequest::default().with_acks(-1).with_timeout_ms(100_000);
    let request = request.with_topic_data((0..topics).map(data).collect());
    let answer = client.call(&request, 9).await;
    let parts = answer.responses.iter().flat_map(|topic| &topic.partition_responses);
    let codes: Vec<(i16, i64)> = parts.map(|part| (part.error_code, part.base_offset)).collect();
    assert_eq!(codes, vec![(0, 0); partitions]);
    let objects = opened.broker.replica.read(|view| view.state.objects().len());
    assert_eq!(objects, partitions.div_ceil(REQUEST_PART_ENTRIES));
    // And the flusher goes on.
    let small = data(topics - 1);
    let request =
        ProduceRequest::default().with_acks(-1).with_timeout_ms(10_000).with_topic_data(vec![small]);
    let answer = client.call(&request, 9).await;
    assert_eq!(answer.responses[0].partition_responses[0].base_offset, 1);
}

/// Keeps all places of a kind taken until the sender is dropped.
fn occupied(broker: &Arc<Broker>, kind: Kind, places: usize) -> std::sync::mpsc::SyncSender<()> {
    let (release, released) = std::sync::mpsc::sync_channel::<()>(0);
    let released = Arc::new(std::sync::Mutex::new(released));
    for _ in 0..places {
        let (serving, released) = (broker.clone(), released.clone());
        broker.tasks.start(crate::tasks::TaskKind::Background, "occupies", async move {
            let wait = move || released.lock().unwrap().recv().is_ok();
            serving.compute.run(kind, wait).await;
        });
    }
    release
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looking_up_times_waits_for_a_place_of_its_own_and_has_an_end() {
    let (opened, mut client, id) = ready().await;
    produce(&mut client, 9, id, vec![(0, batch(Compression::Zstd, NOW_MS, 5))]).await;
    let request = |timestamp, timeout_ms| {
        let partition = ListOffsetsPartition::default().with_timestamp(timestamp);
        let topic = ListOffsetsTopic::default().with_name(name("t")).with_partitions(vec![partition]);
        ListOffsetsRequest::default().with_topics(vec![topic]).with_timeout_ms(timeout_ms)
    };
    let release = occupied(&opened.broker, Kind::Lookup, LOOKUPS_AT_ONCE);
    tokio::time::sleep(A_WHILE).await;
    let answer = client.call(&request(NOW_MS + 3, 50), 10).await;
    let timed_out = ResponseError::RequestTimedOut.code();
    assert_eq!(answer.topics[0].partitions[0].error_code, timed_out);
    let answer = client.call(&request(-1, 50), 10).await;
    assert_eq!((answer.topics[0].partitions[0].error_code, answer.topics[0].partitions[0].offset), (0, 5));
    drop(release);
    let answer = client.call(&request(NOW_MS + 3, 10_000), 10).await;
    assert_eq!((answer.topics[0].partitions[0].error_code, answer.topics[0].partitions[0].offset), (0, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressing_anew_waits_for_a_place_of_its_own_within_the_request_s_time() {
    let (opened, mut client, id) = ready().await;
    let packed = client.create_topic("packed", 1, &[("compression.type", "zstd")]).await;
    let release = occupied(&opened.broker, Kind::Batch, BATCHES_OPENED_AT_ONCE);
    tokio::time::sleep(A_WHILE).await;
    let request = |topic, codec, timeout_ms| {
        produce_request(13, topic, vec![(0, batch(codec, NOW_MS, 1))]).with_timeout_ms(timeout_ms)
    };
    let answer = client.call(&request(packed, Compression::Gzip, 50), 13).await;
    let timed_out = ResponseError::RequestTimedOut.code();
    assert_eq!(answer.responses[0].partition_responses[0].error_code, timed_out);
    let answer = client.call(&request(id, Compression::None, 10_000), 13).await;
    assert_eq!(answer.responses[0].partition_responses[0].error_code, 0);
    drop(release);
    let answer = client.call(&request(packed, Compression::Gzip, 10_000), 13).await;
    assert_eq!(answer.responses[0].partition_responses[0].error_code, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_request_becomes_by_being_compressed_anew_has_a_bound() {
    let (_opened, mut client) = opened_with(&[]).await;
    let topic = client.create_topic("open", 100, &[("compression.type", "uncompressed")]).await;
    let of_a_thousand = i32::try_from(batch(Compression::None, NOW_MS, 1_000).len()).unwrap();
    let large = batch(Compression::Zstd, NOW_MS, 1_000_000_000 / of_a_thousand);
    let data: Vec<(i32, Bytes)> = (0..100).map(|partition| (partition, large.clone())).collect();
    let sent: usize = data.iter().map(|(_, batch)| batch.len()).sum();
    let request = produce_request(13, topic, data).with_timeout_ms(60_000);
    let answer = client.call(&request, 13).await;
    let codes: Vec<i16> = answer.responses[0].partition_responses.iter().map(|p| p.error_code).collect();
    let taken = codes.iter().take_while(|code| **code == 0).count();
    assert!((60..=70).contains(&taken), "{taken} of a megabyte each, of {sent} bytes");
    let too_large = ResponseError::MessageTooLarge.code();
    assert!(codes[taken..].iter().all(|code| *code == too_large), "{codes:?}");
    // What has grown beyond what the topic takes is not even opened.
    let huge = batch(Compression::Zstd, NOW_MS, 2_000_000_000 / of_a_thousand);
    let answer = client.call(&produce_request(13, topic, vec![(0, huge)]), 13).await;
    assert_eq!(answer.responses[0].partition_responses[0].error_code, too_large);
}

#[tokio::test(start_paused = true)]
async fn requests_that_grow_are_few_at_a_time() {
    let (opened, mut client) = opened_with(&[]).await;
    let topic = client.create_topic("packed", 1, &[("compression.type", "zstd")]).await;
    let mut places = Vec::new();
    for _ in 0..GROWING_AT_ONCE {
        places.push(opened.broker.compute.growth().await);
    }
    let request = produce_request(13, topic, vec![(0, batch(Compression::Gzip, NOW_MS, 1))]);
    let code = async |client: &mut TestClient| {
        client.call(&request, 13).await.responses[0].partition_responses[0].error_code
    };
    assert_eq!(code(&mut client).await, ResponseError::RequestTimedOut.code());
    places.pop();
    assert_eq!(code(&mut client).await, 0);
}

/// A flush costs by the partitions that it writes to, not by how many requests it has for them.
#[tokio::test(start_paused = true)]
async fn many_small_requests_to_one_partition_cost_one_put() {
    let flags = ["--put-budget-per-s", "1", "--put-budget-burst", "3600", "--linger-ms", "100"];
    let world = World::new();
    let opened = world.broker(1, &flags).await;
    let id = TestClient::connect(&opened.broker).create_topic("t", 1, &[]).await;
    let request = frame(&produce_request(13, id, vec![(0, batch(Compression::None, NOW_MS, 1))]), 13, 1);
    let mut clients: Vec<TestClient> = (0..20).map(|_| TestClient::connect(&opened.broker)).collect();
    for client in &mut clients {
        client.send_raw(&request.repeat(50)).await;
    }
    for client in &mut clients {
        for _ in 0..50 {
            client.receive_raw().await.unwrap();
        }
    }
    let puts = world.store.list(ObjectKey::WAL_PREFIX, None, 1_000).await.unwrap().len();
    let puts = f64::from(u32::try_from(puts).unwrap());
    let spent = 3_600.0 - metric::<f64>(&opened, "strandline_put_budget_saved");
    assert!(spent <= puts, "{spent} for {puts}");
}

#[tokio::test]
async fn what_a_client_says_of_its_software_is_short() {
    let (_opened, mut client) = opened_with(&[]).await;
    let version = |letters: usize| {
        let text = StrBytes::from_string("x".repeat(letters));
        ApiVersionsRequest::default()
            .with_client_software_name(text.clone())
            .with_client_software_version(text)
    };
    for (letters, code) in [(256, INVALID_REQUEST), (255, 0)] {
        assert_eq!(client.call(&version(letters), 3).await.error_code, code);
    }
}

#[tokio::test]
async fn a_value_that_is_too_long_is_not_even_split() {
    let (_opened, mut client, _) = ready().await;
    let config = incremental_alter_configs_request::AlterableConfig::default()
        .with_name(text("cleanup.policy"))
        .with_value(Some(text("compact,".repeat(100_000))));
    for operation in [2, 3] {
        let resource = incremental_alter_configs_request::AlterConfigsResource::default()
            .with_resource_type(2)
            .with_resource_name(text("t"))
            .with_configs(vec![config.clone().with_config_operation(operation)]);
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
        let answer = client.call(&request, 1).await;
        assert_eq!(answer.responses[0].error_code, ResponseError::InvalidConfig.code(), "{operation}");
    }
}

#[tokio::test]
async fn topics_without_partitions_count_as_one_each() {
    let (_opened, mut client) = opened_with(&[]).await;
    let topics = (0..10_001).map(|i| creatable(&format!("t.{i}"), 0)).collect();
    let answer = client.call(&CreateTopicsRequest::default().with_topics(topics), 7).await;
    assert!(answer.topics.iter().all(|topic| topic.error_code == POLICY_VIOLATION));
}

#[tokio::test(start_paused = true)]
async fn a_fetch_of_very_many_partitions_is_answered_in_time_however_many_there_are() {
    let (opened, mut client) = opened_with(&[]).await;
    let id = client.create_topic("many", 9_000, &[]).await;
    let places = [opened.broker.compute.answer().await, opened.broker.compute.answer().await];
    assert_eq!(LARGE_ANSWERS_AT_ONCE, 2);
    let mut fetch = fetch_request(12, id, 0);
    let one = fetch.topics[0].partitions[0].clone();
    fetch.topics[0].topic = name("many");
    fetch.topics[0].partitions = (0..9_000).map(|partition| one.clone().with_partition(partition)).collect();
    let began = tokio::time::Instant::now();
    let answer = client.call(&fetch, 12).await;
    assert_eq!((answer.error_code, answer.responses.len()), (ResponseError::RequestTimedOut.code(), 0));
    assert!(began.elapsed() < Duration::from_secs(3), "its half second and two more");
    drop(places);
    let answer = client.call(&fetch, 12).await;
    assert_eq!((answer.error_code, answer.responses[0].partitions.len()), (0, 9_000));
}

#[tokio::test]
async fn metadata_of_very_many_partitions_are_built_a_few_at_a_time() {
    let (opened, mut client, _) = ready().await;
    client.create_topic("many", 9_000, &[]).await;
    let mut places = Vec::new();
    for _ in 0..LARGE_ANSWERS_AT_ONCE {
        places.push(opened.broker.compute.answer().await);
    }
    let mut small = TestClient::connect(&opened.broker);
    let named = MetadataRequest::default().with_topics(Some(names_of(&["t"])));
    assert_eq!(small.call(&named, 9).await.topics[0].partitions.len(), 2);
    for topics in [None, Some(names_of(&["many"]))] {
        let request = MetadataRequest::default().with_topics(topics);
        let mut call = Box::pin(client.call(&request, 9));
        assert!(timeout(A_WHILE, &mut call).await.is_err(), "there is no place");
        places.pop();
        let answer = call.await;
        assert_eq!(answer.topics[0].partitions.len(), 9_000);
        places.push(opened.broker.compute.answer().await);
    }
}

/// Commits for the first partitions of a topic. A key of 256 partitions takes 600 kB of metadata.
async fn commit_all(client: &mut TestClient, group: &str, topic: &str, partitions: i32, metadata: usize) {
    let partition = |index| {
        OffsetCommitRequestPartition::default()
            .with_partition_index(index)
            .with_committed_offset(7)
            .with_committed_metadata(Some(text("x".repeat(metadata))))
    };
    let topic = OffsetCommitRequestTopic::default().with_name(name(topic));
    let topic = topic.with_partitions((0..partitions).map(partition).collect());
    let request = OffsetCommitRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic]);
    let answer = client.call(&request, 8).await;
    let code = answer.topics[0].partitions.iter().find(|p| p.error_code != 0).map(|p| p.error_code);
    assert_eq!(code, None);
}

/// What these groups have committed, all of it.
fn all_offsets_of(groups: &[&str]) -> OffsetFetchRequest {
    let group =
        |id: &&str| OffsetFetchRequestGroup::default().with_group_id(GroupId(text(*id))).with_topics(None);
    OffsetFetchRequest::default().with_groups(groups.iter().map(group).collect())
}

#[tokio::test]
async fn offsets_of_very_many_partitions_are_answered_a_few_at_a_time() {
    let (opened, mut client, _) = ready().await;
    client.create_topic("many", 9_000, &[]).await;
    commit_all(&mut client, "large", "many", 9_000, 0).await;
    commit_all(&mut client, "long", "many", 600, 2_000).await;
    commit_all(&mut client, "small", "t", 2, 0).await;
    let mut places = Vec::new();
    for _ in 0..LARGE_ANSWERS_AT_ONCE {
        places.push(opened.broker.compute.answer().await);
    }
    let mut small = TestClient::connect(&opened.broker);
    let answer = small.call(&all_offsets_of(&["small"]), 8).await;
    assert_eq!(answer.groups[0].topics[0].partitions.len(), 2);
    for (group, partitions) in [("large", 9_000), ("long", 600)] {
        let request = all_offsets_of(&[group]);
        let mut call = Box::pin(client.call(&request, 8));
        assert!(timeout(A_WHILE, &mut call).await.is_err(), "there is no place");
        places.pop();
        let answer = call.await;
        let found = &answer.groups[0].topics[0].partitions;
        assert!(found.len() == partitions && found.iter().all(|p| p.committed_offset == 7));
        places.push(opened.broker.compute.answer().await);
    }
}

#[tokio::test]
async fn groups_whose_offsets_do_not_fit_into_one_answer_are_to_be_asked_again() {
    let (_opened, mut client, _) = ready().await;
    client.create_topic("many", 2_200, &[]).await;
    for group in ["a", "b", "c"] {
        commit_all(&mut client, group, "many", 2_200, 2_000).await;
    }
    commit_all(&mut client, "small", "t", 2, 0).await;
    let partitions = |answer: &OffsetFetchResponse| -> Vec<(i16, usize)> {
        let count = |topics: &[OffsetFetchResponseTopics]| topics.iter().map(|t| t.partitions.len()).sum();
        answer.groups.iter().map(|g| (g.error_code, count(&g.topics))).collect()
    };
    let again = ResponseError::CoordinatorLoadInProgress.code();
    let answer = client.call(&all_offsets_of(&["a", "b", "c", "small"]), 8).await;
    let codes: Vec<i16> = answer.groups.iter().map(|g| g.error_code).collect();
    assert_eq!(codes, [0, again, again, 0]);
    let answer = client.call(&all_offsets_of(&["b"]), 8).await;
    assert_eq!(partitions(&answer), [(0, 2_200)]);
}

#[tokio::test(start_paused = true)]
async fn fetches_of_a_connection_wait_for_each_other() {
    let (_opened, mut client, id) = ready().await;
    let fetch = fetch_request(12, id, 0);
    for correlation_id in [1, 2] {
        client.send_raw(&frame(&fetch, 12, correlation_id)).await;
    }
    let began = tokio::time::Instant::now();
    let mut answered = Vec::new();
    for _ in 0..2 {
        client.receive_raw().await.unwrap();
        answered.push(began.elapsed().as_millis() / 500);
    }
    assert_eq!(answered, [1, 2], "each waits for its own half second");
}
