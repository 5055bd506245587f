//! Sees every transaction as etcd executes it, and who sent it. A broker does not know of it.
//!
//! Invariant 5: a broker whose registration was lost can commit nothing any more. And no snapshot
//! is listed in front of newer ones, and no record goes that a start from the second-newest one
//! needs. What comes of these is seen by chance at most, so it is looked at where it happens.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use strandline_metadata::backend::{
    Backend, BackendError, ChangedRequest, ChangedResponse, KeyRange, Op, RangeRequest, RangeResponse,
    ReadBackend, Txn, TxnResponse, Watch,
};
use strandline_metadata::keys::{Key, Keyspace};
use strandline_metadata::values::{SnapshotValue, Value};
use strandline_tests::history::History;

/// Brokers that have ended by themselves, by node id, and why.
type Refusals = Vec<(i32, String)>;

/// What has been seen: for each node id, the process that holds it.
#[derive(Clone, Debug)]
pub(crate) struct Monitor {
    keys: Keyspace,
    history: History,
    holders: Arc<Mutex<BTreeMap<i32, u64>>>,
    /// Who has refused to go on, and why, while that is expected.
    refusals: Arc<Mutex<Option<Refusals>>>,
}

/// One process of a node id, by its number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process {
    pub(crate) node_id: i32,
    pub(crate) number: u64,
}

/// What one process sends.
#[derive(Debug)]
pub(crate) struct Monitored {
    pub(crate) inner: Arc<dyn Backend>,
    pub(crate) process: Process,
    pub(crate) monitor: Monitor,
}

impl Monitor {
    pub(crate) fn new(keys: Keyspace, history: History) -> Self {
        Self { keys, history, holders: Arc::default(), refusals: Arc::default() }
    }

    /// From now on brokers are right to end by themselves.
    pub(crate) fn expect_refusals(&self) {
        *self.refusals.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
    }

    /// Not any more.
    pub(crate) fn expect_none(&self) {
        *self.refusals.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Who has ended since it was expected.
    pub(crate) fn refusals(&self) -> Refusals {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default()
    }

    /// A broker has ended by itself. What goes wrong here is not for ever, so none may, unless what
    /// lies below it is not its own any more.
    pub(crate) fn ended(&self, node_id: i32, reason: &dyn std::fmt::Display) {
        if let Some(refusals) = &mut *self.refusals.lock().unwrap_or_else(PoisonError::into_inner) {
            refusals.push((node_id, reason.to_string()));
            return;
        }
        self.history.anomaly("ended", format!("broker {node_id} ended by itself: {reason}"));
    }

    /// Whether the process holds its node id. One that was started later takes it by registering.
    fn holds(&self, process: Process, registers: bool) -> bool {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        let holder = holders.entry(process.node_id).or_insert(process.number);
        if registers {
            *holder = process.number;
        }
        *holder == process.number
    }
}

impl Monitored {
    /// A start from the newest snapshot must be enough: the log that an older one needs is trimmed.
    fn listed(&self, revision: i64, value: &[u8]) {
        let Ok(value) = SnapshotValue::decode(value) else { return };
        if !value.snapshots.is_sorted_by(|newer, older| newer.revision > older.revision) {
            let what = format!("revision {revision} lists a snapshot in front of newer ones");
            self.monitor.history.anomaly("older snapshot", what);
        }
    }

    /// Records go only when the pointer says that they may: whoever starts then does not need them,
    /// also if the newest snapshot turns out bad.
    async fn deleted(&self, revision: i64, keys: &KeyRange) -> Result<(), BackendError> {
        let before = |keys| RangeRequest { keys, revision: Some(revision - 1), limit: 0, keys_only: false };
        let gone = self.inner.range(before(keys.clone())).await?.kvs;
        let records =
            gone.iter().filter(|kv| matches!(self.monitor.keys.parse(&kv.key), Some(Key::Log { .. })));
        let Some(newest) = records.map(|kv| kv.mod_revision).max() else { return Ok(()) };
        let pointer = KeyRange::Key(self.monitor.keys.encode(&Key::Snapshot));
        let pointer = self.inner.range(before(pointer)).await?.kvs;
        let listed = pointer.first().and_then(|kv| SnapshotValue::decode(&kv.value).ok());
        let trimmed_to = listed.map_or(0, |listed| listed.trimmed_to);
        if newest > trimmed_to {
            let what = format!(
                "revision {revision} deletes a record of revision {newest}; the pointer allows up to {trimmed_to}"
            );
            self.monitor.history.anomaly("early trim", what);
        }
        Ok(())
    }

    async fn executed(&self, txn: &Txn, revision: i64) -> Result<(), BackendError> {
        let Process { node_id, number } = self.process;
        let keys = &self.monitor.keys;
        let mut incarnations = Vec::new();
        let mut registers = false;
        for op in &txn.then {
            let (key, value) = match op {
                Op::Put { key, value, .. } => (key, value),
                Op::Delete(deleted) => {
                    self.deleted(revision, deleted).await?;
                    continue;
                }
                Op::Range(_) | Op::Txn(_) => continue,
            };
            match keys.parse(key) {
                Some(Key::Log { incarnation, .. }) => incarnations.push(incarnation),
                Some(Key::Broker(id)) => registers |= id == node_id,
                Some(Key::Snapshot) => self.listed(revision, value),
                _ => {}
            }
        }
        if !self.monitor.holds(self.process, registers) && !incarnations.is_empty() {
            let what =
                format!("revision {revision} is of process {number} of broker {node_id}, which was replaced");
            self.monitor.history.anomaly("zombie commit", what);
        }
        incarnations.dedup();
        if let Some(incarnation) = incarnations.first() {
            let read =
                RangeRequest { keys: keys.brokers(), revision: Some(revision), limit: 0, keys_only: true };
            let registered = self.inner.range(read).await?.kvs;
            if !registered.iter().any(|kv| kv.create_revision == *incarnation) {
                let what =
                    format!("revision {revision} is of incarnation {incarnation}, which is not registered");
                self.monitor.history.anomaly("zombie commit", what);
            }
        }
        Ok(())
    }
}

#[async_trait]
impl ReadBackend for Monitored {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, BackendError> {
        self.inner.range(request).await
    }

    async fn changed(&self, request: ChangedRequest) -> Result<ChangedResponse, BackendError> {
        self.inner.changed(request).await
    }

    async fn watch(&self, keys: KeyRange, revision: i64) -> Result<Box<dyn Watch>, BackendError> {
        self.inner.watch(keys, revision).await
    }
}

#[async_trait]
impl Backend for Monitored {
    async fn txn(&self, txn: Txn) -> Result<TxnResponse, BackendError> {
        let response = self.inner.txn(txn.clone()).await?;
        if response.succeeded {
            // The history before it may be forgotten already: then this one goes unseen.
            let _ = self.executed(&txn, response.revision).await;
        }
        Ok(response)
    }

    async fn lease_grant(&self, ttl_s: i64) -> Result<i64, BackendError> {
        self.inner.lease_grant(ttl_s).await
    }

    async fn lease_keep_alive(&self, lease: i64) -> Result<i64, BackendError> {
        self.inner.lease_keep_alive(lease).await
    }

    async fn lease_revoke(&self, lease: i64) -> Result<(), BackendError> {
        self.inner.lease_revoke(lease).await
    }

    async fn compact(&self, revision: i64) -> Result<(), BackendError> {
        self.inner.compact(revision).await
    }
}
