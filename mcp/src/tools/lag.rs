//! Lag: how far groups are behind, as of one revision, and whether they catch up.
//!
//! Committed offsets and ends of partitions come from etcd, so lag is exact as of the watermarks' revision also when
//! brokers are down. Rates come from what earlier reads of etcd left behind.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use uuid::Uuid;

use super::answer::{Code, ToolError};
use super::page::Page;
use super::spec::{CURSOR, GROUP, Kind, LIMIT, TOPIC, ToolSpec, optional, required};
use super::{Body, Call, body, groups, topics};
use crate::access::Scope;
use crate::clock::rfc3339;
use crate::foreign::clean;
use crate::source::etcd::Need;
use crate::source::history::precise;
use crate::source::progress::{Past, Progress};
use crate::source::view::View;

/// Rates are over this time at most, in ms.
const RATE_SPAN_MS: i64 = 300_000;
/// A group that commits nothing for so long while there is something to read is stalled, in ms.
const STALL_MS: i64 = 60_000;
/// A commit that is ahead of the watermarks for so long is out of range rather than new, in ms.
const AHEAD_MS: i64 = 30_000;

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
    output: "{group_id:s,state:s,member_count:i,total_lag:i?,max_lag:i?,partition_count:i,never_committed:i,out_of_range:i,unknown:i,trend:(growing|shrinking|steady|unknown),partitions:[{topic:s,partition:i,committed_offset:i?,log_start_offset:i?,end_offset:i?,lag:i?,consume_rate:n?,produce_rate:n?,eta_s:i?,status:(ok|growing|stalled|never_committed|out_of_range|unknown),committed_at:s?}],next_cursor:s?}",
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

/// How a partition of a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// It keeps up, or is catching up.
    Ok,
    /// More comes than it reads.
    Growing,
    /// There is something to read and it reads nothing.
    Stalled,
    /// It has committed nothing.
    NeverCommitted,
    /// What it committed is not in the log.
    OutOfRange,
    /// It cannot be said.
    Unknown,
}

impl Status {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Growing => "growing",
            Self::Stalled => "stalled",
            Self::NeverCommitted => "never_committed",
            Self::OutOfRange => "out_of_range",
            Self::Unknown => "unknown",
        }
    }
}

/// What is known of a partition of a group now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Now {
    pub(crate) at_ms: i64,
    pub(crate) committed: Option<i64>,
    pub(crate) committed_at_ms: Option<i64>,
    /// Revision of the key that the commit is in.
    pub(crate) commit_revision: i64,
    pub(crate) log_start: Option<i64>,
    pub(crate) end: Option<i64>,
    pub(crate) marks_revision: i64,
}

/// A partition of a group, judged.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) topic: String,
    pub(crate) topic_id: Uuid,
    pub(crate) partition: u32,
    pub(crate) now: Now,
    pub(crate) lag: Option<i64>,
    pub(crate) lag_before: Option<i64>,
    pub(crate) consume_rate: Option<f64>,
    pub(crate) produce_rate: Option<f64>,
    pub(crate) log_start_rate: Option<f64>,
    pub(crate) eta_s: Option<i64>,
    pub(crate) status: Status,
}

/// All of a group together.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Total {
    /// `None` if a part of it is unknown.
    pub(crate) lag: Option<i64>,
    pub(crate) max_lag: Option<i64>,
    pub(crate) partitions: usize,
    pub(crate) never_committed: usize,
    pub(crate) out_of_range: usize,
    pub(crate) unknown: usize,
    /// What the lag of those partitions was whose past is known, and is now.
    pub(crate) compared: Option<(i64, i64)>,
}

/// The lag of a partition; `None` if it is unknown.
fn lag_of(now: &Now) -> Option<i64> {
    Some((now.end? - now.committed?).max(0))
}

/// Whether what is committed is not in the log. A commit that is ahead of the end is new, and the watermarks are not,
/// unless it has been there for a while.
fn is_out_of_range(now: &Now) -> bool {
    let (Some(committed), Some(start), Some(end)) = (now.committed, now.log_start, now.end) else {
        return false;
    };
    let is_old = now.committed_at_ms.is_some_and(|t| now.at_ms - t > AHEAD_MS);
    committed < start || (committed > end && (is_old || now.commit_revision <= now.marks_revision))
}

