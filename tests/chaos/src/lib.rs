//! `make chaos`: a cluster of real processes is hurt in every way that this machine allows, under
//! load, and checked again and again.
//!
//! ```text
//!  producers, tails, groups ──▶ proxy ──▶ broker ──▶ proxy ──▶ etcd 1, 2, 3 (proxies between them)
//!                                            └─────▶ proxy ──▶ S3 server with faults
//! ```
//!
//! It goes in rounds: topics of its own, load, faults by seed, up to three at a time; then
//! everything is healed, and whatever clients were told must be there, on every broker, and the
//! product's audit must find nothing. So a violation is found near its cause, and nothing grows
//! with the length of the run. What processes do under these faults depends on the machine: a seed
//! repeats the faults, not their outcome.

mod churn;
mod faults;
mod members;
mod round;
mod story;
mod stranger;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use strandline_hostile::attacks::Target;
use strandline_tests::cluster::{Cluster, Plan};

use crate::faults::Surroundings;
use crate::round::Round;
use crate::story::Story;

/// How often brokers look for what may be merged, in ms.
pub(crate) const MERGE_INTERVAL_MS: u64 = 1_500;
/// What hostile clients read: more than a broker caches.
const HOSTILE_MEGABYTES: usize = 24;

/// What to do, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which faults, and when.
    pub seed: u64,
    /// Until the last round ends, about.
    pub duration: Duration,
    /// How long the faults of one round go on.
    pub round: Duration,
    /// The program of an older build. It founds the cluster, and brokers change between the two.
    pub older: Option<PathBuf>,
}

/// What came of it.
#[derive(Debug)]
pub enum Verdict {
    /// Nothing was found.
    Clean {
        /// Rounds.
        rounds: u32,
        /// Faults that were begun.
        faults: u64,
        /// Records that were acknowledged, and checked.
        records: u64,
        /// Offset commits that were acknowledged.
        commits: u64,
    },
    /// Something was found.
    Violated {
        /// What.
        what: String,
        /// Where everything is kept that may explain it, if it got so far that there was a cluster.
        folder: Option<PathBuf>,
    },
}

/// Runs it.
pub async fn run(options: Options) -> Verdict {
    let story = Arc::new(Story::default());
    // Whatever must not be is a panic, as in any test.
    let running = AssertUnwindSafe(all_rounds(options.clone(), story.clone()));
    match running.catch_unwind().await {
        Ok(verdict) => verdict,
        Err(panic) => {
            let what = match panic.downcast::<String>() {
                Ok(text) => *text,
                Err(panic) => {
                    panic.downcast::<&str>().map_or("a panic".to_owned(), |text| (*text).to_owned())
                }
            };
            let folder = story.keep(&options, &what);
            Verdict::Violated { what, folder }
        }
    }
}

/// A cluster that is in a hurry: everything that happens now and then happens often.
fn plan() -> Plan {
    Plan::new(faults::RESIDENTS)
        .all_proxied()
        .in_folder()
        .etcd_members(3)
        .etcd_flag(format!("--quota-backend-bytes={}", faults::QUOTA_BYTES))
        .flag("lease-ttl-s", 2)
        .flag("snapshot-records", 150)
        .flag("job-interval-ms", 300)
        .flag("delete-delay-ms", 1_000)
        .flag("merge-interval-ms", MERGE_INTERVAL_MS)
        .flag("snapshot-interval-ms", 1_500)
        .flag("snapshot-retention-hours", 0)
        .flag("log-retention-check-interval-ms", 300)
        .flag("drain-ms", 500)
        // Ten objects a second and broker: everything is read back several times, eight objects at
        // a time.
        .flag("linger-ms", 100)
        .flag("put-budget-per-s", 5)
        .flag("put-budget-burst", 10)
        .flag("cache-bytes", 16_000_000)
        .flag("store-request-timeout-ms", 1_500)
        .flag("store-retry-budget-ms", 4_000)
        .flag("group-initial-rebalance-delay-ms", 300)
        .flag("group-consumer-session-timeout-ms", 10_000)
        .flag("group-consumer-heartbeat-interval-ms", 1_000)
}

async fn all_rounds(options: Options, story: Arc<Story>) -> Verdict {
    let began = Instant::now();
    let mut plan = plan();
    plan.program.clone_from(&options.older);
    let mut cluster = Cluster::start(plan).await;
    story.begin(cluster.folder());
    Target::of(&cluster, 0).prepare(HOSTILE_MEGABYTES).await;
    let guest = cluster.add_broker(0).await;
    assert_eq!(guest, faults::RESIDENTS, "the guest is the last one");
    cluster.set_program(guest, None);
    let mut surroundings = Surroundings::new(options.older.clone());
    let mut rng = StdRng::seed_from_u64(options.seed);
    let (mut rounds, mut records, mut commits) = (0, 0, 0);
    loop {
        rounds += 1;
        let left = options.duration.saturating_sub(began.elapsed());
        let is_last = left < options.round * 3 / 2;
        let length = if is_last { left.max(Duration::from_secs(1)) } else { options.round };
        let seed = options.seed.wrapping_mul(1_000_003) + u64::from(rounds);
        let are_builds_mixed = options.older.is_some();
        let round = Round::start(&cluster, rounds, seed, !are_builds_mixed, story.clone()).await;
        round.hurt(&mut cluster, &mut surroundings, &mut rng, length).await;
        let done = round.finish(&mut cluster, is_last, are_builds_mixed).await;
        records += done.records;
        commits += done.commits;
        if is_last {
            let faults = story.faults();
            return Verdict::Clean { rounds, faults, records, commits };
        }
    }
}
