//! CreateTopics (key 19), versions 2–7.
//!
//! One etcd transaction for each topic: its key and the record that tells the state machine. Names
//! by Kafka's rules, also the collision of `.` and `_` (checked against what this broker knows: two
//! that collide, created on two brokers at the same instant, both succeed). Validate-only (KIP-4).
//! A manual assignment decides the number of partitions and is otherwise accepted and ignored, as
//! is the replication factor: replication is the object store's. The effective configs are returned
//! from version 5 on (KIP-525), the topic id from 7.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use kafka_protocol::messages::{CreateTopicsRequest, CreateTopicsResponse};
use strandline_metadata::limits::MAX_PARTITIONS_PER_TOPIC;
use strandline_metadata::topics::new_topic;
use strandline_metadata::values::TopicValue;

use super::{Call, text};
use crate::configs;
use crate::topics::{self, TopicError};

pub(crate) const VERSIONS: RangeInclusive<i16> = 2..=7;

pub(super) async fn handle(call: &Call, request: CreateTopicsRequest) -> CreateTopicsResponse {
    // A final "exists already", or its opposite, must not come from this broker's lag.
    let _ = call.broker.replica.barrier().await;
    let mut results = Vec::with_capacity(request.topics.len());
    for (i, topic) in request.topics.iter().enumerate() {
        let twice = request.topics.iter().enumerate().any(|(j, other)| j != i && other.name == topic.name);
        let outcome = if twice {
            Err(TopicError::new(ResponseError::InvalidRequest, "the topic occurs twice in the request"))
        } else {
            create(call, topic, request.validate_only).await
        };
        let result = CreatableTopicResult::default().with_name(topic.name.clone());
        results.push(match outcome {
            Err(error) => {
                result.with_error_code(error.code.code()).with_error_message(Some(text(error.message)))
            }
            Ok(created) => describe(call, result, &created, request.validate_only),
        });
    }
    CreateTopicsResponse::default().with_topics(results)
}

async fn create(call: &Call, topic: &CreatableTopic, validate_only: bool) -> Result<TopicValue, TopicError> {
    let broker = &call.broker;
    let name = topic.name.as_str();
    topics::check_name(name)?;
    broker.replica.read(|view| match topics::collision(&view.names, name) {
        _ if view.names.topic(name).is_some() => {
            Err(TopicError::new(ResponseError::TopicAlreadyExists, format!("topic '{name}' already exists")))
        }
        Some(other) => Err(TopicError::new(
            ResponseError::InvalidTopicException,
            format!("topic '{name}' collides with '{other}': they differ only in '.' and '_'"),
        )),
        None => Ok(()),
    })?;
    let partitions = partitions(call, topic)?;
    let mut set = BTreeMap::new();
    for config in &topic.configs {
        // A config without a value stands for its default.
        let Some(value) = &config.value else { continue };
        crate::topic_config::check(&config.name, value)
            .map_err(|why| TopicError::new(ResponseError::InvalidConfig, why))?;
        set.insert(config.name.to_string(), value.to_string());
    }
    let value = new_topic(broker.ids.next(), partitions, set, broker.clock.now_ms());
    if !validate_only {
        topics::create(broker, name, &value).await?;
    }
    Ok(value)
}

fn partitions(call: &Call, topic: &CreatableTopic) -> Result<u32, TopicError> {
    let wrong = |code, why: &str| Err(TopicError::new(code, why));
    if topic.assignments.is_empty() {
        if topic.replication_factor != -1 && topic.replication_factor < 1 {
            return wrong(
                ResponseError::InvalidReplicationFactor,
                "the replication factor is at least 1, or −1",
            );
        }
        return match topic.num_partitions {
            -1 => Ok(topics::default_partitions(&call.broker)),
            n if n >= 1 && n.cast_unsigned() <= MAX_PARTITIONS_PER_TOPIC => Ok(n.cast_unsigned()),
            _ => wrong(
                ResponseError::InvalidPartitions,
                "a topic has 1 to 100,000 partitions, or −1 for the default",
            ),
        };
    }
    if topic.num_partitions != -1 || topic.replication_factor != -1 {
        let why = "with a manual assignment, partitions and replication factor are −1";
        return wrong(ResponseError::InvalidRequest, why);
    }
    let mut numbers: Vec<i32> = topic.assignments.iter().map(|a| a.partition_index).collect();
    numbers.sort_unstable();
    let dense = numbers.iter().zip(0..).all(|(&number, expected)| number == expected);
    let count = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
    if !dense || count > MAX_PARTITIONS_PER_TOPIC || topic.assignments.iter().any(|a| a.broker_ids.is_empty())
    {
        let why = "a manual assignment names each partition from 0 on once, with at least one broker";
        return wrong(ResponseError::InvalidReplicaAssignment, why);
    }
    Ok(count)
}

fn describe(
    call: &Call,
    result: CreatableTopicResult,
    created: &TopicValue,
    validate_only: bool,
) -> CreatableTopicResult {
    if call.version < 5 {
        return result;
    }
    let configs = configs::topic_entries(&call.broker, &created.configs).into_iter().map(|entry| {
        CreatableTopicConfigs::default()
            .with_name(text(entry.name))
            .with_value(Some(text(entry.value)))
            .with_config_source(entry.source as i8)
    });
    let result = result
        .with_num_partitions(created.partitions.cast_signed())
        .with_replication_factor(1)
        .with_configs(Some(configs.collect()));
    if call.version >= 7 && !validate_only { result.with_topic_id(created.topic_id) } else { result }
}
