//! Who gets memory, and who waits.

use std::collections::VecDeque;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::advance;

use super::*;

const MIB: usize = 1 << 20;

fn accounts(budget: &MemoryBudget, count: usize) -> Vec<MemoryAccount> {
    (0..count).map(|i| budget.account(&format!("/10.0.0.{i}"))).collect()
}

fn now(mut reservation: Reservation) -> Result<MemoryPermit, Reservation> {
    tokio::task::unconstrained(&mut reservation).now_or_never().ok_or(reservation)
}

#[tokio::test]
async fn who_holds_what_it_has_leaves_something_to_those_that_come_later() {
    let budget = MemoryBudget::new(256 * MIB);
    let connections = accounts(&budget, 100);
    let mut held = Vec::new();
    for connection in &connections {
        held.push(now(connection.reserve(64 << 10, 64 * MIB)).expect("the least is left"));
    }
    assert_eq!(held[0].bytes(), 56 * MIB);
    assert!(held.iter().all(|permit| permit.bytes() >= 64 << 10));
    assert!(budget.used() <= 256 * MIB, "{} bytes", budget.used());
    drop(held);
    assert_eq!((budget.used(), connections[0].used()), (0, 0));
    assert!(budget.lock().addresses.is_empty(), "nothing is remembered of who has gone");
}

#[tokio::test]
async fn what_is_there_is_counted_beyond_the_limit() {
    let budget = MemoryBudget::new(1_000);
    let connection = budget.account("/10.0.0.1");
    let mut permit = connection.take(5_000);
    assert!(connection.is_exhausted());
    permit.resize(10);
    assert_eq!((budget.used(), connection.used(), connection.is_exhausted()), (10, 10, false));
}

#[tokio::test]
async fn one_address_leaves_a_share_to_the_others_however_many_connections_it_has() {
    let budget = MemoryBudget::new(100 * MIB);
    let greedy: Vec<MemoryAccount> = (0..10).map(|_| budget.account("/10.0.0.1")).collect();
    let mut held = Vec::new();
    let mut waiting = Vec::new();
    for connection in &greedy {
        match now(connection.reserve(15 * MIB, 15 * MIB)) {
            Ok(permit) => held.push(permit),
            Err(reservation) => waiting.push(reservation),
        }
    }
    assert_eq!((held.len(), waiting.len()), (4, 6), "60 of 100");
    assert!(greedy[0].is_exhausted());
    let other = budget.account("/10.0.0.2");
    assert!(!other.is_exhausted());
    let permit = now(other.reserve(20 * MIB, 20 * MIB)).expect("those who wait have their share");
    assert!(now(other.reserve(21 * MIB, 21 * MIB)).is_err(), "nothing of that size is left");
    drop(permit);
    assert_eq!(budget.waits(), 7);
    held.pop();
    let next = now(waiting.remove(0));
    assert!(next.is_ok(), "the first one of those who wait is next");
    assert!(now(waiting.remove(0)).is_err(), "there was room for one");
}

#[tokio::test]
async fn who_holds_much_leaves_something_to_others_of_the_same_address() {
    let budget = MemoryBudget::new(100 * MIB);
    let account = || budget.account("/10.0.0.1");
    let held: Vec<MemoryPermit> =
        (0..20).filter_map(|_| now(account().reserve(4 * MIB, 4 * MIB)).ok()).collect();
    assert_eq!(held.len(), 15);
    let large = account().reserve(4 * MIB, 4 * MIB);
    // They pass those that wait for more, and get no more than the least.
    let small: Vec<MemoryPermit> =
        (0..1_000).filter_map(|_| now(account().reserve(64 << 10, MIB)).ok()).collect();
    assert_eq!(small.len(), 15 * 16, "the last 15 of 75");
    assert!(small.iter().all(|permit| permit.bytes() == 64 << 10));
    assert!(now(account().reserve(1, 1)).is_err());
    drop(small);
    let large = now(large).expect_err("it waits for what its address holds");
    drop(held);
    assert!(now(large).is_ok());
}

