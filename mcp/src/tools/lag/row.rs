//! How far a group is behind on one partition, and whether it catches up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use uuid::Uuid;

use super::super::figures::whole;
use super::super::{Call, groups};
use crate::source::history::precise;
use crate::source::progress::{Past, Progress};
use crate::source::view::View;

/// Rates are over this time at most, in ms.
const RATE_SPAN_MS: i64 = 300_000;
/// A group that commits nothing for so long while there is something to read is stalled, in ms.
const STALL_MS: i64 = 60_000;
/// A commit that is ahead of the watermarks for so long is out of range rather than new, in ms.
const AHEAD_MS: i64 = 30_000;
/// A group that is so close to the last stable offset is at it: records that were aborted and ends
/// of transactions have offsets, too, and not every consumer commits behind those.
const AT_STABLE: i64 = 10;

/// How a partition of a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tools) enum Status {
    /// It keeps up, or is catching up.
    Ok,
    /// More comes than it reads.
    Growing,
    /// There is something to read and it reads nothing.
    Stalled,
    /// It has read what is committed, and an open transaction keeps the rest from it.
    HeldBack,
    /// It has committed nothing.
    NeverCommitted,
    /// What it committed is not in the log.
    OutOfRange,
    /// It cannot be said.
    Unknown,
}

impl Status {
    pub(in crate::tools) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Growing => "growing",
            Self::Stalled => "stalled",
            Self::HeldBack => "held_back",
            Self::NeverCommitted => "never_committed",
            Self::OutOfRange => "out_of_range",
            Self::Unknown => "unknown",
        }
    }
}

/// What is known of a partition of a group now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::tools) struct Now {
    pub(in crate::tools) at_ms: i64,
    pub(in crate::tools) committed: Option<i64>,
    pub(in crate::tools) committed_at_ms: Option<i64>,
    /// Revision of the key that the commit is in.
    pub(in crate::tools) commit_revision: i64,
    pub(in crate::tools) log_start: Option<i64>,
    /// No further does anybody come who reads what is committed.
    pub(in crate::tools) last_stable: Option<i64>,
    pub(in crate::tools) end: Option<i64>,
    pub(in crate::tools) marks_revision: i64,
}

impl Now {
    /// How many offsets open transactions keep from whoever reads what is committed.
    pub(in crate::tools) fn held_back(&self) -> Option<i64> {
        Some((self.end? - self.last_stable?).max(0))
    }

    /// How far the group is behind the last stable offset; less than nothing if it is past it,
    /// which only somebody gets who reads what is not committed, too.
    pub(in crate::tools) fn behind_stable(&self) -> Option<i64> {
        Some(self.last_stable? - self.committed?)
    }

    /// Whether the group has read what is committed and cannot get further.
    pub(in crate::tools) fn is_at_stable(&self) -> bool {
        self.held_back().is_some_and(|held| held > 0)
            && self.behind_stable().is_some_and(|behind| (0..=AT_STABLE).contains(&behind))
    }
}

/// A partition of a group, judged.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::tools) struct Row {
    pub(in crate::tools) topic: Arc<str>,
    pub(in crate::tools) topic_id: Uuid,
    pub(in crate::tools) partition: u32,
    pub(in crate::tools) now: Now,
    pub(in crate::tools) lag: Option<i64>,
    pub(in crate::tools) lag_before: Option<i64>,
    pub(in crate::tools) consume_rate: Option<f64>,
    pub(in crate::tools) produce_rate: Option<f64>,
    pub(in crate::tools) log_start_rate: Option<f64>,
    pub(in crate::tools) eta_s: Option<i64>,
    pub(in crate::tools) status: Status,
}

/// The lag of a partition; `None` if it is unknown.
fn lag_of(now: &Now) -> Option<i64> {
    Some((now.end? - now.committed?).max(0))
}

/// Whether what is committed is not in the log. A commit that is ahead of the end is new, and the
/// watermarks are not, unless it has been there for a while.
fn is_out_of_range(now: &Now) -> bool {
    let (Some(committed), Some(start), Some(end)) = (now.committed, now.log_start, now.end) else {
        return false;
    };
    let is_old = now.committed_at_ms.is_some_and(|t| now.at_ms - t > AHEAD_MS);
    committed < start || (committed > end && (is_old || now.commit_revision <= now.marks_revision))
}

/// Judges a partition by what it is and what it was.
fn judge(now: &Now, past: Option<Past>) -> (Status, Option<f64>, Option<f64>, Option<i64>) {
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
    let stands = if now.is_at_stable() { Status::HeldBack } else { Status::Stalled };
    let silent_ms = now.committed_at_ms.map_or(i64::MAX, |t| now.at_ms - t);
    let (Some(consumed), Some(produced)) = (consume, produce) else {
        // Without a past it can be said only that nothing was committed for long.
        let status = if silent_ms > STALL_MS { stands } else { Status::Unknown };
        return (status, consume, produce, None);
    };
    let gain = consumed - produced;
    let eta_s = (gain > 0.0).then(|| whole(precise(lag) / gain)).flatten();
    let status = if consumed == 0.0 && silent_ms > STALL_MS {
        stands
    } else if gain < 0.0 {
        Status::Growing
    } else {
        Status::Ok
    };
    (status, consume, produce, eta_s)
}

