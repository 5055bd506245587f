//! What clients do to a connection that no client should, and what comes of it.

use bytes::Bytes;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    ApiVersionsRequest, CreateTopicsRequest, FetchRequest, GroupId, JoinGroupRequest, MetadataRequest,
    TopicName,
};
use tokio::time::{sleep, timeout};

use super::*;
use crate::api::text;
use crate::limits::{ARRIVAL_BYTES_PER_S, ARRIVAL_GRACE, CONTENDED_GRACE, STUCK_WRITER};
use crate::run::Opened;
use crate::server::memory::MemoryBudget;
use crate::testing::{TestClient, World, frame};

const SOON: Duration = Duration::from_secs(1);

/// A broker whose groups wait long for their first members.
async fn ready() -> Opened {
    World::new().broker(1, &["--group-initial-rebalance-delay-ms", "60000"]).await
}

fn name(name: &str) -> TopicName {
    TopicName(text(name))
}

/// A request that waits for others.
fn join() -> Bytes {
    let protocol = JoinGroupRequestProtocol::default().with_name(text("range"));
    let request = JoinGroupRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_session_timeout_ms(300_000)
        .with_rebalance_timeout_ms(300_000)
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol]);
    // Before version 4 no member id is asked for first.
    frame(&request, 3, 1)
}

/// A request that waits for records.
fn long_poll() -> Bytes {
    let partition = FetchPartition::default().with_partition_max_bytes(1 << 20);
    let topic = FetchTopic::default().with_topic(name("t")).with_partitions(vec![partition]);
    let request = FetchRequest::default().with_max_wait_ms(60_000).with_min_bytes(1).with_max_bytes(1 << 20);
    frame(&request.with_topics(vec![topic]), 6, 2)
}

/// A request whose response has about 50 bytes for each partition of a topic.
fn metadata(topic: &str) -> Bytes {
    let topic = MetadataRequestTopic::default().with_name(Some(name(topic)));
    frame(&MetadataRequest::default().with_topics(Some(vec![topic])), 8, 3)
}

/// Lets everything happen that needs no time.
async fn settle() {
    sleep(Duration::from_millis(10)).await;
}

async fn connections_after(opened: &Opened, wait: Duration) -> i64 {
    sleep(wait).await;
    opened.broker.metrics.open_connections()
}

