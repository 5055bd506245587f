//! Named tasks. Every task of a broker is started here, so that none is forgotten: dropping the set ends its tasks,
//! and a task that panics is reported with its name.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::{AbortHandle, JoinSet};
use tracing::error;

/// Tasks with a common owner. Clones share the set.
#[derive(Clone, Debug, Default)]
pub struct TaskSet {
    tasks: Arc<Mutex<JoinSet<&'static str>>>,
}

impl TaskSet {
    /// Starts a task. It runs until it ends, or until the last clone of the set is dropped.
    pub fn start(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that ended are swept when the next one starts, so the set holds about as many as are running.
        while let Some(ended) = tasks.try_join_next() {
            if let Err(e) = ended
                && e.is_panic()
            {
                error!(error = %e, "a task panicked");
            }
        }
        tasks.spawn(async move {
            task.await;
            name
        })
    }

    /// How many tasks have not been seen to end.
    pub fn len(&self) -> usize {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether no task is known to run.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends every task now.
    pub fn abort_all(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}
