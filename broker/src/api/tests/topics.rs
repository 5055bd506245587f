//! Topics as tools ask for them: replicas, assignments, what is named twice, what must not come
//! into being.

use kafka_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use kafka_protocol::messages::create_partitions_request::CreatePartitionsAssignment;
use kafka_protocol::messages::create_topics_request::CreatableReplicaAssignment;
use kafka_protocol::messages::{AlterPartitionReassignmentsRequest, BrokerId};

use super::*;

fn ids(numbers: &[i32]) -> Vec<BrokerId> {
    numbers.iter().copied().map(BrokerId).collect()
}

fn assigned(lists: &[&[i32]]) -> CreatableTopic {
    let assignments = (0..).zip(lists).map(|(index, list)| {
        CreatableReplicaAssignment::default().with_partition_index(index).with_broker_ids(ids(list))
    });
    let assignments = assignments.collect();
    creatable("assigned", -1).with_replication_factor(-1).with_assignments(assignments)
}

/// Code of the answer, numbers of partitions and replicas.
async fn create(client: &mut TestClient, topic: CreatableTopic) -> (i16, i32, i16) {
    let response = client.call(&CreateTopicsRequest::default().with_topics(vec![topic]), 7).await;
    let [topic] = &response.topics[..] else { panic!("one topic was asked for") };
    assert_eq!(topic.error_code == 0, topic.error_message.is_none(), "null where Kafka's is");
    (topic.error_code, topic.num_partitions, topic.replication_factor)
}

/// The replicas of each partition, by Metadata and by DescribeTopicPartitions, all in sync.
async fn replicas(client: &mut TestClient, topic: &str) -> Vec<Vec<i32>> {
    let asked = MetadataRequestTopic::default().with_name(Some(name(topic)));
    let request = MetadataRequest::default().with_topics(Some(vec![asked]));
    let response = client.call(&request, 9).await;
    let shown = |partition: &kafka_protocol::messages::metadata_response::MetadataResponsePartition| {
        assert_eq!(partition.replica_nodes[0], partition.leader_id);
        assert_eq!(partition.replica_nodes, partition.isr_nodes, "never under-replicated");
        partition.replica_nodes.iter().map(|id| id.0).collect::<Vec<_>>()
    };
    let by_metadata: Vec<_> = response.topics[0].partitions.iter().map(shown).collect();
    let request = DescribeTopicPartitionsRequest::default()
        .with_topics(vec![TopicRequest::default().with_name(name(topic))])
        .with_response_partition_limit(100);
    let response = client.call(&request, 0).await;
    let described = response.topics[0].partitions.iter();
    let described: Vec<Vec<i32>> = described.map(|p| p.isr_nodes.iter().map(|id| id.0).collect()).collect();
    assert_eq!(described, by_metadata);
    by_metadata
}

/// Three brokers, and a client of the first.
async fn three() -> (World, [Opened; 3], TestClient) {
    let world = World::new();
    let brokers = [
        world.broker(1, &["--job-interval-ms", "10"]).await,
        world.broker(2, &[]).await,
        world.broker(3, &[]).await,
    ];
    let client = TestClient::connect(&brokers[0].broker);
    // Until the log knows that it was founded by this build.
    while brokers[0].broker.replica.state().feature_level() == 0 {
        tokio::time::sleep(tokio::time::Duration::from_millis(5)).await;
    }
    brokers[0].broker.replica.barrier().await.unwrap();
    (world, brokers, client)
}

#[tokio::test]
async fn as_many_replicas_are_shown_as_were_asked_for() {
    let (_world, brokers, mut client) = three().await;
    for factor in 1..=3 {
        let topic = format!("of-{factor}");
        let asked = creatable(&topic, 20).with_replication_factor(factor);
        assert_eq!(create(&mut client, asked).await, (0, 20, factor));
        for opened in &brokers {
            opened.broker.replica.barrier().await.unwrap();
            for shown in replicas(&mut TestClient::connect(&opened.broker), &topic).await {
                let mut distinct = shown.clone();
                distinct.sort_unstable();
                distinct.dedup();
                assert_eq!(i16::try_from(shown.len()), Ok(factor));
                assert_eq!(shown.len(), distinct.len());
            }
        }
    }
    let refused = ResponseError::InvalidReplicationFactor.code();
    for factor in [4, 0, -2] {
        let asked = creatable("refused", 1).with_replication_factor(factor);
        assert_eq!(create(&mut client, asked).await.0, refused, "{factor}");
    }
    assert_eq!(create(&mut client, creatable("default", 1).with_replication_factor(-1)).await, (0, 1, 1));
}

