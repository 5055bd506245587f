//! Snapshots: the state after a revision, as objects in the store.
//!
//! [`write()`] puts chunks first and the manifest last, then reads everything back and compares it with the state: a
//! snapshot that cannot be read is noticed while the log that it would replace is still there. [`read`] verifies
//! checksums, the digest and the invariants.

mod format;
mod maintain;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;
use strandline_storage::error::StoreError;
use strandline_storage::path::ObjectKey;
use strandline_storage::store::Store;

use self::format::{
    ChunkRef, Manifest, assemble, checksum, chunks, damaged, fits_inline, manifest, parse_manifest,
};
pub use self::format::{SNAPSHOT_FORMAT, SnapshotError};
pub use self::maintain::{MaintainError, Maintained, Maintainer};
use crate::state::State;
use crate::values::SnapshotRef;

/// Objects per page when the snapshots in the store are listed.
const LIST_PAGE: usize = 1_000;

/// Writes a snapshot of `state`, reusing chunks of `previous` that did not change, and reads it back.
pub async fn write(
    store: &dyn Store,
    state: &State,
    previous: Option<&SnapshotRef>,
) -> Result<SnapshotRef, SnapshotError> {
    let mut manifest = manifest(state);
    let chunks = chunks(state);
    if fits_inline(&chunks) {
        manifest.chunks = chunks
            .into_iter()
            .map(|inline| ChunkRef {
                object: String::new(),
                bytes: inline.len() as u64,
                checksum: checksum(&inline),
                inline,
            })
            .collect();
    } else {
        let reusable = match previous {
            None => BTreeMap::new(),
            // A previous snapshot that cannot be read is no reason not to write a good one.
            Some(previous) => {
                read_manifest(store, previous).await.map(|m| by_checksum(&m)).unwrap_or_default()
            }
        };
        for (number, bytes) in chunks.into_iter().enumerate() {
            let sum = checksum(&bytes);
            let length = bytes.len() as u64;
            let object = match reusable.get(&(sum, length)) {
                Some(object) => object.clone(),
                None => put(store, state.revision(), &format!("chunk{number}"), bytes).await?,
            };
            manifest.chunks.push(ChunkRef { object, bytes: length, checksum: sum, inline: Vec::new() });
        }
    }
    let bytes = manifest.encode_to_vec();
    let (length, sum) = (bytes.len() as u64, checksum(&bytes));
    let object = put(store, state.revision(), "manifest", bytes).await?;
    let written = SnapshotRef {
        revision: state.revision(),
        object,
        bytes: length,
        checksum: format!("{sum:016x}"),
        digest: format!("{:016x}", state.digest()),
    };
    let read_back = read(store, &written).await?;
    if read_back != *state {
        return Err(damaged(&written.object, "it does not read back as the state that was written"));
    }
    Ok(written)
}

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

/// The newest revision of any snapshot object in the store. If it is beyond etcd's own revision, etcd was restored
/// from a backup.
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
            .list(ObjectKey::SNAPSHOT_PREFIX, keys.last(), LIST_PAGE)
            .await
            .map_err(|e| failed(ObjectKey::SNAPSHOT_PREFIX, &e))?;
        let full = page.len() == LIST_PAGE;
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

async fn put(store: &dyn Store, revision: i64, name: &str, bytes: Vec<u8>) -> Result<String, SnapshotError> {
    let key = ObjectKey::snapshot(revision, name).map_err(|e| damaged(name, &e.to_string()))?;
    store.put(&key, vec![Bytes::from(bytes)]).await.map_err(|e| failed(key.as_str(), &e))?;
    Ok(key.as_str().to_owned())
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
