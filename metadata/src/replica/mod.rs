//! A broker's copy of the log's meaning, kept current by one loop.
//!
//! [`Replica::open`] reads everything at one revision; [`ReplicaLoop::run`] then follows the watch
//! and applies each revision when it is complete. Whatever goes wrong with the watch (it is cut,
//! compacted away, stuck, or skips a sequence number) ends in one of two ways: it is opened again
//! from the next revision, or the state is thrown away and read anew. Reads of what is known go on
//! meanwhile.

mod barrier;
mod follow;
mod load;
mod waiters;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use strandline_storage::store::Store;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::error;
use uuid::Uuid;

pub use self::barrier::BarrierError;
pub use self::barrier::BarrierLoop;
pub use self::follow::ReplicaLoop;
pub(crate) use self::load::pages;
use self::load::{Known, Loaded, Replayed};
pub use self::load::{LoadError, replay_from};
pub use self::waiters::Subscription;
use self::waiters::Waiters;
use crate::backend::{Backend, BackendError, KeyValue, RangeRequest};
use crate::evidence::{Evidence, Restored};
use crate::keys::{Key, Keyspace};
use crate::limits::BARRIER_QUEUE;
use crate::names::Names;
use crate::snapshot::SnapshotError;
use crate::state::{Effects, Position, State};
use crate::values::SnapshotValue;

/// The state and the caches of plain keys, as of the same revision. What is published never
/// changes, and a clone costs nothing that grows with it.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// What the log says.
    pub state: State,
    /// What the plain keys say.
    pub names: Names,
    /// The value of `snapshot`, if there is one yet.
    pub snapshots: Option<Arc<SnapshotValue>>,
    /// Mod revision of `snapshot`; 0 while there is none.
    pub snapshots_revision: i64,
    /// The newest revision that is applied; unlike the state's own, it also counts revisions
    /// without a record.
    pub revision: i64,
    /// The transactions of the log's writers that are applied.
    pub commits: Commits,
}

/// How many transactions the log has had. Each puts one key, and the key's version counts them: so
/// whoever follows sees at the next one, whoever wrote it, that one is missing, and applies nothing
/// behind a gap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Commits {
    /// How many.
    pub count: i64,
    /// The revision of the last; 0 before the first.
    pub revision: i64,
}

impl Commits {
    /// What the key says.
    pub(crate) fn of(kv: &KeyValue) -> Self {
        Self { count: kv.version, revision: kv.mod_revision }
    }
}

/// A record of this broker disappeared into a snapshot before its outcome was seen: it is
/// committed, but with what result is not known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the record is committed, but its outcome was lost while the state was rebuilt")]
pub struct OutcomeLost;

/// What the replica has seen and done since it was opened, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaCounters {
    /// Records applied.
    pub records: u64,
    /// Times the state was thrown away and read anew.
    pub rebuilds: u64,
    /// Times a watch was opened again.
    pub rewatches: u64,
    /// Nanoseconds spent applying.
    pub apply_nanos: u64,
    /// Bytes of log records applied since the newest snapshot.
    pub log_bytes_since_snapshot: u64,
    /// Records applied since the newest snapshot.
    pub records_since_snapshot: u64,
}

/// A cheap handle to the copy.
#[derive(Clone, Debug)]
pub struct Replica {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    backend: Arc<dyn Backend>,
    keys: Keyspace,
    store: Arc<dyn Store>,
    /// The newest view. Each step of the loop puts another one in its place.
    view: ArcSwap<View>,
    applied: watch::Sender<i64>,
    committed: watch::Sender<i64>,
    rebuild: tokio::sync::Notify,
    outcomes: Mutex<BTreeMap<(i64, u64), oneshot::Sender<Effects>>>,
    waiters: Arc<Waiters>,
    barrier: mpsc::Sender<oneshot::Sender<Result<(), BarrierError>>>,
    counters: Mutex<ReplicaCounters>,
    checkpoint: Mutex<CheckpointCapture>,
    oddity: Mutex<Option<Instant>>,
    observer: Box<dyn ApplyObserver>,
}

/// A copy of the state exactly at a checkpoint, taken for whoever writes the snapshot.
#[derive(Debug, Default)]
struct CheckpointCapture {
    armed: bool,
    state: Option<(State, Commits)>,
}

/// Hears of every record of the log as it is applied, in order. It must not block.
pub trait ApplyObserver: Send + Sync + std::fmt::Debug {
    /// A record was applied. `time_ms` is the wall clock of its writer.
    fn applied(&self, at: Position, time_ms: i64, effects: &Effects);

    /// A registration was there when the state was read: when it was put nobody has seen.
    fn found(&self, _node_id: i32, _incarnation: i64) {}

    /// A broker has put its registration just now. `time_ms` is its wall clock.
    fn registered(&self, _node_id: i32, _incarnation: i64, _time_ms: i64) {}
}

