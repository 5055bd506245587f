//! Every metric of this crate, with its unit and its help. A call site says what happened, not
//! which label.
//!
//! `strandline_object_store_requests_total` counts attempts, retries included: that is what a bill
//! is made of. With S3's prices, PUT and LIST are one class, GET another, and DELETE is free.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::cache::Pool;
use crate::error::{Operation, StoreError};
use crate::limits::UNHEALTHY_AFTER_FAILURES;
use crate::store::Health;

/// Upper bounds of the latency buckets in seconds, from a server in memory to one in trouble.
const LATENCY_BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// How an attempt of a request ended. Its name is the `outcome` label.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Ok,
    NotFound,
    Throttled,
    Denied,
    Unavailable,
    Corrupt,
    Invalid,
    /// The caller went away before the answer came.
    Cancelled,
}

impl Outcome {
    const ALL: [Self; 8] = [
        Self::Ok,
        Self::NotFound,
        Self::Throttled,
        Self::Denied,
        Self::Unavailable,
        Self::Corrupt,
        Self::Invalid,
        Self::Cancelled,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NotFound => "not_found",
            Self::Throttled => "throttled",
            Self::Denied => "denied",
            Self::Unavailable => "unavailable",
            Self::Corrupt => "corrupt",
            Self::Invalid => "invalid",
            Self::Cancelled => "cancelled",
        }
    }

    pub(crate) fn of<T>(result: &Result<T, StoreError>) -> Self {
        match result {
            Ok(_) => Self::Ok,
            Err(StoreError::NotFound { .. }) => Self::NotFound,
            Err(StoreError::Throttled { .. }) => Self::Throttled,
            Err(StoreError::Denied { .. }) => Self::Denied,
            Err(StoreError::Unavailable { .. }) => Self::Unavailable,
            Err(StoreError::Corrupt { .. }) => Self::Corrupt,
            Err(StoreError::Invalid { .. }) => Self::Invalid,
        }
    }
}

/// What became of a read that asked the cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CacheOutcome {
    /// The block was there.
    Hit,
    /// The block is fetched.
    Miss,
    /// The block was already being fetched for somebody else.
    Joined,
}

impl CacheOutcome {
    const ALL: [Self; 3] = [Self::Hit, Self::Miss, Self::Joined];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Joined => "joined",
        }
    }
}

/// The metrics of stores and caches. Clones share their numbers.
#[derive(Clone, Debug)]
pub struct StorageMetrics {
    operations: [OperationMetrics; Operation::ALL.len()],
    healthy: IntGauge,
    state_since: IntGauge,
    health: Arc<Mutex<HealthState>>,
    cache_requests: [IntCounter; CacheOutcome::ALL.len()],
    cache_bytes: [IntGauge; Pool::ALL.len()],
    cache_evictions: [IntCounter; Pool::ALL.len()],
    index_requests: [IntCounter; CacheOutcome::ALL.len()],
    index_bytes: IntGauge,
    left_behind: IntCounter,
    wrong_objects: IntCounter,
}

#[derive(Clone, Debug)]
struct OperationMetrics {
    requests: [IntCounter; Outcome::ALL.len()],
    seconds: Histogram,
    bytes: IntCounter,
}

#[derive(Debug)]
struct HealthState {
    now: Health,
    failures_in_a_row: u32,
    first_failure_ms: i64,
}

