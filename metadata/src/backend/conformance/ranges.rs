//! Reading, now and in the past.

use bytes::Bytes;

use super::Subject;
use crate::backend::{BackendError, ChangedRequest, KeyRange, KeyValue, Op, RangeRequest};

pub(super) async fn a_put_is_read_back(subject: Subject) {
    assert_eq!(subject.get("a").await, None);
    let created = subject.put("a", "1").await;
    let changed = subject.put("a", "2").await;
    assert_eq!(changed, created + 1);
    let expected = KeyValue {
        key: subject.key("a"),
        value: "2".into(),
        create_revision: created,
        mod_revision: changed,
        version: 2,
        lease: 0,
    };
    assert_eq!(subject.get("a").await, Some(expected));
}

pub(super) async fn any_bytes_are_keys_and_values(subject: Subject) {
    let odd: [&[u8]; 4] = [b"\0", b"\xff\xff", b"\xc3\x28", b"a\0b"];
    for name in odd {
        let key: Bytes = [subject.prefix.as_bytes(), name].concat().into();
        let value = Bytes::copy_from_slice(name);
        subject.run(vec![Op::put(key.clone(), value.clone())]).await;
        let found = subject.range(KeyRange::key(key), None).await.unwrap();
        assert_eq!(found.first().map(|kv| &kv.value), Some(&value));
    }
    subject.run(vec![subject.put_op("empty", "")]).await;
    assert_eq!(subject.value("empty").await, Some(Bytes::new()));
    assert_eq!(subject.range(subject.all(), None).await.unwrap().len(), odd.len() + 1);
}

pub(super) async fn a_range_is_ordered_and_half_open(subject: Subject) {
    for name in ["b", "d", "a", "c", "ab"] {
        subject.put(name, name).await;
    }
    let names = |kvs: Vec<KeyValue>| kvs.into_iter().map(|kv| kv.value).collect::<Vec<_>>();
    let all = subject.range(subject.all(), None).await.unwrap();
    assert_eq!(names(all), ["a", "ab", "b", "c", "d"]);
    let span = KeyRange::Span { start: subject.key("ab"), end: subject.key("d") };
    assert_eq!(names(subject.range(span, None).await.unwrap()), ["ab", "b", "c"]);
    let one = KeyRange::key(subject.key("a"));
    assert_eq!(names(subject.range(one, None).await.unwrap()), ["a"]);
    let none = KeyRange::Span { start: subject.key("x"), end: subject.key("y") };
    assert_eq!(names(subject.range(none, None).await.unwrap()), Vec::<Bytes>::new());
}

pub(super) async fn a_limit_cuts_and_says_so(subject: Subject) {
    for name in ["a", "b", "c"] {
        subject.put(name, name).await;
    }
    for (limit, count, more) in [(0, 3, false), (2, 2, true), (3, 3, false), (4, 3, false)] {
        let request = RangeRequest { keys: subject.all(), revision: None, limit, keys_only: false };
        let response = subject.store.range(request).await.unwrap();
        assert_eq!((response.kvs.len(), response.more), (count, more), "limit {limit}");
    }
}

pub(super) async fn the_past_can_be_read(subject: Subject) {
    let first = subject.put("a", "1").await;
    let second = subject.put("a", "2").await;
    let third = subject.put("b", "3").await;
    let deleted = subject.delete("a").await;
    let values = async |revision| {
        let kvs = subject.range(subject.all(), Some(revision)).await.unwrap();
        kvs.into_iter().map(|kv| kv.value).collect::<Vec<_>>()
    };
    assert_eq!(values(first - 1).await, Vec::<Bytes>::new());
    assert_eq!(values(first).await, ["1"]);
    assert_eq!(values(second).await, ["2"]);
    assert_eq!(values(third).await, ["2", "3"]);
    assert_eq!(values(deleted).await, ["3"]);
    let request = RangeRequest { keys: subject.all(), revision: Some(first), limit: 0, keys_only: false };
    let revision = subject.store.range(request).await.unwrap().revision;
    assert_eq!(revision, deleted, "an answer about the past tells the present revision");
}

