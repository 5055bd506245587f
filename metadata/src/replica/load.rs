//! Reading everything at one revision: plain keys, log and the newest snapshot that can be read.

use std::sync::Arc;
use std::time::Duration;

use strandline_storage::store::Store;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::{Commits, View};
use crate::backend::{Backend, BackendError, KeyRange, KeyValue, RangeRequest, ReadBackend};
use crate::evidence::{Evidence, Restored, check_counts};
use crate::keys::{Key, Keyspace};
use crate::limits::{LOAD_PATIENCE, LOG_PAGE_KEYS, PLAIN_PAGE_KEYS};
use crate::record::{Record, RecordError};
use crate::snapshot::{self, SnapshotError};
use crate::state::{ApplyError, Position, State};
use crate::values::{SnapshotRef, SnapshotValue, Value, ValueError};

/// Pause before it starts over: doubles from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Why the state cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The metadata store does not answer.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// No listed snapshot can be read, however often it was tried. Starting from nothing would lose
    /// everything, so this is final.
    #[error("no snapshot can be read, and the log before them is gone; last: {0}")]
    Snapshots(SnapshotError),
    /// The object store does not answer.
    #[error("the snapshot cannot be read for now: {0}")]
    StoreUnavailable(SnapshotError),
    /// A record of the log cannot be applied; the broker must stop.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// A plain key cannot be read.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// The log does not reach back to any snapshot.
    #[error(
        "the log is trimmed to revision {trimmed_to}, and the newest readable snapshot is of revision {snapshot}"
    )]
    LogTooShort {
        /// Where the log begins.
        trimmed_to: i64,
        /// What could be read.
        snapshot: i64,
    },
    /// etcd went back in time.
    #[error(
        "{0}: it was restored from a backup. Nothing is served and nothing is deleted. Restore a newer backup, with all \
         brokers stopped; or run `strandline recover`, which says what is lost and lets brokers go on without it"
    )]
    Restored(#[from] Restored),
}

impl LoadError {
    /// Whether the same load may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Backend(error) => !matches!(error, BackendError::Denied(_)),
            Self::StoreUnavailable(_) => true,
            Self::Snapshots(_)
            | Self::Apply(_)
            | Self::Value(_)
            | Self::LogTooShort { .. }
            | Self::Restored(_) => false,
        }
    }

    /// Whether the same load may succeed in a moment, although it is final if it never does.
    fn may_pass(&self) -> bool {
        match self {
            Self::Backend(error) => matches!(error, BackendError::Compacted { .. }),
            Self::Snapshots(error) => matches!(error, SnapshotError::Damaged { .. }),
            Self::LogTooShort { .. } => true,
            Self::StoreUnavailable(_) | Self::Apply(_) | Self::Value(_) | Self::Restored(_) => false,
        }
    }
}

impl From<RecordError> for LoadError {
    fn from(error: RecordError) -> Self {
        Self::Apply(error.into())
    }
}

/// What is known of the metadata store before it is read: one that says less has been restored.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// The revision that was applied.
    pub(super) revision: i64,
    /// The transactions of the log that were applied.
    pub(super) commits: i64,
    /// What the bucket says; nothing where an operator has asked to go on without.
    pub(super) evidence: Evidence,
}

impl Known {
    fn check(&self, revision: i64, commits: i64) -> Result<(), Restored> {
        check_counts((self.revision, self.commits), (revision, commits))?;
        self.evidence.check_counts(revision, commits)
    }
}

/// What was read at one revision.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) view: View,
    /// How much of the log lies behind the snapshot that was read.
    pub(super) replayed: Replayed,
    /// What is odd about the bucket, if anything is.
    pub(super) oddity: Option<String>,
}

/// Records of the log that were applied, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Replayed {
    pub(super) records: u64,
    pub(super) bytes: u64,
}

/// Reads what the bucket says, and then everything at one revision.
pub(super) async fn load(
    backend: &dyn Backend,
    keys: &Keyspace,
    store: &dyn Store,
    known: (i64, i64),
) -> Result<Loaded, LoadError> {
    // Read before the metadata store is: another broker may write a snapshot between the two.
    let evidence = Evidence::read(store).await.map_err(LoadError::StoreUnavailable)?;
    load_knowing(backend, keys, store, &Known { revision: known.0, commits: known.1, evidence }).await
}

