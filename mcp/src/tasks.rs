//! Named tasks. Everything that runs beside requests is started here, so that none is forgotten:
//! dropping the set ends its tasks, and one that panics is reported with its name.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinSet;
use tracing::error;

/// Tasks with a common owner. Clones share the set.
#[derive(Clone, Debug, Default)]
pub struct TaskSet {
    tasks: Arc<Mutex<JoinSet<()>>>,
}

impl TaskSet {
    /// Starts a task. It runs until it ends, or until the last clone of the set is dropped.
    pub fn start(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that ended are swept when the next one starts.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            // The guard says so if the task is unwound.
            let guard = Ended { name, done: false };
            task.await;
            guard.done();
        });
    }
}

struct Ended {
    name: &'static str,
    done: bool,
}

impl Ended {
    fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if !self.done && std::thread::panicking() {
            error!(task = self.name, "a task panicked");
        }
    }
}
