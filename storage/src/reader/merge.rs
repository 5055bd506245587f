//! Reading what is to be merged: whatever is in the cache comes from there, the rest is fetched as
//! it is asked for and not kept, so that merging pushes out nothing that consumers want.
//!
//! All that is wanted of an object is asked for at once, and neighbours come with one GET. So the
//! ranges of many partitions cost hardly more requests than those of one.

use std::ops::Range;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};

use super::{ReadBatch, Reader, batches, other_size};
use crate::cache::{Block, Cache, Slices, Stretch, block_at};
use crate::error::StoreError;
use crate::format::segment::LONGEST_FOOTER_BYTES;
use crate::limits::{BLOCK_BYTES, MERGE_READ_ON_BYTES};
use crate::path::ObjectId;

/// A range of an object as it was read: the object is the right one, its batches were not looked
/// at.
#[derive(Clone, Debug)]
pub struct RawRange {
    id: ObjectId,
    position: u64,
    pieces: Vec<Bytes>,
}

impl RawRange {
    /// Cuts it into batches. Their CRCs are not checked.
    ///
    /// # Errors
    ///
    /// If it does not consist of whole batches, which names the object.
    pub fn batches(self) -> Result<Vec<ReadBatch>, StoreError> {
        batches::cut(self.pieces, false).map_err(|(position, error)| {
            let at = self.position + position;
            StoreError::corrupt(&self.id.key(), format!("no valid record batch at {at}: {error}"))
        })
    }

    #[cfg(test)]
    pub(super) fn pieces(self) -> Vec<Bytes> {
        self.pieces
    }

    /// A range in slices that may keep much more than themselves in memory: then it is copied.
    fn new(id: ObjectId, position: u64, slices: Slices) -> Self {
        let Slices { mut pieces, kept_alive } = slices;
        let bytes = pieces.iter().map(Bytes::len).sum();
        if bytes < kept_alive / 4 * 3 {
            let mut own = BytesMut::with_capacity(bytes);
            for piece in &pieces {
                own.extend_from_slice(piece);
            }
            pieces = vec![own.freeze()];
        }
        Self { id, position, pieces }
    }
}

/// One GET, and how many of the ranges that are wanted it brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// What is fetched.
    pub span: Range<u64>,
    /// How many ranges lie in it.
    pub ranges: usize,
}

/// The GETs that bring these ranges of an object, which are in ascending order: neighbours come
/// together, as long as a GET brings no more than a block, and at most as much in vain as is
/// wanted. What is longer than a block comes alone.
pub fn joined<'a>(ranges: impl IntoIterator<Item = &'a Range<u64>>) -> Vec<Joined> {
    let mut joined: Vec<Joined> = Vec::new();
    let mut wanted = 0;
    for range in ranges {
        let bytes = range.end - range.start;
        let whole = joined.last().map(|last| last.span.start..range.end.max(last.span.end));
        let fits = |whole: &Range<u64>| {
            let fetched = whole.end - whole.start;
            fetched <= BLOCK_BYTES && fetched <= 2 * (wanted + bytes)
        };
        if let (Some(last), Some(whole)) = (joined.last_mut(), whole.filter(fits)) {
            wanted += bytes;
            last.span = whole;
            last.ranges += 1;
        } else {
            wanted = bytes;
            joined.push(Joined { span: range.clone(), ranges: 1 });
        }
    }
    joined
}

