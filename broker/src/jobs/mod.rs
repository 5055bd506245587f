//! Background jobs. One broker runs them, chosen by a leased key; two doing so at the same time is
//! harmless.

mod beacon;
mod expiry;
mod gc;
mod level;
mod retention;
#[cfg(test)]
mod tests;
mod watermarks;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use strandline_metadata::backend::BackendError;
use strandline_metadata::compaction::Compactor;
use strandline_metadata::snapshot::Maintainer;
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use self::expiry::ProducerExpiry;
use self::gc::Collector;
use self::retention::Retention;
pub(crate) use self::retention::clock_trust;
use crate::Broker;
use crate::tasks::TaskKind;
use crate::transactions::expiry::TransactionExpiry;
use crate::transactions::shown;

/// The key under which the jobs' broker is chosen.
const LEADER: &str = "jobs";

/// Runs the jobs, whenever this broker is the one to do so, until it is dropped.
pub(crate) async fn run(broker: Arc<Broker>) {
    let mut maintainer = Maintainer::new(
        broker.replica.clone(),
        broker.committer.clone(),
        broker.sessions.clone(),
        broker.store.clone(),
        broker.clock.clone(),
    )
    .retaining(broker.config.snapshot_retention);
    let leads = Arc::new(AtomicBool::new(false));
    broker.tasks.start(TaskKind::Critical, "watermarks", watermarks::run(broker.clone(), leads.clone()));
    broker.tasks.start(TaskKind::Critical, "beacon", beacon::run(broker.clone(), leads.clone()));
    let showing = shown::run(broker.clone(), leads.clone());
    broker.tasks.start(TaskKind::Critical, "open transactions", showing);
    let mut term = Term::default();
    // Whoever founds a cluster says so before it has written much, and does not wait until somebody
    // leads.
    let mut registered = broker.registration.subscribe();
    if registered.wait_for(Option::is_some).await.is_ok() {
        report(&broker, "level", level::run_once(&broker).await);
    }
    loop {
        sleep(broker.config.job_interval).await;
        let registration = *broker.registration.borrow();
        let Some(registration) = registration else { continue };
        match maintainer.lead(LEADER, registration.lease).await {
            Ok(true) => leads.store(true, Ordering::Relaxed),
            Ok(false) => {
                leads.store(false, Ordering::Relaxed);
                // What was noted while leading is no evidence after somebody else led.
                term = Term::default();
                maintainer.forget_bucket();
                continue;
            }
            Err(error) => {
                debug!(%error, "it cannot be found out who runs the jobs");
                continue;
            }
        }
        let (ranges, limit) =
            (broker.replica.read(|view| view.state.entry_count()), broker.config.max_state_ranges);
        if ranges >= limit / 10 * 8 {
            warn!(ranges, limit, "the state is near its limit; at the limit producers are refused");
        }
        maintainer.trust(retention::clock_trust(&broker).await.now_ms());
        if term.is_snapshot_due(&broker) {
            report(&broker, "snapshot", maintainer.run_once().await.map(|_| ()));
        }
        report(&broker, "level", level::run_once(&broker).await);
        report(&broker, "compaction", term.compact(&broker).await);
        report(&broker, "transactions", term.transactions.run_once(&broker).await);
        report(&broker, "retention", term.retention.run_once(&broker).await);
        report(&broker, "gc", term.collector.run_once(&broker, &mut maintainer).await);
        report(&broker, "expiry", term.expiry.run_once(&broker).await);
    }
}

/// What a broker notes while it runs the jobs.
#[derive(Debug, Default)]
struct Term {
    collector: Collector,
    expiry: ProducerExpiry,
    transactions: TransactionExpiry,
    retention: Retention,
    compactor: Compactor,
    /// The newest snapshot that was seen, and when it was.
    newest_snapshot: Option<(i64, Instant)>,
}

impl Term {
    /// Whether the log since the newest snapshot is long, in records, bytes, revisions or time.
    /// What counts of time is whether anything waits for a snapshot: records to be trimmed, or
    /// objects to be deleted.
    fn is_snapshot_due(&mut self, broker: &Broker) -> bool {
        let (now, config) = (Instant::now(), &broker.config);
        let (revision, snapshot, has_dead) = broker.replica.read(|view| {
            let newest = view.snapshots.as_ref().and_then(|s| s.snapshots.first());
            (view.revision, newest.map_or(0, |s| s.revision), !view.state.dead().is_empty())
        });
        let since = match self.newest_snapshot {
            Some((seen, since)) if seen == snapshot => since,
            _ => self.newest_snapshot.insert((snapshot, now)).1,
        };
        let counters = broker.replica.counters();
        // A snapshot leaves a record behind it: its own checkpoint is in it, and the pointer is
        // none.
        let has_log = counters.records_since_snapshot > 0;
        let is_old = now.saturating_duration_since(since) >= config.snapshot_interval;
        counters.records_since_snapshot >= config.snapshot_records
            || counters.log_bytes_since_snapshot >= config.snapshot_log_bytes
            || (revision - snapshot >= config.snapshot_revisions && (has_log || snapshot == 0))
            || (is_old && (has_log || has_dead))
            || (broker.slowdown.space().is_short() && has_log)
    }

    /// Has etcd forget what history nobody needs.
    async fn compact(&mut self, broker: &Broker) -> Result<(), BackendError> {
        let newest = broker.replica.newest_revision().await?;
        match self.compactor.due(Instant::now(), newest, broker.slowdown.space().is_short()) {
            Some(revision) => broker.replica.backend().compact(revision).await,
            None => Ok(()),
        }
    }
}

fn report<E: std::fmt::Display>(broker: &Broker, job: &'static str, outcome: Result<(), E>) {
    match outcome {
        Ok(()) => broker.metrics.job_done(job, "ok"),
        Err(error) => {
            warn!(job, %error, "a background job ended early; it starts over");
            broker.metrics.job_done(job, "error");
        }
    }
}
