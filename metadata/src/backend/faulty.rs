//! A backend that misbehaves on purpose, for tests and simulation: every way in which etcd and the
//! network may fail a client without breaking their promises, and some in which a watch breaks
//! them.
//!
//! ```text
//!   caller ── FaultyBackend ── any Backend
//!                  ▲
//!               Faults (handle): what happens, and how likely; may be changed while calls are under way
//! ```
//!
//! What happens is decided by a seed and by the order of calls. Nothing is spawned: a transaction
//! that is to be executed later is, by the first call after its time, or by
//! [`FaultyBackend::run_delayed`] as a task.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch as signal;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{
    Backend, BackendError, ChangedRequest, ChangedResponse, KeyRange, RangeRequest, RangeResponse,
    ReadBackend, Space, Txn, TxnResponse, Watch, WatchBatch,
};

/// The most transactions that wait to be executed later. One more is never executed, which may
/// happen as well.
const MAX_DELAYED: usize = 1024;

/// A way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Any call: it is not executed, [`BackendError::Unavailable`].
    Unavailable,
    /// A call that changes something: it is executed, [`BackendError::OutcomeUnknown`].
    AnswerLost,
    /// A transaction: [`BackendError::OutcomeUnknown`] at once, and it is executed later.
    ExecutedLater,
    /// A transaction or a new lease: it is not executed, [`BackendError::NoSpace`].
    NoSpace,
    /// A transaction: it is executed, [`BackendError::NoSpace`], as etcd answers when it goes over
    /// its quota.
    NoSpaceBehind,
    /// A watch: a batch with events is left out, silently.
    WatchGap,
    /// A watch: it delivers nothing any more, not even progress, and does not say so.
    WatchStuck,
    /// A watch: it ends with [`BackendError::Unavailable`].
    WatchBroken,
    /// A watch: it ends with [`BackendError::Compacted`].
    WatchCompacted,
}

/// How likely each fault is, from 0 (never, the default) to 1 (always), for each call or batch that
/// can have it.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultPlan {
    /// The chance of [`Fault::Unavailable`].
    pub unavailable: f64,
    /// The chance of [`Fault::AnswerLost`].
    pub answer_lost: f64,
    /// The chance of [`Fault::ExecutedLater`].
    pub executed_later: f64,
    /// After how long a transaction that is executed later is executed.
    pub later: RangeInclusive<Duration>,
    /// The chance of [`Fault::NoSpace`].
    pub no_space: f64,
    /// The chance of [`Fault::NoSpaceBehind`].
    pub no_space_behind: f64,
    /// How long a call takes before it is executed.
    pub call_delay: RangeInclusive<Duration>,
    /// How long a batch is under way.
    pub watch_delay: RangeInclusive<Duration>,
    /// The chance of [`Fault::WatchGap`].
    pub watch_gap: f64,
    /// The chance of [`Fault::WatchStuck`].
    pub watch_stuck: f64,
    /// The chance of [`Fault::WatchBroken`].
    pub watch_broken: f64,
    /// The chance of [`Fault::WatchCompacted`].
    pub watch_compacted: f64,
}

/// A backend between a caller and another backend, with faults.
pub struct FaultyBackend {
    inner: Arc<dyn Backend>,
    faults: Faults,
}

/// Says what goes wrong with a [`FaultyBackend`] and all watches that it opened. Clones are handles
/// of the same.
#[derive(Clone)]
pub struct Faults {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Signalled when a transaction is put off.
    put_off: signal::Sender<()>,
}

struct State {
    random: StdRng,
    plan: FaultPlan,
    injected: Vec<Fault>,
    counts: BTreeMap<Fault, u64>,
    /// Transactions that are to be executed, in the order of their time.
    delayed: VecDeque<(Instant, Txn)>,
}

impl Default for FaultPlan {
    fn default() -> Self {
        Self {
            unavailable: 0.0,
            answer_lost: 0.0,
            executed_later: 0.0,
            later: Duration::ZERO..=Duration::from_secs(2),
            no_space: 0.0,
            no_space_behind: 0.0,
            call_delay: Duration::ZERO..=Duration::ZERO,
            watch_delay: Duration::ZERO..=Duration::ZERO,
            watch_gap: 0.0,
            watch_stuck: 0.0,
            watch_broken: 0.0,
            watch_compacted: 0.0,
        }
    }
}

impl FaultPlan {
    fn chance(&self, fault: Fault) -> f64 {
        match fault {
            Fault::Unavailable => self.unavailable,
            Fault::AnswerLost => self.answer_lost,
            Fault::ExecutedLater => self.executed_later,
            Fault::NoSpace => self.no_space,
            Fault::NoSpaceBehind => self.no_space_behind,
            Fault::WatchGap => self.watch_gap,
            Fault::WatchStuck => self.watch_stuck,
            Fault::WatchBroken => self.watch_broken,
            Fault::WatchCompacted => self.watch_compacted,
        }
    }
}

