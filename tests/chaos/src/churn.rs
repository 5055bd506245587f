//! A topic that is deleted, created again and grown under load. What was written to one life of it
//! is there as long as that life lasts, and never in another one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{CreatePartitionsRequest, FetchRequest, ProduceRequest};
use kafka_protocol::records::Compression;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use strandline_tests::client::{Client, ClientError, produce_request, topic};
use strandline_tests::history::History;
use strandline_tests::records::{batch, values};
use strandline_tests::surroundings::now_ms;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

const FIRST_PARTITIONS: i32 = 2;
const MAX_PARTITIONS: i32 = 12;
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(6);
/// Time for the last life to be there when everything is well again.
const PATIENCE: Duration = Duration::from_mins(2);

/// By life, partition and offset: what was acknowledged there.
type Acked = BTreeMap<(Uuid, i32, i64), String>;

/// What is done to the topic.
#[derive(Clone, Copy, Debug)]
enum Act {
    Create,
    Grow(i32),
    Delete,
}

/// The topic, and what is known of it.
#[derive(Clone, Debug)]
pub(crate) struct Churn {
    pub(crate) topic: String,
    pub(crate) addresses: Vec<String>,
    pub(crate) history: History,
    pub(crate) acked: Arc<Mutex<Acked>>,
    pub(crate) stop: watch::Receiver<bool>,
}

impl Churn {
    /// Deletes, creates and grows, until it is over; then the topic is there.
    pub(crate) async fn administer(self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut partitions = FIRST_PARTITIONS;
        while !*self.stop.borrow() {
            self.repeat(&mut rng, Act::Create).await;
            let lives_until = Instant::now() + Duration::from_millis(rng.random_range(2_000..25_000));
            while Instant::now() < lives_until && !*self.stop.borrow() {
                sleep(Duration::from_millis(rng.random_range(200..4_000))).await;
                if partitions < MAX_PARTITIONS {
                    partitions += rng.random_range(1..3);
                    self.repeat(&mut rng, Act::Grow(partitions)).await;
                }
            }
            if *self.stop.borrow() {
                return;
            }
            self.repeat(&mut rng, Act::Delete).await;
            partitions = FIRST_PARTITIONS;
            sleep(Duration::from_millis(rng.random_range(0..500))).await;
        }
        self.repeat(&mut rng, Act::Create).await;
    }

