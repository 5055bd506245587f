//! One round: load on topics of its own, faults, and in the end, when all is quiet, every check
//! that there is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::IncrementalAlterConfigsRequest;
use kafka_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::records::Compression;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use strandline_tests::checker::{self, Contents};
use strandline_tests::client::{Client, ClientError, text};
use strandline_tests::cluster::Cluster;
use strandline_tests::history::History;
use strandline_tests::process::{eventually, was_killed};
use strandline_tests::producer::{self, Options};
use strandline_tests::table::{self, Table};
use strandline_tests::tail;
use strandline_tests::transactions::Payments;
use strandline_tests::workload::create_topic;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::churn::Churn;
use crate::faults::{self, Fault, RESIDENTS, Surroundings};
use crate::members::{Members, Phase, Protocol};
use crate::story::Story;
use crate::stranger;

const PARTITIONS: i32 = 4;
const MEMBERS: u32 = 3;
const WRITERS: usize = 3;
/// Records of this topic are kept for so long.
const SHORT_MS: u64 = 15_000;
/// Partitions of the compacted topic, and its writers.
const TABLE_PARTITIONS: i32 = 2;
const TABLE_WRITERS: u32 = 2;
/// Tombstones stay there for so long, and by a clock that may just be trusted at least for so long.
const TABLE_RETENTION_MS: u64 = 60_000;
const TABLE_KEPT: Duration = Duration::from_secs(25);
/// Partitions of the topics that are written to in transactions, and who writes to the first of
/// them.
const PAYMENTS_PARTITIONS: i32 = 2;
const PAYMENTS_FEEDERS: u32 = 2;
/// Time in which whatever is dirty is compacted.
const COMPACTION: Duration = Duration::from_secs(15);
/// Time for anything to happen that must happen once everything is well again.
const PATIENCE: Duration = Duration::from_mins(4);
/// What a broker says that must not happen, whatever is done to it.
const NEVER_SAID: [&str; 4] =
    ["panicked", "this broker derived", "was changed by somebody else", "cannot be encoded"];

/// What a round has done.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) records: u64,
    pub(crate) commits: u64,
}

/// A round at work.
pub(crate) struct Round {
    number: u32,
    story: Arc<Story>,
    /// Kept whole.
    main: History,
    main_topic: String,
    /// Loses its oldest records all the time.
    short: History,
    short_topic: String,
    /// Compacted all the time.
    table: Table,
    /// Written to in transactions, if the cluster has them.
    payments: Option<Payments>,
    groups: Vec<Members>,
    churn: Churn,
    stop: watch::Sender<bool>,
    phase: watch::Sender<Phase>,
    producers: JoinSet<()>,
    others: JoinSet<()>,
    members: JoinSet<()>,
}

impl Round {
    /// Creates the topics and puts the load on them. A cluster that an older build has founded has
    /// no transactions.
    pub(crate) async fn start(
        cluster: &Cluster,
        number: u32,
        seed: u64,
        has_transactions: bool,
        story: Arc<Story>,
    ) -> Self {
        let addresses = cluster.addresses();
        let (main_topic, short_topic) = (format!("main-{number}"), format!("short-{number}"));
        create_topic(&addresses, &main_topic, PARTITIONS).await;
        create_topic(&addresses, &short_topic, 2).await;
        let table_topic = format!("table-{number}");
        table::create(&addresses, &table_topic, TABLE_PARTITIONS, TABLE_RETENTION_MS).await;
        let (main, short, churned) = (History::default(), History::default(), History::default());
        let table =
            Table::new(&table_topic, TABLE_PARTITIONS, addresses.clone(), TABLE_KEPT, History::default());
        let payments = has_transactions.then(|| {
            let name = format!("payments-{number}");
            Payments::new(&name, PAYMENTS_PARTITIONS, addresses.clone(), History::default())
        });
        if let Some(payments) = &payments {
            payments.create().await;
        }
        let (stop, phase) = (watch::Sender::new(false), watch::Sender::new(Phase::Wild));
        let churn = Churn {
            topic: format!("churn-{number}"),
            addresses: addresses.clone(),
            history: churned.clone(),
            acked: Arc::default(),
            stop: stop.subscribe(),
        };
        let groups = [Protocol::Classic, Protocol::Consumer].map(|protocol| Members {
            group: format!("{protocol:?}-{number}").to_lowercase(),
            protocol,
            topic: main_topic.clone(),
            partitions: PARTITIONS,
            addresses: addresses.clone(),
            history: main.clone(),
            ledger: Arc::default(),
            stop: phase.subscribe(),
        });
        story.watch(vec![
            (main_topic.clone(), main.clone()),
            (short_topic.clone(), short.clone()),
            (churn.topic.clone(), churned),
        ]);
        let mut round = Self {
            number,
            story,
            main,
            main_topic,
            short,
            short_topic,
            table,
            payments,
            groups: groups.into(),
            churn,
            stop,
            phase,
            producers: JoinSet::new(),
            others: JoinSet::new(),
            members: JoinSet::new(),
        };
        round.load(&addresses, seed);
        round.retain(&addresses, SHORT_MS.to_string()).await;
        round
    }

