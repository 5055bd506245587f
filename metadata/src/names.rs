//! What the plain keys say, cached: topics by name, brokers by node id, dynamic configs.
//!
//! These caches answer clients; they never decide anything in the state machine. Like the state
//! they are made to be shared: a clone costs nothing, and shares all but what changes afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use uuid::Uuid;

use crate::backend::{Event, KeyValue};
use crate::keys::{Key, Keyspace};
use crate::values::{BrokerValue, ConfigsValue, TopicValue, Value, ValueError};

/// A topic as its key says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// The topic's name.
    pub name: String,
    /// The stored value.
    pub value: TopicValue,
    /// Mod revision of the key, for compare-and-set.
    pub mod_revision: i64,
}

/// A broker that is registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerInfo {
    /// The stored value.
    pub value: BrokerValue,
    /// Create revision of the registration.
    pub incarnation: i64,
}

/// Topics by name.
pub type TopicMap = OrdMap<String, Arc<TopicInfo>>;

/// The caches of plain keys, as of one revision.
#[derive(Clone, Debug, Default)]
pub struct Names {
    topics: TopicMap,
    ids: OrdMap<Uuid, Arc<TopicInfo>>,
    brokers: OrdMap<i32, Arc<BrokerInfo>>,
    configs: OrdMap<Option<i32>, (ConfigsValue, i64)>,
    group_configs: OrdMap<String, (ConfigsValue, i64)>,
    /// Few, and they hardly ever change.
    client_metrics: Arc<BTreeMap<String, (ConfigsValue, i64)>>,
    /// Groups change with every rebalance, and a step copies the keys beside the one that changes.
    groups: OrdMap<Arc<str>, i64>,
    offsets: OrdMap<Arc<str>, OrdSet<(Arc<str>, u32)>>,
}

impl Names {
    /// The topic called `name`.
    pub fn topic(&self, name: &str) -> Option<&Arc<TopicInfo>> {
        self.topics.get(name)
    }

    /// The topic with this id.
    pub fn topic_by_id(&self, id: Uuid) -> Option<&Arc<TopicInfo>> {
        self.ids.get(&id)
    }

    /// Every topic, by name. A clone costs nothing, and `ptr_eq` with it tells that nothing has
    /// changed since.
    pub fn topics(&self) -> &TopicMap {
        &self.topics
    }

    /// Every registered broker, by node id.
    pub fn brokers(&self) -> &OrdMap<i32, Arc<BrokerInfo>> {
        &self.brokers
    }

    /// Dynamic configs of one broker, or the default of all, with the key's mod revision; 0 while
    /// there is none.
    pub fn broker_configs(&self, node_id: Option<i32>) -> (BTreeMap<String, String>, i64) {
        self.configs
            .get(&node_id)
            .map_or_else(Default::default, |(value, revision)| (value.configs.clone(), *revision))
    }

    /// Configs of one group, with the key's mod revision; 0 while there is none.
    pub fn group_configs(&self, group: &str) -> (BTreeMap<String, String>, i64) {
        self.group_configs
            .get(group)
            .map_or_else(Default::default, |(value, revision)| (value.configs.clone(), *revision))
    }

    /// Every group that has configs of its own.
    pub fn configured_groups(&self) -> impl ExactSizeIterator<Item = &String> {
        self.group_configs.keys()
    }

    /// Every subscription to metrics of clients, by name: its configs, and the key's mod revision.
    pub fn client_metrics(&self) -> &Arc<BTreeMap<String, (ConfigsValue, i64)>> {
        &self.client_metrics
    }

    /// Mod revision of a group's key; 0 if there is none.
    pub fn group_revision(&self, group: &str) -> i64 {
        self.groups.get(group).copied().unwrap_or(0)
    }

    /// Whether anything is committed for a group.
    pub fn has_offsets(&self, group: &str) -> bool {
        self.offsets.contains_key(group)
    }

