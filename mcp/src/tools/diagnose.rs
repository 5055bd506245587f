//! Diagnosis: what is wrong, by deterministic rules over evidence, in one shape.

use std::sync::Arc;

use serde_json::{Value, json};

use super::answer::{Code, ToolError};
use super::evidence::{self, Collected, group};
use super::figures::{self, Figures};
use super::spec::{END, GROUP, Kind, START, ToolSpec, WINDOW, required};
use super::{Body, Call, body, history, lag};
use crate::access::Scope;
use crate::clock::rfc3339;
use crate::diagnose::{
    self, Cause, Evidence, Exhibits, RULES_VERSION, Report, Rule, Severity, advice, judge, report,
};
use crate::foreign::clean;
use crate::source::changes::Family;
use crate::source::etcd::Need;
use crate::source::history::Window;
use crate::source::view::View;

/// The shape of every diagnosis.
const REPORT: &str = "{summary:s,severity:(ok|info|warning|critical|unknown),confidence:(high|medium|low|none),confidence_rule:s,root_causes:[{code:s,evidence_refs:[s],counter_evidence_refs:[s],reasoning:s}],evidence:[{id:s,source:s,window:{start:s,end:s}?,samples:i?,observed_at:s?,status:(ok|partial),value:*}],missing_evidence:[{id:s,source:s,reason:s}],recommendations:[{action:s,risk:s,verification:s,runbook_id:s?}],rules_version:s}";

/// Groups that are looked at closely when it is asked what is wrong.
const GROUPS: usize = 3;
/// One that committed within this time is not given up, in ms.
const ALIVE_MS: i64 = 3_600_000;
/// So many new generations make a group worth a look, whatever its lag.
const STORM: usize = 3;
/// Changes that a snapshot shows.
const CHANGES: usize = 20;

pub(super) const EXPLAIN_CURRENT_STATE: ToolSpec = ToolSpec {
    name: "explain_current_state",
    title: "Explain what is wrong now",
    description: "What is wrong now? Ranked root causes with evidence over brokers, etcd, S3 and the groups that lag most; healthy and unknown are answers too. Begin here.",
    scope: Scope::Read,
    cost: 4,
    params: &[WINDOW, START, END],
    output: REPORT,
};

pub(super) const DIAGNOSE_GROUP_LAG: ToolSpec = ToolSpec {
    name: "diagnose_group_lag",
    title: "Diagnose consumer group lag",
    description: "Why does a consumer group lag? Stalled or slow consumer, producer surge, rebalance storm, empty group, hot partition, open transaction, lost broker, slow storage, offsets out of range, never committed, or no lag.",
    scope: Scope::Read,
    cost: 3,
    params: &[required("group_id", GROUP, ""), WINDOW, START, END],
    output: REPORT,
};

pub(super) const DIAGNOSE_BROKER: ToolSpec = ToolSpec {
    name: "diagnose_broker",
    title: "Diagnose a broker",
    description: "What is wrong with a broker (node)? Registration, restarts, draining, commits that fail, how far it is behind, its view of S3.",
    scope: Scope::Read,
    cost: 3,
    params: &[required("broker_id", Kind::Int(0, 2_147_483_647), ""), WINDOW, START, END],
    output: REPORT,
};

pub(super) const DIAGNOSE_STORAGE: ToolSpec = ToolSpec {
    name: "diagnose_storage",
    title: "Diagnose storage (S3)",
    description: "What is wrong with S3 / object storage? Failing, denied, throttled, slow against before, errors; in total and per broker.",
    scope: Scope::Read,
    cost: 3,
    params: &[WINDOW, START, END],
    output: REPORT,
};

pub(super) const INCIDENT_SNAPSHOT: ToolSpec = ToolSpec {
    name: "incident_snapshot",
    title: "Incident snapshot",
    description: "Snapshot of an incident for a ticket or postmortem: explain_current_state with throughput now and before and what changed.",
    scope: Scope::Read,
    cost: 5,
    params: &[WINDOW, START, END],
    output: REPORT,
};

