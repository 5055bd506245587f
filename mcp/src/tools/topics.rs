//! Topics: which there are, how far their partitions are, how they are configured.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use strandline_metadata::placement;
use strandline_metadata::topic_configs::{self, TOPIC_CONFIGS};
use strandline_metadata::values::TopicValue;

use super::answer::{Code, ToolError};
use super::page::Page;
use super::spec::{CURSOR, Kind, LIMIT, TOPIC, ToolSpec, optional, required};
use super::{Body, Call, body};
use crate::access::Scope;
use crate::clock::rfc3339;
use crate::foreign::{clean, shown_config};
use crate::source::etcd::Need;
use crate::source::view::{Stored, View};

/// Kafka's error code for a topic that does not exist.
const UNKNOWN_TOPIC: i32 = 3;
/// Entries of the tables of names that a caller gives.
const NAMES: Kind = Kind::Texts(200);

pub(super) const LIST_TOPICS: ToolSpec = ToolSpec {
    name: "list_topics",
    title: "List topics",
    description: "List all topics with partition counts, sizes, record counts and time of the last write. Sorted by name.",
    scope: Scope::Read,
    cost: 1,
    params: &[optional("prefix", TOPIC, "only names that begin so"), LIMIT, CURSOR],
    output: "{topics:[{name:s,partition_count:i,error_code:i,topic_id:s,bytes:i?,records:i?,last_write_at:s?,created_at:s?}],total:i,next_cursor:s?}",
};

pub(super) const DESCRIBE_TOPICS: ToolSpec = ToolSpec {
    name: "describe_topics",
    title: "Describe topics",
    description: "Describe topics and their partitions: leader hint, log start, high watermark, last stable offset, what open transactions hold back, bytes, last write. error_code 3 means that there is no such topic.",
    scope: Scope::Read,
    cost: 2,
    params: &[optional("names", NAMES, "all if absent"), LIMIT, CURSOR],
    output: "{topics:[{name:s,error_code:i,topic_id:s?,partitions:[{partition:i,leader_id:i?,leader_epoch:i,replica_nodes:[i],isr_nodes:[i],offline_replicas:[i],error_code:i,log_start_offset:i?,high_watermark:i?,last_stable_offset:i?,held_back:i?,bytes:i?,last_write_at:s?}]}],next_cursor:s?}",
};

pub(super) const GET_PARTITION_OFFSETS: ToolSpec = ToolSpec {
    name: "get_partition_offsets",
    title: "Get partition offsets",
    description: "Get log start, high watermark (end offset) and last stable offset of the partitions of a topic, what open transactions hold back, and the revision that they are as of.",
    scope: Scope::Read,
    cost: 1,
    params: &[
        required("topic", TOPIC, ""),
        optional("partitions", Kind::Ints(1000), "all if absent"),
        LIMIT,
        CURSOR,
    ],
    output: "{topic:s,topic_id:s,partition_count:i,partitions:[{partition:i,log_start_offset:i?,high_watermark:i?,last_stable_offset:i?,held_back:i?,records:i?,bytes:i?,last_write_at:s?,as_of_revision:i?}],next_cursor:s?}",
};

pub(super) const DESCRIBE_CONFIGS: ToolSpec = ToolSpec {
    name: "describe_configs",
    title: "Describe topic configs",
    description: "Describe the configuration of topics: retention, cleanup policy, sizes, compression; the effective value of each config and where it comes from (topic, broker for the cluster's dynamic default, default).",
    scope: Scope::Read,
    cost: 2,
    params: &[optional("names", NAMES, "topics; all if absent"), LIMIT, CURSOR],
    output: "{configs:[{name:s,exists:b,partitions:i?,replication_factor:i?,retention_ms:i?,retention_bytes:i?,segment_bytes:i?,created_at:s?,config:<s>,sources:<(topic|broker|default)>}],cluster_defaults:<s>,next_cursor:s?}",
};

pub(super) const AUDIT_TOPICS: ToolSpec = ToolSpec {
    name: "audit_topics",
    title: "Audit topics",
    description: "Audit topic configuration for risks: no retention, compaction without effect, very many or idle partitions, skew, topics that nobody writes or consumes. Findings with evidence.",
    scope: Scope::Audit,
    cost: 4,
    params: &[optional("prefix", TOPIC, "only names that begin so"), LIMIT, CURSOR],
    output: "{findings:[{topic:s,code:s,severity:(info|warning|risk),message:s,evidence:<*>}],topics_checked:i,findings_total:i,next_cursor:s?}",
};

