//! PushTelemetry (key 72), version 0 (KIP-714).
//!
//! Takes metrics that a client was told to push, and shows them in this broker's `/metrics`.
//! Refused are: another subscription than the one that counts now (UNKNOWN_SUBSCRIPTION_ID), a push
//! before its time (THROTTLING_QUOTA_EXCEEDED), a codec that is none
//! (UNSUPPORTED_COMPRESSION_TYPE), more than 1 MiB, or 8 MiB once decompressed
//! (TELEMETRY_TOO_LARGE), what is no metrics data (INVALID_RECORD), and whatever comes after the
//! last push of a client (INVALID_REQUEST).
//!
//! Known differences: a push may be a tenth of the interval early, and of metrics that were not
//! asked for nothing is kept. Sums and gauges are shown, histograms are not: Kafka's clients have
//! none.

use std::ops::RangeInclusive;

use kafka_protocol::messages::{PushTelemetryRequest, PushTelemetryResponse};
use tokio::time::Instant;

use super::Call;
use super::get_telemetry_subscriptions::{code, peer};
use crate::compute::Kind;
use crate::telemetry::Push;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=0;

pub(super) async fn handle(call: &Call, request: PushTelemetryRequest) -> PushTelemetryResponse {
    let broker = &call.broker;
    let peer = peer(call, request.client_instance_id);
    let (pushed_to, now) = (broker.clone(), Instant::now());
    // A megabyte may become eight, and is read through.
    let pushed = broker.compute.run(Kind::Batch, move || {
        let push = Push {
            subscription_id: request.subscription_id,
            is_last: request.terminating,
            compression_type: request.compression_type,
            metrics: &request.metrics,
        };
        pushed_to.telemetry.push(&pushed_to, &peer, &push, now)
    });
    let pushed = pushed.await;
    broker.metrics.telemetry_pushed(pushed.is_ok());
    match pushed {
        Ok(()) => PushTelemetryResponse::default(),
        Err(refusal) => PushTelemetryResponse::default().with_error_code(code(refusal).code()),
    }
}
