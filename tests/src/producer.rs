//! A producer as real ones are: batches in flight, retries under the same sequence numbers, on
//! another broker if the first one does not answer. What it was told goes into the [`History`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{ProduceRequest, ProduceResponse};
use kafka_protocol::records::Compression;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::client::{Client, ClientError, produce_request};
use crate::history::{History, Mark};
use crate::records::{self, Value};
use crate::surroundings;

/// How a producer behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its number in the test.
    pub number: u32,
    /// The topic.
    pub topic: String,
    /// The partitions that it writes to, all of them in each request.
    pub partitions: Vec<i32>,
    /// Where it connects, in no order.
    pub brokers: Vec<String>,
    /// Whether it has a producer id: then no record may be there twice.
    pub idempotent: bool,
    /// Requests in flight on its connection. Five at most with a producer id; one without, or order
    /// is not kept.
    pub in_flight: usize,
    /// Between two requests.
    pub pause: Duration,
    /// A record's value has at most so many bytes.
    pub max_value_bytes: usize,
    /// A request that is not answered in this time is sent again elsewhere.
    pub request_timeout: Duration,
    /// A batch that is not acknowledged in this time has failed for good: no request may.
    pub delivery_timeout: Duration,
    /// How batches are compressed.
    pub codec: Compression,
    /// Whether the topic may be deleted meanwhile.
    pub topic_may_go: bool,
    /// Whether it drops its connection every now and then, whatever is in flight, and goes on at
    /// another broker.
    pub restless: bool,
    /// While this is true it sends nothing new.
    pub quiet: Option<watch::Receiver<bool>>,
}

impl Options {
    /// A producer with Kafka's defaults, but for a shorter request time-out.
    pub fn new(number: u32, topic: &str, partitions: i32, brokers: Vec<String>) -> Self {
        Self {
            number,
            topic: topic.to_owned(),
            partitions: (0..partitions).collect(),
            brokers,
            idempotent: true,
            in_flight: 5,
            pause: Duration::from_millis(20),
            max_value_bytes: 600,
            request_timeout: Duration::from_secs(8),
            delivery_timeout: Duration::from_mins(2),
            codec: Compression::None,
            topic_may_go: false,
            restless: false,
            quiet: None,
        }
    }

    fn is_quiet(&self) -> bool {
        self.quiet.as_ref().is_some_and(|quiet| *quiet.borrow())
    }

    /// Without a producer id: a record may be there twice if it was sent twice.
    #[must_use]
    pub fn plain(mut self) -> Self {
        (self.idempotent, self.in_flight) = (false, 1);
        self
    }
}

/// A batch until it is acknowledged.
#[derive(Clone, Debug)]
struct Batch {
    first: Mark,
    count: u32,
    sequence: i32,
    bytes: Bytes,
    made: Instant,
    sends: u32,
}

/// A request that waits for its answer.
#[derive(Debug)]
struct InFlight {
    id: i32,
    batches: Vec<Batch>,
    sent: Instant,
}

const VERSION: i16 = 9;
/// How often one that is quiet looks whether it still has to be.
const QUIET_LOOK: Duration = Duration::from_millis(50);
/// Pause before a retry, as in Kafka's clients.
const BACKOFF: Duration = Duration::from_millis(100);

/// A running producer's own state.
#[derive(Debug)]
struct Producer {
    options: Options,
    history: History,
    rng: StdRng,
    /// The producer id, once it has one.
    pid: Option<i64>,
    /// Next counter by partition; the sequence number is the same.
    next: BTreeMap<i32, u64>,
    /// Batches to send before any new one, by partition, in order.
    unsent: BTreeMap<i32, VecDeque<Batch>>,
    /// Which broker is tried next.
    turn: usize,
}

/// Produces until `stop` becomes true, and then until everything is acknowledged.
pub async fn run(options: Options, history: History, stop: watch::Receiver<bool>) {
    let rng = StdRng::seed_from_u64(u64::from(options.number) + 1);
    history.lock().idempotent.insert(options.number, options.idempotent);
    let turn = options.number as usize;
    let (next, unsent) = (BTreeMap::new(), BTreeMap::new());
    Producer { options, history, rng, pid: None, next, unsent, turn }.run(stop).await;
}

