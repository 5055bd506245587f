//! The ranges of a partition, in chunks that states share.
//!
//! A chunk that is full never changes again: a copy of a state shares it, and so does the next
//! state. What a copy of the state costs a partition that changes afterwards is its newest ranges,
//! fewer than [`RANGES_PER_CHUNK`] of them.

use std::sync::Arc;

use imbl::Vector;

use super::partition::Range;

use crate::limits::RANGES_PER_CHUNK;

/// A run of ranges that never changes.
#[derive(Debug)]
struct Chunk {
    ranges: Box<[Range]>,
    max_timestamp_ms: i64,
}

/// The ranges of a partition, in offset order. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Ranges {
    full: Vector<Arc<Chunk>>,
    /// How many of the first full chunk are trimmed.
    trimmed: usize,
    /// The newest ranges; never empty unless there are none at all.
    newest: Vec<Range>,
}

impl PartialEq for Ranges {
    fn eq(&self, other: &Self) -> bool {
        // Where chunks begin depends on what was trimmed before.
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

impl Ranges {
    /// How many there are.
    pub fn len(&self) -> usize {
        // Only the first full chunk may be trimmed, and all are of the same length.
        self.full.len() * RANGES_PER_CHUNK - self.trimmed + self.newest.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.newest.is_empty()
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

    /// The range at this place, counted from the first.
    pub fn get(&self, place: usize) -> Option<&Range> {
        let place = place + self.trimmed;
        match self.full.get(place / RANGES_PER_CHUNK) {
            Some(chunk) => chunk.ranges.get(place % RANGES_PER_CHUNK),
            None => self.newest.get(place - self.full.len() * RANGES_PER_CHUNK),
        }
    }

    /// All of them, in offset order.
    pub fn iter(&self) -> impl Iterator<Item = &Range> {
        self.full.iter().flat_map(|chunk| &chunk.ranges).skip(self.trimmed).chain(&self.newest)
    }

    /// The range that contains `offset` and those after it, or those after `offset` if none
    /// contains it. Costs time with the logarithm of their number until the first is there.
    pub fn from(&self, offset: i64) -> impl Iterator<Item = &Range> {
        let ends_before = |range: &Range| range.end_offset <= offset;
        let first = self.full.binary_search_by(|chunk| match chunk.ranges.last() {
            Some(last) if ends_before(last) => std::cmp::Ordering::Less,
            _ => std::cmp::Ordering::Greater,
        });
        let first = first.unwrap_or_else(|at| at);
        let within = match self.full.get(first) {
            Some(chunk) if first == 0 => chunk.ranges.partition_point(ends_before).max(self.trimmed),
            Some(chunk) => chunk.ranges.partition_point(ends_before),
            None => self.newest.partition_point(ends_before),
        };
        let full = (first..self.full.len()).flat_map(|chunk| &self.full[chunk].ranges);
        full.chain(&self.newest).skip(within)
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

    pub(super) fn last_mut(&mut self) -> Option<&mut Range> {
        self.newest.last_mut()
    }

    pub(super) fn push(&mut self, range: Range) {
        if self.newest.len() == RANGES_PER_CHUNK {
            let ranges = std::mem::take(&mut self.newest).into_boxed_slice();
            let max_timestamp_ms = newest_of(&ranges).unwrap_or(i64::MIN);
            self.full.push_back(Arc::new(Chunk { ranges, max_timestamp_ms }));
        }
        self.newest.push(range);
    }

    pub(super) fn pop_first(&mut self) -> Option<Range> {
        let Some(chunk) = self.full.front() else {
            return (!self.newest.is_empty()).then(|| self.newest.remove(0));
        };
        let first = chunk.ranges.get(self.trimmed).copied();
        self.trimmed += 1;
        if self.trimmed == chunk.ranges.len() {
            self.full.pop_front();
            self.trimmed = 0;
        }
        first
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
        Range { base_offset, end_offset, object, position: 0, bytes: 1, max_timestamp_ms, batches: 1 }
    }

    /// Compares with a plain list after each of many random steps.
    #[test]
    fn ranges_are_what_a_list_would_be() {
        for seed in 0..20 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut ranges, mut list, mut end) = (Ranges::default(), Vec::new(), 0);
            for _ in 0..400 {
                if rng.random_ratio(2, 3) {
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
                let place = rng.random_range(0..list.len() + 2);
                assert_eq!(ranges.get(place), list.get(place));
                let offset = rng.random_range(0..=end);
                assert!(ranges.from(offset).eq(list.iter().filter(|r| r.end_offset > offset)));
            }
        }
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
