//! What waits to be written, and when it is time to write it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::{Entry, EntryResult};
use crate::config::ProduceConfig;
use crate::limits::BUFFER_UNIT;

/// One produce request that waits.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) entries: Vec<Entry>,
    pub(super) bytes: usize,
    pub(super) since: Instant,
    pub(super) reply: oneshot::Sender<Vec<EntryResult>>,
    /// Gives the space back when the request is done with.
    pub(super) space: OwnedSemaphorePermit,
}

/// Why a flush was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlushReason {
    /// The buffer was full enough.
    Size,
    /// The PUT budget allowed it.
    Budget,
    /// Something had waited for the linger.
    Linger,
}

impl FlushReason {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Budget => "budget",
            Self::Linger => "linger",
        }
    }
}

/// The token bucket of PUTs: sparse traffic finds tokens and goes out at once, sustained traffic is
/// batched.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    per_s: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl Budget {
    /// A full bucket.
    pub fn new(per_s: f64, burst: f64, now: Instant) -> Self {
        Self { per_s, burst, tokens: burst, at: now }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_s).min(self.burst);
        self.at = now;
    }

    /// Whether a PUT may be made now without waiting.
    pub fn allows(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.tokens >= 1.0
    }

    /// A PUT is made, whether or not the budget allowed it.
    pub fn spend(&mut self, now: Instant) {
        self.refill(now);
        self.tokens = (self.tokens - 1.0).max(0.0);
    }

    /// When the budget will allow the next PUT; `None` if it never will.
    pub fn next(&mut self, now: Instant) -> Option<Instant> {
        self.refill(now);
        if self.tokens >= 1.0 {
            return Some(now);
        }
        // A little later than that: rounding must not lead back here at a moment that still does
        // not allow it.
        (self.per_s > 0.0).then(|| {
            now + Duration::from_secs_f64((1.0 - self.tokens) / self.per_s) + Duration::from_millis(1)
        })
    }
}

/// The queue of the write path. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ProduceBuffer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    arrived: Notify,
    space: Arc<Semaphore>,
    space_units: u32,
}

#[derive(Debug, Default)]
struct Queue {
    requests: VecDeque<Queued>,
    bytes: usize,
    closed: bool,
}

