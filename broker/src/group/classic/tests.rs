//! The classic protocol without a clock: each test says what members send and when, and looks at
//! what they are told.

use std::time::Duration;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{JoinGroupRequest, JoinGroupResponse, SyncGroupRequest, SyncGroupResponse};
use kafka_protocol::protocol::StrBytes;
use strandline_metadata::values::group::{Blob, ProtocolValue};
use uuid::Uuid;

use super::join::Join;
use super::session::{Identity, Sync};
use super::*;
use crate::group::tests::code_of;
use crate::group::{Context, Sender};
use crate::group_config::GroupSettings;
use crate::limits::{
    ASSIGNMENT_OVERHEAD_BYTES, GROUP_MEMBERS_BYTES, GROUP_VALUE_BYTES, INSTANCE_ID_BYTES, MAX_LOGGED_CHARS,
    MEMBER_ID_BYTES, MEMBER_METADATA_BYTES, MEMBER_PROTOCOLS, MEMBER_TEXT_BYTES,
};

/// A group and its clock.
struct World {
    group: ClassicGroup,
    now: Instant,
    settings: GroupSettings,
    topics: BTreeMap<String, (Uuid, u32)>,
    next: u64,
    answers: BTreeMap<Ticket, Answer>,
}

impl World {
    fn new() -> Self {
        Self::with_delay(0)
    }

    fn with_delay(initial_rebalance_delay_ms: i32) -> Self {
        let settings = GroupSettings {
            max_size: 5,
            min_session_timeout_ms: 1_000,
            max_session_timeout_ms: 60_000,
            initial_rebalance_delay_ms,
            consumer_session_timeout_ms: 45_000,
            consumer_heartbeat_interval_ms: 5_000,
            may_upgrade: true,
            may_downgrade: true,
        };
        let now = Instant::now();
        let (topics, answers) = (BTreeMap::new(), BTreeMap::new());
        Self { group: ClassicGroup::new(), now, settings, topics, next: 0, answers }
    }

    fn with<R>(&mut self, decide: impl FnOnce(&mut ClassicGroup, &Context<'_>) -> R) -> R {
        self.next += 1;
        let (now, fresh_id) = (self.now, Uuid::from_u128(self.next.into()));
        let ctx = Context { now, topics: &self.topics, settings: &self.settings, fresh_id };
        let decided = decide(&mut self.group, &ctx);
        self.answers.extend(self.group.take_answers());
        decided
    }

    /// Sends a join; the ticket is the answer's place.
    fn send_join(&mut self, join: Join) -> Ticket {
        let ticket = self.next + 1_000;
        self.with(|group, ctx| group.join(ticket, join, ctx));
        ticket
    }

    fn send_sync(&mut self, sync: Sync) -> Ticket {
        let ticket = self.next + 1_000;
        self.with(|group, ctx| group.sync(ticket, sync, ctx));
        ticket
    }

    /// Lets time pass, and timers ring when they are due.
    fn pass(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        while let Some(due) = self.group.next_deadline().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.with(ClassicGroup::expire);
        }
        self.now = end;
    }

    fn joined(&mut self, ticket: Ticket) -> Option<JoinGroupResponse> {
        match self.answers.remove(&ticket)? {
            Answer::Join(answer) => Some(answer.unwrap_or_else(|error| {
                let id =
                    if let JoinError::MemberIdRequired(id) = &error { id.clone() } else { String::new() };
                let refused = JoinGroupResponse::default().with_error_code(code_of(error).code());
                refused.with_member_id(id.into())
            })),
            Answer::Sync(_) => panic!("a join was answered as a sync"),
        }
    }

    fn synced(&mut self, ticket: Ticket) -> Option<SyncGroupResponse> {
        match self.answers.remove(&ticket)? {
            Answer::Sync(answer) => {
                Some(answer.unwrap_or_else(|error| {
                    SyncGroupResponse::default().with_error_code(code_of(error).code())
                }))
            }
            Answer::Join(_) => panic!("a sync was answered as a join"),
        }
    }

    fn heartbeat(&mut self, member: &str, generation: i32) -> i16 {
        let identity = who(member);
        let answer = self.with(|group, ctx| group.heartbeat(&identity, generation, ctx.now));
        answer.err().map_or(0, |e| code_of(e).code())
    }

    fn leave(&mut self, identity: &Identity) -> i16 {
        self.with(|group, ctx| group.leave(identity, ctx)).err().map_or(0, |e| code_of(e).code())
    }

