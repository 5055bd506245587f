//! Members of the classic protocol in a group of KIP-848, which there are while consumers move from one to the other.
//!
//! Such a member sees a classic group that it does not lead and in which no round takes longer than its own requests: all
//! are answered at once. Its generation is its member epoch. A heartbeat that is told of a rebalance stands for "there is
//! a new target"; JoinGroup tells what it reads and takes the step; SyncGroup brings what it may read from now on.

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::consumer_group_heartbeat_request::TopicPartitions as Owned;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::{
    HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, SyncGroupRequest, SyncGroupResponse,
};
use kafka_protocol::protocol::StrBytes;
use strandline_metadata::values::group::{
    Blob, ClassicInConsumerValue, ConsumerMemberValue, MemberStateValue, ProtocolValue,
};

use super::heartbeat::Origin;
use super::migrate::to_classic_assignment;
use super::protocol::{self, Subscription};
use super::reconcile::Reported;
use super::{ConsumerGroup, Context, GroupError};
use crate::group::Sender;

/// The protocol type of consumers.
pub(super) const CONSUMER: &str = "consumer";
/// From this version of JoinGroup on, a member without an id gets one and must come back with it.
const MEMBER_ID_REQUIRED: i16 = 4;

impl ConsumerGroup {
    /// Answers a JoinGroup. If the static member that joins was the last one of the new protocol,
    /// [`Self::to_classic`] has the classic group that is left.
    pub(crate) fn join(
        &mut self,
        request: &JoinGroupRequest,
        version: i16,
        sender: &Sender,
        ctx: &Context<'_>,
    ) -> Result<JoinGroupResponse, GroupError> {
        let limits = ctx.settings.min_session_timeout_ms..=ctx.settings.max_session_timeout_ms;
        if !limits.contains(&request.session_timeout_ms) {
            let message = format!("The session timeout must be within {limits:?} ms.");
            return Err(GroupError::new(ResponseError::InvalidSessionTimeout, message));
        }
        let nameless = request.member_id.is_empty();
        let id = if nameless { ctx.fresh_id.to_string() } else { request.member_id.to_string() };
        self.check_room(&request.member_id, ctx)?;
        let subscription = self.check_protocols(request)?;
        let response = JoinGroupResponse::default().with_member_id(StrBytes::from_string(id.clone()));
        if nameless && request.group_instance_id.is_none() && version >= MEMBER_ID_REQUIRED {
            return Ok(response.with_error_code(ResponseError::MemberIdRequired.code()));
        }

        let origin = self.joining_origin(&id, request)?;
        let before = self.before(&id, &origin);
        let rebalance_timeout_ms = match request.rebalance_timeout_ms {
            // Version 0 knows the one timeout only.
            ..0 => request.session_timeout_ms,
            timeout_ms => timeout_ms,
        };
        let member = ConsumerMemberValue {
            instance_id: request
                .group_instance_id
                .as_ref()
                .map(ToString::to_string)
                .or(before.instance_id.clone()),
            rack_id: subscription.rack_id.clone().or(before.rack_id.clone()),
            client_id: sender.client_id.clone(),
            client_host: sender.host.clone(),
            rebalance_timeout_ms,
            subscribed_topics: subscription.topics.iter().cloned().collect(),
            subscribed_regex: None,
            classic: Some(ClassicInConsumerValue {
                session_timeout_ms: request.session_timeout_ms,
                protocols: request.protocols.iter().map(protocol_value).collect(),
            }),
            ..before.clone()
        };

        self.timers.stop_revocation(&id);
        let owned = owned(&subscription, ctx);
        let member = self.admit(&id, &origin, &before, member, Reported(Some(&owned)), ctx);
        self.timers.session(&id, request.session_timeout_ms, ctx);
        self.timers.start_sync(&id, rebalance_timeout_ms, ctx);
        Ok(response
            .with_generation_id(member.epoch)
            .with_protocol_type(Some(StrBytes::from_static_str(CONSUMER)))
            .with_protocol_name(request.protocols.first().map(|p| p.name.clone())))
    }

    /// Answers a SyncGroup.
    pub(crate) fn sync(
        &mut self,
        request: &SyncGroupRequest,
        ctx: &Context<'_>,
    ) -> Result<SyncGroupResponse, GroupError> {
        let id = request.member_id.as_str();
        let instance = request.group_instance_id.as_deref();
        let (member, classic) = self.classic_member(id, instance, request.generation_id)?;
        let protocol = classic.protocols.first();
        let is_of_group = request.protocol_type.as_deref().is_none_or(|t| t == CONSUMER)
            && request.protocol_name.as_deref().is_none_or(|name| protocol.is_some_and(|p| p.name == name));
        if !is_of_group {
            let message = "The protocol is not the one of the answer to JoinGroup.";
            return Err(GroupError::new(ResponseError::InconsistentGroupProtocol, message));
        }
        if self.value.epoch > member.epoch && member.state != MemberStateValue::UnrevokedPartitions {
            let timeout_ms = member.rebalance_timeout_ms;
            self.timers.start_join(id, timeout_ms, ctx);
            return Err(rebalance_in_progress());
        }
        let version = protocol.and_then(|p| protocol::subscription(&p.metadata.0)).map_or(0, |s| s.version);
        let assignment = to_classic_assignment(version, &member.assigned, ctx.topics).unwrap_or_default();
        let session_timeout_ms = classic.session_timeout_ms;
        self.timers.stop_sync(id);
        self.timers.session(id, session_timeout_ms, ctx);
        Ok(SyncGroupResponse::default()
            .with_protocol_type(request.protocol_type.clone())
            .with_protocol_name(request.protocol_name.clone())
            .with_assignment(assignment))
    }

