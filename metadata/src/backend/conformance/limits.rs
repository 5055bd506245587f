//! What is too much, or makes no sense; none of it may be executed even in part.

use super::Subject;
use crate::backend::{BackendError, Compare, KeyRange, Op, Txn};
use crate::limits::{BACKEND_TXN_OPS, ETCD_REQUEST_BYTES};

fn puts(subject: &Subject, count: usize) -> Vec<Op> {
    (0..count).map(|n| subject.put_op(&n.to_string(), "v")).collect()
}

async fn refused(subject: &Subject, txn: Txn) -> BackendError {
    let before = subject.revision().await;
    let error = subject.store.txn(txn).await.unwrap_err();
    assert_eq!(subject.revision().await, before, "what is refused changes nothing");
    error
}

pub(super) async fn a_key_changes_once_in_a_transaction(subject: Subject) {
    let inner = Txn { then: vec![subject.put_op("a", "2")], ..Txn::default() };
    let cases = [
        vec![subject.put_op("a", "1"), subject.put_op("a", "2")],
        vec![subject.put_op("a", "1"), Op::Delete(subject.all())],
        vec![Op::Delete(KeyRange::key(subject.key("a"))), subject.put_op("a", "1")],
        vec![subject.put_op("a", "1"), Op::Txn(inner.clone())],
        vec![Op::Txn(inner.clone()), Op::Txn(inner)],
    ];
    for then in cases {
        let error = refused(&subject, Txn { then: then.clone(), ..Txn::default() }).await;
        assert!(matches!(error, BackendError::Broken(_)), "{then:?}: {error:?}");
    }
    let exclusive = Txn {
        compares: vec![],
        then: vec![subject.put_op("a", "then")],
        otherwise: vec![subject.put_op("a", "otherwise")],
    };
    subject.run(vec![Op::Txn(exclusive)]).await;
    assert_eq!(subject.value("a").await.unwrap(), "then");
}

pub(super) async fn operations_are_limited(subject: Subject) {
    let compares = |count: usize| {
        (0..count).map(|n| Compare::CreateRevision(subject.key(&format!("none{n}")), 0)).collect::<Vec<_>>()
    };
    let full = Txn {
        compares: compares(BACKEND_TXN_OPS),
        then: puts(&subject, BACKEND_TXN_OPS),
        otherwise: puts(&subject, BACKEND_TXN_OPS),
    };
    assert!(subject.txn(full).await.succeeded);
    let over = [
        Txn { then: puts(&subject, BACKEND_TXN_OPS + 1), ..Txn::default() },
        Txn { otherwise: puts(&subject, BACKEND_TXN_OPS + 1), ..Txn::default() },
        Txn { compares: compares(BACKEND_TXN_OPS + 1), ..Txn::default() },
    ];
    for txn in over {
        let error = refused(&subject, txn).await;
        assert!(matches!(error, BackendError::TooLarge(_)), "{error:?}");
    }
}

pub(super) async fn nested_operations_are_limited(subject: Subject) {
    let nested = |count| {
        let inner = Txn { then: puts(&subject, count), ..Txn::default() };
        Txn { then: vec![Op::Txn(inner)], ..Txn::default() }
    };
    subject.txn(nested(BACKEND_TXN_OPS - 1)).await;
    let error = refused(&subject, nested(BACKEND_TXN_OPS)).await;
    assert!(matches!(error, BackendError::TooLarge(_)), "{error:?}");
}

pub(super) async fn the_size_of_a_request_is_limited(subject: Subject) {
    let sized = |bytes| Txn { then: vec![subject.put_op("a", vec![b'x'; bytes])], ..Txn::default() };
    subject.txn(sized(ETCD_REQUEST_BYTES - 1024)).await;
    assert_eq!(subject.value("a").await.map(|value| value.len()), Some(ETCD_REQUEST_BYTES - 1024));
    for bytes in [ETCD_REQUEST_BYTES + 1, 2 * ETCD_REQUEST_BYTES] {
        let error = refused(&subject, sized(bytes)).await;
        assert!(matches!(error, BackendError::TooLarge(_)), "{bytes}: {error:?}");
    }
}
