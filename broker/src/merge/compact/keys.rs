//! The newest offset of each key, in bounded memory.
//!
//! Keys are known by 128 bits of a keyed hash: nobody outside can make two of them meet. Keys that
//! do not fit all at once are taken in classes, one after the other: each class has its share of
//! the hashes, and whoever walks the log for a class passes over the keys of the others.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};

/// What an entry of the map takes: a hash, an offset, a byte of the table's own; and a quarter of
/// that beside it while the map gives up three quarters of its keys.
const ENTRY_BYTES: u64 = 31;

/// What a key is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key([u64; 2]);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0[1]);
    }
}

/// A hash is a hash already.
#[derive(Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            self.0 = chunk.iter().fold(self.0, |sum, byte| sum << 8 | u64::from(*byte));
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// Makes [`Key`]s, with secrets of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyHasher {
    secrets: [u128; 2],
}

impl KeyHasher {
    pub(super) fn new(secrets: [u128; 2]) -> Self {
        Self { secrets }
    }

    pub(super) fn key(&self, bytes: &[u8]) -> Key {
        Key(self.secrets.map(|secret| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u128(secret);
            hasher.write(bytes);
            hasher.finish()
        }))
    }
}

/// Every so-manyth hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class {
    number: u64,
    /// A power of two.
    of: u64,
}

impl Class {
    /// All keys.
    pub(super) const ALL: Self = Self { number: 0, of: 1 };

    fn has(self, key: Key) -> bool {
        key.0[0] & (self.of - 1) == self.number
    }

    /// Four classes with a quarter of the keys each. Of more classes than there are hashes, some
    /// are empty.
    fn quarters(self) -> [Self; 4] {
        let of = self.of.saturating_mul(4);
        [0, 1, 2, 3].map(|quarter| Self { number: self.number | self.of.saturating_mul(quarter), of })
    }
}

/// The newest offset of each key of a class.
#[derive(Debug)]
pub(super) struct KeyMap {
    class: Class,
    newest: HashMap<Key, i64, BuildHasherDefault<AsItIs>>,
    most: usize,
}

impl KeyMap {
    /// A map of at most `bytes`. `expected` keys are made room for at once: a map that grows holds
    /// its entries twice for a moment.
    pub(super) fn new(class: Class, bytes: u64, expected: u64) -> Self {
        // The table has a power of two of places, of which it fills seven of eight.
        let places = 1 << (bytes / ENTRY_BYTES).max(16).ilog2();
        let most = usize::try_from(places / 8 * 7).unwrap_or(usize::MAX);
        let expected = usize::try_from(expected).unwrap_or(usize::MAX).min(most);
        Self {
            class,
            newest: HashMap::with_capacity_and_hasher(expected, BuildHasherDefault::default()),
            most,
        }
    }

    /// Notes that a record at `offset`, higher than all before it, has this key. If there is no
    /// room for one more, the map keeps to a quarter of its keys from now on. The other classes are
    /// added to `others`, to be taken another time.
    pub(super) fn note(&mut self, key: Key, offset: i64, others: &mut Vec<Class>) {
        if !self.class.has(key) {
            return;
        }
        if let Some(newest) = self.newest.get_mut(&key) {
            *newest = offset;
            return;
        }
        if self.newest.len() >= self.most {
            let [own, rest @ ..] = self.class.quarters();
            self.class = own;
            // Taken out and put in again: a table from which keys were removed one by one grows.
            let kept: Vec<(Key, i64)> = self
                .newest
                .iter()
                .filter(|(key, _)| own.has(**key))
                .map(|(key, newest)| (*key, *newest))
                .collect();
            self.newest.clear();
            self.newest.extend(kept);
            others.extend(rest);
        }
        if self.class.has(key) && self.newest.len() < self.most {
            self.newest.insert(key, offset);
        }
    }

    /// Whether a newer record than the one at `offset` has this key, as far as the map knows.
    pub(super) fn supersedes(&self, key: Key, offset: i64) -> bool {
        self.newest.get(&key).is_some_and(|newest| *newest > offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(count: u64) -> Vec<Key> {
        let hasher = KeyHasher::new([1, 2]);
        (0..count).map(|i| hasher.key(&i.to_be_bytes())).collect()
    }

    #[test]
    fn the_newest_offset_of_a_key_counts() {
        let keys = keys(2);
        let (mut map, mut others) = (KeyMap::new(Class::ALL, 1 << 20, 10), Vec::new());
        for (offset, key) in [(5, 0), (6, 1), (9, 0)] {
            map.note(keys[key], offset, &mut others);
        }
        assert!(others.is_empty());
        assert!(map.supersedes(keys[0], 5) && !map.supersedes(keys[0], 9));
        assert!(!map.supersedes(keys[1], 6) && map.supersedes(keys[1], 0));
    }

    #[test]
    fn keys_that_do_not_fit_are_taken_in_classes_of_which_each_is_complete() {
        let keys = keys(5_000);
        let bytes = ENTRY_BYTES * 512;
        let (mut classes, mut seen, mut walks) = (vec![Class::ALL], 0, 0);
        while let Some(class) = classes.pop() {
            walks += 1;
            let mut map = KeyMap::new(class, bytes, 5_000);
            for round in [0, 10_000] {
                for (offset, key) in (round..).zip(&keys) {
                    map.note(*key, offset, &mut classes);
                }
            }
            assert!(map.newest.len() <= 448 && map.newest.capacity() <= 448, "{}", map.newest.capacity());
            for (offset, key) in (0..).zip(&keys) {
                let is_of_class = map.class.has(*key);
                assert_eq!(map.supersedes(*key, 10_000 + offset - 1), is_of_class);
                seen += usize::from(is_of_class);
            }
        }
        assert_eq!(seen, keys.len(), "each key is of exactly one class");
        assert!(walks >= 12, "{walks}");
    }

    #[test]
    fn a_key_is_known_by_all_of_it_and_by_the_secrets() {
        let hasher = KeyHasher::new([1, 2]);
        assert_eq!(hasher.key(b"ab"), hasher.key(b"ab"));
        assert_ne!(hasher.key(b"ab"), hasher.key(b"ab\0"));
        assert_ne!(hasher.key(b""), hasher.key(b"\0"));
        assert_ne!(hasher.key(b"ab"), KeyHasher::new([1, 3]).key(b"ab"));
    }
}