/// Reads everything at one revision.
pub(super) async fn load_knowing(
    backend: &dyn Backend,
    keys: &Keyspace,
    store: &dyn Store,
    known: &Known,
) -> Result<Loaded, LoadError> {
    let until = Instant::now() + LOAD_PATIENCE;
    let mut pause = PAUSE.0;
    loop {
        match load_once(backend, keys, store, known).await {
            Err(error) if error.may_pass() && Instant::now() < until => {
                warn!(%error, "the state cannot be read; starting over");
            }
            done => return done,
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

async fn load_once(
    backend: &dyn Backend,
    keys: &Keyspace,
    store: &dyn Store,
    known: &Known,
) -> Result<Loaded, LoadError> {
    let key = |key: Key, revision| {
        let keys = KeyRange::Key(keys.encode(&key));
        RangeRequest { keys, revision, limit: 1, keys_only: false }
    };
    let pointer = backend.range(key(Key::Snapshot, None)).await?;
    let revision = pointer.revision;
    let commits = backend.range(key(Key::Commits, Some(revision))).await?;
    let commits = commits.kvs.first().map(Commits::of).unwrap_or_default();
    known.check(revision, commits.count)?;
    let mut view = View { revision, commits, ..View::default() };
    if let Some(kv) = pointer.kvs.first() {
        view.snapshots = Some(Arc::new(SnapshotValue::decode(&kv.value)?));
        view.snapshots_revision = kv.mod_revision;
    }
    for range in [keys.brokers(), keys.topics(), keys.configs()] {
        for kv in pages(backend, range, revision, PLAIN_PAGE_KEYS, false).await? {
            view.names.put(keys, &kv);
        }
    }
    // Of groups and offsets only the names are kept; who needs a value reads it then.
    for range in [keys.groups(), keys.offsets()] {
        for kv in pages(backend, range, revision, PLAIN_PAGE_KEYS, true).await? {
            view.names.put(keys, &kv);
        }
    }
    let log = pages(backend, keys.log(), revision, LOG_PAGE_KEYS, false).await?;
    view.state = newest_readable(store, view.snapshots.as_deref()).await?;
    let trimmed_to = view.snapshots.as_ref().map_or(0, |s| s.trimmed_to);
    if trimmed_to > view.state.revision() {
        return Err(LoadError::LogTooShort { trimmed_to, snapshot: view.state.revision() });
    }
    let replayed = replay(&mut view.state, keys, &log)?;
    view.state.advance(revision);
    let oddity = known.evidence.check(&view)?;
    Ok(Loaded { view, replayed, oddity })
}

/// Applies the records of `log` that come after the state's revision, in the order of their
/// revisions and, within one, of their sequence numbers: a range returns them in key order, which
/// is another.
fn replay(state: &mut State, keys: &Keyspace, log: &[KeyValue]) -> Result<Replayed, LoadError> {
    let mut records: Vec<(Position, &KeyValue)> = log
        .iter()
        .filter(|kv| kv.mod_revision > state.revision())
        .filter_map(|kv| match keys.parse(&kv.key) {
            Some(Key::Log { incarnation, sequence }) => {
                Some((Position { revision: kv.mod_revision, sequence, incarnation }, kv))
            }
            _ => None,
        })
        .collect();
    records.sort_unstable_by_key(|(at, _)| *at);
    let mut replayed = Replayed::default();
    for (at, kv) in records {
        let (record, body) = Record::from_bytes(&kv.value)?;
        state.apply(at, &record, &body)?;
        replayed.records += 1;
        replayed.bytes += kv.value.len() as u64;
    }
    Ok(replayed)
}

/// The state at `revision`, from one listed snapshot and the records after it. Whatever snapshot a
/// broker starts from, this must be the same: so an audit compares them.
pub async fn replay_from(
    backend: &dyn Backend,
    keys: &Keyspace,
    store: &dyn Store,
    listed: &SnapshotRef,
    revision: i64,
) -> Result<State, LoadError> {
    let mut state = snapshot::read(store, listed).await.map_err(LoadError::Snapshots)?;
    let log = pages(backend, keys.log(), revision, LOG_PAGE_KEYS, false).await?;
    replay(&mut state, keys, &log)?;
    state.advance(revision);
    Ok(state)
}

async fn newest_readable(store: &dyn Store, pointer: Option<&SnapshotValue>) -> Result<State, LoadError> {
    let Some(pointer) = pointer.filter(|p| !p.snapshots.is_empty()) else {
        return Ok(State::default());
    };
    let mut last = None;
    for listed in &pointer.snapshots {
        match snapshot::read(store, listed).await {
            Ok(state) => return Ok(state),
            Err(error @ SnapshotError::Unavailable { .. }) => return Err(LoadError::StoreUnavailable(error)),
            Err(error) => {
                warn!(revision = listed.revision, %error, "a snapshot cannot be read; trying the one before it");
                last = Some(error);
            }
        }
    }
    Err(last.map_or_else(|| unreachable!("the list is not empty"), LoadError::Snapshots))
}

pub(crate) async fn pages(
    backend: &dyn ReadBackend,
    keys: KeyRange,
    revision: i64,
    limit: usize,
    keys_only: bool,
) -> Result<Vec<KeyValue>, BackendError> {
    let KeyRange::Span { mut start, end } = keys else {
        unreachable!("only prefixes are read in pages");
    };
    let mut all = Vec::new();
    loop {
        let span = KeyRange::Span { start: start.clone(), end: end.clone() };
        let page =
            backend.range(RangeRequest { keys: span, revision: Some(revision), limit, keys_only }).await?;
        let more = page.more;
        all.extend(page.kvs);
        match all.last() {
            // The next key after `last` in byte order is `last` with a zero byte behind it.
            Some(last) if more => start = [&last.key[..], &[0]].concat().into(),
            _ => return Ok(all),
        }
    }
}
