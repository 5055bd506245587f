//! Gives every request an end, whatever the backend below does.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::timeout;

use super::{ObjectMeta, Payload, Store};
use crate::error::{Operation, StoreError};
use crate::path::ObjectKey;

/// A store whose requests fail as unavailable when they take too long. A PUT or DELETE that did may
/// still happen.
#[derive(Debug)]
pub struct TimeLimited {
    inner: Arc<dyn Store>,
    limit: Duration,
}

impl TimeLimited {
    /// Gives each request to `inner` at most `limit`.
    pub fn new(inner: Arc<dyn Store>, limit: Duration) -> Self {
        Self { inner, limit }
    }

    async fn run<T>(
        &self,
        operation: Operation,
        key: &str,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match timeout(self.limit, request).await {
            Ok(result) => result,
            Err(_) => Err(self.no_answer(operation, key)),
        }
    }

    fn no_answer(&self, operation: Operation, key: &str) -> StoreError {
        let message = format!("no answer within {:?}", self.limit);
        StoreError::Unavailable { key: key.to_owned(), operation, message }
    }
}

#[async_trait]
impl Store for TimeLimited {
    async fn put(&self, key: &ObjectKey, payload: Payload) -> Result<(), StoreError> {
        self.run(Operation::Put, key.as_str(), self.inner.put(key, payload)).await
    }

    async fn get(&self, key: &ObjectKey, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        self.run(Operation::Get, key.as_str(), self.inner.get(key, range)).await
    }

    async fn get_pieces(&self, key: &ObjectKey, range: Option<Range<u64>>) -> Result<Vec<Bytes>, StoreError> {
        self.run(Operation::Get, key.as_str(), self.inner.get_pieces(key, range)).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.run(Operation::Delete, key.as_str(), self.inner.delete(key)).await
    }

    async fn delete_many(&self, keys: &[ObjectKey]) -> Vec<Result<(), StoreError>> {
        if let Ok(results) = timeout(self.limit, self.inner.delete_many(keys)).await {
            return results;
        }
        keys.iter().map(|key| Err(self.no_answer(Operation::Delete, key.as_str()))).collect()
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
        self.run(Operation::List, prefix, self.inner.list(prefix, start_after, limit)).await
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::store::{Fault, Faulty, ObjectStoreBackend, conformance};

    #[tokio::test]
    async fn a_time_limited_store_conforms() {
        let memory = Arc::new(ObjectStoreBackend::memory());
        conformance::run(&TimeLimited::new(memory, Duration::from_mins(1))).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_hangs_ends_in_time() {
        let faulty = Faulty::new(Arc::new(ObjectStoreBackend::memory()), 1);
        let key = ObjectKey::parse("wal/a").unwrap();
        for operation in Operation::ALL {
            faulty.handle().inject(operation, Fault::Hang);
        }
        let handle = faulty.handle();
        let store = TimeLimited::new(Arc::new(faulty), Duration::from_secs(3));
        let begin = Instant::now();
        let errors = [
            store.put(&key, Payload::default()).await.unwrap_err(),
            store.get(&key, None).await.unwrap_err(),
            store.delete(&key).await.unwrap_err(),
            store.list("wal/", None, 1).await.unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
        }
        assert_eq!(begin.elapsed().as_secs(), 12);
        handle.inject(Operation::Delete, Fault::Hang);
        let results = store.delete_many(&[key.clone(), key.clone()]).await;
        let hung = |result: &Result<(), StoreError>| matches!(result, Err(StoreError::Unavailable { .. }));
        assert!(results.len() == 2 && results.iter().all(hung), "{results:?}");
        assert_eq!(begin.elapsed().as_secs(), 15);
        store.put(&key, Payload::default()).await.unwrap();
    }
}
