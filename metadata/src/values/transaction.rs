//! The values of `txns/…` and `pending/…`: what must survive whoever coordinates a transaction.
//!
//! Which partitions a transaction has is in the state machine, since batches add them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Value;
use super::group::CommittedOffset;

/// The value of `txns/<transactional id>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionValue {
    /// Format of this value.
    pub format: u32,
    /// The producer id.
    pub producer_id: i64,
    /// Its epoch.
    pub epoch: i16,
    /// The epoch before, if its producer has bumped it and may not know yet; −1 if another one has
    /// (KIP-360).
    pub last_epoch: i16,
    /// The producer id before, once its epochs were used up; −1 for none.
    pub previous_producer_id: i64,
    /// How long a transaction may be open, in ms.
    pub timeout_ms: i32,
    /// What became of the last transaction.
    pub state: TransactionStateValue,
    /// Groups for which the open transaction has offsets, or is to have.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub groups: BTreeSet<String>,
    /// Wall clock of whoever wrote this, ms since 1970.
    pub updated_ms: i64,
}

impl Value for TransactionValue {
    const WHAT: &'static str = "a transactional id";
}

/// Where a transactional id stands. A batch may have begun the next transaction since (version 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransactionStateValue {
    /// Its producer has not begun a transaction.
    Empty,
    /// A transaction is open.
    Ongoing,
    /// The last transaction is committed.
    CompleteCommit,
    /// The last transaction is aborted.
    CompleteAbort,
}

/// The value of `pending/<group>/<transactional id>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingValue {
    /// Format of this value.
    pub format: u32,
    /// By topic.
    pub topics: BTreeMap<String, PendingTopic>,
}

impl Value for PendingValue {
    const WHAT: &'static str = "pending offsets";
}

/// Offsets of one topic that wait for a transaction to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingTopic {
    /// The topic's id.
    pub topic_id: Uuid,
    /// By partition.
    pub partitions: BTreeMap<u32, CommittedOffset>,
}

/// The value of `open-transactions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenTransactionsValue {
    /// Format of this value.
    pub format: u32,
    /// How many have been open for ten seconds or more.
    pub open: u64,
    /// Those that have been open the longest, the oldest first.
    pub oldest: Vec<OpenTransactionValue>,
}

impl Value for OpenTransactionsValue {
    const WHAT: &'static str = "open transactions";
}

/// A transaction that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenTransactionValue {
    /// The transactional id.
    pub transactional_id: String,
    /// Its producer id.
    pub producer_id: i64,
    /// The producer's epoch.
    pub epoch: i16,
    /// Wall clock of whoever began it, ms since 1970.
    pub since_ms: i64,
    /// After so long it is aborted, in ms.
    pub timeout_ms: u32,
    /// How many partitions it has.
    pub partitions: u64,
    /// Some of those that it has written to.
    pub first: Vec<OpenPartitionValue>,
}

/// A partition of an open transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenPartitionValue {
    /// The topic's id.
    pub topic_id: Uuid,
    /// The partition.
    pub partition: u32,
    /// Where the transaction begins there: nobody who reads what is committed comes further.
    pub first_offset: i64,
}
