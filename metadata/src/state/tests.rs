//! Random histories: whatever the order of records, the invariants hold after each, a record
//! applied twice does nothing, and a state that was cut in two by a snapshot equals one that was
//! not.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use strandline_storage::store::ObjectStoreBackend;

use super::*;
use crate::invariants;
use crate::record::{
    Checkpoint, ExpiredProducer, ExpiredTransactional, FlushPartition, FlushTopic, IncarnationRetired,
    Merged, MergedPartition, MergedTopic, PartitionsAdded, ProducerIdBlock, ProducerInitialized,
    TopicCreated, TopicDeleted, TransactionBegun, TransactionEnded, TransactionTopic,
    TransactionalIdsExpired, TrimPartition,
};
use crate::snapshot;

/// Makes records that brokers might write, with a bias towards trouble: unknown topics, gaps,
/// repeats, split flushes.
struct Writers {
    rng: StdRng,
    revision: i64,
    heads: BTreeMap<i64, u64>,
    objects: BTreeMap<i64, u64>,
    topics: Vec<Uuid>,
    /// An incarnation that is in the middle of a split flush, with its object.
    continuing: BTreeMap<i64, (u64, u32)>,
    sequences: BTreeMap<(Uuid, u32, i64, i16), i32>,
    /// Merged objects so far.
    merges: u64,
}

