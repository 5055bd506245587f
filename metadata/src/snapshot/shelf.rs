//! Snapshots that etcd does not list any more and that are kept for a while: a backup of etcd lists
//! those that were the newest when it was made, and starts from one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use strandline_storage::path::ObjectKey;
use strandline_storage::store::Store;
use tracing::warn;

use super::SnapshotError;
use crate::limits::MANIFESTS_READ_PER_PASS;

/// A snapshot that was found in the bucket.
#[derive(Debug)]
struct StoredSnapshot {
    written_at_ms: i64,
    /// What it needs, its manifest among it. Names are shared with other snapshots.
    objects: Vec<Arc<str>>,
}

/// What is known of the snapshots in the bucket.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    retention: Duration,
    /// By revision: those that were read. `None` for one that cannot be read, which nobody can
    /// start from.
    read: BTreeMap<i64, Option<StoredSnapshot>>,
    /// What the bucket was last found to hold.
    listing: Option<Listing>,
}

/// What matters of a listing of the bucket.
#[derive(Clone, Copy, Debug)]
struct Listing {
    /// The revision of the oldest manifest, if there is one.
    oldest: Option<i64>,
}

impl Shelf {
    /// Keeps what is not older than `retention`.
    pub(super) fn new(retention: Duration) -> Self {
        Self { retention, ..Self::default() }
    }

    pub(super) fn forget(&mut self) {
        self.read.clear();
        self.listing = None;
    }

    /// The revision of the oldest snapshot in the bucket.
    pub(super) async fn oldest(&mut self, store: &dyn Store) -> Result<Option<i64>, SnapshotError> {
        if let Some(listing) = self.listing {
            return Ok(listing.oldest);
        }
        let oldest = super::list(store).await?.iter().filter_map(super::manifest_revision).min();
        self.listing = Some(Listing { oldest });
        Ok(oldest)
    }

    /// The objects that may go: older than the snapshot of revision `newest`, not `listed`, and not
    /// needed by one that is kept. Without a time that can be trusted all are kept.
    pub(super) async fn sort_out(
        &mut self,
        store: &dyn Store,
        newest: i64,
        listed: &BTreeSet<String>,
        now_ms: Option<i64>,
    ) -> Result<Vec<ObjectKey>, SnapshotError> {
        let keys = super::list(store).await?;
        let manifests: BTreeSet<i64> = keys
            .iter()
            .filter(|key| !listed.contains(key.as_str()))
            .filter_map(super::manifest_revision)
            .filter(|revision| *revision < newest)
            .collect();
        self.read.retain(|revision, _| manifests.contains(revision));
        let is_all_read = self.read_new(store, &manifests).await?;
        let mut kept: BTreeSet<&str> = listed.iter().map(String::as_str).collect();
        let mut kept_revisions = BTreeSet::new();
        for (&revision, snapshot) in &self.read {
            let Some(snapshot) = snapshot.as_ref().filter(|s| !self.is_old(s, now_ms)) else { continue };
            kept.extend(snapshot.objects.iter().map(AsRef::as_ref));
            kept_revisions.insert(revision);
        }
        let is_kept = |key: &ObjectKey| {
            let is_older = super::snapshot_revision(key).is_some_and(|revision| revision < newest);
            !is_older || kept.contains(key.as_str())
        };
        if !is_all_read {
            // What those need that were not read yet is not known.
            self.listing = Some(Listing { oldest: keys.iter().filter_map(super::manifest_revision).min() });
            return Ok(Vec::new());
        }
        let oldest = keys.iter().filter(|key| is_kept(key)).filter_map(super::manifest_revision).min();
        self.listing = Some(Listing { oldest });
        Ok(keys.into_iter().filter(|key| !is_kept(key)).collect())
    }

