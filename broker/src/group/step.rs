//! One command after the other: what each means for a group of either protocol.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::{
    ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, JoinGroupRequest, JoinGroupResponse,
    SyncGroupRequest, SyncGroupResponse,
};
use strandline_metadata::groups::OffsetsKey;
use tokio::time::Instant;
use tracing::{debug, info};

use super::classic::ClassicGroup;
use super::classic::join::Join;
use super::classic::session::{Identity, Sync};
use super::command::{
    Command, CommitOffsets, FetchOffsets, FetchedOffset, OffsetSelection, RefusedPartitions, Reply,
};
use super::consumer::ConsumerGroup;
use super::engine::Engine;
use super::offsets::{self, Expiry};
use super::task::{GroupTask, Waiting};
use super::topics::BrokerTopics;
use super::{Context, GroupError, Sender};
use crate::limits::{MAX_LOGGED_CHARS, MAX_SKEW_MS};

impl GroupTask {
    /// Takes one command in.
    pub(super) fn step(&mut self, command: Command) {
        match command {
            Command::Join { request, version, sender, reply } => self.join(&request, version, sender, reply),
            Command::Sync(request, reply) => self.sync(&request, reply),
            Command::Heartbeat(request, reply) => {
                let identity = Identity::new(&request.member_id, request.group_instance_id.as_ref());
                let answer = self.with_context(|task, ctx| match &mut task.engine {
                    Engine::None => Err(unknown_member()),
                    Engine::Classic(group) => group.heartbeat(&identity, request.generation_id, ctx.now),
                    Engine::Consumer(group) => group.classic_heartbeat(&request, ctx),
                });
                self.after_consumer_step();
                self.settle();
                self.answer(reply, answer);
            }
            Command::Leave { members, reply } => {
                self.reason = "member_left";
                for member in &members {
                    let instance = member.group_instance_id.as_deref();
                    self.log_reason("leaves", &member.member_id, instance, member.reason.as_deref());
                }
                let answers = self.with_context(|task, ctx| {
                    if let Engine::Consumer(group) = &mut task.engine {
                        return group.leave(&members, ctx);
                    }
                    members.into_iter().map(|member| task.leave(member, ctx)).collect()
                });
                self.after_consumer_step();
                self.settle();
                self.answer(reply, Ok(answers));
            }
            Command::ConsumerHeartbeat { request, version, sender, reply } => {
                self.reason = match request.member_epoch {
                    0 => "member_joined",
                    ..0 => "member_left",
                    _ => "subscription_changed",
                };
                let answer = self.consumer_heartbeat(&request, version, &sender);
                self.after_consumer_step();
                self.settle();
                self.answer(reply, answer);
            }
            Command::Commit(commit, reply) => self.commit(commit, reply),
            Command::FetchOffsets(fetch, reply) => self.fetch_offsets(fetch, reply),
            Command::DeleteOffsets { partitions, reply } => self.delete_offsets(&partitions, reply),
            Command::Describe(reply) => {
                let answer = if self.exists() { self.engine.describe() } else { Err(not_found()) };
                if self.is_of_offsets() {
                    self.answer_when_stored(reply, answer);
                } else {
                    self.answer(reply, answer);
                }
            }
            Command::ConsumerDescribe(version, reply) => {
                let topics = BrokerTopics(&self.broker);
                let answer = match &self.engine {
                    Engine::Consumer(group) => Ok(group.describe(version, &topics)),
                    Engine::None | Engine::Classic(_) => Err(not_found()),
                };
                self.answer(reply, answer);
            }
            Command::Delete(reply) => self.delete(reply),
            Command::Sweep => self.sweep(),
        }
    }

    /// Whether anything is known of the group.
    fn exists(&self) -> bool {
        self.revision > 0 || !self.engine.is_empty() || !self.offsets.is_empty()
    }

    /// Whether what there is of the group, if there is anything, is committed offsets.
    fn is_of_offsets(&self) -> bool {
        self.revision == 0 && self.engine.is_empty()
    }