impl StorageMetrics {
    /// Registers all metrics of this crate.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let requests = counters(
            registry,
            "strandline_object_store_requests_total",
            "Requests to the object store, every attempt counted, by operation and outcome.",
            &["operation", "outcome"],
        )?;
        let seconds = HistogramVec::new(
            HistogramOpts::new(
                "strandline_object_store_request_seconds",
                "Time until the object store has answered in full, every attempt by itself.",
            )
            .buckets(LATENCY_BUCKETS.to_vec()),
            &["operation"],
        )?;
        let bytes = counters(
            registry,
            "strandline_object_store_bytes_total",
            "Bytes of objects sent to (put) and received from (get) the object store.",
            &["operation"],
        )?;
        let healthy = gauge(
            registry,
            "strandline_object_store_healthy",
            "1 while the object store answers, 0 after several failures in a row.",
        )?;
        let state_since = gauge(
            registry,
            "strandline_object_store_state_since_seconds",
            "Unix time since when the object store is healthy or not.",
        )?;
        let cache_requests = counters(
            registry,
            "strandline_cache_requests_total",
            "Blocks that readers asked for: hit, miss (a GET follows), joined (somebody's GET is shared).",
            &["outcome"],
        )?;
        let cache_bytes = IntGaugeVec::new(
            Opts::new("strandline_cache_bytes", "Bytes of objects in the cache, by pool."),
            &["pool"],
        )?;
        let cache_evictions = counters(
            registry,
            "strandline_cache_evictions_total",
            "Entries that were dropped to make room, by pool.",
            &["pool"],
        )?;
        let index_requests = counters(
            registry,
            "strandline_merged_index_requests_total",
            "Indexes of merged objects that readers asked for: hit, miss (a GET follows), joined (somebody's GET is shared).",
            &["outcome"],
        )?;
        let index_bytes = gauge(
            registry,
            "strandline_merged_index_bytes",
            "Bytes of the indexes of merged objects that are kept in memory.",
        )?;
        let left_behind = counter(
            registry,
            "strandline_object_store_left_behind_total",
            "Objects that a request for deleting many did not delete, every attempt counted.",
        )?;
        let wrong_objects = counter(
            registry,
            "strandline_wrong_objects_total",
            "Objects that were read and whose footer says that they are other ones: the bucket's objects were exchanged.",
        )?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(cache_bytes.clone()))?;
        healthy.set(1);
        Ok(Self {
            operations: Operation::ALL.map(|operation| OperationMetrics {
                requests: Outcome::ALL
                    .map(|outcome| requests.with_label_values(&[operation.as_str(), outcome.as_str()])),
                seconds: seconds.with_label_values(&[operation.as_str()]),
                bytes: bytes.with_label_values(&[operation.as_str()]),
            }),
            healthy,
            state_since,
            health: Arc::new(Mutex::new(HealthState {
                now: Health { healthy: true, since_ms: 0 },
                failures_in_a_row: 0,
                first_failure_ms: 0,
            })),
            cache_requests: CacheOutcome::ALL
                .map(|outcome| cache_requests.with_label_values(&[outcome.as_str()])),
            cache_bytes: Pool::ALL.map(|pool| cache_bytes.with_label_values(&[pool.as_str()])),
            cache_evictions: Pool::ALL.map(|pool| cache_evictions.with_label_values(&[pool.as_str()])),
            index_requests: CacheOutcome::ALL
                .map(|outcome| index_requests.with_label_values(&[outcome.as_str()])),
            index_bytes,
            left_behind,
            wrong_objects,
        })
    }

    /// Metrics that nobody collects, for tests.
    ///
    /// # Panics
    ///
    /// Never: the names are valid, and a new registry holds no others.
    pub fn unregistered() -> Self {
        Self::new(&Registry::new()).expect("a new registry takes every valid metric")
    }

    /// Whether the object store answers, and since when.
    pub fn health(&self) -> Health {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).now
    }

    /// Says when watching began.
    pub(crate) fn observe_start(&self, now_ms: i64) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        health.now = Health { healthy: true, since_ms: now_ms };
        self.publish(health.now);
    }

    /// Counts one attempt of a request.
    pub(crate) fn observe_request(
        &self,
        operation: Operation,
        outcome: Outcome,
        took: Duration,
        now_ms: i64,
    ) {
        let Some(metrics) = self.operations.get(operation as usize) else { return };
        if let Some(counter) = metrics.requests.get(outcome as usize) {
            counter.inc();
        }
        if outcome != Outcome::Cancelled {
            metrics.seconds.observe(took.as_secs_f64());
        }
        self.observe_health(outcome, now_ms);
    }

    /// Counts bytes of an object that were sent or received.
    pub(crate) fn observe_bytes(&self, operation: Operation, bytes: u64) {
        if let Some(metrics) = self.operations.get(operation as usize) {
            metrics.bytes.inc_by(bytes);
        }
    }

    fn observe_health(&self, outcome: Outcome, now_ms: i64) {
        let failed = match outcome {
            Outcome::Throttled | Outcome::Denied | Outcome::Unavailable | Outcome::Invalid => true,
            // The server did answer.
            Outcome::Ok | Outcome::NotFound | Outcome::Corrupt => false,
            Outcome::Cancelled => return,
        };
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        if !failed {
            health.failures_in_a_row = 0;
            if !health.now.healthy {
                health.now = Health { healthy: true, since_ms: now_ms };
                self.publish(health.now);
            }
            return;
        }
        if health.failures_in_a_row == 0 {
            health.first_failure_ms = now_ms;
        }
        health.failures_in_a_row = health.failures_in_a_row.saturating_add(1);
        if health.now.healthy && health.failures_in_a_row >= UNHEALTHY_AFTER_FAILURES {
            health.now = Health { healthy: false, since_ms: health.first_failure_ms };
            self.publish(health.now);
        }
    }

    fn publish(&self, health: Health) {
        self.healthy.set(i64::from(health.healthy));
        self.state_since.set(health.since_ms.div_euclid(1000));
    }

    pub(crate) fn observe_cache(&self, outcome: CacheOutcome) {
        if let Some(counter) = self.cache_requests.get(outcome as usize) {
            counter.inc();
        }
    }

    pub(crate) fn observe_left_behind(&self, objects: u64) {
        self.left_behind.inc_by(objects);
    }

    pub(crate) fn observe_index(&self, outcome: CacheOutcome) {
        if let Some(counter) = self.index_requests.get(outcome as usize) {
            counter.inc();
        }
    }

    pub(crate) fn set_index_bytes(&self, bytes: u64) {
        self.index_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    pub(crate) fn set_cache_bytes(&self, pool: Pool, bytes: u64) {
        if let Some(gauge) = self.cache_bytes.get(pool as usize) {
            gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }

    pub(crate) fn observe_evictions(&self, pool: Pool, entries: u64) {
        if let Some(counter) = self.cache_evictions.get(pool as usize) {
            counter.inc_by(entries);
        }
    }

    pub(crate) fn observe_wrong_object(&self) {
        self.wrong_objects.inc();
    }

    /// How many objects were other ones than they should be.
    pub fn wrong_objects(&self) -> u64 {
        self.wrong_objects.get()
    }

    /// How many attempts ended like this, for tests.
    #[cfg(test)]
    pub(crate) fn requests(&self, operation: Operation, outcome: Outcome) -> u64 {
        self.operations[operation as usize].requests[outcome as usize].get()
    }

    /// How many objects were left behind, for tests.
    #[cfg(test)]
    pub(crate) fn left_behind(&self) -> u64 {
        self.left_behind.get()
    }

    /// How many requests for an index ended like this, for tests.
    #[cfg(test)]
    pub(crate) fn index_requests(&self, outcome: CacheOutcome) -> u64 {
        self.index_requests[outcome as usize].get()
    }

    /// How many reads of the cache ended like this, for tests.
    #[cfg(test)]
    pub(crate) fn cache_requests(&self, outcome: CacheOutcome) -> u64 {
        self.cache_requests[outcome as usize].get()
    }
}

/// Registered counters, one for each value of the labels.
fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(counters.clone()))?;
    Ok(counters)
}

