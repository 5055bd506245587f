//! The APIs of consumer groups, over a connection, in every version.

use std::sync::{Arc, Mutex};

use kafka_protocol::messages::consumer_group_heartbeat_request::TopicPartitions;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    ConsumerGroupDescribeRequest, ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse,
    DeleteGroupsRequest, DescribeGroupsRequest, FindCoordinatorRequest, GroupId, HeartbeatRequest,
    JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, ListGroupsRequest, OffsetCommitRequest,
    OffsetDeleteRequest, OffsetFetchRequest, SyncGroupRequest,
};
use strandline_metadata::backend::faulty::{Fault, FaultyBackend};
use strandline_metadata::backend::{Backend as _, Op, Space, Txn};
use strandline_metadata::keys::Key;
use tokio::time::{Duration, timeout};

use super::*;
use crate::limits::{DESCRIPTIONS_AT_ONCE, SPACE_CLOSED_PERCENT};

fn group(id: &str) -> GroupId {
    GroupId(text(id))
}

/// A broker on which a first rebalance waits for nobody, a client, and a topic `t` of two
/// partitions.
async fn ready() -> (Opened, TestClient, Uuid) {
    let opened = World::new().broker(1, &["--group-initial-rebalance-delay-ms", "0"]).await;
    let mut client = TestClient::connect(&opened.broker);
    let id = client.create_topic("t", 2, &[]).await;
    (opened, client, id)
}

/// A consumer's subscription to `t`, as clients write it.
fn subscription() -> Bytes {
    Bytes::from_static(b"\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff")
}

fn join_request(id: &str, member: &str) -> JoinGroupRequest {
    let protocol = JoinGroupRequestProtocol::default().with_name(text("range")).with_metadata(subscription());
    JoinGroupRequest::default()
        .with_group_id(group(id))
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(10_000)
        .with_member_id(text(member))
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol])
}

/// Joins as a client does that knows of the member id.
async fn join(client: &mut TestClient, id: &str, version: i16) -> JoinGroupResponse {
    let first = client.call(&join_request(id, ""), version).await;
    if first.error_code != ResponseError::MemberIdRequired.code() {
        return first;
    }
    client.call(&join_request(id, &first.member_id), version).await
}

fn sync_request(id: &str, member: &str, generation: i32) -> SyncGroupRequest {
    SyncGroupRequest::default()
        .with_group_id(group(id))
        .with_generation_id(generation)
        .with_member_id(text(member))
        .with_protocol_type(Some(text("consumer")))
        .with_protocol_name(Some(text("range")))
}

/// The only member of a group, with an assignment. Gives its id and generation.
async fn member(client: &mut TestClient, id: &str) -> (String, i32) {
    let joined = join(client, id, 9).await;
    assert_eq!(joined.error_code, 0);
    let sync = sync_request(id, &joined.member_id, joined.generation_id);
    assert_eq!(client.call(&sync, 5).await.error_code, 0);
    (joined.member_id.to_string(), joined.generation_id)
}

fn commit_request(id: &str, member: &str, generation: i32, offset: i64) -> OffsetCommitRequest {
    let partition = |index| {
        OffsetCommitRequestPartition::default()
            .with_partition_index(index)
            .with_committed_offset(offset)
            .with_committed_metadata(Some(text("m")))
    };
    let topic = |name_: &str, partitions| {
        OffsetCommitRequestTopic::default().with_name(name(name_)).with_partitions(partitions)
    };
    OffsetCommitRequest::default()
        .with_group_id(group(id))
        .with_generation_id_or_member_epoch(generation)
        .with_member_id(text(member))
        .with_retention_time_ms(-1)
        .with_topics(vec![topic("t", vec![partition(0), partition(7)]), topic("missing", vec![partition(0)])])
}

/// Commits, and gives the code of partition 0 of `t`; the other partitions of the request do not
/// exist.
async fn commit(client: &mut TestClient, request: &OffsetCommitRequest, version: i16) -> i16 {
    let response = client.call(request, version).await;
    let [own, missing] = &response.topics[..] else { panic!("two topics") };
    let unknown = ResponseError::UnknownTopicOrPartition.code();
    assert_eq!((own.partitions[1].error_code, missing.partitions[0].error_code), (unknown, unknown));
    own.partitions[0].error_code
}

