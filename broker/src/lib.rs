//! A Kafka-compatible broker whose log lives in object storage.
//!
//! The path of a produce, two queues (═▶): the buffer that gathers an object, and the committer's,
//! which gathers a transaction:
//!
//! ```text
//! server/connection → api/produce → produce/validate → produce/buffer ═▶ produce/flush → storage: PUT
//!       ═▶ metadata: commit (etcd transaction) → metadata: replica (watch, apply) → ack
//! ```
//!
//! The path of a fetch, no queue:
//!
//! ```text
//! server/connection → api/fetch → fetch/session → fetch/plan (pure) → fetch/read → storage: reader → fetch/encode
//! ```
//!
//! A [`Broker`] is everything that a request may touch. It has no clock, no randomness and no
//! socket of its own: all three are handed in, so that a whole cluster can run in one deterministic
//! process.

mod api;
mod clock_skew;
mod compute;
pub mod config;
mod configs;
mod features;
mod fetch;
pub mod fsck;
mod group;
mod group_config;
mod ids;
mod jobs;
mod leaders;
mod limits;
mod membership;
pub mod merge;
pub mod metrics;
mod patterns;
mod placement;
pub mod process;
pub mod produce;
mod producer_ids;
mod readiness;
mod records;
pub mod recover;
mod replicas;
pub mod run;
pub mod server;
pub mod slowdown;
pub mod space;
pub mod tasks;
mod telemetry;
#[cfg(test)]
mod testing;
mod topic_config;
mod topics;
mod transactions;
pub mod unwanted;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use strandline_metadata::backend::Backend;
use strandline_metadata::commit::{Committer, SessionCell};
use strandline_metadata::names::Names;
use strandline_metadata::replica::Replica;
use strandline_metadata::values::{BrokerValue, ClusterValue, VALUE_FORMAT};
use strandline_storage::clock::Clock;
use strandline_storage::reader::Reader;
use strandline_storage::store::Store;
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use crate::clock_skew::ClockSkew;
use crate::compute::Compute;
use crate::config::{Advertised, Config};
use crate::fetch::WaitingMemory;
use crate::fetch::session::FetchSessions;
use crate::group::coordinator::Groups;
use crate::ids::Ids;
use crate::leaders::Leaders;
use crate::membership::CurrentRegistration;
pub use crate::membership::MembershipEnd;
use crate::metrics::Metrics;
use crate::produce::{Doubts, ProduceBuffer};
use crate::producer_ids::ProducerIds;
use crate::readiness::Readiness;
use crate::server::frame::RequestMemory;
use crate::server::memory::MemoryBudget;
use crate::slowdown::Slowdown;
use crate::tasks::TaskSet;
use crate::telemetry::Telemetry;
use crate::transactions::Remembered;
use crate::unwanted::Unwanted;

/// Everything that a request may touch.
#[derive(Debug)]
pub struct Broker {
    pub(crate) config: Config,
    pub(crate) cluster: ClusterValue,
    pub(crate) process_id: Uuid,
    pub(crate) advertised: Advertised,
    pub(crate) metrics_url: String,
    pub(crate) replica: Replica,
    pub(crate) committer: Committer,
    pub(crate) sessions: SessionCell,
    /// The metadata store, by connections that only the lease uses.
    pub(crate) lease_backend: Arc<dyn Backend>,
    pub(crate) registration: CurrentRegistration,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) reader: Reader,
    pub(crate) unwanted: Unwanted,
    pub(crate) buffer: ProduceBuffer,
    pub(crate) doubts: Doubts,
    pub(crate) fetch_sessions: FetchSessions,
    pub(crate) waiting_fetches: WaitingMemory,
    pub(crate) groups: Arc<Groups>,
    pub(crate) compute: Arc<Compute>,
    pub(crate) producer_ids: ProducerIds,
    pub(crate) telemetry: Telemetry,
    pub(crate) readiness: Readiness,
    pub(crate) metrics: Metrics,
    pub(crate) request_memory: RequestMemory,
    /// Of large requests that are decoded.
    pub(crate) decoded_memory: MemoryBudget,
    pub(crate) reply_memory: MemoryBudget,
    /// Places for reads that go on after their fetch was answered.
    pub(crate) reads_on: Arc<Semaphore>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) clock_skew: ClockSkew,
    pub(crate) slowdown: Slowdown,
    pub(crate) transactions: Remembered,
    pub(crate) tasks: TaskSet,
    pub(crate) ids: Ids,
    draining: AtomicBool,
    turning_away: AtomicBool,
    closing: watch::Sender<bool>,
}

impl Broker {
    /// What this broker knows of the log. For whoever compares brokers with each other.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Bytes of producers that are buffered or being written.
    pub fn produce_bytes_in_use(&self) -> usize {
        self.buffer.bytes_in_use()
    }

    /// This broker as it would register.
    pub(crate) fn as_registered(&self) -> BrokerValue {
        BrokerValue {
            format: VALUE_FORMAT,
            node_id: self.config.node_id,
            process_id: self.process_id,
            host: self.advertised.host.clone(),
            port: self.advertised.port,
            zone: self.config.zone.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            metrics_url: self.metrics_url.clone(),
            registered_at_ms: self.clock.now_ms(),
            draining: self.is_draining(),
        }
    }

    /// The brokers that a client with this id may be led to.
    pub(crate) fn leaders(&self, names: &Names, client_id: &str) -> Leaders {
        Leaders::of(names, client_id, || self.as_registered())
    }

    /// The dynamic configs that count on a broker: those of its own, else those of all.
    pub(crate) fn dynamic_configs(names: &Names, node_id: i32) -> BTreeMap<String, String> {
        let (mut configs, _) = names.broker_configs(None);
        configs.extend(names.broker_configs(Some(node_id)).0);
        configs
    }

    /// Whether this broker is leaving.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether clients are told to go to another broker.
    pub(crate) fn is_turning_away(&self) -> bool {
        self.turning_away.load(Ordering::Relaxed)
    }

    /// Ends when connections without a request under way are to be closed.
    pub(crate) async fn connections_close(&self) {
        let mut closing = self.closing.subscribe();
        // The sender lives in `self`.
        let _ = closing.wait_for(|closing| *closing).await;
    }
}
