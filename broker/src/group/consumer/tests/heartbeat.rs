//! Joining, staying and leaving with the new protocol; reconciliation step by step.

use std::collections::BTreeSet;

use kafka_protocol::error::ResponseError;
use strandline_metadata::values::group::MemberStateValue;

use super::{World, beat, going_away, joining, leaving, names, text, with_instance};
use crate::group::consumer::{AWAY, ConsumerGroupState};

#[test]
fn requests_that_make_no_sense_are_refused() {
    let mut world = World::new(&[("t", 2)]);
    let ok = || joining("a", &["t"]);
    let partitions = world.partitions(&["t0"]);
    for (what, request) in [
        ("no group id", ok().with_group_id(kafka_protocol::messages::GroupId(text("")))),
        ("empty member id", ok().with_member_id(text(""))),
        ("empty instance id", ok().with_instance_id(Some(text("")))),
        ("empty rack id", ok().with_rack_id(Some(text("")))),
        ("joining without rebalance timeout", ok().with_rebalance_timeout_ms(-1)),
        ("joining without partitions", ok().with_topic_partitions(None)),
        ("joining with partitions", ok().with_topic_partitions(Some(partitions))),
        ("joining without subscription", ok().with_subscribed_topic_names(None)),
        ("away without instance id", beat("a", AWAY)),
        ("an epoch that there is not", beat("a", -3)),
    ] {
        assert_eq!(world.refused(&request), ResponseError::InvalidRequest, "{what}");
    }
    let exotic = ok().with_server_assignor(Some(text("sticky")));
    assert_eq!(world.refused(&exotic), ResponseError::UnsupportedAssignor);
    assert!(world.group.is_empty());
}

#[test]
fn version_0_lets_the_coordinator_choose_the_member_id() {
    let mut world = World::new(&[("t", 2)]);
    let answer = world.send_as(&joining("", &["t"]), 0).unwrap();
    let id = answer.member_id.unwrap();
    assert!(world.group.value().members.contains_key(id.as_str()));
    // After that it must name it.
    for epoch in [1, -1] {
        let code = world.send_as(&beat("", epoch), 0).unwrap_err().code;
        assert_eq!(code, ResponseError::InvalidRequest);
    }
}

#[test]
fn a_member_alone_gets_everything_at_once() {
    let mut world = World::new(&[("t", 2), ("u", 1), ("v", 1)]);
    assert_eq!(world.group.state(), ConsumerGroupState::Empty);
    let answer = world.send(&joining("a", &["t", "u", "missing"])).unwrap();
    assert_eq!(answer.heartbeat_interval_ms, 5_000);
    assert_eq!(world.told(&answer), (1, vec!["t0".into(), "t1".into(), "u0".into()]));
    assert_eq!(world.group.state(), ConsumerGroupState::Stable);
    assert!(world.group.take_changed());

    // What it has is not repeated, unless it asks for all.
    assert_eq!(world.beat("a", 1), (1, vec!["-".into()]));
    assert!(!world.group.take_changed(), "a heartbeat costs no write");
    let full = joining("a", &["t", "u", "missing"]).with_member_epoch(1);
    let answer = world.send(&full).unwrap();
    assert_eq!(world.told(&answer).1, ["t0", "t1", "u0"]);
    assert!(!world.group.take_changed());
}

#[test]
fn a_group_that_is_full_takes_no_more_members() {
    let mut world = World::new(&[("t", 2)]);
    world.settings.max_size = 1;
    world.join("a", &["t"]);
    assert_eq!(world.refused(&joining("b", &["t"])), ResponseError::GroupMaxSizeReached);
    world.beat("a", 1);
}

#[test]
fn strangers_are_told_so() {
    let mut world = World::new(&[("t", 2)]);
    assert_eq!(world.refused(&beat("a", 1)), ResponseError::UnknownMemberId);
    assert_eq!(world.refused(&leaving("a")), ResponseError::UnknownMemberId);
    assert_eq!(world.refused(&going_away("a", "i")), ResponseError::UnknownMemberId);
    assert_eq!(world.refused(&with_instance(beat("a", 1), "i")), ResponseError::UnknownMemberId);
}

