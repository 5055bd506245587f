//! Watches: everything, once, in order, in whole revisions.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tokio::time::timeout;

use super::{Subject, batches_through, events_through, next};
use crate::backend::{BackendError, Event, KeyRange, Op};

/// More than etcd puts in one batch.
const LONG: i64 = 2500;

/// What the keys became, in order.
fn values(events: &[Event]) -> Vec<Bytes> {
    let value = |event: &Event| match event {
        Event::Put(kv) => kv.value.clone(),
        Event::Delete { .. } => "deleted".into(),
    };
    events.iter().map(value).collect()
}

pub(super) async fn a_watch_brings_the_past_and_then_the_present(subject: Subject) {
    subject.put("a", "before").await;
    let first = subject.put("a", "1").await;
    subject.delete("a").await;
    let mut watch = subject.watch(first).await;
    let past = events_through(&mut watch, first + 1).await;
    assert_eq!(values(&past), ["1", "deleted"]);
    let Some(Event::Put(kv)) = past.first() else { panic!("{past:?}") };
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (first - 1, first, 2));
    let present = subject.put("a", "2").await;
    let events = events_through(&mut watch, present).await;
    assert_eq!(values(&events), ["2"]);
    assert_eq!(events.iter().map(Event::revision).collect::<Vec<_>>(), [present]);
}

pub(super) async fn a_watch_of_one_key_brings_no_other(subject: Subject) {
    let first = subject.put("a", "1").await;
    subject.put("ab", "no").await;
    let mut watch = subject.store.watch(KeyRange::key(subject.key("a")), first).await.unwrap();
    subject.put("b", "no").await;
    let last = subject.put("a", "2").await;
    assert_eq!(values(&events_through(&mut watch, last).await), ["1", "2"]);
}

pub(super) async fn a_watch_may_begin_in_the_future(subject: Subject) {
    let now = subject.revision().await;
    let mut watch = subject.watch(now + 3).await;
    for name in ["1", "2", "3", "4"] {
        subject.put("a", name).await;
    }
    assert_eq!(values(&events_through(&mut watch, now + 4).await), ["3", "4"]);
}

pub(super) async fn a_revision_comes_in_one_piece(subject: Subject) {
    let start = subject.put("old", "1").await;
    let mut watch = subject.watch(start + 1).await;
    for round in 0..20 {
        let mut ops = vec![Op::Delete(KeyRange::key(subject.key("old")))];
        ops.extend((0..50).map(|n| subject.put_op(&format!("k{n}"), round.to_string())));
        subject.run(ops).await;
        subject.put("old", "again").await;
    }
    for batch in batches_through(&mut watch, start + 40).await {
        assert_eq!(batch.events.last().map(Event::revision), Some(batch.revision));
        for chunk in batch.events.chunk_by(|one, two| one.revision() == two.revision()) {
            let even = (chunk[0].revision() - start) % 2 == 0;
            assert_eq!(chunk.len(), if even { 1 } else { 51 });
        }
    }
}

pub(super) async fn a_long_history_comes_whole_and_in_order(subject: Subject) {
    let start = subject.revision().await;
    let mut done = 0;
    while done < LONG {
        join_all((done..done + 50).map(|n| {
            let subject = &subject;
            async move { subject.put(&format!("k{}", n % 7), &n.to_string()).await }
        }))
        .await;
        done += 50;
    }
    let mut watch = subject.watch(start + 1).await;
    let events = events_through(&mut watch, start + LONG).await;
    let revisions: Vec<i64> = events.iter().map(Event::revision).collect();
    assert_eq!(revisions, (start + 1..=start + LONG).collect::<Vec<_>>());
}

pub(super) async fn large_revisions_come_whole(subject: Subject) {
    const KEYS: usize = 100;
    const REVISIONS: i64 = 6;
    let start = subject.revision().await;
    for round in 0..REVISIONS {
        let filler = u8::try_from(round).unwrap();
        let ops = (0..KEYS).map(|n| subject.put_op(&format!("k{n}"), vec![filler; 14_000]));
        subject.run(ops.collect()).await;
    }
    let mut watch = subject.watch(start + 1).await;
    let mut expected = start + 1;
    for batch in batches_through(&mut watch, start + REVISIONS).await {
        for revision in batch.events.chunk_by(|one, two| one.revision() == two.revision()) {
            assert_eq!((revision[0].revision(), revision.len()), (expected, KEYS));
            expected += 1;
        }
    }
}

pub(super) async fn a_cancelled_wait_loses_nothing(subject: Subject) {
    const COUNT: i64 = 100;
    let start = subject.revision().await;
    let mut watch = subject.watch(start + 1).await;
    let mut seen = Vec::new();
    let writes = async {
        for n in 0..COUNT {
            subject.put("a", &n.to_string()).await;
        }
    };
    let reads = async {
        while seen.len() < usize::try_from(COUNT).unwrap() {
            if let Ok(batch) = timeout(Duration::from_micros(300), watch.next()).await {
                seen.extend(batch.unwrap().events.iter().map(Event::revision));
            }
        }
    };
    timeout(super::PATIENCE, async { tokio::join!(writes, reads) }).await.unwrap();
    assert_eq!(seen, (start + 1..=start + COUNT).collect::<Vec<_>>());
}

pub(super) async fn many_watches_see_the_same(subject: Subject) {
    let start = subject.revision().await;
    let mut watches = Vec::new();
    for _ in 0..20 {
        watches.push(subject.watch(start + 1).await);
    }
    for n in 0..10 {
        subject.put("a", &n.to_string()).await;
    }
    let all = join_all(watches.iter_mut().map(|watch| events_through(watch, start + 10))).await;
    assert_eq!(all[0].len(), 10);
    assert!(all.iter().all(|events| *events == all[0]));
}

pub(super) async fn a_silent_watch_reports_progress(subject: Subject) {
    let start = subject.put("a", "1").await;
    let mut watch = subject.watch(start).await;
    assert_eq!(next(&mut watch).await.events.len(), 1);
    for _ in 0..2 {
        let report = timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap();
        assert!(report.events.is_empty());
        assert!(report.revision >= start, "a report does not go back");
    }
    let mut quiet = subject.watch(start + 1).await;
    let report = timeout(Duration::from_secs(10), quiet.next()).await.unwrap().unwrap();
    assert!(report.events.is_empty(), "also of a watch that never had an event");
    let last = subject.put("a", "2").await;
    assert_eq!(values(&events_through(&mut quiet, last).await), ["2"]);
}

pub(super) async fn a_watch_of_compacted_history_says_so(subject: Subject) {
    let old = subject.put("a", "1").await;
    let kept = subject.put("a", "2").await;
    let newest = subject.put("a", "3").await;
    subject.store.compact(kept).await.unwrap();
    let opened = subject.store.watch(subject.all(), old).await;
    let error = match opened {
        Ok(mut watch) => timeout(super::PATIENCE, watch.next()).await.unwrap().unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error, BackendError::Compacted { oldest: kept });
    let mut watch = subject.watch(kept + 1).await;
    assert_eq!(values(&events_through(&mut watch, newest).await), ["3"]);
}

pub(super) async fn malformed_watches_are_refused(subject: Subject) {
    for (keys, revision) in [(subject.all(), 0), (subject.all(), -1), (KeyRange::key(""), 1)] {
        let error = subject.store.watch(keys, revision).await.unwrap_err();
        assert!(matches!(error, BackendError::Broken(_)), "{error:?}");
    }
}
