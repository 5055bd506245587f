//! The loop that commits, one transaction at a time.

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use super::gather::{Part, Proposal, Recorded, Shared, Together};
use super::health::CommitHealth;
use super::settle::{Settled, settle};
use super::transaction::{Contents, Head, HeadTrace};
use super::{CommitError, Session, SessionCell};
use crate::backend::{BackendError, Compare, KeyRange, KeyValue, Op, RangeRequest, Txn, TxnResponse};
use crate::limits::{PATIENCE, RECORDS_PER_TXN, TXN_RECORD_BYTES};
use crate::replica::Replica;
use crate::state::Effects;

/// What became of a transaction: its revision and which parts took place, or why nothing was
/// committed.
type Outcome = Result<(i64, Vec<Result<(), CommitError>>), CommitError>;

/// Commits what is proposed; run it for as long as the handle is used.
#[derive(Debug)]
pub struct CommitLoop {
    replica: Replica,
    sessions: SessionCell,
    proposals: mpsc::Receiver<Proposal>,
    patient: mpsc::Receiver<Part>,
    /// What was received and could not share the transaction before.
    next_proposal: Option<Proposal>,
    next_patient: Option<Part>,
    /// When patient parts have their next turn.
    patient_due: Instant,
    /// The session that `head` belongs to.
    session: Option<Session>,
    head: Head,
    health: CommitHealth,
}

impl CommitLoop {
    pub(super) fn new(
        replica: Replica,
        sessions: SessionCell,
        proposals: mpsc::Receiver<Proposal>,
        patient: mpsc::Receiver<Part>,
        health: CommitHealth,
    ) -> Self {
        Self {
            replica,
            sessions,
            proposals,
            patient,
            next_proposal: None,
            next_patient: None,
            patient_due: Instant::now(),
            session: None,
            head: Head::default(),
            health,
        }
    }

    /// Commits until every handle is dropped.
    pub async fn run(mut self) {
        while self.wait().await {
            // Patient parts whose turn has come go first, so that a stream of other changes cannot
            // put them off.
            let is_patients_turn = self.next_patient.is_some() && Instant::now() >= self.patient_due;
            match self.next_proposal.take() {
                Some(Proposal::Alone(change)) if !is_patients_turn => {
                    let together = self.gather_recorded(change);
                    self.commit_recorded(together).await;
                }
                proposal => {
                    self.next_proposal = proposal;
                    let shared = self.gather(is_patients_turn);
                    self.commit_shared(shared).await;
                }
            }
        }
    }

    /// Waits until something is to be committed now. `false` if nothing will be any more.
    async fn wait(&mut self) -> bool {
        loop {
            if self.next_proposal.is_none() {
                self.next_proposal = self.proposals.try_recv().ok();
            }
            if self.next_patient.is_none() {
                self.next_patient = self.patient.try_recv().ok();
            }
            let is_patients_turn = self.next_patient.is_some() && Instant::now() >= self.patient_due;
            if self.next_proposal.is_some() || is_patients_turn {
                return true;
            }
            tokio::select! {
                biased;
                proposal = self.proposals.recv() => match proposal {
                    Some(proposal) => self.next_proposal = Some(proposal),
                    None => return false,
                },
                Some(part) = self.patient.recv(), if self.next_patient.is_none() => {
                    self.next_patient = Some(part);
                }
                () = sleep_until(self.patient_due), if self.next_patient.is_some() => {}
            }
        }
    }

    /// Takes everything that is ready and may share the next transaction. Patient parts join one
    /// that is made anyway.
    fn gather(&mut self, is_patients_turn: bool) -> Shared {
        let mut shared = Shared::default();
        if is_patients_turn {
            self.gather_patient(&mut shared);
        }
        loop {
            let next = self.next_proposal.take().or_else(|| self.proposals.try_recv().ok());
            let refused = match next {
                None => break,
                Some(Proposal::Flush(flush)) => shared.take_flush(flush).map_err(Proposal::Flush),
                Some(Proposal::Part(part)) => shared.take_part(part).map_err(Proposal::Part),
                Some(alone @ Proposal::Alone(_)) => Err(alone),
            };
            if let Err(refused) = refused {
                self.next_proposal = Some(refused);
                break;
            }
        }
        if !is_patients_turn {
            self.gather_patient(&mut shared);
        }
        shared
    }

    fn gather_patient(&mut self, shared: &mut Shared) {
        while let Some(part) = self.next_patient.take().or_else(|| self.patient.try_recv().ok()) {
            if part.is_given_up() {
                continue;
            }
            self.patient_due = Instant::now() + PATIENCE;
            if let Err(refused) = shared.take_part(part) {
                self.next_patient = Some(refused);
                break;
            }
        }
    }

