//! What handlers ask about topics: rules for names, learning of topics, creating them.

use kafka_protocol::error::ResponseError;
use strandline_metadata::commit::{Change, CommitError};
use strandline_metadata::names::Names;
use strandline_metadata::replica::View;
use strandline_metadata::state::Effects;
use strandline_metadata::topics;
use strandline_metadata::turns::Turns;
use strandline_metadata::values::TopicValue;

use crate::Broker;
use crate::limits::{
    CREATED_PARTITIONS_PER_REQUEST, TOPIC_NAME_BYTES, TOPICS_CREATED_BY_NAMING, UNITS_PER_ELEMENT,
};

/// Names that Kafka's own brokers keep to themselves. They do not exist here, and creating them by
/// mentioning them would make tools believe that they do.
const INTERNAL: [&str; 2] = ["__consumer_offsets", "__transaction_state"];

/// Why a topic was not created, deleted or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TopicError {
    pub(crate) code: ResponseError,
    pub(crate) message: String,
}

impl TopicError {
    pub(crate) fn new(code: ResponseError, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// The one mapping from what the log says to what a client hears.
pub(crate) fn commit_error(error: &CommitError, on_conflict: TopicError) -> TopicError {
    match error {
        CommitError::Conflict => on_conflict,
        CommitError::NotRegistered | CommitError::Closed => TopicError::new(
            ResponseError::NotController,
            "this broker may not change anything just now; try again",
        ),
        CommitError::OutcomeLost => TopicError::new(
            ResponseError::RequestTimedOut,
            "the change was made, but this broker has not seen it yet",
        ),
        CommitError::Refused(_) | CommitError::OutcomeUnknown => {
            TopicError::new(ResponseError::CoordinatorNotAvailable, error.to_string())
        }
    }
}

/// Kafka's rules for names.
pub(crate) fn check_name(name: &str) -> Result<(), TopicError> {
    let wrong = |why: &str| Err(TopicError::new(ResponseError::InvalidTopicException, why));
    match name {
        "" => wrong("a topic's name is not empty"),
        "." | ".." => wrong("a topic's name is neither '.' nor '..'"),
        _ if name.len() > TOPIC_NAME_BYTES => wrong("a topic's name has at most 249 characters"),
        _ if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')) => {
            wrong("a topic's name consists of ASCII letters and digits, '.', '_' and '-'")
        }
        _ => Ok(()),
    }
}

/// A topic whose name is the same but for `.` and `_`, which metrics cannot tell apart.
pub(crate) fn collision<'a>(names: &'a Names, name: &str) -> Option<&'a str> {
    if !name.contains(['.', '_']) {
        return None;
    }
    let plain = |byte: u8| if byte == b'.' { b'_' } else { byte };
    let is_alike = |other: &str| {
        other.len() == name.len() && other.bytes().map(plain).eq(name.bytes().map(plain)) && other != name
    };
    names.topics().keys().find(|other| is_alike(other)).map(String::as_str)
}

/// Kafka's limit for the partitions that one request creates.
pub(crate) fn check_request(partitions: u64) -> Result<(), TopicError> {
    if partitions > CREATED_PARTITIONS_PER_REQUEST {
        let why = "Excessively large number of partitions per request.";
        return Err(TopicError::new(ResponseError::PolicyViolation, why));
    }
    Ok(())
}

/// Whether the cluster has room for so many partitions more, as far as this broker knows: brokers
/// that create at the same moment may exceed the limit by what each of them creates.
pub(crate) fn check_room(broker: &Broker, more: u32) -> Result<(), TopicError> {
    let (known, most) = (broker.replica.read(|v| v.state.partition_count()), broker.config.max_partitions);
    if known.saturating_add(more.into()) <= most {
        return Ok(());
    }
    broker.metrics.requests().partitions_refused();
    let why = format!("the cluster has {known} partitions and may have {most} (max_partitions)");
    Err(TopicError::new(ResponseError::PolicyViolation, why))
}

