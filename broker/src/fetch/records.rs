//! The records of one partition, as the ranges that they lie in are read.

use std::collections::{BTreeMap, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use strandline_metadata::state::{Marker, Range};
use strandline_storage::error::StoreError;
use strandline_storage::format::batch::{CONTROL_BATCH_BYTES, control_batch, patched_prefix};
use strandline_storage::reader::{ReadBatch, ReadRange};
use tracing::debug;

use super::plan::{Assessment, PlannedRange};
use crate::limits::COPIED_BATCH_BYTES;
use crate::placement::offsets_of;

/// Record batches, ready to be sent, in pieces.
#[derive(Clone, Debug, Default)]
pub(crate) struct Records {
    pub(crate) pieces: Vec<Bytes>,
    pub(crate) bytes: usize,
    /// Records in them.
    pub(crate) count: u64,
    /// The offset behind the last of them; 0 if there are none.
    pub(crate) end_offset: i64,
    /// Bytes that the pieces keep in memory: those of the buffers that they are slices of.
    pub(crate) kept_alive: usize,
}

/// Collects batches; large ones stay in the buffers that they were read into.
#[derive(Debug, Default)]
struct Collector {
    records: Records,
    scratch: BytesMut,
}

impl Collector {
    /// Adds a batch. Pieces of it up to `copied` bytes are copied.
    fn push(&mut self, batch: &ReadBatch, base_offset: i64, copied: usize) {
        self.records.bytes += batch.len();
        self.records.count += u64::try_from(batch.header.record_count).unwrap_or(0);
        self.records.end_offset = base_offset + i64::from(batch.header.last_offset_delta) + 1;
        let prefix = patched_prefix(&batch.header, base_offset, 0);
        self.scratch.put_slice(&prefix);
        let mut replaced = prefix.len();
        for piece in batch.pieces() {
            let before = replaced.min(piece.len());
            replaced -= before;
            let kept = piece.slice(before..);
            if kept.len() <= copied {
                self.scratch.put_slice(&kept);
                continue;
            }
            if !self.scratch.is_empty() {
                self.records.pieces.push(self.scratch.split().freeze());
            }
            self.records.pieces.push(kept);
        }
    }

    /// Adds the end of a transaction.
    fn push_end(&mut self, offset: i64, marker: &Marker) {
        let Marker { producer_id, epoch, committed, time_ms } = *marker;
        self.scratch.put_slice(&control_batch(offset, (producer_id, epoch), committed, time_ms));
        self.records.bytes += CONTROL_BATCH_BYTES;
        self.records.kept_alive += CONTROL_BATCH_BYTES;
        self.records.end_offset = offset + 1;
    }

    fn finish(mut self) -> Records {
        if !self.scratch.is_empty() {
            self.records.pieces.push(self.scratch.freeze());
        }
        self.records
    }
}

/// The records of a partition while its ranges arrive, in whatever order.
#[derive(Debug)]
pub(super) struct PartitionRecords {
    /// Where the fetch begins.
    offset: i64,
    /// Most bytes, but for the first batch.
    budget: usize,
    ranges: Vec<PlannedRange>,
    /// The ends of transactions that are to be added, the next one first.
    markers: VecDeque<(i64, Marker)>,
    /// Nothing from here on is wanted.
    below: i64,
    /// Whether all that was planned is among the ranges.
    is_all: bool,
    /// The range that is to be added next.
    next: usize,
    /// Ranges that arrived before those in front of them.
    early: BTreeMap<usize, Result<ReadRange, StoreError>>,
    collector: Collector,
    /// Why nothing can be said of this partition.
    failed: Option<StoreError>,
}

impl PartitionRecords {
    /// What was planned from `offset` on, as far as it fits into `budget` bytes.
    pub(super) fn new(offset: i64, budget: usize, plan: &Assessment) -> Self {
        let ranges = within(&plan.planned, budget);
        Self {
            offset,
            budget,
            is_all: ranges.len() == plan.planned.len(),
            ranges,
            markers: plan.markers.iter().copied().collect(),
            below: plan.below,
            next: 0,
            early: BTreeMap::new(),
            collector: Collector::default(),
            failed: None,
        }
    }

    /// Nothing.
    pub(super) fn none() -> Self {
        Self {
            offset: 0,
            budget: 0,
            ranges: Vec::new(),
            markers: VecDeque::new(),
            below: 0,
            is_all: true,
            next: 0,
            early: BTreeMap::new(),
            collector: Collector::default(),
            failed: None,
        }
    }

    /// The ranges of which something may be wanted.
    pub(super) fn ranges(&self) -> &[PlannedRange] {
        &self.ranges
    }

    /// Whether a range that has not been read yet may still be wanted.
    pub(super) fn wants(&self, index: usize) -> bool {
        index >= self.next && index < self.ranges.len()
    }

    /// Adds what was read of a range, once all that lies before it is there.
    pub(super) fn add(&mut self, index: usize, read: Result<ReadRange, StoreError>) {
        if !self.wants(index) {
            return;
        }
        self.early.insert(index, read);
        while let Some(read) = self.early.remove(&self.next) {
            let Some(planned) = self.ranges.get(self.next).copied() else { return };
            self.next += 1;
            if !self.add_ends(planned.range.base_offset) || !self.add_next(&planned, read) {
                self.is_all = false;
                self.ranges.truncate(self.next);
                self.early.clear();
            }
        }
    }

    /// Adds the ends of transactions that lie below an offset. Whether all of them have fitted.
    fn add_ends(&mut self, below: i64) -> bool {
        while let Some((offset, marker)) = self.markers.front().copied().filter(|(at, _)| *at < below) {
            let bytes = self.collector.records.bytes;
            if bytes > 0 && bytes + CONTROL_BATCH_BYTES > self.budget {
                return false;
            }
            self.markers.pop_front();
            self.collector.push_end(offset, &marker);
        }
        true
    }

    /// Whether there may be more.
    fn add_next(&mut self, planned: &PlannedRange, read: Result<ReadRange, StoreError>) -> bool {
        let range = &planned.range;
        let read = match read {
            Ok(read) => read,
            // What lies before a range that cannot be read is served; the next fetch begins at that
            // range and is told. Otherwise a consumer would never get the good records in front of
            // it.
            Err(error) if self.collector.records.bytes > 0 => {
                debug!(object = %range.object, %error, "a fetch ends before a range that cannot be read");
                return false;
            }
            Err(error) => {
                self.failed = Some(error);
                return false;
            }
        };
        let wanted = match self.wanted_of(range, &read.batches) {
            Ok(wanted) => wanted,
            Err(what) => {
                self.failed = Some(StoreError::corrupt(&range.object.key(), what));
                return false;
            }
        };
        let bytes: usize = wanted.batches.iter().map(|(_, batch)| batch.len()).sum();
        // Little of much is copied, so that it does not keep the rest in memory until it is sent.
        let is_little = bytes < read.kept_alive / 2;
        self.collector.records.kept_alive += if is_little { bytes } else { bytes.max(read.kept_alive) };
        if is_little {
            self.collector.scratch.reserve(bytes);
        }
        for (base_offset, batch) in &wanted.batches {
            self.collector.push(batch, *base_offset, if is_little { usize::MAX } else { COPIED_BATCH_BYTES });
        }
        // Invariant 2 again, after the read: the batches must tile the range that the log promised.
        // A compacted one may lack its last records, and a part of one ends before it.
        let may_be_short = range.compacted || planned.is_part;
        let is_wrong = |end: &i64| *end < range.end_offset && !may_be_short;
        if let Some(end_offset) = wanted.end_offset.filter(is_wrong) {
            let what = format!(
                "the batches at {}..{} end at offset {end_offset}, the log says {}",
                range.position,
                range.position + range.bytes,
                range.end_offset
            );
            self.failed = Some(StoreError::corrupt(&range.object.key(), what));
            return false;
        }
        wanted.end_offset.is_some() && !planned.is_part
    }

    /// Which batches of a range belong into the response; what is wrong if they cannot be those of
    /// the range.
    fn wanted_of<'a>(&self, range: &Range, batches: &'a [ReadBatch]) -> Result<RangeSelection<'a>, String> {
        let mut wanted = RangeSelection { batches: Vec::new(), end_offset: None };
        let mut bytes = self.collector.records.bytes;
        let mut next = range.base_offset;
        for batch in batches {
            let (base_offset, end_offset) = offsets_of(range, next, &batch.header)
                .map_err(|what| format!("the range at {} {what}", range.position))?;
            if base_offset >= self.below {
                return Ok(wanted);
            }
            // A fetch starts at the batch that contains the offset.
            if end_offset > self.offset {
                if bytes > 0 && bytes + batch.len() > self.budget {
                    return Ok(wanted);
                }
                bytes += batch.len();
                wanted.batches.push((base_offset, batch));
            }
            next = end_offset;
        }
        wanted.end_offset = Some(next);
        Ok(wanted)
    }

    /// What was read so far. A partition whose ranges lie in objects that cannot be read has failed
    /// unless there are records before those.
    pub(super) fn finish(mut self) -> Result<Records, StoreError> {
        if self.is_all && self.next == self.ranges.len() && self.failed.is_none() {
            self.add_ends(self.below);
        }
        match self.failed {
            Some(error) => Err(error),
            None => Ok(self.collector.finish()),
        }
    }
}

