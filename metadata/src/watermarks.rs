//! Writing `watermarks/…`: the state's offsets as plain keys, for the observer, who never reads the
//! log.
//!
//! One broker writes them, at most every [`WATERMARK_INTERVAL`](crate::limits::WATERMARK_INTERVAL),
//! what changed, within a budget of bytes: each write goes through every broker's watch. When more
//! has changed than the budget allows, the rest has its turn in the next pass, so the interval
//! stretches for all topics alike. Each write compares the key as it was read and never replaces
//! what is of a later revision, so two brokers that both write do no harm.

use std::collections::BTreeMap;

use bytes::Bytes;
use tracing::warn;
use uuid::Uuid;

use crate::backend::{BackendError, Compare, KeyRange, Op};
use crate::commit::{CommitError, Committer, Session};
use crate::keys::{Key, Keyspace};
use crate::limits::{
    BACKEND_REQUEST_BYTES, GROUP_WRITE_KEYS, WATERMARK_BYTES_PER_PASS, WATERMARK_PAGE_KEYS,
    WATERMARKS_PER_KEY,
};
use crate::replica::{Replica, pages};
use crate::state::{Partition, State, Topic};
use crate::values::watermarks::{Watermarks, WatermarksValue};
use crate::values::{VALUE_FORMAT, Value};

/// Topic, and which run of its partitions.
type Part = (Uuid, u32);

/// What is stored, with mod revisions.
type Stored = BTreeMap<Part, (i64, WatermarksValue)>;

/// What became of a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Keys that were written.
    pub written: usize,
    /// Keys of topics that are gone, deleted.
    pub deleted: usize,
    /// Keys whose partitions changed and that must wait for the next pass.
    pub waiting: usize,
}

/// Writes watermarks, pass by pass.
#[derive(Debug)]
pub struct WatermarkWriter {
    replica: Replica,
    committer: Committer,
    /// What is stored; `None` until it was read.
    stored: Option<Stored>,
    /// The key that had the last turn.
    last: Option<Part>,
}

impl WatermarkWriter {
    /// A writer for this broker; it reads what is stored when it has its first turn.
    pub fn new(replica: Replica, committer: Committer) -> Self {
        Self { replica, committer, stored: None, last: None }
    }

    /// Forgets what is stored: another broker may be writing, or the outcome of a write is not
    /// known.
    pub fn forget(&mut self) {
        self.stored = None;
    }

    /// Writes what changed since the last pass. A pass that is dropped or fails leaves nothing that
    /// the next one trusts.
    pub async fn run_once(&mut self, session: Session) -> Result<Pass, CommitError> {
        let mut stored = match self.stored.take() {
            Some(stored) => stored,
            None => read(&self.replica).await.map_err(CommitError::Refused)?,
        };
        let (changes, pass) = self.replica.read(|view| plan(&view.state, &stored, &mut self.last));
        let mut changes = changes.into_iter().peekable();
        while changes.peek().is_some() {
            let part: Vec<Change> = changes.by_ref().take(GROUP_WRITE_KEYS).collect();
            let (compares, ops) = steps(self.replica.keys(), &part);
            match self.committer.write(session, compares, ops).await {
                Ok(revision) => note(&mut stored, part, revision),
                // Another broker writes as well, or the registration is gone: read again before the
                // next pass.
                Err(CommitError::Conflict | CommitError::NotRegistered) => return Ok(Pass::default()),
                Err(error) => return Err(error),
            }
        }
        self.stored = Some(stored);
        Ok(pass)
    }
}

/// What becomes of a key.
#[derive(Debug)]
struct Change {
    part: Part,
    /// Its mod revision as it was read; 0 if it did not exist.
    over: i64,
    /// Its new value, and the same as it is stored; `None` to delete it.
    value: Option<(WatermarksValue, Bytes)>,
}

