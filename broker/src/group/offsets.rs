//! Committed offsets: putting commits into what is stored, finding them, letting them expire. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use strandline_metadata::groups::{OffsetsKey, OffsetsPut, StoredOffsets};
use strandline_metadata::limits::OFFSETS_PER_KEY;
use strandline_metadata::values::VALUE_FORMAT;
use strandline_metadata::values::group::{CommittedOffset, OffsetsValue};
use uuid::Uuid;

use super::Topics;
use super::size::json_bytes;
use crate::limits::OFFSETS_KEY_METADATA_BYTES;

/// One partition's commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Commit {
    /// Shared by all partitions of a request.
    pub(crate) topic: Arc<str>,
    pub(crate) topic_id: Uuid,
    pub(crate) partition: u32,
    pub(crate) committed: CommittedOffset,
}

/// Why a commit for one partition is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommitRefusal {
    #[error("there is no room for this metadata beside that of other partitions")]
    MetadataTooLarge,
    #[error("etcd is nearly full: nothing is stored that needs more room")]
    NoRoom,
}

/// What is committed for a group, with the mod revision of each key. Values may be large: whoever
/// asks for them shares them.
pub(crate) type SharedOffsets = BTreeMap<OffsetsKey, (i64, Arc<OffsetsValue>)>;

/// New values of keys of offsets that are not stored yet; `None` for a key that is to be deleted.
pub(crate) type Unsaved = BTreeMap<OffsetsKey, Option<OffsetsValue>>;

/// Which key a partition's offset is in.
pub(crate) fn key_of(topic: &str, partition: u32) -> OffsetsKey {
    (topic.to_owned(), partition / OFFSETS_PER_KEY)
}

/// The offsets of one group: what is stored, what is on its way, and what waits.
#[derive(Debug, Default)]
pub(crate) struct Offsets {
    stored: Arc<SharedOffsets>,
    saving: Unsaved,
    unsaved: Unsaved,
    /// Bytes of metadata that the current values of keys have, of those that were committed to
    /// since the last write: a commit must not add up all others of its key.
    metadata: BTreeMap<OffsetsKey, MetadataSum>,
    /// `stored` may be out of date: a write had an unknown outcome.
    is_stale: bool,
}

/// Bytes of metadata that the offsets of a topic have in one key, as they are stored.
#[derive(Clone, Copy, Debug)]
struct MetadataSum {
    topic_id: Uuid,
    bytes: usize,
}

impl Offsets {
    /// Offsets as they were read.
    pub(crate) fn new(stored: StoredOffsets) -> Self {
        let mut offsets = Self::default();
        offsets.replace(stored);
        offsets
    }

    /// Whether it is known what is stored. There may be more to delete than is known, and nothing
    /// may be written.
    pub(crate) fn are_known(&self) -> bool {
        !self.is_stale
    }

    /// What is stored, as far as is known.
    pub(crate) fn stored(&self) -> &Arc<SharedOffsets> {
        &self.stored
    }

    /// What to read again: the keys with their revisions, and nothing under them.
    /// [`Self::replace`] knows the values of those that have not changed.
    pub(crate) fn revisions(&self) -> StoredOffsets {
        let known = self.stored.iter();
        known.map(|(key, (revision, value))| (key.clone(), (*revision, empty(value.topic_id)))).collect()
    }

    pub(crate) fn has_unsaved(&self) -> bool {
        !self.unsaved.is_empty()
    }

    /// Whether something is on its way to the store.
    pub(crate) fn is_saving(&self) -> bool {
        !self.saving.is_empty()
    }

    /// Whether nothing is committed, nor about to be.
    pub(crate) fn is_empty(&self) -> bool {
        self.stored.keys().chain(self.saving.keys()).all(|key| self.current(key).is_none())
            && self.unsaved.values().all(Option::is_none)
    }

    /// The value of a key as it will be when everything is stored.
    fn current(&self, key: &OffsetsKey) -> Option<&OffsetsValue> {
        match self.unsaved.get(key).or_else(|| self.saving.get(key)) {
            Some(value) => value.as_ref(),
            None => self.stored.get(key).map(|(_, value)| &**value),
        }
    }

