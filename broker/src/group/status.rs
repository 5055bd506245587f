//! What can be seen of a group from outside of its task.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use strandline_metadata::groups::OffsetsKey;
use strandline_metadata::values::group::OffsetsValue;
use uuid::Uuid;

use super::offsets::SharedOffsets;

/// What can be seen of a group that this broker coordinates. It may have many offsets: it is looked
/// at where it is.
#[derive(Debug, Default)]
pub(crate) struct GroupStatus {
    /// Whether there is anything: a group that is only asked for does not exist by that.
    pub(crate) exists: bool,
    /// Kafka's name for the state.
    pub(crate) state: &'static str,
    /// `classic` or `consumer`.
    pub(crate) kind: &'static str,
    pub(crate) protocol_type: String,
    pub(crate) members: usize,
    /// Committed offsets: topic id, and offset by partition.
    pub(crate) committed: BTreeMap<OffsetsKey, (Uuid, BTreeMap<u32, i64>)>,
    /// Whether the group has been read, so that it is known what is stored of it.
    pub(super) is_read: bool,
}

impl GroupStatus {
    /// Shows the offsets of the keys that have changed; of all keys if `changed` is `None`.
    pub(super) fn show_offsets(&mut self, stored: &SharedOffsets, changed: Option<&[OffsetsKey]>) {
        let offsets = |value: &OffsetsValue| {
            (value.topic_id, value.partitions.iter().map(|(p, c)| (*p, c.offset)).collect())
        };
        let Some(changed) = changed else {
            self.committed = stored.iter().map(|(key, (_, value))| (key.clone(), offsets(value))).collect();
            return;
        };
        for key in changed {
            match stored.get(key) {
                None => drop(self.committed.remove(key)),
                Some((_, value)) => drop(self.committed.insert(key.clone(), offsets(value))),
            }
        }
    }
}

/// A status that its group's task writes and others read.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedStatus(Arc<Mutex<GroupStatus>>);

impl SharedStatus {
    pub(super) fn lock(&self) -> MutexGuard<'_, GroupStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
