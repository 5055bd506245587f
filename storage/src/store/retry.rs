//! Trying again, with a total budget, growing pauses with jitter, and back-pressure when the server
//! asks for it.
//!
//! Two kinds of waiting:
//!
//! - A request that failed waits for itself, each time about twice as long.
//! - When the server says SlowDown, *every* caller of this store waits: no request starts before a
//!   common instant. The pause grows while SlowDown goes on and shrinks with each success, so the
//!   rate of requests follows what the server takes. What waits here holds its flush, which holds
//!   its producers: back-pressure.
//!
//! An outage is two log lines, one when it begins and one when it ends, however many requests it
//! hits.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{ObjectMeta, Payload, Store};
use crate::error::{Operation, StoreError};
use crate::limits::{
    BULK_DELETES_AT_ONCE, DEFAULT_RETRY_BUDGET, DELETE_LEFT_BEHIND_RETRIES, DELETES_AT_ONCE, MAX_DELETE_KEYS,
    RETRY_BASE_BACKOFF, RETRY_MAX_BACKOFF, THROTTLE_BASE, THROTTLE_MAX, TROUBLE_CALM,
};
use crate::path::ObjectKey;

/// How long to keep trying, and with which pauses.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// All attempts of one request and the pauses between them.
    pub budget: Duration,
    /// The first pause.
    pub base_backoff: Duration,
    /// The longest pause.
    pub max_backoff: Duration,
    /// The first pause that SlowDown imposes on all callers.
    pub base_throttle: Duration,
    /// The longest pause that SlowDown imposes on all callers.
    pub max_throttle: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            budget: DEFAULT_RETRY_BUDGET,
            base_backoff: RETRY_BASE_BACKOFF,
            max_backoff: RETRY_MAX_BACKOFF,
            base_throttle: THROTTLE_BASE,
            max_throttle: THROTTLE_MAX,
        }
    }
}

/// A store that tries again what is worth trying again.
#[derive(Debug)]
pub struct Retrying {
    inner: Arc<dyn Store>,
    policy: RetryPolicy,
    shared: Mutex<Shared>,
}

/// What all callers of one store have in common.
#[derive(Debug)]
struct Shared {
    rng: StdRng,
    /// No request starts before this.
    not_before: Option<Instant>,
    /// How long the next SlowDown makes everybody wait; zero when all is well.
    throttle: Duration,
    trouble: Option<Trouble>,
}

/// A time during which requests fail.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    since: Instant,
    last_failure: Instant,
    failures: u64,
}

impl Retrying {
    /// Retries what is asked of `inner`. `seed` feeds the jitter.
    pub fn new(inner: Arc<dyn Store>, policy: RetryPolicy, seed: u64) -> Self {
        let shared = Shared {
            rng: StdRng::seed_from_u64(seed),
            not_before: None,
            throttle: Duration::ZERO,
            trouble: None,
        };
        Self { inner, policy, shared: Mutex::new(shared) }
    }

