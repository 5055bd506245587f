//! When snapshots are due and history goes, whatever makes it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::records::Compression;
use strandline_metadata::backend::{Backend, BackendError, KeyRange, Op, RangeRequest, ReadBackend, Txn};
use strandline_metadata::limits::HISTORY_REVISIONS;
use strandline_storage::error::Operation;
use strandline_storage::path::{ObjectId, ObjectKey};
use strandline_storage::store::FaultPlan;
use tokio::time::sleep;

use crate::Broker;
use crate::records::tests::batch;
use crate::testing::{NOW_MS, TestClient, World};

/// Revisions of the snapshots that are listed, the newest first.
fn listed(broker: &Broker) -> Vec<i64> {
    broker.replica.read(|view| view.snapshots.iter().flat_map(|s| &s.snapshots).map(|s| s.revision).collect())
}

async fn produce(broker: &std::sync::Arc<Broker>, times: usize) {
    let mut client = TestClient::connect(broker);
    for _ in 0..times {
        client.produce("t", [batch(Compression::None, NOW_MS, 1)]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn etcd_forgets_what_only_consumers_have_written() {
    let world = World::new();
    let _opened = world.broker(1, &["--job-interval-ms", "1000"]).await;
    for _ in 0..HISTORY_REVISIONS + 2_000 {
        let put = Op::put("/strandline/strandline/groups/g", "x");
        world.backend.txn(Txn { then: vec![put], ..Txn::default() }).await.unwrap();
    }
    sleep(Duration::from_secs(5)).await;
    let keys = KeyRange::Key("none".into());
    let old = RangeRequest { keys, revision: Some(1_000), limit: 1, keys_only: false };
    let read = world.backend.range(old).await;
    assert!(matches!(read, Err(BackendError::Compacted { .. })), "{read:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_deletes_nothing_holds_up_no_other_job() {
    let (world, faults) = World::faulty();
    let flags = [
        "--put-budget-per-s",
        "1000",
        "--job-interval-ms",
        "1000",
        "--snapshot-records",
        "5",
        "--delete-delay-ms",
        "1000",
        "--snapshot-retention-hours",
        "0",
    ];
    let opened = world.broker(1, &flags).await;
    let mut client = TestClient::connect(&opened.broker);
    client.create_topic("t", 1, &[("retention.ms", "1000")]).await;
    produce(&opened.broker, 300).await;
    let refused = FaultPlan {
        error_before: 1.0,
        delay: Duration::from_secs(20)..Duration::from_secs(21),
        one_by_one: true,
        only: vec![Operation::Delete],
        ..FaultPlan::default()
    };
    faults.set(refused);
    world.clock.0.store(NOW_MS + 3_600_000, Ordering::Relaxed);
    sleep(Duration::from_mins(10)).await;
    let dead = |broker: &Broker| broker.replica.read(|view| view.state.dead().len());
    assert!(dead(&opened.broker) > 200, "{}", dead(&opened.broker));
    let before = listed(&opened.broker)[0];
    produce(&opened.broker, 20).await;
    sleep(Duration::from_mins(2)).await;
    assert!(listed(&opened.broker)[0] > before, "a snapshot is written meanwhile");
    faults.clear();
    // What died is older than all snapshots only when there are three newer ones.
    for _ in 0..4 {
        produce(&opened.broker, 10).await;
        sleep(Duration::from_mins(1)).await;
    }
    assert!(dead(&opened.broker) < 100, "{}", dead(&opened.broker));
}

#[tokio::test(start_paused = true)]
async fn what_nothing_refers_to_goes_once_the_store_deletes_again() {
    let (world, faults) = World::faulty();
    let flags =
        ["--put-budget-per-s", "1000", "--job-interval-ms", "86400000", "--merge-interval-ms", "1000"];
    let opened = world.broker(1, &flags).await;
    let mut client = TestClient::connect(&opened.broker);
    client.create_topic("t", 1, &[]).await;
    produce(&opened.broker, 10).await;
    let merged = async || world.store.list(ObjectKey::MERGE_PREFIX, None, 1_000).await.unwrap().len();
    // They are written, and nobody hears of it; and they cannot be deleted.
    let lost = |only| FaultPlan { error_after: 1.0, only, ..FaultPlan::default() };
    let refused = |only| FaultPlan { error_before: 1.0, only, ..FaultPlan::default() };
    faults.set(lost(vec![Operation::Put]));
    sleep(Duration::from_secs(5)).await;
    assert_eq!(merged().await, 0, "what nothing refers to goes at once");
    let object = ObjectId::merge(1, 1, 1);
    world.store.put(&object.key(), Bytes::from_static(b"x").into()).await.unwrap_err();
    faults.set(refused(vec![Operation::Delete]));
    opened.broker.unwanted.discard(object);
    sleep(Duration::from_secs(5)).await;
    let is_there = async || world.store.get(&object.key(), None).await.is_ok();
    assert!(is_there().await);
    faults.clear();
    sleep(Duration::from_mins(2)).await;
    assert!(!is_there().await);
}

#[tokio::test(start_paused = true)]
async fn what_was_read_at_a_start_counts_for_the_next_snapshot() {
    let world = World::new();
    let idle = ["--put-budget-per-s", "1000", "--job-interval-ms", "86400000"];
    let first = world.broker(1, &idle).await;
    TestClient::connect(&first.broker).create_topic("t", 1, &[]).await;
    produce(&first.broker, 20).await;
    first.drain().await.unwrap();
    // It hears of fewer records than a snapshot is due after.
    let flags = ["--put-budget-per-s", "1000", "--job-interval-ms", "1000", "--snapshot-records", "20"];
    let second = world.broker(1, &flags).await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(listed(&second.broker).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_due_by_time_and_by_revisions_if_something_waits_for_it() {
    let world = World::new();
    let flags =
        ["--put-budget-per-s", "1000", "--job-interval-ms", "1000", "--snapshot-interval-ms", "600000"];
    let opened = world.broker(1, &[&flags[..], &["--snapshot-revisions", "2000"]].concat()).await;
    TestClient::connect(&opened.broker).create_topic("t", 1, &[]).await;
    produce(&opened.broker, 1).await;
    sleep(Duration::from_mins(5)).await;
    assert_eq!(listed(&opened.broker).len(), 0);
    sleep(Duration::from_secs(400)).await;
    assert_eq!(listed(&opened.broker).len(), 1, "by time");
    sleep(Duration::from_hours(3)).await;
    assert_eq!(listed(&opened.broker).len(), 1, "nothing has happened since");
    for _ in 0..2_100 {
        let put = Op::put("/strandline/strandline/groups/g", "x");
        world.backend.txn(Txn { then: vec![put], ..Txn::default() }).await.unwrap();
    }
    produce(&opened.broker, 1).await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(listed(&opened.broker).len(), 2, "by revisions");
}
