//! The records of the commit log: what one key under `log/` holds. `LOG.md` specifies the bytes.
//!
//! A record is protobuf. Tags are never reused. A record of a newer format, or of a kind that this
//! build does not know, must stop the broker that meets it: to skip it would be to derive another
//! state than everybody else.

use prost::Message;
use uuid::Uuid;

/// The format that this build writes.
pub const RECORD_FORMAT: u32 = 1;

/// One record of the commit log.
#[derive(Clone, PartialEq, Message)]
pub struct Record {
    /// Format of the record; [`RECORD_FORMAT`].
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// Wall clock of the writer, ms since 1970. Never decides anything in `apply`; timestamps are
    /// relative to it.
    #[prost(sint64, tag = "2")]
    pub time_ms: i64,
    /// What happened.
    #[prost(oneof = "Body", tags = "10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25")]
    pub body: Option<Body>,
}

/// What a record says.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Body {
    /// Batches of many partitions, in one object.
    #[prost(message, tag = "10")]
    Flush(Flush),
    /// A topic exists from here on.
    #[prost(message, tag = "11")]
    TopicCreated(TopicCreated),
    /// A topic has more partitions from here on.
    #[prost(message, tag = "12")]
    PartitionsAdded(PartitionsAdded),
    /// A topic is gone from here on.
    #[prost(message, tag = "13")]
    TopicDeleted(TopicDeleted),
    /// A block of producer ids was handed out.
    #[prost(message, tag = "14")]
    ProducerIdBlock(ProducerIdBlock),
    /// The log starts of partitions move up (retention, DeleteRecords).
    #[prost(message, tag = "15")]
    Trim(Trim),
    /// Dead objects were deleted from the store.
    #[prost(message, tag = "16")]
    ObjectsDeleted(ObjectsDeleted),
    /// Every broker notes its digest here; a snapshot of this revision follows.
    #[prost(message, tag = "17")]
    Checkpoint(Checkpoint),
    /// An incarnation is gone for good: its head and what it left half done are forgotten.
    #[prost(message, tag = "18")]
    IncarnationRetired(IncarnationRetired),
    /// Idle producers are forgotten.
    #[prost(message, tag = "19")]
    ProducersExpired(ProducersExpired),
    /// What `apply` may do from here on.
    #[prost(message, tag = "20")]
    FeatureLevel(FeatureLevel),
    /// Ranges of many partitions were rewritten, into one object.
    #[prost(message, tag = "21")]
    Merged(Merged),
    /// A transactional id has this producer id and epoch from here on. What its producers before
    /// left open is aborted.
    #[prost(message, tag = "22")]
    ProducerInitialized(ProducerInitialized),
    /// A transaction is open from here on, or has more partitions.
    #[prost(message, tag = "23")]
    TransactionBegun(TransactionBegun),
    /// A transaction ends, in all of its partitions at once.
    #[prost(message, tag = "24")]
    TransactionEnded(TransactionEnded),
    /// Transactional ids that nobody uses are forgotten.
    #[prost(message, tag = "25")]
    TransactionalIdsExpired(TransactionalIdsExpired),
}

/// A write object and what lies in it.
#[derive(Clone, PartialEq, Message)]
pub struct Flush {
    /// Number of the object within the incarnation that writes this record.
    #[prost(uint64, tag = "1")]
    pub object_number: u64,
    /// The random part of the object's key.
    #[prost(fixed32, tag = "2")]
    pub object_salt: u32,
    /// Length of the object in bytes.
    #[prost(uint64, tag = "3")]
    pub object_bytes: u64,
    /// The batches, grouped by topic.
    #[prost(message, repeated, tag = "4")]
    pub topics: Vec<FlushTopic>,
    /// Whether the next record of this incarnation goes on with the same object: a flush that is
    /// too large for one record is split, and its object may not be given up in between.
    #[prost(bool, tag = "5")]
    pub continues: bool,
}

