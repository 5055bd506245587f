//! Groups that lag, each for a reason of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use strandline_tests::client::Client;
use strandline_tests::cluster::{Cluster, Plan};
use strandline_tests::member::Group;
use strandline_tests::records::batch;
use strandline_tests::surroundings::now_ms;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::group_names_first;

/// Between two rounds of a consumer or a producer.
const ROUND: Duration = Duration::from_millis(500);
/// The shortest session that a broker grants.
const SESSION: Duration = Duration::from_secs(6);

/// Produces so many records a second to each partition of a topic, for ever.
async fn produce(address: String, topic: String, per_s: Vec<u32>) {
    let mut client = Client::connect(&address).await.expect("a connection");
    let mut ticks = interval(ROUND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        ticks.tick().await;
        for (partition, per_s) in (0..).zip(&per_s) {
            let values: Vec<Vec<u8>> = (0..per_s / 2).map(|n| vec![n as u8; 20]).collect();
            if !values.is_empty() {
                let batch = batch(&values, now_ms(), None, kafka_protocol::records::Compression::None);
                client.produce(&topic, partition, batch).await.expect("a produce");
            }
        }
    }
}

/// The only member of a group.
struct Member {
    group: Group,
    id: String,
    generation: i32,
    topic: String,
    ends: Client,
    offsets: Vec<i64>,
}

impl Member {
    async fn join(address: &str, group: &str, topic: &str, partitions: usize) -> Self {
        let mut group = Group::new(group, vec![address.to_owned()]);
        let joined = group.join_for("", &[topic.to_owned()], SESSION).await;
        assert_eq!(joined.error_code, 0, "{joined:?}");
        let (id, generation) = (joined.member_id.to_string(), joined.generation_id);
        let assignments = BTreeMap::from([(id.clone(), Bytes::new())]);
        assert_eq!(group.sync(&id, generation, &assignments).await.0, 0);
        let ends = Client::connect(address).await.expect("a connection");
        Self { group, id, generation, topic: topic.to_owned(), ends, offsets: vec![0; partitions] }
    }

    async fn commit(&mut self) {
        let offsets: Vec<(i32, i64)> = (0..).zip(self.offsets.iter().copied()).collect();
        let topics = [(self.topic.clone(), offsets)];
        assert_eq!(self.group.commit_for(&self.id, self.generation, &topics).await, 0);
    }

    /// Says that it lives, reads at most so many records of each partition, and commits what it
    /// read.
    async fn round(&mut self, most: &[i64]) {
        assert_eq!(self.group.heartbeat(&self.id, self.generation).await, 0);
        for (partition, most) in (0..).zip(most) {
            let end = self.ends.list_offset(&self.topic, partition, -1).await.expect("an end");
            let offset = &mut self.offsets[partition as usize];
            *offset = end.min(*offset + most);
        }
        self.commit().await;
    }

    /// Reads so many records a second of each partition, for ever.
    async fn read(mut self, per_s: Vec<i64>) {
        let most: Vec<i64> = per_s.iter().map(|n| n / 2).collect();
        let mut ticks = interval(ROUND);
        loop {
            ticks.tick().await;
            self.round(&most).await;
        }
    }

    /// Says that it lives, and does nothing else.
    async fn stand(mut self) {
        self.commit().await;
        loop {
            assert_eq!(self.group.heartbeat(&self.id, self.generation).await, 0);
            sleep(ROUND).await;
        }
    }
}

/// A topic: its name, its partitions, its configs.
type Wanted<'a> = (&'a str, i32, &'a [(&'a str, &'a str)]);

