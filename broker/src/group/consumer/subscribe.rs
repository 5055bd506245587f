//! What the members subscribe to, by name and by pattern, and what follows from it: the group epoch
//! and the target.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use regex::bytes::Regex;
use strandline_metadata::values::group::ConsumerMemberValue;
use uuid::Uuid;

use super::{ConsumerGroup, Context};
use crate::group::Topics;
use crate::group::assign::{self, Assignor};
use crate::group::error::ConsumerHeartbeatError;
use crate::limits::GROUP_PATTERNS;
use crate::patterns;

/// The patterns that members subscribe to, and the topics that they match.
///
/// Matching costs a pass over all topics, so it is done by whoever knows them, once for all groups;
/// until that is done, what was known before stands.
#[derive(Debug, Default)]
pub(super) struct Patterns(BTreeMap<String, Pattern>);

#[derive(Debug)]
struct Pattern {
    /// None for a pattern that can't be compiled: persisted by a broker that could. It matches
    /// nothing.
    regex: Option<Regex>,
    topics: Arc<BTreeSet<String>>,
    /// Whether these are all that match it now.
    is_current: bool,
}

impl Pattern {
    fn new(pattern: &str, regex: Option<Regex>, topics: &dyn Topics) -> Self {
        let mut new = Self { regex, topics: Arc::default(), is_current: false };
        new.refresh(pattern, topics);
        new
    }

    fn refresh(&mut self, pattern: &str, topics: &dyn Topics) {
        let Some(regex) = &self.regex else {
            self.is_current = true;
            return;
        };
        let matching = topics.matching(pattern, regex);
        self.is_current = matching.as_ref().is_some_and(|matching| matching.is_current);
        if let Some(matching) = matching {
            self.topics = matching.names;
        }
    }
}

impl Patterns {
    /// Learns a pattern, or refuses it. `others` are the members that keep theirs.
    pub(super) fn learn<'a>(
        &mut self,
        pattern: &str,
        others: impl Iterator<Item = &'a ConsumerMemberValue>,
        topics: &dyn Topics,
    ) -> Result<(), ConsumerHeartbeatError> {
        if self.0.contains_key(pattern) {
            return Ok(());
        }
        if self.0.len() >= GROUP_PATTERNS {
            // Some may have been learnt for members that have others by now.
            let used: BTreeSet<&String> = others.filter_map(|m| m.subscribed_regex.as_ref()).collect();
            if used.len() >= GROUP_PATTERNS {
                return Err(ConsumerHeartbeatError::TooManyPatterns);
            }
        }
        let regex = compile(pattern)?;
        self.0.insert(pattern.to_owned(), Pattern::new(pattern, Some(regex), topics));
        Ok(())
    }

    /// Forgets what no member subscribes to any more, once that is much.
    pub(super) fn forget_unused<'a>(&mut self, members: impl Iterator<Item = &'a ConsumerMemberValue>) {
        if self.0.len() > GROUP_PATTERNS {
            let used: BTreeSet<&String> = members.filter_map(|m| m.subscribed_regex.as_ref()).collect();
            self.0.retain(|pattern, _| used.contains(pattern));
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Whether it is not known yet what all of them match.
    fn are_pending(&self) -> bool {
        self.0.values().any(|pattern| !pattern.is_current)
    }

    /// Whether a topic matches a pattern.
    fn is_match(&self, pattern: &str, topic: &str) -> bool {
        self.0.get(pattern).is_some_and(|p| p.topics.contains(topic))
    }

    /// The topics that a member subscribes to, by name and by pattern.
    fn topics_of<'a>(&'a self, member: &'a ConsumerMemberValue) -> impl Iterator<Item = &'a String> {
        let matched = member.subscribed_regex.as_ref().and_then(|p| self.0.get(p));
        member.subscribed_topics.iter().chain(matched.into_iter().flat_map(|p| &*p.topics))
    }

    /// Forgets what no member subscribes to, learns what is persisted, and matches all with the
    /// topics that there are now.
    fn refresh<'a>(&mut self, members: impl Iterator<Item = &'a ConsumerMemberValue>, topics: &dyn Topics) {
        let used: BTreeSet<&String> = members.filter_map(|m| m.subscribed_regex.as_ref()).collect();
        self.0.retain(|pattern, _| used.contains(pattern));
        for (pattern, matched) in &mut self.0 {
            matched.refresh(pattern, topics);
        }
        for pattern in used {
            if !self.0.contains_key(pattern) {
                self.0.insert(pattern.clone(), Pattern::new(pattern, compile(pattern).ok(), topics));
            }
        }
    }
}

/// Compiles a pattern that must match the whole name of a topic.
fn compile(pattern: &str) -> Result<Regex, ConsumerHeartbeatError> {
    patterns::whole(pattern).map_err(ConsumerHeartbeatError::InvalidPattern)
}

