//! The protocol of KIP-848: the coordinator assigns.
//!
//! A group moves by three epochs. The *group epoch* grows when members, subscriptions or topics
//! change. The next heartbeat of anyone has the *assignment epoch* follow: the assignor makes a new
//! target for every member. Every member then gets to its target by itself, heartbeat by heartbeat,
//! and with it to a new *member epoch*:
//!
//! ```text
//!                     nothing to give up
//!          ┌───────────────────────────────────────┐
//!          │                                       ▼
//!       Stable ──▶ UnrevokedPartitions ──▶ UnreleasedPartitions ──▶ Stable
//!                  gives partitions up,      waits for others to
//!                  keeps its epoch           give theirs up
//! ```
//!
//! What must never happen is that two members read one partition. So a partition is owned by who
//! was told to read it until that member says that it no longer does, or is fenced; only then
//! anyone else is told. [`Owners`] is the index of that.
//!
//! Members of the classic protocol may be in such a group: see `classic` and `migrate`.
//!
//! The engine is pure. Its caller persists [`ConsumerGroup::value`] whenever
//! [`ConsumerGroup::take_changed`] says so, and answers only then; if that fails, it throws the
//! engine away and makes one from what is persisted. A refused request leaves the value as it was.

mod classic;
mod describe;
pub(crate) mod heartbeat;
mod migrate;
mod offsets;
mod reconcile;
mod subscribe;
mod timers;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use strandline_metadata::values::group::{
    Assignment, ConsumerGroupValue, ConsumerMemberValue, MemberStateValue,
};
use uuid::Uuid;

use self::heartbeat::Origin;
use self::subscribe::Patterns;
pub(crate) use self::timers::ExpiredBy;
use self::timers::Timers;
use super::error::{GroupFull, MemberError};
use super::size::consumer_member_bytes;
use super::{Context, find_member};
use crate::limits::CONSUMER_MEMBERS_BYTES;

/// Member epoch of a request to join or to join again.
const JOINING: i32 = 0;
/// Member epoch of a request to leave.
const LEAVING: i32 = -1;
/// Member epoch of a request of a static member that leaves and will be back, and of the member
/// while it is away.
const AWAY: i32 = -2;

/// A group of KIP-848.
#[derive(Debug)]
pub(crate) struct ConsumerGroup {
    /// What must survive. Only [`Self::store`], [`Self::forget`] and those that move the group's
    /// epochs write to it.
    value: ConsumerGroupValue,
    /// Derived: who is told to read what.
    owners: Owners,
    /// Derived: the member that goes by an instance id.
    instances: BTreeMap<String, String>,
    /// Derived: the topics that the members' patterns match.
    patterns: Patterns,
    timers: Timers,
    changed: bool,
    /// Whether a member has gone in a way that leaves a group for the classic protocol. See
    /// [`Self::to_classic`].
    left_to_classic: bool,
}

impl ConsumerGroup {
    /// A group that nobody has joined yet.
    pub(crate) fn new() -> Self {
        Self {
            value: ConsumerGroupValue::default(),
            owners: Owners::default(),
            instances: BTreeMap::new(),
            patterns: Patterns::default(),
            timers: Timers::default(),
            changed: false,
            left_to_classic: false,
        }
    }

    /// The group that another coordinator left, or this one before a restart. All timers start
    /// anew: nobody is to blame for the time without a coordinator. Topics may have changed
    /// meanwhile, in which case the value has changed, too.
    pub(crate) fn from_value(value: ConsumerGroupValue, ctx: &Context<'_>) -> Self {
        let mut group = Self::new();
        for member in value.members.values() {
            group.owners.add(&member.assigned);
            group.owners.add(&member.pending_revocation);
        }
        let instance = |(id, m): (&String, &ConsumerMemberValue)| Some((m.instance_id.clone()?, id.clone()));
        group.instances = value.members.iter().filter_map(instance).collect();
        group.timers = Timers::all_anew(&value, ctx);
        group.value = value;
        group.topics_changed(ctx);
        group
    }

    /// What must survive of it.
    pub(crate) fn value(&self) -> &ConsumerGroupValue {
        &self.value
    }

