//! Writing the commit log: the only place that puts a key under `log/` or `heads/`, or the key `commits`.
//!
//! One transaction of a broker is in flight at a time, whatever it carries. Each compares two things: that the
//! broker's registration still has the create revision that it got (invariant 5), and that the head of this
//! incarnation is the sequence number before (so no number is ever used twice). Flushes that are ready share a
//! transaction; a proposal with compares of its own never shares one. Each puts `commits` as well, whose version so
//! counts the transactions of all brokers: whoever follows them notices if a watch leaves one out.

mod split;
mod writer;

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

pub use self::writer::LogLoop;
use crate::backend::{BackendError, Compare, Op};
use crate::limits::PROPOSAL_QUEUE;
use crate::record::{Body, Flush};
use crate::replica::Replica;
use crate::state::{BatchOutcome, Effects};

/// A registration under which a broker may commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// The broker.
    pub node_id: i32,
    /// Create revision of its registration.
    pub incarnation: i64,
}

/// The current session of this broker, if it has one. Whoever finds out that it is over ends it.
#[derive(Clone, Debug)]
pub struct SessionCell {
    current: Arc<watch::Sender<Option<Session>>>,
}

impl Default for SessionCell {
    fn default() -> Self {
        Self { current: Arc::new(watch::Sender::new(None)) }
    }
}

impl SessionCell {
    /// A session begins.
    pub fn begin(&self, session: Session) {
        self.current.send_replace(Some(session));
    }

    /// The session of `incarnation` is over. Does nothing if another one has begun since.
    pub fn end(&self, incarnation: i64) {
        self.current.send_if_modified(|current| {
            let matches = current.is_some_and(|s| s.incarnation == incarnation);
            if matches {
                *current = None;
            }
            matches
        });
    }

    /// The current session.
    pub fn current(&self) -> Option<Session> {
        *self.current.borrow()
    }

    /// Waits until the session of `incarnation` is over.
    pub async fn ended(&self, incarnation: i64) {
        let mut receiver = self.current.subscribe();
        // The sender lives in `self`.
        let _ = receiver.wait_for(|s| s.is_none_or(|s| s.incarnation != incarnation)).await;
    }

    /// Waits until there is a session.
    pub async fn begun(&self) -> Session {
        let mut receiver = self.current.subscribe();
        loop {
            if let Some(session) = *receiver.borrow_and_update() {
                return session;
            }
            // The sender lives in `self`.
            let _ = receiver.changed().await;
        }
    }
}

/// Why a proposal did not (or not certainly) become part of the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The broker is not registered now, or not any more: nothing was committed. Try again, here or elsewhere.
    #[error("the broker is not registered")]
    NotRegistered,
    /// One of the proposal's own compares did not hold: look again and decide anew.
    #[error("somebody else changed it first")]
    Conflict,
    /// The metadata store refuses it; nothing was committed.
    #[error(transparent)]
    Refused(BackendError),
    /// It is committed, but this broker lost sight of the outcome.
    #[error("committed, but the outcome was lost while the state was rebuilt")]
    OutcomeLost,
    /// The broker is stopping.
    #[error("the broker is stopping")]
    Closed,
}

impl ProposeError {
    /// Whether it is certain that the proposal is not in the log and never will be.
    pub fn is_certainly_not_committed(&self) -> bool {
        match self {
            Self::Refused(BackendError::OutcomeUnknown(_)) | Self::OutcomeLost | Self::Closed => false,
            Self::NotRegistered | Self::Conflict | Self::Refused(_) => true,
        }
    }
}

/// What became of a flush. A flush that is too large for one record is split, so it may be committed in part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlushOutcome {
    /// The outcomes of the batches that are decided, in the order of the flush; a prefix of them if `error` is set.
    pub outcomes: Vec<BatchOutcome>,
    /// Why the others are not.
    pub error: Option<ProposeError>,
}

/// A plain change: something other than a flush.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// What must hold for it, besides the session.
    pub compares: Vec<Compare>,
    /// Puts and deletes of plain keys.
    pub ops: Vec<Op>,
    /// What the state machine is told. May be empty for a change that it does not need to know.
    pub body: Option<Body>,
}

