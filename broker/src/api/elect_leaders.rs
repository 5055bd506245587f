//! ElectLeaders (key 43), versions 0–2.
//!
//! There is nothing to elect: every broker serves every partition. Each partition that is named
//! gets ELECTION_NOT_NEEDED; without names the answer is empty, since Kafka then answers only with
//! those that needed one. Both types of election are the same here. A partition that is named twice
//! is answered once, as in Kafka.

use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::elect_leaders_response::{PartitionResult, ReplicaElectionResult};
use kafka_protocol::messages::{ElectLeadersRequest, ElectLeadersResponse};
use kafka_protocol::protocol::StrBytes;

use super::Call;
use super::distinct::{distinct, each_once};
use crate::limits::UNITS_PER_ELEMENT;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=2;

/// Preferred, and unclean.
const ELECTION_TYPES: RangeInclusive<i8> = 0..=1;

pub(super) async fn handle(call: &Call, request: ElectLeadersRequest) -> ElectLeadersResponse {
    if !ELECTION_TYPES.contains(&request.election_type) {
        return ElectLeadersResponse::default().with_error_code(ResponseError::InvalidRequest.code());
    }
    // What other brokers have created exists, if that can be found out.
    let _ = call.broker.replica.barrier().await;
    let view = call.broker.replica.view();
    let named = request.topic_partitions.unwrap_or_default().into_iter();
    let named = named.map(|topic| (topic.topic, topic.partitions));
    let mut results = Vec::new();
    for (name, asked) in distinct(named, |known, mut more| known.append(&mut more)) {
        let partitions = view.names.topic(&name).map_or(0, |t| t.value.partitions);
        call.spend(UNITS_PER_ELEMENT * asked.len()).await;
        let elected = each_once(asked).into_iter().map(|number| elect(number, partitions)).collect();
        results.push(ReplicaElectionResult::default().with_topic(name).with_partition_result(elected));
    }
    ElectLeadersResponse::default().with_replica_election_results(results)
}

fn elect(number: i32, partitions: u32) -> PartitionResult {
    let is_known = u32::try_from(number).is_ok_and(|n| n < partitions);
    let (code, why) = if is_known {
        let why = "There is nothing to elect: every broker serves every partition.";
        (ResponseError::ElectionNotNeeded, why)
    } else {
        (ResponseError::UnknownTopicOrPartition, "There is no such partition.")
    };
    PartitionResult::default()
        .with_partition_id(number)
        .with_error_code(code.code())
        .with_error_message(Some(StrBytes::from_static_str(why)))
}
