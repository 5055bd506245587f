//! Every limit of this crate, with the relations between them.

use std::time::Duration;

/// Partitions of one topic.
pub const MAX_PARTITIONS_PER_TOPIC: u32 = 100_000;

/// etcd's default `--max-txn-ops`: the most compares, and the most steps per branch, of one
/// transaction.
pub const BACKEND_TXN_OPS: usize = 128;

/// etcd's default limit for a request is 1.5 MiB; this leaves room for framing.
pub const BACKEND_REQUEST_BYTES: usize = 1_400_000;

/// A log record above this is split, so that no value is hard to read and several share a
/// transaction.
pub const RECORD_BYTES: usize = 256 * 1024;

/// Log records in one transaction.
pub const RECORDS_PER_TXN: usize = 64;

/// Bytes of log records in one transaction.
pub const TXN_RECORD_BYTES: usize = 1_000_000;

/// Flushes and changes that wait for the committer.
pub const PROPOSAL_QUEUE: usize = 256;

/// Changes that wait for the committer and may wait for others to share their transaction.
pub const PATIENT_QUEUE: usize = 1_024;

/// Steps that every transaction of the committer has beside what it carries: `commits` and the
/// head.
pub const FIXED_STEPS: usize = 2;

/// What may wait for others to share its transaction has a turn this often. So many small commits
/// of offsets cost etcd few transactions: at most 125/s for each broker.
pub const PATIENCE: Duration = Duration::from_millis(8);

/// Keys per page when the log is read.
pub const LOG_PAGE_KEYS: usize = 1_000;

/// Keys per page of topics and other plain keys.
pub const PLAIN_PAGE_KEYS: usize = 2_000;

/// A watch is not opened further in the past than this: etcd serves such a watch under a lock that
/// blocks writers.
pub const WATCH_REVISIONS_BEHIND: i64 = 1_000;

/// History that is kept in etcd when it is compacted.
pub const HISTORY_REVISIONS: i64 = 10_000;

/// History that is kept in etcd when it is compacted, if it has fewer revisions than that. A watch
/// that was cut for longer reads the state anew.
pub const HISTORY_TIME: Duration = Duration::from_mins(5);

/// How often what is older than that is forgotten.
pub const COMPACTION_INTERVAL: Duration = Duration::from_mins(1);

/// Log keys that one transaction of the trimmer deletes.
pub const TRIM_KEYS: u64 = 500;

/// Ranges or objects that long work looks at before it gives way to other tasks: about half a
/// millisecond.
pub const WORK_PER_TURN: usize = 4_096;

/// Snapshots that `snapshot` lists.
pub const SNAPSHOTS: usize = 3;

/// Manifests of snapshots that etcd does not list any more which one pass reads, to see how old
/// they are: a broker that takes over may find a day's.
pub const MANIFESTS_READ_PER_PASS: usize = 200;

/// How often the beacon is rewritten while transactions are committed: a restored etcd that lacks
/// no more than that is not recognised. Each is a PUT; at 5 s they cost Amazon's smallest bill of a
/// broker a few dollars a month.
pub const BEACON_INTERVAL: Duration = Duration::from_secs(5);

/// How often something is read that the store seems to have damaged, before it is called so.
pub const EVIDENCE_ATTEMPTS: usize = 3;

/// A commit that is not applied within this restarts the watch.
pub const APPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// One read or transaction of the backend may take so long before its outcome is looked up.
pub const BACKEND_TIMEOUT: Duration = Duration::from_secs(5);

/// A transaction that has had no answer for this long is trouble that others should hear of.
pub const COMMIT_SILENCE: Duration = Duration::from_secs(3);

/// Keys of offsets that one write of a group changes. Its transaction may be nested beside records
/// and other parts.
pub const GROUP_WRITE_KEYS: usize = 60;

/// The longest group id, in bytes: it is part of keys and of metrics.
pub const MAX_GROUP_ID_BYTES: usize = 1_024;

/// How often a byte may have been rewritten for lying in a small range, and not at all.
pub const LEVELS: usize = 3;

