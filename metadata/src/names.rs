//! What the plain keys say, cached: topics by name, brokers by node id, dynamic configs.
//!
//! These caches answer clients; they never decide anything in the state machine. Like the state
//! they are made to be shared: a clone costs nothing, and shares all but what changes afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use imbl::ordmap::DiffItem;
use imbl::{OrdMap, OrdSet};
use tracing::error;
use uuid::Uuid;

use crate::backend::{Event, KeyValue};
use crate::keys::{Key, Keyspace};
use crate::values::{BrokerValue, ConfigsValue, TopicValue, Value};

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

/// How the topics of one revision differ from those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicChange<'a> {
    /// There is a topic of this name now.
    Created(&'a str),
    /// There is none any more.
    Deleted(&'a str),
}

/// What names there are `now` and were not `before`, and the other way round. Costs time with what
/// has changed.
pub fn topic_changes<'a>(
    before: &'a TopicMap,
    now: &'a TopicMap,
) -> impl Iterator<Item = TopicChange<'a>> + use<'a> {
    before.diff(now).filter_map(|change| match change {
        DiffItem::Add(name, _) => Some(TopicChange::Created(name)),
        DiffItem::Remove(name, _) => Some(TopicChange::Deleted(name)),
        DiffItem::Update { .. } => None,
    })
}

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
    /// Those that have changed since this began to watch.
    transactions: OrdMap<Arc<str>, i64>,
    /// Keys whose values cannot be read.
    unreadable: OrdSet<Bytes>,
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

    /// Mod revision of a transactional id's key, if it has changed since this broker began to
    /// watch.
    pub fn transaction_revision(&self, transactional_id: &str) -> Option<i64> {
        self.transactions.get(transactional_id).copied()
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

    /// How many values there are that cannot be read: each takes out its own topic, broker, configs
    /// or subscription, and nothing else.
    pub fn unreadable(&self) -> usize {
        self.unreadable.len()
    }

    /// The value of a key, unless it cannot be read: then that is noted, and what the key said
    /// before counts no more.
    fn readable<T: Value>(&mut self, key: &Key, kv: &KeyValue) -> Option<T> {
        match T::decode(&kv.value) {
            Ok(value) => {
                if !self.unreadable.is_empty() {
                    self.unreadable.remove(&kv.key);
                }
                Some(value)
            }
            Err(error) => {
                let name = String::from_utf8_lossy(&kv.key);
                error!(key = %name, revision = kv.mod_revision, %error, "a value cannot be read: it counts as absent");
                self.remove(key, &kv.key);
                self.unreadable.insert(kv.key.clone());
                None
            }
        }
    }

    /// Takes over a key as it was read. Keys that mean nothing here are passed over.
    pub(crate) fn put(&mut self, keys: &Keyspace, kv: &KeyValue) {
        let Some(key) = keys.parse(&kv.key) else { return };
        match &key {
            Key::Topic(name) => {
                let Some(value) = self.readable(&key, kv) else { return };
                self.put_topic(TopicInfo { name: name.clone(), value, mod_revision: kv.mod_revision });
            }
            Key::Broker(node_id) => {
                let Some(value) = self.readable(&key, kv) else { return };
                let broker = BrokerInfo { value, incarnation: kv.create_revision };
                self.brokers.insert(*node_id, Arc::new(broker));
            }
            Key::BrokerConfig(node_id) => {
                let Some(value) = self.readable(&key, kv) else { return };
                self.configs.insert(*node_id, (value, kv.mod_revision));
            }
            Key::GroupConfig(group) => {
                let Some(value) = self.readable(&key, kv) else { return };
                self.group_configs.insert(group.clone(), (value, kv.mod_revision));
            }
            Key::ClientMetrics(name) => {
                let Some(value) = self.readable(&key, kv) else { return };
                Arc::make_mut(&mut self.client_metrics).insert(name.clone(), (value, kv.mod_revision));
            }
            Key::Group(group) => {
                self.groups.insert(group.as_str().into(), kv.mod_revision);
            }
            Key::Transaction(id) => {
                self.transactions.insert(id.as_str().into(), kv.mod_revision);
            }
            Key::Offsets { group, topic, part } => {
                let key = (topic.as_str().into(), *part);
                if !self.offsets.get(group.as_str()).is_some_and(|known| known.contains(&key)) {
                    self.offsets.entry(group.as_str().into()).or_default().insert(key);
                }
            }
            _ => {}
        }
    }

    fn put_topic(&mut self, topic: TopicInfo) {
        let topic = Arc::new(topic);
        if let Some(before) = self.topics.insert(topic.name.clone(), topic.clone())
            && before.value.topic_id != topic.value.topic_id
        {
            self.ids.remove(&before.value.topic_id);
        }
        self.ids.insert(topic.value.topic_id, topic);
    }

    /// Takes over a change.
    pub(crate) fn apply(&mut self, keys: &Keyspace, event: &Event) {
        match event {
            Event::Put(kv) => self.put(keys, kv),
            Event::Delete { key: bytes, .. } => {
                if let Some(key) = keys.parse(bytes) {
                    self.remove(&key, bytes);
                }
            }
        }
    }

    /// Forgets what a key said.
    fn remove(&mut self, key: &Key, bytes: &[u8]) {
        if !self.unreadable.is_empty() {
            self.unreadable.remove(bytes);
        }
        match key {
            Key::Topic(name) => {
                if let Some(gone) = self.topics.remove(name) {
                    self.ids.remove(&gone.value.topic_id);
                }
            }
            Key::Broker(node_id) => {
                self.brokers.remove(node_id);
            }
            Key::BrokerConfig(node_id) => {
                self.configs.remove(node_id);
            }
            Key::GroupConfig(group) => {
                self.group_configs.remove(group);
            }
            Key::ClientMetrics(name) if self.client_metrics.contains_key(name) => {
                Arc::make_mut(&mut self.client_metrics).remove(name);
            }
            Key::Group(group) => {
                self.groups.remove(group.as_str());
            }
            Key::Transaction(id) => {
                self.transactions.remove(id.as_str());
            }
            Key::Offsets { group, topic, part } => {
                if let Some(keys) = self.offsets.get_mut(group.as_str()) {
                    keys.remove(&(topic.as_str().into(), *part));
                    if keys.is_empty() {
                        self.offsets.remove(group.as_str());
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_topics_are_those_of_their_names() {
        let keys = Keyspace::new("test").unwrap();
        let mut names = Names::default();
        let put = |names: &mut Names, topic: &str, partitions| {
            let value = crate::topics::new_topic(Uuid::from_u128(partitions), 1, BTreeMap::new(), 0).encode();
            let key = keys.encode(&Key::Topic(topic.to_owned()));
            let value = value.into();
            let kv = KeyValue { key, value, create_revision: 1, mod_revision: 1, version: 1, lease: 0 };
            names.put(&keys, &kv);
        };
        put(&mut names, "a", 1);
        put(&mut names, "b", 2);
        let before = names.topics().clone();
        put(&mut names, "b", 3);
        put(&mut names, "c", 4);
        let deleted = Event::Delete { key: keys.encode(&Key::Topic("a".to_owned())), revision: 2 };
        names.apply(&keys, &deleted);
        let changes: Vec<_> = topic_changes(&before, names.topics()).collect();
        assert_eq!(changes, [TopicChange::Deleted("a"), TopicChange::Created("c")]);
        assert_eq!(topic_changes(&before, &before).next(), None);
    }

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
            names.put(&keys, &kv);
        }
        let mut groups: Vec<&str> = names.groups().collect();
        groups.sort_unstable();
        assert_eq!(groups, ["both", "key", "offsets"]);
    }

    #[test]
    fn a_value_that_cannot_be_read_takes_out_what_it_is_of_and_nothing_else() {
        let keys = Keyspace::new("test").unwrap();
        let mut names = Names::default();
        let put = |names: &mut Names, key: &Key, value: &[u8]| {
            let (key, value) = (keys.encode(key), Bytes::copy_from_slice(value));
            let kv = KeyValue { key, value, create_revision: 1, mod_revision: 1, version: 1, lease: 0 };
            names.apply(&keys, &Event::Put(kv));
        };
        let topic = |id| crate::topics::new_topic(Uuid::from_u128(id), 1, BTreeMap::new(), 0).encode();
        let configs = ConfigsValue { format: 1, configs: BTreeMap::new() }.encode();
        let [a, b] = ["a", "b"].map(|name| Key::Topic(name.to_owned()));
        put(&mut names, &a, &topic(1));
        put(&mut names, &b, &topic(2));
        let others = [
            Key::Broker(7),
            Key::BrokerConfig(None),
            Key::GroupConfig("g".to_owned()),
            Key::ClientMetrics("m".to_owned()),
        ];
        for key in &others {
            put(&mut names, key, b"{\"format\":9}");
        }
        put(&mut names, &a, b"garbage");
        assert_eq!((names.unreadable(), names.topics().len(), names.client_metrics().len()), (5, 1, 0));
        assert!(names.topic("a").is_none() && names.topic_by_id(Uuid::from_u128(1)).is_none());
        assert!(names.topic("b").is_some() && names.brokers().is_empty());
        // Mended, or deleted.
        put(&mut names, &a, &topic(1));
        put(&mut names, &others[3], &configs);
        for key in &others[..3] {
            names.apply(&keys, &Event::Delete { key: keys.encode(key), revision: 9 });
        }
        assert_eq!((names.unreadable(), names.topics().len(), names.client_metrics().len()), (0, 2, 1));
    }
}
