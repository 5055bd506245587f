//! The write object: the batches of many partitions, an index of where each partition's bytes lie,
//! and a footer.
//!
//! ```text
//! ┌────────────────────────── data ─────────────────────────┬──────── index ────────┬────── footer ──────┐
//! │ batches of (topic a, 0) │ batches of (topic a, 3) │ …   │ 40 bytes per partition│ 52 bytes           │
//! └─────────────────────────────────────────────────────────┴───────────────────────┴────────────────────┘
//!
//! entry   topic id [16] │ partition i32 │ CRC-32C of the range u32 │ position u64 │ length u64
//! footer  incarnation i64 │ number u64 │ salt u32 │
//!         index position u64 │ index length u32 │ range count u32 │ version u16 │ kind u16 │ CRC-32 u32 │ magic [8]
//! ```
//!
//! All numbers are big-endian, as in the batches between them. Entries are in ascending order of
//! (topic id, partition), each occurs once, and their ranges tile the data without a gap. The
//! footer's CRC covers the index and the footer's own bytes before it. A reader that knows only the
//! object's size starts at its end.
//!
//! Version 1 has no identity in its footer, and the CRC-32 of a range instead of its CRC-32C, which
//! takes another pass over the bytes. It is written until the feature level of the cluster says
//! that every broker knows version 2.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::batch::VerifiedBatch;
use super::checksum::Crc32c;
use super::footer::{Footer, Layout, put_footer};
use super::pieces::Pieces;
use crate::error::StoreError;
use crate::limits::{INDEX_TAIL_BYTES, MAX_SEGMENT_RANGES, SEGMENT_FOOTER_BYTES, SEGMENT_INDEX_ENTRY_BYTES};
use crate::path::{ObjectId, ObjectKey, ObjectKind};
use crate::store::{Payload, Store};

pub use super::footer::{FormatError, LONGEST_FOOTER_BYTES, SEGMENT_MAGIC, check_identity};

/// Which layout an object has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SegmentVersion {
    /// CRC-32 of ranges, no identity.
    V1,
    /// CRC-32C of ranges, and the object's own id.
    V2,
}

impl SegmentVersion {
    /// The newest.
    pub const LATEST: Self = Self::V2;

    /// The version's number in the footer. Never reused.
    pub const fn id(self) -> u16 {
        match self {
            Self::V1 => 1,
            Self::V2 => 2,
        }
    }

    /// The version with this number, if this code knows it.
    pub const fn from_id(id: u16) -> Option<Self> {
        match id {
            1 => Some(Self::V1),
            2 => Some(Self::V2),
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
    /// CRC of the range: which one, [`Index::version`] says.
    pub crc: u32,
}

/// Bytes that go into an object, and their checksum.
#[derive(Clone, Debug)]
pub struct Part {
    /// The bytes.
    pub bytes: Bytes,
    /// What they sum up to.
    pub checksum: Crc32c,
}

impl Part {
    /// Sums the bytes up.
    pub fn of(bytes: Bytes) -> Self {
        Self { checksum: Crc32c::of(&bytes), bytes }
    }
}

impl From<&VerifiedBatch> for Part {
    fn from(batch: &VerifiedBatch) -> Self {
        Self { bytes: batch.bytes().clone(), checksum: batch.checksum() }
    }
}

/// A finished write object.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The object's bytes. What is stored and what is cached are the same buffers.
    pub payload: Payload,
    /// Bytes of the whole object.
    pub size: u64,
    /// Where each partition's bytes lie, in ascending order of (topic id, partition).
    pub ranges: Vec<SegmentRange>,
}

/// A write object has as many ranges as it may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a write object has at most {MAX_SEGMENT_RANGES} ranges")]
pub struct SegmentFull;

/// Collects batches into a write object.
///
/// Large batches stay in the buffers that they came in. Small ones are copied together, since a
/// request body of many small pieces costs more than the copy.
#[derive(Debug)]
pub struct SegmentBuilder {
    id: ObjectId,
    version: SegmentVersion,
    pieces: Pieces,
    ranges: Vec<SegmentRange>,
    checksum: Crc32c,
}

impl SegmentBuilder {
    /// An empty object.
    pub fn new(id: ObjectId, version: SegmentVersion) -> Self {
        Self { id, version, pieces: Pieces::default(), ranges: Vec::new(), checksum: Crc32c::EMPTY }
    }

