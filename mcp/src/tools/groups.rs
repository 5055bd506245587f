//! Consumer groups: which there are, who is in them, what they committed.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use strandline_metadata::placement;
use strandline_metadata::values::group::{
    Assignment, ClassicGroupValue, ClassicStateValue, ConsumerGroupValue, GroupState, MemberStateValue,
};

use super::answer::ToolError;
use super::page::{Page, is_behind};
use super::spec::{CURSOR, GROUP, Kind, LIMIT, TOPIC, ToolSpec, optional, required};
use super::{Body, Call, body, member};
use crate::access::Scope;
use crate::clock::rfc3339;
use crate::foreign::{clean, shown_config};
use crate::source::etcd::Need;
use crate::source::view::View;

/// The states that a group can be seen in.
const STATES: &[&str] = &["Empty", "CompletingRebalance", "Stable", "Assigning", "Reconciling"];

pub(super) const LIST_GROUPS: ToolSpec = ToolSpec {
    name: "list_groups",
    title: "List consumer groups",
    description: "List all consumer groups with state, type, number of members, coordinator and last commit; find the groups that consume a topic. Sorted by id.",
    scope: Scope::Read,
    cost: 2,
    params: &[
        optional("state", Kind::OneOf(STATES), ""),
        optional("topic", TOPIC, "only groups that committed or subscribe to it"),
        optional("prefix", GROUP, "only ids that begin so"),
        LIMIT,
        CURSOR,
    ],
    output: "{groups:[{group_id:s,state:s,protocol_type:s?,type:s,member_count:i,coordinator_id:i?,last_commit_at:s?}],total:i,next_cursor:s?}",
};

pub(super) const DESCRIBE_GROUP: ToolSpec = ToolSpec {
    name: "describe_group",
    title: "Describe a consumer group",
    description: "Describe a consumer group: state, protocol, coordinator, members with their assigned partitions and subscriptions, total lag, last commit. Hosts and member ids are null without the scope topology.",
    scope: Scope::Read,
    cost: 2,
    params: &[required("group_id", GROUP, ""), LIMIT, CURSOR],
    output: "{group_id:s,state:s,type:s,protocol_type:s?,protocol:s?,leader:s?,generation_id:i?,rebalance_timeout_ms:i?,state_since:s?,coordinator_id:i?,member_count:i,members:[{member_id:s?,instance_id:s?,client_id:s,client_host:s?,heartbeat_at:s?,state:s?,assignments:[{topic:s,partitions:[i]}]?,subscriptions:[s]?,session_timeout_ms:i?}],total_lag:i?,last_commit_at:s?,configs:<s>,next_cursor:s?}",
};

pub(super) const FETCH_OFFSETS: ToolSpec = ToolSpec {
    name: "fetch_offsets",
    title: "Fetch committed offsets",
    description: "Fetch the committed offsets of a consumer group per partition, with commit time, leader epoch and metadata. offset is null where nothing is committed.",
    scope: Scope::Read,
    cost: 2,
    params: &[
        required("group_id", GROUP, ""),
        optional("topics", Kind::Texts(200), "all if absent"),
        LIMIT,
        CURSOR,
    ],
    output: "{group_id:s,offsets:[{topic:s,partition:i,offset:i?,metadata:s?,committed_at:s?,leader_epoch:i?}],next_cursor:s?}",
};

/// A group in a few words, whatever protocol it speaks.
#[derive(Clone, Debug)]
pub(crate) struct Summary {
    pub(crate) state: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) protocol_type: Option<String>,
    pub(crate) members: usize,
    pub(crate) generation: Option<i32>,
}

