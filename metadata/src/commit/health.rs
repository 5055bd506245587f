//! Whether commits come through, for whoever has to say what clients would meet.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::settle::Settled;
use crate::backend::BackendError;
use crate::limits::COMMIT_SILENCE;

/// What became of the newest transactions of a broker. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct CommitHealth {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Since when the transaction that is under way has been sent.
    begun: Option<Instant>,
    /// Why the newest one was refused, and since when all of them are.
    refused: Option<(BackendError, Instant)>,
}

/// Why commits do not come through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitTrouble {
    /// What the metadata store said; `None` if it does not answer.
    pub refused: Option<BackendError>,
    /// Since when.
    pub since: Instant,
}

impl CommitHealth {
    /// Why commits do not come through now, as far as is known: what nobody has tried since a
    /// refusal counts as refused.
    pub fn trouble(&self) -> Option<CommitTrouble> {
        let state = self.lock();
        if let Some((error, since)) = &state.refused {
            return Some(CommitTrouble { refused: Some(error.clone()), since: *since });
        }
        let silent = state.begun.filter(|begun| begun.elapsed() >= COMMIT_SILENCE);
        silent.map(|since| CommitTrouble { refused: None, since })
    }

    pub(super) fn begin(&self) {
        self.lock().begun = Some(Instant::now());
    }

    pub(super) fn end(&self, settled: &Settled) {
        let mut state = self.lock();
        state.begun = None;
        match settled {
            Settled::Answered(_) | Settled::Traced(_) | Settled::Conflict => state.refused = None,
            Settled::Refused(error) => {
                let since = state.refused.take().map_or_else(Instant::now, |(_, since)| since);
                state.refused = Some((error.clone(), since));
            }
            // About the registration, or about nobody's waiting any more.
            Settled::Impossible | Settled::Withdrawn | Settled::Unknown => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_and_refusals_are_trouble_until_a_commit_comes_through() {
        let health = CommitHealth::default();
        let begun = Instant::now();
        health.begin();
        assert_eq!(health.trouble(), None, "it is given a moment");
        advance(COMMIT_SILENCE).await;
        assert_eq!(health.trouble(), Some(CommitTrouble { refused: None, since: begun }));
        let refused_at = Instant::now();
        for _ in 0..2 {
            health.end(&Settled::Refused(BackendError::NoSpace));
            advance(COMMIT_SILENCE).await;
            let trouble = CommitTrouble { refused: Some(BackendError::NoSpace), since: refused_at };
            assert_eq!(health.trouble(), Some(trouble), "since the first refusal");
            health.begin();
        }
        health.end(&Settled::Conflict);
        assert_eq!(health.trouble(), None);
    }
}
