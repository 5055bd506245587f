//! The merged object: the batches of many partitions at their real offsets, a sparse index for each
//! partition, and a footer.
//!
//! ```text
//! ┌────────────────────────── data ─────────────────────────┬── sparse indexes ──┬──────── index ────────┬─ footer ─┐
//! │ batches of (topic a, 0) │ batches of (topic a, 3) │ …   │ 24 bytes per entry │ 84 bytes per partition│ 52 bytes │
//! └─────────────────────────────────────────────────────────┴────────────────────┴───────────────────────┴──────────┘
//!
//! sparse  base offset i64 │ position u64 │ largest timestamp i64
//! entry   topic id [16] │ partition i32 │ CRC-32C of the range u32 │ position u64 │ length u64 │
//!         first offset i64 │ end offset i64 │ largest timestamp i64 │ batches u32 │ flags u32 │
//!         position of its sparse index u64 │ entries of it u32
//! ```
//!
//! Index and footer are laid out as in a write object, see [`super::segment`]; what its footer
//! calls the index are the sparse indexes and the index together. The base offsets in the batches
//! are the real ones, so whoever reads the object needs nothing else to know what it holds.
//!
//! A sparse index has an entry for the first batch of its range, and then for the first one that
//! begins a MiB or more behind that of the entry before. The timestamp in an entry is the largest
//! of all batches of the range up to the next entry, so it never falls from entry to entry.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use std::mem::size_of;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::batch::{BATCH_HEADER_BYTES, BatchHeader, CRC_COVERS_FROM, patched_prefix};
use super::checksum::{Crc32c, RunningCrc32c};
use super::footer::{Footer, FormatError, LONGEST_FOOTER_BYTES, Layout, put_footer};
use super::pieces::Pieces;
use crate::error::StoreError;
use crate::limits::{
    COALESCE_BELOW_BYTES, MAX_MERGED_BYTES, MAX_MERGED_RANGES, MERGE_INDEX_INTERVAL_BYTES,
    MERGED_INDEX_ENTRY_BYTES, MERGED_INDEX_TAIL_BYTES, SEGMENT_FOOTER_BYTES, SPARSE_ENTRY_BYTES,
};
use crate::path::{ObjectId, ObjectKey, ObjectKind};
use crate::reader::ReadBatch;
use crate::store::{Payload, Store};

/// The leader epoch in every batch of a merged object; a reader puts the current one in its place.
const LEADER_EPOCH: i32 = 0;

/// Which layout a merged object has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum MergedVersion {
    /// The only one so far.
    V1,
}

impl MergedVersion {
    /// The newest.
    pub const LATEST: Self = Self::V1;

    /// The version's number in the footer. Never reused.
    pub const fn id(self) -> u16 {
        match self {
            Self::V1 => 1,
        }
    }

    /// The version with this number, if this code knows it.
    pub const fn from_id(id: u16) -> Option<Self> {
        match id {
            1 => Some(Self::V1),
            _ => None,
        }
    }
}

/// What is special about a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MergeFlags {
    /// Bit 0: superseded records were removed, so offsets between and in batches may be missing.
    pub compacted: bool,
}

impl MergeFlags {
    /// As stored.
    pub const fn bits(self) -> u32 {
        self.compacted as u32
    }

    /// From what is stored; `None` if a bit is set that this code does not know.
    pub const fn from_bits(bits: u32) -> Option<Self> {
        match bits {
            0 => Some(Self { compacted: false }),
            1 => Some(Self { compacted: true }),
            _ => None,
        }
    }
}

/// Where the batches of one partition lie in a merged object, and what they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MergedRange {
    /// The topic's id.
    pub topic_id: [u8; 16],
    /// The partition's number.
    pub partition: i32,
    /// CRC-32C of the range's bytes.
    pub crc: u32,
    /// Where the range begins in the object.
    pub position: u64,
    /// Bytes of the range. Never 0.
    pub length: u64,
    /// Base offset of the first batch.
    pub first_offset: i64,
    /// Offset behind the last record of the last batch.
    pub end_offset: i64,
    /// The largest timestamp of all batches but ends of transactions, in milliseconds; −1 if there
    /// is none.
    pub max_timestamp: i64,
    /// Number of batches. Never 0.
    pub batches: u32,
    /// What is special about it.
    pub flags: MergeFlags,
    /// Its entries in the object's list of sparse entries: the first, and how many.
    sparse: (u32, u32),
}

