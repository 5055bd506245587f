//! Rewriting: reads what is merged, checks it, builds the objects, and has them committed.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{StreamExt, stream};
use strandline_metadata::commit::CommitError;
use strandline_metadata::record::{Merged, MergedTopic};
use strandline_metadata::state::{Marker, MergeOutcome, Range, State};
use strandline_storage::error::StoreError;
use strandline_storage::format::batch::control_batch;
use strandline_storage::format::merged::{MergeBuilder, MergeError, MergeFlags, MergedRange};
use strandline_storage::path::ObjectId;
use strandline_storage::reader::{RawRange, ReadBatch, ReadKind};
use tracing::debug;
use uuid::Uuid;

use super::plan::{Output, Piece};
use crate::Broker;
use crate::limits::{CHECKED_IN_ONE_GO_BYTES, MERGE_READS_AT_ONCE};
use crate::placement::offsets_of;

/// Why a merge was given up.
#[derive(Debug, thiserror::Error)]
pub(super) enum RewriteError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Commit(#[from] CommitError),
    #[error(transparent)]
    Build(#[from] MergeError),
}

/// Why a piece cannot be merged: one of its ranges is not in the store as the log says. Nothing of
/// the piece is copied.
#[derive(Debug, thiserror::Error)]
#[error("the range at {} of {} {why}", .range.position, .range.object)]
pub(super) struct Unreadable {
    pub(super) range: Range,
    why: Why,
}

impl Unreadable {
    /// Whether the object is not there: trimmed, deleted, or merged by another meanwhile, unless
    /// the state still has it.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.why, Why::Store(StoreError::NotFound { .. }))
    }

    /// Whether the store may only be ill.
    pub(super) fn is_passing(&self) -> bool {
        matches!(&self.why, Why::Store(error) if may_be_there_later(error))
    }
}

#[derive(Debug, thiserror::Error)]
enum Why {
    #[error("cannot be read: {0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Contents(String),
}

impl Why {
    /// Whether what was read is not what was written.
    fn is_damage(&self) -> bool {
        matches!(self, Self::Contents(_) | Self::Store(StoreError::Corrupt { .. }))
    }
}

/// What became of an object's worth of pieces.
#[derive(Debug, Default)]
pub(super) struct Rewritten {
    pub(super) replaced: usize,
    pub(super) refused: usize,
    /// Pieces that were left out.
    pub(super) unreadable: Vec<(Piece, Unreadable)>,
    /// Pieces that were left out since the store did not answer.
    pub(super) unanswered: Vec<(Piece, Unreadable)>,
}

/// A batch and its first offset.
pub(super) type PlacedBatch = (i64, ReadBatch);

/// Rewrites pieces of different partitions, which were read, into one object of this incarnation,
/// number and salt.
///
/// May be given up at any await: nothing refers to the object before its record is committed, and
/// whoever finds it unreferred deletes it.
pub(super) async fn rewrite(
    broker: &Broker,
    (incarnation, number, salt): (i64, u64, u32),
    read: &mut Read,
    pieces: Vec<Piece>,
) -> Result<Rewritten, RewriteError> {
    let mut builder = MergeBuilder::new(ObjectId::merge(incarnation, number, salt));
    let (mut unreadable, mut unanswered) = (Vec::new(), Vec::new());
    let mut readable = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match read.take(broker, &piece.inputs).await {
            Ok(mut batches) => {
                batches.extend(piece.markers.iter().filter_map(end_of_transaction));
                batches.sort_by_key(|(base_offset, _)| *base_offset);
                let partition = i32::try_from(piece.partition).unwrap_or(i32::MAX);
                builder.begin(*piece.topic_id.as_bytes(), partition, MergeFlags::default())?;
                for (base_offset, batch) in &batches {
                    builder.push(batch, *base_offset)?;
                }
                readable.push(piece);
            }
            Err(error) => {
                if error.is_passing() {
                    unanswered.push((piece, error));
                } else if error.is_gone()
                    && !is_current(broker, piece.topic_id, piece.partition, &piece.inputs).await
                {
                    debug!(%error, "what was to be merged is gone meanwhile");
                } else {
                    unreadable.push((piece, error));
                }
            }
        }
    }
    if readable.is_empty() {
        return Ok(Rewritten { unreadable, unanswered, ..Rewritten::default() });
    }
    let published = publish(broker, builder, &readable).await?;
    Ok(Rewritten { unreadable, unanswered, ..published })
}

