//! Batches that lose records, or learn when their tombstones may go (KIP-534).
//!
//! What stays of a batch keeps its offsets, and the batch its first and its last one, so that
//! consumers go on behind it as before.

use bytes::{BufMut, Bytes, BytesMut};
use strandline_storage::format::batch::{BATCH_HEADER_BYTES, BatchHeader, DELETE_HORIZON, crc32c};

use super::marks::Marks;
use crate::limits::MAX_PAYLOAD_BYTES;
use crate::records::{RecordsError, Target, compress, decompress};

/// The fields of a header that change.
const BATCH_LENGTH: usize = 8;
const CRC: usize = 17;
const ATTRIBUTES: usize = 21;
const BASE_TIMESTAMP: usize = 27;
const MAX_TIMESTAMP: usize = 35;
const RECORD_COUNT: usize = 57;
/// What a batch without records has in place of times, and of a producer.
const NONE: i64 = -1;

/// A record of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    /// All of it, its length in front.
    whole: &'a [u8],
    attributes: u8,
    timestamp_delta: i64,
    pub(super) offset_delta: i32,
    pub(super) key: Option<&'a [u8]>,
    /// Whether it deletes its key: it has no value.
    pub(super) is_tombstone: bool,
    /// What follows its timestamp.
    rest: &'a [u8],
}

/// What log compaction makes of a batch if it keeps the records at these offsets from its first
/// one, and gives their tombstones until `horizon_ms`; `None` if no record is kept. For whoever
/// tries it with foreign bytes.
///
/// # Errors
///
/// If it is no undamaged batch.
pub fn rewritten(
    batch: &Bytes,
    horizon_ms: Option<i64>,
    is_kept: impl Fn(i32) -> bool,
) -> Result<Option<Bytes>, String> {
    let header = BatchHeader::parse(batch).map_err(|error| error.to_string())?;
    let rewritten = rewrite(&header, batch, horizon_ms, |record| is_kept(record.offset_delta));
    Ok(match rewritten.map_err(|error| error.to_string())? {
        Rewritten::Same => Some(batch.clone()),
        Rewritten::Gone => None,
        Rewritten::Anew(bytes) => Some(bytes),
    })
}

/// What becomes of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rewritten {
    /// It stays as it is.
    Same,
    /// No record of it stays.
    Gone,
    /// It is this one now, which has the same first and last offset.
    Anew(Bytes),
}

/// The records of an undamaged batch, decompressed.
pub(super) fn payload(header: &BatchHeader, batch: &[u8]) -> Result<Bytes, RecordsError> {
    let stored = batch.get(BATCH_HEADER_BYTES..).ok_or(RecordsError::Malformed)?;
    decompress(header.compression()?, stored, MAX_PAYLOAD_BYTES)
}

/// Calls `see` with each record of a payload, which must be exactly as many as the header says.
pub(super) fn walk<'a>(
    header: &BatchHeader,
    payload: &'a [u8],
    mut see: impl FnMut(Record<'a>),
) -> Result<(), RecordsError> {
    let mut rest = payload;
    for _ in 0..header.record_count {
        see(next(&mut rest)?);
    }
    if rest.is_empty() { Ok(()) } else { Err(RecordsError::Malformed) }
}

/// Takes the first record off.
fn next<'a>(rest: &mut &'a [u8]) -> Result<Record<'a>, RecordsError> {
    let from = *rest;
    let mut at = from;
    let length = usize::try_from(varint(&mut at)?).map_err(|_| RecordsError::Malformed)?;
    let (mut body, after) = at.split_at_checked(length).ok_or(RecordsError::Malformed)?;
    let whole = from.get(..from.len() - after.len()).ok_or(RecordsError::Malformed)?;
    *rest = after;
    let (&attributes, timed) = body.split_first().ok_or(RecordsError::Malformed)?;
    body = timed;
    let timestamp_delta = varint(&mut body)?;
    let rest = body;
    let offset_delta = i32::try_from(varint(&mut body)?).map_err(|_| RecordsError::Malformed)?;
    let key = field(&mut body)?;
    let is_tombstone = field(&mut body)?.is_none();
    Ok(Record { whole, attributes, timestamp_delta, offset_delta, key, is_tombstone, rest })
}

/// Bytes with their length in front; there may be none at all.
fn field<'a>(at: &mut &'a [u8]) -> Result<Option<&'a [u8]>, RecordsError> {
    let length = varint(at)?;
    if length < 0 {
        return Ok(None);
    }
    let length = usize::try_from(length).map_err(|_| RecordsError::Malformed)?;
    let (bytes, after) = at.split_at_checked(length).ok_or(RecordsError::Malformed)?;
    *at = after;
    Ok(Some(bytes))
}

