//! What a broker commits is answered late, at the one moment at which that is dangerous: between
//! the checkpoint of a snapshot and the snapshot itself.
//!
//! All other calls are held back as well, until the broker's lease is over and another broker has
//! written a snapshot; the watch goes on. So the broker registers again, has applied what the other
//! one did, and then hears that its own checkpoint is committed. Its snapshot would be of an older
//! state.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use strandline_metadata::backend::{
    Backend, BackendError, ChangedRequest, ChangedResponse, KeyRange, Op, RangeRequest, RangeResponse,
    ReadBackend, Txn, TxnResponse, Watch,
};
use strandline_metadata::keys::{Key, Keyspace};
use strandline_metadata::record::{Body, Record};
use tokio::time::{sleep, timeout};

use crate::link::Link;
use crate::random::Random;
use crate::trace::Trace;

/// How likely the answer to a checkpoint is late.
const CHANCE: f64 = 0.3;
/// How long calls are held back at most: a little less than a broker waits for an answer.
const LONGEST: Duration = Duration::from_millis(4300);

/// etcd as one broker has it: behind `link`, and late with checkpoints.
#[derive(Debug)]
pub(crate) struct LateCheckpoints {
    pub(crate) inner: Arc<dyn Backend>,
    pub(crate) keys: Keyspace,
    pub(crate) node_id: i32,
    pub(crate) link: Link,
    pub(crate) random: Random,
    pub(crate) trace: Trace,
}

impl LateCheckpoints {
    /// Holds back what is answered to a checkpoint of this revision.
    async fn hold_back(&self, revision: i64) {
        let note = |what| self.trace.note(&format!("broker {}: {what}", self.node_id));
        note("its checkpoint is committed, and nothing but the watch gets through any more");
        self.link.hold_calls(true);
        let overtaken = timeout(LONGEST, self.overtaken(revision)).await;
        self.link.hold_calls(false);
        note(match overtaken {
            Ok(()) => "another broker has written a snapshot, and calls get through again",
            Err(_) => "calls get through again",
        });
        // Until it is registered again.
        sleep(self.random.ms(300, 500)).await;
        note("its checkpoint is answered");
    }

    /// Ends when a snapshot is listed that is newer than this revision.
    async fn overtaken(&self, revision: i64) {
        let keys = KeyRange::Key(self.keys.encode(&Key::Snapshot));
        let read = RangeRequest { keys, revision: None, limit: 1, keys_only: true };
        loop {
            let found = self.inner.range(read.clone()).await;
            if found.is_ok_and(|found| found.kvs.iter().any(|kv| kv.mod_revision > revision)) {
                return;
            }
            sleep(self.random.ms(20, 100)).await;
        }
    }
}

fn has_checkpoint(txn: &Txn) -> bool {
    let is_checkpoint = |op: &Op| match op {
        Op::Put { value, .. } => matches!(Record::from_bytes(value), Ok((_, Body::Checkpoint(_)))),
        Op::Delete(_) | Op::Range(_) | Op::Txn(_) => false,
    };
    txn.then.iter().any(is_checkpoint)
}

#[async_trait]
impl ReadBackend for LateCheckpoints {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, BackendError> {
        self.inner.range(request).await
    }

    async fn changed(&self, request: ChangedRequest) -> Result<ChangedResponse, BackendError> {
        self.inner.changed(request).await
    }

    async fn watch(&self, keys: KeyRange, revision: i64) -> Result<Box<dyn Watch>, BackendError> {
        self.inner.watch(keys, revision).await
    }
}

#[async_trait]
impl Backend for LateCheckpoints {
    async fn txn(&self, txn: Txn) -> Result<TxnResponse, BackendError> {
        let is_checkpoint = has_checkpoint(&txn);
        let response = self.inner.txn(txn).await?;
        if is_checkpoint && response.succeeded && self.random.chance(CHANCE) {
            self.hold_back(response.revision).await;
        }
        Ok(response)
    }

    async fn lease_grant(&self, ttl_s: i64) -> Result<i64, BackendError> {
        self.inner.lease_grant(ttl_s).await
    }

    async fn lease_keep_alive(&self, lease: i64) -> Result<i64, BackendError> {
        self.inner.lease_keep_alive(lease).await
    }

    async fn lease_revoke(&self, lease: i64) -> Result<(), BackendError> {
        self.inner.lease_revoke(lease).await
    }

    async fn compact(&self, revision: i64) -> Result<(), BackendError> {
        self.inner.compact(revision).await
    }
}