    /// Asks one broker after the other until it is done: also if the answer to an earlier attempt
    /// was lost.
    async fn repeat(&self, rng: &mut StdRng, act: Act) {
        loop {
            let address = &self.addresses[rng.random_range(0..self.addresses.len())];
            let outcome = match Client::connect(address).await {
                Err(error) => Err(error),
                Ok(mut client) => {
                    client.set_timeout(ANSWER);
                    match act {
                        Act::Create => client.create_topic(&self.topic, FIRST_PARTITIONS, &[]).await,
                        Act::Grow(count) => grow(&mut client, &self.topic, count).await,
                        Act::Delete => client.delete_topic(&self.topic).await,
                    }
                }
            };
            match outcome {
                // Deleted, created or grown already.
                Ok(())
                | Err(ClientError::Kafka(
                    ResponseError::UnknownTopicOrPartition | ResponseError::InvalidPartitions,
                )) => return,
                Err(error) if error.is_retriable() => {}
                Err(error) => {
                    self.history.anomaly("wrong refusal", format!("{}: {error}", self.topic));
                    return;
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Writes to whatever life of the topic there is, by its id, until it is over.
    pub(crate) async fn write(self, writer: usize) {
        let mut number = 0;
        while !*self.stop.borrow() {
            // Whatever goes wrong: another connection, to another broker.
            number += 1;
            let _ = self.session(writer, &mut number).await;
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn session(&self, writer: usize, number: &mut usize) -> Result<(), ClientError> {
        let address = &self.addresses[(writer + *number) % self.addresses.len()];
        let mut client = Client::connect(address).await?;
        client.set_timeout(ANSWER);
        while !*self.stop.borrow() {
            let (id, partitions) = self.describe(&mut client).await?;
            for _ in 0..10 {
                sleep(Duration::from_millis(20)).await;
                *number += 1;
                let partition = *number as i32 % partitions;
                let value = format!("{id} {writer} {number}");
                let record = batch(&[&value], now_ms(), None, Compression::None);
                let mut request = produce_request("", &[(partition, record)], -1);
                request.topic_data[0].topic_id = id;
                let mut response = client.call::<ProduceRequest>(&request, 13).await?;
                let part = response.responses.remove(0).partition_responses.remove(0);
                match ResponseError::try_from_code(part.error_code) {
                    None => self.acknowledged(id, partition, part.base_offset, &value),
                    Some(ResponseError::UnknownTopicId | ResponseError::UnknownTopicOrPartition) => break,
                    Some(error) => {
                        if !error.is_retriable() {
                            let what = format!("writer {writer} of {}: {error:?}", self.topic);
                            self.history.anomaly("wrong refusal", what);
                        }
                        return Err(ClientError::Kafka(error));
                    }
                }
            }
        }
        Ok(())
    }

    fn acknowledged(&self, id: Uuid, partition: i32, offset: i64, value: &str) {
        let place = (id, partition, offset);
        let before =
            self.acked.lock().unwrap_or_else(PoisonError::into_inner).insert(place, value.to_owned());
        if let Some(before) = before {
            let what = format!("{}: {place:?} was acknowledged for {before:?} and for {value:?}", self.topic);
            self.history.anomaly("inconsistent offsets", what);
        }
    }

    /// Id and number of partitions.
    async fn describe(&self, client: &mut Client) -> Result<(Uuid, i32), ClientError> {
        let found = client.metadata(&[&self.topic]).await?.topics.remove(0);
        match ResponseError::try_from_code(found.error_code) {
            None => Ok((found.topic_id, found.partitions.len() as i32)),
            Some(error) => Err(ClientError::Kafka(error)),
        }
    }

    /// Compares every broker's view of the topic with what was acknowledged. Gives the number of
    /// records, and of lives.
    pub(crate) async fn check(&self, live: &[String]) -> (usize, usize) {
        let acked = self.acked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let lives: std::collections::BTreeSet<Uuid> = acked.keys().map(|(id, ..)| *id).collect();
        for address in live {
            let until = Instant::now() + PATIENCE;
            loop {
                match self.check_on(address, &acked, &lives).await {
                    Ok(()) => break,
                    Err(error) => assert!(
                        error.is_retriable() && Instant::now() < until,
                        "{address}: {} cannot be read: {error}",
                        self.topic
                    ),
                }
                sleep(Duration::from_millis(200)).await;
            }
        }
        (acked.len(), lives.len())
    }

    async fn check_on(
        &self,
        address: &str,
        acked: &Acked,
        lives: &std::collections::BTreeSet<Uuid>,
    ) -> Result<(), ClientError> {
        let mut client = Client::connect(address).await?;
        let (current, partitions) = self.describe(&mut client).await?;
        for partition in 0..partitions {
            let found = read(&mut client, current, partition).await?;
            let own = acked.range((current, partition, 0)..=(current, partition, i64::MAX));
            for ((_, _, offset), value) in own {
                let there = found.get(offset);
                if there.is_none_or(|there| there != value.as_bytes()) {
                    let what = format!(
                        "{address}, {}: {value:?} was acknowledged at {offset} of partition {partition}, where {there:?} is",
                        self.topic
                    );
                    self.history.anomaly("lost write", what);
                }
            }
            let mark = current.to_string();
            if let Some((offset, value)) = found.iter().find(|(_, v)| !v.starts_with(mark.as_bytes())) {
                let what =
                    format!("{address}, {}: {value:?} at {offset} of partition {partition}", self.topic);
                self.history.anomaly("data of an earlier life", what);
            }
        }
        for life in lives.iter().filter(|life| **life != current) {
            match fetch(&mut client, *life, 0, 0).await {
                Err(ClientError::Kafka(ResponseError::UnknownTopicId)) => {}
                Err(error) => return Err(error),
                Ok((_, found)) => {
                    let what = format!("{address}, {}: {} records under an old id", self.topic, found.len());
                    self.history.anomaly("data of an earlier life", what);
                }
            }
        }
        Ok(())
    }
}

async fn grow(client: &mut Client, name: &str, count: i32) -> Result<(), ClientError> {
    let wanted =
        CreatePartitionsTopic::default().with_name(topic(name)).with_count(count).with_assignments(None);
    let request = CreatePartitionsRequest::default().with_topics(vec![wanted]).with_timeout_ms(5_000);
    let response = client.call(&request, 3).await?;
    match ResponseError::try_from_code(response.results[0].error_code) {
        None => Ok(()),
        Some(error) => Err(ClientError::Kafka(error)),
    }
}

/// A whole partition, by offset. Everything must be quiet.
async fn read(client: &mut Client, id: Uuid, partition: i32) -> Result<BTreeMap<i64, Bytes>, ClientError> {
    let mut all = BTreeMap::new();
    loop {
        let next = all.last_key_value().map_or(0, |(offset, _)| offset + 1);
        let (end, found) = fetch(client, id, partition, next).await?;
        if next >= end {
            return Ok(all);
        }
        if found.is_empty() {
            return Err(ClientError::Kafka(ResponseError::LeaderNotAvailable));
        }
        all.extend(found);
    }
}

async fn fetch(
    client: &mut Client,
    id: Uuid,
    partition: i32,
    offset: i64,
) -> Result<(i64, Vec<(i64, Bytes)>), ClientError> {
    let wanted = FetchPartition::default()
        .with_partition(partition)
        .with_fetch_offset(offset)
        .with_partition_max_bytes(4 << 20)
        .with_current_leader_epoch(-1);
    let topic = FetchTopic::default().with_topic_id(id).with_partitions(vec![wanted]);
    let request = FetchRequest::default()
        .with_max_wait_ms(0)
        .with_min_bytes(1)
        .with_max_bytes(4 << 20)
        .with_session_epoch(-1)
        .with_topics(vec![topic]);
    let mut response = client.call(&request, 13).await?;
    let part = response.responses.remove(0).partitions.remove(0);
    match ResponseError::try_from_code(part.error_code) {
        None => Ok((part.high_watermark, values(part.records.unwrap_or_default()))),
        Some(error) => Err(ClientError::Kafka(error)),
    }
}
