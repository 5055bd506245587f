//! Snapshots: the state after a revision, as objects in the store.
//!
//! [`SnapshotWriter`] puts chunks first and the manifest last, then reads everything back. [`read`]
//! verifies checksums, the digest and the invariants.

mod format;
mod maintain;
mod shelf;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use strandline_storage::error::StoreError;
use strandline_storage::path::ObjectKey;
use strandline_storage::store::Store;

pub(crate) use self::format::checksum;
use self::format::{Manifest, assemble, damaged, parse_manifest};
pub use self::format::{SNAPSHOT_FORMAT, SnapshotError, SnapshotStamp};
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

/// The name of a manifest in its key.
const MANIFEST: &str = "manifest";

/// What a manifest says of itself, whether or not etcd names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestSummary {
    /// Its key.
    pub object: String,
    /// The state is the one after this revision.
    pub revision: i64,
    /// What it says beside the state; zeros for one of an older build.
    pub stamp: SnapshotStamp,
    /// The state's digest; `None` if nothing shows that it is undamaged.
    digest: Option<u64>,
    /// The keys of every object that the snapshot needs, its own among them.
    pub(crate) objects: BTreeSet<String>,
}

impl ManifestSummary {
    /// Whether it may be of a state with this digest.
    pub(crate) fn is_of(&self, digest: u64) -> bool {
        self.digest.is_none_or(|own| own == digest)
    }
}

/// Reads the manifest of a revision.
pub(crate) async fn summary(store: &dyn Store, revision: i64) -> Result<ManifestSummary, SnapshotError> {
    let key = ObjectKey::snapshot(revision, MANIFEST).map_err(|e| damaged(MANIFEST, &e.to_string()))?;
    let object = key.as_str().to_owned();
    let manifest = parse_manifest(&object, &get(store, &object).await?)?;
    if manifest.revision != revision {
        return Err(damaged(&object, "it is of another revision than its key says"));
    }
    let stamp = manifest.stamp(&object)?;
    Ok(ManifestSummary {
        revision,
        stamp: stamp.unwrap_or_default(),
        digest: stamp.map(|_| manifest.digest),
        objects: manifest.objects_needed().chain([object.clone()]).collect(),
        object,
    })
}

/// The revision that a snapshot object's key names.
pub(crate) fn snapshot_revision(key: &ObjectKey) -> Option<i64> {
    key.as_snapshot().map(|(revision, _)| revision)
}

/// The revision that a manifest's key names.
pub(crate) fn manifest_revision(key: &ObjectKey) -> Option<i64> {
    key.as_snapshot().filter(|(_, name)| *name == MANIFEST).map(|(revision, _)| revision)
}

/// The keys of every snapshot object in the store.
///
/// # Errors
///
/// If the store does not answer.
pub async fn list(store: &dyn Store) -> Result<Vec<ObjectKey>, SnapshotError> {
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
///
/// # Errors
///
/// If the manifest cannot be read.
pub async fn objects_of(
    store: &dyn Store,
    snapshot: &SnapshotRef,
) -> Result<BTreeSet<String>, SnapshotError> {
    let manifest = read_manifest(store, snapshot).await?;
    Ok(manifest.objects_needed().chain([snapshot.object.clone()]).collect())
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

pub(crate) fn failed(object: &str, error: &StoreError) -> SnapshotError {
    match error {
        StoreError::NotFound { .. } | StoreError::Corrupt { .. } => damaged(object, &error.to_string()),
        _ => SnapshotError::Unavailable { object: object.to_owned(), why: error.to_string() },
    }
}
