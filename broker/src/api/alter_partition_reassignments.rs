//! AlterPartitionReassignments (key 45), versions 0–1 (KIP-455).
//!
//! Partitions have no replicas that could move: their records are in the object store, and any
//! broker serves them. The assignment that Metadata shows is accepted, since then nothing is to be
//! done; every other one is refused with INVALID_REPLICA_ASSIGNMENT, rather than stored and
//! ignored. Nothing is ever in progress, so cancelling gets NO_REASSIGNMENT_IN_PROGRESS. Whether
//! the replication factor may change makes no difference.

use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::alter_partition_reassignments_request::ReassignablePartition;
use kafka_protocol::messages::alter_partition_reassignments_response::{
    ReassignablePartitionResponse, ReassignableTopicResponse,
};
use kafka_protocol::messages::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse, BrokerId,
};
use kafka_protocol::protocol::StrBytes;

use super::Call;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=1;

type Refusal = (ResponseError, &'static str);

pub(super) async fn handle(
    call: &Call,
    request: AlterPartitionReassignmentsRequest,
) -> AlterPartitionReassignmentsResponse {
    // What other brokers have created exists, if that can be found out.
    let _ = call.broker.replica.barrier().await;
    let responses = call.broker.replica.read(|view| {
        let leaders = call.broker.leaders(&view.names, &call.client_id);
        let topics = request.topics.into_iter().map(|topic| {
            let known = view.names.topic(&topic.name);
            let answers = topic.partitions.iter().map(|asked| {
                let shown = known.zip(u32::try_from(asked.partition_index).ok());
                let shown = shown.filter(|(topic, number)| *number < topic.value.partitions);
                let shown = shown.map(|(topic, number)| leaders.of_partition(topic.value.topic_id, number));
                answer(asked, shown)
            });
            let answers = answers.collect();
            ReassignableTopicResponse::default().with_name(topic.name).with_partitions(answers)
        });
        topics.collect()
    });
    let response =
        AlterPartitionReassignmentsResponse::default().with_error_message(None).with_responses(responses);
    if call.version >= 1 {
        return response.with_allow_replication_factor_change(request.allow_replication_factor_change);
    }
    response
}

fn answer(asked: &ReassignablePartition, shown: Option<i32>) -> ReassignablePartitionResponse {
    let response = ReassignablePartitionResponse::default().with_partition_index(asked.partition_index);
    match reassign(asked, shown) {
        Ok(()) => response.with_error_message(None),
        Err((code, why)) => {
            response.with_error_code(code.code()).with_error_message(Some(StrBytes::from_static_str(why)))
        }
    }
}

/// Decides about a partition of which `shown` is the broker that clients are led to.
fn reassign(asked: &ReassignablePartition, shown: Option<i32>) -> Result<(), Refusal> {
    let shown = shown.ok_or((ResponseError::UnknownTopicOrPartition, "There is no such partition."))?;
    match asked.replicas.as_deref() {
        None => Err((
            ResponseError::NoReassignmentInProgress,
            "Nothing is in progress: partitions have no replicas that could move.",
        )),
        Some([only]) if *only == BrokerId(shown) => Ok(()),
        Some(_) => Err((
            ResponseError::InvalidReplicaAssignment,
            "Any broker serves any partition, and their records are in the object store: there are no replicas that could move.",
        )),
    }
}
