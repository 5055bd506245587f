//! Transactions at work: feeders that write to several partitions at once, transformers that read
//! what is committed, write what becomes of it and commit how far they are in the same transaction,
//! and readers of what is committed; and what must be true of what they read.
//!
//! ```text
//! feeders ─▶ input (each transaction in several partitions) ─▶ transformers ─▶ output
//!                                                              └ offsets of group `transform`
//! ```
//!
//! Two transformers share the transactional id of each partition, so they fence each other all the
//! time. Requests go to whatever broker; ends of transactions and batches are sent again when they
//! are over. Transactions of even partitions are of version 2 (KIP-890), those of odd ones of
//! version 1.

mod check;
mod session;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;
use tokio::time::sleep;

use self::session::{Ended, Session, TxnVersion};
use crate::client::{Client, ClientError};
use crate::history::History;
use crate::workload::create_topic;

/// Group under which transformers commit how far they are.
const GROUP: &str = "transform";
/// Records that a transformer takes at a time.
const TAKEN: usize = 20;
/// After so long an open transaction is aborted.
pub const TIMEOUT: Duration = Duration::from_secs(20);
/// A client waits so long for an answer.
const PATIENCE: Duration = Duration::from_secs(6);

/// What became of a transaction, as far as its producer was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It has not heard.
    Unknown,
    Committed,
    Aborted,
}

/// A transaction of a feeder: by partition, the values that it has written, in order.
#[derive(Clone, Debug)]
struct Fed {
    values: BTreeMap<i32, Vec<String>>,
    fate: Fate,
}

/// The topics, and what is known of what was written to them. Clones share that.
#[derive(Clone, Debug)]
pub struct Payments {
    input: String,
    output: String,
    partitions: i32,
    addresses: Vec<String>,
    history: History,
    /// By feeder, and by the number of its transaction.
    fed: Arc<Mutex<BTreeMap<(u32, u64), Fed>>>,
    transformed: Arc<Mutex<u64>>,
}

impl Payments {
    /// Topics whose names begin with `name`.
    pub fn new(name: &str, partitions: i32, addresses: Vec<String>, history: History) -> Self {
        Self {
            input: format!("{name}-in"),
            output: format!("{name}-out"),
            partitions,
            addresses,
            history,
            fed: Arc::default(),
            transformed: Arc::default(),
        }
    }

    /// Creates them.
    pub async fn create(&self) {
        for topic in [&self.input, &self.output] {
            create_topic(&self.addresses, topic, self.partitions).await;
        }
    }

    /// The names of the topics.
    pub fn topics(&self) -> [&str; 2] {
        [&self.input, &self.output]
    }

