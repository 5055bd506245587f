//! Snapshots: the state after a revision, as objects in the store.
//!
//! [`SnapshotWriter`] puts chunks first and the manifest last, then reads everything back. [`read`]
//! verifies checksums, the digest and the invariants.

mod format;
mod maintain;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use strandline_storage::error::StoreError;
use strandline_storage::path::ObjectKey;
use strandline_storage::store::Store;

use self::format::{Manifest, assemble, checksum, damaged, parse_manifest};
pub use self::format::{SNAPSHOT_FORMAT, SnapshotError};
pub use self::maintain::{MaintainError, Maintained, Maintainer};
pub use self::write::SnapshotWriter;
use crate::limits::SNAPSHOT_LIST_PAGE;
use crate::state::State;
use crate::values::SnapshotRef;

/// Reads a snapshot and verifies it.
pub async fn read(store: &dyn Store, snapshot: &SnapshotRef) -> Result<State, SnapshotError> {
    let manifest = read_manifest(store, snapshot).await?;
    let mut chunks = Vec::with_capacity(manifest.chunks.len());
    for chunk in &manifest.chunks {
        let bytes = if chunk.object.is_empty() {
            chunk.inline.clone()
        } else {
            get(store, &chunk.object).await?.to_vec()
        };
        if bytes.len() as u64 != chunk.bytes || checksum(&bytes) != chunk.checksum {
            let object = if chunk.object.is_empty() { &snapshot.object } else { &chunk.object };
            return Err(damaged(object, "a chunk's length or checksum is wrong"));
        }
        chunks.push(bytes);
    }
    let state = assemble(&snapshot.object, &manifest, &chunks)?;
    if state.revision() != snapshot.revision || format!("{:016x}", state.digest()) != snapshot.digest {
        return Err(damaged(
            &snapshot.object,
            "it is of another revision, or has another digest, than etcd says",
        ));
    }
    Ok(state)
}

/// The head of every incarnation at a snapshot. Its chunks are not read.
async fn heads(store: &dyn Store, snapshot: &SnapshotRef) -> Result<BTreeMap<i64, u64>, SnapshotError> {
    Ok(read_manifest(store, snapshot).await?.heads().collect())
}

/// The newest revision of any snapshot object in the store. If it is beyond etcd's own revision,
/// etcd was restored from a backup.
pub async fn newest_revision(store: &dyn Store) -> Result<Option<i64>, SnapshotError> {
    Ok(list(store).await?.iter().filter_map(snapshot_revision).max())
}

/// The revision that a snapshot object's key names.
fn snapshot_revision(key: &ObjectKey) -> Option<i64> {
    key.as_snapshot().map(|(revision, _)| revision)
}

/// The keys of every snapshot object in the store.
async fn list(store: &dyn Store) -> Result<Vec<ObjectKey>, SnapshotError> {
    let mut keys: Vec<ObjectKey> = Vec::new();
    loop {
        let page = store
            .list(ObjectKey::SNAPSHOT_PREFIX, keys.last(), SNAPSHOT_LIST_PAGE)
            .await
            .map_err(|e| failed(ObjectKey::SNAPSHOT_PREFIX, &e))?;
        let full = page.len() == SNAPSHOT_LIST_PAGE;
        keys.extend(page.into_iter().map(|meta| meta.key));
        if !full {
            return Ok(keys);
        }
    }
}

/// The keys of every object that a snapshot needs: its manifest and its chunks.
async fn objects_of(store: &dyn Store, snapshot: &SnapshotRef) -> Result<BTreeSet<String>, SnapshotError> {
    let manifest = read_manifest(store, snapshot).await?;
    let chunks = manifest.chunks.into_iter().map(|c| c.object).filter(|o| !o.is_empty());
    Ok(chunks.chain([snapshot.object.clone()]).collect())
}

fn by_checksum(manifest: &Manifest) -> BTreeMap<(u64, u64), String> {
    manifest
        .chunks
        .iter()
        .filter(|c| !c.object.is_empty())
        .map(|c| ((c.checksum, c.bytes), c.object.clone()))
        .collect()
}

async fn read_manifest(store: &dyn Store, snapshot: &SnapshotRef) -> Result<Manifest, SnapshotError> {
    let bytes = get(store, &snapshot.object).await?;
    if bytes.len() as u64 != snapshot.bytes || format!("{:016x}", checksum(&bytes)) != snapshot.checksum {
        return Err(damaged(&snapshot.object, "its length or checksum is wrong"));
    }
    parse_manifest(&snapshot.object, &bytes)
}

async fn get(store: &dyn Store, object: &str) -> Result<Bytes, SnapshotError> {
    let key = ObjectKey::parse(object).map_err(|e| damaged(object, &e.to_string()))?;
    store.get(&key, None).await.map_err(|e| failed(object, &e))
}

fn failed(object: &str, error: &StoreError) -> SnapshotError {
    match error {
        StoreError::NotFound { .. } | StoreError::Corrupt { .. } => damaged(object, &error.to_string()),
        _ => SnapshotError::Unavailable { object: object.to_owned(), why: error.to_string() },
    }
}
