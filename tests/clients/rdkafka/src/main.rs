//! Rust's rdkafka: an idempotent producer with every codec on one broker, and a consumer that
//! assigns its partitions on another. Every record must come back, in order, byte for byte.
//! Arguments: where to write, where to read.
//!
//! With the arguments `agent BOOTSTRAP CLIENT_ID` it does what it is told (agent.py).

mod agent;

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};

const PARTITIONS: i32 = 3;
const RECORDS: usize = 300;
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, bootstrap, client_id] = &arguments[..]
        && mode == "agent"
    {
        return agent::serve(bootstrap, client_id).await;
    }
    let [write, read] = &arguments[..] else { panic!("usage: strandline-client-rdkafka WRITE_ADDRESS READ_ADDRESS") };
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let topic = format!("rdkafka-{codec}-{}", std::process::id());
        let written = produce(write, &topic, codec).await;
        assert_eq!(consume(read, &topic), written, "{codec}: what was read is not what was written");
        println!("PASS rdkafka {codec} ({RECORDS} records)");
    }
}

/// A record as it was written or read: key, value, header.
type Record = (Vec<u8>, Vec<u8>, Vec<u8>);

fn record(i: usize) -> Record {
    let value = vec![(i % 251) as u8; if i == 7 { 900_000 } else { i * 13 % 2000 + 1 }];
    (format!("key-{}", i % 17).into_bytes(), value, format!("header-{i}").into_bytes())
}

async fn produce(address: &str, topic: &str, codec: &str) -> BTreeMap<i32, Vec<Record>> {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", address).create().expect("an admin client");
    let new = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1));
    let created = admin.create_topics([&new], &AdminOptions::new()).await.expect("an answer");
    created[0].as_ref().expect("the topic is created");
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", address)
        .set("compression.type", codec)
        .set("enable.idempotence", "true")
        .create()
        .expect("a producer");
    let mut written: BTreeMap<i32, Vec<Record>> = BTreeMap::new();
    for i in 0..RECORDS {
        let (key, value, header) = record(i);
        let headers = OwnedHeaders::new().insert(Header { key: "h", value: Some(&header) });
        let sent = FutureRecord::to(topic).key(&key).payload(&value).headers(headers);
        // Waiting for each would take a linger each; every tenth is enough to keep an order that is
        // known.
        let partition = (i % PARTITIONS as usize) as i32;
        let delivery = producer.send_result(sent.partition(partition)).expect("room in the queue");
        written.entry(partition).or_default().push((key.clone(), value.clone(), header.clone()));
        if i % 10 == 9 {
            delivery.await.expect("the producer lives").expect("the record is acknowledged");
        }
    }
    rdkafka::producer::Producer::flush(&producer, PATIENCE).expect("everything is acknowledged");
    written
}

fn consume(address: &str, topic: &str) -> BTreeMap<i32, Vec<Record>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", address)
        .set("group.id", "unused")
        .set("enable.auto.commit", "false")
        .create()
        .expect("a consumer");
    let mut partitions = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        partitions.add_partition_offset(topic, partition, Offset::Beginning).expect("a partition");
    }
    consumer.assign(&partitions).expect("an assignment");
    let mut read: BTreeMap<i32, Vec<Record>> = BTreeMap::new();
    while read.values().map(Vec::len).sum::<usize>() < RECORDS {
        let message = consumer.poll(PATIENCE).expect("a record in time").expect("no error");
        let header = message.headers().expect("headers").get(0);
        let of_partition = read.entry(message.partition()).or_default();
        assert_eq!(message.offset(), of_partition.len() as i64, "offsets are dense");
        of_partition.push((
            message.key().unwrap_or_default().to_vec(),
            message.payload().unwrap_or_default().to_vec(),
            header.value.unwrap_or_default().to_vec(),
        ));
    }
    read
}
