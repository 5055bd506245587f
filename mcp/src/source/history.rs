//! What scrapes left behind, in memory: for each source two rings, one of every sample for six
//! hours, one of a sample per five minutes for seven days.
//!
//! Counters are stored as they would be had no process ever started anew: when one falls, what it
//! had counts as a start. So a rate over any window is a difference, and a roll-up is a sample.
//! Memory is bounded: each column of each source is counted with all that it may ever take, and one
//! that has no room is left out and counted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::exposition::{self, Column, Moves, Sample};

/// How far back every sample is kept, in ms.
pub const FINE_SPAN_MS: i64 = 6 * 3_600_000;
/// Between roll-ups, in ms.
pub const COARSE_STEP_MS: i64 = 300_000;
/// How far back roll-ups are kept, in ms.
pub const COARSE_SPAN_MS: i64 = 7 * 86_400_000;
/// Samples of one ring at most, however short the interval.
const FINE_SAMPLES: usize = 1_440;
const COARSE_SAMPLES: usize = 2_016;
/// What a column takes in the end, in bytes.
const COLUMN_BYTES: usize = (FINE_SAMPLES + COARSE_SAMPLES) * 8;

/// Samples of one source.
#[derive(Clone, Debug, Default)]
struct Ring {
    times: VecDeque<i64>,
    /// Number of the first of `times` since the beginning.
    base: u64,
    columns: BTreeMap<Column, Values>,
}

#[derive(Clone, Debug, Default)]
struct Values {
    /// Number of the sample that the first value belongs to.
    start: u64,
    values: VecDeque<f64>,
}

impl Ring {
    fn push(&mut self, at_ms: i64, row: &BTreeMap<Column, f64>) {
        let number = self.base + self.times.len() as u64;
        self.times.push_back(at_ms);
        for (column, value) in row {
            let values =
                self.columns.entry(*column).or_insert_with(|| Values { start: number, ..Values::default() });
            // A sample without this column leaves a hole.
            while values.start + (values.values.len() as u64) < number {
                values.values.push_back(f64::NAN);
            }
            values.values.push_back(*value);
        }
    }

    fn trim(&mut self, oldest_ms: i64, most: usize) {
        while self.times.len() > most || self.times.front().is_some_and(|&t| t < oldest_ms) {
            self.times.pop_front();
            self.base += 1;
        }
        let base = self.base;
        self.columns.retain(|_, values| {
            while values.start < base && !values.values.is_empty() {
                values.values.pop_front();
                values.start += 1;
            }
            !values.values.is_empty()
        });
    }

    fn values(&self) -> usize {
        self.columns.values().map(|v| v.values.len()).sum()
    }

    /// The samples of a column within a time, oldest first.
    fn between(&self, column: Column, start_ms: i64, end_ms: i64) -> Vec<(i64, f64)> {
        let Some(values) = self.columns.get(&column) else { return Vec::new() };
        let first = usize::try_from(values.start - self.base).unwrap_or(usize::MAX);
        let times = self.times.iter().skip(first).zip(&values.values);
        let within = times.filter(|(t, v)| (start_ms..=end_ms).contains(*t) && v.is_finite());
        within.map(|(t, v)| (*t, *v)).collect()
    }
}

/// What is known of one source.
#[derive(Clone, Debug, Default)]
pub struct Track {
    fine: Ring,
    coarse: Ring,
    admitted: BTreeSet<Column>,
    raw: BTreeMap<Column, f64>,
    carried: BTreeMap<Column, f64>,
    bounds: BTreeMap<u32, Vec<f64>>,
    /// Times that its counters started anew.
    pub resets: u64,
    /// When it was last read, ms since 1970.
    pub last_ok_ms: Option<i64>,
    /// Why it could not be read, if the newest try failed.
    pub error: Option<String>,
    /// When it was last tried.
    pub tried_at_ms: Option<i64>,
}

/// A window that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// From when, ms since 1970.
    pub start_ms: i64,
    /// Until when.
    pub end_ms: i64,
}

