//! The engine of a group, whichever protocol it speaks: takes requests in, changes from one
//! protocol to the other, and says what came of it. Pure: nothing is stored or sent here.

use kafka_protocol::messages::consumer_group_describe_response::DescribedGroup as DescribedConsumerGroup;
use kafka_protocol::messages::describe_groups_response::DescribedGroup;
use kafka_protocol::messages::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse};
use strandline_metadata::values::group::GroupState;
use tokio::time::Instant;

use super::classic::join::Join;
use super::classic::session::{Identity, Sync};
use super::classic::{self, Answer, ClassicGroup};
use super::consumer::{ConsumerGroup, ExpiredBy};
use super::error::{CommitError, ConsumerHeartbeatError, DescribeError, HeartbeatError, MemberError};
use super::status::GroupStatus;
use super::{Context, Sender, Ticket, Topics};

/// From this version of OffsetCommit on, a client knows that a group may be missing.
const NOT_FOUND_VERSION: i16 = 9;

/// Whether a topic is read.
pub(super) type Reads<'a> = Box<dyn Fn(&str) -> bool + 'a>;

/// A group by its protocol, and what its steps have brought about since that was last taken.
#[derive(Debug)]
pub(super) struct Engine {
    protocol: Protocol,
    effects: Effects,
}

#[derive(Debug)]
enum Protocol {
    /// Also a group that nobody was ever in: at most, offsets were committed for it.
    Classic(ClassicGroup),
    Consumer(ConsumerGroup),
}

/// What steps have brought about.
#[derive(Debug, Default)]
#[must_use]
pub(super) struct Effects {
    /// Whether something changed that must be stored before anybody is told.
    pub(super) changed: bool,
    /// Answers to requests that were given tickets.
    pub(super) answers: Vec<(Ticket, Answer)>,
    pub(super) events: Vec<Event>,
}

/// What is logged and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A rebalance began, for this reason.
    Rebalance(&'static str),
    /// So many members were given up.
    Expired(usize),
    /// The group changed to the new protocol with its members.
    Upgraded,
    /// The group changed to the classic protocol with its members.
    Downgraded,
}

impl Engine {
    /// A group as another coordinator left it.
    pub(super) fn from_stored(stored: Option<&GroupState>, ctx: &Context<'_>) -> Self {
        let protocol = match stored {
            None => Protocol::Classic(ClassicGroup::new()),
            Some(GroupState::Classic(value)) => {
                let mut group = ClassicGroup::from_value(value, ctx.now);
                // Nobody leads a group that has just come back from the new protocol and must agree
                // anew.
                if value.leader.is_none() && !value.members.is_empty() {
                    group.rebalance_after_downgrade(ctx);
                }
                Protocol::Classic(group)
            }
            Some(GroupState::Consumer(value)) => {
                Protocol::Consumer(ConsumerGroup::from_value(value.clone(), ctx))
            }
        };
        let mut engine = Self { protocol, effects: Effects::default() };
        engine.collect();
        engine
    }

    /// What is to be stored.
    pub(super) fn to_stored(&self) -> Option<GroupState> {
        match &self.protocol {
            Protocol::Classic(group) if group.is_unborn() => None,
            Protocol::Classic(group) => Some(GroupState::Classic(group.value())),
            Protocol::Consumer(group) => Some(GroupState::Consumer(group.value().clone())),
        }
    }

    /// What the steps since the last call have brought about.
    pub(super) fn take_effects(&mut self) -> Effects {
        std::mem::take(&mut self.effects)
    }

