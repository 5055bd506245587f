use std::slice;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::{join, join_all};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::format::batch::BatchHeader;
use crate::format::batch::tests::batch_of;
use crate::format::merged::{MergeBuilder, MergeFlags, Merged, MergedRange};
use crate::format::segment::{Part, SegmentBuilder, SegmentVersion};
use crate::limits::{BLOCK_BYTES, MERGED_BLOCK_BYTES};
use crate::path::ObjectKey;
use crate::store::{Fault, FaultHandle, FaultPlan, Faulty, ObjectMeta, ObjectStoreBackend, Payload};

const CONFIG: ReaderConfig = ReaderConfig {
    cache_bytes: 256 << 20,
    max_in_flight_bytes: 64 << 20,
    max_merge_in_flight_bytes: 32 << 20,
};

struct Bench {
    reader: Reader,
    store: Arc<ObjectStoreBackend>,
    faults: FaultHandle,
    metrics: StorageMetrics,
    /// Where the ranges of all GETs begin and end.
    gets: Arc<Mutex<Vec<(u64, u64)>>>,
}

/// A store that notes the ranges of its GETs.
#[derive(Debug)]
struct Noting {
    inner: Faulty,
    gets: Arc<Mutex<Vec<(u64, u64)>>>,
}

#[async_trait]
impl Store for Noting {
    async fn put(&self, key: &ObjectKey, payload: Payload) -> Result<(), StoreError> {
        self.inner.put(key, payload).await
    }

    async fn get(&self, key: &ObjectKey, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        self.gets.lock().unwrap().extend(range.as_ref().map(|range| (range.start, range.end)));
        self.inner.get(key, range).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&ObjectKey>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        self.inner.list(prefix, start_after, limit).await
    }
}

impl Bench {
    fn new(config: ReaderConfig) -> Self {
        let store = Arc::new(ObjectStoreBackend::memory());
        let faulty = Faulty::new(Arc::clone(&store) as Arc<dyn Store>, 1);
        let faults = faulty.handle();
        let metrics = StorageMetrics::unregistered();
        let gets = Arc::default();
        let noting = Arc::new(Noting { inner: faulty, gets: Arc::clone(&gets) });
        Self { reader: Reader::new(noting, config, metrics.clone()), store, faults, metrics, gets }
    }

    async fn put(&self, number: u64, bytes: &Bytes) -> ObjectId {
        let id = id(number);
        self.store.put(&id.key(), bytes.clone().into()).await.unwrap();
        id
    }

    /// Hits, misses and joins so far.
    fn counts(&self) -> [u64; 3] {
        [CacheOutcome::Hit, CacheOutcome::Miss, CacheOutcome::Joined].map(|o| self.metrics.cache_requests(o))
    }

    fn fetches(&self) -> usize {
        self.reader.inner.blocks.len() + self.reader.inner.indexes.len()
    }
}

fn id(number: u64) -> ObjectId {
    ObjectId::write(1, number, 7)
}

/// A write object of these batches, and where they end in it.
fn object_of(id: ObjectId, batches: &[Bytes]) -> (Bytes, u64) {
    let mut builder = SegmentBuilder::new(id, SegmentVersion::LATEST);
    builder.push([1; 16], 0, batches.iter().cloned().map(Part::of)).unwrap();
    let end = batches.iter().map(|batch| batch.len() as u64).sum();
    (builder.finish().payload.concat().into(), end)
}

fn random_bytes(seed: u64, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes.into()
}

#[tokio::test]
async fn what_was_written_is_served_from_memory_without_a_copy() {
    let bench = Bench::new(CONFIG);
    let pieces: Vec<Bytes> = (0..4).map(|seed| random_bytes(seed, 1000)).collect();
    bench.reader.insert_written(id(1), pieces.clone());
    bench.faults.set(FaultPlan::outage());
    let found = bench.reader.read(id(1), 4000, 1000..2000).await.unwrap();
    assert_eq!(found, [pieces[1].clone()]);
    assert_eq!(found[0].as_ptr(), pieces[1].as_ptr());
    let found = bench.reader.read_as(ReadKind::CatchUp, id(1), 4000, 500..3500).await.unwrap();
    assert_eq!(found.concat(), pieces.concat()[500..3500]);
    assert_eq!(bench.counts(), [2, 0, 0]);
}