    fn load(&mut self, addresses: &[String], seed: u64) {
        let like = Options {
            request_timeout: Duration::from_secs(4),
            // How long is not the question here: whether it goes on is asked when everything is
            // well again.
            delivery_timeout: Duration::from_hours(1),
            pause: Duration::from_millis(100),
            ..Options::new(0, &self.main_topic, PARTITIONS, addresses.to_vec())
        };
        let main = |number| Options { number, ..like.clone() };
        self.produce(main(0), false);
        self.produce(Options { codec: Compression::Zstd, ..main(1) }, false);
        self.produce(Options { in_flight: 1, codec: Compression::Gzip, ..main(2) }, false);
        self.produce(Options { restless: true, codec: Compression::Lz4, ..main(3) }, false);
        self.produce(Options { codec: Compression::Snappy, ..main(4) }.plain(), false);
        let short = Options {
            topic: self.short_topic.clone(),
            partitions: vec![0, 1],
            pause: Duration::from_millis(200),
            ..like
        };
        self.produce(Options { number: 0, ..short.clone() }, true);
        self.produce(Options { number: 1, ..short }.plain(), true);
        for address in addresses {
            let (topic, history, stop) = (self.main_topic.clone(), self.main.clone(), self.stop.subscribe());
            self.others.spawn(tail::follow(address.clone(), topic, PARTITIONS, history, stop));
        }
        for group in &self.groups {
            for number in 0..MEMBERS {
                self.members.spawn(group.clone().run(number, seed));
            }
        }
        for number in 0..TABLE_WRITERS {
            let (seed, pause) = (seed.wrapping_add(number.into()), Duration::from_millis(150));
            self.producers.spawn(self.table.clone().write(number, seed, pause, self.stop.subscribe()));
        }
        self.others.spawn(self.table.clone().read(Duration::from_millis(700), self.stop.subscribe()));
        self.others.spawn(self.table.clone().trim(seed, Duration::from_secs(9), self.stop.subscribe()));
        self.pay(addresses, seed);
        self.producers.spawn(self.churn.clone().administer(seed));
        for writer in 0..WRITERS {
            self.producers.spawn(self.churn.clone().write(writer));
        }
    }

    /// Works in transactions. Two have the transactional id of each partition.
    fn pay(&mut self, addresses: &[String], seed: u64) {
        let Some(payments) = self.payments.clone() else { return };
        for number in 0..PAYMENTS_FEEDERS {
            let (seed, pause) = (seed.wrapping_add(number.into()), Duration::from_millis(200));
            self.producers.spawn(payments.clone().feed(number, seed, pause, self.stop.subscribe()));
        }
        for partition in 0..PAYMENTS_PARTITIONS {
            for number in 0..2 {
                let (seed, pause) = (seed.rotate_left(8 + number), Duration::from_millis(300));
                self.producers.spawn(payments.clone().transform(
                    partition,
                    seed,
                    pause,
                    self.stop.subscribe(),
                ));
            }
        }
        for address in addresses {
            let (address, pause) = (address.clone(), Duration::from_millis(500));
            self.others.spawn(payments.clone().follow(address, pause, self.stop.subscribe()));
        }
    }

