//! Members of consumer groups, by hand: each step of the protocol is the test's own, and so is what
//! it tells.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestGroup;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, FindCoordinatorRequest, GroupId,
    HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, OffsetCommitRequest, OffsetFetchRequest,
    SyncGroupRequest,
};
use kafka_protocol::protocol::Request;
use tokio::time::{Instant, sleep};

use crate::client::{Client, ClientError, text, topic};

/// A group seen from outside: finds its coordinator, and asks it again when it has moved.
#[derive(Debug)]
pub struct Group {
    /// The group's id.
    pub id: String,
    /// The topic that it commits offsets of, and that members of the new protocol subscribe to.
    pub topic: String,
    addresses: Vec<String>,
    connection: Option<Client>,
    /// How long an answer may take, moves of the coordinator included.
    pub patience: Duration,
}

impl Group {
    /// A group of the cluster at these addresses.
    pub fn new(id: &str, addresses: Vec<String>) -> Self {
        let (id, topic) = (id.to_owned(), "t".to_owned());
        Self { id, topic, addresses, connection: None, patience: Duration::from_secs(30) }
    }

    /// Node id and address of the coordinator, as some broker that answers says.
    pub async fn coordinator(&self) -> (i32, String) {
        let until = Instant::now() + self.patience;
        loop {
            for address in &self.addresses {
                if let Ok(found) = self.find(address).await {
                    return found;
                }
            }
            assert!(Instant::now() < until, "nobody names a coordinator of {}", self.id);
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn find(&self, address: &str) -> Result<(i32, String), ClientError> {
        let mut client = Client::connect(address).await?;
        client.set_timeout(Duration::from_secs(2));
        let request = FindCoordinatorRequest::default().with_coordinator_keys(vec![text(&self.id)]);
        let found = client.call(&request, 4).await?.coordinators.remove(0);
        match ResponseError::try_from_code(found.error_code) {
            Some(error) => Err(ClientError::Kafka(error)),
            None => Ok((found.node_id.0, format!("{}:{}", &*found.host, found.port))),
        }
    }

    /// Asks the coordinator once.
    async fn try_call<R: Request>(&mut self, request: &R, version: i16) -> Result<R::Response, ClientError> {
        if self.connection.is_none() {
            let (_, address) = self.coordinator().await;
            let mut client = Client::connect(&address).await?;
            client.set_timeout(Duration::from_secs(15));
            self.connection = Some(client);
        }
        let Some(client) = &mut self.connection else { unreachable!("it was just made") };
        let answer = client.call(request, version).await;
        if answer.is_err() {
            self.connection = None;
        }
        answer
    }

    /// Asks until the coordinator answers with something else than that it is not one. `code` finds
    /// the code of an answer.
    pub async fn call<R: Request>(
        &mut self,
        request: &R,
        version: i16,
        code: impl Fn(&R::Response) -> i16,
    ) -> Result<R::Response, ClientError> {
        let until = Instant::now() + self.patience;
        loop {
            match self.try_call(request, version).await {
                Ok(answer) => {
                    let moved = matches!(
                        ResponseError::try_from_code(code(&answer)),
                        Some(
                            ResponseError::NotCoordinator
                                | ResponseError::CoordinatorNotAvailable
                                | ResponseError::CoordinatorLoadInProgress
                        )
                    );
                    if !moved {
                        return Ok(answer);
                    }
                    self.connection = None;
                }
                Err(error) if !error.is_retriable() => return Err(error),
                Err(_) => {}
            }
            if Instant::now() >= until {
                return Err(ClientError::TimedOut);
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Joins; the answer waits for the others.
    pub async fn join(&mut self, member: &str) -> JoinGroupResponse {
        let topics = [self.topic.clone()];
        self.join_for(member, &topics, Duration::from_secs(10)).await
    }

    /// Joins to read some topics; whoever is silent for longer than `session` is put out.
    pub async fn join_for(
        &mut self,
        member: &str,
        topics: &[String],
        session: Duration,
    ) -> JoinGroupResponse {
        let mut subscription = BytesMut::new();
        subscription.put_i16(0);
        subscription.put_i32(topics.len() as i32);
        for topic in topics {
            subscription.put_i16(topic.len() as i16);
            subscription.put_slice(topic.as_bytes());
        }
        subscription.put_i32(-1);
        let protocol =
            JoinGroupRequestProtocol::default().with_name(text("range")).with_metadata(subscription.freeze());
        let request = JoinGroupRequest::default()
            .with_group_id(GroupId(text(&self.id)))
            .with_session_timeout_ms(session.as_millis() as i32)
            .with_rebalance_timeout_ms(10_000)
            .with_member_id(text(member))
            .with_protocol_type(text("consumer"))
            .with_protocols(vec![protocol]);
        // Version 3 lets a member in without the round of being given an id.
        self.call(&request, 3, |r| r.error_code).await.expect("the coordinator answers a join")
    }

    /// Asks for the assignment; the leader brings everybody's.
    pub async fn sync(
        &mut self,
        member: &str,
        generation: i32,
        assignments: &BTreeMap<String, Bytes>,
    ) -> (i16, Bytes) {
        let assignments = assignments.iter().map(|(member, assignment)| {
            SyncGroupRequestAssignment::default()
                .with_member_id(text(member))
                .with_assignment(assignment.clone())
        });
        let request = SyncGroupRequest::default()
            .with_group_id(GroupId(text(&self.id)))
            .with_generation_id(generation)
            .with_member_id(text(member))
            .with_assignments(assignments.collect());
        let synced = self.call(&request, 3, |r| r.error_code).await.expect("the coordinator answers a sync");
        (synced.error_code, synced.assignment)
    }

    /// A sign of life. Gives the code.
    pub async fn heartbeat(&mut self, member: &str, generation: i32) -> i16 {
        let request = HeartbeatRequest::default()
            .with_group_id(GroupId(text(&self.id)))
            .with_generation_id(generation)
            .with_member_id(text(member));
        self.call(&request, 4, |r| r.error_code)
            .await
            .expect("the coordinator answers a heartbeat")
            .error_code
    }

    /// A sign of life by the new protocol.
    pub async fn consumer_heartbeat(&mut self, member: &str, epoch: i32) -> ConsumerGroupHeartbeatResponse {
        let request = ConsumerGroupHeartbeatRequest::default()
            .with_group_id(GroupId(text(&self.id)))
            .with_member_id(text(member))
            .with_member_epoch(epoch)
            .with_rebalance_timeout_ms(-1);
        let request = if epoch == 0 {
            request
                .with_rebalance_timeout_ms(30_000)
                .with_subscribed_topic_names(Some(vec![topic(&self.topic)]))
                .with_topic_partitions(Some(Vec::new()))
        } else {
            request
        };
        self.call(&request, 1, |r| r.error_code).await.expect("the coordinator answers a heartbeat")
    }

    /// What a commit of one offset to one partition is.
    pub fn commit_request(
        &self,
        member: &str,
        generation: i32,
        partition: i32,
        offset: i64,
    ) -> OffsetCommitRequest {
        self.commit_request_for(member, generation, &[(self.topic.clone(), vec![(partition, offset)])])
    }

    /// What a commit of offsets by partition, to several topics, is.
    pub fn commit_request_for(
        &self,
        member: &str,
        generation: i32,
        topics: &[(String, Vec<(i32, i64)>)],
    ) -> OffsetCommitRequest {
        let topics = topics.iter().map(|(name, offsets)| {
            let partitions = offsets.iter().map(|&(partition, offset)| {
                OffsetCommitRequestPartition::default()
                    .with_partition_index(partition)
                    .with_committed_offset(offset)
            });
            OffsetCommitRequestTopic::default().with_name(topic(name)).with_partitions(partitions.collect())
        });
        OffsetCommitRequest::default()
            .with_group_id(GroupId(text(&self.id)))
            .with_generation_id_or_member_epoch(generation)
            .with_member_id(text(member))
            .with_topics(topics.collect())
    }

    /// Commits offsets by partition, to several topics. Gives the worst code.
    pub async fn commit_for(
        &mut self,
        member: &str,
        generation: i32,
        topics: &[(String, Vec<(i32, i64)>)],
    ) -> i16 {
        let request = self.commit_request_for(member, generation, topics);
        let code = |r: &kafka_protocol::messages::OffsetCommitResponse| {
            r.topics.iter().flat_map(|t| &t.partitions).map(|p| p.error_code).max().unwrap_or(0)
        };
        let answer = self.call(&request, 8, code).await.expect("the coordinator answers a commit");
        code(&answer)
    }

    /// Commits. Gives the code.
    pub async fn commit(&mut self, member: &str, generation: i32, partition: i32, offset: i64) -> i16 {
        self.commit_for(member, generation, &[(self.topic.clone(), vec![(partition, offset)])]).await
    }

    /// Everything that is committed, by partition of the topic.
    pub async fn committed(&mut self) -> BTreeMap<i32, i64> {
        let asked = OffsetFetchRequestGroup::default()
            .with_group_id(GroupId(text(&self.id)))
            .with_member_epoch(-1)
            .with_topics(None);
        let request = OffsetFetchRequest::default().with_groups(vec![asked]);
        let code = |r: &kafka_protocol::messages::OffsetFetchResponse| r.groups[0].error_code;
        let mut answer = self.call(&request, 9, code).await.expect("the coordinator says what is committed");
        let topics = answer.groups.remove(0).topics;
        let topics = topics.iter().filter(|t| t.name.as_str() == self.topic);
        topics.flat_map(|t| &t.partitions).map(|p| (p.partition_index, p.committed_offset)).collect()
    }
}

/// Makes a stable group of so many members. Gives their ids, and the generation.
pub async fn stable(group: &str, addresses: &[String], members: usize) -> (Vec<String>, i32) {
    let joining = (0..members).map(|_| {
        let mut group = Group::new(group, addresses.to_vec());
        async move { group.join("").await }
    });
    let joined = futures::future::join_all(joining).await;
    let generation = joined.iter().map(|j| j.generation_id).max().unwrap_or(0);
    assert!(joined.iter().all(|j| j.error_code == 0 && j.generation_id == generation), "{joined:?}");
    let ids: Vec<String> = joined.iter().map(|j| j.member_id.to_string()).collect();
    let leader = joined[0].leader.to_string();
    let assignments: BTreeMap<String, Bytes> =
        ids.iter().map(|id| (id.clone(), Bytes::from(format!("for {id}")))).collect();
    let syncing = ids.iter().map(|id| {
        let mut group = Group::new(group, addresses.to_vec());
        let assignments = if *id == leader { assignments.clone() } else { BTreeMap::new() };
        async move { group.sync(id, generation, &assignments).await }
    });
    for (id, (code, assignment)) in ids.iter().zip(futures::future::join_all(syncing).await) {
        assert_eq!((code, &assignment[..]), (0, format!("for {id}").as_bytes()));
    }
    (ids, generation)
}
