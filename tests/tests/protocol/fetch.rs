//! Fetch: limits, long polls, sessions.

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic};
use kafka_protocol::messages::{FetchRequest, FetchResponse, MetadataRequest};
use kafka_protocol::records::Compression;
use strandline_tests::client::{Client, fetch_request, topic};
use strandline_tests::records::{batch, batches, values};
use strandline_tests::surroundings::now_ms;
use strandline_tests::workload::create_topic;

use crate::{error, fetch, refused, shared};

fn record(text: &str) -> Bytes {
    batch(&[text], now_ms(), None, Compression::None)
}

#[tokio::test]
async fn the_first_batch_comes_whatever_the_limits_say_and_none_is_cut() {
    let cluster = shared().await;
    create_topic(&cluster.addresses(), "limits", 2).await;
    let mut writer = cluster.client(0).await;
    for i in 0..6 {
        let text = format!("{i}{}", "z".repeat(1000));
        writer.produce("limits", i % 2, record(&text)).await.expect("it is written");
    }
    for reader in 0..3 {
        let mut client = cluster.client(reader).await;
        client.fetch("limits", 0, 3, 2000).await.expect("it waits for nothing");
        for (max_bytes, least, most) in
            [(1, [1, 0], [1, 0]), (1500, [1, 0], [2, 1]), (1 << 20, [3, 3], [3, 3])]
        {
            let request = fetch_request("limits", &[(0, 0), (1, 0)], 0, max_bytes);
            let parts = fetch(&mut client, &request).await;
            for (i, part) in parts.iter().enumerate() {
                let found = batches(part.records.clone().unwrap_or_default()).expect("no batch is cut");
                assert!((least[i]..=most[i]).contains(&found.len()), "{max_bytes}: {} of {i}", found.len());
                assert_eq!((part.error_code, part.high_watermark), (0, 3));
            }
        }
    }
}

#[tokio::test]
async fn a_fetch_starts_at_the_batch_that_contains_the_offset() {
    let cluster = shared().await;
    create_topic(&cluster.addresses(), "inside", 1).await;
    let mut writer = cluster.client(0).await;
    for _ in 0..3 {
        let texts: Vec<String> = (0..10).map(|i| format!("{i}")).collect();
        writer
            .produce("inside", 0, batch(&texts, now_ms(), None, Compression::Lz4))
            .await
            .expect("it is written");
    }
    let mut reader = cluster.client(1).await;
    for (offset, first) in [(0, 0), (9, 0), (10, 10), (15, 10), (29, 20)] {
        let (watermark, bytes) = reader.fetch("inside", 0, offset, 5000).await.expect("it is read");
        assert_eq!(watermark, 30);
        let found = values(bytes);
        assert_eq!((found[0].0, found.len() as i64), (first, 30 - first), "from {offset}");
    }
}

#[tokio::test]
async fn an_offset_out_of_range_is_an_error_with_the_range_and_the_end_is_none() {
    let cluster = shared().await;
    create_topic(&cluster.addresses(), "range", 1).await;
    cluster.client(0).await.produce("range", 0, record("a")).await.expect("it is written");
    for i in 0..3 {
        let mut client = cluster.client(i).await;
        for offset in [2, 1000, i64::MAX, -1, -2, i64::MIN] {
            let part =
                fetch(&mut client, &fetch_request("range", &[(0, offset)], 30_000, 1000)).await.remove(0);
            assert_eq!(error(part.error_code), Some(ResponseError::OffsetOutOfRange), "offset {offset}");
            assert_eq!((part.log_start_offset, part.high_watermark), (0, 1));
        }
        let (watermark, records) = client.fetch("range", 0, 1, 50).await.expect("the end is in the range");
        assert_eq!((watermark, records.len()), (1, 0));
        let unknown = refused(client.fetch("range", 1, 0, 0).await);
        assert_eq!(unknown, ResponseError::UnknownTopicOrPartition);
        let unknown = refused(client.fetch("no-such-topic", 0, 0, 0).await);
        assert_eq!(unknown, ResponseError::UnknownTopicOrPartition);
        let mut by_id = fetch_request("", &[(0, 0)], 0, 1000);
        by_id.topics[0].topic_id = uuid::Uuid::from_u128(99);
        let response = client.call::<FetchRequest>(&by_id, 13).await.expect("an answer");
        let code = response.responses[0].partitions[0].error_code;
        assert_eq!(error(code), Some(ResponseError::UnknownTopicId));
    }
}

#[tokio::test]
async fn a_commit_on_another_broker_wakes_a_long_poll() {
    let cluster = shared().await;
    create_topic(&cluster.addresses(), "wake", 2).await;
    for i in 0..6 {
        let (mut reader, mut writer) = (cluster.client(i % 3).await, cluster.client((i + 1) % 3).await);
        let at = i as i64;
        // Longer than the client waits: only the commit can end it in time.
        let request = fetch_request("wake", &[(0, 0), (1, at)], 59_000, 1 << 20);
        let mut request = request;
        request.topics[0].partitions.remove(0);
        reader.set_timeout(Duration::from_secs(40));
        let id = reader.send(&request, 11).await.expect("it is sent");
        tokio::time::sleep(Duration::from_millis(50)).await;
        let offset = writer.produce("wake", 1, record(&format!("{i}"))).await.expect("it is written");
        assert_eq!(offset, at);
        let response = reader.receive::<FetchRequest>(id, 11).await.expect("it is woken");
        let bytes = response.responses[0].partitions[0].records.clone().unwrap_or_default();
        assert_eq!(values(bytes), [(at, Bytes::from(format!("{i}")))]);
    }
}

