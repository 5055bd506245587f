//! Everything random of a run comes from its seed, through here.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// A source of randomness. Clones draw from the same one.
#[derive(Clone, Debug)]
pub(crate) struct Random(Arc<Mutex<StdRng>>);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// Another source, which does not change what this one gives later, however often it is drawn
    /// from.
    pub(crate) fn fork(&self) -> Self {
        Self::new(self.number())
    }

    pub(crate) fn number(&self) -> u64 {
        self.with(RngExt::random)
    }

    pub(crate) fn chance(&self, probability: f64) -> bool {
        self.with(|rng| rng.random_bool(probability))
    }

    pub(crate) fn below(&self, end: usize) -> usize {
        self.with(|rng| rng.random_range(0..end))
    }

    pub(crate) fn between(&self, range: RangeInclusive<i64>) -> i64 {
        self.with(|rng| rng.random_range(range))
    }

    /// A duration from `from` to `to`, both in milliseconds.
    pub(crate) fn ms(&self, from: u64, to: u64) -> Duration {
        Duration::from_micros(self.with(|rng| rng.random_range(from * 1000..=to * 1000)))
    }

    pub(crate) fn pick<'a, T>(&self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    fn with<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
