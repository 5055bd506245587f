//! What of a partition is compacted, and when it is due: pure, from the state.

use strandline_metadata::state::{Partition, Range};

use crate::limits::{COMPACTED_AT_ONCE_BYTES, COMPACTION_REST};
use crate::topic_config::Compaction;

/// What is compacted of a partition: neighbouring ranges.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Region {
    /// In offset order, each beginning where the one before ends.
    pub(super) inputs: Vec<Range>,
    /// The number of the first of them that was never compacted, or only by itself. Those before it
    /// hold no key twice.
    pub(super) first_dirty: usize,
    /// Whether it begins where the partition does, so that no older record of any key lies before
    /// it.
    pub(super) is_whole: bool,
}

impl Region {
    /// What of a partition may be compacted now; `None` if nothing was added since it was
    /// compacted. What lies at or behind `settled_end` is too new; what cannot be read is left out
    /// with all that lies before it.
    pub(super) fn of(
        partition: &Partition,
        rules: &Compaction,
        settled_end: i64,
        now_ms: i64,
        is_unreadable: impl Fn(&Range) -> bool,
    ) -> Option<Self> {
        let mut region = Self { inputs: Vec::new(), first_dirty: 0, is_whole: true };
        let mut first_dirty = None;
        let newest_ms = now_ms.saturating_sub(rules.min_lag_ms);
        for range in partition.ranges().iter() {
            if is_unreadable(range) {
                region = Self { inputs: Vec::new(), first_dirty: 0, is_whole: false };
                first_dirty = None;
                continue;
            }
            let is_young = rules.min_lag_ms > 0 && range.max_timestamp_ms > newest_ms;
            let is_settled = range.end_offset <= settled_end.min(partition.last_stable());
            if !range.compacted && (is_young || !is_settled) {
                break;
            }
            // What was compacted behind what could not be read is so for as long as that lasts.
            let is_done = if region.is_whole { is_clean(range) } else { range.compacted };
            if !is_done && first_dirty.is_none() {
                first_dirty = Some(region.inputs.len());
            }
            region.inputs.push(*range);
        }
        region.first_dirty = first_dirty?;
        Some(region)
    }

    /// The level of what becomes of it.
    pub(super) fn level(&self) -> u8 {
        level_of(self.is_whole)
    }

    /// What was compacted before.
    pub(super) fn clean(&self) -> &[Range] {
        self.inputs.get(..self.first_dirty).unwrap_or_default()
    }

    /// What was not, and what lies behind it.
    pub(super) fn dirty(&self) -> &[Range] {
        self.inputs.get(self.first_dirty..).unwrap_or_default()
    }

    /// The part of its bytes that was not compacted yet.
    #[expect(clippy::cast_precision_loss, reason = "a share need not be exact")]
    pub(super) fn dirty_ratio(&self) -> f64 {
        let dirty = bytes_of(self.dirty());
        dirty as f64 / (dirty + bytes_of(self.clean())).max(1) as f64
    }

    /// Whether it is to be compacted now. As in Kafka, what is little waits until it is as old as a
    /// segment, but here no longer than an hour.
    pub(super) fn is_due(&self, rules: &Compaction, now_ms: i64) -> bool {
        let Some(oldest) = self.dirty().first() else { return false };
        let age_ms = now_ms.saturating_sub(oldest.max_timestamp_ms);
        // The records of a range lie apart by an eighth of it.
        if age_ms >= rules.max_lag_ms / 8 * 7 {
            return true;
        }
        let rest_ms = i64::try_from(COMPACTION_REST.as_millis()).unwrap_or(i64::MAX).min(rules.segment_ms);
        let is_much = bytes_of(self.dirty()) >= COMPACTED_AT_ONCE_BYTES || age_ms >= rest_ms;
        is_much && self.dirty_ratio() > rules.min_dirty_ratio
    }
}

/// Whether a range was compacted with all that lay before it.
pub(super) fn is_clean(range: &Range) -> bool {
    range.compacted && range.level >= level_of(true)
}

/// The level of what was compacted, with all that lies before it or without.
fn level_of(is_whole: bool) -> u8 {
    if is_whole { 2 } else { 1 }
}

/// The bytes of all of them.
pub(super) fn bytes_of(ranges: &[Range]) -> u64 {
    ranges.iter().map(|range| range.bytes).sum()
}