/// One topic's part of a flush.
#[derive(Clone, PartialEq, Message)]
pub struct FlushTopic {
    /// The topic id, 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub topic_id: Vec<u8>,
    /// Its partitions.
    #[prost(message, repeated, tag = "2")]
    pub partitions: Vec<FlushPartition>,
}

/// One partition's part of a flush: batches that lie together in the object.
#[derive(Clone, PartialEq, Message)]
pub struct FlushPartition {
    /// The partition.
    #[prost(uint32, tag = "1")]
    pub partition: u32,
    /// Where the first batch begins in the object.
    #[prost(uint64, tag = "2")]
    pub position: u64,
    /// The batches, one after the other.
    #[prost(message, repeated, tag = "3")]
    pub batches: Vec<FlushBatch>,
}

/// One record batch.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct FlushBatch {
    /// Number of offsets that it takes: last offset delta + 1.
    #[prost(uint32, tag = "1")]
    pub offsets: u32,
    /// Its length in bytes, header included.
    #[prost(uint32, tag = "2")]
    pub bytes: u32,
    /// Largest timestamp of its records, relative to the record's `time_ms`.
    #[prost(sint64, tag = "3")]
    pub max_timestamp_delta_ms: i64,
    /// Producer id + 1; 0 for a batch without one.
    #[prost(uint64, tag = "4")]
    pub producer: u64,
    /// Producer epoch.
    #[prost(uint32, tag = "5")]
    pub producer_epoch: u32,
    /// Sequence number of its first record.
    #[prost(uint32, tag = "6")]
    pub base_sequence: u32,
    /// Of which transaction it is: 0 of none; 1 of the one that its producer's epoch stands for,
    /// which it adds its partition to (version 2, KIP-890); else the transaction's number + 2.
    #[prost(uint64, tag = "7")]
    pub transaction: u64,
}

/// A topic was created.
#[derive(Clone, PartialEq, Message)]
pub struct TopicCreated {
    /// The topic id, 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub topic_id: Vec<u8>,
    /// How many partitions it has.
    #[prost(uint32, tag = "2")]
    pub partitions: u32,
}

/// A topic got more partitions.
#[derive(Clone, PartialEq, Message)]
pub struct PartitionsAdded {
    /// The topic id, 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub topic_id: Vec<u8>,
    /// How many it has now.
    #[prost(uint32, tag = "2")]
    pub partitions: u32,
}

/// A topic was deleted.
#[derive(Clone, PartialEq, Message)]
pub struct TopicDeleted {
    /// The topic id, 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub topic_id: Vec<u8>,
}

/// Producer ids from `first` to below `end` may be in use from here on.
#[derive(Clone, PartialEq, Message)]
pub struct ProducerIdBlock {
    /// First id of the block.
    #[prost(uint64, tag = "1")]
    pub first: u64,
    /// First id after the block.
    #[prost(uint64, tag = "2")]
    pub end: u64,
}

/// Log starts that move up.
#[derive(Clone, PartialEq, Message)]
pub struct Trim {
    /// One entry for each partition.
    #[prost(message, repeated, tag = "1")]
    pub partitions: Vec<TrimPartition>,
}

/// The new log start of one partition.
#[derive(Clone, PartialEq, Message)]
pub struct TrimPartition {
    /// The topic id, 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub topic_id: Vec<u8>,
    /// The partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// First offset that stays; at most the last stable offset counts.
    #[prost(uint64, tag = "3")]
    pub log_start: u64,
}

/// The identity of an object.
#[derive(Clone, PartialEq, Message)]
pub struct ObjectRef {
    /// Incarnation that wrote it.
    #[prost(int64, tag = "1")]
    pub incarnation: i64,
    /// Its number within the incarnation.
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// The random part of its key.
    #[prost(fixed32, tag = "3")]
    pub salt: u32,
    /// Of which kind it is: 0 a write object, 1 a merged one.
    #[prost(uint32, tag = "4")]
    pub kind: u32,
}