    /// Adds all batches of one partition and returns where they begin. Fails if the object has
    /// [`MAX_SEGMENT_RANGES`] already; it is as it was then.
    ///
    /// # Panics
    ///
    /// If partitions do not come in ascending order of (topic id, partition), each once, or a
    /// partition has no bytes (`parse_index` checks the same).
    pub fn push(
        &mut self,
        topic_id: [u8; 16],
        partition: i32,
        parts: impl IntoIterator<Item = Part>,
    ) -> Result<u64, SegmentFull> {
        if self.ranges.len() >= MAX_SEGMENT_RANGES {
            return Err(SegmentFull);
        }
        if let Some(last) = self.ranges.last() {
            assert!(
                (last.topic_id, last.partition) < (topic_id, partition),
                "partitions must be pushed in ascending order, each once"
            );
        }
        let position = self.checksum.bytes();
        let mut checksum = Crc32c::EMPTY;
        let mut crc32 = crc32fast::Hasher::new();
        for part in parts {
            checksum = checksum.followed_by(part.checksum);
            if self.version == SegmentVersion::V1 {
                crc32.update(&part.bytes);
            }
            self.pieces.push(part.bytes);
        }
        let length = checksum.bytes();
        assert!(length > 0, "a range must have bytes");
        let crc = match self.version {
            SegmentVersion::V1 => crc32.finalize(),
            SegmentVersion::V2 => checksum.value(),
        };
        self.ranges.push(SegmentRange { topic_id, partition, position, length, crc });
        self.checksum = self.checksum.followed_by(checksum);
        Ok(position)
    }

    /// Adds index and footer.
    pub fn finish(mut self) -> Segment {
        let mut tail =
            BytesMut::with_capacity(self.ranges.len() * SEGMENT_INDEX_ENTRY_BYTES + LONGEST_FOOTER_BYTES);
        for range in &self.ranges {
            put_entry(&mut tail, range);
        }
        // `push` takes no more than there may be.
        let range_count = u32::try_from(self.ranges.len()).unwrap_or(u32::MAX);
        let layout = Layout::Write(self.version);
        put_footer(&mut tail, layout, self.id, self.checksum.bytes(), range_count);
        let tail = Part::of(tail.freeze());
        self.pieces.push(tail.bytes);
        let checksum = self.checksum.followed_by(tail.checksum);
        let payload = Payload::summed(self.pieces.finish(), checksum);
        Segment { payload, size: checksum.bytes(), ranges: self.ranges }
    }
}

fn put_entry(out: &mut BytesMut, range: &SegmentRange) {
    out.put_slice(&range.topic_id);
    out.put_i32(range.partition);
    out.put_u32(range.crc);
    out.put_u64(range.position);
    out.put_u64(range.length);
}

/// What is in a write object, and which object it says that it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Index {
    /// The layout that it has.
    pub version: SegmentVersion,
    /// The id that the footer gives; `None` in version 1.
    pub id: Option<ObjectId>,
    /// Where each partition's bytes lie, in ascending order of (topic id, partition).
    pub ranges: Vec<SegmentRange>,
}