    fn produce(&mut self, options: Options, short: bool) {
        let history = if short { self.short.clone() } else { self.main.clone() };
        self.producers.spawn(producer::run(options, history, self.stop.subscribe()));
    }

    /// Hurts the cluster for so long.
    pub(crate) async fn hurt(
        &self,
        cluster: &mut Cluster,
        surroundings: &mut Surroundings,
        rng: &mut StdRng,
        length: Duration,
    ) {
        self.story.say(&format!("round {}", self.number));
        let until = Instant::now() + length;
        while Instant::now() < until {
            self.step(cluster, surroundings, rng).await;
            let gap = Duration::from_millis(rng.random_range(0..2_500));
            sleep(gap).await;
        }
    }

    /// Some faults at a time.
    async fn step(&self, cluster: &mut Cluster, surroundings: &mut Surroundings, rng: &mut StdRng) {
        let count = [1, 1, 1, 1, 2, 2, 2, 3][rng.random_range(0..8)];
        let mut faults: Vec<Fault> = Vec::new();
        while faults.len() < count {
            let fault = Fault::any(rng, surroundings.older.is_some());
            let claims = fault.claims();
            if faults.iter().flat_map(Fault::claims).all(|claimed| !claims.contains(&claimed)) {
                faults.push(fault);
            }
        }
        let moment = Duration::from_millis(match rng.random_range(0..10) {
            0..6 => rng.random_range(0..2_500),
            // Longer than a lease.
            6..9 => rng.random_range(2_500..6_000),
            _ => rng.random_range(6_000..15_000),
        });
        for fault in &faults {
            self.story.fault(&format!("{fault}, for {} ms", moment.as_millis()));
            fault.begin(cluster, surroundings).await;
        }
        let until = Instant::now() + moment;
        while Instant::now() < until {
            let slice = Duration::from_millis(rng.random_range(50..400));
            sleep(slice.min(until.saturating_duration_since(Instant::now()))).await;
            for fault in &faults {
                fault.tick(cluster, rng);
            }
        }
        faults.shuffle(rng);
        for fault in &faults {
            fault.end(cluster, surroundings).await;
        }
        for fault in &faults {
            fault.settle(cluster).await;
        }
        assert_all_run(cluster);
    }

    /// Heals everything, waits until all that was sent has its answer, and checks whatever can be
    /// checked.
    pub(crate) async fn finish(
        mut self,
        cluster: &mut Cluster,
        is_last: bool,
        are_builds_mixed: bool,
    ) -> Done {
        self.story.say("all is healed");
        faults::heal(cluster).await;
        cluster.wait_all_ready().await;
        assert_all_run(cluster);
        // It lacks all that is acknowledged from now on.
        let backup = cluster.folder().join(format!("backup-{}", self.number));
        cluster.etcd().back_up(&backup);
        for history in [&self.main, &self.short] {
            let goal = history.acked_records() + 100;
            eventually("records are acknowledged again", PATIENCE, async || {
                (history.acked_records() >= goal).then_some(())
            })
            .await;
        }
        self.phase.send_replace(Phase::Calm);
        self.stop.send_replace(true);
        join("producers", &mut self.producers).await;
        join("consumers", &mut self.others).await;
        cluster.wait_all_ready().await;
        let live = cluster.live_addresses();
        let ends = self.ends(&live[0]).await;
        for group in &self.groups {
            self.catch_up(group, &ends).await;
        }
        self.phase.send_replace(Phase::Over);
        join("members", &mut self.members).await;
        self.story.say("all is quiet");
        let (commits, all) = self.check(cluster, &live, are_builds_mixed).await;
        stranger::restored(cluster, &backup, &self.story).await;
        if !are_builds_mixed {
            // Objects of a cluster that an older build has founded do not say which they are.
            stranger::exchanged(cluster, &self.stranger_topic(), &self.story).await;
        }
        stranger::wrong_bucket(cluster, &self.story).await;
        checker::check_same(&live[0], &live[0], &self.main_topic, &all, &self.main).await;
        self.main.assert_clean();
        let records = self.main.acked_records() + self.short.acked_records();
        self.clear(cluster, is_last).await;
        self.story.say(&format!("round {} is clean: {records} records, {commits} commits", self.number));
        cluster.forget_logs();
        Done { records, commits }
    }