    /// Takes a commit up. What was committed for another topic of the same name is forgotten by it.
    /// Refused if it does not fit beside what others store with theirs or, unless it `may_grow`, if
    /// it needs more room than what it replaces.
    pub(crate) fn commit(&mut self, commit: Commit, may_grow: bool) -> Result<(), CommitRefusal> {
        let key = key_of(&commit.topic, commit.partition);
        let sum = self.metadata_sum(&key, commit.topic_id);
        let current = self.current(&key).filter(|value| value.topic_id == commit.topic_id);
        let replaced = current.and_then(|value| value.partitions.get(&commit.partition));
        let replaced = replaced.map(|c| json_bytes(&c.metadata));
        let own = json_bytes(&commit.committed.metadata);
        if !may_grow && replaced.is_none_or(|replaced| own > replaced) {
            return Err(CommitRefusal::NoRoom);
        }
        let bytes = sum.bytes - replaced.unwrap_or(0) + own;
        if own > 0 && bytes > OFFSETS_KEY_METADATA_BYTES {
            return Err(CommitRefusal::MetadataTooLarge);
        }
        let value = self.unsaved.get(&key).and_then(Option::as_ref);
        if value.is_none_or(|value| value.topic_id != commit.topic_id) {
            let value = current.cloned().unwrap_or_else(|| empty(commit.topic_id));
            self.unsaved.insert(key.clone(), Some(value));
        }
        if let Some(Some(value)) = self.unsaved.get_mut(&key) {
            value.partitions.insert(commit.partition, commit.committed);
        }
        self.metadata.insert(key, MetadataSum { bytes, ..sum });
        Ok(())
    }

    /// Bytes of metadata that are committed for this topic under a key. They are added up once.
    fn metadata_sum(&mut self, key: &OffsetsKey, topic_id: Uuid) -> MetadataSum {
        if let Some(sum) = self.metadata.get(key).filter(|sum| sum.topic_id == topic_id) {
            return *sum;
        }
        let current = self.current(key).filter(|value| value.topic_id == topic_id);
        let committed = current.into_iter().flat_map(|value| value.partitions.values());
        let sum = MetadataSum { topic_id, bytes: committed.map(|c| json_bytes(&c.metadata)).sum() };
        self.metadata.insert(key.clone(), sum);
        sum
    }

    /// Forgets the offset of a partition. Says whether there was one.
    pub(crate) fn delete(&mut self, topic: &str, partition: u32) -> bool {
        let key = key_of(topic, partition);
        let Some(mut value) = self.current(&key).cloned() else { return false };
        if value.partitions.remove(&partition).is_none() {
            return false;
        }
        self.metadata.remove(&key);
        self.unsaved.insert(key, (!value.partitions.is_empty()).then_some(value));
        true
    }

    /// Forgets everything.
    pub(crate) fn delete_all(&mut self) {
        let keys: Vec<OffsetsKey> = self.stored.keys().chain(self.saving.keys()).cloned().collect();
        self.unsaved = keys.into_iter().map(|key| (key, None)).collect();
        self.metadata.clear();
    }

    /// Deletes what has expired, and what belongs to topics that are gone (KIP-211). Gives the
    /// number of offsets deleted.
    pub(crate) fn expire(&mut self, topics: &dyn Topics, expiry: &Expiry<'_>) -> usize {
        let mut expired = Vec::new();
        for (key, (revision, _)) in &*self.stored {
            // A commit that is not stored yet renews what it replaces.
            let Some(value) = self.current(key).filter(|_| *revision <= expiry.topics_as_of) else {
                continue;
            };
            let topic = &key.0;
            let exists = topics.by_name(topic).is_some_and(|(id, _)| id == value.topic_id);
            let is_read = (expiry.reads)(topic);
            for (partition, committed) in &value.partitions {
                let since = expiry.empty_since_ms.unwrap_or(i64::MIN).max(committed.time_ms);
                let is_old = match committed.expires_ms {
                    Some(at) => expiry.now_ms >= at,
                    None => expiry.now_ms.saturating_sub(since) >= expiry.retention_ms,
                };
                if !exists || (is_old && !is_read) {
                    expired.push((topic.clone(), *partition));
                }
            }
        }
        expired.iter().filter(|(topic, partition)| self.delete(topic, *partition)).count()
    }