    /// A group of one generation with these members, the first of which leads. Gives their ids.
    fn stable(&mut self, joins: &[Join]) -> Vec<String> {
        let tickets: Vec<Ticket> = joins.iter().map(|join| self.send_join(join.clone())).collect();
        self.pass(self.settings.initial_rebalance_delay_ms.unsigned_abs().into());
        let mut ids = Vec::new();
        for ticket in tickets {
            match self.joined(ticket) {
                Some(joined) => ids.push(joined.member_id.to_string()),
                None => panic!("{:?}", self.group),
            }
        }
        self.assign(&ids);
        ids
    }

    /// Every member syncs, the leader with an assignment that names each.
    fn assign(&mut self, ids: &[String]) {
        let leader = self.group.leader.clone().unwrap();
        let generation = self.group.generation;
        let waiting: Vec<Ticket> = ids
            .iter()
            .filter(|id| **id != leader)
            .map(|id| self.send_sync(Sync { identity: who(id), generation, ..Sync::default() }))
            .collect();
        let assignments = ids.iter().map(|id| (id.clone(), Bytes::from(format!("for {id}")))).collect();
        let own = self.send_sync(Sync { identity: who(&leader), generation, assignments, ..Sync::default() });
        for ticket in waiting.into_iter().chain([own]) {
            assert_eq!(self.synced(ticket).map(|s| s.error_code), Some(0));
        }
        assert_eq!(self.group.state(), "Stable");
    }
}

fn who(member: &str) -> Identity {
    Identity { member_id: member.to_owned(), instance_id: None }
}

fn protocols(names: &[&str]) -> Vec<ProtocolValue> {
    let protocol = |name: &&str| ProtocolValue {
        name: (*name).to_owned(),
        metadata: Blob(Bytes::from(format!("metadata of {name}"))),
    };
    names.iter().map(protocol).collect()
}

/// A member of an old client, which is let in at once.
fn new(client: &str) -> Join {
    Join {
        protocol_type: CONSUMER.to_owned(),
        protocols: protocols(&["range"]),
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: 30_000,
        sender: Sender { client_id: client.to_owned(), host: "/h".to_owned() },
        ..Join::default()
    }
}

fn again(client: &str, id: &str) -> Join {
    Join { member_id: id.to_owned(), ..new(client) }
}

fn fixed(instance: &str) -> Join {
    Join { instance_id: Some(instance.to_owned()), knows_skip_assignment: true, ..new(instance) }
}

fn code(error: ResponseError) -> i16 {
    error.code()
}

#[test]
fn the_first_rebalance_waits_for_more_and_no_longer_than_the_rebalance_timeout() {
    let mut world = World::with_delay(3_000);
    let first = world.send_join(new("a"));
    world.pass(2_000);
    let second = world.send_join(new("b"));
    world.pass(1_500);
    assert_eq!(world.group.state(), "PreparingRebalance", "somebody came, so it waits on");
    world.pass(2_500);
    let (a, b) = (world.joined(first).unwrap(), world.joined(second).unwrap());
    assert_eq!((a.generation_id, b.generation_id), (1, 1));
    assert_eq!((a.members.len(), b.members.len()), (2, 0), "only the leader hears of the others");
    assert_eq!((&a.leader, &b.leader), (&a.member_id, &a.member_id));
    assert_eq!(a.protocol_name.as_deref(), Some("range"));
    assert_eq!(&a.members[0].metadata[..], b"metadata of range");

    let mut world = World::with_delay(3_000);
    let mut tickets = Vec::new();
    for i in 0..5 {
        tickets.push(world.send_join(Join { rebalance_timeout_ms: 5_000, ..new(&format!("m{i}")) }));
        world.pass(1_900);
    }
    assert!(tickets.iter().filter_map(|t| world.joined(*t)).count() >= 3, "it does not wait for ever");
}

#[test]
fn a_generation_is_complete_when_the_leader_has_assigned() {
    let mut world = World::new();
    let tickets = [world.send_join(new("a")), world.send_join(new("b"))];
    world.pass(0);
    let ids: Vec<String> = tickets.map(|t| world.joined(t).unwrap().member_id.to_string()).into();
    assert!(world.group.take_changed(), "the generation is stored before anybody hears of it");
    let generation = 1;
    let follower = world.send_sync(Sync { identity: who(&ids[1]), generation, ..Sync::default() });
    assert_eq!(world.synced(follower), None, "it waits for the leader");
    let assignments =
        [(ids[0].clone(), Bytes::from_static(b"x")), (ids[1].clone(), Bytes::from_static(b"y"))].into();
    let leader = world.send_sync(Sync { identity: who(&ids[0]), generation, assignments, ..Sync::default() });
    assert_eq!(&world.synced(leader).unwrap().assignment[..], b"x");
    assert_eq!(&world.synced(follower).unwrap().assignment[..], b"y");
    assert!(world.group.take_changed());
    let repeated = world.send_sync(Sync { identity: who(&ids[1]), generation, ..Sync::default() });
    assert_eq!(&world.synced(repeated).unwrap().assignment[..], b"y", "a lost answer is given again");
    assert_eq!(world.heartbeat(&ids[1], 1), 0);
    assert!(!world.group.take_changed(), "heartbeats change nothing that is stored");
}