/// How much a counter grew, and over which time that is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// By how much.
    pub amount: f64,
    /// The first sample, ms since 1970.
    pub start_ms: i64,
    /// The last one.
    pub end_ms: i64,
    /// How many there are.
    pub samples: usize,
}

impl Growth {
    /// Per second.
    pub fn per_s(&self) -> f64 {
        self.amount * 1000.0 / precise(self.end_ms - self.start_ms)
    }
}

/// A number of milliseconds as a fraction; exact for any time that a computer will see.
#[expect(clippy::cast_precision_loss, reason = "milliseconds stay below 2^53 for 280,000 years")]
pub fn precise(number: i64) -> f64 {
    number as f64
}

impl Track {
    /// Takes a sample.
    fn push(&mut self, at_ms: i64, sample: &Sample) {
        let has_reset = sample.values.iter().any(|(column, value)| {
            exposition::moves(*column) == Moves::Counter
                && self.raw.get(column).is_some_and(|before| value < before)
        });
        self.resets += u64::from(has_reset);
        let mut row = BTreeMap::new();
        for (column, value) in sample.values.iter().filter(|(column, _)| self.admitted.contains(column)) {
            if exposition::moves(*column) == Moves::Gauge {
                row.insert(*column, *value);
                continue;
            }
            let before = self.raw.insert(*column, *value);
            let carried = self.carried.entry(*column).or_default();
            if let Some(before) = before.filter(|before| value < before) {
                *carried += before;
            }
            row.insert(*column, *carried + *value);
        }
        for (histogram, bounds) in &sample.bounds {
            // Another version of the broker may have other buckets: what was kept of the old ones
            // means nothing now.
            if self.bounds.get(histogram).is_some_and(|known| known != bounds) {
                let (first, last) =
                    (exposition::bucket(*histogram, 0), exposition::bucket(*histogram, u32::MAX));
                for ring in [&mut self.fine, &mut self.coarse] {
                    ring.columns.retain(|column, _| !(first..=last).contains(column));
                }
            }
            self.bounds.insert(*histogram, bounds.clone());
        }
        let is_due = self.coarse.times.back().is_none_or(|&t| at_ms - t >= COARSE_STEP_MS);
        self.fine.push(at_ms, &row);
        if is_due {
            self.coarse.push(at_ms, &row);
        }
        self.last_ok_ms = Some(at_ms);
    }

    fn trim(&mut self, now_ms: i64) {
        self.fine.trim(now_ms - FINE_SPAN_MS, FINE_SAMPLES);
        self.coarse.trim(now_ms - COARSE_SPAN_MS, COARSE_SAMPLES);
    }

    /// The samples of a column within a time: every one as far as they are kept, roll-ups before
    /// that.
    pub fn between(&self, column: Column, window: Window) -> Vec<(i64, f64)> {
        let fine_from = self.fine.times.front().copied().unwrap_or(i64::MAX);
        let mut samples = if window.start_ms < fine_from {
            self.coarse.between(column, window.start_ms, window.end_ms.min(fine_from - 1))
        } else {
            Vec::new()
        };
        samples.extend(self.fine.between(column, window.start_ms, window.end_ms));
        samples
    }

    /// How much a counter grew; `None` with fewer than two samples.
    pub fn growth(&self, column: Column, window: Window) -> Option<Growth> {
        let samples = self.between(column, window);
        let ((start_ms, first), (end_ms, last)) = (*samples.first()?, *samples.last()?);
        (end_ms > start_ms).then_some(Growth {
            amount: last - first,
            start_ms,
            end_ms,
            samples: samples.len(),
        })
    }

    /// The newest value of a column, if it is no older than `since_ms`.
    pub fn newest(&self, column: Column, since_ms: i64) -> Option<f64> {
        self.fine.between(column, since_ms, i64::MAX).last().map(|(_, v)| *v)
    }

    /// By how much each bucket of a histogram grew, with its upper bound.
    pub fn buckets(&self, histogram: u32, window: Window) -> Option<Vec<(f64, f64)>> {
        let bounds = self.bounds.get(&histogram)?;
        let grown = (0u32..).zip(bounds).map(|(index, bound)| {
            let growth = self.growth(exposition::bucket(histogram, index), window)?;
            Some((*bound, growth.amount.max(0.0)))
        });
        grown.collect()
    }
}