/// An entry of a sparse index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SparseEntry {
    /// Base offset of the batch that begins there.
    pub base_offset: i64,
    /// Where that batch begins in the object.
    pub position: u64,
    /// The largest timestamp of all batches of the range up to the next entry, in milliseconds.
    pub max_timestamp: i64,
}

/// A part of a range that begins and ends where batches do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// Base offset of its first batch.
    pub base_offset: i64,
    /// Where it begins in the object.
    pub position: u64,
    /// Its length in bytes. Never 0.
    pub bytes: u64,
}

/// Why something cannot be added to a merged object. What was built so far stays as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MergeError {
    /// The id is not that of a merged object.
    #[error("{0} is not the id of a merged object")]
    Id(ObjectId),
    /// Partitions come in ascending order of (topic id, partition), each once.
    #[error("partition {partition} of topic {topic_id:032x} does not come after the one before it")]
    PartitionOrder {
        /// The topic's id, as a number.
        topic_id: u128,
        /// The partition.
        partition: i32,
    },
    /// A batch came before any partition was begun.
    #[error("a batch belongs to no partition")]
    NoPartition,
    /// A batch that does not begin where the one before it ends.
    #[error(
        "partition {partition} of topic {topic_id:032x} goes on at offset {found} where {expected} is the next"
    )]
    Offset {
        /// The topic's id, as a number.
        topic_id: u128,
        /// The partition.
        partition: i32,
        /// Where the batch before it ends.
        expected: i64,
        /// The base offset of the batch.
        found: i64,
    },
    /// A base offset that is negative, or too large for the batch's records.
    #[error("a batch cannot begin at offset {base_offset} with last offset delta {last_offset_delta}")]
    OffsetRange {
        /// The base offset.
        base_offset: i64,
        /// The last offset delta in the batch's header.
        last_offset_delta: i32,
    },
    /// A batch is shorter or longer than its header says.
    #[error("a batch has {actual} bytes, its header says {expected}")]
    Length {
        /// What the header says.
        expected: usize,
        /// Bytes that were given.
        actual: usize,
    },
    /// The object would have too many bytes.
    #[error("a merged object has at most {MAX_MERGED_BYTES} bytes of batches")]
    TooManyBytes,
    /// The object would have too many partitions.
    #[error("a merged object has at most {MAX_MERGED_RANGES} ranges")]
    TooManyRanges,
}

/// A finished merged object.
#[derive(Clone, Debug)]
pub struct Merged {
    /// The object's bytes.
    pub payload: Payload,
    /// Bytes of the whole object.
    pub size: u64,
    /// What it holds of each partition, in ascending order of (topic id, partition). A partition
    /// that was begun and got no batch is not in it.
    pub ranges: Vec<MergedRange>,
}

/// Collects batches into a merged object.
///
/// Large batches stay in the buffers that they came in: only their headers are copied, since base
/// offset and leader epoch are replaced. Small ones are copied together.
#[derive(Debug)]
pub struct MergeBuilder {
    id: ObjectId,
    pieces: Pieces,
    ranges: Vec<MergedRange>,
    sparse: Vec<SparseEntry>,
    /// The partition that was begun last; its range is made by its first batch.
    begun: Option<([u8; 16], i32, MergeFlags)>,
    /// Of the range that batches are added to.
    checksum: RangeChecksum,
    /// Of all ranges before that.
    before: Crc32c,
}

/// The checksum of a range that grows. What is copied is in the CPU's cache then, and is summed up
/// on the way; what is not copied is not touched either: its checksum is known.
#[derive(Debug, Default)]
struct RangeChecksum {
    whole: Crc32c,
    run: RunningCrc32c,
}

