//! Metrics that clients measure themselves and push to us (KIP-714), shown in our own `/metrics`.
//!
//! ```text
//! client-metrics resources ──▶ subscriptions ──▶ what is wanted of a client    GetTelemetrySubscriptions
//!                                                     │
//!                       instances: not too often ◀────┴───▶ otlp: numbers ──▶ series ──▶ /metrics    PushTelemetry
//! ```
//!
//! Nothing is wanted of anybody unless a resource says so. What is wanted follows from the
//! resources alone, the same on every broker, so a client may ask one and push to another. Numbers
//! are kept by the broker that got them, and in memory only.

mod instances;
mod otlp;
mod series;
mod subscriptions;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use strandline_storage::format::batch::Compression;
use tokio::time::Instant;
use uuid::Uuid;

use self::instances::Instances;
#[cfg(test)]
pub(crate) use self::otlp::testing::payload;
use self::series::Series;
pub(crate) use self::series::Shown;
pub(crate) use self::subscriptions::{ClientSubscription, DEFAULT_INTERVAL_MS, Peer, check};
use self::subscriptions::{Subscriptions, Version};
use crate::Broker;
use crate::limits::{MAX_DECOMPRESSED_PUSH_BYTES, MAX_PUSH_BYTES, TELEMETRY_SERIES_PER_CLIENT};
use crate::records::{self, RecordsError};

/// The codecs that a push may have, the best first.
pub(crate) const CODECS: [i8; 4] = [4, 3, 1, 2];

/// Why a client is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the client has no instance id")]
    NoInstance,
    #[error("the client polls or pushes more often than its push interval allows")]
    TooEarly,
    #[error("the subscription of the client has changed")]
    UnknownSubscription,
    #[error("the client has already sent its terminating push")]
    Ended,
    #[error("unknown compression codec")]
    UnknownCodec,
    #[error("the push is larger than a push may be")]
    TooLarge,
    #[error("the push is not valid metrics data")]
    Garbage,
}

/// What a client pushes.
#[derive(Debug)]
pub(crate) struct Push<'a> {
    pub(crate) subscription_id: i32,
    /// Whether the client is about to end.
    pub(crate) is_last: bool,
    pub(crate) compression_type: i8,
    pub(crate) metrics: &'a [u8],
}

#[derive(Debug, Default)]
struct State {
    subscriptions: (Version, Arc<Subscriptions>),
    instances: Instances,
    series: Series,
}

/// What is known of clients that push metrics.
#[derive(Debug, Default)]
pub(crate) struct Telemetry(Mutex<State>);

impl Telemetry {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wanted of a client, as far as this broker knows.
    fn wanted(&self, broker: &Broker, peer: &Peer) -> ClientSubscription {
        let version = broker.replica.read(|view| subscriptions::version(view.names.client_metrics()));
        let (known, subscriptions) = self.lock().subscriptions.clone();
        if known == version {
            return subscriptions.wanted(peer);
        }
        let resources = broker.replica.read(|view| view.names.client_metrics().clone());
        let subscriptions = Arc::new(Subscriptions::new(&resources));
        self.lock().subscriptions = (subscriptions::version(&resources), subscriptions.clone());
        subscriptions.wanted(peer)
    }

    /// Tells a client what is wanted of it.
    pub(crate) fn ask(
        &self,
        broker: &Broker,
        peer: &Peer,
        now: Instant,
    ) -> Result<ClientSubscription, Refusal> {
        let wanted = self.wanted(broker, peer);
        self.lock().instances.ask(peer.instance_id, &wanted, now)?;
        Ok(wanted)
    }

    /// Takes what a client pushes.
    pub(crate) fn push(
        &self,
        broker: &Broker,
        peer: &Peer,
        push: &Push<'_>,
        now: Instant,
    ) -> Result<(), Refusal> {
        // Kafka keeps both for itself.
        if peer.instance_id.as_u128() <= 1 {
            return Err(Refusal::NoInstance);
        }
        let wanted = self.wanted(broker, peer);
        let id = peer.instance_id;
        self.lock().instances.push(id, &wanted, push.subscription_id, push.is_last, now)?;
        let points = read(push, &wanted).inspect_err(|refusal| {
            if *refusal == Refusal::UnknownCodec {
                self.lock().instances.let_ask(id);
            }
        })?;
        let interval = Duration::from_millis(wanted.interval_ms.unsigned_abs().into());
        let left_out = self.lock().series.record(&peer.client_id, points, interval, now);
        if left_out > 0 {
            tracing::debug!(
                client_id = peer.client_id,
                left_out,
                "there is no place for all of a client's metrics"
            );
        }
        Ok(())
    }

    /// Every number that clients pushed and that is not too old.
    pub(crate) fn shown(&self) -> Vec<Shown> {
        self.lock().series.shown(Instant::now())
    }

    /// Clients that are remembered.
    pub(crate) fn instances(&self) -> usize {
        self.lock().instances.len()
    }
}

/// The numbers of a push. What is beyond a client's share is not even collected.
fn read(push: &Push<'_>, wanted: &ClientSubscription) -> Result<Vec<otlp::Point>, Refusal> {
    let codec = match push.compression_type {
        0 => Compression::None,
        1 => Compression::Gzip,
        2 => Compression::Snappy,
        3 => Compression::Lz4,
        4 => Compression::Zstd,
        _ => return Err(Refusal::UnknownCodec),
    };
    if push.metrics.len() > MAX_PUSH_BYTES {
        return Err(Refusal::TooLarge);
    }
    if push.metrics.is_empty() {
        // A client that ends says so, and may have nothing to add.
        return Ok(Vec::new());
    }
    let payload =
        records::decompress(codec, push.metrics, MAX_DECOMPRESSED_PUSH_BYTES).map_err(|e| match e {
            RecordsError::TooLarge(_) => Refusal::TooLarge,
            RecordsError::Batch(_) | RecordsError::Codec(_) | RecordsError::Malformed => Refusal::Garbage,
        })?;
    let mut points = Vec::new();
    let has = |metric: &str| wanted.has(metric);
    let each = |point| {
        if points.len() < TELEMETRY_SERIES_PER_CLIENT {
            points.push(point);
        }
    };
    otlp::points(&payload, has, each).map_err(|error| {
        tracing::debug!(%error, "what a client pushed cannot be read");
        Refusal::Garbage
    })?;
    Ok(points)
}

/// A new id for a client.
pub(crate) fn new_instance_id(broker: &Broker) -> Uuid {
    broker.ids.next()
}
