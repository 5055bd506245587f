//! The balanced assignment of members that subscribe to different topics.
//!
//! The partitions of one topic are alike, so what has to be found is how many of each topic every
//! member reads. No member shall read two partitions more than another that one of its partitions
//! could go to, be it directly or by a chain: A gives B a partition of one topic, B gives C one of
//! another. That is the point where the sum of the squares of the loads is smallest, and it is
//! reached by three steps, each of which leaves little to the next:
//!
//! 1. everyone keeps what it has; what is left goes to the subscriber with the least, rare topics
//!    first;
//! 2. topic by topic, the reader with the most gives to the subscriber with the least;
//! 3. chains, found breadth first from the member with the most.
//!
//! Partitions that a member kept are given away last.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use uuid::Uuid;

use super::Member;
use super::uniform::Pool;

/// Rounds over the topics before chains are tried: the first does nearly all, further ones cost as
/// much.
const ROUNDS: usize = 3;

pub(super) fn assign(pool: Pool, members: &[Member<'_>]) -> Vec<Vec<(Uuid, u32)>> {
    let mut table = Table::new(pool, members);
    table.hand_out();
    for _ in 0..ROUNDS {
        if !table.level_topics() {
            break;
        }
    }
    table.level_by_chains();
    table.into_partitions()
}

/// Members and topics go by their number here, so that what is looked at often is an array.
struct Table {
    ids: Vec<Uuid>,
    pool: Pool,
    /// By topic: who subscribes to it.
    subscribers: Vec<Vec<usize>>,
    /// By member: partitions by topic, kept ones first.
    read: Vec<BTreeMap<usize, Vec<u32>>>,
    /// By member: how many partitions it reads.
    load: Vec<usize>,
}

#[expect(
    clippy::indexing_slicing,
    reason = "numbers of members and topics are made in `new` and never leave the table"
)]
impl Table {
    fn new(mut pool: Pool, members: &[Member<'_>]) -> Self {
        let mut numbers: BTreeMap<Uuid, Vec<usize>> = BTreeMap::new();
        for (at, member) in members.iter().enumerate() {
            for topic in member.topics.iter().filter(|t| pool.size(**t).is_some()) {
                numbers.entry(*topic).or_default().push(at);
            }
        }
        let (ids, subscribers): (Vec<Uuid>, Vec<Vec<usize>>) = numbers.into_iter().unzip();

        let mut read = Vec::with_capacity(members.len());
        for member in members {
            let mut kept: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
            for (topic, partitions) in member.current.iter().filter(|(t, _)| member.topics.contains(t)) {
                let Ok(number) = ids.binary_search(topic) else { continue };
                let partitions: Vec<u32> =
                    partitions.0.iter().copied().filter(|p| pool.take(*topic, *p)).collect();
                if !partitions.is_empty() {
                    kept.insert(number, partitions);
                }
            }
            read.push(kept);
        }
        let load = read.iter().map(|r| r.values().map(Vec::len).sum()).collect();
        Self { ids, pool, subscribers, read, load }
    }

    /// Gives every partition that nobody reads to the subscriber with the least.
    fn hand_out(&mut self) {
        let mut topics: Vec<usize> = (0..self.ids.len()).collect();
        topics.sort_by_key(|topic| (self.subscribers[*topic].len(), *topic));
        for topic in topics {
            let left: Vec<u32> = self.pool.left(self.ids[topic]).collect();
            if left.is_empty() {
                continue;
            }
            let mut poorest: BinaryHeap<_> =
                self.subscribers[topic].iter().map(|m| Reverse((self.load[*m], *m))).collect();
            for partition in left {
                let Some(Reverse((load, member))) = poorest.pop() else { break };
                self.read[member].entry(topic).or_default().push(partition);
                self.load[member] += 1;
                poorest.push(Reverse((load + 1, member)));
            }
        }
    }

    /// Levels the readers of each topic; whether anything moved.
    fn level_topics(&mut self) -> bool {
        let mut moved = false;
        for topic in 0..self.ids.len() {
            let subscribers = &self.subscribers[topic];
            let mut poorest: BinaryHeap<_> =
                subscribers.iter().map(|m| Reverse((self.load[*m], Reverse(*m)))).collect();
            let mut richest: BinaryHeap<_> = subscribers
                .iter()
                .filter(|m| self.read[**m].contains_key(&topic))
                .map(|m| (self.load[*m], *m))
                .collect();
            while let (Some(&(most, from)), Some(&Reverse((least, Reverse(to))))) =
                (richest.peek(), poorest.peek())
            {
                // A member's load has changed since it was put there: it is there once more, with
                // the new one.
                if self.load[from] != most || !self.read[from].contains_key(&topic) {
                    richest.pop();
                    continue;
                }
                if self.load[to] != least {
                    poorest.pop();
                    continue;
                }
                if most < least + 2 {
                    break;
                }
                self.give(topic, from, to);
                moved = true;
                richest.extend([(most - 1, from), (least + 1, to)]);
                poorest.extend([Reverse((most - 1, Reverse(from))), Reverse((least + 1, Reverse(to)))]);
            }
        }
        moved
    }

    /// Shifts partitions along chains until no chain helps.
    ///
    /// If none helps the member with the most, then none helps any member that it reaches, now or
    /// later: they all have nearly as much as it has, and what they have can't leave their circle.
    /// So they are done with, and the search ends.
    fn level_by_chains(&mut self) {
        let mut done = vec![false; self.load.len()];
        loop {
            let open = || (0..self.load.len()).filter(|m| !done[*m]);
            let Some(from) = open().max_by_key(|m| (self.load[*m], Reverse(*m))) else { break };
            if open().all(|m| self.load[m] + 1 >= self.load[from]) {
                break;
            }
            match self.chain(from, &done) {
                Ok(steps) => {
                    for (topic, from, to) in steps {
                        self.give(topic, from, to);
                    }
                }
                Err(reached) => {
                    for member in reached {
                        done[member] = true;
                    }
                }
            }
        }
    }

    /// The shortest chain from a member to one that has two partitions less, as steps (topic, from,
    /// to); or, if there is none, all members that chains reach.
    fn chain(&self, from: usize, done: &[bool]) -> Result<Vec<(usize, usize, usize)>, Vec<usize>> {
        let mut came_by: Vec<Option<(usize, usize)>> = vec![None; self.load.len()];
        let mut seen_topics = vec![false; self.ids.len()];
        let mut reached = vec![from];
        let mut next = VecDeque::from([from]);
        while let Some(member) = next.pop_front() {
            for topic in self.read[member].keys() {
                if std::mem::replace(&mut seen_topics[*topic], true) {
                    continue;
                }
                for to in &self.subscribers[*topic] {
                    if *to == from || came_by[*to].is_some() || done[*to] {
                        continue;
                    }
                    came_by[*to] = Some((*topic, member));
                    if self.load[*to] + 2 <= self.load[from] {
                        return Ok(steps_to(*to, &came_by));
                    }
                    reached.push(*to);
                    next.push_back(*to);
                }
            }
        }
        Err(reached)
    }

    fn give(&mut self, topic: usize, from: usize, to: usize) {
        let Some(partitions) = self.read[from].get_mut(&topic) else { return };
        let given = partitions.pop();
        if partitions.is_empty() {
            self.read[from].remove(&topic);
        }
        debug_assert!(given.is_some(), "who gives a partition of a topic reads one");
        self.read[to].entry(topic).or_default().extend(given);
        self.load[from] -= 1;
        self.load[to] += 1;
    }

    fn into_partitions(self) -> Vec<Vec<(Uuid, u32)>> {
        let ids = &self.ids;
        let of_member = |read: BTreeMap<usize, Vec<u32>>| {
            read.into_iter()
                .flat_map(|(topic, partitions)| partitions.into_iter().map(move |p| (ids[topic], p)))
                .collect()
        };
        self.read.into_iter().map(of_member).collect()
    }
}

/// The steps of the chain that ends at `to`, the first one first.
fn steps_to(to: usize, came_by: &[Option<(usize, usize)>]) -> Vec<(usize, usize, usize)> {
    let mut steps = Vec::new();
    let mut at = to;
    while let Some(Some((topic, from))) = came_by.get(at) {
        steps.push((*topic, *from, at));
        at = *from;
    }
    steps.reverse();
    steps
}
