//! `strandline-chaos`: hurts a cluster of real processes for a while, and says whether anything was
//! lost.
//!
//! ```text
//! strandline-chaos [--older PROGRAM] [MINUTES] [SEED] [SECONDS PER ROUND]
//! ```
//!
//! With the program of an older build, that founds the cluster and brokers change between the two.
//! It prints a line for each fault, and ends with 0 if nothing was found, with 1 if something was;
//! then everything that may explain it is in the folder that it names.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use strandline_chaos::{Options, Verdict, run};
use strandline_tests::surroundings::now_ms;

const DEFAULT_MINUTES: f64 = 10.0;
const DEFAULT_ROUND_S: u64 = 240;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let older = match args.first() {
        Some(first) if first == "--older" && args.len() > 1 => args.drain(..2).nth(1).map(PathBuf::from),
        _ => None,
    };
    let Some((minutes, seed, round_s)) = parse(&args) else {
        eprintln!("usage: strandline-chaos [--older PROGRAM] [MINUTES] [SEED] [SECONDS PER ROUND]");
        return ExitCode::from(2);
    };
    println!("seed {seed}, {minutes} minutes, rounds of {round_s} s");
    let (duration, round) = (Duration::from_secs_f64(minutes * 60.0), Duration::from_secs(round_s));
    match run(Options { seed, duration, round, older }).await {
        Verdict::Clean { rounds, faults, records, commits } => {
            println!(
                "CLEAN: seed {seed}, {rounds} rounds, {faults} faults, {records} records acknowledged and found, \
                 {commits} offset commits; the audit found nothing"
            );
            ExitCode::SUCCESS
        }
        Verdict::Violated { what, folder } => {
            println!("VIOLATED: seed {seed}: {what}");
            if let Some(folder) = folder {
                println!("everything is kept in {0}: begin with {0}/verdict.txt", folder.display());
            }
            ExitCode::FAILURE
        }
    }
}

fn parse(args: &[String]) -> Option<(f64, u64, u64)> {
    let minutes = args.first().map_or(Some(DEFAULT_MINUTES), |text| text.parse().ok())?;
    // Any number will do; it is printed, so that the faults can be repeated.
    let seed = args.get(1).map_or(Some(now_ms().unsigned_abs() % 1_000_000), |text| text.parse().ok())?;
    let round_s = args.get(2).map_or(Some(DEFAULT_ROUND_S), |text| text.parse().ok())?;
    (args.len() <= 3 && minutes > 0.0 && round_s > 0).then_some((minutes, seed, round_s))
}
