//! The barrier: reads that must be current on any broker.
//!
//! A linearizable read of every head, *sent after the waiter arrived*, then waiting until the state covers them. Many
//! waiters share the next read; none shares one that was already sent. It writes nothing.

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::Replica;
use crate::backend::{BackendError, KeyRange, Op, OpResponse, Txn};
use crate::keys::Key;
use crate::limits::BACKEND_TIMEOUT;
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
        while self.queue.recv_many(&mut waiting, super::BARRIER_QUEUE).await > 0 {
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
        let snapshot = KeyRange::Key(shared.keys.encode(&Key::Snapshot));
        let read = Txn { then: vec![Op::Range(shared.keys.heads()), Op::Range(snapshot)], ..Txn::default() };
        let mut answer = shared.backend.txn(read).await.map_err(BarrierError::Backend)?;
        let pointer = answer.responses.pop();
        let heads = answer.responses.pop();
        let (Some(OpResponse::Range(heads)), Some(OpResponse::Range(pointer))) = (heads, pointer) else {
            return Err(BarrierError::Backend(BackendError::Broken(
                "a range answered with something else".into(),
            )));
        };
        let heads: Vec<(i64, u64)> = heads
            .iter()
            .filter_map(|kv| match shared.keys.parse(&kv.key) {
                Some(Key::Head(incarnation)) => Some((incarnation, decode_head(&kv.value)?)),
                _ => None,
            })
            .collect();
        let trimmed_to =
            pointer.first().and_then(|kv| SnapshotValue::decode(&kv.value).ok()).map_or(0, |s| s.trimmed_to);
        if self.replica.read(|view| view.revision) < trimmed_to {
            self.replica.request_rebuild();
        }
        let mut applied = shared.applied.subscribe();
        let covered = |_: &i64| {
            self.replica
                .read(|view| heads.iter().all(|&(incarnation, head)| view.state.head(incarnation) >= head))
        };
        // An incarnation whose head was read may have been retired since; the read's own revision settles that.
        let revision = answer.revision;
        applied
            .wait_for(|&r| r >= revision || covered(&r))
            .await
            .map(|_| ())
            .map_err(|_| BarrierError::Closed)
    }
}

/// The bytes of a head.
pub(crate) fn encode_head(sequence: u64) -> bytes::Bytes {
    sequence.to_string().into()
}

/// The number in a head.
pub(crate) fn decode_head(bytes: &[u8]) -> Option<u64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}
