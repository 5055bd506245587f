//! The loop that writes groups: one transaction in flight, with the writes of as many groups as are ready.
//!
//! A write whose answer is lost is sent again as it was. If it had happened, its compares fail now, and what is stored
//! is exactly what it put: no two writes are alike ([`GroupValue::write`](crate::values::group::GroupValue::write)).
//! If that does not settle it within [`BACKEND_TIMEOUT`], the coordinator is told so and reads again; a write that is
//! executed later still changes nothing that was written since, by its compares.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::{debug, info, warn};

use super::{GroupPut, GroupWrite, GroupWriteError};
use crate::backend::txn_rules::txn_bytes;
use crate::backend::{Backend, BackendError, Compare, KeyRange, Op, OpResponse, Txn, TxnResponse};
use crate::keys::{Key, Keyspace};
use crate::limits::{
    BACKEND_REQUEST_BYTES, BACKEND_TIMEOUT, GROUP_WRITE_KEYS, GROUP_WRITE_QUEUE, GROUP_WRITES_PER_TXN,
};
use crate::log::{Session, SessionCell, encode_count};
use crate::mutation::{self, Mutation};
use crate::replica::Replica;
use crate::values::Value;

/// Pause before a transaction that was not executed is sent again: doubles from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// Transactions begin at least so far apart: what comes meanwhile shares the next one, so many small commits cost
/// etcd few transactions.
const PACE: Duration = Duration::from_millis(8);

/// Writes groups; run it for as long as the handle is used.
#[derive(Debug)]
pub struct GroupLoop {
    replica: Replica,
    sessions: SessionCell,
    writes: mpsc::Receiver<Queued>,
    /// A write that was received and could not share the transaction before.
    held: Option<Queued>,
    /// When the last transaction began.
    began: Option<Instant>,
}

/// A handle to the loop. Cheap to clone.
#[derive(Clone, Debug)]
pub struct GroupWriter {
    writes: mpsc::Sender<Queued>,
}

#[derive(Debug)]
struct Queued {
    /// Under which registration the coordinator read what the write compares.
    session: Session,
    group: String,
    txn: Txn,
    reply: oneshot::Sender<Result<i64, GroupWriteError>>,
}

/// What was written of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupWritten {
    /// The mod revision of everything that was put.
    pub revision: i64,
    /// Bytes of the group's own value; 0 if it was not put.
    pub value_bytes: usize,
}

/// Makes the writer of a broker's groups. The loop must be run for as long as the handle is used.
pub fn writer(replica: Replica, sessions: SessionCell) -> (GroupWriter, GroupLoop) {
    let (sender, receiver) = mpsc::channel(GROUP_WRITE_QUEUE);
    let group_loop = GroupLoop { replica, sessions, writes: receiver, held: None, began: None };
    (GroupWriter { writes: sender }, group_loop)
}

impl GroupWriter {
    /// Writes. `session` is the one under which was read what the write compares.
    pub async fn write(
        &self,
        session: Session,
        keys: &Keyspace,
        write: &GroupWrite,
    ) -> Result<GroupWritten, GroupWriteError> {
        let (txn, value_bytes) = nested(keys, write);
        let bytes = txn_bytes(&txn);
        if bytes > BACKEND_REQUEST_BYTES {
            return Err(BackendError::TooLarge(format!("{bytes} bytes of one group")).into());
        }
        let (reply, written) = oneshot::channel();
        let queued = Queued { session, group: write.group.clone(), txn, reply };
        self.writes.send(queued).await.map_err(|_| GroupWriteError::Closed)?;
        let revision = written.await.unwrap_or(Err(GroupWriteError::Closed))?;
        Ok(GroupWritten { revision, value_bytes })
    }
}

/// One group's transaction, to be nested: all of it or nothing. With it, how many bytes the group's own value has.
fn nested(keys: &Keyspace, write: &GroupWrite) -> (Txn, usize) {
    assert!(write.offsets.len() <= GROUP_WRITE_KEYS, "a write of too many keys would not fit beside others");
    let own = keys.encode(&Key::Group(write.group.clone()));
    let mut txn = Txn {
        compares: vec![Compare::ModRevision(own.clone(), write.revision)],
        then: Vec::new(),
        otherwise: Vec::new(),
    };
    let mut change = |key: Bytes, value: Option<Vec<u8>>| {
        txn.otherwise.push(Op::Range(KeyRange::Key(key.clone())));
        txn.then.push(match value {
            Some(value) => Op::put(key, value),
            None => Op::Delete(KeyRange::Key(key)),
        });
    };
    let mut value_bytes = 0;
    match &write.put {
        GroupPut::Keep => {}
        GroupPut::Put(value) => {
            let value = value.encode();
            value_bytes = value.len();
            change(own, Some(value));
        }
        GroupPut::Delete => change(own, None),
    }
    for put in &write.offsets {
        let (topic, part) = put.key.clone();
        let key = keys.encode(&Key::Offsets { group: write.group.clone(), topic, part });
        change(key, put.value.as_ref().map(Value::encode));
    }
    for put in write.offsets.iter().filter(|_| !mutation::is(Mutation::MergeOffsetsBlindly)) {
        let (topic, part) = put.key.clone();
        let key = keys.encode(&Key::Offsets { group: write.group.clone(), topic, part });
        txn.compares.push(Compare::ModRevision(key, put.revision));
    }
    (txn, value_bytes)
}

