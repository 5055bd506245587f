//! The quick part of the chaos: one short round. `make chaos` goes on for as long as one likes.

use std::time::Duration;

use strandline_chaos::{Options, Verdict, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_of_chaos_finds_nothing() {
    let length = Duration::from_secs(20);
    match run(Options { seed: 7, duration: length, round: length, older: None }).await {
        Verdict::Clean { rounds, faults, records, commits } => {
            assert_eq!(rounds, 1);
            assert!(faults > 0 && records > 0 && commits > 0, "{faults}, {records}, {commits}");
        }
        Verdict::Violated { what, folder } => panic!("{what}\nkept in {folder:?}"),
    }
}
