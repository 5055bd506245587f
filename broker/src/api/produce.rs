//! Produce (key 0), versions 3–13.
//!
//! Each partition carries exactly one record batch of magic 2 and succeeds or fails by itself, with
//! a message from version 8 on. acks=1 and acks=all both mean: durable in the object store and
//! ordered in etcd; acks=0 gets no answer. Idempotence (KIP-98, KIP-360) is decided by the state
//! machine: a batch that was seen gets its first offset back. Topics by id from version 13 on
//! (KIP-516). A topic that does not exist is not created here, only by Metadata. Records that are
//! to blame for a refusal are named from version 8 on (KIP-467).
//!
//! Versions 0 to 2 are listed by ApiVersions, as by Kafka 4, since librdkafka before 2.8 reads out
//! of the list which codecs there are. Who sends them is disconnected.
//!
//! A batch of a transaction is stamped with it: from version 12 on with its producer's epoch, and
//! it adds its partition (KIP-890); before that with the transaction's number, and the partition
//! has to be in it. Whether that is the one that is open when the batch has its place in the log,
//! the state machine decides. Below the feature level of transactions they are refused with
//! TRANSACTIONAL_ID_AUTHORIZATION_FAILED.
//!
//! Left over, as in Kafka: a batch of version 11 or older which first reaches a broker after the
//! next transaction of its producer has begun is taken for one of that.
//!
//! Differences: at most 1,000 records
//! are named in a response. While producers are slowed, the throttle time is the pause between two
//! flushes. A producer that is new to a partition is refused with POLICY_VIOLATION
//! while the cluster remembers `max_producers`. A partition that is named twice is
//! written once, and refused after that.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::produce_response::{
    BatchIndexAndErrorMessage, PartitionProduceResponse, TopicProduceResponse,
};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse, TopicName, TransactionalId};
use strandline_metadata::state::TRANSACTIONS;
use strandline_storage::limits::COALESCE_BELOW_BYTES;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::{Call, PendingReply, text};
use crate::Broker;
use crate::compute::Kind;
use crate::limits::{
    BYTES_PER_UNIT, ENTRY_OVERHEAD_BYTES, FIRST_FRAME_BYTES, GROWN_PER_REQUEST_BYTES, LARGE_ANSWER_ELEMENTS,
    PRODUCE_MAX_WAIT, RECORD_ERRORS_PER_RESPONSE, UNITS_PER_ELEMENT, UNITS_PER_ENTRY,
};
use crate::produce::{
    Accepted, BufferTicket, Entry, EntryResult, Invalid, Outlook, ProduceError, RecordError, Refused,
    TopicRules, invalid, validate,
};
use crate::topics;

pub(crate) const VERSIONS: RangeInclusive<i16> = 3..=13;

/// One partition of the answer, until the flush is decided.
#[derive(Debug)]
struct Partition {
    index: i32,
    outcome: Outcome,
}

impl Partition {
    fn is_refused(&self) -> bool {
        matches!(self.outcome, Outcome::Refused(_))
    }
}

#[derive(Debug)]
enum Outcome {
    /// Refused before it was buffered.
    Refused(Invalid),
    /// The entry of this number in the buffer.
    Buffered { entry: usize, topic_id: Uuid, log_append_time_ms: i64, records: u64, bytes: u64 },
}

#[derive(Debug)]
struct Topic {
    name: TopicName,
    id: Uuid,
    partitions: Vec<Partition>,
}

