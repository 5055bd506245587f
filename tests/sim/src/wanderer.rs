//! A consumer that asks now this broker, now that one, as one does whose connections break: each
//! must know what any other has acknowledged, or say that it does not know.

use std::collections::BTreeMap;

use kafka_protocol::error::ResponseError;
use strandline_tests::client::{Client, ClientError};
use strandline_tests::history::History;
use strandline_tests::{surroundings, tail};
use tokio::sync::watch;
use tokio::time::{Duration, sleep};

use crate::random::Random;

/// The timestamp that stands for the end of a partition.
const LATEST: i64 = -1;

/// Reads a topic from one broker after the other, until it is told to stop.
pub(crate) async fn run(
    addresses: Vec<String>,
    topic: String,
    partitions: i32,
    history: History,
    stop: watch::Receiver<bool>,
    random: Random,
) {
    let mut wanderer = Wanderer { topic, history, ends: BTreeMap::new(), acked: 0, next: BTreeMap::new() };
    while !*stop.borrow() {
        sleep(random.ms(0, 300)).await;
        let (address, partition) = (random.pick(&addresses), random.below(partitions as usize) as i32);
        if let Err(ClientError::Kafka(error)) = wanderer.visit(address, partition).await
            && !error.is_retriable()
        {
            let what = format!("{address}, partition {partition}: {error:?}");
            let name = if error == ResponseError::OffsetOutOfRange { "poll skip" } else { "wrong refusal" };
            wanderer.history.anomaly(name, what);
        }
    }
}

struct Wanderer {
    topic: String,
    history: History,
    /// The end of each partition, by what was acknowledged to producers.
    ends: BTreeMap<i32, i64>,
    /// How much of that has been looked at.
    acked: usize,
    next: BTreeMap<i32, i64>,
}

impl Wanderer {
    async fn visit(&mut self, address: &str, partition: i32) -> Result<(), ClientError> {
        let mut client = Client::connect(address).await?;
        client.set_timeout(Duration::from_secs(10));
        let place = format!("{address}, partition {partition}");
        // First what says nothing about the end: after a question for it the broker is current.
        let at = self.next.get(&partition).copied().unwrap_or(0);
        let (watermark, records) = client.fetch(&self.topic, partition, at, 100).await?;
        let next = tail::take(&self.history, partition, at, watermark, records, &place);
        self.next.insert(partition, next);
        // What was acknowledged before it is asked, whoever acknowledged it.
        let least = self.acknowledged(partition);
        let called_ms = surroundings::now_ms();
        let end = client.list_offset(&self.topic, partition, LATEST).await?;
        self.history.told_end(partition, called_ms, end);
        if end < least {
            let what = format!("{place}: the end is {end}, {least} was acknowledged");
            self.history.anomaly("stale end", what);
        }
        Ok(())
    }

    fn acknowledged(&mut self, partition: i32) -> i64 {
        let inner = self.history.lock();
        for acked in &inner.acked[self.acked..] {
            let end = self.ends.entry(acked.first.partition).or_default();
            *end = (*end).max(acked.base_offset + i64::from(acked.count));
        }
        self.acked = inner.acked.len();
        self.ends.get(&partition).copied().unwrap_or(0)
    }
}
