//! ListGroups (key 16), versions 0–5.
//!
//! The groups that this broker coordinates: clients ask every broker. By state from version 4
//! (KIP-518), by type from 5 (KIP-848). A group that only has committed offsets is an empty one.
//! While a group cannot be read: COORDINATOR_NOT_AVAILABLE, rather than a list without it.

use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::{GroupId, ListGroupsRequest, ListGroupsResponse};

use super::{Call, text};

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=5;

pub(super) async fn handle(call: &Call, request: ListGroupsRequest) -> ListGroupsResponse {
    if call.broker.sessions.current().is_none() {
        let code = ResponseError::CoordinatorNotAvailable.code();
        return ListGroupsResponse::default().with_error_code(code);
    }
    let wanted = |filter: &[kafka_protocol::protocol::StrBytes], value: &str| {
        filter.is_empty() || filter.iter().any(|f| f.eq_ignore_ascii_case(value))
    };
    if let Err(error) = call.broker.groups.load_all().await {
        return ListGroupsResponse::default().with_error_code(error.code().code());
    }
    let mut groups = Vec::new();
    call.broker.groups.each(|id, group| {
        if !wanted(&request.states_filter, group.state) || !wanted(&request.types_filter, group.kind) {
            return;
        }
        let listed = ListedGroup::default()
            .with_group_id(GroupId(text(id)))
            .with_protocol_type(text(&*group.protocol_type));
        let listed = if call.version >= 4 { listed.with_group_state(text(group.state)) } else { listed };
        groups.push(if call.version >= 5 { listed.with_group_type(text(group.kind)) } else { listed });
    });
    ListGroupsResponse::default().with_groups(groups)
}
