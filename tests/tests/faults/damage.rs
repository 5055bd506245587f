//! Objects that are damaged, cut or gone: an error that names the object, for what lies in it and
//! for nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::FetchRequest;
use kafka_protocol::records::Compression;
use serde_json::json;
use strandline_tests::checker::read_partition;
use strandline_tests::client::{Client, ClientError, fetch_request};
use strandline_tests::cluster::{Cluster, Plan};
use strandline_tests::process::was_killed;
use strandline_tests::records::{batch, batches, values};
use strandline_tests::surroundings::now_ms;
use strandline_tests::workload::{Workload, create_topic};

/// Produces one record and gives the object that it lies in.
async fn produce_alone(cluster: &mut Cluster, client: &mut Client, partition: i32, text: &str) -> PathBuf {
    let before = cluster.s3().files("/wal/");
    let record = batch(&[text], now_ms(), None, Compression::None);
    client.produce("damaged", partition, record).await.expect("it is written");
    let mut new = cluster.s3().files("/wal/");
    new.retain(|path| !before.contains(path));
    assert_eq!(new.len(), 1, "one produce, one object: {new:?}");
    new.remove(0)
}

/// The object's key as the broker's log names it, from its file.
fn key_of(file: &Path) -> String {
    let text = file.to_string_lossy();
    let (_, key) = text.split_once("/wal/").expect("a write object");
    format!("wal/{}", key.trim_end_matches('~'))
}