pub(super) async fn list_topics(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let view = call.view(Need::ENDS).await?;
    let prefix = call.args.text("prefix").unwrap_or_default().to_owned();
    let (after, limit) = (call.position()?, call.args.limit());
    let seen = || view.topics.iter().filter(|(name, _)| call.sees_topic(name) && name.starts_with(&prefix));
    let total = seen().count();
    let mut page = Page::default();
    for (name, topic) in seen().filter(|(name, _)| after.as_ref().is_none_or(|a| *name > a)) {
        if !page.push(limit, name, summary(&view, name, &topic.value)) {
            break;
        }
    }
    let next = call.next_cursor(&page);
    Ok(body(json!({"topics": page.items, "total": total, "next_cursor": next})))
}

/// A topic in a line.
pub(crate) fn summary(view: &View, name: &str, topic: &TopicValue) -> Value {
    // A sum with an unknown part is unknown.
    let marks: Option<Vec<_>> = (0..topic.partitions).map(|p| view.marks(topic.topic_id, p)).collect();
    let bytes = marks.as_ref().map(|all| all.iter().map(|m| m.marks.bytes).sum::<u64>());
    let records = marks.as_ref().map(|all| all.iter().map(|m| m.marks.end - m.marks.log_start).sum::<i64>());
    let last = marks.as_ref().and_then(|all| all.iter().map(|m| m.marks.last_timestamp_ms).max());
    json!({
        "name": clean(name),
        "partition_count": topic.partitions,
        "error_code": 0,
        "topic_id": topic.topic_id,
        "bytes": bytes,
        "records": records,
        "last_write_at": last.and_then(rfc3339),
        "created_at": rfc3339(topic.created_at_ms),
    })
}

/// The topics that a caller names, or all that it sees, after a position. What it may not see does
/// not exist.
fn chosen<'v>(
    call: &Call<'_>,
    view: &'v View,
    after: Option<&str>,
) -> Vec<(String, Option<&'v Stored<TopicValue>>)> {
    let seen = |name: &str| view.topics.get(name).filter(|_| call.sees_topic(name)).map(|t| &**t);
    if let Some(names) = call.args.texts("names") {
        let sorted: std::collections::BTreeSet<&str> =
            names.into_iter().filter(|name| after.is_none_or(|a| *name >= a)).collect();
        return sorted.into_iter().map(|name| (name.to_owned(), seen(name))).collect();
    }
    let all = view.topics.iter().filter(|(name, _)| call.sees_topic(name));
    let rest = all.filter(|(name, _)| after.is_none_or(|a| name.as_str() >= a));
    rest.map(|(name, topic)| (name.clone(), Some(&**topic))).collect()
}

pub(super) async fn describe_topics(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let view = call.view(Need::PLAIN_AND_ENDS).await?;
    let (after, limit) = (call.position()?, call.args.limit());
    // A position is a topic and a partition: a topic with many partitions goes over several pages.
    let (after_topic, after_partition) = match after.as_deref().and_then(|a| a.rsplit_once('/')) {
        Some((topic, partition)) => (Some(topic.to_owned()), partition.parse::<i64>().unwrap_or(i64::MAX)),
        None => (None, -1),
    };
    let candidates = view.candidates();
    let mut rows = Page::default();
    let mut topics: Vec<Value> = Vec::new();
    'topics: for (name, topic) in chosen(call, &view, after_topic.as_deref()) {
        let is_continued = after_topic.as_deref() == Some(name.as_str());
        let first = if is_continued { after_partition.saturating_add(1) } else { 0 };
        let Some(topic) = topic else {
            if !is_continued {
                let absent = json!({"name": clean(&name), "error_code": UNKNOWN_TOPIC, "topic_id": null, "partitions": []});
                if topics.len() >= limit || !rows.push(usize::MAX, format!("{name}/0"), absent.clone()) {
                    rows.more_after.get_or_insert_with(|| format!("{name}/-1"));
                    break;
                }
                topics.push(absent);
            }
            continue;
        };
        let first = u32::try_from(first).unwrap_or(u32::MAX);
        if first >= topic.value.partitions {
            continue;
        }
        if topics.len() >= limit {
            rows.more_after = Some(format!("{name}/{}", i64::from(first) - 1));
            break;
        }
        let mut partitions = Vec::new();
        for partition in first..topic.value.partitions {
            let row = partition_row(&view, &candidates, &topic.value, partition);
            if !rows.push(usize::MAX, format!("{name}/{partition}"), row.clone()) {
                if !partitions.is_empty() {
                    topics.push(topic_row(&name, &topic.value, &partitions));
                }
                break 'topics;
            }
            partitions.push(row);
        }
        topics.push(topic_row(&name, &topic.value, &partitions));
    }
    let next = call.next_cursor(&rows);
    Ok(body(json!({"topics": topics, "next_cursor": next})))
}

