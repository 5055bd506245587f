//! Merging keeps its properties, and loses one of them with each safeguard that is taken away.

use stateright::{Checker, Model};
use strandline_model::merging::{Flaw, Limits, Merging};

const SMALL: Limits = Limits { brokers: 2, flushes: 3, merges: 2, trims: 1, snapshots: 1, restarts: 0 };

/// Which properties fail; and that what should happen does.
fn failures(limits: Limits, flaw: Option<Flaw>) -> Vec<&'static str> {
    let checker = Merging { limits, flaw }.checker().threads(2).spawn_bfs().join();
    println!("{} states, depth {}", checker.unique_state_count(), checker.max_depth());
    let happens = ["a merge is accepted", "a merge is refused", "an object is deleted"];
    let discoveries = checker.discoveries();
    assert!(flaw.is_some() || happens.iter().all(|name| discoveries.contains_key(name)));
    let mut failed: Vec<&'static str> = discoveries.into_keys().collect();
    failed.retain(|name| !happens.contains(name));
    failed
}

#[track_caller]
fn assert_found(flaw: Flaw, property: &str) {
    let failed = failures(SMALL, Some(flaw));
    assert!(failed.contains(&property), "{flaw:?}: {failed:?}");
}

#[test]
fn two_brokers_that_merge_trim_and_delete_keep_every_property() {
    assert_eq!(failures(SMALL, None), [""; 0]);
}

/// Minutes rather than seconds: `make model`.
#[test]
#[ignore = "long: make model"]
fn more_of_everything_keeps_every_property() {
    for limits in [
        Limits { snapshots: 2, restarts: 1, ..SMALL },
        Limits { flushes: 4, merges: 3, ..SMALL },
        Limits { trims: 2, snapshots: 2, ..SMALL },
    ] {
        println!("{limits:?}");
        assert_eq!(failures(limits, None), [""; 0]);
    }
}

#[test]
fn a_merge_whose_inputs_have_changed_is_found() {
    assert_found(Flaw::AcceptChangedInputs, "the log has every record from its start on, once");
}

#[test]
fn a_merge_across_a_trim_is_found() {
    assert_found(Flaw::CrossTrim, "what was trimmed does not come back");
}

#[test]
fn a_deletion_that_a_snapshot_does_not_know_is_found() {
    assert_found(Flaw::DeleteAtOnce, "what a listed snapshot names is there");
}

#[test]
fn a_refused_merge_that_is_forgotten_is_found() {
    assert_found(Flaw::ForgetRefused, "what nothing names is noted as dead");
}

#[test]
fn a_merge_that_drops_records_is_found() {
    assert_found(Flaw::DropInput, "what the log names is there");
}
