//! Metadata (key 3), versions 0–13.
//!
//! Brokers, and for each partition the one that clients are led to: chosen by rendezvous hashing,
//! in the client's zone if its client id says `zone=<name>`. Topics by name or, from version 10 on,
//! by id; all topics for a null list (an empty one in version 0). A topic that does not exist is
//! created if broker and request allow it. Leader epochs are 0 for ever; a partition shows as many
//! replicas as were asked for, all in sync, since replication is the object store's.

use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{BrokerId, MetadataRequest, MetadataResponse, TopicName};
use strandline_metadata::names::TopicInfo;
use uuid::Uuid;

use super::{Call, text};
use crate::leaders::Leaders;
use crate::topics;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=13;

/// Bits of the operations that a client may do; everything, while there are no ACLs. By Kafka's
/// numbers: read, write, create, delete, alter, describe, describe configs, alter configs.
pub(super) const TOPIC_OPERATIONS: i32 =
    (1 << 3) | (1 << 4) | (1 << 5) | (1 << 6) | (1 << 7) | (1 << 8) | (1 << 10) | (1 << 11);
/// The same for the cluster: create, alter, describe, cluster action, describe configs, alter
/// configs, idempotent write.
pub(super) const CLUSTER_OPERATIONS: i32 =
    (1 << 5) | (1 << 7) | (1 << 8) | (1 << 9) | (1 << 10) | (1 << 11) | (1 << 12);

/// A topic as a request names it.
enum TopicSelector {
    Name(String),
    Id(Uuid),
}

pub(super) async fn handle(call: &Call, request: MetadataRequest) -> MetadataResponse {
    let broker = &call.broker;
    let all = match &request.topics {
        None => true,
        Some(topics) => topics.is_empty() && call.version == 0,
    };
    let asked: Vec<TopicSelector> = request
        .topics
        .iter()
        .flatten()
        .map(|t| match &t.name {
            Some(name) => TopicSelector::Name(name.to_string()),
            None => TopicSelector::Id(t.topic_id),
        })
        .collect();
    let missing: Vec<String> = broker.replica.read(|view| {
        let unknown = asked.iter().filter_map(|a| match a {
            TopicSelector::Name(name) => view.names.topic(name).is_none().then(|| name.clone()),
            TopicSelector::Id(id) => view.names.topic_by_id(*id).is_none().then(String::new),
        });
        unknown.collect()
    });
    if !missing.is_empty() {
        let create =
            broker.config.topics.auto_create && (call.version < 4 || request.allow_auto_topic_creation);
        topics::learn(broker, &missing, create).await;
    }
    broker.replica.read(|view| {
        let leaders = broker.leaders(&view.names, &call.client_id);
        let with_operations = call.version >= 8 && request.include_topic_authorized_operations;
        let describe = |topic: &TopicInfo| describe(call, &leaders, topic, with_operations);
        let topics = if all {
            view.names.topics().values().map(|t| describe(t)).collect()
        } else {
            let found = asked.iter().map(|a| match a {
                TopicSelector::Name(name) => {
                    view.names.topic(name).map_or_else(|| unknown_name(name), |t| describe(t))
                }
                TopicSelector::Id(id) => {
                    view.names.topic_by_id(*id).map_or_else(|| unknown_id(*id), |t| describe(t))
                }
            });
            found.collect()
        };
        let mut response = MetadataResponse::default()
            .with_brokers(leaders.brokers.iter().map(|b| describe_broker(call, &b.value)).collect())
            .with_topics(topics)
            .with_controller_id(BrokerId(leaders.controller()))
            .with_cluster_id(Some(text(broker.cluster.cluster_id.clone())));
        if (8..=10).contains(&call.version) && request.include_cluster_authorized_operations {
            response = response.with_cluster_authorized_operations(CLUSTER_OPERATIONS);
        }
        response
    })
}

fn describe_broker(call: &Call, value: &strandline_metadata::values::BrokerValue) -> MetadataResponseBroker {
    let broker = MetadataResponseBroker::default()
        .with_node_id(BrokerId(value.node_id))
        .with_host(text(value.host.clone()))
        .with_port(i32::from(value.port));
    let rack = (call.version >= 1 && !value.zone.is_empty()).then(|| text(value.zone.clone()));
    broker.with_rack(rack)
}

fn describe(
    call: &Call,
    leaders: &Leaders,
    topic: &TopicInfo,
    with_operations: bool,
) -> MetadataResponseTopic {
    let partitions = (0..topic.value.partitions).map(|number| {
        let replicas = leaders.replicas(&topic.value, number);
        let leader = replicas.first().copied().unwrap_or(BrokerId(-1));
        let partition = MetadataResponsePartition::default()
            .with_partition_index(number.cast_signed())
            .with_leader_id(leader)
            .with_replica_nodes(replicas.clone())
            .with_isr_nodes(replicas);
        if call.version >= 7 { partition.with_leader_epoch(0) } else { partition }
    });
    let mut described = MetadataResponseTopic::default()
        .with_name(Some(TopicName(text(topic.name.clone()))))
        .with_partitions(partitions.collect());
    if call.version >= 10 {
        described = described.with_topic_id(topic.value.topic_id);
    }
    if with_operations { described.with_topic_authorized_operations(TOPIC_OPERATIONS) } else { described }
}

fn unknown_name(name: &str) -> MetadataResponseTopic {
    let code = topics::check_name(name).err().map_or(ResponseError::UnknownTopicOrPartition, |e| e.code);
    MetadataResponseTopic::default().with_error_code(code.code()).with_name(Some(TopicName(text(name))))
}

fn unknown_id(id: Uuid) -> MetadataResponseTopic {
    // Only from version 12 on may the name be null.
    MetadataResponseTopic::default()
        .with_error_code(ResponseError::UnknownTopicId.code())
        .with_name(Some(TopicName(text(""))))
        .with_topic_id(id)
}
