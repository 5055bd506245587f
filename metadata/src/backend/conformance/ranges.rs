//! Reading, now and in the past.

use bytes::Bytes;

use super::Subject;
use crate::backend::{BackendError, KeyRange, KeyValue, Op, RangeRequest};

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

pub(super) async fn malformed_ranges_are_refused(subject: Subject) {
    let span = |start: &str, end: &str| KeyRange::Span {
        start: start.to_owned().into(),
        end: end.to_owned().into(),
    };
    for keys in [KeyRange::key(""), span("", "b"), span("a", ""), span("a", "\0"), span("b", "a")] {
        let read = subject.range(keys.clone(), None).await.unwrap_err();
        assert!(matches!(read, BackendError::Broken(_)), "{keys:?}: {read:?}");
        for op in [Op::Range(keys.clone()), Op::Delete(keys.clone())] {
            let txn = crate::backend::Txn { then: vec![op], ..Default::default() };
            let error = subject.store.txn(txn).await.unwrap_err();
            assert!(matches!(error, BackendError::Broken(_)), "{keys:?}: {error:?}");
        }
    }
    for revision in [0, -1] {
        let error = subject.range(subject.all(), Some(revision)).await.unwrap_err();
        assert!(matches!(error, BackendError::Broken(_)), "revision {revision}: {error:?}");
    }
}
