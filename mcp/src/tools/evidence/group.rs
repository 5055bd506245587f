//! What is known of one group: how far it is behind, how fast it reads, who is in it.

use std::collections::BTreeMap;

use serde_json::json;

use super::super::figures::rounded;
use super::super::lag::{Row, Status, readiness, rows, sum, trend};
use super::super::{Call, groups, topics};
use super::{Collected, seconds_since, transactions};
use crate::foreign::clean;
use crate::source::changes::Family;
use crate::source::history::{Window, precise};
use crate::source::progress::Past;
use crate::source::view::View;

/// What "now" is for rates, in ms.
const NOW_MS: i64 = 60_000;
/// What "before" is, in ms: as long as samples are kept.
const BEFORE_MS: i64 = 900_000;
/// A rate over less than this says little, in ms: commits come every five seconds.
const LEAST_SPAN_MS: i64 = 10_000;

/// Sums of rates over the partitions of which they are known, with the time that they are over.
#[derive(Clone, Copy, Debug, Default)]
struct Rates {
    consumed: Option<f64>,
    produced: Option<f64>,
    span: Option<(i64, i64)>,
}

impl Rates {
    fn add(&mut self, from: Past, to: Past) {
        let span_ms = to.at_ms - from.at_ms;
        if span_ms < LEAST_SPAN_MS {
            return;
        }
        let per_s = |amount: i64| precise(amount) * 1000.0 / precise(span_ms);
        *self.produced.get_or_insert(0.0) += per_s((to.end - from.end).max(0));
        // A group that was set back has no pace.
        if let (Some(before), Some(after)) = (from.committed, to.committed)
            && after >= before
        {
            *self.consumed.get_or_insert(0.0) += per_s(after - before);
        }
        let (start, end) = self.span.unwrap_or((from.at_ms, to.at_ms));
        self.span = Some((start.min(from.at_ms), end.max(to.at_ms)));
    }
}

/// Rates now and before, from what earlier reads of etcd left behind.
fn rates(call: &Call<'_>, view: &View, id: &str, rows: &[Row]) -> (Rates, Rates) {
    let progress = call.observer.samples.progress();
    let (mut now, mut before) = (Rates::default(), Rates::default());
    let (newer, older) =
        (progress.of(id, view.read_at_ms - NOW_MS), progress.of(id, view.read_at_ms - BEFORE_MS));
    for row in rows {
        let (Some(end), Some(recent)) = (row.now.end, newer.of(row.topic_id, row.partition)) else {
            continue;
        };
        let at = Past {
            at_ms: view.read_at_ms,
            committed: row.now.committed,
            log_start: row.now.log_start.unwrap_or_default(),
            end,
        };
        now.add(recent, at);
        if let Some(old) = older.of(row.topic_id, row.partition) {
            before.add(old, recent);
        }
    }
    (now, before)
}

/// How many new generations each group got within a window; `None` if changes are not watched.
pub(in crate::tools) fn rebalances(call: &Call<'_>, window: Window) -> Option<BTreeMap<String, usize>> {
    call.observer.changes.since_ms(&[Family::Group])?;
    let mut counts = BTreeMap::new();
    for change in call.observer.changes.recent(&[Family::Group]) {
        let is_new = ["generation", "epoch"].iter().any(|fact| {
            change.details.get(*fact).is_some_and(|(before, after)| !before.is_null() && !after.is_null())
        });
        if is_new && (window.start_ms..=window.end_ms).contains(&change.seen_at_ms) {
            *counts.entry(change.name).or_default() += 1;
        }
    }
    Some(counts)
}

