//! The one state behind all handles, and the way of its changes into the journal.
//!
//! ```text
//!   with_state ── change, record ─▶ Tail.pending ─▶ Drain (one blocking thread) ─▶ Journal: write, fdatasync
//!       │                                                                             │
//!       └─ settled(position) ◀──────────────── Durable ◀──────────────────────────────┘
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch as signal;
use tokio::time::Instant;
use tracing::{error, warn};

use super::deadlines::Deadlines;
use super::journal::Journal;
use super::mvcc::Mvcc;
use super::record::Record;
use crate::backend::BackendError;

/// What all handles and watches of one store share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Signalled after every change that a watch or [`super::Embedded::run_leases`] may wait for.
    pub(super) changed: signal::Sender<()>,
    /// Only of a store with a journal. Whoever needs both locks takes this one first.
    journal: Option<Mutex<Journal>>,
    /// How much of what was done is durable.
    durable: signal::Sender<Durable>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) mvcc: Mvcc,
    pub(super) deadlines: Deadlines,
    /// Only of a store with a journal.
    tail: Option<Tail>,
}

/// What was done and is not yet in the journal.
#[derive(Debug, Default)]
struct Tail {
    /// Records, in order.
    pending: Vec<u8>,
    /// How many records there have been since the store was opened.
    position: u64,
    /// The revision that is durable: the newest that a watch may show.
    durable_revision: i64,
    /// Whether a thread is writing, which will also take what comes meanwhile.
    draining: bool,
    /// History was forgotten, so the journal may be worth rewriting.
    compacted: bool,
}

/// What callers wait for.
#[derive(Clone, Debug, Default)]
struct Durable {
    /// Everything up to this position is in the journal.
    position: u64,
    /// Why nothing more will be.
    failed: Option<Arc<str>>,
}

impl State {
    /// The newest revision that may be shown.
    pub(super) fn visible(&self) -> i64 {
        self.tail.as_ref().map_or(self.mvcc.revision(), |tail| tail.durable_revision)
    }

    pub(super) fn end_lease(&mut self, lease: i64) -> Result<(), BackendError> {
        let record = self.mvcc.end_lease(lease)?;
        self.deadlines.remove(lease);
        self.remember(Some(record));
        Ok(())
    }

    /// Forgets history before a revision, after which the journal may be worth rewriting.
    pub(super) fn compact(&mut self, revision: i64) -> Result<(), BackendError> {
        let record = self.mvcc.compact(revision)?;
        if let Some(tail) = &mut self.tail {
            tail.compacted |= record.is_some();
        }
        self.remember(record);
        Ok(())
    }

    /// Has a change written to the journal, if there is one.
    pub(super) fn remember(&mut self, record: Option<Record>) {
        if let (Some(record), Some(tail)) = (record, &mut self.tail) {
            record.encode(&mut tail.pending);
            tail.position += 1;
        }
    }
}

impl Tail {
    /// The position now, and whether somebody must be found to write what is pending.
    fn hand_over(&mut self) -> (u64, bool) {
        let start_drain = !self.draining && !self.pending.is_empty();
        self.draining |= start_drain;
        (self.position, start_drain)
    }
}

impl Shared {
    /// A store as it was left, every lease with its full time to live.
    pub(super) fn new(mvcc: Mvcc, journal: Option<Journal>) -> Self {
        let mut deadlines = Deadlines::default();
        let now = Instant::now();
        for (lease, ttl_s) in mvcc.leases() {
            deadlines.set(lease, now, ttl_s);
        }
        let tail = journal.as_ref().map(|_| Tail { durable_revision: mvcc.revision(), ..Tail::default() });
        Self {
            state: Mutex::new(State { mvcc, deadlines, tail }),
            changed: signal::Sender::new(()),
            journal: journal.map(Mutex::new),
            durable: signal::Sender::new(Durable::default()),
        }
    }

