//! Background jobs. One broker runs them, chosen by a leased key; two doing so at the same time is
//! harmless.

mod expiry;
mod gc;
mod level;
mod retention;
mod watermarks;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use strandline_metadata::snapshot::Maintainer;
use tokio::time::sleep;
use tracing::{debug, warn};

use self::expiry::ProducerExpiry;
use self::gc::Collector;
use crate::Broker;
use crate::tasks::TaskKind;

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
    );
    let leads = Arc::new(AtomicBool::new(false));
    broker.tasks.start(TaskKind::Critical, "watermarks", watermarks::run(broker.clone(), leads.clone()));
    let mut collector = Collector::default();
    let mut expiry = ProducerExpiry::default();
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
                collector = Collector::default();
                expiry = ProducerExpiry::default();
                continue;
            }
            Err(error) => {
                debug!(%error, "it cannot be found out who runs the jobs");
                continue;
            }
        }
        let (ranges, limit) =
            (broker.replica.read(|view| view.state.range_count()), broker.config.max_state_ranges);
        if ranges >= limit / 10 * 8 {
            warn!(ranges, limit, "the state is near its limit; at the limit producers are refused");
        }
        let counters = broker.replica.counters();
        if counters.records_since_snapshot >= broker.config.snapshot_records
            || counters.log_bytes_since_snapshot >= broker.config.snapshot_log_bytes
        {
            report(&broker, "snapshot", maintainer.run_once().await.map(|_| ()));
        }
        report(&broker, "level", level::run_once(&broker).await);
        report(&broker, "retention", retention::run_once(&broker).await);
        report(&broker, "gc", collector.run_once(&broker).await);
        report(&broker, "expiry", expiry.run_once(&broker).await);
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
