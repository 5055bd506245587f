//! Plans about a topic: creating it, its configs, its partitions.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use strandline_metadata::topic_configs;

use super::command::{configs, tool};
use super::{Difference, Draft, Kind, Rollback, State, Violation};
use crate::limits::MAX_PARTITIONS_PER_TOPIC;

/// Partitions of one topic that are many.
const MANY_PARTITIONS: u32 = 1_000;
/// Retention that is short, in ms.
const SHORT_RETENTION_MS: i64 = 3_600_000;
/// Names in one sentence.
const NAMES: usize = 10;

/// What is known of a topic that a plan is for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Its id, number of partitions and own configs, if it exists.
    pub existing: Option<(String, u32, BTreeMap<String, String>)>,
    /// Dynamic defaults of all brokers.
    pub defaults: BTreeMap<String, String>,
    /// Bytes of each partition, if all are known.
    pub bytes: Option<Vec<u64>>,
    /// Groups that consume it, as far as the caller sees them, with their lag.
    pub consumers: Vec<(String, Option<i64>)>,
    /// Another topic whose name is the same but for `.` and `_`; only whether there is one.
    pub collides: bool,
    /// An address of a broker, if the caller may see it.
    pub bootstrap: Option<String>,
}

/// The state of a topic that plans rest on.
pub fn state(existing: Option<&(String, u32, BTreeMap<String, String>)>) -> State {
    let mut state = State::new();
    state.insert("exists".to_owned(), existing.is_some().into());
    if let Some((topic_id, partitions, configs)) = existing {
        state.insert("topic_id".to_owned(), topic_id.as_str().into());
        state.insert("partitions".to_owned(), (*partitions).into());
        for (name, value) in configs {
            state.insert(format!("config {name}"), value.as_str().into());
        }
    }
    state
}

/// Whether a topic may be called so.
pub fn is_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !matches!(name, "" | "." | "..") && name.len() <= 249 && name.chars().all(is_plain)
}

/// What is wrong with configs that are to be set.
fn check_configs(set: &[(String, String)]) -> Vec<Violation> {
    let mut found = Vec::new();
    for (name, value) in set {
        if let Err(why) = topic_configs::check(name, value) {
            found.push(Violation::blocking("config_refused", crate::foreign::clean(&why)));
            continue;
        }
        if topic_configs::find(name).is_some_and(|c| c.synonym.is_none()) {
            let why = format!("{name} is accepted and has no effect here");
            found.push(Violation::warning("config_without_effect", why));
        }
        let number = value.parse::<i64>().ok();
        if name == "cleanup.policy" && value.contains("compact") {
            let why = "records without a key are refused by a compacted topic, and those that it has go";
            found.push(Violation::warning("compaction_needs_keys", why));
        }
        if name == "retention.ms" && number == Some(-1) {
            found.push(Violation::warning("no_retention", "records are kept by age for ever"));
        }
        if name == "retention.ms" && number.is_some_and(|ms| (0..SHORT_RETENTION_MS).contains(&ms)) {
            let why = "records go within the hour: a consumer that stands still for that long loses some";
            found.push(Violation::warning("short_retention", why));
        }
    }
    found
}

fn many(partitions: u32) -> Option<Violation> {
    (partitions > MANY_PARTITIONS).then(|| {
        Violation::warning("many_partitions", format!("{partitions} partitions cost memory in every broker"))
    })
}