#[test]
fn modern_clients_come_back_with_the_id_that_they_were_given() {
    let mut world = World::new();
    let ticket = world.send_join(Join { knows_member_id_required: true, ..new("app") });
    let given = world.joined(ticket).unwrap();
    assert_eq!(given.error_code, code(ResponseError::MemberIdRequired));
    assert!(given.member_id.starts_with("app-"));
    assert!(!world.group.is_empty(), "whoever is about to join counts");
    assert!(!world.group.take_changed(), "and leaves nothing behind");
    let ticket = world.send_join(again("app", &given.member_id));
    world.pass(0);
    assert_eq!(world.joined(ticket).unwrap().member_id, given.member_id);

    let ticket = world.send_join(Join { knows_member_id_required: true, ..new("gone") });
    let gone = world.joined(ticket).unwrap().member_id.to_string();
    world.pass(10_000);
    let ticket = world.send_join(again("gone", &gone));
    assert_eq!(world.joined(ticket).unwrap().error_code, code(ResponseError::UnknownMemberId));
}

#[test]
fn a_newcomer_makes_everybody_join_again() {
    let mut world = World::new();
    let ids = world.stable(&[new("a"), new("b")]);
    let newcomer = world.send_join(new("c"));
    assert_eq!(world.heartbeat(&ids[0], 1), code(ResponseError::RebalanceInProgress));
    let waiting = [world.send_join(again("a", &ids[0])), world.send_join(again("b", &ids[1]))];
    let third = world.joined(newcomer).expect("all have joined, so nobody waits");
    assert_eq!(third.generation_id, 2);
    for ticket in waiting {
        assert_eq!(world.joined(ticket).unwrap().generation_id, 2);
    }
    assert_eq!(world.group.take_rebalances(), ["member_joined", "member_joined"]);
}

#[test]
fn who_does_not_join_again_in_time_is_left_behind() {
    let mut world = World::new();
    let long = |join: Join| Join { session_timeout_ms: 60_000, rebalance_timeout_ms: 5_000, ..join };
    let ids = world.stable(&[long(new("a")), long(new("b"))]);
    let newcomer = world.send_join(long(new("c")));
    let first = world.send_join(long(again("a", &ids[0])));
    world.pass(4_999);
    assert_eq!(world.joined(newcomer), None);
    world.pass(1);
    assert_eq!(world.joined(newcomer).unwrap().generation_id, 2);
    assert_eq!(world.joined(first).unwrap().members.len(), 2);
    assert_eq!(world.heartbeat(&ids[1], 1), code(ResponseError::UnknownMemberId));
}

#[test]
fn a_silent_member_is_given_up_after_its_session_and_a_commit_keeps_it() {
    let mut world = World::new();
    let ids = world.stable(&[new("a"), new("b")]);
    for _ in 0..3 {
        world.pass(4_000);
        assert_eq!(world.heartbeat(&ids[0], 1), 0);
        let now = world.now;
        world.group.committed(&ids[1], now);
    }
    world.pass(9_000);
    assert_eq!(world.heartbeat(&ids[0], 1), 0);
    world.pass(1_000);
    assert_eq!(world.heartbeat(&ids[0], 1), code(ResponseError::RebalanceInProgress));
    assert_eq!(world.group.take_rebalances().last(), Some(&"session_expired"));
    let rejoined = world.send_join(again("a", &ids[0]));
    assert_eq!(world.joined(rejoined).unwrap().members.len(), 1);
}

#[test]
fn a_member_that_joins_and_never_syncs_holds_the_others_up_only_for_the_rebalance_timeout() {
    let mut world = World::new();
    let long = |join: Join| Join { session_timeout_ms: 60_000, rebalance_timeout_ms: 5_000, ..join };
    let tickets = [world.send_join(long(new("a"))), world.send_join(long(new("b")))];
    world.pass(0);
    let ids: Vec<String> = tickets.map(|t| world.joined(t).unwrap().member_id.to_string()).into();
    let follower = world.send_sync(Sync { identity: who(&ids[1]), generation: 1, ..Sync::default() });
    world.pass(5_000);
    assert_eq!(world.synced(follower).unwrap().error_code, code(ResponseError::RebalanceInProgress));
    assert_eq!(world.group.member_count(), 1);
    assert_eq!(world.group.take_rebalances().last(), Some(&"sync_missing"));
}

