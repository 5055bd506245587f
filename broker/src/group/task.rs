//! The owner of one group on its coordinator: takes requests in, asks the engine, stores, answers.
//!
//! ```text
//!   commands ──▶ step (engine, pure) ──▶ nothing changed ───────────────────────▶ answer
//!                                   └──▶ changed, or a commit ──▶ write ──▶ answer
//! ```
//!
//! One operation on the store is in flight at a time. While a write of the group itself is under way no request is
//! taken: its answer could tell what is not stored. While offsets are written or read, heartbeats and the like go on.
//! Whatever waits meanwhile shares the next write.
//!
//! The task ends when another broker coordinates the group, or when a write loses against one: everybody who waits is
//! told to look for the coordinator. Members notice nothing else: their generation is stored, and goes on elsewhere.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{JoinGroupResponse, SyncGroupResponse};
use rand::Rng;
use strandline_metadata::backend::BackendError;
use strandline_metadata::commit::Session;
use strandline_metadata::groups::{
    self, GroupPut, GroupReadError, GroupWrite, GroupWriteError, OffsetsKey, OffsetsPut, StoredOffsets,
};
use strandline_metadata::keys::Keyspace;
use strandline_metadata::limits::GROUP_WRITE_KEYS;
use strandline_metadata::names::TopicMap;
use strandline_metadata::values::VALUE_FORMAT;
use strandline_metadata::values::group::GroupValue;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::classic::Answer;
use super::command::{Command, FetchOffsets, FetchedOffset, Reply};
use super::consumer::ExpiredBy;
use super::coordinator::GroupStatus;
use super::engine::Engine;
use super::offsets::{self, Offsets};
use super::{Context, GroupError, Ticket, topics::BrokerTopics};
use crate::Broker;
use crate::group_config::GroupSettings;
use crate::limits::{
    GROUP_OFFSETS_BYTES_PER_TXN, GROUP_PUT_BYTES_PER_S, GROUP_WAITING, LATE_TIMER,
    OFFSETS_BYTES_BESIDE_GROUP, STEPS_PER_WRITE,
};

/// Why nothing can be said of a group now.
const NO_ANSWER: &str = "the metadata store does not answer";

/// What is done with an answer once it is known whether what it says is stored.
pub(super) type Deferred = Box<dyn FnOnce(Option<GroupError>) + Send>;

/// The owner of one group.
pub(super) struct GroupTask {
    pub(super) broker: Arc<Broker>,
    pub(super) group: String,
    /// The registration under which the group was read.
    session: Session,
    commands: mpsc::Receiver<Command>,
    pub(super) status: Arc<Mutex<GroupStatus>>,
    pub(super) settings: GroupSettings,
    pub(super) engine: Engine,
    /// Mod revision of the group's key; 0 if there is none.
    pub(super) revision: i64,
    /// When the group came into its state, ms since 1970.
    pub(super) state_since_ms: i64,
    was_state: &'static str,
    /// Epoch of a group of the new protocol, as it was before the step.
    was_epoch: i32,
    /// What a change of that epoch is due to, in this step.
    pub(super) reason: &'static str,
    pub(super) offsets: Offsets,
    /// Whether the offsets are known as they are stored; not after a write with an unknown outcome.
    pub(super) offsets_known: bool,
    /// The engine is not as it is stored.
    dirty: bool,
    /// Answers for the next write.
    deferred: Vec<Deferred>,
    /// Questions for the next read.
    pub(super) fetches: Vec<(FetchOffsets, Reply<Vec<FetchedOffset>>)>,
    pub(super) tickets: BTreeMap<Ticket, Waiting>,
    pub(super) next_ticket: Ticket,
    in_flight: Option<InFlight>,
    /// The group's own key is not written before this.
    next_put: Instant,
    /// What waits for a read comes before what waits for a write.
    is_turn_of_reads: bool,
    /// Nobody is given up before this.
    pub(super) no_expiry_before: Instant,
    pub(super) next_offset_expiry: Instant,
    /// The topics as they were when the group was last told of a change.
    pub(super) topics: TopicMap,
}

