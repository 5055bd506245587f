//! Idempotent producers (KIP-98, KIP-360): which batch is new, which was seen, which does not
//! follow.

use imbl::OrdMap;

use crate::limits::{FORGOTTEN_PRODUCERS_PER_PARTITION, REMEMBERED_BATCHES};

/// Who wrote a batch, and which of its batches it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// The producer id.
    pub producer_id: i64,
    /// The producer epoch.
    pub epoch: i16,
    /// Sequence number of the first record, 0 to 2³¹ − 1; it wraps to 0.
    pub first: i32,
}

/// A batch that a producer wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenBatch {
    /// Sequence number of its first record.
    pub first: i32,
    /// How many sequence numbers, and offsets, it takes.
    pub count: u32,
    /// Its first offset.
    pub base_offset: i64,
}

impl SeenBatch {
    /// Sequence number of its last record.
    pub fn last(&self) -> i32 {
        sequence_after(self.first, self.count - 1)
    }
}

/// What a partition remembers of a producer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Producer {
    /// Its newest epoch.
    pub epoch: i16,
    /// Its newest batches of that epoch, oldest first; one to [`REMEMBERED_BATCHES`].
    pub batches: Vec<SeenBatch>,
}

/// Why a batch cannot be appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceError {
    /// It does not follow the producer's last batch.
    OutOfOrder,
    /// Its epoch is older than the newest.
    OldEpoch,
    /// The producer may have been forgotten: its id is older than the expiry.
    Forgotten,
}

/// The sequence number `by` after `sequence`; after 2³¹ − 1 comes 0.
fn sequence_after(sequence: i32, by: u32) -> i32 {
    let sum = i64::from(sequence) + i64::from(by);
    i32::try_from(sum % (i64::from(i32::MAX) + 1))
        .unwrap_or_else(|_| unreachable!("a remainder of 2^31 fits"))
}

impl Producer {
    /// Whether a batch with `count` records follows the last one of this producer.
    /// `Ok(Some(offset))` says that it was seen and where; `Ok(None)` that it is new.
    pub(super) fn check(&self, sequence: &Sequence, count: u32) -> Result<Option<i64>, SequenceError> {
        if sequence.epoch < self.epoch {
            return Err(SequenceError::OldEpoch);
        }
        if sequence.epoch > self.epoch {
            return if sequence.first == 0 { Ok(None) } else { Err(SequenceError::OutOfOrder) };
        }
        if let Some(seen) = self.batches.iter().find(|b| b.first == sequence.first && b.count == count) {
            return Ok(Some(seen.base_offset));
        }
        match self.batches.last() {
            Some(last) if sequence_after(last.last(), 1) == sequence.first => Ok(None),
            _ => Err(SequenceError::OutOfOrder),
        }
    }

    /// Notes a batch that was appended.
    pub(super) fn remember(&mut self, sequence: &Sequence, count: u32, base_offset: i64) {
        if sequence.epoch != self.epoch {
            self.epoch = sequence.epoch;
            self.batches.clear();
        }
        if self.batches.len() == REMEMBERED_BATCHES {
            self.batches.remove(0);
        }
        self.batches.push(SeenBatch { first: sequence.first, count, base_offset });
    }
}

/// What the log says about all producer ids.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProducerIds {
    /// First id that was never handed out.
    pub(super) end: i64,
    /// Producers with ids below this may have been forgotten in any partition.
    pub(super) forgotten_below: i64,
    /// Whether partitions note whom they forget (feature level [`super::FORGOTTEN_PRODUCERS`]).
    pub(super) are_noted: bool,
}

/// Where a producer was when a partition forgot it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForgottenProducer {
    /// Its newest epoch.
    pub epoch: i16,
    /// Sequence number of its last record.
    pub last: i32,
}

/// The producers that a partition has forgotten, so that one that comes back is not taken for one
/// that is new here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForgottenProducers {
    /// Those with the highest ids, at most [`FORGOTTEN_PRODUCERS_PER_PARTITION`].
    pub(crate) noted: OrdMap<i64, ForgottenProducer>,
    /// All others have ids below this.
    pub(crate) below: i64,
}