    /// Whether calls can still be executed.
    pub(super) fn check(&self) -> Result<(), BackendError> {
        match &self.durable.borrow().failed {
            None => Ok(()),
            Some(why) => Err(BackendError::Unavailable(why.to_string())),
        }
    }

    /// Ends the leases that have run out, does something with the state, sees to it that changes
    /// are written down and tells those who wait for changes. Also returns up to where the journal
    /// must be for what was seen.
    pub(super) fn with_state<T>(self: &Arc<Self>, action: impl FnOnce(&mut State, Instant) -> T) -> (T, u64) {
        let now = Instant::now();
        let mut state = self.state();
        let before = (state.mvcc.revision(), state.deadlines.next());
        while let Some(lease) = state.deadlines.due(now) {
            // The two know the same leases; were it not so, this one would be due for ever.
            if state.end_lease(lease).is_err() {
                state.deadlines.remove(lease);
            }
        }
        let result = action(&mut state, now);
        let changed = before != (state.mvcc.revision(), state.deadlines.next());
        let (position, start_drain) = state.tail.as_mut().map_or((0, false), Tail::hand_over);
        drop(state);
        if start_drain {
            let drain = Drain { shared: Arc::clone(self), done: false };
            tokio::task::spawn_blocking(move || drain.run());
        }
        if changed {
            self.changed.send_replace(());
        }
        (result, position)
    }

