use futures::future::join_all;

use super::*;
use crate::store::{Fault, FaultHandle, FaultPlan, Faulty, ObjectStoreBackend, conformance};

fn retrying(seed: u64) -> (Retrying, FaultHandle) {
    let faulty = Faulty::new(Arc::new(ObjectStoreBackend::memory()), seed);
    let handle = faulty.handle();
    (Retrying::new(Arc::new(faulty), RetryPolicy::default(), seed), handle)
}

fn key() -> ObjectKey {
    ObjectKey::parse("wal/a").unwrap()
}

fn payload() -> Payload {
    Bytes::from_static(b"bytes").into()
}

#[tokio::test(start_paused = true)]
async fn a_faulty_store_conforms_behind_retries() {
    for seed in 0..10 {
        let (store, faults) = retrying(seed);
        faults.set(FaultPlan {
            error_before: 0.1,
            error_after: 0.1,
            slow_down: 0.05,
            denied: 0.05,
            ..FaultPlan::default()
        });
        conformance::run(&store).await;
        assert!(faults.injected() > 500, "seed {seed}: the faults did not happen");
    }
}

#[tokio::test(start_paused = true)]
async fn the_budget_is_kept_and_no_loop_is_busy() {
    let (store, faults) = retrying(1);
    for plan in [
        FaultPlan::outage(),
        FaultPlan { denied: 1.0, ..FaultPlan::default() },
        FaultPlan { slow_down: 1.0, ..FaultPlan::default() },
        FaultPlan { hang: 1.0, ..FaultPlan::default() },
    ] {
        faults.set(plan.clone());
        let (begin, before) = (Instant::now(), faults.injected());
        let error = store.put(&key(), payload()).await.unwrap_err();
        assert!(error.is_retryable(), "{plan:?}: {error}");
        assert!(begin.elapsed() <= DEFAULT_RETRY_BUDGET, "{plan:?}: {:?}", begin.elapsed());
        assert!(begin.elapsed() > DEFAULT_RETRY_BUDGET / 2, "{plan:?}: {:?}", begin.elapsed());
        let attempts = faults.injected() - before;
        assert!(attempts < 30, "{plan:?}: {attempts} attempts");
    }
}

