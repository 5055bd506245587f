//! What each command means for a group, whichever protocol it speaks.

use strandline_metadata::turns::Turns;
use tokio::time::Instant;
use tracing::{debug, info};

use super::beginning;
use super::classic::session::Identity;
use super::command::{Command, RefusedCommits, RefusedPartitions};
use super::error::{CoordinatorError, DeleteError, DescribeError, GroupError};
use super::offsets::{Commit, Expiry};
use super::reply::Response;
use super::task::{GroupTask, TicketReply};
use crate::clock_skew::ClockTrust;
use crate::limits::{MAX_LOGGED_CHARS, UNITS_PER_COMMIT};

impl GroupTask {
    /// Decides one command. Gives its answer, unless that comes by a ticket or with the next read.
    pub(super) async fn decide(&mut self, command: Command) -> Option<Response> {
        let founds = matches!(command, Command::Join(..) | Command::ConsumerHeartbeat { .. });
        if founds && !self.exists() && self.env.space.is_closed() {
            command.refuse(CoordinatorError::NoRoom);
            return None;
        }
        match command {
            Command::Join(join, reply) => {
                let (instance, reason) = (join.instance_id.as_deref(), join.reason.as_deref());
                self.log_reason("joins", &join.member_id, instance, reason);
                let ticket = self.tickets.issue(TicketReply::Join(reply));
                self.engine.join(ticket, *join, &self.env.context(&self.settings));
                None
            }
            Command::Sync(sync, reply) => {
                let ticket = self.tickets.issue(TicketReply::Sync(reply));
                self.engine.sync(ticket, *sync, &self.env.context(&self.settings));
                None
            }
            Command::Heartbeat { identity, generation, reply } => Some(reply.with(self.engine.heartbeat(
                &identity,
                generation,
                &self.env.context(&self.settings),
            ))),
            Command::Leave(members, reply) => {
                let mut leaving = Vec::with_capacity(members.len());
                for member in members {
                    let identity = Identity::new(&member.member_id, member.group_instance_id.as_ref());
                    let Identity { member_id, instance_id } = &identity;
                    self.log_reason("leaves", member_id, instance_id.as_deref(), member.reason.as_deref());
                    leaving.push(identity);
                }
                let left = self.engine.leave(&leaving, &self.env.context(&self.settings)).into_iter();
                let left = left.map(|left| left.map_err(GroupError::from)).collect();
                Some(reply.with(Ok::<_, GroupError>(left)))
            }
            Command::ConsumerHeartbeat { request, version, sender, reply } => Some(reply.with(
                self.engine.consumer_heartbeat(&request, version, &sender, &self.env.context(&self.settings)),
            )),
            Command::Commit { identity, generation, version, commits, reply } => {
                let now = Instant::now();
                Some(match self.engine.commit(&identity, generation, version, now) {
                    Ok(()) => reply.with_offsets(Ok::<_, GroupError>(self.commit(commits).await)),
                    Err(error) => reply.with(Err(error)),
                })
            }
            Command::CheckCommit { identity, generation, reply } => {
                let checked = self.engine.check_transaction(&identity, generation, Instant::now());
                let revision = self.store.revision();
                Some(reply.with(checked.map(|()| revision)))
            }
            Command::FetchOffsets(member, reply) => match self.engine.check_fetch(member.as_ref()) {
                Ok(()) => {
                    self.store.fetch(reply);
                    None
                }
                Err(error) => Some(reply.with(Err(error))),
            },
            Command::DeleteOffsets(partitions, reply) => {
                Some(reply.with_offsets(self.delete_offsets(partitions)))
            }
            Command::Describe(reply) => Some(if !self.exists() {
                reply.with_offsets(Err(DescribeError::NotFound))
            } else if self.store.has_group() || !self.engine.is_empty() {
                reply.with(self.engine.describe())
            } else {
                reply.with_offsets(self.engine.describe())
            }),
            Command::ConsumerDescribe(version, reply) => {
                Some(reply.with(self.engine.describe_consumer(version, &self.env.topics)))
            }
            Command::Delete(reply) => Some(reply.with_offsets(self.delete())),
            Command::Sweep => {
                self.sweep();
                None
            }
        }
    }

