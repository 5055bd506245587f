//! A log that lives for long: a week of flushes and merges is applied to the real state, planned by
//! the real plan, in simulated time. Nothing is stored: objects, bytes and requests are counted.
//!
//! ```text
//! growth          a week          growth=HOURS
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;
use strandline_broker::merge::plan::{Load, Looks, Output, Piece, loads, pieces};
use strandline_metadata::record::{
    Body, FeatureLevel, Flush, FlushBatch, FlushPartition, FlushTopic, Merged, MergedTopic, ObjectsDeleted,
    Record, TopicCreated,
};
use strandline_metadata::snapshot::{self, SnapshotStamp, SnapshotWriter};
use strandline_metadata::state::{FEATURE_LEVEL, MergeOutcome, Position, State, object_ref};
use strandline_storage::path::{ObjectId, ObjectKind};
use strandline_storage::reader::joined;
use strandline_storage::store::{ObjectStoreBackend, Store};
use uuid::Uuid;

use crate::report::{Bound, Report};

/// Partitions that are written steadily, by so many brokers.
const PARTITIONS: u32 = 1_000;
const BROKERS: u32 = 3;
/// Flushes of each broker in a second, and what producers write in all, in bytes.
const FLUSHES_PER_S: u64 = 4;
const BYTES_PER_S: u64 = 10 << 20;
/// What the brokers' settings are by default.
const MERGE_INTERVAL_S: u64 = 60;
const MERGE_BYTES_PER_S: u64 = 64 << 20;
const OBJECT_BYTES: u64 = 64 << 20;
const LOAD_BYTES: u64 = (3 * 128 - 64) << 20;
const SNAPSHOT_RECORDS: u64 = 5_000;
const DELETE_DELAY_S: u64 = 600;
/// Records of a merged range lie apart by no more than an eighth of a week.
const MAX_SPAN_MS: i64 = 7 * 86_400_000 / 8;
/// What a thousand requests cost at Amazon's, in dollars: PUT, GET. Deleting is free.
const PUTS: f64 = 0.005;
const GETS: f64 = 0.000_4;
const SECONDS_A_MONTH: f64 = 30.0 * 86_400.0;
const GIB: f64 = (1 << 30) as f64;
const MIB: f64 = (1 << 20) as f64;
/// A week.
pub const HOURS: u64 = 7 * 24;

/// What is counted.
#[derive(Debug, Default)]
struct Counts {
    written: u64,
    rewritten: u64,
    flush_puts: u64,
    merge_puts: u64,
    /// For what is not in the cache of who wrote it a moment ago.
    merge_gets: u64,
    deletes: u64,
    log_bytes: u64,
    refused: u64,
}

struct Week {
    state: State,
    sequence: u64,
    /// The newest sequence number of each broker.
    heads: [u64; BROKERS as usize],
    second: u64,
    topic: Uuid,
    looks: Vec<Looks>,
    /// The objects that each broker has found to be the right ones.
    identified: Vec<BTreeSet<ObjectId>>,
    counts: Counts,
    began: tokio::time::Instant,
    /// Revisions of snapshots, and when they were written: those that etcd names.
    snapshots: VecDeque<(i64, u64)>,
    /// How long snapshots are kept beside the newest three, s.
    retention_s: u64,
    records_since: u64,
}

impl Week {
    fn new(retention_s: u64) -> Self {
        let mut week = Self {
            state: State::default(),
            sequence: 0,
            heads: [0; BROKERS as usize],
            second: 0,
            topic: Uuid::from_u128(1 << 100),
            looks: vec![Looks::default(); BROKERS as usize],
            identified: vec![BTreeSet::new(); BROKERS as usize],
            counts: Counts::default(),
            began: tokio::time::Instant::now(),
            snapshots: VecDeque::new(),
            retention_s,
            records_since: 0,
        };
        week.apply(0, &Body::FeatureLevel(FeatureLevel { level: FEATURE_LEVEL, transaction_version: 0 }));
        let topic_id = week.topic.as_bytes().to_vec();
        week.apply(0, &Body::TopicCreated(TopicCreated { topic_id, partitions: PARTITIONS }));
        week
    }

    fn now_ms(&self) -> i64 {
        self.second as i64 * 1_000
    }

    fn apply(&mut self, broker: u32, body: &Body) -> strandline_metadata::state::Effects {
        self.sequence += 1;
        self.records_since += 1;
        let head = &mut self.heads[broker as usize];
        *head += 1;
        let at =
            Position { revision: self.sequence as i64, sequence: *head, incarnation: 1 + i64::from(broker) };
        let record = Record { time_ms: self.now_ms(), ..Record::default() };
        self.state.apply(at, &record, body).expect("it can be applied")
    }

    /// A flush of every broker's own partitions, as often as it makes one in a second.
    fn flush(&mut self, flushes: &mut [Flush]) {
        for _ in 0..FLUSHES_PER_S {
            for (broker, flush) in (0..).zip(&mut *flushes) {
                flush.object_number = self.sequence;
                let body = Body::Flush(std::mem::take(flush));
                self.apply(broker, &body);
                let Body::Flush(same) = body else { unreachable!("it is a flush") };
                self.counts.written += same.object_bytes;
                self.counts.flush_puts += 1;
                self.counts.log_bytes += same.encoded_len() as u64;
                *flush = same;
            }
        }
    }