/// The control batch of a marker, and its offset.
pub(super) fn end_of_transaction((offset, marker): &(i64, Marker)) -> Option<PlacedBatch> {
    let Marker { producer_id, epoch, committed, time_ms } = *marker;
    let batch = control_batch(*offset, (producer_id, epoch), committed, time_ms);
    ReadBatch::made(batch).ok().map(|batch| (*offset, batch))
}

/// Writes an object, and has it committed that its ranges take the place of these pieces.
pub(super) async fn publish(
    broker: &Broker,
    builder: MergeBuilder,
    pieces: &[Piece],
) -> Result<Rewritten, RewriteError> {
    let object = builder.id();
    let built = builder.finish()?;
    let bytes = built.size;
    if let Err(error) = broker.store.put(&object.key(), built.payload.clone()).await {
        // It may have happened all the same; nothing will ever refer to the object.
        broker.unwanted.discard(object);
        return Err(error.into());
    }
    broker.metrics.merging().written(bytes);
    // Whoever reads the newest records finds them in memory, as before.
    if pieces.iter().flat_map(|piece| &piece.inputs).any(|range| range.level == 0) {
        broker.reader.insert_written(object, built.payload.into_pieces());
    }
    let time_ms = broker.clock.now_ms();
    let record = record_of(object, built.size, pieces, &built.ranges, time_ms);
    let effects = match broker.committer.merge(object.incarnation, time_ms, record).await {
        Ok(effects) => effects,
        Err(error) => {
            if error.is_certainly_not_committed() {
                broker.unwanted.discard(object);
            }
            return Err(error.into());
        }
    };
    for gone in &effects.died {
        broker.reader.evict(*gone);
    }
    let replaced = effects.merges.iter().filter(|o| **o == MergeOutcome::Replaced).count();
    let refused = effects.merges.len() - replaced;
    broker.metrics.merging().committed(replaced, refused);
    Ok(Rewritten { replaced, refused, ..Rewritten::default() })
}

/// Whether the store may only be ill.
fn may_be_there_later(error: &StoreError) -> bool {
    !matches!(error, StoreError::NotFound { .. } | StoreError::Corrupt { .. })
}

/// Whether the log certainly still has these neighbouring ranges. What this broker has heard of it
/// may be old: it may have been held up since.
pub(super) async fn is_current(broker: &Broker, topic_id: Uuid, partition: u32, ranges: &[Range]) -> bool {
    let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else { return true };
    if broker.replica.barrier().await.is_err() {
        return false;
    }
    broker.replica.read(|view| {
        let partition = view.state.partition(topic_id, partition);
        let found = partition.and_then(|p| p.ranges().between(first.base_offset, last.end_offset));
        found.is_some_and(|found| found == ranges)
    })
}

/// Ranges as they were read, until they are taken.
#[derive(Debug)]
pub(super) struct Read {
    /// By object and position.
    ranges: BTreeMap<(ObjectId, u64), Result<RawRange, StoreError>>,
    /// The objects' bytes.
    sizes: BTreeMap<ObjectId, u64>,
}

impl Read {
    /// Reads ranges, all those of an object together.
    pub(super) async fn all<'a>(
        broker: &Broker,
        state: &State,
        ranges: impl Iterator<Item = &'a Range>,
    ) -> Self {
        let mut objects: BTreeMap<ObjectId, Vec<std::ops::Range<u64>>> = BTreeMap::new();
        for range in ranges {
            objects.entry(range.object).or_default().push(range.position..range.position + range.bytes);
        }
        let size_of = |id: &ObjectId| state.objects().get(id).map_or(0, |object| object.bytes);
        let sizes = objects.keys().map(|id| (*id, size_of(id))).collect();
        let read = async |(id, mut spans): (ObjectId, Vec<std::ops::Range<u64>>)| {
            spans.sort_unstable_by_key(|span| span.start);
            let object_bytes = size_of(&id);
            let read = broker.reader.read_for_merge(id, object_bytes, &spans).await;
            spans.into_iter().zip(read).map(move |(span, read)| ((id, span.start), read))
        };
        let mut reads = stream::iter(objects).map(read).buffered(MERGE_READS_AT_ONCE);
        let mut ranges = BTreeMap::new();
        while let Some(of_object) = reads.next().await {
            ranges.extend(of_object);
        }
        Self { ranges, sizes }
    }

    /// Each object that something was read of, and whether the store answered.
    pub(super) fn answers(&self) -> impl Iterator<Item = (ObjectId, bool)> {
        let has_answered =
            |read: &Result<RawRange, StoreError>| !read.as_ref().is_err_and(may_be_there_later);
        self.ranges.iter().map(move |((object, _), read)| (*object, has_answered(read)))
    }

    /// Takes every batch of neighbouring ranges with its offset, all of them checked against the
    /// log and their CRCs.
    pub(super) async fn take(
        &mut self,
        broker: &Broker,
        ranges: &[Range],
    ) -> Result<Vec<PlacedBatch>, Unreadable> {
        let mut batches = Vec::new();
        let mut since_pause = 0;
        for range in ranges {
            if let Err(why) = self.take_one(broker, range, &mut batches).await {
                if why.is_damage() {
                    // Whoever tries again is to ask the store.
                    broker.reader.evict(range.object);
                }
                return Err(Unreadable { range: *range, why });
            }
            since_pause += range.bytes;
            if since_pause >= CHECKED_IN_ONE_GO_BYTES {
                since_pause = 0;
                tokio::task::yield_now().await;
            }
        }
        Ok(batches)
    }
}