    /// Lets the group do something, then does what follows from it. `act` also says what a
    /// rebalance of a group of the new protocol is due to.
    fn step<R>(
        &mut self,
        ctx: &Context<'_>,
        act: impl FnOnce(&mut Protocol, &mut Effects) -> (&'static str, R),
    ) -> R {
        let before = self.epoch();
        let (reason, outcome) = act(&mut self.protocol, &mut self.effects);
        self.downgrade(ctx);
        if self.epoch() > before {
            self.effects.events.push(Event::Rebalance(reason));
        }
        self.collect();
        outcome
    }

    /// Group epoch of a group of the new protocol; 0 for others.
    fn epoch(&self) -> i32 {
        match &self.protocol {
            Protocol::Consumer(group) => group.value().epoch,
            Protocol::Classic(_) => 0,
        }
    }

    fn collect(&mut self) {
        let Effects { changed, answers, events } = &mut self.effects;
        match &mut self.protocol {
            Protocol::Classic(group) => {
                *changed |= group.take_changed();
                answers.append(&mut group.take_answers());
                events.extend(group.take_rebalances().into_iter().map(Event::Rebalance));
            }
            Protocol::Consumer(group) => *changed |= group.take_changed(),
        }
    }

    /// Makes a group of the new protocol a classic one when nobody is left who speaks the new one.
    fn downgrade(&mut self, ctx: &Context<'_>) {
        let Protocol::Consumer(group) = &self.protocol else { return };
        let Some(downgraded) = group.to_classic(ctx) else { return };
        let mut group = ClassicGroup::from_value(&downgraded.group, ctx.now);
        if downgraded.rebalance {
            group.rebalance_after_downgrade(ctx);
        }
        self.protocol = Protocol::Classic(group);
        self.effects.changed = true;
        self.effects.events.push(Event::Downgraded);
    }

    /// Takes a JoinGroup in. It is answered through its ticket.
    pub(super) fn join(&mut self, ticket: Ticket, join: Join, ctx: &Context<'_>) {
        self.step(ctx, |protocol, effects| {
            match protocol {
                Protocol::Classic(group) => group.join(ticket, join, ctx),
                Protocol::Consumer(group) if !group.is_empty() => {
                    effects.answers.push((ticket, Answer::Join(group.join(join, ctx))));
                }
                // Nobody is there, so nobody speaks the new protocol. The group is what it was if
                // the member is refused.
                Protocol::Consumer(_) => {
                    let mut group = ClassicGroup::new();
                    group.join(ticket, join, ctx);
                    if group.is_empty() {
                        effects.answers.append(&mut group.take_answers());
                    } else {
                        *protocol = Protocol::Classic(group);
                    }
                }
            }
            ("member_joined", ())
        });
    }

    /// Takes a SyncGroup in. It is answered through its ticket.
    pub(super) fn sync(&mut self, ticket: Ticket, sync: Sync, ctx: &Context<'_>) {
        self.step(ctx, |protocol, effects| {
            let answer = match protocol {
                Protocol::Classic(group) => return ("", group.sync(ticket, sync, ctx)),
                Protocol::Consumer(group) => group.sync(sync, ctx),
            };
            effects.answers.push((ticket, Answer::Sync(answer)));
            ("", ())
        });
    }

    /// A sign of life of a member of the classic protocol.
    pub(super) fn heartbeat(
        &mut self,
        identity: &Identity,
        generation: i32,
        ctx: &Context<'_>,
    ) -> Result<(), HeartbeatError> {
        match &mut self.protocol {
            Protocol::Classic(group) => group.heartbeat(identity, generation, ctx.now),
            Protocol::Consumer(group) => group.classic_heartbeat(identity, generation, ctx),
        }
    }

    /// Takes members out, and says for each whether it is gone.
    pub(super) fn leave(&mut self, members: &[Identity], ctx: &Context<'_>) -> Vec<Result<(), MemberError>> {
        self.step(ctx, |protocol, _| {
            let left = match protocol {
                Protocol::Classic(group) => members.iter().map(|member| group.leave(member, ctx)).collect(),
                Protocol::Consumer(group) => group.leave(members, ctx),
            };
            ("member_left", left)
        })
    }

    /// A heartbeat of a member of the new protocol, which may have a classic group converted
    /// (KIP-848, online migration).
    pub(super) fn consumer_heartbeat(
        &mut self,
        request: &ConsumerGroupHeartbeatRequest,
        version: i16,
        sender: &Sender,
        ctx: &Context<'_>,
    ) -> Result<ConsumerGroupHeartbeatResponse, ConsumerHeartbeatError> {
        let reason = match request.member_epoch {
            0 => "member_joined",
            ..0 => "member_left",
            _ => "subscription_changed",
        };
        self.step(ctx, |protocol, effects| {
            let answer = match protocol {
                Protocol::Consumer(group) => group.heartbeat(request, version, sender, ctx),
                Protocol::Classic(_) if request.member_epoch == 0 => {
                    upgrade(protocol, effects, ctx, |group| group.heartbeat(request, version, sender, ctx))
                }
                Protocol::Classic(group) if group.is_unborn() => Err(ConsumerHeartbeatError::NotFound),
                Protocol::Classic(_) => Err(ConsumerHeartbeatError::Classic),
            };
            (reason, answer)
        })
    }

    /// Topics were created, deleted, or given more partitions.
    pub(super) fn topics_changed(&mut self, ctx: &Context<'_>) {
        self.step(ctx, |protocol, _| {
            if let Protocol::Consumer(group) = protocol {
                group.topics_changed(ctx);
            }
            ("topics_changed", ())
        });
    }

    /// Whether [`Self::topics_changed`] is to be called again although no topic has changed.
    pub(super) fn awaits_patterns(&self) -> bool {
        matches!(&self.protocol, Protocol::Consumer(group) if group.awaits_patterns())
    }

    /// When [`Self::expire`] is to be called.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        match &self.protocol {
            Protocol::Classic(group) => group.next_deadline(),
            Protocol::Consumer(group) => group.next_deadline(),
        }
    }

    /// Does what is due.
    pub(super) fn expire(&mut self, ctx: &Context<'_>) {
        self.step(ctx, |protocol, effects| {
            let (reason, expired) = match protocol {
                Protocol::Classic(group) => ("", group.expire(ctx)),
                Protocol::Consumer(group) => {
                    let expired = group.expire(ctx);
                    let slow = expired.iter().any(|(_, by)| *by == ExpiredBy::RebalanceTimeout);
                    (if slow { "rebalance_timeout" } else { "session_expired" }, expired.len())
                }
            };
            if expired > 0 {
                effects.events.push(Event::Expired(expired));
            }
            (reason, ())
        });
    }

    /// Forgets the group.
    pub(super) fn clear(&mut self) {
        self.protocol = Protocol::Classic(ClassicGroup::new());
        self.effects.changed = true;
    }

    /// Whether it has no members.
    pub(super) fn is_empty(&self) -> bool {
        match &self.protocol {
            Protocol::Classic(group) => group.is_empty(),
            Protocol::Consumer(group) => group.is_empty(),
        }
    }

    /// Kafka's name for the state.
    pub(super) fn state(&self) -> &'static str {
        match &self.protocol {
            Protocol::Classic(group) => group.state(),
            Protocol::Consumer(group) => group.state(),
        }
    }

    /// Shows what the group is.
    pub(super) fn show(&self, status: &mut GroupStatus) {
        let (kind, protocol_type, members) = match &self.protocol {
            Protocol::Classic(group) => ("classic", group.protocol_type(), group.member_count()),
            Protocol::Consumer(group) => ("consumer", classic::CONSUMER, group.value().members.len()),
        };
        (status.state, status.kind, status.members) = (self.state(), kind, members);
        protocol_type.clone_into(&mut status.protocol_type);
    }

    /// Which topics the members read; `None` if that is not known.
    pub(super) fn reads(&self) -> Option<Reads<'_>> {
        match &self.protocol {
            Protocol::Classic(group) if group.is_empty() => Some(Box::new(|_| false)),
            Protocol::Classic(group) => {
                let topics = group.subscribed_topics()?;
                Some(Box::new(move |topic| topics.contains(topic)))
            }
            Protocol::Consumer(group) => Some(Box::new(|topic| group.is_subscribed_to(topic))),
        }
    }

    /// Whether offsets may be committed in a transaction (KIP-447). Whoever names no member need
    /// not be one, as in old versions of the protocol. If one does, it is a sign of life.
    pub(super) fn check_transaction(
        &mut self,
        identity: &Identity,
        generation: i32,
        now: Instant,
    ) -> Result<(), CommitError> {
        if generation < 0 && *identity == Identity::default() {
            return Ok(());
        }
        match &mut self.protocol {
            Protocol::Classic(group) if generation >= 0 && group.is_unborn() => {
                Err(CommitError::NoGeneration)
            }
            Protocol::Classic(group) => {
                match group.check_commit(identity, generation) {
                    // What a member has read before the rebalance it may still commit.
                    Ok(()) | Err(CommitError::NotAssigned) => {}
                    Err(error) => return Err(error),
                }
                group.committed(&identity.member_id, now);
                Ok(())
            }
            Protocol::Consumer(group) => group.validate_offset_commit(&identity.member_id, generation, None),
        }
    }

    /// Whether offsets may be committed in this member's name. If so, it is a sign of life.
    pub(super) fn commit(
        &mut self,
        identity: &Identity,
        generation: i32,
        version: i16,
        now: Instant,
    ) -> Result<(), CommitError> {
        match &mut self.protocol {
            Protocol::Classic(group) if generation >= 0 && group.is_unborn() => match version {
                NOT_FOUND_VERSION.. => Err(CommitError::NotFound),
                _ => Err(CommitError::NoGeneration),
            },
            Protocol::Classic(group) => {
                group.check_commit(identity, generation)?;
                group.committed(&identity.member_id, now);
                Ok(())
            }
            Protocol::Consumer(group) => {
                group.validate_offset_commit(&identity.member_id, generation, Some(version))
            }
        }
    }

    /// Whether a member may read offsets. Whoever names none may.
    pub(super) fn check_fetch(&self, member: Option<&(String, i32)>) -> Result<(), MemberError> {
        match (&self.protocol, member) {
            (Protocol::Consumer(group), Some((id, epoch))) => group.validate_epoch(id, *epoch),
            (Protocol::Classic(_), _) | (_, None) => Ok(()),
        }
    }

    /// A group of the classic protocol, as DescribeGroups shows it.
    pub(super) fn describe(&self) -> Result<DescribedGroup, DescribeError> {
        match &self.protocol {
            Protocol::Classic(group) => Ok(group.describe()),
            Protocol::Consumer(_) => Err(DescribeError::OtherType),
        }
    }

    /// A group of the new protocol, as ConsumerGroupDescribe shows it.
    pub(super) fn describe_consumer(
        &self,
        version: i16,
        topics: &dyn Topics,
    ) -> Result<DescribedConsumerGroup, DescribeError> {
        match &self.protocol {
            Protocol::Classic(_) => Err(DescribeError::NotFound),
            Protocol::Consumer(group) => Ok(group.describe(version, topics)),
        }
    }
}

/// Makes the group one of the new protocol, with the members that it has, if that takes the
/// request. Who waits in the old one asks again.
fn upgrade<R>(
    protocol: &mut Protocol,
    effects: &mut Effects,
    ctx: &Context<'_>,
    join: impl FnOnce(&mut ConsumerGroup) -> Result<R, ConsumerHeartbeatError>,
) -> Result<R, ConsumerHeartbeatError> {
    let mut group = match protocol {
        Protocol::Classic(classic) => ConsumerGroup::from_classic(&classic.value(), ctx)?,
        Protocol::Consumer(_) => ConsumerGroup::new(),
    };
    let answer = join(&mut group)?;
    if let Protocol::Classic(classic) = protocol
        && !classic.is_empty()
    {
        classic.refuse_waiting();
        effects.answers.append(&mut classic.take_answers());
        effects.events.push(Event::Upgraded);
    }
    *protocol = Protocol::Consumer(group);
    effects.changed = true;
    Ok(answer)
}
