//! FindCoordinator (key 10), versions 0–6.
//!
//! The coordinator of a group is the live broker that rendezvous hashing picks, so any broker can
//! say it without asking. From version 4 on several keys at once (KIP-699), each answered once.
//!
//! The same of a transactional id, which only spreads the load: any broker does what its
//! coordinator does. Below the feature level of transactions it is
//! TRANSACTIONAL_ID_AUTHORIZATION_FAILED, the only code that ends librdkafka's search as well as
//! Java's.
//!
//! Differences: share groups do not exist: INVALID_REQUEST, as Kafka answers while they are off.

use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::{BrokerId, FindCoordinatorRequest, FindCoordinatorResponse};
use kafka_protocol::protocol::StrBytes;

use super::distinct::each_once;
use super::{Call, text};
use crate::group_config::check_group_id;
use crate::leaders::Leaders;
use crate::limits::UNITS_PER_ELEMENT;
use crate::transactions::check_level;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=6;

/// Kafka's numbers for what is coordinated.
const GROUP: i8 = 0;
const TRANSACTION: i8 = 1;
const SHARE: i8 = 2;

pub(super) async fn handle(call: &Call, request: FindCoordinatorRequest) -> FindCoordinatorResponse {
    let keys = if call.version >= 4 { request.coordinator_keys } else { vec![request.key] };
    let leaders = call.broker.replica.read(|view| call.broker.leaders(&view.names, ""));
    let transactions = check_level(&call.broker);
    let mut coordinators = Vec::new();
    for key in each_once(keys) {
        call.spend(UNITS_PER_ELEMENT).await;
        coordinators.push(coordinator(&leaders, transactions, request.key_type, key));
    }
    if call.version >= 4 {
        return FindCoordinatorResponse::default().with_coordinators(coordinators);
    }
    let Some(one) = coordinators.into_iter().next() else { return FindCoordinatorResponse::default() };
    let message = if one.error_code == 0 { Some(text("NONE")) } else { one.error_message };
    FindCoordinatorResponse::default()
        .with_error_code(one.error_code)
        .with_error_message(message.filter(|_| call.version >= 1))
        .with_node_id(one.node_id)
        .with_host(one.host)
        .with_port(one.port)
}

fn coordinator(
    leaders: &Leaders,
    transactions: Result<(), ResponseError>,
    key_type: i8,
    key: StrBytes,
) -> Coordinator {
    let answer = Coordinator::default().with_node_id(BrokerId(-1)).with_port(-1);
    match find(leaders, transactions, key_type, &key) {
        Ok((node_id, host, port)) => answer
            .with_key(key)
            .with_node_id(BrokerId(node_id))
            .with_host(text(host))
            .with_port(i32::from(port))
            .with_error_message(Some(text(""))),
        Err((code, why)) => {
            answer.with_key(key).with_error_code(code.code()).with_error_message(Some(text(why)))
        }
    }
}

/// Node id, host and port; or Kafka's code, and a sentence for people.
fn find(
    leaders: &Leaders,
    transactions: Result<(), ResponseError>,
    key_type: i8,
    key: &str,
) -> Result<(i32, String, u16), (ResponseError, String)> {
    match key_type {
        GROUP => {
            check_group_id(key, true).map_err(|why| (ResponseError::InvalidGroupId, why.to_string()))?;
        }
        TRANSACTION if key.is_empty() => {
            return Err((ResponseError::InvalidRequest, "a transactional id is not empty".to_owned()));
        }
        TRANSACTION => {
            let why = "there are transactions from strandline.version 5 on: raise it first";
            transactions.map_err(|code| (code, why.to_owned()))?;
        }
        SHARE => {
            return Err((ResponseError::InvalidRequest, "share groups are not supported".to_owned()));
        }
        _ => {
            let why = format!("there is no kind {key_type} of coordinator");
            return Err((ResponseError::InvalidRequest, why));
        }
    }
    let node_id = leaders.of_group(key);
    let found = leaders.brokers.iter().find(|b| b.value.node_id == node_id);
    let none = || (ResponseError::CoordinatorNotAvailable, "no broker is registered".to_owned());
    found.map(|b| (node_id, b.value.host.clone(), b.value.port)).ok_or_else(none)
}
