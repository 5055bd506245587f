//! Produce (key 0), versions 3–13.
//!
//! Each partition carries exactly one record batch of magic 2 and succeeds or fails by itself, with
//! a message from version 8 on. acks=1 and acks=all both mean: durable in the object store and
//! ordered in etcd; acks=0 gets no answer. Idempotence (KIP-98, KIP-360) is decided by the state
//! machine: a batch that was seen gets its first offset back. Topics by id from version 13 on
//! (KIP-516); by name, a topic that does not exist is created if that is allowed.
//!
//! Differences: transactional batches are refused with INVALID_TXN_STATE until transactions exist.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::produce_response::{
    BatchIndexAndErrorMessage, PartitionProduceResponse, TopicProduceResponse,
};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse, TopicName};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::{Call, PendingReply, text};
use crate::limits::PRODUCE_MAX_WAIT;
use crate::produce::{Accepted, Entry, EntryResult, Invalid, ProduceError, TopicRules, validate};
use crate::topics;

pub(crate) const VERSIONS: RangeInclusive<i16> = 3..=13;

/// One partition of the answer, until the flush is decided.
#[derive(Debug)]
struct Partition {
    index: i32,
    outcome: Outcome,
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
    let mut answer = lay_out(&call, request, &mut entries).await;
    let bytes: usize = entries.iter().map(|e: &Entry| e.batch.len()).sum();
    let mut waiting = None;
    if !entries.is_empty() {
        let broker = &call.broker;
        let failed = match timeout_at(deadline, broker.buffer.reserve(bytes)).await {
            _ if broker.replica.read(|view| view.state.range_count()) >= broker.config.max_state_ranges => {
                Some(ProduceError::StateFull)
            }
            _ if broker.is_turning_away() => Some(ProduceError::Draining),
            _ if broker.sessions.current().is_none() => Some(ProduceError::NotRegistered),
            Err(_) => Some(ProduceError::TimedOut),
            Ok(None) => Some(ProduceError::Draining),
            Ok(Some(space)) => match broker.buffer.append(entries, space) {
                None => Some(ProduceError::Draining),
                Some(receiver) => {
                    waiting = Some(receiver);
                    None
                }
            },
        };
        if let Some(error) = failed {
            refuse_all(&mut answer, &error);
        }
    }
    Box::pin(acknowledge(call, acks, answer, waiting, deadline))
}

/// Waits for the flush and builds the answer.
async fn acknowledge(
    call: Call,
    acks: i16,
    answer: Vec<Topic>,
    waiting: Option<oneshot::Receiver<Vec<EntryResult>>>,
    deadline: Instant,
) -> Option<super::Reply> {
    if acks == 0 {
        return None;
    }
    let results = match waiting {
        None => Ok(Vec::new()),
        Some(receiver) => match timeout_at(deadline, receiver).await {
            Ok(Ok(results)) => Ok(results),
            Ok(Err(_)) => Err(ProduceError::Draining),
            Err(_) => Err(ProduceError::TimedOut),
        },
    };
    let responses = answer.into_iter().map(|topic| topic_response(&call, topic, &results)).collect();
    call.reply(&ProduceResponse::default().with_responses(responses))
}

/// Validates each partition; what may be written is appended to `entries`.
async fn lay_out(call: &Call, request: ProduceRequest, entries: &mut Vec<Entry>) -> Vec<Topic> {
    let broker = &call.broker;
    if request.topic_data.iter().any(|t| !is_known(call, &t.name, t.topic_id)) {
        let names: Vec<String> = request.topic_data.iter().map(|t| t.name.to_string()).collect();
        topics::learn(broker, &names, call.version < 13 && broker.config.topics.auto_create).await;
    }
    let now_ms = broker.clock.now_ms();
    let acks_are_valid = matches!(request.acks, -1..=1);
    let mut seen = BTreeSet::new();
    let mut answer = Vec::with_capacity(request.topic_data.len());
    for topic in request.topic_data {
        let known = rules(call, &topic.name, topic.topic_id);
        let mut partitions = Vec::with_capacity(topic.partition_data.len());
        for data in topic.partition_data {
            let valid = match &known {
                _ if !acks_are_valid => Err(Invalid {
                    code: ResponseError::InvalidRequiredAcks,
                    message: "acks is −1, 0 or 1".to_owned(),
                }),
                Err(invalid) => Err(invalid.clone()),
                Ok((topic_id, count, rules)) => match u32::try_from(data.index).ok().filter(|p| p < count) {
                    None => Err(unknown("there is no such partition")),
                    Some(partition) if !seen.insert((*topic_id, partition)) => Err(Invalid {
                        code: ResponseError::InvalidRequest,
                        message: "the partition occurs twice in the request".to_owned(),
                    }),
                    Some(partition) => validate(*topic_id, partition, data.records.as_ref(), rules, now_ms),
                },
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
        answer.push(Topic { name: topic.name, id: topic.topic_id, partitions });
    }
    answer
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
            found.ok_or_else(|| Invalid {
                code: ResponseError::UnknownTopicId,
                message: "there is no topic with this id".to_owned(),
            })?
        } else {
            view.names.topic(name).ok_or_else(|| unknown("there is no such topic"))?
        };
        let dynamic = &view.names.broker_configs(None).0;
        let effective = crate::topic_config::Effective {
            topic: &topic.value.configs,
            dynamic,
            broker: &call.broker.config.topics.configs,
        };
        Ok((topic.value.topic_id, topic.value.partitions, effective.rules()))
    })
}

fn unknown(message: &str) -> Invalid {
    Invalid { code: ResponseError::UnknownTopicOrPartition, message: message.to_owned() }
}

fn refuse_all(answer: &mut [Topic], error: &ProduceError) {
    for partition in answer.iter_mut().flat_map(|t| &mut t.partitions) {
        if matches!(partition.outcome, Outcome::Buffered { .. }) {
            partition.outcome = Outcome::Refused(Invalid { code: error.code(), message: error.to_string() });
        }
    }
}

fn topic_response(
    call: &Call,
    topic: Topic,
    results: &Result<Vec<EntryResult>, ProduceError>,
) -> TopicProduceResponse {
    let mut produced: BTreeMap<Uuid, (u64, u64)> = BTreeMap::new();
    let partitions = topic.partitions.into_iter().map(|partition| {
        let response = PartitionProduceResponse::default().with_index(partition.index);
        let failed = |code: ResponseError, message: String| {
            let response = response.clone().with_error_code(code.code()).with_base_offset(-1);
            if call.version < 8 {
                return response;
            }
            let records = if code == ResponseError::InvalidRecord || code == ResponseError::InvalidTimestamp {
                // Nothing of a batch is written if anything of it is wrong, so the first record
                // stands for all.
                let first = BatchIndexAndErrorMessage::default().with_batch_index(0);
                vec![first.with_batch_index_error_message(Some(text(message.clone())))]
            } else {
                Vec::new()
            };
            response.with_error_message(Some(text(message))).with_record_errors(records)
        };
        match partition.outcome {
            Outcome::Refused(invalid) => failed(invalid.code, invalid.message),
            Outcome::Buffered { entry, topic_id, log_append_time_ms, records, bytes } => {
                let missing = Err(ProduceError::Draining);
                let result = match results {
                    Ok(results) => results.get(entry).unwrap_or(&missing),
                    Err(error) => &Err(error.clone()),
                };
                match result {
                    Err(error) => failed(error.code(), error.to_string()),
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