/// A group in a few words; one that has only committed offsets is empty.
pub(crate) fn summary(view: &View, id: &str) -> Summary {
    match view.groups.get(id).map(|g| &g.value.group) {
        Some(GroupState::Classic(classic)) => Summary {
            state: classic_state(classic),
            kind: "classic",
            protocol_type: Some(clean(&classic.protocol_type)).filter(|t| !t.is_empty()),
            members: classic.members.len(),
            generation: Some(classic.generation),
        },
        Some(GroupState::Consumer(consumer)) => Summary {
            state: consumer_state(consumer),
            kind: "consumer",
            protocol_type: Some("consumer".to_owned()),
            members: consumer.members.len(),
            generation: Some(consumer.epoch),
        },
        None => {
            Summary { state: "Empty", kind: "classic", protocol_type: None, members: 0, generation: None }
        }
    }
}

fn classic_state(group: &ClassicGroupValue) -> &'static str {
    match group.state {
        ClassicStateValue::Empty => "Empty",
        ClassicStateValue::CompletingRebalance => "CompletingRebalance",
        ClassicStateValue::Stable => "Stable",
    }
}

fn consumer_state(group: &ConsumerGroupValue) -> &'static str {
    if group.members.is_empty() {
        "Empty"
    } else if group.epoch > group.assignment_epoch {
        "Assigning"
    } else if group
        .members
        .values()
        .any(|m| m.state != MemberStateValue::Stable || m.epoch < group.assignment_epoch)
    {
        "Reconciling"
    } else {
        "Stable"
    }
}

/// The topics that a group subscribes to, by name, as far as they are known.
pub(crate) fn subscribed(view: &View, id: &str) -> BTreeSet<String> {
    let Some(group) = view.groups.get(id) else { return BTreeSet::new() };
    match &group.value.group {
        GroupState::Classic(classic) => {
            let metadata = classic.members.values().filter_map(|m| m.protocols.first());
            metadata.flat_map(|p| member::subscription(&p.metadata.0).unwrap_or_default()).collect()
        }
        GroupState::Consumer(consumer) => {
            let named = consumer.members.values().flat_map(|m| m.subscribed_topics.iter().cloned());
            let known = consumer.topics.keys().filter_map(|id| view.names.get(id).cloned());
            named.chain(known).collect()
        }
    }
}

/// When the group last committed, ms since 1970.
pub(crate) fn last_commit_ms(call: &Call<'_>, view: &View, id: &str) -> Option<i64> {
    let topics = view.offsets.get(id)?.iter().filter(|(topic, _)| call.sees_topic(topic));
    topics
        .flat_map(|(_, parts)| parts.values())
        .flat_map(|o| o.value.partitions.values())
        .map(|c| c.time_ms)
        .max()
}

/// The broker that coordinates a group.
pub(crate) fn coordinator(view: &View, id: &str) -> Option<i32> {
    Some(placement::of_group(&view.candidates(), id)).filter(|&n| n >= 0)
}

pub(super) async fn list_groups(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let topic = call.args.text("topic").map(str::to_owned);
    // Topics are needed only where one is asked for.
    let need = if topic.is_some() { Need::GROUPS_AND_TOPICS } else { Need::GROUPS };
    let view = call.view(need).await?;
    let (after, limit) = (call.position()?, call.args.limit());
    let prefix = call.args.text("prefix").unwrap_or_default().to_owned();
    let state = call.args.text("state").map(str::to_owned);
    if let Some(topic) = &topic {
        super::topics::find(call, &view, topic)?;
    }
    let is_wanted = |id: &str| {
        let consumes = |topic: &String| {
            view.offsets.get(id).is_some_and(|o| o.contains_key(topic))
                || subscribed(&view, id).contains(topic)
        };
        call.sees_group(id)
            && id.starts_with(&prefix)
            && state.as_deref().is_none_or(|s| summary(&view, id).state == s)
            && topic.as_ref().is_none_or(consumes)
    };
    let wanted: Vec<&str> = view.group_ids().into_iter().filter(|id| is_wanted(id)).collect();
    let mut page = Page::default();
    for id in wanted.iter().filter(|id| after.as_deref().is_none_or(|a| **id > a)) {
        let group = summary(&view, id);
        let row = json!({
            "group_id": clean(id), "state": group.state, "protocol_type": group.protocol_type, "type": group.kind,
            "member_count": group.members, "coordinator_id": coordinator(&view, id),
            "last_commit_at": last_commit_ms(call, &view, id).and_then(rfc3339),
        });
        if !page.push(limit, *id, row) {
            break;
        }
    }
    let (total, next) = (wanted.len(), call.next_cursor(&page));
    Ok(body(json!({"groups": page.items, "total": total, "next_cursor": next})))
}

