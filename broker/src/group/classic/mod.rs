//! The classic group protocol: the members agree on an assignor, one of them assigns, the
//! coordinator keeps count.
//!
//! ```text
//!            first member                 all have joined             the leader's assignment
//!   Empty ───────────────▶ Preparing ───────────────────▶ Completing ────────────────────────▶ Stable
//!     ▲                     ▲   │ none is left               │ a member comes, goes, or is silent │
//!     └─────────────────────┼───┘                            ▼                                    ▼
//!                           └──────────────────────────── (rebalance) ◀────────────────────────────
//! ```
//!
//! It is decided as Apache Kafka's coordinator decides it (KIP-62, KIP-134, KIP-345, KIP-394,
//! KIP-814). Two things are stricter: a generation is stored before its members hear of it, so that
//! no number is ever given to two memberships; and a member's metadata has a bound.
//!
//! Requests that must wait (a join for the others, a sync for the leader) leave a ticket; the
//! answers to tickets are taken with [`ClassicGroup::take_answers`], once what the step changed is
//! stored.

pub(crate) mod join;
pub(crate) mod protocol;
mod rebalance;
pub(crate) mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::{JoinGroupResponse, SyncGroupResponse};
use strandline_metadata::values::group::{
    ClassicGroupValue, ClassicMemberValue, ClassicStateValue, ProtocolValue,
};
use tokio::time::Instant;

use self::session::Identity;
use super::error::{CommitError, JoinError, MemberError, SyncError};
use super::size::{classic_member_bytes, json_bytes};
use super::{Ticket, find_member, millis};
use crate::limits::CLASSIC_MEMBER_OVERHEAD_BYTES;

/// The kind of group that consumers form: its metadata are subscriptions.
pub(crate) const CONSUMER: &str = "consumer";

/// The answer to a request that waited.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    Join(Result<JoinGroupResponse, JoinError>),
    Sync(Result<SyncGroupResponse, SyncError>),
}

/// A group of the classic protocol.
#[derive(Debug)]
pub(crate) struct ClassicGroup {
    protocol_type: String,
    generation: i32,
    protocol: Option<String>,
    leader: Option<String>,
    members: BTreeMap<String, Member>,
    /// Member id by group instance id.
    statics: BTreeMap<String, String>,
    /// Ids that were given to members which have not joined with them yet, and when they end.
    pending: BTreeMap<String, Instant>,
    phase: Phase,
    /// Members of this generation that have not asked for their assignment.
    unsynced: BTreeSet<String>,
    /// When those are given up.
    sync_until: Option<Instant>,
    answers: Vec<(Ticket, Answer)>,
    changed: bool,
    rebalances: Vec<&'static str>,
}

#[derive(Debug)]
struct Member {
    /// What is stored of it.
    value: ClassicMemberValue,
    /// Its join that waits for the others.
    joining: Option<Ticket>,
    /// Its sync that waits for the leader.
    syncing: Option<Ticket>,
    /// It has never been part of a generation.
    is_new: bool,
    /// When its session ends, unless it waits for an answer of ours.
    session_until: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Empty,
    Preparing {
        until: Instant,
        /// Set for the first rebalance of a group that was empty: it waits for more to come.
        first: Option<FirstRebalance>,
    },
    Completing,
    Stable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FirstRebalance {
    /// How much longer it may wait after this.
    remaining: Duration,
    /// Somebody came since the wait began.
    newcomer: bool,
}

impl ClassicGroup {
    /// A group without members.
    pub(crate) fn new() -> Self {
        Self {
            protocol_type: String::new(),
            generation: 0,
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            statics: BTreeMap::new(),
            pending: BTreeMap::new(),
            phase: Phase::Empty,
            unsynced: BTreeSet::new(),
            sync_until: None,
            answers: Vec::new(),
            changed: false,
            rebalances: Vec::new(),
        }
    }

