//! What a diagnosis rests on, collected from etcd, the history of metrics and the changes that were
//! seen.
//!
//! Nothing is judged here: [`crate::diagnose`] does that. What is not known is noted as missing,
//! with why.

pub(super) mod group;
mod transactions;

use serde_json::{Value, json};

use super::answer::SourceStatus;
use super::cluster::lost_brokers;
use super::figures::{self, Figures};
use super::{Call, ToolError};
use crate::diagnose::bounds::{RESTARTS, WATCH_LAG};
use crate::diagnose::{Evidence, Exhibits, Status};
use crate::foreign::clean;
use crate::source::changes::Family;
use crate::source::history::{Window, precise};
use crate::source::scrape::source_of;
use crate::source::view::View;

/// Names in one piece of evidence.
const NAMES: usize = 20;
/// What "before" is for latencies, in ms: the hour before the window.
const BEFORE_MS: i64 = 3_600_000;
/// How far back it is looked for since when something is so, in ms.
const DAY_MS: i64 = 86_400_000;

/// Evidence of one question while it is collected.
#[derive(Clone, Debug)]
pub(super) struct Collected {
    pub(super) exhibits: Exhibits,
    pub(super) window: Window,
    /// When etcd was read.
    pub(super) read_at_ms: Option<i64>,
    now_ms: i64,
    samples: Option<usize>,
    metrics_status: Status,
}

impl Collected {
    pub(super) fn new(call: &Call<'_>, window: Window, view: Option<&View>) -> Self {
        let is_whole = figures::sources(call).iter().all(|s| s.status == SourceStatus::Ok);
        Self {
            exhibits: Exhibits::default(),
            window,
            read_at_ms: view.map(|v| v.read_at_ms),
            now_ms: call.now_ms,
            samples: call.meta.window.map(|w| w.samples),
            metrics_status: if is_whole { Status::Ok } else { Status::Partial },
        }
    }

    /// What etcd says, as of one revision.
    pub(super) fn exact(&mut self, id: &str, value: Value) {
        self.exhibits.put(Evidence {
            id: id.to_owned(),
            source: "etcd".to_owned(),
            window: None,
            samples: None,
            observed_at_ms: self.read_at_ms.or(Some(self.now_ms)),
            status: Status::Ok,
            value,
        });
    }

    /// What changes or earlier reads of etcd say over a time.
    pub(super) fn over(&mut self, id: &str, source: &str, span: (i64, i64), value: Value) {
        self.exhibits.put(Evidence {
            id: id.to_owned(),
            source: source.to_owned(),
            window: Some(span),
            samples: None,
            observed_at_ms: Some(self.now_ms),
            status: Status::Ok,
            value,
        });
    }

    /// What the brokers' metrics say over the window.
    pub(super) fn metric(&mut self, id: &str, value: Option<f64>) {
        let value = value.map_or(Value::Null, Value::from);
        self.measured(id, self.window, value);
    }

    fn measured(&mut self, id: &str, window: Window, value: Value) {
        self.exhibits.put(Evidence {
            id: id.to_owned(),
            source: "metrics".to_owned(),
            window: Some((window.start_ms, window.end_ms)),
            samples: self.samples,
            observed_at_ms: Some(self.now_ms),
            status: self.metrics_status,
            value,
        });
    }

    pub(super) fn miss(&mut self, id: &str, source: &str, reason: &str) {
        self.exhibits.miss(id, source, reason);
    }
}

/// A list of names, cut where it is too long.
pub(super) fn names(all: impl IntoIterator<Item = String>) -> Value {
    all.into_iter().take(NAMES).map(|n| clean(&n)).collect::<Vec<_>>().into()
}

