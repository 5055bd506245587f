//! What topics take in the store: what can be read, what waits to be deleted with the object that
//! it lies in, and what nobody committed.

use std::collections::BTreeMap;
use std::fmt;

use futures::StreamExt;
use strandline_metadata::replica::View;
use strandline_metadata::state::State;
use strandline_storage::format::merged::MergedIndex;
use strandline_storage::format::segment::read_index;
use strandline_storage::path::{ObjectId, ObjectKind};
use strandline_storage::store::Store;
use uuid::Uuid;

use crate::limits::FSCK_READS;

/// What becomes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Records that can be read are in it.
    Live,
    /// Nothing refers to it any more.
    Dead,
    /// It was never committed.
    Orphaned,
}

/// Bytes of one topic, or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Of records that can be read.
    pub live: u64,
    /// Of records that are deleted, were merged or compacted, and still lie in an object.
    pub dead: u64,
    /// In objects that brokers which are gone have not committed.
    pub orphaned: u64,
}

/// A topic and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpace {
    /// Its name; the id of one that is deleted.
    pub topic: String,
    /// Its bytes.
    pub space: Space,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes live, {} dead, {} orphaned", self.live, self.dead, self.orphaned)
    }
}

/// The bytes of each topic's records that can be read.
pub(super) fn live(state: &State) -> BTreeMap<Uuid, Space> {
    let bytes = |topic: &strandline_metadata::state::Topic| -> u64 {
        topic.partitions().iter().map(|partition| partition.bytes()).sum()
    };
    state.topics().iter().map(|(id, topic)| (*id, Space { live: bytes(topic), ..Space::default() })).collect()
}

/// Adds what lies in these objects beside that, by their indexes. One that cannot be read is passed
/// over: who reads it for what it holds says so.
pub(super) async fn add_rest(
    spaces: &mut BTreeMap<Uuid, Space>,
    store: &dyn Store,
    objects: &[(ObjectId, u64, Fate)],
) {
    let read = |(id, size, fate): (ObjectId, u64, Fate)| async move { (fate, held(store, id, size).await) };
    let mut reads = futures::stream::iter(objects.iter().copied()).map(read).buffer_unordered(FSCK_READS);
    let mut held_by_live: BTreeMap<Uuid, u64> = BTreeMap::new();
    while let Some((fate, held)) = reads.next().await {
        for (topic_id, bytes) in held {
            let space = spaces.entry(topic_id).or_default();
            match fate {
                Fate::Live => *held_by_live.entry(topic_id).or_default() += bytes,
                Fate::Dead => space.dead += bytes,
                Fate::Orphaned => space.orphaned += bytes,
            }
        }
    }
    for (topic_id, held) in held_by_live {
        let space = spaces.entry(topic_id).or_default();
        space.dead += held.saturating_sub(space.live);
    }
}

/// What an object's index says that it holds of each partition.
async fn held(store: &dyn Store, id: ObjectId, size: u64) -> Vec<(Uuid, u64)> {
    let key = id.key();
    let ranges: Vec<([u8; 16], u64)> = match id.kind {
        ObjectKind::Write => match read_index(store, &key, size).await {
            Ok(index) => index.ranges.iter().map(|range| (range.topic_id, range.length)).collect(),
            Err(_) => Vec::new(),
        },
        ObjectKind::Merge => match MergedIndex::read(store, &key, size).await {
            Ok(index) => index.ranges().iter().map(|range| (range.topic_id, range.length)).collect(),
            Err(_) => Vec::new(),
        },
    };
    ranges.into_iter().map(|(topic_id, bytes)| (Uuid::from_bytes(topic_id), bytes)).collect()
}

/// By name, the largest first.
pub(super) fn named(spaces: BTreeMap<Uuid, Space>, view: &View) -> Vec<TopicSpace> {
    let name = |id: Uuid| match view.names.topic_by_id(id) {
        Some(info) => info.name.clone(),
        None => format!("the deleted {id}"),
    };
    let mut topics: Vec<TopicSpace> =
        spaces.into_iter().map(|(id, space)| TopicSpace { topic: name(id), space }).collect();
    let all = |space: &Space| space.live + space.dead + space.orphaned;
    topics.sort_by(|a, b| all(&b.space).cmp(&all(&a.space)).then_with(|| a.topic.cmp(&b.topic)));
    topics
}
