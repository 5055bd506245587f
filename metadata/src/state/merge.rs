//! Merging: ranges give way to one that holds the same records, rewritten elsewhere.
//!
//! The record names the exact ranges that it replaces. Whoever proposed it may have seen an older
//! state, or another broker may have been first: so each partition is accepted or refused by
//! itself, and a refused one leaves everything as it is.

use std::sync::Arc;

use strandline_storage::path::ObjectId;

use super::{
    Effects, Object, Partition, Position, Range, State, mixed, object_ref, offset, partition_digest,
};
use crate::limits::LEVELS;
use crate::record::{self, Merged, MergedPartition, RecordError};
use crate::state::MERGING;

/// What became of one partition of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeOutcome {
    /// The ranges are replaced.
    Replaced,
    /// The ranges are not those that the record names, or not there any more. The bytes in the
    /// object are dead.
    Refused,
}

/// A hash over the ranges that a merge replaces, so that it replaces those and no others. Which it
/// is, is part of the log's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputsHash(u64);

impl InputsHash {
    /// The hash of these ranges, in this order.
    pub fn of(ranges: &[Range]) -> Self {
        let fields = |range: &Range| {
            [
                range.base_offset.cast_unsigned(),
                range.end_offset.cast_unsigned(),
                range.object.incarnation.cast_unsigned(),
                range.object.number,
                u64::from(object_ref(&range.object).kind) << 32 | u64::from(range.object.salt),
                range.position,
                range.bytes,
            ]
        };
        Self(ranges.iter().flat_map(fields).fold(0, mixed))
    }

    /// Its number in a record.
    pub fn value(self) -> u64 {
        self.0
    }
}

/// Refuses a record that no writer may write.
pub(super) fn check(merged: &Merged) -> Result<(), RecordError> {
    for topic in &merged.topics {
        record::topic_id(&topic.topic_id)?;
        for entry in &topic.partitions {
            range_of(entry, ObjectId::merge(0, 0, 0), 0)?;
        }
    }
    Ok(())
}

/// The range that takes the place of the others.
fn range_of(entry: &MergedPartition, object: ObjectId, time_ms: i64) -> Result<Range, RecordError> {
    let base_offset = offset(entry.base_offset)?;
    let end_offset = entry.base_offset.checked_add(entry.offsets);
    let end_offset = offset(end_offset.unwrap_or(u64::MAX))?;
    if entry.offsets == 0 || entry.bytes == 0 || entry.batches == 0 || entry.inputs == 0 {
        return Err(RecordError::Impossible("a merge has inputs, offsets, bytes and batches"));
    }
    if entry.position.checked_add(entry.bytes).is_none() {
        return Err(RecordError::Impossible("a merged range lies in its object"));
    }
    let level = u8::try_from(entry.level).ok().filter(|level| (1..LEVELS).contains(&usize::from(*level)));
    Ok(Range {
        base_offset,
        end_offset,
        object,
        position: entry.position,
        bytes: entry.bytes,
        max_timestamp_ms: time_ms.wrapping_add(entry.max_timestamp_delta_ms),
        batches: entry.batches,
        level: level.ok_or(RecordError::Impossible("a merged range has a level above 0"))?,
        compacted: entry.compacted,
    })
}

impl Partition {
    /// Puts a range in the place of exactly the ranges that the entry names, and gives those.
    fn merge(&mut self, entry: &MergedPartition, merged: Range) -> Option<Vec<Range>> {
        let inputs = self.ranges.between(merged.base_offset, merged.end_offset)?;
        let is_named = inputs.len() == entry.inputs as usize
            && InputsHash::of(&inputs).value() == entry.inputs_hash
            && merged.end_offset <= self.last_stable();
        is_named.then(|| {
            self.ranges.replace(merged);
            // The markers in between are in the merged object.
            for offset in self.markers_between(merged.base_offset, merged.end_offset) {
                self.markers.remove(&offset);
            }
            if merged.compacted {
                self.forget_aborted(merged.base_offset, merged.end_offset);
            }
            inputs
        })
    }
}

