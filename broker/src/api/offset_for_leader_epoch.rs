//! OffsetForLeaderEpoch (key 23), versions 2–4.
//!
//! The epoch of every partition is 0 for ever and no log is ever truncated (KIP-101, KIP-320), so
//! epoch 0 ends at the log end and other epochs are not known. Current on any broker: the barrier
//! is passed first. The same question about a partition is answered once.

use std::ops::RangeInclusive;
use std::sync::Arc;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::offset_for_leader_epoch_request::OffsetForLeaderPartition;
use kafka_protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use kafka_protocol::messages::{OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse};
use strandline_metadata::state::Partition;

use super::Call;
use super::distinct::distinct;
use crate::limits::UNITS_PER_ELEMENT;

pub(crate) const VERSIONS: RangeInclusive<i16> = 2..=4;

pub(super) async fn handle(
    call: &Call,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let is_current = call.broker.replica.barrier().await.is_ok();
    let view = call.broker.replica.view();
    let named = request.topics.into_iter().map(|topic| (topic.topic, topic.partitions));
    let mut topics = Vec::new();
    for (name, asked) in distinct(named, |known, mut more| known.append(&mut more)) {
        let id = view.names.topic(&name).map(|t| t.value.topic_id);
        let mut partitions = Vec::with_capacity(asked.len());
        let key = |p: &OffsetForLeaderPartition| (p.partition, p.current_leader_epoch, p.leader_epoch);
        let asked = asked.into_iter().map(|asked| (key(&asked), asked));
        for (_, asked) in distinct(asked, |_, _| {}) {
            call.spend(UNITS_PER_ELEMENT).await;
            let found = id.and_then(|id| view.state.partition(id, u32::try_from(asked.partition).ok()?));
            partitions.push(answer(&asked, found, is_current));
        }
        topics.push(OffsetForLeaderTopicResult::default().with_topic(name).with_partitions(partitions));
    }
    OffsetForLeaderEpochResponse::default().with_topics(topics)
}

fn answer(
    asked: &OffsetForLeaderPartition,
    found: Option<&Arc<Partition>>,
    is_current: bool,
) -> EpochEndOffset {
    let answer =
        EpochEndOffset::default().with_partition(asked.partition).with_leader_epoch(-1).with_end_offset(-1);
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
}
