//! An object store that fails, refuses, is slow, answers late or not at all.

use std::time::Duration;

use futures::future::join_all;
use kafka_protocol::error::ResponseError;
use kafka_protocol::records::Compression;
use serde_json::json;
use strandline_tests::client::ClientError;
use strandline_tests::cluster::{Cluster, Plan};
use strandline_tests::process::eventually;
use strandline_tests::proxy::Link;
use strandline_tests::records::batch;
use strandline_tests::surroundings::now_ms;
use strandline_tests::workload::{Workload, create_topic};
use tokio::time::sleep;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreliable_store_loses_and_doubles_nothing() {
    let mut cluster = Cluster::start(Plan::new(3)).await;
    let workload = Workload::start(&cluster, "unreliable", 4).await;
    let plans = [
        json!({"error_rate": 0.3}),
        json!({"slowdown_rate": 0.3}),
        json!({"lost_answer_rate": 0.3, "operations": ["put"]}),
        json!({"reset_rate": 0.2, "latency_ms": 50, "latency_jitter_ms": 200}),
        json!({"error_rate": 0.1, "slowdown_rate": 0.1, "lost_answer_rate": 0.1, "reset_rate": 0.1, "truncate_rate": 0.1}),
    ];
    for plan in plans {
        cluster.s3().faults(plan).await;
        workload.progress(300).await;
    }
    cluster.s3().heal().await;
    workload.progress(300).await;
    workload.finish(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_refuses_hangs_or_is_gone_is_waited_for() {
    let plan = Plan::new(2).flag("store-request-timeout-ms", 1000).flag("store-retry-budget-ms", 3000);
    let mut cluster = Cluster::start(plan.in_folder()).await;
    let workload = Workload::start(&cluster, "refused", 4).await;
    for plan in [json!({"deny": true}), json!({"hang": true})] {
        workload.progress(200).await;
        cluster.s3().faults(plan.clone()).await;
        // Longer than the budget of a PUT: flushes fail, and the health says so.
        eventually(&format!("a broker notices {plan}"), Duration::from_mins(1), async || {
            let (code, said) = cluster.page(0, "/readyz").await;
            (code == 503 && said.contains("object store")).then_some(())
        })
        .await;
        sleep(Duration::from_secs(1)).await;
        cluster.s3().heal().await;
        workload.progress(200).await;
        cluster.wait_all_ready().await;
    }
    // What a broker has in memory is served while the store is gone.
    let mut known = Vec::new();
    for i in 0..cluster.len() {
        let mut client = cluster.client(i).await;
        let at = client.list_offset("refused", 0, -1).await.expect("an offset") - 1;
        client.fetch("refused", 0, at, 0).await.expect("it is read before");
        known.push((client, at));
    }
    cluster.s3().kill9();
    sleep(Duration::from_secs(4)).await;
    for (client, at) in &mut known {
        client.list_offset("refused", 0, -1).await.expect("offsets need no store");
        let (_, records) = client.fetch("refused", 0, *at, 0).await.expect("it is in memory");
        assert!(!records.is_empty());
    }
    cluster.restart_s3().await;
    workload.progress(500).await;
    workload.finish(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn if_one_flush_fails_all_its_waiters_fail() {
    // Everything that arrives within the linger is one flush.
    let plan = Plan::new(1)
        .flag("put-budget-per-s", 0)
        .flag("put-budget-burst", 1)
        .flag("linger-ms", 700)
        .flag("store-request-timeout-ms", 500)
        .flag("store-retry-budget-ms", 500);
    let mut cluster = Cluster::start(plan).await;
    create_topic(&cluster.addresses(), "together", 6).await;
    let record = |text: &str| batch(&[text], now_ms(), None, Compression::None);
    cluster
        .client(0)
        .await
        .produce("together", 5, record("the budget is spent"))
        .await
        .expect("it is written");
    for (plan, name) in [
        (json!({"deny": true}), "refused"),
        (json!({"error_rate": 1.0}), "failing"),
        (json!({"hang": true}), "silent"),
    ] {
        let flushes = cluster.metric(0, "strandline_flushes_total", "").await;
        cluster.s3().faults(plan).await;
        let waiters = join_all((0..12).map(|i| {
            let cluster = &cluster;
            let record = record(&format!("{name} {i}"));
            async move { cluster.client(0).await.produce("together", i % 5, record).await }
        }));
        for (i, outcome) in waiters.await.into_iter().enumerate() {
            let failed = matches!(outcome, Err(ClientError::Kafka(ResponseError::KafkaStorageError)));
            assert!(failed, "waiter {i} of a flush into a {name} store was told {outcome:?}");
        }
        let made = cluster.metric(0, "strandline_flushes_total", "").await - flushes;
        assert!((1.0..=3.0).contains(&made), "the waiters shared a flush, or two: {made}");
        cluster.s3().heal().await;
    }
    let mut client = cluster.client(0).await;
    for partition in 0..5 {
        let end = client.list_offset("together", partition, -1).await.expect("an offset");
        assert_eq!(end, 0, "nothing was acknowledged, and nothing is there");
        let offset = client.produce("together", partition, record("after")).await.expect("it is written");
        assert_eq!(offset, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_broker_cut_from_the_store_or_from_etcd_harms_nobody() {
    let plan = Plan::new(3).proxied().flag("lease-ttl-s", 2).flag("store-request-timeout-ms", 1000);
    let mut cluster = Cluster::start(plan.flag("store-retry-budget-ms", 2000)).await;
    let workload = Workload::start(&cluster, "cut", 4).await;
    for link in [Link::Down, Link::Silent, Link::OneWay] {
        workload.progress(200).await;
        cluster.link_to_s3(0, link);
        cluster.link_to_etcd(1, link);
        sleep(Duration::from_secs(3)).await;
        workload.progress(200).await;
        cluster.link_to_s3(0, Link::Up);
        cluster.link_to_etcd(1, Link::Up);
        cluster.wait_all_ready().await;
    }
    // Flapping.
    for _ in 0..8 {
        cluster.link_to_s3(2, Link::Down);
        cluster.link_to_etcd(2, Link::Down);
        sleep(Duration::from_millis(150)).await;
        cluster.link_to_s3(2, Link::Up);
        cluster.link_to_etcd(2, Link::Up);
        sleep(Duration::from_millis(250)).await;
    }
    workload.progress(300).await;
    workload.finish(&mut cluster).await;
}