/// Why the metadata store could not be compared with the bucket, or what came of it.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// The metadata store is not the one that the bucket's objects were committed to.
    #[error("{0}: it was restored from a backup")]
    Restored(Restored),
    /// The bucket does not answer.
    #[error(transparent)]
    Store(#[from] SnapshotError),
    /// The metadata store does not answer.
    #[error(transparent)]
    Barrier(#[from] BarrierError),
}

/// Reads what the metadata store says, whatever the bucket says beside it: for an operator who goes
/// on from a backup.
///
/// # Errors
///
/// If it cannot be read, or does not suffice for a start.
pub async fn load_as_it_is(
    backend: &dyn Backend,
    keys: &Keyspace,
    store: &dyn Store,
) -> Result<View, LoadError> {
    Ok(load::load_knowing(backend, keys, store, &Known::default()).await?.view)
}

/// An observer that hears nothing.
#[derive(Clone, Copy, Debug)]
pub struct NoObserver;

impl ApplyObserver for NoObserver {
    fn applied(&self, _: Position, _: i64, _: &Effects) {}
}

impl Replica {
    /// Reads snapshot, log and plain keys at one revision. The loops must then be run for as long
    /// as the replica is used.
    pub async fn open(
        backend: Arc<dyn Backend>,
        keys: Keyspace,
        store: Arc<dyn Store>,
        observer: Box<dyn ApplyObserver>,
    ) -> Result<(Self, ReplicaLoop, BarrierLoop), LoadError> {
        let loaded = load::load(backend.as_ref(), &keys, store.as_ref(), (0, 0)).await?;
        let (barrier, barrier_queue) = mpsc::channel(BARRIER_QUEUE);
        let Loaded { view: loaded, replayed, oddity } = loaded;
        let revision = loaded.revision;
        let shared = Arc::new(Shared {
            backend,
            keys,
            store,
            view: ArcSwap::from_pointee(loaded.clone()),
            applied: watch::Sender::new(revision),
            committed: watch::Sender::new(0),
            rebuild: tokio::sync::Notify::new(),
            outcomes: Mutex::default(),
            waiters: Arc::default(),
            barrier,
            counters: Mutex::default(),
            checkpoint: Mutex::default(),
            oddity: Mutex::default(),
            observer,
        });
        let replica = Self { shared };
        replica.note_loaded(replayed, oddity);
        Ok((
            replica.clone(),
            ReplicaLoop::new(replica.clone(), loaded),
            BarrierLoop::new(replica, barrier_queue),
        ))
    }

    /// The newest view. It stays as it is, however long it is held.
    pub fn view(&self) -> Arc<View> {
        self.shared.view.load_full()
    }

    /// Looks at the newest view. Holds up nobody.
    pub fn read<R>(&self, look: impl FnOnce(&View) -> R) -> R {
        look(&self.shared.view.load())
    }

    /// The newest state. It stays as it is, however long it is held.
    pub fn state(&self) -> State {
        self.read(|view| view.state.clone())
    }

    /// The backend that this replica follows.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.shared.backend
    }

    /// The keys of the cluster.
    pub fn keys(&self) -> &Keyspace {
        &self.shared.keys
    }

    /// What was counted so far.
    pub fn counters(&self) -> ReplicaCounters {
        *self.shared.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Revisions that this broker knows to be committed and has not applied yet.
    pub fn lag_revisions(&self) -> i64 {
        (*self.shared.committed.borrow() - *self.shared.applied.borrow()).max(0)
    }

    /// Waits until everything up to `revision` is applied.
    pub async fn wait_applied(&self, revision: i64) {
        let mut applied = self.shared.applied.subscribe();
        // The sender lives in `shared`, which `self` holds: waiting cannot fail.
        let _ = applied.wait_for(|&r| r >= revision).await;
    }

    /// Waits until the state covers everything that any broker had committed when this was called.
    /// Fails if the metadata store cannot be reached.
    pub async fn barrier(&self) -> Result<(), BarrierError> {
        let (reply, answer) = oneshot::channel();
        self.shared.barrier.send(reply).await.map_err(|_| BarrierError::Closed)?;
        answer.await.unwrap_or(Err(BarrierError::Closed))
    }

    /// The incarnations that are registered. What an incarnation that is not among them has
    /// committed is all applied here, and it never commits anything again: create revisions only
    /// grow.
    pub async fn registered(&self) -> Result<BTreeSet<i64>, BarrierError> {
        let keys = self.shared.keys.brokers();
        let read = RangeRequest { keys, revision: None, limit: 0, keys_only: true };
        let found = self.shared.backend.range(read).await.map_err(BarrierError::Backend)?;
        // Only after they were seen to be gone: so everything that they ever committed is covered.
        self.barrier().await?;
        Ok(found.kvs.iter().map(|kv| kv.create_revision).collect())
    }

    /// A subscription that is woken when one of these partitions moves, or when the state was
    /// rebuilt.
    /// Cancellation-safe.
    pub async fn subscribe(&self, partitions: Vec<(Uuid, u32)>) -> Subscription {
        self.shared.waiters.subscribe(partitions).await
    }

    /// Announces interest in the outcome of a record before it is sent. The receiver fails if the
    /// outcome is lost.
    pub(crate) fn expect(&self, incarnation: i64, sequence: u64) -> oneshot::Receiver<Effects> {
        let (sender, receiver) = oneshot::channel();
        let mut outcomes = self.shared.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        // Those who gave up are swept when someone new comes, so the map never holds more than what
        // is in flight.
        outcomes.retain(|_, waiting| !waiting.is_closed());
        outcomes.insert((incarnation, sequence), sender);
        receiver
    }

    /// Notes that a transaction of the log is committed at `revision`: it must come through the
    /// watch soon.
    pub(crate) fn note_committed(&self, revision: i64) {
        self.shared.committed.send_if_modified(|known| {
            let newer = revision > *known;
            *known = revision.max(*known);
            newer
        });
    }

    /// Compares the metadata store with the bucket's beacon, before something is deleted. A broker
    /// whose metadata store was restored reads everything anew, and ends.
    ///
    /// # Errors
    ///
    /// If it was restored, or if one of both does not answer.
    pub async fn check_beacon(&self) -> Result<(), EvidenceError> {
        self.check(Evidence::read_beacon(self.shared.store.as_ref()).await?).await.map(|_| ())
    }

    /// The same with everything that the bucket knows. Gives what is odd, if anything is.
    ///
    /// # Errors
    ///
    /// As [`Self::check_beacon`].
    pub async fn check_bucket(&self) -> Result<Option<String>, EvidenceError> {
        self.check(Evidence::read(self.shared.store.as_ref()).await?).await
    }

    async fn check(&self, evidence: Evidence) -> Result<Option<String>, EvidenceError> {
        // Sent after the evidence was read: what that counts is applied behind it.
        self.barrier().await?;
        evidence.check(&self.view()).map_err(|restored| {
            error!(%restored, "the metadata store is not the one that the bucket knows");
            self.request_rebuild();
            EvidenceError::Restored(restored)
        })
    }

    /// When something odd was last found as the state was read; `None` if never.
    pub fn odd_since(&self) -> Option<Instant> {
        *self.shared.oddity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state was read. What lies behind the newest snapshot counts for the next one, whether it
    /// came through the watch or not.
    fn note_loaded(&self, replayed: Replayed, oddity: Option<String>) {
        let mut counters = self.shared.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters.records_since_snapshot = replayed.records;
        counters.log_bytes_since_snapshot = replayed.bytes;
        drop(counters);
        for (node_id, broker) in self.view().names.brokers() {
            self.shared.observer.found(*node_id, broker.incarnation);
        }
        if let Some(oddity) = oddity {
            error!(oddity, "the bucket holds what this log does not know: orphans stay for an hour");
            *self.shared.oddity.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
    }

    /// A snapshot was written: the counters that decide about the next one start over.
    pub(crate) fn note_snapshot(&self) {
        let mut counters = self.shared.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters.log_bytes_since_snapshot = 0;
        counters.records_since_snapshot = 0;
    }

    /// From now on, the state at the next checkpoint is kept for [`Self::take_checkpoint`].
    pub(crate) fn arm_checkpoint(&self) {
        *self.lock_checkpoint() = CheckpointCapture { armed: true, state: None };
    }

    /// The state at the checkpoint, with the transaction that committed it, if one came since
    /// [`Self::arm_checkpoint`].
    pub(crate) fn take_checkpoint(&self) -> Option<(State, Commits)> {
        std::mem::take(&mut *self.lock_checkpoint()).state
    }

    /// The metadata store's newest revision, read linearizably.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub async fn newest_revision(&self) -> Result<i64, BackendError> {
        let keys = crate::backend::KeyRange::Key(self.shared.keys.encode(&Key::Snapshot));
        let request = RangeRequest { keys, revision: None, limit: 1, keys_only: true };
        Ok(self.shared.backend.range(request).await?.revision)
    }

    fn lock_checkpoint(&self) -> std::sync::MutexGuard<'_, CheckpointCapture> {
        self.shared.checkpoint.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first sequence number up to `head` that an incarnation still has in the log.
    pub(crate) async fn log_span_first(
        &self,
        incarnation: i64,
        head: u64,
    ) -> Result<Option<u64>, BackendError> {
        let keys = self.shared.keys.log_span(incarnation, 0, head + 1);
        let found = self
            .shared
            .backend
            .range(RangeRequest { keys, revision: None, limit: 1, keys_only: false })
            .await?;
        Ok(found.kvs.first().and_then(|kv| match self.shared.keys.parse(&kv.key) {
            Some(Key::Log { sequence, .. }) => Some(sequence),
            _ => None,
        }))
    }

    fn request_rebuild(&self) {
        self.shared.rebuild.notify_one();
    }
}
