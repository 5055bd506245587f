//! The way of a batch: into a write object, through a store that fails, and back out of a broker
//! that wrote it and one that did not.

#![allow(clippy::unwrap_used, reason = "helpers of tests are outside of what clippy calls a test")]

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use strandline_storage::format::batch::{BATCH_HEADER_BYTES, VerifiedBatch, crc32c, verify};
use strandline_storage::format::segment::{
    Index, Part, SegmentBuilder, SegmentRange, SegmentVersion, read_index,
};
use strandline_storage::store::{
    FaultPlan, Faulty, Measured, ObjectStoreBackend, RetryPolicy, Retrying, TimeLimited,
};
use strandline_storage::{
    ObjectId, ReadBatch, ReadKind, Reader, ReaderConfig, StorageMetrics, Store, StoreError, SystemClock,
};

fn batch(rng: &mut StdRng) -> Bytes {
    let payload_bytes = if rng.random_bool(0.1) { 20_000 } else { rng.random_range(1..2000) };
    let mut covered = BytesMut::new();
    covered.put_i16(0);
    covered.put_i32(0);
    covered.put_i64(1);
    covered.put_i64(1);
    covered.put_i64(-1);
    covered.put_i16(-1);
    covered.put_i32(-1);
    covered.put_i32(1);
    covered.put_bytes(rng.random(), payload_bytes);
    let mut batch = BytesMut::new();
    batch.put_i64(0);
    batch.put_i32(i32::try_from(BATCH_HEADER_BYTES - 12 + payload_bytes).unwrap());
    batch.put_i32(-1);
    batch.put_i8(2);
    batch.put_u32(crc32c(&covered));
    batch.extend_from_slice(&covered);
    verify(&batch).unwrap();
    batch.freeze()
}

fn reader(store: &Arc<dyn Store>) -> Reader {
    let config = ReaderConfig {
        cache_bytes: 4 << 20,
        max_in_flight_bytes: 32 << 20,
        max_merge_in_flight_bytes: 32 << 20,
    };
    Reader::new(Arc::clone(store), config, StorageMetrics::unregistered())
}

async fn check(
    reader: &Reader,
    id: ObjectId,
    size: u64,
    index: &Index,
    range: &SegmentRange,
    sent: &[Bytes],
) {
    let place = range.position..range.position + range.length;
    let found = reader.read_batches(ReadKind::Tail, id, size, place.clone()).await.unwrap();
    assert!(
        found.iter().map(ReadBatch::contiguous).eq(sent.iter().cloned()),
        "{id}: other batches came back"
    );
    let pieces = reader.read(id, size, place).await.unwrap();
    index.verify(range, &pieces).unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_written_is_read_by_its_writer_and_by_others() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let faulty = Faulty::new(Arc::new(ObjectStoreBackend::memory()), seed);
        faulty.handle().set(FaultPlan {
            error_before: 0.2,
            error_after: 0.2,
            slow_down: 0.1,
            hang: 0.05,
            delay: Duration::ZERO..Duration::from_millis(100),
            ..FaultPlan::default()
        });
        let limited = TimeLimited::new(Arc::new(faulty), Duration::from_secs(2));
        let measured =
            Measured::new(Arc::new(limited), StorageMetrics::unregistered(), Arc::new(SystemClock));
        let policy = RetryPolicy { budget: Duration::from_mins(2), ..RetryPolicy::default() };
        let store: Arc<dyn Store> = Arc::new(Retrying::new(Arc::new(measured), policy, seed));
        let (writer, other) = (reader(&store), reader(&store));
        for number in 0..10 {
            let id = ObjectId::write(5, number, rng.random());
            let version = if seed % 2 == 0 { SegmentVersion::V1 } else { SegmentVersion::V2 };
            let mut builder = SegmentBuilder::new(id, version);
            let mut sent = Vec::new();
            for partition in 0..rng.random_range(1..20) {
                let batches: Vec<VerifiedBatch> = (0..rng.random_range(1..5))
                    .map(|_| match VerifiedBatch::new(batch(&mut rng)).unwrap() {
                        batch if rng.random_bool(0.2) => batch.with_log_append_time(77),
                        batch => batch,
                    })
                    .collect();
                builder.push([1; 16], partition, batches.iter().map(Part::from)).unwrap();
                sent.push(batches.iter().map(|batch| batch.bytes().clone()).collect::<Vec<_>>());
            }
            let segment = builder.finish();
            store.put(&id.key(), segment.payload.clone()).await.unwrap();
            writer.insert_written(id, segment.payload.into_pieces());
            let index = read_index(&*store, &id.key(), segment.size).await.unwrap();
            assert_eq!(index.ranges, segment.ranges);
            for (range, sent) in segment.ranges.iter().zip(&sent) {
                check(&writer, id, segment.size, &index, range, sent).await;
                check(&other, id, segment.size, &index, range, sent).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn cached_reads_go_on_while_the_store_is_gone() {
    let faulty = Faulty::new(Arc::new(ObjectStoreBackend::memory()), 1);
    let faults = faulty.handle();
    let store: Arc<dyn Store> = Arc::new(Retrying::new(Arc::new(faulty), RetryPolicy::default(), 1));
    let reader = reader(&store);
    let mut rng = StdRng::seed_from_u64(1);
    let ids = [1, 2, 3].map(|number| ObjectId::write(1, number, 0));
    let sent = batch(&mut rng);
    let size = sent.len() as u64;
    for id in ids {
        store.put(&id.key(), sent.clone().into()).await.unwrap();
    }
    reader.insert_written(ids[0], vec![sent.clone()]);
    reader.read(ids[1], size, 0..size).await.unwrap();
    faults.set(FaultPlan::outage());
    for id in [ids[0], ids[1]] {
        assert_eq!(reader.read(id, size, 0..size).await.unwrap().concat(), sent, "{id} was in memory");
    }
    let gone = reader.read(ids[2], size, 0..size).await;
    assert!(matches!(gone, Err(StoreError::Unavailable { .. })), "{gone:?}");
    faults.clear();
    assert_eq!(reader.read(ids[2], size, 0..size).await.unwrap(), [sent], "it comes back by itself");
}
