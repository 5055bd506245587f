//! Lag: how far groups are behind, as of one revision, and whether they catch up.
//!
//! Committed offsets and ends of partitions come from etcd, so lag is exact as of the watermarks'
//! revision also when brokers are down. Rates come from what earlier reads of etcd left behind.

mod readiness;
mod row;
mod total;

use std::cmp::Reverse;
use std::collections::BTreeSet;

use serde_json::{Value, json};

pub(super) use self::readiness::readiness;
pub(crate) use self::row::Judged;
pub(super) use self::row::{Row, Status, every, rows};
pub(super) use self::total::{sum, trend};
use super::answer::{Code, ToolError};
use super::figures::rounded;
use super::page::{Page, is_behind};
use super::spec::{CURSOR, GROUP, Kind, LIMIT, TOPIC, ToolSpec, optional, required};
use super::{Body, Call, body, groups, topics};
use crate::access::Scope;
use crate::clock::rfc3339;
use crate::foreign::clean;
use crate::source::etcd::Need;

pub(super) const GET_GROUP_LAG: ToolSpec = ToolSpec {
    name: "get_group_lag",
    title: "Get consumer group lag",
    description: "Show the consumer lag of a group per partition: committed offset, end offset, lag, consume and produce rate, estimated time to catch up, status.",
    scope: Scope::Read,
    cost: 2,
    params: &[
        required("group_id", GROUP, ""),
        optional("topics", Kind::Texts(200), "all if absent"),
        LIMIT,
        CURSOR,
    ],
    output: "{group_id:s,state:s,member_count:i,total_lag:i?,max_lag:i?,partition_count:i,never_committed:i,out_of_range:i,unknown:i,trend:(growing|shrinking|steady|unknown),partitions:[{topic:s,partition:i,committed_offset:i?,log_start_offset:i?,last_stable_offset:i?,end_offset:i?,lag:i?,held_back:i?,consume_rate:n?,produce_rate:n?,eta_s:i?,status:(ok|growing|stalled|held_back|never_committed|out_of_range|unknown),committed_at:s?}],next_cursor:s?}",
};

pub(super) const LIST_LAGGING_GROUPS: ToolSpec = ToolSpec {
    name: "list_lagging_groups",
    title: "List lagging consumer groups",
    description: "Find all consumer groups with lag above a threshold on any partition or in total, ranked by lag, with trend and the worst partition.",
    scope: Scope::Read,
    cost: 3,
    params: &[
        optional("min_lag", Kind::Int(0, i64::MAX), "default 1"),
        optional(
            "scope",
            Kind::OneOf(&["any_partition", "total"]),
            "what min_lag is compared with; default any_partition",
        ),
        LIMIT,
    ],
    output: "{groups:[{group_id:s,state:s,member_count:i,total_lag:i?,max_lag:i,worst:{topic:s,partition:i,status:s}?,never_committed:i,out_of_range:i,trend:(growing|shrinking|steady|unknown),last_commit_at:s?}],groups_checked:i,groups_unknown:i,total_matching:i}",
};

pub(super) const CHECK_REPLAY_READINESS: ToolSpec = ToolSpec {
    name: "check_replay_readiness",
    title: "Check whether retention overtakes a group",
    description: "Will retention overtake this consumer? Whether records that a group has not read are deleted already, or will be before it gets to them. A replay can begin at log_start_offset; the offset of a time is not known.",
    scope: Scope::Read,
    cost: 2,
    params: &[required("group_id", GROUP, ""), optional("topic", TOPIC, "all if absent"), LIMIT, CURSOR],
    output: "{group_id:s,verdict:(safe|at_risk|overtaken|unknown),partitions:[{topic:s,partition:i,verdict:(safe|at_risk|overtaken|unknown),committed_offset:i?,log_start_offset:i?,end_offset:i?,records_lost:i?,margin_records:i?,retention_ms:i?,retention_bytes:i?,bytes:i?,log_start_rate:n?,consume_rate:n?,overtaken_in_s:i?,reason:s}],next_cursor:s?}",
};

fn row_json(row: &Row) -> Value {
    json!({
        "topic": clean(&row.topic), "partition": row.partition,
        "committed_offset": row.now.committed, "log_start_offset": row.now.log_start,
        "last_stable_offset": row.now.last_stable, "end_offset": row.now.end,
        "lag": row.lag, "held_back": row.now.held_back(),
        "consume_rate": row.consume_rate.map(rounded), "produce_rate": row.produce_rate.map(rounded),
        "eta_s": row.eta_s, "status": row.status.as_str(),
        "committed_at": row.now.committed_at_ms.and_then(rfc3339),
    })
}

/// Says what rates rest on, if they rest on little.
fn note_rates(call: &mut Call<'_>) {
    let (reach, left_out) = {
        let progress = call.observer.samples.progress();
        (progress.reach(), progress.left_out)
    };
    if reach.0 < 2 {
        call.meta.warn(
            "no_history_yet",
            "the observer has just started: rates, trends and estimates are unknown for some seconds",
        );
    }
    if left_out > 0 {
        call.meta.missing(
            "rates_left_out",
            format!("{left_out} partitions have no rates: there are more than are sampled"),
        );
    }
}