    /// Reads manifests that were not read yet, so many at a time. Whether all are read now.
    async fn read_new(
        &mut self,
        store: &dyn Store,
        manifests: &BTreeSet<i64>,
    ) -> Result<bool, SnapshotError> {
        if self.retention.is_zero() {
            return Ok(true);
        }
        let unread: Vec<i64> =
            manifests.iter().filter(|revision| !self.read.contains_key(revision)).copied().collect();
        let mut names: BTreeSet<Arc<str>> =
            self.read.values().flatten().flat_map(|s| s.objects.iter().cloned()).collect();
        for &revision in unread.iter().take(MANIFESTS_READ_PER_PASS) {
            let snapshot = match super::summary(store, revision).await {
                Ok(summary) => {
                    let shared = |object: String| match names.get(object.as_str()) {
                        Some(known) => known.clone(),
                        None => Arc::from(object),
                    };
                    let objects: Vec<Arc<str>> = summary.objects.into_iter().map(shared).collect();
                    names.extend(objects.iter().cloned());
                    Some(StoredSnapshot { written_at_ms: summary.stamp.written_at_ms, objects })
                }
                Err(error @ SnapshotError::Unavailable { .. }) => return Err(error),
                Err(error) => {
                    warn!(revision, %error, "an old snapshot cannot be read: it is not kept");
                    None
                }
            };
            self.read.insert(revision, snapshot);
        }
        Ok(unread.len() <= MANIFESTS_READ_PER_PASS)
    }

    fn is_old(&self, snapshot: &StoredSnapshot, now_ms: Option<i64>) -> bool {
        let retention_ms = i64::try_from(self.retention.as_millis()).unwrap_or(i64::MAX);
        // A build that did not write the time did not mean it to be kept.
        now_ms.map_or(snapshot.written_at_ms == 0, |now_ms| {
            now_ms.saturating_sub(snapshot.written_at_ms) >= retention_ms
        })
    }
}

#[cfg(test)]
mod tests {
    use strandline_storage::store::ObjectStoreBackend;

    use super::super::{SnapshotStamp, SnapshotWriter, read};
    use super::*;
    use crate::state::State;

    const HOUR_MS: i64 = 3_600_000;

    async fn snapshot(
        store: &ObjectStoreBackend,
        revision: i64,
        written_at_ms: i64,
    ) -> crate::values::SnapshotRef {
        let state = State { revision, ..State::default() };
        let stamp = SnapshotStamp { commits: revision, written_at_ms };
        SnapshotWriter::default().write(store, &state, stamp, None).await.unwrap()
    }

    #[tokio::test]
    async fn a_snapshot_stays_for_its_time_although_it_is_not_listed() {
        let store = ObjectStoreBackend::memory();
        let first = snapshot(&store, 10, 0).await;
        let second = snapshot(&store, 20, HOUR_MS).await;
        let third = snapshot(&store, 30, 2 * HOUR_MS).await;
        let listed = BTreeSet::from([third.object.clone()]);
        let mut shelf = Shelf::new(Duration::from_hours(24));
        assert_eq!(shelf.oldest(&store).await, Ok(Some(10)));
        // The first one says of itself that it was written in 1970: so does an older build's.
        let old = shelf.sort_out(&store, 30, &listed, Some(3 * HOUR_MS)).await.unwrap();
        assert_eq!(old, []);
        let old = shelf.sort_out(&store, 30, &listed, Some(24 * HOUR_MS)).await.unwrap();
        assert_eq!(old.iter().map(ObjectKey::as_str).collect::<Vec<_>>(), [&first.object]);
        assert_eq!(shelf.oldest(&store).await, Ok(Some(20)), "what died before it may go");
        for key in &old {
            store.delete(key).await.unwrap();
        }
        assert!(read(&store, &second).await.is_ok());
        // Without a clock to trust nothing is too old.
        assert_eq!(shelf.sort_out(&store, 30, &listed, None).await.unwrap(), []);
        let old = shelf.sort_out(&store, 30, &listed, Some(99 * HOUR_MS)).await.unwrap();
        assert_eq!(old.iter().map(ObjectKey::as_str).collect::<Vec<_>>(), [&second.object]);
        // Those that are listed, and newer ones, are never old.
        let mut shelf = Shelf::default();
        let old = shelf.sort_out(&store, 20, &BTreeSet::new(), Some(99 * HOUR_MS)).await.unwrap();
        assert_eq!(old, []);
        assert_eq!(shelf.sort_out(&store, 30, &listed, None).await.unwrap().len(), 1);
    }
}
