//! `strandline fsck`: is everything there that was acknowledged? Reads metadata and the object
//! store, and changes nothing.
//!
//! ```text
//!   etcd: snapshot pointer, log ─▶ state ─▶ invariants: offsets tile, references add up
//!                                    │
//!   each listed snapshot, log ──────▶│ the same state, whichever of them a broker starts from
//!   store: LIST ────────────────────▶│ every live object exists with its size; so do those that snapshots need
//!   store: GET of every live object ▶│ identity, index and checksums; each range's batches, counts and times are those that were committed
//! ```
//!
//! It may run beside a working cluster: what was deleted meanwhile is looked up again before it is
//! called lost. Its memory is that of a broker's state, and of a few objects at a time.

mod object;
mod space;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use futures::StreamExt;
use strandline_metadata::backend::{Backend, BackendError};
use strandline_metadata::brokers::{self, RegisterError};
use strandline_metadata::bucket::{Bucket, BucketError};
use strandline_metadata::invariants;
use strandline_metadata::keys::Keyspace;
use strandline_metadata::replica::{LoadError, NoObserver, Replica, View, replay_from};
use strandline_metadata::snapshot;
use strandline_metadata::state::State;
use strandline_metadata::values::SnapshotRef;
use strandline_storage::error::StoreError;
use strandline_storage::path::{ObjectId, ObjectKey};
use strandline_storage::store::{ObjectMeta, Store};

use self::object::Expected;
use self::space::Fate;
pub use self::space::{Space, TopicSpace};
use crate::limits::{FSCK_FINDINGS, FSCK_LIST_PAGE, FSCK_READS, FSCK_TOPICS};

/// Objects with which something is wrong, and what.
type Suspects = Vec<(ObjectId, String)>;

