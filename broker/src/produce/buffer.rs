//! What waits to be written, and when it is time to write it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::{Entry, EntryResult, ProduceError};
use crate::config::ProduceConfig;
use crate::limits::{BUFFER_UNIT, FLUSH_ENTRIES, PARTITIONS_PER_PUT, REQUEST_PART_ENTRIES};

/// One produce request that waits, or a part of one that has very many entries.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) entries: Vec<Entry>,
    pub(super) bytes: usize,
    pub(super) since: Instant,
    /// When it is answered at the latest. What was not taken by then is never written: its client
    /// sends it again, or has given it up. `None` if nobody waits for an answer.
    pub(super) deadline: Option<Instant>,
    pub(super) reply: oneshot::Sender<Vec<EntryResult>>,
    pub(super) held: Held,
    /// Where it is counted if it is large: part of a request that was split, or behind one on its
    /// connection.
    large: Option<Arc<AtomicUsize>>,
}

/// What is given back when a request is done with.
#[derive(Debug)]
pub(super) struct Held {
    _space: OwnedSemaphorePermit,
    turn: Option<LargeTurn>,
}

/// The turn of what is large, of which one is written at a time: so others wait for little.
#[derive(Debug)]
struct LargeTurn(Arc<Shared>);

impl Drop for LargeTurn {
    fn drop(&mut self) {
        self.0.lock().is_large_written = false;
        self.0.arrived.notify_one();
    }
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

/// The budget of PUTs: what is not spent is saved. While there are savings a flush goes out at
/// once; when they are used up, it waits for others to share its PUT.
///
/// A flush of many partitions leaves as many offset ranges in the state, whatever its PUT costs: so
/// it counts for more than one.
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

    /// A flush of so many partitions is made, whether or not the budget allowed it.
    pub fn spend(&mut self, now: Instant, partitions: usize) {
        self.refill(now);
        let more = partitions / PARTITIONS_PER_PUT;
        let price = 1.0 + f64::from(u32::try_from(more).unwrap_or(u32::MAX));
        self.tokens = (self.tokens - price).max(0.0);
    }

    /// PUTs that are saved.
    pub fn saved(&mut self, now: Instant) -> f64 {
        self.refill(now);
        self.tokens
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
    /// Counts those that had to wait for space.
    waits: AtomicU64,
}

/// What a connection has in the queue that is large: what it appends next does not come before
/// that. Used under the queue's lock only.
#[derive(Debug, Default)]
pub struct Lane {
    waiting: Arc<AtomicUsize>,
    /// The turn of the last.
    turn: AtomicU64,
}

/// Where a request is in the queue. The parts of one with very many entries have a turn each, so
/// that others with very many need not wait for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    turn: u64,
    /// In the order in which they came.
    number: u64,
}

/// Where what is large begins: nothing else has a turn.
const FIRST_LARGE: Place = Place { turn: 1, number: 0 };

#[derive(Debug, Default)]
struct Queue {
    requests: BTreeMap<Place, Queued>,
    appended: u64,
    /// Whose turn it is, among those that are large.
    turn: u64,
    is_large_written: bool,
    bytes: usize,
    entries: usize,
    /// Those of what is large.
    large_bytes: usize,
    large_entries: usize,
    closed: bool,
}

impl Queue {
    /// The next to be written: in the order in which they came, but for what is large, of which one
    /// is written at a time and each connection takes turns.
    fn first(&self) -> Option<(Place, &Queued)> {
        let small = self.requests.first_key_value().filter(|(_, queued)| queued.large.is_none());
        let large = self.requests.range(FIRST_LARGE..).next().filter(|_| !self.is_large_written);
        let first = small.into_iter().chain(large).min_by_key(|(place, _)| place.number);
        first.map(|(place, queued)| (*place, queued))
    }

    /// Bytes and entries of what may be written now.
    fn takeable(&self) -> (usize, usize) {
        if self.is_large_written {
            (self.bytes - self.large_bytes, self.entries - self.large_entries)
        } else {
            (self.bytes, self.entries)
        }
    }

