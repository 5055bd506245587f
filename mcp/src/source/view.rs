//! The cluster as of one revision: what etcd's plain keys say, decoded.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use strandline_metadata::backend::KeyValue;
use strandline_metadata::keys::Key;
use strandline_metadata::limits::{OFFSETS_PER_KEY, WATERMARKS_PER_KEY};
use strandline_metadata::placement::{self, Candidate};
use strandline_metadata::values::group::{CommittedOffset, GroupValue, OffsetsValue};
use strandline_metadata::values::transaction::{OpenTransactionsValue, TransactionValue};
use strandline_metadata::values::watermarks::{Watermarks, WatermarksValue};
use strandline_metadata::values::{
    BrokerValue, ClusterValue, ConfigsValue, LeaderValue, SnapshotValue, TopicValue, Value,
};
use uuid::Uuid;

use super::need::Family;

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

/// What a key says, shared between views.
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
    /// `txns/…`.
    Transaction(Arc<Stored<TransactionValue>>),
    /// `open-transactions`.
    OpenTransactions(Arc<Stored<OpenTransactionsValue>>),
    /// Something that no view has.
    Other,
    /// A value of another format, or damaged: this build cannot read it.
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

impl Marks {
    /// How many offsets open transactions keep from whoever reads what is committed.
    pub fn held_back(&self) -> i64 {
        (self.marks.end - self.marks.last_stable).max(0)
    }
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

/// How far partitions are, by topic and run of partitions.
pub(crate) type MarksByRun = HashMap<(Uuid, u32), Arc<Stored<WatermarksValue>>>;

/// The cluster as of one revision, as far as it was read. What may be much is shared with other
/// views.
#[derive(Clone, Debug, Default, PartialEq)]
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
    pub group_configs: Arc<BTreeMap<String, Arc<Stored<ConfigsValue>>>>,
    /// Groups, by id.
    pub groups: Arc<BTreeMap<String, Arc<Stored<GroupValue>>>>,
    /// Holders of background jobs.
    pub leaders: BTreeMap<String, Arc<Stored<LeaderValue>>>,
    /// Topics, by name.
    pub topics: Arc<BTreeMap<String, Arc<Stored<TopicValue>>>>,
    /// Names of topics, by id.
    pub names: Arc<HashMap<Uuid, String>>,
    /// Snapshots.
    pub snapshot: Option<Arc<Stored<SnapshotValue>>>,
    /// Committed offsets, by group.
    pub offsets: Arc<BTreeMap<String, Arc<GroupOffsets>>>,
    pub(crate) watermarks: Arc<MarksByRun>,
    /// Transactional ids.
    pub transactions: Arc<BTreeMap<String, Arc<Stored<TransactionValue>>>>,
    /// The transactions that have been open for a while; `None` if there never was one.
    pub open_transactions: Option<Arc<Stored<OpenTransactionsValue>>>,
    /// Values that this build cannot read.
    pub unreadable: usize,
}

impl View {
    /// Takes one key, which may be known by an older value.
    pub(super) fn put(&mut self, key: Key, decoded: Decoded) {
        match (key, decoded) {
            (Key::Cluster, Decoded::Cluster(value)) => self.cluster = Some(value),
            (Key::Broker(node_id), Decoded::Broker(value)) => {
                self.brokers.insert(node_id, value);
            }
            (Key::Topic(name), Decoded::Topic(value)) => {
                let (id, names) = (value.value.topic_id, Arc::make_mut(&mut self.names));
                names.insert(id, name.clone());
                let before = Arc::make_mut(&mut self.topics).insert(name, value);
                // One that was deleted and created again has another id.
                if let Some(gone) = before.map(|before| before.value.topic_id).filter(|gone| *gone != id) {
                    names.remove(&gone);
                }
            }
            (Key::BrokerConfig(None), Decoded::Configs(value)) => {
                self.defaults.clone_from(&value.value.configs);
            }
            (Key::GroupConfig(group), Decoded::Configs(value)) => {
                Arc::make_mut(&mut self.group_configs).insert(group, value);
            }
            (Key::Group(group), Decoded::Group(value)) => {
                Arc::make_mut(&mut self.groups).insert(group, value);
            }
            (Key::Offsets { group, topic, part }, Decoded::Offsets(value)) => {
                let topics = Arc::make_mut(&mut self.offsets).entry(group).or_default();
                Arc::make_mut(topics).entry(topic).or_default().insert(part, value);
            }
            (Key::Watermarks { topic_id, part }, Decoded::Watermarks(value)) => {
                Arc::make_mut(&mut self.watermarks).insert((topic_id, part), value);
            }
            (Key::Leader(job), Decoded::Leader(value)) => {
                self.leaders.insert(job, value);
            }
            (Key::Snapshot, Decoded::Snapshot(value)) => self.snapshot = Some(value),
            (Key::Transaction(id), Decoded::Transaction(value)) => {
                Arc::make_mut(&mut self.transactions).insert(id, value);
            }
            (Key::OpenTransactions, Decoded::OpenTransactions(value)) => {
                self.open_transactions = Some(value);
            }
            (key, Decoded::Unreadable) => self.remove(&key),
            _ => {}
        }
    }