fn topic_row(name: &str, topic: &TopicValue, partitions: &[Value]) -> Value {
    json!({"name": clean(name), "error_code": 0, "topic_id": topic.topic_id, "partitions": partitions})
}

fn partition_row(view: &View, candidates: &[i32], topic: &TopicValue, partition: u32) -> Value {
    let leader = Some(placement::of_partition(candidates, topic.topic_id, partition)).filter(|&n| n >= 0);
    // Any broker serves any partition; records are replicated by the object store. Kafka's lists
    // name the hint.
    let nodes: Vec<i32> = leader.into_iter().collect();
    let at = view.marks(topic.topic_id, partition);
    let marks = at.map(|m| m.marks);
    json!({
        "partition": partition,
        "leader_id": leader,
        "leader_epoch": 0,
        "replica_nodes": nodes,
        "isr_nodes": nodes,
        "offline_replicas": [],
        "error_code": 0,
        "log_start_offset": marks.map(|m| m.log_start),
        "high_watermark": marks.map(|m| m.end),
        "last_stable_offset": marks.map(|m| m.last_stable),
        "held_back": at.map(|m| m.held_back()),
        "bytes": marks.map(|m| m.bytes),
        "last_write_at": marks.and_then(|m| rfc3339(m.last_timestamp_ms)),
    })
}

/// The topic that a caller names.
pub(crate) fn find<'v>(call: &Call<'_>, view: &'v View, name: &str) -> Result<&'v TopicValue, ToolError> {
    let found = view.topics.get(name).filter(|_| call.sees_topic(name));
    found.map(|t| &t.value).ok_or_else(|| {
        ToolError::new(Code::NotFound, format!("there is no topic {:?}", clean(name)))
            .suggest("list_topics has the topics that this caller may see")
    })
}

pub(super) async fn get_partition_offsets(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let view = call.view(Need::ENDS).await?;
    let name = call.args.text("topic").unwrap_or_default().to_owned();
    let topic = find(call, &view, &name)?;
    let wanted: Vec<u32> = match call.args.ints("partitions") {
        None => (0..topic.partitions).collect(),
        Some(some) => {
            let known =
                some.iter().map(|&p| u32::try_from(p).ok().filter(|&p| p < topic.partitions).ok_or(p));
            let mut known: Vec<u32> = known.collect::<Result<_, _>>().map_err(|p| {
                let message =
                    format!("partitions: there is no partition {p}; the topic has {}", topic.partitions);
                ToolError::new(Code::NotFound, message)
            })?;
            known.sort_unstable();
            known.dedup();
            known
        }
    };
    let after = call.position()?.and_then(|p| p.parse::<u32>().ok());
    let limit = call.args.limit();
    let mut page = Page::default();
    for partition in wanted.into_iter().filter(|p| after.is_none_or(|a| *p > a)) {
        let at = view.marks(topic.topic_id, partition);
        let marks = at.map(|m| m.marks);
        let row = json!({
            "partition": partition,
            "log_start_offset": marks.map(|m| m.log_start),
            "high_watermark": marks.map(|m| m.end),
            "last_stable_offset": marks.map(|m| m.last_stable),
            "held_back": at.map(|m| m.held_back()),
            "records": marks.map(|m| m.end - m.log_start),
            "bytes": marks.map(|m| m.bytes),
            "last_write_at": marks.and_then(|m| rfc3339(m.last_timestamp_ms)),
            "as_of_revision": at.map(|m| m.revision),
        });
        if !page.push(limit, partition.to_string(), row) {
            break;
        }
    }
    let next = call.next_cursor(&page);
    Ok(body(json!({
        "topic": clean(&name), "topic_id": topic.topic_id, "partition_count": topic.partitions,
        "partitions": page.items, "next_cursor": next,
    })))
}

