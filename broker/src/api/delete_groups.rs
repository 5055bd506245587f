//! DeleteGroups (key 42), versions 0–2 (KIP-229).
//!
//! Forgets groups without members, and what is committed for them. A group that is named twice is
//! answered once, as in Kafka.

use std::ops::RangeInclusive;

use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::{DeleteGroupsRequest, DeleteGroupsResponse, GroupId};

use super::Call;
use super::distinct::each_once;
use crate::group::command::Command;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=2;

pub(super) async fn handle(call: &Call, request: DeleteGroupsRequest) -> DeleteGroupsResponse {
    let groups = each_once(request.groups_names);
    let results = call.ask_each(groups, |group| delete(call, group)).await;
    DeleteGroupsResponse::default().with_results(results)
}

async fn delete(call: &Call, group: GroupId) -> DeletableGroupResult {
    let answer = call.broker.groups.ask(&group, Command::Delete).await;
    let code = answer.err().map_or(0, |e| e.code().code());
    DeletableGroupResult::default().with_group_id(group).with_error_code(code)
}
