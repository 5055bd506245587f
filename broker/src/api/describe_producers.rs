//! DescribeProducers (key 61), version 0 (KIP-664).
//!
//! The idempotent producers that a partition remembers, from the state machine, current on any
//! broker: the barrier is passed first. When they last wrote is not part of the state: −1. Without
//! transactions there is no coordinator's epoch and no open transaction: −1 as well. A partition
//! that is asked for twice is answered once.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::describe_producers_response::{
    PartitionResponse, ProducerState, TopicResponse,
};
use kafka_protocol::messages::{DescribeProducersRequest, DescribeProducersResponse, ProducerId};
use strandline_metadata::state::{Producer, SeenBatch};

use super::Call;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=0;

const NONE: i32 = -1;

pub(super) async fn handle(call: &Call, request: DescribeProducersRequest) -> DescribeProducersResponse {
    let is_current = call.broker.replica.barrier().await.is_ok();
    let topics = request.topics.into_iter().map(|topic| {
        let wanted: BTreeSet<i32> = topic.partition_indexes.into_iter().collect();
        let partitions = wanted.into_iter().map(|partition| {
            let response =
                PartitionResponse::default().with_partition_index(partition).with_error_message(None);
            let found = if is_current {
                producers(call, &topic.name, partition).ok_or(ResponseError::UnknownTopicOrPartition)
            } else {
                Err(ResponseError::LeaderNotAvailable)
            };
            match found {
                Ok(producers) => response.with_active_producers(producers),
                Err(error) => response.with_error_code(error.code()),
            }
        });
        let partitions = partitions.collect();
        TopicResponse::default().with_name(topic.name).with_partitions(partitions)
    });
    DescribeProducersResponse::default().with_topics(topics.collect())
}

fn producers(call: &Call, topic: &str, partition: i32) -> Option<Vec<ProducerState>> {
    call.broker.replica.read(|view| {
        let id = view.names.topic(topic)?.value.topic_id;
        let partition = view.state.partition(id, u32::try_from(partition).ok()?)?;
        Some(partition.producers().iter().map(|(id, producer)| describe(*id, producer)).collect())
    })
}

fn describe(id: i64, producer: &Producer) -> ProducerState {
    ProducerState::default()
        .with_producer_id(ProducerId(id))
        .with_producer_epoch(producer.epoch.into())
        .with_last_sequence(producer.batches.last().map_or(NONE, SeenBatch::last))
        .with_last_timestamp(NONE.into())
        .with_coordinator_epoch(NONE)
        .with_current_txn_start_offset(NONE.into())
}