#[test]
fn who_waits_for_the_assignment_of_a_leader_that_dies_has_time_to_join_again() {
    let mut world = World::new();
    let tickets = [world.send_join(new("a")), world.send_join(new("b"))];
    world.pass(0);
    let ids: Vec<String> = tickets.map(|t| world.joined(t).unwrap().member_id.to_string()).into();
    let follower = world.send_sync(Sync { identity: who(&ids[1]), generation: 1, ..Sync::default() });
    world.pass(10_000);
    assert_eq!(world.synced(follower).unwrap().error_code, code(ResponseError::RebalanceInProgress));
    world.pass(2_000);
    let rejoined = world.send_join(again("b", &ids[1]));
    let rejoined = world.joined(rejoined).unwrap();
    assert_eq!((rejoined.error_code, rejoined.members.len()), (0, 1), "only the leader was silent");
}

#[test]
fn leaving_rebalances_and_the_last_one_leaves_an_empty_group() {
    let mut world = World::new();
    let ids = world.stable(&[new("a"), new("b")]);
    assert_eq!(world.leave(&who(&ids[0])), 0);
    assert_eq!(world.leave(&who(&ids[0])), code(ResponseError::UnknownMemberId));
    let rejoined = world.send_join(again("b", &ids[1]));
    let second = world.joined(rejoined).unwrap();
    assert_eq!((second.generation_id, &second.leader), (2, &second.member_id), "somebody else leads now");
    world.group.take_changed();
    assert_eq!(world.leave(&who(&ids[1])), 0);
    assert_eq!((world.group.state(), world.group.generation), ("Empty", 3));
    assert!(world.group.take_changed() && world.group.is_empty());
    assert_eq!(world.heartbeat(&ids[1], 2), code(ResponseError::UnknownMemberId));
}

#[test]
fn a_static_member_that_comes_back_gets_its_place_without_a_rebalance() {
    let mut world = World::new();
    let ids = world.stable(&[fixed("one"), fixed("two")]);
    world.group.take_changed();
    let ticket = world.send_join(fixed("two"));
    let back = world.joined(ticket).expect("it is answered at once");
    assert_eq!((back.error_code, back.generation_id), (0, 1));
    assert_ne!(back.member_id.as_str(), ids[1]);
    assert_eq!(back.leader.as_str(), ids[0]);
    assert!(world.group.take_changed(), "the new id must survive the coordinator");
    assert_eq!(world.heartbeat(&ids[0], 1), 0, "the others do not notice");
    let sync = Sync { identity: who(&back.member_id), generation: 1, ..Sync::default() };
    let ticket = world.send_sync(sync);
    assert_eq!(&world.synced(ticket).unwrap().assignment[..], format!("for {}", ids[1]).as_bytes());

    let before = Identity { member_id: ids[1].clone(), instance_id: Some("two".to_owned()) };
    let fenced = world.with(|group, ctx| group.heartbeat(&before, 1, ctx.now)).unwrap_err();
    assert_eq!(code_of(fenced), ResponseError::FencedInstanceId);
    let commit = world.group.check_commit(&before, 1).unwrap_err();
    assert_eq!(code_of(commit), ResponseError::FencedInstanceId);
}

#[test]
fn a_static_leader_that_comes_back_need_not_assign() {
    let mut world = World::new();
    let ids = world.stable(&[fixed("one"), fixed("two")]);
    let ticket = world.send_join(fixed("one"));
    let back = world.joined(ticket).unwrap();
    assert!(back.skip_assignment && back.members.len() == 2 && back.leader == back.member_id);
    let ticket = world.send_join(Join { knows_skip_assignment: false, ..fixed("one") });
    let back_again = world.joined(ticket).unwrap();
    assert!(!back_again.skip_assignment && back_again.members.is_empty());
    assert_eq!(back_again.leader, back.member_id, "an old client is told that another one leads");
    assert_eq!(world.heartbeat(&ids[1], 1), 0);
}

#[test]
fn a_static_member_that_changes_what_the_group_agrees_on_makes_it_rebalance() {
    let mut world = World::new();
    let both = |join: Join| Join { protocols: protocols(&["range", "sticky"]), ..join };
    let ids = world.stable(&[both(fixed("one")), both(fixed("two"))]);
    let other = Join { protocols: protocols(&["sticky"]), ..fixed("two") };
    let ticket = world.send_join(other);
    assert_eq!(world.joined(ticket), None);
    assert_eq!(world.heartbeat(&ids[0], 1), code(ResponseError::RebalanceInProgress));
    let rejoined = world.send_join(Join { member_id: ids[0].clone(), ..both(fixed("one")) });
    assert_eq!(world.joined(rejoined).unwrap().protocol_name.as_deref(), Some("sticky"));
}

