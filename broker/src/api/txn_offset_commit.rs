//! TxnOffsetCommit (key 28), versions 0–5.
//!
//! Offsets of a group that are committed if the transaction is. Whoever names a member is one, in
//! its generation or epoch, when they come (KIP-447); they are noted with a compare of the group's
//! key. From version 5 on they begin the transaction if need be (KIP-890); before that the group
//! was announced with AddOffsetsToTxn. Of a partition that is named twice the last commit counts.
//!
//! Differences: one transaction has at most 512 KiB of them for a group, in at most 100 keys of
//! offsets, else INVALID_COMMIT_OFFSET_SIZE.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use kafka_protocol::messages::{TxnOffsetCommitRequest, TxnOffsetCommitResponse};
use strandline_metadata::values::group::CommittedOffset;
use uuid::Uuid;

use super::Call;
use crate::group::classic::session::Identity;
use crate::group::command::Command;
use crate::group::offsets::Commit;
use crate::limits::UNITS_PER_COMMIT;
use crate::topics;
use crate::transactions::{self, AddOffsetsError, ProducerEpoch};

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=5;

/// How often a group is asked again that changes while offsets are noted.
const GROUP_CHECKS: usize = 5;

/// From this version on nobody has to announce the group.
const BEGINS: i16 = 5;

pub(super) async fn handle(call: &Call, request: TxnOffsetCommitRequest) -> TxnOffsetCommitResponse {
    learn_topics(call, &request.topics).await;
    let mut last = BTreeMap::new();
    let mut answered = Vec::with_capacity(request.topics.len());
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
                TxnOffsetCommitResponsePartition::default().with_partition_index(partition.partition_index);
            partitions.push(match check(call, known, partition) {
                Ok((topic_id, index, committed)) => {
                    last.insert((name.clone(), index), (topic_id, committed));
                    answer
                }
                Err(code) => answer.with_error_code(code.code()),
            });
        }
        answered.push(
            TxnOffsetCommitResponseTopic::default().with_name(topic.name.clone()).with_partitions(partitions),
        );
    }
    let commit =
        |((topic, partition), (topic_id, committed))| Commit { topic, topic_id, partition, committed };
    let commits: Vec<Commit> = last.into_iter().map(commit).collect();
    if let Err(code) = note(call, &request, &commits).await {
        for partition in answered.iter_mut().flat_map(|t| &mut t.partitions).filter(|p| p.error_code == 0) {
            partition.error_code = code.code();
        }
    }
    TxnOffsetCommitResponse::default().with_topics(answered)
}

async fn note(
    call: &Call,
    request: &TxnOffsetCommitRequest,
    commits: &[Commit],
) -> Result<(), ResponseError> {
    let identity = Identity::new(&request.member_id, request.group_instance_id.as_ref());
    let producer = ProducerEpoch { id: *request.producer_id, epoch: request.producer_epoch };
    let transaction = (&**request.transactional_id, producer);
    for _ in 0..GROUP_CHECKS {
        let (identity, generation) = (identity.clone(), request.generation_id);
        let command = |reply| Command::CheckCommit { identity, generation, reply };
        let checked = call.broker.groups.ask(&request.group_id, command).await;
        let group = (&**request.group_id, checked.map_err(|error| error.code())?);
        if commits.is_empty() {
            return Ok(());
        }
        let begins = call.version >= BEGINS;
        match transactions::add_offsets(&call.broker, transaction, group, commits, begins).await {
            // It may still have this member, in this generation.
            Err(AddOffsetsError::GroupChanged) => {}
            Err(AddOffsetsError::Refused(code)) => return Err(code),
            Ok(()) => return Ok(()),
        }
    }
    Err(ResponseError::RebalanceInProgress)
}

/// Passes the barrier if a topic is not known here: it may have been created a moment ago.
async fn learn_topics(call: &Call, asked: &[TxnOffsetCommitRequestTopic]) {
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
    asked: &TxnOffsetCommitRequestPartition,
) -> Result<(Uuid, u32, CommittedOffset), ResponseError> {
    let metadata = asked.committed_metadata.as_deref().unwrap_or_default();
    if metadata.len() > call.broker.config.groups.offset_metadata_max_bytes {
        return Err(ResponseError::OffsetMetadataTooLarge);
    }
    let (topic_id, partitions) = known.ok_or(ResponseError::UnknownTopicOrPartition)?;
    let index = u32::try_from(asked.partition_index).ok().filter(|index| *index < partitions);
    let index = index.ok_or(ResponseError::UnknownTopicOrPartition)?;
    let committed = CommittedOffset {
        offset: asked.committed_offset,
        leader_epoch: if call.version >= 2 { asked.committed_leader_epoch } else { -1 },
        time_ms: call.broker.clock.now_ms(),
        metadata: metadata.to_owned(),
        expires_ms: None,
        after: call.broker.replica.read(|view| view.revision),
    };
    Ok((topic_id, index, committed))
}
