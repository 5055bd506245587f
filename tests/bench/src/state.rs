//! What a large state costs those who read it, and what those who read it cost the ones that follow
//! the log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use strandline_metadata::record::{
    Body, Flush, FlushBatch, FlushPartition, FlushTopic, Record, TopicCreated,
};
use strandline_metadata::snapshot::{SnapshotStamp, SnapshotWriter};
use strandline_metadata::state::{Position, State};
use strandline_storage::store::{ObjectStoreBackend, Store};
use uuid::Uuid;

use crate::report::{Report, percentile};

const TOPICS: u128 = 100;
const PARTITIONS: u32 = 10;
/// Flushes, each with an object of its own and a range of one partition.
const RANGES: u64 = 1_000_000;

struct Log {
    state: State,
    sequence: u64,
}

impl Log {
    /// Applies a record, and says how long that took.
    fn apply(&mut self, body: &Body) -> Duration {
        self.sequence += 1;
        let at = Position { revision: self.sequence as i64, sequence: self.sequence, incarnation: 1 };
        let record = Record::new(0, body.clone());
        let begun = Instant::now();
        self.state.apply(at, &record, body).expect("it can be applied");
        begun.elapsed()
    }

    fn flush(&self) -> Body {
        let (number, partition) = (self.sequence, (self.sequence / TOPICS as u64) as u32 % PARTITIONS);
        let topic_id = topic(u128::from(number) % TOPICS).as_bytes().to_vec();
        let batches = vec![FlushBatch { offsets: 10, bytes: 10_000, ..FlushBatch::default() }];
        let partitions = vec![FlushPartition { partition, position: 0, batches }];
        let topics = vec![FlushTopic { topic_id, partitions }];
        Body::Flush(Flush { object_number: number, object_bytes: 10_000, topics, ..Flush::default() })
    }
}

/// Topics spread over all chunks of a snapshot.
fn topic(number: u128) -> Uuid {
    Uuid::from_u128((number * 256 / TOPICS) << 120 | number)
}

/// A state of a million ranges and as many objects.
pub async fn figures(report: &mut Report) {
    let mut log = Log { state: State::default(), sequence: 0 };
    for number in 0..TOPICS {
        let topic_id = topic(number).as_bytes().to_vec();
        log.apply(&Body::TopicCreated(TopicCreated { topic_id, partitions: PARTITIONS }));
    }
    let mut took = Duration::ZERO;
    for _ in 0..RANGES {
        let flush = log.flush();
        took += log.apply(&flush);
    }
    report.figure("state: a flush of one batch is applied", took.as_secs_f64() * 1e6 / RANGES as f64, "µs");

    let begun = Instant::now();
    let copies: Vec<State> = (0..20).map(|_| log.state.clone()).collect();
    report.figure(
        "state: a clone at 1 M ranges and objects",
        begun.elapsed().as_secs_f64() * 1e6 / 20.0,
        "µs",
    );
    drop(copies);

    // As the broker does: whoever reads holds the state as it was before the record.
    let steps = 1_000;
    let begun = Instant::now();
    for _ in 0..steps {
        let held = log.state.clone();
        let flush = log.flush();
        log.apply(&flush);
        drop(held);
    }
    let each = begun.elapsed().as_secs_f64() * 1e6 / f64::from(steps);
    report.figure("state: a flush is applied while the state before is held", each, "µs");

    snapshots(report, &mut log).await;
}

/// How long everything else on the same thread stands still while a snapshot is written.
async fn snapshots(report: &mut Report, log: &mut Log) {
    let store: Arc<dyn Store> = Arc::new(ObjectStoreBackend::memory());
    let mut writer = SnapshotWriter::default();
    let mut previous = None;
    for what in ["the first", "the next, one partition changed"] {
        let begun = Instant::now();
        let state = log.state.clone();
        let writing = async {
            writer
                .write(store.as_ref(), &state, SnapshotStamp::default(), previous.as_ref())
                .await
                .expect("written")
        };
        let mut stalls = Vec::new();
        let ticking = async {
            loop {
                let before = Instant::now();
                tokio::task::yield_now().await;
                stalls.push(before.elapsed().as_secs_f64() * 1e3);
            }
        };
        let written = tokio::select! { written = writing => written, () = ticking => unreachable!() };
        let took = begun.elapsed().as_secs_f64() * 1e3;
        report.figure(format!("snapshot of 1 M ranges and objects, {what}: whole"), took, "ms");
        let longest = stalls.iter().copied().fold(0.0, f64::max);
        report.figure(format!("snapshot, {what}: longest stall of its thread"), longest, "ms");
        report.figure(format!("snapshot, {what}: p99 of its stalls"), percentile(&mut stalls, 0.99), "ms");
        previous = Some(written);
        let flush = log.flush();
        log.apply(&flush);
    }
}
