//! Rebalancing: gathering the members, beginning a generation, and giving up who does not take
//! part.

use strandline_metadata::values::group::Blob;
use tokio::time::Instant;

use super::{Answer, ClassicGroup, FirstRebalance, Phase, elect_protocol, millis};
use crate::group::Context;
use crate::group::error::{JoinError, MemberError, SyncError};

const EXPIRED: &str = "session_expired";
const NOT_SYNCED: &str = "sync_missing";
const DOWNGRADED: &str = "downgraded";

impl ClassicGroup {
    /// Calls everybody together. Whoever waits for the assignment of the generation before must
    /// join again.
    pub(super) fn prepare_rebalance(&mut self, reason: &'static str, ctx: &Context<'_>) {
        debug_assert!(!matches!(self.phase, Phase::Preparing { .. }), "it is under way already");
        self.rebalances.push(reason);
        if self.phase == Phase::Completing {
            for member in self.members.values_mut() {
                if let Some(ticket) = member.syncing.take() {
                    // While it waited nobody looked at its session, which may be over: it gets the
                    // time to come back.
                    member.heard_of(ctx.now);
                    self.answers.push((ticket, Answer::Sync(Err(SyncError::Rebalance))));
                }
            }
        }
        self.unsynced.clear();
        self.sync_until = None;
        let timeout = self.rebalance_timeout();
        self.phase = if self.phase == Phase::Empty {
            let delay = millis(ctx.settings.initial_rebalance_delay_ms).min(timeout);
            let first = FirstRebalance { remaining: timeout.saturating_sub(delay), newcomer: false };
            Phase::Preparing { until: ctx.now + delay, first: Some(first) }
        } else {
            Phase::Preparing { until: ctx.now + timeout, first: None }
        };
        self.try_complete_join(ctx);
    }

    /// After a group has come back from the new protocol: its members agree among themselves again.
    pub(crate) fn rebalance_after_downgrade(&mut self, ctx: &Context<'_>) {
        if matches!(self.phase, Phase::Stable | Phase::Completing) {
            self.prepare_rebalance(DOWNGRADED, ctx);
        }
    }

    /// Begins the generation if everybody is there.
    pub(super) fn try_complete_join(&mut self, ctx: &Context<'_>) {
        let Phase::Preparing { first: None, .. } = self.phase else { return };
        if self.pending.is_empty() && self.members.values().all(|m| m.joining.is_some()) {
            self.complete_join(ctx);
        }
    }

    /// The time to gather is over.
    fn join_deadline(&mut self, ctx: &Context<'_>) {
        if let Phase::Preparing { until, first: Some(first) } = &mut self.phase
            && first.newcomer
            && !first.remaining.is_zero()
        {
            let delay = millis(ctx.settings.initial_rebalance_delay_ms).min(first.remaining);
            first.remaining -= delay;
            first.newcomer = false;
            *until = ctx.now + delay;
            return;
        }
        self.complete_join(ctx);
    }