    /// Takes commits up, and gives the partitions for which they are not taken.
    async fn commit(&mut self, commits: Vec<Commit>) -> RefusedCommits {
        let may_grow = !self.env.space.is_closed();
        let mut refused = RefusedCommits::new();
        let count = commits.len();
        let mut turns = Turns::default();
        for one in commits {
            turns.spend(UNITS_PER_COMMIT).await;
            let (topic, partition) = (one.topic.clone(), one.partition);
            if let Err(why) = self.store.offsets.commit(one, may_grow) {
                refused.insert((topic.to_string(), partition), why);
            }
        }
        self.env.metrics.committed(count - refused.len());
        refused
    }

    /// Refuses to delete what is not there, and anything for as long as it is not known what is
    /// stored: there may be more to delete than is known.
    fn check_deletable(&self) -> Result<(), GroupError> {
        if !self.store.offsets.are_known() {
            return Err(CoordinatorError::UnknownOutcome.into());
        }
        if self.exists() { Ok(()) } else { Err(DeleteError::NotFound.into()) }
    }

    fn delete_offsets(
        &mut self,
        mut partitions: Vec<(String, u32)>,
    ) -> Result<RefusedPartitions, GroupError> {
        self.check_deletable()?;
        let reads = self.engine.reads().ok_or(DeleteError::UnknownSubscriptions)?;
        let kept = partitions.extract_if(.., |(topic, _)| reads(topic)).collect();
        for (topic, partition) in partitions {
            self.store.offsets.delete(&topic, partition);
        }
        Ok(kept)
    }

    fn delete(&mut self) -> Result<(), GroupError> {
        self.check_deletable()?;
        if !self.engine.is_empty() {
            return Err(DeleteError::HasMembers.into());
        }
        self.forget();
        Ok(())
    }

    /// Logs why a member says that it joins or leaves (KIP-800).
    fn log_reason(&self, what: &str, member_id: &str, instance_id: Option<&str>, reason: Option<&str>) {
        if let Some(reason) = reason.filter(|r| !r.is_empty()) {
            // A client may send anything: what it says is quoted, and not all of it is kept.
            let [reason, member_id] = [reason, member_id].map(|said| beginning(said, MAX_LOGGED_CHARS));
            let instance_id = instance_id.map(|said| beginning(said, MAX_LOGGED_CHARS));
            debug!(group = ?self.group, ?member_id, ?instance_id, ?reason, "a member {what} and says why");
        }
    }

    /// Deletes the group and all that is committed for it.
    fn forget(&mut self) {
        self.engine.clear();
        self.store.offsets.delete_all();
    }

    /// What is due now and then.
    fn sweep(&mut self) {
        self.settings = self.env.settings(&self.group);
        self.look_at_topics();
        let now = Instant::now();
        if now >= self.next.offset_expiry {
            self.next.offset_expiry = now + self.env.config.offsets_check_interval;
            self.expire_offsets();
        }
    }

    /// Tells the group of topics that were created, deleted, or given more partitions since the
    /// last time, or when its patterns are still being matched.
    fn look_at_topics(&mut self) {
        let topics = self.env.replica.read(|view| view.names.topics().clone());
        if !topics.ptr_eq(&self.next.topics) || self.engine.awaits_patterns() {
            self.next.topics = topics;
            self.engine.topics_changed(&self.env.context(&self.settings));
        }
    }

    fn expire_offsets(&mut self) {
        // By a clock that is far from the others' nothing is given up (architecture: time).
        let trust = self.env.replica.read(|view| self.env.clock_skew.judge(&view.names));
        let ClockTrust::Trusted(now_ms) = trust else { return };
        let is_empty_group = self.store.has_group() && self.engine.is_empty();
        let retention_ms = self.env.config.offsets_retention_ms;
        let reads = self.engine.reads();
        let expiry = Expiry {
            now_ms,
            retention_ms,
            empty_since_ms: is_empty_group.then_some(self.state.ms),
            topics_as_of: self.env.replica.read(|view| view.revision),
            // What is not known to be unread is taken for read.
            reads: &|topic| reads.as_ref().is_none_or(|reads| reads(topic)),
        };
        let expired = self.store.offsets.expire(&self.env.topics, &expiry);
        drop(reads);
        if expired > 0 {
            info!(group = self.group, expired, "committed offsets expired");
            self.env.metrics.offsets_expired(expired);
        }
        let is_old = now_ms.saturating_sub(self.state.ms) >= retention_ms;
        if is_empty_group && is_old && self.store.offsets.is_empty() {
            info!(group = self.group, "a group that was empty for long is forgotten");
            self.forget();
        }
    }
}
