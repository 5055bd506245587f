//! Diagnosis: deterministic rules over evidence, no model inside. The order of the rules is the order of the causes: what
//! explains the most comes first. "Nothing is wrong" and "it cannot be said" are answers.

use serde_json::{Value, json};

use super::answer::ToolError;
use super::cluster::{self, S3_SLOW_MS};
use super::figures::{self, Figures};
use super::groups;
use super::lag::{self, Row, Status, rounded};
use super::report::{REPORT, Report};
use super::spec::{GROUP, Kind, ToolSpec, required};
use super::{Body, Call};
use crate::access::Scope;
use crate::clock::rfc3339;
use crate::foreign::clean;
use crate::source::changes::Family;
use crate::source::etcd::Need;
use crate::source::scrape::source_of;
use crate::source::view::View;

/// Changes of a group within this time count, in ms.
const RECENT_MS: i64 = 600_000;
/// So many changes of a group's generation within that time are a storm.
const STORM: usize = 5;
/// A share of the lag in one partition that makes it hot.
const HOT: f64 = 0.8;
/// Times the earlier produce rate that are a surge.
const SURGE: f64 = 2.0;

pub(super) const EXPLAIN_CURRENT_STATE: ToolSpec = ToolSpec {
    name: "explain_current_state",
    title: "Explain the current state",
    description: "What is wrong now? Explains the state of the whole cluster: ranked findings with evidence over brokers, etcd, S3, groups and recent changes, and what to do.",
    scope: Scope::Read,
    cost: 5,
    params: &[],
    output: REPORT,
};

pub(super) const DIAGNOSE_GROUP_LAG: ToolSpec = ToolSpec {
    name: "diagnose_group_lag",
    title: "Diagnose consumer lag",
    description: "Why does this consumer group lag? Ranked causes with evidence: consumer stalled or slow, producer surge, rebalance storm, empty group, hot partition, broker down, storage slow, offsets out of range.",
    scope: Scope::Read,
    cost: 4,
    params: &[required("group_id", GROUP, "")],
    output: REPORT,
};

pub(super) const DIAGNOSE_BROKER: ToolSpec = ToolSpec {
    name: "diagnose_broker",
    title: "Diagnose a broker",
    description: "What is wrong with this broker? Registration, lease, restarts, its view of S3 and etcd, failures, compared with the others.",
    scope: Scope::Read,
    cost: 4,
    params: &[required("broker_id", Kind::Int(0, 2_147_483_647), "")],
    output: REPORT,
};

pub(super) const DIAGNOSE_STORAGE: ToolSpec = ToolSpec {
    name: "diagnose_storage",
    title: "Diagnose storage (S3)",
    description: "What is wrong with S3 / object storage? Slow, failing or throttling, for one broker or all, and what it does to produce latency.",
    scope: Scope::Read,
    cost: 4,
    params: &[],
    output: REPORT,
};

pub(super) const INCIDENT_SNAPSHOT: ToolSpec = ToolSpec {
    name: "incident_snapshot",
    title: "Incident snapshot",
    description: "Take a snapshot of everything that matters in an incident, to keep or hand over: health, brokers, storage, throughput, lagging groups, recent changes, as evidence.",
    scope: Scope::Read,
    cost: 5,
    params: &[],
    output: REPORT,
};

/// What is known of a lagging group, as the rules see it.
#[derive(Clone, Debug, Default)]
pub(crate) struct LagFacts {
    pub(crate) members: usize,
    pub(crate) lag: Option<i64>,
    pub(crate) trend: &'static str,
    pub(crate) partitions: usize,
    pub(crate) never_committed: usize,
    pub(crate) out_of_range: usize,
    /// Partitions with lag, and how many of them stand still.
    pub(crate) lagging: usize,
    pub(crate) stalled: usize,
    /// The largest share of the lag that one partition has.
    pub(crate) hot_share: Option<f64>,
    pub(crate) consume_rate: Option<f64>,
    pub(crate) produce_rate: Option<f64>,
    /// The produce rate before.
    pub(crate) produce_rate_before: Option<f64>,
    pub(crate) generations: usize,
    pub(crate) brokers_lost: usize,
    pub(crate) s3_failing: Option<bool>,
    pub(crate) s3_put_p99_ms: Option<f64>,
    pub(crate) s3_get_p99_ms: Option<f64>,
}

