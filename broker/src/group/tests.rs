//! What happens to groups while nobody asks: offsets expire, empty groups are forgotten, metrics
//! show how far behind they are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    DeleteGroupsRequest, DeleteTopicsRequest, GroupId, ListGroupsRequest, OffsetCommitRequest,
    OffsetDeleteRequest, OffsetFetchRequest, ProduceRequest, TopicName,
};
use kafka_protocol::records::Compression;
use regex::bytes::Regex;
use strandline_metadata::backend::faulty::{Fault, FaultPlan, FaultyBackend};
use strandline_metadata::limits::OFFSETS_PER_KEY;
use uuid::Uuid;

use super::command::Command;
use super::environment::GroupKeys;
use super::error::GroupError;
use super::reply::Reply;
use super::status::SharedStatus;
use super::store::End;
use super::task::GroupTask;
use super::{Matching, Topics};
use crate::api::text;
use crate::records::tests::batch;
use crate::run::Opened;
use crate::tasks::TaskKind;
use crate::testing::{NOW_MS, TestClient, World};

/// Kafka's code of a refusal of any operation.
pub(super) fn code_of(error: impl Into<GroupError>) -> ResponseError {
    error.into().code()
}

impl Topics for BTreeMap<String, (Uuid, u32)> {
    fn by_name(&self, name: &str) -> Option<(Uuid, u32)> {
        self.get(name).copied()
    }

    fn name(&self, id: Uuid) -> Option<String> {
        self.iter().find(|(_, (own, _))| *own == id).map(|(name, _)| name.clone())
    }

    fn matching(&self, _: &str, regex: &Regex) -> Option<Matching> {
        let names = self.keys().filter(|name| regex.is_match(name.as_bytes())).cloned();
        Some(Matching { names: Arc::new(names.collect()), is_current: true })
    }
}

const QUICK: &[&str] = &[
    "--offsets-retention-check-interval-ms",
    "10",
    "--put-budget-per-s",
    "1000",
    "--put-budget-burst",
    "100",
];
const MINUTE_MS: i64 = 60_000;

fn name(name: &str) -> TopicName {
    TopicName(text(name))
}

/// Commits by somebody outside of the group.
async fn commit(client: &mut TestClient, group: &str, topic: &str, partition: i32, offset: i64) {
    assert_eq!(try_commit(client, group, topic, partition, offset).await, 0);
}

async fn try_commit(client: &mut TestClient, group: &str, topic: &str, partition: i32, offset: i64) -> i16 {
    let partition =
        OffsetCommitRequestPartition::default().with_partition_index(partition).with_committed_offset(offset);
    let topic = OffsetCommitRequestTopic::default().with_name(name(topic)).with_partitions(vec![partition]);
    let request = OffsetCommitRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic]);
    client.call(&request, 8).await.topics[0].partitions[0].error_code
}

/// Deletes what the group has committed for a partition of `t`.
fn deletion(group: &str, partition: i32) -> OffsetDeleteRequest {
    let partition = OffsetDeleteRequestPartition::default().with_partition_index(partition);
    let topic = OffsetDeleteRequestTopic::default().with_name(name("t")).with_partitions(vec![partition]);
    OffsetDeleteRequest::default().with_group_id(GroupId(text(group))).with_topics(vec![topic])
}

async fn groups(client: &mut TestClient) -> Vec<String> {
    let listed = client.call(&ListGroupsRequest::default(), 4).await;
    listed.groups.iter().map(|g| g.group_id.to_string()).collect()
}

/// The samples of a metric, as the page shows them.
fn samples(opened: &Opened, metric: &str) -> Vec<String> {
    let page = String::from_utf8(opened.broker.metrics.render(&opened.broker).unwrap()).unwrap();
    page.lines().filter(|l| l.starts_with(metric)).map(str::to_owned).collect()
}

async fn eventually(what: &str, mut done: impl AsyncFnMut() -> bool) {
    for _ in 0..200 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what}");
}

