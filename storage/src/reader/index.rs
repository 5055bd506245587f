//! The indexes of merged objects: parsed once, kept within a bound, fetched once for all who wait.

use std::sync::Arc;

use bytes::Bytes;

use super::{Inner, ReadKind, Reader};
use crate::cache::block_at;
use crate::error::StoreError;
use crate::format::merged::MergedIndex;
use crate::limits::MERGED_INDEX_TAIL_BYTES;
use crate::metrics::CacheOutcome;
use crate::path::ObjectId;

impl Reader {
    /// The index of a merged object of `object_bytes`, from the cache or with one GET, two if it
    /// has very many ranges.
    ///
    /// Fails as corrupt if the object is no merged object, is damaged, or says that it is another
    /// one; otherwise as [`crate::Store::get`] does. A failure is not remembered.
    /// Cancellation-safe: others who wait for the same index are not disturbed.
    pub async fn merged_index(
        &self,
        kind: ReadKind,
        id: ObjectId,
        object_bytes: u64,
    ) -> Result<Arc<MergedIndex>, StoreError> {
        let fetch = {
            // Held until the fetch is listed, so that nobody else starts it.
            let mut cache = self.inner.lock();
            if let Some(index) = cache.index(id) {
                self.inner.metrics.observe_index(CacheOutcome::Hit);
                return Ok(index);
            }
            if let Some(fetch) = self.inner.indexes.under_way(id) {
                self.inner.metrics.observe_index(CacheOutcome::Joined);
                fetch
            } else {
                self.inner.metrics.observe_index(CacheOutcome::Miss);
                let reader = self.clone();
                self.inner.indexes.start(id, async move {
                    let index = reader.fetch_index(kind, id, object_bytes).await?;
                    reader.inner.lock().insert_index(id, Arc::clone(&index));
                    Ok(index)
                })
            }
        };
        fetch.await
    }

    async fn fetch_index(
        &self,
        kind: ReadKind,
        id: ObjectId,
        object_bytes: u64,
    ) -> Result<Arc<MergedIndex>, StoreError> {
        let Self { inner } = self;
        let key = id.key();
        let in_memory = inner.tail_in_memory(id, object_bytes);
        // What is in memory may end before the index begins.
        let parsed = in_memory.and_then(|tail| MergedIndex::parse(&tail, object_bytes).ok());
        let index = if let Some(index) = parsed {
            index
        } else {
            let bytes = object_bytes.min(MERGED_INDEX_TAIL_BYTES);
            let _permit = inner.room(kind).enter(id, bytes).await?;
            MergedIndex::read_of_any(&*inner.store, &key, object_bytes).await?
        };
        index.check_identity(&key).map_err(|error| self.not_this_object(id, &error))?;
        inner.lock().note_identified(id);
        Ok(Arc::new(index))
    }
}

impl Inner {
    /// The last bytes of an object, if they are in memory anyway.
    fn tail_in_memory(&self, id: ObjectId, object_bytes: u64) -> Option<Bytes> {
        let tail = object_bytes.saturating_sub(MERGED_INDEX_TAIL_BYTES)..object_bytes;
        let cache = self.lock();
        let slices = cache.peek_written(id, tail.clone()).or_else(|| {
            let (key, place) = block_at(id, object_bytes, None, object_bytes.checked_sub(1)?);
            let tail = tail.start.max(place.start)..tail.end;
            cache.peek_block(key)?.slice(tail.start - place.start..tail.end - place.start)
        });
        drop(cache);
        Some(Bytes::from(slices?.pieces.concat()))
    }
}
