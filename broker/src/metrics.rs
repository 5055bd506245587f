//! What the broker counts. Names begin with `strandline_`; histograms are in seconds or bytes. A
//! call site says what happened, not which label.

mod below;
pub(crate) mod bounds;
mod compaction;
pub(crate) mod groups;
mod merging;
mod put_budget;
mod registrar;
pub(crate) mod requests;
mod telemetry;
mod transactions;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kafka_protocol::messages::ApiKey;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Registry,
    TextEncoder,
};
use strandline_metadata::replica::ReplicaCounters;
use strandline_storage::metrics::StorageMetrics;
use uuid::Uuid;

use self::below::BelowMetrics;
use self::bounds::BoundMetrics;
use self::compaction::CompactionMetrics;
use self::groups::GroupMetrics;
use self::merging::MergeMetrics;
use self::put_budget::PutBudgetMetrics;
use self::registrar::Registrar;
use self::requests::RequestMetrics;
use self::telemetry::TelemetryMetrics;
use self::transactions::TransactionMetrics;
use crate::Broker;
use crate::fetch::session::TopicKey;
use crate::limits::{SOFTWARE_LABELS, TOPIC_LABELS};
use crate::produce::FlushReason;

/// Seconds, from a tenth of a millisecond to a minute.
const SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
];
/// Bytes, from a kilobyte to 64 megabytes.
const BYTES: &[f64] = &[
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    8_388_608.0,
    16_777_216.0,
    67_108_864.0,
];

/// The counters of one topic, looked up once for each produce or fetch of it.
#[derive(Clone, Debug)]
struct TopicCounters {
    produced_records: IntCounter,
    produced_bytes: IntCounter,
    fetched_records: IntCounter,
    fetched_bytes: IntCounter,
}

/// Every metric of the broker. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    registry: Registry,
    storage: StorageMetrics,
    produced_records: IntCounterVec,
    produced_bytes: IntCounterVec,
    fetched_records: IntCounterVec,
    fetched_bytes: IntCounterVec,
    topics: Mutex<BTreeMap<String, TopicCounters>>,
    request_seconds: HistogramVec,
    flush_bytes: Histogram,
    flushes: IntCounterVec,
    flush_failures: IntCounterVec,
    put_seconds: Histogram,
    commit_seconds: Histogram,
    applied_records: IntCounter,
    apply_seconds: Gauge,
    rebuilds: IntGauge,
    rewatches: IntGauge,
    watch_lag: IntGauge,
    state_revision: IntGauge,
    response_memory: IntGauge,
    state_ranges: IntGauge,
    state_objects: IntGauge,
    state_dead_objects: IntGauge,
    topics_known: IntGauge,
    partitions_known: IntGauge,
    buffer_bytes: IntGauge,
    fetch_sessions: IntGauge,
    connections: IntGauge,
    connections_refused: IntCounter,
    bounds: BoundMetrics,
    merging: MergeMetrics,
    transactions: TransactionMetrics,
    compaction: CompactionMetrics,
    put_budget: PutBudgetMetrics,
    read_failures: IntCounter,
    doubted_batches: IntCounterVec,
    registered: IntGauge,
    brokers: IntGauge,
    jobs: IntCounterVec,
    below: BelowMetrics,
    clients: IntCounterVec,
    software: Mutex<BTreeSet<(String, String)>>,
    groups: GroupMetrics,
    requests: RequestMetrics,
    telemetry: TelemetryMetrics,
}

fn request_options() -> HistogramOpts {
    let help = "From reading a request to its answer being ready, by API";
    HistogramOpts::new("strandline_request_seconds", help).buckets(SECONDS.to_vec())
}

