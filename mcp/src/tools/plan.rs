//! Plans: changes thought through, with the commands for a person to run. Nothing is applied here.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::answer::{Code, ToolError};
use super::spec::{GROUP, Kind as Arg, TOPIC, ToolSpec, optional, required};
use super::{Body, Call, body, groups, lag, topics};
use crate::access::{Scope, sha256_hex};
use crate::clock::rfc3339;
use crate::foreign::{clean, is_clean, shown_config};
use crate::limits::PLAN_PARTITIONS;
use crate::plan::{Difference, Draft, Kind, State, Verdict, compare, hash, offsets, topic};
use crate::source::etcd::Need;
use crate::source::view::View;

/// Consumers of a topic that a plan names.
const CONSUMERS: usize = 50;

/// The shape of every plan.
const PLAN: &str = "{plan_id:s?,kind:s,topic:s,group_id:s?,runnable:b,current_state:<*>,diff:[{what:s,before:*,after:*}],impact:[s],policy_violations:[{code:s,blocking:b,message:s}],precondition_hash:s,expires_at:s?,commands:[s],verification:[s],rollback:{possible:b,commands:[s],note:s}}";

/// How many partitions.
const PARTITIONS: Arg = Arg::Int(1, 100_000);

pub(super) const PLAN_CREATE_TOPIC: ToolSpec = ToolSpec {
    name: "plan_create_topic",
    title: "Plan: create a topic",
    description: "Plan the creation of a topic: checks, impact, rollback and the kafka-topics.sh command for a person to run. Applies nothing.",
    scope: Scope::Plan,
    cost: 2,
    params: &[
        required("topic", TOPIC, ""),
        required("partitions", PARTITIONS, ""),
        optional("configs", Arg::Map, ""),
    ],
    output: PLAN,
};

pub(super) const PLAN_UPDATE_TOPIC_CONFIG: ToolSpec = ToolSpec {
    name: "plan_update_topic_config",
    title: "Plan: change topic configs",
    description: "Plan a change of a topic's configs (retention …): difference, what retention would take, rollback and the kafka-configs.sh command. Applies nothing.",
    scope: Scope::Plan,
    cost: 3,
    params: &[
        required("topic", TOPIC, ""),
        optional("set", Arg::Map, "configs with their values"),
        optional("unset", Arg::Texts(50), "configs to go back to the default"),
    ],
    output: PLAN,
};

pub(super) const PLAN_ADD_PARTITIONS: ToolSpec = ToolSpec {
    name: "plan_add_partitions",
    title: "Plan: add partitions",
    description: "Plan more partitions for a topic: what it does to keys and consumers, and the kafka-topics.sh command. Applies nothing.",
    scope: Scope::Plan,
    cost: 3,
    params: &[required("topic", TOPIC, ""), required("partitions", PARTITIONS, "in all")],
    output: PLAN,
};

pub(super) const PLAN_RESET_OFFSETS: ToolSpec = ToolSpec {
    name: "plan_reset_offsets",
    title: "Plan: reset consumer group offsets",
    description: "Plan a reset of a group's committed offsets: records that are read again or skipped, rollback and the kafka-consumer-groups.sh commands. Applies nothing.",
    scope: Scope::Plan,
    cost: 3,
    params: &[
        required("group_id", GROUP, ""),
        required("topic", TOPIC, ""),
        required("to", Arg::OneOf(&["earliest", "latest", "offset"]), ""),
        optional("offset", Arg::Int(0, i64::MAX), "for to=offset"),
        optional("partitions", Arg::Ints(PLAN_PARTITIONS), "all if absent"),
    ],
    output: PLAN,
};

pub(super) const CHECK_PLAN: ToolSpec = ToolSpec {
    name: "check_plan",
    title: "Check a plan",
    description: "Check a plan against the live state: unchanged (its commands still fit), applied, changed (by what), or expired.",
    scope: Scope::Plan,
    cost: 2,
    params: &[required("plan_id", Arg::Text(64), "")],
    output: "{plan_id:s,kind:s,topic:s,group_id:s?,state:(unchanged|applied|changed|expired),safe_to_run:b,differences:[{what:s,planned:*,live:*}],precondition_hash:s,live_hash:s,expires_at:s?}",
};