/// Decides what to write in this pass.
fn plan(state: &State, stored: &Stored, last: &mut Option<Part>) -> (Vec<Change>, Pass) {
    let mut pass = Pass::default();
    let mut changes: Vec<Change> = Vec::new();
    for (part, (at, value)) in stored {
        // A state that lags may not know the topic yet.
        if !state.topics().contains_key(&part.0) && value.revision < state.revision() {
            changes.push(Change { part: *part, over: *at, value: None });
        }
    }
    pass.deleted = changes.len();
    let parts: Vec<(Part, &Topic)> = state
        .topics()
        .iter()
        .flat_map(|(id, topic)| {
            let keys = topic.partitions().len().div_ceil(WATERMARKS_PER_KEY);
            (0..).take(keys).map(move |n| ((*id, n), topic))
        })
        .collect();
    // Whoever had no turn in the last pass comes first in this one.
    let split = last.map_or(0, |last| parts.partition_point(|(part, _)| *part <= last));
    let (sooner, later) = parts.split_at(split);
    let mut bytes = 0;
    for (part, topic) in later.iter().chain(sooner) {
        let first = part.1 as usize * WATERMARKS_PER_KEY;
        let end = topic.partitions().len().min(first + WATERMARKS_PER_KEY);
        let partitions = topic.partitions().focus().narrow(first..end);
        let partitions: Vec<Watermarks> = partitions.into_iter().map(|p| marks(p)).collect();
        let known = stored.get(part);
        let is_same = known.is_some_and(|(_, value)| value.partitions == partitions);
        let is_newer = known.is_some_and(|(_, value)| value.revision >= state.revision());
        if is_same || is_newer {
            continue;
        }
        let value = WatermarksValue { format: VALUE_FORMAT, revision: state.revision(), partitions };
        let encoded = Bytes::from(value.encode());
        let size = encoded.len();
        if bytes > 0 && bytes + size > WATERMARK_BYTES_PER_PASS {
            pass.waiting += 1;
            continue;
        }
        debug_assert!(size < BACKEND_REQUEST_BYTES, "a key of so many partitions fits into a request");
        bytes += size;
        if pass.waiting == 0 {
            *last = Some(*part);
        }
        let over = known.map_or(0, |(at, _)| *at);
        changes.push(Change { part: *part, over, value: Some((value, encoded)) });
    }
    pass.written = changes.len() - pass.deleted;
    (changes, pass)
}

fn marks(partition: &Partition) -> Watermarks {
    Watermarks {
        log_start: partition.log_start(),
        end: partition.end(),
        last_stable: partition.last_stable(),
        bytes: partition.bytes(),
        last_timestamp_ms: partition.max_timestamp_ms().unwrap_or(-1),
    }
}

async fn read(replica: &Replica) -> Result<Stored, BackendError> {
    let (backend, keys) = (replica.backend().as_ref(), replica.keys());
    let newest = replica.newest_revision().await?;
    let mut stored = BTreeMap::new();
    for kv in pages(backend, keys.watermarks(), newest, WATERMARK_PAGE_KEYS, false).await? {
        if let Some(Key::Watermarks { topic_id, part }) = keys.parse(&kv.key) {
            let value = WatermarksValue::decode(&kv.value).unwrap_or_else(|error| {
                warn!(%topic_id, %error, "watermarks cannot be read; they are written anew");
                WatermarksValue { format: VALUE_FORMAT, revision: 0, partitions: Vec::new() }
            });
            stored.insert((topic_id, part), (kv.mod_revision, value));
        }
    }
    Ok(stored)
}

/// What a write of these changes compares, and what it does.
fn steps(keys: &Keyspace, changes: &[Change]) -> (Vec<Compare>, Vec<Op>) {
    changes
        .iter()
        .map(|Change { part: (topic_id, part), over, value }| {
            let key = keys.encode(&Key::Watermarks { topic_id: *topic_id, part: *part });
            let op = match value {
                Some((_, encoded)) => Op::put(key.clone(), encoded.clone()),
                None => Op::Delete(KeyRange::Key(key.clone())),
            };
            (Compare::ModRevision(key, *over), op)
        })
        .unzip()
}

/// Takes over what was written at `revision`.
fn note(stored: &mut Stored, changes: Vec<Change>, revision: i64) {
    for Change { part, value, .. } in changes {
        match value {
            Some((value, _)) => stored.insert(part, (revision, value)),
            None => stored.remove(&part),
        };
    }
}
