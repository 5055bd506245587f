//! The loop that commits, one transaction at a time, and finds out what became of those whose answer was lost.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};

use super::split::split;
use super::{
    Change, Proposal, ProposeError, Sent, Session, SessionCell, decode_head, encode_count, encode_head,
};
use crate::backend::{BackendError, Compare, KeyRange, KeyValue, Op, OpResponse, Txn, TxnResponse};
use crate::keys::Key;
use crate::limits::{BACKEND_TIMEOUT, RECORD_BYTES, RECORDS_PER_TXN, TXN_RECORD_BYTES};
use crate::mutation::{self, Mutation};
use crate::record::{Body, Flush, Record};
use crate::replica::Replica;

/// Pause before an unanswered question is asked again: doubles from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Commits proposals; run it for as long as the handle is used.
#[derive(Debug)]
pub struct LogLoop {
    replica: Replica,
    sessions: SessionCell,
    proposals: mpsc::Receiver<Proposal>,
    /// A proposal that was received and could not share the transaction before.
    held: Option<Proposal>,
    /// The session that `head` belongs to.
    session: Option<Session>,
    /// The last sequence number of that session that is committed.
    head: u64,
}

/// A flush on its way into a transaction.
#[derive(Debug)]
struct QueuedFlush {
    incarnation: i64,
    records: Vec<Bytes>,
    reply: oneshot::Sender<Sent>,
    sent: Sent,
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// At this revision; 0 if it is not known.
    Committed(i64),
    /// A compare of the proposal's own did not hold.
    Conflict,
    /// The session is over; nothing was committed.
    Fenced,
    /// The session is over, and so is what would tell whether this was committed before: the head goes when an
    /// incarnation that is gone is forgotten, and a change without a record leaves none. Or the head is not as it was left.
    FencedUnknown,
    /// The store refuses it; nothing was committed.
    Refused(BackendError),
}

impl Outcome {
    fn error(self) -> Option<ProposeError> {
        match self {
            Self::Committed(_) => None,
            Self::Conflict => Some(ProposeError::Conflict),
            Self::Fenced => Some(ProposeError::NotRegistered),
            Self::FencedUnknown => Some(ProposeError::Refused(BackendError::OutcomeUnknown(
                "what would tell whether it was executed is gone".to_owned(),
            ))),
            Self::Refused(error) => Some(ProposeError::Refused(error)),
        }
    }
}

impl LogLoop {
    pub(super) fn new(replica: Replica, sessions: SessionCell, proposals: mpsc::Receiver<Proposal>) -> Self {
        Self { replica, sessions, proposals, held: None, session: None, head: 0 }
    }

    /// Commits until every handle is dropped.
    pub async fn run(mut self) {
        loop {
            let next = match self.held.take() {
                Some(held) => Some(held),
                None => self.proposals.recv().await,
            };
            match next {
                None => return,
                Some(Proposal::Flush { incarnation, time_ms, flush, reply }) => {
                    let first = QueuedFlush::new(incarnation, time_ms, flush, reply);
                    self.commit_flushes(first).await;
                }
                Some(Proposal::Change { time_ms, change, reply }) => {
                    let sent = self.commit_change(time_ms, change).await;
                    // Whoever stopped waiting does not need the answer; what is committed stays committed.
                    let _ = reply.send(sent);
                }
            }
        }
    }

    /// Takes every flush that is ready and fits, and commits them in order.
    async fn commit_flushes(&mut self, first: QueuedFlush) {
        let (mut count, mut bytes) = (first.records.len(), first.bytes());
        let mut flushes = vec![first];
        while count < RECORDS_PER_TXN && bytes < TXN_RECORD_BYTES {
            match self.proposals.try_recv() {
                Ok(Proposal::Flush { incarnation, time_ms, flush, reply }) => {
                    let next = QueuedFlush::new(incarnation, time_ms, flush, reply);
                    count += next.records.len();
                    bytes += next.bytes();
                    flushes.push(next);
                }
                Ok(change @ Proposal::Change { .. }) => {
                    self.held = Some(change);
                    break;
                }
                Err(_) => break,
            }
        }
        // Flushes of a session that is over are refused before anything of them is sent.
        let current = self.enter_session().await;
        for flush in &mut flushes {
            if current.is_none_or(|s| s.incarnation != flush.incarnation) {
                flush.sent.error = Some(ProposeError::NotRegistered);
            }
        }
        let all: Vec<(usize, Bytes)> = flushes
            .iter()
            .enumerate()
            .filter(|(_, f)| f.sent.error.is_none())
            .flat_map(|(i, f)| f.records.iter().map(move |r| (i, r.clone())))
            .collect();
        let mut rest = &all[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(fitting(rest));
            let records: Vec<Bytes> = now.iter().map(|(_, r)| r.clone()).collect();
            let (outcome, receivers) = self.commit(&records, &[], &[]).await;
            match outcome.error() {
                None => {
                    for ((flush, _), receiver) in now.iter().zip(receivers) {
                        flushes[*flush].sent.committed.push(receiver);
                    }
                    rest = later;
                }
                Some(error) => {
                    // Order within a producer holds only if nothing of the rest overtakes what failed.
                    for (flush, _) in rest {
                        flushes[*flush].sent.error = Some(error.clone());
                    }
                    rest = &[];
                }
            }
        }
        for flush in flushes {
            let _ = flush.reply.send(flush.sent);
        }
    }

