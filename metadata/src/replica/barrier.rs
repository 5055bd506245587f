//! The barrier: reads that must be current on any broker.
//!
//! A linearizable read of how many transactions the log has had, *sent after the waiter arrived*,
//! then waiting until so many are applied. Many waiters share the next read; none shares one that
//! was already sent. It writes nothing.

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::{Commits, Replica};
use crate::backend::{BackendError, KeyRange, Op, OpResponse, Txn};
use crate::keys::Key;
use crate::limits::{BACKEND_TIMEOUT, BARRIER_QUEUE};
use crate::values::{SnapshotValue, Value};

/// Why it cannot be said that the state is current.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarrierError {
    /// The metadata store does not answer.
    #[error("the metadata store does not answer: {0}")]
    Backend(BackendError),
    /// The log did not reach this broker in time.
    #[error("the log did not reach this broker in time")]
    Behind,
    /// The metadata store has fewer transactions of the log than this broker has applied.
    #[error("the metadata store counts {backend} transactions of the log, and {known} are applied here")]
    Lost {
        /// How many are applied here.
        known: i64,
        /// How many the metadata store counts.
        backend: i64,
    },
    /// The broker is stopping.
    #[error("the broker is stopping")]
    Closed,
}

type Reply = oneshot::Sender<Result<(), BarrierError>>;

/// Serves barriers; run it for as long as the replica is used.
#[derive(Debug)]
pub struct BarrierLoop {
    replica: Replica,
    queue: mpsc::Receiver<Reply>,
}

impl BarrierLoop {
    pub(super) fn new(replica: Replica, queue: mpsc::Receiver<Reply>) -> Self {
        Self { replica, queue }
    }

    /// Serves until it is dropped.
    pub async fn run(mut self) {
        let mut waiting = Vec::new();
        // Whoever is in the queue now arrived before the read below is sent.
        while self.queue.recv_many(&mut waiting, BARRIER_QUEUE).await > 0 {
            let outcome = match timeout(BACKEND_TIMEOUT, self.pass()).await {
                Ok(outcome) => outcome,
                Err(_) => Err(BarrierError::Behind),
            };
            for reply in waiting.drain(..) {
                // A waiter that went away needs no answer.
                let _ = reply.send(outcome.clone());
            }
        }
    }

    async fn pass(&self) -> Result<(), BarrierError> {
        let shared = &self.replica.shared;
        let [commits, snapshot] =
            [Key::Commits, Key::Snapshot].map(|k| KeyRange::Key(shared.keys.encode(&k)));
        let read = Txn { then: vec![Op::Range(commits), Op::Range(snapshot)], ..Txn::default() };
        let before = self.replica.read(|view| view.commits.count);
        let answer = shared.backend.txn(read).await.map_err(BarrierError::Backend)?;
        let [OpResponse::Range(commits), OpResponse::Range(pointer)] = &answer.responses[..] else {
            return Err(BarrierError::Backend(BackendError::Broken(
                "a range answered with something else".into(),
            )));
        };
        let newest = commits.first().map(Commits::of).unwrap_or_default();
        if newest.count < before {
            // It was restored from a backup: reading the state anew says so, and ends the broker.
            self.replica.request_rebuild();
            return Err(BarrierError::Lost { known: before, backend: newest.count });
        }
        let trimmed_to =
            pointer.first().and_then(|kv| SnapshotValue::decode(&kv.value).ok()).map_or(0, |s| s.trimmed_to);
        let (revision, known) = self.replica.read(|view| (view.revision, view.commits));
        if revision < trimmed_to || (revision >= newest.revision && known.count < newest.count) {
            // It will not come through the watch: it is trimmed, or the watch is beyond it already.
            self.replica.request_rebuild();
        }
        self.replica.note_committed(newest.revision);
        let mut applied = shared.applied.subscribe();
        let covered = |_: &i64| self.replica.read(|view| view.commits.count >= newest.count);
        applied.wait_for(covered).await.map(|_| ()).map_err(|_| BarrierError::Closed)
    }
}
