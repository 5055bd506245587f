//! What clients did and what they were told, and what of that must not be.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::surroundings;

/// A record's own name, which its value carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    /// The producer's number in the test.
    pub producer: u32,
    /// The partition that it was written to.
    pub partition: i32,
    /// Counts up from 0 for each producer and partition.
    pub counter: u64,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {} of producer {} in partition {}", self.counter, self.producer, self.partition)
    }
}

/// A batch that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct Acked {
    /// Its first record.
    pub first: Mark,
    /// How many records it has.
    pub count: u32,
    /// The offset that was acknowledged.
    pub base_offset: i64,
}

/// What one producer has done to one partition.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// Records that were made, and perhaps sent.
    pub records: u64,
    /// Batches that were sent more than once.
    pub repeated: u64,
}

/// Something that happened to a batch.
#[derive(Clone, Debug)]
pub struct Event {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// Its first record.
    pub first: Mark,
    /// How many records it has.
    pub count: u32,
    /// What happened.
    pub what: String,
}

/// What became of an append.
#[derive(Clone, Debug, Default)]
struct Append {
    records: u32,
    /// When it was sent, each time; milliseconds since 1970, as below.
    sent_ms: Vec<i64>,
    /// When it was acknowledged, and at which offset.
    answered: Option<(i64, i64)>,
}

/// Something that a client asked for, as a checker of linearizability wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The partition.
    pub partition: i32,
    /// Who asked: the number of a producer, or -1.
    pub client: i64,
    /// When; milliseconds since 1970.
    pub called_ms: i64,
    /// When the answer came, if it did.
    pub answered_ms: Option<i64>,
    /// Records to append; 0 for a question for the end.
    pub append: u32,
    /// The base offset that was acknowledged, or the end that was told; -1 without an answer.
    pub offset: i64,
}

impl fmt::Display for Operation {
    /// As a line of JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, client, called_ms, answered_ms, append, offset } = self;
        let answered = answered_ms.map_or_else(|| "null".to_owned(), |ms| ms.to_string());
        write!(
            f,
            r#"{{"partition":{partition},"client":{client},"called":{called_ms},"answered":{answered},"#
        )?;
        write!(f, r#""append":{append},"offset":{offset}}}"#)
    }
}

/// Something that must not be, by the names of faults.md.
#[derive(Clone, Debug)]
pub struct Anomaly {
    /// Its name.
    pub name: &'static str,
    /// What was seen.
    pub what: String,
}

/// Everything that was seen from outside. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct History {
    inner: Arc<Mutex<Inner>>,
}

/// What [`History`] holds.
#[derive(Debug, Default)]
pub struct Inner {
    /// In the order in which they were acknowledged.
    pub acked: Vec<Acked>,
    /// By producer and partition.
    pub sent: BTreeMap<(u32, i32), Sent>,
    /// Producers that have a producer id.
    pub idempotent: BTreeMap<u32, bool>,
    /// Errors that producers were given and got over, by their names.
    pub errors: BTreeMap<String, u64>,
    /// What consumers saw, by partition and offset.
    pub seen: BTreeMap<(i32, i64), Mark>,
    /// What must not be.
    pub anomalies: Vec<Anomaly>,
    /// What happened to each batch, in order.
    pub events: Vec<Event>,
    /// By their first records.
    appends: BTreeMap<Mark, Append>,
    /// Questions for the end of a partition.
    questions: Vec<Operation>,
}

impl History {
    /// Looks at it, or adds to it.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record that an anomaly names, if it names one.
    pub fn named_in(text: &str) -> Option<Mark> {
        let (_, rest) = text.split_once("record ")?;
        let numbers: Vec<u64> =
            rest.split_whitespace().filter_map(|word| word.parse().ok()).take(3).collect();
        let [counter, producer, partition] = numbers[..] else { return None };
        Some(Mark { producer: producer as u32, partition: partition as i32, counter })
    }

