//! ConsumerGroupHeartbeat: how a member of the new protocol joins, stays, says what it reads, and
//! leaves.

use kafka_protocol::messages::consumer_group_heartbeat_response::{
    Assignment as AssignmentResponse, TopicPartitions as AssignedPartitions,
};
use kafka_protocol::messages::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse};
use kafka_protocol::protocol::StrBytes;
use strandline_metadata::values::group::{Assignment, ConsumerMemberValue, MemberStateValue};

use super::reconcile::{Reported, Surroundings, reconcile};
use super::{AWAY, ConsumerGroup, Context, JOINING, LEAVING, is_reconciled};
use crate::group::Sender;
use crate::group::assign::Assignor;
use crate::group::error::{ConsumerHeartbeatError, MemberError};
use crate::group::size::{check_ids, check_member_text};
use crate::limits::MEMBER_METADATA_BYTES;
use crate::patterns::check_length;

/// From this version on, members choose their id themselves.
const MEMBER_ID_REQUIRED: i16 = 1;

/// Who a request to join comes from.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Nobody known.
    New,
    /// A member, by its id.
    Known,
    /// A static member that was here under this other id.
    Replaces(String),
}

impl ConsumerGroup {
    /// Answers a heartbeat.
    pub(crate) fn heartbeat(
        &mut self,
        request: &ConsumerGroupHeartbeatRequest,
        version: i16,
        sender: &Sender,
        ctx: &Context<'_>,
    ) -> Result<ConsumerGroupHeartbeatResponse, ConsumerHeartbeatError> {
        validate(request, version, sender)?;
        if request.member_epoch < JOINING {
            return Ok(self.leave_by_heartbeat(request, ctx)?);
        }
        self.check_room(&request.member_id, ctx)?;
        let id = if request.member_id.is_empty() {
            ctx.fresh_id.to_string()
        } else {
            request.member_id.to_string()
        };
        let origin = self.origin(&id, request)?;
        let before = self.before(&id, &origin);
        let member = updated(before.clone(), request, sender);
        if says_anew(request) && !self.fits(&id, &origin, &before, &member) {
            return Err(ConsumerHeartbeatError::GroupTooLarge);
        }
        if let Some(pattern) = &member.subscribed_regex
            && member.subscribed_regex != before.subscribed_regex
        {
            let others = self.value.members.iter().filter(|(other, _)| **other != id);
            self.patterns.learn(pattern, others.map(|(_, m)| m), ctx.topics)?;
        }

        // Nothing is refused from here on.
        self.timers.stop_classic(&id);
        let reported = Reported(request.topic_partitions.as_deref());
        let after = self.admit(&id, &origin, &before, member, reported, ctx);
        self.patterns.forget_unused(self.value.members.values());
        self.timers.session(&id, ctx.settings.consumer_session_timeout_ms, ctx);

        // A member that still names its epoch before has not got the answer with the new one, nor
        // what was in it.
        let missed_answer = request.member_epoch != before.epoch;
        let told = request.member_epoch == JOINING
            || is_full(request)
            || missed_answer
            || after.assigned != before.assigned;
        Ok(ConsumerGroupHeartbeatResponse::default()
            .with_member_id(Some(StrBytes::from_string(id)))
            .with_member_epoch(after.epoch)
            .with_heartbeat_interval_ms(ctx.settings.consumer_heartbeat_interval_ms)
            .with_assignment(told.then(|| to_response(&after.assigned))))
    }

    /// Who a heartbeat comes from, unless it comes from nobody that may send it.
    fn origin(
        &self,
        id: &str,
        request: &ConsumerGroupHeartbeatRequest,
    ) -> Result<Origin, ConsumerHeartbeatError> {
        let joining = request.member_epoch == JOINING;
        let instance = request.instance_id.as_deref();
        if !joining {
            let member = self.named_member(id, instance)?;
            check_epoch(member, request)?;
            return Ok(Origin::Known);
        }
        let Some(owner) = instance.and_then(|i| self.instances.get(i)) else {
            return Ok(if self.value.members.contains_key(id) { Origin::Known } else { Origin::New });
        };
        // Under its own id it joins again, perhaps because the answer to its first request was
        // lost.
        if owner == id {
            return Ok(Origin::Known);
        }
        let former = self.member(owner)?;
        if former.classic.is_none() && former.epoch != AWAY {
            let (member, owner) = (id.to_owned(), owner.clone());
            return Err(ConsumerHeartbeatError::UnreleasedInstance { member, owner });
        }
        Ok(Origin::Replaces(owner.clone()))
    }

