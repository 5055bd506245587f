//! Committing: the only place that sends a transaction under a registration.
//!
//! ```text
//!   flushes, changes ═▶ ┐
//!                       ├ CommitLoop ─ transaction (pure) ─ settle (sends until it is certain) ─▶ etcd
//!   groups' writes   ═▶ ┘
//! ```
//!
//! One transaction of a broker is in flight at a time, whatever it carries. Each compares that the
//! broker's registration still has the create revision that it got (invariant 5), and that the head
//! of its incarnation is as the one before left it; each moves that head. So no sequence number is
//! ever used twice, and a transaction whose answer is lost has left a trace that tells whether it
//! was executed, and when: one rule for all of them, in `settle`. Each puts
//! `commits` as well, whose version counts the transactions of all brokers: whoever follows them
//! notices if a watch leaves one out.
//!
//! What shares a transaction: flushes that are ready, and changes without a record, each nested
//! with its own compares so that it fails alone. The compares of a change with a record decide
//! whether its sequence number is used, so they are those of the whole transaction: such changes
//! share one with each other only, and if any compare fails each is tried in its own. A checkpoint
//! has one to itself: the state right after it is that of its revision.

mod gather;
mod health;
mod run;
mod session;
mod settle;
mod split;
mod transaction;

use tokio::sync::{mpsc, oneshot};

use self::gather::{Part, Proposal, Recorded};
pub use self::health::{CommitHealth, CommitTrouble};
pub use self::run::CommitLoop;
pub use self::session::{Session, SessionCell};
pub(crate) use self::settle::{Settled, Trace, Verdict, settle};
pub(crate) use self::transaction::decode_count;
use crate::backend::{BackendError, Compare, Op};
use crate::limits::{PATIENT_QUEUE, PROPOSAL_QUEUE, RECORD_BYTES};
use crate::record::{Body, Flush, Merged, Record};
use crate::replica::Replica;
use crate::state::{BatchOutcome, Effects};

/// Why something was not (or not certainly) committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The broker is not registered now, or not any more: nothing was committed. Try again, here or
    /// elsewhere.
    #[error("the broker is not registered")]
    NotRegistered,
    /// One of its own compares did not hold: look again and decide anew.
    #[error("a concurrent change was committed first")]
    Conflict,
    /// The metadata store refuses it; nothing was committed.
    #[error(transparent)]
    Refused(BackendError),
    /// The answer is lost, and so is what would tell whether it was committed.
    #[error("the answer was lost, and what would tell whether it was committed is gone")]
    OutcomeUnknown,
    /// It is committed, but this broker lost sight of the outcome.
    #[error("committed, but the outcome was lost while the state was rebuilt")]
    OutcomeLost,
    /// The broker is stopping.
    #[error("the broker is stopping")]
    Closed,
}

impl CommitError {
    /// Whether it is certain that it is not committed and never will be.
    pub fn is_certainly_not_committed(&self) -> bool {
        match self {
            Self::OutcomeUnknown | Self::OutcomeLost | Self::Closed => false,
            Self::NotRegistered | Self::Conflict | Self::Refused(_) => true,
        }
    }
}

/// What became of a flush. A flush that is too large for one record is split, so it may be
/// committed in part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlushOutcome {
    /// The outcomes of the batches that are decided, in the order of the flush; a prefix of them if
    /// `error` is set.
    pub outcomes: Vec<BatchOutcome>,
    /// Why the others are not.
    pub error: Option<CommitError>,
}

/// Something other than a flush: of plain keys, of what the state machine is told, or both in one.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// What must hold for it, besides the session.
    pub compares: Vec<Compare>,
    /// Puts and deletes of plain keys.
    pub ops: Vec<Op>,
    /// What the state machine is told. May be empty for a change that it does not need to know.
    pub body: Option<Body>,
}

/// What a transaction did with a flush or a change.
#[derive(Debug, Default)]
struct Committed {
    /// One for each record that is committed, in order: what it brings about once it is applied
    /// here.
    records: Vec<oneshot::Receiver<Effects>>,
    /// Why the records after those are not.
    error: Option<CommitError>,
    /// The revision of the last transaction; 0 if there was none.
    revision: i64,
}

/// A flush that was queued.
#[derive(Debug)]
pub struct FlushTicket(oneshot::Receiver<Committed>);

impl FlushTicket {
    /// Waits until the flush is decided and this broker has applied it.
    pub async fn outcome(self) -> FlushOutcome {
        let closed = Committed { error: Some(CommitError::Closed), ..Committed::default() };
        let committed = self.0.await.unwrap_or(closed);
        let mut outcomes = Vec::new();
        for applied in committed.records {
            match applied.await {
                Ok(effects) => outcomes.extend(effects.outcomes),
                Err(_) => return FlushOutcome { outcomes, error: Some(CommitError::OutcomeLost) },
            }
        }
        FlushOutcome { outcomes, error: committed.error }
    }
}