    /// Everything that waits, to be written with these stamps.
    pub(crate) fn begin_save(&mut self, writer: i64, write: u64) -> Vec<OffsetsPut> {
        debug_assert!(self.saving.is_empty(), "one write of a group is in flight at a time");
        self.saving = std::mem::take(&mut self.unsaved);
        let puts = self.saving.iter_mut().filter_map(|(key, value)| {
            if let Some(value) = value {
                (value.writer, value.write) = (writer, write);
            }
            let revision = self.stored.get(key).map_or(0, |(revision, _)| *revision);
            // Deleting what does not exist is nothing to write.
            (revision > 0 || value.is_some()).then(|| OffsetsPut {
                key: key.clone(),
                revision,
                value: value.clone(),
            })
        });
        puts.collect()
    }

    /// The write is over: these keys are written, at these revisions. What it did not store is
    /// forgotten.
    pub(crate) fn end_save(&mut self, written: &[(OffsetsKey, i64)]) {
        // Somebody may still look at what was stored before: then the keys are copied.
        let stored = Arc::make_mut(&mut self.stored);
        for (key, revision) in written {
            match self.saving.remove(key) {
                Some(Some(value)) => {
                    stored.insert(key.clone(), (*revision, Arc::new(value)));
                }
                Some(None) => {
                    stored.remove(key);
                }
                None => {}
            }
        }
        self.saving.clear();
        // What was not stored is not current any more.
        self.metadata.clear();
    }

    /// The last write may have stored more than is known, so what came after it is forgotten, too.
    pub(crate) fn forget_unsaved(&mut self) {
        self.unsaved.clear();
        self.metadata.clear();
        self.is_stale = true;
    }

    /// Takes over what was read anew. Says whether what waits may still be written: a key has the
    /// offsets of many partitions, so a value that was made of another one would undo what somebody
    /// else has committed.
    pub(crate) fn replace(&mut self, read: StoredOffsets) -> bool {
        debug_assert!(self.saving.is_empty(), "nothing is read while something is written");
        let known = |key: &OffsetsKey| self.stored.get(key).map(|(revision, _)| *revision);
        let now = |key: &OffsetsKey| read.get(key).map(|(revision, _)| *revision);
        let is_same = self.unsaved.keys().all(|key| known(key) == now(key));
        let shared = |(key, (revision, value)): (OffsetsKey, (i64, OffsetsValue))| {
            let known = self.stored.get(&key).filter(|(known, _)| *known == revision);
            let value = known.map_or_else(|| Arc::new(value), |(_, value)| value.clone());
            (key, (revision, value))
        };
        self.stored = Arc::new(read.into_iter().map(shared).collect());
        self.metadata.clear();
        self.is_stale = false;
        is_same
    }
}

fn empty(topic_id: Uuid) -> OffsetsValue {
    OffsetsValue { format: VALUE_FORMAT, writer: 0, write: 0, topic_id, partitions: BTreeMap::new() }
}

/// How long a value is when it is stored, about.
pub(crate) fn stored_bytes(value: &OffsetsValue) -> usize {
    /// What there is beside the metadata: names and numbers.
    const PARTITION: usize = 120;
    200 + value.partitions.values().map(|c| PARTITION + json_bytes(&c.metadata)).sum::<usize>()
}

/// What is committed for the partitions of one topic.
#[derive(Debug, Default)]
pub(crate) struct TopicOffsets<'a>(BTreeMap<u32, &'a OffsetsValue>);

impl<'a> TopicOffsets<'a> {
    /// Those of the topic with this id.
    pub(crate) fn of(stored: &'a SharedOffsets, topic: &str, topic_id: Uuid) -> Self {
        let keys = (topic.to_owned(), 0)..=(topic.to_owned(), u32::MAX);
        let values = stored.range(keys).map(|((_, part), (_, value))| (*part, &**value));
        Self(values.filter(|(_, value)| value.topic_id == topic_id).collect())
    }

    /// What is committed for a partition.
    pub(crate) fn get(&self, partition: u32) -> Option<&'a CommittedOffset> {
        self.0.get(&(partition / OFFSETS_PER_KEY))?.partitions.get(&partition)
    }

    /// The partitions that something is committed for.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = u32> {
        self.0.values().flat_map(|value| value.partitions.keys().copied())
    }
}

