//! The header of a Kafka record batch (magic 2), read by hand.
//!
//! ```text
//!  0 base offset i64 │ 8 batch length i32 │ 12 partition leader epoch i32 │ 16 magic i8 │ 17 CRC-32C u32 │
//! 21 attributes i16 │ 23 last offset delta i32 │ 27 base timestamp i64 │ 35 max timestamp i64 │
//! 43 producer id i64 │ 51 producer epoch i16 │ 53 base sequence i32 │ 57 record count i32 │ 61 records …
//! ```
//!
//! All numbers are big-endian. The batch length counts from the leader epoch on; the CRC covers
//! everything from the attributes on. So base offset and leader epoch can be replaced when a batch
//! is read, without touching the CRC: that is why an object never has to be rewritten to learn its
//! offsets.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::checksum::Crc32c;
use crate::limits::SUM_AGAIN_BELOW_BYTES;

/// Bytes of a batch header.
pub const BATCH_HEADER_BYTES: usize = 61;
/// The bytes before the batch length starts counting: base offset and the length itself.
pub const BATCH_LENGTH_OVERHEAD_BYTES: usize = 12;
/// The only format of record batches that is accepted.
pub const BATCH_MAGIC: i8 = 2;

/// Where the magic byte is, in every format that Kafka ever had.
const MAGIC_AT: usize = 16;
/// Where the CRC is.
const CRC_AT: usize = 17;
/// Where the bytes begin that the CRC covers.
pub(crate) const CRC_COVERS_FROM: usize = 21;
/// Where the maximum timestamp is.
const MAX_TIMESTAMP_AT: usize = 35;

/// Attribute bits 0 to 2.
const COMPRESSION_MASK: i16 = 0x07;
/// Attribute bit 3.
const LOG_APPEND_TIME: u8 = 0x08;
/// Attribute bit 4.
const TRANSACTIONAL: i16 = 0x10;
/// Attribute bit 5.
const CONTROL: i16 = 0x20;
/// Attribute bit 6: the base timestamp says when the tombstones of the batch may go (KIP-534). The
/// times of its records are relative to that all the same.
pub const DELETE_HORIZON: i16 = 0x40;

const _: () = assert!(CRC_COVERS_FROM == CRC_AT + 4 && MAX_TIMESTAMP_AT + 8 < BATCH_HEADER_BYTES);

/// What the records of a batch are compressed with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// Snappy, in the framing of xerial's library.
    Snappy,
    /// LZ4 frames.
    Lz4,
    /// Zstandard.
    Zstd,
}

/// Why bytes are not a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BatchError {
    /// Fewer bytes than a header, or than the header promises.
    #[error("{actual} bytes where {needed} are needed")]
    TooShort {
        /// Bytes that were needed.
        needed: usize,
        /// Bytes that were there.
        actual: usize,
    },
    /// The length field cannot be true.
    #[error("the batch length says {0}")]
    Length(i32),
    /// More bytes than the header promises.
    #[error("{actual} bytes where the batch ends after {needed}")]
    Trailing {
        /// Bytes of the batch.
        needed: usize,
        /// Bytes that were there.
        actual: usize,
    },
    /// Another format of records.
    #[error("magic {0}, which is not 2")]
    Magic(i8),
    /// The bytes are not those that the producer sent.
    #[error("the CRC is {actual:#010x}, the header says {expected:#010x}")]
    Crc {
        /// What the header says.
        expected: u32,
        /// What the bytes have.
        actual: u32,
    },
    /// A compression codec that Kafka does not have.
    #[error("compression codec {0} does not exist")]
    Codec(i16),
    /// A negative record count or last offset delta.
    #[error("{record_count} records with last offset delta {last_offset_delta}")]
    Counts {
        /// The record count of the header.
        record_count: i32,
        /// The last offset delta of the header.
        last_offset_delta: i32,
    },
}

