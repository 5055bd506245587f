//! Reading what is to be merged: whatever is in the cache comes from there, the rest is fetched as
//! it is asked for and not kept, so that merging pushes out nothing that consumers want.

use std::ops::Range;

use bytes::Bytes;

use super::{ReadBytes, ReadKind, Reader, other_size};
use crate::cache::{Block, BlockKey, Slices};
use crate::error::StoreError;
use crate::format::segment::LONGEST_FOOTER_BYTES;
use crate::limits::{BLOCK_BYTES, MERGE_READ_ON_BYTES};
use crate::path::ObjectId;

/// A part of a range.
enum Part {
    /// It is in the cache.
    Cached(Block, Slices),
    /// It has to be fetched, at most the bytes of a block.
    Missing(Range<u64>),
}

impl Reader {
    pub(super) async fn find_for_merge(
        &self,
        id: ObjectId,
        object_bytes: u64,
        range: Range<u64>,
    ) -> Result<ReadBytes, StoreError> {
        let mut found = ReadBytes { slices: Slices::default(), own: false, block: None, footer: None };
        let (parts, read_on) = {
            let mut cache = self.inner.lock();
            if let Some(slices) = cache.peek_written(id, range.clone()) {
                return Ok(ReadBytes { slices, own: true, ..found });
            }
            let parts = parts(id, object_bytes, &range, |key| cache.peek_block(key))?;
            let is_near_the_end = object_bytes - range.end <= MERGE_READ_ON_BYTES;
            (parts, is_near_the_end && !cache.is_identified(id))
        };
        let is_one = parts.len() == 1;
        for part in parts {
            match part {
                Part::Cached(block, slices) => {
                    found.slices.pieces.extend(slices.pieces);
                    found.slices.kept_alive += slices.kept_alive;
                    found.block = is_one.then_some(block);
                }
                Part::Missing(missing) => {
                    let to = if read_on && missing.end == range.end { object_bytes } else { missing.end };
                    let _permit = self.inner.room(ReadKind::Merge).enter(id, to - missing.start).await?;
                    let fetched = self.inner.get_block(id, missing.start..to).await?;
                    let slices = fetched.slice(0..missing.end - missing.start);
                    let slices = slices.ok_or_else(|| other_size(id, object_bytes))?;
                    found.slices.pieces.extend(slices.pieces);
                    found.slices.kept_alive += slices.kept_alive;
                    found.footer = footer_of(&fetched, to == object_bytes).or(found.footer);
                }
            }
        }
        Ok(found)
    }
}

/// The last bytes of a part that ends where the object does.
fn footer_of(part: &Block, is_last: bool) -> Option<Bytes> {
    let from = part.bytes().saturating_sub(LONGEST_FOOTER_BYTES as u64);
    let footer = part.slice(from..part.bytes()).filter(|_| is_last)?;
    Some(Bytes::from(footer.pieces.concat()))
}

/// Cuts a range where the cache begins and ends to hold it.
fn parts(
    id: ObjectId,
    object_bytes: u64,
    range: &Range<u64>,
    cached: impl Fn(BlockKey) -> Option<Block>,
) -> Result<Vec<Part>, StoreError> {
    let mut parts = Vec::new();
    for index in range.start / BLOCK_BYTES..=(range.end - 1) / BLOCK_BYTES {
        let key = BlockKey { id, index };
        let place = key.range(object_bytes);
        let wanted = range.start.max(place.start)..range.end.min(place.end);
        if let Some(block) = cached(key) {
            let slices = block.slice(wanted.start - place.start..wanted.end - place.start);
            let slices = slices.ok_or_else(|| other_size(id, object_bytes))?;
            parts.push(Part::Cached(block, slices));
            continue;
        }
        match parts.last_mut() {
            Some(Part::Missing(before)) if wanted.end - before.start <= BLOCK_BYTES => {
                before.end = wanted.end;
            }
            _ => parts.push(Part::Missing(wanted)),
        }
    }
    Ok(parts)
}
