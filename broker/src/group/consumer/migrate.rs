//! Classic groups that become groups of KIP-848, and back, while their members go on reading.
//!
//! The first heartbeat of the new protocol at a classic group has it converted, members and all;
//! the last member of the new protocol that leaves has it converted back. In both directions the
//! members keep what they read, and the generation goes on as the group epoch: nobody is told
//! anything but that there is a rebalance.

use std::collections::BTreeSet;

use bytes::Bytes;
use strandline_metadata::values::group::{
    Assignment, Blob, ClassicGroupValue, ClassicInConsumerValue, ClassicMemberValue, ClassicStateValue,
    ConsumerGroupValue, ConsumerMemberValue, MemberStateValue, PartitionSet,
};
use uuid::Uuid;

use super::describe::numbers;
use super::{ConsumerGroup, Context, Owners, is_reconciled};
use crate::group::Topics;
use crate::group::classic::protocol::{self, TopicPartitions};
use crate::group::classic::{CONSUMER, elect_protocol};
use crate::group::error::UpgradeError;

/// What is left of a group of KIP-848 once all its members speak the classic protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Downgraded {
    /// The classic group.
    pub(crate) group: ClassicGroupValue,
    /// Whether it must rebalance at once. If so, it has no leader: a coordinator that takes over
    /// before the rebalance is through sees from that that one is due.
    pub(crate) rebalance: bool,
}

impl ConsumerGroup {
    /// The classic group as one of KIP-848, for a member of the new protocol to join. If that is
    /// then refused, the classic group must stay.
    pub(crate) fn from_classic(classic: &ClassicGroupValue, ctx: &Context<'_>) -> Result<Self, UpgradeError> {
        if classic.members.is_empty() {
            return Ok(Self::new());
        }
        if !ctx.settings.may_upgrade {
            return Err(UpgradeError::Disabled);
        }
        if classic.protocol_type != CONSUMER {
            return Err(UpgradeError::NotConsumers);
        }
        if classic.members.len() > ctx.settings.max_size {
            return Err(UpgradeError::TooManyMembers);
        }
        let mut value = ConsumerGroupValue {
            epoch: classic.generation,
            assignment_epoch: classic.generation,
            ..ConsumerGroupValue::default()
        };
        let mut taken = Owners::default();
        for (id, member) in &classic.members {
            let member = from_classic_member(member, classic, &mut taken, ctx)?;
            value.topics.extend(member.subscribed_topics.iter().filter_map(|name| ctx.topics.by_name(name)));
            value.members.insert(id.clone(), member);
        }
        let mut group = Self::from_value(value, ctx);
        group.changed = true;
        Ok(group)
    }

    /// Whether the group has members, may become a classic one, and could: all members speak the
    /// classic protocol.
    pub(crate) fn can_downgrade(&self, ctx: &Context<'_>) -> bool {
        let members = &self.value.members;
        ctx.settings.may_downgrade
            && !members.is_empty()
            && members.len() <= ctx.settings.max_size
            && members.values().all(|m| m.classic.is_some())
    }

    /// The classic group that is left when the last member of the new protocol is gone. To be asked
    /// for after everything that takes members out or lets a classic one join, and to be persisted
    /// in the place of the consumer group.
    pub(crate) fn to_classic(&self, ctx: &Context<'_>) -> Option<Downgraded> {
        if !self.can_downgrade(ctx) {
            return None;
        }
        let value = &self.value;
        let is_current =
            |m: &ConsumerMemberValue| m.epoch == value.epoch && is_reconciled(m, value.assignment_epoch);
        let rebalance = self.left_to_classic || !value.members.values().all(is_current);
        let members = value.members.iter();
        let members = members.filter_map(|(id, m)| Some((id.clone(), to_classic_member(m, ctx)?))).collect();
        let mut group = ClassicGroupValue {
            state: ClassicStateValue::Stable,
            protocol_type: CONSUMER.to_owned(),
            generation: value.epoch,
            protocol: None,
            leader: None,
            members,
        };
        let elected = elect_protocol(group.members.values().map(|m| m.protocols.as_slice()))?.to_owned();
        group.protocol = Some(elected);
        if !rebalance {
            group.leader = group.members.keys().next().cloned();
        }
        Some(Downgraded { group, rebalance })
    }
}

