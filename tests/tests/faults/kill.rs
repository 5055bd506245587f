//! Brokers that die, stop and come back.

use std::io::ErrorKind;
use std::time::Duration;

use kafka_protocol::records::Compression;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use strandline_tests::checker::read_partition;
use strandline_tests::client::produce_request;
use strandline_tests::cluster::{CLUSTER, Cluster, Plan};
use strandline_tests::process::eventually;
use strandline_tests::producer::Options;
use strandline_tests::proxy::Link;
use strandline_tests::records::batch;
use strandline_tests::surroundings::now_ms;
use strandline_tests::workload::{Workload, create_topic};
use tokio::net::TcpStream;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_paused_for_longer_than_its_lease_comes_back() {
    let mut cluster = Cluster::start(Plan::new(3).flag("lease-ttl-s", 2)).await;
    // Shorter than the pause: producers give up on the paused broker, whose buffer still has what
    // they sent.
    let request_timeout = Duration::from_secs(3);
    let like = Options { request_timeout, ..Options::new(0, "paused", 4, cluster.addresses()) };
    let workload = Workload::with(&cluster, like).await;
    for victim in [0, 1] {
        workload.progress(300).await;
        cluster.pause(victim);
        sleep(Duration::from_millis(4500)).await;
        workload.progress(300).await;
        cluster.resume(victim);
        cluster.wait_logged(victim, "the registration is gone", Duration::from_mins(1)).await;
    }
    workload.progress(300).await;
    workload.finish(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_whose_node_id_was_taken_commits_nothing_and_ends() {
    let mut cluster = Cluster::start(Plan::new(2).flag("lease-ttl-s", 2).proxied()).await;
    create_topic(&cluster.addresses(), "fenced", 1).await;
    let workload = Workload::start(&cluster, "taken", 4).await;
    workload.progress(300).await;
    // A record that the old broker has accepted, and whose object is under way when it is paused.
    cluster.link_to_s3(0, Link::Silent);
    let mut client = cluster.client(0).await;
    let orphan = batch(&["nobody was told"], now_ms(), None, Compression::None);
    client.send(&produce_request("fenced", &[(0, orphan)], -1), 9).await.expect("it is sent");
    eventually("the record is being written", Duration::from_secs(20), async || {
        (cluster.metric(0, "strandline_buffer_bytes", "").await > 0.0).then_some(())
    })
    .await;
    cluster.pause(0);
    let twin = cluster.add_broker(1).await;
    cluster.restart(twin);
    cluster.wait_ready(twin).await;
    workload.progress(300).await;
    cluster.link_to_s3(0, Link::Up);
    cluster.resume(0);
    let status = cluster.broker(0).wait(Duration::from_mins(1)).await;
    assert!(!status.success(), "a broker that was pushed out does not end as if it had been asked to");
    let log = cluster.broker(0).log();
    assert!(log.contains("another process has registered node id 1"), "it says why it ends");
    workload.progress(300).await;
    workload.finish(&mut cluster).await;
    for address in cluster.live_addresses() {
        let contents = read_partition(&address, "fenced", 0).await;
        assert_eq!(contents.batches.len(), 0, "{address}: a fenced broker has written");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_broker_whose_node_id_was_taken_ends() {
    let mut cluster = Cluster::start(Plan::new(2).flag("lease-ttl-s", 2)).await;
    for old in [0, 1] {
        let node_id = old as i32 + 1;
        let twin = cluster.add_broker(node_id).await;
        cluster.restart(twin);
        cluster.wait_ready(twin).await;
        let status = cluster.broker(old).wait(Duration::from_secs(30)).await;
        assert!(!status.success());
        let log = cluster.broker(old).log();
        assert!(
            log.contains(&format!("another process has registered node id {node_id}")),
            "it says why it ends"
        );
    }
}

/// The keys of the brokers that are registered.
fn registered(cluster: &mut Cluster) -> Vec<String> {
    let keys =
        cluster.etcd().ctl(&["get", "--prefix", "--keys-only", &format!("/strandline/{CLUSTER}/brokers/")]);
    keys.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_still_opening_takes_no_connections() {
    let mut cluster = Cluster::start(Plan::new(1).proxied()).await;
    cluster.kill9(0);
    cluster.link_to_etcd(0, Link::Silent);
    cluster.restart(0);
    // Its ports are bound before anything else.
    let healthz = cluster.http_address(0);
    eventually("it lives", Duration::from_mins(1), async || TcpStream::connect(&healthz).await.ok()).await;
    assert_eq!(cluster.page(0, "/readyz").await.0, 503);
    // What was sent now would be executed when it is open, after its sender has tried it again
    // elsewhere.
    let refused = TcpStream::connect(cluster.address(0)).await.expect_err("nobody may send it anything");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    cluster.link_to_etcd(0, Link::Up);
    cluster.wait_ready(0).await;
    cluster.client(0).await.metadata(&[]).await.expect("it is open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_request() {
    let mut cluster = Cluster::start(Plan::new(3).flag("drain-ms", 1500)).await;
    let workload = Workload::start(&cluster, "rolling", 4).await;
    for i in 0..cluster.len() {
        workload.progress(300).await;
        let status = cluster.stop(i).await;
        assert!(status.success(), "broker {} was asked to leave and ended with {status}", i + 1);
        // Nobody is led to a broker that has left, not even for the time of a lease.
        assert_eq!(registered(&mut cluster).len(), 2, "broker {} has left", i + 1);
        cluster.restart(i);
        cluster.wait_ready(i).await;
    }
    workload.progress(300).await;
    let history = workload.finish(&mut cluster).await;
    let errors = history.lock().errors.clone();
    // Being led elsewhere, and connections that end while nothing is in flight on them, are how a
    // broker leaves. A request that it has accepted is answered.
    let expected =
        ["NotLeaderOrFollower", "ConnectionRefused", "UnexpectedEof", "BrokenPipe", "ConnectionReset"];
    for error in errors.keys() {
        assert!(expected.contains(&error.as_str()), "{error} in {errors:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn producer_ids_of_a_broker_that_died_are_given_to_nobody_else() {
    let mut cluster = Cluster::start(Plan::new(2)).await;
    let mut given = std::collections::BTreeSet::new();
    for _ in 0..4 {
        for i in 0..2 {
            let mut client = cluster.client(i).await;
            for _ in 0..3 {
                let id = client.init_producer_id().await.expect("it is given");
                assert!(given.insert(id), "{id} was given twice");
            }
        }
        cluster.kill9(0);
        cluster.restart(0);
        cluster.wait_ready(0).await;
    }
}