    /// Every group that has a key or committed offsets, each once, in no order.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        let without_key = self.offsets.keys().filter(|group| !self.groups.contains_key(*group));
        self.groups.keys().chain(without_key).map(|group| &**group)
    }

    /// Takes over a key as it was read. Keys that mean nothing here are passed over.
    pub(crate) fn put(&mut self, keys: &Keyspace, kv: &KeyValue) -> Result<(), ValueError> {
        match keys.parse(&kv.key) {
            Some(Key::Topic(name)) => {
                let value = TopicValue::decode(&kv.value)?;
                let topic = Arc::new(TopicInfo { name: name.clone(), value, mod_revision: kv.mod_revision });
                if let Some(before) = self.topics.insert(name, topic.clone())
                    && before.value.topic_id != topic.value.topic_id
                {
                    self.ids.remove(&before.value.topic_id);
                }
                self.ids.insert(topic.value.topic_id, topic);
            }
            Some(Key::Broker(node_id)) => {
                let value = BrokerValue::decode(&kv.value)?;
                self.brokers.insert(node_id, Arc::new(BrokerInfo { value, incarnation: kv.create_revision }));
            }
            Some(Key::BrokerConfig(node_id)) => {
                self.configs.insert(node_id, (ConfigsValue::decode(&kv.value)?, kv.mod_revision));
            }
            Some(Key::GroupConfig(group)) => {
                self.group_configs.insert(group, (ConfigsValue::decode(&kv.value)?, kv.mod_revision));
            }
            Some(Key::ClientMetrics(name)) => {
                let all = Arc::make_mut(&mut self.client_metrics);
                all.insert(name, (ConfigsValue::decode(&kv.value)?, kv.mod_revision));
            }
            Some(Key::Group(group)) => {
                self.groups.insert(group.into(), kv.mod_revision);
            }
            Some(Key::Offsets { group, topic, part }) => {
                let key = (topic.into(), part);
                if !self.offsets.get(&*group).is_some_and(|known| known.contains(&key)) {
                    self.offsets.entry(group.into()).or_default().insert(key);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes over a change.
    pub(crate) fn apply(&mut self, keys: &Keyspace, event: &Event) -> Result<(), ValueError> {
        match event {
            Event::Put(kv) => self.put(keys, kv)?,
            Event::Delete { key, .. } => match keys.parse(key) {
                Some(Key::Topic(name)) => {
                    if let Some(gone) = self.topics.remove(&name) {
                        self.ids.remove(&gone.value.topic_id);
                    }
                }
                Some(Key::Broker(node_id)) => {
                    self.brokers.remove(&node_id);
                }
                Some(Key::BrokerConfig(node_id)) => {
                    self.configs.remove(&node_id);
                }
                Some(Key::GroupConfig(group)) => {
                    self.group_configs.remove(&group);
                }
                Some(Key::ClientMetrics(name)) => {
                    Arc::make_mut(&mut self.client_metrics).remove(&name);
                }
                Some(Key::Group(group)) => {
                    self.groups.remove(&*group);
                }
                Some(Key::Offsets { group, topic, part }) => {
                    if let Some(keys) = self.offsets.get_mut(&*group) {
                        keys.remove(&(topic.into(), part));
                        if keys.is_empty() {
                            self.offsets.remove(&*group);
                        }
                    }
                }
                _ => {}
            },
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_group_is_named_once_whatever_there_is_of_it() {
        let keys = Keyspace::new("test").unwrap();
        let mut names = Names::default();
        let offsets = |group: &str| Key::Offsets { group: group.to_owned(), topic: "t".to_owned(), part: 0 };
        let group = |group: &str| Key::Group(group.to_owned());
        for key in [group("both"), group("key"), offsets("both"), offsets("offsets")] {
            let kv = KeyValue {
                key: keys.encode(&key),
                value: Bytes::new(),
                create_revision: 1,
                mod_revision: 1,
                version: 1,
                lease: 0,
            };
            names.put(&keys, &kv).unwrap();
        }
        let mut groups: Vec<&str> = names.groups().collect();
        groups.sort_unstable();
        assert_eq!(groups, ["both", "key", "offsets"]);
    }
}
