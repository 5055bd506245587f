//! Writing groups, through the broker's committer.

use bytes::Bytes;
use tokio::time::timeout;

use super::{GroupPut, GroupWrite, GroupWriteError};
use crate::backend::txn_rules::txn_bytes;
use crate::backend::{BackendError, Compare, KeyRange, Op, Txn};
use crate::commit::{CommitError, Committer, Session};
use crate::keys::{Key, Keyspace};
use crate::limits::{BACKEND_REQUEST_BYTES, BACKEND_TIMEOUT, GROUP_WRITE_KEYS};
use crate::values::Value;

/// Writes groups. Cheap to clone.
#[derive(Clone, Debug)]
pub struct GroupWriter {
    committer: Committer,
}

/// What was written of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupWritten {
    /// The mod revision of everything that was put.
    pub revision: i64,
    /// Bytes of the group's own value; 0 if it was not put.
    pub value_bytes: usize,
}

impl GroupWriter {
    /// A writer that commits through `committer`.
    pub fn new(committer: Committer) -> Self {
        Self { committer }
    }

    /// Writes. `session` is the one under which was read what the write compares.
    ///
    /// Without an answer within [`BACKEND_TIMEOUT`] the outcome is unknown: who goes on must read
    /// first. Should the write be executed later, its compares see to it that nothing that was
    /// written since is changed.
    pub async fn write(
        &self,
        session: Session,
        keys: &Keyspace,
        write: &GroupWrite,
    ) -> Result<GroupWritten, GroupWriteError> {
        let (txn, value_bytes) = transaction(keys, write);
        let bytes = txn_bytes(&txn);
        if bytes > BACKEND_REQUEST_BYTES {
            return Err(BackendError::TooLarge(format!("{bytes} bytes of one group")).into());
        }
        let written = self.committer.write(session, txn.compares, txn.then);
        match timeout(BACKEND_TIMEOUT, written).await {
            Ok(revision) => Ok(GroupWritten { revision: revision?, value_bytes }),
            Err(_) => Err(BackendError::OutcomeUnknown("no answer in time".to_owned()).into()),
        }
    }
}

impl From<CommitError> for GroupWriteError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::NotRegistered => Self::NotRegistered,
            CommitError::Conflict => Self::Conflict,
            CommitError::Refused(error) => Self::Backend(error),
            CommitError::OutcomeUnknown | CommitError::OutcomeLost => {
                Self::Backend(BackendError::OutcomeUnknown(error.to_string()))
            }
            CommitError::Closed => Self::Closed,
        }
    }
}

/// One group's transaction: all of it or nothing. With it, how many bytes the group's own value
/// has.
fn transaction(keys: &Keyspace, write: &GroupWrite) -> (Txn, usize) {
    assert!(write.offsets.len() <= GROUP_WRITE_KEYS, "a write of too many keys would not fit beside others");
    let own = keys.encode(&Key::Group(write.group.clone()));
    let compares = vec![Compare::ModRevision(own.clone(), write.revision)];
    let mut txn = Txn { compares, ..Txn::default() };
    let mut change = |key: Bytes, value: Option<Vec<u8>>| {
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
    for put in &write.offsets {
        let (topic, part) = put.key.clone();
        let key = keys.encode(&Key::Offsets { group: write.group.clone(), topic, part });
        txn.compares.push(Compare::ModRevision(key, put.revision));
    }
    (txn, value_bytes)
}
