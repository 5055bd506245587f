//! JoinGroup: becoming a member, or taking part in a rebalance.

use std::iter;

use bytes::Bytes;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::{JoinGroupRequest, JoinGroupResponse};
use strandline_metadata::values::group::{Blob, ClassicMemberValue, ProtocolValue};
use tokio::time::Instant;
use uuid::fmt::Hyphenated;

use super::{Answer, ClassicGroup, Member, Phase, common_protocols, millis};
use crate::group::error::{GroupFull, JoinError, MemberError, SyncError};
use crate::group::size::{check_ids, check_member_text, json_bytes, protocols_bytes};
use crate::group::{Context, Sender, Ticket, beginning};
use crate::limits::{
    CLASSIC_MEMBER_OVERHEAD_BYTES, GROUP_MEMBERS_BYTES, MAX_LOGGED_CHARS, MEMBER_METADATA_BYTES,
    MEMBER_PROTOCOLS, NEW_MEMBER_JOIN,
};

/// Why a rebalance begins, as metrics name it.
const JOINED: &str = "member_joined";
const REJOINED: &str = "member_rejoined";
const REPLACED: &str = "static_member_replaced";

/// A request to join, with what the versions leave out filled in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Join {
    /// Empty for a member that has no id yet.
    pub(crate) member_id: String,
    pub(crate) instance_id: Option<String>,
    pub(crate) protocol_type: String,
    pub(crate) protocols: Vec<ProtocolValue>,
    pub(crate) session_timeout_ms: i32,
    pub(crate) rebalance_timeout_ms: i32,
    /// Why it joins, if it says so (KIP-800, from version 8).
    pub(crate) reason: Option<String>,
    pub(crate) sender: Sender,
    /// Whether the client can be told to come back with the id that it is given (KIP-394, from
    /// version 4).
    pub(crate) knows_member_id_required: bool,
    /// Whether a leader can be told that it need not assign (KIP-814, from version 9).
    pub(crate) knows_skip_assignment: bool,
}

impl Join {
    /// A request as its version means it, if it is one that a group may keep. Nothing of it is
    /// copied before that is known.
    pub(crate) fn from_request(
        request: &JoinGroupRequest,
        version: i16,
        sender: Sender,
    ) -> Result<Self, JoinError> {
        check_request(request, &sender)?;
        let protocols = request.protocols.iter().map(|p| ProtocolValue {
            name: p.name.to_string(),
            // A copy: the request that it came in is not to be kept whole.
            metadata: Blob(Bytes::copy_from_slice(&p.metadata)),
        });
        let session_timeout_ms = request.session_timeout_ms;
        Ok(Self {
            member_id: request.member_id.to_string(),
            instance_id: request.group_instance_id.as_ref().map(ToString::to_string),
            protocol_type: request.protocol_type.to_string(),
            protocols: protocols.collect(),
            session_timeout_ms,
            rebalance_timeout_ms: match request.rebalance_timeout_ms {
                // Version 0 knows only one time-out.
                ..0 => session_timeout_ms,
                timeout_ms => timeout_ms,
            },
            reason: request.reason.as_ref().map(|reason| beginning(reason, MAX_LOGGED_CHARS).to_owned()),
            sender,
            knows_member_id_required: version >= 4,
            knows_skip_assignment: version >= 9,
        })
    }

    /// What is to be stored of the member.
    fn into_member(self) -> ClassicMemberValue {
        ClassicMemberValue {
            instance_id: self.instance_id,
            client_id: self.sender.client_id,
            client_host: self.sender.host,
            session_timeout_ms: self.session_timeout_ms,
            rebalance_timeout_ms: self.rebalance_timeout_ms,
            protocols: self.protocols,
            assignment: Blob::default(),
        }
    }

