//! Objects that this broker has written, or may have, and that certainly no record refers to
//! (invariant 6). They are removed at once, or when the store deletes again. Those that are left
//! when the broker ends are collected as orphans of an incarnation that is gone (`jobs/gc.rs`).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use strandline_storage::path::{ObjectId, ObjectKey};
use strandline_storage::reader::Reader;
use strandline_storage::store::Store;
use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::debug;

use crate::limits::{UNWANTED_AT_ONCE, UNWANTED_OBJECTS, UNWANTED_REST};

/// Those that are not removed yet. Clones are the same list.
#[derive(Clone, Debug)]
pub struct Unwanted {
    store: Arc<dyn Store>,
    reader: Reader,
    waiting: Arc<Mutex<VecDeque<ObjectId>>>,
    added: Arc<Notify>,
}

impl Unwanted {
    /// Nothing yet, of this store.
    pub fn new(store: Arc<dyn Store>, reader: Reader) -> Self {
        Self { store, reader, waiting: Arc::default(), added: Arc::default() }
    }

    /// Has an object removed. Whoever calls this knows that no record refers to it, and that none
    /// will.
    pub fn discard(&self, object: ObjectId) {
        self.reader.evict(object);
        let mut waiting = self.lock();
        // Beyond that they wait for the end of this incarnation.
        if waiting.len() < UNWANTED_OBJECTS {
            waiting.push_back(object);
            self.added.notify_one();
        }
    }

    /// Removes them, until it is dropped.
    pub async fn run(self) {
        loop {
            self.added.notified().await;
            while !self.remove_some().await {
                sleep(UNWANTED_REST).await;
            }
        }
    }

    /// Removes what waits. Whether nothing is left.
    async fn remove_some(&self) -> bool {
        let some: Vec<ObjectId> = self.lock().iter().take(UNWANTED_AT_ONCE).copied().collect();
        let keys: Vec<ObjectKey> = some.iter().map(ObjectId::key).collect();
        let removed = self.store.delete_many(&keys).await;
        let mut waiting = self.lock();
        for (object, removed) in some.into_iter().zip(removed) {
            waiting.pop_front();
            if let Err(error) = removed {
                debug!(%object, %error, "an object that nothing refers to stays for now");
                waiting.push_back(object);
            }
        }
        waiting.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<ObjectId>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