/// Batches of a range with their offsets.
struct RangeSelection<'a> {
    batches: Vec<(i64, &'a ReadBatch)>,
    /// Where the range ends, if all of it was looked at.
    end_offset: Option<i64>,
}

/// The ranges of which something may fit into `budget` bytes. How much of the first one is wanted
/// is not known before it is read, so it does not count.
fn within(planned: &[PlannedRange], budget: usize) -> Vec<PlannedRange> {
    let mut before = 0;
    let fits = |(i, planned): &(usize, &PlannedRange)| {
        let fits = *i == 0 || before < budget as u64;
        if *i > 0 {
            before += planned.range.bytes;
        }
        fits
    };
    planned.iter().enumerate().take_while(fits).map(|(_, planned)| *planned).collect()
}

#[cfg(test)]
mod tests {
    use strandline_storage::path::ObjectId;

    use super::*;

    #[test]
    fn what_cannot_fit_any_more_is_not_read() {
        let planned: Vec<PlannedRange> = (0..5)
            .map(|number| {
                let object = ObjectId::write(1, number, 0);
                let base_offset = i64::try_from(number).unwrap();
                let range = Range {
                    base_offset,
                    end_offset: base_offset + 1,
                    object,
                    position: 0,
                    bytes: 100,
                    max_timestamp_ms: 0,
                    batches: 1,
                    level: 0,
                    compacted: false,
                };
                PlannedRange {
                    range,
                    stretch: range.stretch(),
                    object_bytes: 100,
                    tail: false,
                    is_part: false,
                }
            })
            .collect();
        // The first always is, and may give next to nothing.
        let read = [0, 1, 100, 200, 10_000].map(|budget| within(&planned, budget).len());
        assert_eq!(read, [1, 2, 2, 3, 5]);
    }
}