/// A request that waits for others.
pub(super) enum Waiting {
    Join(Reply<JoinGroupResponse>),
    Sync(Reply<SyncGroupResponse>),
}

struct InFlight {
    operation: BoxFuture<'static, StoreResult>,
    began: Instant,
    /// Whether no request may be taken meanwhile.
    blocks: bool,
    deferred: Vec<Deferred>,
    fetches: Vec<(FetchOffsets, Reply<Vec<FetchedOffset>>)>,
}

enum StoreResult {
    Written {
        written: Vec<(OffsetsKey, i64)>,
        revision: i64,
        /// Bytes of the group's own value; 0 if it was not put.
        value_bytes: usize,
        result: Result<(), GroupWriteError>,
    },
    Read(Result<StoredOffsets, GroupReadError>),
}

/// Why a task ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Another broker coordinates the group, or this one may not any more.
    Replaced,
    /// What is stored is not known.
    Lost,
    /// Nothing is stored, and nobody asks.
    Idle,
}

/// Reads the group and serves it until somebody else does. `commands` are answered in any case.
pub(super) async fn run(
    broker: Arc<Broker>,
    group: String,
    session: Session,
    commands: mpsc::Receiver<Command>,
    status: Arc<Mutex<GroupStatus>>,
) {
    if let Some(mut task) = GroupTask::open(broker, group, session, commands, status).await {
        let end = task.serve().await;
        task.finish(end).await;
    }
}

/// Answers everything that comes before nothing can come any more.
async fn refuse_all(mut commands: mpsc::Receiver<Command>, code: ResponseError, why: &str) {
    commands.close();
    while let Some(command) = commands.recv().await {
        command.refuse(GroupError::new(code, why));
    }
}

impl GroupTask {
    /// Reads the group. If it cannot be read, whoever asks is told so.
    pub(super) async fn open(
        broker: Arc<Broker>,
        group: String,
        session: Session,
        commands: mpsc::Receiver<Command>,
        status: Arc<Mutex<GroupStatus>>,
    ) -> Option<Self> {
        let read = async {
            let stored =
                groups::read(broker.replica.backend().as_ref(), broker.replica.keys(), &group).await?;
            // What this broker has heard of the group decides whether it goes on. If its watch left something out, that
            // would seem to be another broker's work for ever; the barrier finds it.
            broker.replica.barrier().await.map_err(|e| BackendError::Unavailable(e.to_string()))?;
            caught_up(&broker, newest(&stored.offsets).max(stored.revision)).await?;
            Ok(stored)
        };
        let read = tokio::time::timeout(strandline_metadata::limits::BACKEND_TIMEOUT, read).await;
        let stored = match read {
            Ok(Ok(stored)) => stored,
            Ok(Err(GroupReadError::Value(error))) => {
                warn!(group, %error, "a group cannot be read");
                let why = "what is stored of the group cannot be read";
                refuse_all(commands, ResponseError::UnknownServerError, why).await;
                return None;
            }
            Ok(Err(GroupReadError::Backend(error))) => {
                debug!(group, %error, "a group cannot be read now");
                refuse_all(commands, ResponseError::CoordinatorNotAvailable, NO_ANSWER).await;
                return None;
            }
            Err(_) => {
                refuse_all(commands, ResponseError::CoordinatorNotAvailable, NO_ANSWER).await;
                return None;
            }
        };
        let now = Instant::now();
        let mut task = Self {
            settings: super::coordinator::settings(&broker, &group),
            broker,
            group,
            session,
            commands,
            status,
            engine: Engine::None,
            revision: stored.revision,
            state_since_ms: stored.value.as_ref().map_or(0, |v| v.state_since_ms),
            was_state: "",
            was_epoch: 0,
            reason: "",
            offsets: Offsets::new(stored.offsets),
            offsets_known: true,
            dirty: false,
            deferred: Vec::new(),
            fetches: Vec::new(),
            tickets: BTreeMap::new(),
            next_ticket: 0,
            in_flight: None,
            next_put: now,
            is_turn_of_reads: false,
            no_expiry_before: now,
            next_offset_expiry: now,
            topics: TopicMap::default(),
        };
        task.with_context(|task, ctx| {
            task.engine = Engine::from_stored(stored.value.as_ref().map(|v| &v.group), ctx);
        });
        task.was_state = task.engine.state();
        task.was_epoch = task.epoch();
        Some(task)
    }

