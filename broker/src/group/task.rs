//! The owner of one group on its coordinator: takes requests in, asks the engine, stores, answers.
//!
//! ```text
//!   commands ──▶ step (engine, pure) ──▶ settle ──▶ store ──▶ nothing to store ──▶ answer
//!                                                        └──▶ write ──▶ answer
//! ```
//!
//! Every step, whoever asked for it, gives an answer or none, and ends in [`GroupTask::settle`].
//! There the store takes the answers, and delivers each when what it tells is stored.
//!
//! The task ends when another broker coordinates the group, or when a write loses against one:
//! everybody who waits is told to look for the coordinator. Members notice nothing else: their
//! generation is stored, and goes on elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_protocol::messages::{JoinGroupResponse, SyncGroupResponse};
use strandline_metadata::groups::OffsetsKey;
use strandline_metadata::names::TopicMap;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};

use super::Ticket;
use super::classic::Answer;
use super::command::Command;
use super::engine::{Effects, Engine, Event};
use super::environment::{Environment, GroupKeys};
use super::error::CoordinatorError;
use super::reply::{Reply, Response};
use super::status::SharedStatus;
use super::store::{Completed, End, GroupStore};
use crate::group_config::GroupSettings;
use crate::limits::{LATE_TIMER, STEPS_PER_WRITE};

/// The owner of one group.
pub(super) struct GroupTask {
    pub(super) env: Arc<Environment>,
    pub(super) group: String,
    commands: mpsc::Receiver<Command>,
    status: SharedStatus,
    pub(super) settings: GroupSettings,
    pub(super) engine: Engine,
    pub(super) store: GroupStore,
    pub(super) tickets: Tickets,
    pub(super) state: StateSince,
    pub(super) next: Chores,
}

/// The group's state, as Kafka calls it, and when the group became or ceased to be empty, ms since
/// 1970.
pub(super) struct StateSince {
    name: &'static str,
    pub(super) ms: i64,
}

/// What is done now and then.
pub(super) struct Chores {
    /// Nobody is given up before this.
    member_expiry: Instant,
    pub(super) offset_expiry: Instant,
    /// The topics as they were when the group was last told of a change.
    pub(super) topics: TopicMap,
}

/// Requests that the engine answers by their tickets.
#[derive(Default)]
pub(super) struct Tickets {
    last: Ticket,
    replies: BTreeMap<Ticket, TicketReply>,
}

/// Where the answer to a ticket goes.
pub(super) enum TicketReply {
    Join(Reply<JoinGroupResponse>),
    Sync(Reply<SyncGroupResponse>),
}

impl Tickets {
    pub(super) fn issue(&mut self, reply: TicketReply) -> Ticket {
        self.last += 1;
        self.replies.insert(self.last, reply);
        self.last
    }

    fn answer(&mut self, ticket: Ticket, answer: Answer) -> Option<Response> {
        match (self.replies.remove(&ticket)?, answer) {
            (TicketReply::Join(reply), Answer::Join(answer)) => Some(reply.with(answer)),
            (TicketReply::Sync(reply), Answer::Sync(answer)) => Some(reply.with(answer)),
            (TicketReply::Join(_), Answer::Sync(_)) | (TicketReply::Sync(_), Answer::Join(_)) => {
                debug_assert!(false, "a ticket is answered with what was asked for");
                None
            }
        }
    }

    fn refuse_all(self, error: &CoordinatorError) {
        for reply in self.replies.into_values() {
            match reply {
                TicketReply::Join(reply) => reply.refuse(error.clone()),
                TicketReply::Sync(reply) => reply.refuse(error.clone()),
            }
        }
    }
}

impl GroupTask {
    /// Reads the group and serves it until somebody else does. `commands` are answered in any case;
    /// those that this task decided nothing about are given back for the next one.
    pub(super) async fn run(
        keys: GroupKeys,
        commands: mpsc::Receiver<Command>,
        status: SharedStatus,
    ) -> Vec<Command> {
        let Some(mut task) = Self::open(keys, commands, status).await else { return Vec::new() };
        let end = task.serve().await;
        task.finish(end).await
    }

    /// Reads the group. If it cannot be read, whoever asks is told so.
    pub(super) async fn open(
        keys: GroupKeys,
        mut commands: mpsc::Receiver<Command>,
        status: SharedStatus,
    ) -> Option<Self> {
        let GroupKeys { env, group, .. } = keys.clone();
        let (store, value) = match GroupStore::open(keys).await {
            Ok(opened) => opened,
            Err(error) => {
                commands.close();
                while let Some(command) = commands.recv().await {
                    command.refuse(error.clone());
                }
                return None;
            }
        };
        let settings = env.settings(&group);
        let engine = Engine::from_stored(value.as_ref().map(|v| &v.group), &env.context(&settings));
        let state = StateSince { name: engine.state(), ms: value.map_or(0, |v| v.state_since_ms) };
        let now = Instant::now();
        let next = Chores { member_expiry: now, offset_expiry: now, topics: TopicMap::default() };
        let tickets = Tickets::default();
        Some(Self { env, group, commands, status, settings, engine, store, tickets, state, next })
    }