/// Objects that are no longer in the store.
#[derive(Clone, PartialEq, Message)]
pub struct ObjectsDeleted {
    /// Which.
    #[prost(message, repeated, tag = "1")]
    pub objects: Vec<ObjectRef>,
}

/// A point at which all brokers compare their states.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Checkpoint {}

/// An incarnation that can commit nothing any more.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct IncarnationRetired {
    /// Which.
    #[prost(int64, tag = "1")]
    pub incarnation: i64,
}

/// Producers that wrote nothing for the expiry time.
#[derive(Clone, PartialEq, Message)]
pub struct ProducersExpired {
    /// Which; each is forgotten only if it is still as described.
    #[prost(message, repeated, tag = "1")]
    pub producers: Vec<ExpiredProducer>,
    /// Ids below this belong to blocks that were handed out longer ago than the expiry time.
    #[prost(uint64, tag = "2")]
    pub ids_below: u64,
}

/// A producer in a partition, and what the proposer expects to find of it.
#[derive(Clone, PartialEq, Message)]
pub struct ExpiredProducer {
    /// The topic id, 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub topic_id: Vec<u8>,
    /// The partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// The producer id.
    #[prost(uint64, tag = "3")]
    pub producer_id: u64,
    /// Base offset of its newest batch.
    #[prost(uint64, tag = "4")]
    pub last_base_offset: u64,
}

/// The level of what `apply` does.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct FeatureLevel {
    /// The new level; never lower than before.
    #[prost(uint32, tag = "1")]
    pub level: u32,
    /// The version of transactions that clients may take for granted, + 1; 0 for no change.
    #[prost(uint32, tag = "2")]
    pub transaction_version: u32,
}

/// A merged object, and which ranges it stands for. Its incarnation is that of the record.
#[derive(Clone, PartialEq, Message)]
pub struct Merged {
    /// Number of the object within the incarnation that writes this record.
    #[prost(uint64, tag = "1")]
    pub object_number: u64,
    /// The random part of the object's key.
    #[prost(fixed32, tag = "2")]
    pub object_salt: u32,
    /// Length of the object in bytes.
    #[prost(uint64, tag = "3")]
    pub object_bytes: u64,
    /// The partitions, grouped by topic.
    #[prost(message, repeated, tag = "4")]
    pub topics: Vec<MergedTopic>,
}

/// One topic's part of a merge.
#[derive(Clone, PartialEq, Message)]
pub struct MergedTopic {
    /// The topic id, 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub topic_id: Vec<u8>,
    /// Its partitions.
    #[prost(message, repeated, tag = "2")]
    pub partitions: Vec<MergedPartition>,
}

/// One partition's part of a merge: the ranges that it replaces, and the one that takes their
/// place.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct MergedPartition {
    /// The partition.
    #[prost(uint32, tag = "1")]
    pub partition: u32,
    /// First offset of the first range that is replaced.
    #[prost(uint64, tag = "2")]
    pub base_offset: u64,
    /// How many offsets the ranges take, from the first to the end of the last.
    #[prost(uint64, tag = "3")]
    pub offsets: u64,
    /// How many ranges are replaced.
    #[prost(uint32, tag = "4")]
    pub inputs: u32,
    /// Their hash ([`crate::state::InputsHash`]).
    #[prost(fixed64, tag = "5")]
    pub inputs_hash: u64,
    /// Where the batches begin in the object.
    #[prost(uint64, tag = "6")]
    pub position: u64,
    /// How many bytes they have.
    #[prost(uint64, tag = "7")]
    pub bytes: u64,
    /// How many they are.
    #[prost(uint32, tag = "8")]
    pub batches: u32,
    /// Largest timestamp of their records, relative to the record's `time_ms`.
    #[prost(sint64, tag = "9")]
    pub max_timestamp_delta_ms: i64,
    /// The level of the new range; at least 1.
    #[prost(uint32, tag = "10")]
    pub level: u32,
    /// Whether superseded records were left out, so that offsets inside may be missing.
    #[prost(bool, tag = "11")]
    pub compacted: bool,
}

