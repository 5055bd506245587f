//! JoinGroup (key 11), versions 0–9.
//!
//! A member joins a group, or takes part in its rebalance; the answer waits for the others. The member id is required
//! from version 4 (KIP-394), static members from 5 (KIP-345), the reason from 8 (KIP-800) is logged by the group, skipping of
//! the assignment from 9 (KIP-814). Kafka differs in one point: metadata of more than 256 KiB for one member are refused
//! with GROUP_MAX_SIZE_REACHED, since a group must fit into one key of etcd.

use std::ops::RangeInclusive;

use kafka_protocol::messages::{JoinGroupRequest, JoinGroupResponse};

use super::{Call, text};
use crate::group::classic::join::join_error;
use crate::group::command::Command;
use crate::group::coordinator::ask;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=9;

pub(super) async fn handle(call: &Call, request: JoinGroupRequest) -> JoinGroupResponse {
    let (group, member_id) = (request.group_id.to_string(), request.member_id.to_string());
    let (version, sender) = (call.version, call.sender());
    let request = Box::new(request);
    let command = |reply| Command::Join { request, version, sender, reply };
    let mut response =
        ask(&call.broker, &group, command).await.unwrap_or_else(|error| join_error(&member_id, error.code));
    if call.version < 7 {
        response.protocol_name.get_or_insert_with(|| text(""));
    }
    response
}
