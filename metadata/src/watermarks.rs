//! Writing `watermarks/…`: the state's offsets as plain keys, for the observer, who never reads the log.
//!
//! One broker writes them, at most every [`INTERVAL`], what changed, within a budget of bytes: each write goes through every
//! broker's watch. When more has changed than the budget allows, the rest has its turn in the next pass, so the interval
//! stretches for all topics alike. Each write compares the key as it was read and never replaces what is of a later
//! revision, so two brokers that both write do no harm.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use crate::backend::{BackendError, Compare, KeyRange, Op, Txn};
use crate::keys::Key;
use crate::limits::{BACKEND_REQUEST_BYTES, GROUP_WRITE_KEYS};
use crate::log::Session;
use crate::replica::{Replica, pages};
use crate::state::{Partition, State};
use crate::values::watermarks::WATERMARKS_PER_KEY;
use crate::values::watermarks::{Watermarks, WatermarksValue};
use crate::values::{VALUE_FORMAT, Value};

/// How often a pass is worth its while.
pub const INTERVAL: Duration = Duration::from_secs(2);

/// Bytes that one pass may write.
const BYTES_PER_PASS: usize = 256 * 1024;

/// Keys per page when what is stored is read.
const PAGE_KEYS: usize = 100;

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
#[derive(Debug, Default)]
pub struct WatermarkWriter {
    /// What is stored; `None` until it was read.
    stored: Option<Stored>,
    /// The key that had the last turn.
    last: Option<Part>,
}

impl WatermarkWriter {
    /// Writes what changed since the last pass.
    pub async fn run_once(&mut self, replica: &Replica, session: Session) -> Result<Pass, BackendError> {
        let mut stored = match self.stored.take() {
            Some(stored) => stored,
            None => read(replica).await?,
        };
        let state = replica.state();
        let (changes, pass) = plan(&state, &stored, &mut self.last);
        let mut changes = changes.into_iter().peekable();
        while changes.peek().is_some() {
            let part: Vec<Change> = changes.by_ref().take(GROUP_WRITE_KEYS).collect();
            if !write(replica, session, part, &mut stored).await? {
                // Somebody else writes as well, or the registration is gone: look again before the next pass.
                return Ok(Pass::default());
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
    let parts: Vec<(Part, &[Arc<Partition>])> = state
        .topics()
        .iter()
        .flat_map(|(id, topic)| {
            let parts = topic.partitions().chunks(WATERMARKS_PER_KEY).zip(0..);
            parts.map(|(partitions, n)| ((*id, n), partitions))
        })
        .collect();
    // Whoever had no turn in the last pass comes first in this one.
    let split = last.map_or(0, |last| parts.partition_point(|(part, _)| *part <= last));
    let (sooner, later) = parts.split_at(split);
    let mut bytes = 0;
    for (part, partitions) in later.iter().chain(sooner) {
        let partitions: Vec<Watermarks> = partitions.iter().map(|p| marks(p)).collect();
        let known = stored.get(part);
        let is_same = known.is_some_and(|(_, value)| value.partitions == partitions);
        let is_newer = known.is_some_and(|(_, value)| value.revision >= state.revision());
        if is_same || is_newer {
            continue;
        }
        let value = WatermarksValue { format: VALUE_FORMAT, revision: state.revision(), partitions };
        let encoded = Bytes::from(value.encode());
        let size = encoded.len();
        if bytes > 0 && bytes + size > BYTES_PER_PASS {
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
    for kv in pages(backend, keys.watermarks(), newest, PAGE_KEYS, false).await? {
        if let Some(Key::Watermarks { topic_id, part }) = keys.parse(&kv.key) {
            let value =
                WatermarksValue::decode(&kv.value).map_err(|e| BackendError::Broken(e.to_string()))?;
            stored.insert((topic_id, part), (kv.mod_revision, value));
        }
    }
    Ok(stored)
}

/// Writes, if nothing is stored that was not read. Says whether it did.
async fn write(
    replica: &Replica,
    session: Session,
    changes: Vec<Change>,
    stored: &mut Stored,
) -> Result<bool, BackendError> {
    let keys = replica.keys();
    let registration = keys.encode(&Key::Broker(session.node_id));
    // Invariant 5: nothing is committed under a registration that was lost.
    let mut txn =
        Txn { compares: vec![Compare::CreateRevision(registration, session.incarnation)], ..Txn::default() };
    for Change { part: (topic_id, part), over, value } in &changes {
        let key = keys.encode(&Key::Watermarks { topic_id: *topic_id, part: *part });
        txn.compares.push(Compare::ModRevision(key.clone(), *over));
        txn.then.push(match value {
            Some((_, encoded)) => Op::put(key, encoded.clone()),
            None => Op::Delete(KeyRange::Key(key)),
        });
    }
    let response = replica.backend().txn(txn).await?;
    if !response.succeeded {
        return Ok(false);
    }
    for Change { part, value, .. } in changes {
        match value {
            Some((value, _)) => stored.insert(part, (response.revision, value)),
            None => stored.remove(&part),
        };
    }
    Ok(true)
}
