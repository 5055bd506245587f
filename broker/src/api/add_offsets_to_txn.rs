//! AddOffsetsToTxn (key 25), versions 0–4.
//!
//! Announces that a transaction is to have offsets of a group, and begins it if need be. Clients of
//! transactions of version 2 do without (KIP-890). On any broker.

use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{AddOffsetsToTxnRequest, AddOffsetsToTxnResponse};

use super::{Call, fenced};
use crate::group_config::check_group_id;
use crate::transactions::{self, ProducerEpoch};

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=4;

pub(super) async fn handle(call: &Call, request: AddOffsetsToTxnRequest) -> AddOffsetsToTxnResponse {
    let answer = AddOffsetsToTxnResponse::default();
    if check_group_id(&request.group_id, false).is_err() {
        return answer.with_error_code(ResponseError::InvalidGroupId.code());
    }
    let producer = ProducerEpoch { id: *request.producer_id, epoch: request.producer_epoch };
    let id = &request.transactional_id;
    match transactions::add_group(&call.broker, id, producer, &request.group_id).await {
        Ok(()) => answer,
        Err(ResponseError::ProducerFenced) => answer.with_error_code(fenced(call.version, 2).code()),
        Err(code) => answer.with_error_code(code.code()),
    }
}