fn evidence_row(evidence: &Evidence) -> Value {
    let window = evidence.window.map(|(start, end)| json!({"start": rfc3339(start), "end": rfc3339(end)}));
    json!({
        "id": evidence.id, "source": evidence.source, "window": window, "samples": evidence.samples,
        "observed_at": evidence.observed_at_ms.and_then(rfc3339), "status": evidence.status.as_str(),
        "value": evidence.value,
    })
}

fn render(call: &mut Call<'_>, report: &Report, exhibits: &Exhibits) -> Body {
    if !exhibits.missing().is_empty() {
        call.meta
            .warn("evidence_missing", "missing_evidence names what is not known; it was not taken for zero");
    }
    let causes: Vec<Value> = report
        .causes
        .iter()
        .map(|c| {
            json!({
                "code": c.code.as_str(), "evidence_refs": c.evidence_refs,
                "counter_evidence_refs": c.counter_evidence_refs, "reasoning": c.reasoning,
            })
        })
        .collect();
    let mut advised = Vec::new();
    let mut recommendations = Vec::new();
    for cause in &report.causes {
        let Some(advice) = advice(cause.code).filter(|_| !advised.contains(&cause.code)) else { continue };
        advised.push(cause.code);
        recommendations.push(json!({
            "action": advice.action, "risk": advice.risk, "verification": advice.verification,
            "runbook_id": call.observer.runbooks.for_cause(cause.code.as_str()),
        }));
    }
    let missing: Vec<Value> = exhibits
        .missing()
        .iter()
        .map(|m| json!({"id": m.id, "source": m.source, "reason": m.reason}))
        .collect();
    body(json!({
        "summary": report.summary, "severity": report.severity.as_str(),
        "confidence": report.confidence.as_str(), "confidence_rule": report.rule,
        "root_causes": causes, "evidence": exhibits.present().iter().map(evidence_row).collect::<Vec<_>>(),
        "missing_evidence": missing, "recommendations": recommendations, "rules_version": RULES_VERSION,
    }))
}

/// etcd, if it can be read: what is wrong can be asked without it too.
async fn view_if_any(call: &mut Call<'_>, need: Need) -> Option<Arc<View>> {
    let view = call.view(need).await.ok();
    if view.is_none() {
        call.meta.missing("etcd_unavailable", "etcd cannot be read: what rests on it is missing");
    }
    view
}

pub(super) async fn diagnose_group_lag(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let view = call.view(Need::ALL).await?;
    let wanted = call.args.text("group_id").unwrap_or_default().to_owned();
    let id = call.find_group(&view, &wanted)?.to_owned();
    let window = figures::window(call, "5m")?;
    let figures = Figures::new(call, window, None)?;
    let mut into = Collected::new(call, window, Some(&view));
    group::group(call, &mut into, &view, &id);
    evidence::cluster(call, &mut into, Some(&view), &figures);
    evidence::storage(&mut into, &figures);
    let causes = judge(diagnose::lag::RULES, &into.exhibits);
    let healthy = if diagnose::lag::is_catching_up(&into.exhibits) {
        "the group is behind and catches up"
    } else {
        "no rule finds anything wrong with the group"
    };
    let essential = with_rates(&into.exhibits);
    let report = report(causes, &into.exhibits, &essential, healthy);
    Ok(render(call, &report, &into.exhibits))
}

/// A group that is behind is well only if it is known how fast it reads.
fn with_rates(exhibits: &Exhibits) -> Vec<&'static str> {
    let mut essential = diagnose::lag::ESSENTIAL.to_vec();
    if exhibits.number("group.lag").is_some_and(|lag| lag > 0.0) {
        let is_judged = judge(diagnose::lag::RULES, exhibits).iter().any(|c| c.severity != Severity::Info);
        if !is_judged {
            essential.extend(["group.consume_rate", "group.produce_rate"]);
        }
    }
    essential
}

