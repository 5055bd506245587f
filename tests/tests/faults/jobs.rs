//! Snapshots, trims and deletions that never pause, while brokers die.

use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::records::Compression;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use strandline_tests::client::{Client, fetch_request};
use strandline_tests::cluster::{CLUSTER, Cluster, Plan};
use strandline_tests::process::eventually;
use strandline_tests::records::{batch, values};
use strandline_tests::surroundings::now_ms;
use strandline_tests::workload::{Workload, create_topic};
use tokio::time::sleep;

fn hurried() -> Plan {
    Plan::new(3)
        .flag("lease-ttl-s", 2)
        .flag("snapshot-records", 20)
        .flag("job-interval-ms", 200)
        .flag("delete-delay-ms", 300)
        .flag("snapshot-retention-hours", 0)
        .flag("log-retention-check-interval-ms", 200)
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
    // What the killed broker had not committed is found when the bucket is listed after its
    // registration is gone. Whoever takes over the jobs begins with that.
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
    // Another topic's load goes on, so that snapshots are written and what died becomes older than
    // all of them.
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_while_retention_trims_gets_records_or_is_told_where_they_begin() {
    const RECORDS: i64 = 1_000;
    let mut cluster = Cluster::start(hurried().in_folder()).await;
    let addresses = cluster.addresses();
    let mut client = cluster.client(0).await;
    // Some tens of records are kept. The readers rest for longer than that lasts.
    let configs = [("retention.bytes", "4000")];
    client.create_topic("short", 1, &configs).await.expect("the topic is created");
    let write = async {
        for offset in 0..RECORDS {
            let record = batch(&[offset.to_string()], now_ms(), None, Compression::None);
            assert_eq!(client.produce("short", 0, record).await.expect("it is written"), offset);
        }
    };
    let read = async |address: &str, rest: Duration| {
        let mut client = Client::connect(address).await.expect("the broker takes connections");
        let (mut at, mut overtaken, mut seen) = (0, 0, 0);
        while at < RECORDS {
            let answer = client.call(&fetch_request("short", &[(0, at)], 500, 2_000), 12).await;
            let part = answer.expect("it is answered").responses.remove(0).partitions.remove(0);
            match ResponseError::try_from_code(part.error_code) {
                None => {
                    for (offset, value) in values(part.records.unwrap_or_default()) {
                        assert_eq!(value, offset.to_string(), "the record of offset {offset}");
                        assert_eq!(offset, at, "no record is left out");
                        (at, seen) = (offset + 1, seen + 1);
                    }
                }
                Some(ResponseError::OffsetOutOfRange) => {
                    assert!(part.log_start_offset > at, "{at} is not below {}", part.log_start_offset);
                    (at, overtaken) = (part.log_start_offset, overtaken + 1);
                }
                Some(error) => panic!("offset {at}: {error:?}"),
            }
            sleep(rest).await;
        }
        (overtaken, seen)
    };
    let ((), fast, slow) = tokio::join!(
        write,
        read(&addresses[1], Duration::ZERO),
        read(&addresses[2], Duration::from_millis(1_500)),
    );
    assert!(fast.1 > RECORDS / 10, "{} records were read", fast.1);
    assert!(slow.0 > 0, "retention has overtaken nobody");
    let left = async || {
        let objects = cluster.s3().files("/wal/").len();
        (objects < RECORDS as usize / 5).then_some(())
    };
    eventually("objects that nobody needs are deleted", Duration::from_mins(2), left).await;
}