    /// Notes something that must not be.
    pub fn anomaly(&self, name: &'static str, what: impl Into<String>) {
        self.lock().anomalies.push(Anomaly { name, what: what.into() });
    }

    /// Notes what happened to a batch.
    pub fn event(&self, first: Mark, count: u32, what: impl Into<String>) {
        let event = Event { at_ms: surroundings::now_ms(), first, count, what: what.into() };
        self.lock().events.push(event);
    }

    /// Notes that a batch is sent.
    pub fn sent(&self, first: Mark, count: u32, to: &str) {
        self.event(first, count, format!("sent to {to}"));
        let mut inner = self.lock();
        let append = inner.appends.entry(first).or_default();
        append.records = count;
        append.sent_ms.push(surroundings::now_ms());
    }

    /// Notes that a batch was acknowledged.
    pub fn acknowledged(&self, first: Mark, count: u32, base_offset: i64) {
        self.event(first, count, format!("acknowledged at {base_offset}"));
        let mut inner = self.lock();
        inner.acked.push(Acked { first, count, base_offset });
        inner.appends.entry(first).or_default().answered = Some((surroundings::now_ms(), base_offset));
    }

    /// Notes what somebody was told about the end of a partition, who asked at `called_ms`.
    pub fn told_end(&self, partition: i32, called_ms: i64, end: i64) {
        let answered_ms = Some(surroundings::now_ms());
        let told = Operation { partition, client: -1, called_ms, answered_ms, append: 0, offset: end };
        self.lock().questions.push(told);
    }

    /// Everything that changed or told the end of a partition.
    pub fn operations(&self) -> Vec<Operation> {
        let inner = self.lock();
        let mut all = inner.questions.clone();
        for (first, append) in &inner.appends {
            let Some(&called_ms) = append.sent_ms.first() else { continue };
            let unknown = Operation {
                partition: first.partition,
                client: i64::from(first.producer),
                called_ms,
                answered_ms: None,
                append: append.records,
                offset: -1,
            };
            // Without a producer id, each send may have been done.
            let is_idempotent = inner.idempotent.get(&first.producer).copied().unwrap_or(false);
            let times = if is_idempotent { 1 } else { append.sent_ms.len() };
            let mut sends = vec![unknown; times];
            if let (Some((answered_ms, base_offset)), Some(send)) = (append.answered, sends.first_mut()) {
                *send = Operation { answered_ms: Some(answered_ms), offset: base_offset, ..*send };
            }
            all.append(&mut sends);
        }
        all
    }

    /// What happened to a record, and to the batches before and behind it.
    pub fn story_of(&self, mark: Mark) -> Vec<String> {
        let near = |e: &&Event| {
            let (from, to) = (e.first.counter.saturating_sub(60), e.first.counter + u64::from(e.count) + 20);
            (e.first.producer, e.first.partition) == (mark.producer, mark.partition)
                && (from..to).contains(&mark.counter)
        };
        let inner = self.lock();
        let line = |e: &Event| {
            let last = e.first.counter + u64::from(e.count) - 1;
            format!("{} records {} to {last}: {}", e.at_ms, e.first.counter, e.what)
        };
        inner.events.iter().filter(near).map(line).collect()
    }

    /// Notes an error that a producer got over.
    pub fn error(&self, error: impl Into<String>) {
        *self.lock().errors.entry(error.into()).or_default() += 1;
    }

    /// Records that were acknowledged so far.
    pub fn acked_records(&self) -> u64 {
        self.lock().acked.iter().map(|a| u64::from(a.count)).sum()
    }

    /// Fails the test if anything was seen that must not be.
    pub fn assert_clean(&self) {
        let inner = self.lock();
        let shown: Vec<String> =
            inner.anomalies.iter().take(20).map(|a| format!("{}: {}", a.name, a.what)).collect();
        assert!(
            shown.is_empty(),
            "{} anomalies, the first of them:\n{}\nerrors that producers got over: {:?}",
            inner.anomalies.len(),
            shown.join("\n"),
            inner.errors
        );
    }
}
