//! Whether what a request says about itself can be true: looked at before it is decoded.
//!
//! The decoders of `kafka-protocol` set memory aside for as many elements as an array says that it
//! has. Thirty bytes that speak of two thousand million topics would end the process. So each frame
//! is walked first, along a description of its [shape](requests), without setting anything aside:
//!
//! - a length or a count must fit into the bytes that are left, with at least one byte for each
//!   element;
//! - all decoded structs together must stay within a multiple of the frame ([`crate::limits`]);
//! - a tagged field that is known must have the size that it claims, since the decoders read over
//!   that;
//! - what is null must be allowed to be.
//!
//! Text is not looked at: the decoders check it, and take no memory for it. A frame that passes is
//! one that they read to its end, or refuse for a text that is not UTF-8. The walk takes one pass;
//! what is inside of records is skipped.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod requests;

use kafka_protocol::messages::ApiKey;

use self::requests::{Field, HEADER, Kind};
use crate::limits::{
    BRIEF_REQUEST_BYTES, DECODED_FREE_BYTES, DECODED_MAX_BYTES, DECODED_PER_FRAME_BYTE, TAGGED_FIELD_BYTES,
};

/// How a request contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ShapeError {
    /// An API was added to those that are spoken, without its shape.
    #[error("its shape is not described")]
    NotDescribed,
    #[error("it ends within {0}")]
    Cut(&'static str),
    #[error("{field} cannot have the length {length}")]
    Length { field: &'static str, length: i64 },
    #[error("{field} says {count}, with {left} bytes left")]
    TooMany { field: &'static str, count: usize, left: usize },
    #[error("{0} is null")]
    Null(&'static str),
    #[error("{0} begins with a number of more than 32 bits")]
    VarInt(&'static str),
    #[error("{field} is there ({presence}) and is not")]
    Presence { field: &'static str, presence: i8 },
    #[error("{0} does not exist in this version")]
    Tag(&'static str),
    #[error("{field} has {actual} bytes and says that it has {claimed}")]
    TagSize { field: &'static str, claimed: usize, actual: usize },
    #[error("decoded, it would take more than {0} bytes")]
    Memory(usize),
    /// Not an error of the frame: see [`check_if_brief`].
    #[error("there is more in it than is looked at in one go")]
    Long,
}

/// What is known of a frame before it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Bytes that all structs of its arrays take together once they are decoded, about.
    pub(crate) memory: usize,
    /// Whether decoding it takes no longer than other connections may be held up by it.
    pub(crate) is_brief: bool,
    /// Bytes behind the request: librdkafka 2.16 sends three behind a Metadata request for all
    /// topics. They mean nothing, as in Kafka.
    pub(crate) left: usize,
}

/// Checks a frame, which begins with the request's header, against the shape of its API in its
/// version.
pub(crate) fn check(api: ApiKey, version: i16, frame: &[u8]) -> Result<Shape, ShapeError> {
    walk(api, version, Walk::new(version, frame, usize::MAX))
}

/// The same, as long as there is little to look at, however many bytes that is: a produce request
/// of a megabyte is a few lengths. `None` if there is more.
pub(crate) fn check_if_brief(api: ApiKey, version: i16, frame: &[u8]) -> Result<Option<Shape>, ShapeError> {
    match walk(api, version, Walk::new(version, frame, BRIEF_REQUEST_BYTES)) {
        Err(ShapeError::Long) => Ok(None),
        checked => checked.map(Some),
    }
}

fn walk(api: ApiKey, version: i16, mut walk: Walk<'_>) -> Result<Shape, ShapeError> {
    let body = requests::shape(api).ok_or(ShapeError::NotDescribed)?;
    walk.fields(HEADER)?;
    // The second header came with compact lengths and tagged fields; its own texts stayed as they
    // were.
    walk.flexible = api.request_header_version(version) >= 2;
    walk.tagged(&[])?;
    walk.structure(body)?;
    let is_brief = walk.work <= BRIEF_REQUEST_BYTES;
    Ok(Shape { memory: walk.memory, is_brief, left: walk.left.len() })
}

/// Where the walk is.
struct Walk<'a> {
    left: &'a [u8],
    version: i16,
    /// Whether lengths are compact, and structs end with tagged fields.
    flexible: bool,
    memory_limit: usize,
    memory: usize,
    /// Bytes that the walk may look at and the decoder fill or read through, and those so far.
    work_limit: usize,
    work: usize,
}

impl<'a> Walk<'a> {
    fn new(version: i16, frame: &'a [u8], work_limit: usize) -> Self {
        let memory_limit = frame
            .len()
            .saturating_mul(DECODED_PER_FRAME_BYTE)
            .saturating_add(DECODED_FREE_BYTES)
            .min(DECODED_MAX_BYTES);
        Self { left: frame, version, flexible: false, memory_limit, memory: 0, work_limit, work: 0 }
    }

    fn structure(&mut self, fields: &'static [Field]) -> Result<(), ShapeError> {
        self.fields(fields)?;
        self.tagged(fields)
    }

    fn fields(&mut self, fields: &'static [Field]) -> Result<(), ShapeError> {
        for field in fields {
            if field.tag.is_none() && field.versions.contains(self.version) {
                self.field(field)?;
            }
        }
        Ok(())
    }

    fn field(&mut self, field: &'static Field) -> Result<(), ShapeError> {
        let name = field.name;
        let Some(element_bytes) = field.array_of else {
            if matches!(field.kind, Kind::Struct(_)) && field.nullable && !self.presence(name)? {
                return Ok(());
            }
            return self.value(name, &field.kind, field.nullable);
        };
        let Some(count) = self.length(name, 4, field.nullable)? else { return Ok(()) };
        self.take_memory(count.saturating_mul(element_bytes))?;
        if let Kind::Fixed(size) = field.kind {
            return self.skip(name, count.saturating_mul(size));
        }
        for _ in 0..count {
            self.value(name, &field.kind, false)?;
        }
        Ok(())
    }

    fn value(&mut self, name: &'static str, kind: &Kind, nullable: bool) -> Result<(), ShapeError> {
        match kind {
            Kind::Fixed(size) => self.skip(name, *size),
            Kind::String => {
                let length = self.length(name, 2, nullable)?.unwrap_or(0);
                self.skip(name, length)?;
                self.take_work(length)
            }
            Kind::Bytes => {
                let length = self.length(name, 4, nullable)?;
                self.skip(name, length.unwrap_or(0))
            }
            Kind::Struct(fields) => self.structure(fields),
        }
    }

    /// Whether a struct that may be missing is there.
    fn presence(&mut self, name: &'static str) -> Result<bool, ShapeError> {
        match i8::from_be_bytes(self.take(name)?) {
            -1 => Ok(false),
            1 => Ok(true),
            // Kafka reads these as there, the decoders as not there.
            presence => Err(ShapeError::Presence { field: name, presence }),
        }
    }

    /// The tagged fields at the end of a struct, of which some may be known.
    fn tagged(&mut self, known: &'static [Field]) -> Result<(), ShapeError> {
        const NAME: &str = "the tagged fields";
        if !self.flexible {
            return Ok(());
        }
        let count = self.varint(NAME)?;
        // Each has a tag and a size.
        self.fits(NAME, count, self.left.len() / 2)?;
        for _ in 0..count {
            let tag = self.varint(NAME)?;
            let claimed = self.varint(NAME)?;
            self.fits(NAME, claimed, self.left.len())?;
            let Some(field) = known.iter().find(|f| f.tag == Some(tag)) else {
                self.take_memory(TAGGED_FIELD_BYTES)?;
                self.skip(NAME, claimed)?;
                continue;
            };
            if !field.versions.contains(self.version) {
                return Err(ShapeError::Tag(field.name));
            }
            let before = self.left.len();
            self.field(field)?;
            let actual = before - self.left.len();
            if actual != claimed {
                return Err(ShapeError::TagSize { field: field.name, claimed, actual });
            }
        }
        Ok(())
    }

    /// The length of what follows, in bytes or in elements; `None` for null. Where lengths are not
    /// compact, they are `width` bytes wide.
    fn length(
        &mut self,
        name: &'static str,
        width: usize,
        nullable: bool,
    ) -> Result<Option<usize>, ShapeError> {
        let length = if self.flexible {
            self.varint(name)?.checked_sub(1)
        } else {
            let length = match width {
                2 => i16::from_be_bytes(self.take(name)?).into(),
                _ => i32::from_be_bytes(self.take(name)?),
            };
            if length < -1 {
                return Err(ShapeError::Length { field: name, length: length.into() });
            }
            usize::try_from(length).ok()
        };
        match length {
            None if nullable => Ok(None),
            None => Err(ShapeError::Null(name)),
            Some(length) => {
                self.fits(name, length, self.left.len())?;
                Ok(Some(length))
            }
        }
    }

    fn fits(&self, field: &'static str, count: usize, most: usize) -> Result<(), ShapeError> {
        if count > most { Err(ShapeError::TooMany { field, count, left: self.left.len() }) } else { Ok(()) }
    }

    fn varint(&mut self, name: &'static str) -> Result<usize, ShapeError> {
        let mut value = 0_u32;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.take(name)?;
            let bits = u32::from(byte & 0x7f);
            if shift == 28 && bits > 0xf {
                return Err(ShapeError::VarInt(name));
            }
            value |= bits << shift;
            if byte < 0x80 {
                return usize::try_from(value).map_err(|_| ShapeError::VarInt(name));
            }
        }
        Err(ShapeError::VarInt(name))
    }

    fn take<const N: usize>(&mut self, name: &'static str) -> Result<[u8; N], ShapeError> {
        let (taken, left) = self.left.split_first_chunk::<N>().ok_or(ShapeError::Cut(name))?;
        self.left = left;
        Ok(*taken)
    }

    fn skip(&mut self, name: &'static str, bytes: usize) -> Result<(), ShapeError> {
        self.left = self.left.get(bytes..).ok_or(ShapeError::Cut(name))?;
        Ok(())
    }

    fn take_memory(&mut self, bytes: usize) -> Result<(), ShapeError> {
        self.memory = self.memory.saturating_add(bytes);
        if self.memory > self.memory_limit {
            return Err(ShapeError::Memory(self.memory_limit));
        }
        self.take_work(bytes)
    }

    fn take_work(&mut self, bytes: usize) -> Result<(), ShapeError> {
        self.work = self.work.saturating_add(bytes);
        if self.work > self.work_limit { Err(ShapeError::Long) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
