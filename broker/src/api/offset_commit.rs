//! OffsetCommit (key 8), versions 2–9.
//!
//! By a member in its generation or epoch, or by anybody while the group has no members. All
//! partitions that are taken are stored in one write that fails if the group or the offsets were
//! changed by others meanwhile. Of a partition that is named twice the last valid commit counts, as
//! in Kafka. A retention time of the client's own (versions 2–4) is kept with the offset.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::{OffsetCommitRequest, OffsetCommitResponse};
use strandline_metadata::state::TRANSACTIONS;
use strandline_metadata::values::group::CommittedOffset;
use uuid::Uuid;

use super::Call;
use crate::group::classic::session::Identity;
use crate::group::command::{Command, RefusedCommits};
use crate::group::error::GroupError;
use crate::group::offsets::{Commit, CommitRefusal};
use crate::limits::UNITS_PER_COMMIT;
use crate::topics;

pub(crate) const VERSIONS: RangeInclusive<i16> = 2..=9;

pub(super) async fn handle(call: &Call, request: OffsetCommitRequest) -> OffsetCommitResponse {
    let group = request.group_id.to_string();
    learn_topics(call, &request.topics).await;
    let expires_ms = (request.retention_time_ms >= 0)
        .then(|| call.broker.clock.now_ms().saturating_add(request.retention_time_ms));
    let mut last = BTreeMap::new();
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let known = call
            .broker
            .replica
            .read(|view| view.names.topic(&topic.name).map(|t| (t.value.topic_id, t.value.partitions)));
        let name: Arc<str> = (**topic.name).into();
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for partition in &topic.partitions {
            call.spend(UNITS_PER_COMMIT).await;
            let answer =
                OffsetCommitResponsePartition::default().with_partition_index(partition.partition_index);
            partitions.push(match check(call, known, partition, expires_ms) {
                Ok((topic_id, index, committed)) => {
                    last.insert((name.clone(), index), (topic_id, committed));
                    answer
                }
                Err(code) => answer.with_error_code(code.code()),
            });
        }
        topics.push(
            OffsetCommitResponseTopic::default().with_name(topic.name.clone()).with_partitions(partitions),
        );
    }
    let commit =
        |((topic, partition), (topic_id, committed))| Commit { topic, topic_id, partition, committed };
    let commits = last.into_iter().map(commit).collect();
    let identity = Identity::new(&request.member_id, request.group_instance_id.as_ref());
    let (generation, version) = (request.generation_id_or_member_epoch, call.version);
    let command = |reply| Command::Commit { identity, generation, version, commits, reply };
    let answer = call.broker.groups.ask(&group, command).await;
    answer_taken(call, &mut topics, answer).await;
    OffsetCommitResponse::default().with_topics(topics)
}

/// Passes the barrier if a topic is not known here: it may have been created a moment ago.
async fn learn_topics(call: &Call, asked: &[OffsetCommitRequestTopic]) {
    let unknown: BTreeSet<String> = call.broker.replica.read(|view| {
        let unknown = asked.iter().filter(|t| view.names.topic(&t.name).is_none());
        unknown.map(|t| t.name.to_string()).collect()
    });
    if !unknown.is_empty() {
        topics::learn(&call.broker, &Vec::from_iter(unknown), false).await;
    }
}

fn check(
    call: &Call,
    known: Option<(Uuid, u32)>,
    asked: &OffsetCommitRequestPartition,
    expires_ms: Option<i64>,
) -> Result<(Uuid, u32, CommittedOffset), ResponseError> {
    let metadata = asked.committed_metadata.as_deref().unwrap_or_default();
    if metadata.len() > call.broker.config.groups.offset_metadata_max_bytes {
        return Err(ResponseError::OffsetMetadataTooLarge);
    }
    let (topic_id, partitions) = known.ok_or(ResponseError::UnknownTopicOrPartition)?;
    let index = u32::try_from(asked.partition_index).ok().filter(|index| *index < partitions);
    let index = index.ok_or(ResponseError::UnknownTopicOrPartition)?;
    // Older brokers know no such field, and there are no transactions then.
    let after = call
        .broker
        .replica
        .read(|view| if view.state.feature_level() >= TRANSACTIONS { view.revision } else { 0 });
    let committed = CommittedOffset {
        offset: asked.committed_offset,
        leader_epoch: if call.version >= 6 { asked.committed_leader_epoch } else { -1 },
        time_ms: call.broker.clock.now_ms(),
        metadata: metadata.to_owned(),
        expires_ms,
        after,
    };
    Ok((topic_id, index, committed))
}

/// Puts the group's answer to those partitions that were not refused before it was asked.
async fn answer_taken(
    call: &Call,
    topics: &mut [OffsetCommitResponseTopic],
    answer: Result<RefusedCommits, GroupError>,
) {
    let (code, refused) = match answer {
        Ok(refused) => (0, refused),
        Err(error) => (error.code().code(), RefusedCommits::new()),
    };
    if code == 0 && refused.is_empty() {
        return;
    }
    for topic in topics {
        for partition in topic.partitions.iter_mut().filter(|p| p.error_code == 0) {
            call.spend(UNITS_PER_COMMIT).await;
            let place = || (topic.name.to_string(), u32::try_from(partition.partition_index).unwrap_or(0));
            let why = if refused.is_empty() { None } else { refused.get(&place()) };
            partition.error_code = match why {
                None => code,
                Some(CommitRefusal::MetadataTooLarge) => ResponseError::OffsetMetadataTooLarge.code(),
                // Clients try it again.
                Some(CommitRefusal::NoRoom) => ResponseError::CoordinatorLoadInProgress.code(),
            };
        }
    }
}
