//! How many replicas topics show. Records are replicated by the object store and any broker serves
//! them, so a topic has as many replicas as were asked for, as long as there are so many brokers.
//!
//! The number is remembered with the topic, so that tools which compare it with what they want come
//! to rest. On which brokers the replicas are shown follows from the brokers that are registered.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::BrokerId;
use strandline_metadata::replica::View;
use strandline_metadata::state::REPLICATION_FACTOR;

use crate::leaders::Leaders;
use crate::topics::TopicError;

/// The number of replicas of a topic for which none was asked for: Kafka's
/// `default.replication.factor`.
pub(crate) const DEFAULT_REPLICAS: u32 = 1;

/// What a topic's key is to say about the number of replicas: nothing while brokers that may be
/// there cannot read it.
pub(crate) fn stored(view: &View, replicas: u32) -> Option<u32> {
    (view.state.feature_level() >= REPLICATION_FACTOR).then_some(replicas)
}

/// The number of replicas that a replication factor stands for.
pub(crate) fn of_factor(leaders: &Leaders, factor: i16) -> Result<u32, TopicError> {
    let invalid = |why: String| Err(TopicError::new(ResponseError::InvalidReplicationFactor, why));
    let registered = leaders.brokers.len();
    match u32::try_from(factor) {
        _ if factor == -1 => Ok(DEFAULT_REPLICAS),
        Ok(replicas) if replicas >= 1 && replicas as usize <= registered => Ok(replicas),
        Ok(1..) => invalid(format!(
            "Unable to replicate the partition {factor} time(s): The target replication factor of {factor} cannot be reached because only {registered} broker(s) are registered."
        )),
        _ => invalid("Replication factor must be larger than 0, or -1 to use the default value.".to_owned()),
    }
}

/// The number of replicas of a partition that is assigned by hand, which is `before` if other
/// partitions of the topic have so many.
pub(crate) fn of_assignment(
    leaders: &Leaders,
    assigned: &[BrokerId],
    before: Option<u32>,
) -> Result<u32, TopicError> {
    let invalid = |why: String| {
        let why = format!("The manual partition assignment includes {why}.");
        Err(TopicError::new(ResponseError::InvalidReplicaAssignment, why))
    };
    let mut sorted = assigned.to_vec();
    sorted.sort_unstable();
    for (i, id) in sorted.iter().enumerate() {
        if !leaders.brokers.iter().any(|b| b.value.node_id == id.0) {
            return invalid(format!("broker {}, but no such broker is registered", id.0));
        }
        if sorted.get(i + 1) == Some(id) {
            return invalid(format!("the broker {} more than once", id.0));
        }
    }
    let replicas = u32::try_from(sorted.len()).unwrap_or(u32::MAX);
    match before {
        _ if replicas == 0 => invalid("an empty replica list".to_owned()),
        Some(before) if before != replicas => invalid(format!(
            "a partition with {replicas} replica(s), but this is not consistent with previous partitions, which have {before} replica(s)"
        )),
        _ => Ok(replicas),
    }
}
