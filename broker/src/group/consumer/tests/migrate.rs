//! Classic groups that become consumer groups, and back.

use std::collections::BTreeMap;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use strandline_metadata::values::group::{
    Blob, ClassicGroupValue, ClassicMemberValue, ClassicStateValue, ProtocolValue,
};

use super::classic::{join_group, subscription, who};
use super::{World, joining, leaving, text, with_instance};
use crate::group::classic::protocol::{TopicPartitions, assignment, encode_assignment};
use crate::group::consumer::ConsumerGroup;
use crate::group::consumer::migrate::Downgraded;
use crate::group::error::ConsumerHeartbeatError;
use crate::group::tests::code_of;

fn assigned(topic: &str, partitions: &[i32]) -> Blob {
    let topic = TopicPartitions { topic: topic.to_owned(), partitions: partitions.to_vec() };
    Blob(encode_assignment(1, &[topic]).unwrap())
}

fn classic_member(assignment: Blob) -> ClassicMemberValue {
    let metadata = Blob(subscription(&["t"], &[]));
    ClassicMemberValue {
        instance_id: None,
        client_id: "app".to_owned(),
        client_host: "/10.0.0.1".to_owned(),
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: 20_000,
        protocols: vec![ProtocolValue { name: "cooperative-sticky".to_owned(), metadata }],
        assignment,
    }
}

fn classic_group(members: &[(&str, Blob)]) -> ClassicGroupValue {
    ClassicGroupValue {
        state: ClassicStateValue::Stable,
        protocol_type: "consumer".to_owned(),
        generation: 7,
        protocol: Some("cooperative-sticky".to_owned()),
        leader: members.first().map(|(id, _)| (*id).to_owned()),
        members: members.iter().map(|(id, a)| ((*id).to_owned(), classic_member(a.clone()))).collect(),
    }
}

impl World {
    fn upgrade(&mut self, classic: &ClassicGroupValue) -> Result<(), ResponseError> {
        self.group = self
            .with(|_, ctx| ConsumerGroup::from_classic(classic, ctx))
            .map_err(|e| code_of(ConsumerHeartbeatError::from(e)))?;
        super::assert_sound(&self.group);
        Ok(())
    }

    fn downgrade(&mut self) -> Option<Downgraded> {
        self.with(|group, ctx| group.to_classic(ctx))
    }
}

fn two() -> ClassicGroupValue {
    classic_group(&[("c", assigned("t", &[0, 1])), ("d", assigned("t", &[2, 3]))])
}

#[test]
fn an_upgraded_group_goes_on_where_the_classic_one_was() {
    let mut world = World::new(&[("t", 4)]);
    world.upgrade(&two()).unwrap();
    assert!(world.group.take_changed());
    assert_eq!((world.group.value().epoch, world.group.state()), (7, "Stable"));
    assert_eq!(
        (world.assigned("c"), world.assigned("d")),
        (vec!["t0".into(), "t1".into()], vec!["t2".into(), "t3".into()])
    );
    assert_eq!(world.beat_classic("c", 7), Ok(()));

    assert_eq!(world.join("n", &["t"]), (8, vec![]));
    assert_eq!(world.beat_classic("c", 7), Err(ResponseError::RebalanceInProgress));
    world.join_classic(&join_group("c", &["t"], &["t0", "t1"])).unwrap();
    assert_eq!(world.sync("c", 8), Ok(vec!["t0".into(), "t1".into()]));
    // An eager member has given everything up before it joins.
    let joined = world.join_classic(&join_group("d", &["t"], &[])).unwrap();
    assert_eq!(joined.generation_id, 8);
    let n = world.beat("n", 8).1;
    assert_eq!(n.len(), 1, "{n:?}");
    assert!(world.downgrade().is_none());
}

#[test]
fn groups_that_can_not_be_upgraded_say_so() {
    let refused = Err(ResponseError::GroupIdNotFound);
    let mut world = World::new(&[("t", 4)]);
    let mut connect = two();
    connect.protocol_type = "connect".to_owned();
    assert_eq!(world.upgrade(&connect), refused);
    let mut garbage = two();
    garbage.members.get_mut("c").unwrap().protocols[0].metadata = Blob(Bytes::from_static(b"?"));
    assert_eq!(world.upgrade(&garbage), refused);
    assert_eq!(world.upgrade(&classic_group(&[("c", Blob(Bytes::from_static(b"?")))])), refused);
    let custom = Bytes::from_static(b"\0\x01\0\0\0\0\0\0\0\x01x");
    assert_eq!(world.upgrade(&classic_group(&[("c", Blob(custom))])), refused);
    world.settings.max_size = 1;
    assert_eq!(world.upgrade(&two()), refused);
    world.settings.max_size = 9;
    world.settings.may_upgrade = false;
    assert_eq!(world.upgrade(&two()), refused);
    // An empty group has nothing to lose.
    assert_eq!(world.upgrade(&classic_group(&[])), Ok(()));
    assert!(world.group.is_empty());
}

#[test]
fn assignments_that_make_no_sense_are_left_out() {
    let mut world = World::new(&[("t", 2)]);
    let group = classic_group(&[
        ("c", assigned("t", &[0, 0, -1, 9])),
        ("d", assigned("t", &[0, 1])),
        ("e", assigned("gone", &[0])),
        ("f", Blob::default()),
    ]);
    world.upgrade(&group).unwrap();
    let reads: BTreeMap<&str, Vec<String>> = ["c", "d", "e", "f"].map(|id| (id, world.assigned(id))).into();
    assert_eq!(
        reads,
        [("c", vec!["t0".to_owned()]), ("d", vec!["t1".into()]), ("e", vec![]), ("f", vec![])].into()
    );
}

