//! The engine, driven as a coordinator drives it.

mod classic;
mod heartbeat;
mod migrate;
mod outside;
mod simulate;
mod statics;
mod subscribe;
mod timers;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::consumer_group_heartbeat_request::TopicPartitions;
use kafka_protocol::messages::{
    ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, GroupId, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use strandline_metadata::values::group::{Assignment, ConsumerGroupValue, ConsumerMemberValue};
use tokio::time::Instant;
use uuid::Uuid;

use super::{AWAY, ConsumerGroup, LEAVING};
use crate::group::error::ConsumerHeartbeatError;
use crate::group::tests::code_of;
use crate::group::{Context, Sender};
use crate::group_config::GroupSettings;

const REBALANCE_TIMEOUT_MS: i32 = 60_000;

/// A group and the world around it.
struct World {
    now: Instant,
    topics: BTreeMap<String, (Uuid, u32)>,
    settings: GroupSettings,
    group: ConsumerGroup,
    ids: u128,
}

impl World {
    fn new(topics: &[(&str, u32)]) -> Self {
        let mut world = Self {
            now: Instant::now(),
            topics: BTreeMap::new(),
            settings: settings(),
            group: ConsumerGroup::new(),
            ids: 0,
        };
        for (name, partitions) in topics {
            world.create(name, *partitions);
        }
        world
    }

    fn id(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u128(self.ids)
    }

    /// Creates a topic, or gives it more partitions, without telling the group.
    fn create(&mut self, name: &str, partitions: u32) {
        let id = self.id();
        self.topics.entry(name.to_owned()).or_insert((id, partitions)).1 = partitions;
    }

    /// Lets the group do something.
    fn with<T>(&mut self, act: impl FnOnce(&mut ConsumerGroup, &Context<'_>) -> T) -> T {
        let fresh_id = self.id();
        let ctx = Context { now: self.now, topics: &self.topics, settings: &self.settings, fresh_id };
        let before = self.group.value().clone();
        let had_changed = self.group.changed;
        let outcome = act(&mut self.group, &ctx);
        let told = self.group.changed || had_changed;
        assert!(told || before == *self.group.value(), "a change went unnoticed");
        assert_sound(&self.group);
        outcome
    }

    fn send(
        &mut self,
        request: &ConsumerGroupHeartbeatRequest,
    ) -> Result<ConsumerGroupHeartbeatResponse, ConsumerHeartbeatError> {
        self.send_as(request, 1)
    }

    fn send_as(
        &mut self,
        request: &ConsumerGroupHeartbeatRequest,
        version: i16,
    ) -> Result<ConsumerGroupHeartbeatResponse, ConsumerHeartbeatError> {
        let before = self.group.value().clone();
        let answer = self.with(|group, ctx| group.heartbeat(request, version, &sender(), ctx));
        assert!(answer.is_ok() || before == *self.group.value(), "a refused request changed the group");
        answer
    }

    /// Sends what must be refused.
    fn refused(&mut self, request: &ConsumerGroupHeartbeatRequest) -> ResponseError {
        code_of(self.send(request).expect_err("this must be refused"))
    }

    /// A member joins by name of its topics, and is told its epoch and what it reads.
    fn join(&mut self, id: &str, topics: &[&str]) -> (i32, Vec<String>) {
        let answer = self.send(&joining(id, topics)).unwrap();
        self.told(&answer)
    }

    /// A member says what it reads, and is told its epoch and what it reads if that has changed.
    fn report(&mut self, id: &str, epoch: i32, reads: &[&str]) -> (i32, Vec<String>) {
        let request = beat(id, epoch).with_topic_partitions(Some(self.partitions(reads)));
        let answer = self.send(&request).unwrap();
        self.told(&answer)
    }

    /// A member just sends a heartbeat.
    fn beat(&mut self, id: &str, epoch: i32) -> (i32, Vec<String>) {
        let answer = self.send(&beat(id, epoch)).unwrap();
        self.told(&answer)
    }

    fn told(&self, answer: &ConsumerGroupHeartbeatResponse) -> (i32, Vec<String>) {
        let Some(assignment) = &answer.assignment else { return (answer.member_epoch, vec!["-".to_owned()]) };
        let mut reads = Vec::new();
        for topic in &assignment.topic_partitions {
            reads.extend(topic.partitions.iter().map(|p| format!("{}{p}", self.name(topic.topic_id))));
        }
        reads.sort();
        (answer.member_epoch, reads)
    }

    fn name(&self, id: Uuid) -> &str {
        self.topics.iter().find(|(_, (own, _))| *own == id).map_or("?", |(name, _)| name)
    }

    /// `t0` is partition 0 of topic t.
    fn partitions(&self, reads: &[&str]) -> Vec<TopicPartitions> {
        let mut topics: BTreeMap<Uuid, Vec<i32>> = BTreeMap::new();
        for read in reads {
            let (topic, partition) = read.split_at(read.len() - 1);
            topics.entry(self.topics[topic].0).or_default().push(partition.parse().unwrap());
        }
        let of_topic =
            |(id, partitions)| TopicPartitions::default().with_topic_id(id).with_partitions(partitions);
        topics.into_iter().map(of_topic).collect()
    }

    fn reads(&self, assignment: &Assignment) -> Vec<String> {
        let name = |(id, p): (&Uuid, u32)| format!("{}{p}", self.name(*id));
        let mut reads: Vec<String> =
            assignment.iter().flat_map(|(id, set)| set.0.iter().map(move |p| (id, *p))).map(name).collect();
        reads.sort();
        reads
    }

    fn member(&self, id: &str) -> &ConsumerMemberValue {
        &self.group.value().members[id]
    }

    fn assigned(&self, id: &str) -> Vec<String> {
        self.reads(&self.member(id).assigned)
    }

    fn pass(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }

    /// Lets time pass as the coordinator's task does: whatever is due happens in order. Says who
    /// was fenced.
    fn expire_for(&mut self, ms: u64) -> Vec<(String, super::ExpiredBy)> {
        let end = self.now + Duration::from_millis(ms);
        let mut expired = Vec::new();
        while let Some(at) = self.group.next_deadline().filter(|at| *at <= end) {
            self.now = at;
            let due = self.with(ConsumerGroup::expire);
            assert!(!due.is_empty(), "a deadline at which nothing happens would come again and again");
            expired.extend(due);
        }
        self.now = end;
        expired
    }

    /// What a coordinator does that takes over.
    fn take_over(&mut self) {
        self.take_over_from(self.group.value().clone());
    }

    fn take_over_from(&mut self, value: ConsumerGroupValue) {
        let fresh_id = self.id();
        let ctx = Context { now: self.now, topics: &self.topics, settings: &self.settings, fresh_id };
        self.group = ConsumerGroup::from_value(value, &ctx);
        assert_sound(&self.group);
    }
}

/// What always holds: one owner for each partition, indexes that agree with what they are derived
/// from.
fn assert_sound(group: &ConsumerGroup) {
    let mut owned: BTreeSet<(Uuid, u32)> = BTreeSet::new();
    for (id, member) in &group.value().members {
        for assignment in [&member.assigned, &member.pending_revocation] {
            for (topic, partitions) in assignment {
                assert!(!partitions.0.is_empty(), "{id} has an empty set");
                for partition in &partitions.0 {
                    assert!(owned.insert((*topic, *partition)), "{id} is not the only owner");
                    assert!(group.owners.contains(*topic, *partition), "not in the index");
                }
            }
        }
        if let Some(instance) = &member.instance_id {
            assert_eq!(group.instances.get(instance), Some(id));
        }
    }
    assert_eq!(group.owners.0.values().map(|p| p.0.len()).sum::<usize>(), owned.len());
    let instances = group.value().members.values().filter(|m| m.instance_id.is_some()).count();
    assert_eq!(group.instances.len(), instances);
    assert!(group.value().assignment_epoch <= group.value().epoch);
}

fn settings() -> GroupSettings {
    GroupSettings {
        max_size: 100,
        min_session_timeout_ms: 6_000,
        max_session_timeout_ms: 1_800_000,
        initial_rebalance_delay_ms: 3_000,
        consumer_session_timeout_ms: 45_000,
        consumer_heartbeat_interval_ms: 5_000,
        may_upgrade: true,
        may_downgrade: true,
    }
}

fn sender() -> Sender {
    Sender { client_id: "app".to_owned(), host: "/10.0.0.1".to_owned() }
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// A heartbeat with nothing but what it must have.
fn beat(id: &str, epoch: i32) -> ConsumerGroupHeartbeatRequest {
    ConsumerGroupHeartbeatRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_member_id(text(id))
        .with_member_epoch(epoch)
        .with_rebalance_timeout_ms(-1)
        .with_topic_partitions(None)
        .with_subscribed_topic_names(None)
}

fn names(topics: &[&str]) -> Vec<TopicName> {
    topics.iter().map(|t| TopicName(text(t))).collect()
}

fn joining(id: &str, topics: &[&str]) -> ConsumerGroupHeartbeatRequest {
    beat(id, 0)
        .with_rebalance_timeout_ms(REBALANCE_TIMEOUT_MS)
        .with_topic_partitions(Some(Vec::new()))
        .with_subscribed_topic_names(Some(names(topics)))
}

fn with_instance(request: ConsumerGroupHeartbeatRequest, instance: &str) -> ConsumerGroupHeartbeatRequest {
    request.with_instance_id(Some(text(instance)))
}

fn leaving(id: &str) -> ConsumerGroupHeartbeatRequest {
    beat(id, LEAVING)
}

fn going_away(id: &str, instance: &str) -> ConsumerGroupHeartbeatRequest {
    with_instance(beat(id, AWAY), instance)
}
