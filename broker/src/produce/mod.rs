//! The write path: `validate → buffer ─▶ [flush] PUT object → [commit] etcd txn → applied → ack`.
//!
//! [`ProduceBuffer`] is the one queue on it. A connection appends a whole request under one lock,
//! so that pipelined requests of a connection keep their order; the flusher takes requests from the
//! front, writes one object, and hands the commit records to the log in the same order.

mod buffer;
mod doubts;
mod flush;
mod inspect;
mod validate;

use kafka_protocol::error::ResponseError;
use strandline_storage::format::batch::VerifiedBatch;
use uuid::Uuid;

pub(crate) use self::buffer::FlushReason;
pub use self::buffer::{Budget, BufferTicket, Lane, ProduceBuffer};
pub(crate) use self::doubts::Doubts;
pub use self::flush::Flusher;
pub(crate) use self::inspect::RecordError;
pub(crate) use self::validate::{Accepted, Invalid, Outlook, TopicRules, invalid, validate};

/// A record batch that was validated, for one partition.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The topic.
    pub topic_id: Uuid,
    /// The partition.
    pub partition: u32,
    /// The batch, as it will be stored.
    pub batch: VerifiedBatch,
    /// Number of offsets that it takes.
    pub offsets: u32,
    /// Largest timestamp, ms since 1970.
    pub max_timestamp_ms: i64,
    /// Producer id, epoch and first sequence number of an idempotent producer.
    pub producer: Option<(i64, i16, i32)>,
    /// Of which transaction it is, as a record of the log says it; 0 of none.
    pub transaction: u64,
}

/// What became of an entry.
pub type EntryResult = Result<i64, ProduceError>;

/// Why an entry is not (certainly) in the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProduceError {
    /// The object could not be written within its time.
    #[error("the object store did not take the records in time: {0}")]
    Store(String),
    /// This broker is not registered now, so it may not commit.
    #[error("this broker is not registered with the cluster just now; another one can take the records")]
    NotRegistered,
    /// The broker is leaving.
    #[error("this broker is leaving; another one can take the records")]
    Draining,
    /// The commit was refused.
    #[error("the metadata store did not take the commit: {0}")]
    Commit(String),
    /// The state is as large as it may become.
    #[error(
        "the cluster's state is at its limit (max_state_ranges); retention or deleting topics makes room"
    )]
    StateFull,
    /// The request's time was up; the records may still be committed.
    #[error("the records were not acknowledged within the request's time")]
    TimedOut,
    /// The request's time was up before anything of it was written, and it never will be.
    #[error("the records waited for longer than the request's time, and were dropped")]
    Expired,
    /// The state machine refused the batch.
    #[error("{0}")]
    Refused(Refused),
}

/// What the state machine said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The topic or partition is gone.
    #[error("the topic or partition does not exist any more")]
    UnknownTopicOrPartition,
    /// The sequence number does not follow.
    #[error("the sequence number does not follow the producer's last one in this partition")]
    OutOfOrderSequence,
    /// The epoch is old.
    #[error("a newer epoch of the producer has written to this partition")]
    InvalidProducerEpoch,
    /// The producer may have been forgotten.
    #[error("the producer id is not known in this partition, and old enough to have expired")]
    UnknownProducerId,
    /// No transactional id has this producer id.
    #[error("no transactional id has this producer id")]
    InvalidProducerIdMapping,
    /// It is not of the open transaction.
    #[error("the batch does not belong to the transaction that is open, or has no place in it")]
    InvalidTransactionState,
}

impl ProduceError {
    /// Kafka's code for it.
    pub fn code(&self) -> ResponseError {
        match self {
            Self::Store(_) | Self::Commit(_) | Self::StateFull => ResponseError::KafkaStorageError,
            Self::NotRegistered | Self::Draining => ResponseError::NotLeaderOrFollower,
            Self::TimedOut | Self::Expired => ResponseError::RequestTimedOut,
            Self::Refused(Refused::UnknownTopicOrPartition) => ResponseError::UnknownTopicOrPartition,
            Self::Refused(Refused::OutOfOrderSequence) => ResponseError::OutOfOrderSequenceNumber,
            Self::Refused(Refused::InvalidProducerEpoch) => ResponseError::InvalidProducerEpoch,
            Self::Refused(Refused::UnknownProducerId) => ResponseError::UnknownProducerId,
            Self::Refused(Refused::InvalidProducerIdMapping) => ResponseError::InvalidProducerIdMapping,
            Self::Refused(Refused::InvalidTransactionState) => ResponseError::InvalidTxnState,
        }
    }
}
