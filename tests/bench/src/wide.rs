//! What clients pay that look at very many topics or partitions at once.

use std::time::Instant;

use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::{CreateTopicsRequest, FetchResponse, MetadataRequest};
use strandline_tests::client::{Client, fetch_request, topic};

use crate::report::{Report, percentile};
use crate::stack::Stack;

const TOPICS: usize = 10_000;
const TOPICS_PER_REQUEST: usize = 500;
const PARTITIONS: i32 = 10_000;
const ROUNDS: usize = 50;
/// The first version with sessions (KIP-227) is 7; 12 is the last one with names.
const FETCH_VERSION: i16 = 12;

/// Metadata of ten thousand topics, and a fetch session of ten thousand partitions.
pub async fn figures(stack: &mut Stack, report: &mut Report) {
    let (broker, _) = stack.broker(1, "wide", &[]).await;
    let mut client = Client::connect(&broker.address).await.expect("a connection");
    metadata(&mut client, report).await;
    sessions(&mut client, report).await;
}

async fn metadata(client: &mut Client, report: &mut Report) {
    let names: Vec<String> = (0..TOPICS).map(|number| format!("topic-{number:05}")).collect();
    for names in names.chunks(TOPICS_PER_REQUEST) {
        let wanted = |name: &String| {
            CreatableTopic::default()
                .with_name(topic(name))
                .with_num_partitions(1)
                .with_replication_factor(-1)
        };
        let request = CreateTopicsRequest::default()
            .with_topics(names.iter().map(wanted).collect())
            .with_timeout_ms(60_000);
        let answer = client.call(&request, 7).await.expect("an answer");
        assert!(answer.topics.iter().all(|topic| topic.error_code == 0), "topics are created");
    }
    let mut samples = Vec::new();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let request = MetadataRequest::default().with_topics(None);
        let answer = client.call(&request, 12).await.expect("metadata");
        samples.push(begun.elapsed().as_secs_f64() * 1000.0);
        assert_eq!(answer.topics.len(), TOPICS);
    }
    report.figure("all-topics Metadata, 10,000 topics: median", percentile(&mut samples, 0.5), "ms");
    report.figure("all-topics Metadata, 10,000 topics: p99", percentile(&mut samples, 0.99), "ms");
}

async fn sessions(client: &mut Client, report: &mut Report) {
    client.create_topic("wide", PARTITIONS, &[]).await.expect("a topic");
    let wanted: Vec<(i32, i64)> = (0..PARTITIONS).map(|partition| (partition, 0)).collect();
    let begun = Instant::now();
    let whole = fetch_request("wide", &wanted, 0, 1 << 20).with_session_epoch(0);
    let answer: FetchResponse = client.call(&whole, FETCH_VERSION).await.expect("a session");
    report.figure("fetch session, 10,000 partitions: to begin", begun.elapsed().as_secs_f64() * 1000.0, "ms");
    assert!(answer.error_code == 0 && answer.session_id > 0, "there is a session");
    let mut samples = Vec::new();
    for round in 0..ROUNDS {
        let mut next = fetch_request("wide", &[], 0, 1 << 20)
            .with_session_id(answer.session_id)
            .with_session_epoch(round as i32 + 1);
        next.topics.clear();
        let begun = Instant::now();
        let answer: FetchResponse = client.call(&next, FETCH_VERSION).await.expect("an answer");
        samples.push(begun.elapsed().as_secs_f64() * 1000.0);
        assert_eq!(answer.error_code, 0, "the session goes on");
    }
    report.figure("fetch session, 10,000 partitions: next fetch", percentile(&mut samples, 0.5), "ms");
}
