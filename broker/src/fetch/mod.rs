//! The read path: `plan (pure) → wait for commits → read (cache or one shared GET) → patched
//! slices`.
//!
//! There is no queue on it. A fetch that has nothing to return subscribes to its partitions and is
//! woken by the commit that moves one of them. One that has something is answered within
//! [`FETCH_READS_FOR`] after its wait, with what has been read by then; what has not goes on being
//! read into the cache, where the next fetch finds it.

pub(crate) mod encode;
pub(crate) mod narrow;
mod plan;
mod read;
mod records;
pub(crate) mod session;

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::error::ResponseError;
use strandline_metadata::replica::{Subscription, View};
use strandline_metadata::state::AbortedTransaction;
use strandline_metadata::turns::Turns;
use strandline_storage::format::batch::CONTROL_BATCH_BYTES;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout_at};
use uuid::Uuid;

use self::plan::{Assessment, PlanBudget};
pub(crate) use self::records::Records;
use self::session::{Interest, PartitionKey};
use crate::Broker;
use crate::api::Client;
use crate::limits::{
    FETCH_READS_FOR, FETCH_SHORT_WAIT, FIRST_BATCH_BYTES, LARGE_ANSWER_ELEMENTS, LEAST_FETCH_BYTES,
    REST_PER_PARTITION, RESTING_PARTITIONS, UNITS_PER_LOOK, WAITING_FREE_PARTITIONS, WAITING_MEMORY_SHARE,
    WAITING_PARTITION_BYTES,
};
use crate::server::memory::{MemoryAccount, MemoryPermit};

/// What is wanted of one partition.
#[derive(Clone, Debug)]
pub(crate) struct PartitionRead {
    /// The topic, or the code that says why it is not known.
    pub(crate) topic: Result<Uuid, ResponseError>,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) max_bytes: usize,
    /// The leader epoch that the client knows; −1 for none.
    pub(crate) leader_epoch: i32,
    /// Whether only what lies below the last stable offset is wanted, and which transactions in
    /// there were aborted (`read_committed`).
    pub(crate) is_committed: bool,
}

/// What is wanted altogether.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) min_bytes: usize,
    pub(crate) max_bytes: usize,
    pub(crate) max_wait: Duration,
    /// Whether transactions that have not ended are waited for (`read_committed`).
    pub(crate) is_committed: bool,
}

/// What one partition gives.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fetched {
    pub(crate) error: Option<ResponseError>,
    pub(crate) high_watermark: i64,
    pub(crate) last_stable: i64,
    pub(crate) log_start: i64,
    /// Aborted transactions in the records: producer and first offset. `None` for whoever reads
    /// them all the same.
    pub(crate) aborted: Option<Vec<(i64, i64)>>,
    pub(crate) records: Records,
}

impl Fetched {
    fn without_records(assessment: &Assessment) -> Self {
        Self {
            error: assessment.error,
            high_watermark: assessment.high_watermark,
            last_stable: assessment.last_stable,
            log_start: assessment.log_start,
            aborted: assessment.aborted.is_some().then(Vec::new),
            records: Records::default(),
        }
    }

    /// What was read of what was planned.
    fn with_records(assessment: &Assessment, records: Records) -> Self {
        let read = |aborted: &AbortedTransaction| {
            (aborted.first_offset < records.end_offset).then_some((aborted.producer_id, aborted.first_offset))
        };
        let aborted = assessment.aborted.as_ref().map(|all| all.iter().filter_map(read).collect());
        Self { aborted, records, ..Self::without_records(assessment) }
    }

    fn failed(error: ResponseError) -> Self {
        Self { error: Some(error), high_watermark: -1, last_stable: -1, log_start: -1, ..Self::default() }
    }
}

/// The memory of fetches that wait, in KiB.
#[derive(Clone, Debug)]
pub(crate) struct WaitingMemory(Arc<Semaphore>);

impl WaitingMemory {
    /// So many bytes for all of them.
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new((bytes / 1024).min(Semaphore::MAX_PERMITS))))
    }

    /// What a fetch of so many partitions takes; `None` if that is more than its share of what is
    /// left.
    fn take(&self, partitions: usize) -> Option<OwnedSemaphorePermit> {
        let counted = partitions.saturating_sub(WAITING_FREE_PARTITIONS);
        let units = (counted * WAITING_PARTITION_BYTES).div_ceil(1024);
        if units > self.0.available_permits() / WAITING_MEMORY_SHARE {
            return None;
        }
        self.0.clone().try_acquire_many_owned(u32::try_from(units).ok()?).ok()
    }
}

