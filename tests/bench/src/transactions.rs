//! Transactions: what a commit costs beside what it is made of, and what they take from producers
//! and readers. The same against another cluster, an Apache Kafka say, if
//! `STRANDLINE_BENCH_BESIDE=host:port` names one.

use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::messages::{
    EndTxnRequest, FetchRequest, FindCoordinatorRequest, InitProducerIdRequest, ProducerId, TransactionalId,
};
use kafka_protocol::records::Compression;
use strandline_metadata::backend::etcd::{Etcd, EtcdConfig};
use strandline_metadata::backend::{Backend, Op, Txn};
use strandline_storage::path::ObjectId;
use strandline_tests::client::{Client, ClientError, fetch_request, produce_request, text};
use strandline_tests::records::{batch, seal};

use crate::load::{RECORD_BYTES, next_offset, now_ms};
use crate::report::{Bound, Report, percentile};
use crate::stack::Stack;
use crate::{MIB, NO_BUDGET};

const TOPIC: &str = "transactions";
/// Transactions of a single producer.
const SINGLE: usize = 300;
/// Producers at once, and for how long.
const MANY: usize = 100;
const MANY_FOR: Duration = Duration::from_secs(5);
/// A producer that commits this often, and for how long.
const COMMIT_EVERY: Duration = Duration::from_millis(100);
const SUSTAINED: Duration = Duration::from_secs(5);
/// Records of one request of that.
const REQUEST_RECORDS: usize = 256;

/// A producer of a transactional id.
struct Producer {
    client: Client,
    id: String,
    id_and_epoch: (i64, i16),
    sequence: i32,
    partition: i32,
}

