//! ConsumerGroupHeartbeat (key 68), versions 0–1 (KIP-848).
//!
//! All of the new group protocol for a member: joining, subscribing, being told what to read,
//! giving it up, leaving. The member chooses its own id from version 1 on, which also has
//! subscriptions by pattern. A heartbeat that changes nothing touches no store.

use std::ops::RangeInclusive;

use kafka_protocol::messages::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse};

use super::{Call, text};
use crate::group::command::Command;
use crate::group::consumer::heartbeat::validate;
use crate::group::error::GroupError;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=1;

pub(super) async fn handle(
    call: &Call,
    request: ConsumerGroupHeartbeatRequest,
) -> ConsumerGroupHeartbeatResponse {
    let refused = |error: GroupError| {
        ConsumerGroupHeartbeatResponse::default()
            .with_error_code(error.code().code())
            .with_error_message(Some(text(error.to_string())))
    };
    // What no group would take is said whether or not there is such a group.
    let (version, sender) = (call.version, call.sender());
    if let Err(error) = validate(&request, version, &sender) {
        return refused(error.into());
    }
    let group = request.group_id.to_string();
    let request = Box::new(request);
    let command = |reply| Command::ConsumerHeartbeat { request, version, sender, reply };
    call.broker.groups.ask(&group, command).await.unwrap_or_else(refused)
}