impl Producer {
    async fn run(mut self, stop: watch::Receiver<bool>) {
        loop {
            match self.connection(&stop).await {
                Ok(()) if *stop.borrow() && self.is_done() => return,
                Ok(()) => {}
                Err(error) => {
                    self.history.error(name_of(&error));
                    if !error.is_retriable() {
                        self.history
                            .anomaly("wrong refusal", format!("producer {}: {error}", self.options.number));
                    }
                }
            }
            let late =
                self.unsent.values().flatten().find(|b| b.made.elapsed() > self.options.delivery_timeout);
            if let Some(batch) = late {
                let what = format!(
                    "{} was not acknowledged within {:?}",
                    batch.first, self.options.delivery_timeout
                );
                self.history.anomaly("failed request", what);
                return;
            }
            if *stop.borrow() && self.is_done() {
                return;
            }
            tokio::time::sleep(BACKOFF).await;
            self.turn += 1;
        }
    }

    fn is_done(&self) -> bool {
        self.unsent.values().all(VecDeque::is_empty)
    }

    /// Uses one connection until something goes wrong on it. What was not acknowledged is in
    /// `unsent` afterwards.
    async fn connection(&mut self, stop: &watch::Receiver<bool>) -> Result<(), ClientError> {
        let address = self.options.brokers[self.turn % self.options.brokers.len()].clone();
        let mut client = Client::connect(&address).await?;
        client.set_timeout(self.options.request_timeout);
        client.set_client_id(&format!("producer-{}", self.options.number));
        if self.options.idempotent && self.pid.is_none() {
            self.pid = Some(client.init_producer_id().await?);
        }
        let mut in_flight: VecDeque<InFlight> = VecDeque::new();
        let done = self.exchange(&mut client, &mut in_flight, stop).await;
        // What was sent may have been written, or may still be: it is sent again as it was.
        for request in in_flight {
            for batch in &request.batches {
                self.history.event(batch.first, batch.count, "its answer is not waited for any more");
            }
            self.take_back(request.batches);
        }
        done
    }

    async fn exchange(
        &mut self,
        client: &mut Client,
        in_flight: &mut VecDeque<InFlight>,
        stop: &watch::Receiver<bool>,
    ) -> Result<(), ClientError> {
        let mut next_at = Instant::now();
        // After an error nothing more is sent until every answer is in: otherwise retries would
        // overtake each other.
        let mut failed = false;
        loop {
            let full = in_flight.len() >= self.options.in_flight;
            let has_unsent = !self.is_done();
            let stopping = *stop.borrow();
            if in_flight.is_empty() && (failed || (stopping && !has_unsent)) {
                return Ok(());
            }
            if self.options.restless && !in_flight.is_empty() && self.rng.random_bool(0.02) {
                return Ok(());
            }
            // Nothing new while something is sent again: a broker remembers five batches, so no
            // more than five may follow the oldest whose fate is not known.
            let retries = in_flight.iter().flat_map(|r| &r.batches).any(|b| b.sends > 1);
            let quiet = self.options.is_quiet();
            let may_begin = !stopping && !quiet && !retries && Instant::now() >= next_at;
            if !failed && !full && (has_unsent || may_begin) {
                if !has_unsent {
                    self.make_batches();
                    next_at = Instant::now() + self.options.pause;
                }
                let batches = self.next_request();
                let request = self.encode(&batches);
                let sent = Instant::now();
                // Noted before it is sent: a request that is sent in part may count.
                in_flight.push_back(InFlight { id: 0, batches, sent });
                for batch in &in_flight.back_mut().expect("it was pushed").batches {
                    let to = &self.options.brokers[self.turn % self.options.brokers.len()];
                    self.history.sent(batch.first, batch.count, to);
                }
                let id = client.send(&request, VERSION).await?;
                in_flight.back_mut().expect("it was pushed").id = id;
                continue;
            }
            let least = if quiet { QUIET_LOOK } else { Duration::from_millis(1) };
            let pause = next_at.saturating_duration_since(Instant::now()).max(least);
            let Some(oldest) = in_flight.front() else {
                tokio::time::sleep(pause).await;
                continue;
            };
            let (id, sent) = (oldest.id, oldest.sent);
            let waits_for_time = !failed && !full && !stopping && !retries;
            let received = if waits_for_time {
                match tokio::time::timeout(pause, client.receive::<ProduceRequest>(id, VERSION)).await {
                    Ok(received) => received,
                    Err(_) if sent.elapsed() > self.options.request_timeout => Err(ClientError::TimedOut),
                    Err(_) => continue,
                }
            } else {
                client.receive::<ProduceRequest>(id, VERSION).await
            };
            let response = received?;
            let batches = in_flight.pop_front().expect("it is the oldest").batches;
            failed |= !self.answered(batches, &response);
        }
    }