    /// Asks until there is an answer, the failure is final, or the budget is used up. If the
    /// outcome of any attempt is unknown, then so is the outcome of all: a later refusal does not
    /// undo a PUT whose answer was lost.
    async fn run<'a, T>(
        &self,
        operation: Operation,
        key: &str,
        ask: impl Fn() -> BoxFuture<'a, Result<T, StoreError>> + Send + Sync,
    ) -> Result<T, StoreError> {
        let deadline = Instant::now() + self.policy.budget;
        let mut pause = self.policy.base_backoff;
        let mut last_error: Option<StoreError> = None;
        loop {
            if !self.wait_for_turn(deadline).await {
                return Err(last_error.unwrap_or_else(|| StoreError::Throttled {
                    key: key.to_owned(),
                    operation,
                    message: "the pause that the server asked for is longer than this request can wait"
                        .to_owned(),
                }));
            }
            let error = match timeout_at(deadline, ask()).await {
                Ok(Ok(answer)) => {
                    self.note_answer();
                    return Ok(answer);
                }
                Ok(Err(error)) if error.is_retryable() => error,
                Ok(Err(error)) => {
                    self.note_answer();
                    return Err(error);
                }
                Err(_) => {
                    let before =
                        last_error.map(|error| format!("; before that: {error}")).unwrap_or_default();
                    let error = StoreError::Unavailable {
                        key: key.to_owned(),
                        operation,
                        message: format!("no answer within {:?}{before}", self.policy.budget),
                    };
                    self.note_failure(&error);
                    return Err(error);
                }
            };
            self.note_failure(&error);
            let error = match last_error {
                Some(unknown @ StoreError::Unavailable { .. }) => unknown,
                _ => error,
            };
            let wake = Instant::now() + self.jitter(pause);
            if wake >= deadline {
                return Err(error);
            }
            last_error = Some(error);
            sleep_until(wake).await;
            pause = (pause * 2).min(self.policy.max_backoff);
        }
    }

    /// Deletes what one request takes. A request that fails as a whole is tried again like any
    /// other one. What is left behind when others go is tried again only a few times: the store
    /// answers, and whoever deletes in bulk does not wait for one key.
    async fn delete_chunk(&self, keys: &[ObjectKey]) -> Vec<Result<(), StoreError>> {
        let deadline = Instant::now() + self.policy.budget;
        let mut pause = self.policy.base_backoff;
        let mut retries_left = None;
        let mut results: Vec<Option<Result<(), StoreError>>> = vec![None; keys.len()];
        let mut open: Vec<usize> = (0..keys.len()).collect();
        let unanswered = |key: &ObjectKey| StoreError::Unavailable {
            key: key.to_string(),
            operation: Operation::Delete,
            message: format!("no answer within {:?}", self.policy.budget),
        };
        while !open.is_empty() && self.wait_for_turn(deadline).await {
            let asked: Vec<ObjectKey> = open.iter().filter_map(|&at| keys.get(at).cloned()).collect();
            let Ok(answers) = timeout_at(deadline, self.inner.delete_many(&asked)).await else {
                // Whatever an earlier attempt was told, this one may have happened.
                if let Some(first) = asked.first() {
                    self.note_failure(&unanswered(first));
                }
                for at in open {
                    results[at] = None;
                }
                break;
            };
            let mut is_answered = false;
            let mut failure = None;
            let mut still_open = Vec::new();
            for (at, answer) in open.into_iter().zip(answers) {
                let Some(result) = results.get_mut(at) else { continue };
                match &answer {
                    Err(error) if error.is_retryable() => {
                        still_open.push(at);
                        if !matches!(failure, Some(StoreError::Throttled { .. })) {
                            failure = Some(error.clone());
                        }
                    }
                    _ => is_answered = true,
                }
                // As with other requests: a refusal does not undo what may have happened.
                if !matches!((&result, &answer), (Some(Err(StoreError::Unavailable { .. })), Err(_))) {
                    *result = Some(answer);
                }
            }
            open = still_open;
            let Some(failure) = failure else {
                self.note_answer();
                break;
            };
            if is_answered {
                retries_left.get_or_insert(DELETE_LEFT_BEHIND_RETRIES);
            }
            if retries_left.is_none() || matches!(failure, StoreError::Throttled { .. }) {
                self.note_failure(&failure);
            } else if is_answered {
                self.note_answer();
            }
            match &mut retries_left {
                Some(0) => break,
                Some(left) => *left -= 1,
                None => {}
            }
            let wake = Instant::now() + self.jitter(pause);
            if wake >= deadline {
                break;
            }
            sleep_until(wake).await;
            pause = (pause * 2).min(self.policy.max_backoff);
        }
        keys.iter().zip(results).map(|(key, result)| result.unwrap_or_else(|| Err(unanswered(key)))).collect()
    }

    /// Waits until requests may start again. False if that is after the deadline.
    async fn wait_for_turn(&self, deadline: Instant) -> bool {
        loop {
            let wake = {
                let mut shared = self.lock();
                match shared.not_before {
                    Some(not_before) if not_before > Instant::now() => {
                        // Those who wait do not all come back at the same instant.
                        let spread = shared.throttle.mul_f64(shared.rng.random_range(0.0..0.5));
                        not_before + spread
                    }
                    _ => return true,
                }
            };
            if wake >= deadline {
                return false;
            }
            sleep_until(wake).await;
        }
    }

    /// Between half of `pause` and all of it. Never zero, so that no loop is busy.
    fn jitter(&self, pause: Duration) -> Duration {
        let share = self.lock().rng.random_range(0.5..1.0);
        pause.mul_f64(share).max(Duration::from_millis(1))
    }

    fn note_failure(&self, error: &StoreError) {
        let now = Instant::now();
        let mut shared = self.lock();
        if matches!(error, StoreError::Throttled { .. }) {
            // Of many requests that are told at once, only the first makes the pause longer.
            if shared.not_before.is_none_or(|not_before| not_before <= now) {
                let grown = (shared.throttle * 2).clamp(self.policy.base_throttle, self.policy.max_throttle);
                shared.throttle = grown;
                shared.not_before = Some(now + grown);
            }
        }
        match &mut shared.trouble {
            Some(trouble) => {
                trouble.last_failure = now;
                trouble.failures += 1;
            }
            none => {
                *none = Some(Trouble { since: now, last_failure: now, failures: 1 });
                drop(shared);
                tracing::warn!(%error, "requests to the object store fail and are tried again");
            }
        }
    }

    fn note_answer(&self) {
        let now = Instant::now();
        let mut shared = self.lock();
        if shared.not_before.is_none_or(|not_before| not_before <= now) {
            shared.throttle /= 2;
            if shared.throttle < self.policy.base_throttle {
                shared.throttle = Duration::ZERO;
                shared.not_before = None;
            }
        }
        if let Some(trouble) = shared.trouble
            && now - trouble.last_failure >= TROUBLE_CALM
        {
            shared.trouble = None;
            drop(shared);
            let lasted = trouble.last_failure - trouble.since;
            tracing::info!(
                failures = trouble.failures,
                lasted_ms = u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX),
                "the object store answers again"
            );
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Store for Retrying {
    async fn put(&self, key: &ObjectKey, payload: Payload) -> Result<(), StoreError> {
        self.run(Operation::Put, key.as_str(), || self.inner.put(key, payload.clone())).await
    }

    async fn get(&self, key: &ObjectKey, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        self.run(Operation::Get, key.as_str(), || self.inner.get(key, range.clone())).await
    }

    async fn get_pieces(&self, key: &ObjectKey, range: Option<Range<u64>>) -> Result<Vec<Bytes>, StoreError> {
        self.run(Operation::Get, key.as_str(), || self.inner.get_pieces(key, range.clone())).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.run(Operation::Delete, key.as_str(), || self.inner.delete(key)).await
    }

    async fn delete_many(&self, keys: &[ObjectKey]) -> Vec<Result<(), StoreError>> {
        // What is refused on the way is deleted one by one from the next request on.
        if self.keys_per_delete() < 2 {
            let deletes: Vec<_> = keys.iter().map(|key| self.delete(key)).collect();
            return stream::iter(deletes).buffered(DELETES_AT_ONCE).collect().await;
        }
        let requests = keys.chunks(self.keys_per_delete().min(MAX_DELETE_KEYS));
        let requests: Vec<_> = requests.map(|keys| self.delete_chunk(keys).boxed()).collect();
        stream::iter(requests).buffered(BULK_DELETES_AT_ONCE).flat_map(stream::iter).collect().await
    }

    fn keys_per_delete(&self) -> usize {
        self.inner.keys_per_delete()
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&ObjectKey>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        self.run(Operation::List, prefix, || self.inner.list(prefix, start_after, limit)).await
    }
}

#[cfg(test)]
mod tests;
