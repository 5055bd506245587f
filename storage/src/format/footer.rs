//! The footer that every object with batches ends with, and what can be wrong with such an object.
//!
//! ```text
//! identity  incarnation i64 │ number u64 │ salt u32                          not in version 1 of write objects
//!           index position u64 │ index length u32 │ range count u32 │ version u16 │ kind u16 │ CRC-32 u32 │ magic [8]
//! ```
//!
//! The CRC covers the index and the footer's own bytes before it. A reader that knows only the
//! object's size starts at its end: magic, then kind, then the version, which each kind counts for
//! itself.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use bytes::{Buf, BufMut, BytesMut};

use super::merged::MergedVersion;
use super::segment::SegmentVersion;
use crate::limits::{
    MAX_MERGED_INDEX_BYTES, MAX_MERGED_RANGES, MAX_SEGMENT_RANGES, MERGED_INDEX_ENTRY_BYTES,
    SEGMENT_FOOTER_BYTES, SEGMENT_IDENTITY_BYTES, SEGMENT_INDEX_ENTRY_BYTES, SPARSE_ENTRY_BYTES,
};
use crate::path::{ObjectId, ObjectKind};

/// The last eight bytes of every object with batches.
pub const SEGMENT_MAGIC: [u8; 8] = *b"STRNDLSG";

/// Bytes of the longest footer of all kinds and versions.
pub const LONGEST_FOOTER_BYTES: usize = SEGMENT_FOOTER_BYTES + SEGMENT_IDENTITY_BYTES;

/// The footer's CRC and magic, which the CRC does not cover.
const BYTES_FROM_CRC_ON: usize = 4 + SEGMENT_MAGIC.len();

/// Why bytes are not an object with batches, or not the one that was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// The object ends before its footer, or the footer places the index outside of it.
    #[error("the object has {size} bytes, which do not hold what its footer promises")]
    Size {
        /// Bytes of the object.
        size: u64,
    },
    /// The last bytes are not the magic.
    #[error("its last bytes are not the magic of an object with batches")]
    Magic,
    /// Written by a version of Strandline that this one does not know.
    #[error("its format version is {version}, this program knows 1 to {latest} of a {kind}")]
    Version {
        /// What kind of object it is.
        kind: ObjectKind,
        /// The version that it says.
        version: u16,
        /// The newest version of that kind that is known.
        latest: u16,
    },
    /// The object says that it is another one.
    #[error("its footer says that it is {0}: objects of the bucket were exchanged or overwritten")]
    Identity(ObjectId),
    /// A kind of object that this version does not know.
    #[error("its kind is {0}, which this program does not know")]
    Kind(u16),
    /// An object of a kind that does not belong there.
    #[error("its footer says that it is a {0}, which it should not be")]
    OtherKind(ObjectKind),
    /// Index or footer are not what was written.
    #[error("the CRC of its index is {actual:#010x}, the footer says {expected:#010x}")]
    IndexCrc {
        /// What the footer says.
        expected: u32,
        /// What the bytes have.
        actual: u32,
    },
    /// More ranges than such an object may have, or another length of the index than they need.
    #[error("its footer promises {0} ranges")]
    RangeCount(u32),
    /// Entries out of order, twice, empty, or not tiling the data.
    #[error("range {0} of its index does not follow the one before it")]
    Tiling(usize),
    /// What the index of a merged object says about one range contradicts itself.
    #[error("range {range} of its index is wrong: {what}")]
    Range {
        /// The range's place in the index.
        range: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The bytes of a range are not what was written.
    #[error("the CRC of the range at {position} is {actual:#010x}, the index says {expected:#010x}")]
    RangeCrc {
        /// Where the range begins.
        position: u64,
        /// What the index says.
        expected: u32,
        /// What the bytes have.
        actual: u32,
    },
}

impl ObjectKind {
    /// The kind's number in the footer. Never reused.
    pub const fn id(self) -> u16 {
        match self {
            Self::Write => 1,
            Self::Merge => 2,
        }
    }

    /// The kind with this number, if there is one.
    pub const fn from_id(id: u16) -> Option<Self> {
        match id {
            1 => Some(Self::Write),
            2 => Some(Self::Merge),
            _ => None,
        }
    }
}

/// Kind and version of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Layout {
    Write(SegmentVersion),
    Merge(MergedVersion),
}

impl Layout {
    fn from_ids(kind: u16, version: u16) -> Result<Self, FormatError> {
        let kind = ObjectKind::from_id(kind).ok_or(FormatError::Kind(kind))?;
        let newer = |latest| FormatError::Version { kind, version, latest };
        match kind {
            ObjectKind::Write => SegmentVersion::from_id(version)
                .map(Self::Write)
                .ok_or_else(|| newer(SegmentVersion::LATEST.id())),
            ObjectKind::Merge => MergedVersion::from_id(version)
                .map(Self::Merge)
                .ok_or_else(|| newer(MergedVersion::LATEST.id())),
        }
    }

    fn version_id(self) -> u16 {
        match self {
            Self::Write(version) => version.id(),
            Self::Merge(version) => version.id(),
        }
    }

    pub(super) fn kind(self) -> ObjectKind {
        match self {
            Self::Write(_) => ObjectKind::Write,
            Self::Merge(_) => ObjectKind::Merge,
        }
    }

    fn has_identity(self) -> bool {
        self != Self::Write(SegmentVersion::V1)
    }

    /// Bytes of the footer.
    fn footer_bytes(self) -> usize {
        SEGMENT_FOOTER_BYTES + if self.has_identity() { SEGMENT_IDENTITY_BYTES } else { 0 }
    }

