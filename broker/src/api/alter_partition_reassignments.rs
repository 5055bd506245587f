//! AlterPartitionReassignments (key 45), versions 0–1 (KIP-455).
//!
//! Records are in the object store and any broker serves any partition, so nothing moves. What can
//! change is how many replicas a topic shows (see `replicas`): if all partitions of a topic are
//! assigned to as many brokers each, and to those that Metadata then shows. That is always so if it
//! is all brokers of the cluster. The assignment that is shown already is accepted. Every other one
//! is refused with INVALID_REPLICA_ASSIGNMENT, rather than stored and ignored. Nothing is ever in
//! progress, so cancelling gets NO_REASSIGNMENT_IN_PROGRESS.

use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use kafka_protocol::messages::alter_partition_reassignments_response::{
    ReassignablePartitionResponse, ReassignableTopicResponse,
};
use kafka_protocol::messages::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse, BrokerId,
};
use strandline_metadata::names::TopicInfo;
use strandline_metadata::replica::View;
use strandline_metadata::values::TopicValue;

use super::{Call, text};
use crate::leaders::Leaders;
use crate::replicas;
use crate::topics::{self, TopicError};

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=1;

pub(super) async fn handle(
    call: &Call,
    request: AlterPartitionReassignmentsRequest,
) -> AlterPartitionReassignmentsResponse {
    // What other brokers have created exists, if that can be found out.
    let _ = call.broker.replica.barrier().await;
    let mut responses = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let partitions = reassign(call, &topic, request.allow_replication_factor_change).await;
        responses
            .push(ReassignableTopicResponse::default().with_name(topic.name).with_partitions(partitions));
    }
    let response =
        AlterPartitionReassignmentsResponse::default().with_error_message(None).with_responses(responses);
    if call.version >= 1 {
        return response.with_allow_replication_factor_change(request.allow_replication_factor_change);
    }
    response
}

/// Decides about the partitions of one topic, in the order of the request.
async fn reassign(
    call: &Call,
    asked: &ReassignableTopic,
    may_change: bool,
) -> Vec<ReassignablePartitionResponse> {
    let broker = &call.broker;
    let (topic, leaders, replicas) = broker.replica.read(|view| {
        let topic = view.names.topic(&asked.name).cloned();
        let leaders = broker.leaders(&view.names, &call.client_id);
        let replicas = topic.as_ref().and_then(|topic| new_count(view, &leaders, topic, asked));
        (topic, leaders, replicas.filter(|_| may_change || call.version < 1))
    });
    let shown = topic.as_ref().map(|topic| TopicValue {
        replication_factor: replicas.or(topic.value.replication_factor),
        ..topic.value.clone()
    });
    let decide = |partition| decide(partition, shown.as_ref(), &leaders);
    let mut answers: Vec<Result<(), TopicError>> = asked.partitions.iter().map(decide).collect();
    if let (Some(topic), Some(replicas)) = (&topic, replicas)
        && topic.value.replicas() != replicas
        && answers.iter().all(Result::is_ok)
    {
        let why = "the topic was changed by others at the same time; try again";
        let raced = TopicError::new(ResponseError::RequestTimedOut, why);
        let change = strandline_metadata::topics::replicate(broker.replica.keys(), topic, replicas);
        if let Err(error) = topics::commit(broker, change).await {
            let error = topics::commit_error(&error, raced);
            answers.fill(Err(error));
        }
    }
    let numbers = asked.partitions.iter().map(|p| p.partition_index);
    numbers.zip(answers).map(|(number, answer)| response(number, answer)).collect()
}

/// How many replicas the topic is to have from now on, if the request says that of all its
/// partitions, and it can be remembered.
fn new_count(view: &View, leaders: &Leaders, topic: &TopicInfo, asked: &ReassignableTopic) -> Option<u32> {
    let mut named: Vec<i32> = asked.partitions.iter().map(|p| p.partition_index).collect();
    named.sort_unstable();
    named.dedup();
    if named.len() != topic.value.partitions as usize {
        return None;
    }
    let mut count = None;
    for partition in &asked.partitions {
        count = Some(replicas::of_assignment(leaders, partition.replicas.as_deref()?, count).ok()?);
    }
    replicas::stored(view, count?)
}

/// Decides about a partition of a topic that is to be shown as `topic` says.
fn decide(
    asked: &ReassignablePartition,
    topic: Option<&TopicValue>,
    leaders: &Leaders,
) -> Result<(), TopicError> {
    let number = u32::try_from(asked.partition_index).ok();
    let known = topic.zip(number).filter(|(topic, number)| *number < topic.partitions);
    let unknown = || TopicError::new(ResponseError::UnknownTopicOrPartition, "There is no such partition.");
    let (topic, number) = known.ok_or_else(unknown)?;
    let Some(wanted) = asked.replicas.as_deref() else {
        let why = "Nothing is in progress: partitions have no replicas that could move.";
        return Err(TopicError::new(ResponseError::NoReassignmentInProgress, why));
    };
    replicas::of_assignment(leaders, wanted, None)?;
    let sorted = |ids: &[BrokerId]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    };
    if sorted(wanted) == sorted(&leaders.replicas(topic, number)) {
        return Ok(());
    }
    let why = "Any broker serves any partition, and their records are in the object store: there are no replicas that could move. Only how many are shown can change, for all partitions of a topic at once.";
    Err(TopicError::new(ResponseError::InvalidReplicaAssignment, why))
}

fn response(number: i32, answer: Result<(), TopicError>) -> ReassignablePartitionResponse {
    let response = ReassignablePartitionResponse::default().with_partition_index(number);
    match answer {
        Ok(()) => response.with_error_message(None),
        Err(error) => {
            response.with_error_code(error.code.code()).with_error_message(Some(text(error.message)))
        }
    }
}
