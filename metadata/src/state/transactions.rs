//! Transactions (KIP-98, KIP-890): who may write into one, and how it ends.
//!
//! A transaction ends at one record. It names the producer and its epoch; every partition that is
//! open then gets its marker, which takes one offset there. So no transaction is ever half ended,
//! and none hangs.
//!
//! What a batch belongs to is decided here, never by the broker that takes it: a batch of an epoch
//! that is over, or of a transaction that is not the current one, is refused wherever it was on its
//! way.

use std::sync::Arc;

use imbl::OrdMap;
use uuid::Uuid;

use super::partition::{Partition, Refusal};
use super::producers::Sequence;
use super::{Effects, State, epoch, offset, partition_digest};
use crate::record::{
    self, ProducerInitialized, RecordError, TransactionBegun, TransactionEnded, TransactionalIdsExpired,
};

/// From this feature level on, there are transactions.
pub const TRANSACTIONS: u32 = 5;

/// The producer of a transactional id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionalProducer {
    /// The transactional id.
    pub transactional_id: Arc<str>,
    /// Its current epoch: whoever writes with another one is refused.
    pub epoch: i16,
    /// How long a transaction of it may be open, in ms.
    pub timeout_ms: u32,
    /// How many transactions have ended: the number of the current one.
    pub number: u64,
    /// Whether the last transaction was committed; `None` before the first one of its producer.
    pub outcome: Option<bool>,
    /// What is open.
    pub open: Option<OpenTransaction>,
}

/// A transaction that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenTransaction {
    /// Its partitions, with the first offset that it has there; `None` while nothing is written.
    pub partitions: OrdMap<(Uuid, u32), Option<i64>>,
    /// Wall clock of whoever wrote the record that began it, ms since 1970.
    pub since_ms: i64,
}

/// The end of a transaction in a partition: one offset, that of a control batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The producer.
    pub producer_id: i64,
    /// Its epoch: the next one, if ending the transaction has bumped it.
    pub epoch: i16,
    /// Whether the transaction is committed; else it is aborted.
    pub committed: bool,
    /// Wall clock of whoever ended it, ms since 1970.
    pub time_ms: i64,
}

/// A transaction whose records in a partition nobody is to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortedTransaction {
    /// The producer.
    pub producer_id: i64,
    /// The first offset of its records.
    pub first_offset: i64,
    /// The last stable offset once it had ended: every transaction that ends later begins at or
    /// behind it.
    pub last_stable: i64,
}

/// To which transaction a batch says that it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionOfBatch {
    /// To the one that the producer's epoch stands for. It adds its partition to it (version 2).
    OfEpoch,
    /// To that of this number, which has the partition already (version 1).
    Numbered(u64),
}

impl TransactionalProducer {
    /// Whether a batch may be written to a partition. Refused unless it is of the current epoch and
    /// transaction.
    fn admits(
        &self,
        sequence: &Sequence,
        transaction: TransactionOfBatch,
        place: (Uuid, u32),
    ) -> Result<(), Refusal> {
        if sequence.epoch != self.epoch {
            return Err(Refusal::InvalidProducerEpoch);
        }
        let is_added = || self.open.as_ref().is_some_and(|open| open.partitions.contains_key(&place));
        match transaction {
            TransactionOfBatch::OfEpoch => Ok(()),
            TransactionOfBatch::Numbered(number) if number == self.number && is_added() => Ok(()),
            TransactionOfBatch::Numbered(_) => Err(Refusal::InvalidTransactionState),
        }
    }

    /// Whether something of an open transaction is in a partition.
    fn has_written(&self, place: (Uuid, u32)) -> bool {
        self.open.as_ref().is_some_and(|open| matches!(open.partitions.get(&place), Some(Some(_))))
    }
}

/// The version of transactions that clients may take for granted (`transaction.version`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionVersion {
    /// The version, 0 to 2.
    pub version: u32,
    /// How often it was changed.
    pub changes: u32,
}

impl Default for TransactionVersion {
    fn default() -> Self {
        Self { version: 2, changes: 0 }
    }
}

/// The producers of transactional ids, by producer id.
pub type TransactionalProducers = OrdMap<i64, TransactionalProducer>;

