//! DescribeGroups (key 15), versions 0–6.
//!
//! Groups of the classic protocol, with their members; metadata and assignments while the group is
//! stable. A group that does not exist, or is of another type, is `Dead`; from version 6 on also
//! GROUP_ID_NOT_FOUND (KIP-1043). A group that is named twice is answered once. Groups beyond 8 MiB
//! in one response: COORDINATOR_LOAD_IN_PROGRESS, at which clients ask for those again.

use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::describe_groups_response::DescribedGroup;
use kafka_protocol::messages::{DescribeGroupsRequest, DescribeGroupsResponse, GroupId};

use super::distinct::each_once;
use super::{Call, text};
use crate::group::command::Command;
use crate::group::error::GroupError;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=6;

/// Kafka's bits for what may be done with a group: read, delete, describe, and describe and alter
/// its configs.
pub(super) const ALL_OPERATIONS: i32 = 1 << 3 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 11;

pub(super) async fn handle(call: &Call, request: DescribeGroupsRequest) -> DescribeGroupsResponse {
    let operations = request.include_authorized_operations && call.version >= 3;
    let operations = if operations { ALL_OPERATIONS } else { i32::MIN };
    let of =
        |id, described: DescribedGroup| described.with_group_id(id).with_authorized_operations(operations);
    let describe = async |id: GroupId| {
        let answer = call.broker.groups.ask(&id, Command::Describe).await;
        of(id, answer.unwrap_or_else(|error| refused(call.version, &error)))
    };
    let refuse = |id, error: &GroupError| of(id, refused(call.version, error));
    let described = call.describe_each(each_once(request.groups), describe, refuse).await;
    DescribeGroupsResponse::default().with_groups(described)
}

fn refused(version: i16, error: &GroupError) -> DescribedGroup {
    let is_dead = error.code() == ResponseError::GroupIdNotFound;
    let answer = DescribedGroup::default().with_group_state(text(if is_dead { "Dead" } else { "" }));
    match version {
        ..6 if is_dead => answer,
        ..6 => answer.with_error_code(error.code().code()),
        _ => answer.with_error_code(error.code().code()).with_error_message(Some(text(error.to_string()))),
    }
}
