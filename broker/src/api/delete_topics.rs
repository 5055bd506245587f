//! DeleteTopics (key 20), versions 1–6.
//!
//! By name, from version 6 on also by id (KIP-516). The topic is gone at one revision, on all
//! brokers; its objects are deleted once nothing can read them any more. A topic of the same name
//! that is created later has another id.

use std::ops::RangeInclusive;
use std::sync::Arc;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::{DeleteTopicsRequest, DeleteTopicsResponse, TopicName};
use strandline_metadata::commit::CommitError;
use strandline_metadata::names::TopicInfo;
use uuid::Uuid;

use super::{Call, text};
use crate::limits::DELETE_TOPIC_ATTEMPTS;
use crate::topics::{self, TopicError};

pub(crate) const VERSIONS: RangeInclusive<i16> = 1..=6;

pub(super) async fn handle(call: &Call, request: DeleteTopicsRequest) -> DeleteTopicsResponse {
    let is_current = call.broker.replica.barrier().await.is_ok();
    let asked: Vec<(Option<TopicName>, Uuid)> = if call.version >= 6 {
        request.topics.into_iter().map(|t| (t.name, t.topic_id)).collect()
    } else {
        request.topic_names.into_iter().map(|n| (Some(n), Uuid::nil())).collect()
    };
    let mut responses = Vec::with_capacity(asked.len());
    for (name, id) in asked {
        let outcome = delete(call, name.as_deref().map(|n| &**n), id, is_current).await;
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
