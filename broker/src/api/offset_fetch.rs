//! OffsetFetch (key 9), versions 1–9.
//!
//! What a group has committed, read from the metadata store itself: current whoever coordinated the
//! group before. −1 where nothing is committed, and for a group that does not exist. All topics
//! when none are named (from version 2), several groups at once from 8 (KIP-709), a member's epoch
//! is checked from 9 (KIP-848). Whoever requires stable
//! offsets (from 7, KIP-447) gets UNSTABLE_OFFSET_COMMIT for those that an open transaction may
//! change. A group,
//! a topic or a partition that is named twice is answered once: what is asked about a group in
//! several places is taken together, and the first member named is the one that is checked. While
//! the metadata store does not answer: NOT_COORDINATOR. Groups beyond 8 MiB of offsets in one
//! response: COORDINATOR_LOAD_IN_PROGRESS, at which clients ask for those again.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{OffsetFetchRequest, OffsetFetchResponse, TopicName};
use strandline_metadata::names::Names;
use strandline_metadata::values::group::CommittedOffset;
use uuid::Uuid;

use super::distinct::{distinct, each_once};
use super::{Call, text};
use crate::group::command::Command;
use crate::group::error::GroupError;
use crate::group::offsets::{SharedOffsets, TopicOffsets};
use crate::limits::{
    GROUPS_ANSWER_BYTES, LARGE_ANSWER_ELEMENTS, LARGE_GROUPS_ANSWER_BYTES, OFFSETS_ANSWER_PARTITION_BYTES,
    UNITS_PER_ELEMENT,
};
use crate::transactions;

pub(crate) const VERSIONS: RangeInclusive<i16> = 1..=9;

pub(super) async fn handle(call: &Call, request: OffsetFetchRequest) -> OffsetFetchResponse {
    if call.version >= 8 {
        let named = request.groups.into_iter().map(|asked| (asked.group_id.clone(), asked));
        let groups = distinct(named, join).into_iter().map(|(_, asked)| asked).collect();
        let answers = answer_all(call, groups, request.require_stable).await;
        return OffsetFetchResponse::default().with_groups(answers);
    }
    let topics = request.topics.map(|topics| {
        let topic = |t: OffsetFetchRequestTopic| {
            OffsetFetchRequestTopics::default().with_name(t.name).with_partition_indexes(t.partition_indexes)
        };
        topics.into_iter().map(topic).collect()
    });
    let asked = OffsetFetchRequestGroup::default()
        .with_group_id(request.group_id)
        .with_member_epoch(-1)
        .with_topics(topics);
    let answer = answer_all(call, vec![asked], request.require_stable).await.pop().unwrap_or_default();
    let topics = answer.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.into_iter().map(|p| {
            OffsetFetchResponsePartition::default()
                .with_partition_index(p.partition_index)
                .with_committed_offset(p.committed_offset)
                .with_committed_leader_epoch(p.committed_leader_epoch)
                .with_metadata(p.metadata)
                .with_error_code(p.error_code)
        });
        OffsetFetchResponseTopic::default().with_name(topic.name).with_partitions(partitions.collect())
    });
    let response = OffsetFetchResponse::default().with_topics(topics.collect());
    // Version 1 has no place for an error of the whole group but the partitions.
    if call.version >= 2 { response.with_error_code(answer.error_code) } else { response }
}

/// Takes what is asked about a group again together with what is asked already.
fn join(known: &mut OffsetFetchRequestGroup, again: OffsetFetchRequestGroup) {
    match (&mut known.topics, again.topics) {
        (Some(topics), Some(mut more)) => topics.append(&mut more),
        // No list stands for all topics.
        (topics, None) => *topics = None,
        (None, Some(_)) => {}
    }
}

/// Each topic once, with each of its partitions once.
fn distinct_topics(topics: Vec<OffsetFetchRequestTopics>) -> Vec<OffsetFetchRequestTopics> {
    let named = topics.into_iter().map(|topic| (topic.name, topic.partition_indexes));
    let topics = distinct(named, |known, mut more| known.append(&mut more)).into_iter();
    topics
        .map(|(name, partitions)| {
            OffsetFetchRequestTopics::default().with_name(name).with_partition_indexes(each_once(partitions))
        })
        .collect()
}