/// A member as it is shown.
struct Member {
    id: String,
    instance_id: Option<String>,
    client_id: String,
    client_host: String,
    state: Option<&'static str>,
    assigned: Option<BTreeMap<String, Vec<i32>>>,
    subscriptions: Option<Vec<String>>,
    session_timeout_ms: Option<i32>,
}

fn members(view: &View, id: &str) -> Vec<Member> {
    match view.groups.get(id).map(|g| &g.value.group) {
        None => Vec::new(),
        Some(GroupState::Classic(classic)) => {
            let is_consumer = classic.protocol_type == "consumer";
            let members = classic.members.iter().map(|(id, m)| Member {
                id: id.clone(),
                instance_id: m.instance_id.clone(),
                client_id: m.client_id.clone(),
                client_host: m.client_host.clone(),
                state: None,
                assigned: is_consumer.then(|| member::assignment(&m.assignment.0)).flatten(),
                subscriptions: m
                    .protocols
                    .first()
                    .filter(|_| is_consumer)
                    .and_then(|p| member::subscription(&p.metadata.0)),
                session_timeout_ms: Some(m.session_timeout_ms),
            });
            members.collect()
        }
        Some(GroupState::Consumer(consumer)) => {
            let members = consumer.members.iter().map(|(id, m)| Member {
                id: id.clone(),
                instance_id: m.instance_id.clone(),
                client_id: m.client_id.clone(),
                client_host: m.client_host.clone(),
                state: Some(match m.state {
                    MemberStateValue::Stable => "stable",
                    MemberStateValue::UnrevokedPartitions => "unrevoked_partitions",
                    MemberStateValue::UnreleasedPartitions => "unreleased_partitions",
                }),
                assigned: Some(by_name(view, &m.assigned)),
                subscriptions: Some(m.subscribed_topics.iter().cloned().collect()),
                session_timeout_ms: m.classic.as_ref().map(|c| c.session_timeout_ms),
            });
            members.collect()
        }
    }
}

fn by_name(view: &View, assignment: &Assignment) -> BTreeMap<String, Vec<i32>> {
    let named = assignment.iter().filter_map(|(id, partitions)| {
        let partitions = partitions.0.iter().filter_map(|&p| i32::try_from(p).ok()).collect();
        Some((view.names.get(id)?.clone(), partitions))
    });
    named.collect()
}

fn member_row(call: &Call<'_>, member: &Member) -> Value {
    let assignments = member.assigned.as_ref().map(|assigned| {
        let seen = assigned.iter().filter(|(topic, _)| call.sees_topic(topic));
        seen.map(|(topic, partitions)| json!({"topic": clean(topic), "partitions": partitions}))
            .collect::<Vec<_>>()
    });
    let subscriptions = member.subscriptions.as_ref().map(|topics| {
        topics.iter().filter(|topic| call.sees_topic(topic)).map(|topic| clean(topic)).collect::<Vec<_>>()
    });
    json!({
        "member_id": call.redacted(&member.id),
        "instance_id": member.instance_id.as_deref().and_then(|id| call.redacted(id)),
        "client_id": clean(&member.client_id),
        "client_host": call.redacted(&member.client_host),
        // Heartbeats that change nothing are stored nowhere.
        "heartbeat_at": null,
        "state": member.state,
        "assignments": assignments,
        "subscriptions": subscriptions,
        "session_timeout_ms": member.session_timeout_ms,
    })
}

