//! What a record batch must be before it is buffered. Nothing of a partition is written unless all
//! of its batch is right.
//!
//! As in Kafka, the largest timestamp is that of the records, and a header that says another one is
//! put right. Records that are not compressed are walked by their lengths, so that a count that
//! lies is found as well. A compressed payload is opened only where the header may be wrong in a
//! way that matters (see [`trust`]), or where the topic wants another codec or keys.

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use strandline_storage::format::batch::{BatchError, BatchHeader, Compression, VerifiedBatch};
use uuid::Uuid;

use super::Entry;
use super::inspect::{RecordError, inspect};
use crate::limits::{OPENED_APART_BYTES, RECORD_ERRORS_PER_PARTITION};
use crate::records::{RecordsError, Target};
use crate::topic_config::TimestampType;

/// The first version of the produce request that may have batches of zstd (KIP-110).
const ZSTD_FROM_VERSION: i16 = 7;

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
    /// Whether one of these two limits is not Kafka's default: then somebody relies on it.
    pub(crate) limits_times: bool,
    /// Whether every record needs a key.
    pub(crate) compacted: bool,
    /// What batches are stored in, unless it is the producer's choice.
    pub(crate) compression: Option<Target>,
}

impl TopicRules {
    /// The earliest and the latest timestamp that a record may have, ms since 1970.
    pub(super) fn time_limits(&self, now_ms: i64) -> (i64, i64) {
        (now_ms.saturating_sub(self.before_max_ms), now_ms.saturating_add(self.after_max_ms))
    }
}

/// A batch that may be buffered, with what the response must say about it.
#[derive(Clone, Debug)]
pub(crate) struct Accepted {
    pub(crate) entry: Entry,
    /// −1 unless the broker set the time.
    pub(crate) log_append_time_ms: i64,
}

/// Why a batch is refused: the code, a sentence for the producer, and which of its records are to
/// blame, if it is not the batch itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invalid {
    pub(crate) code: ResponseError,
    pub(crate) message: String,
    pub(crate) records: Vec<RecordError>,
}

pub(crate) fn invalid(code: ResponseError, message: impl Into<String>) -> Invalid {
    Invalid { code, message: message.into(), records: Vec::new() }
}

/// Checks the records of one partition of a produce request of this version, and applies what the
/// topic's configs change about them. A compressed payload is opened on mere doubt only if
/// `opens_doubted`.
pub(crate) fn validate(
    topic_id: Uuid,
    partition: u32,
    version: i16,
    records: Option<&Bytes>,
    rules: &TopicRules,
    opens_doubted: bool,
    now_ms: i64,
) -> Result<Accepted, Invalid> {
    let (header, codec) = check_request(version, records)?;
    let records = records.cloned().unwrap_or_default();
    if records.len() > rules.max_message_bytes {
        let message =
            format!("the batch has {} bytes, the topic takes {}", records.len(), rules.max_message_bytes);
        return Err(invalid(ResponseError::MessageTooLarge, message));
    }
    let mut batch = VerifiedBatch::new(records).map_err(|e| describe(&e))?;
    check_header(&header, rules)?;
    let stamps = rules.timestamp_type == TimestampType::LogAppendTime;
    let mut max_timestamp_ms = header.max_timestamp;
    let inspects = match trust(&header, codec, rules, now_ms) {
        HeaderTrust::Believed => false,
        HeaderTrust::Doubted => opens_doubted,
        HeaderTrust::Overruled => true,
    };
    if inspects {
        max_timestamp_ms = inspect(&header, batch.bytes(), rules, now_ms)?;
    }
    if let Some(target) = rules.compression.filter(|target| target.codec != codec) {
        let most = rules.max_message_bytes;
        batch = crate::records::recompress(batch.bytes(), target, most).map_err(|error| match error {
            RecordsError::TooLarge(_) => {
                let why = format!("compressed as the topic wants it, the batch has more than {most} bytes");
                invalid(ResponseError::MessageTooLarge, why)
            }
            error => invalid(ResponseError::InvalidRecord, error.to_string()),
        })?;
    }
    if stamps {
        max_timestamp_ms = now_ms;
        batch = batch.with_log_append_time(now_ms);
    } else if max_timestamp_ms != header.max_timestamp || header.has_log_append_time() {
        batch = batch.with_max_timestamp(max_timestamp_ms);
    }
    // Records without a timestamp count as written now: retention must not take them for infinitely
    // old.
    if max_timestamp_ms < 0 {
        max_timestamp_ms = now_ms;
    }
    let offsets = u32::try_from(header.record_count).map_err(|_| describe_count())?;
    let producer = (header.producer_id >= 0).then_some((
        header.producer_id,
        header.producer_epoch,
        header.base_sequence,
    ));
    // Which transaction it is, is found out by who knows the state.
    let transaction = u64::from(header.is_transactional());
    let entry = Entry { topic_id, partition, batch, offsets, max_timestamp_ms, producer, transaction };
    Ok(Accepted { entry, log_append_time_ms: if stamps { now_ms } else { -1 } })
}

/// What Kafka checks of a request before it looks at the topic's configs.
fn check_request(version: i16, records: Option<&Bytes>) -> Result<(BatchHeader, Compression), Invalid> {
    let exactly_one = || {
        let message = "a produce request carries exactly one record batch per partition";
        invalid(ResponseError::InvalidRecord, message)
    };
    let records = records.filter(|r| !r.is_empty()).ok_or_else(exactly_one)?;
    let header = BatchHeader::parse(records).map_err(|e| describe(&e))?;
    let codec = header.compression().map_err(|e| describe(&e))?;
    if version < ZSTD_FROM_VERSION && codec == Compression::Zstd {
        let message = format!("zstd needs version {ZSTD_FROM_VERSION} of the produce request");
        return Err(invalid(ResponseError::UnsupportedCompressionType, message));
    }
    if records.len() > header.total_bytes() {
        return Err(exactly_one());
    }
    Ok((header, codec))
}

