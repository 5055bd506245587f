//! Fetches that are shared by all who wait for the same thing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};

use crate::error::StoreError;

type FetchFuture<V> = BoxFuture<'static, Result<V, StoreError>>;

/// Fetches that somebody waits for, by what they fetch.
#[derive(Debug)]
pub(super) struct Fetches<K: Ord + Copy, V: Clone>(Arc<Mutex<List<K, V>>>);

#[derive(Debug)]
struct List<K, V: Clone> {
    /// Each with a number of its own.
    by_key: BTreeMap<K, (u64, WeakShared<FetchFuture<V>>)>,
    started: u64,
}

impl<K: Ord + Copy, V: Clone> Default for Fetches<K, V> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(List { by_key: BTreeMap::new(), started: 0 })))
    }
}

impl<K: Ord + Copy + Send + 'static, V: Clone + Send + Sync + 'static> Fetches<K, V> {
    /// The fetch of that key that is under way.
    pub(super) fn under_way(&self, key: K) -> Option<Shared<FetchFuture<V>>> {
        self.lock().by_key.get(&key).and_then(|(_, fetch)| fetch.upgrade())
    }

    /// A new fetch of that key, in the place of one that there may have been. It is done by whoever
    /// waits for it, and given up when nobody does.
    pub(super) fn start(
        &self,
        key: K,
        fetch: impl Future<Output = Result<V, StoreError>> + Send + 'static,
    ) -> Shared<FetchFuture<V>> {
        let mut list = self.lock();
        list.started += 1;
        let number = list.started;
        let listed = Listed { fetches: Self(Arc::clone(&self.0)), key, number };
        let fetch = async move {
            let _listed = listed;
            fetch.await
        };
        let fetch = fetch.boxed().shared();
        // A fetch that nobody has polled yet always has a weak reference.
        if let Some(weak) = fetch.downgrade() {
            list.by_key.insert(key, (number, weak));
        }
        fetch
    }

    /// How many are under way.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().by_key.len()
    }
}

impl<K: Ord + Copy, V: Clone> Fetches<K, V> {
    fn lock(&self) -> MutexGuard<'_, List<K, V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a fetch off the list when it ends, however it ends. Only its own entry: a later fetch of
/// the same key may have taken the place.
struct Listed<K: Ord + Copy, V: Clone> {
    fetches: Fetches<K, V>,
    key: K,
    number: u64,
}

impl<K: Ord + Copy, V: Clone> Drop for Listed<K, V> {
    fn drop(&mut self) {
        let mut list = self.fetches.lock();
        if list.by_key.get(&self.key).is_some_and(|(number, _)| *number == self.number) {
            list.by_key.remove(&self.key);
        }
    }
}