    /// Begins the next generation with those who have joined. Static members keep their place
    /// (KIP-345).
    fn complete_join(&mut self, ctx: &Context<'_>) {
        let absent: Vec<String> = self
            .members
            .iter()
            .filter(|(_, m)| m.joining.is_none() && m.value.instance_id.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        for id in absent {
            self.forget(&id);
        }
        if self.members.is_empty() {
            self.generation = next_generation(self.generation);
            self.phase = Phase::Empty;
            self.protocol = None;
            self.leader = None;
            self.changed = true;
            return;
        }
        let leads = |id: &String| self.members.get(id).is_some_and(|m| m.joining.is_some());
        if !self.leader.as_ref().is_some_and(leads) {
            let joined = self.members.iter().find(|(_, m)| m.joining.is_some()).map(|(id, _)| id.clone());
            let Some(joined) = joined else {
                // Nobody who could lead has come, and static members are not given up before their
                // sessions end.
                self.phase = Phase::Preparing { until: ctx.now + self.rebalance_timeout(), first: None };
                return;
            };
            self.leader = Some(joined);
        }
        self.generation = next_generation(self.generation);
        self.protocol = self.select_protocol();
        debug_assert!(self.protocol.is_some(), "no member is let in without a protocol that all know");
        self.phase = Phase::Completing;
        self.unsynced = self.members.keys().cloned().collect();
        self.sync_until = Some(ctx.now + self.rebalance_timeout());
        self.changed = true;
        let mut joined = Vec::new();
        for (id, member) in &mut self.members {
            member.value.assignment = Blob::default();
            if let Some(ticket) = member.joining.take() {
                member.is_new = false;
                joined.push((ticket, id.clone()));
            }
        }
        for (ticket, id) in joined {
            self.answer_join(ticket, &id, ctx.now);
        }
    }

    /// The protocol that the members agree on.
    pub(super) fn select_protocol(&self) -> Option<String> {
        elect_protocol(self.members.values().map(|m| m.value.protocols.as_slice())).map(str::to_owned)
    }

    /// Takes a member out of the group, which may be a reason to rebalance.
    pub(super) fn remove(&mut self, id: &str, reason: &'static str, ctx: &Context<'_>) {
        self.forget(id);
        match self.phase {
            Phase::Stable | Phase::Completing => self.prepare_rebalance(reason, ctx),
            Phase::Preparing { .. } => self.try_complete_join(ctx),
            Phase::Empty => {}
        }
    }

    /// Strikes a member off, and answers what it waits for.
    fn forget(&mut self, id: &str) {
        let Some(mut member) = self.members.remove(id) else { return };
        let unknown = MemberError::Unknown(id.to_owned());
        self.answers
            .extend(member.take_waiting(&JoinError::Member(unknown.clone()), &SyncError::Member(unknown)));
        if let Some(instance_id) = &member.value.instance_id
            && self.statics.get(instance_id).is_some_and(|known| known == id)
        {
            self.statics.remove(instance_id);
        }
        self.unsynced.remove(id);
        if self.leader.as_deref() == Some(id) {
            self.leader = self.members.keys().next().cloned();
        }
    }

    /// When [`Self::expire`] next has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let sessions = self.members.values().filter(|m| !m.waits() || m.is_new).map(|m| m.session_until);
        let gather = match self.phase {
            Phase::Preparing { until, .. } => Some(until),
            Phase::Empty | Phase::Completing | Phase::Stable => None,
        };
        sessions.chain(gather).chain(self.sync_until).chain(self.pending.values().copied()).min()
    }

    /// Does what is due, and says how many members were given up.
    pub(crate) fn expire(&mut self, ctx: &Context<'_>) -> usize {
        let before = self.members.len();
        let pending = self.pending.len();
        self.pending.retain(|_, until| *until > ctx.now);
        if self.pending.len() < pending {
            self.try_complete_join(ctx);
        }
        let silent: Vec<String> = self
            .members
            .iter()
            .filter(|(_, m)| (!m.waits() || m.is_new) && m.session_until <= ctx.now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in silent {
            self.remove(&id, EXPIRED, ctx);
        }
        if self.sync_until.is_some_and(|until| until <= ctx.now) {
            self.sync_until = None;
            let absent = std::mem::take(&mut self.unsynced);
            for id in &absent {
                self.forget(id);
            }
            if !absent.is_empty() && matches!(self.phase, Phase::Completing | Phase::Stable) {
                self.prepare_rebalance(NOT_SYNCED, ctx);
            }
        }
        if let Phase::Preparing { until, .. } = self.phase
            && until <= ctx.now
        {
            self.join_deadline(ctx);
        }
        before.saturating_sub(self.members.len())
    }
}

/// Generations are counted up, and begin anew at 1 after the last.
fn next_generation(generation: i32) -> i32 {
    generation.checked_add(1).unwrap_or(1)
}
