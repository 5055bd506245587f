//! When etcd's history is forgotten, and up to where.
//!
//! Every change of every key makes history, of groups and offsets as well as of the log: so neither
//! records nor snapshots decide, but revisions and time. Who needs history is a watch that was cut,
//! and whoever looks up what became of a commit: seconds.

use std::collections::VecDeque;

use tokio::time::Instant;

use crate::limits::{COMPACTION_INTERVAL, HISTORY_REVISIONS, HISTORY_TIME, WATCH_REVISIONS_BEHIND};

/// Decides when to compact. One for each term of a broker that does: what it noted before says
/// nothing after others did it.
#[derive(Debug, Default)]
pub struct Compactor {
    /// Revisions and when they were the newest, the oldest first: one a [`COMPACTION_INTERVAL`].
    noted: VecDeque<(Instant, i64)>,
    /// What was forgotten last, and when.
    last: Option<(Instant, i64)>,
}

impl Compactor {
    /// Up to which revision the history is to be forgotten now, if it is; `revision` is the newest.
    /// A store that is short of space keeps only what a watch may begin with.
    pub fn due(&mut self, now: Instant, revision: i64, is_short: bool) -> Option<i64> {
        let is_fresh = |(at, _): &(Instant, i64)| now.saturating_duration_since(*at) < COMPACTION_INTERVAL;
        if !self.noted.back().is_some_and(is_fresh) {
            self.noted.push_back((now, revision));
        }
        // The newest one that is old enough is the one that counts.
        let is_old = |(at, _): &(Instant, i64)| now.saturating_duration_since(*at) >= HISTORY_TIME;
        while self.noted.get(1).is_some_and(is_old) {
            self.noted.pop_front();
        }
        let by_time = self.noted.front().filter(|noted| is_old(noted)).map_or(0, |(_, revision)| *revision);
        let most = if is_short { WATCH_REVISIONS_BEHIND } else { HISTORY_REVISIONS };
        let target = by_time.max(revision - most);
        let (last_at, last) = self.last.map_or((None, 0), |(at, last)| (Some(at), last));
        let is_soon = last_at.is_some_and(|at| now.saturating_duration_since(at) < COMPACTION_INTERVAL);
        // Between two of them it waits, unless there is much to forget.
        if target <= last || (is_soon && target - last < most / 10) {
            return None;
        }
        self.last = Some((now, target));
        Some(target)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn history_goes_by_revisions_and_by_time_whatever_makes_it() {
        let mut compactor = Compactor::default();
        let begin = Instant::now();
        let at = |s: u64| begin + Duration::from_secs(s);
        assert_eq!(compactor.due(at(0), 100, false), None, "nobody knows how old that is");
        assert_eq!(compactor.due(at(1), HISTORY_REVISIONS + 5_000, false), Some(5_000), "by revisions");
        assert_eq!(compactor.due(at(2), HISTORY_REVISIONS + 5_001, false), None, "not for one");
        assert_eq!(compactor.due(at(3), HISTORY_REVISIONS + 6_000, false), Some(6_000));
        // Nothing much happens any more: what is old goes all the same.
        let newest = HISTORY_REVISIONS + 6_100;
        let mut forgotten = 0;
        for s in 4..=HISTORY_TIME.as_secs() + 2 * COMPACTION_INTERVAL.as_secs() {
            forgotten = compactor.due(at(s), newest, false).unwrap_or(forgotten);
        }
        assert_eq!(forgotten, newest);
        assert!(compactor.noted.len() < 10, "{} are noted", compactor.noted.len());
    }

    #[test]
    fn a_store_that_is_short_of_space_keeps_little() {
        let mut compactor = Compactor::default();
        let now = Instant::now();
        assert_eq!(compactor.due(now, 9_000, false), None);
        assert_eq!(compactor.due(now, 9_000, true), Some(9_000 - WATCH_REVISIONS_BEHIND));
    }
}