#[tokio::test]
async fn a_single_broker_does_not_take_more_replicas_than_it_is() {
    let (_opened, mut client, _) = ready().await;
    let asked = creatable("three", 1).with_replication_factor(3);
    assert_eq!(create(&mut client, asked).await.0, ResponseError::InvalidReplicationFactor.code());
}

#[tokio::test]
async fn assignments_by_hand_are_checked_as_by_kafka() {
    let (_world, _brokers, mut client) = three().await;
    let wrong = ResponseError::InvalidReplicaAssignment.code();
    for lists in [&[&[9][..]][..], &[&[]], &[&[1, 1]], &[&[1], &[1, 2]], &[&[-1]]] {
        assert_eq!(create(&mut client, assigned(lists)).await.0, wrong, "{lists:?}");
    }
    assert_eq!(create(&mut client, assigned(&[&[1, 2], &[3, 1]])).await, (0, 2, 2));
    let more = |lists: Option<&[&[i32]]>| {
        let lists = lists.map(|lists| {
            let list = |list: &&[i32]| CreatePartitionsAssignment::default().with_broker_ids(ids(list));
            lists.iter().map(list).collect()
        });
        let topic = CreatePartitionsTopic::default().with_name(name("assigned"));
        let topic = topic.with_count(3).with_assignments(lists);
        CreatePartitionsRequest::default().with_topics(vec![topic]).with_validate_only(true)
    };
    for lists in [&[&[9, 1][..]][..], &[&[]], &[&[1]], &[&[1, 1]], &[], &[&[1, 2], &[1, 2]]] {
        let response = client.call(&more(Some(lists)), 3).await;
        assert_eq!(response.results[0].error_code, wrong, "{lists:?}");
        assert!(response.results[0].error_message.is_some());
    }
    for lists in [None, Some(&[&[3, 2][..]][..])] {
        let response = client.call(&more(lists), 3).await;
        assert_eq!((response.results[0].error_code, &response.results[0].error_message), (0, &None));
    }
}

#[tokio::test]
async fn the_number_of_replicas_changes_for_a_whole_topic_at_once() {
    let (_world, _brokers, mut client) = three().await;
    create(&mut client, creatable("t", 2)).await;
    let reassign = |lists: &[Option<&[i32]>]| {
        let partitions = (0..).zip(lists).map(|(index, list)| {
            ReassignablePartition::default().with_partition_index(index).with_replicas(list.map(ids))
        });
        let topic = ReassignableTopic::default().with_name(name("t")).with_partitions(partitions.collect());
        AlterPartitionReassignmentsRequest::default().with_topics(vec![topic])
    };
    let codes = |response: kafka_protocol::messages::AlterPartitionReassignmentsResponse| {
        response.responses[0].partitions.iter().map(|p| p.error_code).collect::<Vec<_>>()
    };
    let wrong = ResponseError::InvalidReplicaAssignment.code();
    let all: Option<&[i32]> = Some(&[2, 3, 1]);
    let one = codes(client.call(&reassign(&[all]), 0).await);
    assert_eq!(one, [wrong], "the other partition would have another number");
    assert_eq!(codes(client.call(&reassign(&[Some(&[1, 9, 2]), all]), 0).await), [wrong, wrong]);
    let unchanged = reassign(&[all, all]).with_allow_replication_factor_change(false);
    assert_eq!(codes(client.call(&unchanged, 1).await), [wrong, wrong]);
    assert_eq!(codes(client.call(&reassign(&[all, all]), 0).await), [0, 0]);
    assert!(replicas(&mut client, "t").await.iter().all(|shown| shown.len() == 3));
    assert_eq!(codes(client.call(&reassign(&[all, None]), 0).await), [0, 85]);
    let shown = replicas(&mut client, "t").await;
    let leaders = [Some(&shown[0][..1]), Some(&shown[1][..1])];
    assert_eq!(codes(client.call(&reassign(&leaders), 0).await), [0, 0]);
    assert!(replicas(&mut client, "t").await.iter().all(|shown| shown.len() == 1));
}

