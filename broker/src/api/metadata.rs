//! Metadata (key 3), versions 0–13.
//!
//! Brokers, and for each partition the one that clients are led to: chosen by rendezvous hashing,
//! in the client's zone if its client id says `zone=<name>`. Topics by name or, from version 10 on,
//! by id; all topics for a null list (an empty one in version 0). A topic that does not exist is
//! created if broker and request allow it. Leader epochs are 0 for ever; a partition shows as many
//! replicas as were asked for, all in sync, since replication is the object store's. A topic that
//! is named twice is answered once.

use std::ops::RangeInclusive;
use std::sync::Arc;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{BrokerId, MetadataRequest, MetadataResponse, TopicName};
use strandline_metadata::names::{Names, TopicInfo};
use uuid::Uuid;

use super::distinct::each_once;
use super::{Call, text};
use crate::leaders::Leaders;
use crate::limits::{LARGE_ANSWER_ELEMENTS, UNITS_PER_ELEMENT};
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
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum TopicSelector {
    Name(TopicName),
    Id(Uuid),
}

impl TopicSelector {
    fn find<'a>(&self, names: &'a Names) -> Option<&'a Arc<TopicInfo>> {
        match self {
            Self::Name(name) => names.topic(name),
            Self::Id(id) => names.topic_by_id(*id),
        }
    }

    /// The answer for a topic that does not exist.
    fn unknown(self) -> MetadataResponseTopic {
        match self {
            Self::Name(name) => unknown_name(name),
            Self::Id(id) => unknown_id(id),
        }
    }
}

pub(super) async fn handle(call: &Call, request: MetadataRequest) -> MetadataResponse {
    let broker = &call.broker;
    let all = match &request.topics {
        None => true,
        Some(topics) => topics.is_empty() && call.version == 0,
    };
    let asked = each_once(request.topics.into_iter().flatten().map(|t| match t.name {
        Some(name) => TopicSelector::Name(name),
        None => TopicSelector::Id(t.topic_id),
    }));
    let missing = missing(call, &asked).await;
    if !missing.is_empty() {
        let create =
            broker.config.topics.auto_create && (call.version < 4 || request.allow_auto_topic_creation);
        topics::learn(broker, &missing, create).await;
    }
    let view = broker.replica.view();
    let leaders = broker.leaders(&view.names, &call.client_id);
    let with_operations = call.version >= 8 && request.include_topic_authorized_operations;
    let mut topics = Vec::new();
    if all {
        if view.state.partition_count() > LARGE_ANSWER_ELEMENTS as u64 {
            call.large_answer().await;
        }
        for topic in view.names.topics().values() {
            topics.push(describe(call, &leaders, topic, with_operations).await);
        }
    } else {
        for selector in asked {
            topics.push(match selector.find(&view.names) {
                Some(topic) => describe(call, &leaders, topic, with_operations).await,
                None => selector.unknown(),
            });
        }
    }
    let mut response = MetadataResponse::default()
        .with_brokers(leaders.brokers.iter().map(|b| describe_broker(call, &b.value)).collect())
        .with_topics(topics)
        .with_controller_id(BrokerId(leaders.controller()))
        .with_cluster_id(Some(text(broker.cluster.cluster_id.clone())));
    if (8..=10).contains(&call.version) && request.include_cluster_authorized_operations {
        response = response.with_cluster_authorized_operations(CLUSTER_OPERATIONS);
    }
    response
}

/// The topics that are not known here, by name; an empty one stands for those that are asked for by
/// their ids. If the answer will be large, waits for its turn.
async fn missing(call: &Call, asked: &[TopicSelector]) -> Vec<String> {
    let view = call.broker.replica.view();
    let (mut missing, mut partitions) = (Vec::new(), 0);
    for selector in asked {
        call.spend(UNITS_PER_ELEMENT).await;
        match (selector.find(&view.names), selector) {
            (Some(topic), _) => partitions += topic.value.partitions as usize,
            (None, TopicSelector::Name(name)) => missing.push(name.to_string()),
            (None, TopicSelector::Id(_)) => missing.push(String::new()),
        }
    }
    if partitions > LARGE_ANSWER_ELEMENTS {
        call.large_answer().await;
    }
    missing
}

fn describe_broker(call: &Call, value: &strandline_metadata::values::BrokerValue) -> MetadataResponseBroker {
    let broker = MetadataResponseBroker::default()
        .with_node_id(BrokerId(value.node_id))
        .with_host(text(value.host.clone()))
        .with_port(i32::from(value.port));
    let rack = (call.version >= 1 && !value.zone.is_empty()).then(|| text(value.zone.clone()));
    broker.with_rack(rack)
}

async fn describe(
    call: &Call,
    leaders: &Leaders,
    topic: &TopicInfo,
    with_operations: bool,
) -> MetadataResponseTopic {
    let mut partitions = Vec::with_capacity(topic.value.partitions as usize);
    for number in 0..topic.value.partitions {
        call.spend(UNITS_PER_ELEMENT).await;
        let replicas = leaders.replicas(&topic.value, number);
        let leader = replicas.first().copied().unwrap_or(BrokerId(-1));
        let partition = MetadataResponsePartition::default()
            .with_partition_index(number.cast_signed())
            .with_leader_id(leader)
            .with_replica_nodes(replicas.clone())
            .with_isr_nodes(replicas);
        partitions.push(if call.version >= 7 { partition.with_leader_epoch(0) } else { partition });
    }
    call.spend(UNITS_PER_ELEMENT).await;
    let mut described = MetadataResponseTopic::default()
        .with_name(Some(TopicName(text(topic.name.clone()))))
        .with_partitions(partitions);
    if call.version >= 10 {
        described = described.with_topic_id(topic.value.topic_id);
    }
    if with_operations { described.with_topic_authorized_operations(TOPIC_OPERATIONS) } else { described }
}

fn unknown_name(name: TopicName) -> MetadataResponseTopic {
    let code = topics::check_name(&name).err().map_or(ResponseError::UnknownTopicOrPartition, |e| e.code);
    MetadataResponseTopic::default().with_error_code(code.code()).with_name(Some(name))
}

fn unknown_id(id: Uuid) -> MetadataResponseTopic {
    // Only from version 12 on may the name be null.
    MetadataResponseTopic::default()
        .with_error_code(ResponseError::UnknownTopicId.code())
        .with_name(Some(TopicName(text(""))))
        .with_topic_id(id)
}
