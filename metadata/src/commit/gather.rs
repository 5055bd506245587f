//! What waits to be committed, and what may share a transaction. Pure.

use std::collections::BTreeSet;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::split::split;
use super::{CommitError, Committed, Session};
use crate::backend::txn_rules::txn_bytes;
use crate::backend::{Compare, KeyRange, Op, Txn};
use crate::limits::{
    BACKEND_REQUEST_BYTES, BACKEND_TXN_OPS, FIXED_STEPS, RECORD_BYTES, RECORDS_PER_TXN, TXN_RECORD_BYTES,
};
use crate::record::{Body, Flush, Record};
use crate::state::Effects;

/// What is to be committed without delay.
#[derive(Debug)]
pub(super) enum Proposal {
    /// A flush; shares a transaction with others.
    Flush(QueuedFlush),
    /// A change without a record; shares a transaction with others.
    Part(Part),
    /// A change with a record; shares a transaction with its like only.
    Alone(Recorded),
}

/// A change with a record. Its compares decide whether its sequence number is used, so they are
/// those of the whole transaction.
#[derive(Debug)]
pub(super) struct Recorded {
    pub(super) record: Bytes,
    pub(super) compares: Vec<Compare>,
    pub(super) ops: Vec<Op>,
    /// Whether it has a transaction to itself. The state right after a checkpoint is the one of its
    /// whole revision: a snapshot of it would lack what comes behind it there.
    pub(super) is_alone: bool,
    pub(super) reply: oneshot::Sender<Committed>,
}

/// A flush on its way into a transaction.
#[derive(Debug)]
pub(super) struct QueuedFlush {
    pub(super) incarnation: i64,
    pub(super) records: Vec<Bytes>,
    pub(super) reply: oneshot::Sender<Committed>,
    pub(super) committed: Committed,
}

/// A change without a record: a transaction to be nested, which fails alone.
#[derive(Debug)]
pub(super) struct Part {
    /// The only session under which it may be committed; `None` for whichever is current.
    pub(super) session: Option<Session>,
    pub(super) txn: Txn,
    bytes: usize,
    reply: oneshot::Sender<Result<i64, CommitError>>,
}

impl Proposal {
    pub(super) fn flush(
        incarnation: i64,
        time_ms: i64,
        flush: Flush,
        reply: oneshot::Sender<Committed>,
    ) -> Self {
        let parts = split(flush, RECORD_BYTES).into_iter();
        let records = parts.map(|part| Record::new(time_ms, Body::Flush(part)).to_bytes()).collect();
        Self::records(incarnation, records, reply)
    }

    /// Records of objects that this incarnation has written.
    pub(super) fn records(incarnation: i64, records: Vec<Bytes>, reply: oneshot::Sender<Committed>) -> Self {
        Self::Flush(QueuedFlush { incarnation, records, reply, committed: Committed::default() })
    }
}

impl Part {
    /// A part, and where its revision will be told.
    pub(super) fn new(
        session: Option<Session>,
        compares: Vec<Compare>,
        ops: Vec<Op>,
    ) -> (Self, oneshot::Receiver<Result<i64, CommitError>>) {
        let (reply, revision) = oneshot::channel();
        let txn = Txn { compares, then: ops, otherwise: Vec::new() };
        let bytes = txn_bytes(&txn);
        (Self { session, txn, bytes, reply }, revision)
    }

    /// The keys that it changes one by one; `None` if it deletes whole ranges.
    fn changed_keys(&self) -> Option<Vec<Bytes>> {
        self.txn.then.iter().map(changed_key).collect()
    }

    /// Whether nobody waits for it any more.
    pub(super) fn is_given_up(&self) -> bool {
        self.reply.is_closed()
    }

    pub(super) fn answer(self, result: Result<i64, CommitError>) {
        // Whoever stopped waiting does not need the answer; what is committed stays committed.
        let _ = self.reply.send(result);
    }
}

impl Recorded {
    /// Tells what became of it. Whoever stopped waiting does not need the answer; what is committed
    /// stays committed.
    pub(super) fn answer(self, committed: Result<(i64, Vec<oneshot::Receiver<Effects>>), CommitError>) {
        let committed = match committed {
            Ok((revision, records)) => Committed { records, error: None, revision },
            Err(error) => Committed { error: Some(error), ..Committed::default() },
        };
        let _ = self.reply.send(committed);
    }
}

/// Changes with records that are tried together: all of them or none.
#[derive(Debug, Default)]
pub(super) struct Together {
    pub(super) changes: Vec<Recorded>,
    changed: BTreeSet<Bytes>,
    /// Nothing more may join.
    is_closed: bool,
    compares: usize,
    steps: usize,
    bytes: usize,
}

