//! Fetches that wait for partitions to move.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::limits::{WAITER_SHARDS, WORK_PER_TURN};
use crate::turns::Turns;

/// A partition, and a subscription that waits for it.
type Place = (Uuid, u32, u64);

/// Who waits for which partition. A lock is held for one partition at a time, and there are many of
/// them: whoever waits for very many partitions does not hold up whoever wakes them.
#[derive(Debug)]
pub(super) struct Waiters {
    last_id: AtomicU64,
    shards: Vec<Mutex<BTreeMap<Place, Arc<Notify>>>>,
}

impl Default for Waiters {
    fn default() -> Self {
        let shards = std::iter::repeat_with(Mutex::default).take(WAITER_SHARDS).collect();
        Self { last_id: AtomicU64::new(0), shards }
    }
}

impl Waiters {
    pub(super) async fn subscribe(self: &Arc<Self>, partitions: Vec<(Uuid, u32)>) -> Subscription {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed);
        let mut subscription = Subscription {
            waiters: self.clone(),
            id,
            partitions: Vec::with_capacity(partitions.len()),
            notify: Arc::new(Notify::new()),
        };
        let mut turns = Turns::default();
        for (topic_id, partition) in partitions {
            self.shard(topic_id, partition).insert((topic_id, partition, id), subscription.notify.clone());
            // What is noted is taken back, also if this is never awaited to its end.
            subscription.partitions.push((topic_id, partition));
            turns.spend(UNITS_PER_PLACE).await;
        }
        subscription
    }

    pub(super) fn wake(&self, moved: &[(Uuid, u32)]) {
        for &(topic_id, partition) in moved {
            let shard = self.shard(topic_id, partition);
            let waiting = shard.range((topic_id, partition, 0)..=(topic_id, partition, u64::MAX));
            waiting.for_each(|(_, notify)| notify.notify_one());
        }
    }

    pub(super) fn wake_all(&self) {
        for shard in &self.shards {
            lock(shard).values().for_each(|notify| notify.notify_one());
        }
    }

    fn forget(&self, id: u64, partitions: &[(Uuid, u32)]) {
        for &(topic_id, partition) in partitions {
            self.shard(topic_id, partition).remove(&(topic_id, partition, id));
        }
    }

    fn shard(&self, topic_id: Uuid, partition: u32) -> MutexGuard<'_, BTreeMap<Place, Arc<Notify>>> {
        let (_, low) = topic_id.as_u64_pair();
        let place = low.wrapping_add(partition.into()) % WAITER_SHARDS as u64;
        lock(&self.shards[usize::try_from(place).unwrap_or(0)])
    }
}

/// What noting a partition costs, in units of a turn.
const UNITS_PER_PLACE: usize = 3;

fn lock<T>(shard: &Mutex<T>) -> MutexGuard<'_, T> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Interest in some partitions; ends when it is dropped.
#[derive(Debug)]
pub struct Subscription {
    waiters: Arc<Waiters>,
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
        let (waiters, id) = (self.waiters.clone(), self.id);
        let partitions = std::mem::take(&mut self.partitions);
        let takes_long = partitions.len() * UNITS_PER_PLACE > WORK_PER_TURN;
        let forget = move || waiters.forget(id, &partitions);
        // Longer than a turn is too long for a thread of the runtime, and nothing can be awaited
        // here.
        let runtime = Handle::try_current().ok().filter(|_| takes_long);
        match runtime.filter(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread) {
            Some(runtime) => drop(runtime.spawn_blocking(forget)),
            None => forget(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_subscription_leaves_nothing_behind_whatever_it_names() {
        let waiters = Arc::new(Waiters::default());
        let noted = || waiters.shards.iter().map(|shard| lock(shard).len()).sum::<usize>();
        let topic = Uuid::from_u128(7);
        // The same partition many times is one place.
        let twice = waiters.subscribe(vec![(topic, 3); 50_000]).await;
        let other = waiters.subscribe(vec![(topic, 3), (topic, 4)]).await;
        assert_eq!(noted(), 3);
        waiters.wake(&[(topic, 3)]);
        twice.moved().await;
        other.moved().await;
        waiters.wake(&[(topic, 4)]);
        other.moved().await;
        drop(twice);
        assert_eq!(noted(), 2);
        drop(other);
        assert_eq!(noted(), 0);
    }
}
