//! Joining, staying and leaving with the new protocol; reconciliation step by step.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{ConsumerGroupHeartbeatRequest, TopicName};
use strandline_metadata::values::group::MemberStateValue;

use super::classic::join_group;
use super::{World, beat, going_away, joining, leaving, names, text, with_instance};
use crate::group::Sender;
use crate::group::consumer::AWAY;
use crate::group::consumer::heartbeat::validate;
use crate::group::tests::code_of;
use crate::limits::{
    GROUP_VALUE_BYTES, INSTANCE_ID_BYTES, MEMBER_ID_BYTES, MEMBER_METADATA_BYTES, MEMBER_TEXT_BYTES,
};

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
        let code = code_of(world.send_as(&beat("", epoch), 0).unwrap_err());
        assert_eq!(code, ResponseError::InvalidRequest);
    }
}

#[test]
fn a_member_alone_gets_everything_at_once() {
    let mut world = World::new(&[("t", 2), ("u", 1), ("v", 1)]);
    assert_eq!(world.group.state(), "Empty");
    let answer = world.send(&joining("a", &["t", "u", "missing"])).unwrap();
    assert_eq!(answer.heartbeat_interval_ms, 5_000);
    assert_eq!(world.told(&answer), (1, vec!["t0".into(), "t1".into(), "u0".into()]));
    assert_eq!(world.group.state(), "Stable");
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
    assert_eq!(world.group.state(), "Reconciling");

    assert_eq!(world.beat("a", 1), (1, vec!["t0".into(), "t1".into()]), "a is to give two up");
    assert_eq!(world.member("a").state, MemberStateValue::UnrevokedPartitions);
    assert_eq!(world.beat("b", 2), (2, vec!["-".into()]));
    // Neither silence nor reading on counts as a release.
    assert_eq!(world.beat("a", 1), (1, vec!["-".into()]));
    assert_eq!(world.report("a", 1, &["t0", "t1", "t3"]), (1, vec!["-".into()]));
    assert_eq!(world.beat("b", 2), (2, vec!["-".into()]));

    assert_eq!(world.report("a", 1, &["t0", "t1"]), (2, vec!["-".into()]));
    assert_eq!(world.beat("b", 2), (2, vec!["t2".into(), "t3".into()]));
    assert_eq!(world.group.state(), "Stable");
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
    assert_eq!(world.group.state(), "Stable");
}

#[test]
fn a_target_that_moves_on_while_partitions_are_given_up_is_followed() {
    let mut world = World::new(&[("t", 4)]);
    world.join("a", &["t"]);
    world.join("b", &["t"]);
    world.beat("a", 1);
    // b goes before a has given anything up: all is a's again, once it has done what it was told.
    world.send(&leaving("b")).unwrap();
    assert_eq!(world.group.state(), "Assigning");
    assert_eq!(world.beat("a", 1), (1, vec!["-".into()]));
    let all = ["t0", "t1", "t2", "t3"].map(str::to_owned).to_vec();
    assert_eq!(world.report("a", 1, &["t0", "t1"]), (3, all));
    assert_eq!(world.group.state(), "Stable");
}

#[test]
fn a_member_that_changes_its_subscription_loses_and_gets_topics() {
    let mut world = World::new(&[("t", 2), ("u", 2)]);
    world.join("a", &["t"]);
    let change = beat("a", 1).with_subscribed_topic_names(Some(names(&["u"])));
    let answer = world.send(&change).unwrap();
    assert_eq!(world.told(&answer), (1, vec![]), "it must give up first");
    // What it stops subscribing to meanwhile is added to what it is to give up.
    assert_eq!(world.report("a", 1, &[]), (2, vec!["u0".into(), "u1".into()]));
    let answer = world.send(&beat("a", 2).with_subscribed_topic_names(Some(names(&["t"])))).unwrap();
    assert_eq!(world.told(&answer), (2, vec![]));
    assert_eq!(world.report("a", 2, &[]), (3, vec!["t0".into(), "t1".into()]));
}

