//! Transactions: conditions, steps, one revision.

use futures::future::join_all;

use super::Subject;
use crate::backend::{Compare, KeyRange, Op, OpResponse, Txn, TxnResponse};

pub(super) async fn a_key_that_comes_back_starts_over(subject: Subject) {
    subject.put("a", "1").await;
    subject.put("a", "2").await;
    subject.delete("a").await;
    assert_eq!(subject.get("a").await, None);
    let again = subject.put("a", "3").await;
    let kv = subject.get("a").await.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (again, again, 1));
}

pub(super) async fn only_changes_make_revisions(subject: Subject) {
    let before = subject.put("a", "1").await;
    let idle = [
        vec![],
        vec![Op::Range(subject.all())],
        vec![Op::Delete(KeyRange::key(subject.key("nothing")))],
        vec![Op::Txn(Txn::default())],
    ];
    for ops in idle {
        let response = subject.run(ops.clone()).await;
        assert_eq!(response.revision, before, "{ops:?}");
    }
    assert_eq!(subject.revision().await, before);
    assert_eq!(subject.put("a", "1").await, before + 1, "the same value again is a change");
}

pub(super) async fn compares_choose_the_branch(subject: Subject) {
    let created = subject.put("a", "1").await;
    let changed = subject.put("a", "2").await;
    let (a, none) = (subject.key("a"), subject.key("none"));
    let cases = [
        (Compare::CreateRevision(a.clone(), created), true),
        (Compare::CreateRevision(a.clone(), changed), false),
        (Compare::CreateRevision(a.clone(), 0), false),
        (Compare::CreateRevision(none.clone(), 0), true),
        (Compare::CreateRevision(none.clone(), 1), false),
        (Compare::ModRevision(a.clone(), changed), true),
        (Compare::ModRevision(a.clone(), created), false),
        (Compare::ModRevision(none.clone(), 0), true),
        (Compare::Value(a.clone(), "2".into()), true),
        (Compare::Value(a.clone(), "1".into()), false),
        (Compare::Value(none.clone(), "".into()), false),
    ];
    let try_all = async |compares: Vec<Compare>| {
        let then = vec![Op::Range(KeyRange::key(a.clone()))];
        let response = subject.txn(Txn { compares, then, otherwise: vec![] }).await;
        assert_eq!(response.responses.len(), usize::from(response.succeeded));
        response.succeeded
    };
    for (compare, holds) in &cases {
        assert_eq!(try_all(vec![compare.clone()]).await, *holds, "{compare:?}");
    }
    let (holding, failing): (Vec<_>, Vec<_>) = cases.into_iter().partition(|(_, holds)| *holds);
    let mut together: Vec<_> = holding.into_iter().map(|(compare, _)| compare).collect();
    assert!(try_all(together.clone()).await);
    together.extend(failing.into_iter().map(|(compare, _)| compare).take(1));
    assert!(!try_all(together).await, "one that fails is enough");
    assert!(try_all(vec![]).await, "nothing to compare holds");
}

pub(super) async fn all_steps_happen_at_one_revision(subject: Subject) {
    let before = subject.put("old", "1").await;
    let response = subject
        .run(vec![
            subject.put_op("a", "1"),
            Op::Delete(KeyRange::key(subject.key("old"))),
            subject.put_op("b", "2"),
            Op::Delete(KeyRange::key(subject.key("nothing"))),
        ])
        .await;
    assert_eq!(response.revision, before + 1);
    assert!(response.succeeded);
    assert!(matches!(
        &response.responses[..],
        [OpResponse::Put, OpResponse::Deleted(1), OpResponse::Put, OpResponse::Deleted(0)]
    ));
    let kvs = subject.range(subject.all(), None).await.unwrap();
    assert_eq!(kvs.iter().map(|kv| kv.mod_revision).collect::<Vec<_>>(), [before + 1; 2]);
    let response = subject.run(vec![Op::Delete(subject.all())]).await;
    assert!(matches!(&response.responses[..], [OpResponse::Deleted(2)]));
}