    /// A pass of every broker over its own partitions, as long as one takes.
    fn merge(&mut self) {
        let now = self.began + Duration::from_secs(self.second);
        let unreadable = BTreeMap::new();
        for broker in 0..BROKERS {
            let mut due = Vec::new();
            let rules = self.looks[broker as usize].rules(OBJECT_BYTES, &unreadable);
            let partitions = self.state.topics()[&self.topic].partitions().clone();
            for (number, partition) in (0..).zip(&partitions).filter(|(number, _)| number % BROKERS == broker)
            {
                let place = (self.topic, number, partition.as_ref());
                due.extend(pieces(&self.state, place, &rules, (MAX_SPAN_MS, 0)));
            }
            drop(partitions);
            self.looks[broker as usize].note(now, &self.state);
            let mut left = MERGE_INTERVAL_S * MERGE_BYTES_PER_S;
            for load in loads(due, OBJECT_BYTES, LOAD_BYTES) {
                if load.level > 1 && left == 0 {
                    break;
                }
                self.read(broker, &load);
                for object in &load.objects {
                    left = left.saturating_sub(object.iter().map(Piece::bytes).sum());
                    self.rewrite(broker, object);
                }
            }
        }
    }

    /// Counts the GETs of what is merged: what was flushed is in the cache, the rest is not.
    fn read(&mut self, broker: u32, load: &Load) {
        let mut objects: BTreeMap<ObjectId, Vec<std::ops::Range<u64>>> = BTreeMap::new();
        for range in load.objects.iter().flatten().flat_map(|piece| &piece.inputs) {
            if range.object.kind != ObjectKind::Write {
                objects.entry(range.object).or_default().push(range.position..range.position + range.bytes);
            }
        }
        let identified = &mut self.identified[broker as usize];
        for (id, mut spans) in objects {
            spans.sort_by_key(|span| span.start);
            // Its footer is read once.
            self.counts.merge_gets += joined(&spans).len() as u64 + u64::from(identified.insert(id));
        }
    }

    fn rewrite(&mut self, broker: u32, object: &[Piece]) {
        let mut position = 0;
        let mut entries = Vec::with_capacity(object.len());
        for piece in object {
            let output = Output {
                position,
                bytes: piece.bytes(),
                batches: piece.inputs.iter().map(|range| range.batches).sum(),
                max_timestamp_ms: piece.inputs.iter().map(|range| range.max_timestamp_ms).max().unwrap_or(0),
                compacted: false,
            };
            position += output.bytes;
            entries.push(piece.entry(&output, self.now_ms()));
        }
        let topics = vec![MergedTopic { topic_id: self.topic.as_bytes().to_vec(), partitions: entries }];
        let merged = Merged { object_number: self.sequence, object_salt: 0, object_bytes: position, topics };
        self.counts.log_bytes += merged.encoded_len() as u64;
        self.counts.merge_puts += 1;
        self.counts.rewritten += position;
        let effects = self.apply(broker, &Body::Merged(merged));
        self.counts.refused += effects.merges.iter().filter(|o| **o == MergeOutcome::Refused).count() as u64;
    }

    /// Snapshots when they are due, and deletes what none of them needs.
    fn clean_up(&mut self) {
        if self.records_since >= SNAPSHOT_RECORDS {
            self.records_since = 0;
            self.snapshots.push_back((self.sequence as i64, self.second));
        }
        while self.snapshots.len() > 3
            && self.snapshots.front().is_some_and(|(_, at)| at + self.retention_s < self.second)
        {
            self.snapshots.pop_front();
        }
        let Some(&(oldest, at)) = self.snapshots.front() else { return };
        if at + DELETE_DELAY_S > self.second {
            return;
        }
        let ripe: Vec<_> = self
            .state
            .dead()
            .iter()
            .filter(|(_, died)| **died < oldest)
            .map(|(id, _)| object_ref(id))
            .collect();
        for objects in ripe.chunks(5_000) {
            self.counts.deletes += objects.len().div_ceil(1_000) as u64;
            self.apply(0, &Body::ObjectsDeleted(ObjectsDeleted { objects: objects.to_vec() }));
        }
    }

    fn run(&mut self, hours: u64) {
        let bytes = (BYTES_PER_S / FLUSHES_PER_S / u64::from(PARTITIONS)) as u32;
        let mut flushes: Vec<Flush> = (0..BROKERS)
            .map(|broker| {
                let own = (0..PARTITIONS).filter(|number| number % BROKERS == broker);
                let entry = |(place, partition): (u64, u32)| FlushPartition {
                    partition,
                    position: place * u64::from(bytes),
                    batches: vec![FlushBatch { offsets: 10, bytes, ..FlushBatch::default() }],
                };
                let partitions: Vec<FlushPartition> = (0..).zip(own).map(entry).collect();
                let object_bytes = partitions.len() as u64 * u64::from(bytes);
                let topics = vec![FlushTopic { topic_id: self.topic.as_bytes().to_vec(), partitions }];
                Flush { object_bytes, topics, ..Flush::default() }
            })
            .collect();
        for second in 1..=hours * 3_600 {
            self.second = second;
            self.flush(&mut flushes);
            if second.is_multiple_of(MERGE_INTERVAL_S) {
                self.merge();
            }
            if second.is_multiple_of(60) {
                self.clean_up();
            }
        }
    }
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4_096
}