/// Validates the request and puts it into the buffer; what is left is to wait for the
/// acknowledgement.
pub(super) async fn take(call: Call, request: ProduceRequest) -> PendingReply {
    let deadline = Instant::now()
        + Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0)).min(PRODUCE_MAX_WAIT);
    let acks = request.acks;
    let mut entries = Vec::new();
    let mut growth = Growth::default();
    let mut answer = lay_out(&call, request, deadline, &mut entries, &mut growth).await;
    detach(&mut entries, call.frame_bytes);
    let bytes: usize = entries.iter().map(|e: &Entry| e.batch.len() + ENTRY_OVERHEAD_BYTES).sum();
    let mut waiting = None;
    if !entries.is_empty() {
        let broker = &call.broker;
        let failed = match timeout_at(deadline, broker.buffer.reserve(bytes)).await {
            _ if broker.replica.read(|view| view.state.entry_count()) >= broker.config.max_state_ranges => {
                Some(ProduceError::StateFull)
            }
            _ if broker.is_turning_away() => Some(ProduceError::Draining),
            _ if broker.sessions.current().is_none() => Some(ProduceError::NotRegistered),
            Err(_) => Some(ProduceError::Expired),
            Ok(None) => Some(ProduceError::Draining),
            Ok(Some(space)) => {
                let until = (acks != 0).then_some(deadline);
                waiting = broker.buffer.append(entries, space, until, &call.client.produced);
                waiting.is_none().then_some(ProduceError::Draining)
            }
        };
        if let Some(error) = failed {
            refuse_all(&mut answer, &error);
        }
    }
    drop(growth);
    // What is left of the frame are batches, and those are memory of the buffer.
    call.frame_memory.release();
    // And what is remembered of those that are refused is about as much as they were.
    let refused = answer.iter().flat_map(|topic| &topic.partitions).filter(|p| p.is_refused()).count();
    if refused <= LARGE_ANSWER_ELEMENTS {
        call.release_decoded();
    }
    Box::pin(acknowledge(call, acks, answer, waiting, deadline))
}

/// Copies batches out of their frame where most of that is something else: otherwise they would
/// keep all of it in memory, the small ones until they are written, when they are copied together,
/// and the large ones for as long as they are cached.
fn detach(entries: &mut [Entry], frame_bytes: usize) {
    if frame_bytes <= FIRST_FRAME_BYTES {
        return;
    }
    let bytes_from = |least: usize| -> usize {
        entries.iter().map(|entry| entry.batch.len()).filter(|&bytes| bytes >= least).sum()
    };
    let copied_from = if bytes_from(0) < frame_bytes / 2 {
        0
    } else if bytes_from(COALESCE_BELOW_BYTES) < frame_bytes / 2 {
        COALESCE_BELOW_BYTES
    } else {
        return;
    };
    for entry in entries.iter_mut().filter(|entry| entry.batch.len() >= copied_from) {
        entry.batch = entry.batch.copied();
    }
}

/// Waits for the flush and builds the answer.
async fn acknowledge(
    call: Call,
    acks: i16,
    answer: Vec<Topic>,
    waiting: Option<BufferTicket>,
    deadline: Instant,
) -> Option<super::Reply> {
    if acks == 0 {
        return None;
    }
    let results = match waiting {
        None => Ok(Vec::new()),
        Some(mut appended) => match timeout_at(deadline, appended.results()).await {
            Ok(Some(results)) => Ok(results),
            Ok(None) => Err(ProduceError::Draining),
            // Otherwise it would be written later, beside what the client sends again.
            Err(_) if call.broker.buffer.withdraw(&appended) => Err(ProduceError::Expired),
            Err(_) => Err(ProduceError::TimedOut),
        },
    };
    if answer.iter().map(|topic| topic.partitions.len()).sum::<usize>() > LARGE_ANSWER_ELEMENTS {
        call.large_answer().await;
    }
    let mut record_errors_left = RECORD_ERRORS_PER_RESPONSE;
    let mut responses = Vec::with_capacity(answer.len());
    for topic in answer {
        call.spend(UNITS_PER_ELEMENT * topic.partitions.len()).await;
        responses.push(topic_response(&call, topic, &results, &mut record_errors_left));
    }
    let throttle_ms = i32::try_from(call.broker.slowdown.pause().as_millis()).unwrap_or(i32::MAX);
    call.reply(ProduceResponse::default().with_responses(responses).with_throttle_time_ms(throttle_ms)).await
}