#[tokio::test(start_paused = true)]
async fn a_final_error_is_not_retried() {
    let (store, faults) = retrying(1);
    faults.inject(Operation::Get, Fault::Missing);
    let begin = Instant::now();
    assert!(matches!(store.get(&key(), None).await, Err(StoreError::NotFound { .. })));
    assert!(matches!(store.get(&key(), Some(3..3)).await, Err(StoreError::Invalid { .. })));
    assert_eq!(begin.elapsed(), Duration::ZERO);
    assert_eq!(faults.injected(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_asked_for_again() {
    let (store, faults) = retrying(1);
    faults.inject(Operation::Put, Fault::ErrorAfter);
    faults.inject(Operation::Delete, Fault::ErrorAfter);
    store.put(&key(), payload()).await.unwrap();
    store.delete(&key()).await.unwrap();
    assert_eq!(faults.injected(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_does_not_hide_that_an_earlier_attempt_may_have_happened() {
    let (store, faults) = retrying(1);
    faults.inject(Operation::Put, Fault::ErrorAfter);
    faults.set(FaultPlan { denied: 1.0, ..FaultPlan::default() });
    let error = store.put(&key(), payload()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    let error = store.put(&key(), payload()).await.unwrap_err();
    assert!(matches!(error, StoreError::Denied { .. }), "{error}");
    faults.clear();
    assert_eq!(store.get(&key(), None).await.unwrap(), "bytes", "it did happen");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_until_the_end_may_have_happened() {
    let (store, faults) = retrying(1);
    faults.inject(Operation::Put, Fault::Denied);
    faults.inject(Operation::Put, Fault::Hang);
    let error = store.put(&key(), payload()).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Unavailable { message, .. } if message.contains("denied")),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn slow_down_makes_all_callers_wait() {
    let (store, faults) = retrying(1);
    store.put(&key(), payload()).await.unwrap();
    faults.inject(Operation::Put, Fault::SlowDown);
    let begin = Instant::now();
    let told = async {
        store.put(&key(), payload()).await.unwrap();
        begin.elapsed()
    };
    let other = async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        store.get(&key(), None).await.unwrap();
        begin.elapsed()
    };
    let (told, other) = futures::future::join(told, other).await;
    assert!(told >= THROTTLE_BASE, "{told:?}");
    assert!(other >= THROTTLE_BASE, "another caller did not wait: {other:?}");
    assert!(other < THROTTLE_BASE * 3, "{other:?}");
}

#[tokio::test(start_paused = true)]
async fn back_pressure_grows_while_it_lasts_and_goes_away() {
    let (store, faults) = retrying(1);
    store.put(&key(), payload()).await.unwrap();
    faults.set(FaultPlan { slow_down: 1.0, ..FaultPlan::default() });
    let before = faults.injected();
    let key = key();
    let requests = join_all((0..50).map(|_| store.get(&key, None))).await;
    assert!(requests.iter().all(Result::is_err));
    // 50 callers over 25 s. Alone each would have tried about nine times.
    let attempts = faults.injected() - before;
    assert!(attempts < 300, "{attempts} attempts although the server asked to slow down");
    assert_eq!(store.lock().throttle, THROTTLE_MAX);
    faults.clear();
    let begin = Instant::now();
    for _ in 0..20 {
        store.get(&key, None).await.unwrap();
    }
    assert!(begin.elapsed() < 2 * THROTTLE_MAX);
    assert_eq!(store.lock().throttle, Duration::ZERO);
    assert!(store.lock().not_before.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_remembered_from_its_beginning_to_its_calm_end() {
    let (store, faults) = retrying(1);
    store.put(&key(), payload()).await.unwrap();
    faults.set(FaultPlan::outage());
    let begin = Instant::now();
    for _ in 0..3 {
        store.get(&key(), None).await.unwrap_err();
    }
    faults.clear();
    let trouble = store.lock().trouble.unwrap();
    assert!(trouble.since - begin < Duration::from_millis(1));
    assert!(trouble.failures > 20);
    store.get(&key(), None).await.unwrap();
    assert!(store.lock().trouble.is_some(), "one answer is not yet calm");
    tokio::time::sleep(TROUBLE_CALM).await;
    store.get(&key(), None).await.unwrap();
    assert!(store.lock().trouble.is_none());
}

async fn put_many(store: &Retrying, count: usize) -> Vec<ObjectKey> {
    let keys: Vec<_> = (0..count).map(|n| ObjectKey::parse(&format!("wal/{n}")).unwrap()).collect();
    for key in &keys {
        store.put(key, payload()).await.unwrap();
    }
    keys
}

#[tokio::test(start_paused = true)]
async fn deleting_many_is_tried_again_as_a_whole_and_in_part() {
    let (store, faults) = retrying(1);
    let keys = put_many(&store, 5).await;
    for fault in [Fault::ErrorBefore, Fault::SlowDown, Fault::ErrorAfter] {
        faults.inject(Operation::Delete, fault);
    }
    assert_eq!(store.delete_many(&keys).await, vec![Ok(()); 5]);
    assert_eq!(faults.injected(), 3);
    // Another time that does not take long, since the others go.
    let keys = put_many(&store, 5).await;
    faults.set(FaultPlan { undeletable: keys[2..3].to_vec(), ..FaultPlan::default() });
    let begin = Instant::now();
    let results = store.delete_many(&keys).await;
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    for (at, result) in results.into_iter().enumerate() {
        assert_eq!(result.is_err(), at == 2, "{result:?}");
    }
    assert_eq!(store.list("", None, 10).await.unwrap().len(), 1);
    assert!(store.lock().trouble.is_none_or(|trouble| trouble.failures == 3), "one key is no trouble");
}

#[tokio::test(start_paused = true)]
async fn deleting_many_ends_within_the_budget() {
    let (store, faults) = retrying(1);
    let keys = put_many(&store, 3).await;
    for plan in [
        FaultPlan::outage(),
        FaultPlan { slow_down: 1.0, ..FaultPlan::default() },
        FaultPlan { hang: 1.0, ..FaultPlan::default() },
        FaultPlan { one_by_one: true, ..FaultPlan::outage() },
    ] {
        faults.set(plan.clone());
        let begin = Instant::now();
        let results = store.delete_many(&keys).await;
        assert!(begin.elapsed() <= DEFAULT_RETRY_BUDGET, "{plan:?}: {:?}", begin.elapsed());
        for (key, result) in keys.iter().zip(results) {
            let error = result.unwrap_err();
            assert!(error.is_retryable(), "{plan:?}: {error}");
            assert_eq!(error.key(), Some(key.as_str()), "{plan:?}: {error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn many_are_deleted_one_by_one_where_the_store_wants_that() {
    let (store, faults) = retrying(1);
    let keys = put_many(&store, 50).await;
    faults.set(FaultPlan { one_by_one: true, undeletable: keys[..1].to_vec(), ..FaultPlan::default() });
    assert_eq!(store.keys_per_delete(), 1);
    faults.inject(Operation::Delete, Fault::ErrorBefore);
    let results = store.delete_many(&keys).await;
    assert_eq!(results.iter().filter(|result| result.is_err()).count(), 1);
    assert_eq!(results[0].as_ref().unwrap_err().key(), Some("wal/0"));
    assert_eq!(store.list("", None, 100).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_waits_the_same_times() {
    async fn times(seed: u64) -> Vec<Duration> {
        let (store, faults) = retrying(seed);
        faults.set(FaultPlan { error_before: 0.7, slow_down: 0.2, ..FaultPlan::default() });
        let begin = Instant::now();
        let mut times = Vec::new();
        for _ in 0..20 {
            let _ = store.put(&key(), payload()).await;
            times.push(begin.elapsed());
        }
        times
    }
    assert_eq!(times(3).await, times(3).await);
    assert_ne!(times(3).await, times(4).await);
}