#[tokio::test(start_paused = true)]
async fn a_fetch_waits_no_longer_once_the_next_request_cannot_be_started() {
    let opened = ready().await;
    let mut client = TestClient::connect(&opened.broker);
    client.create_topic("t", 1, &[]).await;
    // Nothing that is behind them tells that the client has gone until they are read.
    for _ in 0..30 {
        client.send_raw(&long_poll()).await;
    }
    settle().await;
    drop(client);
    assert_eq!(connections_after(&opened, SOON).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_gone_is_given_up_while_its_requests_wait() {
    let opened = ready().await;
    TestClient::connect(&opened.broker).create_topic("t", 1, &[]).await;
    settle().await;
    for waiting in [join(), long_poll()] {
        let mut clients: Vec<TestClient> = (0..20).map(|_| TestClient::connect(&opened.broker)).collect();
        for client in &mut clients {
            client.send_raw(&waiting).await;
        }
        assert_eq!(connections_after(&opened, SOON).await, 20);
        // One of them goes in the middle of its next request.
        clients[0].send_raw(&metadata("t")[..9]).await;
        settle().await;
        drop(clients);
        assert_eq!(connections_after(&opened, SOON).await, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_with_too_many_requests_is_given_up_when_it_goes() {
    let opened = ready().await;
    let mut client = TestClient::connect(&opened.broker);
    client.create_topic("t", 1, &[]).await;
    for _ in 0..REQUESTS_IN_FLIGHT {
        client.send_raw(&long_poll()).await;
    }
    assert_eq!(connections_after(&opened, SOON).await, 1);
    drop(client);
    assert_eq!(connections_after(&opened, SOON).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_does_not_keep_its_requests_from_being_handled() {
    let opened = ready().await;
    let mut client = TestClient::connect_by(&opened.broker, 1_000);
    client.create_topic("large", 1_000, &[]).await;
    client.send_raw(&metadata("large")).await;
    let topic = kafka_protocol::messages::create_topics_request::CreatableTopic::default()
        .with_name(name("behind"))
        .with_num_partitions(1)
        .with_replication_factor(-1);
    client.send_raw(&frame(&CreateTopicsRequest::default().with_topics(vec![topic]), 5, 4)).await;
    sleep(SOON).await;
    assert!(opened.broker.replica.read(|view| view.names.topic("behind").is_some()));
    for _ in 0..2 {
        assert!(client.receive_raw().await.is_some(), "both are answered once it reads");
    }
}

#[tokio::test(start_paused = true)]
async fn responses_that_are_not_read_are_bounded_in_bytes_and_given_up_in_time() {
    let opened = ready().await;
    let mut client = TestClient::connect_by(&opened.broker, 1 << 16);
    client.create_topic("large", 20_000, &[]).await;
    // Behind a long poll nothing is written, until there is more than may wait for it.
    client.create_topic("t", 1, &[]).await;
    client.send_raw(&long_poll()).await;
    for _ in 0..REQUESTS_IN_FLIGHT - 1 {
        client.send_raw(&metadata("large")).await;
    }
    sleep(SOON).await;
    let one = 20_000 * 50;
    let held = opened.broker.reply_memory.used();
    assert!(held > one, "{held} bytes: some are ready");
    assert!(held < CONNECTION_REPLY_BYTES + 2 * one, "{held} bytes");
    // Then the client is given a while to read.
    assert_eq!(connections_after(&opened, STUCK_WRITER / 2).await, 1);
    assert_eq!(connections_after(&opened, STUCK_WRITER).await, 0);
    assert_eq!(opened.broker.reply_memory.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn replies_that_wait_behind_a_request_are_given_up_when_others_wait_for_their_memory() {
    let opened = World::new().broker(1, &["--response-memory-bytes", "6000000"]).await;
    let mut holder = TestClient::connect_by(&opened.broker, 1 << 16);
    holder.create_topic("large", 20_000, &[]).await;
    holder.create_topic("t", 1, &[]).await;
    let mut holders = vec![holder];
    for _ in 0..3 {
        holders.push(TestClient::connect_by(&opened.broker, 1 << 16));
    }
    for holder in &mut holders {
        holder.send_raw(&long_poll()).await;
        for _ in 0..10 {
            holder.send_raw(&metadata("large")).await;
        }
    }
    assert_eq!(connections_after(&opened, SOON).await, 4);
    let used = opened.broker.reply_memory.used();
    assert!((4_000_000..8_000_000).contains(&used), "{used} bytes");
    let mut other = TestClient::connect_by(&opened.broker, 1 << 16);
    other.send_raw(&metadata("large")).await;
    let answered = timeout(CONTENDED_GRACE + SOON * 2, other.receive_raw()).await;
    assert!(answered.is_ok_and(|response| response.is_some()), "who reads is answered");
    assert!(opened.broker.metrics.open_connections() < 5, "some of the holders have been given up");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_late_gets_everything() {
    let opened = ready().await;
    let mut client = TestClient::connect_by(&opened.broker, 1 << 16);
    client.create_topic("large", 20_000, &[]).await;
    for _ in 0..30 {
        client.send_raw(&metadata("large")).await;
    }
    sleep(SOON).await;
    for _ in 0..30 {
        assert!(client.receive_raw().await.is_some_and(|response| response.len() > 20_000));
    }
    settle().await;
    assert_eq!(opened.broker.reply_memory.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn half_a_request_is_given_up_also_behind_one_that_waits() {
    let opened = ready().await;
    for before in [Bytes::new(), join()] {
        let mut client = TestClient::connect(&opened.broker);
        client.send_raw(&before).await;
        client.send_raw(&50_000_000_i32.to_be_bytes()).await;
        client.send_raw(&vec![0; 100_000]).await;
        assert_eq!(connections_after(&opened, ARRIVAL_GRACE.saturating_sub(SOON)).await, 1);
        assert_eq!(
            connections_after(&opened, Duration::from_secs(5)).await,
            0,
            "behind {} bytes",
            before.len()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_link_brings_a_large_request_through() {
    let opened = ready().await;
    let mut client = TestClient::connect(&opened.broker);
    let topics: Vec<MetadataRequestTopic> = (0..400_000)
        .map(|_| MetadataRequestTopic::default().with_name(Some(name("longer-than-most"))))
        .collect();
    let request = frame(&MetadataRequest::default().with_topics(Some(topics)), 8, 3);
    // Long enough that the grace alone would not do.
    assert!(request.len() > 2 * 30 * ARRIVAL_BYTES_PER_S);
    for part in request.chunks(ARRIVAL_BYTES_PER_S) {
        client.send_raw(part).await;
        sleep(SOON).await;
    }
    assert!(client.receive_raw().await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_throttled_connection_starts_no_request_until_its_time_is_over() {
    let opened = ready().await;
    let (mut near, far) = tokio::io::duplex(1 << 16);
    let broker = opened.broker.clone();
    let (input, output) = tokio::io::split(far);
    let mut connection = Connection::new(broker, input, output, "test");
    let throttle = Duration::from_secs(10);
    let replies = MemoryBudget::new(1 << 20).account("/test");
    let reply = Reply { pieces: vec![Bytes::from_static(b"first")], throttle, memory: None };
    connection.answer(Some((reply, replies.take(5))));
    let request = frame(&ApiVersionsRequest::default(), 0, 5);
    tokio::io::AsyncWriteExt::write_all(&mut near, &request).await.unwrap();
    let read = async {
        let mut first = [0; 5];
        // It is answered at once, and only the next request waits.
        let reading = tokio::io::AsyncReadExt::read_exact(&mut near, &mut first);
        timeout(SOON, reading).await.unwrap().unwrap();
        let begun = Instant::now();
        tokio::io::AsyncReadExt::read_exact(&mut near, &mut first).await.unwrap();
        let waited = begun.elapsed();
        assert!(waited >= throttle.saturating_sub(SOON) && waited <= throttle + SOON, "{waited:?}");
        // A client that goes while it is throttled is given up as well.
        drop(near);
    };
    let (ended, ()) = futures::join!(connection.run(), read);
    ended.unwrap();
}
