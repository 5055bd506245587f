//! The ordered key-value store that everything else in this crate stands on, as two small traits
//! with etcd's own model and nothing more.
//!
//! [`ReadBackend`] can range and watch; it is all that a reader such as the observer gets.
//! [`Backend`] adds transactions, leases and history compaction and exists only with the `log`
//! feature.
//!
//! There are two implementations, held to one conformance suite (`conformance.rs`): `etcd` for
//! production and `embedded` for a single-process development broker and for simulation.
//!
//! No implementation retries a transaction by itself. A transaction whose answer is lost may have
//! been executed, and only the caller knows how to find out (see `LOG.md`, "unknown outcomes").

#[cfg(feature = "log")]
pub mod conformance;
#[cfg(feature = "log")]
pub mod embedded;
pub mod etcd;
#[cfg(feature = "log")]
pub mod faulty;
mod request;
#[cfg(feature = "log")]
pub mod txn_rules;

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

/// A key with its value and etcd's bookkeeping for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The whole key.
    pub key: Bytes,
    /// The value as it was put.
    pub value: Bytes,
    /// Revision at which this key was created; 0 never occurs.
    pub create_revision: i64,
    /// Revision of the newest put to this key.
    pub mod_revision: i64,
    /// Number of puts since the key was created, starting at 1.
    pub version: i64,
    /// The lease that the key is attached to; 0 for none.
    pub lease: i64,
}

/// A set of keys: one key, or a half-open range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyRange {
    /// Exactly this key.
    Key(Bytes),
    /// Every key that is at least `start` and less than `end`.
    Span {
        /// First key of the range.
        start: Bytes,
        /// First key that is no longer in the range.
        end: Bytes,
    },
}

impl KeyRange {
    /// Exactly `key`.
    pub fn key(key: impl Into<Bytes>) -> Self {
        Self::Key(key.into())
    }

    /// Every key that begins with `prefix`, which must not be empty nor consist of 0xFF bytes only.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start: Bytes = prefix.into();
        let mut end = start.to_vec();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                break;
            }
        }
        assert!(!end.is_empty(), "a prefix that has no end would be the whole keyspace");
        Self::Span { start, end: end.into() }
    }

    /// Everything from the first key of this range to the last of `last`, which must not lie before
    /// it.
    #[must_use]
    pub fn to(self, last: Self) -> Self {
        let (Self::Key(start) | Self::Span { start, .. }) = self;
        let end = match last {
            Self::Span { end, .. } => end,
            // The first key that comes after another is that one with a zero byte behind it.
            Self::Key(key) => key.iter().copied().chain([0]).collect(),
        };
        assert!(start < end, "the last key comes before the first");
        Self::Span { start, end }
    }

    /// Whether `key` lies in this range.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Key(own) => own == key,
            Self::Span { start, end } => key >= &start[..] && key < &end[..],
        }
    }
}

/// What to range over. Results are in key order.
#[derive(Clone, Debug)]
pub struct RangeRequest {
    /// Which keys.
    pub keys: KeyRange,
    /// As of this revision; `None` is the newest, read linearizably.
    pub revision: Option<i64>,
    /// At most this many keys; 0 is no limit.
    pub limit: usize,
    /// Leave the values out: each comes back empty.
    pub keys_only: bool,
}

/// The answer to a [`RangeRequest`].
#[derive(Clone, Debug)]
pub struct RangeResponse {
    /// The store's newest revision when the range was served (not the revision that was asked for).
    pub revision: i64,
    /// The keys, in key order.
    pub kvs: Vec<KeyValue>,
    /// Whether `limit` cut the answer short.
    pub more: bool,
}

/// Which keys of a range were put after a revision. What was deleted shows in the count of all keys
/// only.
#[derive(Clone, Debug)]
pub struct ChangedRequest {
    /// Which keys.
    pub keys: KeyRange,
    /// Those whose newest put is younger than this revision, which may be one of the future: then
    /// there are none.
    pub after: i64,
    /// As of this revision; `None` is the newest, read linearizably.
    pub revision: Option<i64>,
}

