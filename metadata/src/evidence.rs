//! What the bucket knows of the metadata store, so that a metadata store that was restored from a
//! backup is recognised by what it has lost, and not by its revision, which anybody else who writes
//! to the same etcd moves on.
//!
//! ```text
//!   bucket: newest manifest ─ revision, digest, commits ┐
//!           beacon ────────── revision, commits         ├─ judged against what etcd says, read afterwards
//!   etcd:   `commits` (its version), checkpoints of the log
//! ```
//!
//! `commits` counts the transactions of the log. Only they move it, and it never goes back. What is
//! in the bucket was written when so many were committed, so a metadata store that counts fewer has
//! lost some. A snapshot of a revision at which the log has no checkpoint comes from a log that is
//! gone.
//!
//! What was committed after the newest beacon, at most [`BEACON_INTERVAL`] and the time of a PUT,
//! is not known to the bucket: a restored store that lacks no more than that is not recognised.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use strandline_storage::error::StoreError;
use strandline_storage::path::ObjectKey;
use strandline_storage::store::Store;
use tokio::time::sleep;

use crate::limits::{CHECKPOINTS, EVIDENCE_ATTEMPTS};
use crate::replica::View;
use crate::snapshot::{self, ManifestSummary, SnapshotError, checksum};

#[cfg(doc)]
use crate::limits::BEACON_INTERVAL;

/// Pause before what cannot be read is asked for again.
const PAUSE: Duration = Duration::from_millis(200);
/// The format of the beacon that this build writes.
const BEACON_FORMAT: u32 = 1;

/// How far the log had come when the beacon was written: the value of the object `beacon`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beacon {
    /// Format of this value.
    pub format: u32,
    /// The cluster that it is of.
    pub cluster_id: String,
    /// Transactions of the log.
    pub commits: i64,
    /// The revision of the last of them.
    pub revision: i64,
    /// Wall clock of the writer, ms since 1970.
    pub written_at_ms: i64,
    /// CRC-64/NVME of the others, in hex.
    pub checksum: String,
}

impl Beacon {
    /// A beacon of so many transactions, the last of them at `revision`.
    pub fn new(cluster_id: &str, commits: i64, revision: i64, written_at_ms: i64) -> Self {
        let mut beacon = Self {
            format: BEACON_FORMAT,
            cluster_id: cluster_id.to_owned(),
            commits,
            revision,
            written_at_ms,
            checksum: String::new(),
        };
        beacon.checksum = beacon.sum();
        beacon
    }

    fn sum(&self) -> String {
        let Self { format, cluster_id, commits, revision, written_at_ms, .. } = self;
        let text = format!("{format} {cluster_id} {commits} {revision} {written_at_ms}");
        format!("{:016x}", checksum(text.as_bytes()))
    }

    /// Writes it over the one before.
    ///
    /// # Errors
    ///
    /// If the store does not take it.
    pub async fn write(&self, store: &dyn Store) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        store.put(&ObjectKey::beacon(), bytes::Bytes::from(bytes).into()).await
    }

    /// Reads the one that is stored.
    async fn read(store: &dyn Store) -> Result<Option<Self>, SnapshotError> {
        let key = ObjectKey::beacon();
        let damaged = |what: String| SnapshotError::Damaged { object: key.to_string(), what };
        let bytes = match store.get(&key, None).await {
            Ok(bytes) => bytes,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(snapshot::failed(key.as_str(), &error)),
        };
        let beacon: Self = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if beacon.format != BEACON_FORMAT {
            return Err(SnapshotError::Newer { object: key.to_string(), format: beacon.format });
        }
        if beacon.checksum != beacon.sum() {
            return Err(damaged("its checksum is wrong".to_owned()));
        }
        Ok(Some(beacon))
    }
}

/// Why the metadata store is not the one that the bucket's objects were committed to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Restored {
    /// Its revision is lower than one that it has had.
    #[error("the metadata store is at revision {backend}, and it was at revision {known} already")]
    Revision {
        /// The revision that it has had.
        known: i64,
        /// The revision that it has.
        backend: i64,
    },
    /// It has fewer transactions of the log than it has had.
    #[error("the metadata store counts {backend} transactions of the log, and it counted {known} already")]
    Commits {
        /// How many there were.
        known: i64,
        /// How many there are.
        backend: i64,
    },
    /// The newest snapshot in the bucket is of a log that is gone.
    #[error("the bucket has a snapshot of revision {revision} that the log does not know of")]
    Snapshot {
        /// The revision that the snapshot is of.
        revision: i64,
    },
}

