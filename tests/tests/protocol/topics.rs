//! Topics: made by name, by mention, by many at once; known everywhere; gone everywhere.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::{
    ApiVersionsRequest, ApiVersionsResponse, CreatePartitionsRequest, CreateTopicsRequest, MetadataRequest,
};
use kafka_protocol::protocol::Decodable;
use kafka_protocol::records::Compression;
use strandline_tests::client::{Client, ClientError, topic};
use strandline_tests::records::batch;
use strandline_tests::surroundings::now_ms;
use strandline_tests::workload::create_topic;

use crate::{error, refused, shared};

/// What Metadata says of one topic.
async fn described(client: &mut Client, name: &str, creates: bool) -> MetadataResponseTopic {
    let asked = MetadataRequestTopic::default().with_name(Some(topic(name)));
    let request =
        MetadataRequest::default().with_topics(Some(vec![asked])).with_allow_auto_topic_creation(creates);
    client.call(&request, 12).await.expect("metadata").topics.remove(0)
}

async fn create(client: &mut Client, name: &str, partitions: i32) -> Option<ResponseError> {
    let wanted = CreatableTopic::default()
        .with_name(topic(name))
        .with_num_partitions(partitions)
        .with_replication_factor(-1);
    let request = CreateTopicsRequest::default().with_topics(vec![wanted]).with_timeout_ms(30_000);
    error(client.call(&request, 7).await.expect("an answer").topics[0].error_code)
}

#[tokio::test]
async fn a_mention_creates_a_topic_if_it_may() {
    let cluster = shared().await;
    let (mut a, mut b) = (cluster.client(0).await, cluster.client(1).await);
    let unknown = Some(ResponseError::UnknownTopicOrPartition);
    assert_eq!(error(described(&mut a, "mentioned", false).await.error_code), unknown);
    let made = described(&mut a, "mentioned", true).await;
    assert_eq!((made.error_code, made.partitions.len()), (0, 1));
    let known = described(&mut b, "mentioned", false).await;
    assert_eq!((known.error_code, known.topic_id), (0, made.topic_id), "another broker knows it at once");
    let record = batch(&["p"], now_ms(), None, Compression::None);
    let answer = b.produce("produced", 0, record).await;
    assert!(matches!(answer, Err(ClientError::Kafka(ResponseError::UnknownTopicOrPartition))), "{answer:?}");
    assert_eq!(
        error(described(&mut a, "produced", false).await.error_code),
        unknown,
        "a produce creates nothing"
    );
    for internal in ["__consumer_offsets", "__transaction_state"] {
        assert_eq!(error(described(&mut a, internal, true).await.error_code), unknown, "{internal}");
    }
}

#[tokio::test]
async fn names_keep_kafkas_rules() {
    let cluster = shared().await;
    let mut client = cluster.client(0).await;
    let longest = "n".repeat(249);
    for good in ["a.good-Name_1", "...", longest.as_str()] {
        assert_eq!(create(&mut client, good, 1).await, None, "{good}");
    }
    let too_long = "n".repeat(250);
    for bad in ["", ".", "..", "a/b", "../x", "a b", "ä", "a\u{0}b", "a\nb", too_long.as_str()] {
        let code = create(&mut client, bad, 1).await;
        assert_eq!(code, Some(ResponseError::InvalidTopicException), "{bad:?}");
        let code = error(described(&mut client, bad, true).await.error_code);
        assert_eq!(code, Some(ResponseError::InvalidTopicException), "{bad:?} by mention");
    }
    assert_eq!(create(&mut client, "a_good-Name.1", 1).await, Some(ResponseError::InvalidTopicException));
    assert_eq!(create(&mut client, "a.good-Name_1", 1).await, Some(ResponseError::TopicAlreadyExists));
    for partitions in [0, -2] {
        let code = create(&mut client, "partitions", partitions).await;
        assert_eq!(code, Some(ResponseError::InvalidPartitions), "{partitions}");
    }
    for too_many in [10_001, i32::MAX] {
        let code = create(&mut client, "partitions", too_many).await;
        assert_eq!(code, Some(ResponseError::PolicyViolation), "{too_many}, more than a request may make");
    }
}

#[tokio::test]
async fn of_many_who_create_a_topic_one_does() {
    let cluster = shared().await;
    for round in 0..5 {
        let name = format!("race-{round}");
        let outcomes = join_all((0..9).map(|i| {
            let (cluster, name) = (&cluster, &name);
            async move { create(&mut cluster.client(i % 3).await, name, 2).await }
        }))
        .await;
        let made = outcomes.iter().filter(|o| o.is_none()).count();
        assert_eq!(made, 1, "{outcomes:?}");
        let others = outcomes.iter().flatten().all(|e| *e == ResponseError::TopicAlreadyExists);
        assert!(others, "{outcomes:?}");
        let mut ids = BTreeSet::new();
        for i in 0..3 {
            ids.insert(described(&mut cluster.client(i).await, &name, false).await.topic_id);
        }
        assert_eq!(ids.len(), 1, "every broker has the same id");
    }
}

