//! Reading what was planned, of all partitions of a fetch at a time.
//!
//! What is flushed together lies together, so one block of an object may serve hundreds of
//! partitions: it is read once for all of them. Blocks that have the first range of a partition
//! come first, those with the second ones then; and within such a round the block that gives most
//! bytes. When the time is up, what has been begun goes on without the fetch.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use kafka_protocol::error::ResponseError;
use strandline_metadata::state::State;
use strandline_storage::error::StoreError;
use strandline_storage::path::ObjectKey;
use strandline_storage::reader::{BlockKey, ReadKind, ReadRange, Reader};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, error, warn};

use super::narrow::narrow;
use super::plan::{self, Assessment, PlanBudget, PlannedRange};
use super::records::PartitionRecords;
use super::{Fetched, PartitionRead};
use crate::Broker;
use crate::limits::{CHECKED_IN_ONE_GO_BYTES, FETCH_RANGES, FETCH_READS_AT_ONCE, READ_AHEAD_BLOCKS};
use crate::tasks::TaskKind;

/// A range that is to be read: that of this number, of the partition of this number.
#[derive(Clone, Copy, Debug)]
struct RangeToRead {
    partition: usize,
    index: usize,
    planned: PlannedRange,
}

/// What was read of a block, and where it belongs.
type BlockRead = Vec<(RangeToRead, Result<ReadRange, StoreError>)>;

/// Reads partitions until all is there or the time is up: of each up to its budget, but always the
/// first batch; nothing if there is no budget.
pub(super) async fn read(
    broker: &Broker,
    wanted: &[PartitionRead],
    assessed: Vec<Assessment>,
    budgets: Vec<Option<usize>>,
    until: Instant,
) -> Vec<Fetched> {
    let offsets: Vec<i64> = wanted.iter().map(|wanted| wanted.offset).collect();
    let assessed = narrow(broker, &offsets, assessed, &budgets, until).await;
    let plans = wanted.iter().zip(&assessed).zip(&budgets);
    let mut partitions: Vec<PartitionRecords> = plans
        .map(|((wanted, assessment), budget)| match budget {
            Some(budget) => PartitionRecords::new(wanted.offset, *budget, assessment),
            None => PartitionRecords::none(),
        })
        .collect();
    let is_done = read_ranges(broker, &mut partitions, until).await;
    if is_done {
        let next = assessed.iter().zip(&budgets).filter(|(_, budget)| budget.is_some());
        read_ahead(broker, next.filter_map(|(assessment, _)| assessment.next.as_ref()));
    }
    let mut fetched = Vec::with_capacity(wanted.len());
    for (((wanted, assessment), budget), records) in wanted.iter().zip(assessed).zip(budgets).zip(partitions)
    {
        fetched.push(match records.finish() {
            Ok(records) => Fetched::with_records(&assessment, records),
            Err(StoreError::NotFound { key }) => {
                read_again(broker, wanted, &key, budget.unwrap_or(0), until).await
            }
            Err(failed) => refuse(broker, wanted, assessment.topic_id, &failed),
        });
    }
    fetched
}

/// Reads the ranges of partitions. Whether all is there that was wanted.
async fn read_ranges(broker: &Broker, partitions: &mut [PartitionRecords], until: Instant) -> bool {
    let mut waiting = blocks(partitions).into_iter();
    let mut running: FuturesUnordered<BoxFuture<'static, BlockRead>> = FuturesUnordered::new();
    loop {
        while running.len() < FETCH_READS_AT_ONCE {
            let Some(mut block) = waiting.next() else { break };
            // What came meanwhile may have filled some of the partitions.
            block.retain(|range| partitions.get(range.partition).is_some_and(|p| p.wants(range.index)));
            if !block.is_empty() {
                running.push(Box::pin(read_block(broker.reader.clone(), block)));
            }
        }
        match timeout_at(until, running.next()).await {
            Ok(Some(read)) => {
                for (range, read) in read {
                    if let Some(records) = partitions.get_mut(range.partition) {
                        records.add(range.index, read);
                    }
                }
            }
            Ok(None) => return true,
            Err(_) => break,
        }
    }
    broker.metrics.bounds().fetch_cut("time");
    // Who waits for them now is the next fetch.
    if let Ok(place) = broker.reads_on.clone().try_acquire_owned() {
        broker.tasks.start(TaskKind::Background, "read on", async move {
            while running.next().await.is_some() {}
            drop(place);
        });
    }
    false
}