pub(super) async fn the_future_cannot_be_read(subject: Subject) {
    let newest = subject.put("a", "1").await;
    let error = subject.range(subject.all(), Some(newest + 1)).await.unwrap_err();
    assert!(matches!(error, BackendError::Broken(_)), "{error:?}");
    let error = subject.store.compact(newest + 1).await.unwrap_err();
    assert!(matches!(error, BackendError::Broken(_)), "{error:?}");
}

pub(super) async fn compacted_history_is_gone_and_the_rest_stays(subject: Subject) {
    let old = subject.put("a", "1").await;
    subject.put("gone", "1").await;
    subject.delete("gone").await;
    let kept = subject.put("a", "2").await;
    let newest = subject.put("b", "3").await;
    subject.store.compact(kept).await.unwrap();
    subject.store.compact(kept).await.unwrap();
    subject.store.compact(old).await.unwrap();
    let error = subject.range(subject.all(), Some(kept - 1)).await.unwrap_err();
    assert!(matches!(error, BackendError::Compacted { .. }), "{error:?}");
    for (revision, expected) in
        [(Some(kept), vec!["2"]), (Some(newest), vec!["2", "3"]), (None, vec!["2", "3"])]
    {
        let kvs = subject.range(subject.all(), revision).await.unwrap();
        assert_eq!(kvs.iter().map(|kv| kv.value.clone()).collect::<Vec<_>>(), expected);
        assert_eq!(kvs.first().map(|kv| (kv.create_revision, kv.version)), Some((old, 2)));
    }
    assert_eq!(subject.revision().await, newest, "compacting makes no revision");
}

/// The names of the keys that were put after a revision, and the count of all.
async fn changed(subject: &Subject, after: i64, revision: Option<i64>) -> (Vec<String>, usize) {
    let request = ChangedRequest { keys: subject.all(), after, revision };
    let answer = subject.store.changed(request).await.unwrap();
    let name = |kv: &KeyValue| String::from_utf8_lossy(&kv.key[subject.prefix.len()..]).into_owned();
    (answer.kvs.iter().map(name).collect(), answer.count)
}

fn found(names: &[&str], count: usize) -> (Vec<String>, usize) {
    (names.iter().map(|name| (*name).to_owned()).collect(), count)
}

pub(super) async fn what_was_put_since_is_told_and_all_are_counted(subject: Subject) {
    let first = subject.put("b", "1").await;
    let second = subject.put("a", "2").await;
    assert_eq!(changed(&subject, first - 1, None).await, found(&["a", "b"], 2));
    assert_eq!(changed(&subject, first, None).await, found(&["a"], 2));
    assert_eq!(changed(&subject, second, None).await, found(&[], 2));
    assert_eq!(changed(&subject, i64::MAX, None).await, found(&[], 2), "not even in the future");
    let third = subject.put("b", "3").await;
    assert_eq!(changed(&subject, second, None).await, found(&["b"], 2));
    let request = ChangedRequest { keys: subject.all(), after: second, revision: None };
    let answer = subject.store.changed(request).await.unwrap();
    assert_eq!(answer.revision, third);
    assert_eq!(
        answer.kvs,
        subject.range(KeyRange::key(subject.key("b")), None).await.unwrap(),
        "it is whole"
    );
    let one = ChangedRequest { keys: KeyRange::key(subject.key("a")), after: second, revision: None };
    let answer = subject.store.changed(one).await.unwrap();
    assert_eq!((answer.kvs.len(), answer.count), (0, 1));
}