/// What decides whether offsets have expired.
pub(crate) struct Expiry<'a> {
    pub(crate) now_ms: i64,
    pub(crate) retention_ms: i64,
    /// When the last member left; `None` while there are members, or if there never were any.
    pub(crate) empty_since_ms: Option<i64>,
    /// The revision as of which the topics are known: what was committed after it may be for a
    /// topic that is not known.
    pub(crate) topics_as_of: i64,
    /// Whether members read a topic: what is committed for it does not expire.
    pub(crate) reads: &'a dyn Fn(&str) -> bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(offset: i64, time_ms: i64) -> CommittedOffset {
        CommittedOffset {
            offset,
            leader_epoch: -1,
            time_ms,
            metadata: String::new(),
            expires_ms: None,
            after: 0,
        }
    }

    fn of(topic: &str, id: u128, partition: u32, at: i64) -> Commit {
        let (topic, topic_id) = (topic.into(), Uuid::from_u128(id));
        Commit { topic, topic_id, partition, committed: offset(at, 100) }
    }

    fn take(offsets: &mut Offsets, commit: Commit) -> bool {
        offsets.commit(commit, true).is_ok()
    }

    /// Stores what is unsaved, as the coordinator does.
    fn save(offsets: &mut Offsets, revision: i64) -> usize {
        let puts = offsets.begin_save(1, 1);
        let written: Vec<_> = puts.iter().map(|p| (p.key.clone(), revision)).collect();
        offsets.end_save(&written);
        puts.len()
    }

    fn at(offsets: &Offsets, topic_id: u128, partition: u32) -> Option<i64> {
        let committed = TopicOffsets::of(offsets.stored(), "t", Uuid::from_u128(topic_id));
        committed.get(partition).map(|c| c.offset)
    }

    fn base() -> Expiry<'static> {
        Expiry {
            now_ms: 1_100,
            retention_ms: 1_000,
            empty_since_ms: None,
            topics_as_of: i64::MAX,
            reads: &|_| false,
        }
    }

    #[test]
    fn commits_are_merged_into_what_is_stored() {
        let mut offsets = Offsets::default();
        take(&mut offsets, of("t", 1, 0, 5));
        take(&mut offsets, of("t", 1, 300, 6));
        save(&mut offsets, 1);
        take(&mut offsets, of("t", 1, 1, 7));
        take(&mut offsets, of("t", 1, 1, 8));
        assert_eq!(save(&mut offsets, 2), 1, "the key of partition 300 is left alone");
        let found = [0, 1, 2, 300].map(|partition| at(&offsets, 1, partition));
        assert_eq!(found, [Some(5), Some(8), None, Some(6)]);
    }

    #[test]
    fn what_comes_while_something_is_written_goes_on_from_that() {
        let mut offsets = Offsets::default();
        take(&mut offsets, of("t", 1, 0, 5));
        let puts = offsets.begin_save(1, 1);
        take(&mut offsets, of("t", 1, 1, 6));
        assert_eq!(at(&offsets, 1, 0), None, "what is not stored is not shown");
        offsets.end_save(&[(puts[0].key.clone(), 9)]);
        let puts = offsets.begin_save(1, 2);
        let value = puts[0].value.as_ref().unwrap();
        assert_eq!((puts[0].revision, value.partitions.len(), value.write), (9, 2, 2));
    }

    #[test]
    fn a_topic_of_the_same_name_starts_with_nothing_committed() {
        let mut offsets = Offsets::default();
        take(&mut offsets, of("t", 1, 0, 5));
        take(&mut offsets, of("t", 1, 1, 5));
        save(&mut offsets, 1);
        assert_eq!(at(&offsets, 2, 0), None);
        take(&mut offsets, of("t", 2, 1, 9));
        save(&mut offsets, 2);
        assert_eq!((at(&offsets, 2, 0), at(&offsets, 2, 1), at(&offsets, 1, 1)), (None, Some(9), None));
    }

    #[test]
    fn offsets_expire_from_when_the_group_was_left_and_not_while_they_are_read() {
        let topics = BTreeMap::from([
            ("read".to_owned(), (Uuid::from_u128(1), 3)),
            ("unread".to_owned(), (Uuid::from_u128(2), 3)),
        ]);
        let gone = |expiry: &Expiry<'_>| {
            let mut offsets = Offsets::default();
            for c in [of("read", 1, 0, 5), of("unread", 2, 0, 5), of("gone", 3, 0, 5)] {
                take(&mut offsets, c);
            }
            save(&mut offsets, 1);
            offsets.expire(&topics, expiry);
            offsets.unsaved.into_keys().map(|(topic, _)| topic).collect::<Vec<_>>()
        };
        assert_eq!(gone(&Expiry { now_ms: 1_099, ..base() }), ["gone"]);
        assert_eq!(gone(&base()), ["gone", "read", "unread"]);
        assert_eq!(gone(&Expiry { empty_since_ms: Some(101), ..base() }), ["gone"]);
        assert_eq!(gone(&Expiry { reads: &|topic| topic == "read", ..base() }), ["gone", "unread"]);
        assert_eq!(gone(&Expiry { reads: &|_| true, ..base() }), ["gone"]);
    }

    #[test]
    fn a_commit_that_waits_or_is_being_written_does_not_expire_with_what_it_replaces() {
        let topics = BTreeMap::from([("t".to_owned(), (Uuid::from_u128(1), 3))]);
        let mut offsets = Offsets::default();
        take(&mut offsets, of("t", 1, 0, 5));
        take(&mut offsets, of("t", 1, 1, 5));
        save(&mut offsets, 1);
        let fresh = |partition| Commit { committed: offset(6, 5_000), ..of("t", 1, partition, 6) };
        let expiry = Expiry { now_ms: 5_000, retention_ms: 1_000, ..base() };
        take(&mut offsets, fresh(0));
        assert_eq!(offsets.expire(&topics, &expiry), 1, "the other partition's offset");
        let puts = offsets.begin_save(1, 2);
        take(&mut offsets, fresh(1));
        assert_eq!(offsets.expire(&topics, &expiry), 0);
        offsets.end_save(&[(puts[0].key.clone(), 2)]);
        save(&mut offsets, 3);
        assert_eq!((at(&offsets, 1, 0), at(&offsets, 1, 1)), (Some(6), Some(6)));
    }

    #[test]
    fn what_is_newer_than_the_known_topics_does_not_expire() {
        let mut offsets = Offsets::default();
        take(&mut offsets, of("new", 1, 0, 5));
        save(&mut offsets, 7);
        let none = BTreeMap::new();
        assert_eq!(offsets.expire(&none, &Expiry { topics_as_of: 6, ..base() }), 0);
        assert_eq!(offsets.expire(&none, &Expiry { topics_as_of: 7, ..base() }), 1);
    }

    #[test]
    fn what_waits_does_not_hide_what_somebody_else_has_written_beside_it() {
        let mut offsets = Offsets::default();
        take(&mut offsets, of("t", 1, 0, 5));
        save(&mut offsets, 1);
        take(&mut offsets, of("t", 1, 1, 6));
        let same =
            || offsets.stored().iter().map(|(key, (at, value))| (key.clone(), (*at, (**value).clone())));
        let mut theirs = Offsets::new(same().collect());
        let same = same().collect();
        assert!(offsets.replace(same));
        take(&mut theirs, of("t", 1, 0, 7));
        save(&mut theirs, 2);
        assert!(!offsets.replace(theirs.revisions()), "its write would put 5 back for partition 0");
    }

    #[test]
    fn what_is_committed_is_shared_with_whoever_reads_it_and_with_the_next_read() {
        let mut offsets = Offsets::default();
        take(&mut offsets, of("t", 1, 0, 5));
        take(&mut offsets, of("t", 1, 300, 6));
        save(&mut offsets, 1);
        let before = offsets.stored().clone();
        assert!(offsets.replace(offsets.revisions()), "nothing has changed");
        let shared = |offsets: &Offsets| {
            let pairs = before.values().zip(offsets.stored().values());
            pairs.map(|((_, before), (_, now))| Arc::ptr_eq(before, now)).collect::<Vec<_>>()
        };
        assert_eq!(shared(&offsets), [true, true]);
        take(&mut offsets, of("t", 1, 300, 7));
        save(&mut offsets, 2);
        assert_eq!(shared(&offsets), [true, false]);
        assert_eq!((at(&offsets, 1, 0), at(&offsets, 1, 300)), (Some(5), Some(7)));
        assert_eq!(TopicOffsets::of(&before, "t", Uuid::from_u128(1)).get(300).map(|c| c.offset), Some(6));
    }

    #[test]
    fn metadata_that_would_not_fit_into_a_key_is_refused() {
        let mut offsets = Offsets::default();
        let with = |partition: u32, metadata: String| {
            let mut own = of("t", 1, partition, 5);
            own.committed.metadata = metadata;
            own
        };
        for partition in 0..2 {
            assert!(take(&mut offsets, with(partition, "x".repeat(290_000))));
        }
        assert!(!take(&mut offsets, with(2, "\n".repeat(4_000))));
        assert!(take(&mut offsets, with(2, String::new())));
        assert!(take(&mut offsets, with(1, "again".to_owned())));
        assert!(take(&mut offsets, with(2, "\n".repeat(4_000))));
    }

    /// Adding up the others' metadata for each commit would take hours here.
    #[test]
    fn a_commit_does_not_look_at_the_metadata_of_all_others_in_its_key() {
        let mut offsets = Offsets::default();
        let with = |partition: u32, metadata: &str| {
            let mut own = of("t", 1, partition, 5);
            own.committed.metadata = metadata.to_owned();
            own
        };
        let large = "x".repeat(OFFSETS_KEY_METADATA_BYTES / 200);
        for partition in 0..200 {
            assert!(take(&mut offsets, with(partition, &large)));
        }
        for _ in 0..10_000 {
            assert!(!take(&mut offsets, with(200, "more")));
            assert!(take(&mut offsets, with(199, "")));
            assert!(take(&mut offsets, with(200, "more")));
            assert!(!take(&mut offsets, with(199, &large)));
            assert!(take(&mut offsets, with(200, "")));
            assert!(take(&mut offsets, with(199, &large)));
        }
    }

    #[test]
    fn the_size_of_what_is_committed_follows_all_that_happens_to_it() {
        let full = || {
            let mut own = of("t", 1, 0, 5);
            own.committed.metadata = "x".repeat(OFFSETS_KEY_METADATA_BYTES);
            own
        };
        let one_more = || Commit { partition: 1, ..full() };
        let mut offsets = Offsets::default();
        assert!(take(&mut offsets, full()) && !take(&mut offsets, one_more()));
        save(&mut offsets, 1);
        assert!(!take(&mut offsets, one_more()), "it is full by what is stored");
        offsets.delete("t", 0);
        assert!(take(&mut offsets, one_more()));
        offsets.forget_unsaved();
        assert!(!take(&mut offsets, one_more()), "the deletion is forgotten");
        offsets.replace(StoredOffsets::new());
        assert!(take(&mut offsets, one_more()) && !take(&mut offsets, full()));
        offsets.begin_save(1, 2);
        offsets.end_save(&[]);
        assert!(take(&mut offsets, full()), "the write stored nothing");
        offsets.delete_all();
        let other_topic = Commit { topic_id: Uuid::from_u128(2), ..one_more() };
        assert!(take(&mut offsets, other_topic) && take(&mut offsets, full()), "the last topic counts");
    }

    #[test]
    fn a_client_may_ask_for_a_time_of_its_own() {
        let topics = BTreeMap::from([("t".to_owned(), (Uuid::from_u128(1), 3))]);
        let mut offsets = Offsets::default();
        let mut own = of("t", 1, 0, 5);
        own.committed.expires_ms = Some(150);
        take(&mut offsets, own);
        save(&mut offsets, 1);
        let at = |now_ms| Expiry { now_ms, ..base() };
        assert_eq!(offsets.expire(&topics, &at(149)), 0);
        assert_eq!(offsets.expire(&topics, &at(150)), 1);
        assert!(!offsets.delete("t", 0), "it is gone already");
        save(&mut offsets, 2);
        assert!(offsets.is_empty());
    }
}
