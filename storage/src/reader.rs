//! Reading objects: from the cache, or with one GET that is shared by all who wait for the same
//! block.
//!
//! ```text
//!  read ──▶ written? ──▶ pieces of what was sent
//!    │ for each block of 16 MiB:
//!    ├──▶ cached? ─────▶ a slice of the block
//!    ├──▶ being fetched? ──▶ wait with the others
//!    └──▶ wait for room in flight ──▶ GET ──▶ cache
//! ```
//!
//! A fetch is driven by whoever waits for it: when one of them goes away the others go on, and when
//! all have gone it is cancelled. So there is no task to own, and no work for nobody. A fetch that
//! fails fails for all who wait for it and leaves nothing behind.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::Semaphore;

use crate::cache::{Block, BlockKey, Cache, Pool, Slices};
use crate::error::{Operation, StoreError};
use crate::format::segment::{LONGEST_FOOTER_BYTES, check_identity};
use crate::limits::{BLOCK_BYTES, IN_FLIGHT_UNIT_BYTES};
use crate::metrics::{CacheOutcome, StorageMetrics};
use crate::path::ObjectId;
use crate::store::Store;

mod batches;

pub use batches::ReadBatch;

/// How much memory reading may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReaderConfig {
    /// Bytes of the cache, all of its pools together.
    pub cache_bytes: u64,
    /// Bytes of GETs that are under way, half of it for each kind of read. One GET is always let
    /// through.
    pub max_in_flight_bytes: u64,
}

/// What a read is for. The two kinds share neither cache nor room in flight, so that replaying the
/// past does not slow down those at the tail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadKind {
    /// Near the end of a partition: others will want the same bytes soon.
    Tail,
    /// Somewhere in the past.
    CatchUp,
}

impl ReadKind {
    fn pool(self) -> Pool {
        match self {
            Self::Tail => Pool::Tail,
            Self::CatchUp => Pool::CatchUp,
        }
    }
}

/// Reads objects. Clones share one cache.
#[derive(Clone, Debug)]
pub struct Reader {
    inner: Arc<Inner>,
}

/// The record batches of a range.
#[derive(Clone, Debug)]
pub struct ReadRange {
    /// The batches, in slices of what was read.
    pub batches: Vec<ReadBatch>,
    /// Bytes that stay in memory for as long as one of the batches does, also when the cache has
    /// given the object up.
    pub kept_alive: usize,
}

type FetchFuture = BoxFuture<'static, Result<Block, StoreError>>;
type Fetch = Shared<FetchFuture>;

struct Inner {
    store: Arc<dyn Store>,
    metrics: StorageMetrics,
    state: Mutex<State>,
    tail_room: Room,
    catch_up_room: Room,
}

struct State {
    cache: Cache,
    /// Fetches that somebody waits for, each with a number of its own.
    fetches: BTreeMap<BlockKey, (u64, WeakShared<FetchFuture>)>,
    started: u64,
}

/// A bound on bytes in flight.
#[derive(Debug)]
struct Room {
    permits: Semaphore,
    units: u32,
}

impl Room {
    fn new(bytes: u64) -> Self {
        let units = u32::try_from(bytes / IN_FLIGHT_UNIT_BYTES).unwrap_or(u32::MAX >> 3).max(1);
        Self { permits: Semaphore::new(units as usize), units }
    }

    /// The units that so many bytes take. What is larger than the whole room takes all of it.
    fn units_of(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(IN_FLIGHT_UNIT_BYTES)).unwrap_or(u32::MAX).clamp(1, self.units)
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn room(&self, kind: ReadKind) -> &Room {
        match kind {
            ReadKind::Tail => &self.tail_room,
            ReadKind::CatchUp => &self.catch_up_room,
        }
    }
}

/// Takes a fetch off the list when it ends, however it ends. Only its own entry: a later fetch of
/// the same block may have taken the place.
struct SharedFetch {
    inner: Arc<Inner>,
    key: BlockKey,
    number: u64,
}

impl Drop for SharedFetch {
    fn drop(&mut self) {
        let mut state = self.inner.lock();
        if state.fetches.get(&self.key).is_some_and(|(number, _)| *number == self.number) {
            state.fetches.remove(&self.key);
        }
    }
}

/// Bytes that were read, and whether this broker has only just written them.
struct ReadBytes {
    slices: Slices,
    own: bool,
    /// The block that the range lies in, if it was fetched and lies in one.
    block: Option<Block>,
}

