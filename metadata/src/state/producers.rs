//! Idempotent producers (KIP-98, KIP-360): which batch is new, which was seen, which does not
//! follow.

use crate::limits::REMEMBERED_BATCHES;

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
    /// Whether a batch with `count` records follows what is `known` of its producer.
    /// `Ok(Some(offset))` says that it was seen and where; `Ok(None)` that it is new.
    ///
    /// Unlike a Kafka leader, a producer that is new here must start at 0: its first batch may
    /// still be in flight on another broker.
    pub(super) fn check(
        known: Option<&Self>,
        sequence: &Sequence,
        count: u32,
        ids_forgotten_below: i64,
    ) -> Result<Option<i64>, SequenceError> {
        let Some(producer) = known else {
            return match sequence.first {
                0 => Ok(None),
                _ if sequence.producer_id < ids_forgotten_below => Err(SequenceError::Forgotten),
                _ => Err(SequenceError::OutOfOrder),
            };
        };
        if sequence.epoch < producer.epoch {
            return Err(SequenceError::OldEpoch);
        }
        if sequence.epoch > producer.epoch {
            return if sequence.first == 0 { Ok(None) } else { Err(SequenceError::OutOfOrder) };
        }
        if let Some(seen) = producer.batches.iter().find(|b| b.first == sequence.first && b.count == count) {
            return Ok(Some(seen.base_offset));
        }
        match producer.batches.last() {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(epoch: i16, first: i32) -> Sequence {
        Sequence { producer_id: 7, epoch, first }
    }

    fn check(known: &Producer, epoch: i16, first: i32, count: u32) -> Result<Option<i64>, SequenceError> {
        Producer::check(Some(known), &sequence(epoch, first), count, 0)
    }

    #[test]
    fn a_new_producer_starts_at_zero() {
        assert_eq!(Producer::check(None, &sequence(0, 0), 3, 0), Ok(None));
        assert_eq!(Producer::check(None, &sequence(0, 3), 3, 0), Err(SequenceError::OutOfOrder));
        assert_eq!(Producer::check(None, &sequence(0, 3), 3, 8), Err(SequenceError::Forgotten));
        assert_eq!(Producer::check(None, &sequence(0, 0), 3, 8), Ok(None));
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