#[test]
fn partitions_go_over_only_when_their_owner_has_released_them() {
    let mut world = World::new(&[("t", 4)]);
    world.join("a", &["t"]);
    assert_eq!(world.join("b", &["t"]), (2, vec![]), "nothing is free yet");
    assert_eq!(world.member("b").state, MemberStateValue::UnreleasedPartitions);
    assert_eq!(world.group.state(), ConsumerGroupState::Reconciling);

    assert_eq!(world.beat("a", 1), (1, vec!["t0".into(), "t1".into()]), "a is to give two up");
    assert_eq!(world.member("a").state, MemberStateValue::UnrevokedPartitions);
    assert_eq!(world.beat("b", 2), (2, vec!["-".into()]));
    // Neither silence nor reading on counts as a release.
    assert_eq!(world.beat("a", 1), (1, vec!["-".into()]));
    assert_eq!(world.report("a", 1, &["t0", "t1", "t3"]), (1, vec!["-".into()]));
    assert_eq!(world.beat("b", 2), (2, vec!["-".into()]));

    assert_eq!(world.report("a", 1, &["t0", "t1"]), (2, vec!["-".into()]));
    assert_eq!(world.beat("b", 2), (2, vec!["t2".into(), "t3".into()]));
    assert_eq!(world.group.state(), ConsumerGroupState::Stable);
}

#[test]
fn partitions_go_over_one_by_one_to_those_who_wait() {
    let mut world = World::new(&[("t", 6)]);
    world.join("a", &["t"]);
    world.join("b", &["t"]);
    world.beat("a", 1);
    world.report("a", 1, &["t0", "t1", "t2"]);
    world.beat("b", 2);
    assert_eq!(world.join("c", &["t"]), (3, vec![]));
    // First b gives one up, then a; c gets each as soon as it is free.
    assert_eq!(world.beat("b", 2).1, ["t3", "t4"]);
    assert_eq!(world.report("b", 2, &["t3", "t4"]), (3, vec!["-".into()]));
    assert_eq!(world.beat("c", 3), (3, vec!["t5".into()]));
    assert_eq!(world.beat("a", 2).1, ["t0", "t1"]);
    assert_eq!(world.report("a", 2, &["t0", "t1"]), (3, vec!["-".into()]));
    assert_eq!(world.beat("c", 3), (3, vec!["t2".into(), "t5".into()]));
    assert_eq!(world.group.state(), ConsumerGroupState::Stable);
}

#[test]
fn a_target_that_moves_on_while_partitions_are_given_up_is_followed() {
    let mut world = World::new(&[("t", 4)]);
    world.join("a", &["t"]);
    world.join("b", &["t"]);
    world.beat("a", 1);
    // b goes before a has given anything up: all is a's again, once it has done what it was told.
    world.send(&leaving("b")).unwrap();
    assert_eq!(world.group.state(), ConsumerGroupState::Assigning);
    assert_eq!(world.beat("a", 1), (1, vec!["-".into()]));
    let all = ["t0", "t1", "t2", "t3"].map(str::to_owned).to_vec();
    assert_eq!(world.report("a", 1, &["t0", "t1"]), (3, all));
    assert_eq!(world.group.state(), ConsumerGroupState::Stable);
}

#[test]
fn a_member_that_changes_its_subscription_loses_and_gets_topics() {
    let mut world = World::new(&[("t", 2), ("u", 2)]);
    world.join("a", &["t"]);
    let change = beat("a", 1).with_subscribed_topic_names(names(&["u"]));
    let answer = world.send(&change).unwrap();
    assert_eq!(world.told(&answer), (1, vec![]), "it must give up first");
    // What it stops subscribing to meanwhile is added to what it is to give up.
    assert_eq!(world.report("a", 1, &[]), (2, vec!["u0".into(), "u1".into()]));
    let answer = world.send(&beat("a", 2).with_subscribed_topic_names(names(&["t"]))).unwrap();
    assert_eq!(world.told(&answer), (2, vec![]));
    assert_eq!(world.report("a", 2, &[]), (3, vec!["t0".into(), "t1".into()]));
}