/// The history of every source.
#[derive(Debug)]
pub struct History {
    tracks: BTreeMap<String, Track>,
    limit_bytes: usize,
    /// Values that had no room.
    pub dropped: u64,
}

impl History {
    /// With so much memory.
    pub fn new(limit_bytes: usize) -> Self {
        Self { tracks: BTreeMap::new(), limit_bytes, dropped: 0 }
    }

    /// Takes a sample of a source.
    pub fn push(&mut self, source: &str, at_ms: i64, sample: &Sample) {
        let mut columns = self.columns();
        let track = self.tracks.entry(source.to_owned()).or_default();
        track.tried_at_ms = Some(at_ms);
        track.error = None;
        for column in sample.values.keys() {
            if track.admitted.contains(column) {
                continue;
            }
            if (columns + 1) * COLUMN_BYTES <= self.limit_bytes {
                track.admitted.insert(*column);
                columns += 1;
            } else {
                self.dropped += 1;
            }
        }
        track.push(at_ms, sample);
        track.trim(at_ms);
    }

    /// Notes that a source could not be read.
    pub fn failed(&mut self, source: &str, at_ms: i64, error: String) {
        let track = self.tracks.entry(source.to_owned()).or_default();
        track.tried_at_ms = Some(at_ms);
        track.error = Some(error);
        track.trim(at_ms);
    }

    /// Forgets sources that have not been tried for as long as anything is kept.
    pub fn forget(&mut self, now_ms: i64) {
        self.tracks.retain(|_, track| track.tried_at_ms.is_some_and(|t| now_ms - t < COARSE_SPAN_MS));
    }

    /// What is known of a source.
    pub fn track(&self, source: &str) -> Option<&Track> {
        self.tracks.get(source)
    }

    /// Every source.
    pub fn tracks(&self) -> &BTreeMap<String, Track> {
        &self.tracks
    }

    fn columns(&self) -> usize {
        self.tracks.values().map(|t| t.admitted.len()).sum()
    }

    /// Memory that the values take, about.
    pub fn bytes(&self) -> usize {
        self.tracks.values().map(|t| (t.fine.values() + t.coarse.values()) * 8).sum()
    }
}

/// Adds up what the buckets of several sources grew by; those with other bounds than the first are
/// left out.
pub fn add_buckets(sum: &mut Vec<(f64, f64)>, more: &[(f64, f64)]) {
    if sum.is_empty() {
        sum.extend_from_slice(more);
    } else if sum.len() == more.len() && sum.iter().zip(more).all(|((a, _), (b, _))| a.total_cmp(b).is_eq()) {
        for ((_, amount), (_, added)) in sum.iter_mut().zip(more) {
            *amount += added;
        }
    }
}