    /// How long the member is when it is stored, at most.
    fn stored_bytes(&self) -> usize {
        // The id that it is given is made of another of its texts, and a UUID.
        let texts = [&self.member_id, &self.sender.client_id, &self.sender.host];
        let texts = texts.into_iter().chain(&self.instance_id).map(|text| json_bytes(text));
        let named = self.instance_id.as_ref().unwrap_or(&self.sender.client_id);
        CLASSIC_MEMBER_OVERHEAD_BYTES
            + texts.sum::<usize>()
            + if self.member_id.is_empty() { json_bytes(named) + "-".len() + Hyphenated::LENGTH } else { 0 }
            + protocols_bytes(&self.protocols)
    }

    pub(crate) fn check_session_timeout(&self, ctx: &Context<'_>) -> Result<(), JoinError> {
        let (least, most) = (ctx.settings.min_session_timeout_ms, ctx.settings.max_session_timeout_ms);
        if (least..=most).contains(&self.session_timeout_ms) {
            return Ok(());
        }
        Err(JoinError::SessionTimeout { least, most })
    }
}

/// Refuses what no group would keep of a member.
fn check_request(request: &JoinGroupRequest, sender: &Sender) -> Result<(), JoinError> {
    check_ids(&request.member_id, request.group_instance_id.as_deref())?;
    check_member_text("client id", &sender.client_id)?;
    check_member_text("protocol type", &request.protocol_type)?;
    let count = request.protocols.len();
    if count > MEMBER_PROTOCOLS {
        return Err(JoinError::TooManyProtocols { count });
    }
    for protocol in &request.protocols {
        check_member_text("name of a protocol", &protocol.name)?;
    }
    check_metadata(request.protocols.iter().map(|p| p.name.len() + p.metadata.len()))
}

/// Refuses protocols of these sizes if they are too much for one member.
fn check_metadata(protocols: impl Iterator<Item = usize>) -> Result<(), JoinError> {
    let bytes = protocols.sum();
    if bytes > MEMBER_METADATA_BYTES {
        return Err(JoinError::MetadataTooLarge { bytes, most: MEMBER_METADATA_BYTES });
    }
    Ok(())
}

impl ClassicGroup {
    /// Takes a join in. It is answered through its ticket.
    pub(crate) fn join(&mut self, ticket: Ticket, join: Join, ctx: &Context<'_>) {
        if let Err(error) = self.try_join(ticket, join, ctx) {
            self.answers.push((ticket, Answer::Join(Err(error))));
        }
    }

    fn try_join(&mut self, ticket: Ticket, join: Join, ctx: &Context<'_>) -> Result<(), JoinError> {
        join.check_session_timeout(ctx)?;
        self.check_protocols(&join)?;
        let is_member = self.members.contains_key(&join.member_id);
        let is_known = is_member || self.pending.contains_key(&join.member_id);
        if !is_known && self.members.len() + self.pending.len() >= ctx.settings.max_size {
            let replaces = join.instance_id.as_ref().is_some_and(|i| self.statics.contains_key(i));
            if !replaces {
                return Err(GroupFull(ctx.settings.max_size).into());
            }
        }
        match (&join.instance_id, join.member_id.is_empty()) {
            (Some(_), true) => self.join_static(ticket, join, ctx),
            (None, true) => self.join_dynamic(ticket, join, ctx)?,
            (_, false) => self.join_again(ticket, join, ctx)?,
        }
        Ok(())
    }

    fn check_protocols(&self, join: &Join) -> Result<(), JoinError> {
        check_metadata(join.protocols.iter().map(|p| p.name.len() + p.metadata.0.len()))?;
        let replaced = join.instance_id.as_ref().and_then(|i| self.statics.get(i)).unwrap_or(&join.member_id);
        if self.members_bytes(replaced) + join.stored_bytes() > GROUP_MEMBERS_BYTES {
            return Err(JoinError::GroupTooLarge);
        }
        if join.protocol_type.is_empty() || join.protocols.is_empty() {
            return Err(JoinError::NoProtocol);
        }
        if self.members.is_empty() {
            return Ok(());
        }
        if join.protocol_type != self.protocol_type {
            return Err(JoinError::OtherProtocolType);
        }
        let members = self.members.values().map(|m| m.value.protocols.as_slice());
        if common_protocols(iter::once(join.protocols.as_slice()).chain(members)).is_empty() {
            return Err(JoinError::NoCommonProtocol);
        }
        Ok(())
    }

