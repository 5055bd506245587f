//! One broker as a process: it is started, killed, stopped and let go on, and told to leave.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use strandline_broker::config::{self, Advertised, Config, Parsed};
use strandline_broker::metrics::Metrics;
use strandline_broker::run::{self, Fatal, Leases, Opened, Parts};
use strandline_broker::tasks::{TaskKind, TaskSet};
use strandline_broker::{Broker, MembershipEnd, server};
use strandline_metadata::backend::Backend;
use strandline_metadata::backend::faulty::{FaultPlan, Faults, FaultyBackend};
use strandline_metadata::keys::Keyspace;
use strandline_storage::clock::Clock;
use strandline_storage::store::{self, FaultHandle, Faulty, Store, StoreConfig, StoreUrl};
use tokio::io::DuplexStream;
use tokio::time::Instant;

use crate::clock::SimClock;
use crate::gate::Gate;
use crate::late::LateCheckpoints;
use crate::link::Link;
use crate::monitor::{self, Monitor, Monitored};
use crate::random::Random;
use crate::remote::{RemoteBackend, RemoteStore};
use crate::switch::Switch;
use crate::trace::Trace;

/// What all nodes of a run have in common.
#[derive(Clone, Debug)]
pub(crate) struct Outside {
    pub(crate) backend: Arc<dyn Backend>,
    /// The same, to put another one in its place.
    pub(crate) switch: Arc<Switch>,
    pub(crate) store: Arc<dyn Store>,
    /// A bucket that is not the cluster's.
    pub(crate) other_store: Arc<dyn Store>,
    pub(crate) trace: Trace,
    pub(crate) began: Instant,
    pub(crate) keys: Keyspace,
    pub(crate) monitor: Monitor,
    /// Draws which answers to checkpoints are late, if any are to be.
    pub(crate) late_checkpoints: Option<Random>,
}

/// A broker's machine. The links and the clock outlive its processes.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: i32,
    pub(crate) to_clients: Link,
    pub(crate) to_etcd: Link,
    pub(crate) to_s3: Link,
    pub(crate) s3_faults: FaultHandle,
    pub(crate) clock: Arc<SimClock>,
    outside: Outside,
    store: Arc<dyn Store>,
    /// Whether its processes are told to use the other bucket.
    is_elsewhere: AtomicBool,
    random: Random,
    flags: Vec<String>,
    process: Mutex<Option<Process>>,
    /// Processes whose place was taken while they were stopped.
    replaced: Mutex<Vec<Process>>,
    starts: AtomicU64,
    /// What goes wrong between every process and etcd.
    etcd_plan: Mutex<FaultPlan>,
    etcd_faults: Mutex<Vec<Faults>>,
}

/// A running process.
#[derive(Debug)]
struct Process {
    number: u64,
    gate: Gate,
    tasks: TaskSet,
    /// Set once it is open.
    opened: Arc<Mutex<Option<Opened>>>,
    broker: Arc<Mutex<Option<Arc<Broker>>>>,
}

impl Node {
    pub(crate) fn new(id: i32, outside: &Outside, random: &Random, flags: &[&str]) -> Arc<Self> {
        let random = random.fork();
        let link = |latency| Link::new(random.fork(), latency);
        let (to_clients, to_etcd, to_s3) = (link((0, 2)), link((0, 3)), link((1, 12)));
        let store = Faulty::new(outside.store.clone(), random.number());
        let s3_faults = store.handle();
        let mut flags: Vec<String> = flags.iter().map(|f| (*f).to_owned()).collect();
        flags.extend([
            "--dev".into(),
            "--node-id".into(),
            id.to_string(),
            "--zone".into(),
            format!("zone-{id}"),
        ]);
        Arc::new(Self {
            id,
            store: Arc::new(RemoteStore::new(Arc::new(store), to_s3.clone(), 0.003)),
            is_elsewhere: AtomicBool::new(false),
            to_clients,
            to_etcd,
            to_s3,
            s3_faults,
            clock: Arc::new(SimClock::new(outside.began)),
            outside: outside.clone(),
            random,
            flags,
            process: Mutex::default(),
            replaced: Mutex::default(),
            starts: AtomicU64::new(0),
            etcd_plan: Mutex::default(),
            etcd_faults: Mutex::default(),
        })
    }

    /// Where clients are told to connect.
    pub(crate) fn address(&self) -> String {
        format!("sim:{}", self.id)
    }

