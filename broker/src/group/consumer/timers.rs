//! When members are given up on. Timers live and die with the coordinator: they are not persisted.

use std::collections::BTreeMap;

use strandline_metadata::values::group::{ConsumerGroupValue, ConsumerMemberValue, MemberStateValue};
use tokio::time::Instant;

use super::{AWAY, ConsumerGroup, Context};
use crate::group::millis;

/// Why a member was given up on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExpiredBy {
    /// It was silent for too long.
    SessionTimeout,
    /// It took too long to give partitions up; or, with the classic protocol, to join again or to
    /// ask for its assignment.
    RebalanceTimeout,
}

/// The deadlines of all members.
#[derive(Debug, Default)]
pub(super) struct Timers(BTreeMap<String, Deadlines>);

#[derive(Clone, Copy, Debug, Default)]
struct Deadlines {
    session: Option<Instant>,
    revocation: Option<Instant>,
    join: Option<Instant>,
    sync: Option<Instant>,
}

impl Deadlines {
    fn rebalance(self) -> Option<Instant> {
        [self.revocation, self.join, self.sync].into_iter().flatten().min()
    }

    fn next(self) -> Option<(Instant, ExpiredBy)> {
        let session = self.session.map(|at| (at, ExpiredBy::SessionTimeout));
        let rebalance = self.rebalance().map(|at| (at, ExpiredBy::RebalanceTimeout));
        session.into_iter().chain(rebalance).min_by_key(|(at, _)| *at)
    }
}

impl Timers {
    /// The timers of a group as it was read from the store.
    pub(super) fn all_anew(value: &ConsumerGroupValue, ctx: &Context<'_>) -> Self {
        let mut timers = Self::default();
        for (id, member) in &value.members {
            timers.session(id, session_timeout_ms(member, ctx), ctx);
            let revokes = member.state == MemberStateValue::UnrevokedPartitions && member.epoch != AWAY;
            if revokes && member.classic.is_none() {
                timers.start_revocation(id, member.rebalance_timeout_ms, ctx);
            }
        }
        timers
    }

    /// The member was heard of.
    pub(super) fn session(&mut self, id: &str, timeout_ms: i32, ctx: &Context<'_>) {
        self.of(id).session = Some(ctx.now + millis(timeout_ms));
    }

    /// The member was told to give partitions up.
    pub(super) fn start_revocation(&mut self, id: &str, timeout_ms: i32, ctx: &Context<'_>) {
        self.of(id).revocation = Some(ctx.now + millis(timeout_ms));
    }

    /// The member has given up what it was told to, or need not any more.
    pub(super) fn stop_revocation(&mut self, id: &str) {
        self.of(id).revocation = None;
    }

    /// A classic member was told to join again, now or before.
    pub(super) fn start_join(&mut self, id: &str, timeout_ms: i32, ctx: &Context<'_>) {
        self.of(id).join.get_or_insert(ctx.now + millis(timeout_ms));
    }

    /// A classic member has joined and is to ask for its assignment.
    pub(super) fn start_sync(&mut self, id: &str, timeout_ms: i32, ctx: &Context<'_>) {
        let deadlines = self.of(id);
        deadlines.join = None;
        deadlines.sync = Some(ctx.now + millis(timeout_ms));
    }

    /// A classic member has asked for its assignment.
    pub(super) fn stop_sync(&mut self, id: &str) {
        self.of(id).sync = None;
    }

    /// The member now speaks the protocol that has one timer for its rebalance, not two.
    pub(super) fn stop_classic(&mut self, id: &str) {
        let deadlines = self.of(id);
        (deadlines.join, deadlines.sync) = (None, None);
    }

    /// The member is gone.
    pub(super) fn forget(&mut self, id: &str) {
        self.0.remove(id);
    }

    fn of(&mut self, id: &str) -> &mut Deadlines {
        self.0.entry(id.to_owned()).or_default()
    }
}

impl ConsumerGroup {
    /// When [`Self::expire`] is to be called.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.timers.0.values().filter_map(|deadlines| deadlines.next()).map(|(at, _)| at).min()
    }

    /// Fences the members that let a deadline pass. Gives their ids, and why.
    pub(crate) fn expire(&mut self, ctx: &Context<'_>) -> Vec<(String, ExpiredBy)> {
        let due = |(id, deadlines): (&String, &Deadlines)| {
            let (at, by) = deadlines.next()?;
            (at <= ctx.now).then(|| (id.clone(), by))
        };
        let expired: Vec<(String, ExpiredBy)> = self.timers.0.iter().filter_map(due).collect();
        let ids: Vec<String> = expired.iter().map(|(id, _)| id.clone()).collect();
        debug_assert!(ids.iter().all(|id| self.value.members.contains_key(id)), "only members have timers");
        self.remove_members(&ids, ctx);
        expired
    }
}

/// How long a member may be silent.
pub(super) fn session_timeout_ms(member: &ConsumerMemberValue, ctx: &Context<'_>) -> i32 {
    member.classic.as_ref().map_or(ctx.settings.consumer_session_timeout_ms, |c| c.session_timeout_ms)
}