impl Index {
    /// Reads the index of an object of `size` bytes from `tail`, which are the object's last bytes
    /// and hold at least the whole index and the footer.
    pub fn parse(tail: &[u8], size: u64) -> Result<Self, FormatError> {
        let footer = Footer::parse(tail, size)?;
        let Layout::Write(version) = footer.layout else {
            return Err(FormatError::OtherKind(footer.layout.kind()));
        };
        let mut at = footer.index(tail, size)?;
        let mut ranges: Vec<SegmentRange> = Vec::with_capacity(at.len() / SEGMENT_INDEX_ENTRY_BYTES);
        let mut end = 0_u64;
        while at.len() >= SEGMENT_INDEX_ENTRY_BYTES {
            let mut topic_id = [0; 16];
            at.copy_to_slice(&mut topic_id);
            let (partition, crc) = (at.get_i32(), at.get_u32());
            let range =
                SegmentRange { topic_id, partition, crc, position: at.get_u64(), length: at.get_u64() };
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
        Ok(Self { version, id: footer.id, ranges })
    }

    /// Checks the bytes of one range, given in pieces, against the index.
    pub fn verify(&self, range: &SegmentRange, pieces: &[Bytes]) -> Result<(), FormatError> {
        let length: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        let actual = match self.version {
            SegmentVersion::V1 => {
                let mut crc = crc32fast::Hasher::new();
                for piece in pieces {
                    crc.update(piece);
                }
                crc.finalize()
            }
            SegmentVersion::V2 => {
                pieces.iter().fold(Crc32c::EMPTY, |sum, piece| sum.followed_by(Crc32c::of(piece))).value()
            }
        };
        if actual != range.crc || length != range.length {
            return Err(FormatError::RangeCrc { position: range.position, expected: range.crc, actual });
        }
        Ok(())
    }

    /// Refuses an object that says that it is another one than the one under `key`: nothing else
    /// tells two objects of the same layout apart.
    pub fn check_identity(&self, key: &ObjectKey) -> Result<(), FormatError> {
        match (self.id, key.as_object()) {
            (Some(own), Some(wanted)) if own != wanted => Err(FormatError::Identity(own)),
            (None, Some(wanted)) if wanted.kind != ObjectKind::Write => {
                Err(FormatError::OtherKind(ObjectKind::Write))
            }
            _ => Ok(()),
        }
    }
}

/// Reads the index of a stored write object of `size` bytes, with one request unless it has very
/// many partitions. An object that says that it is another one is corrupt.
pub async fn read_index(store: &dyn Store, key: &ObjectKey, size: u64) -> Result<Index, StoreError> {
    let corrupt = |error: FormatError| StoreError::corrupt(key, error.to_string());
    if size < SEGMENT_FOOTER_BYTES as u64 {
        return Err(corrupt(FormatError::Size { size }));
    }
    let mut tail = store.get(key, Some(size.saturating_sub(INDEX_TAIL_BYTES)..size)).await?;
    let footer = Footer::parse(&tail, size).map_err(corrupt)?;
    if footer.tail_bytes() > tail.len() as u64 {
        tail = store.get(key, Some(footer.index_position..size)).await?;
    }
    let index = Index::parse(&tail, size).map_err(corrupt)?;
    index.check_identity(key).map_err(corrupt)?;
    Ok(index)
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::super::batch::tests::batch_of;
    use super::*;
    use crate::limits::{COALESCE_BELOW_BYTES, SEGMENT_IDENTITY_BYTES};
    use crate::store::ObjectStoreBackend;

    const GOLDEN_ID: ObjectId = ObjectId::write(0x102, 0x304, 0x0506_0708);

    fn parts(batches: &[&'static [u8]]) -> Vec<Part> {
        batches.iter().map(|bytes| Part::of(Bytes::from_static(bytes))).collect()
    }

    fn builder(version: SegmentVersion) -> SegmentBuilder {
        SegmentBuilder::new(GOLDEN_ID, version)
    }

    fn golden(version: SegmentVersion) -> Segment {
        let mut builder = builder(version);
        assert_eq!(builder.push([1; 16], 0, parts(&[b"abc", b"de"])), Ok(0));
        assert_eq!(builder.push([1; 16], 7, parts(&[b"123456789"])), Ok(5));
        builder.finish()
    }

    /// The bytes of [`golden`]. If this test breaks, the format changed: objects already written
    /// become unreadable. All checksums were computed by other means than the code under test.
    fn golden_bytes(version: SegmentVersion) -> Vec<u8> {
        let (first_crc, second_crc, identity, foot) = match version {
            SegmentVersion::V1 => (
                // CRC-32 of "abcde" and of "123456789".
                [0x85, 0x87, 0xd8, 0x65],
                [0xcb, 0xf4, 0x39, 0x26],
                &[][..],
                // Version 1, kind 1, CRC-32.
                [0, 1, 0, 1, 0xc8, 0x49, 0xdf, 0xd7],
            ),
            SegmentVersion::V2 => (
                // CRC-32C of the same.
                [0xc4, 0x50, 0xd6, 0x97],
                [0xe3, 0x06, 0x92, 0x83],
                // Incarnation, number, salt.
                &[0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 3, 4, 5, 6, 7, 8][..],
                [0, 2, 0, 1, 0xfb, 0xdd, 0x0f, 0x3a],
            ),
        };
        [
            &b"abcde123456789"[..],
            // (topic 0101…, partition 0), position 0, length 5
            &[1; 16],
            &[0, 0, 0, 0],
            &first_crc,
            &[0, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 0, 0, 0, 0, 5],
            // (topic 0101…, partition 7), position 5, length 9
            &[1; 16],
            &[0, 0, 0, 7],
            &second_crc,
            &[0, 0, 0, 0, 0, 0, 0, 5],
            &[0, 0, 0, 0, 0, 0, 0, 9],
            identity,
            // index at 14, of 80 bytes, 2 ranges
            &[0, 0, 0, 0, 0, 0, 0, 14],
            &[0, 0, 0, 80],
            &[0, 0, 0, 2],
            &foot,
            b"STRNDLSG",
        ]
        .concat()
    }

    fn random_segment(rng: &mut StdRng, version: SegmentVersion) -> (Segment, Vec<Vec<u8>>) {
        let mut builder = builder(version);
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
                builder.push([topic; 16], partition, batches.into_iter().map(Part::of)).unwrap();
            }
        }
        (builder.finish(), contents)
    }

