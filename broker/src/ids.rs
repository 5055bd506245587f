//! Random ids, from the seed that the broker is handed.

use std::sync::{Arc, Mutex, PoisonError};

use rand::Rng;
use rand::rngs::StdRng;
use uuid::Uuid;

/// A source of random ids. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Ids(Arc<Mutex<StdRng>>);

impl Ids {
    /// Ids drawn from `rng`.
    pub(crate) fn new(rng: StdRng) -> Self {
        Self(Arc::new(Mutex::new(rng)))
    }

    /// An id that was never drawn before.
    pub(crate) fn next(&self) -> Uuid {
        let mut bytes = [0; 16];
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(&mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    }
}
