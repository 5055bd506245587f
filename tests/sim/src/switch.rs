//! A metadata store in whose place another one can be put, as whoever restores a backup does.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use strandline_metadata::backend::embedded::Embedded;
use strandline_metadata::backend::{
    Backend, BackendError, ChangedRequest, ChangedResponse, KeyRange, RangeRequest, RangeResponse,
    ReadBackend, Txn, TxnResponse, Watch,
};

/// The store that answers now.
#[derive(Debug)]
pub(crate) struct Switch(Mutex<Embedded>);

impl Switch {
    pub(crate) fn new(store: Embedded) -> Self {
        Self(Mutex::new(store))
    }

    pub(crate) fn now(&self) -> Embedded {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another one in its place. Watches stay with the one that they were opened on.
    pub(crate) fn replace(&self, store: Embedded) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = store;
    }
}

#[async_trait]
impl ReadBackend for Switch {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, BackendError> {
        self.now().range(request).await
    }

    async fn changed(&self, request: ChangedRequest) -> Result<ChangedResponse, BackendError> {
        self.now().changed(request).await
    }

    async fn watch(&self, keys: KeyRange, revision: i64) -> Result<Box<dyn Watch>, BackendError> {
        self.now().watch(keys, revision).await
    }
}

#[async_trait]
impl Backend for Switch {
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
