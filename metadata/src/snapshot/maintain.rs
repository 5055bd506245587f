//! Keeping etcd small: snapshot, move the pointer, trim the log, forget what is gone.
//!
//! One broker does it, chosen by a leased key. Being wrong about that is harmless: two snapshots at
//! once race for the pointer, which only one can move, and trimming deletes only what a listed
//! snapshot covers. Any step may be the last one that a broker does; the next pass starts over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use strandline_storage::clock::Clock;
use strandline_storage::store::{Store, delete_while_it_works};
use tracing::{error, info, warn};

use super::shelf::Shelf;
use super::{SnapshotError, SnapshotStamp, SnapshotWriter};
use crate::backend::{BackendError, Compare, KeyRange, Op, RangeRequest};
use crate::commit::{Change, CommitError, Committer, SessionCell};
use crate::keys::Key;
use crate::limits::{SNAPSHOTS, TRIM_KEYS};
use crate::record::{Body, Checkpoint, IncarnationRetired};
use crate::replica::{BarrierError, EvidenceError, Replica, View};
use crate::values::{LeaderValue, SnapshotRef, SnapshotValue, VALUE_FORMAT, Value};

/// Why a pass ended early. The next one starts over.
#[derive(Debug, thiserror::Error)]
pub enum MaintainError {
    /// A record or a change could not be committed.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The snapshot could not be written or read back.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The metadata store did not answer.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The state was rebuilt while the checkpoint was under way.
    #[error("the state at the checkpoint was not captured")]
    NotCaptured,
    /// It cannot be said who is registered.
    #[error(transparent)]
    Barrier(#[from] BarrierError),
    /// The metadata store could not be compared with the bucket, or was restored.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// This broker was stopped after its checkpoint, and another one has written a newer snapshot
    /// since.
    #[error("another broker has written a newer snapshot")]
    Overtaken,
}

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Maintained {
    /// Revision of the snapshot.
    pub revision: i64,
    /// Transactions that deleted log keys.
    pub trims: u64,
    /// Incarnations that were forgotten.
    pub retired: u64,
    /// Snapshot objects that were deleted.
    pub objects_deleted: u64,
}

/// Writes snapshots and trims what they cover.
#[derive(Debug)]
pub struct Maintainer {
    replica: Replica,
    committer: Committer,
    sessions: SessionCell,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    trusted_ms: Option<i64>,
    writer: SnapshotWriter,
    /// The snapshots that are kept beside those that are listed.
    shelf: Shelf,
    /// First log key of each incarnation that may still be there, so that no pass looks at what is
    /// long gone.
    trimmed: BTreeMap<i64, u64>,
}

impl Maintainer {
    /// A maintainer for this broker; it does nothing until it is asked to.
    pub fn new(
        replica: Replica,
        committer: Committer,
        sessions: SessionCell,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let (writer, shelf, trimmed) = (SnapshotWriter::default(), Shelf::default(), BTreeMap::new());
        Self { replica, committer, sessions, store, clock, trusted_ms: None, writer, shelf, trimmed }
    }

    /// Keeps snapshots for so long after they were written, beside the newest ones: a backup of the
    /// metadata store that is not older can be restored.
    #[must_use]
    pub fn retaining(mut self, retention: Duration) -> Self {
        self.shelf = Shelf::new(retention);
        self
    }

    /// What time it is, in ms since 1970, by a clock that may decide that a snapshot is old; `None`
    /// if there is none, and from the beginning.
    pub fn trust(&mut self, now_ms: Option<i64>) {
        self.trusted_ms = now_ms;
    }

    /// Forgets what it knows of the bucket: another broker may have changed it.
    pub fn forget_bucket(&mut self) {
        self.shelf.forget();
    }

    /// The revision of the oldest snapshot that somebody may start from, listed or kept for a
    /// backup: what died since then is still needed. `None` if there is no snapshot.
    ///
    /// # Errors
    ///
    /// If the store does not answer.
    pub async fn oldest_snapshot(&mut self) -> Result<Option<i64>, SnapshotError> {
        let listed = self
            .replica
            .read(|view| view.snapshots.as_ref().and_then(|s| s.snapshots.last()).map(|s| s.revision));
        let stored = self.shelf.oldest(self.store.as_ref()).await?;
        Ok(listed.into_iter().chain(stored).min())
    }

