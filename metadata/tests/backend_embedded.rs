//! The embedded backend with a journal: the conformance suite, and everything that may happen to a
//! file.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::missing_panics_doc,
    reason = "tests may fail loudly and read their environment"
)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use strandline_metadata::backend::embedded::{Durability, Embedded, OpenError};
use strandline_metadata::backend::{
    Backend, BackendError, Compare, KeyRange, KeyValue, Op, RangeRequest, ReadBackend, Txn, conformance,
};
use tempfile::TempDir;

/// Where the child of [`what_was_acknowledged_survives_kill_9`] finds its journal.
const CHILD_JOURNAL: &str = "STRANDLINE_TEST_CHILD_JOURNAL";

/// Bytes of a journal before its first frame.
const MAGIC_BYTES: usize = 8;

fn put(key: &str, value: impl Into<Vec<u8>>) -> Txn {
    Txn { then: vec![Op::put(key.to_owned(), value.into())], ..Txn::default() }
}

async fn all(store: &Embedded, revision: Option<i64>) -> Result<Vec<KeyValue>, BackendError> {
    let request = RangeRequest { keys: KeyRange::prefix("k"), revision, limit: 0, keys_only: false };
    Ok(store.range(request).await?.kvs)
}

async fn revision(store: &Embedded) -> i64 {
    let request = RangeRequest { keys: KeyRange::key("k"), revision: None, limit: 0, keys_only: false };
    store.range(request).await.unwrap().revision
}

/// All that a store tells of its past and present.
async fn history(store: &Embedded, through: i64) -> Vec<Result<Vec<KeyValue>, BackendError>> {
    let mut history = Vec::new();
    for at in 1..=through {
        history.push(all(store, Some(at)).await);
    }
    history
}

fn journal(directory: &TempDir) -> PathBuf {
    directory.path().join("journal")
}

/// A journal of every kind of record, the length that it had after each revision, and its store's
/// history.
async fn example(path: &Path) -> (Vec<(i64, usize)>, Vec<Result<Vec<KeyValue>, BackendError>>) {
    let store = Embedded::open(path).unwrap();
    let length = || std::fs::read(path).unwrap().len();
    let mut lengths = vec![(1, MAGIC_BYTES)];
    let lease = store.lease_grant(60).await.unwrap();
    lengths.push((1, length()));
    let leased = Op::Put { key: "k-leased".into(), value: "1".into(), lease };
    let txns = [
        put("k1", "one"),
        put("k2", "two"),
        Txn { then: vec![Op::put("k1", "uno"), Op::Delete(KeyRange::key("k2")), leased], ..Txn::default() },
        put("k3", vec![b'x'; 300]),
        Txn { then: vec![Op::Delete(KeyRange::prefix("k3"))], ..Txn::default() },
    ];
    for txn in txns {
        let revision = store.txn(txn).await.unwrap().revision;
        lengths.push((revision, length()));
    }
    store.lease_revoke(lease).await.unwrap();
    lengths.push((revision(&store).await, length()));
    let last = store.txn(put("k4", "four")).await.unwrap().revision;
    lengths.push((last, length()));
    let history = history(&store, last).await;
    (lengths, history)
}

#[tokio::test]
async fn a_journal_conforms() {
    let directory = TempDir::new().unwrap();
    let store = Embedded::open(&journal(&directory)).unwrap();
    conformance::run_all(async || Arc::new(store.clone()) as Arc<dyn Backend>).await;

    let everything =
        || RangeRequest { keys: KeyRange::prefix("/"), revision: None, limit: 0, keys_only: false };
    let before = store.range(everything()).await.unwrap();
    drop(store);
    let after = Embedded::open(&journal(&directory)).unwrap().range(everything()).await.unwrap();
    assert!(before.kvs == after.kvs && before.revision == after.revision);
}

#[tokio::test]
async fn history_survives_a_restart() {
    let directory = TempDir::new().unwrap();
    let (lengths, expected) = example(&journal(&directory)).await;
    let last = lengths.last().unwrap().0;
    let store = Embedded::open(&journal(&directory)).unwrap();
    assert_eq!(revision(&store).await, last);
    assert_eq!(history(&store, last).await, expected);
    let mut watch = store.watch(KeyRange::prefix("k"), 2).await.unwrap();
    let batch = watch.next().await.unwrap();
    assert_eq!(batch.revision, last);
    assert_eq!(batch.events.first().unwrap().revision(), 2);
    assert_eq!(store.txn(put("k5", "five")).await.unwrap().revision, last + 1);
}

