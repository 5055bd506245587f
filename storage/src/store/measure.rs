//! Counts what is asked of a store, how long it takes and how it ends, and from that tells whether
//! it is well.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::{ObjectMeta, Payload, Store};
use crate::clock::Clock;
use crate::error::{Operation, StoreError};
use crate::metrics::{Outcome, StorageMetrics};
use crate::path::ObjectKey;

/// Whether the object store answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Health {
    /// False after several failures in a row, with no answer in between.
    pub healthy: bool,
    /// Wall time in milliseconds at which this began.
    pub since_ms: i64,
}

/// A store that counts. Belongs below the retries, so that every attempt is seen.
#[derive(Debug)]
pub struct Measured {
    inner: Arc<dyn Store>,
    metrics: StorageMetrics,
    clock: Arc<dyn Clock>,
}

impl Measured {
    /// Measures what is asked of `inner`.
    pub fn new(inner: Arc<dyn Store>, metrics: StorageMetrics, clock: Arc<dyn Clock>) -> Self {
        metrics.observe_start(clock.now_ms());
        Self { inner, metrics, clock }
    }

    fn start(&self, operation: Operation) -> Attempt<'_> {
        Attempt { store: self, operation, started: Instant::now(), outcome: Outcome::Cancelled }
    }
}

/// One request under way. Counts itself when dropped, so that one whose caller went away is counted
/// too.
struct Attempt<'a> {
    store: &'a Measured,
    operation: Operation,
    started: Instant,
    outcome: Outcome,
}

impl Attempt<'_> {
    fn end<T>(mut self, result: &Result<T, StoreError>) {
        self.outcome = Outcome::of(result);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let Measured { metrics, clock, .. } = self.store;
        metrics.observe_request(self.operation, self.outcome, self.started.elapsed(), clock.now_ms());
    }
}

#[async_trait]
impl Store for Measured {
    async fn put(&self, key: &ObjectKey, payload: Payload) -> Result<(), StoreError> {
        let bytes = payload.checksum().bytes();
        let attempt = self.start(Operation::Put);
        let result = self.inner.put(key, payload).await;
        attempt.end(&result);
        if result.is_ok() {
            self.metrics.observe_bytes(Operation::Put, bytes);
        }
        result
    }

    async fn get(&self, key: &ObjectKey, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        let attempt = self.start(Operation::Get);
        let result = self.inner.get(key, range).await;
        attempt.end(&result);
        if let Ok(bytes) = &result {
            self.metrics.observe_bytes(Operation::Get, bytes.len() as u64);
        }
        result
    }

    async fn get_pieces(&self, key: &ObjectKey, range: Option<Range<u64>>) -> Result<Vec<Bytes>, StoreError> {
        let attempt = self.start(Operation::Get);
        let result = self.inner.get_pieces(key, range).await;
        attempt.end(&result);
        if let Ok(pieces) = &result {
            let bytes = pieces.iter().map(Bytes::len).sum::<usize>();
            self.metrics.observe_bytes(Operation::Get, bytes as u64);
        }
        result
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let attempt = self.start(Operation::Delete);
        let result = self.inner.delete(key).await;
        attempt.end(&result);
        result
    }

    async fn delete_many(&self, keys: &[ObjectKey]) -> Vec<Result<(), StoreError>> {
        let attempt = self.start(Operation::Delete);
        let results = self.inner.delete_many(keys).await;
        // If anything was deleted, the store has answered.
        let failed = results.iter().filter(|result| result.is_err()).count();
        match results.first() {
            Some(first) if failed == results.len() => attempt.end(first),
            _ => attempt.end(&Ok(())),
        }
        self.metrics.observe_left_behind(failed as u64);
        results
    }

    fn keys_per_delete(&self) -> usize {
        self.inner.keys_per_delete()
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&ObjectKey>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        let attempt = self.start(Operation::List);
        let result = self.inner.list(prefix, start_after, limit).await;
        attempt.end(&result);
        result
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::SystemClock;
    use crate::store::{Fault, FaultPlan, Faulty, ObjectStoreBackend, conformance};

    #[tokio::test]
    async fn a_measured_store_conforms() {
        let metrics = StorageMetrics::unregistered();
        let store =
            Measured::new(Arc::new(ObjectStoreBackend::memory()), metrics.clone(), Arc::new(SystemClock));
        conformance::run(&store).await;
        assert!(metrics.requests(Operation::Put, Outcome::Ok) > 1000);
        assert!(metrics.requests(Operation::Get, Outcome::Corrupt) > 0);
    }

    #[tokio::test]
    async fn a_request_that_deletes_many_is_one_request() {
        let metrics = StorageMetrics::unregistered();
        let faulty = Faulty::new(Arc::new(ObjectStoreBackend::memory()), 1);
        let faults = faulty.handle();
        let store = Measured::new(Arc::new(faulty), metrics.clone(), Arc::new(SystemClock));
        let keys = ["a", "b", "c"].map(|key| ObjectKey::parse(key).unwrap());
        let counts = || {
            let [ok, denied] = [Outcome::Ok, Outcome::Denied].map(|o| metrics.requests(Operation::Delete, o));
            (ok, denied, metrics.left_behind())
        };
        assert!(store.delete_many(&keys).await.iter().all(Result::is_ok));
        assert_eq!(counts(), (1, 0, 0));
        faults.set(FaultPlan { undeletable: keys[1..2].to_vec(), ..FaultPlan::default() });
        assert_eq!(store.delete_many(&keys).await.iter().filter(|result| result.is_err()).count(), 1);
        assert_eq!(counts(), (2, 0, 1), "the store does answer");
        faults.inject(Operation::Delete, Fault::Denied);
        assert!(store.delete_many(&keys).await.iter().all(Result::is_err));
        assert_eq!(counts(), (2, 1, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_given_up_is_counted_as_that() {
        let metrics = StorageMetrics::unregistered();
        let faulty = Faulty::new(Arc::new(ObjectStoreBackend::memory()), 1);
        faulty.handle().inject(Operation::Get, Fault::Hang);
        let store = Measured::new(Arc::new(faulty), metrics.clone(), Arc::new(SystemClock));
        let key = ObjectKey::parse("a").unwrap();
        let asked = tokio::time::timeout(Duration::from_secs(1), store.get(&key, None)).await;
        assert!(asked.is_err(), "it hangs");
        assert_eq!(metrics.requests(Operation::Get, Outcome::Cancelled), 1);
        assert!(store.get(&key, None).await.is_err());
        assert_eq!(metrics.requests(Operation::Get, Outcome::NotFound), 1);
    }
}