#[tokio::test]
async fn a_deleted_topic_is_gone_everywhere_and_comes_back_as_another() {
    let cluster = shared().await;
    create_topic(&cluster.addresses(), "phoenix", 2).await;
    let mut clients = [cluster.client(0).await, cluster.client(1).await, cluster.client(2).await];
    let mut ids = BTreeSet::new();
    for life in 0..6 {
        let i = life % 3;
        let record = batch(&["p"], now_ms(), None, Compression::None);
        assert_eq!(clients[i].produce("phoenix", 1, record).await.expect("it is written"), 0);
        assert!(ids.insert(described(&mut clients[i], "phoenix", false).await.topic_id));
        clients[(i + 1) % 3].delete_topic("phoenix").await.expect("it is deleted");
        let code = refused(clients[i].list_offset("phoenix", 1, -1).await);
        assert_eq!(code, ResponseError::UnknownTopicOrPartition);
        let again = refused(clients[(i + 2) % 3].delete_topic("phoenix").await);
        assert_eq!(again, ResponseError::UnknownTopicOrPartition);
        assert_eq!(create(&mut clients[(i + 2) % 3], "phoenix", 2).await, None);
        assert_eq!(clients[i].list_offset("phoenix", 1, -1).await.expect("an offset"), 0, "it is empty");
    }
}

#[tokio::test]
async fn added_partitions_are_known_everywhere_at_once() {
    let cluster = shared().await;
    create_topic(&cluster.addresses(), "grows", 1).await;
    let mut clients = [cluster.client(0).await, cluster.client(1).await, cluster.client(2).await];
    for count in 2..12 {
        let i = count as usize % 3;
        let wanted = CreatePartitionsTopic::default()
            .with_name(topic("grows"))
            .with_count(count)
            .with_assignments(None);
        let request = CreatePartitionsRequest::default().with_topics(vec![wanted]).with_timeout_ms(30_000);
        let response = clients[i].call(&request, 3).await.expect("an answer");
        assert_eq!(response.results[0].error_code, 0);
        let end = clients[(i + 1) % 3].list_offset("grows", count - 1, -1).await.expect("it is known");
        assert_eq!(end, 0);
        let record = batch(&["g"], now_ms(), None, Compression::None);
        let offset =
            clients[(i + 2) % 3].produce("grows", count - 1, record).await.expect("it takes records");
        assert_eq!(offset, 0);
    }
}

#[tokio::test]
async fn metadata_names_every_broker_and_a_leader_for_each_partition() {
    let cluster = shared().await;
    create_topic(&cluster.addresses(), "led", 30).await;
    let mut leaders = Vec::new();
    for i in 0..3 {
        let mut client = cluster.client(i).await;
        let response = client.metadata(&["led"]).await.expect("metadata");
        let mut brokers: Vec<String> =
            response.brokers.iter().map(|b| format!("{}:{}", b.host.as_str(), b.port)).collect();
        brokers.sort();
        let mut expected = cluster.addresses();
        expected.sort();
        assert_eq!(brokers, expected);
        let led: Vec<i32> = response.topics[0].partitions.iter().map(|p| p.leader_id.0).collect();
        assert_eq!(led.iter().collect::<BTreeSet<_>>().len(), 3, "all brokers share the partitions");
        leaders.push(led);
    }
    assert!(leaders.windows(2).all(|w| w[0] == w[1]), "every broker says the same");
}

#[tokio::test]
async fn an_unknown_version_of_api_versions_is_answered_in_version_0() {
    let cluster = shared().await;
    let mut client = cluster.client(0).await;
    client.set_timeout(Duration::from_secs(20));
    let mut frame = Vec::from(18_i16.to_be_bytes());
    frame.extend(99_i16.to_be_bytes());
    frame.extend(4242_i32.to_be_bytes());
    frame.extend([0xff, 0xff, 0]);
    let length = (frame.len() as i32).to_be_bytes();
    client.send_raw(&[&length[..], &frame].concat()).await.expect("it is sent");
    let mut answer = client.receive_raw().await.expect("an answer");
    assert_eq!(answer.split_to(4), 4242_i32.to_be_bytes()[..]);
    let response = ApiVersionsResponse::decode(&mut answer, 0).expect("version 0");
    assert_eq!(error(response.error_code), Some(ResponseError::UnsupportedVersion));
    assert!(response.api_keys.iter().any(|k| k.api_key == 18 && k.max_version >= 3));
    // And the connection goes on.
    let request = ApiVersionsRequest::default()
        .with_client_software_name(strandline_tests::client::text("tests"))
        .with_client_software_version(strandline_tests::client::text("1"));
    let response = client.call(&request, 3).await.expect("an answer");
    assert_eq!(response.error_code, 0);
}
