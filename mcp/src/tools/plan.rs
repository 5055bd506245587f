//! Plans of changes, off by default: what is now, what would differ, what it does, how to undo it, and the commands for a
//! person to run. Nothing is applied, ever: there is no code here that could.
//!
//! A plan carries a hash of what it rests on. `check_plan` is given the plan's own arguments again and says whether what
//! it rests on is still so, and whether what it wants is so by now.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use strandline_metadata::topic_configs;
use strandline_metadata::values::TopicValue;

use super::answer::{Code, ToolError};
use super::spec::{GROUP, Kind, TOPIC, ToolSpec, optional, required};
use super::{Body, Call, body, groups, lag, topics};
use crate::access::{Scope, sha256_hex};
use crate::clock::rfc3339;
use crate::foreign::{clean, is_clean};
use crate::source::etcd::Need;
use crate::source::view::View;

/// A plan is good for so long, in ms.
const GOOD_FOR_MS: i64 = 900_000;
/// Partitions of a topic at most, as brokers allow it.
const MAX_PARTITIONS: i64 = 100_000;

const PLAN: &str = "{plan:(create_topic|update_topic_config|add_partitions|reset_offsets),state:(ready|nothing_to_do|blocked),current:*,desired:*,diff:[{what:s,before:*,after:*}],impact:[s],violations:[s],precondition_hash:s,expires_at:s,commands:[s],rollback:[s],note:s}";

pub(super) const PLAN_CREATE_TOPIC: ToolSpec = ToolSpec {
    name: "plan_create_topic",
    title: "Plan: create a topic",
    description: "Plan the creation of a topic: what it would be, policy violations, the command for a person to run. Applies nothing.",
    scope: Scope::Plan,
    cost: 2,
    params: &[
        required("topic", TOPIC, ""),
        required("partitions", Kind::Int(1, MAX_PARTITIONS), ""),
        optional("configs", Kind::Map, "topic configs"),
    ],
    output: PLAN,
};

pub(super) const PLAN_UPDATE_TOPIC_CONFIG: ToolSpec = ToolSpec {
    name: "plan_update_topic_config",
    title: "Plan: change topic configs",
    description: "Plan a change of a topic's configuration (retention and others): diff, impact on consumers, rollback, commands. Applies nothing.",
    scope: Scope::Plan,
    cost: 2,
    params: &[required("topic", TOPIC, ""), required("configs", Kind::Map, "what is to be set")],
    output: PLAN,
};

pub(super) const PLAN_ADD_PARTITIONS: ToolSpec = ToolSpec {
    name: "plan_add_partitions",
    title: "Plan: add partitions",
    description: "Plan more partitions for a topic: impact on key order and groups, command. It cannot be undone. Applies nothing.",
    scope: Scope::Plan,
    cost: 2,
    params: &[required("topic", TOPIC, ""), required("partitions", Kind::Int(1, MAX_PARTITIONS), "in all")],
    output: PLAN,
};

pub(super) const PLAN_RESET_OFFSETS: ToolSpec = ToolSpec {
    name: "plan_reset_offsets",
    title: "Plan: reset a group's offsets",
    description: "Plan a reset of a consumer group's offsets of a topic to earliest or latest: records skipped or read again, rollback, commands. Applies nothing.",
    scope: Scope::Plan,
    cost: 3,
    params: &[
        required("group_id", GROUP, ""),
        required("topic", TOPIC, ""),
        required("to", Kind::OneOf(&["earliest", "latest"]), ""),
    ],
    output: PLAN,
};

pub(super) const CHECK_PLAN: ToolSpec = ToolSpec {
    name: "check_plan",
    title: "Check a plan",
    description: "Check a plan before and after a person runs it: is what it rests on still so, and is what it wants done. Give the plan's own arguments.",
    scope: Scope::Plan,
    cost: 3,
    params: &[
        required(
            "plan",
            Kind::OneOf(&["create_topic", "update_topic_config", "add_partitions", "reset_offsets"]),
            "",
        ),
        required("precondition_hash", Kind::Text(64), ""),
        optional("topic", TOPIC, ""),
        optional("group_id", GROUP, ""),
        optional("partitions", Kind::Int(1, MAX_PARTITIONS), ""),
        optional("configs", Kind::Map, ""),
        optional("to", Kind::OneOf(&["earliest", "latest"]), ""),
    ],
    output: "{plan:s,verdict:(applied|still_valid|stale),precondition_hash_now:s,current:*,desired:*,remaining:[{what:s,before:*,after:*}]}",
};

/// Which plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kinds {
    Create,
    Update,
    Add,
    Reset,
}

impl Kinds {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create_topic",
            Self::Update => "update_topic_config",
            Self::Add => "add_partitions",
            Self::Reset => "reset_offsets",
        }
    }
}