    /// Whether [`Self::value`] has changed since this was last asked.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Kafka's name for where the group stands.
    pub(crate) fn state(&self) -> &'static str {
        let is_reconciled = |m: &ConsumerMemberValue| is_reconciled(m, self.value.assignment_epoch);
        if self.is_empty() {
            "Empty"
        } else if self.value.epoch > self.value.assignment_epoch {
            "Assigning"
        } else if self.value.members.values().all(is_reconciled) {
            "Stable"
        } else {
            "Reconciling"
        }
    }

    /// Whether it has no members.
    pub(crate) fn is_empty(&self) -> bool {
        self.value.members.is_empty()
    }

    /// The member with this id.
    fn member(&self, id: &str) -> Result<&ConsumerMemberValue, MemberError> {
        self.value.members.get(id).ok_or_else(|| MemberError::Unknown(id.to_owned()))
    }

    /// The member that a request means by a member id and, if it is a static one, an instance id.
    fn named_member(&self, id: &str, instance: Option<&str>) -> Result<&ConsumerMemberValue, MemberError> {
        find_member(&self.value.members, &self.instances, id, instance)
    }

    /// Refuses a new member of a group that is full.
    fn check_room(&self, id: &str, ctx: &Context<'_>) -> Result<(), GroupFull> {
        if self.value.members.len() < ctx.settings.max_size || self.value.members.contains_key(id) {
            return Ok(());
        }
        Err(GroupFull(self.value.members.len()))
    }

    /// Whether a member as a request has it fits beside the others. One that does not grow always
    /// does.
    fn fits(
        &self,
        id: &str,
        origin: &Origin,
        before: &ConsumerMemberValue,
        member: &ConsumerMemberValue,
    ) -> bool {
        let bytes = consumer_member_bytes(id, member);
        if *origin == Origin::Known && bytes <= consumer_member_bytes(id, before) {
            return true;
        }
        let is_other =
            |other: &str| other != id && !matches!(origin, Origin::Replaces(former) if former == other);
        let others = self.value.members.iter().filter(|(other, _)| is_other(other));
        others.map(|(id, m)| consumer_member_bytes(id, m)).sum::<usize>() + bytes <= CONSUMER_MEMBERS_BYTES
    }

    /// Writes a member, new or known, and what is derived from it.
    fn store(&mut self, id: &str, member: ConsumerMemberValue) {
        if self.value.members.get(id) == Some(&member) {
            return;
        }
        self.release(id);
        self.owners.add(&member.assigned);
        self.owners.add(&member.pending_revocation);
        if let Some(instance) = &member.instance_id {
            self.instances.insert(instance.clone(), id.to_owned());
        }
        self.value.members.insert(id.to_owned(), member);
        self.changed = true;
    }

    /// Takes a member out, with all that it owned.
    fn forget(&mut self, id: &str) {
        self.release(id);
        self.changed |= self.value.members.remove(id).is_some();
        self.timers.forget(id);
    }

    /// Takes what is derived from a member back.
    fn release(&mut self, id: &str) {
        let Some(member) = self.value.members.get(id) else { return };
        self.owners.remove(&member.assigned);
        self.owners.remove(&member.pending_revocation);
        if let Some(instance) = &member.instance_id
            && self.instances.get(instance).is_some_and(|owner| owner == id)
        {
            self.instances.remove(instance);
        }
    }

    /// Takes members out that left or were fenced. The others get their partitions from the next
    /// heartbeat on.
    fn remove_members(&mut self, ids: &[String], ctx: &Context<'_>) {
        for id in ids {
            self.forget(id);
        }
        if ids.is_empty() {
            return;
        }
        if self.can_downgrade(ctx) {
            // The group epoch stays: as the classic group's generation it is one that its members
            // know, so they are told that a rebalance goes on, and not that they lost their
            // partitions.
            self.left_to_classic = true;
        } else {
            self.bump_epoch(ctx);
        }
    }
}

/// Whether a member has all of the target that was made for `epoch`.
fn is_reconciled(member: &ConsumerMemberValue, epoch: i32) -> bool {
    member.state == MemberStateValue::Stable && member.epoch == epoch
}

/// The partitions that some member was told to read and has not given up.
#[derive(Debug, Default)]
struct Owners(Assignment);

impl Owners {
    fn contains(&self, topic: Uuid, partition: u32) -> bool {
        self.0.get(&topic).is_some_and(|owned| owned.0.contains(&partition))
    }

    fn add(&mut self, assignment: &Assignment) {
        for (topic, partitions) in assignment {
            let owned = self.0.entry(*topic).or_default();
            for partition in &partitions.0 {
                let new = owned.0.insert(*partition);
                debug_assert!(new, "partition {partition} of topic {topic} has two owners");
            }
        }
    }

    fn remove(&mut self, assignment: &Assignment) {
        for (topic, partitions) in assignment {
            let Some(owned) = self.0.get_mut(topic) else { continue };
            owned.0.retain(|p| !partitions.0.contains(p));
            if owned.0.is_empty() {
                self.0.remove(topic);
            }
        }
    }
}
