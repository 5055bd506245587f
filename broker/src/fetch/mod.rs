//! The read path: `plan (pure) → wait for commits → read (cache or one shared GET) → patched
//! slices`.
//!
//! There is no queue on it. A fetch that has nothing to return subscribes to its partitions and is
//! woken by the commit that moves one of them. One that has something is answered within
//! [`FETCH_READS_FOR`] after its wait, with what has been read by then; what has not goes on being
//! read into the cache, where the next fetch finds it.

pub(crate) mod encode;
mod plan;
mod read;
mod records;
pub(crate) mod session;

use std::time::Duration;

use kafka_protocol::error::ResponseError;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use self::plan::Assessment;
pub(crate) use self::records::Records;
use crate::Broker;
use crate::limits::{FETCH_READS_FOR, FIRST_BATCH_BYTES, LEAST_FETCH_BYTES};
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
}

/// What is wanted altogether.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) min_bytes: usize,
    pub(crate) max_bytes: usize,
    pub(crate) max_wait: Duration,
}

/// What one partition gives.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fetched {
    pub(crate) error: Option<ResponseError>,
    pub(crate) high_watermark: i64,
    pub(crate) last_stable: i64,
    pub(crate) log_start: i64,
    pub(crate) records: Records,
}

impl Fetched {
    fn without_records(assessment: &Assessment) -> Self {
        Self {
            error: assessment.error,
            high_watermark: assessment.high_watermark,
            last_stable: assessment.last_stable,
            log_start: assessment.log_start,
            records: Records::default(),
        }
    }

    fn failed(error: ResponseError) -> Self {
        Self { error: Some(error), high_watermark: -1, last_stable: -1, log_start: -1, ..Self::default() }
    }
}

/// Fetches: waits until `min_bytes` are there, something is wrong with a partition, or the time is
/// up.
///
/// `resolve` gives the wanted partitions anew when this broker may have learnt of topics. With what
/// was fetched comes the memory that it takes of what there is for answers.
pub(crate) async fn fetch(
    broker: &Broker,
    replies: &MemoryAccount,
    resolve: impl Fn() -> Vec<PartitionRead>,
    limits: Limits,
) -> (Vec<Fetched>, Option<MemoryPermit>) {
    let deadline = Instant::now() + limits.max_wait;
    let mut wanted = resolve();
    if broker.is_turning_away() {
        let failed = wanted.iter().map(|_| Fetched::failed(ResponseError::NotLeaderOrFollower));
        return (failed.collect(), None);
    }
    let mut is_current = false;
    loop {
        // Subscribed before looking: what moves in between is not missed.
        let partitions: Vec<(Uuid, u32)> =
            wanted.iter().filter_map(|w| Some((w.topic.ok()?, u32::try_from(w.partition).ok()?))).collect();
        let subscription = broker.replica.subscribe(&partitions);
        let assessed: Vec<Assessment> =
            broker.replica.read(|view| wanted.iter().map(|w| plan::assess(&view.state, w)).collect());
        if !is_current && assessed.iter().any(Assessment::lag_may_explain) {
            // A final no must not be said out of this broker's own lag: another one may be ahead.
            is_current = true;
            let barrier = timeout_at(deadline + FETCH_READS_FOR / 2, broker.replica.barrier()).await;
            if barrier.is_ok_and(|reached| reached.is_ok()) {
                wanted = resolve();
                continue;
            }
            let softened = assessed.into_iter().map(Assessment::soften).collect::<Vec<_>>();
            return read_all(broker, replies, &wanted, softened, limits.max_bytes, deadline).await;
        }
        let available: usize = assessed.iter().map(Assessment::available).sum();
        let finished = available >= limits.min_bytes || assessed.iter().any(Assessment::is_error);
        if finished || timeout_at(deadline, subscription.moved()).await.is_err() {
            return read_all(broker, replies, &wanted, assessed, limits.max_bytes, deadline).await;
        }
    }
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
    let first = assessed.iter().find(|a| a.available() > 0).and_then(|a| a.planned.first());
    let Some(first) = first else {
        return (assessed.iter().map(Fetched::without_records).collect(), None);
    };
    // The first batch comes whole, and it may be all of its range.
    let first = usize::try_from(first.range.bytes).unwrap_or(usize::MAX).min(FIRST_BATCH_BYTES);
    let least = max_bytes.min(available).clamp(1, LEAST_FETCH_BYTES).max(first);
    let reserved = replies.reserve(least, max_bytes.min(available));
    let Ok(mut memory) = timeout_at(deadline + FETCH_READS_FOR / 2, reserved).await else {
        broker.metrics.bounds().fetch_cut("memory");
        return (assessed.iter().map(Fetched::without_records).collect(), None);
    };
    let until = (deadline + FETCH_READS_FOR).min(Instant::now() + FETCH_READS_FOR);
    // Budgets are dealt out in order, before anything is read.
    let mut left = memory.bytes();
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
