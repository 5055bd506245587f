//! What is counted of bounds: memory that connections share, connections and fetches that were cut,
//! and what clients can do.

use prometheus::{IntCounterVec, IntGaugeVec};

use super::registrar::Registrar;
use crate::Broker;

/// Counters and gauges of bounds.
#[derive(Debug)]
pub(crate) struct BoundMetrics {
    memory_used: IntGaugeVec,
    memory_limit: IntGaugeVec,
    memory_waits: IntCounterVec,
    connections_cut: IntCounterVec,
    fetches_cut: IntCounterVec,
    ready: IntGaugeVec,
}

impl BoundMetrics {
    pub(super) fn new(r: &Registrar<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            memory_used: r.gauges("memory_used_bytes", "Bytes that are taken of a budget", &["budget"])?,
            memory_limit: r.gauges("memory_limit_bytes", "Bytes that a budget has", &["budget"])?,
            memory_waits: r.counters(
                "memory_waits_total",
                "How often somebody had to wait for memory of a budget",
                &["budget"],
            )?,
            connections_cut: r.counters(
                "connections_cut_total",
                "Connections that this broker ended, by reason",
                &["reason"],
            )?,
            fetches_cut: r.counters(
                "fetches_cut_total",
                "Fetches that were answered with less than there was, by what was too little",
                &["reason"],
            )?,
            ready: r.gauges("ready", "1 while clients can do this here, as /readyz says", &["for"])?,
        })
    }

    /// This broker ended a connection.
    pub(crate) fn connection_cut(&self, reason: &'static str) {
        self.connections_cut.with_label_values(&[reason]).inc();
    }

    /// A fetch is answered without all that there is: its time is up, or memory for replies is
    /// short.
    pub(crate) fn fetch_cut(&self, reason: &'static str) {
        self.fetches_cut.with_label_values(&[reason]).inc();
    }

    pub(crate) fn ready(&self, capability: &'static str, is_ready: bool) {
        self.ready.with_label_values(&[capability]).set(i64::from(is_ready));
    }

    /// Looks up how much is taken of the budgets that connections share.
    pub(super) fn look(&self, broker: &Broker) {
        let (requests, replies, buffer) = (&broker.request_memory, &broker.reply_memory, &broker.buffer);
        let decoded = &broker.decoded_memory;
        let budgets = [
            ("small_requests", requests.small.used(), requests.small.limit(), requests.small.waits()),
            ("requests", requests.large.used(), requests.large.limit(), requests.large.waits()),
            ("decoded_requests", decoded.used(), decoded.limit(), decoded.waits()),
            ("responses", replies.used(), replies.limit(), replies.waits()),
            ("buffer", buffer.bytes_in_use(), buffer.limit(), buffer.waits()),
        ];
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        for (budget, used, limit, waits) in budgets {
            self.memory_used.with_label_values(&[budget]).set(number(used));
            self.memory_limit.with_label_values(&[budget]).set(number(limit));
            let counter = self.memory_waits.with_label_values(&[budget]);
            counter.inc_by(waits.saturating_sub(counter.get()));
        }
    }
}
