//! That each fault happens as it says, and that a seed repeats a run.

use super::*;
use crate::backend::embedded::Embedded;
use crate::backend::{Compare, Op, conformance};

fn put(value: &str) -> Txn {
    Txn { then: vec![Op::put("k", value.to_owned())], ..Txn::default() }
}

/// A faulty view of a store, its faults, and the store.
fn faulty(seed: u64) -> (FaultyBackend, Faults, Embedded) {
    let store = Embedded::in_memory();
    let faulty = FaultyBackend::new(Arc::new(store.clone()), seed);
    let faults = faulty.faults();
    (faulty, faults, store)
}

async fn version(store: &dyn ReadBackend) -> i64 {
    let request = RangeRequest { keys: KeyRange::key("k"), revision: None, limit: 0, keys_only: false };
    store.range(request).await.unwrap().kvs.first().map_or(0, |kv| kv.version)
}

/// Revisions of events until the store is silent.
async fn revisions(watch: &mut Box<dyn Watch>) -> Result<Vec<i64>, BackendError> {
    let mut revisions = Vec::new();
    loop {
        match tokio::time::timeout(Duration::from_secs(1), watch.next()).await {
            Ok(batch) => revisions.extend(batch?.events.iter().map(crate::backend::Event::revision)),
            Err(_) => return Ok(revisions),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_faults_it_conforms() {
    conformance::run_all(async || {
        let store = Arc::new(Embedded::in_memory());
        Arc::new(FaultyBackend::new(store, 1)) as Arc<dyn Backend>
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn each_call_fails_as_it_says() {
    let (faulty, faults, store) = faulty(1);
    faults.inject(Fault::Unavailable);
    assert!(matches!(faulty.txn(put("1")).await, Err(BackendError::Unavailable(_))));
    assert_eq!(version(&store).await, 0);
    faults.inject(Fault::NoSpace);
    assert_eq!(faulty.txn(put("1")).await.unwrap_err(), BackendError::NoSpace);
    assert_eq!(version(&store).await, 0);
    faults.inject(Fault::AnswerLost);
    assert!(matches!(faulty.txn(put("1")).await, Err(BackendError::OutcomeUnknown(_))));
    assert_eq!(version(&store).await, 1);
    faults.inject(Fault::NoSpaceBehind);
    assert_eq!(faulty.txn(put("1")).await.unwrap_err(), BackendError::NoSpace);
    assert_eq!(version(&store).await, 2);
    faults.inject(Fault::AnswerLost);
    assert!(matches!(faulty.lease_grant(5).await, Err(BackendError::OutcomeUnknown(_))));
    assert_eq!(faults.count(Fault::AnswerLost), 2);
    assert!(faulty.txn(put("2")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_transaction_is_executed_later() {
    let (faulty, faults, store) = faulty(1);
    let soon = Duration::from_secs(1);
    faults.set_plan(FaultPlan { later: soon..=soon, ..FaultPlan::default() });
    faults.inject(Fault::ExecutedLater);
    assert!(matches!(faulty.txn(put("late")).await, Err(BackendError::OutcomeUnknown(_))));
    assert_eq!((version(&store).await, faults.delayed()), (0, 1));
    // By the next call after its time, before that call,
    sleep(soon).await;
    assert_eq!(version(&store).await, 0);
    assert_eq!(version(&faulty).await, 1);
    // or by the task.
    faults.inject(Fault::ExecutedLater);
    assert!(faulty.txn(put("late")).await.is_err());
    let _ = tokio::time::timeout(2 * soon, faulty.run_delayed()).await.unwrap_err();
    assert_eq!((version(&store).await, faults.delayed()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn each_watch_fails_as_it_says() {
    let (faulty, faults, store) = faulty(1);
    let mut next = 2;
    for fault in [Fault::WatchGap, Fault::WatchStuck, Fault::WatchBroken, Fault::WatchCompacted] {
        let mut watch = faulty.watch(KeyRange::key("k"), next).await.unwrap();
        for _ in 0..3 {
            store.txn(put("v")).await.unwrap();
        }
        assert_eq!(revisions(&mut watch).await.unwrap(), [next, next + 1, next + 2], "{fault:?}");
        faults.inject(fault);
        store.txn(put("v")).await.unwrap();
        match (fault, revisions(&mut watch).await) {
            (Fault::WatchGap | Fault::WatchStuck, Ok(seen)) => assert_eq!(seen, [0; 0]),
            (Fault::WatchBroken, Err(error)) => assert!(error.to_string().contains("unavailable")),
            (Fault::WatchCompacted, Err(error)) => assert_eq!(error, BackendError::Compacted { oldest: 0 }),
            other => panic!("{other:?}"),
        }
        store.txn(put("v")).await.unwrap();
        next += 5;
        if fault == Fault::WatchGap {
            assert_eq!(revisions(&mut watch).await.unwrap(), [next - 1], "it goes on after the gap");
        }
        if fault == Fault::WatchStuck {
            let report = tokio::time::timeout(Duration::from_mins(1), watch.next()).await;
            assert!(report.is_err(), "not even progress");
        }
        assert_eq!(faults.count(fault), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn delays_delay() {
    let (faulty, faults, _store) = faulty(1);
    let second = Duration::from_secs(1);
    faults.set_plan(FaultPlan {
        call_delay: second..=2 * second,
        watch_delay: second..=second,
        ..FaultPlan::default()
    });
    let start = Instant::now();
    faulty.txn(put("1")).await.unwrap();
    assert!((second..=2 * second).contains(&start.elapsed()));
    let mut watch = faulty.watch(KeyRange::key("k"), 2).await.unwrap();
    let start = Instant::now();
    // Being cancelled while a batch is under way neither loses it nor makes it start again.
    let _ = tokio::time::timeout(second / 2, watch.next()).await.unwrap_err();
    assert_eq!(watch.next().await.unwrap().events.len(), 1);
    assert_eq!(start.elapsed(), second);
}

/// Increments by compare-and-set, sending again what is in doubt. Returns what happened on the way.
async fn count_to(goal: i64, seed: u64) -> Vec<(Fault, u64)> {
    let (faulty, faults, store) = faulty(seed);
    faults.set_plan(FaultPlan {
        unavailable: 0.1,
        answer_lost: 0.1,
        executed_later: 0.1,
        later: Duration::ZERO..=Duration::from_millis(50),
        call_delay: Duration::ZERO..=Duration::from_millis(10),
        ..FaultPlan::default()
    });
    let (mut done, mut newest, mut in_doubt) = (0, 0, false);
    while done < goal {
        let compares = vec![Compare::ModRevision("k".into(), newest)];
        match faulty.txn(Txn { compares, ..put(&done.to_string()) }).await {
            Ok(response) if response.succeeded => {
                (newest, done, in_doubt) = (response.revision, done + 1, false);
            }
            Ok(_) => {
                assert!(in_doubt, "nobody else counts");
                let request =
                    RangeRequest { keys: KeyRange::key("k"), revision: None, limit: 0, keys_only: false };
                newest = store.range(request).await.unwrap().kvs[0].mod_revision;
                (done, in_doubt) = (done + 1, false);
            }
            Err(BackendError::OutcomeUnknown(_)) => in_doubt = true,
            Err(BackendError::Unavailable(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    faults.heal();
    let _ = tokio::time::timeout(Duration::from_secs(1), faulty.run_delayed()).await.unwrap_err();
    assert_eq!(version(&store).await, goal, "each once");
    [Fault::Unavailable, Fault::AnswerLost, Fault::ExecutedLater]
        .map(|fault| (fault, faults.count(fault)))
        .into()
}

#[tokio::test(start_paused = true)]
async fn a_careful_caller_counts_right_and_a_seed_repeats() {
    let first = count_to(200, 7).await;
    assert!(first.iter().all(|(_, count)| *count > 5), "{first:?}");
    assert_eq!(count_to(200, 7).await, first);
    assert_ne!(count_to(200, 8).await, first);
}