/// The rules of lag, in their order.
pub(crate) fn judge_lag(facts: &LagFacts, report: &mut Report) -> (&'static str, String) {
    if facts.partitions > 0 && facts.never_committed == facts.partitions {
        report.cause(
            "never_committed",
            &["commits"],
            &[],
            "the group has committed nothing for any of its partitions",
        );
        return ("warning", "The group has never committed an offset.".to_owned());
    }
    if facts.out_of_range > 0 {
        let why = format!(
            "{} partitions have a committed offset that is not in the log any more",
            facts.out_of_range
        );
        report.cause("offsets_out_of_range", &["commits", "lag"], &[], why);
        report.recommend(
            "Find out what was lost before the group is reset or starts over",
            "resetting skips or repeats records",
            "check_replay_readiness says safe",
            Some("retention-overtaking-a-group"),
        );
    }
    let Some(total) = facts.lag else { return ("unknown", "The lag of the group is not known.".to_owned()) };
    if total == 0 {
        if report.causes.is_empty() {
            report.cause("no_lag", &["lag"], &[], "everything that is in the log was read");
            return ("ok", "The group has no lag.".to_owned());
        }
        return ("warning", "The group has no lag but lost records.".to_owned());
    }
    let is_shrinking = facts.trend == "shrinking";
    if facts.members == 0 {
        report.cause(
            "empty_group",
            &["members", "lag"],
            &[],
            "nobody is in the group, and there is something to read",
        );
        report.recommend(
            "Start the consumers",
            "none",
            "get_group_lag shows the trend shrinking",
            Some("lag"),
        );
    }
    judge_surroundings(facts, is_shrinking, report);
    if facts.members > 0 && facts.lagging > 0 && facts.stalled == facts.lagging {
        let why = format!(
            "{} members are there, and all {} partitions with lag stand still",
            facts.members, facts.lagging
        );
        report.cause("consumer_stalled", &["members", "partitions", "lag"], &[], why);
        report.recommend(
            "Look at what the consumers are doing: logs, threads, what they call",
            "none",
            "get_group_lag shows consume rates again",
            Some("lag"),
        );
    }
    judge_rates(facts, is_shrinking, report);
    let severity = match (report.causes.is_empty(), is_shrinking) {
        (_, true) => "info",
        (true, false) => "unknown",
        (false, false) => "warning",
    };
    let first = report.causes.first().map_or("no rule explains it", |c| c.code);
    (severity, format!("The group lags by {total} records, {}: {first}.", facts.trend))
}

fn judge_surroundings(facts: &LagFacts, is_shrinking: bool, report: &mut Report) {
    if facts.generations >= STORM {
        let why = format!(
            "the group changed {} times within ten minutes: while it rebalances it does not read",
            facts.generations
        );
        report.cause("rebalance_storm", &["group_changes", "lag"], &[], why);
        report.recommend(
            "Find the member that leaves and comes back",
            "none",
            "recent_changes shows no change of the group for ten minutes",
            Some("rebalance-storm"),
        );
    }
    if facts.brokers_lost > 0 && !is_shrinking {
        let why = "a broker lost its registration within the last quarter of an hour";
        report.cause("broker_down", &["brokers_lost", "lag"], &[], why);
        report.recommend(
            "Start the broker again, or leave it",
            "none",
            "cluster_status is ok",
            Some("broker-lost"),
        );
    }
    let is_slow = |ms: Option<f64>| ms.is_some_and(|ms| ms > S3_SLOW_MS);
    if facts.s3_failing == Some(true) || is_slow(facts.s3_put_p99_ms) || is_slow(facts.s3_get_p99_ms) {
        report.cause(
            "storage_slow",
            &["storage", "lag"],
            &[],
            "the object store fails or takes more than a second",
        );
        report.recommend(
            "Look at the object store first",
            "none",
            "storage_status",
            Some("s3-slow-or-failing"),
        );
    }
}

