//! `strandline-hostile`: presses on a broker with hostile clients, kind by kind and then all
//! together, beside a well-behaved producer and consumer, and says whether these noticed.
//!
//! ```text
//! strandline-hostile [SECONDS PER KIND] [KIND … | together]
//! ```
//!
//! It ends with 0 if every bound of [`bounds`] was kept, else with 1.

mod bounds;
mod neighbour;
mod report;
mod watch;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use strandline_hostile::attacks::{ATTACKS, Attack, Press, Target};
use strandline_tests::cluster::{Cluster, Plan};
use tokio::runtime::Builder;
use tokio::time::sleep;

use crate::neighbour::Neighbour;
use crate::report::{Line, Report};
use crate::watch::Watch;

const DEFAULT_SECONDS: u64 = 20;
/// How long the neighbour is measured alone: the yardstick of everything else.
const ALONE: Duration = Duration::from_secs(15);
/// More than the broker caches.
const LARGE_MEGABYTES: usize = 240;
/// All kinds at once go on so many times longer than each alone.
const TOGETHER: u32 = 3;

fn main() -> ExitCode {
    match Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime.block_on(begin()),
        Err(error) => {
            eprintln!("no threads: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn begin() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (seconds, kinds) = match args.split_first() {
        None => (DEFAULT_SECONDS, &[][..]),
        Some((first, kinds)) => match first.parse() {
            Ok(seconds) if seconds > 0 => (seconds, kinds),
            _ => return usage(),
        },
    };
    if kinds == ["together"] {
        return run(&[], Duration::from_secs(seconds)).await;
    }
    let chosen: Vec<&'static Attack> =
        ATTACKS.iter().filter(|a| kinds.is_empty() || kinds.iter().any(|k| k == a.name)).collect();
    if kinds.iter().any(|k| !ATTACKS.iter().any(|a| a.name == k)) {
        return usage();
    }
    run(&chosen, Duration::from_secs(seconds)).await
}

fn usage() -> ExitCode {
    let names: Vec<&str> = ATTACKS.iter().map(|a| a.name).collect();
    eprintln!("usage: strandline-hostile [SECONDS PER KIND] [KIND … | together]\nkinds: {}", names.join(" "));
    ExitCode::from(2)
}

/// Presses with each of the chosen kinds, and then with all of them at once; with none, only with
/// all that there are at once.
async fn run(chosen: &[&'static Attack], each: Duration) -> ExitCode {
    let plan = bounds::SETTINGS.iter().fold(Plan::new(1), |plan, (name, value)| plan.flag(name, value));
    let mut cluster = Cluster::start(plan).await;
    let target = Target::of(&cluster, 0);
    target.prepare(LARGE_MEGABYTES).await;
    let neighbour = Neighbour::start(&cluster).await;
    let watch = Watch::start(&mut cluster);
    let began = Instant::now();
    sleep(ALONE).await;
    let alone = neighbour.since(began);
    let mut report = Report::new(alone, watch.resident(), allowed_resident(&cluster).await);
    let mut phases: Vec<(String, Vec<&'static Attack>, Duration)> =
        chosen.iter().map(|a| (a.name.to_owned(), vec![*a], each)).collect();
    if chosen.len() != 1 {
        let all = if chosen.is_empty() { ATTACKS.iter().collect() } else { chosen.to_vec() };
        phases.push(("all of them".to_owned(), all, each * TOGETHER));
    }
    for (name, attacks, length) in phases {
        let line = phase(&cluster, &target, &attacks, length, &neighbour, &watch).await;
        if report.add(&name, &line, watch.is_running()) {
            continue;
        }
        break;
    }
    report.registrations(&watch, &mut cluster);
    let lost = neighbour.finish(&cluster).await;
    report.finish(lost)
}

/// Presses for a while, and then gives the broker the time that it has to recover.
async fn phase(
    cluster: &Cluster,
    target: &Target,
    attacks: &[&'static Attack],
    length: Duration,
    neighbour: &Neighbour,
    watch: &Watch,
) -> Line {
    watch.begin();
    let began = Instant::now();
    let press = Press::start(target, attacks);
    sleep(length).await;
    let during = neighbour.since(began);
    // What they hold is closed, as by a client that was killed.
    press.end().await;
    let descriptors = watch.descriptors();
    sleep(bounds::RECOVERY).await;
    let recovered = Instant::now();
    sleep(bounds::RECOVERY).await;
    let after = neighbour.since(recovered);
    Line {
        during,
        after,
        most_resident: watch.most_resident(),
        allowed_resident: if watch.is_running() { allowed_resident(cluster).await } else { 0 },
        health: watch.worst_health(),
        descriptors: (descriptors, watch.descriptors()),
    }
}

/// What resident memory may be with the state that there is now, in bytes.
async fn allowed_resident(cluster: &Cluster) -> u64 {
    let ranges = cluster.metric(0, "strandline_state_ranges", "").await;
    let producers = cluster.metric(0, "strandline_state_producers", "").await;
    bounds::resident(ranges as u64, producers as u64)
}