impl Reader {
    /// Reads from `store`.
    pub fn new(store: Arc<dyn Store>, config: ReaderConfig, metrics: StorageMetrics) -> Self {
        let state = State {
            cache: Cache::new(config.cache_bytes, metrics.clone()),
            fetches: BTreeMap::new(),
            started: 0,
        };
        Self {
            inner: Arc::new(Inner {
                store,
                metrics,
                state: Mutex::new(state),
                tail_room: Room::new(config.max_in_flight_bytes / 2),
                catch_up_room: Room::new(config.max_in_flight_bytes / 2),
            }),
        }
    }

    /// Keeps an object that this broker has written, in the very buffers that it was sent from.
    pub fn insert_written(&self, id: ObjectId, payload: Vec<Bytes>) {
        self.inner.lock().cache.insert_written(id, payload);
    }

    /// Reads a range of an object of `object_bytes` for a reader at the tail. See
    /// [`Self::read_as`].
    pub async fn read(
        &self,
        id: ObjectId,
        object_bytes: u64,
        range: Range<u64>,
    ) -> Result<Vec<Bytes>, StoreError> {
        self.read_as(ReadKind::Tail, id, object_bytes, range).await
    }

    /// Reads a range of an object of `object_bytes`: exactly these bytes, in pieces that are slices
    /// of the cache. They are as the store returned them, which [`Self::read_batches`] does not
    /// take on trust.
    ///
    /// Cancellation-safe: others who wait for the same block are not disturbed.
    pub async fn read_as(
        &self,
        kind: ReadKind,
        id: ObjectId,
        object_bytes: u64,
        range: Range<u64>,
    ) -> Result<Vec<Bytes>, StoreError> {
        Ok(self.find(kind, id, object_bytes, range).await?.slices.pieces)
    }

    /// Reads a range of an object that consists of whole record batches, and checks each, and that
    /// it is the right object: an error that names it, or the bytes that were produced. An object
    /// that fails is forgotten, so that the next read asks the store again.
    pub async fn read_batches(
        &self,
        kind: ReadKind,
        id: ObjectId,
        object_bytes: u64,
        range: Range<u64>,
    ) -> Result<Vec<ReadBatch>, StoreError> {
        Ok(self.read_range(kind, id, object_bytes, range).await?.batches)
    }

    /// Reads like [`Self::read_batches`], and says what the batches keep in memory: whoever holds
    /// them for long does better to copy few out of much.
    pub async fn read_range(
        &self,
        kind: ReadKind,
        id: ObjectId,
        object_bytes: u64,
        range: Range<u64>,
    ) -> Result<ReadRange, StoreError> {
        let found = self.find(kind, id, object_bytes, range.clone()).await?;
        if !found.own {
            self.identify(id, object_bytes, found.block.as_ref()).await?;
        }
        // What this broker wrote was checked when it came, and has not left its memory.
        let trusted = found.own || found.block.as_ref().is_some_and(|b| b.is_checked(&range));
        let batches = batches::cut(found.slices.pieces, !trusted).map_err(|(position, error)| {
            self.evict(id);
            let at = range.start + position;
            StoreError::corrupt(&id.key(), format!("no valid record batch at {at}: {error}"))
        })?;
        if let Some(block) = found.block.filter(|_| !trusted) {
            block.note_checked(&range);
        }
        Ok(ReadRange { batches, kept_alive: found.slices.kept_alive })
    }

    /// Checks that the bytes come from the object that they should come from, and not from another
    /// one of the same layout: that is in its footer, which most blocks hold, since most objects
    /// are one block. For others it is fetched, once for each block.
    async fn identify(
        &self,
        id: ObjectId,
        object_bytes: u64,
        block: Option<&Block>,
    ) -> Result<(), StoreError> {
        if block.is_some_and(Block::is_identified) {
            return Ok(());
        }
        let footer = object_bytes.saturating_sub(LONGEST_FOOTER_BYTES as u64)..object_bytes;
        let held = block.filter(|_| object_bytes <= BLOCK_BYTES).and_then(|b| b.slice(footer.clone()));
        let tail = match held {
            Some(slices) => Bytes::from(slices.pieces.concat()),
            None => self.inner.store.get(&id.key(), Some(footer)).await?,
        };
        check_identity(&tail, object_bytes, id).map_err(|error| {
            self.evict(id);
            self.inner.metrics.observe_wrong_object();
            StoreError::corrupt(&id.key(), error.to_string())
        })?;
        if let Some(block) = block {
            block.note_identified();
        }
        Ok(())
    }

