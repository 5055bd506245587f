//! What the records of a batch say, where its header is not to be believed: their times, and
//! whether they have keys.
//!
//! Of each record only the beginning is read. A compressed payload goes by in pieces and is bounded
//! (invariant 9); nothing of it is kept.

use std::io::{BufRead, BufReader, Read};

use strandline_storage::format::batch::{BATCH_HEADER_BYTES, BatchHeader, Compression};

use super::validate::{Invalid, TopicRules, invalid};
use crate::limits::{MAX_PAYLOAD_BYTES, OPENED_PIECE_BYTES, RECORD_ERRORS_PER_PARTITION};
use crate::records::{self, RecordsError};
use crate::topic_config::TimestampType;
use kafka_protocol::error::ResponseError;

/// The most bytes before a record's key: length, attributes, timestamp, offset, length of the key.
const LONGEST_HEAD_BYTES: usize = 5 + 1 + 10 + 5 + 5;

/// Why one record of a batch is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordError {
    /// The record's place in the batch.
    pub(crate) index: i32,
    /// A sentence for the producer.
    pub(crate) message: String,
}

/// The beginning of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RecordHead {
    /// Timestamp relative to the batch's base timestamp, ms.
    timestamp_delta: i64,
    has_key: bool,
    /// Bytes of the record after its head.
    rest: usize,
}

/// Reads every record of an undamaged batch by what the topic demands. Gives the largest timestamp,
/// −1 if no record has one.
pub(super) fn inspect(
    header: &BatchHeader,
    batch: &[u8],
    rules: &TopicRules,
    now_ms: i64,
) -> Result<i64, Invalid> {
    let stored = batch.get(BATCH_HEADER_BYTES..).unwrap_or_default();
    let mut inspection = Inspection::new(header, rules, now_ms);
    let see = |index, head: &RecordHead| inspection.see(index, head);
    let walked = match header.compression().map_err(RecordsError::from) {
        Ok(Compression::None) => walk(stored, header.record_count, rules.compacted, see),
        Ok(codec) => stream(codec, stored, header.record_count, rules.compacted, see),
        Err(error) => Err(error),
    };
    walked.map_err(|error| {
        let code = match error {
            RecordsError::TooLarge(_) => ResponseError::MessageTooLarge,
            // The CRC-32C is right: sending it again would not help.
            RecordsError::Batch(_) | RecordsError::Codec(_) | RecordsError::Malformed => {
                ResponseError::InvalidRecord
            }
        };
        invalid(code, error.to_string())
    })?;
    inspection.end()
}

/// What was seen so far of a batch's records.
struct Inspection<'a> {
    header: &'a BatchHeader,
    rules: &'a TopicRules,
    earliest_ms: i64,
    latest_ms: i64,
    max_timestamp_ms: i64,
    errors: Vec<RecordError>,
    /// All of them, also those that are not kept.
    error_count: usize,
    has_wrong_times: bool,
}

impl<'a> Inspection<'a> {
    fn new(header: &'a BatchHeader, rules: &'a TopicRules, now_ms: i64) -> Self {
        let (earliest_ms, latest_ms) = rules.time_limits(now_ms);
        Self {
            header,
            rules,
            earliest_ms,
            latest_ms,
            max_timestamp_ms: -1,
            errors: Vec::new(),
            error_count: 0,
            has_wrong_times: false,
        }
    }

    fn see(&mut self, index: i32, head: &RecordHead) {
        let time = self.header.base_timestamp.saturating_add(head.timestamp_delta);
        self.max_timestamp_ms = self.max_timestamp_ms.max(time);
        if self.rules.compacted && !head.has_key {
            self.refuse(index, || "Compacted topic cannot accept message without key.".to_owned());
        } else if self.rules.timestamp_type == TimestampType::CreateTime
            // −1 stands for a record without a timestamp.
            && time != -1
            && (time < self.earliest_ms || time > self.latest_ms)
        {
            let (earliest, latest) = (self.earliest_ms, self.latest_ms);
            self.has_wrong_times = true;
            self.refuse(index, || {
                format!(
                    "Timestamp {time} of message with offset {index} is out of range. The timestamp should be within [{earliest}, {latest}]"
                )
            });
        }
    }

    fn refuse(&mut self, index: i32, message: impl FnOnce() -> String) {
        self.error_count += 1;
        if self.errors.len() < RECORD_ERRORS_PER_PARTITION {
            self.errors.push(RecordError { index, message: message() });
        }
    }

