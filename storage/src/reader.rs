//! Reading objects: from the cache, or with one GET that is shared by all who wait for the same
//! block.
//!
//! ```text
//!  read ──▶ written? ──▶ pieces of what was sent
//!    │ for each block of 16 MiB, 8 to 12 MiB of a merged object:
//!    ├──▶ cached? ─────▶ a slice of the block
//!    ├──▶ being fetched? ──▶ wait with the others
//!    └──▶ wait for room in flight ──▶ GET ──▶ cache
//! ```
//!
//! A fetch is driven by whoever waits for it: when one of them goes away the others go on, and when
//! all have gone it is cancelled. So there is no task to own, and no work for nobody. A fetch that
//! fails fails for all who wait for it and leaves nothing behind.
//!
//! Reads for merging take what is cached, and fetch the rest past the cache (`merge.rs`). Indexes
//! of merged objects have a cache and shared fetches of their own (`index.rs`).

use std::fmt;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::cache::{Block, Cache, Pool, Slices};
use crate::error::{Operation, StoreError};
use crate::format::merged::MergedIndex;
use crate::format::segment::{FormatError, LONGEST_FOOTER_BYTES, check_identity};
use crate::limits::IN_FLIGHT_UNIT_BYTES;
use crate::metrics::{CacheOutcome, StorageMetrics};
use crate::path::ObjectId;
use crate::store::Store;

mod batches;
mod fetches;
mod index;
mod merge;

pub use crate::cache::{BlockKey, Stretch, block_at};
pub use batches::ReadBatch;
use fetches::Fetches;
pub use merge::{Joined, RawRange, joined};

/// How much memory reading may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReaderConfig {
    /// Bytes of the cache, all of its pools together.
    pub cache_bytes: u64,
    /// Bytes of GETs that are under way, half of it for tail reads and half for catch-up reads. One
    /// GET of each is always let through.
    pub max_in_flight_bytes: u64,
    /// Bytes of GETs for merging that are under way. One is always let through.
    pub max_merge_in_flight_bytes: u64,
}

/// What a read is for. The kinds share neither cache nor room in flight, so that replaying the past
/// does not slow down those at the tail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadKind {
    /// Near the end of a partition: others will want the same bytes soon.
    Tail,
    /// Somewhere in the past.
    CatchUp,
}

/// Reads objects. Clones share one cache.
#[derive(Clone, Debug)]
pub struct Reader {
    inner: Arc<Inner>,
}

/// Bytes of an object that are to be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadPart {
    /// The object.
    pub object: ObjectId,
    /// Its length.
    pub object_bytes: u64,
    /// What of the object belongs to the same partition: where that is much, it is fetched without
    /// what lies around it.
    pub stretch: Option<Stretch>,
    /// The bytes.
    pub range: Range<u64>,
}

impl ReadPart {
    /// Bytes of an object of `object_bytes`, whoever they belong to.
    pub fn of(object: ObjectId, object_bytes: u64, range: Range<u64>) -> Self {
        Self { object, object_bytes, stretch: None, range }
    }
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

struct Inner {
    store: Arc<dyn Store>,
    metrics: StorageMetrics,
    cache: Mutex<Cache>,
    blocks: Fetches<BlockKey, Block>,
    indexes: Fetches<ObjectId, Arc<MergedIndex>>,
    tail_room: Room,
    catch_up_room: Room,
    merge_room: Room,
    /// GETs for merging so far.
    merge_gets: AtomicU64,
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

