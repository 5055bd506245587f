//! JoinGroup (key 11), versions 0–9.
//!
//! A member joins a group, or takes part in its rebalance; the answer waits for the others. The
//! member id is required from version 4 (KIP-394), static members from 5 (KIP-345), the reason from
//! 8 (KIP-800) is logged by the group, skipping of the assignment from 9 (KIP-814). Kafka differs
//! in these points: metadata of more than 256 KiB for one member are refused with
//! GROUP_MAX_SIZE_REACHED, since a group must fit into one key of etcd, more than a hundred
//! protocols with INCONSISTENT_GROUP_PROTOCOL, and with INVALID_REQUEST a group.instance.id of more
//! than 249 bytes (Kafka's clients refuse it themselves) and any other text of more than 1,024.

use std::ops::RangeInclusive;

use kafka_protocol::messages::{JoinGroupRequest, JoinGroupResponse};

use super::{Call, text};
use crate::group::classic::join::Join;
use crate::group::command::Command;
use crate::group::error::{GroupError, JoinError};

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=9;

pub(super) async fn handle(call: &Call, request: JoinGroupRequest) -> JoinGroupResponse {
    let (group_id, member_id) = (request.group_id.to_string(), request.member_id.to_string());
    let mut response = match Join::from_request(&request, call.version, call.sender()) {
        Ok(join) => {
            // The group has copies, and what it keeps is bounded by its own limits. It may have
            // this request wait for days.
            drop(request);
            call.frame_memory.release();
            call.release_decoded();
            let command = |reply| Command::Join(Box::new(join), reply);
            let answer = call.broker.groups.ask(&group_id, command).await;
            answer.unwrap_or_else(|error| refused(error, member_id))
        }
        Err(error) => refused(error.into(), member_id),
    };
    if call.version < 7 {
        response.protocol_name.get_or_insert_with(|| text(""));
    }
    response
}

fn refused(error: GroupError, member_id: String) -> JoinGroupResponse {
    let answer = JoinGroupResponse::default()
        .with_error_code(error.code().code())
        .with_generation_id(-1)
        .with_protocol_name(None);
    match error {
        GroupError::Join(JoinError::MemberIdRequired(id)) => answer.with_member_id(text(id)),
        _ => answer.with_member_id(text(member_id)),
    }
}
