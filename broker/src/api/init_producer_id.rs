//! InitProducerId (key 22), versions 0–5.
//!
//! A producer id for an idempotent producer, from a block that this broker took for itself: one
//! etcd transaction for a thousand ids. Epochs start at 0; an idempotent producer bumps its epoch
//! by itself (KIP-360).
//!
//! Differences: a transactional id is refused with TRANSACTIONAL_ID_AUTHORIZATION_FAILED until
//! transactions exist, which no client tries again after.

use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{InitProducerIdRequest, InitProducerIdResponse, ProducerId};

use super::Call;
use crate::producer_ids::NextIdError;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=5;

pub(super) async fn handle(call: &Call, request: InitProducerIdRequest) -> InitProducerIdResponse {
    let answer = InitProducerIdResponse::default().with_producer_id(ProducerId(-1)).with_producer_epoch(-1);
    if let Some(id) = &request.transactional_id {
        if id.is_empty() {
            return answer.with_error_code(ResponseError::InvalidRequest.code());
        }
        return answer.with_error_code(ResponseError::TransactionalIdAuthorizationFailed.code());
    }
    match call.broker.producer_ids.next(&call.broker).await {
        Ok(id) => answer.with_producer_id(ProducerId(id)).with_producer_epoch(0),
        Err(NextIdError::Unavailable) => {
            answer.with_error_code(ResponseError::CoordinatorNotAvailable.code())
        }
        Err(NextIdError::Exhausted) => answer.with_error_code(ResponseError::UnknownServerError.code()),
    }
}
