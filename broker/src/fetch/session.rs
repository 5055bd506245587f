//! Incremental fetch sessions (KIP-227): the broker remembers what a consumer reads, so that a
//! request names only what changed and a response only what is new.
//!
//! Sessions live in this broker's memory and nowhere else. A consumer that moves to another broker
//! is told that its session is not known there, and sends a full fetch. A session is only made of
//! topics that exist, and all of them together have a bound in bytes: whoever gets none goes on
//! with full fetches. Each has a lock of its own, so that a large one holds up nobody else's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kafka_protocol::error::ResponseError;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use strandline_metadata::names::Names;
use tokio::time::Instant;
use uuid::Uuid;

use super::Fetched;
use crate::limits::{FETCH_SESSION_KEPT, FETCH_SESSION_PARTITION_BYTES, FETCH_SESSION_PARTITIONS};

/// A topic as the client names it. The name is shared by all partitions of a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TopicKey {
    Name(Arc<str>),
    Id(Uuid),
}

impl TopicKey {
    /// The topic's id, or the code that says why there is none.
    pub(crate) fn resolve(&self, names: &Names) -> Result<Uuid, ResponseError> {
        match self {
            Self::Id(id) if names.topic_by_id(*id).is_some() => Ok(*id),
            Self::Id(_) => Err(ResponseError::UnknownTopicId),
            Self::Name(name) => {
                let topic = names.topic(name).map(|topic| topic.value.topic_id);
                topic.ok_or(ResponseError::UnknownTopicOrPartition)
            }
        }
    }

    /// What a partition of it takes in a session, in bytes.
    fn bytes(&self) -> usize {
        let name = if let Self::Name(name) = self { name.len() } else { 0 };
        FETCH_SESSION_PARTITION_BYTES + name
    }
}

/// A partition as the client names it.
pub(crate) type PartitionKey = (TopicKey, i32);

/// What a client wants of a partition, until it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interest {
    pub(crate) offset: i64,
    pub(crate) max_bytes: i32,
    pub(crate) leader_epoch: i32,
}

#[derive(Debug)]
struct Remembered {
    interest: Interest,
    /// High watermark and log start as last sent; `None` if nothing was sent, or an error.
    sent: Option<(i64, i64)>,
}

#[derive(Debug)]
struct Session {
    /// The epoch that the next request must have.
    epoch: i32,
    partitions: BTreeMap<PartitionKey, Remembered>,
    /// The order in which they are read. Those that gave data go to the end, so that none starves.
    order: VecDeque<PartitionKey>,
    memory: SessionMemory,
}

/// Every session of this broker.
#[derive(Debug)]
pub(crate) struct FetchSessions {
    inner: Mutex<Inner>,
    /// Bytes of all sessions.
    used: Arc<AtomicUsize>,
    limit: usize,
    limit_bytes: usize,
}

#[derive(Debug)]
struct Inner {
    sessions: BTreeMap<i32, SharedSession>,
    rng: StdRng,
}

/// A session, and what may be known of it without its lock.
#[derive(Debug)]
struct SharedSession {
    session: Arc<Mutex<Session>>,
    used: Instant,
    partitions: usize,
}

/// The memory that a session takes of that of all; given back when the session ends.
#[derive(Debug)]
struct SessionMemory {
    bytes: usize,
    used: Arc<AtomicUsize>,
    limit: usize,
}

impl SessionMemory {
    fn new(used: Arc<AtomicUsize>, limit: usize) -> Self {
        Self { bytes: 0, used, limit }
    }

    /// Takes so much, if all sessions together may have it.
    fn take(&mut self, bytes: usize) -> bool {
        let fits = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.limit;
        self.bytes += bytes;
        if !fits {
            self.give_back(bytes);
        }
        fits
    }

