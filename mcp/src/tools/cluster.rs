//! The cluster as a whole: brokers, etcd, the object store, throughput; and the observer itself.

use serde_json::{Value, json};
use strandline_metadata::placement;

use super::answer::{SourceStatus, ToolError};
use super::figures::{self, Figures};
use super::page::Page;
use super::spec::{END, Kind, LIMIT, START, ToolSpec, WINDOW, optional};
use super::{Body, Call, Tool, body};
use crate::access::{Authenticator, Prefixes, Scope};
use crate::clock::rfc3339;
use crate::foreign::clean;
use crate::limits;
use crate::source::changes::Family;
use crate::source::etcd::Need;
use crate::source::scrape::source_of;
use crate::source::view::View;

/// A broker that left so lately and did not come back is lost rather than gone, in ms.
const LOST_MS: i64 = 900_000;
/// A share of failed requests to the object store that is worth a word.
const S3_ERRORS: f64 = 0.01;
/// A PUT of the object store that takes longer is slow, in ms.
pub(crate) const S3_SLOW_MS: f64 = 1_000.0;

pub(super) const CLUSTER_STATUS: ToolSpec = ToolSpec {
    name: "cluster_status",
    title: "Cluster status",
    description: "Show the health of the Strandline (Kafka) cluster: brokers, etcd, S3 state, latency and error rate, topics, groups; ok, degraded, critical or unknown, with reasons.",
    scope: Scope::Read,
    cost: 3,
    params: &[LIMIT],
    output: "{cluster_name:s,cluster_id:s?,controller_id:i?,health:(ok|degraded|critical|unknown),reasons:[{code:s,message:s}],brokers:[{node_id:i,host:s?,port:i?,zone:s,version:s,registered_at:s?,draining:b,leased:b,scrape:s,scrape_age_ms:i?}]?,topics:[{name:s,partition_count:i,error_code:i}]?,topic_count:i?,partition_count:i?,group_count:i?,s3:{state:s,latency_ms:n?,error_rate:n?},etcd:{state:s,latency_ms:i?,revision:i?},observed_at:s}",
};

pub(super) const CLUSTER_METRICS: ToolSpec = ToolSpec {
    name: "cluster_metrics",
    title: "Cluster metrics",
    description: "Show current throughput and latency: produce and fetch messages (records) and bytes per second, request rates, latency percentiles, S3 operations; in total and per broker.",
    scope: Scope::Read,
    cost: 2,
    params: &[
        WINDOW,
        START,
        END,
        optional("broker_id", Kind::Int(0, 2_147_483_647), "one broker; all if absent"),
    ],
    output: "{s3_state:s,s3_latency_ms:n?,produce_rps:n?,fetch_rps:n?,admin_requests_total:i?,admin_request_errors_total:i?,admin_request_latency_ms:n?,produce_bytes_per_s:n?,fetch_bytes_per_s:n?,requests_per_s:n?,produce_latency_ms:{p50:n?,p95:n?,p99:n?},fetch_latency_ms:{p50:n?,p95:n?,p99:n?},commit_latency_ms:{p50:n?,p95:n?,p99:n?},s3_put_per_s:n?,s3_get_per_s:n?,s3_error_rate:n?,connections:i?,brokers:[{broker:s,produce_rps:n?,fetch_rps:n?,produce_bytes_per_s:n?,fetch_bytes_per_s:n?,connections:i?}],observed_at:s}",
};

pub(super) const DESCRIBE_BROKERS: ToolSpec = ToolSpec {
    name: "describe_brokers",
    title: "Describe brokers",
    description: "Describe the brokers (nodes): address, zone, version, registration, draining, partitions led, groups coordinated, last scrape, restarts.",
    scope: Scope::Read,
    cost: 3,
    params: &[],
    output: "{brokers:[{node_id:i,host:s?,port:i?,zone:s,version:s,registered_at:s?,incarnation:i,draining:b,leased:b,jobs:[s],partitions_led:i,groups_coordinated:i,scrape:(ok|stale|failed|absent),scrape_age_ms:i?,counter_resets:i?,connections:i?,registered:b?,s3_healthy:b?}],next_cursor:s?}",
};

