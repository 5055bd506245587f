//! What the observer counts of itself. Names begin with `strandline_mcp_`. No label names a
//! principal, a topic or a group: `/metrics` needs no token.

use std::time::Duration;

use prometheus::{
    Encoder as _, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

/// Seconds, from a millisecond to ten seconds.
const SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Every metric of the observer. Clones share their numbers.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    calls: IntCounterVec,
    call_seconds: Histogram,
    refused: IntCounterVec,
    etcd_reads: IntCounterVec,
    etcd_seconds: Histogram,
    scrapes: IntCounterVec,
    pub(crate) audit_dropped: IntCounter,
    pub(crate) history_bytes: IntGauge,
    pub(crate) history_dropped: IntCounter,
}

/// Why a request did not become a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedFor {
    /// Foreign Host header.
    Host,
    /// Foreign Origin header.
    Origin,
    /// No token, or none that is known.
    Token,
    /// Too many failures of the address.
    Failures,
    /// Too many requests at a time.
    Busy,
    /// Too large.
    Size,
}

impl RefusedFor {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Origin => "origin",
            Self::Token => "token",
            Self::Failures => "failures",
            Self::Busy => "busy",
            Self::Size => "size",
        }
    }
}

impl Metrics {
    /// Registers every metric.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let name = |name: &str| format!("strandline_mcp_{name}");
        let counters = |n: &str, help: &str, labels: &[&str]| -> prometheus::Result<IntCounterVec> {
            let made = IntCounterVec::new(Opts::new(name(n), help), labels)?;
            registry.register(Box::new(made.clone()))?;
            Ok(made)
        };
        let counter = |n: &str, help: &str| -> prometheus::Result<IntCounter> {
            let made = IntCounter::new(name(n), help)?;
            registry.register(Box::new(made.clone()))?;
            Ok(made)
        };
        let gauge = |n: &str, help: &str| -> prometheus::Result<IntGauge> {
            let made = IntGauge::new(name(n), help)?;
            registry.register(Box::new(made.clone()))?;
            Ok(made)
        };
        let histogram = |n: &str, help: &str| -> prometheus::Result<Histogram> {
            let made = Histogram::with_opts(HistogramOpts::new(name(n), help).buckets(SECONDS.to_vec()))?;
            registry.register(Box::new(made.clone()))?;
            Ok(made)
        };
        Ok(Self {
            calls: counters("calls_total", "Calls of tools, by how they ended", &["tool", "outcome"])?,
            call_seconds: histogram("call_seconds", "From a call of a tool to its answer")?,
            refused: counters(
                "requests_refused_total",
                "Requests that did not become calls, by why",
                &["why"],
            )?,
            etcd_reads: counters("etcd_reads_total", "Range reads of etcd, by how they ended", &["outcome"])?,
            etcd_seconds: histogram("etcd_read_seconds", "Time of one range read of etcd")?,
            scrapes: counters(
                "scrapes_total",
                "Scrapes of brokers' metrics, by how they ended",
                &["outcome"],
            )?,
            audit_dropped: counter("audit_dropped_total", "Audit lines that had no room in the queue")?,
            history_bytes: gauge("history_bytes", "Memory that the history of metrics takes, about")?,
            history_dropped: counter("history_dropped_total", "Samples that had no room in the history")?,
            registry,
        })
    }

    pub(crate) fn called(&self, tool: &str, outcome: &str, took: Duration) {
        self.calls.with_label_values(&[tool, outcome]).inc();
        self.call_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn refused(&self, why: RefusedFor) {
        self.refused.with_label_values(&[why.as_str()]).inc();
    }

    pub(crate) fn etcd_read(&self, is_ok: bool, took: Duration) {
        self.etcd_reads.with_label_values(&[if is_ok { "ok" } else { "failed" }]).inc();
        self.etcd_seconds.observe(took.as_secs_f64());
    }

    /// Reads of etcd so far, whatever came of them.
    pub fn etcd_reads(&self) -> u64 {
        ["ok", "failed"].iter().map(|o| self.etcd_reads.with_label_values(&[o]).get()).sum()
    }

    pub(crate) fn scraped(&self, outcome: &str) {
        self.scrapes.with_label_values(&[outcome]).inc();
    }

    /// The text that `/metrics` serves.
    pub fn render(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}
