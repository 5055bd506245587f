//! Log compaction (`cleanup.policy=compact`): of each key at least the last record stays, at its
//! offset.
//!
//! A partition is a run of ranges that were compacted, in which no key is twice, and behind them
//! those that were not, the dirty ones. A pass notes the newest offset of each key in the dirty
//! ranges, and then rewrites all of them, the oldest first, without the records that a newer one
//! supersedes: so what is left holds no key twice again. The rewritten ranges take the place of the
//! others as in any merge, some at a time; a pass that ends in between leaves a log in which more
//! is dirty, and nothing else.
//!
//! A tombstone stays until `delete.retention.ms` after the first pass that kept it (KIP-534): every
//! older record of its key was gone when that pass put it in its place, since older ranges are put
//! in theirs first.
//!
//! ```text
//! plan ─▶ keys of the dirty ranges ─▶ [marks, if not all keys fit at once] ─▶ batches anew ─▶ publish
//! ```

mod batch;
mod keys;
mod marks;
mod plan;
#[cfg(test)]
mod tests;
mod transactions;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use strandline_metadata::state::{MERGING, Range, State};
use strandline_metadata::turns::Turns;
use strandline_storage::format::batch::BatchHeader;
use strandline_storage::format::merged::{MergeBuilder, MergeError, MergeFlags};
use strandline_storage::path::ObjectId;
use strandline_storage::reader::ReadBatch;
use tokio::time::{Instant, sleep};
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use self::batch::Rewritten;
pub use self::batch::rewritten;
use self::keys::{Class, Key, KeyHasher, KeyMap};
use self::marks::Marks;
use self::plan::{Region, bytes_of, is_clean};
use self::transactions::Transactions;
use super::Shared;
use super::answers::Answers;
use super::pace::Paced;
use super::plan::{Ends, Piece, cut};
use super::rewrite::{PlacedBatch, Read, RewriteError, Unreadable, end_of_transaction, is_current, publish};
use crate::Broker;
use crate::compute::Kind;
use crate::jobs::clock_trust;
use crate::leaders::Leaders;
use crate::limits::{COMPACTION_READ_BYTES, UNREADABLE_RANGES, UNREADABLE_REST};
use crate::topic_config::{Compaction, Effective};

/// Compacts whatever is due, again and again, until it is dropped.
pub(super) async fn run(broker: &Arc<Broker>, shared: &Shared) {
    let mut cleaner = Cleaner::default();
    loop {
        sleep(broker.config.merge.interval).await;
        cleaner.pass(broker, shared).await;
    }
}

/// What a broker remembers between passes.
#[derive(Debug, Default)]
struct Cleaner {
    /// Where partitions ended in the pass before.
    settled: Ends,
    /// Ranges that cannot be read, by partition and first offset, and until when they are left
    /// alone.
    unreadable: BTreeMap<(Uuid, u32, i64), Instant>,
}

/// A partition that is due.
#[derive(Clone, Debug)]
struct Candidate {
    topic_id: Uuid,
    number: u32,
    rules: Compaction,
    /// The longest time that the records of a range may lie apart, ms.
    max_span_ms: i64,
    region: Region,
}

/// Why a compaction ended before all was done.
#[derive(Debug, thiserror::Error)]
enum CompactError {
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    #[error(transparent)]
    Unreadable(Unreadable),
    #[error("the store did not answer: {0}")]
    Unanswered(Unreadable),
    #[error("the partition has changed meanwhile")]
    Changed,
    #[error("there are more records in a few megabytes than compact_memory_bytes has marks for")]
    TooManyRecords,
    #[error("the broker has no registration, or is leaving")]
    NoSession,
}

/// What a compaction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Records that were there before.
    pub(crate) records: u64,
    /// Those that a newer one superseded.
    pub(crate) superseded: u64,
    /// Tombstones whose time was over.
    pub(crate) tombstones: u64,
    /// Records of aborted transactions, and ends of transactions.
    pub(crate) aborted: u64,
    /// Records without a key, which were written before the topic was compacted.
    pub(crate) keyless: u64,
    /// Batches whose records cannot be opened; they stay.
    pub(crate) closed: u64,
    /// Bytes that were read, all walks together.
    pub(crate) bytes_read: u64,
    /// Bytes that were written.
    pub(crate) bytes_written: u64,
}