impl Writers {
    fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            revision: 10,
            heads: BTreeMap::new(),
            objects: BTreeMap::new(),
            topics: vec![Uuid::from_u128(999)],
            continuing: BTreeMap::new(),
            sequences: BTreeMap::new(),
            merges: 0,
        }
    }

    fn topic(&mut self) -> Uuid {
        self.topics[self.rng.random_range(0..self.topics.len())]
    }

    fn next(&mut self, state: &State) -> (Position, Record) {
        self.revision += self.rng.random_range(0..3);
        let incarnation = self.rng.random_range(1..=3);
        let head = self.heads.entry(incarnation).or_default();
        *head += 1;
        let at = Position { revision: self.revision, sequence: *head, incarnation };
        let time_ms = 1_000_000 + self.revision;
        let body = match self.rng.random_range(0..20) {
            _ if self.continuing.contains_key(&incarnation) => self.flush(state, incarnation),
            0 => {
                let topic_id = Uuid::from_u128(self.rng.random());
                self.topics.push(topic_id);
                let partitions = self.rng.random_range(1..4);
                Body::TopicCreated(TopicCreated { topic_id: topic_id.as_bytes().to_vec(), partitions })
            }
            1 => {
                let topic_id = self.topic().as_bytes().to_vec();
                Body::PartitionsAdded(PartitionsAdded { topic_id, partitions: self.rng.random_range(1..6) })
            }
            2 if self.topics.len() > 3 => {
                let topic_id = self.topics.swap_remove(1);
                Body::TopicDeleted(TopicDeleted { topic_id: topic_id.as_bytes().to_vec() })
            }
            3 | 4 => self.trim(state),
            5 => {
                let dead = state.dead.keys().take(2).map(object_ref);
                Body::ObjectsDeleted(ObjectsDeleted { objects: dead.collect() })
            }
            6 => Body::Checkpoint(Checkpoint {}),
            7 => Body::ProducerIdBlock(ProducerIdBlock { first: 0, end: self.rng.random_range(0..100) }),
            8 => self.expire(state),
            9 => Body::FeatureLevel(record::FeatureLevel {
                level: self.rng.random_range(1..=FEATURE_LEVEL),
                transaction_version: 0,
            }),
            11 | 12 => self.merge(state),
            13 | 14 => self.transaction(state),
            10 if self.heads.len() > 3 => Body::IncarnationRetired(IncarnationRetired { incarnation: 77 }),
            _ => self.flush(state, incarnation),
        };
        (at, Record::new(time_ms, body))
    }

    fn flush(&mut self, state: &State, incarnation: i64) -> Body {
        let (object_number, object_salt) = self.continuing.remove(&incarnation).unwrap_or_else(|| {
            let number = self.objects.entry(incarnation).or_default();
            *number += 1;
            (*number, 0xab)
        });
        let continues = self.rng.random_bool(0.1);
        if continues {
            self.continuing.insert(incarnation, (object_number, object_salt));
        }
        let mut topics = Vec::new();
        let mut position = self.rng.random_range(0..3) * 1000;
        for _ in 0..self.rng.random_range(0..4) {
            let topic_id = self.topic();
            let partition = self.rng.random_range(0..5);
            let batches: Vec<FlushBatch> =
                (0..self.rng.random_range(1..4)).map(|_| self.batch(state, topic_id, partition)).collect();
            let bytes: u64 = batches.iter().map(|b| u64::from(b.bytes)).sum();
            let partitions = vec![FlushPartition { partition, position, batches }];
            topics.push(FlushTopic { topic_id: topic_id.as_bytes().to_vec(), partitions });
            position += bytes;
        }
        Body::Flush(Flush { object_number, object_salt, object_bytes: 1 << 20, topics, continues })
    }

    fn batch(&mut self, state: &State, topic_id: Uuid, partition: u32) -> FlushBatch {
        let offsets = self.rng.random_range(1..10);
        let mut batch =
            FlushBatch { offsets, bytes: self.rng.random_range(70..500), ..FlushBatch::default() };
        if self.rng.random_bool(0.7) {
            let producer_id: i64 = self.rng.random_range(0..8);
            batch.producer = producer_id.cast_unsigned() + 1;
            let transactional = state.transactional().get(&producer_id);
            let epoch = transactional.map_or(0, |known| known.epoch);
            let epoch = if self.rng.random_bool(0.1) { epoch + 1 } else { epoch };
            batch.producer_epoch = u32::from(epoch.cast_unsigned());
            if self.rng.random_bool(if producer_id < 4 { 0.05 } else { 0.9 }) {
                // Of this epoch, or of a transaction before, now or later.
                let number = transactional.map_or(0, |known| known.number);
                batch.transaction =
                    if self.rng.random_bool(0.7) { 1 } else { number + self.rng.random_range(1..4) };
            }
            let next = self.sequences.entry((topic_id, partition, producer_id, epoch)).or_default();
            // Mostly the next one, at times a repeat or a gap.
            batch.base_sequence = match self.rng.random_range(0..10) {
                0 => (*next - 3).max(0).cast_unsigned(),
                1 => (*next + 5).cast_unsigned(),
                _ => {
                    let first = *next;
                    *next += offsets.cast_signed();
                    first.cast_unsigned()
                }
            };
        }
        batch
    }

    /// What becomes of a transactional id, at times of one that is as nobody thinks.
    fn transaction(&mut self, state: &State) -> Body {
        let producer_id: i64 = self.rng.random_range(4..8);
        let known = state.transactional().get(&producer_id);
        let epoch = known.map_or(0, |known| u32::from(known.epoch.cast_unsigned()));
        let epoch = epoch + u32::from(self.rng.random_bool(0.1));
        let id = producer_id.cast_unsigned();
        match self.rng.random_range(0..8) {
            0 => Body::ProducerInitialized(ProducerInitialized {
                transactional_id: format!("t{producer_id}"),
                producer_id: id,
                epoch: epoch + 1,
                timeout_ms: 1_000,
                replaces: known.map_or(0, |_| id + 1),
            }),
            1 | 2 => {
                let topic_id = self.topic().as_bytes().to_vec();
                let topic = TransactionTopic { topic_id, partitions: vec![0, 1, 7] };
                Body::TransactionBegun(TransactionBegun { producer_id: id, epoch, topics: vec![topic] })
            }
            3 if self.rng.random_bool(0.3) => {
                let producers = vec![ExpiredTransactional { producer_id: id, epoch }];
                Body::TransactionalIdsExpired(TransactionalIdsExpired { producers })
            }
            _ => Body::TransactionEnded(TransactionEnded {
                producer_id: id,
                epoch,
                committed: self.rng.random(),
                next_producer_id: id,
                next_epoch: epoch + u32::from(self.rng.random::<bool>()),
            }),
        }
    }

    fn trim(&mut self, state: &State) -> Body {
        let topic_id = self.topic();
        let partition = self.rng.random_range(0..4);
        let end = state.partition(topic_id, partition).map_or(0, |p| p.end());
        let log_start = self.rng.random_range(0..=end + 5).cast_unsigned();
        let entry = TrimPartition { topic_id: topic_id.as_bytes().to_vec(), partition, log_start };
        Body::Trim(Trim { partitions: vec![entry] })
    }

    /// A merge of neighbours, at times of others than there are.
    fn merge(&mut self, state: &State) -> Body {
        self.merges += 1;
        let mut topics = Vec::new();
        for topic_id in self.topics.clone() {
            let partition = self.rng.random_range(0..4);
            let Some(known) = state.partition(topic_id, partition) else { continue };
            let skipped = self.rng.random_range(0..3);
            let taken = self.rng.random_range(1..20);
            let inputs: Vec<Range> = known.ranges().iter().skip(skipped).take(taken).copied().collect();
            let (Some(first), Some(last)) = (inputs.first(), inputs.last()) else { continue };
            let is_wrong = self.rng.random_bool(0.2);
            let entry = MergedPartition {
                partition,
                base_offset: first.base_offset.cast_unsigned(),
                offsets: (last.end_offset - first.base_offset).cast_unsigned(),
                inputs: u32::try_from(inputs.len()).unwrap(),
                inputs_hash: InputsHash::of(&inputs).value() ^ u64::from(is_wrong),
                position: 0,
                bytes: inputs.iter().map(|range| range.bytes).sum(),
                batches: inputs.iter().map(|range| range.batches).sum(),
                max_timestamp_delta_ms: 0,
                level: self.rng.random_range(1..=2),
                compacted: self.rng.random_bool(0.3),
            };
            let partitions = vec![entry];
            topics.push(MergedTopic { topic_id: topic_id.as_bytes().to_vec(), partitions });
        }
        Body::Merged(Merged { object_number: self.merges, object_salt: 0xcd, object_bytes: 1 << 20, topics })
    }

    fn expire(&mut self, state: &State) -> Body {
        let topic_id = self.topic();
        let partition = self.rng.random_range(0..4);
        let known = state.partition(topic_id, partition).and_then(|p| p.producers().iter().next());
        let producers = known.map(|(&id, producer)| ExpiredProducer {
            topic_id: topic_id.as_bytes().to_vec(),
            partition,
            producer_id: id.cast_unsigned(),
            last_base_offset: producer.batches.last().map_or(0, |b| b.base_offset).cast_unsigned(),
        });
        Body::ProducersExpired(ProducersExpired { producers: producers.into_iter().collect(), ids_below: 2 })
    }
}

