//! Every limit of the broker that is not a setting, with its derivation and the relations between them.

use std::time::Duration;

// The door: what one connection may cost (server/).

/// Requests of one connection that are being handled. A client that pipelines more waits at its socket.
pub(crate) const REQUESTS_IN_FLIGHT: usize = 64;
/// Answers of one connection that may wait to be written before its next request is read, in bytes. One more answer may
/// be ready for each request that was in flight by then; the memory of all connections together bounds those.
pub(crate) const CONNECTION_REPLY_BYTES: usize = 4 * 1024 * 1024;
/// A fetch gets at most this share of what is left of the memory for answers, so that clients that read slowly leave
/// something to those that come later: with 256 MiB the first gets 64, the tenth 5, the twentieth a quarter of one.
pub(crate) const REPLY_MEMORY_SHARE: usize = 4;
/// A fetch may always have this much, which is about what a first batch has.
pub(crate) const LEAST_FETCH_BYTES: usize = 64 * 1024;
/// Pieces that one vectored write hands to the kernel.
pub(crate) const PIECES_PER_WRITE: usize = 256;
/// Disconnect a client that reads nothing of its responses for this long.
pub(crate) const STUCK_WRITER: Duration = Duration::from_mins(1);
/// A request that has begun may take this long, whatever its length.
pub(crate) const ARRIVAL_GRACE: Duration = Duration::from_secs(30);
/// After that it must have arrived at this rate, in bytes per second: it holds memory that others wait for.
pub(crate) const ARRIVAL_BYTES_PER_S: usize = 32 * 1024;
/// What a frame's buffer starts with; larger frames grow into larger buffers. It is not taken from the shared memory, so
/// that clients which send little never wait for those which promise much: the number of connections bounds it. So much
/// of the next request is read ahead while no other one may be started, to see whether the client has gone.
pub(crate) const FIRST_FRAME_BYTES: usize = 4 * 1024;
/// A buffer that is full grows by this factor, as far as the frame goes: so a frame holds at most so many times the memory
/// of what has arrived.
pub(crate) const FRAME_GROWTH: usize = 8;
/// A request header cannot be shorter: api key, version, correlation id.
pub(crate) const LEAST_FRAME_BYTES: usize = 8;
/// Unit of the memory that frames share, in bytes.
pub(crate) const REQUEST_MEMORY_UNIT: usize = 1024;
/// Connections that wait to be accepted.
pub(crate) const BACKLOG: u32 = 1024;
/// Pause after accepting failed, for example because file descriptors ran out.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const _: () = assert!(LEAST_FRAME_BYTES < FIRST_FRAME_BYTES && REQUEST_MEMORY_UNIT <= FIRST_FRAME_BYTES);
const _: () = assert!(LEAST_FETCH_BYTES < CONNECTION_REPLY_BYTES && REPLY_MEMORY_SHARE > 1);

// What one request may cost before its handler has seen it (api/shape).

/// Memory that the structs of a decoded request may take for each byte of its frame. The most that an honest
/// element asks for are 30: a group whose id has one letter, all of whose offsets are wanted, takes four bytes and
/// decodes to a struct of 120.
pub(crate) const DECODED_PER_FRAME_BYTE: usize = 32;
/// Memory on top of that, so that a short request may carry a tagged field or two that this broker does not know.
pub(crate) const DECODED_FREE_BYTES: usize = 16 * 1024;
/// Memory that the structs of a decoded request may take at all: a fetch of 700,000 partitions.
pub(crate) const DECODED_MAX_BYTES: usize = 64 * 1024 * 1024;
/// What a tagged field that is not known takes once decoded: it is kept in a map whose nodes have room for eleven, and
/// nearly always it is the only one.
pub(crate) const TAGGED_FIELD_BYTES: usize = 512;

const _: () = assert!(DECODED_FREE_BYTES >= 16 * TAGGED_FIELD_BYTES);
const _: () = assert!(DECODED_FREE_BYTES < DECODED_MAX_BYTES / 1024);
