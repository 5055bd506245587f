//! A store that fails on purpose, reproducibly: the same seed, plan and order of requests fail in
//! the same way.

use std::collections::VecDeque;
use std::future;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{ObjectMeta, Payload, Store};
use crate::error::{Operation, StoreError};
use crate::path::ObjectKey;

/// One thing that goes wrong with one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The request fails, and was not done.
    ErrorBefore,
    /// The request is done, and its answer is lost.
    ErrorAfter,
    /// SlowDown: not done, and fewer requests please.
    SlowDown,
    /// The credentials do not do.
    Denied,
    /// The request takes this much longer.
    Delay(Duration),
    /// No answer ever comes. The request is not done.
    Hang,
    /// A GET returns fewer bytes than it should, against the contract of [`Store`]: a caller must
    /// notice. Other requests fail after they were done.
    ShortAnswer,
    /// A GET returns one byte that is not what was written. Other requests pass.
    FlippedByte,
    /// A GET finds no object. Other requests pass.
    Missing,
}

/// How often what goes wrong, each as a probability between 0 and 1. The default is never.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct FaultPlan {
    /// See [`Fault::ErrorBefore`].
    pub error_before: f64,
    /// See [`Fault::ErrorAfter`].
    pub error_after: f64,
    /// See [`Fault::SlowDown`].
    pub slow_down: f64,
    /// See [`Fault::Denied`].
    pub denied: f64,
    /// See [`Fault::Hang`].
    pub hang: f64,
    /// See [`Fault::ShortAnswer`].
    pub short_answer: f64,
    /// See [`Fault::FlippedByte`].
    pub flipped_byte: f64,
    /// See [`Fault::Missing`].
    pub missing: f64,
    /// Objects whose deletion is always denied, by itself and among others.
    pub undeletable: Vec<ObjectKey>,
    /// Objects whose reading is always denied.
    pub unreadable: Vec<ObjectKey>,
    /// The store takes one request for each object that is deleted.
    pub one_by_one: bool,
    /// Added to every request, uniformly from this range; empty for none.
    pub delay: Range<Duration>,
    /// Only these operations are hit; all of them if empty.
    pub only: Vec<Operation>,
}

impl FaultPlan {
    /// A store that is gone: every request fails and none is done.
    pub fn outage() -> Self {
        Self { error_before: 1.0, ..Self::default() }
    }

    fn draw(&self, rng: &mut StdRng, operation: Operation) -> (Duration, Option<Fault>) {
        if !self.only.is_empty() && !self.only.contains(&operation) {
            return (Duration::ZERO, None);
        }
        let delay = if self.delay.is_empty() { Duration::ZERO } else { rng.random_range(self.delay.clone()) };
        let chances = [
            (self.error_before, Fault::ErrorBefore),
            (self.error_after, Fault::ErrorAfter),
            (self.slow_down, Fault::SlowDown),
            (self.denied, Fault::Denied),
            (self.hang, Fault::Hang),
            (self.short_answer, Fault::ShortAnswer),
            (self.flipped_byte, Fault::FlippedByte),
            (self.missing, Fault::Missing),
        ];
        let fault = chances.into_iter().find_map(|(chance, fault)| {
            // No draw for what is off, so that switching one fault on does not shift the others'
            // draws.
            (chance > 0.0 && rng.random_bool(chance.min(1.0))).then_some(fault)
        });
        (delay, fault)
    }
}

/// Changes what goes wrong while the store is in use. Clones change the same store.
#[derive(Clone, Debug)]
pub struct FaultHandle(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    rng: StdRng,
    plan: FaultPlan,
    /// What is certain to happen, to the next request of that operation.
    once: VecDeque<(Operation, Fault)>,
    injected: u64,
}

impl FaultHandle {
    /// From now on, this goes wrong.
    pub fn set(&self, plan: FaultPlan) {
        self.with(|state| state.plan = plan);
    }

    /// From now on, nothing goes wrong.
    pub fn clear(&self) {
        self.with(|state| {
            state.plan = FaultPlan::default();
            state.once.clear();
        });
    }

