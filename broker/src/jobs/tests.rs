//! When snapshots are due and history goes, whatever makes it.

use std::time::Duration;

use kafka_protocol::records::Compression;
use strandline_metadata::backend::{Backend, BackendError, KeyRange, Op, RangeRequest, ReadBackend, Txn};
use strandline_metadata::limits::HISTORY_REVISIONS;
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
