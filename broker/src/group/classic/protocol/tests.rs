//! The bytes that classic consumers exchange.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{ClassicAssignment, Subscription, TopicPartitions, assignment, encode_assignment, subscription};

const TOPICS: &[u8] = b"\0\0\0\x02\0\x01a\0\x02bc";
const OWNED: &[u8] = b"\0\0\0\x01\0\x01a\0\0\0\x02\0\0\0\0\0\0\0\x03";

fn bytes(version: u8, parts: &[&[u8]]) -> Vec<u8> {
    [&[0, version][..]].iter().chain(parts).copied().flatten().copied().collect()
}

fn owned() -> Vec<TopicPartitions> {
    vec![TopicPartitions { topic: "a".to_owned(), partitions: vec![0, 3] }]
}

#[test]
fn subscriptions_of_every_version_are_read() {
    let mut expected = Subscription {
        version: 0,
        topics: vec!["a".to_owned(), "bc".to_owned()],
        user_data: Some(vec![7]),
        generation: -1,
        ..Subscription::default()
    };
    let data: &[u8] = b"\0\0\0\x01\x07";
    assert_eq!(subscription(&bytes(0, &[TOPICS, data])), Some(expected.clone()));
    expected.version = 1;
    expected.owned_partitions = owned();
    assert_eq!(subscription(&bytes(1, &[TOPICS, data, OWNED])), Some(expected.clone()));
    expected.version = 2;
    expected.generation = 5;
    assert_eq!(subscription(&bytes(2, &[TOPICS, data, OWNED, b"\0\0\0\x05"])), Some(expected.clone()));
    expected.version = 3;
    expected.rack_id = Some("r".to_owned());
    let third: [&[u8]; 5] = [TOPICS, data, OWNED, b"\0\0\0\x05", b"\0\x01r"];
    assert_eq!(subscription(&bytes(3, &third)), Some(expected.clone()));
    // Versions to come add at the end.
    expected.version = 9;
    assert_eq!(subscription(&bytes(9, &[&third[..], &[b"more"]].concat())), Some(expected));
    // As clients write nothing.
    let nothing =
        bytes(3, &[b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff"]);
    assert_eq!(
        subscription(&nothing),
        Some(Subscription { version: 3, generation: -1, ..Subscription::default() })
    );
}

#[test]
fn assignments_are_read_as_they_are_written() {
    let written = encode_assignment(7, &owned()).unwrap();
    assert_eq!(written, bytes(3, &[OWNED, b"\xff\xff\xff\xff"]));
    assert_eq!(assignment(&written), Some(ClassicAssignment { partitions: owned(), user_data: None }));
    let with_data = bytes(0, &[OWNED, b"\0\0\0\x02hi"]);
    assert_eq!(assignment(&with_data).unwrap().user_data.as_deref(), Some(b"hi".as_slice()));
    assert_eq!(encode_assignment(-4, &[]).unwrap(), bytes(0, &[b"\0\0\0\0", b"\xff\xff\xff\xff"]));
    let too_long = TopicPartitions { topic: "t".repeat(40_000), partitions: vec![] };
    assert_eq!(encode_assignment(0, &[too_long]), None);
}

#[test]
fn kafka_protocol_reads_and_writes_the_same() {
    use kafka_protocol::messages::consumer_protocol_subscription::TopicPartition;
    use kafka_protocol::messages::{ConsumerProtocolAssignment, ConsumerProtocolSubscription, TopicName};
    use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
    let name = |name| TopicName(StrBytes::from_static_str(name));
    let theirs = ConsumerProtocolSubscription::default()
        .with_topics(vec![StrBytes::from_static_str("a"), StrBytes::from_static_str("bc")])
        .with_owned_partitions(vec![
            TopicPartition::default().with_topic(name("a")).with_partitions(vec![0, 3]),
        ])
        .with_generation_id(4)
        .with_rack_id(Some(StrBytes::from_static_str("r")));
    for version in 0..=3 {
        let mut written = bytes::BytesMut::new();
        bytes::BufMut::put_i16(&mut written, version);
        theirs.encode(&mut written, version).unwrap();
        let ours = subscription(&written).unwrap();
        assert_eq!(ours.topics, ["a", "bc"]);
        assert_eq!(ours.owned_partitions, if version >= 1 { owned() } else { vec![] });
        assert_eq!(ours.generation, if version >= 2 { 4 } else { -1 });
        assert_eq!(ours.rack_id.is_some(), version >= 3);
        let mut written = encode_assignment(version, &owned()).unwrap().slice(2..);
        let theirs = ConsumerProtocolAssignment::decode(&mut written, version).unwrap();
        assert_eq!(theirs.assigned_partitions[0].partitions, [0, 3]);
    }
}

#[test]
fn garbage_is_refused_and_costs_nothing() {
    let whole = bytes(3, &[TOPICS, b"\0\0\0\x01\x07", OWNED, b"\0\0\0\x05", b"\0\x01r"]);
    for end in 0..whole.len() {
        assert_eq!(subscription(&whole[..end]), None, "cut at {end}");
    }
    for (what, bytes) in [
        ("negative version", vec![0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("endless topics", bytes(0, &[b"\x7f\xff\xff\xff", b"\0\0\0\0"])),
        ("negative count", bytes(0, &[b"\xff\xff\xff\xff", b"\xff\xff\xff\xff"])),
        ("null topic", bytes(0, &[b"\0\0\0\x01\xff\xff", b"\xff\xff\xff\xff"])),
        ("negative length", bytes(0, &[b"\0\0\0\x01\x80\0", b"\xff\xff\xff\xff"])),
        ("no UTF-8", bytes(0, &[b"\0\0\0\x01\0\x01\xff", b"\xff\xff\xff\xff"])),
    ] {
        assert_eq!(subscription(&bytes), None, "{what}");
    }
    assert_eq!(assignment(&bytes(0, &[b"\0\0\0\x01\0\x01a\x7f\xff\xff\xff"])), None);
    let mut random = StdRng::seed_from_u64(1);
    for _ in 0..20_000 {
        let mut bytes = whole.clone();
        for _ in 0..random.random_range(1..5) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        let _ = (subscription(&bytes), assignment(&bytes));
    }
}