impl Metrics {
    /// Registers every metric, those of storage too.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let storage = StorageMetrics::new(&registry)?;
        let r = Registrar(&registry);
        let shared = Shared {
            storage,
            produced_records: r.counters(
                "produced_records_total",
                "Records that were acknowledged",
                &["topic"],
            )?,
            produced_bytes: r.counters(
                "produced_bytes_total",
                "Bytes of record batches that were acknowledged",
                &["topic"],
            )?,
            fetched_records: r.counters(
                "fetched_records_total",
                "Records that were sent to consumers",
                &["topic"],
            )?,
            fetched_bytes: r.counters(
                "fetched_bytes_total",
                "Bytes of record batches that were sent to consumers",
                &["topic"],
            )?,
            topics: Mutex::default(),
            request_seconds: r.with(HistogramVec::new(request_options(), &["api"]))?,
            flush_bytes: r.histogram("flush_bytes", "Size of the objects that were written", BYTES)?,
            flushes: r.counters(
                "flushes_total",
                "Objects that were written, by what made it time",
                &["reason"],
            )?,
            flush_failures: r.counters(
                "flush_failures_total",
                "Flushes whose records were refused, by the step that failed",
                &["step"],
            )?,
            put_seconds: r.histogram("flush_put_seconds", "Writing an object, retries included", SECONDS)?,
            commit_seconds: r.histogram(
                "commit_seconds",
                "From an object being durable to its records being applied here",
                SECONDS,
            )?,
            applied_records: r
                .counter("log_records_applied_total", "Records of the commit log that were applied")?,
            apply_seconds: r.with(Gauge::new(
                "strandline_log_apply_seconds_total",
                "Time spent applying the commit log",
            ))?,
            rebuilds: r
                .gauge("state_rebuilds_total", "Times that the state was thrown away and read anew")?,
            rewatches: r.gauge("watch_restarts_total", "Times that the watch was opened again")?,
            watch_lag: r.gauge(
                "watch_lag_revisions",
                "Revisions that this broker committed and has not applied yet",
            )?,
            state_revision: r.gauge("state_revision", "The etcd revision that is applied")?,
            response_memory: r
                .gauge("response_memory_used_bytes", "Responses that are ready or being written")?,
            state_ranges: r
                .gauge("state_ranges", "Offset ranges in the state: what its memory grows with")?,
            state_objects: r.gauge("state_objects", "Objects that records lie in")?,
            state_dead_objects: r
                .gauge("state_dead_objects", "Objects that nothing refers to and that are to be deleted")?,
            topics_known: r.gauge("topics", "Topics")?,
            partitions_known: r.gauge("partitions", "Partitions")?,
            buffer_bytes: r.gauge("buffer_bytes", "Bytes of records that are buffered or being written")?,
            fetch_sessions: r.gauge("fetch_sessions", "Incremental fetch sessions")?,
            connections: r.gauge("connections", "Open connections of Kafka clients")?,
            connections_refused: r
                .counter("connections_refused_total", "Connections refused because there were too many")?,
            bounds: BoundMetrics::new(&r)?,
            merging: MergeMetrics::new(&r)?,
            compaction: CompactionMetrics::new(&r)?,
            transactions: TransactionMetrics::new(&r)?,
            put_budget: PutBudgetMetrics::new(&r)?,
            read_failures: r
                .counter("read_failures_total", "Fetches of a partition that failed because of an object")?,
            doubted_batches: r.counters(
                "doubted_batches_total",
                "Compressed batches whose header may be wrong about their largest timestamp: opened, or believed since opening others had taken its share of the time",
                &["outcome"],
            )?,
            registered: r.gauge("registered", "1 while this broker is registered with the cluster")?,
            brokers: r.gauge("brokers", "Brokers that are registered with the cluster")?,
            jobs: r.counters("jobs_total", "Passes of background jobs", &["job", "outcome"])?,
            below: BelowMetrics::new(&r)?,
            clients: r.counters(
                "client_connections_total",
                "Connections by what the client says it is",
                &["software", "version"],
            )?,
            software: Mutex::default(),
            groups: GroupMetrics::new(&r)?,
            requests: RequestMetrics::new(&r)?,
            telemetry: TelemetryMetrics::new(&r)?,
            registry,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Storage's own metrics.
    pub fn storage(&self) -> &StorageMetrics {
        &self.shared.storage
    }

    fn topic(&self, name: &str) -> TopicCounters {
        let mut topics = self.shared.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = topics.get(name) {
            return known.clone();
        }
        let label = if topics.len() < TOPIC_LABELS { name } else { "other" };
        let s = &self.shared;
        let counters = TopicCounters {
            produced_records: s.produced_records.with_label_values(&[label]),
            produced_bytes: s.produced_bytes.with_label_values(&[label]),
            fetched_records: s.fetched_records.with_label_values(&[label]),
            fetched_bytes: s.fetched_bytes.with_label_values(&[label]),
        };
        if label == name {
            topics.insert(name.to_owned(), counters.clone());
        }
        counters
    }

    /// A batch whose header is doubted was opened, or believed all the same.
    pub(crate) fn doubted_batch(&self, opened: bool) {
        let outcome = if opened { "opened" } else { "believed" };
        self.shared.doubted_batches.with_label_values(&[outcome]).inc();
    }

    pub(crate) fn produced(&self, broker: &Broker, topic_id: Uuid, records: u64, bytes: u64) {
        let name = broker.replica.read(|view| view.names.topic_by_id(topic_id).map(|t| t.name.clone()));
        let counters = self.topic(&name.unwrap_or_else(|| "deleted".to_owned()));
        counters.produced_records.inc_by(records);
        counters.produced_bytes.inc_by(bytes);
    }

    pub(crate) fn fetched(&self, broker: &Broker, topic: &TopicKey, records: u64, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let name = match topic {
            TopicKey::Name(name) => Some(name.to_string()),
            TopicKey::Id(id) => {
                broker.replica.read(|view| view.names.topic_by_id(*id).map(|t| t.name.clone()))
            }
        };
        let counters = self.topic(&name.unwrap_or_else(|| "deleted".to_owned()));
        counters.fetched_records.inc_by(records);
        counters.fetched_bytes.inc_by(bytes);
    }

    pub(crate) fn request_done(&self, api: ApiKey, took: Duration) {
        self.shared.request_seconds.with_label_values(&[&format!("{api:?}")]).observe(took.as_secs_f64());
    }

    #[expect(clippy::cast_precision_loss, reason = "a histogram of sizes needs no exact bytes")]
    pub(crate) fn flushed(&self, reason: FlushReason, bytes: u64) {
        self.shared.flushes.with_label_values(&[reason.as_str()]).inc();
        self.shared.flush_bytes.observe(bytes as f64);
    }

    pub(crate) fn flush_failed(&self, step: &'static str) {
        self.shared.flush_failures.with_label_values(&[step]).inc();
    }

    /// What is counted of the budget of PUTs.
    pub(crate) fn put_budget(&self) -> &PutBudgetMetrics {
        &self.shared.put_budget
    }

    pub(crate) fn put_took(&self, took: Duration) {
        self.shared.put_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn commit_took(&self, took: Duration) {
        self.shared.commit_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn connection_opened(&self) {
        self.shared.connections.inc();
    }

    pub(crate) fn connection_closed(&self) {
        self.shared.connections.dec();
    }

    pub(crate) fn open_connections(&self) -> i64 {
        self.shared.connections.get()
    }

    pub(crate) fn connection_refused(&self) {
        self.shared.connections_refused.inc();
    }

    /// What is counted of log compaction.
    pub(crate) fn compaction(&self) -> &CompactionMetrics {
        &self.shared.compaction
    }

    /// What is counted of merging.
    pub(crate) fn merging(&self) -> &MergeMetrics {
        &self.shared.merging
    }

    /// What is counted of transactions.
    pub(crate) fn transactions(&self) -> &TransactionMetrics {
        &self.shared.transactions
    }

    /// What is counted of what has a bound.
    pub(crate) fn bounds(&self) -> &BoundMetrics {
        &self.shared.bounds
    }

    pub(crate) fn read_failed(&self) {
        self.shared.read_failures.inc();
    }

    /// What is counted of the limits of requests.
    pub(crate) fn requests(&self) -> &RequestMetrics {
        &self.shared.requests
    }

    pub(crate) fn registered(&self, is_registered: bool) {
        self.shared.registered.set(i64::from(is_registered));
    }

    pub(crate) fn job_done(&self, job: &str, outcome: &str) {
        self.shared.jobs.with_label_values(&[job, outcome]).inc();
    }

    pub(crate) fn orphans_stay(&self, stay: bool) {
        self.shared.below.orphans_stay(stay);
    }

    /// What is counted of groups.
    pub(crate) fn groups(&self) -> &GroupMetrics {
        &self.shared.groups
    }

    pub(crate) fn telemetry_pushed(&self, is_taken: bool) {
        self.shared.telemetry.pushed(is_taken);
    }

    pub(crate) fn client_software(&self, name: &str, version: &str) {
        let cut = |text: &str| text.chars().take(64).collect::<String>();
        let kind = (cut(name), cut(version));
        let mut known = self.shared.software.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(&kind) || known.len() < SOFTWARE_LABELS {
            self.shared.clients.with_label_values(&[&kind.0, &kind.1]).inc();
            known.insert(kind);
        }
    }

    /// The text that `/metrics` serves; what is a state rather than an event is looked up now.
    pub(crate) fn render(&self, broker: &Broker) -> prometheus::Result<Vec<u8>> {
        let s = &self.shared;
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        broker.replica.read(|view| {
            s.state_revision.set(view.revision);
            s.response_memory.set(number(broker.reply_memory.used()));
            s.state_ranges.set(i64::try_from(view.state.range_count()).unwrap_or(i64::MAX));
            s.state_objects.set(number(view.state.objects().len()));
            s.state_dead_objects.set(number(view.state.dead().len()));
            s.topics_known.set(number(view.state.topics().len()));
            s.partitions_known.set(i64::try_from(view.state.partition_count()).unwrap_or(i64::MAX));
            s.brokers.set(number(view.names.brokers().len()));
        });
        s.below.look(broker);
        s.transactions.look(broker);
        let ReplicaCounters { records, rebuilds, rewatches, apply_nanos, .. } = broker.replica.counters();
        s.applied_records.inc_by(records.saturating_sub(s.applied_records.get()));
        s.apply_seconds.set(Duration::from_nanos(apply_nanos).as_secs_f64());
        s.rebuilds.set(i64::try_from(rebuilds).unwrap_or(i64::MAX));
        s.rewatches.set(i64::try_from(rewatches).unwrap_or(i64::MAX));
        s.watch_lag.set(broker.replica.lag_revisions());
        s.buffer_bytes.set(number(broker.buffer.bytes_in_use()));
        s.fetch_sessions.set(number(broker.fetch_sessions.len()));
        s.requests.look(broker);
        s.groups.look(&broker.replica, |visit| broker.groups.each(visit));
        s.telemetry.look(broker);
        s.bounds.look(broker);
        s.merging.look(broker);
        let mut text = Vec::new();
        let mut families = s.registry.gather();
        families.extend(telemetry::families(broker)?);
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(text)
    }
}