fn judge_rates(facts: &LagFacts, is_shrinking: bool, report: &mut Report) {
    let is_hot = facts.partitions > 1 && facts.lagging > 0 && facts.hot_share.is_some_and(|s| s >= HOT);
    // Where all stand still, the share says what came in, not who is slow.
    if is_hot && facts.stalled < facts.lagging {
        let why =
            format!("one partition has {:.0} % of the lag", facts.hot_share.unwrap_or_default() * 100.0);
        report.cause("hot_partition", &["partitions", "lag"], &[], why);
        report.recommend(
            "Look at the keys that producers use",
            "none",
            "produce rates of partitions even out",
            Some("hot-partition"),
        );
    }
    let (Some(consumed), Some(produced)) = (facts.consume_rate, facts.produce_rate) else { return };
    let has_surged =
        facts.produce_rate_before.is_some_and(|before| before > 0.0 && produced >= SURGE * before);
    if has_surged && consumed > 0.0 && produced > consumed {
        let before = facts.produce_rate_before.unwrap_or_default();
        let why = format!(
            "producers send {produced:.1}/s, {before:.1}/s a while ago, and the group reads {consumed:.1}/s"
        );
        report.cause("producer_surge", &["rates", "rates_before", "lag"], &[], why);
        report.recommend(
            "Add consumers up to the number of partitions, or wait if the surge ends",
            "a rebalance",
            "get_group_lag",
            Some("lag"),
        );
    } else if consumed > 0.0 && produced > consumed && !is_shrinking {
        let why = format!("the group reads {consumed:.1}/s and {produced:.1}/s come in");
        report.cause("consumer_slow", &["rates", "lag"], &[], why);
        report.recommend(
            "Add consumers up to the number of partitions, or make them quicker",
            "a rebalance",
            "get_group_lag",
            Some("lag"),
        );
    }
}

fn facts_of(rows: &[Row], trend: &'static str) -> LagFacts {
    let total = lag::sum(rows);
    let lagging: Vec<&Row> = rows.iter().filter(|r| r.lag.is_some_and(|l| l > 0)).collect();
    let rate = |of: fn(&Row) -> Option<f64>| rows.iter().filter_map(of).reduce(|a, b| a + b);
    let share = total.max_lag.zip(total.lag).filter(|(_, sum)| *sum > 0);
    LagFacts {
        lag: total.lag,
        trend,
        partitions: total.partitions,
        never_committed: total.never_committed,
        out_of_range: total.out_of_range,
        lagging: lagging.len(),
        stalled: lagging.iter().filter(|r| r.status == Status::Stalled).count(),
        hot_share: share
            .map(|(max, sum)| crate::source::history::precise(max) / crate::source::history::precise(sum)),
        consume_rate: rate(|r| r.consume_rate),
        produce_rate: rate(|r| r.produce_rate),
        ..LagFacts::default()
    }
}

/// The produce rate of a group's partitions in the time before the last five minutes, if that is known.
fn produce_rate_before(call: &Call<'_>, id: &str, rows: &[Row]) -> Option<f64> {
    let progress = call.observer.samples.progress();
    let rates = rows.iter().filter_map(|row| {
        let old = progress.past(id, row.topic_id, row.partition, 0)?;
        let newer = progress.past(id, row.topic_id, row.partition, row.now.at_ms - 300_000)?;
        let span_ms = newer.at_ms - old.at_ms;
        (span_ms >= 60_000).then(|| {
            crate::source::history::precise(newer.end - old.end) * 1000.0
                / crate::source::history::precise(span_ms)
        })
    });
    rates.reduce(|a, b| a + b)
}

fn storage_evidence(report: &mut Report, figures: &Figures) {
    let state = figures.s3_state();
    let value = (state != "unknown").then(|| {
        json!({
            "state": state, "put_ms": figures.percentiles("s3_put_latency"), "get_ms": figures.percentiles("s3_get_latency"),
            "error_rate": figures.ratio("s3_errors", &["s3_requests"]), "throttled_per_s": figures.rate("s3_throttled"),
        })
    });
    report.evidence_over("storage", "metrics", "5m", None, value);
}

