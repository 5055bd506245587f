//! The wall clock of the observer, and the only place of this crate that reads it.
//!
//! `storage` has one too, but the observer must not depend on `storage`. Whatever measures a
//! duration uses `tokio::time::Instant`.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};

/// A source of wall time.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Milliseconds since the Unix epoch.
    fn now_ms(&self) -> i64;
}

/// The machine's own clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place of the observer that reads the wall clock"
    )]
    fn now_ms(&self) -> i64 {
        // A machine whose clock stands before 1970 is treated as standing at 1970.
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
    }
}

/// A time as people read it: RFC 3339 in UTC, with milliseconds. `None` for what is no time (Kafka
/// writes −1).
pub fn rfc3339(ms: i64) -> Option<String> {
    if ms < 0 {
        return None;
    }
    DateTime::<Utc>::from_timestamp_millis(ms).map(|t| t.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// Milliseconds since 1970 of a time in RFC 3339.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    DateTime::parse_from_rfc3339(text).ok().map(|t| t.timestamp_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_round_trip_and_minus_one_is_no_time() {
        let text = rfc3339(1_700_000_000_123).unwrap();
        assert_eq!(text, "2023-11-14T22:13:20.123Z");
        assert_eq!(parse_rfc3339(&text), Some(1_700_000_000_123));
        assert_eq!(rfc3339(-1), None);
        assert_eq!(parse_rfc3339("yesterday"), None);
        assert!(SystemClock.now_ms() > 1_704_067_200_000);
    }
}
