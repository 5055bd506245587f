//! Deleting objects that nothing can refer to any more. Safe by construction, never by age alone
//! (invariant 6).
//!
//! - **Dead objects** are on the state's list. One is deleted once it is older than every snapshot
//!   that is listed or kept for a backup, and the delay has passed on this broker's monotonic clock
//!   since it was first seen so. A record takes it off the list after the DELETE.
//! - **Orphans** were written and never committed. In exactly this order: LIST; linearizable read
//!   that the incarnation is gone; barrier; not in the state.
//!
//! To a metadata store that was restored from a backup, what it has lost looks like orphans. So
//! what the bucket knows of it is compared before anything is deleted (`metadata/src/evidence.rs`);
//! and orphans stay for an hour after a start that found anything odd.

use std::collections::{BTreeMap, BTreeSet};

use strandline_metadata::commit::{Change, CommitError};
use strandline_metadata::record::{Body, ObjectsDeleted};
use strandline_metadata::replica::{BarrierError, EvidenceError};
use strandline_metadata::snapshot::{Maintainer, SnapshotError};
use strandline_metadata::state::object_ref;
use strandline_storage::error::StoreError;
use strandline_storage::path::{ObjectId, ObjectKey, ObjectKind};
use strandline_storage::store::delete_while_it_works;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::Broker;
use crate::limits::{
    OBJECTS_DELETED_PER_PASS, OBJECTS_PER_RECORD, ORPHAN_LIST_PAGE, ORPHANS_AFTER_ODDITY,
    PASSES_PER_ORPHAN_LISTING,
};
use crate::topics::commit;