/// Whether a batch may be appended, as far as transactions decide it.
pub(super) fn check(
    producers: &TransactionalProducers,
    sequence: Option<&Sequence>,
    transaction: Option<TransactionOfBatch>,
    place: (Uuid, u32),
) -> Result<(), Refusal> {
    let Some(sequence) = sequence else { return Ok(()) };
    let known = producers.get(&sequence.producer_id);
    match (known, transaction) {
        (Some(known), Some(transaction)) => known.admits(sequence, transaction, place),
        (None, Some(_)) => Err(Refusal::InvalidProducerIdMapping),
        // As in Kafka: what is outside of transactions may not stand in the middle of one.
        (Some(known), None) if known.has_written(place) => Err(Refusal::InvalidTransactionState),
        (_, None) => Ok(()),
    }
}

/// Notes that a batch of a transaction was appended. Says whether it is the first there.
pub(super) fn note(
    producers: &mut TransactionalProducers,
    producer_id: i64,
    place: (Uuid, u32),
    base_offset: i64,
    time_ms: i64,
) -> bool {
    let Some(producer) = producers.get_mut(&producer_id) else {
        unreachable!("a batch was admitted into the transaction of a known producer")
    };
    let open =
        producer.open.get_or_insert_with(|| OpenTransaction { partitions: OrdMap::new(), since_ms: time_ms });
    let first = open.partitions.entry(place).or_insert(None);
    let is_first = first.is_none();
    if is_first {
        *first = Some(base_offset);
    }
    is_first
}

impl Partition {
    /// First offset of each open transaction here, with its producer.
    pub fn open_transactions(&self) -> &OrdMap<i64, i64> {
        &self.open
    }

    /// The ends of transactions that lie between ranges, by offset. Those that were merged are in
    /// the merged ranges.
    pub fn markers(&self) -> &OrdMap<i64, Marker> {
        &self.markers
    }

    /// The offsets of the markers from `from` on and below `below`.
    pub fn markers_between(&self, from: i64, below: i64) -> Vec<i64> {
        self.markers.range(from..below).map(|(offset, _)| *offset).collect()
    }

    /// Aborted transactions, by the offset of their marker.
    pub fn aborted(&self) -> &OrdMap<i64, AbortedTransaction> {
        &self.aborted
    }

    /// The aborted transactions that have records from `from` on and below `below`, and below which
    /// offset that are all: a lower one if there are more than `most`, but for those that were open
    /// at the same time.
    pub fn aborted_between(&self, from: i64, below: i64, most: usize) -> (Vec<AbortedTransaction>, i64) {
        let (mut found, mut below) = (Vec::new(), below);
        for (marker, aborted) in self.aborted.range(from..) {
            if aborted.first_offset < below {
                found.push(*aborted);
                if found.len() >= most {
                    below = below.min(marker + 1);
                }
            }
            if aborted.last_stable >= below {
                break;
            }
        }
        (found, below)
    }

    /// Log compaction has left nothing of the aborted transactions that lie wholly in there.
    pub(super) fn forget_aborted(&mut self, from: i64, below: i64) {
        let inside = self.aborted.range(from..below).filter(|(_, aborted)| aborted.first_offset >= from);
        let gone: Vec<i64> = inside.map(|(marker, _)| *marker).collect();
        for marker in gone {
            self.aborted.remove(&marker);
        }
    }

    /// Ends a transaction that begins at `first_offset` here.
    fn end_transaction(&mut self, first_offset: i64, marker: Marker) {
        let offset = self.end;
        self.end += 1;
        self.open.remove(&first_offset);
        self.markers.insert(offset, marker);
        if !marker.committed {
            let last_stable = self.last_stable();
            let aborted = AbortedTransaction { producer_id: marker.producer_id, first_offset, last_stable };
            self.aborted.insert(offset, aborted);
        }
    }

    /// How many entries there are beside ranges.
    pub(crate) fn mark_count(&self) -> u64 {
        (self.markers.len() + self.aborted.len()) as u64
    }
}

impl State {
    /// The version of transactions that clients may take for granted, from the feature level of
    /// [`TRANSACTIONS`] on.
    pub fn transaction_version(&self) -> TransactionVersion {
        self.transaction_version
    }

