//! DescribeConfigs (key 32), versions 1–4.
//!
//! Topics, brokers, the cluster-wide defaults of brokers (an empty name), groups (KIP-848) and
//! client metrics (KIP-714), each value with its source, its synonyms if asked for, and from
//! version 3 on type and documentation. A broker is described by its own settings and by Kafka's
//! names for them. Groups and client metrics that do not exist have defaults, as in Kafka. Secrets
//! are never sent.

use std::ops::RangeInclusive;

use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use kafka_protocol::messages::{DescribeConfigsRequest, DescribeConfigsResponse};

use super::{Call, text};
use crate::configs::{self, Entry, Resource};

pub(crate) const VERSIONS: RangeInclusive<i16> = 1..=4;

pub(super) async fn handle(call: &Call, request: DescribeConfigsRequest) -> DescribeConfigsResponse {
    let mut results = Vec::with_capacity(request.resources.len());
    for resource in &request.resources {
        results.push(describe(call, &request, resource).await);
    }
    DescribeConfigsResponse::default().with_results(results)
}

async fn describe(
    call: &Call,
    request: &DescribeConfigsRequest,
    resource: &DescribeConfigsResource,
) -> DescribeConfigsResult {
    let result = DescribeConfigsResult::default()
        .with_resource_type(resource.resource_type)
        .with_resource_name(resource.resource_name.clone());
    let entries = match Resource::parse(resource.resource_type, &resource.resource_name) {
        Ok(parsed) => configs::describe(&call.broker, &parsed).await,
        Err(error) => Err(error),
    };
    match entries {
        Err(error) => result.with_error_code(error.code.code()).with_error_message(Some(text(error.message))),
        Ok(entries) => {
            // An empty list of keys stands for all, as in Kafka.
            let keys = resource.configuration_keys.as_ref().filter(|k| !k.is_empty());
            let wanted =
                entries.into_iter().filter(|e| keys.is_none_or(|k| k.iter().any(|k| **k == *e.name)));
            result.with_configs(wanted.map(|e| entry(call, request, e)).collect())
        }
    }
}

fn entry(call: &Call, request: &DescribeConfigsRequest, entry: Entry) -> DescribeConfigsResourceResult {
    let mut result = DescribeConfigsResourceResult::default()
        .with_name(text(entry.name))
        .with_value((!entry.sensitive).then(|| text(entry.value)))
        .with_read_only(entry.read_only)
        .with_config_source(entry.source as i8)
        .with_is_sensitive(entry.sensitive);
    if request.include_synonyms {
        let synonyms = entry.synonyms.into_iter().map(|(name, value, source)| {
            DescribeConfigsSynonym::default()
                .with_name(text(name))
                .with_value((!entry.sensitive).then(|| text(value)))
                .with_source(source as i8)
        });
        result = result.with_synonyms(synonyms.collect());
    }
    if call.version >= 3 {
        result = result.with_config_type(entry.kind as i8);
        let documentation = request.include_documentation.then(|| text(entry.documentation));
        result = result.with_documentation(documentation);
    }
    result
}