#[tokio::test]
async fn offsets_expire_and_what_is_left_without_any_is_no_group() {
    let world = World::new();
    let opened = world.broker(1, &[QUICK, &["--offsets-retention-minutes", "10"]].concat()).await;
    let mut client = TestClient::connect(&opened.broker);
    client.create_topic("t", 1, &[]).await;
    commit(&mut client, "old", "t", 0, 5).await;
    world.clock.0.store(NOW_MS + 9 * MINUTE_MS, Ordering::Relaxed);
    commit(&mut client, "young", "t", 0, 5).await;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(groups(&mut client).await, ["old", "young"], "not before their time");
    world.clock.0.store(NOW_MS + 10 * MINUTE_MS, Ordering::Relaxed);
    eventually("the old one expires", async || groups(&mut client).await == ["young"]).await;
    assert_eq!(
        samples(&opened, "strandline_group_offsets_expired_total"),
        ["strandline_group_offsets_expired_total 1"]
    );
    // Deleting the topic deletes what was committed for it, whatever its age.
    let delete = DeleteTopicsRequest::default().with_topic_names(vec![name("t")]);
    assert_eq!(client.call(&delete, 5).await.responses[0].error_code, 0);
    eventually("nothing is left", async || groups(&mut client).await.is_empty()).await;
}

#[tokio::test]
async fn a_group_that_commits_all_the_time_still_finds_out_what_is_committed() {
    let world = World::new();
    let opened = world.broker(1, QUICK).await;
    let mut client = TestClient::connect(&opened.broker);
    client.create_topic("t", 8, &[]).await;
    commit(&mut client, "g", "t", 0, 5).await;
    for partition in 0..8_i32 {
        let mut busy = TestClient::connect(&opened.broker);
        opened.broker.tasks.start(TaskKind::Connection, "connection", async move {
            // Not all at once: when one write ends, others wait for the next.
            tokio::time::sleep(Duration::from_millis(partition.unsigned_abs().into())).await;
            for offset in 0.. {
                commit(&mut busy, "g", "t", partition, offset).await;
            }
        });
    }
    let all = OffsetFetchRequestGroup::default().with_group_id(GroupId(text("g"))).with_member_epoch(-1);
    let request = OffsetFetchRequest::default().with_groups(vec![all.with_topics(None)]);
    for _ in 0..10 {
        let asked = tokio::time::timeout(Duration::from_secs(5), client.call(&request, 9));
        assert_eq!(asked.await.expect("it is answered").groups[0].error_code, 0);
    }
}

#[tokio::test]
async fn a_broker_that_is_behind_does_not_say_that_nothing_is_committed() {
    let world = World::new();
    let faulty = FaultyBackend::new(Arc::new(world.backend.clone()), 1);
    let faults = faulty.faults();
    let behind = world.broker_over(Arc::new(faulty), 1, QUICK).await;
    faults.inject(Fault::WatchStuck);
    let current = world.broker(2, QUICK).await;
    let mut client = TestClient::connect(&current.broker);
    client.create_topic("new", 1, &[]).await;
    let is_seconds = |id: &String| {
        current.broker.replica.read(|view| current.broker.groups.env.coordinates(&view.names, id))
    };
    let id = (0..1_000).map(|i| format!("g{i}")).find(is_seconds).unwrap();
    commit(&mut client, &id, "new", 0, 5).await;
    assert!(behind.broker.replica.read(|view| view.names.topic("new").is_none()), "it has not heard of it");
    let mut client = TestClient::connect(&behind.broker);
    let topic = OffsetFetchRequestTopics::default().with_name(name("new")).with_partition_indexes(vec![0]);
    let asked = OffsetFetchRequestGroup::default().with_group_id(GroupId(text(&*id))).with_member_epoch(-1);
    let request = OffsetFetchRequest::default().with_groups(vec![asked.with_topics(Some(vec![topic]))]);
    let answer = client.call(&request, 9).await.groups.remove(0);
    let offset = answer.topics[0].partitions[0].committed_offset;
    assert!(answer.error_code != 0 || offset == 5, "{answer:?}");
}

