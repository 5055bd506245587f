//! Where objects lie: one small trait, backends below it, and one decorator for each concern above
//! it.
//!
//! ```text
//! open():  Retrying ─▶ Measured ─▶ TimeLimited ─▶ ObjectStoreBackend ─▶ S3 │ folder │ memory
//! tests:   Retrying ─▶ Measured ─▶ TimeLimited ─▶ Faulty ─▶ …
//! ```
//!
//! Every attempt is measured, so that what is counted is what is paid for. Policy is above the
//! trait, once, and never in a backend. Nothing relies on conditional writes: keys are never reused
//! (see [`crate::path`]).

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};

use crate::clock::Clock;
use crate::error::StoreError;
use crate::limits::DELETES_AT_ONCE;
use crate::metrics::StorageMetrics;
use crate::path::ObjectKey;

mod answer;
mod config;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
mod deleting;
mod faulty;
mod folder;
mod measure;
mod object;
mod payload;
mod retry;
mod s3;
mod s3_connector;
mod s3_delete;
mod time_limit;

pub use config::{Checksum, ParseUrlError, Secret, StoreConfig, StoreUrl};
pub use deleting::delete_while_it_works;
pub use faulty::{Fault, FaultHandle, FaultPlan, Faulty};
pub use measure::{Health, Measured};
pub use object::ObjectStoreBackend;
pub use payload::Payload;
pub use retry::{RetryPolicy, Retrying};
pub use time_limit::TimeLimited;

/// An object in a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectMeta {
    /// Its key, without the store's prefix.
    pub key: ObjectKey,
    /// Its bytes.
    pub size: u64,
}

/// Objects by key. Implementations are cheap to share and safe to drop in the middle of a call; a
/// PUT or DELETE that was dropped may still happen.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Writes a whole object. Unconditional; repeating it with the same bytes changes nothing. When
    /// it returns `Ok` the object is durable, and visible to all. When it fails, whatever the
    /// error, the object may exist, now or in a moment: whoever gives up on it deletes it, and a
    /// later LIST finds what came after that.
    async fn put(&self, key: &ObjectKey, payload: Payload) -> Result<(), StoreError>;

    /// Reads a range of an object, or all of it: exactly that, or an error. Never fewer bytes.
    async fn get(&self, key: &ObjectKey, range: Option<Range<u64>>) -> Result<Bytes, StoreError>;

    /// Reads like [`Self::get`], in the pieces in which the answer came: whoever can do with pieces
    /// saves a copy.
    async fn get_pieces(&self, key: &ObjectKey, range: Option<Range<u64>>) -> Result<Vec<Bytes>, StoreError> {
        Ok(vec![self.get(key, range).await?])
    }

    /// Deletes an object. Deleting what does not exist is `Ok`.
    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError>;

    /// Deletes objects and says what became of each, in the order of the keys. Deleting what does
    /// not exist is `Ok`. The failure of one key is not the failure of the others; a failure of the
    /// whole request is that of every key in it, and each of them may have been deleted.
    async fn delete_many(&self, keys: &[ObjectKey]) -> Vec<Result<(), StoreError>> {
        let deletes: Vec<_> = keys.iter().map(|key| self.delete(key)).collect();
        stream::iter(deletes).buffered(DELETES_AT_ONCE).collect().await
    }

    /// How many keys one request of [`Self::delete_many`] takes, as far as is known by now: 1 where
    /// each object takes a request of its own, and at most [`crate::limits::MAX_DELETE_KEYS`].
    fn keys_per_delete(&self) -> usize {
        1
    }

    /// One page of the objects whose keys begin with `prefix` (empty, or ending with `/`), in the
    /// order of their keys, from the first key greater than `start_after` on. A page has at most
    /// `limit` objects and at most [`crate::limits::MAX_LIST_PAGE`]; an empty page means that there
    /// are no more.
    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&ObjectKey>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError>;
}

/// Opens the store that `config` names, with time limit, measuring and retries around it. It makes
/// no request yet. `seed` feeds the jitter of the retries.
pub fn open(
    config: &StoreConfig,
    metrics: &StorageMetrics,
    clock: Arc<dyn Clock>,
    seed: u64,
) -> Result<Arc<dyn Store>, StoreError> {
    Ok(with_policy(open_backend(config)?, config, metrics, clock, seed))
}

/// Opens the store that `config` names, bare: no retries, no time limit, no metrics.
pub fn open_backend(config: &StoreConfig) -> Result<Arc<dyn Store>, StoreError> {
    Ok(Arc::new(ObjectStoreBackend::open(config)?))
}

/// Puts time limit, measuring and retries around a store, as [`open`] does.
pub fn with_policy(
    backend: Arc<dyn Store>,
    config: &StoreConfig,
    metrics: &StorageMetrics,
    clock: Arc<dyn Clock>,
    seed: u64,
) -> Arc<dyn Store> {
    let limited = Arc::new(TimeLimited::new(backend, config.request_timeout));
    let measured = Arc::new(Measured::new(limited, metrics.clone(), clock));
    let policy = RetryPolicy { budget: config.retry_budget, ..RetryPolicy::default() };
    Arc::new(Retrying::new(measured, policy, seed))
}
