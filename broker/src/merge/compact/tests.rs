use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::error::ResponseError;
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    EndTxnRequest, FetchRequest, IncrementalAlterConfigsRequest, InitProducerIdRequest, ProduceRequest,
    TopicName, TransactionalId,
};
use kafka_protocol::records::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use strandline_metadata::backend::Backend;
use strandline_metadata::state::Partition;
use strandline_storage::path::ObjectKind;
use strandline_storage::store::Payload;
use tokio::time::sleep;
use uuid::Uuid;

use crate::api::text;
use crate::limits::UNREADABLE_REST;
use crate::merge::tests::deny;
use crate::records::tests::in_transaction;
use crate::run::Opened;
use crate::testing::{NOW_MS, TestClient, World, metric};

const FLAGS: [&str; 6] = ["--put-budget-per-s", "1000", "--linger-ms", "1", "--merge-interval-ms", "1000"];
/// Compacted as soon as anything is dirty, however little.
const EAGER: [(&str, &str); 3] =
    [("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0"), ("segment.ms", "1")];
/// Enough for what is flushed to settle, to be merged and to be compacted.
const A_WHILE: Duration = Duration::from_secs(5);

/// A key and what it is set to; nothing deletes it.
type Change = (String, Option<String>);

fn change(key: &str, value: &str) -> Change {
    (key.to_owned(), Some(value.to_owned()))
}

fn deletion(key: &str) -> Change {
    (key.to_owned(), None)
}

/// A batch whose records were made a minute ago.
fn batch_of(changes: &[Change], codec: Compression) -> Bytes {
    batch_at(NOW_MS - 60_000, changes, codec)
}

fn batch_at(timestamp: i64, changes: &[Change], codec: Compression) -> Bytes {
    let records: Vec<Record> = (0..)
        .zip(changes)
        .map(|(i, (key, value))| Record {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: -1,
            producer_id: -1,
            producer_epoch: -1,
            timestamp_type: TimestampType::Creation,
            offset: i64::from(i),
            sequence: i,
            timestamp,
            key: (!key.is_empty()).then(|| Bytes::from(key.clone())),
            value: value.clone().map(Bytes::from),
            headers: IndexMap::default(),
        })
        .collect();
    let mut out = BytesMut::new();
    let options = RecordEncodeOptions { version: 2, compression: codec };
    RecordBatchEncoder::encode(&mut out, &records, &options).unwrap();
    out.freeze()
}

async fn partition(opened: &Opened, topic: Uuid) -> Arc<Partition> {
    opened.broker.replica.barrier().await.unwrap();
    opened.broker.replica.read(|view| view.state.partition(topic, 0).unwrap().clone())
}

/// What a consumer reads that begins at `offset`, as offsets and changes.
async fn read_from(client: &mut TestClient, offset: i64, end: i64, max_bytes: i32) -> Vec<(i64, Change)> {
    let mut next = offset;
    let mut found = Vec::new();
    while next < end {
        let records = client.fetch("t", 0, next, max_bytes).await;
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        let before = next;
        for record in records.iter().filter(|record| record.offset >= before) {
            let key = record.key.as_ref().map(text).unwrap_or_default();
            found.push((record.offset, (key, record.value.as_ref().map(text))));
            next = record.offset + 1;
        }
        // Only a batch without records is left, which the decoder passes over.
        if next == before {
            break;
        }
    }
    found
}

/// What the changes come to, applied in order.
fn table<'a>(changes: impl IntoIterator<Item = &'a Change>) -> BTreeMap<String, String> {
    let mut table = BTreeMap::new();
    for (key, value) in changes {
        match value {
            Some(value) => table.insert(key.clone(), value.clone()),
            None => table.remove(key),
        };
    }
    table
}