/// The producer of a transactional id.
#[derive(Clone, PartialEq, Message)]
pub struct ProducerInitialized {
    /// The transactional id.
    #[prost(string, tag = "1")]
    pub transactional_id: String,
    /// Its producer id from here on.
    #[prost(uint64, tag = "2")]
    pub producer_id: u64,
    /// The epoch of that.
    #[prost(uint32, tag = "3")]
    pub epoch: u32,
    /// How long a transaction of it may be open, in ms.
    #[prost(uint32, tag = "4")]
    pub timeout_ms: u32,
    /// The producer id that it had before, + 1; 0 if it had none.
    #[prost(uint64, tag = "5")]
    pub replaces: u64,
}

/// Partitions of a transaction that were named before anything is written to them (version 1), or
/// none: then it has offsets of a group.
#[derive(Clone, PartialEq, Message)]
pub struct TransactionBegun {
    /// The producer id.
    #[prost(uint64, tag = "1")]
    pub producer_id: u64,
    /// Its epoch.
    #[prost(uint32, tag = "2")]
    pub epoch: u32,
    /// The partitions, grouped by topic.
    #[prost(message, repeated, tag = "3")]
    pub topics: Vec<TransactionTopic>,
}

/// Partitions of one topic in a transaction.
#[derive(Clone, PartialEq, Message)]
pub struct TransactionTopic {
    /// The topic id, 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub topic_id: Vec<u8>,
    /// Which.
    #[prost(uint32, repeated, tag = "2")]
    pub partitions: Vec<u32>,
}

/// The end of a transaction. It names no partitions: those that are open are.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct TransactionEnded {
    /// The producer id.
    #[prost(uint64, tag = "1")]
    pub producer_id: u64,
    /// Its epoch.
    #[prost(uint32, tag = "2")]
    pub epoch: u32,
    /// Whether it is committed; else it is aborted.
    #[prost(bool, tag = "3")]
    pub committed: bool,
    /// The producer id of the next transaction: another one once the epochs are used up.
    #[prost(uint64, tag = "4")]
    pub next_producer_id: u64,
    /// The epoch of the next transaction.
    #[prost(uint32, tag = "5")]
    pub next_epoch: u32,
}

/// Transactional ids without a transaction for the expiry time.
#[derive(Clone, PartialEq, Message)]
pub struct TransactionalIdsExpired {
    /// Their producers; each is forgotten only if it is still as described.
    #[prost(message, repeated, tag = "1")]
    pub producers: Vec<ExpiredTransactional>,
}

/// The producer of a transactional id, as the proposer expects to find it.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ExpiredTransactional {
    /// The producer id.
    #[prost(uint64, tag = "1")]
    pub producer_id: u64,
    /// Its epoch.
    #[prost(uint32, tag = "2")]
    pub epoch: u32,
}

/// A record that this build cannot apply. The broker that meets one stops.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes are not a record.
    #[error("a log record does not decode: {0}")]
    Garbage(String),
    /// The record was written by a newer build.
    #[error("a log record has format {0}, this build knows {RECORD_FORMAT}")]
    NewerFormat(u32),
    /// The record's kind is unknown here: written by a newer build.
    #[error("a log record is of a kind that this build does not know")]
    UnknownKind,
    /// A field has a value that no writer may write.
    #[error("a log record has an impossible value: {0}")]
    Impossible(&'static str),
}

impl Record {
    /// A record of the current format.
    pub fn new(time_ms: i64, body: Body) -> Self {
        Self { format: RECORD_FORMAT, time_ms, body: Some(body) }
    }

    /// The bytes of the record.
    pub fn to_bytes(&self) -> bytes::Bytes {
        self.encode_to_vec().into()
    }

    /// Reads a record, refusing what this build does not know.
    pub fn from_bytes(bytes: &[u8]) -> Result<(Self, Body), RecordError> {
        let mut record = Self::decode(bytes).map_err(|e| RecordError::Garbage(e.to_string()))?;
        if record.format != RECORD_FORMAT {
            return Err(RecordError::NewerFormat(record.format));
        }
        let body = record.body.take().ok_or(RecordError::UnknownKind)?;
        Ok((record, body))
    }
}