#[test]
fn what_is_unsubscribed_during_a_revocation_is_revoked_with_it() {
    let mut world = World::new(&[("t", 2), ("u", 2)]);
    world.join("a", &["t", "u"]);
    world.send(&beat("a", 1).with_subscribed_topic_names(names(&["u"]))).unwrap();
    assert_eq!(world.assigned("a"), ["u0", "u1"]);
    let answer = world.send(&beat("a", 1).with_subscribed_topic_names(names(&[]))).unwrap();
    assert_eq!(world.told(&answer), (1, vec![]));
    assert_eq!(world.report("a", 1, &["u0"]), (1, vec!["-".into()]));
    assert_eq!(world.report("a", 1, &[]), (3, vec!["-".into()]));
    assert!(!world.group.is_subscribed_to("u"));
}

#[test]
fn an_answer_that_was_lost_is_given_again() {
    let mut world = World::new(&[("t", 4)]);
    world.join("a", &["t"]);
    world.join("b", &["t"]);
    world.beat("a", 1);
    world.report("a", 1, &["t0", "t1"]);
    assert_eq!(world.member("a").epoch, 2);
    // The answer with epoch 2 was lost. a repeats itself, as often as it takes.
    for _ in 0..3 {
        assert_eq!(world.report("a", 1, &["t0", "t1"]), (2, vec!["t0".into(), "t1".into()]));
    }
    assert_eq!(world.report("a", 1, &["t0"]).0, 2, "less than it may read is fine");
    // Without saying what it reads, or reading more, it is fenced.
    assert_eq!(world.refused(&beat("a", 1)), ResponseError::FencedMemberEpoch);
    let more = beat("a", 1).with_topic_partitions(Some(world.partitions(&["t0", "t2"])));
    assert_eq!(world.refused(&more), ResponseError::FencedMemberEpoch);
    // Fenced for good with any other epoch.
    for epoch in [3, 9] {
        assert_eq!(world.refused(&beat("a", epoch)), ResponseError::FencedMemberEpoch);
    }
    world.beat("a", 2);
    world.join("c", &["t"]);
    world.beat("a", 2);
    world.report("a", 2, &["t0"]);
    assert_eq!(world.refused(&beat("a", 1)), ResponseError::FencedMemberEpoch);
}

#[test]
fn a_join_whose_answer_was_lost_is_repeated_and_a_fenced_member_joins_again() {
    let mut world = World::new(&[("t", 2)]);
    assert_eq!(world.join("a", &["t"]), (1, vec!["t0".into(), "t1".into()]));
    assert_eq!(world.join("a", &["t"]), (1, vec!["t0".into(), "t1".into()]));
    world.join("b", &["t"]);
    world.beat("a", 1);
    assert_eq!(world.refused(&beat("a", 7)), ResponseError::FencedMemberEpoch);
    // It has dropped everything, which releases what it was to give up.
    assert_eq!(world.join("a", &["t"]), (2, vec!["t0".into()]));
    assert_eq!(world.beat("b", 2), (2, vec!["t1".into()]));
}

#[test]
fn members_that_leave_make_room() {
    let mut world = World::new(&[("t", 2)]);
    world.join("a", &["t"]);
    world.join("b", &["t"]);
    let answer = world.send(&leaving("a")).unwrap();
    assert_eq!((answer.member_epoch, answer.assignment), (-1, None));
    assert_eq!(world.beat("b", 2), (3, vec!["t0".into(), "t1".into()]));
    world.send(&leaving("b")).unwrap();
    assert!(world.group.is_empty());
    assert_eq!(world.group.state(), ConsumerGroupState::Empty);
    assert_eq!(world.group.value().topics.len(), 0);
    assert_eq!(world.join("c", &["t"]), (5, vec!["t0".into(), "t1".into()]));
}

