//! One partition: where its offsets lie, and who wrote them.

use std::sync::Arc;

use imbl::OrdMap;
use strandline_storage::path::ObjectId;
use strandline_storage::reader::Stretch;

use super::producers::{ForgottenProducers, Producer, ProducerIds, Sequence, SequenceError};
use super::ranges::Ranges;
use super::transactions::{AbortedTransaction, Marker, TransactionOfBatch};

/// A run of offsets that lies in one piece of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First offset.
    pub base_offset: i64,
    /// First offset after the range.
    pub end_offset: i64,
    /// The object.
    pub object: ObjectId,
    /// Where the range begins in the object.
    pub position: u64,
    /// How long it is, in bytes.
    pub bytes: u64,
    /// Largest timestamp of its records, ms since 1970.
    pub max_timestamp_ms: i64,
    /// How many batches it has.
    pub batches: u32,
    /// How often its bytes were rewritten for being small: 0 is what a flush wrote. Below
    /// [`LEVELS`](crate::limits::LEVELS).
    pub level: u8,
    /// Whether superseded records were left out: then offsets inside may be missing.
    pub compacted: bool,
}

impl Range {
    /// Where it lies in its object.
    pub fn stretch(&self) -> Stretch {
        Stretch { position: self.position, bytes: self.bytes }
    }

    /// Whether another one lies right behind this one, in offsets and in the object.
    pub(super) fn is_followed_by(&self, next: &Self) -> bool {
        self.object == next.object
            && self.end_offset == next.base_offset
            && self.position + self.bytes == next.position
            && (self.level, self.compacted) == (next.level, next.compacted)
    }
}

/// A batch as a record of the log describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Number of offsets that it takes; at least 1.
    pub offsets: u32,
    /// Length in bytes, header included.
    pub bytes: u32,
    /// Largest timestamp of its records, ms since 1970.
    pub max_timestamp_ms: i64,
    /// Who wrote it, if the producer is idempotent.
    pub sequence: Option<Sequence>,
    /// To which transaction it belongs; only with a sequence.
    pub transaction: Option<TransactionOfBatch>,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchOutcome {
    /// It is in the log from this offset on.
    Appended {
        /// Its first offset.
        base_offset: i64,
    },
    /// It was in the log already, from this offset on; the bytes of this copy are dead.
    Duplicate {
        /// The first offset that it got back then.
        base_offset: i64,
    },
    /// It is not in the log.
    Refused(Refusal),
}

/// Why a batch is not in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The topic id or the partition does not exist (any more) at this point of the history.
    UnknownTopicOrPartition,
    /// The producer's sequence number does not follow its last one.
    OutOfOrderSequence,
    /// The producer's epoch is older than the newest one seen.
    InvalidProducerEpoch,
    /// The producer is not known here, and its id is so old that it may have been forgotten.
    UnknownProducerId,
    /// It belongs to a transaction, and no transactional id has this producer id.
    InvalidProducerIdMapping,
    /// It does not belong to the transaction that is open, or stands in the middle of one.
    InvalidTransactionState,
}

impl From<SequenceError> for Refusal {
    fn from(error: SequenceError) -> Self {
        match error {
            SequenceError::OutOfOrder => Self::OutOfOrderSequence,
            SequenceError::OldEpoch => Self::InvalidProducerEpoch,
            SequenceError::Forgotten => Self::UnknownProducerId,
        }
    }
}

/// Removes the entries of offsets below `offset`.
fn remove_below<T: Clone>(entries: &mut OrdMap<i64, T>, offset: i64) {
    while let Some(&(first, _)) = entries.get_min()
        && first < offset
    {
        entries.remove(&first);
    }
}

/// The state of one partition. A clone shares nearly everything with the original.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Partition {
    pub(super) log_start: i64,
    pub(super) end: i64,
    pub(super) ranges: Ranges,
    pub(super) producers: OrdMap<i64, Arc<Producer>>,
    pub(super) forgotten: ForgottenProducers,
    pub(super) open: OrdMap<i64, i64>,
    pub(super) markers: OrdMap<i64, Marker>,
    pub(super) aborted: OrdMap<i64, AbortedTransaction>,
}

/// What a snapshot stores of a partition; the rest is derived.
#[derive(Debug)]
pub(crate) struct PartitionParts {
    pub(crate) log_start: i64,
    pub(crate) end: i64,
    pub(crate) ranges: Ranges,
    pub(crate) producers: OrdMap<i64, Arc<Producer>>,
    pub(crate) forgotten: ForgottenProducers,
    pub(crate) open: OrdMap<i64, i64>,
    pub(crate) markers: OrdMap<i64, Marker>,
    pub(crate) aborted: OrdMap<i64, AbortedTransaction>,
}

impl Partition {
    /// A partition from what a snapshot stores.
    pub(crate) fn from_parts(parts: PartitionParts) -> Self {
        let PartitionParts { log_start, end, ranges, producers, forgotten, open, markers, aborted } = parts;
        Self { log_start, end, ranges, producers, forgotten, open, markers, aborted }
    }

