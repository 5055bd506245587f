//! Topics that come and go, and grow, under load.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{FetchRequest, ProduceRequest};
use kafka_protocol::records::Compression;
use strandline_tests::client::{Client, ClientError, produce_request};
use strandline_tests::cluster::{Cluster, Plan};
use strandline_tests::process::eventually;
use strandline_tests::records::{batch, values};
use strandline_tests::surroundings::now_ms;
use strandline_tests::workload::create_topic;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use uuid::Uuid;

const TOPIC: &str = "reborn";
const PARTITIONS: i32 = 3;

/// What was acknowledged: of which life, where, and what.
type Acked = (Uuid, i32, i64, String);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_created_again_has_nothing_of_its_earlier_lives() {
    let cluster = Cluster::start(Plan::new(3)).await;
    let addresses = cluster.addresses();
    create_topic(&addresses, TOPIC, PARTITIONS).await;
    let acked: Arc<Mutex<Vec<Acked>>> = Arc::default();
    let stop = watch::Sender::new(false);
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        writers.spawn(write(writer, addresses.clone(), acked.clone(), stop.subscribe()));
    }
    let mut lives = Vec::new();
    for life in 0..6 {
        let goal = acked.lock().expect("no writer panicked").len() + 60;
        eventually("records are acknowledged", Duration::from_mins(1), async || {
            assert!(writers.len() == 4);
            (acked.lock().expect("no writer panicked").len() >= goal).then_some(())
        })
        .await;
        let mut admin = cluster.client(life % 3).await;
        lives.push(topic_id(&mut admin).await.expect("the topic exists"));
        admin.delete_topic(TOPIC).await.expect("it is deleted");
        sleep(Duration::from_millis(50 * life as u64)).await;
        // Created on another broker than it was deleted on.
        create_topic(&[cluster.address((life + 1) % 3)], TOPIC, PARTITIONS).await;
    }
    let goal = acked.lock().expect("no writer panicked").len() + 60;
    eventually("records are acknowledged", Duration::from_mins(1), async || {
        (acked.lock().expect("no writer panicked").len() >= goal).then_some(())
    })
    .await;
    stop.send_replace(true);
    while let Some(done) = writers.join_next().await {
        done.expect("a writer was told nothing wrong");
    }
    let acked = acked.lock().expect("no writer panicked").clone();
    for address in addresses {
        let mut client = Client::connect(&address).await.expect("a running broker takes connections");
        let current = topic_id(&mut client).await.expect("the topic exists");
        assert!(!lives.contains(&current), "another life has another id");
        for life in &lives {
            let outcome = fetch_by_id(&mut client, *life, 0, 0, 0).await;
            assert_eq!(outcome, Err(ResponseError::UnknownTopicId), "{address}: an old id is not known");
        }
        for partition in 0..PARTITIONS {
            let found = fetch_by_id(&mut client, current, partition, 0, 0).await.expect("the topic is read");
            for (offset, value) in &found {
                let text = String::from_utf8_lossy(value);
                assert!(text.starts_with(&current.to_string()), "{text} at {offset} is of an earlier life");
            }
            for (_, _, offset, text) in acked.iter().filter(|a| a.0 == current && a.1 == partition) {
                let there = found.iter().find(|(o, _)| o == offset).map(|(_, v)| v.clone());
                assert_eq!(there, Some(Bytes::from(text.clone())), "lost write at {offset} of {partition}");
            }
        }
    }
    println!("{} records in {} lives", acked.len(), lives.len() + 1);
}

/// The id of the topic, if it is there.
async fn topic_id(client: &mut Client) -> Result<Uuid, ClientError> {
    let topic = client.metadata(&[TOPIC]).await?.topics.remove(0);
    match ResponseError::try_from_code(topic.error_code) {
        None => Ok(topic.topic_id),
        Some(error) => Err(ClientError::Kafka(error)),
    }
}

async fn fetch_by_id(
    client: &mut Client,
    id: Uuid,
    partition: i32,
    offset: i64,
    max_wait_ms: i32,
) -> Result<Vec<(i64, Bytes)>, ResponseError> {
    let wanted = FetchPartition::default()
        .with_partition(partition)
        .with_fetch_offset(offset)
        .with_partition_max_bytes(64 << 20)
        .with_current_leader_epoch(-1);
    let topic = FetchTopic::default().with_topic_id(id).with_partitions(vec![wanted]);
    let request = FetchRequest::default()
        .with_max_wait_ms(max_wait_ms)
        .with_min_bytes(1)
        .with_max_bytes(64 << 20)
        .with_session_epoch(-1)
        .with_topics(vec![topic]);
    let mut response = client.call(&request, 13).await.expect("a fetch is answered");
    let part = response.responses.remove(0).partitions.remove(0);
    match ResponseError::try_from_code(part.error_code) {
        None => Ok(values(part.records.unwrap_or_default())),
        Some(error) => Err(error),
    }
}

/// Writes to whatever life of the topic there is, by its id, and reads back what it is told.
async fn write(
    writer: usize,
    addresses: Vec<String>,
    acked: Arc<Mutex<Vec<Acked>>>,
    stop: watch::Receiver<bool>,
) {
    let mut client = Client::connect(&addresses[writer % addresses.len()]).await.expect("a connection");
    let mut reader = Client::connect(&addresses[(writer + 1) % addresses.len()]).await.expect("a connection");
    let mut number = 0;
    while !*stop.borrow() {
        sleep(Duration::from_millis(5)).await;
        let Ok(id) = topic_id(&mut client).await else { continue };
        for _ in 0..10 {
            number += 1;
            let partition = number % PARTITIONS;
            let text = format!("{id} {writer} {number}");
            let record = batch(&[&text], now_ms(), None, Compression::None);
            let mut request = produce_request("", &[(partition, record)], -1);
            request.topic_data[0].topic_id = id;
            let mut response = client.call::<ProduceRequest>(&request, 13).await.expect("an answer");
            let part = response.responses.remove(0).partition_responses.remove(0);
            match ResponseError::try_from_code(part.error_code) {
                None => {}
                Some(ResponseError::UnknownTopicId | ResponseError::UnknownTopicOrPartition) => break,
                Some(error) => panic!("writer {writer} was told {error:?}"),
            }
            acked.lock().expect("no writer panicked").push((id, partition, part.base_offset, text.clone()));
            match fetch_by_id(&mut reader, id, partition, part.base_offset, 20_000).await {
                Ok(found) => {
                    let first = found.first().map(|(offset, value)| (*offset, value.clone()));
                    assert_eq!(first, Some((part.base_offset, Bytes::from(text))), "read by id, elsewhere");
                }
                Err(ResponseError::UnknownTopicId | ResponseError::UnknownTopicOrPartition) => break,
                Err(error) => panic!("writer {writer} cannot read: {error:?}"),
            }
        }
    }
}
