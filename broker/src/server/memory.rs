//! Memory that all connections share: of requests while they arrive and are handled, of responses
//! from when they are built until their last byte is written (invariant 9).
//!
//! A [`MemoryBudget`] has a limit, and each connection an account of it. Who wants more than is
//! left waits in a line of its address, and the lines take turns. One address never holds more than
//! its share of the budget, except with a single permit: so clients that hold what they have leave
//! something to those of other addresses. The last part of that share is for connections that hold
//! little: so they leave something to those of their own address, too.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::limits::{
    ADDRESS_MEMORY_PERCENT, LARGE_HOLDERS_PERCENT, LAST_MEMORY_SHARE, MEMORY_GRANT_SHARE, SMALL_HOLDING_BYTES,
};

/// What all connections may take together. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct MemoryBudget {
    limit: usize,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    /// Addresses that hold something or wait for it.
    addresses: BTreeMap<Arc<str>, Address>,
    /// Addresses in whose lines somebody waits, the next one first.
    turns: VecDeque<Arc<str>>,
    contended_since: Option<Instant>,
    /// Numbers those who come, in their order.
    numbers: u64,
    /// Counts everybody who ever had to wait.
    waits: u64,
}

#[derive(Debug, Default)]
struct Address {
    used: usize,
    /// What those connections hold of it that hold little.
    used_by_small: usize,
    /// Those who will hold little, and the others, in the order in which they came.
    lines: [BTreeMap<u64, Waiter>; 2],
}

#[derive(Debug)]
struct Waiter {
    account: MemoryAccount,
    wish: Wish,
    grant: oneshot::Sender<MemoryPermit>,
}

/// What somebody wants.
#[derive(Clone, Copy, Debug)]
struct Wish {
    least: usize,
    most: usize,
    /// With the least of it the connection holds little.
    is_small: bool,
}

/// What one connection takes of a budget. Clones are the same account.
#[derive(Clone, Debug)]
pub(crate) struct MemoryAccount {
    budget: MemoryBudget,
    address: Arc<str>,
    used: Arc<AtomicUsize>,
}

/// Memory that is held; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct MemoryPermit {
    bytes: usize,
    account: MemoryAccount,
}

/// A place in the line, or the permit that came of it. Leaves the line when it is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    granted: oneshot::Receiver<MemoryPermit>,
    /// Dropped after the receiver, so that it finds nobody waiting there.
    place: Option<Place>,
}

#[derive(Debug)]
struct Place {
    account: MemoryAccount,
    number: u64,
}

