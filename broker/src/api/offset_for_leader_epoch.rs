//! OffsetForLeaderEpoch (key 23), versions 2–4.
//!
//! The epoch of every partition is 0 for ever and no log is ever truncated (KIP-101, KIP-320), so
//! epoch 0 ends at the log end and other epochs are not known. Current on any broker: the barrier
//! is passed first.

use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use kafka_protocol::messages::{OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse};

use super::Call;

pub(crate) const VERSIONS: RangeInclusive<i16> = 2..=4;

pub(super) async fn handle(
    call: &Call,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let is_current = call.broker.replica.barrier().await.is_ok();
    let topics = call.broker.replica.read(|view| {
        let topics = request.topics.into_iter().map(|topic| {
            let id = view.names.topic(&topic.topic).map(|t| t.value.topic_id);
            let partitions = topic.partitions.iter().map(|asked| {
                let found = id.and_then(|id| view.state.partition(id, u32::try_from(asked.partition).ok()?));
                let answer = EpochEndOffset::default()
                    .with_partition(asked.partition)
                    .with_leader_epoch(-1)
                    .with_end_offset(-1);
                match found {
                    _ if !is_current => answer.with_error_code(ResponseError::LeaderNotAvailable.code()),
                    None => answer.with_error_code(ResponseError::UnknownTopicOrPartition.code()),
                    Some(_) if asked.current_leader_epoch > 0 => {
                        answer.with_error_code(ResponseError::UnknownLeaderEpoch.code())
                    }
                    Some(partition) if asked.leader_epoch == 0 => {
                        answer.with_leader_epoch(0).with_end_offset(partition.end())
                    }
                    Some(_) => answer,
                }
            });
            let partitions = partitions.collect();
            OffsetForLeaderTopicResult::default().with_topic(topic.topic).with_partitions(partitions)
        });
        topics.collect()
    });
    OffsetForLeaderEpochResponse::default().with_topics(topics)
}
