//! Clients that talk nonsense, take their time, come in crowds, or never listen: one broker, which
//! must go on serving others with bounded memory.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use flate2::Compression as Level;
use flate2::write::GzEncoder;
use futures::future::join_all;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    ApiVersionsRequest, DeleteTopicsRequest, DescribeClusterRequest, DescribeConfigsRequest,
    InitProducerIdRequest, ListOffsetsRequest, MetadataRequest, ProduceRequest,
};
use kafka_protocol::records::Compression;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use strandline_tests::client::{Client, ClientError, fetch_request, frame, produce_request, text, topic};
use strandline_tests::cluster::{Cluster, Plan};
use strandline_tests::records::{batch, seal};
use strandline_tests::surroundings::now_ms;
use strandline_tests::workload::create_topic;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::sleep;

const MIB: u64 = 1 << 20;

/// What a broker may take beyond what it took before, whatever clients do to it.
const MEMORY: u64 = 600 * MIB;

/// Sends bytes on a connection of their own and waits a moment for what comes of it: an answer, an
/// end, or nothing.
async fn send(address: &str, bytes: &[u8]) -> Option<Bytes> {
    let mut client = Client::connect(address).await.expect("the broker takes connections");
    client.set_timeout(Duration::from_millis(200));
    // The broker may have closed the connection in the middle of it.
    if client.send_raw(bytes).await.is_err() {
        return None;
    }
    client.until_closed().await.ok()
}

/// Fails unless the broker serves, and has not taken too much memory.
async fn assert_well(cluster: &mut Cluster, before: u64, what: &str) {
    assert!(cluster.broker(0).is_running(), "the broker ended after {what}");
    let mut client = cluster.client(0).await;
    client.set_timeout(Duration::from_secs(30));
    let metadata = client.metadata(&["well"]).await;
    assert!(metadata.is_ok(), "after {what}: {metadata:?}");
    let record = batch(&["well"], now_ms(), None, Compression::None);
    let produced = client.produce("well", 0, record).await;
    assert!(produced.is_ok(), "after {what}: {produced:?}");
    let now = cluster.broker(0).resident_bytes();
    assert!(now < before + MEMORY, "{} MiB after {what}, {} before", now / MIB, before / MIB);
}

async fn one_broker(plan: Plan) -> (Cluster, u64) {
    let mut cluster = Cluster::start(plan).await;
    create_topic(&cluster.addresses(), "well", 1).await;
    let before = cluster.broker(0).resident_bytes();
    (cluster, before)
}

fn framed(body: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i32(body.len() as i32);
    out.put_slice(body);
    out.freeze()
}

