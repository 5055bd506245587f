//! The store as a pure state machine: revisions, versions of keys, history, and which keys hang on
//! which lease.
//!
//! No clock, no I/O, no randomness: time decides elsewhere that a lease has ended, and tells this
//! by [`Mvcc::end_lease`]. Each change returns the [`Record`] that [`Mvcc::replay`] turns into the
//! same change again.
//!
//! ```text
//!             oldest                                   revision
//!               │                                         │
//!  keys      ───●──v──────v────────v───────v──────────v───●      versions of each key, newest last
//!  history      [events][events][events] …           [events]   one entry per revision: it is dense
//!  ◀─ gone ─────┤
//! ```

#[cfg(feature = "etcd-api")]
pub(super) mod inspect;
mod replay;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use bytes::Bytes;

use super::record::{Change, Record};
use crate::backend::request::{check_range, check_revision};
use crate::backend::txn_rules::{check_txn_limits, check_txn_shape};
use crate::backend::{
    BackendError, ChangedRequest, ChangedResponse, Compare, Event, KeyRange, KeyValue, Op, OpResponse,
    RangeRequest, RangeResponse, Txn, TxnResponse,
};

/// The revision of an empty store, as in etcd: the first change makes revision 2.
pub(super) const FIRST_REVISION: i64 = 1;

/// All keys with their history since `oldest`.
#[derive(Clone, Debug)]
pub(super) struct Mvcc {
    /// Revision of the newest change.
    revision: i64,
    /// The oldest revision that can be read or watched.
    oldest: i64,
    /// Versions of every key, oldest first. Only the newest may be older than `oldest`.
    keys: BTreeMap<Bytes, Vec<Version>>,
    /// What happened at each revision; the last entry is that of `revision`.
    history: VecDeque<Vec<Event>>,
    leases: BTreeMap<i64, Lease>,
    last_lease: i64,
}

#[derive(Clone, Debug)]
struct Version {
    revision: i64,
    /// `None` is a deletion.
    value: Option<KeyValue>,
}

#[derive(Clone, Debug, Default)]
struct Lease {
    ttl_s: i64,
    keys: BTreeSet<Bytes>,
}

/// The branches that a transaction takes, decided before its first step.
struct Path<'a> {
    succeeded: bool,
    steps: Vec<Step<'a>>,
}