impl RangeChecksum {
    fn sum(&self) -> Crc32c {
        let run = self.run.sum();
        if run.bytes() == 0 { self.whole } else { self.whole.followed_by(run) }
    }

    fn add_known(&mut self, more: Crc32c) {
        *self = Self { whole: self.sum().followed_by(more), run: RunningCrc32c::default() };
    }
}

impl MergeBuilder {
    /// An empty object with this id, which is that of a merged object; [`Self::finish`] fails
    /// otherwise.
    pub fn new(id: ObjectId) -> Self {
        Self {
            id,
            pieces: Pieces::default(),
            ranges: Vec::new(),
            sparse: Vec::new(),
            begun: None,
            checksum: RangeChecksum::default(),
            before: Crc32c::EMPTY,
        }
    }

    /// The object's id.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// Bytes of batches so far.
    pub fn data_bytes(&self) -> u64 {
        self.ranges.last().map_or(0, |range| range.position + range.length)
    }

    /// Says that the batches that follow belong to this partition. It must come after the one
    /// before it in the order of (topic id, partition).
    pub fn begin(&mut self, topic_id: [u8; 16], partition: i32, flags: MergeFlags) -> Result<(), MergeError> {
        if self.begun.is_some_and(|(topic, number, _)| (topic, number) >= (topic_id, partition)) {
            return Err(MergeError::PartitionOrder { topic_id: u128::from_be_bytes(topic_id), partition });
        }
        if self.ranges.len() >= MAX_MERGED_RANGES {
            return Err(MergeError::TooManyRanges);
        }
        self.begun = Some((topic_id, partition, flags));
        Ok(())
    }

    /// Adds a batch, of which the reader has checked the CRC, at its real offset.
    pub fn push(&mut self, batch: &ReadBatch, base_offset: i64) -> Result<(), MergeError> {
        self.push_pieces(&batch.header, batch.pieces(), base_offset)
    }