    /// Waits until a group has read and committed everything. However long that takes on this
    /// machine, it goes on.
    async fn catch_up(&self, group: &Members, ends: &[i64]) {
        let mut left = i64::MAX;
        let mut until = Instant::now() + PATIENCE;
        while left > 0 {
            let now = group.left(ends).await;
            if now < left {
                (left, until) = (now, Instant::now() + PATIENCE);
            }
            assert!(Instant::now() < until, "{}, not {ends:?}, and nothing for {PATIENCE:?}", group.place());
            sleep(Duration::from_millis(300)).await;
        }
    }

    /// A topic for what strangers do.
    fn stranger_topic(&self) -> String {
        format!("stranger-{}", self.number)
    }

    /// Every check. Gives the commits of groups, and what is in the main topic.
    async fn check(
        &self,
        cluster: &mut Cluster,
        live: &[String],
        are_builds_mixed: bool,
    ) -> (u64, Vec<Contents>) {
        let all = checker::check(live, &self.main_topic, PARTITIONS, &self.main).await;
        self.retain(live, "-1".to_owned()).await;
        // Whoever deletes has heard of it by then.
        sleep(Duration::from_secs(3)).await;
        checker::check(live, &self.short_topic, 2, &self.short).await;
        sleep(COMPACTION).await;
        // What could not be read once is left alone for longer than this waits.
        let mut left_alone = 0.0;
        for broker in 0..cluster.len() {
            if !cluster.is_running(broker) {
                continue;
            }
            left_alone += cluster.metric(broker, "strandline_merge_unreadable_total", "").await;
        }
        // Below its feature level nothing is compacted.
        self.table.check(live, !are_builds_mixed && left_alone == 0.0).await;
        if let Some(payments) = &self.payments {
            payments.check().await;
        }
        let mut commits = 0;
        for group in &self.groups {
            commits += group.check().await;
        }
        let (records, lives) = self.churn.check(live).await;
        self.assert_clean(cluster);
        // A broker that starts now has nothing in memory: it reads the log and every object.
        let last = cluster.restart_a_live_one().await;
        checker::check_same(&last, &live[0], &self.main_topic, &all, &self.main).await;
        self.assert_clean(cluster);
        let (code, said) = cluster.fsck(&[]).await;
        assert_eq!(code, Some(0), "the audit found something: {said}");
        self.story.say(&format!(
            "{records} records in {lives} lives of a topic; {} changes of a compacted one; {} transactions committed; fsck: {}",
            self.table.acked(),
            self.payments.as_ref().map_or(0, Payments::committed),
            said.replace('\n', "; ")
        ));
        (commits, all)
    }

    fn assert_clean(&self, cluster: &Cluster) {
        for never in NEVER_SAID {
            let said = cluster.logged(never);
            assert!(said.is_empty(), "{}", said.join("\n"));
        }
        let payments = self.payments.as_ref().map(Payments::history);
        let histories = [&self.main, &self.short, &self.churn.history, self.table.history()];
        for history in histories.into_iter().chain(payments) {
            history.assert_clean();
        }
    }

