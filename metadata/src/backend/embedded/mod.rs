//! etcd's model in this process: for a single-process development broker, and for simulation.
//!
//! ```text
//!   Embedded (clones share one store)
//!      │ lock
//!      ▼
//!   State { Mvcc: keys, history, leases' keys   (pure)
//!           Deadlines: when leases end          (told the time) }
//!      │ changed
//!      ▼
//!   EmbeddedWatch: a revision and a filter; reads the shared history
//! ```
//!
//! Everything is as in etcd (see `conformance.rs`), with these differences, all of which make it stricter or
//! more predictable: a lease may be as short as one second and ends exactly at its deadline; lease ids count up
//! from 1; a delete and a put of one key never share a transaction, whichever nested transactions they are in.
//!
//! **Leases.** No task runs behind this store. A lease that is past its deadline is ended by whatever call comes
//! next, whoever makes it, and by any watch that is being waited on. An owner who wants keys to vanish in time
//! although nobody calls and nobody watches runs [`Embedded::run_leases`] as a task.
//!
//! **Determinism.** In memory nothing is spawned, no clock but tokio's is read and no order is arbitrary: under
//! a paused clock and one thread, a run can be repeated.

mod deadlines;
mod mvcc;
mod record;
#[cfg(test)]
mod tests;
mod watch;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::watch as signal;
use tokio::time::{Instant, timeout_at};

use self::deadlines::Deadlines;
use self::mvcc::Mvcc;
use self::watch::EmbeddedWatch;
use super::request::{check_range, check_revision};
use super::{
    Backend, BackendError, KeyRange, RangeRequest, RangeResponse, ReadBackend, Txn, TxnResponse, Watch,
};

/// The longest lease that etcd grants, in seconds.
const MAX_LEASE_TTL_S: i64 = 9_000_000_000;

/// A store in this process. Clones are handles of the same store.
#[derive(Clone)]
pub struct Embedded {
    shared: Arc<Shared>,
}

/// What all handles and watches of one store share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Signalled after every change of `state` that a watch or [`Embedded::run_leases`] may wait for.
    changed: signal::Sender<()>,
}

#[derive(Debug)]
struct State {
    mvcc: Mvcc,
    deadlines: Deadlines,
}

impl Embedded {
    /// An empty store that lives as long as its handles.
    pub fn in_memory() -> Self {
        let state = State { mvcc: Mvcc::new(), deadlines: Deadlines::default() };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: signal::Sender::new(()) }) }
    }

    /// Ends leases in time although nobody calls or watches. Never returns; the owner of the store runs it as a
    /// task, and may drop it at any moment.
    pub async fn run_leases(&self) {
        let mut changed = self.shared.changed.subscribe();
        loop {
            changed.borrow_and_update();
            let next = self.shared.state_at(Instant::now()).deadlines.next();
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
}

impl Shared {
    /// The state, with every lease ended that has run out by `now`.
    fn state_at(&self, now: Instant) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock; were it to happen in a test, that test has failed already.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ended = false;
        while let Some(lease) = state.deadlines.due(now) {
            state.deadlines.remove(lease);
            ended |= state.mvcc.end_lease(lease).is_ok();
        }
        if ended {
            self.changed.send_replace(());
        }
        state
    }
}

#[async_trait]
impl ReadBackend for Embedded {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, BackendError> {
        self.shared.state_at(Instant::now()).mvcc.range(&request)
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
        let (response, record) = self.shared.state_at(Instant::now()).mvcc.txn(&txn)?;
        if record.is_some() {
            self.shared.changed.send_replace(());
        }
        Ok(response)
    }

    async fn lease_grant(&self, ttl_s: i64) -> Result<i64, BackendError> {
        if ttl_s > MAX_LEASE_TTL_S {
            return Err(BackendError::Broken(format!("a lease of {ttl_s} seconds is too long")));
        }
        let now = Instant::now();
        let mut state = self.shared.state_at(now);
        let (lease, _) = state.mvcc.grant(ttl_s.max(1));
        state.deadlines.set(lease, now, ttl_s.max(1));
        self.shared.changed.send_replace(());
        Ok(lease)
    }

    async fn lease_keep_alive(&self, lease: i64) -> Result<i64, BackendError> {
        let now = Instant::now();
        let mut state = self.shared.state_at(now);
        let ttl_s = state.mvcc.lease_ttl_s(lease).ok_or(BackendError::LeaseGone(lease))?;
        state.deadlines.set(lease, now, ttl_s);
        Ok(ttl_s)
    }

    async fn lease_revoke(&self, lease: i64) -> Result<(), BackendError> {
        let mut state = self.shared.state_at(Instant::now());
        state.mvcc.end_lease(lease)?;
        state.deadlines.remove(lease);
        self.shared.changed.send_replace(());
        Ok(())
    }

    async fn compact(&self, revision: i64) -> Result<(), BackendError> {
        self.shared.state_at(Instant::now()).mvcc.compact(revision)?;
        Ok(())
    }
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").finish_non_exhaustive()
    }
}