impl ConsumerGroup {
    /// Topics were created or deleted, or have more partitions: moves the group epoch if that
    /// concerns the group.
    pub(crate) fn topics_changed(&mut self, ctx: &Context<'_>) {
        if self.is_empty() {
            return;
        }
        self.patterns.refresh(self.value.members.values(), ctx.topics);
        if self.subscribed_topics(ctx) != self.value.topics {
            self.bump_epoch(ctx);
        }
    }

    /// Whether it is to be told of topics again, although none has changed since: patterns are
    /// still being matched.
    pub(crate) fn awaits_patterns(&self) -> bool {
        self.patterns.are_pending()
    }

    /// Whether a member subscribes to the topic with this name.
    pub(crate) fn is_subscribed_to(&self, topic: &str) -> bool {
        self.value.members.values().any(|member| {
            member.subscribed_topics.contains(topic)
                || member.subscribed_regex.as_ref().is_some_and(|p| self.patterns.is_match(p, topic))
        })
    }

    /// Moves the group epoch, with the topics as they are now. The target assignment follows at the
    /// next heartbeat.
    pub(super) fn bump_epoch(&mut self, ctx: &Context<'_>) {
        self.value.topics = self.subscribed_topics(ctx);
        self.value.epoch += 1;
        self.changed = true;
    }

    /// Makes the target assignment for the group epoch, if there is none yet.
    pub(super) fn follow_with_target(&mut self, ctx: &Context<'_>) {
        if self.value.epoch <= self.value.assignment_epoch {
            return;
        }
        let subscriptions = self.subscriptions(ctx);
        let members: Vec<assign::Member<'_>> = self
            .value
            .members
            .iter()
            .zip(subscriptions)
            .map(|((id, member), topics)| assign::Member {
                id,
                instance_id: member.instance_id.as_deref(),
                topics,
                current: &member.target,
            })
            .collect();
        let targets = self.assignor().assign(&self.value.topics, &members);
        for (member, target) in self.value.members.values_mut().zip(targets) {
            member.target = target;
        }
        self.value.assignment_epoch = self.value.epoch;
        self.changed = true;
    }

    /// The assignor that most members want; the default if they want none or can't agree.
    pub(super) fn assignor(&self) -> Assignor {
        let wishes =
            self.value.members.values().filter_map(|m| Assignor::by_name(m.server_assignor.as_deref()?));
        let mut votes: BTreeMap<Assignor, usize> = BTreeMap::new();
        for wish in wishes {
            *votes.entry(wish).or_default() += 1;
        }
        let [default, ..] = Assignor::ALL;
        let most = votes.values().max().copied().unwrap_or(0);
        Assignor::ALL.into_iter().find(|a| votes.get(a) == Some(&most)).unwrap_or(default)
    }

    /// Ids of the topics that a member subscribes to, as far as they exist.
    pub(super) fn subscription(&self, member: &ConsumerMemberValue, ctx: &Context<'_>) -> BTreeSet<Uuid> {
        self.patterns.topics_of(member).filter_map(|name| Some(ctx.topics.by_name(name)?.0)).collect()
    }

    /// What every member subscribes to. Members that subscribe to the same share it, which is
    /// nearly always the case.
    fn subscriptions(&self, ctx: &Context<'_>) -> Vec<Rc<BTreeSet<Uuid>>> {
        let mut subscriptions = Vec::with_capacity(self.value.members.len());
        let mut last: Option<(&ConsumerMemberValue, Rc<BTreeSet<Uuid>>)> = None;
        for member in self.value.members.values() {
            let shared =
                last.as_ref().filter(|(other, _)| subscribes_alike(member, other)).map(|(_, t)| Rc::clone(t));
            let topics = shared.unwrap_or_else(|| {
                let mut topics = self.subscription(member, ctx);
                topics.retain(|topic| self.value.topics.contains_key(topic));
                Rc::new(topics)
            });
            last = Some((member, Rc::clone(&topics)));
            subscriptions.push(topics);
        }
        subscriptions
    }

    /// The topics that any member subscribes to, as far as they exist, with their partitions.
    fn subscribed_topics(&self, ctx: &Context<'_>) -> BTreeMap<Uuid, u32> {
        let mut names: BTreeSet<&String> = BTreeSet::new();
        let mut last = None;
        for member in self.value.members.values() {
            if !last.is_some_and(|other| subscribes_alike(member, other)) {
                names.extend(self.patterns.topics_of(member));
            }
            last = Some(member);
        }
        names.into_iter().filter_map(|name| ctx.topics.by_name(name)).collect()
    }
}

fn subscribes_alike(a: &ConsumerMemberValue, b: &ConsumerMemberValue) -> bool {
    a.subscribed_topics == b.subscribed_topics && a.subscribed_regex == b.subscribed_regex
}