#[derive(Debug)]
enum Proposal {
    Flush { incarnation: i64, time_ms: i64, flush: Flush, reply: oneshot::Sender<Sent> },
    Change { time_ms: i64, change: Change, reply: oneshot::Sender<Sent> },
}

/// What the writer did with a proposal.
#[derive(Debug, Default)]
struct Sent {
    /// One for each record that is committed, in order: what it brings about once it is applied here.
    committed: Vec<oneshot::Receiver<Effects>>,
    /// Why the records after those are not.
    error: Option<ProposeError>,
    /// The revision of the last transaction; 0 if it is not known.
    revision: i64,
}

/// A flush that was queued.
#[derive(Debug)]
pub struct FlushTicket(oneshot::Receiver<Sent>);

impl FlushTicket {
    /// Waits until the flush is decided and this broker has applied it.
    pub async fn outcome(self) -> FlushOutcome {
        let sent = self.0.await.unwrap_or(Sent { error: Some(ProposeError::Closed), ..Sent::default() });
        let mut outcomes = Vec::new();
        for applied in sent.committed {
            match applied.await {
                Ok(effects) => outcomes.extend(effects.outcomes),
                Err(_) => return FlushOutcome { outcomes, error: Some(ProposeError::OutcomeLost) },
            }
        }
        FlushOutcome { outcomes, error: sent.error }
    }
}

/// A handle to the writer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogWriter {
    proposals: mpsc::Sender<Proposal>,
    replica: Replica,
}

/// Makes the writer of a broker's log. The loop must be run for as long as the handle is used.
pub fn writer(replica: Replica, sessions: SessionCell) -> (LogWriter, LogLoop) {
    let (sender, receiver) = mpsc::channel(PROPOSAL_QUEUE);
    (LogWriter { proposals: sender, replica: replica.clone() }, LogLoop::new(replica, sessions, receiver))
}

impl LogWriter {
    /// Queues a flush whose object is durable; waits only for a place in the queue. Flushes are committed in the
    /// order of these calls.
    pub async fn flush(
        &self,
        incarnation: i64,
        time_ms: i64,
        flush: Flush,
    ) -> Result<FlushTicket, ProposeError> {
        let (reply, sent) = oneshot::channel();
        let proposal = Proposal::Flush { incarnation, time_ms, flush, reply };
        self.proposals.send(proposal).await.map_err(|_| ProposeError::Closed)?;
        Ok(FlushTicket(sent))
    }

    /// What would become of a flush if it were the next thing in the log.
    #[cfg(feature = "mutations")]
    pub fn guess(&self, incarnation: i64, time_ms: i64, flush: &Flush) -> Vec<BatchOutcome> {
        let mut state = self.replica.state();
        let (revision, sequence) = (state.revision() + 1, state.head(incarnation) + 1);
        let body = Body::Flush(flush.clone());
        let record = crate::record::Record::new(time_ms, body.clone());
        let at = crate::state::Position { revision, sequence, incarnation };
        state.apply(at, &record, &body).map(|effects| effects.outcomes).unwrap_or_default()
    }

    /// Commits a change and waits until this broker has applied it.
    pub async fn change(&self, time_ms: i64, change: Change) -> Result<Effects, ProposeError> {
        let (reply, sent) = oneshot::channel();
        let proposal = Proposal::Change { time_ms, change, reply };
        self.proposals.send(proposal).await.map_err(|_| ProposeError::Closed)?;
        let mut sent = sent.await.map_err(|_| ProposeError::Closed)?;
        match (sent.error.take(), sent.committed.pop()) {
            (Some(error), _) => Err(error),
            (None, None) => {
                self.replica.wait_applied(sent.revision).await;
                Ok(Effects::default())
            }
            (None, Some(applied)) => applied.await.map_err(|_| ProposeError::OutcomeLost),
        }
    }
}

/// The value of a head: the last sequence number.
fn encode_head(sequence: u64) -> Bytes {
    sequence.to_string().into()
}

/// The number in a head.
fn decode_head(bytes: &[u8]) -> Option<u64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// The value of `commits`: how many records the transaction has.
pub(crate) fn encode_count(records: usize) -> Bytes {
    records.to_string().into()
}

/// How many records the transaction has that put `commits`.
pub(crate) fn decode_count(bytes: &[u8]) -> Option<usize> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}
