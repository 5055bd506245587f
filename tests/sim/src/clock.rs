//! The wall clocks of simulated machines: each follows simulated time, from a common start, until
//! it jumps.

use std::sync::atomic::{AtomicI64, Ordering};

use strandline_storage::clock::Clock;
use tokio::time::Instant;

/// What every clock shows when a run begins, in milliseconds since 1970.
const START_MS: i64 = 1_700_000_000_000;

/// One machine's clock.
#[derive(Debug)]
pub(crate) struct SimClock {
    began: Instant,
    skew_ms: AtomicI64,
}

impl SimClock {
    /// A clock that is right, in a run that began then.
    pub(crate) fn new(began: Instant) -> Self {
        Self { began, skew_ms: AtomicI64::new(0) }
    }

    /// From now on it is wrong by so much.
    pub(crate) fn set_skew_ms(&self, skew_ms: i64) {
        self.skew_ms.store(skew_ms, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now_ms(&self) -> i64 {
        let elapsed = i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX);
        START_MS + elapsed + self.skew_ms.load(Ordering::Relaxed)
    }
}
