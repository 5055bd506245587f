//! A watch on the embedded store: a position in its history, and nothing that could grow.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::shared::Shared;
use crate::backend::{BackendError, KeyRange, Watch, WatchBatch};
use crate::limits::{PROGRESS_INTERVAL, WATCH_BATCH_BYTES, WATCH_BATCH_REVISIONS};

#[derive(Debug)]
pub(super) struct EmbeddedWatch {
    shared: Arc<Shared>,
    keys: KeyRange,
    /// The next revision that was not looked at yet.
    next: i64,
    changed: watch::Receiver<()>,
    progress_at: Instant,
}

impl EmbeddedWatch {
    pub(super) fn new(shared: Arc<Shared>, keys: KeyRange, revision: i64) -> Self {
        let changed = shared.changed.subscribe();
        Self { shared, keys, next: revision, changed, progress_at: Instant::now() + PROGRESS_INTERVAL }
    }

    /// Everything up to this revision was delivered, if it is there yet.
    #[cfg(feature = "etcd-api")]
    pub(super) fn position(&self) -> i64 {
        self.next - 1
    }

    /// Whatever there is to deliver now, and when a lease may bring more if nobody else does.
    pub(super) fn poll(&mut self) -> Result<(Option<WatchBatch>, Option<Instant>), BackendError> {
        self.shared.check()?;
        let (next, keys) = (self.next, &self.keys);
        let ((found, visible, lease_deadline), _) = self.shared.with_state(|state, _| {
            let visible = state.visible();
            let found = state.mvcc.events(keys, next, visible, WATCH_BATCH_REVISIONS, WATCH_BATCH_BYTES);
            (found, visible, state.deadlines.next())
        });
        let found = found?;
        self.next = self.next.max(found.through + 1);
        let now = Instant::now();
        if found.events.is_empty() && now < self.progress_at {
            return Ok((None, lease_deadline));
        }
        self.progress_at = now + PROGRESS_INTERVAL;
        // A watch from a future revision has delivered everything there is, not everything before
        // its start.
        Ok((Some(WatchBatch { events: found.events, revision: visible.min(self.next - 1) }), None))
    }
}

#[async_trait]
impl Watch for EmbeddedWatch {
    async fn next(&mut self) -> Result<WatchBatch, BackendError> {
        loop {
            self.changed.borrow_and_update();
            let (batch, lease_deadline) = self.poll()?;
            if let Some(batch) = batch {
                return Ok(batch);
            }
            let wake_at = lease_deadline.map_or(self.progress_at, |deadline| deadline.min(self.progress_at));
            // Either a change or the time that has come: both are looked at above.
            let _ = timeout_at(wake_at, self.changed.changed()).await;
        }
    }
}