#[tokio::test]
async fn who_asks_for_offsets_while_the_metadata_store_is_silent_asks_again() {
    let world = World::new();
    let faulty = FaultyBackend::new(Arc::new(world.backend.clone()), 1);
    let faults = faulty.faults();
    let opened = world.broker_over(Arc::new(faulty), 1, QUICK).await;
    let mut client = TestClient::connect(&opened.broker);
    client.create_topic("t", 1, &[]).await;
    commit(&mut client, "g", "t", 0, 5).await;
    let all = OffsetFetchRequestGroup::default().with_group_id(GroupId(text("g"))).with_member_epoch(-1);
    let request = OffsetFetchRequest::default().with_groups(vec![all.with_topics(None)]);
    faults.set_plan(FaultPlan { unavailable: 1.0, ..FaultPlan::default() });
    // Older consumers take any other code for final.
    let again = [ResponseError::NotCoordinator, ResponseError::CoordinatorLoadInProgress];
    let code = client.call(&request, 9).await.groups[0].error_code;
    assert!(again.iter().any(|error| error.code() == code), "{code}");
    faults.set_plan(FaultPlan::default());
    eventually("it is answered", async || client.call(&request, 9).await.groups[0].error_code == 0).await;
}

#[tokio::test]
async fn groups_are_listed_also_while_they_are_being_read() {
    let world = World::new();
    let first = world.broker(1, QUICK).await;
    let mut client = TestClient::connect(&first.broker);
    client.create_topic("t", 1, &[]).await;
    commit(&mut client, "g", "t", 0, 5).await;
    first.drain().await.unwrap();
    let second = world.broker(2, QUICK).await;
    // Somebody asks for it, which begins to read it, and is not waited for.
    let asked = second.broker.groups.ask("g", Command::Describe);
    let (asked, loaded) = futures::join!(asked, second.broker.groups.load_all());
    assert_eq!(asked.unwrap().group_state.as_str(), "Empty");
    assert_eq!(loaded, Ok(()));
    let mut listed = Vec::new();
    second.broker.groups.each(|id, _| listed.push(id.to_owned()));
    assert_eq!(listed, ["g"]);
}

#[tokio::test]
async fn a_group_commits_more_than_fits_into_one_write() {
    let world = World::new();
    let opened = world.broker(1, QUICK).await;
    let mut client = TestClient::connect(&opened.broker);
    let all: Vec<String> = (0..40).map(|i| format!("t{i:02}")).collect();
    for topic in &all {
        client.create_topic(topic, 16, &[]).await;
    }
    // 16 × 3,900 bytes for each topic: 2.5 MB in one request.
    let partition = |index| {
        OffsetCommitRequestPartition::default()
            .with_partition_index(index)
            .with_committed_offset(7)
            .with_committed_metadata(Some(text("x".repeat(3_900))))
    };
    let topics = all.iter().map(|topic| {
        OffsetCommitRequestTopic::default()
            .with_name(name(topic))
            .with_partitions((0..16).map(partition).collect())
    });
    let request = OffsetCommitRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(topics.collect());
    let response = client.call(&request, 8).await;
    let mut codes = response.topics.iter().flat_map(|t| t.partitions.iter().map(|p| p.error_code));
    assert!(codes.all(|code| code == 0), "{:?}", response.topics[0].partitions[0]);
}

#[tokio::test]
async fn of_a_partition_that_is_committed_twice_the_last_valid_commit_counts() {
    let opened = World::new().broker(1, QUICK).await;
    let mut client = TestClient::connect(&opened.broker);
    client.create_topic("t", 1, &[]).await;
    let at = |offset, metadata: String| {
        OffsetCommitRequestPartition::default()
            .with_committed_offset(offset)
            .with_committed_metadata(Some(text(metadata)))
    };
    let topic =
        |partitions| OffsetCommitRequestTopic::default().with_name(name("t")).with_partitions(partitions);
    let twice = vec![at(1, String::new()), at(2, "x".repeat(5_000)), at(3, String::new())];
    let request = OffsetCommitRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic(twice), topic(vec![at(4, String::new()), at(5, "x".repeat(5_000))])]);
    let response = client.call(&request, 8).await;
    let codes: Vec<i16> =
        response.topics.iter().flat_map(|t| t.partitions.iter().map(|p| p.error_code)).collect();
    let too_large = ResponseError::OffsetMetadataTooLarge.code();
    assert_eq!(codes, [0, too_large, 0, 0, too_large]);
    assert_eq!(
        samples(&opened, "strandline_group_offset_commits_total"),
        ["strandline_group_offset_commits_total 1"]
    );
    let keys = opened.broker.replica.keys();
    let stored = strandline_metadata::groups::read(opened.broker.replica.backend().as_ref(), keys, "g");
    let stored = stored.await.unwrap().offsets.into_values().flat_map(|(_, value)| value.partitions);
    assert_eq!(stored.map(|(partition, c)| (partition, c.offset)).collect::<Vec<_>>(), [(0, 4)]);
}

