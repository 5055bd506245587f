//! `range`: of each topic, every subscriber gets a run of partitions.
//!
//! Topics are assigned one by one by the same rules and with the members in the same order, so
//! members that subscribe to topics with equally many partitions get the same numbers of each,
//! which is what joins of such topics need. The order is by instance id for static members and by
//! member id for the others, which come after them: a static member that comes back under a new
//! member id keeps its place.

use std::collections::BTreeMap;

use strandline_metadata::values::group::Assignment;
use uuid::Uuid;

use super::Member;

pub(super) fn assign(topics: &BTreeMap<Uuid, u32>, members: &[Member<'_>]) -> Vec<Assignment> {
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by_key(|at| {
        let member = members.get(*at);
        let instance = member.and_then(|m| m.instance_id);
        (instance.is_none(), instance, member.map(|m| m.id))
    });

    let mut subscribers: BTreeMap<Uuid, Vec<usize>> = BTreeMap::new();
    for at in order {
        for topic in members.get(at).iter().flat_map(|m| m.topics.iter()) {
            subscribers.entry(*topic).or_default().push(at);
        }
    }

    let mut targets = vec![Assignment::new(); members.len()];
    for (topic, partitions) in topics {
        let Some(subscribers) = subscribers.get(topic) else { continue };
        let current: Vec<Vec<u32>> =
            subscribers.iter().map(|at| current(members.get(*at), *topic, *partitions)).collect();
        for (at, run) in subscribers.iter().zip(share_out(*partitions, current)) {
            if let (Some(target), false) = (targets.get_mut(*at), run.is_empty()) {
                target.insert(*topic, run.into_iter().collect());
            }
        }
    }
    targets
}

/// What a member has of a topic so far, in ascending order.
fn current(member: Option<&Member<'_>>, topic: Uuid, partitions: u32) -> Vec<u32> {
    let current = member.and_then(|m| m.current.get(&topic));
    current.into_iter().flat_map(|c| &c.0).copied().filter(|p| *p < partitions).collect()
}

/// Shares the partitions of one topic out, given what each subscriber has of it so far.
///
/// Everyone keeps its lowest partitions up to its share. What is left goes in runs to those who
/// lack some, in order. The subscribers that already have more than the smallest share are the
/// first to keep one partition on top of it.
fn share_out(partitions: u32, mut shares: Vec<Vec<u32>>) -> Vec<Vec<u32>> {
    let count = partitions as usize;
    let smallest = count / shares.len().max(1);
    let mut larger = count % shares.len().max(1);

    let mut wanted = Vec::with_capacity(shares.len());
    for share in &mut shares {
        let keeps_one_more = share.len() > smallest && larger > 0;
        if keeps_one_more {
            larger -= 1;
        }
        share.truncate(smallest + usize::from(keeps_one_more));
        wanted.push((smallest - share.len().min(smallest), keeps_one_more));
    }
    let mut free = vec![true; count];
    for partition in shares.iter().flatten() {
        if let Some(free) = free.get_mut(*partition as usize) {
            *free = false;
        }
    }
    let mut rest = (0..partitions).zip(free).filter(|(_, free)| *free).map(|(partition, _)| partition);
    for (share, (mut lacks, keeps_one_more)) in shares.iter_mut().zip(wanted) {
        if !keeps_one_more && larger > 0 {
            larger -= 1;
            lacks += 1;
        }
        share.extend(rest.by_ref().take(lacks));
    }
    debug_assert!(rest.next().is_none(), "the shares add up to the partitions");
    shares
}