impl State {
    pub(super) fn apply_merged(
        &mut self,
        at: Position,
        time_ms: i64,
        merged: &Merged,
        effects: &mut Effects,
    ) -> Result<(), RecordError> {
        let object = ObjectId::merge(at.incarnation, merged.object_number, merged.object_salt);
        // Nobody writes such a record below that level.
        let may_merge = self.feature_level >= MERGING;
        let mut replaced = 0;
        let mut gone = Vec::new();
        for topic in &merged.topics {
            let topic_id = record::topic_id(&topic.topic_id)?;
            for entry in &topic.partitions {
                let range = range_of(entry, object, time_ms)?;
                let partition = self
                    .topics
                    .get_mut(&topic_id)
                    .and_then(|t| t.partitions.get_mut(entry.partition as usize))
                    .filter(|_| may_merge);
                let inputs = partition.and_then(|partition| {
                    let partition = Arc::make_mut(partition);
                    let marks = partition.mark_count();
                    let inputs = partition.merge(entry, range)?;
                    self.mark_count -= marks - partition.mark_count();
                    self.digest = partition_digest(self.digest, partition);
                    Some(inputs)
                });
                self.mix(entry.inputs_hash);
                self.mix(inputs.as_ref().map_or(0, |inputs| inputs.len() as u64));
                effects.merges.push(match inputs {
                    None => MergeOutcome::Refused,
                    Some(inputs) => {
                        replaced += 1;
                        gone.extend(inputs);
                        MergeOutcome::Replaced
                    }
                });
            }
        }
        self.range_count += u64::from(replaced);
        let known = self.objects.entry(object).or_insert(Object { bytes: merged.object_bytes, ranges: 0 });
        known.ranges += replaced;
        for range in &gone {
            self.dereference(range, at.revision, effects);
        }
        self.release(object, at.revision, effects);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::record::{
        Body, FeatureLevel, Flush, FlushBatch, FlushPartition, FlushTopic, MergedTopic, Record, TopicCreated,
        TopicDeleted, Trim, TrimPartition,
    };
    use crate::{invariants, state::FEATURE_LEVEL};

    const TOPIC: Uuid = Uuid::from_u128(7);
    const BATCH_BYTES: u32 = 100;

    /// A state that records are applied to one by one.
    struct Log {
        state: State,
        sequence: u64,
    }

    impl Log {
        fn new(level: u32) -> Self {
            let mut log = Self { state: State::default(), sequence: 0 };
            log.apply(&Body::FeatureLevel(FeatureLevel { level, transaction_version: 0 }));
            log.apply(&Body::TopicCreated(TopicCreated {
                topic_id: TOPIC.as_bytes().to_vec(),
                partitions: 2,
            }));
            log
        }

        fn apply(&mut self, body: &Body) -> Effects {
            self.sequence += 1;
            let at = Position {
                revision: 10 + i64::try_from(self.sequence).unwrap(),
                sequence: self.sequence,
                incarnation: 5,
            };
            let record = Record::new(1_000, body.clone());
            let effects = self.state.apply(at, &record, body).unwrap();
            invariants::check(&self.state).unwrap();
            effects
        }

        /// Ten offsets for each of these partitions, in one object.
        fn flush(&mut self, partitions: &[u32]) {
            let batch = FlushBatch { offsets: 10, bytes: BATCH_BYTES, ..FlushBatch::default() };
            let entries = (0..).zip(partitions).map(|(place, &partition)| FlushPartition {
                partition,
                position: place * u64::from(BATCH_BYTES),
                batches: vec![batch],
            });
            let topic = FlushTopic { topic_id: TOPIC.as_bytes().to_vec(), partitions: entries.collect() };
            self.apply(&Body::Flush(Flush {
                object_number: self.sequence,
                object_bytes: 1_000,
                topics: vec![topic],
                ..Flush::default()
            }));
        }

        fn partition(&self, number: u32) -> &Partition {
            self.state.partition(TOPIC, number).unwrap()
        }

        /// A merge of all that a partition has now.
        fn whole(&self, partition: u32) -> MergedPartition {
            let inputs: Vec<Range> = self.partition(partition).ranges.iter().copied().collect();
            entry(partition, &inputs)
        }

        fn merge(&mut self, entries: &[MergedPartition]) -> Effects {
            let topic = MergedTopic { topic_id: TOPIC.as_bytes().to_vec(), partitions: entries.to_vec() };
            self.apply(&Body::Merged(Merged {
                object_number: 1_000 + self.sequence,
                object_salt: 1,
                object_bytes: 5_000,
                topics: vec![topic],
            }))
        }
    }

    fn entry(partition: u32, inputs: &[Range]) -> MergedPartition {
        let (first, last) = (inputs.first().unwrap(), inputs.last().unwrap());
        MergedPartition {
            partition,
            base_offset: first.base_offset.cast_unsigned(),
            offsets: (last.end_offset - first.base_offset).cast_unsigned(),
            inputs: u32::try_from(inputs.len()).unwrap(),
            inputs_hash: InputsHash::of(inputs).value(),
            position: 0,
            bytes: inputs.iter().map(|r| r.bytes).sum(),
            batches: inputs.iter().map(|r| r.batches).sum(),
            max_timestamp_delta_ms: 0,
            level: 1,
            compacted: false,
        }
    }

    #[test]
    fn ranges_give_way_to_one_and_their_objects_die() {
        let mut log = Log::new(FEATURE_LEVEL);
        (0..5).for_each(|_| log.flush(&[0]));
        log.flush(&[0, 1]);
        let (bytes, end) = (log.partition(0).bytes(), log.partition(0).end());
        let effects = log.merge(&[log.whole(0)]);
        assert_eq!(effects.merges, [MergeOutcome::Replaced]);
        assert_eq!(effects.died.len(), 5, "the sixth has records of the other partition");
        assert!(effects.moved.is_empty() && effects.outcomes.is_empty());
        let merged = log.partition(0);
        assert_eq!((merged.bytes(), merged.end(), merged.ranges().len()), (bytes, end, 1));
        let range = merged.ranges().first().unwrap();
        assert_eq!(
            (range.level, range.batches, range.object.kind),
            (1, 6, strandline_storage::path::ObjectKind::Merge)
        );
        assert_eq!(log.state.range_count(), 2);
        // What comes next is not taken for a part of it.
        log.flush(&[0]);
        assert_eq!(log.partition(0).ranges().len(), 2);
    }

    #[test]
    fn a_merge_of_other_ranges_than_there_are_changes_nothing() {
        let mut log = Log::new(FEATURE_LEVEL);
        (0..6).for_each(|_| log.flush(&[0, 1]));
        let whole = log.whole(0);
        let wrong = [
            MergedPartition { inputs_hash: whole.inputs_hash ^ 1, ..whole },
            MergedPartition { inputs: 5, ..whole },
            MergedPartition { base_offset: 5, offsets: 55, ..whole },
            MergedPartition { offsets: 70, ..whole },
            MergedPartition { partition: 9, ..whole },
        ];
        let before = log.state.topics().clone();
        let effects = log.merge(&wrong);
        assert_eq!(effects.merges, [MergeOutcome::Refused; 5]);
        assert_eq!(log.state.topics(), &before);
        // Nothing refers to the object.
        assert_eq!(effects.died.len(), 1);
        // One partition does not decide about another.
        let effects = log.merge(&[wrong[0], log.whole(1)]);
        assert_eq!(effects.merges, [MergeOutcome::Refused, MergeOutcome::Replaced]);
        // Twice is once.
        let effects = log.merge(&[whole, whole]);
        assert_eq!(effects.merges, [MergeOutcome::Replaced, MergeOutcome::Refused]);
    }

    #[test]
    fn what_was_trimmed_or_deleted_meanwhile_is_not_brought_back() {
        let mut log = Log::new(FEATURE_LEVEL);
        (0..6).for_each(|_| log.flush(&[0, 1]));
        let (zero, one) = (log.whole(0), log.whole(1));
        let trim = |log: &mut Log, partition, log_start| {
            let topic_id = TOPIC.as_bytes().to_vec();
            log.apply(&Body::Trim(Trim {
                partitions: vec![TrimPartition { topic_id, partition, log_start }],
            }));
        };
        // Within the first range: the log start moves, the ranges are those.
        trim(&mut log, 0, 5);
        // Beyond it: one of them is gone.
        trim(&mut log, 1, 15);
        let effects = log.merge(&[zero, one]);
        assert_eq!(effects.merges, [MergeOutcome::Replaced, MergeOutcome::Refused]);
        assert_eq!((log.partition(0).log_start(), log.partition(1).log_start()), (5, 15));
        let again = log.whole(1);
        log.apply(&Body::TopicDeleted(TopicDeleted { topic_id: TOPIC.as_bytes().to_vec() }));
        let effects = log.merge(&[again]);
        assert_eq!((effects.merges, effects.died.len()), (vec![MergeOutcome::Refused], 1));
        assert!(log.state.objects().is_empty());
    }

    #[test]
    fn nothing_is_merged_below_its_feature_level() {
        let mut log = Log::new(MERGING - 1);
        (0..6).for_each(|_| log.flush(&[0]));
        let effects = log.merge(&[log.whole(0)]);
        assert_eq!(effects.merges, [MergeOutcome::Refused]);
    }

    #[test]
    fn a_merge_that_no_writer_may_write_is_refused_before_it_is_applied() {
        let mut log = Log::new(FEATURE_LEVEL);
        (0..6).for_each(|_| log.flush(&[0]));
        let whole = log.whole(0);
        for wrong in [
            MergedPartition { bytes: 0, ..whole },
            MergedPartition { batches: 0, ..whole },
            MergedPartition { inputs: 0, ..whole },
            MergedPartition { offsets: 0, ..whole },
            MergedPartition { offsets: u64::MAX, ..whole },
            MergedPartition { base_offset: 1 << 63, ..whole },
            MergedPartition { position: u64::MAX, ..whole },
            MergedPartition { level: 0, ..whole },
            MergedPartition { level: 3, ..whole },
        ] {
            let topic = MergedTopic { topic_id: TOPIC.as_bytes().to_vec(), partitions: vec![wrong] };
            let merged = Merged { topics: vec![topic], ..Merged::default() };
            assert!(matches!(check(&merged), Err(RecordError::Impossible(_))), "{wrong:?}");
        }
        let topic = MergedTopic { topic_id: vec![1; 3], partitions: vec![] };
        assert!(check(&Merged { topics: vec![topic], ..Merged::default() }).is_err());
    }
}