pub(super) const STORAGE_STATUS: ToolSpec = ToolSpec {
    name: "storage_status",
    title: "Storage (S3) status",
    description: "Show S3 / object storage latency and error rate right now: percentiles, throttling, PUT and GET rate, cache hits, objects, estimated request cost per hour, by broker.",
    scope: Scope::Read,
    cost: 2,
    params: &[WINDOW, START, END],
    output: "{state:(ok|failing|unknown),put_latency_ms:{p50:n?,p95:n?,p99:n?},get_latency_ms:{p50:n?,p95:n?,p99:n?},flush_latency_ms:{p50:n?,p95:n?,p99:n?},put_per_s:n?,get_per_s:n?,list_per_s:n?,delete_per_s:n?,error_rate:n?,errors_per_s:n?,throttled_per_s:n?,put_bytes_per_s:n?,get_bytes_per_s:n?,cache_hit_rate:n?,cache_bytes:i?,flush_failures:i?,read_failures:i?,objects:i?,dead_objects:i?,estimated_usd_per_hour:n?,brokers:[{broker:s,state:s,error_rate:n?,put_p99_ms:n?}],snapshot:{revision:i?,trimmed_to:i?}?}",
};

pub(super) const OBSERVER_STATUS: ToolSpec = ToolSpec {
    name: "observer_status",
    title: "Observer status",
    description: "Show the health of this observer itself: its sources and how fresh they are, history and memory, dropped audit lines, limits.",
    scope: Scope::Read,
    cost: 1,
    params: &[],
    output: "{version:s,started_at:s?,auth:s,etcd:{reachable:b,last_read_at:s?,latency_ms:i?,revision:i?,error:s?},scrapes:[{source:s,status:s,age_ms:i?,error:s?,counter_resets:i?}],history:{bytes:i,limit_bytes:i,dropped_samples:i,interval_s:n},progress:{samples:i,since:s?,entries:i,left_out:i},audit:{dropped:i},limits:{calls_per_minute:i,list_default:i,list_max:i,answer_bytes:i,request_bytes:i},plans:b}",
};

pub(super) const EXPLAIN_ACCESS: ToolSpec = ToolSpec {
    name: "explain_access",
    title: "Explain my access",
    description: "Explain what this caller may see and do, and what is hidden and why: scopes, prefixes, expiry of the token, tools not offered.",
    scope: Scope::Read,
    cost: 1,
    params: &[],
    output: "{principal:s,scopes:[s],topic_prefixes:[s]?,group_prefixes:[s]?,expires_at:s?,hidden:[{what:s,why:s}],tools_not_offered:[{tool:s,needs:s}]}",
};

/// A count or level that is whole.
fn whole(number: Option<f64>) -> Option<i64> {
    number.and_then(figures::whole)
}

fn broker_rows(call: &Call<'_>, view: &View) -> Vec<Value> {
    let sources = figures::sources(call);
    let rows = view.brokers.values().map(|broker| {
        let value = &broker.value;
        let source = sources.iter().find(|s| s.name == source_of(value.node_id));
        json!({
            "node_id": value.node_id,
            "host": call.redacted(&value.host), "port": call.topology().then_some(value.port),
            "zone": clean(&value.zone), "version": clean(&value.version),
            "registered_at": rfc3339(value.registered_at_ms), "draining": value.draining, "leased": broker.lease != 0,
            "scrape": source.map_or(SourceStatus::Absent, |s| s.status).as_str(),
            "scrape_age_ms": source.and_then(|s| s.age_ms),
        })
    });
    rows.collect()
}

/// A reason why the cluster is not well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reason {
    pub(crate) severity: &'static str,
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

/// Brokers that were registered a short while ago and are not now.
pub(crate) fn lost_brokers(call: &Call<'_>, view: &View) -> Vec<(String, i64)> {
    let mut lost: Vec<(String, i64)> = Vec::new();
    for change in call.observer.changes.recent(&[Family::Broker]) {
        let is_back = change.name.parse().is_ok_and(|id: i32| view.brokers.contains_key(&id));
        let is_new = call.now_ms - change.seen_at_ms < LOST_MS;
        if change.action == "deleted" && is_new && !is_back && !lost.iter().any(|(n, _)| *n == change.name) {
            // One that said that it was leaving left.
            let was_draining = change.details.get("draining").is_some_and(|(before, _)| *before == true);
            if !was_draining {
                lost.push((change.name.clone(), change.seen_at_ms));
            }
        }
    }
    lost
}

