//! Reading etcd: at most two ranges per call, at one revision, shared by all who ask at the same time.
//!
//! The keys of a cluster lie in three runs: brokers, cluster, commits, configs, groups, heads, leaders; the log;
//! offsets, producer-ids, snapshot, topics, watermarks. The log is never read, so two ranges cover everything, and the second is read
//! as of the first one's revision. What did not change since the last read (same mod revision) is not decoded again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use strandline_metadata::backend::{BackendError, KeyRange, KeyValue, RangeRequest, ReadBackend};
use strandline_metadata::keys::{Key, Keyspace};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::view::{Decoded, View};
use crate::clock::Clock;
use crate::limits::ETCD_READS_IN_FLIGHT;
use crate::metrics::Metrics;

/// What of the cluster a call needs: which families of keys. The less, the less etcd has to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Need(u8);

impl Need {
    /// Brokers, cluster, configs, groups, leaders.
    pub const PLAIN: Self = Self(1);
    const COMMITS: Self = Self(1 << 1);
    /// The snapshot.
    pub const SNAPSHOT: Self = Self(1 << 2);
    /// Topics.
    pub const TOPICS: Self = Self(1 << 3);
    const WATERMARKS: Self = Self(1 << 4);

    /// Topics and how far they are.
    pub const ENDS: Self = Self::TOPICS.and(Self::WATERMARKS);
    /// Topics, and what the cluster's defaults are.
    pub const PLAIN_AND_TOPICS: Self = Self::PLAIN.and(Self::TOPICS);
    /// The same, and how far they are.
    pub const PLAIN_AND_ENDS: Self = Self::PLAIN.and(Self::ENDS);
    /// Committed offsets, and the topics that they are for.
    pub const OFFSETS: Self = Self::COMMITS.and(Self::TOPICS);
    /// Groups, those too that only committed.
    pub const GROUPS: Self = Self::PLAIN.and(Self::COMMITS);
    /// The same, and topics.
    pub const GROUPS_AND_TOPICS: Self = Self::GROUPS.and(Self::TOPICS);
    /// Everything.
    pub const ALL: Self = Self::PLAIN.and(Self::COMMITS).and(Self::ENDS);

    /// Both. What lies between two families behind the log is read with them: it is one range.
    const fn and(self, other: Self) -> Self {
        let bits = self.0 | other.0;
        let stored = bits & !Self::PLAIN.0;
        if stored == 0 {
            return Self(bits);
        }
        let below_first = (1 << stored.trailing_zeros()) - 1;
        let to_last = u8::MAX >> stored.leading_zeros();
        Self(bits | (to_last & !below_first))
    }

    const fn has(self, family: Self) -> bool {
        self.0 & family.0 != 0
    }

    /// Whether what was read for `self` answers `other` as well.
    const fn covers(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The ranges that have it: two at most.
    fn spans(self, keys: &Keyspace) -> Vec<KeyRange> {
        let plain = self.has(Self::PLAIN).then(|| keys.brokers_to_leaders());
        let stored = [
            (Self::COMMITS, keys.offsets()),
            (Self::SNAPSHOT, KeyRange::key(keys.encode(&Key::Snapshot))),
            (Self::TOPICS, keys.topics()),
            (Self::WATERMARKS, keys.watermarks()),
        ];
        let stored = stored.into_iter().filter(|(family, _)| self.has(*family)).map(|(_, range)| range);
        plain.into_iter().chain(stored.reduce(KeyRange::to)).collect()
    }
}

/// Why etcd could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EtcdError {
    /// It did not answer in time.
    #[error("etcd did not answer within {0} ms")]
    TimedOut(u128),
    /// It cannot be reached, or refuses.
    #[error("etcd cannot be read: {0}")]
    Unavailable(String),
    /// The history of the revision was compacted between two reads.
    #[error("etcd's history was compacted while it was read")]
    Compacted,
}

