//! The classic group protocol: the members agree on an assignor, one of them assigns, the coordinator keeps count.
//!
//! ```text
//!            first member                 all have joined             the leader's assignment
//!   Empty ───────────────▶ Preparing ───────────────────▶ Completing ────────────────────────▶ Stable
//!     ▲                     ▲   │ none is left               │ a member comes, goes, or is silent │
//!     └─────────────────────┼───┘                            ▼                                    ▼
//!                           └──────────────────────────── (rebalance) ◀────────────────────────────
//! ```
//!
//! It is decided as Apache Kafka's coordinator decides it (KIP-62, KIP-134, KIP-345, KIP-394, KIP-814). Two things are
//! stricter: a generation is stored before its members hear of it, so that no number is ever given to two memberships;
//! and a member's metadata has a bound.
//!
//! Requests that must wait (a join for the others, a sync for the leader) leave a ticket; the answers to tickets are
//! taken with [`ClassicGroup::take_answers`], once what the step changed is stored.

pub(crate) mod join;
pub(crate) mod protocol;
mod rebalance;
pub(crate) mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::{JoinGroupResponse, SyncGroupResponse};
use strandline_metadata::values::group::{
    Blob, ClassicGroupValue, ClassicMemberValue, ClassicStateValue, ProtocolValue,
};
use tokio::time::Instant;

use self::session::Identity;
use super::error::{CommitError, JoinError, MemberError, SyncError};
use super::{Ticket, millis};
use crate::limits::{GROUP_VALUE_BYTES, MEMBER_OVERHEAD_BYTES};

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
    instance_id: Option<String>,
    client_id: String,
    client_host: String,
    session_timeout: Duration,
    rebalance_timeout: Duration,
    protocols: Vec<ProtocolValue>,
    assignment: Bytes,
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

/// A group as DescribeGroups shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Described {
    pub(crate) state: &'static str,
    pub(crate) protocol_type: String,
    pub(crate) protocol: String,
    pub(crate) members: Vec<DescribedMember>,
}

/// A member as DescribeGroups shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DescribedMember {
    pub(crate) member_id: String,
    pub(crate) instance_id: Option<String>,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(crate) metadata: Bytes,
    pub(crate) assignment: Bytes,
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
            let session_timeout = millis(stored.session_timeout_ms);
            let member = Member {
                instance_id: stored.instance_id.clone(),
                client_id: stored.client_id.clone(),
                client_host: stored.client_host.clone(),
                session_timeout,
                rebalance_timeout: millis(stored.rebalance_timeout_ms),
                protocols: stored.protocols.clone(),
                assignment: stored.assignment.0.clone(),
                joining: None,
                syncing: None,
                is_new: false,
                session_until: now + session_timeout,
            };
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

    /// What is to be stored. While members gather for a rebalance, that is what the group was before.
    pub(crate) fn value(&self) -> ClassicGroupValue {
        // A generation that was interrupted before its leader assigned anything is no stable one: its members would take
        // the assignments that they do not have for empty ones.
        let is_assigned = self.members.values().any(|m| !m.assignment.is_empty());
        let members = self.members.iter().map(|(id, m)| {
            let value = ClassicMemberValue {
                instance_id: m.instance_id.clone(),
                client_id: m.client_id.clone(),
                client_host: m.client_host.clone(),
                session_timeout_ms: in_millis(m.session_timeout),
                rebalance_timeout_ms: in_millis(m.rebalance_timeout),
                protocols: m.protocols.clone(),
                assignment: Blob(m.assignment.clone()),
            };
            (id.clone(), value)
        });
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
            members: members.collect(),
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

    /// Metadata and assignments are shown only while they belong together.
    pub(crate) fn describe(&self) -> Described {
        let is_stable = self.phase == Phase::Stable;
        let members = self.members.iter().map(|(id, m)| {
            let metadata = self.protocol.as_deref().and_then(|p| m.metadata(p)).filter(|_| is_stable);
            DescribedMember {
                member_id: id.clone(),
                instance_id: m.instance_id.clone(),
                client_id: m.client_id.clone(),
                client_host: m.client_host.clone(),
                metadata: metadata.cloned().unwrap_or_default(),
                assignment: if is_stable { m.assignment.clone() } else { Bytes::new() },
            }
        });
        Described {
            state: self.state(),
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone().filter(|_| is_stable).unwrap_or_default(),
            members: members.collect(),
        }
    }

    /// The topics that consumers of this group subscribe to; `None` if that is not known: it is another kind of
    /// group, or a member says what cannot be read.
    pub(crate) fn subscribed_topics(&self) -> Option<BTreeSet<String>> {
        if self.protocol_type != CONSUMER {
            return None;
        }
        let mut topics = BTreeSet::new();
        for member in self.members.values() {
            let metadata = member.protocols.first()?;
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
            member.session_until = now + member.session_timeout;
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

    /// That there is such a member, and that a static one is not fenced by another process with its instance id.
    fn check_member(&self, id: &str, instance_id: Option<&str>) -> Result<(), MemberError> {
        if let Some(instance_id) = instance_id {
            let owner = self.statics.get(instance_id);
            let owner = owner.ok_or_else(|| MemberError::UnknownInstance(instance_id.to_owned()))?;
            if owner != id {
                return Err(MemberError::fenced(instance_id, owner, id));
            }
        }
        if self.members.contains_key(id) { Ok(()) } else { Err(MemberError::Unknown(id.to_owned())) }
    }

    /// About how many bytes the members but this one take when they are stored, without their assignments.
    fn members_bytes(&self, but: &str) -> usize {
        let others = self.members.iter().filter(|(id, _)| *id != but);
        others.map(|(_, m)| MEMBER_OVERHEAD_BYTES + in_base64(protocols_bytes(&m.protocols))).sum()
    }

    /// The longest that a rebalance waits for anybody.
    fn rebalance_timeout(&self) -> Duration {
        self.members.values().map(|m| m.rebalance_timeout).max().unwrap_or_default()
    }
}

impl Member {
    fn metadata(&self, protocol: &str) -> Option<&Bytes> {
        self.protocols.iter().find(|p| p.name == protocol).map(|p| &p.metadata.0)
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

/// The protocol that most members like best, of those that all know. `members` are the protocols of each, the best
/// first.
pub(crate) fn elect_protocol<'a>(
    members: impl Iterator<Item = &'a [ProtocolValue]> + Clone,
) -> Option<&'a str> {
    let all = members.clone();
    let is_common = |name: &str| all.clone().all(|m| m.iter().any(|p| p.name == name));
    let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
    for member in members {
        if let Some(choice) = member.iter().find(|p| is_common(&p.name)) {
            *votes.entry(&choice.name).or_default() += 1;
        }
    }
    let most = votes.values().copied().max()?;
    votes.into_iter().find(|(_, count)| *count == most).map(|(name, _)| name)
}

fn protocols_bytes(protocols: &[ProtocolValue]) -> usize {
    protocols.iter().map(|p| p.name.len() + p.metadata.0.len()).sum()
}

fn in_base64(bytes: usize) -> usize {
    bytes / 3 * 4 + 4
}

fn in_millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
