//! A compacted topic at work: writers that set and delete keys, readers that read all of it, and
//! what must be true of what they read.
//!
//! Each key has one writer, which counts what it writes to it. A key whose last write may or may
//! not have happened is not written again, so what lies in the log of a key ascends, and it is
//! known what a reader must find: of each key at least the last change that was acknowledged before
//! it began, and never an older one behind a newer one. Beside them somebody deletes records from
//! the beginning; where the log starts never goes back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::records::{
    Compression, Record, RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::checker::read_partition;
use crate::client::{Client, ClientError};
use crate::history::History;
use crate::surroundings;

/// Keys that a writer has at a time in each partition.
const KEYS: u32 = 12;
/// What a value is filled up with.
const FILLING: usize = 40;
const CODECS: [Compression; 5] =
    [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

/// The configs of a topic of which records may be deleted, that is compacted as soon as anything is
/// dirty, and whose tombstones stay for `delete_retention_ms`.
pub fn configs(delete_retention_ms: u64) -> Vec<(&'static str, String)> {
    vec![
        ("cleanup.policy", "compact,delete".to_owned()),
        ("min.cleanable.dirty.ratio", "0".to_owned()),
        ("segment.ms", "1".to_owned()),
        ("delete.retention.ms", delete_retention_ms.to_string()),
    ]
}

/// What is known of one key.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Whether each change deleted the key, by its number.
    sent: Vec<bool>,
    /// How many of them are acknowledged: all before.
    acked: usize,
    /// The offset of the last of these.
    offset: i64,
    /// When that was acknowledged, ms since 1970.
    at_ms: i64,
}

/// What is known of all keys, by partition and name.
type Keys = BTreeMap<(i32, String), Known>;

/// A compacted topic and what its writers know of it. Clones share that.
#[derive(Clone, Debug)]
pub struct Table {
    topic: String,
    partitions: i32,
    addresses: Vec<String>,
    history: History,
    /// For so long after a deletion was acknowledged a reader must see it, ms.
    kept_ms: i64,
    keys: Arc<Mutex<Keys>>,
    /// Where partitions are known to start.
    starts: Arc<Mutex<BTreeMap<i32, i64>>>,
}

/// What a reader has read of a partition.
#[derive(Debug)]
struct Seen {
    /// Where the log started before and after.
    starts: (i64, i64),
    found: Vec<Found>,
    /// When it was done, ms since 1970.
    at_ms: i64,
}

/// A change that was read: its offset, its key, and its number and whether it deletes the key.
type Found = (i64, String, Option<usize>);

/// Who changes keys.
#[derive(Debug)]
struct Writer {
    number: u32,
    rng: StdRng,
    /// Which key takes the place of one that is not written again.
    generations: BTreeMap<(i32, u32), u32>,
}

impl Writer {
    fn new(number: u32, seed: u64) -> Self {
        Self { number, rng: StdRng::seed_from_u64(seed), generations: BTreeMap::new() }
    }
}

impl Table {
    /// A topic that exists. Its tombstones stay for much longer than `kept`, whatever the clocks.
    pub fn new(
        topic: &str,
        partitions: i32,
        addresses: Vec<String>,
        kept: Duration,
        history: History,
    ) -> Self {
        let kept_ms = i64::try_from(kept.as_millis()).unwrap_or(i64::MAX);
        let (keys, starts) = Default::default();
        Self { topic: topic.to_owned(), partitions, addresses, history, kept_ms, keys, starts }
    }

