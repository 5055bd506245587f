//! DescribeTopicPartitions (key 75), version 0 (KIP-966).
//!
//! Topics in the order of their names, a page at a time: a cursor says where the next page begins.
//! An empty list stands for all topics. The topic of the cursor has to be asked for. There are no
//! eligible leader replicas to report: replication is the object store's.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::describe_topic_partitions_response::{
    Cursor, DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
};
use kafka_protocol::messages::{
    BrokerId, DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse, TopicName,
};

use super::{Call, text};
use crate::limits::DESCRIBED_PARTITIONS_PER_PAGE;
use crate::topics;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=0;

pub(super) async fn handle(
    call: &Call,
    request: DescribeTopicPartitionsRequest,
) -> DescribeTopicPartitionsResponse {
    let broker = &call.broker;
    let asked: BTreeSet<String> = request.topics.iter().map(|t| t.name.to_string()).collect();
    if let Some(cursor) = &request.cursor
        && (cursor.partition_index < 0 || !(asked.is_empty() || asked.contains(cursor.topic_name.as_str())))
    {
        return refused(&asked);
    }
    let missing: Vec<String> =
        broker.replica.read(|view| asked.iter().filter(|n| view.names.topic(n).is_none()).cloned().collect());
    if !missing.is_empty() {
        topics::learn(broker, &missing, false).await;
    }
    let limit = usize::try_from(request.response_partition_limit)
        .unwrap_or(0)
        .clamp(1, DESCRIBED_PARTITIONS_PER_PAGE);
    let start =
        request.cursor.map(|c| (c.topic_name.to_string(), u32::try_from(c.partition_index).unwrap_or(0)));
    broker.replica.read(|view| {
        let leaders = broker.leaders(&view.names, &call.client_id);
        let names: Vec<&String> =
            if asked.is_empty() { view.names.topics().keys().collect() } else { asked.iter().collect() };
        let mut response = DescribeTopicPartitionsResponse::default();
        let mut left = limit;
        for name in names {
            let first = match &start {
                Some((topic, _)) if name < topic => continue,
                Some((topic, partition)) if name == topic => *partition,
                _ => 0,
            };
            if left == 0 {
                response.next_cursor = Some(cursor(name, first));
                break;
            }
            let described = DescribeTopicPartitionsResponseTopic::default()
                .with_name(Some(TopicName(text(name.clone()))));
            let Some(topic) = view.names.topic(name) else {
                let code =
                    topics::check_name(name).err().map_or(ResponseError::UnknownTopicOrPartition, |e| e.code);
                response.topics.push(described.with_error_code(code.code()));
                continue;
            };
            let numbers = (first..topic.value.partitions).take(left);
            let partitions: Vec<_> = numbers
                .map(|number| {
                    let replicas = leaders.replicas(&topic.value, number);
                    let leader = replicas.first().copied().unwrap_or(BrokerId(-1));
                    DescribeTopicPartitionsResponsePartition::default()
                        .with_partition_index(number.cast_signed())
                        .with_leader_id(leader)
                        .with_leader_epoch(0)
                        .with_replica_nodes(replicas.clone())
                        .with_isr_nodes(replicas)
                        // Null would be allowed, but Java's admin client does not survive it.
                        .with_eligible_leader_replicas(Some(Vec::new()))
                        .with_last_known_elr(Some(Vec::new()))
                })
                .collect();
            left -= partitions.len();
            let next = first + u32::try_from(partitions.len()).unwrap_or(u32::MAX);
            response.topics.push(
                described
                    .with_topic_id(topic.value.topic_id)
                    .with_partitions(partitions)
                    .with_topic_authorized_operations(super::metadata::TOPIC_OPERATIONS),
            );
            if next < topic.value.partitions {
                response.next_cursor = Some(cursor(name, next));
                break;
            }
        }
        response
    })
}

/// As in Kafka, where the response has no other place for it: every topic gets the error.
fn refused(asked: &BTreeSet<String>) -> DescribeTopicPartitionsResponse {
    let topics = asked.iter().map(|name| {
        DescribeTopicPartitionsResponseTopic::default()
            .with_name(Some(TopicName(text(name.clone()))))
            .with_error_code(ResponseError::InvalidRequest.code())
    });
    DescribeTopicPartitionsResponse::default().with_topics(topics.collect())
}

fn cursor(topic: &str, partition: u32) -> Cursor {
    Cursor::default().with_topic_name(TopicName(text(topic))).with_partition_index(partition.cast_signed())
}
