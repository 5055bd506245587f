//! What is counted of merging.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use strandline_metadata::state::LevelTotals;

use super::registrar::Registrar;
use crate::Broker;
use crate::slowdown::is_slowing;

/// Counters and gauges of merging.
#[derive(Debug)]
pub(crate) struct MergeMetrics {
    ranges: IntGaugeVec,
    bytes: IntGaugeVec,
    due: IntGauge,
    written: IntCounter,
    partitions: IntCounterVec,
    failures: IntCounter,
    unreadable: IntCounter,
    slowed: IntGauge,
}

impl MergeMetrics {
    pub(super) fn new(r: &Registrar<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            ranges: r.gauges(
                "ranges",
                "Offset ranges by how often they were merged, at the newest look",
                &["level"],
            )?,
            bytes: r.gauges(
                "range_bytes",
                "Bytes of records by how often they were merged, at the newest look",
                &["level"],
            )?,
            due: r.gauge("merge_due_bytes", "Bytes that were due to be merged here at the newest look")?,
            written: r.counter("merged_bytes_total", "Bytes of merged objects that were written")?,
            partitions: r.counters(
                "merged_partitions_total",
                "Partitions of merged objects, by what became of them: replaced, or refused since \
                 another broker was first",
                &["outcome"],
            )?,
            failures: r.counter("merge_failures_total", "Merges that were given up, to be tried again")?,
            unreadable: r.counter(
                "merge_unreadable_total",
                "Pieces of partitions that could not be merged or compacted since their records cannot be read",
            )?,
            slowed: r.gauge(
                "state_slowed",
                "1 while producers are slowed since the state has many offset ranges",
            )?,
        })
    }

    /// What all partitions have in each level, and what is due here.
    pub(crate) fn surveyed(&self, levels: &[LevelTotals], due_bytes: u64) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        for (level, totals) in levels.iter().enumerate() {
            let level = level.to_string();
            self.ranges.with_label_values(&[&level]).set(gauge(totals.ranges));
            self.bytes.with_label_values(&[&level]).set(gauge(totals.bytes));
        }
        self.due.set(gauge(due_bytes));
    }

    pub(crate) fn written(&self, bytes: u64) {
        self.written.inc_by(bytes);
    }

    pub(crate) fn committed(&self, replaced: usize, refused: usize) {
        for (outcome, count) in [("replaced", replaced), ("refused", refused)] {
            self.partitions.with_label_values(&[outcome]).inc_by(count as u64);
        }
    }

    pub(crate) fn failed(&self) {
        self.failures.inc();
    }

    pub(crate) fn unreadable(&self) {
        self.unreadable.inc();
    }

    /// Looks up what is a state.
    pub(super) fn look(&self, broker: &Broker) {
        let ranges = broker.replica.read(|view| view.state.range_count());
        self.slowed.set(i64::from(is_slowing(ranges, broker.config.max_state_ranges)));
    }
}
