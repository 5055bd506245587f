//! What is counted of transactions.

use prometheus::{IntCounter, IntCounterVec, IntGauge};

use super::registrar::Registrar;
use crate::Broker;

/// Counters and gauges of transactions.
#[derive(Debug)]
pub(crate) struct TransactionMetrics {
    producers: IntGauge,
    open: IntGauge,
    ended: IntCounterVec,
    timed_out: IntCounter,
}

impl TransactionMetrics {
    pub(super) fn new(r: &Registrar<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            producers: r.gauge("transactional_ids", "Transactional ids that have a producer")?,
            open: r.gauge("transactions_open", "Transactions that have not ended")?,
            ended: r.counters(
                "transactions_total",
                "Transactions that this broker has ended, by outcome: committed or aborted",
                &["outcome"],
            )?,
            timed_out: r.counter(
                "transactions_timed_out_total",
                "Transactions that this broker has aborted since they were open for too long",
            )?,
        })
    }

    pub(crate) fn ended(&self, is_commit: bool) {
        self.ended.with_label_values(&[if is_commit { "committed" } else { "aborted" }]).inc();
    }

    pub(crate) fn timed_out(&self) {
        self.timed_out.inc();
    }

    /// Looks everything else up now.
    pub(super) fn look(&self, broker: &Broker) {
        let state = broker.replica.state();
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.producers.set(gauge(state.transactional().len()));
        self.open.set(gauge(state.transactional().values().filter(|p| p.open.is_some()).count()));
    }
}
