//! Who may have a connection, and who gives way.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;

use crate::limits::{HTTP_ADDRESS_SHARE, HTTP_CONNECTIONS_PER_ADDRESS};

/// The places of a server.
#[derive(Debug)]
pub(super) struct Places {
    limit: usize,
    per_address: usize,
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
    requests: Arc<AtomicUsize>,
    /// Ends it; `None` until it has been started.
    task: Option<AbortHandle>,
}

/// A connection's place; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
    requests: Arc<AtomicUsize>,
}

/// A request that its connection serves.
#[derive(Debug)]
pub(super) struct Busy {
    requests: Arc<AtomicUsize>,
}

impl Places {
    pub(super) fn new(limit: usize) -> Self {
        let limit = limit.max(1);
        let per_address = (limit / HTTP_ADDRESS_SHARE).max(HTTP_CONNECTIONS_PER_ADDRESS).min(limit);
        Self { limit, per_address, state: Mutex::default() }
    }

    /// A place for a connection from `address`, which another connection may have to give up: one
    /// from the same address where that has its share. `None` if none of those only waits.
    pub(super) fn take(places: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut state = places.lock();
        let from_address = state.connections.values().filter(|c| c.address == address).count();
        let evicted = if from_address >= places.per_address {
            Some(state.idle(|connection| connection.address == address)?)
        } else if state.connections.len() >= places.limit {
            Some(state.idle(|_| true)?)
        } else {
            None
        };
        if let Some(task) = evicted.and_then(|number| state.connections.remove(&number)?.task) {
            task.abort();
        }
        state.taken += 1;
        let number = state.taken;
        let requests = Arc::<AtomicUsize>::default();
        state.connections.insert(number, Connection { address, requests: requests.clone(), task: None });
        Some(Place { places: places.clone(), number, requests })
    }

    /// The connection has a task now, which ends when it has to give way.
    pub(super) fn started(&self, number: u64, task: AbortHandle) {
        if let Some(connection) = self.lock().connections.get_mut(&number) {
            connection.task = Some(task);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The oldest one of these connections that serves no request.
    fn idle(&self, is_candidate: impl Fn(&Connection) -> bool) -> Option<u64> {
        let idle = |connection: &Connection| connection.requests.load(Ordering::Relaxed) == 0;
        self.connections.iter().find(|(_, c)| is_candidate(c) && idle(c)).map(|(number, _)| *number)
    }
}

impl Place {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// From now on the connection serves a request.
    pub(super) fn busy(place: &Arc<Self>) -> Busy {
        place.requests.fetch_add(1, Ordering::Relaxed);
        Busy { requests: place.requests.clone() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().connections.remove(&self.number);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[tokio::test]
    async fn who_only_waits_gives_way_and_who_serves_does_not() {
        let places = Arc::new(Places::new(64));
        let take = |last| Places::take(&places, address(last)).map(Arc::new);
        let first = take(1).unwrap();
        let serving = Place::busy(&first);
        let crowd: Vec<_> = (0..100).map(|_| take(1).expect("the oldest one gives way")).collect();
        let mut held: Vec<u64> = places.lock().connections.keys().copied().collect();
        assert_eq!(held.len(), 16, "an address has a quarter");
        assert!(held.contains(&first.number()) && held.contains(&crowd[99].number()));
        let others: Vec<_> = (2..60).map(|last| take(last).unwrap()).collect();
        held = places.lock().connections.keys().copied().collect();
        assert_eq!(held.len(), 64);
        assert!(held.contains(&first.number()), "it serves a request");
        drop((first, serving, crowd, others));
        assert!(places.lock().connections.is_empty());
    }

    #[tokio::test]
    async fn nobody_comes_where_all_serve() {
        let places = Arc::new(Places::new(2));
        let take = |last| Places::take(&places, address(last)).map(Arc::new);
        let held = [take(1).unwrap(), take(2).unwrap()];
        let busy = held.each_ref().map(Place::busy);
        assert!(take(3).is_none());
        drop(busy);
        assert!(take(3).is_some());
    }
}
