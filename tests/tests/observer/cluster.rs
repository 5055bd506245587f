//! A cluster that something is wrong with, or nothing, or whose metrics nobody can read.

use std::time::Duration;

use serde_json::{Value, json};
use strandline_tests::client::Client;
use strandline_tests::cluster::{Cluster, Plan};
use strandline_tests::observer::Observer;
use strandline_tests::process::{Process, eventually};
use strandline_tests::proxy::Link;
use strandline_tests::records::batch;
use strandline_tests::surroundings::now_ms;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::{first, names_first};

/// Produces ten records a second through one broker, whatever becomes of them.
async fn produce(address: String) {
    let mut connection: Option<Client> = None;
    loop {
        if connection.is_none() {
            connection = Client::connect(&address).await.ok();
        }
        if let Some(client) = &mut connection {
            let values = [vec![7; 100], vec![8; 100]];
            let batch = batch(&values, now_ms(), None, kafka_protocol::records::Compression::None);
            if client.produce("t", 0, batch).await.is_err() {
                connection = None;
            }
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// An observer that knows nothing of what was before, once it has seen every broker.
async fn fresh(cluster: &Cluster, brokers: usize) -> (Process, Observer) {
    let (process, observer) = cluster.observe(&[]).await;
    let sees_all = async || {
        let answer = observer.call("cluster_metrics", json!({})).await;
        let rates = answer["brokers"].as_array().is_some_and(|b| b.len() == brokers);
        (rates && answer["requests_per_s"].is_number()).then_some(())
    };
    eventually("the observer sees every broker", Duration::from_mins(1), sees_all).await;
    (process, observer)
}

async fn start(brokers: usize) -> (Cluster, JoinSet<()>) {
    let plan = Plan::new(brokers)
        .proxied()
        .flag("store-request-timeout-ms", 4000)
        .flag("store-retry-budget-ms", 8000);
    let cluster = Cluster::start(plan).await;
    cluster.client(0).await.create_topic("t", 2, &[]).await.expect("a topic");
    let mut at_work = JoinSet::new();
    for i in 0..brokers {
        at_work.spawn(produce(cluster.address(i)));
    }
    (cluster, at_work)
}

async fn explained(observer: Observer, expected: &str) -> Value {
    names_first(observer, "explain_current_state", json!({}), expected).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_store_that_is_slow_or_fails_is_named() {
    let (mut cluster, _at_work) = start(1).await;
    let (process, observer) = fresh(&cluster, 1).await;
    explained(observer, "healthy").await;
    drop(process);
    let (process, observer) = fresh(&cluster, 1).await;
    cluster.s3().faults(json!({"latency_ms": 1500})).await;
    names_first(observer, "diagnose_storage", json!({}), "storage_slow").await;
    explained(observer, "storage_slow").await;
    drop(process);
    cluster.s3().heal().await;
    let (process, observer) = fresh(&cluster, 1).await;
    cluster.s3().faults(json!({"error_rate": 1.0})).await;
    names_first(observer, "diagnose_storage", json!({}), "storage_failing").await;
    explained(observer, "storage_failing").await;
    drop(process);
    cluster.s3().heal().await;
    let (process, observer) = fresh(&cluster, 1).await;
    cluster.s3().faults(json!({"deny": true})).await;
    names_first(observer, "diagnose_storage", json!({}), "storage_denied").await;
    drop(process);
    cluster.s3().heal().await;
    let (_process, observer) = fresh(&cluster, 1).await;
    cluster.s3().faults(json!({"slowdown_rate": 0.2})).await;
    names_first(observer, "diagnose_storage", json!({}), "storage_throttled").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn producers_that_are_slowed_are_named_and_for_how_long() {
    let plan = Plan::new(1).flag("max-state-ranges", 60).flag("merge-interval-ms", 86_400_000);
    let cluster = Cluster::start(plan).await;
    cluster.client(0).await.create_topic("t", 2, &[]).await.expect("a topic");
    let mut at_work = JoinSet::new();
    at_work.spawn(produce(cluster.address(0)));
    let (_process, observer) = fresh(&cluster, 1).await;
    let report = explained(observer, "state_crowded").await;
    let evidence = report["evidence"].as_array().expect("a list");
    let since = evidence.iter().find(|e| e["id"] == "produce.slowed_by_state_s").expect("it is cited");
    assert!(since["value"].as_f64().is_some_and(|seconds| seconds > 0.0), "{since}");
    // Nothing else slows them.
    assert!(!report["root_causes"].to_string().contains("etcd_nearly_full"), "{report:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_etcd_and_a_killed_broker_are_named() {
    let (mut cluster, _at_work) = start(2).await;
    let (process, observer) = fresh(&cluster, 2).await;
    for i in 0..2 {
        cluster.link_to_etcd(i, Link::Slow(400));
    }
    explained(observer, "etcd_slow").await;
    for i in 0..2 {
        cluster.link_to_etcd(i, Link::Up);
    }
    drop(process);
    let (process, observer) = fresh(&cluster, 2).await;
    explained(observer, "healthy").await;
    cluster.kill9(1);
    let report = explained(observer, "broker_down").await;
    assert_eq!(report["severity"], "warning", "{report:#}");
    names_first(observer, "diagnose_broker", json!({"broker_id": 2}), "broker_down").await;
    drop(process);
    // Whoever may not read the brokers' metrics does not know how they are, and does not say that
    // they are well.
    let (_process, observer) = cluster.observe(&["--metrics-hosts", "elsewhere.example"]).await;
    let report = explained(observer, "metrics_blind").await;
    assert_eq!(report["severity"], "unknown", "{report:#}");
    let storage = observer.call("diagnose_storage", json!({})).await;
    assert_eq!(first(&storage), "metrics_blind", "{storage:#}");
}
