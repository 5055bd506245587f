//! What is below the brokers is not theirs any more: etcd was restored from a backup while a
//! neighbour writes to it, two objects have changed places, the bucket is another one. Each must be
//! noticed: nothing is served or deleted, and with the right things back everything goes on.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kafka_protocol::error::ResponseError;
use kafka_protocol::records::Compression;
use strandline_tests::client::{Client, ClientError};
use strandline_tests::cluster::{BUCKET_URL, Cluster};
use strandline_tests::process::{eventually, was_killed};
use strandline_tests::records::{batch, values};
use strandline_tests::surroundings::now_ms;
use strandline_tests::workload::create_topic;

use crate::MERGE_INTERVAL_MS;
use crate::faults::RESIDENTS;
use crate::story::Story;

/// As good as never.
const NEVER_MS: u64 = 86_400_000;
/// Time for a broker to refuse: it asks the store for its marker for 20 s.
const REFUSAL: Duration = Duration::from_mins(2);
/// Time for what must happen.
const PATIENCE: Duration = Duration::from_mins(2);
/// The restored etcd's revision is higher than ever by so many.
const AHEAD: i64 = 200;

/// Restores etcd from a backup, and lets somebody else write to it: every broker must refuse to
/// start, and nothing may be deleted. Then what etcd had stored comes back.
pub(crate) async fn restored(cluster: &mut Cluster, backup: &Path, story: &Story) {
    let ran: Vec<usize> = (0..cluster.len()).filter(|&i| cluster.is_running(i)).collect();
    let newest = cluster.etcd().revision();
    for &i in &ran {
        cluster.kill9(i);
    }
    let before = cluster.s3().files("/");
    cluster.etcd().kill9();
    cluster.etcd().restore(backup);
    cluster.restart_etcd().await;
    let behind = newest - cluster.etcd().revision();
    story.say(&format!("etcd is restored from a backup that lacks {behind} revisions, beside a neighbour"));
    cluster.etcd().write_as_neighbour(behind + AHEAD).await;
    for i in 0..RESIDENTS {
        cluster.restart(i);
    }
    for i in 0..RESIDENTS {
        must_refuse(cluster, i, "restored from a backup").await;
    }
    let after: BTreeSet<PathBuf> = cluster.s3().files("/").into_iter().collect();
    let gone: Vec<&PathBuf> = before.iter().filter(|path| !after.contains(*path)).collect();
    assert!(gone.is_empty(), "brokers of a restored etcd have deleted {gone:?}");
    cluster.etcd().kill9();
    cluster.etcd().take_back();
    cluster.restart_etcd().await;
    for i in ran {
        cluster.restart(i);
    }
    cluster.wait_all_ready().await;
}

/// Two objects change places: they are not served, and the audit names both. Nobody merges them
/// meanwhile, from memory.
pub(crate) async fn exchanged(cluster: &mut Cluster, topic: &str, story: &Story) {
    merge_every(cluster, NEVER_MS).await;
    exchanged_unmerged(cluster, topic, story).await;
    merge_every(cluster, MERGE_INTERVAL_MS).await;
}

async fn merge_every(cluster: &mut Cluster, interval_ms: u64) {
    let running: Vec<usize> = (0..cluster.len()).filter(|&i| cluster.is_running(i)).collect();
    for &i in &running {
        cluster.kill9(i);
        cluster.set_flag(i, "merge-interval-ms", interval_ms);
        cluster.restart(i);
    }
    cluster.wait_all_ready().await;
}

