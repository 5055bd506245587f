//! etcd and S3 as a broker sees them: on the other end of a link. A call that has left the broker
//! is under way on its own: it may be executed although the broker was killed meanwhile, and its
//! answer may come when nobody waits for it.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use strandline_metadata::backend::{
    Backend, BackendError, ChangedRequest, ChangedResponse, KeyRange, RangeRequest, RangeResponse,
    ReadBackend, Txn, TxnResponse, Watch, WatchBatch,
};
use strandline_storage::error::StoreError;
use strandline_storage::path::ObjectKey;
use strandline_storage::store::{ObjectMeta, Payload, Store};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::link::Link;

/// Time for an answer of etcd, as its client has it.
const ANSWER: Duration = Duration::from_secs(5);

/// Sends a call over a link. `None` if the answer never comes.
async fn call<T: Send + 'static>(link: &Link, call: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let (answer, answered) = oneshot::channel();
    let link = link.clone();
    tokio::spawn(async move {
        link.cross_by_call().await;
        let result = call.await;
        link.cross_by_call().await;
        // Whoever asked may be gone.
        let _ = answer.send(result);
    });
    answered.await.ok()
}

/// A metadata store behind a link.
#[derive(Debug)]
pub(crate) struct RemoteBackend {
    inner: Arc<dyn Backend>,
    link: Link,
}

impl RemoteBackend {
    pub(crate) fn new(inner: Arc<dyn Backend>, link: Link) -> Self {
        Self { inner, link }
    }

    /// A call that changes something: without an answer nobody knows whether it did.
    async fn change<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, BackendError>> + Send + 'static,
    ) -> Result<T, BackendError> {
        let lost = || BackendError::OutcomeUnknown("no answer".to_owned());
        timeout(ANSWER, call(&self.link, change)).await.ok().flatten().ok_or_else(lost)?
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl Future<Output = Result<T, BackendError>> + Send + 'static,
    ) -> Result<T, BackendError> {
        let lost = || BackendError::Unavailable("no answer".to_owned());
        timeout(ANSWER, call(&self.link, read)).await.ok().flatten().ok_or_else(lost)?
    }
}

#[async_trait]
impl ReadBackend for RemoteBackend {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, BackendError> {
        let inner = self.inner.clone();
        self.read(async move { inner.range(request).await }).await
    }

    async fn changed(&self, request: ChangedRequest) -> Result<ChangedResponse, BackendError> {
        let inner = self.inner.clone();
        self.read(async move { inner.changed(request).await }).await
    }

    async fn watch(&self, keys: KeyRange, revision: i64) -> Result<Box<dyn Watch>, BackendError> {
        let inner = self.inner.clone();
        let inner = self.read(async move { inner.watch(keys, revision).await }).await?;
        Ok(Box::new(RemoteWatch { inner, link: self.link.clone(), arrived: None }))
    }
}

#[async_trait]
impl Backend for RemoteBackend {
    async fn txn(&self, txn: Txn) -> Result<TxnResponse, BackendError> {
        let inner = self.inner.clone();
        self.change(async move { inner.txn(txn).await }).await
    }

    async fn lease_grant(&self, ttl_s: i64) -> Result<i64, BackendError> {
        let inner = self.inner.clone();
        self.change(async move { inner.lease_grant(ttl_s).await }).await
    }

    async fn lease_keep_alive(&self, lease: i64) -> Result<i64, BackendError> {
        let inner = self.inner.clone();
        self.change(async move { inner.lease_keep_alive(lease).await }).await
    }

    async fn lease_revoke(&self, lease: i64) -> Result<(), BackendError> {
        let inner = self.inner.clone();
        self.change(async move { inner.lease_revoke(lease).await }).await
    }

    async fn compact(&self, revision: i64) -> Result<(), BackendError> {
        let inner = self.inner.clone();
        self.change(async move { inner.compact(revision).await }).await
    }
}

/// A watch whose batches come over a link.
#[derive(Debug)]
struct RemoteWatch {
    inner: Box<dyn Watch>,
    link: Link,
    /// A batch that has been sent and may still be under way.
    arrived: Option<WatchBatch>,
}

#[async_trait]
impl Watch for RemoteWatch {
    async fn next(&mut self) -> Result<WatchBatch, BackendError> {
        loop {
            if self.arrived.is_some() {
                // Order is kept: one stream.
                self.link.passable().await;
                if let Some(batch) = self.arrived.take() {
                    return Ok(batch);
                }
            }
            self.arrived = Some(self.inner.next().await?);
        }
    }
}

/// An object store behind a link. A PUT or DELETE may be done twice, the second time much later, as
/// something between broker and store may do that repeats requests.
#[derive(Debug)]
pub(crate) struct RemoteStore {
    inner: Arc<dyn Store>,
    link: Link,
    /// How likely a PUT is done again.
    pub(crate) doubled: f64,
}

impl RemoteStore {
    pub(crate) fn new(inner: Arc<dyn Store>, link: Link, doubled: f64) -> Self {
        Self { inner, link, doubled }
    }

    async fn call<T: Send + 'static>(
        &self,
        what: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let Some(answer) = call(&self.link, what).await else {
            // The time limit above this ends the wait.
            return std::future::pending().await;
        };
        answer
    }
}

#[async_trait]
impl Store for RemoteStore {
    async fn put(&self, key: &ObjectKey, payload: Payload) -> Result<(), StoreError> {
        let (inner, key) = (self.inner.clone(), key.clone());
        let again = (self.doubled > 0.0 && self.link.random().chance(self.doubled))
            .then(|| (inner.clone(), key.clone(), payload.clone(), self.link.random().ms(1, 3000)));
        self.call(async move {
            let done = inner.put(&key, payload).await;
            if let Some((inner, key, payload, later)) = again {
                tokio::spawn(async move {
                    tokio::time::sleep(later).await;
                    // Nobody waits for this answer.
                    let _ = inner.put(&key, payload).await;
                });
            }
            done
        })
        .await
    }

    async fn get(&self, key: &ObjectKey, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        let (inner, key) = (self.inner.clone(), key.clone());
        self.call(async move { inner.get(&key, range).await }).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let (inner, key) = (self.inner.clone(), key.clone());
        self.call(async move { inner.delete(&key).await }).await
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&ObjectKey>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        let (inner, prefix, start_after) = (self.inner.clone(), prefix.to_owned(), start_after.cloned());
        self.call(async move { inner.list(&prefix, start_after.as_ref(), limit).await }).await
    }
}
