//! Members of the classic protocol among those of the new one.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::{GroupId, JoinGroupRequest, JoinGroupResponse};
use strandline_metadata::values::group::MemberStateValue;

use super::{World, beat, going_away, joining, sender, text, with_instance};
use crate::group::classic::join::Join;
use crate::group::classic::protocol::{self, assignment};
use crate::group::classic::session::{Identity, Sync};
use crate::group::consumer::ExpiredBy::{RebalanceTimeout, SessionTimeout};
use crate::group::error::JoinError;
use crate::group::tests::code_of;

/// A subscription, version 1.
pub(super) fn subscription(topics: &[&str], owned: &[&str]) -> Bytes {
    let mut bytes = BytesMut::new();
    let count = |n: usize| i32::try_from(n).unwrap();
    let put_name = |bytes: &mut BytesMut, name: &str| {
        bytes.put_i16(i16::try_from(name.len()).unwrap());
        bytes.put_slice(name.as_bytes());
    };
    bytes.put_i16(1);
    bytes.put_i32(count(topics.len()));
    for topic in topics {
        put_name(&mut bytes, topic);
    }
    bytes.put_i32(-1);
    let mut by_topic: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for read in owned {
        let (topic, partition) = read.split_at(read.len() - 1);
        by_topic.entry(topic).or_default().push(partition.parse().unwrap());
    }
    bytes.put_i32(count(by_topic.len()));
    for (topic, partitions) in by_topic {
        put_name(&mut bytes, topic);
        bytes.put_i32(count(partitions.len()));
        for partition in partitions {
            bytes.put_i32(partition);
        }
    }
    bytes.freeze()
}

pub(super) fn join_group(id: &str, topics: &[&str], owned: &[&str]) -> JoinGroupRequest {
    let protocol = JoinGroupRequestProtocol::default()
        .with_name(text("cooperative-sticky"))
        .with_metadata(subscription(topics, owned));
    JoinGroupRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_member_id(text(id))
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(20_000)
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol])
}

pub(super) fn who(id: &str) -> Identity {
    Identity { member_id: id.to_owned(), instance_id: None }
}

fn sync(id: &str, generation: i32) -> Sync {
    Sync { identity: who(id), generation, ..Sync::default() }
}

impl World {
    pub(super) fn join_classic(
        &mut self,
        request: &JoinGroupRequest,
    ) -> Result<JoinGroupResponse, JoinError> {
        let before = self.group.value().clone();
        let join = Join::from_request(request, 9, sender())?;
        let answer = self.with(|group, ctx| group.join(join, ctx));
        assert!(answer.is_ok() || before == *self.group.value(), "a refused request changed the group");
        answer
    }

    /// Generation after JoinGroup, and what SyncGroup says to read.
    fn rejoin(&mut self, id: &str, topics: &[&str], owned: &[&str]) -> (i32, Vec<String>) {
        let joined = self.join_classic(&join_group(id, topics, owned)).unwrap();
        assert_eq!(joined.protocol_name.as_deref(), Some("cooperative-sticky"));
        let reads = self.sync(id, joined.generation_id).unwrap();
        (joined.generation_id, reads)
    }

    pub(super) fn sync(&mut self, id: &str, generation: i32) -> Result<Vec<String>, ResponseError> {
        let sync = Sync {
            protocol_type: Some("consumer".to_owned()),
            protocol: Some("cooperative-sticky".to_owned()),
            ..sync(id, generation)
        };
        let answer = self.with(|group, ctx| group.sync(sync, ctx)).map_err(code_of)?;
        let assignment = assignment(&answer.assignment).unwrap().partitions;
        let of_topic = |t: &protocol::TopicPartitions| -> Vec<String> {
            t.partitions.iter().map(|p| format!("{}{p}", t.topic)).collect()
        };
        let mut reads: Vec<String> = assignment.iter().flat_map(of_topic).collect();
        reads.sort();
        Ok(reads)
    }

    pub(super) fn beat_classic(&mut self, id: &str, generation: i32) -> Result<(), ResponseError> {
        self.with(|group, ctx| group.classic_heartbeat(&who(id), generation, ctx)).map_err(code_of)
    }

    fn leave(&mut self, members: &[(&str, Option<&str>)]) -> Vec<i16> {
        let identity = |(id, instance): &(&str, Option<&str>)| Identity {
            instance_id: instance.map(str::to_owned),
            ..who(id)
        };
        let members: Vec<Identity> = members.iter().map(identity).collect();
        let left = self.with(|group, ctx| group.leave(&members, ctx));
        left.into_iter().map(|left| left.err().map_or(0, |e| code_of(e).code())).collect()
    }
}