/// Judges a partition by what it is and what it was.
pub(crate) fn judge(now: &Now, past: Option<Past>) -> (Status, Option<f64>, Option<f64>, Option<i64>) {
    let rate = |before: Option<i64>, after: Option<i64>| {
        let past = past?;
        let span_ms = now.at_ms - past.at_ms;
        (span_ms > 0).then_some(())?;
        Some(precise(after? - before?) * 1000.0 / precise(span_ms))
    };
    let consume = rate(past.and_then(|p| p.committed), now.committed).filter(|r| *r >= 0.0);
    let produce = rate(past.map(|p| p.end), now.end).filter(|r| *r >= 0.0);
    let Some(end) = now.end else { return (Status::Unknown, consume, produce, None) };
    let Some(committed) = now.committed else { return (Status::NeverCommitted, None, produce, None) };
    if is_out_of_range(now) {
        return (Status::OutOfRange, consume, produce, None);
    }
    let lag = (end - committed).max(0);
    if lag == 0 {
        return (Status::Ok, consume, produce, Some(0));
    }
    let silent_ms = now.committed_at_ms.map_or(i64::MAX, |t| now.at_ms - t);
    let (Some(consumed), Some(produced)) = (consume, produce) else {
        // Without a past it can be said only that nothing was committed for long.
        let status = if silent_ms > STALL_MS { Status::Stalled } else { Status::Unknown };
        return (status, consume, produce, None);
    };
    let gain = consumed - produced;
    let eta_s = (gain > 0.0).then(|| whole(precise(lag) / gain)).flatten();
    let status = if consumed == 0.0 && silent_ms > STALL_MS {
        Status::Stalled
    } else if gain < 0.0 {
        Status::Growing
    } else {
        Status::Ok
    };
    (status, consume, produce, eta_s)
}

/// A number of seconds that is not absurd.
#[expect(clippy::cast_possible_truncation, reason = "it is checked to be small")]
pub(crate) fn whole(seconds: f64) -> Option<i64> {
    (seconds.is_finite() && seconds.abs() < 1e12).then(|| seconds.ceil() as i64)
}

/// Two digits behind the point are as many as a rate has.
pub(crate) fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

/// The partitions that a group has to do with: of topics that it committed to or subscribes to, as far as the caller sees
/// them.
pub(crate) fn rows(call: &Call<'_>, view: &View, id: &str) -> Vec<Row> {
    let committed = view.offsets.get(id).into_iter().flat_map(|topics| topics.keys().cloned());
    let names: BTreeSet<String> =
        committed.chain(groups::subscribed(view, id)).filter(|t| call.sees_topic(t)).collect();
    let progress = call.observer.samples.progress();
    let mut rows = Vec::new();
    for name in names {
        let Some(topic) = view.topics.get(&name).map(|t| &t.value) else { continue };
        rows.extend(
            (0..topic.partitions).map(|partition| row(view, &progress, id, &name, topic.topic_id, partition)),
        );
    }
    rows
}

fn row(view: &View, progress: &Progress, id: &str, name: &str, topic_id: Uuid, partition: u32) -> Row {
    let commit = view.commit(id, name, topic_id, partition);
    let marks = view.marks(topic_id, partition);
    let now = Now {
        at_ms: view.read_at_ms,
        committed: commit.as_ref().map(|c| c.committed.offset),
        committed_at_ms: commit.as_ref().map(|c| c.committed.time_ms),
        commit_revision: commit.as_ref().map_or(0, |c| c.revision),
        log_start: marks.map(|m| m.marks.log_start),
        end: marks.map(|m| m.marks.end),
        marks_revision: marks.map_or(0, |m| m.revision),
    };
    let past = progress
        .past(id, topic_id, partition, view.read_at_ms - RATE_SPAN_MS)
        .filter(|p| p.at_ms < now.at_ms);
    let (status, consume_rate, produce_rate, eta_s) = judge(&now, past);
    let log_start_rate = past
        .zip(now.log_start)
        .map(|(past, start)| precise(start - past.log_start) * 1000.0 / precise(now.at_ms - past.at_ms));
    let lag_before = past.and_then(|p| Some((p.end - p.committed?).max(0)));
    Row {
        topic: name.to_owned(),
        topic_id,
        partition,
        now,
        lag: lag_of(&now),
        lag_before,
        consume_rate,
        produce_rate,
        log_start_rate,
        eta_s,
        status,
    }
}