/// Fetches: waits until `min_bytes` are there, something is wrong with a partition, the client's
/// next request cannot be started, or the time is up.
///
/// With what was fetched comes the memory that it takes of what there is for answers. Fails if it
/// is one of very many partitions, and others of that kind take its time. Cancellation-safe.
pub(crate) async fn fetch(
    broker: &Broker,
    client: &Client,
    interests: &[(PartitionKey, Interest)],
    limits: Limits,
) -> Result<(Vec<Fetched>, Option<MemoryPermit>), Crowded> {
    let replies = &client.replies;
    let mut deadline = Instant::now() + limits.max_wait;
    let mut gate = large_gate(broker, interests.len(), deadline).await?;
    let mut wanted = resolve(&broker.replica.view(), interests, limits.is_committed).await;
    if broker.is_turning_away() {
        let failed = wanted.iter().map(|_| Fetched::failed(ResponseError::NotLeaderOrFollower));
        return Ok((failed.collect(), None));
    }
    let (mut is_current, mut subscription, mut memory) = (false, None, None);
    loop {
        let view = broker.replica.view();
        let (assessed, budget) = assess(&view, &wanted, limits).await;
        if !is_current && assessed.iter().any(Assessment::lag_may_explain) {
            // A final no must not be said out of this broker's own lag: another one may be ahead.
            is_current = true;
            let barrier = timeout_at(deadline + FETCH_READS_FOR / 2, broker.replica.barrier()).await;
            if barrier.is_ok_and(|reached| reached.is_ok()) {
                wanted = resolve(&broker.replica.view(), interests, limits.is_committed).await;
                subscription = None;
                continue;
            }
            let softened = assessed.into_iter().map(Assessment::soften).collect::<Vec<_>>();
            return Ok(read_all(broker, replies, &wanted, softened, limits.max_bytes, deadline).await);
        }
        let available: usize = assessed.iter().map(Assessment::available).sum();
        let finished = available >= limits.min_bytes
            || budget.is_spent()
            || assessed.iter().any(Assessment::is_error)
            || Instant::now() >= deadline;
        if finished {
            return Ok(read_all(broker, replies, &wanted, assessed, limits.max_bytes, deadline).await);
        }
        drop(assessed);
        if memory.is_none() {
            memory = broker.waiting_fetches.take(wanted.len());
            if memory.is_none() {
                broker.metrics.requests().fetch_not_waited();
                let until = deadline.min(Instant::now() + FETCH_SHORT_WAIT);
                drop(gate.take());
                sleep_until(until).await;
                deadline = Instant::now();
                gate = large_gate(broker, interests.len(), deadline).await?;
                continue;
            }
        }
        let waiting: &Subscription = match &mut subscription {
            Some(waiting) => waiting,
            none => {
                let subscribed = none.insert(broker.replica.subscribe(partitions(&wanted)).await);
                if !Arc::ptr_eq(&view, &broker.replica.view()) {
                    // What has moved in between may not have been heard of.
                    continue;
                }
                subscribed
            }
        };
        drop(gate.take());
        tokio::select! {
            biased;
            () = waiting.moved() => if wanted.len() > RESTING_PARTITIONS {
                let rest = REST_PER_PARTITION * u32::try_from(wanted.len()).unwrap_or(u32::MAX);
                sleep_until(deadline.min(Instant::now() + rest)).await;
            },
            () = client.crowded() => deadline = Instant::now(),
            () = sleep_until(deadline) => {}
        }
        gate = large_gate(broker, interests.len(), deadline).await?;
    }
}

/// Others take the time of a fetch, which has looked at nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crowded;

/// A fetch of very many partitions looks at them, and reads, when few others do. It is answered in
/// its time all the same, however many there are.
async fn large_gate(
    broker: &Broker,
    partitions: usize,
    deadline: Instant,
) -> Result<Option<OwnedSemaphorePermit>, Crowded> {
    if partitions <= LARGE_ANSWER_ELEMENTS {
        return Ok(None);
    }
    timeout_at(deadline + FETCH_READS_FOR / 2, broker.compute.answer()).await.map_err(|_| Crowded)
}