    /// Adds a batch in pieces, of which `header` is the header, whose CRC is right. If it is not,
    /// the store refuses the object.
    pub fn push_pieces<'a>(
        &mut self,
        header: &BatchHeader,
        pieces: impl Iterator<Item = &'a Bytes> + Clone,
        base_offset: i64,
    ) -> Result<(), MergeError> {
        let (topic_id, partition, flags) = self.begun.ok_or(MergeError::NoPartition)?;
        let (expected, actual) = (header.total_bytes(), pieces.clone().map(Bytes::len).sum());
        if expected != actual || actual < BATCH_HEADER_BYTES {
            return Err(MergeError::Length { expected, actual });
        }
        let last_offset_delta = header.last_offset_delta;
        let end_offset = base_offset
            .checked_add(i64::from(last_offset_delta))
            .and_then(|last| last.checked_add(1))
            .filter(|end| base_offset >= 0 && *end > base_offset)
            .ok_or(MergeError::OffsetRange { base_offset, last_offset_delta })?;
        // The end of a transaction is no record.
        let newest = if header.is_control() { -1 } else { header.max_timestamp };
        let position = self.data_bytes();
        if position + actual as u64 > MAX_MERGED_BYTES {
            return Err(MergeError::TooManyBytes);
        }
        let last = self.ranges.last().filter(|last| (last.topic_id, last.partition) == (topic_id, partition));
        if let Some(&MergedRange { end_offset: expected, .. }) = last
            && (base_offset < expected || (base_offset > expected && !flags.compacted))
        {
            let (topic_id, found) = (u128::from_be_bytes(topic_id), base_offset);
            return Err(MergeError::Offset { topic_id, partition, expected, found });
        }
        if last.is_none() {
            // `begin` has seen that there is room for one more.
            self.end_range();
            self.ranges.push(MergedRange {
                topic_id,
                partition,
                crc: 0,
                position,
                length: 0,
                first_offset: base_offset,
                end_offset: base_offset,
                max_timestamp: newest,
                batches: 0,
                flags,
                sparse: (u32::try_from(self.sparse.len()).unwrap_or(u32::MAX), 0),
            });
        }
        let Some(range) = self.ranges.last_mut() else { return Err(MergeError::NoPartition) };
        range.length += actual as u64;
        range.end_offset = end_offset;
        range.max_timestamp = range.max_timestamp.max(newest);
        range.batches += 1;
        let max_timestamp = range.max_timestamp;
        match self.sparse.last_mut() {
            Some(entry) if range.sparse.1 > 0 && position - entry.position < MERGE_INDEX_INTERVAL_BYTES => {
                entry.max_timestamp = max_timestamp;
            }
            _ => {
                self.sparse.push(SparseEntry { base_offset, position, max_timestamp });
                range.sparse.1 += 1;
            }
        }
        self.append(header, pieces, base_offset);
        Ok(())
    }

    /// Adds index and footer.
    pub fn finish(mut self) -> Result<Merged, MergeError> {
        if self.id.kind != ObjectKind::Merge {
            return Err(MergeError::Id(self.id));
        }
        let data_bytes = self.data_bytes();
        self.end_range();
        let mut tail = BytesMut::with_capacity(
            self.sparse.len() * SPARSE_ENTRY_BYTES
                + self.ranges.len() * MERGED_INDEX_ENTRY_BYTES
                + LONGEST_FOOTER_BYTES,
        );
        for entry in &self.sparse {
            tail.put_i64(entry.base_offset);
            tail.put_u64(entry.position);
            tail.put_i64(entry.max_timestamp);
        }
        for range in &self.ranges {
            put_range(&mut tail, range, data_bytes);
        }
        // `begin` takes no more than there may be.
        let range_count = u32::try_from(self.ranges.len()).unwrap_or(u32::MAX);
        put_footer(&mut tail, Layout::Merge(MergedVersion::LATEST), self.id, data_bytes, range_count);
        let checksum = self.before.followed_by(Crc32c::of(&tail));
        self.pieces.push(tail.freeze());
        let payload = Payload::summed(self.pieces.finish(), checksum);
        Ok(Merged { payload, size: checksum.bytes(), ranges: self.ranges })
    }

    /// Adds the bytes of a batch with another base offset.
    fn append<'a>(
        &mut self,
        header: &BatchHeader,
        pieces: impl Iterator<Item = &'a Bytes>,
        base_offset: i64,
    ) {
        let mut head = BytesMut::with_capacity(CRC_COVERS_FROM);
        head.put_slice(&patched_prefix(header, base_offset, LEADER_EPOCH));
        head.put_i8(header.magic);
        head.put_u32(header.crc);
        self.pieces.copy(&head);
        let is_copied = header.total_bytes() < COALESCE_BELOW_BYTES;
        if is_copied {
            self.checksum.run.update(&head);
        } else {
            let covered = (header.total_bytes() - CRC_COVERS_FROM) as u64;
            self.checksum.add_known(Crc32c::of(&head).followed_by(Crc32c::known(header.crc, covered)));
        }
        let mut before = CRC_COVERS_FROM;
        for piece in pieces {
            let rest = piece.slice(before.min(piece.len())..);
            before -= before.min(piece.len());
            if is_copied {
                self.checksum.run.update(&rest);
            }
            self.pieces.push(rest);
        }
    }

    /// Closes the range that batches were added to, if there is one.
    fn end_range(&mut self) {
        let checksum = std::mem::take(&mut self.checksum).sum();
        if let Some(range) = self.ranges.last_mut()
            && checksum.bytes() > 0
        {
            range.crc = checksum.value();
            self.before = self.before.followed_by(checksum);
        }
    }
}