/// The answer to a [`ChangedRequest`].
#[derive(Clone, Debug)]
pub struct ChangedResponse {
    /// The store's newest revision when the request was served (not the revision that was asked
    /// for).
    pub revision: i64,
    /// The keys that were put and are still there, in key order.
    pub kvs: Vec<KeyValue>,
    /// How many keys the range has, whenever they were put.
    pub count: usize,
}

/// A condition of a transaction. All conditions are equalities: nothing here needs another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key's create revision equals this; 0 means that the key does not exist.
    CreateRevision(Bytes, i64),
    /// The key's mod revision equals this; 0 means that the key does not exist.
    ModRevision(Bytes, i64),
    /// The key exists and has exactly this value.
    Value(Bytes, Bytes),
}

impl Compare {
    /// The key that it looks at.
    pub(crate) fn key(&self) -> &Bytes {
        let (Self::CreateRevision(key, _) | Self::ModRevision(key, _) | Self::Value(key, _)) = self;
        key
    }
}

/// A step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Puts a value, attached to `lease` unless that is 0.
    Put {
        /// The key to write.
        key: Bytes,
        /// Its new value.
        value: Bytes,
        /// The lease to attach it to; 0 for none.
        lease: i64,
    },
    /// Deletes every key of a range. Deleting nothing is no error.
    Delete(KeyRange),
    /// Reads a range at the transaction's own revision.
    Range(KeyRange),
    /// A transaction within the transaction, whose compares see the store before it.
    Txn(Txn),
}

impl Op {
    /// A put without a lease.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease: 0 }
    }
}

/// If all of `compares` hold, executes `then`, else `otherwise`, atomically and at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions.
    pub compares: Vec<Compare>,
    /// Steps when every condition holds.
    pub then: Vec<Op>,
    /// Steps when one does not.
    pub otherwise: Vec<Op>,
}

/// What a step of a transaction answered, in the order of the steps.
#[derive(Clone, Debug)]
pub enum OpResponse {
    /// The put was done.
    Put,
    /// So many keys were deleted.
    Deleted(i64),
    /// What the range found.
    Range(Vec<KeyValue>),
    /// The nested transaction's own answer.
    Txn(TxnResponse),
}

/// The answer to a [`Txn`].
#[derive(Clone, Debug)]
pub struct TxnResponse {
    /// The store's revision after the transaction. Every key that it put has this mod revision.
    pub revision: i64,
    /// Whether all compares held.
    pub succeeded: bool,
    /// One answer per step that was executed.
    pub responses: Vec<OpResponse>,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The key was put; `mod_revision` says when.
    Put(KeyValue),
    /// The key was deleted, or its lease ran out.
    Delete {
        /// The key that is gone.
        key: Bytes,
        /// Revision at which it went.
        revision: i64,
    },
}

impl Event {
    /// The revision at which this event happened.
    pub fn revision(&self) -> i64 {
        match self {
            Self::Put(kv) => kv.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }

    /// The key that it happened to.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put(kv) => &kv.key,
            Self::Delete { key, .. } => key,
        }
    }
}

/// A run of events from a watch. Revisions are complete: all events of one revision are in one
/// batch.
#[derive(Clone, Debug)]
pub struct WatchBatch {
    /// Events in revision order. Within one revision their order means nothing. May be empty (a
    /// progress report).
    pub events: Vec<Event>,
    /// Everything up to and including this revision has now been delivered. It may lag behind the
    /// store's revision for as long as nothing happens in the watched range, since etcd's own
    /// progress reports cannot be trusted to come after the events that they cover (see
    /// `etcd/watch.rs`).
    pub revision: i64,
}