#[tokio::test]
async fn metrics_show_how_far_a_group_is_behind_also_when_nobody_asks_for_it() {
    let world = World::new();
    let first = world.broker(1, QUICK).await;
    let mut client = TestClient::connect(&first.broker);
    client.create_topic("t", 1, &[]).await;
    let partition =
        PartitionProduceData::default().with_index(0).with_records(Some(batch(Compression::None, NOW_MS, 7)));
    let topic = TopicProduceData::default().with_name(name("t")).with_partition_data(vec![partition]);
    let request =
        ProduceRequest::default().with_acks(-1).with_timeout_ms(10_000).with_topic_data(vec![topic]);
    assert_eq!(client.call(&request, 9).await.responses[0].partition_responses[0].error_code, 0);
    commit(&mut client, "behind", "t", 0, 2).await;
    let lag = |opened: &Opened| samples(opened, "strandline_group_lag");
    let expected = [r#"strandline_group_lag{group="behind",partition="0",topic="t"} 5"#];
    assert_eq!(lag(&first), expected);
    let members = [r#"strandline_group_members{group="behind",state="Empty",type="classic"} 0"#];
    assert_eq!(samples(&first, "strandline_group_members{"), members);
    assert_eq!(
        samples(&first, "strandline_groups"),
        [r#"strandline_groups{state="Empty",type="classic"} 1"#]
    );
    assert_eq!(
        samples(&first, "strandline_group_offset_commits_total"),
        ["strandline_group_offset_commits_total 1"]
    );
    // Another broker takes over, and nobody asks it for the group.
    first.drain().await.unwrap();
    let second = world.broker(2, QUICK).await;
    eventually("the new coordinator looks at the group by itself", async || lag(&second) == expected).await;
}

#[tokio::test]
async fn metrics_sum_up_what_a_group_is_behind_when_there_are_many_partitions() {
    let world = World::new();
    let opened = world.broker(1, QUICK).await;
    let mut client = TestClient::connect(&opened.broker);
    for topic in ["large", "small"] {
        client.create_topic(topic, if topic == "large" { 5_000 } else { 1 }, &[]).await;
    }
    let partition =
        |index| OffsetCommitRequestPartition::default().with_partition_index(index).with_committed_offset(0);
    let topic = OffsetCommitRequestTopic::default()
        .with_name(name("large"))
        .with_partitions((0..5_000).map(partition).collect());
    let request = OffsetCommitRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic]);
    let response = client.call(&request, 8).await;
    assert!(response.topics[0].partitions.iter().all(|p| p.error_code == 0));
    assert_eq!(samples(&opened, "strandline_group_lag{").len(), 5_000);
    commit(&mut client, "g", "small", 0, 0).await;
    let by_topic = ["large", "small"]
        .map(|topic| format!(r#"strandline_group_lag{{group="g",partition="all",topic="{topic}"}} 0"#));
    assert_eq!(samples(&opened, "strandline_group_lag{"), by_topic);
}

#[tokio::test]
async fn partitions_of_a_large_topic_are_spread_over_keys_and_found_again() {
    let world = World::new();
    let opened = world.broker(1, QUICK).await;
    let mut client = TestClient::connect(&opened.broker);
    client.create_topic("large", 1_000, &[]).await;
    for partition in [0, 255, 256, 999] {
        commit(&mut client, "g", "large", partition, i64::from(partition) + 1).await;
    }
    let mut keys = Vec::new();
    opened.broker.groups.each(|_, status| keys.extend(status.committed.keys().cloned()));
    assert_eq!(keys, [0, 1, 3].map(|n| ("large".to_owned(), n)));
    assert_eq!(999 / OFFSETS_PER_KEY, 3);
}

#[tokio::test]
async fn a_deletion_is_answered_when_it_is_stored_also_to_who_asks_while_it_is_on_its_way() {
    let world = World::new();
    let faulty = FaultyBackend::new(Arc::new(world.backend.clone()), 1);
    let faults = faulty.faults();
    let opened = world.broker_over(Arc::new(faulty), 1, QUICK).await;
    let mut clients = [TestClient::connect(&opened.broker), TestClient::connect(&opened.broker)];
    clients[0].create_topic("t", 2, &[]).await;
    for partition in 0..2 {
        commit(&mut clients[0], "g", "t", partition, 5).await;
    }
    let slow = Duration::from_millis(400);
    faults.set_plan(FaultPlan { call_delay: slow..=slow, ..FaultPlan::default() });
    let [first, second] = &mut clients;
    // With the second offset the group is gone: whoever is told so must find it gone, too.
    for (partition, answer_to_second) in [(0, 0), (1, ResponseError::GroupIdNotFound.code())] {
        let request = deletion("g", partition);
        let again = async {
            // By then the first deletion is on its way to the store, and not there yet.
            tokio::time::sleep(slow / 4).await;
            assert_eq!(second.call(&request, 0).await.error_code, answer_to_second);
            let keys = opened.broker.replica.keys();
            let stored = strandline_metadata::groups::read(&world.backend, keys, "g").await.unwrap();
            let values = stored.offsets.into_values();
            values.flat_map(|(_, value)| value.partitions.into_keys()).collect::<Vec<_>>()
        };
        let (answer, stored) = futures::join!(first.call(&request, 0), again);
        assert_eq!(answer.error_code, 0);
        assert!(!stored.contains(&partition.unsigned_abs()), "it was told that this is deleted: {stored:?}");
    }
}

#[tokio::test]
async fn nothing_is_said_to_be_deleted_while_it_is_not_known_what_is_stored() {
    let world = World::new();
    let faulty = FaultyBackend::new(Arc::new(world.backend.clone()), 1);
    let faults = faulty.faults();
    let opened = world.broker_over(Arc::new(faulty), 1, QUICK).await;
    let mut client = TestClient::connect(&opened.broker);
    client.create_topic("t", 2, &[]).await;
    // A group that has something need not be opened for each request, which would take the faults.
    commit(&mut client, "g", "t", 1, 5).await;
    let slow = Duration::from_millis(200);
    faults.set_plan(FaultPlan { call_delay: slow..=slow, ..FaultPlan::default() });
    let delete = DeleteGroupsRequest::default().with_groups_names(vec![GroupId(text("g"))]);
    for _ in 0..20 {
        // The commit is stored, and nobody learns of it: its answer is lost, and it cannot be sent
        // again.
        faults.inject(Fault::AnswerLost);
        let lost = faults.count(Fault::AnswerLost);
        let fail_again = async {
            while faults.count(Fault::AnswerLost) == lost {
                tokio::time::sleep(slow / 20).await;
            }
            faults.inject(Fault::NoSpace);
        };
        let (code, ()) = futures::join!(try_commit(&mut client, "g", "t", 0, 5), fail_again);
        // Something else may have had the faults.
        if code == 0 {
            continue;
        }
        let unknown = ResponseError::CoordinatorNotAvailable.code();
        assert_eq!(client.call(&deletion("g", 0), 0).await.error_code, unknown);
        assert_eq!(client.call(&delete, 2).await.results[0].error_code, unknown);
        eventually("it is found out", async || client.call(&delete, 2).await.results[0].error_code == 0)
            .await;
        return;
    }
    panic!("no commit failed");
}

#[tokio::test]
async fn who_asks_for_a_group_that_has_just_been_given_up_is_answered_by_its_next_task() {
    let world = World::new();
    let opened = world.broker(1, QUICK).await;
    let session = opened.broker.sessions.current().unwrap();
    let (commands, receiver) = tokio::sync::mpsc::channel(8);
    let groups = &opened.broker.groups;
    let keys = GroupKeys { env: groups.env.clone(), group: "g".to_owned(), session };
    let task = GroupTask::open(keys, receiver, SharedStatus::default()).await.unwrap();
    let (reply, described) = Reply::channel();
    // It comes when the task has decided to end, and has not ended yet.
    commands.send(Command::Describe(reply)).await.unwrap();
    commands.send(Command::Sweep).await.unwrap();
    for command in task.finish(End::Idle).await {
        groups.send("g", command).await;
    }
    let answer = described.await.expect("it is answered");
    assert_eq!(answer.unwrap_err().code(), ResponseError::GroupIdNotFound);
}