impl Reader {
    /// Reads ranges of one object of `object_bytes` for merging, which are in ascending order, and
    /// none of them empty. What it returns has as many entries: one that cannot be read says why.
    ///
    /// Takes what is cached, and fetches the rest past the cache.
    pub async fn read_for_merge(
        &self,
        id: ObjectId,
        object_bytes: u64,
        ranges: &[Range<u64>],
    ) -> Vec<Result<RawRange, StoreError>> {
        let is_inside = |range: &Range<u64>| !range.is_empty() && range.end <= object_bytes;
        if !ranges.iter().all(is_inside) || !ranges.is_sorted_by(|a, b| a.end <= b.start) {
            let what = format!("bytes {ranges:?} of {id}, which has {object_bytes}");
            return vec![Err(StoreError::invalid(what)); ranges.len()];
        }
        let (found, mut is_unknown, last) = cached(&self.inner.lock(), id, object_bytes, ranges);
        // What keeps much else in memory is copied before more is fetched.
        let raw = |range: &Range<u64>, slices| RawRange::new(id, range.start, slices);
        let mut found: Vec<Option<Result<RawRange, StoreError>>> =
            found.into_iter().zip(ranges).map(|(slices, range)| Some(Ok(raw(range, slices?)))).collect();
        let missing =
            |(place, range): (usize, &Range<u64>)| found[place].is_none().then(|| (place, range.clone()));
        let missing: Vec<(usize, Range<u64>)> = (0..).zip(ranges).filter_map(missing).collect();
        is_unknown |= !missing.is_empty();
        is_unknown &= !self.inner.lock().is_identified(id);
        let mut footer = last.and_then(|block| footer_of(&block));
        let part = |block: &Block, from: u64, range: &Range<u64>| {
            let slices = block.slice(range.start - from..range.end - from);
            Ok(raw(range, slices.ok_or_else(|| other_size(id, object_bytes))?))
        };
        let mut rest = &missing[..];
        for Joined { span, ranges } in joined(missing.iter().map(|(_, range)| range)) {
            let (members, others) = rest.split_at(ranges);
            rest = others;
            let is_near_the_end = object_bytes - span.end <= MERGE_READ_ON_BYTES;
            let to = if is_unknown && is_near_the_end { object_bytes } else { span.end };
            match self.fetch(id, span.start..to).await {
                Ok(fetched) => {
                    for (place, range) in members {
                        found[*place] = Some(part(&fetched, span.start, range));
                    }
                    if to == object_bytes {
                        footer = footer_of(&fetched).or(footer);
                    }
                }
                // It may have lost its end only.
                Err(StoreError::Corrupt { .. }) if members.len() > 1 || to > span.end => {
                    for (place, range) in members {
                        let fetched = self.fetch(id, range.clone()).await;
                        found[*place] = Some(fetched.and_then(|fetched| part(&fetched, range.start, range)));
                    }
                }
                Err(error) => members.iter().for_each(|(place, _)| found[*place] = Some(Err(error.clone()))),
            }
        }
        let is_of_use = is_unknown && found.iter().any(|read| matches!(read, Some(Ok(_))));
        if is_of_use && footer.is_none() {
            self.inner.merge_gets.fetch_add(1, Ordering::Relaxed);
        }
        let identity = if is_of_use { self.identify_by(id, object_bytes, footer).await } else { Ok(()) };
        if is_of_use && identity.is_ok() {
            self.inner.lock().note_identified(id);
        }
        let entry = |read: Option<Result<RawRange, StoreError>>| {
            identity.clone()?;
            read.unwrap_or_else(|| Err(other_size(id, object_bytes)))
        };
        found.into_iter().map(entry).collect()
    }

    /// GETs of [`Self::read_for_merge`] since this reader was made.
    pub fn merge_gets(&self) -> u64 {
        self.inner.merge_gets.load(Ordering::Relaxed)
    }

    /// Fetches a part of an object, a block's bytes at a time.
    async fn fetch(&self, id: ObjectId, span: Range<u64>) -> Result<Block, StoreError> {
        let mut pieces = Vec::new();
        let mut from = span.start;
        while from < span.end {
            let to = span.end.min(from + BLOCK_BYTES);
            let _permit = self.inner.merge_room.enter(id, to - from).await?;
            self.inner.merge_gets.fetch_add(1, Ordering::Relaxed);
            let fetched = self.inner.get_block(id, from..to).await?;
            pieces.extend(fetched.slice(0..to - from).into_iter().flat_map(|slices| slices.pieces));
            from = to;
        }
        Ok(Block::new(pieces))
    }
}

/// What the cache has of some ranges, each whole or not at all; whether nobody has noticed yet
/// which object some of it came from; and a block in which that object ends.
fn cached(
    cache: &Cache,
    id: ObjectId,
    object_bytes: u64,
    ranges: &[Range<u64>],
) -> (Vec<Option<Slices>>, bool, Option<Block>) {
    let (mut is_unknown, mut last) = (false, None);
    let mut find = |range: &Range<u64>| {
        if let Some(own) = cache.peek_written(id, range.clone()) {
            return Some(own);
        }
        let mut slices = Slices::default();
        // What is merged of an object is all that a partition has there.
        let stretch = Stretch { position: range.start, bytes: range.end - range.start };
        let mut position = range.start;
        while position < range.end {
            let (key, place) = block_at(id, object_bytes, Some(stretch), position);
            let block = cache.peek_block(key)?;
            let to = range.end.min(place.end);
            let part = block.slice(position - place.start..to - place.start)?;
            position = to;
            slices.pieces.extend(part.pieces);
            slices.kept_alive += part.kept_alive;
            is_unknown |= !block.is_identified();
            if place.end == object_bytes {
                last = Some(block);
            }
        }
        Some(slices)
    };
    let found = ranges.iter().map(&mut find).collect();
    (found, is_unknown, last)
}

/// The last bytes of a part that ends where the object does.
fn footer_of(part: &Block) -> Option<Bytes> {
    let from = part.bytes().saturating_sub(LONGEST_FOOTER_BYTES as u64);
    Some(Bytes::from(part.slice(from..part.bytes())?.pieces.concat()))
}
