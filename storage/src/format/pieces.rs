//! The pieces of an object that is being built: large ones stay in the buffers that they came in,
//! small ones are copied together, since a request body of many small pieces costs more CPU than
//! the copy does.

use bytes::{Bytes, BytesMut};

use crate::limits::{COALESCE_BELOW_BYTES, COALESCE_BUFFER_BYTES};

/// Pieces in order.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    whole: Vec<Bytes>,
    small: BytesMut,
}

impl Pieces {
    /// Adds bytes, without a copy if they are many.
    pub(super) fn push(&mut self, bytes: Bytes) {
        if bytes.len() >= COALESCE_BELOW_BYTES {
            self.flush_small();
            self.whole.push(bytes);
        } else {
            self.copy(&bytes);
        }
    }

    /// Adds a copy of few bytes.
    pub(super) fn copy(&mut self, bytes: &[u8]) {
        if self.small.capacity() - self.small.len() < bytes.len() {
            self.flush_small();
            self.small = BytesMut::with_capacity(COALESCE_BUFFER_BYTES.max(bytes.len()));
        }
        self.small.extend_from_slice(bytes);
    }

    /// All of them.
    pub(super) fn finish(mut self) -> Vec<Bytes> {
        if self.small.len() < COALESCE_BUFFER_BYTES / 2 {
            // The object may be cached as it is sent, and must take no more memory than it has
            // bytes.
            self.small = BytesMut::from(&self.small[..]);
        }
        self.flush_small();
        self.whole
    }

    fn flush_small(&mut self) {
        if !self.small.is_empty() {
            self.whole.push(self.small.split().freeze());
        }
    }
}
