//! etcd that dies, stops and forgets.

use std::io::ErrorKind;
use std::time::Duration;

use kafka_protocol::records::Compression;
use serde_json::json;
use strandline_tests::client::ClientError;
use strandline_tests::cluster::{CLUSTER, Cluster, Plan};
use strandline_tests::process::{eventually, was_killed};
use strandline_tests::proxy::Link;
use strandline_tests::records::batch;
use strandline_tests::surroundings::now_ms;
use strandline_tests::workload::Workload;
use tokio::net::TcpStream;
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
async fn readiness_says_what_is_possible_while_etcd_stands_still() {
    let mut cluster = Cluster::start(Plan::new(1).flag("lease-ttl-s", 2)).await;
    let pages = ["/readyz", "/readyz?for=writes", "/readyz?for=reads", "/readyz?for=groups"];
    let codes = async |cluster: &Cluster| {
        let mut codes = Vec::new();
        for page in pages {
            codes.push(cluster.page(0, page).await.0);
        }
        codes
    };
    assert_eq!(codes(&cluster).await, [200; 4]);
    for page in ["/readyz?for=nothing", "/readyz?reads"] {
        assert_eq!(cluster.page(0, page).await.0, 400, "{page}");
    }
    let before_ms = now_ms();
    cluster.etcd().pause();
    eventually("the broker notices", Duration::from_mins(1), async || {
        (codes(&cluster).await == [503, 503, 200, 503]).then_some(())
    })
    .await;
    let (_, page) = cluster.page(0, "/readyz?for=reads").await;
    let page: serde_json::Value = serde_json::from_str(&page).expect("it is JSON");
    for capability in ["writes", "groups"] {
        let shown = &page[capability];
        assert!(shown["since_ms"].as_i64().is_some_and(|ms| ms >= before_ms), "{page}");
        assert!(shown["reason"].is_string() && shown["ready"] == false, "{page}");
    }
    assert!(page["reads"]["ready"] == true && page["ready"] == true, "{page}");
    assert_eq!(cluster.page(0, "/healthz").await.0, 200);
    cluster.etcd().resume();
    cluster.wait_ready(0).await;
    assert_eq!(codes(&cluster).await, [200; 4]);
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
    // The watch is cut while the broker cannot open another one: when it can, the revisions that it
    // needs are gone.
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_was_restored_from_a_backup_is_not_trusted() {
    let plan = Plan::new(2).in_folder().flag("lease-ttl-s", 2).flag("snapshot-records", 20);
    let mut cluster = Cluster::start(plan.flag("job-interval-ms", 100)).await;
    let workload = Workload::start(&cluster, "restored", 2).await;
    workload.progress(200).await;
    let backup = cluster.folder().join("backup");
    cluster.etcd().back_up(&backup);
    let known = cluster.s3().files("/snapshot/");
    // What comes now is acknowledged, and the backup knows nothing of it. The restored etcd's own
    // revision goes on, too, while brokers come back to it: the snapshot is ahead by more than
    // that.
    let newest = cluster.etcd().revision();
    eventually("a snapshot is written that is newer than the backup", Duration::from_mins(2), async || {
        workload.progress(100).await;
        let is_new = cluster.s3().files("/snapshot/").iter().any(|path| !known.contains(path));
        (is_new && cluster.etcd().revision() > newest + 200).then_some(())
    })
    .await;
    workload.finish(&mut cluster).await;
    cluster.kill9(1);
    let objects = cluster.s3().files("/wal/").len();
    let last = cluster.etcd().revision();
    cluster.etcd().kill9();
    cluster.etcd().restore(&backup);
    cluster.restart_etcd().await;
    // Somebody else's writes move its revision beyond everything that the brokers know.
    let behind = last - cluster.etcd().revision();
    cluster.etcd().write_as_neighbour(behind + 500).await;
    cluster.restart(1);
    // The one that starts, and the one that has run all the time.
    for i in [1, 0] {
        let status = cluster.broker(i).wait(Duration::from_mins(1)).await;
        assert!(!status.success() && !was_killed(status), "broker {} ends in order: {status}", i + 1);
        let log = cluster.broker(i).log();
        assert!(log.contains("restored from a backup"), "broker {} says what is wrong", i + 1);
    }
    assert_eq!(cluster.s3().files("/wal/").len(), objects, "nothing is deleted");

    // What is lost is said first, and then accepted.
    let (code, said) = cluster.command("recover", &[]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("at least") && said.contains("nothing was changed"), "{said}");
    let accepted = eventually("the restored registrations are gone", Duration::from_mins(1), async || {
        let (code, said) = cluster.command("recover", &["--accept-loss"]).await;
        (code == Some(0)).then_some(said)
    })
    .await;
    assert!(accepted.contains("brokers may be started"), "{accepted}");
    for i in [0, 1] {
        cluster.restart(i);
        cluster.wait_ready(i).await;
    }
    let after = Workload::start(&cluster, "afterwards", 2).await;
    after.progress(200).await;
    after.finish(&mut cluster).await;
    let (code, said) = cluster.fsck(&[]).await;
    assert_eq!(code, Some(0), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_a_person_has_broken_takes_out_its_own_topic() {
    let mut cluster = Cluster::start(Plan::new(2)).await;
    let workload = Workload::start(&cluster, "whole", 2).await;
    let mut client = cluster.client(0).await;
    client.create_topic("broken", 1, &[]).await.expect("a topic is created");
    let key = format!("/strandline/{CLUSTER}/topics/broken");
    let right = cluster.etcd().ctl(&["get", "--print-value-only", &key]);
    for (broken, value) in [
        (key.clone(), "garbage"),
        (format!("/strandline/{CLUSTER}/brokers/77"), "{}"),
        (format!("/strandline/{CLUSTER}/configs/client-metrics/x"), "{\"format\":7}"),
    ] {
        cluster.etcd().ctl(&["put", &broken, value]);
    }
    for i in [0, 1] {
        cluster.wait_logged(i, "a value cannot be read", Duration::from_mins(1)).await;
        let unreadable = cluster.metric(i, "strandline_unreadable_keys", "").await;
        assert!((2.5..3.5).contains(&unreadable), "{unreadable}");
    }
    workload.progress(300).await;
    // A broker's own registration: it registers again.
    let own = format!("/strandline/{CLUSTER}/brokers/{}", cluster.node_id(0));
    cluster.etcd().ctl(&["put", &own, "garbage"]);
    cluster.wait_logged(0, "registering again", Duration::from_mins(1)).await;
    cluster.wait_ready(0).await;
    workload.progress(300).await;
    // One that starts with them.
    cluster.kill9(1);
    cluster.restart(1);
    cluster.wait_ready(1).await;
    assert!(client.list_offset("broken", 0, -1).await.is_err(), "it is out");
    cluster.etcd().ctl(&["put", &key, right.trim()]);
    eventually("the topic is back", Duration::from_mins(1), async || {
        client.list_offset("broken", 0, -1).await.ok()
    })
    .await;
    workload.finish(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_without_space_refuses_writes_and_recovers_by_the_usual_steps() {
    let plan = Plan::new(2).etcd_flag("--quota-backend-bytes=16777216");
    let mut cluster = Cluster::start(plan).await;
    let workload = Workload::start(&cluster, "full", 2).await;
    workload.progress(300).await;
    let junk = "x".repeat(100_000);
    let mut number = 0;
    let refused = loop {
        number += 1;
        if let Err(why) = cluster.etcd().try_ctl(&["put", &format!("/junk/{number}"), &junk]) {
            break why;
        }
        assert!(number < 1000, "etcd takes everything");
    };
    assert!(refused.contains("space exceeded"), "{refused}");
    sleep(Duration::from_secs(3)).await;
    // What is known is served, and offsets are current: the barrier writes nothing.
    for i in 0..2 {
        let mut client = cluster.client(i).await;
        let end = client.list_offset("full", 0, -1).await.expect("an offset");
        let (_, records) = client.fetch("full", 0, end - 1, 0).await.expect("records are read");
        assert!(!records.is_empty());
        let record = batch(&["too much"], now_ms(), None, Compression::None);
        let outcome = client.produce("full", 1, record).await;
        assert!(outcome.as_ref().is_err_and(ClientError::is_retriable), "{outcome:?}");
    }
    cluster.etcd().ctl(&["del", "--prefix", "/junk/"]);
    cluster.etcd().compact();
    cluster.etcd().ctl(&["defrag"]);
    cluster.etcd().ctl(&["alarm", "disarm"]);
    workload.progress(300).await;
    cluster.wait_all_ready().await;
    workload.finish(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_starts_before_etcd_and_the_store_waits_for_them() {
    let plan = Plan::new(2).in_folder().flag("store-request-timeout-ms", 1000);
    let mut cluster = Cluster::start(plan.flag("snapshot-records", 20).flag("job-interval-ms", 100)).await;
    let workload = Workload::start(&cluster, "early", 2).await;
    // A snapshot, so that a start needs the store.
    eventually("a snapshot is written", Duration::from_mins(1), async || {
        workload.progress(50).await;
        (!cluster.s3().files("/snapshot/").is_empty()).then_some(())
    })
    .await;
    cluster.kill9(0);
    cluster.etcd().kill9();
    cluster.restart(0);
    sleep(Duration::from_secs(2)).await;
    assert!(cluster.broker(0).is_running(), "it waits for etcd");
    cluster.restart_etcd().await;
    cluster.wait_ready(0).await;
    for plan in [json!({"slowdown_rate": 1.0}), json!({"deny": true}), json!({"hang": true})] {
        cluster.kill9(0);
        cluster.s3().faults(plan.clone()).await;
        cluster.restart(0);
        sleep(Duration::from_secs(2)).await;
        assert!(cluster.broker(0).is_running(), "it waits for the store: {plan}");
        let refused = TcpStream::connect(cluster.address(0)).await.expect_err("it is not open yet");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        cluster.s3().heal().await;
        cluster.wait_ready(0).await;
    }
    workload.progress(200).await;
    workload.finish(&mut cluster).await;
}