#[test]
fn topics_that_come_grow_and_go_are_noticed() {
    let mut world = World::new(&[("t", 1)]);
    world.join("a", &["t", "u"]);
    assert!(world.group.take_changed());
    world.create("other", 5);
    world.with(|group, ctx| group.topics_changed(ctx));
    assert!(!world.group.take_changed(), "a topic that nobody reads is no reason");

    world.create("u", 1);
    world.with(|group, ctx| group.topics_changed(ctx));
    assert!(world.group.take_changed());
    assert_eq!(world.group.state(), ConsumerGroupState::Assigning);
    assert_eq!(world.beat("a", 1), (2, vec!["t0".into(), "u0".into()]));
    world.create("t", 2);
    world.with(|group, ctx| group.topics_changed(ctx));
    assert_eq!(world.beat("a", 2), (3, vec!["t0".into(), "t1".into(), "u0".into()]));

    // Deleted and created anew under its name, it is another topic.
    world.topics.remove("t");
    world.create("t", 1);
    world.with(|group, ctx| group.topics_changed(ctx));
    assert_eq!(world.beat("a", 3), (3, vec!["u0".into()]));
    assert_eq!(world.report("a", 3, &["u0"]), (4, vec!["t0".into(), "u0".into()]));

    // Another coordinator notices what happened in between.
    world.create("u", 2);
    world.take_over();
    assert!(world.group.take_changed());
    assert_eq!(world.beat("a", 4), (5, vec!["t0".into(), "u0".into(), "u1".into()]));
}

#[test]
fn patterns_match_whole_names_and_follow_the_topics() {
    let mut world = World::new(&[("logs", 1), ("logs-a", 1), ("my-logs", 1)]);
    let join = joining("a", &[]).with_subscribed_topic_names(None);
    for (pattern, expected) in [
        ("logs", vec!["logs0"]),
        ("logs.*", vec!["logs-a0", "logs0"]),
        ("l|logs", vec!["logs0"]),
        ("", vec![]),
    ] {
        world.send(&join.clone().with_subscribed_topic_regex(Some(text(pattern)))).unwrap();
        assert_eq!(world.assigned("a"), expected, "{pattern}");
    }
    world.send(&join.clone().with_subscribed_topic_regex(Some(text("(?i)LOGS-.")))).unwrap();
    world.create("logs-b", 1);
    assert!(!world.group.is_subscribed_to("logs-b"));
    world.with(|group, ctx| group.topics_changed(ctx));
    assert!(world.group.is_subscribed_to("logs-b"));
    let epoch = world.member("a").epoch;
    assert_eq!(world.beat("a", epoch).1, ["logs-a0", "logs-b0"]);

    // Names and pattern together, and the pattern dropped.
    let both = beat("a", epoch + 1).with_subscribed_topic_names(names(&["my-logs"]));
    world.send(&both).unwrap();
    assert_eq!(world.assigned("a"), ["logs-a0", "logs-b0", "my-logs0"]);
    world.send(&beat("a", epoch + 2).with_subscribed_topic_regex(Some(text("")))).unwrap();
    assert_eq!(world.assigned("a"), ["my-logs0"]);
}

#[test]
fn patterns_that_are_invalid_or_too_large_are_refused() {
    let mut world = World::new(&[("t", 1)]);
    let long = "a".repeat(20_000);
    for pattern in ["(", "a)(b", "[", "(?=x)", r"(.)\1", r"(((\w{99}){99}){99}){99}", long.as_str()] {
        let request = joining("a", &[])
            .with_subscribed_topic_names(None)
            .with_subscribed_topic_regex(Some(text(pattern)));
        assert_eq!(world.refused(&request), ResponseError::InvalidRegularExpression);
    }
    assert!(world.group.is_empty());
}

#[test]
fn a_pattern_survives_its_coordinator() {
    let mut world = World::new(&[("t", 1)]);
    let request = joining("a", &[]).with_subscribed_topic_regex(Some(text("t.*")));
    world.send(&request).unwrap();
    world.create("tt", 1);
    world.take_over();
    assert_eq!(world.beat("a", 1), (2, vec!["t0".into(), "tt0".into()]));
}

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
    assert_eq!(world.group.state(), ConsumerGroupState::Stable);
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

