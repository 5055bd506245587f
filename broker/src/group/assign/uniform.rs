//! `uniform`, the default: as many partitions for one member as for any other.
//!
//! Where all members subscribe to the same topics, which is nearly always, the numbers are known
//! beforehand and one pass suffices. Where they don't, see [`super::balance`].

use std::collections::{BTreeMap, VecDeque};

use strandline_metadata::values::group::Assignment;
use uuid::Uuid;

use super::{Member, balance};

pub(super) fn assign(topics: &BTreeMap<Uuid, u32>, members: &[Member<'_>]) -> Vec<Assignment> {
    let Some(first) = members.first() else { return Vec::new() };
    let pool = Pool::new(topics);
    let all_alike = members.iter().all(|m| m.topics == first.topics);
    let given = if all_alike { share_out(pool, members) } else { balance::assign(pool, members) };
    given
        .into_iter()
        .map(|partitions| {
            let mut target = Assignment::new();
            for (topic, partition) in partitions {
                target.entry(topic).or_default().0.insert(partition);
            }
            target
        })
        .collect()
}

/// The partitions that nobody reads yet.
#[derive(Debug)]
pub(super) struct Pool {
    topics: BTreeMap<Uuid, Vec<bool>>,
}

impl Pool {
    fn new(topics: &BTreeMap<Uuid, u32>) -> Self {
        Self {
            topics: topics.iter().map(|(id, partitions)| (*id, vec![true; *partitions as usize])).collect(),
        }
    }

    /// Takes a partition; false if it does not exist or is taken.
    pub(super) fn take(&mut self, topic: Uuid, partition: u32) -> bool {
        let free = self.topics.get_mut(&topic).and_then(|t| t.get_mut(partition as usize));
        free.is_some_and(std::mem::take)
    }

    /// The partitions of a topic that are left.
    pub(super) fn left(&self, topic: Uuid) -> impl Iterator<Item = u32> {
        (0..).zip(self.topics.get(&topic).into_iter().flatten()).filter(|(_, free)| **free).map(|(at, _)| at)
    }

    /// Partitions of a topic, taken or not; nothing if it does not exist.
    pub(super) fn size(&self, topic: Uuid) -> Option<usize> {
        self.topics.get(&topic).map(Vec::len)
    }
}

/// Shares out what all members subscribe to alike.
fn share_out(mut pool: Pool, members: &[Member<'_>]) -> Vec<Vec<(Uuid, u32)>> {
    let topics: Vec<Uuid> = members.first().into_iter().flat_map(|m| m.topics.iter().copied()).collect();
    let count: usize = topics.iter().filter_map(|t| pool.size(*t)).sum();
    let smallest = count / members.len().max(1);
    let mut larger = count % members.len().max(1);

    // Everyone keeps what it has, up to its share. Who has more than the smallest share is the
    // first to get a larger one.
    let mut given: Vec<Vec<(Uuid, u32)>> = Vec::with_capacity(members.len());
    for member in members {
        let mut kept = Vec::with_capacity(smallest + 1);
        'topics: for (topic, partitions) in member.current.iter().filter(|(t, _)| member.topics.contains(t)) {
            for partition in &partitions.0 {
                if kept.len() >= smallest + usize::from(larger > 0) {
                    break 'topics;
                }
                if pool.take(*topic, *partition) {
                    kept.push((*topic, *partition));
                }
            }
        }
        if kept.len() > smallest {
            larger -= 1;
        }
        given.push(kept);
    }

    // What is left is dealt out like cards, which spreads every topic over the members.
    let mut lacking = VecDeque::new();
    for (at, kept) in given.iter().enumerate() {
        let mut lacks = smallest.saturating_sub(kept.len());
        if kept.len() <= smallest && larger > 0 {
            larger -= 1;
            lacks += 1;
        }
        if lacks > 0 {
            lacking.push_back((at, lacks));
        }
    }
    for topic in topics {
        for partition in pool.left(topic) {
            let Some((at, lacks)) = lacking.pop_front() else { break };
            if let Some(partitions) = given.get_mut(at) {
                partitions.push((topic, partition));
            }
            if lacks > 1 {
                lacking.push_back((at, lacks - 1));
            }
        }
    }
    debug_assert!(lacking.is_empty(), "the shares add up to the partitions");
    given
}
