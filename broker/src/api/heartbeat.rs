//! Heartbeat (key 12), versions 0–4.
//!
//! A member's sign of life, which touches no store. REBALANCE_IN_PROGRESS tells it to join again.

use std::ops::RangeInclusive;

use kafka_protocol::messages::{HeartbeatRequest, HeartbeatResponse};

use super::Call;
use crate::group::command::Command;
use crate::group::coordinator::ask;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=4;

pub(super) async fn handle(call: &Call, request: HeartbeatRequest) -> HeartbeatResponse {
    let group = request.group_id.to_string();
    let answer = ask(&call.broker, &group, |reply| Command::Heartbeat(Box::new(request), reply)).await;
    HeartbeatResponse::default().with_error_code(answer.err().map_or(0, |e| e.code.code()))
}
