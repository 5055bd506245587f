//! How fast merging goes: within its budget, and slower beside producers that fill their buffer.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::Broker;
use crate::config::MergeConfig;
use crate::limits::MERGE_LONGEST_PAUSE;

/// The pace of one broker's merges: what it may do in a second.
#[derive(Debug)]
pub(super) struct Pace {
    bytes: u64,
    gets: u64,
    puts: u64,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Work {
    /// Bytes that were rewritten, or only read.
    bytes: u64,
    gets: u64,
    puts: u64,
}

/// Something that is being done, and is to take its time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paced {
    began: Instant,
    /// GETs for merging that there were before.
    gets: u64,
}

impl Paced {
    pub(super) fn begin(broker: &Broker) -> Self {
        Self { began: Instant::now(), gets: broker.reader.merge_gets() }
    }
}

impl Pace {
    pub(super) fn new(config: &MergeConfig) -> Self {
        let MergeConfig { bytes_per_s, gets_per_s, puts_per_s, .. } = *config;
        Self { bytes: bytes_per_s.max(1), gets: gets_per_s.max(1), puts: puts_per_s.max(1) }
    }

    /// Waits after so many bytes were read and so many objects written, so that no more than the
    /// budget is done in a second, and half of it while producers fill half of their buffer.
    pub(super) async fn wait(&self, broker: &Broker, paced: Paced, bytes: u64, puts: u64) {
        let is_busy = broker.produce_bytes_in_use() > broker.config.produce.buffer_bytes / 2;
        let gets = broker.reader.merge_gets().saturating_sub(paced.gets);
        let until = paced.began + self.time_for(Work { bytes, gets, puts }, is_busy);
        sleep(until.saturating_duration_since(Instant::now())).await;
    }

    /// How long so much work should take.
    fn time_for(&self, work: Work, is_busy: bool) -> Duration {
        let of = |done: u64, per_s: u64| {
            let per_s = if is_busy { (per_s / 2).max(1) } else { per_s };
            Duration::from_millis(done.saturating_mul(1000) / per_s)
        };
        let Work { bytes, gets, puts } = work;
        let time = of(bytes, self.bytes).max(of(gets, self.gets)).max(of(puts, self.puts));
        time.min(MERGE_LONGEST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_that_of_a_second_and_half_of_it_beside_busy_producers() {
        let pace = Pace { bytes: 1 << 20, gets: 10, puts: 1 };
        let none = Work { bytes: 0, gets: 0, puts: 0 };
        assert_eq!(pace.time_for(none, true), Duration::ZERO);
        // What takes longest counts.
        for work in [
            Work { bytes: 3 << 20, ..none },
            Work { gets: 30, ..none },
            Work { puts: 3, ..none },
            Work { bytes: 1 << 20, gets: 30, puts: 2 },
        ] {
            assert_eq!(pace.time_for(work, false), Duration::from_secs(3), "{work:?}");
        }
        assert_eq!(pace.time_for(Work { bytes: 3 << 20, gets: 9, puts: 1 }, true), Duration::from_secs(6));
        assert_eq!(pace.time_for(Work { bytes: u64::MAX, ..none }, true), MERGE_LONGEST_PAUSE);
        assert_eq!(Pace { puts: 1, ..pace }.time_for(Work { puts: 2, ..none }, true), Duration::from_secs(2));
    }
}
