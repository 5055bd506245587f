//! Why groups refuse: one enum for each operation, and the one place that gives every refusal its
//! Kafka code.

use kafka_protocol::error::ResponseError as Code;
use strandline_metadata::backend::BackendError;
use strandline_metadata::groups::GroupWriteError;

use crate::group_config::GroupIdError;
use crate::limits::{GROUP_PATTERNS, MEMBER_PROTOCOLS};

/// A refusal of any operation. OffsetFetch and LeaveGroup are refused for what concerns the member
/// alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GroupError {
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
    #[error(transparent)]
    Member(#[from] MemberError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Sync(#[from] SyncError),
    #[error(transparent)]
    Heartbeat(#[from] HeartbeatError),
    #[error(transparent)]
    ConsumerHeartbeat(#[from] ConsumerHeartbeatError),
    #[error(transparent)]
    Commit(#[from] CommitError),
    #[error(transparent)]
    Delete(#[from] DeleteError),
    #[error(transparent)]
    Describe(#[from] DescribeError),
}

/// Why the coordinator answers nothing, whatever it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CoordinatorError {
    #[error(transparent)]
    InvalidId(#[from] GroupIdError),
    #[error("another broker coordinates the group")]
    NotCoordinator,
    #[error("the group is moving to another coordinator")]
    Moving,
    #[error("this broker stopped coordinating the group")]
    Unanswered,
    #[error("this broker has reached its limit of groups (max_groups)")]
    TooManyGroups,
    #[error("etcd is nearly full: there are no new groups")]
    NoRoom,
    #[error("the metadata store does not answer")]
    NoAnswer,
    #[error("the outcome of a write is not known yet")]
    UnknownOutcome,
    #[error("the stored group cannot be read")]
    Unreadable,
    #[error("the group is too large: {0}")]
    TooLarge(String),
    #[error(transparent)]
    Write(GroupWriteError),
}

impl From<GroupWriteError> for CoordinatorError {
    fn from(error: GroupWriteError) -> Self {
        match error {
            GroupWriteError::Backend(BackendError::TooLarge(why)) => Self::TooLarge(why),
            error => Self::Write(error),
        }
    }
}

/// Why a request does not speak for a member of the group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MemberError {
    #[error("{0:?} is not a member of the group.")]
    Unknown(String),
    #[error("The instance id {0:?} is not known.")]
    UnknownInstance(String),
    #[error("The instance id {instance:?} belongs to {owner:?} now, no longer to {member:?}.")]
    Fenced { instance: String, owner: String, member: String },
    #[error("{0:?} does not speak the classic protocol.")]
    NotClassic(String),
    #[error("The member is at generation {named}; the group is at {current}.")]
    Generation { named: i32, current: i32 },
    #[error("The member is at epoch {named}; the group expects {current}.")]
    StaleEpoch { named: i32, current: i32 },
}

impl MemberError {
    /// `member` is not, or no longer, who goes by the instance id.
    pub(super) fn fenced(instance: &str, owner: &str, member: &str) -> Self {
        let [instance, owner, member] = [instance, owner, member].map(str::to_owned);
        Self::Fenced { instance, owner, member }
    }
}

/// A group has as many members as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The group has {0} members and may not have more.")]
pub(crate) struct GroupFull(pub(crate) usize);

/// A member says more than a group keeps of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The {what} has {bytes} bytes; the limit is {most}.")]
pub(crate) struct TextTooLong {
    pub(super) what: &'static str,
    pub(super) bytes: usize,
    pub(super) most: usize,
}

/// Why JoinGroup is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JoinError {
    #[error(transparent)]
    Member(#[from] MemberError),
    #[error(transparent)]
    Full(#[from] GroupFull),
    #[error(transparent)]
    TextTooLong(#[from] TextTooLong),
    #[error("a session time-out is between {least} and {most} ms")]
    SessionTimeout { least: i32, most: i32 },
    #[error("a member's metadata has {bytes} bytes; the limit is {most}")]
    MetadataTooLarge { bytes: usize, most: usize },
    #[error("the members' metadata exceeds the size limit of a stored group")]
    GroupTooLarge,
    #[error("a member must name a protocol type and a protocol")]
    NoProtocol,
    #[error("a member names {count} protocols; the limit is {MEMBER_PROTOCOLS}")]
    TooManyProtocols { count: usize },
    #[error("the group has another protocol type")]
    OtherProtocolType,
    #[error("no protocol is common to all members")]
    NoCommonProtocol,
    #[error("the subscription cannot be read")]
    UnreadableSubscription,
    #[error("static members are given no id to come back with")]
    PendingStatic,
    /// With the id to come back with.
    #[error("join again with the member id {0:?}")]
    MemberIdRequired(String),
    #[error("the member has joined again")]
    JoinedAgain,
    #[error("the group changes its protocol")]
    ProtocolChange,
}

/// Why SyncGroup is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SyncError {
    #[error(transparent)]
    Member(#[from] MemberError),
    #[error("the group has agreed on another protocol")]
    OtherProtocol,
    #[error("the group rebalances")]
    Rebalance,
    #[error("the member has asked again")]
    AskedAgain,
    #[error("the group changes its protocol")]
    ProtocolChange,
    #[error("the assignment exceeds the size limit of a stored group")]
    AssignmentTooLarge,
}

/// Why Heartbeat is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeartbeatError {
    #[error(transparent)]
    Member(#[from] MemberError),
    #[error("the group rebalances")]
    Rebalance,
}

/// Why ConsumerGroupHeartbeat is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConsumerHeartbeatError {
    #[error(transparent)]
    Member(#[from] MemberError),
    #[error(transparent)]
    Full(#[from] GroupFull),
    #[error(transparent)]
    TextTooLong(#[from] TextTooLong),
    #[error("The members' subscriptions exceed the size limit of a stored group.")]
    GroupTooLarge,
    #[error("The subscription has {bytes} bytes; the limit is {most}.")]
    SubscriptionTooLarge { bytes: usize, most: usize },
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
    /// A field that must have something in it.
    #[error("{0} can't be empty.")]
    Empty(&'static str),
    #[error("InstanceId can't be null.")]
    NoInstanceId,
    #[error("MemberEpoch is invalid.")]
    InvalidEpoch,
    #[error("RebalanceTimeoutMs must be provided in first request.")]
    NoRebalanceTimeout,
    #[error("TopicPartitions must be empty when (re-)joining.")]
    JoinsWithPartitions,
    #[error("Either SubscribedTopicNames or SubscribedTopicRegex must be non-null when (re-)joining.")]
    NoSubscription,
    #[error("ServerAssignor {name} is not supported. Supported assignors: {known}.")]
    UnsupportedAssignor { name: String, known: String },
    #[error("{0}")]
    InvalidPattern(String),
    #[error("The members of the group have {GROUP_PATTERNS} different patterns and may not have more.")]
    TooManyPatterns,
    #[error(
        "The member is at epoch {named}; the group expects {current}. It must abandon all its partitions and rejoin."
    )]
    FencedEpoch { named: i32, current: i32 },
    #[error("The instance id of {member:?} still belongs to {owner:?}, which must leave first.")]
    UnreleasedInstance { member: String, owner: String },
    #[error("there is no such group")]
    NotFound,
    #[error("the group speaks the classic protocol")]
    Classic,
}

/// Why a classic group with members does not become one of the new protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UpgradeError {
    #[error("the group has members of the classic protocol, and may not be migrated")]
    Disabled,
    #[error("The classic group can't become a consumer group: its members are no consumers.")]
    NotConsumers,
    #[error(
        "The classic group can't become a consumer group: it has more members than a consumer group may have."
    )]
    TooManyMembers,
    #[error("The classic group can't become a consumer group: a subscription can't be read.")]
    UnreadableSubscription,
    #[error("The classic group can't become a consumer group: an assignment can't be read.")]
    UnreadableAssignment,
    #[error(
        "The classic group can't become a consumer group: an assignor is in use that stores data of its own with the assignments."
    )]
    CustomAssignor,
}

/// Why OffsetCommit is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommitError {
    #[error(transparent)]
    Member(#[from] MemberError),
    #[error("the group has members, and only members may commit")]
    OnlyMembers,
    #[error("the group has no members, so it has no generation")]
    NoGeneration,
    #[error("the generation has no assignment yet")]
    NotAssigned,
    #[error("OffsetCommit version {0} or above must be used by members using the modern group protocol")]
    OldVersion(i16),
    #[error("there is no such group")]
    NotFound,
}

/// Why DeleteGroups or OffsetDelete is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DeleteError {
    #[error("there is no such group")]
    NotFound,
    #[error("the group has members")]
    HasMembers,
    #[error("the group has members, and it is not known what they read")]
    UnknownSubscriptions,
}

/// Why DescribeGroups or ConsumerGroupDescribe is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DescribeError {
    #[error("there is no such group")]
    NotFound,
    #[error("the group is of another type; ask with ConsumerGroupDescribe")]
    OtherType,
    #[error("the answer has no room for this group; ask for it again")]
    AnswerFull,
}

