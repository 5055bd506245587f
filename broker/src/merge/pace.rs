//! How fast merging goes: within its budget, and slower beside producers that fill their buffer.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::Broker;
use crate::limits::MERGE_LONGEST_PAUSE;

/// The pace of one broker's merges.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_s: u64,
}

impl Pace {
    pub(super) fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s: bytes_per_s.max(1) }
    }

    /// Waits after so many bytes were rewritten since `began`, so that no more than the budget is
    /// rewritten in a second, and half of it while producers fill half of their buffer.
    pub(super) async fn wait(&self, broker: &Broker, bytes: u64, began: Instant) {
        let is_busy = broker.produce_bytes_in_use() > broker.config.produce.buffer_bytes / 2;
        let until = began + self.time_for(bytes, is_busy);
        sleep(until.saturating_duration_since(Instant::now())).await;
    }

    /// How long so many bytes should take.
    fn time_for(&self, bytes: u64, is_busy: bool) -> Duration {
        let bytes_per_s = if is_busy { (self.bytes_per_s / 2).max(1) } else { self.bytes_per_s };
        let millis = bytes.saturating_mul(1000) / bytes_per_s;
        Duration::from_millis(millis).min(MERGE_LONGEST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_bytes_per_second_and_half_of_it_beside_busy_producers() {
        let pace = Pace::new(1 << 20);
        assert_eq!(pace.time_for(3 << 20, false), Duration::from_secs(3));
        assert_eq!(pace.time_for(3 << 20, true), Duration::from_secs(6));
        assert_eq!(pace.time_for(u64::MAX, true), MERGE_LONGEST_PAUSE);
        assert_eq!(Pace::new(0).time_for(0, true), Duration::ZERO);
    }
}
