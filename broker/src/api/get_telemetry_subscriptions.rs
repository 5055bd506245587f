//! GetTelemetrySubscriptions (key 71), version 0 (KIP-714).
//!
//! Tells a client which metrics to push and how often: what the client-metrics resources that match
//! it say, or nothing. A client without an instance id gets one. Who asks again within its
//! interval, although nothing has changed, gets THROTTLING_QUOTA_EXCEEDED. Sums are wanted as what
//! came since the last push (delta temporality).
//!
//! Different from Kafka: this API is always advertised, and not only once a plugin takes metrics;
//! where nothing is wanted, clients ask again every five minutes.

use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{GetTelemetrySubscriptionsRequest, GetTelemetrySubscriptionsResponse};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Call, text};
use crate::telemetry::{self, Peer, Refusal};

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=0;

#[expect(clippy::unused_async, reason = "handlers are alike, and most of them wait for something")]
pub(super) async fn handle(
    call: &Call,
    request: GetTelemetrySubscriptionsRequest,
) -> GetTelemetrySubscriptionsResponse {
    let broker = &call.broker;
    let id = request.client_instance_id;
    let id = if id.is_nil() { telemetry::new_instance_id(broker) } else { id };
    match broker.telemetry.ask(broker, &peer(call, id), Instant::now()) {
        Ok(wanted) => GetTelemetrySubscriptionsResponse::default()
            .with_client_instance_id(id)
            .with_subscription_id(wanted.id)
            .with_accepted_compression_types(telemetry::CODECS.to_vec())
            .with_push_interval_ms(wanted.interval_ms)
            .with_telemetry_max_bytes(i32::try_from(crate::limits::MAX_PUSH_BYTES).unwrap_or(i32::MAX))
            .with_delta_temporality(true)
            .with_requested_metrics(wanted.prefixes.into_iter().map(text).collect()),
        Err(refusal) => GetTelemetrySubscriptionsResponse::default().with_error_code(code(refusal).code()),
    }
}

/// The client that sends a request.
pub(super) fn peer(call: &Call, instance_id: Uuid) -> Peer {
    let (software_name, software_version) = call.client.software.get().cloned().unwrap_or_default();
    Peer {
        instance_id,
        client_id: call.client_id.to_string(),
        software_name,
        software_version,
        address: call.client.host.trim_start_matches('/').to_owned(),
        port: call.client.port,
    }
}

/// The one mapping from what telemetry refuses to what a client hears.
pub(super) fn code(refusal: Refusal) -> ResponseError {
    match refusal {
        Refusal::NoInstance | Refusal::Ended => ResponseError::InvalidRequest,
        Refusal::TooEarly => ResponseError::ThrottlingQuotaExceeded,
        Refusal::UnknownSubscription => ResponseError::UnknownSubscriptionId,
        Refusal::UnknownCodec => ResponseError::UnsupportedCompressionType,
        Refusal::TooLarge => ResponseError::TelemetryTooLarge,
        Refusal::Garbage => ResponseError::InvalidRecord,
    }
}