/// Validates each partition; what may be written is appended to `entries`.
async fn lay_out(
    call: &Call,
    request: ProduceRequest,
    deadline: Instant,
    entries: &mut Vec<Entry>,
    growth: &mut Growth,
) -> Vec<Topic> {
    let broker = &call.broker;
    if request.topic_data.iter().any(|t| !is_known(call, &t.name, t.topic_id)) {
        let names: Vec<String> = request.topic_data.iter().map(|t| t.name.to_string()).collect();
        // Only Metadata creates topics: a producer with an old cache must not bring a deleted one
        // back.
        topics::learn(broker, &names, false).await;
    }
    let now_ms = broker.clock.now_ms();
    let acks_are_valid = matches!(request.acks, -1..=1);
    let mut seen = BTreeSet::new();
    let producers = ProducerCheck::new(call);
    let transactional_id = request.transactional_id.clone().filter(|id| !id.is_empty());
    let mut transactions = TransactionCheck::new(call, transactional_id);
    let mut answer = Vec::with_capacity(request.topic_data.len());
    for topic in request.topic_data {
        let known = rules(call, &topic.name, topic.topic_id);
        let mut partitions = Vec::with_capacity(topic.partition_data.len());
        for data in topic.partition_data {
            let bytes = data.records.as_ref().map_or(0, Bytes::len);
            call.spend(UNITS_PER_ENTRY + bytes / BYTES_PER_UNIT).await;
            let valid = match &known {
                _ if !acks_are_valid => {
                    Err(invalid(ResponseError::InvalidRequiredAcks, "acks is −1, 0 or 1"))
                }
                Err(invalid) => Err(invalid.clone()),
                Ok((topic_id, count, rules)) => match u32::try_from(data.index).ok().filter(|p| p < count) {
                    None => Err(unknown("there is no such partition")),
                    Some(partition) if !seen.insert((*topic_id, partition)) => {
                        let message = "the partition occurs twice in the request";
                        Err(invalid(ResponseError::InvalidRequest, message))
                    }
                    Some(partition) => {
                        let place = (*topic_id, partition);
                        check(call, place, data.records, rules, (now_ms, deadline), growth).await
                    }
                },
            };
            let valid = match valid {
                Ok(accepted) => producers.check(&accepted.entry).map(|()| accepted),
                refused => refused,
            };
            let valid = match valid {
                Ok(mut accepted) if accepted.entry.transaction > 0 => {
                    transactions.stamp(&mut accepted.entry).await.map(|()| accepted)
                }
                other => other,
            };
            let outcome = match valid {
                Err(invalid) => Outcome::Refused(invalid),
                Ok(Accepted { entry, log_append_time_ms }) => {
                    let outcome = Outcome::Buffered {
                        entry: entries.len(),
                        topic_id: entry.topic_id,
                        log_append_time_ms,
                        records: u64::from(entry.offsets),
                        bytes: entry.batch.len() as u64,
                    };
                    entries.push(entry);
                    outcome
                }
            };
            partitions.push(Partition { index: data.index, outcome });
        }
        // A slice of the frame would keep it in memory until this is answered.
        let name = TopicName(text(topic.name.to_string()));
        answer.push(Topic { name, id: topic.topic_id, partitions });
    }
    answer
}

/// Validates the records of one partition: beside the connections' threads if they have to be
/// opened, since a few kilobytes may become a hundred megabytes on the way.
async fn check(
    call: &Call,
    (topic_id, partition): (Uuid, u32),
    records: Option<Bytes>,
    rules: &TopicRules,
    (now_ms, deadline): (i64, Instant),
    growth: &mut Growth,
) -> Result<Accepted, Invalid> {
    let (version, rules) = (call.version, *rules);
    let outlook = Outlook::of(records.as_ref(), &rules, now_ms);
    let grows = outlook.is_some_and(|outlook| outlook.grows);
    if grows {
        growth.begin(call, deadline).await?;
    }
    let doubts = &call.broker.doubts;
    let doubted = outlook.is_some_and(Outlook::is_doubted);
    let opens = doubted && doubts.may_open();
    if doubted {
        call.broker.metrics.doubted_batch(opens);
    }
    let is_heavy = outlook.is_some_and(|outlook| outlook.is_heavy(opens));
    let check = move || {
        let began = Instant::now();
        let checked = validate(topic_id, partition, version, records.as_ref(), &rules, opens, now_ms);
        (checked, began.elapsed())
    };
    let (checked, took) = if is_heavy {
        let done = timeout_at(deadline, call.broker.compute.run(Kind::Batch, check)).await;
        done.map_err(|_| refused(&ProduceError::Expired))?
    } else {
        check()
    };
    if opens {
        doubts.opened(took);
    }
    checked.and_then(|accepted| if grows { growth.add(accepted) } else { Ok(accepted) })
}

