use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use strandline_metadata::values::group::Assignment;
use uuid::Uuid;

use super::{Assignor, Member};

type Topics = BTreeMap<Uuid, u32>;

#[derive(Clone, Default)]
struct Known {
    instance: Option<String>,
    topics: BTreeSet<Uuid>,
    current: Assignment,
}

type Group = BTreeMap<String, Known>;

fn topic(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn topics(partitions: &[u32]) -> Topics {
    (1..).map(topic).zip(partitions.iter().copied()).collect()
}

fn group(ids: &[&str], topics: &Topics) -> Group {
    let known = Known { topics: topics.keys().copied().collect(), ..Known::default() };
    ids.iter().map(|id| ((*id).to_owned(), known.clone())).collect()
}

fn run(assignor: Assignor, topics: &Topics, group: &mut Group) {
    let members: Vec<Member<'_>> = group
        .iter()
        .map(|(id, known)| Member {
            id,
            instance_id: known.instance.as_deref(),
            topics: Rc::new(known.topics.clone()),
            current: &known.current,
        })
        .collect();
    let targets = assignor.assign(topics, &members);
    assert!(super::is_partition_of_topics(topics, &members, &targets));
    for (known, target) in group.values_mut().zip(targets) {
        known.current = target;
    }
}

fn of(group: &Group, id: &str, number: u128) -> Vec<u32> {
    group[id].current.get(&topic(number)).into_iter().flat_map(|p| p.0.iter().copied()).collect()
}

fn flat(assignment: &Assignment) -> BTreeSet<(Uuid, u32)> {
    assignment.iter().flat_map(|(t, p)| p.0.iter().map(|p| (*t, *p))).collect()
}

fn loads(group: &Group) -> Vec<usize> {
    group.values().map(|m| flat(&m.current).len()).collect()
}

/// How many partitions have another reader than before.
fn moves(before: &Group, after: &Group) -> usize {
    let kept = |(id, m): (&String, &Known)| {
        before.get(id).map_or(0, |b| flat(&b.current).intersection(&flat(&m.current)).count())
    };
    loads(after).iter().sum::<usize>() - after.iter().map(kept).sum::<usize>()
}

#[test]
fn names_are_those_of_kafka() {
    assert_eq!(Assignor::by_name("uniform"), Some(Assignor::Uniform));
    assert_eq!(Assignor::by_name("range"), Some(Assignor::Range));
    assert_eq!(Assignor::by_name("cooperative-sticky"), None);
}

#[test]
fn nobody_and_nothing_can_be_assigned() {
    for assignor in Assignor::ALL {
        assert!(assignor.assign(&topics(&[3]), &[]).is_empty());
        let mut idle = group(&["a", "b"], &Topics::new());
        run(assignor, &topics(&[3]), &mut idle);
        assert_eq!(loads(&idle), [0, 0]);
        // Subscribed to a topic that does not exist.
        let mut late = group(&["a"], &topics(&[1]));
        run(assignor, &Topics::new(), &mut late);
        assert_eq!(loads(&late), [0]);
    }
}

#[test]
fn uniform_spreads_every_topic() {
    let topics = topics(&[3, 3]);
    let mut members = group(&["a", "b", "c"], &topics);
    run(Assignor::Uniform, &topics, &mut members);
    for (id, partition) in [("a", 0), ("b", 1), ("c", 2)] {
        assert_eq!((of(&members, id, 1), of(&members, id, 2)), (vec![partition], vec![partition]));
    }
}

#[test]
fn uniform_moves_no_more_than_it_must_when_members_come_and_go() {
    let topics = topics(&[10, 7]);
    let mut members = group(&["a", "b", "c"], &topics);
    run(Assignor::Uniform, &topics, &mut members);
    assert_eq!(loads(&members), [6, 6, 5]);

    let before = members.clone();
    run(Assignor::Uniform, &topics, &mut members);
    assert_eq!(moves(&before, &members), 0, "nothing moves without a reason");

    members.extend(group(&["bb"], &topics));
    run(Assignor::Uniform, &topics, &mut members);
    assert_eq!(loads(&members), [5, 4, 4, 4]);
    assert_eq!(moves(&before, &members), 4, "only what the new member gets");

    let before = members.clone();
    members.remove("a");
    run(Assignor::Uniform, &topics, &mut members);
    assert_eq!(loads(&members), [6, 6, 5]);
    assert_eq!(moves(&before, &members), 5, "only what the one that left had");
}

#[test]
fn uniform_gives_what_grew_to_those_with_less() {
    let mut grown = topics(&[4]);
    let mut members = group(&["a", "b", "c"], &grown);
    run(Assignor::Uniform, &grown, &mut members);
    let before = members.clone();
    grown.insert(topic(1), 6);
    run(Assignor::Uniform, &grown, &mut members);
    assert_eq!(loads(&members), [2, 2, 2]);
    assert_eq!(moves(&before, &members), 2);
}

#[test]
fn uniform_shifts_along_chains() {
    // a reads the rare topic 1 and topic 2, b topics 2 and 3, c topic 3 only: a can unburden c only
    // by way of b.
    let topics = topics(&[2, 2, 2]);
    let mut members = Group::new();
    for (id, subscribed, current) in [
        ("a", vec![1, 2], vec![(1, 0), (1, 1), (2, 0)]),
        ("b", vec![2, 3], vec![(2, 1), (3, 0)]),
        ("c", vec![3], vec![(3, 1)]),
    ] {
        let mut known = Known { topics: subscribed.into_iter().map(topic).collect(), ..Known::default() };
        for (t, p) in current {
            known.current.entry(topic(t)).or_default().0.insert(p);
        }
        members.insert(id.to_owned(), known);
    }
    let before = members.clone();
    run(Assignor::Uniform, &topics, &mut members);
    assert_eq!(loads(&members), [2, 2, 2]);
    assert_eq!(moves(&before, &members), 2);
}

/// Whether a partition could go from a member to one with two less, directly or by a chain.
fn could_be_more_even(group: &Group) -> bool {
    let ids: Vec<&String> = group.keys().collect();
    let mut gives: Vec<Vec<bool>> = ids
        .iter()
        .map(|a| ids.iter().map(|b| group[*a].current.keys().any(|t| group[*b].topics.contains(t))).collect())
        .collect();
    for by in 0..ids.len() {
        for from in 0..ids.len() {
            for to in 0..ids.len() {
                gives[from][to] |= gives[from][by] && gives[by][to];
            }
        }
    }
    let loads = loads(group);
    (0..ids.len()).any(|a| (0..ids.len()).any(|b| gives[a][b] && loads[a] >= loads[b] + 2))
}

#[test]
fn uniform_is_as_even_as_subscriptions_allow_and_settles() {
    for seed in 0..400 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut partitions = topics(&(0..6).map(|_| random.random_range(0..12)).collect::<Vec<u32>>());
        let all: Vec<Uuid> = partitions.keys().copied().collect();
        let alike = random.random_bool(0.3);
        let mut members = Group::new();
        for round in 0..12 {
            let id = format!("m{:02}", random.random_range(0..9));
            if random.random_bool(0.3) {
                members.remove(&id);
            } else {
                let subscribed = all.iter().copied().filter(|_| alike || random.random_bool(0.4)).collect();
                members.entry(id).or_default().topics = subscribed;
            }
            if random.random_bool(0.3) {
                *partitions.get_mut(&all[random.random_range(0..all.len())]).unwrap() += 3;
            }
            run(Assignor::Uniform, &partitions, &mut members);
            assert!(!could_be_more_even(&members), "seed {seed} round {round}: {:?}", loads(&members));
            if alike
                && let (Some(most), Some(least)) =
                    (loads(&members).iter().max(), loads(&members).iter().min())
            {
                assert!(most - least <= 1, "seed {seed} round {round}: {:?}", loads(&members));
            }
            let before = members.clone();
            run(Assignor::Uniform, &partitions, &mut members);
            assert_eq!(moves(&before, &members), 0, "seed {seed} round {round}");
        }
    }
}

