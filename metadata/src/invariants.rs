//! The numbered invariants of ARCHITECTURE.md that can be seen in one state, as functions.
//!
//! Tests and the simulation call [`check`] after every step; a snapshot is checked when it is read,
//! so that one which contradicts itself never becomes the truth.

use std::collections::HashMap;

use strandline_storage::path::ObjectId;
use uuid::Uuid;

use crate::limits::{FORGOTTEN_PRODUCERS_PER_PARTITION, REMEMBERED_BATCHES};
use crate::state::{Partition, State};
use crate::turns::Turns;

/// What a state must not be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Invariant 2: the ranges of a partition tile its offsets from before the log start to the
    /// end.
    #[error("invariant 2: partition {partition} of topic {topic_id}: {what}")]
    Offsets {
        /// The topic.
        topic_id: Uuid,
        /// The partition.
        partition: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// Invariant 3: what is remembered of a producer is in order and bounded.
    #[error("invariant 3: producer {producer_id} in partition {partition} of topic {topic_id}: {what}")]
    Producer {
        /// The topic.
        topic_id: Uuid,
        /// The partition.
        partition: usize,
        /// The producer.
        producer_id: i64,
        /// What is wrong.
        what: &'static str,
    },
    /// Invariant 6: objects are live exactly as long as ranges lie in them.
    #[error("invariant 6: object {object}: {what}")]
    Object {
        /// The object.
        object: ObjectId,
        /// What is wrong.
        what: &'static str,
    },
    /// A count that is kept beside what it counts is off.
    #[error("the state counts {counted} {what} and has {actual}")]
    Count {
        /// What is counted.
        what: &'static str,
        /// What the counter says.
        counted: u64,
        /// What is there.
        actual: u64,
    },
}

/// Checks every invariant that one state can show. Costs time in proportion to the state.
pub fn check(state: &State) -> Result<(), Violation> {
    let mut checker = Checker::new(state);
    for (&topic_id, topic) in state.topics() {
        for (number, partition) in topic.partitions().iter().enumerate() {
            checker.partition(topic_id, number, partition)?;
        }
    }
    checker.count()?;
    state.objects().iter().try_for_each(|(&object, live)| checker.object(object, live.ranges))
}

/// The same in turns, for a state that is not the only thing to be done.
pub(crate) async fn check_in_turns(state: &State, turns: &mut Turns) -> Result<(), Violation> {
    let mut checker = Checker::new(state);
    for (&topic_id, topic) in state.topics() {
        for (number, partition) in topic.partitions().iter().enumerate() {
            checker.partition(topic_id, number, partition)?;
            turns.spend(1 + partition.ranges().len()).await;
        }
    }
    checker.count()?;
    for (&object, live) in state.objects() {
        checker.object(object, live.ranges)?;
        turns.spend(1).await;
    }
    Ok(())
}

/// What was seen of a state's partitions.
#[derive(Debug)]
struct Checker<'a> {
    state: &'a State,
    /// How many ranges lie in each object. Only looked up in: the order of a hash map means
    /// nothing.
    references: HashMap<ObjectId, u32>,
    ranges: u64,
    partitions: u64,
    producers: u64,
    marks: u64,
    /// Open transactions, by partition and producer.
    open: u64,
}

impl<'a> Checker<'a> {
    fn new(state: &'a State) -> Self {
        let references = HashMap::with_capacity(state.objects().len());
        Self { state, references, ranges: 0, partitions: 0, producers: 0, marks: 0, open: 0 }
    }

    fn partition(&mut self, topic_id: Uuid, number: usize, partition: &Partition) -> Result<(), Violation> {
        offsets_tile(partition).map_err(|what| Violation::Offsets { topic_id, partition: number, what })?;
        producers_are_in_order(partition).map_err(|(producer_id, what)| Violation::Producer {
            topic_id,
            partition: number,
            producer_id,
            what,
        })?;
        for range in partition.ranges().iter() {
            let references = self.references.entry(range.object).or_default();
            if *references == 0 && !self.state.objects().contains_key(&range.object) {
                let what = "a range refers to it and it is not live";
                return Err(Violation::Object { object: range.object, what });
            }
            *references += 1;
            self.ranges += 1;
        }
        for (&first, producer_id) in partition.open_transactions() {
            let place = (topic_id, u32::try_from(number).unwrap_or(u32::MAX));
            let producer = self.state.transactional().get(producer_id);
            let open = producer.and_then(|producer| producer.open.as_ref());
            if open.is_none_or(|open| open.partitions.get(&place) != Some(&Some(first))) {
                let what = "invariant 7: a transaction that is open here is not its producer's";
                return Err(Violation::Producer {
                    topic_id,
                    partition: number,
                    producer_id: *producer_id,
                    what,
                });
            }
            self.open += 1;
        }
        self.partitions += 1;
        self.marks += partition.mark_count();
        self.producers += partition.producers().len() as u64;
        Ok(())
    }

