//! How fast the other end of a connection must be: it may pause, and must make up for it.

use std::time::Duration;

use tokio::time::Instant;

/// A rate with a grace: each byte buys time, at most as much as the grace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    grace: Duration,
    bytes_per_s: usize,
    until: Instant,
}

impl Pace {
    /// Begins now, with the whole grace.
    pub(super) fn new(grace: Duration, bytes_per_s: usize) -> Self {
        Self { grace, bytes_per_s, until: Instant::now() + grace }
    }

    /// Some bytes have passed.
    pub(super) fn advance(&mut self, bytes: usize) {
        let nanos = bytes as u64 * 1_000_000_000 / self.bytes_per_s.max(1) as u64;
        let most = Instant::now() + self.grace;
        self.until = (self.until + Duration::from_nanos(nanos)).min(most);
    }

    /// Some time does not count.
    pub(super) fn forgive(&mut self, time: Duration) {
        self.until += time;
    }

    /// When more must have passed.
    pub(super) fn deadline(&self) -> Instant {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn who_keeps_the_rate_is_never_late_and_who_stops_is_after_the_grace() {
        let mut pace = Pace::new(GRACE, 1000);
        for _ in 0..1000 {
            advance(Duration::from_secs(5)).await;
            pace.advance(5_000);
            assert!(pace.deadline() > Instant::now());
        }
        // What came fast before buys no more than the grace.
        pace.advance(1_000_000_000);
        assert_eq!(pace.deadline(), Instant::now() + GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn who_drips_is_late() {
        let mut pace = Pace::new(GRACE, 1000);
        let begun = Instant::now();
        while pace.deadline() > Instant::now() {
            advance(Duration::from_secs(1)).await;
            pace.advance(100);
            assert!(begun.elapsed() < 2 * GRACE, "it has a tenth of the rate");
        }
        pace.forgive(GRACE);
        assert!(pace.deadline() > Instant::now());
    }
}
