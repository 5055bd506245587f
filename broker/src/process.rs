//! The process around a broker: arguments, logs, sockets, signals. Nothing here is part of a
//! simulation.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{SeedableRng, TryRng};
use strandline_metadata::backend::Backend;
use strandline_metadata::backend::embedded::{Embedded, api};
use strandline_metadata::backend::etcd::Etcd;
use strandline_metadata::brokers;
use strandline_metadata::bucket::Bucket;
use strandline_metadata::keys::Keyspace;
use strandline_metadata::values::ClusterValue;
use strandline_settings::{Signals, environment, print};
use strandline_storage::clock::{Clock, SystemClock};
use strandline_storage::store::{self, Store, StoreConfig, StoreUrl};
use strandline_storage::{StorageMetrics, StoreError};
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tracing::{error, info, warn};

use crate::config::{self, Advertised, Config, EmbeddedConfig, MetadataConfig, Parsed};
use crate::fsck;
use crate::limits::{ASIDE_NICENESS, CONTROL_THREADS};
use crate::metrics::Metrics;
use crate::recover::Recovery;
use crate::run::{self, Leases, Opened, Parts, StoreOpener};
use crate::server::{Bound, http};
use crate::tasks::{TaskKind, TaskSet};

/// Runs the process; its exit code says whether it ended as asked.
pub fn main() -> ExitCode {
    let mut flags: Vec<String> = std::env::args().skip(1).collect();
    let command = Command::take(&mut flags);
    // For a command, failing is to find something.
    let failed = if command.is_some() { ExitCode::from(NO_ANSWER) } else { ExitCode::FAILURE };
    run(command, flags).unwrap_or_else(|error| {
        complain(&error);
        failed
    })
}

fn run(command: Option<Command>, flags: Vec<String>) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let config = match config::parse_on(config::available(), flags, environment)? {
        Parsed::Run(config) => *config,
        Parsed::Print(text) => return Ok(print(&text)),
    };
    config.log.start()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (control, aside) = (control_runtime()?, aside_runtime()?);
    let code = runtime.block_on(async {
        if let Some(command) = command {
            return command.run(&config).await;
        }
        serve(config, control.handle(), aside.handle())
            .await
            .inspect_err(|error| error!(%error, "the broker ends"))
    });
    // Nothing of what still runs is waited for: what had to be done is done.
    runtime.shutdown_background();
    control.shutdown_background();
    aside.shutdown_background();
    code
}

/// Threads for the lease, the registration and the health checks, so that no work of clients costs
/// them a beat.
fn control_runtime() -> std::io::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(CONTROL_THREADS).thread_name("control").enable_all().build()
}

/// Threads for what computes for long: large requests, merging. They are nicer than others, so that
/// small requests go first.
fn aside_runtime() -> std::io::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let nicer = || {
        // On Linux it is the thread's own. Without it they share as equals.
        let _ = rustix::process::nice(ASIDE_NICENESS);
    };
    builder.thread_name("aside").on_thread_start(nicer).enable_all().build()
}

/// What else than a broker the process may be: `strandline fsck [--quick] [settings]`, an audit, or
/// `strandline recover [--accept-loss] [settings]`, after a restore. It ends with 0 if nothing was
/// found that must not be, or the loss was accepted; with 1 if something was found, or would be
/// lost; and with 2 if it could not be found out.
#[derive(Debug)]
enum Command {
    /// An audit, which reads the objects that records are in or just lists them.
    Fsck { reads: bool },
    /// Going on from a backup of etcd.
    Recover { accepts_loss: bool },
}

/// A command has no answer.
const NO_ANSWER: u8 = 2;

/// What a command works on.
struct Opening {
    backend: Arc<dyn Backend>,
    store: Arc<dyn Store>,
    keys: Keyspace,
    cluster: ClusterValue,
}

impl Command {
    /// Takes the words of a command away, if there is one.
    fn take(flags: &mut Vec<String>) -> Option<Self> {
        let has = |option: &str, flags: &mut Vec<String>| {
            flags.remove(0);
            let before = flags.len();
            flags.retain(|flag| flag != option);
            flags.len() < before
        };
        match flags.first().map(String::as_str) {
            Some("fsck") => Some(Self::Fsck { reads: !has("--quick", flags) }),
            Some("recover") => Some(Self::Recover { accepts_loss: has("--accept-loss", flags) }),
            _ => None,
        }
    }

