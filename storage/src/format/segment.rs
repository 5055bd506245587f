//! The write object: the batches of many partitions, an index of where each partition's bytes lie, and a footer.
//!
//! ```text
//! ┌────────────────────────── data ─────────────────────────┬──────── index ────────┬─────── footer ───────┐
//! │ batches of (topic a, 0) │ batches of (topic a, 3) │ …   │ 40 bytes per partition│ 32 bytes             │
//! └─────────────────────────────────────────────────────────┴───────────────────────┴──────────────────────┘
//!
//! entry   topic id [16] │ partition i32 │ CRC-32 of the range u32 │ position u64 │ length u64
//! footer  index position u64 │ index length u32 │ range count u32 │ version u16 │ kind u16 │ CRC-32 u32 │ magic [8]
//! ```
//!
//! All numbers are big-endian, as in the batches between them. Entries are in ascending order of (topic id,
//! partition), each occurs once, and their ranges tile the data without a gap. The footer's CRC covers the index and
//! the footer's own bytes before it. A reader that knows only the object's size starts at its end.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::error::StoreError;
use crate::limits::{
    COALESCE_BELOW_BYTES, COALESCE_BUFFER_BYTES, INDEX_TAIL_BYTES, MAX_SEGMENT_RANGES, SEGMENT_FOOTER_BYTES,
    SEGMENT_INDEX_ENTRY_BYTES,
};
use crate::path::ObjectKey;
use crate::store::Store;

/// The last eight bytes of every write object.
pub const SEGMENT_MAGIC: [u8; 8] = *b"STRNDLSG";
/// The version of the layout that this code writes, and the only one that it reads.
pub const SEGMENT_VERSION: u16 = 1;

/// What kind of object the footer belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegmentKind {
    /// Written by a flush, with batches exactly as producers sent them.
    Write,
}

impl SegmentKind {
    /// The kind's number in the footer. Never reused.
    pub const fn id(self) -> u16 {
        match self {
            Self::Write => 1,
        }
    }

    /// The kind with this number, if there is one.
    pub const fn from_id(id: u16) -> Option<Self> {
        match id {
            1 => Some(Self::Write),
            _ => None,
        }
    }
}

/// Where the batches of one partition lie in an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentRange {
    /// The topic's id.
    pub topic_id: [u8; 16],
    /// The partition's number.
    pub partition: i32,
    /// Where the range begins in the object.
    pub position: u64,
    /// Bytes of the range. Never 0.
    pub length: u64,
    /// CRC-32 (IEEE) of the range.
    pub crc32: u32,
}

/// Why bytes are not the end of a write object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// The object ends before its footer, or the footer places the index outside of it.
    #[error("the object has {size} bytes, which do not hold what its footer promises")]
    Size {
        /// Bytes of the object.
        size: u64,
    },
    /// The last bytes are not the magic.
    #[error("its last bytes are not the magic of a write object")]
    Magic,
    /// Written by a version of Strandline that this one does not know.
    #[error("its format version is {0}, this program knows {SEGMENT_VERSION}")]
    Version(u16),
    /// A kind of object that this version does not know.
    #[error("its kind is {0}, which this program does not know")]
    Kind(u16),
    /// Index or footer are not what was written.
    #[error("the CRC of its index is {actual:#010x}, the footer says {expected:#010x}")]
    IndexCrc {
        /// What the footer says.
        expected: u32,
        /// What the bytes have.
        actual: u32,
    },
    /// More ranges than a write object may have.
    #[error("its footer promises {0} ranges")]
    RangeCount(u32),
    /// Entries out of order, twice, empty, or not tiling the data.
    #[error("range {0} of its index does not follow the one before it")]
    Tiling(usize),
    /// The bytes of a range are not what was written.
    #[error("the CRC of the range at {position} is {actual:#010x}, the index says {expected:#010x}")]
    RangeCrc {
        /// Where the range begins.
        position: u64,
        /// What the index says.
        expected: u32,
        /// What the bytes have.
        actual: u32,
    },
}

