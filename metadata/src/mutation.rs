//! Deliberate bugs, so that a test can show that the simulation finds each of them.
//!
//! They exist only in builds with the feature `mutations`, which nothing but that test asks for, and there only on a
//! thread that asked for one. In every other build [`is`] is `false` when it is compiled, and nothing of them is left.

/// A deliberate bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Producers are answered when their object is written, with the offsets that it would get now.
    AcknowledgeBeforeCommit,
    /// A commit does not compare the registration.
    SkipIncarnationCompare,
    /// A commit whose outcome is unknown is made again under the next numbers.
    RetryBlindly,
    /// A commit whose outcome is unknown is made again under the next numbers if its log key is not there.
    RetryWhenTrimmed,
    /// Whether an object is in the state is looked up before whether its writer is registered.
    CollectByOldState,
    /// A registration is put over the one of a predecessor, and goes on under its create revision.
    RegisterOver,
    /// Whoever replays the log passes over the creation of topics that are gone by now.
    ReadTopicsAtLatest,
    /// Records are applied as they come: in the order of keys, or of events.
    ApplyAsItComes,
    /// Whoever comes while a barrier's read is under way shares it.
    ShareSentBarrier,
    /// A commit of offsets compares neither what it replaces nor the group.
    MergeOffsetsBlindly,
    /// The trimmer deletes one record more than the snapshot covers.
    TrimOneTooMany,
    /// The log is trimmed before the snapshot is listed.
    TrimBeforePointer,
    /// The waiters of a flush that failed are never told.
    ForgetFailedFlush,
    /// The waiters of a flush that failed are acknowledged.
    AcknowledgeFailedFlush,
    /// An offset beyond the end is out of range, whatever other brokers may know.
    OutOfRangeWithoutBarrier,
    /// The number of a commit whose answer was lost is used again.
    ReuseSequence,
    /// Objects that the state does not need any more are deleted at once.
    DeleteDeadAtOnce,
    /// A refusal is believed although what would tell is gone.
    BelieveRefusal,
    /// A commit that is refused for want of space is believed not to have been executed.
    BelieveNoSpace,
    /// The snapshot of an older state is listed before newer ones.
    ListOlderSnapshot,
    /// Events behind a gap of a watch are applied.
    ApplyBehindGap,
}

impl Mutation {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::AcknowledgeBeforeCommit,
        Self::SkipIncarnationCompare,
        Self::RetryBlindly,
        Self::RetryWhenTrimmed,
        Self::CollectByOldState,
        Self::RegisterOver,
        Self::ReadTopicsAtLatest,
        Self::ApplyAsItComes,
        Self::ShareSentBarrier,
        Self::MergeOffsetsBlindly,
        Self::TrimOneTooMany,
        Self::TrimBeforePointer,
        Self::ForgetFailedFlush,
        Self::AcknowledgeFailedFlush,
        Self::OutOfRangeWithoutBarrier,
        Self::ReuseSequence,
        Self::DeleteDeadAtOnce,
        Self::BelieveRefusal,
        Self::BelieveNoSpace,
        Self::ListOlderSnapshot,
        Self::ApplyBehindGap,
    ];
}

/// Whether this thread has this bug.
#[cfg(not(feature = "mutations"))]
#[inline]
pub const fn is(_: Mutation) -> bool {
    false
}

#[cfg(feature = "mutations")]
pub use self::switch::{is, set};

#[cfg(feature = "mutations")]
mod switch {
    use std::cell::Cell;

    use super::Mutation;

    thread_local! {
        static CURRENT: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// Whether this thread has this bug.
    pub fn is(mutation: Mutation) -> bool {
        CURRENT.get() == Some(mutation)
    }

    /// Gives this thread a bug, or takes it away.
    pub fn set(mutation: Option<Mutation>) {
        CURRENT.set(mutation);
    }
}