    fn give_back(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for SessionMemory {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

/// What a request says about its session.
#[derive(Clone, Debug)]
pub(crate) struct SessionRequest {
    pub(crate) id: i32,
    pub(crate) epoch: i32,
    /// Each partition once.
    pub(crate) interests: Vec<(PartitionKey, Interest)>,
    pub(crate) forgotten: Vec<PartitionKey>,
    /// Whether all topics that it names exist: only those are remembered.
    pub(crate) names_exist: bool,
}

/// What is to be read, and how to answer.
#[derive(Clone, Debug)]
pub(crate) struct SessionFetch {
    /// The session to name in the response; 0 for none.
    pub(crate) id: i32,
    /// Whether partitions without news are left out of the response.
    pub(crate) incremental: bool,
    pub(crate) interests: Vec<(PartitionKey, Interest)>,
}

impl FetchSessions {
    /// No sessions; at most `limit` of them later, with `limit_bytes` together.
    pub(crate) fn new(limit: usize, limit_bytes: usize, seed: u64) -> Self {
        Self {
            inner: Mutex::new(Inner { sessions: BTreeMap::new(), rng: StdRng::seed_from_u64(seed) }),
            used: Arc::default(),
            limit,
            limit_bytes,
        }
    }

    /// How many sessions there are.
    pub(crate) fn len(&self) -> usize {
        lock(&self.inner).sessions.len()
    }

    /// What they take, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// How many partitions a session has; 0 if there is none. What is done with the session takes
    /// time with that number.
    pub(crate) fn partitions(&self, id: i32) -> usize {
        lock(&self.inner).sessions.get(&id).map_or(0, |session| session.partitions)
    }

    /// Takes a request in; an error is the whole response's.
    pub(crate) fn begin(&self, request: SessionRequest) -> Result<SessionFetch, ResponseError> {
        if request.epoch <= 0 {
            // −1 ends a session, 0 begins one; both are full fetches.
            let ended = lock(&self.inner).sessions.remove(&request.id);
            drop(ended);
            let id = if request.epoch == 0 { self.create(&request) } else { 0 };
            return Ok(SessionFetch { id, incremental: false, interests: request.interests });
        }
        let id = request.id;
        let session = self.find(id).ok_or(ResponseError::FetchSessionIdNotFound)?;
        let mut session = lock(&session);
        match session.update(request) {
            Ok(()) => {}
            Err(UpdateError::Refused(error)) => return Err(error),
            Err(UpdateError::CannotBeKept) => {
                // The client goes on with full fetches, which name whatever they like.
                drop(session);
                lock(&self.inner).sessions.remove(&id);
                return Err(ResponseError::FetchSessionIdNotFound);
            }
        }
        let interests: Vec<_> =
            session.order.iter().map(|key| (key.clone(), session.partitions[key].interest)).collect();
        if let Some(shared) = lock(&self.inner).sessions.get_mut(&id) {
            (shared.used, shared.partitions) = (Instant::now(), interests.len());
        }
        Ok(SessionFetch { id, incremental: true, interests })
    }

    /// Notes what is about to be sent, and says for each partition whether it belongs into the
    /// response.
    pub(crate) fn finish(&self, fetch: &SessionFetch, fetched: &[Fetched]) -> Vec<bool> {
        let Some(session) = self.find(fetch.id) else { return vec![true; fetched.len()] };
        let mut session = lock(&session);
        let mut gave_data = BTreeSet::new();
        let included = fetch.interests.iter().zip(fetched).map(|((key, _), fetched)| {
            let Some(known) = session.partitions.get_mut(key) else { return true };
            let marks = (fetched.high_watermark, fetched.log_start);
            let news = fetched.records.bytes > 0 || fetched.error.is_some() || known.sent != Some(marks);
            // An error is said again until the client does something about it.
            known.sent = fetched.error.is_none().then_some(marks);
            if fetched.records.bytes > 0 {
                gave_data.insert(key.clone());
            }
            news || !fetch.incremental
        });
        let included = included.collect();
        if gave_data.len() < session.order.len() {
            session.order.retain(|key| !gave_data.contains(key));
            session.order.extend(gave_data);
        }
        included
    }

    fn find(&self, id: i32) -> Option<Arc<Mutex<Session>>> {
        lock(&self.inner).sessions.get(&id).map(|shared| shared.session.clone())
    }

    /// A new session, or 0 if there is no room for it.
    fn create(&self, request: &SessionRequest) -> i32 {
        let interests = &request.interests;
        let is_possible = request.names_exist && interests.len() <= FETCH_SESSION_PARTITIONS;
        if interests.is_empty() || !is_possible || !self.make_room() {
            return 0;
        }
        let mut memory = SessionMemory::new(self.used.clone(), self.limit_bytes);
        let bytes: usize = interests.iter().map(|((topic, _), _)| topic.bytes()).sum();
        while !memory.take(bytes) {
            if !self.evict() {
                return 0;
            }
        }
        let order: VecDeque<PartitionKey> = interests.iter().map(|(key, _)| key.clone()).collect();
        let partitions = interests
            .iter()
            .map(|(key, interest)| (key.clone(), Remembered { interest: *interest, sent: None }))
            .collect();
        let session = Arc::new(Mutex::new(Session { epoch: 1, partitions, order, memory }));
        let shared = SharedSession { session, used: Instant::now(), partitions: interests.len() };
        let mut inner = lock(&self.inner);
        if inner.sessions.len() >= self.limit {
            return 0;
        }
        let mut id = 0;
        while id == 0 || inner.sessions.contains_key(&id) {
            id = inner.rng.random_range(1..=i32::MAX);
        }
        inner.sessions.insert(id, shared);
        id
    }

    /// Whether one session more may be had.
    fn make_room(&self) -> bool {
        self.limit > 0 && (self.len() < self.limit || self.evict())
    }

    /// Ends the session that was used least recently, unless that was a moment ago.
    fn evict(&self) -> bool {
        let mut inner = lock(&self.inner);
        let oldest = inner.sessions.iter().min_by_key(|(_, s)| s.used).map(|(&id, s)| (id, s.used));
        let old = oldest.filter(|(_, used)| used.elapsed() >= FETCH_SESSION_KEPT);
        let evicted = old.and_then(|(id, _)| inner.sessions.remove(&id));
        drop(inner);
        evicted.is_some()
    }
}

/// Why a session cannot go on as a request wants.
enum UpdateError {
    /// The session stays as it is.
    Refused(ResponseError),
    /// It would remember what does not exist, or more than may be remembered.
    CannotBeKept,
}

impl Session {
    /// Takes over what an incremental request says.
    fn update(&mut self, request: SessionRequest) -> Result<(), UpdateError> {
        let SessionRequest { epoch, interests, forgotten, names_exist, .. } = request;
        if self.epoch != epoch {
            return Err(UpdateError::Refused(ResponseError::InvalidFetchSessionEpoch));
        }
        let by_id = |key: &PartitionKey| matches!(key.0, TopicKey::Id(_));
        let known_by_id = self.order.front().map(by_id);
        let mut named = interests.iter().map(|(key, _)| key).chain(&forgotten);
        if named.any(|key| known_by_id.is_some_and(|known| known != by_id(key))) {
            return Err(UpdateError::Refused(ResponseError::FetchSessionTopicIdError));
        }
        if !names_exist && interests.iter().any(|(key, _)| !self.partitions.contains_key(key)) {
            return Err(UpdateError::CannotBeKept);
        }
        self.epoch = epoch.checked_add(1).unwrap_or(1);
        let forgets = !forgotten.is_empty();
        for key in forgotten {
            if self.partitions.remove(&key).is_some() {
                self.memory.give_back(key.0.bytes());
            }
        }
        if forgets {
            let partitions = &self.partitions;
            self.order.retain(|key| partitions.contains_key(key));
        }
        for (key, interest) in interests {
            if let Some(known) = self.partitions.get_mut(&key) {
                known.interest = interest;
                continue;
            }
            let is_full = self.partitions.len() >= FETCH_SESSION_PARTITIONS;
            if is_full || !self.memory.take(key.0.bytes()) {
                return Err(UpdateError::CannotBeKept);
            }
            self.partitions.insert(key.clone(), Remembered { interest, sent: None });
            self.order.push_back(key);
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = 128 << 20;

    fn key(partition: i32) -> PartitionKey {
        (TopicKey::Name("t".into()), partition)
    }

    fn at(offset: i64) -> Interest {
        Interest { offset, max_bytes: 100, leader_epoch: -1 }
    }

    fn request(id: i32, epoch: i32, interests: Vec<(PartitionKey, Interest)>) -> SessionRequest {
        SessionRequest { id, epoch, interests, forgotten: Vec::new(), names_exist: true }
    }

    fn quiet() -> Fetched {
        Fetched { high_watermark: 5, log_start: 0, ..Fetched::default() }
    }

    fn with_data() -> Fetched {
        let mut fetched = quiet();
        fetched.records.bytes = 10;
        fetched
    }

    #[tokio::test(start_paused = true)]
    async fn only_news_is_sent_and_what_gave_data_is_read_last() {
        let sessions = FetchSessions::new(2, BYTES, 1);
        let first =
            sessions.begin(request(0, 0, vec![(key(0), at(0)), (key(1), at(0)), (key(2), at(0))])).unwrap();
        assert!(first.id > 0 && !first.incremental);
        assert_eq!(sessions.finish(&first, &[quiet(), quiet(), quiet()]), [true, true, true]);
        let next = sessions.begin(request(first.id, 1, Vec::new())).unwrap();
        assert_eq!(sessions.finish(&next, &[with_data(), quiet(), quiet()]), [true, false, false]);
        let next = sessions.begin(request(first.id, 2, vec![(key(0), at(7))])).unwrap();
        let order: Vec<i32> = next.interests.iter().map(|((_, p), _)| *p).collect();
        assert_eq!(order, [1, 2, 0]);
        assert_eq!(next.interests[2].1.offset, 7);
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_fit_is_refused_by_code() {
        let sessions = FetchSessions::new(2, BYTES, 1);
        let known = sessions.begin(request(0, 0, vec![(key(0), at(0))])).unwrap();
        let refused = |r: SessionRequest| sessions.begin(r).unwrap_err();
        assert_eq!(refused(request(known.id + 1, 1, Vec::new())), ResponseError::FetchSessionIdNotFound);
        assert_eq!(refused(request(known.id, 2, Vec::new())), ResponseError::InvalidFetchSessionEpoch);
        let by_id = (TopicKey::Id(Uuid::from_u128(1)), 0);
        assert_eq!(
            refused(request(known.id, 1, vec![(by_id, at(0))])),
            ResponseError::FetchSessionTopicIdError
        );
        // Ending it: the next use does not find it.
        assert_eq!(sessions.begin(request(known.id, -1, vec![(key(0), at(0))])).unwrap().id, 0);
        assert_eq!(refused(request(known.id, 1, Vec::new())), ResponseError::FetchSessionIdNotFound);
    }

    #[tokio::test(start_paused = true)]
    async fn a_forgotten_partition_is_not_read_any_more() {
        let sessions = FetchSessions::new(2, BYTES, 1);
        let known = sessions.begin(request(0, 0, vec![(key(0), at(0)), (key(1), at(0))])).unwrap();
        let forget = SessionRequest { forgotten: vec![key(0)], ..request(known.id, 1, Vec::new()) };
        let next = sessions.begin(forget).unwrap();
        assert_eq!(next.interests.iter().map(|((_, p), _)| *p).collect::<Vec<_>>(), [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_cache_serves_without_sessions_until_one_is_old() {
        let sessions = FetchSessions::new(1, BYTES, 1);
        let new = || sessions.begin(request(0, 0, vec![(key(0), at(0))])).unwrap().id;
        let first = new();
        assert!(first > 0);
        assert_eq!(new(), 0);
        tokio::time::advance(FETCH_SESSION_KEPT).await;
        assert!(new() > 0);
        assert_eq!(sessions.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_exist_is_not_remembered() {
        let sessions = FetchSessions::new(2, BYTES, 1);
        let unknown = |r: SessionRequest| SessionRequest { names_exist: false, ..r };
        let made_up = vec![(key(0), at(0))];
        assert_eq!(sessions.begin(unknown(request(0, 0, made_up))).unwrap().id, 0);
        let known = sessions.begin(request(0, 0, vec![(key(0), at(0))])).unwrap();
        // A topic that is deleted meanwhile stays in the session, which says that it is unknown.
        let update = unknown(request(known.id, 1, vec![(key(0), at(7))]));
        assert_eq!(sessions.begin(update).unwrap().interests, [(key(0), at(7))]);
        let more = unknown(request(known.id, 2, vec![(key(1), at(0))]));
        assert_eq!(sessions.begin(more).unwrap_err(), ResponseError::FetchSessionIdNotFound);
        assert_eq!((sessions.len(), sessions.bytes()), (0, 0), "the client fetches without a session");
    }

    #[tokio::test(start_paused = true)]
    async fn all_sessions_together_have_a_bound_in_bytes() {
        let sessions = FetchSessions::new(1_000_000, BYTES, 1);
        let many = || (0..100_000).map(|partition| (key(partition), at(0))).collect::<Vec<_>>();
        let each = 100_000 * (FETCH_SESSION_PARTITION_BYTES + 1);
        let fit = BYTES / each;
        let begun = |_| sessions.begin(request(0, 0, many())).unwrap().id;
        let ids: Vec<i32> = (0..fit + 2).map(begun).collect();
        assert!(ids[..fit].iter().all(|id| *id > 0) && ids[fit..] == [0, 0]);
        assert_eq!(sessions.bytes(), fit * each);
        // One that forgets leaves room for others; one that wants too much ends.
        let forgotten = (0..1_000).map(key).collect();
        let forget = SessionRequest { forgotten, ..request(ids[0], 1, Vec::new()) };
        assert_eq!(sessions.begin(forget).unwrap().interests.len(), 99_000);
        assert_eq!(sessions.bytes(), fit * each - 1_000 * (FETCH_SESSION_PARTITION_BYTES + 1));
        assert!(sessions.begin(request(0, 0, vec![(key(0), at(0))])).unwrap().id > 0);
        let too_many = (0..2).map(|partition| (key(200_000 + partition), at(0))).collect();
        let refused = sessions.begin(request(ids[1], 1, too_many)).unwrap_err();
        assert_eq!(refused, ResponseError::FetchSessionIdNotFound);
        assert_eq!(sessions.partitions(ids[1]), 0);
        tokio::time::advance(FETCH_SESSION_KEPT).await;
        assert!(begun(0) > 0, "those that nobody used give way");
    }
}