    /// Refuses for as long as it is not known what is stored: there may be more to delete than is known.
    fn check_offsets_known(&self) -> Result<(), GroupError> {
        if self.offsets_known {
            return Ok(());
        }
        let why = "the outcome of a write is not known yet";
        Err(GroupError::new(ResponseError::CoordinatorNotAvailable, why))
    }

    fn join(
        &mut self,
        request: &JoinGroupRequest,
        version: i16,
        sender: Sender,
        reply: Reply<JoinGroupResponse>,
    ) {
        self.reason = "member_joined";
        let instance = request.group_instance_id.as_deref();
        self.log_reason("joins", &request.member_id, instance, request.reason.as_deref());
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let mut reply = Some(reply);
        let answer = self.with_context(|task, ctx| {
            if let Engine::Consumer(group) = &mut task.engine
                && !group.is_empty()
            {
                return Some(group.join(request, version, &sender, ctx));
            }
            task.tickets.extend(reply.take().map(|reply| (ticket, Waiting::Join(reply))));
            let join = Join::from_request(request, version, sender);
            if let Engine::Classic(group) = &mut task.engine {
                group.join(ticket, join, ctx);
                return None;
            }
            // Nobody is there, so nobody speaks another protocol. The group is what it was if the member is refused.
            let mut group = ClassicGroup::new();
            group.join(ticket, join, ctx);
            if group.is_empty() {
                task.answer_tickets(group.take_answers());
            } else {
                task.engine = Engine::Classic(group);
            }
            None
        });
        self.after_consumer_step();
        self.settle();
        if let (Some(answer), Some(reply)) = (answer, reply) {
            self.answer(reply, answer);
        }
    }

    /// Logs why a member says that it joins or leaves (KIP-800).
    fn log_reason(&self, what: &str, member_id: &str, instance_id: Option<&str>, reason: Option<&str>) {
        if let Some(reason) = reason.filter(|r| !r.is_empty()) {
            // A client may send anything: what it says is quoted, and not all of it is kept.
            let [reason, member_id] = [reason, member_id].map(|said| cut(said, MAX_LOGGED_CHARS));
            let instance_id = instance_id.map(|said| cut(said, MAX_LOGGED_CHARS));
            debug!(group = ?self.group, ?member_id, ?instance_id, ?reason, "a member {what} and says why");
        }
    }

