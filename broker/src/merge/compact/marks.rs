//! Which records of a run are superseded, by their place in it: a bit each.

/// A bit for each record, in the order of the log. What has none is kept.
#[derive(Debug, Default)]
pub(super) struct Marks {
    words: Vec<u64>,
}

impl Marks {
    /// Marks the record at this place.
    pub(super) fn mark(&mut self, place: u64) {
        let Ok(word) = usize::try_from(place / 64) else { return };
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        if let Some(word) = self.words.get_mut(word) {
            *word |= 1 << (place % 64);
        }
    }

    /// Whether the record at this place is marked.
    pub(super) fn has(&self, place: u64) -> bool {
        let word = usize::try_from(place / 64).ok().and_then(|word| self.words.get(word));
        word.is_some_and(|word| word & (1 << (place % 64)) != 0)
    }

    /// Bytes that they take.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.words.capacity() * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_marked_is_marked_and_nothing_else() {
        let mut marks = Marks::default();
        let places = [0, 63, 64, 1_000, 7];
        for place in places {
            marks.mark(place);
        }
        assert!((0..2_000).all(|place| marks.has(place) == places.contains(&place)));
        assert!(!marks.has(u64::MAX));
    }
}
