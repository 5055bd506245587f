//! Members of the classic protocol in a group of KIP-848, which there are while consumers move from
//! one to the other.
//!
//! Such a member sees a classic group that it does not lead and in which no round takes longer than
//! its own requests: all are answered at once. Its generation is its member epoch. A heartbeat that
//! is told of a rebalance stands for "there is a new target"; JoinGroup tells what it reads and
//! takes the step; SyncGroup brings what it may read from now on.

use std::iter;

use kafka_protocol::messages::consumer_group_heartbeat_request::TopicPartitions as Owned;
use kafka_protocol::messages::{JoinGroupResponse, SyncGroupResponse};
use strandline_metadata::values::group::{ClassicInConsumerValue, ConsumerMemberValue, MemberStateValue};

use super::heartbeat::Origin;
use super::migrate::to_classic_assignment;
use super::reconcile::Reported;
use super::{ConsumerGroup, Context};
use crate::group::classic::join::Join;
use crate::group::classic::protocol::{self, Subscription};
use crate::group::classic::session::{Identity, Sync};
use crate::group::classic::{CONSUMER, common_protocols};
use crate::group::error::{HeartbeatError, JoinError, MemberError, SyncError};

impl ConsumerGroup {
    /// Answers a JoinGroup. If the static member that joins was the last one of the new protocol,
    /// [`Self::to_classic`] has the classic group that is left.
    pub(crate) fn join(&mut self, join: Join, ctx: &Context<'_>) -> Result<JoinGroupResponse, JoinError> {
        join.check_session_timeout(ctx)?;
        let nameless = join.member_id.is_empty();
        let id = if nameless { ctx.fresh_id.to_string() } else { join.member_id.clone() };
        self.check_room(&join.member_id, ctx)?;
        let subscription = self.check_protocols(&join)?;
        if nameless && join.instance_id.is_none() && join.knows_member_id_required {
            return Err(JoinError::MemberIdRequired(id));
        }

        let origin = self.joining_origin(&id, &join)?;
        let before = self.before(&id, &origin);
        let Join { session_timeout_ms, rebalance_timeout_ms, .. } = join;
        let response = JoinGroupResponse::default()
            .with_member_id(id.clone().into())
            .with_protocol_type(Some(CONSUMER.into()))
            .with_protocol_name(join.protocols.first().map(|p| p.name.clone().into()));
        let member = ConsumerMemberValue {
            instance_id: join.instance_id.or(before.instance_id.clone()),
            rack_id: subscription.rack_id.clone().or(before.rack_id.clone()),
            client_id: join.sender.client_id,
            client_host: join.sender.host,
            rebalance_timeout_ms,
            subscribed_topics: subscription.topics.iter().cloned().collect(),
            subscribed_regex: None,
            classic: Some(ClassicInConsumerValue { session_timeout_ms, protocols: join.protocols }),
            ..before.clone()
        };

        if !self.fits(&id, &origin, &before, &member) {
            return Err(JoinError::GroupTooLarge);
        }

        self.timers.stop_revocation(&id);
        let owned = owned(&subscription, ctx);
        let member = self.admit(&id, &origin, &before, member, Reported(Some(&owned)), ctx);
        self.timers.session(&id, session_timeout_ms, ctx);
        self.timers.start_sync(&id, rebalance_timeout_ms, ctx);
        Ok(response.with_generation_id(member.epoch))
    }

    /// Answers a SyncGroup.
    pub(crate) fn sync(&mut self, sync: Sync, ctx: &Context<'_>) -> Result<SyncGroupResponse, SyncError> {
        let id = sync.identity.member_id.as_str();
        let (member, classic) = self.classic_member(&sync.identity, sync.generation)?;
        let protocol = classic.protocols.first();
        let is_of_group = sync.protocol_type.as_deref().is_none_or(|t| t == CONSUMER)
            && sync.protocol.as_deref().is_none_or(|name| protocol.is_some_and(|p| p.name == name));
        if !is_of_group {
            return Err(SyncError::OtherProtocol);
        }
        if self.value.epoch > member.epoch && member.state != MemberStateValue::UnrevokedPartitions {
            let timeout_ms = member.rebalance_timeout_ms;
            self.timers.start_join(id, timeout_ms, ctx);
            return Err(SyncError::Rebalance);
        }
        let version = protocol.and_then(|p| protocol::subscription(&p.metadata.0)).map_or(0, |s| s.version);
        let assignment = to_classic_assignment(version, &member.assigned, ctx.topics).unwrap_or_default();
        let session_timeout_ms = classic.session_timeout_ms;
        self.timers.stop_sync(id);
        self.timers.session(id, session_timeout_ms, ctx);
        Ok(SyncGroupResponse::default()
            .with_protocol_type(sync.protocol_type.map(Into::into))
            .with_protocol_name(sync.protocol.map(Into::into))
            .with_assignment(assignment))
    }

