//! What happened in a run, in order: for whoever has to understand a failure, and for the proof
//! that a seed always gives the same run.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// The lines of a run. Clones write to the same.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    began: Instant,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Trace {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), lines: Arc::default() }
    }

    /// Adds a line, with the time since the run began.
    pub(crate) fn note(&self, what: &str) {
        let at = self.began.elapsed();
        let mut line = String::new();
        // Writing to a string does not fail.
        let _ = write!(line, "{:>3}.{:06} {what}", at.as_secs(), at.subsec_micros());
        self.lock().push(line);
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