/// The header of one batch, field by field as on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchHeader {
    /// Offset of the first record, as the sender set it.
    pub base_offset: i64,
    /// Bytes after this field; the whole batch has 12 more.
    pub batch_length: i32,
    /// Leader epoch, as the sender set it.
    pub partition_leader_epoch: i32,
    /// Always 2 in a parsed header.
    pub magic: i8,
    /// CRC-32C of the bytes from the attributes on.
    pub crc: u32,
    /// Flag bits, see the accessors.
    pub attributes: i16,
    /// Offset of the last record less the base offset.
    pub last_offset_delta: i32,
    /// Timestamp of the first record, in milliseconds.
    pub base_timestamp: i64,
    /// The largest timestamp of a record, in milliseconds.
    pub max_timestamp: i64,
    /// The producer's id, -1 if it has none.
    pub producer_id: i64,
    /// The producer's epoch, -1 if it has none.
    pub producer_epoch: i16,
    /// Sequence number of the first record, -1 if there is none.
    pub base_sequence: i32,
    /// Number of records.
    pub record_count: i32,
}

impl BatchHeader {
    /// Reads the header at the beginning of `bytes`, of which more than the header may be missing.
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        // The magic byte comes first: an older format is shorter, and should be called by its name.
        if let Some(&magic) = bytes.get(MAGIC_AT)
            && magic != BATCH_MAGIC.cast_unsigned()
        {
            return Err(BatchError::Magic(magic.cast_signed()));
        }
        let Some(mut at) = bytes.get(..BATCH_HEADER_BYTES) else {
            return Err(BatchError::TooShort { needed: BATCH_HEADER_BYTES, actual: bytes.len() });
        };
        let header = Self {
            base_offset: at.get_i64(),
            batch_length: at.get_i32(),
            partition_leader_epoch: at.get_i32(),
            magic: at.get_i8(),
            crc: at.get_u32(),
            attributes: at.get_i16(),
            last_offset_delta: at.get_i32(),
            base_timestamp: at.get_i64(),
            max_timestamp: at.get_i64(),
            producer_id: at.get_i64(),
            producer_epoch: at.get_i16(),
            base_sequence: at.get_i32(),
            record_count: at.get_i32(),
        };
        if header.total_bytes() < BATCH_HEADER_BYTES {
            return Err(BatchError::Length(header.batch_length));
        }
        if header.record_count < 0 || header.last_offset_delta < 0 {
            return Err(BatchError::Counts {
                record_count: header.record_count,
                last_offset_delta: header.last_offset_delta,
            });
        }
        Ok(header)
    }

    /// Bytes of the whole batch, header included. At least [`BATCH_HEADER_BYTES`] in a parsed
    /// header.
    pub fn total_bytes(&self) -> usize {
        // A negative length is none: 12 bytes are less than a header, which `parse` refuses.
        usize::try_from(self.batch_length)
            .map_or(0, |length| length.saturating_add(BATCH_LENGTH_OVERHEAD_BYTES))
    }

    /// What the records are compressed with.
    pub fn compression(&self) -> Result<Compression, BatchError> {
        match self.attributes & COMPRESSION_MASK {
            0 => Ok(Compression::None),
            1 => Ok(Compression::Gzip),
            2 => Ok(Compression::Snappy),
            3 => Ok(Compression::Lz4),
            4 => Ok(Compression::Zstd),
            codec => Err(BatchError::Codec(codec)),
        }
    }

    /// Whether the batch belongs to a transaction.
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether the batch is a marker, which no client may send.
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// When the tombstones of the batch may go, ms since 1970, if log compaction has said so.
    pub fn delete_horizon_ms(&self) -> Option<i64> {
        (self.attributes & DELETE_HORIZON != 0).then_some(self.base_timestamp)
    }

    /// Whether the timestamps are those of the append, not of the producer.
    pub fn has_log_append_time(&self) -> bool {
        self.attributes & i16::from(LOG_APPEND_TIME) != 0
    }
}