/// A week, or so many hours of it: with snapshots kept for a day, as by default, and with none kept
/// beside the newest.
pub async fn figures(report: &mut Report, hours: u64) {
    for (retention_s, what) in [(0, "snapshots not kept"), (86_400, "snapshots kept for a day")] {
        let before = resident();
        let begun = Instant::now();
        let mut week = Week::new(retention_s);
        week.run(hours);
        let took = begun.elapsed().as_secs_f64();
        let memory = resident().saturating_sub(before) as f64;
        let say = |text: &str| format!("growth, {hours} hours, {what}: {text}");
        report.figure(say("computed in"), took, "s");
        let partitions = week.state.topics()[&week.topic].partitions().clone();
        let most = partitions.iter().map(|partition| partition.ranges().len()).max().unwrap_or(0) as f64;
        report.target(say("most ranges of a partition"), most, "ranges", Bound::AtMost, 400.0);
        report.target(say("memory of the state"), memory / MIB, "MiB", Bound::AtMost, 150.0);
        let live = week.counts.written as f64;
        let objects = (week.state.objects().len() + week.state.dead().len()) as f64;
        let an_hour = (FLUSHES_PER_S * u64::from(BROKERS) * 3_600) as f64;
        let most = 3.0 * live / OBJECT_BYTES as f64 + an_hour;
        report.target(say("objects"), objects, "objects", Bound::AtMost, most.round());
        report.figure(say("of these dead"), week.state.dead().len() as f64, "objects");
        let store: Arc<dyn Store> = Arc::new(ObjectStoreBackend::memory());
        let mut writer = SnapshotWriter::default();
        let written = writer
            .write(store.as_ref(), &week.state, SnapshotStamp::default(), None)
            .await
            .expect("memory takes it");
        let mut bytes = 0;
        for meta in store.list("", None, usize::MAX).await.expect("memory can be listed") {
            bytes += meta.size;
        }
        report.target(say("snapshot"), bytes as f64 / MIB, "MiB", Bound::AtMost, 32.0);
        let begun = Instant::now();
        let read = snapshot::read(store.as_ref(), &written).await.expect("it was written");
        report.target(
            say("reading it, which a start is"),
            begun.elapsed().as_secs_f64(),
            "s",
            Bound::AtMost,
            3.0,
        );
        assert_eq!(read.range_count(), week.state.range_count());
        let counts = &week.counts;
        assert_eq!(counts.refused, 0, "nobody else merges the same");
        let gib = counts.written as f64 / GIB;
        let amplification = counts.rewritten as f64 / counts.written as f64;
        report.target(say("bytes rewritten per byte"), amplification, "bytes", Bound::AtMost, 2.5);
        let requests = counts.flush_puts + counts.merge_puts + counts.merge_gets + counts.deletes;
        report.figure(
            say("requests per GiB written, all flushes of three brokers"),
            requests as f64 / gib,
            "",
        );
        let merging = (counts.merge_puts + counts.merge_gets + counts.deletes) as f64 / gib;
        // One broker makes four flushes a second, which are 410 per GiB at 10 MiB/s.
        let of_one = FLUSHES_PER_S as f64 / BYTES_PER_S as f64 * GIB;
        report.target(say("requests per GiB into one broker"), of_one + merging, "", Bound::AtMost, 750.0);
        for (name, mib_per_s) in [("10 MiB/s", 10.0), ("100 MiB/s", 100.0), ("1 GiB/s", 1_024.0)] {
            let gib_per_s = mib_per_s / 1_024.0;
            // The budget's PUTs, or as many as full objects of 8 MiB take.
            let flushes = f64::from(BROKERS) * FLUSHES_PER_S as f64;
            let flushes = flushes.max(mib_per_s / 8.0);
            let puts = flushes + gib_per_s * counts.merge_puts as f64 / gib;
            let gets = gib_per_s * counts.merge_gets as f64 / gib;
            let bill = SECONDS_A_MONTH / 1_000.0 * (puts * PUTS + gets * GETS);
            report.figure(say(&format!("requests of a month at {name}")), bill, "$");
        }
        report.figure(say("log between two snapshots"), log_bytes(counts, hours) / MIB, "MiB");
    }
}

/// What the log takes from one snapshot to the next, which etcd holds twice at most.
fn log_bytes(counts: &Counts, hours: u64) -> f64 {
    let records = (hours * 3_600 * FLUSHES_PER_S * u64::from(BROKERS)) as f64;
    counts.log_bytes as f64 / records * SNAPSHOT_RECORDS as f64
}