    /// This happens to the next request of that operation, whatever the plan; several wait for
    /// their turns.
    pub fn inject(&self, operation: Operation, fault: Fault) {
        self.with(|state| state.once.push_back((operation, fault)));
    }

    /// How many faults have happened, delays of the plan not counted.
    pub fn injected(&self) -> u64 {
        self.with(|state| state.injected)
    }

    fn draw(&self, operation: Operation) -> (Duration, Option<Fault>) {
        self.with(|state| {
            let certain = state.once.iter().position(|(waiting, _)| *waiting == operation);
            let certain = certain.and_then(|position| state.once.remove(position));
            let (delay, fault) = match certain {
                Some((_, fault)) => (Duration::ZERO, Some(fault)),
                None => state.plan.draw(&mut state.rng, operation),
            };
            state.injected += u64::from(fault.is_some());
            (delay, fault)
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A store with faults.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Store>,
    handle: FaultHandle,
}

impl Faulty {
    /// Wraps a store. Nothing goes wrong until the [`handle`](Self::handle) says so.
    pub fn new(inner: Arc<dyn Store>, seed: u64) -> Self {
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            plan: FaultPlan::default(),
            once: VecDeque::new(),
            injected: 0,
        };
        Self { inner, handle: FaultHandle(Arc::new(Mutex::new(state))) }
    }

    /// What changes the faults of this store.
    pub fn handle(&self) -> FaultHandle {
        self.handle.clone()
    }

    /// What happens before the request is done; the fault to apply to its answer, if any.
    async fn before(&self, operation: Operation, key: &str) -> Result<Option<Fault>, StoreError> {
        let (delay, fault) = self.handle.draw(operation);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let key = key.to_owned();
        let message = "injected fault".to_owned();
        match fault {
            Some(Fault::ErrorBefore) => Err(StoreError::Unavailable { key, operation, message }),
            Some(Fault::SlowDown) => Err(StoreError::Throttled { key, operation, message }),
            Some(Fault::Denied) => Err(StoreError::Denied { key, operation, message }),
            Some(Fault::Hang) => future::pending().await,
            Some(Fault::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                Ok(None)
            }
            Some(Fault::Missing) if operation == Operation::Get => Err(StoreError::NotFound { key }),
            Some(Fault::ErrorAfter | Fault::ShortAnswer | Fault::FlippedByte | Fault::Missing) | None => {
                Ok(fault)
            }
        }
    }

    fn check_readable(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.check_allowed(Operation::Get, key, |plan| &plan.unreadable)
    }

    fn check_deletable(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.check_allowed(Operation::Delete, key, |plan| &plan.undeletable)
    }

    fn check_allowed(
        &self,
        operation: Operation,
        key: &ObjectKey,
        denied: fn(&FaultPlan) -> &Vec<ObjectKey>,
    ) -> Result<(), StoreError> {
        if !self.handle.with(|state| denied(&state.plan).contains(key)) {
            return Ok(());
        }
        let message = "injected fault: this object is left alone".to_owned();
        Err(StoreError::Denied { key: key.to_string(), operation, message })
    }

    fn after<T>(
        fault: Option<Fault>,
        operation: Operation,
        key: &str,
        result: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match fault {
            Some(Fault::ErrorAfter | Fault::ShortAnswer) => Err(StoreError::Unavailable {
                key: key.to_owned(),
                operation,
                message: "injected fault: the answer is lost".to_owned(),
            }),
            _ => result,
        }
    }

    fn damage(&self, fault: Option<Fault>, bytes: Bytes) -> Bytes {
        if bytes.is_empty() {
            return bytes;
        }
        let place = self.handle.with(|state| state.rng.random_range(0..bytes.len()));
        match fault {
            Some(Fault::ShortAnswer) => bytes.slice(..place),
            Some(Fault::FlippedByte) => {
                // The stored object may share this buffer: only the answer is damaged.
                let mut damaged = BytesMut::from(&bytes[..]);
                if let Some(byte) = damaged.get_mut(place) {
                    *byte ^= 0x40;
                }
                damaged.freeze()
            }
            _ => bytes,
        }
    }
}

/// The same failure of another object of the same request.
fn of_key(error: &StoreError, other: &ObjectKey) -> StoreError {
    let mut error = error.clone();
    match &mut error {
        StoreError::NotFound { key }
        | StoreError::Throttled { key, .. }
        | StoreError::Denied { key, .. }
        | StoreError::Unavailable { key, .. }
        | StoreError::Corrupt { key, .. } => *key = other.to_string(),
        StoreError::Invalid { .. } => {}
    }
    error
}

#[async_trait]
impl Store for Faulty {
    async fn put(&self, key: &ObjectKey, payload: Payload) -> Result<(), StoreError> {
        let fault = self.before(Operation::Put, key.as_str()).await?;
        let result = self.inner.put(key, payload).await;
        Self::after(fault, Operation::Put, key.as_str(), result)
    }

    async fn get(&self, key: &ObjectKey, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        let fault = self.before(Operation::Get, key.as_str()).await?;
        self.check_readable(key)?;
        let result = self.inner.get(key, range).await;
        match fault {
            Some(Fault::ShortAnswer | Fault::FlippedByte) => result.map(|bytes| self.damage(fault, bytes)),
            _ => Self::after(fault, Operation::Get, key.as_str(), result),
        }
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let fault = self.before(Operation::Delete, key.as_str()).await?;
        self.check_deletable(key)?;
        let result = self.inner.delete(key).await;
        Self::after(fault, Operation::Delete, key.as_str(), result)
    }

    /// One request, so one fault for all of them.
    async fn delete_many(&self, keys: &[ObjectKey]) -> Vec<Result<(), StoreError>> {
        let Some(first) = keys.first() else { return Vec::new() };
        let fault = match self.before(Operation::Delete, first.as_str()).await {
            Ok(fault) => fault,
            Err(error) => return keys.iter().map(|key| Err(of_key(&error, key))).collect(),
        };
        let checked: Vec<_> = keys.iter().map(|key| self.check_deletable(key)).collect();
        let deletable: Vec<_> = keys
            .iter()
            .zip(&checked)
            .filter(|(_, checked)| checked.is_ok())
            .map(|(key, _)| key.clone())
            .collect();
        let mut results = self.inner.delete_many(&deletable).await.into_iter();
        let answers =
            checked.into_iter().map(|checked| checked.and_then(|()| results.next().unwrap_or(Ok(()))));
        keys.iter()
            .zip(answers)
            .map(|(key, result)| Self::after(fault, Operation::Delete, key.as_str(), result))
            .collect()
    }

    fn keys_per_delete(&self) -> usize {
        if self.handle.with(|state| state.plan.one_by_one) { 1 } else { self.inner.keys_per_delete() }
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&ObjectKey>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        let fault = self.before(Operation::List, prefix).await?;
        let result = self.inner.list(prefix, start_after, limit).await;
        Self::after(fault, Operation::List, prefix, result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{ObjectStoreBackend, conformance};

    fn faulty(seed: u64) -> (Faulty, ObjectKey) {
        (Faulty::new(Arc::new(ObjectStoreBackend::memory()), seed), ObjectKey::parse("wal/a").unwrap())
    }

    fn payload() -> Payload {
        Bytes::from_static(b"0123456789").into()
    }

    #[tokio::test]
    async fn without_faults_it_conforms() {
        let (store, _) = faulty(1);
        conformance::run(&store).await;
        assert_eq!(store.handle().injected(), 0);
    }

    #[tokio::test]
    async fn an_error_before_does_nothing_and_an_error_after_does_it() {
        let (store, key) = faulty(1);
        store.handle().inject(Operation::Put, Fault::ErrorBefore);
        assert!(store.put(&key, payload()).await.unwrap_err().is_retryable());
        assert!(matches!(store.get(&key, None).await, Err(StoreError::NotFound { .. })));
        store.handle().inject(Operation::Put, Fault::ErrorAfter);
        assert!(store.put(&key, payload()).await.unwrap_err().is_retryable());
        assert_eq!(store.get(&key, None).await.unwrap(), "0123456789");
        store.handle().inject(Operation::Delete, Fault::ErrorAfter);
        assert!(store.delete(&key).await.is_err());
        assert!(matches!(store.get(&key, None).await, Err(StoreError::NotFound { .. })));
    }

    #[tokio::test]
    async fn a_request_that_deletes_many_fails_as_a_whole_or_for_single_keys() {
        let (store, _) = faulty(1);
        let keys = ["a", "b", "c"].map(|key| ObjectKey::parse(key).unwrap());
        let exist = async || store.list("", None, 10).await.unwrap().len();
        for key in &keys {
            store.put(key, payload()).await.unwrap();
        }
        store.handle().inject(Operation::Delete, Fault::ErrorBefore);
        for (key, result) in keys.iter().zip(store.delete_many(&keys).await) {
            assert_eq!(result.unwrap_err().key(), Some(key.as_str()));
        }
        assert_eq!((exist().await, store.handle().injected()), (3, 1));
        store.handle().set(FaultPlan { undeletable: keys[1..2].to_vec(), ..FaultPlan::default() });
        let results = store.delete_many(&keys).await;
        assert!(matches!(&results[..], [Ok(()), Err(StoreError::Denied { .. }), Ok(())]), "{results:?}");
        assert!(store.delete(&keys[1]).await.is_err());
        assert_eq!(exist().await, 1);
        store.handle().clear();
        store.handle().inject(Operation::Delete, Fault::ErrorAfter);
        assert!(store.delete_many(&keys).await.iter().all(Result::is_err));
        assert_eq!(exist().await, 0);
    }

    #[tokio::test]
    async fn an_answer_is_damaged_and_the_object_is_not() {
        let (store, key) = faulty(1);
        store.put(&key, payload()).await.unwrap();
        store.handle().inject(Operation::Get, Fault::FlippedByte);
        let flipped = store.get(&key, None).await.unwrap();
        assert_eq!(flipped.len(), 10);
        assert_ne!(flipped, "0123456789");
        store.handle().inject(Operation::Get, Fault::ShortAnswer);
        assert!(store.get(&key, None).await.unwrap().len() < 10);
        store.handle().inject(Operation::Get, Fault::Missing);
        assert_eq!(store.get(&key, None).await, Err(StoreError::NotFound { key: "wal/a".into() }));
        assert_eq!(store.get(&key, None).await.unwrap(), "0123456789");
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_seed_fails_in_the_same_way() {
        async fn history(seed: u64) -> Vec<String> {
            let (store, key) = faulty(seed);
            store.put(&key, payload()).await.unwrap();
            store.handle().set(FaultPlan {
                error_before: 0.2,
                error_after: 0.2,
                slow_down: 0.1,
                denied: 0.1,
                short_answer: 0.1,
                flipped_byte: 0.2,
                missing: 0.1,
                delay: Duration::ZERO..Duration::from_millis(50),
                ..FaultPlan::default()
            });
            let begin = tokio::time::Instant::now();
            let mut seen = Vec::new();
            for _ in 0..100 {
                let answer = store.get(&key, None).await;
                seen.push(format!("{answer:?} at {:?}", begin.elapsed()));
            }
            seen
        }
        assert_eq!(history(1).await, history(1).await);
        assert_ne!(history(1).await, history(2).await);
    }

    #[tokio::test]
    async fn a_plan_hits_only_what_it_names() {
        let (store, key) = faulty(1);
        store.handle().set(FaultPlan { only: vec![Operation::Get], ..FaultPlan::outage() });
        store.put(&key, payload()).await.unwrap();
        assert!(store.get(&key, None).await.is_err());
        assert_eq!(store.handle().injected(), 1);
        store.handle().clear();
        store.get(&key, None).await.unwrap();
    }
}