    fn lock(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was found of it.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Its name.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// How many changes are acknowledged.
    pub fn acked(&self) -> usize {
        self.lock().values().map(|known| known.acked).sum()
    }

    /// Changes keys until it is told to stop. `number` tells the writers of a topic apart.
    pub async fn write(self, number: u32, seed: u64, pause: Duration, stop: watch::Receiver<bool>) {
        let mut writer = Writer::new(number, seed);
        while !*stop.borrow() {
            sleep(pause.mul_f64(writer.rng.random_range(0.5..1.5))).await;
            let address = &self.addresses[writer.rng.random_range(0..self.addresses.len())];
            self.change(&mut writer, address).await;
        }
    }

    /// Changes a few keys by way of each broker: one that has seen no records of others does not
    /// trust its clock.
    pub async fn write_by_all(&self, number: u32, seed: u64) {
        let mut writer = Writer::new(number, seed);
        for address in &self.addresses {
            for _ in 0..5 {
                self.change(&mut writer, address).await;
            }
        }
    }

    async fn change(&self, writer: &mut Writer, address: &str) {
        let Writer { number, rng, generations } = writer;
        let partition = rng.random_range(0..self.partitions);
        let first = rng.random_range(0..KEYS);
        let changes: Vec<(u32, String, bool)> = (first..KEYS.min(first + rng.random_range(1..5)))
            .map(|slot| {
                let generation = generations.get(&(partition, slot)).copied().unwrap_or(0);
                (slot, format!("w{number}-{slot}-{generation}"), rng.random_bool(0.25))
            })
            .collect();
        let records: Vec<(String, Option<String>)> = {
            let mut keys = self.lock();
            let note = |(_, name, deletes): &(u32, String, bool)| {
                let known = keys.entry((partition, name.clone())).or_default();
                known.sent.push(*deletes);
                let text = format!("{} {}", known.sent.len() - 1, "x".repeat(FILLING));
                (name.clone(), (!deletes).then_some(text))
            };
            changes.iter().map(note).collect()
        };
        let codec = CODECS[rng.random_range(0..CODECS.len())];
        let done = self.produce(address, partition, batch(&records, codec)).await;
        let mut keys = self.lock();
        for ((slot, name, _), place) in changes.into_iter().zip(0..) {
            match (&done, keys.get_mut(&(partition, name))) {
                (Ok(base_offset), Some(known)) => {
                    known.acked = known.sent.len();
                    (known.offset, known.at_ms) = (base_offset + place, surroundings::now_ms());
                }
                _ => *generations.entry((partition, slot)).or_default() += 1,
            }
        }
    }

    async fn produce(&self, address: &str, partition: i32, batch: Bytes) -> Result<i64, ClientError> {
        let mut client = Client::connect(address).await?;
        client.set_timeout(Duration::from_secs(4));
        client.produce(&self.topic, partition, batch).await
    }

    /// Deletes records from the beginning, again and again, until it is told to stop.
    pub async fn trim(self, seed: u64, pause: Duration, stop: watch::Receiver<bool>) {
        let mut rng = StdRng::seed_from_u64(seed);
        while !*stop.borrow() {
            sleep(pause.mul_f64(rng.random_range(0.5..1.5))).await;
            let partition = rng.random_range(0..self.partitions);
            let address = &self.addresses[rng.random_range(0..self.addresses.len())];
            let done: Result<i64, ClientError> = async {
                let mut client = Client::connect(address).await?;
                client.set_timeout(Duration::from_secs(4));
                let start = client.list_offset(&self.topic, partition, -2).await?;
                let end = client.list_offset(&self.topic, partition, -1).await?;
                // Most of them stay.
                let to = start + (end - start) * rng.random_range(0..40) / 100;
                client.delete_records(&self.topic, partition, to).await
            }
            .await;
            match done {
                Ok(start) => self.starts_at(partition, start),
                Err(error) => self.history.error(error.to_string()),
            }
        }
    }

    /// Somebody was told where a partition starts.
    fn starts_at(&self, partition: i32, start: i64) {
        let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        let known = starts.entry(partition).or_default();
        *known = (*known).max(start);
    }

    fn known_start(&self, partition: i32) -> i64 {
        let starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        starts.get(&partition).copied().unwrap_or(0)
    }

    /// Reads all of it again and again, now from this broker, now from that one, and checks it,
    /// until it is told to stop.
    pub async fn read(self, pause: Duration, stop: watch::Receiver<bool>) {
        let mut turn = 0;
        while !*stop.borrow() {
            sleep(pause).await;
            let address = &self.addresses[turn % self.addresses.len()];
            turn += 1;
            for partition in 0..self.partitions {
                let before = self.lock().clone();
                match self.read_once(address, partition).await {
                    Ok(seen) => self.check_one(&before, partition, &seen, address),
                    // It is what a fault looks like; in the end it must be possible.
                    Err(error) => self.history.error(error.to_string()),
                }
            }
        }
    }

    async fn read_once(&self, address: &str, partition: i32) -> Result<Seen, ClientError> {
        let mut client = Client::connect(address).await?;
        client.set_timeout(Duration::from_secs(10));
        let known_start = self.known_start(partition);
        let start = client.list_offset(&self.topic, partition, -2).await?;
        if start < known_start {
            let what = format!("{address}, partition {partition} starts at {start}, it was {known_start}");
            self.history.anomaly("log start went back", what);
        }
        let end = client.list_offset(&self.topic, partition, -1).await?;
        let (mut next, mut found) = (start, Vec::new());
        while next < end {
            let (_, bytes) = client.fetch(&self.topic, partition, next, 1000).await?;
            let batches = crate::records::batches(bytes)
                .filter(|batches| !batches.is_empty())
                .ok_or_else(|| ClientError::Answer("no whole batch".to_owned()))?;
            for (base_offset, batch) in batches {
                let delta = batch.get(23..27).and_then(|bytes| bytes.try_into().ok()).map(i32::from_be_bytes);
                let asked = next;
                next = base_offset + i64::from(delta.unwrap_or_default()) + 1;
                found.extend(changes(batch).into_iter().filter(|(offset, ..)| *offset >= asked));
            }
        }
        let start_after = client.list_offset(&self.topic, partition, -2).await?;
        self.starts_at(partition, start_after);
        Ok(Seen { starts: (start, start_after), found, at_ms: surroundings::now_ms() })
    }

    /// Checks what these brokers return when everything is quiet, and that no key is there twice if
    /// all was compacted.
    pub async fn check(&self, addresses: &[String], is_compacted: bool) {
        let keys = self.lock().clone();
        for address in addresses {
            for partition in 0..self.partitions {
                let contents = read_partition(address, &self.topic, partition).await;
                let start = contents.log_start;
                let found = contents.batches.into_iter().flat_map(|(_, batch)| changes(batch));
                let found: Vec<Found> = found.filter(|(offset, ..)| *offset >= start).collect();
                let seen = Seen { starts: (start, start), found, at_ms: surroundings::now_ms() };
                self.check_one(&keys, partition, &seen, address);
                let Seen { found, .. } = seen;
                let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
                for (_, key, _) in &found {
                    *counts.entry(key).or_default() += 1;
                }
                if let Some((key, count)) = counts.into_iter().find(|(_, count)| is_compacted && *count > 1) {
                    let what =
                        format!("{address}, partition {partition}: {key} is there {count} times at rest");
                    self.history.anomaly("not compacted", what);
                }
            }
        }
    }

    /// Whether a broker returns no key twice.
    pub async fn is_compacted(&self, address: &str) -> bool {
        for partition in 0..self.partitions {
            let contents = read_partition(address, &self.topic, partition).await;
            let keys: Vec<String> = contents
                .batches
                .into_iter()
                .flat_map(|(_, batch)| changes(batch))
                .map(|found| found.1)
                .collect();
            if keys.iter().collect::<BTreeSet<_>>().len() < keys.len() {
                return false;
            }
        }
        true
    }

    /// Checks what was read of a partition against what was known when the reader began.
    fn check_one(&self, before: &Keys, partition: i32, seen: &Seen, address: &str) {
        let found = &seen.found;
        let now = self.lock().clone();
        let wrong = |name, what: String| {
            let what = format!("{} of {address}, partition {partition}: {what}", self.topic);
            self.history.anomaly(name, what);
        };
        let mut newest: BTreeMap<&str, usize> = BTreeMap::new();
        let mut last_offset = seen.starts.0 - 1;
        for (offset, key, number) in found {
            if *offset <= last_offset {
                wrong("offset twice", format!("offset {offset} comes after {last_offset}"));
            }
            last_offset = *offset;
            let Some(known) = now.get(&(partition, key.clone())) else {
                wrong("nobody wrote it", format!("{key} at {offset}"));
                continue;
            };
            let after = newest.get(key.as_str()).map_or(0, |newest| newest + 1);
            // A deletion says nothing but that: it is the next one that may be meant.
            let number = number.or_else(|| (after..known.sent.len()).find(|n| known.sent[*n]));
            match number {
                Some(number) if number >= after && number < known.sent.len() => {
                    newest.insert(key, number);
                }
                _ => wrong("older after newer", format!("{key} at {offset}: {number:?} after {after}")),
            }
        }
        for ((_, key), known) in before.iter().filter(|((of, _), _)| *of == partition) {
            let Some(last) = known.acked.checked_sub(1) else { continue };
            if known.offset < seen.starts.1 {
                continue;
            }
            let sent = now.get(&(partition, key.clone())).map_or(&known.sent, |known| &known.sent);
            let is_deleted = sent[last..].iter().any(|deletes| *deletes);
            let ends_with_deletion =
                found.iter().rev().find(|(_, k, _)| k == key).is_some_and(|f| f.2.is_none());
            match newest.get(key.as_str()) {
                Some(newest) if *newest >= last || ends_with_deletion && is_deleted => {}
                None if is_deleted => {
                    let is_fresh = sent.len() == known.acked && seen.at_ms < known.at_ms + self.kept_ms;
                    if is_fresh {
                        wrong("tombstone lost", format!("of {key}, which was deleted at {}", known.offset));
                    }
                }
                other => {
                    let what =
                        format!("{key} ends with {other:?}, {last} was acknowledged of {}", sent.len());
                    wrong("value lost", what);
                }
            }
        }
    }
}

/// The records of a batch.
fn changes(batch: Bytes) -> Vec<Found> {
    let mut batch = batch;
    let sets = RecordBatchDecoder::decode_all(&mut batch).expect("what a broker returns decodes");
    let records = sets.into_iter().flat_map(|set| set.records);
    let found = |record: Record| {
        let key = String::from_utf8_lossy(&record.key.unwrap_or_default()).into_owned();
        let number = record.value.map(|value| {
            let text = String::from_utf8_lossy(&value).into_owned();
            text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(usize::MAX)
        });
        (record.offset, key, number)
    };
    records.map(found).collect()
}

fn batch(changes: &[(String, Option<String>)], codec: Compression) -> Bytes {
    let timestamp = surroundings::now_ms();
    let record = |(i, (key, value)): (i32, &(String, Option<String>))| Record {
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
        key: Some(Bytes::from(key.clone())),
        value: value.clone().map(Bytes::from),
        headers: IndexMap::default(),
    };
    let records: Vec<Record> = (0..).zip(changes).map(record).collect();
    let mut out = BytesMut::new();
    RecordBatchEncoder::encode(&mut out, &records, &RecordEncodeOptions { version: 2, compression: codec })
        .expect("records of a test encode");
    // Without a producer the batch has no sequence numbers.
    out[53..57].copy_from_slice(&(-1_i32).to_be_bytes());
    crate::records::seal(&out)
}

/// A batch that sets these keys, or deletes them.
pub fn keyed_batch(changes: &[(String, Option<String>)]) -> Bytes {
    batch(changes, Compression::None)
}

/// Creates the topic.
pub async fn create(brokers: &[String], topic: &str, partitions: i32, delete_retention_ms: u64) {
    let configs = configs(delete_retention_ms);
    let configs: Vec<(&str, &str)> = configs.iter().map(|(name, value)| (*name, value.as_str())).collect();
    crate::workload::create_topic_with(brokers, topic, partitions, &configs).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(keys: &[(&str, &[bool], usize)]) -> Table {
        let kept = Duration::from_secs(1);
        let table = Table::new("t", 1, vec!["a".to_owned()], kept, History::default());
        for (key, sent, acked) in keys {
            let known = Known { sent: sent.to_vec(), acked: *acked, offset: 2, at_ms: 5_000 };
            table.lock().insert((0, (*key).to_owned()), known);
        }
        table
    }

    fn verdict(table: &Table, found: &[(i64, &str, Option<usize>)]) -> Vec<&'static str> {
        verdict_at(table, found, (0, 9_000))
    }

