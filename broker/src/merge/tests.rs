use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    EndTxnRequest, FetchRequest, InitProducerIdRequest, ListOffsetsRequest, ProduceRequest, TopicName,
    TransactionalId,
};
use kafka_protocol::records::Compression;
use strandline_metadata::backend::Backend;
use strandline_metadata::state::{Partition, Range};
use strandline_storage::path::{ObjectId, ObjectKind};
use strandline_storage::store::{FaultHandle, FaultPlan};
use tokio::time::sleep;
use uuid::Uuid;

use super::plan::{Ends, Piece, Rules, loads, objects, pieces};
use crate::api::text;
use crate::limits::UNREADABLE_REST;
use crate::records::tests::{batch, in_transaction};
use crate::run::Opened;
use crate::testing::{NOW_MS, TestClient, World, metric};

const FLAGS: [&str; 6] = ["--put-budget-per-s", "1000", "--linger-ms", "1", "--merge-interval-ms", "1000"];

/// From now on the store denies whoever reads these objects, and nobody has them in memory. Others
/// can be read.
pub(super) fn deny(faults: &FaultHandle, opened: &Opened, objects: &[ObjectId]) {
    for object in objects {
        opened.broker.reader.evict(*object);
    }
    let unreadable = objects.iter().map(ObjectId::key).collect();
    faults.set(FaultPlan { unreadable, ..FaultPlan::default() });
}

async fn partition(opened: &Opened, topic: Uuid, number: u32) -> Arc<Partition> {
    opened.broker.replica.barrier().await.unwrap();
    opened.broker.replica.read(|view| view.state.partition(topic, number).unwrap().clone())
}

fn record(i: i32) -> Bytes {
    batch(Compression::None, NOW_MS + i64::from(i), 1 + i % 3)
}

/// Every batch of a partition from `offset` on, as its base offset and its records' times, read as
/// a consumer does: `max_bytes` at a time.
async fn read_all(client: &mut TestClient, offset: i64, end: i64, max_bytes: i32) -> Vec<(i64, i64)> {
    let mut next = offset;
    let mut found = Vec::new();
    while next < end {
        let records = client.fetch("t", 0, next, max_bytes).await;
        assert!(!records.is_empty(), "nothing at {next}");
        for record in records {
            if record.offset >= next {
                found.push((record.offset, record.timestamp));
                next = record.offset + 1;
            }
        }
    }
    found
}

#[tokio::test(start_paused = true)]
async fn small_ranges_become_large_ones_and_read_the_same() {
    let world = World::new();
    let opened = world.broker(1, &FLAGS).await;
    let mut client = TestClient::connect(&opened.broker);
    let topic = client.create_topic("t", 2, &[]).await;
    for i in 0..100 {
        client.produce("t", [record(i), record(i + 1)]).await;
    }
    let before = partition(&opened, topic, 0).await;
    assert!(before.ranges().len() >= 100);
    let expected = read_all(&mut client, 0, before.end(), 1 << 20).await;
    sleep(Duration::from_secs(3)).await;
    let after = partition(&opened, topic, 0).await;
    assert_eq!((after.ranges().len(), after.end(), after.bytes()), (1, before.end(), before.bytes()));
    let range = *after.ranges().first().unwrap();
    assert_eq!((range.level, range.object.kind), (1, ObjectKind::Merge));
    assert_eq!(opened.broker.replica.read(|view| view.state.objects().len()), 1);
    for max_bytes in [1, 500, 1 << 20] {
        assert_eq!(read_all(&mut client, 0, after.end(), max_bytes).await, expected, "{max_bytes}");
    }
    assert_eq!(read_all(&mut client, 77, after.end(), 1 << 20).await, expected[77..]);
    // A broker that has nothing in its memory reads the same.
    let other = world.broker(2, &FLAGS).await;
    let mut elsewhere = TestClient::connect(&other.broker);
    assert_eq!(read_all(&mut elsewhere, 0, after.end(), 700).await, expected);
    assert_eq!(read_all(&mut elsewhere, 33, after.end(), 1 << 20).await, expected[33..]);
}

