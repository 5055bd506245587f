//! The loop that reads the brokers' metrics and samples etcd. It runs by itself: no call ever
//! causes a scrape.
//!
//! Only configured targets are read, or, if there are none, the endpoints that brokers register, if
//! their host is an allowed one: a registration is written by a broker and read by us, and must not
//! lead us anywhere. No redirect is followed and no more than 8 MiB is read.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt as _;
use reqwest::{Client, Url};
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use super::etcd::{EtcdSource, Need};
use super::exposition::{self, Sample};
use super::history::{History, precise};
use super::progress::Progress;
use super::view::View;
use crate::clock::Clock;
use crate::config::{ConfigError, ScrapeConfig};
use crate::limits::{SCRAPE_BYTES, SCRAPE_TARGETS, SCRAPES_IN_FLIGHT};
use crate::metrics::Metrics;

/// Groups whose lag has a history.
pub const HISTORY_GROUPS: usize = 1_000;

/// A source's name, for a broker whose node id is known.
pub fn source_of(node_id: i32) -> String {
    format!("metrics:broker-{node_id}")
}

/// What the loop leaves behind. Clones share it.
#[derive(Clone, Debug)]
pub struct Samples {
    history: Arc<Mutex<History>>,
    progress: Arc<Mutex<Progress>>,
    /// Why registered endpoints are not read, by source.
    refused: Arc<Mutex<BTreeMap<String, String>>>,
    /// Groups whose lag had no room in the history.
    groups_left_out: Arc<AtomicUsize>,
    interval_ms: i64,
}

impl Samples {
    /// Nothing yet.
    pub fn new(config: &ScrapeConfig) -> Self {
        Self {
            history: Arc::new(Mutex::new(History::new(config.history_bytes))),
            progress: Arc::default(),
            refused: Arc::default(),
            groups_left_out: Arc::default(),
            interval_ms: i64::try_from(config.interval.as_millis()).unwrap_or(i64::MAX),
        }
    }

    /// The history of metrics. Never held over an await.
    pub fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far groups were. Never held over an await.
    pub fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registered endpoints that are not read, and why.
    pub fn refused(&self) -> BTreeMap<String, String> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Groups whose lag has no history, since there are more than are kept: those that come last in
    /// the order of ids.
    pub fn groups_left_out(&self) -> usize {
        self.groups_left_out.load(Ordering::Relaxed)
    }

    /// Between samples, in ms.
    pub fn interval_ms(&self) -> i64 {
        self.interval_ms
    }

    /// What is older than this says nothing about now, in ms.
    pub fn stale_ms(&self) -> i64 {
        self.interval_ms.saturating_mul(3)
    }
}

/// The loop.
#[derive(Debug)]
pub struct Scraper {
    config: ScrapeConfig,
    client: Client,
    etcd: EtcdSource,
    samples: Samples,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
}

