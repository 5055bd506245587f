//! The state machine: what the log of commits means.
//!
//! [`State::apply`] is pure and total. It reads the record and the state, nothing else: no clock,
//! no randomness, no configuration, and no plain key (invariant 4 rests on that). Every broker
//! applies the same records in the same order, and so derives the same offsets, the same duplicates
//! and the same dead objects without asking anybody.
//!
//! A state is made to be shared: a clone costs nothing that grows with it, and shares everything
//! until one side changes, and then all but what changes. Every reader has such a clone, so nobody
//! who reads holds up `apply`.

mod merge;
mod partition;
mod producers;
mod ranges;
mod transactions;

use std::collections::VecDeque;
use std::sync::Arc;

use imbl::{OrdMap, Vector};
use strandline_storage::path::{ObjectId, ObjectKind};
use uuid::Uuid;

pub use self::merge::{InputsHash, MergeOutcome};
pub(crate) use self::partition::PartitionParts;
pub use self::partition::{Batch, BatchOutcome, Partition, Range, Refusal};
use self::producers::ProducerIds;
pub use self::producers::{ForgottenProducer, ForgottenProducers, Producer, SeenBatch, Sequence};
pub use self::ranges::{LevelTotals, Ranges};
pub use self::transactions::{
    AbortedTransaction, Marker, OpenTransaction, TRANSACTIONS, TransactionOfBatch, TransactionVersion,
    TransactionalProducer, TransactionalProducers,
};
use crate::invariants;
use crate::limits::CHECKPOINTS;
use crate::record::{
    self, Body, FeatureLevel, Flush, FlushBatch, ObjectRef, ObjectsDeleted, ProducersExpired, Record,
    RecordError, Trim,
};

/// The highest feature level that this build knows.
pub const FEATURE_LEVEL: u32 = 5;
/// From this feature level on, write objects say which object they are (version 2 of their format).
pub const OBJECT_IDENTITY: u32 = 2;
/// From this feature level on, partitions note which producers they have forgotten, and those go on
/// where they were.
pub const FORGOTTEN_PRODUCERS: u32 = 3;
/// From this feature level on, topics' keys say how many replicas were asked for.
pub const REPLICATION_FACTOR: u32 = 3;
/// From this feature level on, ranges are merged and compacted.
pub const MERGING: u32 = 4;

/// A topic's partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topic {
    pub(crate) partitions: Vector<Arc<Partition>>,
}

impl Topic {
    /// The partitions, by number.
    pub fn partitions(&self) -> &Vector<Arc<Partition>> {
        &self.partitions
    }
}

/// A live object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its length in bytes.
    pub bytes: u64,
    /// How many ranges lie in it.
    pub ranges: u32,
}

/// What is known of an incarnation of a broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Incarnation {
    /// The last sequence number that was applied.
    pub head: u64,
    /// The object of a flush whose records are not all applied yet.
    pub open_object: Option<ObjectId>,
}

/// A digest that every broker must have at a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointDigest {
    /// Revision of the checkpoint record.
    pub revision: i64,
    /// The digest after it was applied.
    pub digest: u64,
}

/// Everything that the log says, up to a revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub(crate) revision: i64,
    pub(crate) digest: u64,
    pub(crate) feature_level: u32,
    pub(crate) incarnations: OrdMap<i64, Incarnation>,
    pub(crate) topics: OrdMap<Uuid, Topic>,
    pub(crate) objects: OrdMap<ObjectId, Object>,
    pub(crate) dead: OrdMap<ObjectId, i64>,
    pub(crate) producer_ids_end: i64,
    pub(crate) producer_ids_forgotten_below: i64,
    pub(crate) checkpoints: VecDeque<CheckpointDigest>,
    pub(crate) transactional: TransactionalProducers,
    pub(crate) transaction_version: TransactionVersion,
    pub(crate) range_count: u64,
    pub(crate) mark_count: u64,
    pub(crate) partition_count: u64,
    pub(crate) producer_count: u64,
}