    fn join_dynamic(&mut self, ticket: Ticket, join: Join, ctx: &Context<'_>) -> Result<(), JoinError> {
        let id = format!("{}-{}", join.sender.client_id, ctx.fresh_id);
        if join.knows_member_id_required {
            // Whoever does not come back with it leaves nothing behind.
            self.pending.insert(id.clone(), ctx.now + millis(join.session_timeout_ms));
            return Err(JoinError::MemberIdRequired(id));
        }
        self.add(ticket, id, join, ctx);
        Ok(())
    }

    fn join_static(&mut self, ticket: Ticket, join: Join, ctx: &Context<'_>) {
        let instance_id = join.instance_id.clone().unwrap_or_default();
        let id = format!("{instance_id}-{}", ctx.fresh_id);
        match self.statics.get(&instance_id).cloned() {
            None => self.add(ticket, id, join, ctx),
            Some(before) => self.replace_static(ticket, &before, &id, join, ctx),
        }
    }

    fn join_again(&mut self, ticket: Ticket, join: Join, ctx: &Context<'_>) -> Result<(), JoinError> {
        let id = join.member_id.clone();
        if self.pending.contains_key(&id) {
            if join.instance_id.is_some() {
                return Err(JoinError::PendingStatic);
            }
            self.add(ticket, id, join, ctx);
            return Ok(());
        }
        self.check_member(&id, join.instance_id.as_deref())?;
        let is_leader = self.leader.as_ref() == Some(&id);
        let is_same = self.members.get(&id).is_some_and(|m| m.value.protocols == join.protocols);
        match self.phase {
            Phase::Empty => return Err(MemberError::Unknown(id).into()),
            Phase::Preparing { .. } => {
                self.update(ticket, &id, join, ctx.now);
                self.try_complete_join(ctx);
            }
            // It did not hear of the generation: its answer was lost. Nobody else needs to be
            // disturbed.
            Phase::Completing if is_same => self.answer_join(ticket, &id, ctx.now),
            // A leader that joins again wants to assign anew; a follower that says nothing new does
            // not.
            Phase::Stable if is_same && !is_leader => self.answer_join(ticket, &id, ctx.now),
            Phase::Completing | Phase::Stable => {
                self.update(ticket, &id, join, ctx.now);
                self.prepare_rebalance(REJOINED, ctx);
            }
        }
        Ok(())
    }

    /// A new member, whose coming is a reason to rebalance.
    fn add(&mut self, ticket: Ticket, id: String, join: Join, ctx: &Context<'_>) {
        self.pending.remove(&id);
        if self.members.is_empty() {
            self.protocol_type.clone_from(&join.protocol_type);
        }
        if let Some(instance_id) = &join.instance_id {
            self.statics.insert(instance_id.clone(), id.clone());
        }
        self.leader.get_or_insert_with(|| id.clone());
        let member = Member {
            value: join.into_member(),
            joining: Some(ticket),
            syncing: None,
            is_new: true,
            session_until: ctx.now + NEW_MEMBER_JOIN,
        };
        self.members.insert(id, member);
        if let Phase::Preparing { first: Some(first), .. } = &mut self.phase {
            first.newcomer = true;
        }
        match self.phase {
            Phase::Preparing { .. } => self.try_complete_join(ctx),
            _ => self.prepare_rebalance(JOINED, ctx),
        }
    }

