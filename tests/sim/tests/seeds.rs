//! The quick part of the simulation: some seeds, those that once found something, and that a seed
//! is a whole run.

use std::sync::atomic::{AtomicU64, Ordering};

use strandline_sim::{Plan, run};

/// Seeds of the quick part; `make sim` takes as many as one likes.
const QUICK: std::ops::Range<u64> = 0..60;

/// Seeds that found something once. What a seed stands for changes with the simulation, so each of
/// the defects has a test of its own as well, or is one of the deliberate bugs of `mutations.rs`.
const REGRESSIONS: &[(u64, &str)] = &[
    // A broker that was stopped between its checkpoint and its snapshot pushed newer snapshots out,
    // and the log that the older one needs was trimmed.
    (208, "a snapshot of an older state"),
    // A flush that was due a rounding error from now was looked for again at the same instant, for
    // ever.
    (71, "a budget that allows the next flush at a time at which it does not"),
    // A commit whose answer was lost was executed; when it was sent again the registration was
    // gone, and the object was deleted as if nothing had been committed.
    (2280, "an object deleted although its commit was executed"),
    // A broker was cut off with a commit under way; its incarnation was forgotten before it read
    // the state anew.
    (324, "a producer that is never answered"),
    // The store denied the snapshots for a few seconds, and the broker ended at once.
    (146, "a broker that ends for what passes"),
    // A watch left out what the coordinator itself had written of a group; from then on every write
    // of the group was refused, since another broker seemed to have written it.
    (8623, "a group that is refused for ever"),
    (8914, "a group that is refused for ever, by the only broker that commits"),
    // Nobody ran the jobs for as long as producers must be silent: the check was wrong.
    (128, "producers that are not forgotten while checkpoints are late"),
];

fn assert_clean(seed: u64) {
    let outcome = run(&Plan::of(seed));
    assert!(
        outcome.anomalies.is_empty(),
        "seed {seed}: {}\n{}\n{}",
        outcome.anomalies[0],
        outcome.story.join("\n"),
        outcome.trace.join("\n")
    );
    assert!(outcome.acked > 0, "seed {seed}: nothing was acknowledged");
}

#[test]
fn seeds_find_nothing() {
    let next = AtomicU64::new(QUICK.start);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= QUICK.end {
                        return;
                    }
                    assert_clean(seed);
                }
            });
        }
    });
}

#[test]
fn seeds_that_found_something_do_not_any_more() {
    for (seed, _) in REGRESSIONS {
        assert_clean(*seed);
    }
}

#[test]
fn a_seed_is_a_whole_run_and_another_seed_another_one() {
    let digests = [7, 7, 8].map(|seed| run(&Plan::of(seed)).digest);
    assert_eq!(digests[0], digests[1], "the same seed gives the same bytes of log, objects and answers");
    assert_ne!(digests[1], digests[2]);
}
