//! Long work in short turns, so that other tasks of the same thread are not held up by it.

use crate::limits::WORK_PER_TURN;

/// Counts work, and gives way after each turn's worth.
#[derive(Debug, Default)]
pub struct Turns {
    done: usize,
}

impl Turns {
    /// Notes `units` of work, each about a tenth of a microsecond: ranges or objects that were
    /// looked at, encoded or compared. Cancellation-safe.
    pub async fn spend(&mut self, units: usize) {
        self.done += units;
        if self.done >= WORK_PER_TURN {
            self.done = 0;
            tokio::task::yield_now().await;
        }
    }
}
