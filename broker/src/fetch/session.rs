//! Incremental fetch sessions (KIP-227): the broker remembers what a consumer reads, so that a
//! request names only what changed and a response only what is new.
//!
//! Sessions live in this broker's memory and nowhere else. A consumer that moves to another broker
//! is told that its session is not known there, and sends a full fetch.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use kafka_protocol::error::ResponseError;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;
use uuid::Uuid;

use super::Fetched;
use crate::limits::{FETCH_SESSION_KEPT, FETCH_SESSION_PARTITIONS};

/// A topic as the client names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TopicKey {
    Name(String),
    Id(Uuid),
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
    used: Instant,
}

/// Every session of this broker.
#[derive(Debug)]
pub(crate) struct FetchSessions {
    inner: Mutex<Inner>,
    limit: usize,
}

#[derive(Debug)]
struct Inner {
    sessions: BTreeMap<i32, Session>,
    rng: StdRng,
}

/// What a request says about its session.
#[derive(Clone, Debug)]
pub(crate) struct SessionRequest {
    pub(crate) id: i32,
    pub(crate) epoch: i32,
    pub(crate) interests: Vec<(PartitionKey, Interest)>,
    pub(crate) forgotten: Vec<PartitionKey>,
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
    /// No sessions; at most `limit` of them later.
    pub(crate) fn new(limit: usize, seed: u64) -> Self {
        Self {
            inner: Mutex::new(Inner { sessions: BTreeMap::new(), rng: StdRng::seed_from_u64(seed) }),
            limit,
        }
    }

    /// How many sessions there are.
    pub(crate) fn len(&self) -> usize {
        self.lock().sessions.len()
    }

    /// Takes a request in; an error is the whole response's.
    pub(crate) fn begin(&self, request: SessionRequest) -> Result<SessionFetch, ResponseError> {
        let mut inner = self.lock();
        let SessionRequest { id, epoch, interests, forgotten } = request;
        if epoch <= 0 {
            // −1 ends a session, 0 begins one; both are full fetches.
            inner.sessions.remove(&id);
            let id = if epoch == 0 { inner.create(&interests, self.limit) } else { 0 };
            return Ok(SessionFetch { id, incremental: false, interests });
        }
        let session = inner.sessions.get_mut(&id).ok_or(ResponseError::FetchSessionIdNotFound)?;
        if session.epoch != epoch {
            return Err(ResponseError::InvalidFetchSessionEpoch);
        }
        let by_id = |key: &PartitionKey| matches!(key.0, TopicKey::Id(_));
        let known_by_id = session.order.front().map(by_id);
        if interests
            .iter()
            .map(|(key, _)| key)
            .chain(&forgotten)
            .any(|key| known_by_id.is_some_and(|k| k != by_id(key)))
        {
            return Err(ResponseError::FetchSessionTopicIdError);
        }
        session.epoch = epoch.checked_add(1).unwrap_or(1);
        session.used = Instant::now();
        for key in forgotten {
            session.partitions.remove(&key);
        }
        for (key, interest) in interests {
            if let Some(known) = session.partitions.get_mut(&key) {
                known.interest = interest;
            } else if session.partitions.len() < FETCH_SESSION_PARTITIONS {
                session.partitions.insert(key.clone(), Remembered { interest, sent: None });
                session.order.push_back(key);
            } else {
                return Err(ResponseError::InvalidRequest);
            }
        }
        let partitions = &session.partitions;
        session.order.retain(|key| partitions.contains_key(key));
        let interests = session.order.iter().map(|key| (key.clone(), partitions[key].interest)).collect();
        Ok(SessionFetch { id, incremental: true, interests })
    }

    /// Notes what is about to be sent, and says for each partition whether it belongs into the
    /// response.
    pub(crate) fn finish(&self, fetch: &SessionFetch, fetched: &[Fetched]) -> Vec<bool> {
        let mut inner = self.lock();
        let Some(session) = inner.sessions.get_mut(&fetch.id) else { return vec![true; fetched.len()] };
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

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// A new session, or 0 if there is no room for it.
    fn create(&mut self, interests: &[(PartitionKey, Interest)], limit: usize) -> i32 {
        if interests.is_empty() || interests.len() > FETCH_SESSION_PARTITIONS || limit == 0 {
            return 0;
        }
        let now = Instant::now();
        if self.sessions.len() >= limit {
            let oldest = self.sessions.iter().min_by_key(|(_, s)| s.used).map(|(&id, s)| (id, s.used));
            match oldest {
                Some((id, used)) if now.saturating_duration_since(used) >= FETCH_SESSION_KEPT => {
                    self.sessions.remove(&id);
                }
                _ => return 0,
            }
        }
        let mut id = 0;
        while id == 0 || self.sessions.contains_key(&id) {
            id = self.rng.random_range(1..=i32::MAX);
        }
        let order: VecDeque<PartitionKey> = interests.iter().map(|(key, _)| key.clone()).collect();
        let partitions = interests
            .iter()
            .map(|(key, interest)| (key.clone(), Remembered { interest: *interest, sent: None }))
            .collect();
        self.sessions.insert(id, Session { epoch: 1, partitions, order, used: now });
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(partition: i32) -> PartitionKey {
        (TopicKey::Name("t".to_owned()), partition)
    }

    fn at(offset: i64) -> Interest {
        Interest { offset, max_bytes: 100, leader_epoch: -1 }
    }

    fn request(id: i32, epoch: i32, interests: Vec<(PartitionKey, Interest)>) -> SessionRequest {
        SessionRequest { id, epoch, interests, forgotten: Vec::new() }
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
        let sessions = FetchSessions::new(2, 1);
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
        let sessions = FetchSessions::new(2, 1);
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
        let sessions = FetchSessions::new(2, 1);
        let known = sessions.begin(request(0, 0, vec![(key(0), at(0)), (key(1), at(0))])).unwrap();
        let forget = SessionRequest { forgotten: vec![key(0)], ..request(known.id, 1, Vec::new()) };
        let next = sessions.begin(forget).unwrap();
        assert_eq!(next.interests.iter().map(|((_, p), _)| *p).collect::<Vec<_>>(), [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_cache_serves_without_sessions_until_one_is_old() {
        let sessions = FetchSessions::new(1, 1);
        let new = || sessions.begin(request(0, 0, vec![(key(0), at(0))])).unwrap().id;
        let first = new();
        assert!(first > 0);
        assert_eq!(new(), 0);
        tokio::time::advance(FETCH_SESSION_KEPT).await;
        assert!(new() > 0);
        assert_eq!(sessions.len(), 1);
    }
}