/// What is wrong with the cluster, the worst first.
pub(crate) fn reasons(call: &Call<'_>, view: Option<&View>, figures: &Figures) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut add = |severity, code, message: String| reasons.push(Reason { severity, code, message });
    match view {
        None => add(
            "critical",
            "etcd_unreachable",
            "etcd cannot be read: nothing can be committed either if the brokers see the same".to_owned(),
        ),
        Some(view) if view.brokers.is_empty() => {
            add("critical", "no_brokers", "no broker is registered".to_owned());
        }
        Some(view) => {
            for (name, at) in lost_brokers(call, view) {
                add(
                    "degraded",
                    "broker_lost",
                    format!("broker {name} lost its registration at {}", rfc3339(at).unwrap_or_default()),
                );
            }
            for broker in view.brokers.values().filter(|b| b.value.draining) {
                add("degraded", "broker_draining", format!("broker {} is leaving", broker.value.node_id));
            }
            if !view.topics.is_empty() && !view.leaders.contains_key("jobs") {
                add(
                    "degraded",
                    "no_job_holder",
                    "no broker runs the background jobs: no snapshots, no retention".to_owned(),
                );
            }
        }
    }
    let unhealthy = figures.levels("s3_healthy");
    let failing = unhealthy.iter().filter(|l| **l < 0.5).count();
    if failing > 0 {
        let severity = if failing == unhealthy.len() { "critical" } else { "degraded" };
        add(
            severity,
            "s3_failing",
            format!("the object store does not answer {failing} of {} brokers", unhealthy.len()),
        );
    }
    if let Some(rate) = figures.ratio("s3_errors", &["s3_requests"]).filter(|r| *r > S3_ERRORS) {
        add(
            "degraded",
            "s3_errors",
            format!("{:.1} % of the requests to the object store fail", rate * 100.0),
        );
    }
    if let Some(p99) = figures.percentile_ms("s3_put_latency", 0.99).filter(|ms| *ms > S3_SLOW_MS) {
        add("degraded", "s3_slow", format!("one PUT in a hundred takes {p99:.0} ms or more"));
    }
    if figures.growth("flush_failures").is_some_and(|n| n > 0.0) {
        add(
            "degraded",
            "flush_failures",
            "records were refused because they could not be written".to_owned(),
        );
    }
    let blind = figures::sources(call).into_iter().filter(|s| s.status != SourceStatus::Ok);
    for source in blind {
        add("unknown", "metrics_blind", format!("{} is {}", source.name, source.status.as_str()));
    }
    if figures.each().is_empty() {
        add("unknown", "no_metrics", "no metrics of any broker are known".to_owned());
    }
    let order = |r: &Reason| ["critical", "degraded", "unknown"].iter().position(|s| *s == r.severity);
    reasons.sort_by_key(order);
    reasons
}

/// The health that these reasons amount to.
pub(crate) fn health(reasons: &[Reason]) -> &'static str {
    reasons.first().map_or("ok", |worst| worst.severity)
}

pub(super) async fn cluster_status(call: &mut Call<'_>) -> Result<Body, ToolError> {
    // A cluster whose etcd is away has a status too.
    let view = call.view(Need::GROUPS_AND_TOPICS).await.ok();
    if view.is_none() {
        call.meta.missing("etcd_unavailable", "etcd cannot be read: brokers, topics and groups are unknown");
    }
    let window = figures::window(call, "5m")?;
    let figures = Figures::new(call, window, None)?;
    let reasons = reasons(call, view.as_deref(), &figures);
    let limit = call.args.limit();
    let mut page = Page::default();
    let (mut topic_count, mut partition_count) = (0, 0_u64);
    if let Some(view) = &view {
        for (name, topic) in view.topics.iter().filter(|(name, _)| call.sees_topic(name)) {
            topic_count += 1;
            partition_count += u64::from(topic.value.partitions);
            // They are counted to the end, and shown as far as there is room.
            if page.more_after.is_none() {
                let row =
                    json!({"name": clean(name), "partition_count": topic.value.partitions, "error_code": 0});
                page.push(limit, name, row);
            }
        }
    }
    if page.more_after.is_some() {
        call.meta.warn("output_truncated", "there are more topics: list_topics has them all");
    }
    let groups = view.as_ref().map(|v| v.group_ids().iter().filter(|id| call.sees_group(id)).count());
    let etcd = call.observer.etcd.health();
    let known = view.is_some();
    Ok(body(json!({
        "cluster_name": call.observer.config.cluster,
        "cluster_id": call.observer.etcd.cluster_id(),
        "controller_id": view.as_ref().map(|v| placement::controller(&v.candidates())).filter(|&n| n >= 0),
        "health": health(&reasons),
        "reasons": reasons.iter().map(|r| json!({"code": r.code, "message": r.message})).collect::<Vec<_>>(),
        "brokers": view.as_ref().map(|v| broker_rows(call, v)),
        "topics": known.then_some(page.items),
        "topic_count": known.then_some(topic_count),
        "partition_count": known.then_some(partition_count),
        "group_count": groups,
        "s3": {
            "state": figures.s3_state(),
            "latency_ms": figures.percentile_ms("s3_put_latency", 0.5),
            "error_rate": figures.ratio("s3_errors", &["s3_requests"]),
        },
        "etcd": {
            "state": if known { "ok" } else { "unreachable" },
            "latency_ms": known.then_some(etcd.last_took_ms).flatten(),
            "revision": view.as_ref().map(|v| v.revision),
        },
        "observed_at": rfc3339(call.now_ms),
    })))
}