#[test]
fn what_is_unsubscribed_during_a_revocation_is_revoked_with_it() {
    let mut world = World::new(&[("t", 2), ("u", 2)]);
    world.join("a", &["t", "u"]);
    world.send(&beat("a", 1).with_subscribed_topic_names(Some(names(&["u"])))).unwrap();
    assert_eq!(world.assigned("a"), ["u0", "u1"]);
    let answer = world.send(&beat("a", 1).with_subscribed_topic_names(Some(names(&[])))).unwrap();
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
    assert_eq!(world.group.state(), "Empty");
    assert_eq!(world.group.value().topics.len(), 0);
    assert_eq!(world.join("c", &["t"]), (5, vec!["t0".into(), "t1".into()]));
}

#[test]
fn what_a_group_keeps_of_a_member_has_limits() {
    let long = |bytes: usize| text(&"x".repeat(bytes));
    let refused = |request: &ConsumerGroupHeartbeatRequest, client: usize| {
        let sender = Sender { client_id: "x".repeat(client), host: String::new() };
        validate(request, 1, &sender).err().map(code_of)
    };
    let join = || joining("a", &["t"]);
    let invalid = Some(ResponseError::InvalidRequest);
    assert_eq!(refused(&join(), MEMBER_TEXT_BYTES), None);
    assert_eq!(refused(&join(), MEMBER_TEXT_BYTES + 1), invalid);
    for (bytes, expected) in [(INSTANCE_ID_BYTES, None), (INSTANCE_ID_BYTES + 1, invalid)] {
        assert_eq!(refused(&join().with_instance_id(Some(long(bytes))), 0), expected);
    }
    for (bytes, expected) in [(MEMBER_ID_BYTES, None), (MEMBER_ID_BYTES + 1, invalid)] {
        assert_eq!(refused(&join().with_member_id(long(bytes)), 0), expected);
    }
    for (bytes, expected) in [(MEMBER_TEXT_BYTES, None), (MEMBER_TEXT_BYTES + 1, invalid)] {
        assert_eq!(refused(&join().with_rack_id(Some(long(bytes))), 0), expected);
    }
    let too_large = Some(ResponseError::GroupMaxSizeReached);
    for (bytes, expected) in [(MEMBER_METADATA_BYTES, None), (MEMBER_METADATA_BYTES + 1, too_large)] {
        let subscription = vec![TopicName(long(bytes))];
        assert_eq!(refused(&join().with_subscribed_topic_names(Some(subscription)), 0), expected);
    }
}

#[test]
fn who_would_make_the_group_too_large_is_refused_and_the_others_do_not_notice() {
    let mut world = World::new(&[("t", 100)]);
    let topics: Vec<String> = (0..900).map(|i| format!("{i:0249}")).collect();
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let all = |id| joining(id, &topics);
    for id in ["a", "b", "c", "d", "e"] {
        world.send(&all(id)).unwrap();
    }
    assert_eq!(world.refused(&all("f")), ResponseError::GroupMaxSizeReached);
    let small = world.join("f", &["t"]);
    assert_eq!(small.1.len(), 100);
    let grown = beat("f", small.0).with_subscribed_topic_names(Some(names(&topics)));
    assert_eq!(world.refused(&grown), ResponseError::GroupMaxSizeReached);
    let classic = world.join_classic(&join_group("g", &topics, &[])).map_err(code_of);
    assert_eq!(classic.unwrap_err(), ResponseError::GroupMaxSizeReached);
    // Who says what it has said goes on, and who says less makes room.
    world.send(&all("a")).unwrap();
    world.send(&joining("a", &["t"])).unwrap();
    world.send(&all("f")).unwrap();
    let stored = serde_json::to_vec(world.group.value()).unwrap();
    assert!(stored.len() > 1_000_000 && stored.len() < GROUP_VALUE_BYTES, "{} bytes", stored.len());
}