#[tokio::test(start_paused = true)]
async fn offsets_are_found_by_time_in_merged_ranges() {
    let opened = World::new().broker(1, &FLAGS).await;
    let mut client = TestClient::connect(&opened.broker);
    let topic = client.create_topic("t", 1, &[]).await;
    for i in 0..60 {
        client.produce("t", [record(i * 10)]).await;
    }
    let mut before = Vec::new();
    for time in (0..620).step_by(7) {
        before.push(client.offset_at("t", NOW_MS + time).await);
    }
    sleep(Duration::from_secs(3)).await;
    assert_eq!(partition(&opened, topic, 0).await.ranges().len(), 1);
    for (time, expected) in (0..620).step_by(7).zip(before) {
        assert_eq!(client.offset_at("t", NOW_MS + time).await, expected, "{time}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_merged_below_the_level_for_it_or_by_who_is_not_in_charge() {
    let world = World::new();
    let (one, two) = (world.broker(1, &FLAGS).await, world.broker(2, &FLAGS).await);
    let mut client = TestClient::connect(&one.broker);
    let topic = client.create_topic("t", 8, &[]).await;
    for i in 0..20 {
        client.produce("t", (0..8).map(|p| record(i + p)).collect::<Vec<_>>()).await;
    }
    sleep(Duration::from_secs(4)).await;
    for number in 0..8 {
        let partition = partition(&one, topic, number).await;
        assert_eq!(partition.ranges().len(), 1, "partition {number}");
    }
    let writers: std::collections::BTreeSet<i64> = one.broker.replica.read(|view| {
        let topic = view.state.topics().get(&topic).unwrap();
        let first = |p: &Arc<Partition>| p.ranges().first().unwrap().object.incarnation;
        topic.partitions().iter().map(first).collect()
    });
    assert_eq!(writers.len(), 2, "each merges those that clients are led to it for");
    drop(two);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_stays_where_it_is_and_the_rest_is_merged() {
    let world = World::new();
    let opened = world.broker(1, &FLAGS).await;
    let mut client = TestClient::connect(&opened.broker);
    let topic = client.create_topic("t", 2, &[]).await;
    // What lies in an object of its own can be damaged by itself.
    for i in 0..10 {
        client.produce_to("t", [(0, record(i))]).await;
        client.produce_to("t", [(1, record(i))]).await;
    }
    let damaged = partition(&opened, topic, 0).await.ranges().iter().nth(4).unwrap().object;
    let bytes = world.store.get(&damaged.key(), None).await.unwrap();
    let mut wrong = bytes.to_vec();
    wrong[70] ^= 1;
    world.store.delete(&damaged.key()).await.unwrap();
    world
        .store
        .put(&damaged.key(), strandline_storage::store::Payload::from(Bytes::from(wrong)))
        .await
        .unwrap();
    opened.broker.reader.evict(damaged);
    sleep(Duration::from_secs(4)).await;
    assert_eq!(partition(&opened, topic, 1).await.ranges().len(), 1);
    // What lies around it is merged, and nothing of it is copied.
    let merged = partition(&opened, topic, 0).await;
    let kinds: Vec<ObjectKind> = merged.ranges().iter().map(|range| range.object.kind).collect();
    assert_eq!(kinds, [ObjectKind::Merge, ObjectKind::Write, ObjectKind::Merge]);
    assert_eq!(merged.ranges().iter().nth(1).unwrap().object, damaged);
}

#[tokio::test(start_paused = true)]
async fn one_object_that_does_not_answer_is_left_alone_and_the_rest_is_merged() {
    let (world, faults) = World::faulty();
    let opened = world.broker(1, &FLAGS).await;
    let mut client = TestClient::connect(&opened.broker);
    let topic = client.create_topic("t", 2, &[]).await;
    for i in 0..10 {
        client.produce_to("t", [(0, record(i))]).await;
        client.produce_to("t", [(1, record(i))]).await;
    }
    let denied = partition(&opened, topic, 0).await.ranges().iter().nth(4).unwrap().object;
    deny(&faults, &opened, &[denied]);
    sleep(UNREADABLE_REST / 2).await;
    assert_eq!(partition(&opened, topic, 1).await.ranges().len(), 1);
    let kinds = async || {
        let partition = partition(&opened, topic, 0).await;
        partition.ranges().iter().map(|range| range.object.kind).collect::<Vec<_>>()
    };
    assert_eq!(kinds().await, [ObjectKind::Merge, ObjectKind::Write, ObjectKind::Merge]);
    assert_eq!(metric::<u64>(&opened, "strandline_merge_unreadable_total"), 1);
    assert_eq!(metric::<u64>(&opened, "strandline_merge_failures_total"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_at_all_ends_the_pass_and_nothing_is_left_alone() {
    let (world, faults) = World::faulty();
    let opened = world.broker(1, &FLAGS).await;
    let mut client = TestClient::connect(&opened.broker);
    let topic = client.create_topic("t", 1, &[]).await;
    for i in 0..12 {
        client.produce_to("t", [(0, record(i))]).await;
    }
    let objects: Vec<ObjectId> =
        partition(&opened, topic, 0).await.ranges().iter().map(|range| range.object).collect();
    assert_eq!(objects.len(), 12);
    deny(&faults, &opened, &objects);
    sleep(UNREADABLE_REST / 2).await;
    assert_eq!(metric::<u64>(&opened, "strandline_merge_unreadable_total"), 0);
    assert!(metric::<u64>(&opened, "strandline_merge_failures_total") > 0);
    deny(&faults, &opened, &[]);
    sleep(UNREADABLE_REST / 4).await;
    assert_eq!(partition(&opened, topic, 0).await.ranges().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn ranges_span_no_more_time_than_retention_allows() {
    let opened = World::new().broker(1, &FLAGS).await;
    let mut client = TestClient::connect(&opened.broker);
    let topic = client.create_topic("t", 1, &[("retention.ms", "800000")]).await;
    // 100 s is an eighth of the retention: records of 10 s each.
    for i in 0..40 {
        client.produce("t", [batch(Compression::None, NOW_MS - 400_000 + i * 10_000, 1)]).await;
    }
    sleep(Duration::from_secs(3)).await;
    let partition = partition(&opened, topic, 0).await;
    let lengths: Vec<i64> = partition.ranges().iter().map(|r| r.end_offset - r.base_offset).collect();
    assert_eq!(lengths, [11, 11, 11, 7]);
}

#[tokio::test(start_paused = true)]
async fn records_without_a_timestamp_are_no_older_after_a_merge() {
    let world = World::new();
    let opened = world.broker(1, &FLAGS).await;
    let mut client = TestClient::connect(&opened.broker);
    let topic = client.create_topic("t", 1, &[]).await;
    for time in [-1, NOW_MS - 3_600_000, -1] {
        client.produce("t", [batch(Compression::None, time, 1)]).await;
    }
    sleep(Duration::from_secs(4)).await;
    let merged = partition(&opened, topic, 0).await;
    let ranges: Vec<(i64, i64)> =
        merged.ranges().iter().map(|r| (r.end_offset, r.max_timestamp_ms)).collect();
    assert_eq!(ranges, [(3, NOW_MS)], "as old as what they were merged from");
}

/// Whoever reads what a flipped bit has put at a wrong offset is refused, and finds it right once
/// the store has it right, although its own CRC says nothing of that.
#[tokio::test(start_paused = true)]
async fn a_wrong_base_offset_is_no_longer_in_memory_once_somebody_has_met_it() {
    let world = World::new();
    let opened = world.broker(1, &FLAGS).await;
    let mut client = TestClient::connect(&opened.broker);
    let topic = client.create_topic("t", 1, &[]).await;
    for _ in 0..5 {
        client.produce("t", [batch(Compression::None, NOW_MS, 1)]).await;
    }
    client.produce("t", [batch(Compression::None, NOW_MS + 1_000, 1)]).await;
    sleep(Duration::from_secs(4)).await;
    let merged = partition(&opened, topic, 0).await.ranges().first().unwrap().object;
    let right = world.store.get(&merged.key(), None).await.unwrap();
    let mut wrong = right.to_vec();
    // The base offset of the second batch: they are of the same length.
    wrong[batch(Compression::None, NOW_MS, 1).len()] ^= 0x40;
    let put = async |bytes: Bytes| world.store.put(&merged.key(), bytes.into()).await.unwrap();
    for by_time in [false, true] {
        world.store.delete(&merged.key()).await.unwrap();
        put(wrong.clone().into()).await;
        opened.broker.reader.evict(merged);
        let code = refused_by(&mut client, by_time).await;
        assert_eq!(code, ResponseError::KafkaStorageError.code(), "by time: {by_time}");
        world.store.delete(&merged.key()).await.unwrap();
        put(right.clone()).await;
        assert_eq!(refused_by(&mut client, by_time).await, 0, "by time: {by_time}");
    }
}

/// The code of a fetch from the beginning, or of a look-up of the last record by its time.
async fn refused_by(client: &mut TestClient, by_time: bool) -> i16 {
    let name = || TopicName(text("t"));
    if by_time {
        let partition = ListOffsetsPartition::default().with_timestamp(NOW_MS + 500);
        let topic = ListOffsetsTopic::default().with_name(name()).with_partitions(vec![partition]);
        let answer = client.call(&ListOffsetsRequest::default().with_topics(vec![topic]), 7).await;
        return answer.topics[0].partitions[0].error_code;
    }
    let partition = FetchPartition::default().with_partition_max_bytes(1 << 20);
    let topic = FetchTopic::default().with_topic(name()).with_partitions(vec![partition]);
    let request = FetchRequest::default().with_max_bytes(1 << 20).with_topics(vec![topic]);
    client.call(&request, 11).await.responses[0].partitions[0].error_code
}

#[tokio::test(start_paused = true)]
async fn times_that_go_back_and_forth_are_merged_all_the_same() {
    const DAY_MS: i64 = 86_400_000;
    let opened = World::new().broker(1, &FLAGS).await;
    let mut client = TestClient::connect(&opened.broker);
    let forth = client.create_topic("t", 1, &[]).await;
    for i in 0..40 {
        client.produce("t", [batch(Compression::None, NOW_MS - (i % 2) * 5 * DAY_MS, 1)]).await;
    }
    // And those that lie apart by little, where the topic allows nothing.
    let little = client.create_topic("little", 1, &[("segment.ms", "1"), ("retention.ms", "-1")]).await;
    for i in 0..40 {
        client.produce("little", [batch(Compression::None, NOW_MS - 40_000 + i * 1_000, 1)]).await;
    }
    sleep(Duration::from_secs(4)).await;
    for topic in [forth, little] {
        assert_eq!(partition(&opened, topic, 0).await.ranges().len(), 1);
    }
}

#[tokio::test]
async fn levels_are_merged_by_number_size_and_age() {
    let opened =
        World::new().broker(1, &["--merge-interval-ms", "86400000", "--put-budget-per-s", "1000"]).await;
    let mut client = TestClient::connect(&opened.broker);
    let topic = client.create_topic("t", 1, &[]).await;
    for i in 0..6 {
        client.produce("t", [record(i)]).await;
    }
    let state = opened.broker.replica.state();
    let partition = state.partition(topic, 0).unwrap();
    let ends = Ends::of(&state);
    let nothing = Ends::default();
    let due = |flushed_before: &Ends, object_bytes| {
        let unreadable = std::collections::BTreeMap::new();
        let rules = Rules { object_bytes, flushed_before, merged_before: None, unreadable: &unreadable };
        pieces(&state, (topic, 0, partition.as_ref()), &rules, (i64::MAX, 0))
    };
    // Too young, and too little.
    assert!(due(&nothing, 1 << 20).is_empty());
    let all = due(&ends, 1 << 20);
    assert_eq!(all.iter().map(|p| (p.inputs.len(), p.level)).collect::<Vec<_>>(), [(6, 1)]);
    // Objects' worths of them are due at once, and go to the top.
    let bytes = partition.bytes();
    let full = due(&nothing, bytes / 2);
    assert!(full.iter().all(|p| p.level == 2 && p.bytes() <= bytes / 2), "{full:?}");
    assert!(!full.is_empty());
    assert_eq!(objects(all, 1 << 20).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn small_ranges_do_not_wait_for_all_that_is_large() {
    // An object has 256 KiB, a load has three, and each of them takes eleven seconds.
    let slow = ["--merge-memory-bytes", "1048576", "--merge-bytes-per-s", "20000"];
    let opened = World::new().broker(1, &[&FLAGS[..], &slow].concat()).await;
    let mut client = TestClient::connect(&opened.broker);
    let topic = client.create_topic("t", 9, &[]).await;
    for i in 0..2 {
        let large = (0..8).map(|_| batch(Compression::None, NOW_MS, 1_000));
        client.produce("t", std::iter::once(record(i)).chain(large).collect::<Vec<_>>()).await;
    }
    sleep(Duration::from_secs(20)).await;
    for i in 0..10 {
        client.produce("t", [record(i)]).await;
    }
    sleep(Duration::from_secs(55)).await;
    let small = partition(&opened, topic, 0).await;
    assert!(small.ranges().iter().all(|range| range.level > 0), "{:?}", small.ranges());
    let mut waiting = 0;
    for number in 1..9 {
        waiting += usize::from(partition(&opened, topic, number).await.ranges().levels()[0].ranges > 0);
    }
    assert!((1..8).contains(&waiting), "{waiting} large partitions wait");
    sleep(Duration::from_mins(1)).await;
    for number in 1..9 {
        let partition = partition(&opened, topic, number).await;
        assert_eq!(partition.ranges().levels()[0].ranges, 0, "all have their turn");
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_objects_are_written_than_the_budget_allows() {
    // Each partition has an object's worth.
    let slow = ["--merge-memory-bytes", "1048576", "--merge-puts-per-s", "1"];
    let opened = World::new().broker(1, &[&FLAGS[..], &slow].concat()).await;
    let mut client = TestClient::connect(&opened.broker);
    let topic = client.create_topic("t", 8, &[]).await;
    for _ in 0..2 {
        client.produce("t", vec![batch(Compression::None, NOW_MS, 1_000); 8]).await;
    }
    let merged = async || {
        let mut merged = 0;
        for number in 0..8 {
            merged += u64::from(partition(&opened, topic, number).await.ranges().levels()[0].ranges == 0);
        }
        merged
    };
    while merged().await == 0 {
        sleep(Duration::from_millis(50)).await;
    }
    let first = merged().await;
    sleep(Duration::from_millis(2_500)).await;
    let later = merged().await;
    assert!((first + 2..=first + 3).contains(&later), "{first}, and {later} two and a half seconds later");
    sleep(Duration::from_secs(20)).await;
    assert_eq!(merged().await, 8, "all have their turn");
}

/// A piece of ten bytes.
fn piece(partition: u32, level: u8, base_offset: i64) -> Piece {
    let range = Range {
        base_offset,
        end_offset: base_offset + 1,
        object: ObjectId::write(1, base_offset.unsigned_abs(), 0),
        position: 0,
        bytes: 10,
        max_timestamp_ms: 0,
        batches: 1,
        level: level - 1,
        compacted: false,
    };
    Piece {
        topic_id: Uuid::nil(),
        partition,
        inputs: vec![range],
        markers: Vec::new(),
        level,
        is_untimed: false,
    }
}

#[test]
fn what_was_written_at_the_same_time_is_read_together() {
    let of_partition = |partition| (0..3).map(move |offset| piece(partition, 2, offset));
    let mut due: Vec<Piece> = (0..4).flat_map(of_partition).collect();
    due.push(piece(9, 1, 7));
    // Two pieces fit into an object, and five into a load.
    let loads = loads(due, 20, 50);
    assert!(loads.iter().flat_map(|load| &load.objects).all(|object| object.len() <= 2));
    let place = |piece: &Piece| (piece.level, piece.partition, piece.offsets().0);
    let places: Vec<Vec<_>> =
        loads.iter().map(|load| load.objects.iter().flatten().map(place).collect()).collect();
    let all = |offset| (0..4).map(|partition| (2, partition, offset)).collect::<Vec<_>>();
    assert_eq!(places, [vec![(1, 9, 7)], all(0), all(1), all(2)]);
}

/// What `read_committed` is answered from an offset on: records, aborted transactions, and the last
/// stable offset.
async fn fetch_committed(client: &mut TestClient, offset: i64) -> (Bytes, Vec<(i64, i64)>, i64) {
    let partition = FetchPartition::default().with_fetch_offset(offset).with_partition_max_bytes(1 << 20);
    let topic = FetchTopic::default().with_topic(TopicName(text("t"))).with_partitions(vec![partition]);
    let request = FetchRequest::default().with_max_bytes(1 << 20).with_isolation_level(1);
    let mut answer = client.call(&request.with_topics(vec![topic]), 12).await;
    let fetched = answer.responses.remove(0).partitions.remove(0);
    assert_eq!(fetched.error_code, 0);
    let aborted = fetched.aborted_transactions.unwrap_or_default();
    let aborted = aborted.iter().map(|a| (*a.producer_id, a.first_offset)).collect();
    (fetched.records.unwrap_or_default(), aborted, fetched.last_stable_offset)
}

#[tokio::test(start_paused = true)]
async fn transactions_read_the_same_when_they_are_merged() {
    let world = World::new();
    let opened = world.broker(1, &FLAGS).await;
    let mut client = TestClient::connect(&opened.broker);
    let topic = client.create_topic("t", 1, &[]).await;
    let id = || TransactionalId(text("x"));
    let request = InitProducerIdRequest::default().with_transactional_id(Some(id()));
    let producer = client.call(&request.with_transaction_timeout_ms(60_000), 5).await;
    let producer_id = producer.producer_id;
    let mut write = async |epoch| {
        let data = PartitionProduceData::default().with_records(Some(in_transaction(
            &batch(Compression::None, NOW_MS, 3),
            (*producer_id, epoch, 0),
        )));
        let data =
            TopicProduceData::default().with_name(TopicName(text("t"))).with_partition_data(vec![data]);
        let request = ProduceRequest::default().with_acks(-1).with_timeout_ms(10_000);
        let request = request.with_transactional_id(Some(id())).with_topic_data(vec![data]);
        let answer = client.call(&request, 12).await;
        assert_eq!(answer.responses[0].partition_responses[0].error_code, 0);
    };
    let ends = [true, false, true, true, false];
    let mut other = TestClient::connect(&opened.broker);
    for (epoch, committed) in (0..).zip(ends) {
        write(epoch).await;
        other.produce("t", [record(i32::from(epoch))]).await;
        let request = EndTxnRequest::default().with_transactional_id(id()).with_producer_id(producer_id);
        let ended = other.call(&request.with_producer_epoch(epoch).with_committed(committed), 5).await;
        assert_eq!((ended.error_code, ended.producer_epoch), (0, epoch + 1));
    }
    write(5).await;
    other.produce("t", [record(0)]).await;
    let before = partition(&opened, topic, 0).await;
    let open_since = before.last_stable();
    assert_eq!((before.markers().len(), before.aborted().len()), (5, 2));
    let mut expected = Vec::new();
    for offset in 0..open_since {
        expected.push(fetch_committed(&mut other, offset).await);
    }
    sleep(Duration::from_secs(3)).await;
    let after = partition(&opened, topic, 0).await;
    assert!(after.ranges().len() < before.ranges().len());
    assert_eq!(after.last_stable(), open_since);
    let first = *after.ranges().first().unwrap();
    assert!(first.level == 1 && first.end_offset <= open_since, "nothing is merged across it: {first:?}");
    assert_eq!((after.markers().len(), after.aborted().len()), (1, 2), "the last one lies behind it");
    for (offset, expected) in (0..).zip(&expected) {
        opened.broker.reader.evict(first.object);
        let mut found = fetch_committed(&mut other, offset).await;
        // Where a fetch ends may differ, not what it says.
        let common = expected.0.len().min(found.0.len());
        found.0.truncate(common);
        assert_eq!((&found.0[..], found.2), (&expected.0[..common], expected.2), "from {offset} on");
        assert!(common > 0 && expected.1.starts_with(&found.1), "from {offset} on");
    }
    let backend: Arc<dyn Backend> = Arc::new(world.backend.clone());
    let report = crate::fsck::run(&backend, &world.store, opened.broker.replica.keys(), true).await.unwrap();
    assert!(report.is_clean(), "{report}");
}
