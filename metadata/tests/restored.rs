//! A metadata store that is replaced by an older one under a broker that runs.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests are outside of what clippy calls a test"
)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use strandline_metadata::backend::embedded::Embedded;
use strandline_metadata::backend::{
    Backend, BackendError, ChangedRequest, ChangedResponse, KeyRange, Op, RangeRequest, RangeResponse,
    ReadBackend, Txn, TxnResponse, Watch, WatchBatch,
};
use strandline_metadata::keys::{Key, Keyspace};
use strandline_metadata::replica::{LoadError, NoObserver, Replica};
use strandline_storage::store::ObjectStoreBackend;
use tokio::sync::watch;
use tokio::time::timeout;

fn keys() -> Keyspace {
    Keyspace::new("test").unwrap()
}

/// A store with so many changes.
async fn store_with(changes: usize) -> Embedded {
    let store = Embedded::in_memory();
    for number in 0..changes {
        let put = Op::put(keys().encode(&Key::Leader(format!("job-{number}"))), "{}");
        store.txn(Txn { then: vec![put], ..Txn::default() }).await.unwrap();
    }
    store
}

/// A store that can be replaced, and whose reads fail for a while afterwards.
#[derive(Debug)]
struct Replaceable {
    store: Mutex<Embedded>,
    failing_reads: AtomicUsize,
    replaced: watch::Sender<u32>,
}

impl Replaceable {
    fn now(&self) -> Embedded {
        self.store.lock().unwrap().clone()
    }

    fn replace(&self, by: Embedded, failing_reads: usize) {
        *self.store.lock().unwrap() = by;
        self.failing_reads.store(failing_reads, Ordering::Relaxed);
        self.replaced.send_modify(|count| *count += 1);
    }
}

#[async_trait]
impl ReadBackend for Replaceable {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, BackendError> {
        let fails = |left: usize| left.checked_sub(1);
        if self.failing_reads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fails).is_ok() {
            return Err(BackendError::Unavailable("it is being replaced".to_owned()));
        }
        self.now().range(request).await
    }

    async fn changed(&self, request: ChangedRequest) -> Result<ChangedResponse, BackendError> {
        self.now().changed(request).await
    }

    async fn watch(&self, keys: KeyRange, revision: i64) -> Result<Box<dyn Watch>, BackendError> {
        let mut replaced = self.replaced.subscribe();
        replaced.mark_unchanged();
        Ok(Box::new(UntilReplaced { watch: self.now().watch(keys, revision).await?, replaced }))
    }
}

#[async_trait]
impl Backend for Replaceable {
    async fn txn(&self, txn: Txn) -> Result<TxnResponse, BackendError> {
        self.now().txn(txn).await
    }

    async fn lease_grant(&self, ttl_s: i64) -> Result<i64, BackendError> {
        self.now().lease_grant(ttl_s).await
    }

    async fn lease_keep_alive(&self, lease: i64) -> Result<i64, BackendError> {
        self.now().lease_keep_alive(lease).await
    }

    async fn lease_revoke(&self, lease: i64) -> Result<(), BackendError> {
        self.now().lease_revoke(lease).await
    }

    async fn compact(&self, revision: i64) -> Result<(), BackendError> {
        self.now().compact(revision).await
    }
}

#[derive(Debug)]
struct UntilReplaced {
    watch: Box<dyn Watch>,
    replaced: watch::Receiver<u32>,
}

#[async_trait]
impl Watch for UntilReplaced {
    async fn next(&mut self) -> Result<WatchBatch, BackendError> {
        tokio::select! {
            biased;
            _ = self.replaced.changed() => Err(BackendError::Unavailable("it was replaced".to_owned())),
            batch = self.watch.next() => batch,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_runs_notices_although_the_store_does_not_answer_at_first() {
    for failing_reads in [0, 1, 3] {
        let backend = Arc::new(Replaceable {
            store: Mutex::new(store_with(20).await),
            failing_reads: AtomicUsize::new(0),
            replaced: watch::Sender::new(0),
        });
        let objects = Arc::new(ObjectStoreBackend::memory());
        let (replica, replica_loop, _barrier) =
            Replica::open(backend.clone(), keys(), objects, Box::new(NoObserver)).await.unwrap();
        let mut following = Box::pin(replica_loop.run());
        let at_first = timeout(Duration::from_secs(1), &mut following).await;
        assert!(at_first.is_err(), "it follows");
        backend.replace(store_with(1).await, failing_reads);
        let ended = timeout(Duration::from_secs(30), following).await;
        let reason = ended.unwrap_or_else(|_| panic!("after {failing_reads} failed reads it is trusted"));
        assert!(matches!(reason, LoadError::Restored { .. }));
        drop(replica);
    }
}
