//! Brokers that die, stop and come back.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use strandline_tests::cluster::{Cluster, Plan};
use strandline_tests::workload::Workload;
use tokio::time::sleep;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_steady_load_is_acknowledged_without_any_error() {
    let mut cluster = Cluster::start(Plan::new(3)).await;
    let workload = Workload::start(&cluster, "steady", 4).await;
    workload.progress(3_000).await;
    let history = workload.finish(&mut cluster).await;
    let errors = history.lock().errors.clone();
    assert!(errors.is_empty(), "nothing was wrong, and yet: {errors:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_killed_at_any_instant_lose_and_double_nothing() {
    let mut cluster = Cluster::start(Plan::new(3).flag("lease-ttl-s", 2)).await;
    let workload = Workload::start(&cluster, "killed", 4).await;
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..8 {
        workload.progress(300).await;
        sleep(Duration::from_millis(rng.random_range(0..200))).await;
        let victim = rng.random_range(0..cluster.len());
        cluster.kill9(victim);
        sleep(Duration::from_millis(rng.random_range(0..500))).await;
        cluster.restart(victim);
        cluster.wait_ready(victim).await;
    }
    workload.progress(300).await;
    workload.finish(&mut cluster).await;
}
