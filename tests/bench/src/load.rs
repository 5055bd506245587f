//! Producers and consumers that cost little themselves: requests are encoded once and sent again
//! and again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use kafka_protocol::messages::{FetchRequest, FetchResponse};
use kafka_protocol::records::Compression;
use strandline_tests::client::{Client, fetch_request, frame, produce_request};
use strandline_tests::records::batch;

/// Bytes of one record's value.
pub const RECORD_BYTES: usize = 1024;
/// Bytes of one request, about: under the largest batch that a topic takes by default.
const REQUEST_BYTES: usize = 960 << 10;
/// Records of the smallest batch: 16 KiB, a Java producer's default.
const BATCH_RECORDS: usize = 16;

/// Wall clock, ms since 1970.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}

/// A batch of `records` records of 1 KiB that do not compress to nothing.
pub fn kib_batch(records: usize) -> Bytes {
    let values: Vec<Vec<u8>> =
        (0..records).map(|r| (0..RECORD_BYTES).map(|i| ((i * 31 + r * 17) % 251) as u8).collect()).collect();
    batch(&values, now_ms(), None, Compression::None)
}

/// Frames of produce requests of about a megabyte that together cover all partitions evenly.
pub fn produce_frames(topic: &str, partitions: i32) -> Vec<(Bytes, u64)> {
    let per_request = partitions.min((REQUEST_BYTES / RECORD_BYTES / BATCH_RECORDS) as i32);
    let one = kib_batch(REQUEST_BYTES / RECORD_BYTES / per_request as usize);
    let firsts = (0..partitions).step_by(per_request as usize);
    let frames = firsts.map(|first| {
        let last = (first + per_request).min(partitions);
        let batches: Vec<(i32, Bytes)> = (first..last).map(|p| (p, one.clone())).collect();
        let bytes = one.len() as u64 * batches.len() as u64;
        (frame(&produce_request(topic, &batches, -1), 9, 1, "bench"), bytes)
    });
    frames.collect()
}

/// Sends `total` bytes over `connections` connections with a few requests in flight each; gives the
/// time it took.
pub async fn produce(
    address: &str,
    frames: Vec<(Bytes, u64)>,
    total: u64,
    connections: usize,
    rate: Option<f64>,
) -> Duration {
    let frames = Arc::new(frames);
    let sent = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let mut tasks = Vec::new();
    for connection in 0..connections {
        let (frames, sent, address) = (frames.clone(), sent.clone(), address.to_owned());
        tasks.push(tokio::spawn(async move {
            let mut client = Client::connect(&address).await.expect("a connection");
            let (mut in_flight, mut at) = (0, connection * 7);
            loop {
                let (bytes, size) = &frames[at % frames.len()];
                at += 1;
                let before = sent.fetch_add(*size, Ordering::Relaxed);
                if before >= total {
                    break;
                }
                if let Some(rate) = rate {
                    let due = begun + Duration::from_secs_f64(before as f64 / rate);
                    tokio::time::sleep_until(due.into()).await;
                }
                client.send_raw(bytes).await.expect("a request is sent");
                in_flight += 1;
                if in_flight >= 5 {
                    expect_success(&client.receive_raw().await.expect("an answer"));
                    in_flight -= 1;
                }
            }
            for _ in 0..in_flight {
                expect_success(&client.receive_raw().await.expect("an answer"));
            }
        }));
    }
    for task in tasks {
        task.await.expect("a producer ends well");
    }
    begun.elapsed()
}

/// Checks that no partition of a produce response failed.
fn expect_success(answer: &Bytes) {
    use kafka_protocol::messages::{ProduceResponse, ResponseHeader};
    use kafka_protocol::protocol::Decodable;
    let mut body = answer.clone();
    ResponseHeader::decode(&mut body, 1).expect("a header");
    let response = ProduceResponse::decode(&mut body, 9).expect("a produce response");
    for partition in response.responses.iter().flat_map(|t| &t.partition_responses) {
        assert_eq!(partition.error_code, 0, "a produce failed: {:?}", partition.error_message);
    }
}

/// Reads everything of some partitions up to their ends; gives bytes and time.
pub async fn fetch_all(address: &str, topic: &str, partitions: Vec<i32>) -> (u64, Duration) {
    let begun = Instant::now();
    let mut client = Client::connect(address).await.expect("a connection");
    let mut at: Vec<(i32, i64, bool)> = partitions.into_iter().map(|p| (p, 0, false)).collect();
    let mut total = 0;
    while at.iter().any(|(.., done)| !done) {
        let wanted: Vec<(i32, i64)> =
            at.iter().filter(|(.., done)| !done).map(|(p, o, _)| (*p, *o)).collect();
        let mut request: FetchRequest = fetch_request(topic, &wanted, 100, 1 << 20);
        request.max_bytes = 50 << 20;
        let response: FetchResponse = client.call(&request, 12).await.expect("a fetch");
        for partition in &response.responses[0].partitions {
            assert_eq!(partition.error_code, 0, "a fetch failed");
            let records = partition.records.clone().unwrap_or_default();
            let state = at.iter_mut().find(|(p, ..)| *p == partition.partition_index).expect("asked for");
            total += records.len() as u64;
            state.1 = next_offset(&records).unwrap_or(state.1);
            state.2 = state.1 >= partition.high_watermark;
        }
    }
    (total, begun.elapsed())
}

/// The offset after the last batch, from the headers alone.
pub fn next_offset(records: &Bytes) -> Option<i64> {
    let (mut at, mut next) = (0, None);
    while records.len() >= at + 61 {
        let number = |from: usize, bytes: usize| {
            records[at + from..at + from + bytes].iter().fold(0_i64, |n, b| (n << 8) | i64::from(*b))
        };
        next = Some(number(0, 8) + number(23, 4) + 1);
        at += 12 + number(8, 4) as usize;
    }
    next
}