fn list(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    let more = names.len().saturating_sub(NAMES);
    let shown = names.into_iter().take(NAMES).map(|n| format!("{n:?}")).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

/// Creates a topic.
pub fn create(facts: &Facts, partitions: u32, set: &[(String, String)]) -> Draft {
    let name = facts.name.as_str();
    let mut violations = check_configs(set);
    if !is_name(name) {
        let why = "a topic's name has 1 to 249 ASCII letters, digits, '.', '_' and '-', and is neither '.' nor '..'";
        violations.push(Violation::blocking("name_refused", why));
    }
    if facts.existing.is_some() {
        violations.push(Violation::blocking("topic_exists", "a topic of this name exists"));
    } else if facts.collides {
        let why =
            "there is a topic whose name is the same but for '.' and '_', which metrics cannot tell apart";
        violations.push(Violation::blocking("name_collides", why));
    }
    if name.starts_with("__") {
        violations
            .push(Violation::warning("internal_name", "names that begin with __ are Kafka's own by custom"));
    }
    violations.extend(many(partitions));
    let mut desired = State::new();
    desired.insert("exists".to_owned(), true.into());
    desired.insert("partitions".to_owned(), partitions.into());
    let mut diff = vec![
        Difference { what: "exists".to_owned(), before: facts.existing.is_some().into(), after: true.into() },
        Difference { what: "partitions".to_owned(), before: Value::Null, after: partitions.into() },
    ];
    let count = partitions.to_string();
    let mut arguments = vec!["--create", "--topic", name, "--partitions", &count];
    let pairs: Vec<String> = set.iter().map(|(n, v)| format!("{n}={v}")).collect();
    for pair in &pairs {
        arguments.extend(["--config", pair]);
    }
    for (config, value) in set {
        let what = format!("config {config}");
        desired.insert(what.clone(), value.as_str().into());
        diff.push(Difference { what, before: Value::Null, after: value.as_str().into() });
    }
    let bootstrap = facts.bootstrap.as_deref();
    Draft {
        kind: Kind::CreateTopic,
        topic: name.to_owned(),
        group: None,
        current: state(facts.existing.as_ref()),
        desired,
        at_least: false,
        diff,
        impact: vec![
            "no data moves; replication is the object store's, so there is no replication factor to choose"
                .to_owned(),
            "partitions can be added later and never taken away".to_owned(),
        ],
        violations,
        commands: vec![tool("kafka-topics.sh", bootstrap, &arguments)],
        verification: vec![tool("kafka-topics.sh", bootstrap, &["--describe", "--topic", name])],
        rollback: Rollback {
            possible: true,
            commands: vec![tool("kafka-topics.sh", bootstrap, &["--delete", "--topic", name])],
            note: "deleting the topic deletes every record in it".to_owned(),
        },
    }
}

/// Changes configs of a topic.
pub fn update(facts: &Facts, set: &[(String, String)], unset: &[String]) -> Draft {
    let name = facts.name.as_str();
    let none = BTreeMap::new();
    let own = facts.existing.as_ref().map_or(&none, |(_, _, configs)| configs);
    let mut violations = check_configs(set);
    for twice in unset.iter().filter(|u| set.iter().any(|(n, _)| n == *u)) {
        let why = format!("{:?} is both set and unset", crate::foreign::clean(twice));
        violations.push(Violation::blocking("contradiction", why));
    }
    for absent in unset.iter().filter(|u| !own.contains_key(*u)) {
        let why = format!("{:?} is not set on the topic", crate::foreign::clean(absent));
        violations.push(Violation::blocking("not_set", why));
    }
    let (mut desired, mut diff) = (State::new(), Vec::new());
    let after = |config: &str| -> Option<String> {
        let given = set.iter().find(|(n, _)| n == config).map(|(_, v)| v.clone());
        given.or_else(|| own.get(config).filter(|_| !unset.iter().any(|u| u == config)).cloned())
    };
    let named: std::collections::BTreeSet<&str> =
        set.iter().map(|(n, _)| n.as_str()).chain(unset.iter().map(String::as_str)).collect();
    for config in named {
        let (before, value) = (own.get(config).cloned(), after(config));
        let what = format!("config {config}");
        desired.insert(what.clone(), json!(value));
        if before != value {
            diff.push(Difference { what, before: json!(before), after: json!(value) });
        }
    }
    if diff.is_empty() {
        violations.push(Violation::blocking("nothing_to_do", "the topic is configured like that already"));
    }
    let bootstrap = facts.bootstrap.as_deref();
    let entity = ["--alter", "--entity-type", "topics", "--entity-name", name];
    let altered = |add: &str, delete: &str| {
        let mut arguments = entity.to_vec();
        if !add.is_empty() {
            arguments.extend(["--add-config", add]);
        }
        if !delete.is_empty() {
            arguments.extend(["--delete-config", delete]);
        }
        tool("kafka-configs.sh", bootstrap, &arguments)
    };
    let add = configs(set.iter().map(|(n, v)| (n.as_str(), v.as_str())));
    let changed = |config: &str| diff.iter().any(|d| d.what == format!("config {config}"));
    let back = configs(own.iter().filter(|(n, _)| changed(n)).map(|(n, v)| (n.as_str(), v.as_str())));
    let gone: Vec<&str> = set.iter().map(|(n, _)| n.as_str()).filter(|n| !own.contains_key(*n)).collect();
    let retention = retention_impact(facts, &after);
    let loses = retention.iter().any(|r| r.contains("never come back"));
    Draft {
        kind: Kind::UpdateTopicConfig,
        topic: name.to_owned(),
        group: None,
        current: state(facts.existing.as_ref()),
        desired,
        at_least: false,
        impact: retention,
        violations,
        commands: vec![altered(&add, &unset.join(","))],
        verification: vec![tool(
            "kafka-configs.sh",
            bootstrap,
            &["--describe", "--entity-type", "topics", "--entity-name", name],
        )],
        rollback: Rollback {
            possible: true,
            commands: vec![altered(&back, &gone.join(","))],
            note: if loses {
                "the configs come back; records that retention took meanwhile do not".to_owned()
            } else {
                "the configs are as before".to_owned()
            },
        },
        diff,
    }
}

/// What a change of retention does, as far as it can be said.
fn retention_impact(facts: &Facts, after: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let none = BTreeMap::new();
    let own = facts.existing.as_ref().map_or(&none, |(_, _, configs)| configs);
    let number = |config: &str, value: Option<&String>| -> Option<i64> {
        let known = topic_configs::find(config)?;
        let default = known.synonym.and_then(|s| facts.defaults.get(s)).map_or(known.default, String::as_str);
        value.map_or(default, String::as_str).parse().ok()
    };
    let mut impact = Vec::new();
    let mut shrinks = false;
    for config in ["retention.ms", "retention.bytes"] {
        let (was, is) = (number(config, own.get(config)), number(config, after(config).as_ref()));
        let (Some(was), Some(is)) = (was, is) else { continue };
        // -1 is without limit, which is more than any number.
        let size = |n: i64| if n < 0 { i64::MAX } else { n };
        if size(is) > size(was) {
            impact.push(format!(
                "{config} rises from {was} to {is}: records stay longer and storage costs more"
            ));
        } else if size(is) < size(was) {
            shrinks = true;
            impact.push(format!(
                "{config} falls from {was} to {is}: older records go at the next pass and never come back"
            ));
            if let (true, Some(bytes)) = (config == "retention.bytes", &facts.bytes) {
                let limit = u64::try_from(is).unwrap_or(u64::MAX);
                let over: u64 = bytes.iter().map(|b| b.saturating_sub(limit)).sum();
                impact.push(format!("about {over} bytes are above that now"));
            }
        }
    }
    if shrinks {
        let behind: Vec<String> = facts
            .consumers
            .iter()
            .filter(|(_, lag)| lag.is_none_or(|l| l > 0))
            .map(|(id, _)| id.clone())
            .collect();
        if !behind.is_empty() {
            let groups = list(behind.into_iter());
            impact.push(format!("groups that have not read everything, and may lose what goes: {groups}"));
        }
    }
    if impact.is_empty() {
        impact.push("retention stays as it is".to_owned());
    }
    impact
}

/// Adds partitions to a topic, so that it has so many in all.
pub fn add_partitions(facts: &Facts, partitions: u32) -> Draft {
    let name = facts.name.as_str();
    let now = facts.existing.as_ref().map_or(0, |(_, partitions, _)| *partitions);
    let mut violations = Vec::new();
    if partitions <= now {
        let why = format!("the topic has {now} partitions, which can only grow");
        violations.push(Violation::blocking("not_more", why));
    }
    if partitions > MAX_PARTITIONS_PER_TOPIC {
        let why = format!("a topic has at most {MAX_PARTITIONS_PER_TOPIC} partitions");
        violations.push(Violation::blocking("too_many", why));
    }
    violations.extend(many(partitions));
    violations.push(Violation::warning(
        "keys_move",
        "records with the same key go to another partition than before: order per key does not hold across the change",
    ));
    let mut impact = vec!["no data moves; old records stay where they are".to_owned()];
    if !facts.consumers.is_empty() {
        let groups = list(facts.consumers.iter().map(|(id, _)| id.clone()));
        impact.push(format!("these groups will rebalance to take the new partitions: {groups}"));
        impact.push("a consumer with auto.offset.reset=latest misses what is produced to a new partition before it has seen it".to_owned());
    }
    let (bootstrap, count) = (facts.bootstrap.as_deref(), partitions.to_string());
    let mut desired = State::new();
    desired.insert("partitions".to_owned(), partitions.into());
    Draft {
        kind: Kind::AddPartitions,
        topic: name.to_owned(),
        group: None,
        current: state(facts.existing.as_ref()),
        desired,
        at_least: false,
        diff: vec![Difference {
            what: "partitions".to_owned(),
            before: now.into(),
            after: partitions.into(),
        }],
        impact,
        violations,
        commands: vec![tool(
            "kafka-topics.sh",
            bootstrap,
            &["--alter", "--topic", name, "--partitions", &count],
        )],
        verification: vec![tool("kafka-topics.sh", bootstrap, &["--describe", "--topic", name])],
        rollback: Rollback {
            possible: false,
            commands: Vec::new(),
            note: "partitions cannot be taken away; only a new topic with fewer, and copying, undoes it"
                .to_owned(),
        },
    }
}
