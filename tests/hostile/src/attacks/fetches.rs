//! Fetches that ask for more than they take, or name more than there is.

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::FetchRequest;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use strandline_tests::client::{Client, ClientError, fetch_request, frame, topic};

use super::{LARGE, LARGE_PARTITIONS, QUIET, Target};

/// How often one partition is named.
const NAMED: usize = 50_000;
/// Requests that wait on a connection.
const PIPELINED: usize = 60;
/// Bytes of a name.
const NAME_BYTES: usize = 30_000;
/// Sessions that one client begins on a connection.
const SESSIONS: usize = 30;
const MINUTE_MS: i32 = 60_000;
const MIB: i32 = 1 << 20;

/// A long name before each of many partitions.
pub(super) async fn long_names(target: Target, _: usize) {
    let partitions: Vec<(i32, i64)> = (0..150_000).map(|partition| (partition, 0)).collect();
    let request = frame(&fetch_request(&"n".repeat(NAME_BYTES), &partitions, 500, MIB), 11, 1, "hostile");
    exchange(&target, &request).await;
}

/// One partition over and over, in requests that wait for what never comes.
pub(super) async fn fetched_twice(target: Target, _: usize) {
    let waiting = fetch_request(QUIET, &vec![(0, 0); NAMED], MINUTE_MS, MIB).with_min_bytes(i32::MAX);
    let request = frame(&waiting, 11, 1, "hostile");
    target
        .again(async |client| {
            for _ in 0..PIPELINED {
                client.send_raw(&request).await?;
            }
            client.receive_raw().await.map(drop)
        })
        .await;
}

/// Sessions of names that nobody has, and of partitions that are named twice.
pub(super) async fn sessions(target: Target, number: usize) {
    let made_up = |name: String| {
        let partition =
            |partition| FetchPartition::default().with_partition(partition).with_partition_max_bytes(MIB);
        FetchTopic::default().with_topic(topic(&name)).with_partitions((0..1_000).map(partition).collect())
    };
    let begin = |topics| {
        FetchRequest::default()
            .with_max_wait_ms(0)
            .with_max_bytes(MIB)
            .with_session_epoch(0)
            .with_topics(topics)
    };
    let twice = FetchPartition::default().with_partition_max_bytes(MIB);
    let twice = vec![FetchTopic::default().with_topic(topic(QUIET)).with_partitions(vec![twice; NAMED])];
    target
        .again(async |client| {
            for i in 0..SESSIONS {
                let name = format!("{number}-{i}-{}", "s".repeat(NAME_BYTES));
                client.call(&begin(vec![made_up(name)]), 11).await?;
            }
            let session = client.call(&begin(twice.clone()), 11).await?.session_id;
            for epoch in 1..=PIPELINED as i32 {
                let next = FetchRequest::default().with_session_id(session).with_session_epoch(epoch);
                let next = next.with_max_wait_ms(MINUTE_MS).with_min_bytes(i32::MAX).with_max_bytes(MIB);
                client.send(&next, 11).await?;
            }
            client.receive_raw().await.map(drop)
        })
        .await;
}

/// Asks for much that is not in the cache, behind a request that waits, and reads none of it.
pub(super) async fn never_read(target: Target, number: usize) {
    let mut frames = BytesMut::new();
    let waiting = fetch_request(QUIET, &[(0, 0)], MINUTE_MS, MIB).with_min_bytes(i32::MAX);
    frames.extend(frame(&waiting, 11, 1, "hostile"));
    for i in 0..PIPELINED {
        let partition = ((number + i) % LARGE_PARTITIONS as usize) as i32;
        let wanted = fetch_request(LARGE, &[(partition, (i % 20) as i64)], 10, 52 * MIB);
        frames.extend(frame(&wanted, 11, 1, "hostile"));
    }
    let frames = frames.freeze();
    target
        .again(async |client| {
            client.send_raw(&frames).await?;
            std::future::pending::<Result<(), ClientError>>().await
        })
        .await;
}

/// Sends this, waits for the answer, and sends it again.
async fn exchange(target: &Target, request: &Bytes) {
    target
        .again(async |client: &mut Client| {
            loop {
                client.send_raw(request).await?;
                client.receive_raw().await?;
            }
        })
        .await;
}