    fn verdict_at(
        table: &Table,
        found: &[(i64, &str, Option<usize>)],
        (start, at_ms): (i64, i64),
    ) -> Vec<&'static str> {
        let found: Vec<Found> = found.iter().map(|(o, k, n)| (*o, (*k).to_owned(), *n)).collect();
        let before = table.lock().clone();
        table.check_one(&before, 0, &Seen { starts: (start, start), found, at_ms }, "a");
        table.history.lock().anomalies.iter().map(|anomaly| anomaly.name).collect()
    }

    #[test]
    fn what_may_be_is_no_anomaly() {
        let keys: [(&str, &[bool], usize); 4] = [
            ("set", &[false, false, false], 2),
            ("deleted", &[false, true], 2),
            ("perhaps deleted", &[false, true], 1),
            ("never acked", &[false], 0),
        ];
        for found in [
            vec![(1, "set", Some(0)), (2, "set", Some(1)), (3, "perhaps deleted", Some(0))],
            vec![(2, "set", Some(1)), (5, "set", Some(2)), (6, "deleted", None)],
            vec![(2, "deleted", Some(0)), (3, "deleted", None), (9, "set", Some(2))],
        ] {
            assert_eq!(verdict(&table(&keys), &found), Vec::<&str>::new(), "{found:?}");
        }
    }

    #[test]
    fn what_must_not_be_is_found() {
        let keys: [(&str, &[bool], usize); 2] =
            [("set", &[false, false, false], 2), ("deleted", &[false, true], 2)];
        let set = (2, "set", Some(1));
        for (found, anomaly) in [
            (vec![(1, "set", Some(0))], "value lost"),
            (vec![], "value lost"),
            (vec![set, (3, "deleted", Some(0))], "value lost"),
            (vec![set, (3, "set", Some(0))], "older after newer"),
            (vec![set, (2, "set", Some(2))], "offset twice"),
            (vec![set, (3, "another", Some(0))], "nobody wrote it"),
        ] {
            assert_eq!(verdict(&table(&keys), &found), [anomaly], "{found:?}");
        }
        assert_eq!(verdict_at(&table(&keys), &[set], (0, 5_500)), ["tombstone lost"]);
    }

    #[test]
    fn what_lay_before_the_start_need_not_be_there() {
        let keys: [(&str, &[bool], usize); 1] = [("set", &[false, false], 2)];
        assert_eq!(verdict_at(&table(&keys), &[], (3, 9_000)), Vec::<&str>::new());
        assert_eq!(verdict_at(&table(&keys), &[], (2, 9_000)), ["value lost"]);
    }
}
