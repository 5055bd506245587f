//! A small S3 server for development and tests.
//!
//! It keeps objects in memory, which is what benchmarks want, or in a folder, where a PUT that was
//! answered survives a kill. It checks signatures and checksums as the real one does, and it fails
//! on command: an admin port takes a plan of faults (see [`FaultPlan`]).
//!
//! ```text
//! connection ─▶ service (faults before) ─▶ s3s: signature, XML ─▶ api ─▶ Objects ─▶ memory │ folder
//!                   └─(faults after) ◀──────────────────────────────────────┘
//! ```
//!
//! It is no product: no versions, no policies, no replication, one process for each folder. Nothing
//! of Strandline depends on it except tests and the demo.

mod admin;
mod api;
mod body;
mod config;
mod error;
mod faults;
mod objects;
mod server;
mod service;
mod uploads;

pub use config::{Config, Place, Tls};
pub use error::StartError;
pub use faults::{FaultPlan, Operation};
pub use server::Server;
