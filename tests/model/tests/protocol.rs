//! The model keeps its properties, and loses one of them with each safeguard that is taken away.

use stateright::{Checker, Model};
use strandline_model::{Flaw, Limits, Protocol};

/// Nothing goes wrong.
const NOTHING: Limits = Limits {
    nodes: 2,
    objects: 2,
    registrations: 2,
    expiries: 0,
    restarts: 0,
    losses: 0,
    snapshots: 0,
    collections: 0,
    retirements: 0,
    rebuilds: 0,
};

/// Two objects, an answer that is lost, a lease that ends.
const COMMITS: Limits = Limits { registrations: 3, expiries: 1, losses: 1, ..NOTHING };

/// An object that may become an orphan, which each of two brokers may collect.
const ORPHANS: Limits = Limits { objects: 1, collections: 1, ..COMMITS };

/// A commit, snapshots, trims, and the end of an incarnation.
const LONG: Limits = Limits { objects: 1, expiries: 1, losses: 1, snapshots: 2, retirements: 1, ..NOTHING };

/// A process that takes the node id of another one, which stands still or is gone.
const REPLACED: Limits = Limits { nodes: 1, expiries: 1, restarts: 1, losses: 1, ..NOTHING };

/// Which properties fail.
fn failures(limits: Limits, flaw: Option<Flaw>) -> Vec<&'static str> {
    let checker = Protocol { limits, flaw }.checker().threads(2).spawn_bfs().join();
    println!("{} states, depth {}", checker.unique_state_count(), checker.max_depth());
    let discoveries = checker.discoveries();
    assert!(flaw.is_some() || discoveries.contains_key("something is acknowledged"));
    let mut failed: Vec<&'static str> = discoveries.into_keys().collect();
    failed.retain(|name| *name != "something is acknowledged");
    failed.sort_unstable();
    failed
}

#[test]
fn two_brokers_keep_every_property() {
    for limits in [COMMITS, ORPHANS, LONG, REPLACED] {
        assert_eq!(failures(limits, None), [""; 0]);
    }
}

/// Minutes rather than seconds: `make model`.
#[test]
#[ignore = "long: make model"]
fn more_brokers_keep_every_property() {
    let three = Limits { nodes: 3, registrations: 4, ..ORPHANS };
    let restarts = Limits { restarts: 1, ..ORPHANS };
    let rebuilds = Limits { rebuilds: 1, snapshots: 1, ..ORPHANS };
    let longer = Limits { snapshots: 2, rebuilds: 1, ..LONG };
    let commits = Limits { objects: 3, losses: 1, ..COMMITS };
    for limits in [three, restarts, rebuilds, longer, commits] {
        println!("{limits:?}");
        assert_eq!(failures(limits, None), [""; 0]);
    }
}

#[track_caller]
fn assert_found(limits: Limits, flaw: Flaw, property: &str) {
    let failed = failures(limits, Some(flaw));
    assert!(failed.iter().any(|name| name.starts_with(property)), "{flaw}: {failed:?}");
}

#[test]
fn a_commit_that_does_not_compare_the_registration_is_found() {
    assert_found(COMMITS, Flaw::NoCompareOfRegistration, "5");
    // The collector of orphans deletes what is committed afterwards.
    assert_found(ORPHANS, Flaw::NoCompareOfRegistration, "6");
}

#[test]
fn a_commit_that_does_not_compare_the_head_is_found() {
    // A late copy of an earlier commit moves the head back; then a later one, whose answer was
    // lost, is taken for refused.
    let limits = Limits { nodes: 1, registrations: 1, losses: 3, ..COMMITS };
    assert_eq!(failures(limits, None), [""; 0]);
    assert_found(limits, Flaw::NoCompareOfHead, "6");
}

#[test]
fn a_retry_under_another_number_is_found() {
    assert_found(COMMITS, Flaw::RetryUnderNextNumber, "2");
}

#[test]
fn an_acknowledgement_before_the_commit_is_found() {
    assert_found(COMMITS, Flaw::AckBeforeCommit, "1");
}

#[test]
fn collecting_by_the_state_before_the_registration_is_found() {
    assert_found(ORPHANS, Flaw::StateBeforeRegistration, "6");
}

#[test]
fn collecting_without_the_barrier_is_found() {
    assert_found(ORPHANS, Flaw::NoBarrier, "6");
}

#[test]
fn a_put_over_the_registration_is_found() {
    assert_found(REPLACED, Flaw::PutOverRegistration, "5");
}

#[test]
fn a_trim_before_the_pointer_has_moved_is_found() {
    assert_found(Limits { snapshots: 3, ..LONG }, Flaw::TrimBeforePointer, "a broker can start");
}

#[test]
fn a_refusal_that_is_believed_when_the_head_is_gone_is_found() {
    assert_found(LONG, Flaw::BelieveRefusalWithoutHead, "6");
}

#[test]
fn deleting_an_object_because_an_answer_was_lost_is_found() {
    assert_found(COMMITS, Flaw::DeleteWhenUnknown, "6");
}
