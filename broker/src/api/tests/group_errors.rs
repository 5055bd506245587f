//! What groups refuse, by Kafka's codes. Each was taken from a real Apache Kafka by
//! `tests/clients/reference/compare.py`, which asks both the same.

use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    ConsumerGroupHeartbeatRequest, DeleteGroupsRequest, GroupId, HeartbeatRequest, JoinGroupRequest,
    JoinGroupResponse, LeaveGroupRequest, OffsetCommitRequest, SyncGroupRequest,
};

use super::*;

/// A group, as a client sees it.
struct Group {
    client: TestClient,
    id: GroupId,
}

impl Group {
    fn of(opened: &Opened, id: &str) -> Self {
        Self { client: TestClient::connect(&opened.broker), id: GroupId(text(id)) }
    }

    async fn join(
        &mut self,
        member: &str,
        instance: Option<&str>,
        protocol: (&str, &str),
    ) -> JoinGroupResponse {
        let metadata = Bytes::from_static(b"\x00\x00\x00\x00\x00\x01\x00\x01t\xff\xff\xff\xff");
        let named = JoinGroupRequestProtocol::default().with_name(text(protocol.1)).with_metadata(metadata);
        let request = JoinGroupRequest::default()
            .with_group_id(self.id.clone())
            .with_session_timeout_ms(10_000)
            .with_rebalance_timeout_ms(10_000)
            .with_member_id(text(member))
            .with_group_instance_id(instance.map(text))
            .with_protocol_type(text(protocol.0))
            .with_protocols(vec![named]);
        self.client.call(&request, 7).await
    }

    async fn sync(
        &mut self,
        member: &str,
        generation: i32,
        instance: Option<&str>,
        protocol: (&str, &str),
    ) -> i16 {
        let assignment = SyncGroupRequestAssignment::default().with_member_id(text(member));
        let request = SyncGroupRequest::default()
            .with_group_id(self.id.clone())
            .with_generation_id(generation)
            .with_member_id(text(member))
            .with_group_instance_id(instance.map(text))
            .with_protocol_type(Some(text(protocol.0)))
            .with_protocol_name(Some(text(protocol.1)))
            .with_assignments(vec![assignment]);
        self.client.call(&request, 5).await.error_code
    }

    async fn heartbeat(&mut self, member: &str, generation: i32, instance: Option<&str>) -> i16 {
        let request = HeartbeatRequest::default()
            .with_group_id(self.id.clone())
            .with_generation_id(generation)
            .with_member_id(text(member))
            .with_group_instance_id(instance.map(text));
        self.client.call(&request, 4).await.error_code
    }

    async fn commit(&mut self, member: &str, generation: i32, instance: Option<&str>, version: i16) -> i16 {
        let partition = OffsetCommitRequestPartition::default().with_committed_offset(1);
        let topic = OffsetCommitRequestTopic::default().with_name(name("t")).with_partitions(vec![partition]);
        let request = OffsetCommitRequest::default()
            .with_group_id(self.id.clone())
            .with_generation_id_or_member_epoch(generation)
            .with_member_id(text(member))
            .with_group_instance_id(instance.map(text))
            .with_topics(vec![topic]);
        self.client.call(&request, version).await.topics[0].partitions[0].error_code
    }

    async fn leave(&mut self, member: &str, instance: Option<&str>) -> i16 {
        let identity =
            MemberIdentity::default().with_member_id(text(member)).with_group_instance_id(instance.map(text));
        let request =
            LeaveGroupRequest::default().with_group_id(self.id.clone()).with_members(vec![identity]);
        self.client.call(&request, 4).await.members[0].error_code
    }

    async fn delete(&mut self) -> i16 {
        let request = DeleteGroupsRequest::default().with_groups_names(vec![self.id.clone()]);
        self.client.call(&request, 2).await.results[0].error_code
    }

    async fn consumer(&mut self, member: &str, epoch: i32) -> (i16, i32) {
        let mut request = ConsumerGroupHeartbeatRequest::default()
            .with_group_id(self.id.clone())
            .with_member_id(text(member))
            .with_member_epoch(epoch);
        if epoch == 0 {
            request = request
                .with_rebalance_timeout_ms(10_000)
                .with_subscribed_topic_names(Some(vec![name("t")]))
                .with_topic_partitions(Some(Vec::new()));
        }
        let response = self.client.call(&request, 1).await;
        (response.error_code, response.member_epoch)
    }
}

const RANGE: (&str, &str) = ("consumer", "range");

fn compare(answers: &[(&str, i16, i16)]) {
    let wrong: Vec<_> = answers.iter().filter(|(_, answered, kafka)| answered != kafka).collect();
    assert!(wrong.is_empty(), "what was asked, our code, Kafka's: {wrong:?}");
}

async fn opened() -> Opened {
    let opened = World::new().broker(1, &["--group-initial-rebalance-delay-ms", "0"]).await;
    TestClient::connect(&opened.broker).create_topic("t", 1, &[]).await;
    opened
}