/// The object store, as the brokers of these figures see it.
pub(super) fn storage(into: &mut Collected, figures: &Figures) {
    let levels = figures.levels("s3_healthy");
    let scraped = u32::try_from(levels.len()).ok().filter(|n| *n > 0).map(f64::from);
    let failing = u32::try_from(levels.iter().filter(|l| **l < 0.5).count()).ok().map(f64::from);
    into.metric("s3.scraped_brokers", scraped);
    into.metric("s3.failing_brokers", failing.filter(|_| scraped.is_some()));
    into.metric("s3.error_rate", figures.ratio("s3_errors", &["s3_requests"]));
    into.metric("s3.throttled_per_s", figures.rate("s3_throttled"));
    into.metric("s3.denied_per_s", figures.rate("s3_denied"));
    into.metric("s3.put_per_s", figures.rate("s3_put_requests"));
    into.metric("s3.get_per_s", figures.rate("s3_get_requests"));
    into.metric("s3.put_p50_ms", figures.percentile_ms("s3_put_latency", 0.5));
    into.metric("s3.put_p99_ms", figures.percentile_ms("s3_put_latency", 0.99));
    into.metric("s3.get_p99_ms", figures.percentile_ms("s3_get_latency", 0.99));
    into.metric("s3.put_failures", figures.appeared("put_failures"));
    into.metric("s3.read_failures", figures.growth("read_failures"));
    let before = Window { start_ms: into.window.start_ms - BEFORE_MS, end_ms: into.window.start_ms };
    let was = figures.over(before).percentile_ms("s3_put_latency", 0.5);
    into.measured("s3.put_p50_before_ms", before, was.map_or(Value::Null, Value::from));
}

/// Brokers, etcd, what cannot be read.
pub(super) fn cluster(call: &Call<'_>, into: &mut Collected, view: Option<&View>, figures: &Figures) {
    into.exact("etcd.reachable", view.is_some().into());
    match view {
        Some(view) => {
            registrations(call, into, view);
            transactions::cluster(call, into, view);
        }
        None => into.miss("brokers.registered", "etcd", "etcd cannot be read"),
    }
    let named = |(name, _): &(String, Figures)| name.trim_start_matches("metrics:").to_owned();
    let each = figures.each();
    if each.is_empty() {
        into.miss("brokers.unregistered", "metrics", "no metrics of any broker are known");
        into.miss("brokers.behind", "metrics", "no metrics of any broker are known");
    } else {
        let says_not = each.iter().filter(|(_, f)| f.level("registered").is_some_and(|l| l < 0.5));
        let behind =
            each.iter().filter(|(_, f)| f.level("watch_lag_revisions").is_some_and(|l| l >= WATCH_LAG));
        let (says_not, behind) = (names(says_not.map(named)), names(behind.map(named)));
        into.measured("brokers.unregistered", into.window, says_not);
        into.measured("brokers.behind", into.window, behind);
    }
    into.metric("commit.p99_ms", figures.percentile_ms("commit_latency", 0.99));
    into.metric("commit.per_s", figures.rate("flushes"));
    into.metric("commit.failures", figures.appeared("commit_failures"));
    into.metric("transactions.timed_out", figures.growth("transactions_timed_out"));
    let day = figures.over(Window { start_ms: into.window.end_ms - DAY_MS, ..into.window });
    into.metric("produce.slowed_by_state_s", day.above_zero_s("state_slowed"));
    into.metric("produce.slowed_by_etcd_s", day.above_zero_s("etcd_pause_s"));
    blind(call, into);
    if let Some(end) = call.principal.expires_at_ms {
        let left = precise((end - call.now_ms).max(0)) / 1000.0;
        into.over("access.token_ends_in_s", "observer", (call.now_ms, end), left.into());
    }
}

/// Sources of metrics that cannot be read.
pub(super) fn blind(call: &Call<'_>, into: &mut Collected) {
    let sources = figures::sources(call);
    let blind = sources.iter().filter(|s| s.status != SourceStatus::Ok).map(|s| s.name.clone());
    let value = names(blind);
    into.over("metrics.blind", "observer", (into.window.start_ms, into.window.end_ms), value);
}

fn registrations(call: &Call<'_>, into: &mut Collected, view: &View) {
    let took = call.observer.etcd.health().last_took_ms;
    into.exact("etcd.read_ms", json!(took));
    into.exact("brokers.registered", names(view.brokers.keys().map(ToString::to_string)));
    let leaving = view.brokers.values().filter(|b| b.value.draining).map(|b| b.value.node_id.to_string());
    into.exact("brokers.draining", names(leaving));
    if !view.topics.is_empty() {
        into.exact("jobs.held", view.leaders.contains_key("jobs").into());
    }
    let Some(since) = call.observer.changes.since_ms(&[Family::Broker]) else {
        into.miss("brokers.lost", "changes", "changes are not watched yet");
        into.miss("brokers.restarting", "changes", "changes are not watched yet");
        return;
    };
    let span = (since.max(into.window.start_ms), into.window.end_ms);
    let lost = lost_brokers(call, view);
    let last = lost.iter().map(|(_, at)| *at).max();
    into.over("brokers.lost", "changes", span, names(lost.into_iter().map(|(name, _)| name)));
    if let Some(at) = last {
        into.over("brokers.last_loss_age_s", "changes", span, seconds_since(call.now_ms, at));
    }
    let again =
        view.brokers.keys().filter(|id| precise(registered_anew(call, **id, into.window)) >= RESTARTS);
    into.over("brokers.restarting", "changes", span, names(again.map(ToString::to_string)));
}