    fn config(&self) -> Config {
        match config::parse(self.flags.clone(), |_| None) {
            Ok(Parsed::Run(config)) => *config,
            Ok(Parsed::Print(text)) => unreachable!("the flags ask for {text}"),
            Err(error) => unreachable!("the flags are wrong: {error}"),
        }
    }

    /// A process's way to etcd.
    fn backend(&self, number: u64) -> Arc<dyn Backend> {
        let process = monitor::Process { node_id: self.id, number };
        let (inner, monitor) = (self.outside.backend.clone(), self.outside.monitor.clone());
        let monitored = Arc::new(Monitored { inner, process, monitor });
        let faulty = Arc::new(FaultyBackend::new(monitored, self.random.number()));
        faulty.faults().set_plan(lock(&self.etcd_plan).clone());
        lock(&self.etcd_faults).push(faulty.faults());
        let delayed = faulty.clone();
        tokio::spawn(async move { delayed.run_delayed().await });
        let Some(random) = self.outside.late_checkpoints.clone() else {
            return Arc::new(RemoteBackend::new(faulty, self.to_etcd.clone()));
        };
        let (link, trace, keys) =
            (self.to_etcd.clone(), self.outside.trace.clone(), self.outside.keys.clone());
        let late = LateCheckpoints { inner: faulty, keys, node_id: self.id, link, random, trace };
        Arc::new(RemoteBackend::new(Arc::new(late), self.to_etcd.clone()))
    }

    /// Changes what goes wrong between this machine and etcd.
    pub(crate) fn set_etcd_plan(&self, plan: FaultPlan) {
        for faults in &*lock(&self.etcd_faults) {
            faults.set_plan(plan.clone());
        }
        *lock(&self.etcd_plan) = plan;
    }

    /// Whether its processes use a bucket that is not the cluster's, from the next start on.
    pub(crate) fn set_elsewhere(&self, is_elsewhere: bool) {
        self.is_elsewhere.store(is_elsewhere, Ordering::Relaxed);
    }

    /// Starts a process, if none runs. One that ends by itself is started again, as a supervisor
    /// does.
    pub(crate) fn start(self: &Arc<Self>) {
        let mut current = self.lock();
        if current.is_some() {
            return;
        }
        let number = self.starts.fetch_add(1, Ordering::Relaxed);
        self.note("starts");
        let gate = Gate::default();
        let behind = gate.clone();
        let tasks = TaskSet::wrapped(move |task| behind.hold(task));
        let opened = Arc::new(Mutex::new(None));
        let broker = Arc::new(Mutex::new(None));
        let opening = self.clone().open(number, tasks.clone(), opened.clone(), broker.clone());
        tasks.start(TaskKind::Background, "process", opening);
        *current = Some(Process { number, gate, tasks, opened, broker });
    }

    async fn open(
        self: Arc<Self>,
        number: u64,
        tasks: TaskSet,
        opened: Arc<Mutex<Option<Opened>>>,
        broker: Arc<Mutex<Option<Arc<Broker>>>>,
    ) {
        let metrics = Metrics::new().expect("metrics have distinct names");
        let elsewhere = self.is_elsewhere.load(Ordering::Relaxed);
        let store = if elsewhere { &self.outside.other_store } else { &self.store };
        let (store, clock, seed) =
            (store.clone(), self.clock.clone() as Arc<dyn Clock>, self.random.number());
        let (store_metrics, store_clock) = (metrics.storage().clone(), clock.clone());
        let store_config = StoreConfig {
            request_timeout: Duration::from_secs(3),
            retry_budget: Duration::from_secs(6),
            ..StoreConfig::new(StoreUrl::Memory)
        };
        let backend = self.backend(number);
        let parts = Parts {
            leases: Leases { backend: backend.clone(), runtime: None },
            aside: None,
            backend,
            open_store: Box::new(move |_| {
                let (metrics, clock) = (&store_metrics, store_clock.clone());
                Ok(store::with_policy(store.clone(), &store_config, metrics, clock, seed))
            }),
            clock,
            metrics,
            advertised: Advertised { host: "sim".to_owned(), port: self.id.unsigned_abs() as u16 },
            metrics_url: String::new(),
            seed,
            tasks: tasks.clone(),
        };
        let reason = match run::open(self.config(), parts).await {
            Ok(mut now_open) => {
                self.note("is open");
                let fatal = std::mem::replace(&mut now_open.fatal, tokio::sync::mpsc::channel(1).1);
                *lock(&broker) = Some(now_open.broker.clone());
                *lock(&opened) = Some(now_open);
                let mut fatal = fatal;
                let Some(reason) = fatal.recv().await else { return };
                if !matches!(reason, Fatal::Membership(MembershipEnd::Replaced(_))) {
                    self.outside.monitor.ended(self.id, &reason);
                }
                reason.to_string()
            }
            Err(error) => {
                self.outside.monitor.ended(self.id, &error);
                error.to_string()
            }
        };
        self.note(&format!("ends: {reason}"));
        let node = self.clone();
        // Not a part of the process: it ends here.
        tokio::spawn(async move {
            if node.kill_if(number) {
                tokio::time::sleep(Duration::from_millis(500)).await;
                node.start();
            }
        });
    }