/// The value below which this part of the observations lies, interpolated within its bucket; `None`
/// without observations. What lies in the last bucket is at least its lower bound, which is the
/// answer then.
pub fn quantile(buckets: &[(f64, f64)], part: f64) -> Option<f64> {
    let total = buckets.last()?.1;
    if total <= 0.0 {
        return None;
    }
    let wanted = part * total;
    let (mut below, mut lower) = (0.0, 0.0);
    for (bound, count) in buckets {
        if *count >= wanted {
            if bound.is_infinite() {
                return Some(lower);
            }
            let inside = count - below;
            let share = if inside > 0.0 { (wanted - below) / inside } else { 1.0 };
            return Some(lower + (bound - lower) * share);
        }
        (below, lower) = (*count, *bound);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(pairs: &[(&str, f64)]) -> Sample {
        let values =
            pairs.iter().map(|(name, value)| (exposition::scalar(name).unwrap().0, *value)).collect();
        Sample { values, ..Sample::default() }
    }

    fn column(name: &str) -> Column {
        exposition::scalar(name).unwrap().0
    }

    const ALL: Window = Window { start_ms: 0, end_ms: i64::MAX };

    #[test]
    fn a_counter_that_starts_anew_goes_on() {
        let mut history = History::new(1 << 20);
        for (at, value) in [(0, 100.0), (15_000, 160.0), (30_000, 20.0), (45_000, 80.0)] {
            history.push("b", at, &sample(&[("produced_records", value), ("connections", value)]));
        }
        let track = history.track("b").unwrap();
        let growth = track.growth(column("produced_records"), ALL).unwrap();
        assert_eq!((growth.amount, growth.samples), (60.0 + 20.0 + 60.0, 4));
        assert!((growth.per_s() - 140.0 / 45.0).abs() < 1e-9);
        assert_eq!(track.resets, 1);
        assert_eq!(track.newest(column("connections"), 0), Some(80.0), "a gauge is what it is");
        assert_eq!(track.newest(column("connections"), 45_001), None, "too old");
    }

    #[test]
    fn one_sample_is_no_rate_and_a_hole_is_no_zero() {
        let mut history = History::new(1 << 20);
        history.push("b", 0, &sample(&[("produced_records", 5.0)]));
        assert_eq!(history.track("b").unwrap().growth(column("produced_records"), ALL), None);
        history.push("b", 15_000, &sample(&[("connections", 1.0)]));
        history.push("b", 30_000, &sample(&[("produced_records", 8.0)]));
        let growth = history.track("b").unwrap().growth(column("produced_records"), ALL).unwrap();
        assert_eq!((growth.amount, growth.samples), (3.0, 2));
        assert_eq!(history.track("b").unwrap().growth(column("fetched_records"), ALL), None);
    }

    #[test]
    fn samples_go_after_six_hours_and_roll_ups_stay() {
        let mut history = History::new(1 << 24);
        let step = 15_000;
        let end = 8 * 3_600_000;
        for at in (0..=end).step_by(step) {
            history.push("b", at, &sample(&[("produced_records", precise(at) / 1000.0)]));
        }
        let track = history.track("b").unwrap();
        assert!(track.fine.times.len() <= FINE_SAMPLES);
        assert_eq!(track.coarse.times.len(), 97);
        let growth = track.growth(column("produced_records"), ALL).unwrap();
        assert!((growth.per_s() - 1.0).abs() < 1e-9);
        assert_eq!(growth.start_ms, 0);
        let old =
            track.growth(column("produced_records"), Window { start_ms: 0, end_ms: 3_600_000 }).unwrap();
        assert_eq!(old.samples, 13, "roll-ups of the first hour");
    }

    #[test]
    fn memory_is_bounded_and_what_has_no_room_is_counted() {
        let mut history = History::new(2 * COLUMN_BYTES);
        for n in 0..5 {
            history.push(&format!("b{n}"), 1, &sample(&[("produced_records", 1.0)]));
        }
        assert_eq!((history.columns(), history.dropped), (2, 3));
        for at in (0..9 * 86_400_000).step_by(60_000) {
            history.push("b0", at, &sample(&[("produced_records", 1.0)]));
        }
        assert!(history.bytes() <= 2 * COLUMN_BYTES, "{}", history.bytes());
    }

    #[test]
    fn quantiles_are_interpolated() {
        let buckets = [(0.1, 50.0), (0.2, 90.0), (f64::INFINITY, 100.0)];
        assert_eq!(quantile(&buckets, 0.5), Some(0.1));
        assert!((quantile(&buckets, 0.7).unwrap() - 0.15).abs() < 1e-9);
        assert_eq!(quantile(&buckets, 0.99), Some(0.2), "at least so much");
        assert_eq!(quantile(&[(0.1, 0.0), (f64::INFINITY, 0.0)], 0.5), None, "nothing was seen");
        let mut sum = Vec::new();
        add_buckets(&mut sum, &buckets);
        add_buckets(&mut sum, &buckets);
        add_buckets(&mut sum, &[(0.5, 1.0)]);
        assert_eq!(sum.get(2), Some(&(f64::INFINITY, 200.0)));
    }
}
