//! What a group can be asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kafka_protocol::messages::consumer_group_describe_response::DescribedGroup as DescribedConsumerGroup;
use kafka_protocol::messages::describe_groups_response::DescribedGroup;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::{
    ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, JoinGroupResponse, SyncGroupResponse,
};

use super::Sender;
use super::classic::join::Join;
use super::classic::session::{Identity, Sync};
use super::error::{CoordinatorError, GroupError};
use super::offsets::{Commit, CommitRefusal, SharedOffsets};
use super::reply::Reply;

/// Partitions, by topic, for which a group did not do what was asked.
pub(crate) type RefusedPartitions = BTreeSet<(String, u32)>;

/// Partitions, by topic, for which a group did not take a commit, and why.
pub(crate) type RefusedCommits = BTreeMap<(String, u32), CommitRefusal>;

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
    /// A commit by a member, or by somebody outside of the group. Answers with the partitions for
    /// which it was not taken.
    Commit {
        identity: Identity,
        /// Generation, or member epoch; negative for none.
        generation: i32,
        version: i16,
        commits: Vec<Commit>,
        reply: Reply<RefusedCommits>,
    },
    /// Whether somebody may commit in a transaction. Answers with the mod revision of the group's
    /// key, 0 if it has none: whoever notes the offsets compares it.
    CheckCommit {
        identity: Identity,
        generation: i32,
        reply: Reply<i64>,
    },
    /// A question for what is committed. A member of a group of the new protocol names itself and
    /// its epoch.
    FetchOffsets(Option<(String, i32)>, Reply<Arc<SharedOffsets>>),
    /// Answers with the partitions that the group reads now, whose offsets stay.
    DeleteOffsets(Vec<(String, u32)>, Reply<RefusedPartitions>),
    Describe(Reply<DescribedGroup>),
    ConsumerDescribe(i16, Reply<DescribedConsumerGroup>),
    Delete(Reply<()>),
    /// Look whether this broker still coordinates the group, and what is due.
    Sweep,
}

impl Command {
    /// Whether it may be asked of the group with the empty id: offsets may be kept under it, but
    /// nobody joins it.
    pub(crate) fn may_be_nameless(&self) -> bool {
        !matches!(
            self,
            Self::Join(..)
                | Self::Sync(..)
                | Self::Heartbeat { .. }
                | Self::Leave(..)
                | Self::ConsumerHeartbeat { .. }
                | Self::ConsumerDescribe(..)
        )
    }

    /// Answers with an error.
    pub(super) fn refuse(self, error: CoordinatorError) {
        match self {
            Self::Join(_, reply) => reply.refuse(error),
            Self::Sync(_, reply) => reply.refuse(error),
            Self::Heartbeat { reply, .. } | Self::Delete(reply) => reply.refuse(error),
            Self::Leave(_, reply) => reply.refuse(error),
            Self::ConsumerHeartbeat { reply, .. } => reply.refuse(error),
            Self::Commit { reply, .. } => reply.refuse(error),
            Self::CheckCommit { reply, .. } => reply.refuse(error),
            Self::DeleteOffsets(_, reply) => reply.refuse(error),
            Self::FetchOffsets(_, reply) => reply.refuse(error),
            Self::Describe(reply) => reply.refuse(error),
            Self::ConsumerDescribe(_, reply) => reply.refuse(error),
            Self::Sweep => {}
        }
    }
}