/// A plan that was worked out.
struct Plan {
    kind: Kinds,
    current: Value,
    desired: Value,
    impact: Vec<String>,
    violations: Vec<String>,
    commands: Vec<String>,
    rollback: Vec<String>,
}

impl Plan {
    fn hash(&self) -> String {
        sha256_hex(json!([self.kind.as_str(), self.current]).to_string().as_bytes())
            .chars()
            .take(32)
            .collect()
    }

    /// What differs, by name.
    fn diff(&self) -> Vec<Value> {
        let empty = serde_json::Map::new();
        let (before, after) =
            (self.current.as_object().unwrap_or(&empty), self.desired.as_object().unwrap_or(&empty));
        let differing = after.iter().filter(|(name, value)| before.get(*name) != Some(value));
        differing
            .map(|(name, value)| json!({"what": name, "before": before.get(name), "after": value}))
            .collect()
    }

    fn body(&self, now_ms: i64) -> Body {
        let diff = self.diff();
        let state = match (self.violations.is_empty(), diff.is_empty()) {
            (false, _) => "blocked",
            (true, true) => "nothing_to_do",
            (true, false) => "ready",
        };
        let is_ready = state == "ready";
        body(json!({
            "plan": self.kind.as_str(), "state": state, "current": self.current, "desired": self.desired, "diff": diff,
            "impact": self.impact, "violations": self.violations, "precondition_hash": self.hash(),
            "expires_at": rfc3339(now_ms + GOOD_FOR_MS),
            "commands": if is_ready { &self.commands[..] } else { &[] },
            "rollback": if is_ready { &self.rollback[..] } else { &[] },
            "note": "nothing was changed; a person runs the commands, with $BOOTSTRAP set to host:port of a broker, and then asks check_plan",
        }))
    }
}

/// An argument of a shell command. Only plain names are put into commands.
fn quoted(text: &str) -> Result<String, ToolError> {
    let is_plain = is_clean(text) && !text.contains(['\'', '\\']) && !text.starts_with('-');
    if !is_plain {
        return Err(ToolError::new(
            Code::InvalidArgument,
            "a name with quotes, control characters or a leading dash is put into no command",
        ));
    }
    let needs_none = text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    Ok(if needs_none && !text.is_empty() { text.to_owned() } else { format!("'{text}'") })
}

fn missing(argument: &str) -> ToolError {
    ToolError::new(Code::InvalidArgument, format!("{argument} is missing for this plan"))
}

/// Configs that a caller wants, checked as a broker would.
fn wanted_configs(call: &Call<'_>) -> (BTreeMap<String, String>, Vec<String>) {
    let given = call.args.map("configs").unwrap_or_default();
    let violations = given
        .iter()
        .filter_map(|(name, value)| topic_configs::check(name, value).err().map(|why| clean(&why)));
    let violations = violations.collect();
    (given.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect(), violations)
}

fn pairs(configs: &BTreeMap<String, String>) -> Result<String, ToolError> {
    let all = configs.iter().map(|(name, value)| {
        // A list is put into brackets for kafka-configs.
        let value = if value.contains(',') { format!("[{value}]") } else { value.clone() };
        quoted(&format!("{name}={value}"))
    });
    Ok(all.collect::<Result<Vec<_>, _>>()?.join(","))
}

async fn work_out(call: &mut Call<'_>, kind: Kinds) -> Result<Plan, ToolError> {
    let view = call.view(Need::All).await?;
    let topic = call.args.text("topic").ok_or_else(|| missing("topic"))?.to_owned();
    match kind {
        Kinds::Create => create(call, &view, &topic),
        Kinds::Update => update(call, &view, &topic),
        Kinds::Add => add(call, &view, &topic),
        Kinds::Reset => reset(call, &view, &topic),
    }
}

