//! Record batches, made and read by the `kafka-protocol` crate; and values that say who wrote them.

use bytes::{Bytes, BytesMut};
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::records::{
    Compression, Record, RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};

use crate::history::Mark;

/// Bytes of a value before its filling.
const VALUE_HEAD: usize = 24;

/// A value that names its record, filled up with bytes that only this record has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value(Vec<u8>);

impl Value {
    /// The value of a record: the same bytes for the same arguments.
    pub fn of(mark: Mark, max_bytes: usize) -> Self {
        let seed = seed_of(mark);
        let length = seed as usize % max_bytes.saturating_sub(VALUE_HEAD).max(1);
        let mut bytes = Vec::with_capacity(VALUE_HEAD + length);
        bytes.extend(b"MARK");
        bytes.extend(mark.producer.to_be_bytes());
        bytes.extend(mark.partition.to_be_bytes());
        bytes.extend(mark.counter.to_be_bytes());
        bytes.extend((length as u32).to_be_bytes());
        bytes.extend(filling(seed, length));
        Self(bytes)
    }

    /// The record whose value this is, if it is one and every byte is as it was written.
    pub fn mark(bytes: &[u8]) -> Option<Mark> {
        let head = bytes.strip_prefix(b"MARK")?;
        let mark = Mark {
            producer: u32::from_be_bytes(head.get(..4)?.try_into().ok()?),
            partition: i32::from_be_bytes(head.get(4..8)?.try_into().ok()?),
            counter: u64::from_be_bytes(head.get(8..16)?.try_into().ok()?),
        };
        let length = u32::from_be_bytes(head.get(16..20)?.try_into().ok()?) as usize;
        let seed = seed_of(mark);
        let body = &bytes[VALUE_HEAD..];
        (body.len() == length && filling(seed, length).eq(body.iter().copied())).then_some(mark)
    }
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn seed_of(mark: Mark) -> u64 {
    let who = (u64::from(mark.producer) << 40) ^ (u64::from(mark.partition.cast_unsigned()) << 20);
    scramble(who ^ mark.counter)
}

fn filling(seed: u64, length: usize) -> impl Iterator<Item = u8> {
    (0..).flat_map(move |i| scramble(seed.wrapping_add(i)).to_be_bytes()).take(length)
}

/// The finaliser of SplitMix64.
fn scramble(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Who writes a batch: producer id, epoch, first sequence number.
pub type Producer = (i64, i16, i32);

/// One batch with these values.
pub fn batch<V: AsRef<[u8]>>(
    values: &[V],
    timestamp_ms: i64,
    producer: Option<Producer>,
    codec: Compression,
) -> Bytes {
    let (producer_id, producer_epoch, first) = producer.unwrap_or((-1, -1, -1));
    let records: Vec<Record> = values
        .iter()
        .zip(0..)
        .map(|(value, i)| Record {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: -1,
            producer_id,
            producer_epoch,
            timestamp_type: TimestampType::Creation,
            offset: i64::from(i),
            // The encoder makes one batch only of records whose sequence numbers count up.
            sequence: if producer.is_some() { first.wrapping_add(i) } else { i },
            timestamp: timestamp_ms,
            key: None,
            value: Some(Bytes::copy_from_slice(value.as_ref())),
            headers: IndexMap::default(),
        })
        .collect();
    let mut out = BytesMut::new();
    RecordBatchEncoder::encode(&mut out, &records, &RecordEncodeOptions { version: 2, compression: codec })
        .expect("records of a test encode");
    if producer.is_none() {
        // Without a producer the batch has no sequence numbers, whatever the encoder made of the
        // records.
        out[53..57].copy_from_slice(&(-1_i32).to_be_bytes());
        return seal(&out);
    }
    out.freeze()
}

/// The offsets and values of fetched records.
pub fn values(mut fetched: Bytes) -> Vec<(i64, Bytes)> {
    let sets = RecordBatchDecoder::decode_all(&mut fetched).expect("what a broker returns decodes");
    let records = sets.into_iter().flat_map(|set| set.records);
    records.map(|record| (record.offset, record.value.unwrap_or_default())).collect()
}

/// The batches in fetched bytes, whole: base offset and bytes of each. `None` if they are cut.
pub fn batches(mut fetched: Bytes) -> Option<Vec<(i64, Bytes)>> {
    let mut batches = Vec::new();
    while !fetched.is_empty() {
        let base_offset = i64::from_be_bytes(fetched.get(..8)?.try_into().ok()?);
        let length = i32::from_be_bytes(fetched.get(8..12)?.try_into().ok()?);
        let length = 12 + usize::try_from(length).ok()?;
        if length > fetched.len() {
            return None;
        }
        batches.push((base_offset, fetched.split_to(length)));
    }
    Some(batches)
}

/// Puts the right CRC into a batch that was changed.
pub fn seal(batch: &[u8]) -> Bytes {
    let mut sealed = batch.to_vec();
    let crc = crc32c(&sealed[21..]);
    sealed[17..21].copy_from_slice(&crc.to_be_bytes());
    sealed.into()
}

/// CRC-32C, bit by bit: slow, and independent of the product's.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}
