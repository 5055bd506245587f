//! InitProducerId (key 22), versions 0–5.
//!
//! A producer id for an idempotent producer, from a block that this broker took for itself: one
//! etcd transaction for a thousand ids. Epochs start at 0; an idempotent producer bumps its epoch
//! by itself (KIP-360).
//!
//! For a transactional id, the epoch of its producer is bumped, and what the one before has open is
//! aborted at the same moment: nobody hears CONCURRENT_TRANSACTIONS and asks again, as with Kafka.
//! On any broker. Two-phase commit (KIP-939, version 6) is not built, so not listed.
//!
//! Differences: a cluster has at most `max_transactional_ids` at a time: POLICY_VIOLATION. Below
//! the feature level of transactions: TRANSACTIONAL_ID_AUTHORIZATION_FAILED, which no client tries
//! again after.

use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{InitProducerIdRequest, InitProducerIdResponse, ProducerId};

use super::{Call, fenced};
use crate::producer_ids::NextIdError;
use crate::transactions::{self, ProducerEpoch};

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=5;

pub(super) async fn handle(call: &Call, request: InitProducerIdRequest) -> InitProducerIdResponse {
    let answer = InitProducerIdResponse::default().with_producer_id(ProducerId(-1)).with_producer_epoch(-1);
    if let Some(id) = &request.transactional_id {
        if id.is_empty() {
            return answer.with_error_code(ResponseError::InvalidRequest.code());
        }
        let has_producer = *request.producer_id >= 0 || request.producer_epoch >= 0;
        let expected =
            has_producer.then_some(ProducerEpoch { id: *request.producer_id, epoch: request.producer_epoch });
        let timeout_ms = request.transaction_timeout_ms;
        return match transactions::initialize(&call.broker, id, timeout_ms, expected).await {
            Ok(producer) => {
                answer.with_producer_id(ProducerId(producer.id)).with_producer_epoch(producer.epoch)
            }
            Err(ResponseError::ProducerFenced) => answer.with_error_code(fenced(call.version, 4).code()),
            Err(code) => answer.with_error_code(code.code()),
        };
    }
    match call.broker.producer_ids.next(&call.broker).await {
        Ok(id) => answer.with_producer_id(ProducerId(id)).with_producer_epoch(0),
        Err(NextIdError::Unavailable) => {
            answer.with_error_code(ResponseError::CoordinatorNotAvailable.code())
        }
        Err(NextIdError::Exhausted) => answer.with_error_code(ResponseError::UnknownServerError.code()),
    }
}
