//! Every limit of this crate, with the relations between them.

use std::time::Duration;

/// Partitions of one topic.
pub const MAX_PARTITIONS_PER_TOPIC: u32 = 100_000;

/// etcd's limit for the operations of one transaction; compares count against it too.
pub const BACKEND_TXN_OPS: usize = 128;

/// etcd's default limit for a request is 1.5 MiB; this leaves room for framing.
pub const BACKEND_REQUEST_BYTES: usize = 1_400_000;

/// A log record above this is split, so that no value is hard to read and several share a transaction.
pub const RECORD_BYTES: usize = 256 * 1024;

/// Log records in one transaction.
pub const RECORDS_PER_TXN: usize = 64;

/// Bytes of log records in one transaction.
pub const TXN_RECORD_BYTES: usize = 1_000_000;

/// Flushes and changes that wait for the committer.
pub const PROPOSAL_QUEUE: usize = 256;

/// Changes that wait for the committer and may wait for others to share their transaction.
pub const PATIENT_QUEUE: usize = 1_024;

/// Steps that every transaction of the committer has beside what it carries: `commits` and the head.
pub const FIXED_STEPS: usize = 2;

/// What may wait for others to share its transaction has a turn this often. So many small commits of offsets cost etcd
/// few transactions: at most 125/s for each broker.
pub const PATIENCE: Duration = Duration::from_millis(8);

/// Keys per page when the log is read.
pub const LOG_PAGE_KEYS: usize = 1_000;

/// Keys per page of topics and other plain keys.
pub const PLAIN_PAGE_KEYS: usize = 2_000;

/// A watch is not opened further in the past than this: etcd serves such a watch under a lock that blocks writers.
pub const WATCH_REVISIONS_BEHIND: i64 = 1_000;

/// History that is kept in etcd when it is compacted.
pub const HISTORY_REVISIONS: i64 = 10_000;

/// Log keys that one transaction of the trimmer deletes.
pub const TRIM_KEYS: u64 = 500;

/// Ranges or objects that long work looks at before it gives way to other tasks: about half a millisecond.
pub const WORK_PER_TURN: usize = 4_096;

/// Snapshots that `snapshot` lists.
pub const SNAPSHOTS: usize = 3;

/// A commit that is not applied within this restarts the watch.
pub const APPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// One read or transaction of the backend may take so long before its outcome is looked up.
pub const BACKEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Keys of offsets that one write of a group changes. Its transaction may be nested beside records and other parts.
pub const GROUP_WRITE_KEYS: usize = 60;

/// The longest group id, in bytes: it is part of keys and of metrics.
pub const MAX_GROUP_ID_BYTES: usize = 1_024;

// Two steps beside records and parts: `commits` and the head. One key beside the offsets: the group's own.
const _: () = assert!(1 + FIXED_STEPS + GROUP_WRITE_KEYS < BACKEND_TXN_OPS);
const _: () = assert!(RECORDS_PER_TXN + FIXED_STEPS <= BACKEND_TXN_OPS);
const _: () = assert!(RECORD_BYTES < TXN_RECORD_BYTES && TXN_RECORD_BYTES < BACKEND_REQUEST_BYTES);
const _: () = assert!(WATCH_REVISIONS_BEHIND < HISTORY_REVISIONS);