pub(super) async fn get_group_lag(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let view = call.view(Need::ALL).await?;
    note_rates(call);
    let wanted = call.args.text("group_id").unwrap_or_default().to_owned();
    let id = call.find_group(&view, &wanted)?.to_owned();
    let (after, limit) = (call.partition_position()?, call.args.limit());
    let mut rows = rows(call, &view, &id);
    if let Some(names) = call.args.texts("topics") {
        for name in &names {
            topics::find(call, &view, name)?;
        }
        rows.retain(|r| names.contains(&&*r.topic));
    }
    let total = sum(rows.iter());
    let group = groups::summary(&view, &id);
    let mut page = Page::default();
    for row in rows.iter().filter(|r| is_behind(after.as_ref(), &r.topic, r.partition)) {
        if !page.push(limit, format!("{}/{}", row.topic, row.partition), row_json(row)) {
            break;
        }
    }
    if total.unknown > 0 {
        call.meta.missing("ends_unknown", format!("{} partitions have no watermarks yet", total.unknown));
    }
    let next = call.next_cursor(&page);
    Ok(body(json!({
        "group_id": clean(&id), "state": group.state, "member_count": group.members,
        "total_lag": total.lag, "max_lag": total.max_lag, "partition_count": total.partitions,
        "never_committed": total.never_committed, "out_of_range": total.out_of_range, "unknown": total.unknown,
        "trend": trend(&total), "partitions": page.items, "next_cursor": next,
    })))
}

pub(super) async fn list_lagging_groups(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let view = call.view(Need::ALL).await?;
    note_rates(call);
    let min_lag = call.args.int("min_lag").unwrap_or(1);
    let by_total = call.args.text("scope") == Some("total");
    let (mut checked, mut unknown, mut found) = (0, 0, Vec::new());
    let every = every(call, &view);
    for (id, rows) in every.iter().filter(|(id, _)| call.sees_group(id)) {
        checked += 1;
        let total = sum(rows.iter().filter(|r| call.sees_topic(&r.topic)));
        let measured = if by_total { total.lag } else { total.max_lag };
        if measured.is_none() && total.unknown > 0 {
            unknown += 1;
        }
        if let Some(max_lag) = total.max_lag.filter(|_| measured.is_some_and(|lag| lag >= min_lag)) {
            found.push((Reverse(measured), id, max_lag, total));
        }
    }
    found.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    let (limit, matching) = (call.args.limit(), found.len());
    let mut page = Page::default();
    for (_, id, max_lag, total) in found {
        let rows = every.get(id).into_iter().flatten().filter(|r| call.sees_topic(&r.topic));
        let worst = rows.filter(|r| r.lag.is_some()).max_by_key(|r| r.lag);
        let group = groups::summary(&view, id);
        let row = json!({
            "group_id": clean(id), "state": group.state, "member_count": group.members,
            "total_lag": total.lag, "max_lag": max_lag,
            "worst": worst.map(|r| json!({"topic": clean(&r.topic), "partition": r.partition, "status": r.status.as_str()})),
            "never_committed": total.never_committed, "out_of_range": total.out_of_range, "trend": trend(&total),
            "last_commit_at": groups::last_commit_ms(call, &view, id).and_then(rfc3339),
        });
        if !page.push(limit, id.as_str(), row) {
            call.meta.warn("output_truncated", "there are more groups: raise limit or min_lag");
            break;
        }
    }
    if unknown > 0 {
        call.meta.missing("ends_unknown", format!("the lag of {unknown} groups is unknown"));
    }
    Ok(body(json!({
        "groups": page.items, "groups_checked": checked, "groups_unknown": unknown, "total_matching": matching,
    })))
}

pub(super) async fn check_replay_readiness(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let view = call.view(Need::ALL).await?;
    note_rates(call);
    let wanted = call.args.text("group_id").unwrap_or_default().to_owned();
    let id = call.find_group(&view, &wanted)?.to_owned();
    let (after, limit) = (call.partition_position()?, call.args.limit());
    let mut rows = rows(call, &view, &id);
    if let Some(name) = call.args.text("topic").map(str::to_owned) {
        topics::find(call, &view, &name)?;
        rows.retain(|r| *r.topic == *name);
    }
    if rows.is_empty() {
        return Err(ToolError::new(
            Code::NotFound,
            "the group has to do with no partition that this caller sees",
        ));
    }
    let mut page = Page::default();
    let mut verdicts = BTreeSet::new();
    for row in &rows {
        let Some(topic) = view.topics.get(&*row.topic).map(|t| &t.value) else { continue };
        let number = |name: &str| topics::effective_number(name, topic, &view.defaults);
        let (retention_ms, retention_bytes) = (number("retention.ms"), number("retention.bytes"));
        let judged = readiness(row, topics::retains_forever(topic, &view.defaults));
        verdicts.insert(judged.verdict);
        if page.more_after.is_some() || !is_behind(after.as_ref(), &row.topic, row.partition) {
            continue;
        }
        let bytes = view.marks(row.topic_id, row.partition).map(|m| m.marks.bytes);
        let json = json!({
            "topic": clean(&row.topic), "partition": row.partition, "verdict": judged.verdict,
            "committed_offset": row.now.committed, "log_start_offset": row.now.log_start, "end_offset": row.now.end,
            "records_lost": judged.lost, "margin_records": judged.margin,
            "retention_ms": retention_ms, "retention_bytes": retention_bytes, "bytes": bytes,
            "log_start_rate": row.log_start_rate.map(rounded), "consume_rate": row.consume_rate.map(rounded),
            "overtaken_in_s": judged.overtaken_in_s, "reason": judged.reason,
        });
        page.push(limit, format!("{}/{}", row.topic, row.partition), json);
    }
    let verdict =
        ["overtaken", "at_risk", "unknown"].into_iter().find(|v| verdicts.contains(v)).unwrap_or("safe");
    let next = call.next_cursor(&page);
    Ok(body(
        json!({"group_id": clean(&id), "verdict": verdict, "partitions": page.items, "next_cursor": next}),
    ))
}