    /// The member before the request. One that takes the place of another starts with all that the
    /// other had: nothing moves because a static member comes back.
    pub(super) fn before(&self, id: &str, origin: &Origin) -> ConsumerMemberValue {
        let former = match origin {
            Origin::New => None,
            Origin::Known => self.value.members.get(id),
            Origin::Replaces(former) => self.value.members.get(former),
        };
        let mut member = former.cloned().unwrap_or_default();
        if matches!(origin, Origin::Replaces(_)) || member.epoch == AWAY {
            (member.epoch, member.previous_epoch) = (JOINING, JOINING);
        }
        member
    }

    /// Writes a member as its request has it, and takes group and member on from there.
    pub(super) fn admit(
        &mut self,
        id: &str,
        origin: &Origin,
        before: &ConsumerMemberValue,
        member: ConsumerMemberValue,
        reported: Reported<'_>,
        ctx: &Context<'_>,
    ) -> ConsumerMemberValue {
        if let Origin::Replaces(former) = origin {
            self.forget(former);
        }
        let subscription_changed = member.subscribed_topics != before.subscribed_topics
            || member.subscribed_regex != before.subscribed_regex;
        self.left_to_classic = false;
        self.store(id, member);
        if self.value.epoch == 0 || subscription_changed {
            self.bump_epoch(ctx);
        }
        self.follow_with_target(ctx);
        self.reconcile_member(id, subscription_changed, reported, ctx);
        self.value.members.get(id).cloned().unwrap_or_default()
    }

    fn reconcile_member(
        &mut self,
        id: &str,
        subscription_changed: bool,
        reported: Reported<'_>,
        ctx: &Context<'_>,
    ) {
        let Some(member) = self.value.members.get(id) else { return };
        // So it is with nearly every heartbeat.
        if is_reconciled(member, self.value.assignment_epoch) && !subscription_changed {
            return;
        }
        let mut member = member.clone();
        let subscribed = self.subscription(&member, ctx);
        let around = Surroundings {
            assignment_epoch: self.value.assignment_epoch,
            subscribed: &subscribed,
            subscription_changed,
            owners: &self.owners,
            reported,
        };
        reconcile(&mut member, &around);
        if self.value.members.get(id) == Some(&member) {
            return;
        }
        if member.state == MemberStateValue::UnrevokedPartitions && member.classic.is_none() {
            self.timers.start_revocation(id, member.rebalance_timeout_ms, ctx);
        } else {
            self.timers.stop_revocation(id);
        }
        self.store(id, member);
    }

    fn leave_by_heartbeat(
        &mut self,
        request: &ConsumerGroupHeartbeatRequest,
        ctx: &Context<'_>,
    ) -> Result<ConsumerGroupHeartbeatResponse, MemberError> {
        let id = request.member_id.as_str();
        let mut member = self.named_member(id, request.instance_id.as_deref())?.clone();
        if request.member_epoch == AWAY {
            // It keeps its place, and what it reads, until it is back or its session ends.
            member.epoch = AWAY;
            member.pending_revocation = Assignment::new();
            self.store(id, member);
            self.timers.stop_revocation(id);
        } else {
            self.remove_members(&[id.to_owned()], ctx);
        }
        Ok(ConsumerGroupHeartbeatResponse::default()
            .with_member_id(Some(request.member_id.clone()))
            .with_member_epoch(request.member_epoch))
    }
}

/// What no request may look like, whatever the group.
pub(crate) fn validate(
    request: &ConsumerGroupHeartbeatRequest,
    version: i16,
    sender: &Sender,
) -> Result<(), ConsumerHeartbeatError> {
    check_sizes(request, sender)?;
    let epoch = request.member_epoch;
    let needs_member_id = version >= MEMBER_ID_REQUIRED || epoch > JOINING || epoch == LEAVING;
    let is_empty = |text: &Option<StrBytes>| text.as_ref().is_some_and(|t| t.is_empty());
    let empty = [
        ("MemberId", needs_member_id && request.member_id.is_empty()),
        ("GroupId", request.group_id.is_empty()),
        ("InstanceId", is_empty(&request.instance_id)),
        ("RackId", is_empty(&request.rack_id)),
    ];
    if let Some((field, _)) = empty.into_iter().find(|(_, is_empty)| *is_empty) {
        return Err(ConsumerHeartbeatError::Empty(field));
    }
    match epoch {
        JOINING => {
            if request.rebalance_timeout_ms == -1 {
                return Err(ConsumerHeartbeatError::NoRebalanceTimeout);
            }
            if request.topic_partitions.as_ref().is_none_or(|t| !t.is_empty()) {
                return Err(ConsumerHeartbeatError::JoinsWithPartitions);
            }
            if request.subscribed_topic_names.is_none() && request.subscribed_topic_regex.is_none() {
                return Err(ConsumerHeartbeatError::NoSubscription);
            }
        }
        AWAY if request.instance_id.is_none() => return Err(ConsumerHeartbeatError::NoInstanceId),
        ..AWAY => return Err(ConsumerHeartbeatError::InvalidEpoch),
        _ => {}
    }
    match request.server_assignor.as_deref() {
        Some(name) if Assignor::by_name(name).is_none() => {
            let known = Assignor::ALL.map(Assignor::name).join(", ");
            Err(ConsumerHeartbeatError::UnsupportedAssignor { name: name.to_owned(), known })
        }
        _ => Ok(()),
    }
}