#[tokio::test]
async fn an_object_is_fetched_once_and_then_cached() {
    let bench = Bench::new(CONFIG);
    let bytes = random_bytes(1, 100_000);
    let id = bench.put(1, &bytes).await;
    for range in [0..1, 99_999..100_000, 500..80_000, 0..100_000] {
        let found = bench.reader.read(id, 100_000, range.clone()).await.unwrap();
        let (from, to) = (usize::try_from(range.start).unwrap(), usize::try_from(range.end).unwrap());
        assert_eq!(found, [bytes.slice(from..to)]);
    }
    assert_eq!(bench.counts(), [3, 1, 0]);
    bench.reader.evict(id);
    bench.reader.read(id, 100_000, 0..1).await.unwrap();
    assert_eq!(bench.counts(), [3, 2, 0], "what was evicted is fetched again");
}

#[tokio::test]
async fn a_range_over_several_blocks_is_whole() {
    let bench = Bench::new(CONFIG);
    let size = 2 * BLOCK_BYTES + 1000;
    let bytes = random_bytes(1, usize::try_from(size).unwrap());
    let id = bench.put(1, &bytes).await;
    let edge = usize::try_from(BLOCK_BYTES).unwrap();
    for (from, to) in [(edge - 1, edge), (edge, edge + 1), (edge - 5, edge + 5), (5, 2 * edge + 1000)] {
        let found = bench.reader.read(id, size, from as u64..to as u64).await.unwrap();
        assert!(found.concat() == bytes[from..to], "{from}..{to}");
        assert!(found.iter().all(|piece| !piece.is_empty()), "{from}..{to}");
    }
}

