//! One run: a cluster, its clients, the adversary, and then the reckoning.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures::FutureExt as _;
use kafka_protocol::records::Compression;
use strandline_metadata::backend::Backend;
use strandline_metadata::backend::embedded::Embedded;
use strandline_metadata::keys::Keyspace;
use strandline_metadata::state::Topic;
use strandline_storage::store::ObjectStoreBackend;
use strandline_tests::history::History;
use strandline_tests::producer::{self, Options};
use strandline_tests::table::{self, Table};
use strandline_tests::transactions::Payments;
use strandline_tests::workload::create_topic;
use strandline_tests::{surroundings, tail};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::clock::SimClock;
use crate::members::Members;
use crate::monitor::Monitor;
use crate::network::Network;
use crate::node::{Node, Outside};
use crate::random::Random;
use crate::standalone::Standalone;
use crate::switch::Switch;
use crate::trace::Trace;
use crate::{Outcome, Plan, adversary, check, churn, stranger, wanderer};

/// The topic that everybody works on.
pub(crate) const TOPIC: &str = "t";
/// A compacted one, that only some seeds have.
const TABLE: &str = "table";
const TABLE_PARTITIONS: i32 = 2;
const TABLE_WRITERS: u32 = 2;
/// How long its tombstones stay, and for how long at least by a clock that may just be trusted.
const TABLE_RETENTION: Duration = Duration::from_secs(40);
const TABLE_KEPT: Duration = Duration::from_secs(9);
/// Partitions of the topics that are written to in transactions, and who writes to the first of
/// them.
const PAYMENTS_PARTITIONS: i32 = 2;
const PAYMENTS_FEEDERS: u32 = 2;
/// The cluster's name.
const CLUSTER: &str = "sim";
/// Time for everything that was sent to be acknowledged, once nothing goes wrong any more.
const FINISH: Duration = Duration::from_mins(1);
/// After so long producers are forgotten: longer than any batch is under way.
const EXPIRATION: Duration = Duration::from_mins(2);

/// A cluster and what was seen of it.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) outside: Outside,
    pub(crate) nodes: Vec<Arc<Node>>,
    pub(crate) history: History,
    pub(crate) random: Random,
    /// For what only few seeds have.
    rare: Random,
    /// What is known of the compacted topic, if there is one.
    pub(crate) table: Option<Table>,
    /// What is known of the topics that are written to in transactions, if there are any.
    pub(crate) payments: Option<Payments>,
}

/// The clients of a run, by name.
#[derive(Debug, Default)]
struct Clients {
    tasks: JoinSet<String>,
    running: BTreeSet<String>,
}

impl Clients {
    fn start(&mut self, name: String, client: impl Future<Output = ()> + Send + 'static) {
        self.running.insert(name.clone());
        self.tasks.spawn(client.map(|()| name));
    }

    /// Returns once all are done.
    async fn done(&mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            // One that panicked is done as well: panics are noted elsewhere.
            if let Ok(name) = ended {
                self.running.remove(&name);
            }
        }
    }

    /// Those that are not known to be done.
    fn running(&self) -> &BTreeSet<String> {
        &self.running
    }
}

