//! What a group can be asked.

use std::collections::BTreeSet;

use kafka_protocol::messages::consumer_group_describe_response::DescribedGroup;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::{
    ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, JoinGroupResponse, SyncGroupResponse,
};

use super::Sender;
use super::classic::Described;
use super::classic::join::Join;
use super::classic::session::{Identity, Sync};
use super::error::{CoordinatorError, GroupError};
use super::offsets::Commit;
use super::reply::Reply;

/// A commit of offsets, by a member or by somebody outside of the group.
#[derive(Debug)]
pub(crate) struct CommitOffsets {
    pub(crate) identity: Identity,
    /// Generation, or member epoch; negative for none.
    pub(crate) generation: i32,
    /// Version of the request.
    pub(crate) version: i16,
    pub(crate) commits: Vec<Commit>,
}

/// A question for committed offsets.
#[derive(Debug)]
pub(crate) struct FetchOffsets {
    /// Who asks, if it is a member of a group of the new protocol.
    pub(crate) member: Option<(String, i32)>,
    pub(crate) wanted: OffsetSelection,
}

/// Which offsets are wanted.
#[derive(Debug)]
pub(crate) enum OffsetSelection {
    All,
    /// Of these partitions, by topic.
    These(Vec<(String, Vec<u32>)>),
}

/// A committed offset, for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FetchedOffset {
    pub(crate) topic: String,
    pub(crate) partition: u32,
    pub(crate) offset: i64,
    pub(crate) leader_epoch: i32,
    pub(crate) metadata: String,
}

/// Partitions, by topic, for which a group did not do what was asked.
pub(crate) type RefusedPartitions = BTreeSet<(String, u32)>;

/// What a group can be asked.
#[derive(Debug)]
pub(crate) enum Command {
    Join(Box<Join>, Reply<JoinGroupResponse>),
    Sync(Box<Sync>, Reply<SyncGroupResponse>),
    Heartbeat {
        identity: Identity,
        generation: i32,
        reply: Reply<()>,
    },
    /// Answers for each member whether it is gone.
    Leave(Vec<MemberIdentity>, Reply<Vec<Result<(), GroupError>>>),
    ConsumerHeartbeat {
        request: Box<ConsumerGroupHeartbeatRequest>,
        version: i16,
        sender: Sender,
        reply: Reply<ConsumerGroupHeartbeatResponse>,
    },
    /// Answers with the partitions whose metadata did not fit.
    Commit(CommitOffsets, Reply<RefusedPartitions>),
    FetchOffsets(FetchOffsets, Reply<Vec<FetchedOffset>>),
    /// Answers with the partitions that the group reads now, whose offsets stay.
    DeleteOffsets(Vec<(String, u32)>, Reply<RefusedPartitions>),
    Describe(Reply<Described>),
    ConsumerDescribe(i16, Reply<DescribedGroup>),
    Delete(Reply<()>),
    /// Look whether this broker still coordinates the group, and what is due.
    Sweep,
}

impl Command {
    /// Whether it may be asked of the group with the empty id: offsets may be kept under it, but nobody joins it.
    pub(crate) fn may_be_nameless(&self) -> bool {
        match self {
            Self::Commit(..)
            | Self::FetchOffsets(..)
            | Self::DeleteOffsets(..)
            | Self::Describe(_)
            | Self::Delete(_)
            | Self::Sweep => true,
            Self::Join(..)
            | Self::Sync(..)
            | Self::Heartbeat { .. }
            | Self::Leave(..)
            | Self::ConsumerHeartbeat { .. }
            | Self::ConsumerDescribe(..) => false,
        }
    }

    /// Answers with an error.
    pub(super) fn refuse(self, error: CoordinatorError) {
        match self {
            Self::Join(_, reply) => reply.refuse(error),
            Self::Sync(_, reply) => reply.refuse(error),
            Self::Heartbeat { reply, .. } | Self::Delete(reply) => reply.refuse(error),
            Self::Leave(_, reply) => reply.refuse(error),
            Self::ConsumerHeartbeat { reply, .. } => reply.refuse(error),
            Self::Commit(_, reply) | Self::DeleteOffsets(_, reply) => reply.refuse(error),
            Self::FetchOffsets(_, reply) => reply.refuse(error),
            Self::Describe(reply) => reply.refuse(error),
            Self::ConsumerDescribe(_, reply) => reply.refuse(error),
            Self::Sweep => {}
        }
    }
}
