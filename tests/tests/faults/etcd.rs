//! etcd that dies, stops and forgets.

use std::time::Duration;

use strandline_tests::cluster::{Cluster, Plan};
use strandline_tests::proxy::Link;
use strandline_tests::workload::Workload;
use tokio::time::sleep;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_may_be_gone_for_longer_than_a_lease() {
    let mut cluster = Cluster::start(Plan::new(3).flag("lease-ttl-s", 2)).await;
    let workload = Workload::start(&cluster, "outage", 4).await;
    workload.progress(500).await;
    cluster.etcd().kill9();
    sleep(Duration::from_secs(1)).await;
    // What is known is served all the while.
    for i in 0..cluster.len() {
        let mut client = cluster.client(i).await;
        for _ in 0..3 {
            client.set_timeout(Duration::from_secs(5));
            let (watermark, records) =
                client.fetch("outage", 0, 0, 0).await.expect("known records are served");
            assert!(watermark > 0 && !records.is_empty(), "broker {} serves what it knows", i + 1);
            let metadata = client.metadata(&["outage"]).await.expect("metadata is served");
            assert_eq!(metadata.topics[0].error_code, 0);
            sleep(Duration::from_millis(700)).await;
        }
    }
    cluster.restart_etcd().await;
    workload.progress(1_000).await;
    cluster.wait_all_ready().await;
    workload.finish(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_may_stop_and_go_on() {
    let mut cluster = Cluster::start(Plan::new(3).flag("lease-ttl-s", 2)).await;
    let workload = Workload::start(&cluster, "stopped", 4).await;
    for pause in [700, 6_500] {
        workload.progress(300).await;
        cluster.etcd().pause();
        sleep(Duration::from_millis(pause)).await;
        cluster.etcd().resume();
    }
    workload.progress(1_000).await;
    cluster.wait_all_ready().await;
    workload.finish(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_may_die_often() {
    let mut cluster = Cluster::start(Plan::new(3)).await;
    let workload = Workload::start(&cluster, "flaky", 4).await;
    for _ in 0..5 {
        workload.progress(200).await;
        cluster.etcd().kill9();
        cluster.restart_etcd().await;
    }
    workload.progress(500).await;
    cluster.wait_all_ready().await;
    workload.finish(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_compacted_away_under_a_stopped_broker_is_read_anew() {
    let mut cluster = Cluster::start(Plan::new(3).flag("lease-ttl-s", 2).proxied()).await;
    let workload = Workload::start(&cluster, "compacted", 4).await;
    workload.progress(500).await;
    // The watch is cut while the broker cannot open another one: when it can, the revisions that it needs are gone.
    cluster.pause(0);
    cluster.link_to_etcd(0, Link::Down);
    workload.progress(1_000).await;
    cluster.etcd().compact();
    cluster.link_to_etcd(0, Link::Up);
    cluster.resume(0);
    cluster.wait_logged(0, "the state is rebuilt", Duration::from_mins(1)).await;
    cluster.wait_ready(0).await;
    assert!(cluster.metric(0, "strandline_state_rebuilds_total", "").await >= 1.0);
    // The same for brokers whose watch is alive, and for one that starts.
    workload.progress(300).await;
    cluster.etcd().compact();
    cluster.kill9(1);
    cluster.restart(1);
    cluster.wait_ready(1).await;
    workload.progress(300).await;
    workload.finish(&mut cluster).await;
}