/// Answers for each group. What is committed is read first, and shared; what is built of it at a
/// time is bounded.
async fn answer_all(
    call: &Call,
    groups: Vec<OffsetFetchRequestGroup>,
    requires_stable: bool,
) -> Vec<OffsetFetchResponseGroup> {
    let read = call.ask_each(groups, |asked| read(call, asked, requires_stable)).await;
    let view = call.broker.replica.view();
    let mut answers = Vec::with_capacity(read.len());
    let mut total = AnswerSize::default();
    for (mut asked, committed) in read {
        let committed = match committed {
            Ok(read) => read,
            Err(code) => {
                answers.push(failed(call, asked, code).await);
                continue;
            }
        };
        let (committed, pending) = committed;
        let group = Committed { stored: &committed, pending, names: &view.names };
        asked.topics = Some(group.topics(call, asked.topics.take()).await);
        let size = group.size(call, &asked).await;
        if total.bytes > 0 && total.bytes + size.bytes > GROUPS_ANSWER_BYTES {
            answers.push(failed(call, asked, ResponseError::CoordinatorLoadInProgress).await);
            continue;
        }
        total =
            AnswerSize { bytes: total.bytes + size.bytes, partitions: total.partitions + size.partitions };
        if total.partitions > LARGE_ANSWER_ELEMENTS || total.bytes > LARGE_GROUPS_ANSWER_BYTES {
            call.large_answer().await;
        }
        answers.push(group.answer(call, asked).await);
    }
    answers
}

/// Partitions that transactions have offsets for.
type PendingPartitions = BTreeMap<Uuid, Vec<u32>>;

type ReadGroup = (OffsetFetchRequestGroup, Result<(Arc<SharedOffsets>, PendingPartitions), ResponseError>);

/// Reads what a group has committed.
async fn read(call: &Call, mut asked: OffsetFetchRequestGroup, requires_stable: bool) -> ReadGroup {
    // Before what is committed: a transaction that ends in between has its offsets there then.
    let pending = if requires_stable {
        transactions::pending(&call.broker, &asked.group_id).await
    } else {
        Ok(PendingPartitions::new())
    };
    let Ok(pending) = pending else { return (asked, Err(ResponseError::NotCoordinator)) };
    asked.topics = asked.topics.map(distinct_topics);
    let member = asked.member_id.as_ref().filter(|id| !id.is_empty());
    let member = member.map(|id| (id.to_string(), asked.member_epoch));
    let command = |reply| Command::FetchOffsets(member, reply);
    let committed = call.broker.groups.ask(&asked.group_id, command).await;
    (asked, committed.map(|committed| (committed, pending)).map_err(|error| refusal(&error)))
}

/// How large an answer is.
#[derive(Clone, Copy, Debug, Default)]
struct AnswerSize {
    bytes: usize,
    partitions: usize,
}

/// What a group has committed, of the topics that there are.
struct Committed<'a> {
    stored: &'a SharedOffsets,
    /// Partitions that transactions have offsets for, if that is of interest.
    pending: PendingPartitions,
    names: &'a Names,
}

