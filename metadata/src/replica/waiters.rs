//! Fetches that wait for partitions to move.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use uuid::Uuid;

use super::Replica;

/// Who waits for which partition.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next_id: u64,
    by_partition: BTreeMap<(Uuid, u32), Vec<Waiter>>,
}

/// The number of a subscription, and how to wake it.
type Waiter = (u64, Arc<Notify>);

impl Waiters {
    pub(super) fn subscribe(&self, replica: &Replica, partitions: &[(Uuid, u32)]) -> Subscription {
        let notify = Arc::new(Notify::new());
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let id = inner.next_id;
        inner.next_id += 1;
        for partition in partitions {
            inner.by_partition.entry(*partition).or_default().push((id, notify.clone()));
        }
        Subscription { replica: replica.clone(), id, partitions: partitions.to_vec(), notify }
    }

    pub(super) fn wake(&self, moved: &[(Uuid, u32)]) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for waiting in moved.iter().filter_map(|p| inner.by_partition.get(p)) {
            for (_, notify) in waiting {
                notify.notify_one();
            }
        }
    }

    pub(super) fn wake_all(&self) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, notify) in inner.by_partition.values().flatten() {
            notify.notify_one();
        }
    }
}

/// Interest in some partitions; ends when it is dropped.
#[derive(Debug)]
pub struct Subscription {
    replica: Replica,
    id: u64,
    partitions: Vec<(Uuid, u32)>,
    notify: Arc<Notify>,
}

impl Subscription {
    /// Waits until one of the partitions has moved since the subscription began or since the last
    /// call returned. Cancellation-safe.
    pub async fn moved(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut inner = self.replica.shared.waiters.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for partition in &self.partitions {
            if let Some(waiting) = inner.by_partition.get_mut(partition) {
                waiting.retain(|(id, _)| *id != self.id);
                if waiting.is_empty() {
                    inner.by_partition.remove(partition);
                }
            }
        }
    }
}
