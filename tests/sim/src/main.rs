//! `strandline-sim`: runs seeds, and says which of them found something.
//!
//! ```text
//! strandline-sim                 seeds 0 to 199
//! strandline-sim SEED            one seed, with all that happened
//! strandline-sim FROM COUNT      so many seeds from there on
//! strandline-sim history SEED    what clients did and were told, a line of JSON each, for tests/porcupine
//! strandline-sim mutations [LIMIT [NAME]]   which seed finds each deliberate bug; see mutations/cargo.sh
//! ```

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use strandline_sim::{Outcome, Plan, run};

fn main() -> ExitCode {
    #[cfg(feature = "mutations")]
    if std::env::args().nth(1).as_deref() == Some("mutations") {
        return mutations();
    }
    if std::env::args().nth(1).as_deref() == Some("history") {
        return history();
    }
    let numbers: Result<Vec<u64>, _> = std::env::args().skip(1).map(|a| a.parse::<u64>()).collect();
    match numbers.as_deref() {
        Ok([]) => many(0, 200),
        Ok([seed]) => one(*seed),
        Ok([from, count]) => many(*from, *count),
        _ => {
            eprintln!("usage: strandline-sim [SEED | FROM COUNT]");
            ExitCode::FAILURE
        }
    }
}

fn history() -> ExitCode {
    let Some(seed) = std::env::args().nth(2).and_then(|a| a.parse().ok()) else {
        eprintln!("usage: strandline-sim history SEED");
        return ExitCode::FAILURE;
    };
    for operation in run(&Plan::of(seed)).operations {
        println!("{operation}");
    }
    ExitCode::SUCCESS
}

/// For each deliberate bug, the first seed that finds it.
#[cfg(feature = "mutations")]
fn mutations() -> ExitCode {
    use strandline_sim::{Mutation, first_to_find};

    let limit = std::env::args().nth(2).and_then(|a| a.parse().ok()).unwrap_or(1000);
    let wanted = std::env::args().nth(3);
    let mut all = true;
    for &mutation in Mutation::ALL {
        let name = format!("{mutation:?}");
        if wanted.as_ref().is_some_and(|wanted| *wanted != name) {
            continue;
        }
        let began = Instant::now();
        let found = first_to_find(mutation, 0..limit);
        all &= found.is_some();
        match found {
            Some((seed, what)) => {
                println!(
                    "{name}: seed {seed}, {:.1?}: {}",
                    began.elapsed(),
                    what.lines().next().unwrap_or_default()
                );
            }
            None => println!("{name}: NOT FOUND by {limit} seeds, {:.1?}", began.elapsed()),
        }
    }
    if all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(seed: u64) -> ExitCode {
    if let Ok(filter) = std::env::var("STRANDLINE_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stderr).init();
    }
    let plan = Plan::of(seed);
    println!("{plan:?}");
    let began = Instant::now();
    let outcome = run(&plan);
    for line in &outcome.trace {
        println!("{line}");
    }
    println!(
        "{} records acknowledged in {} simulated seconds ({:?}); digest {:016x}",
        outcome.acked,
        outcome.seconds,
        began.elapsed(),
        outcome.digest
    );
    verdict(&[(seed, outcome)])
}

fn many(from: u64, count: u64) -> ExitCode {
    let next = AtomicU64::new(from);
    let began = Instant::now();
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut failed = Vec::new();
    let (mut acked, mut seconds) = (0, 0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|_| {
                scope.spawn(|| {
                    let mut own = (Vec::new(), 0, 0);
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= from + count {
                            return own;
                        }
                        let outcome = run(&Plan::of(seed));
                        own.1 += outcome.acked;
                        own.2 += outcome.seconds;
                        if !outcome.anomalies.is_empty() {
                            println!("seed {seed}: {}", outcome.anomalies[0]);
                            own.0.push((seed, outcome));
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            let (own, own_acked, own_seconds) = thread.join().expect("panics of runs are caught");
            failed.extend(own);
            acked += own_acked;
            seconds += own_seconds;
        }
    });
    println!(
        "{count} seeds from {from}: {seconds} simulated seconds, {acked} records acknowledged, in {:.0?}",
        began.elapsed()
    );
    verdict(&failed)
}

fn verdict(runs: &[(u64, Outcome)]) -> ExitCode {
    let mut good = true;
    for (seed, outcome) in runs {
        for line in outcome.story.iter().take(60) {
            println!("seed {seed}: {line}");
        }
        let mut shown = std::collections::BTreeMap::<&str, u32>::new();
        for anomaly in &outcome.anomalies {
            good = false;
            let name = anomaly.split(':').next().unwrap_or_default();
            let count = shown.entry(name).or_default();
            *count += 1;
            // The first of each kind say most.
            if *count <= 4 {
                println!("seed {seed}: {anomaly}");
            }
        }
    }
    if good {
        println!("nothing was found that must not be");
        return ExitCode::SUCCESS;
    }
    println!("`make sim SEED=n` repeats a seed and tells what happened in it");
    ExitCode::FAILURE
}
