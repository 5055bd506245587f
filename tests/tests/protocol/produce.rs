//! Produce: what is taken, what is refused, what is seen again.

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{InitProducerIdRequest, ProduceRequest, ProducerId};
use kafka_protocol::records::{Compression, RecordBatchDecoder};
use strandline_tests::checker::read_partition;
use strandline_tests::client::produce_request;
use strandline_tests::cluster::Cluster;
use strandline_tests::records::{batch, seal, values};
use strandline_tests::surroundings::now_ms;
use strandline_tests::workload::create_topic;

use crate::{error, produce, refused, shared};

const NONE: Compression = Compression::None;

fn one(text: &str) -> Bytes {
    batch(&[text], now_ms(), None, NONE)
}

/// A batch with these bytes at this place, and the right CRC again.
fn with(batch: &[u8], at: usize, bytes: &[u8]) -> Bytes {
    let mut changed = batch.to_vec();
    changed[at..at + bytes.len()].copy_from_slice(bytes);
    seal(&changed)
}

/// Every broker's idea of where the partition ends.
async fn ends(cluster: &Cluster, topic: &str, partition: i32) -> Vec<i64> {
    let mut ends = Vec::new();
    for i in 0..cluster.len() {
        ends.push(cluster.client(i).await.list_offset(topic, partition, -1).await.expect("an offset"));
    }
    ends
}

#[tokio::test]
async fn every_codec_comes_back_as_it_was_from_every_broker() {
    let cluster = shared().await;
    create_topic(&cluster.addresses(), "codecs", 1).await;
    let codecs = [NONE, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];
    let mut sent = Vec::new();
    for (i, codec) in codecs.into_iter().enumerate() {
        let texts: Vec<String> = (0..50).map(|j| format!("{codec:?} {j} {}", "y".repeat(j * 7))).collect();
        let bytes = batch(&texts, now_ms(), None, codec);
        let offset =
            cluster.client(i % 3).await.produce("codecs", 0, bytes.clone()).await.expect("it is taken");
        assert_eq!(offset, i as i64 * 50);
        sent.push((offset, bytes));
    }
    for address in cluster.addresses() {
        let contents = read_partition(&address, "codecs", 0).await;
        assert_eq!(contents.batches.len(), sent.len());
        for ((offset, got), (expected, bytes)) in contents.batches.iter().zip(&sent) {
            assert_eq!(offset, expected);
            // Base offset and leader epoch are the broker's, everything else is the producer's.
            assert_eq!((&got[8..12], &got[16..]), (&bytes[8..12], &bytes[16..]), "{address}");
        }
    }
}

