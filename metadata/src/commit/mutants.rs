//! Deliberate bugs of the committer that are more than a condition. Only in builds with the feature `mutations`.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::run::{CommitLoop, Outcome};
use super::settle::{Settled, Trace, Verdict};
use super::transaction::{Contents, Head, HeadTrace};
use super::{CommitError, Session};
use crate::backend::{BackendError, KeyRange, RangeRequest};
use crate::keys::Key;
use crate::limits::BACKEND_TIMEOUT;
use crate::mutation::{self, Mutation};
use crate::state::Effects;

const PAUSE: Duration = Duration::from_millis(20);

impl CommitLoop {
    pub(super) async fn stored_head(&self, session: Session) -> Head {
        let key = KeyRange::Key(self.replica.keys().encode(&Key::Head(session.incarnation)));
        loop {
            let read = RangeRequest { keys: key.clone(), revision: None, limit: 1, keys_only: false };
            if let Ok(found) = self.replica.backend().range(read).await {
                return found.kvs.first().and_then(|kv| Head::decode(&kv.value)).unwrap_or_default();
            }
            sleep(PAUSE).await;
        }
    }

    /// Commits under the next numbers, and does so again if the answer is lost.
    pub(super) async fn commit_anew(
        &mut self,
        session: Session,
        contents: &Contents<'_>,
    ) -> (Outcome, Vec<oneshot::Receiver<Effects>>) {
        loop {
            let after = contents.head_after(self.head);
            let receivers = (self.head.sequence + 1..=after.sequence)
                .map(|s| self.replica.expect(session.incarnation, s))
                .collect();
            let txn = contents.transaction(self.replica.keys(), session, self.head);
            let answer = timeout(BACKEND_TIMEOUT, self.replica.backend().txn(txn)).await;
            let outcome = match answer {
                Ok(Ok(response)) if response.succeeded => {
                    self.conclude(session, contents, after, Settled::Answered(response)).await
                }
                Ok(Ok(response)) => {
                    let keys = self.replica.keys();
                    let trace = HeadTrace { keys, is_awaited: &|| true, session, before: self.head, after };
                    let settled = match trace.judge(&response.responses) {
                        Some(Verdict::Pending) => Settled::Conflict,
                        _ => Settled::Impossible,
                    };
                    self.conclude(session, contents, after, settled).await
                }
                Ok(Err(BackendError::Unavailable(_))) => {
                    sleep(PAUSE).await;
                    continue;
                }
                Ok(Err(BackendError::OutcomeUnknown(_))) | Err(_) => {
                    let head = self.stored_head(session).await;
                    if mutation::is(Mutation::RetryWhenTrimmed) && head == after {
                        let first = self.replica.log_span_first(session.incarnation, after.sequence).await;
                        if contents.records.is_empty()
                            || matches!(first, Ok(Some(first)) if first <= after.sequence)
                        {
                            let traced = Settled::Traced(self.replica.state().revision());
                            return (self.conclude(session, contents, after, traced).await, receivers);
                        }
                    }
                    self.head = head;
                    continue;
                }
                Ok(Err(error)) => Err(CommitError::Refused(error)),
            };
            return (outcome, receivers);
        }
    }
}
