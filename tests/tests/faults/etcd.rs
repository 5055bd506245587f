//! etcd that dies, stops and forgets.

use std::time::Duration;

use strandline_tests::cluster::{Cluster, Plan};
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
