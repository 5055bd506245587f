//! `strandline recover`: going on from a backup of etcd, on purpose. Says what is lost by it, and
//! with
//! `--accept-loss` makes bucket and etcd agree, so that brokers start.
//!
//! Brokers refuse an etcd that lacks what the bucket knows of (`metadata/src/evidence.rs`). What
//! the bucket knows is: its beacon, and the snapshots that are newer than those that the restored
//! etcd lists. With the loss accepted these snapshots are deleted and the beacon is written anew.
//! Nothing else is changed: the objects of lost records are orphans then, which brokers delete.

use std::collections::BTreeSet;
use std::fmt;

use rand::Rng;
use strandline_metadata::backend::{Backend, BackendError, RangeRequest};
use strandline_metadata::bucket::{Bucket, BucketError};
use strandline_metadata::evidence::{Beacon, Evidence};
use strandline_metadata::replica::{LoadError, View, load_as_it_is};
use strandline_metadata::snapshot::{self, SnapshotError};
use strandline_storage::error::StoreError;
use strandline_storage::path::ObjectKey;

use crate::limits::FSCK_LIST_PAGE;

/// Why a cluster cannot be recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// Brokers run, or their leases have not ended yet.
    #[error(
        "brokers {0:?} are registered: stop all of them first; after a restore, wait until their leases have ended"
    )]
    BrokersRun(Vec<i32>),
    /// What etcd has does not suffice: its snapshots are gone.
    #[error("this backup cannot be used, restore a newer one: {0}")]
    Load(#[from] LoadError),
    /// The bucket holds nothing of what the log needs.
    #[error(
        "this bucket holds no object that the log needs: it is another cluster's, or empty. Correct store_url"
    )]
    OtherBucket,
    /// etcd does not answer.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The bucket does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bucket's snapshots cannot be read.
    #[error(transparent)]
    Snapshots(#[from] SnapshotError),
    /// The bucket cannot be bound to the cluster.
    #[error(transparent)]
    Bucket(#[from] BucketError),
}

/// What the bucket has that etcd does not know of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Transactions of the log, as etcd counts them.
    pub commits: i64,
    /// Transactions of the log that the bucket knows of.
    pub known_commits: i64,
    /// When the bucket's beacon was written, ms since 1970; 0 if there is none.
    pub beacon_at_ms: i64,
    /// Objects of snapshots that are newer than those that etcd lists.
    pub snapshot_objects: Vec<ObjectKey>,
    /// Objects with records, or with none that were ever committed, that the log does not know.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The bucket has no marker that etcd names.
    pub is_unmarked: bool,
}

impl Loss {
    /// Whether brokers would start as it is.
    pub fn is_none(&self) -> bool {
        self.known_commits <= self.commits && self.snapshot_objects.is_empty() && !self.is_unmarked
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { commits, known_commits, objects, bytes, .. } = self;
        if self.is_none() {
            return write!(
                f,
                "etcd has what the bucket knows of ({commits} transactions of the log): nothing is lost"
            );
        }
        if self.is_unmarked {
            writeln!(
                f,
                "the bucket has no marker that etcd names, and holds objects of the log: it is marked anew"
            )?;
        }
        let lost = known_commits - commits;
        if lost > 0 {
            writeln!(
                f,
                "etcd counts {commits} transactions of the log, the bucket knows of {known_commits}: at least {lost} are lost"
            )?;
        }
        if self.beacon_at_ms > 0 {
            writeln!(f, "the bucket's beacon was written at {} ms since 1970", self.beacon_at_ms)?;
        }
        writeln!(f, "{} objects of newer snapshots are of no use any more", self.snapshot_objects.len())?;
        writeln!(
            f,
            "{objects} objects of {bytes} bytes were written after the backup, or never committed: the records in them are \
             lost, and brokers delete them soon after they start (copy the bucket first if you want to look at them)"
        )?;
        write!(
            f,
            "topics, configs and committed offsets are those of the backup; offsets above it are given out a second time: \
             reset consumers that are ahead, and restart idempotent producers"
        )
    }
}

/// Where a cluster is kept.
#[derive(Debug)]
pub struct Recovery<'a> {
    /// Its bucket, and its metadata store.
    pub bucket: Bucket<'a>,
}