fn group_changes(call: &Call<'_>, id: &str) -> usize {
    let changes = call.observer.changes.recent(&[Family::Group]);
    let is_turn = |c: &&crate::source::changes::Change| {
        c.name == id
            && call.now_ms - c.seen_at_ms < RECENT_MS
            && ["generation", "epoch"].iter().any(|d| c.details.contains_key(*d))
    };
    changes.iter().filter(is_turn).count()
}

pub(super) async fn diagnose_group_lag(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let view = call.view(Need::All).await?;
    let wanted = call.args.text("group_id").unwrap_or_default().to_owned();
    let id = call.find_group(&view, &wanted)?.to_owned();
    let window = figures::window(call, "5m")?;
    let figures = Figures::new(call, window, None)?;
    let rows = lag::rows(call, &view, &id);
    let total = lag::sum(&rows);
    let group = groups::summary(&view, &id);
    let lost = cluster::lost_brokers(call, &view);
    let knows_changes = call.observer.changes.since_ms(&[Family::Group]).is_some();
    let generations = group_changes(call, &id);
    let facts = LagFacts {
        members: group.members,
        generations,
        brokers_lost: lost.len(),
        produce_rate_before: produce_rate_before(call, &id, &rows),
        s3_failing: (figures.s3_state() != "unknown").then(|| figures.s3_state() == "failing"),
        s3_put_p99_ms: figures.percentile_ms("s3_put_latency", 0.99),
        s3_get_p99_ms: figures.percentile_ms("s3_get_latency", 0.99),
        ..facts_of(&rows, lag::trend(&total))
    };
    let mut report = Report::new(call.now_ms);
    report.evidence(
        "lag",
        "etcd",
        total.lag.map(|l| json!({"total": l, "largest": total.max_lag, "trend": facts.trend})),
    );
    let last = groups::last_commit_ms(call, &view, &id).and_then(rfc3339);
    report.evidence("commits", "etcd", Some(json!({
        "partitions": total.partitions, "never_committed": total.never_committed, "out_of_range": total.out_of_range, "last": last,
    })));
    report.evidence("members", "etcd", Some(json!({"state": group.state, "count": group.members})));
    let mut worst: Vec<&Row> = rows.iter().filter(|r| r.lag.is_some_and(|l| l > 0)).collect();
    worst.sort_by_key(|r| std::cmp::Reverse(r.lag));
    let shown: Vec<Value> = worst
        .iter()
        .take(5)
        .map(|r| json!({"topic": clean(&r.topic), "partition": r.partition, "lag": r.lag, "status": r.status.as_str()}))
        .collect();
    report.evidence(
        "partitions",
        "etcd",
        Some(json!({"lagging": facts.lagging, "stalled": facts.stalled, "worst": shown})),
    );
    let rates = facts.consume_rate.zip(facts.produce_rate);
    let rates = rates.map(|(c, p)| json!({"consume_per_s": rounded(c), "produce_per_s": rounded(p)}));
    report.evidence_over("rates", "etcd samples", "5m", None, rates);
    report.evidence_over(
        "rates_before",
        "etcd samples",
        "15m",
        None,
        facts.produce_rate_before.map(|r| json!({"produce_per_s": rounded(r)})),
    );
    report.evidence(
        "group_changes",
        "etcd watch",
        knows_changes.then(|| json!({"within_10_min": generations})),
    );
    report.evidence(
        "brokers_lost",
        "etcd watch",
        knows_changes.then(|| {
            json!(lost.iter().map(|(n, at)| json!({"broker": n, "at": rfc3339(*at)})).collect::<Vec<_>>())
        }),
    );
    storage_evidence(&mut report, &figures);
    let (severity, summary) = judge_lag(&facts, &mut report);
    Ok(report.finish(summary, severity))
}

/// Groups that lag, the worst first, as evidence: id, total, trend.
fn lagging(call: &Call<'_>, view: &View) -> Vec<(String, LagFacts)> {
    let mut found: Vec<(String, LagFacts)> = Vec::new();
    for id in view.group_ids().into_iter().filter(|id| call.sees_group(id)) {
        let rows = lag::rows(call, view, id);
        let trend = lag::trend(&lag::sum(&rows));
        let facts = LagFacts { members: groups::summary(view, id).members, ..facts_of(&rows, trend) };
        if facts.lag.is_some_and(|l| l > 0) || facts.out_of_range > 0 {
            found.push((id.to_owned(), facts));
        }
    }
    found.sort_by_key(|(_, facts)| std::cmp::Reverse(facts.lag));
    found
}

