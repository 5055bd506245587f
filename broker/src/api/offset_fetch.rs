//! OffsetFetch (key 9), versions 1–9.
//!
//! What a group has committed, read from the metadata store itself: current whoever coordinated the
//! group before. −1 where nothing is committed, and for a group that does not exist. All topics
//! when none are named (from version 2), several groups at once from 8 (KIP-709), a member's epoch
//! is checked from 9 (KIP-848). There are no transactions yet, so every offset is stable. A group,
//! a topic or a partition that is named twice is answered once: what is asked about a group in
//! several places is taken together, and the first member named is the one that is checked. While
//! the metadata store does not answer: NOT_COORDINATOR.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{OffsetFetchRequest, OffsetFetchResponse, TopicName};
use strandline_metadata::values::group::CommittedOffset;

use super::distinct::{distinct, each_once};
use super::{Call, text};
use crate::group::command::{Command, FetchOffsets};
use crate::group::error::GroupError;
use crate::group::offsets::FoundOffsets;
use crate::limits::UNITS_PER_ELEMENT;

pub(crate) const VERSIONS: RangeInclusive<i16> = 1..=9;

pub(super) async fn handle(call: &Call, request: OffsetFetchRequest) -> OffsetFetchResponse {
    if call.version >= 8 {
        let named = request.groups.into_iter().map(|asked| (asked.group_id.clone(), asked));
        let groups = distinct(named, join).into_iter().map(|(_, asked)| asked).collect();
        let answers = call.ask_each(groups, |asked| group(call, asked)).await;
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
    let answer = group(call, asked).await;
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

async fn group(call: &Call, mut asked: OffsetFetchRequestGroup) -> OffsetFetchResponseGroup {
    let id = asked.group_id.to_string();
    asked.topics = asked.topics.map(distinct_topics);
    let partitions = asked.topics.iter().flatten().map(|t| t.partition_indexes.len()).sum::<usize>();
    call.spend(UNITS_PER_ELEMENT * partitions).await;
    let answer = OffsetFetchResponseGroup::default().with_group_id(asked.group_id.clone());
    match fetch(call, &id, &asked).await {
        Ok(found) => {
            call.spend(UNITS_PER_ELEMENT * found.values().map(BTreeMap::len).sum::<usize>()).await;
            answer.with_topics(topics(asked.topics, &found))
        }
        Err(error) => {
            let code = refusal(&error).code();
            let answer = answer.with_error_code(code);
            let failed = |p: i32| nothing(p).with_error_code(code);
            let topics = asked.topics.unwrap_or_default().into_iter().map(|topic| {
                let partitions = topic.partition_indexes.into_iter().map(failed).collect();
                OffsetFetchResponseTopics::default().with_name(topic.name).with_partitions(partitions)
            });
            answer.with_topics(topics.collect())
        }
    }
}

/// The code of a refusal. Java consumers before 3.9 give up at COORDINATOR_NOT_AVAILABLE here, and
/// look for the coordinator and ask again at NOT_COORDINATOR, which is what Kafka answers.
fn refusal(error: &GroupError) -> ResponseError {
    match error.code() {
        ResponseError::CoordinatorNotAvailable => ResponseError::NotCoordinator,
        code => code,
    }
}

async fn fetch(call: &Call, id: &str, asked: &OffsetFetchRequestGroup) -> Result<FoundOffsets, GroupError> {
    let wanted = asked.topics.as_ref().map(|topics| {
        let partitions = |t: &OffsetFetchRequestTopics| {
            let indexes = t.partition_indexes.iter().filter_map(|p| u32::try_from(*p).ok());
            (t.name.to_string(), indexes.collect())
        };
        topics.iter().map(partitions).collect()
    });
    let member = asked.member_id.as_ref().filter(|id| !id.is_empty());
    let member = member.map(|id| (id.to_string(), asked.member_epoch));
    let fetch = FetchOffsets { member, wanted };
    call.broker.groups.ask(id, |reply| Command::FetchOffsets(fetch, reply)).await
}

/// The answer by topic, in the order of the question; without a question, of all that was found.
fn topics(
    asked: Option<Vec<OffsetFetchRequestTopics>>,
    found: &FoundOffsets,
) -> Vec<OffsetFetchResponseTopics> {
    let asked = asked.unwrap_or_else(|| {
        let topic = |(name, found): (&String, &BTreeMap<u32, CommittedOffset>)| {
            OffsetFetchRequestTopics::default()
                .with_name(TopicName(text(name.clone())))
                .with_partition_indexes(found.keys().filter_map(|p| i32::try_from(*p).ok()).collect())
        };
        found.iter().map(topic).collect()
    });
    let none = BTreeMap::new();
    let answers = asked.into_iter().map(|topic| {
        let found = found.get(topic.name.as_str()).unwrap_or(&none);
        let partitions = topic.partition_indexes.iter().map(|p| {
            match u32::try_from(*p).ok().and_then(|p| found.get(&p)) {
                None => nothing(*p),
                Some(found) => OffsetFetchResponsePartitions::default()
                    .with_partition_index(*p)
                    .with_committed_offset(found.offset)
                    .with_committed_leader_epoch(found.leader_epoch)
                    .with_metadata(Some(text(found.metadata.clone()))),
            }
        });
        let partitions = partitions.collect();
        OffsetFetchResponseTopics::default().with_name(topic.name).with_partitions(partitions)
    });
    answers.collect()
}

/// Nothing is committed, which is −1, never 0.
fn nothing(partition: i32) -> OffsetFetchResponsePartitions {
    OffsetFetchResponsePartitions::default()
        .with_partition_index(partition)
        .with_committed_offset(-1)
        .with_committed_leader_epoch(-1)
        .with_metadata(Some(text("")))
}
