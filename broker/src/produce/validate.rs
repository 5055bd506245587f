//! What a record batch must be before it is buffered. Nothing of a partition is written unless all
//! of its batch is right.
//!
//! The payload is decompressed only where the topic wants another codec. Records that are not
//! compressed are walked by their lengths, so that a count that lies is found; for compressed ones
//! the batch's CRC-32C vouches for what the producer sent.

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use strandline_storage::format::batch::{
    BATCH_HEADER_BYTES, BatchError, BatchHeader, Compression, VerifiedBatch,
};
use uuid::Uuid;

use super::Entry;
use crate::topic_config::TimestampType;

/// What a topic's configs demand of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TopicRules {
    /// Largest batch, in bytes.
    pub(crate) max_message_bytes: usize,
    /// Who sets timestamps.
    pub(crate) timestamp_type: TimestampType,
    /// How far in the past a timestamp may lie, ms.
    pub(crate) before_max_ms: i64,
    /// How far in the future, ms.
    pub(crate) after_max_ms: i64,
    /// The codec that batches are stored in, unless it is the producer's choice.
    pub(crate) compression: Option<Compression>,
}

/// A batch that may be buffered, with what the response must say about it.
#[derive(Clone, Debug)]
pub(crate) struct Accepted {
    pub(crate) entry: Entry,
    /// −1 unless the broker set the time.
    pub(crate) log_append_time_ms: i64,
}

/// Why a batch is refused: the code, and a sentence for the producer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invalid {
    pub(crate) code: ResponseError,
    pub(crate) message: String,
}

fn invalid(code: ResponseError, message: impl Into<String>) -> Invalid {
    Invalid { code, message: message.into() }
}

/// Checks the records of one partition of a produce request, and applies what the topic's configs
/// change about them.
pub(crate) fn validate(
    topic_id: Uuid,
    partition: u32,
    records: Option<&Bytes>,
    rules: &TopicRules,
    now_ms: i64,
) -> Result<Accepted, Invalid> {
    let records = records.filter(|r| !r.is_empty());
    let records = records.ok_or_else(|| {
        invalid(
            ResponseError::InvalidRecord,
            "a produce request carries exactly one record batch per partition",
        )
    })?;
    let header = BatchHeader::parse(records).map_err(|e| describe(&e))?;
    if records.len() > header.total_bytes() {
        let message = "a produce request carries exactly one record batch per partition";
        return Err(invalid(ResponseError::InvalidRecord, message));
    }
    if header.magic != 2 {
        return Err(describe(&BatchError::Magic(header.magic)));
    }
    if records.len() > rules.max_message_bytes {
        let message =
            format!("the batch has {} bytes, the topic takes {}", records.len(), rules.max_message_bytes);
        return Err(invalid(ResponseError::MessageTooLarge, message));
    }
    let batch = VerifiedBatch::new(records.clone()).map_err(|e| describe(&e))?;
    check_header(&header)?;
    let codec = header.compression().map_err(|e| describe(&e))?;
    if codec == Compression::None {
        check_records(&records[BATCH_HEADER_BYTES..], header.record_count)?;
    }
    check_times(&header, rules, now_ms)?;
    let mut batch = match rules.compression {
        Some(wanted) if wanted != codec => crate::records::recompress(records, wanted)
            .map_err(|e| invalid(ResponseError::CorruptMessage, e.to_string()))?,
        _ => batch,
    };
    // Records without a timestamp count as written now: retention must not take them for infinitely
    // old.
    let mut max_timestamp_ms = if header.max_timestamp < 0 { now_ms } else { header.max_timestamp };
    let mut log_append_time_ms = -1;
    if rules.timestamp_type == TimestampType::LogAppendTime {
        batch = batch.with_log_append_time(now_ms);
        (max_timestamp_ms, log_append_time_ms) = (now_ms, now_ms);
    }
    let offsets = u32::try_from(header.record_count).map_err(|_| describe_count())?;
    let producer = (header.producer_id >= 0).then_some((
        header.producer_id,
        header.producer_epoch,
        header.base_sequence,
    ));
    let entry = Entry { topic_id, partition, batch, offsets, max_timestamp_ms, producer };
    Ok(Accepted { entry, log_append_time_ms })
}

fn check_header(header: &BatchHeader) -> Result<(), Invalid> {
    if header.record_count < 1 || header.last_offset_delta != header.record_count - 1 {
        return Err(describe_count());
    }
    if header.is_control() {
        return Err(invalid(ResponseError::InvalidRecord, "producers do not write control batches"));
    }
    if header.is_transactional() {
        let message = "transactions are not supported by this broker";
        return Err(invalid(ResponseError::InvalidTxnState, message));
    }
    let complete = header.producer_id >= 0 && header.producer_epoch >= 0 && header.base_sequence >= 0;
    let absent = header.producer_id == -1;
    if !complete && !absent {
        let message = "a producer id goes with an epoch and a sequence number";
        return Err(invalid(ResponseError::InvalidRecord, message));
    }
    Ok(())
}

fn check_times(header: &BatchHeader, rules: &TopicRules, now_ms: i64) -> Result<(), Invalid> {
    if rules.timestamp_type == TimestampType::LogAppendTime {
        return Ok(());
    }
    let earliest = now_ms.saturating_sub(rules.before_max_ms);
    let latest = now_ms.saturating_add(rules.after_max_ms);
    for time in [header.base_timestamp, header.max_timestamp] {
        // −1 stands for a record without a timestamp.
        if time >= 0 && (time < earliest || time > latest) {
            let message = format!("timestamp {time} is not between {earliest} and {latest}");
            return Err(invalid(ResponseError::InvalidTimestamp, message));
        }
    }
    Ok(())
}

/// Walks uncompressed records by their lengths: there must be exactly `count`, and nothing behind
/// them.
fn check_records(mut records: &[u8], count: i32) -> Result<(), Invalid> {
    let mut left = count;
    while !records.is_empty() {
        if left == 0 {
            return Err(describe_count());
        }
        let (length, rest) = zigzag(records)
            .ok_or_else(|| invalid(ResponseError::InvalidRecord, "a record's length is cut"))?;
        let body = usize::try_from(length).ok().filter(|&l| l > 0).and_then(|l| rest.get(l..));
        records =
            body.ok_or_else(|| invalid(ResponseError::InvalidRecord, "a record is longer than its batch"))?;
        left -= 1;
    }
    if left == 0 { Ok(()) } else { Err(describe_count()) }
}

/// A zigzag varint of up to 32 bits, and what follows it.
fn zigzag(bytes: &[u8]) -> Option<(i32, &[u8])> {
    let mut value: u32 = 0;
    for (i, &byte) in bytes.iter().enumerate().take(5) {
        value |= u32::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            let decoded = (value >> 1).cast_signed() ^ -(value & 1).cast_signed();
            return Some((decoded, &bytes[i + 1..]));
        }
    }
    None
}

fn describe_count() -> Invalid {
    invalid(ResponseError::InvalidRecord, "the number of records is not what the batch's header says")
}

fn describe(error: &BatchError) -> Invalid {
    let code = match error {
        BatchError::Magic(_) => ResponseError::UnsupportedForMessageFormat,
        BatchError::Codec(_) => ResponseError::UnsupportedCompressionType,
        _ => ResponseError::CorruptMessage,
    };
    invalid(code, error.to_string())
}