/// What a snapshot stores of a state; the rest is derived.
#[derive(Debug)]
pub(crate) struct StateParts {
    pub(crate) revision: i64,
    pub(crate) digest: u64,
    pub(crate) feature_level: u32,
    pub(crate) incarnations: OrdMap<i64, Incarnation>,
    pub(crate) topics: OrdMap<Uuid, Topic>,
    pub(crate) objects: OrdMap<ObjectId, Object>,
    pub(crate) dead: OrdMap<ObjectId, i64>,
    pub(crate) producer_ids_end: i64,
    pub(crate) producer_ids_forgotten_below: i64,
    pub(crate) checkpoints: VecDeque<CheckpointDigest>,
    pub(crate) transactional: TransactionalProducers,
    pub(crate) transaction_version: TransactionVersion,
}

/// Where a record stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The revision that wrote it.
    pub revision: i64,
    /// Its sequence number; within a revision, records are applied in this order.
    pub sequence: u64,
    /// The incarnation that wrote it.
    pub incarnation: i64,
}

/// What a record brought about, for those who wait for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// For a flush, the outcome of each batch in the order of the record.
    pub outcomes: Vec<BatchOutcome>,
    /// For a merge, what became of each partition in the order of the record.
    pub merges: Vec<MergeOutcome>,
    /// Partitions whose end or log start moved.
    pub moved: Vec<(Uuid, u32)>,
    /// Objects that nothing refers to any more.
    pub died: Vec<ObjectId>,
    /// Topics that are gone.
    pub deleted_topics: Vec<Uuid>,
    /// Set by a checkpoint.
    pub checkpoint: Option<CheckpointDigest>,
    /// The record had been applied before, and did nothing.
    pub repeated: bool,
}

/// Why a record cannot be applied. The state is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// A sequence number was skipped: records are missing. The state must be rebuilt.
    #[error("record {got} of incarnation {incarnation} follows {head}: records are missing")]
    Gap {
        /// Whose record.
        incarnation: i64,
        /// The last one applied.
        head: u64,
        /// The one that came.
        got: u64,
    },
    /// The record belongs to a revision before the state's.
    #[error("a record of revision {got} came after revision {applied} was applied")]
    Backwards {
        /// The state's revision.
        applied: i64,
        /// The record's.
        got: i64,
    },
    /// This build cannot apply the record; the broker must stop.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The log demands more than this build can do; the broker must stop.
    #[error("the cluster's feature level is {0}, this build knows {FEATURE_LEVEL}")]
    FeatureLevel(u32),
}

impl State {
    /// The revision up to which the log is applied.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// A running hash over everything that was derived, record by record. Equal logs give equal
    /// digests (invariant 4), and states that differ have different ones.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The level of what `apply` does.
    pub fn feature_level(&self) -> u32 {
        self.feature_level
    }

    /// Every incarnation that has written and was not retired.
    pub fn incarnations(&self) -> &OrdMap<i64, Incarnation> {
        &self.incarnations
    }

    /// The last sequence number of `incarnation` that was applied; 0 if none.
    pub fn head(&self, incarnation: i64) -> u64 {
        self.incarnations.get(&incarnation).map_or(0, |i| i.head)
    }

    /// Every topic, by id.
    pub fn topics(&self) -> &OrdMap<Uuid, Topic> {
        &self.topics
    }

    /// One partition, or `None` if it does not exist at this revision.
    pub fn partition(&self, topic_id: Uuid, partition: u32) -> Option<&Arc<Partition>> {
        self.topics.get(&topic_id)?.partitions.get(usize::try_from(partition).ok()?)
    }

    /// Every live object.
    pub fn objects(&self) -> &OrdMap<ObjectId, Object> {
        &self.objects
    }

    /// Objects that nothing refers to, with the revision at which that came about.
    pub fn dead(&self) -> &OrdMap<ObjectId, i64> {
        &self.dead
    }

    /// Producers with ids below this may have been forgotten in any partition, before partitions
    /// noted whom they forget.
    pub fn producer_ids_forgotten_below(&self) -> i64 {
        self.producer_ids_forgotten_below
    }

    /// First producer id that no block covers.
    pub fn producer_ids_end(&self) -> i64 {
        self.producer_ids_end
    }

    /// The digests at the newest checkpoints, oldest first.
    pub fn checkpoints(&self) -> &VecDeque<CheckpointDigest> {
        &self.checkpoints
    }

    /// How many ranges all partitions have together.
    pub fn range_count(&self) -> u64 {
        self.range_count
    }