#[test]
fn the_last_member_of_the_new_protocol_leaves_a_classic_group() {
    let ways: [fn(&mut World); 3] = [
        |world| drop(world.send(&leaving("n")).unwrap()),
        |world| {
            let left = world.with(|group, ctx| group.leave(&[who("n")], ctx));
            assert_eq!(left, [Ok(())]);
        },
        |world| {
            for _ in 0..6 {
                world.expire_for(9_000);
                let _ = (world.beat_classic("c", 7), world.beat_classic("d", 7));
                world.join_classic(&join_group("c", &["t"], &["t0", "t1"])).unwrap();
                world.join_classic(&join_group("d", &["t"], &["t2", "t3"])).unwrap();
                let _ = (world.sync("c", 7), world.sync("d", 7));
            }
        },
    ];
    for way in ways {
        let mut world = World::new(&[("t", 4)]);
        world.upgrade(&two()).unwrap();
        world.join("n", &["t"]);
        way(&mut world);
        assert!(!world.group.value().members.contains_key("n"));
        let downgraded = world.downgrade().unwrap();
        assert!(downgraded.rebalance);
        let group = downgraded.group;
        assert_eq!((group.generation, group.state), (8, ClassicStateValue::Stable));
        assert_eq!((group.protocol.as_deref(), group.leader), (Some("cooperative-sticky"), None));
        assert_eq!(group.members.keys().collect::<Vec<_>>(), ["c", "d"]);
        assert_eq!(group.members["d"].session_timeout_ms, 10_000);
        let d = assignment(&group.members["d"].assignment.0).unwrap().partitions;
        assert_eq!(d[0].topic, "t");
        assert_eq!(
            d[0].partitions,
            world
                .member("d")
                .assigned
                .values()
                .flat_map(|p| p.0.iter().map(|p| i32::try_from(*p).unwrap()))
                .collect::<Vec<_>>()
        );
    }
}

#[test]
fn a_group_stays_what_it_is_if_it_must() {
    let mut world = World::new(&[("t", 4)]);
    world.upgrade(&two()).unwrap();
    world.join("n", &["t"]);
    world.join("o", &["t"]);
    world.send(&leaving("n")).unwrap();
    assert_eq!(world.downgrade(), None, "o is still there");
    world.settings.may_downgrade = false;
    let epoch = world.group.value().epoch;
    world.send(&leaving("o")).unwrap();
    assert_eq!(world.downgrade(), None, "it is not allowed");
    assert_eq!(world.group.value().epoch, epoch + 1, "so the group goes on by itself");
    world.settings.may_downgrade = true;
    let left = world.with(|group, ctx| group.leave(&["c", "d"].map(who), ctx));
    assert_eq!(left, [Ok(()), Ok(())]);
    assert_eq!(world.downgrade(), None, "nobody is left");
}

#[test]
fn a_static_member_that_is_replaced_by_a_classic_one_leaves_a_group_at_rest() {
    for changes in [false, true] {
        let mut world = World::new(&[("t", 4), ("u", 1)]);
        world.upgrade(&classic_group(&[("c", assigned("t", &[0, 1]))])).unwrap();
        world.send(&with_instance(joining("n", &["t"]), "i")).unwrap();
        let _ = world.beat_classic("c", 7);
        world.join_classic(&join_group("c", &["t"], &["t0", "t1"])).unwrap();
        assert_eq!(world.sync("c", 8), Ok(vec!["t0".into(), "t1".into()]));
        let request = with_instance(super::beat("n", 8), "i");
        world.send(&request).unwrap();
        assert_eq!(world.group.state(), "Stable");

        let topics: &[&str] = if changes { &["u"] } else { &["t"] };
        let join = join_group("", topics, &[]).with_group_instance_id(Some(text("i")));
        let joined = world.join_classic(&join).unwrap();
        let downgraded = world.downgrade().unwrap();
        assert_eq!(downgraded.rebalance, changes);
        assert_eq!(downgraded.group.leader.is_none(), changes);
        assert_eq!(downgraded.group.members[joined.member_id.as_str()].instance_id.as_deref(), Some("i"));
        if !changes {
            assert_eq!((joined.generation_id, downgraded.group.generation), (8, 8));
            let own = &downgraded.group.members[joined.member_id.as_str()].assignment;
            assert_eq!(assignment(&own.0).unwrap().partitions[0].partitions, [2, 3]);
        }
    }
}

#[test]
fn the_protocol_that_most_like_best_of_those_that_all_know_is_elected() {
    let mut world = World::new(&[("t", 4)]);
    let mut group = classic_group(&[("c", Blob::default()), ("d", Blob::default()), ("e", Blob::default())]);
    for (id, names) in [("c", ["own", "range"]), ("d", ["sticky", "range"]), ("e", ["range", "sticky"])] {
        let protocol =
            |name: &str| ProtocolValue { name: name.to_owned(), metadata: Blob(subscription(&["t"], &[])) };
        group.members.get_mut(id).unwrap().protocols = names.map(protocol).to_vec();
    }
    world.upgrade(&group).unwrap();
    assert_eq!(world.downgrade().unwrap().group.protocol.as_deref(), Some("range"));
}
