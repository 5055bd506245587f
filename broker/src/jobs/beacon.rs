//! Keeping the bucket's beacon current, on the broker that runs the jobs: how far the log has come,
//! for whoever meets a metadata store that was restored from a backup.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use strandline_metadata::evidence::Beacon;
use strandline_metadata::limits::BEACON_INTERVAL;
use tokio::time::sleep;
use tracing::debug;

use crate::Broker;

/// Writes it every few seconds while transactions are committed, for as long as `leads` says so.
pub(super) async fn run(broker: Arc<Broker>, leads: Arc<AtomicBool>) {
    // What others write meanwhile is not known.
    let mut written = None;
    loop {
        sleep(BEACON_INTERVAL).await;
        if !leads.load(Ordering::Relaxed) || broker.sessions.current().is_none() {
            written = None;
            continue;
        }
        let commits = broker.replica.read(|view| view.commits);
        if written == Some(commits.count) {
            continue;
        }
        let cluster_id = &broker.cluster.cluster_id;
        let beacon = Beacon::new(cluster_id, commits.count, commits.revision, broker.clock.now_ms());
        match beacon.write(broker.store.as_ref()).await {
            Ok(()) => {
                written = Some(commits.count);
                broker.metrics.job_done("beacon", "ok");
            }
            Err(error) => {
                debug!(%error, "the beacon could not be written");
                broker.metrics.job_done("beacon", "error");
            }
        }
    }
}