/// An address of a broker for the commands, if the caller may see addresses.
fn bootstrap(call: &Call<'_>, view: &View) -> Option<String> {
    let broker = view.brokers.values().find(|b| !b.value.draining).filter(|_| call.topology())?;
    Some(clean(&format!("{}:{}", broker.value.host, broker.value.port)))
}

/// A name goes into commands as it is, so it must be one that is shown as it is.
fn printable(what: &str, name: &str) -> Result<(), ToolError> {
    if is_clean(name) {
        return Ok(());
    }
    let message = format!(
        "{what}: a name with control or invisible characters, or of more than 250 bytes, cannot be put into a command"
    );
    Err(ToolError::new(Code::InvalidArgument, message))
}

fn existing(view: &View, name: &str) -> Option<(String, u32, BTreeMap<String, String>)> {
    let topic = &view.topics.get(name)?.value;
    Some((topic.topic_id.to_string(), topic.partitions, topic.configs.clone()))
}

/// What is known of a topic, which the caller sees.
fn facts(call: &Call<'_>, view: &View, name: &str, with_consumers: bool) -> topic::Facts {
    let stored = view.topics.get(name).map(|t| &t.value);
    let bytes = stored
        .and_then(|t| (0..t.partitions).map(|p| view.marks(t.topic_id, p).map(|m| m.marks.bytes)).collect());
    let plain = |text: &str| text.replace('_', ".");
    let collides = view.topics.keys().any(|other| other != name && plain(other) == plain(name));
    topic::Facts {
        name: name.to_owned(),
        existing: existing(view, name),
        defaults: view.defaults.clone(),
        bytes,
        consumers: if with_consumers { consumers(call, view, name) } else { Vec::new() },
        collides,
        bootstrap: bootstrap(call, view),
    }
}

/// The groups that consume a topic and that the caller sees, with their lag on it.
fn consumers(call: &Call<'_>, view: &View, name: &str) -> Vec<(String, Option<i64>)> {
    let seen = view.group_ids().into_iter().filter(|id| call.sees_group(id));
    let consuming = seen.filter(|id| {
        view.offsets.get(*id).is_some_and(|topics| topics.contains_key(name))
            || groups::subscribed(view, id).contains(name)
    });
    let with_lag = consuming.take(CONSUMERS).map(|id| {
        let rows: Vec<lag::Row> =
            lag::rows(call, view, id).into_iter().filter(|r| *r.topic == *name).collect();
        (clean(id), lag::sum(rows.iter()).lag)
    });
    with_lag.collect()
}

/// A state as it is shown: secrets masked, texts of strangers cleaned.
fn shown(state: &State) -> Map<String, Value> {
    state.iter().map(|(name, value)| (clean(name), shown_value(name, value))).collect()
}

fn shown_value(name: &str, value: &Value) -> Value {
    match value {
        Value::String(text) => shown_config(name, text).into(),
        other => other.clone(),
    }
}

fn diff_rows(diff: &[Difference], before: &str, after: &str) -> Vec<Value> {
    let row = |d: &Difference| json!({"what": clean(&d.what), before: shown_value(&d.what, &d.before), after: shown_value(&d.what, &d.after)});
    diff.iter().map(row).collect()
}

