//! The loop that turns the buffer into objects and commit records.
//!
//! Several PUTs are in flight; their commits are queued in the order in which the buffer was taken.
//! When a PUT fails for good, every waiter of that flush hears of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use strandline_metadata::commit::{CommitError, Committer, FlushOutcome, SessionCell};
use strandline_metadata::record::{Flush, FlushBatch, FlushPartition, FlushTopic};
use strandline_metadata::state::{BatchOutcome, OBJECT_IDENTITY, Refusal};
use strandline_metadata::turns::Turns;
use strandline_storage::clock::Clock;
use strandline_storage::error::StoreError;
use strandline_storage::format::segment::{Part, SegmentBuilder, SegmentFull, SegmentVersion};
use strandline_storage::path::ObjectId;
use strandline_storage::reader::Reader;
use strandline_storage::store::{Payload, Store};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};
use uuid::Uuid;

use super::buffer::{FlushReason, Held, Queued};
use super::{Budget, Entry, EntryResult, ProduceBuffer, ProduceError, Refused};
use crate::config::ProduceConfig;
use crate::limits::UNITS_PER_RANGE;
use crate::metrics::Metrics;
use crate::slowdown::Slowdown;
use crate::tasks::{TaskKind, TaskSet};
use crate::unwanted::Unwanted;

/// Writes what is in the buffer.
#[derive(Debug)]
pub struct Flusher {
    /// The buffer to empty.
    pub buffer: ProduceBuffer,
    /// When and how much.
    pub config: ProduceConfig,
    /// Where objects go.
    pub store: Arc<dyn Store>,
    /// What serves them from memory afterwards.
    pub reader: Reader,
    /// What removes those that nothing refers to.
    pub unwanted: Unwanted,
    /// Where commits go.
    pub committer: Committer,
    /// Under which registration.
    pub sessions: SessionCell,
    /// Wall clock for the records.
    pub clock: Arc<dyn Clock>,
    /// Counts what is done.
    pub metrics: Metrics,
    /// Runs the PUTs and the acknowledgements.
    pub tasks: TaskSet,
    /// How long a flush waits after the one before, so that what a broker needs to go on is not
    /// used up.
    pub slowdown: Slowdown,
    /// Seed of the object keys' random part.
    pub seed: u64,
}

/// A flush whose object is being written.
struct InFlight {
    object: ObjectId,
    /// What the timestamps in `flush` are relative to.
    time_ms: i64,
    flush: Flush,
    waiters: Waiters,
    put: oneshot::Receiver<PutOutcome>,
}

type PutOutcome = Result<(), StoreError>;

/// A flush whose PUT has ended, one way or the other.
struct CompletedPut {
    object: ObjectId,
    time_ms: i64,
    flush: Flush,
    waiters: Waiters,
    /// Fails if the task that wrote it was ended.
    put: Result<PutOutcome, oneshot::error::RecvError>,
}

impl InFlight {
    /// How many partitions it writes to.
    fn partitions(&self) -> usize {
        self.flush.topics.iter().map(|topic| topic.partitions.len()).sum()
    }

    async fn completed(self) -> CompletedPut {
        let Self { object, time_ms, flush, waiters, put } = self;
        CompletedPut { object, time_ms, flush, waiters, put: put.await }
    }
}

/// The requests of a flush, and which batch of the record belongs to whom.
struct Waiters {
    requests: Vec<(oneshot::Sender<Vec<EntryResult>>, usize, Held)>,
    /// For each batch of the record, in its order: request and entry.
    places: Vec<(usize, usize)>,
}

impl Waiters {
    /// Tells everybody what became of their entries; `result` says it for each batch in the order
    /// of the record.
    fn answer(self, result: impl Fn(usize) -> EntryResult) {
        let unanswered = Err(ProduceError::Commit("the batch was left out".to_owned()));
        let mut answers: Vec<Vec<EntryResult>> =
            self.requests.iter().map(|(_, count, _)| vec![unanswered.clone(); *count]).collect();
        for (batch, &(request, entry)) in self.places.iter().enumerate() {
            answers[request][entry] = result(batch);
        }
        for ((reply, ..), answer) in self.requests.into_iter().zip(answers) {
            // A connection that went away does not need its answer.
            let _ = reply.send(answer);
        }
    }

    fn fail(self, error: &ProduceError) {
        self.answer(|_| Err(error.clone()));
    }
}