/// A write that was interrupted anywhere leaves what was acknowledged before it, and nothing else.
#[tokio::test]
async fn every_truncation_opens_to_a_prefix_of_history() {
    let directory = TempDir::new().unwrap();
    let (lengths, expected) = example(&journal(&directory)).await;
    let whole = std::fs::read(journal(&directory)).unwrap();
    assert_eq!(whole.len(), lengths.last().unwrap().1);
    let cut_path = directory.path().join("cut");
    for cut in 0..=whole.len() {
        std::fs::write(&cut_path, &whole[..cut]).unwrap();
        let kept = lengths.iter().rfind(|(_, length)| *length <= cut).map_or(1, |(revision, _)| *revision);
        let store = Embedded::open_with(&cut_path, Durability::System).unwrap();
        assert_eq!(revision(&store).await, kept, "cut at {cut}");
        let count = usize::try_from(kept).unwrap();
        assert!(history(&store, kept).await == expected[..count], "cut at {cut}");
        // And it goes on from there.
        assert_eq!(store.txn(put("k-next", "1")).await.unwrap().revision, kept + 1);
        drop(store);
        let store = Embedded::open_with(&cut_path, Durability::System).unwrap();
        assert_eq!(revision(&store).await, kept + 1, "cut at {cut}, and reopened");
    }
}

/// Damage in the middle is told with the file and the place; damage to the last write is taken for
/// an interruption of it.
#[tokio::test]
async fn flipped_bytes_are_found() {
    let directory = TempDir::new().unwrap();
    let (lengths, expected) = example(&journal(&directory)).await;
    let whole = std::fs::read(journal(&directory)).unwrap();
    let path = directory.path().join("flipped");
    let last_frame = lengths[lengths.len() - 2];
    for position in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[position] ^= 0x10;
        std::fs::write(&path, &flipped).unwrap();
        let opened = Embedded::open_with(&path, Durability::System);
        if position >= last_frame.1 {
            let store = opened.unwrap();
            assert_eq!(revision(&store).await, last_frame.0, "flipped at {position}");
            let count = usize::try_from(last_frame.0).unwrap();
            assert!(history(&store, last_frame.0).await == expected[..count]);
        } else {
            let error = opened.unwrap_err();
            let frame =
                lengths.iter().rfind(|(_, length)| *length <= position).map_or(0, |(_, start)| *start);
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
            let OpenError::Corrupt { offset, .. } = error else { panic!("{error:?}") };
            assert_eq!(usize::try_from(offset).unwrap(), frame, "flipped at {position}");
            assert_eq!(std::fs::read(&path).unwrap(), flipped, "a damaged journal is left as it is");
        }
    }
}

#[tokio::test]
async fn foreign_files_are_refused() {
    let directory = TempDir::new().unwrap();
    for content in ["some text that somebody wrote", "SLJOURN\x02 of a later version"] {
        let path = directory.path().join("foreign");
        std::fs::write(&path, content).unwrap();
        let error = Embedded::open(&path).unwrap_err();
        assert!(matches!(error, OpenError::Corrupt { offset: 0, .. }), "{error:?}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
    }
    let error = Embedded::open(&directory.path().join("no/such/directory")).unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
}

#[tokio::test]
async fn a_journal_has_one_owner() {
    let directory = TempDir::new().unwrap();
    let path = journal(&directory);
    let store = Embedded::open(&path).unwrap();
    let second = tokio::task::spawn_blocking({
        let path = path.clone();
        move || Embedded::open(&path)
    });
    let error = second.await.unwrap().unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }), "{error:?}");
    store.txn(put("k", "1")).await.unwrap();
    let clone = store.clone();
    drop(store);
    clone.txn(put("k", "2")).await.unwrap();
    drop(clone);
    assert_eq!(revision(&Embedded::open(&path).unwrap()).await, 3);
}

#[tokio::test]
async fn changes_that_come_together_share_a_write() {
    let directory = TempDir::new().unwrap();
    let path = journal(&directory);
    let store = Embedded::open(&path).unwrap();
    let keys: Vec<String> = (0..200).map(|n| format!("k{n}")).collect();
    join_all(keys.iter().map(|key| store.txn(put(key, "v"))))
        .await
        .into_iter()
        .for_each(|r| drop(r.unwrap()));
    let content = std::fs::read(&path).unwrap();
    let (mut frames, mut offset) = (0, MAGIC_BYTES);
    while offset < content.len() {
        let length = u32::from_le_bytes(content[offset..offset + 4].try_into().unwrap());
        offset += 12 + usize::try_from(length).unwrap();
        frames += 1;
    }
    assert!(frames <= 20, "{frames} writes for 200 transactions");
    drop(store);
    assert_eq!(all(&Embedded::open(&path).unwrap(), None).await.unwrap().len(), 200);
}