    /// Whether so many ranges can have an index of so many bytes.
    fn may_have(self, ranges: u32, index_bytes: u64) -> bool {
        let ranges = usize::try_from(ranges).unwrap_or(usize::MAX);
        match self {
            Self::Write(_) => {
                ranges <= MAX_SEGMENT_RANGES && index_bytes == (ranges * SEGMENT_INDEX_ENTRY_BYTES) as u64
            }
            Self::Merge(_) => {
                ranges <= MAX_MERGED_RANGES
                    && index_bytes <= MAX_MERGED_INDEX_BYTES as u64
                    // Each range has at least one sparse entry.
                    && index_bytes >= (ranges * (MERGED_INDEX_ENTRY_BYTES + SPARSE_ENTRY_BYTES)) as u64
            }
        }
    }
}

/// What the last bytes of an object say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Footer {
    pub(super) layout: Layout,
    /// The id that the object says it has; `None` in version 1 of write objects.
    pub(super) id: Option<ObjectId>,
    /// Where the index begins, which is where the data ends.
    pub(super) index_position: u64,
    /// Bytes of the index.
    pub(super) index_bytes: u64,
    /// How many ranges the index has.
    pub(super) range_count: u32,
    /// CRC-32 of the index and of the footer up to this field.
    crc32: u32,
}

impl Footer {
    /// Bytes from the index to the end.
    pub(super) fn tail_bytes(&self) -> u64 {
        self.index_bytes + self.layout.footer_bytes() as u64
    }

    /// Reads the footer of an object of `size` bytes from `tail`, which are the object's last
    /// bytes: at least [`LONGEST_FOOTER_BYTES`] of them, or the whole object if it has fewer.
    ///
    /// The footer alone is not protected: trust it only once [`Self::index`] agrees.
    pub(super) fn parse(tail: &[u8], size: u64) -> Result<Self, FormatError> {
        let Some((head, mut at)) =
            tail.split_last_chunk::<SEGMENT_FOOTER_BYTES>().map(|(head, foot)| (head, &foot[..]))
        else {
            return Err(FormatError::Size { size });
        };
        let index_position = at.get_u64();
        let index_bytes = u64::from(at.get_u32());
        let range_count = at.get_u32();
        let version = at.get_u16();
        let kind = at.get_u16();
        let crc32 = at.get_u32();
        if at != SEGMENT_MAGIC {
            return Err(FormatError::Magic);
        }
        let layout = Layout::from_ids(kind, version)?;
        if !layout.may_have(range_count, index_bytes) {
            return Err(FormatError::RangeCount(range_count));
        }
        let id = match head.last_chunk::<SEGMENT_IDENTITY_BYTES>() {
            _ if !layout.has_identity() => None,
            Some(identity) => Some(read_identity(layout.kind(), identity)),
            None => return Err(FormatError::Size { size }),
        };
        let footer = Self { layout, id, index_position, index_bytes, range_count, crc32 };
        if index_position.checked_add(footer.tail_bytes()) != Some(size) {
            return Err(FormatError::Size { size });
        }
        Ok(footer)
    }

    /// The bytes of the index in `tail`, once the CRC says that they and the footer are what was
    /// written. `tail` holds at least [`Self::tail_bytes`].
    pub(super) fn index<'a>(&self, tail: &'a [u8], size: u64) -> Result<&'a [u8], FormatError> {
        let tail = usize::try_from(self.tail_bytes())
            .ok()
            .and_then(|bytes| tail.len().checked_sub(bytes))
            .and_then(|start| tail.get(start..))
            .ok_or(FormatError::Size { size })?;
        let part = |bytes: usize| {
            tail.len().checked_sub(bytes).and_then(|end| tail.get(..end)).ok_or(FormatError::Size { size })
        };
        let actual = crc32fast::hash(part(BYTES_FROM_CRC_ON)?);
        if actual != self.crc32 {
            return Err(FormatError::IndexCrc { expected: self.crc32, actual });
        }
        part(self.layout.footer_bytes())
    }
}

/// Adds the footer behind the index of `range_count` ranges, which is all that `tail` holds.
pub(super) fn put_footer(
    tail: &mut BytesMut,
    layout: Layout,
    id: ObjectId,
    index_position: u64,
    range_count: u32,
) {
    let index_bytes = u32::try_from(tail.len()).unwrap_or(u32::MAX);
    if layout.has_identity() {
        tail.put_i64(id.incarnation);
        tail.put_u64(id.number);
        tail.put_u32(id.salt);
    }
    tail.put_u64(index_position);
    tail.put_u32(index_bytes);
    tail.put_u32(range_count);
    tail.put_u16(layout.version_id());
    tail.put_u16(layout.kind().id());
    tail.put_u32(crc32fast::hash(tail));
    tail.put_slice(&SEGMENT_MAGIC);
}

/// Checks which object it is whose last bytes these are, by its footer alone: at least
/// [`LONGEST_FOOTER_BYTES`] of them, or the whole object if it has fewer. Version 1 of write
/// objects does not say.
pub fn check_identity(tail: &[u8], size: u64, id: ObjectId) -> Result<(), FormatError> {
    let footer = Footer::parse(tail, size)?;
    match footer.id {
        Some(own) if own != id => Err(FormatError::Identity(own)),
        None if footer.layout.kind() != id.kind => Err(FormatError::OtherKind(footer.layout.kind())),
        _ => Ok(()),
    }
}

fn read_identity(kind: ObjectKind, identity: &[u8; SEGMENT_IDENTITY_BYTES]) -> ObjectId {
    let mut at = &identity[..];
    ObjectId { kind, incarnation: at.get_i64(), number: at.get_u64(), salt: at.get_u32() }
}