    async fn serve(&mut self) -> End {
        self.publish();
        loop {
            let mut taken = 0;
            while taken < STEPS_PER_WRITE && !self.is_blocked() && !self.is_full() {
                match self.commands.try_recv() {
                    Ok(command) => self.step(command),
                    Err(_) => break,
                }
                taken += 1;
            }
            if !self.is_coordinator() {
                return End::Replaced;
            }
            if self.in_flight.is_none() {
                self.start();
            }
            if taken > 0 {
                self.publish();
            }
            if self.is_over() {
                return End::Idle;
            }
            let blocked = self.is_blocked();
            let full = self.is_full();
            let deadline = self.engine.next_deadline().map(|d| d.max(self.no_expiry_before));
            let far = Instant::now() + Duration::from_hours(1);
            // Deadlines before commands, or a flood of commands would put them off.
            tokio::select! {
                biased;
                done = operation(&mut self.in_flight) => {
                    if let Err(end) = self.done(done) {
                        return end;
                    }
                }
                () = sleep_until(deadline.unwrap_or(far)), if !blocked && deadline.is_some() => {
                    self.expire_members(deadline.unwrap_or(far));
                    self.publish();
                }
                () = sleep_until(self.next_put), if self.dirty && self.in_flight.is_none() => {}
                command = self.commands.recv(), if !blocked && !full => match command {
                    Some(command) => {
                        self.step(command);
                        self.publish();
                    }
                    None => return End::Replaced,
                },
            }
        }
    }

    fn is_blocked(&self) -> bool {
        self.in_flight.as_ref().is_some_and(|f| f.blocks)
    }

    /// Whether as many wait for the store as may (invariant 9): others wait in the queue, and then at their sockets.
    fn is_full(&self) -> bool {
        // As many may have been deferred to the write that is on its way, and as many may have joined them since.
        let joined = self.in_flight.as_ref().map_or(0, |f| f.deferred.len());
        self.deferred.len() + self.fetches.len() >= GROUP_WAITING || joined >= 2 * GROUP_WAITING
    }

    /// Nothing is stored and nobody waits: the next request makes a new task.
    fn is_over(&self) -> bool {
        self.in_flight.is_none()
            && self.revision == 0
            && self.engine.is_empty()
            && self.offsets.is_empty()
            && self.fetches.is_empty()
            && self.commands.is_empty()
            && !self.dirty
    }

    /// Whether this broker coordinates the group as far as it knows, and nobody else has written it. Asked while no
    /// write of this task is in flight that could explain another revision.
    fn is_coordinator(&self) -> bool {
        let broker = &self.broker;
        if broker.sessions.current() != Some(self.session) {
            return false;
        }
        broker.replica.read(|view| {
            let known = view.names.group_revision(&self.group);
            let is_untouched = self.is_blocked()
                || known == self.revision
                || (known < self.revision && view.revision < self.revision);
            is_untouched && super::coordinator::is_own(broker, &view.names, &self.group)
        })
    }