    /// Deletes the round's topics, and waits until nothing of them is left.
    async fn clear(&self, cluster: &mut Cluster, is_last: bool) {
        let addresses = cluster.live_addresses();
        let stranger = self.stranger_topic();
        let payments = self.payments.iter().flat_map(Payments::topics);
        let topics = [&self.main_topic, &self.short_topic, &self.churn.topic, &stranger, self.table.topic()];
        for topic in topics.into_iter().chain(payments) {
            delete_topic(&addresses, topic).await;
        }
        if is_last {
            // Brokers that run may keep objects whose commit they know nothing of, for as long as
            // they run.
            for i in 0..cluster.len() {
                if cluster.is_running(i) {
                    let status = cluster.stop(i).await;
                    assert!(status.success(), "broker {} was asked to leave and ended with {status}", i + 1);
                    cluster.restart(i);
                    cluster.wait_ready(i).await;
                }
            }
        }
        // Nobody writes now: what is left goes all the same, since time alone makes snapshots due.
        let mut left = Remains::default();
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            left = Remains::of(cluster).await;
            if left.dead == 0 && left.orphans == 0 {
                break;
            }
            sleep(Duration::from_millis(500)).await;
        }
        assert!(left.dead == 0 && left.orphans == 0, "objects are left for ever: {left:?}");
        if is_last {
            eventually("no object is left that nobody committed", PATIENCE, async || {
                (Remains::of(cluster).await.in_flight == 0).then_some(())
            })
            .await;
        }
        let foreign = Remains::of(cluster).await.foreign;
        assert_eq!(foreign, 0, "objects that the audit does not know");
    }

    /// The ends of all partitions of the main topic.
    async fn ends(&self, address: &str) -> Vec<i64> {
        let mut ends = Vec::new();
        for partition in 0..PARTITIONS {
            let end = eventually("a partition has an end", PATIENCE, async || {
                let mut client = Client::connect(address).await.ok()?;
                client.list_offset(&self.main_topic, partition, -1).await.ok()
            });
            ends.push(end.await);
        }
        ends
    }

    /// Sets how long records of the short topic are kept.
    async fn retain(&self, addresses: &[String], ms: String) {
        let config = AlterableConfig::default()
            .with_name(text("retention.ms"))
            .with_value(Some(ms.into()))
            .with_config_operation(0);
        let resource = AlterConfigsResource::default()
            .with_resource_type(2)
            .with_resource_name(text(&self.short_topic))
            .with_configs(vec![config]);
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
        let mut turn = 0;
        eventually("a config is set", PATIENCE, async || {
            turn += 1;
            let mut client = Client::connect(&addresses[turn % addresses.len()]).await.ok()?;
            let answer = client.call(&request, 1).await.ok()?;
            (answer.responses[0].error_code == 0).then_some(())
        })
        .await;
    }
}

/// What is in the store and belongs to no record.
#[derive(Debug, Default)]
struct Remains {
    dead: u64,
    in_flight: u64,
    orphans: u64,
    foreign: u64,
}

impl Remains {
    async fn of(cluster: &Cluster) -> Self {
        let (code, said) = cluster.fsck(&["--quick"]).await;
        assert_eq!(code, Some(0), "the audit found something: {said}");
        let line = said.lines().find(|l| l.contains("dead objects")).unwrap_or_default();
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [dead, in_flight, orphans, foreign] = numbers[..] else { panic!("the audit says {said:?}") };
        Self { dead, in_flight, orphans, foreign }
    }
}

/// No broker ends unless it is made to. The guest may be away.
fn assert_all_run(cluster: &mut Cluster) {
    for i in 0..cluster.len() {
        let ended = cluster.ended(i).filter(|status| i < RESIDENTS || !was_killed(*status));
        assert!(ended.is_none(), "broker {} ended by itself: {ended:?}", i + 1);
    }
    for i in 0..cluster.etcd().len() {
        assert!(cluster.etcd().is_running(i), "etcd {} ended by itself", i + 1);
    }
}

async fn join(who: &str, tasks: &mut JoinSet<()>) {
    let all = async {
        while let Some(done) = tasks.join_next().await {
            done.unwrap_or_else(|error| panic!("one of the {who}: {error}"));
        }
    };
    assert!(timeout(PATIENCE, all).await.is_ok(), "the {who} are not done within {PATIENCE:?}");
}

async fn delete_topic(addresses: &[String], name: &str) {
    let mut turn = 0;
    eventually("a topic is deleted", PATIENCE, async || {
        turn += 1;
        let mut client = Client::connect(&addresses[turn % addresses.len()]).await.ok()?;
        match client.delete_topic(name).await {
            Ok(()) | Err(ClientError::Kafka(ResponseError::UnknownTopicOrPartition)) => Some(()),
            Err(_) => None,
        }
    })
    .await;
}
