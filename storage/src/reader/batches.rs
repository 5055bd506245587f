//! Cutting what was read into record batches, without copying them.

use std::collections::VecDeque;
use std::iter;

use bytes::{Bytes, BytesMut};

use crate::format::batch::{BATCH_HEADER_BYTES, BatchError, BatchHeader, CRC_COVERS_FROM, verify};

/// A record batch, in the pieces in which it came from the store.
#[derive(Clone, Debug)]
pub struct ReadBatch {
    /// What its header says.
    pub header: BatchHeader,
    first: Bytes,
    /// Most batches lie in one piece.
    more: Vec<Bytes>,
}

impl ReadBatch {
    /// A batch that was not read, but made.
    pub fn made(bytes: Bytes) -> Result<Self, BatchError> {
        let header = verify(&bytes)?;
        Ok(Self { header, first: bytes, more: Vec::new() })
    }

    /// Its pieces, in order. None is empty.
    pub fn pieces(&self) -> impl Iterator<Item = &Bytes> + Clone {
        iter::once(&self.first).chain(&self.more)
    }

    /// How many bytes it has, header included. Never 0.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.header.total_bytes()
    }

    /// All of it in one buffer, which is a copy unless it lies in one piece.
    pub fn contiguous(&self) -> Bytes {
        if self.more.is_empty() {
            return self.first.clone();
        }
        let mut whole = BytesMut::with_capacity(self.len());
        for piece in self.pieces() {
            whole.extend_from_slice(piece);
        }
        whole.freeze()
    }

    /// Whether its CRC is the one that its header says; a reader has checked that, unless this
    /// broker wrote the batch itself.
    pub fn verify(&self) -> Result<(), BatchError> {
        let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        let mut before = CRC_COVERS_FROM;
        for piece in self.pieces() {
            let (_, covered) = piece.split_at(before.min(piece.len()));
            before -= before.min(piece.len());
            crc.update(covered);
        }
        let actual = crc.finalize();
        if actual == u64::from(self.header.crc) {
            return Ok(());
        }
        // A CRC of 32 bits, in the type of all of them.
        let actual = u32::try_from(actual).unwrap_or(u32::MAX);
        Err(BatchError::Crc { expected: self.header.crc, actual })
    }
}

/// Cuts pieces into batches, and checks the CRC of each if it is to. An error says where the batch
/// begins that is none.
pub(super) fn cut(pieces: Vec<Bytes>, check_crc: bool) -> Result<Vec<ReadBatch>, (u64, BatchError)> {
    let mut rest = Pieces::new(pieces);
    let mut found = Vec::new();
    let mut position = 0;
    while let Some(head) = rest.head(BATCH_HEADER_BYTES) {
        let header = BatchHeader::parse(&head).map_err(|error| (position, error))?;
        let needed = header.total_bytes();
        let Some((first, more)) = rest.take(needed) else {
            return Err((position, BatchError::TooShort { needed, actual: rest.bytes }));
        };
        let batch = ReadBatch { header, first, more };
        if check_crc {
            batch.verify().map_err(|error| (position, error))?;
        }
        position += needed as u64;
        found.push(batch);
    }
    Ok(found)
}

/// Bytes in pieces, none of them empty.
struct Pieces {
    pieces: VecDeque<Bytes>,
    bytes: usize,
}

impl Pieces {
    fn new(pieces: Vec<Bytes>) -> Self {
        let bytes = pieces.iter().map(Bytes::len).sum();
        Self { pieces: pieces.into(), bytes }
    }

    /// The first `wanted` bytes, or as many as there are; `None` at the end. They stay.
    fn head(&self, wanted: usize) -> Option<Bytes> {
        let first = self.pieces.front()?;
        if first.len() >= wanted {
            return Some(first.slice(..wanted));
        }
        let mut head = BytesMut::with_capacity(wanted);
        for piece in &self.pieces {
            let missing = wanted - head.len();
            head.extend_from_slice(piece.get(..missing).unwrap_or(piece));
        }
        Some(head.freeze())
    }

    /// Takes the first `wanted` bytes; `None`, and nothing taken, if there are fewer.
    fn take(&mut self, wanted: usize) -> Option<(Bytes, Vec<Bytes>)> {
        if self.bytes < wanted {
            return None;
        }
        self.bytes -= wanted;
        let first = self.take_of_front(wanted)?;
        let mut missing = wanted - first.len();
        let mut more = Vec::new();
        while missing > 0 {
            let piece = self.take_of_front(missing)?;
            missing -= piece.len();
            more.push(piece);
        }
        Some((first, more))
    }

    /// Takes up to `most` bytes of the first piece.
    fn take_of_front(&mut self, most: usize) -> Option<Bytes> {
        let front = self.pieces.front_mut()?;
        if front.len() > most { Some(front.split_to(most)) } else { self.pieces.pop_front() }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::format::batch::tests::batch_of;

    #[test]
    fn batches_are_found_however_the_bytes_are_cut() {
        for seed in 0..300 {
            let mut rng = StdRng::seed_from_u64(seed);
            let sent: Vec<Bytes> =
                (0..rng.random_range(1..6)).map(|i| batch_of(seed + i, rng.random_range(0..200))).collect();
            let mut rest = Bytes::from(sent.concat());
            if rng.random_bool(0.2) {
                rest.truncate(rng.random_range(1..rest.len()));
            }
            let whole = rest.clone();
            let mut pieces = Vec::new();
            while !rest.is_empty() {
                let length = rng.random_range(1..=rest.len().min(120));
                pieces.push(rest.split_to(length));
            }
            let contiguous = |found: Result<Vec<ReadBatch>, _>| {
                found.map(|batches| batches.iter().map(ReadBatch::contiguous).collect::<Vec<_>>())
            };
            let cut_up = contiguous(cut(pieces, true));
            assert_eq!(cut_up, contiguous(cut(vec![whole], true)), "seed {seed}");
            if let Ok(found) = cut_up {
                assert_eq!(found, sent[..found.len()], "seed {seed}");
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_found_whatever_piece_it_is_in() {
        let whole = batch_of(1, 100);
        for position in CRC_COVERS_FROM..whole.len() {
            let mut damaged = whole.to_vec();
            damaged[position] ^= 1;
            let pieces: Vec<Bytes> = damaged.chunks(11).map(Bytes::copy_from_slice).collect();
            assert!(cut(pieces, true).is_err(), "byte {position}");
        }
    }

    #[test]
    fn nothing_is_copied() {
        let whole = Bytes::from([batch_of(1, 100), batch_of(2, 100)].concat());
        let pieces = vec![whole.slice(..90), whole.slice(90..130), whole.slice(130..)];
        for batch in cut(pieces, true).unwrap() {
            for piece in batch.pieces() {
                assert!(whole.as_ptr_range().contains(&piece.as_ptr()), "a piece is a copy");
            }
        }
    }
}
