//! Every limit of this crate, with the relations between them that must hold.

use std::time::Duration;

/// One kibibyte, to say the sizes below in words.
const KIB: usize = 1024;
/// One mebibyte.
const MIB: usize = 1024 * KIB;

/// The unit in which objects are fetched and cached. A write object up to this size is read with
/// one GET.
pub const BLOCK_BYTES: u64 = 16 * 1024 * 1024;

/// The longest key that an [`crate::ObjectKey`] may have. S3 allows 1,024 bytes, operator's prefix
/// included.
pub const MAX_KEY_BYTES: usize = 512;
/// The longest prefix that an operator may put before every key.
pub const MAX_PREFIX_BYTES: usize = 400;

/// Most keys in one page of a listing: what S3 answers at most with one request.
pub const MAX_LIST_PAGE: usize = 1000;

/// Most keys in one request that deletes many: what S3 takes.
pub const MAX_DELETE_KEYS: usize = 1000;
/// So many requests that delete many are under way at a time, for one call.
pub const BULK_DELETES_AT_ONCE: usize = 4;
/// So many requests that delete one object each are under way at a time, for one call.
pub const DELETES_AT_ONCE: usize = 16;
/// Deleting much takes no longer than this in one go, but for its last requests: what else is to be
/// done waits for it.
pub const DELETING_FOR: Duration = Duration::from_secs(20);
/// How often a key is tried again that was left behind when others of the same request went.
pub const DELETE_LEFT_BEHIND_RETRIES: u32 = 2;
/// Longest answer to a request that deletes many: a kilobyte for each key and a header.
pub const MAX_DELETE_ANSWER_BYTES: usize = 2 * MIB;

/// Batches shorter than this are copied together while a write object is built: a request body of
/// many small pieces costs more CPU than the copy does.
pub const COALESCE_BELOW_BYTES: usize = 16 * KIB;
/// Size of the buffers that small batches are copied into.
pub const COALESCE_BUFFER_BYTES: usize = 256 * KIB;

/// Batches shorter than this are summed up again for their object: that costs less than combining
/// checksums does.
pub const SUM_AGAIN_BELOW_BYTES: usize = 4 * KIB;

/// Pieces of a server's answer that are shorter than this are copied together: the HTTP client's
/// buffers grow up to about 400 KiB, and a piece keeps the one alive that it is of.
pub const COPIED_PIECE_BELOW_BYTES: usize = 64 * KIB;
/// Size of the buffers that such pieces are copied into; the last one is as large as what is
/// missing.
pub const COPIED_PIECES_BUFFER_BYTES: usize = 256 * KIB;

/// Bytes of one index entry of a write object.
pub const SEGMENT_INDEX_ENTRY_BYTES: usize = 40;
/// Bytes of the footer of a write object that every version has, at the object's end.
pub const SEGMENT_FOOTER_BYTES: usize = 32;
/// Bytes of the object's identity, which lies before the footer from version 2 on.
pub const SEGMENT_IDENTITY_BYTES: usize = 20;
/// Most partition ranges in one write object, when writing and when reading.
pub const MAX_SEGMENT_RANGES: usize = 1 << 18;
/// How much of an object's end is read at first when its index is wanted; most indexes fit.
pub const INDEX_TAIL_BYTES: u64 = 64 * 1024;

/// Most bytes of data in one merged object: it is one PUT, and its writer holds all of it.
pub const MAX_MERGED_BYTES: u64 = 256 * 1024 * 1024;
/// Most partition ranges in one merged object, when writing and when reading.
pub const MAX_MERGED_RANGES: usize = 1 << 16;
/// A sparse index has an entry for the first batch that begins so many bytes or more behind that of
/// the entry before.
pub const MERGE_INDEX_INTERVAL_BYTES: u64 = 1024 * 1024;
/// Bytes of one index entry of a merged object.
pub const MERGED_INDEX_ENTRY_BYTES: usize = 84;
/// Bytes of one entry of a sparse index.
pub const SPARSE_ENTRY_BYTES: usize = 24;
/// Most sparse entries in one merged object: one for each range and one for each interval.
pub const MAX_SPARSE_ENTRIES: usize = MAX_MERGED_RANGES + 256;
/// Most bytes of all indexes of one merged object.
pub const MAX_MERGED_INDEX_BYTES: usize =
    MAX_MERGED_RANGES * MERGED_INDEX_ENTRY_BYTES + MAX_SPARSE_ENTRIES * SPARSE_ENTRY_BYTES;
/// How much of a merged object's end is read at first when its index is wanted: enough for about
/// 1,200 small ranges, or any object of few large ones.
pub const MERGED_INDEX_TAIL_BYTES: u64 = 128 * 1024;
/// Memory for the indexes of merged objects that a reader keeps, beside its cache.
pub const MERGED_INDEX_CACHE_BYTES: u64 = 32 * 1024 * 1024;
/// A read for merging goes on to the object's end if that is no farther away than this: the footer,
/// which says which object it is, then needs no GET of its own.
pub const MERGE_READ_ON_BYTES: u64 = 64 * 1024;
/// Of so many objects a reader remembers that they are the ones that they should be.
pub const MAX_IDENTIFIED_OBJECTS: usize = 4096;