fn changes_evidence(call: &Call<'_>) -> Option<Value> {
    call.observer.changes.since_ms(&Family::ALL)?;
    let changes = call.observer.changes.recent(&Family::ALL).into_iter();
    let seen = changes
        .filter(|c| call.now_ms - c.seen_at_ms < 3_600_000 && super::history::sees(call, c.family, &c.name));
    let rows = seen.take(10).map(|c| {
        json!({"kind": c.family.as_str(), "name": clean(&c.name), "action": c.action, "at": rfc3339(c.seen_at_ms), "revision": c.revision})
    });
    Some(json!(rows.collect::<Vec<_>>()))
}

fn throughput_evidence(figures: &Figures) -> Option<Value> {
    figures.rate("requests")?;
    Some(json!({
        "produce_rps": figures.rate("produced_records"), "fetch_rps": figures.rate("fetched_records"),
        "produce_ms": figures.percentiles("produce_latency"), "commit_ms": figures.percentiles("commit_latency"),
    }))
}

/// Evidence and causes of the cluster as a whole. The view is missing while etcd cannot be read.
fn look_at_all(call: &Call<'_>, view: Option<&View>, figures: &Figures, report: &mut Report) -> &'static str {
    let reasons = cluster::reasons(call, view, figures);
    let all: Vec<Value> = reasons
        .iter()
        .map(|r| json!({"severity": r.severity, "code": r.code, "message": r.message}))
        .collect();
    report.evidence(
        "health",
        "etcd and metrics",
        Some(json!({"health": cluster::health(&reasons), "reasons": all})),
    );
    report.evidence(
        "etcd",
        "etcd",
        view.map(|v| json!({"revision": v.revision, "latency_ms": call.observer.etcd.health().last_took_ms})),
    );
    report.evidence("brokers", "etcd", view.map(|v| json!(v.brokers.keys().collect::<Vec<_>>())));
    storage_evidence(report, figures);
    report.evidence_over("throughput", "metrics", "5m", None, throughput_evidence(figures));
    report.evidence("changes", "etcd watch", changes_evidence(call));
    let groups = view.map(|v| lagging(call, v)).unwrap_or_default();
    let shown: Vec<Value> = groups
        .iter()
        .take(10)
        .map(|(id, f)| json!({"group_id": clean(id), "lag": f.lag, "trend": f.trend, "members": f.members, "out_of_range": f.out_of_range}))
        .collect();
    report.evidence("lagging_groups", "etcd", view.map(|_| json!(shown)));
    let mut severity = "ok";
    for reason in &reasons {
        let (refs, runbook): (&[&'static str], _) = match reason.code {
            "s3_failing" | "s3_errors" | "s3_slow" | "flush_failures" => {
                (&["health", "storage"], Some("s3-slow-or-failing"))
            }
            "etcd_unreachable" | "no_job_holder" => (&["health"], Some("etcd-slow-or-near-quota")),
            "broker_lost" | "no_brokers" | "broker_draining" => (&["health", "brokers"], Some("broker-lost")),
            _ => (&["health"], None),
        };
        if reason.severity == "unknown" {
            continue;
        }
        severity =
            if reason.severity == "critical" || severity == "critical" { "critical" } else { "warning" };
        report.cause(reason.code, refs, &[], reason.message.clone());
        if let Some(runbook) = runbook {
            report.recommend("Follow the runbook", "see there", "cluster_status is ok", Some(runbook));
        }
    }
    let troubled = groups.iter().filter(|(_, f)| {
        f.trend == "growing"
            || f.out_of_range > 0
            || (f.lagging > 0 && f.stalled == f.lagging)
            || f.members == 0
    });
    let troubled: Vec<String> = troubled.take(5).map(|(id, _)| clean(id)).collect();
    if !troubled.is_empty() {
        severity = if severity == "ok" { "warning" } else { severity };
        report.cause(
            "groups_fall_behind",
            &["lagging_groups"],
            &[],
            format!("groups that do not catch up: {}", troubled.join(", ")),
        );
        report.recommend(
            "Ask diagnose_group_lag for each of them",
            "none",
            "list_lagging_groups",
            Some("lag"),
        );
    }
    let is_blind = severity == "ok" && reasons.iter().any(|r| r.severity == "unknown");
    if is_blind { "unknown" } else { severity }
}

async fn whole(call: &mut Call<'_>) -> Result<(Report, &'static str), ToolError> {
    let view = call.view(Need::All).await.ok();
    if view.is_none() {
        call.meta.missing("etcd_unavailable", "etcd cannot be read: brokers, topics and groups are unknown");
    }
    let window = figures::window(call, "5m")?;
    let figures = Figures::new(call, window, None)?;
    let mut report = Report::new(call.now_ms);
    let severity = look_at_all(call, view.as_deref(), &figures, &mut report);
    Ok((report, severity))
}

pub(super) async fn explain_current_state(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let (report, severity) = whole(call).await?;
    let summary = match (severity, report.causes.first()) {
        ("ok", _) => "Nothing is wrong that can be seen.".to_owned(),
        ("unknown", _) => "Nothing is known to be wrong, but some sources are blind.".to_owned(),
        (_, first) => {
            format!("{} findings; the first: {}.", report.causes.len(), first.map_or("none", |c| c.code))
        }
    };
    Ok(report.finish(summary, severity))
}

pub(super) async fn incident_snapshot(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let (report, severity) = whole(call).await?;
    let summary = format!(
        "Snapshot at {}, revision {}.",
        rfc3339(call.now_ms).unwrap_or_default(),
        call.meta.revision.map_or("unknown".to_owned(), |r| r.to_string())
    );
    Ok(report.finish(summary, severity))
}

pub(super) fn diagnose_storage(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let window = figures::window(call, "5m")?;
    let figures = Figures::new(call, window, None)?;
    let mut report = Report::new(call.now_ms);
    storage_evidence(&mut report, &figures);
    let each = figures.each();
    let is_slow = |f: &Figures| f.percentile_ms("s3_put_latency", 0.99).is_some_and(|ms| ms > S3_SLOW_MS);
    let bad: Vec<String> = each
        .iter()
        .filter(|(_, f)| {
            f.s3_state() == "failing"
                || is_slow(f)
                || f.ratio("s3_errors", &["s3_requests"]).is_some_and(|r| r > 0.01)
        })
        .map(|(n, _)| n.trim_start_matches("metrics:").to_owned())
        .collect();
    report.evidence(
        "brokers_affected",
        "metrics",
        (!each.is_empty()).then(|| json!({"affected": bad, "of": each.len()})),
    );
    report.evidence_over("produce", "metrics", "5m", None, throughput_evidence(&figures));
    let failures = figures
        .growth("flush_failures")
        .map(|n| json!({"flush_failures": n, "read_failures": figures.growth("read_failures")}));
    report.evidence_over(
        "failures",
        "metrics",
        "5m",
        None,
        failures.or_else(|| (!each.is_empty()).then(|| json!({"flush_failures": 0}))),
    );
    if figures.ratio("s3_throttled", &["s3_requests"]).is_some_and(|r| r > 0.001) {
        report.cause(
            "throttled",
            &["storage"],
            &[],
            "the store tells the brokers to slow down: too many requests",
        );
        report.recommend(
            "Fewer, larger objects: raise linger_ms or lower put_budget_per_s",
            "records wait longer",
            "throttled_per_s is 0",
            Some("s3-slow-or-failing"),
        );
    }
    if figures.s3_state() == "failing"
        || figures.ratio("s3_errors", &["s3_requests"]).is_some_and(|r| r > 0.01)
    {
        let code = if bad.len() < each.len() { "failing_for_some_brokers" } else { "failing" };
        report.cause(
            code,
            &["storage", "brokers_affected"],
            &[],
            format!("requests fail for {} of {} brokers", bad.len(), each.len()),
        );
        report.recommend(
            "See whether one broker or all see it, then the provider's status",
            "none",
            "error_rate is 0",
            Some("s3-slow-or-failing"),
        );
    }
    if is_slow(&figures) {
        report.cause(
            "slow",
            &["storage", "brokers_affected"],
            &[],
            "one PUT in a hundred takes more than a second",
        );
        report.recommend(
            "Look at the provider's status and the path to it",
            "none",
            "p99 of PUT below a second",
            Some("s3-slow-or-failing"),
        );
    }
    let (severity, summary) = match (each.is_empty(), report.causes.first()) {
        (true, _) => {
            ("unknown", "No metrics of any broker are known, so nothing can be said of the store.".to_owned())
        }
        (false, None) => ("ok", "The object store does well.".to_owned()),
        (false, Some(first)) => ("warning", format!("The object store: {}.", first.code)),
    };
    Ok(report.finish(summary, severity))
}

pub(super) async fn diagnose_broker(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let view = call.view(Need::PlainAndTopics).await?;
    let id = call.args.int("broker_id").unwrap_or_default();
    let node_id = i32::try_from(id).unwrap_or(-1);
    let registered = view.brokers.get(&node_id);
    let source = figures::sources(call).into_iter().find(|s| s.name == source_of(node_id));
    let lost = cluster::lost_brokers(call, &view).into_iter().find(|(name, _)| *name == node_id.to_string());
    if registered.is_none() && source.is_none() && lost.is_none() {
        let message = format!("nothing is known of a broker {node_id}");
        return Err(ToolError::new(super::answer::Code::NotFound, message)
            .suggest("describe_brokers has those that are registered"));
    }
    let window = figures::window(call, "5m")?;
    let all = Figures::new(call, window, None)?;
    let own = all.each().into_iter().find(|(name, _)| *name == source_of(node_id)).map(|(_, own)| own);
    let resets = call.observer.samples.history().track(&source_of(node_id)).map(|t| t.resets);
    let mut report = Report::new(call.now_ms);
    let value = registered.map(|b| json!({"registered": true, "draining": b.value.draining, "since": rfc3339(b.value.registered_at_ms), "incarnation": b.create_revision}));
    report.evidence(
        "registration",
        "etcd",
        value.or_else(|| {
            Some(json!({"registered": false, "lost_at": lost.as_ref().and_then(|(_, at)| rfc3339(*at))}))
        }),
    );
    report.evidence(
        "scrape",
        "metrics",
        source.map(|s| json!({"status": s.status.as_str(), "age_ms": s.age_ms, "counter_resets": resets})),
    );
    let figures = own.as_ref();
    report.evidence_over("storage", "metrics", "5m", None, figures.filter(|f| f.s3_state() != "unknown").map(|f| {
        json!({"state": f.s3_state(), "put_ms": f.percentiles("s3_put_latency"), "error_rate": f.ratio("s3_errors", &["s3_requests"])})
    }));
    report.evidence_over("load", "metrics", "5m", None, figures.and_then(throughput_evidence));
    let watch = figures.and_then(|f| {
        Some(
            json!({"lag_revisions": f.level("watch_lag_revisions")?, "restarts": f.growth("watch_restarts")}),
        )
    });
    report.evidence_over("watch", "metrics", "5m", None, watch);
    if registered.is_none() {
        report.cause(
            "not_registered",
            &["registration"],
            &[],
            "it has no registration: it is down, or cannot reach etcd",
        );
        report.recommend(
            "See whether the process runs and reaches etcd",
            "none",
            "describe_brokers lists it",
            Some("broker-lost"),
        );
    }
    if registered.is_some_and(|b| b.value.draining) {
        report.cause("draining", &["registration"], &[], "it is leaving in order");
    }
    if figures.is_some_and(|f| f.s3_state() == "failing") {
        let others = all.levels("s3_healthy").iter().filter(|l| **l > 0.5).count();
        let code = if others > 0 { "storage_failing_here_only" } else { "storage_failing" };
        report.cause(
            code,
            &["storage"],
            &[],
            format!("the object store does not answer it; {others} others are answered"),
        );
        report.recommend(
            "Look at its network and credentials",
            "none",
            "diagnose_storage",
            Some("s3-slow-or-failing"),
        );
    }
    if figures.is_some_and(|f| f.growth("watch_restarts").is_some_and(|n| n >= 3.0)) {
        report.cause("watch_restarts", &["watch"], &[], "its watch of etcd breaks again and again");
        report.recommend(
            "Look at the path from it to etcd",
            "none",
            "watch restarts stay the same",
            Some("etcd-slow-or-near-quota"),
        );
    }
    if resets.is_some_and(|n| n > 0) && figures.is_some() {
        report.cause(
            "restarted",
            &["scrape"],
            &[],
            "its counters began anew: the process restarted while it was watched",
        );
    }
    let (severity, summary) = match (report.causes.first(), figures.is_some()) {
        (Some(first), _) => ("warning", format!("Broker {node_id}: {}.", first.code)),
        (None, true) => ("ok", format!("Broker {node_id} does well.")),
        (None, false) => {
            ("unknown", format!("Broker {node_id} is registered, and its metrics are not known."))
        }
    };
    Ok(report.finish(summary, severity))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a group that lags looks like when everything else is well.
    fn facts() -> LagFacts {
        LagFacts {
            members: 2,
            lag: Some(1_000),
            trend: "growing",
            partitions: 4,
            lagging: 4,
            hot_share: Some(0.3),
            consume_rate: Some(10.0),
            produce_rate: Some(20.0),
            produce_rate_before: Some(19.0),
            s3_failing: Some(false),
            s3_put_p99_ms: Some(20.0),
            s3_get_p99_ms: Some(20.0),
            ..LagFacts::default()
        }
    }

    fn first(facts: &LagFacts) -> (Option<&'static str>, &'static str) {
        let mut report = Report::new(0);
        for id in [
            "lag",
            "commits",
            "members",
            "partitions",
            "rates",
            "rates_before",
            "group_changes",
            "brokers_lost",
            "storage",
        ] {
            report.evidence(id, "test", Some(json!(1)));
        }
        let (severity, _) = judge_lag(facts, &mut report);
        (report.causes.first().map(|c| c.code), severity)
    }

    #[test]
    fn the_cause_named_first_is_the_right_one() {
        for (name, facts) in [
            ("consumer_slow", facts()),
            ("producer_surge", LagFacts { produce_rate_before: Some(5.0), ..facts() }),
            ("consumer_stalled", LagFacts { stalled: 4, consume_rate: Some(0.0), ..facts() }),
            ("empty_group", LagFacts { members: 0, stalled: 4, consume_rate: Some(0.0), ..facts() }),
            ("hot_partition", LagFacts { hot_share: Some(0.95), ..facts() }),
            ("rebalance_storm", LagFacts { generations: 7, consume_rate: Some(0.0), ..facts() }),
            ("broker_down", LagFacts { brokers_lost: 1, ..facts() }),
            ("storage_slow", LagFacts { s3_get_p99_ms: Some(3_000.0), ..facts() }),
            ("storage_slow", LagFacts { s3_failing: Some(true), stalled: 4, ..facts() }),
            ("offsets_out_of_range", LagFacts { out_of_range: 1, ..facts() }),
            ("never_committed", LagFacts { never_committed: 4, lag: None, ..facts() }),
        ] {
            assert_eq!(first(&facts).0, Some(name), "{facts:?}");
        }
        let well = LagFacts { lag: Some(0), lagging: 0, trend: "steady", ..facts() };
        assert_eq!(first(&well), (Some("no_lag"), "ok"));
    }

    #[test]
    fn without_evidence_there_is_no_cause() {
        let blind = LagFacts {
            consume_rate: None,
            produce_rate: None,
            produce_rate_before: None,
            s3_failing: None,
            s3_put_p99_ms: None,
            s3_get_p99_ms: None,
            trend: "unknown",
            ..facts()
        };
        assert_eq!(first(&blind), (None, "unknown"));
        assert_eq!(first(&LagFacts { lag: None, ..facts() }), (None, "unknown"));
        let catching_up = LagFacts { trend: "shrinking", consume_rate: Some(50.0), ..facts() };
        assert_eq!(first(&catching_up), (None, "info"));
    }
}