/// A zigzag varint of up to 64 bits.
fn varint(at: &mut &[u8]) -> Result<i64, RecordsError> {
    let mut value: u64 = 0;
    for (place, &byte) in at.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            *at = at.get(place + 1..).ok_or(RecordsError::Malformed)?;
            return Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
        }
    }
    Err(RecordsError::Malformed)
}

/// Bytes of a varint.
fn varint_bytes(value: i64) -> usize {
    let zigzag = ((value << 1) ^ (value >> 63)).cast_unsigned();
    (64 - zigzag.leading_zeros()).div_ceil(7).max(1) as usize
}

fn put_varint(out: &mut Vec<u8>, value: i64) {
    let mut left = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while left >= 0x80 {
        out.push(u8::try_from(left & 0x7f).unwrap_or_default() | 0x80);
        left >>= 7;
    }
    out.push(u8::try_from(left).unwrap_or_default());
}

/// Which records of a batch are kept. There may be millions of a few bytes each, so it holds a bit
/// for each of them, and nothing else.
#[derive(Debug, Default)]
struct Selection {
    kept: Marks,
    count: i32,
    /// Bytes of the records that are kept, as they are.
    bytes: usize,
    has_tombstones: bool,
}

impl Selection {
    /// Asks once about every record, in order.
    fn of(
        header: &BatchHeader,
        payload: &[u8],
        mut is_kept: impl FnMut(&Record<'_>) -> bool,
    ) -> Result<Self, RecordsError> {
        let (mut selection, mut place) = (Self::default(), 0);
        walk(header, payload, |record| {
            if is_kept(&record) {
                selection.kept.mark(place);
                selection.count += 1;
                selection.bytes += record.whole.len();
                selection.has_tombstones |= record.is_tombstone;
            }
            place += 1;
        })?;
        Ok(selection)
    }

    /// Calls `see` with every record that is kept.
    fn walk<'a>(
        &self,
        header: &BatchHeader,
        payload: &'a [u8],
        mut see: impl FnMut(Record<'a>),
    ) -> Result<(), RecordsError> {
        let mut place = 0;
        walk(header, payload, |record| {
            if self.kept.has(place) {
                see(record);
            }
            place += 1;
        })
    }

    /// Bytes of the records that are kept in a batch whose times are relative to `base_timestamp`.
    fn bytes_from(
        &self,
        header: &BatchHeader,
        payload: &[u8],
        base_timestamp: i64,
    ) -> Result<usize, RecordsError> {
        if base_timestamp == header.base_timestamp {
            return Ok(self.bytes);
        }
        let mut bytes = 0;
        self.walk(header, payload, |record| {
            let body = record.body_bytes(record.delta_from(header, base_timestamp));
            bytes += varint_bytes(i64::try_from(body).unwrap_or(i64::MAX)) + body;
        })?;
        Ok(bytes)
    }
}

impl Record<'_> {
    fn timestamp(&self, header: &BatchHeader) -> i64 {
        header.base_timestamp.saturating_add(self.timestamp_delta)
    }

    /// Its time relative to `base_timestamp`, instead of its batch's.
    fn delta_from(&self, header: &BatchHeader, base_timestamp: i64) -> i64 {
        self.timestamp(header).saturating_sub(base_timestamp)
    }

    /// Bytes behind its length, if its time is written so.
    fn body_bytes(&self, timestamp_delta: i64) -> usize {
        1 + varint_bytes(timestamp_delta) + self.rest.len()
    }

    /// Adds it with another time relative to its batch.
    fn put(&self, out: &mut Vec<u8>, timestamp_delta: i64) {
        let body = self.body_bytes(timestamp_delta);
        put_varint(out, i64::try_from(body).unwrap_or(i64::MAX));
        out.push(self.attributes);
        put_varint(out, timestamp_delta);
        out.extend_from_slice(self.rest);
    }
}