/// All of some rows together.
pub(crate) fn sum(rows: &[Row]) -> Total {
    let count = |status: Status| rows.iter().filter(|r| r.status == status).count();
    let committed = || rows.iter().filter(|r| r.now.committed.is_some());
    // What was never committed has no lag; what was and has no end has an unknown one.
    let lag: Option<i64> = committed().map(|r| r.lag).sum();
    let compared = rows.iter().filter_map(|r| Some((r.lag_before?, r.lag?)));
    let compared = compared.fold(None, |sum: Option<(i64, i64)>, (before, now)| {
        let (b, n) = sum.unwrap_or_default();
        Some((b + before, n + now))
    });
    Total {
        lag: lag.filter(|_| committed().next().is_some()),
        max_lag: committed().filter_map(|r| r.lag).max(),
        partitions: rows.len(),
        never_committed: count(Status::NeverCommitted),
        out_of_range: count(Status::OutOfRange),
        unknown: rows.iter().filter(|r| r.now.committed.is_some() && r.now.end.is_none()).count(),
        compared,
    }
}

/// All of a group together.
pub(crate) fn total(call: &Call<'_>, view: &View, id: &str) -> Total {
    sum(&rows(call, view, id))
}

/// Where the lag goes: by more than a hundredth, or it is steady.
pub(crate) fn trend(total: &Total) -> &'static str {
    let Some((before, now)) = total.compared else { return "unknown" };
    let slack = (before / 100).max(1);
    match now - before {
        d if d > slack => "growing",
        d if d < -slack => "shrinking",
        _ => "steady",
    }
}

