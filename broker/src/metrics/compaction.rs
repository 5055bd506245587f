//! What is counted of log compaction.

use prometheus::{Gauge, IntCounter, IntCounterVec};

use super::registrar::Registrar;
use crate::merge::Tally;

/// Counters and a gauge of log compaction.
#[derive(Debug)]
pub(crate) struct CompactionMetrics {
    partitions: IntCounterVec,
    removed: IntCounterVec,
    records: IntCounter,
    closed: IntCounter,
    bytes: IntCounterVec,
    dirtiest: Gauge,
}

impl CompactionMetrics {
    pub(super) fn new(r: &Registrar<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            partitions: r.counters(
                "compacted_partitions_total",
                "Partitions that log compaction went over, by whether it came to its end: done, or given up",
                &["outcome"],
            )?,
            removed: r.counters(
                "compacted_away_records_total",
                "Records that log compaction removed: superseded by a newer one of their key, tombstones \
                 after delete.retention.ms, or keyless",
                &["why"],
            )?,
            records: r.counter("compaction_records_total", "Records that log compaction looked at")?,
            closed: r.counter(
                "compaction_closed_batches_total",
                "Batches that log compaction left as they are since their records cannot be opened",
            )?,
            bytes: r.counters(
                "compaction_bytes_total",
                "Bytes of batches that log compaction read, all walks together, and wrote",
                &["direction"],
            )?,
            dirtiest: r.with(Gauge::new(
                "strandline_compaction_dirtiest_ratio",
                "The largest part of a partition that is due here and was not compacted yet, at the newest look",
            ))?,
        })
    }

    /// How dirty the dirtiest partition is that is due here.
    pub(crate) fn surveyed(&self, dirtiest: f64) {
        self.dirtiest.set(dirtiest);
    }

    /// What one compaction did.
    pub(crate) fn compacted(&self, tally: &Tally, is_done: bool) {
        let outcome = if is_done { "done" } else { "given_up" };
        self.partitions.with_label_values(&[outcome]).inc();
        let removed =
            [("superseded", tally.superseded), ("tombstone", tally.tombstones), ("keyless", tally.keyless)];
        for (why, count) in removed {
            self.removed.with_label_values(&[why]).inc_by(count);
        }
        self.records.inc_by(tally.records);
        self.closed.inc_by(tally.closed);
        self.bytes.with_label_values(&["read"]).inc_by(tally.bytes_read);
        self.bytes.with_label_values(&["written"]).inc_by(tally.bytes_written);
    }
}
