//! Brokers of an older build beside brokers of this one, under load: replaced one by one, and back.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that goes wrong panics")]

use std::path::PathBuf;
use std::time::Duration;

use strandline_tests::cluster::{Cluster, Plan};
use strandline_tests::workload::Workload;

/// The older build's program.
fn older() -> PathBuf {
    std::env::var_os("STRANDLINE_OLD_BINARY").expect("the path of an older build's program").into()
}

fn plan() -> Plan {
    // Jobs are in a hurry, so that each build reads what the other one's jobs have left.
    Plan::new(3).flag("lease-ttl-s", 2).flag("snapshot-records", 30).flag("job-interval-ms", 200)
}

/// Replaces one broker after the other, which leaves in order or is killed, under load.
async fn roll(cluster: &mut Cluster, workload: &Workload, to: Option<PathBuf>) {
    for i in 0..cluster.len() {
        if i == 1 {
            cluster.kill9(i);
        } else {
            assert!(cluster.stop(i).await.success(), "broker {} leaves in order", i + 1);
        }
        cluster.set_program(i, to.clone());
        cluster.restart(i);
        cluster.wait_ready(i).await;
        workload.progress(400).await;
        // Whoever runs the jobs is another one, of either build.
        let other = (i + 1) % cluster.len();
        cluster.kill9(other);
        cluster.restart(other);
        cluster.wait_ready(other).await;
        workload.progress(400).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs an older build's program: make test-upgrade"]
async fn an_older_clusters_brokers_are_replaced_under_load_and_back() {
    let mut cluster = Cluster::start(plan().program(older())).await;
    let workload = Workload::start(&cluster, "rolled", 4).await;
    workload.progress(400).await;
    roll(&mut cluster, &workload, None).await;
    roll(&mut cluster, &workload, Some(older())).await;
    roll(&mut cluster, &workload, None).await;
    workload.finish(&mut cluster).await;
    let (code, said) = cluster.fsck(&[]).await;
    assert_eq!(code, Some(0), "{said}");
}

/// A new cluster is at the level of the build that founds it, which an older build may not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs an older build's program: make test-upgrade"]
async fn an_older_broker_says_that_a_cluster_of_this_build_is_too_new_for_it() {
    let mut cluster = Cluster::start(plan()).await;
    let workload = Workload::start(&cluster, "founded", 4).await;
    workload.progress(400).await;
    cluster.kill9(1);
    cluster.set_program(1, Some(older()));
    cluster.restart(1);
    let status = cluster.broker(1).wait(Duration::from_mins(1)).await;
    assert!(!status.success(), "{status}");
    assert!(!cluster.logged("level").is_empty(), "it says why");
    workload.progress(400).await;
    cluster.set_program(1, None);
    cluster.restart(1);
    cluster.wait_ready(1).await;
    workload.finish(&mut cluster).await;
    let (code, said) = cluster.fsck(&[]).await;
    assert_eq!(code, Some(0), "{said}");
}
