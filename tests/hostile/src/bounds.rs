//! What must hold whatever clients do.

use std::time::Duration;

/// Settings of the broker under attack: its memory is small, so that it is soon seen if something
/// is in no budget.
pub(crate) const SETTINGS: &[(&str, u64)] = &[("memory-bytes", MEMORY_BYTES)];
const MEMORY_BYTES: u64 = 1 << 30;
/// What the budgets have of it together, and fetch sessions, fetches that wait and large requests
/// once they are decoded.
const BUDGETS_BYTES: u64 = MEMORY_BYTES / 40 * (26 + 7);

/// Resident memory may be the sum of the budgets and so much more, in percent.
const BEYOND_BUDGETS_PERCENT: u64 = 20;

/// The neighbour's p99 may be so many times its own without hostile clients.
pub(crate) const SLOWDOWN: f64 = 5.0;

/// So long after the last hostile byte everything is as before.
pub(crate) const RECOVERY: Duration = Duration::from_secs(5);

/// What an offset range and a producer take in the state, in bytes, as the settings that bound them
/// say.
const RANGE_BYTES: u64 = 100;
const PRODUCER_BYTES: u64 = 450;
/// The state, and what is made of it while a snapshot is written.
const STATES: u64 = 2;

/// The most resident memory with so much in the state, in bytes. What clients may make of the state
/// is bounded by settings, and lasts.
pub(crate) fn resident(ranges: u64, producers: u64) -> u64 {
    let sum = BUDGETS_BYTES + STATES * (ranges * RANGE_BYTES + producers * PRODUCER_BYTES);
    sum + sum * BEYOND_BUDGETS_PERCENT / 100
}