pub(super) fn cluster_metrics(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let window = figures::window(call, "5m")?;
    let figures = Figures::new(call, window, call.args.int("broker_id"))?;
    let brokers: Vec<Value> = figures
        .each()
        .iter()
        .map(|(name, own)| {
            json!({
                "broker": name.trim_start_matches("metrics:"),
                "produce_rps": own.rate("produced_records"), "fetch_rps": own.rate("fetched_records"),
                "produce_bytes_per_s": own.rate("produced_bytes"), "fetch_bytes_per_s": own.rate("fetched_bytes"),
                "connections": whole(own.level("connections")),
            })
        })
        .collect();
    Ok(body(json!({
        "s3_state": figures.s3_state(),
        "s3_latency_ms": figures.percentile_ms("s3_put_latency", 0.5),
        "produce_rps": figures.rate("produced_records"),
        "fetch_rps": figures.rate("fetched_records"),
        "admin_requests_total": whole(figures.growth("admin_requests")),
        // Brokers do not count them apart.
        "admin_request_errors_total": null,
        "admin_request_latency_ms": figures.percentile_ms("admin_latency", 0.5),
        "produce_bytes_per_s": figures.rate("produced_bytes"),
        "fetch_bytes_per_s": figures.rate("fetched_bytes"),
        "requests_per_s": figures.rate("requests"),
        "produce_latency_ms": figures.percentiles("produce_latency"),
        "fetch_latency_ms": figures.percentiles("fetch_latency"),
        "commit_latency_ms": figures.percentiles("commit_latency"),
        "s3_put_per_s": figures.rate("s3_put_requests"),
        "s3_get_per_s": figures.rate("s3_get_requests"),
        "s3_error_rate": figures.ratio("s3_errors", &["s3_requests"]),
        "connections": whole(figures.level("connections")),
        "brokers": brokers,
        "observed_at": rfc3339(call.now_ms),
    })))
}

pub(super) async fn describe_brokers(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let view = call.view(Need::GROUPS_AND_TOPICS).await?;
    let window = figures::window(call, "5m")?;
    let figures = Figures::new(call, window, None)?;
    let each = figures.each();
    let candidates = view.candidates();
    let mut led = std::collections::BTreeMap::<i32, u64>::new();
    for topic in view.topics.iter().filter(|(name, _)| call.sees_topic(name)).map(|(_, t)| &t.value) {
        for partition in 0..topic.partitions {
            *led.entry(placement::of_partition(&candidates, topic.topic_id, partition)).or_default() += 1;
        }
    }
    let mut coordinated = std::collections::BTreeMap::<i32, u64>::new();
    for id in view.group_ids().into_iter().filter(|id| call.sees_group(id)) {
        *coordinated.entry(placement::of_group(&candidates, id)).or_default() += 1;
    }
    let mut rows = broker_rows(call, &view);
    for (row, (node_id, broker)) in rows.iter_mut().zip(&view.brokers) {
        let own = each.iter().find(|(name, _)| *name == source_of(*node_id)).map(|(_, own)| own);
        let resets = call.observer.samples.history().track(&source_of(*node_id)).map(|t| t.resets);
        let held = view.leaders.iter().filter(|(_, l)| l.value.node_id == *node_id);
        row["incarnation"] = broker.create_revision.into();
        row["jobs"] = held.map(|(job, _)| clean(job)).collect::<Vec<_>>().into();
        row["partitions_led"] = led.get(node_id).copied().unwrap_or_default().into();
        row["groups_coordinated"] = coordinated.get(node_id).copied().unwrap_or_default().into();
        row["counter_resets"] = json!(resets);
        row["connections"] = json!(own.and_then(|f| whole(f.level("connections"))));
        row["registered"] = json!(own.and_then(|f| f.level("registered")).map(|l| l > 0.5));
        row["s3_healthy"] = json!(own.and_then(|f| f.level("s3_healthy")).map(|l| l > 0.5));
    }
    Ok(body(json!({"brokers": rows, "next_cursor": null})))
}