#[test]
fn static_members_keep_their_place_while_they_are_away() {
    let mut world = World::new();
    let long = |join: Join| Join { session_timeout_ms: 60_000, rebalance_timeout_ms: 5_000, ..join };
    let ids = world.stable(&[long(fixed("one")), long(new("b"))]);
    let newcomer = world.send_join(long(new("c")));
    world.send_join(long(again("b", &ids[1])));
    world.pass(5_000);
    assert_eq!(world.joined(newcomer).unwrap().generation_id, 2);
    assert_eq!(world.group.member_count(), 3, "the static one is away, and still a member");
    let removed = Identity { member_id: String::new(), instance_id: Some("one".to_owned()) };
    assert_eq!(world.leave(&removed), 0, "an operator names it by its instance id");
    assert_eq!(world.leave(&removed), code(ResponseError::UnknownMemberId));
}

#[test]
fn joins_that_cannot_be_are_refused_with_kafkas_codes() {
    let mut world = World::new();
    let ids = world.stable(&[new("a")]);
    let wrong = [
        (Join { session_timeout_ms: 999, ..new("x") }, ResponseError::InvalidSessionTimeout),
        (Join { session_timeout_ms: 60_001, ..new("x") }, ResponseError::InvalidSessionTimeout),
        (Join { protocol_type: String::new(), ..new("x") }, ResponseError::InconsistentGroupProtocol),
        (Join { protocol_type: "connect".to_owned(), ..new("x") }, ResponseError::InconsistentGroupProtocol),
        (Join { protocols: Vec::new(), ..new("x") }, ResponseError::InconsistentGroupProtocol),
        (Join { protocols: protocols(&["other"]), ..new("x") }, ResponseError::InconsistentGroupProtocol),
        (again("x", "unknown-id"), ResponseError::UnknownMemberId),
        (Join { member_id: ids[0].clone(), ..fixed("nobody") }, ResponseError::UnknownMemberId),
    ];
    for (join, error) in wrong {
        let ticket = world.send_join(join.clone());
        assert_eq!(world.joined(ticket).map(|j| j.error_code), Some(code(error)), "{join:?}");
    }
    let large = vec![ProtocolValue {
        name: "range".to_owned(),
        metadata: Blob(Bytes::from(vec![0; MEMBER_METADATA_BYTES])),
    }];
    let ticket = world.send_join(Join { protocols: large, ..new("x") });
    assert_eq!(world.joined(ticket).unwrap().error_code, code(ResponseError::GroupMaxSizeReached));
    assert_eq!(world.heartbeat(&ids[0], 1), 0, "none of them disturbed the group");
}

#[test]
fn a_flood_of_joins_is_bounded_and_harms_nobody() {
    let mut world = World::new();
    let ids = world.stable(&[new("a")]);
    let mut refused = 0;
    for i in 0..100 {
        let ticket = world.send_join(Join { knows_member_id_required: true, ..new(&format!("x{i}")) });
        let answer = world.joined(ticket).unwrap();
        refused += usize::from(answer.error_code == code(ResponseError::GroupMaxSizeReached));
    }
    assert_eq!(refused, 96);
    assert_eq!(world.heartbeat(&ids[0], 1), 0, "who only asked for an id makes nobody join again");
    world.pass(9_000);
    assert_eq!(world.heartbeat(&ids[0], 1), 0);
    world.pass(1_000);
    let ticket = world.send_join(new("b"));
    world.send_join(again("a", &ids[0]));
    assert_eq!(world.joined(ticket).unwrap().error_code, 0, "those that never came make room");
}

#[test]
fn syncs_that_cannot_be_are_refused_with_kafkas_codes() {
    let mut world = World::new();
    let ids = world.stable(&[new("a")]);
    let sync = || Sync { identity: who(&ids[0]), generation: 1, ..Sync::default() };
    let wrong = [
        (Sync { generation: 0, ..sync() }, ResponseError::IllegalGeneration),
        (Sync { generation: 2, ..sync() }, ResponseError::IllegalGeneration),
        (Sync { identity: who("nobody"), ..sync() }, ResponseError::UnknownMemberId),
        (Sync { protocol_type: Some("connect".into()), ..sync() }, ResponseError::InconsistentGroupProtocol),
        (Sync { protocol: Some("sticky".into()), ..sync() }, ResponseError::InconsistentGroupProtocol),
    ];
    for (sync, error) in wrong {
        let ticket = world.send_sync(sync.clone());
        assert_eq!(world.synced(ticket).map(|s| s.error_code), Some(code(error)), "{sync:?}");
    }
    world.send_join(new("b"));
    let ticket = world.send_sync(sync());
    assert_eq!(world.synced(ticket).unwrap().error_code, code(ResponseError::RebalanceInProgress));
    assert_eq!(world.heartbeat(&ids[0], 7), code(ResponseError::IllegalGeneration));
}

