//! Snapshots, trims and deletions that never pause, while brokers die.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use strandline_tests::client::Client;
use strandline_tests::cluster::{CLUSTER, Cluster, Plan};
use strandline_tests::process::eventually;
use strandline_tests::workload::{Workload, create_topic};
use tokio::time::sleep;

fn hurried() -> Plan {
    Plan::new(3)
        .flag("lease-ttl-s", 2)
        .flag("snapshot-records", 20)
        .flag("job-interval-ms", 200)
        .flag("delete-delay-ms", 300)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_and_trims_go_on_under_load_while_brokers_die() {
    let mut cluster = Cluster::start(hurried()).await;
    let workload = Workload::start(&cluster, "hurried", 4).await;
    let mut rng = StdRng::seed_from_u64(11);
    for round in 0..6 {
        workload.progress(300).await;
        sleep(Duration::from_millis(rng.random_range(0..300))).await;
        let victim = rng.random_range(0..cluster.len());
        if round % 3 == 2 {
            cluster.pause(victim);
            sleep(Duration::from_millis(2500)).await;
            cluster.resume(victim);
        } else {
            cluster.kill9(victim);
            sleep(Duration::from_millis(rng.random_range(0..300))).await;
            cluster.restart(victim);
        }
        cluster.wait_ready(victim).await;
    }
    let history = workload.finish(&mut cluster).await;
    let batches = history.lock().acked.len();
    let prefix = format!("/strandline/{CLUSTER}/log/");
    let left = eventually("the log is trimmed", Duration::from_mins(1), async || {
        let keys = cluster.etcd().ctl(&["get", "--prefix", "--keys-only", &prefix]);
        let left = keys.lines().filter(|l| !l.is_empty()).count();
        (left < 200).then_some(left)
    })
    .await;
    println!("{left} log records are left of {batches} batches");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreliable_store_does_not_stop_the_jobs_or_harm_them() {
    let mut cluster = Cluster::start(hurried()).await;
    let workload = Workload::start(&cluster, "jobs", 4).await;
    cluster.s3().faults(json!({"error_rate": 0.2, "lost_answer_rate": 0.1, "reset_rate": 0.1})).await;
    workload.progress(600).await;
    cluster.s3().heal().await;
    for i in 0..cluster.len() {
        cluster.kill9(i);
        cluster.restart(i);
        cluster.wait_ready(i).await;
        workload.progress(150).await;
    }
    workload.finish(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_objects_of_a_deleted_topic_go_and_others_stay() {
    let mut cluster = Cluster::start(hurried().in_folder()).await;
    let gone = Workload::start(&cluster, "gone", 2).await;
    gone.progress(300).await;
    cluster.kill9(2);
    gone.finish(&mut cluster).await;
    let doomed = cluster.s3().files("/wal/");
    assert!(doomed.len() > 10, "{} objects", doomed.len());
    cluster.client(0).await.delete_topic("gone").await.expect("the topic is deleted");
    // What the killed broker had not committed is found when the bucket is listed after its registration is gone. Whoever
    // takes over the jobs begins with that.
    eventually("the killed broker's registration is gone", Duration::from_mins(1), async || {
        let known = cluster.client(0).await.metadata(&[]).await.ok()?;
        (known.brokers.len() == 2).then_some(())
    })
    .await;
    for i in 0..2 {
        cluster.kill9(i);
        cluster.restart(i);
        cluster.wait_ready(i).await;
    }
    // Another topic's load goes on, so that snapshots are written and what died becomes older than all of them.
    let kept = Workload::start(&cluster, "kept", 2).await;
    eventually("the objects of the topic are deleted", Duration::from_mins(4), async || {
        doomed.iter().all(|path| !path.exists()).then_some(())
    })
    .await;
    kept.progress(200).await;
    kept.finish(&mut cluster).await;
    let addresses = cluster.live_addresses();
    create_topic(&addresses, "gone", 2).await;
    for address in addresses {
        let mut client = Client::connect(&address).await.expect("a running broker takes connections");
        assert_eq!(
            client.list_offset("gone", 0, -1).await.expect("an offset"),
            0,
            "no old data under the old name"
        );
    }
}