impl Recovery<'_> {
    /// What is lost if brokers go on with what etcd has now.
    ///
    /// # Errors
    ///
    /// If that does not suffice, or something does not answer.
    pub async fn assess(&self) -> Result<Loss, RecoverError> {
        let Bucket { backend, keys, store, .. } = self.bucket;
        let evidence = Evidence::read(store).await?;
        let is_unmarked = match self.bucket.check_once().await {
            Ok(_) => false,
            Err(BucketError::Wrong { .. }) => true,
            Err(error) => return Err(error.into()),
        };
        let view = load_as_it_is(backend, keys, store).await?;
        if is_unmarked && !self.bucket.has_objects_of(&view).await? {
            return Err(RecoverError::OtherBucket);
        }
        let mut loss = Loss {
            commits: view.commits.count,
            known_commits: evidence.commits(),
            beacon_at_ms: evidence.beacon.as_ref().map_or(0, |b| b.written_at_ms),
            snapshot_objects: self.newer_snapshots(&view).await?,
            is_unmarked,
            ..Loss::default()
        };
        self.count_unknown(&view, &mut loss).await?;
        Ok(loss)
    }

    /// Makes the bucket agree with what etcd has, so that brokers start.
    ///
    /// # Errors
    ///
    /// If brokers run, or something does not answer. What was done by then may be done again.
    pub async fn accept(
        &self,
        loss: &Loss,
        now_ms: i64,
        rng: &mut (dyn Rng + Send),
    ) -> Result<(), RecoverError> {
        let Bucket { backend, keys, store, cluster_id } = self.bucket;
        let registered = registered(backend, keys).await?;
        if !registered.is_empty() {
            return Err(RecoverError::BrokersRun(registered));
        }
        let view = load_as_it_is(backend, keys, store).await?;
        if loss.is_unmarked {
            self.bucket.rebind(rng).await?;
        }
        for object in &loss.snapshot_objects {
            store.delete(object).await?;
        }
        let commits = view.commits;
        Beacon::new(cluster_id, commits.count, commits.revision, now_ms).write(store).await?;
        Ok(())
    }

    /// The objects of snapshots that are newer than all that etcd lists.
    async fn newer_snapshots(&self, view: &View) -> Result<Vec<ObjectKey>, RecoverError> {
        let listed = view.snapshots.iter().flat_map(|s| &s.snapshots);
        let newest = listed.map(|s| s.revision).max().unwrap_or(0);
        let mut needed = BTreeSet::new();
        for listed in view.snapshots.iter().flat_map(|s| &s.snapshots) {
            // One that cannot be read needs nothing.
            needed.extend(snapshot::objects_of(self.bucket.store, listed).await.unwrap_or_default());
        }
        let keys = snapshot::list(self.bucket.store).await?;
        let is_newer = |key: &ObjectKey| key.as_snapshot().is_some_and(|(revision, _)| revision > newest);
        Ok(keys.into_iter().filter(|key| is_newer(key) && !needed.contains(key.as_str())).collect())
    }

    async fn count_unknown(&self, view: &View, loss: &mut Loss) -> Result<(), RecoverError> {
        let mut after: Option<ObjectKey> = None;
        loop {
            let store = self.bucket.store;
            let page = store.list(ObjectKey::WAL_PREFIX, after.as_ref(), FSCK_LIST_PAGE).await?;
            for meta in &page {
                let Some(id) = meta.key.as_object() else { continue };
                if !view.state.objects().contains_key(&id) && !view.state.dead().contains_key(&id) {
                    loss.objects += 1;
                    loss.bytes += meta.size;
                }
            }
            match page.last() {
                Some(last) => after = Some(last.key.clone()),
                None => return Ok(()),
            }
        }
    }
}

/// The node ids that are registered.
async fn registered(
    backend: &dyn Backend,
    keys: &strandline_metadata::keys::Keyspace,
) -> Result<Vec<i32>, BackendError> {
    let read = RangeRequest { keys: keys.brokers(), revision: None, limit: 0, keys_only: true };
    let found = backend.range(read).await?;
    let node_id = |key: &[u8]| match keys.parse(key) {
        Some(strandline_metadata::keys::Key::Broker(node_id)) => Some(node_id),
        _ => None,
    };
    Ok(found.kvs.iter().filter_map(|kv| node_id(&kv.key)).collect())
}

#[cfg(test)]
mod tests;