/// A batch without the records that are not to be kept. If tombstones are among those that are,
/// and the batch does not say yet when they may go, it says `horizon_ms` from now on; unless its
/// records, whose times are relative to that, would be more than can be opened again.
///
/// Beside the payload it needs at most as much again, however many records there are.
pub(super) fn rewrite(
    header: &BatchHeader,
    batch: &[u8],
    horizon_ms: Option<i64>,
    is_kept: impl FnMut(&Record<'_>) -> bool,
) -> Result<Rewritten, RecordsError> {
    rewrite_within(MAX_PAYLOAD_BYTES, header, batch, horizon_ms, is_kept)
}

/// Rewrites a batch where records of at most `most_bytes` can be opened again.
fn rewrite_within(
    most_bytes: usize,
    header: &BatchHeader,
    batch: &[u8],
    horizon_ms: Option<i64>,
    is_kept: impl FnMut(&Record<'_>) -> bool,
) -> Result<Rewritten, RecordsError> {
    let payload = payload(header, batch)?;
    let selection = Selection::of(header, &payload, is_kept)?;
    if selection.count == 0 {
        return Ok(Rewritten::Gone);
    }
    let (mut base_timestamp, mut bytes) = (header.base_timestamp, selection.bytes);
    let mut horizon_ms = horizon_ms.filter(|_| selection.has_tombstones);
    if let Some(horizon) = horizon_ms {
        let later = selection.bytes_from(header, &payload, horizon)?;
        if later <= most_bytes {
            (base_timestamp, bytes) = (horizon, later);
        } else {
            horizon_ms = None;
        }
    }
    if selection.count == header.record_count && horizon_ms.is_none() {
        return Ok(Rewritten::Same);
    }
    let mut max_timestamp = NONE;
    let mut records = Vec::with_capacity(bytes);
    selection.walk(header, &payload, |record| {
        max_timestamp = max_timestamp.max(record.timestamp(header));
        if base_timestamp == header.base_timestamp {
            records.extend_from_slice(record.whole);
        } else {
            record.put(&mut records, record.delta_from(header, base_timestamp));
        }
    })?;
    debug_assert_eq!(records.len(), bytes, "what was counted is what was written");
    if header.has_log_append_time() {
        max_timestamp = header.max_timestamp;
    }
    let attributes = header.attributes | horizon_ms.map_or(0, |_| DELETE_HORIZON);
    let mut out = BytesMut::with_capacity(BATCH_HEADER_BYTES + records.len() / 2);
    out.put_slice(batch.get(..BATCH_HEADER_BYTES).ok_or(RecordsError::Malformed)?);
    out = compress(Target { codec: header.compression()?, level: None }, &records, out)?;
    put(&mut out, ATTRIBUTES, &attributes.to_be_bytes());
    put(&mut out, BASE_TIMESTAMP, &base_timestamp.to_be_bytes());
    put(&mut out, MAX_TIMESTAMP, &max_timestamp.to_be_bytes());
    put(&mut out, RECORD_COUNT, &selection.count.to_be_bytes());
    Ok(Rewritten::Anew(sealed(out)?))
}

/// Batches without records that take the offsets from `from` up to `to`: what consumers go on
/// behind where the last records of a range are gone.
pub(super) fn nothing(from: i64, to: i64) -> Vec<(i64, Bytes)> {
    let mut batches = Vec::new();
    let mut base_offset = from;
    while base_offset < to {
        let offsets = (to - base_offset).min(i64::from(i32::MAX));
        let mut out = BytesMut::with_capacity(BATCH_HEADER_BYTES);
        out.put_i64(base_offset);
        out.put_i32(0);
        out.put_i32(0);
        out.put_i8(2);
        out.put_u32(0);
        out.put_i16(0);
        out.put_i32(i32::try_from(offsets - 1).unwrap_or(i32::MAX));
        out.put_i64(NONE);
        out.put_i64(NONE);
        out.put_i64(NONE);
        out.put_i16(-1);
        out.put_i32(-1);
        out.put_i32(0);
        // It is no longer than a batch may be.
        batches.extend(sealed(out).map(|batch| (base_offset, batch)));
        base_offset += offsets;
    }
    batches
}

/// A batch whose length and CRC are those of its bytes.
fn sealed(mut batch: BytesMut) -> Result<Bytes, RecordsError> {
    let length = i32::try_from(batch.len() - 12).map_err(|_| RecordsError::TooLarge(MAX_PAYLOAD_BYTES))?;
    put(&mut batch, BATCH_LENGTH, &length.to_be_bytes());
    let crc = crc32c(batch.get(ATTRIBUTES..).unwrap_or_default());
    put(&mut batch, CRC, &crc.to_be_bytes());
    Ok(batch.freeze())
}

fn put(batch: &mut BytesMut, at: usize, bytes: &[u8]) {
    if let Some(field) = batch.get_mut(at..at + bytes.len()) {
        field.copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::indexmap::IndexMap;
    use kafka_protocol::records::{
        Compression as Codec, Record as Decoded, RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions,
        TimestampType,
    };
    use strandline_storage::format::batch::verify;

    use super::*;

    const CODECS: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

    fn record(i: i32, value: Option<&'static str>) -> Decoded {
        Decoded {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: 0,
            producer_id: 7,
            producer_epoch: 1,
            timestamp_type: TimestampType::Creation,
            offset: i64::from(i),
            sequence: 40 + i,
            timestamp: 1_000 + i64::from(i) * 300,
            key: Some(Bytes::from(format!("key {i}"))),
            value: value.map(Bytes::from),
            headers: IndexMap::from_iter([("h".into(), Some(Bytes::from("x")))]),
        }
    }

    fn batch_of(codec: Codec, records: &[Decoded]) -> Bytes {
        let mut out = BytesMut::new();
        let options = RecordEncodeOptions { version: 2, compression: codec };
        RecordBatchEncoder::encode(&mut out, records, &options).unwrap();
        out.freeze()
    }

    /// A record's offset, timestamp, key, value and number of headers.
    type Fields = (i64, i64, Option<Bytes>, Option<Bytes>, usize);

    fn decoded(batch: &Bytes) -> Vec<Fields> {
        let records = RecordBatchDecoder::decode(&mut batch.clone()).unwrap().records;
        records.into_iter().map(|r| (r.offset, r.timestamp, r.key, r.value, r.headers.len())).collect()
    }

    fn rewritten(batch: &Bytes, horizon_ms: Option<i64>, kept: &[i32]) -> Rewritten {
        let header = verify(batch).unwrap();
        rewrite(&header, batch, horizon_ms, |record| kept.contains(&record.offset_delta)).unwrap()
    }

    #[test]
    fn what_is_kept_keeps_everything_that_it_had() {
        for codec in CODECS {
            let records: Vec<Decoded> = (0..6).map(|i| record(i, Some("value"))).collect();
            let before = batch_of(codec, &records);
            assert_eq!(rewritten(&before, Some(9), &[0, 1, 2, 3, 4, 5]), Rewritten::Same);
            assert_eq!(rewritten(&before, Some(9), &[]), Rewritten::Gone);
            let Rewritten::Anew(after) = rewritten(&before, Some(9), &[1, 3]) else { panic!() };
            let all = decoded(&before);
            assert_eq!(decoded(&after), [all[1].clone(), all[3].clone()], "{codec:?}");
            let (was, is) = (verify(&before).unwrap(), verify(&after).unwrap());
            assert_eq!((is.base_offset, is.last_offset_delta), (0, 5));
            assert_eq!((is.producer_id, is.base_sequence, is.attributes), (7, 40, was.attributes));
            assert_eq!((is.record_count, is.base_timestamp, is.max_timestamp), (2, 1_000, 1_900));
        }
    }

    #[test]
    fn tombstones_get_a_horizon_once_and_keep_their_times() {
        for codec in CODECS {
            let before = batch_of(codec, &[record(0, Some("v")), record(1, None), record(2, Some("w"))]);
            let Rewritten::Anew(after) = rewritten(&before, Some(1 << 40), &[0, 1, 2]) else { panic!() };
            assert_eq!(decoded(&after), decoded(&before), "{codec:?}");
            let header = verify(&after).unwrap();
            assert_eq!(header.delete_horizon_ms(), Some(1 << 40));
            assert_eq!((header.max_timestamp, header.last_offset_delta), (1_600, 2));
            // Those that have one are left as they are.
            assert_eq!(rewritten(&after, None, &[0, 1, 2]), Rewritten::Same);
            let Rewritten::Anew(later) = rewritten(&after, None, &[1]) else { panic!() };
            assert_eq!(decoded(&later), [decoded(&before)[1].clone()]);
            assert_eq!(verify(&later).unwrap().delete_horizon_ms(), Some(1 << 40));
            // Without a tombstone there is nothing to say.
            let Rewritten::Anew(without) = rewritten(&before, Some(9), &[0, 2]) else { panic!() };
            assert_eq!(verify(&without).unwrap().delete_horizon_ms(), None);
        }
    }

    #[test]
    fn the_time_of_the_append_stays_that_of_all_records() {
        let batch = batch_of(Codec::None, &[record(0, Some("v")), record(1, None)]);
        let appended = strandline_storage::format::batch::VerifiedBatch::new(batch).unwrap();
        let appended = appended.with_log_append_time(55_555).bytes().clone();
        let Rewritten::Anew(after) = rewritten(&appended, Some(77), &[1]) else { panic!() };
        let header = verify(&after).unwrap();
        assert!(header.has_log_append_time());
        assert_eq!((header.max_timestamp, header.base_timestamp), (55_555, 77));
    }

    /// A batch of records without value or headers, of eight bytes or less each.
    fn tiny(count: i32) -> (BatchHeader, Bytes) {
        let mut payload = Vec::new();
        for delta in 0..count {
            let body = 6 + varint_bytes(i64::from(delta));
            put_varint(&mut payload, i64::try_from(body).unwrap());
            payload.extend_from_slice(&[0, 0]);
            put_varint(&mut payload, i64::from(delta));
            // A key of one byte, no value, no headers.
            payload.extend_from_slice(&[2, b'a' + u8::try_from(delta % 26).unwrap(), 1, 0]);
        }
        let out = batch_of(Codec::Zstd, &[record(0, None)]);
        let out = BytesMut::from(&out[..BATCH_HEADER_BYTES]);
        let target = Target { codec: strandline_storage::format::batch::Compression::Zstd, level: None };
        let mut out = compress(target, &payload, out).unwrap();
        put(&mut out, 23, &(count - 1).to_be_bytes());
        put(&mut out, RECORD_COUNT, &count.to_be_bytes());
        let whole = sealed(out).unwrap();
        (verify(&whole).unwrap(), whole)
    }

    #[test]
    fn very_many_tiny_records_take_a_bit_each() {
        let (header, whole) = tiny(400_000);
        let opened = payload(&header, &whole).unwrap();
        let selection = Selection::of(&header, &opened, |_| true).unwrap();
        assert_eq!((selection.count, selection.bytes), (400_000, opened.len()));
        assert!(selection.kept.bytes() <= 2 * 400_000 / 8 + 8, "{}", selection.kept.bytes());
        // What is left of them, with other times, is counted before it is written.
        let is_odd = |record: &Record<'_>| record.offset_delta % 2 == 1;
        let Rewritten::Anew(after) = rewrite(&header, &whole, Some(1 << 40), is_odd).unwrap() else {
            panic!()
        };
        let after_header = verify(&after).unwrap();
        let (mut next, opened) = (1, payload(&after_header, &after).unwrap());
        walk(&after_header, &opened, |record| {
            assert_eq!((record.offset_delta, record.timestamp(&after_header)), (next, header.base_timestamp));
            next += 2;
        })
        .unwrap();
        assert_eq!((after_header.record_count, next), (200_000, 400_001));
    }

    #[test]
    fn tombstones_get_no_horizon_if_the_batch_could_not_be_opened_afterwards() {
        // Times relative to a horizon that is far away take some bytes more a record.
        let (header, whole) = tiny(1_000);
        let most = payload(&header, &whole).unwrap().len() * 5 / 4;
        let horizon = Some(1 << 40);
        let not_first = |record: &Record<'_>| record.offset_delta > 0;
        let Rewritten::Anew(after) = rewrite_within(most, &header, &whole, horizon, not_first).unwrap()
        else {
            panic!()
        };
        let after_header = verify(&after).unwrap();
        assert_eq!((after_header.record_count, after_header.delete_horizon_ms()), (999, None));
        assert!(payload(&after_header, &after).unwrap().len() < most);
        assert_eq!(rewrite_within(most, &header, &whole, horizon, |_| true).unwrap(), Rewritten::Same);
        let Rewritten::Anew(after) = rewrite(&header, &whole, horizon, |_| true).unwrap() else { panic!() };
        let after_header = verify(&after).unwrap();
        assert_eq!(after_header.delete_horizon_ms(), horizon);
        assert!(payload(&after_header, &after).unwrap().len() > most);
    }

    #[test]
    fn empty_batches_fill_any_gap() {
        let most = i64::from(i32::MAX);
        for (from, to) in [(5, 6), (0, most), (9, 9 + 2 * most + 7)] {
            let mut next = from;
            for (base_offset, batch) in nothing(from, to) {
                let header = verify(&batch).unwrap();
                assert_eq!((base_offset, header.base_offset, header.record_count), (next, next, 0));
                next += i64::from(header.last_offset_delta) + 1;
            }
            assert_eq!(next, to);
        }
        assert!(nothing(5, 5).is_empty());
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic() {
        for codec in CODECS {
            let whole = batch_of(codec, &[record(0, Some("v")), record(1, None)]);
            let header = verify(&whole).unwrap();
            for at in BATCH_HEADER_BYTES..whole.len() {
                let mut damaged = whole.to_vec();
                damaged[at] ^= 0x55;
                let _ = rewrite(&header, &damaged, Some(1), |_| true);
                assert!(rewrite(&header, &whole[..at], Some(1), |_| true).is_err() || codec != Codec::None);
            }
            let other = BatchHeader { record_count: 3, ..header };
            assert!(rewrite(&other, &whole, None, |_| true).is_err());
        }
    }
}