pub(super) async fn diagnose_broker(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let view = view_if_any(call, Need::PLAIN).await;
    let node_id = call.args.int("broker_id").and_then(|n| i32::try_from(n).ok()).unwrap_or(-1);
    let window = figures::window(call, "5m")?;
    let Some(into) = evidence::broker(call, view.as_deref(), window, node_id)? else {
        return Err(ToolError::new(Code::NotFound, format!("there is no broker {node_id}"))
            .suggest("describe_brokers has the brokers"));
    };
    let causes = judge(&diagnose::broker::rules(), &into.exhibits);
    let healthy = "it is registered, serves, and answers for itself";
    let report = report(causes, &into.exhibits, diagnose::broker::ESSENTIAL, healthy);
    Ok(render(call, &report, &into.exhibits))
}

pub(super) fn diagnose_storage(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let window = figures::window(call, "5m")?;
    let figures = Figures::new(call, window, None)?;
    let mut into = Collected::new(call, window, None);
    evidence::storage(&mut into, &figures);
    evidence::blind(call, &mut into);
    let by_broker: Vec<Value> = figures
        .each()
        .iter()
        .take(50)
        .map(|(name, own)| {
            json!({
                "broker": clean(name.trim_start_matches("metrics:")), "state": own.s3_state(),
                "error_rate": own.ratio("s3_errors", &["s3_requests"]),
                "put_p99_ms": own.percentile_ms("s3_put_latency", 0.99),
            })
        })
        .collect();
    let span = (window.start_ms, window.end_ms);
    if !by_broker.is_empty() {
        into.over("s3.by_broker", "metrics", span, by_broker.into());
    }
    into.metric("cache.hit_rate", figures.ratio("cache_hits", &["cache_hits", "cache_misses"]));
    let mut rules: Vec<Rule> = diagnose::storage::RULES.to_vec();
    rules.push(diagnose::cluster::metrics_blind);
    let causes = judge(&rules, &into.exhibits);
    let healthy = "the object store answers all brokers, in time";
    let report = report(causes, &into.exhibits, diagnose::storage::ESSENTIAL, healthy);
    Ok(render(call, &report, &into.exhibits))
}

/// The groups that are worst off: those that somebody uses before those that were given up.
fn worst_groups(call: &Call<'_>, view: &Arc<View>, window: Window) -> Vec<String> {
    let mut found = Vec::new();
    let rebalances = group::rebalances(call, window).unwrap_or_default();
    for (id, rows) in lag::every(call, view).iter().filter(|(id, _)| call.sees_group(id)) {
        let total = lag::sum(rows.iter().filter(|r| call.sees_topic(&r.topic)));
        let is_behind =
            total.lag.is_some_and(|l| l > 0) || total.out_of_range > 0 || total.never_committed > 0;
        let storms = rebalances.get(id).is_some_and(|n| *n >= STORM);
        if !is_behind && !storms {
            continue;
        }
        let is_used = super::groups::summary(view, id).members > 0
            || super::groups::last_commit_ms(call, view, id).is_some_and(|t| call.now_ms - t < ALIVE_MS);
        found.push((!is_used, std::cmp::Reverse(total.max_lag.unwrap_or_default()), id.to_owned()));
    }
    found.sort();
    found.into_iter().take(GROUPS).map(|(_, _, id)| id).collect()
}