/// What batches of one request become that are compressed anew, until it is memory of the buffer.
#[derive(Debug, Default)]
struct Growth {
    bytes: usize,
    place: Option<OwnedSemaphorePermit>,
}

impl Growth {
    /// Waits until this request is one of the few that may grow.
    async fn begin(&mut self, call: &Call, deadline: Instant) -> Result<(), Invalid> {
        if self.place.is_none() {
            let place = timeout_at(deadline, call.broker.compute.growth()).await;
            self.place = place.map_err(|_| refused(&ProduceError::Expired))?;
        }
        Ok(())
    }

    fn add(&mut self, accepted: Accepted) -> Result<Accepted, Invalid> {
        self.bytes += accepted.entry.batch.len();
        if self.bytes > GROWN_PER_REQUEST_BYTES {
            let message = format!(
                "compressed as the topics want it, the request has more than {GROWN_PER_REQUEST_BYTES} bytes"
            );
            return Err(invalid(ResponseError::MessageTooLarge, message));
        }
        Ok(accepted)
    }
}

/// Which producers may write: the state of every broker remembers no more than `max_producers`.
struct ProducerCheck<'a> {
    broker: &'a Broker,
}

impl<'a> ProducerCheck<'a> {
    fn new(call: &'a Call) -> Self {
        Self { broker: &call.broker }
    }

    /// Refuses a producer that would be one too many.
    fn check(&self, entry: &Entry) -> Result<(), Invalid> {
        let Some((producer_id, ..)) = entry.producer else { return Ok(()) };
        let broker = self.broker;
        let is_one_too_many = broker.replica.read(|view| {
            let remembered = view.state.partition(entry.topic_id, entry.partition);
            view.state.producer_count() >= broker.config.max_producers
                && remembered.is_none_or(|p| !p.producers().contains_key(&producer_id))
        });
        if is_one_too_many {
            broker.metrics.requests().producer_refused();
            let message = "the cluster remembers as many idempotent producers as it may (max_producers); \
                           those that fall silent make room";
            return Err(invalid(ResponseError::PolicyViolation, message));
        }
        Ok(())
    }
}

/// Of which transaction the batches of a request are.
struct TransactionCheck<'a> {
    call: &'a Call,
    transactional_id: Option<TransactionalId>,
    is_current: bool,
}

impl<'a> TransactionCheck<'a> {
    /// From this version of Produce on, the epoch stands for the transaction.
    const OF_EPOCH: i16 = 12;

    fn new(call: &'a Call, transactional_id: Option<TransactionalId>) -> Self {
        Self { call, transactional_id, is_current: false }
    }

    /// Stamps a batch with its transaction, as far as this broker knows it. One that it does not
    /// know may have begun on another one.
    async fn stamp(&mut self, entry: &mut Entry) -> Result<(), Invalid> {
        let broker = &self.call.broker;
        let level = broker.replica.read(|view| view.state.feature_level());
        let id = self.transactional_id.as_ref().filter(|_| level >= TRANSACTIONS);
        let Some(id) = id else {
            let message = "nobody may write into a transaction without a transactional id, nor below strandline.version 5";
            return Err(invalid(ResponseError::TransactionalIdAuthorizationFailed, message));
        };
        let is_numbered = self.call.version < Self::OF_EPOCH;
        if is_numbered && !self.is_current {
            // Which one is open now is known for sure only behind the barrier.
            let reached = broker.replica.barrier().await;
            self.is_current = reached.is_ok();
            if !self.is_current {
                return Err(refused(&ProduceError::NotRegistered));
            }
        }
        let (producer_id, epoch, _) = entry.producer.unwrap_or((-1, -1, -1));
        let place = (entry.topic_id, entry.partition);
        entry.transaction = broker.replica.read(|view| {
            let refused = |refused| Err(self::refused(&ProduceError::Refused(refused)));
            match view.state.transactional().get(&producer_id) {
                Some(known) if *known.transactional_id != ***id => refused(Refused::InvalidProducerIdMapping),
                None if is_numbered => refused(Refused::InvalidProducerIdMapping),
                Some(known) if is_numbered => {
                    let has = known.open.as_ref().is_some_and(|open| open.partitions.contains_key(&place));
                    match () {
                        () if known.epoch != epoch => refused(Refused::InvalidProducerEpoch),
                        () if !has => refused(Refused::InvalidTransactionState),
                        () => Ok(known.number + 2),
                    }
                }
                // The state machine decides, which then knows all that came before.
                _ => Ok(1),
            }
        })?;
        Ok(())
    }
}