/// The partitions of every group, as of one view, judged when the first caller needs them: what a
/// group's partitions are does not depend on who asks, so that whoever shares a read shares this
/// too.
#[derive(Debug, Default)]
pub(crate) struct Judged {
    latest: Mutex<Option<(Weak<View>, OfView)>>,
}

/// What is judged of one view, once somebody has needed it.
type OfView = Arc<OnceLock<Arc<ByGroup>>>;

/// The partitions of groups, by the group's id.
pub(in crate::tools) type ByGroup = BTreeMap<String, Vec<Row>>;

/// The partitions that each group has to do with, whoever may see them.
pub(in crate::tools) fn every(call: &Call<'_>, view: &Arc<View>) -> Arc<ByGroup> {
    let cell = {
        let mut latest = call.observer.judged.latest.lock().unwrap_or_else(PoisonError::into_inner);
        match &*latest {
            Some((known, cell)) if known.as_ptr() == Arc::as_ptr(view) => cell.clone(),
            _ => latest.insert((Arc::downgrade(view), Arc::default())).1.clone(),
        }
    };
    let judge = || {
        let progress = call.observer.samples.progress();
        let ids = view.group_ids().into_iter();
        Arc::new(ids.map(|id| (id.to_owned(), of_group(view, &progress, id, |_| true))).collect())
    };
    cell.get_or_init(judge).clone()
}

/// The partitions that a group has to do with: of topics that it committed to or subscribes to, as
/// far as the caller sees them.
pub(in crate::tools) fn rows(call: &Call<'_>, view: &View, id: &str) -> Vec<Row> {
    of_group(view, &call.observer.samples.progress(), id, |topic| call.sees_topic(topic))
}

fn of_group(view: &View, progress: &Progress, id: &str, sees: impl Fn(&str) -> bool) -> Vec<Row> {
    let committed = view.offsets.get(id).into_iter().flat_map(|topics| topics.keys().cloned());
    let names: BTreeSet<String> = committed.chain(groups::subscribed(view, id)).filter(|t| sees(t)).collect();
    let past = progress.of(id, view.read_at_ms - RATE_SPAN_MS);
    let mut rows = Vec::new();
    for name in names {
        let Some(topic) = view.topics.get(&name).map(|t| &t.value) else { continue };
        let shared: Arc<str> = name.as_str().into();
        rows.extend((0..topic.partitions).map(|partition| {
            let now = now(view, id, &name, topic.topic_id, partition);
            let past = past.of(topic.topic_id, partition).filter(|p| p.at_ms < now.at_ms);
            row(shared.clone(), (topic.topic_id, partition), now, past)
        }));
    }
    rows
}

fn now(view: &View, id: &str, name: &str, topic_id: Uuid, partition: u32) -> Now {
    let commit = view.commit(id, name, topic_id, partition);
    let marks = view.marks(topic_id, partition);
    Now {
        at_ms: view.read_at_ms,
        committed: commit.map(|c| c.committed.offset),
        committed_at_ms: commit.map(|c| c.committed.time_ms),
        commit_revision: commit.map_or(0, |c| c.revision),
        log_start: marks.map(|m| m.marks.log_start),
        last_stable: marks.map(|m| m.marks.last_stable),
        end: marks.map(|m| m.marks.end),
        marks_revision: marks.map_or(0, |m| m.revision),
    }
}

fn row(topic: Arc<str>, (topic_id, partition): (Uuid, u32), now: Now, past: Option<Past>) -> Row {
    let (status, consume_rate, produce_rate, eta_s) = judge(&now, past);
    let log_start_rate = past
        .zip(now.log_start)
        .map(|(past, start)| precise(start - past.log_start) * 1000.0 / precise(now.at_ms - past.at_ms));
    let lag_before = past.and_then(|p| Some((p.end - p.committed?).max(0)));
    Row {
        topic,
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const NOW_MS: i64 = 1_000_000;

    pub(in crate::tools::lag) fn now(committed: i64, end: i64, committed_ago_ms: i64) -> Now {
        Now {
            at_ms: NOW_MS,
            committed: Some(committed),
            committed_at_ms: Some(NOW_MS - committed_ago_ms),
            commit_revision: 10,
            log_start: Some(5),
            last_stable: Some(end),
            end: Some(end),
            marks_revision: 9,
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "the past may be unknown, and here it never is")]
    pub(in crate::tools::lag) fn past(committed: i64, end: i64) -> Option<Past> {
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
        let open = |committed: i64| Now { last_stable: Some(110), ..now(committed, 200, 90_000) };
        assert_eq!(status(open(110), past(110, 150)), Status::HeldBack);
        assert_eq!(status(open(109), None), Status::HeldBack, "an end of a transaction is behind it");
        assert_eq!(status(open(50), past(50, 150)), Status::Stalled, "there is something to read");
        assert_eq!(status(open(111), None), Status::Stalled, "it reads what is not committed");
        assert_eq!(open(50).held_back(), Some(90));
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

    /// A row whose log start is not known to have moved.
    pub(in crate::tools::lag) fn row_of(now: Now, past: Option<Past>) -> Row {
        Row { log_start_rate: None, ..row("t".into(), (Uuid::nil(), 0), now, past) }
    }
}