impl ForgottenProducers {
    /// Those with the highest ids, with where they were.
    pub fn noted(&self) -> &OrdMap<i64, ForgottenProducer> {
        &self.noted
    }

    /// All others have ids below this.
    pub fn below(&self) -> i64 {
        self.below
    }

    /// Notes a producer that is forgotten.
    pub(super) fn note(&mut self, producer_id: i64, producer: &Producer) {
        let Some(last) = producer.batches.last() else { return };
        if producer_id < self.below {
            return;
        }
        self.noted.insert(producer_id, ForgottenProducer { epoch: producer.epoch, last: last.last() });
        if self.noted.len() > FORGOTTEN_PRODUCERS_PER_PARTITION
            && let Some(&(lowest, _)) = self.noted.get_min()
        {
            self.noted.remove(&lowest);
            self.below = lowest.saturating_add(1);
        }
    }

    /// Notes that a producer is known again.
    pub(super) fn forget(&mut self, producer_id: i64) {
        self.noted.remove(&producer_id);
    }

    /// Whether a batch of a producer that the partition does not know may be its first one here.
    ///
    /// A producer that is new to the partition starts at 0: unlike with a Kafka leader, its first
    /// batch may still be in flight on another broker. One that was here goes on after its last
    /// batch. One that may have been here, or was never handed out by this cluster, starts anywhere
    /// (KIP-360).
    pub(super) fn check(&self, sequence: &Sequence, ids: &ProducerIds) -> Result<(), SequenceError> {
        let id = sequence.producer_id;
        if !ids.are_noted {
            return match sequence.first {
                0 => Ok(()),
                _ if id < ids.forgotten_below => Err(SequenceError::Forgotten),
                _ => Err(SequenceError::OutOfOrder),
            };
        }
        if let Some(forgotten) = self.noted.get(&id) {
            let follows =
                sequence.epoch == forgotten.epoch && sequence.first == sequence_after(forgotten.last, 1);
            return match sequence.first {
                _ if sequence.epoch < forgotten.epoch => Err(SequenceError::OldEpoch),
                0 => Ok(()),
                _ if follows => Ok(()),
                _ => Err(SequenceError::OutOfOrder),
            };
        }
        let was_handed_out = id < ids.end;
        let may_be_forgotten = id < self.below.max(ids.forgotten_below);
        if sequence.first == 0 || !was_handed_out || may_be_forgotten {
            Ok(())
        } else {
            Err(SequenceError::OutOfOrder)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(epoch: i16, first: i32) -> Sequence {
        Sequence { producer_id: 7, epoch, first }
    }

    fn check(known: &Producer, epoch: i16, first: i32, count: u32) -> Result<Option<i64>, SequenceError> {
        known.check(&sequence(epoch, first), count)
    }

    /// Ids up to 99 were handed out.
    const IDS: ProducerIds = ProducerIds { end: 100, forgotten_below: 0, are_noted: true };

    #[test]
    fn before_forgotten_producers_are_noted_every_one_starts_at_zero() {
        let old = ProducerIds { are_noted: false, ..IDS };
        let check = |first, forgotten_below| {
            let ids = ProducerIds { forgotten_below, ..old };
            ForgottenProducers::default().check(&sequence(0, first), &ids)
        };
        assert_eq!(check(0, 0), Ok(()));
        assert_eq!(check(3, 0), Err(SequenceError::OutOfOrder));
        assert_eq!(check(3, 8), Err(SequenceError::Forgotten));
        assert_eq!(check(0, 8), Ok(()));
    }

    #[test]
    fn a_new_producer_starts_at_zero_and_a_strange_one_anywhere() {
        let check = |first, ids: ProducerIds| ForgottenProducers::default().check(&sequence(0, first), &ids);
        assert_eq!(check(0, IDS), Ok(()));
        assert_eq!(check(3, IDS), Err(SequenceError::OutOfOrder), "its first batch may be on its way");
        assert_eq!(check(3, ProducerIds { end: 7, ..IDS }), Ok(()), "no id of this cluster");
        let all_forgotten = ProducerIds { forgotten_below: 8, ..IDS };
        assert_eq!(check(3, all_forgotten), Ok(()), "it may have been here");
    }

    #[test]
    fn a_forgotten_producer_goes_on_where_it_was() {
        let mut producer = Producer::default();
        producer.remember(&sequence(2, 40), 10, 0);
        let mut forgotten = ForgottenProducers::default();
        forgotten.note(7, &producer);
        let check = |epoch, first| forgotten.check(&sequence(epoch, first), &IDS);
        assert_eq!(check(2, 50), Ok(()));
        assert_eq!(check(2, 60), Err(SequenceError::OutOfOrder), "batch 50 may be on its way");
        assert_eq!(check(2, 40), Err(SequenceError::OutOfOrder), "stored already");
        assert_eq!(check(1, 50), Err(SequenceError::OldEpoch));
        assert_eq!(check(3, 0), Ok(()));
        assert_eq!(check(3, 50), Err(SequenceError::OutOfOrder));
        assert_eq!(check(2, 0), Ok(()), "it starts over");
    }

    #[test]
    fn no_forgotten_producer_is_ever_taken_for_a_new_one() {
        let (mut forgotten, mut producer) = (ForgottenProducers::default(), Producer::default());
        producer.remember(&sequence(0, 0), 1, 0);
        let count = i64::try_from(FORGOTTEN_PRODUCERS_PER_PARTITION).unwrap();
        // In an order that is not that of the ids.
        for id in (0..3 * count).map(|i| (i * 7) % (3 * count)) {
            forgotten.note(id, &producer);
        }
        assert_eq!((forgotten.noted.len(), forgotten.below), (FORGOTTEN_PRODUCERS_PER_PARTITION, 2 * count));
        let ids = ProducerIds { end: i64::MAX, ..IDS };
        for producer_id in 0..3 * count {
            let next = Sequence { producer_id, epoch: 0, first: 1 };
            assert_eq!(forgotten.check(&next, &ids), Ok(()), "producer {producer_id}");
        }
        let new = Sequence { producer_id: 3 * count, epoch: 0, first: 1 };
        assert_eq!(forgotten.check(&new, &ids), Err(SequenceError::OutOfOrder));
    }

    #[test]
    fn the_last_five_batches_are_duplicates_and_older_ones_are_gaps() {
        let mut producer = Producer::default();
        for i in 0..7 {
            assert_eq!(
                check(&producer, 0, i * 10, 10),
                if i == 0 { Err(SequenceError::OutOfOrder) } else { Ok(None) }
            );
            producer.remember(&sequence(0, i * 10), 10, i64::from(i) * 10);
        }
        for i in 0..7 {
            let expected = if i < 2 { Err(SequenceError::OutOfOrder) } else { Ok(Some(i64::from(i) * 10)) };
            assert_eq!(check(&producer, 0, i * 10, 10), expected, "batch {i}");
        }
        assert_eq!(check(&producer, 0, 80, 10), Err(SequenceError::OutOfOrder), "a gap");
        assert_eq!(
            check(&producer, 0, 60, 9),
            Err(SequenceError::OutOfOrder),
            "another batch at a seen sequence"
        );
    }

    #[test]
    fn epochs_only_go_up_and_start_over_at_zero() {
        let mut producer = Producer::default();
        producer.remember(&sequence(3, 0), 1, 0);
        assert_eq!(check(&producer, 2, 1, 1), Err(SequenceError::OldEpoch));
        assert_eq!(check(&producer, 4, 1, 1), Err(SequenceError::OutOfOrder));
        assert_eq!(check(&producer, 4, 0, 1), Ok(None));
    }

    #[test]
    fn sequence_numbers_wrap() {
        assert_eq!(sequence_after(i32::MAX, 1), 0);
        assert_eq!(sequence_after(i32::MAX - 1, 3), 1);
        let mut producer = Producer::default();
        producer.remember(&sequence(0, i32::MAX - 1), 3, 0);
        assert_eq!(check(&producer, 0, 1, 1), Ok(None));
        assert_eq!(check(&producer, 0, 2, 1), Err(SequenceError::OutOfOrder));
    }
}