    /// Commits what was gathered: the parts with the first of the flushes' records.
    async fn commit_shared(&mut self, shared: Shared) {
        let Shared { mut flushes, mut parts, .. } = shared;
        // What belongs to a session that is over is refused before anything of it is sent.
        let current = self.enter_session();
        for flush in &mut flushes {
            if current.is_none_or(|s| s.incarnation != flush.incarnation) {
                flush.committed.error = Some(CommitError::NotRegistered);
            }
        }
        let is_current =
            |part: &Part| current.is_some() && (part.session.is_none() || part.session == current);
        for stale in parts.extract_if(.., |part| !is_current(part)) {
            stale.answer(Err(CommitError::NotRegistered));
        }
        let all: Vec<(usize, Bytes)> = flushes
            .iter()
            .enumerate()
            .filter(|(_, f)| f.committed.error.is_none())
            .flat_map(|(i, f)| f.records.iter().map(move |r| (i, r.clone())))
            .collect();
        let mut rest = &all[..];
        while !rest.is_empty() || !parts.is_empty() {
            let (now, later) = rest.split_at(fitting(rest));
            let records: Vec<Bytes> = now.iter().map(|(_, r)| r.clone()).collect();
            let txns: Vec<Txn> = parts.iter().map(|part| part.txn.clone()).collect();
            let contents = Contents { records: &records, parts: &txns, ..Contents::default() };
            let is_awaited = || !records.is_empty() || parts.iter().any(|part| !part.is_given_up());
            let (outcome, receivers) = self.commit(&contents, &is_awaited).await;
            match outcome {
                Ok((revision, done)) => {
                    for ((flush, _), receiver) in now.iter().zip(receivers) {
                        flushes[*flush].committed.records.push(receiver);
                        flushes[*flush].committed.revision = revision;
                    }
                    for (part, done) in parts.drain(..).zip(done) {
                        part.answer(done.map(|()| revision));
                    }
                    rest = later;
                }
                Err(error) => {
                    // Order within a producer holds only if nothing of the rest overtakes what
                    // failed.
                    for (flush, _) in rest {
                        flushes[*flush].committed.error = Some(error.clone());
                    }
                    for part in parts.drain(..) {
                        part.answer(Err(error.clone()));
                    }
                    rest = &[];
                }
            }
        }
        for flush in flushes {
            let _ = flush.reply.send(flush.committed);
        }
    }

    /// Takes the changes with records that are ready and may be tried together.
    fn gather_recorded(&mut self, first: Recorded) -> Vec<Recorded> {
        let mut together = Together::default();
        let mut next = Some(Proposal::Alone(first));
        while let Some(proposal) = next {
            let refused = match proposal {
                Proposal::Alone(change) => together.take(change).map_err(Proposal::Alone),
                other => Err(other),
            };
            if let Err(refused) = refused {
                self.next_proposal = Some(refused);
                break;
            }
            next = self.proposals.try_recv().ok();
        }
        together.changes
    }

    /// Commits changes with records in one transaction, or, if the compares of any do not hold,
    /// each in its own.
    async fn commit_recorded(&mut self, mut changes: Vec<Recorded>) {
        if changes.len() > 1 {
            let records: Vec<Bytes> = changes.iter().map(|change| change.record.clone()).collect();
            let compares: Vec<Compare> = changes.iter().flat_map(|change| change.compares.clone()).collect();
            let ops: Vec<Op> = changes.iter().flat_map(|change| change.ops.clone()).collect();
            match self.commit_these(&records, &compares, &ops).await {
                Err(CommitError::Conflict) => {}
                Err(error) => {
                    for change in changes {
                        change.answer(Err(error.clone()));
                    }
                    return;
                }
                Ok((revision, receivers)) => {
                    for (change, receiver) in changes.into_iter().zip(receivers) {
                        change.answer(Ok((revision, vec![receiver])));
                    }
                    return;
                }
            }
        }
        for change in changes.drain(..) {
            let records = std::slice::from_ref(&change.record);
            let committed = self.commit_these(records, &change.compares, &change.ops).await;
            change.answer(committed);
        }
    }

    /// Commits records with what they go with; gives the revision, and where their outcomes are
    /// told.
    async fn commit_these(
        &mut self,
        records: &[Bytes],
        compares: &[Compare],
        ops: &[Op],
    ) -> Result<(i64, Vec<oneshot::Receiver<Effects>>), CommitError> {
        if self.enter_session().is_none() {
            return Err(CommitError::NotRegistered);
        }
        let contents = Contents { records, parts: &[], compares, ops };
        let (outcome, receivers) = self.commit(&contents, &|| true).await;
        outcome.map(|(revision, _)| (revision, receivers))
    }

    /// Takes over the session that is current now; a new one starts with an empty head.
    fn enter_session(&mut self) -> Option<Session> {
        let current = self.sessions.current();
        if current != self.session {
            self.session = current;
            self.head = Head::default();
        }
        current
    }