/// A config's effective value and where it comes from.
pub(crate) fn effective<'a>(
    name: &str,
    topic: &'a BTreeMap<String, String>,
    defaults: &'a BTreeMap<String, String>,
) -> (&'a str, &'static str) {
    let config = topic_configs::find(name);
    if let Some(value) = topic.get(name) {
        return (value, "topic");
    }
    if let Some(value) = config.and_then(|c| c.synonym).and_then(|s| defaults.get(s)) {
        return (value, "broker");
    }
    (config.map_or("", |c| c.default), "default")
}

/// A whole number that a topic's config is.
pub(crate) fn effective_number(
    name: &str,
    topic: &TopicValue,
    defaults: &BTreeMap<String, String>,
) -> Option<i64> {
    effective(name, &topic.configs, defaults).0.parse().ok()
}

/// Whether no record of a topic ever goes by itself.
pub(crate) fn retains_forever(topic: &TopicValue, defaults: &BTreeMap<String, String>) -> bool {
    let number = |name: &str| effective_number(name, topic, defaults);
    let deletes = effective("cleanup.policy", &topic.configs, defaults).0.contains("delete");
    !deletes || (number("retention.ms") == Some(-1) && number("retention.bytes") == Some(-1))
}

pub(super) async fn describe_configs(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let view = call.view(Need::PLAIN_AND_TOPICS).await?;
    let (after, limit) = (call.position()?, call.args.limit());
    let mut page = Page::default();
    for (name, topic) in chosen(call, &view, after.as_deref()) {
        if after.as_deref() == Some(name.as_str()) {
            continue;
        }
        let row = config_row(&view, &name, topic);
        if !page.push(limit, name, row) {
            break;
        }
    }
    let next = call.next_cursor(&page);
    call.meta.warn(
        "static_broker_settings_unseen",
        "values with source default may be overridden by a setting in the brokers' own configuration, which etcd does not know",
    );
    let defaults: BTreeMap<String, String> =
        view.defaults.iter().map(|(name, value)| (clean(name), shown_config(name, value))).collect();
    Ok(body(json!({"configs": page.items, "cluster_defaults": defaults, "next_cursor": next})))
}

fn config_row(view: &View, name: &str, topic: Option<&Stored<TopicValue>>) -> Value {
    let Some(topic) = topic.map(|t| &t.value) else {
        return json!({
            "name": clean(name), "exists": false, "partitions": null, "replication_factor": null, "retention_ms": null,
            "retention_bytes": null, "segment_bytes": null, "created_at": null, "config": {}, "sources": {},
        });
    };
    let (mut config, mut sources) = (BTreeMap::new(), BTreeMap::new());
    for known in TOPIC_CONFIGS {
        let (value, source) = effective(known.name, &topic.configs, &view.defaults);
        config.insert(known.name.to_owned(), shown_config(known.name, value));
        sources.insert(known.name.to_owned(), source);
    }
    // What a newer broker stored and this build does not know is shown, too.
    for (name, value) in &topic.configs {
        config.entry(clean(name)).or_insert_with(|| shown_config(name, value));
        sources.entry(clean(name)).or_insert("topic");
    }
    let number = |name: &str| effective_number(name, topic, &view.defaults);
    json!({
        "name": clean(name), "exists": true, "partitions": topic.partitions, "replication_factor": 1,
        "retention_ms": number("retention.ms"), "retention_bytes": number("retention.bytes"),
        "segment_bytes": number("segment.bytes"), "created_at": rfc3339(topic.created_at_ms),
        "config": config, "sources": sources,
    })
}

/// A topic that nobody wrote to for so long is idle, in ms.
const IDLE_MS: i64 = 30 * 86_400_000;
/// Partitions of one topic that are many.
const MANY_PARTITIONS: u32 = 1_000;

/// What an audit finds of one topic: code, severity, sentence, evidence.
type Finding = (&'static str, &'static str, String, Value);