    /// How many ranges, markers and aborted transactions all partitions have together: what the
    /// state's memory grows with.
    pub fn entry_count(&self) -> u64 {
        self.range_count + self.mark_count
    }

    /// How many partitions all topics have together.
    pub fn partition_count(&self) -> u64 {
        self.partition_count
    }

    /// How many producers all partitions remember together.
    pub fn producer_count(&self) -> u64 {
        self.producer_count
    }

    /// A state from what a snapshot stores. Counts are derived; the error says what does not add
    /// up.
    pub(crate) fn from_parts(parts: StateParts) -> Result<Self, String> {
        let mut state = Self {
            revision: parts.revision,
            digest: parts.digest,
            feature_level: parts.feature_level,
            incarnations: parts.incarnations,
            topics: parts.topics,
            objects: parts.objects,
            dead: parts.dead,
            producer_ids_end: parts.producer_ids_end,
            producer_ids_forgotten_below: parts.producer_ids_forgotten_below,
            checkpoints: parts.checkpoints,
            transactional: parts.transactional,
            transaction_version: parts.transaction_version,
            range_count: 0,
            mark_count: 0,
            partition_count: 0,
            producer_count: 0,
        };
        for topic in state.topics.values() {
            state.partition_count += topic.partitions.len() as u64;
            state.producer_count += topic.partitions.iter().map(|p| p.producers.len() as u64).sum::<u64>();
            state.mark_count += topic.partitions.iter().map(|p| p.mark_count()).sum::<u64>();
        }
        for range in state.topics.values().flat_map(|t| &t.partitions).flat_map(|p| p.ranges.iter()) {
            let object = state.objects.get_mut(&range.object).ok_or("a range lies in an unknown object")?;
            object.ranges += 1;
            state.range_count += 1;
        }
        invariants::check(&state).map_err(|v| v.to_string())?;
        Ok(state)
    }

    /// Notes that every record up to and including `revision` is applied, so also those revisions
    /// that wrote none.
    pub fn advance(&mut self, revision: i64) {
        self.revision = self.revision.max(revision);
    }

    /// Applies one record. Records must come in the order of [`Position`]. A record whose sequence
    /// number was applied already does nothing.
    pub fn apply(&mut self, at: Position, record: &Record, body: &Body) -> Result<Effects, ApplyError> {
        let head = self.head(at.incarnation);
        if at.sequence <= head {
            return Ok(Effects { repeated: true, ..Effects::default() });
        }
        if at.sequence != head + 1 {
            return Err(ApplyError::Gap { incarnation: at.incarnation, head, got: at.sequence });
        }
        if at.revision < self.revision {
            return Err(ApplyError::Backwards { applied: self.revision, got: at.revision });
        }
        // Everything that can refuse the record comes before anything that changes the state.
        check(body)?;
        self.incarnations.entry(at.incarnation).or_default().head = at.sequence;
        self.revision = at.revision;
        self.mix(at.revision.cast_unsigned());
        self.mix(at.incarnation.cast_unsigned());
        self.mix(at.sequence);

        let mut effects = Effects::default();
        match body {
            Body::Flush(flush) => self.apply_flush(at, record.time_ms, flush, &mut effects)?,
            Body::TopicCreated(created) => {
                self.grow_topic(record::topic_id(&created.topic_id)?, created.partitions, true);
            }
            Body::PartitionsAdded(added) => {
                self.grow_topic(record::topic_id(&added.topic_id)?, added.partitions, false);
            }
            Body::TopicDeleted(deleted) => {
                self.apply_topic_deleted(record::topic_id(&deleted.topic_id)?, at.revision, &mut effects);
            }
            Body::ProducerIdBlock(block) => {
                self.producer_ids_end = self.producer_ids_end.max(offset(block.end)?);
                self.mix(self.producer_ids_end.cast_unsigned());
            }
            Body::Trim(trim) => self.apply_trim(at, trim, &mut effects)?,
            Body::ObjectsDeleted(deleted) => self.apply_objects_deleted(deleted)?,
            Body::Checkpoint(_) => {
                let checkpoint = CheckpointDigest { revision: at.revision, digest: self.digest };
                if self.checkpoints.len() == CHECKPOINTS {
                    self.checkpoints.pop_front();
                }
                self.checkpoints.push_back(checkpoint);
                effects.checkpoint = Some(checkpoint);
            }
            Body::IncarnationRetired(retired) => {
                if let Some(gone) = self.incarnations.remove(&retired.incarnation) {
                    self.mix(gone.head);
                    if let Some(object) = gone.open_object {
                        self.release(object, at.revision, &mut effects);
                    }
                }
            }
            Body::ProducersExpired(expired) => self.apply_producers_expired(expired)?,
            Body::FeatureLevel(level) => self.apply_feature_level(*level),
            Body::Merged(merged) => self.apply_merged(at, record.time_ms, merged, &mut effects)?,
            // Nobody writes these below that level.
            Body::ProducerInitialized(_)
            | Body::TransactionBegun(_)
            | Body::TransactionEnded(_)
            | Body::TransactionalIdsExpired(_)
                if self.feature_level < TRANSACTIONS => {}
            Body::ProducerInitialized(producer) => {
                self.apply_producer_initialized(record.time_ms, producer, &mut effects)?;
            }
            Body::TransactionBegun(begun) => self.apply_transaction_begun(record.time_ms, begun)?,
            Body::TransactionEnded(ended) => {
                self.apply_transaction_ended(record.time_ms, ended, &mut effects)?;
            }
            Body::TransactionalIdsExpired(expired) => self.apply_transactional_ids_expired(expired)?,
        }
        Ok(effects)
    }