/// Why an audit cannot be made. What is damaged is not an error of the audit: it is a [`Finding`].
#[derive(Debug, thiserror::Error)]
pub enum FsckError {
    /// The store is not the one that the cluster's objects are in.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// The cluster's own key cannot be read.
    #[error(transparent)]
    Cluster(#[from] RegisterError),
    /// The state cannot be read.
    #[error("the state cannot be read: {0}")]
    Load(#[from] LoadError),
    /// The store cannot be listed.
    #[error("the object store cannot be listed: {0}")]
    List(StoreError),
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// The state contradicts itself, or a snapshot cannot be read.
    State(String),
    /// An object that records are in is damaged or gone.
    Object {
        /// Which.
        object: ObjectId,
        /// What is wrong with it.
        what: String,
    },
}

/// What an audit found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The revision of the state that was audited.
    pub revision: i64,
    /// Topics.
    pub topics: u64,
    /// Partitions.
    pub partitions: u64,
    /// Records that can be read.
    pub records: u64,
    /// Objects that records are in.
    pub objects: u64,
    /// Bytes of them that were read and checked.
    pub bytes_checked: u64,
    /// Objects that nothing refers to any more, and that will be deleted.
    pub dead: u64,
    /// Objects that a running broker has written and not committed, or not yet.
    pub in_flight: u64,
    /// Objects that brokers which are gone have written and not committed: the next collection
    /// deletes them.
    pub orphans: u64,
    /// Objects in the store that this build does not know.
    pub foreign: u64,
    /// Bytes of whole objects: those that records are in, less what can be read of them, count as
    /// dead, and so do their indexes.
    pub space: Space,
    /// What each topic takes, the largest first. Unless objects were read, only what can be read is
    /// known.
    pub topics_space: Vec<TopicSpace>,
    /// What must not be, the first of them.
    pub findings: Vec<Finding>,
    /// How many more there are.
    pub further_findings: u64,
}

impl Report {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    fn add(&mut self, finding: Finding) {
        if self.findings.len() < FSCK_FINDINGS {
            self.findings.push(finding);
        } else {
            self.further_findings += 1;
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(what) => write!(f, "state: {what}"),
            Self::Object { object, what } => write!(f, "object {}: {what}", object.key().as_str()),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { revision, topics, partitions, records, objects, .. } = self;
        writeln!(
            f,
            "revision {revision}: {topics} topics, {partitions} partitions, {records} records in {objects} objects"
        )?;
        writeln!(f, "{} bytes read and checked", self.bytes_checked)?;
        writeln!(
            f,
            "{} dead objects wait to be deleted, {} are being written, {} orphans wait for their collection, {} are unknown",
            self.dead, self.in_flight, self.orphans, self.foreign
        )?;
        writeln!(f, "{}", self.space)?;
        for TopicSpace { topic, space } in self.topics_space.iter().take(FSCK_TOPICS) {
            writeln!(f, "  {topic}: {space}")?;
        }
        match self.topics_space.len().saturating_sub(FSCK_TOPICS) {
            0 => {}
            further => writeln!(f, "  and {further} smaller topics")?,
        }
        for finding in &self.findings {
            writeln!(f, "FOUND {finding}")?;
        }
        match (self.findings.len() as u64, self.further_findings) {
            (0, _) => write!(f, "nothing was found that must not be"),
            (shown, 0) => write!(f, "{shown} findings"),
            (shown, further) => write!(f, "{} findings, {further} of them not shown", shown + further),
        }
    }
}

/// Audits a cluster. Without `reads` objects are listed and not read: that costs few requests, and
/// finds what is gone but not what is damaged.
pub async fn run(
    backend: &Arc<dyn Backend>,
    store: &Arc<dyn Store>,
    keys: &Keyspace,
    reads: bool,
) -> Result<Report, FsckError> {
    check_bucket(backend, store, keys).await?;
    let view = load(backend, store, keys).await?;
    let mut report = Report { revision: view.revision, ..Report::default() };
    examine_state(&view, &mut report);
    let (mut snapshots, needed) = examine_snapshots(&view, backend, store, keys).await;
    let (mut suspects, old, objects) = examine_listing(&view, &needed, store, &mut report).await?;
    let mut spaces = space::live(&view.state);
    if reads {
        suspects.extend(examine_objects(&view.state, store, &mut report).await);
        space::add_rest(&mut spaces, store.as_ref(), &objects).await;
    }
    report.space.live = spaces.values().map(|space| space.live).sum();
    let live_objects: u64 = objects.iter().filter(|(_, _, fate)| *fate == Fate::Live).map(|o| o.1).sum();
    report.space.dead += live_objects.saturating_sub(report.space.live);
    report.topics_space = space::named(spaces, &view);
    if !suspects.is_empty() || !old.is_empty() || !snapshots.is_empty() {
        // Retention, or the next snapshot, may have deleted them while they were looked at.
        let now = load(backend, store, keys).await?;
        suspects.retain(|(object, _)| now.state.objects().contains_key(object));
        snapshots.retain(|(snapshot, _)| listed(&now).any(|s| s.object == snapshot.object));
        for (object, revision) in old {
            if listed(&now).any(|s| s.revision == revision) {
                suspects
                    .push((object, format!("it is gone, and the snapshot of revision {revision} needs it")));
            }
        }
    }
    for (snapshot, what) in snapshots {
        report.add(Finding::State(format!("the snapshot of revision {}: {what}", snapshot.revision)));
    }
    let mut told = BTreeSet::new();
    for (object, what) in suspects {
        if told.insert(object) {
            report.add(Finding::Object { object, what });
        }
    }
    Ok(report)
}

/// Whether these are the objects that the cluster's log speaks of: as a broker looks when it
/// starts.
async fn check_bucket(
    backend: &Arc<dyn Backend>,
    store: &Arc<dyn Store>,
    keys: &Keyspace,
) -> Result<(), FsckError> {
    let Some((cluster, _)) = brokers::read_cluster(backend.as_ref(), keys).await? else { return Ok(()) };
    let cluster_id = &cluster.cluster_id;
    Bucket { backend: backend.as_ref(), keys, store: store.as_ref(), cluster_id }.check().await?;
    Ok(())
}

/// The state as it is now. Nothing follows it: the loops are never run.
async fn load(
    backend: &Arc<dyn Backend>,
    store: &Arc<dyn Store>,
    keys: &Keyspace,
) -> Result<View, FsckError> {
    let opened = Replica::open(backend.clone(), keys.clone(), store.clone(), Box::new(NoObserver)).await?;
    Ok(opened.0.read(View::clone))
}

fn examine_state(view: &View, report: &mut Report) {
    let state = &view.state;
    if let Err(violation) = invariants::check(state) {
        report.add(Finding::State(violation.to_string()));
    }
    for topic in state.topics().values() {
        report.topics += 1;
        for partition in topic.partitions() {
            report.partitions += 1;
            report.records += u64::try_from(partition.end() - partition.log_start()).unwrap_or(0);
        }
    }
    report.objects = state.objects().len() as u64;
    report.dead = state.dead().len() as u64;
}

/// The snapshots that etcd names.
fn listed(view: &View) -> impl Iterator<Item = &SnapshotRef> {
    view.snapshots.iter().flat_map(|s| &s.snapshots)
}

/// A broker that starts needs one of the snapshots, the log behind it, and the objects that it
/// names (invariant 6). Gives the snapshots that are of no use, and why; and the objects that the
/// state does not need any more, each with the revision of a snapshot that does.
async fn examine_snapshots(
    view: &View,
    backend: &Arc<dyn Backend>,
    store: &Arc<dyn Store>,
    keys: &Keyspace,
) -> (Vec<(SnapshotRef, String)>, BTreeMap<ObjectId, i64>) {
    let trimmed_to = view.snapshots.as_ref().map_or(0, |s| s.trimmed_to);
    let (mut wrong, mut needed) = (Vec::new(), BTreeMap::new());
    for snapshot in listed(view) {
        let revision = snapshot.revision;
        match snapshot::read(store.as_ref(), snapshot).await {
            Ok(state) => needed.extend(state.objects().keys().map(|&object| (object, revision))),
            Err(error) => {
                wrong.push((snapshot.clone(), error.to_string()));
                continue;
            }
        }
        if revision < trimmed_to {
            continue;
        }
        let what = match replay_from(backend.as_ref(), keys, store.as_ref(), snapshot, view.revision).await {
            Ok(state) if state == view.state => continue,
            Ok(_) => "it and the log behind it make another state".to_owned(),
            // It was read a moment ago: what lies behind it was trimmed or forgotten meanwhile.
            Err(LoadError::Backend(BackendError::Compacted { .. }) | LoadError::Snapshots(_)) => continue,
            Err(error) => format!("the log behind it: {error}"),
        };
        wrong.push((snapshot.clone(), what));
    }
    needed.retain(|object, _| !view.state.objects().contains_key(object));
    (wrong, needed)
}

/// What was listed: objects with which something is wrong; those that a snapshot needs and that are
/// gone; and all that is there, with sizes.
type Listed = (Suspects, BTreeMap<ObjectId, i64>, Vec<(ObjectId, u64, Fate)>);

/// What is in the store and should not be, and the other way round.
async fn examine_listing(
    view: &View,
    needed: &BTreeMap<ObjectId, i64>,
    store: &Arc<dyn Store>,
    report: &mut Report,
) -> Result<Listed, FsckError> {
    let state = &view.state;
    let registered: BTreeSet<i64> = view.names.brokers().values().map(|b| b.incarnation).collect();
    let mut missing: BTreeSet<ObjectId> = state.objects().keys().copied().collect();
    let (mut wrong, mut old, mut objects) = (Vec::new(), needed.clone(), Vec::new());
    let mut after: Option<ObjectKey> = None;
    loop {
        let page: Vec<ObjectMeta> =
            store.list("", after.as_ref(), FSCK_LIST_PAGE).await.map_err(FsckError::List)?;
        for meta in &page {
            let Some(id) = meta.key.as_object() else {
                report.foreign += u64::from(!meta.key.is_known());
                continue;
            };
            missing.remove(&id);
            old.remove(&id);
            let fate = match state.objects().get(&id) {
                Some(live) if live.bytes != meta.size => {
                    wrong.push((id, format!("it has {} bytes instead of {}", meta.size, live.bytes)));
                    continue;
                }
                Some(_) => Fate::Live,
                None if state.dead().contains_key(&id) => {
                    report.space.dead += meta.size;
                    Fate::Dead
                }
                None if registered.contains(&id.incarnation) => {
                    report.in_flight += 1;
                    continue;
                }
                None => {
                    report.orphans += 1;
                    report.space.orphaned += meta.size;
                    Fate::Orphaned
                }
            };
            objects.push((id, meta.size, fate));
        }
        let Some(last) = page.last() else { break };
        after = Some(last.key.clone());
    }
    wrong.extend(missing.into_iter().map(|id| (id, "it is gone".to_owned())));
    Ok((wrong, old, objects))
}

/// Reads every live object and compares it with what was committed.
async fn examine_objects(state: &State, store: &Arc<dyn Store>, report: &mut Report) -> Suspects {
    let mut expected: BTreeMap<ObjectId, Vec<Expected>> = BTreeMap::new();
    for (topic_id, topic) in state.topics() {
        for (partition, known) in (0..).zip(topic.partitions()) {
            for range in known.ranges().iter() {
                let one = Expected { topic_id: *topic_id.as_bytes(), partition, range: *range };
                expected.entry(range.object).or_default().push(one);
            }
        }
    }
    let checks = expected.into_iter().filter_map(|(id, ranges)| {
        let bytes = state.objects().get(&id)?.bytes;
        Some(async move { (id, bytes, object::check(store.as_ref(), id, bytes, ranges).await) })
    });
    let mut checks = futures::stream::iter(checks).buffer_unordered(FSCK_READS);
    let mut wrong = Vec::new();
    while let Some((id, bytes, checked)) = checks.next().await {
        match checked {
            Ok(()) => report.bytes_checked += bytes,
            Err(what) => wrong.push((id, what)),
        }
    }
    wrong.sort();
    wrong
}
