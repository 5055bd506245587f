//! What a group can be asked, and where the answer goes.

use std::collections::BTreeSet;

use kafka_protocol::messages::consumer_group_describe_response;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::{
    ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, HeartbeatRequest, JoinGroupRequest,
    JoinGroupResponse, SyncGroupRequest, SyncGroupResponse,
};
use tokio::sync::oneshot;

use super::classic::Described;
use super::classic::session::Identity;
use super::offsets::Commit;
use super::{GroupError, Sender};

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, GroupError>>;

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

/// What became of each partition of a commit: whether it was taken.
pub(crate) type RefusedPartitions = BTreeSet<(String, u32)>;

/// What a group can be asked.
#[derive(Debug)]
pub(crate) enum Command {
    Join {
        request: Box<JoinGroupRequest>,
        version: i16,
        sender: Sender,
        reply: Reply<JoinGroupResponse>,
    },
    Sync(Box<SyncGroupRequest>, Reply<SyncGroupResponse>),
    Heartbeat(Box<HeartbeatRequest>, Reply<()>),
    Leave {
        members: Vec<MemberIdentity>,
        reply: Reply<Vec<MemberResponse>>,
    },
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
    DeleteOffsets {
        partitions: Vec<(String, u32)>,
        reply: Reply<RefusedPartitions>,
    },
    Describe(Reply<Described>),
    ConsumerDescribe(i16, Reply<consumer_group_describe_response::DescribedGroup>),
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
            | Self::DeleteOffsets { .. }
            | Self::Describe(_)
            | Self::Delete(_)
            | Self::Sweep => true,
            Self::Join { .. }
            | Self::Sync(..)
            | Self::Heartbeat(..)
            | Self::Leave { .. }
            | Self::ConsumerHeartbeat { .. }
            | Self::ConsumerDescribe(..) => false,
        }
    }

    /// Answers with an error.
    pub(crate) fn refuse(self, error: GroupError) {
        // Whoever stopped waiting does not need the answer.
        match self {
            Self::Join { reply, .. } => drop(reply.send(Err(error))),
            Self::Sync(_, reply) => drop(reply.send(Err(error))),
            Self::Heartbeat(_, reply) | Self::Delete(reply) => drop(reply.send(Err(error))),
            Self::Leave { reply, .. } => drop(reply.send(Err(error))),
            Self::ConsumerHeartbeat { reply, .. } => drop(reply.send(Err(error))),
            Self::Commit(_, reply) | Self::DeleteOffsets { reply, .. } => drop(reply.send(Err(error))),
            Self::FetchOffsets(_, reply) => drop(reply.send(Err(error))),
            Self::Describe(reply) => drop(reply.send(Err(error))),
            Self::ConsumerDescribe(_, reply) => drop(reply.send(Err(error))),
            Self::Sweep => {}
        }
    }
}