/// Keeps a plan that can be run, and shows it.
fn answer(call: &Call<'_>, draft: Draft) -> Body {
    let (hash, is_runnable) = (draft.precondition_hash(), draft.is_runnable());
    let violations: Vec<Value> = draft
        .violations
        .iter()
        .map(|v| json!({"code": v.code, "blocking": v.blocking, "message": v.message}))
        .collect();
    // What would be refused has no commands: they would only tempt.
    let lines = |all: &[String]| if is_runnable { json!(all) } else { json!([]) };
    let mut value = json!({
        "kind": draft.kind.as_str(), "topic": clean(&draft.topic), "group_id": draft.group.as_deref().map(clean),
        "runnable": is_runnable, "current_state": shown(&draft.current),
        "diff": diff_rows(&draft.diff, "before", "after"), "impact": draft.impact, "policy_violations": violations,
        "precondition_hash": hash, "commands": lines(&draft.commands), "verification": lines(&draft.verification),
        "rollback": {
            "possible": draft.rollback.possible, "commands": lines(&draft.rollback.commands), "note": draft.rollback.note,
        },
        "plan_id": null, "expires_at": null,
    });
    if is_runnable {
        let seed = format!("{}{}{hash}", call.request_id, draft.kind.as_str());
        let id: String = sha256_hex(seed.as_bytes()).chars().take(16).collect();
        let id = format!("plan-{id}");
        let ends = call.observer.plans.keep(&id, &call.principal.name, call.now_ms, draft);
        value["plan_id"] = id.into();
        value["expires_at"] = json!(rfc3339(ends));
    }
    body(value)
}

fn given(call: &Call<'_>, name: &str) -> Vec<(String, String)> {
    let pairs = call.args.map(name).unwrap_or_default();
    pairs.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
}

/// Values go into commands as they are, too.
fn printable_configs(set: &[(String, String)]) -> Result<(), ToolError> {
    set.iter()
        .try_for_each(|(name, value)| printable("configs", name).and_then(|()| printable("configs", value)))
}

pub(super) async fn plan_create_topic(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let name = call.args.text("topic").unwrap_or_default().to_owned();
    printable("topic", &name)?;
    // Whether a topic of others exists is not said.
    if !call.sees_topic(&name) {
        let message = "this caller may plan for topics with its own prefixes only";
        return Err(
            ToolError::new(Code::PermissionDenied, message).suggest("explain_access shows the prefixes")
        );
    }
    let view = call.view(Need::PLAIN_AND_TOPICS).await?;
    let set = given(call, "configs");
    printable_configs(&set)?;
    let partitions = call.args.int("partitions").and_then(|n| u32::try_from(n).ok()).unwrap_or(1);
    let draft = topic::create(&facts(call, &view, &name, false), partitions, &set);
    Ok(answer(call, draft))
}

pub(super) async fn plan_update_topic_config(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let view = call.view(Need::ALL).await?;
    let name = call.args.text("topic").unwrap_or_default().to_owned();
    topics::find(call, &view, &name)?;
    let set = given(call, "set");
    let unset: Vec<String> =
        call.args.texts("unset").unwrap_or_default().into_iter().map(str::to_owned).collect();
    printable_configs(&set)?;
    unset.iter().try_for_each(|name| printable("unset", name))?;
    let draft = topic::update(&facts(call, &view, &name, true), &set, &unset);
    Ok(answer(call, draft))
}

pub(super) async fn plan_add_partitions(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let view = call.view(Need::ALL).await?;
    let name = call.args.text("topic").unwrap_or_default().to_owned();
    topics::find(call, &view, &name)?;
    let partitions = call.args.int("partitions").and_then(|n| u32::try_from(n).ok()).unwrap_or(1);
    let draft = topic::add_partitions(&facts(call, &view, &name, true), partitions);
    Ok(answer(call, draft))
}

/// What is known of a group and a topic.
fn offset_facts(
    call: &Call<'_>,
    view: &View,
    id: &str,
    name: &str,
    wanted: &BTreeSet<u32>,
) -> Option<offsets::Facts> {
    let topic = &view.topics.get(name)?.value;
    let place = |partition: u32| offsets::Place {
        committed: view.commit(id, name, topic.topic_id, partition).map(|c| c.committed.offset),
        marks: view.marks(topic.topic_id, partition).map(|m| (m.marks.log_start, m.marks.end)),
    };
    Some(offsets::Facts {
        group: id.to_owned(),
        topic: name.to_owned(),
        topic_id: topic.topic_id.to_string(),
        partitions: topic.partitions,
        members: groups::summary(view, id).members,
        places: wanted.iter().map(|p| (*p, place(*p))).collect(),
        bootstrap: bootstrap(call, view),
    })
}