/// Why a pass ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum GcError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Propose(#[from] CommitError),
    #[error(transparent)]
    Barrier(#[from] BarrierError),
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    #[error(transparent)]
    Snapshots(#[from] SnapshotError),
}

/// What this broker has seen so far.
#[derive(Debug, Default)]
pub(super) struct Collector {
    /// Since when a dead object has been older than every listed snapshot.
    ripe_since: BTreeMap<ObjectId, Instant>,
    passes: u32,
    /// What is being listed, and where the listing goes on; `None` between two listings.
    listing: Option<(ObjectKind, Option<ObjectKey>)>,
}

impl Collector {
    pub(super) async fn run_once(
        &mut self,
        broker: &Broker,
        snapshots: &mut Maintainer,
    ) -> Result<(), GcError> {
        self.delete_dead(broker, snapshots).await?;
        if self.passes.is_multiple_of(PASSES_PER_ORPHAN_LISTING) {
            self.listing.get_or_insert((ObjectKind::Write, None));
        }
        self.passes = self.passes.wrapping_add(1);
        if let Some((kind, listed_to)) = self.listing.clone() {
            self.collect_orphans(broker, kind, listed_to).await?;
        }
        Ok(())
    }

    async fn delete_dead(&mut self, broker: &Broker, snapshots: &mut Maintainer) -> Result<(), GcError> {
        if broker.replica.read(|view| view.state.dead().is_empty()) {
            self.ripe_since.clear();
            return Ok(());
        }
        let now = Instant::now();
        let oldest = snapshots.oldest_snapshot().await?;
        let ripe: BTreeSet<ObjectId> = broker.replica.read(|view| {
            // Without a snapshot, a broker that starts replays the whole log, and plans nothing
            // with what died in it.
            let is_ripe = |died: i64| oldest.is_none_or(|oldest| died < oldest);
            let ripe = view.state.dead().iter().filter(|(_, died)| is_ripe(**died));
            ripe.map(|(&object, _)| object).collect()
        });
        self.ripe_since.retain(|object, _| ripe.contains(object));
        for object in ripe {
            self.ripe_since.entry(object).or_insert(now);
        }
        let delay = broker.config.delete_delay;
        let due = self.ripe_since.iter().filter(|(_, since)| now.saturating_duration_since(**since) >= delay);
        let due: Vec<ObjectId> = due.map(|(&object, _)| object).take(OBJECTS_DELETED_PER_PASS).collect();
        if due.is_empty() {
            return Ok(());
        }
        broker.replica.check_beacon().await?;
        let (gone, left) = delete(broker, &due).await;
        for object in &left {
            // It holds up nobody, and is tried again when the delay has passed once more.
            self.ripe_since.insert(*object, Instant::now());
        }
        for gone in gone.chunks(OBJECTS_PER_RECORD) {
            let body =
                Body::ObjectsDeleted(ObjectsDeleted { objects: gone.iter().map(object_ref).collect() });
            commit(broker, Change { body: Some(body), ..Change::default() }).await?;
        }
        info!(objects = gone.len(), left = left.len(), "dead objects are deleted");
        Ok(())
    }

    /// Why orphans must stay, if they must.
    async fn doubt(broker: &Broker, is_first_page: bool) -> Result<Option<String>, GcError> {
        let is_recent = |odd: &Instant| odd.elapsed() < ORPHANS_AFTER_ODDITY;
        if broker.replica.odd_since().as_ref().is_some_and(is_recent) {
            return Ok(Some("something odd was found as the state was read".to_owned()));
        }
        // The listing of snapshots is as long as that of a page: once for each look at the bucket.
        if is_first_page {
            return Ok(broker.replica.check_bucket().await?);
        }
        broker.replica.check_beacon().await?;
        Ok(None)
    }

    /// Looks at one page of the bucket.
    async fn collect_orphans(
        &mut self,
        broker: &Broker,
        kind: ObjectKind,
        listed_to: Option<ObjectKey>,
    ) -> Result<(), GcError> {
        if let Some(doubt) = Self::doubt(broker, listed_to.is_none()).await? {
            warn!(doubt, "orphans are not collected");
            broker.metrics.orphans_stay(true);
            self.listing = None;
            return Ok(());
        }
        broker.metrics.orphans_stay(false);
        let prefix = match kind {
            ObjectKind::Write => ObjectKey::WAL_PREFIX,
            ObjectKind::Merge => ObjectKey::MERGE_PREFIX,
        };
        let page = broker.store.list(prefix, listed_to.as_ref(), ORPHAN_LIST_PAGE).await?;
        self.listing = match (kind, page.last()) {
            (kind, Some(last)) => Some((kind, Some(last.key.clone()))),
            (ObjectKind::Write, None) => Some((ObjectKind::Merge, None)),
            (ObjectKind::Merge, None) => None,
        };
        // Asked after the objects were listed: one that is put later is not on the page. And the
        // state is looked at after that: what they have committed is in it.
        let registered = broker.replica.registered().await?;
        let orphans: Vec<ObjectId> = broker.replica.read(|view| {
            let written = page.iter().filter_map(|meta| meta.key.as_object());
            let is_known =
                |id: &ObjectId| view.state.objects().contains_key(id) || view.state.dead().contains_key(id);
            written.filter(|id| !is_known(id) && !registered.contains(&id.incarnation)).collect()
        });
        if !orphans.is_empty() {
            let (gone, left) = delete(broker, &orphans).await;
            info!(objects = gone.len(), left = left.len(), "orphans are deleted");
        }
        Ok(())
    }
}

/// Deletes objects, many at a time, for as long as the other jobs can wait. Gives those that are
/// gone, and those that the store did not delete; the rest was not tried.
async fn delete(broker: &Broker, objects: &[ObjectId]) -> (Vec<ObjectId>, Vec<ObjectId>) {
    let keys: Vec<ObjectKey> = objects.iter().map(ObjectId::key).collect();
    let results = delete_while_it_works(broker.store.as_ref(), &keys).await;
    let (mut gone, mut left) = (Vec::with_capacity(results.len()), Vec::new());
    let mut why = None;
    for (object, result) in objects.iter().zip(results) {
        match result {
            Ok(()) => {
                debug!(%object, "deleted");
                broker.reader.evict(*object);
                gone.push(*object);
            }
            Err(error) => {
                why.get_or_insert(error);
                left.push(*object);
            }
        }
    }
    if let (Some(error), Some(first)) = (why, left.first()) {
        warn!(objects = left.len(), %first, %error, "objects cannot be deleted; others are, and these are tried again");
    }
    (gone, left)
}