    /// Commits under the next sequence numbers. The receivers are for the outcomes of the records.
    /// Given up when nobody waits any more while it is certain that nothing was executed.
    async fn commit(
        &mut self,
        contents: &Contents<'_>,
        is_awaited: &(dyn Fn() -> bool + Sync),
    ) -> (Outcome, Vec<oneshot::Receiver<Effects>>) {
        let Some(session) = self.session else {
            return (Err(CommitError::NotRegistered), Vec::new());
        };
        let after = contents.head_after(self.head);
        let receivers = (self.head.sequence + 1..=after.sequence)
            .map(|sequence| self.replica.expect(session.incarnation, sequence))
            .collect();
        let txn = contents.transaction(self.replica.keys(), session, self.head);
        let (keys, sessions) = (self.replica.keys(), &self.sessions);
        let is_awaited = || sessions.current() == Some(session) && is_awaited();
        let trace = HeadTrace { keys, is_awaited: &is_awaited, session, before: self.head, after };
        self.health.begin();
        let settled = settle(self.replica.backend().as_ref(), &txn, &trace).await;
        self.health.end(&settled);
        (self.conclude(session, contents, after, settled).await, receivers)
    }

    /// What a settled transaction means for those who wait, and for this loop.
    async fn conclude(
        &mut self,
        session: Session,
        contents: &Contents<'_>,
        after: Head,
        settled: Settled,
    ) -> Outcome {
        match settled {
            Settled::Answered(response) => {
                self.replica.note_committed(response.revision);
                self.head = after;
                Ok((response.revision, parts_answered(contents, &response)))
            }
            Settled::Traced(revision) => {
                self.replica.note_committed(revision);
                self.head = after;
                Ok((revision, self.parts_traced(contents.parts, revision).await))
            }
            Settled::Conflict => Err(CommitError::Conflict),
            Settled::Refused(error) => Err(CommitError::Refused(error)),
            Settled::Withdrawn if self.sessions.current() == Some(session) => {
                Err(CommitError::Refused(BackendError::Unavailable("nobody waits for it any more".into())))
            }
            Settled::Withdrawn | Settled::Impossible => {
                self.end_session(session);
                Err(CommitError::NotRegistered)
            }
            Settled::Unknown => {
                self.end_session(session);
                Err(CommitError::OutcomeUnknown)
            }
        }
    }

    fn end_session(&mut self, session: Session) {
        info!(
            incarnation = session.incarnation,
            "the registration is gone; nothing more is committed under it"
        );
        self.sessions.end(session.incarnation);
        self.session = None;
    }

    /// Which parts of a transaction took place that was executed at `revision` and whose answer is
    /// lost: those whose compares held just before it.
    async fn parts_traced(&self, parts: &[Txn], revision: i64) -> Vec<Result<(), CommitError>> {
        let mut done = Vec::with_capacity(parts.len());
        for part in parts {
            let mut held = Ok(());
            for compare in &part.compares {
                held = match self.held_at(compare, revision - 1).await {
                    Ok(true) => continue,
                    Ok(false) => Err(CommitError::Conflict),
                    Err(error) => Err(error),
                };
                break;
            }
            done.push(held);
        }
        done
    }

    /// Whether a compare held at a revision that is past.
    async fn held_at(&self, compare: &Compare, revision: i64) -> Result<bool, CommitError> {
        let (Compare::CreateRevision(key, _) | Compare::ModRevision(key, _) | Compare::Value(key, _)) =
            compare;
        let keys = KeyRange::Key(key.clone());
        let read = RangeRequest { keys, revision: Some(revision), limit: 1, keys_only: false };
        match self.replica.backend().range(read).await {
            Ok(found) => Ok(holds(compare, found.kvs.first())),
            Err(error) => {
                warn!(%error, "which parts of a commit took place cannot be looked up");
                Err(CommitError::OutcomeUnknown)
            }
        }
    }
}

/// Which parts took place, as the answer says.
fn parts_answered(contents: &Contents<'_>, response: &TxnResponse) -> Vec<Result<(), CommitError>> {
    let result = |done| if done { Ok(()) } else { Err(CommitError::Conflict) };
    let Some(done) = contents.parts_done(&response.responses) else {
        error!("a nested transaction has no answer: it cannot be told which parts of a commit took place");
        return vec![Err(CommitError::OutcomeUnknown); contents.parts.len()];
    };
    done.into_iter().map(result).collect()
}

/// Whether a compare holds for a key that is like this; `None` if there is none.
fn holds(compare: &Compare, kv: Option<&KeyValue>) -> bool {
    match compare {
        Compare::CreateRevision(_, revision) => kv.map_or(0, |kv| kv.create_revision) == *revision,
        Compare::ModRevision(_, revision) => kv.map_or(0, |kv| kv.mod_revision) == *revision,
        Compare::Value(_, value) => kv.is_some_and(|kv| kv.value == *value),
    }
}

/// How many of these records go into one transaction: at least one, if there is one.
fn fitting(records: &[(usize, Bytes)]) -> usize {
    let mut bytes = 0;
    let fits = records.iter().take(RECORDS_PER_TXN).take_while(|(_, record)| {
        bytes += record.len();
        bytes <= TXN_RECORD_BYTES
    });
    fits.count().max(1).min(records.len())
}