impl Flusher {
    /// Runs until the buffer is closed and empty and everything is answered.
    pub async fn run(self) {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let mut budget =
            Budget::new(self.config.put_budget_per_s, self.config.put_budget_burst, Instant::now());
        let mut in_flight: FuturesOrdered<_> = FuturesOrdered::new();
        let mut numbers = BTreeMap::<i64, u64>::new();
        let mut last_start = None;
        // Since when there is something that only the budget keeps from going out.
        let mut waits_since: Option<Instant> = None;
        loop {
            let now = Instant::now();
            let mut until = None;
            let slowed_until = last_start.map(|at| at + self.slowdown.pause()).filter(|until| *until > now);
            if in_flight.len() >= self.config.puts_in_flight {
                // The end of one of them comes next.
            } else if slowed_until.is_some() {
                until = slowed_until;
            } else {
                match self.buffer.due(&self.config, &mut budget, now) {
                    Ok(reason) => {
                        let requests = self.buffer.take(self.config.flush_bytes, now);
                        if requests.is_empty() {
                            continue;
                        }
                        let Some(session) = self.sessions.current() else {
                            waiters_of(requests).fail(&ProduceError::NotRegistered);
                            continue;
                        };
                        let waited = waits_since.take().map(|at| now - at);
                        last_start = Some(now);
                        numbers.retain(|&incarnation, _| incarnation == session.incarnation);
                        let number = numbers.entry(session.incarnation).or_default();
                        let object = ObjectId::write(session.incarnation, *number, rng.random());
                        *number += 1;
                        match self.start(object, requests, reason).await {
                            Ok(started) => {
                                budget.spend(now, started.partitions());
                                self.metrics.put_budget().flushed(budget.saved(now), waited);
                                in_flight.push_back(started.completed());
                            }
                            Err((waiters, error)) => {
                                self.metrics.flush_failed("layout");
                                waiters.fail(&ProduceError::Store(error.to_string()));
                            }
                        }
                        continue;
                    }
                    Err(next) => {
                        if next.is_some() {
                            waits_since.get_or_insert(now);
                        }
                        until = next;
                    }
                }
            }
            if in_flight.is_empty() && self.buffer.is_finished() {
                return;
            }
            tokio::select! {
                biased;
                Some(completed) = in_flight.next() => self.commit(completed).await,
                () = self.buffer.arrived(), if until.is_some() || in_flight.len() < self.config.puts_in_flight => {}
                () = sleep_until(until.unwrap_or(now)), if until.is_some() => {}
            }
        }
    }

    /// Lays the requests out as an object and starts its PUT. Fails if they do not fit into one,
    /// which the buffer sees to.
    async fn start(
        &self,
        object: ObjectId,
        requests: Vec<Queued>,
        reason: FlushReason,
    ) -> Result<InFlight, (Waiters, SegmentFull)> {
        // Sorting is stable: batches of a partition keep the order in which they came.
        let mut order: Vec<(Uuid, u32, usize, usize)> = Vec::new();
        for (request, queued) in requests.iter().enumerate() {
            for (entry, described) in queued.entries.iter().enumerate() {
                order.push((described.topic_id, described.partition, request, entry));
            }
        }
        order.sort_by_key(|&(topic_id, partition, ..)| (topic_id, partition));
        let time_ms = self.clock.now_ms();
        let mut builder = SegmentBuilder::new(object, self.version());
        let mut flush = Flush { object_number: object.number, object_salt: object.salt, ..Flush::default() };
        let mut turns = Turns::default();
        for run in order.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            turns.spend(UNITS_PER_RANGE).await;
            let (topic_id, partition, ..) = run[0];
            let entries: Vec<&Entry> =
                run.iter().map(|&(_, _, request, entry)| &requests[request].entries[entry]).collect();
            let number = i32::try_from(partition).unwrap_or(i32::MAX);
            let parts = entries.iter().map(|entry| Part::from(&entry.batch));
            let position = match builder.push(*topic_id.as_bytes(), number, parts) {
                Ok(position) => position,
                Err(full) => return Err((waiters_of(requests), full)),
            };
            let described = entries.iter().map(|entry| describe(entry, time_ms)).collect();
            let entry = FlushPartition { partition, position, batches: described };
            match flush.topics.last_mut() {
                Some(topic) if topic.topic_id == topic_id.as_bytes() => topic.partitions.push(entry),
                _ => {
                    flush
                        .topics
                        .push(FlushTopic { topic_id: topic_id.as_bytes().to_vec(), partitions: vec![entry] });
                }
            }
        }
        let segment = builder.finish();
        flush.object_bytes = segment.size;
        self.metrics.flushed(reason, segment.size);
        let put = self.put(object, segment.payload);
        let waiters = Waiters {
            requests: requests.into_iter().map(|q| (q.reply, q.entries.len(), q.held)).collect(),
            places: order.into_iter().map(|(_, _, request, entry)| (request, entry)).collect(),
        };
        Ok(InFlight { object, time_ms, flush, waiters, put })
    }

    /// Starts the PUT of an object.
    fn put(&self, object: ObjectId, payload: Payload) -> oneshot::Receiver<PutOutcome> {
        let (done, put) = oneshot::channel();
        let (store, reader, metrics) = (self.store.clone(), self.reader.clone(), self.metrics.clone());
        self.tasks.start(TaskKind::Background, "put", async move {
            let started = Instant::now();
            let outcome = store.put(&object.key(), payload.clone()).await;
            metrics.put_took(started.elapsed());
            if outcome.is_ok() {
                reader.insert_written(object, payload.into_pieces());
            }
            // The flusher waits for this unless the broker is being torn down.
            let _ = done.send(outcome);
        });
        put
    }

    /// Queues the commit of an object that is durable, and has the waiters answered when it is
    /// decided.
    async fn commit(&self, completed: CompletedPut) {
        let CompletedPut { object, time_ms, flush, waiters, put } = completed;
        let failed = match put {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("the write was given up".to_owned()),
        };
        if let Some(why) = failed {
            warn!(%object, why, "an object could not be written; its records are refused");
            self.metrics.flush_failed("put");
            // A PUT that failed may still have happened; nothing will ever refer to the object.
            self.unwanted.discard(object);
            waiters.fail(&ProduceError::Store(why));
            return;
        }
        let started = Instant::now();
        let ticket = match self.committer.flush(object.incarnation, time_ms, flush).await {
            Ok(ticket) => ticket,
            Err(error) => {
                waiters.fail(&commit_error(&error));
                return;
            }
        };
        let (metrics, unwanted) = (self.metrics.clone(), self.unwanted.clone());
        self.tasks.start(TaskKind::Background, "acknowledge", async move {
            let FlushOutcome { outcomes, error } = ticket.outcome().await;
            metrics.commit_took(started.elapsed());
            if let Some(error) = &error {
                debug!(%object, %error, "a flush was not committed, or not as a whole");
                metrics.flush_failed("commit");
                // Otherwise it stays, and is collected as an orphan if nothing refers to it.
                if outcomes.is_empty() && error.is_certainly_not_committed() {
                    unwanted.discard(object);
                }
            }
            let error = error.map(|e| commit_error(&e));
            waiters.answer(|batch| match (outcomes.get(batch), &error) {
                (Some(outcome), _) => entry_result(*outcome),
                (None, Some(error)) => Err(error.clone()),
                (None, None) => {
                    Err(ProduceError::Commit("the outcome has fewer batches than the flush".to_owned()))
                }
            });
        });
    }

    /// The layout that every broker of the cluster can read.
    fn version(&self) -> SegmentVersion {
        if self.committer.feature_level() >= OBJECT_IDENTITY {
            SegmentVersion::V2
        } else {
            SegmentVersion::V1
        }
    }
}

