//! AlterConfigs (key 33), versions 0–2.
//!
//! Replaces all configs of a topic, of this broker, all cluster-wide defaults, or all configs of a
//! group or of a client-metrics resource: what is not named goes back to its default. Kafka has
//! replaced it by IncrementalAlterConfigs; tools still use it. A resource that is named twice is
//! refused with INVALID_REQUEST, each time.

use std::ops::RangeInclusive;

use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::{AlterConfigsRequest, AlterConfigsResponse};

use super::distinct::repeated;
use super::{Call, text};
use crate::configs::{self, Alter, Resource};

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=2;

pub(super) async fn handle(call: &Call, request: AlterConfigsRequest) -> AlterConfigsResponse {
    let repeated = repeated(request.resources.iter().map(|r| (r.resource_type, r.resource_name.clone())));
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in request.resources {
        let entries =
            resource.configs.iter().filter_map(|c| Some((c.name.to_string(), c.value.as_ref()?.to_string())));
        let replace = Alter::Replace(entries.collect());
        let is_repeated = repeated.contains(&(resource.resource_type, resource.resource_name.clone()));
        let outcome = match Resource::parse(resource.resource_type, &resource.resource_name) {
            _ if is_repeated => Err(configs::named_twice()),
            Ok(parsed) => configs::alter(&call.broker, &parsed, replace, request.validate_only).await,
            Err(error) => Err(error),
        };
        let response = AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name);
        responses.push(match outcome {
            Ok(()) => response.with_error_message(None),
            Err(error) => {
                response.with_error_code(error.code.code()).with_error_message(Some(text(error.message)))
            }
        });
    }
    AlterConfigsResponse::default().with_responses(responses)
}
