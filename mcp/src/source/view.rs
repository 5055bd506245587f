//! The cluster as of one revision: what etcd's plain keys say, decoded.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use strandline_metadata::backend::KeyValue;
use strandline_metadata::keys::{Key, Keyspace};
use strandline_metadata::placement::{self, Candidate};
use strandline_metadata::values::group::{CommittedOffset, GroupValue, OFFSETS_PER_KEY, OffsetsValue};
use strandline_metadata::values::watermarks::{WATERMARKS_PER_KEY, Watermarks, WatermarksValue};
use strandline_metadata::values::{
    BrokerValue, ClusterValue, ConfigsValue, LeaderValue, SnapshotValue, TopicValue, Value,
};
use uuid::Uuid;

/// A value with etcd's bookkeeping for its key.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored<T> {
    /// The value.
    pub value: T,
    /// Revision at which the key was created.
    pub create_revision: i64,
    /// Revision of the newest put.
    pub mod_revision: i64,
    /// The lease that it is attached to; 0 for none.
    pub lease: i64,
}

/// A decoded value, shared between views; `Unreadable` if this build cannot read it.
#[derive(Clone, Debug)]
pub enum Decoded {
    /// `cluster`.
    Cluster(Arc<Stored<ClusterValue>>),
    /// `brokers/…`.
    Broker(Arc<Stored<BrokerValue>>),
    /// `topics/…`.
    Topic(Arc<Stored<TopicValue>>),
    /// `configs/…`.
    Configs(Arc<Stored<ConfigsValue>>),
    /// `groups/…`.
    Group(Arc<Stored<GroupValue>>),
    /// `offsets/…`.
    Offsets(Arc<Stored<OffsetsValue>>),
    /// `watermarks/…`.
    Watermarks(Arc<Stored<WatermarksValue>>),
    /// `leaders/…`.
    Leader(Arc<Stored<LeaderValue>>),
    /// `snapshot`.
    Snapshot(Arc<Stored<SnapshotValue>>),
    /// A value of another format, or damaged.
    Unreadable,
}

/// How far a partition is, and as of which revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Offsets, bytes and the last time.
    pub marks: Watermarks,
    /// The revision that they are as of.
    pub revision: i64,
}

/// What a group committed for a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit<'a> {
    /// What was committed.
    pub committed: &'a CommittedOffset,
    /// Revision of the newest put of the key that it is in: no commit in it is younger.
    pub revision: i64,
}

/// Committed offsets of one group by topic and run of partitions.
pub type GroupOffsets = BTreeMap<String, BTreeMap<u32, Arc<Stored<OffsetsValue>>>>;

/// The cluster as of one revision, as far as it was read.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The revision.
    pub revision: i64,
    /// When it was read, ms since 1970.
    pub read_at_ms: i64,
    /// Identity of the cluster.
    pub cluster: Option<Arc<Stored<ClusterValue>>>,
    /// Registered brokers, by node id.
    pub brokers: BTreeMap<i32, Arc<Stored<BrokerValue>>>,
    /// Dynamic defaults of all brokers.
    pub defaults: BTreeMap<String, String>,
    /// Configs of groups.
    pub group_configs: BTreeMap<String, Arc<Stored<ConfigsValue>>>,
    /// Groups, by id.
    pub groups: BTreeMap<String, Arc<Stored<GroupValue>>>,
    /// Holders of background jobs.
    pub leaders: BTreeMap<String, Arc<Stored<LeaderValue>>>,
    /// Topics, by name.
    pub topics: BTreeMap<String, Arc<Stored<TopicValue>>>,
    /// Names of topics, by id.
    pub names: HashMap<Uuid, String>,
    /// Snapshots.
    pub snapshot: Option<Arc<Stored<SnapshotValue>>>,
    /// Committed offsets, by group.
    pub offsets: BTreeMap<String, GroupOffsets>,
    pub(crate) watermarks: HashMap<(Uuid, u32), Arc<Stored<WatermarksValue>>>,
    /// Values that this build cannot read.
    pub unreadable: usize,
}

impl View {
    /// From what was read; `known` has what was decoded before.
    pub(crate) fn build(
        keys: &Keyspace,
        revision: i64,
        read_at_ms: i64,
        kvs: &[KeyValue],
        known: &mut HashMap<Bytes, (i64, Decoded)>,
    ) -> Self {
        let mut view = Self { revision, read_at_ms, ..Self::default() };
        for kv in kvs {
            let Some(key) = keys.parse(&kv.key) else { continue };
            let decoded = match known.get(&kv.key) {
                Some((at, decoded)) if *at == kv.mod_revision => decoded.clone(),
                _ => {
                    let Some(decoded) = decode(&key, kv) else { continue };
                    known.insert(kv.key.clone(), (kv.mod_revision, decoded.clone()));
                    decoded
                }
            };
            view.put(key, decoded);
        }
        view
    }