    /// Asks the engine, with all that it may know.
    pub(super) fn with_context<R>(&mut self, decide: impl FnOnce(&mut Self, &Context<'_>) -> R) -> R {
        let broker = self.broker.clone();
        let settings = self.settings.clone();
        let mut id = [0; 16];
        broker.with_rng(|rng| rng.fill_bytes(&mut id));
        let topics = BrokerTopics(&broker);
        let ctx = Context {
            now: Instant::now(),
            topics: &topics,
            settings: &settings,
            fresh_id: uuid::Builder::from_random_bytes(id).into_uuid(),
        };
        decide(self, &ctx)
    }

    /// Sends an answer when what it says is stored: at once if it already is.
    pub(super) fn answer<T: Send + 'static>(&mut self, reply: Reply<T>, answer: Result<T, GroupError>) {
        // Whoever stopped waiting does not need the answer.
        if self.dirty {
            self.defer(move |refused| drop(reply.send(refused.map_or(answer, Err))));
        } else {
            drop(reply.send(answer));
        }
    }

    /// Sends an answer that tells what is committed, or what is not, when all of that is stored: commits and deletions
    /// that wait, and those on their way. A write that is on its way need not be the one of who asks: a deletion that is
    /// asked for twice finds nothing to delete the second time.
    pub(super) fn answer_when_stored<T: Send + 'static>(
        &mut self,
        reply: Reply<T>,
        answer: Result<T, GroupError>,
    ) {
        let then = move |refused: Option<GroupError>| drop(reply.send(refused.map_or(answer, Err)));
        if self.dirty || self.offsets.has_unsaved() {
            self.defer(then);
            return;
        }
        match &mut self.in_flight {
            Some(write) if self.offsets.is_saving() => write.deferred.push(Box::new(then)),
            // Nothing is written, or nothing that is told of: a read changes nothing.
            _ => then(None),
        }
    }

    /// Does something once it is known whether everything so far is stored.
    pub(super) fn defer(&mut self, then: impl FnOnce(Option<GroupError>) + Send + 'static) {
        self.deferred.push(Box::new(then));
    }

    /// Takes up what a step of the engine brought about.
    pub(super) fn settle(&mut self) {
        if self.engine.take_changed() {
            self.dirty = true;
        }
        let state = self.engine.state();
        if state != self.was_state {
            if state == "Empty" || self.was_state == "Empty" || self.state_since_ms == 0 {
                self.state_since_ms = self.broker.clock.now_ms();
            }
            debug!(group = self.group, from = self.was_state, to = state, "a group changes its state");
            self.was_state = state;
        }
        let epoch = self.epoch();
        if epoch > self.was_epoch {
            info!(group = self.group, reason = self.reason, epoch, "a group rebalances");
            self.broker.metrics.group_rebalanced(self.reason);
        }
        self.was_epoch = epoch;
        let Engine::Classic(group) = &mut self.engine else { return };
        for reason in group.take_rebalances() {
            info!(group = self.group, reason, "a group rebalances");
            self.broker.metrics.group_rebalanced(reason);
        }
        let answers = group.take_answers();
        self.answer_tickets(answers);
    }

    /// Answers requests that waited in a group of the classic protocol.
    pub(super) fn answer_tickets(&mut self, answers: Vec<(Ticket, Answer)>) {
        for (ticket, answer) in answers {
            match (self.tickets.remove(&ticket), answer) {
                (Some(Waiting::Join(reply)), Answer::Join(response)) => self.answer(reply, Ok(response)),
                (Some(Waiting::Sync(reply)), Answer::Sync(response)) => self.answer(reply, Ok(response)),
                _ => debug_assert!(false, "a ticket is answered once, and with what was asked for"),
            }
        }
    }

    /// Group epoch of a group of the new protocol; 0 for others.
    fn epoch(&self) -> i32 {
        match &self.engine {
            Engine::Consumer(group) => group.value().epoch,
            Engine::None | Engine::Classic(_) => 0,
        }
    }

    /// Marks the group as changed by something else than its engine.
    pub(super) fn mark_changed(&mut self) {
        self.dirty = true;
    }

    fn expire_members(&mut self, deadline: Instant) {
        let now = Instant::now();
        if now > deadline + LATE_TIMER && now >= self.no_expiry_before + LATE_TIMER {
            self.no_expiry_before = now + LATE_TIMER;
            return;
        }
        let expired = self.with_context(|task, ctx| match &mut task.engine {
            Engine::None => 0,
            Engine::Classic(group) => group.expire(ctx),
            Engine::Consumer(group) => {
                let expired = group.expire(ctx);
                let slow = expired.iter().any(|e| e.by == ExpiredBy::RebalanceTimeout);
                task.reason = if slow { "rebalance_timeout" } else { "session_expired" };
                expired.len()
            }
        });
        if expired > 0 {
            info!(group = self.group, expired, "members were not heard of in time");
            self.broker.metrics.group_members_expired(expired);
        }
        self.after_consumer_step();
        self.settle();
    }

    // ---- the store

    /// Starts the next operation on the store, if there is something to do. Reads and writes take turns: a group that
    /// commits all the time still finds out what is committed.
    fn start(&mut self) {
        let writes = if self.dirty { Instant::now() >= self.next_put } else { self.offsets.has_unsaved() };
        let reads = !self.fetches.is_empty() && (self.is_turn_of_reads || !writes);
        // While it is not known what is stored nothing is written: every answer that waits means the offsets, too.
        if reads || !self.offsets_known {
            self.start_read();
        } else if writes {
            self.start_write();
        }
    }

    fn start_write(&mut self) {
        self.is_turn_of_reads = true;
        let write = self.broker.groups.next_write();
        let put = match (self.dirty, self.engine.to_stored()) {
            (true, Some(group)) => GroupPut::Put(Box::new(GroupValue {
                format: VALUE_FORMAT,
                writer: self.session.incarnation,
                write,
                state_since_ms: self.state_since_ms,
                group,
            })),
            (true, None) if self.revision > 0 => GroupPut::Delete,
            (false, _) | (true, None) => GroupPut::Keep,
        };
        let offsets = self.offsets.begin_save(self.session.incarnation, write);
        let operation =
            write_all(self.broker.clone(), self.session, self.group.clone(), self.revision, put, offsets);
        self.in_flight = Some(InFlight {
            operation: operation.boxed(),
            began: Instant::now(),
            blocks: self.dirty,
            deferred: std::mem::take(&mut self.deferred),
            fetches: Vec::new(),
        });
        self.dirty = false;
    }

    fn start_read(&mut self) {
        self.is_turn_of_reads = false;
        let (broker, group) = (self.broker.clone(), self.group.clone());
        let known = self.offsets.stored().clone();
        let operation = async move {
            let read = async {
                let (backend, keys) = (broker.replica.backend().as_ref(), broker.replica.keys());
                let stored = groups::read_offsets(backend, keys, &group, known).await?;
                caught_up(&broker, newest(&stored)).await?;
                Ok(stored)
            };
            let answer = tokio::time::timeout(strandline_metadata::limits::BACKEND_TIMEOUT, read).await;
            let late = || BackendError::Unavailable("no answer in time".to_owned());
            StoreResult::Read(answer.unwrap_or_else(|_| Err(late().into())))
        };
        self.in_flight = Some(InFlight {
            operation: operation.boxed(),
            began: Instant::now(),
            blocks: false,
            deferred: Vec::new(),
            fetches: std::mem::take(&mut self.fetches),
        });
    }

    fn done(&mut self, done: StoreResult) -> Result<(), End> {
        let Some(InFlight { began, blocks, deferred, fetches, .. }) = self.in_flight.take() else {
            return Ok(());
        };
        match done {
            StoreResult::Written { written, revision, value_bytes, result } => {
                let bytes = u32::try_from(value_bytes).unwrap_or(u32::MAX);
                self.next_put =
                    self.next_put.max(began + Duration::from_secs(1) * bytes / GROUP_PUT_BYTES_PER_S);
                self.revision = revision;
                self.offsets.saved(&written);
                self.offsets.end_save(false);
                self.publish_offsets(&written);
                // Who is answered now and looks must find what it was told.
                self.publish();
                let error = result.as_ref().err().map(refusal);
                for then in deferred {
                    then(error.clone());
                }
                match result {
                    Ok(()) => Ok(()),
                    Err(GroupWriteError::Conflict) => {
                        info!(group = self.group, "another broker wrote the group; it is read again");
                        Err(End::Replaced)
                    }
                    Err(GroupWriteError::NotRegistered | GroupWriteError::Closed) => Err(End::Replaced),
                    Err(GroupWriteError::Backend(error)) => {
                        warn!(group = self.group, %error, "a group could not be written");
                        if blocks {
                            return Err(End::Lost);
                        }
                        self.offsets.end_save(true);
                        self.offsets_known = false;
                        let refused = refusal(&error.into());
                        for then in std::mem::take(&mut self.deferred) {
                            then(Some(refused.clone()));
                        }
                        // What changed meanwhile was promised to nobody.
                        if self.dirty { Err(End::Lost) } else { Ok(()) }
                    }
                }
            }
            StoreResult::Read(Ok(stored)) => {
                let is_untouched = self.offsets.replace(stored);
                self.offsets_known = true;
                self.publish_all_offsets();
                for (fetch, reply) in fetches {
                    let found = self.find_offsets(&fetch);
                    let _ = reply.send(Ok(found));
                }
                if is_untouched { Ok(()) } else { Err(End::Replaced) }
            }
            StoreResult::Read(Err(error)) => {
                debug!(group = self.group, %error, "committed offsets cannot be read");
                for (_, reply) in fetches {
                    let unavailable = GroupError::new(ResponseError::CoordinatorNotAvailable, NO_ANSWER);
                    let _ = reply.send(Err(unavailable));
                }
                // Whoever waits for a write is not left waiting for a read that fails again and again.
                if self.offsets_known { Ok(()) } else { Err(End::Lost) }
            }
        }
    }

    /// Answers everybody who waits. Nobody does when a group that is not used ends, but somebody may have come since.
    pub(super) async fn finish(mut self, end: End) {
        let error = match end {
            End::Replaced => {
                GroupError::new(ResponseError::NotCoordinator, "another broker coordinates the group")
            }
            End::Lost | End::Idle => GroupError::new(ResponseError::CoordinatorNotAvailable, NO_ANSWER),
        };
        debug!(group = self.group, ?end, "this broker stops coordinating a group");
        if let Some(in_flight) = self.in_flight.take() {
            // The write goes on: what it stores is right whoever coordinates. Who waits for it asks elsewhere.
            for then in in_flight.deferred {
                then(Some(error.clone()));
            }
            for (_, reply) in in_flight.fetches {
                let _ = reply.send(Err(error.clone()));
            }
        }
        for then in std::mem::take(&mut self.deferred) {
            then(Some(error.clone()));
        }
        for (_, reply) in std::mem::take(&mut self.fetches) {
            let _ = reply.send(Err(error.clone()));
        }
        for waiting in std::mem::take(&mut self.tickets).into_values() {
            match waiting {
                Waiting::Join(reply) => drop(reply.send(Err(error.clone()))),
                Waiting::Sync(reply) => drop(reply.send(Err(error.clone()))),
            }
        }
        self.commands.close();
        while let Some(command) = self.commands.recv().await {
            match end {
                End::Idle => super::coordinator::hand_on(&self.broker, &self.group, command),
                End::Replaced | End::Lost => command.refuse(error.clone()),
            }
        }
    }

    pub(super) fn lock_status(&self) -> std::sync::MutexGuard<'_, GroupStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A topic's id.
    pub(super) fn topic_id(&self, topic: &str) -> Option<Uuid> {
        self.broker.replica.read(|view| view.names.topic(topic).map(|t| t.value.topic_id))
    }
}