/// What the bucket says. Read it before what it is compared with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The revision of the newest object of any snapshot.
    pub newest_snapshot: Option<i64>,
    /// The newest manifest.
    pub manifest: Option<ManifestSummary>,
    /// The beacon.
    pub beacon: Option<Beacon>,
    /// What cannot be read of it.
    oddity: Option<String>,
}

impl Evidence {
    /// Reads the beacon and the newest manifest.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Unavailable`] if the store does not answer now.
    pub async fn read(store: &dyn Store) -> Result<Self, SnapshotError> {
        let mut evidence = Self::read_beacon(store).await?;
        for attempt in 1.. {
            let keys = snapshot::list(store).await?;
            evidence.newest_snapshot = keys.iter().filter_map(snapshot::snapshot_revision).max();
            let Some(newest) = keys.iter().filter_map(snapshot::manifest_revision).max() else { break };
            match snapshot::summary(store, newest).await {
                Ok(summary) => {
                    evidence.manifest = Some(summary);
                    break;
                }
                Err(error @ SnapshotError::Unavailable { .. }) => return Err(error),
                // It may have been deleted since it was listed, if there is a newer one by now.
                Err(SnapshotError::Damaged { .. }) if attempt < EVIDENCE_ATTEMPTS => sleep(PAUSE).await,
                Err(error) => {
                    evidence.oddity = Some(error.to_string());
                    break;
                }
            }
        }
        Ok(evidence)
    }

    /// Reads the beacon only: one request.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Unavailable`] if the store does not answer now.
    pub async fn read_beacon(store: &dyn Store) -> Result<Self, SnapshotError> {
        let mut evidence = Self::default();
        for attempt in 1.. {
            match Beacon::read(store).await {
                Ok(beacon) => {
                    evidence.beacon = beacon;
                    break;
                }
                Err(error @ SnapshotError::Unavailable { .. }) => return Err(error),
                Err(SnapshotError::Damaged { .. }) if attempt < EVIDENCE_ATTEMPTS => sleep(PAUSE).await,
                Err(error) => {
                    evidence.oddity = Some(error.to_string());
                    break;
                }
            }
        }
        Ok(evidence)
    }

    /// How many transactions of the log the bucket knows of.
    pub fn commits(&self) -> i64 {
        let beacon = self.beacon.as_ref().map_or(0, |b| b.commits);
        let manifest = self.manifest.as_ref().map_or(0, |m| m.stamp.commits);
        beacon.max(manifest)
    }

    /// The newest revision of the log that the bucket knows of.
    pub fn revision(&self) -> i64 {
        let beacon = self.beacon.as_ref().map_or(0, |b| b.revision);
        beacon.max(self.newest_snapshot.unwrap_or(0))
    }

    /// Judges a metadata store by its revision and the number of its transactions.
    ///
    /// # Errors
    ///
    /// If it was restored.
    pub fn check_counts(&self, revision: i64, commits: i64) -> Result<(), Restored> {
        check_counts((self.revision(), self.commits()), (revision, commits))
    }

    /// Judges what was read of the metadata store. Gives what is odd, if anything is: nothing may
    /// be deleted then that could be needed by a log that is not known.
    ///
    /// # Errors
    ///
    /// If it was restored.
    pub fn check(&self, view: &View) -> Result<Option<String>, Restored> {
        self.check_counts(view.revision, view.commits.count)?;
        let Some(manifest) = &self.manifest else { return Ok(self.oddity.clone()) };
        let revision = manifest.revision;
        let mut listed = view.snapshots.iter().flat_map(|s| &s.snapshots);
        if listed.any(|s| s.revision == revision && s.object == manifest.object) {
            return Ok(self.oddity.clone());
        }
        let noted = view.state.checkpoints();
        match noted.iter().find(|c| c.revision == revision) {
            Some(noted) if manifest.is_of(noted.digest) => Ok(self.oddity.clone()),
            Some(_) => Ok(Some(format!("the snapshot of revision {revision} is of another state than this"))),
            // Every snapshot has its checkpoint in the log; the newest ones are remembered.
            None if noted.len() < CHECKPOINTS || noted.front().is_some_and(|c| c.revision < revision) => {
                Err(Restored::Snapshot { revision })
            }
            None => Ok(Some(format!("the snapshot of revision {revision} is too old to be known"))),
        }
    }
}