impl Faults {
    /// Changes the plan from now on, also for watches that are open.
    pub fn set_plan(&self, plan: FaultPlan) {
        self.state().plan = plan;
    }

    /// Nothing goes wrong from now on. What was put off still happens.
    pub fn heal(&self) {
        self.set_plan(FaultPlan::default());
        self.state().injected.clear();
    }

    /// Lets the next call or batch that can have this fault have it.
    pub fn inject(&self, fault: Fault) {
        self.state().injected.push(fault);
    }

    /// How often a fault has happened.
    pub fn count(&self, fault: Fault) -> u64 {
        self.state().counts.get(&fault).copied().unwrap_or(0)
    }

    /// How many transactions are still to be executed.
    pub fn delayed(&self) -> usize {
        self.state().delayed.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic of a test that held the lock has failed that test already.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which of these faults happens now, if one does.
    fn decide(&self, possible: &[Fault]) -> Option<Fault> {
        let mut state = self.state();
        let chosen = possible.iter().copied().find(|fault| state.happens(*fault));
        if let Some(fault) = chosen {
            *state.counts.entry(fault).or_default() += 1;
        }
        chosen
    }

    fn call_delay(&self) -> Duration {
        let mut state = self.state();
        let delay = state.plan.call_delay.clone();
        state.duration(delay)
    }

    fn watch_delay(&self) -> Duration {
        let mut state = self.state();
        let delay = state.plan.watch_delay.clone();
        state.duration(delay)
    }

    fn put_off(&self, txn: Txn) {
        let mut state = self.state();
        let later = state.plan.later.clone();
        let due = Instant::now() + state.duration(later);
        if state.delayed.len() < MAX_DELAYED {
            let position = state.delayed.partition_point(|(other, _)| *other <= due);
            state.delayed.insert(position, (due, txn));
        }
        drop(state);
        self.shared.put_off.send_replace(());
    }

    fn take_due(&self) -> Option<Txn> {
        let mut state = self.state();
        let is_due = state.delayed.front().is_some_and(|(due, _)| *due <= Instant::now());
        if is_due { state.delayed.pop_front().map(|(_, txn)| txn) } else { None }
    }
}

impl State {
    /// Whether this fault happens now: because it was injected, or by its chance.
    fn happens(&mut self, fault: Fault) -> bool {
        let drawn: f64 = self.random.random();
        if let Some(index) = self.injected.iter().position(|injected| *injected == fault) {
            self.injected.remove(index);
            return true;
        }
        drawn < self.plan.chance(fault)
    }

    fn duration(&mut self, range: RangeInclusive<Duration>) -> Duration {
        if range.is_empty() { *range.start() } else { self.random.random_range(range) }
    }
}

impl FaultyBackend {
    /// Nothing goes wrong until [`FaultyBackend::faults`] is told so.
    pub fn new(inner: Arc<dyn Backend>, seed: u64) -> Self {
        let state = State {
            random: StdRng::seed_from_u64(seed),
            plan: FaultPlan::default(),
            injected: Vec::new(),
            counts: BTreeMap::new(),
            delayed: VecDeque::new(),
        };
        let shared = Shared { state: Mutex::new(state), put_off: signal::Sender::new(()) };
        Self { inner, faults: Faults { shared: Arc::new(shared) } }
    }

    /// The handle that says what goes wrong.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    /// Executes in time what was put off, although nobody calls. Never returns; may be dropped at
    /// any moment.
    pub async fn run_delayed(&self) {
        let mut put_off = self.faults.shared.put_off.subscribe();
        loop {
            put_off.borrow_and_update();
            self.execute_due().await;
            let next = self.faults.state().delayed.front().map(|(due, _)| *due);
            match next {
                // Something was put off, or something is due: the next round finds out.
                Some(due) => drop(timeout_at(due, put_off.changed()).await),
                None => drop(put_off.changed().await),
            }
        }
    }

    /// Executes what was put off and whose time has come. Whoever sent it has long stopped waiting
    /// for an answer.
    async fn execute_due(&self) {
        while let Some(txn) = self.faults.take_due() {
            drop(self.inner.txn(txn).await);
        }
    }

    /// What happens before a call is executed.
    async fn before(&self) -> Result<(), BackendError> {
        let delay = self.faults.call_delay();
        if !delay.is_zero() {
            sleep(delay).await;
        }
        self.execute_due().await;
        match self.faults.decide(&[Fault::Unavailable]) {
            Some(_) => Err(BackendError::Unavailable("a fault was injected".to_owned())),
            None => Ok(()),
        }
    }

