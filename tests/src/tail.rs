//! A consumer that follows one broker and checks what it is given as it comes.

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::FetchRequest;
use tokio::sync::watch;

use crate::client::{Client, ClientError, fetch_request};
use crate::history::History;
use crate::records::{Value, values};

const VERSION: i16 = 11;

/// Reads all partitions of a topic from one broker, over and over, until `stop` becomes true. What
/// it sees goes into the history, which is compared with what is there in the end.
pub async fn follow(
    address: String,
    topic: String,
    partitions: i32,
    history: History,
    stop: watch::Receiver<bool>,
) {
    let mut next = vec![0_i64; partitions as usize];
    let mut stopped = stop.clone();
    loop {
        let session = read(&address, &topic, &mut next, &history);
        tokio::select! {
            _ = session => {}
            _ = stopped.wait_for(|s| *s) => return,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn read(
    address: &str,
    topic: &str,
    next: &mut [i64],
    history: &History,
) -> Result<std::convert::Infallible, ClientError> {
    let mut client = Client::connect(address).await?;
    client.set_timeout(Duration::from_secs(20));
    // Of this connection: behind the next one may be another process at the same address, which has
    // heard less than one that went on after it had been replaced. What was read is not forgotten.
    let mut highest = vec![0_i64; next.len()];
    loop {
        let wanted: Vec<(i32, i64)> = (0..).zip(next.iter().copied()).collect();
        let request = fetch_request(topic, &wanted, 500, 4 << 20);
        let response = client.call::<FetchRequest>(&request, VERSION).await?;
        for part in response.responses.into_iter().flat_map(|t| t.partitions) {
            let (partition, at) = (part.partition_index, part.partition_index as usize);
            let place = format!("{address}, partition {partition}");
            match ResponseError::try_from_code(part.error_code) {
                None => {}
                Some(error) if error.is_retriable() => return Err(ClientError::Kafka(error)),
                Some(error) => {
                    let what = format!("{place}: {error:?} at {}, which was asked for in order", next[at]);
                    history.anomaly("poll skip", what);
                    return Err(ClientError::Kafka(error));
                }
            }
            if part.high_watermark < highest[at] {
                let what = format!("{place}: high watermark {} after {}", part.high_watermark, highest[at]);
                history.anomaly("non-monotonic poll", what);
            }
            highest[at] = highest[at].max(part.high_watermark);
            let records = part.records.unwrap_or_default();
            next[at] = take(history, partition, next[at], part.high_watermark, records, &place);
        }
    }
}

/// Takes in what a fetch at `next` has brought, and checks it. Gives the offset to go on from.
pub fn take(
    history: &History,
    partition: i32,
    mut next: i64,
    watermark: i64,
    records: Bytes,
    place: &str,
) -> i64 {
    for (offset, value) in values(records) {
        if offset < next {
            continue;
        }
        if offset != next {
            history.anomaly("poll skip", format!("{place}: offset {offset} instead of {next}"));
        }
        if offset >= watermark {
            history
                .anomaly("dirty read", format!("{place}: offset {offset} above the watermark {watermark}"));
        }
        next = offset + 1;
        see(history, partition, offset, &value, place);
    }
    next
}

/// Notes what was read at an offset, and compares it with what others read there.
pub fn see(history: &History, partition: i32, offset: i64, value: &[u8], place: &str) {
    let Some(mark) = Value::mark(value) else {
        history.anomaly("wrong bytes", format!("{place}: the value at {offset} is not as it was written"));
        return;
    };
    let before = history.lock().seen.insert((partition, offset), mark);
    if before.is_some_and(|b| b != mark) {
        let what = format!("{place}: offset {offset} has {mark}, another consumer saw {before:?}");
        history.anomaly("inconsistent offsets", what);
    }
}