impl Cleaner {
    /// Looks at all partitions, and compacts what is due in this broker's, the dirtiest first.
    async fn pass(&mut self, broker: &Arc<Broker>, shared: &Shared) {
        let state = broker.replica.state();
        if state.feature_level() < MERGING || broker.sessions.current().is_none() {
            return;
        }
        let settled = std::mem::replace(&mut self.settled, Ends::of(&state));
        let mut due = self.survey(broker, &state, &settled).await;
        broker.metrics.compaction().surveyed(due.iter().map(|c| c.region.dirty_ratio()).fold(0.0, f64::max));
        due.sort_by(|a, b| b.region.dirty_ratio().total_cmp(&a.region.dirty_ratio()));
        let mut answers = Answers::default();
        for mut candidate in due {
            let (topic_id, partition) = (candidate.topic_id, candidate.number);
            // No dirty range of the region goes on behind that.
            let end = settled.of_partition(topic_id, partition);
            let _held = shared.hold(topic_id, partition, end).await;
            // Retention of tombstones goes by the clock, as that of other records does.
            let Some(now_ms) = clock_trust(broker).await.now_ms() else { return };
            // The partitions before this one may have taken long: merges and retention went on.
            let state = broker.replica.state();
            let Some(region) = self.region(&state, &candidate, end, now_ms) else { continue };
            candidate.region = region;
            let mut work = Work::new(broker, shared, candidate, state, now_ms, &mut answers);
            let done = work.run().await;
            broker.metrics.compaction().compacted(&work.tally, done.is_ok());
            match done {
                Ok(()) => info!(%topic_id, partition, tally = ?work.tally, "a partition is compacted"),
                Err(CompactError::NoSession) => return,
                Err(CompactError::Unreadable(error)) => {
                    self.leave_alone(broker, (topic_id, partition), &error);
                }
                Err(CompactError::Unanswered(error)) => {
                    answers.add_unanswered(((topic_id, partition), error));
                }
                Err(CompactError::Changed) => debug!(%topic_id, partition, "it is compacted another time"),
                // It concerns no other partition.
                Err(error @ CompactError::TooManyRecords) => {
                    warn!(%topic_id, partition, %error, "a partition stays as it is");
                }
                Err(error) => {
                    warn!(%topic_id, partition, %error, "a compaction was given up, to be tried again");
                    return;
                }
            }
            if answers.is_store_silent() {
                warn!(%topic_id, partition, "the store does not answer; compaction is tried again");
                return;
            }
            for (place, error) in answers.take_unanswered() {
                self.leave_alone(broker, place, &error);
            }
        }
        for (place, error) in answers.finish() {
            self.leave_alone(broker, place, &error);
        }
    }

    /// What is due in the partitions of this broker.
    async fn survey(&mut self, broker: &Broker, state: &State, settled: &Ends) -> Vec<Candidate> {
        let view = broker.replica.view();
        let leaders = Leaders::registered(&view.names);
        let (dynamic, _) = view.names.broker_configs(None);
        let now_ms = broker.clock.now_ms();
        let now = Instant::now();
        self.unreadable.retain(|_, until| *until > now);
        let mut due = Vec::new();
        let mut turns = Turns::default();
        for (&topic_id, topic) in state.topics() {
            turns.spend(1).await;
            let Some(info) = view.names.topic_by_id(topic_id) else { continue };
            let configs = Effective {
                topic: &info.value.configs,
                dynamic: &dynamic,
                broker: &broker.config.topics.configs,
            };
            let Some(rules) = configs.compaction() else { continue };
            let max_span_ms = super::retention_span_ms(&configs);
            for (number, partition) in (0..).zip(topic.partitions()) {
                turns.spend(1 + partition.ranges().len()).await;
                if leaders.of_partition(topic_id, number) != broker.config.node_id {
                    continue;
                }
                let settled_end = settled.of_partition(topic_id, number);
                let is_unreadable = self.unreadable_in(topic_id, number);
                let region = Region::of(partition, &rules, settled_end, now_ms, is_unreadable);
                if let Some(region) = region.filter(|region| region.is_due(&rules, now_ms)) {
                    due.push(Candidate { topic_id, number, rules, max_span_ms, region });
                }
            }
        }
        due
    }

    /// What of a candidate is to be compacted by now, if it is still due.
    fn region(&self, state: &State, candidate: &Candidate, settled_end: i64, now_ms: i64) -> Option<Region> {
        let Candidate { topic_id, number, rules, .. } = candidate;
        let partition = state.partition(*topic_id, *number)?;
        let is_unreadable = self.unreadable_in(*topic_id, *number);
        Region::of(partition, rules, settled_end, now_ms, is_unreadable)
            .filter(|region| region.is_due(rules, now_ms))
    }

