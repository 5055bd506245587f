//! How much time may be spent on opening batches whose header is only doubted.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::limits::{DOUBTED_SAVED, DOUBTED_SHARE};

/// The time that may be spent on opening batches whose header is only doubted. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Doubts {
    budget: Arc<Mutex<DoubtBudget>>,
}

impl Doubts {
    pub(crate) fn new() -> Self {
        Self { budget: Arc::new(Mutex::new(DoubtBudget { saved: DOUBTED_SAVED, at: Instant::now() })) }
    }

    /// Whether a batch whose header is doubted may be opened now.
    pub(crate) fn may_open(&self) -> bool {
        self.budget().allows(Instant::now())
    }

    /// Such a batch was opened, which took so long.
    pub(crate) fn opened(&self, took: Duration) {
        self.budget().spend(took);
    }

    fn budget(&self) -> std::sync::MutexGuard<'_, DoubtBudget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Processor time that may be spent on doubts: a share of all time, of which some can be saved up.
#[derive(Clone, Copy, Debug)]
struct DoubtBudget {
    saved: Duration,
    at: Instant,
}

impl DoubtBudget {
    fn allows(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at);
        self.at = now;
        self.saved = (self.saved + passed / DOUBTED_SHARE).min(DOUBTED_SAVED);
        !self.saved.is_zero()
    }

    fn spend(&mut self, took: Duration) {
        self.saved = self.saved.saturating_sub(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn doubts_have_a_share_of_the_time() {
        let doubts = Doubts::new();
        assert!(doubts.may_open());
        doubts.opened(DOUBTED_SAVED / 2);
        assert!(doubts.may_open(), "half of it is left");
        doubts.opened(DOUBTED_SAVED * 2);
        assert!(!doubts.may_open());
        let mut opened = Duration::ZERO;
        let step = Duration::from_millis(1);
        for _ in 0..10_000 {
            tokio::time::advance(step).await;
            if doubts.may_open() {
                doubts.opened(step);
                opened += step;
            }
        }
        let share = step * 10_000 / DOUBTED_SHARE;
        assert!(opened >= share / 2 && opened <= step * 10_000, "{opened:?} of {share:?}");
        tokio::time::advance(DOUBTED_SAVED * DOUBTED_SHARE * 2).await;
        assert!(doubts.may_open());
        doubts.opened(DOUBTED_SAVED);
        assert!(!doubts.may_open(), "no more than that is saved up");
    }
}