    /// Answers a Heartbeat. It keeps the member's session alive also where the answer is that there
    /// is a rebalance.
    pub(crate) fn classic_heartbeat(
        &mut self,
        identity: &Identity,
        generation: i32,
        ctx: &Context<'_>,
    ) -> Result<(), HeartbeatError> {
        let id = identity.member_id.as_str();
        let (member, classic) = self.classic_member(identity, generation)?;
        let must_rejoin = match member.state {
            _ if member.epoch < self.value.epoch => true,
            MemberStateValue::Stable => false,
            MemberStateValue::UnrevokedPartitions => true,
            MemberStateValue::UnreleasedPartitions => !self.waits_for_others(member),
        };
        let (session_timeout_ms, rebalance_timeout_ms) =
            (classic.session_timeout_ms, member.rebalance_timeout_ms);
        self.timers.session(id, session_timeout_ms, ctx);
        if must_rejoin {
            self.timers.start_join(id, rebalance_timeout_ms, ctx);
            return Err(HeartbeatError::Rebalance);
        }
        Ok(())
    }

    /// Takes members out, of whichever protocol, and says for each whether it is gone. Instance ids
    /// suffice for static members, so that an administrator can remove them.
    pub(crate) fn leave(&mut self, members: &[Identity], ctx: &Context<'_>) -> Vec<Result<(), MemberError>> {
        let mut leaving = Vec::new();
        let mut find = |identity: &Identity| {
            let Identity { member_id, instance_id } = identity;
            let by_instance = instance_id.as_ref().filter(|_| member_id.is_empty());
            let id = by_instance.and_then(|i| self.instances.get(i)).unwrap_or(member_id);
            self.named_member(id, instance_id.as_deref())?;
            leaving.push(id.clone());
            Ok(())
        };
        let answers = members.iter().map(&mut find).collect();
        self.remove_members(&leaving, ctx);
        answers
    }

    /// The member of the classic protocol that a request comes from.
    fn classic_member(
        &self,
        identity: &Identity,
        generation: i32,
    ) -> Result<(&ConsumerMemberValue, &ClassicInConsumerValue), MemberError> {
        let member = self.named_member(&identity.member_id, identity.instance_id.as_deref())?;
        let classic = member.classic.as_ref();
        let classic = classic.ok_or_else(|| MemberError::NotClassic(identity.member_id.clone()))?;
        if member.epoch != generation {
            return Err(MemberError::Generation { named: generation, current: member.epoch });
        }
        Ok((member, classic))
    }

    fn joining_origin(&self, id: &str, join: &Join) -> Result<Origin, MemberError> {
        let Some(instance) = &join.instance_id else {
            return Ok(if self.value.members.contains_key(id) { Origin::Known } else { Origin::New });
        };
        if !join.member_id.is_empty() {
            return self.named_member(id, Some(instance)).map(|_| Origin::Known);
        }
        // A static member that has no member id has started anew, and whoever had its place is
        // history.
        Ok(self.instances.get(instance).map_or(Origin::New, |former| Origin::Replaces(former.clone())))
    }

    /// The subscription of a member that may join, as far as its protocols are concerned.
    fn check_protocols(&self, join: &Join) -> Result<Subscription, JoinError> {
        let others = self.value.members.values().filter_map(|m| m.classic.as_ref());
        let members = iter::once(&join.protocols).chain(others.map(|c| &c.protocols)).map(Vec::as_slice);
        if join.protocol_type != CONSUMER || common_protocols(members).is_empty() {
            return Err(JoinError::NoCommonProtocol);
        }
        // A consumer says the same to all its assignors.
        let first = join.protocols.first().and_then(|p| protocol::subscription(&p.metadata.0));
        first.ok_or(JoinError::UnreadableSubscription)
    }

    /// Whether anything that a member is to have has another owner still.
    fn waits_for_others(&self, member: &ConsumerMemberValue) -> bool {
        member.target.iter().any(|(topic, partitions)| {
            let own = member.assigned.get(topic);
            partitions
                .0
                .iter()
                .any(|p| own.is_none_or(|own| !own.0.contains(p)) && self.owners.contains(*topic, *p))
        })
    }
}

/// What a classic member says that it reads, with topic ids. Members of the eager kind give
/// everything up before they join, and say nothing.
fn owned(subscription: &Subscription, ctx: &Context<'_>) -> Vec<Owned> {
    let of_topic = |topic: &protocol::TopicPartitions| {
        let (id, _) = ctx.topics.by_name(&topic.topic)?;
        Some(Owned::default().with_topic_id(id).with_partitions(topic.partitions.clone()))
    };
    subscription.owned_partitions.iter().filter_map(of_topic).collect()
}