impl GroupLoop {
    /// Writes until every handle is dropped.
    pub async fn run(mut self) {
        loop {
            let first = match self.held.take() {
                Some(held) => held,
                None => match self.writes.recv().await {
                    Some(first) => first,
                    None => return,
                },
            };
            if let Some(began) = self.began {
                sleep_until(began + PACE).await;
            }
            self.began = Some(Instant::now());
            let batch = self.gather(first);
            self.write(batch).await;
        }
    }

    /// Takes what is ready and fits: one write per group, all under the same registration.
    fn gather(&mut self, first: Queued) -> Vec<Queued> {
        let session = first.session;
        let mut bytes = txn_bytes(&first.txn);
        let mut groups = BTreeSet::from([first.group.clone()]);
        let mut batch = vec![first];
        while batch.len() < GROUP_WRITES_PER_TXN {
            let Ok(next) = self.writes.try_recv() else { break };
            bytes += txn_bytes(&next.txn);
            if bytes > BACKEND_REQUEST_BYTES || next.session != session || !groups.insert(next.group.clone())
            {
                self.held = Some(next);
                break;
            }
            batch.push(next);
        }
        batch
    }

    async fn write(&self, batch: Vec<Queued>) {
        let Some(session) = batch.first().map(|q| q.session) else { return };
        if self.sessions.current() != Some(session) {
            for queued in batch {
                let _ = queued.reply.send(Err(GroupWriteError::NotRegistered));
            }
            return;
        }
        let [registration, commits] =
            [Key::Broker(session.node_id), Key::Commits].map(|key| self.replica.keys().encode(&key));
        let mut then: Vec<Op> = batch.iter().map(|q| Op::Txn(q.txn.clone())).collect();
        // Counted as those of the log are: a broker whose watch leaves it out notices. It has no records.
        then.push(Op::put(commits, encode_count(0)));
        let txn = Txn {
            // Invariant 5: nothing is committed under a registration that was lost.
            compares: vec![Compare::CreateRevision(registration, session.incarnation)],
            then,
            otherwise: Vec::new(),
        };
        match self.execute(&txn).await {
            Err(error) => {
                for queued in batch {
                    let _ = queued.reply.send(Err(error.clone().into()));
                }
            }
            Ok((response, _)) if !response.succeeded => {
                info!(
                    incarnation = session.incarnation,
                    "the registration is gone; nothing more is committed under it"
                );
                self.sessions.end(session.incarnation);
                for queued in batch {
                    let _ = queued.reply.send(Err(GroupWriteError::NotRegistered));
                }
            }
            Ok((response, resent)) => {
                let mut responses = response.responses.into_iter();
                for queued in batch {
                    let written = match responses.next() {
                        Some(OpResponse::Txn(own)) => outcome(&queued.txn, &own, response.revision, resent),
                        _ => Err(BackendError::Broken("a nested transaction has no answer".into()).into()),
                    };
                    // Whoever stopped waiting does not need the answer; what is written stays written.
                    let _ = queued.reply.send(written);
                }
            }
        }
    }

    /// Sends the transaction until there is an answer, and says whether it was sent before with no answer.
    async fn execute(&self, txn: &Txn) -> Result<(TxnResponse, bool), BackendError> {
        let backend: &dyn Backend = self.replica.backend().as_ref();
        let deadline = Instant::now() + BACKEND_TIMEOUT;
        let mut backoff = BACKOFF.0;
        let mut unknown = false;
        loop {
            let answer = timeout_at(deadline, backend.txn(txn.clone())).await;
            let error = match answer {
                Ok(Ok(response)) => return Ok((response, unknown)),
                Ok(Err(error)) => error,
                Err(_) => return Err(BackendError::OutcomeUnknown("no answer in time".to_owned())),
            };
            match &error {
                BackendError::Unavailable(why) => debug!(why, "a write of groups was not executed"),
                BackendError::OutcomeUnknown(why) => {
                    warn!(why, "the outcome of a write of groups is unknown; sending it again");
                    unknown = true;
                }
                _ => return Err(error),
            }
            if Instant::now() + backoff >= deadline {
                return Err(error);
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }
}

/// What became of one group's write. `resent` says that an earlier send of it may have been executed.
fn outcome(sent: &Txn, answer: &TxnResponse, revision: i64, resent: bool) -> Result<i64, GroupWriteError> {
    if answer.succeeded {
        return Ok(revision);
    }
    let mut written = 0;
    let was_done = resent
        && answer.responses.len() == sent.then.len()
        && sent.then.iter().zip(&answer.responses).all(|(op, found)| match (op, found) {
            (Op::Put { value, .. }, OpResponse::Range(kvs)) => kvs.first().is_some_and(|kv| {
                written = kv.mod_revision;
                kv.value == *value
            }),
            (Op::Delete(_), OpResponse::Range(kvs)) => kvs.is_empty(),
            _ => false,
        });
    if was_done { Ok(written.max(1)) } else { Err(GroupWriteError::Conflict) }
}