/// Judges a metadata store by the (revision, number of transactions) that is known of it.
///
/// # Errors
///
/// If it has less than that.
pub(crate) fn check_counts(known: (i64, i64), backend: (i64, i64)) -> Result<(), Restored> {
    if backend.1 < known.1 {
        return Err(Restored::Commits { known: known.1, backend: backend.1 });
    }
    if backend.0 < known.0 {
        return Err(Restored::Revision { known: known.0, backend: backend.0 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use strandline_storage::store::ObjectStoreBackend;

    use super::*;
    use crate::replica::Commits;
    use crate::snapshot::{SnapshotStamp, SnapshotWriter};
    use crate::state::{CheckpointDigest, State};

    fn view(revision: i64, commits: i64) -> View {
        View { revision, commits: Commits { count: commits, revision }, ..View::default() }
    }

    #[tokio::test]
    async fn a_beacon_is_read_as_it_was_written_and_a_damaged_one_is_odd() {
        let store = ObjectStoreBackend::memory();
        assert_eq!(Evidence::read(&store).await.unwrap(), Evidence::default());
        let beacon = Beacon::new("c", 7, 99, 3);
        beacon.write(&store).await.unwrap();
        let evidence = Evidence::read(&store).await.unwrap();
        assert_eq!((evidence.beacon.as_ref(), evidence.commits()), (Some(&beacon), 7));
        assert_eq!(evidence.check(&view(99, 7)), Ok(None));
        assert_eq!(evidence.check(&view(5_000, 6)), Err(Restored::Commits { known: 7, backend: 6 }));
        assert_eq!(evidence.check(&view(98, 8)), Err(Restored::Revision { known: 99, backend: 98 }));

        let mut lying = beacon;
        lying.commits = 1_000_000;
        lying.write(&store).await.unwrap();
        let evidence = Evidence::read(&store).await.unwrap();
        assert!(evidence.check(&view(99, 7)).unwrap().is_some(), "it is odd, and proves nothing");
    }

    #[tokio::test]
    async fn a_snapshot_that_the_log_has_no_checkpoint_of_is_of_another_log() {
        let store = ObjectStoreBackend::memory();
        let state = State { revision: 40, ..State::default() };
        let stamp = SnapshotStamp { commits: 9, written_at_ms: 1 };
        let listed = SnapshotWriter::default().write(&store, &state, stamp, None).await.unwrap();
        let evidence = Evidence::read(&store).await.unwrap();
        assert_eq!((evidence.commits(), evidence.revision()), (9, 40));
        assert_eq!(evidence.check(&view(100, 8)), Err(Restored::Commits { known: 9, backend: 8 }));
        assert_eq!(evidence.check(&view(100, 9)), Err(Restored::Snapshot { revision: 40 }));

        let noted = |revision, digest| {
            let mut known = view(100, 9);
            known.state.checkpoints.push_back(CheckpointDigest { revision, digest });
            known
        };
        assert_eq!(evidence.check(&noted(40, state.digest())), Ok(None));
        assert!(evidence.check(&noted(40, 1)).unwrap().is_some());
        assert_eq!(evidence.check(&noted(39, 0)), Err(Restored::Snapshot { revision: 40 }));
        let mut full = view(100, 9);
        full.state.checkpoints =
            (50..).take(CHECKPOINTS).map(|revision| CheckpointDigest { revision, digest: 0 }).collect();
        assert!(evidence.check(&full).unwrap().is_some(), "too old to be known");

        let mut by_pointer = view(100, 9);
        let pointer = crate::values::SnapshotValue { format: 1, snapshots: vec![listed], trimmed_to: 0 };
        by_pointer.snapshots = Some(std::sync::Arc::new(pointer));
        assert_eq!(evidence.check(&by_pointer), Ok(None));
    }
}
