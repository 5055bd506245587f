//! SyncGroup (key 14), versions 0–5.
//!
//! A member asks for its assignment; the leader brings everybody's. Static members from version 3
//! (KIP-345), the protocol is checked from 5 (KIP-559).

use std::ops::RangeInclusive;

use kafka_protocol::messages::{SyncGroupRequest, SyncGroupResponse};

use super::Call;
use crate::group::classic::session::Sync;
use crate::group::command::Command;
use crate::group::error::GroupError;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=5;

pub(super) async fn handle(call: &Call, request: SyncGroupRequest) -> SyncGroupResponse {
    let refused = |error: GroupError| SyncGroupResponse::default().with_error_code(error.code().code());
    let sync = match Sync::from_request(&request) {
        Ok(sync) => Box::new(sync),
        Err(error) => return refused(error.into()),
    };
    // The group has copies, and what it keeps is bounded by its own limits. It may have this
    // request wait for long.
    let group_id = request.group_id.to_string();
    drop(request);
    call.frame_memory.release();
    call.release_decoded();
    let answer = call.broker.groups.ask(&group_id, |reply| Command::Sync(sync, reply)).await;
    answer.unwrap_or_else(refused)
}