/// What is committed for both partitions of `t`, and the code of the group.
async fn committed(client: &mut TestClient, id: &str, version: i16) -> (Vec<i64>, i16) {
    if version >= 8 {
        let topic =
            OffsetFetchRequestTopics::default().with_name(name("t")).with_partition_indexes(vec![0, 1]);
        let asked = OffsetFetchRequestGroup::default()
            .with_group_id(group(id))
            .with_member_epoch(-1)
            .with_topics(Some(vec![topic]));
        let request = OffsetFetchRequest::default().with_groups(vec![asked]);
        let answer = client.call(&request, version).await.groups.remove(0);
        let offsets = answer.topics[0].partitions.iter().map(|p| p.committed_offset).collect();
        return (offsets, answer.error_code);
    }
    let topic = OffsetFetchRequestTopic::default().with_name(name("t")).with_partition_indexes(vec![0, 1]);
    let request = OffsetFetchRequest::default().with_group_id(group(id)).with_topics(Some(vec![topic]));
    let answer = client.call(&request, version).await;
    (answer.topics[0].partitions.iter().map(|p| p.committed_offset).collect(), answer.error_code)
}

#[tokio::test]
async fn a_group_lives_and_dies_in_every_version() {
    let (_opened, mut client, _) = ready().await;
    for version in join_group::VERSIONS {
        let id = format!("g{version}");
        let joined = join(&mut client, &id, version).await;
        assert_eq!((joined.error_code, joined.generation_id), (0, 1), "version {version}");
        assert_eq!((joined.leader.clone(), joined.members.len()), (joined.member_id.clone(), 1));
        let assignment = SyncGroupRequestAssignment::default()
            .with_member_id(joined.member_id.clone())
            .with_assignment(Bytes::from_static(b"mine"));
        let sync_version = version.min(*sync_group::VERSIONS.end());
        let sync = SyncGroupRequest::default()
            .with_group_id(group(&id))
            .with_generation_id(1)
            .with_member_id(joined.member_id.clone())
            .with_assignments(vec![assignment]);
        let synced = client.call(&sync, sync_version).await;
        assert_eq!((synced.error_code, &synced.assignment[..]), (0, &b"mine"[..]));
        let beat = HeartbeatRequest::default()
            .with_group_id(group(&id))
            .with_generation_id(1)
            .with_member_id(joined.member_id.clone());
        let beat_version = version.min(*heartbeat::VERSIONS.end());
        assert_eq!(client.call(&beat, beat_version).await.error_code, 0);
        let stale = client.call(&beat.with_generation_id(0), beat_version).await;
        assert_eq!(stale.error_code, ResponseError::IllegalGeneration.code());
        let leave_version = version.min(*leave_group::VERSIONS.end());
        let leave = LeaveGroupRequest::default().with_group_id(group(&id));
        let leave = if leave_version < 3 {
            leave.with_member_id(joined.member_id)
        } else {
            leave.with_members(vec![MemberIdentity::default().with_member_id(joined.member_id)])
        };
        let left = client.call(&leave, leave_version).await;
        assert_eq!((left.error_code, left.members.iter().map(|m| m.error_code).sum::<i16>()), (0, 0));
        let again = client.call(&leave, leave_version).await;
        let code = again.members.first().map_or(again.error_code, |m| m.error_code);
        assert_eq!(code, ResponseError::UnknownMemberId.code());
    }
}

