//! DeleteTopics (key 20), versions 1–6.
//!
//! By name, from version 6 on also by id (KIP-516). The topic is gone at one revision, on all
//! brokers; its objects are deleted once nothing can read them any more. A topic of the same name
//! that is created later has another id. A topic that is named twice, or by its name and by its id,
//! gets INVALID_REQUEST once, as in Kafka, and stays.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::{DeleteTopicsRequest, DeleteTopicsResponse, TopicName};
use strandline_metadata::commit::CommitError;
use strandline_metadata::names::TopicInfo;
use uuid::Uuid;

use super::distinct::with_repeats;
use super::{Call, text};
use crate::limits::DELETE_TOPIC_ATTEMPTS;
use crate::topics::{self, TopicError};

pub(crate) const VERSIONS: RangeInclusive<i16> = 1..=6;

pub(super) async fn handle(call: &Call, request: DeleteTopicsRequest) -> DeleteTopicsResponse {
    let is_current = call.broker.replica.barrier().await.is_ok();
    let asked: Vec<NamedTopic> = if call.version >= 6 {
        request.topics.into_iter().map(|t| (t.name, t.topic_id)).collect()
    } else {
        request.topic_names.into_iter().map(|n| (Some(n), Uuid::nil())).collect()
    };
    let asked = asked.into_iter().map(|topic| (topic, ()));
    let named = once_by_name_and_id(call, with_repeats(asked));
    let mut responses = Vec::with_capacity(named.len());
    for ((name, id), refusal) in named {
        let outcome = match refusal {
            Some(refusal) => Err(refusal),
            None => delete(call, name.as_deref().map(|n| &**n), id, is_current).await,
        };
        let mut result = DeletableTopicResult::default();
        let (name, id) = match &outcome {
            Ok(topic) => (Some(TopicName(text(topic.name.clone()))), topic.value.topic_id),
            Err(_) => (name, id),
        };
        result = result.with_name(name);
        if call.version >= 6 {
            result = result.with_topic_id(id);
        }
        if let Err(error) = outcome {
            result = result.with_error_code(error.code.code());
            if call.version >= 5 {
                result = result.with_error_message(Some(text(error.message)));
            }
        }
        responses.push(result);
    }
    DeleteTopicsResponse::default().with_responses(responses)
}

/// A topic as a request names it.
type NamedTopic = (Option<TopicName>, Uuid);

/// What may be deleted, and what is refused since it is named more than once.
fn once_by_name_and_id(
    call: &Call,
    named: Vec<(NamedTopic, (), bool)>,
) -> Vec<(NamedTopic, Option<TopicError>)> {
    let refused = |why: &str| Some(TopicError::new(ResponseError::InvalidRequest, why));
    let ids: BTreeSet<Uuid> = named.iter().map(|((_, id), ..)| *id).filter(|id| !id.is_nil()).collect();
    let mut named_both_ways = BTreeSet::new();
    let mut checked = Vec::with_capacity(named.len());
    for ((name, id), (), is_repeated) in named {
        let by_name = name.as_ref().filter(|_| id.is_nil());
        let known = by_name
            .and_then(|name| call.broker.replica.read(|v| v.names.topic(name).map(|t| t.value.topic_id)));
        let topic = match known.filter(|known| ids.contains(known)) {
            Some(known) => {
                named_both_ways.insert(known);
                let why = "The provided topic name maps to an ID that was already supplied.";
                ((name, known), refused(why))
            }
            None if name.is_none() && id.is_nil() => {
                ((name, id), refused("Neither topic name nor id were specified."))
            }
            None if is_repeated && name.is_some() => ((name, id), refused("Duplicate topic name.")),
            None if is_repeated => ((name, id), refused("Duplicate topic id.")),
            None => ((name, id), None),
        };
        checked.push(topic);
    }
    // The name's answer stands for both.
    checked.retain(|((name, id), _)| name.is_some() || !named_both_ways.contains(id));
    checked
}

async fn delete(
    call: &Call,
    name: Option<&str>,
    id: Uuid,
    is_current: bool,
) -> Result<Arc<TopicInfo>, TopicError> {
    let broker = &call.broker;
    if name.is_some() && !id.is_nil() {
        return Err(TopicError::new(
            ResponseError::InvalidRequest,
            "a topic is named by name or by id, not by both",
        ));
    }
    let find = || {
        broker.replica.read(|view| match name {
            Some(name) => view.names.topic(name).cloned(),
            None => view.names.topic_by_id(id).cloned(),
        })
    };
    for _ in 0..DELETE_TOPIC_ATTEMPTS {
        let topic = find();
        let code = if name.is_some() {
            ResponseError::UnknownTopicOrPartition
        } else {
            ResponseError::UnknownTopicId
        };
        let topic = topic.ok_or_else(|| topics::unknown(code, is_current))?;
        match topics::commit(broker, strandline_metadata::topics::delete(broker.replica.keys(), &topic)).await
        {
            Ok(_) => return Ok(topic),
            Err(CommitError::Conflict) => {
                let _ = broker.replica.barrier().await;
            }
            Err(error) => return Err(topics::commit_error(&error, raced())),
        }
    }
    Err(raced())
}

fn raced() -> TopicError {
    TopicError::new(
        ResponseError::RequestTimedOut,
        "the topic was changed by others at the same time; try again",
    )
}