    /// Which ranges of a partition are left alone.
    fn unreadable_in(&self, topic_id: Uuid, number: u32) -> impl Fn(&Range) -> bool {
        move |range| self.unreadable.contains_key(&(topic_id, number, range.base_offset))
    }

    /// What cannot be read is not tried again for a while; what lies behind it is compacted.
    fn leave_alone(&mut self, broker: &Broker, (topic_id, partition): (Uuid, u32), error: &Unreadable) {
        let base_offset = error.range.base_offset;
        error!(%topic_id, partition, base_offset, %error, "records cannot be compacted; they stay where they are");
        broker.metrics.merging().unreadable();
        if self.unreadable.len() < UNREADABLE_RANGES {
            self.unreadable.insert((topic_id, partition, base_offset), Instant::now() + UNREADABLE_REST);
        }
    }
}

/// A partition, and what of it the store did not answer to.
type Unanswered = ((Uuid, u32), Unreadable);

/// How it is known that a record is superseded.
enum Superseded {
    /// By the newest offsets of all keys.
    Known(Box<KeyMap>),
    /// By marks, since not all keys fit at once. The number of the next record among those that
    /// were marked.
    Marked(Marks, u64),
}

/// The compaction of one partition.
struct Work<'a> {
    broker: &'a Arc<Broker>,
    shared: &'a Shared,
    candidate: Candidate,
    /// What the candidate's region is of.
    state: State,
    transactions: Arc<Transactions>,
    hasher: KeyHasher,
    /// When tombstones may go that are kept for the first time, ms since 1970.
    horizon_ms: i64,
    now_ms: i64,
    tally: Tally,
    answers: &'a mut Answers<Unanswered>,
}

impl<'a> Work<'a> {
    fn new(
        broker: &'a Arc<Broker>,
        shared: &'a Shared,
        candidate: Candidate,
        state: State,
        now_ms: i64,
        answers: &'a mut Answers<Unanswered>,
    ) -> Self {
        let partition = state.partition(candidate.topic_id, candidate.number);
        Self {
            broker,
            shared,
            transactions: Arc::new(partition.map_or_else(Transactions::default, |p| Transactions::of(p))),
            state,
            hasher: KeyHasher::new(shared.secrets()),
            horizon_ms: now_ms.saturating_add(candidate.rules.delete_retention_ms),
            now_ms,
            tally: Tally::default(),
            answers,
            candidate,
        }
    }

    async fn run(&mut self) -> Result<(), CompactError> {
        let (map, others) = self.newest_of(Class::ALL).await?;
        let Region { inputs, .. } = self.candidate.region.clone();
        if others.is_empty() {
            let mut superseded = Superseded::Known(Box::new(map));
            return self.rewrite(&inputs, &mut superseded).await;
        }
        // As many ranges at a time as there are marks for.
        let (mut left, mut known) = (&inputs[..], Some((map, others)));
        while !left.is_empty() {
            let (marks, marked) = self.mark(left, known.take()).await?;
            let (now, later) = left.split_at(marked);
            self.rewrite(now, &mut Superseded::Marked(marks, 0)).await?;
            left = later;
        }
        Ok(())
    }

    /// The newest offset of each key of a class in the dirty ranges, and the classes that did not
    /// fit beside it.
    async fn newest_of(&mut self, class: Class) -> Result<(KeyMap, Vec<Class>), CompactError> {
        let dirty = self.candidate.region.dirty().to_vec();
        let offsets = dirty.iter().map(|range| range.end_offset.abs_diff(range.base_offset)).sum();
        let mut map = KeyMap::new(class, self.broker.config.merge.key_bytes(), offsets);
        let mut others = Vec::new();
        let hasher = self.hasher;
        let transactions = self.transactions.clone();
        for load in loads(&dirty) {
            let transactions = transactions.clone();
            (map, others) = self
                .walk(load, (map, others), move |(map, others), base_offset, batch| {
                    if transactions.is_hidden(base_offset, &batch.0) {
                        return;
                    }
                    each_key(batch, hasher, |key, offset_delta| {
                        let offset = base_offset + i64::from(offset_delta);
                        if let Some(key) = key {
                            map.note(key, offset, others);
                        }
                    });
                })
                .await?;
        }
        Ok((map, others))
    }