#[tokio::test]
async fn a_journal_does_not_grow_for_ever() {
    let directory = TempDir::new().unwrap();
    let path = journal(&directory);
    let store = Embedded::open_with(&path, Durability::System).unwrap();
    let lease = store.lease_grant(60).await.unwrap();
    let leased = Op::Put { key: "k-leased".into(), value: "1".into(), lease };
    store.txn(Txn { then: vec![leased], ..Txn::default() }).await.unwrap();
    let mut largest = 0;
    for round in 0..40 {
        let mut newest = 0;
        for n in 0..10 {
            let txn = put(&format!("k{n}"), vec![round; 100_000]);
            newest = store.txn(txn).await.unwrap().revision;
        }
        store.compact(newest - 3).await.unwrap();
        largest = largest.max(std::fs::metadata(&path).unwrap().len());
    }
    // 40 MB were written; 1.4 MB are left, and the journal may hold some rounds more.
    assert!(largest < 12_000_000, "{largest}");
    let newest = revision(&store).await;
    let expected = history(&store, newest).await;
    drop(store);

    std::fs::write(directory.path().join("journal.new"), "the remains of a rewriting that was interrupted")
        .unwrap();
    let store = Embedded::open(&path).unwrap();
    assert!(history(&store, newest).await == expected, "what was rewritten is the same");
    assert!(!directory.path().join("journal.new").exists());
    let mut watch = store.watch(KeyRange::prefix("k"), newest - 3).await.unwrap();
    assert_eq!(watch.next().await.unwrap().events.len(), 4, "also for a watch from the oldest revision on");
    store.lease_revoke(lease).await.unwrap();
    assert_eq!(revision(&store).await, newest + 1, "the lease still has its key");
}

#[tokio::test]
async fn a_large_journal_is_rewritten_when_it_is_opened() {
    let directory = TempDir::new().unwrap();
    let path = journal(&directory);
    let store = Embedded::open_with(&path, Durability::System).unwrap();
    for n in 0..50 {
        store.txn(put("k", vec![n; 100_000])).await.unwrap();
    }
    drop(store);
    let before = std::fs::metadata(&path).unwrap().len();
    let store = Embedded::open(&path).unwrap();
    let expected = history(&store, 51).await;
    assert!(expected.iter().all(Result::is_ok), "nothing was compacted, so all of it is left");
    assert!(std::fs::metadata(&path).unwrap().len() >= before / 2);
    store.compact(51).await.unwrap();
    drop(store);
    let store = Embedded::open(&path).unwrap();
    assert!(std::fs::metadata(&path).unwrap().len() < before / 10);
    assert_eq!(all(&store, None).await.unwrap(), *expected.last().unwrap().as_ref().unwrap());
    assert_eq!(all(&store, Some(50)).await, Err(BackendError::Compacted { oldest: 51 }));
}

#[tokio::test(start_paused = true)]
async fn leases_start_anew_after_a_restart() {
    let directory = TempDir::new().unwrap();
    let path = journal(&directory);
    let store = Embedded::open(&path).unwrap();
    let lease = store.lease_grant(10).await.unwrap();
    let op = Op::Put { key: "k".into(), value: "v".into(), lease };
    store.txn(Txn { then: vec![op], ..Txn::default() }).await.unwrap();
    tokio::time::advance(Duration::from_secs(9)).await;
    drop(store);

    let store = Embedded::open(&path).unwrap();
    tokio::time::advance(Duration::from_secs(9)).await;
    assert_eq!(all(&store, None).await.unwrap().len(), 1);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(all(&store, None).await.unwrap().len(), 0);
    assert_ne!(store.lease_grant(10).await.unwrap(), lease, "ids are not given out twice");
    drop(store);
    let store = Embedded::open(&path).unwrap();
    assert_eq!(
        store.lease_keep_alive(lease).await,
        Err(BackendError::LeaseGone(lease)),
        "the end was written down"
    );
}

/// Counts in a child process, as fast as it can, and says how far it is: see the test below.
#[test]
#[ignore = "the child process of another test"]
fn child_that_counts() {
    let path = std::env::var(CHILD_JOURNAL).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Embedded::open(Path::new(&path)).unwrap();
        loop {
            let kv = all(&store, None).await.unwrap().pop();
            let (count, newest) = kv.map_or((0, 0), |kv| (kv.version, kv.mod_revision));
            let txn = Txn {
                compares: vec![Compare::ModRevision("k".into(), newest)],
                then: vec![Op::put("k", (count + 1).to_string())],
                otherwise: vec![],
            };
            assert!(store.txn(txn).await.unwrap().succeeded);
            if count % 100 == 99 {
                store.compact(revision(&store).await).await.unwrap();
            }
            println!("acknowledged {}", count + 1);
        }
    });
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let directory = TempDir::new().unwrap();
    let path = journal(&directory);
    let mut acknowledged = 0;
    for round in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_counts", "--ignored", "--nocapture"])
            .env(CHILD_JOURNAL, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        for line in lines {
            if let Some(count) = line.unwrap().strip_prefix("acknowledged ") {
                acknowledged = count.parse().unwrap();
                seen += 1;
                if seen == 150 + 37 * round {
                    // Its pipe still holds what it says until it is dead.
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        assert!(seen >= 150, "the child made progress");
        let store = Embedded::open(&path).unwrap();
        let kv = all(&store, None).await.unwrap().pop().unwrap();
        assert_eq!(kv.value, kv.version.to_string());
        assert!(
            kv.version == acknowledged || kv.version == acknowledged + 1,
            "acknowledged {acknowledged}, found {}",
            kv.version
        );
    }
}
