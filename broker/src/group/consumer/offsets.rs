//! Who may commit and read the offsets of a group.

use super::ConsumerGroup;
use crate::group::error::{CommitError, MemberError};

/// From this version of OffsetCommit on, a client knows what to do when its member epoch is stale.
const MEMBER_EPOCH_VERSION: i16 = 9;

impl ConsumerGroup {
    /// Whether a member may commit offsets. `version` is that of OffsetCommit; None for a commit in
    /// a transaction.
    ///
    /// As in Kafka, the instance id of a commit is of no importance: the member id says it all.
    pub(crate) fn validate_offset_commit(
        &self,
        member_id: &str,
        member_epoch: i32,
        version: Option<i16>,
    ) -> Result<(), CommitError> {
        // Who names no epoch does not take part in the group, so nobody else may either.
        if member_epoch < 0 && self.is_empty() {
            return Ok(());
        }
        let is_classic = self.member(member_id)?.classic.is_some();
        if !is_classic && version.is_some_and(|version| version < MEMBER_EPOCH_VERSION) {
            return Err(CommitError::OldVersion(MEMBER_EPOCH_VERSION));
        }
        Ok(self.validate_epoch(member_id, member_epoch)?)
    }

    /// Whether there is such a member, at this epoch.
    pub(crate) fn validate_epoch(&self, member_id: &str, member_epoch: i32) -> Result<(), MemberError> {
        let member = self.member(member_id)?;
        if member.epoch == member_epoch {
            return Ok(());
        }
        let (named, current) = (member_epoch, member.epoch);
        Err(match &member.classic {
            Some(_) => MemberError::Generation { named, current },
            None => MemberError::StaleEpoch { named, current },
        })
    }
}
