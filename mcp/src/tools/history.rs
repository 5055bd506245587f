//! History: which metrics there are, the points of one of them, and what changed.

use serde_json::{Value, json};

use super::answer::{Code, ToolError};
use super::figures::{self, Figures, rounded};
use super::page::Page;
use super::spec::{CURSOR, END, GROUP, Kind, LIMIT, START, ToolSpec, WINDOW, optional, required};
use super::{Body, Call, body};
use crate::access::Scope;
use crate::clock::rfc3339;
use crate::foreign::clean;
use crate::source::changes::Family;
use crate::source::exposition;
use crate::source::history::{Track, Window, add_buckets, precise, quantile};
use crate::source::scrape::HISTORY_GROUPS;

/// Points of a series at most.
const MAX_POINTS: i64 = 200;

/// How a metric is made from what is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
enum MetricSource {
    /// Growth of a counter per second, summed up over brokers.
    Rate(&'static str),
    /// A gauge, summed up over brokers.
    Level(&'static str),
    /// A percentile of a histogram, in ms.
    Percentile(&'static str, f64),
    /// The lag of a group.
    GroupLag,
}

/// A metric that can be asked for.
#[derive(Clone, Copy, Debug)]
struct Metric {
    name: &'static str,
    unit: &'static str,
    help: &'static str,
    made: MetricSource,
}

const fn metric(name: &'static str, unit: &'static str, help: &'static str, made: MetricSource) -> Metric {
    Metric { name, unit, help, made }
}

/// Every metric that can be asked for.
const METRICS: &[Metric] = &[
    metric(
        "produce_records",
        "records/s",
        "records acknowledged to producers",
        MetricSource::Rate("produced_records"),
    ),
    metric(
        "produce_bytes",
        "bytes/s",
        "bytes acknowledged to producers",
        MetricSource::Rate("produced_bytes"),
    ),
    metric("fetch_records", "records/s", "records sent to consumers", MetricSource::Rate("fetched_records")),
    metric("fetch_bytes", "bytes/s", "bytes sent to consumers", MetricSource::Rate("fetched_bytes")),
    metric("requests", "requests/s", "requests of clients", MetricSource::Rate("requests")),
    metric(
        "produce_p50",
        "ms",
        "time of a produce request",
        MetricSource::Percentile("produce_latency", 0.5),
    ),
    metric(
        "produce_p99",
        "ms",
        "time of a produce request",
        MetricSource::Percentile("produce_latency", 0.99),
    ),
    metric(
        "fetch_p99",
        "ms",
        "time of a fetch request, waiting included",
        MetricSource::Percentile("fetch_latency", 0.99),
    ),
    metric(
        "commit_p99",
        "ms",
        "from a durable object to its records being applied",
        MetricSource::Percentile("commit_latency", 0.99),
    ),
    metric("s3_put_rate", "requests/s", "PUTs", MetricSource::Rate("s3_put_requests")),
    metric("s3_get_rate", "requests/s", "GETs", MetricSource::Rate("s3_get_requests")),
    metric(
        "s3_error_rate",
        "requests/s",
        "failed requests to the object store",
        MetricSource::Rate("s3_errors"),
    ),
    metric(
        "s3_throttle_rate",
        "requests/s",
        "throttled requests to the object store",
        MetricSource::Rate("s3_throttled"),
    ),
    metric("s3_put_p50", "ms", "time of a PUT", MetricSource::Percentile("s3_put_latency", 0.5)),
    metric("s3_put_p99", "ms", "time of a PUT", MetricSource::Percentile("s3_put_latency", 0.99)),
    metric("s3_get_p99", "ms", "time of a GET", MetricSource::Percentile("s3_get_latency", 0.99)),
    metric(
        "s3_put_bytes",
        "bytes/s",
        "bytes written to the object store",
        MetricSource::Rate("s3_put_bytes"),
    ),
    metric("s3_get_bytes", "bytes/s", "bytes read from the object store", MetricSource::Rate("s3_get_bytes")),
    metric("cache_hits", "blocks/s", "reads that the cache answered", MetricSource::Rate("cache_hits")),
    metric("cache_misses", "blocks/s", "reads that needed a GET", MetricSource::Rate("cache_misses")),
    metric(
        "flush_failures",
        "flushes/s",
        "flushes whose records were refused",
        MetricSource::Rate("flush_failures"),
    ),
    metric(
        "group_rebalances",
        "rebalances/s",
        "rebalances of consumer groups",
        MetricSource::Rate("group_rebalances"),
    ),
    metric(
        "members_expired",
        "members/s",
        "members given up as silent",
        MetricSource::Rate("group_members_expired"),
    ),
    metric(
        "offset_commits",
        "commits/s",
        "offsets that were committed",
        MetricSource::Rate("offset_commits"),
    ),
    metric(
        "transactions_committed",
        "transactions/s",
        "transactions that were committed",
        MetricSource::Rate("transactions_committed"),
    ),
    metric(
        "transactions_aborted",
        "transactions/s",
        "transactions that were aborted",
        MetricSource::Rate("transactions_aborted"),
    ),
    metric(
        "transactions_timed_out",
        "transactions/s",
        "transactions that were open for too long",
        MetricSource::Rate("transactions_timed_out"),
    ),
    metric("connections", "connections", "open connections of clients", MetricSource::Level("connections")),
    metric("buffer_bytes", "bytes", "records buffered or being written", MetricSource::Level("buffer_bytes")),
    metric(
        "watch_lag",
        "revisions",
        "commits that brokers have not applied yet",
        MetricSource::Level("watch_lag_revisions"),
    ),
    metric(
        "watch_restarts",
        "restarts/s",
        "watches of etcd opened anew",
        MetricSource::Rate("watch_restarts"),
    ),
    metric("group_lag", "records", "total lag of the group group_id", MetricSource::GroupLag),
];

const NAMES: [&str; METRICS.len()] = {
    let mut names = [""; METRICS.len()];
    let mut i = 0;
    while i < METRICS.len() {
        names[i] = METRICS[i].name;
        i += 1;
    }
    names
};

pub(super) const LIST_METRICS: ToolSpec = ToolSpec {
    name: "list_metrics",
    title: "List metrics",
    description: "List the metrics that query_metric can show over time, with units, and how far back history reaches.",
    scope: Scope::Read,
    cost: 1,
    params: &[],
    output: "{metrics:[{name:s,unit:s,help:s}],history_since:s?,step_s:n,retained_s:i}",
};

pub(super) const QUERY_METRIC: ToolSpec = ToolSpec {
    name: "query_metric",
    title: "Query a metric over time",
    description: "Show one metric as points over time (history, trend, graph): throughput, latency percentiles, S3 errors, rebalances, lag of a group. value is null where nothing is known.",
    scope: Scope::Read,
    cost: 2,
    params: &[
        required("metric", Kind::OneOf(&NAMES), ""),
        WINDOW,
        START,
        END,
        optional("broker_id", Kind::Int(0, 2_147_483_647), "one broker; all if absent"),
        optional("group_id", GROUP, "for group_lag"),
        optional("points", Kind::Int(2, MAX_POINTS), "at most so many; default 60"),
    ],
    output: "{metric:s,unit:s,points:[{t:s,value:n?,sources:i}],min:n?,max:n?,last:n?}",
};

pub(super) const RECENT_CHANGES: ToolSpec = ToolSpec {
    name: "recent_changes",
    title: "Recent changes",
    description: "What changed recently, before a problem began: topics, configs, brokers and groups created, changed or deleted, with before and after, revision and time. The newest first.",
    scope: Scope::Read,
    cost: 2,
    params: &[
        optional("kinds", Kind::Texts(4), "of topic, config, broker, group; all if absent"),
        WINDOW,
        START,
        END,
        LIMIT,
        CURSOR,
    ],
    output: "{changes:[{revision:i,seen_at:s,kind:(topic|config|broker|group),name:s,action:(created|changed|deleted),details:[{what:s,before:*,after:*}]}],known_since:s?,next_cursor:s?}",
};

pub(super) fn list_metrics(call: &Call<'_>) -> Body {
    let history = call.observer.samples.history();
    let sources = history.tracks().values();
    let column = exposition::scalar("requests").map(|(c, _)| c).unwrap_or_default();
    let all = Window { start_ms: 0, end_ms: i64::MAX };
    let since = sources.filter_map(|t| t.between(column, all).first().map(|(t, _)| *t)).min();
    let metrics: Vec<Value> =
        METRICS.iter().map(|m| json!({"name": m.name, "unit": m.unit, "help": m.help})).collect();
    body(json!({
        "metrics": metrics, "history_since": since.and_then(rfc3339),
        "step_s": precise(call.observer.samples.interval_ms()) / 1000.0, "retained_s": 7 * 86_400,
    }))
}

pub(super) async fn query_metric(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let name = call.args.text("metric").unwrap_or_default().to_owned();
    let metric = METRICS.iter().find(|m| m.name == name);
    let metric =
        metric.ok_or_else(|| ToolError::new(Code::InvalidArgument, "metric: there is no such metric"))?;
    let window = figures::window(call, "1h")?;
    let interval_ms = call.observer.samples.interval_ms();
    let most = call.args.int("points").unwrap_or(60);
    let step_ms = ((window.end_ms - window.start_ms) / most).max(interval_ms);
    let tracks: Vec<Track> = if metric.made == MetricSource::GroupLag {
        let id = call.args.text("group_id").unwrap_or_default().to_owned();
        vec![group_track(call, &id).await?]
    } else {
        // Notes the sources and what of the window is covered.
        Figures::new(call, window, call.args.int("broker_id"))?;
        let known = figures::sources(call).into_iter().map(|s| s.name);
        let wanted = call.args.int("broker_id").map(|id| format!("metrics:broker-{id}"));
        let history = call.observer.samples.history();
        known
            .filter(|n| wanted.as_ref().is_none_or(|w| w == n))
            .filter_map(|n| history.track(&n).cloned())
            .collect()
    };
    let mut points = Vec::new();
    let mut values = Vec::new();
    let mut at = window.start_ms;
    while at < window.end_ms {
        let end = (at + step_ms).min(window.end_ms);
        let (value, sources) = point(metric.made, &tracks, Window { start_ms: at, end_ms: end }, interval_ms);
        values.extend(value);
        points.push(json!({"t": rfc3339(end), "value": value.map(rounded), "sources": sources}));
        at = end;
    }
    if values.is_empty() {
        call.meta.missing("no_samples", "nothing is known of that time");
    }
    let (min, max) = (values.iter().copied().reduce(f64::min), values.iter().copied().reduce(f64::max));
    Ok(body(json!({
        "metric": metric.name, "unit": metric.unit, "points": points,
        "min": min.map(rounded), "max": max.map(rounded), "last": values.last().copied().map(rounded),
    })))
}

/// The history of a group's lag.
async fn group_track(call: &mut Call<'_>, id: &str) -> Result<Track, ToolError> {
    if id.is_empty() {
        return Err(ToolError::new(Code::InvalidArgument, "group_id: group_lag needs it"));
    }
    let view = call.view(crate::source::etcd::Need::GROUPS).await?;
    let id = call.find_group(&view, id)?.to_owned();
    if call.principal.topics.is_limited() {
        let message =
            "the history of a group's lag is over all its topics, of which this caller sees some only";
        return Err(
            ToolError::new(Code::PermissionDenied, message).suggest("get_group_lag shows the lag now")
        );
    }
    let track = call.observer.samples.history().track(&format!("group:{id}")).cloned();
    let left_out = call.observer.samples.groups_left_out();
    match track {
        Some(track) => Ok(track),
        None if left_out > 0 => {
            call.meta.missing(
                "groups_left_out",
                format!(
                    "lag has a history for {HISTORY_GROUPS} groups only, the first in the order of ids; {left_out} have none, maybe \
                     this one too: its points are unknown"
                ),
            );
            Ok(Track::default())
        }
        None => Err(ToolError::new(Code::WindowOutOfRange, "there is no history of this group's lag yet")),
    }
}

/// The value of a metric in a step, and how many sources it is from.
fn point(made: MetricSource, tracks: &[Track], step: Window, interval_ms: i64) -> (Option<f64>, usize) {
    // What happened until the first sample of a step began at the last sample before it.
    let wide = Window { start_ms: step.start_ms - interval_ms * 3 / 2, ..step };
    let mut sources = 0;
    let value = match made {
        MetricSource::Rate(name) => {
            let Some((column, _)) = exposition::scalar(name) else { return (None, 0) };
            let rates = tracks.iter().filter_map(|t| t.growth(column, wide)).map(|g| g.per_s());
            rates.inspect(|_| sources += 1).reduce(|a, b| a + b)
        }
        MetricSource::Level(name) => {
            let Some((column, _)) = exposition::scalar(name) else { return (None, 0) };
            let levels = tracks.iter().filter_map(|t| t.between(column, step).last().map(|(_, v)| *v));
            levels.inspect(|_| sources += 1).reduce(|a, b| a + b)
        }
        MetricSource::GroupLag => {
            let column = exposition::GROUP_LAG;
            let levels = tracks.iter().filter_map(|t| t.between(column, step).last().map(|(_, v)| *v));
            levels.inspect(|_| sources += 1).reduce(|a, b| a + b)
        }
        MetricSource::Percentile(name, part) => {
            let Some(histogram) = exposition::histogram(name) else { return (None, 0) };
            let mut sum = Vec::new();
            for buckets in tracks.iter().filter_map(|t| t.buckets(histogram, wide)) {
                sources += 1;
                add_buckets(&mut sum, &buckets);
            }
            quantile(&sum, part).map(|s| s * 1000.0)
        }
    };
    (value, sources)
}

pub(super) fn recent_changes(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let families: Vec<Family> = match call.args.texts("kinds") {
        None => Family::ALL.to_vec(),
        Some(names) => {
            let known = names.iter().map(|n| Family::ALL.into_iter().find(|f| f.as_str() == *n));
            known.collect::<Option<_>>().ok_or_else(|| {
                ToolError::new(Code::InvalidArgument, "kinds: each is one of topic, config, broker, group")
            })?
        }
    };
    let window = figures::window(call, "24h")?;
    let before = call.position()?.and_then(|p| p.parse::<usize>().ok()).unwrap_or_default();
    let since = call.observer.changes.since_ms(&families);
    match since {
        None => {
            call.meta
                .missing("not_watching_yet", "changes are not watched yet: etcd has not answered so far");
        }
        Some(since) if since > window.start_ms => {
            call.meta.warn("window_shortened", "changes are known only from known_since on");
        }
        Some(_) => {}
    }
    let limit = call.args.limit();
    let mut page = Page::default();
    let seen = call.observer.changes.recent(&families).into_iter().filter(|c| {
        (window.start_ms..=window.end_ms).contains(&c.seen_at_ms) && sees(call, c.family, &c.name)
    });
    for (number, change) in (1_usize..).zip(seen).skip(before) {
        let details: Vec<Value> = change
            .details
            .iter()
            .map(|(what, (before, after))| json!({"what": clean(what), "before": before, "after": after}))
            .collect();
        let row = json!({
            "revision": change.revision, "seen_at": rfc3339(change.seen_at_ms), "kind": change.family.as_str(),
            "name": clean(&change.name), "action": change.action, "details": details,
        });
        if !page.push(limit, number.to_string(), row) {
            break;
        }
    }
    let next = call.next_cursor(&page);
    Ok(body(json!({"changes": page.items, "known_since": since.and_then(rfc3339), "next_cursor": next})))
}

/// Whether the caller may see a change.
pub(crate) fn sees(call: &Call<'_>, family: Family, name: &str) -> bool {
    match family {
        Family::Topic => call.sees_topic(name),
        Family::Group => call.sees_group(name),
        Family::Broker => true,
        Family::Config => match name.strip_prefix("group ") {
            Some(group) => call.sees_group(group),
            None => !name.starts_with("client-metrics ") || !call.principal.is_tenant(),
        },
    }
}
