//! Too much at once: more connections than file descriptors, more names than topics, everybody
//! asking for everything.

use std::time::Duration;

use futures::future::join_all;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{CreateTopicsRequest, MetadataRequest, MetadataResponse};
use kafka_protocol::records::Compression;
use strandline_tests::client::{Client, ClientError, topic};
use strandline_tests::cluster::{Cluster, Plan};
use strandline_tests::proxy::Link;
use strandline_tests::records::batch;
use strandline_tests::surroundings::now_ms;
use strandline_tests::workload::{Workload, create_topic};
use tokio::net::TcpStream;
use tokio::time::sleep;

const MIB: u64 = 1 << 20;

/// What a broker may take beyond what it took before.
const MEMORY: u64 = 600 * MIB;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_connections_than_descriptors_leave_the_broker_its_own() {
    let mut cluster = Cluster::start(Plan::new(1).proxied().descriptors(200)).await;
    create_topic(&cluster.addresses(), "few", 1).await;
    let mut established = cluster.client(0).await;
    established.set_timeout(Duration::from_mins(1));
    let mut produce = async |what: &str| {
        let record = batch(&["few"], now_ms(), None, Compression::None);
        established.produce("few", 0, record).await.unwrap_or_else(|e| panic!("{what}: {e:?}"));
    };
    produce("before the crowd").await;
    let mut crowd = Vec::new();
    for _ in 0..400 {
        crowd.push(TcpStream::connect(cluster.address(0)).await.expect("the kernel takes connections"));
    }
    while cluster.metric(0, "strandline_connections_refused_total", "").await < 200.0 {
        sleep(Duration::from_millis(50)).await;
    }
    // Every connection to the store and to etcd has to be made anew, while the crowd is there.
    cluster.link_to_s3(0, Link::Down);
    cluster.link_to_etcd(0, Link::Down);
    sleep(Duration::from_millis(300)).await;
    cluster.link_to_s3(0, Link::Up);
    cluster.link_to_etcd(0, Link::Up);
    produce("in the crowd").await;
    assert!(cluster.broker(0).is_running());
    drop(crowd);
    cluster.wait_ready(0).await;
    let mut newcomer = loop {
        // Until the broker has noticed that the crowd is gone.
        let mut client = cluster.client(0).await;
        if client.metadata(&["few"]).await.is_ok() {
            break client;
        }
        sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(newcomer.list_offset("few", 0, -1).await.expect("it is served"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_at_the_port_of_the_metrics_leaves_the_broker_its_descriptors() {
    let cluster = Cluster::start(Plan::new(1).proxied().descriptors(120)).await;
    create_topic(&cluster.addresses(), "scraped", 1).await;
    // More than the broker has descriptors for, no more than it serves and the kernel keeps
    // waiting.
    let mut crowd = Vec::new();
    for _ in 0..140 {
        crowd.push(TcpStream::connect(cluster.http_address(0)).await.expect("the kernel takes connections"));
    }
    // Every connection to the store and to etcd has to be made anew, and one for a client.
    cluster.link_to_s3(0, Link::Down);
    cluster.link_to_etcd(0, Link::Down);
    sleep(Duration::from_millis(300)).await;
    cluster.link_to_s3(0, Link::Up);
    cluster.link_to_etcd(0, Link::Up);
    let mut client = cluster.client(0).await;
    client.set_timeout(Duration::from_mins(1));
    let record = batch(&["beside"], now_ms(), None, Compression::None);
    client.produce("scraped", 0, record).await.expect("it is written beside the crowd");
    drop(crowd);
    assert_eq!(cluster.page(0, "/readyz").await.0, 200);
}

async fn create_many(client: &mut Client, count: usize) {
    let named = |i| {
        CreatableTopic::default()
            .with_name(topic(&format!("storm-{i}")))
            .with_num_partitions(4)
            .with_replication_factor(-1)
    };
    let request =
        CreateTopicsRequest::default().with_topics((0..count).map(named).collect()).with_timeout_ms(60_000);
    let response = client.call(&request, 5).await.expect("topics are created");
    assert!(response.topics.iter().all(|t| t.error_code == 0), "{:?}", response.topics.first());
}

/// Asks for all topics until a broker answers.
async fn everything(address: &str) -> MetadataResponse {
    loop {
        let asked = async {
            let mut client = Client::connect(address).await?;
            client.set_timeout(Duration::from_mins(1));
            client.call(&MetadataRequest::default().with_topics(None), 12).await
        };
        match asked.await {
            Ok(response) => return response,
            // It is not up yet.
            Err(ClientError::Io(_)) => sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("metadata of everything: {error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_metadata_requests_after_a_restart_is_answered() {
    const TOPICS: usize = 500;
    let mut cluster = Cluster::start(Plan::new(2)).await;
    let mut client = cluster.client(0).await;
    client.set_timeout(Duration::from_mins(1));
    create_many(&mut client, TOPICS).await;
    let workload = Workload::start(&cluster, "beside", 4).await;
    workload.progress(200).await;
    cluster.kill9(0);
    cluster.restart(0);
    // All clients of the broker that died come at once, and begin with the same question.
    let address = cluster.address(0);
    let answers = join_all((0..200).map(|_| everything(&address))).await;
    for answer in &answers {
        assert!(answer.topics.len() > TOPICS, "{} topics", answer.topics.len());
        assert!(answer.topics.iter().all(|t| t.error_code == 0 && !t.partitions.is_empty()));
    }
    let resident = cluster.broker(0).resident_bytes();
    assert!(resident < MEMORY, "{} MiB", resident / MIB);
    workload.finish(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_names_that_nobody_has_are_answered_and_create_few() {
    const NAMES: usize = 100_000;
    let mut cluster = Cluster::start(Plan::new(1)).await;
    let named = |i| MetadataRequestTopic::default().with_name(Some(topic(&format!("nobody-{i}"))));
    let request = MetadataRequest::default().with_topics(Some((0..NAMES).map(named).collect()));
    let mut client = cluster.client(0).await;
    client.set_timeout(Duration::from_mins(2));
    let known = async |client: &mut Client, create: bool| {
        let request = request.clone().with_allow_auto_topic_creation(create);
        let answer = client.call(&request, 9).await.expect("it is answered");
        assert_eq!(answer.topics.len(), NAMES, "each name has its answer");
        answer.topics.iter().filter(|t| t.error_code == 0).count()
    };
    assert_eq!(known(&mut client, false).await, 0);
    let first = known(&mut client, true).await;
    assert!((1..=500).contains(&first), "one question created {first} topics");
    let second = known(&mut client, true).await;
    assert!(second > first, "who asks again gets more: {second} after {first}");
    let resident = cluster.broker(0).resident_bytes();
    assert!(resident < MEMORY, "{} MiB", resident / MIB);
}