    /// Marks what is superseded in as many of these ranges as there are marks for. Says in how
    /// many. `known` are the first keys, if they are known already.
    async fn mark(
        &mut self,
        ranges: &[Range],
        mut known: Option<(KeyMap, Vec<Class>)>,
    ) -> Result<(Marks, usize), CompactError> {
        let most = self.broker.config.merge.mark_bytes() * 8;
        let mut marks = Marks::default();
        let mut marked = None;
        let mut classes = vec![Class::ALL];
        let hasher = self.hasher;
        while let Some(class) = classes.pop() {
            let (mut map, others) = match known.take() {
                Some(known) => known,
                None => self.newest_of(class).await?,
            };
            classes.extend(others);
            let mut place = 0;
            let mut count = 0;
            for load in loads(ranges.get(..marked.unwrap_or(ranges.len())).unwrap_or_default()) {
                ((map, marks), place) = self
                    .walk(load, ((map, marks), place), move |((map, marks), place), base_offset, batch| {
                        let mut at = *place;
                        each_key(batch, hasher, |key, offset_delta| {
                            let offset = base_offset + i64::from(offset_delta);
                            if at < most && key.is_some_and(|key| map.supersedes(key, offset)) {
                                marks.mark(at);
                            }
                            at += 1;
                        });
                        // It is counted by its header, so that every walk counts the same.
                        *place += u64::try_from(batch.0.record_count).unwrap_or_default();
                    })
                    .await?;
                // What has no mark would stay, and be taken for what holds no key twice.
                if place > most && count == 0 {
                    return Err(CompactError::TooManyRecords);
                } else if place > most {
                    break;
                }
                count += load.len();
            }
            marked.get_or_insert(count);
        }
        Ok((marks, marked.unwrap_or(ranges.len())))
    }

    /// Rewrites ranges, an object's worth at a time, the oldest first.
    async fn rewrite(&mut self, ranges: &[Range], superseded: &mut Superseded) -> Result<(), CompactError> {
        for inputs in cut(ranges, self.broker.config.merge.object_bytes(), self.candidate.max_span_ms) {
            self.rewrite_one(inputs, superseded).await?;
        }
        Ok(())
    }

    async fn rewrite_one(
        &mut self,
        inputs: &[Range],
        superseded: &mut Superseded,
    ) -> Result<(), CompactError> {
        let Some(session) = self.broker.sessions.current().filter(|_| !self.broker.is_draining()) else {
            return Err(CompactError::NoSession);
        };
        let (number, salt) = self.shared.next_object();
        let mut piece = Piece {
            topic_id: self.candidate.topic_id,
            partition: self.candidate.number,
            inputs: inputs.to_vec(),
            // Of the ends of transactions only those stay that consumers still have to see.
            markers: Vec::new(),
            level: self.candidate.region.level(),
            is_untimed: false,
        };
        let pace = self.shared.rewriting.lock().await;
        let paced = Paced::begin(self.broker);
        let mut builder = MergeBuilder::new(ObjectId::merge(session.incarnation, number, salt));
        let partition = i32::try_from(piece.partition).unwrap_or(i32::MAX);
        let begun = builder.begin(*piece.topic_id.as_bytes(), partition, MergeFlags { compacted: true });
        begun.map_err(RewriteError::from)?;
        let mut has_changed = false;
        let mut next = piece.offsets().0;
        let markers = self.transactions.markers_between(piece.offsets());
        for load in loads(inputs) {
            let batches = self.read(load).await?;
            self.tally.bytes_read += bytes_of(load);
            // Either all ranges of a load are clean or none, see `loads`.
            let is_clean = load.first().is_some_and(is_clean);
            let mut filtered = self.filter(batches, (is_clean, piece.offsets()), superseded).await;
            // What lies between ranges has no marks.
            let (from, below) = (next, load.last().map_or(next, |last| last.end_offset));
            let ends = markers.iter().filter(|(offset, _)| (from..below).contains(offset));
            let ends = ends.filter_map(end_of_transaction);
            let kept =
                ends.filter(|(at, batch)| self.transactions.keeps(*at, &batch.header, piece.offsets()));
            filtered.extend(kept.map(|placed| (placed, Rewritten::Same)));
            filtered.sort_by_key(|((base_offset, _), _)| *base_offset);
            for ((base_offset, batch), rewritten) in filtered {
                // One without records, as ranges may end with, is put in its place again below.
                has_changed |= rewritten != Rewritten::Same && batch.header.record_count > 0;
                let pushed = match rewritten {
                    Rewritten::Gone => continue,
                    Rewritten::Same => builder.push(&batch, base_offset),
                    Rewritten::Anew(bytes) => push_anew(&mut builder, &bytes, base_offset),
                };
                pushed.map_err(RewriteError::from)?;
                piece.is_untimed |= batch.header.record_count > 0 && batch.header.max_timestamp < 0;
                next = base_offset + i64::from(batch.header.last_offset_delta) + 1;
            }
        }
        // Consumers go on behind the range's end, wherever its last record was.
        for (base_offset, bytes) in batch::nothing(next, piece.offsets().1) {
            push_anew(&mut builder, &bytes, base_offset).map_err(RewriteError::from)?;
        }
        let is_as_before = !has_changed
            && matches!(inputs, [one] if one.compacted && one.level >= self.candidate.region.level());
        if !is_as_before {
            let written = builder.data_bytes();
            if publish(self.broker, builder, &[piece]).await?.refused > 0 {
                return Err(CompactError::Changed);
            }
            self.tally.bytes_written += written;
        }
        pace.wait(self.broker, paced, bytes_of(inputs), u64::from(!is_as_before)).await;
        Ok(())
    }

