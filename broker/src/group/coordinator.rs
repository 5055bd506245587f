//! Which groups this broker coordinates, and the way to each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::TryStreamExt;
use kafka_protocol::error::ResponseError;
use strandline_metadata::groups::{GroupWriter, OffsetsKey};
use strandline_metadata::names::Names;
use tokio::sync::mpsc;
use tokio::time::sleep;
use uuid::Uuid;

use super::GroupError;
use super::command::{Command, Reply};
use super::task;
use crate::group_config::GroupSettings;
use crate::leaders::Leaders;
use crate::limits::{GROUP_COMMANDS, GROUP_LOADS_PER_SWEEP, GROUP_SWEEP};
use crate::tasks::TaskKind;
use crate::{Broker, group_config};

/// What can be seen of a group that this broker coordinates. It may have many offsets: it is looked at where it is.
#[derive(Debug, Default)]
pub(crate) struct GroupStatus {
    /// Whether there is anything: a group that is only asked for does not exist by that.
    pub(crate) exists: bool,
    /// Kafka's name for the state.
    pub(crate) state: &'static str,
    /// `classic` or `consumer`.
    pub(crate) kind: &'static str,
    pub(crate) protocol_type: String,
    pub(crate) members: usize,
    /// Committed offsets: topic id, and offset by partition.
    pub(crate) committed: BTreeMap<OffsetsKey, (Uuid, BTreeMap<u32, i64>)>,
    /// Whether `committed` has been filled.
    pub(super) has_offsets: bool,
}

/// A group as ListGroups shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) id: String,
    /// Kafka's name for the state.
    pub(crate) state: &'static str,
    /// `classic` or `consumer`.
    pub(crate) kind: &'static str,
    pub(crate) protocol_type: String,
}

#[derive(Debug)]
struct Handle {
    commands: mpsc::Sender<Command>,
    status: Arc<Mutex<GroupStatus>>,
}

/// The groups that this broker coordinates.
#[derive(Debug)]
pub(crate) struct Groups {
    loaded: Mutex<BTreeMap<String, Handle>>,
    writer: GroupWriter,
    writes: AtomicU64,
}

impl Groups {
    pub(crate) fn new(writer: GroupWriter) -> Self {
        Self { loaded: Mutex::default(), writer, writes: AtomicU64::new(1) }
    }

    pub(super) fn writer(&self) -> &GroupWriter {
        &self.writer
    }