    /// Waits for room for a GET of so many bytes of `object`.
    async fn enter(&self, object: ObjectId, bytes: u64) -> Result<SemaphorePermit<'_>, StoreError> {
        // The semaphore is never closed.
        self.permits
            .acquire_many(self.units_of(bytes))
            .await
            .map_err(|_| unavailable(object, "the reader is closed".to_owned()))
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn room(&self, kind: ReadKind) -> &Room {
        match kind {
            ReadKind::Tail => &self.tail_room,
            ReadKind::CatchUp => &self.catch_up_room,
        }
    }
}

/// The error for a GET that brought nothing of use.
fn unavailable(object: ObjectId, message: String) -> StoreError {
    StoreError::Unavailable { key: object.to_string(), operation: Operation::Get, message }
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
        Self {
            inner: Arc::new(Inner {
                store,
                cache: Mutex::new(Cache::new(config.cache_bytes, metrics.clone())),
                metrics,
                blocks: Fetches::default(),
                indexes: Fetches::default(),
                tail_room: Room::new(config.max_in_flight_bytes / 2),
                catch_up_room: Room::new(config.max_in_flight_bytes / 2),
                merge_room: Room::new(config.max_merge_in_flight_bytes),
                merge_gets: AtomicU64::new(0),
            }),
        }
    }

    /// Keeps an object that this broker has written, in the very buffers that it was sent from.
    pub fn insert_written(&self, id: ObjectId, payload: Vec<Bytes>) {
        self.inner.lock().insert_written(id, payload);
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
        Ok(self.find(kind, &ReadPart::of(id, object_bytes, range)).await?.slices.pieces)
    }

    /// Brings bytes into the cache, which [`Self::read_range`] will ask for.
    pub async fn read_ahead(&self, kind: ReadKind, part: &ReadPart) -> Result<(), StoreError> {
        self.find(kind, part).await.map(drop)
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
        Ok(self.read_range(kind, ReadPart::of(id, object_bytes, range)).await?.batches)
    }