    /// Answers a Heartbeat. It keeps the member's session alive also where the answer is that there is a rebalance.
    pub(crate) fn classic_heartbeat(
        &mut self,
        request: &HeartbeatRequest,
        ctx: &Context<'_>,
    ) -> Result<(), GroupError> {
        let id = request.member_id.as_str();
        let instance = request.group_instance_id.as_deref();
        let (member, classic) = self.classic_member(id, instance, request.generation_id)?;
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
            return Err(rebalance_in_progress());
        }
        Ok(())
    }

    /// Takes members out, of whichever protocol, and says for each whether it is gone. Instance ids suffice for static
    /// members, so that an administrator can remove them.
    pub(crate) fn leave(&mut self, members: &[MemberIdentity], ctx: &Context<'_>) -> Vec<MemberResponse> {
        let mut leaving = Vec::new();
        let mut responses = Vec::with_capacity(members.len());
        for identity in members {
            let response = MemberResponse::default()
                .with_member_id(identity.member_id.clone())
                .with_group_instance_id(identity.group_instance_id.clone());
            let by_instance = identity.group_instance_id.as_ref().filter(|_| identity.member_id.is_empty());
            let id = by_instance.and_then(|i| self.instances.get(i.as_str())).map(String::as_str);
            let id = id.unwrap_or(&identity.member_id);
            match self.named_member(id, identity.group_instance_id.as_deref()) {
                Ok(_) => {
                    leaving.push(id.to_owned());
                    responses.push(response);
                }
                Err(refused) => responses.push(response.with_error_code(refused.code.code())),
            }
        }
        self.remove_members(&leaving, ctx);
        responses
    }

    /// The member of the classic protocol that a request comes from.
    fn classic_member(
        &self,
        id: &str,
        instance: Option<&str>,
        generation: i32,
    ) -> Result<(&ConsumerMemberValue, &ClassicInConsumerValue), GroupError> {
        let member = self.named_member(id, instance)?;
        let Some(classic) = &member.classic else {
            let message = format!("{id:?} does not speak the classic protocol.");
            return Err(GroupError::new(ResponseError::UnknownMemberId, message));
        };
        if member.epoch != generation {
            let message =
                format!("The member is at generation {generation} and ought to be at {}.", member.epoch);
            return Err(GroupError::new(ResponseError::IllegalGeneration, message));
        }
        Ok((member, classic))
    }

    fn joining_origin(&self, id: &str, request: &JoinGroupRequest) -> Result<Origin, GroupError> {
        let Some(instance) = request.group_instance_id.as_deref() else {
            return Ok(if self.value.members.contains_key(id) { Origin::Known } else { Origin::New });
        };
        if !request.member_id.is_empty() {
            return self.static_member(instance, id).map(|_| Origin::Known);
        }
        // A static member that has no member id has started anew, and whoever had its place is history.
        Ok(self.instances.get(instance).map_or(Origin::New, |former| Origin::Replaces(former.clone())))
    }

    /// The subscription of a member that may join, as far as its protocols are concerned.
    fn check_protocols(&self, request: &JoinGroupRequest) -> Result<Subscription, GroupError> {
        let inconsistent = |message: &str| GroupError::new(ResponseError::InconsistentGroupProtocol, message);
        let known_to_all = |name: &str| {
            let mut others = self.value.members.values().filter_map(|m| m.classic.as_ref());
            others.all(|c| c.protocols.iter().any(|p| p.name == name))
        };
        let fits = request.protocol_type.as_str() == CONSUMER
            && request.protocols.iter().any(|p| known_to_all(&p.name));
        if !fits {
            return Err(inconsistent("The group has members that know none of the protocols."));
        }
        // A consumer says the same to all its assignors.
        let first = request.protocols.first();
        first
            .and_then(|p| protocol::subscription(&p.metadata))
            .ok_or_else(|| inconsistent("The subscription can't be read."))
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

fn rebalance_in_progress() -> GroupError {
    GroupError::new(ResponseError::RebalanceInProgress, "There is a new target assignment: join again.")
}

fn protocol_value(protocol: &JoinGroupRequestProtocol) -> ProtocolValue {
    ProtocolValue {
        name: protocol.name.to_string(),
        metadata: Blob(Bytes::copy_from_slice(&protocol.metadata)),
    }
}

/// What a classic member says that it reads, with topic ids. Members of the eager kind give everything up before they
/// join, and say nothing.
fn owned(subscription: &Subscription, ctx: &Context<'_>) -> Vec<Owned> {
    let of_topic = |topic: &protocol::TopicPartitions| {
        let (id, _) = ctx.topics.by_name(&topic.topic)?;
        Some(Owned::default().with_topic_id(id).with_partitions(topic.partitions.clone()))
    };
    subscription.owned_partitions.iter().filter_map(of_topic).collect()
}
