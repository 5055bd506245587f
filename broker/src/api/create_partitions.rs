//! CreatePartitions (key 37), versions 0–3.
//!
//! The number of partitions only grows. Validate-only. A manual assignment must name registered
//! brokers, as many for each new partition as the topic has replicas; on which of them those are
//! shown is not up to it.
//!
//! Differences: a request for more than 10,000 new partitions is refused with POLICY_VIOLATION, as
//! CreateTopics does, where Kafka says UNKNOWN_SERVER_ERROR; so is a topic for which the cluster
//! has no room (`max_partitions`).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::{CreatePartitionsRequest, CreatePartitionsResponse, TopicName};
use strandline_metadata::limits::MAX_PARTITIONS_PER_TOPIC;

use super::distinct::each_once;
use super::{Call, text};
use crate::replicas;
use crate::topics::{self, TopicError};

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=3;

pub(super) async fn handle(call: &Call, request: CreatePartitionsRequest) -> CreatePartitionsResponse {
    let is_current = call.broker.replica.barrier().await.is_ok();
    let more = call.broker.replica.read(|view| {
        let more = request.topics.iter().map(|topic| {
            let current = view.names.topic(&topic.name).map_or(0, |t| t.value.partitions);
            u64::from(u32::try_from(topic.count).unwrap_or(0).saturating_sub(current))
        });
        more.sum()
    });
    if let Err(error) = topics::check_request(more) {
        let refused = |name| {
            let result = CreatePartitionsTopicResult::default().with_name(name);
            result.with_error_code(error.code.code()).with_error_message(Some(text(&*error.message)))
        };
        let results = each_once(request.topics.into_iter().map(|topic| topic.name)).into_iter().map(refused);
        return CreatePartitionsResponse::default().with_results(results.collect());
    }
    let mut results = Vec::with_capacity(request.topics.len());
    let mut names: BTreeMap<&TopicName, usize> = BTreeMap::new();
    for topic in &request.topics {
        *names.entry(&topic.name).or_default() += 1;
    }
    for topic in &request.topics {
        // What occurs more than once is answered once.
        let Some(occurs) = names.remove(&topic.name) else { continue };
        let outcome = if occurs > 1 {
            Err(TopicError::new(ResponseError::InvalidRequest, "Duplicate topic name."))
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
    if let Some(assignments) = &asked.assignments {
        let more = wanted - current;
        if assignments.len() != more as usize {
            let count = assignments.len();
            let why = format!(
                "Attempted to add {more} additional partition(s), but only {count} assignment(s) were specified."
            );
            return Err(TopicError::new(ResponseError::InvalidReplicaAssignment, why));
        }
        let leaders = broker.replica.read(|view| broker.leaders(&view.names, ""));
        for assignment in assignments {
            let replicas = Some(topic.value.replicas());
            replicas::of_assignment(&leaders, &assignment.broker_ids, replicas)?;
        }
    }
    topics::check_room(broker, wanted - current)?;
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