fn refused(error: &ProduceError) -> Invalid {
    invalid(error.code(), error.to_string())
}

fn is_known(call: &Call, name: &TopicName, topic_id: Uuid) -> bool {
    call.broker.replica.read(|view| {
        if call.version >= 13 {
            view.names.topic_by_id(topic_id).is_some()
        } else {
            view.names.topic(name).is_some()
        }
    })
}

/// The topic's id, partition count and rules.
fn rules(call: &Call, name: &TopicName, topic_id: Uuid) -> Result<(Uuid, u32, TopicRules), Invalid> {
    call.broker.replica.read(|view| {
        let topic = if call.version >= 13 {
            let found = view.names.topic_by_id(topic_id);
            let unknown = || invalid(ResponseError::UnknownTopicId, "there is no topic with this id");
            found.ok_or_else(unknown)?
        } else {
            view.names.topic(name).ok_or_else(|| unknown("there is no such topic"))?
        };
        let dynamic = &Broker::dynamic_configs(&view.names, call.broker.config.node_id);
        let effective = crate::topic_config::Effective {
            topic: &topic.value.configs,
            dynamic,
            broker: &call.broker.config.topics.configs,
        };
        Ok((topic.value.topic_id, topic.value.partitions, effective.rules()))
    })
}

fn unknown(message: &str) -> Invalid {
    invalid(ResponseError::UnknownTopicOrPartition, message)
}

fn refuse_all(answer: &mut [Topic], error: &ProduceError) {
    for partition in answer.iter_mut().flat_map(|t| &mut t.partitions) {
        if matches!(partition.outcome, Outcome::Buffered { .. }) {
            partition.outcome = Outcome::Refused(refused(error));
        }
    }
}

