//! The ranges of a partition, in chunks that states share.
//!
//! A full chunk never changes again: a copy of a state shares it, and so does the next state. What
//! a copy of the state costs a partition that changes afterwards is its newest ranges, at most
//! [`RANGES_PER_CHUNK`] of them. A merge replaces the chunks that it touches.

use std::sync::Arc;

use imbl::Vector;

use super::partition::Range;

use crate::limits::{LEVELS, RANGES_PER_CHUNK};

/// A run of ranges that never changes. Never empty, and at most [`RANGES_PER_CHUNK`] long.
#[derive(Debug)]
struct Chunk {
    ranges: Box<[Range]>,
    max_timestamp_ms: i64,
}

impl Chunk {
    fn new(ranges: &[Range]) -> Arc<Self> {
        let max_timestamp_ms = newest_of(ranges).unwrap_or(i64::MIN);
        Arc::new(Self { ranges: ranges.into(), max_timestamp_ms })
    }
}

/// How much lies in the ranges of one level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LevelTotals {
    /// How many there are.
    pub ranges: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The ranges of a partition, in offset order. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Ranges {
    full: Vector<Arc<Chunk>>,
    /// How many of the first full chunk are trimmed.
    trimmed: usize,
    /// The newest ranges; never empty unless there are none at all.
    newest: Vec<Range>,
    /// What lies in each level.
    levels: [LevelTotals; LEVELS],
}

impl PartialEq for Ranges {
    fn eq(&self, other: &Self) -> bool {
        // Where chunks begin depends on what was trimmed and merged before.
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Eq for Ranges {}

impl FromIterator<Range> for Ranges {
    fn from_iter<I: IntoIterator<Item = Range>>(ranges: I) -> Self {
        let mut all = Self::default();
        ranges.into_iter().for_each(|range| all.push(range));
        all
    }
}

/// Where a range is: the number of its full chunk, or how many of these there are for the newest;
/// and its place in there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    chunk: usize,
    within: usize,
}

impl Ranges {
    /// How many there are.
    pub fn len(&self) -> usize {
        let all: u64 = self.levels.iter().map(|level| level.ranges).sum();
        usize::try_from(all).unwrap_or(usize::MAX)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.newest.is_empty()
    }

    /// How much lies in each level: how often it was rewritten.
    pub fn levels(&self) -> &[LevelTotals; LEVELS] {
        &self.levels
    }

    /// The bytes of all of them.
    pub fn bytes(&self) -> u64 {
        self.levels.iter().map(|level| level.bytes).sum()
    }

    /// The range with the lowest offsets.
    pub fn first(&self) -> Option<&Range> {
        match self.full.front() {
            Some(chunk) => chunk.ranges.get(self.trimmed),
            None => self.newest.first(),
        }
    }

    /// The range with the highest offsets.
    pub fn last(&self) -> Option<&Range> {
        self.newest.last()
    }

    /// All of them, in offset order.
    pub fn iter(&self) -> impl Iterator<Item = &Range> {
        self.full.iter().flat_map(|chunk| &chunk.ranges).skip(self.trimmed).chain(&self.newest)
    }

    /// All of them, the newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = &Range> {
        let full = self.full.iter().enumerate().rev().flat_map(|(number, chunk)| {
            let trimmed = if number == 0 { self.trimmed } else { 0 };
            chunk.ranges.iter().skip(trimmed).rev()
        });
        self.newest.iter().rev().chain(full)
    }

    /// The range that contains `offset` and those after it, or those after `offset` if none
    /// contains it. Costs time with the logarithm of their number until the first is there.
    pub fn from(&self, offset: i64) -> impl Iterator<Item = &Range> {
        let Place { chunk, within } = self.place_of(offset);
        let full = (chunk..self.full.len()).flat_map(|chunk| &self.full[chunk].ranges);
        full.chain(&self.newest).skip(within)
    }

    /// The ranges that begin and end exactly at these offsets; `None` if there are none that do.
    pub fn between(&self, base_offset: i64, end_offset: i64) -> Option<Vec<Range>> {
        let mut found = Vec::new();
        for range in self.from(base_offset) {
            if found.is_empty() && range.base_offset != base_offset || range.end_offset > end_offset {
                return None;
            }
            found.push(*range);
            if range.end_offset == end_offset {
                return Some(found);
            }
        }
        None
    }

    /// Where the range that contains `offset` is, or the first after it.
    fn place_of(&self, offset: i64) -> Place {
        let ends_before = |range: &Range| range.end_offset <= offset;
        let found = self.full.binary_search_by(|chunk| match chunk.ranges.last() {
            Some(last) if ends_before(last) => std::cmp::Ordering::Less,
            _ => std::cmp::Ordering::Greater,
        });
        let chunk = found.unwrap_or_else(|at| at);
        let within = match self.full.get(chunk) {
            Some(first) if chunk == 0 => first.ranges.partition_point(ends_before).max(self.trimmed),
            Some(other) => other.ranges.partition_point(ends_before),
            None => self.newest.partition_point(ends_before),
        };
        Place { chunk, within }
    }

