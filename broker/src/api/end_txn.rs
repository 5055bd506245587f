//! EndTxn (key 26), versions 0–5.
//!
//! A transaction ends at one etcd revision, with its markers and its groups' offsets: when this is
//! answered, all of it is visible on every broker that has come so far, and there is no second
//! phase to wait for. From version 5 on (transactions of version 2, KIP-890) the epoch is bumped in
//! the same step, so that an EndTxn which is late never decides a later transaction; its retry gets
//! the stored outcome. On any broker.

use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{EndTxnRequest, EndTxnResponse, ProducerId};

use super::{Call, fenced};
use crate::transactions::{self, ProducerEpoch};

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=5;

/// From this version on the epoch is bumped.
const BUMPS_EPOCH: i16 = 5;

pub(super) async fn handle(call: &Call, request: EndTxnRequest) -> EndTxnResponse {
    let producer = ProducerEpoch { id: *request.producer_id, epoch: request.producer_epoch };
    let bumps = call.version >= BUMPS_EPOCH;
    let id = &request.transactional_id;
    let ended = transactions::end(&call.broker, id, producer, request.committed, bumps).await;
    let answer = EndTxnResponse::default();
    match ended {
        Ok(next) if bumps => answer.with_producer_id(ProducerId(next.id)).with_producer_epoch(next.epoch),
        Ok(_) => answer,
        Err(ResponseError::ProducerFenced) => answer.with_error_code(fenced(call.version, 2).code()),
        Err(code) => answer.with_error_code(code.code()),
    }
}
