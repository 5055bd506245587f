//! Whole clusters of the real broker code in one deterministic process: simulated time, a simulated
//! network, and faults by seed.
//!
//! ```text
//!   producers, consumers, members (of strandline-tests) ── network ── broker 1 ─┬─ link ── etcd: the embedded backend
//!        │                                                            broker 2 ─┤
//!        ▼                                                            broker n ─┴─ link ── S3: objects in memory
//!     history ─▶ checkers                        adversary: kill, stop, cut, fail, delay, jump
//! ```
//!
//! One thread, tokio's paused clock, and one seed from which everything random is drawn: the same
//! seed gives the same run, to the byte of the log. The product has no part in it: it is handed a
//! backend, a store, a clock and a seed, as always, and a place for its tasks to run in, so that a
//! process can be stopped from outside.

mod adversary;
mod check;
mod churn;
mod clock;
mod gate;
mod late;
mod link;
mod members;
mod monitor;
mod network;
mod node;
pub mod plan;
mod random;
mod remote;
mod scenario;
mod standalone;
mod stranger;
mod switch;
mod trace;
mod wanderer;

use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use std::sync::Once;

pub use strandline_tests::history::Operation;

pub use crate::plan::Plan;
#[cfg(feature = "mutations")]
pub use strandline_metadata::mutation::Mutation;

/// How a run ended.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What must not be, by the names of the checkers. Empty if all is well.
    pub anomalies: Vec<String>,
    /// What happened, in order.
    pub trace: Vec<String>,
    /// What happened to the first record that an anomaly names, and to those around it.
    pub story: Vec<String>,
    /// What clients did to the ends of partitions, and were told of them, for a checker of
    /// linearizability.
    pub operations: Vec<Operation>,
    /// A digest of everything: what etcd and S3 hold in the end, and what clients saw.
    pub digest: u64,
    /// Records that were acknowledged.
    pub acked: u64,
    /// Simulated seconds.
    pub seconds: u64,
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Panics of tasks end no run by themselves: they are noted, and make it a failure.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let text = info.to_string();
            PANICS.with(|panics| panics.borrow_mut().push(text));
        }));
    });
    PANICS.with(|panics| panics.borrow_mut().clear());
}

/// Runs what a plan says.
pub fn run(plan: &Plan) -> Outcome {
    note_panics();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without sockets can be made");
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(scenario::run(plan))));
    let mut outcome = ended.unwrap_or_default();
    drop(runtime);
    strandline_tests::surroundings::set(None);
    let panics = PANICS.with(RefCell::take);
    outcome.anomalies.extend(panics.into_iter().map(|panic| format!("panic: {panic}")));
    outcome
}

/// Looks for the first of `seeds` that finds a deliberate bug, on all processors. Gives it, and
/// what it found.
#[cfg(feature = "mutations")]
pub fn first_to_find(mutation: Mutation, seeds: std::ops::Range<u64>) -> Option<(u64, String)> {
    use std::sync::atomic::{AtomicU64, Ordering};

    use strandline_metadata::mutation;

    let next = AtomicU64::new(seeds.start);
    let found = std::sync::Mutex::new(None::<(u64, String)>);
    let look = || {
        mutation::set(Some(mutation));
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let known = found.lock().expect("nobody panics here").as_ref().map(|(seed, _)| *seed);
            if seed >= seeds.end || known.is_some_and(|known| known < seed) {
                return;
            }
            if let Some(anomaly) = run(&Plan::of(seed)).anomalies.into_iter().next() {
                let mut found = found.lock().expect("nobody panics here");
                if found.as_ref().is_none_or(|(known, _)| seed < *known) {
                    *found = Some((seed, anomaly));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(look);
        }
    });
    found.into_inner().expect("nobody panics here")
}