    async fn commit_change(&mut self, time_ms: i64, change: Change) -> Sent {
        if self.enter_session().await.is_none() {
            return Sent { error: Some(ProposeError::NotRegistered), ..Sent::default() };
        }
        let records: Vec<Bytes> =
            change.body.into_iter().map(|body| Record::new(time_ms, body).to_bytes()).collect();
        let (outcome, committed) = self.commit(&records, &change.compares, &change.ops).await;
        match outcome {
            Outcome::Committed(revision) => Sent { committed, error: None, revision },
            failed => Sent { error: failed.error(), ..Sent::default() },
        }
    }

    /// Takes over the session that is current now; a new one starts at sequence number 1.
    async fn enter_session(&mut self) -> Option<Session> {
        let current = self.sessions.current();
        if current != self.session {
            self.session = current;
            self.head = 0;
            if mutation::is(Mutation::RegisterOver)
                && let Some(session) = current
            {
                self.head = self.look_up(session).await.1;
            }
        }
        current
    }

    /// Commits records under the next sequence numbers, and a change of plain keys with them.
    async fn commit(
        &mut self,
        records: &[Bytes],
        compares: &[Compare],
        ops: &[Op],
    ) -> (Outcome, Vec<oneshot::Receiver<crate::state::Effects>>) {
        let Some(session) = self.session else {
            return (Outcome::Fenced, Vec::new());
        };
        #[cfg(feature = "mutations")]
        if mutation::is(Mutation::RetryBlindly) || mutation::is(Mutation::RetryWhenTrimmed) {
            return self.commit_anew(session, records, compares, ops).await;
        }
        let last = self.head + records.len() as u64;
        let receivers = (self.head + 1..=last).map(|s| self.replica.expect(session.incarnation, s)).collect();
        let txn = self.transaction(session, records, compares, ops);
        let outcome = self.execute(session, &txn, last, !compares.is_empty()).await;
        match &outcome {
            Outcome::Committed(0) if mutation::is(Mutation::ReuseSequence) => {}
            Outcome::Committed(_) => self.head = last,
            Outcome::Fenced | Outcome::FencedUnknown => {
                info!(
                    incarnation = session.incarnation,
                    "the registration is gone; nothing more is committed under it"
                );
                self.sessions.end(session.incarnation);
                self.session = None;
            }
            Outcome::Conflict | Outcome::Refused(_) => {}
        }
        (outcome, receivers)
    }

    fn transaction(&self, session: Session, records: &[Bytes], compares: &[Compare], ops: &[Op]) -> Txn {
        let keys = self.replica.keys();
        let registration = keys.encode(&Key::Broker(session.node_id));
        let head = keys.encode(&Key::Head(session.incarnation));
        // Invariant 5: nothing is committed under a registration that was lost.
        let mut all_compares = vec![Compare::CreateRevision(registration.clone(), session.incarnation)];
        if mutation::is(Mutation::SkipIncarnationCompare) {
            all_compares.clear();
        }
        // A number is used once: whoever goes on from a head must find it as it left it.
        all_compares.push(match self.head {
            0 => Compare::CreateRevision(head.clone(), 0),
            sequence => Compare::Value(head.clone(), encode_head(sequence)),
        });
        if mutation::is(Mutation::ReuseSequence) {
            all_compares.truncate(1);
        }
        all_compares.extend_from_slice(compares);
        let mut then = ops.to_vec();
        then.push(Op::put(keys.encode(&Key::Commits), encode_count(records.len())));
        for (sequence, record) in (self.head + 1..).zip(records) {
            let key = keys.encode(&Key::Log { incarnation: session.incarnation, sequence });
            then.push(Op::put(key, record.clone()));
        }
        if !records.is_empty() {
            then.push(Op::put(head.clone(), encode_head(self.head + records.len() as u64)));
        }
        let otherwise = vec![Op::Range(KeyRange::Key(registration)), Op::Range(KeyRange::Key(head))];
        Txn { compares: all_compares, then, otherwise }
    }