    /// Writes a snapshot and cleans up behind it.
    pub async fn run_once(&mut self) -> Result<Maintained, MaintainError> {
        self.replica.arm_checkpoint();
        self.change(Change { body: Some(Body::Checkpoint(Checkpoint {})), ..Change::default() }).await?;
        let (state, commits) = self.replica.take_checkpoint().ok_or(MaintainError::NotCaptured)?;
        let (pointer, pointer_revision) = self.pointer();
        let previous = pointer.as_ref().and_then(|p| p.snapshots.first());
        // The view may be far beyond the state that was captured. A snapshot of an older state must
        // not push out newer ones: the log that it needs may be trimmed.
        if previous.is_some_and(|newest| newest.revision >= state.revision()) {
            return Err(MaintainError::Overtaken);
        }
        let stamp = SnapshotStamp { commits: commits.count, written_at_ms: self.clock.now_ms() };
        let written = self.writer.write(self.store.as_ref(), &state, stamp, previous).await?;
        let revision = written.revision;
        let moved = self.move_pointer(pointer, pointer_revision, written).await?;
        let mut done = Maintained { revision, ..Maintained::default() };
        // Only now, with the pointer moved, may anything go that the snapshots cover.
        if let Some(second) = moved.snapshots.get(1) {
            let heads = self.heads_at(second).await?;
            done.trims = self.trim_log(&heads).await?;
            done.retired = self.retire_incarnations(&heads).await?;
        }
        done.objects_deleted = self.delete_unlisted(&moved).await?;
        info!(?done, "snapshot written");
        Ok(done)
    }

    fn pointer(&self) -> (Option<Arc<SnapshotValue>>, i64) {
        self.replica.read(|view: &View| (view.snapshots.clone(), view.snapshots_revision))
    }

    async fn move_pointer(
        &self,
        pointer: Option<Arc<SnapshotValue>>,
        pointer_revision: i64,
        written: SnapshotRef,
    ) -> Result<SnapshotValue, MaintainError> {
        let (mut snapshots, trimmed_to) =
            pointer.map_or((Vec::new(), 0), |before| (before.snapshots.clone(), before.trimmed_to));
        snapshots.insert(0, written);
        snapshots.truncate(SNAPSHOTS);
        // Trimmed to at most the second-newest: if the newest turns out bad, the log since the one
        // before is there.
        let trimmed_to = snapshots.get(1).map_or(0, |s| s.revision).max(trimmed_to);
        let moved = SnapshotValue { format: VALUE_FORMAT, snapshots, trimmed_to };
        assert!(
            moved.snapshots.is_sorted_by(|newer, older| newer.revision > older.revision),
            "a snapshot goes in front of older ones"
        );
        assert!(
            moved.snapshots.get(1).is_none_or(|second| moved.trimmed_to <= second.revision),
            "the log since the second-newest snapshot is kept"
        );
        let key = self.replica.keys().encode(&Key::Snapshot);
        let change = Change {
            compares: vec![Compare::ModRevision(key.clone(), pointer_revision)],
            ops: vec![Op::put(key, moved.encode())],
            body: None,
        };
        self.change(change).await?;
        Ok(moved)
    }

    /// The head of every incarnation at a snapshot: all records up to there have revisions that it
    /// covers.
    async fn heads_at(&self, snapshot: &SnapshotRef) -> Result<BTreeMap<i64, u64>, MaintainError> {
        Ok(super::heads(self.store.as_ref(), snapshot).await?)
    }

    async fn trim_log(&mut self, heads: &BTreeMap<i64, u64>) -> Result<u64, MaintainError> {
        let mut trims = 0;
        for (&incarnation, &head) in heads {
            let mut first = match self.trimmed.get(&incarnation) {
                Some(&first) => first,
                None => self.first_key(incarnation, head).await?,
            };
            while first <= head {
                let end = (first + TRIM_KEYS).min(head + 1);
                let span = self.replica.keys().log_span(incarnation, first, end);
                self.change(Change { ops: vec![Op::Delete(span)], ..Change::default() }).await?;
                first = end;
                trims += 1;
            }
            self.trimmed.insert(incarnation, first);
        }
        self.trimmed.retain(|incarnation, _| heads.contains_key(incarnation));
        Ok(trims)
    }