    fn apply_flush(
        &mut self,
        at: Position,
        time_ms: i64,
        flush: &Flush,
        effects: &mut Effects,
    ) -> Result<(), RecordError> {
        let object = ObjectId::write(at.incarnation, flush.object_number, flush.object_salt);
        let ids = self.producer_ids();
        let (mut new_ranges, mut new_producers) = (0, 0);
        for topic in &flush.topics {
            let topic_id = record::topic_id(&topic.topic_id)?;
            for entry in &topic.partitions {
                let mut partition = self
                    .topics
                    .get_mut(&topic_id)
                    .and_then(|t| t.partitions.get_mut(entry.partition as usize));
                let mut position = entry.position;
                let mut moved = false;
                let producers_before = partition.as_ref().map_or(0, |p| p.producers.len());
                for batch in &entry.batches {
                    let described = describe(batch, time_ms)?;
                    let Batch { sequence, transaction, .. } = described;
                    let place = (topic_id, entry.partition);
                    let (outcome, new_range) = match &mut partition {
                        None => (BatchOutcome::Refused(Refusal::UnknownTopicOrPartition), false),
                        Some(p) => {
                            match transactions::check(
                                &self.transactional,
                                sequence.as_ref(),
                                transaction,
                                place,
                            ) {
                                Err(refusal) => (BatchOutcome::Refused(refusal), false),
                                Ok(()) => Arc::make_mut(p).append(&described, object, position, &ids),
                            }
                        }
                    };
                    if let (
                        BatchOutcome::Appended { base_offset },
                        Some(sequence),
                        Some(_),
                        Some(partition),
                    ) = (outcome, sequence, transaction, &mut partition)
                    {
                        let id = sequence.producer_id;
                        if transactions::note(&mut self.transactional, id, place, base_offset, time_ms) {
                            Arc::make_mut(partition).open.insert(base_offset, id);
                        }
                    }
                    moved |= matches!(outcome, BatchOutcome::Appended { .. });
                    new_ranges += u32::from(new_range);
                    position += u64::from(batch.bytes);
                    effects.outcomes.push(outcome);
                }
                if let Some(partition) = partition.filter(|_| moved) {
                    new_producers += partition.producers.len() - producers_before;
                    self.digest = partition_digest(self.digest, partition);
                    effects.moved.push((topic_id, entry.partition));
                }
            }
        }
        for outcome in &effects.outcomes {
            self.digest = mixed(self.digest, outcome_digest(outcome));
        }
        self.range_count += u64::from(new_ranges);
        self.producer_count += new_producers as u64;
        let known = self.objects.entry(object).or_insert(Object { bytes: flush.object_bytes, ranges: 0 });
        known.ranges += new_ranges;
        let unused = known.ranges == 0;
        let open = flush.continues.then_some(object);
        let writer = self.incarnations.entry(at.incarnation).or_default();
        let before = std::mem::replace(&mut writer.open_object, open);
        if let Some(abandoned) = before.filter(|o| *o != object) {
            // The rest of a split flush was refused; its object lives on only if a range lies in
            // it.
            self.release(abandoned, at.revision, effects);
        }
        if unused && open.is_none() {
            self.bury(object, at.revision, effects);
        }
        Ok(())
    }