fn apply(state: &mut State, at: Position, record: &Record) -> Effects {
    let (record, body) = Record::from_bytes(&record.to_bytes()).unwrap();
    state.apply(at, &record, &body).unwrap()
}

/// A random history of `length` records, and the state that it leads to, checked after every step.
fn history(seed: u64, length: usize) -> (Vec<(Position, Record)>, State) {
    let (mut writers, mut state, mut records) = (Writers::new(seed), State::default(), Vec::new());
    for _ in 0..length {
        let (at, record) = writers.next(&state);
        apply(&mut state, at, &record);
        invariants::check(&state)
            .unwrap_or_else(|violation| panic!("seed {seed}, {at:?}: {violation}\n{record:?}"));
        records.push((at, record));
    }
    (records, state)
}

#[test]
fn invariants_hold_after_every_record() {
    let (mut open, mut marks) = (0, 0);
    for seed in 0..60 {
        let (_, state) = history(seed, 400);
        assert!(!state.topics.is_empty(), "the history of seed {seed} did nothing");
        open += state.transactional().values().filter(|producer| producer.open.is_some()).count();
        marks += state.entry_count() - state.range_count();
    }
    assert!(open > 10 && marks > 100, "{open} transactions are open, and {marks} have left something");
}

#[test]
fn equal_logs_give_equal_states_and_repeats_do_nothing() {
    let (records, state) = history(7, 500);
    let mut again = State::default();
    for (at, record) in &records {
        apply(&mut again, *at, record);
        let before = again.clone();
        assert!(apply(&mut again, *at, record).repeated);
        assert_eq!(again, before);
    }
    assert_eq!(again, state);
    assert_eq!(again.digest(), state.digest());
}