fn create(call: &Call<'_>, view: &View, topic: &str) -> Result<Plan, ToolError> {
    let partitions = call.args.int("partitions").ok_or_else(|| missing("partitions"))?;
    let (configs, mut violations) = wanted_configs(call);
    let is_name = !topic.is_empty()
        && topic != "."
        && topic != ".."
        && topic.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if !is_name {
        violations.push("a topic's name has letters, digits, '.', '_' and '-' only".to_owned());
    }
    if !call.sees_topic(topic) {
        violations.push("the name is outside of this caller's prefixes".to_owned());
    }
    let existing = view.topics.get(topic).filter(|_| call.sees_topic(topic)).map(|t| &t.value);
    let current = json!({"exists": existing.is_some(), "partitions": existing.map(|t| t.partitions), "configs": existing.map(|t| &t.configs)});
    if let Some(known) = existing
        && (i64::from(known.partitions) != partitions || known.configs != configs)
    {
        violations.push("a topic of that name exists and is not like this".to_owned());
    }
    let own = configs.iter().map(|(n, v)| Ok(format!(" --config {}", quoted(&format!("{n}={v}"))?)));
    let own: String = own.collect::<Result<Vec<_>, ToolError>>()?.concat();
    let name = if is_name { topic.to_owned() } else { String::new() };
    Ok(Plan {
        kind: Kinds::Create,
        current,
        desired: json!({"exists": true, "partitions": partitions, "configs": configs}),
        impact: vec![format!("{partitions} partitions are added to the state of every broker")],
        violations,
        commands: vec![format!(
            "kafka-topics --bootstrap-server \"$BOOTSTRAP\" --create --topic {name} --partitions {partitions}{own}"
        )],
        rollback: vec![format!(
            "kafka-topics --bootstrap-server \"$BOOTSTRAP\" --delete --topic {name}   # deletes its records, too"
        )],
    })
}

fn configs_json(topic: &TopicValue, names: &BTreeMap<String, String>) -> Value {
    let of = |name: &String| (name.clone(), json!(topic.configs.get(name)));
    Value::Object(names.keys().map(of).collect())
}

fn update(call: &Call<'_>, view: &View, name: &str) -> Result<Plan, ToolError> {
    let topic = topics::find(call, view, name)?;
    let (configs, violations) = wanted_configs(call);
    if configs.is_empty() {
        return Err(missing("configs"));
    }
    let mut impact = Vec::new();
    let now = |config: &str| topics::effective_number(config, topic, &view.defaults);
    for config in ["retention.ms", "retention.bytes"] {
        let after = configs.get(config).and_then(|v| v.parse::<i64>().ok());
        let Some((before, after)) = now(config).zip(after) else { continue };
        if after >= 0 && (before < 0 || after < before) {
            impact.push(format!("{config} shrinks from {before} to {after}: records beyond it are deleted for good within minutes"));
            let readers = view.group_ids().into_iter().filter(|id| {
                call.sees_group(id)
                    && lag::rows(call, view, id)
                        .iter()
                        .any(|r| r.topic == name && r.lag.is_some_and(|l| l > 0))
            });
            let readers: Vec<String> = readers.take(10).map(clean).collect();
            if !readers.is_empty() {
                impact.push(format!("groups that have not read everything: {}", readers.join(", ")));
            }
        }
    }
    for name in configs.keys().filter(|n| topic_configs::find(n).is_some_and(|c| c.synonym.is_none())) {
        impact.push(format!("{} is accepted and has no effect here", clean(name)));
    }
    let entity = format!(
        "kafka-configs --bootstrap-server \"$BOOTSTRAP\" --alter --entity-type topics --entity-name {}",
        quoted(name)?
    );
    let (set, unset): (Vec<_>, Vec<_>) = configs.keys().partition(|n| topic.configs.contains_key(*n));
    let mut rollback = Vec::new();
    if !set.is_empty() {
        let before =
            set.into_iter().filter_map(|n| Some((n.clone(), topic.configs.get(n)?.clone()))).collect();
        rollback.push(format!("{entity} --add-config {}", pairs(&before)?));
    }
    if !unset.is_empty() {
        let names = unset.iter().map(|n| quoted(n)).collect::<Result<Vec<_>, _>>()?;
        rollback.push(format!("{entity} --delete-config {}", names.join(",")));
    }
    Ok(Plan {
        kind: Kinds::Update,
        current: configs_json(topic, &configs),
        desired: json!(configs),
        impact,
        violations,
        commands: vec![format!("{entity} --add-config {}", pairs(&configs)?)],
        rollback,
    })
}

fn add(call: &Call<'_>, view: &View, name: &str) -> Result<Plan, ToolError> {
    let topic = topics::find(call, view, name)?;
    let partitions = call.args.int("partitions").ok_or_else(|| missing("partitions"))?;
    let mut violations = Vec::new();
    if partitions < i64::from(topic.partitions) {
        violations.push(format!("the topic has {} partitions; there cannot be fewer", topic.partitions));
    }
    let readers = view.group_ids().into_iter().filter(|id| {
        call.sees_group(id)
            && (view.offsets.get(*id).is_some_and(|o| o.contains_key(name))
                || groups::subscribed(view, id).contains(name))
    });
    let readers: Vec<String> = readers.take(10).map(clean).collect();
    let mut impact = vec!["keys go to other partitions from then on: order per key breaks once".to_owned()];
    if !readers.is_empty() {
        impact.push(format!("these groups rebalance: {}", readers.join(", ")));
    }
    Ok(Plan {
        kind: Kinds::Add,
        current: json!({"partitions": topic.partitions}),
        desired: json!({"partitions": partitions}),
        impact,
        violations,
        commands: vec![format!(
            "kafka-topics --bootstrap-server \"$BOOTSTRAP\" --alter --topic {} --partitions {partitions}",
            quoted(name)?
        )],
        rollback: vec!["# partitions cannot be taken away again".to_owned()],
    })
}