#[test]
fn most_votes_choose_the_assignor() {
    let mut world = World::new(&[("t", 4), ("u", 4)]);
    let wants = |id: &str, assignor| joining(id, &["t", "u"]).with_server_assignor(Some(text(assignor)));
    let assignor = |world: &World| world.group.describe(1, &world.topics).assignor_name.to_string();
    world.send(&wants("a", "range")).unwrap();
    assert_eq!(assignor(&world), "range");
    world.send(&wants("b", "uniform")).unwrap();
    assert_eq!(assignor(&world), "uniform", "the default where they can't agree");
    world.send(&wants("c", "range")).unwrap();
    assert_eq!(assignor(&world), "range");
    world.join("d", &["t"]);
    assert_eq!(assignor(&world), "range", "who has no wish has no vote");
}

#[test]
fn a_group_is_described_with_names() {
    let mut world = World::new(&[("t", 4)]);
    let join =
        joining("a", &["t"]).with_rack_id(Some(text("r"))).with_subscribed_topic_regex(Some(text("t|x")));
    world.send(&with_instance(join, "i")).unwrap();
    world.join("b", &["t"]);
    world.beat("a", 1);
    let group = world.group.describe(1, &world.topics);
    assert_eq!(
        (group.group_state.as_str(), group.group_epoch, group.assignment_epoch),
        ("Reconciling", 2, 2)
    );
    let [a, b] = group.members.as_slice() else { panic!("there are two") };
    assert_eq!((a.member_id.as_str(), a.member_epoch, a.member_type), ("a", 1, 1));
    assert_eq!((a.client_id.as_str(), a.client_host.as_str()), ("app", "/10.0.0.1"));
    assert_eq!((a.instance_id.as_deref(), a.rack_id.as_deref()), (Some("i"), Some("r")));
    assert_eq!(
        (a.subscribed_topic_names[0].as_str(), a.subscribed_topic_regex.as_deref()),
        ("t", Some("t|x"))
    );
    let [assigned] = a.assignment.topic_partitions.as_slice() else { panic!("one topic") };
    assert_eq!((assigned.topic_name.as_str(), assigned.partitions.as_slice()), ("t", [0, 1].as_slice()));
    assert_eq!(
        (b.assignment.topic_partitions.len(), b.target_assignment.topic_partitions[0].partitions.len()),
        (0, 2)
    );
    // Version 0 does not know of types; a topic that is gone has no name.
    world.topics.clear();
    let group = world.group.describe(0, &world.topics);
    assert_eq!((group.members[0].member_type, group.members[0].assignment.topic_partitions.len()), (-1, 0));
}

#[test]
fn offsets_are_for_members_at_their_epoch() {
    let mut world = World::new(&[("t", 2)]);
    let stale = Some(ResponseError::StaleMemberEpoch);
    let unknown = Some(ResponseError::UnknownMemberId);
    let code = |result: Result<(), crate::group::GroupError>| result.err().map(|e| e.code);
    assert_eq!(code(world.group.validate_offset_commit("", -1, Some(9))), None, "an empty group is open");
    assert_eq!(code(world.group.validate_offset_commit("", 0, Some(9))), unknown);
    world.join("a", &["t"]);
    let group = &world.group;
    assert_eq!(code(group.validate_offset_commit("", -1, Some(9))), unknown);
    assert_eq!(code(group.validate_offset_commit("b", 1, Some(9))), unknown);
    assert_eq!(code(group.validate_offset_commit("a", 1, Some(9))), None);
    assert_eq!(code(group.validate_offset_commit("a", 0, Some(9))), stale);
    assert_eq!(code(group.validate_offset_commit("a", 2, None)), stale);
    assert_eq!(code(group.validate_offset_commit("a", 1, Some(8))), Some(ResponseError::UnsupportedVersion));
    assert_eq!(
        code(group.validate_offset_commit("a", 1, None)),
        None,
        "a transaction is no matter of versions"
    );
    assert_eq!(code(group.validate_offset_fetch(None, -1)), None);
    assert_eq!(code(group.validate_offset_fetch(None, 1)), unknown);
    assert_eq!(code(group.validate_offset_fetch(Some("b"), -1)), unknown);
    assert_eq!(code(group.validate_offset_fetch(Some("a"), 2)), stale);
    assert_eq!(code(group.validate_offset_fetch(Some("a"), 1)), None);
}
