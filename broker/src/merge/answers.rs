//! Whether the store answers at all: an object that does not is left alone, and a store that does
//! not ends the pass.

use std::collections::BTreeSet;

use strandline_storage::path::ObjectId;

use crate::limits::SILENT_OBJECTS;

/// What a pass has heard from the store, and what it is to leave alone once it has heard anything:
/// each a `T`.
#[derive(Debug)]
pub(super) struct Answers<T> {
    has_any: bool,
    /// Objects that did not answer, since one did.
    silent: BTreeSet<ObjectId>,
    unanswered: Vec<T>,
}

impl<T> Default for Answers<T> {
    fn default() -> Self {
        Self { has_any: false, silent: BTreeSet::new(), unanswered: Vec::new() }
    }
}

impl<T> Answers<T> {
    /// Notes what was read together: each object, and whether it answered.
    pub(super) fn note(&mut self, read: impl IntoIterator<Item = (ObjectId, bool)>) {
        let mut has_answered = false;
        for (object, answered) in read {
            has_answered |= answered;
            if !answered {
                self.silent.insert(object);
            }
        }
        if has_answered {
            self.has_any = true;
            self.silent.clear();
        }
    }

    /// Notes what there was no answer to.
    pub(super) fn add_unanswered(&mut self, what: T) {
        self.unanswered.push(what);
    }

    /// Whether so much has not answered in a row that the store seems to be down.
    pub(super) fn is_store_silent(&self) -> bool {
        self.silent.len() >= SILENT_OBJECTS
    }

    /// Takes what is to be left alone, since others have answered after it or with it.
    pub(super) fn take_unanswered(&mut self) -> Vec<T> {
        if self.silent.is_empty() { std::mem::take(&mut self.unanswered) } else { Vec::new() }
    }

    /// What is to be left alone at the end of a pass, in which anything may have answered.
    pub(super) fn finish(self) -> Vec<T> {
        if self.has_any { self.unanswered } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(number: u64) -> ObjectId {
        ObjectId::write(1, number, 0)
    }

    #[test]
    fn one_object_is_never_taken_for_the_store() {
        let mut answers = Answers::default();
        for read in 0..10 * SILENT_OBJECTS {
            answers.note([(object(7), false)]);
            answers.add_unanswered(read);
        }
        assert!(!answers.is_store_silent() && answers.take_unanswered().is_empty());
        answers.note([(object(7), false), (object(8), true)]);
        assert_eq!(answers.take_unanswered().len(), 10 * SILENT_OBJECTS);
    }

    #[test]
    fn nothing_is_left_alone_while_nothing_answers() {
        let mut answers = Answers::default();
        for number in 0..SILENT_OBJECTS {
            assert!(!answers.is_store_silent());
            answers.note([(object(number as u64), false)]);
            answers.add_unanswered(number);
        }
        assert!(answers.is_store_silent() && answers.take_unanswered().is_empty());
        assert!(answers.finish().is_empty());
        let mut answers = Answers::default();
        answers.note([(object(1), true)]);
        answers.note([(object(2), false)]);
        answers.add_unanswered(2);
        assert!(answers.take_unanswered().is_empty());
        assert_eq!(answers.finish(), [2]);
    }
}
