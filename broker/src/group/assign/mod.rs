//! Who is to read what: the assignors that run on the broker for groups of KIP-848.
//!
//! An assignor is a pure function of the topics, the subscriptions and the target assignment so
//! far. It makes the target that members then move to step by step; what they own in between is no
//! concern of it. The same question always has the same answer: members come sorted by id, topics
//! by topic id, and nothing depends on the order of a hash map.
//!
//! Both assignors are sticky: a rebalance costs what it moves, so a partition stays where it is
//! unless balance asks for it.

mod balance;
mod range;
mod uniform;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use strandline_metadata::values::group::Assignment;
use uuid::Uuid;

/// An assignor that runs on the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Assignor {
    /// The same number of partitions for every member, as far as the subscriptions allow it.
    Uniform,
    /// Of each topic a run of partitions for every member, the same run of topics with equally many
    /// partitions.
    Range,
}

impl Assignor {
    /// All of them, the default first.
    pub(crate) const ALL: [Self; 2] = [Self::Uniform, Self::Range];

    /// What clients call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Range => "range",
        }
    }

    /// The assignor that clients call `name`.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.name() == name)
    }

    /// The target of each of the members, in their order. Topics that are subscribed to and not in
    /// `topics` don't exist.
    pub(crate) fn assign(self, topics: &BTreeMap<Uuid, u32>, members: &[Member<'_>]) -> Vec<Assignment> {
        debug_assert!(
            members.is_sorted_by(|a, b| a.id < b.id),
            "the outcome depends on the order of the members"
        );
        let targets = match self {
            Self::Uniform => uniform::assign(topics, members),
            Self::Range => range::assign(topics, members),
        };
        debug_assert_eq!(targets.len(), members.len());
        debug_assert!(
            is_partition_of_topics(topics, members, &targets),
            "every partition has exactly one reader"
        );
        targets
    }
}

/// What an assignor is told of a member.
#[derive(Clone, Debug)]
pub(crate) struct Member<'a> {
    /// Its id.
    pub(crate) id: &'a str,
    /// Its `group.instance.id`, if it is a static member.
    pub(crate) instance_id: Option<&'a str>,
    /// The topics that it subscribes to.
    pub(crate) topics: Rc<BTreeSet<Uuid>>,
    /// Its target so far.
    pub(crate) current: &'a Assignment,
}

/// Whether every partition of a topic with subscribers has exactly one reader, which subscribes to
/// it.
fn is_partition_of_topics(
    topics: &BTreeMap<Uuid, u32>,
    members: &[Member<'_>],
    targets: &[Assignment],
) -> bool {
    let mut readers: BTreeMap<Uuid, BTreeSet<u32>> = BTreeMap::new();
    for (member, target) in members.iter().zip(targets) {
        for (topic, partitions) in target {
            let read = readers.entry(*topic).or_default();
            if !member.topics.contains(topic) || !partitions.0.iter().all(|p| read.insert(*p)) {
                return false;
            }
        }
    }
    let subscribed: BTreeSet<&Uuid> = members.iter().flat_map(|m| m.topics.iter()).collect();
    topics.iter().all(|(topic, partitions)| {
        let read = readers.get(topic);
        let expected = if subscribed.contains(topic) { *partitions as usize } else { 0 };
        read.map_or(0, BTreeSet::len) == expected && read.is_none_or(|r| r.iter().all(|p| p < partitions))
    })
}