fn check_header(header: &BatchHeader, rules: &TopicRules) -> Result<(), Invalid> {
    if header.base_offset != 0 {
        let message = format!("the base offset of a batch is 0, not {}", header.base_offset);
        return Err(invalid(ResponseError::InvalidRecord, message));
    }
    if header.record_count < 1 || header.last_offset_delta != header.record_count - 1 {
        return Err(describe_count());
    }
    if header.is_control() {
        return Err(invalid(ResponseError::InvalidRecord, "producers do not write control batches"));
    }
    if header.has_log_append_time() && rules.timestamp_type == TimestampType::LogAppendTime {
        let message = "Producer should not set timestamp type to LogAppendTime.";
        let all = (0..header.record_count).take(RECORD_ERRORS_PER_PARTITION);
        let records = all.map(|index| RecordError { index, message: message.to_owned() }).collect();
        return Err(Invalid { records, ..invalid(ResponseError::InvalidTimestamp, message) });
    }
    let complete = header.producer_id >= 0 && header.producer_epoch >= 0 && header.base_sequence >= 0;
    let absent = header.producer_id == -1;
    if !complete && !absent {
        let message = "a producer id goes with an epoch and a sequence number";
        return Err(invalid(ResponseError::InvalidRecord, message));
    }
    if header.is_transactional() && absent {
        let message = "a batch of a transaction has a producer id";
        return Err(invalid(ResponseError::InvalidRecord, message));
    }
    Ok(())
}

/// What is made of what a batch's header says about the times of its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeaderTrust {
    /// The records are not looked at.
    Believed,
    /// They are, as long as that does not take too much time.
    Doubted,
    /// They are.
    Overruled,
}

/// Whether a header may be wrong about its records in a way that matters, or says nothing of what
/// the topic demands of them.
///
/// Walking records that are not compressed costs nothing that can be measured beside finding their
/// ends. Opening a compressed payload costs 1.5 to 5 CPU-s/GiB for LZ4 and Snappy, 7 to 27 for
/// Zstandard and gzip, where all else that a produce costs is 0.8. So a header is believed whose
/// largest timestamp is above the first one: whoever set that has looked at the records. One whose
/// largest timestamp is the first one may be a copy, or come from a producer that is so fast that
/// its batches begin and end in the same millisecond.
fn trust(header: &BatchHeader, codec: Compression, rules: &TopicRules, now_ms: i64) -> HeaderTrust {
    if codec == Compression::None || rules.compacted {
        return HeaderTrust::Overruled;
    }
    if rules.timestamp_type == TimestampType::LogAppendTime {
        return HeaderTrust::Believed;
    }
    let (earliest, latest) = rules.time_limits(now_ms);
    let within = |time| (earliest..=latest).contains(&time);
    if header.max_timestamp < header.base_timestamp
        || header.has_log_append_time()
        || rules.limits_times
        || !within(header.base_timestamp)
        || !within(header.max_timestamp)
    {
        HeaderTrust::Overruled
    } else if header.max_timestamp == header.base_timestamp {
        HeaderTrust::Doubted
    } else {
        HeaderTrust::Believed
    }
}

/// What a batch's header says of the work that it is, before anything is checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outlook {
    trust: HeaderTrust,
    is_compressed: bool,
    /// It is compressed anew, and so may become many times as much.
    pub(crate) grows: bool,
    is_little: bool,
}

impl Outlook {
    /// What is to be expected of these records; `None` if they have no header.
    pub(crate) fn of(records: Option<&Bytes>, rules: &TopicRules, now_ms: i64) -> Option<Self> {
        let records = records?;
        let header = BatchHeader::parse(records).ok()?;
        let codec = header.compression().ok()?;
        let is_compressed = codec != Compression::None;
        Some(Self {
            trust: trust(&header, codec, rules, now_ms),
            is_compressed,
            grows: rules.compression.is_some_and(|target| target.codec != codec),
            is_little: !is_compressed && records.len() < OPENED_APART_BYTES,
        })
    }

    /// Whether the records are read only because their header is doubted.
    pub(crate) fn is_doubted(self) -> bool {
        self.trust == HeaderTrust::Doubted
    }

    /// Whether validating them may take longer than a request may keep its thread.
    pub(crate) fn is_heavy(self, opens_doubted: bool) -> bool {
        let opens = match self.trust {
            HeaderTrust::Believed => false,
            HeaderTrust::Doubted => opens_doubted,
            HeaderTrust::Overruled => self.is_compressed,
        };
        !self.is_little && (self.grows || opens)
    }
}

fn describe_count() -> Invalid {
    invalid(ResponseError::InvalidRecord, "the number of records is not what the batch's header says")
}

fn describe(error: &BatchError) -> Invalid {
    let code = match error {
        // Formats that Kafka had; what it never had cannot be told from damage.
        BatchError::Magic(0 | 1) | BatchError::Counts { .. } | BatchError::TooShort { .. } => {
            ResponseError::InvalidRecord
        }
        BatchError::Codec(_) => ResponseError::UnsupportedCompressionType,
        BatchError::Magic(_)
        | BatchError::Length(_)
        | BatchError::Trailing { .. }
        | BatchError::Crc { .. } => ResponseError::CorruptMessage,
    };
    invalid(code, error.to_string())
}

#[cfg(test)]
mod tests;
