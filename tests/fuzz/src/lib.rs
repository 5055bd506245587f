//! Every decoder that reads foreign bytes, as a function of bytes: no input may panic, hang, or
//! take memory beyond its bound. libFuzzer calls these functions (`make fuzz`), and so does a test
//! with every input of the corpus.
//!
//! ```text
//!   corpus/<target>/*  ─▶ targets()[target](bytes) ◀─ libfuzzer/fuzz_targets/<target>.rs
//! ```
//!
//! Most go through the door that the bytes come through in the product: a connection of the server,
//! the loading of the state, the reader of objects, the observer's router. Where a checksum stands
//! before a decoder, the checksum is put right here, or nothing behind it would ever be tried.

mod batches;
mod compaction;
mod configs;
mod log;
mod metadata;
mod objects;
mod observer;
mod requests;
pub mod seeds;
mod snapshots;
mod world;

/// A decoder, and what calls it.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, which is also its folder's in the corpus.
    pub name: &'static str,
    /// Feeds it.
    pub run: fn(&[u8]),
}

/// All of them.
pub fn targets() -> [Target; 9] {
    [
        Target { name: "requests", run: requests::run },
        Target { name: "batches", run: batches::run },
        Target { name: "compaction", run: compaction::run },
        Target { name: "objects", run: objects::run },
        Target { name: "log", run: log::run },
        Target { name: "snapshots", run: snapshots::run },
        Target { name: "metadata", run: metadata::run },
        Target { name: "configs", run: configs::run },
        Target { name: "observer", run: observer::run },
    ]
}

/// Feeds the target of this name.
pub fn feed(name: &str, data: &[u8]) {
    let target = targets().into_iter().find(|t| t.name == name).expect("a target of this name");
    (target.run)(data);
}

/// Pieces of the input: each is as long as the two bytes in front of it say, or what is left.
pub(crate) fn pieces(mut data: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk::<2>() {
        let (piece, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
        pieces.push(piece);
        data = rest;
    }
    pieces
}

/// The input that has these pieces.
pub(crate) fn join<P: AsRef<[u8]>>(pieces: &[P]) -> Vec<u8> {
    let mut data = Vec::new();
    for piece in pieces {
        let piece = piece.as_ref();
        data.extend((piece.len() as u16).to_be_bytes());
        data.extend(piece);
    }
    data
}