async fn exchanged_unmerged(cluster: &mut Cluster, topic: &str, story: &Story) {
    create_topic(&[cluster.address(0)], topic, 1).await;
    let one = written_alone(cluster, topic, "one").await;
    let two = written_alone(cluster, topic, "two").await;
    story.say(&format!("{} and {} change places", key_of(&one), key_of(&two)));
    exchange(cluster, &one, &two).await;
    // This broker has not written them.
    let served = eventually("a broker answers", PATIENCE, async || {
        let mut client = Client::connect(&cluster.address(1)).await.ok()?;
        match client.fetch(topic, 0, 0, 0).await {
            Err(ClientError::Kafka(ResponseError::KafkaStorageError)) => Some(None),
            Ok((_, records)) if !records.is_empty() => Some(Some(records)),
            // It may not know of them yet.
            Ok(_) | Err(_) => None,
        }
    })
    .await;
    assert_eq!(served, None, "an object in the place of another one is served");
    let (code, said) = cluster.fsck(&[]).await;
    assert_eq!(code, Some(1), "the audit finds objects that have changed places: {said}");
    for object in [&one, &two] {
        assert!(said.contains(&key_of(object)), "the audit does not name {}: {said}", key_of(object));
    }
    exchange(cluster, &one, &two).await;
    eventually("objects that are back in their places are served", PATIENCE, async || {
        let mut client = Client::connect(&cluster.address(1)).await.ok()?;
        let (_, records) = client.fetch(topic, 0, 0, 0).await.ok()?;
        let found: Vec<(i64, Vec<u8>)> = values(records).into_iter().map(|(o, v)| (o, v.to_vec())).collect();
        (found == [(0, b"one".to_vec()), (1, b"two".to_vec())]).then_some(())
    })
    .await;
    let (code, said) = cluster.fsck(&[]).await;
    assert_eq!(code, Some(0), "objects are back in their places: {said}");
}

/// Starts a broker on another bucket; it must end, and say why.
pub(crate) async fn wrong_bucket(cluster: &mut Cluster, story: &Story) {
    story.say("broker 1 is started on another bucket");
    let elsewhere = cluster.folder().join("elsewhere");
    cluster.kill9(0);
    cluster.set_flag(0, "store-url", format!("file://{}", elsewhere.display()));
    cluster.restart(0);
    must_refuse(cluster, 0, "is not the bucket of cluster").await;
    cluster.set_flag(0, "store-url", BUCKET_URL);
    cluster.restart(0);
    cluster.wait_ready(0).await;
}

/// Broker `i` must end in order, and say this.
async fn must_refuse(cluster: &mut Cluster, i: usize, why: &str) {
    let status = cluster.broker(i).wait(REFUSAL).await;
    assert!(!status.success() && !was_killed(status), "broker {} ends in order: {status}", i + 1);
    assert!(cluster.broker(i).log().contains(why), "broker {} says that it ends because of {why:?}", i + 1);
}

/// Writes a record and gives the object that it lies in. Everything else must be quiet.
async fn written_alone(cluster: &mut Cluster, topic: &str, value: &str) -> PathBuf {
    let before = cluster.s3().files("/wal/");
    let mut client = cluster.client(0).await;
    client
        .produce(topic, 0, batch(&[value], now_ms(), None, Compression::None))
        .await
        .expect("it is written");
    let mut new = cluster.s3().files("/wal/");
    new.retain(|path| !before.contains(path));
    assert_eq!(new.len(), 1, "one record, one object: {new:?}");
    new.remove(0)
}

async fn exchange(cluster: &mut Cluster, one: &Path, two: &Path) {
    // The server reads its folder at its start.
    cluster.s3().kill9();
    let [first, second] = [one, two].map(|path| fs::read(path).expect("an object"));
    assert_eq!(first.len(), second.len(), "nothing but what they say of themselves tells them apart");
    fs::write(one, second).expect("it can be changed");
    fs::write(two, first).expect("it can be changed");
    cluster.restart_s3().await;
}

/// The object's key, as the audit names it, from its file.
fn key_of(file: &Path) -> String {
    let text = file.to_string_lossy();
    let (_, key) = text.split_once("/wal/").expect("a write object");
    format!("wal/{}", key.trim_end_matches('~'))
}