/// A member of a classic group, at rest with what its leader assigned to it.
fn from_classic_member(
    member: &ClassicMemberValue,
    group: &ClassicGroupValue,
    taken: &mut Owners,
    ctx: &Context<'_>,
) -> Result<ConsumerMemberValue, UpgradeError> {
    let chosen = member.protocols.iter().find(|p| Some(&p.name) == group.protocol.as_ref());
    let subscription = chosen
        .or(member.protocols.first())
        .and_then(|p| protocol::subscription(&p.metadata.0))
        .ok_or(UpgradeError::UnreadableSubscription)?;
    let assigned = from_classic_assignment(&member.assignment, taken, ctx)?;
    Ok(ConsumerMemberValue {
        instance_id: member.instance_id.clone(),
        rack_id: subscription.rack_id,
        client_id: member.client_id.clone(),
        client_host: member.client_host.clone(),
        rebalance_timeout_ms: member.rebalance_timeout_ms,
        subscribed_topics: subscription.topics.into_iter().collect(),
        epoch: group.generation,
        previous_epoch: group.generation,
        state: MemberStateValue::Stable,
        target: assigned.clone(),
        assigned,
        classic: Some(ClassicInConsumerValue {
            session_timeout_ms: member.session_timeout_ms,
            protocols: member.protocols.clone(),
        }),
        ..ConsumerMemberValue::default()
    })
}

/// What a leader assigned, with topic ids. What is gone is left out, and so is what another member
/// has already: a classic group does not care if its leader assigns something twice.
fn from_classic_assignment(
    blob: &Blob,
    taken: &mut Owners,
    ctx: &Context<'_>,
) -> Result<Assignment, UpgradeError> {
    let mut assigned = Assignment::new();
    if blob.0.is_empty() {
        return Ok(assigned);
    }
    let assignment = protocol::assignment(&blob.0).ok_or(UpgradeError::UnreadableAssignment)?;
    if assignment.user_data.is_some_and(|data| !data.is_empty()) {
        return Err(UpgradeError::CustomAssignor);
    }
    for topic in assignment.partitions {
        let Some((id, count)) = ctx.topics.by_name(&topic.topic) else { continue };
        let partitions: BTreeSet<u32> = topic
            .partitions
            .iter()
            .filter_map(|p| u32::try_from(*p).ok())
            .filter(|p| *p < count && !taken.contains(id, *p))
            .collect();
        if !partitions.is_empty() {
            let partitions: Assignment = [(id, partitions.into_iter().collect())].into();
            taken.add(&partitions);
            for (id, more) in partitions {
                assigned.entry(id).or_default().0.extend(more.0);
            }
        }
    }
    Ok(assigned)
}

fn to_classic_member(member: &ConsumerMemberValue, ctx: &Context<'_>) -> Option<ClassicMemberValue> {
    let classic = member.classic.as_ref()?;
    let version = classic
        .protocols
        .first()
        .and_then(|p| protocol::subscription(&p.metadata.0))
        .map_or(0, |s| s.version);
    Some(ClassicMemberValue {
        instance_id: member.instance_id.clone(),
        client_id: member.client_id.clone(),
        client_host: member.client_host.clone(),
        session_timeout_ms: classic.session_timeout_ms,
        rebalance_timeout_ms: member.rebalance_timeout_ms,
        protocols: classic.protocols.clone(),
        assignment: Blob(to_classic_assignment(version, &member.assigned, ctx.topics)?),
    })
}

/// Partitions as a classic consumer is told of them. Topics that were deleted are left out.
pub(super) fn to_classic_assignment(
    version: i16,
    assigned: &Assignment,
    topics: &dyn Topics,
) -> Option<Bytes> {
    let of_topic = |(id, partitions): (&Uuid, &PartitionSet)| {
        Some(TopicPartitions { topic: topics.name(*id)?, partitions: numbers(partitions) })
    };
    let partitions: Vec<TopicPartitions> = assigned.iter().filter_map(of_topic).collect();
    protocol::encode_assignment(version, &partitions)
}
