//! Whether this broker's clock may decide that something is old: what others show of theirs.
//!
//! Evidence is what other brokers' records and registrations say as they arrive, and what the
//! object store's answers say (`Date`). Between two pieces of evidence the monotonic clock tells
//! whether the wall clock has jumped. A broker that knows nothing of any other clock decides
//! nothing by its own, unless it is alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use strandline_metadata::commit::SessionCell;
use strandline_metadata::names::Names;
use strandline_metadata::replica::ApplyObserver;
use strandline_metadata::state::{Effects, Position};
use strandline_storage::clock::{Clock, ServerClock};
use tokio::time::Instant;

use crate::limits::{CLOCK_EVIDENCE_FRESH, MAX_SKEW_MS, OWN_INCARNATIONS};

/// What is to be thought of this broker's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClockTrust {
    /// It agrees with others, or there are no others: this is what it said when it was judged, in
    /// ms since 1970. What it says later may be wrong.
    Trusted(i64),
    /// It is ahead of others by so many ms (behind, if negative), which is too much.
    Off(i64),
    /// Nothing shows whether it is right.
    Unknown,
}

impl ClockTrust {
    /// The time, if the clock is trusted.
    pub(crate) fn now_ms(self) -> Option<i64> {
        if let Self::Trusted(now_ms) = self { Some(now_ms) } else { None }
    }
}

/// How another clock was seen.
#[derive(Clone, Copy, Debug)]
struct Sighting {
    /// By how much this broker's clock was ahead, in ms.
    ahead_ms: i64,
    /// This broker's clock at that moment.
    wall_ms: i64,
    at: Instant,
}

/// What this broker knows of other clocks.
#[derive(Clone, Debug)]
pub(crate) struct ClockSkew {
    node_id: i32,
    clock: Arc<dyn Clock>,
    server: ServerClock,
    own: SessionCell,
    seen: Arc<Mutex<Seen>>,
}

/// What was seen of the other brokers' clocks.
#[derive(Debug, Default)]
struct Seen {
    /// The latest of each incarnation.
    latest: BTreeMap<i64, Sighting>,
    /// The incarnation of a node id: what was seen of those before it counts no longer.
    incarnations: BTreeMap<i32, i64>,
    /// This broker's own, the latest ones: a record may be late, and the clock put right since.
    own: BTreeSet<i64>,
}

impl Seen {
    /// Notes an incarnation of a node id. Whether it is the latest of another than `own`.
    fn note_incarnation(&mut self, own: i32, node_id: i32, incarnation: i64) -> bool {
        if node_id == own {
            self.latest.remove(&incarnation);
            self.own.insert(incarnation);
            if self.own.len() > OWN_INCARNATIONS {
                self.own.pop_first();
            }
            return false;
        }
        let before = self.incarnations.get(&node_id).copied().unwrap_or_default();
        if before < incarnation {
            self.latest.remove(&before);
            self.incarnations.insert(node_id, incarnation);
        }
        before <= incarnation
    }
}

impl ClockSkew {
    /// No knowledge yet.
    pub(crate) fn new(node_id: i32, clock: Arc<dyn Clock>, server: ServerClock, own: SessionCell) -> Self {
        Self { node_id, clock, server, own, seen: Arc::default() }
    }

    /// Whether what this broker's clock says may decide, in a cluster of these brokers.
    pub(crate) fn judge(&self, names: &Names) -> ClockTrust {
        let is_off = |ahead_ms: &i64| ahead_ms.abs() > MAX_SKEW_MS;
        let now_ms = self.clock.now_ms();
        let server = self.server.now_ms().map(|there_ms| now_ms.saturating_sub(there_ms));
        let others = self.ahead_ms(now_ms);
        let is_alone = names.brokers().keys().all(|node_id| *node_id == self.node_id);
        match (server.filter(is_off), others.filter(is_off)) {
            (Some(ahead_ms), _) | (None, Some(ahead_ms)) => ClockTrust::Off(ahead_ms),
            (None, None) if is_alone || server.is_some() || others.is_some() => ClockTrust::Trusted(now_ms),
            (None, None) => ClockTrust::Unknown,
        }
    }

    /// By how much this broker's clock, which says `now_ms`, is ahead of the median of the
    /// other brokers', in ms; `None` if nothing was heard of them for long.
    fn ahead_ms(&self, now_ms: i64) -> Option<i64> {
        let now = Instant::now();
        let mut seen = self.lock();
        seen.latest.retain(|_, seen| now.saturating_duration_since(seen.at) < CLOCK_EVIDENCE_FRESH);
        let mut all: Vec<i64> = seen
            .latest
            .values()
            .map(|seen| {
                let passed = i64::try_from(now.saturating_duration_since(seen.at).as_millis());
                let jumped = now_ms.saturating_sub(seen.wall_ms).saturating_sub(passed.unwrap_or(i64::MAX));
                seen.ahead_ms.saturating_add(jumped)
            })
            .collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied()
    }