impl World {
    fn new(plan: &Plan) -> Self {
        let (random, rare) = (Random::new(plan.seed), Random::new(plan.rare_seed));
        let embedded = Embedded::in_memory();
        let leases = embedded.clone();
        tokio::spawn(async move { leases.run_leases().await });
        let switch = Arc::new(Switch::new(embedded));
        let history = History::default();
        let keys = Keyspace::new(CLUSTER).expect("it is a plain name");
        let outside = Outside {
            monitor: Monitor::new(keys.clone(), history.clone()),
            keys,
            backend: switch.clone(),
            switch,
            store: Arc::new(ObjectStoreBackend::memory()),
            other_store: Arc::new(ObjectStoreBackend::memory()),
            trace: Trace::new(),
            began: Instant::now(),
            late_checkpoints: plan.late_checkpoints.then(|| rare.fork()),
        };
        let snapshot_records = plan.snapshot_records.to_string();
        let expiration_ms = EXPIRATION.as_millis().to_string();
        let flags = [
            ["--cluster", CLUSTER],
            ["--producer-id-expiration-ms", &expiration_ms],
            ["--linger-ms", "30"],
            ["--put-budget-per-s", "50"],
            ["--job-interval-ms", "700"],
            ["--delete-delay-ms", "12000"],
            ["--merge-interval-ms", "900"],
            ["--snapshot-records", &snapshot_records],
            ["--snapshot-retention-hours", "0"],
            ["--drain-ms", "300"],
            ["--group-initial-rebalance-delay-ms", "100"],
        ];
        let nodes: Vec<Arc<Node>> =
            (1..=plan.brokers).map(|id| Node::new(id, &outside, &random, flags.as_flattened())).collect();
        let addresses: Vec<String> = nodes.iter().map(|n| n.address()).collect();
        let payments = (plan.transactions > 0)
            .then(|| Payments::new("payments", PAYMENTS_PARTITIONS, addresses.clone(), history.clone()));
        let table = (plan.tables > 0)
            .then(|| Table::new(TABLE, TABLE_PARTITIONS, addresses, TABLE_KEPT, history.clone()));
        Self { plan: plan.clone(), outside, nodes, history, random, rare, table, payments }
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|n| n.address()).collect()
    }

    /// Starts every broker that does not run, and waits until all are open.
    pub(crate) async fn all_open(&self) -> bool {
        for node in &self.nodes {
            node.start();
        }
        let open = async {
            while !self.nodes.iter().all(|n| n.is_open()) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(FINISH, open).await.is_ok()
    }

    fn start_producers(
        &self,
        stop: &watch::Sender<bool>,
        quiet: &watch::Sender<bool>,
        clients: &mut Clients,
    ) {
        for number in 0..self.plan.idempotent + self.plan.plain {
            let mut options = Options::new(number, TOPIC, self.plan.partitions, self.addresses());
            options.pause = self.random.ms(20, 400);
            options.max_value_bytes = 200;
            options.request_timeout = Duration::from_secs(4);
            options.delivery_timeout = FINISH;
            options.codec = *self.random.pick(&[Compression::None, Compression::Lz4]);
            options.restless = self.random.chance(0.3);
            options.quiet = Some(quiet.subscribe());
            if number >= self.plan.idempotent {
                options = options.plain();
            }
            let producing = producer::run(options, self.history.clone(), stop.subscribe());
            clients.start(format!("producer {number}"), producing);
        }
    }

    /// Consumers that commit while coordinators come back.
    fn start_standalone(&self, stop: &watch::Sender<bool>, clients: &mut Clients) {
        // What could be lost is the offset of another partition.
        for partition in (0..self.plan.partitions).filter(|_| self.plan.comebacks > 0) {
            let (addresses, history) = (self.addresses(), self.history.clone());
            let consumer = Standalone { addresses, partition, history, stop: stop.subscribe() };
            clients.start(format!("standalone consumer {partition}"), consumer.run(self.rare.fork()));
        }
    }

    /// Those who work on the compacted topic.
    async fn start_table(&self, stop: &watch::Sender<bool>, clients: &mut Clients) {
        let Some(table) = &self.table else { return };
        let retention_ms = TABLE_RETENTION.as_millis() as u64;
        table::create(&self.addresses(), TABLE, TABLE_PARTITIONS, retention_ms).await;
        for number in 0..TABLE_WRITERS {
            let pause = self.rare.ms(50, 400);
            let writing = table.clone().write(number, self.rare.number(), pause, stop.subscribe());
            clients.start(format!("table writer {number}"), writing);
        }
        let reading = table.clone().read(self.rare.ms(100, 1_000), stop.subscribe());
        clients.start("table reader".to_owned(), reading);
        let trimming = table.clone().trim(self.rare.number(), self.rare.ms(2_000, 20_000), stop.subscribe());
        clients.start("table trimmer".to_owned(), trimming);
    }

    /// Those who work in transactions.
    async fn start_payments(&self, stop: &watch::Sender<bool>, clients: &mut Clients) {
        let Some(payments) = &self.payments else { return };
        payments.create().await;
        for number in 0..PAYMENTS_FEEDERS {
            let (seed, pause) = (self.rare.number(), self.rare.ms(100, 600));
            clients.start(
                format!("feeder {number}"),
                payments.clone().feed(number, seed, pause, stop.subscribe()),
            );
        }
        for partition in 0..PAYMENTS_PARTITIONS {
            // Two of them have the same transactional id.
            for number in 0..2 {
                let (seed, pause) = (self.rare.number(), self.rare.ms(100, 600));
                let transforming = payments.clone().transform(partition, seed, pause, stop.subscribe());
                clients.start(format!("transformer {partition}-{number}"), transforming);
            }
        }
        for address in self.addresses() {
            let name = format!("reader of what is committed on {address}");
            let pause = self.rare.ms(100, 1_000);
            clients.start(name, payments.clone().follow(address, pause, stop.subscribe()));
        }
    }

    /// For what only few seeds have.
    pub(crate) fn rare(&self) -> &Random {
        &self.rare
    }

    /// Nobody produces for so long that all producers are forgotten; then they go on.
    async fn be_silent(&self, quiet: &watch::Sender<bool>) {
        quiet.send_replace(true);
        self.outside.trace.note("producers are silent");
        sleep(FINISH + EXPIRATION * 3 / 2).await;
        let states = self.nodes.iter().filter_map(|n| Some((n.id, n.broker()?.replica().state())));
        for (id, state) in states {
            let partitions = state.topics().values().flat_map(Topic::partitions);
            let producers = partitions.flat_map(|partition| partition.producers().keys());
            // Those of transactional ids go on.
            let known = producers.filter(|id| !state.transactional().contains_key(*id)).count();
            // Whoever comes to run the jobs begins to count the silence anew; where checkpoints are
            // late, nobody runs them for long enough.
            if known > 0 && !self.plan.late_checkpoints {
                let what = format!("broker {id} remembers {known} producers after the silence");
                self.history.anomaly("not forgotten", what);
            }
        }
        self.outside.trace.note("producers go on");
        quiet.send_replace(false);
    }

    /// Returns once everything that is to go wrong has, and is healed; with a backup of etcd that
    /// was made meanwhile, if one was.
    async fn make_trouble(&self) -> Option<Embedded> {
        let (nodes, trace) = (self.nodes.clone(), self.outside.trace.clone());
        let backend: Arc<dyn Backend> = self.outside.backend.clone();
        let troubles =
            adversary::run(nodes.clone(), backend, self.random.fork(), trace.clone(), self.plan.faults);
        let comebacks =
            adversary::comebacks(nodes.clone(), self.rare.fork(), trace.clone(), self.plan.comebacks);
        let ((), (), backup) = tokio::join!(troubles, comebacks, stranger::backup(self));
        adversary::heal(&nodes, &trace);
        backup
    }
}