    /// The producers of transactional ids, by producer id.
    pub fn transactional(&self) -> &TransactionalProducers {
        &self.transactional
    }

    pub(super) fn apply_producer_initialized(
        &mut self,
        time_ms: i64,
        record: &ProducerInitialized,
        effects: &mut Effects,
    ) -> Result<(), RecordError> {
        let (producer_id, epoch) = (offset(record.producer_id)?, epoch(record.epoch)?);
        let mut number = 0;
        if let Some(before) = record.replaces.checked_sub(1).map(offset).transpose()? {
            self.close(before, epoch, false, time_ms, effects);
            // The number goes on, so that no batch of an older transaction finds it again.
            number = self.transactional.remove(&before).map_or(0, |producer| producer.number + 1);
        }
        let transactional_id = record.transactional_id.as_str().into();
        let timeout_ms = record.timeout_ms;
        let producer =
            TransactionalProducer { transactional_id, epoch, timeout_ms, number, outcome: None, open: None };
        self.transactional.insert(producer_id, producer);
        self.mix(record.producer_id);
        self.mix(record.epoch.into());
        Ok(())
    }

    pub(super) fn apply_transaction_begun(
        &mut self,
        time_ms: i64,
        begun: &TransactionBegun,
    ) -> Result<(), RecordError> {
        let (producer_id, epoch) = (offset(begun.producer_id)?, epoch(begun.epoch)?);
        let mut places = Vec::new();
        for topic in &begun.topics {
            let topic_id = record::topic_id(&topic.topic_id)?;
            let exist = topic.partitions.iter().filter(|p| self.partition(topic_id, **p).is_some());
            places.extend(exist.map(|partition| (topic_id, *partition)));
        }
        let Some(producer) = self.transactional.get_mut(&producer_id).filter(|p| p.epoch == epoch) else {
            return Ok(());
        };
        let open = producer
            .open
            .get_or_insert_with(|| OpenTransaction { partitions: OrdMap::new(), since_ms: time_ms });
        for place in places {
            open.partitions.entry(place).or_insert(None);
        }
        let count = open.partitions.len() as u64;
        self.mix(begun.producer_id);
        self.mix(count);
        Ok(())
    }

    pub(super) fn apply_transaction_ended(
        &mut self,
        time_ms: i64,
        ended: &TransactionEnded,
        effects: &mut Effects,
    ) -> Result<(), RecordError> {
        let (producer_id, current) = (offset(ended.producer_id)?, epoch(ended.epoch)?);
        let (next_id, next_epoch) = (offset(ended.next_producer_id)?, epoch(ended.next_epoch)?);
        if self.transactional.get(&producer_id).is_none_or(|producer| producer.epoch != current) {
            return Ok(());
        }
        let marked = if next_id == producer_id { next_epoch } else { current };
        self.close(producer_id, marked, ended.committed, time_ms, effects);
        if let Some(mut producer) = self.transactional.remove(&producer_id) {
            producer.epoch = next_epoch;
            producer.number += 1;
            producer.outcome = Some(ended.committed);
            self.transactional.insert(next_id, producer);
        }
        self.mix(ended.next_producer_id);
        self.mix(ended.next_epoch.into());
        Ok(())
    }

    pub(super) fn apply_transactional_ids_expired(
        &mut self,
        expired: &TransactionalIdsExpired,
    ) -> Result<(), RecordError> {
        for entry in &expired.producers {
            let (producer_id, epoch) = (offset(entry.producer_id)?, epoch(entry.epoch)?);
            let known = self.transactional.get(&producer_id);
            if known.is_some_and(|producer| producer.epoch == epoch && producer.open.is_none()) {
                self.transactional.remove(&producer_id);
                self.mix(entry.producer_id);
            }
        }
        Ok(())
    }