    /// What a key said before it was put so that this build cannot read it is no longer so.
    fn remove(&mut self, key: &Key) {
        match key {
            Key::Cluster => self.cluster = None,
            Key::Broker(node_id) => drop(self.brokers.remove(node_id)),
            Key::Topic(name) => {
                if let Some(gone) = Arc::make_mut(&mut self.topics).remove(name) {
                    Arc::make_mut(&mut self.names).remove(&gone.value.topic_id);
                }
            }
            Key::BrokerConfig(None) => self.defaults.clear(),
            Key::GroupConfig(group) => drop(Arc::make_mut(&mut self.group_configs).remove(group)),
            Key::Group(group) => drop(Arc::make_mut(&mut self.groups).remove(group)),
            Key::Offsets { group, topic, part } => {
                let all = Arc::make_mut(&mut self.offsets);
                if let Some(topics) = all.get_mut(group).map(Arc::make_mut) {
                    let parts = topics.get_mut(topic);
                    if parts.is_some_and(|parts| parts.remove(part).is_some() && parts.is_empty()) {
                        topics.remove(topic);
                    }
                    if topics.is_empty() {
                        all.remove(group);
                    }
                }
            }
            Key::Watermarks { topic_id, part } => {
                Arc::make_mut(&mut self.watermarks).remove(&(*topic_id, *part));
            }
            Key::Leader(job) => drop(self.leaders.remove(job)),
            Key::Snapshot => self.snapshot = None,
            Key::Transaction(id) => drop(Arc::make_mut(&mut self.transactions).remove(id)),
            Key::OpenTransactions => self.open_transactions = None,
            Key::Bucket
            | Key::BrokerConfig(Some(_))
            | Key::ClientMetrics(_)
            | Key::Commits
            | Key::Head(_)
            | Key::Log { .. }
            | Key::ProducerIds
            | Key::Pending { .. } => {}
        }
    }

    /// Takes over what another view has of a family of keys.
    pub(super) fn take_part(&mut self, family: Family, from: &Self) {
        match family {
            Family::Plain => {
                self.cluster.clone_from(&from.cluster);
                self.brokers.clone_from(&from.brokers);
                self.defaults.clone_from(&from.defaults);
                self.leaders.clone_from(&from.leaders);
                self.group_configs.clone_from(&from.group_configs);
                self.groups.clone_from(&from.groups);
            }
            Family::Commits => {
                self.offsets.clone_from(&from.offsets);
                self.open_transactions.clone_from(&from.open_transactions);
            }
            Family::Snapshot => self.snapshot.clone_from(&from.snapshot),
            Family::Topics => {
                self.topics.clone_from(&from.topics);
                self.names.clone_from(&from.names);
                self.transactions.clone_from(&from.transactions);
            }
            Family::Watermarks => self.watermarks.clone_from(&from.watermarks),
        }
    }

    /// How far a partition is; `None` if nobody has written it down yet.
    pub fn marks(&self, topic_id: Uuid, partition: u32) -> Option<Marks> {
        let per_key = u32::try_from(WATERMARKS_PER_KEY).ok()?;
        let stored = self.watermarks.get(&(topic_id, partition / per_key))?;
        let marks = stored.value.partitions.get(usize::try_from(partition % per_key).ok()?)?;
        Some(Marks { marks: *marks, revision: stored.value.revision })
    }

    /// What a group committed for a partition of a topic; nothing if it was for another topic of
    /// the same name.
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

/// What a key says.
pub(super) fn decode(key: &Key, kv: &KeyValue) -> Decoded {
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
    match key {
        Key::Cluster => stored(kv, Decoded::Cluster),
        Key::Broker(_) => stored(kv, Decoded::Broker),
        Key::Topic(_) => stored(kv, Decoded::Topic),
        Key::BrokerConfig(_) | Key::GroupConfig(_) | Key::ClientMetrics(_) => stored(kv, Decoded::Configs),
        Key::Group(_) => stored(kv, Decoded::Group),
        Key::Offsets { .. } => stored(kv, Decoded::Offsets),
        Key::Watermarks { .. } => stored(kv, Decoded::Watermarks),
        Key::Leader(_) => stored(kv, Decoded::Leader),
        Key::Snapshot => stored(kv, Decoded::Snapshot),
        Key::Transaction(_) => stored(kv, Decoded::Transaction),
        Key::OpenTransactions => stored(kv, Decoded::OpenTransactions),
        Key::Bucket
        | Key::Commits
        | Key::Head(_)
        | Key::Log { .. }
        | Key::ProducerIds
        | Key::Pending { .. } => Decoded::Other,
    }
}