impl MemoryBudget {
    /// A budget of `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, state: Arc::default() }
    }

    /// Most bytes that may be reserved at a time.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes that are held now.
    pub(crate) fn used(&self) -> usize {
        self.lock().used
    }

    /// How often somebody had to wait.
    pub(crate) fn waits(&self) -> u64 {
        self.lock().waits
    }

    /// Since when there has always been somebody who waits; `None` if nobody does.
    pub(crate) fn contended_since(&self) -> Option<Instant> {
        self.lock().contended_since
    }

    /// The account of a connection from `address`.
    pub(crate) fn account(&self, address: &str) -> MemoryAccount {
        MemoryAccount { budget: self.clone(), address: address.into(), used: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives what is left to those who wait, one address after the other.
    fn grant(&self) {
        let mut granted = Vec::new();
        let mut state = self.lock();
        let mut refused = 0;
        while refused < state.turns.len() {
            let Some(address) = state.turns.pop_front() else { break };
            let Some((number, wish)) = state.next_of(self.limit, &address) else {
                // All of it wait for what it holds itself: others go on.
                refused += 1;
                state.turns.push_back(address);
                continue;
            };
            let Some(bytes) = state.fitting(self.limit, &address, wish) else {
                // Nobody overtakes who waits for much, or it would wait for ever.
                state.turns.push_front(address);
                break;
            };
            refused = 0;
            if let Some(Waiter { account, grant, .. }) = state.leave(&address, number, true) {
                account.add(&mut state, bytes);
                granted.push((grant, MemoryPermit { bytes, account }));
            }
        }
        drop(state);
        for (grant, permit) in granted {
            // Who has gone meanwhile gives it back by that.
            let _ = grant.send(permit);
        }
    }
}

impl State {
    /// Who is the next in the lines of an address that does not wait for what this holds itself.
    /// Who wants little passes those that want more, but only into the part that is for the small:
    /// else these would wait for as long as those come.
    fn next_of(&self, limit: usize, address: &str) -> Option<(u64, Wish)> {
        let Address { used_by_small, lines, .. } = self.addresses.get(address)?;
        let [small, large] = lines.each_ref().map(|line| {
            let (number, waiter) = line.first_key_value()?;
            Some((*number, waiter.wish))
        });
        let may_be_next = |(_, wish): &(u64, Wish)| !self.has_its_share(limit, address, *wish);
        let of_the_small = limit / 100 * (ADDRESS_MEMORY_PERCENT - LARGE_HOLDERS_PERCENT);
        let may_pass = |(number, wish): &(u64, Wish)| {
            large.is_none_or(|(before, _)| *number < before) || used_by_small + wish.least <= of_the_small
        };
        let small = small.filter(may_be_next).filter(may_pass);
        small.into_iter().chain(large.filter(may_be_next)).min_by_key(|(number, _)| *number)
    }

    /// How much an address may have now, if at least the least.
    fn fitting(&self, limit: usize, address: &str, wish: Wish) -> Option<usize> {
        let Wish { least, most, .. } = wish;
        let left = limit.saturating_sub(self.used);
        if least > left || self.has_its_share(limit, address, wish) {
            return None;
        }
        let generous = left.saturating_sub(limit / LAST_MEMORY_SHARE) / MEMORY_GRANT_SHARE;
        let more = Wish { least: most.min(least.max(generous)), most, is_small: false };
        let is_left_to_others = more.least > least && self.has_its_share(limit, address, more);
        Some(if is_left_to_others { least } else { more.least })
    }

    /// Whether an address holds too much to have so much more. A single permit is always possible,
    /// however large.
    fn has_its_share(&self, limit: usize, address: &str, more: Wish) -> bool {
        let held = self.addresses.get(address).map_or(0, |a| a.used);
        let percent = if more.is_small { ADDRESS_MEMORY_PERCENT } else { LARGE_HOLDERS_PERCENT };
        held > 0 && held + more.least > limit / 100 * percent
    }

    /// Takes somebody out of a line. An address that had its turn has its next one after all
    /// others.
    fn leave(&mut self, address: &Arc<str>, number: u64, in_turn: bool) -> Option<Waiter> {
        let entry = self.addresses.get_mut(address)?;
        let waiter = entry.lines.iter_mut().find_map(|line| line.remove(&number));
        let is_waiting = entry.lines.iter().any(|line| !line.is_empty());
        if in_turn && is_waiting {
            self.turns.push_back(address.clone());
        } else if !is_waiting {
            self.turns.retain(|a| a != address);
            self.forget_idle(address);
        }
        if self.turns.is_empty() {
            self.contended_since = None;
        }
        waiter
    }

    fn forget_idle(&mut self, address: &str) {
        if self.addresses.get(address).is_some_and(|a| a.used == 0 && a.lines.iter().all(BTreeMap::is_empty))
        {
            self.addresses.remove(address);
        }
    }
}

impl MemoryAccount {
    /// Bytes that this connection holds.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// The budget that it is of.
    pub(crate) fn budget(&self) -> &MemoryBudget {
        &self.budget
    }

    /// Whether nothing is left for this connection's address.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.budget.lock().fitting(self.budget.limit, &self.address, self.wish(1, 1)).is_none()
    }

    fn wish(&self, least: usize, most: usize) -> Wish {
        Wish { least, most, is_small: self.used() + least <= SMALL_HOLDING_BYTES }
    }

    /// Takes memory for what is there already, also beyond the limit.
    pub(crate) fn take(&self, bytes: usize) -> MemoryPermit {
        self.add(&mut self.budget.lock(), bytes);
        MemoryPermit { bytes, account: self.clone() }
    }

    /// Waits for at least `least` bytes: as many as there are at all, if that is more. More are
    /// granted, up to `most`, while plenty is left: a share of that, so that clients which hold
    /// what they have leave something to those that come later.
    pub(crate) fn reserve(&self, least: usize, most: usize) -> Reservation {
        let limit = self.budget.limit;
        let (least, most) = (least.min(limit), most.max(least).min(limit));
        let wish = self.wish(least, most);
        let (grant, granted) = oneshot::channel();
        let mut state = self.budget.lock();
        let bytes = state.fitting(limit, &self.address, wish).filter(|_| state.turns.is_empty());
        if let Some(bytes) = bytes {
            self.add(&mut state, bytes);
            drop(state);
            // The receiver is in this very function.
            let _ = grant.send(MemoryPermit { bytes, account: self.clone() });
            return Reservation { granted, place: None };
        }
        state.numbers += 1;
        let number = state.numbers;
        let lines = &mut state.addresses.entry(self.address.clone()).or_default().lines;
        let [small, large] = lines;
        let line = if wish.is_small { small } else { large };
        line.insert(number, Waiter { account: self.clone(), wish, grant });
        if lines.iter().map(BTreeMap::len).sum::<usize>() == 1 {
            state.turns.push_back(self.address.clone());
        }
        state.contended_since.get_or_insert_with(Instant::now);
        drop(state);
        // Those before may all wait for what their addresses hold.
        self.budget.grant();
        let mut state = self.budget.lock();
        let lines = state.addresses.get(&self.address).map(|address| &address.lines);
        let still_waits = lines.is_some_and(|lines| lines.iter().any(|line| line.contains_key(&number)));
        state.waits += u64::from(still_waits);
        drop(state);
        Reservation { granted, place: Some(Place { account: self.clone(), number }) }
    }

    fn add(&self, state: &mut State, bytes: usize) {
        if bytes > 0 {
            self.hold(state, self.used() + bytes);
        }
    }

    fn give_back(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let mut state = self.budget.lock();
        self.hold(&mut state, self.used() - bytes);
        state.forget_idle(&self.address);
        let someone_waits = !state.turns.is_empty();
        drop(state);
        if someone_waits {
            self.budget.grant();
        }
    }

    /// From now on this connection holds so much.
    fn hold(&self, state: &mut State, bytes: usize) {
        let before = self.used.swap(bytes, Ordering::Relaxed);
        state.used = state.used - before + bytes;
        let address = state.addresses.entry(self.address.clone()).or_default();
        address.used = address.used - before + bytes;
        let of_small = |held: usize| if held <= SMALL_HOLDING_BYTES { held } else { 0 };
        address.used_by_small = address.used_by_small - of_small(before) + of_small(bytes);
    }
}

impl MemoryPermit {
    /// How much it is.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes it `bytes`, whatever it was.
    pub(crate) fn resize(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.bytes, bytes);
        if bytes >= before {
            self.account.add(&mut self.account.budget.lock(), bytes - before);
        } else {
            self.account.give_back(before - bytes);
        }
    }
}

impl Drop for MemoryPermit {
    fn drop(&mut self) {
        self.account.give_back(self.bytes);
    }
}

impl Future for Reservation {
    type Output = MemoryPermit;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<MemoryPermit> {
        match Pin::new(&mut self.granted).poll(cx) {
            Poll::Ready(Ok(permit)) => {
                self.place = None;
                Poll::Ready(permit)
            }
            // The waiter is in the line until it gets a permit.
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let budget = &self.account.budget;
        let left = budget.lock().leave(&self.account.address, self.number, false);
        // Those behind it may want less.
        if left.is_some() {
            budget.grant();
        }
    }
}

#[cfg(test)]
mod tests;