/// Does everything, and says how it ended.
pub(crate) async fn run(plan: &Plan) -> Outcome {
    let world = World::new(plan);
    let trace = world.outside.trace.clone();
    let network = Network {
        nodes: world.nodes.iter().map(|n| (n.id, n.clone())).collect(),
        clock: SimClock::new(world.outside.began),
        connections: AtomicU64::new(0),
    };
    surroundings::set(Some(Rc::new(network)));
    if world.all_open().await {
        work(&world).await;
    } else {
        world.history.anomaly("does not start", "the brokers are not open");
    }
    if !world.history.lock().anomalies.is_empty() {
        check::describe(&world);
    }
    let digest = check::digest(&world).await;
    let anomalies: Vec<String> =
        world.history.lock().anomalies.iter().map(|a| format!("{}: {}", a.name, a.what)).collect();
    let record = anomalies.iter().find_map(|text| History::named_in(text));
    Outcome {
        anomalies,
        trace: trace.lines(),
        story: record.map(|mark| world.history.story_of(mark)).unwrap_or_default(),
        operations: world.history.operations(),
        digest,
        acked: world.history.acked_records(),
        seconds: world.outside.began.elapsed().as_secs(),
    }
}

async fn work(world: &World) {
    let (plan, history) = (&world.plan, &world.history);
    create_topic(&world.addresses(), TOPIC, plan.partitions).await;
    let stop = watch::Sender::new(false);
    let mut clients = Clients::default();
    let quiet = watch::Sender::new(false);
    world.start_producers(&stop, &quiet, &mut clients);
    for address in world.addresses() {
        let (topic, history) = (TOPIC.to_owned(), history.clone());
        let name = format!("reader of {address}");
        clients.start(name, tail::follow(address, topic, plan.partitions, history, stop.subscribe()));
    }
    let (topic, history_of_wanderer) = (TOPIC.to_owned(), history.clone());
    let wandering = wanderer::run(
        world.addresses(),
        topic,
        plan.partitions,
        history_of_wanderer,
        stop.subscribe(),
        world.random.fork(),
    );
    clients.start("wanderer".to_owned(), wandering);
    let members = Members {
        addresses: world.addresses(),
        partitions: plan.partitions,
        history: history.clone(),
        ledger: Arc::default(),
        stop: stop.subscribe(),
    };
    for number in 0..plan.members {
        clients.start(format!("member {number}"), members.clone().run(number, world.random.fork()));
    }
    if plan.topics_churn {
        let random = world.random.fork();
        let trace = world.outside.trace.clone();
        let churning = churn::run(world.addresses(), history.clone(), stop.subscribe(), random, trace);
        clients.start("churn".to_owned(), churning);
    }
    world.start_standalone(&stop, &mut clients);
    world.start_table(&stop, &mut clients).await;
    world.start_payments(&stop, &mut clients).await;
    let mut backup = world.make_trouble().await;
    for _ in 0..plan.silences {
        world.be_silent(&quiet).await;
        backup = world.make_trouble().await;
    }
    sleep(world.random.ms(500, 3000)).await;
    stop.send_replace(true);
    if timeout(FINISH * 2, clients.done()).await.is_err() {
        let (who, errors) = (clients.running(), history.lock().errors.clone());
        history.anomaly("stuck", format!("{who:?} are not done long after everything healed; {errors:?}"));
        return;
    }
    if plan.members > 0 {
        members.check().await;
    }
    stranger::visit(world, backup).await;
    check::everything(world).await;
}
