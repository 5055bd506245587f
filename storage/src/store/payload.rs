//! The bytes of an object on their way to the store.

use bytes::Bytes;

use crate::format::checksum::Crc32c;

/// The bytes of an object, in pieces, and their checksum.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    pieces: Vec<Bytes>,
    checksum: Crc32c,
}

impl Payload {
    /// Pieces that are known to sum up to `checksum`: the store refuses them if they do not.
    ///
    /// # Panics
    ///
    /// If they have another length than that of which it is.
    pub fn summed(pieces: Vec<Bytes>, checksum: Crc32c) -> Self {
        let bytes: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        assert_eq!(bytes, checksum.bytes(), "a checksum is of all the bytes");
        Self { pieces, checksum }
    }

    /// The pieces, in order.
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    /// The pieces, in order.
    pub fn into_pieces(self) -> Vec<Bytes> {
        self.pieces
    }

    /// The checksum of all of them.
    pub fn checksum(&self) -> Crc32c {
        self.checksum
    }

    /// All of them in one buffer.
    pub fn concat(&self) -> Vec<u8> {
        self.pieces.concat()
    }
}

impl From<Vec<Bytes>> for Payload {
    /// Sums the pieces up.
    fn from(pieces: Vec<Bytes>) -> Self {
        let checksum = pieces.iter().fold(Crc32c::EMPTY, |sum, piece| sum.followed_by(Crc32c::of(piece)));
        Self { pieces, checksum }
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        vec![bytes].into()
    }
}