#[tokio::test]
async fn a_snapshot_and_the_rest_of_the_log_equal_the_whole_log() {
    let store = ObjectStoreBackend::memory();
    for seed in 100..110 {
        let (records, state) = history(seed, 300);
        // Cut between revisions, as snapshots are.
        for cut in (50..300).step_by(83) {
            let cut_at = records[cut].0.revision;
            let mut first = State::default();
            for (at, record) in records.iter().filter(|(at, _)| at.revision <= cut_at) {
                apply(&mut first, *at, record);
            }
            let written = snapshot::SnapshotWriter::default()
                .write(&store, &first, snapshot::SnapshotStamp::default(), None)
                .await
                .unwrap();
            let mut restored = snapshot::read(&store, &written).await.unwrap();
            for (at, record) in records.iter().filter(|(at, _)| at.revision > cut_at) {
                apply(&mut restored, *at, record);
            }
            assert_eq!(restored, state, "seed {seed} cut after {cut}");
        }
    }
}

#[test]
fn states_that_differ_have_different_digests() {
    let (records, state) = history(3, 300);
    let mut told_apart = 0;
    for changed in 0..records.len() {
        let mut records = records.clone();
        let Some(Body::Flush(flush)) = &mut records[changed].1.body else { continue };
        let Some(topic) = flush.topics.first_mut() else { continue };
        topic.partitions[0].batches[0].offsets += 1;
        let mut other = State::default();
        for (at, record) in &records {
            apply(&mut other, *at, record);
        }
        // What was refused makes no difference, and what was in a topic that was deleted none that
        // lasts.
        if other != state {
            assert_ne!(other.digest(), state.digest(), "record {changed}");
            told_apart += 1;
        }
    }
    assert!(told_apart > 10, "only {told_apart} changes made a difference");
}

#[test]
fn a_skipped_sequence_number_is_noticed_and_changes_nothing() {
    let (records, _) = history(5, 50);
    let mut state = State::default();
    let (at, record) = &records[0];
    let skipped = Position { sequence: at.sequence + 1, ..*at };
    let (record, body) = Record::from_bytes(&record.to_bytes()).unwrap();
    let error = state.apply(skipped, &record, &body).unwrap_err();
    assert_eq!(error, ApplyError::Gap { incarnation: at.incarnation, head: 0, got: 2 });
    assert_eq!(state, State::default());
}

#[test]
fn impossible_and_newer_records_stop_before_anything_changes() {
    let mut state = State::default();
    let at = Position { revision: 5, sequence: 1, incarnation: 1 };
    let topic = FlushTopic {
        topic_id: vec![1; 16],
        partitions: vec![FlushPartition { batches: vec![FlushBatch::default()], ..Default::default() }],
    };
    let bodies = [
        Body::TopicCreated(TopicCreated { topic_id: vec![1; 15], partitions: 1 }),
        Body::TopicCreated(TopicCreated { topic_id: vec![1; 16], partitions: u32::MAX }),
        Body::Flush(Flush { topics: vec![topic], ..Flush::default() }),
        Body::ProducerIdBlock(ProducerIdBlock { first: 0, end: u64::MAX }),
        Body::FeatureLevel(record::FeatureLevel { level: FEATURE_LEVEL + 1, transaction_version: 0 }),
    ];
    for body in bodies {
        let record = Record::new(0, body.clone());
        assert!(state.apply(at, &record, &body).is_err(), "{body:?}");
        assert_eq!(state, State::default());
    }
}

