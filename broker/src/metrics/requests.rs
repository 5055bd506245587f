//! Limits that requests have reached, and how near the state is to its own.

use prometheus::{IntCounter, IntCounterVec, IntGauge};

use super::registrar::Registrar;
use crate::Broker;

/// What is counted of what requests ask for.
#[derive(Debug)]
pub(crate) struct RequestMetrics {
    compute_waits: IntCounterVec,
    producers_refused: IntCounter,
    partitions_refused: IntCounter,
    fetches_not_waited: IntCounter,
    fetch_sessions_refused: IntCounter,
    fetch_session_bytes: IntGauge,
    state_producers: IntGauge,
}

impl RequestMetrics {
    pub(super) fn new(r: &Registrar<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            compute_waits: r.counters(
                "compute_waits_total",
                "Pieces of work that waited for others of their kind, since a few are done at a time",
                &["kind"],
            )?,
            producers_refused: r.counter(
                "producers_refused_total",
                "Batches refused since the cluster remembers as many producers as it may (max_producers)",
            )?,
            partitions_refused: r.counter(
                "partitions_refused_total",
                "Requests refused since the cluster has as many partitions as it may (max_partitions)",
            )?,
            fetches_not_waited: r.counter(
                "fetches_not_waited_total",
                "Fetches answered early since those that wait take as much memory as they may",
            )?,
            fetch_sessions_refused: r.counter(
                "fetch_sessions_refused_total",
                "Fetches that got no session: there are too many, or they are too large, or a topic is unknown",
            )?,
            fetch_session_bytes: r
                .gauge("fetch_session_bytes", "Memory of incremental fetch sessions, about")?,
            state_producers: r.gauge(
                "state_producers",
                "Idempotent producers in the state, one for each partition that a producer writes to",
            )?,
        })
    }

    pub(crate) fn compute_waited(&self, kind: &str) {
        self.compute_waits.with_label_values(&[kind]).inc();
    }

    pub(crate) fn producer_refused(&self) {
        self.producers_refused.inc();
    }

    pub(crate) fn partitions_refused(&self) {
        self.partitions_refused.inc();
    }

    pub(crate) fn fetch_not_waited(&self) {
        self.fetches_not_waited.inc();
    }

    pub(crate) fn fetch_session_refused(&self) {
        self.fetch_sessions_refused.inc();
    }

    /// Takes over what is known now.
    pub(super) fn look(&self, broker: &Broker) {
        let producers = broker.replica.read(|view| view.state.producer_count());
        self.state_producers.set(i64::try_from(producers).unwrap_or(i64::MAX));
        self.fetch_session_bytes.set(i64::try_from(broker.fetch_sessions.bytes()).unwrap_or(i64::MAX));
    }
}
