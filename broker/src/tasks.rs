//! Named tasks. Every task of a broker is started here, so that none is forgotten: dropping the set ends its tasks,
//! and a task that panics is reported with its name.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use tokio::task::{AbortHandle, JoinSet};
use tracing::error;

/// What is put around every task of a set.
type Wrapper = dyn Fn(BoxFuture<'static, ()>) -> BoxFuture<'static, ()> + Send + Sync;

/// Tasks with a common owner. Clones share the set.
#[derive(Clone, Default)]
pub struct TaskSet {
    tasks: Arc<Mutex<JoinSet<&'static str>>>,
    wrapper: Option<Arc<Wrapper>>,
}

impl TaskSet {
    /// A set that puts something around every task before it starts: whoever owns the whole process from outside can
    /// hold all of it up at once that way, as a signal does.
    pub fn wrapped(
        wrapper: impl Fn(BoxFuture<'static, ()>) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Self {
        Self { wrapper: Some(Arc::new(wrapper)), ..Self::default() }
    }

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
        let Some(wrapper) = &self.wrapper else {
            return tasks.spawn(async move {
                task.await;
                name
            });
        };
        let wrapped = wrapper(Box::pin(task));
        tasks.spawn(async move {
            wrapped.await;
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

impl fmt::Debug for TaskSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskSet").field("tasks", &self.tasks).finish_non_exhaustive()
    }
}