/// A finished write object.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The object's bytes, in order. What is stored and what is cached are the same buffers.
    pub payload: Vec<Bytes>,
    /// Bytes of the whole object.
    pub size: u64,
    /// Where each partition's bytes lie, in ascending order of (topic id, partition).
    pub ranges: Vec<SegmentRange>,
}

/// Collects batches into a write object.
///
/// Large batches stay in the buffers that they came in. Small ones are copied together, since a request body of many
/// small pieces costs more than the copy.
#[derive(Debug, Default)]
pub struct SegmentBuilder {
    payload: Vec<Bytes>,
    small: BytesMut,
    ranges: Vec<SegmentRange>,
    size: u64,
}

impl SegmentBuilder {
    /// An empty object.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes of data so far.
    pub fn data_bytes(&self) -> u64 {
        self.size
    }

    /// Adds all batches of one partition and returns where they begin.
    ///
    /// # Panics
    ///
    /// If partitions do not come in ascending order of (topic id, partition), each once, or a partition has no bytes
    /// (`parse_index` checks the same), or there are more than [`MAX_SEGMENT_RANGES`].
    pub fn push(&mut self, topic_id: [u8; 16], partition: i32, batches: Vec<Bytes>) -> u64 {
        if let Some(last) = self.ranges.last() {
            assert!(
                (last.topic_id, last.partition) < (topic_id, partition),
                "partitions must be pushed in ascending order, each once"
            );
        }
        assert!(self.ranges.len() < MAX_SEGMENT_RANGES, "a write object has a limited number of ranges");
        let position = self.size;
        let mut crc = crc32fast::Hasher::new();
        for bytes in batches {
            crc.update(&bytes);
            self.size += bytes.len() as u64;
            self.append(bytes);
        }
        let length = self.size - position;
        assert!(length > 0, "a range must have bytes");
        self.ranges.push(SegmentRange { topic_id, partition, position, length, crc32: crc.finalize() });
        position
    }

    /// Adds index and footer.
    pub fn finish(mut self) -> Segment {
        let index_position = self.size;
        let mut tail =
            BytesMut::with_capacity(self.ranges.len() * SEGMENT_INDEX_ENTRY_BYTES + SEGMENT_FOOTER_BYTES);
        for range in &self.ranges {
            put_entry(&mut tail, range);
        }
        let index_bytes = u32::try_from(tail.len()).unwrap_or(u32::MAX);
        let range_count = u32::try_from(self.ranges.len()).unwrap_or(u32::MAX);
        assert!(index_bytes < u32::MAX, "limits.rs keeps an index far below 4 GiB");
        tail.put_u64(index_position);
        tail.put_u32(index_bytes);
        tail.put_u32(range_count);
        tail.put_u16(SEGMENT_VERSION);
        tail.put_u16(SegmentKind::Write.id());
        tail.put_u32(crc32fast::hash(&tail));
        tail.put_slice(&SEGMENT_MAGIC);
        self.size += tail.len() as u64;
        self.append(tail.freeze());
        self.flush_small();
        Segment { payload: self.payload, size: self.size, ranges: self.ranges }
    }

    fn append(&mut self, bytes: Bytes) {
        if bytes.len() >= COALESCE_BELOW_BYTES {
            self.flush_small();
            self.payload.push(bytes);
            return;
        }
        if self.small.capacity() - self.small.len() < bytes.len() {
            self.flush_small();
            self.small = BytesMut::with_capacity(COALESCE_BUFFER_BYTES);
        }
        self.small.extend_from_slice(&bytes);
    }

    fn flush_small(&mut self) {
        if !self.small.is_empty() {
            self.payload.push(self.small.split().freeze());
        }
    }
}

fn put_entry(out: &mut BytesMut, range: &SegmentRange) {
    out.put_slice(&range.topic_id);
    out.put_i32(range.partition);
    out.put_u32(range.crc32);
    out.put_u64(range.position);
    out.put_u64(range.length);
}

/// What the last bytes of a write object say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Footer {
    /// Where the index begins, which is where the data ends.
    pub index_position: u64,
    /// Bytes of the index.
    pub index_bytes: u64,
    /// Number of entries of the index.
    pub range_count: u32,
    /// The kind of object.
    pub kind: SegmentKind,
    /// CRC-32 of the index and of the footer up to this field.
    pub crc32: u32,
}

