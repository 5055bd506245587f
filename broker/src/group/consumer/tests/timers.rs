//! Members that go silent, or take too long.

use super::{REBALANCE_TIMEOUT_MS, World, beat, going_away, joining, leaving, with_instance};
use crate::group::consumer::ExpiredBy::{RebalanceTimeout, SessionTimeout};

const SESSION_MS: u64 = 45_000;

#[test]
fn a_silent_member_is_fenced_and_its_partitions_go_to_the_others() {
    let mut world = World::new(&[("t", 2)]);
    assert_eq!(world.group.next_deadline(), None);
    world.join("a", &["t"]);
    world.pass(20_000);
    world.join("b", &["t"]);
    assert_eq!(world.expire_for(24_999), []);
    assert_eq!(world.expire_for(1), [("a".to_owned(), SessionTimeout)]);
    assert!(world.group.take_changed());
    assert_eq!(world.beat("b", 2), (3, vec!["t0".into(), "t1".into()]));
    assert_eq!(world.expire_for(SESSION_MS), [("b".to_owned(), SessionTimeout)]);
    assert!(world.group.is_empty());
    assert_eq!(world.group.next_deadline(), None);
}

#[test]
fn heartbeats_keep_a_session_alive_and_refused_ones_do_not() {
    let mut world = World::new(&[("t", 2)]);
    world.join("a", &["t"]);
    for _ in 0..5 {
        assert_eq!(world.expire_for(SESSION_MS - 1), []);
        world.beat("a", 1);
    }
    world.pass(1_000);
    world.refused(&beat("a", 5));
    assert_eq!(world.expire_for(SESSION_MS - 1_000).len(), 1);
}

#[test]
fn who_does_not_give_up_in_time_is_fenced() {
    let mut world = World::new(&[("t", 2)]);
    world.join("a", &["t"]);
    world.join("b", &["t"]);
    world.beat("a", 1);
    let timeout = u64::try_from(REBALANCE_TIMEOUT_MS).unwrap();
    for _ in 0..2 {
        assert_eq!(world.expire_for(timeout / 2 - 1), []);
        world.report("a", 1, &["t0", "t1"]);
        world.beat("b", 2);
    }
    assert_eq!(world.expire_for(2), [("a".to_owned(), RebalanceTimeout)]);
    assert_eq!(world.beat("b", 2), (3, vec!["t0".into(), "t1".into()]));
}

#[test]
fn who_gives_up_in_time_or_need_not_any_more_is_not_fenced() {
    let mut world = World::new(&[("t", 2)]);
    world.join("a", &["t"]);
    world.join("b", &["t"]);
    world.beat("a", 1);
    world.report("a", 1, &["t0"]);
    world.send(&leaving("b")).unwrap();
    for _ in 0..4 {
        assert_eq!(world.expire_for(30_000), []);
        let epoch = world.member("a").epoch;
        world.beat("a", epoch);
    }
}

#[test]
fn a_static_member_that_is_away_has_its_session_to_come_back() {
    for takes_over in [false, true] {
        let mut world = World::new(&[("t", 2)]);
        world.send(&with_instance(joining("a", &["t"]), "i")).unwrap();
        world.join("b", &["t"]);
        world.beat("a", 1);
        world.pass(5_000);
        world.send(&going_away("a", "i")).unwrap();
        if takes_over {
            world.take_over();
        }
        let left = if takes_over { SESSION_MS } else { SESSION_MS - 5_000 };
        assert_eq!(world.expire_for(left - 1), []);
        world.beat("b", 2);
        assert_eq!(world.expire_for(1), [("a".to_owned(), SessionTimeout)]);
        assert_eq!(world.beat("b", 2), (3, vec!["t0".into(), "t1".into()]));
    }
}

#[test]
fn a_new_coordinator_starts_all_timers_anew_and_goes_on() {
    let mut world = World::new(&[("t", 2)]);
    world.join("a", &["t"]);
    world.join("b", &["t"]);
    world.beat("a", 1);
    world.pass(SESSION_MS - 1);
    world.take_over();
    assert!(!world.group.take_changed(), "taking over costs no write");
    assert_eq!(world.expire_for(SESSION_MS - 1), []);
    world.report("a", 1, &["t0", "t1"]);
    world.beat("b", 2);
    // The time to give up has started anew, too, and is not endless.
    assert_eq!(world.expire_for(15_001), [("a".to_owned(), RebalanceTimeout)]);

    let mut world = World::new(&[("t", 2)]);
    world.join("a", &["t"]);
    world.join("b", &["t"]);
    world.take_over();
    world.beat("a", 1);
    world.take_over();
    assert_eq!(world.report("a", 1, &["t0"]), (2, vec!["-".into()]));
    world.take_over();
    assert_eq!(world.beat("b", 2), (2, vec!["t1".into()]));
}