/// A cluster of one broker with a topic for each scenario.
async fn start(topics: &[Wanted<'_>]) -> (Cluster, String) {
    let plan = Plan::new(1)
        .flag("group-initial-rebalance-delay-ms", 0)
        .flag("job-interval-ms", 500)
        .flag("log-retention-check-interval-ms", 500);
    let cluster = Cluster::start(plan).await;
    let address = cluster.address(0);
    let mut client = cluster.client(0).await;
    for (topic, partitions, configs) in topics {
        client.create_topic(topic, *partitions, configs).await.expect("a topic");
    }
    (cluster, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_group_gets_its_own_cause() {
    let retention = [("retention.bytes", "4000")];
    let topics: [Wanted<'_>; 7] = [
        ("well", 2, &[]),
        ("left", 1, &[]),
        ("slow", 1, &[]),
        ("hot", 4, &[]),
        ("stormy", 1, &[]),
        ("overtaken", 1, &retention),
        ("unread", 1, &[]),
    ];
    let (cluster, address) = start(&topics).await;
    let (_process, observer) = cluster.observe(&[]).await;
    let mut at_work = JoinSet::new();
    for (topic, per_s) in [
        ("well", vec![10, 10]),
        ("left", vec![40]),
        ("slow", vec![60]),
        ("hot", vec![80, 4, 4, 4]),
        ("stormy", vec![40]),
        ("overtaken", vec![60]),
        ("unread", vec![10]),
    ] {
        at_work.spawn(produce(address.clone(), topic.to_owned(), per_s));
    }
    let join = |group: &'static str, topic: &'static str, partitions| {
        let address = address.clone();
        async move { Member::join(&address, group, topic, partitions).await }
    };
    at_work.spawn(join("keeps-up", "well", 2).await.read(vec![1_000, 1_000]));
    at_work.spawn(join("too-slow", "slow", 1).await.read(vec![20]));
    at_work.spawn(join("one-partition", "hot", 4).await.read(vec![20, 1_000, 1_000, 1_000]));
    at_work.spawn(join("behind-retention", "overtaken", 1).await.read(vec![4]));
    // Reads, and is killed: nobody says that it lives any more.
    let mut killed = join("killed", "left", 1).await;
    killed.round(&[1_000]).await;
    drop(killed);
    // Comes and goes, and gets nowhere.
    let storm_address = address.clone();
    at_work.spawn(async move {
        loop {
            let mut member = Member::join(&storm_address, "storm", "stormy", 1).await;
            member.round(&[1]).await;
        }
    });
    // Reads and keeps its offsets elsewhere.
    let mut silent = join("silent", "unread", 1).await;
    at_work.spawn(async move {
        loop {
            assert_eq!(silent.group.heartbeat(&silent.id, silent.generation).await, 0);
            sleep(ROUND).await;
        }
    });
    for (group, expected) in [
        ("keeps-up", "no_lag"),
        ("killed", "empty_group"),
        ("storm", "rebalance_storm"),
        ("one-partition", "hot_partition"),
        ("too-slow", "consumer_slow"),
        ("silent", "never_committed"),
        ("behind-retention", "offsets_out_of_range"),
    ] {
        group_names_first(observer, group, expected).await;
    }
    let replay = observer.call("check_replay_readiness", json!({"group_id": "behind-retention"})).await;
    assert_eq!(replay["verdict"], "overtaken", "{replay:#}");
    assert!(replay["partitions"][0]["records_lost"].as_i64() > Some(0), "{replay:#}");
    // Nobody of those at work has failed.
    assert!(at_work.try_join_next().is_none());
}

/// Members that are there and commit nothing need a minute to be called stalled; a surge needs a
/// calm minute before it; retention that catches up has to be seen before it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it takes minutes: make test-mcp"]
async fn causes_that_need_minutes_are_named_too() {
    let retention = [("retention.bytes", "300000")];
    let topics: [Wanted<'_>; 3] = [("hung", 1, &[]), ("surge", 1, &[]), ("shrinking", 1, &retention)];
    let (cluster, address) = start(&topics).await;
    let mut at_work = JoinSet::new();
    // Some ten thousand records fit; whoever starts at the end and reads a hundred a second too few
    // has as many seconds.
    at_work.spawn(produce(address.clone(), "shrinking".to_owned(), vec![300]));
    sleep(Duration::from_secs(45)).await;
    let (_process, observer) = cluster.observe(&[]).await;
    let mut late = Member::join(&address, "caught-up-with", "shrinking", 1).await;
    late.round(&[i64::MAX / 2]).await;
    at_work.spawn(late.read(vec![200]));
    at_work.spawn(produce(address.clone(), "hung".to_owned(), vec![40]));
    at_work.spawn(produce(address.clone(), "surge".to_owned(), vec![10]));
    at_work.spawn(Member::join(&address, "hangs", "hung", 1).await.stand());
    at_work.spawn(Member::join(&address, "flooded", "surge", 1).await.read(vec![20]));
    let begun = Instant::now();
    group_names_first(observer, "caught-up-with", "retention_overtaking").await;
    let replay = observer.call("check_replay_readiness", json!({"group_id": "caught-up-with"})).await;
    assert_eq!(replay["verdict"], "at_risk", "{replay:#}");
    group_names_first(observer, "flooded", "no_lag").await;
    sleep(Duration::from_secs(80).saturating_sub(begun.elapsed())).await;
    group_names_first(observer, "hangs", "consumer_stalled").await;
    at_work.spawn(produce(address.clone(), "surge".to_owned(), vec![300]));
    group_names_first(observer, "flooded", "producer_surge").await;
    assert!(at_work.try_join_next().is_none());
}