/// Reads the footer of an object of `size` bytes from `tail`, which are the object's last bytes.
///
/// The footer alone is not protected: trust it only once [`parse_index`] agrees.
pub fn parse_footer(tail: &[u8], size: u64) -> Result<Footer, FormatError> {
    let Some((_, mut at)) =
        tail.split_last_chunk::<SEGMENT_FOOTER_BYTES>().map(|(head, foot)| (head, &foot[..]))
    else {
        return Err(FormatError::Size { size });
    };
    let index_position = at.get_u64();
    let index_bytes = u64::from(at.get_u32());
    let range_count = at.get_u32();
    let version = at.get_u16();
    let kind = at.get_u16();
    let crc32 = at.get_u32();
    if at != SEGMENT_MAGIC {
        return Err(FormatError::Magic);
    }
    if version != SEGMENT_VERSION {
        return Err(FormatError::Version(version));
    }
    let kind = SegmentKind::from_id(kind).ok_or(FormatError::Kind(kind))?;
    let count = usize::try_from(range_count).unwrap_or(usize::MAX);
    if count > MAX_SEGMENT_RANGES || index_bytes != (count * SEGMENT_INDEX_ENTRY_BYTES) as u64 {
        return Err(FormatError::RangeCount(range_count));
    }
    if index_position.checked_add(index_bytes + SEGMENT_FOOTER_BYTES as u64) != Some(size) {
        return Err(FormatError::Size { size });
    }
    Ok(Footer { index_position, index_bytes, range_count, kind, crc32 })
}

/// Reads the index of an object of `size` bytes from `tail`, which are the object's last bytes and hold at least the
/// whole index and the footer.
pub fn parse_index(tail: &[u8], size: u64) -> Result<Vec<SegmentRange>, FormatError> {
    let footer = parse_footer(tail, size)?;
    let wanted = footer.index_bytes + SEGMENT_FOOTER_BYTES as u64;
    let start = usize::try_from(wanted).ok().and_then(|wanted| tail.len().checked_sub(wanted));
    let (Some(covered), Some(mut at)) = (
        start.and_then(|start| tail.get(start..tail.len() - FOOTER_BYTES_AFTER_CRC_START)),
        start.and_then(|start| tail.get(start..tail.len() - SEGMENT_FOOTER_BYTES)),
    ) else {
        return Err(FormatError::Size { size });
    };
    let actual = crc32fast::hash(covered);
    if actual != footer.crc32 {
        return Err(FormatError::IndexCrc { expected: footer.crc32, actual });
    }
    let mut ranges: Vec<SegmentRange> = Vec::with_capacity(at.len() / SEGMENT_INDEX_ENTRY_BYTES);
    let mut end = 0_u64;
    while at.len() >= SEGMENT_INDEX_ENTRY_BYTES {
        let mut topic_id = [0; 16];
        at.copy_to_slice(&mut topic_id);
        let partition = at.get_i32();
        let crc32 = at.get_u32();
        let range = SegmentRange { topic_id, partition, crc32, position: at.get_u64(), length: at.get_u64() };
        let ascending =
            ranges.last().is_none_or(|last| (last.topic_id, last.partition) < (topic_id, partition));
        match range.position.checked_add(range.length) {
            Some(range_end) if ascending && range.position == end && range.length > 0 => end = range_end,
            _ => return Err(FormatError::Tiling(ranges.len())),
        }
        ranges.push(range);
    }
    if end != footer.index_position {
        return Err(FormatError::Tiling(ranges.len()));
    }
    Ok(ranges)
}

/// The footer's CRC and magic, which the CRC does not cover.
const FOOTER_BYTES_AFTER_CRC_START: usize = 4 + SEGMENT_MAGIC.len();

