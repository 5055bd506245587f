//! What this broker keeps of objects in memory: bounded in bytes, in three pools that do not evict
//! each other.
//!
//! | pool | holds | filled by |
//! |---|---|---|
//! | written | whole objects, in the buffers that they were sent from | this broker's flushes |
//! | tail | blocks of 16 MiB | reads near the end of a partition: what other brokers wrote |
//! | catch-up | blocks of 16 MiB | reads of the past |
//!
//! So a consumer that starts from the beginning takes nothing from those at the tail; what these do
//! not use it may have. Blocks of merged objects have 8 MiB; but what one partition has there, if
//! it is much, is fetched and kept by itself, in blocks of up to 12 MiB. Beside the pools, with a
//! bound of their own, there are the indexes of merged objects, and which objects were found to be
//! the ones that they should be. Within each the entry that was not used for the longest time goes
//! first. Nothing depends on a hash's order, so a simulation can repeat it.

mod lru;
mod written;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use self::lru::Lru;
pub(crate) use self::written::Slices;
use self::written::Written;
use crate::format::merged::MergedIndex;
use crate::limits::{
    BLOCK_BYTES, CACHE_CATCH_UP_PERCENT, CACHE_ENTRY_OVERHEAD_BYTES, CACHE_TAIL_PERCENT,
    CACHE_WRITTEN_PERCENT, MAX_CHECKED_RANGES, MAX_IDENTIFIED_OBJECTS, MERGED_BLOCK_BYTES,
    MERGED_INDEX_CACHE_BYTES, OWN_BLOCK_BYTES, OWN_BLOCK_FROM_BYTES,
};
use crate::metrics::StorageMetrics;
use crate::path::{ObjectId, ObjectKind};

/// A part of the cache with a bound of its own. Its name is the `pool` label.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pool {
    /// Objects that this broker wrote.
    Written,
    /// Blocks that were fetched for readers at the tail.
    Tail,
    /// Blocks that were fetched for readers of the past.
    CatchUp,
}

impl Pool {
    /// All pools, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::Written, Self::Tail, Self::CatchUp];

    /// The pool's name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::Tail => "tail",
            Self::CatchUp => "catch_up",
        }
    }
}

/// What a partition has in an object, side by side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stretch {
    /// Where it begins in the object.
    pub position: u64,
    /// Its length.
    pub bytes: u64,
}

/// A block of an object: the unit of fetching.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BlockKey {
    pub(crate) id: ObjectId,
    /// Where it begins.
    pub(crate) start: u64,
    /// Whether it has what one partition has, and nothing else.
    pub(crate) is_own: bool,
}

/// The block in which a byte of an object of `object_bytes` is fetched, and where that lies. The
/// byte is in `stretch`, or anywhere if there is none.
pub fn block_at(
    id: ObjectId,
    object_bytes: u64,
    stretch: Option<Stretch>,
    position: u64,
) -> (BlockKey, Range<u64>) {
    let own = stretch.filter(|stretch| {
        let Stretch { position: from, bytes } = *stretch;
        id.kind == ObjectKind::Merge
            && bytes >= OWN_BLOCK_FROM_BYTES
            && from
                .checked_add(bytes)
                .is_some_and(|end| end <= object_bytes && (from..end).contains(&position))
    });
    let (from, to, unit) = match (own, id.kind) {
        (Some(Stretch { position: from, bytes }), _) => {
            (from, from + bytes, bytes.div_ceil(bytes.div_ceil(OWN_BLOCK_BYTES)))
        }
        (None, ObjectKind::Write) => (0, object_bytes, BLOCK_BYTES),
        (None, ObjectKind::Merge) => (0, object_bytes, MERGED_BLOCK_BYTES),
    };
    let start = from + (position - from) / unit * unit;
    let key = BlockKey { id, start, is_own: own.is_some() };
    (key, start..start.saturating_add(unit).min(to))
}

/// A block that was fetched, and which of its bytes were found to be whole batches: these bytes in
/// memory do not change, so they are checked once and not for every reader.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pieces: Arc<Written>,
    checked: Arc<Mutex<BTreeSet<(u64, u64)>>>,
    identified: Arc<AtomicBool>,
}