pub(super) async fn storage_status(call: &mut Call<'_>) -> Result<Body, ToolError> {
    // Without etcd, only the snapshot is unknown.
    let view = call.view(Need::SNAPSHOT).await.ok();
    if view.is_none() {
        call.meta.missing("etcd_unavailable", "etcd cannot be read: the snapshot is unknown");
    }
    let window = figures::window(call, "5m")?;
    let figures = Figures::new(call, window, None)?;
    let prices = &call.observer.config;
    let cost = [
        ("s3_put_requests", prices.put_usd_per_1000),
        ("s3_list_requests", prices.put_usd_per_1000),
        ("s3_get_requests", prices.get_usd_per_1000),
    ]
    .into_iter()
    .filter_map(|(name, usd)| Some(figures.rate(name)? * 3.6 * usd))
    .reduce(|a, b| a + b)
    .map(|usd| (usd * 1_000_000.0).round() / 1_000_000.0);
    let brokers: Vec<Value> = figures
        .each()
        .iter()
        .map(|(name, own)| {
            json!({
                "broker": name.trim_start_matches("metrics:"), "state": own.s3_state(),
                "error_rate": own.ratio("s3_errors", &["s3_requests"]),
                "put_p99_ms": own.percentile_ms("s3_put_latency", 0.99),
            })
        })
        .collect();
    let snapshot = view.as_ref().and_then(|v| v.snapshot.as_ref()).map(|s| {
        json!({"revision": s.value.snapshots.first().map(|n| n.revision), "trimmed_to": s.value.trimmed_to})
    });
    // Every broker has the same state: one of them says how much there is.
    let newest = |name: &str| figures.levels(name).into_iter().reduce(f64::max);
    Ok(body(json!({
        "state": figures.s3_state(),
        "put_latency_ms": figures.percentiles("s3_put_latency"),
        "get_latency_ms": figures.percentiles("s3_get_latency"),
        "flush_latency_ms": figures.percentiles("flush_put_latency"),
        "put_per_s": figures.rate("s3_put_requests"), "get_per_s": figures.rate("s3_get_requests"),
        "list_per_s": figures.rate("s3_list_requests"), "delete_per_s": figures.rate("s3_delete_requests"),
        "error_rate": figures.ratio("s3_errors", &["s3_requests"]),
        "errors_per_s": figures.rate("s3_errors"), "throttled_per_s": figures.rate("s3_throttled"),
        "put_bytes_per_s": figures.rate("s3_put_bytes"), "get_bytes_per_s": figures.rate("s3_get_bytes"),
        "cache_hit_rate": figures.ratio("cache_hits", &["cache_hits", "cache_misses"]),
        "cache_bytes": whole(figures.level("cache_bytes")),
        "flush_failures": whole(figures.growth("flush_failures")),
        "read_failures": whole(figures.growth("read_failures")),
        "objects": whole(newest("state_objects")), "dead_objects": whole(newest("state_dead_objects")),
        "estimated_usd_per_hour": cost, "brokers": brokers, "snapshot": snapshot,
    })))
}