/// Checks the bytes of one range, given in pieces, against the index.
pub fn verify_range(range: &SegmentRange, pieces: &[Bytes]) -> Result<(), FormatError> {
    let mut crc = crc32fast::Hasher::new();
    let mut length = 0;
    for piece in pieces {
        crc.update(piece);
        length += piece.len() as u64;
    }
    let actual = crc.finalize();
    if actual != range.crc32 || length != range.length {
        return Err(FormatError::RangeCrc { position: range.position, expected: range.crc32, actual });
    }
    Ok(())
}

/// Reads the index of a stored write object of `size` bytes, with one request unless it has very many partitions.
pub async fn read_index(
    store: &dyn Store,
    key: &ObjectKey,
    size: u64,
) -> Result<Vec<SegmentRange>, StoreError> {
    let corrupt = |error: FormatError| StoreError::corrupt(key, error.to_string());
    if size < SEGMENT_FOOTER_BYTES as u64 {
        return Err(corrupt(FormatError::Size { size }));
    }
    let tail = store.get(key, Some(size.saturating_sub(INDEX_TAIL_BYTES)..size)).await?;
    let footer = parse_footer(&tail, size).map_err(corrupt)?;
    if footer.index_bytes + SEGMENT_FOOTER_BYTES as u64 <= tail.len() as u64 {
        return parse_index(&tail, size).map_err(corrupt);
    }
    let whole = store.get(key, Some(footer.index_position..size)).await?;
    parse_index(&whole, size).map_err(corrupt)
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::store::ObjectStoreBackend;

    fn golden() -> Segment {
        let mut builder = SegmentBuilder::new();
        assert_eq!(builder.push([1; 16], 0, vec![Bytes::from_static(b"abc"), Bytes::from_static(b"de")]), 0);
        assert_eq!(builder.push([1; 16], 7, vec![Bytes::from_static(b"123456789")]), 5);
        builder.finish()
    }

    /// The bytes of [`golden`]. If this test breaks, the format changed: objects already written become unreadable.
    fn golden_bytes() -> Vec<u8> {
        [
            &b"abcde123456789"[..],
            // (topic 0101…, partition 0): CRC-32 of "abcde", position 0, length 5
            &[1; 16],
            &[0, 0, 0, 0, 0x85, 0x87, 0xd8, 0x65],
            &[0, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 0, 0, 0, 0, 5],
            // (topic 0101…, partition 7): CRC-32 of "123456789", position 5, length 9
            &[1; 16],
            &[0, 0, 0, 7, 0xcb, 0xf4, 0x39, 0x26],
            &[0, 0, 0, 0, 0, 0, 0, 5],
            &[0, 0, 0, 0, 0, 0, 0, 9],
            // index at 14, of 80 bytes, 2 ranges, version 1, kind 1
            &[0, 0, 0, 0, 0, 0, 0, 14],
            &[0, 0, 0, 80],
            &[0, 0, 0, 2],
            &[0, 1, 0, 1],
            &[0xc8, 0x49, 0xdf, 0xd7],
            b"STRNDLSG",
        ]
        .concat()
    }

    fn random_segment(rng: &mut StdRng) -> (Segment, Vec<Vec<u8>>) {
        let mut builder = SegmentBuilder::new();
        let mut contents = Vec::new();
        let mut partition = -1;
        for topic in 0..rng.random_range(1..5) {
            for _ in 0..rng.random_range(1..8) {
                partition += rng.random_range(1..1000);
                let batches: Vec<Bytes> = (0..rng.random_range(1..6))
                    .map(|_| {
                        let bytes = if rng.random_bool(0.2) {
                            COALESCE_BELOW_BYTES + rng.random_range(0..2000)
                        } else {
                            rng.random_range(1..3000)
                        };
                        Bytes::from(vec![rng.random(); bytes])
                    })
                    .collect();
                contents.push(batches.concat());
                builder.push([topic; 16], partition, batches);
            }
        }
        (builder.finish(), contents)
    }

    #[test]
    fn golden_bytes_are_written() {
        let segment = golden();
        assert_eq!(segment.payload.concat(), golden_bytes());
        assert_eq!(segment.size, golden_bytes().len() as u64);
    }

    #[test]
    fn golden_bytes_are_read() {
        let bytes = golden_bytes();
        let expected = [
            SegmentRange { topic_id: [1; 16], partition: 0, position: 0, length: 5, crc32: 0x8587_d865 },
            SegmentRange { topic_id: [1; 16], partition: 7, position: 5, length: 9, crc32: 0xcbf4_3926 },
        ];
        assert_eq!(parse_index(&bytes, bytes.len() as u64).unwrap(), expected);
        assert_eq!(golden().ranges, expected);
    }

    #[test]
    fn what_is_written_is_read_back() {
        for seed in 0..100 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (segment, contents) = random_segment(&mut rng);
            let bytes = Bytes::from(segment.payload.concat());
            assert_eq!(bytes.len() as u64, segment.size, "seed {seed}");
            let ranges = parse_index(&bytes, segment.size).unwrap();
            assert_eq!(ranges, segment.ranges, "seed {seed}");
            for (range, content) in ranges.iter().zip(&contents) {
                let start = usize::try_from(range.position).unwrap();
                let found = bytes.slice(start..start + content.len());
                assert_eq!(found, content, "seed {seed}");
                verify_range(range, &[found.slice(..1), found.slice(1..)]).unwrap();
                let mut flipped = found.to_vec();
                flipped[rng.random_range(0..content.len())] ^= 1;
                assert!(verify_range(range, &[Bytes::from(flipped)]).is_err(), "seed {seed}");
            }
        }
    }

    #[test]
    fn small_batches_are_copied_together_and_large_ones_are_not() {
        let large = Bytes::from(vec![7; COALESCE_BELOW_BYTES]);
        let mut builder = SegmentBuilder::new();
        builder.push([0; 16], 0, (0..100).map(|_| Bytes::from_static(b"small")).collect());
        builder.push([0; 16], 1, vec![large.clone()]);
        builder.push([0; 16], 2, vec![Bytes::from_static(b"small")]);
        let segment = builder.finish();
        assert_eq!(segment.payload.len(), 3, "small ones, the large one, small ones with the index");
        assert_eq!(segment.payload[1].as_ptr(), large.as_ptr(), "the large batch was copied");
    }

    #[test]
    fn many_small_batches_fill_several_buffers() {
        let batch = Bytes::from(vec![9; COALESCE_BELOW_BYTES - 1]);
        let mut builder = SegmentBuilder::new();
        builder.push([0; 16], 0, vec![batch.clone(); 100]);
        let segment = builder.finish();
        assert!(segment.payload.len() > 2, "one buffer cannot hold all of it");
        assert_eq!(segment.payload.iter().map(Bytes::len).sum::<usize>() as u64, segment.size);
        let bytes = segment.payload.concat();
        assert!(bytes[..batch.len() * 100].iter().all(|byte| *byte == 9));
    }

    #[test]
    fn an_empty_object_has_an_empty_index() {
        let segment = SegmentBuilder::new().finish();
        assert_eq!(segment.size, SEGMENT_FOOTER_BYTES as u64);
        assert_eq!(parse_index(&segment.payload.concat(), segment.size).unwrap(), []);
    }

    #[test]
    #[should_panic(expected = "ascending order")]
    fn a_partition_cannot_come_twice() {
        let mut builder = SegmentBuilder::new();
        builder.push([1; 16], 0, vec![Bytes::from_static(b"a")]);
        builder.push([1; 16], 0, vec![Bytes::from_static(b"b")]);
    }

    #[test]
    #[should_panic(expected = "a range must have bytes")]
    fn a_partition_cannot_be_empty() {
        SegmentBuilder::new().push([1; 16], 0, vec![Bytes::new()]);
    }

    #[test]
    fn every_flipped_bit_of_index_and_footer_is_found() {
        let bytes = golden_bytes();
        for position in 14..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[position] ^= 1 << bit;
                assert!(parse_index(&damaged, damaged.len() as u64).is_err(), "byte {position}, bit {bit}");
            }
        }
    }

    #[test]
    fn every_truncation_is_found() {
        let bytes = golden_bytes();
        for length in 0..bytes.len() {
            assert!(parse_index(&bytes[..length], length as u64).is_err(), "{length} bytes");
            assert!(parse_index(&bytes[length + 1..], bytes.len() as u64).is_err() == (length + 1 > 14));
        }
        assert!(parse_index(&bytes, bytes.len() as u64 + 1).is_err(), "a size that is not the object's");
    }

    #[test]
    fn a_newer_version_is_called_newer() {
        let mut bytes = golden_bytes();
        let version_at = bytes.len() - 15;
        bytes[version_at] = 9;
        assert_eq!(parse_index(&bytes, bytes.len() as u64), Err(FormatError::Version(9)));
    }

    /// Entries that lie, under a CRC that is right: what a bug, not a broken disk, would write.
    #[test]
    fn an_index_that_does_not_tile_the_data_is_refused() {
        let good = golden().ranges;
        let [first, second] = [good[0], good[1]];
        let lies = [
            vec![second, first],
            vec![first, first],
            vec![first],
            vec![first, SegmentRange { position: 4, ..second }],
            vec![first, SegmentRange { position: 6, ..second }],
            vec![first, SegmentRange { length: 8, ..second }],
            vec![first, SegmentRange { length: u64::MAX, ..second }],
            vec![SegmentRange { length: 0, ..first }, SegmentRange { position: 0, length: 14, ..second }],
            vec![first, SegmentRange { partition: 0, ..second }],
        ];
        for (case, ranges) in lies.into_iter().enumerate() {
            let builder = SegmentBuilder {
                ranges,
                size: 14,
                payload: vec![Bytes::from(vec![0; 14])],
                ..Default::default()
            };
            let segment = builder.finish();
            let found = parse_index(&segment.payload.concat(), segment.size);
            assert!(matches!(found, Err(FormatError::Tiling(_))), "case {case}: {found:?}");
        }
    }

    async fn stored(bytes: Vec<u8>) -> (ObjectStoreBackend, ObjectKey) {
        let (store, key) = (ObjectStoreBackend::memory(), ObjectKey::parse("wal/a").unwrap());
        store.put(&key, vec![bytes.into()]).await.unwrap();
        (store, key)
    }

    #[tokio::test]
    async fn an_index_is_read_from_the_store_however_large_it_is() {
        for partitions in [0, 1, 1000, 1637, 1638, 10_000] {
            let mut builder = SegmentBuilder::new();
            for partition in 0..partitions {
                builder.push([3; 16], partition, vec![Bytes::from_static(b"some batch")]);
            }
            let segment = builder.finish();
            let (store, key) = stored(segment.payload.concat()).await;
            let ranges = read_index(&store, &key, segment.size).await.unwrap();
            assert_eq!(ranges, segment.ranges, "{partitions} partitions");
        }
    }

    #[tokio::test]
    async fn a_damaged_index_in_the_store_is_an_error_that_names_the_object() {
        let good = golden_bytes();
        let size = good.len() as u64;
        let mut flipped = good.clone();
        flipped[40] ^= 1;
        let mut lying_count = good.clone();
        lying_count[good.len() - 20] = 0x7f;
        let cut = good[..good.len() - 1].to_vec();
        for (bytes, told) in [
            (flipped, size),
            (lying_count, size),
            (cut.clone(), size),
            (cut, size - 1),
            (vec![], 0),
            (vec![1], 1),
        ] {
            let (store, key) = stored(bytes).await;
            let error = read_index(&store, &key, told).await.unwrap_err();
            assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
            assert_eq!(error.key(), Some("wal/a"));
        }
    }

    #[test]
    fn garbage_is_refused_without_a_panic() {
        for seed in 0..3000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut bytes = vec![0; rng.random_range(0..300)];
            rng.fill(&mut bytes[..]);
            if rng.random_bool(0.5) && bytes.len() >= SEGMENT_FOOTER_BYTES {
                let at = bytes.len() - 8;
                bytes[at..].copy_from_slice(&SEGMENT_MAGIC);
                bytes[at - 8..at - 4].copy_from_slice(&[0, 1, 0, 1]);
            }
            assert!(parse_index(&bytes, bytes.len() as u64).is_err(), "seed {seed}");
        }
    }
}
