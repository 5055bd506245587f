//! Reading etcd: at most two ranges per call, at one revision, shared by all who ask at the same
//! time.
//!
//! What was read is kept (`kept.rs`), and etcd is asked for what was put since, and for the count
//! of all keys. That is a range as any other: linearizable, and the second one of a call is as of
//! the revision of the first. Where the count tells that something was deleted, or another call has
//! read on meanwhile, that range is read again, whole and as of the same revision. So a call right
//! after a deletion may take a range more, or two if both of its ranges had one. The first calls,
//! those a minute later, and those after anything went wrong read whole at once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use strandline_metadata::backend::{
    BackendError, ChangedRequest, ChangedResponse, KeyRange, RangeRequest, RangeResponse, ReadBackend,
};
use strandline_metadata::keys::Keyspace;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::kept::CachedView;
use super::need::Families;
pub use super::need::Need;
use super::view::View;
use crate::clock::Clock;
use crate::limits::ETCD_READS_IN_FLIGHT;
use crate::metrics::Metrics;

/// Why etcd could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EtcdError {
    /// It did not answer in time.
    #[error("etcd did not answer within {0} ms")]
    TimedOut(u128),
    /// It cannot be reached, or refuses.
    #[error("etcd cannot be read: {0}")]
    Unavailable(String),
    /// The history of the revision was compacted between two reads.
    #[error("etcd's history was compacted while it was read")]
    Compacted,
}

/// What is known of etcd itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdHealth {
    /// When it was last read, ms since 1970.
    pub last_ok_ms: Option<i64>,
    /// How long that read took, in ms.
    pub last_took_ms: Option<u64>,
    /// The revision that it was as of.
    pub last_revision: Option<i64>,
    /// What went wrong in the newest read, if it did.
    pub error: Option<String>,
    /// When that was, ms since 1970.
    pub failed_at_ms: Option<i64>,
}

type Flight = Shared<BoxFuture<'static, Result<Arc<View>, EtcdError>>>;

/// etcd, as far as it may be read. Cheap to clone.
#[derive(Clone)]
pub struct EtcdSource {
    shared: Arc<SharedParts>,
}

struct SharedParts {
    reader: Arc<dyn ReadBackend>,
    families: Families,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    request_timeout: Duration,
    slots: Semaphore,
    flights: Mutex<Vec<(Need, Flight)>>,
    kept: Mutex<CachedView>,
    health: Mutex<EtcdHealth>,
    cluster_id: Mutex<Option<String>>,
}

impl std::fmt::Debug for EtcdSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdSource").finish_non_exhaustive()
    }
}

impl EtcdSource {
    /// Reads the cluster of `keys` from `reader`.
    pub fn new(
        reader: Arc<dyn ReadBackend>,
        keys: Keyspace,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        request_timeout: Duration,
    ) -> Self {
        Self {
            shared: Arc::new(SharedParts {
                reader,
                families: Families::new(keys),
                clock,
                metrics,
                request_timeout,
                slots: Semaphore::new(ETCD_READS_IN_FLIGHT),
                flights: Mutex::default(),
                kept: Mutex::default(),
                health: Mutex::default(),
                cluster_id: Mutex::default(),
            }),
        }
    }

    /// The backend itself, for watches of single prefixes.
    pub(crate) fn reader(&self) -> &Arc<dyn ReadBackend> {
        &self.shared.reader
    }

    /// The cluster's keys.
    pub fn keys(&self) -> &Keyspace {
        &self.shared.families.keys
    }

