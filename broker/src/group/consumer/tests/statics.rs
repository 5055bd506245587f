//! Static members, which go away and come back.

use std::collections::BTreeSet;

use kafka_protocol::error::ResponseError;

use super::{World, beat, going_away, joining, leaving, with_instance};
use crate::group::consumer::AWAY;

#[test]
fn a_static_member_comes_back_to_what_it_had() {
    let mut world = World::new(&[("t", 4)]);
    world.send(&with_instance(joining("a", &["t"]), "i")).unwrap();
    world.join("b", &["t"]);
    world.beat("a", 1);
    let answer = world.send(&going_away("a", "i")).unwrap();
    assert_eq!((answer.member_epoch, answer.assignment), (AWAY, None));
    assert_eq!(world.assigned("a"), ["t0", "t1"], "it keeps its place");
    assert_eq!(world.beat("b", 2).1, ["t2", "t3"], "what it was to give up is free, as it reads no more");
    // The answer was lost.
    world.send(&going_away("a", "i")).unwrap();
    assert_eq!(world.refused(&with_instance(beat("a", 1), "i")), ResponseError::FencedMemberEpoch);

    let epoch = world.group.value().epoch;
    let answer = world.send(&with_instance(joining("a2", &["t"]), "i")).unwrap();
    assert_eq!(world.told(&answer), (2, vec!["t0".into(), "t1".into()]));
    assert_eq!(world.group.value().epoch, epoch, "nobody else notices");
    assert_eq!(world.group.state(), "Stable");
    assert_eq!(world.refused(&with_instance(beat("a", 1), "i")), ResponseError::FencedInstanceId);
    assert_eq!(world.refused(&beat("a", 1)), ResponseError::UnknownMemberId);
    world.send(&with_instance(beat("a2", 2), "i")).unwrap();
}

#[test]
fn an_instance_id_belongs_to_one_member_at_a_time() {
    let mut world = World::new(&[("t", 2)]);
    let join = |id| with_instance(joining(id, &["t"]), "i");
    world.send(&join("a")).unwrap();
    assert_eq!(world.refused(&join("b")), ResponseError::UnreleasedInstanceId);
    assert_eq!(world.refused(&with_instance(beat("b", 1), "i")), ResponseError::FencedInstanceId);
    assert_eq!(world.refused(&with_instance(leaving("b"), "i")), ResponseError::FencedInstanceId);
    assert_eq!(world.refused(&going_away("b", "i")), ResponseError::FencedInstanceId);
    // Its own request to join may come again: the answer to the first may have been lost.
    assert_eq!(world.send(&join("a")).unwrap().member_epoch, 1);
    // And if it leaves for good, the place is free.
    world.send(&with_instance(leaving("a"), "i")).unwrap();
    assert_eq!(world.send(&join("b")).unwrap().member_epoch, 3);
}

#[test]
fn a_static_member_may_come_back_under_its_own_id_or_with_another_subscription() {
    let mut world = World::new(&[("t", 2), ("u", 1)]);
    world.send(&with_instance(joining("a", &["t"]), "i")).unwrap();
    world.send(&going_away("a", "i")).unwrap();
    let answer = world.send(&with_instance(joining("a", &["t"]), "i")).unwrap();
    assert_eq!(world.told(&answer), (1, vec!["t0".into(), "t1".into()]));
    world.send(&going_away("a", "i")).unwrap();
    let answer = world.send(&with_instance(joining("b", &["u"]), "i")).unwrap();
    assert_eq!(world.told(&answer), (2, vec!["u0".into()]));
    assert_eq!(world.group.value().members.keys().collect::<Vec<_>>(), ["b"]);
}

#[test]
fn a_member_that_takes_the_place_of_another_leaves_its_own() {
    let mut world = World::new(&[("t", 2)]);
    world.send(&with_instance(joining("a", &["t"]), "i")).unwrap();
    world.send(&with_instance(joining("b", &["t"]), "j")).unwrap();
    world.send(&going_away("a", "i")).unwrap();
    world.send(&with_instance(joining("b", &["t"]), "i")).unwrap();
    let instances: BTreeSet<&String> = world.group.instances.keys().collect();
    assert_eq!(instances, BTreeSet::from([&"i".to_owned()]));
}
