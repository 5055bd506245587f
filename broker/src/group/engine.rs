//! The protocol that a group speaks, whichever it is.

use kafka_protocol::error::ResponseError;
use strandline_metadata::values::group::GroupState;
use tokio::time::Instant;

use super::classic::session::Identity;
use super::classic::{self, ClassicGroup, Described};
use super::consumer::ConsumerGroup;
use super::{Context, GroupError};

/// Whether a topic is read.
pub(super) type Reads<'a> = Box<dyn Fn(&str) -> bool + 'a>;

/// A group by its protocol.
#[derive(Debug)]
pub(super) enum Engine {
    /// Nobody was ever in it: at most, offsets were committed for it.
    None,
    Classic(ClassicGroup),
    Consumer(ConsumerGroup),
}

impl Engine {
    /// A group as another coordinator left it.
    pub(super) fn from_stored(stored: Option<&GroupState>, ctx: &Context<'_>) -> Self {
        match stored {
            None => Self::None,
            Some(GroupState::Classic(value)) => {
                let mut group = ClassicGroup::from_value(value, ctx.now);
                // Nobody leads a group that has just come back from the new protocol and must agree anew.
                if value.leader.is_none() && !value.members.is_empty() {
                    group.rebalance_after_downgrade(ctx);
                }
                Self::Classic(group)
            }
            Some(GroupState::Consumer(value)) => {
                Self::Consumer(ConsumerGroup::from_value(value.clone(), ctx))
            }
        }
    }

    /// What is to be stored.
    pub(super) fn to_stored(&self) -> Option<GroupState> {
        match self {
            Self::None => None,
            Self::Classic(group) => Some(GroupState::Classic(group.value())),
            Self::Consumer(group) => Some(GroupState::Consumer(group.value().clone())),
        }
    }

    pub(super) fn take_changed(&mut self) -> bool {
        match self {
            Self::None => false,
            Self::Classic(group) => group.take_changed(),
            Self::Consumer(group) => group.take_changed(),
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        match self {
            Self::None => None,
            Self::Classic(group) => group.next_deadline(),
            Self::Consumer(group) => group.next_deadline(),
        }
    }

    /// Whether it has no members.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::None => true,
            Self::Classic(group) => group.is_empty(),
            Self::Consumer(group) => group.is_empty(),
        }
    }

    pub(super) fn member_count(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Classic(group) => group.member_count(),
            Self::Consumer(group) => group.value().members.len(),
        }
    }

    /// Kafka's name for the state.
    pub(super) fn state(&self) -> &'static str {
        match self {
            Self::None => "Empty",
            Self::Classic(group) => group.state(),
            Self::Consumer(group) => group.state().name(),
        }
    }

    /// Kafka's name for the type.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::None | Self::Classic(_) => "classic",
            Self::Consumer(_) => "consumer",
        }
    }

    pub(super) fn protocol_type(&self) -> &str {
        match self {
            Self::None => "",
            Self::Classic(group) => group.protocol_type(),
            Self::Consumer(_) => classic::CONSUMER,
        }
    }

    /// Which topics the members read; `None` if that is not known.
    pub(super) fn reads(&self) -> Option<Reads<'_>> {
        match self {
            Self::None => Some(Box::new(|_| false)),
            Self::Classic(group) => {
                let topics = group.subscribed_topics()?;
                Some(Box::new(move |topic| topics.contains(topic)))
            }
            Self::Consumer(group) => Some(Box::new(|topic| group.is_subscribed_to(topic))),
        }
    }

    /// Whether an offset may be committed in this member's name.
    pub(super) fn check_commit(
        &self,
        identity: &Identity,
        generation: i32,
        version: i16,
    ) -> Result<(), GroupError> {
        let instance_id = identity.instance_id.as_deref();
        match self {
            Self::None if generation < 0 => Ok(()),
            Self::None => {
                let why = "the group has no members, so it has no generation";
                Err(GroupError::new(ResponseError::IllegalGeneration, why))
            }
            Self::Classic(group) => group.check_commit(&identity.member_id, instance_id, generation),
            Self::Consumer(group) => {
                group.validate_offset_commit(&identity.member_id, generation, Some(version))
            }
        }
    }

    /// A group of the classic protocol, as DescribeGroups shows it.
    pub(super) fn describe(&self) -> Result<Described, GroupError> {
        match self {
            Self::None => Ok(Described { state: "Empty", ..Described::default() }),
            Self::Classic(group) => Ok(group.describe()),
            Self::Consumer(_) => {
                let why = "the group is of another type; ask with ConsumerGroupDescribe";
                Err(GroupError::new(ResponseError::GroupIdNotFound, why))
            }
        }
    }
}