    fn grow_topic(&mut self, topic_id: Uuid, partitions: u32, create: bool) {
        let topic = if create {
            self.topics.entry(topic_id).or_default()
        } else {
            // The topic may have been deleted before this record got its place in the log.
            let Some(topic) = self.topics.get_mut(&topic_id) else { return };
            topic
        };
        while topic.partitions.len() < partitions as usize {
            topic.partitions.push_back(Arc::default());
            self.partition_count += 1;
        }
        let count = topic.partitions.len() as u64;
        self.mix_topic(topic_id);
        self.mix(count);
    }

    fn apply_topic_deleted(&mut self, topic_id: Uuid, revision: i64, effects: &mut Effects) {
        let Some(topic) = self.topics.remove(&topic_id) else { return };
        self.mix_topic(topic_id);
        self.partition_count -= topic.partitions.len() as u64;
        for (number, partition) in (0..).zip(&topic.partitions) {
            self.producer_count -= partition.producers.len() as u64;
            self.mark_count -= partition.mark_count();
            self.leave_transactions((topic_id, number), partition);
            for range in partition.ranges.iter() {
                self.dereference(range, revision, effects);
            }
            effects.moved.push((topic_id, number));
        }
        effects.deleted_topics.push(topic_id);
    }

    fn apply_trim(&mut self, at: Position, trim: &Trim, effects: &mut Effects) -> Result<(), RecordError> {
        for entry in &trim.partitions {
            let topic_id = record::topic_id(&entry.topic_id)?;
            let log_start = offset(entry.log_start)?;
            let partition =
                self.topics.get_mut(&topic_id).and_then(|t| t.partitions.get_mut(entry.partition as usize));
            let Some(partition) = partition else { continue };
            if log_start <= partition.log_start {
                continue;
            }
            let partition = Arc::make_mut(partition);
            let marks = partition.mark_count();
            let gone = partition.trim(log_start);
            self.mark_count -= marks - partition.mark_count();
            self.digest = partition_digest(self.digest, partition);
            for range in &gone {
                self.dereference(range, at.revision, effects);
            }
            effects.moved.push((topic_id, entry.partition));
        }
        Ok(())
    }

    fn apply_objects_deleted(&mut self, deleted: &ObjectsDeleted) -> Result<(), RecordError> {
        for object in &deleted.objects {
            if self.dead.remove(&object_id(object)?).is_some() {
                self.mix(object.number);
            }
        }
        Ok(())
    }

    fn apply_producers_expired(&mut self, expired: &ProducersExpired) -> Result<(), RecordError> {
        let ids = self.producer_ids();
        for entry in &expired.producers {
            let topic_id = record::topic_id(&entry.topic_id)?;
            let (producer_id, last) = (offset(entry.producer_id)?, offset(entry.last_base_offset)?);
            let partition =
                self.topics.get_mut(&topic_id).and_then(|t| t.partitions.get_mut(entry.partition as usize));
            let Some(partition) = partition else { continue };
            let unchanged = partition
                .producers
                .get(&producer_id)
                .and_then(|p| p.batches.last())
                .is_some_and(|b| b.base_offset == last);
            let is_writing = partition.open.values().any(|open| *open == producer_id);
            if unchanged && !is_writing {
                // Whoever has an id that was never handed out may start anywhere as it is.
                let is_noted = ids.are_noted && producer_id < ids.end;
                Arc::make_mut(partition).forget(producer_id, is_noted);
                self.producer_count -= 1;
                self.mix(entry.producer_id);
            }
        }
        if !ids.are_noted {
            self.producer_ids_forgotten_below =
                self.producer_ids_forgotten_below.max(offset(expired.ids_below)?);
        }
        self.mix(self.producer_ids_forgotten_below.cast_unsigned());
        Ok(())
    }