impl Producer {
    async fn open(address: &str, id: &str, partition: i32) -> Self {
        let mut client = Client::connect(address).await.expect("a connection");
        // Kafka makes the topic of its coordinators now.
        let find = FindCoordinatorRequest::default().with_key_type(1).with_coordinator_keys(vec![text(id)]);
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(TransactionalId(text(id))))
            .with_transaction_timeout_ms(60_000);
        for _ in 0..200 {
            client.call(&find, 4).await.expect("an answer");
            let answer = client.call(&request, 5).await.expect("an answer");
            if answer.error_code == 0 {
                let id_and_epoch = (*answer.producer_id, answer.producer_epoch);
                return Self { client, id: id.to_owned(), id_and_epoch, sequence: 0, partition };
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{id} gets no producer id");
    }

    fn batch(&self, records: usize) -> Bytes {
        let values = vec![vec![b'x'; RECORD_BYTES]; records];
        let (id, epoch) = self.id_and_epoch;
        let bytes = batch(&values, now_ms(), Some((id, epoch, self.sequence)), Compression::None);
        let mut bytes = bytes.to_vec();
        bytes[22] |= 0x10;
        seal(&bytes)
    }

    async fn send(&mut self, records: usize) -> i32 {
        let request = produce_request(TOPIC, &[(self.partition, self.batch(records))], -1)
            .with_transactional_id(Some(TransactionalId(text(&self.id))));
        self.sequence += records as i32;
        self.client.send(&request, 12).await.expect("a request is sent")
    }

    async fn receive(&mut self, id: i32) {
        let answer = self
            .client
            .receive::<kafka_protocol::messages::ProduceRequest>(id, 12)
            .await
            .expect("a produce is answered");
        assert_eq!(answer.responses[0].partition_responses[0].error_code, 0, "a produce failed");
    }

    async fn commit(&mut self) {
        let request = EndTxnRequest::default()
            .with_transactional_id(TransactionalId(text(&self.id)))
            .with_producer_id(ProducerId(self.id_and_epoch.0))
            .with_producer_epoch(self.id_and_epoch.1)
            .with_committed(true);
        loop {
            let answer = self.client.call(&request, 5).await.expect("an answer");
            match answer.error_code {
                0 => {
                    self.id_and_epoch = (*answer.producer_id, answer.producer_epoch);
                    self.sequence = 0;
                    return;
                }
                // CONCURRENT_TRANSACTIONS, COORDINATOR_LOAD_IN_PROGRESS: a client asks again.
                51 | 14 => tokio::time::sleep(Duration::from_millis(2)).await,
                code => panic!("a commit failed: {code}"),
            }
        }
    }

    /// A whole transaction, in ms.
    async fn transaction(&mut self, records: usize) -> f64 {
        let begun = Instant::now();
        let id = self.send(records).await;
        self.receive(id).await;
        self.commit().await;
        begun.elapsed().as_secs_f64() * 1000.0
    }
}

/// All of it, on a broker of its own, and on whoever is beside it.
pub async fn figures(stack: &mut Stack, report: &mut Report) {
    let floor = floor(stack).await;
    report.figure("transactions: a PUT of 1 KiB, and an etcd transaction, medians together", floor, "ms");
    let (broker, _) = stack.broker(1, "transactions", NO_BUDGET).await;
    let own = measure(&broker.address, "transactions", report).await;
    let what = "transactions: one record in each, over two PUTs and two etcd transactions";
    report.target(what, own.single_ms / (2.0 * floor), "", Bound::AtMost, 1.0);
    let what = "transactions: a producer that commits every 100 ms, against one without";
    report.target(what, own.throughput, "", Bound::AtLeast, 0.9);
    let what = "transactions: reading what is committed, against reading everything";
    report.target(what, own.reading, "", Bound::AtMost, 1.05);
    if let Ok(address) = std::env::var("STRANDLINE_BENCH_BESIDE") {
        let beside = measure(&address, "transactions beside", report).await;
        report.figure("transactions: one producer, against beside", beside.single_ms / own.single_ms, "");
        report.figure("transactions: a hundred, against beside", own.many / beside.many, "");
    }
}

struct Measured {
    single_ms: f64,
    many: f64,
    throughput: f64,
    reading: f64,
}

async fn measure(address: &str, name: &str, report: &mut Report) -> Measured {
    let mut client = Client::connect(address).await.expect("a connection");
    client.create_topic(TOPIC, 8, &[]).await.expect("a topic");
    let mut one = Producer::open(address, "one", 0).await;
    for _ in 0..20 {
        one.transaction(1).await;
    }
    let mut times = Vec::new();
    for _ in 0..SINGLE {
        times.push(one.transaction(1).await);
    }
    let single_ms = percentile(&mut times, 0.5);
    report.figure(format!("{name}: one producer, one record in each, median"), single_ms, "ms");
    report.figure(format!("{name}: the same, p99"), percentile(&mut times, 0.99), "ms");
    let mut hundred = Vec::new();
    for _ in 0..50 {
        hundred.push(one.transaction(100).await);
        tokio::time::sleep(COMMIT_EVERY).await;
    }
    report.figure(
        format!("{name}: a hundred records, ten a second, median"),
        percentile(&mut hundred, 0.5),
        "ms",
    );
    let many = many(address).await;
    report.figure(format!("{name}: {MANY} producers, commits"), many, "1/s");
    let plain = sustained(address, None).await;
    let committing = sustained(address, Some(COMMIT_EVERY)).await;
    report.figure(format!("{name}: without commits"), plain / MIB, "MiB/s");
    report.figure(format!("{name}: with a commit every 100 ms"), committing / MIB, "MiB/s");
    let mut ratios = Vec::new();
    for _ in 0..5 {
        let everything = read(address, 1, 0).await;
        ratios.push(read(address, 1, 1).await / everything);
    }
    let reading = percentile(&mut ratios, 0.5);
    Measured { single_ms, many, throughput: committing / plain, reading }
}

/// The median of a PUT of a kilobyte and of an etcd transaction, one after the other, in ms.
async fn floor(stack: &Stack) -> f64 {
    let (store, object) = (stack.raw_store(), Bytes::from(vec![b'x'; RECORD_BYTES]));
    let backend = Etcd::new(&EtcdConfig::new([stack.etcd_url()])).await.expect("etcd answers");
    let mut times = Vec::new();
    for number in 0..200 {
        let begun = Instant::now();
        let key = ObjectId::write(77, number, 0).key();
        store.put(&key, object.clone().into()).await.expect("a PUT");
        let put = Op::put(Bytes::from_static(b"/bench/transactions"), vec![b'x'; 300]);
        backend.txn(Txn { then: vec![put], ..Txn::default() }).await.expect("a transaction");
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    percentile(&mut times, 0.5)
}

/// Commits per second of many producers, one record in each transaction.
async fn many(address: &str) -> f64 {
    let mut producers = Vec::new();
    for number in 0..MANY {
        producers.push(Producer::open(address, &format!("many-{number}"), number as i32 % 8).await);
    }
    let begun = Instant::now();
    let tasks: Vec<_> = producers
        .into_iter()
        .map(|mut producer| {
            tokio::spawn(async move {
                let mut count = 0;
                while begun.elapsed() < MANY_FOR {
                    producer.transaction(1).await;
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut count = 0;
    for task in tasks {
        count += task.await.expect("a producer ends well");
    }
    f64::from(count) / begun.elapsed().as_secs_f64()
}

/// Bytes per second of one producer with five requests in flight, which commits this often.
async fn sustained(address: &str, commit_every: Option<Duration>) -> f64 {
    let mut producer = Producer::open(address, "sustained", 1).await;
    let (begun, mut committed, mut bytes, mut in_flight) = (Instant::now(), Instant::now(), 0, Vec::new());
    while begun.elapsed() < SUSTAINED {
        let id = producer.send(REQUEST_RECORDS).await;
        bytes += REQUEST_RECORDS * RECORD_BYTES;
        in_flight.push(id);
        if in_flight.len() >= 5 {
            producer.receive(in_flight.remove(0)).await;
        }
        if commit_every.is_some_and(|every| committed.elapsed() >= every) {
            for id in in_flight.drain(..) {
                producer.receive(id).await;
            }
            producer.commit().await;
            committed = Instant::now();
        }
    }
    for id in in_flight.drain(..) {
        producer.receive(id).await;
    }
    producer.commit().await;
    bytes as f64 / begun.elapsed().as_secs_f64()
}

/// Seconds that it takes to read a partition at this isolation level.
async fn read(address: &str, partition: i32, isolation: i8) -> f64 {
    let begun = Instant::now();
    let read = async {
        let mut client = Client::connect(address).await?;
        let mut next = 0;
        loop {
            let request: FetchRequest =
                fetch_request(TOPIC, &[(partition, next)], 100, 1 << 20).with_isolation_level(isolation);
            let answer = client.call(&request, 12).await?;
            let fetched = &answer.responses[0].partitions[0];
            next = next_offset(&fetched.records.clone().unwrap_or_default()).unwrap_or(next);
            if next >= fetched.last_stable_offset {
                return Ok::<(), ClientError>(());
            }
        }
    };
    read.await.expect("a partition is read");
    begun.elapsed().as_secs_f64()
}
