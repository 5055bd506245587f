//! The wall clock, and the only place that reads it.
//!
//! Wall time is for what people and other processes see: timestamps in records, "since when" in
//! metrics. Whatever measures a duration uses `tokio::time::Instant`, which a simulation can pause
//! and which never jumps.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_clock_is_past_the_year_2024() {
        assert!(SystemClock.now_ms() > 1_704_067_200_000);
    }
}