#[tokio::test]
async fn ranges_outside_of_the_object_are_refused() {
    let bench = Bench::new(CONFIG);
    for range in [0..11, 5..5, 11..12] {
        let refused = bench.reader.read(id(1), 10, range).await;
        assert!(matches!(refused, Err(StoreError::Invalid { .. })));
    }
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_share_one_get() {
    let bench = Bench::new(CONFIG);
    let bytes = random_bytes(1, 1000);
    let id = bench.put(1, &bytes).await;
    bench.faults.inject(Operation::Get, Fault::Delay(Duration::from_secs(1)));
    let found = join_all((0..100).map(|i| bench.reader.read(id, 1000, i..i + 10))).await;
    for (i, pieces) in found.into_iter().enumerate() {
        assert_eq!(pieces.unwrap(), [bytes.slice(i..i + 10)]);
    }
    assert_eq!(bench.counts(), [0, 1, 99]);
    assert_eq!(bench.fetches(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_leaves_does_not_disturb_the_others() {
    let bench = Bench::new(CONFIG);
    let bytes = random_bytes(1, 1000);
    let id = bench.put(1, &bytes).await;
    bench.faults.inject(Operation::Get, Fault::Delay(Duration::from_secs(1)));
    // The first to come drives the fetch, and leaves first.
    let leaver = timeout(Duration::from_millis(100), bench.reader.read(id, 1000, 0..10));
    let stayer = async {
        sleep(Duration::from_millis(50)).await;
        let begin = Instant::now();
        let found = bench.reader.read(id, 1000, 0..10).await;
        (found, begin.elapsed())
    };
    let (left, (found, waited)) = join(leaver, stayer).await;
    assert!(left.is_err());
    assert_eq!(found.unwrap(), [bytes.slice(0..10)]);
    assert_eq!(waited, Duration::from_millis(950), "the fetch was not started again");
    assert_eq!(bench.counts(), [0, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_nobody_waits_for_is_given_up() {
    let bench = Bench::new(CONFIG);
    let bytes = random_bytes(1, 1000);
    let id = bench.put(1, &bytes).await;
    bench.faults.inject(Operation::Get, Fault::Hang);
    let left = timeout(Duration::from_secs(1), bench.reader.read(id, 1000, 0..10)).await;
    assert!(left.is_err(), "the first GET hangs");
    assert_eq!(bench.fetches(), 0, "nothing is left of it");
    let begin = Instant::now();
    assert_eq!(bench.reader.read(id, 1000, 0..10).await.unwrap(), [bytes.slice(0..10)]);
    assert_eq!(begin.elapsed(), Duration::ZERO, "the next one starts anew");
}

#[tokio::test(start_paused = true)]
async fn a_failed_get_fails_all_who_wait_and_is_not_remembered() {
    let bench = Bench::new(CONFIG);
    let bytes = random_bytes(1, 1000);
    let id = bench.put(1, &bytes).await;
    bench.faults.set(FaultPlan {
        error_before: 1.0,
        delay: Duration::from_millis(1)..Duration::from_millis(2),
        ..FaultPlan::default()
    });
    let found = join_all((0..10).map(|_| bench.reader.read(id, 1000, 0..10))).await;
    for result in found {
        let error = result.unwrap_err();
        assert!(error.is_retryable());
        assert_eq!(error.key(), Some(id.key().as_str()));
    }
    assert_eq!(bench.faults.injected(), 1);
    bench.faults.clear();
    assert_eq!(bench.reader.read(id, 1000, 0..10).await.unwrap(), [bytes.slice(0..10)]);
}

#[tokio::test]
async fn missing_and_short_objects_are_errors_that_name_them() {
    let bench = Bench::new(CONFIG);
    let missing = bench.reader.read(id(9), 1000, 0..10).await;
    assert_eq!(missing, Err(StoreError::NotFound { key: id(9).key().to_string() }));
    let id = bench.put(1, &random_bytes(1, 500)).await;
    let error = bench.reader.read(id, 1000, 0..10).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert_eq!(error.key(), Some(id.key().as_str()));
    // A store that breaks its contract.
    let id = bench.put(2, &random_bytes(1, 1000)).await;
    bench.faults.inject(Operation::Get, Fault::ShortAnswer);
    let error = bench.reader.read(id, 1000, 0..1000).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    bench.reader.read(id, 1000, 0..1000).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn bytes_in_flight_are_bounded_for_each_kind_of_read() {
    let bench = Bench::new(ReaderConfig { cache_bytes: 1 << 20, max_in_flight_bytes: 2 * 10_240, ..CONFIG });
    let bytes = random_bytes(1, 5000);
    for number in 0..20 {
        bench.put(number, &bytes).await;
    }
    let second = Duration::from_secs(1);
    bench.faults.set(FaultPlan { delay: second..second + Duration::from_nanos(1), ..FaultPlan::default() });
    let begin = Instant::now();
    let past = async {
        join_all((0..10).map(|n| bench.reader.read_as(ReadKind::CatchUp, id(n), 5000, 0..10))).await;
        begin.elapsed()
    };
    let tail = async {
        sleep(Duration::from_millis(1)).await;
        join_all((10..12).map(|n| bench.reader.read(id(n), 5000, 0..10))).await;
        begin.elapsed()
    };
    let (past, tail) = join(past, tail).await;
    assert_eq!(past.as_secs(), 5, "two objects of 5 KB at a time");
    assert_eq!(tail.as_secs(), 1, "the tail does not queue behind the past");
}

#[tokio::test]
async fn an_object_larger_than_all_the_room_is_still_read() {
    let bench = Bench::new(ReaderConfig { cache_bytes: 0, max_in_flight_bytes: 0, ..CONFIG });
    let bytes = random_bytes(1, 50_000);
    let id = bench.put(1, &bytes).await;
    assert_eq!(bench.reader.read(id, 50_000, 7..40_000).await.unwrap(), [bytes.slice(7..40_000)]);
    assert_eq!(bench.reader.inner.lock().bytes(), 0);
}

#[tokio::test]
async fn batches_are_checked_and_cut_where_they_end() {
    let bench = Bench::new(CONFIG);
    let sent: Vec<Bytes> = (0..20).map(|seed| batch_of(seed, usize::try_from(seed * 40).unwrap())).collect();
    let (object, end) = object_of(id(1), &sent);
    let size = object.len() as u64;
    let id = bench.put(1, &object).await;
    for kind in [ReadKind::Tail, ReadKind::CatchUp] {
        let found = bench.reader.read_batches(kind, id, size, 0..end).await.unwrap();
        assert_eq!(found.iter().map(ReadBatch::contiguous).collect::<Vec<_>>(), sent);
        assert!(found.iter().zip(&sent).all(|(batch, sent)| batch.len() == sent.len()));
    }
    let error = bench.reader.read_batches(ReadKind::Tail, id, size, 1..end).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "a range that is no batch: {error}");
}

#[tokio::test]
async fn a_flipped_byte_is_an_error_and_asked_for_again() {
    let sent: Vec<Bytes> = (0..20).map(|seed| batch_of(seed, 200)).collect();
    for seed in 0..200 {
        let bench = Bench::new(CONFIG);
        let (object, end) = object_of(id(seed), &sent);
        let size = object.len() as u64;
        let id = bench.put(seed, &object).await;
        for _ in 0..=seed {
            // Draw another place to flip for each seed.
            bench.faults.inject(Operation::Get, Fault::FlippedByte);
            bench.reader.read(id, size, 0..size).await.unwrap();
            bench.reader.evict(id);
        }
        bench.faults.inject(Operation::Get, Fault::FlippedByte);
        match bench.reader.read_batches(ReadKind::Tail, id, size, 0..end).await {
            Err(error) => {
                assert!(matches!(error, StoreError::Corrupt { .. }), "seed {seed}: {error}");
                assert_eq!(error.key(), Some(id.key().as_str()));
                let again = bench.reader.read_batches(ReadKind::Tail, id, size, 0..end).await.unwrap();
                assert_eq!(again.len(), 20, "seed {seed}: the damage was remembered");
            }
            // Base offset and leader epoch are outside of the CRC, and replaced before anybody sees
            // them.
            Ok(found) => {
                for (found, sent) in found.iter().zip(&sent) {
                    let found = found.contiguous();
                    assert_eq!(found[8..12], sent[8..12], "seed {seed}");
                    assert_eq!(found[16..], sent[16..], "seed {seed}: wrong bytes");
                }
            }
        }
    }
}

#[tokio::test]
async fn other_ranges_of_a_damaged_object_are_served() {
    let bench = Bench::new(CONFIG);
    let sent: Vec<Bytes> = (0..3).map(|seed| batch_of(seed, 200)).collect();
    let mut object = object_of(id(1), &sent).0.to_vec();
    object[300] ^= 1;
    let size = object.len() as u64;
    let id = bench.put(1, &object.into()).await;
    let length = sent[0].len() as u64;
    for batch in 0..3 {
        let range = batch * length..(batch + 1) * length;
        let found = bench.reader.read_batches(ReadKind::Tail, id, size, range).await;
        assert_eq!(found.is_ok(), batch != 1, "batch {batch}");
    }
}

#[tokio::test]
async fn an_object_in_the_place_of_another_one_is_refused() {
    // Of one block, and of several.
    for payload in [200, usize::try_from(BLOCK_BYTES).unwrap()] {
        let bench = Bench::new(ReaderConfig { cache_bytes: 1 << 30, ..CONFIG });
        let sent: Vec<Bytes> = (0..3).map(|seed| batch_of(seed, payload)).collect();
        let (object, _) = object_of(id(1), &sent);
        let size = object.len() as u64;
        let first = 0..sent[0].len() as u64;
        let [right, wrong] = [bench.put(1, &object).await, bench.put(2, &object).await];
        bench.reader.read_batches(ReadKind::Tail, right, size, first.clone()).await.unwrap();
        assert_eq!(bench.metrics.wrong_objects(), 0);
        // Whoever looks ahead gets its bytes into the cache, where they are as wrong.
        bench.reader.read_as(ReadKind::Tail, wrong, size, first.clone()).await.unwrap();
        for times in 1..3 {
            let error =
                bench.reader.read_batches(ReadKind::Tail, wrong, size, first.clone()).await.unwrap_err();
            assert!(error.to_string().contains("says that it is wal/00000007/1-1"), "{error}");
            assert_eq!(error.key(), Some(wrong.key().as_str()));
            assert_eq!(bench.metrics.wrong_objects(), times);
        }
        // It is not remembered once the right one is back.
        bench.put(2, &object_of(wrong, &sent).0).await;
        bench.reader.read_batches(ReadKind::Tail, wrong, size, first).await.unwrap();
    }
}

/// Many readers, objects, faults and departures: whoever gets an answer gets the right one.
#[tokio::test(start_paused = true)]
async fn readers_get_right_bytes_or_an_error_whatever_happens() {
    for seed in 0..20 {
        let bench = Bench::new(ReaderConfig { cache_bytes: 40_000, max_in_flight_bytes: 20_000, ..CONFIG });
        let objects: Vec<Bytes> = (0..10).map(|n| random_bytes(seed * 100 + n, 4000)).collect();
        for (number, bytes) in (0..).zip(&objects) {
            bench.put(number, bytes).await;
        }
        bench.faults.set(FaultPlan {
            error_before: 0.1,
            error_after: 0.1,
            short_answer: 0.1,
            missing: 0.05,
            hang: 0.05,
            delay: Duration::ZERO..Duration::from_millis(20),
            ..FaultPlan::default()
        });
        let (bench, objects) = (&bench, &objects);
        let answered = join_all((0..30_u64).map(|reader| async move {
            let mut rng = StdRng::seed_from_u64(seed * 1000 + reader);
            let mut answered = 0;
            for _ in 0..50 {
                let number = rng.random_range(0..10_usize);
                let from = rng.random_range(0..4000_usize);
                let to = rng.random_range(from + 1..=4000);
                let kind = if rng.random_bool(0.5) { ReadKind::Tail } else { ReadKind::CatchUp };
                let range = from as u64..to as u64;
                let read = bench.reader.read_as(kind, id(number as u64), 4000, range);
                let patience = Duration::from_millis(rng.random_range(1..60));
                if let Ok(Ok(found)) = timeout(patience, read).await {
                    assert_eq!(found.concat(), objects[number][from..to], "seed {seed}");
                    answered += 1;
                }
                if rng.random_bool(0.1) {
                    bench.reader.evict(id(number as u64));
                }
                sleep(Duration::from_millis(rng.random_range(0..5))).await;
            }
            answered
        }))
        .await;
        assert!(answered.iter().sum::<i32>() > 300, "seed {seed}: hardly anybody was answered");
        assert_eq!(bench.fetches(), 0, "seed {seed}");
        let room = &bench.reader.inner;
        for room in [&room.tail_room, &room.catch_up_room, &room.merge_room] {
            assert_eq!(room.permits.available_permits(), room.units as usize, "seed {seed}: room was lost");
        }
    }
}

#[test]
fn a_reader_is_shown_without_its_contents() {
    let bench = Bench::new(CONFIG);
    bench.reader.insert_written(id(1), vec![Bytes::from_static(b"secret record")]);
    assert!(!format!("{:?}", bench.reader).contains("secret"));
}

/// Batches of `payload` bytes in a merged object, three of each of two partitions, and its size.
async fn put_merged(bench: &Bench, id: ObjectId, payload: usize) -> (Merged, u64) {
    let mut builder = MergeBuilder::new(id);
    for partition in 0..2 {
        builder.begin([1; 16], partition, MergeFlags::default()).unwrap();
        for offset in 0..3_i64 {
            let batch = batch_of(offset.cast_unsigned(), payload);
            let header = BatchHeader::parse(&batch).unwrap();
            builder.push_pieces(&header, [&batch].into_iter(), 10 + offset).unwrap();
        }
    }
    let merged = builder.finish().unwrap();
    bench.store.put(&id.key(), merged.payload.clone()).await.unwrap();
    let size = merged.size;
    (merged, size)
}

fn merged_id(number: u64) -> ObjectId {
    ObjectId::merge(1, number, 7)
}

impl Bench {
    /// Hits, misses and joins of indexes so far.
    fn index_counts(&self) -> [u64; 3] {
        [CacheOutcome::Hit, CacheOutcome::Miss, CacheOutcome::Joined].map(|o| self.metrics.index_requests(o))
    }
}

#[tokio::test]
async fn batches_of_a_merged_object_have_their_real_offsets() {
    let bench = Bench::new(CONFIG);
    for (number, payload) in [(1, 100), (2, 7_000_000)] {
        let id = merged_id(number);
        let (merged, size) = put_merged(&bench, id, payload).await;
        let index = bench.reader.merged_index(ReadKind::CatchUp, id, size).await.unwrap();
        assert_eq!(index.ranges(), merged.ranges);
        for kind in [ReadKind::Tail, ReadKind::CatchUp] {
            for (partition, offset) in [(0, 10), (0, 12), (1, 11)] {
                let span = index.locate([1; 16], partition, offset, 1).unwrap();
                let range = span.position..span.position + span.bytes;
                let found = bench.reader.read_batches(kind, id, size, range).await.unwrap();
                assert_eq!(found[0].header.base_offset, span.base_offset);
                assert!(found.iter().any(|batch| batch.header.base_offset == offset), "{kind:?}");
                assert!(found.iter().all(|batch| batch.header.partition_leader_epoch == 0));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_index_is_fetched_once_for_all_who_wait_and_then_kept() {
    let bench = Bench::new(CONFIG);
    let id = merged_id(1);
    let (_, size) = put_merged(&bench, id, 100).await;
    bench.faults.inject(Operation::Get, Fault::Delay(Duration::from_secs(1)));
    let found = join_all((0..10).map(|_| bench.reader.merged_index(ReadKind::Tail, id, size))).await;
    assert!(found.iter().all(Result::is_ok));
    assert_eq!(bench.index_counts(), [0, 1, 9]);
    bench.faults.set(FaultPlan::outage());
    for kind in [ReadKind::Tail, ReadKind::CatchUp] {
        bench.reader.merged_index(kind, id, size).await.unwrap();
    }
    assert_eq!(bench.index_counts(), [2, 1, 9]);
    bench.reader.evict(id);
    assert!(bench.reader.merged_index(ReadKind::Tail, id, size).await.unwrap_err().is_retryable());
    bench.faults.clear();
    bench.reader.merged_index(ReadKind::Tail, id, size).await.unwrap();
    assert_eq!(bench.fetches(), 0);
}

#[tokio::test]
async fn an_index_of_what_is_in_memory_needs_no_get() {
    let bench = Bench::new(CONFIG);
    let [written, read] = [1, 2].map(merged_id);
    let (merged, size) = put_merged(&bench, written, 100).await;
    bench.reader.insert_written(written, merged.payload.into_pieces());
    put_merged(&bench, read, 100).await;
    bench.reader.read(read, size, 0..1).await.unwrap();
    bench.faults.set(FaultPlan::outage());
    for id in [written, read] {
        bench.reader.merged_index(ReadKind::CatchUp, id, size).await.unwrap();
    }
}

#[tokio::test]
async fn indexes_are_kept_within_their_bound() {
    let bench = Bench::new(CONFIG);
    let mut sizes = Vec::new();
    for number in 0..6 {
        let id = merged_id(number);
        let mut builder = MergeBuilder::new(id);
        let batch = batch_of(1, 10);
        let header = BatchHeader::parse(&batch).unwrap();
        for partition in 0..60_000 {
            builder.begin([1; 16], partition, MergeFlags::default()).unwrap();
            builder.push_pieces(&header, [&batch].into_iter(), 0).unwrap();
        }
        let merged = builder.finish().unwrap();
        bench.store.put(&id.key(), merged.payload).await.unwrap();
        sizes.push(merged.size);
        bench.reader.merged_index(ReadKind::CatchUp, id, merged.size).await.unwrap();
    }
    assert_eq!(bench.index_counts(), [0, 6, 0]);
    // The last ones are there, and the first one had to go.
    for number in [5, 0] {
        let size = sizes[usize::try_from(number).unwrap()];
        bench.reader.merged_index(ReadKind::CatchUp, merged_id(number), size).await.unwrap();
    }
    assert_eq!(bench.index_counts(), [1, 7, 0]);
}

#[tokio::test]
async fn what_is_no_index_is_an_error_that_names_the_object_and_is_not_kept() {
    let bench = Bench::new(CONFIG);
    let id = merged_id(1);
    let missing = bench.reader.merged_index(ReadKind::Tail, id, 1000).await;
    assert_eq!(missing, Err(StoreError::NotFound { key: id.key().to_string() }));
    let (merged, size) = put_merged(&bench, id, 100).await;
    let mut damaged = merged.payload.concat();
    let at = damaged.len() - 60;
    damaged[at] ^= 1;
    bench.store.put(&id.key(), Bytes::from(damaged).into()).await.unwrap();
    let swapped = merged_id(2);
    bench.store.put(&swapped.key(), merged.payload.clone()).await.unwrap();
    for (id, what) in [(id, "the CRC of its index"), (swapped, "says that it is merge/00000007/1-1")] {
        let error = bench.reader.merged_index(ReadKind::CatchUp, id, size).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains(what), "{error}");
        assert_eq!(error.key(), Some(id.key().as_str()));
    }
    assert_eq!(bench.metrics.wrong_objects(), 1);
    put_merged(&bench, id, 100).await;
    bench.reader.merged_index(ReadKind::CatchUp, id, size).await.unwrap();
}

fn span(range: &MergedRange) -> Range<u64> {
    range.position..range.position + range.length
}

#[test]
fn neighbours_are_fetched_together_but_little_in_vain() {
    let of = |ranges: &[Range<u64>]| {
        joined(ranges).into_iter().map(|joined| (joined.span, joined.ranges)).collect::<Vec<_>>()
    };
    assert_eq!(of(&[]), []);
    assert_eq!(of(&[0..10, 10..30, 30..31]), [(0..31, 3)]);
    assert_eq!(of(&[0..10, 20..30]), [(0..30, 2)]);
    assert_eq!(of(&[0..10, 31..41]), [(0..10, 1), (31..41, 1)]);
    // What is near is worth what lies farther on.
    assert_eq!(of(&[0..10, 10..20, 40..50]), [(0..50, 3)]);
    let block = BLOCK_BYTES;
    assert_eq!(
        of(&[0..block - 1, block - 1..block, block..block + 5]),
        [(0..block, 2), (block..block + 5, 1)]
    );
    assert_eq!(of(&[0..3 * block, 3 * block..4 * block]), [(0..3 * block, 1), (3 * block..4 * block, 1)]);
}

#[tokio::test]
async fn a_read_for_merging_fetches_what_it_asks_for_and_keeps_nothing() {
    let bench = Bench::new(ReaderConfig { cache_bytes: 400 << 20, ..CONFIG });
    let id = merged_id(1);
    let (merged, size) = put_merged(&bench, id, 7_000_000).await;
    let gets = || bench.gets.lock().unwrap().drain(..).collect::<Vec<_>>();
    let range = span(&merged.ranges[0]);
    let whole = merged.payload.concat();
    // More than a block, in two GETs, and the footer, once.
    for times in 0..2 {
        let mut found = bench.reader.read_for_merge(id, size, slice::from_ref(&range)).await;
        assert_eq!(found.remove(0).unwrap().batches().unwrap().len(), 3);
        let mut expected = vec![(0, BLOCK_BYTES), (BLOCK_BYTES, range.end)];
        if times == 0 {
            expected.push((size - 52, size));
        }
        assert_eq!(gets(), expected);
    }
    assert_eq!(bench.reader.merge_gets(), 5, "that of the footer, too");
    assert_eq!(bench.counts(), [0, 0, 0]);
    // What is cached as a whole is taken from there, and stays; what is not is fetched.
    bench.reader.read_as(ReadKind::CatchUp, id, size, BLOCK_BYTES..BLOCK_BYTES + 1).await.unwrap();
    assert_eq!(gets(), [(BLOCK_BYTES, BLOCK_BYTES + MERGED_BLOCK_BYTES)]);
    let (in_block, across) = (BLOCK_BYTES + 5..BLOCK_BYTES + 15, BLOCK_BYTES - 10..BLOCK_BYTES + 5);
    let found = bench.reader.read_for_merge(id, size, &[across.clone(), in_block.clone()]).await;
    assert_eq!(gets(), [(across.start, across.end)]);
    for (found, range) in found.into_iter().zip([across, in_block]) {
        let [from, to] = [range.start, range.end].map(|at| usize::try_from(at).unwrap());
        assert!(found.unwrap().pieces().concat() == whole[from..to]);
    }
    for wrong in [[0..0, 1..2], [0..5, 4..9], [9..10, 1..2], [0..1, 5..size + 1]] {
        let found = bench.reader.read_for_merge(id, size, &wrong).await;
        assert_eq!(found.len(), wrong.len());
        assert!(found.iter().all(|read| matches!(read, Err(StoreError::Invalid { .. }))), "{wrong:?}");
    }
}

#[tokio::test]
async fn what_a_partition_has_is_fetched_without_its_neighbours_if_it_is_much() {
    let bench = Bench::new(CONFIG);
    let (much, little) = (merged_id(1), merged_id(2));
    let kind = ReadKind::CatchUp;
    let gets = || bench.gets.lock().unwrap().drain(..).collect::<Vec<_>>();
    let (merged, size) = put_merged(&bench, much, 3_000_000).await;
    let range = span(&merged.ranges[1]);
    let part = |from, to| ReadPart {
        stretch: Some(Stretch { position: range.start, bytes: range.end - range.start }),
        ..ReadPart::of(much, size, from..to)
    };
    let third = (range.end - range.start) / 3;
    assert!(bench.reader.lacks(&part(range.start, range.end)));
    bench.reader.merged_index(kind, much, size).await.unwrap();
    gets();
    bench.reader.read_ahead(kind, &part(range.start + third, range.end)).await.unwrap();
    assert_eq!(gets(), [(range.start, range.end)], "all of it, and nothing else");
    assert!(!bench.reader.lacks(&part(range.start, range.end)));
    for (from, to, batches) in [(range.start, range.start + third, 1), (range.start, range.end, 3)] {
        let read = bench.reader.read_range(kind, part(from, to)).await.unwrap();
        assert_eq!(read.batches.len(), batches);
    }
    let mut raw = bench.reader.read_for_merge(much, size, slice::from_ref(&range)).await;
    assert_eq!(raw.remove(0).unwrap().batches().unwrap().len(), 3);
    assert_eq!((gets(), bench.reader.merge_gets()), (vec![], 0), "it is in memory");
    bench.reader.evict(much);
    assert!(bench.reader.lacks(&part(range.start, range.end)));
    // Little of it comes with its neighbours.
    let (merged, size) = put_merged(&bench, little, 1_000).await;
    let range = span(&merged.ranges[1]);
    let stretch = Some(Stretch { position: range.start, bytes: range.end - range.start });
    let part = ReadPart { stretch, ..ReadPart::of(little, size, range.clone()) };
    assert_eq!(bench.reader.read_range(kind, part).await.unwrap().batches.len(), 3);
    assert_eq!(gets(), [(0, size)]);
}

#[tokio::test]
async fn what_is_read_for_merging_keeps_little_else_in_memory() {
    let bench = Bench::new(CONFIG);
    let id = merged_id(1);
    let (_, size) = put_merged(&bench, id, 1_000).await;
    let found = bench.reader.read_for_merge(id, size, &[0..400, 700..1_000]).await;
    assert_eq!(bench.gets.lock().unwrap().drain(..).collect::<Vec<_>>()[0].0, 0, "with one GET");
    for (found, bytes) in found.into_iter().zip([400, 300]) {
        let pieces = found.unwrap().pieces();
        let own: Vec<usize> = pieces.into_iter().map(|piece| Vec::from(piece).capacity()).collect();
        assert_eq!(own, [bytes], "a copy");
    }
}

#[tokio::test]
async fn a_read_for_merging_near_the_end_brings_the_footer_along() {
    let bench = Bench::new(CONFIG);
    let sent: Vec<Bytes> = (0..3).map(|seed| batch_of(seed, 300)).collect();
    let (object, end) = object_of(id(1), &sent);
    let size = object.len() as u64;
    let [right, wrong] = [bench.put(1, &object).await, bench.put(2, &object).await];
    let read = async |id| bench.reader.read_for_merge(id, size, slice::from_ref(&(0..end))).await.remove(0);
    for times in 0..2 {
        let found = read(right).await.unwrap().batches().unwrap();
        assert_eq!(found.iter().map(ReadBatch::contiguous).collect::<Vec<_>>(), sent);
        let to = if times == 0 { size } else { end };
        assert_eq!(bench.gets.lock().unwrap().drain(..).collect::<Vec<_>>(), [(0, to)]);
    }
    let error = read(wrong).await.unwrap_err();
    assert!(error.to_string().contains("says that it is wal/00000007/1-1"), "{error}");
    // What is wrong with an object that was known is noticed again once it was forgotten.
    bench.put(1, &object_of(wrong, &sent).0).await;
    bench.reader.evict(right);
    assert!(read(right).await.is_err());
    assert_eq!(bench.metrics.wrong_objects(), 2);
}

#[tokio::test]
async fn a_read_for_merging_tells_where_an_object_is_damaged() {
    let bench = Bench::new(CONFIG);
    let id = merged_id(1);
    let (merged, size) = put_merged(&bench, id, 300).await;
    let mut damaged = merged.payload.concat();
    let ranges: Vec<Range<u64>> = merged.ranges.iter().map(span).collect();
    // The magic byte of the second batch.
    damaged[361 + 16] ^= 1;
    bench.store.put(&id.key(), Bytes::from(damaged.clone()).into()).await.unwrap();
    let mut found = bench.reader.read_for_merge(id, size, &ranges).await;
    found.remove(1).unwrap().batches().unwrap();
    let error = found.remove(0).unwrap().batches().unwrap_err();
    assert!(error.to_string().contains("no valid record batch at 361"), "{error}");
    let missing = bench.reader.read_for_merge(merged_id(2), size, &ranges).await;
    assert!(missing.iter().all(|read| matches!(read, Err(StoreError::NotFound { .. }))), "{missing:?}");
    // What is left of an object that has lost its end is found, once it is known to be the one.
    damaged.truncate(usize::try_from(ranges[1].end - 1).unwrap());
    bench.store.put(&id.key(), Bytes::from(damaged).into()).await.unwrap();
    let found = bench.reader.read_for_merge(id, size, &ranges).await;
    assert!(matches!(&found[1], Err(StoreError::Corrupt { .. })), "{found:?}");
    assert!(found[0].is_ok(), "{found:?}");
}

#[tokio::test]
async fn merging_pushes_nothing_out_of_the_cache() {
    let bench = Bench::new(ReaderConfig { cache_bytes: 10_000, ..CONFIG });
    // There is room for two of these, and the second one was used last.
    for number in 0..4 {
        bench.put(number, &random_bytes(number, 4000)).await;
    }
    for number in [0, 1] {
        bench.reader.read_as(ReadKind::CatchUp, id(number), 4000, 0..1).await.unwrap();
    }
    for number in [2, 3, 0] {
        // They are no objects at all, so that nothing comes of it.
        bench.reader.read_for_merge(id(number), 4000, slice::from_ref(&(0..100))).await;
    }
    let before = bench.counts();
    bench.reader.read_as(ReadKind::CatchUp, id(2), 4000, 0..1).await.unwrap();
    bench.reader.read_as(ReadKind::CatchUp, id(1), 4000, 0..1).await.unwrap();
    assert_eq!(bench.counts(), [before[0] + 1, before[1] + 1, before[2]], "the one used last is still there");
}

#[tokio::test(start_paused = true)]
async fn merging_has_room_of_its_own() {
    let bench = Bench::new(ReaderConfig { max_merge_in_flight_bytes: 10_240, ..CONFIG });
    for number in 0..8 {
        bench.put(number, &random_bytes(number, 100_000)).await;
    }
    let second = Duration::from_secs(1);
    bench.faults.set(FaultPlan { delay: second..second + Duration::from_nanos(1), ..FaultPlan::default() });
    let begin = Instant::now();
    let merging = async {
        join_all((0..6).map(|n| {
            let reader = &bench.reader;
            // What is no object has no footer, which is one more GET.
            reader.inner.lock().note_identified(id(n));
            async move { reader.read_for_merge(id(n), 100_000, slice::from_ref(&(0..5000))).await }
        }))
        .await;
        begin.elapsed()
    };
    let others = async {
        join_all([6, 7].map(|n| bench.reader.read(id(n), 100_000, 0..5000))).await;
        begin.elapsed()
    };
    let (merging, others) = join(merging, others).await;
    assert_eq!(
        (merging.as_secs(), others.as_secs()),
        (3, 1),
        "two merges at a time, and nobody waits for them"
    );
}
