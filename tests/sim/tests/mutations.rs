//! The proof of the proof: deliberate bugs in the product are found, each by one of the first
//! seeds.

use strandline_sim::{Mutation, first_to_find};

/// Every deliberate bug is found by one of so many seeds.
const SEEDS: u64 = 2000;
/// Most are found by one of these already.
const FEW_SEEDS: u64 = 60;

/// Those that need more: something rare must happen at the right moment.
const RARE: &[Mutation] = &[
    Mutation::ApplyBehindGap,
    Mutation::BelieveRefusal,
    Mutation::CollectByOldState,
    Mutation::ShareSentBarrier,
    Mutation::TrimBeforePointer,
];

fn assert_found(mutation: Mutation, seeds: u64) {
    let found = first_to_find(mutation, 0..seeds);
    let (seed, what) = found.unwrap_or_else(|| panic!("no seed below {seeds} finds {mutation:?}"));
    println!("{mutation:?} is found by seed {seed}: {}", what.lines().next().unwrap_or_default());
}

#[test]
fn most_deliberate_bugs_are_found_at_once() {
    for mutation in Mutation::ALL.iter().filter(|m| !RARE.contains(m)) {
        assert_found(*mutation, FEW_SEEDS);
    }
}

#[test]
#[ignore = "long: `make mutations`"]
fn every_deliberate_bug_is_found() {
    for mutation in Mutation::ALL {
        assert_found(*mutation, SEEDS);
    }
}