    /// The ranges with a timestamp of at least `timestamp_ms`, in offset order. Chunks without one
    /// are passed over as a whole.
    pub fn reaching(&self, timestamp_ms: i64) -> impl Iterator<Item = &Range> {
        let chunks = self.full.iter().enumerate();
        let chunks = chunks.filter(move |(_, chunk)| chunk.max_timestamp_ms >= timestamp_ms);
        let full = chunks.flat_map(move |(place, chunk)| {
            let trimmed = if place == 0 { self.trimmed } else { 0 };
            chunk.ranges.iter().skip(trimmed)
        });
        full.chain(&self.newest).filter(move |range| range.max_timestamp_ms >= timestamp_ms)
    }

    /// The largest timestamp of all records, ms since 1970; `None` if there are none.
    pub fn max_timestamp_ms(&self) -> Option<i64> {
        let mut chunks = self.full.iter();
        let first = chunks.next().map(|chunk| newest_of(&chunk.ranges[self.trimmed..]));
        let others = chunks.map(|chunk| Some(chunk.max_timestamp_ms));
        first.into_iter().chain(others).flatten().chain(newest_of(&self.newest)).max()
    }

    /// Adds a batch: to the last range, if it lies right behind that in the same object, or as a
    /// range of its own. Says whether it became one.
    pub(super) fn append(&mut self, batch: Range) -> bool {
        let Some(last) = self.newest.last_mut().filter(|last| last.is_followed_by(&batch)) else {
            self.push(batch);
            return true;
        };
        last.end_offset = batch.end_offset;
        last.bytes += batch.bytes;
        last.max_timestamp_ms = last.max_timestamp_ms.max(batch.max_timestamp_ms);
        last.batches += batch.batches;
        if let Some(level) = self.levels.get_mut(usize::from(last.level)) {
            level.bytes += batch.bytes;
        }
        false
    }

    pub(super) fn push(&mut self, range: Range) {
        if self.newest.len() == RANGES_PER_CHUNK {
            self.full.push_back(Chunk::new(&self.newest));
            self.newest.clear();
        }
        self.count_in(&range);
        self.newest.push(range);
    }

    pub(super) fn pop_first(&mut self) -> Option<Range> {
        let first = match self.full.front() {
            None => (!self.newest.is_empty()).then(|| self.newest.remove(0)),
            Some(chunk) => {
                let first = chunk.ranges.get(self.trimmed).copied();
                self.trimmed += 1;
                if self.trimmed == chunk.ranges.len() {
                    self.full.pop_front();
                    self.trimmed = 0;
                }
                first
            }
        };
        first.inspect(|range| self.count_out(range))
    }

    /// Puts `merged` in the place of the ranges that lie exactly where it does, which
    /// [`Self::between`] has found.
    pub(super) fn replace(&mut self, merged: Range) {
        let Some(inputs) = self.between(merged.base_offset, merged.end_offset) else { return };
        for range in &inputs {
            self.count_out(range);
        }
        self.count_in(&merged);
        let first = self.place_of(merged.base_offset);
        let last = self.place_of(merged.end_offset - 1);
        let ranges_of = |chunk: usize| self.full.get(chunk).map_or(&self.newest[..], |c| &c.ranges);
        let untrimmed = if first.chunk == 0 && !self.full.is_empty() { self.trimmed } else { 0 };
        let mut around = ranges_of(first.chunk)[untrimmed..first.within].to_vec();
        around.push(merged);
        around.extend_from_slice(&ranges_of(last.chunk)[last.within + 1..]);
        if first.chunk == 0 {
            self.trimmed = 0;
        }
        let is_newest = last.chunk == self.full.len();
        let behind = self.full.split_off((last.chunk + 1).min(self.full.len()));
        let _ = self.full.split_off(first.chunk);
        // Chunks that many merges have touched are put together again.
        if let Some(before) = self.full.back() {
            let trimmed = if self.full.len() == 1 { self.trimmed } else { 0 };
            if before.ranges.len() - trimmed + around.len() <= RANGES_PER_CHUNK {
                around.splice(0..0, before.ranges[trimmed..].iter().copied());
                self.full.pop_back();
                if self.full.is_empty() {
                    self.trimmed = 0;
                }
            }
        }
        if is_newest {
            self.newest = Vec::new();
            let kept = (around.len() - 1) / RANGES_PER_CHUNK * RANGES_PER_CHUNK;
            self.newest.extend_from_slice(&around[kept..]);
            around.truncate(kept);
        }
        self.full.extend(around.chunks(RANGES_PER_CHUNK).map(Chunk::new));
        self.full.append(behind);
    }

    fn count_in(&mut self, range: &Range) {
        if let Some(level) = self.levels.get_mut(usize::from(range.level)) {
            level.ranges += 1;
            level.bytes += range.bytes;
        }
    }

    fn count_out(&mut self, range: &Range) {
        if let Some(level) = self.levels.get_mut(usize::from(range.level)) {
            level.ranges -= 1;
            level.bytes -= range.bytes;
        }
    }
}