#[test]
fn commits_are_checked_against_the_generation() {
    let mut world = World::new();
    assert!(world.group.check_commit(&who(""), -1).is_ok(), "outside of a group anybody commits");
    let refused = |world: &World, id: &str, generation: i32| {
        code_of(world.group.check_commit(&who(id), generation).unwrap_err())
    };
    assert_eq!(refused(&world, "m", 1), ResponseError::UnknownMemberId);
    let tickets = [world.send_join(new("a"))];
    world.pass(0);
    let id = world.joined(tickets[0]).unwrap().member_id.to_string();
    assert_eq!(refused(&world, &id, 1), ResponseError::RebalanceInProgress, "it has no assignment yet");
    world.assign(std::slice::from_ref(&id));
    assert!(world.group.check_commit(&who(&id), 1).is_ok());
    assert_eq!(refused(&world, &id, 0), ResponseError::IllegalGeneration);
    assert_eq!(refused(&world, "", -1), ResponseError::UnknownMemberId, "only members commit now");
    assert_eq!(refused(&world, "other", 1), ResponseError::UnknownMemberId);
    world.send_join(new("b"));
    assert!(
        world.group.check_commit(&who(&id), 1).is_ok(),
        "before it gives up, it commits what it has read"
    );
}

#[test]
fn another_coordinator_goes_on_with_the_same_generation() {
    let mut world = World::new();
    let ids = world.stable(&[new("a"), fixed("two")]);
    let stored = world.group.value();
    world.pass(8_000);
    world.group = ClassicGroup::from_value(&stored, world.now);
    assert_eq!(world.group.value(), stored);
    world.pass(9_000);
    assert_eq!(world.heartbeat(&ids[0], 1), 0, "sessions begin anew");
    assert_eq!(world.heartbeat(&ids[1], 1), 0);
    assert!(!world.group.take_changed());

    let newcomer = world.send_join(new("c"));
    let gathering = world.group.value();
    assert_eq!(gathering.state, ClassicStateValue::Stable, "a rebalance that gathers is not stored");
    assert!(!world.group.take_changed());
    world.group = ClassicGroup::from_value(&stored, world.now);
    assert_eq!(world.joined(newcomer), None);
    assert_eq!(world.heartbeat(&ids[0], 1), 0);
}

#[test]
fn another_coordinator_completes_a_generation_that_has_begun() {
    let mut world = World::new();
    let tickets = [world.send_join(new("a")), world.send_join(new("b"))];
    world.pass(0);
    let ids: Vec<String> = tickets.map(|t| world.joined(t).unwrap().member_id.to_string()).into();
    let stored = world.group.value();
    world.group = ClassicGroup::from_value(&stored, world.now);
    assert_eq!(world.group.state(), "CompletingRebalance");
    world.assign(&ids);
    assert_eq!(world.group.generation, 1);
}

#[test]
fn a_generation_that_is_interrupted_before_it_has_an_assignment_is_not_stored_as_stable() {
    let mut world = World::new();
    let tickets = [world.send_join(new("a")), world.send_join(new("b"))];
    world.pass(0);
    let ids: Vec<String> = tickets.map(|t| world.joined(t).unwrap().member_id.to_string()).into();
    world.send_join(new("c"));
    assert_eq!(world.group.state(), "PreparingRebalance");
    let stored = world.group.value();
    world.group = ClassicGroup::from_value(&stored, world.now);
    let ticket = world.send_sync(Sync { identity: who(&ids[1]), generation: 1, ..Sync::default() });
    assert_eq!(world.synced(ticket), None, "nobody is told that there is nothing for it");
}

#[test]
fn members_that_repeat_a_join_hear_of_the_generation_that_began_meanwhile() {
    let mut world = World::new();
    let tickets = [world.send_join(new("a")), world.send_join(new("b"))];
    world.pass(0);
    let ids: Vec<String> = tickets.map(|t| world.joined(t).unwrap().member_id.to_string()).into();
    let ticket = world.send_join(again("b", &ids[1]));
    assert_eq!(world.joined(ticket).unwrap().generation_id, 1, "its answer was lost; nobody is disturbed");
    world.assign(&ids);
    let ticket = world.send_join(again("b", &ids[1]));
    assert_eq!(world.joined(ticket).unwrap().generation_id, 1, "a follower that says nothing new");
    let ticket = world.send_join(again("a", &ids[0]));
    assert_eq!(world.joined(ticket), None, "a leader that joins again wants to assign anew");
    assert_eq!(world.group.state(), "PreparingRebalance");
}

