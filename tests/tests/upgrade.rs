//! Brokers of an older build beside brokers of this one, under load: replaced one by one, and back.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that goes wrong panics")]

use std::path::PathBuf;
use std::time::Duration;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::update_features_request::FeatureUpdateKey;
use kafka_protocol::messages::{InitProducerIdRequest, TransactionalId, UpdateFeaturesRequest};
use strandline_tests::client::{Client, text};
use strandline_tests::cluster::{Cluster, Plan};
use strandline_tests::process::eventually;
use strandline_tests::table::{self, Table};
use strandline_tests::transactions::Payments;
use strandline_tests::workload::Workload;
use tokio::sync::watch;
use tokio::task::JoinSet;

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

/// Nothing is merged, nothing compacted, and no transaction begun, while a cluster may have brokers
/// that do not know how to read it: a mixed cluster works on, and raising the level begins it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs an older build's program: make test-upgrade"]
async fn an_older_cluster_merges_compacts_and_has_transactions_once_its_level_is_raised() {
    let plan = plan().flag("merge-interval-ms", 500).program(older());
    let mut cluster = Cluster::start(plan).await;
    let addresses = cluster.addresses();
    let workload = Workload::start(&cluster, "merged", 4).await;
    table::create(&addresses, "table", 2, 600_000).await;
    let table = Table::new("table", 2, addresses.clone(), Duration::from_mins(5), workload.history().clone());
    let stop = watch::Sender::new(false);
    let changes = tokio::spawn(table.clone().write(0, 1, Duration::from_millis(50), stop.subscribe()));
    let reader = tokio::spawn(table.clone().read(Duration::from_millis(300), stop.subscribe()));
    roll(&mut cluster, &workload, None).await;
    assert!(merged(&cluster).await < 1.0, "an older broker could not read it");
    let refused = init_producer(&addresses[0]).await;
    assert_eq!(refused, ResponseError::TransactionalIdAuthorizationFailed.code());
    cluster.stop(1).await;
    cluster.set_program(1, Some(older()));
    cluster.restart(1);
    cluster.wait_ready(1).await;
    workload.progress(400).await;
    cluster.stop(1).await;
    cluster.set_program(1, None);
    cluster.restart(1);
    cluster.wait_ready(1).await;
    raise_level(&addresses[0]).await;
    eventually("merges begin", Duration::from_mins(1), async || (merged(&cluster).await > 0.0).then_some(()))
        .await;
    eventually("transactions begin", Duration::from_mins(1), async || {
        (init_producer(&addresses[0]).await == 0).then_some(())
    })
    .await;
    let payments = Payments::new("payments", 2, addresses.clone(), workload.history().clone());
    payments.create().await;
    let mut paying = JoinSet::new();
    for number in 0..2 {
        let (seed, pause) = (number.into(), Duration::from_millis(50));
        paying.spawn(payments.clone().feed(number, seed, pause, stop.subscribe()));
        let partition = number as i32;
        paying.spawn(payments.clone().transform(partition, 2 + seed, pause, stop.subscribe()));
    }
    workload.progress(1_000).await;
    eventually("transactions are committed", Duration::from_mins(1), async || {
        (payments.committed() > 20).then_some(())
    })
    .await;
    stop.send_replace(true);
    changes.await.unwrap();
    reader.await.unwrap();
    paying.join_all().await;
    payments.check().await;
    workload.finish(&mut cluster).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    table.check(&addresses, true).await;
    table.history().assert_clean();
    let (code, said) = cluster.fsck(&[]).await;
    assert_eq!(code, Some(0), "{said}");
}

/// Bytes of merged objects that brokers have written.
async fn merged(cluster: &Cluster) -> f64 {
    let mut bytes = 0.0;
    for i in 0..cluster.len() {
        bytes += cluster.metric(i, "strandline_merged_bytes_total", "").await;
    }
    bytes
}

/// The feature level from which on ranges are merged, and there are transactions.
const TRANSACTIONS: i16 = 5;

/// What the answer to a producer is that asks for transactions.
async fn init_producer(address: &str) -> i16 {
    let request = InitProducerIdRequest::default()
        .with_transactional_id(Some(TransactionalId(text("before"))))
        .with_transaction_timeout_ms(10_000);
    let mut client = Client::connect(address).await.unwrap();
    client.call(&request, 4).await.unwrap().error_code
}

/// Raises the cluster's feature level to that.
async fn raise_level(address: &str) {
    let feature = FeatureUpdateKey::default()
        .with_feature(text("strandline.version"))
        .with_max_version_level(TRANSACTIONS)
        .with_upgrade_type(1);
    let request =
        UpdateFeaturesRequest::default().with_timeout_ms(10_000).with_feature_updates(vec![feature]);
    let mut client = Client::connect(address).await.unwrap();
    let answer = client.call(&request, 1).await.unwrap();
    assert_eq!(answer.error_code, 0, "{:?}", answer.error_message);
}