    /// Whether a byte of an object is neither in memory nor on its way: what a reader that looks
    /// ahead wants to know.
    pub fn lacks(&self, id: ObjectId, position: u64) -> bool {
        let mut state = self.inner.lock();
        let key = BlockKey { id, index: position / BLOCK_BYTES };
        let is_held =
            state.cache.written(id, position..position + 1).is_some() || state.cache.block(key).is_some();
        !is_held && state.fetches.get(&key).is_none_or(|(_, fetch)| fetch.upgrade().is_none())
    }

    /// Forgets an object: it was deleted, or is not what it should be.
    pub fn evict(&self, id: ObjectId) {
        self.inner.lock().cache.evict(id);
    }

    async fn find(
        &self,
        kind: ReadKind,
        id: ObjectId,
        object_bytes: u64,
        range: Range<u64>,
    ) -> Result<ReadBytes, StoreError> {
        if range.is_empty() || range.end > object_bytes {
            return Err(StoreError::invalid(format!("bytes {range:?} of {id}, which has {object_bytes}")));
        }
        let own = self.inner.lock().cache.written(id, range.clone());
        if let Some(slices) = own {
            self.inner.metrics.observe_cache(CacheOutcome::Hit);
            return Ok(ReadBytes { slices, own: true, block: None });
        }
        let mut slices = Slices::default();
        let mut only = None;
        for index in range.start / BLOCK_BYTES..=(range.end - 1) / BLOCK_BYTES {
            let key = BlockKey { id, index };
            let place = key.range(object_bytes);
            let block = self.block(kind, key, object_bytes).await?;
            let from = range.start.max(place.start) - place.start;
            let to = range.end.min(place.end) - place.start;
            let Some(more) = block.slice(from..to) else {
                // Cached by a read that was told another size of the same object.
                let what = format!("it has other than the {object_bytes} bytes that it should have");
                return Err(StoreError::corrupt(&id.key(), what));
            };
            only = slices.pieces.is_empty().then_some(block);
            slices.pieces.extend(more.pieces);
            slices.kept_alive += more.kept_alive;
        }
        Ok(ReadBytes { slices, own: false, block: only })
    }

    async fn block(&self, kind: ReadKind, key: BlockKey, object_bytes: u64) -> Result<Block, StoreError> {
        let fetch = {
            let mut state = self.inner.lock();
            if let Some(block) = state.cache.block(key) {
                self.inner.metrics.observe_cache(CacheOutcome::Hit);
                return Ok(block);
            }
            let under_way = state.fetches.get(&key).and_then(|(_, fetch)| fetch.upgrade());
            if let Some(fetch) = under_way {
                self.inner.metrics.observe_cache(CacheOutcome::Joined);
                fetch
            } else {
                self.inner.metrics.observe_cache(CacheOutcome::Miss);
                state.started += 1;
                let listed = SharedFetch { inner: Arc::clone(&self.inner), key, number: state.started };
                let fetch: Fetch = fetch(listed, kind, object_bytes).boxed().shared();
                // A fetch that nobody has polled yet always has a weak reference.
                if let Some(weak) = fetch.downgrade() {
                    let number = state.started;
                    state.fetches.insert(key, (number, weak));
                }
                fetch
            }
        };
        fetch.await
    }
}

/// Fetches one block into the cache.
async fn fetch(listed: SharedFetch, kind: ReadKind, object_bytes: u64) -> Result<Block, StoreError> {
    let SharedFetch { inner, key, .. } = &listed;
    let range = key.range(object_bytes);
    let wanted = range.end - range.start;
    let room = inner.room(kind);
    let object = key.id.key();
    let unavailable = |message: String| StoreError::Unavailable {
        key: object.to_string(),
        operation: Operation::Get,
        message,
    };
    // Held until the bytes are in the cache. The semaphore is never closed.
    let _permit = room
        .permits
        .acquire_many(room.units_of(wanted))
        .await
        .map_err(|_| unavailable("the reader is closed".to_owned()))?;
    let block = Block::new(inner.store.get_pieces(&object, Some(range)).await?);
    // The store promises it; what is cached is served to many.
    if block.bytes() != wanted {
        return Err(unavailable(format!("{} bytes were read instead of {wanted}", block.bytes())));
    }
    inner.lock().cache.insert_block(kind.pool(), *key, block.clone());
    Ok(block)
}

#[cfg(test)]
mod tests;