/// A registered counter without labels.
fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    let counter = IntCounter::new(name, help)?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}

/// A registered gauge without labels.
fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    let gauge = IntGauge::new(name, help)?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(registry: &Registry) -> String {
        prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    #[test]
    fn labels_are_at_their_discriminants() {
        for (position, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, position);
        }
        for (position, outcome) in CacheOutcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, position);
        }
        for (position, pool) in Pool::ALL.into_iter().enumerate() {
            assert_eq!(pool as usize, position);
        }
    }

    #[test]
    fn what_happened_is_in_the_exposition() {
        let registry = Registry::new();
        let metrics = StorageMetrics::new(&registry).unwrap();
        metrics.observe_request(Operation::Put, Outcome::Throttled, Duration::from_millis(20), 0);
        metrics.observe_bytes(Operation::Put, 4096);
        metrics.observe_cache(CacheOutcome::Joined);
        metrics.observe_index(CacheOutcome::Miss);
        metrics.set_index_bytes(88);
        metrics.set_cache_bytes(Pool::CatchUp, 77);
        metrics.observe_evictions(Pool::Tail, 3);
        let text = text(&registry);
        for line in [
            r#"strandline_object_store_requests_total{operation="put",outcome="throttled"} 1"#,
            r#"strandline_object_store_request_seconds_bucket{operation="put",le="0.025"} 1"#,
            r#"strandline_object_store_bytes_total{operation="put"} 4096"#,
            r#"strandline_cache_requests_total{outcome="joined"} 1"#,
            r#"strandline_merged_index_requests_total{outcome="miss"} 1"#,
            "strandline_merged_index_bytes 88",
            r#"strandline_cache_bytes{pool="catch_up"} 77"#,
            r#"strandline_cache_evictions_total{pool="tail"} 3"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn registering_twice_is_an_error() {
        let registry = Registry::new();
        StorageMetrics::new(&registry).unwrap();
        assert!(StorageMetrics::new(&registry).is_err());
    }

    #[test]
    fn health_says_since_when() {
        let registry = Registry::new();
        let metrics = StorageMetrics::new(&registry).unwrap();
        let see = |outcome, now_ms| metrics.observe_request(Operation::Get, outcome, Duration::ZERO, now_ms);
        metrics.observe_start(1_000);
        see(Outcome::Unavailable, 5_000);
        see(Outcome::NotFound, 6_000);
        assert_eq!(metrics.health(), Health { healthy: true, since_ms: 1_000 }, "one failure is no outage");
        see(Outcome::Unavailable, 7_000);
        see(Outcome::Cancelled, 8_000);
        see(Outcome::Denied, 9_000);
        see(Outcome::Throttled, 10_000);
        see(Outcome::Throttled, 11_000);
        assert_eq!(metrics.health(), Health { healthy: false, since_ms: 7_000 }, "since the first failure");
        assert!(text(&registry).contains("strandline_object_store_healthy 0"));
        assert!(text(&registry).contains("strandline_object_store_state_since_seconds 7\n"));
        see(Outcome::Ok, 20_000);
        assert_eq!(metrics.health(), Health { healthy: true, since_ms: 20_000 });
        assert!(text(&registry).contains("strandline_object_store_healthy 1"));
    }
}