    /// What is wrong with what was read, and what clients were told.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// How many transactions are known to be committed.
    pub fn committed(&self) -> u64 {
        let fed = self.lock().values().filter(|fed| fed.fate == Fate::Committed).count() as u64;
        fed + *self.transformed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(u32, u64), Fed>> {
        self.fed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A broker, whichever.
    async fn connect(&self, rng: &mut StdRng) -> Result<Client, ClientError> {
        let mut client = Client::connect(&self.addresses[rng.random_range(0..self.addresses.len())]).await?;
        client.set_timeout(PATIENCE);
        Ok(client)
    }

    /// Writes transactions until it is told to stop.
    pub async fn feed(self, number: u32, seed: u64, pause: Duration, stop: watch::Receiver<bool>) {
        let mut rng = StdRng::seed_from_u64(seed);
        let version = if number.is_multiple_of(2) { TxnVersion::Two } else { TxnVersion::One };
        let mut session = None;
        for transaction in 0.. {
            sleep(pause.mul_f64(rng.random_range(0.5..1.5))).await;
            if *stop.borrow() {
                return;
            }
            let mut values: BTreeMap<i32, Vec<String>> = BTreeMap::new();
            for _ in 0..rng.random_range(2..6) {
                let partition = rng.random_range(0..self.partitions);
                let of_partition = values.entry(partition).or_default();
                for _ in 0..rng.random_range(1..4) {
                    of_partition.push(format!("f{number} {transaction} {}", of_partition.len()));
                }
            }
            let fed = Fed { values: values.clone(), fate: Fate::Unknown };
            self.lock().insert((number, transaction), fed);
            let written = self.write(&mut session, &mut rng, number, version, &values).await;
            if let Some(fate) = written
                && let Some(fed) = self.lock().get_mut(&(number, transaction))
            {
                fed.fate = fate;
            }
        }
    }

    /// Writes one transaction; gives its fate, if it is known.
    async fn write(
        &self,
        session: &mut Option<Session>,
        rng: &mut StdRng,
        number: u32,
        version: TxnVersion,
        values: &BTreeMap<i32, Vec<String>>,
    ) -> Option<Fate> {
        let mut open = match session.take() {
            Some(session) => session,
            None => Session::begin(self, rng, format!("feeder-{number}"), version).await.ok()?,
        };
        for (partition, values) in values {
            open.produce(self, rng, &self.input, *partition, values).await.ok()?;
        }
        // Who leaves it open is fenced by its next one, or aborted in time.
        if rng.random_bool(0.04) {
            return None;
        }
        let is_commit = rng.random_bool(0.7);
        let fate = if is_commit { Fate::Committed } else { Fate::Aborted };
        match open.end(self, rng, is_commit).await {
            Ok(Ended::AsAsked) => {
                *session = Some(open);
                Some(fate)
            }
            Ok(Ended::Unknown) | Err(_) => None,
        }
    }

    /// Reads what is committed of a partition, writes what becomes of it, and commits how far it
    /// is, until it is told to stop.
    pub async fn transform(self, partition: i32, seed: u64, pause: Duration, stop: watch::Receiver<bool>) {
        let mut rng = StdRng::seed_from_u64(seed);
        while !*stop.borrow() {
            // Whatever goes wrong, it begins anew, and fences whoever has its transactional id.
            let _ = self.transform_for_a_while(partition, &mut rng, pause, &stop).await;
            sleep(pause.mul_f64(rng.random_range(1.0..6.0))).await;
        }
    }

    async fn transform_for_a_while(
        &self,
        partition: i32,
        rng: &mut StdRng,
        pause: Duration,
        stop: &watch::Receiver<bool>,
    ) -> Result<(), ClientError> {
        let version = if partition % 2 == 0 { TxnVersion::Two } else { TxnVersion::One };
        let mut session = Session::begin(self, rng, format!("transformer-{partition}"), version).await?;
        let mut next = session::committed_offset(self, rng, partition).await?.max(0);
        loop {
            sleep(pause.mul_f64(rng.random_range(0.2..1.2))).await;
            if *stop.borrow() || rng.random_bool(0.05) {
                return Ok(());
            }
            let mut client = self.connect(rng).await?;
            let read = session::read_committed(&mut client, &self.input, partition, next).await?;
            let taken = &read.records[..read.records.len().min(TAKEN)];
            let Some((last, _)) = taken.last() else {
                next = read.next;
                continue;
            };
            let after = if taken.len() == read.records.len() { read.next } else { last + 1 };
            let values: Vec<String> =
                taken.iter().map(|(offset, value)| format!("o {offset} {value}")).collect();
            session.produce(self, rng, &self.output, partition, &values).await?;
            session.add_offset(self, rng, &self.input, partition, after).await?;
            let is_commit = rng.random_bool(0.85);
            match session.end(self, rng, is_commit).await? {
                Ended::AsAsked if is_commit => {
                    next = after;
                    *self.transformed.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                }
                Ended::AsAsked => {}
                // Who does not know how far it is asks.
                Ended::Unknown => return Ok(()),
            }
        }
    }

    /// Reads what is committed of the output from one broker, again and again, until it is told to
    /// stop: what lies behind the last stable offset is never seen, and that never goes back.
    pub async fn follow(self, address: String, pause: Duration, stop: watch::Receiver<bool>) {
        let mut places: BTreeMap<i32, check::Follower> = BTreeMap::new();
        while !*stop.borrow() {
            sleep(pause).await;
            let Ok(mut client) = Client::connect(&address).await else { continue };
            client.set_timeout(PATIENCE);
            for partition in 0..self.partitions {
                let follower = places.entry(partition).or_default();
                let read =
                    session::read_committed(&mut client, &self.output, partition, follower.next()).await;
                let Ok(read) = read else { break };
                follower.take(&self.history, &format!("{address}, partition {partition}"), read);
            }
        }
    }
}
