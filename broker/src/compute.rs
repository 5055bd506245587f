//! Where requests compute for longer than a turn: decompressing, and decoding or encoding what is
//! large. That runs beside the threads of the connections, a few pieces at a time, so that it holds
//! up nobody (invariant 9), and each kind has places of its own.
//!
//! Whoever waits may go away. A piece that has not begun is then dropped, one that has begun comes
//! to its end: so pieces are small, a batch or a request each.

use std::future::Future;
use std::panic::resume_unwind;
use std::sync::Arc;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use crate::limits::{
    BATCHES_OPENED_AT_ONCE, DESCRIPTIONS_AT_ONCE, FRAMES_AT_ONCE, GROWING_AT_ONCE, LARGE_ANSWERS_AT_ONCE,
    LOOKUPS_AT_ONCE,
};
use crate::metrics::Metrics;

/// What is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Opening batches to find a record by its time.
    Lookup,
    /// Opening batches that are produced, and compressing them anew.
    Batch,
    /// Decoding large requests and encoding large responses.
    Frame,
    /// Matching patterns of subscriptions.
    Pattern,
    /// Opening batches for log compaction.
    Compaction,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Batch => "batch",
            Self::Frame => "frame",
            Self::Pattern => "pattern",
            Self::Compaction => "compaction",
        }
    }
}

/// The places of each kind, and those for building large answers.
#[derive(Debug)]
pub(crate) struct Compute {
    lookups: Arc<Semaphore>,
    batches: Arc<Semaphore>,
    frames: Arc<Semaphore>,
    patterns: Arc<Semaphore>,
    compaction: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    growing: Arc<Semaphore>,
    descriptions: Arc<Semaphore>,
    metrics: Metrics,
    /// Where it runs; `None` for the runtime of everything else.
    aside: Option<Handle>,
}

/// Ends a task when nobody waits for it any more.
struct Aborted<T>(JoinHandle<T>);

impl<T> Drop for Aborted<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Compute {
    pub(crate) fn new(metrics: Metrics, aside: Option<Handle>) -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self {
            lookups: places(LOOKUPS_AT_ONCE),
            batches: places(BATCHES_OPENED_AT_ONCE),
            frames: places(FRAMES_AT_ONCE),
            patterns: places(1),
            compaction: places(1),
            answers: places(LARGE_ANSWERS_AT_ONCE),
            growing: places(GROWING_AT_ONCE),
            descriptions: places(DESCRIPTIONS_AT_ONCE),
            metrics,
            aside,
        }
    }

    /// Runs all of a task where it holds up nobody: one that computes a little here and there, and
    /// much together. It ends when nobody waits for it any more.
    pub(crate) async fn aside<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> T {
        let Some(runtime) = &self.aside else { return task.await };
        let mut running = Aborted(runtime.spawn(task));
        joined((&mut running.0).await).await
    }

    /// Runs `work` when there is a place for its kind, and gives what comes of it.
    /// Cancellation-safe: work that has not begun never does.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        kind: Kind,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let places = match kind {
            Kind::Lookup => &self.lookups,
            Kind::Batch => &self.batches,
            Kind::Frame => &self.frames,
            Kind::Pattern => &self.patterns,
            Kind::Compaction => &self.compaction,
        };
        let place = self.place(places, kind.as_str()).await;
        // A runtime of one thread is a simulation or a test, which must be the same every time.
        if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
            return work();
        }
        let work = move || {
            let _place = place;
            work()
        };
        let done = match &self.aside {
            Some(runtime) => runtime.spawn_blocking(work),
            None => spawn_blocking(work),
        };
        joined(done.await).await
    }

    /// Waits until a large answer may be built. What is built meanwhile in turns is large in
    /// memory.
    pub(crate) async fn answer(&self) -> Option<OwnedSemaphorePermit> {
        self.place(&self.answers, "answer").await
    }

    /// Waits until batches of a request may be compressed anew: what they become is in memory until
    /// the buffer takes it.
    pub(crate) async fn growth(&self) -> Option<OwnedSemaphorePermit> {
        self.place(&self.growing, "growth").await
    }

    /// Waits until groups may be described, of which each may have a megabyte. Other large answers
    /// do not wait for it: groups may have to be read from a metadata store that is slow.
    pub(crate) async fn description(&self) -> Option<OwnedSemaphorePermit> {
        self.place(&self.descriptions, "description").await
    }

    async fn place(&self, places: &Arc<Semaphore>, kind: &'static str) -> Option<OwnedSemaphorePermit> {
        if let Ok(free) = places.clone().try_acquire_owned() {
            return Some(free);
        }
        self.metrics.requests().compute_waited(kind);
        // No semaphore of these is ever closed.
        places.clone().acquire_owned().await.ok()
    }
}

/// What came of a task; its panic is this task's.
async fn joined<T>(done: Result<T, JoinError>) -> T {
    match done {
        Ok(done) => done,
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        // The runtime is ending, and this task with it.
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn work_holds_up_no_task_and_has_a_bound_of_its_own() {
        let compute = Arc::new(Compute::new(Metrics::new().unwrap(), None));
        // Each place waits to be told to go on.
        let (tell, told) = sync_channel::<()>(LOOKUPS_AT_ONCE);
        let told = Arc::new(std::sync::Mutex::new(told));
        let mut working = Vec::new();
        for _ in 0..LOOKUPS_AT_ONCE {
            let told = told.clone();
            let mut work = Box::pin(compute.run(Kind::Lookup, move || told.lock().unwrap().recv().unwrap()));
            assert!(timeout(Duration::from_millis(1), &mut work).await.is_err(), "it works on");
            working.push(work);
        }
        // Other kinds, and this thread, go on.
        assert_eq!(compute.run(Kind::Frame, || 7).await, 7);
        let begun = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let begin = begun.clone();
        let late = compute.run(Kind::Lookup, move || begin.store(true, std::sync::atomic::Ordering::Relaxed));
        assert!(timeout(Duration::from_millis(1), late).await.is_err(), "there is no place");
        for _ in 0..LOOKUPS_AT_ONCE {
            tell.send(()).unwrap();
        }
        for work in working {
            work.await;
        }
        compute.run(Kind::Lookup, || ()).await;
        assert!(!begun.load(std::sync::atomic::Ordering::Relaxed), "whoever wanted it had gone");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_panic_ends_who_waits_and_gives_the_place_back() {
        let compute = Arc::new(Compute::new(Metrics::new().unwrap(), None));
        for _ in 0..=LOOKUPS_AT_ONCE {
            let compute = compute.clone();
            let tasks = crate::tasks::TaskSet::default();
            let (done, ended) = tokio::sync::oneshot::channel::<()>();
            tasks.start(crate::tasks::TaskKind::Connection, "panics", async move {
                compute.run(Kind::Lookup, || panic!("in the work")).await;
                done.send(()).unwrap();
            });
            assert!(ended.await.is_err());
        }
    }
}