pub(super) async fn a_range_in_a_transaction_sees_its_changes(subject: Subject) {
    subject.put("a", "1").await;
    let response = subject
        .run(vec![
            Op::Range(subject.all()),
            subject.put_op("b", "2"),
            Op::Range(subject.all()),
            Op::Delete(KeyRange::key(subject.key("a"))),
            Op::Range(subject.all()),
        ])
        .await;
    let counts: Vec<usize> = response
        .responses
        .iter()
        .filter_map(|step| match step {
            OpResponse::Range(kvs) => Some(kvs.len()),
            OpResponse::Put | OpResponse::Deleted(_) | OpResponse::Txn(_) => None,
        })
        .collect();
    assert_eq!(counts, [1, 2, 1]);
    let Some(OpResponse::Range(kvs)) = response.responses.last() else { panic!("{response:?}") };
    assert_eq!(kvs.first().map(|kv| kv.mod_revision), Some(response.revision));
}

pub(super) async fn nested_compares_see_the_store_before(subject: Subject) {
    let absent = |name| vec![Compare::CreateRevision(subject.key(name), 0)];
    let inner = Txn {
        compares: absent("a"),
        then: vec![subject.put_op("inner", "saw nothing")],
        otherwise: vec![subject.put_op("inner", "saw a")],
    };
    let response = subject
        .txn(Txn {
            compares: absent("a"),
            then: vec![subject.put_op("a", "1"), Op::Txn(inner), subject.put_op("b", "2")],
            otherwise: vec![],
        })
        .await;
    assert!(nested(&response).is_some_and(|inner| inner.succeeded));
    assert_eq!(subject.value("inner").await.unwrap(), "saw nothing");
    let kvs = subject.range(subject.all(), None).await.unwrap();
    assert_eq!(kvs.iter().map(|kv| kv.mod_revision).collect::<Vec<_>>(), [response.revision; 3]);
}

pub(super) async fn nested_losers_fail_alone(subject: Subject) {
    subject.put("taken", "1").await;
    let create = |name: &str| {
        Op::Txn(Txn {
            compares: vec![Compare::CreateRevision(subject.key(name), 0)],
            then: vec![subject.put_op(name, "mine")],
            otherwise: vec![Op::Range(KeyRange::key(subject.key(name)))],
        })
    };
    let response = subject.run(vec![create("free"), create("taken"), create("also free")]).await;
    let won: Vec<bool> = response
        .responses
        .iter()
        .filter_map(|step| match step {
            OpResponse::Txn(inner) => Some((inner.succeeded, inner.revision)),
            OpResponse::Put | OpResponse::Deleted(_) | OpResponse::Range(_) => None,
        })
        .map(|(succeeded, revision)| {
            assert_eq!(revision, response.revision, "nested steps happen at the revision of the whole");
            succeeded
        })
        .collect();
    assert_eq!(won, [true, false, true]);
    assert_eq!(subject.value("taken").await.unwrap(), "1");
    assert_eq!(subject.value("also free").await.unwrap(), "mine");
}

pub(super) async fn one_of_many_creators_wins(subject: Subject) {
    let attempts = (0..20).map(|n| {
        subject.txn(Txn {
            compares: vec![Compare::CreateRevision(subject.key("a"), 0)],
            then: vec![subject.put_op("a", n.to_string())],
            otherwise: vec![],
        })
    });
    let winners = join_all(attempts).await.into_iter().filter(|response| response.succeeded).count();
    assert_eq!(winners, 1);
    assert_eq!(subject.get("a").await.unwrap().version, 1);
}

pub(super) async fn no_update_is_lost(subject: Subject) {
    subject.put("counter", "0").await;
    let increment = async || {
        loop {
            let kv = subject.get("counter").await.unwrap();
            let value: u32 = std::str::from_utf8(&kv.value).unwrap().parse().unwrap();
            let txn = Txn {
                compares: vec![Compare::ModRevision(kv.key, kv.mod_revision)],
                then: vec![subject.put_op("counter", (value + 1).to_string())],
                otherwise: vec![],
            };
            if subject.txn(txn).await.succeeded {
                break;
            }
        }
    };
    join_all((0..10).map(|_| increment())).await;
    assert_eq!(subject.value("counter").await.unwrap(), "10");
}

fn nested(response: &TxnResponse) -> Option<&TxnResponse> {
    response.responses.iter().find_map(|step| match step {
        OpResponse::Txn(inner) => Some(inner),
        OpResponse::Put | OpResponse::Deleted(_) | OpResponse::Range(_) => None,
    })
}