impl GroupError {
    /// Kafka's code. Grouped by code; there is no catch-all arm, so that a new refusal must be
    /// given one.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Member(error)
            | Self::Join(JoinError::Member(error))
            | Self::Sync(SyncError::Member(error))
            | Self::Heartbeat(HeartbeatError::Member(error))
            | Self::ConsumerHeartbeat(ConsumerHeartbeatError::Member(error))
            | Self::Commit(CommitError::Member(error)) => error.code(),
            Self::Coordinator(error) => error.code(),

            Self::Join(JoinError::PendingStatic) | Self::Commit(CommitError::OnlyMembers) => {
                Code::UnknownMemberId
            }
            Self::Join(JoinError::MemberIdRequired(_)) => Code::MemberIdRequired,
            Self::Join(JoinError::SessionTimeout { .. }) => Code::InvalidSessionTimeout,
            Self::Join(
                JoinError::Full(_) | JoinError::MetadataTooLarge { .. } | JoinError::GroupTooLarge,
            )
            | Self::Sync(SyncError::AssignmentTooLarge)
            | Self::ConsumerHeartbeat(
                ConsumerHeartbeatError::Full(_)
                | ConsumerHeartbeatError::GroupTooLarge
                | ConsumerHeartbeatError::TooManyPatterns
                | ConsumerHeartbeatError::SubscriptionTooLarge { .. },
            ) => Code::GroupMaxSizeReached,
            Self::Join(
                JoinError::NoProtocol
                | JoinError::TooManyProtocols { .. }
                | JoinError::OtherProtocolType
                | JoinError::NoCommonProtocol
                | JoinError::UnreadableSubscription,
            )
            | Self::Sync(SyncError::OtherProtocol) => Code::InconsistentGroupProtocol,
            Self::Join(JoinError::JoinedAgain | JoinError::ProtocolChange)
            | Self::Sync(SyncError::Rebalance | SyncError::AskedAgain | SyncError::ProtocolChange)
            | Self::Heartbeat(HeartbeatError::Rebalance)
            | Self::Commit(CommitError::NotAssigned) => Code::RebalanceInProgress,
            Self::ConsumerHeartbeat(
                ConsumerHeartbeatError::Empty(_)
                | ConsumerHeartbeatError::NoInstanceId
                | ConsumerHeartbeatError::InvalidEpoch
                | ConsumerHeartbeatError::NoRebalanceTimeout
                | ConsumerHeartbeatError::JoinsWithPartitions
                | ConsumerHeartbeatError::NoSubscription
                | ConsumerHeartbeatError::TextTooLong(_),
            )
            | Self::Join(JoinError::TextTooLong(_)) => Code::InvalidRequest,
            Self::ConsumerHeartbeat(ConsumerHeartbeatError::UnsupportedAssignor { .. }) => {
                Code::UnsupportedAssignor
            }
            Self::ConsumerHeartbeat(ConsumerHeartbeatError::InvalidPattern(_)) => {
                Code::InvalidRegularExpression
            }
            Self::ConsumerHeartbeat(ConsumerHeartbeatError::FencedEpoch { .. }) => Code::FencedMemberEpoch,
            Self::ConsumerHeartbeat(ConsumerHeartbeatError::UnreleasedInstance { .. }) => {
                Code::UnreleasedInstanceId
            }
            Self::Describe(DescribeError::AnswerFull) => Code::CoordinatorLoadInProgress,
            Self::Commit(CommitError::NoGeneration) => Code::IllegalGeneration,
            Self::Commit(CommitError::OldVersion(_)) => Code::UnsupportedVersion,
            Self::Delete(DeleteError::HasMembers | DeleteError::UnknownSubscriptions) => Code::NonEmptyGroup,
            Self::ConsumerHeartbeat(
                ConsumerHeartbeatError::Upgrade(_)
                | ConsumerHeartbeatError::NotFound
                | ConsumerHeartbeatError::Classic,
            )
            | Self::Commit(CommitError::NotFound)
            | Self::Delete(DeleteError::NotFound)
            | Self::Describe(DescribeError::NotFound | DescribeError::OtherType) => Code::GroupIdNotFound,
        }
    }
}

impl CoordinatorError {
    fn code(&self) -> Code {
        match self {
            Self::InvalidId(_) => Code::InvalidGroupId,
            Self::NotCoordinator
            | Self::Moving
            | Self::Unanswered
            | Self::Write(
                GroupWriteError::NotRegistered | GroupWriteError::Conflict | GroupWriteError::Closed,
            ) => Code::NotCoordinator,
            Self::TooManyGroups
            | Self::NoAnswer
            | Self::UnknownOutcome
            | Self::Write(GroupWriteError::Backend(_)) => Code::CoordinatorNotAvailable,
            Self::NoRoom => Code::CoordinatorLoadInProgress,
            Self::Unreadable => Code::UnknownServerError,
            Self::TooLarge(_) => Code::GroupMaxSizeReached,
        }
    }
}

impl MemberError {
    fn code(&self) -> Code {
        match self {
            Self::Unknown(_) | Self::UnknownInstance(_) | Self::NotClassic(_) => Code::UnknownMemberId,
            Self::Fenced { .. } => Code::FencedInstanceId,
            Self::Generation { .. } => Code::IllegalGeneration,
            Self::StaleEpoch { .. } => Code::StaleMemberEpoch,
        }
    }
}