/// A state with one topic of one partition.
fn with_topic(topic_id: Uuid) -> State {
    let mut state = State::default();
    let created = TopicCreated { topic_id: topic_id.as_bytes().to_vec(), partitions: 1 };
    apply(
        &mut state,
        Position { revision: 1, sequence: 1, incarnation: 9 },
        &Record::new(0, Body::TopicCreated(created)),
    );
    state
}

fn produce(state: &mut State, sequence: u64, topic_id: Uuid, batch: FlushBatch) -> BatchOutcome {
    let partitions = vec![FlushPartition { partition: 0, position: 0, batches: vec![batch] }];
    let topics = vec![FlushTopic { topic_id: topic_id.as_bytes().to_vec(), partitions }];
    let flush =
        Flush { object_number: sequence, object_salt: 0, object_bytes: 100, topics, continues: false };
    let at = Position { revision: 10 + sequence.cast_signed(), sequence, incarnation: 5 };
    apply(state, at, &Record::new(0, Body::Flush(flush))).outcomes[0]
}

#[test]
fn a_duplicate_gets_its_first_offset_and_its_object_is_dead() {
    let topic_id = Uuid::from_u128(1);
    let mut state = with_topic(topic_id);
    let batch = FlushBatch { offsets: 3, bytes: 100, producer: 8, ..FlushBatch::default() };
    assert_eq!(produce(&mut state, 1, topic_id, batch), BatchOutcome::Appended { base_offset: 0 });
    assert_eq!(produce(&mut state, 2, topic_id, batch), BatchOutcome::Duplicate { base_offset: 0 });
    assert_eq!(state.partition(topic_id, 0).unwrap().end(), 3);
    assert_eq!((state.objects.len(), state.dead.len()), (1, 1));
}

/// A log of one partition, in which a producer wrote 3 records, of sequence numbers 0 to 2.
struct OneProducer {
    state: State,
    topic_id: Uuid,
    sequence: u64,
}

impl OneProducer {
    const ID: i64 = 7;

    fn at_level(level: u32) -> Self {
        let topic_id = Uuid::from_u128(1);
        let mut log = Self { state: with_topic(topic_id), topic_id, sequence: 0 };
        log.record(Body::FeatureLevel(record::FeatureLevel { level, transaction_version: 0 }));
        log.record(Body::ProducerIdBlock(ProducerIdBlock { first: 0, end: 1000 }));
        assert_eq!(log.write(0, 0), BatchOutcome::Appended { base_offset: 0 });
        log
    }

    fn record(&mut self, body: Body) -> Effects {
        self.sequence += 1;
        let at =
            Position { revision: 10 + self.sequence.cast_signed(), sequence: self.sequence, incarnation: 5 };
        let effects = apply(&mut self.state, at, &Record::new(0, body));
        invariants::check(&self.state).unwrap();
        effects
    }

    /// Writes 3 records.
    fn write(&mut self, epoch: u32, first: u32) -> BatchOutcome {
        let batch = FlushBatch {
            offsets: 3,
            bytes: 100,
            producer: Self::ID.cast_unsigned() + 1,
            producer_epoch: epoch,
            base_sequence: first,
            ..FlushBatch::default()
        };
        self.sequence += 1;
        produce(&mut self.state, self.sequence, self.topic_id, batch)
    }

    fn expire(&mut self, last_base_offset: u64, ids_below: u64) {
        let producer = ExpiredProducer {
            topic_id: self.topic_id.as_bytes().to_vec(),
            partition: 0,
            producer_id: Self::ID.cast_unsigned(),
            last_base_offset,
        };
        self.record(Body::ProducersExpired(ProducersExpired { producers: vec![producer], ids_below }));
    }

    fn knows_it(&self) -> bool {
        self.state.partition(self.topic_id, 0).unwrap().producers().contains_key(&Self::ID)
    }
}