    fn end(self) -> Result<i64, Invalid> {
        let Some(first) = self.errors.first() else { return Ok(self.max_timestamp_ms) };
        let (code, message) = if self.has_wrong_times {
            let message = "One or more records have been rejected due to invalid timestamp";
            (ResponseError::InvalidTimestamp, message.to_owned())
        } else {
            let (count, first) = (self.error_count, &first.message);
            let message = format!("{count} records have been rejected; the first one: {first}");
            (ResponseError::InvalidRecord, message)
        };
        Err(Invalid { records: self.errors, ..invalid(code, message) })
    }
}

/// Walks records by their lengths: there must be exactly `count`, and nothing behind them.
fn walk(
    mut records: &[u8],
    count: i32,
    with_keys: bool,
    mut see: impl FnMut(i32, &RecordHead),
) -> Result<(), RecordsError> {
    for index in 0..count {
        let (head, used) = head(records, with_keys).ok_or(RecordsError::Malformed)?;
        records = records.get(used + head.rest..).ok_or(RecordsError::Malformed)?;
        see(index, &head);
    }
    if records.is_empty() { Ok(()) } else { Err(RecordsError::Malformed) }
}

/// The same of a compressed payload; what is behind the last record's head is not opened.
fn stream(
    codec: Compression,
    stored: &[u8],
    count: i32,
    with_keys: bool,
    mut see: impl FnMut(i32, &RecordHead),
) -> Result<(), RecordsError> {
    let payload = records::open(codec, stored, MAX_PAYLOAD_BYTES)?;
    let mut records = BufReader::with_capacity(OPENED_PIECE_BYTES, payload.take(MAX_PAYLOAD_BYTES as u64));
    let mut behind = 0;
    for index in 0..count {
        let next = pass_over(&mut records, behind).and_then(|()| next_head(&mut records, with_keys));
        let head = match next {
            Err(RecordsError::Malformed) if records.get_ref().limit() == 0 => {
                return Err(RecordsError::TooLarge(MAX_PAYLOAD_BYTES));
            }
            read => read?,
        };
        behind = head.rest;
        see(index, &head);
    }
    Ok(())
}

fn pass_over(records: &mut impl BufRead, mut bytes: usize) -> Result<(), RecordsError> {
    while bytes > 0 {
        let step = records.fill_buf()?.len().min(bytes);
        if step == 0 {
            return Err(RecordsError::Malformed);
        }
        records.consume(step);
        bytes -= step;
    }
    Ok(())
}

fn next_head(records: &mut BufReader<impl Read>, with_keys: bool) -> Result<RecordHead, RecordsError> {
    let mut bytes = [0; LONGEST_HEAD_BYTES];
    if records.buffer().len() >= LONGEST_HEAD_BYTES {
        let (head, used) = head(records.buffer(), with_keys).ok_or(RecordsError::Malformed)?;
        records.consume(used);
        return Ok(head);
    }
    // It may lie across two pieces.
    for have in 1..=LONGEST_HEAD_BYTES {
        let [.., last] = &mut bytes[..have] else { break };
        let piece = records.fill_buf()?;
        *last = *piece.first().ok_or(RecordsError::Malformed)?;
        records.consume(1);
        if let Some((head, _)) = head(&bytes[..have], with_keys) {
            return Ok(head);
        }
    }
    Err(RecordsError::Malformed)
}

/// A record's head and how many bytes that has; `None` if it is cut, or makes no sense.
fn head(bytes: &[u8], with_keys: bool) -> Option<(RecordHead, usize)> {
    let (length, at) = varint(bytes)?;
    let length = usize::try_from(i32::try_from(length).ok()?).ok()?;
    // The attributes have no meaning yet.
    let body = at;
    let mut at = at + 1;
    let mut next = || {
        let (value, used) = varint(bytes.get(at..)?)?;
        at += used;
        Some(value)
    };
    let timestamp_delta = next()?;
    let has_key = if with_keys {
        let _offset_delta = next()?;
        next()? >= 0
    } else {
        true
    };
    let rest = length.checked_sub(at - body)?;
    Some((RecordHead { timestamp_delta, has_key, rest }, at))
}

/// A zigzag varint of up to 64 bits, and how many bytes it has.
fn varint(bytes: &[u8]) -> Option<(i64, usize)> {
    let mut value: u64 = 0;
    for (i, &byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some(((value >> 1).cast_signed() ^ -(value & 1).cast_signed(), i + 1));
        }
    }
    None
}
