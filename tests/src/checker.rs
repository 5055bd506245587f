//! Reads everything back from every broker and compares it with what clients were told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use tokio::time::Instant;

use crate::client::{Client, ClientError};
use crate::history::{History, Inner, Mark};
use crate::records::{Value, batches, values};

/// Time for a broker to serve again after a fault.
const PATIENCE: Duration = Duration::from_mins(3);

/// A partition as one broker returns it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Where the log starts.
    pub log_start: i64,
    /// Base offset and bytes of every batch.
    pub batches: Vec<(i64, Bytes)>,
}

/// Reads a whole partition. Tries again for a while on errors that clients try again on.
pub async fn read_partition(address: &str, topic: &str, partition: i32) -> Contents {
    let until = Instant::now() + PATIENCE;
    loop {
        match read_once(address, topic, partition).await {
            Ok(contents) => return contents,
            Err(error) => {
                assert!(
                    error.is_retriable() && Instant::now() < until,
                    "{address}: {topic}-{partition} cannot be read: {error}"
                );
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn read_once(address: &str, topic: &str, partition: i32) -> Result<Contents, ClientError> {
    let mut client = Client::connect(address).await?;
    client.set_timeout(Duration::from_secs(15));
    let log_start = client.list_offset(topic, partition, -2).await?;
    let end = client.list_offset(topic, partition, -1).await?;
    let mut contents = Contents { log_start, batches: Vec::new() };
    let mut next = log_start;
    while next < end {
        let (_, bytes) = client.fetch(topic, partition, next, 1000).await?;
        let found = batches(bytes).ok_or_else(|| ClientError::Answer("a batch is cut".to_owned()))?;
        let Some((last_base, last)) = found.last() else {
            // The broker has not applied the end yet, which another one told of: it will.
            return Err(ClientError::Kafka(ResponseError::LeaderNotAvailable));
        };
        let last_delta = i32::from_be_bytes([last[23], last[24], last[25], last[26]]);
        next = last_base + i64::from(last_delta) + 1;
        contents.batches.extend(found);
    }
    Ok(contents)
}

/// Checks every partition on every broker; what is wrong goes into the history. Everything must be
/// quiet. Gives what the first broker returned, by partition.
pub async fn check(brokers: &[String], topic: &str, partitions: i32, history: &History) -> Vec<Contents> {
    let mut all = Vec::new();
    let (first, others) = brokers.split_first().expect("a broker runs");
    for partition in 0..partitions {
        let contents = read_partition(first, topic, partition).await;
        let found = examine(&contents, partition, &history.lock());
        history.lock().anomalies.extend(found);
        all.push(contents);
    }
    for other in others {
        check_same(other, first, topic, &all, history).await;
    }
    all
}

/// Checks that a broker returns what another one, or the same one before, has returned.
pub async fn check_same(broker: &str, first: &str, topic: &str, all: &[Contents], history: &History) {
    for (partition, contents) in (0..).zip(all) {
        let other = read_partition(broker, topic, partition).await;
        compare(history, partition, (first, contents), (broker, &other));
    }
}

fn compare(history: &History, partition: i32, one: (&str, &Contents), other: (&str, &Contents)) {
    let ends = |c: &Contents| (c.log_start, c.batches.len());
    if one.1 != other.1 {
        let differs =
            one.1.batches.iter().zip(&other.1.batches).find(|(a, b)| a != b).map(|(a, b)| (a.0, b.0));
        let what = format!(
            "partition {partition} is not the same on {} {:?} and {} {:?}; first difference at {differs:?}",
            one.0,
            ends(one.1),
            other.0,
            ends(other.1)
        );
        history.anomaly("brokers differ", what);
    }
}

/// Everything that can be said about one partition.
fn examine(contents: &Contents, partition: i32, inner: &Inner) -> Vec<crate::history::Anomaly> {
    let mut found = Vec::new();
    let mut wrong = |name, what: String| found.push(crate::history::Anomaly { name, what });
    let mut at: BTreeMap<i64, Mark> = BTreeMap::new();
    let mut places: BTreeMap<Mark, Vec<i64>> = BTreeMap::new();
    let mut next = contents.log_start;
    for (offset, value) in contents.batches.iter().flat_map(|(_, batch)| values(batch.clone())) {
        if offset != next {
            wrong("gap", format!("partition {partition}: offset {offset} follows {}", next - 1));
        }
        next = offset + 1;
        match Value::mark(&value) {
            None => wrong("wrong bytes", format!("partition {partition}: the value at {offset}")),
            Some(mark) => {
                at.insert(offset, mark);
                places.entry(mark).or_default().push(offset);
            }
        }
    }
    for acked in inner.acked.iter().filter(|a| a.first.partition == partition) {
        for i in 0..i64::from(acked.count) {
            let (mark, offset) =
                (Mark { counter: acked.first.counter + i as u64, ..acked.first }, acked.base_offset + i);
            if offset < contents.log_start || at.get(&offset) == Some(&mark) {
                continue;
            }
            match places.get(&mark) {
                Some(other) => wrong(
                    "inconsistent offsets",
                    format!("{mark} was acknowledged at {offset}, is at {other:?}"),
                ),
                None => wrong(
                    "lost write",
                    format!("{mark} was acknowledged at {offset}, where {:?} is", at.get(&offset)),
                ),
            }
        }
    }
    for (&(_, offset), mark) in inner.seen.range((partition, contents.log_start)..=(partition, i64::MAX)) {
        if at.get(&offset) != Some(mark) {
            wrong("lost read", format!("{mark} was read at {offset}, where {:?} is", at.get(&offset)));
        }
    }
    let producers: BTreeSet<u32> = places.keys().map(|m| m.producer).collect();
    for producer in producers {
        let sent = inner.sent.get(&(producer, partition)).copied().unwrap_or_default();
        let idempotent = inner.idempotent.get(&producer).copied().unwrap_or(false);
        let mut expected = 0;
        let mut first_places: Vec<(i64, Mark)> = Vec::new();
        let from = Mark { producer, partition: i32::MIN, counter: 0 };
        let to = Mark { producer, partition: i32::MAX, counter: u64::MAX };
        for (mark, offsets) in places.range(from..=to) {
            if mark.partition != partition || mark.counter >= sent.records {
                wrong("never sent", format!("{mark} is in partition {partition} at {offsets:?}"));
            }
            if offsets.len() > 1 && (idempotent || sent.repeated == 0) {
                wrong("duplicate", format!("{mark} is at {offsets:?}"));
            }
            // With sequence numbers nothing can be stored before what was sent before it.
            if idempotent && contents.log_start == 0 && mark.counter != expected {
                wrong("hole", format!("{mark} is at {offsets:?}, record {expected} is nowhere"));
            }
            expected = mark.counter + 1;
            first_places.push((offsets[0], *mark));
        }
        // Of what was sent more than once without sequence numbers, the first place may be trimmed,
        // and a later one left.
        let is_first_known = idempotent || sent.repeated == 0 || contents.log_start == 0;
        if let Some(pair) = first_places.windows(2).find(|p| is_first_known && p[0].0 > p[1].0) {
            wrong(
                "non-monotonic send",
                format!("{} is at {}, {} at {}", pair[0].1, pair[0].0, pair[1].1, pair[1].0),
            );
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use kafka_protocol::records::Compression;

    use super::*;
    use crate::history::{Acked, Sent};
    use crate::records::batch;

    /// A partition with one batch for each of these: producer and counters.
    fn contents(batches: &[(u32, &[u64])]) -> Contents {
        let mut contents = Contents::default();
        let mut next = 0;
        for (producer, counters) in batches {
            let marks = counters.iter().map(|&counter| Mark { producer: *producer, partition: 0, counter });
            let values: Vec<Value> = marks.map(|mark| Value::of(mark, 100)).collect();
            let mut bytes = batch(&values, 1000, None, Compression::None).to_vec();
            bytes[..8].copy_from_slice(&i64::to_be_bytes(next));
            contents.batches.push((next, bytes.into()));
            next += counters.len() as i64;
        }
        contents
    }

    /// What producers 0 (idempotent) and 1 (not) did: so many records each, these acknowledged.
    fn history(records: u64, acked: &[(u32, u64, u32, i64)]) -> Inner {
        let mut inner = Inner::default();
        for (producer, idempotent) in [(0, true), (1, false)] {
            inner.idempotent.insert(producer, idempotent);
            inner.sent.insert((producer, 0), Sent { records, repeated: 0 });
        }
        inner.acked.extend(acked.iter().map(|&(producer, counter, count, base_offset)| Acked {
            first: Mark { producer, partition: 0, counter },
            count,
            base_offset,
        }));
        inner
    }

    #[track_caller]
    fn assert_found(contents: &Contents, inner: &Inner, names: &[&str]) {
        let mut found: Vec<&str> = examine(contents, 0, inner).into_iter().map(|a| a.name).collect();
        found.dedup();
        assert_eq!(found, names);
    }

    #[test]
    fn what_is_right_is_not_complained_of() {
        let sound = contents(&[(0, &[0, 1]), (1, &[0]), (0, &[2]), (1, &[1, 2])]);
        assert_found(&sound, &history(3, &[(0, 0, 2, 0), (1, 0, 1, 2), (0, 2, 1, 3), (1, 1, 2, 4)]), &[]);
        // Records that were sent and not acknowledged may be there or not.
        assert_found(&sound, &history(9, &[]), &[]);
    }

    #[test]
    fn every_anomaly_is_found() {
        let sound = contents(&[(0, &[0, 1]), (1, &[0, 1])]);
        assert_found(&sound, &history(9, &[(0, 2, 1, 4)]), &["lost write"]);
        assert_found(&sound, &history(9, &[(1, 0, 1, 0)]), &["inconsistent offsets"]);
        assert_found(&sound, &history(1, &[]), &["never sent"]);
        assert_found(&contents(&[(0, &[0]), (0, &[0])]), &history(9, &[]), &["duplicate"]);
        assert_found(&contents(&[(0, &[0, 2])]), &history(9, &[]), &["hole"]);
        assert_found(&contents(&[(1, &[1, 0])]), &history(9, &[]), &["non-monotonic send"]);
        let mut seen = history(9, &[]);
        seen.seen.insert((0, 1), Mark { producer: 1, partition: 0, counter: 7 });
        assert_found(&sound, &seen, &["lost read"]);
        let mut cut = sound.clone();
        cut.batches.remove(0);
        assert_found(&cut, &history(9, &[]), &["gap"]);
    }

    #[test]
    fn a_plain_producer_may_have_written_twice_only_if_it_sent_twice() {
        let twice = contents(&[(1, &[0]), (1, &[0])]);
        assert_found(&twice, &history(9, &[]), &["duplicate"]);
        let mut inner = history(9, &[]);
        inner.sent.insert((1, 0), Sent { records: 9, repeated: 1 });
        assert_found(&twice, &inner, &[]);
    }

    #[test]
    fn where_a_plain_producer_wrote_first_is_not_known_of_what_is_trimmed() {
        let mut trimmed = contents(&[(1, &[0]), (1, &[1]), (1, &[0])]);
        trimmed.batches.remove(0);
        trimmed.log_start = 1;
        assert_found(&trimmed, &history(9, &[]), &["non-monotonic send"]);
        let mut inner = history(9, &[]);
        inner.sent.insert((1, 0), Sent { records: 9, repeated: 1 });
        assert_found(&trimmed, &inner, &[]);
    }

    #[test]
    fn a_changed_byte_of_a_value_is_found() {
        let mark = Mark { producer: 3, partition: 1, counter: 77 };
        let value = Value::of(mark, 200);
        assert_eq!(Value::mark(value.as_ref()), Some(mark));
        for i in 0..value.as_ref().len() {
            let mut changed = value.as_ref().to_vec();
            changed[i] ^= 4;
            assert_ne!(Value::mark(&changed), Some(mark), "byte {i}");
        }
        assert_eq!(Value::mark(&value.as_ref()[1..]), None);
        assert_eq!(Value::mark(b""), None);
    }
}