impl<'a> Committed<'a> {
    /// What is committed for a topic: nothing, if it does not exist.
    fn of(&self, topic: &str) -> TopicOffsets<'a> {
        let id = self.names.topic(topic).map(|known| known.value.topic_id);
        id.map_or_else(TopicOffsets::default, |id| TopicOffsets::of(self.stored, topic, id))
    }

    /// The topics that are asked for; without a question, all for which something is committed.
    async fn topics(
        &self,
        call: &Call,
        asked: Option<Vec<OffsetFetchRequestTopics>>,
    ) -> Vec<OffsetFetchRequestTopics> {
        if let Some(asked) = asked {
            return asked;
        }
        let mut names: Vec<&str> = self.stored.keys().map(|(topic, _)| topic.as_str()).collect();
        names.dedup();
        let mut topics = Vec::new();
        for name in names {
            let committed = self.of(name);
            let partitions: Vec<i32> = committed.partitions().filter_map(|p| i32::try_from(p).ok()).collect();
            call.spend(partitions.len() + UNITS_PER_ELEMENT).await;
            if !partitions.is_empty() {
                let name = TopicName(text(name));
                topics.push(
                    OffsetFetchRequestTopics::default().with_name(name).with_partition_indexes(partitions),
                );
            }
        }
        topics
    }

    /// How large the answer will be.
    async fn size(&self, call: &Call, asked: &OffsetFetchRequestGroup) -> AnswerSize {
        let mut size = AnswerSize::default();
        for topic in asked.topics.iter().flatten() {
            let committed = self.of(&topic.name);
            size.partitions += topic.partition_indexes.len();
            size.bytes += topic.name.len();
            for partition in &topic.partition_indexes {
                call.spend(UNITS_PER_ELEMENT).await;
                let metadata = get(&committed, *partition).map_or(0, |c| c.metadata.len());
                size.bytes += OFFSETS_ANSWER_PARTITION_BYTES + metadata;
            }
        }
        size
    }

    /// The answer by topic, in the order of the question.
    async fn answer(&self, call: &Call, asked: OffsetFetchRequestGroup) -> OffsetFetchResponseGroup {
        let mut topics = Vec::new();
        for topic in asked.topics.into_iter().flatten() {
            let committed = self.of(&topic.name);
            let id = self.names.topic(&topic.name).map(|known| known.value.topic_id);
            let pending = id.and_then(|id| self.pending.get(&id)).map_or(&[][..], Vec::as_slice);
            let mut partitions = Vec::with_capacity(topic.partition_indexes.len());
            for index in topic.partition_indexes {
                call.spend(UNITS_PER_ELEMENT).await;
                let answer = OffsetFetchResponsePartitions::default().with_partition_index(index);
                let is_pending = pending.iter().any(|p| i32::try_from(*p) == Ok(index));
                partitions.push(match get(&committed, index) {
                    _ if is_pending => {
                        nothing(index).with_error_code(ResponseError::UnstableOffsetCommit.code())
                    }
                    None => nothing(index),
                    Some(found) => answer
                        .with_committed_offset(found.offset)
                        .with_committed_leader_epoch(found.leader_epoch)
                        .with_metadata(Some(text(found.metadata.clone()))),
                });
            }
            topics
                .push(OffsetFetchResponseTopics::default().with_name(topic.name).with_partitions(partitions));
        }
        OffsetFetchResponseGroup::default().with_group_id(asked.group_id).with_topics(topics)
    }
}

fn get<'a>(committed: &TopicOffsets<'a>, partition: i32) -> Option<&'a CommittedOffset> {
    committed.get(u32::try_from(partition).ok()?)
}

/// A group without an answer: each partition that was asked for has the error, too.
async fn failed(
    call: &Call,
    asked: OffsetFetchRequestGroup,
    code: ResponseError,
) -> OffsetFetchResponseGroup {
    let code = code.code();
    let mut topics = Vec::new();
    for topic in asked.topics.into_iter().flatten() {
        call.spend(UNITS_PER_ELEMENT * topic.partition_indexes.len()).await;
        let failed = topic.partition_indexes.into_iter().map(|p| nothing(p).with_error_code(code));
        let partitions = failed.collect();
        topics.push(OffsetFetchResponseTopics::default().with_name(topic.name).with_partitions(partitions));
    }
    OffsetFetchResponseGroup::default()
        .with_group_id(asked.group_id)
        .with_error_code(code)
        .with_topics(topics)
}

/// The code of a refusal. Java consumers before 3.9 give up at COORDINATOR_NOT_AVAILABLE here, and
/// look for the coordinator and ask again at NOT_COORDINATOR, which is what Kafka answers.
fn refusal(error: &GroupError) -> ResponseError {
    match error.code() {
        ResponseError::CoordinatorNotAvailable => ResponseError::NotCoordinator,
        code => code,
    }
}

/// Nothing is committed, which is −1, never 0.
fn nothing(partition: i32) -> OffsetFetchResponsePartitions {
    OffsetFetchResponsePartitions::default()
        .with_partition_index(partition)
        .with_committed_offset(-1)
        .with_committed_leader_epoch(-1)
        .with_metadata(Some(text("")))
}
