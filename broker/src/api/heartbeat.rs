//! Heartbeat (key 12), versions 0–4.
//!
//! A member's sign of life, which touches no store. REBALANCE_IN_PROGRESS tells it to join again.

use std::ops::RangeInclusive;

use kafka_protocol::messages::{HeartbeatRequest, HeartbeatResponse};

use super::Call;
use crate::group::classic::session::Identity;
use crate::group::command::Command;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=4;

pub(super) async fn handle(call: &Call, request: HeartbeatRequest) -> HeartbeatResponse {
    let identity = Identity::new(&request.member_id, request.group_instance_id.as_ref());
    let generation = request.generation_id;
    let command = |reply| Command::Heartbeat { identity, generation, reply };
    let answer = call.broker.groups.ask(&request.group_id, command).await;
    HeartbeatResponse::default().with_error_code(answer.err().map_or(0, |e| e.code().code()))
}