/// What is wrong with the cluster and with the groups that are worst off.
async fn current_state(
    call: &mut Call<'_>,
    default_window: &str,
) -> Result<(Collected, Vec<Cause>), ToolError> {
    let view = view_if_any(call, Need::ALL).await;
    let window = figures::window(call, default_window)?;
    let figures = Figures::new(call, window, None)?;
    let mut into = Collected::new(call, window, view.as_deref());
    evidence::cluster(call, &mut into, view.as_deref(), &figures);
    evidence::storage(&mut into, &figures);
    into.metric("cluster.produce_per_s", figures.rate("produced_records"));
    into.metric("cluster.fetch_per_s", figures.rate("fetched_records"));
    into.metric("cluster.rebalances_per_s", figures.rate("group_rebalances"));
    let mut causes = judge(&diagnose::cluster::rules(), &into.exhibits);
    if let Some(view) = &view {
        for (number, id) in (1..).zip(worst_groups(call, view, window)) {
            let mut own = into.clone();
            group::group(call, &mut own, view, &id);
            let found = judge(diagnose::lag::RULES, &own.exhibits);
            into.exhibits.absorb(&own.exhibits, "group", number);
            // What a group suffers from the cluster is said there.
            let of_its_own = found.into_iter().filter(|cause| cause.severity > Severity::Ok);
            let of_its_own = of_its_own.filter(|cause| !causes.iter().any(|c| explains(c.code, cause.code)));
            let named: Vec<Cause> =
                of_its_own.map(|cause| cause.of_one("group", number, &clean(&id))).collect();
            causes.extend(named);
        }
    }
    // What is wrong with the cluster first, then with groups, then what is only worth knowing.
    let is_minor = |c: &Cause| c.severity < Severity::Warning;
    let of_group = |c: &Cause| c.rule.starts_with("lag.");
    causes.sort_by_key(|c| (is_minor(c), of_group(c), std::cmp::Reverse(c.severity)));
    Ok((into, causes))
}

/// Whether a cause of the cluster says already what a group suffers from.
fn explains(cluster: diagnose::Code, group: diagnose::Code) -> bool {
    use diagnose::Code as C;
    match group {
        C::BrokerDown => matches!(cluster, C::BrokerDown | C::NoBrokers),
        C::StorageSlow => {
            matches!(cluster, C::StorageSlow | C::StorageFailing | C::StorageErrors | C::StorageThrottled)
        }
        _ => false,
    }
}

pub(super) async fn explain_current_state(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let (into, causes) = current_state(call, "5m").await?;
    let healthy = "brokers are registered, etcd and the object store answer, and no group that this caller sees is in trouble";
    let report = report(causes, &into.exhibits, diagnose::cluster::ESSENTIAL, healthy);
    Ok(render(call, &report, &into.exhibits))
}

pub(super) async fn incident_snapshot(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let (mut into, causes) = current_state(call, "1h").await?;
    let window = into.window;
    let families = Family::ALL;
    match call.observer.changes.since_ms(&families) {
        None => into.miss("changes.recent", "changes", "changes are not watched yet"),
        Some(since) => {
            let seen = call.observer.changes.recent(&families).into_iter().filter(|c| {
                (window.start_ms..=window.end_ms).contains(&c.seen_at_ms)
                    && history::sees(call, c.family, &c.name)
            });
            let rows: Vec<Value> = seen
                .take(CHANGES)
                .map(|c| {
                    json!({
                        "revision": c.revision, "seen_at": rfc3339(c.seen_at_ms), "kind": c.family.as_str(),
                        "name": clean(&c.name), "action": c.action,
                        "what": c.details.keys().take(10).map(|k| clean(k)).collect::<Vec<_>>(),
                    })
                })
                .collect();
            let span = (since.max(window.start_ms), window.end_ms);
            into.over("changes.recent", "changes", span, rows.into());
        }
    }
    let length = window.end_ms - window.start_ms;
    let before = Window { start_ms: window.start_ms - length, end_ms: window.start_ms };
    let figures = Figures::new(call, window, None)?.over(before);
    for (id, name) in [
        ("cluster.produce_per_s_before", "produced_records"),
        ("cluster.fetch_per_s_before", "fetched_records"),
    ] {
        match figures.rate(name) {
            Some(rate) => into.over(id, "metrics", (before.start_ms, before.end_ms), rate.into()),
            None => into.miss(id, "metrics", "nothing is known of the time before the window"),
        }
    }
    let healthy = "nothing is found wrong in the window";
    let report = report(causes, &into.exhibits, diagnose::cluster::ESSENTIAL, healthy);
    Ok(render(call, &report, &into.exhibits))
}