fn reset(call: &Call<'_>, view: &View, name: &str) -> Result<Plan, ToolError> {
    let wanted = call.args.text("group_id").ok_or_else(|| missing("group_id"))?.to_owned();
    let id = call.find_group(view, &wanted)?.to_owned();
    let topic = topics::find(call, view, name)?;
    let to = call.args.text("to").ok_or_else(|| missing("to"))?;
    let (mut current, mut desired) = (serde_json::Map::new(), serde_json::Map::new());
    let (mut skipped, mut again, mut lines) = (0_i64, 0_i64, Vec::new());
    let mut violations = Vec::new();
    let members = groups::summary(view, &id).members;
    if members > 0 {
        violations.push(format!("the group has {members} members: offsets are reset while nobody is in it"));
    }
    for partition in 0..topic.partitions {
        let committed = view.commit(&id, name, topic.topic_id, partition).map(|c| c.committed.offset);
        let Some(marks) = view.marks(topic.topic_id, partition).map(|m| m.marks) else {
            violations.push(format!("how far partition {partition} is, is not known yet"));
            continue;
        };
        let target = if to == "earliest" { marks.log_start } else { marks.end };
        let key = format!("{name}-{partition}");
        // What grows meanwhile is no reason for a plan to be stale.
        current.insert(key.clone(), json!(committed));
        desired.insert(key, json!(target));
        let from = committed.unwrap_or(marks.log_start);
        skipped += (target - from).max(0);
        again += (from - target).max(0);
        lines.extend(committed.map(|c| format!("{name},{partition},{c}")));
    }
    let tool = format!(
        "kafka-consumer-groups --bootstrap-server \"$BOOTSTRAP\" --group {} --reset-offsets --execute",
        quoted(&id)?
    );
    Ok(Plan {
        kind: Kinds::Reset,
        current: Value::Object(current),
        desired: Value::Object(desired),
        impact: vec![format!("{skipped} records are never read, {again} are read again")],
        violations,
        commands: vec![format!("{tool} --topic {} --to-{to}", quoted(name)?)],
        rollback: vec![format!(
            "printf '%s\\n' {} > offsets.csv && {tool} --from-file offsets.csv",
            lines.iter().map(|l| format!("'{l}'")).collect::<Vec<_>>().join(" ")
        )],
    })
}

pub(super) async fn plan_create_topic(call: &mut Call<'_>) -> Result<Body, ToolError> {
    Ok(work_out(call, Kinds::Create).await?.body(call.now_ms))
}

pub(super) async fn plan_update_topic_config(call: &mut Call<'_>) -> Result<Body, ToolError> {
    Ok(work_out(call, Kinds::Update).await?.body(call.now_ms))
}

pub(super) async fn plan_add_partitions(call: &mut Call<'_>) -> Result<Body, ToolError> {
    Ok(work_out(call, Kinds::Add).await?.body(call.now_ms))
}

pub(super) async fn plan_reset_offsets(call: &mut Call<'_>) -> Result<Body, ToolError> {
    Ok(work_out(call, Kinds::Reset).await?.body(call.now_ms))
}

pub(super) async fn check_plan(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let kind = match call.args.text("plan") {
        Some("create_topic") => Kinds::Create,
        Some("update_topic_config") => Kinds::Update,
        Some("add_partitions") => Kinds::Add,
        _ => Kinds::Reset,
    };
    let expected = call.args.text("precondition_hash").unwrap_or_default().to_owned();
    let plan = work_out(call, kind).await?;
    let (remaining, now) = (plan.diff(), plan.hash());
    let verdict = match (remaining.is_empty(), now == expected) {
        (true, _) => "applied",
        (false, true) => "still_valid",
        (false, false) => "stale",
    };
    Ok(body(json!({
        "plan": kind.as_str(), "verdict": verdict, "precondition_hash_now": now, "current": plan.current,
        "desired": plan.desired, "remaining": remaining,
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_come_into_commands() {
        assert_eq!(quoted("a.b-c_1").unwrap(), "a.b-c_1");
        assert_eq!(quoted("a b$(x)").unwrap(), "'a b$(x)'");
        for bad in ["a'b", "a\nb", "-rf", "a\\b", "\u{202e}"] {
            assert!(quoted(bad).is_err(), "{bad}");
        }
    }
}
