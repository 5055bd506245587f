//! CreateTopics (key 19), versions 2–7.
//!
//! One etcd transaction for each topic: its key and the record that tells the state machine. Names
//! by Kafka's rules, also the collision of `.` and `_` (checked against what this broker knows: two
//! that collide, created on two brokers at the same instant, both succeed). Validate-only (KIP-4).
//! The effective configs are returned from version 5 on (KIP-525), the topic id from 7. A request
//! for more than 10,000 partitions is refused with POLICY_VIOLATION as a whole, as in Kafka; so is
//! a topic for which the cluster has no room (`max_partitions`).
//!
//! Replication is the object store's: the replication factor is the number of replicas that are
//! shown (see `replicas`). A manual assignment decides the numbers of partitions and replicas; on
//! which brokers they are shown is not up to it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use kafka_protocol::messages::{CreateTopicsRequest, CreateTopicsResponse, TopicName};
use strandline_metadata::limits::MAX_PARTITIONS_PER_TOPIC;
use strandline_metadata::topics::new_topic;
use strandline_metadata::values::TopicValue;

use super::distinct::each_once;
use super::{Call, text};
use crate::configs;
use crate::limits::NAMES_PER_UNIT;
use crate::replicas::{self, DEFAULT_REPLICAS};
use crate::topics::{self, TopicError};

pub(crate) const VERSIONS: RangeInclusive<i16> = 2..=7;

pub(super) async fn handle(call: &Call, request: CreateTopicsRequest) -> CreateTopicsResponse {
    // A final "exists already", or its opposite, must not come from this broker's lag.
    let _ = call.broker.replica.barrier().await;
    let partitions = request.topics.iter().map(|topic| requested_partitions(call, topic)).sum();
    if let Err(error) = topics::check_request(partitions) {
        let refused = |name| {
            let result = CreatableTopicResult::default().with_name(name);
            result.with_error_code(error.code.code()).with_error_message(Some(text(&*error.message)))
        };
        let names = each_once(request.topics.into_iter().map(|topic| topic.name));
        let topics = names.into_iter().map(refused);
        return CreateTopicsResponse::default().with_topics(topics.collect());
    }
    let mut results = Vec::with_capacity(request.topics.len());
    let (topics, twice) = by_name(&request.topics);
    for topic in topics {
        let outcome = if twice.contains(&topic.name) {
            Err(TopicError::new(ResponseError::InvalidRequest, "Duplicate topic name."))
        } else {
            create(call, topic, request.validate_only).await
        };
        let result = CreatableTopicResult::default().with_name(topic.name.clone());
        results.push(match outcome {
            Err(error) => {
                result.with_error_code(error.code.code()).with_error_message(Some(text(error.message)))
            }
            Ok(created) => describe(call, result.with_error_message(None), &created, request.validate_only),
        });
    }
    CreateTopicsResponse::default().with_topics(results)
}

/// Each topic once, in the order of the request, and the names that occur more than once.
fn by_name(asked: &[CreatableTopic]) -> (Vec<&CreatableTopic>, BTreeSet<&TopicName>) {
    let (mut seen, mut twice) = (BTreeSet::new(), BTreeSet::new());
    let mut topics = Vec::with_capacity(asked.len());
    for topic in asked {
        if seen.insert(&topic.name) {
            topics.push(topic);
        } else {
            twice.insert(&topic.name);
        }
    }
    (topics, twice)
}

async fn create(call: &Call, topic: &CreatableTopic, validate_only: bool) -> Result<TopicValue, TopicError> {
    let broker = &call.broker;
    let name = topic.name.as_str();
    topics::check_name(name)?;
    // Its name may be compared with those of all others.
    call.spend(broker.replica.read(|view| view.names.topics().len()) / NAMES_PER_UNIT).await;
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
    let (partitions, replicas) = size(call, topic)?;
    topics::check_room(broker, partitions)?;
    let mut set = BTreeMap::new();
    for config in &topic.configs {
        // A config without a value stands for its default.
        let Some(value) = &config.value else { continue };
        crate::topic_config::check(&config.name, value)
            .map_err(|why| TopicError::new(ResponseError::InvalidConfig, why))?;
        set.insert(config.name.to_string(), value.to_string());
    }
    let replication_factor = broker.replica.read(|view| replicas::stored(view, replicas));
    let value = TopicValue {
        replication_factor,
        ..new_topic(broker.ids.next(), partitions, set, broker.clock.now_ms())
    };
    if !validate_only {
        topics::create(broker, name, &value).await?;
    }
    Ok(value)
}

/// How many partitions are asked for, as Kafka counts them: before anything is checked. A topic
/// that asks for none is looked at all the same.
fn requested_partitions(call: &Call, topic: &CreatableTopic) -> u64 {
    if !topic.assignments.is_empty() {
        return topic.assignments.len() as u64;
    }
    match topic.num_partitions {
        -1 => topics::default_partitions(&call.broker).into(),
        asked => u64::try_from(asked).unwrap_or(1).max(1),
    }
}

/// The numbers of partitions and replicas.
fn size(call: &Call, topic: &CreatableTopic) -> Result<(u32, u32), TopicError> {
    let wrong = |code, why: &str| Err(TopicError::new(code, why));
    let leaders = call.broker.replica.read(|view| call.broker.leaders(&view.names, ""));
    if topic.assignments.is_empty() {
        let replicas = replicas::of_factor(&leaders, topic.replication_factor)?;
        return match topic.num_partitions {
            -1 => Ok((topics::default_partitions(&call.broker), replicas)),
            n if n >= 1 && n.cast_unsigned() <= MAX_PARTITIONS_PER_TOPIC => Ok((n.cast_unsigned(), replicas)),
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
    if !dense || count > MAX_PARTITIONS_PER_TOPIC {
        let why = "a manual assignment names each partition from 0 on once";
        return wrong(ResponseError::InvalidReplicaAssignment, why);
    }
    let mut replicas = None;
    for assignment in &topic.assignments {
        replicas = Some(replicas::of_assignment(&leaders, &assignment.broker_ids, replicas)?);
    }
    Ok((count, replicas.unwrap_or(DEFAULT_REPLICAS)))
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
        .with_replication_factor(i16::try_from(created.replicas()).unwrap_or(i16::MAX))
        .with_configs(Some(configs.collect()));
    if call.version >= 7 && !validate_only { result.with_topic_id(created.topic_id) } else { result }
}
