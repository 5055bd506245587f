//! ConsumerGroupDescribe (key 69), versions 0–1 (KIP-848).
//!
//! Groups of the new protocol, with epochs, members, what they have and what they are to have.
//! Version 1 says which members speak the classic protocol. A group that is named twice is answered
//! once. Groups beyond 8 MiB in one response: COORDINATOR_LOAD_IN_PROGRESS, at which clients ask
//! for those again.

use std::ops::RangeInclusive;

use kafka_protocol::messages::consumer_group_describe_response::DescribedGroup;
use kafka_protocol::messages::{ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse, GroupId};

use super::describe_groups::ALL_OPERATIONS;
use super::distinct::each_once;
use super::{Call, text};
use crate::group::command::Command;
use crate::group::error::GroupError;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=1;

pub(super) async fn handle(
    call: &Call,
    request: ConsumerGroupDescribeRequest,
) -> ConsumerGroupDescribeResponse {
    let operations = if request.include_authorized_operations { ALL_OPERATIONS } else { i32::MIN };
    let of =
        |id, described: DescribedGroup| described.with_group_id(id).with_authorized_operations(operations);
    let describe = async |id: GroupId| {
        let command = |reply| Command::ConsumerDescribe(call.version, reply);
        let answer = call.broker.groups.ask(&id, command).await;
        of(id, answer.unwrap_or_else(|error| refused(&error)))
    };
    let refuse = |id, error: &GroupError| of(id, refused(error));
    let groups = call.describe_each(each_once(request.group_ids), describe, refuse).await;
    ConsumerGroupDescribeResponse::default().with_groups(groups)
}

fn refused(error: &GroupError) -> DescribedGroup {
    DescribedGroup::default()
        .with_error_code(error.code().code())
        .with_error_message(Some(text(error.to_string())))
        .with_group_epoch(-1)
        .with_assignment_epoch(-1)
}