    /// First offset that can be read.
    pub fn log_start(&self) -> i64 {
        self.log_start
    }

    /// The offset that the next record gets: Kafka's log end offset and, here, its high watermark
    /// too, since what is ordered is durable.
    pub fn end(&self) -> i64 {
        self.end
    }

    /// First offset that may belong to an open transaction; the end while there is none.
    pub fn last_stable(&self) -> i64 {
        self.open.get_min().map_or(self.end, |(first, _)| *first)
    }

    /// Bytes of the ranges that are still referenced.
    pub fn bytes(&self) -> u64 {
        self.ranges.bytes()
    }

    /// The ranges, in offset order. The first may begin before the log start.
    pub fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// The idempotent producers that wrote here and are remembered, by id.
    pub fn producers(&self) -> &OrdMap<i64, Arc<Producer>> {
        &self.producers
    }

    /// The idempotent producers that wrote here and are not remembered any more.
    pub fn forgotten(&self) -> &ForgottenProducers {
        &self.forgotten
    }

    /// The largest timestamp in the partition, or `None` if it has no records.
    pub fn max_timestamp_ms(&self) -> Option<i64> {
        self.ranges.max_timestamp_ms()
    }

    /// The ranges from the one that contains `offset` on, up to and including the one with which at
    /// least `max_bytes` are covered, and at most `max_ranges`; from the next one on if a marker
    /// has the offset. Pure; nothing if `offset` is at or past the end or before the first range.
    pub fn plan(&self, offset: i64, max_bytes: u64, max_ranges: usize) -> Vec<Range> {
        let mut planned = Vec::new();
        let mut bytes = 0;
        for range in self.ranges.from(offset).take(max_ranges) {
            if bytes >= max_bytes && !planned.is_empty() {
                break;
            }
            if planned.is_empty() && self.unmarked_from(offset) < range.base_offset {
                break;
            }
            bytes += range.bytes;
            planned.push(*range);
        }
        planned
    }

    /// The first offset from `offset` on that no marker has.
    pub fn unmarked_from(&self, offset: i64) -> i64 {
        let run = (offset..).zip(self.markers.range(offset..));
        let marked = run.take_while(|(expected, (at, _))| expected == *at);
        marked.last().map_or(offset, |(last, _)| last + 1)
    }

    /// Decides about a batch and, if it is new, appends it. Says whether that began a range of its
    /// own.
    pub(super) fn append(
        &mut self,
        batch: &Batch,
        object: ObjectId,
        position: u64,
        ids: &ProducerIds,
    ) -> (BatchOutcome, bool) {
        let base_offset = self.end;
        if let Some(sequence) = &batch.sequence {
            let seen = match self.producers.get(&sequence.producer_id) {
                Some(known) => known.check(sequence, batch.offsets),
                None => self.forgotten.check(sequence, ids).map(|()| None),
            };
            match seen {
                Ok(Some(duplicate_of)) => {
                    return (BatchOutcome::Duplicate { base_offset: duplicate_of }, false);
                }
                Ok(None) => {}
                Err(error) => return (BatchOutcome::Refused(error.into()), false),
            }
            let producer = self.producers.entry(sequence.producer_id).or_default();
            Arc::make_mut(producer).remember(sequence, batch.offsets, base_offset);
            self.forgotten.forget(sequence.producer_id);
        }
        let end_offset = base_offset + i64::from(batch.offsets);
        assert!(end_offset > base_offset, "invariant 2: a batch takes at least one offset");
        self.end = end_offset;
        let new_range = self.ranges.append(Range {
            base_offset,
            end_offset,
            object,
            position,
            bytes: u64::from(batch.bytes),
            max_timestamp_ms: batch.max_timestamp_ms,
            batches: 1,
            level: 0,
            compacted: false,
        });
        (BatchOutcome::Appended { base_offset }, new_range)
    }

    /// Forgets a producer, but, if `is_noted`, where it was.
    pub(super) fn forget(&mut self, producer_id: i64, is_noted: bool) {
        let Some(producer) = self.producers.remove(&producer_id) else { return };
        if is_noted {
            self.forgotten.note(producer_id, &producer);
        }
    }

    /// Moves the log start up to `log_start`, at most to the last stable offset, and gives the
    /// ranges that nothing refers to any more.
    pub(super) fn trim(&mut self, log_start: i64) -> Vec<Range> {
        self.log_start = self.log_start.max(log_start.min(self.last_stable()));
        let mut gone = Vec::new();
        while let Some(first) = self.ranges.first() {
            if first.end_offset > self.log_start {
                break;
            }
            gone.extend(self.ranges.pop_first());
        }
        remove_below(&mut self.markers, self.log_start);
        remove_below(&mut self.aborted, self.log_start);
        gone
    }
}