#[test]
fn range_gives_runs_and_the_same_of_topics_alike() {
    let topics = topics(&[5, 5, 2]);
    let mut members = group(&["a", "b"], &topics);
    run(Assignor::Range, &topics, &mut members);
    assert_eq!((of(&members, "a", 1), of(&members, "b", 1)), (vec![0, 1, 2], vec![3, 4]));
    assert_eq!((of(&members, "a", 2), of(&members, "b", 2)), (vec![0, 1, 2], vec![3, 4]));
    assert_eq!((of(&members, "a", 3), of(&members, "b", 3)), (vec![0], vec![1]));
}

#[test]
fn range_keeps_the_lowest_partitions_and_hands_on_the_others() {
    let topics = topics(&[6]);
    let mut members = group(&["a", "b"], &topics);
    run(Assignor::Range, &topics, &mut members);
    members.extend(group(&["c"], &topics));
    run(Assignor::Range, &topics, &mut members);
    assert_eq!([of(&members, "a", 1), of(&members, "b", 1), of(&members, "c", 1)], [[0, 1], [3, 4], [2, 5]]);
    members.remove("a");
    run(Assignor::Range, &topics, &mut members);
    assert_eq!([of(&members, "b", 1), of(&members, "c", 1)], [[0, 3, 4], [1, 2, 5]]);
}