    fn remove(&mut self, place: Place) -> Option<Queued> {
        let removed = self.requests.remove(&place)?;
        if let Some(waiting) = &removed.large {
            waiting.fetch_sub(1, Ordering::Relaxed);
            self.large_bytes -= removed.bytes;
            self.large_entries -= removed.entries.len();
        }
        self.bytes -= removed.bytes;
        self.entries -= removed.entries.len();
        Some(removed)
    }
}

/// A request that was appended.
#[derive(Debug, Default)]
pub struct BufferTicket {
    /// What it was split into, and is not decided yet.
    parts: VecDeque<TicketPart>,
    /// What became of the parts before.
    decided: Vec<EntryResult>,
}

#[derive(Debug)]
struct TicketPart {
    /// Where it is in the buffer.
    place: Place,
    /// One result for each entry.
    results: oneshot::Receiver<Vec<EntryResult>>,
}

impl BufferTicket {
    /// Waits until all entries are decided: one result for each of them, in their order. `None` if
    /// the broker ends first. Cancellation-safe.
    pub async fn results(&mut self) -> Option<Vec<EntryResult>> {
        while let Some(part) = self.parts.front_mut() {
            self.decided.extend((&mut part.results).await.ok()?);
            self.parts.pop_front();
        }
        Some(std::mem::take(&mut self.decided))
    }
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
            waits: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Waits for space for `bytes`: this is what slows producers down when the store is slow
    /// (invariant 9).
    pub async fn reserve(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units =
            u32::try_from(bytes.div_ceil(BUFFER_UNIT)).unwrap_or(u32::MAX).clamp(1, self.shared.space_units);
        let space = self.shared.space.clone();
        if let Ok(permit) = space.clone().try_acquire_many_owned(units) {
            return Some(permit);
        }
        self.shared.waits.fetch_add(1, Ordering::Relaxed);
        space.acquire_many_owned(units).await.ok()
    }

    /// Appends a request's entries, in order, at once, behind all that its connection has appended
    /// before. A request of more than `REQUEST_PART_ENTRIES` is split: its parts are written one
    /// after the other, whatever else is. `None` if the broker is leaving. Those that nothing has
    /// begun to write at `deadline` are dropped.
    pub fn append(
        &self,
        entries: Vec<Entry>,
        space: OwnedSemaphorePermit,
        deadline: Option<Instant>,
        lane: &Lane,
    ) -> Option<BufferTicket> {
        let parts = split(entries, space);
        let mut ticket = BufferTicket::default();
        let mut queue = self.lock();
        if queue.closed {
            return None;
        }
        let is_large = parts.len() > 1 || lane.waiting.load(Ordering::Relaxed) > 0;
        let first_turn = if is_large { (queue.turn + 1).max(lane.turn.load(Ordering::Relaxed)) } else { 0 };
        for (turn, (entries, space)) in (first_turn..).zip(parts) {
            let (reply, results) = oneshot::channel();
            let bytes = entries.iter().map(|e| e.batch.len()).sum();
            queue.appended += 1;
            let place = Place { turn, number: queue.appended };
            let large = is_large.then(|| lane.waiting.clone());
            if let Some(waiting) = &large {
                waiting.fetch_add(1, Ordering::Relaxed);
                lane.turn.store(turn, Ordering::Relaxed);
                queue.large_bytes += bytes;
                queue.large_entries += entries.len();
            }
            queue.bytes += bytes;
            queue.entries += entries.len();
            let held = Held { _space: space, turn: None };
            let queued = Queued { entries, bytes, since: Instant::now(), deadline, reply, held, large };
            queue.requests.insert(place, queued);
            ticket.parts.push_back(TicketPart { place, results });
        }
        drop(queue);
        self.shared.arrived.notify_one();
        Some(ticket)
    }

    /// Drops what nothing has begun to write of a request: it never will be written. `false` if it
    /// is too late for some of it.
    pub fn withdraw(&self, ticket: &BufferTicket) -> bool {
        let mut queue = self.lock();
        let withdrawn = ticket.parts.iter().filter(|part| queue.remove(part.place).is_some()).count();
        ticket.decided.is_empty() && withdrawn == ticket.parts.len()
    }

