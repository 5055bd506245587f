//! Which broker clients are led to: for a partition, the "leader" of Kafka's protocol, here only a
//! hint; for a group, its coordinator.
//!
//! Rendezvous hashing over the registered brokers: whoever knows them derives the same answer, and
//! when one comes or goes only its own partitions and groups move. Brokers answer clients by it,
//! and the observer shows it.

use std::cmp::Reverse;

use uuid::Uuid;

/// A broker, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Its node id.
    pub node_id: i32,
    /// Whether it is leaving.
    pub draining: bool,
    /// Its zone; empty if it has none.
    pub zone: &'a str,
}

/// Those that partitions and groups are spread over: not leaving, unless all are; in `zone`, if any
/// is.
pub fn candidates(brokers: &[Candidate<'_>], zone: Option<&str>) -> Vec<i32> {
    let staying: Vec<&Candidate<'_>> = brokers.iter().filter(|b| !b.draining).collect();
    let all = if staying.is_empty() { brokers.iter().collect() } else { staying };
    let near: Vec<&Candidate<'_>> =
        all.iter().copied().filter(|b| zone.is_some_and(|z| b.zone == z)).collect();
    if near.is_empty() { &all } else { &near }.iter().map(|b| b.node_id).collect()
}

/// The broker for a partition; −1 if there are no candidates.
pub fn of_partition(candidates: &[i32], topic_id: Uuid, partition: u32) -> i32 {
    candidates.iter().copied().max_by_key(|&n| (weight(n, topic_id, partition), n)).unwrap_or(-1)
}

/// The brokers on which so many replicas of a partition are shown, to which clients are led to
/// `leader`, one of `brokers`: that one first. As many as there are brokers, if those are fewer.
pub fn replicas(
    brokers: &[Candidate<'_>],
    leader: i32,
    topic_id: Uuid,
    partition: u32,
    count: usize,
) -> Vec<i32> {
    let mut others: Vec<&Candidate<'_>> = brokers.iter().filter(|b| b.node_id != leader).collect();
    // A broker that leaves moves to the end.
    others.sort_unstable_by_key(|b| (b.draining, Reverse(weight(b.node_id, topic_id, partition)), b.node_id));
    std::iter::once(leader).chain(others.iter().map(|b| b.node_id)).take(count.max(1)).collect()
}

fn weight(node_id: i32, topic_id: Uuid, partition: u32) -> u64 {
    let (high, low) = topic_id.as_u64_pair();
    scramble(
        scramble(high ^ low.rotate_left(32))
            ^ (u64::from(partition) << 32)
            ^ u64::from(node_id.cast_unsigned()),
    )
}

/// The broker that coordinates a group; −1 if there are no candidates.
pub fn of_group(candidates: &[i32], group: &str) -> i32 {
    // FNV-1a: everybody derives the same.
    let hash = group.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let weight = |node_id: i32| scramble(scramble(hash) ^ u64::from(node_id.cast_unsigned()));
    candidates.iter().copied().max_by_key(|&n| (weight(n), n)).unwrap_or(-1)
}

/// The broker that is named as controller: any can do what a controller does; the lowest node id is
/// as good as any.
pub fn controller(candidates: &[i32]) -> i32 {
    candidates.iter().copied().min().unwrap_or(-1)
}

/// The finaliser of SplitMix64.
fn scramble(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brokers<'a>(zones: &[&'a str]) -> Vec<Candidate<'a>> {
        (1..).zip(zones).map(|(node_id, zone)| Candidate { node_id, draining: false, zone }).collect()
    }

    fn spread(candidates: &[i32]) -> Vec<i32> {
        (0..3000).map(|p| of_partition(candidates, Uuid::from_u128(99), p)).collect()
    }

    #[test]
    fn replicas_begin_with_the_leader_and_stay_while_others_come_and_go() {
        let mut known = brokers(&["a", "b", "a", "c"]);
        let topic = Uuid::from_u128(99);
        let of = |known: &[Candidate<'_>], number, count| {
            let leader = of_partition(&candidates(known, None), topic, number);
            (leader, replicas(known, leader, topic, number, count))
        };
        for number in 0..100 {
            let (leader, three) = of(&known, number, 3);
            assert_eq!(three[0], leader);
            let mut distinct = three.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), 3);
            let without: Vec<Candidate<'_>> = known
                .iter()
                .copied()
                .filter(|b| !three.contains(&b.node_id) || b.node_id == leader)
                .collect();
            assert_eq!(of(&without, number, 3).0, leader, "only what was lost moves");
            assert_eq!(of(&known, number, 9).1.len(), 4);
            assert_eq!(of(&known, number, 0).1, [leader]);
        }
        known[0].draining = true;
        assert!((0..100).all(|number| of(&known, number, 3).1.iter().all(|&id| id != 1)));
    }

    #[test]
    fn partitions_are_spread_evenly_and_only_those_of_a_lost_broker_move() {
        let three = spread(&[1, 2, 3]);
        for node in 1..=3 {
            let share = three.iter().filter(|&&n| n == node).count();
            assert!((800..1200).contains(&share), "node {node} has {share} of 3000");
        }
        for (before, after) in three.iter().zip(&spread(&[1, 2])) {
            assert!(*before == 3 || before == after);
        }
    }

    #[test]
    fn groups_are_spread_too_and_nobody_is_minus_one() {
        let of = |candidates: &[i32]| -> Vec<i32> {
            (0..300).map(|n| of_group(candidates, &format!("group-{n}"))).collect()
        };
        let two = of(&[4, 5]);
        assert!(two.contains(&4) && two.contains(&5));
        assert!(of(&[]).iter().all(|&n| n == -1));
        assert_eq!((controller(&[3, 2]), controller(&[])), (2, -1));
    }

    #[test]
    fn a_zone_is_preferred_and_a_leaving_broker_avoided() {
        let mut known = brokers(&["a", "b", "a"]);
        assert_eq!(candidates(&known, Some("a")), [1, 3]);
        assert_eq!(candidates(&known, Some("c")), [1, 2, 3]);
        known[0].draining = true;
        assert_eq!(candidates(&known, Some("a")), [3]);
        for broker in &mut known {
            broker.draining = true;
        }
        assert_eq!(candidates(&known, None), [1, 2, 3], "when all leave, they still serve");
    }
}
