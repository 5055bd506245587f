//! What Strandline keeps in object storage: objects, their byte formats, and the way to and from
//! them.
//!
//! ```text
//!  broker ──▶ format::segment ──▶ Store::put ──┐                       ┌──▶ S3, folder or memory
//!                   │                          │  Retrying             │
//!                   └──▶ Reader::insert_written│  Measured             │
//!                              │               ├─ TimeLimited ─────────┤
//!  broker ◀── Reader ◀── cache ┘               │  (Faulty, in tests)   │
//!                └── one shared GET ───────────┘  ObjectStoreBackend ──┘
//! ```
//!
//! What a flush writes is a [`format::segment`], what a merge makes of many is a
//! [`format::merged`]; both are read through the same [`Reader`].
//!
//! Objects are immutable and their keys are never reused, so nothing here needs conditional writes:
//! any S3-compatible server will do. This crate knows nothing of topics as policy, nor of Kafka's
//! requests; the one Kafka format that it reads is the header of a record batch, since that is what
//! its objects are made of.
//!
//! Only [`path`] builds or parses an object key, only [`clock`] reads the wall clock, and only
//! [`limits`] says how much of anything there may be. Every byte layout is specified in
//! `FORMAT.md`.

pub mod cache;
pub mod clock;
pub mod error;
pub mod format;
pub mod limits;
pub mod metrics;
pub mod path;
pub mod reader;
pub mod store;

pub use clock::{Clock, SystemClock};
pub use error::{Operation, StoreError};
pub use metrics::StorageMetrics;
pub use path::{KeyError, ObjectId, ObjectKey, ObjectKind};
pub use reader::{ReadBatch, ReadKind, ReadRange, Reader, ReaderConfig};
pub use store::{ObjectMeta, Payload, Store, StoreConfig, open};