/// The blocks in the order in which they are read, each with all that is wanted of it.
fn blocks(partitions: &[PartitionRecords]) -> Vec<Vec<RangeToRead>> {
    let mut ranges = Vec::new();
    let mut unfinished: Vec<usize> = (0..partitions.len()).collect();
    for index in 0.. {
        unfinished.retain(|partition| {
            let planned = partitions.get(*partition).and_then(|records| records.ranges().get(index));
            ranges.extend(planned.map(|planned| RangeToRead {
                partition: *partition,
                index,
                planned: *planned,
            }));
            planned.is_some()
        });
        // What comes behind is for the next fetch; so is looking at it.
        if unfinished.is_empty() || ranges.len() >= FETCH_RANGES {
            break;
        }
    }
    ranges.truncate(FETCH_RANGES);
    let mut blocks: BTreeMap<BlockKey, Vec<RangeToRead>> = BTreeMap::new();
    for range in ranges {
        blocks.entry(range.planned.block()).or_default().push(range);
    }
    let mut blocks: Vec<Vec<RangeToRead>> = blocks.into_values().collect();
    blocks.sort_by_cached_key(|ranges| {
        let round = ranges.first().map_or(0, |first| first.index);
        let bytes: u64 = ranges.iter().filter(|r| r.index == round).map(|r| r.planned.range.bytes).sum();
        (round, Reverse(bytes))
    });
    blocks
}

/// Reads what is wanted of a block: one request to the store, or none.
async fn read_block(reader: Reader, block: Vec<RangeToRead>) -> BlockRead {
    let mut done = Vec::with_capacity(block.len());
    let mut since_pause = 0;
    for range in block {
        let kind = if range.planned.tail { ReadKind::Tail } else { ReadKind::CatchUp };
        done.push((range, reader.read_range(kind, range.planned.part()).await));
        // Checking what was read takes a millisecond for about so much.
        since_pause += range.planned.range.bytes;
        if since_pause >= CHECKED_IN_ONE_GO_BYTES {
            since_pause = 0;
            tokio::task::yield_now().await;
        }
    }
    done
}

/// Reads a partition once more of which an object was not there: it may have been collected since
/// the plan was made. Only if it is still planned is it an error.
async fn read_again(
    broker: &Broker,
    wanted: &PartitionRead,
    key: &str,
    budget: usize,
    until: Instant,
) -> Fetched {
    warn!(object = key, "an object that was to be read is not there; planning again");
    if !timeout_at(until, broker.replica.barrier()).await.is_ok_and(|reached| reached.is_ok()) {
        return Fetched::failed(ResponseError::KafkaStorageError);
    }
    let assessment = broker.replica.read(|view: &strandline_metadata::replica::View| {
        let state: &State = &view.state;
        plan::assess(state, wanted, &mut PlanBudget::new(budget))
    });
    // Where the partition ends belongs to the plan: what is read now may lie above the old end.
    let (without, topic_id) = (Fetched::without_records(&assessment), assessment.topic_id);
    if assessment.is_error() {
        return without;
    }
    let narrowed = narrow(broker, &[wanted.offset], vec![assessment], &[Some(budget)], until).await.pop();
    let Some(assessment) = narrowed else { return without };
    let mut records = [PartitionRecords::new(wanted.offset, budget, &assessment)];
    read_ranges(broker, &mut records, until).await;
    let [records] = records;
    match records.finish() {
        Ok(records) => Fetched::with_records(&assessment, records),
        Err(failed) => refuse(broker, wanted, topic_id, &failed),
    }
}

/// Gets what consumers that catch up want next while this is being sent, the blocks that most
/// partitions want first. What comes of it is found in the cache, or not; an error is the business
/// of whoever really reads.
fn read_ahead<'a>(broker: &Broker, next: impl Iterator<Item = &'a PlannedRange>) {
    let mut blocks: BTreeMap<BlockKey, (u64, PlannedRange)> = BTreeMap::new();
    for planned in next.filter(|planned| !planned.tail) {
        match blocks.entry(planned.block()) {
            Entry::Vacant(place) => {
                place.insert((planned.range.bytes, *planned));
            }
            Entry::Occupied(mut place) => place.get_mut().0 += planned.range.bytes,
        }
    }
    let mut blocks: Vec<(u64, PlannedRange)> = blocks.into_values().collect();
    blocks.sort_by_key(|(bytes, _)| Reverse(*bytes));
    for (_, planned) in blocks.into_iter().take(READ_AHEAD_BLOCKS) {
        let part = planned.part();
        if !broker.reader.lacks(&part) {
            continue;
        }
        let reader = broker.reader.clone();
        broker.tasks.start(TaskKind::Background, "read ahead", async move {
            if let Err(error) = reader.read_ahead(ReadKind::CatchUp, &part).await {
                debug!(object = %part.object, %error, "reading ahead failed");
            }
        });
    }
}

fn refuse(broker: &Broker, wanted: &PartitionRead, topic_id: uuid::Uuid, failed: &StoreError) -> Fetched {
    error!(
        %topic_id,
        partition = wanted.partition,
        offset = wanted.offset,
        error = %failed,
        "records cannot be read"
    );
    // Base offsets lie outside of what the batches' own CRCs cover, so the cache took them as they
    // came: the next fetch asks the store again.
    if let StoreError::Corrupt { key, .. } = failed
        && let Some(object) = ObjectKey::parse(key).ok().and_then(|key| key.as_object())
    {
        broker.reader.evict(object);
    }
    broker.metrics.read_failed();
    Fetched::failed(ResponseError::KafkaStorageError)
}

#[cfg(test)]
mod tests;
