//! LeaveGroup (key 13), versions 0–5.
//!
//! A member leaves, or an operator removes members; several at once from version 3 (KIP-345), with
//! a reason from 5 (KIP-800), which the group logs.

use std::ops::RangeInclusive;

use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::{LeaveGroupRequest, LeaveGroupResponse};

use super::Call;
use crate::group::command::Command;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=5;

pub(super) async fn handle(call: &Call, request: LeaveGroupRequest) -> LeaveGroupResponse {
    let group = request.group_id.to_string();
    let is_one = call.version < 3;
    let members = if is_one {
        vec![MemberIdentity::default().with_member_id(request.member_id)]
    } else {
        request.members
    };
    let asked = members.clone();
    let left = match call.broker.groups.ask(&group, |reply| Command::Leave(members, reply)).await {
        Ok(left) => left,
        Err(error) => return LeaveGroupResponse::default().with_error_code(error.code().code()),
    };
    let members: Vec<MemberResponse> = asked
        .into_iter()
        .zip(left)
        .map(|(member, left)| {
            MemberResponse::default()
                .with_member_id(member.member_id)
                .with_group_instance_id(member.group_instance_id)
                .with_error_code(left.err().map_or(0, |e| e.code().code()))
        })
        .collect();
    if is_one {
        let code = members.first().map_or(0, |m| m.error_code);
        return LeaveGroupResponse::default().with_error_code(code);
    }
    LeaveGroupResponse::default().with_members(members)
}
