//! The one rule for lost answers: send a transaction until it is certain what became of it.
//!
//! An answer that is lost proves nothing, and neither does a read that does not find the change:
//! etcd may execute the transaction later. So every transaction that is sent here leaves a *trace*,
//! a key that only it puts with that content, and compares something that only one of two sends can
//! pass. Then the same transaction may be sent again and again, and a read of the trace decides.
//! What was sent once is only ever sent again as it was.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};

use crate::backend::{Backend, BackendError, KeyRange, Op, OpResponse, Txn, TxnResponse};
use crate::limits::BACKEND_TIMEOUT;

/// Pause before an unanswered question is asked again: doubles from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// What the trace of a transaction says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It was executed, at this revision.
    Executed(i64),
    /// It was not executed and still may be, by a send that is under way or by another one.
    Pending,
    /// It was not executed and never will be: something that it compares is gone for good.
    Impossible,
    /// It can never be executed any more, and the trace that would tell whether it was before is
    /// gone.
    Gone,
    /// The trace is not one that this process could have left: nothing is certain.
    Foreign,
}

/// How the outcome of a transaction is found out.
pub(crate) trait Trace: Sync {
    /// The keys to read.
    fn keys(&self) -> Vec<KeyRange>;
    /// What they say, one answer a key; `None` for an answer that cannot be.
    fn judge(&self, found: &[OpResponse]) -> Option<Verdict>;
    /// Whether it is still worth sending. Asked only while it is certain that it was not executed.
    fn is_wanted(&self) -> bool {
        true
    }
}

/// What became of a transaction.
#[derive(Clone, Debug)]
pub(crate) enum Settled {
    /// It was executed, and this is the store's answer.
    Answered(TxnResponse),
    /// It was executed at this revision; the answer is lost.
    Traced(i64),
    /// Its compares did not hold, though nothing that the trace reads has changed.
    Conflict,
    /// It was not executed and never will be.
    Impossible,
    /// It was not executed, and was not worth sending any more.
    Withdrawn,
    /// The store refused it, and it was not executed.
    Refused(BackendError),
    /// It may have been executed, and nobody can tell.
    Unknown,
}

/// Sends `txn` until it is certain what became of it. Its `otherwise` must read the keys of
/// `trace`.
pub(crate) async fn settle(backend: &dyn Backend, txn: &Txn, trace: &dyn Trace) -> Settled {
    let mut backoff = BACKOFF.0;
    // Whether an earlier send may have been executed.
    let mut sent = false;
    loop {
        let answer = match timeout(BACKEND_TIMEOUT, backend.txn(txn.clone())).await {
            Ok(answer) => answer,
            Err(_) => Err(BackendError::OutcomeUnknown("no answer in time".to_owned())),
        };
        // If set, the store refused it: give up unless the trace shows that it was executed all the
        // same.
        let mut refusal = None;
        match answer {
            Ok(response) if response.succeeded => return Settled::Answered(response),
            Ok(response) => return explain(trace, &response, sent),
            Err(BackendError::Unavailable(why)) => {
                debug!(why, "the transaction was not executed; trying again");
            }
            Err(BackendError::OutcomeUnknown(why)) => {
                warn!(why, "the outcome of a commit is unknown; looking it up");
                sent = true;
            }
            // It may have been executed, but it is not under way any more.
            Err(BackendError::NoSpace) if !sent => {
                info!("the metadata store is out of space; looking up whether the commit was executed");
                refusal = Some(BackendError::NoSpace);
            }
            Err(error) if !sent => return Settled::Refused(error),
            Err(error) => {
                warn!(%error, "a commit that may have been executed is refused now; looking it up");
            }
        }
        if sent || refusal.is_some() {
            match (look_up(backend, trace).await, refusal) {
                (Verdict::Executed(revision), _) => return Settled::Traced(revision),
                (Verdict::Impossible, _) => return Settled::Impossible,
                (Verdict::Gone, _) => return Settled::Unknown,
                (Verdict::Foreign, _) => return foreign(),
                (Verdict::Pending, Some(refusal)) => return Settled::Refused(refusal),
                (Verdict::Pending, None) => {}
            }
        }
        sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF.1);
        if !sent && !trace.is_wanted() {
            return Settled::Withdrawn;
        }
    }
}

/// Why the compares of a transaction did not hold.
fn explain(trace: &dyn Trace, response: &TxnResponse, sent: bool) -> Settled {
    match trace.judge(&response.responses) {
        // An earlier send of this very transaction was executed after all.
        Some(Verdict::Executed(revision)) if sent => Settled::Traced(revision),
        Some(Verdict::Pending) => Settled::Conflict,
        Some(Verdict::Gone) if sent => Settled::Unknown,
        Some(Verdict::Impossible | Verdict::Gone) => Settled::Impossible,
        Some(Verdict::Executed(_) | Verdict::Foreign) => foreign(),
        None => {
            Settled::Refused(BackendError::Broken("a compare failed and its ranges are missing".to_owned()))
        }
    }
}

/// Two processes that share an incarnation, or a commit that was executed against all that the
/// store had said.
fn foreign() -> Settled {
    error!("somebody else has left a trace that only this process may leave");
    Settled::Unknown
}

/// Reads the trace at one revision. Asks until it gets an answer.
async fn look_up(backend: &dyn Backend, trace: &dyn Trace) -> Verdict {
    let read = Txn { then: trace.keys().into_iter().map(Op::Range).collect(), ..Txn::default() };
    let mut backoff = BACKOFF.0;
    loop {
        match timeout(BACKEND_TIMEOUT, backend.txn(read.clone())).await {
            Ok(Ok(response)) => {
                if let Some(verdict) = trace.judge(&response.responses) {
                    return verdict;
                }
                error!("the metadata store answered a read of a few keys with something else");
            }
            Ok(Err(error)) => debug!(%error, "looking up a commit failed; trying again"),
            Err(_) => debug!("looking up a commit took too long; trying again"),
        }
        sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}
