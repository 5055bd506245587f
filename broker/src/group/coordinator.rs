//! Which groups this broker coordinates, and the way to each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::TryStreamExt;
use kafka_protocol::error::ResponseError;
use strandline_metadata::turns::Turns;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::command::Command;
use super::environment::{Environment, GroupKeys};
use super::error::{CoordinatorError, GroupError};
use super::reply::Reply;
use super::status::{GroupStatus, SharedStatus};
use super::task::GroupTask;
use crate::group_config::check_group_id;
use crate::limits::{GROUP_COMMANDS, GROUP_LOADS_PER_SWEEP, GROUP_SWEEP, UNITS_PER_ELEMENT};
use crate::tasks::TaskKind;

#[derive(Debug)]
struct Handle {
    commands: mpsc::Sender<Command>,
    status: SharedStatus,
}

/// The groups that this broker coordinates.
#[derive(Debug)]
pub(crate) struct Groups {
    pub(super) env: Arc<Environment>,
    loaded: Mutex<BTreeMap<Arc<str>, Handle>>,
}

impl Groups {
    pub(crate) fn new(env: Environment) -> Arc<Self> {
        Arc::new(Self { env: Arc::new(env), loaded: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Handle>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `visit` for every group that this broker coordinates and has looked at, in the order
    /// of their ids. A group waits while it is looked at, so this must not take long.
    pub(crate) fn each(&self, mut visit: impl FnMut(&str, &GroupStatus)) {
        for (id, status) in self.open() {
            let status = status.lock();
            if status.exists {
                visit(&id, &status);
            }
        }
    }

    /// Every group whose task takes requests.
    fn open(&self) -> Vec<(Arc<str>, SharedStatus)> {
        let loaded = self.lock();
        let open = loaded.iter().filter(|(_, h)| !h.commands.is_closed());
        open.map(|(id, h)| (id.clone(), h.status.clone())).collect()
    }

    /// Loads every group that this broker coordinates and has not looked at yet. Fails if one of
    /// them cannot be loaded now: it would seem to be gone.
    pub(crate) async fn load_all(self: &Arc<Self>) -> Result<(), GroupError> {
        let open = self.open().into_iter();
        let read: BTreeSet<Arc<str>> = open.filter(|(_, s)| s.lock().is_read).map(|(id, _)| id).collect();
        let missing = self.env.own_groups().await.into_iter().filter(|g| !read.contains(&**g));
        let load = |group: String| async move {
            match self.ask(&group, Command::Describe).await {
                Err(error) if error.code() == ResponseError::CoordinatorNotAvailable => Err(error),
                // Any other answer means that it is loaded, or that it is not ours.
                _ => Ok(()),
            }
        };
        futures::stream::iter(missing.map(Ok)).try_for_each_concurrent(GROUP_LOADS_PER_SWEEP, load).await
    }

    /// Asks a group, on its coordinator, and waits for the answer.
    pub(crate) async fn ask<T>(
        self: &Arc<Self>,
        group: &str,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, GroupError> {
        let (reply, answer) = Reply::channel();
        let command = command(reply);
        check_group_id(group, command.may_be_nameless()).map_err(CoordinatorError::from)?;
        self.send(group, command).await;
        answer.await.unwrap_or_else(|_| Err(CoordinatorError::Unanswered.into()))
    }

    /// Sends a command to a group's task, or refuses it.
    pub(super) async fn send(self: &Arc<Self>, group: &str, mut command: Command) {
        // A task may end between being found and being asked: the next one starts from what is
        // stored.
        for _ in 0..2 {
            let commands = match self.handle(group) {
                Ok(commands) => commands,
                Err(error) => return command.refuse(error),
            };
            match commands.send(command).await {
                Ok(()) => return,
                Err(mpsc::error::SendError(unsent)) => command = unsent,
            }
        }
        command.refuse(CoordinatorError::Moving);
    }

    /// The way to a group's task, which is started if there is none.
    fn handle(self: &Arc<Self>, group: &str) -> Result<mpsc::Sender<Command>, CoordinatorError> {
        let env = &self.env;
        let session = env.sessions.current().ok_or(CoordinatorError::NotCoordinator)?;
        if !env.replica.read(|view| env.coordinates(&view.names, group)) {
            return Err(CoordinatorError::NotCoordinator);
        }
        let mut loaded = self.lock();
        if let Some(known) = loaded.get(group)
            && !known.commands.is_closed()
        {
            return Ok(known.commands.clone());
        }
        if loaded.len() >= env.config.max_groups {
            loaded.retain(|_, h| !h.commands.is_closed());
            if loaded.len() >= env.config.max_groups {
                return Err(CoordinatorError::TooManyGroups);
            }
        }
        let (sender, receiver) = mpsc::channel(GROUP_COMMANDS);
        let status = SharedStatus::default();
        let keys = GroupKeys { env: env.clone(), group: group.to_owned(), session };
        let serve = GroupTask::run(keys, receiver, status.clone());
        let (groups, id) = (self.clone(), group.to_owned());
        env.tasks.start(TaskKind::Background, "group", async move {
            for command in serve.await {
                groups.send(&id, command).await;
            }
        });
        loaded.insert(group.into(), Handle { commands: sender.clone(), status });
        Ok(sender)
    }

    /// Looks at every group now and then: those that moved here are loaded, so that their offsets
    /// expire and their lag is known also when nobody asks; those that moved away end.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            sleep(GROUP_SWEEP).await;
            let own = self.env.own_groups().await;
            let loaded: BTreeMap<Arc<str>, mpsc::Sender<Command>> = {
                let mut loaded = self.lock();
                loaded.retain(|_, h| !h.commands.is_closed());
                loaded.iter().map(|(id, handle)| (id.clone(), handle.commands.clone())).collect()
            };
            let mut turns = Turns::default();
            for commands in loaded.values() {
                // A group whose queue is full is looked at by whoever fills it.
                let _ = commands.try_send(Command::Sweep);
                turns.spend(UNITS_PER_ELEMENT).await;
            }
            for group in own.iter().filter(|g| !loaded.contains_key(&***g)).take(GROUP_LOADS_PER_SWEEP) {
                if self.handle(group).is_err() {
                    break;
                }
            }
        }
    }
}