enum Step<'a> {
    Put { key: &'a Bytes, value: &'a Bytes, lease: i64 },
    Delete(&'a KeyRange),
    Range(&'a KeyRange),
    Nested(Path<'a>),
}

/// What [`Mvcc::events`] found.
#[derive(Debug)]
pub(super) struct EventRun {
    /// Events of whole revisions.
    pub(super) events: Vec<Event>,
    /// Every revision up to this one was looked at.
    pub(super) through: i64,
}

impl Mvcc {
    pub(super) fn new() -> Self {
        Self {
            revision: FIRST_REVISION,
            oldest: FIRST_REVISION,
            keys: BTreeMap::new(),
            history: VecDeque::new(),
            leases: BTreeMap::new(),
            last_lease: 0,
        }
    }

    /// Revision of the newest change.
    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    pub(super) fn range(&self, request: &RangeRequest) -> Result<RangeResponse, BackendError> {
        check_range(&request.keys)?;
        let at = self.readable(request.revision)?;
        let mut kvs = Vec::new();
        let mut more = false;
        for kv in self.live(&request.keys, at) {
            if request.limit > 0 && kvs.len() == request.limit {
                more = true;
                break;
            }
            let value = if request.keys_only { Bytes::new() } else { kv.value.clone() };
            kvs.push(KeyValue { value, ..kv.clone() });
        }
        Ok(RangeResponse { revision: self.revision, kvs, more })
    }

    /// What was put after a revision, and how many keys there are.
    pub(super) fn changed(&self, request: &ChangedRequest) -> Result<ChangedResponse, BackendError> {
        check_range(&request.keys)?;
        check_revision(request.after)?;
        let at = self.readable(request.revision)?;
        let (mut kvs, mut count) = (Vec::new(), 0);
        for kv in self.live(&request.keys, at) {
            count += 1;
            if kv.mod_revision > request.after {
                kvs.push(kv.clone());
            }
        }
        Ok(ChangedResponse { revision: self.revision, kvs, count })
    }

    /// The revision that is asked for, if it can be read.
    fn readable(&self, revision: Option<i64>) -> Result<i64, BackendError> {
        let at = revision.unwrap_or(self.revision);
        check_revision(at)?;
        if at < self.oldest {
            return Err(BackendError::Compacted { oldest: self.oldest });
        }
        if at > self.revision {
            return Err(BackendError::Broken(format!(
                "revision {at} is in the future, the newest is {}",
                self.revision
            )));
        }
        Ok(at)
    }

    /// Executes a transaction. The record is `None` if it changed nothing.
    pub(super) fn txn(&mut self, txn: &Txn) -> Result<(TxnResponse, Option<Record>), BackendError> {
        check_txn_shape(txn)?;
        check_txn_limits(txn)?;
        let path = self.path(txn);
        self.check_leases(&path)?;

        let revision = self.revision + 1;
        let mut events = Vec::new();
        let mut response = self.run(path, revision, &mut events);
        let record = self.finish(revision, events);
        set_revision(&mut response, self.revision);
        Ok((response, record))
    }

    /// Makes a lease with the next free id.
    pub(super) fn grant(&mut self, ttl_s: i64) -> (i64, Record) {
        self.last_lease += 1;
        self.leases.insert(self.last_lease, Lease { ttl_s, keys: BTreeSet::new() });
        (self.last_lease, Record::Granted { lease: self.last_lease, ttl_s })
    }

    /// The time to live that a lease was granted with.
    pub(super) fn lease_ttl_s(&self, lease: i64) -> Option<i64> {
        self.leases.get(&lease).map(|found| found.ttl_s)
    }

    /// Ends a lease and deletes the keys on it, at one revision if there are any.
    pub(super) fn end_lease(&mut self, lease: i64) -> Result<Record, BackendError> {
        let ended = self.leases.remove(&lease).ok_or(BackendError::LeaseGone(lease))?;
        let revision = self.revision + 1;
        let events: Vec<Event> = ended.keys.into_iter().map(|key| self.delete_key(key, revision)).collect();
        // A lease without keys ends without a revision, as in etcd.
        self.finish(revision, events);
        Ok(Record::Ended { lease, revision: self.revision })
    }

    /// Forgets the history before `revision`. The record is `None` if that is forgotten already.
    pub(super) fn compact(&mut self, revision: i64) -> Result<Option<Record>, BackendError> {
        if revision > self.revision {
            return Err(BackendError::Broken(format!(
                "revision {revision} is in the future, the newest is {}",
                self.revision
            )));
        }
        if revision <= self.oldest {
            return Ok(None);
        }
        let mut touched = BTreeSet::new();
        while self.first_in_history() < revision {
            let Some(events) = self.history.pop_front() else { break };
            touched.extend(events.into_iter().map(|event| event.key().clone()));
        }
        // What was replaced at `revision` itself can no longer be seen either.
        touched.extend(self.history.front().into_iter().flatten().map(|event| event.key().clone()));
        self.oldest = revision;
        for key in touched {
            self.forget_versions(key);
        }
        Ok(Some(Record::Compacted { revision }))
    }

    /// Events of `keys` from revision `from` to `to`, both inclusive, but of no more than `limit`
    /// revisions with events and no further than `max_bytes` of keys and values.
    pub(super) fn events(
        &self,
        keys: &KeyRange,
        from: i64,
        to: i64,
        limit: usize,
        max_bytes: usize,
    ) -> Result<EventRun, BackendError> {
        if from < self.oldest {
            return Err(BackendError::Compacted { oldest: self.oldest });
        }
        let mut found = EventRun { events: Vec::new(), through: from - 1 };
        let (mut revisions, mut bytes) = (0, 0);
        // Before the first entry lies only the empty store's own revision.
        let skip = usize::try_from(from - self.first_in_history()).unwrap_or(0);
        let entries = (from.max(self.first_in_history())..).zip(self.history.iter().skip(skip));
        for (revision, events) in entries {
            if revision > to || revisions == limit || bytes >= max_bytes {
                break;
            }
            let before = found.events.len();
            found.events.extend(events.iter().filter(|event| keys.contains(event.key())).cloned());
            bytes += found.events.iter().skip(before).map(event_bytes).sum::<usize>();
            revisions += usize::from(found.events.len() > before);
            found.through = revision;
        }
        Ok(found)
    }

    /// Every lease with the time to live that it was granted with.
    pub(super) fn leases(&self) -> impl Iterator<Item = (i64, i64)> {
        self.leases.iter().map(|(id, lease)| (*id, lease.ttl_s))
    }

    /// The live keys of a range at a revision that is neither forgotten nor in the future, in key
    /// order.
    fn live(&self, keys: &KeyRange, at: i64) -> impl Iterator<Item = &KeyValue> {
        self.keys.range::<[u8], _>(bounds(keys)).filter_map(move |(_, versions)| {
            let newer = versions.partition_point(|version| version.revision <= at);
            versions.get(newer.checked_sub(1)?)?.value.as_ref()
        })
    }

    fn newest(&self, key: &[u8]) -> Option<&KeyValue> {
        self.keys.get(key)?.last()?.value.as_ref()
    }

    fn path<'a>(&self, txn: &'a Txn) -> Path<'a> {
        let succeeded = txn.compares.iter().all(|compare| self.holds(compare));
        let steps = if succeeded { &txn.then } else { &txn.otherwise };
        let steps = steps.iter().map(|op| match op {
            Op::Put { key, value, lease } => Step::Put { key, value, lease: *lease },
            Op::Delete(keys) => Step::Delete(keys),
            Op::Range(keys) => Step::Range(keys),
            Op::Txn(nested) => Step::Nested(self.path(nested)),
        });
        Path { succeeded, steps: steps.collect() }
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::CreateRevision(key, expected) => {
                self.newest(key).map_or(0, |kv| kv.create_revision) == *expected
            }
            Compare::ModRevision(key, expected) => {
                self.newest(key).map_or(0, |kv| kv.mod_revision) == *expected
            }
            Compare::Value(key, expected) => self.newest(key).is_some_and(|kv| kv.value == expected),
        }
    }

    /// A put on a lease that is gone fails the whole transaction, so this comes before the first
    /// change.
    fn check_leases(&self, path: &Path<'_>) -> Result<(), BackendError> {
        for step in &path.steps {
            match step {
                Step::Put { lease, .. } if *lease != 0 && !self.leases.contains_key(lease) => {
                    return Err(BackendError::LeaseGone(*lease));
                }
                Step::Put { .. } | Step::Delete(_) | Step::Range(_) => {}
                Step::Nested(nested) => self.check_leases(nested)?,
            }
        }
        Ok(())
    }

    fn run(&mut self, path: Path<'_>, revision: i64, events: &mut Vec<Event>) -> TxnResponse {
        let mut responses = Vec::with_capacity(path.steps.len());
        for step in path.steps {
            responses.push(match step {
                Step::Put { key, value, lease } => {
                    events.push(self.put_key(key.clone(), value.clone(), lease, revision));
                    OpResponse::Put
                }
                Step::Delete(keys) => {
                    let gone: Vec<Bytes> = self.live(keys, revision).map(|kv| kv.key.clone()).collect();
                    let count = gone.len();
                    events.extend(gone.into_iter().map(|key| self.delete_key(key, revision)));
                    OpResponse::Deleted(i64::try_from(count).unwrap_or(i64::MAX))
                }
                Step::Range(keys) => OpResponse::Range(self.live(keys, revision).cloned().collect()),
                Step::Nested(nested) => OpResponse::Txn(self.run(nested, revision, events)),
            });
        }
        TxnResponse { revision, succeeded: path.succeeded, responses }
    }

    /// Closes a revision: it exists only if something happened at it.
    fn finish(&mut self, revision: i64, events: Vec<Event>) -> Option<Record> {
        if events.is_empty() {
            return None;
        }
        debug_assert_eq!(revision, self.revision + 1, "revisions are dense");
        self.revision = revision;
        let changes = events.iter().map(Change::of).collect();
        self.history.push_back(events);
        Some(Record::Committed { revision, changes })
    }

    fn put_key(&mut self, key: Bytes, value: Bytes, lease: i64, revision: i64) -> Event {
        let before = self.newest(&key);
        let create_revision = before.map_or(revision, |kv| kv.create_revision);
        let version = before.map_or(1, |kv| kv.version + 1);
        let old_lease = before.map_or(0, |kv| kv.lease);
        self.detach(old_lease, &key);
        if let Some(holder) = self.leases.get_mut(&lease) {
            holder.keys.insert(key.clone());
        }
        let kv =
            KeyValue { key: key.clone(), value, create_revision, mod_revision: revision, version, lease };
        self.keys.entry(key).or_default().push(Version { revision, value: Some(kv.clone()) });
        Event::Put(kv)
    }

    fn delete_key(&mut self, key: Bytes, revision: i64) -> Event {
        let lease = self.newest(&key).map_or(0, |kv| kv.lease);
        self.detach(lease, &key);
        self.keys.entry(key.clone()).or_default().push(Version { revision, value: None });
        Event::Delete { key, revision }
    }

    fn detach(&mut self, lease: i64, key: &Bytes) {
        if let Some(holder) = self.leases.get_mut(&lease) {
            holder.keys.remove(key);
        }
    }

    /// Drops the versions of a key that no revision from `oldest` on can see.
    fn forget_versions(&mut self, key: Bytes) {
        let std::collections::btree_map::Entry::Occupied(mut entry) = self.keys.entry(key) else { return };
        let versions = entry.get_mut();
        let visible = versions.partition_point(|version| version.revision <= self.oldest).saturating_sub(1);
        versions.drain(..visible);
        // That a key was gone at `oldest` needs no saying.
        if versions.first().is_some_and(|first| first.value.is_none() && first.revision <= self.oldest) {
            versions.remove(0);
        }
        if versions.is_empty() {
            entry.remove();
        }
    }

    /// Revision of the first entry of the history; one more than the newest if there is none.
    fn first_in_history(&self) -> i64 {
        self.revision + 1 - i64::try_from(self.history.len()).unwrap_or(i64::MAX)
    }
}

/// The revision of a transaction is known when its last step is done.
fn set_revision(response: &mut TxnResponse, revision: i64) {
    response.revision = revision;
    for step in &mut response.responses {
        if let OpResponse::Txn(nested) = step {
            set_revision(nested, revision);
        }
    }
}

fn event_bytes(event: &Event) -> usize {
    match event {
        Event::Put(kv) => kv.key.len() + kv.value.len(),
        Event::Delete { key, .. } => key.len(),
    }
}

fn bounds(keys: &KeyRange) -> (Bound<&[u8]>, Bound<&[u8]>) {
    match keys {
        KeyRange::Key(key) => (Bound::Included(key), Bound::Included(key)),
        KeyRange::Span { start, end } => (Bound::Included(start), Bound::Excluded(end)),
    }
}