fn row_json(row: &Row) -> Value {
    json!({
        "topic": clean(&row.topic), "partition": row.partition,
        "committed_offset": row.now.committed, "log_start_offset": row.now.log_start, "end_offset": row.now.end,
        "lag": row.lag,
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
    let view = call.view(Need::All).await?;
    note_rates(call);
    let wanted = call.args.text("group_id").unwrap_or_default().to_owned();
    let id = call.find_group(&view, &wanted)?.to_owned();
    let (after, limit) = (call.position()?, call.args.limit());
    let after = after
        .as_deref()
        .and_then(|a| a.rsplit_once('/'))
        .map(|(t, p)| (t.to_owned(), p.parse::<i64>().unwrap_or(-1)));
    let mut rows = rows(call, &view, &id);
    if let Some(names) = call.args.texts("topics") {
        for name in &names {
            topics::find(call, &view, name)?;
        }
        rows.retain(|r| names.contains(&r.topic.as_str()));
    }
    let total = sum(&rows);
    let group = groups::summary(&view, &id);
    let mut page = Page::default();
    let rest = rows.iter().filter(|r| {
        after.as_ref().is_none_or(|(t, p)| (r.topic.as_str(), i64::from(r.partition)) > (t.as_str(), *p))
    });
    for row in rest {
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
    let view = call.view(Need::All).await?;
    note_rates(call);
    let min_lag = call.args.int("min_lag").unwrap_or(1);
    let by_total = call.args.text("scope") == Some("total");
    let (mut checked, mut unknown, mut found) = (0, 0, Vec::new());
    for id in view.group_ids().into_iter().filter(|id| call.sees_group(id)) {
        checked += 1;
        let rows = rows(call, &view, id);
        let total = sum(&rows);
        let measured = if by_total { total.lag } else { total.max_lag };
        if measured.is_none() && total.unknown > 0 {
            unknown += 1;
        }
        let Some(max_lag) = total.max_lag.filter(|_| measured.is_some_and(|lag| lag >= min_lag)) else {
            continue;
        };
        let worst = rows.iter().filter(|r| r.lag.is_some()).max_by_key(|r| r.lag);
        let group = groups::summary(&view, id);
        let row = json!({
            "group_id": clean(id), "state": group.state, "member_count": group.members,
            "total_lag": total.lag, "max_lag": max_lag,
            "worst": worst.map(|r| json!({"topic": clean(&r.topic), "partition": r.partition, "status": r.status.as_str()})),
            "never_committed": total.never_committed, "out_of_range": total.out_of_range, "trend": trend(&total),
            "last_commit_at": groups::last_commit_ms(call, &view, id).and_then(rfc3339),
        });
        found.push((std::cmp::Reverse(measured), id, row));
    }
    found.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    let (limit, matching) = (call.args.limit(), found.len());
    let mut page = Page::default();
    for (_, id, row) in found {
        if !page.push(limit, id, row) {
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

/// Whether retention has overtaken a partition of a group, or will.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Readiness {
    pub(crate) verdict: &'static str,
    pub(crate) lost: Option<i64>,
    pub(crate) margin: Option<i64>,
    pub(crate) overtaken_in_s: Option<i64>,
    pub(crate) reason: String,
}

/// Judges by what the log's start and the group did in the last minutes; by nothing that is not seen.
pub(crate) fn readiness(row: &Row, retains_forever: bool) -> Readiness {
    let unknown = |reason: &str| Readiness {
        verdict: "unknown",
        lost: None,
        margin: None,
        overtaken_in_s: None,
        reason: reason.to_owned(),
    };
    let (Some(start), Some(end)) = (row.now.log_start, row.now.end) else {
        return unknown("the partition has no watermarks yet");
    };
    let Some(committed) = row.now.committed else { return unknown("the group has committed nothing here") };
    let margin = committed - start;
    if margin < 0 {
        return Readiness {
            verdict: "overtaken",
            lost: Some(-margin),
            margin: Some(margin),
            overtaken_in_s: Some(0),
            reason: format!("the log starts at {start}, {} records after what the group read last", -margin),
        };
    }
    let known = |verdict, overtaken_in_s, reason: String| Readiness {
        verdict,
        lost: Some(0),
        margin: Some(margin),
        overtaken_in_s,
        reason,
    };
    if committed >= end {
        return known("safe", None, "the group has read everything".to_owned());
    }
    if retains_forever {
        return known("safe", None, "no retention is configured".to_owned());
    }
    match (row.log_start_rate, row.consume_rate) {
        (Some(deleted), Some(consumed)) if deleted > consumed => {
            let in_s = whole(precise(margin) / (deleted - consumed));
            let reason = format!("records go at {deleted:.1}/s and the group reads {consumed:.1}/s");
            known("at_risk", in_s, reason)
        }
        (Some(deleted), Some(consumed)) => {
            known("safe", None, format!("records go at {deleted:.1}/s and the group reads {consumed:.1}/s"))
        }
        _ => Readiness {
            lost: Some(0),
            margin: Some(margin),
            ..unknown("how fast records go and are read is not known yet")
        },
    }
}

pub(super) async fn check_replay_readiness(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let view = call.view(Need::All).await?;
    note_rates(call);
    let wanted = call.args.text("group_id").unwrap_or_default().to_owned();
    let id = call.find_group(&view, &wanted)?.to_owned();
    let (after, limit) = (call.position()?, call.args.limit());
    let after = after
        .as_deref()
        .and_then(|a| a.rsplit_once('/'))
        .map(|(t, p)| (t.to_owned(), p.parse::<i64>().unwrap_or(-1)));
    let mut rows = rows(call, &view, &id);
    if let Some(name) = call.args.text("topic").map(str::to_owned) {
        topics::find(call, &view, &name)?;
        rows.retain(|r| r.topic == name);
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
        let Some(topic) = view.topics.get(&row.topic).map(|t| &t.value) else { continue };
        let number = |name: &str| topics::effective_number(name, topic, &view.defaults);
        let (retention_ms, retention_bytes) = (number("retention.ms"), number("retention.bytes"));
        let judged = readiness(row, topics::retains_forever(topic, &view.defaults));
        verdicts.insert(judged.verdict);
        let position = (row.topic.as_str(), i64::from(row.partition));
        if page.more_after.is_some() || after.as_ref().is_some_and(|(t, p)| position <= (t.as_str(), *p)) {
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

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_000_000;

    fn now(committed: i64, end: i64, committed_ago_ms: i64) -> Now {
        Now {
            at_ms: NOW_MS,
            committed: Some(committed),
            committed_at_ms: Some(NOW_MS - committed_ago_ms),
            commit_revision: 10,
            log_start: Some(5),
            end: Some(end),
            marks_revision: 9,
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "the past may be unknown, and here it never is")]
    fn past(committed: i64, end: i64) -> Option<Past> {
        Some(Past { at_ms: NOW_MS - 100_000, committed: Some(committed), log_start: 5, end })
    }

    #[test]
    fn a_partition_is_judged_by_what_it_is_and_was() {
        let status = |now: Now, past: Option<Past>| judge(&now, past).0;
        assert_eq!(status(now(100, 100, 0), None), Status::Ok);
        assert_eq!(status(now(100, 200, 0), None), Status::Unknown, "no past, no verdict");
        assert_eq!(status(now(100, 200, 90_000), None), Status::Stalled);
        assert_eq!(status(now(100, 200, 90_000), past(100, 150)), Status::Stalled);
        assert_eq!(status(now(100, 200, 1_000), past(100, 150)), Status::Growing, "it commits still");
        assert_eq!(status(now(100, 200, 0), past(50, 190)), Status::Ok, "it catches up");
        assert_eq!(status(now(4, 200, 0), None), Status::OutOfRange, "before the start");
        assert_eq!(status(now(201, 200, 0), None), Status::Ok, "a commit newer than the watermarks");
        assert_eq!(status(now(201, 200, 31_000), None), Status::OutOfRange);
        assert_eq!(status(Now { marks_revision: 10, ..now(201, 200, 0) }, None), Status::OutOfRange);
        assert_eq!(status(Now { committed: None, ..now(0, 200, 0) }, None), Status::NeverCommitted);
        assert_eq!(status(Now { end: None, ..now(0, 200, 0) }, None), Status::Unknown);
    }

    #[test]
    fn rates_and_estimates_come_from_the_past() {
        let (_, consume, produce, eta) = judge(&now(100, 200, 0), past(0, 150));
        assert_eq!((consume, produce, eta), (Some(1.0), Some(0.5), Some(200)));
        let (_, _, _, eta) = judge(&now(100, 200, 0), past(90, 100));
        assert_eq!(eta, None, "it never catches up like this");
        let (_, consume, ..) = judge(&now(100, 200, 0), past(150, 150));
        assert_eq!(consume, None, "a group that was reset backwards has no rate");
    }

    fn row_of(now: Now, past: Option<Past>) -> Row {
        let (status, consume_rate, produce_rate, eta_s) = judge(&now, past);
        Row {
            topic: "t".to_owned(),
            topic_id: Uuid::nil(),
            partition: 0,
            now,
            lag: lag_of(&now),
            lag_before: past.and_then(|p| Some(p.end - p.committed?)),
            consume_rate,
            produce_rate,
            log_start_rate: None,
            eta_s,
            status,
        }
    }

    #[test]
    fn an_unknown_part_makes_the_sum_unknown_and_what_was_never_committed_does_not() {
        let known = row_of(now(100, 150, 0), past(50, 60));
        let never = row_of(Now { committed: None, ..now(0, 9, 0) }, None);
        let blind = row_of(Now { end: None, ..now(1, 0, 0) }, None);
        let total = sum(&[known.clone(), never.clone()]);
        assert_eq!((total.lag, total.max_lag, total.never_committed), (Some(50), Some(50), 1));
        assert_eq!(trend(&total), "growing");
        assert_eq!(sum(&[known, blind.clone()]).lag, None);
        assert_eq!(sum(&[never]).lag, None, "nothing is committed: no lag, not zero");
        assert_eq!(
            (sum(std::slice::from_ref(&blind)).unknown, trend(&sum(std::slice::from_ref(&blind)))),
            (1, "unknown")
        );
    }

    #[test]
    fn retention_overtakes_who_reads_more_slowly_than_records_go() {
        let behind = Row { log_start_rate: Some(3.0), ..row_of(now(105, 1_000, 0), past(5, 900)) };
        let judged = readiness(&behind, false);
        assert_eq!((judged.verdict, judged.overtaken_in_s, judged.margin), ("at_risk", Some(50), Some(100)));
        assert_eq!(readiness(&behind, true).verdict, "safe");
        let quick = Row { log_start_rate: Some(0.5), ..behind.clone() };
        assert_eq!(readiness(&quick, false).verdict, "safe");
        let lost = readiness(&row_of(now(2, 1_000, 0), None), false);
        assert_eq!((lost.verdict, lost.lost), ("overtaken", Some(3)));
        assert_eq!(readiness(&row_of(now(105, 1_000, 0), None), false).verdict, "unknown");
        assert_eq!(readiness(&row_of(now(1_000, 1_000, 0), None), false).verdict, "safe");
    }
}
