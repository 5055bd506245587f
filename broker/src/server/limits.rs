//! What one request may cost before its handler has seen it.

/// Memory that the structs of a decoded request may take for each byte of its frame. The most that an honest
/// element asks for are 30: a group whose id has one letter, all of whose offsets are wanted, takes four bytes and
/// decodes to a struct of 120.
pub(super) const DECODED_PER_FRAME_BYTE: usize = 32;
/// Memory on top of that, so that a short request may carry a tagged field or two that this broker does not know.
pub(super) const DECODED_FREE_BYTES: usize = 16 * 1024;
/// Memory that the structs of a decoded request may take at all: a fetch of 700,000 partitions.
pub(super) const DECODED_MAX_BYTES: usize = 64 * 1024 * 1024;
/// What a tagged field that is not known takes once decoded: it is kept in a map whose nodes have room for eleven, and
/// nearly always it is the only one.
pub(super) const TAGGED_FIELD_BYTES: usize = 512;

const _: () = assert!(DECODED_FREE_BYTES >= 16 * TAGGED_FIELD_BYTES);
const _: () = assert!(DECODED_FREE_BYTES < DECODED_MAX_BYTES / 1024);
