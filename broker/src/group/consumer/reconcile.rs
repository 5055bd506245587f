//! One step of a member towards its target: the heart of the protocol.

use std::collections::BTreeSet;

use kafka_protocol::messages::consumer_group_heartbeat_request::TopicPartitions;
use strandline_metadata::values::group::{Assignment, ConsumerMemberValue, MemberStateValue, PartitionSet};
use uuid::Uuid;

use super::{Owners, is_reconciled};

/// What a step depends on besides the member.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    /// The epoch that the target was made for.
    pub(super) assignment_epoch: i32,
    /// The topics that the member subscribes to.
    pub(super) subscribed: &'a BTreeSet<Uuid>,
    /// Whether that has just changed.
    pub(super) subscription_changed: bool,
    /// Who has what, the member included.
    pub(super) owners: &'a Owners,
    /// What the member says that it reads, if it says so.
    pub(super) reported: Reported<'a>,
}

/// The partitions that a member says it reads; None if it does not say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reported<'a>(pub(super) Option<&'a [TopicPartitions]>);

impl Reported<'_> {
    /// Whether the member reads nothing but what is in `assignment`. False if it does not say.
    pub(super) fn is_within(self, assignment: &Assignment) -> bool {
        self.0.is_some_and(|reported| {
            reported.iter().all(|topic| {
                let assigned = assignment.get(&topic.topic_id);
                assigned.is_some_and(|assigned| topic.partitions.iter().all(|p| has(assigned, *p)))
            })
        })
    }

    /// Whether the member may still read some of `assignment`. True if it does not say.
    fn may_have_any_of(self, assignment: &Assignment) -> bool {
        self.0.is_none_or(|reported| {
            reported.iter().any(|topic| {
                let given_up = assignment.get(&topic.topic_id);
                given_up.is_some_and(|given_up| topic.partitions.iter().any(|p| has(given_up, *p)))
            })
        })
    }
}

fn has(partitions: &PartitionSet, partition: i32) -> bool {
    u32::try_from(partition).is_ok_and(|p| partitions.0.contains(&p))
}

/// Takes the member as far as it gets.
pub(super) fn reconcile(member: &mut ConsumerMemberValue, around: &Surroundings<'_>) {
    let still_has_revoked = || around.reported.may_have_any_of(&member.pending_revocation);
    match member.state {
        MemberStateValue::Stable if is_reconciled(member, around.assignment_epoch) => {}
        MemberStateValue::UnrevokedPartitions if still_has_revoked() => {
            if around.subscription_changed {
                revoke_unsubscribed(member, around.subscribed);
            }
        }
        MemberStateValue::Stable
        | MemberStateValue::UnrevokedPartitions
        | MemberStateValue::UnreleasedPartitions => step(member, around),
    }
}

/// Tells the member to give up what it no longer subscribes to, besides what it was already told to
/// give up.
fn revoke_unsubscribed(member: &mut ConsumerMemberValue, subscribed: &BTreeSet<Uuid>) {
    let unsubscribed = member.assigned.extract_if(.., |topic, _| !subscribed.contains(topic));
    for (topic, partitions) in unsubscribed {
        member.pending_revocation.entry(topic).or_default().0.extend(partitions.0);
    }
}

/// From what it has, which excludes what it has just given up: gives up what the target lacks, or
/// takes what is free.
fn step(member: &mut ConsumerMemberValue, around: &Surroundings<'_>) {
    let mut kept = Assignment::new();
    let mut to_revoke = Assignment::new();
    for (topic, partitions) in &member.assigned {
        let target = member.target.get(topic).filter(|_| around.subscribed.contains(topic));
        for partition in &partitions.0 {
            let stays = target.is_some_and(|t| t.0.contains(partition));
            let into = if stays { &mut kept } else { &mut to_revoke };
            into.entry(*topic).or_default().0.insert(*partition);
        }
    }

    if !to_revoke.is_empty() && around.reported.may_have_any_of(&to_revoke) {
        member.state = MemberStateValue::UnrevokedPartitions;
        member.assigned = kept;
        member.pending_revocation = to_revoke;
        return;
    }

    let mut waits = false;
    for (topic, partitions) in member.target.iter().filter(|(t, _)| around.subscribed.contains(t)) {
        let own = member.assigned.get(topic);
        let given_up = member.pending_revocation.get(topic);
        for partition in &partitions.0 {
            if own.is_some_and(|own| own.0.contains(partition)) {
                continue;
            }
            // What the member itself was told to give up is owned by it and nobody else.
            let was_own = given_up.is_some_and(|given_up| given_up.0.contains(partition));
            if around.owners.contains(*topic, *partition) && !was_own {
                waits = true;
            } else {
                kept.entry(*topic).or_default().0.insert(*partition);
            }
        }
    }
    member.state = if waits { MemberStateValue::UnreleasedPartitions } else { MemberStateValue::Stable };
    member.assigned = kept;
    member.pending_revocation = Assignment::new();
    if member.epoch != around.assignment_epoch {
        member.previous_epoch = member.epoch;
        member.epoch = around.assignment_epoch;
    }
}