    async fn run(self, config: &Config) -> Result<ExitCode, Box<dyn std::error::Error>> {
        let opening = Opening::open(config).await?;
        match self {
            Self::Fsck { reads } => {
                let report = fsck::run(&opening.backend, &opening.store, &opening.keys, reads).await?;
                let _ = writeln!(std::io::stdout(), "{report}");
                Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            Self::Recover { accepts_loss } => opening.recover(accepts_loss).await,
        }
    }
}

impl Opening {
    async fn open(config: &Config) -> Result<Self, Box<dyn std::error::Error>> {
        // Opening it would make one.
        if let MetadataConfig::Embedded(EmbeddedConfig { journal: Some(path), .. }) = &config.metadata
            && !path.exists()
        {
            return Err(format!("there is no journal {}", path.display()).into());
        }
        let (backend, _) = backend(&config.metadata).await?;
        let keys = Keyspace::new(&config.cluster).ok_or("the cluster's name cannot be used")?;
        let cluster = brokers::read_cluster(backend.as_ref(), &keys).await?;
        let (cluster, _) = cluster.ok_or_else(|| format!("there is no cluster {:?}", config.cluster))?;
        let metrics = Metrics::new()?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let open = store_opener(config.store.clone(), metrics.storage().clone(), clock, 0);
        let store = open(&cluster)?;
        Ok(Self { backend, store, keys, cluster })
    }