    /// Bytes that wait to be taken by a flush.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Bytes that are buffered or being written.
    pub fn bytes_in_use(&self) -> usize {
        (self.shared.space_units as usize - self.shared.space.available_permits()) * BUFFER_UNIT
    }

    /// Bytes that may be buffered or being written.
    pub fn limit(&self) -> usize {
        self.shared.space_units as usize * BUFFER_UNIT
    }

    /// How many requests had to wait for space.
    pub fn waits(&self) -> u64 {
        self.shared.waits.load(Ordering::Relaxed)
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
        let Some((_, oldest)) = queue.first() else { return Err(None) };
        let (bytes, entries) = queue.takeable();
        if bytes >= config.flush_bytes || entries >= FLUSH_ENTRIES || oldest.large.is_some() {
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

    /// Takes whole requests until they make `flush_bytes`, or have as many entries as one object
    /// takes, and at most one that is large. Those whose time is up are answered instead. There may
    /// be nothing left.
    pub(super) fn take(&self, flush_bytes: usize, now: Instant) -> Vec<Queued> {
        let (mut taken, mut expired) = (Vec::new(), Vec::new());
        let (mut bytes, mut entries) = (0, 0);
        let mut queue = self.lock();
        while let Some((place, next)) = queue.first() {
            let is_expired = next.deadline.is_some_and(|deadline| deadline <= now);
            let is_full = bytes + next.bytes > flush_bytes || entries + next.entries.len() > FLUSH_ENTRIES;
            if !is_expired && is_full && !taken.is_empty() {
                break;
            }
            let Some(mut next) = queue.remove(place) else { break };
            if is_expired {
                expired.push(next);
                continue;
            }
            if next.large.is_some() {
                queue.is_large_written = true;
                queue.turn = place.turn;
                next.held.turn = Some(LargeTurn(self.shared.clone()));
            }
            bytes += next.bytes;
            entries += next.entries.len();
            taken.push(next);
        }
        drop(queue);
        for Queued { entries, reply, .. } in expired {
            // Whoever waited may have gone.
            let _ = reply.send(vec![Err(ProduceError::Expired); entries.len()]);
        }
        taken
    }

    pub(super) fn is_finished(&self) -> bool {
        let queue = self.lock();
        queue.closed && queue.requests.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.shared.lock()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cuts a request's entries into parts, each with its share of the space.
fn split(
    mut entries: Vec<Entry>,
    mut space: OwnedSemaphorePermit,
) -> Vec<(Vec<Entry>, OwnedSemaphorePermit)> {
    let mut parts = Vec::with_capacity(entries.len().div_ceil(REQUEST_PART_ENTRIES));
    let units = space.num_permits().div_ceil(entries.len().div_ceil(REQUEST_PART_ENTRIES).max(1));
    while entries.len() > REQUEST_PART_ENTRIES {
        let Some(share) = space.split(units.min(space.num_permits())) else { break };
        let rest = entries.split_off(REQUEST_PART_ENTRIES);
        parts.push((std::mem::replace(&mut entries, rest), share));
    }
    parts.push((entries, space));
    parts
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
        Entry {
            topic_id: Uuid::nil(),
            partition: 0,
            batch,
            offsets: 1,
            max_timestamp_ms: 0,
            producer: None,
            transaction: 0,
        }
    }

    async fn append(buffer: &ProduceBuffer, bytes: usize) -> BufferTicket {
        append_until(buffer, bytes, None).await
    }

    async fn append_until(buffer: &ProduceBuffer, bytes: usize, deadline: Option<Instant>) -> BufferTicket {
        let space = buffer.reserve(bytes).await.unwrap();
        buffer.append(vec![entry(bytes)], space, deadline, &Lane::default()).unwrap()
    }

    fn take(buffer: &ProduceBuffer) -> Vec<Queued> {
        buffer.take(1000, Instant::now())
    }

    impl ProduceBuffer {
        fn requests_that_are_large(&self) -> usize {
            self.lock().requests.values().filter(|queued| queued.large.is_some()).count()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_budget_allows_the_next_put_when_it_says_that_it_will() {
        let begin = Instant::now();
        for step_us in 1..3000 {
            let mut budget = Budget::new(50.0, 1.0, begin);
            budget.spend(begin, 1);
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
            budget.spend(Instant::now(), 1);
            assert_eq!(take(&buffer).len(), 1);
        }
        append(&buffer, 100).await;
        let Err(Some(until)) = buffer.due(&config, &mut budget, Instant::now()) else {
            panic!("the budget is spent")
        };
        assert_eq!(until, Instant::now() + Duration::from_millis(250));
        append(&buffer, 900).await;
        assert_eq!(buffer.due(&config, &mut budget, Instant::now()), Ok(FlushReason::Size));
        assert_eq!(take(&buffer).len(), 2);
        assert_eq!(buffer.due(&config, &mut budget, Instant::now()), Err(None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_spent_is_saved_and_a_flush_of_many_partitions_costs_more() {
        let begin = Instant::now();
        let mut budget = Budget::new(4.0, 3_600.0, begin);
        for _ in 0..3_600 {
            assert!(budget.allows(begin));
            budget.spend(begin, 1);
        }
        assert!(!budget.allows(begin));
        tokio::time::advance(Duration::from_mins(5)).await;
        let now = Instant::now();
        assert!((budget.saved(now) - 1_200.0).abs() < 1e-6);
        budget.spend(now, PARTITIONS_PER_PUT * 100);
        assert!((budget.saved(now) - 1_099.0).abs() < 1e-6);
        tokio::time::advance(Duration::from_hours(1)).await;
        assert!((budget.saved(Instant::now()) - 3_600.0).abs() < 1e-6, "no more than that");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_budget_the_linger_flushes() {
        let config = ProduceConfig { put_budget_per_s: 0.0, ..config() };
        let buffer = ProduceBuffer::new(&config);
        let mut budget = Budget::new(0.0, 1.0, Instant::now());
        budget.spend(Instant::now(), 1);
        append(&buffer, 100).await;
        assert!(buffer.due(&config, &mut budget, Instant::now()).is_err());
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!(buffer.due(&config, &mut budget, Instant::now()), Ok(FlushReason::Linger));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_of_very_many_partitions_is_split_and_answered_as_one() {
        let (buffer, config) = (ProduceBuffer::new(&config()), config());
        let mut budget = Budget::new(4.0, 2.0, Instant::now());
        let count = 2 * REQUEST_PART_ENTRIES + 1;
        let entries = (0..).take(count).map(|partition| Entry { partition, ..entry(61) }).collect();
        let space = buffer.reserve(count * 4).await.unwrap();
        let mut appended = buffer.append(entries, space, None, &Lane::default()).unwrap();
        let in_use = buffer.bytes_in_use();
        let mut first = 0;
        for expected in [REQUEST_PART_ENTRIES, REQUEST_PART_ENTRIES, 1] {
            assert!(buffer.due(&config, &mut budget, Instant::now()).is_ok());
            let taken = buffer.take(usize::MAX, Instant::now());
            let [part] = &taken[..] else { panic!("{} requests are in one flush", taken.len()) };
            assert_eq!((part.entries.len(), part.entries[0].partition), (expected, first));
            first += u32::try_from(expected).unwrap();
            for Queued { entries, reply, .. } in taken {
                reply.send(entries.iter().map(|e| Ok(e.partition.into())).collect()).unwrap();
            }
        }
        assert!(in_use > 0 && buffer.bytes_in_use() == 0 && buffer.bytes() == 0);
        let results = appended.results().await.unwrap();
        assert!(results.len() == count && results.into_iter().eq((0..).take(count).map(Ok)));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_of_many_partitions_share_a_flush_as_far_as_an_object_goes() {
        let buffer = ProduceBuffer::new(&config());
        let requests = FLUSH_ENTRIES / REQUEST_PART_ENTRIES;
        for count in std::iter::repeat_n(REQUEST_PART_ENTRIES, requests).chain([1]) {
            let space = buffer.reserve(1).await.unwrap();
            buffer.append(vec![entry(61); count], space, None, &Lane::default()).unwrap();
        }
        let taken = [(); 2].map(|()| buffer.take(usize::MAX, Instant::now()).len());
        assert_eq!(taken, [requests, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_of_very_many_partitions_holds_up_its_own_connection_only() {
        const PART: usize = REQUEST_PART_ENTRIES;
        let (buffer, config, lane) = (ProduceBuffer::new(&config()), config(), Lane::default());
        let mut budget = Budget::new(0.0, 0.0, Instant::now());
        let put = async |count: usize, lane: &Lane| {
            let entries = (0..).take(count).map(|partition| Entry { partition, ..entry(61) }).collect();
            let space = buffer.reserve(count * 4).await.unwrap();
            buffer.append(entries, space, None, lane).unwrap()
        };
        let sizes = |taken: &[Queued]| -> Vec<usize> { taken.iter().map(|q| q.entries.len()).collect() };
        let take = || buffer.take(usize::MAX, Instant::now());
        let _large = put(3 * PART, &lane).await;
        let first = take();
        assert_eq!(sizes(&first), [PART]);
        let _behind = put(2, &lane).await;
        let _other = put(2 * PART, &Lane::default()).await;
        // While a part is written, only others are.
        assert_eq!(buffer.due(&config, &mut budget, Instant::now()), Err(None));
        let _neighbour = put(1, &Lane::default()).await;
        assert_eq!(sizes(&take()), [1]);
        drop(first);
        let mut order = Vec::new();
        while buffer.due(&config, &mut budget, Instant::now()) == Ok(FlushReason::Size) {
            order.push(sizes(&take()));
        }
        // Those that are large take turns, and each connection's are in the order in which it sent
        // them.
        assert_eq!(order, [[PART], [PART], [PART], [2], [PART]].map(Vec::from));
        // What comes long after a large one is not held up any more.
        let _later = put(1, &lane).await;
        assert_eq!(buffer.requests_that_are_large(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_of_very_many_partitions_is_written_while_others_fill_every_flush() {
        let buffer = ProduceBuffer::new(&config());
        let small = async || append(&buffer, 900).await;
        let _first = small().await;
        let space = buffer.reserve(1).await.unwrap();
        let large = vec![entry(61); 2 * REQUEST_PART_ENTRIES];
        let _large = buffer.append(large, space, None, &Lane::default()).unwrap();
        let mut flushes = Vec::new();
        for _ in 0..4 {
            let _next = small().await;
            flushes.push(take(&buffer).iter().map(|queued| queued.entries.len()).collect::<Vec<_>>());
        }
        assert_eq!(flushes, [vec![1], vec![REQUEST_PART_ENTRIES], vec![REQUEST_PART_ENTRIES], vec![1]]);
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
        assert!(
            buffer.append(vec![entry(100)], space, None, &Lane::default()).is_none(),
            "a closed buffer takes nothing"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_nothing_has_begun_to_write_in_its_time_never_is_written() {
        let buffer = ProduceBuffer::new(&config());
        let deadline = Instant::now() + Duration::from_secs(1);
        let _unanswered = append(&buffer, 100).await;
        let mut expiring = append_until(&buffer, 200, Some(deadline)).await;
        let later = append_until(&buffer, 300, Some(deadline + Duration::from_secs(1))).await;
        tokio::time::advance(Duration::from_secs(1)).await;
        let taken: Vec<usize> = take(&buffer).iter().map(|q| q.bytes).collect();
        assert_eq!(taken, [100, 300], "the others keep their order");
        assert_eq!(expiring.results().await.unwrap(), [Err(ProduceError::Expired)]);
        assert!(!buffer.withdraw(&later), "it is being written");
        assert_eq!(buffer.bytes(), 0);

        let withdrawn = append_until(&buffer, 400, Some(deadline)).await;
        assert!(buffer.withdraw(&withdrawn) && !buffer.withdraw(&withdrawn));
        assert!(take(&buffer).is_empty());
        assert_eq!((buffer.bytes(), buffer.bytes_in_use()), (0, 0), "its space is free again");
    }
}
