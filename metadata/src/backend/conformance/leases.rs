//! Leases, and the keys that go with them.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{PATIENCE, Subject, events_through, next};
use crate::backend::{BackendError, Event, Op, Txn};

/// The shortest lease that etcd grants with its default election time-out.
const SHORT_TTL_S: i64 = 2;

pub(super) async fn a_revoked_lease_takes_its_keys_along(subject: Subject) {
    let lease = subject.store.lease_grant(60).await.unwrap();
    let other = subject.store.lease_grant(60).await.unwrap();
    assert_ne!(lease, other);
    subject.put_leased("a", lease).await.unwrap();
    subject.put_leased("b", lease).await.unwrap();
    let last = subject.put_leased("other", other).await.unwrap();
    assert_eq!(subject.get("a").await.unwrap().lease, lease);

    let mut watch = subject.watch(last + 1).await;
    subject.store.lease_revoke(lease).await.unwrap();
    assert_eq!(subject.revision().await, last + 1, "all keys go at one revision");
    let mut events = events_through(&mut watch, last + 1).await;
    events.sort_by(|one, two| one.key().cmp(two.key()));
    let gone = |name| Event::Delete { key: subject.key(name), revision: last + 1 };
    assert_eq!(events, [gone("a"), gone("b")]);
    assert_eq!(subject.get("a").await, None);
    assert!(subject.get("other").await.is_some());

    subject.store.lease_revoke(other).await.unwrap();
    let empty = subject.store.lease_grant(60).await.unwrap();
    let before = subject.revision().await;
    subject.store.lease_revoke(empty).await.unwrap();
    assert_eq!(subject.revision().await, before, "a lease without keys goes without a revision");
}

pub(super) async fn a_key_can_leave_its_lease(subject: Subject) {
    let lease = subject.store.lease_grant(60).await.unwrap();
    let other = subject.store.lease_grant(60).await.unwrap();
    for name in ["freed", "moved", "recreated", "kept"] {
        subject.put_leased(name, lease).await.unwrap();
    }
    subject.put("freed", "without").await;
    subject.put_leased("moved", other).await.unwrap();
    subject.delete("recreated").await;
    subject.put("recreated", "without").await;
    subject.store.lease_revoke(lease).await.unwrap();
    let left = subject.range(subject.all(), None).await.unwrap();
    let left: Vec<_> = left.into_iter().map(|kv| (kv.key, kv.lease)).collect();
    assert_eq!(
        left,
        [(subject.key("freed"), 0), (subject.key("moved"), other), (subject.key("recreated"), 0)]
    );
    subject.store.lease_revoke(other).await.unwrap();
}

pub(super) async fn a_lease_that_is_gone_is_said_to_be_gone(subject: Subject) {
    let lease = subject.store.lease_grant(60).await.unwrap();
    assert!(subject.store.lease_keep_alive(lease).await.unwrap() >= 1);
    subject.store.lease_revoke(lease).await.unwrap();
    let gone = BackendError::LeaseGone(lease);
    assert_eq!(subject.store.lease_keep_alive(lease).await, Err(gone.clone()));
    assert_eq!(subject.store.lease_keep_alive(lease).await, Err(gone.clone()), "and again");
    assert_eq!(subject.store.lease_revoke(lease).await, Err(gone.clone()));
    let before = subject.revision().await;
    let with_lease = Op::Put { key: subject.key("b"), value: "1".into(), lease };
    let nested = Op::Txn(Txn { then: vec![with_lease.clone()], ..Txn::default() });
    for late in [with_lease, nested] {
        let txn = Txn { then: vec![subject.put_op("a", "1"), late], ..Txn::default() };
        assert_eq!(subject.store.txn(txn).await.unwrap_err(), gone);
    }
    assert_eq!(subject.revision().await, before, "no step of them was executed");
    let unused = Txn {
        otherwise: vec![Op::Put { key: subject.key("b"), value: "1".into(), lease }],
        ..Txn::default()
    };
    assert!(subject.txn(unused).await.succeeded, "a step that is not taken needs no lease");
}

pub(super) async fn a_lease_runs_out(subject: Subject) {
    let start = Instant::now();
    let lease = subject.store.lease_grant(SHORT_TTL_S).await.unwrap();
    let put = subject.put_leased("a", lease).await.unwrap();
    let mut watch = subject.watch(put + 1).await;
    let event = loop {
        if let Some(event) = next(&mut watch).await.events.pop() {
            break event;
        }
        assert!(start.elapsed() < PATIENCE, "a lease never ends");
    };
    assert!(start.elapsed() >= Duration::from_secs(SHORT_TTL_S.unsigned_abs()), "it ended too early");
    assert_eq!(event, Event::Delete { key: subject.key("a"), revision: put + 1 });
    assert_eq!(subject.get("a").await, None);
    assert_eq!(subject.store.lease_keep_alive(lease).await, Err(BackendError::LeaseGone(lease)));
}

pub(super) async fn a_lease_that_is_kept_alive_stays(subject: Subject) {
    let lease = subject.store.lease_grant(SHORT_TTL_S).await.unwrap();
    subject.put_leased("a", lease).await.unwrap();
    for _ in 0..10 {
        sleep(Duration::from_millis(500)).await;
        let left_s = subject.store.lease_keep_alive(lease).await.unwrap();
        assert!(left_s >= SHORT_TTL_S, "{left_s}");
    }
    assert!(subject.get("a").await.is_some());
    subject.store.lease_revoke(lease).await.unwrap();
}
