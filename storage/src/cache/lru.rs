//! Keeps what was used last, within a bound in bytes.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::limits::CACHE_ENTRY_OVERHEAD_BYTES;

/// Values by key, of which the least recently used go when the bound is reached.
#[derive(Debug)]
pub(super) struct Lru<K, V> {
    entries: BTreeMap<K, Entry<V>>,
    /// Keys by the time of their last use, oldest first.
    by_use: BTreeMap<u64, K>,
    /// Counts uses; stands for time.
    uses: u64,
    bytes: u64,
    bound: u64,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    bytes: u64,
    used: u64,
}

impl<K: Ord + Copy, V> Lru<K, V> {
    pub(super) fn new(bound: u64) -> Self {
        Self { entries: BTreeMap::new(), by_use: BTreeMap::new(), uses: 0, bytes: 0, bound }
    }

    /// Bytes of all entries, each with its overhead. Never more than the bound.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds or replaces an entry and says how many others had to go. What is larger than the bound
    /// is not kept.
    pub(super) fn insert(&mut self, key: K, value: V, bytes: u64) -> u64 {
        let bytes = bytes.saturating_add(CACHE_ENTRY_OVERHEAD_BYTES);
        self.remove(&key);
        if bytes > self.bound {
            return 0;
        }
        let evicted = self.shrink(self.bound - bytes);
        self.uses += 1;
        self.by_use.insert(self.uses, key);
        self.entries.insert(key, Entry { value, bytes, used: self.uses });
        self.bytes += bytes;
        debug_assert_eq!(self.entries.len(), self.by_use.len(), "each entry has one time of use");
        evicted
    }

    /// From now on it has other room, for which some may have to go: says how many.
    pub(super) fn set_bound(&mut self, bound: u64) -> u64 {
        self.bound = bound;
        self.shrink(bound)
    }

    fn shrink(&mut self, to: u64) -> u64 {
        let mut evicted = 0;
        while self.bytes > to {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            if let Some(entry) = self.entries.remove(&oldest) {
                self.bytes -= entry.bytes;
            }
            evicted += 1;
        }
        evicted
    }

    /// The entry of that key, which is now the one used last.
    pub(super) fn get(&mut self, key: &K) -> Option<&V> {
        let entry = self.entries.get_mut(key)?;
        self.by_use.remove(&entry.used);
        self.uses += 1;
        entry.used = self.uses;
        self.by_use.insert(self.uses, *key);
        Some(&entry.value)
    }

    /// The entry of that key, whose turn to go stays what it was.
    pub(super) fn peek(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|entry| &entry.value)
    }

    /// Removes all entries within a range of keys.
    pub(super) fn remove_range(&mut self, keys: RangeInclusive<K>) {
        let found: Vec<K> = self.entries.range(keys).map(|(key, _)| *key).collect();
        for key in found {
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &K) {
        if let Some(entry) = self.entries.remove(key) {
            self.by_use.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    const OVERHEAD: u64 = CACHE_ENTRY_OVERHEAD_BYTES;

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut lru = Lru::new(3 * (OVERHEAD + 10));
        for key in 1..=3 {
            assert_eq!(lru.insert(key, key * 100, 10), 0);
        }
        assert_eq!(lru.get(&1), Some(&100));
        assert_eq!(lru.insert(4, 400, 10), 1);
        assert_eq!(lru.get(&2), None);
        assert_eq!(lru.peek(&3), Some(&300), "and would go next, as if nobody had looked");
        assert_eq!(lru.get(&1), Some(&100));
        assert_eq!(lru.insert(5, 500, 2 * OVERHEAD), 3, "a large entry pushes out several");
        assert_eq!(lru.get(&5), Some(&500));
    }

    #[test]
    fn what_is_larger_than_the_bound_is_not_kept() {
        let mut lru = Lru::new(1000);
        lru.insert(1, 'a', 10);
        assert_eq!(lru.insert(2, 'b', 1000), 0);
        assert_eq!(lru.get(&2), None);
        assert_eq!(lru.get(&1), Some(&'a'), "and pushes nothing out");
        lru.insert(1, 'c', u64::MAX);
        assert_eq!(lru.get(&1), None, "nor does the value that it should replace stay");
        assert_eq!(lru.bytes(), 0);
    }

    #[test]
    fn it_behaves_like_a_list_in_order_of_use() {
        for seed in 0..50 {
            let mut rng = StdRng::seed_from_u64(seed);
            let bound = 5000;
            let mut lru = Lru::new(bound);
            // Oldest first.
            let mut model: Vec<(u64, u64, u64)> = Vec::new();
            for step in 0..500 {
                let key = rng.random_range(0..20_u64);
                match rng.random_range(0..10) {
                    0 => {
                        let end = key + rng.random_range(0..4);
                        lru.remove_range(key..=end);
                        model.retain(|(k, ..)| !(key..=end).contains(k));
                    }
                    1..5 => {
                        let bytes = rng.random_range(0..1500);
                        lru.insert(key, step, bytes);
                        model.retain(|(k, ..)| *k != key);
                        model.push((key, step, bytes + OVERHEAD));
                        while model.iter().map(|entry| entry.2).sum::<u64>() > bound {
                            model.remove(0);
                        }
                    }
                    _ => {
                        let at = model.iter().position(|(k, ..)| *k == key);
                        let expected = at.map(|at| {
                            let entry = model.remove(at);
                            model.push(entry);
                            entry.1
                        });
                        assert_eq!(lru.get(&key).copied(), expected, "seed {seed}, step {step}");
                    }
                }
                assert_eq!(lru.bytes(), model.iter().map(|entry| entry.2).sum::<u64>(), "seed {seed}");
            }
        }
    }
}
