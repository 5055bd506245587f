//! The wall clock, and the only place that reads it.
//!
//! Wall time is for what people and other processes see: timestamps in records, "since when" in
//! metrics. Whatever measures a duration uses `tokio::time::Instant`, which a simulation can pause
//! and which never jumps.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// A source of wall time.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Milliseconds since the Unix epoch.
    fn now_ms(&self) -> i64;
}

/// The machine's own clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
    fn now_ms(&self) -> i64 {
        // A machine whose clock stands before 1970 is treated as standing at 1970.
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
    }
}

/// What a server's answers show of its clock: evidence of the time that does not come from this
/// machine. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct ServerClock(Arc<Mutex<Option<(i64, Instant)>>>);

impl ServerClock {
    /// Notes an answer's `Date`, which has a precision of a second.
    pub fn note(&self, now_ms: i64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((now_ms, Instant::now()));
    }

    /// Milliseconds since the Unix epoch by the server's clock, as of its newest answer and what
    /// has passed since by this machine's monotonic one; `None` if it was never heard.
    pub fn now_ms(&self) -> Option<i64> {
        let (then_ms, at) = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        Some(then_ms.saturating_add(i64::try_from(at.elapsed().as_millis()).unwrap_or(i64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_servers_clock_goes_on_between_its_answers() {
        let clock = ServerClock::default();
        assert_eq!(clock.now_ms(), None);
        clock.clone().note(5_000);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(clock.now_ms(), Some(7_000));
    }

    #[test]
    fn system_clock_is_past_the_year_2024() {
        assert!(SystemClock.now_ms() > 1_704_067_200_000);
    }
}