impl Scraper {
    /// A loop that writes into `samples`.
    pub fn new(
        config: ScrapeConfig,
        etcd: EtcdSource,
        samples: Samples,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Self, ConfigError> {
        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(config.timeout)
            .connect_timeout(config.timeout)
            // Whatever the environment says: metrics are not fetched through a proxy.
            .no_proxy()
            .pool_max_idle_per_host(1)
            .build()
            .map_err(|e| ConfigError::new(format!("metrics_targets: {e}")))?;
        Ok(Self { config, client, etcd, samples, clock, metrics })
    }

    /// Reads until the end of the process.
    pub async fn run(self) {
        let mut ticks = interval(self.config.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.pass().await;
        }
    }

    /// One pass over all sources.
    pub async fn pass(&self) {
        // Etcd first: it says where the brokers are.
        let view = self.etcd.read(Need::ALL).await.ok();
        if let Some(view) = &view {
            self.samples.progress().push(view);
            self.note_lags(view);
        }
        let targets = match (&self.config.targets[..], view) {
            ([], None) => return,
            ([], Some(view)) => self.registered(&view),
            (configured, _) => configured_targets(configured),
        };
        let reads = targets.into_iter().map(|(source, url)| async move {
            let limit = self.config.timeout;
            let result = tokio::time::timeout(limit, self.read(url)).await;
            (
                source,
                result
                    .unwrap_or_else(|_| Err(("slow", format!("no answer within {} ms", limit.as_millis())))),
            )
        });
        let mut reads = futures::stream::iter(reads).buffer_unordered(SCRAPES_IN_FLIGHT);
        while let Some((source, result)) = reads.next().await {
            let now_ms = self.clock.now_ms();
            let mut history = self.samples.history();
            match result {
                Ok(sample) => {
                    self.metrics.scraped("ok");
                    history.push(&source, now_ms, &sample);
                }
                Err((outcome, error)) => {
                    self.metrics.scraped(outcome);
                    debug!(source, error, "metrics cannot be read");
                    history.failed(&source, now_ms, error);
                }
            }
        }
        let mut history = self.samples.history();
        history.forget(self.clock.now_ms());
        self.metrics.history_bytes.set(i64::try_from(history.bytes()).unwrap_or(i64::MAX));
        let counted = self.metrics.history_dropped.get();
        self.metrics.history_dropped.inc_by(history.dropped.saturating_sub(counted));
    }

    /// The total lag of each group, as a history of its own. What was never committed counts
    /// nothing; a group of which a part is unknown has a hole.
    fn note_lags(&self, view: &View) {
        let mut history = self.samples.history();
        let left_out = view.offsets.len().saturating_sub(HISTORY_GROUPS);
        self.samples.groups_left_out.store(left_out, Ordering::Relaxed);
        for (group, topics) in view.offsets.iter().take(HISTORY_GROUPS) {
            let mut total = Some(0);
            for (name, parts) in topics.iter() {
                let Some(id) = view.topics.get(name).map(|t| t.value.topic_id) else { continue };
                let commits =
                    parts.values().filter(|o| o.value.topic_id == id).flat_map(|o| &o.value.partitions);
                for (partition, commit) in commits {
                    let lag = view.marks(id, *partition).map(|m| (m.marks.end - commit.offset).max(0));
                    total = total.zip(lag).map(|(sum, lag)| sum + lag);
                }
            }
            if let Some(total) = total {
                let values = BTreeMap::from([(exposition::GROUP_LAG, precise(total))]);
                let sample = Sample { values, ..Sample::default() };
                history.push(&format!("group:{group}"), view.read_at_ms, &sample);
            }
        }
    }

    /// The endpoints that brokers register, as far as they may be read.
    fn registered(&self, view: &View) -> Vec<(String, Url)> {
        let (mut targets, mut refused) = (Vec::new(), BTreeMap::new());
        for (node_id, broker) in view.brokers.iter().take(SCRAPE_TARGETS) {
            match allowed(&broker.value.metrics_url, &self.config.hosts) {
                Ok(url) => targets.push((source_of(*node_id), url)),
                Err(why) => {
                    refused.insert(source_of(*node_id), why.to_owned());
                }
            }
        }
        *self.samples.refused.lock().unwrap_or_else(PoisonError::into_inner) = refused;
        targets
    }

    async fn read(&self, url: Url) -> Result<Sample, (&'static str, String)> {
        let failed = |error: reqwest::Error| {
            if error.is_timeout() {
                return ("slow", format!("no answer within {} ms", self.config.timeout.as_millis()));
            }
            let error = error.without_url();
            let cause =
                std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
            ("failed", format!("{error}{cause}"))
        };
        let mut response = self.client.get(url).send().await.map_err(failed)?;
        let status = response.status();
        if status.is_redirection() {
            return Err(("redirect", "it redirects, which is not followed".to_owned()));
        }
        if !status.is_success() {
            return Err(("failed", format!("status {}", status.as_u16())));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if bytes.len() + chunk.len() > SCRAPE_BYTES {
                return Err(("huge", format!("it has more than {SCRAPE_BYTES} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        let text = String::from_utf8(bytes).map_err(|_| ("garbage", "it is not text".to_owned()))?;
        exposition::parse(&text).map_err(|error| ("garbage", error))
    }
}

fn configured_targets(targets: &[crate::config::MetricsTarget]) -> Vec<(String, Url)> {
    let named = targets.iter().filter_map(|target| {
        let url = Url::parse(&target.url).ok()?;
        let source = match target.node_id {
            Some(node_id) => source_of(node_id),
            None => format!("metrics:{}:{}", url.host_str()?, url.port_or_known_default()?),
        };
        Some((source, url))
    });
    named.collect()
}

/// The URL of a registered endpoint, if its host is allowed.
fn allowed(registered: &str, hosts: &[String]) -> Result<Url, &'static str> {
    if registered.is_empty() {
        return Err("the broker registers no metrics endpoint");
    }
    let url = Url::parse(registered).map_err(|_| "the registered metrics endpoint is no URL")?;
    if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some() {
        return Err("the registered metrics endpoint is no plain http or https URL");
    }
    let host =
        url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    if hosts.iter().any(|pattern| matches(&pattern.to_ascii_lowercase(), &host)) {
        Ok(url)
    } else {
        Err("the host of the registered metrics endpoint is not an allowed one (metrics_hosts)")
    }
}

/// Whether `text` is of a pattern in which `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.get(at..).is_some_and(|rest| matches(tail, rest)))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_leads_only_to_allowed_hosts() {
        let hosts = ["127.0.0.1".to_owned(), "*.internal".to_owned(), "10.0.*".to_owned()];
        for good in ["http://127.0.0.1:9093/metrics", "https://B1.Internal/metrics", "http://10.0.3.4:1/m"] {
            assert!(allowed(good, &hosts).is_ok(), "{good}");
        }
        for bad in [
            "",
            "http://169.254.169.254/latest",
            "http://internal/metrics",
            "http://x.internal.evil/metrics",
            "file:///etc/passwd",
            "http://user:pass@127.0.0.1/metrics",
            "http://127.0.0.1.evil/metrics",
            "nothing",
        ] {
            assert!(allowed(bad, &hosts).is_err(), "{bad}");
        }
        assert!(matches("*", "") && matches("a*b*c", "axxbyyc") && !matches("a*b", "axbc"));
    }
}
