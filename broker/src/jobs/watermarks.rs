//! Keeping `watermarks/…` current, on the broker that runs the jobs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use strandline_metadata::limits::BACKEND_TIMEOUT;
use strandline_metadata::limits::WATERMARK_INTERVAL;
use strandline_metadata::watermarks::WatermarkWriter;
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::Broker;

/// Writes what changed, every two seconds, for as long as `leads` says so.
pub(super) async fn run(broker: Arc<Broker>, leads: Arc<AtomicBool>) {
    let mut writer = WatermarkWriter::new(broker.replica.clone(), broker.committer.clone());
    loop {
        sleep(WATERMARK_INTERVAL).await;
        let session = broker.sessions.current().filter(|_| leads.load(Ordering::Relaxed));
        let Some(session) = session else {
            // What others write meanwhile is not known.
            writer.forget();
            continue;
        };
        match timeout(BACKEND_TIMEOUT, writer.run_once(session)).await {
            Ok(Ok(_)) => broker.metrics.job_done("watermarks", "ok"),
            Ok(Err(error)) => {
                debug!(%error, "watermarks could not be written");
                broker.metrics.job_done("watermarks", "error");
            }
            Err(_) => {
                writer.forget();
                broker.metrics.job_done("watermarks", "error");
            }
        }
    }
}