/// Checks that `batch` is exactly one undamaged batch, and returns its header.
pub fn verify(batch: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::parse(batch)?;
    let needed = header.total_bytes();
    if batch.len() < needed {
        return Err(BatchError::TooShort { needed, actual: batch.len() });
    }
    if batch.len() > needed {
        return Err(BatchError::Trailing { needed, actual: batch.len() });
    }
    let actual = crc32c(batch.get(CRC_COVERS_FROM..).unwrap_or_default());
    if actual != header.crc {
        return Err(BatchError::Crc { expected: header.crc, actual });
    }
    Ok(header)
}

/// One record batch of which [`verify`] has said that it is undamaged.
#[derive(Clone, Debug)]
pub struct VerifiedBatch {
    bytes: Bytes,
    crc: u32,
}

impl VerifiedBatch {
    /// Checks `batch` as [`verify`] does.
    pub fn new(batch: Bytes) -> Result<Self, BatchError> {
        let crc = verify(&batch)?.crc;
        Ok(Self { bytes: batch, crc })
    }

    /// Its bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The same in a buffer of its own, which keeps nothing else in memory.
    #[must_use]
    pub fn copied(&self) -> Self {
        Self { bytes: Bytes::copy_from_slice(&self.bytes), crc: self.crc }
    }

    /// How many bytes it has, header included. Never 0.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The checksum of all of it, made of the one that is known.
    pub fn checksum(&self) -> Crc32c {
        if self.bytes.len() < SUM_AGAIN_BELOW_BYTES {
            return Crc32c::of(&self.bytes);
        }
        let (head, covered) = self.bytes.split_at(CRC_COVERS_FROM);
        Crc32c::of(head).followed_by(Crc32c::known(self.crc, covered.len() as u64))
    }

    /// Gives it the time of its append: all its records now have the timestamp `now_ms`. As in
    /// Kafka, only the flag and the maximum timestamp change; the payload stays compressed.
    #[must_use]
    pub fn with_log_append_time(self, now_ms: i64) -> Self {
        self.with_times(LOG_APPEND_TIME, now_ms)
    }

    /// Makes its header say the largest timestamp of its records, and that the timestamps are those
    /// of the producer. As above, the payload stays as it is.
    #[must_use]
    pub fn with_max_timestamp(self, max_timestamp_ms: i64) -> Self {
        self.with_times(0, max_timestamp_ms)
    }

    fn with_times(self, log_append_time: u8, max_timestamp_ms: i64) -> Self {
        // Without a copy if nobody else holds the buffer.
        let mut batch = self.bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        if let Some(low_attributes) = batch.get_mut(CRC_COVERS_FROM + 1) {
            *low_attributes = (*low_attributes & !LOG_APPEND_TIME) | log_append_time;
        }
        overwrite(&mut batch, MAX_TIMESTAMP_AT, &max_timestamp_ms.to_be_bytes());
        let crc = crc32c(batch.get(CRC_COVERS_FROM..).unwrap_or_default());
        overwrite(&mut batch, CRC_AT, &crc.to_be_bytes());
        Self { bytes: batch.freeze(), crc }
    }
}

/// Walks over batches that follow each other. Checks lengths, not CRCs: see [`verify`].
///
/// The walk ends after the first error; a tail that is not a whole batch is an error.
pub fn split_batches(data: Bytes) -> SplitBatches {
    SplitBatches { rest: data }
}

/// The iterator of [`split_batches`].
#[derive(Clone, Debug)]
pub struct SplitBatches {
    rest: Bytes,
}

impl Iterator for SplitBatches {
    type Item = Result<(BatchHeader, Bytes), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let found = BatchHeader::parse(&self.rest).and_then(|header| {
            let needed = header.total_bytes();
            if self.rest.len() < needed {
                return Err(BatchError::TooShort { needed, actual: self.rest.len() });
            }
            Ok((header, self.rest.split_to(needed)))
        });
        if found.is_err() {
            self.rest.clear();
        }
        Some(found)
    }
}

/// The first 16 bytes of a batch with another base offset and leader epoch; the rest of the batch
/// follows as it is.
pub fn patched_prefix(header: &BatchHeader, base_offset: i64, leader_epoch: i32) -> [u8; MAGIC_AT] {
    let mut prefix = [0; MAGIC_AT];
    let mut at = &mut prefix[..];
    at.put_i64(base_offset);
    at.put_i32(header.batch_length);
    at.put_i32(leader_epoch);
    prefix
}