fn topic_response(
    call: &Call,
    topic: Topic,
    results: &Result<Vec<EntryResult>, ProduceError>,
    record_errors_left: &mut usize,
) -> TopicProduceResponse {
    let mut produced: BTreeMap<Uuid, (u64, u64)> = BTreeMap::new();
    let partitions = topic.partitions.into_iter().map(|partition| {
        let response = PartitionProduceResponse::default().with_index(partition.index);
        let mut failed = |code: ResponseError, message: String, blamed: Vec<RecordError>| {
            // Clients that know it abort and go on (KIP-890).
            let code = match code {
                ResponseError::InvalidTxnState if call.version >= 11 => ResponseError::TransactionAbortable,
                code => code,
            };
            let response = response.clone().with_error_code(code.code()).with_base_offset(-1);
            if call.version < 8 {
                return response;
            }
            let records: Vec<_> = blamed
                .into_iter()
                .take(*record_errors_left)
                .map(|record| {
                    BatchIndexAndErrorMessage::default()
                        .with_batch_index(record.index)
                        .with_batch_index_error_message(Some(text(record.message)))
                })
                .collect();
            *record_errors_left -= records.len();
            response.with_error_message(Some(text(message))).with_record_errors(records)
        };
        match partition.outcome {
            Outcome::Refused(invalid) => failed(invalid.code, invalid.message, invalid.records),
            Outcome::Buffered { entry, topic_id, log_append_time_ms, records, bytes } => {
                let missing = Err(ProduceError::Draining);
                let result = match results {
                    Ok(results) => results.get(entry).unwrap_or(&missing),
                    Err(error) => &Err(error.clone()),
                };
                match result {
                    Err(error) => failed(error.code(), error.to_string(), Vec::new()),
                    Ok(base_offset) => {
                        let sum = produced.entry(topic_id).or_default();
                        *sum = (sum.0 + records, sum.1 + bytes);
                        let log_start = call.broker.replica.read(|view| {
                            let number = u32::try_from(partition.index).unwrap_or(u32::MAX);
                            view.state.partition(topic_id, number).map_or(-1, |p| p.log_start())
                        });
                        let response = response
                            .with_base_offset(*base_offset)
                            .with_log_append_time_ms(log_append_time_ms);
                        if call.version >= 5 { response.with_log_start_offset(log_start) } else { response }
                    }
                }
            }
        }
    });
    let partitions = partitions.collect();
    for (topic_id, (records, bytes)) in produced {
        call.broker.metrics.produced(&call.broker, topic_id, records, bytes);
    }
    let response = TopicProduceResponse::default().with_partition_responses(partitions);
    if call.version >= 13 { response.with_topic_id(topic.id) } else { response.with_name(topic.name) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
    use kafka_protocol::records::Compression;
    use strandline_storage::error::Operation;
    use strandline_storage::format::batch::VerifiedBatch;
    use strandline_storage::store::{Fault, Faulty, ObjectStoreBackend};
    use tokio::time::sleep;

    use super::*;
    use crate::records::tests::batch;
    use crate::testing::{TestClient, World};

    #[test]
    fn batches_that_are_little_of_their_frame_let_go_of_it() {
        let (small, large) = (batch(Compression::None, 0, 1), batch(Compression::None, 0, 300));
        assert!(small.len() < COALESCE_BELOW_BYTES && large.len() >= COALESCE_BELOW_BYTES);
        // How many small ones, how much of something else, and whether small and large ones are
        // copied.
        for (count, junk, copied) in [
            (1, 0, (false, false)),
            (1, 200_000, (true, true)),
            (2 * large.len() / small.len(), 0, (false, true)),
        ] {
            let mut whole = large.to_vec();
            (0..count).for_each(|_| whole.extend_from_slice(&small));
            whole.resize(whole.len() + junk, 0);
            let frame = Bytes::from(whole);
            let mut begin = 0;
            let mut entries = Vec::new();
            for length in std::iter::once(large.len()).chain(std::iter::repeat_n(small.len(), count)) {
                let batch = VerifiedBatch::new(frame.slice(begin..begin + length)).unwrap();
                begin += length;
                entries.push(Entry {
                    topic_id: Uuid::nil(),
                    partition: 0,
                    batch,
                    offsets: 1,
                    max_timestamp_ms: 0,
                    producer: None,
                    transaction: 0,
                });
            }
            detach(&mut entries, frame.len());
            let is_copied = |entry: &Entry| !frame.as_ptr_range().contains(&entry.batch.bytes().as_ptr());
            assert_eq!(
                (is_copied(&entries[1]), is_copied(&entries[0])),
                copied,
                "{count} small, {junk} of junk"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn records_that_waited_too_long_for_their_flush_are_never_written() {
        let faulty = Faulty::new(Arc::new(ObjectStoreBackend::memory()), 1);
        let faults = faulty.handle();
        let world = World::with_store(Arc::new(faulty));
        let opened = world.broker(1, &["--puts-in-flight", "1", "--put-budget-per-s", "1000"]).await;
        let mut first = TestClient::connect(&opened.broker);
        let mut second = TestClient::connect(&opened.broker);
        let topic_id = first.create_topic("t", 1, &[]).await;
        faults.inject(Operation::Put, Fault::Delay(Duration::from_secs(5)));
        let data = PartitionProduceData::default().with_records(Some(batch(Compression::None, 0, 1)));
        let topic =
            TopicProduceData::default().with_name(TopicName(text("t"))).with_partition_data(vec![data]);
        let request =
            ProduceRequest::default().with_acks(-1).with_timeout_ms(1_000).with_topic_data(vec![topic]);
        let late = async {
            // The only PUT is under way.
            sleep(Duration::from_secs(1)).await;
            second.call(&request, 9).await
        };
        let (_, answer) = futures::join!(first.produce("t", [batch(Compression::None, 0, 1)]), late);
        let code = answer.responses[0].partition_responses[0].error_code;
        assert_eq!(code, ResponseError::RequestTimedOut.code());
        assert_eq!(opened.broker.produce_bytes_in_use(), 0, "its space is free");
        sleep(Duration::from_secs(10)).await;
        let end = opened.broker.replica.read(|view| view.state.partition(topic_id, 0).map(|p| p.end()));
        assert_eq!(end, Some(1), "what the client was told is not written is not");
    }
}