    async fn recover(&self, accepts_loss: bool) -> Result<ExitCode, Box<dyn std::error::Error>> {
        let Self { backend, store, keys, cluster } = self;
        let cluster_id = cluster.cluster_id.as_str();
        let bucket = Bucket { backend: backend.as_ref(), keys, store: store.as_ref(), cluster_id };
        let recovery = Recovery { bucket };
        let loss = recovery.assess().await?;
        let _ = writeln!(std::io::stdout(), "{loss}");
        if loss.is_none() {
            return Ok(ExitCode::SUCCESS);
        }
        if !accepts_loss {
            let _ = writeln!(
                std::io::stdout(),
                "nothing was changed; --accept-loss lets brokers go on like this"
            );
            return Ok(ExitCode::FAILURE);
        }
        let mut rng = StdRng::seed_from_u64(rand::rngs::SysRng.try_next_u64()?);
        recovery.accept(&loss, SystemClock.now_ms(), &mut rng).await?;
        let _ = writeln!(std::io::stdout(), "accepted: brokers may be started");
        Ok(ExitCode::SUCCESS)
    }
}

fn complain(error: &dyn std::fmt::Display) -> ExitCode {
    strandline_settings::complain("strandline", error)
}

async fn serve(
    config: Config,
    control: &Handle,
    aside: &Handle,
) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let settings = config.effective.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ");
    info!(version = env!("CARGO_PKG_VERSION"), settings, "starting");
    let memory = &config.memory;
    let budgets = memory.iter().map(|(key, bytes)| format!("{key}={bytes}")).collect::<Vec<_>>().join(" ");
    info!(memory_bytes = memory.memory_bytes, sum = memory.sum(), budgets, "memory is shared out");
    // Ports first: a second broker on the same machine should say so before it does anything else.
    // It learns of one that is itself still opening by its metrics port, or else when it begins to
    // listen.
    let bound = Bound::new(&config.listen).await?;
    let http_listener = http::bind(&config.http_listen).await?;
    let advertised = advertised(&config, bound.address()?.port());
    let address = advertised.clone();
    let metrics_url = format!("http://{}:{}/metrics", advertised.host, http_listener.local_addr()?.port());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let metrics = Metrics::new()?;
    let seed = match config.seed {
        Some(seed) => seed,
        None => rand::rngs::SysRng.try_next_u64()?,
    };
    let mut signals = Signals::new()?;
    let opened_broker = http::OpenedBroker::default();
    let (stop_http, http_stops) = tokio::sync::oneshot::channel::<()>();
    let http_server = TaskSet::default().on(control.clone());
    http_server.start(
        TaskKind::Critical,
        "http",
        // The sender's end means the same as its word.
        http::run(http_listener, opened_broker.clone(), async move { drop(http_stops.await) }),
    );
    let metadata_listener = bind_metadata(&config.metadata).await;
    let opening = async {
        let (backend, embedded) = backend(&config.metadata).await?;
        let open_store = store_opener(config.store.clone(), metrics.storage().clone(), clock.clone(), seed);
        let tasks = TaskSet::default();
        let leases = Leases {
            backend: lease_backend(&config.metadata, &backend, control).await?,
            runtime: Some(control.clone()),
        };
        let aside = Some(aside.clone());
        let parts = Parts {
            backend,
            open_store,
            clock,
            metrics,
            advertised,
            metrics_url,
            seed,
            tasks,
            leases,
            aside,
        };
        let opened = run::open(config, parts).await?;
        if let Some(embedded) = embedded {
            if let Some(listener) = metadata_listener {
                opened.broker.tasks.start(
                    TaskKind::Background,
                    "metadata api",
                    answer_as_etcd(embedded.clone(), listener),
                );
            }
            opened.broker.tasks.start(
                TaskKind::Critical,
                "leases",
                async move { embedded.run_leases().await },
            );
        }
        Ok::<Opened, Box<dyn std::error::Error>>(opened)
    };
    let mut opened = tokio::select! {
        opened = opening => opened?,
        () = signals.told_to_end() => return Ok(ExitCode::SUCCESS),
    };
    let broker = opened.broker.clone();
    broker.tasks.start(TaskKind::Critical, "listener", bound.listen()?.run(broker.clone()));
    info!(host = address.host, port = address.port, "serving Kafka clients");
    // Nobody else sets it.
    let _ = opened_broker.set(broker.clone());
    #[cfg(test)]
    tests::panic_if_asked_to(&broker.tasks);
    let code = tokio::select! {
        () = signals.told_to_end() => ExitCode::SUCCESS,
        Some(reason) = opened.fatal.recv() => {
            error!(%reason, "the broker must end");
            opened.abandon().await;
            return Ok(complain(&reason));
        }
        death = http_server.death() => {
            error!(%death, "the broker must end");
            opened.abandon().await;
            return Ok(complain(&death));
        }
    };
    tokio::select! {
        drained = opened.drain() => if let Err(reason) = drained {
            error!(%reason, "the broker must end");
            return Ok(complain(&reason));
        },
        () = signals.told_to_end() => info!("told twice to end: ending now"),
    }
    drop(stop_http);
    Ok(code)
}