/// What is known of etcd itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdHealth {
    /// When it was last read, ms since 1970.
    pub last_ok_ms: Option<i64>,
    /// How long that read took, in ms.
    pub last_took_ms: Option<u64>,
    /// The revision that it was as of.
    pub last_revision: Option<i64>,
    /// What went wrong in the newest read, if it did.
    pub error: Option<String>,
    /// When that was, ms since 1970.
    pub failed_at_ms: Option<i64>,
}

type Flight = Shared<BoxFuture<'static, Result<Arc<View>, EtcdError>>>;

/// etcd, as far as it may be read. Cheap to clone.
#[derive(Clone)]
pub struct EtcdSource {
    shared: Arc<SharedParts>,
}

struct SharedParts {
    reader: Arc<dyn ReadBackend>,
    keys: Keyspace,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    request_timeout: Duration,
    slots: Semaphore,
    flights: Mutex<Vec<(Need, Flight)>>,
    decoded: Mutex<HashMap<Bytes, (i64, Decoded)>>,
    health: Mutex<EtcdHealth>,
    cluster_id: Mutex<Option<String>>,
}

impl std::fmt::Debug for EtcdSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdSource").finish_non_exhaustive()
    }
}

impl EtcdSource {
    /// Reads the cluster of `keys` from `reader`.
    pub fn new(
        reader: Arc<dyn ReadBackend>,
        keys: Keyspace,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        request_timeout: Duration,
    ) -> Self {
        Self {
            shared: Arc::new(SharedParts {
                reader,
                keys,
                clock,
                metrics,
                request_timeout,
                slots: Semaphore::new(ETCD_READS_IN_FLIGHT),
                flights: Mutex::default(),
                decoded: Mutex::default(),
                health: Mutex::default(),
                cluster_id: Mutex::default(),
            }),
        }
    }

    /// The backend itself, for watches of single prefixes.
    pub(crate) fn reader(&self) -> &Arc<dyn ReadBackend> {
        &self.shared.reader
    }

    /// The cluster's keys.
    pub fn keys(&self) -> &Keyspace {
        &self.shared.keys
    }