/// Ranges of a full chunk: 32 of 72 bytes. A partition that changes copies at most one chunk, about
/// a microsecond.
pub const RANGES_PER_CHUNK: usize = 32;

/// How many batches of a producer are remembered in a partition, as in Kafka: a client may have so
/// many in flight.
pub const REMEMBERED_BATCHES: usize = 5;

/// How many forgotten producers a partition notes one by one: 64 of about 20 bytes, so that they
/// cost a partition at most what a handful of live producers do. Of the others it only knows that
/// their ids are lower.
pub const FORGOTTEN_PRODUCERS_PER_PARTITION: usize = 64;

/// How many checkpoints' digests are kept for comparing with snapshots.
pub const CHECKPOINTS: usize = 8;

/// No topic has more: a range in a damaged value must not take all memory.
pub const STORED_PARTITION: u32 = 1_000_000;

/// Partitions whose offsets share one key. A topic with more has further keys, so that no value
/// outgrows etcd's limit and no commit rewrites much that it does not change.
pub const OFFSETS_PER_KEY: u32 = 256;

/// Partitions whose watermarks share one key.
pub const WATERMARKS_PER_KEY: usize = 4_096;

/// Keys of offsets per page when a group is read: a value may have a megabyte, and an answer has a
/// limit.
pub const OFFSETS_PAGE_KEYS: usize = 32;

/// Names of groups per page.
pub const GROUP_NAMES_PAGE_KEYS: usize = 5_000;

/// Locks over which waiting fetches are spread.
pub const WAITER_SHARDS: usize = 64;

/// How often watermarks are written.
pub const WATERMARK_INTERVAL: Duration = Duration::from_secs(2);

/// Bytes of watermarks that one pass may write.
pub const WATERMARK_BYTES_PER_PASS: usize = 256 * 1024;

/// Keys per page when stored watermarks are read.
pub const WATERMARK_PAGE_KEYS: usize = 100;

/// Ranges that one chunk of a snapshot should hold, about 64 KiB.
pub const SNAPSHOT_CHUNK_RANGES: u64 = 4_096;

/// The most chunks of a snapshot: the values of the byte that picks one.
pub const SNAPSHOT_CHUNKS: u64 = 256;

/// The only chunk of a snapshot lies in the manifest itself up to this size.
pub const SNAPSHOT_INLINE_BYTES: u64 = 256 * 1024;

/// Objects of a snapshot that are encoded at a time.
pub const SNAPSHOT_OBJECTS_PER_SLICE: usize = 4_096;

/// Objects per page when the snapshots in the store are listed.
pub const SNAPSHOT_LIST_PAGE: usize = 1_000;

/// A watch that says nothing at all for this long, not even that there is nothing, is opened again.
pub const WATCH_SILENCE: Duration = Duration::from_secs(15);

/// Barriers that may wait for their turn.
pub const BARRIER_QUEUE: usize = 1_024;

/// For how long a load starts over: because the log was trimmed under it, or because no snapshot
/// could be read. A store that is ill may deny an object that it has, or send something else, and
/// give it a moment later.
pub const LOAD_PATIENCE: Duration = Duration::from_secs(20);

/// etcd's default `--max-request-bytes`: 1.5 MiB.
pub const ETCD_REQUEST_BYTES: usize = 1536 * 1024;

/// Keep-alive streams that stay open between calls. A broker has one or two leases.
pub const KEEP_ALIVE_STREAMS: usize = 16;

/// How often a connection with requests on it is pinged. etcd closes connections that ping more
/// often than every 5 s, or that ping without a request (its `--grpc-keepalive-min-time`).
pub const PING_INTERVAL: Duration = Duration::from_secs(6);

/// How long a ping may take before the connection counts as dead.
pub const PING_TIMEOUT: Duration = Duration::from_secs(4);

/// How often a watch asks for progress, and the embedded store reports it.
pub const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// The largest answer of etcd that is accepted. A full page of the largest log records has room.
pub const BACKEND_ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// The longest lease that etcd grants, in seconds.
pub const LEASE_TTL_S: i64 = 9_000_000_000;