fn put_range(out: &mut BytesMut, range: &MergedRange, sparse_from: u64) {
    let (first, count) = range.sparse;
    out.put_slice(&range.topic_id);
    out.put_i32(range.partition);
    out.put_u32(range.crc);
    out.put_u64(range.position);
    out.put_u64(range.length);
    out.put_i64(range.first_offset);
    out.put_i64(range.end_offset);
    out.put_i64(range.max_timestamp);
    out.put_u32(range.batches);
    out.put_u32(range.flags.bits());
    out.put_u64(sparse_from + u64::from(first) * SPARSE_ENTRY_BYTES as u64);
    out.put_u32(count);
}

/// What is in a merged object, and which object it says that it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MergedIndex {
    id: ObjectId,
    /// In ascending order of (topic id, partition).
    ranges: Vec<MergedRange>,
    /// Of all ranges, one after the other.
    sparse: Vec<SparseEntry>,
}

impl MergedIndex {
    /// Reads the index of an object of `size` bytes from `tail`, which are the object's last bytes
    /// and hold at least all of its indexes and the footer.
    pub fn parse(tail: &[u8], size: u64) -> Result<Self, FormatError> {
        let footer = Footer::parse(tail, size)?;
        let (Layout::Merge(MergedVersion::V1), Some(id)) = (footer.layout, footer.id) else {
            return Err(FormatError::OtherKind(footer.layout.kind()));
        };
        let index = footer.index(tail, size)?;
        let count = usize::try_from(footer.range_count).unwrap_or(usize::MAX);
        let (mut sparse_at, mut at) = count
            .checked_mul(MERGED_INDEX_ENTRY_BYTES)
            .and_then(|bytes| index.len().checked_sub(bytes))
            .filter(|sparse_bytes| sparse_bytes.is_multiple_of(SPARSE_ENTRY_BYTES))
            .and_then(|sparse_bytes| index.split_at_checked(sparse_bytes))
            .ok_or(FormatError::RangeCount(footer.range_count))?;
        let mut sparse = Vec::with_capacity(sparse_at.len() / SPARSE_ENTRY_BYTES);
        while sparse_at.len() >= SPARSE_ENTRY_BYTES {
            sparse.push(SparseEntry {
                base_offset: sparse_at.get_i64(),
                position: sparse_at.get_u64(),
                max_timestamp: sparse_at.get_i64(),
            });
        }
        let mut ranges: Vec<MergedRange> = Vec::with_capacity(count);
        let (mut end, mut sparse_end) = (0, 0);
        while at.len() >= MERGED_INDEX_ENTRY_BYTES {
            let number = ranges.len();
            let fail = |what| FormatError::Range { range: number, what };
            let range = read_range(&mut at, footer.index_position).map_err(fail)?;
            let key = |range: &MergedRange| (range.topic_id, range.partition);
            let ascending = ranges.last().is_none_or(|last| key(last) < key(&range));
            match range.position.checked_add(range.length) {
                Some(range_end) if ascending && range.position == end && range.length > 0 => end = range_end,
                _ => return Err(FormatError::Tiling(number)),
            }
            if range.sparse.0 != sparse_end {
                return Err(fail("its sparse index does not follow the one before it"));
            }
            sparse_end = sparse_end.saturating_add(range.sparse.1);
            check_range(&range, entries(&sparse, &range)).map_err(fail)?;
            ranges.push(range);
        }
        if end != footer.index_position {
            return Err(FormatError::Tiling(ranges.len()));
        }
        if usize::try_from(sparse_end) != Ok(sparse.len()) {
            return Err(FormatError::RangeCount(footer.range_count));
        }
        Ok(Self { id, ranges, sparse })
    }

    /// Reads the index of a stored merged object of `size` bytes, with one request unless it has
    /// very many ranges. Fails as corrupt if it is no such object, or says that it is another one
    /// than the key names.
    pub async fn read(store: &dyn Store, key: &ObjectKey, size: u64) -> Result<Self, StoreError> {
        let index = Self::read_of_any(store, key, size).await?;
        index.check_identity(key).map_err(|error| StoreError::corrupt(key, error.to_string()))?;
        Ok(index)
    }