fn findings(view: &View, topic: &TopicValue, is_consumed: bool, now_ms: i64) -> Vec<Finding> {
    let mut found: Vec<Finding> = Vec::new();
    let (policy, _) = effective("cleanup.policy", &topic.configs, &view.defaults);
    let number = |config: &str| effective_number(config, topic, &view.defaults);
    let (retention_ms, retention_bytes) = (number("retention.ms"), number("retention.bytes"));
    if policy.contains("delete") && retention_ms == Some(-1) && retention_bytes == Some(-1) {
        let message = "nothing is ever deleted: storage grows without end";
        found.push((
            "no_retention",
            "warning",
            message.to_owned(),
            json!({"retention.ms": -1, "retention.bytes": -1}),
        ));
    }
    if topic.partitions > MANY_PARTITIONS {
        let message = format!("{} partitions cost memory in every broker", topic.partitions);
        found.push(("many_partitions", "info", message, json!({"partitions": topic.partitions})));
    }
    let marks: Option<Vec<_>> =
        (0..topic.partitions).map(|p| view.marks(topic.topic_id, p).map(|m| m.marks)).collect();
    // What is not known is no finding.
    let Some(marks) = marks else { return found };
    let last = marks.iter().map(|m| m.last_timestamp_ms).max().unwrap_or(-1);
    if last >= 0 && now_ms - last > IDLE_MS {
        let message = "nobody has written to it for thirty days";
        found.push(("idle", "info", message.to_owned(), json!({"last_write_at": rfc3339(last)})));
    }
    let total: i64 = marks.iter().map(|m| m.end).sum();
    let most = marks.iter().map(|m| m.end).max().unwrap_or_default();
    let count = i64::from(topic.partitions);
    if count > 1 && total > 1_000 && most > 3 * total / count && most * 2 > total {
        let message = "one partition has most of the records: keys are skewed";
        found.push((
            "skewed_partitions",
            "warning",
            message.to_owned(),
            json!({"records": total, "in_largest": most}),
        ));
    }
    if total > 0 && !is_consumed {
        let message = "no group consumes it";
        found.push(("no_consumers", "info", message.to_owned(), json!({"records": total})));
    }
    if let Some(ms) = retention_ms.filter(|ms| (0..3_600_000).contains(ms)) {
        let message = "records go within the hour: a consumer that stands still for that long loses some";
        found.push(("short_retention", "risk", message.to_owned(), json!({"retention.ms": ms})));
    }
    found
}

pub(super) async fn audit_topics(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let view = call.view(Need::ALL).await?;
    let prefix = call.args.text("prefix").unwrap_or_default().to_owned();
    let (after, limit) = (call.position()?, call.args.limit());
    let after = after.as_deref().and_then(|a| a.rsplit_once('/')).map(|(n, c)| (n.to_owned(), c.to_owned()));
    // A group that the caller does not see consumes all the same.
    let committed = view.offsets.values().flat_map(|topics| topics.keys().cloned());
    let mut consumed: std::collections::BTreeSet<String> = committed.collect();
    for id in view.groups.keys() {
        consumed.extend(super::groups::subscribed(&view, id));
    }
    let (mut checked, mut total) = (0, 0);
    let mut page = Page::default();
    for (name, topic) in view.topics.iter().filter(|(n, _)| call.sees_topic(n) && n.starts_with(&prefix)) {
        checked += 1;
        let mut found = findings(&view, &topic.value, consumed.contains(name), call.now_ms);
        found.sort_by_key(|(code, ..)| *code);
        for (code, severity, message, evidence) in found {
            total += 1;
            let is_before =
                after.as_ref().is_some_and(|(n, c)| (name.as_str(), code) <= (n.as_str(), c.as_str()));
            if page.more_after.is_some() || is_before {
                continue;
            }
            let row = json!({
                "topic": clean(name), "code": code, "severity": severity, "message": message, "evidence": evidence,
            });
            page.push(limit, format!("{name}/{code}"), row);
        }
    }
    let next = call.next_cursor(&page);
    Ok(body(
        json!({"findings": page.items, "topics_checked": checked, "findings_total": total, "next_cursor": next}),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topic_wins_over_the_cluster_and_that_over_the_default() {
        let one = |k: &str, v: &str| BTreeMap::from([(k.to_owned(), v.to_owned())]);
        let (topic, defaults, none) =
            (one("retention.ms", "1"), one("log.retention.ms", "2"), BTreeMap::new());
        assert_eq!(effective("retention.ms", &topic, &defaults), ("1", "topic"));
        assert_eq!(effective("retention.ms", &none, &defaults), ("2", "broker"));
        assert_eq!(effective("retention.ms", &none, &none), ("604800000", "default"));
    }

    #[test]
    fn secrets_are_masked() {
        assert_eq!(shown_config("sasl.jaas.config", "x"), "********");
        assert_eq!(shown_config("retention.ms", "5"), "5");
    }
}