/// Commits a change and waits for it.
pub(crate) async fn commit(broker: &Broker, change: Change) -> Result<Effects, CommitError> {
    broker.committer.change(broker.clock.now_ms(), change).await
}

/// Creates a topic, which must not exist.
pub(crate) async fn create(broker: &Broker, name: &str, topic: &TopicValue) -> Result<(), TopicError> {
    let exists = TopicError::new(ResponseError::TopicAlreadyExists, format!("topic '{name}' already exists"));
    let change = topics::create(broker.replica.keys(), name, topic);
    commit(broker, change).await.map(|_| ()).map_err(|e| commit_error(&e, exists))
}

/// What is said of a topic that this broker does not know. Whoever hears that a topic is gone goes
/// on and makes a new one, so that is said only by a broker that is sure: one that has passed the
/// barrier.
pub(crate) fn unknown(code: ResponseError, is_current: bool) -> TopicError {
    if is_current {
        TopicError::new(code, "there is no such topic")
    } else {
        TopicError::new(ResponseError::RequestTimedOut, "the metadata store does not answer; try again")
    }
}

/// Makes sure that topics which this broker does not know really do not exist; if asked to, creates
/// the first [`TOPICS_CREATED_BY_NAMING`] of them, one after the other, since one may keep the next
/// from being created (see [`collision`]). Whoever asked then looks again.
pub(crate) async fn learn(broker: &Broker, names: &[String], create_missing: bool) {
    // If the barrier cannot be passed, the old knowledge has to do: the client gets a retriable
    // answer from it.
    if broker.replica.barrier().await.is_err() || !create_missing {
        return;
    }
    let each = u64::from(default_partitions(broker)).max(1);
    let most = usize::try_from(CREATED_PARTITIONS_PER_REQUEST / each).unwrap_or(usize::MAX);
    let (mut turns, mut created) = (Turns::default(), 0);
    for name in names.iter().filter(|name| check_name(name).is_ok() && !INTERNAL.contains(&name.as_str())) {
        turns.spend(UNITS_PER_ELEMENT).await;
        if broker.replica.read(|view| view.names.topic(name).is_some()) {
            continue;
        }
        created += 1;
        if created > most.min(TOPICS_CREATED_BY_NAMING) {
            return;
        }
        if let Err(error) = create_by_name(broker, name).await {
            // What kept this one from being created keeps the others from it as well.
            tracing::debug!(topic = name, error = error.message, "topic not created");
            return;
        }
    }
}

/// Creates a topic with the defaults, unless it was created meanwhile or its name collides with
/// another's.
async fn create_by_name(broker: &Broker, name: &str) -> Result<(), TopicError> {
    let taken = |view: &View| view.names.topic(name).is_some() || collision(&view.names, name).is_some();
    if broker.replica.read(|view| taken(view)) {
        return Ok(());
    }
    let partitions = default_partitions(broker);
    check_room(broker, partitions)?;
    let no_configs = std::collections::BTreeMap::new();
    let topic = topics::new_topic(broker.ids.next(), partitions, no_configs, broker.clock.now_ms());
    match create(broker, name, &topic).await {
        Err(error) if error.code != ResponseError::TopicAlreadyExists => Err(error),
        Err(_) => Ok(()),
        Ok(()) => {
            tracing::info!(topic = name, partitions, "topic created because a client named it");
            Ok(())
        }
    }
}

/// Default number of partitions of a new topic: the dynamic default, else the broker's.
pub(crate) fn default_partitions(broker: &Broker) -> u32 {
    let dynamic = broker
        .replica
        .read(|view| Broker::dynamic_configs(&view.names, broker.config.node_id).remove("num.partitions"));
    dynamic.and_then(|text| text.parse().ok()).unwrap_or(broker.config.topics.partitions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_kafkas_rules() {
        for good in ["a", "A.b_c-9", &"x".repeat(249), "...", "__consumer_offsets"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "ä", "a\0", &"x".repeat(250)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
