//! A well-behaved producer and a well-behaved consumer, and how long they wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::ProduceRequest;
use kafka_protocol::records::Compression;
use strandline_tests::client::{Client, ClientError, produce_request};
use strandline_tests::cluster::Cluster;
use strandline_tests::records::{batch, values};
use strandline_tests::surroundings::now_ms;
use strandline_tests::workload::create_topic;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

const TOPIC: &str = "neighbour";
const RECORD_BYTES: usize = 1_024;
/// The pause between an acknowledgement and the next record.
const PAUSE: Duration = Duration::from_millis(20);
/// A client that is not answered for so long begins anew, as real ones do.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time for the rest to be delivered in the end.
const REST: Duration = Duration::from_secs(30);

/// One wait: when it began, and how long it was.
type Wait = (Instant, Duration);

#[derive(Debug, Default)]
struct Seen {
    produced: Vec<Wait>,
    delivered: Vec<Wait>,
    /// When each record was first sent.
    sent: HashMap<u64, Instant>,
    acknowledged: u64,
    /// What must not be.
    wrong: Vec<String>,
}

/// How long the neighbour waited during a while.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Waits {
    /// p99 until an acknowledgement.
    pub(crate) produce: Duration,
    /// p99 until delivery.
    pub(crate) deliver: Duration,
    /// How many records were acknowledged.
    pub(crate) records: usize,
}

