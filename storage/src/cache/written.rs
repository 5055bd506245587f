//! An object or a block in the buffers that it was sent from, or came in.

use std::ops::Range;

use bytes::Bytes;

/// The pieces of an object, and where each begins.
#[derive(Debug)]
pub(super) struct Written {
    pieces: Vec<(u64, Bytes)>,
    bytes: u64,
}

/// A range of an object.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slices {
    pub(crate) pieces: Vec<Bytes>,
    /// Bytes of all the pieces that they are slices of: so much stays in memory for as long as they
    /// do, also when the cache has given the object up.
    pub(crate) kept_alive: usize,
}

impl Written {
    pub(super) fn new(payload: Vec<Bytes>) -> Self {
        let mut bytes = 0;
        let pieces = payload
            .into_iter()
            .filter(|piece| !piece.is_empty())
            .map(|piece| {
                let start = bytes;
                bytes += piece.len() as u64;
                (start, piece)
            })
            .collect();
        Self { pieces, bytes }
    }

    /// Bytes of the whole object.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The pieces of a range, without a copy. `None` if the object ends before the range does.
    pub(super) fn slice(&self, range: Range<u64>) -> Option<Slices> {
        if range.end > self.bytes || range.is_empty() {
            return None;
        }
        let first = self.pieces.partition_point(|(start, _)| *start <= range.start).checked_sub(1)?;
        let mut slices = Slices::default();
        for (start, piece) in self.pieces.get(first..)? {
            if *start >= range.end {
                break;
            }
            let from = usize::try_from(range.start.saturating_sub(*start)).ok()?;
            let to = usize::try_from(range.end - start).ok()?.min(piece.len());
            slices.pieces.push(piece.slice(from..to));
            slices.kept_alive += piece.len();
        }
        Some(slices)
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn every_range_is_found_without_a_copy() {
        for seed in 0..100 {
            let mut rng = StdRng::seed_from_u64(seed);
            let pieces: Vec<Bytes> = (0..rng.random_range(1..8))
                .map(|_| {
                    let mut piece = vec![0; rng.random_range(0..50)];
                    rng.fill(&mut piece[..]);
                    Bytes::from(piece)
                })
                .collect();
            let whole = pieces.concat();
            let object = Written::new(pieces.clone());
            assert_eq!(object.bytes(), whole.len() as u64);
            for _ in 0..50 {
                let from = rng.random_range(0..=whole.len());
                let to = rng.random_range(from..=whole.len());
                let found = object.slice(from as u64..to as u64);
                if from == to {
                    assert!(found.is_none());
                    continue;
                }
                let Slices { pieces: found, kept_alive } = found.unwrap();
                let touched = pieces
                    .iter()
                    .filter(|piece| found.iter().any(|slice| piece.as_ptr_range().contains(&slice.as_ptr())));
                assert_eq!(kept_alive, touched.map(Bytes::len).sum::<usize>(), "seed {seed}, {from}..{to}");
                assert_eq!(found.concat(), whole[from..to], "seed {seed}, {from}..{to}");
                for slice in &found {
                    let inside = pieces.iter().any(|piece| piece.as_ptr_range().contains(&slice.as_ptr()));
                    assert!(
                        inside && !slice.is_empty(),
                        "seed {seed}, {from}..{to}: a copy or an empty piece"
                    );
                }
            }
            assert!(object.slice(0..whole.len() as u64 + 1).is_none(), "seed {seed}");
        }
    }
}