    /// What happens after a call that changes something was executed.
    fn after<T>(&self, result: Result<T, BackendError>) -> Result<T, BackendError> {
        let result = result?;
        match self.faults.decide(&[Fault::AnswerLost]) {
            Some(_) => Err(lost()),
            None => Ok(result),
        }
    }
}

fn lost() -> BackendError {
    BackendError::OutcomeUnknown("a fault was injected".to_owned())
}

#[async_trait]
impl ReadBackend for FaultyBackend {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, BackendError> {
        self.before().await?;
        self.inner.range(request).await
    }

    async fn changed(&self, request: ChangedRequest) -> Result<ChangedResponse, BackendError> {
        self.before().await?;
        self.inner.changed(request).await
    }

    async fn watch(&self, keys: KeyRange, revision: i64) -> Result<Box<dyn Watch>, BackendError> {
        self.before().await?;
        let inner = self.inner.watch(keys, revision).await?;
        Ok(Box::new(FaultyWatch { inner, faults: self.faults.clone(), under_way: None, stuck: false }))
    }
}

#[async_trait]
impl Backend for FaultyBackend {
    async fn txn(&self, txn: Txn) -> Result<TxnResponse, BackendError> {
        self.before().await?;
        match self.faults.decide(&[Fault::NoSpace, Fault::NoSpaceBehind, Fault::ExecutedLater]) {
            Some(Fault::NoSpace) => Err(BackendError::NoSpace),
            Some(Fault::NoSpaceBehind) => {
                self.inner.txn(txn).await?;
                Err(BackendError::NoSpace)
            }
            Some(_) => {
                self.faults.put_off(txn);
                Err(lost())
            }
            None => self.after(self.inner.txn(txn).await),
        }
    }

    async fn lease_grant(&self, ttl_s: i64) -> Result<i64, BackendError> {
        self.before().await?;
        match self.faults.decide(&[Fault::NoSpace]) {
            Some(_) => Err(BackendError::NoSpace),
            None => self.after(self.inner.lease_grant(ttl_s).await),
        }
    }

    async fn lease_keep_alive(&self, lease: i64) -> Result<i64, BackendError> {
        self.before().await?;
        self.after(self.inner.lease_keep_alive(lease).await)
    }

    async fn lease_revoke(&self, lease: i64) -> Result<(), BackendError> {
        self.before().await?;
        self.after(self.inner.lease_revoke(lease).await)
    }

    async fn compact(&self, revision: i64) -> Result<(), BackendError> {
        self.before().await?;
        self.after(self.inner.compact(revision).await)
    }

    async fn space(&self) -> Result<Option<Space>, BackendError> {
        self.inner.space().await
    }
}

/// A watch with faults.
#[derive(Debug)]
struct FaultyWatch {
    inner: Box<dyn Watch>,
    faults: Faults,
    /// A batch that arrives at this time.
    under_way: Option<(Instant, WatchBatch)>,
    stuck: bool,
}

impl FaultyWatch {
    /// Takes the next batch from the store, if none is under way. Cancellation-safe, as the store's
    /// watch is.
    async fn send(&mut self) -> Result<Instant, BackendError> {
        if let Some((arrives_at, _)) = &self.under_way {
            return Ok(*arrives_at);
        }
        let batch = self.inner.next().await?;
        let arrives_at = Instant::now() + self.faults.watch_delay();
        self.under_way = Some((arrives_at, batch));
        Ok(arrives_at)
    }
}

#[async_trait]
impl Watch for FaultyWatch {
    async fn next(&mut self) -> Result<WatchBatch, BackendError> {
        loop {
            if self.stuck {
                std::future::pending::<()>().await;
            }
            let arrives_at = self.send().await?;
            if arrives_at > Instant::now() {
                sleep_until(arrives_at).await;
            }
            let Some((_, batch)) = self.under_way.take() else { continue };
            let endings = [Fault::WatchStuck, Fault::WatchBroken, Fault::WatchCompacted, Fault::WatchGap];
            // A report without events has none to lose.
            let possible = if batch.events.is_empty() { &endings[..3] } else { &endings[..] };
            match self.faults.decide(possible) {
                None => return Ok(batch),
                Some(Fault::WatchGap) => {}
                Some(Fault::WatchStuck) => self.stuck = true,
                Some(Fault::WatchCompacted) => return Err(BackendError::Compacted { oldest: 0 }),
                Some(_) => return Err(BackendError::Unavailable("a fault was injected".to_owned())),
            }
        }
    }
}

impl fmt::Debug for FaultyBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyBackend").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").field("plan", &self.state().plan).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