    /// Takes the answer to a request in. Gives false if something must be sent again.
    fn answered(&mut self, batches: Vec<Batch>, response: &ProduceResponse) -> bool {
        let mut results = BTreeMap::new();
        for part in response.responses.iter().flat_map(|t| &t.partition_responses) {
            let error = ResponseError::try_from_code(part.error_code);
            results.insert(part.index, (part.base_offset, error));
        }
        let mut good = true;
        for batch in batches {
            let who = batch.first;
            match results.get(&who.partition) {
                None => {
                    self.history.anomaly("unanswered", format!("{who} is not in the answer"));
                    good = false;
                }
                Some((base_offset, None)) => {
                    let (count, base_offset) = (batch.count, *base_offset);
                    if base_offset < 0 {
                        let what = format!("{who} was acknowledged at offset {base_offset}");
                        self.history.anomaly("inconsistent offsets", what);
                    }
                    self.history.acknowledged(who, count, base_offset);
                    continue;
                }
                Some((_, Some(error))) => {
                    self.history.error(format!("{error:?}"));
                    self.history.event(who, batch.count, format!("refused with {error:?}"));
                    self.check_error(&batch, *error);
                    good = false;
                }
            }
            self.take_back(vec![batch]);
        }
        good
    }

    /// Errors that no client may be given here.
    fn check_error(&self, batch: &Batch, error: ResponseError) {
        // Batches behind one that failed are out of order until it is sent again; the first one
        // that waits never is.
        let oldest = self.unsent.get(&batch.first.partition).and_then(VecDeque::front);
        let fine = match error {
            ResponseError::OutOfOrderSequenceNumber => {
                oldest.is_some_and(|b| b.first.counter < batch.first.counter)
            }
            // What is sent is in order, and the topic exists unless the test says otherwise.
            ResponseError::CorruptMessage => false,
            ResponseError::UnknownTopicOrPartition | ResponseError::UnknownTopicId => {
                self.options.topic_may_go
            }
            other => other.is_retriable(),
        };
        if !fine {
            let what = format!("{} was refused with {error:?} after {} sends", batch.first, batch.sends);
            self.history.anomaly("wrong refusal", what);
        }
    }

    fn take_back(&mut self, batches: Vec<Batch>) {
        for batch in batches {
            let queue = self.unsent.entry(batch.first.partition).or_default();
            let at = queue.partition_point(|b| b.first.counter < batch.first.counter);
            queue.insert(at, batch);
        }
    }

    fn make_batches(&mut self) {
        for partition in self.options.partitions.clone() {
            let next = self.next.entry(partition).or_default();
            let first = Mark { producer: self.options.number, partition, counter: *next };
            let count = self.rng.random_range(1..=8_u32);
            *next += u64::from(count);
            let values: Vec<Value> = (0..count)
                .map(|i| {
                    let mark = Mark { counter: first.counter + u64::from(i), ..first };
                    Value::of(mark, self.options.max_value_bytes)
                })
                .collect();
            let sequence = first.counter as i32;
            let producer = self.pid.map(|id| (id, 0, sequence));
            let bytes = records::batch(&values, surroundings::now_ms(), producer, self.options.codec);
            let batch = Batch { first, count, sequence, bytes, made: Instant::now(), sends: 0 };
            self.history.lock().sent.entry((first.producer, partition)).or_default().records = *next;
            self.unsent.entry(partition).or_default().push_back(batch);
        }
    }

    /// The next batch of each partition.
    fn next_request(&mut self) -> Vec<Batch> {
        let mut batches: Vec<Batch> = self.unsent.values_mut().filter_map(VecDeque::pop_front).collect();
        let mut history = self.history.lock();
        for batch in &mut batches {
            batch.sends += 1;
            if batch.sends == 2 {
                history.sent.entry((batch.first.producer, batch.first.partition)).or_default().repeated += 1;
            }
        }
        batches
    }

    fn encode(&self, batches: &[Batch]) -> ProduceRequest {
        debug_assert!(batches.iter().all(|b| b.sequence >= 0));
        let parts: Vec<(i32, Bytes)> = batches.iter().map(|b| (b.first.partition, b.bytes.clone())).collect();
        let timeout_ms = self.options.request_timeout.as_millis() as i32 * 3 / 4;
        produce_request(&self.options.topic, &parts, -1).with_timeout_ms(timeout_ms)
    }
}

/// A short name for an error that is got over.
fn name_of(error: &ClientError) -> String {
    match error {
        ClientError::Io(error) => format!("{:?}", error.kind()),
        ClientError::Kafka(error) => format!("{error:?}"),
        ClientError::TimedOut => "no answer in time".to_owned(),
        ClientError::Answer(what) => what.clone(),
    }
}
