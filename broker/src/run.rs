//! A broker's life: open, serve, drain.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use strandline_metadata::backend::Backend;
use strandline_metadata::brokers::{self, RegisterError};
use strandline_metadata::bucket::{Bucket, BucketError};
use strandline_metadata::commit::{self, SessionCell};
use strandline_metadata::groups::GroupWriter;
use strandline_metadata::keys::Keyspace;
use strandline_metadata::replica::{BarrierLoop, LoadError, Replica, ReplicaLoop, View};
use strandline_metadata::values::ClusterValue;
use strandline_storage::clock::Clock;
use strandline_storage::error::StoreError;
use strandline_storage::reader::{Reader, ReaderConfig};
use strandline_storage::store::Store;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::clock_skew::ClockSkew;
use crate::compute::Compute;
use crate::config::{Advertised, Config};
use crate::fetch::WaitingMemory;
use crate::fetch::session::FetchSessions;
use crate::group::coordinator::Groups;
use crate::group::environment::Environment;
use crate::group::patterns::KnownTopics;
use crate::ids::Ids;
use crate::limits::{
    ABANDON_WAIT, ANNOUNCE_PAUSE, CLOSE_WAIT, FETCHES_READ_ON, FLUSH_WAIT, OPEN_BACKOFF, REGISTER_WAIT,
};
use crate::metrics::Metrics;
use crate::produce::{Doubts, Flusher, ProduceBuffer};
use crate::producer_ids::ProducerIds;
use crate::readiness::{self, Readiness};
use crate::server::frame::RequestMemory;
use crate::server::memory::MemoryBudget;
use crate::slowdown::Slowdown;
use crate::space::SpaceGauge;
use crate::tasks::{TaskDeath, TaskKind, TaskSet};
use crate::telemetry::Telemetry;
use crate::transactions::Remembered;
use crate::unwanted::Unwanted;
use crate::{Broker, MembershipEnd, jobs, membership, merge, space};

/// Opens the object store of a cluster.
pub type StoreOpener = Box<dyn Fn(&ClusterValue) -> Result<Arc<dyn Store>, StoreError> + Send + Sync>;

/// What a broker is given from outside.
pub struct Parts {
    /// Where the order of commits is kept.
    pub backend: Arc<dyn Backend>,
    /// Opens the object store of a cluster: its objects have the cluster's id as prefix.
    pub open_store: StoreOpener,
    /// Wall clock.
    pub clock: Arc<dyn Clock>,
    /// Counts everything; the store counts into it too.
    pub metrics: Metrics,
    /// Where clients are told to connect.
    pub advertised: Advertised,
    /// Where other programs are told to find the metrics.
    pub metrics_url: String,
    /// Seed of everything random.
    pub seed: u64,
    /// Where its tasks run.
    pub tasks: TaskSet,
    /// What keeps it registered.
    pub leases: Leases,
    /// Threads for what computes for long, and is not to hold up the rest; `None` for the runtime
    /// of everything else.
    pub aside: Option<Handle>,
}