    /// What is known of etcd itself.
    pub fn health(&self) -> EtcdHealth {
        self.shared.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The id of the cluster, once it was read. It never changes.
    pub fn cluster_id(&self) -> Option<String> {
        self.shared.cluster_id.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the newest read succeeded.
    pub fn is_reachable(&self) -> bool {
        let health = self.health();
        health.last_ok_ms.is_some() && health.error.is_none()
    }

    /// Reads everything whole the next time: what was read may not be of the history that etcd has
    /// now.
    pub(crate) fn forget(&self) {
        *self.shared.kept() = CachedView::default();
    }

    /// Reads what is needed. Whoever asks while somebody is reading that much shares the read.
    pub async fn read(&self, need: Need) -> Result<Arc<View>, EtcdError> {
        let flight = {
            let mut flights = self.shared.flights.lock().unwrap_or_else(PoisonError::into_inner);
            flights.retain(|(_, flight)| flight.peek().is_none());
            let known =
                flights.iter().find(|(known, _)| known.covers(need)).map(|(_, flight)| flight.clone());
            known.unwrap_or_else(|| {
                let shared = self.shared.clone();
                let flight = async move { shared.read(need).await }.boxed().shared();
                flights.push((need, flight.clone()));
                flight
            })
        };
        flight.await
    }
}

impl SharedParts {
    async fn read(&self, need: Need) -> Result<Arc<View>, EtcdError> {
        let begun = Instant::now();
        // Waiting for a slot and both reads together may take this long.
        let limit = self.request_timeout * 2;
        let result = timeout(limit, self.read_at_one_revision(need)).await;
        let result = result.unwrap_or(Err(EtcdError::TimedOut(limit.as_millis())));
        let now_ms = self.clock.now_ms();
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        match &result {
            Ok(view) => {
                if let Some(id) = view.cluster_id() {
                    *self.cluster_id.lock().unwrap_or_else(PoisonError::into_inner) = Some(id.to_owned());
                }
                *health = EtcdHealth {
                    last_ok_ms: Some(now_ms),
                    last_took_ms: u64::try_from(begun.elapsed().as_millis()).ok(),
                    last_revision: Some(view.revision),
                    error: None,
                    failed_at_ms: None,
                };
            }
            Err(error) => {
                // What went wrong may have been etcd's end.
                *self.kept() = CachedView::default();
                health.error = Some(error.to_string());
                health.failed_at_ms = Some(now_ms);
            }
        }
        result
    }

    fn kept(&self) -> MutexGuard<'_, CachedView> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read_at_one_revision(&self, need: Need) -> Result<Arc<View>, EtcdError> {
        let _slot = self.slots.acquire().await.map_err(|e| EtcdError::Unavailable(e.to_string()))?;
        let mut view = View::default();
        let mut revision = None;
        for (families, range) in self.families.spans(need) {
            revision = Some(self.read_range(families, range, revision, &mut view).await?);
        }
        view.revision = revision.unwrap_or_default();
        view.read_at_ms = self.clock.now_ms();
        Ok(Arc::new(view))
    }

    /// Lets a view have what families are at a revision, or now. Gives the revision.
    async fn read_range(
        &self,
        families: Need,
        range: KeyRange,
        mut revision: Option<i64>,
        view: &mut View,
    ) -> Result<i64, EtcdError> {
        let (after, newest) = {
            let kept = self.kept();
            (kept.since(families, Instant::now()), kept.newest())
        };
        if let Some(after) = after {
            let answer = self.changed(range.clone(), after, revision).await?;
            let at = revision.unwrap_or(answer.revision);
            let mut kept = self.kept();
            check_history(&mut kept, newest, answer.revision);
            if kept.add(&self.families, families, (after, at), answer.kvs, answer.count) {
                kept.show(families, view);
                return Ok(at);
            }
            revision = Some(at);
        }
        let answer = self.range(range, revision).await?;
        let at = revision.unwrap_or(answer.revision);
        let mut kept = self.kept();
        check_history(&mut kept, newest, answer.revision);
        // What is old is decoded anew, too.
        let before = after.map(|_| &*kept);
        let fresh = CachedView::whole(&self.families, families, at, Instant::now(), answer.kvs, before);
        fresh.show(families, view);
        kept.adopt(families, fresh);
        Ok(at)
    }

    async fn range(&self, keys: KeyRange, revision: Option<i64>) -> Result<RangeResponse, EtcdError> {
        let request = RangeRequest { keys, revision, limit: 0, keys_only: false };
        self.in_time(self.reader.range(request)).await
    }

    async fn changed(
        &self,
        keys: KeyRange,
        after: i64,
        revision: Option<i64>,
    ) -> Result<ChangedResponse, EtcdError> {
        self.in_time(self.reader.changed(ChangedRequest { keys, after, revision })).await
    }

    async fn in_time<T>(&self, read: impl Future<Output = Result<T, BackendError>>) -> Result<T, EtcdError> {
        let begun = Instant::now();
        // The backend has a time-out of its own, which this one backs.
        let result = timeout(self.request_timeout, read).await;
        self.metrics.etcd_read(matches!(result, Ok(Ok(_))), begun.elapsed());
        match result {
            Ok(result) => result.map_err(error_of),
            Err(_) => Err(EtcdError::TimedOut(self.request_timeout.as_millis())),
        }
    }
}

/// Forgets everything if etcd's newest revision is older than what was known when it was asked: it
/// has another history.
fn check_history(kept: &mut CachedView, known: Option<i64>, newest: i64) {
    if known.is_some_and(|known| newest < known) {
        *kept = CachedView::default();
    }
}

fn error_of(error: BackendError) -> EtcdError {
    match error {
        BackendError::Compacted { .. } => EtcdError::Compacted,
        BackendError::Unavailable(why) if why.contains("no answer within") => EtcdError::Unavailable(why),
        BackendError::Unavailable(_)
        | BackendError::OutcomeUnknown(_)
        | BackendError::NoSpace
        | BackendError::TooLarge(_)
        | BackendError::Denied(_)
        | BackendError::LeaseGone(_)
        | BackendError::Broken(_) => EtcdError::Unavailable(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