    /// Waits until everything up to a position is durable. An error says why it may never be.
    pub(super) async fn settled(&self, position: u64) -> Result<(), String> {
        if self.journal.is_none() {
            return Ok(());
        }
        let mut durable = self.durable.subscribe();
        let settled =
            durable.wait_for(|durable| durable.position >= position || durable.failed.is_some()).await;
        match settled {
            Ok(durable) if durable.position >= position => Ok(()),
            Ok(durable) => Err(durable.failed.as_deref().unwrap_or_default().to_owned()),
            Err(_) => Err("the store is gone".to_owned()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock; were it to happen in a test, that test has failed
        // already.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that writes to the journal whatever is pending, until nothing is.
struct Drain {
    shared: Arc<Shared>,
    done: bool,
}

impl Drain {
    fn run(mut self) {
        if let Some(journal) = &self.shared.journal {
            let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
            while self.write(&mut journal) {}
        }
        self.done = true;
    }

    /// Writes what is pending. Whether there was anything and it went well.
    fn write(&self, journal: &mut Journal) -> bool {
        let (batch, position, revision, snapshot) = {
            let mut state = self.shared.state();
            let revision = state.mvcc.revision();
            let State { mvcc, tail: Some(tail), .. } = &mut *state else { return false };
            if tail.pending.is_empty() {
                tail.draining = false;
                return false;
            }
            let batch = std::mem::take(&mut tail.pending);
            let rewrite = std::mem::take(&mut tail.compacted) && journal.is_worth_rewriting();
            // A snapshot holds what is pending, too.
            (batch, tail.position, revision, rewrite.then(|| mvcc.snapshot()))
        };
        let written = match &snapshot {
            None => journal.append(&batch),
            Some(snapshot) => match journal.write_new(snapshot) {
                Ok(new) => journal.adopt(new),
                Err(problem) => {
                    warn!(%problem, path = %journal.path().display(), "go on with the journal as it is");
                    journal.append(&batch)
                }
            },
        };
        match written {
            Ok(()) => {
                if let Some(tail) = &mut self.shared.state().tail {
                    tail.durable_revision = revision;
                }
                self.shared.durable.send_modify(|durable| durable.position = position);
            }
            Err(problem) => {
                let why = format!("the journal {} cannot be written: {problem}", journal.path().display());
                error!(why, "stop, because nothing more can be made durable");
                self.shared.durable.send_modify(|durable| durable.failed = Some(why.into()));
            }
        }
        self.shared.changed.send_replace(());
        self.shared.check().is_ok()
    }
}

impl Drop for Drain {
    /// A runtime that ends drops what it has not begun; another one may go on with this store.
    fn drop(&mut self) {
        if !self.done
            && let Some(tail) = &mut self.shared.state().tail
        {
            tail.draining = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::backend::embedded::{Durability, Embedded};
    use crate::backend::{Backend, KeyRange, Op, RangeRequest, ReadBackend, Txn};

    fn put(key: &'static str) -> Txn {
        Txn { then: vec![Op::put(key, "v")], ..Txn::default() }
    }

    #[tokio::test]
    async fn a_journal_that_fails_stops_the_store() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("journal");
        let store = Embedded::open_with(&path, Durability::System).unwrap();
        store.txn(put("before")).await.unwrap();
        let mut watch = store.watch(KeyRange::key("lost"), 3).await.unwrap();
        store.shared.journal.as_ref().unwrap().lock().unwrap().sabotage();

        let lost = store.txn(put("lost")).await.unwrap_err();
        assert!(matches!(&lost, BackendError::OutcomeUnknown(why) if why.contains("journal")), "{lost:?}");
        let request =
            RangeRequest { keys: KeyRange::key("lost"), revision: None, limit: 0, keys_only: false };
        let later = store.range(request.clone()).await.unwrap_err();
        assert!(matches!(later, BackendError::Unavailable(_)), "{later:?}");
        let later = store.txn(put("later")).await.unwrap_err();
        assert!(matches!(later, BackendError::Unavailable(_)), "{later:?}");
        let shown = tokio::time::timeout(Duration::from_secs(5), watch.next()).await.unwrap();
        assert!(
            matches!(shown, Err(BackendError::Unavailable(_))),
            "what is not durable is not shown: {shown:?}"
        );

        drop((store, watch));
        let store = Embedded::open(&path).unwrap();
        assert_eq!(store.range(request).await.unwrap().revision, 2);
        store.txn(put("after")).await.unwrap();
    }

    #[tokio::test]
    async fn nothing_is_shown_before_it_is_durable() {
        let patience = Duration::from_millis(100);
        let directory = tempfile::TempDir::new().unwrap();
        let store = Embedded::open(&directory.path().join("journal")).unwrap();
        let mut watch = store.watch(KeyRange::key("k"), 2).await.unwrap();
        // While this thread has the journal, nobody can write to it. It lets go when `release` is
        // dropped.
        let (held, is_held) = std::sync::mpsc::sync_channel::<()>(0);
        let (release, released) = std::sync::mpsc::sync_channel::<()>(0);
        let shared = Arc::clone(&store.shared);
        let holder = std::thread::spawn(move || {
            let _journal = shared.journal.as_ref().unwrap().lock().unwrap();
            drop(held);
            let _ = released.recv();
        });
        let _ = is_held.recv();
        let mut txn = Box::pin(store.txn(put("k")));
        assert!(tokio::time::timeout(patience, &mut txn).await.is_err(), "no answer");
        assert!(tokio::time::timeout(patience, watch.next()).await.is_err(), "no event");
        let request = RangeRequest { keys: KeyRange::key("k"), revision: None, limit: 0, keys_only: false };
        assert!(tokio::time::timeout(patience, store.range(request.clone())).await.is_err(), "no key");
        drop(release);
        holder.join().unwrap();
        assert_eq!(txn.await.unwrap().revision, 2);
        assert_eq!(watch.next().await.unwrap().events.len(), 1);
        assert_eq!(store.range(request).await.unwrap().kvs.len(), 1);
    }

    /// A runtime that ends before the thread has begun must not leave the store waiting for it.
    #[test]
    fn a_store_outlives_its_runtime() {
        let directory = tempfile::TempDir::new().unwrap();
        let store = Embedded::open(&directory.path().join("journal")).unwrap();
        for _ in 0..20 {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                // Polled once: the transaction is done and its writing asked for, then everything
                // is dropped.
                let mut txn = Box::pin(store.txn(put("k")));
                let _ = futures::poll!(&mut txn);
            });
            runtime.shutdown_background();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let last = runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(5), store.txn(put("k"))).await.unwrap().unwrap()
        });
        assert_eq!(last.revision, 22);
    }
}
