//! What others see of a group: its description, and whose offsets it takes.

use kafka_protocol::error::ResponseError;

use super::{World, joining, text, with_instance};
use crate::group::error::GroupError;
use crate::group::tests::code_of;

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

fn code(result: Result<(), impl Into<GroupError>>) -> Option<ResponseError> {
    result.err().map(code_of)
}

#[test]
fn offsets_are_for_members_at_their_epoch() {
    let mut world = World::new(&[("t", 2)]);
    let stale = Some(ResponseError::StaleMemberEpoch);
    let unknown = Some(ResponseError::UnknownMemberId);
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
    assert_eq!(code(group.validate_epoch("", 1)), unknown);
    assert_eq!(code(group.validate_epoch("b", -1)), unknown);
    assert_eq!(code(group.validate_epoch("a", 2)), stale);
    assert_eq!(code(group.validate_epoch("a", 1)), None);
}
