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
use strandline_metadata::record::{Body, ObjectRef, ObjectsDeleted};
use strandline_metadata::replica::{BarrierError, EvidenceError};
use strandline_metadata::snapshot::{Maintainer, SnapshotError};
use strandline_storage::error::StoreError;
use strandline_storage::path::{ObjectId, ObjectKey};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::Broker;
use crate::limits::{
    OBJECTS_DELETED_PER_PASS, ORPHAN_LIST_PAGE, ORPHANS_AFTER_ODDITY, PASSES_PER_ORPHAN_LISTING,
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
    /// Where the listing goes on.
    listed_to: Option<ObjectKey>,
    listing: bool,
}

impl Collector {
    pub(super) async fn run_once(
        &mut self,
        broker: &Broker,
        snapshots: &mut Maintainer,
    ) -> Result<(), GcError> {
        self.delete_dead(broker, snapshots).await?;
        if self.passes.is_multiple_of(PASSES_PER_ORPHAN_LISTING) {
            self.listing = true;
        }
        self.passes = self.passes.wrapping_add(1);
        if self.listing {
            self.collect_orphans(broker).await?;
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
        for object in &due {
            broker.store.delete(&object.key()).await?;
            broker.reader.evict(*object);
        }
        let refs =
            |id: &ObjectId| ObjectRef { incarnation: id.incarnation, number: id.number, salt: id.salt };
        let body = Body::ObjectsDeleted(ObjectsDeleted { objects: due.iter().map(refs).collect() });
        commit(broker, Change { body: Some(body), ..Change::default() }).await?;
        info!(objects = due.len(), "dead objects are deleted");
        Ok(())
    }

    /// Why orphans must stay, if they must.
    async fn doubt(&self, broker: &Broker) -> Result<Option<String>, GcError> {
        let is_recent = |odd: &Instant| odd.elapsed() < ORPHANS_AFTER_ODDITY;
        if broker.replica.odd_since().as_ref().is_some_and(is_recent) {
            return Ok(Some("something odd was found as the state was read".to_owned()));
        }
        // The listing of snapshots is as long as that of a page: once for each look at the bucket.
        if self.listed_to.is_none() {
            return Ok(broker.replica.check_bucket().await?);
        }
        broker.replica.check_beacon().await?;
        Ok(None)
    }

    /// Looks at one page of the bucket.
    async fn collect_orphans(&mut self, broker: &Broker) -> Result<(), GcError> {
        if let Some(doubt) = self.doubt(broker).await? {
            warn!(doubt, "orphans are not collected");
            broker.metrics.orphans_stay(true);
            self.listing = false;
            return Ok(());
        }
        broker.metrics.orphans_stay(false);
        let page =
            broker.store.list(ObjectKey::WAL_PREFIX, self.listed_to.as_ref(), ORPHAN_LIST_PAGE).await?;
        self.listed_to = page.last().map(|meta| meta.key.clone());
        self.listing = self.listed_to.is_some();
        // Asked after the objects were listed: one that is put later is not on the page. And the
        // state is looked at after that: what they have committed is in it.
        let registered = broker.replica.registered().await?;
        let orphans: Vec<ObjectId> = broker.replica.read(|view| {
            let written = page.iter().filter_map(|meta| meta.key.as_object());
            let is_known =
                |id: &ObjectId| view.state.objects().contains_key(id) || view.state.dead().contains_key(id);
            written.filter(|id| !is_known(id) && !registered.contains(&id.incarnation)).collect()
        });
        for orphan in &orphans {
            debug!(object = %orphan, "deleting an orphan");
            broker.store.delete(&orphan.key()).await?;
        }
        if !orphans.is_empty() {
            info!(objects = orphans.len(), "orphans are deleted");
        }
        Ok(())
    }
}