    fn saw(&self, incarnation: i64, time_ms: i64) {
        let wall_ms = self.clock.now_ms();
        let sighting = Sighting { ahead_ms: wall_ms.saturating_sub(time_ms), wall_ms, at: Instant::now() };
        let is_current = self.own.current().is_some_and(|session| session.incarnation == incarnation);
        let mut seen = self.lock();
        if !is_current && !seen.own.contains(&incarnation) {
            seen.latest.insert(incarnation, sighting);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ApplyObserver for ClockSkew {
    fn applied(&self, at: Position, time_ms: i64, _: &Effects) {
        self.saw(at.incarnation, time_ms);
    }

    fn found(&self, node_id: i32, incarnation: i64) {
        self.lock().note_incarnation(self.node_id, node_id, incarnation);
    }

    fn registered(&self, node_id: i32, incarnation: i64, time_ms: i64) {
        // Its own is seen before its session begins, and so before its first record.
        let is_of_another = self.lock().note_incarnation(self.node_id, node_id, incarnation);
        if is_of_another {
            self.saw(incarnation, time_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use strandline_metadata::replica::View;
    use tokio::time::advance;

    use super::*;
    use crate::testing::StoppedClock;

    const HOUR_MS: i64 = 3_600_000;

    fn skew(clock: &Arc<StoppedClock>) -> ClockSkew {
        ClockSkew::new(1, clock.clone(), ServerClock::default(), SessionCell::default())
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_broker_knows_of_other_clocks_decides() {
        let names = View::default().names;
        let clock = Arc::new(StoppedClock(HOUR_MS.into()));
        let set = |now_ms| clock.0.store(now_ms, std::sync::atomic::Ordering::Relaxed);
        let alone = skew(&clock);
        assert_eq!(alone.judge(&names), ClockTrust::Trusted(HOUR_MS), "there is nobody else");
        // The store disagrees.
        alone.server.note(0);
        assert_eq!(alone.judge(&names), ClockTrust::Off(HOUR_MS));
        alone.server.note(HOUR_MS - 1_500);
        assert_eq!(alone.judge(&names), ClockTrust::Trusted(HOUR_MS));
        // Another broker registers, and says another time than the store and this broker.
        alone.registered(2, 77, 3 * HOUR_MS);
        assert_eq!(alone.judge(&names), ClockTrust::Off(-2 * HOUR_MS));
        alone.registered(1, 78, 9 * HOUR_MS);
        alone.saw(77, HOUR_MS);
        assert_eq!(alone.judge(&names), ClockTrust::Trusted(HOUR_MS));
        // Time goes on, by both clocks; then the wall clock jumps.
        advance(Duration::from_mins(10)).await;
        set(HOUR_MS + 600_000);
        assert_eq!(alone.judge(&names), ClockTrust::Trusted(HOUR_MS + 600_000));
        set(3 * HOUR_MS);
        assert!(matches!(alone.judge(&names), ClockTrust::Off(_)), "it has jumped since");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_seen_of_a_broker_before_it_registered_again_does_not_count() {
        let names = View::default().names;
        let skew = skew(&Arc::new(StoppedClock(HOUR_MS.into())));
        skew.registered(2, 77, 0);
        assert_eq!(skew.judge(&names), ClockTrust::Off(HOUR_MS));
        skew.registered(2, 78, HOUR_MS);
        assert_eq!(skew.judge(&names), ClockTrust::Trusted(HOUR_MS));
        // A late word of the one before.
        skew.registered(2, 77, 0);
        skew.registered(2, 79, HOUR_MS);
        assert_eq!(skew.lock().latest.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_broker_wrote_before_its_clock_was_put_right_is_no_evidence() {
        let names = View::default().names;
        let skew = skew(&Arc::new(StoppedClock(HOUR_MS.into())));
        skew.registered(2, 77, HOUR_MS);
        for own in 100..100 + i64::try_from(OWN_INCARNATIONS).unwrap() {
            skew.registered(1, own, 0);
        }
        // Late records of the first of them.
        skew.saw(100, 0);
        assert_eq!(skew.judge(&names), ClockTrust::Trusted(HOUR_MS));
        skew.registered(1, 500, HOUR_MS);
        assert_eq!(skew.lock().own.len(), OWN_INCARNATIONS);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_was_there_when_this_broker_began_to_watch_has_a_successor_too() {
        let names = View::default().names;
        let skew = skew(&Arc::new(StoppedClock(HOUR_MS.into())));
        skew.found(2, 77);
        skew.saw(77, 0);
        assert_eq!(skew.judge(&names), ClockTrust::Off(HOUR_MS));
        skew.registered(2, 78, HOUR_MS);
        assert_eq!(skew.judge(&names), ClockTrust::Trusted(HOUR_MS));
        assert_eq!(skew.lock().latest.len(), 1);
    }
}
