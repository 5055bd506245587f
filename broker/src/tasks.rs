//! Named tasks of a kind that says what their death means. Every task of a broker is started here,
//! so that none is forgotten: ending the set ends its tasks, and one that panics is reported with
//! its name.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, error};

/// What is put around every task of a set.
type Wrapper = dyn Fn(BoxFuture<'static, ()>) -> BoxFuture<'static, ()> + Send + Sync;

/// What the death of a task means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskKind {
    /// The broker is none without it: the process must end, and its leases with it, so that others
    /// take over.
    Critical,
    /// Whoever waits for it notices, or something works less well. The broker goes on.
    Background,
    /// It concerns one client.
    Connection,
}

/// How a task ended that must not end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the task {name:?} {}", .panic.as_ref().map_or_else(|| "ended".to_owned(), |why| format!("panicked: {why}")))]
pub struct TaskDeath {
    /// Its name.
    pub name: &'static str,
    /// What it said if it panicked; `None` if it returned or was aborted.
    pub panic: Option<String>,
}

/// Tasks with a common owner. Clones share the set.
#[derive(Clone)]
pub struct TaskSet {
    shared: Arc<Shared>,
    wrapper: Option<Arc<Wrapper>>,
    /// Where tasks run; `None` for the runtime of who starts them.
    runtime: Option<Handle>,
}

struct Shared {
    tasks: Mutex<JoinSet<()>>,
    /// What a test may kill.
    #[cfg(test)]
    critical: Mutex<Vec<(&'static str, AbortHandle)>>,
    /// The first critical task that died.
    death: watch::Sender<Option<TaskDeath>>,
    /// Every task is being ended, so that none of them dies of itself.
    is_ending: AtomicBool,
}

impl Default for TaskSet {
    fn default() -> Self {
        let shared = Shared {
            tasks: Mutex::default(),
            #[cfg(test)]
            critical: Mutex::default(),
            death: watch::Sender::new(None),
            is_ending: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared), wrapper: None, runtime: None }
    }
}

/// Reports the death of a critical task, however it comes about: also when the task is aborted,
/// which runs no code of it.
struct DeathWatch {
    shared: std::sync::Weak<Shared>,
    name: &'static str,
    kind: TaskKind,
    panic: Option<String>,
}

impl Drop for DeathWatch {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        if self.kind != TaskKind::Critical || shared.is_ending.load(Ordering::Relaxed) {
            return;
        }
        let death = TaskDeath { name: self.name, panic: self.panic.take() };
        shared.death.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(death);
            is_first
        });
    }
}

impl TaskSet {
    /// A set that puts something around every task before it starts: whoever owns the whole process
    /// from outside can hold all of it up at once that way, as a signal does.
    pub fn wrapped(
        wrapper: impl Fn(BoxFuture<'static, ()>) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Self {
        Self { wrapper: Some(Arc::new(wrapper)), ..Self::default() }
    }

    /// The same set, whose tasks are started on this runtime.
    #[must_use]
    pub fn on(&self, runtime: Handle) -> Self {
        Self { runtime: Some(runtime), ..self.clone() }
    }

    /// Starts a task. It runs until it ends, until the set is ended, or until the last clone of the
    /// set is dropped.
    pub fn start(
        &self,
        kind: TaskKind,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> AbortHandle {
        let watch = DeathWatch { shared: Arc::downgrade(&self.shared), name, kind, panic: None };
        let watched = async move {
            // All of it, so that it is dropped with the task.
            let mut watch = watch;
            let Err(panic) = AssertUnwindSafe(task).catch_unwind().await else {
                debug!(name, "a task ended");
                return;
            };
            let why = said(panic.as_ref());
            error!(name, why, "a task panicked");
            watch.panic = Some(why);
        };
        let mut tasks = self.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that ended are swept when the next one starts, so the set holds about as many as
        // are running.
        while tasks.try_join_next().is_some() {}
        let spawned: BoxFuture<'static, ()> = match &self.wrapper {
            None => Box::pin(watched),
            Some(wrapper) => wrapper(Box::pin(watched)),
        };
        let handle = match &self.runtime {
            None => tasks.spawn(spawned),
            Some(runtime) => tasks.spawn_on(spawned, runtime),
        };
        #[cfg(test)]
        if kind == TaskKind::Critical {
            self.shared.critical.lock().unwrap().push((name, handle.clone()));
        }
        handle
    }

    /// The critical tasks that were started.
    #[cfg(test)]
    pub(crate) fn critical(&self) -> Vec<(&'static str, AbortHandle)> {
        self.shared.critical.lock().unwrap().clone()
    }

    /// Waits until a critical task dies.
    pub async fn death(&self) -> TaskDeath {
        let mut death = self.shared.death.subscribe();
        loop {
            if let Some(death) = &*death.borrow_and_update() {
                return death.clone();
            }
            // The sender lives in `self`.
            let _ = death.changed().await;
        }
    }

    /// How many tasks have not been seen to end.
    pub fn len(&self) -> usize {
        self.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether no task is known to run.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends every task now.
    pub fn abort_all(&self) {
        self.shared.is_ending.store(true, Ordering::Relaxed);
        self.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

/// What a panic says.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "for a reason unknown".to_owned())
}

impl fmt::Debug for TaskSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskSet").field("tasks", &self.shared.tasks).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    #[tokio::test(start_paused = true)]
    async fn only_the_death_of_a_critical_task_is_one_of_the_broker() {
        let tasks = TaskSet::default();
        tasks.start(TaskKind::Background, "ends", async {});
        tasks.start(TaskKind::Connection, "panics", async { panic!("by a client") });
        tasks.start(TaskKind::Critical, "lives", std::future::pending());
        assert!(timeout(LONG, tasks.death()).await.is_err());
        tasks.start(TaskKind::Critical, "returns", sleep(LONG));
        assert_eq!(tasks.death().await, TaskDeath { name: "returns", panic: None });
        tasks.start(TaskKind::Critical, "second", async { panic!("too late") });
        sleep(LONG).await;
        assert_eq!(tasks.death().await.name, "returns", "the first one counts");
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_says_what_it_said_and_an_abort_is_a_death() {
        let tasks = TaskSet::default();
        tasks.start(TaskKind::Critical, "jobs", async { panic!("{} is wrong", "this") });
        assert_eq!(tasks.death().await.to_string(), "the task \"jobs\" panicked: this is wrong");
        let tasks = TaskSet::default();
        tasks.start(TaskKind::Critical, "jobs", std::future::pending()).abort();
        assert_eq!(tasks.death().await.to_string(), "the task \"jobs\" ended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_set_that_is_ended_dies_of_nothing() {
        let tasks = TaskSet::default();
        tasks.start(TaskKind::Critical, "jobs", std::future::pending());
        tasks.abort_all();
        assert!(timeout(LONG, tasks.death()).await.is_err());
    }
}
