//! Reading and writing consumer groups: the keys under `groups/` and `offsets/`.
//!
//! A write compares everything that it replaces: the group's key and every key of offsets that it
//! puts. So of two brokers that both believe to coordinate a group, one loses, reads again and
//! decides anew (invariant 8). Writes of many groups share one transaction of the committer, each
//! nested in it, so that a loser fails alone.
//!
//! None of this is known to the state machine: groups decide nothing about records.

mod write;

use std::collections::BTreeMap;

pub use self::write::{GroupWriter, GroupWritten};
use crate::backend::{BackendError, KeyRange, RangeRequest, ReadBackend};
use crate::keys::{Key, Keyspace};
use crate::limits::{GROUP_NAMES_PAGE_KEYS, OFFSETS_PAGE_KEYS};
use crate::replica::pages;
use crate::values::group::{GroupValue, OffsetsValue};
use crate::values::{Value, ValueError};

/// Which offsets a key has: of this topic, the run of partitions with this number.
pub type OffsetsKey = (String, u32);

/// What is committed for a group, with the mod revision of each key.
pub type StoredOffsets = BTreeMap<OffsetsKey, (i64, OffsetsValue)>;

/// What is stored of a group, as of one revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredGroup {
    /// Mod revision of the group's key; 0 if there is none.
    pub revision: i64,
    /// Its value.
    pub value: Option<GroupValue>,
    /// What is committed for it.
    pub offsets: StoredOffsets,
}

/// What a write does to the group's own key.
#[derive(Clone, Debug, PartialEq)]
pub enum GroupPut {
    /// Nothing; it must be as it was.
    Keep,
    /// Gives it this value.
    Put(Box<GroupValue>),
    /// Deletes it.
    Delete,
}

/// What a write does to one key of offsets.
#[derive(Clone, Debug, PartialEq)]
pub struct OffsetsPut {
    /// Which key.
    pub key: OffsetsKey,
    /// Its mod revision as it was read; 0 if it did not exist.
    pub revision: i64,
    /// Its new value; `None` deletes it.
    pub value: Option<OffsetsValue>,
}

/// A write of one group.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupWrite {
    /// The group.
    pub group: String,
    /// Mod revision of its key as it was read; 0 if it did not exist.
    pub revision: i64,
    /// What happens to its key.
    pub put: GroupPut,
    /// What happens to its offsets; at most [`crate::limits::GROUP_WRITE_KEYS`].
    pub offsets: Vec<OffsetsPut>,
}

/// Why a write did not happen, or is not known to have happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupWriteError {
    /// This broker is not registered now: it coordinates nothing.
    #[error("the broker is not registered")]
    NotRegistered,
    /// Something is not as it was read: read it again and decide anew.
    #[error("another broker changed the group")]
    Conflict,
    /// The metadata store did not answer, or refuses. The write may still happen; whoever goes on
    /// must read first.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The broker is stopping.
    #[error("the broker is stopping")]
    Closed,
}

/// Why a group cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupReadError {
    /// The metadata store did not answer.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// What is stored cannot be understood.
    #[error(transparent)]
    Value(#[from] ValueError),
}

/// Reads all of a group, at one revision and no older than this call.
pub async fn read(
    backend: &dyn ReadBackend,
    keys: &Keyspace,
    group: &str,
) -> Result<StoredGroup, GroupReadError> {
    let own = KeyRange::Key(keys.encode(&Key::Group(group.to_owned())));
    let own = backend.range(RangeRequest { keys: own, revision: None, limit: 1, keys_only: false }).await?;
    let mut stored = StoredGroup::default();
    if let Some(kv) = own.kvs.first() {
        stored.revision = kv.mod_revision;
        stored.value = Some(GroupValue::decode(&kv.value)?);
    }
    stored.offsets = offsets_at(backend, keys, group, own.revision, StoredOffsets::default()).await?;
    Ok(stored)
}

/// What is committed for a group, no older than this call. Only what differs from `known` is
/// transferred if nothing does.
pub async fn read_offsets(
    backend: &dyn ReadBackend,
    keys: &Keyspace,
    group: &str,
    known: StoredOffsets,
) -> Result<StoredOffsets, GroupReadError> {
    let names = RangeRequest {
        keys: keys.offsets_of(group),
        revision: None,
        limit: GROUP_NAMES_PAGE_KEYS,
        keys_only: true,
    };
    let names = backend.range(names).await?;
    let is_same = !names.more
        && names.kvs.len() == known.len()
        && names.kvs.iter().zip(known.values()).all(|(kv, (revision, _))| kv.mod_revision == *revision);
    if is_same {
        return Ok(known);
    }
    offsets_at(backend, keys, group, names.revision, known).await
}

async fn offsets_at(
    backend: &dyn ReadBackend,
    keys: &Keyspace,
    group: &str,
    revision: i64,
    mut known: StoredOffsets,
) -> Result<StoredOffsets, GroupReadError> {
    let mut limit = OFFSETS_PAGE_KEYS;
    let kvs = loop {
        match pages(backend, keys.offsets_of(group), revision, limit, false).await {
            Err(BackendError::TooLarge(_)) if limit > 1 => limit /= 4,
            done => break done?,
        }
    };
    let mut offsets = StoredOffsets::new();
    for kv in kvs {
        let Some(Key::Offsets { topic, part, .. }) = keys.parse(&kv.key) else { continue };
        let key = (topic, part);
        let value = match known.remove(&key) {
            Some((at, value)) if at == kv.mod_revision => value,
            _ => OffsetsValue::decode(&kv.value)?,
        };
        offsets.insert(key, (kv.mod_revision, value));
    }
    Ok(offsets)
}