/// Why a backend could not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// It was certainly not executed (never sent, refused, no leader); the same call may be tried
    /// again.
    #[error("the metadata store is unavailable: {0}")]
    Unavailable(String),
    /// It was sent and the answer is lost: it may have been executed, or may still be. A read that
    /// does not find it proves nothing, not even a linearizable one: etcd was seen to execute such
    /// a transaction after it. Sending the same transaction again, with a compare that only one of
    /// the two can pass, decides.
    #[error("the metadata store's answer was lost: {0}")]
    OutcomeUnknown(String),
    /// The revision asked for is older than the history that is kept.
    #[error("the history before revision {oldest} is gone")]
    Compacted {
        /// The oldest revision that can still be read or watched; 0 if the store did not say.
        oldest: i64,
    },
    /// The store is at its quota and refuses writes that need space (etcd's NOSPACE alarm). etcd
    /// executes the transaction that takes it over its quota all the same, and answers like this:
    /// so it may have been executed, but nothing of it is under way any more, and a linearizable
    /// read tells.
    #[error("the metadata store is out of space")]
    NoSpace,
    /// The request is larger or has more operations than the store allows; it was not executed. Of
    /// a range: the answer is larger than this client takes, so ask for less.
    #[error("the request is too large for the metadata store: {0}")]
    TooLarge(String),
    /// The credentials do not allow it.
    #[error("the metadata store denied the request: {0}")]
    Denied(String),
    /// The lease does not exist (any more).
    #[error("lease {0} is gone")]
    LeaseGone(i64),
    /// The store answered with something that cannot be, or refused the request as malformed.
    #[error("the metadata store misbehaves: {0}")]
    Broken(String),
}

/// A stream of [`WatchBatch`]es. Dropping it ends the watch.
#[async_trait]
pub trait Watch: Send + fmt::Debug {
    /// The next batch. Cancellation-safe. An error ends the watch; open a new one from the revision
    /// after the last batch. [`BackendError::Compacted`] means that this is no longer possible.
    async fn next(&mut self) -> Result<WatchBatch, BackendError>;
}

/// What may be read.
#[async_trait]
pub trait ReadBackend: Send + Sync + fmt::Debug {
    /// Ranges over keys.
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, BackendError>;

    /// Ranges over the keys that were put after a revision, and counts all. It needs no history: it
    /// says of keys that are there how old they are.
    async fn changed(&self, request: ChangedRequest) -> Result<ChangedResponse, BackendError>;

    /// Watches a range of keys from `revision` on, inclusive. The watch delivers progress reports
    /// now and then, so that a watcher can tell silence from a stuck stream.
    async fn watch(&self, keys: KeyRange, revision: i64) -> Result<Box<dyn Watch>, BackendError>;
}

/// The room that a store has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Size of its file, in bytes. It never shrinks by itself: what is free of it is used again.
    pub file_bytes: u64,
    /// What of that is in use, in bytes.
    pub used_bytes: u64,
    /// The size at which it refuses writes, in bytes, if it says so (etcd before 3.6 does not).
    pub quota_bytes: Option<u64>,
}

/// What may be read and written.
#[cfg(feature = "log")]
#[async_trait]
pub trait Backend: ReadBackend {
    /// Executes a transaction, once at most. Never retried here.
    async fn txn(&self, txn: Txn) -> Result<TxnResponse, BackendError>;

    /// Makes a lease that ends `ttl_s` seconds after its last keep-alive, and with it every key
    /// attached to it. The store may make a very short one longer.
    async fn lease_grant(&self, ttl_s: i64) -> Result<i64, BackendError>;

    /// Keeps a lease alive; answers with the seconds that it now has. [`BackendError::LeaseGone`]
    /// if it ended.
    async fn lease_keep_alive(&self, lease: i64) -> Result<i64, BackendError>;

    /// Ends a lease now, and deletes every key attached to it.
    async fn lease_revoke(&self, lease: i64) -> Result<(), BackendError>;

    /// Forgets the history before `revision`. Asking for what is already forgotten is no error.
    /// `revision` itself can still be read; a watch from exactly there may miss a deletion at it
    /// (etcd forgets that one), so leave a margin.
    async fn compact(&self, revision: i64) -> Result<(), BackendError>;

    /// How much room it has, as the member says that this client speaks to; `None` for a store
    /// without a quota.
    async fn space(&self) -> Result<Option<Space>, BackendError> {
        Ok(None)
    }
}