    /// The first log key of an incarnation that is still there; beyond `head` if none is.
    async fn first_key(&self, incarnation: i64, head: u64) -> Result<u64, MaintainError> {
        let keys = self.replica.log_span_first(incarnation, head).await?;
        Ok(keys.unwrap_or(head + 1))
    }

    /// Forgets incarnations that are not registered any more and whose whole log is trimmed.
    async fn retire_incarnations(&mut self, trimmed: &BTreeMap<i64, u64>) -> Result<u64, MaintainError> {
        let registered = self.replica.registered().await?;
        let gone: Vec<i64> = self.replica.read(|view| {
            let unregistered = view.state.incarnations().iter().filter(|(i, _)| !registered.contains(i));
            unregistered.filter(|(i, known)| trimmed.get(i) == Some(&known.head)).map(|(&i, _)| i).collect()
        });
        for &incarnation in &gone {
            let head = KeyRange::Key(self.replica.keys().encode(&Key::Head(incarnation)));
            let body = Body::IncarnationRetired(IncarnationRetired { incarnation });
            self.change(Change { ops: vec![Op::Delete(head)], body: Some(body), compares: Vec::new() })
                .await?;
            self.trimmed.remove(&incarnation);
        }
        Ok(gone.len() as u64)
    }

    /// Deletes the objects of snapshots that are older than the newest, not listed, and not kept
    /// for a backup.
    async fn delete_unlisted(&mut self, pointer: &SnapshotValue) -> Result<u64, MaintainError> {
        if let Some(oddity) = self.replica.check_bucket().await? {
            warn!(oddity, "no snapshot is deleted");
            return Ok(0);
        }
        let mut listed = BTreeSet::new();
        for snapshot in &pointer.snapshots {
            listed.extend(super::objects_of(self.store.as_ref(), snapshot).await?);
        }
        let newest = pointer.snapshots.first().map_or(0, |s| s.revision);
        let store = self.store.clone();
        let old = self.shelf.sort_out(store.as_ref(), newest, &listed, self.trusted_ms).await?;
        let mut deleted = 0;
        for (key, done) in old.iter().zip(delete_while_it_works(self.store.as_ref(), &old).await) {
            match done {
                Ok(()) => deleted += 1,
                // It is found again by the next pass, as are those that were not tried.
                Err(error) => {
                    warn!(object = key.as_str(), %error, "an old snapshot object could not be deleted");
                }
            }
        }
        Ok(deleted)
    }

    async fn change(&self, change: Change) -> Result<(), MaintainError> {
        self.committer.change(self.clock.now_ms(), change).await?;
        Ok(())
    }

    /// Whether this broker runs the background job `job`; takes the job over if nobody does. The
    /// key is attached to the broker's lease, so it goes when the broker goes.
    pub async fn lead(&self, job: &str, lease: i64) -> Result<bool, MaintainError> {
        let Some(session) = self.sessions.current() else { return Ok(false) };
        let key = self.replica.keys().encode(&Key::Leader(job.to_owned()));
        let read =
            RangeRequest { keys: KeyRange::Key(key.clone()), revision: None, limit: 1, keys_only: false };
        let mut compares = vec![Compare::CreateRevision(key.clone(), 0)];
        if let Some(kv) = self.replica.backend().range(read).await?.kvs.first() {
            match LeaderValue::decode(&kv.value) {
                Ok(leader) => return Ok(leader.incarnation == session.incarnation),
                Err(error) => {
                    error!(job, %error, "who runs a job cannot be read: this broker takes it over");
                    compares = vec![Compare::ModRevision(key.clone(), kv.mod_revision)];
                }
            }
        }
        let leader =
            LeaderValue { format: VALUE_FORMAT, node_id: session.node_id, incarnation: session.incarnation };
        let change =
            Change { compares, ops: vec![Op::Put { key, value: leader.encode().into(), lease }], body: None };
        match self.change(change).await {
            Ok(()) => Ok(true),
            Err(MaintainError::Commit(CommitError::Conflict)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