pub(super) async fn describe_group(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let view = call.view(Need::ALL).await?;
    let wanted = call.args.text("group_id").unwrap_or_default().to_owned();
    let id = call.find_group(&view, &wanted)?.to_owned();
    let (after, limit) = (call.position()?, call.args.limit());
    let group = summary(&view, &id);
    let (protocol, leader, rebalance_timeout_ms) = match view.groups.get(&id).map(|g| &g.value.group) {
        Some(GroupState::Classic(classic)) => (
            classic.protocol.as_deref().map(clean),
            classic.leader.as_deref().and_then(|l| call.redacted(l)),
            classic.members.values().map(|m| m.rebalance_timeout_ms).max(),
        ),
        Some(GroupState::Consumer(consumer)) => (
            consumer.members.values().find_map(|m| m.server_assignor.as_deref().map(clean)),
            None,
            consumer.members.values().map(|m| m.rebalance_timeout_ms).max(),
        ),
        None => (None, None, None),
    };
    let mut page = Page::default();
    for member in members(&view, &id).iter().filter(|m| after.as_ref().is_none_or(|a| m.id > *a)) {
        let row = member_row(call, member);
        if !page.push(limit, member.id.as_str(), row) {
            break;
        }
    }
    let configs: BTreeMap<String, String> = view
        .group_configs
        .get(&id)
        .map(|c| c.value.configs.iter().map(|(n, v)| (clean(n), shown_config(n, v))).collect())
        .unwrap_or_default();
    let next = call.next_cursor(&page);
    Ok(body(json!({
        "group_id": clean(&id), "state": group.state, "type": group.kind, "protocol_type": group.protocol_type,
        "protocol": protocol, "leader": leader, "generation_id": group.generation,
        "rebalance_timeout_ms": rebalance_timeout_ms,
        "state_since": view.groups.get(&id).and_then(|g| rfc3339(g.value.state_since_ms)),
        "coordinator_id": coordinator(&view, &id), "member_count": group.members, "members": page.items,
        "total_lag": super::lag::sum(super::lag::rows(call, &view, &id).iter()).lag,
        "last_commit_at": last_commit_ms(call, &view, &id).and_then(rfc3339),
        "configs": configs, "next_cursor": next,
    })))
}

pub(super) async fn fetch_offsets(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let view = call.view(Need::OFFSETS).await?;
    let wanted = call.args.text("group_id").unwrap_or_default().to_owned();
    // Of groups, only those that committed are read here; one that did not has nothing to show but
    // nulls.
    let id = match call.find_group(&view, &wanted) {
        Ok(id) => id.to_owned(),
        Err(error) => {
            let groups = call.view(Need::PLAIN).await?;
            // The answer still rests on the first read.
            call.meta.revision = Some(view.revision);
            call.find_group(&groups, &wanted).map_err(|_| error)?.to_owned()
        }
    };
    let topics: BTreeSet<String> = if let Some(names) = call.args.texts("topics") {
        for name in &names {
            super::topics::find(call, &view, name)?;
        }
        names.into_iter().map(str::to_owned).collect()
    } else {
        let committed = view.offsets.get(&id).into_iter().flat_map(|topics| topics.keys());
        committed.filter(|t| call.sees_topic(t)).cloned().collect()
    };
    let (after, limit) = (call.partition_position()?, call.args.limit());
    let mut page = Page::default();
    'topics: for name in topics {
        let Some(topic) = view.topics.get(&name) else { continue };
        for partition in 0..topic.value.partitions {
            if !is_behind(after.as_ref(), &name, partition) {
                continue;
            }
            let commit = view.commit(&id, &name, topic.value.topic_id, partition).map(|c| c.committed);
            let row = json!({
                "topic": clean(&name), "partition": partition,
                "offset": commit.map(|c| c.offset),
                "metadata": commit.map(|c| clean(&c.metadata)),
                "committed_at": commit.and_then(|c| rfc3339(c.time_ms)),
                "leader_epoch": commit.map(|c| c.leader_epoch).filter(|&e| e >= 0),
            });
            if !page.push(limit, format!("{name}/{partition}"), row) {
                break 'topics;
            }
        }
    }
    let next = call.next_cursor(&page);
    Ok(body(json!({"group_id": clean(&id), "offsets": page.items, "next_cursor": next})))
}