/// What a cached block costs beside its bytes: keys, tree nodes, reference counts. Without it a
/// cache of tiny objects would have no bound.
pub const CACHE_ENTRY_OVERHEAD_BYTES: u64 = 256;
/// The same of a merged object, which has megabytes of one partition side by side: there is one
/// such unit in use for each partition that a consumer reads.
pub const MERGED_BLOCK_BYTES: u64 = 8 * 1024 * 1024;
/// What a partition has in a merged object is fetched by itself from so many bytes on, and nothing
/// of its neighbours with it.
pub const OWN_BLOCK_FROM_BYTES: u64 = 4 * 1024 * 1024;
/// In equal parts of at most so much: a sixth of a merged object is one part.
pub const OWN_BLOCK_BYTES: u64 = 12 * 1024 * 1024;
/// The share of the cache that is for objects which this broker wrote.
pub const CACHE_WRITTEN_PERCENT: u64 = 50;
/// The share of the cache that is for blocks fetched for readers at the tail.
pub const CACHE_TAIL_PERCENT: u64 = 25;
/// The share of the cache that is for blocks fetched for readers of the past. They also have what
/// the others do not use.
pub const CACHE_CATCH_UP_PERCENT: u64 = 25;
/// Granularity of the bound on bytes in flight, so that it fits the semaphore's 32-bit requests.
pub const IN_FLIGHT_UNIT_BYTES: u64 = 1024;

/// One attempt of one request to the object store may take this long, unless configured otherwise.
pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// All attempts of one request together, unless configured otherwise: within Kafka's default
/// `request.timeout.ms` of 30 s, so that a producer hears of it from us.
pub const DEFAULT_RETRY_BUDGET: Duration = Duration::from_secs(25);
/// A TCP and TLS connection must stand within this time.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle connection is closed after this time; servers commonly close theirs after 60 s or later.
pub const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// The first pause between two attempts.
pub const RETRY_BASE_BACKOFF: Duration = Duration::from_millis(50);
/// The longest pause between two attempts.
pub const RETRY_MAX_BACKOFF: Duration = Duration::from_secs(5);
/// The first pause that SlowDown imposes on all callers of a store.
pub const THROTTLE_BASE: Duration = Duration::from_millis(100);
/// The longest pause that SlowDown imposes on all callers of a store.
pub const THROTTLE_MAX: Duration = Duration::from_secs(5);
/// A store is out of trouble when it answers and has not failed for this long.
pub const TROUBLE_CALM: Duration = Duration::from_secs(5);
/// So many failures in a row, with no answer in between, make a store unhealthy.
pub const UNHEALTHY_AFTER_FAILURES: u32 = 3;

/// Longest error text that is kept of what a server answered.
pub const MAX_ERROR_TEXT_BYTES: usize = 500;

const _: () = assert!(MAX_KEY_BYTES + MAX_PREFIX_BYTES < 1024, "prefix and key must fit S3's limit together");
const _: () =
    assert!(COALESCE_BELOW_BYTES * 4 <= COALESCE_BUFFER_BYTES, "a copy buffer holds several batches");
const _: () = assert!(
    MAX_SEGMENT_RANGES * SEGMENT_INDEX_ENTRY_BYTES < 16 * MIB,
    "an index must be worth reading with one request"
);
const _: () = assert!((MAX_KEY_BYTES + MAX_PREFIX_BYTES) * MAX_DELETE_KEYS < MAX_DELETE_ANSWER_BYTES);
const _: () = assert!(INDEX_TAIL_BYTES > (SEGMENT_FOOTER_BYTES + SEGMENT_INDEX_ENTRY_BYTES) as u64);
const _: () = assert!(INDEX_TAIL_BYTES < BLOCK_BYTES);
const _: () = assert!(MERGED_INDEX_TAIL_BYTES < MERGED_BLOCK_BYTES);
const _: () = assert!(MAX_MERGED_INDEX_BYTES < 8 * MIB, "an index must be worth reading with one request");
const _: () =
    assert!(MAX_MERGED_INDEX_BYTES as u64 * 2 < MERGED_INDEX_CACHE_BYTES, "the cache holds several");
const _: () = assert!(MERGE_INDEX_INTERVAL_BYTES < MERGED_BLOCK_BYTES);
const _: () = assert!(OWN_BLOCK_FROM_BYTES < OWN_BLOCK_BYTES && OWN_BLOCK_BYTES <= BLOCK_BYTES);
const _: () = assert!(
    MAX_MERGED_BYTES.div_ceil(MERGE_INDEX_INTERVAL_BYTES) <= (MAX_SPARSE_ENTRIES - MAX_MERGED_RANGES) as u64
);
const _: () = assert!(MERGE_READ_ON_BYTES < MERGED_BLOCK_BYTES && MERGED_BLOCK_BYTES <= BLOCK_BYTES);
const _: () = assert!(CACHE_WRITTEN_PERCENT + CACHE_TAIL_PERCENT + CACHE_CATCH_UP_PERCENT == 100);
const _: () = assert!(DEFAULT_REQUEST_TIMEOUT.as_millis() < DEFAULT_RETRY_BUDGET.as_millis());
const _: () = assert!(CONNECT_TIMEOUT.as_millis() < DEFAULT_REQUEST_TIMEOUT.as_millis());
const _: () = assert!(COPIED_PIECE_BELOW_BYTES < COPIED_PIECES_BUFFER_BYTES);
const _: () = assert!(RETRY_BASE_BACKOFF.as_millis() < RETRY_MAX_BACKOFF.as_millis());
const _: () = assert!(THROTTLE_BASE.as_millis() < THROTTLE_MAX.as_millis());
const _: () = assert!(THROTTLE_MAX.as_millis() < DEFAULT_RETRY_BUDGET.as_millis());

/// Ranges of one fetched block that are remembered as checked; beyond that they are checked anew.
pub const MAX_CHECKED_RANGES: usize = 4096;

/// A PUT that has not come to its end after this long never will: other brokers may be writing at
/// this moment.
pub(crate) const ABANDONED_AFTER: Duration = Duration::from_hours(1);
