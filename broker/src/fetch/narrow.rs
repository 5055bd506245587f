//! Finding the parts of large merged ranges that a fetch needs: the indexes of the objects say
//! where they begin.

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use strandline_metadata::state::Range;
use strandline_storage::error::StoreError;
use strandline_storage::path::ObjectKind;
use strandline_storage::reader::ReadKind;
use tokio::time::{Instant, timeout_at};
use tracing::debug;
use uuid::Uuid;

use super::plan::{Assessment, PlannedRange};
use crate::Broker;
use crate::limits::NARROWED_RANGE_BYTES;

/// A part of a range, and what lies behind it there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Narrowed {
    /// The part, as if it were a range.
    pub(crate) part: Range,
    /// Bytes of the range behind it.
    pub(crate) bytes_after: u64,
}

/// The part of a merged range that begins with the batch that contains `offset` and has at least
/// `wanted` bytes, or goes to the end of the range. `None` if the range has no such batch.
pub(crate) async fn part_of(
    broker: &Broker,
    kind: ReadKind,
    (topic_id, partition): (Uuid, u32),
    (range, object_bytes): (&Range, u64),
    offset: i64,
    wanted: u64,
) -> Result<Option<Narrowed>, StoreError> {
    let index = broker.reader.merged_index(kind, range.object, object_bytes).await?;
    let partition = i32::try_from(partition).unwrap_or(i32::MAX);
    let span = index.locate(*topic_id.as_bytes(), partition, offset, wanted);
    Ok(span.and_then(|span| {
        let end = range.position + range.bytes;
        let is_inside = span.position >= range.position && span.position + span.bytes <= end;
        is_inside.then(|| {
            let bytes_after = end - (span.position + span.bytes);
            // Where it ends is known if the range ends there.
            let part =
                Range { base_offset: span.base_offset, position: span.position, bytes: span.bytes, ..*range };
            Narrowed { part, bytes_after }
        })
    }))
}

/// Replaces planned ranges by the parts of them that fit into the budgets. What cannot be narrowed
/// in time stays as it is, and so does what is wrong with it.
pub(super) async fn narrow(
    broker: &Broker,
    offsets: &[i64],
    assessed: Vec<Assessment>,
    budgets: &[Option<usize>],
    until: Instant,
) -> Vec<Assessment> {
    let mut running = FuturesOrdered::new();
    for ((mut assessed, offset), budget) in assessed.into_iter().zip(offsets).zip(budgets) {
        let (offset, budget) = (*offset, *budget);
        running.push_back(async move {
            if let Some(budget) = budget.filter(|_| assessed.has_merged()) {
                let _ = timeout_at(until, narrow_one(broker, offset, &mut assessed, budget as u64)).await;
            }
            assessed
        });
    }
    running.collect().await
}

async fn narrow_one(broker: &Broker, offset: i64, assessed: &mut Assessment, budget: u64) {
    let mut before = 0;
    let place = (assessed.topic_id, assessed.partition);
    for number in 0..assessed.planned.len() {
        let Some(planned) = assessed.planned.get(number).copied() else { break };
        let range = planned.range;
        let is_large = range.bytes > NARROWED_RANGE_BYTES;
        let is_begun = number == 0 && offset > range.base_offset;
        if range.object.kind == ObjectKind::Merge && (is_large || is_begun) {
            let kind = if planned.tail { ReadKind::Tail } else { ReadKind::CatchUp };
            let from = offset.max(range.base_offset);
            let left = budget.saturating_sub(before).max(1);
            match part_of(broker, kind, place, (&range, planned.object_bytes), from, left).await {
                Ok(Some(Narrowed { part, bytes_after })) => {
                    if let Some(slot) = assessed.planned.get_mut(number) {
                        *slot = PlannedRange { range: part, is_part: bytes_after > 0, ..planned };
                    }
                    if bytes_after > 0 {
                        // What comes behind it is for the next fetch.
                        assessed.planned.truncate(number + 1);
                        assessed.next = following(&planned, &part, bytes_after);
                        break;
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    debug!(object = %range.object, %error, "a range is read as a whole: its index cannot be read");
                }
            }
        }
        before += assessed.planned.get(number).map_or(0, |planned| planned.range.bytes);
    }
}

/// What a consumer that goes on will want next, if that lies in another block.
fn following(planned: &PlannedRange, part: &Range, bytes_after: u64) -> Option<PlannedRange> {
    let position = part.position + part.bytes;
    let is_elsewhere = planned.block_at(position) != planned.block_at(part.position);
    let next = Range { position, bytes: bytes_after.min(NARROWED_RANGE_BYTES), ..*part };
    is_elsewhere.then_some(PlannedRange { range: next, is_part: true, ..*planned })
}