/// How often a broker registered within a window.
fn registered_anew(call: &Call<'_>, node_id: i32, window: Window) -> i64 {
    let name = node_id.to_string();
    let changes = call.observer.changes.recent(&[Family::Broker]).into_iter();
    let count = changes
        .filter(|c| c.name == name && c.seen_at_ms >= window.start_ms && c.seen_at_ms <= window.end_ms)
        .filter(|c| c.action == "created" || c.details.contains_key("incarnation") && c.action == "changed")
        .count();
    i64::try_from(count).unwrap_or(i64::MAX)
}

pub(super) fn seconds_since(now_ms: i64, at_ms: i64) -> Value {
    (precise((now_ms - at_ms).max(0)) / 1000.0).into()
}

/// One broker; `None` if nobody has ever heard of it.
pub(super) fn broker(
    call: &mut Call<'_>,
    view: Option<&View>,
    window: Window,
    node_id: i32,
) -> Result<Option<Collected>, ToolError> {
    let figures = Figures::new(call, window, None)?;
    let source = figures::sources(call).into_iter().find(|s| s.name == source_of(node_id));
    let mut into = Collected::new(call, window, view);
    let changes = call.observer.changes.recent(&[Family::Broker]);
    let name = node_id.to_string();
    let stored = view.and_then(|v| v.brokers.get(&node_id));
    if view.is_some() && stored.is_none() && source.is_none() && !changes.iter().any(|c| c.name == name) {
        return Ok(None);
    }
    if view.is_some() {
        into.exact("broker.registered", stored.is_some().into());
    } else {
        into.miss("broker.registered", "etcd", "etcd cannot be read");
    }
    if let Some(stored) = stored {
        into.exact("broker.draining", stored.value.draining.into());
        let jobs = view.into_iter().flat_map(|v| &v.leaders).filter(|(_, l)| l.value.node_id == node_id);
        into.exact("broker.jobs", names(jobs.map(|(job, _)| job.clone())));
    } else if let Some(gone) = changes.iter().find(|c| c.name == name && c.action == "deleted") {
        into.over(
            "broker.lost_age_s",
            "changes",
            (gone.seen_at_ms, call.now_ms),
            seconds_since(call.now_ms, gone.seen_at_ms),
        );
    }
    if call.observer.changes.since_ms(&[Family::Broker]).is_some() {
        let count = registered_anew(call, node_id, window);
        into.over("broker.registrations", "changes", (window.start_ms, window.end_ms), count.into());
    } else {
        into.miss("broker.registrations", "changes", "changes are not watched yet");
    }
    let scrape = source.map_or(SourceStatus::Absent, |s| s.status).as_str();
    into.over("broker.scrape", "observer", (window.start_ms, window.end_ms), scrape.into());
    let each = figures.each();
    let Some((_, own)) = each.iter().find(|(name, _)| *name == source_of(node_id)) else {
        for id in ["broker.says_registered", "s3.failing_brokers"] {
            into.miss(id, "metrics", "the broker's metrics are not known");
        }
        return Ok(Some(into));
    };
    // Its figures are whole, whatever others do.
    into.metrics_status = Status::Ok;
    let says = own.level("registered").map(|l| l > 0.5);
    into.measured("broker.says_registered", window, json!(says));
    into.metric("broker.watch_lag", own.level("watch_lag_revisions"));
    into.metric("broker.connections", own.level("connections"));
    into.metric("broker.buffer_bytes", own.level("buffer_bytes"));
    into.metric("broker.produce_per_s", own.rate("produced_records"));
    into.metric("broker.fetch_per_s", own.rate("fetched_records"));
    into.metric("commit.p99_ms", own.percentile_ms("commit_latency", 0.99));
    into.metric("commit.failures", own.appeared("commit_failures"));
    storage(&mut into, own);
    Ok(Some(into))
}