pub(super) async fn plan_reset_offsets(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let view = call.view(Need::ALL).await?;
    let wanted = call.args.text("group_id").unwrap_or_default().to_owned();
    let id = call.find_group(&view, &wanted)?.to_owned();
    printable("group_id", &id)?;
    let name = call.args.text("topic").unwrap_or_default().to_owned();
    let count = topics::find(call, &view, &name)?.partitions;
    let to = match (call.args.text("to"), call.args.int("offset")) {
        (Some("offset"), Some(offset)) => offsets::To::Offset(offset),
        (Some("offset"), None) => {
            return Err(ToolError::new(Code::InvalidArgument, "offset: to=offset needs it"));
        }
        (_, Some(_)) => {
            return Err(ToolError::new(Code::InvalidArgument, "offset: it goes with to=offset only"));
        }
        (Some("latest"), None) => offsets::To::Latest,
        _ => offsets::To::Earliest,
    };
    let partitions: BTreeSet<u32> = match call.args.ints("partitions") {
        None => (0..count).collect(),
        Some(some) => {
            let known = some.into_iter().map(|p| u32::try_from(p).ok().filter(|p| *p < count).ok_or(p));
            known.collect::<Result<_, _>>().map_err(|p| {
                let message = format!("partitions: there is no partition {p}; the topic has {count}");
                ToolError::new(Code::NotFound, message)
            })?
        }
    };
    if partitions.len() > PLAN_PARTITIONS {
        let message = format!("partitions: a plan is for at most {PLAN_PARTITIONS} of them");
        return Err(
            ToolError::new(Code::OutputTooLarge, message).suggest("plan for some partitions at a time")
        );
    }
    let Some(facts) = offset_facts(call, &view, &id, &name, &partitions) else {
        return Err(ToolError::new(Code::NotFound, "the topic is gone"));
    };
    Ok(answer(call, offsets::reset(&facts, to)))
}

/// The live state of what a plan is for.
fn live(call: &Call<'_>, view: &View, plan: &Draft) -> State {
    match (&plan.kind, &plan.group) {
        (Kind::ResetOffsets, Some(id)) => {
            let planned = plan.current.keys().filter_map(|k| k.strip_prefix("offset ")?.parse().ok());
            let wanted: BTreeSet<u32> = planned.collect();
            offset_facts(call, view, id, &plan.topic, &wanted)
                .map(|facts| offsets::state(&facts))
                .unwrap_or_default()
        }
        _ => topic::state(existing(view, &plan.topic).as_ref()),
    }
}

pub(super) async fn check_plan(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let id = call.args.text("plan_id").unwrap_or_default().to_owned();
    let Some((plan, ends)) = call.observer.plans.find(&id, &call.principal.name) else {
        let message = format!("there is no plan {:?} of this caller, or not any more", clean(&id));
        return Err(ToolError::new(Code::NotFound, message).suggest("make the plan anew: it is cheap"));
    };
    let view = call.view(Need::ALL).await?;
    // Whoever lost the sight of a topic since does not get it back by an old plan.
    let sees = call.sees_topic(&plan.topic) && plan.group.as_deref().is_none_or(|g| call.sees_group(g));
    if !sees {
        let message = format!("there is no plan {:?} of this caller, or not any more", clean(&id));
        return Err(ToolError::new(Code::NotFound, message));
    }
    let live = live(call, &view, &plan);
    let verdict = compare(&plan, &live);
    let is_over = call.now_ms >= ends;
    let (state, differences) = match verdict {
        Verdict::Applied => ("applied", Vec::new()),
        _ if is_over => ("expired", Vec::new()),
        Verdict::Unchanged => ("unchanged", Vec::new()),
        Verdict::Changed(differences) => ("changed", differences),
    };
    Ok(body(json!({
        "plan_id": id, "kind": plan.kind.as_str(), "topic": clean(&plan.topic),
        "group_id": plan.group.as_deref().map(clean), "state": state, "safe_to_run": state == "unchanged",
        "differences": diff_rows(&differences, "planned", "live"),
        "precondition_hash": plan.precondition_hash(), "live_hash": hash(&live), "expires_at": rfc3339(ends),
    })))
}