#[tokio::test(start_paused = true)]
async fn of_each_key_the_last_record_stays_at_its_offset() {
    let world = World::new();
    let opened = world.broker(1, &FLAGS).await;
    let mut client = TestClient::connect(&opened.broker);
    let topic = client.create_topic("t", 1, &EAGER).await;
    for round in 0..10 {
        let changes = ["a", "b", "c"].map(|key| change(key, &format!("{key}{round}")));
        client.produce("t", [batch_of(&changes, Compression::None)]).await;
    }
    client.produce("t", [batch_of(&[change("once", "1")], Compression::Zstd)]).await;
    sleep(A_WHILE).await;
    let after = partition(&opened, topic).await;
    assert_eq!((after.ranges().len(), after.end()), (1, 31));
    let range = *after.ranges().first().unwrap();
    assert_eq!((range.base_offset, range.end_offset, range.compacted), (0, 31, true));
    assert_eq!(range.object.kind, ObjectKind::Merge);
    let expected = [
        (27, change("a", "a9")),
        (28, change("b", "b9")),
        (29, change("c", "c9")),
        (30, change("once", "1")),
    ];
    // Wherever a consumer begins, and whoever serves it.
    let other = world.broker(2, &FLAGS).await;
    let mut elsewhere = TestClient::connect(&other.broker);
    for offset in [0, 5, 26, 27] {
        for max_bytes in [1, 1 << 20] {
            assert_eq!(read_from(&mut client, offset, 31, max_bytes).await, expected, "{offset}");
            assert_eq!(read_from(&mut elsewhere, offset, 31, max_bytes).await, expected, "{offset}");
        }
    }
    assert_eq!(read_from(&mut client, 29, 31, 1).await, expected[2..]);
    // What comes behind it is dirty, and makes the rest go.
    client.produce("t", [batch_of(&[change("a", "new")], Compression::Gzip)]).await;
    sleep(A_WHILE).await;
    let all = read_from(&mut client, 0, 32, 1 << 20).await;
    assert_eq!(all.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), [28, 29, 30, 31]);
    assert_eq!(partition(&opened, topic).await.ranges().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn tombstones_stay_for_delete_retention_after_what_they_delete_is_gone() {
    let world = World::new();
    let opened = world.broker(1, &FLAGS).await;
    let mut client = TestClient::connect(&opened.broker);
    let mut configs = EAGER.to_vec();
    configs.push(("delete.retention.ms", "600000"));
    let topic = client.create_topic("t", 1, &configs).await;
    client.produce("t", [batch_of(&[change("a", "1"), change("b", "1")], Compression::None)]).await;
    client.produce("t", [batch_of(&[deletion("a"), deletion("never")], Compression::Lz4)]).await;
    sleep(A_WHILE).await;
    let tombstones = vec![(1, change("b", "1")), (2, deletion("a")), (3, deletion("never"))];
    assert_eq!(read_from(&mut client, 0, 4, 1 << 20).await, tombstones);
    // Compacting again does not let them go earlier, nor make them stay longer.
    let mut end = 4;
    for minutes in [5, 9, 11] {
        world.clock.0.store(NOW_MS + minutes * 60_000, Ordering::Relaxed);
        client.produce("t", [batch_of(&[change("c", "1")], Compression::None)]).await;
        end += 1;
        sleep(A_WHILE).await;
        let all = read_from(&mut client, 0, end, 1 << 20).await;
        let mut expected = tombstones.clone();
        if minutes == 11 {
            expected.truncate(1);
        }
        expected.push((end - 1, change("c", "1")));
        assert_eq!(all, expected, "{minutes}");
    }
    assert_eq!(partition(&opened, topic).await.end(), end);
}

#[tokio::test(start_paused = true)]
async fn records_without_a_timestamp_are_no_older_after_a_compaction() {
    let opened = World::new().broker(1, &FLAGS).await;
    let mut client = TestClient::connect(&opened.broker);
    let topic = client.create_topic("t", 1, &EAGER).await;
    for (time, key) in [(NOW_MS - 86_400_000, "old"), (-1, "untimed"), (NOW_MS - 86_400_000, "old")] {
        client.produce("t", [batch_at(time, &[change(key, "1")], Compression::None)]).await;
    }
    sleep(A_WHILE).await;
    // A second time, from what is compacted already.
    for expected in [2, 3] {
        let after = partition(&opened, topic).await;
        let range = *after.ranges().first().unwrap();
        assert_eq!((range.compacted, range.batches, range.max_timestamp_ms), (true, expected, NOW_MS));
        client.produce("t", [batch_at(NOW_MS - 86_400_000, &[change("more", "1")], Compression::None)]).await;
        sleep(A_WHILE).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_consumer_goes_on_behind_a_partition_of_which_nothing_is_left() {
    let world = World::new();
    let opened = world.broker(1, &FLAGS).await;
    let mut client = TestClient::connect(&opened.broker);
    let mut configs = EAGER.to_vec();
    configs.push(("delete.retention.ms", "0"));
    let topic = client.create_topic("t", 1, &configs).await;
    client.produce("t", [batch_of(&[change("a", "1"), deletion("a")], Compression::None)]).await;
    sleep(A_WHILE).await;
    assert_eq!(read_from(&mut client, 0, 2, 1 << 20).await, [(1, deletion("a"))]);
    world.clock.0.fetch_add(1, Ordering::Relaxed);
    client.produce("t", [batch_of(&[deletion("a")], Compression::None)]).await;
    sleep(A_WHILE).await;
    world.clock.0.fetch_add(1, Ordering::Relaxed);
    client.produce("t", [batch_of(&[change("b", "1")], Compression::None)]).await;
    sleep(A_WHILE).await;
    assert_eq!(read_from(&mut client, 0, 4, 1 << 20).await, [(3, change("b", "1"))]);
    world.clock.0.fetch_add(1, Ordering::Relaxed);
    client.produce("t", [batch_of(&[deletion("b")], Compression::None)]).await;
    sleep(A_WHILE).await;
    world.clock.0.fetch_add(1, Ordering::Relaxed);
    client.produce("t", [batch_of(&[deletion("b")], Compression::None)]).await;
    sleep(A_WHILE).await;
    let after = partition(&opened, topic).await;
    assert_eq!((after.ranges().len(), after.end()), (1, 6));
    // A batch without records leads from the last one to the end.
    assert_eq!(read_from(&mut client, 0, 6, 1 << 20).await, [(5, deletion("b"))]);
}

#[tokio::test(start_paused = true)]
async fn records_younger_than_the_lag_stay_and_the_lag_has_an_end() {
    let world = World::new();
    let opened = world.broker(1, &FLAGS).await;
    let mut client = TestClient::connect(&opened.broker);
    let mut configs = EAGER.to_vec();
    configs.push(("min.compaction.lag.ms", "120000"));
    client.create_topic("t", 1, &configs).await;
    for i in 0..3 {
        client.produce("t", [batch_at(NOW_MS, &[change("a", &i.to_string())], Compression::None)]).await;
    }
    sleep(A_WHILE).await;
    assert_eq!(read_from(&mut client, 0, 3, 1 << 20).await.len(), 3);
    world.clock.0.fetch_add(120_000, Ordering::Relaxed);
    sleep(A_WHILE).await;
    assert_eq!(read_from(&mut client, 0, 3, 1 << 20).await, [(2, change("a", "2"))]);
    // Nothing is dirty enough, and little: it is compacted when it has waited for long enough.
    let lazy = [("cleanup.policy", "compact"), ("max.compaction.lag.ms", "7200000")];
    let lazy = client.create_topic("lazy", 1, &lazy).await;
    for i in 0..3 {
        client.produce("lazy", [batch_at(NOW_MS, &[change("a", &i.to_string())], Compression::None)]).await;
    }
    let is_compacted = || {
        let lazy = opened.broker.replica.read(|view| view.state.partition(lazy, 0).unwrap().clone());
        lazy.ranges().iter().all(|range| range.compacted)
    };
    sleep(A_WHILE).await;
    assert!(!is_compacted());
    world.clock.0.store(NOW_MS + 7_200_000, Ordering::Relaxed);
    sleep(A_WHILE).await;
    assert!(is_compacted());
}

#[tokio::test(start_paused = true)]
async fn keyless_records_go_and_what_cannot_be_opened_stays() {
    let world = World::new();
    let opened = world.broker(1, &FLAGS).await;
    let mut client = TestClient::connect(&opened.broker);
    let topic = client.create_topic("t", 1, &[]).await;
    client.produce("t", [batch_of(&[change("", "keyless"), change("a", "1")], Compression::None)]).await;
    // Its header says one record more than there are, and nothing that makes a broker open it.
    let mut odd = batch_of(&[change("a", "2")], Compression::Gzip).to_vec();
    odd[26] = 1;
    odd[35..43].copy_from_slice(&(NOW_MS - 50_000).to_be_bytes());
    odd[60] = 2;
    let crc = strandline_storage::format::batch::crc32c(&odd[21..]);
    odd[17..21].copy_from_slice(&crc.to_be_bytes());
    client.produce("t", [Bytes::from(odd.clone())]).await;
    client.produce("t", [batch_of(&[change("b", "1")], Compression::None)]).await;
    assert_eq!(partition(&opened, topic).await.end(), 5);
    let configs = EAGER.iter().map(|(name, value)| {
        let config = AlterableConfig::default().with_name(text(*name)).with_value(Some(text(*value)));
        config.with_config_operation(0)
    });
    let resource = AlterConfigsResource::default().with_resource_type(2).with_resource_name(text("t"));
    let request = IncrementalAlterConfigsRequest::default()
        .with_resources(vec![resource.with_configs(configs.collect())]);
    assert_eq!(client.call(&request, 1).await.responses[0].error_code, 0);
    sleep(A_WHILE).await;
    let after = partition(&opened, topic).await;
    let range = *after.ranges().first().unwrap();
    assert!(range.compacted && range.end_offset == 5, "{range:?}");
    let bytes = world.store.get(&range.object.key(), None).await.unwrap();
    let batches: Vec<_> = strandline_storage::format::batch::split_batches(
        bytes.slice(usize::try_from(range.position).unwrap()..usize::try_from(range.bytes).unwrap()),
    )
    .map(|found| found.unwrap().0)
    .collect();
    let counts: Vec<(i64, i32)> = batches.iter().map(|b| (b.base_offset, b.record_count)).collect();
    // The odd one supersedes nothing.
    assert_eq!(counts, [(0, 1), (2, 2), (4, 1)]);
}

#[tokio::test(start_paused = true)]
async fn what_lies_behind_a_damaged_range_is_compacted_and_keeps_its_tombstones() {
    let world = World::new();
    let opened = world.broker(1, &FLAGS).await;
    let mut client = TestClient::connect(&opened.broker);
    let mut configs = EAGER.to_vec();
    configs.push(("delete.retention.ms", "0"));
    let topic = client.create_topic("t", 1, &configs).await;
    client.produce("t", [batch_of(&[change("a", "old"), change("b", "old")], Compression::None)]).await;
    let damaged = partition(&opened, topic).await.ranges().first().unwrap().object;
    let right = world.store.get(&damaged.key(), None).await.unwrap();
    let mut wrong = right.to_vec();
    wrong[70] ^= 1;
    world.store.delete(&damaged.key()).await.unwrap();
    world.store.put(&damaged.key(), Payload::from(Bytes::from(wrong))).await.unwrap();
    opened.broker.reader.evict(damaged);
    client.produce("t", [batch_of(&[change("b", "new"), deletion("a")], Compression::None)]).await;
    client.produce("t", [batch_of(&[change("b", "newer")], Compression::None)]).await;
    sleep(A_WHILE * 2).await;
    for i in 0..3 {
        world.clock.0.fetch_add(1, Ordering::Relaxed);
        client.produce("t", [batch_of(&[change("c", &i.to_string())], Compression::None)]).await;
        sleep(A_WHILE).await;
    }
    let after = partition(&opened, topic).await;
    assert_eq!(after.ranges().first().unwrap().object, damaged);
    assert!(after.ranges().iter().skip(1).all(|range| range.compacted));
    let left = read_from(&mut client, 2, 8, 1 << 20).await;
    assert_eq!(left, [(3, deletion("a")), (4, change("b", "newer")), (7, change("c", "2"))]);
    // Once it can be read again, it is compacted with what lies behind it, though nothing is new.
    world.store.delete(&damaged.key()).await.unwrap();
    world.store.put(&damaged.key(), Payload::from(right)).await.unwrap();
    sleep(UNREADABLE_REST + A_WHILE).await;
    // A connection does not live for so long without a request.
    let mut client = TestClient::connect(&opened.broker);
    let left = read_from(&mut client, 0, 8, 1 << 20).await;
    assert_eq!(left, [(3, deletion("a")), (4, change("b", "newer")), (7, change("c", "2"))]);
    assert!(
        partition(&opened, topic)
            .await
            .ranges()
            .iter()
            .all(|range| (range.level, range.compacted) == (2, true))
    );
}

#[tokio::test(start_paused = true)]
async fn keys_that_do_not_fit_into_memory_are_compacted_all_the_same() {
    let world = World::new();
    let mut flags = FLAGS.to_vec();
    flags.extend(["--compact-memory-bytes", "1048576"]);
    let opened = world.broker(1, &flags).await;
    let mut client = TestClient::connect(&opened.broker);
    // Wait for all of it before it is compacted.
    let mut configs = EAGER.to_vec();
    configs.push(("min.compaction.lag.ms", "120000"));
    let topic = client.create_topic("t", 1, &configs).await;
    let mut all = Vec::new();
    for round in 0..2 {
        for from in (0..60_000).step_by(6_000) {
            let changes: Vec<Change> =
                (from..from + 6_000).map(|i| change(&i.to_string(), &round.to_string())).collect();
            client.produce("t", [batch_at(NOW_MS, &changes, Compression::Lz4)]).await;
            all.extend(changes);
        }
    }
    world.clock.0.fetch_add(120_000, Ordering::Relaxed);
    sleep(A_WHILE * 4).await;
    let after = partition(&opened, topic).await;
    assert!(after.ranges().iter().all(|range| range.compacted));
    let left = read_from(&mut client, 0, after.end(), 1 << 24).await;
    assert_eq!(left.len(), 60_000);
    assert_eq!(table(left.iter().map(|(_, change)| change)), table(&all));
    assert_eq!(left.first().unwrap().0, 60_000);
}

#[tokio::test(start_paused = true)]
async fn partitions_that_were_merged_while_they_waited_are_compacted_in_the_same_pass() {
    let world = World::new();
    // A walk takes some seconds, in which whatever is old enough is merged.
    let mut flags = FLAGS.to_vec();
    flags.extend(["--merge-bytes-per-s", "2000"]);
    let opened = world.broker(1, &flags).await;
    let mut client = TestClient::connect(&opened.broker);
    let mut configs = EAGER.to_vec();
    configs.push(("min.compaction.lag.ms", "120000"));
    let topic = client.create_topic("t", 6, &configs).await;
    for round in 0..10 {
        let batch =
            |key: i32| batch_at(NOW_MS, &[change(&key.to_string(), &round.to_string())], Compression::None);
        client.produce("t", (0..6).map(batch)).await;
    }
    world.clock.0.fetch_add(120_000, Ordering::Relaxed);
    sleep(A_WHILE * 12).await;
    opened.broker.replica.barrier().await.unwrap();
    let state = opened.broker.replica.state();
    for number in 0..6 {
        let partition = state.partition(topic, number).unwrap();
        assert!(partition.ranges().iter().all(|range| range.compacted), "partition {number}");
    }
    assert_eq!(metric::<u64>(&opened, "strandline_compacted_partitions_total{outcome=\"done\"}"), 6);
    assert_eq!(metric::<u64>(&opened, "strandline_compacted_partitions_total{outcome=\"given_up\"}"), 0);
}

/// The error of a fetch of partition 0 from the beginning.
async fn fetch_error(client: &mut TestClient) -> i16 {
    let partition = FetchPartition::default().with_partition_max_bytes(1 << 20);
    let topic = FetchTopic::default().with_topic(TopicName(text("t"))).with_partitions(vec![partition]);
    let request = FetchRequest::default().with_min_bytes(1).with_max_bytes(1 << 20);
    client.call(&request.with_topics(vec![topic]), 11).await.responses[0].partitions[0].error_code
}

#[tokio::test(start_paused = true)]
async fn a_damaged_base_offset_is_neither_rewritten_nor_served_where_it_cannot_be() {
    for wrong in [3, 100, i64::MAX] {
        let world = World::new();
        let opened = world.broker(1, &FLAGS).await;
        let mut client = TestClient::connect(&opened.broker);
        let topic = client.create_topic("t", 1, &EAGER).await;
        for value in ["1", "2", "3"] {
            client
                .produce("t", [batch_of(&[change("a", value), change("b", value)], Compression::None)])
                .await;
        }
        sleep(A_WHILE).await;
        let range = *partition(&opened, topic).await.ranges().first().unwrap();
        assert_eq!((range.position, range.compacted, range.batches), (0, true, 1));
        // The batch's own CRC does not cover it.
        let mut bytes = world.store.get(&range.object.key(), None).await.unwrap().to_vec();
        assert_eq!(bytes[..8], 4_i64.to_be_bytes());
        bytes[..8].copy_from_slice(&wrong.to_be_bytes());
        world.store.delete(&range.object.key()).await.unwrap();
        world.store.put(&range.object.key(), Payload::from(Bytes::from(bytes))).await.unwrap();
        opened.broker.reader.evict(range.object);
        if wrong > range.end_offset {
            assert_eq!(fetch_error(&mut client).await, ResponseError::KafkaStorageError.code(), "{wrong}");
        }
        client.produce("t", [batch_of(&[change("a", "4")], Compression::None)]).await;
        sleep(A_WHILE).await;
        let after = partition(&opened, topic).await;
        assert_eq!(after.ranges().first().unwrap(), &range, "{wrong}");
        assert!(metric::<u64>(&opened, "strandline_merge_unreadable_total") > 0, "{wrong}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_range_that_ends_without_records_is_not_rewritten_for_nothing() {
    let world = World::new();
    let opened = world.broker(1, &FLAGS).await;
    let mut client = TestClient::connect(&opened.broker);
    // Ranges span 100 s at most, an eighth of the retention.
    let configs = [
        ("cleanup.policy", "compact,delete"),
        ("retention.ms", "800000"),
        ("min.cleanable.dirty.ratio", "0"),
        ("segment.ms", "1"),
    ];
    let topic = client.create_topic("t", 1, &configs).await;
    let old = |key| batch_at(NOW_MS - 400_000, &[change(key, "1")], Compression::None);
    let new = |key, value| batch_of(&[change(key, value)], Compression::None);
    client.produce("t", [old("stays")]).await;
    client.produce("t", [old("goes")]).await;
    client.produce("t", [new("goes", "2")]).await;
    sleep(A_WHILE).await;
    let before: Vec<_> = partition(&opened, topic).await.ranges().iter().copied().collect();
    assert_eq!(before.len(), 2, "{before:?}");
    // The batch of the key that stays, and one without records.
    assert_eq!((before[0].end_offset, before[0].batches, before[0].compacted), (2, 2, true));
    client.produce("t", [new("other", "1")]).await;
    sleep(A_WHILE).await;
    let after: Vec<_> = partition(&opened, topic).await.ranges().iter().copied().collect();
    assert_eq!(after.len(), 2, "{after:?}");
    assert_eq!((after[0], after[1].end_offset), (before[0], 4));
}

#[tokio::test(start_paused = true)]
async fn one_object_that_does_not_answer_is_left_alone_and_the_rest_is_compacted() {
    let (world, faults) = World::faulty();
    let opened = world.broker(1, &FLAGS).await;
    let mut client = TestClient::connect(&opened.broker);
    let mut configs = EAGER.to_vec();
    configs.push(("min.compaction.lag.ms", "120000"));
    let topic = client.create_topic("t", 3, &configs).await;
    for round in 0..4 {
        for number in 0..3 {
            let batch = batch_at(NOW_MS, &[change("a", &round.to_string())], Compression::None);
            client.produce_to("t", [(number, batch)]).await;
        }
    }
    let denied = partition(&opened, topic).await.ranges().first().unwrap().object;
    deny(&faults, &opened, &[denied]);
    world.clock.0.fetch_add(120_000, Ordering::Relaxed);
    sleep(UNREADABLE_REST / 2).await;
    let state = opened.broker.replica.state();
    for number in 0..3 {
        let partition = state.partition(topic, number).unwrap();
        let dirty = partition.ranges().iter().filter(|range| !range.compacted);
        let dirty: Vec<_> = dirty.map(|range| range.object).collect();
        assert_eq!(dirty, if number == 0 { vec![denied] } else { vec![] }, "partition {number}");
    }
}

/// Histories of changes and deletions, compacted at any moment: whoever reads from the beginning
/// comes to the same table, and what is read has its own offset and is never older than what was
/// read of its key before.
#[tokio::test(start_paused = true)]
async fn any_history_comes_to_the_same_table() {
    const CODECS: [Compression; 5] =
        [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];
    for seed in 0..12 {
        let mut rng = StdRng::seed_from_u64(seed);
        let world = World::new();
        let brokers = [world.broker(1, &FLAGS).await, world.broker(2, &FLAGS).await];
        let mut clients = brokers.each_ref().map(|opened| TestClient::connect(&opened.broker));
        let retention = if seed % 2 == 0 { "0" } else { "20000" };
        let mut configs = EAGER.to_vec();
        configs.push(("delete.retention.ms", retention));
        let topic = clients[0].create_topic("t", 1, &configs).await;
        let mut history = Vec::new();
        for _ in 0..60 {
            let changes: Vec<Change> = (0..rng.random_range(1..6))
                .map(|_| {
                    let key = format!("k{}", rng.random_range(0..9));
                    let value = (!rng.random_bool(0.3)).then(|| history.len().to_string());
                    (key, value)
                })
                .collect();
            history.extend(changes.iter().cloned());
            let codec = CODECS[rng.random_range(0..CODECS.len())];
            clients[rng.random_range(0..2)].produce("t", [batch_of(&changes, codec)]).await;
            world.clock.0.fetch_add(rng.random_range(0..5_000), Ordering::Relaxed);
            sleep(Duration::from_millis(rng.random_range(0..1_500))).await;
        }
        let end = i64::try_from(history.len()).unwrap();
        for _ in 0..3 {
            for client in &mut clients {
                let left = read_from(client, 0, end, 1 << 20).await;
                assert_eq!(table(left.iter().map(|(_, change)| change)), table(&history), "seed {seed}");
                for (offset, change) in &left {
                    assert_eq!(change, &history[usize::try_from(*offset).unwrap()], "seed {seed}");
                }
            }
            sleep(A_WHILE).await;
        }
        let after = partition(&brokers[0], topic).await;
        let left = read_from(&mut clients[0], 0, end, 1 << 20).await;
        let keys: std::collections::BTreeSet<&String> = left.iter().map(|(_, (key, _))| key).collect();
        assert!(after.ranges().iter().all(|range| range.compacted), "seed {seed}");
        assert_eq!(keys.len(), left.len(), "seed {seed}: a key is there twice");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_aborted_supersedes_nothing_and_goes() {
    let world = World::new();
    let opened = world.broker(1, &FLAGS).await;
    let mut client = TestClient::connect(&opened.broker);
    let topic = client.create_topic("t", 1, &EAGER).await;
    let id = || TransactionalId(text("x"));
    let request = InitProducerIdRequest::default().with_transactional_id(Some(id()));
    let producer_id = client.call(&request.with_transaction_timeout_ms(60_000), 5).await.producer_id;
    let mut write = async |epoch, value: &str, committed: Option<bool>| {
        let changes = [change("k", value), change(value, value)];
        let batch = in_transaction(&batch_of(&changes, Compression::None), (*producer_id, epoch, 0));
        let data = PartitionProduceData::default().with_records(Some(batch));
        let data =
            TopicProduceData::default().with_name(TopicName(text("t"))).with_partition_data(vec![data]);
        let request = ProduceRequest::default().with_acks(-1).with_timeout_ms(10_000);
        let request = request.with_transactional_id(Some(id())).with_topic_data(vec![data]);
        assert_eq!(client.call(&request, 12).await.responses[0].partition_responses[0].error_code, 0);
        let Some(committed) = committed else { return };
        let request = EndTxnRequest::default().with_transactional_id(id()).with_producer_id(producer_id);
        let ended = client.call(&request.with_producer_epoch(epoch).with_committed(committed), 5).await;
        assert_eq!(ended.error_code, 0);
    };
    // At 0, 3, 6, 9, with their ends at 2, 5, 8.
    write(0, "one", Some(true)).await;
    write(1, "two", Some(true)).await;
    write(2, "aborted", Some(false)).await;
    write(3, "open", None).await;
    sleep(A_WHILE).await;
    let after = partition(&opened, topic).await;
    assert_eq!((after.last_stable(), after.end()), (9, 11));
    assert_eq!(
        (after.markers().len(), after.aborted().len()),
        (1, 1),
        "what lies behind the last range stays"
    );
    let compacted: Vec<(i64, i64)> =
        after.ranges().iter().filter(|r| r.compacted).map(|r| (r.base_offset, r.end_offset)).collect();
    assert_eq!(compacted, [(0, 8)]);
    let mut reader = TestClient::connect(&opened.broker);
    let kept = vec![(1, change("one", "one")), (3, change("k", "two")), (4, change("two", "two"))];
    let read = read_from(&mut reader, 0, 8, 1 << 20).await;
    let read: Vec<_> = read.into_iter().filter(|(offset, _)| *offset < 8).collect();
    assert_eq!(read, kept);
    let backend: Arc<dyn Backend> = Arc::new(world.backend.clone());
    let report = crate::fsck::run(&backend, &world.store, opened.broker.replica.keys(), true).await.unwrap();
    assert!(report.is_clean(), "{report}");
}