    /// Sends a transaction until its outcome is certain. What was sent once is only ever sent again as it was: no
    /// other content can get the same sequence numbers.
    async fn execute(&self, session: Session, txn: &Txn, last: u64, has_compares: bool) -> Outcome {
        let mut backoff = BACKOFF.0;
        // Whether an earlier send may have been executed.
        let mut unknown = false;
        // A change without a record leaves no trace in the head; it must not be sent again once it may have happened.
        let traceless = last == self.head;
        loop {
            let answer = match timeout(BACKEND_TIMEOUT, self.replica.backend().txn(txn.clone())).await {
                Ok(answer) => answer,
                Err(_) => Err(BackendError::OutcomeUnknown("no answer in time".to_owned())),
            };
            // Why it is not to be sent again, if the head says that it was not executed.
            let mut refused = None;
            match answer {
                Ok(response) if response.succeeded => {
                    self.replica.note_committed(response.revision);
                    return Outcome::Committed(response.revision);
                }
                Ok(response) => return self.explain(session, &response, last, unknown, has_compares),
                Err(BackendError::Unavailable(why))
                    if self.sessions.current() != Some(session) && !unknown =>
                {
                    debug!(why, "not sent, and the session is over");
                    return Outcome::Fenced;
                }
                Err(BackendError::Unavailable(why)) => {
                    debug!(why, "the transaction was not executed; trying again");
                }
                Err(BackendError::OutcomeUnknown(why)) => {
                    warn!(why, "the outcome of a commit is unknown; looking it up");
                    unknown = true;
                }
                // It may have been executed, but it is not under way any more.
                Err(BackendError::NoSpace) if !unknown && !mutation::is(Mutation::BelieveNoSpace) => {
                    info!("the metadata store is out of space; looking up whether the commit was executed");
                    refused = Some(BackendError::NoSpace);
                }
                Err(error) if !unknown => return Outcome::Refused(error),
                Err(error) => {
                    warn!(%error, "a commit that may have been executed is refused now; looking it up");
                }
            }
            if unknown || refused.is_some() {
                let (registered, head) = self.look_up(session).await;
                if head >= last && !traceless {
                    return Outcome::Committed(0);
                }
                if !registered {
                    return fenced(true, traceless, head);
                }
                if traceless {
                    let why = match refused {
                        Some(why) => format!("{why}, and the change may have been made"),
                        None => "the answer was lost".to_owned(),
                    };
                    return Outcome::Refused(BackendError::OutcomeUnknown(why));
                }
                if let Some(why) = refused {
                    return Outcome::Refused(why);
                }
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    /// Why the compares of a transaction did not hold.
    fn explain(
        &self,
        session: Session,
        response: &TxnResponse,
        last: u64,
        unknown: bool,
        has_compares: bool,
    ) -> Outcome {
        let Some((registered, head)) = registration_and_head(&response.responses, session) else {
            return Outcome::Refused(BackendError::Broken(
                "a compare failed and its ranges are missing".to_owned(),
            ));
        };
        if unknown && head >= last && last > self.head {
            // An earlier send of this very transaction was executed after all.
            self.replica.note_committed(response.revision);
            return Outcome::Committed(0);
        }
        if !registered {
            return fenced(unknown, last == self.head, head);
        }
        if head == self.head && has_compares {
            return Outcome::Conflict;
        }
        // Whoever did it, or whatever was executed against all that is known: nothing is certain now.
        error!(head, expected = self.head, "the head of this broker's log was changed by somebody else");
        Outcome::FencedUnknown
    }

    /// Whether the session's registration exists, and the head, at one revision. Asks until it gets an answer.
    async fn look_up(&self, session: Session) -> (bool, u64) {
        let keys = self.replica.keys();
        let registration = KeyRange::Key(keys.encode(&Key::Broker(session.node_id)));
        let head = KeyRange::Key(keys.encode(&Key::Head(session.incarnation)));
        let read = Txn { then: vec![Op::Range(registration), Op::Range(head)], ..Txn::default() };
        let mut backoff = BACKOFF.0;
        loop {
            match timeout(BACKEND_TIMEOUT, self.replica.backend().txn(read.clone())).await {
                Ok(Ok(response)) => {
                    if let Some(found) = registration_and_head(&response.responses, session) {
                        return found;
                    }
                    error!("the metadata store answered a read of two keys with something else");
                }
                Ok(Err(error)) => debug!(%error, "looking up a commit failed; trying again"),
                Err(_) => debug!("looking up a commit took too long; trying again"),
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }
}

#[cfg(feature = "mutations")]
impl LogLoop {
    /// Commits records under the next numbers, and does so again if the answer is lost.
    async fn commit_anew(
        &mut self,
        session: Session,
        records: &[Bytes],
        compares: &[Compare],
        ops: &[Op],
    ) -> (Outcome, Vec<oneshot::Receiver<crate::state::Effects>>) {
        loop {
            let last = self.head + records.len() as u64;
            let receivers =
                (self.head + 1..=last).map(|s| self.replica.expect(session.incarnation, s)).collect();
            let txn = self.transaction(session, records, compares, ops);
            let answer = timeout(BACKEND_TIMEOUT, self.replica.backend().txn(txn)).await;
            let outcome = match answer {
                Ok(Ok(response)) if response.succeeded => {
                    self.replica.note_committed(response.revision);
                    self.head = last;
                    Outcome::Committed(response.revision)
                }
                Ok(Ok(response)) => self.explain(session, &response, last, false, !compares.is_empty()),
                Ok(Err(BackendError::Unavailable(_))) => {
                    sleep(BACKOFF.0).await;
                    continue;
                }
                Ok(Err(BackendError::OutcomeUnknown(_))) | Err(_) => {
                    let head = self.look_up(session).await.1;
                    if mutation::is(Mutation::RetryWhenTrimmed) && head >= last {
                        let first = self.replica.log_span_first(session.incarnation, last).await;
                        if matches!(first, Ok(Some(first)) if first <= last) {
                            self.head = last;
                            return (Outcome::Committed(0), receivers);
                        }
                    }
                    self.head = head;
                    continue;
                }
                Ok(Err(error)) => Outcome::Refused(error),
            };
            if outcome == Outcome::Fenced {
                self.sessions.end(session.incarnation);
                self.session = None;
            }
            return (outcome, receivers);
        }
    }
}

/// What is known of a transaction whose registration is gone. Nothing can be executed under it any more, but something
/// may have been before: the head (0 if it is not there) tells, unless the incarnation was forgotten meanwhile.
fn fenced(unknown: bool, traceless: bool, head: u64) -> Outcome {
    if mutation::is(Mutation::BelieveRefusal) {
        return Outcome::Fenced;
    }
    if unknown && (traceless || head == 0) { Outcome::FencedUnknown } else { Outcome::Fenced }
}

impl QueuedFlush {
    fn new(incarnation: i64, time_ms: i64, flush: Flush, reply: oneshot::Sender<Sent>) -> Self {
        let parts = split(flush, RECORD_BYTES).into_iter();
        let records = parts.map(|part| Record::new(time_ms, Body::Flush(part)).to_bytes()).collect();
        Self { incarnation, records, reply, sent: Sent::default() }
    }

    fn bytes(&self) -> usize {
        self.records.iter().map(Bytes::len).sum()
    }
}

/// How many of these records go into one transaction: at least one.
fn fitting(records: &[(usize, Bytes)]) -> usize {
    let mut bytes = 0;
    let fits = records.iter().take(RECORDS_PER_TXN).take_while(|(_, record)| {
        bytes += record.len();
        bytes <= TXN_RECORD_BYTES
    });
    fits.count().max(1)
}

/// Reads the answers of the two ranges: whether the registration is still the session's, and the head (0 if absent).
fn registration_and_head(responses: &[OpResponse], session: Session) -> Option<(bool, u64)> {
    let [OpResponse::Range(registration), OpResponse::Range(head)] = responses else { return None };
    let registered =
        registration.first().is_some_and(|kv: &KeyValue| kv.create_revision == session.incarnation);
    let head = match head.first() {
        None => 0,
        Some(kv) => decode_head(&kv.value)?,
    };
    Some((registered, head))
}