    const VERSIONS: [SegmentVersion; 2] = [SegmentVersion::V1, SegmentVersion::V2];

    #[test]
    fn golden_bytes_are_written() {
        for version in VERSIONS {
            let segment = golden(version);
            assert_eq!(segment.payload.concat(), golden_bytes(version), "{version:?}");
            assert_eq!(segment.size, golden_bytes(version).len() as u64);
            assert_eq!(segment.payload.checksum(), Crc32c::of(&golden_bytes(version)));
        }
        let whole = golden(SegmentVersion::V2).payload.checksum();
        assert_eq!(whole, Crc32c::known(0x9409_1d9b, 146));
    }

    #[test]
    fn golden_bytes_are_read() {
        let crcs = [(0x8587_d865, 0xcbf4_3926), (0xc450_d697, 0xe306_9283)];
        for (version, crcs) in VERSIONS.into_iter().zip(crcs) {
            let bytes = golden_bytes(version);
            let ranges = vec![
                SegmentRange { topic_id: [1; 16], partition: 0, position: 0, length: 5, crc: crcs.0 },
                SegmentRange { topic_id: [1; 16], partition: 7, position: 5, length: 9, crc: crcs.1 },
            ];
            assert_eq!(golden(version).ranges, ranges);
            let id = (version == SegmentVersion::V2).then_some(GOLDEN_ID);
            assert_eq!(Index::parse(&bytes, bytes.len() as u64), Ok(Index { version, id, ranges }));
        }
    }

