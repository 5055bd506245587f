//! How far other brokers' clocks are from this one's, as their records show: retention by time is
//! safe only while they agree.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use strandline_metadata::commit::SessionCell;
use strandline_metadata::replica::ApplyObserver;
use strandline_metadata::state::{Effects, Position};
use strandline_storage::clock::Clock;
use tokio::time::Instant;

/// What the records of other brokers show of their clocks.
#[derive(Clone, Debug)]
pub(crate) struct ClockSkew {
    clock: Arc<dyn Clock>,
    own: SessionCell,
    latest: Arc<Mutex<BTreeMap<i64, (i64, Instant)>>>,
}

impl ClockSkew {
    /// Others' records older than this say nothing about clocks now.
    const FRESH: Duration = Duration::from_mins(10);

    /// No knowledge yet.
    pub(crate) fn new(clock: Arc<dyn Clock>, own: SessionCell) -> Self {
        Self { clock, own, latest: Arc::default() }
    }

    /// By how much this broker's clock is ahead of the median of the others', in ms; `None` without
    /// others.
    pub(crate) fn ahead_ms(&self) -> Option<i64> {
        let now = Instant::now();
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.retain(|_, (_, at)| now.saturating_duration_since(*at) < Self::FRESH);
        let mut skews: Vec<i64> = latest.values().map(|(skew, _)| *skew).collect();
        skews.sort_unstable();
        skews.get(skews.len() / 2).copied()
    }
}

impl ApplyObserver for ClockSkew {
    fn applied(&self, at: Position, time_ms: i64, _: &Effects) {
        if self.own.current().is_some_and(|s| s.incarnation == at.incarnation) {
            return;
        }
        let skew = self.clock.now_ms().saturating_sub(time_ms);
        self.latest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(at.incarnation, (skew, Instant::now()));
    }
}