/// What is logged on this thread.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn why_members_join_and_leave_is_logged_and_cannot_forge_a_line() {
    let logged = Logged::default();
    let writer = logged.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let (_opened, mut client, _) = ready().await;
    let forged = format!("it was\n2026-01-01 ERROR forged {}END", "é".repeat(300));
    let request = join_request("g", "").with_reason(Some(text(forged)));
    assert_eq!(client.call(&request, 8).await.error_code, ResponseError::MemberIdRequired.code());
    let (member, _) = member(&mut client, "g").await;
    let leaving =
        MemberIdentity::default().with_member_id(text(&*member)).with_reason(Some(text("the day is over")));
    let request = LeaveGroupRequest::default().with_group_id(group("g")).with_members(vec![leaving]);
    assert_eq!(client.call(&request, 5).await.members[0].error_code, 0);
    let logged = String::from_utf8(logged.0.lock().unwrap().clone()).unwrap();
    let line = |what: &str| logged.lines().find(|l| l.contains(what)).unwrap_or_default();
    let joins = line("a member joins and says why");
    assert!(
        joins.contains(r#"group="g""#) && joins.contains(r"it was\n2026-01-01 ERROR forged é"),
        "{logged}"
    );
    assert!(!joins.contains("END"), "all of it is logged: {joins}");
    let leaves = line("a member leaves and says why");
    assert!(leaves.contains(&member) && leaves.contains(r#"reason="the day is over""#), "{logged}");
}

#[tokio::test]
async fn groups_do_not_grow_while_etcd_is_nearly_full() {
    let (opened, mut client, _) = ready().await;
    let (id, generation) = member(&mut client, "g").await;
    assert_eq!(commit(&mut client, &commit_request("g", &id, generation, 1), 9).await, 0);
    let space = |used_bytes| Space { file_bytes: 100, used_bytes, quota_bytes: Some(100) };
    opened.broker.slowdown.space().note(space(SPACE_CLOSED_PERCENT), 0);
    let later = ResponseError::CoordinatorLoadInProgress.code();
    // Nothing is founded, by members of either kind or by a commit.
    assert_eq!(join(&mut client, "new", 9).await.error_code, later);
    assert_eq!(commit(&mut client, &commit_request("new", "", -1, 1), 9).await, later);
    let beat = ConsumerGroupHeartbeatRequest::default()
        .with_group_id(group("new"))
        .with_member_id(text("m"))
        .with_rebalance_timeout_ms(1_000)
        .with_subscribed_topic_names(Some(vec![name("t")]))
        .with_topic_partitions(Some(vec![]));
    assert_eq!(client.call(&beat, 1).await.error_code, later);
    // What exists goes on: what is committed is replaced by what is no longer.
    let mut request = commit_request("g", &id, generation, 2);
    assert_eq!(commit(&mut client, &request, 9).await, 0);
    request.topics[0].partitions[0].committed_metadata = Some(text("longer"));
    assert_eq!(commit(&mut client, &request, 9).await, later);
    request.topics[0].partitions[0].partition_index = 1;
    assert_eq!(commit(&mut client, &request, 9).await, later, "for one more partition");
    assert_eq!(committed(&mut client, "g", 9).await, (vec![2, -1], 0));
    opened.broker.slowdown.space().note(space(SPACE_CLOSED_PERCENT - 1), 0);
    assert_eq!(commit(&mut client, &request, 9).await, 0);
    assert_eq!(join(&mut client, "new", 9).await.error_code, 0);
}

#[tokio::test]
async fn offsets_are_committed_and_found_in_every_version() {
    let (_opened, mut client, _) = ready().await;
    let (id, generation) = member(&mut client, "g").await;
    for version in offset_commit::VERSIONS {
        let offset = 10 + i64::from(version);
        assert_eq!(commit(&mut client, &commit_request("g", &id, generation, offset), version).await, 0);
        for version in offset_fetch::VERSIONS {
            assert_eq!(committed(&mut client, "g", version).await, (vec![offset, -1], 0), "{version}");
            assert_eq!(committed(&mut client, "nobody", version).await, (vec![-1, -1], 0));
        }
        // Without a group, and without a member.
        assert_eq!(commit(&mut client, &commit_request("alone", "", -1, offset), version).await, 0);
        for (member, generation, error) in [
            (&*id, generation + 1, ResponseError::IllegalGeneration),
            ("other", generation, ResponseError::UnknownMemberId),
            ("", -1, ResponseError::UnknownMemberId),
        ] {
            let request = commit_request("g", member, generation, 99);
            assert_eq!(commit(&mut client, &request, version).await, error.code());
        }
        let nobody = commit_request("nobody", "m", 3, 99);
        let error =
            if version < 9 { ResponseError::IllegalGeneration } else { ResponseError::GroupIdNotFound };
        assert_eq!(commit(&mut client, &nobody, version).await, error.code());
        let mut large = commit_request("g", &id, generation, 99);
        large.topics[0].partitions[0].committed_metadata = Some(text("x".repeat(4_097)));
        assert_eq!(commit(&mut client, &large, version).await, ResponseError::OffsetMetadataTooLarge.code());
    }
    let everything = OffsetFetchRequestGroup::default().with_group_id(group("g")).with_member_epoch(-1);
    let request = OffsetFetchRequest::default().with_groups(vec![everything.with_topics(None)]);
    let found = client.call(&request, 9).await.groups.remove(0);
    assert_eq!((found.topics.len(), found.topics[0].partitions.len()), (1, 1));
    assert_eq!(found.topics[0].partitions[0].metadata.as_deref(), Some("m"));
}

#[tokio::test]
async fn offsets_of_a_topic_that_was_deleted_do_not_count_for_its_successor() {
    let (_opened, mut client, _) = ready().await;
    assert_eq!(commit(&mut client, &commit_request("g", "", -1, 5), 9).await, 0);
    let delete = DeleteTopicsRequest::default().with_topic_names(vec![name("t")]);
    assert_eq!(client.call(&delete, 5).await.responses[0].error_code, 0);
    client.create_topic("t", 2, &[]).await;
    assert_eq!(committed(&mut client, "g", 9).await, (vec![-1, -1], 0));
    assert_eq!(commit(&mut client, &commit_request("g", "", -1, 3), 9).await, 0);
    assert_eq!(committed(&mut client, "g", 9).await, (vec![3, -1], 0));
}

#[tokio::test]
async fn ids_of_groups_are_checked() {
    let (_opened, mut client, _) = ready().await;
    let wrong = ResponseError::InvalidGroupId.code();
    let long = "x".repeat(1_025);
    for id in ["", &long] {
        assert_eq!(client.call(&join_request(id, ""), 9).await.error_code, wrong);
        let beat = HeartbeatRequest::default().with_group_id(group(id));
        assert_eq!(client.call(&beat, 4).await.error_code, wrong);
        let sync = SyncGroupRequest::default().with_group_id(group(id));
        assert_eq!(client.call(&sync, 5).await.error_code, wrong);
        let leave = LeaveGroupRequest::default().with_group_id(group(id));
        assert_eq!(client.call(&leave, 5).await.error_code, wrong);
    }
    assert_eq!(commit(&mut client, &commit_request(&long, "", -1, 5), 9).await, wrong);
    assert_eq!(commit(&mut client, &commit_request("", "", -1, 5), 9).await, 0, "as in Kafka");
    let odd = "a/b c\u{e4}%\n";
    assert_eq!(commit(&mut client, &commit_request(odd, "", -1, 6), 9).await, 0);
    assert_eq!(committed(&mut client, odd, 9).await.0, [6, -1]);
    assert_eq!(committed(&mut client, "", 9).await.0, [5, -1]);
}

#[tokio::test]
async fn every_broker_names_the_same_coordinator_and_only_that_one_answers() {
    let world = World::new();
    let brokers = [world.broker(1, &[]).await, world.broker(2, &[]).await, world.broker(3, &[]).await];
    let mut clients = brokers.each_ref().map(|b| TestClient::connect(&b.broker));
    clients[0].create_topic("t", 2, &[]).await;
    for broker in &brokers {
        let all = || broker.broker.replica.read(|view| view.names.brokers().len());
        while all() < 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    for version in find_coordinator::VERSIONS {
        let key = format!("g{version}");
        let request = if version >= 4 {
            FindCoordinatorRequest::default().with_coordinator_keys(vec![text(&*key), text("other")])
        } else {
            FindCoordinatorRequest::default().with_key(text(&*key))
        };
        let mut found = Vec::new();
        for client in &mut clients {
            let response = client.call(&request, version).await;
            assert_eq!(response.error_code, 0);
            found.push(response.coordinators.first().map_or(response.node_id, |c| c.node_id).0);
        }
        assert!(found.iter().all(|n| *n == found[0] && *n > 0), "version {version}: {found:?}");
        seen.insert(found[0]);
        for (index, client) in clients.iter_mut().enumerate() {
            let code = commit(client, &commit_request(&key, "", -1, 5), 9).await;
            let is_own = i32::try_from(index).unwrap() + 1 == found[0];
            assert_eq!(code, if is_own { 0 } else { ResponseError::NotCoordinator.code() });
        }
    }
    assert!(seen.len() > 1, "groups are spread: {seen:?}");
    for (kind, error) in [
        // Nothing that a client would try again after.
        (2, ResponseError::InvalidRequest),
        (9, ResponseError::InvalidRequest),
    ] {
        let request = FindCoordinatorRequest::default().with_key(text("x")).with_key_type(kind);
        assert_eq!(clients[0].call(&request, 3).await.error_code, error.code());
    }
}

#[tokio::test]
async fn a_group_goes_on_when_a_watch_has_left_out_what_its_own_coordinator_wrote() {
    let world = World::new();
    let faulty = FaultyBackend::new(Arc::new(world.backend.clone()), 1);
    let faults = faulty.faults();
    let opened = world.broker_over(Arc::new(faulty), 1, &["--group-initial-rebalance-delay-ms", "0"]).await;
    let mut client = TestClient::connect(&opened.broker);
    client.create_topic("t", 2, &[]).await;
    let (mut id, _) = member(&mut client, "g").await;
    let replica = &opened.broker.replica;
    for _ in 0..20 {
        faults.inject(Fault::WatchGap);
        let left_out = faults.count(Fault::WatchGap);
        let joined = client.call(&join_request("g", &id), 9).await;
        assert_eq!(joined.error_code, 0);
        while faults.count(Fault::WatchGap) == left_out {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let stored = strandline_metadata::groups::read(&world.backend, replica.keys(), "g").await.unwrap();
        if replica.read(|view| view.names.group_revision("g")) == stored.revision {
            // Something else was left out.
            (id, _) = member(&mut client, "g").await;
            continue;
        }
        // Something that nobody counts shows that the watch has gone on.
        let head = replica.keys().encode(&Key::Head(999));
        let later = Txn { then: vec![Op::put(head, "0")], ..Txn::default() };
        let later = world.backend.txn(later).await.unwrap().revision;
        while replica.read(|view| view.revision) < later {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // What the group stores next is refused for as long as the group seems to be another
        // broker's.
        let request = sync_request("g", &id, joined.generation_id);
        let refused = ResponseError::NotCoordinator.code();
        let goes_on = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                match client.call(&request, 5).await.error_code {
                    0 => return,
                    code => assert_eq!(code, refused),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        goes_on.await.expect("the broker finds out that it has not heard of everything");
        return;
    }
    panic!("the watch has left out other things only");
}

#[tokio::test]
async fn groups_are_listed_described_and_deleted_in_every_version() {
    let (_opened, mut client, _) = ready().await;
    let (id, generation) = member(&mut client, "full").await;
    assert_eq!(commit(&mut client, &commit_request("full", &id, generation, 5), 9).await, 0);
    for version in describe_groups::VERSIONS {
        let request = DescribeGroupsRequest::default()
            .with_groups(vec![group("full"), group("nobody")])
            .with_include_authorized_operations(version >= 3);
        let response = client.call(&request, version).await;
        let [full, nobody] = &response.groups[..] else { panic!("two groups") };
        assert_eq!((full.error_code, &*full.group_state, &*full.protocol_data), (0, "Stable", "range"));
        assert_eq!(full.members[0].member_id.as_str(), id);
        // Read, delete, describe, describe configs, alter configs.
        let operations = if version >= 3 { 0b1101_0100_1000 } else { i32::MIN };
        assert_eq!(full.authorized_operations, operations);
        assert_eq!(
            (&*full.members[0].client_host, &full.members[0].member_metadata),
            ("/test", &subscription())
        );
        assert_eq!(&*nobody.group_state, "Dead");
        let expected = if version >= 6 { ResponseError::GroupIdNotFound.code() } else { 0 };
        assert_eq!(nobody.error_code, expected, "version {version}");
    }
    for version in delete_groups::VERSIONS {
        let id = format!("only-offsets-{version}");
        assert_eq!(commit(&mut client, &commit_request(&id, "", -1, 5), 9).await, 0);
        for version in list_groups::VERSIONS {
            let listed = client.call(&ListGroupsRequest::default(), version).await;
            let mut names: Vec<_> = listed.groups.iter().map(|g| g.group_id.to_string()).collect();
            names.sort();
            assert_eq!((listed.error_code, names), (0, vec!["full".to_owned(), id.clone()]));
        }
        let empty = ListGroupsRequest::default().with_states_filter(vec![text("empty")]);
        let listed = client.call(&empty, 5).await;
        assert_eq!(listed.groups.len(), 1);
        assert_eq!((&*listed.groups[0].group_state, &*listed.groups[0].group_type), ("Empty", "classic"));
        let consumers = ListGroupsRequest::default().with_types_filter(vec![text("consumer")]);
        assert!(client.call(&consumers, 5).await.groups.is_empty());

        let names = vec![group("full"), group(&id), group("nobody")];
        let request = DeleteGroupsRequest::default().with_groups_names(names);
        let codes: Vec<i16> =
            client.call(&request, version).await.results.iter().map(|r| r.error_code).collect();
        let expected = [ResponseError::NonEmptyGroup.code(), 0, ResponseError::GroupIdNotFound.code()];
        assert_eq!(codes, expected, "version {version}");
        assert_eq!(committed(&mut client, &id, 9).await.0, [-1, -1]);
    }
}

#[tokio::test]
async fn a_group_is_not_listed_any_more_once_it_is_deleted() {
    let (_opened, mut client, _) = ready().await;
    for round in 0..5 {
        let id = format!("g{round}");
        let (member, _) = member(&mut client, &id).await;
        let member = MemberIdentity::default().with_member_id(text(member));
        let leave = LeaveGroupRequest::default().with_group_id(group(&id)).with_members(vec![member]);
        assert_eq!(client.call(&leave, 5).await.error_code, 0);
        assert_eq!(client.call(&ListGroupsRequest::default(), 5).await.groups.len(), 1);
        let request = DeleteGroupsRequest::default().with_groups_names(vec![group(&id)]);
        assert_eq!(client.call(&request, 2).await.results[0].error_code, 0);
        assert_eq!(client.call(&ListGroupsRequest::default(), 5).await.groups, []);
    }
}

#[tokio::test]
async fn offsets_are_deleted_unless_they_are_read() {
    let (_opened, mut client, _) = ready().await;
    client.create_topic("other", 1, &[]).await;
    let (id, generation) = member(&mut client, "g").await;
    let partition = OffsetCommitRequestPartition::default().with_committed_offset(4);
    let topic = OffsetCommitRequestTopic::default().with_name(name("other")).with_partitions(vec![partition]);
    let mut request = commit_request("g", &id, generation, 5);
    request.topics.push(topic);
    assert_eq!(client.call(&request, 9).await.topics[2].partitions[0].error_code, 0);
    let delete = |id: &str| {
        let topic = |t: &str| {
            OffsetDeleteRequestTopic::default()
                .with_name(name(t))
                .with_partitions(vec![OffsetDeleteRequestPartition::default()])
        };
        OffsetDeleteRequest::default().with_group_id(group(id)).with_topics(vec![
            topic("t"),
            topic("other"),
            topic("missing"),
        ])
    };
    let response = client.call(&delete("g"), 0).await;
    let codes: Vec<i16> = response.topics.iter().map(|t| t.partitions[0].error_code).collect();
    let read = ResponseError::GroupSubscribedToTopic.code();
    assert_eq!(codes, [read, 0, ResponseError::UnknownTopicOrPartition.code()]);
    assert_eq!(committed(&mut client, "g", 9).await.0, [5, -1]);
    let response = client.call(&delete("nobody"), 0).await;
    assert_eq!(response.error_code, ResponseError::GroupIdNotFound.code());
}

fn beat(id: &str, member: &str, epoch: i32) -> ConsumerGroupHeartbeatRequest {
    let request = ConsumerGroupHeartbeatRequest::default()
        .with_group_id(group(id))
        .with_member_id(text(member))
        .with_member_epoch(epoch)
        .with_rebalance_timeout_ms(-1);
    if epoch != 0 {
        return request;
    }
    request
        .with_rebalance_timeout_ms(30_000)
        .with_subscribed_topic_names(Some(vec![name("t")]))
        .with_topic_partitions(Some(Vec::new()))
}

fn assigned(response: &ConsumerGroupHeartbeatResponse) -> Option<usize> {
    let assignment = response.assignment.as_ref()?;
    Some(assignment.topic_partitions.iter().map(|t| t.partitions.len()).sum())
}

#[tokio::test]
async fn the_new_protocol_assigns_and_hands_over_in_every_version() {
    let (_opened, mut client, topic) = ready().await;
    for version in consumer_group_heartbeat::VERSIONS {
        let id = format!("c{version}");
        let first = client.call(&beat(&id, "first", 0), version).await;
        assert_eq!((first.error_code, first.member_epoch, assigned(&first)), (0, 1, Some(2)), "{version}");
        let quiet = client.call(&beat(&id, "first", 1), version).await;
        assert_eq!((quiet.error_code, quiet.member_epoch, assigned(&quiet)), (0, 1, None));
        let second = client.call(&beat(&id, "second", 0), version).await;
        assert_eq!((second.error_code, assigned(&second)), (0, Some(0)), "nothing is free yet");
        let told = client.call(&beat(&id, "first", 1), version).await;
        assert_eq!(assigned(&told), Some(1), "one is to be given up");
        let kept = told.assignment.unwrap().topic_partitions[0].partitions.clone();
        let owned = TopicPartitions::default().with_topic_id(topic).with_partitions(kept);
        let released = beat(&id, "first", 1).with_topic_partitions(Some(vec![owned]));
        assert_eq!(client.call(&released, version).await.member_epoch, second.member_epoch);
        let given = client.call(&beat(&id, "second", second.member_epoch), version).await;
        assert_eq!(assigned(&given), Some(1));

        for version in consumer_group_describe::VERSIONS {
            let request =
                ConsumerGroupDescribeRequest::default().with_group_ids(vec![group(&id), group("nobody")]);
            let response = client.call(&request, version).await;
            assert_eq!((response.groups[0].error_code, &*response.groups[0].group_state), (0, "Stable"));
            assert_eq!(response.groups[0].members.len(), 2);
            assert_eq!(response.groups[1].error_code, ResponseError::GroupIdNotFound.code());
        }
        let epoch = given.member_epoch;
        assert_eq!(commit(&mut client, &commit_request(&id, "second", epoch, 5), 9).await, 0);
        let stale = commit(&mut client, &commit_request(&id, "second", epoch - 1, 5), 9).await;
        assert_eq!(stale, ResponseError::StaleMemberEpoch.code());
        let missing = client.call(&beat("no-such-group", "m", 3), version).await;
        assert_eq!(missing.error_code, ResponseError::GroupIdNotFound.code());
        let unknown = client.call(&beat(&id, "nobody", 3), version).await;
        assert_eq!(unknown.error_code, ResponseError::UnknownMemberId.code());
        let fenced = client.call(&beat(&id, "first", 77), version).await;
        assert_eq!(fenced.error_code, ResponseError::FencedMemberEpoch.code());
        for member in ["first", "second"] {
            assert_eq!(client.call(&beat(&id, member, -1), version).await.member_epoch, -1);
        }
        let request = DeleteGroupsRequest::default().with_groups_names(vec![group(&id)]);
        assert_eq!(client.call(&request, 2).await.results[0].error_code, 0);
    }
}

#[tokio::test]
async fn a_group_without_members_stays_what_it_is_when_a_classic_member_is_refused() {
    let (_opened, mut client, _) = ready().await;
    assert_eq!(client.call(&beat("g", "new", 0), 1).await.error_code, 0);
    assert_eq!(client.call(&beat("g", "new", -1), 1).await.member_epoch, -1);
    let list = ListGroupsRequest::default();
    let describe = ConsumerGroupDescribeRequest::default().with_group_ids(vec![group("g")]);
    let before = client.call(&describe, 1).await;
    assert_eq!((before.groups[0].error_code, &*before.groups[0].group_state), (0, "Empty"));
    let refused = join_request("g", "").with_session_timeout_ms(1);
    for version in [3, 9] {
        let code = client.call(&refused, version).await.error_code;
        assert_eq!(code, ResponseError::InvalidSessionTimeout.code());
        assert_eq!(&*client.call(&list, 5).await.groups[0].group_type, "consumer");
        assert_eq!(client.call(&describe, 1).await, before);
    }
    member(&mut client, "g").await;
    assert_eq!(&*client.call(&list, 5).await.groups[0].group_type, "classic");
}

#[tokio::test]
async fn a_group_moves_between_the_protocols_with_its_members() {
    let (_opened, mut client, _) = ready().await;
    let (old, generation) = member(&mut client, "g").await;
    let request = commit_request("g", &old, generation, 5);
    assert_eq!(commit(&mut client, &request, 9).await, 0);
    let new = client.call(&beat("g", "new", 0), 1).await;
    assert_eq!(new.error_code, 0, "{:?}", new.error_message);
    let list = ListGroupsRequest::default();
    assert_eq!(&*client.call(&list, 5).await.groups[0].group_type, "consumer");
    assert_eq!(committed(&mut client, "g", 9).await.0, [5, -1], "what was committed stays");
    assert_eq!(client.call(&beat("g", "new", -1), 1).await.member_epoch, -1);
    assert_eq!(&*client.call(&list, 5).await.groups[0].group_type, "classic");
    let beat = HeartbeatRequest::default()
        .with_group_id(group("g"))
        .with_generation_id(generation)
        .with_member_id(text(old));
    let code = client.call(&beat, 4).await.error_code;
    let codes = [ResponseError::RebalanceInProgress, ResponseError::IllegalGeneration].map(|e| e.code());
    assert!(codes.contains(&code), "the member that is left joins again: {code}");
}

#[tokio::test]
async fn groups_whose_members_do_not_fit_into_one_answer_are_to_be_asked_again() {
    let (opened, mut client, _) = ready().await;
    let ids: Vec<String> = (0..11).map(|n| format!("g{n}")).collect();
    for id in &ids {
        let mut request = join_request(id, "");
        request.protocols[0].metadata = vec![1; 250_000].into();
        request.member_id = client.call(&request, 9).await.member_id;
        let joined = client.call(&request, 9).await;
        let assignment = SyncGroupRequestAssignment::default()
            .with_member_id(joined.member_id.clone())
            .with_assignment(vec![2; 600_000].into());
        let sync = sync_request(id, &joined.member_id, joined.generation_id);
        assert_eq!(client.call(&sync.with_assignments(vec![assignment]), 5).await.error_code, 0);
    }
    let describe = |ids: &[String]| {
        DescribeGroupsRequest::default().with_groups(ids.iter().map(|id| group(id)).collect())
    };
    let again = ResponseError::CoordinatorLoadInProgress.code();
    let answer = client.call(&describe(&ids), 6).await;
    let codes: Vec<i16> = answer.groups.iter().map(|g| g.error_code).collect();
    assert_eq!(codes, [&[0; 9][..], &[again; 2]].concat());
    let refused = &answer.groups[10];
    assert!(refused.group_id == group("g10") && refused.members.is_empty());
    let answer = client.call(&describe(&ids[9..]), 6).await;
    assert!(answer.groups.iter().all(|g| g.error_code == 0 && g.members.len() == 1));
    // Few are described at a time, whoever asks.
    let mut places = Vec::new();
    for _ in 0..DESCRIPTIONS_AT_ONCE {
        places.push(opened.broker.compute.description().await);
    }
    let request = describe(&ids[..1]);
    let mut call = Box::pin(client.call(&request, 6));
    assert!(timeout(Duration::from_millis(200), &mut call).await.is_err(), "there is no place");
    places.clear();
    assert_eq!(call.await.groups[0].error_code, 0);
}

#[tokio::test]
async fn consumer_groups_that_do_not_fit_into_one_answer_are_to_be_asked_again() {
    let (_opened, mut client, _) = ready().await;
    let ids: Vec<String> = (0..12).map(|n| format!("c{n}")).collect();
    for id in &ids {
        for member in 0..3 {
            let topics = (0..1_000).map(|n| name(&format!("{id}-{member}-{n:0>240}"))).collect();
            let request = ConsumerGroupHeartbeatRequest::default()
                .with_group_id(group(id))
                .with_member_id(text(format!("m{member}")))
                .with_rebalance_timeout_ms(10_000)
                .with_subscribed_topic_names(Some(topics))
                .with_topic_partitions(Some(Vec::new()));
            assert_eq!(client.call(&request, 1).await.error_code, 0);
        }
    }
    let request =
        ConsumerGroupDescribeRequest::default().with_group_ids(ids.iter().map(|id| group(id)).collect());
    let answer = client.call(&request, 1).await;
    let codes: Vec<i16> = answer.groups.iter().map(|g| g.error_code).collect();
    let again = ResponseError::CoordinatorLoadInProgress.code();
    assert_eq!(codes, [&[0; 11][..], &[again]].concat());
    assert_eq!((answer.groups[11].members.len(), answer.groups[11].group_epoch), (0, -1));
}