/// What keeps a broker registered. It may have connections and threads of its own, so that no work
/// of clients costs the lease a beat.
#[derive(Debug)]
pub struct Leases {
    /// The metadata store once more.
    pub backend: Arc<dyn Backend>,
    /// Where its task runs; `None` for the runtime of everything else.
    pub runtime: Option<Handle>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts")
            .field("backend", &self.backend)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

/// Why a broker cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The cluster's own key cannot be read or is too new.
    #[error(transparent)]
    Cluster(#[from] RegisterError),
    /// The store cannot be used as it is configured.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The bucket is not the cluster's, or does not answer.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// The cluster's name is none.
    #[error("the cluster's name cannot be used")]
    ClusterName,
}

/// Why a running broker must end.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The log cannot be followed any further.
    #[error("the log cannot be followed any further: {0}")]
    Log(LoadError),
    /// It may not be registered any more.
    #[error(transparent)]
    Membership(#[from] MembershipEnd),
    /// A task died that it cannot do without.
    #[error("{0}: a broker without it would only look alive")]
    Task(#[from] TaskDeath),
}

/// A broker with its loops running.
#[derive(Debug)]
pub struct Opened {
    /// The broker.
    pub broker: Arc<Broker>,
    /// Says why the broker must end, if it must.
    pub fatal: mpsc::Receiver<Fatal>,
}

/// Opens a broker: reads the state, starts the loops, registers. Tries again for as long as a
/// dependency does not answer; gives up only on what will not change by itself.
pub async fn open(config: Config, parts: Parts) -> Result<Opened, OpenError> {
    let keys = Keyspace::new(&config.cluster).ok_or(OpenError::ClusterName)?;
    let mut rng = StdRng::seed_from_u64(parts.seed);
    let cluster = ensure_cluster(parts.backend.as_ref(), &keys, &mut rng).await?;
    let store = (parts.open_store)(&cluster)?;
    let sessions = SessionCell::default();
    let server_clock = config.store.server_clock.clone();
    let clock_skew = ClockSkew::new(config.node_id, parts.clock.clone(), server_clock, sessions.clone());
    let (replica, replica_loop, barrier_loop) =
        open_state(&parts, &keys, &cluster, &store, &clock_skew).await?;
    let (committer, commit_loop) = commit::committer(replica.clone(), sessions.clone());
    let reader = open_reader(&config, &store, &parts.metrics);
    let buffer = ProduceBuffer::new(&config.produce);
    let slowdown = Slowdown::new(replica.clone(), SpaceGauge::default(), &config);
    let tasks = parts.tasks;
    let lease_tasks = parts.leases.runtime.map_or_else(|| tasks.clone(), |runtime| tasks.on(runtime));
    let unwanted = Unwanted::new(store.clone(), reader.clone());
    let flusher = Flusher {
        buffer: buffer.clone(),
        config: config.produce,
        store: store.clone(),
        reader: reader.clone(),
        unwanted: unwanted.clone(),
        committer: committer.clone(),
        sessions: sessions.clone(),
        clock: parts.clock.clone(),
        metrics: parts.metrics.clone(),
        tasks: tasks.clone(),
        slowdown: slowdown.clone(),
        seed: rng.random(),
    };
    let merge_seed = rng.random();
    let fetch_sessions =
        FetchSessions::new(config.fetch_sessions, config.memory.fetch_session_bytes(), rng.random());
    let ids = Ids::new(rng);
    let compute = Arc::new(Compute::new(parts.metrics.clone(), parts.aside));
    let groups = Groups::new(Environment {
        topics: KnownTopics::new(replica.clone(), compute.clone(), tasks.clone()),
        node_id: config.node_id,
        config: config.groups.clone(),
        replica: replica.clone(),
        sessions: sessions.clone(),
        writer: GroupWriter::new(committer.clone()),
        writes: AtomicU64::new(1),
        clock: parts.clock.clone(),
        clock_skew: clock_skew.clone(),
        metrics: parts.metrics.groups().clone(),
        space: slowdown.space().clone(),
        tasks: tasks.clone(),
        ids: ids.clone(),
    });
    let broker = Arc::new(Broker {
        cluster,
        process_id: ids.next(),
        advertised: parts.advertised,
        metrics_url: parts.metrics_url,
        replica,
        committer,
        sessions,
        lease_backend: parts.leases.backend,
        registration: watch::Sender::new(None),
        store,
        reader,
        unwanted,
        buffer,
        doubts: Doubts::new(),
        fetch_sessions,
        waiting_fetches: WaitingMemory::new(config.memory.waiting_fetch_bytes()),
        groups,
        compute,
        producer_ids: ProducerIds::default(),
        telemetry: Telemetry::default(),
        readiness: Readiness::default(),
        metrics: parts.metrics,
        request_memory: RequestMemory::new(config.request_memory_bytes),
        decoded_memory: MemoryBudget::new(config.memory.decoded_request_bytes()),
        reply_memory: MemoryBudget::new(config.response_memory_bytes),
        reads_on: Arc::new(Semaphore::new(FETCHES_READ_ON)),
        clock: parts.clock,
        clock_skew,
        slowdown,
        transactions: Remembered::default(),
        tasks: tasks.clone(),
        ids,
        draining: false.into(),
        turning_away: false.into(),
        closing: watch::Sender::new(false),
        config,
    });
    let (fatal_sender, fatal) = mpsc::channel(3);
    follow_log(&tasks, replica_loop, fatal_sender.clone());
    tasks.start(TaskKind::Critical, "barrier", barrier_loop.run());
    tasks.start(TaskKind::Critical, "committer", commit_loop.run());
    start_work(&tasks, &broker, flusher, merge_seed);
    start_beside(&lease_tasks, &broker, fatal_sender);
    if timeout(REGISTER_WAIT, broker.sessions.begun()).await.is_err() {
        warn!("not registered yet; serving what is known, and trying on");
    }
    Ok(Opened { broker, fatal })
}

/// Starts what applies the log, until it cannot.
fn follow_log(tasks: &TaskSet, replica_loop: ReplicaLoop, fatal: mpsc::Sender<Fatal>) {
    tasks.start(TaskKind::Critical, "replica", async move {
        let reason = replica_loop.run().await;
        // Only the first reason counts.
        let _ = fatal.send(Fatal::Log(reason)).await;
    });
}

/// Starts what must not be held up by requests: the registration, the look at what clients can do,
/// and the watch over the other tasks.
fn start_beside(lease_tasks: &TaskSet, broker: &Arc<Broker>, fatal: mpsc::Sender<Fatal>) {
    let (member, member_fatal) = (broker.clone(), fatal.clone());
    lease_tasks.start(TaskKind::Critical, "membership", async move {
        let end = membership::run(member).await;
        let _ = member_fatal.send(Fatal::Membership(end)).await;
    });
    let deaths = broker.tasks.clone();
    lease_tasks.start(TaskKind::Background, "deaths", async move {
        let death = deaths.death().await;
        let _ = fatal.send(Fatal::Task(death)).await;
    });
    lease_tasks.start(TaskKind::Critical, "readiness", readiness::run(broker.clone()));
}

/// Starts what a broker does that nothing asked it for.
fn start_work(tasks: &TaskSet, broker: &Arc<Broker>, flusher: Flusher, merge_seed: u64) {
    let (merging, compute) = (merge::run(broker.clone(), merge_seed), broker.compute.clone());
    tasks.start(TaskKind::Critical, "merge", async move { Box::pin(compute.aside(merging)).await });
    tasks.start(TaskKind::Critical, "flush", async move {
        flusher.run().await;
        // The buffer is closed and empty: the broker is leaving, and this is no death.
        std::future::pending::<()>().await;
    });
    tasks.start(TaskKind::Critical, "unwanted", broker.unwanted.clone().run());
    tasks.start(TaskKind::Critical, "jobs", jobs::run(broker.clone()));
    tasks.start(TaskKind::Critical, "space", space::run(broker.clone()));
    tasks.start(TaskKind::Critical, "groups", broker.groups.clone().run());
}

fn open_reader(config: &Config, store: &Arc<dyn Store>, metrics: &Metrics) -> Reader {
    let memory = ReaderConfig {
        cache_bytes: config.cache_bytes,
        max_in_flight_bytes: config.read_in_flight_bytes,
        max_merge_in_flight_bytes: config.merge.object_bytes(),
    };
    Reader::new(store.clone(), memory, metrics.storage().clone())
}

async fn ensure_cluster(
    backend: &dyn Backend,
    keys: &Keyspace,
    rng: &mut StdRng,
) -> Result<ClusterValue, RegisterError> {
    let mut backoff = OPEN_BACKOFF.0;
    loop {
        match brokers::ensure_cluster(backend, keys, rng).await {
            Err(RegisterError::Backend(error))
                if !matches!(error, strandline_metadata::backend::BackendError::Denied(_)) =>
            {
                warn!(%error, "the metadata store does not answer; trying again");
            }
            done => return done,
        }
        sleep(backoff).await;
        backoff = (backoff * 2).min(OPEN_BACKOFF.1);
    }
}

/// Reads the state, if the bucket is the one that its objects are in.
async fn open_state(
    parts: &Parts,
    keys: &Keyspace,
    cluster: &ClusterValue,
    store: &Arc<dyn Store>,
    observer: &ClockSkew,
) -> Result<(Replica, ReplicaLoop, BarrierLoop), OpenError> {
    let backend = parts.backend.as_ref();
    let bucket = Bucket { backend, keys, store: store.as_ref(), cluster_id: &cluster.cluster_id };
    // Before anything of it is believed.
    check_bucket(&bucket).await?;
    let opened = open_replica(parts, keys, store, observer).await?;
    bind_bucket(&bucket, &opened.0.view(), parts.seed).await?;
    Ok(opened)
}

async fn check_bucket(bucket: &Bucket<'_>) -> Result<(), BucketError> {
    let mut patience = Patience::default();
    loop {
        match bucket.check().await {
            Err(error) if error.is_retryable() => patience.after(&error).await,
            done => return done.map(|_| ()),
        }
    }
}

async fn bind_bucket(bucket: &Bucket<'_>, view: &View, seed: u64) -> Result<(), BucketError> {
    let mut patience = Patience::default();
    let mut rng = StdRng::seed_from_u64(!seed);
    loop {
        match bucket.bind(view, &mut rng).await {
            Err(error) if error.is_retryable() => patience.after(&error).await,
            done => return done,
        }
    }
}

async fn open_replica(
    parts: &Parts,
    keys: &Keyspace,
    store: &Arc<dyn Store>,
    observer: &ClockSkew,
) -> Result<(Replica, ReplicaLoop, BarrierLoop), LoadError> {
    let mut patience = Patience::default();
    loop {
        let observer = Box::new(observer.clone());
        match Replica::open(parts.backend.clone(), keys.clone(), store.clone(), observer).await {
            Err(error) if error.is_retryable() => patience.after(&error).await,
            done => return done,
        }
    }
}

/// How long a start waits before it tries again, while a dependency does not answer.
struct Patience(Duration);

impl Default for Patience {
    fn default() -> Self {
        Self(OPEN_BACKOFF.0)
    }
}

impl Patience {
    async fn after(&mut self, error: &(dyn std::fmt::Display + Send + Sync)) {
        warn!(%error, "what a start needs cannot be read for now; trying again");
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(OPEN_BACKOFF.1);
    }
}

impl Opened {
    /// Ends at once, as a broker must that cannot go on: gives the registration back, if the
    /// metadata store answers, so that others take over without waiting for the lease to end.
    /// Nobody is answered any more.
    pub async fn abandon(self) {
        let broker = self.broker;
        if timeout(ABANDON_WAIT, membership::leave(&broker)).await.is_err() {
            warn!("the registration ends with its lease");
        }
        broker.tasks.abort_all();
    }

    /// Leaves the cluster without failing anybody: clients are led elsewhere, what was accepted is
    /// acknowledged, then connections close and the registration is given back. If the broker
    /// cannot go on meanwhile it ends at once, and says why.
    pub async fn drain(mut self) -> Result<(), Fatal> {
        let broker = self.broker.clone();
        info!("leaving: clients are led to other brokers");
        tokio::select! {
            biased;
            Some(reason) = self.fatal.recv() => {
                self.abandon().await;
                return Err(reason);
            }
            () = finish_requests(&broker) => {}
        }
        membership::leave(&broker).await;
        broker.tasks.abort_all();
        info!("left");
        Ok(())
    }
}

/// Leads clients elsewhere, acknowledges what was accepted, and closes connections.
async fn finish_requests(broker: &Broker) {
    broker.draining.store(true, Ordering::Relaxed);
    membership::announce_draining(broker).await;
    sleep(ANNOUNCE_PAUSE).await;
    let others = broker.replica.read(|view| {
        view.names.brokers().values().any(|b| b.value.node_id != broker.config.node_id && !b.value.draining)
    });
    if others {
        // Clients ask for new metadata when they hear that somebody else is in charge.
        broker.turning_away.store(true, Ordering::Relaxed);
        sleep(broker.config.drain).await;
    }
    broker.buffer.close();
    let until = Instant::now() + FLUSH_WAIT;
    while broker.buffer.bytes_in_use() > 0 && Instant::now() < until {
        sleep(Duration::from_millis(10)).await;
    }
    broker.closing.send_replace(true);
    let until = Instant::now() + CLOSE_WAIT;
    while broker.metrics.open_connections() > 0 && Instant::now() < until {
        sleep(Duration::from_millis(10)).await;
    }
}

#[cfg(test)]
mod tests;