    fn apply_feature_level(&mut self, record: FeatureLevel) {
        let level = record.level;
        let begins_to_note = self.feature_level < FORGOTTEN_PRODUCERS && level >= FORGOTTEN_PRODUCERS;
        if begins_to_note && self.producer_ids_forgotten_below > 0 {
            // Whom partitions have forgotten until now is not known.
            self.producer_ids_forgotten_below = self.producer_ids_end;
        }
        self.feature_level = self.feature_level.max(level);
        self.mix(self.feature_level.into());
        if let Some(version) = record.transaction_version.checked_sub(1) {
            let changes = self.transaction_version.changes + 1;
            self.transaction_version = TransactionVersion { version, changes };
            self.mix(version.into());
        }
    }

    fn producer_ids(&self) -> ProducerIds {
        ProducerIds {
            end: self.producer_ids_end,
            forgotten_below: self.producer_ids_forgotten_below,
            are_noted: self.feature_level >= FORGOTTEN_PRODUCERS,
        }
    }

    /// A range is gone: its object loses a reference, and dies with the last.
    fn dereference(&mut self, range: &Range, revision: i64, effects: &mut Effects) {
        self.range_count -= 1;
        let Some(object) = self.objects.get_mut(&range.object) else {
            unreachable!("invariant 6: a range lies in a live object");
        };
        object.ranges -= 1;
        if object.ranges == 0 {
            self.release(range.object, revision, effects);
        }
    }

    /// Buries an object if no range lies in it and no flush is still adding ranges.
    fn release(&mut self, object: ObjectId, revision: i64, effects: &mut Effects) {
        let unused = self.objects.get(&object).is_some_and(|o| o.ranges == 0);
        let open = self.incarnations.get(&object.incarnation).is_some_and(|i| i.open_object == Some(object));
        if unused && !open {
            self.bury(object, revision, effects);
        }
    }

    fn bury(&mut self, object: ObjectId, revision: i64, effects: &mut Effects) {
        self.objects.remove(&object);
        self.dead.insert(object, revision);
        self.mix(object.number);
        effects.died.push(object);
    }

    fn mix(&mut self, value: u64) {
        self.digest = mixed(self.digest, value);
    }

    fn mix_topic(&mut self, topic_id: Uuid) {
        let (high, low) = topic_id.as_u64_pair();
        self.mix(high);
        self.mix(low);
    }
}

/// One step of the digest: FNV's multiplication with a rotation, so that order counts and no bit
/// stays where it is.
fn mixed(digest: u64, value: u64) -> u64 {
    (digest ^ value).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
}

/// The digest after a partition has changed: how far it goes, and where its newest records lie.
fn partition_digest(digest: u64, partition: &Partition) -> u64 {
    let digest = [partition.log_start.cast_unsigned(), partition.end.cast_unsigned(), partition.bytes()]
        .into_iter()
        .fold(digest, mixed);
    partition.ranges.last().map_or(digest, |range| {
        [range.object.number, range.position, range.max_timestamp_ms.cast_unsigned()]
            .into_iter()
            .fold(digest, mixed)
    })
}

fn outcome_digest(outcome: &BatchOutcome) -> u64 {
    match outcome {
        BatchOutcome::Appended { base_offset } => base_offset.cast_unsigned() << 2,
        BatchOutcome::Duplicate { base_offset } => (base_offset.cast_unsigned() << 2) | 1,
        BatchOutcome::Refused(refusal) => {
            let reason = match refusal {
                Refusal::UnknownTopicOrPartition => 0,
                Refusal::OutOfOrderSequence => 1,
                Refusal::InvalidProducerEpoch => 2,
                Refusal::UnknownProducerId => 3,
                Refusal::InvalidProducerIdMapping => 4,
                Refusal::InvalidTransactionState => 5,
            };
            (reason << 2) | 2
        }
    }
}