    /// Kills the process where it stands, as kill -9 does. What it has sent is under way.
    pub(crate) fn kill(&self) -> bool {
        let process = self.lock().take();
        let Some(process) = process else { return false };
        self.note("is killed");
        process.end();
        true
    }

    fn kill_if(&self, number: u64) -> bool {
        if self.lock().as_ref().is_some_and(|p| p.number == number) {
            return self.kill();
        }
        let mut replaced = lock(&self.replaced);
        let Some(at) = replaced.iter().position(|p| p.number == number) else { return false };
        replaced.remove(at).end();
        true
    }

    /// Stops the process, and starts another one in its place. Gives a number for
    /// [`Node::resume_replaced`].
    pub(crate) fn replace(self: &Arc<Self>) -> Option<u64> {
        let process = self.lock().take()?;
        self.note("is stopped, and another process starts in its place");
        process.gate.close();
        let number = process.number;
        lock(&self.replaced).push(process);
        self.start();
        Some(number)
    }

    /// Lets a process go on whose place was taken.
    pub(crate) fn resume_replaced(&self, number: u64) {
        if let Some(process) = lock(&self.replaced).iter().find(|p| p.number == number) {
            self.note("finds its old process going on");
            process.gate.open();
        }
    }

    /// Whether a process still runs whose place was taken.
    pub(crate) fn has_replaced(&self) -> bool {
        !lock(&self.replaced).is_empty()
    }

    fn note(&self, what: &str) {
        self.outside.trace.note(&format!("broker {} {what}", self.id));
    }

    /// Stops the process.
    pub(crate) fn pause(&self) {
        if let Some(process) = &*self.lock() {
            self.note("is stopped");
            process.gate.close();
        }
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        if let Some(process) = &*self.lock() {
            self.note("goes on");
            process.gate.open();
        }
    }

    /// Tells the process to leave, and waits until it has, or until it was killed meanwhile.
    pub(crate) async fn drain(&self) {
        let found = self.lock().as_ref().map(|p| (p.number, p.tasks.clone(), lock(&p.opened).take()));
        let Some((number, tasks, Some(opened))) = found else { return };
        self.note("is told to leave");
        let (done, is_done) = tokio::sync::oneshot::channel();
        tasks.start(TaskKind::Background, "drain", async move {
            // A broker that cannot go on ends as well.
            let _ = opened.drain().await;
            let _ = done.send(());
        });
        // The end of its tasks, whichever way, is the end of the channel.
        let _ = is_done.await;
        if self.kill_if(number) {
            self.note("has left");
        }
    }

    /// Whether it serves clients.
    pub(crate) fn is_open(&self) -> bool {
        self.broker().is_some()
    }

    /// The broker, once it is open.
    pub(crate) fn broker(&self) -> Option<Arc<Broker>> {
        self.lock().as_ref().and_then(|p| lock(&p.broker).clone())
    }

    /// Takes a connection. False if nobody listens.
    pub(crate) fn accept(&self, io: DuplexStream, peer: String) -> bool {
        let current = self.lock();
        let Some(process) = &*current else { return false };
        let Some(broker) = lock(&process.broker).clone() else { return false };
        process.tasks.start(TaskKind::Connection, "connection", server::serve(broker, io, peer));
        true
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        lock(&self.process)
    }
}

impl Process {
    fn end(self) {
        // A gate that stays closed would keep what is behind it from being dropped.
        self.tasks.abort_all();
        self.gate.open();
        drop(lock(&self.opened).take());
        drop(lock(&self.broker).take());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
