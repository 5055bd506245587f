//! Producers and consumers at work on a cluster while something is done to it; then the check.

use std::time::Duration;

use kafka_protocol::records::Compression;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::checker;
use crate::client::{Client, ClientError};
use crate::cluster::Cluster;
use crate::history::History;
use crate::process::eventually;
use crate::producer::{self, Options};
use crate::tail;

/// Time for what was sent to be acknowledged after the last fault.
const FINISH: Duration = Duration::from_mins(3);

/// A running workload.
#[derive(Debug)]
pub struct Workload {
    topic: String,
    partitions: i32,
    history: History,
    stop: watch::Sender<bool>,
    producers: JoinSet<()>,
    consumers: JoinSet<()>,
}

impl Workload {
    /// Creates the topic and starts four idempotent producers, one plain one, and a consumer for
    /// each broker.
    pub async fn start(cluster: &Cluster, topic: &str, partitions: i32) -> Self {
        Self::with(cluster, Options::new(0, topic, partitions, cluster.addresses())).await
    }

    /// The same, with producers like this one.
    pub async fn with(cluster: &Cluster, like: Options) -> Self {
        let (topic, partitions) = (like.topic.clone(), like.partitions.len() as i32);
        create_topic(&like.brokers, &topic, partitions).await;
        let mut workload = Self {
            topic: topic.clone(),
            partitions,
            history: History::default(),
            stop: watch::Sender::new(false),
            producers: JoinSet::new(),
            consumers: JoinSet::new(),
        };
        let options = |number| Options { number, ..like.clone() };
        workload.add(options(0));
        workload.add(Options { codec: Compression::Zstd, ..options(1) });
        workload.add(Options { in_flight: 1, ..options(2) });
        workload.add(Options { restless: true, codec: Compression::Lz4, ..options(3) });
        workload.add(options(4).plain());
        for address in cluster.addresses() {
            let (topic, history, stop) = (topic.clone(), workload.history.clone(), workload.stop.subscribe());
            workload.consumers.spawn(tail::follow(address, topic, partitions, history, stop));
        }
        workload
    }

    /// Starts another producer.
    pub fn add(&mut self, options: Options) {
        self.producers.spawn(producer::run(options, self.history.clone(), self.stop.subscribe()));
    }

    /// What was seen so far.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Waits until so many more records are acknowledged: the system works.
    pub async fn progress(&self, records: u64) {
        let goal = self.history.acked_records() + records;
        eventually(&format!("{records} more records are acknowledged"), FINISH, async || {
            (self.history.acked_records() >= goal).then_some(())
        })
        .await;
    }

    /// Ends the load, waits until everything that was sent is acknowledged, and checks all of it on
    /// every broker, and on one that was killed and started again.
    pub async fn finish(mut self, cluster: &mut Cluster) -> History {
        self.stop.send_replace(true);
        let done = async { while self.producers.join_next().await.is_some_and(|r| r.is_ok()) {} };
        let in_time = tokio::time::timeout(FINISH, done).await;
        assert!(in_time.is_ok(), "producers are not done: {:?}", self.history.lock().errors);
        while self.consumers.join_next().await.is_some() {}
        cluster.wait_all_ready().await;
        let live = cluster.live_addresses();
        let all = checker::check(&live, &self.topic, self.partitions, &self.history).await;
        self.history.assert_clean();
        // A broker that starts now has nothing in memory: it reads the log and every object.
        let last = cluster.restart_a_live_one().await;
        checker::check_same(&last, &live[0], &self.topic, &all, &self.history).await;
        self.history.assert_clean();
        let inner = self.history.lock();
        println!(
            "{} batches acknowledged, {} records seen; got over {:?}",
            inner.acked.len(),
            inner.seen.len(),
            inner.errors
        );
        drop(inner);
        self.history.clone()
    }
}

/// Creates a topic, as a client does that tries again.
pub async fn create_topic(brokers: &[String], topic: &str, partitions: i32) {
    create_topic_with(brokers, topic, partitions, &[]).await;
}

/// Creates a topic with configs, as a client does that tries again.
pub async fn create_topic_with(brokers: &[String], topic: &str, partitions: i32, configs: &[(&str, &str)]) {
    let turns = std::cell::Cell::new(0);
    eventually("a topic is created", Duration::from_mins(1), async || {
        turns.set(turns.get() + 1);
        let done: Result<(), ClientError> = async {
            let mut client = Client::connect(&brokers[turns.get() % brokers.len()]).await?;
            client.create_topic(topic, partitions, configs).await
        }
        .await;
        done.ok()
    })
    .await;
}