/// Reads a topic id from a record.
pub fn topic_id(bytes: &[u8]) -> Result<Uuid, RecordError> {
    Uuid::from_slice(bytes).map_err(|_| RecordError::Impossible("a topic id is 16 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flush() -> Record {
        let batch = FlushBatch {
            offsets: 10,
            bytes: 1000,
            max_timestamp_delta_ms: -5,
            producer: 7,
            producer_epoch: 1,
            base_sequence: 300,
            transaction: 0,
        };
        let partition = FlushPartition { partition: 3, position: 4096, batches: vec![batch] };
        Record::new(
            1_700_000_000_000,
            Body::Flush(Flush {
                object_number: 9,
                object_salt: 0xdead_beef,
                object_bytes: 8192,
                topics: vec![FlushTopic { topic_id: vec![0xab; 16], partitions: vec![partition] }],
                continues: false,
            }),
        )
    }

    #[test]
    fn a_flush_has_golden_bytes() {
        let golden = "08011080a0abfef962\
             5235\
             080915efbeadde188040\
             22290a10abababababababababababababababab\
             121508031080201a0e080a10e80718092007280130ac02";
        let bytes = flush().to_bytes();
        // Format and time; tag and length of the flush; its object; the topic with its id; the
        // partition with its batch.
        assert_eq!(hex(&bytes), golden);
        let (head, body) = Record::from_bytes(&bytes).unwrap();
        assert_eq!(Record { body: Some(body), ..head }, flush());
    }

    fn hex(bytes: &[u8]) -> String {
        use std::fmt::Write as _;
        bytes.iter().fold(String::new(), |mut text, b| {
            let _ = write!(text, "{b:02x}");
            text
        })
    }

    #[test]
    fn a_merge_has_golden_bytes() {
        let partition = MergedPartition {
            partition: 3,
            base_offset: 1_000,
            offsets: 500,
            inputs: 40,
            inputs_hash: 0x0102_0304_0506_0708,
            position: 4096,
            bytes: 2_000_000,
            batches: 45,
            max_timestamp_delta_ms: -30_000,
            level: 1,
            compacted: true,
        };
        let topics = vec![MergedTopic { topic_id: vec![0xab; 16], partitions: vec![partition] }];
        let merged = Merged { object_number: 9, object_salt: 0xdead_beef, object_bytes: 8_000_000, topics };
        let record = Record::new(1_700_000_000_000, Body::Merged(merged));
        let golden = "08011080a0abfef962\
             aa0146\
             080915efbeadde1880a4e803\
             22380a10abababababababababababababababab\
             1224080310e80718f403202829080706050403020130802038\
             80897a402d48dfd40350015801";
        assert_eq!(hex(&record.to_bytes()), golden);
        let (head, body) = Record::from_bytes(&record.to_bytes()).unwrap();
        assert_eq!(Record { body: Some(body), ..head }, record);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(matches!(Record::from_bytes(&[0xff; 9]), Err(RecordError::Garbage(_))));
        let newer = Record { format: 2, ..flush() };
        assert_eq!(Record::from_bytes(&newer.to_bytes()), Err(RecordError::NewerFormat(2)));
        // Tag 99, a kind from the future.
        let unknown = [0x08, 0x01, 0x10, 0x02, 0x9a, 0x06, 0x00];
        assert_eq!(Record::from_bytes(&unknown), Err(RecordError::UnknownKind));
    }

    #[test]
    fn garbage_never_panics() {
        let whole = flush().to_bytes();
        for end in 0..whole.len() {
            let _ = Record::from_bytes(&whole[..end]);
        }
        for i in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.to_vec();
                flipped[i] ^= 1 << bit;
                let _ = Record::from_bytes(&flipped);
            }
        }
    }
}
