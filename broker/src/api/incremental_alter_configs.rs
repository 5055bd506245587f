//! IncrementalAlterConfigs (key 44), versions 0–1 (KIP-339).
//!
//! Sets, deletes, appends to and subtracts from single configs of a topic, of this broker, of the
//! cluster-wide defaults of brokers, of a group, or of a client-metrics resource; the others stay.
//! A resource that is named twice is refused with INVALID_REQUEST, each time.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::incremental_alter_configs_request::AlterConfigsResource;
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::{IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse};

use super::distinct::repeated;
use super::{Call, text};
use crate::configs::{self, Alter, Alteration, Resource};
use crate::topics::TopicError;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=1;

pub(super) async fn handle(
    call: &Call,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let repeated = repeated(request.resources.iter().map(|r| (r.resource_type, r.resource_name.clone())));
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in request.resources {
        let outcome = if repeated.contains(&(resource.resource_type, resource.resource_name.clone())) {
            Err(configs::named_twice())
        } else {
            alter(call, &resource, request.validate_only).await
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
    IncrementalAlterConfigsResponse::default().with_responses(responses)
}

async fn alter(call: &Call, resource: &AlterConfigsResource, validate_only: bool) -> Result<(), TopicError> {
    let parsed = Resource::parse(resource.resource_type, &resource.resource_name)?;
    let mut alterations: Vec<(String, Alteration)> = Vec::with_capacity(resource.configs.len());
    let mut names = BTreeSet::new();
    for config in &resource.configs {
        let name = config.name.to_string();
        let invalid = |why: String| Err(TopicError::new(ResponseError::InvalidRequest, why));
        if !names.insert(&*config.name) {
            return invalid(format!("{name} occurs twice in the request"));
        }
        let alteration = match (config.config_operation, config.value.as_ref().map(ToString::to_string)) {
            (0, Some(value)) => Alteration::Set(value),
            (1, _) => Alteration::Delete,
            (2, Some(value)) => Alteration::Append(value),
            (3, Some(value)) => Alteration::Subtract(value),
            (0 | 2 | 3, None) => return invalid(format!("{name}: this operation needs a value")),
            (operation, _) => return invalid(format!("{name}: there is no operation {operation}")),
        };
        alterations.push((name, alteration));
    }
    configs::alter(&call.broker, &parsed, Alter::Incremental(alterations), validate_only).await
}
