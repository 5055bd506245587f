//! What is known of open transactions: in the whole cluster, and of those that a group waits for.
//!
//! Only transactions that the caller sees are evidence. Whoever sees a partition sees each
//! transaction that holds it back.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use uuid::Uuid;

use super::super::Call;
use super::super::lag::{Row, sum};
use super::super::transactions::{Open, OpenPartition, open};
use super::Collected;
use crate::clock::rfc3339;
use crate::diagnose::bounds::{LONG_OPEN_S, OVERDUE_S};
use crate::foreign::clean;
use crate::source::view::View;

/// Transactions in one piece of evidence.
const SHOWN: usize = 10;
/// Partitions of each.
const PARTITIONS: usize = 5;

/// A transaction and those of its partitions that a piece of evidence is about.
type Holding<'o, 'v> = (&'o Open<'v>, Vec<&'o OpenPartition<'v>>);

/// Whether its time-out has been over for so long that it should have been aborted.
fn is_overdue(open: &Open<'_>, now_ms: i64) -> bool {
    now_ms - open.times_out_ms() > OVERDUE_S * 1000
}

fn transaction_json((open, partitions): &Holding<'_, '_>, now_ms: i64) -> Value {
    let rows = partitions.iter().take(PARTITIONS).map(|p| {
        json!({
            "topic": p.topic.map(clean), "partition": p.partition, "first_offset": p.first_offset,
            "held_back": p.held_back(),
        })
    });
    json!({
        "transactional_id": clean(&open.value.transactional_id), "open_since": rfc3339(open.value.since_ms),
        "age_s": open.age_s(now_ms), "timeout_ms": open.value.timeout_ms,
        "times_out_at": rfc3339(open.times_out_ms()), "is_overdue": is_overdue(open, now_ms),
        "partition_count": partitions.len(), "partitions": rows.collect::<Vec<_>>(),
    })
}

fn list<'o, 'v: 'o>(holding: impl IntoIterator<Item = Holding<'o, 'v>>, now_ms: i64) -> Value {
    holding.into_iter().take(SHOWN).map(|h| transaction_json(&h, now_ms)).collect()
}

/// Those of its partitions where it keeps something from whoever reads what is committed.
fn holds<'o, 'v>(open: &'o Open<'v>) -> Vec<&'o OpenPartition<'v>> {
    open.partitions.iter().filter(|p| p.held_back().is_some_and(|held| held > 0)).collect()
}

/// The open transactions of the cluster.
pub(super) fn cluster(call: &Call<'_>, into: &mut Collected, view: &View) {
    let (open, now_ms) = (open(call, view), call.now_ms);
    let all = || open.iter().map(|open| (open, holds(open)));
    let holding = || all().filter(|(_, partitions)| !partitions.is_empty());
    let long = |(open, _): &Holding<'_, '_>| open.age_s(now_ms) >= LONG_OPEN_S && !is_overdue(open, now_ms);
    into.exact("transactions.open", open.len().into());
    into.exact("transactions.overdue", list(all().filter(|(open, _)| is_overdue(open, now_ms)), now_ms));
    into.exact("transactions.long_open", list(holding().filter(long), now_ms));
}

/// The open transactions that a group waits for, and what they keep from it.
pub(super) fn group(call: &Call<'_>, into: &mut Collected, view: &View, rows: &[Row]) {
    let open = open(call, view);
    let held: BTreeSet<(Uuid, u32)> =
        open.iter().flat_map(holds).map(|p| (p.topic_id, p.partition)).collect();
    let of = |row: &&Row| held.contains(&(row.topic_id, row.partition));
    let behind = |row: &Row| row.now.behind_stable();
    let waiting: Vec<&Row> = rows.iter().filter(of).filter(|r| r.now.is_at_stable()).collect();
    let later: Vec<&Row> = rows
        .iter()
        .filter(of)
        .filter(|r| !r.now.is_at_stable() && behind(r).is_some_and(|behind| behind > 0))
        .collect();
    let past = rows.iter().filter(of).filter(|r| behind(r).is_some_and(|behind| behind < 0)).count();
    let records = |rows: &[&Row]| rows.iter().filter_map(|r| r.now.held_back()).sum::<i64>();
    into.exact("group.partitions_held_back", waiting.len().into());
    into.exact("group.partitions_past_stable", past.into());
    into.exact("group.held_back_lag", records(&waiting).into());
    into.exact("group.held_back_later", records(&later).into());
    if let Some(lag) = sum(rows.iter()).lag {
        into.exact("group.readable_lag", (lag - records(&waiting)).into());
    }
    let of_group: BTreeSet<(Uuid, u32)> =
        waiting.iter().chain(&later).map(|row| (row.topic_id, row.partition)).collect();
    let is_of_group = |p: &&OpenPartition<'_>| of_group.contains(&(p.topic_id, p.partition));
    let holding = open.iter().map(|open| (open, holds(open).into_iter().filter(is_of_group).collect()));
    let holding = holding.filter(|(_, partitions): &Holding<'_, '_>| !partitions.is_empty());
    into.exact("group.open_transactions", list(holding, call.now_ms));
}