/// What clients are told: as configured, else the listen address, where a wildcard stands for this
/// machine itself.
fn advertised(config: &Config, port: u16) -> Advertised {
    config.advertised.clone().unwrap_or_else(|| {
        let host = config.listen.rsplit_once(':').map_or("", |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let host = if matches!(host, "" | "0.0.0.0" | "::") { "127.0.0.1" } else { host };
        Advertised { host: host.to_owned(), port }
    })
}

/// The metadata store and, if it is in this process, what has to be run for its leases to end.
async fn backend(
    config: &MetadataConfig,
) -> Result<(Arc<dyn Backend>, Option<Embedded>), Box<dyn std::error::Error>> {
    let embedded = match config {
        MetadataConfig::Etcd(config) => return Ok((Arc::new(Etcd::new(config).await?), None)),
        MetadataConfig::Embedded(EmbeddedConfig { journal: None, .. }) => Embedded::in_memory(),
        MetadataConfig::Embedded(EmbeddedConfig { journal: Some(path), .. }) => {
            if let Some(folder) = path.parent().filter(|p| *p != Path::new("")) {
                std::fs::create_dir_all(folder)?;
            }
            Embedded::open(path)?
        }
    };
    Ok((Arc::new(embedded.clone()), Some(embedded)))
}

/// The metadata store by connections of its own, which live on the control runtime.
async fn lease_backend(
    config: &MetadataConfig,
    backend: &Arc<dyn Backend>,
    control: &Handle,
) -> Result<Arc<dyn Backend>, Box<dyn std::error::Error>> {
    let MetadataConfig::Etcd(config) = config else { return Ok(backend.clone()) };
    let config = config.clone();
    Ok(Arc::new(control.spawn(async move { Etcd::new(&config).await }).await??))
}

/// The socket on which embedded metadata answer, if that is wanted and the address is free: a
/// broker serves Kafka clients without it, and where an etcd runs already its address is taken.
async fn bind_metadata(config: &MetadataConfig) -> Option<TcpListener> {
    let MetadataConfig::Embedded(EmbeddedConfig { listen: Some(address), .. }) = config else { return None };
    match TcpListener::bind(address).await {
        Ok(listener) => Some(listener),
        Err(error) => {
            warn!(%address, %error, "embedded metadata cannot be read with etcdctl; see --metadata-listen");
            None
        }
    }
}

async fn answer_as_etcd(embedded: Embedded, listener: TcpListener) {
    let address = listener.local_addr().map_or_else(|e| e.to_string(), |a| a.to_string());
    info!(address, "embedded metadata can be read as etcd is");
    if let Err(error) = api::serve(embedded, listener).await {
        warn!(%error, "embedded metadata cannot be read with etcdctl any more");
    }
}

fn store_opener(
    config: StoreConfig,
    metrics: StorageMetrics,
    clock: Arc<dyn Clock>,
    seed: u64,
) -> StoreOpener {
    Box::new(move |cluster| {
        let config = StoreConfig { prefix: cluster.cluster_id.clone(), ..config.clone() };
        if let StoreUrl::File { path } = &config.url {
            std::fs::create_dir_all(path)
                .map_err(|e| StoreError::invalid(format!("{}: {e}", path.display())))?;
        }
        store::open(&config, &metrics, clock.clone(), seed)
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command as Child;
    use std::time::Duration;

    use tokio::time::sleep;

    use super::*;

    /// The folder in which a test that runs as a process of its own keeps everything.
    const FOLDER: &str = "STRANDLINE_TEST_PANIC_IN";
    /// When the task panics after the broker has opened.
    const PANIC_AFTER: Duration = Duration::from_millis(200);
    /// The whole life of that process, with room for a busy machine: well below the half minute for
    /// which it would wait for a lease.
    const ENDS_WITHIN: Duration = Duration::from_secs(15);

    pub(super) fn panic_if_asked_to(tasks: &TaskSet) {
        if std::env::var_os(FOLDER).is_some() {
            tasks.start(TaskKind::Critical, "flush", async {
                sleep(PANIC_AFTER).await;
                panic!("an assertion of a test")
            });
        }
    }

    #[test]
    fn a_process_whose_task_panics_ends_soon_and_says_why() {
        let folder = std::env::temp_dir().join(format!("strandline-panic-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let began = tokio::time::Instant::now();
        let mut child = Child::new(std::env::current_exe().unwrap());
        child.args(["--exact", "process::tests::is_a_process_of_its_own", "--ignored", "--nocapture"]);
        let done = child.env(FOLDER, &folder).output().unwrap();
        let took = began.elapsed();
        let said = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(done.status.code(), Some(1), "{said:?}");
        assert!(took < ENDS_WITHIN, "{took:?}, {said:?}");
        let [_, errors] = &said;
        let why = "strandline: the task \"flush\" panicked: an assertion of a test";
        assert!(errors.contains(why), "{said:?}");
    }

    /// A broker, with everything that belongs to the process around it.
    #[test]
    #[ignore = "is started by the test above"]
    fn is_a_process_of_its_own() {
        let Some(folder) = std::env::var_os(FOLDER) else { return };
        let path = |name: &str| Path::new(&folder).join(name).display().to_string();
        let flags = [
            "--dev".to_owned(),
            "--listen=127.0.0.1:0".to_owned(),
            "--http-listen=127.0.0.1:0".to_owned(),
            "--metadata-listen=127.0.0.1:0".to_owned(),
            format!("--metadata-journal={}", path("journal")),
            format!("--store-url=file://{}", path("objects")),
        ];
        let code = run(None, flags.into()).unwrap();
        std::process::exit(i32::from(code != ExitCode::SUCCESS));
    }
}