    /// Ends what a producer has open, everywhere.
    fn close(&mut self, producer_id: i64, epoch: i16, committed: bool, time_ms: i64, effects: &mut Effects) {
        let Some(open) = self.transactional.get_mut(&producer_id).and_then(|p| p.open.take()) else { return };
        let marker = Marker { producer_id, epoch, committed, time_ms };
        for (&(topic_id, number), &first_offset) in &open.partitions {
            let Some(first_offset) = first_offset else { continue };
            let partition =
                self.topics.get_mut(&topic_id).and_then(|topic| topic.partitions.get_mut(number as usize));
            let Some(partition) = partition else {
                unreachable!("a transaction has no partitions that are gone");
            };
            let partition = Arc::make_mut(partition);
            let before = partition.mark_count();
            partition.end_transaction(first_offset, marker);
            self.mark_count += partition.mark_count() - before;
            self.digest = partition_digest(self.digest, partition);
            effects.moved.push((topic_id, number));
        }
        self.mix(u64::from(committed));
    }

    /// A partition is gone: open transactions do not have it any more.
    pub(super) fn leave_transactions(&mut self, place: (Uuid, u32), partition: &Partition) {
        for producer_id in partition.open.values() {
            let producer = self.transactional.get_mut(producer_id);
            if let Some(open) = producer.and_then(|producer| producer.open.as_mut()) {
                open.partitions.remove(&place);
            }
        }
    }
}