#[test]
fn a_classic_member_shares_with_one_of_the_new_protocol() {
    let mut world = World::new(&[("t", 6)]);
    world.join("a", &["t"]);
    let asked = world.join_classic(&join_group("", &["t"], &[]));
    let Err(JoinError::MemberIdRequired(c)) = asked else { panic!("{asked:?}") };
    assert_eq!(world.group.value().members.len(), 1);

    assert_eq!(world.rejoin(&c, &["t"], &[]), (2, vec![]));
    assert_eq!(world.beat_classic(&c, 2), Ok(()), "what it waits for is not free yet");
    world.beat("a", 1);
    world.report("a", 1, &["t0", "t1", "t2"]);
    assert_eq!(world.beat_classic(&c, 2), Err(ResponseError::RebalanceInProgress), "now it is");
    assert_eq!(world.rejoin(&c, &["t"], &[]), (2, vec!["t3".into(), "t4".into(), "t5".into()]));
    assert_eq!(world.beat_classic(&c, 2), Ok(()));

    // And back: it is told of a new target, joins with what it has, gives up and joins again.
    world.join("b", &["t"]);
    assert_eq!(world.beat_classic(&c, 2), Err(ResponseError::RebalanceInProgress));
    assert_eq!(world.rejoin(&c, &["t"], &["t3", "t4", "t5"]), (2, vec!["t3".into(), "t4".into()]));
    assert_eq!(world.member(&c).state, MemberStateValue::UnrevokedPartitions);
    assert_eq!(world.beat_classic(&c, 2), Err(ResponseError::RebalanceInProgress));
    assert_eq!(world.beat("b", 3).1, ["-"], "not released yet");
    assert_eq!(world.rejoin(&c, &["t"], &["t3", "t4"]), (3, vec!["t3".into(), "t4".into()]));
    assert_eq!(world.beat("b", 3).1, ["t5"]);
    let described = world.group.describe(1, &world.topics);
    assert_eq!(
        described.members.iter().map(|m| m.member_type).sum::<i8>(),
        2,
        "a and b are of the new protocol"
    );
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let mut world = World::new(&[("t", 4)]);
    world.join("a", &["t"]);
    world.rejoin("c", &["t"], &[]);
    let code = |r: Result<JoinGroupResponse, JoinError>| r.err().map(code_of);
    let inconsistent = Some(ResponseError::InconsistentGroupProtocol);
    let other_type = join_group("d", &["t"], &[]).with_protocol_type(text("connect"));
    assert_eq!(code(world.join_classic(&other_type)), inconsistent);
    assert_eq!(code(world.join_classic(&join_group("d", &["t"], &[]).with_protocols(vec![]))), inconsistent);
    let mut other_name = join_group("d", &["t"], &[]);
    other_name.protocols[0].name = text("range");
    assert_eq!(code(world.join_classic(&other_name)), inconsistent);
    let mut garbage = join_group("d", &["t"], &[]);
    garbage.protocols[0].metadata = Bytes::from_static(&[0, 1, 127]);
    assert_eq!(code(world.join_classic(&garbage)), inconsistent);
    for timeout in [5_999, 1_800_001] {
        let request = join_group("d", &["t"], &[]).with_session_timeout_ms(timeout);
        assert_eq!(code(world.join_classic(&request)), Some(ResponseError::InvalidSessionTimeout));
    }
    let static_stranger = join_group("d", &["t"], &[]).with_group_instance_id(Some(text("i")));
    assert_eq!(code(world.join_classic(&static_stranger)), Some(ResponseError::UnknownMemberId));
    world.settings.max_size = 2;
    assert_eq!(
        code(world.join_classic(&join_group("d", &["t"], &[]))),
        Some(ResponseError::GroupMaxSizeReached)
    );

    assert_eq!(world.sync("a", 1), Err(ResponseError::UnknownMemberId), "a speaks the new protocol");
    assert_eq!(world.sync("x", 2), Err(ResponseError::UnknownMemberId));
    assert_eq!(world.sync("c", 1), Err(ResponseError::IllegalGeneration));
    assert_eq!(world.beat_classic("a", 1), Err(ResponseError::UnknownMemberId));
    assert_eq!(world.beat_classic("c", 3), Err(ResponseError::IllegalGeneration));
    for sync in [
        Sync { protocol_type: Some("connect".to_owned()), ..sync("c", 2) },
        Sync { protocol: Some("range".to_owned()), ..sync("c", 2) },
    ] {
        let refused = world.with(|group, ctx| group.sync(sync, ctx)).unwrap_err();
        assert_eq!(code_of(refused), ResponseError::InconsistentGroupProtocol);
    }
    let commit = world.group.validate_offset_commit("c", 1, Some(8)).unwrap_err();
    assert_eq!(code_of(commit), ResponseError::IllegalGeneration);
    assert_eq!(world.group.validate_offset_commit("c", 2, Some(8)), Ok(()));
}

#[test]
fn a_sync_that_comes_late_is_told_of_the_next_rebalance() {
    let mut world = World::new(&[("t", 4)]);
    world.join("a", &["t"]);
    let joined = world.join_classic(&join_group("c", &["t"], &[])).unwrap();
    world.join("b", &["t"]);
    assert_eq!(world.sync("c", joined.generation_id), Err(ResponseError::RebalanceInProgress));
}