fn overwrite(batch: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = batch.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// Bytes of a control batch.
pub const CONTROL_BATCH_BYTES: usize = BATCH_HEADER_BYTES + 17;

/// The batch that tells consumers how a transaction ended (KIP-98): one control record, whose key
/// is its version and 1 for a commit or 0 for an abort, and whose value has a coordinator epoch,
/// which is always 0 here.
pub fn control_batch(
    base_offset: i64,
    (producer_id, epoch): (i64, i16),
    is_commit: bool,
    time_ms: i64,
) -> Bytes {
    let mut batch = BytesMut::with_capacity(CONTROL_BATCH_BYTES);
    batch.put_i64(base_offset);
    let length = CONTROL_BATCH_BYTES - BATCH_LENGTH_OVERHEAD_BYTES;
    batch.put_i32(i32::try_from(length).unwrap_or(i32::MAX));
    batch.put_i32(0);
    batch.put_i8(BATCH_MAGIC);
    batch.put_u32(0);
    batch.put_i16(TRANSACTIONAL | CONTROL);
    batch.put_i32(0);
    batch.put_i64(time_ms);
    batch.put_i64(time_ms);
    batch.put_i64(producer_id);
    batch.put_i16(epoch);
    batch.put_i32(-1);
    batch.put_i32(1);
    // Length, attributes, timestamp and offset deltas; a key of 4 bytes, a value of 6; no headers.
    // Varints are zigzag.
    batch.put_slice(&[32, 0, 0, 0, 8, 0, 0, 0, u8::from(is_commit), 12, 0, 0, 0, 0, 0, 0, 0]);
    let crc = crc32c(batch.get(CRC_COVERS_FROM..).unwrap_or_default());
    overwrite(&mut batch, CRC_AT, &crc.to_be_bytes());
    batch.freeze()
}

/// The CRC of record batches (Castagnoli).
pub fn crc32c(bytes: &[u8]) -> u32 {
    Crc32c::of(bytes).value()
}

#[cfg(test)]
pub(crate) mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// One record (no key, value "hello"). The CRC was computed by other means than the code under
    /// test.
    const GOLDEN: [u8; 73] = [
        0, 0, 0, 0, 0, 0, 0, 7, // base offset
        0, 0, 0, 61, // batch length
        0, 0, 0, 3, // leader epoch
        2, // magic
        0x1b, 0x9d, 0x24, 0x58, // CRC-32C
        0, 0x10, // attributes: transactional
        0, 0, 0, 0, // last offset delta
        0, 0, 1, 0x8b, 0xcf, 0xe5, 0x68, 0x00, // base timestamp
        0, 0, 1, 0x8b, 0xcf, 0xe5, 0x68, 0x00, // max timestamp
        0, 0, 0, 0, 0, 0, 0x03, 0xe9, // producer id
        0, 5, // producer epoch
        0, 0, 0, 9, // base sequence
        0, 0, 0, 1, // record count
        22, 0, 0, 0, 1, 10, b'h', b'e', b'l', b'l', b'o', 0, // the record
    ];

    /// A valid batch with `records` bytes of payload.
    pub(crate) fn batch_of(seed: u64, payload_bytes: usize) -> Bytes {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut batch = BytesMut::new();
        batch.put_i64(rng.random());
        batch.put_i32(i32::try_from(payload_bytes + BATCH_HEADER_BYTES - 12).unwrap());
        batch.put_i32(rng.random());
        batch.put_i8(2);
        batch.put_u32(0);
        batch.put_i16(0);
        batch.put_i32(0);
        batch.put_i64(1);
        batch.put_i64(2);
        batch.put_i64(-1);
        batch.put_i16(-1);
        batch.put_i32(-1);
        batch.put_i32(1);
        batch.resize(BATCH_HEADER_BYTES + payload_bytes, 0);
        rng.fill(&mut batch[BATCH_HEADER_BYTES..]);
        let crc = crc32c(&batch[CRC_COVERS_FROM..]);
        batch[CRC_AT..CRC_COVERS_FROM].copy_from_slice(&crc.to_be_bytes());
        batch.freeze()
    }

    #[test]
    fn crc_is_castagnoli() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn golden_bytes_mean_these_fields() {
        let header = verify(&GOLDEN).unwrap();
        let expected = BatchHeader {
            base_offset: 7,
            batch_length: 61,
            partition_leader_epoch: 3,
            magic: 2,
            crc: 0x1b9d_2458,
            attributes: 0x10,
            last_offset_delta: 0,
            base_timestamp: 1_700_000_000_000,
            max_timestamp: 1_700_000_000_000,
            producer_id: 1001,
            producer_epoch: 5,
            base_sequence: 9,
            record_count: 1,
        };
        assert_eq!(header, expected);
        assert_eq!(header.total_bytes(), GOLDEN.len());
        assert_eq!(header.compression(), Ok(Compression::None));
        assert!(header.is_transactional());
        assert!(!header.is_control());
        assert!(!header.has_log_append_time());
    }

    #[test]
    fn attribute_bits_are_read_as_kafka_defines_them() {
        let mut header = BatchHeader::parse(&GOLDEN).unwrap();
        let codecs =
            [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];
        for (bits, codec) in (0..).zip(codecs) {
            header.attributes = bits | 0x78;
            assert_eq!(header.compression(), Ok(codec));
        }
        for bits in 5..=7 {
            header.attributes = bits;
            assert_eq!(header.compression(), Err(BatchError::Codec(bits)));
        }
        header.attributes = 0x28;
        assert!(header.is_control() && header.has_log_append_time() && !header.is_transactional());
    }

    #[test]
    fn patching_the_prefix_keeps_the_crc() {
        let header = verify(&GOLDEN).unwrap();
        let mut patched = GOLDEN.to_vec();
        patched[..MAGIC_AT].copy_from_slice(&patched_prefix(&header, 1 << 40, 77));
        let read = verify(&patched).unwrap();
        assert_eq!(read, BatchHeader { base_offset: 1 << 40, partition_leader_epoch: 77, ..header });
    }

    #[test]
    fn append_time_changes_flag_timestamp_and_crc_and_nothing_else() {
        for shared in [false, true] {
            let batch = Bytes::copy_from_slice(&GOLDEN);
            let holder = shared.then(|| batch.clone());
            let before = verify(&batch).unwrap();
            let stamped = VerifiedBatch::new(batch).unwrap().with_log_append_time(42);
            assert_eq!(stamped.checksum(), Crc32c::of(stamped.bytes()));
            let stamped = stamped.bytes();
            let after = verify(stamped).unwrap();
            assert!(after.has_log_append_time());
            let expected = BatchHeader {
                attributes: before.attributes | 0x08,
                max_timestamp: 42,
                crc: after.crc,
                ..before
            };
            assert_eq!(after, expected);
            assert_eq!(stamped[BATCH_HEADER_BYTES..], GOLDEN[BATCH_HEADER_BYTES..]);
            assert!(holder.is_none_or(|held| held[..] == GOLDEN[..]), "somebody else's bytes were changed");
        }
    }

    #[test]
    fn every_flipped_bit_under_the_crc_is_found() {
        for position in MAGIC_AT..GOLDEN.len() {
            for bit in 0..8 {
                let mut bytes = GOLDEN;
                bytes[position] ^= 1 << bit;
                assert!(verify(&bytes).is_err(), "byte {position}, bit {bit}");
            }
        }
    }

    #[test]
    fn lengths_must_be_exact() {
        for length in 0..GOLDEN.len() {
            assert!(matches!(verify(&GOLDEN[..length]), Err(BatchError::TooShort { .. })), "{length}");
        }
        let longer = [&GOLDEN[..], &[0]].concat();
        assert_eq!(verify(&longer), Err(BatchError::Trailing { needed: 73, actual: 74 }));
        for length in [i32::MIN, -1, 0, 48] {
            let mut bytes = GOLDEN;
            bytes[8..12].copy_from_slice(&length.to_be_bytes());
            assert_eq!(verify(&bytes), Err(BatchError::Length(length)));
        }
        let mut bytes = GOLDEN;
        bytes[8..12].copy_from_slice(&i32::MAX.to_be_bytes());
        assert!(matches!(verify(&bytes), Err(BatchError::TooShort { .. })));
    }

    #[test]
    fn old_formats_are_called_by_name() {
        for magic in [0, 1, 3, -1] {
            let mut bytes = [0; 26];
            bytes[MAGIC_AT] = i8::cast_unsigned(magic);
            assert_eq!(BatchHeader::parse(&bytes), Err(BatchError::Magic(magic)));
        }
    }

    #[test]
    fn negative_counts_are_refused() {
        for field in [23, 57] {
            let mut bytes = GOLDEN;
            bytes[field] = 0x80;
            assert!(matches!(BatchHeader::parse(&bytes), Err(BatchError::Counts { .. })), "field at {field}");
        }
    }

    #[test]
    fn batches_are_split_where_they_end() {
        for seed in 0..50 {
            let mut rng = StdRng::seed_from_u64(seed);
            let batches: Vec<Bytes> =
                (0..rng.random_range(0..10)).map(|i| batch_of(seed + i, rng.random_range(0..300))).collect();
            let joined = Bytes::from(batches.concat());
            let split: Vec<_> = split_batches(joined.clone()).map(|found| found.unwrap().1).collect();
            assert_eq!(split, batches, "seed {seed}");
            if !joined.is_empty() {
                let cut = rng.random_range(0..joined.len());
                let whole_batches = batches.iter().scan(0, |end, b| {
                    *end += b.len();
                    Some(*end)
                });
                let at_a_boundary = cut == 0 || whole_batches.clone().any(|end| end == cut);
                let found: Result<Vec<_>, _> = split_batches(joined.slice(..cut)).collect();
                assert_eq!(found.is_ok(), at_a_boundary, "seed {seed}, cut at {cut}");
                let complete = whole_batches.filter(|end| *end <= cut).count();
                assert_eq!(split_batches(joined.slice(..cut)).flatten().count(), complete, "seed {seed}");
            }
        }
    }

    #[test]
    fn garbage_is_refused_without_a_panic() {
        for seed in 0..2000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut bytes = vec![0; rng.random_range(0..200)];
            rng.fill(&mut bytes[..]);
            if let Some(magic) = bytes.get_mut(MAGIC_AT) {
                *magic = 2;
            }
            assert!(verify(&bytes).is_err(), "seed {seed}");
            let items = split_batches(Bytes::from(bytes)).count();
            assert!(items <= 4, "seed {seed}: a walk over garbage must end");
        }
    }

    #[test]
    fn the_end_of_a_transaction_has_golden_bytes() {
        let hex = |bytes: &[u8]| {
            use std::fmt::Write as _;
            bytes.iter().fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            })
        };
        let commit = control_batch(0x0102, (0x0304, 5), true, 0x0607);
        let golden = "0000000000000102\
             00000042\
             00000000\
             02\
             CRC-----\
             0030\
             00000000\
             0000000000000607\
             0000000000000607\
             0000000000000304\
             0005\
             ffffffff\
             00000001\
             20000000080000000\
             10c00000000000000";
        let golden = golden.replace("CRC-----", &hex(&crc32c(&commit[CRC_COVERS_FROM..]).to_be_bytes()));
        assert_eq!(hex(&commit), golden);
        assert_eq!(commit.len(), CONTROL_BATCH_BYTES);
        let header = verify(&commit).unwrap();
        assert!(header.is_control() && header.is_transactional());
        let abort = control_batch(0x0102, (0x0304, 5), false, 0x0607);
        let differs = commit.iter().zip(&abort).skip(CRC_COVERS_FROM).filter(|(a, b)| a != b).count();
        assert_eq!(differs, 1);
    }
}