pub(super) fn observer_status(call: &Call<'_>) -> Body {
    let observer = call.observer;
    let etcd = observer.etcd.health();
    // What went wrong may name addresses.
    let shown = |error: Option<String>| {
        error
            .map(|e| call.redacted(&e).unwrap_or_else(|| "the scope topology is needed to see it".to_owned()))
    };
    let sources = figures::sources(call);
    let refused = observer.samples.refused();
    let scrapes: Vec<Value> = sources
        .iter()
        .map(|source| {
            let history = observer.samples.history();
            let track = history.track(&source.name);
            let error = track.and_then(|t| t.error.clone()).or_else(|| refused.get(&source.name).cloned());
            json!({
                "source": source.name, "status": source.status.as_str(), "age_ms": source.age_ms,
                "error": shown(error), "counter_resets": track.map(|t| t.resets),
            })
        })
        .collect();
    let auth = match &observer.access {
        Authenticator::Open(_) => "none (loopback)",
        Authenticator::Token { .. } => "token",
        Authenticator::File(_) => "tokens_file",
        Authenticator::Jwt(_) => "jwt",
    };
    let (samples, since, entries, left_out) = {
        let progress = observer.samples.progress();
        let (samples, since) = progress.reach();
        (samples, since, progress.entries(), progress.left_out)
    };
    let (bytes, dropped) = {
        let history = observer.samples.history();
        (history.bytes(), history.dropped)
    };
    body(json!({
        "version": env!("CARGO_PKG_VERSION"), "started_at": rfc3339(observer.started_at_ms), "auth": auth,
        "etcd": {
            "reachable": observer.etcd.is_reachable(), "last_read_at": etcd.last_ok_ms.and_then(rfc3339),
            "latency_ms": etcd.last_took_ms, "revision": etcd.last_revision, "error": shown(etcd.error),
        },
        "scrapes": scrapes,
        "history": {
            "bytes": bytes, "limit_bytes": observer.config.scrape.history_bytes, "dropped_samples": dropped,
            "interval_s": observer.config.scrape.interval.as_secs_f64(),
        },
        "progress": {"samples": samples, "since": since.and_then(rfc3339), "entries": entries, "left_out": left_out},
        "audit": {"dropped": observer.audit.dropped()},
        "limits": {
            "calls_per_minute": observer.config.calls_per_minute, "list_default": limits::DEFAULT_LIMIT,
            "list_max": limits::MAX_LIMIT, "answer_bytes": limits::ANSWER_BYTES, "request_bytes": limits::REQUEST_BYTES,
        },
        "plans": observer.config.plans,
    }))
}

pub(super) fn explain_access(call: &Call<'_>) -> Body {
    let principal = call.principal;
    let prefixes = |p: &Prefixes| match p {
        Prefixes::All => None,
        Prefixes::Of(list) => Some(list.iter().map(|p| clean(p)).collect::<Vec<_>>()),
    };
    let mut hidden = Vec::new();
    let mut hide = |what: &str, why: &str| hidden.push(json!({"what": what, "why": why}));
    if principal.topics.is_limited() {
        hide(
            "topics with other prefixes, in lists, counts, totals and errors",
            "topic prefixes of this principal",
        );
    }
    if principal.groups.is_limited() {
        hide(
            "groups with other prefixes, in lists, counts, totals and errors",
            "group prefixes of this principal",
        );
    }
    if !principal.has(Scope::Topology) {
        hide("addresses, hosts, member ids and texts of errors of sources", "the scope topology is missing");
    }
    if !principal.has(Scope::Audit) {
        hide("the audit log and findings about configuration", "the scope audit is missing");
    }
    hide("values of configs that are secrets", "nobody sees them");
    hide("records, keys and headers of messages", "the observer never reads them");
    let missing = Tool::ALL.iter().map(|t| t.spec()).filter_map(|spec| {
        let needs = if !principal.has(spec.scope) {
            format!("scope {}", spec.scope.as_str())
        } else if spec.scope == Scope::Plan && !call.observer.config.plans {
            "plans are switched off".to_owned()
        } else {
            return None;
        };
        Some(json!({"tool": spec.name, "needs": needs}))
    });
    body(json!({
        "principal": principal.name.to_string(),
        "scopes": principal.scopes.iter().map(|s| s.as_str()).collect::<Vec<_>>(),
        "topic_prefixes": prefixes(&principal.topics), "group_prefixes": prefixes(&principal.groups),
        "expires_at": principal.expires_at_ms.and_then(rfc3339),
        "tools_not_offered": missing.collect::<Vec<_>>(),
        "hidden": hidden,
    }))
}
