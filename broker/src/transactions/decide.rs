//! What becomes of a transactional id: pure, from what is stored of it and what is asked.
//!
//! The codes are those of Kafka's coordinator. What differs is that nothing is ever half way: a
//! transaction that is asked to end has ended, so nobody hears CONCURRENT_TRANSACTIONS for having
//! asked twice.

use std::collections::BTreeSet;

use kafka_protocol::error::ResponseError;
use strandline_metadata::values::VALUE_FORMAT;
use strandline_metadata::values::transaction::{TransactionStateValue as TransactionState, TransactionValue};

/// A producer id and its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProducerEpoch {
    pub(crate) id: i64,
    pub(crate) epoch: i16,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing: it is as the producer wants it.
    Done(ProducerEpoch),
    /// The transactional id becomes this. A fresh producer id is put in place of [`FRESH_ID`].
    Become(Box<TransactionValue>),
}

/// Stands for a producer id that nobody has had.
pub(crate) const FRESH_ID: i64 = -2;

/// The highest epoch that a producer is given: Kafka keeps the last one for fencing.
const LAST_EPOCH: i16 = i16::MAX - 1;

fn is_exhausted(epoch: i16) -> bool {
    epoch >= LAST_EPOCH
}

/// The producer that a transactional id gets next: its epoch is one higher, or its id a fresh one.
fn bumped(value: &TransactionValue, last_epoch: i16) -> TransactionValue {
    if is_exhausted(value.epoch) {
        return TransactionValue {
            producer_id: FRESH_ID,
            epoch: 0,
            last_epoch,
            previous_producer_id: value.producer_id,
            ..value.clone()
        };
    }
    TransactionValue { epoch: value.epoch + 1, last_epoch, ..value.clone() }
}

/// InitProducerId: `expected` is what a producer has that wants to go on after an error (KIP-360).
pub(crate) fn initialize(
    stored: Option<&TransactionValue>,
    timeout_ms: i32,
    expected: Option<ProducerEpoch>,
    now_ms: i64,
) -> Result<Decision, ResponseError> {
    let Some(value) = stored else {
        return Ok(Decision::Become(Box::new(TransactionValue {
            format: VALUE_FORMAT,
            producer_id: FRESH_ID,
            epoch: 0,
            last_epoch: -1,
            previous_producer_id: -1,
            timeout_ms,
            state: TransactionState::Empty,
            groups: BTreeSet::new(),
            updated_ms: now_ms,
        })));
    };
    let mut last_epoch = -1;
    if let Some(ProducerEpoch { id, epoch }) = expected {
        let was_rotated = id == value.previous_producer_id && is_exhausted(epoch);
        if (id == value.producer_id || was_rotated) && epoch == value.last_epoch {
            // It asked before, and did not hear the answer.
            return Ok(Decision::Done(ProducerEpoch { id: value.producer_id, epoch: value.epoch }));
        }
        if (id, epoch) != (value.producer_id, value.epoch) {
            return Err(ResponseError::ProducerFenced);
        }
        last_epoch = epoch;
    }
    let next = bumped(value, last_epoch);
    Ok(Decision::Become(Box::new(TransactionValue {
        timeout_ms,
        state: TransactionState::Empty,
        groups: BTreeSet::new(),
        updated_ms: now_ms,
        ..next
    })))
}

/// EndTxn. `bumps_epoch` is whether the client speaks version 2 of transactions (KIP-890).
pub(crate) fn end(
    value: &TransactionValue,
    is_open: bool,
    producer: ProducerEpoch,
    is_commit: bool,
    bumps_epoch: bool,
    now_ms: i64,
) -> Result<Decision, ResponseError> {
    let ProducerEpoch { id, epoch } = producer;
    let state = if is_open { TransactionState::Ongoing } else { value.state };
    let asked_before = bumps_epoch && {
        let was_rotated = value.previous_producer_id == id && is_exhausted(epoch) && value.epoch == 0;
        was_rotated || (value.producer_id == id && Some(value.epoch) == epoch.checked_add(1))
    };
    if value.producer_id != id && !asked_before {
        return Err(ResponseError::InvalidProducerIdMapping);
    }
    let is_current = value.producer_id == id && value.epoch == epoch;
    let is_complete = matches!(state, TransactionState::CompleteCommit | TransactionState::CompleteAbort);
    let may_ask = is_current || (asked_before && is_complete);
    if !may_ask {
        return Err(ResponseError::ProducerFenced);
    }
    let answer = Decision::Done(ProducerEpoch { id: value.producer_id, epoch: value.epoch });
    let ended = |is_commit: bool| {
        let next = if bumps_epoch { bumped(value, value.epoch) } else { value.clone() };
        let state =
            if is_commit { TransactionState::CompleteCommit } else { TransactionState::CompleteAbort };
        Decision::Become(Box::new(TransactionValue {
            state,
            groups: BTreeSet::new(),
            updated_ms: now_ms,
            ..next
        }))
    };
    match (state, is_commit) {
        (TransactionState::Ongoing, _) => Ok(ended(is_commit)),
        (TransactionState::CompleteCommit, true) | (TransactionState::CompleteAbort, false)
            if asked_before || !bumps_epoch =>
        {
            Ok(answer)
        }
        // Version 2: nothing was written, and the epoch is bumped all the same.
        (
            TransactionState::Empty | TransactionState::CompleteAbort | TransactionState::CompleteCommit,
            false,
        ) if bumps_epoch && !asked_before => Ok(ended(false)),
        _ => Err(ResponseError::InvalidTxnState),
    }
}