    fn count(&self) -> Result<(), Violation> {
        for (what, counted, actual) in [
            ("ranges", self.state.range_count(), self.ranges),
            ("partitions", self.state.partition_count(), self.partitions),
            ("producers", self.state.producer_count(), self.producers),
            ("markers and aborted transactions", self.state.entry_count() - self.ranges, self.marks),
            ("partitions of open transactions", self.written(), self.open),
        ] {
            if counted != actual {
                return Err(Violation::Count { what, counted, actual });
            }
        }
        Ok(())
    }

    /// Partitions that open transactions have written to.
    fn written(&self) -> u64 {
        let open = self.state.transactional().values().filter_map(|producer| producer.open.as_ref());
        open.map(|open| open.partitions.values().flatten().count() as u64).sum()
    }

    /// Invariant 6, as far as one state can show it, for one live object.
    fn object(&self, object: ObjectId, ranges: u32) -> Result<(), Violation> {
        let (state, wrong) = (self.state, |what| Err(Violation::Object { object, what }));
        let open =
            state.incarnations().get(&object.incarnation).is_some_and(|i| i.open_object == Some(object));
        let referenced = self.references.get(&object).copied().unwrap_or(0);
        if referenced != ranges {
            return wrong("its references are miscounted");
        }
        if referenced == 0 && !open {
            return wrong("it is live and nothing refers to it");
        }
        if state.dead().contains_key(&object) {
            return wrong("it is live and dead");
        }
        Ok(())
    }
}

/// Invariant 2, for one partition: ranges and markers tile its offsets.
fn offsets_tile(partition: &Partition) -> Result<(), &'static str> {
    let (mut next, mut between) = (None, 0);
    let mut bytes = 0;
    for range in partition.ranges().iter() {
        if range.base_offset >= range.end_offset || range.bytes == 0 || range.batches == 0 {
            return Err("a range is empty");
        }
        if let Some(end) = next {
            if partition.unmarked_from(end) != range.base_offset {
                return Err("there is a gap or an overlap between ranges");
            }
            between += range.base_offset - end;
        }
        next = Some(range.end_offset);
        bytes += range.bytes;
    }
    if bytes != partition.bytes() {
        return Err("the bytes are miscounted");
    }
    if partition.log_start() < 0 || partition.log_start() > partition.end() {
        return Err("the log start is not within the log");
    }
    let first = partition.ranges().first();
    match (first, next) {
        (Some(first), Some(last_end)) => {
            between += partition.end() - last_end;
            let before = (first.base_offset - partition.log_start()).max(0);
            if partition.unmarked_from(last_end) != partition.end() {
                Err("the last range does not reach the end")
            } else if first.end_offset <= partition.log_start()
                || (before > 0 && partition.unmarked_from(partition.log_start()) != first.base_offset)
            {
                Err("the log start is not in the first range, nor before it")
            } else if partition.markers().len() as u64 != (between + before).unsigned_abs() {
                Err("a marker lies in a range")
            } else {
                Ok(())
            }
        }
        _ if partition.unmarked_from(partition.log_start()) == partition.end() => Ok(()),
        _ => Err("there are offsets without a range"),
    }
}

/// Invariant 3, for one partition.
fn producers_are_in_order(partition: &Partition) -> Result<(), (i64, &'static str)> {
    for (&id, producer) in partition.producers() {
        if producer.batches.is_empty() || producer.batches.len() > REMEMBERED_BATCHES {
            return Err((id, "it has no batch, or too many"));
        }
        if !producer.batches.is_sorted_by(|a, b| a.base_offset + i64::from(a.count) <= b.base_offset) {
            return Err((id, "its batches are not in order"));
        }
        if producer.batches.iter().any(|b| b.base_offset + i64::from(b.count) > partition.end()) {
            return Err((id, "a batch is beyond the end"));
        }
    }
    let forgotten = partition.forgotten();
    if forgotten.noted().len() > FORGOTTEN_PRODUCERS_PER_PARTITION {
        return Err((-1, "too many forgotten producers are noted"));
    }
    for &id in forgotten.noted().keys() {
        if partition.producers().contains_key(&id) {
            return Err((id, "it is known and forgotten"));
        }
        if id < forgotten.below() {
            return Err((id, "it is noted below the others"));
        }
    }
    Ok(())
}