pub(super) async fn what_was_deleted_shows_in_the_count(subject: Subject) {
    for name in ["a", "b", "c"] {
        subject.put(name, "1").await;
    }
    let known = subject.revision().await;
    subject.delete("a").await;
    assert_eq!(changed(&subject, known, None).await, found(&[], 2), "deleted");
    subject.put("a", "2").await;
    assert_eq!(changed(&subject, known, None).await, found(&["a"], 3), "deleted and created again");
    subject.delete("b").await;
    subject.put("d", "1").await;
    assert_eq!(changed(&subject, known, None).await, found(&["a", "d"], 3), "one for another");
    subject.put("c", "2").await;
    subject.delete("c").await;
    assert_eq!(changed(&subject, known, None).await, found(&["a", "d"], 2), "changed and deleted");
    subject.put("e", "1").await;
    subject.delete("e").await;
    assert_eq!(changed(&subject, known, None).await, found(&["a", "d"], 2), "created and deleted");
    let lease = subject.store.lease_grant(60).await.unwrap();
    subject.put_leased("f", lease).await.unwrap();
    let known = subject.revision().await;
    subject.store.lease_revoke(lease).await.unwrap();
    assert_eq!(changed(&subject, known, None).await, found(&[], 2), "gone with its lease");
}

pub(super) async fn what_changed_is_read_as_of_a_revision_and_needs_no_history(subject: Subject) {
    let first = subject.put("a", "1").await;
    let second = subject.put("b", "1").await;
    let third = subject.put("a", "2").await;
    let fourth = subject.delete("b").await;
    assert_eq!(changed(&subject, first, Some(second)).await, found(&["b"], 2));
    assert_eq!(changed(&subject, first, Some(third)).await, found(&["a", "b"], 2));
    assert_eq!(changed(&subject, first, Some(fourth)).await, found(&["a"], 1));
    subject.store.compact(fourth).await.unwrap();
    assert_eq!(changed(&subject, first, None).await, found(&["a"], 1), "after a revision that is forgotten");
    assert_eq!(changed(&subject, third, None).await, found(&[], 1));
    let request = ChangedRequest { keys: subject.all(), after: first, revision: Some(third) };
    let error = subject.store.changed(request.clone()).await.unwrap_err();
    assert!(matches!(error, BackendError::Compacted { .. }), "{error:?}");
    let future = ChangedRequest { revision: Some(fourth + 1), ..request };
    let error = subject.store.changed(future).await.unwrap_err();
    assert!(matches!(error, BackendError::Broken(_)), "{error:?}");
}

pub(super) async fn malformed_ranges_are_refused(subject: Subject) {
    let span = |start: &str, end: &str| KeyRange::Span {
        start: start.to_owned().into(),
        end: end.to_owned().into(),
    };
    for keys in [KeyRange::key(""), span("", "b"), span("a", ""), span("a", "\0"), span("b", "a")] {
        let read = subject.range(keys.clone(), None).await.unwrap_err();
        assert!(matches!(read, BackendError::Broken(_)), "{keys:?}: {read:?}");
        let request = ChangedRequest { keys: keys.clone(), after: 1, revision: None };
        let changed = subject.store.changed(request).await.unwrap_err();
        assert!(matches!(changed, BackendError::Broken(_)), "{keys:?}: {changed:?}");
        for op in [Op::Range(keys.clone()), Op::Delete(keys.clone())] {
            let txn = crate::backend::Txn { then: vec![op], ..Default::default() };
            let error = subject.store.txn(txn).await.unwrap_err();
            assert!(matches!(error, BackendError::Broken(_)), "{keys:?}: {error:?}");
        }
    }
    for revision in [0, -1] {
        let error = subject.range(subject.all(), Some(revision)).await.unwrap_err();
        assert!(matches!(error, BackendError::Broken(_)), "revision {revision}: {error:?}");
        for (after, as_of) in [(revision, None), (1, Some(revision))] {
            let request = ChangedRequest { keys: subject.all(), after, revision: as_of };
            let error = subject.store.changed(request).await.unwrap_err();
            assert!(matches!(error, BackendError::Broken(_)), "after {after} as of {as_of:?}: {error:?}");
        }
    }
}