/// A handle to the loop that commits. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Committer {
    proposals: mpsc::Sender<Proposal>,
    patient: mpsc::Sender<Part>,
    replica: Replica,
    health: CommitHealth,
}

/// Makes a broker's committer. The loop must be run for as long as the handle is used.
pub fn committer(replica: Replica, sessions: SessionCell) -> (Committer, CommitLoop) {
    let (proposals, urgent_queue) = mpsc::channel(PROPOSAL_QUEUE);
    let (patient, patient_queue) = mpsc::channel(PATIENT_QUEUE);
    let health = CommitHealth::default();
    let commit_loop = CommitLoop::new(replica.clone(), sessions, urgent_queue, patient_queue, health.clone());
    (Committer { proposals, patient, replica, health }, commit_loop)
}

impl Committer {
    /// Whether commits come through.
    pub fn health(&self) -> &CommitHealth {
        &self.health
    }

    /// What every broker of the cluster is known to understand (see
    /// [`crate::state::FEATURE_LEVEL`]).
    pub fn feature_level(&self) -> u32 {
        self.replica.read(|view| view.state.feature_level())
    }

    /// Queues a flush whose object is durable; waits only for a place in the queue. Flushes are
    /// committed in the order of these calls.
    pub async fn flush(
        &self,
        incarnation: i64,
        time_ms: i64,
        flush: Flush,
    ) -> Result<FlushTicket, CommitError> {
        let (reply, committed) = oneshot::channel();
        self.propose(Proposal::flush(incarnation, time_ms, flush, reply)).await?;
        Ok(FlushTicket(committed))
    }

    /// Commits a merge whose object is durable, under the incarnation that wrote the object or not
    /// at all, and waits until this broker has applied it. Shares a transaction with flushes.
    pub async fn merge(
        &self,
        incarnation: i64,
        time_ms: i64,
        merged: Merged,
    ) -> Result<Effects, CommitError> {
        let record = Record::new(time_ms, Body::Merged(merged)).to_bytes();
        if record.len() > RECORD_BYTES {
            let what = format!("a merge's record has {} bytes", record.len());
            return Err(CommitError::Refused(BackendError::TooLarge(what)));
        }
        let (reply, committed) = oneshot::channel();
        self.propose(Proposal::records(incarnation, vec![record], reply)).await?;
        let mut committed = committed.await.map_err(|_| CommitError::Closed)?;
        match (committed.error.take(), committed.records.pop()) {
            (Some(error), _) => Err(error),
            (None, Some(applied)) => applied.await.map_err(|_| CommitError::OutcomeLost),
            (None, None) => Err(CommitError::OutcomeLost),
        }
    }

    /// Commits a change and waits until this broker has applied it.
    pub async fn change(&self, time_ms: i64, change: Change) -> Result<Effects, CommitError> {
        self.change_at(time_ms, change).await.map(|(effects, _)| effects)
    }

    /// The same, and the revision at which it is committed.
    pub async fn change_at(&self, time_ms: i64, change: Change) -> Result<(Effects, i64), CommitError> {
        let Change { compares, ops, body } = change;
        let Some(body) = body else {
            let (part, revision) = Part::new(None, compares, ops);
            self.propose(Proposal::Part(part)).await?;
            let revision = revision.await.unwrap_or(Err(CommitError::Closed))?;
            self.replica.wait_applied(revision).await;
            return Ok((Effects::default(), revision));
        };
        let is_alone = matches!(body, Body::Checkpoint(_));
        let record = Record::new(time_ms, body).to_bytes();
        let (reply, committed) = oneshot::channel();
        self.propose(Proposal::Alone(Recorded { record, compares, ops, is_alone, reply })).await?;
        let mut committed = committed.await.map_err(|_| CommitError::Closed)?;
        match (committed.error.take(), committed.records.pop()) {
            (Some(error), _) => Err(error),
            (None, Some(applied)) => {
                let effects = applied.await.map_err(|_| CommitError::OutcomeLost)?;
                Ok((effects, committed.revision))
            }
            (None, None) => unreachable!("a change that is committed has its record"),
        }
    }

    /// Commits a change of plain keys that may wait a little for others to share its transaction,
    /// under `session` or not at all. Gives the revision as soon as it is committed, which this
    /// broker may not have applied yet.
    ///
    /// Who stops waiting gives up what was not sent yet; what was sent may still be executed.
    pub async fn write(
        &self,
        session: Session,
        compares: Vec<Compare>,
        ops: Vec<Op>,
    ) -> Result<i64, CommitError> {
        let (part, revision) = Part::new(Some(session), compares, ops);
        self.patient.send(part).await.map_err(|_| CommitError::Closed)?;
        revision.await.unwrap_or(Err(CommitError::Closed))
    }

    async fn propose(&self, proposal: Proposal) -> Result<(), CommitError> {
        self.proposals.send(proposal).await.map_err(|_| CommitError::Closed)
    }
}
