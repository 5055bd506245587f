//! ConsumerGroupDescribe (key 69), versions 0–1 (KIP-848).
//!
//! Groups of the new protocol, with epochs, members, what they have and what they are to have.
//! Version 1 says which members speak the classic protocol. A group that is named twice is answered
//! once.

use std::ops::RangeInclusive;

use kafka_protocol::messages::consumer_group_describe_response::DescribedGroup;
use kafka_protocol::messages::{ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse, GroupId};

use super::describe_groups::ALL_OPERATIONS;
use super::distinct::each_once;
use super::{Call, text};
use crate::group::command::Command;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=1;

pub(super) async fn handle(
    call: &Call,
    request: ConsumerGroupDescribeRequest,
) -> ConsumerGroupDescribeResponse {
    let operations = if request.include_authorized_operations { ALL_OPERATIONS } else { i32::MIN };
    let describe = |id: GroupId| async move {
        let described = describe(call, &id).await;
        described.with_group_id(id).with_authorized_operations(operations)
    };
    let groups = call.ask_each(each_once(request.group_ids), describe).await;
    ConsumerGroupDescribeResponse::default().with_groups(groups)
}

async fn describe(call: &Call, id: &GroupId) -> DescribedGroup {
    let answer = call.broker.groups.ask(id, |reply| Command::ConsumerDescribe(call.version, reply)).await;
    answer.unwrap_or_else(|error| {
        DescribedGroup::default()
            .with_error_code(error.code().code())
            .with_error_message(Some(text(error.to_string())))
            .with_group_epoch(-1)
            .with_assignment_epoch(-1)
    })
}