    /// Reads like [`Self::read_batches`], and says what the batches keep in memory: whoever holds
    /// them for long does better to copy few out of much.
    pub async fn read_range(&self, kind: ReadKind, part: ReadPart) -> Result<ReadRange, StoreError> {
        let found = self.find(kind, &part).await?;
        let ReadPart { object: id, object_bytes, range, .. } = part;
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
    /// one of the same layout: that is in its footer, which most reads bring along, since most
    /// objects are one block. Of others it is fetched, and the object is remembered.
    async fn identify(
        &self,
        id: ObjectId,
        object_bytes: u64,
        block: Option<&Block>,
    ) -> Result<(), StoreError> {
        if block.is_some_and(Block::is_identified) {
            return Ok(());
        }
        let tail = object_bytes.saturating_sub(LONGEST_FOOTER_BYTES as u64)..object_bytes;
        let is_one_block = block.is_some_and(|block| block.bytes() == object_bytes);
        let in_block = block.filter(|_| is_one_block).and_then(|b| b.slice(tail));
        if in_block.is_none() && self.inner.lock().is_identified(id) {
            block.inspect(|block| block.note_identified());
            return Ok(());
        }
        let footer = in_block.map(|slices| Bytes::from(slices.pieces.concat()));
        self.identify_by(id, object_bytes, footer).await?;
        block.inspect(|block| block.note_identified());
        if !is_one_block {
            self.inner.lock().note_identified(id);
        }
        Ok(())
    }

    /// Checks which object it is by its footer, which is fetched if it did not come along.
    async fn identify_by(
        &self,
        id: ObjectId,
        object_bytes: u64,
        footer: Option<Bytes>,
    ) -> Result<(), StoreError> {
        let footer = if let Some(footer) = footer {
            footer
        } else {
            let span = object_bytes.saturating_sub(LONGEST_FOOTER_BYTES as u64)..object_bytes;
            self.inner.store.get(&id.key(), Some(span)).await?
        };
        check_identity(&footer, object_bytes, id).map_err(|error| self.not_this_object(id, &error))
    }

    /// Forgets an object that is not what it should be.
    fn not_this_object(&self, id: ObjectId, error: &FormatError) -> StoreError {
        self.evict(id);
        self.inner.metrics.observe_wrong_object();
        StoreError::corrupt(&id.key(), error.to_string())
    }

    /// Whether the first byte is neither in memory nor on its way: what a reader that looks ahead
    /// wants to know.
    pub fn lacks(&self, part: &ReadPart) -> bool {
        let position = part.range.start;
        let mut cache = self.inner.lock();
        let (key, _) = block_at(part.object, part.object_bytes, part.stretch, position);
        let is_written = cache.written(part.object, position..position + 1).is_some();
        let is_held = is_written || cache.block(key).is_some();
        !is_held && self.inner.blocks.under_way(key).is_none()
    }

    /// Forgets an object: it was deleted, or is not what it should be.
    pub fn evict(&self, id: ObjectId) {
        self.inner.lock().evict(id);
    }

    async fn find(&self, kind: ReadKind, part: &ReadPart) -> Result<ReadBytes, StoreError> {
        let ReadPart { object: id, object_bytes, stretch, range } = part.clone();
        if range.is_empty() || range.end > object_bytes {
            return Err(StoreError::invalid(format!("bytes {range:?} of {id}, which has {object_bytes}")));
        }
        let own = self.inner.lock().written(id, range.clone());
        if let Some(slices) = own {
            self.inner.metrics.observe_cache(CacheOutcome::Hit);
            return Ok(ReadBytes { slices, own: true, block: None });
        }
        let mut slices = Slices::default();
        let mut only = None;
        let mut position = range.start;
        while position < range.end {
            let (key, place) = block_at(id, object_bytes, stretch, position);
            let block = self.block(kind, key, place.clone()).await?;
            let to = range.end.min(place.end);
            let Some(more) = block.slice(position - place.start..to - place.start) else {
                return Err(other_size(id, object_bytes));
            };
            only = slices.pieces.is_empty().then_some(block);
            slices.pieces.extend(more.pieces);
            slices.kept_alive += more.kept_alive;
            position = to;
        }
        Ok(ReadBytes { slices, own: false, block: only })
    }

    async fn block(&self, kind: ReadKind, key: BlockKey, place: Range<u64>) -> Result<Block, StoreError> {
        let fetch = {
            // Held until the fetch is listed, so that nobody else starts it.
            let mut cache = self.inner.lock();
            if let Some(block) = cache.block(key) {
                self.inner.metrics.observe_cache(CacheOutcome::Hit);
                return Ok(block);
            }
            if let Some(fetch) = self.inner.blocks.under_way(key) {
                self.inner.metrics.observe_cache(CacheOutcome::Joined);
                fetch
            } else {
                self.inner.metrics.observe_cache(CacheOutcome::Miss);
                let pool = if kind == ReadKind::Tail { Pool::Tail } else { Pool::CatchUp };
                let inner = Arc::clone(&self.inner);
                self.inner.blocks.start(key, async move {
                    // Held until the bytes are in the cache.
                    let _permit = inner.room(kind).enter(key.id, place.end - place.start).await?;
                    let block = inner.get_block(key.id, place).await?;
                    inner.lock().insert_block(pool, key, block.clone());
                    Ok(block)
                })
            }
        };
        fetch.await
    }
}

impl Inner {
    /// Fetches a range of an object.
    async fn get_block(&self, id: ObjectId, range: Range<u64>) -> Result<Block, StoreError> {
        let wanted = range.end - range.start;
        let block = Block::new(self.store.get_pieces(&id.key(), Some(range)).await?);
        // The store promises it; what is cached is served to many.
        if block.bytes() != wanted {
            return Err(unavailable(id, format!("{} bytes were read instead of {wanted}", block.bytes())));
        }
        Ok(block)
    }
}

/// The error for an object that was cached by a read that was told another size of it.
fn other_size(id: ObjectId, object_bytes: u64) -> StoreError {
    let what = format!("it has other than the {object_bytes} bytes that it should have");
    StoreError::corrupt(&id.key(), what)
}

#[cfg(test)]
mod tests;