    fn put(&mut self, key: Key, decoded: Decoded) {
        match (key, decoded) {
            (Key::Cluster, Decoded::Cluster(value)) => self.cluster = Some(value),
            (Key::Broker(node_id), Decoded::Broker(value)) => {
                self.brokers.insert(node_id, value);
            }
            (Key::Topic(name), Decoded::Topic(value)) => {
                self.names.insert(value.value.topic_id, name.clone());
                self.topics.insert(name, value);
            }
            (Key::BrokerConfig(None), Decoded::Configs(value)) => {
                self.defaults.clone_from(&value.value.configs);
            }
            (Key::GroupConfig(group), Decoded::Configs(value)) => {
                self.group_configs.insert(group, value);
            }
            (Key::Group(group), Decoded::Group(value)) => {
                self.groups.insert(group, value);
            }
            (Key::Offsets { group, topic, part }, Decoded::Offsets(value)) => {
                self.offsets.entry(group).or_default().entry(topic).or_default().insert(part, value);
            }
            (Key::Watermarks { topic_id, part }, Decoded::Watermarks(value)) => {
                self.watermarks.insert((topic_id, part), value);
            }
            (Key::Leader(job), Decoded::Leader(value)) => {
                self.leaders.insert(job, value);
            }
            (Key::Snapshot, Decoded::Snapshot(value)) => self.snapshot = Some(value),
            (_, Decoded::Unreadable) => self.unreadable += 1,
            _ => {}
        }
    }

    /// How far a partition is; `None` if nobody has written it down yet.
    pub fn marks(&self, topic_id: Uuid, partition: u32) -> Option<Marks> {
        let per_key = u32::try_from(WATERMARKS_PER_KEY).ok()?;
        let stored = self.watermarks.get(&(topic_id, partition / per_key))?;
        let marks = stored.value.partitions.get(usize::try_from(partition % per_key).ok()?)?;
        Some(Marks { marks: *marks, revision: stored.value.revision })
    }

    /// What a group committed for a partition of a topic; nothing if it was for another topic of the same name.
    pub fn commit(&self, group: &str, topic: &str, topic_id: Uuid, partition: u32) -> Option<Commit<'_>> {
        let stored = self.offsets.get(group)?.get(topic)?.get(&(partition / OFFSETS_PER_KEY))?;
        if stored.value.topic_id != topic_id {
            return None;
        }
        let committed = stored.value.partitions.get(&partition)?;
        Some(Commit { committed, revision: stored.mod_revision })
    }

    /// The brokers that partitions and groups are spread over.
    pub fn candidates(&self) -> Vec<i32> {
        let brokers: Vec<Candidate<'_>> = self
            .brokers
            .values()
            .map(|b| Candidate { node_id: b.value.node_id, draining: b.value.draining, zone: &b.value.zone })
            .collect();
        placement::candidates(&brokers, None)
    }

    /// The id of the cluster.
    pub fn cluster_id(&self) -> Option<&str> {
        self.cluster.as_ref().map(|c| c.value.cluster_id.as_str())
    }

    /// Every group that has a key or committed offsets.
    pub fn group_ids(&self) -> std::collections::BTreeSet<&str> {
        self.groups.keys().chain(self.offsets.keys()).map(String::as_str).collect()
    }
}

fn decode(key: &Key, kv: &KeyValue) -> Option<Decoded> {
    fn stored<T: Value>(kv: &KeyValue, wrap: impl Fn(Arc<Stored<T>>) -> Decoded) -> Decoded {
        match T::decode(&kv.value) {
            Ok(value) => wrap(Arc::new(Stored {
                value,
                create_revision: kv.create_revision,
                mod_revision: kv.mod_revision,
                lease: kv.lease,
            })),
            Err(error) => {
                tracing::warn!(%error, key = %String::from_utf8_lossy(&kv.key), "a value cannot be read");
                Decoded::Unreadable
            }
        }
    }
    Some(match key {
        Key::Cluster => stored(kv, Decoded::Cluster),
        Key::Broker(_) => stored(kv, Decoded::Broker),
        Key::Topic(_) => stored(kv, Decoded::Topic),
        Key::BrokerConfig(_) | Key::GroupConfig(_) | Key::ClientMetrics(_) => stored(kv, Decoded::Configs),
        Key::Group(_) => stored(kv, Decoded::Group),
        Key::Offsets { .. } => stored(kv, Decoded::Offsets),
        Key::Watermarks { .. } => stored(kv, Decoded::Watermarks),
        Key::Leader(_) => stored(kv, Decoded::Leader),
        Key::Snapshot => stored(kv, Decoded::Snapshot),
        Key::Commits | Key::Head(_) | Key::Log { .. } | Key::ProducerIds => return None,
    })
}
