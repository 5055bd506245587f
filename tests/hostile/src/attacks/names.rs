//! Requests that name one thing many times, or things that are dear.

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::consumer_group_heartbeat_request::TopicPartitions;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestGroup;
use kafka_protocol::messages::{
    ConsumerGroupHeartbeatRequest, CreateTopicsRequest, DescribeConfigsRequest, DescribeGroupsRequest,
    GroupId, ListOffsetsRequest, MetadataRequest, OffsetCommitRequest, OffsetFetchRequest,
};
use strandline_tests::client::{Client, ClientError, fetch_request, frame, text, topic};

use super::{QUIET, Target, WIDE, WIDE_PARTITIONS};

/// How often a topic is named.
const NAMED: usize = 100_000;
/// Names in one request, as many as may be decoded.
const NOBODYS_NAMES: u32 = 600_000;
const NAME_LETTERS: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
/// How often a group is named.
const GROUPS: usize = 300;
/// Requests that wait on a connection.
const PIPELINED: usize = 60;
const TOPIC_RESOURCE: i8 = 2;

/// Answers that grow with the cluster, behind one that takes a minute.
pub(super) async fn behind_a_long_poll(target: Target, _: usize) {
    let mut frames = BytesMut::new();
    let waiting = fetch_request(QUIET, &[(0, 0)], 60_000, 1 << 20).with_min_bytes(i32::MAX);
    frames.extend(frame(&waiting, 11, 1, "hostile"));
    for _ in 0..PIPELINED {
        frames.extend(frame(&MetadataRequest::default().with_topics(None), 12, 1, "hostile"));
    }
    let frames = frames.freeze();
    target
        .again(async |client| {
            client.send_raw(&frames).await?;
            std::future::pending::<Result<(), ClientError>>().await
        })
        .await;
}

/// One topic of many partitions, over and over.
pub(super) async fn metadata_twice(target: Target, _: usize) {
    let named = MetadataRequestTopic::default().with_name(Some(topic(WIDE)));
    exchange(
        &target,
        &frame(&MetadataRequest::default().with_topics(Some(vec![named; NAMED])), 9, 1, "hostile"),
    )
    .await;
}

/// Very many names that nobody has: each takes a few bytes, and many times as much once decoded.
pub(super) async fn names_of_nobody(target: Target, _: usize) {
    let named = |i: u32| {
        let name = [24, 18, 12, 6, 0].map(|shift| char::from(NAME_LETTERS[(i >> shift) as usize & 63]));
        MetadataRequestTopic::default().with_name(Some(topic(&String::from_iter(name))))
    };
    let request = MetadataRequest::default()
        .with_topics(Some((0..NOBODYS_NAMES).map(named).collect()))
        .with_allow_auto_topic_creation(false);
    exchange(&target, &frame(&request, 8, 1, "hostile")).await;
}

/// One topic's configs, over and over.
pub(super) async fn configs_twice(target: Target, _: usize) {
    let named = DescribeConfigsResource::default()
        .with_resource_type(TOPIC_RESOURCE)
        .with_resource_name(text(WIDE))
        .with_configuration_keys(None);
    let request = DescribeConfigsRequest::default().with_resources(vec![named; NAMED]);
    exchange(&target, &frame(&request, 4, 1, "hostile")).await;
}

/// One partition's end, over and over.
pub(super) async fn offsets_twice(target: Target, _: usize) {
    let named = ListOffsetsPartition::default().with_current_leader_epoch(-1).with_timestamp(-1);
    let topics =
        vec![ListOffsetsTopic::default().with_name(topic(QUIET)).with_partitions(vec![named; NAMED])];
    exchange(&target, &frame(&ListOffsetsRequest::default().with_topics(topics), 7, 1, "hostile")).await;
}

/// One group with many offsets, over and over.
pub(super) async fn groups_twice(target: Target, number: usize) {
    let group = format!("hostile-{number}");
    let partition = |index| OffsetCommitRequestPartition::default().with_partition_index(index);
    let topics = vec![
        OffsetCommitRequestTopic::default()
            .with_name(topic(WIDE))
            .with_partitions((0..WIDE_PARTITIONS).map(partition).collect()),
    ];
    let commit = OffsetCommitRequest::default().with_group_id(GroupId(text(&group))).with_topics(topics);
    let named = OffsetFetchRequestGroup::default().with_group_id(GroupId(text(&group))).with_topics(None);
    let offsets = OffsetFetchRequest::default().with_groups(vec![named; GROUPS]);
    let described = DescribeGroupsRequest::default().with_groups(vec![GroupId(text(&group)); GROUPS * 100]);
    target
        .again(async |client| {
            client.call(&commit, 8).await?;
            loop {
                client.call(&offsets, 8).await?;
                client.call(&described, 5).await?;
            }
        })
        .await;
}

/// Members whose patterns are dear to compile or to match.
pub(super) async fn patterns(target: Target, number: usize) {
    let dear =
        ["(\\w{1000}){50}", "(.*a){25}$", "((((a{30}){30}){30}){30})", "[\\p{L}\\p{N}]{200}", "(x+x+)+y"];
    let mut next = 0_usize;
    target
        .again(async |client| {
            loop {
                next += 1;
                let request = ConsumerGroupHeartbeatRequest::default()
                    .with_group_id(GroupId(text(&format!("patterns-{number}-{next}"))))
                    .with_member_id(text(&format!("member-{next}")))
                    .with_rebalance_timeout_ms(300_000)
                    .with_subscribed_topic_regex(Some(text(dear[next % dear.len()])))
                    .with_topic_partitions(Some(Vec::<TopicPartitions>::new()));
                client.call(&request, 1).await?;
            }
        })
        .await;
}

/// Topics of as many partitions as a topic may have, as many as a request takes.
pub(super) async fn huge_topics(target: Target, _: usize) {
    let mut round = 0;
    target
        .again(async |client| {
            round += 1;
            let wanted = |i| {
                CreatableTopic::default()
                    .with_name(topic(&format!("huge-{round}-{i}")))
                    .with_num_partitions(100_000)
                    .with_replication_factor(-1)
            };
            let request = CreateTopicsRequest::default()
                .with_topics((0..400).map(wanted).collect())
                .with_timeout_ms(30_000);
            client.call(&request, 7).await.map(drop)
        })
        .await;
}

/// Sends this, waits for the answer, and sends it again.
async fn exchange(target: &Target, request: &Bytes) {
    target
        .again(async |client: &mut Client| {
            loop {
                client.send_raw(request).await?;
                client.receive_raw().await?;
            }
        })
        .await;
}