    /// What a member says about itself now, and that it waits for the others.
    fn update(&mut self, ticket: Ticket, id: &str, join: Join, now: Instant) {
        let Some(member) = self.members.get_mut(id) else { return };
        let instance_id = member.value.instance_id.take();
        let assignment = std::mem::take(&mut member.value.assignment);
        member.value = ClassicMemberValue { instance_id, assignment, ..join.into_member() };
        member.heard_of(now);
        if let Some(before) = member.joining.replace(ticket) {
            self.answers.push((before, Answer::Join(Err(JoinError::JoinedAgain))));
        }
    }

    /// A process with the instance id of a member takes its place (KIP-345): the one before is
    /// fenced, and if nothing about the group changes by it, nobody else notices.
    fn replace_static(&mut self, ticket: Ticket, before: &str, id: &str, join: Join, ctx: &Context<'_>) {
        let Some(mut member) = self.members.remove(before) else { return };
        let fenced = MemberError::fenced(join.instance_id.as_deref().unwrap_or_default(), id, before);
        self.answers
            .extend(member.take_waiting(&JoinError::Member(fenced.clone()), &SyncError::Member(fenced)));
        let was_leader = self.leader.as_deref() == Some(before);
        if was_leader {
            self.leader = Some(id.to_owned());
        }
        if self.unsynced.remove(before) {
            self.unsynced.insert(id.to_owned());
        }
        if let Some(instance_id) = &join.instance_id {
            self.statics.insert(instance_id.clone(), id.to_owned());
        }
        let skips = was_leader && join.knows_skip_assignment;
        self.members.insert(id.to_owned(), member);
        self.update(ticket, id, join, ctx.now);
        match self.phase {
            Phase::Stable if self.select_protocol() == self.protocol => {
                // The new id must survive the coordinator, with or without a rebalance.
                self.changed = true;
                if let Some(member) = self.members.get_mut(id) {
                    member.joining = None;
                }
                // A leader whose client cannot be told to leave the assignment alone hears that the
                // one that is gone leads.
                let leader = if was_leader && !skips { Some(before) } else { self.leader.as_deref() };
                let response = self.joined(id, leader, skips).with_skip_assignment(skips);
                self.answers.push((ticket, Answer::Join(Ok(response))));
            }
            Phase::Stable | Phase::Completing => {
                self.changed = true;
                self.prepare_rebalance(REPLACED, ctx);
            }
            Phase::Preparing { .. } | Phase::Empty => self.try_complete_join(ctx),
        }
    }

    /// Tells a member which generation it is in; the leader also gets everybody's metadata.
    pub(super) fn answer_join(&mut self, ticket: Ticket, id: &str, now: Instant) {
        let is_leader = self.leader.as_deref() == Some(id);
        let response = self.joined(id, self.leader.as_deref(), is_leader);
        self.answers.push((ticket, Answer::Join(Ok(response))));
        if let Some(member) = self.members.get_mut(id) {
            member.heard_of(now);
        }
    }

    /// The generation as one of its members is told of it.
    fn joined(&self, id: &str, leader: Option<&str>, with_members: bool) -> JoinGroupResponse {
        JoinGroupResponse::default()
            .with_generation_id(self.generation)
            .with_protocol_type(Some(self.protocol_type.clone().into()))
            .with_protocol_name(self.protocol.clone().map(Into::into))
            .with_leader(leader.unwrap_or_default().to_owned().into())
            .with_member_id(id.to_owned().into())
            .with_members(if with_members { self.join_members() } else { Vec::new() })
    }

    fn join_members(&self) -> Vec<JoinGroupResponseMember> {
        let agreed = self.protocol.as_deref().unwrap_or_default();
        let members = self.members.iter().map(|(id, m)| {
            JoinGroupResponseMember::default()
                .with_member_id(id.clone().into())
                .with_group_instance_id(m.value.instance_id.clone().map(Into::into))
                .with_metadata(m.metadata(agreed).cloned().unwrap_or_default())
        });
        members.collect()
    }
}