impl Read {
    async fn take_one(
        &mut self,
        broker: &Broker,
        range: &Range,
        batches: &mut Vec<PlacedBatch>,
    ) -> Result<(), Why> {
        let read = self.ranges.remove(&(range.object, range.position)).unwrap_or_else(|| {
            Err(StoreError::invalid(format!("nobody has read {} at {}", range.object, range.position)))
        });
        let found = read.and_then(RawRange::batches)?;
        // Elsewhere offsets have no gaps, so each can only be what it is.
        if range.compacted {
            self.check_crc(broker, range, &found).await?;
        }
        place(range, found, batches)
    }

    /// Checks a range of a merged object against the CRC in its index, which covers the offsets of
    /// its batches too.
    async fn check_crc(&self, broker: &Broker, range: &Range, found: &[ReadBatch]) -> Result<(), Why> {
        let object_bytes = self.sizes.get(&range.object).copied().unwrap_or(0);
        let index = broker.reader.merged_index(ReadKind::CatchUp, range.object, object_bytes).await?;
        let is_it = |entry: &&MergedRange| (entry.position, entry.length) == (range.position, range.bytes);
        let entry = index.ranges().iter().find(is_it);
        let entry = entry.ok_or_else(|| Why::Contents("is not in the index of its object".to_owned()))?;
        let pieces: Vec<Bytes> = found.iter().flat_map(ReadBatch::pieces).cloned().collect();
        index.verify(entry, &pieces).map_err(|error| Why::Contents(error.to_string()))
    }
}

/// Gives each batch of a range its offset. Counts, bytes, offsets and CRCs must be what the log
/// says and what the batches say of themselves.
fn place(range: &Range, found: Vec<ReadBatch>, batches: &mut Vec<PlacedBatch>) -> Result<(), Why> {
    let wrong = Why::Contents;
    let (mut next, mut bytes, mut count) = (range.base_offset, 0, 0_u32);
    for batch in found {
        batch.verify().map_err(|error| wrong(error.to_string()))?;
        let base_offset;
        (base_offset, next) = offsets_of(range, next, &batch.header).map_err(wrong)?;
        bytes += batch.len() as u64;
        count += 1;
        batches.push((base_offset, batch));
    }
    let is_whole = bytes == range.bytes && count == range.batches;
    if !is_whole || next < range.end_offset && !range.compacted {
        return Err(wrong(format!(
            "has {count} batches of {bytes} bytes up to offset {next}, the log says {} of {} up to {}",
            range.batches, range.bytes, range.end_offset
        )));
    }
    Ok(())
}

/// The record of an object, relative to `time_ms`.
fn record_of(
    object: ObjectId,
    object_bytes: u64,
    pieces: &[Piece],
    ranges: &[MergedRange],
    time_ms: i64,
) -> Merged {
    let mut merged =
        Merged { object_number: object.number, object_salt: object.salt, object_bytes, topics: Vec::new() };
    let by_place: BTreeMap<(Uuid, u32), &Piece> =
        pieces.iter().map(|piece| ((piece.topic_id, piece.partition), piece)).collect();
    for range in ranges {
        let topic_id = Uuid::from_bytes(range.topic_id);
        let number = u32::try_from(range.partition).unwrap_or(u32::MAX);
        let Some(piece) = by_place.get(&(topic_id, number)) else { continue };
        let entry = piece.entry(&Output::from(range), time_ms);
        match merged.topics.last_mut() {
            Some(topic) if topic.topic_id == topic_id.as_bytes() => topic.partitions.push(entry),
            _ => merged
                .topics
                .push(MergedTopic { topic_id: topic_id.as_bytes().to_vec(), partitions: vec![entry] }),
        }
    }
    merged
}
