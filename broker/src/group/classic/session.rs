//! SyncGroup, Heartbeat, LeaveGroup: what members do within a generation.

use std::collections::BTreeMap;

use bytes::Bytes;
use kafka_protocol::messages::{SyncGroupRequest, SyncGroupResponse};
use kafka_protocol::protocol::StrBytes;
use strandline_metadata::values::group::Blob;
use tokio::time::Instant;

use super::{Answer, ClassicGroup, Phase};
use crate::group::error::{HeartbeatError, MemberError, SyncError};
use crate::group::size::{base64_bytes, check_ids, json_bytes};
use crate::group::{Context, Ticket};
use crate::limits::{ASSIGNMENT_OVERHEAD_BYTES, GROUP_VALUE_BYTES, MEMBER_TEXT_BYTES};

const LEFT: &str = "member_left";

/// Who a member says that it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) member_id: String,
    pub(crate) instance_id: Option<String>,
}

/// A request for a member's assignment; from the leader, with everybody's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sync {
    pub(crate) identity: Identity,
    pub(crate) generation: i32,
    pub(crate) protocol_type: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) assignments: BTreeMap<String, Bytes>,
}

impl Sync {
    /// A request as it is meant, if a group may keep it. Nothing of it is copied before that is
    /// known.
    pub(crate) fn from_request(request: &SyncGroupRequest) -> Result<Self, SyncError> {
        check_request(request)?;
        // Copies, so that nothing of the frame is kept while this waits.
        let copied = |assignment: &Bytes| Bytes::copy_from_slice(assignment);
        let assignments =
            request.assignments.iter().map(|a| (a.member_id.to_string(), copied(&a.assignment))).collect();
        Ok(Self {
            identity: Identity::new(&request.member_id, request.group_instance_id.as_ref()),
            generation: request.generation_id,
            protocol_type: request.protocol_type.as_ref().map(ToString::to_string),
            protocol: request.protocol_name.as_ref().map(ToString::to_string),
            assignments,
        })
    }
}

/// Refuses what no group would keep, or has agreed on.
fn check_request(request: &SyncGroupRequest) -> Result<(), SyncError> {
    let is_unknown = |_| SyncError::Member(MemberError::Unknown("a long id".to_owned()));
    check_ids(&request.member_id, request.group_instance_id.as_deref()).map_err(is_unknown)?;
    let is_long = |text: &StrBytes| text.len() > MEMBER_TEXT_BYTES;
    if request.protocol_type.as_ref().is_some_and(is_long)
        || request.protocol_name.as_ref().is_some_and(is_long)
    {
        return Err(SyncError::OtherProtocol);
    }
    if assigned_bytes(request.assignments.iter().map(|a| (&*a.member_id, &a.assignment))) > GROUP_VALUE_BYTES
    {
        return Err(SyncError::AssignmentTooLarge);
    }
    Ok(())
}

/// How long assignments are when they are stored, at most.
fn assigned_bytes<'a>(assignments: impl Iterator<Item = (&'a str, &'a Bytes)>) -> usize {
    assignments.map(|(id, a)| ASSIGNMENT_OVERHEAD_BYTES + json_bytes(id) + base64_bytes(a.len())).sum()
}

impl Identity {
    /// Who a request says that it comes from.
    pub(crate) fn new(member_id: &StrBytes, instance_id: Option<&StrBytes>) -> Self {
        Self { member_id: member_id.to_string(), instance_id: instance_id.map(ToString::to_string) }
    }
}

impl ClassicGroup {
    /// Takes a sync in. It is answered through its ticket.
    pub(crate) fn sync(&mut self, ticket: Ticket, sync: Sync, ctx: &Context<'_>) {
        if let Err(error) = self.try_sync(ticket, sync, ctx) {
            self.answers.push((ticket, Answer::Sync(Err(error))));
        }
    }