#[tokio::test]
async fn a_bad_batch_is_refused_by_its_code_and_nothing_is_written() {
    let cluster = shared().await;
    let mut client = cluster.client(0).await;
    client
        .create_topic(
            "bad",
            2,
            &[("max.message.bytes", "5000"), ("message.timestamp.before.max.ms", "60000")],
        )
        .await
        .expect("the topic is created");
    let good = batch(&["a", "b", "c"], now_ms(), None, NONE);
    let attributes = |bits: i16| with(&good, 21, &bits.to_be_bytes());
    let producer = [&9_i64.to_be_bytes()[..], &0_i16.to_be_bytes(), &0_i32.to_be_bytes()].concat();
    let transactional = with(&attributes(0x10), 43, &producer);
    let mut flipped = good.to_vec();
    *flipped.last_mut().expect("it is not empty") ^= 1;
    let too_large = batch(&["x".repeat(6000)], now_ms(), None, NONE);
    let future = batch(&["a"], now_ms() + 7_200_000, None, NONE);
    let past = batch(&["a"], now_ms() - 120_000, None, NONE);
    let cut_record = with(&good, 61, &[100]);
    let cases: Vec<(&str, Bytes, ResponseError)> = vec![
        ("a flipped byte", flipped.into(), ResponseError::CorruptMessage),
        ("more records than there are", with(&good, 57, &4_i32.to_be_bytes()), ResponseError::InvalidRecord),
        ("fewer records than there are", with(&good, 57, &2_i32.to_be_bytes()), ResponseError::InvalidRecord),
        ("two billion records", with(&good, 57, &i32::MAX.to_be_bytes()), ResponseError::InvalidRecord),
        ("no records", with(&good, 57, &0_i32.to_be_bytes()), ResponseError::InvalidRecord),
        ("a negative count", with(&good, 57, &(-1_i32).to_be_bytes()), ResponseError::InvalidRecord),
        ("another base offset", with(&good, 0, &7_i64.to_be_bytes()), ResponseError::InvalidRecord),
        ("another last offset", with(&good, 23, &7_i32.to_be_bytes()), ResponseError::InvalidRecord),
        ("a record longer than the batch", cut_record, ResponseError::InvalidRecord),
        ("magic 0", with(&good, 16, &[0]), ResponseError::InvalidRecord),
        ("magic 1", with(&good, 16, &[1]), ResponseError::InvalidRecord),
        ("magic 3", with(&good, 16, &[3]), ResponseError::CorruptMessage),
        ("codec 5", attributes(5), ResponseError::UnsupportedCompressionType),
        ("codec 7", attributes(7), ResponseError::UnsupportedCompressionType),
        ("a control batch", attributes(0x20), ResponseError::InvalidRecord),
        ("a transactional batch", transactional, ResponseError::TransactionalIdAuthorizationFailed),
        ("a transactional batch of nobody", attributes(0x10), ResponseError::InvalidRecord),
        ("a batch too large", too_large, ResponseError::MessageTooLarge),
        ("a time in the future", future, ResponseError::InvalidTimestamp),
        ("a time in the past", past, ResponseError::InvalidTimestamp),
        ("half a batch", good.slice(..good.len() / 2), ResponseError::InvalidRecord),
        ("half a header", good.slice(..30), ResponseError::InvalidRecord),
        ("a negative length", with(&good, 8, &(-5_i32).to_be_bytes()), ResponseError::CorruptMessage),
        ("a huge length", with(&good, 8, &i32::MAX.to_be_bytes()), ResponseError::InvalidRecord),
        ("two batches", [good.clone(), good.clone()].concat().into(), ResponseError::InvalidRecord),
        ("nothing", Bytes::new(), ResponseError::InvalidRecord),
        ("a producer without an epoch", with(&good, 43, &9_i64.to_be_bytes()), ResponseError::InvalidRecord),
    ];
    for (what, bad, expected) in cases {
        // A good batch beside it is written all the same.
        let before = ends(&cluster, "bad", 0).await[0];
        let request = produce_request("bad", &[(0, good.clone()), (1, bad)], -1);
        let parts = produce(&mut client, &request).await;
        assert_eq!(parts[0].error_code, 0, "{what}: the partition beside it");
        assert_eq!(parts[0].base_offset, before);
        assert_eq!(error(parts[1].error_code), Some(expected), "{what}");
        assert_eq!(parts[1].base_offset, -1, "{what}");
        let message = parts[1].error_message.as_ref().map_or("", |m| m.as_str());
        assert!(!message.is_empty(), "{what}: there is a message");
        assert_eq!(ends(&cluster, "bad", 1).await, [0, 0, 0], "{what}: nothing is written");
    }
    let twice = produce_request("bad", &[(1, one("a")), (1, one("b"))], -1);
    let parts = produce(&mut client, &twice).await;
    assert!(parts.iter().any(|p| error(p.error_code) == Some(ResponseError::InvalidRequest)), "{parts:?}");
}

#[tokio::test]
async fn what_does_not_exist_is_refused() {
    let cluster = shared().await;
    create_topic(&cluster.addresses(), "exists", 2).await;
    let mut client = cluster.client(0).await;
    assert_eq!(refused(client.produce("exists", 2, one("a")).await), ResponseError::UnknownTopicOrPartition);
    assert_eq!(refused(client.produce("exists", -1, one("a")).await), ResponseError::UnknownTopicOrPartition);
    let invalid = refused(client.produce("not a name", 0, one("a")).await);
    let codes = [ResponseError::UnknownTopicOrPartition, ResponseError::InvalidTopicException];
    assert!(codes.contains(&invalid), "{invalid:?}");
    let mut by_id = produce_request("", &[(0, one("a"))], -1);
    by_id.topic_data[0].topic_id = uuid::Uuid::from_u128(77);
    let response = client.call::<ProduceRequest>(&by_id, 13).await.expect("an answer");
    let code = response.responses[0].partition_responses[0].error_code;
    assert_eq!(error(code), Some(ResponseError::UnknownTopicId));
}

#[tokio::test]
async fn every_kind_of_ack() {
    let cluster = shared().await;
    create_topic(&cluster.addresses(), "acks", 1).await;
    let mut client = cluster.client(0).await;
    for acks in [1, -1] {
        let parts = produce(&mut client, &produce_request("acks", &[(0, one("a"))], acks)).await;
        assert_eq!(parts[0].error_code, 0);
    }
    for acks in [2, -2, 7] {
        let parts = produce(&mut client, &produce_request("acks", &[(0, one("a"))], acks)).await;
        assert_eq!(error(parts[0].error_code), Some(ResponseError::InvalidRequiredAcks));
    }
    assert_eq!(ends(&cluster, "acks", 0).await, [2, 2, 2]);
    // No answer: the next one on the connection is the answer to the next request.
    client.send(&produce_request("acks", &[(0, one("quiet"))], 0), 9).await.expect("it is sent");
    let parts = produce(&mut client, &produce_request("acks", &[(0, one("loud"))], -1)).await;
    assert_eq!((parts[0].error_code, parts[0].base_offset), (0, 3));
    let contents = read_partition(&cluster.address(1), "acks", 0).await;
    let texts: Vec<Bytes> =
        contents.batches.into_iter().flat_map(|(_, b)| values(b)).map(|(_, value)| value).collect();
    assert_eq!(texts, ["a", "a", "quiet", "loud"]);
}

