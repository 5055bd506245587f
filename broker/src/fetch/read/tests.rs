//! Reading from a store that is slow, or has lost something.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::records::Compression;
use strandline_storage::error::Operation;
use strandline_storage::path::ObjectId;
use strandline_storage::store::{Fault, FaultHandle, FaultPlan, Faulty, ObjectStoreBackend};

use super::*;
use crate::limits::{FETCH_READS_FOR, NARROWED_RANGE_BYTES};
use crate::records::tests::batch;
use crate::run::Opened;
use crate::testing::{TestClient, World};

/// A broker that reads what another one has written, from a store with faults.
struct Reading {
    _writer: Opened,
    reader: Opened,
    faults: FaultHandle,
    client: TestClient,
    wanted: Vec<PartitionRead>,
}

impl Reading {
    async fn new(partitions: i32) -> Self {
        let faulty = Faulty::new(Arc::new(ObjectStoreBackend::memory()), 1);
        let faults = faulty.handle();
        let world = World::with_store(Arc::new(faulty));
        let writer = world.broker(1, &["--put-budget-per-s", "1000"]).await;
        let reader = world.broker(2, &[]).await;
        let mut client = TestClient::connect(&writer.broker);
        let topic = Ok(client.create_topic("t", partitions, &[]).await);
        let wanted = (0..partitions)
            .map(|partition| PartitionRead {
                topic,
                partition,
                offset: 0,
                max_bytes: 1 << 20,
                leader_epoch: -1,
                is_committed: false,
            })
            .collect();
        Self { _writer: writer, reader, faults, client, wanted }
    }

    /// Writes a record to each partition, in an object of its own.
    async fn produce(&mut self) {
        let batches = self.wanted.iter().map(|_| batch(Compression::None, 0, 1)).collect::<Vec<_>>();
        self.client.produce("t", batches).await;
    }

    fn is_slow(&self, delay: Duration) {
        let delay = delay..delay + Duration::from_millis(1);
        self.faults.set(FaultPlan { delay, ..FaultPlan::default() });
    }

    /// What the reader knows now.
    async fn assess(&self) -> Vec<Assessment> {
        let replica = &self.reader.broker.replica;
        replica.barrier().await.unwrap();
        let mut budget = PlanBudget::new(usize::MAX);
        replica.read(|view| self.wanted.iter().map(|w| plan::assess(&view.state, w, &mut budget)).collect())
    }

    async fn read(&self, assessed: Vec<Assessment>) -> Vec<Fetched> {
        let budgets = assessed.iter().map(|_| Some(1 << 20)).collect();
        let until = Instant::now() + FETCH_READS_FOR;
        read(&self.reader.broker, &self.wanted, assessed, budgets, until).await
    }
}

#[tokio::test]
async fn what_is_planned_again_has_its_own_end() {
    let mut reading = Reading::new(1).await;
    reading.produce().await;
    let old = reading.assess().await;
    reading.produce().await;
    assert_eq!(reading.assess().await[0].high_watermark, 2);
    reading.faults.inject(Operation::Get, Fault::Missing);
    let fetched = reading.read(old).await.remove(0);
    assert_eq!(reading.faults.injected(), 1);
    assert_eq!((fetched.error, fetched.records.count), (None, 2));
    assert_eq!((fetched.high_watermark, fetched.last_stable), (2, 2), "no record lies above the end");
}

#[tokio::test(start_paused = true)]
async fn what_was_not_read_in_time_is_there_for_the_next_fetch() {
    let mut reading = Reading::new(3).await;
    reading.produce().await;
    reading.is_slow(FETCH_READS_FOR * 5 / 4);
    let begun = Instant::now();
    let first = reading.read(reading.assess().await).await;
    assert!(begun.elapsed() <= FETCH_READS_FOR + Duration::from_millis(10));
    for fetched in &first {
        let empty = (fetched.error, fetched.records.count, fetched.high_watermark);
        assert_eq!(empty, (None, 0, 1), "it is not there yet, which is no error");
    }
    let second = reading.read(reading.assess().await).await;
    assert!(second.iter().all(|fetched| fetched.records.count == 1));
    assert!(begun.elapsed() < FETCH_READS_FOR * 2, "the first fetch had begun to read it");
}

#[tokio::test(start_paused = true)]
async fn every_partition_gets_something_of_many_slow_objects() {
    let mut reading = Reading::new(40).await;
    // Each in an object of its own, so that nothing is shared.
    for partition in 0..40 {
        reading.client.produce_to("t", [(partition, batch(Compression::None, 0, 1))]).await;
    }
    for _ in 0..5 {
        reading.produce().await;
    }
    reading.is_slow(FETCH_READS_FOR * 4 / 5);
    let begun = Instant::now();
    let fetched = reading.read(reading.assess().await).await;
    assert!(begun.elapsed() <= FETCH_READS_FOR + Duration::from_millis(10));
    assert!(fetched.iter().all(|f| f.error.is_none() && f.records.count > 0), "{fetched:?}");
}

#[tokio::test(start_paused = true)]
async fn a_read_serves_all_partitions_that_lie_together() {
    let mut reading = Reading::new(100).await;
    for _ in 0..20 {
        reading.produce().await;
    }
    let assessed = reading.assess().await;
    let slow = FETCH_READS_FOR / 4;
    reading.is_slow(slow);
    let begun = Instant::now();
    let fetched = reading.read(assessed).await;
    assert!(fetched.iter().all(|f| f.records.count == 20));
    assert!(begun.elapsed() < slow * 2, "all of the 20 objects are read at the same time");
}

/// A range of an object, as it is planned.
fn planned(object: ObjectId, position: u64, bytes: u64) -> PlannedRange {
    let range = strandline_metadata::state::Range {
        base_offset: 0,
        end_offset: 1,
        object,
        position,
        bytes,
        max_timestamp_ms: 0,
        batches: 1,
        level: 0,
        compacted: false,
    };
    let object_bytes = position + bytes;
    PlannedRange { range, stretch: range.stretch(), object_bytes, tail: false, is_part: false }
}

#[test]
fn blocks_with_first_ranges_come_first_and_the_fullest_of_them() {
    let range = |number, bytes| planned(ObjectId::write(1, number, 0), 0, bytes);
    let partitions = [
        PartitionRecords::new(0, 10_000, &Assessment::planned(vec![range(1, 100), range(3, 900)])),
        PartitionRecords::new(0, 10_000, &Assessment::planned(vec![range(2, 60)])),
        PartitionRecords::new(0, 10_000, &Assessment::planned(vec![range(2, 60), range(1, 100)])),
    ];
    let order: Vec<Vec<(usize, usize)>> =
        blocks(&partitions).iter().map(|b| b.iter().map(|r| (r.partition, r.index)).collect()).collect();
    assert_eq!(order, [vec![(1, 0), (2, 0)], vec![(0, 0), (2, 1)], vec![(0, 1)]]);
}

#[test]
fn of_a_large_range_only_the_beginning_is_read_ahead() {
    let range = |bytes| planned(ObjectId::merge(1, 1, 0), 77, bytes);
    let (small, large) = (NARROWED_RANGE_BYTES, NARROWED_RANGE_BYTES * 30);
    assert_eq!(range(small).beginning().part(), range(small).part());
    let beginning = range(large).beginning().part();
    assert_eq!(beginning.range, 77..77 + NARROWED_RANGE_BYTES);
    assert_eq!(beginning.stretch, range(large).part().stretch, "in the block that will be asked for");
}
