//! Typed changes of topics and configs: each is one transaction that moves the plain key and tells
//! the state machine.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::backend::{Compare, KeyRange, Op};
use crate::commit::Change;
use crate::keys::{Key, Keyspace};
use crate::names::TopicInfo;
use crate::record::{Body, PartitionsAdded, ProducerIdBlock, TopicCreated, TopicDeleted};
use crate::values::{ConfigsValue, ProducerIdsValue, TopicValue, UnknownFields, VALUE_FORMAT, Value};

/// Creates a topic, if there is none of that name.
pub fn create(keys: &Keyspace, name: &str, topic: &TopicValue) -> Change {
    let key = keys.encode(&Key::Topic(name.to_owned()));
    Change {
        compares: vec![Compare::CreateRevision(key.clone(), 0)],
        ops: vec![Op::put(key, topic.encode())],
        body: Some(Body::TopicCreated(TopicCreated {
            topic_id: topic.topic_id.as_bytes().to_vec(),
            partitions: topic.partitions,
        })),
    }
}

/// Deletes a topic, if it is still as it was seen.
pub fn delete(keys: &Keyspace, topic: &TopicInfo) -> Change {
    let key = keys.encode(&Key::Topic(topic.name.clone()));
    Change {
        compares: vec![Compare::ModRevision(key.clone(), topic.mod_revision)],
        ops: vec![Op::Delete(KeyRange::Key(key))],
        body: Some(Body::TopicDeleted(TopicDeleted { topic_id: topic.value.topic_id.as_bytes().to_vec() })),
    }
}

/// Gives a topic `partitions` partitions, if it is still as it was seen.
pub fn grow(keys: &Keyspace, topic: &TopicInfo, partitions: u32) -> Change {
    let value = TopicValue { partitions, ..topic.value.clone() };
    let body = PartitionsAdded { topic_id: value.topic_id.as_bytes().to_vec(), partitions };
    Change { body: Some(Body::PartitionsAdded(body)), ..replace(keys, topic, &value) }
}

/// Gives a topic other configs, if it is still as it was seen.
pub fn configure(keys: &Keyspace, topic: &TopicInfo, configs: BTreeMap<String, String>) -> Change {
    replace(keys, topic, &TopicValue { configs, ..topic.value.clone() })
}

/// Gives a topic another number of replicas, if it is still as it was seen.
pub fn replicate(keys: &Keyspace, topic: &TopicInfo, replicas: u32) -> Change {
    replace(keys, topic, &TopicValue { replication_factor: Some(replicas), ..topic.value.clone() })
}

fn replace(keys: &Keyspace, topic: &TopicInfo, value: &TopicValue) -> Change {
    let key = keys.encode(&Key::Topic(topic.name.clone()));
    Change {
        compares: vec![Compare::ModRevision(key.clone(), topic.mod_revision)],
        ops: vec![Op::put(key, value.encode())],
        body: None,
    }
}

/// Gives one broker, or all, other dynamic configs, if they are still at `mod_revision`.
pub fn configure_broker(
    keys: &Keyspace,
    node_id: Option<i32>,
    mod_revision: i64,
    configs: BTreeMap<String, String>,
) -> Change {
    configure_key(keys, &Key::BrokerConfig(node_id), mod_revision, configs)
}

/// Gives a group other configs, if they are still at `mod_revision`.
pub fn configure_group(
    keys: &Keyspace,
    group: &str,
    mod_revision: i64,
    configs: BTreeMap<String, String>,
) -> Change {
    configure_key(keys, &Key::GroupConfig(group.to_owned()), mod_revision, configs)
}

/// Gives a subscription to metrics of clients other configs, if they are still at `mod_revision`.
pub fn configure_client_metrics(
    keys: &Keyspace,
    name: &str,
    mod_revision: i64,
    configs: BTreeMap<String, String>,
) -> Change {
    configure_key(keys, &Key::ClientMetrics(name.to_owned()), mod_revision, configs)
}

/// A key without configs is no key: nobody has to tell "none" from "not there".
fn configure_key(keys: &Keyspace, key: &Key, mod_revision: i64, configs: BTreeMap<String, String>) -> Change {
    let key = keys.encode(key);
    let compares = vec![Compare::ModRevision(key.clone(), mod_revision)];
    let op = if configs.is_empty() {
        Op::Delete(KeyRange::Key(key))
    } else {
        Op::put(key, ConfigsValue { format: VALUE_FORMAT, configs }.encode())
    };
    Change { compares, ops: vec![op], body: None }
}

/// Takes the block of `count` producer ids from `first` on, if it is still free. `stored` is the
/// key's value and mod revision as it was read; the mod revision is 0 if there is none.
pub fn take_producer_ids(keys: &Keyspace, first: i64, mod_revision: i64, count: i64) -> Change {
    let key = keys.encode(&Key::ProducerIds);
    let end = first + count;
    let value = ProducerIdsValue { format: VALUE_FORMAT, next: end };
    Change {
        compares: vec![Compare::ModRevision(key.clone(), mod_revision)],
        ops: vec![Op::put(key, value.encode())],
        body: Some(Body::ProducerIdBlock(ProducerIdBlock {
            first: first.cast_unsigned(),
            end: end.cast_unsigned(),
        })),
    }
}

/// A topic that is to be created.
pub fn new_topic(
    id: Uuid,
    partitions: u32,
    configs: BTreeMap<String, String>,
    created_at_ms: i64,
) -> TopicValue {
    TopicValue {
        format: VALUE_FORMAT,
        topic_id: id,
        partitions,
        configs,
        created_at_ms,
        replication_factor: None,
        unknown: UnknownFields::new(),
    }
}