/// Refuses a record that no writer may write.
pub(super) fn check_begun(begun: &TransactionBegun) -> Result<(), RecordError> {
    offset(begun.producer_id)?;
    epoch(begun.epoch)?;
    begun.topics.iter().try_for_each(|topic| record::topic_id(&topic.topic_id).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants;
    use crate::record::{
        Body, FeatureLevel, Flush, FlushBatch, FlushPartition, FlushTopic, Record, TopicCreated,
        TopicDeleted, TransactionTopic, Trim, TrimPartition,
    };
    use crate::state::{BatchOutcome, Position};

    const TOPIC: Uuid = Uuid::from_u128(7);
    const ID: u64 = 5;

    struct Log {
        state: State,
        sequence: u64,
    }

    impl Log {
        fn new() -> Self {
            let mut log = Self { state: State::default(), sequence: 0 };
            log.apply(&Body::FeatureLevel(FeatureLevel { level: TRANSACTIONS, transaction_version: 0 }));
            let topic_id = TOPIC.as_bytes().to_vec();
            log.apply(&Body::TopicCreated(TopicCreated { topic_id, partitions: 2 }));
            log.initialize(0, 0);
            log
        }

        fn apply(&mut self, body: &Body) -> Effects {
            self.sequence += 1;
            let revision = 10 + i64::try_from(self.sequence).unwrap();
            let at = Position { revision, sequence: self.sequence, incarnation: 5 };
            let effects = self.state.apply(at, &Record::new(1_000, body.clone()), body).unwrap();
            invariants::check(&self.state).unwrap();
            effects
        }

        fn initialize(&mut self, epoch: u32, replaces: u64) -> Effects {
            let transactional_id = "payments".to_owned();
            self.apply(&Body::ProducerInitialized(ProducerInitialized {
                transactional_id,
                producer_id: ID,
                epoch,
                timeout_ms: 60_000,
                replaces,
            }))
        }

        /// A batch of ten records of transaction `transaction`, as records write it; 0 for none.
        fn write(&mut self, partition: u32, epoch: u32, sequence: u32, transaction: u64) -> BatchOutcome {
            let batch = FlushBatch {
                offsets: 10,
                bytes: 100,
                producer: ID + 1,
                producer_epoch: epoch,
                base_sequence: sequence,
                transaction,
                ..FlushBatch::default()
            };
            self.flush(partition, batch)
        }

        fn flush(&mut self, partition: u32, batch: FlushBatch) -> BatchOutcome {
            let partitions = vec![FlushPartition { partition, position: 0, batches: vec![batch] }];
            let topics = vec![FlushTopic { topic_id: TOPIC.as_bytes().to_vec(), partitions }];
            let object_number = self.sequence;
            let flush = Flush { object_number, object_bytes: 1_000, topics, ..Flush::default() };
            self.apply(&Body::Flush(flush)).outcomes[0]
        }

        /// One of nobody.
        fn plain(&mut self, partition: u32) -> BatchOutcome {
            self.flush(partition, FlushBatch { offsets: 10, bytes: 100, ..FlushBatch::default() })
        }

        fn begin(&mut self, epoch: u32, partitions: Vec<u32>) {
            let topics = vec![TransactionTopic { topic_id: TOPIC.as_bytes().to_vec(), partitions }];
            self.apply(&Body::TransactionBegun(TransactionBegun { producer_id: ID, epoch, topics }));
        }

        fn end(&mut self, epoch: u32, next_epoch: u32, committed: bool) -> Effects {
            let (producer_id, next_producer_id) = (ID, ID);
            let ended = TransactionEnded { producer_id, epoch, committed, next_producer_id, next_epoch };
            self.apply(&Body::TransactionEnded(ended))
        }

        fn partition(&self, number: u32) -> &Partition {
            self.state.partition(TOPIC, number).unwrap()
        }

        fn producer(&self) -> &TransactionalProducer {
            &self.state.transactional()[&ID.cast_signed()]
        }
    }

    fn at(base_offset: i64) -> BatchOutcome {
        BatchOutcome::Appended { base_offset }
    }

    #[test]
    fn a_transaction_ends_in_all_of_its_partitions_at_once() {
        let mut log = Log::new();
        assert_eq!([log.plain(0), log.write(0, 0, 0, 1), log.write(1, 0, 0, 1)], [at(0), at(10), at(0)]);
        assert_eq!(log.plain(0), at(20));
        assert_eq!((log.partition(0).last_stable(), log.partition(1).last_stable()), (10, 0));
        let effects = log.end(0, 1, true);
        assert_eq!(effects.moved, [(TOPIC, 0), (TOPIC, 1)]);
        assert_eq!((log.partition(0).last_stable(), log.partition(0).end()), (31, 31));
        assert_eq!((log.partition(1).last_stable(), log.partition(1).end()), (11, 11));
        let marker = Marker { producer_id: 5, epoch: 1, committed: true, time_ms: 1_000 };
        assert_eq!(log.partition(0).markers().iter().collect::<Vec<_>>(), [(&30, &marker)]);
        assert!(log.partition(0).aborted().is_empty() && log.producer().open.is_none());
        assert_eq!((log.producer().epoch, log.producer().outcome), (1, Some(true)));
        // What comes late is refused wherever it was on its way, and the next one begins at 0.
        let late = BatchOutcome::Refused(Refusal::InvalidProducerEpoch);
        assert_eq!([log.write(0, 0, 10, 1), log.write(0, 1, 0, 1)], [late, at(31)]);
        assert_eq!(log.end(0, 1, false).moved, [], "a late end decides nothing");
        assert_eq!(log.partition(0).last_stable(), 31);
    }

    #[test]
    fn readers_are_told_which_transactions_were_aborted() {
        let mut log = Log::new();
        log.write(0, 0, 0, 1);
        log.plain(0);
        log.end(0, 1, false);
        let aborted = AbortedTransaction { producer_id: 5, first_offset: 0, last_stable: 21 };
        let between = |log: &Log, from, below| log.partition(0).aborted_between(from, below, 10);
        assert_eq!(between(&log, 0, 21), (vec![aborted], 21));
        assert_eq!(between(&log, 20, 21), (vec![aborted], 21), "its end alone");
        assert_eq!(between(&log, 21, 30).0, []);
        for epoch in 1..=3 {
            log.write(0, epoch, 0, 1);
            log.end(epoch, epoch + 1, false);
        }
        // At 21 to 31, 32 to 42 and 43 to 53.
        let firsts = |found: (Vec<AbortedTransaction>, i64)| {
            (found.0.iter().map(|a| a.first_offset).collect::<Vec<_>>(), found.1)
        };
        assert_eq!(firsts(between(&log, 25, 40)), (vec![21, 32], 40));
        assert_eq!(firsts(log.partition(0).aborted_between(0, 54, 2)), (vec![0, 21], 32), "not too many");
    }

    #[test]
    fn a_batch_of_version_1_belongs_to_a_transaction_that_has_its_partition() {
        let mut log = Log::new();
        let refused = BatchOutcome::Refused(Refusal::InvalidTransactionState);
        assert_eq!(log.write(0, 0, 0, 2), refused, "nothing is begun");
        log.begin(0, vec![0, 9]);
        assert_eq!(log.producer().open.as_ref().unwrap().partitions.len(), 1, "9 does not exist");
        assert_eq!([log.write(0, 0, 0, 2), log.write(1, 0, 0, 2)], [at(0), refused]);
        assert_eq!(log.write(0, 0, 10, 3), refused, "of a later one");
        log.end(0, 0, true);
        assert_eq!(log.write(0, 0, 10, 2), refused, "of the one before");
        log.begin(0, vec![0]);
        assert_eq!([log.write(0, 0, 10, 2), log.write(0, 0, 10, 3)], [refused, at(11)]);
    }

    #[test]
    fn a_new_producer_aborts_what_the_one_before_has_open_and_fences_it() {
        let mut log = Log::new();
        log.write(0, 0, 0, 1);
        assert_eq!(log.initialize(1, ID + 1).moved, [(TOPIC, 0)]);
        assert_eq!((log.partition(0).last_stable(), log.partition(0).aborted().len()), (11, 1));
        let fenced = BatchOutcome::Refused(Refusal::InvalidProducerEpoch);
        assert_eq!([log.write(0, 0, 10, 1), log.write(1, 0, 0, 1)], [fenced, fenced]);
        assert_eq!(log.write(1, 1, 0, 1), at(0));
        assert_eq!(log.end(0, 1, true).moved, [], "nor does its end come through");
    }

    #[test]
    fn what_is_outside_of_transactions_may_not_stand_in_one() {
        let mut log = Log::new();
        log.write(0, 0, 0, 1);
        let refused = BatchOutcome::Refused(Refusal::InvalidTransactionState);
        assert_eq!(log.write(0, 0, 10, 0), refused);
        assert_eq!(log.write(0, 0, 0, 1), BatchOutcome::Duplicate { base_offset: 0 });
        let nobody =
            FlushBatch { offsets: 1, bytes: 100, producer: 9, transaction: 1, ..FlushBatch::default() };
        assert_eq!(log.flush(0, nobody), BatchOutcome::Refused(Refusal::InvalidProducerIdMapping));
    }

    #[test]
    fn trims_stop_at_the_last_stable_offset_and_take_markers_along() {
        let mut log = Log::new();
        log.write(0, 0, 0, 1);
        log.end(0, 1, false);
        log.write(0, 1, 0, 1);
        let trim = |log_start| {
            let topic_id = TOPIC.as_bytes().to_vec();
            Body::Trim(Trim { partitions: vec![TrimPartition { topic_id, partition: 0, log_start }] })
        };
        // To the marker, which stays readable.
        log.apply(&trim(10));
        assert_eq!((log.partition(0).log_start(), log.partition(0).markers().len()), (10, 1));
        log.apply(&trim(100));
        assert_eq!((log.partition(0).log_start(), log.partition(0).markers().len()), (11, 0));
        assert!(log.partition(0).aborted().is_empty());
        log.end(1, 2, true);
        log.apply(&trim(21));
        assert_eq!(log.partition(0).ranges().len(), 0);
        assert_eq!((log.partition(0).log_start(), log.partition(0).end()), (21, 22));
        log.apply(&trim(22));
        assert_eq!(log.partition(0).markers().len(), 0);
        assert_eq!(log.plain(0), at(22));
    }

    #[test]
    fn a_topic_that_is_deleted_leaves_open_transactions() {
        let mut log = Log::new();
        log.write(0, 0, 0, 1);
        log.write(1, 0, 0, 1);
        log.apply(&Body::TopicDeleted(TopicDeleted { topic_id: TOPIC.as_bytes().to_vec() }));
        assert!(log.producer().open.as_ref().unwrap().partitions.is_empty());
        assert_eq!(log.end(0, 1, true).moved, []);
        assert_eq!(log.producer().epoch, 1);
    }

    #[test]
    fn plans_go_over_markers() {
        let mut log = Log::new();
        log.write(0, 0, 0, 1);
        log.end(0, 1, true);
        log.write(0, 1, 0, 1);
        log.end(1, 2, false);
        let plan = |from| {
            log.partition(0).plan(from, 1_000, 10).iter().map(|range| range.base_offset).collect::<Vec<_>>()
        };
        assert_eq!([plan(0), plan(10), plan(11)], [vec![0, 11], vec![11], vec![11]]);
        assert!(plan(21).is_empty() && plan(22).is_empty());
        assert_eq!([0, 10, 21].map(|from| log.partition(0).unmarked_from(from)), [0, 11, 22]);
    }
}