    /// A group as another coordinator left it: the same generation goes on, all timers start anew.
    pub(crate) fn from_value(value: &ClassicGroupValue, now: Instant) -> Self {
        let mut group = Self::new();
        group.protocol_type.clone_from(&value.protocol_type);
        group.generation = value.generation;
        group.protocol.clone_from(&value.protocol);
        group.leader.clone_from(&value.leader);
        for (id, stored) in &value.members {
            if let Some(instance) = &stored.instance_id {
                group.statics.insert(instance.clone(), id.clone());
            }
            let mut member = Member {
                value: stored.clone(),
                joining: None,
                syncing: None,
                is_new: false,
                session_until: now,
            };
            member.heard_of(now);
            group.members.insert(id.clone(), member);
        }
        group.phase = match value.state {
            _ if group.members.is_empty() => Phase::Empty,
            ClassicStateValue::Empty | ClassicStateValue::Stable => Phase::Stable,
            ClassicStateValue::CompletingRebalance => {
                group.unsynced = group.members.keys().cloned().collect();
                group.sync_until = Some(now + group.rebalance_timeout());
                Phase::Completing
            }
        };
        group
    }

    /// What is to be stored. While members gather for a rebalance, that is what the group was
    /// before.
    pub(crate) fn value(&self) -> ClassicGroupValue {
        // A generation that was interrupted before its leader assigned anything is no stable one:
        // its members would take the assignments that they do not have for empty ones.
        let is_assigned = self.members.values().any(|m| !m.value.assignment.0.is_empty());
        ClassicGroupValue {
            state: match self.phase {
                Phase::Empty => ClassicStateValue::Empty,
                Phase::Completing => ClassicStateValue::CompletingRebalance,
                Phase::Preparing { .. } if !is_assigned => ClassicStateValue::CompletingRebalance,
                Phase::Preparing { .. } | Phase::Stable => ClassicStateValue::Stable,
            },
            protocol_type: self.protocol_type.clone(),
            generation: self.generation,
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            members: self.members.iter().map(|(id, m)| (id.clone(), m.value.clone())).collect(),
        }
    }

    /// Whether something changed that must be stored, since this was last asked.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Answers to requests that waited. They may be sent when what changed is stored.
    pub(crate) fn take_answers(&mut self) -> Vec<(Ticket, Answer)> {
        std::mem::take(&mut self.answers)
    }

    /// Why rebalances began, since this was last asked.
    pub(crate) fn take_rebalances(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.rebalances)
    }

    /// Refuses every request that still waits, since the group changes its protocol.
    pub(crate) fn refuse_waiting(&mut self) {
        for member in self.members.values_mut() {
            let waiting = member.take_waiting(&JoinError::ProtocolChange, &SyncError::ProtocolChange);
            self.answers.extend(waiting);
        }
    }

    /// Whether it has no members, nor any that are about to join.
    pub(crate) fn is_empty(&self) -> bool {
        self.phase == Phase::Empty && self.pending.is_empty()
    }

    /// Whether nobody has ever been in it.
    pub(crate) fn is_unborn(&self) -> bool {
        self.generation == 0 && self.is_empty()
    }

    pub(crate) fn member_count(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn protocol_type(&self) -> &str {
        &self.protocol_type
    }

    /// Kafka's name for the state.
    pub(crate) fn state(&self) -> &'static str {
        match self.phase {
            Phase::Empty => "Empty",
            Phase::Preparing { .. } => "PreparingRebalance",
            Phase::Completing => "CompletingRebalance",
            Phase::Stable => "Stable",
        }
    }

    /// The group as it is described, but for its id and what the client may do with it. Metadata
    /// and assignments are shown only while they belong together.
    pub(crate) fn describe(&self) -> DescribedGroup {
        let agreed = self.protocol.clone().filter(|_| self.phase == Phase::Stable);
        let members = self.members.iter().map(|(id, m)| {
            let described = DescribedGroupMember::default()
                .with_member_id(id.clone().into())
                .with_group_instance_id(m.value.instance_id.clone().map(Into::into))
                .with_client_id(m.value.client_id.clone().into())
                .with_client_host(m.value.client_host.clone().into());
            let Some(agreed) = &agreed else { return described };
            described
                .with_member_metadata(m.metadata(agreed).cloned().unwrap_or_default())
                .with_member_assignment(m.value.assignment.0.clone())
        });
        DescribedGroup::default()
            .with_group_state(self.state().into())
            .with_protocol_type(self.protocol_type.clone().into())
            .with_members(members.collect())
            .with_protocol_data(agreed.clone().unwrap_or_default().into())
    }

    /// The topics that consumers of this group subscribe to; `None` if that is not known: it is
    /// another kind of group, or a member says what cannot be read.
    pub(crate) fn subscribed_topics(&self) -> Option<BTreeSet<String>> {
        if self.protocol_type != CONSUMER {
            return None;
        }
        let mut topics = BTreeSet::new();
        for member in self.members.values() {
            let metadata = member.value.protocols.first()?;
            topics.extend(protocol::subscription(&metadata.metadata.0)?.topics);
        }
        Some(topics)
    }