/// Everything that is known of a group.
pub(in crate::tools) fn group(call: &Call<'_>, into: &mut Collected, view: &View, id: &str) {
    let rows = rows(call, view, id);
    let total = sum(rows.iter());
    let summary = groups::summary(view, id);
    into.exact("group.id", clean(id).into());
    into.exact("group.state", summary.state.into());
    into.exact("group.members", summary.members.into());
    match total.lag {
        Some(lag) => into.exact("group.lag", lag.into()),
        None if rows.is_empty() => {
            into.miss("group.lag", "etcd", "it has to do with no partition that this caller sees");
        }
        None if total.unknown > 0 => into.miss("group.lag", "etcd", "partitions have no watermarks yet"),
        None => into.miss("group.lag", "etcd", "it has committed nothing"),
    }
    let count = |status: Status| rows.iter().filter(|r| r.status == status).count();
    let has_records = |r: &&Row| r.now.end.zip(r.now.log_start).is_some_and(|(end, start)| end > start);
    let never = rows.iter().filter(|r| r.status == Status::NeverCommitted).filter(has_records).count();
    into.exact("group.partitions", rows.len().into());
    into.exact(
        "group.partitions_lagging",
        rows.iter().filter(|r| r.lag.is_some_and(|l| l > 0)).count().into(),
    );
    into.exact("group.partitions_stalled", count(Status::Stalled).into());
    into.exact("group.partitions_out_of_range", total.out_of_range.into());
    into.exact("group.partitions_never_committed", never.into());
    if let Some(at) = groups::last_commit_ms(call, view, id) {
        into.exact("group.last_commit_age_s", seconds_since(view.read_at_ms, at));
    }
    let trend = trend(&total);
    if trend != "unknown" {
        into.exact("group.trend", trend.into());
    }
    pace(call, into, view, id, &rows);
    hottest(into, &rows);
    retention(into, view, &rows);
    transactions::group(call, into, view, &rows);
    let window = into.window;
    match rebalances(call, window) {
        Some(counts) => {
            let count = counts.get(id).copied().unwrap_or_default();
            into.over("group.rebalances", "changes", (window.start_ms, window.end_ms), count.into());
        }
        None => into.miss("group.rebalances", "changes", "changes are not watched yet"),
    }
}

fn pace(call: &Call<'_>, into: &mut Collected, view: &View, id: &str, rows: &[Row]) {
    let (now, before) = rates(call, view, id, rows);
    let at = view.read_at_ms;
    let nothing = "there are too few reads of etcd yet";
    for (name, rate, span) in [
        ("group.consume_rate", now.consumed, now.span),
        ("group.produce_rate", now.produced, now.span),
        ("group.consume_rate_before", before.consumed, before.span),
        ("group.produce_rate_before", before.produced, before.span),
    ] {
        match rate {
            Some(rate) => into.over(name, "etcd", span.unwrap_or((at, at)), rounded(rate).into()),
            None => into.miss(name, "etcd", nothing),
        }
    }
}

/// The partition that is furthest behind, against the others of its topic.
fn hottest(into: &mut Collected, rows: &[Row]) {
    let Some(worst) = rows.iter().filter(|r| r.lag.is_some_and(|l| l > 0)).max_by_key(|r| r.lag) else {
        return;
    };
    let lag: i64 = rows.iter().filter_map(|r| r.lag).sum();
    let of_topic: Vec<&Row> = rows.iter().filter(|r| r.topic == worst.topic).collect();
    into.exact(
        "group.hottest_partition",
        json!({"topic": clean(&worst.topic), "partition": worst.partition, "lag": worst.lag}),
    );
    if let Some(own) = worst.lag.filter(|_| lag > 0) {
        into.exact("group.hottest_lag_share", rounded(precise(own) / precise(lag)).into());
    }
    let partitions = i64::try_from(of_topic.len()).unwrap_or(i64::MAX);
    into.exact("group.hottest_fair_share", (1.0 / precise(partitions)).into());
    let produced: Option<f64> = of_topic.iter().map(|r| r.produce_rate).sum();
    let span = (into.window.start_ms, into.window.end_ms);
    match produced.zip(worst.produce_rate).filter(|(all, _)| *all > 0.0) {
        Some((all, own)) => into.over("group.hottest_produce_share", "etcd", span, rounded(own / all).into()),
        None => into.miss("group.hottest_produce_share", "etcd", "production of its partitions is not known"),
    }
    if let Some(rate) = worst.consume_rate {
        into.over("group.hottest_consume_rate", "etcd", span, rounded(rate).into());
    }
}

/// Whether retention has overtaken the group, or will.
fn retention(into: &mut Collected, view: &View, rows: &[Row]) {
    let (mut lost, mut first) = (0, None::<i64>);
    for row in rows {
        let Some(topic) = view.topics.get(&*row.topic).map(|t| &t.value) else { continue };
        let judged = readiness(row, topics::retains_forever(topic, &view.defaults));
        lost += judged.lost.unwrap_or_default();
        if judged.verdict == "at_risk" {
            first = [first, judged.overtaken_in_s].into_iter().flatten().min();
        }
    }
    if rows.iter().any(|r| r.now.committed.is_some()) {
        into.exact("group.records_lost", lost.into());
    }
    if let Some(seconds) = first {
        into.exact("group.overtaken_in_s", seconds.into());
    }
}
