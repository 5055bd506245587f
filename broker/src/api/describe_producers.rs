//! DescribeProducers (key 61), version 0 (KIP-664).
//!
//! The idempotent producers that a partition remembers, from the state machine, current on any
//! broker: the barrier is passed first, with where
//! their open transaction begins. When they last wrote is not part of the state: −1; there is no
//! coordinator's epoch: −1 as well. A partition that is asked for twice is answered once.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::describe_producers_response::{
    PartitionResponse, ProducerState, TopicResponse,
};
use kafka_protocol::messages::{DescribeProducersRequest, DescribeProducersResponse, ProducerId};
use strandline_metadata::state::{Partition, Producer, SeenBatch};

use super::Call;
use super::distinct::distinct;
use crate::limits::{LARGE_ANSWER_ELEMENTS, UNITS_PER_ELEMENT};

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=0;

const NONE: i32 = -1;

pub(super) async fn handle(call: &Call, request: DescribeProducersRequest) -> DescribeProducersResponse {
    let is_current = call.broker.replica.barrier().await.is_ok();
    let view = call.broker.replica.view();
    if view.state.producer_count() > LARGE_ANSWER_ELEMENTS as u64 {
        call.large_answer().await;
    }
    let named = request.topics.into_iter().map(|topic| (topic.name, topic.partition_indexes));
    let mut topics = Vec::new();
    for (name, asked) in distinct(named, |known, mut more| known.append(&mut more)) {
        let id = view.names.topic(&name).map(|topic| topic.value.topic_id);
        let wanted: BTreeSet<i32> = asked.into_iter().collect();
        let mut partitions = Vec::with_capacity(wanted.len());
        for number in wanted {
            call.spend(UNITS_PER_ELEMENT).await;
            let response = PartitionResponse::default().with_partition_index(number).with_error_message(None);
            let found = id.and_then(|id| view.state.partition(id, u32::try_from(number).ok()?));
            partitions.push(match found {
                _ if !is_current => response.with_error_code(ResponseError::LeaderNotAvailable.code()),
                None => response.with_error_code(ResponseError::UnknownTopicOrPartition.code()),
                Some(partition) => response.with_active_producers(producers(call, partition).await),
            });
        }
        topics.push(TopicResponse::default().with_name(name).with_partitions(partitions));
    }
    DescribeProducersResponse::default().with_topics(topics)
}

async fn producers(call: &Call, partition: &Partition) -> Vec<ProducerState> {
    let open: BTreeMap<i64, i64> =
        partition.open_transactions().iter().map(|(first, id)| (*id, *first)).collect();
    let mut described = Vec::with_capacity(partition.producers().len());
    for (id, producer) in partition.producers() {
        call.spend(UNITS_PER_ELEMENT).await;
        described.push(describe(*id, producer, open.get(id).copied()));
    }
    described
}

fn describe(id: i64, producer: &Producer, open_since: Option<i64>) -> ProducerState {
    ProducerState::default()
        .with_producer_id(ProducerId(id))
        .with_producer_epoch(producer.epoch.into())
        .with_last_sequence(producer.batches.last().map_or(NONE, SeenBatch::last))
        .with_last_timestamp(NONE.into())
        .with_coordinator_epoch(NONE)
        .with_current_txn_start_offset(open_since.unwrap_or(NONE.into()))
}