    /// Whether an offset may be committed in the name of this member and generation.
    pub(crate) fn check_commit(&self, identity: &Identity, generation: i32) -> Result<(), CommitError> {
        if generation < 0 && self.phase == Phase::Empty {
            return Ok(());
        }
        if generation < 0 && *identity == Identity::default() {
            return Err(CommitError::OnlyMembers);
        }
        self.check_generation(identity, generation)?;
        if self.phase == Phase::Completing {
            return Err(CommitError::NotAssigned);
        }
        Ok(())
    }

    /// A commit is a sign of life.
    pub(crate) fn committed(&mut self, member_id: &str, now: Instant) {
        if let Some(member) = self.members.get_mut(member_id) {
            member.heard_of(now);
        }
    }

    /// That there is such a member, in this generation.
    fn check_generation(&self, identity: &Identity, generation: i32) -> Result<(), MemberError> {
        self.check_member(&identity.member_id, identity.instance_id.as_deref())?;
        if generation == self.generation {
            return Ok(());
        }
        Err(MemberError::Generation { named: generation, current: self.generation })
    }

    /// That there is such a member, and that a static one is not fenced by another process with its
    /// instance id.
    fn check_member(&self, id: &str, instance_id: Option<&str>) -> Result<(), MemberError> {
        find_member(&self.members, &self.statics, id, instance_id).map(|_| ())
    }

    /// Bytes that the members but this one take when they are stored, without their assignments.
    /// Those that were given an id and have not joined count, too: they are to.
    fn members_bytes(&self, but: &str) -> usize {
        let others = self.members.iter().filter(|(id, _)| *id != but);
        let pending = self.pending.keys().filter(|id| *id != but);
        others.map(|(id, m)| classic_member_bytes(id, &m.value)).sum::<usize>()
            + pending.map(|id| CLASSIC_MEMBER_OVERHEAD_BYTES + json_bytes(id)).sum::<usize>()
    }

    /// The longest that a rebalance waits for anybody.
    fn rebalance_timeout(&self) -> Duration {
        millis(self.members.values().map(|m| m.value.rebalance_timeout_ms).max().unwrap_or(0))
    }
}

impl Member {
    fn metadata(&self, protocol: &str) -> Option<&Bytes> {
        self.value.protocols.iter().find(|p| p.name == protocol).map(|p| &p.metadata.0)
    }

    /// Its session begins anew.
    fn heard_of(&mut self, now: Instant) {
        self.session_until = now + millis(self.value.session_timeout_ms);
    }

    fn waits(&self) -> bool {
        self.joining.is_some() || self.syncing.is_some()
    }

    /// Takes what it waits for, with refusals for it.
    fn take_waiting(
        &mut self,
        join: &JoinError,
        sync: &SyncError,
    ) -> impl Iterator<Item = (Ticket, Answer)> + use<> {
        let joining = self.joining.take().map(|ticket| (ticket, Answer::Join(Err(join.clone()))));
        let syncing = self.syncing.take().map(|ticket| (ticket, Answer::Sync(Err(sync.clone()))));
        joining.into_iter().chain(syncing)
    }
}

/// The protocol that most members like best, of those that all know. `members` are the protocols of
/// each, the best first.
pub(crate) fn elect_protocol<'a>(
    members: impl Iterator<Item = &'a [ProtocolValue]> + Clone,
) -> Option<&'a str> {
    let common = common_protocols(members.clone());
    let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
    for member in members {
        if let Some(choice) = member.iter().find(|p| common.contains(p.name.as_str())) {
            *votes.entry(&choice.name).or_default() += 1;
        }
    }
    let most = votes.values().copied().max()?;
    votes.into_iter().find(|(_, count)| *count == most).map(|(name, _)| name)
}

/// The protocols that all of these members know.
pub(crate) fn common_protocols<'a>(
    mut members: impl Iterator<Item = &'a [ProtocolValue]>,
) -> BTreeSet<&'a str> {
    let names = |member: &'a [ProtocolValue]| -> BTreeSet<&'a str> {
        member.iter().map(|p| p.name.as_str()).collect()
    };
    let first = members.next().map(names).unwrap_or_default();
    members.fold(first, |common, member| &common & &names(member))
}

#[cfg(test)]
mod tests;