/// Revisions with events that one batch of a watch of the embedded store holds at most, as in etcd.
pub const WATCH_BATCH_REVISIONS: usize = 1000;

/// Such a batch ends with the revision that takes it beyond this many bytes of keys and values.
pub const WATCH_BATCH_BYTES: usize = 1024 * 1024;

/// A smaller journal of the embedded store is never rewritten.
pub const JOURNAL_REWRITE_BYTES: u64 = 4 * 1024 * 1024;

/// A snapshot in the journal is written in frames of about this size.
pub const JOURNAL_FRAME_BYTES: usize = 1024 * 1024;

/// How long opening the journal waits for its lock: a process that was killed, or a store that was
/// dropped, may be about to give it up.
pub const JOURNAL_LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// How often it looks for the lock.
pub const JOURNAL_LOCK_POLL: Duration = Duration::from_millis(20);

/// What of an answer the embedded store's API hands over at a time: the rest stays here, with its
/// place, until the client has taken so much.
pub const API_PIECE_BYTES: usize = 64 * 1024;

/// Its pause after accepting failed, for example because file descriptors ran out.
pub const API_ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that it serves at a time; others wait to be accepted.
pub const API_CONNECTIONS: usize = 8;

/// Requests and watch streams that are open on one of its connections; others wait at the client.
pub const API_STREAMS_PER_CONNECTION: u32 = 32;

/// Answers to ranges that it has in memory at a time, over all connections.
pub const API_ANSWERS: usize = 8;

/// Bytes of a request to it: what etcd takes, so that a large put is refused for what it is.
pub const API_REQUEST_BYTES: usize = 1_572_864;

/// Bytes of keys and values in one of its answers: clients in Rust take 4 MiB of a message.
pub const API_ANSWER_BYTES: usize = 4 * 1024 * 1024 - 64 * 1024;

/// Watches of one stream of it.
pub const API_WATCHES_PER_STREAM: usize = 64;

// Two steps beside records and parts: `commits` and the head. One key beside the offsets: the
// group's own.
const _: () = assert!(1 + FIXED_STEPS + GROUP_WRITE_KEYS < BACKEND_TXN_OPS);
const _: () = assert!(RECORDS_PER_TXN + FIXED_STEPS <= BACKEND_TXN_OPS);
const _: () = assert!(RECORD_BYTES < TXN_RECORD_BYTES && TXN_RECORD_BYTES < BACKEND_REQUEST_BYTES);
const _: () = assert!(WATCH_REVISIONS_BEHIND < HISTORY_REVISIONS);
const _: () = assert!(WATCH_SILENCE.as_millis() < HISTORY_TIME.as_millis());
const _: () = assert!(COMPACTION_INTERVAL.as_millis() < HISTORY_TIME.as_millis());
const _: () = assert!(SNAPSHOT_INLINE_BYTES < BACKEND_REQUEST_BYTES as u64);
const _: () = assert!(PROGRESS_INTERVAL.as_millis() * 2 < WATCH_SILENCE.as_millis());
const _: () = assert!(BACKEND_TIMEOUT.as_millis() < LOAD_PATIENCE.as_millis());
const _: () = assert!(COMMIT_SILENCE.as_millis() < BACKEND_TIMEOUT.as_millis());
const _: () = assert!(APPLY_TIMEOUT.as_millis() < BACKEND_TIMEOUT.as_millis());
const _: () = assert!(WATERMARK_BYTES_PER_PASS < BACKEND_REQUEST_BYTES);
const _: () = assert!(BACKEND_REQUEST_BYTES < ETCD_REQUEST_BYTES && ETCD_REQUEST_BYTES <= API_REQUEST_BYTES);
const _: () = assert!(WATCH_BATCH_BYTES < API_ANSWER_BYTES);
const _: () = assert!(WATERMARKS_PER_KEY < MAX_PARTITIONS_PER_TOPIC as usize);
const _: () = assert!(MAX_PARTITIONS_PER_TOPIC <= STORED_PARTITION);
const _: () = assert!(JOURNAL_LOCK_POLL.as_millis() < JOURNAL_LOCK_PATIENCE.as_millis());
