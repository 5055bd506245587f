//! OffsetDelete (key 47), version 0 (KIP-496).
//!
//! Forgets committed offsets of topics that the group does not read: GROUP_SUBSCRIBED_TO_TOPIC for
//! those that it does, NON_EMPTY_GROUP if it has members and it cannot be known what they read.
//! A partition that is named twice is answered once.

use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::offset_delete_response::{
    OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};
use kafka_protocol::messages::{OffsetDeleteRequest, OffsetDeleteResponse, TopicName};

use super::Call;
use super::distinct::{distinct, each_once};
use crate::group::command::Command;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=0;

pub(super) async fn handle(call: &Call, request: OffsetDeleteRequest) -> OffsetDeleteResponse {
    let group = request.group_id.to_string();
    let exists = |topic: &str, partition: i32| {
        call.broker.replica.read(|view| {
            let partitions = view.names.topic(topic).map(|t| t.value.partitions)?;
            u32::try_from(partition).ok().filter(|p| *p < partitions)
        })
    };
    let named = request.topics.into_iter().map(|topic| {
        let partitions: Vec<i32> = topic.partitions.iter().map(|p| p.partition_index).collect();
        (topic.name, partitions)
    });
    let topics: Vec<(TopicName, Vec<i32>)> = distinct(named, |known, mut more| known.append(&mut more))
        .into_iter()
        .map(|(name, partitions)| (name, each_once(partitions)))
        .collect();
    let asked = topics.iter().flat_map(|(name, partitions)| partitions.iter().map(move |p| (name, *p)));
    let partitions = asked.filter_map(|(topic, p)| Some((topic.to_string(), exists(topic, p)?))).collect();
    let answer = call.broker.groups.ask(&group, |reply| Command::DeleteOffsets(partitions, reply)).await;
    let kept = match answer {
        Ok(kept) => kept,
        Err(error) => return OffsetDeleteResponse::default().with_error_code(error.code().code()),
    };
    let topics = topics.into_iter().map(|(name, partitions)| {
        let partitions = partitions.into_iter().map(|partition| {
            let code = match exists(&name, partition) {
                None => ResponseError::UnknownTopicOrPartition.code(),
                Some(index) if kept.contains(&(name.to_string(), index)) => {
                    ResponseError::GroupSubscribedToTopic.code()
                }
                Some(_) => 0,
            };
            OffsetDeleteResponsePartition::default().with_partition_index(partition).with_error_code(code)
        });
        let partitions = partitions.collect();
        OffsetDeleteResponseTopic::default().with_name(name).with_partitions(partitions)
    });
    OffsetDeleteResponse::default().with_topics(topics.collect())
}