    /// Reads like [`Self::read`], whatever object it says that it is.
    pub(crate) async fn read_of_any(
        store: &dyn Store,
        key: &ObjectKey,
        size: u64,
    ) -> Result<Self, StoreError> {
        let corrupt = |error: FormatError| StoreError::corrupt(key, error.to_string());
        if size < SEGMENT_FOOTER_BYTES as u64 {
            return Err(corrupt(FormatError::Size { size }));
        }
        let mut tail = store.get(key, Some(size.saturating_sub(MERGED_INDEX_TAIL_BYTES)..size)).await?;
        let footer = Footer::parse(&tail, size).map_err(corrupt)?;
        if footer.tail_bytes() > tail.len() as u64 {
            tail = store.get(key, Some(footer.index_position..size)).await?;
        }
        Self::parse(&tail, size).map_err(corrupt)
    }

    /// The id that the footer gives.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// What the object holds of each partition, in ascending order of (topic id, partition).
    pub fn ranges(&self) -> &[MergedRange] {
        &self.ranges
    }

    /// What the object holds of one partition.
    pub fn range(&self, topic_id: [u8; 16], partition: i32) -> Option<&MergedRange> {
        let key = (topic_id, partition);
        let at = self.ranges.binary_search_by(|range| (range.topic_id, range.partition).cmp(&key)).ok()?;
        self.ranges.get(at)
    }

    /// The sparse index of a range of this object. Empty if it is one of another object.
    pub fn sparse(&self, range: &MergedRange) -> &[SparseEntry] {
        entries(&self.sparse, range)
    }

    /// Bytes that it takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        (size_of::<Self>()
            + self.ranges.capacity() * size_of::<MergedRange>()
            + self.sparse.capacity() * size_of::<SparseEntry>()) as u64
    }

    /// The smallest part of a partition's range, cut at entries of its sparse index, that is sure
    /// to hold the batch with `offset` and `max_bytes` from the beginning of that batch on, or all
    /// to the end of the range. In a compacted range it is the first batch that ends behind
    /// `offset`. `None` if the object holds no such batch.
    pub fn locate(&self, topic_id: [u8; 16], partition: i32, offset: i64, max_bytes: u64) -> Option<Span> {
        let range = self.range(topic_id, partition)?;
        if offset >= range.end_offset || (offset < range.first_offset && !range.flags.compacted) {
            return None;
        }
        let sparse = self.sparse(range);
        // What was compacted may begin behind its first offset that is asked for.
        let at = sparse.partition_point(|entry| entry.base_offset <= offset).saturating_sub(1);
        let (first, rest) = sparse.get(at..)?.split_first()?;
        // Where the batch begins at the latest.
        let latest = match rest.first() {
            _ if first.base_offset >= offset => first.position,
            None => first.position,
            Some(next) if range.flags.compacted => next.position,
            Some(next) => next.position.saturating_sub(BATCH_HEADER_BYTES as u64),
        };
        let wanted = latest.saturating_add(max_bytes.max(1));
        let end = rest.partition_point(|entry| entry.position < wanted);
        Some(span(range, first, rest.get(end)))
    }

    /// The part of a partition's range, cut at entries of its sparse index, that holds the first
    /// batch whose largest timestamp is `timestamp` (in milliseconds) or later. `None` if there is
    /// no such batch.
    pub fn locate_time(&self, topic_id: [u8; 16], partition: i32, timestamp: i64) -> Option<Span> {
        let range = self.range(topic_id, partition)?;
        let sparse = self.sparse(range);
        let at = sparse.partition_point(|entry| entry.max_timestamp < timestamp);
        let (first, rest) = sparse.get(at..)?.split_first()?;
        Some(span(range, first, rest.first()))
    }

    /// Checks the bytes of one range, given in pieces, against the index.
    pub fn verify(&self, range: &MergedRange, pieces: &[Bytes]) -> Result<(), FormatError> {
        let mut sum = RunningCrc32c::default();
        for piece in pieces {
            sum.update(piece);
        }
        let actual = sum.sum();
        if actual != Crc32c::known(range.crc, range.length) {
            let (position, expected) = (range.position, range.crc);
            return Err(FormatError::RangeCrc { position, expected, actual: actual.value() });
        }
        Ok(())
    }

    /// Refuses an object that says that it is another one than the one under `key`.
    pub fn check_identity(&self, key: &ObjectKey) -> Result<(), FormatError> {
        match key.as_object() {
            Some(wanted) if wanted != self.id => Err(FormatError::Identity(self.id)),
            _ => Ok(()),
        }
    }
}

