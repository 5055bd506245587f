//! The pure store against records, and time.

use std::time::Duration;

use super::mvcc::Mvcc;
use super::*;
use crate::backend::{Compare, Event, KeyValue, Op};

fn put(key: &str, value: &str) -> Txn {
    Txn { then: vec![Op::put(key.to_owned(), value.to_owned())], ..Txn::default() }
}

fn all() -> KeyRange {
    KeyRange::prefix("k")
}

fn newest(keys: KeyRange) -> RangeRequest {
    RangeRequest { keys, revision: None, limit: 0 }
}

#[test]
fn replayed_records_make_the_same_store() {
    let mut store = Mvcc::new();
    let mut records = Vec::new();
    let (lease, granted) = store.grant(5);
    records.push(granted);
    let leased = Op::Put { key: "k-leased".into(), value: "1".into(), lease };
    let txns = [
        put("k1", "a"),
        put("k2", "b"),
        put("k1", "c"),
        Txn { then: vec![Op::Delete(KeyRange::key("k2")), leased], ..Txn::default() },
    ];
    for txn in &txns {
        records.extend(store.txn(txn).unwrap().1);
    }
    records.extend(store.compact(3).unwrap());
    records.push(store.end_lease(lease).unwrap());

    let mut copy = Mvcc::new();
    for record in records {
        copy.replay(record).unwrap();
    }
    assert_eq!(format!("{copy:?}"), format!("{store:?}"));
}

#[test]
fn compaction_keeps_what_its_revision_can_see() {
    let mut store = Mvcc::new();
    for txn in [put("k1", "a"), put("k2", "b"), put("k1", "c")] {
        store.txn(&txn).unwrap();
    }
    store.txn(&Txn { then: vec![Op::Delete(KeyRange::key("k2"))], ..Txn::default() }).unwrap();
    let at = |revision| RangeRequest { keys: all(), revision: Some(revision), limit: 0 };
    let before = store.range(&at(4)).unwrap().kvs;
    store.compact(4).unwrap();
    assert_eq!(store.range(&at(4)).unwrap().kvs, before);
    assert_eq!(store.range(&at(3)).unwrap_err(), BackendError::Compacted { oldest: 4 });
    store.compact(5).unwrap();
    let kvs = store.range(&at(5)).unwrap().kvs;
    assert_eq!(kvs.iter().map(|kv| &kv.value[..]).collect::<Vec<_>>(), [b"c"]);
    assert!(!format!("{store:?}").contains("\"b\""), "the value that nobody can see is gone from memory");
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_by_itself_while_somebody_watches() {
    let store = Embedded::in_memory();
    let lease = store.lease_grant(10).await.unwrap();
    let op = Op::Put { key: "k".into(), value: "v".into(), lease };
    let put_at = store.txn(Txn { then: vec![op], ..Txn::default() }).await.unwrap().revision;
    let mut watch = store.watch(all(), put_at + 1).await.unwrap();
    let start = Instant::now();
    let batch = loop {
        let batch = watch.next().await.unwrap();
        if !batch.events.is_empty() {
            break batch;
        }
    };
    assert_eq!(start.elapsed().as_secs(), 10);
    assert_eq!(batch.events, [Event::Delete { key: "k".into(), revision: put_at + 1 }]);
}

#[tokio::test(start_paused = true)]
async fn run_leases_ends_them_although_nobody_calls() {
    let store = Embedded::in_memory();
    let lease = store.lease_grant(3).await.unwrap();
    let op = Op::Put { key: "k".into(), value: "v".into(), lease };
    store.txn(Txn { then: vec![op], ..Txn::default() }).await.unwrap();
    let _ = tokio::time::timeout(Duration::from_secs(4), store.run_leases()).await.unwrap_err();
    let state = store.shared.state.lock().unwrap();
    assert_eq!(state.mvcc.revision(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_silent_watch_reports_progress() {
    let store = Embedded::in_memory();
    let mut watch = store.watch(all(), 2).await.unwrap();
    store.txn(put("other", "v")).await.unwrap();
    let batch = watch.next().await.unwrap();
    assert!(batch.events.is_empty());
    assert_eq!(batch.revision, 2);
}

#[tokio::test]
async fn clones_share_one_store() {
    let store = Embedded::in_memory();
    store.clone().txn(put("k", "v")).await.unwrap();
    let kvs = store.range(newest(all())).await.unwrap().kvs;
    let expected = KeyValue {
        key: "k".into(),
        value: "v".into(),
        create_revision: 2,
        mod_revision: 2,
        version: 1,
        lease: 0,
    };
    assert_eq!(kvs, [expected]);
    let taken = Txn { compares: vec![Compare::CreateRevision("k".into(), 0)], ..Txn::default() };
    assert!(!store.txn(taken).await.unwrap().succeeded);
}

#[tokio::test(start_paused = true)]
async fn conforms_in_memory() {
    crate::backend::conformance::run_all(async || Arc::new(Embedded::in_memory()) as Arc<dyn Backend>).await;
}