/// What is wanted, with topics looked up as they are now.
async fn resolve(
    view: &View,
    interests: &[(PartitionKey, Interest)],
    is_committed: bool,
) -> Vec<PartitionRead> {
    let mut turns = Turns::default();
    let mut wanted = Vec::with_capacity(interests.len());
    for ((key, partition), interest) in interests {
        turns.spend(UNITS_PER_LOOK).await;
        wanted.push(PartitionRead {
            topic: key.resolve(&view.names),
            partition: *partition,
            offset: interest.offset,
            max_bytes: usize::try_from(interest.max_bytes).unwrap_or(0),
            leader_epoch: interest.leader_epoch,
            is_committed,
        });
    }
    wanted
}

/// Looks at every partition, in turns. Says also what is left of the answer.
async fn assess(view: &View, wanted: &[PartitionRead], limits: Limits) -> (Vec<Assessment>, PlanBudget) {
    let mut turns = Turns::default();
    let mut budget = PlanBudget::new(limits.max_bytes);
    let mut assessed = Vec::with_capacity(wanted.len());
    for wanted in wanted {
        let assessment = plan::assess(&view.state, wanted, &mut budget);
        turns.spend(UNITS_PER_LOOK + assessment.planned.len()).await;
        assessed.push(assessment);
    }
    (assessed, budget)
}

/// The partitions that may move.
fn partitions(wanted: &[PartitionRead]) -> Vec<(Uuid, u32)> {
    wanted.iter().filter_map(|w| Some((w.topic.ok()?, u32::try_from(w.partition).ok()?))).collect()
}

/// Reads what was planned, within `max_bytes` and the memory that there is for replies, except that
/// the first batch always comes. The memory is held until the reply is written. There is an answer
/// within [`FETCH_READS_FOR`] after `deadline`, whatever there is to say by then.
async fn read_all(
    broker: &Broker,
    replies: &MemoryAccount,
    wanted: &[PartitionRead],
    assessed: Vec<Assessment>,
    max_bytes: usize,
    deadline: Instant,
) -> (Vec<Fetched>, Option<MemoryPermit>) {
    let available: usize = assessed.iter().map(Assessment::available).sum();
    let Some(first) = assessed.iter().find(|a| a.available() > 0) else {
        return (assessed.iter().map(Fetched::without_records).collect(), None);
    };
    // The first batch comes whole, and it may be all of its range.
    let first = first.planned.first().map_or(CONTROL_BATCH_BYTES as u64, |planned| planned.range.bytes);
    let first = usize::try_from(first).unwrap_or(usize::MAX).min(FIRST_BATCH_BYTES);
    let least = max_bytes.min(available).clamp(1, LEAST_FETCH_BYTES).max(first);
    let reserved = replies.reserve(least, max_bytes.min(available));
    let Ok(mut memory) = timeout_at(deadline + FETCH_READS_FOR / 2, reserved).await else {
        broker.metrics.bounds().fetch_cut("memory");
        return (assessed.iter().map(Fetched::without_records).collect(), None);
    };
    let until = (deadline + FETCH_READS_FOR).min(Instant::now() + FETCH_READS_FOR);
    // Budgets are dealt out in order, before anything is read.
    // Memory may be more than is wanted: the first batch comes whole.
    let mut left = memory.bytes().min(max_bytes);
    let mut first = true;
    let budgets = wanted.iter().zip(&assessed).map(|(wanted, assessment)| {
        let budget = wanted.max_bytes.min(left);
        let reads = assessment.available() > 0 && (first || budget > 0);
        if reads {
            left = left.saturating_sub(assessment.available().min(budget));
            first = false;
        }
        reads.then_some(budget)
    });
    let budgets = budgets.collect();
    let fetched = read::read(broker, wanted, assessed, budgets, until).await;
    memory.resize(fetched.iter().map(|f| f.records.kept_alive).sum());
    (fetched, Some(memory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fetches_that_wait_leave_something_to_others() {
        let bytes = 64 << 20;
        let (memory, all) = (WaitingMemory::new(bytes), bytes / WAITING_PARTITION_BYTES);
        assert!(memory.take(all / 2).is_none(), "more than its share");
        let mut held = Vec::new();
        while let Some(more) = memory.take(all / 100) {
            held.push(more);
        }
        assert!((90..=100).contains(&held.len()), "{} fetches wait", held.len());
        assert!(memory.take(WAITING_FREE_PARTITIONS).is_some(), "a small one always may");
        held.clear();
        assert!(memory.take(all / 5).is_some());
    }
}