/// What one partition gives from an offset on: an error, or the values.
async fn fetched(
    client: &mut Client,
    wanted: &[(i32, i64)],
) -> Vec<Result<Vec<(i64, Bytes)>, ResponseError>> {
    let request = fetch_request("damaged", wanted, 0, 1 << 20);
    let response = client.call::<FetchRequest>(&request, 11).await.expect("a fetch is answered");
    let parts = response.responses.into_iter().flat_map(|t| t.partitions);
    let mut found: Vec<_> = parts
        .map(|part| {
            let outcome = match ResponseError::try_from_code(part.error_code) {
                Some(error) => Err(error),
                None => Ok(values(part.records.unwrap_or_default())),
            };
            (part.partition_index, outcome)
        })
        .collect();
    found.sort_by_key(|(partition, _)| *partition);
    found.into_iter().map(|(_, outcome)| outcome).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_that_have_changed_places_are_not_served() {
    let plan = Plan::new(2).in_folder().flag("store-retry-budget-ms", 1000);
    let mut cluster = Cluster::start(plan).await;
    create_topic(&cluster.addresses(), "damaged", 2).await;
    let mut writer = cluster.client(0).await;
    // The same layout: nothing but the footer tells them apart.
    let one = produce_alone(&mut cluster, &mut writer, 0, "one").await;
    let two = produce_alone(&mut cluster, &mut writer, 0, "two").await;
    produce_alone(&mut cluster, &mut writer, 1, "other").await;
    let exchange = || {
        let [first, second] = [&one, &two].map(|path| fs::read(path).expect("an object"));
        assert_eq!(first.len(), second.len());
        fs::write(&one, second).expect("it can be changed");
        fs::write(&two, first).expect("it can be changed");
    };
    // The server reads its folder at its start.
    cluster.s3().kill9();
    exchange();
    cluster.restart_s3().await;
    let mut reader = cluster.client(1).await;
    let found = fetched(&mut reader, &[(0, 0), (1, 0)]).await;
    assert_eq!(found[0], Err(ResponseError::KafkaStorageError));
    assert_eq!(found[1], Ok(vec![(0, Bytes::from_static(b"other"))]));
    assert!(cluster.metric(1, "strandline_wrong_objects_total", "").await >= 1.0);
    cluster.wait_logged(1, "objects of the bucket were exchanged", Duration::from_secs(10)).await;
    let (code, said) = cluster.fsck(&[]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&key_of(&one)) && said.contains(&key_of(&two)), "{said}");
    cluster.s3().kill9();
    exchange();
    cluster.restart_s3().await;
    let found = fetched(&mut reader, &[(0, 0)]).await;
    assert_eq!(found[0], Ok(vec![(0, Bytes::from_static(b"one")), (1, Bytes::from_static(b"two"))]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_on_another_bucket_does_not_start() {
    let mut cluster = Cluster::start(Plan::new(2)).await;
    let workload = Workload::start(&cluster, "whole", 2).await;
    workload.progress(100).await;
    cluster.kill9(1);
    let elsewhere = cluster.folder().join("elsewhere");
    cluster.set_flag(1, "store-url", format!("file://{}", elsewhere.display()));
    cluster.restart(1);
    let status = cluster.broker(1).wait(Duration::from_mins(2)).await;
    assert!(!status.success() && !was_killed(status), "it ends in order: {status}");
    assert!(cluster.broker(1).log().contains("is not the bucket of cluster"), "and says why");
    cluster.set_flag(1, "store-url", "s3://strandline");
    cluster.restart(1);
    cluster.wait_ready(1).await;
    workload.finish(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_object_fails_what_lies_in_it_and_is_named() {
    let plan = Plan::new(2).in_folder().flag("store-retry-budget-ms", 1000);
    let mut cluster = Cluster::start(plan).await;
    create_topic(&cluster.addresses(), "damaged", 4).await;
    let mut writer = cluster.client(0).await;
    let mut middle = Vec::new();
    for partition in 0..4 {
        produce_alone(&mut cluster, &mut writer, partition, "first").await;
        middle.push(produce_alone(&mut cluster, &mut writer, partition, "second").await);
        produce_alone(&mut cluster, &mut writer, partition, "third").await;
    }
    // The server reads its folder at its start.
    cluster.s3().kill9();
    let mut flipped = fs::read(&middle[0]).expect("an object");
    flipped[40] ^= 1;
    fs::write(&middle[0], flipped).expect("it can be changed");
    let whole = fs::metadata(&middle[1]).expect("an object").len();
    fs::File::options()
        .write(true)
        .open(&middle[1])
        .expect("an object")
        .set_len(whole / 3)
        .expect("it can be cut");
    fs::remove_file(&middle[2]).expect("it can be removed");
    cluster.restart_s3().await;
    // This broker has read nothing so far; the other one has what it wrote in memory.
    let mut reader = cluster.client(1).await;
    let ok = |from: i64, texts: &[&'static str]| {
        Ok((from..).zip(texts.iter().map(|t| Bytes::from_static(t.as_bytes()))).collect::<Vec<_>>())
    };
    let found = fetched(&mut reader, &[(0, 0), (1, 0), (2, 0), (3, 0)]).await;
    let all = ["first", "second", "third"];
    assert_eq!(found, [ok(0, &all[..1]), ok(0, &all[..1]), ok(0, &all[..1]), ok(0, &all)]);
    let found = fetched(&mut reader, &[(0, 1), (1, 1), (2, 1), (3, 1)]).await;
    let failed = || Err(ResponseError::KafkaStorageError);
    assert_eq!(found, [failed(), failed(), failed(), ok(1, &all[1..])]);
    let found = fetched(&mut reader, &[(0, 2), (1, 2), (2, 2), (3, 2)]).await;
    assert_eq!(found, [ok(2, &all[2..]), ok(2, &all[2..]), ok(2, &all[2..]), ok(2, &all[2..])]);
    for file in &middle[..3] {
        cluster.wait_logged(1, &key_of(file), Duration::from_secs(10)).await;
    }
    assert!(!cluster.broker(1).log().contains(&key_of(&middle[3])), "a sound object is not complained of");
    // Looking up by time reads objects too.
    let far = now_ms() - 1;
    for partition in 0..3 {
        let outcome = reader.list_offset("damaged", partition, far).await;
        assert!(!matches!(outcome, Err(ClientError::Io(_) | ClientError::TimedOut)), "{outcome:?}");
    }
    assert_eq!(cluster.page(1, "/healthz").await.0, 200);
    // The broker that wrote them still has them.
    assert_eq!(fetched(&mut writer, &[(0, 0)]).await, [ok(0, &all)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_answers_are_never_served() {
    // Every batch is in an object of its own, so that there is much to fail.
    let plan = Plan::new(2).flag("store-retry-budget-ms", 500).flag("merge-interval-ms", 86_400_000);
    let mut cluster = Cluster::start(plan).await;
    create_topic(&cluster.addresses(), "damaged", 1).await;
    let mut writer = cluster.client(0).await;
    for i in 0..30 {
        let values: Vec<String> = (0..20).map(|j| format!("record {i} {j} {}", "x".repeat(200))).collect();
        let record = batch(&values, now_ms(), None, Compression::None);
        writer.produce("damaged", 0, record).await.expect("it is written");
    }
    let truth = read_partition(&cluster.address(0), "damaged", 0).await;
    for plan in [
        json!({"flip_rate": 1.0, "operations": ["get"]}),
        json!({"truncate_rate": 1.0, "operations": ["get"]}),
        json!({"missing_rate": 1.0, "operations": ["get"]}),
        json!({"flip_rate": 0.5, "truncate_rate": 0.5, "missing_rate": 0.4, "operations": ["get"]}),
    ] {
        // A broker that has just started has nothing in memory.
        cluster.s3().heal().await;
        cluster.kill9(1);
        cluster.restart(1);
        cluster.wait_ready(1).await;
        cluster.s3().faults(plan.clone()).await;
        let mut reader = cluster.client(1).await;
        let mut refused = 0;
        let mut next = 0;
        for _ in 0..20 {
            match reader.fetch("damaged", 0, next, 0).await {
                Ok((_, bytes)) => {
                    for got in batches(bytes).expect("batches are whole") {
                        assert!(truth.batches.contains(&got), "wrong bytes at {} under {plan}", got.0);
                        next = got.0 + 20;
                    }
                    if next == 600 {
                        break;
                    }
                }
                Err(ClientError::Kafka(ResponseError::KafkaStorageError)) => refused += 1,
                Err(error) => panic!("{error} under {plan}"),
            }
        }
        assert!(refused > 0, "nothing failed under {plan}");
    }
    cluster.s3().heal().await;
    assert_eq!(read_partition(&cluster.address(1), "damaged", 0).await, truth, "it recovers by itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_starts_from_an_older_snapshot_and_never_from_nothing() {
    let plan = Plan::new(1).in_folder().flag("snapshot-records", 30).flag("job-interval-ms", 100);
    let mut cluster = Cluster::start(plan.flag("lease-ttl-s", 2)).await;
    let workload = Workload::start(&cluster, "snapshots", 2).await;
    while cluster.s3().files("/snapshot/").len() < 3 {
        workload.progress(100).await;
    }
    let history = workload.finish(&mut cluster).await;
    assert!(history.acked_records() > 0);
    let truth = read_partition(&cluster.address(0), "snapshots", 0).await;
    cluster.kill9(0);
    let mut snapshots = cluster.s3().files("/snapshot/");
    snapshots.sort_by_key(|path| revision_of(path));
    // The newest is damaged: the one before it, and a longer log.
    cluster.s3().kill9();
    let newest = snapshots.pop().expect("there are snapshots");
    let mut bytes = fs::read(&newest).expect("a snapshot");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&newest, bytes).expect("it can be changed");
    cluster.restart_s3().await;
    cluster.restart(0);
    cluster.wait_ready(0).await;
    cluster.wait_logged(0, "a snapshot cannot be read", Duration::from_secs(10)).await;
    assert_eq!(read_partition(&cluster.address(0), "snapshots", 0).await, truth);
    // Every snapshot is damaged, and the log before them is gone: it says so and ends.
    cluster.kill9(0);
    cluster.s3().kill9();
    for snapshot in cluster.s3().files("/snapshot/") {
        fs::write(&snapshot, b"rubbish").expect("it can be changed");
    }
    cluster.restart_s3().await;
    cluster.restart(0);
    let status = cluster.broker(0).wait(Duration::from_mins(1)).await;
    assert!(!status.success() && !was_killed(status), "it refuses to start, in order: {status}");
    assert!(cluster.broker(0).log().contains("no snapshot can be read"), "it says why");
}

fn revision_of(snapshot: &Path) -> i64 {
    let name = snapshot.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.split('-').next().and_then(|r| r.parse().ok()).unwrap_or(0)
}
