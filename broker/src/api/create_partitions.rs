//! CreatePartitions (key 37), versions 0–3.
//!
//! The number of partitions only grows. Validate-only; manual assignments must fit in number and
//! are otherwise accepted and ignored.

use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::{CreatePartitionsRequest, CreatePartitionsResponse};
use strandline_metadata::limits::MAX_PARTITIONS_PER_TOPIC;

use super::{Call, text};
use crate::topics::{self, TopicError};

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=3;

pub(super) async fn handle(call: &Call, request: CreatePartitionsRequest) -> CreatePartitionsResponse {
    let is_current = call.broker.replica.barrier().await.is_ok();
    let mut results = Vec::with_capacity(request.topics.len());
    for (i, topic) in request.topics.iter().enumerate() {
        let twice = request.topics.iter().enumerate().any(|(j, other)| j != i && other.name == topic.name);
        let outcome = if twice {
            Err(TopicError::new(ResponseError::InvalidRequest, "the topic occurs twice in the request"))
        } else {
            grow(call, topic, request.validate_only, is_current).await
        };
        let result = CreatePartitionsTopicResult::default().with_name(topic.name.clone());
        results.push(match outcome {
            Ok(()) => result,
            Err(error) => {
                result.with_error_code(error.code.code()).with_error_message(Some(text(error.message)))
            }
        });
    }
    CreatePartitionsResponse::default().with_results(results)
}

async fn grow(
    call: &Call,
    asked: &CreatePartitionsTopic,
    validate_only: bool,
    is_current: bool,
) -> Result<(), TopicError> {
    let broker = &call.broker;
    let topic = broker.replica.read(|view| view.names.topic(&asked.name).cloned());
    let topic = topic.ok_or_else(|| topics::unknown(ResponseError::UnknownTopicOrPartition, is_current))?;
    let invalid = |why: String| Err(TopicError::new(ResponseError::InvalidPartitions, why));
    let current = topic.value.partitions;
    let wanted = match u32::try_from(asked.count) {
        Ok(wanted) if wanted > current && wanted <= MAX_PARTITIONS_PER_TOPIC => wanted,
        Ok(wanted) if wanted == current => {
            return invalid(format!("the topic already has {current} partitions"));
        }
        _ => {
            return invalid(format!(
                "the topic has {current} partitions, which can only grow, up to 100,000"
            ));
        }
    };
    if let Some(assignments) = &asked.assignments
        && assignments.len() != (wanted - current) as usize
    {
        let why = format!("{} new partitions, but {} assignments", wanted - current, assignments.len());
        return Err(TopicError::new(ResponseError::InvalidReplicaAssignment, why));
    }
    if validate_only {
        return Ok(());
    }
    let raced = TopicError::new(
        ResponseError::RequestTimedOut,
        "the topic was changed by others at the same time; try again",
    );
    let change = strandline_metadata::topics::grow(broker.replica.keys(), &topic, wanted);
    topics::commit(broker, change).await.map(|_| ()).map_err(|e| topics::commit_error(&e, raced))
}
