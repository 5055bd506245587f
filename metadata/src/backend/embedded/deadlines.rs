//! When each lease ends.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

/// Deadlines of leases, by lease and by time. Knows no clock: whoever asks says what time it is.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    by_lease: BTreeMap<i64, Instant>,
    by_time: BTreeSet<(Instant, i64)>,
}

impl Deadlines {
    /// Sets or moves the deadline of a lease to `ttl_s` seconds after `now`.
    pub(super) fn set(&mut self, lease: i64, now: Instant, ttl_s: i64) {
        self.remove(lease);
        let deadline = now + Duration::from_secs(ttl_s.unsigned_abs());
        self.by_lease.insert(lease, deadline);
        self.by_time.insert((deadline, lease));
    }

    /// Forgets a lease.
    pub(super) fn remove(&mut self, lease: i64) {
        if let Some(deadline) = self.by_lease.remove(&lease) {
            self.by_time.remove(&(deadline, lease));
        }
    }

    /// When a lease ends.
    #[cfg(feature = "etcd-api")]
    pub(super) fn of(&self, lease: i64) -> Option<Instant> {
        self.by_lease.get(&lease).copied()
    }

    /// The lease that ended first, if one has ended by `now`.
    pub(super) fn due(&self, now: Instant) -> Option<i64> {
        self.by_time.first().filter(|(deadline, _)| *deadline <= now).map(|(_, lease)| *lease)
    }

    /// When the next lease ends.
    pub(super) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(deadline, _)| *deadline)
    }
}