#[tokio::test]
async fn who_wants_much_has_its_turn_however_many_of_its_address_want_little() {
    let budget = MemoryBudget::new(100 * MIB);
    let account = || budget.account("/10.0.0.1");
    let small = || account().reserve(64 << 10, 64 << 10);
    // The whole share is held by connections that hold little, and more of them wait.
    let mut held: VecDeque<MemoryPermit> = (0..75 * 16).map_while(|_| now(small()).ok()).collect();
    assert_eq!(held.len(), 75 * 16);
    let mut large = account().reserve(4 * MIB, 4 * MIB);
    let mut waiting: VecDeque<Reservation> = (0..100).map(|_| small()).collect();
    let mut passed = 0;
    while held.pop_front().is_some() {
        large = match now(large) {
            Ok(permit) => {
                assert_eq!(permit.bytes(), 4 * MIB);
                // The others go on then.
                assert!(passed < 100 && now(waiting.pop_front().unwrap()).is_ok());
                return;
            }
            Err(large) => large,
        };
        // Whoever is given something comes again.
        while let Some(first) = waiting.pop_front() {
            match now(first) {
                Ok(permit) => {
                    held.push_back(permit);
                    waiting.push_back(small());
                    passed += 1;
                }
                Err(first) => {
                    waiting.push_front(first);
                    break;
                }
            }
        }
    }
    panic!("{passed} passed, and it still waits");
}

#[tokio::test]
async fn the_largest_of_all_passes_when_its_address_holds_nothing_and_is_not_overtaken() {
    let budget = MemoryBudget::new(100);
    let [a, b, c] = ["/a", "/b", "/c"].map(|address| budget.account(address));
    let small = now(a.reserve(10, 10)).unwrap();
    let large = now(b.reserve(5_000, 5_000)).expect_err("it needs all");
    let later = now(c.reserve(10, 10)).expect_err("it would take what the large one waits for");
    drop(small);
    let large = now(large).expect("all of it");
    assert_eq!(large.bytes(), 100);
    drop(large);
    assert!(now(later).is_ok());
}

#[tokio::test]
async fn addresses_take_turns() {
    let budget = MemoryBudget::new(100);
    let [busy, other] = ["/busy", "/other"].map(|address| budget.account(address));
    let mut held = now(other.reserve(100, 100)).unwrap();
    let crowd: Vec<Reservation> = (0..50).map(|_| busy.reserve(40, 40)).collect();
    let last = budget.account("/late").reserve(40, 40);
    held.resize(0);
    let crowd: Vec<_> = crowd.into_iter().map(now).collect();
    assert_eq!(crowd.iter().filter(|granted| granted.is_ok()).count(), 1);
    assert!(now(last).is_ok(), "fifty others came before it, all from one address");
}

#[tokio::test(start_paused = true)]
async fn who_goes_away_leaves_the_line_and_gives_back_what_it_got() {
    let budget = MemoryBudget::new(100);
    let [a, b] = ["/a", "/b"].map(|address| budget.account(address));
    let held = now(a.reserve(100, 100)).unwrap();
    assert_eq!(budget.contended_since(), None);
    let begun = Instant::now();
    let first = a.reserve(10, 10);
    advance(Duration::from_secs(1)).await;
    let second = b.reserve(10, 10);
    assert_eq!(budget.contended_since(), Some(begun));
    drop(first);
    assert_eq!(budget.contended_since(), Some(begun), "somebody waits still");
    // Granted, and dropped before it was looked at.
    drop(held);
    assert_eq!((budget.used(), budget.contended_since()), (10, None));
    drop(second);
    assert_eq!(budget.used(), 0);
    assert!(budget.lock().addresses.is_empty() && budget.lock().turns.is_empty());
}
