//! Every limit of the observer, with the relations between them.

use std::time::Duration;

/// The largest request, in bytes.
pub const REQUEST_BYTES: usize = 256 * 1024;
/// Requests that are being answered; more are turned away.
pub const REQUESTS_IN_FLIGHT: usize = 256;
/// Connections at a time; more wait to be accepted.
pub const CONNECTIONS: usize = 1_024;
/// Subscriptions at a time, over all principals.
pub const SUBSCRIPTIONS: usize = 64;

/// The largest structured answer, in bytes of its JSON.
pub const ANSWER_BYTES: usize = 64 * 1024;
/// Lists stop growing here, so that meta and the other fields have room.
pub const LIST_BYTES: usize = 48 * 1024;
/// Entries of a list unless the caller says otherwise.
pub const DEFAULT_LIMIT: usize = 50;
/// The most entries of a list.
pub const MAX_LIMIT: usize = 200;
/// The same, as arguments are numbers.
pub const MAX_LIMIT_ARGUMENT: i64 = 200;
/// Bytes of a name or text that strangers wrote.
pub const FOREIGN_TEXT_BYTES: usize = 256;
/// How long a cursor is good for.
pub const CURSOR_TTL: Duration = Duration::from_hours(1);
/// What instructions may be long, in bytes.
pub const INSTRUCTIONS_BYTES: usize = 2 * 1024;

/// Calls that read etcd at a time.
pub const ETCD_READS_IN_FLIGHT: usize = 4;
/// How long what was read of etcd is kept up to date by what changes, before it is read whole
/// again.
pub const REREAD_AFTER: Duration = Duration::from_mins(1);
/// The largest answer of a metrics endpoint, in bytes.
pub const SCRAPE_BYTES: usize = 8 * 1024 * 1024;
/// Targets that are scraped at most.
pub const SCRAPE_TARGETS: usize = 256;
/// Scrapes at a time.
pub const SCRAPES_IN_FLIGHT: usize = 8;

/// Audit lines that wait to be written.
pub const AUDIT_QUEUE: usize = 1_024;
/// Audit lines that are kept to be looked at.
pub const AUDIT_KEPT: usize = 200;
/// Changes of each kind that are kept.
pub const CHANGES_KEPT: usize = 1_000;

/// The largest runbook, in bytes.
pub const RUNBOOK_BYTES: usize = 24 * 1024;
/// Runbooks of the operator's own.
pub const RUNBOOKS_OWN: usize = 200;

/// How long a plan is good for.
pub const PLAN_TTL: Duration = Duration::from_hours(1);
/// Plans that are kept.
pub const PLANS_KEPT: usize = 256;
/// Partitions that one plan sets offsets of.
pub const PLAN_PARTITIONS: usize = 200;

/// Partitions that brokers let a topic have: what the writing side of `metadata` says, which is not
/// part of this build.
pub const MAX_PARTITIONS_PER_TOPIC: u32 = 100_000;

/// Addresses and principals whose limits are remembered.
pub const BUCKETS: usize = 10_000;

const _: () = assert!(LIST_BYTES < ANSWER_BYTES);
// In JSON, a character of a text takes two bytes at most once it is cleaned.
const _: () = assert!(2 * RUNBOOK_BYTES <= LIST_BYTES);
const _: () = assert!(DEFAULT_LIMIT <= MAX_LIMIT);
const _: () = assert!(MAX_LIMIT_ARGUMENT.unsigned_abs() == MAX_LIMIT as u64);