fn newest_of(ranges: &[Range]) -> Option<i64> {
    ranges.iter().map(|range| range.max_timestamp_ms).max()
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use strandline_storage::path::ObjectId;

    use super::*;

    fn range(base_offset: i64, offsets: i64, max_timestamp_ms: i64) -> Range {
        let object = ObjectId::write(1, 1, 0);
        let end_offset = base_offset + offsets;
        Range {
            base_offset,
            end_offset,
            object,
            position: 0,
            bytes: 1,
            max_timestamp_ms,
            batches: 1,
            level: 0,
            compacted: false,
        }
    }

    fn merged_of(inputs: &[Range]) -> Range {
        let (first, last) = (inputs.first().unwrap(), inputs.last().unwrap());
        Range {
            end_offset: last.end_offset,
            bytes: inputs.iter().map(|r| r.bytes).sum(),
            max_timestamp_ms: inputs.iter().map(|r| r.max_timestamp_ms).max().unwrap(),
            level: (first.level + 1).min(2),
            ..*first
        }
    }

    /// Compares with a plain list after each of many random steps.
    #[test]
    fn ranges_are_what_a_list_would_be() {
        for seed in 0..20 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut ranges, mut list, mut end) = (Ranges::default(), Vec::new(), 0);
            for _ in 0..400 {
                if rng.random_ratio(1, 8) && !list.is_empty() {
                    let first = rng.random_range(0..list.len());
                    let last = rng.random_range(first..list.len().min(first + 80));
                    let inputs: Vec<Range> = list.splice(first..=last, []).collect();
                    let merged = merged_of(&inputs);
                    list.insert(first, merged);
                    assert_eq!(ranges.between(merged.base_offset, merged.end_offset), Some(inputs));
                    ranges.replace(merged);
                } else if rng.random_ratio(2, 3) {
                    let next = range(end, rng.random_range(1..5), rng.random_range(0..1_000));
                    end = next.end_offset;
                    ranges.push(next);
                    list.push(next);
                } else {
                    for _ in 0..rng.random_range(0..3) {
                        let first = (!list.is_empty()).then(|| list.remove(0));
                        assert_eq!(ranges.pop_first(), first);
                    }
                }
                assert_eq!((ranges.len(), ranges.is_empty()), (list.len(), list.is_empty()));
                assert_eq!((ranges.first(), ranges.last()), (list.first(), list.last()));
                assert!(ranges.iter().eq(&list));
                assert_eq!(ranges, list.iter().copied().collect());
                assert_eq!(ranges.max_timestamp_ms(), list.iter().map(|r| r.max_timestamp_ms).max());
                let time = rng.random_range(0..1_000);
                assert!(ranges.reaching(time).eq(list.iter().filter(|r| r.max_timestamp_ms >= time)));
                assert!(ranges.newest_first().eq(list.iter().rev()));
                assert_eq!(ranges.bytes(), list.iter().map(|r| r.bytes).sum::<u64>());
                for (level, totals) in (0..).zip(ranges.levels()) {
                    let of_level = || list.iter().filter(|r| r.level == level);
                    assert_eq!(totals.ranges, of_level().count() as u64);
                    assert_eq!(totals.bytes, of_level().map(|r| r.bytes).sum::<u64>());
                }
                assert!(ranges.full.iter().all(|c| (1..=RANGES_PER_CHUNK).contains(&c.ranges.len())));
                let offset = rng.random_range(0..=end);
                assert!(ranges.from(offset).eq(list.iter().filter(|r| r.end_offset > offset)));
            }
        }
    }

    #[test]
    fn what_does_not_begin_and_end_with_ranges_is_not_between_them() {
        let ranges: Ranges = (0..100).map(|i| range(i * 2, 2, 0)).collect();
        let count = |base, end| ranges.between(base, end).map(|found| found.len());
        assert_eq!(count(10, 20), Some(5));
        assert_eq!(count(0, 200), Some(100));
        for (base, end) in [(11, 20), (10, 19), (10, 10), (20, 10), (190, 202), (-2, 4), (300, 302)] {
            assert_eq!(count(base, end), None, "{base}..{end}");
        }
    }

    #[test]
    fn merging_leaves_no_small_chunks_behind() {
        let mut ranges = Ranges::default();
        for round in 0..200 {
            (0..60).for_each(|i| ranges.push(range(round * 60 + i, 1, 0)));
            let inputs = ranges.between(round * 60, round * 60 + 60).unwrap();
            ranges.replace(merged_of(&inputs));
        }
        assert_eq!(ranges.len(), 200);
        assert!(ranges.full.len() <= 200 / RANGES_PER_CHUNK * 2);
    }

    #[test]
    fn a_copy_shares_full_chunks_and_does_not_change() {
        let mut ranges: Ranges = (0..1_000).map(|i| range(i, 1, i)).collect();
        let copy = ranges.clone();
        ranges.push(range(1_000, 1, 0));
        ranges.pop_first();
        assert_eq!((copy.len(), copy.first().unwrap().base_offset), (1_000, 0));
        assert!(Arc::ptr_eq(&copy.full[5], &ranges.full[5]));
    }
}