#[test]
fn a_producer_goes_on_after_it_was_forgotten() {
    let mut log = OneProducer::at_level(FORGOTTEN_PRODUCERS);
    log.expire(0, 0);
    assert!(!log.knows_it());
    let refused = BatchOutcome::Refused(Refusal::OutOfOrderSequence);
    assert_eq!(log.write(0, 6), refused, "the batch before it may be on its way through another broker");
    assert_eq!(log.write(0, 3), BatchOutcome::Appended { base_offset: 3 });
    assert_eq!(log.write(0, 6), BatchOutcome::Appended { base_offset: 6 });
    assert_eq!(log.write(0, 6), BatchOutcome::Duplicate { base_offset: 6 });
    log.expire(0, 0);
    assert!(log.knows_it(), "it has written since");
}

#[test]
fn who_was_forgotten_before_that_was_noted_goes_on_anywhere() {
    let mut log = OneProducer::at_level(2);
    log.expire(0, 1);
    let refused = BatchOutcome::Refused(Refusal::OutOfOrderSequence);
    assert_eq!(log.write(0, 3), refused, "the rule before the level was raised");
    log.record(Body::FeatureLevel(record::FeatureLevel {
        level: FORGOTTEN_PRODUCERS,
        transaction_version: 0,
    }));
    assert_eq!(log.write(0, 3), BatchOutcome::Appended { base_offset: 3 });
    log.record(Body::ProducerIdBlock(ProducerIdBlock { first: 1000, end: 2000 }));
    log.record(Body::ProducersExpired(ProducersExpired { producers: Vec::new(), ids_below: 2000 }));
    assert_eq!(log.state.producer_ids_forgotten_below(), 1000, "later ones are noted where they wrote");
}

#[test]
fn an_object_whose_flush_was_never_finished_is_given_up() {
    let mut state = with_topic(Uuid::from_u128(1));
    let part = |number, continues| {
        Record::new(
            0,
            Body::Flush(Flush { object_number: number, object_bytes: 100, continues, ..Flush::default() }),
        )
    };
    let at = |sequence: i64| Position {
        revision: 10 + sequence,
        sequence: sequence.cast_unsigned(),
        incarnation: 5,
    };
    apply(&mut state, at(1), &part(1, true));
    assert_eq!((state.objects.len(), state.dead.len()), (1, 0), "more of it may come");
    apply(&mut state, at(2), &part(2, false));
    assert_eq!((state.objects.len(), state.dead.len()), (0, 2), "neither has a range");
    invariants::check(&state).unwrap();
}

#[test]
fn a_topic_that_was_created_again_has_none_of_the_old_data() {
    let old = Uuid::from_u128(1);
    let mut state = with_topic(old);
    let batch = FlushBatch { offsets: 3, bytes: 100, ..FlushBatch::default() };
    produce(&mut state, 1, old, batch);
    let deleted = TopicDeleted { topic_id: old.as_bytes().to_vec() };
    let at = Position { revision: 50, sequence: 2, incarnation: 9 };
    apply(&mut state, at, &Record::new(0, Body::TopicDeleted(deleted)));
    assert_eq!(state.dead.len(), 1, "its object is dead");
    // A batch that was on its way to the old one does not reach the new one.
    let late = FlushBatch { offsets: 1, bytes: 50, ..FlushBatch::default() };
    let flush = Flush {
        object_number: 9,
        topics: vec![FlushTopic {
            topic_id: old.as_bytes().to_vec(),
            partitions: vec![FlushPartition { partition: 0, position: 0, batches: vec![late] }],
        }],
        ..Flush::default()
    };
    let at = Position { revision: 51, sequence: 2, incarnation: 5 };
    let effects = apply(&mut state, at, &Record::new(0, Body::Flush(flush)));
    assert_eq!(effects.outcomes, [BatchOutcome::Refused(Refusal::UnknownTopicOrPartition)]);
}
