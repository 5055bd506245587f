//! Record batches, made and read by the `kafka-protocol` crate.

use bytes::{Bytes, BytesMut};
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::records::{
    Compression, Record, RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};

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
        // Without a producer the batch has no sequence numbers, whatever the encoder made of the records.
        out[53..57].copy_from_slice(&(-1_i32).to_be_bytes());
        let crc = crc32c(&out[21..]);
        out[17..21].copy_from_slice(&crc.to_be_bytes());
    }
    out.freeze()
}

/// The offsets and values of fetched records.
pub fn values(mut fetched: Bytes) -> Vec<(i64, Bytes)> {
    let sets = RecordBatchDecoder::decode_all(&mut fetched).expect("what a broker returns decodes");
    let records = sets.into_iter().flat_map(|set| set.records);
    records.map(|record| (record.offset, record.value.unwrap_or_default())).collect()
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