    /// What becomes of each batch.
    async fn filter(
        &mut self,
        batches: Vec<PlacedBatch>,
        (is_clean, written): (bool, (i64, i64)),
        superseded: &mut Superseded,
    ) -> Vec<(PlacedBatch, Rewritten)> {
        let mut filter = Filter {
            hasher: self.hasher,
            is_clean,
            // Tombstones are kept from when nothing older of their keys is left anywhere.
            new_horizon_ms: self.candidate.region.is_whole.then_some(self.horizon_ms),
            horizons_before_ms: self.candidate.region.is_whole.then_some(self.now_ms),
            superseded: std::mem::replace(superseded, Superseded::Marked(Marks::default(), 0)),
            transactions: self.transactions.clone(),
            written,
            tally: self.tally,
        };
        let work = move || {
            let what_becomes = |placed: PlacedBatch| {
                let rewritten = filter.run(placed.0, &placed.1);
                (placed, rewritten)
            };
            let filtered = batches.into_iter().map(what_becomes).collect();
            (filtered, filter.superseded, filter.tally)
        };
        let filtered;
        (filtered, *superseded, self.tally) = self.broker.compute.run(Kind::Compaction, work).await;
        filtered
    }

    async fn read(&mut self, load: &[Range]) -> Result<Vec<PlacedBatch>, CompactError> {
        let mut read = Read::all(self.broker, &self.state, load.iter()).await;
        self.answers.note(read.answers());
        let error = match read.take(self.broker, load).await {
            Ok(batches) => return Ok(batches),
            Err(error) => error,
        };
        if error.is_passing() {
            return Err(CompactError::Unanswered(error));
        }
        let (topic_id, number) = (self.candidate.topic_id, self.candidate.number);
        let has_changed = error.is_gone() && !is_current(self.broker, topic_id, number, load).await;
        Err(if has_changed { CompactError::Changed } else { CompactError::Unreadable(error) })
    }

    /// Has `see` look at every batch of some ranges, beside the threads of the connections.
    async fn walk<T: Send + 'static>(
        &mut self,
        load: &[Range],
        mut sum: T,
        see: impl Fn(&mut T, i64, &OpenedBatch) + Send + 'static,
    ) -> Result<T, CompactError> {
        if self.broker.is_draining() || self.broker.sessions.current().is_none() {
            return Err(CompactError::NoSession);
        }
        let pace = self.shared.rewriting.lock().await;
        let paced = Paced::begin(self.broker);
        let batches = self.read(load).await?;
        let bytes = bytes_of(load);
        self.tally.bytes_read += bytes;
        let work = move || {
            for (base_offset, batch) in batches {
                see(&mut sum, base_offset, &(batch.header, batch.contiguous()));
            }
            sum
        };
        let sum = self.broker.compute.run(Kind::Compaction, work).await;
        pace.wait(self.broker, paced, bytes, 0).await;
        Ok(sum)
    }
}

/// A batch's header and all of it.
type OpenedBatch = (BatchHeader, Bytes);