impl Together {
    /// Takes a change in, or gives it back if it does not fit. The first always does.
    ///
    /// All compares of a transaction are looked at before any of its steps, so nothing may compare
    /// a key that one before it changes.
    pub(super) fn take(&mut self, change: Recorded) -> Result<(), Recorded> {
        let keys: Vec<Bytes> = change.ops.iter().filter_map(changed_key).collect();
        let compares = self.compares + change.compares.len();
        let steps = self.steps + change.ops.len() + 1;
        let txn = Txn { compares: change.compares.clone(), then: change.ops.clone(), ..Txn::default() };
        let bytes = self.bytes + txn_bytes(&txn) + change.record.len();
        let fits = !change.is_alone
            && !self.is_closed
            && keys.len() == change.ops.len()
            && compares + FIXED_STEPS <= BACKEND_TXN_OPS
            && steps + FIXED_STEPS <= BACKEND_TXN_OPS
            && self.changes.len() < RECORDS_PER_TXN
            && bytes <= TXN_RECORD_BYTES
            && !keys.iter().any(|key| self.changed.contains(key))
            && !change.compares.iter().any(|compare| self.changed.contains(compare.key()));
        if !(fits || self.changes.is_empty()) {
            return Err(change);
        }
        (self.compares, self.steps, self.bytes) = (compares, steps, bytes);
        self.is_closed |= change.is_alone;
        self.changed.extend(keys);
        self.changes.push(change);
        Ok(())
    }
}

/// The key that a step changes; `None` if it is not a single one.
fn changed_key(op: &Op) -> Option<Bytes> {
    match op {
        Op::Put { key, .. } | Op::Delete(KeyRange::Key(key)) => Some(key.clone()),
        Op::Delete(KeyRange::Span { .. }) | Op::Range(_) | Op::Txn(_) => None,
    }
}

/// What shares the next transaction.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) flushes: Vec<QueuedFlush>,
    pub(super) parts: Vec<Part>,
    /// Keys that the parts change: no transaction may change one twice.
    changed: BTreeSet<Bytes>,
    /// Steps and compares of the widest part. etcd gives a nested transaction what the one around
    /// it leaves.
    widest: usize,
    records: usize,
    record_bytes: usize,
    bytes: usize,
    /// Nothing more may join.
    is_closed: bool,
}

impl Shared {
    /// Whether etcd's limit of operations allows so many records and parts, and a nested
    /// transaction so wide.
    fn is_narrow_enough(records: usize, parts: usize, widest: usize) -> bool {
        records + parts + FIXED_STEPS + widest <= BACKEND_TXN_OPS
    }

    /// Takes a flush in, or gives it back if it does not fit. A flush that is larger than a
    /// transaction is taken if it is the first.
    pub(super) fn take_flush(&mut self, flush: QueuedFlush) -> Result<(), QueuedFlush> {
        let bytes: usize = flush.records.iter().map(Bytes::len).sum();
        let fits = self.records + flush.records.len() <= RECORDS_PER_TXN
            && self.record_bytes + bytes <= TXN_RECORD_BYTES
            && Self::is_narrow_enough(self.records + flush.records.len(), self.parts.len(), self.widest)
            && self.bytes + bytes <= BACKEND_REQUEST_BYTES;
        if self.is_closed || !(fits || self.flushes.is_empty() && self.parts.is_empty()) {
            return Err(flush);
        }
        self.records += flush.records.len();
        self.record_bytes += bytes;
        self.bytes += bytes;
        self.flushes.push(flush);
        Ok(())
    }

    /// Takes a part in, or gives it back if it does not fit.
    pub(super) fn take_part(&mut self, part: Part) -> Result<(), Part> {
        let is_first = self.flushes.is_empty() && self.parts.is_empty();
        let keys = part.changed_keys();
        let has_range = keys.is_none();
        let keys = keys.unwrap_or_default();
        let widest = self.widest.max(part.txn.compares.len()).max(part.txn.then.len());
        let fits = !has_range
            && Self::is_narrow_enough(self.records, self.parts.len() + 1, widest)
            && self.bytes + part.bytes <= BACKEND_REQUEST_BYTES
            && !keys.iter().any(|key| self.changed.contains(key));
        if self.is_closed || !(fits || is_first) {
            return Err(part);
        }
        // A delete of a whole range takes etcd long, and might meet what others put.
        self.is_closed = has_range;
        self.widest = widest;
        self.bytes += part.bytes;
        self.changed.extend(keys);
        self.parts.push(part);
        Ok(())
    }
}