    /// A number that no other write of this process has.
    pub(super) fn next_write(&self) -> u64 {
        self.writes.fetch_add(1, Ordering::Relaxed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Handle>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `visit` for every group that this broker coordinates and has looked at, in the order of their ids. A group
    /// waits while it is looked at, so this must not take long.
    pub(crate) fn each(&self, mut visit: impl FnMut(&str, &GroupStatus)) {
        for (id, status) in self.open() {
            let status = status.lock().unwrap_or_else(PoisonError::into_inner);
            if status.exists {
                visit(&id, &status);
            }
        }
    }

    /// The groups that have been read, so that it is known what is stored of them.
    fn read(&self) -> BTreeSet<String> {
        let is_read =
            |status: &Mutex<GroupStatus>| status.lock().unwrap_or_else(PoisonError::into_inner).has_offsets;
        self.open().into_iter().filter(|(_, status)| is_read(status)).map(|(id, _)| id).collect()
    }

    /// Every group whose task takes requests.
    fn open(&self) -> Vec<(String, Arc<Mutex<GroupStatus>>)> {
        let loaded = self.lock();
        let open = loaded.iter().filter(|(_, h)| !h.commands.is_closed());
        open.map(|(id, h)| (id.clone(), h.status.clone())).collect()
    }
}

/// Whether this broker coordinates the group, as far as it knows.
pub(super) fn is_own(broker: &Broker, names: &Names, group: &str) -> bool {
    Leaders::of(broker, names, "").of_group(group) == broker.config.node_id
}

/// The groups that there are and that this broker coordinates, as far as it knows.
fn own_groups(broker: &Broker) -> Vec<String> {
    broker.replica.read(|view| {
        let leaders = Leaders::of(broker, &view.names, "");
        let is_own = |group: &&str| leaders.of_group(group) == broker.config.node_id;
        view.names.groups().filter(is_own).map(str::to_owned).collect()
    })
}

/// What is configured for a group.
pub(super) fn settings(broker: &Broker, group: &str) -> GroupSettings {
    let (set, _) = broker.replica.read(|view| view.names.group_configs(group));
    group_config::resolve(&broker.config.groups.settings, &set)
}

/// Every group that this broker coordinates, in the order of their ids. Loads those that it has not looked at yet; fails if one of them
/// cannot be loaded now, since a group that is not in the list would seem to be gone.
pub(crate) async fn list(broker: &Arc<Broker>) -> Result<Vec<Listed>, GroupError> {
    let read = broker.groups.read();
    let missing = own_groups(broker).into_iter().filter(|g| !read.contains(g));
    let load = |group: String| async move {
        match ask(broker, &group, Command::Describe).await {
            Err(error) if error.code == ResponseError::CoordinatorNotAvailable => Err(error),
            // Any other answer means that it is loaded, or that it is not ours.
            _ => Ok(()),
        }
    };
    futures::stream::iter(missing.map(Ok)).try_for_each_concurrent(GROUP_LOADS_PER_SWEEP, load).await?;
    let mut listed = Vec::new();
    broker.groups.each(|id, group| {
        let (state, kind, protocol_type) = (group.state, group.kind, group.protocol_type.clone());
        listed.push(Listed { id: id.to_owned(), state, kind, protocol_type });
    });
    Ok(listed)
}

/// Asks a group, on its coordinator, and waits for the answer.
pub(crate) async fn ask<T>(
    broker: &Arc<Broker>,
    group: &str,
    command: impl FnOnce(Reply<T>) -> Command,
) -> Result<T, GroupError> {
    let (reply, answer) = task::reply();
    let command = command(reply);
    group_config::check_group_id(group, command.may_be_nameless())?;
    send(broker, group, command).await?;
    let gone =
        || GroupError::new(ResponseError::NotCoordinator, "this broker stopped coordinating the group");
    answer.await.unwrap_or_else(|_| Err(gone()))
}

async fn send(broker: &Arc<Broker>, group: &str, command: Command) -> Result<(), GroupError> {
    let commands = handle(broker, group)?;
    match commands.send(command).await {
        Ok(()) => Ok(()),
        // The task ended between being found and being asked: the next one starts from what is stored.
        Err(mpsc::error::SendError(command)) => {
            let again = handle(broker, group)?;
            let gone = |_| GroupError::new(ResponseError::NotCoordinator, "the group is moving");
            again.send(command).await.map_err(gone)
        }
    }
}

/// Hands on what came to a group's task when it had decided to end: the next task answers.
pub(super) fn hand_on(broker: &Arc<Broker>, group: &str, command: Command) {
    if matches!(command, Command::Sweep) {
        return;
    }
    match handle(broker, group) {
        Err(error) => command.refuse(error),
        Ok(commands) => {
            if let Err(unsent) = commands.try_send(command) {
                let gone = GroupError::new(ResponseError::NotCoordinator, "the group is moving");
                unsent.into_inner().refuse(gone);
            }
        }
    }
}

/// The way to a group's task, which is started if there is none.
fn handle(broker: &Arc<Broker>, group: &str) -> Result<mpsc::Sender<Command>, GroupError> {
    let not_here = || GroupError::new(ResponseError::NotCoordinator, "another broker coordinates the group");
    let session = broker.sessions.current().ok_or_else(not_here)?;
    if !broker.replica.read(|view| is_own(broker, &view.names, group)) {
        return Err(not_here());
    }
    let mut loaded = broker.groups.lock();
    if let Some(known) = loaded.get(group)
        && !known.commands.is_closed()
    {
        return Ok(known.commands.clone());
    }
    if loaded.len() >= broker.config.groups.max_groups {
        let ended = |h: &Handle| h.commands.is_closed();
        loaded.retain(|_, h| !ended(h));
        if loaded.len() >= broker.config.groups.max_groups {
            let why = "this broker coordinates as many groups as it may";
            return Err(GroupError::new(ResponseError::CoordinatorNotAvailable, why));
        }
    }
    let (sender, receiver) = mpsc::channel(GROUP_COMMANDS);
    let status = Arc::new(Mutex::new(GroupStatus::default()));
    let own = task::run(broker.clone(), group.to_owned(), session, receiver, status.clone());
    broker.tasks.start(TaskKind::Background, "group", own);
    loaded.insert(group.to_owned(), Handle { commands: sender.clone(), status });
    Ok(sender)
}

/// Looks at every group now and then: those that moved here are loaded, so that their offsets expire and their lag
/// is known also when nobody asks; those that moved away end.
pub(crate) async fn run(broker: Arc<Broker>) {
    loop {
        sleep(GROUP_SWEEP).await;
        let own = own_groups(&broker);
        let loaded: BTreeSet<String> = {
            let mut loaded = broker.groups.lock();
            loaded.retain(|_, h| !h.commands.is_closed());
            for handle in loaded.values() {
                // A group whose queue is full is looked at by whoever fills it.
                let _ = handle.commands.try_send(Command::Sweep);
            }
            loaded.keys().cloned().collect()
        };
        for group in own.iter().filter(|g| !loaded.contains(*g)).take(GROUP_LOADS_PER_SWEEP) {
            if handle(&broker, group).is_err() {
                break;
            }
        }
    }
}