#[tokio::test]
async fn answers_are_in_order_and_a_slow_one_holds_back_nobody_else() {
    let cluster = shared().await;
    create_topic(&cluster.addresses(), "slow", 1).await;
    let (mut slow, mut quick) = (cluster.client(0).await, cluster.client(0).await);
    let polled = slow.send(&fetch_request("slow", &[(0, 0)], 3000, 1000), 11).await.expect("it is sent");
    let metadata = MetadataRequest::default().with_topics(None);
    let asked = slow.send(&metadata, 9).await.expect("it is sent");
    let others = quick.call(&metadata, 9).await.expect("another connection is served meanwhile");
    assert_eq!(others.brokers.len(), 3);
    slow.receive::<FetchRequest>(polled, 11).await.expect("the first answer is the first request's");
    slow.receive::<MetadataRequest>(asked, 9).await.expect("the second is the second's");
}

#[tokio::test]
async fn min_bytes_is_waited_for() {
    let cluster = shared().await;
    create_topic(&cluster.addresses(), "min", 1).await;
    let (mut reader, mut writer) = (cluster.client(0).await, cluster.client(1).await);
    let request = fetch_request("min", &[(0, 0)], 59_000, 1 << 20).with_min_bytes(2000);
    reader.set_timeout(Duration::from_secs(40));
    let id = reader.send(&request, 11).await.expect("it is sent");
    for _ in 0..3 {
        writer.produce("min", 0, record(&"m".repeat(900))).await.expect("it is written");
    }
    let response = reader.receive::<FetchRequest>(id, 11).await.expect("enough is there");
    let bytes = response.responses[0].partitions[0].records.clone().unwrap_or_default();
    assert!(bytes.len() >= 2000, "{} bytes", bytes.len());
    let request = fetch_request("min", &[(0, 0)], 300, 1 << 20).with_min_bytes(1 << 20);
    let part = fetch(&mut reader, &request).await.remove(0);
    assert_eq!(values(part.records.unwrap_or_default()).len(), 3, "when the time is up, what is there comes");
}

fn in_session(id: i32, epoch: i32, wanted: &[(i32, i64)], forgotten: &[i32]) -> FetchRequest {
    let partitions = wanted.iter().map(|(partition, offset)| {
        FetchPartition::default()
            .with_partition(*partition)
            .with_fetch_offset(*offset)
            .with_partition_max_bytes(1 << 20)
            .with_current_leader_epoch(-1)
    });
    let named = FetchTopic::default().with_topic(topic("session")).with_partitions(partitions.collect());
    let forgets = ForgottenTopic::default().with_topic(topic("session")).with_partitions(forgotten.to_vec());
    FetchRequest::default()
        .with_max_wait_ms(200)
        .with_min_bytes(1)
        .with_max_bytes(1 << 20)
        .with_session_id(id)
        .with_session_epoch(epoch)
        .with_topics(if wanted.is_empty() { Vec::new() } else { vec![named] })
        .with_forgotten_topics_data(if forgotten.is_empty() { Vec::new() } else { vec![forgets] })
}

/// The partitions in a response, with the number of their records.
fn told(response: FetchResponse) -> Vec<(i32, usize)> {
    let parts = response.responses.into_iter().flat_map(|t| t.partitions);
    parts.map(|p| (p.partition_index, values(p.records.unwrap_or_default()).len())).collect()
}

#[tokio::test]
async fn a_session_tells_only_news() {
    let cluster = shared().await;
    create_topic(&cluster.addresses(), "session", 3).await;
    let (mut reader, mut writer) = (cluster.client(0).await, cluster.client(1).await);
    let call = async |client: &mut Client, request: FetchRequest| {
        client.call(&request, 11).await.expect("an answer")
    };
    let full = call(&mut reader, in_session(0, 0, &[(0, 0), (1, 0), (2, 0)], &[])).await;
    let id = full.session_id;
    assert!(id > 0);
    assert_eq!(told(full), [(0, 0), (1, 0), (2, 0)], "the first answer is whole");
    let quiet = call(&mut reader, in_session(id, 1, &[], &[])).await;
    assert_eq!((quiet.session_id, told(quiet)), (id, vec![]), "nothing is new");
    writer.produce("session", 1, record("news")).await.expect("it is written");
    let news = call(&mut reader, in_session(id, 2, &[], &[])).await;
    assert_eq!(told(news), [(1, 1)]);
    // The offset moves on; another partition is not wanted any more.
    let quiet = call(&mut reader, in_session(id, 3, &[(1, 1)], &[2])).await;
    assert_eq!(told(quiet), []);
    for partition in 0..3 {
        writer.produce("session", partition, record("more")).await.expect("it is written");
    }
    let mut seen = Vec::new();
    for epoch in 4..8 {
        seen.extend(told(call(&mut reader, in_session(id, epoch, &[], &[])).await));
        if seen.len() >= 2 {
            break;
        }
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [(0, 1), (1, 1)], "the forgotten one is not told of");
    let wrong = call(&mut reader, in_session(id, 77, &[], &[])).await;
    assert_eq!(error(wrong.error_code), Some(ResponseError::InvalidFetchSessionEpoch));
    let unknown = call(&mut reader, in_session(id ^ 1, 1, &[], &[])).await;
    assert_eq!(error(unknown.error_code), Some(ResponseError::FetchSessionIdNotFound));
    // A consumer that moves to another broker starts over there.
    let moved = call(&mut writer, in_session(id, 8, &[], &[])).await;
    assert_eq!(error(moved.error_code), Some(ResponseError::FetchSessionIdNotFound));
    let ended = call(&mut reader, in_session(id, -1, &[(0, 0)], &[])).await;
    assert_eq!((ended.session_id, told(ended)), (0, vec![(0, 1)]));
}