    fn sync(&mut self, request: &SyncGroupRequest, reply: Reply<SyncGroupResponse>) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let mut reply = Some(reply);
        let answer = self.with_context(|task, ctx| match &mut task.engine {
            Engine::None => Some(Err(unknown_member())),
            Engine::Classic(group) => {
                task.tickets.extend(reply.take().map(|reply| (ticket, Waiting::Sync(reply))));
                group.sync(ticket, Sync::from_request(request), ctx);
                None
            }
            Engine::Consumer(group) => Some(group.sync(request, ctx)),
        });
        self.after_consumer_step();
        self.settle();
        if let (Some(answer), Some(reply)) = (answer, reply) {
            self.answer(reply, answer);
        }
    }

    fn leave(&mut self, member: MemberIdentity, ctx: &Context<'_>) -> MemberResponse {
        let identity = Identity::new(&member.member_id, member.group_instance_id.as_ref());
        let left = match &mut self.engine {
            Engine::Classic(group) => group.leave(&identity, ctx),
            Engine::None | Engine::Consumer(_) => Err(unknown_member()),
        };
        MemberResponse::default()
            .with_member_id(member.member_id)
            .with_group_instance_id(member.group_instance_id)
            .with_error_code(left.err().map_or(0, |e| e.code.code()))
    }

    fn consumer_heartbeat(
        &mut self,
        request: &ConsumerGroupHeartbeatRequest,
        version: i16,
        sender: &Sender,
    ) -> Result<ConsumerGroupHeartbeatResponse, GroupError> {
        let is_join = request.member_epoch == 0;
        let candidate = self.with_context(|task, ctx| match &task.engine {
            Engine::Consumer(_) => Ok(None),
            Engine::None if !is_join => Err(not_found()),
            Engine::Classic(_) if !is_join => {
                Err(GroupError::new(ResponseError::GroupIdNotFound, "the group speaks the classic protocol"))
            }
            Engine::Classic(group) if !group.is_empty() => task.upgraded(group, ctx).map(Some),
            Engine::Classic(_) | Engine::None => Ok(Some(ConsumerGroup::new())),
        })?;
        self.with_context(|task, ctx| match (candidate, &mut task.engine) {
            // The group is what it was if the member is refused.
            (Some(mut group), _) => {
                let answer = group.heartbeat(request, version, sender, ctx)?;
                task.become_consumer(group);
                Ok(answer)
            }
            (None, Engine::Consumer(group)) => group.heartbeat(request, version, sender, ctx),
            (None, Engine::Classic(_) | Engine::None) => Err(not_found()),
        })
    }

    /// The group with the members that it has, in the new protocol (KIP-848, online migration).
    fn upgraded(&self, group: &ClassicGroup, ctx: &Context<'_>) -> Result<ConsumerGroup, GroupError> {
        if !ctx.settings.may_upgrade {
            let why = "the group has members of the classic protocol, and may not be migrated";
            return Err(GroupError::new(ResponseError::GroupIdNotFound, why));
        }
        debug_assert!(matches!(self.engine, Engine::Classic(_)), "only a classic group is upgraded");
        ConsumerGroup::from_classic(&group.value(), ctx)
    }

    /// Takes the engine of the new protocol. Who waits in the old one asks again.
    fn become_consumer(&mut self, group: ConsumerGroup) {
        if let Engine::Classic(classic) = &self.engine
            && !classic.is_empty()
        {
            info!(group = self.group, "a group changes to the new protocol");
            for ticket in classic.waiting() {
                let why = "the group changes its protocol";
                let error = GroupError::new(ResponseError::RebalanceInProgress, why);
                match self.tickets.remove(&ticket) {
                    Some(Waiting::Join(reply)) => drop(reply.send(Err(error))),
                    Some(Waiting::Sync(reply)) => drop(reply.send(Err(error))),
                    None => {}
                }
            }
        }
        self.engine = Engine::Consumer(group);
        self.mark_changed();
    }

    /// Makes a group of the new protocol a classic one when nobody is left who speaks the new one.
    pub(super) fn after_consumer_step(&mut self) {
        if !matches!(self.engine, Engine::Consumer(_)) {
            return;
        }
        self.with_context(|task, ctx| {
            let Engine::Consumer(group) = &task.engine else { return };
            let Some(downgraded) = group.to_classic(ctx) else { return };
            info!(group = task.group, "a group changes to the classic protocol");
            let mut group = ClassicGroup::from_value(&downgraded.group, ctx.now);
            if downgraded.rebalance {
                group.rebalance_after_downgrade(ctx);
            }
            task.engine = Engine::Classic(group);
            task.mark_changed();
        });
    }

    fn commit(&mut self, commit: CommitOffsets, reply: Reply<RefusedPartitions>) {
        if let Err(error) = self.engine.check_commit(&commit.identity, commit.generation, commit.version) {
            self.answer(reply, Err(error));
            return;
        }
        if let Engine::Classic(group) = &mut self.engine {
            group.committed(&commit.identity.member_id, Instant::now());
        }
        let mut too_large = RefusedPartitions::new();
        let count = commit.commits.len();
        for one in commit.commits {
            let place = (one.topic.clone(), one.partition);
            if !self.offsets.commit(one) {
                too_large.insert(place);
            }
        }
        self.broker.metrics.offsets_committed(count - too_large.len());
        self.answer_when_stored(reply, Ok(too_large));
    }

    fn fetch_offsets(&mut self, fetch: FetchOffsets, reply: Reply<Vec<FetchedOffset>>) {
        if let (Some((member_id, epoch)), Engine::Consumer(group)) = (&fetch.member, &self.engine)
            && let Err(error) = group.validate_offset_fetch(Some(member_id), *epoch)
        {
            self.answer(reply, Err(error));
            return;
        }
        // Another broker may have coordinated the group for a while: only the store knows what is committed.
        self.fetches.push((fetch, reply));
    }

    /// What of the wanted offsets is stored.
    pub(super) fn find_offsets(&self, fetch: &FetchOffsets) -> Vec<FetchedOffset> {
        let stored = self.offsets.stored();
        let found = |topic: &str, partition: u32, c: &strandline_metadata::values::group::CommittedOffset| {
            FetchedOffset {
                topic: topic.to_owned(),
                partition,
                offset: c.offset,
                leader_epoch: c.leader_epoch,
                metadata: c.metadata.clone(),
            }
        };
        match &fetch.wanted {
            OffsetSelection::These(wanted) => wanted
                .iter()
                .filter_map(|(topic, partitions)| Some((topic, self.topic_id(topic)?, partitions)))
                .flat_map(|(topic, id, partitions)| {
                    let found = move |p: &u32| Some(found(topic, *p, offsets::find(stored, topic, id, *p)?));
                    partitions.iter().filter_map(found)
                })
                .collect(),
            OffsetSelection::All => stored
                .iter()
                .filter(|((topic, _), (_, value))| self.topic_id(topic) == Some(value.topic_id))
                .flat_map(|((topic, _), (_, value))| {
                    value.partitions.iter().map(|(p, c)| found(topic, *p, c))
                })
                .collect(),
        }
    }

    fn delete_offsets(&mut self, partitions: &[(String, u32)], reply: Reply<RefusedPartitions>) {
        if let Err(error) = self.check_offsets_known() {
            self.answer(reply, Err(error));
            return;
        }
        if !self.exists() {
            self.answer_when_stored(reply, Err(not_found()));
            return;
        }
        let is_empty = self.engine.is_empty();
        let reads = self.engine.reads();
        if !is_empty && reads.is_none() {
            drop(reads);
            let why = "the group has members, and it is not known what they read";
            self.answer(reply, Err(GroupError::new(ResponseError::NonEmptyGroup, why)));
            return;
        }
        let mut kept = RefusedPartitions::new();
        for (topic, partition) in partitions {
            if !is_empty && reads.as_ref().is_some_and(|reads| reads(topic)) {
                kept.insert((topic.clone(), *partition));
            } else {
                self.offsets.delete(topic, *partition);
            }
        }
        drop(reads);
        self.answer_when_stored(reply, Ok(kept));
    }

    fn delete(&mut self, reply: Reply<()>) {
        if let Err(error) = self.check_offsets_known() {
            self.answer(reply, Err(error));
            return;
        }
        if !self.exists() {
            self.answer_when_stored(reply, Err(not_found()));
            return;
        }
        if !self.engine.is_empty() {
            let error = GroupError::new(ResponseError::NonEmptyGroup, "the group has members");
            self.answer(reply, Err(error));
            return;
        }
        self.forget();
        self.defer(move |refused| drop(reply.send(refused.map_or(Ok(()), Err))));
    }

    /// Deletes the group and all that is committed for it.
    fn forget(&mut self) {
        self.engine = Engine::None;
        self.offsets.delete_all();
        self.mark_changed();
        self.settle();
    }

    /// What is due now and then.
    fn sweep(&mut self) {
        self.settings = super::coordinator::settings(&self.broker, &self.group);
        self.look_at_topics();
        let now = Instant::now();
        if now >= self.next_offset_expiry {
            self.next_offset_expiry = now + self.broker.config.groups.offsets_check_interval;
            self.expire_offsets();
        }
    }

    /// Tells the group of topics that were created, deleted, or given more partitions since the last time. Matching
    /// patterns costs a pass over all topics, so it is done only then.
    fn look_at_topics(&mut self) {
        let topics = self.broker.replica.read(|view| view.names.topics().clone());
        if topics.ptr_eq(&self.topics) {
            return;
        }
        self.topics = topics;
        self.reason = "topics_changed";
        self.with_context(|task, ctx| {
            if let Engine::Consumer(group) = &mut task.engine {
                group.topics_changed(ctx);
            }
        });
        self.settle();
    }

    fn expire_offsets(&mut self) {
        let broker = self.broker.clone();
        let has_members = !self.engine.is_empty();
        let is_empty_group = self.revision > 0 && !has_members;
        let now_ms = broker.clock.now_ms();
        let retention_ms = broker.config.groups.offsets_retention_ms;
        // By a clock that is far from the others' nothing is given up (architecture: time).
        if broker.clock_skew.ahead_ms().is_some_and(|ahead| ahead.abs() > MAX_SKEW_MS) {
            return;
        }
        let reads = self.engine.reads();
        let expiry = Expiry {
            now_ms,
            retention_ms,
            empty_since_ms: is_empty_group.then_some(self.state_since_ms),
            topics_as_of: broker.replica.read(|view| view.revision),
            // What is not known to be unread is taken for read.
            reads: &|topic| has_members && reads.as_ref().is_none_or(|reads| reads(topic)),
        };
        let expired = self.offsets.expire(&BrokerTopics(&broker), &expiry);
        drop(reads);
        if expired > 0 {
            info!(group = self.group, expired, "committed offsets expired");
            broker.metrics.offsets_expired(expired);
        }
        let is_old = now_ms.saturating_sub(self.state_since_ms) >= retention_ms;
        if is_empty_group && is_old && self.offsets.is_empty() {
            info!(group = self.group, "a group that was empty for long is forgotten");
            self.forget();
        }
    }

    // ---- what others see of the group

    /// Shows what the group is now.
    pub(super) fn publish(&mut self) {
        let exists = self.exists();
        let (state, kind) = (self.engine.state(), self.engine.kind());
        let protocol_type = self.engine.protocol_type().to_owned();
        let members = self.engine.member_count();
        let mut status = self.lock_status();
        status.exists = exists;
        status.state = state;
        status.kind = kind;
        status.protocol_type = protocol_type;
        status.members = members;
        drop(status);
        if !self.lock_status().has_offsets {
            self.publish_all_offsets();
        }
    }

    /// Shows the offsets of the keys that were written.
    pub(super) fn publish_offsets(&mut self, written: &[(OffsetsKey, i64)]) {
        let mut status = self.lock_status();
        for (key, _) in written {
            match self.offsets.stored().get(key) {
                None => drop(status.committed.remove(key)),
                Some((_, value)) => {
                    let offsets = value.partitions.iter().map(|(p, c)| (*p, c.offset)).collect();
                    status.committed.insert(key.clone(), (value.topic_id, offsets));
                }
            }
        }
    }

    /// Shows all offsets anew.
    pub(super) fn publish_all_offsets(&mut self) {
        let all = self.offsets.stored().iter().map(|(key, (_, value))| {
            let offsets = value.partitions.iter().map(|(p, c)| (*p, c.offset)).collect();
            (key.clone(), (value.topic_id, offsets))
        });
        let all = all.collect();
        let mut status = self.lock_status();
        status.committed = all;
        status.has_offsets = true;
    }
}

/// The beginning of a text.
fn cut(text: &str, chars: usize) -> &str {
    text.char_indices().nth(chars).map_or(text, |(end, _)| &text[..end])
}

fn unknown_member() -> GroupError {
    GroupError::new(ResponseError::UnknownMemberId, "the group has no such member")
}

fn not_found() -> GroupError {
    GroupError::new(ResponseError::GroupIdNotFound, "there is no such group")
}