/// Both of them, at work.
#[derive(Debug)]
pub(crate) struct Neighbour {
    seen: Arc<Mutex<Seen>>,
    stop: watch::Sender<bool>,
    producer: JoinHandle<()>,
    consumer: JoinHandle<()>,
    /// A thread of their own: what the attackers compute to attack is not what is measured.
    runtime: Option<Runtime>,
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Neighbour {
    pub(crate) async fn start(cluster: &Cluster) -> Self {
        create_topic(&cluster.addresses(), TOPIC, 1).await;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let stop = watch::Sender::new(false);
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap_or_else(|error| panic!("no thread for the neighbour: {error}"));
        let producer = runtime.spawn(produce(cluster.address(0), seen.clone(), stop.subscribe()));
        let consumer = runtime.spawn(consume(cluster.address(0), seen.clone()));
        Self { seen, stop, producer, consumer, runtime: Some(runtime) }
    }

    /// Waits that began since then. One that has not ended counts with what it has lasted.
    pub(crate) fn since(&self, begin: Instant) -> Waits {
        let seen = lock(&self.seen);
        let p99 = |waits: &[Wait]| {
            let mut lengths: Vec<Duration> =
                waits.iter().filter(|(began, _)| *began >= begin).map(|(_, length)| *length).collect();
            lengths.extend(seen.sent.values().filter(|sent| **sent >= begin).map(Instant::elapsed));
            lengths.sort_unstable();
            lengths.get(lengths.len() * 99 / 100).copied()
        };
        // Nothing at all is the longest wait there is.
        let nothing = begin.elapsed();
        let records = seen.produced.iter().filter(|(began, _)| *began >= begin).count();
        Waits {
            produce: p99(&seen.produced).unwrap_or(nothing),
            deliver: p99(&seen.delivered).unwrap_or(nothing),
            records,
        }
    }

    /// Lets the consumer come to the end; says how much is wrong: what was acknowledged and not
    /// delivered, or delivered twice or in another order.
    pub(crate) async fn finish(mut self, cluster: &Cluster) -> Vec<String> {
        self.stop.send_replace(true);
        let _ = tokio::time::timeout(PATIENCE * 2, &mut self.producer).await;
        let until = Instant::now() + REST;
        let is_complete = || {
            let seen = lock(&self.seen);
            seen.delivered.len() as u64 >= seen.acknowledged
        };
        while Instant::now() < until && !is_complete() {
            sleep(Duration::from_millis(50)).await;
        }
        self.consumer.abort();
        let mut seen = lock(&self.seen);
        let (delivered, acknowledged) = (seen.delivered.len() as u64, seen.acknowledged);
        if delivered < acknowledged {
            let what = format!("{delivered} of {acknowledged} acknowledged records were delivered");
            seen.wrong.push(what);
        }
        println!("{acknowledged} records acknowledged, {delivered} delivered by {}", cluster.address(0));
        seen.wrong.clone()
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes numbered records, one after the other, each until it is acknowledged.
async fn produce(address: String, seen: Arc<Mutex<Seen>>, stop: watch::Receiver<bool>) {
    let mut connection = None;
    let mut producer = None;
    let mut number = 0_u64;
    while !*stop.borrow() {
        let began = Instant::now();
        lock(&seen).sent.entry(number).or_insert(began);
        loop {
            match send(&address, &mut connection, &mut producer, number).await {
                Ok(()) => break,
                Err(ClientError::Kafka(error)) if !error.is_retriable() => {
                    return lock(&seen).wrong.push(format!("record {number}: {error:?}"));
                }
                Err(_) => connection = None,
            }
            sleep(PAUSE).await;
        }
        number += 1;
        note_acknowledged(&seen, began, number);
        sleep(PAUSE).await;
    }
}

fn note_acknowledged(seen: &Mutex<Seen>, began: Instant, count: u64) {
    let mut seen = lock(seen);
    seen.produced.push((began, began.elapsed()));
    seen.acknowledged = count;
}

async fn send(
    address: &str,
    connection: &mut Option<Client>,
    producer: &mut Option<i64>,
    number: u64,
) -> Result<(), ClientError> {
    let client = open(address, connection).await?;
    let id = match *producer {
        Some(id) => id,
        None => *producer.insert(client.init_producer_id().await?),
    };
    let mut value = vec![b'.'; RECORD_BYTES];
    value[..8].copy_from_slice(&number.to_be_bytes());
    let record = batch(&[value], now_ms(), Some((id, 0, number as i32)), Compression::None);
    let answer = client.call::<ProduceRequest>(&produce_request(TOPIC, &[(0, record)], -1), 9).await?;
    match ResponseError::try_from_code(answer.responses[0].partition_responses[0].error_code) {
        None => Ok(()),
        Some(error) => Err(ClientError::Kafka(error)),
    }
}

async fn open<'a>(address: &str, connection: &'a mut Option<Client>) -> Result<&'a mut Client, ClientError> {
    if connection.is_none() {
        let mut client = Client::connect(address).await?;
        client.set_timeout(PATIENCE);
        *connection = Some(client);
    }
    connection.as_mut().ok_or(ClientError::TimedOut)
}

/// Reads what was written, and looks whether it is every record once and in order.
async fn consume(address: String, seen: Arc<Mutex<Seen>>) {
    let mut connection = None;
    let mut next = 0_i64;
    loop {
        let fetched = async {
            let client = open(&address, &mut connection).await?;
            client.fetch(TOPIC, 0, next, 500).await
        };
        let Ok((_, records)) = fetched.await else {
            connection = None;
            sleep(PAUSE).await;
            continue;
        };
        next = take(&seen, next, records);
    }
}

/// Notes what came; gives the offset to go on from.
fn take(seen: &Mutex<Seen>, mut next: i64, records: Bytes) -> i64 {
    let mut seen = lock(seen);
    for (offset, value) in values(records) {
        if offset < next {
            continue;
        }
        let number = value.get(..8).and_then(|head| head.try_into().ok()).map(u64::from_be_bytes);
        if offset != next || number != Some(next.cast_unsigned()) {
            seen.wrong.push(format!("offset {offset} has record {number:?}, {next} was next"));
        }
        next = offset + 1;
        if let Some(sent) = number.and_then(|number| seen.sent.remove(&number)) {
            seen.delivered.push((sent, sent.elapsed()));
        }
    }
    next
}
