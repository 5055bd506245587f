//! Writing a group and its offsets, in as many transactions as it takes.

use strandline_metadata::groups::{GroupPut, GroupWrite, GroupWriteError, OffsetsKey, OffsetsPut};
use strandline_metadata::limits::{APPLY_TIMEOUT, GROUP_WRITE_KEYS};
use tokio::time::timeout;

use super::environment::GroupKeys;
use super::offsets;
use crate::limits::{GROUP_OFFSETS_BYTES_PER_TXN, OFFSETS_BYTES_BESIDE_GROUP};

/// What came of a write.
pub(super) struct Written {
    /// Mod revision of the group's key; 0 if there is none.
    pub(super) revision: i64,
    /// Bytes of the group's own value; 0 if it was not put.
    pub(super) value_bytes: usize,
    /// The keys of offsets that were written, and their mod revisions.
    pub(super) offsets: Vec<(OffsetsKey, i64)>,
    /// Whether it was all.
    pub(super) result: Result<(), GroupWriteError>,
}

/// Writes all of it, and stops at the first failure.
pub(super) async fn all(keys: GroupKeys, revision: i64, put: GroupPut, offsets: Vec<OffsetsPut>) -> Written {
    let GroupKeys { env, group, session } = keys;
    let mut written = Written { revision, value_bytes: 0, offsets: Vec::new(), result: Ok(()) };
    for (put, offsets) in transactions(put, offsets) {
        let write = GroupWrite { group: group.clone(), revision: written.revision, put, offsets };
        let done = match env.writer.write(session, env.replica.keys(), &write).await {
            Ok(done) => done,
            Err(error) => {
                written.result = Err(error);
                return written;
            }
        };
        written.value_bytes += done.value_bytes;
        match write.put {
            GroupPut::Keep => {}
            GroupPut::Put(_) => written.revision = done.revision,
            GroupPut::Delete => {
                written.revision = 0;
                // Until this broker has seen it go, the group would seem to be somebody else's.
                let _ = timeout(APPLY_TIMEOUT, env.replica.wait_applied(done.revision)).await;
            }
        }
        env.metrics.written(write.offsets.len());
        written.offsets.extend(write.offsets.into_iter().map(|p| (p.key, done.revision)));
    }
    written
}

/// What goes into each transaction. The group's own key goes first, or last if it is deleted.
fn transactions(put: GroupPut, offsets: Vec<OffsetsPut>) -> Vec<(GroupPut, Vec<OffsetsPut>)> {
    let mut parts: Vec<(GroupPut, Vec<OffsetsPut>)> = Vec::new();
    let mut bytes = 0;
    for one in offsets {
        let more = one.value.as_ref().map_or(0, offsets::stored_bytes);
        bytes += more;
        match parts.last_mut() {
            Some((_, part)) if part.len() < GROUP_WRITE_KEYS && bytes <= GROUP_OFFSETS_BYTES_PER_TXN => {
                part.push(one);
            }
            _ => {
                bytes = more;
                parts.push((GroupPut::Keep, vec![one]));
            }
        }
    }
    // A group may be large itself.
    let is_much = parts.len() > 1 || bytes > OFFSETS_BYTES_BESIDE_GROUP;
    if is_much && matches!(put, GroupPut::Put(_)) {
        parts.insert(0, (GroupPut::Keep, Vec::new()));
    }
    if put != GroupPut::Keep && parts.is_empty() {
        parts.push((GroupPut::Keep, Vec::new()));
    }
    let own = if put == GroupPut::Delete { parts.last_mut() } else { parts.first_mut() };
    if let Some(own) = own {
        own.0 = put;
    }
    parts
}