#[tokio::test]
async fn a_classic_group_refuses_as_kafka_does() {
    let opened = opened().await;
    let none = &mut Group::of(&opened, "none");
    compare(&[
        ("heartbeat of no group", none.heartbeat("m", 1, None).await, 25),
        ("sync of no group", none.sync("m", 1, None, RANGE).await, 25),
        ("commit of a member to no group", none.commit("m", 1, None, 8).await, 22),
        ("commit of a generation to no group", none.commit("", 1, None, 8).await, 22),
        ("leaving no group", none.leave("m", None).await, 25),
        ("deleting no group", none.delete().await, 69),
    ]);
    let group = &mut Group::of(&opened, "classic");
    let first = group.join("", None, RANGE).await;
    let joined = group.join(&first.member_id, None, RANGE).await;
    let (member, generation) = (&*joined.member_id, joined.generation_id);
    compare(&[
        ("a member id is needed", first.error_code, 79),
        ("joining with an unknown id", group.join("nobody", None, RANGE).await.error_code, 25),
        ("joining with another type", group.join("", None, ("other", "range")).await.error_code, 23),
        ("joining without a common protocol", group.join("", None, ("consumer", "x")).await.error_code, 23),
        ("heartbeat before the assignment", group.heartbeat(member, generation, None).await, 0),
        ("commit before the assignment", group.commit(member, generation, None, 8).await, 27),
        ("older commit before the assignment", group.commit(member, generation - 1, None, 8).await, 22),
        ("sync of another generation", group.sync(member, generation + 1, None, RANGE).await, 22),
        ("sync of nobody", group.sync("nobody", generation, None, RANGE).await, 25),
        ("sync of another protocol", group.sync(member, generation, None, ("consumer", "x")).await, 23),
        ("sync of another type", group.sync(member, generation, None, ("x", "range")).await, 23),
        ("sync", group.sync(member, generation, None, RANGE).await, 0),
        ("heartbeat", group.heartbeat(member, generation, None).await, 0),
        ("older heartbeat", group.heartbeat(member, generation - 1, None).await, 22),
        ("later heartbeat", group.heartbeat(member, generation + 1, None).await, 22),
        ("heartbeat of nobody", group.heartbeat("nobody", generation, None).await, 25),
        ("heartbeat of an unknown instance", group.heartbeat(member, generation, Some("x")).await, 25),
        ("commit", group.commit(member, generation, None, 8).await, 0),
        ("older commit", group.commit(member, generation - 1, None, 8).await, 22),
        ("later commit", group.commit(member, generation + 1, None, 8).await, 22),
        ("commit of a member without generation", group.commit(member, -1, None, 8).await, 22),
        ("commit of nobody", group.commit("nobody", generation, None, 8).await, 25),
        ("commit from outside", group.commit("", -1, None, 8).await, 25),
        ("commit of an unknown instance", group.commit(member, generation, Some("x"), 8).await, 25),
        ("deleting a group with members", group.delete().await, 68),
        ("a consumer heartbeat in it", group.consumer("m", 5).await.0, 69),
        ("leaving of nobody", group.leave("nobody", None).await, 25),
        ("leaving of an unknown instance", group.leave("", Some("x")).await, 25),
        ("leaving", group.leave(member, None).await, 0),
        ("heartbeat after leaving", group.heartbeat(member, generation, None).await, 25),
        ("commit after leaving", group.commit(member, generation, None, 8).await, 25),
        ("commit of a generation to an empty group", group.commit("", generation, None, 8).await, 25),
        ("commit from outside to an empty group", group.commit("", -1, None, 8).await, 0),
    ]);
}

#[tokio::test]
async fn a_static_member_that_was_replaced_is_fenced_as_by_kafka() {
    let opened = opened().await;
    let group = &mut Group::of(&opened, "static");
    let joined = group.join("", Some("i"), RANGE).await;
    let (old, generation) = (&*joined.member_id, joined.generation_id);
    compare(&[("sync", group.sync(old, generation, Some("i"), RANGE).await, 0)]);
    let new = group.join("", Some("i"), RANGE).await;
    compare(&[
        ("joined again", new.error_code, 0),
        ("heartbeat of the old one", group.heartbeat(old, generation, Some("i")).await, 82),
        ("commit of the old one", group.commit(old, generation, Some("i"), 8).await, 82),
        ("sync of the old one", group.sync(old, generation, Some("i"), RANGE).await, 82),
        ("join of the old one", group.join(old, Some("i"), RANGE).await.error_code, 82),
        ("leave of the old one", group.leave(old, Some("i")).await, 82),
        ("heartbeat without its instance", group.heartbeat(&new.member_id, generation, None).await, 0),
        ("leave by the instance", group.leave("", Some("i")).await, 0),
    ]);
}

#[tokio::test]
async fn a_group_of_the_new_protocol_refuses_as_kafka_does() {
    let opened = opened().await;
    let group = &mut Group::of(&opened, "next");
    compare(&[
        ("heartbeat to no group", group.consumer("m", 5).await.0, 69),
        ("an impossible epoch to no group", group.consumer("m", -3).await.0, 42),
        ("away without an instance, to no group", group.consumer("m", -2).await.0, 42),
        ("no member id", group.consumer("", 0).await.0, 42),
    ]);
    let (code, epoch) = group.consumer("m", 0).await;
    compare(&[
        ("joining", code, 0),
        ("heartbeat of a later epoch", group.consumer("m", epoch + 1).await.0, 110),
        ("heartbeat of nobody", group.consumer("nobody", epoch).await.0, 25),
        ("commit", group.commit("m", epoch, None, 9).await, 0),
        ("commit of a later epoch", group.commit("m", epoch + 1, None, 9).await, 113),
        ("commit without an epoch", group.commit("m", -1, None, 9).await, 113),
        ("commit of nobody", group.commit("nobody", epoch, None, 9).await, 25),
        ("commit from outside", group.commit("", -1, None, 9).await, 25),
        ("commit in an old version", group.commit("m", epoch, None, 8).await, 35),
        ("classic heartbeat", group.heartbeat("m", epoch, None).await, 25),
        ("classic sync", group.sync("m", epoch, None, RANGE).await, 25),
        ("classic join of another type", group.join("", None, ("other", "range")).await.error_code, 23),
        ("classic join", group.join("", None, RANGE).await.error_code, 79),
        ("deleting it", group.delete().await, 68),
        ("leaving", group.consumer("m", -1).await.0, 0),
        ("commit after leaving", group.commit("m", epoch, None, 9).await, 25),
    ]);
}