    async fn serve(&mut self) -> End {
        self.show_offsets(None);
        // Before the first answer: whoever has one may look at the group.
        self.show();
        loop {
            for _ in 0..STEPS_PER_WRITE {
                if !self.store.takes_requests() {
                    break;
                }
                let Ok(command) = self.commands.try_recv() else { break };
                self.step(command).await;
            }
            if !self.store.is_coordinator() {
                return End::Replaced;
            }
            self.store.start(|| (self.engine.to_stored(), self.state.ms));
            self.show();
            if self.store.is_idle() && self.engine.is_empty() && self.commands.is_empty() {
                return End::Idle;
            }
            let takes_requests = self.store.takes_requests();
            let next_start = self.store.next_start();
            let expiry = self.engine.next_deadline().filter(|_| !self.store.is_blocked());
            let expiry = expiry.map(|deadline| deadline.max(self.next.member_expiry));
            // Deadlines before commands, or a flood of commands would put them off.
            tokio::select! {
                biased;
                completed = self.store.completed() => {
                    if let Some(end) = self.complete(completed) {
                        return end;
                    }
                }
                deadline = reached(expiry) => self.expire_members(deadline),
                _ = reached(next_start) => {}
                command = self.commands.recv(), if takes_requests => match command {
                    Some(command) => self.step(command).await,
                    None => return End::Replaced,
                },
            }
        }
    }

    /// Takes one command in.
    async fn step(&mut self, command: Command) {
        let response = self.decide(command).await;
        self.settle(response);
    }

    /// Takes up what a step brought about. The store delivers the answers.
    fn settle(&mut self, response: Option<Response>) {
        let Effects { changed, answers, events } = self.engine.take_effects();
        if changed {
            self.store.group_changed();
        }
        for event in events {
            self.report(event);
        }
        self.follow_state();
        let waited = answers.into_iter().filter_map(|(ticket, answer)| self.tickets.answer(ticket, answer));
        for response in response.into_iter().chain(waited) {
            self.store.submit(response);
        }
    }

    fn report(&self, event: Event) {
        match event {
            Event::Rebalance(reason) => {
                info!(group = self.group, reason, "a group rebalances");
                self.env.metrics.rebalanced(reason);
            }
            Event::Expired(expired) => {
                info!(group = self.group, expired, "members were not heard of in time");
                self.env.metrics.members_expired(expired);
            }
            Event::Upgraded => info!(group = self.group, "a group changes to the new protocol"),
            Event::Downgraded => info!(group = self.group, "a group changes to the classic protocol"),
        }
    }

    fn follow_state(&mut self) {
        let (before, now) = (self.state.name, self.engine.state());
        if before == now {
            return;
        }
        if before == "Empty" || now == "Empty" || self.state.ms == 0 {
            self.state.ms = self.env.clock.now_ms();
        }
        debug!(group = self.group, from = before, to = now, "a group changes its state");
        self.state.name = now;
    }

    fn complete(&mut self, completed: Completed) -> Option<End> {
        let Completed { changed, responses, stored, end } = completed;
        self.show_offsets(changed.as_deref());
        self.show();
        for response in responses {
            response.deliver(stored.clone());
        }
        end
    }

    fn expire_members(&mut self, deadline: Instant) {
        let now = Instant::now();
        let expiry = &mut self.next.member_expiry;
        if now > deadline + LATE_TIMER && now >= *expiry + LATE_TIMER {
            *expiry = now + LATE_TIMER;
            return;
        }
        self.engine.expire(&self.env.context(&self.settings));
        self.settle(None);
    }

    /// Whether anything is known of the group.
    pub(super) fn exists(&self) -> bool {
        self.store.has_group() || !self.engine.is_empty() || !self.store.offsets.is_empty()
    }

    /// Shows what the group is now.
    fn show(&self) {
        let mut status = self.status.lock();
        status.exists = self.exists();
        self.engine.show(&mut status);
        status.is_read = true;
    }

    /// Shows what is committed under keys that have changed; under all of them if `changed` is
    /// `None`.
    fn show_offsets(&self, changed: Option<&[OffsetsKey]>) {
        self.status.lock().show_offsets(self.store.offsets.stored(), changed);
    }

    /// Answers everybody who waits. Nobody does when a group that is not used ends, but somebody
    /// may have come since: those are given back.
    pub(super) async fn finish(mut self, end: End) -> Vec<Command> {
        let error = end.error();
        debug!(group = self.group, ?end, "this broker stops coordinating a group");
        self.store.refuse_all(&error);
        self.tickets.refuse_all(&error);
        self.commands.close();
        let mut undecided = Vec::new();
        while let Some(command) = self.commands.recv().await {
            match end {
                // The group would be loaded again to be looked at.
                End::Idle if matches!(command, Command::Sweep) => {}
                End::Idle => undecided.push(command),
                End::Replaced | End::Lost => command.refuse(error.clone()),
            }
        }
        undecided
    }
}

/// Waits until then; for ever if there is no such time.
async fn reached(deadline: Option<Instant>) -> Instant {
    match deadline {
        None => std::future::pending().await,
        Some(deadline) => {
            sleep_until(deadline).await;
            deadline
        }
    }
}