fn waiters_of(requests: Vec<Queued>) -> Waiters {
    let places =
        requests.iter().enumerate().flat_map(|(r, q)| (0..q.entries.len()).map(move |e| (r, e))).collect();
    Waiters { requests: requests.into_iter().map(|q| (q.reply, q.entries.len(), q.held)).collect(), places }
}

fn describe(entry: &Entry, time_ms: i64) -> FlushBatch {
    let (producer, producer_epoch, base_sequence) = match entry.producer {
        None => (0, 0, 0),
        // Validation refused negative ids, epochs and sequence numbers.
        Some((id, epoch, sequence)) => {
            (id.cast_unsigned() + 1, u32::from(epoch.cast_unsigned()), sequence.cast_unsigned())
        }
    };
    FlushBatch {
        offsets: entry.offsets,
        bytes: u32::try_from(entry.batch.len()).unwrap_or(u32::MAX),
        max_timestamp_delta_ms: entry.max_timestamp_ms.wrapping_sub(time_ms),
        producer,
        producer_epoch,
        base_sequence,
        transaction: entry.transaction,
    }
}

fn entry_result(outcome: BatchOutcome) -> EntryResult {
    match outcome {
        BatchOutcome::Appended { base_offset } | BatchOutcome::Duplicate { base_offset } => Ok(base_offset),
        BatchOutcome::Refused(refusal) => Err(ProduceError::Refused(match refusal {
            Refusal::UnknownTopicOrPartition => Refused::UnknownTopicOrPartition,
            Refusal::OutOfOrderSequence => Refused::OutOfOrderSequence,
            Refusal::InvalidProducerEpoch => Refused::InvalidProducerEpoch,
            Refusal::UnknownProducerId => Refused::UnknownProducerId,
            Refusal::InvalidProducerIdMapping => Refused::InvalidProducerIdMapping,
            Refusal::InvalidTransactionState => Refused::InvalidTransactionState,
        })),
    }
}

fn commit_error(error: &CommitError) -> ProduceError {
    match error {
        CommitError::NotRegistered => ProduceError::NotRegistered,
        CommitError::Closed => ProduceError::Draining,
        CommitError::OutcomeLost => ProduceError::TimedOut,
        CommitError::Conflict | CommitError::Refused(_) | CommitError::OutcomeUnknown => {
            ProduceError::Commit(error.to_string())
        }
    }
}