impl Block {
    /// A block of which nothing is checked yet, in the pieces in which it came.
    pub(crate) fn new(pieces: Vec<Bytes>) -> Self {
        Self { pieces: Arc::new(Written::new(pieces)), checked: Arc::default(), identified: Arc::default() }
    }

    /// Whether the object that it was fetched from was found to be the one that it should be.
    pub(crate) fn is_identified(&self) -> bool {
        self.identified.load(Ordering::Relaxed)
    }

    /// Notes that it was.
    pub(crate) fn note_identified(&self) {
        self.identified.store(true, Ordering::Relaxed);
    }

    /// Its length.
    pub(crate) fn bytes(&self) -> u64 {
        self.pieces.bytes()
    }

    /// A part of it, without a copy; `None` if it ends before.
    pub(crate) fn slice(&self, range: Range<u64>) -> Option<Slices> {
        self.pieces.slice(range)
    }

    /// Whether exactly this range of the object was checked.
    pub(crate) fn is_checked(&self, range: &Range<u64>) -> bool {
        self.lock().contains(&(range.start, range.end))
    }

    /// Notes that this range of the object was checked.
    pub(crate) fn note_checked(&self, range: &Range<u64>) {
        let mut checked = self.lock();
        if checked.len() < MAX_CHECKED_RANGES {
            checked.insert((range.start, range.end));
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<(u64, u64)>> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The three pools, and what is known of objects. Not shared by itself: its owner holds the lock.
#[derive(Debug)]
pub(crate) struct Cache {
    written: Lru<ObjectId, Written>,
    tail: Lru<BlockKey, Block>,
    catch_up: Lru<BlockKey, Block>,
    indexes: Lru<ObjectId, Arc<MergedIndex>>,
    identified: Lru<ObjectId, ()>,
    /// Bytes that all pools may have together, and that the one for the past has in any case.
    bound: u64,
    catch_up_share: u64,
    metrics: StorageMetrics,
}

impl Cache {
    /// A cache of at most `bytes`, all pools and their bookkeeping together. What is known of
    /// objects comes on top, at most [`MERGED_INDEX_CACHE_BYTES`] and a MiB.
    pub(crate) fn new(bytes: u64, metrics: StorageMetrics) -> Self {
        let share = |percent: u64| bytes / 100 * percent;
        Self {
            written: Lru::new(share(CACHE_WRITTEN_PERCENT)),
            tail: Lru::new(share(CACHE_TAIL_PERCENT)),
            catch_up: Lru::new(share(CACHE_CATCH_UP_PERCENT)),
            indexes: Lru::new(MERGED_INDEX_CACHE_BYTES),
            identified: Lru::new(MAX_IDENTIFIED_OBJECTS as u64 * CACHE_ENTRY_OVERHEAD_BYTES),
            bound: bytes,
            catch_up_share: share(CACHE_CATCH_UP_PERCENT),
            metrics,
        }
    }

    /// Gives the readers of the past what the others leave.
    fn share_out(&mut self) {
        let left = self.bound.saturating_sub(self.written.bytes() + self.tail.bytes());
        let evicted = self.catch_up.set_bound(left.max(self.catch_up_share));
        self.metrics.observe_evictions(Pool::CatchUp, evicted);
        self.metrics.set_cache_bytes(Pool::CatchUp, self.catch_up.bytes());
    }

    /// Keeps an object that this broker wrote.
    pub(crate) fn insert_written(&mut self, id: ObjectId, payload: Vec<Bytes>) {
        let object = Written::new(payload);
        let bytes = object.bytes();
        let evicted = self.written.insert(id, object, bytes);
        self.metrics.observe_evictions(Pool::Written, evicted);
        self.metrics.set_cache_bytes(Pool::Written, self.written.bytes());
        self.share_out();
    }

    /// Keeps a block that was fetched.
    pub(crate) fn insert_block(&mut self, pool: Pool, key: BlockKey, block: Block) {
        let lru = match pool {
            Pool::Written => return,
            Pool::Tail => &mut self.tail,
            Pool::CatchUp => &mut self.catch_up,
        };
        let bytes = block.bytes();
        let evicted = lru.insert(key, block, bytes);
        self.metrics.observe_evictions(pool, evicted);
        self.metrics.set_cache_bytes(pool, lru.bytes());
        self.share_out();
    }

    /// A range of an object that this broker wrote, in pieces that share its buffers.
    pub(crate) fn written(&mut self, id: ObjectId, range: Range<u64>) -> Option<Slices> {
        self.written.get(&id).and_then(|object| object.slice(range))
    }

    /// A block that was fetched, whoever it was fetched for.
    pub(crate) fn block(&mut self, key: BlockKey) -> Option<Block> {
        self.tail.get(&key).or_else(|| self.catch_up.get(&key)).cloned()
    }

    /// Like [`Self::written`], for a reader that is not to change what goes first.
    pub(crate) fn peek_written(&self, id: ObjectId, range: Range<u64>) -> Option<Slices> {
        self.written.peek(&id).and_then(|object| object.slice(range))
    }

    /// A block that was fetched, for a reader that is not to change what goes first.
    pub(crate) fn peek_block(&self, key: BlockKey) -> Option<Block> {
        self.tail.peek(&key).or_else(|| self.catch_up.peek(&key)).cloned()
    }

    /// Keeps the index of a merged object. It is known to be of the right one.
    pub(crate) fn insert_index(&mut self, id: ObjectId, index: Arc<MergedIndex>) {
        let bytes = index.memory_bytes();
        self.indexes.insert(id, index, bytes);
        self.metrics.set_index_bytes(self.indexes.bytes());
    }

    /// The index of a merged object.
    pub(crate) fn index(&mut self, id: ObjectId) -> Option<Arc<MergedIndex>> {
        self.indexes.get(&id).cloned()
    }

    /// Notes that an object is the one that it should be.
    pub(crate) fn note_identified(&mut self, id: ObjectId) {
        self.identified.insert(id, (), 0);
    }

    /// Whether an object was found to be the one that it should be.
    pub(crate) fn is_identified(&mut self, id: ObjectId) -> bool {
        self.identified.get(&id).is_some()
    }

    /// Forgets an object.
    pub(crate) fn evict(&mut self, id: ObjectId) {
        self.indexes.remove_range(id..=id);
        self.identified.remove_range(id..=id);
        self.metrics.set_index_bytes(self.indexes.bytes());
        self.written.remove_range(id..=id);
        let blocks =
            BlockKey { id, start: 0, is_own: false }..=BlockKey { id, start: u64::MAX, is_own: true };
        self.tail.remove_range(blocks.clone());
        self.catch_up.remove_range(blocks);
        self.metrics.set_cache_bytes(Pool::Written, self.written.bytes());
        self.metrics.set_cache_bytes(Pool::Tail, self.tail.bytes());
        self.share_out();
    }

    /// Bytes in all pools, bookkeeping included.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        self.written.bytes() + self.tail.bytes() + self.catch_up.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::CACHE_ENTRY_OVERHEAD_BYTES;

    fn id(number: u64) -> ObjectId {
        ObjectId::write(1, number, 0)
    }

    fn block(bytes: u64) -> Block {
        Block::new(vec![Bytes::from(vec![0; usize::try_from(bytes - CACHE_ENTRY_OVERHEAD_BYTES).unwrap()])])
    }

    fn key(number: u64, start: u64) -> BlockKey {
        BlockKey { id: id(number), start, is_own: false }
    }

    /// Where the blocks of the bytes begin, in order, and where the last one ends.
    fn tiles(id: ObjectId, object_bytes: u64, stretch: Option<Stretch>, bytes: Range<u64>) -> Vec<u64> {
        let mut ends: Vec<u64> = Vec::new();
        let mut position = bytes.start;
        while position < bytes.end {
            let (key, place) = block_at(id, object_bytes, stretch, position);
            assert!(place.contains(&position) && key.start == place.start);
            assert_eq!(block_at(id, object_bytes, stretch, place.end - 1), (key, place.clone()));
            if ends.is_empty() {
                ends.push(place.start);
            }
            assert_eq!(ends.last(), Some(&place.start));
            position = place.end;
            ends.push(place.end);
        }
        ends
    }

    #[test]
    fn blocks_tile_an_object() {
        let size = 2 * BLOCK_BYTES + 5;
        // Of a write object one partition has little, whatever it has.
        for stretch in [None, Some(Stretch { position: 0, bytes: size })] {
            assert_eq!(tiles(id(1), size, stretch, 0..size), [0, BLOCK_BYTES, 2 * BLOCK_BYTES, size]);
        }
        let unit = MERGED_BLOCK_BYTES;
        assert_eq!(tiles(ObjectId::merge(1, 1, 0), 2 * unit, None, 5..2 * unit), [0, unit, 2 * unit]);
    }

    #[test]
    fn what_one_partition_has_in_a_merged_object_has_blocks_of_its_own_if_it_is_much() {
        let merged = ObjectId::merge(1, 1, 0);
        let (unit, most, object_bytes) = (MERGED_BLOCK_BYTES, OWN_BLOCK_BYTES, 1 << 30);
        let of = |bytes| tiles(merged, object_bytes, Some(Stretch { position: 77, bytes }), 77..77 + bytes);
        assert_eq!(of(OWN_BLOCK_FROM_BYTES - 1), [0, unit]);
        assert_eq!(of(OWN_BLOCK_FROM_BYTES), [77, 77 + OWN_BLOCK_FROM_BYTES]);
        assert_eq!(of(most), [77, 77 + most]);
        assert_eq!(of(most + 1), [77, 77 + most / 2 + 1, 77 + most + 1]);
        // What lies beside it is fetched like all else; both may begin at one byte.
        let stretch = Some(Stretch { position: 0, bytes: most });
        let (own, others) =
            (block_at(merged, object_bytes, stretch, 0), block_at(merged, object_bytes, None, 0));
        assert_ne!(own.0, others.0);
        assert_eq!(block_at(merged, object_bytes, stretch, most).1, unit..2 * unit);
        // A stretch that is not in the object is none.
        let stretch = Some(Stretch { position: 5, bytes: most });
        assert_eq!(block_at(merged, most, stretch, 6).1, 0..unit);
    }

    #[test]
    fn catching_up_takes_nothing_from_the_tail() {
        let mut cache = Cache::new(100_000, StorageMetrics::unregistered());
        cache.insert_written(id(1), block(1000).slice(0..1000 - CACHE_ENTRY_OVERHEAD_BYTES).unwrap().pieces);
        cache.insert_block(Pool::Tail, key(2, 0), block(1000));
        for number in 3..1000 {
            cache.insert_block(Pool::CatchUp, key(number, 0), block(1000));
            assert!(cache.bytes() <= 100_000);
        }
        assert!(cache.written(id(1), 0..10).is_some());
        assert!(cache.block(key(2, 0)).is_some());
        assert!(cache.block(key(3, 0)).is_none());
        assert!(cache.block(key(999, 0)).is_some());
        // It has what others do not use, until they do.
        assert!(cache.bytes() > 90_000);
        for number in 1_000..2_000 {
            let object = block(1000).slice(0..1000 - CACHE_ENTRY_OVERHEAD_BYTES).unwrap();
            cache.insert_written(id(number), object.pieces);
            cache.insert_block(Pool::Tail, key(number + 1_000, 0), block(1000));
            assert!(cache.bytes() <= 100_000);
        }
        assert_eq!(cache.catch_up.bytes(), 25_000, "its own share stays");
    }

    #[test]
    fn evicting_forgets_every_block_of_one_object_only() {
        let mut cache = Cache::new(1_000_000, StorageMetrics::unregistered());
        for number in 1..=3 {
            let object = block(300).slice(0..300 - CACHE_ENTRY_OVERHEAD_BYTES).unwrap();
            cache.insert_written(id(number), object.pieces);
            for index in [0, 1, 7] {
                cache.insert_block(Pool::Tail, key(number, index), block(300));
                cache.insert_block(Pool::CatchUp, key(number, index + 10), block(300));
            }
        }
        let before = cache.bytes();
        cache.evict(id(2));
        assert_eq!(cache.bytes(), before / 3 * 2);
        assert!(cache.written(id(2), 0..1).is_none());
        for index in [0, 1, 7, 10, 11, 17] {
            assert!(cache.block(key(2, index)).is_none());
            assert!(cache.block(key(1, index)).is_some());
            assert!(cache.block(key(3, index)).is_some());
        }
    }
}