/// Sound requests of many kinds.
fn requests() -> Vec<Bytes> {
    let record = batch(&["r"], now_ms(), None, Compression::None);
    let named = MetadataRequestTopic::default().with_name(Some(topic("well")));
    let metadata =
        MetadataRequest::default().with_topics(Some(vec![named])).with_allow_auto_topic_creation(false);
    let versions = ApiVersionsRequest::default()
        .with_client_software_name(text("x"))
        .with_client_software_version(text("1"));
    vec![
        frame(&MetadataRequest::default(), 0, 1, "fuzz"),
        frame(&metadata, 9, 1, "fuzz"),
        frame(&metadata, 12, 1, "fuzz"),
        frame(&versions, 3, 1, "fuzz"),
        frame(&produce_request("well", &[(0, record.clone())], -1), 3, 1, "fuzz"),
        frame(&produce_request("well", &[(0, record)], -1), 9, 1, "fuzz"),
        frame(&fetch_request("well", &[(0, 0)], 0, 100), 4, 1, "fuzz"),
        frame(&fetch_request("well", &[(0, 0)], 0, 100), 12, 1, "fuzz"),
        frame(&ListOffsetsRequest::default(), 7, 1, "fuzz"),
        frame(&DeleteTopicsRequest::default(), 4, 1, "fuzz"),
        frame(&DescribeConfigsRequest::default(), 4, 1, "fuzz"),
        frame(&DescribeClusterRequest::default(), 1, 1, "fuzz"),
        frame(&InitProducerIdRequest::default().with_transactional_id(None), 4, 1, "fuzz"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_closes_its_own_connection_and_nothing_else() {
    let (mut cluster, before) = one_broker(Plan::new(1)).await;
    let address = cluster.address(0);
    let mut rng = StdRng::seed_from_u64(3);
    let mut bystander = cluster.client(0).await;
    for length in [-1, 0, 1, 7, i32::MIN, i32::MAX, 104_857_601] {
        let mut bytes = Vec::from(i32::to_be_bytes(length));
        bytes.extend([0; 40]);
        assert_eq!(send(&address, &bytes).await, Some(Bytes::new()), "a frame of {length} bytes ends it");
    }
    for (key, version) in [(999_i16, 0_i16), (-1, 0), (0, 99), (3, -1), (1, 3), (11, 5), (i16::MAX, i16::MAX)]
    {
        let body =
            [&key.to_be_bytes()[..], &version.to_be_bytes(), &7_i32.to_be_bytes(), &[0xff, 0xff]].concat();
        let what = format!("api key {key} version {version}");
        assert_eq!(send(&address, &framed(&body)).await, Some(Bytes::new()), "{what} ends it");
    }
    assert_well(&mut cluster, before, "bad lengths and unknown requests").await;
    let noise = (0..200).map(|_| {
        let mut bytes = vec![0; rng.random_range(1..3000)];
        rng.fill_bytes(&mut bytes);
        bytes
    });
    let noise: Vec<Vec<u8>> = noise.collect();
    for chunk in noise.chunks(50) {
        join_all(chunk.iter().map(|bytes| send(&address, bytes))).await;
        // The same as the body of a sound frame.
        let framed: Vec<Bytes> = chunk.iter().map(|bytes| framed(bytes)).collect();
        join_all(framed.iter().map(|bytes| send(&address, bytes))).await;
    }
    assert_well(&mut cluster, before, "random bytes").await;
    for request in requests() {
        let cuts: Vec<Bytes> = (0..request.len() - 4).map(|end| framed(&request[4..4 + end])).collect();
        for chunk in cuts.chunks(50) {
            join_all(chunk.iter().map(|bytes| send(&address, bytes))).await;
        }
    }
    assert_well(&mut cluster, before, "requests cut short").await;
    for request in requests() {
        let damaged: Vec<Vec<u8>> = (0..100)
            .map(|_| {
                let mut damaged = request.to_vec();
                for _ in 0..rng.random_range(1..4) {
                    let at = rng.random_range(12..damaged.len());
                    damaged[at] = [0, 1, 0x7f, 0x80, 0xff, rng.random()][rng.random_range(0..6)];
                }
                damaged
            })
            .collect();
        for chunk in damaged.chunks(50) {
            join_all(chunk.iter().map(|bytes| send(&address, bytes))).await;
        }
    }
    assert_well(&mut cluster, before, "damaged requests").await;
    bystander.metadata(&["well"]).await.expect("a connection that did nothing wrong is still there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_count_that_cannot_be_true_takes_no_memory() {
    let (mut cluster, before) = one_broker(Plan::new(1)).await;
    let address = cluster.address(0);
    let header = |key: i16, version: i16, flexible: bool| {
        let mut out = Vec::new();
        out.put_i16(key);
        out.put_i16(version);
        out.put_i32(1);
        out.put_i16(-1);
        if flexible {
            out.put_u8(0);
        }
        out
    };
    let huge = [i32::MAX, i32::MAX - 1, 1 << 30, 1 << 24, 100_000];
    for count in huge {
        let mut compact = Vec::new();
        let mut left = u64::from(count.cast_unsigned()) + 1;
        while left >= 0x80 {
            compact.put_u8(left as u8 | 0x80);
            left >>= 7;
        }
        compact.put_u8(left as u8);
        // In each case the first array of the request says that it has so many elements.
        let cases: Vec<(&str, Vec<u8>, Vec<u8>)> = vec![
            ("Metadata 0", header(3, 0, false), count.to_be_bytes().to_vec()),
            ("Metadata 12", header(3, 12, true), compact.clone()),
            (
                "Produce 3",
                header(0, 3, false),
                [&[0xff, 0xff, 0, 1, 0, 0, 0, 9][..], &count.to_be_bytes()].concat(),
            ),
            ("Produce 9", header(0, 9, true), [&[0, 0, 1, 0, 0, 0, 9][..], &compact].concat()),
            ("Fetch 4", header(1, 4, false), [&[0xff; 4][..], &[0; 13], &count.to_be_bytes()].concat()),
            ("Fetch 12", header(1, 12, true), [&[0xff; 4][..], &[0; 21], &compact].concat()),
            ("ListOffsets 1", header(2, 1, false), [&[0xff; 4][..], &count.to_be_bytes()].concat()),
            ("ListOffsets 7", header(2, 7, true), [&[0xff; 4][..], &[0], &compact].concat()),
            ("CreateTopics 2", header(19, 2, false), count.to_be_bytes().to_vec()),
            ("CreateTopics 5", header(19, 5, true), compact.clone()),
            ("DeleteTopics 1", header(20, 1, false), count.to_be_bytes().to_vec()),
            ("DeleteTopics 6", header(20, 6, true), compact.clone()),
            ("DescribeConfigs 1", header(32, 1, false), count.to_be_bytes().to_vec()),
            ("DescribeConfigs 4", header(32, 4, true), compact.clone()),
            ("tags of a header", header(3, 12, false), compact.clone()),
        ];
        for (what, mut body, array) in cases {
            body.extend(array);
            body.extend([0; 16]);
            send(&address, &framed(&body)).await;
            assert_well(&mut cluster, before, &format!("{what} with {count} elements")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_slow_and_idle_clients_takes_little_and_stops_nobody() {
    let plan = Plan::new(1).flag("max-connections", 1500).flag("request-memory-bytes", 32 * MIB);
    let (mut cluster, before) = one_broker(plan).await;
    let address = cluster.address(0);
    let connect = |count: usize| {
        let address = address.clone();
        async move {
            let mut open = Vec::new();
            for _ in 0..count {
                open.push(TcpStream::connect(&address).await.expect("the kernel takes connections"));
            }
            open
        }
    };
    let idle = connect(600).await;
    // These promise a large request each, and send almost nothing of it.
    let mut slow = connect(800).await;
    for (i, socket) in slow.iter_mut().enumerate() {
        let promised = 1_000_000 + i as i32;
        socket.write_all(&promised.to_be_bytes()).await.expect("it is sent");
    }
    for _ in 0..5 {
        for socket in &mut slow {
            socket.write_all(&[0]).await.expect("it is sent");
        }
        assert_well(&mut cluster, before, "slow clients").await;
        sleep(Duration::from_millis(50)).await;
    }
    // More than there may be.
    let mut established = cluster.client(0).await;
    let more = connect(300).await;
    sleep(Duration::from_millis(300)).await;
    established.metadata(&["well"]).await.expect("who is connected is served");
    assert!(cluster.metric(0, "strandline_connections_refused_total", "").await >= 100.0);
    drop((idle, slow, more));
    assert_well(&mut cluster, before, "crowds").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_large_requests_at_once_than_memory_holds_are_all_answered() {
    let plan = Plan::new(1).flag("request-memory-bytes", 4 * MIB);
    let (mut cluster, before) = one_broker(plan).await;
    create_topic(&cluster.addresses(), "large", 4).await;
    // Each of them has a part of its request in memory, and then needs more than is left.
    let mut clients = Vec::new();
    for i in 0..20 {
        let record = batch(&[vec![i as u8; 900_000]], now_ms(), None, Compression::None);
        let bytes = frame(&produce_request("large", &[(i % 4, record)], -1), 9, 1, "large");
        let mut client = cluster.client(0).await;
        // What the broker does not read now waits in the kernel.
        client.send_raw(&bytes[..600_000]).await.expect("it is sent");
        clients.push((client, bytes));
    }
    sleep(Duration::from_millis(500)).await;
    let asked = join_all(clients.into_iter().map(|(mut client, bytes)| async move {
        client.send_raw(&bytes[600_000..]).await?;
        client.receive::<ProduceRequest>(1, 9).await
    }))
    .await;
    let failed: Vec<_> = asked.iter().filter(|outcome| outcome.is_err()).collect();
    assert!(failed.is_empty(), "{} of {}: {:?}", failed.len(), asked.len(), failed[0]);
    assert_well(&mut cluster, before, "large requests").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads_takes_bounded_memory() {
    let (mut cluster, before) = one_broker(Plan::new(1)).await;
    create_topic(&cluster.addresses(), "much", 1).await;
    let mut writer = cluster.client(0).await;
    for i in 0..40 {
        let value = vec![i; 900_000];
        writer
            .produce("much", 0, batch(&[value], now_ms(), None, Compression::None))
            .await
            .expect("it is taken");
    }
    let mut deaf = Vec::new();
    for _ in 0..20 {
        let mut client = cluster.client(0).await;
        client.set_timeout(Duration::from_millis(500));
        for _ in 0..200 {
            let request = fetch_request("much", &[(0, 0)], 0, 40 << 20);
            if client.send(&request, 11).await.is_err() {
                break;
            }
        }
        deaf.push(client);
    }
    sleep(Duration::from_secs(1)).await;
    assert_well(&mut cluster, before, "clients that never read").await;
    drop(deaf);
    assert_well(&mut cluster, before, "they went").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decompression_bomb_is_refused_or_stays_packed() {
    let (mut cluster, before) = one_broker(Plan::new(1)).await;
    let mut client = cluster.client(0).await;
    client.create_topic("repacked", 1, &[("compression.type", "lz4")]).await.expect("it is created");
    client.create_topic("packed", 1, &[]).await.expect("it is created");
    let mut bomb = batch(&["x"], now_ms(), None, Compression::Gzip)[..61].to_vec();
    let mut encoder = GzEncoder::new(&mut bomb, Level::fast());
    let zeros = vec![0; MIB as usize];
    for _ in 0..200 {
        std::io::Write::write_all(&mut encoder, &zeros).expect("it is packed");
    }
    encoder.finish().expect("it is packed");
    let length = (bomb.len() - 12) as i32;
    bomb[8..12].copy_from_slice(&length.to_be_bytes());
    let bomb = seal(&bomb);
    for _ in 0..5 {
        match client.produce("repacked", 0, bomb.clone()).await {
            Err(ClientError::Kafka(ResponseError::CorruptMessage | ResponseError::InvalidRecord)) => {}
            other => panic!("a bomb that would have to be unpacked: {other:?}"),
        }
        // Nobody unpacks it here, until somebody looks for a time.
        if client.produce("packed", 0, bomb.clone()).await.is_ok() {
            let found = client.list_offset("packed", 0, 5).await;
            assert!(matches!(found, Ok(_) | Err(ClientError::Kafka(_))), "{found:?}");
        }
        assert_well(&mut cluster, before, "a bomb").await;
    }
}