#[tokio::test]
async fn what_is_named_twice_is_answered_once() {
    let (_opened, mut client, _) = ready().await;
    let invalid = ResponseError::InvalidRequest.code();
    let topics = vec![creatable("twice", 1), creatable("once", 1), creatable("twice", 2)];
    let response = client.call(&CreateTopicsRequest::default().with_topics(topics), 7).await;
    let answers: Vec<_> = response.topics.iter().map(|t| (&**t.name, t.error_code)).collect();
    assert_eq!(answers, [("twice", invalid), ("once", 0)]);
    let grow = |topic: &str| {
        CreatePartitionsTopic::default().with_name(name(topic)).with_count(3).with_assignments(None)
    };
    let request = CreatePartitionsRequest::default().with_topics(vec![grow("t"), grow("once"), grow("t")]);
    let response = client.call(&request, 3).await;
    let answers: Vec<_> = response.results.iter().map(|t| (&**t.name, t.error_code)).collect();
    assert_eq!(answers, [("t", invalid), ("once", 0)]);
}

#[tokio::test]
async fn a_cursor_names_a_topic_that_is_asked_for() {
    let (_opened, mut client, _) = ready().await;
    for (topic, partition, code) in [("a", 0, 42), ("t", -1, 42), ("t", 1, 0)] {
        let cursor = Cursor::default().with_topic_name(name(topic)).with_partition_index(partition);
        let request = DescribeTopicPartitionsRequest::default()
            .with_topics(vec![TopicRequest::default().with_name(name("t"))])
            .with_response_partition_limit(10)
            .with_cursor(Some(cursor));
        let response = client.call(&request, 0).await;
        assert_eq!(response.topics[0].error_code, code, "{topic} {partition}");
    }
}

#[tokio::test]
async fn a_produce_creates_no_topic() {
    let (_opened, mut client, _) = ready().await;
    for version in [3, 9, 12] {
        let mut request =
            produce_request(version, Uuid::nil(), vec![(0, batch(Compression::None, NOW_MS, 1))]);
        request.topic_data[0].name = name("gone");
        let response = client.call(&request, version).await;
        let code = response.responses[0].partition_responses[0].error_code;
        assert_eq!(code, ResponseError::UnknownTopicOrPartition.code());
    }
    let asked = MetadataRequestTopic::default().with_name(Some(name("gone")));
    let request = MetadataRequest::default().with_topics(Some(vec![asked]));
    let looked = client.call(&request.clone().with_allow_auto_topic_creation(false), 9).await;
    assert_eq!(looked.topics[0].error_code, ResponseError::UnknownTopicOrPartition.code());
    let allowed = client.call(&request.with_allow_auto_topic_creation(true), 9).await;
    assert_eq!(allowed.topics[0].error_code, 0, "Metadata with permission creates");
}

#[tokio::test]
async fn records_that_are_to_blame_are_named() {
    let (_opened, mut client, id) = ready().await;
    client.create_topic("compacted", 1, &[("cleanup.policy", "compact")]).await;
    // Records of these batches have no keys, and later ones later timestamps.
    let ahead = batch(Compression::Gzip, NOW_MS + 3_600_000 - 1, 4);
    let response = produce(&mut client, 9, id, vec![(0, ahead)]).await;
    let part = &response.responses[0].partition_responses[0];
    assert_eq!(part.error_code, ResponseError::InvalidTimestamp.code());
    let named: Vec<i32> = part.record_errors.iter().map(|r| r.batch_index).collect();
    assert_eq!(named, [2, 3]);
    let mut request = produce_request(8, id, vec![(0, batch(Compression::Lz4, NOW_MS, 2))]);
    request.topic_data[0].name = name("compacted");
    let response = client.call(&request, 8).await;
    let part = &response.responses[0].partition_responses[0];
    assert_eq!(part.error_code, ResponseError::InvalidRecord.code());
    assert_eq!(part.record_errors.len(), 2);
}

#[tokio::test]
async fn an_idle_producer_goes_on_after_it_was_forgotten() {
    let flags = ["--producer-id-expiration-ms", "50", "--job-interval-ms", "10", "--linger-ms", "1"];
    let opened = World::new().broker(1, &flags).await;
    let mut client = TestClient::connect(&opened.broker);
    let id = client.create_topic("t", 2, &[]).await;
    let init = InitProducerIdRequest::default().with_transactional_id(None);
    let own = client.call(&init, 5).await.producer_id.0;
    for first in [0, 3] {
        let written = vec![(0, super::admin::idempotent_batch(own, first, 3))];
        let response = produce(&mut client, 9, id, written).await;
        assert_eq!(response.responses[0].partition_responses[0].error_code, 0, "{first}");
        let forgotten = || {
            let state = opened.broker.replica.state();
            state.partition(id, 0).is_some_and(|p| !p.producers().contains_key(&own))
        };
        while !forgotten() {
            tokio::time::sleep(tokio::time::Duration::from_millis(10)).await;
        }
    }
}
