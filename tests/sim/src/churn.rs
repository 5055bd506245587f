//! A topic that is deleted, created again and grown all the time. Nothing of the old one may be
//! seen under the new one.

use std::time::Duration;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{FetchRequest, TopicName};
use kafka_protocol::records::Compression;
use strandline_tests::client::{Client, ClientError, fetch_request};
use strandline_tests::history::History;
use strandline_tests::records::{batch, batches, values};
use strandline_tests::surroundings::now_ms;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::random::Random;
use crate::trace::Trace;

const TOPIC: &str = "churn";

/// Creates, writes, reads and deletes, until it is over.
pub(crate) async fn run(
    addresses: Vec<String>,
    history: History,
    stop: watch::Receiver<bool>,
    random: Random,
    trace: Trace,
) {
    for life in 0_u32.. {
        if *stop.borrow() {
            return;
        }
        // What failed on the way is tried again with the topic's next life.
        if let Err(error) = live(&addresses, life, &history, &random, &trace).await {
            trace.note(&format!("life {life} of {TOPIC} ends: {error}"));
            sleep(random.ms(100, 500)).await;
        }
    }
}

async fn connect(addresses: &[String], random: &Random) -> Result<Client, ClientError> {
    let mut client = Client::connect(random.pick(addresses).as_str()).await?;
    client.set_timeout(Duration::from_secs(8));
    Ok(client)
}

async fn live(
    addresses: &[String],
    life: u32,
    history: &History,
    random: &Random,
    trace: &Trace,
) -> Result<(), ClientError> {
    let mut client = connect(addresses, random).await?;
    // Whatever there is goes first, so that the life begins with nothing.
    match client.delete_topic(TOPIC).await {
        Ok(()) | Err(ClientError::Kafka(ResponseError::UnknownTopicOrPartition)) => {}
        Err(error) => return Err(error),
    }
    trace.note(&format!("life {life} of {TOPIC} begins, nothing is left of the one before"));
    client.create_topic(TOPIC, 2, &[]).await?;
    let name = format!("life {life}");
    let mut partitions = 2;
    if random.chance(0.5) {
        client.add_partitions(TOPIC, 3).await?;
        partitions = 3;
        // Whichever broker is asked: it knows of the new partition, or says that it cannot know.
        client = connect(addresses, random).await?;
    }
    for partition in (0..partitions).rev() {
        let records = batch(&[name.as_str()], now_ms(), None, Compression::None);
        let produced = client.produce(TOPIC, partition, records).await;
        if let Err(ClientError::Kafka(ResponseError::UnknownTopicOrPartition)) = produced {
            let what = format!("{TOPIC}-{partition} is unknown, {partitions} partitions were acknowledged");
            history.anomaly("wrong refusal", what);
        }
        produced?;
    }
    // By its id: a broker that lags may still have the old topic under the name, and says what was
    // true of it.
    let metadata = client.metadata(&[TOPIC]).await?;
    let id = metadata.topics[0].topic_id;
    let mut reader = connect(addresses, random).await?;
    for partition in 0..partitions {
        let mut request = fetch_request(TOPIC, &[(partition, 0)], 200, 1 << 20);
        request.topics[0].topic = TopicName::default();
        request.topics[0].topic_id = id;
        let response = reader.call::<FetchRequest>(&request, 13).await?;
        let Some(found) = response.responses.into_iter().flat_map(|t| t.partitions).next() else { continue };
        let bytes = found.records.unwrap_or_default();
        let found = batches(bytes).unwrap_or_default();
        for (offset, value) in found.into_iter().flat_map(|(_, batch)| values(batch)) {
            if value != name.as_bytes() {
                let what = format!(
                    "{TOPIC}-{partition}: {:?} at {offset}, in {name}",
                    String::from_utf8_lossy(&value)
                );
                history.anomaly("old data under a new topic", what);
            }
        }
    }
    Ok(())
}