/// Waits for the operation in flight; for ever if there is none. Cancellation-safe: the operation stays where it is.
async fn operation(in_flight: &mut Option<InFlight>) -> StoreResult {
    match in_flight {
        Some(in_flight) => (&mut in_flight.operation).await,
        None => std::future::pending().await,
    }
}

/// The revision of the latest commit.
fn newest(offsets: &StoredOffsets) -> i64 {
    offsets.values().map(|(revision, _)| *revision).max().unwrap_or(0)
}

/// Waits until this broker knows the cluster as it was at `revision`: committed offsets belong to topics, which must not
/// seem to be missing, or to be their predecessors of the same name.
async fn caught_up(broker: &Broker, revision: i64) -> Result<(), BackendError> {
    let seen = broker.replica.wait_applied(revision);
    let seen = tokio::time::timeout(strandline_metadata::limits::APPLY_TIMEOUT, seen).await;
    seen.map_err(|_| BackendError::Unavailable("this broker is behind".to_owned()))
}

/// Writes all of it, in as many transactions as it takes. The group's own key goes first, or last if it is deleted.
async fn write_all(
    broker: Arc<Broker>,
    session: Session,
    group: String,
    mut revision: i64,
    put: GroupPut,
    offsets: Vec<OffsetsPut>,
) -> StoreResult {
    let keys: &Keyspace = broker.replica.keys();
    let mut parts: Vec<(GroupPut, Vec<OffsetsPut>)> = Vec::new();
    let mut bytes = 0;
    for one in offsets {
        let more = one.value.as_ref().map_or(0, offsets::stored_bytes);
        bytes += more;
        match parts.last_mut() {
            Some((_, part)) if part.len() < GROUP_WRITE_KEYS && bytes <= GROUP_OFFSETS_BYTES_PER_TXN => {
                part.push(one);
            }
            _ => {
                bytes = more;
                parts.push((GroupPut::Keep, vec![one]));
            }
        }
    }
    // A group may be large itself.
    let is_much = parts.len() > 1 || bytes > OFFSETS_BYTES_BESIDE_GROUP;
    if is_much && matches!(put, GroupPut::Put(_)) {
        parts.insert(0, (GroupPut::Keep, Vec::new()));
    }
    if put != GroupPut::Keep && parts.is_empty() {
        parts.push((GroupPut::Keep, Vec::new()));
    }
    let own = if put == GroupPut::Delete { parts.last_mut() } else { parts.first_mut() };
    if let Some(own) = own {
        own.0 = put;
    }
    let mut written = Vec::new();
    let mut value_bytes = 0;
    for (put, offsets) in parts {
        let write = GroupWrite { group: group.clone(), revision, put, offsets };
        match broker.groups.writer().write(session, keys, &write).await {
            Ok(done) => {
                let at = done.revision;
                value_bytes += done.value_bytes;
                match write.put {
                    GroupPut::Keep => {}
                    GroupPut::Put(_) => revision = at,
                    GroupPut::Delete => {
                        revision = 0;
                        // Until this broker has seen it go, the group would seem to be somebody else's.
                        let seen = broker.replica.wait_applied(at);
                        let _ = tokio::time::timeout(strandline_metadata::limits::APPLY_TIMEOUT, seen).await;
                    }
                }
                broker.metrics.group_written(write.offsets.len());
                written.extend(write.offsets.into_iter().map(|p| (p.key, at)));
            }
            Err(error) => return StoreResult::Written { written, revision, value_bytes, result: Err(error) },
        }
    }
    StoreResult::Written { written, revision, value_bytes, result: Ok(()) }
}

/// The one mapping from a failed write to what a client hears: all of it can be tried again.
fn refusal(error: &GroupWriteError) -> GroupError {
    match error {
        GroupWriteError::NotRegistered | GroupWriteError::Conflict | GroupWriteError::Closed => {
            GroupError::new(ResponseError::NotCoordinator, error.to_string())
        }
        GroupWriteError::Backend(BackendError::TooLarge(why)) => {
            GroupError::new(ResponseError::GroupMaxSizeReached, format!("the group is too large: {why}"))
        }
        GroupWriteError::Backend(error) => {
            GroupError::new(ResponseError::CoordinatorNotAvailable, error.to_string())
        }
    }
}

/// A reply and where it is waited for.
pub(super) fn reply<T>() -> (Reply<T>, oneshot::Receiver<Result<T, GroupError>>) {
    oneshot::channel()
}