/// What decides about records.
struct Filter {
    hasher: KeyHasher,
    /// Whether batches come from a range that was compacted with all before it: what only that may
    /// say counts only there.
    is_clean: bool,
    /// For batches that do not say yet when their tombstones may go, ms since 1970.
    new_horizon_ms: Option<i64>,
    /// Tombstones go whose time was before that; `None` if there may be something older that they
    /// supersede.
    horizons_before_ms: Option<i64>,
    superseded: Superseded,
    transactions: Arc<Transactions>,
    /// The offsets from and below which ranges are rewritten together.
    written: (i64, i64),
    tally: Tally,
}

impl Filter {
    /// The records of a batch have no marks that would be of use, but their places.
    fn pass_over(&mut self, header: &BatchHeader) {
        if let Superseded::Marked(_, next) = &mut self.superseded {
            *next += u64::try_from(header.record_count).unwrap_or_default();
        }
    }

    fn run(&mut self, base_offset: i64, batch: &ReadBatch) -> Rewritten {
        if !self.transactions.keeps(base_offset, &batch.header, self.written) {
            self.tally.aborted += u64::try_from(batch.header.record_count).unwrap_or_default();
            self.pass_over(&batch.header);
            return Rewritten::Gone;
        }
        if batch.header.is_control() {
            self.pass_over(&batch.header);
            return Rewritten::Same;
        }
        let Self { hasher, superseded, tally, .. } = self;
        let header = &batch.header;
        let before = *tally;
        let horizon_ms = header.delete_horizon_ms().filter(|_| self.is_clean);
        let may_tombstones_go =
            horizon_ms.zip(self.horizons_before_ms).is_some_and(|(horizon, now)| horizon < now);
        let new_horizon_ms = self.new_horizon_ms.filter(|_| horizon_ms.is_none());
        let mut place = match superseded {
            Superseded::Known(_) => 0,
            Superseded::Marked(_, next) => *next,
        };
        let rewritten = batch::rewrite(header, &batch.contiguous(), new_horizon_ms, |record| {
            let at = place;
            place += 1;
            tally.records += 1;
            let Some(key) = record.key else {
                tally.keyless += 1;
                return false;
            };
            let is_superseded = match superseded {
                Superseded::Known(map) => {
                    let offset = base_offset + i64::from(record.offset_delta);
                    map.supersedes(hasher.key(key), offset)
                }
                Superseded::Marked(marks, _) => marks.has(at),
            };
            let is_over = record.is_tombstone && may_tombstones_go;
            tally.superseded += u64::from(is_superseded);
            tally.tombstones += u64::from(is_over && !is_superseded);
            !is_superseded && !is_over
        });
        if let Superseded::Marked(_, next) = superseded {
            *next += u64::try_from(header.record_count).unwrap_or_default();
        }
        rewritten.unwrap_or_else(|error| {
            // A topic that was not compacted takes whatever its producers say are records.
            debug!(%error, offset = base_offset, "a batch cannot be opened, and stays as it is");
            *tally = Tally { closed: before.closed + 1, ..before };
            Rewritten::Same
        })
    }
}

/// Calls `see` with the key of each record of a batch and its offset relative to the batch; `None`
/// for a record without one. Not at all if any record cannot be read: such a batch supersedes
/// nothing. It is walked over twice for that, since there may be millions of records.
fn each_key((header, batch): &OpenedBatch, hasher: KeyHasher, mut see: impl FnMut(Option<Key>, i32)) {
    let Ok(payload) = batch::payload(header, batch) else { return };
    if batch::walk(header, &payload, |_| ()).is_err() {
        return;
    }
    let walked = batch::walk(header, &payload, |record| {
        see(record.key.map(|key| hasher.key(key)), record.offset_delta);
    });
    debug_assert!(walked.is_ok(), "it was walked over before");
}

/// Ranges that are read in one go: neighbours of the same kind, some megabytes of them.
fn loads(ranges: &[Range]) -> impl Iterator<Item = &[Range]> {
    let mut left = ranges;
    std::iter::from_fn(move || {
        let first = left.first()?;
        let mut bytes = 0;
        let fits = |range: &&Range| {
            bytes += range.bytes;
            is_clean(range) == is_clean(first) && (bytes <= COMPACTION_READ_BYTES || bytes == range.bytes)
        };
        let (load, later) = left.split_at(left.iter().take_while(fits).count());
        left = later;
        Some(load)
    })
}

fn push_anew(builder: &mut MergeBuilder, bytes: &Bytes, base_offset: i64) -> Result<(), MergeError> {
    let header = BatchHeader::parse(bytes);
    let header = header.map_err(|_| MergeError::NoPartition)?;
    builder.push_pieces(&header, std::iter::once(bytes), base_offset)
}