#[test]
fn the_assignor_that_most_members_like_best_wins_of_those_that_all_know() {
    let mut world = World::new();
    let with = |client: &str, names: &[&str]| Join { protocols: protocols(names), ..new(client) };
    let ticket = world.send_join(with("a", &["a-only", "x", "y"]));
    world.send_join(with("b", &["y", "x"]));
    world.send_join(with("c", &["y", "x"]));
    world.pass(0);
    assert_eq!(world.joined(ticket).unwrap().protocol_name.as_deref(), Some("y"));
}

#[test]
fn a_member_names_so_many_protocols() {
    let with = |count: usize| {
        let protocol = |i| JoinGroupRequestProtocol::default().with_name(format!("p{i}").into());
        let protocols = (0..count).map(protocol).collect();
        let request = JoinGroupRequest::default().with_protocols(protocols);
        Join::from_request(&request, 9, Sender::default()).map(|join| join.protocols.len()).map_err(code_of)
    };
    assert_eq!(with(MEMBER_PROTOCOLS), Ok(MEMBER_PROTOCOLS));
    assert_eq!(with(MEMBER_PROTOCOLS + 1), Err(ResponseError::InconsistentGroupProtocol));
}

/// Comparing each protocol of a member with each of the others' would take hours.
#[test]
fn members_with_very_many_protocols_agree_in_no_time() {
    let names: Vec<String> = (0..200_000).map(|i| format!("p{i}")).collect();
    let protocol = |name: &String| ProtocolValue { name: name.clone(), metadata: Blob::default() };
    let one: Vec<ProtocolValue> = names.iter().map(protocol).collect();
    let mut other: Vec<ProtocolValue> = names.iter().rev().map(protocol).collect();
    assert_eq!(elect_protocol([&one[..], &other, &other].into_iter()), Some("p199999"));
    assert_eq!(common_protocols([&one[..], &other].into_iter()).len(), names.len());
    for p in &mut other {
        p.name.push('x');
    }
    assert_eq!(elect_protocol([&one[..], &other].into_iter()), None);
}

#[test]
fn what_a_group_keeps_of_a_member_has_limits() {
    let long = |bytes: usize| StrBytes::from_string("x".repeat(bytes));
    let join = |request: &JoinGroupRequest, client: usize| {
        let sender = Sender { client_id: "x".repeat(client), host: String::new() };
        Join::from_request(request, 9, sender).err().map(code_of)
    };
    let of = |instance, protocol_type, name, member| {
        JoinGroupRequest::default()
            .with_group_instance_id(Some(long(instance)))
            .with_protocol_type(long(protocol_type))
            .with_protocols(vec![JoinGroupRequestProtocol::default().with_name(long(name))])
            .with_member_id(long(member))
    };
    let (instance, text, member) = (INSTANCE_ID_BYTES, MEMBER_TEXT_BYTES, MEMBER_ID_BYTES);
    assert_eq!(join(&of(instance, text, text, member), text), None);
    let invalid = Some(ResponseError::InvalidRequest);
    assert_eq!(join(&of(instance + 1, 0, 0, 0), 0), invalid);
    assert_eq!(join(&of(0, text + 1, 0, 0), 0), invalid);
    assert_eq!(join(&of(0, 0, text + 1, 0), 0), invalid);
    assert_eq!(join(&of(0, 0, 0, member + 1), 0), invalid);
    assert_eq!(join(&of(0, 0, 0, 0), text + 1), invalid);
    let protocol =
        JoinGroupRequestProtocol::default().with_metadata(vec![0; MEMBER_METADATA_BYTES + 1].into());
    let large = JoinGroupRequest::default().with_protocols(vec![protocol]);
    assert_eq!(join(&large, 0), Some(ResponseError::GroupMaxSizeReached));
    let chatty = JoinGroupRequest::default().with_reason(Some(long(10_000)));
    let chatty = Join::from_request(&chatty, 9, Sender::default()).unwrap();
    assert_eq!(chatty.reason.unwrap().len(), MAX_LOGGED_CHARS);
}

