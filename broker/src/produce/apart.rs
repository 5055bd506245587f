//! Work on batches that takes too long for a thread on which connections wait, or altogether.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::limits::{BATCHES_OPENED_AT_ONCE, DOUBTED_SAVED, DOUBTED_SHARE};

/// Threads on which batches are opened, a few at a time, and the time that may be spent on opening
/// those whose header is only doubted. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct BatchThreads {
    threads: Arc<Semaphore>,
    doubts: Arc<Mutex<DoubtBudget>>,
}

impl BatchThreads {
    pub(crate) fn new() -> Self {
        Self {
            threads: Arc::new(Semaphore::new(BATCHES_OPENED_AT_ONCE)),
            doubts: Arc::new(Mutex::new(DoubtBudget { saved: DOUBTED_SAVED, at: Instant::now() })),
        }
    }

    /// Does `work` on such a thread, once one is free; `None` if the process ends meanwhile.
    /// Whoever stops waiting before it has begun has not caused any work.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let permit = self.threads.clone().acquire_owned().await.ok()?;
        let with_permit = move || {
            let done = work();
            drop(permit);
            done
        };
        tokio::task::spawn_blocking(with_permit).await.ok()
    }

    /// Whether a batch whose header is doubted may be opened now.
    pub(crate) fn may_open_doubted(&self) -> bool {
        self.doubts().allows(Instant::now())
    }

    /// Such a batch was opened, which took so long.
    pub(crate) fn opened_doubted(&self, took: Duration) {
        self.doubts().spend(took);
    }

    fn doubts(&self) -> std::sync::MutexGuard<'_, DoubtBudget> {
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner)
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
        let threads = BatchThreads::new();
        assert!(threads.may_open_doubted());
        threads.opened_doubted(DOUBTED_SAVED / 2);
        assert!(threads.may_open_doubted(), "half of it is left");
        threads.opened_doubted(DOUBTED_SAVED * 2);
        assert!(!threads.may_open_doubted());
        let mut opened = Duration::ZERO;
        let step = Duration::from_millis(1);
        for _ in 0..10_000 {
            tokio::time::advance(step).await;
            if threads.may_open_doubted() {
                threads.opened_doubted(step);
                opened += step;
            }
        }
        let share = step * 10_000 / DOUBTED_SHARE;
        assert!(opened >= share / 2 && opened <= step * 10_000, "{opened:?} of {share:?}");
        tokio::time::advance(DOUBTED_SAVED * DOUBTED_SHARE * 2).await;
        assert!(threads.may_open_doubted());
        threads.opened_doubted(DOUBTED_SAVED);
        assert!(!threads.may_open_doubted(), "no more than that is saved up");
    }
}