    fn try_sync(&mut self, ticket: Ticket, sync: Sync, ctx: &Context<'_>) -> Result<(), SyncError> {
        self.check_generation(&sync.identity, sync.generation)?;
        let id = sync.identity.member_id;
        let differs = |asked: &Option<String>, own: &str| asked.as_deref().is_some_and(|a| a != own);
        if differs(&sync.protocol_type, &self.protocol_type)
            || differs(&sync.protocol, self.protocol.as_deref().unwrap_or_default())
        {
            return Err(SyncError::OtherProtocol);
        }
        match self.phase {
            Phase::Empty => return Err(MemberError::Unknown(id).into()),
            Phase::Preparing { .. } => return Err(SyncError::Rebalance),
            Phase::Completing => {
                let assigned = assigned_bytes(sync.assignments.iter().map(|(id, a)| (id.as_str(), a)));
                if self.members_bytes("") + assigned > GROUP_VALUE_BYTES {
                    return Err(SyncError::AssignmentTooLarge);
                }
                self.unsynced.remove(&id);
                let before = self.members.get_mut(&id).and_then(|m| m.syncing.replace(ticket));
                if let Some(before) = before {
                    self.answers.push((before, Answer::Sync(Err(SyncError::AskedAgain))));
                }
                if self.leader.as_ref() == Some(&id) {
                    self.assign(sync.assignments, ctx.now);
                }
            }
            Phase::Stable => {
                self.unsynced.remove(&id);
                self.answer_sync(ticket, &id, ctx.now);
            }
        }
        if self.unsynced.is_empty() {
            self.sync_until = None;
        }
        Ok(())
    }

    /// The leader's assignment makes the generation complete.
    fn assign(&mut self, mut assignments: BTreeMap<String, Bytes>, now: Instant) {
        let mut waiting = Vec::new();
        for (id, member) in &mut self.members {
            member.value.assignment = Blob(assignments.remove(id).unwrap_or_default());
            if let Some(ticket) = member.syncing.take() {
                waiting.push((ticket, id.clone()));
            }
        }
        self.phase = Phase::Stable;
        self.changed = true;
        for (ticket, id) in waiting {
            self.answer_sync(ticket, &id, now);
        }
    }

    fn answer_sync(&mut self, ticket: Ticket, id: &str, now: Instant) {
        let Some(member) = self.members.get_mut(id) else { return };
        member.heard_of(now);
        let response = SyncGroupResponse::default()
            .with_protocol_type(Some(self.protocol_type.clone().into()))
            .with_protocol_name(self.protocol.clone().map(Into::into))
            .with_assignment(member.value.assignment.0.clone());
        self.answers.push((ticket, Answer::Sync(Ok(response))));
    }

    /// A member's sign of life. REBALANCE_IN_PROGRESS tells it to join again.
    pub(crate) fn heartbeat(
        &mut self,
        identity: &Identity,
        generation: i32,
        now: Instant,
    ) -> Result<(), HeartbeatError> {
        self.check_generation(identity, generation)?;
        if let Some(member) = self.members.get_mut(&identity.member_id) {
            member.heard_of(now);
        }
        match self.phase {
            Phase::Empty => Err(MemberError::Unknown(identity.member_id.clone()).into()),
            Phase::Preparing { .. } => Err(HeartbeatError::Rebalance),
            Phase::Completing | Phase::Stable => Ok(()),
        }
    }

    /// A member leaves, or an operator removes a static one by its instance id alone.
    pub(crate) fn leave(&mut self, identity: &Identity, ctx: &Context<'_>) -> Result<(), MemberError> {
        if self.pending.remove(&identity.member_id).is_some() {
            self.try_complete_join(ctx);
            return Ok(());
        }
        let id = match &identity.instance_id {
            Some(instance_id) if identity.member_id.is_empty() => {
                let known = self.statics.get(instance_id).cloned();
                known.ok_or_else(|| MemberError::UnknownInstance(instance_id.clone()))?
            }
            instance_id => {
                self.check_member(&identity.member_id, instance_id.as_deref())?;
                identity.member_id.clone()
            }
        };
        self.remove(&id, LEFT, ctx);
        Ok(())
    }
}
