//! etcd's model in this process: for a single-process development broker, and for simulation.
//!
//! ```text
//!   Embedded (clones share one store)
//!      │ lock
//!      ▼
//!   State { Mvcc: keys, history, leases' keys   (pure)     ── records ─▶ Tail ─ drain ─▶ Journal (file)
//!           Deadlines: when leases end          (told the time) }
//!      │ changed
//!      ▼
//!   EmbeddedWatch: a revision and a filter; reads the shared history
//! ```
//!
//! Everything is as in etcd (see `conformance`), with these differences, all of which make it
//! stricter or more predictable: a lease may be as short as one second and ends exactly at its
//! deadline; lease ids count up from 1; a delete and a put of one key never share a transaction,
//! whichever nested transactions they are in.
//!
//! **Leases.** No task runs behind this store. A lease that is past its deadline is ended by
//! whatever call comes next, whoever makes it, and by any watch that is being waited on. An owner
//! who wants keys to vanish in time although nobody calls and nobody watches runs
//! [`Embedded::run_leases`] as a task.
//!
//! **Journal.** A store that was opened with [`Embedded::open`] survives kill -9. What a call has
//! answered is durable, and nothing is shown, by a range or a watch, that is not. Changes that come
//! together share one write and one fdatasync, on a blocking thread. After opening, every lease has
//! its full time to live again: how much of it had passed is not written down, and a broker that is
//! still alive gets to keep its keys. If the journal cannot be written any more, calls that were
//! waiting for it end with [`BackendError::OutcomeUnknown`] and all later ones with
//! [`BackendError::Unavailable`], until the store is opened again.
//!
//! **Determinism.** In memory nothing is spawned, no clock but tokio's is read and no order is
//! arbitrary: under a paused clock and one thread, a run can be repeated.

#[cfg(feature = "etcd-api")]
pub mod api;
mod deadlines;
mod journal;
mod mvcc;
mod record;
mod shared;
#[cfg(test)]
mod tests;
mod watch;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::{Instant, timeout_at};

pub use self::journal::{Durability, OpenError};

use self::journal::Journal;
use self::mvcc::Mvcc;
use self::shared::{Shared, State};
use self::watch::EmbeddedWatch;
use super::request::{check_range, check_revision};
use super::{
    Backend, BackendError, ChangedRequest, ChangedResponse, KeyRange, RangeRequest, RangeResponse,
    ReadBackend, Txn, TxnResponse, Watch,
};

use crate::limits::LEASE_TTL_S;

/// A store in this process. Clones are handles of the same store.
#[derive(Clone)]
pub struct Embedded {
    shared: Arc<Shared>,
}

impl Embedded {
    /// An empty store that lives as long as its handles.
    pub fn in_memory() -> Self {
        Self { shared: Arc::new(Shared::new(Mvcc::new(), None)) }
    }

    /// A store that lives in a file, which is made if it is not there. Call it when the program
    /// starts: it reads the whole file before it returns. See the module's documentation for what a
    /// journal promises.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_with(path, Durability::default())
    }

    /// The same, with another idea of what is durable.
    pub fn open_with(path: &Path, durability: Durability) -> Result<Self, OpenError> {
        let (journal, mvcc) = Journal::open(path, durability)?;
        Ok(Self { shared: Arc::new(Shared::new(mvcc, Some(journal))) })
    }

    /// A store of its own, in memory, with what this one has now: as if restored from a backup that
    /// is made at this moment.
    #[must_use]
    pub fn backup(&self) -> Self {
        let (mvcc, _) = self.shared.with_state(|state, _| state.mvcc.clone());
        Self { shared: Arc::new(Shared::new(mvcc, None)) }
    }

    /// Ends leases in time although nobody calls or watches. Never returns; the owner of the store
    /// runs it as a task, and may drop it at any moment.
    pub async fn run_leases(&self) {
        let mut changed = self.shared.changed.subscribe();
        loop {
            changed.borrow_and_update();
            let (next, _) = self.shared.with_state(|state, _| state.deadlines.next());
            match next {
                Some(deadline) => {
                    // Either a lease changed or one is due: the next round finds out.
                    let _ = timeout_at(deadline, changed.changed()).await;
                }
                None => {
                    let _ = changed.changed().await;
                }
            }
        }
    }

    async fn read<T>(&self, read: impl FnOnce(&Mvcc) -> Result<T, BackendError>) -> Result<T, BackendError> {
        self.shared.check()?;
        let (response, position) = self.shared.with_state(|state, _| read(&state.mvcc));
        // What was read may be the work of a call that is still waiting for the disk.
        self.shared.settled(position).await.map_err(BackendError::Unavailable)?;
        response
    }

    /// Does something that may change the store, and returns when that is durable.
    async fn write<T>(
        &self,
        change: impl FnOnce(&mut State, Instant) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        self.shared.check()?;
        let (result, position) = self.shared.with_state(change);
        // Also a refusal is told only when what it is based on is durable.
        self.shared.settled(position).await.map_err(BackendError::OutcomeUnknown)?;
        result
    }
}

#[async_trait]
impl ReadBackend for Embedded {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, BackendError> {
        self.read(|mvcc| mvcc.range(&request)).await
    }

    async fn changed(&self, request: ChangedRequest) -> Result<ChangedResponse, BackendError> {
        self.read(|mvcc| mvcc.changed(&request)).await
    }

    async fn watch(&self, keys: KeyRange, revision: i64) -> Result<Box<dyn Watch>, BackendError> {
        check_range(&keys)?;
        check_revision(revision)?;
        Ok(Box::new(EmbeddedWatch::new(Arc::clone(&self.shared), keys, revision)))
    }
}

#[async_trait]
impl Backend for Embedded {
    async fn txn(&self, txn: Txn) -> Result<TxnResponse, BackendError> {
        self.write(|state, _| {
            let (response, record) = state.mvcc.txn(&txn)?;
            state.remember(record);
            Ok(response)
        })
        .await
    }

    async fn lease_grant(&self, ttl_s: i64) -> Result<i64, BackendError> {
        if ttl_s > LEASE_TTL_S {
            return Err(BackendError::Broken(format!("a lease of {ttl_s} seconds is too long")));
        }
        self.write(|state, now| {
            let (lease, record) = state.mvcc.grant(ttl_s.max(1));
            state.deadlines.set(lease, now, ttl_s.max(1));
            state.remember(Some(record));
            Ok(lease)
        })
        .await
    }

    async fn lease_keep_alive(&self, lease: i64) -> Result<i64, BackendError> {
        self.write(|state, now| {
            let ttl_s = state.mvcc.lease_ttl_s(lease).ok_or(BackendError::LeaseGone(lease))?;
            state.deadlines.set(lease, now, ttl_s);
            Ok(ttl_s)
        })
        .await
    }

    async fn lease_revoke(&self, lease: i64) -> Result<(), BackendError> {
        self.write(|state, _| state.end_lease(lease)).await
    }

    async fn compact(&self, revision: i64) -> Result<(), BackendError> {
        self.write(|state, _| state.compact(revision)).await
    }
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").finish_non_exhaustive()
    }
}