/// A transaction that has been open for too long is aborted, and its producer fenced.
pub(crate) fn time_out(value: &TransactionValue, now_ms: i64) -> TransactionValue {
    TransactionValue {
        state: TransactionState::CompleteAbort,
        groups: BTreeSet::new(),
        updated_ms: now_ms,
        ..bumped(value, -1)
    }
}

/// Whether a producer may add to its transaction.
pub(crate) fn check(value: &TransactionValue, producer: ProducerEpoch) -> Result<(), ResponseError> {
    if value.producer_id != producer.id {
        return Err(ResponseError::InvalidProducerIdMapping);
    }
    if value.epoch != producer.epoch {
        return Err(ResponseError::ProducerFenced);
    }
    Ok(())
}

/// The same, with a transaction that is open.
pub(crate) fn ongoing(value: &TransactionValue, now_ms: i64) -> TransactionValue {
    TransactionValue { state: TransactionState::Ongoing, updated_ms: now_ms, ..value.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000;

    fn value(state: TransactionState, epoch: i16) -> TransactionValue {
        TransactionValue {
            format: VALUE_FORMAT,
            producer_id: 7,
            epoch,
            last_epoch: -1,
            previous_producer_id: -1,
            timeout_ms: 60_000,
            state,
            groups: BTreeSet::new(),
            updated_ms: 0,
        }
    }

    fn producer(id: i64, epoch: i16) -> ProducerEpoch {
        ProducerEpoch { id, epoch }
    }

    fn becomes(decision: Result<Decision, ResponseError>) -> (i64, i16, TransactionState) {
        match decision {
            Ok(Decision::Become(next)) => (next.producer_id, next.epoch, next.state),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_producer_that_is_initialized_anew_fences_the_one_before() {
        let first = initialize(None, 60_000, None, NOW);
        assert_eq!(becomes(first), (FRESH_ID, 0, TransactionState::Empty));
        let known = value(TransactionState::CompleteCommit, 3);
        let again = initialize(Some(&known), 60_000, None, NOW);
        assert_eq!(becomes(again), (7, 4, TransactionState::Empty));
        let last = value(TransactionState::Empty, LAST_EPOCH);
        let rotated = initialize(Some(&last), 60_000, None, NOW);
        assert_eq!(becomes(rotated), (FRESH_ID, 0, TransactionState::Empty));
    }

    #[test]
    fn a_producer_that_goes_on_gets_its_next_epoch_once() {
        let known = value(TransactionState::CompleteAbort, 3);
        let asked = |known: &TransactionValue, expected| initialize(Some(known), 60_000, Some(expected), NOW);
        let Ok(Decision::Become(next)) = asked(&known, producer(7, 3)) else { panic!("it goes on") };
        assert_eq!((next.epoch, next.last_epoch), (4, 3));
        assert_eq!(asked(&next, producer(7, 3)), Ok(Decision::Done(producer(7, 4))), "asked twice");
        assert_eq!(asked(&next, producer(7, 2)), Err(ResponseError::ProducerFenced));
        assert_eq!(asked(&next, producer(8, 4)), Err(ResponseError::ProducerFenced));
        // Another one came in between.
        let Ok(Decision::Become(fenced)) = initialize(Some(&next), 60_000, None, NOW) else {
            panic!("it is taken over")
        };
        assert_eq!(asked(&fenced, producer(7, 4)), Err(ResponseError::ProducerFenced));
        let rotated = TransactionValue {
            previous_producer_id: 7,
            last_epoch: LAST_EPOCH,
            ..value(TransactionState::Empty, 0)
        };
        let rotated = TransactionValue { producer_id: 9, ..rotated };
        assert_eq!(asked(&rotated, producer(7, LAST_EPOCH)), Ok(Decision::Done(producer(9, 0))));
        assert_eq!(asked(&rotated, producer(7, 4)), Err(ResponseError::ProducerFenced));
    }

    #[test]
    fn a_transaction_of_version_1_ends_at_its_epoch() {
        use TransactionState::{CompleteAbort, CompleteCommit, Empty};
        let end = |state, is_open, epoch, is_commit| {
            super::end(&value(state, 3), is_open, producer(7, epoch), is_commit, false, NOW)
        };
        assert_eq!(becomes(end(Empty, true, 3, true)), (7, 3, CompleteCommit));
        assert_eq!(becomes(end(CompleteCommit, true, 3, false)), (7, 3, CompleteAbort));
        assert_eq!(end(CompleteCommit, false, 3, true), Ok(Decision::Done(producer(7, 3))), "asked twice");
        assert_eq!(end(CompleteAbort, false, 3, false), Ok(Decision::Done(producer(7, 3))));
        for (state, is_commit) in
            [(CompleteCommit, false), (CompleteAbort, true), (Empty, true), (Empty, false)]
        {
            assert_eq!(end(state, false, 3, is_commit), Err(ResponseError::InvalidTxnState));
        }
        for epoch in [2, 4] {
            assert_eq!(end(Empty, true, epoch, true), Err(ResponseError::ProducerFenced));
        }
        let other = super::end(&value(Empty, 3), true, producer(8, 3), true, false, NOW);
        assert_eq!(other, Err(ResponseError::InvalidProducerIdMapping));
    }

    #[test]
    fn a_transaction_of_version_2_bumps_the_epoch_and_remembers_its_outcome() {
        use TransactionState::{CompleteAbort, CompleteCommit, Empty};
        let end = |state, is_open, epoch, is_commit| {
            super::end(&value(state, 3), is_open, producer(7, epoch), is_commit, true, NOW)
        };
        assert_eq!(becomes(end(Empty, true, 3, true)), (7, 4, CompleteCommit));
        assert_eq!(becomes(end(Empty, true, 3, false)), (7, 4, CompleteAbort));
        // The retry comes with the epoch before; its answer is the stored outcome.
        assert_eq!(end(CompleteCommit, false, 2, true), Ok(Decision::Done(producer(7, 3))));
        assert_eq!(end(CompleteAbort, false, 2, false), Ok(Decision::Done(producer(7, 3))));
        assert_eq!(end(CompleteCommit, false, 2, false), Err(ResponseError::InvalidTxnState));
        assert_eq!(end(CompleteAbort, false, 2, true), Err(ResponseError::InvalidTxnState));
        // It never decides the next transaction.
        assert_eq!(end(CompleteCommit, true, 2, true), Err(ResponseError::ProducerFenced));
        // Nothing was written.
        assert_eq!(end(CompleteCommit, false, 3, true), Err(ResponseError::InvalidTxnState));
        assert_eq!(becomes(end(CompleteCommit, false, 3, false)), (7, 4, CompleteAbort));
        assert_eq!(becomes(end(Empty, false, 3, false)), (7, 4, CompleteAbort));
        assert_eq!(end(Empty, false, 3, true), Err(ResponseError::InvalidTxnState));
        for epoch in [1, 4] {
            assert_eq!(end(CompleteCommit, false, epoch, true), Err(ResponseError::ProducerFenced));
        }
    }

    #[test]
    fn used_up_epochs_give_a_fresh_producer_id() {
        let last = value(TransactionState::Empty, LAST_EPOCH);
        let ended = end(&last, true, producer(7, LAST_EPOCH), true, true, NOW);
        let Ok(Decision::Become(next)) = ended else { panic!("it ends") };
        assert_eq!((next.producer_id, next.epoch, next.previous_producer_id), (FRESH_ID, 0, 7));
        let next = TransactionValue { producer_id: 9, ..*next };
        let again = end(&next, false, producer(7, LAST_EPOCH), true, true, NOW);
        assert_eq!(again, Ok(Decision::Done(producer(9, 0))));
        assert_eq!(time_out(&last, NOW).epoch, 0);
        assert_eq!(time_out(&value(TransactionState::Ongoing, 3), NOW).epoch, 4);
    }
}
