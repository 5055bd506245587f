//! The memory of answers: from when they are ready until their last byte is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::limits::{LEAST_FETCH_BYTES, REPLY_MEMORY_SHARE};

/// What the answers of all connections may take together (invariant 9). Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ReplyMemory {
    limit: usize,
    used: Arc<AtomicUsize>,
}

/// What the answers of one connection take of it.
#[derive(Debug)]
pub(crate) struct ConnectionReplies {
    memory: ReplyMemory,
    used: Arc<AtomicUsize>,
}

/// Memory that an answer holds; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct ReplyPermit {
    bytes: usize,
    counters: [Arc<AtomicUsize>; 2],
}

impl ReplyMemory {
    /// Memory of `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, used: Arc::default() }
    }

    /// Bytes that answers hold now.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// The account of a connection.
    pub(crate) fn connection(&self) -> ConnectionReplies {
        ConnectionReplies { memory: self.clone(), used: Arc::default() }
    }
}

impl ConnectionReplies {
    /// Bytes of this connection's answers that are not written yet.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether all connections together have reached the limit.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.memory.used() >= self.memory.limit
    }

    /// Takes memory for an answer that is there already, also beyond the limit.
    pub(crate) fn take(&self, bytes: usize) -> ReplyPermit {
        let counters = [self.memory.used.clone(), self.used.clone()];
        for used in &counters {
            used.fetch_add(bytes, Ordering::Relaxed);
        }
        ReplyPermit { bytes, counters }
    }

    /// Takes up to `bytes` for records that are to be read: at most a share of what is left, but
    /// always as much as a first batch has. So clients that do not read what they fetch never leave
    /// the others with nothing.
    pub(crate) fn take_up_to(&self, bytes: usize) -> ReplyPermit {
        let left = self.memory.limit.saturating_sub(self.memory.used());
        self.take(bytes.min((left / REPLY_MEMORY_SHARE).max(LEAST_FETCH_BYTES)))
    }
}

impl ReplyPermit {
    /// How much it is.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes it `bytes`, whatever it was.
    pub(crate) fn resize(&mut self, bytes: usize) {
        for used in &self.counters {
            used.fetch_add(bytes, Ordering::Relaxed);
            used.fetch_sub(self.bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }
}

impl Drop for ReplyPermit {
    fn drop(&mut self) {
        self.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_clients_leave_something_to_those_that_come_later() {
        let memory = ReplyMemory::new(256 << 20);
        let connections: Vec<ConnectionReplies> = (0..100).map(|_| memory.connection()).collect();
        let held: Vec<ReplyPermit> = connections.iter().map(|c| c.take_up_to(64 << 20)).collect();
        assert_eq!(held[0].bytes(), 64 << 20);
        assert!(held.iter().all(|permit| permit.bytes() >= LEAST_FETCH_BYTES));
        let most = (256 << 20) + 100 * LEAST_FETCH_BYTES;
        assert!(memory.used() <= most, "{} bytes", memory.used());
        drop(held);
        assert_eq!((memory.used(), connections[0].used()), (0, 0));
    }

    #[test]
    fn what_is_there_is_counted_beyond_the_limit() {
        let memory = ReplyMemory::new(1_000);
        let connection = memory.connection();
        let mut permit = connection.take(5_000);
        assert!(connection.is_exhausted());
        permit.resize(10);
        assert_eq!((memory.used(), connection.used(), connection.is_exhausted()), (10, 10, false));
    }
}
