//! What Strandline keeps in etcd: the ordered keyspace, the state machine that gives it meaning,
//! its snapshots.
//!
//! Without the `log` feature this crate is the read side: keys, values, and a client that can only
//! range and watch. With it come the commit log, the pure state machine and everything that writes.
//!
//! ```text
//!   commit/  ──txn──▶  backend  ──watch──▶  replica/  ──apply──▶  state/
//!   (one transaction in flight)            (one loop)            (pure)
//! ```
//!
//! `LOG.md` specifies every key and every byte.
#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_wrap,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "numbers in tests are small"
    )
)]

pub mod backend;
pub mod keys;
pub mod placement;
pub mod topic_configs;
pub mod values;

#[cfg(feature = "log")]
pub mod brokers;
#[cfg(feature = "log")]
pub mod bucket;
#[cfg(feature = "log")]
pub mod commit;
#[cfg(feature = "log")]
pub mod compaction;
#[cfg(feature = "log")]
pub mod evidence;
#[cfg(feature = "log")]
pub mod groups;
#[cfg(feature = "log")]
pub mod invariants;
pub mod limits;
#[cfg(feature = "log")]
pub mod names;
#[cfg(feature = "log")]
pub mod record;
#[cfg(feature = "log")]
pub mod replica;
#[cfg(feature = "log")]
pub mod snapshot;
#[cfg(feature = "log")]
pub mod state;
#[cfg(feature = "log")]
pub mod topics;
#[cfg(feature = "log")]
pub mod transactions;
#[cfg(feature = "log")]
pub mod turns;
#[cfg(feature = "log")]
pub mod watermarks;