    /// What is known of etcd itself.
    pub fn health(&self) -> EtcdHealth {
        self.shared.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The id of the cluster, once it was read. It never changes.
    pub fn cluster_id(&self) -> Option<String> {
        self.shared.cluster_id.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the newest read succeeded.
    pub fn is_reachable(&self) -> bool {
        let health = self.health();
        health.last_ok_ms.is_some() && health.error.is_none()
    }

    /// Reads what is needed. Whoever asks while somebody is reading that much shares the read.
    pub async fn read(&self, need: Need) -> Result<Arc<View>, EtcdError> {
        let flight = {
            let mut flights = self.shared.flights.lock().unwrap_or_else(PoisonError::into_inner);
            flights.retain(|(_, flight)| flight.peek().is_none());
            let known =
                flights.iter().find(|(known, _)| known.covers(need)).map(|(_, flight)| flight.clone());
            known.unwrap_or_else(|| {
                let shared = self.shared.clone();
                let flight = async move { shared.read(need).await }.boxed().shared();
                flights.push((need, flight.clone()));
                flight
            })
        };
        flight.await
    }
}

impl SharedParts {
    async fn read(&self, need: Need) -> Result<Arc<View>, EtcdError> {
        let begun = Instant::now();
        // Waiting for a slot and both reads together may take this long.
        let limit = self.request_timeout * 2;
        let result = timeout(limit, self.read_at_one_revision(need)).await;
        let result = result.unwrap_or(Err(EtcdError::TimedOut(limit.as_millis())));
        let now_ms = self.clock.now_ms();
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        match &result {
            Ok(view) => {
                if let Some(id) = view.cluster_id() {
                    *self.cluster_id.lock().unwrap_or_else(PoisonError::into_inner) = Some(id.to_owned());
                }
                *health = EtcdHealth {
                    last_ok_ms: Some(now_ms),
                    last_took_ms: u64::try_from(begun.elapsed().as_millis()).ok(),
                    last_revision: Some(view.revision),
                    error: None,
                    failed_at_ms: None,
                };
            }
            Err(error) => {
                health.error = Some(error.to_string());
                health.failed_at_ms = Some(now_ms);
            }
        }
        result
    }

    async fn read_at_one_revision(&self, need: Need) -> Result<Arc<View>, EtcdError> {
        let _slot = self.slots.acquire().await.map_err(|e| EtcdError::Unavailable(e.to_string()))?;
        let spans = need.spans(&self.keys);
        let mut revision = None;
        let mut kvs = Vec::new();
        for span in &spans {
            let (at, more) = self.range(span.clone(), revision).await?;
            revision = Some(revision.unwrap_or(at));
            kvs.extend(more);
        }
        let revision = revision.unwrap_or_default();
        let now_ms = self.clock.now_ms();
        let mut decoded = self.decoded.lock().unwrap_or_else(PoisonError::into_inner);
        let view = View::build(&self.keys, revision, now_ms, &kvs, &mut decoded);
        // What is gone from etcd is forgotten here too.
        let most = kvs.len().saturating_mul(2).max(10_000);
        if decoded.len() > most {
            let live: std::collections::HashSet<&Bytes> = kvs.iter().map(|kv| &kv.key).collect();
            decoded.retain(|key, _| live.contains(key) || !spans.iter().any(|span| span.contains(key)));
        }
        Ok(Arc::new(view))
    }

    async fn range(&self, keys: KeyRange, revision: Option<i64>) -> Result<(i64, Vec<KeyValue>), EtcdError> {
        let begun = Instant::now();
        let request = RangeRequest { keys, revision, limit: 0, keys_only: false };
        // The backend has a time-out of its own, which this one backs.
        let result = timeout(self.request_timeout, self.reader.range(request)).await;
        self.metrics.etcd_read(matches!(result, Ok(Ok(_))), begun.elapsed());
        match result {
            Ok(Ok(response)) => Ok((response.revision, response.kvs)),
            Ok(Err(error)) => Err(error_of(error)),
            Err(_) => Err(EtcdError::TimedOut(self.request_timeout.as_millis())),
        }
    }
}

fn error_of(error: BackendError) -> EtcdError {
    match error {
        BackendError::Compacted { .. } => EtcdError::Compacted,
        BackendError::Unavailable(why) if why.contains("no answer within") => EtcdError::Unavailable(why),
        BackendError::Unavailable(_)
        | BackendError::OutcomeUnknown(_)
        | BackendError::NoSpace
        | BackendError::TooLarge(_)
        | BackendError::Denied(_)
        | BackendError::LeaseGone(_)
        | BackendError::Broken(_) => EtcdError::Unavailable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_need_takes_more_than_two_ranges_and_each_has_what_it_says() {
        let keys = Keyspace::new("t").unwrap();
        let (offsets, topic) = (
            Key::Offsets { group: "g".to_owned(), topic: "t".to_owned(), part: 0 },
            Key::Topic("t".to_owned()),
        );
        let watermarks = Key::Watermarks { topic_id: uuid::Uuid::max(), part: 0 };
        let log = Key::Log { incarnation: 1, sequence: 1 };
        let families = [
            (Need::PLAIN, Key::Group("g".to_owned())),
            (Need::COMMITS, offsets),
            (Need::SNAPSHOT, Key::Snapshot),
            (Need::TOPICS, topic),
            (Need::WATERMARKS, watermarks),
        ];
        for first in &families {
            for second in &families {
                let need = first.0.and(second.0);
                let spans = need.spans(&keys);
                assert!(spans.len() <= 2, "{need:?}");
                let is_read = |key: &Key| spans.iter().any(|s| s.contains(&keys.encode(key)));
                for (family, key) in &families {
                    assert_eq!(need.covers(*family), is_read(key), "{need:?} {key:?}");
                }
                assert!(!is_read(&log), "{need:?}");
            }
        }
        assert!(Need::ALL.covers(Need::GROUPS_AND_TOPICS) && !Need::GROUPS.covers(Need::ALL));
    }
}