#[test]
fn classic_members_have_timers_of_their_own() {
    let mut world = World::new(&[("t", 4), ("u", 1)]);
    let keep = |world: &mut World| {
        let epoch = world.member("a").epoch;
        world.beat("a", epoch);
    };
    world.join("a", &["u"]);
    // Silent for the session timeout that it asked for.
    world.rejoin("c", &["t"], &[]);
    assert_eq!(world.expire_for(10_000), [("c".to_owned(), SessionTimeout)]);
    // Joined, and never asks for its assignment.
    keep(&mut world);
    let joined = world.join_classic(&join_group("c", &["t"], &[])).unwrap();
    for _ in 0..2 {
        assert_eq!(world.expire_for(9_999), []);
        let _ = world.beat_classic("c", joined.generation_id);
    }
    assert_eq!(world.expire_for(2), [("c".to_owned(), RebalanceTimeout)]);
    // Told to join again, and never does.
    keep(&mut world);
    let (generation, _) = world.rejoin("c", &["t"], &[]);
    world.join("b", &["t"]);
    for _ in 0..2 {
        assert_eq!(world.beat_classic("c", generation), Err(ResponseError::RebalanceInProgress));
        assert_eq!(world.expire_for(9_999), []);
        keep(&mut world);
    }
    assert_eq!(world.beat_classic("c", generation), Err(ResponseError::RebalanceInProgress));
    assert_eq!(world.expire_for(2), [("c".to_owned(), RebalanceTimeout)]);
    // Who does both has no deadline but its session.
    let (generation, _) = world.rejoin("c", &["t"], &[]);
    for _ in 0..6 {
        assert_eq!(world.expire_for(9_000), []);
        let _ = world.beat_classic("c", generation);
        world.rejoin("c", &["t"], &[]);
        keep(&mut world);
        let epoch = world.member("b").epoch;
        world.beat("b", epoch);
    }
}

#[test]
fn members_of_both_protocols_leave_by_id_or_instance() {
    let mut world = World::new(&[("t", 4)]);
    world.settings.may_downgrade = false;
    world.join("a", &["t"]);
    world.send(&with_instance(joining("b", &["t"]), "i")).unwrap();
    world.rejoin("c", &["t"], &[]);
    let epoch = world.group.value().epoch;
    let unknown = ResponseError::UnknownMemberId.code();
    let fenced = ResponseError::FencedInstanceId.code();
    assert_eq!(world.leave(&[("x", None), ("", Some("j")), ("a", Some("i"))]), [unknown, unknown, fenced]);
    assert_eq!(world.group.value().epoch, epoch, "nothing happened");
    assert_eq!(world.leave(&[("", Some("i")), ("c", None), ("c", None)]), [0, 0, 0]);
    assert_eq!(world.group.value().epoch, epoch + 1, "one rebalance for all");
    assert_eq!(world.group.value().members.keys().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn a_member_changes_its_protocol_in_place() {
    let mut world = World::new(&[("t", 2)]);
    world.join("a", &["t"]);
    world.rejoin("c", &["t"], &[]);
    world.beat("a", 1);
    world.report("a", 1, &["t0"]);
    assert_eq!(world.rejoin("c", &["t"], &[]).1, ["t1"]);
    assert_eq!(world.join("c", &["t"]), (2, vec!["t1".into()]));
    assert_eq!(world.beat_classic("c", 2), Err(ResponseError::UnknownMemberId));
    assert!(world.expire_for(30_000).is_empty(), "the timers of the classic protocol are gone");
    world.beat("c", 2);
}

#[test]
fn static_members_change_their_protocol_both_ways_and_keep_what_they_read() {
    let mut world = World::new(&[("t", 2)]);
    world.settings.may_downgrade = false;
    world.join("a", &["t"]);
    let join = join_group("", &["t"], &[]).with_group_instance_id(Some(text("i")));
    let first = world.join_classic(&join).unwrap().member_id.to_string();
    world.beat("a", 1);
    world.report("a", 1, &["t0"]);
    let rejoin = join.clone().with_member_id(text(&first));
    world.join_classic(&rejoin).unwrap();
    assert_eq!(world.assigned(&first), ["t1"]);

    // A classic member has no way to say that it goes away, so whoever comes has its place.
    let answer = world.send(&with_instance(joining("b", &["t"]), "i")).unwrap();
    assert_eq!(world.told(&answer), (2, vec!["t1".into()]));
    let fenced = code_of(world.join_classic(&rejoin).unwrap_err());
    assert_eq!(fenced, ResponseError::FencedInstanceId);
    let second = world.join_classic(&join).unwrap();
    assert_eq!((second.generation_id, world.assigned(&second.member_id)), (2, vec!["t1".to_owned()]));
    assert_eq!(world.refused(&with_instance(beat("b", 2), "i")), ResponseError::FencedInstanceId);
    assert_eq!(world.refused(&going_away("b", "i")), ResponseError::FencedInstanceId);
}
