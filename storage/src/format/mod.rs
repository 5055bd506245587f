//! Pure bytes: no I/O, no clock, no state. Whatever is read here may be damaged, so nothing here
//! indexes or panics on what it reads.
//!
//! `FORMAT.md` specifies the same layouts in prose, for those who read the objects without this
//! code.

pub mod batch;
pub mod checksum;
mod footer;
pub mod merged;
mod pieces;
pub mod segment;