/// Refuses a member that says more than any group keeps of it.
fn check_sizes(
    request: &ConsumerGroupHeartbeatRequest,
    sender: &Sender,
) -> Result<(), ConsumerHeartbeatError> {
    check_ids(&request.member_id, request.instance_id.as_deref())?;
    check_member_text("client id", &sender.client_id)?;
    check_member_text("rack id", request.rack_id.as_deref().unwrap_or_default())?;
    let names = request.subscribed_topic_names.iter().flatten().map(|name| name.len());
    let bytes = names.sum::<usize>() + request.subscribed_topic_regex.as_ref().map_or(0, |p| p.len());
    if bytes > MEMBER_METADATA_BYTES {
        return Err(ConsumerHeartbeatError::SubscriptionTooLarge { bytes, most: MEMBER_METADATA_BYTES });
    }
    // Before anybody waits for the group to compile it.
    if let Some(pattern) = &request.subscribed_topic_regex {
        check_length(pattern).map_err(ConsumerHeartbeatError::InvalidPattern)?;
    }
    Ok(())
}

/// Whether a member joins or says anything that is kept of it, as few heartbeats do.
fn says_anew(request: &ConsumerGroupHeartbeatRequest) -> bool {
    request.member_epoch == JOINING
        || request.instance_id.is_some()
        || request.rack_id.is_some()
        || request.server_assignor.is_some()
        || request.subscribed_topic_names.is_some()
        || request.subscribed_topic_regex.is_some()
}

/// Refuses a member whose epoch is not the one that it was told.
///
/// The epoch before is good as long as the member reads nothing but what it may read by now: the
/// answer with the new epoch may have been lost.
fn check_epoch(
    member: &ConsumerMemberValue,
    request: &ConsumerGroupHeartbeatRequest,
) -> Result<(), ConsumerHeartbeatError> {
    let (said, known) = (request.member_epoch, member.epoch);
    let reported = Reported(request.topic_partitions.as_deref());
    if said == known || said < known && said == member.previous_epoch && reported.is_within(&member.assigned)
    {
        return Ok(());
    }
    Err(ConsumerHeartbeatError::FencedEpoch { named: said, current: known })
}

/// The member with what a request says of it. What the request leaves out stays.
fn updated(
    mut member: ConsumerMemberValue,
    request: &ConsumerGroupHeartbeatRequest,
    sender: &Sender,
) -> ConsumerMemberValue {
    let owned = |text: &StrBytes| text.to_string();
    if let Some(instance) = &request.instance_id {
        member.instance_id = Some(owned(instance));
    }
    if let Some(rack) = &request.rack_id {
        member.rack_id = Some(owned(rack));
    }
    if request.rebalance_timeout_ms != -1 {
        member.rebalance_timeout_ms = request.rebalance_timeout_ms;
    }
    if let Some(assignor) = &request.server_assignor {
        member.server_assignor = Some(owned(assignor));
    }
    if let Some(names) = &request.subscribed_topic_names {
        member.subscribed_topics = names.iter().map(|n| owned(n)).collect();
    }
    if let Some(pattern) = &request.subscribed_topic_regex {
        member.subscribed_regex = Some(owned(pattern)).filter(|p| !p.is_empty());
    }
    member.client_id.clone_from(&sender.client_id);
    member.client_host.clone_from(&sender.host);
    member.classic = None;
    member
}

/// Whether a request says everything that a member has to say, as it does after anything went
/// wrong.
fn is_full(request: &ConsumerGroupHeartbeatRequest) -> bool {
    request.rebalance_timeout_ms != -1
        && (request.subscribed_topic_names.is_some() || request.subscribed_topic_regex.is_some())
        && request.topic_partitions.is_some()
}

fn to_response(assigned: &Assignment) -> AssignmentResponse {
    let of_topic = |(topic, partitions): (&uuid::Uuid, &strandline_metadata::values::group::PartitionSet)| {
        AssignedPartitions::default()
            .with_topic_id(*topic)
            .with_partitions(super::describe::numbers(partitions))
    };
    AssignmentResponse::default().with_topic_partitions(assigned.iter().map(of_topic).collect())
}