impl ProduceBuffer {
    /// An empty buffer.
    pub fn new(config: &ProduceConfig) -> Self {
        let units = u32::try_from(config.buffer_bytes / BUFFER_UNIT).unwrap_or(u32::MAX >> 3);
        let shared = Shared {
            queue: Mutex::default(),
            arrived: Notify::new(),
            space: Arc::new(Semaphore::new(units as usize)),
            space_units: units,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Waits for space for `bytes`: this is what slows producers down when the store is slow
    /// (invariant 9).
    pub async fn reserve(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units =
            u32::try_from(bytes.div_ceil(BUFFER_UNIT)).unwrap_or(u32::MAX).clamp(1, self.shared.space_units);
        self.shared.space.clone().acquire_many_owned(units).await.ok()
    }

    /// Appends a request's entries, in order, at once. The receiver gets one result for each entry.
    /// `None` if the broker is leaving.
    pub fn append(
        &self,
        entries: Vec<Entry>,
        space: OwnedSemaphorePermit,
    ) -> Option<oneshot::Receiver<Vec<EntryResult>>> {
        let (reply, result) = oneshot::channel();
        let bytes = entries.iter().map(|e| e.batch.len()).sum();
        let mut queue = self.lock();
        if queue.closed {
            return None;
        }
        queue.bytes += bytes;
        queue.requests.push_back(Queued { entries, bytes, since: Instant::now(), reply, space });
        drop(queue);
        self.shared.arrived.notify_one();
        Some(result)
    }

    /// Bytes that wait to be taken by a flush.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Bytes that are buffered or being written.
    pub fn bytes_in_use(&self) -> usize {
        (self.shared.space_units as usize - self.shared.space.available_permits()) * BUFFER_UNIT
    }

    /// Takes no more requests.
    pub fn close(&self) {
        self.lock().closed = true;
        self.shared.arrived.notify_one();
    }

    /// Waits until something was appended since the last call.
    pub(super) async fn arrived(&self) {
        self.shared.arrived.notified().await;
    }

    /// Whether it is time for a flush, given that a PUT slot is free; or until when nothing happens
    /// unless something arrives.
    pub(super) fn due(
        &self,
        config: &ProduceConfig,
        budget: &mut Budget,
        now: Instant,
    ) -> Result<FlushReason, Option<Instant>> {
        let queue = self.lock();
        let Some(oldest) = queue.requests.front() else { return Err(None) };
        if queue.bytes >= config.flush_bytes {
            return Ok(FlushReason::Size);
        }
        if budget.allows(now) {
            return Ok(FlushReason::Budget);
        }
        let lingered = oldest.since + config.linger;
        if lingered <= now {
            return Ok(FlushReason::Linger);
        }
        Err(Some(budget.next(now).map_or(lingered, |at| at.min(lingered))))
    }

    /// Takes whole requests from the front until they make `flush_bytes`.
    pub(super) fn take(&self, flush_bytes: usize) -> Vec<Queued> {
        let mut queue = self.lock();
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(next) = queue.requests.front() {
            if bytes > 0 && bytes + next.bytes > flush_bytes {
                break;
            }
            bytes += next.bytes;
            taken.extend(queue.requests.pop_front());
        }
        queue.bytes -= bytes;
        taken
    }

    pub(super) fn is_finished(&self) -> bool {
        let queue = self.lock();
        queue.closed && queue.requests.is_empty()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, BytesMut};
    use strandline_storage::format::batch::{BATCH_HEADER_BYTES, VerifiedBatch, crc32c};
    use uuid::Uuid;

    use super::*;

    fn config() -> ProduceConfig {
        ProduceConfig {
            flush_bytes: 1000,
            linger: Duration::from_millis(250),
            put_budget_per_s: 4.0,
            put_budget_burst: 2.0,
            puts_in_flight: 4,
            buffer_bytes: 1 << 20,
        }
    }

    /// A batch of so many bytes, most of which mean nothing.
    fn entry(bytes: usize) -> Entry {
        let covered = vec![0; bytes - 21];
        let mut batch = BytesMut::with_capacity(bytes.max(BATCH_HEADER_BYTES));
        batch.put_i64(0);
        batch.put_i32(i32::try_from(bytes - 12).unwrap());
        batch.put_i32(0);
        batch.put_i8(2);
        batch.put_u32(crc32c(&covered));
        batch.put_slice(&covered);
        let batch = VerifiedBatch::new(batch.freeze()).unwrap();
        Entry { topic_id: Uuid::nil(), partition: 0, batch, offsets: 1, max_timestamp_ms: 0, producer: None }
    }

    async fn append(buffer: &ProduceBuffer, bytes: usize) {
        let space = buffer.reserve(bytes).await.unwrap();
        buffer.append(vec![entry(bytes)], space).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_budget_allows_the_next_put_when_it_says_that_it_will() {
        let begin = Instant::now();
        for step_us in 1..3000 {
            let mut budget = Budget::new(50.0, 1.0, begin);
            budget.spend(begin);
            let now = begin + Duration::from_micros(step_us);
            let next = budget.next(now).unwrap();
            assert!(next > now && budget.allows(next), "after {step_us} us");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn sparse_requests_go_out_at_once_and_sustained_ones_wait_for_the_budget() {
        let (buffer, config) = (ProduceBuffer::new(&config()), config());
        let mut budget = Budget::new(4.0, 2.0, Instant::now());
        for _ in 0..2 {
            append(&buffer, 100).await;
            assert_eq!(buffer.due(&config, &mut budget, Instant::now()), Ok(FlushReason::Budget));
            budget.spend(Instant::now());
            assert_eq!(buffer.take(1000).len(), 1);
        }
        append(&buffer, 100).await;
        let Err(Some(until)) = buffer.due(&config, &mut budget, Instant::now()) else {
            panic!("the budget is spent")
        };
        assert_eq!(until, Instant::now() + Duration::from_millis(250));
        append(&buffer, 900).await;
        assert_eq!(buffer.due(&config, &mut budget, Instant::now()), Ok(FlushReason::Size));
        assert_eq!(buffer.take(1000).len(), 2);
        assert_eq!(buffer.due(&config, &mut budget, Instant::now()), Err(None));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_budget_the_linger_flushes() {
        let config = ProduceConfig { put_budget_per_s: 0.0, ..config() };
        let buffer = ProduceBuffer::new(&config);
        let mut budget = Budget::new(0.0, 1.0, Instant::now());
        budget.spend(Instant::now());
        append(&buffer, 100).await;
        assert!(buffer.due(&config, &mut budget, Instant::now()).is_err());
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!(buffer.due(&config, &mut budget, Instant::now()), Ok(FlushReason::Linger));
    }

    #[tokio::test(start_paused = true)]
    async fn space_is_bounded_and_comes_back() {
        let buffer = ProduceBuffer::new(&config());
        let all = buffer.reserve(1 << 20).await.unwrap();
        let waiting = tokio::time::timeout(Duration::from_secs(5), buffer.reserve(1)).await;
        assert!(waiting.is_err(), "there is no space left");
        drop(all);
        assert!(buffer.reserve(1).await.is_some());
        buffer.close();
        let space = buffer.reserve(1).await.unwrap();
        assert!(buffer.append(vec![entry(100)], space).is_none(), "a closed buffer takes nothing");
    }
}