#[test]
fn range_lets_some_go_empty_when_members_outnumber_partitions() {
    let topics = topics(&[2]);
    let mut members = group(&["a", "b", "c"], &topics);
    run(Assignor::Range, &topics, &mut members);
    assert_eq!(loads(&members), [1, 1, 0]);
    members.remove("a");
    run(Assignor::Range, &topics, &mut members);
    assert_eq!([of(&members, "b", 1), of(&members, "c", 1)], [[1], [0]]);
}

#[test]
fn range_orders_static_members_by_instance_before_the_others() {
    let topics = topics(&[4]);
    let mut members = group(&["a", "b", "c", "d"], &topics);
    members.get_mut("c").unwrap().instance = Some("2".to_owned());
    members.get_mut("d").unwrap().instance = Some("1".to_owned());
    run(Assignor::Range, &topics, &mut members);
    let runs: Vec<Vec<u32>> = ["d", "c", "a", "b"].iter().map(|id| of(&members, id, 1)).collect();
    assert_eq!(runs, [[0], [1], [2], [3]]);
}

#[test]
fn range_is_even_by_topic_whatever_came_before() {
    for seed in 0..200 {
        let mut random = StdRng::seed_from_u64(seed);
        let partitions = topics(&(0..4).map(|_| random.random_range(0..20)).collect::<Vec<u32>>());
        let mut members = Group::new();
        for _ in 0..10 {
            let id = format!("m{}", random.random_range(0..7));
            if random.random_bool(0.3) {
                members.remove(&id);
            } else {
                let subscribed = partitions.keys().copied().filter(|_| random.random_bool(0.6)).collect();
                members.insert(id, Known { topics: subscribed, ..Known::default() });
            }
            run(Assignor::Range, &partitions, &mut members);
            for number in 1..=4 {
                let subscribers = members.iter().filter(|(_, m)| m.topics.contains(&topic(number)));
                let shares: Vec<usize> = subscribers.map(|(id, _)| of(&members, id, number).len()).collect();
                let (least, most) = (shares.iter().min().unwrap_or(&0), shares.iter().max().unwrap_or(&0));
                assert!(most - least <= 1, "seed {seed}: {shares:?}");
            }
            let before = members.clone();
            run(Assignor::Range, &partitions, &mut members);
            assert_eq!(moves(&before, &members), 0, "seed {seed}");
        }
    }
}

/// The partitions of the member that has most, and of the one that has least; of all topics, or of
/// one.
fn extremes(group: &Group, of_topic: Option<Uuid>) -> (usize, usize) {
    let of = |m: &Known| match of_topic {
        Some(topic) => m.current.get(&topic).map_or(0, |p| p.0.len()),
        None => m.current.values().map(|p| p.0.len()).sum(),
    };
    let readers = group.values().filter(|m| of_topic.is_none_or(|topic| m.topics.contains(&topic)));
    let loads: Vec<usize> = readers.map(of).collect();
    (loads.iter().copied().max().unwrap_or(0), loads.iter().copied().min().unwrap_or(0))
}

#[test]
fn large_groups_are_assigned_evenly_too() {
    for (count, per_topic, number) in [(100, 100, 10), (400, 40, 40), (300, 5, 300)] {
        let partitions = topics(&vec![per_topic; number]);
        let ids: Vec<String> = (0..count).map(|n| format!("m{n:05}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        for alike in [true, false] {
            let mut random = StdRng::seed_from_u64(1);
            let mut members = group(&ids, &partitions);
            for member in members.values_mut().filter(|_| !alike) {
                member.topics.retain(|_| random.random_bool(0.5));
            }
            for assignor in Assignor::ALL {
                for member in members.values_mut() {
                    member.current.clear();
                }
                let what = format!("{count} members, {number} × {per_topic}, alike {alike}, {assignor:?}");
                for round in ["at first", "again", "one left"] {
                    if round == "one left" {
                        members.pop_first();
                    }
                    let before = members.clone();
                    // Which looks that every partition has exactly one reader, and that it
                    // subscribes to it.
                    run(assignor, &partitions, &mut members);
                    let evenly_by: Vec<Option<Uuid>> = match assignor {
                        // With so many subscriptions some chain leads from any member to any other.
                        Assignor::Uniform => vec![None],
                        Assignor::Range => partitions.keys().copied().map(Some).collect(),
                    };
                    for by in evenly_by {
                        let (most, least) = extremes(&members, by);
                        assert!(most - least <= 1, "{what}, {round}: {least} to {most} of {by:?}");
                    }
                    if round == "again" {
                        assert_eq!(moves(&before, &members), 0, "{what}");
                    }
                }
            }
        }
    }
}