/// Refuses a record that no writer may write, before anything of it is applied.
fn check(body: &Body) -> Result<(), ApplyError> {
    match body {
        Body::Flush(flush) => {
            for topic in &flush.topics {
                record::topic_id(&topic.topic_id)?;
                for batch in topic.partitions.iter().flat_map(|p| &p.batches) {
                    describe(batch, 0)?;
                }
            }
        }
        Body::TopicCreated(record::TopicCreated { topic_id, partitions })
        | Body::PartitionsAdded(record::PartitionsAdded { topic_id, partitions }) => {
            record::topic_id(topic_id)?;
            if *partitions > crate::limits::MAX_PARTITIONS_PER_TOPIC {
                return Err(RecordError::Impossible("a topic has too many partitions").into());
            }
        }
        Body::TopicDeleted(deleted) => {
            record::topic_id(&deleted.topic_id)?;
        }
        Body::ProducerIdBlock(block) => {
            offset(block.end)?;
        }
        Body::Trim(trim) => {
            for entry in &trim.partitions {
                record::topic_id(&entry.topic_id)?;
                offset(entry.log_start)?;
            }
        }
        Body::ProducersExpired(expired) => {
            offset(expired.ids_below)?;
            for entry in &expired.producers {
                record::topic_id(&entry.topic_id)?;
                offset(entry.producer_id)?;
                offset(entry.last_base_offset)?;
            }
        }
        Body::FeatureLevel(level) if level.level > FEATURE_LEVEL => {
            return Err(ApplyError::FeatureLevel(level.level));
        }
        Body::ObjectsDeleted(deleted) => {
            for object in &deleted.objects {
                object_id(object)?;
            }
        }
        Body::Merged(merged) => merge::check(merged)?,
        Body::ProducerInitialized(producer) => {
            offset(producer.producer_id)?;
            epoch(producer.epoch)?;
            producer.replaces.checked_sub(1).map(offset).transpose()?;
        }
        Body::TransactionBegun(begun) => transactions::check_begun(begun)?,
        Body::TransactionEnded(ended) => {
            offset(ended.producer_id)?;
            offset(ended.next_producer_id)?;
            epoch(ended.epoch)?;
            epoch(ended.next_epoch)?;
        }
        Body::TransactionalIdsExpired(expired) => {
            for entry in &expired.producers {
                offset(entry.producer_id)?;
                epoch(entry.epoch)?;
            }
        }
        Body::Checkpoint(_) | Body::IncarnationRetired(_) | Body::FeatureLevel(_) => {}
    }
    Ok(())
}

fn offset(value: u64) -> Result<i64, RecordError> {
    i64::try_from(value).map_err(|_| RecordError::Impossible("an offset or id is below 2^63"))
}

fn epoch(value: u32) -> Result<i16, RecordError> {
    i16::try_from(value).map_err(|_| RecordError::Impossible("a producer epoch is below 2^15"))
}

fn describe(batch: &FlushBatch, time_ms: i64) -> Result<Batch, RecordError> {
    if batch.offsets == 0 || batch.bytes == 0 {
        return Err(RecordError::Impossible("a batch has at least one offset and one byte"));
    }
    let sequence = match batch.producer.checked_sub(1) {
        None => None,
        Some(producer_id) => Some(Sequence {
            producer_id: offset(producer_id)?,
            epoch: epoch(batch.producer_epoch)?,
            first: i32::try_from(batch.base_sequence)
                .map_err(|_| RecordError::Impossible("a sequence number is below 2^31"))?,
        }),
    };
    let transaction = match batch.transaction {
        0 => None,
        1 => Some(TransactionOfBatch::OfEpoch),
        number => Some(TransactionOfBatch::Numbered(number - 2)),
    };
    if transaction.is_some() && sequence.is_none() {
        return Err(RecordError::Impossible("a batch of a transaction has a producer"));
    }
    Ok(Batch {
        offsets: batch.offsets,
        bytes: batch.bytes,
        max_timestamp_ms: time_ms.wrapping_add(batch.max_timestamp_delta_ms),
        sequence,
        transaction,
    })
}

/// The object that a record names.
pub fn object_id(object: &ObjectRef) -> Result<ObjectId, RecordError> {
    let ObjectRef { incarnation, number, salt, kind } = *object;
    match kind {
        0 => Ok(ObjectId::write(incarnation, number, salt)),
        1 => Ok(ObjectId::merge(incarnation, number, salt)),
        _ => Err(RecordError::Impossible("an object is a write object or a merged one")),
    }
}

/// How a record names an object.
pub fn object_ref(id: &ObjectId) -> ObjectRef {
    let kind = match id.kind {
        ObjectKind::Write => 0,
        ObjectKind::Merge => 1,
    };
    ObjectRef { incarnation: id.incarnation, number: id.number, salt: id.salt, kind }
}

#[cfg(test)]
mod tests;