#[test]
fn what_a_leader_assigns_to_members_that_do_not_exist_is_not_kept() {
    let sync = |count: usize| {
        let assignment =
            |i: usize| SyncGroupRequestAssignment::default().with_member_id(format!("{i}").into());
        let request = SyncGroupRequest::default().with_assignments((0..count).map(assignment).collect());
        Sync::from_request(&request).err().map(code_of)
    };
    assert_eq!(sync(2_000), None);
    assert_eq!(sync(GROUP_VALUE_BYTES / ASSIGNMENT_OVERHEAD_BYTES), Some(ResponseError::GroupMaxSizeReached));
    let stranger = SyncGroupRequest::default().with_member_id("x".repeat(MEMBER_ID_BYTES + 1).into());
    assert_eq!(Sync::from_request(&stranger).err().map(code_of), Some(ResponseError::UnknownMemberId));
    let other =
        SyncGroupRequest::default().with_protocol_name(Some("x".repeat(MEMBER_TEXT_BYTES + 1).into()));
    assert_eq!(Sync::from_request(&other).err().map(code_of), Some(ResponseError::InconsistentGroupProtocol));
}

#[test]
fn what_takes_more_when_it_is_stored_than_it_has_bytes_counts_as_it_is_stored() {
    let mut world = World::new();
    let metadata = Blob::default();
    let name = |i| format!("{i}{}", "\u{1}".repeat(1_000));
    let protocols = (0..100).map(|i| ProtocolValue { name: name(i), metadata: metadata.clone() }).collect();
    let wide = Join { protocols, ..new("a") };
    world.stable(std::slice::from_ref(&wide));
    let ticket = world.send_join(Join { sender: new("b").sender, ..wide });
    assert_eq!(world.joined(ticket).unwrap().error_code, code(ResponseError::GroupMaxSizeReached));
    let stored = serde_json::to_vec(&world.group.value()).unwrap();
    assert!(stored.len() > 600_000 && stored.len() < GROUP_MEMBERS_BYTES, "{} bytes", stored.len());
}

#[test]
fn ids_that_were_given_to_members_that_never_come_count_as_members() {
    let mut world = World::new();
    world.settings.max_size = 2_000;
    let client = "x".repeat(MEMBER_TEXT_BYTES);
    let mut given = 0;
    for _ in 0..1_000 {
        let ticket = world.send_join(Join { knows_member_id_required: true, ..new(&client) });
        given +=
            usize::from(world.joined(ticket).unwrap().error_code == code(ResponseError::MemberIdRequired));
    }
    assert!(given * MEMBER_TEXT_BYTES < GROUP_MEMBERS_BYTES && given > 500, "{given} ids");
}

#[test]
fn a_group_is_described_with_metadata_only_while_they_belong_together() {
    let mut world = World::new();
    assert_eq!(world.group.describe().group_state.as_str(), "Empty");
    let ids = world.stable(&[new("a")]);
    let described = world.group.describe();
    assert_eq!((described.group_state.as_str(), &*described.protocol_data), ("Stable", "range"));
    assert_eq!(&described.members[0].member_metadata[..], b"metadata of range");
    assert_eq!(&described.members[0].member_assignment[..], format!("for {}", ids[0]).as_bytes());
    world.send_join(new("b"));
    let described = world.group.describe();
    assert_eq!((described.group_state.as_str(), described.members.len()), ("PreparingRebalance", 2));
    assert!(described.members.iter().all(|m| m.member_metadata.is_empty()));
}

#[test]
fn who_would_make_the_group_too_large_is_refused_and_the_others_do_not_notice() {
    let mut world = World::new();
    let with = |client: &str, bytes: usize| Join {
        protocols: vec![ProtocolValue {
            name: "range".to_owned(),
            metadata: Blob(Bytes::from(vec![1; bytes])),
        }],
        ..new(client)
    };
    let ids = world.stable(&[with("a", 250_000), with("b", 250_000)]);
    let ticket = world.send_join(with("c", 250_000));
    assert_eq!(world.joined(ticket).unwrap().error_code, code(ResponseError::GroupMaxSizeReached));
    assert_eq!(world.heartbeat(&ids[0], 1), 0);
    let newcomer = world.send_join(with("d", 10));
    world.send_join(Join { member_id: ids[0].clone(), ..with("a", 250_000) });
    world.send_join(Join { member_id: ids[1].clone(), ..with("b", 250_000) });
    assert_eq!(world.joined(newcomer).unwrap().error_code, 0);
    let leader = world.group.leader.clone().unwrap();
    let assignments = [(leader.clone(), Bytes::from(vec![1; 600_000]))].into();
    let ticket =
        world.send_sync(Sync { identity: who(&leader), generation: 2, assignments, ..Sync::default() });
    assert_eq!(world.synced(ticket).unwrap().error_code, code(ResponseError::GroupMaxSizeReached));
    let stored = serde_json::to_vec(&world.group.value()).unwrap();
    assert!(stored.len() < GROUP_VALUE_BYTES, "{} bytes", stored.len());
}