#[tokio::test]
async fn pipelined_produces_keep_their_order() {
    let cluster = shared().await;
    create_topic(&cluster.addresses(), "pipeline", 3).await;
    let mut client = cluster.client(1).await;
    let mut ids = Vec::new();
    for i in 0..150 {
        let request = produce_request("pipeline", &[(i % 3, one(&format!("{i}")))], -1);
        ids.push(client.send(&request, 9).await.expect("it is sent"));
    }
    for (i, id) in ids.into_iter().enumerate() {
        let response = client.receive::<ProduceRequest>(id, 9).await.expect("answers are in order");
        let part = &response.responses[0].partition_responses[0];
        assert_eq!((part.error_code, part.base_offset), (0, i as i64 / 3));
    }
    for partition in 0..3 {
        let contents = read_partition(&cluster.address(2), "pipeline", partition).await;
        let texts = contents.batches.into_iter().flat_map(|(_, b)| values(b)).map(|(_, value)| value);
        let expected: Vec<String> = (0..50).map(|i| format!("{}", i * 3 + partition)).collect();
        assert_eq!(texts.collect::<Vec<_>>(), expected);
    }
}

#[tokio::test]
async fn a_batch_that_was_seen_gets_its_first_offset_on_every_broker() {
    let cluster = shared().await;
    create_topic(&cluster.addresses(), "seen", 1).await;
    let mut clients = [cluster.client(0).await, cluster.client(1).await, cluster.client(2).await];
    let pid = clients[0].init_producer_id().await.expect("a producer id");
    let nth = |n: i32| batch(&[format!("{n} a"), format!("{n} b")], now_ms(), Some((pid, 0, n * 2)), NONE);
    let sent: Vec<Bytes> = (0..8).map(nth).collect();
    for (i, bytes) in sent.iter().enumerate() {
        for turn in 0..3 {
            let offset =
                clients[(i + turn) % 3].produce("seen", 0, bytes.clone()).await.expect("it is taken");
            assert_eq!(offset, i as i64 * 2, "batch {i}, time {turn}");
        }
    }
    // The last five are remembered, in any order.
    for i in [3, 7, 5, 4, 6] {
        let offset = clients[i % 3].produce("seen", 0, sent[i].clone()).await.expect("it was seen");
        assert_eq!(offset, i as i64 * 2);
    }
    for forgotten in &sent[..3] {
        let code = refused(clients[1].produce("seen", 0, forgotten.clone()).await);
        assert_eq!(code, ResponseError::OutOfOrderSequenceNumber);
    }
    assert_eq!(ends(&cluster, "seen", 0).await, [16, 16, 16]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_whose_epochs_have_run_out_goes_on_under_another_id() {
    let cluster = shared().await;
    create_topic(&cluster.addresses(), "exhausted", 1).await;
    let mut client = cluster.client(0).await;
    let old = client.init_producer_id().await.expect("it is given");
    let nth = |pid, epoch: i16, first| batch(&["x"], now_ms(), Some((pid, epoch, first)), NONE);
    assert_eq!(client.produce("exhausted", 0, nth(old, i16::MAX, 0)).await.expect("the last epoch"), 0);
    assert_eq!(client.produce("exhausted", 0, nth(old, i16::MAX, 1)).await.expect("it goes on"), 1);
    // There is none after it: a client begins anew (KIP-360), and says what it had.
    let request = InitProducerIdRequest::default()
        .with_transactional_id(None)
        .with_producer_id(ProducerId(old))
        .with_producer_epoch(i16::MAX);
    let given = client.call(&request, 4).await.expect("it is answered");
    assert_eq!((given.error_code, given.producer_epoch), (0, 0));
    assert_ne!(given.producer_id.0, old);
    assert_eq!(client.produce("exhausted", 0, nth(given.producer_id.0, 0, 0)).await.expect("the new id"), 2);
    // Nobody comes back under the old one: every other epoch of it is older.
    for epoch in [0, i16::MAX - 1] {
        let outcome = client.produce("exhausted", 0, nth(old, epoch, 0)).await;
        assert_eq!(refused(outcome), ResponseError::InvalidProducerEpoch, "epoch {epoch}");
    }
}

#[tokio::test]
async fn a_gap_a_late_start_and_an_old_epoch_are_refused() {
    let cluster = shared().await;
    create_topic(&cluster.addresses(), "gaps", 2).await;
    let (mut a, mut b) = (cluster.client(0).await, cluster.client(1).await);
    let pid = a.init_producer_id().await.expect("a producer id");
    let nth = |epoch: i16, first: i32| batch(&["x"], now_ms(), Some((pid, epoch, first)), NONE);
    assert_eq!(refused(a.produce("gaps", 0, nth(0, 5)).await), ResponseError::OutOfOrderSequenceNumber);
    assert_eq!(a.produce("gaps", 0, nth(0, 0)).await.expect("it begins"), 0);
    assert_eq!(refused(b.produce("gaps", 0, nth(0, 2)).await), ResponseError::OutOfOrderSequenceNumber);
    assert_eq!(b.produce("gaps", 0, nth(0, 1)).await.expect("it follows"), 1);
    // A new epoch starts at 0, on the partition that it writes to.
    assert_eq!(refused(a.produce("gaps", 0, nth(1, 2)).await), ResponseError::OutOfOrderSequenceNumber);
    assert_eq!(b.produce("gaps", 0, nth(1, 0)).await.expect("a new epoch begins"), 2);
    assert_eq!(refused(a.produce("gaps", 0, nth(0, 2)).await), ResponseError::InvalidProducerEpoch);
    assert_eq!(a.produce("gaps", 1, nth(1, 0)).await.expect("another partition"), 0);
    assert_eq!(ends(&cluster, "gaps", 0).await, [3, 3, 3]);
    let ids = [a.init_producer_id().await, b.init_producer_id().await, a.init_producer_id().await];
    let mut ids: Vec<i64> = ids.into_iter().map(|id| id.expect("a producer id")).collect();
    ids.push(pid);
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 4, "no id is given twice");
}

#[tokio::test]
async fn a_topic_may_set_times_and_codec() {
    let cluster = shared().await;
    let mut client = cluster.client(0).await;
    let configs = [("message.timestamp.type", "LogAppendTime"), ("compression.type", "zstd")];
    client.create_topic("rules", 1, &configs).await.expect("the topic is created");
    let texts: Vec<String> = (0..20).map(|i| format!("text {i}")).collect();
    let mut times = Vec::new();
    for codec in [NONE, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        // What the producer says of the time does not count, not even if it is impossible.
        let request = produce_request("rules", &[(0, batch(&texts, 5, None, codec))], -1);
        let before = now_ms();
        let part = produce(&mut client, &request).await.remove(0);
        assert_eq!(part.error_code, 0);
        assert!(part.log_append_time_ms >= before, "the append time is in the answer");
        times.push(part.log_append_time_ms);
    }
    let contents = read_partition(&cluster.address(2), "rules", 0).await;
    for (_, got) in contents.batches {
        assert_eq!(got[22] & 0x0f, 0x0c, "zstd, and the broker's time");
        // With this type, the time of every record is the batch's largest.
        let time = i64::from_be_bytes(got[35..43].try_into().expect("eight bytes"));
        assert!(times.contains(&time), "{time} is not among {times:?}");
        assert!(RecordBatchDecoder::decode(&mut got.clone()).is_ok(), "it decodes, so the CRC is right");
        let found: Vec<Bytes> = values(got).into_iter().map(|(_, value)| value).collect();
        assert_eq!(found, texts);
    }
}

#[tokio::test]
async fn one_request_may_write_to_thousands_of_partitions() {
    const PARTITIONS: i32 = 3_000;
    let cluster = shared().await;
    create_topic(&cluster.addresses(), "wide", PARTITIONS).await;
    let mut client = cluster.client(0).await;
    // All of them are in one record of the log.
    for round in 0..3 {
        let parts: Vec<(i32, Bytes)> = (0..PARTITIONS).map(|p| (p, one(&format!("{round} {p}")))).collect();
        let answers = produce(&mut client, &produce_request("wide", &parts, -1)).await;
        assert_eq!(answers.len(), PARTITIONS as usize);
        for answer in answers {
            assert_eq!((answer.error_code, answer.base_offset), (0, round), "partition {}", answer.index);
        }
    }
    for partition in [0, 1, 1499, 2998, 2999] {
        let contents = read_partition(&cluster.address(1), "wide", partition).await;
        let texts = contents.batches.into_iter().flat_map(|(_, b)| values(b)).map(|(_, value)| value);
        let expected: Vec<String> = (0..3).map(|round| format!("{round} {partition}")).collect();
        assert_eq!(texts.collect::<Vec<_>>(), expected);
    }
}
