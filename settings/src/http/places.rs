//! Who may have a connection, and who gives way.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::limits::HTTP_IDLE_GRACE;

/// The places of a server.
#[derive(Debug)]
pub(super) struct Places {
    limit: usize,
    opened: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    taken: u64,
    /// By number, so the oldest one comes first.
    connections: BTreeMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    address: IpAddr,
    activity: Arc<Activity>,
    /// Ends it; `None` until it has been started.
    task: Option<AbortHandle>,
}

#[derive(Debug)]
struct Activity {
    /// Requests that it serves now.
    requests: AtomicUsize,
    /// When it last came to serve none, in milliseconds since the server began.
    idle_since_ms: AtomicU64,
}

/// A connection's place; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
    activity: Arc<Activity>,
}

/// A request that its connection serves.
#[derive(Debug)]
pub(super) struct Busy {
    place: Arc<Place>,
}

impl Places {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), opened: Instant::now(), state: Mutex::default() }
    }

    /// A place for a connection from `address`. Where all are taken, a connection of the address
    /// that has most of them gives way, if it has waited for longer than [`HTTP_IDLE_GRACE`], else
    /// any that has. `None` if there is none.
    pub(super) fn take(places: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let now_ms = places.now_ms();
        let mut state = places.lock();
        if state.connections.len() >= places.limit {
            let evicted = state.evictable(now_ms)?;
            if let Some(task) = state.connections.remove(&evicted)?.task {
                task.abort();
            }
        }
        state.taken += 1;
        let number = state.taken;
        let activity = Activity { requests: AtomicUsize::new(0), idle_since_ms: AtomicU64::new(now_ms) };
        let activity = Arc::new(activity);
        state.connections.insert(number, Connection { address, activity: activity.clone(), task: None });
        Some(Place { places: places.clone(), number, activity })
    }

    /// The connection has a task now, which ends when it has to give way.
    pub(super) fn started(&self, number: u64, task: AbortHandle) {
        if let Some(connection) = self.lock().connections.get_mut(&number) {
            connection.task = Some(task);
        }
    }

    fn now_ms(&self) -> u64 {
        millis(self.opened.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl State {
    /// The oldest of the connections that may have to give way.
    fn evictable(&self, now_ms: u64) -> Option<u64> {
        let mut counts = BTreeMap::<IpAddr, usize>::new();
        for connection in self.connections.values() {
            *counts.entry(connection.address).or_default() += 1;
        }
        let busiest = counts.into_iter().max_by_key(|(_, count)| *count).map(|(address, _)| address);
        let mut waiting = self.connections.iter().filter(|(_, c)| c.activity.has_waited(now_ms));
        let of_busiest = waiting.clone().find(|(_, c)| Some(c.address) == busiest);
        of_busiest.or_else(|| waiting.next()).map(|(number, _)| *number)
    }
}

impl Activity {
    fn has_waited(&self, now_ms: u64) -> bool {
        let since_ms = self.idle_since_ms.load(Ordering::Relaxed);
        let is_idle = self.requests.load(Ordering::Relaxed) == 0;
        is_idle && now_ms.saturating_sub(since_ms) >= millis(HTTP_IDLE_GRACE)
    }
}

impl Place {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// From now on the connection serves a request.
    pub(super) fn busy(place: &Arc<Self>) -> Busy {
        place.activity.requests.fetch_add(1, Ordering::Relaxed);
        Busy { place: place.clone() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().connections.remove(&self.number);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let activity = &self.place.activity;
        activity.idle_since_ms.store(self.place.places.now_ms(), Ordering::Relaxed);
        activity.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[tokio::test(start_paused = true)]
    async fn who_only_waits_gives_way_and_who_serves_does_not() {
        let places = Arc::new(Places::new(16));
        let take = |last| Places::take(&places, address(last)).map(Arc::new);
        let held = || places.lock().connections.keys().copied().collect::<Vec<_>>();
        let first = take(1).unwrap();
        let serving = Place::busy(&first);
        let other = take(2).unwrap();
        let crowd: Vec<_> = (2..16).map(|_| take(1).unwrap()).collect();
        assert!(take(3).is_none(), "nobody has waited for long: a request may be on its way");
        tokio::time::advance(HTTP_IDLE_GRACE).await;
        let late: Vec<_> = (3..17).map(|last| take(last).expect("one of the crowd gives way")).collect();
        assert_eq!(held().len(), 16);
        assert!(held().contains(&first.number()), "it serves a request");
        assert!(held().contains(&other.number()), "its address has no more than others");
        drop((first, serving, other, crowd, late));
        assert!(places.lock().connections.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_comes_where_all_serve() {
        let places = Arc::new(Places::new(2));
        let take = |last| Places::take(&places, address(last)).map(Arc::new);
        let held = [take(1).unwrap(), take(2).unwrap()];
        let busy = held.each_ref().map(Place::busy);
        tokio::time::advance(HTTP_IDLE_GRACE).await;
        assert!(take(3).is_none());
        drop(busy);
        assert!(take(3).is_none(), "they have just served");
        tokio::time::advance(HTTP_IDLE_GRACE).await;
        assert!(take(3).is_some());
    }
}
