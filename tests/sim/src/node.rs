//! One broker as a process: it is started, killed, stopped and let go on, and told to leave.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use strandline_broker::config::{self, Advertised, Config, Parsed};
use strandline_broker::metrics::Metrics;
use strandline_broker::run::{self, Opened, Parts};
use strandline_broker::tasks::TaskSet;
use strandline_broker::{Broker, server};
use strandline_metadata::backend::Backend;
use strandline_metadata::backend::faulty::{Faults, FaultyBackend};
use strandline_storage::clock::Clock;
use strandline_storage::store::{self, FaultHandle, Faulty, Store, StoreConfig, StoreUrl};
use tokio::io::DuplexStream;
use tokio::time::Instant;

use crate::clock::SimClock;
use crate::gate::Gate;
use crate::link::Link;
use crate::random::Random;
use crate::remote::{RemoteBackend, RemoteStore};
use crate::trace::Trace;

/// What all nodes of a run have in common.
#[derive(Clone, Debug)]
pub(crate) struct Outside {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) trace: Trace,
    pub(crate) began: Instant,
}

/// A broker's machine. The links and the clock outlive its processes.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: i32,
    pub(crate) to_clients: Link,
    pub(crate) to_etcd: Link,
    pub(crate) to_s3: Link,
    pub(crate) etcd_faults: Faults,
    pub(crate) s3_faults: FaultHandle,
    pub(crate) clock: Arc<SimClock>,
    backend: Arc<dyn Backend>,
    store: Arc<dyn Store>,
    trace: Trace,
    random: Random,
    flags: Vec<String>,
    process: Mutex<Option<Process>>,
    starts: AtomicU64,
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
        let faulty = FaultyBackend::new(outside.backend.clone(), random.number());
        let etcd_faults = faulty.faults();
        let faulty = Arc::new(faulty);
        let delayed = faulty.clone();
        tokio::spawn(async move { delayed.run_delayed().await });
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
            backend: Arc::new(RemoteBackend::new(faulty, to_etcd.clone())),
            store: Arc::new(RemoteStore::new(Arc::new(store), to_s3.clone(), 0.003)),
            to_clients,
            to_etcd,
            to_s3,
            etcd_faults,
            s3_faults,
            clock: Arc::new(SimClock::new(outside.began)),
            trace: outside.trace.clone(),
            random,
            flags,
            process: Mutex::default(),
            starts: AtomicU64::new(0),
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

    /// Starts a process, if none runs. One that ends by itself is started again, as a supervisor does.
    pub(crate) fn start(self: &Arc<Self>) {
        let mut current = self.lock();
        if current.is_some() {
            return;
        }
        let number = self.starts.fetch_add(1, Ordering::Relaxed);
        self.trace.note(&format!("broker {} starts", self.id));
        let gate = Gate::default();
        let behind = gate.clone();
        let tasks = TaskSet::wrapped(move |task| behind.hold(task));
        let opened = Arc::new(Mutex::new(None));
        let broker = Arc::new(Mutex::new(None));
        let opening = self.clone().open(number, tasks.clone(), opened.clone(), broker.clone());
        tasks.start("process", opening);
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
        let (store, clock, seed) =
            (self.store.clone(), self.clock.clone() as Arc<dyn Clock>, self.random.number());
        let (store_metrics, store_clock) = (metrics.storage().clone(), clock.clone());
        let store_config = StoreConfig {
            request_timeout: Duration::from_secs(3),
            retry_budget: Duration::from_secs(6),
            ..StoreConfig::new(StoreUrl::Memory)
        };
        let parts = Parts {
            backend: self.backend.clone(),
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
                self.trace.note(&format!("broker {} is open", self.id));
                let fatal = std::mem::replace(&mut now_open.fatal, tokio::sync::mpsc::channel(1).1);
                *lock(&broker) = Some(now_open.broker.clone());
                *lock(&opened) = Some(now_open);
                let mut fatal = fatal;
                match fatal.recv().await {
                    Some(reason) => reason.to_string(),
                    None => return,
                }
            }
            Err(error) => error.to_string(),
        };
        self.trace.note(&format!("broker {} ends: {reason}", self.id));
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
        self.trace.note(&format!("broker {} is killed", self.id));
        process.end();
        true
    }

    fn kill_if(&self, number: u64) -> bool {
        let is_same = self.lock().as_ref().is_some_and(|p| p.number == number);
        is_same && self.kill()
    }

    /// Stops the process.
    pub(crate) fn pause(&self) {
        if let Some(process) = &*self.lock() {
            self.trace.note(&format!("broker {} is stopped", self.id));
            process.gate.close();
        }
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        if let Some(process) = &*self.lock() {
            self.trace.note(&format!("broker {} goes on", self.id));
            process.gate.open();
        }
    }

    /// Tells the process to leave, and waits until it has, or until it was killed meanwhile.
    pub(crate) async fn drain(&self) {
        let found = self.lock().as_ref().map(|p| (p.number, p.tasks.clone(), lock(&p.opened).take()));
        let Some((number, tasks, Some(opened))) = found else { return };
        self.trace.note(&format!("broker {} is told to leave", self.id));
        let (done, is_done) = tokio::sync::oneshot::channel();
        tasks.start("drain", async move {
            opened.drain().await;
            let _ = done.send(());
        });
        // The end of its tasks, whichever way, is the end of the channel.
        let _ = is_done.await;
        if self.kill_if(number) {
            self.trace.note(&format!("broker {} has left", self.id));
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
        process.tasks.start("connection", server::serve(broker, io, peer));
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