fn entries<'a>(sparse: &'a [SparseEntry], range: &MergedRange) -> &'a [SparseEntry] {
    let (first, count) = range.sparse;
    let (Ok(first), Ok(count)) = (usize::try_from(first), usize::try_from(count)) else { return &[] };
    first.checked_add(count).and_then(|end| sparse.get(first..end)).unwrap_or_default()
}

/// From one entry to another one, or to the end of the range.
fn span(range: &MergedRange, from: &SparseEntry, to: Option<&SparseEntry>) -> Span {
    let end = to.map_or(range.position + range.length, |entry| entry.position);
    Span { base_offset: from.base_offset, position: from.position, bytes: end - from.position }
}

/// Reads an index entry, of which `at` holds at least one.
fn read_range(at: &mut &[u8], sparse_from: u64) -> Result<MergedRange, &'static str> {
    let mut topic_id = [0; 16];
    at.copy_to_slice(&mut topic_id);
    let (partition, crc) = (at.get_i32(), at.get_u32());
    let (position, length) = (at.get_u64(), at.get_u64());
    let (first_offset, end_offset, max_timestamp) = (at.get_i64(), at.get_i64(), at.get_i64());
    let (batches, flags) = (at.get_u32(), at.get_u32());
    let (sparse_position, sparse_count) = (at.get_u64(), at.get_u32());
    let flags = MergeFlags::from_bits(flags).ok_or("it has flags that this program does not know")?;
    let first = sparse_position
        .checked_sub(sparse_from)
        .filter(|bytes| bytes.is_multiple_of(SPARSE_ENTRY_BYTES as u64))
        .and_then(|bytes| u32::try_from(bytes / SPARSE_ENTRY_BYTES as u64).ok())
        .ok_or("its sparse index lies elsewhere")?;
    let sparse = (first, sparse_count);
    Ok(MergedRange {
        topic_id,
        partition,
        crc,
        position,
        length,
        first_offset,
        end_offset,
        max_timestamp,
        batches,
        flags,
        sparse,
    })
}

/// Checks what a range says of itself against its sparse index. Its position and length are those
/// of bytes that exist.
fn check_range(range: &MergedRange, sparse: &[SparseEntry]) -> Result<(), &'static str> {
    if range.first_offset < 0 || range.end_offset <= range.first_offset {
        return Err("its offsets are not ascending");
    }
    let offsets = range.end_offset.abs_diff(range.first_offset);
    let most_batches = offsets.min(range.length / BATCH_HEADER_BYTES as u64);
    if range.batches == 0 || u64::from(range.batches) > most_batches {
        return Err("it cannot have so many batches");
    }
    let (Some(first), Some(last)) = (sparse.first(), sparse.last()) else {
        return Err("it has no sparse index");
    };
    if (first.base_offset, first.position) != (range.first_offset, range.position) {
        return Err("its sparse index does not begin with its first batch");
    }
    if last.base_offset >= range.end_offset || last.position >= range.position + range.length {
        return Err("its sparse index goes on behind its end");
    }
    if last.max_timestamp != range.max_timestamp {
        return Err("its sparse index ends with another timestamp");
    }
    let ascends = |(a, b): (&SparseEntry, &SparseEntry)| {
        a.base_offset < b.base_offset && a.position < b.position && a.max_timestamp <= b.max_timestamp
    };
    if sparse.iter().zip(sparse.iter().skip(1)).all(ascends) {
        Ok(())
    } else {
        Err("its sparse index is not ascending")
    }
}

#[cfg(test)]
mod tests;