    #[test]
    fn an_object_that_says_that_it_is_another_one_is_refused() {
        let bytes = golden_bytes(SegmentVersion::V2);
        let index = Index::parse(&bytes, bytes.len() as u64).unwrap();
        let other = ObjectId { number: GOLDEN_ID.number + 1, ..GOLDEN_ID };
        assert_eq!(index.check_identity(&GOLDEN_ID.key()), Ok(()));
        assert_eq!(index.check_identity(&other.key()), Err(FormatError::Identity(GOLDEN_ID)));
        let old = golden_bytes(SegmentVersion::V1);
        let size = old.len() as u64;
        assert_eq!(check_identity(&old, size, other), Ok(()));
        let old = Index::parse(&old, size).unwrap();
        assert_eq!(old.check_identity(&other.key()), Ok(()), "version 1 does not say what it is");
        // The footer alone says it as well, and what is no footer says nothing.
        let size = bytes.len() as u64;
        let tail = &bytes[bytes.len() - LONGEST_FOOTER_BYTES..];
        for known in [tail, &bytes[..]] {
            assert_eq!(check_identity(known, size, GOLDEN_ID), Ok(()));
            assert_eq!(check_identity(known, size, other), Err(FormatError::Identity(GOLDEN_ID)));
        }
        assert_eq!(check_identity(&tail[1..], size, GOLDEN_ID), Err(FormatError::Size { size }));
        assert_eq!(check_identity(&bytes[1..], size, GOLDEN_ID), Ok(()));
        for position in 0..SEGMENT_IDENTITY_BYTES {
            let mut damaged = tail.to_vec();
            damaged[position] ^= 1;
            assert!(check_identity(&damaged, size, GOLDEN_ID).is_err(), "byte {position}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for (seed, version) in (0..100).zip(VERSIONS.into_iter().cycle()) {
            let mut rng = StdRng::seed_from_u64(seed);
            let (segment, contents) = random_segment(&mut rng, version);
            let bytes = Bytes::from(segment.payload.concat());
            assert_eq!(bytes.len() as u64, segment.size, "seed {seed}");
            assert_eq!(segment.payload.checksum(), Crc32c::of(&bytes), "seed {seed}");
            let index = Index::parse(&bytes, segment.size).unwrap();
            assert_eq!(index.ranges, segment.ranges, "seed {seed}");
            for (range, content) in index.ranges.iter().zip(&contents) {
                let start = usize::try_from(range.position).unwrap();
                let found = bytes.slice(start..start + content.len());
                assert_eq!(found, content, "seed {seed}");
                index.verify(range, &[found.slice(..1), found.slice(1..)]).unwrap();
                let mut flipped = found.to_vec();
                flipped[rng.random_range(0..content.len())] ^= 1;
                assert!(index.verify(range, &[Bytes::from(flipped)]).is_err(), "seed {seed}");
            }
        }
    }

    #[test]
    fn checksums_of_batches_make_that_of_the_object() {
        for (seed, payload) in [(1, 10), (2, 5_000), (3, 200_000)] {
            let batches = [batch_of(seed, payload), batch_of(seed + 10, payload * 2)];
            let mut builder = builder(SegmentVersion::V2);
            for (partition, batch) in (0..).zip(&batches) {
                builder
                    .push([1; 16], partition, [Part::from(&VerifiedBatch::new(batch.clone()).unwrap())])
                    .unwrap();
            }
            let segment = builder.finish();
            assert_eq!(segment.payload.checksum(), Crc32c::of(&segment.payload.concat()));
            for (range, batch) in segment.ranges.iter().zip(&batches) {
                assert_eq!(range.crc, Crc32c::of(batch).value());
            }
        }
    }

    #[test]
    fn small_batches_are_copied_together_and_large_ones_are_not() {
        let large = Bytes::from(vec![7; COALESCE_BELOW_BYTES]);
        let mut builder = builder(SegmentVersion::LATEST);
        builder.push([0; 16], 0, parts(&[&b"small"[..]; 100])).unwrap();
        builder.push([0; 16], 1, [Part::of(large.clone())]).unwrap();
        builder.push([0; 16], 2, parts(&[b"small"])).unwrap();
        let segment = builder.finish();
        assert_eq!(segment.payload.pieces().len(), 3, "small ones, the large one, small ones with the index");
        assert_eq!(segment.payload.pieces()[1].as_ptr(), large.as_ptr(), "the large batch was copied");
    }

    #[test]
    fn many_small_batches_fill_several_buffers() {
        let batch = Bytes::from(vec![9; COALESCE_BELOW_BYTES - 1]);
        let mut builder = builder(SegmentVersion::LATEST);
        builder.push([0; 16], 0, vec![Part::of(batch.clone()); 100]).unwrap();
        let segment = builder.finish();
        assert!(segment.payload.pieces().len() > 2, "one buffer cannot hold all of it");
        assert_eq!(segment.payload.pieces().iter().map(Bytes::len).sum::<usize>() as u64, segment.size);
        let bytes = segment.payload.concat();
        assert!(bytes[..batch.len() * 100].iter().all(|byte| *byte == 9));
    }

    #[test]
    fn an_empty_object_has_an_empty_index() {
        let segment = builder(SegmentVersion::LATEST).finish();
        assert_eq!(segment.size, LONGEST_FOOTER_BYTES as u64);
        assert_eq!(Index::parse(&segment.payload.concat(), segment.size).unwrap().ranges, []);
    }

    #[test]
    fn an_object_takes_no_more_ranges_than_may_be_read() {
        let mut builder = builder(SegmentVersion::LATEST);
        for partition in (0..).take(MAX_SEGMENT_RANGES) {
            builder.push([1; 16], partition, parts(&[b"a"])).unwrap();
        }
        assert_eq!(builder.push([2; 16], 0, parts(&[b"b"])), Err(SegmentFull));
        let whole = builder.finish();
        let bytes = whole.payload.pieces().concat();
        assert_eq!(Index::parse(&bytes, whole.size).unwrap().ranges.len(), MAX_SEGMENT_RANGES);
    }

    #[test]
    #[should_panic(expected = "ascending order")]
    fn a_partition_cannot_come_twice() {
        let mut builder = builder(SegmentVersion::LATEST);
        builder.push([1; 16], 0, parts(&[b"a"])).unwrap();
        builder.push([1; 16], 0, parts(&[b"b"])).unwrap();
    }

    #[test]
    #[should_panic(expected = "a range must have bytes")]
    fn a_partition_cannot_be_empty() {
        builder(SegmentVersion::LATEST).push([1; 16], 0, parts(&[b""])).unwrap();
    }

    #[test]
    fn every_flipped_bit_of_index_and_footer_is_found() {
        let bytes = golden_bytes(SegmentVersion::LATEST);
        for position in 14..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[position] ^= 1 << bit;
                assert!(Index::parse(&damaged, damaged.len() as u64).is_err(), "byte {position}, bit {bit}");
            }
        }
    }

    #[test]
    fn every_truncation_is_found() {
        let bytes = golden_bytes(SegmentVersion::LATEST);
        for length in 0..bytes.len() {
            assert!(Index::parse(&bytes[..length], length as u64).is_err(), "{length} bytes");
            assert!(Index::parse(&bytes[length + 1..], bytes.len() as u64).is_err() == (length + 1 > 14));
        }
        assert!(Index::parse(&bytes, bytes.len() as u64 + 1).is_err(), "a size that is not the object's");
    }

    #[test]
    fn a_newer_version_is_called_newer() {
        let mut bytes = golden_bytes(SegmentVersion::LATEST);
        let version_at = bytes.len() - 15;
        bytes[version_at] = 9;
        assert_eq!(
            Index::parse(&bytes, bytes.len() as u64),
            Err(FormatError::Version { kind: ObjectKind::Write, version: 9, latest: 2 })
        );
    }

    /// Entries that lie, under a CRC that is right: what a bug, not a broken disk, would write.
    #[test]
    fn an_index_that_does_not_tile_the_data_is_refused() {
        let good = golden(SegmentVersion::LATEST).ranges;
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
            let data = Part::of(Bytes::from(vec![0; 14]));
            let mut builder =
                SegmentBuilder { ranges, checksum: data.checksum, ..builder(SegmentVersion::LATEST) };
            builder.pieces.push(data.bytes);
            let segment = builder.finish();
            let found = Index::parse(&segment.payload.concat(), segment.size);
            assert!(matches!(found, Err(FormatError::Tiling(_))), "case {case}: {found:?}");
        }
    }

    async fn stored(bytes: Vec<u8>) -> (ObjectStoreBackend, ObjectKey) {
        let (store, key) = (ObjectStoreBackend::memory(), GOLDEN_ID.key());
        store.put(&key, vec![bytes.into()].into()).await.unwrap();
        (store, key)
    }

    #[tokio::test]
    async fn an_index_is_read_from_the_store_however_large_it_is() {
        for partitions in [0, 1, 1000, 1637, 1638, 1639, 10_000] {
            let mut builder = builder(SegmentVersion::LATEST);
            for partition in 0..partitions {
                builder.push([3; 16], partition, parts(&[b"some batch"])).unwrap();
            }
            let segment = builder.finish();
            let (store, key) = stored(segment.payload.concat()).await;
            let index = read_index(&store, &key, segment.size).await.unwrap();
            assert_eq!(index.ranges, segment.ranges, "{partitions} partitions");
        }
    }

    #[tokio::test]
    async fn a_damaged_index_in_the_store_is_an_error_that_names_the_object() {
        let good = golden_bytes(SegmentVersion::LATEST);
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
            assert_eq!(error.key(), Some(GOLDEN_ID.key().as_str()));
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
                let version = rng.random_range(1..3);
                bytes[at - 8..at - 4].copy_from_slice(&[0, version, 0, 1]);
            }
            assert!(Index::parse(&bytes, bytes.len() as u64).is_err(), "seed {seed}");
        }
    }
}
