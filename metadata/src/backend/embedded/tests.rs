//! The pure store against records, and time.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

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
    RangeRequest { keys, revision: None, limit: 0, keys_only: false }
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
    let at = |revision| RangeRequest { keys: all(), revision: Some(revision), limit: 0, keys_only: false };
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
    let (revision, _) = store.shared.with_state(|state, _| state.mvcc.revision());
    assert_eq!(revision, 3);
}

#[tokio::test]
async fn a_watch_that_is_overtaken_by_compaction_says_so() {
    let store = Embedded::in_memory();
    let mut slow = store.watch(all(), 2).await.unwrap();
    for _ in 0..5000 {
        store.txn(put("k", "v")).await.unwrap();
    }
    let batch = slow.next().await.unwrap();
    assert_eq!(batch.revision, 1001, "a batch is bounded, and nothing waits in the watch itself");
    store.compact(4000).await.unwrap();
    assert_eq!(slow.next().await.unwrap_err(), BackendError::Compacted { oldest: 4000 });
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

/// What a store must be: all its keys, at every revision.
#[derive(Default)]
struct Model {
    revisions: Vec<(i64, BTreeMap<Bytes, KeyValue>)>,
}

impl Model {
    fn observe(&mut self, store: &Mvcc) {
        let kvs = store.range(&newest(all())).unwrap().kvs;
        let keys = kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        match self.revisions.last_mut() {
            Some((revision, last)) if *revision == store.revision() => assert_eq!(*last, keys),
            _ => self.revisions.push((store.revision(), keys)),
        }
    }

    /// Every revision that was not forgotten reads as it did when it was the newest, and the events
    /// between two revisions lead from the one to the other.
    fn check(&self, store: &Mvcc, oldest: i64) {
        let readable = self.revisions.iter().filter(|(revision, _)| *revision >= oldest);
        for ((_, before), (revision, after)) in readable.clone().zip(readable.skip(1)) {
            let at = RangeRequest { keys: all(), revision: Some(*revision), limit: 0, keys_only: false };
            assert_eq!(store.range(&at).unwrap().kvs, after.values().cloned().collect::<Vec<_>>());
            let mut keys = before.clone();
            for event in store.events(&all(), *revision, *revision, 10, usize::MAX).unwrap().events {
                match event {
                    Event::Put(kv) => drop(keys.insert(kv.key.clone(), kv)),
                    Event::Delete { key, .. } => assert!(keys.remove(&key).is_some(), "{key:?}"),
                }
            }
            assert_eq!(keys, *after, "at revision {revision}");
        }
    }
}

fn random_op(random: &mut StdRng, leases: &[i64]) -> Op {
    let key = format!("k{}", random.random_range(0..8));
    match random.random_range(0..10) {
        0..3 => Op::Delete(KeyRange::key(key)),
        3 => Op::Delete(KeyRange::Span { start: key.into(), end: "k6".into() }),
        4 if !leases.is_empty() => {
            let lease = leases[random.random_range(0..leases.len())];
            Op::Put { key: key.into(), value: "leased".into(), lease }
        }
        5 => Op::Txn(Txn {
            compares: vec![Compare::CreateRevision(key.clone().into(), 0)],
            then: vec![Op::put(key, "created")],
            otherwise: vec![Op::Range(all())],
        }),
        _ => Op::put(key, random.random_range(0..1000).to_string()),
    }
}

/// One random history. Returns what happened, to compare two runs of one seed.
fn run_history(seed: u64) -> String {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut store, mut model, mut records) = (Mvcc::new(), Model::default(), Vec::new());
    let (mut leases, mut oldest) = (Vec::new(), 1);
    for _ in 0..200 {
        match random.random_range(0..20) {
            0 => {
                let (lease, record) = store.grant(10);
                leases.push(lease);
                records.push(record);
            }
            1 if !leases.is_empty() => {
                let lease = leases.swap_remove(random.random_range(0..leases.len()));
                records.push(store.end_lease(lease).unwrap());
            }
            2 => {
                oldest = random.random_range(oldest..=store.revision());
                records.extend(store.compact(oldest).unwrap());
            }
            _ => {
                let then = (0..random.random_range(1..4)).map(|_| random_op(&mut random, &leases)).collect();
                // Some change a key twice: those must change nothing.
                if let Ok((_, record)) = store.txn(&Txn { then, ..Txn::default() }) {
                    records.extend(record);
                }
            }
        }
        model.observe(&store);
    }
    model.check(&store, oldest);

    let expected = format!("{store:?}");
    for (what, source) in [("records", records), ("a snapshot", store.snapshot())] {
        let mut copy = Mvcc::new();
        for record in source {
            copy.replay(record).unwrap();
        }
        assert!(format!("{copy:?}") == expected, "seed {seed}: another store comes of {what}");
    }
    expected
}

#[test]
fn random_histories_hold_together() {
    for seed in 0..300 {
        run_history(seed);
    }
}

#[test]
fn a_history_can_be_repeated() {
    assert!(run_history(42) == run_history(42));
    assert!(run_history(42) != run_history(43));
}
