//! What is counted of the budget of PUTs.

use std::time::Duration;

use prometheus::{Gauge, Histogram};

use super::SECONDS;
use super::registrar::Registrar;

/// What is saved, and what waiting for it costs.
#[derive(Debug)]
pub(crate) struct PutBudgetMetrics {
    saved: Gauge,
    wait_seconds: Histogram,
}

impl PutBudgetMetrics {
    pub(super) fn new(r: &Registrar<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            saved: r.with(Gauge::new(
                "strandline_put_budget_saved",
                "PUTs that the budget has saved: while there are any, records go out at once",
            ))?,
            wait_seconds: r.histogram(
                "put_budget_wait_seconds",
                "How long flushes waited for others to share their PUT, since the budget was used up",
                SECONDS,
            )?,
        })
    }

    /// A flush goes out: so many PUTs are saved then, and so long it has waited for the budget.
    pub(crate) fn flushed(&self, saved: f64, waited: Option<Duration>) {
        self.saved.set(saved);
        self.wait_seconds.observe(waited.unwrap_or_default().as_secs_f64());
    }
}
