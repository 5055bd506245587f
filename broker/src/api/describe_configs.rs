//! DescribeConfigs (key 32), versions 1–4.
//!
//! Topics, brokers, the cluster-wide defaults of brokers (an empty name), groups (KIP-848) and
//! client metrics (KIP-714), each value with its source, its synonyms if asked for, and from
//! version 3 on type and documentation. A broker is described by its own settings and by Kafka's
//! names for them. Groups and client metrics that do not exist have defaults, as in Kafka. Secrets
//! are never sent. A resource that is named twice is answered once, with all configs that are asked
//! for; an empty list of configs stands for all. Beyond 300,000 configs in one response, resources
//! are refused with INVALID_REQUEST.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use kafka_protocol::messages::{DescribeConfigsRequest, DescribeConfigsResponse};
use kafka_protocol::protocol::StrBytes;

use super::distinct::distinct;
use super::{Call, text};
use crate::configs::{self, Entry, Resource};
use crate::limits::{CONFIGS_OF_A_RESOURCE, DESCRIBED_CONFIGS, LARGE_ANSWER_ELEMENTS, UNITS_PER_ELEMENT};
use crate::topics::TopicError;

pub(crate) const VERSIONS: RangeInclusive<i16> = 1..=4;

/// What is said of a config beside its value.
#[derive(Clone, Copy)]
struct Details {
    synonyms: bool,
    documentation: bool,
}

pub(super) async fn handle(call: &Call, request: DescribeConfigsRequest) -> DescribeConfigsResponse {
    let details =
        Details { synonyms: request.include_synonyms, documentation: request.include_documentation };
    let named = request.resources.into_iter().map(|resource| {
        let key = (resource.resource_type, resource.resource_name.clone());
        (key, resource.configuration_keys.filter(|keys| !keys.is_empty()))
    });
    let resources = distinct(named, |known, more| match (&mut *known, more) {
        (Some(keys), Some(mut more)) => keys.append(&mut more),
        (known, None) => *known = None,
        (None, Some(_)) => {}
    });
    if resources.len() * CONFIGS_OF_A_RESOURCE > LARGE_ANSWER_ELEMENTS {
        call.large_answer().await;
    }
    let mut results = Vec::with_capacity(resources.len());
    let mut left = DESCRIBED_CONFIGS;
    for ((kind, name), keys) in resources {
        let result = describe(call, details, kind, name, keys, left).await;
        left = left.saturating_sub(result.configs.len());
        call.spend(UNITS_PER_ELEMENT * (1 + result.configs.len())).await;
        results.push(result);
    }
    DescribeConfigsResponse::default().with_results(results)
}

/// Describes one resource: the configs under `keys`, or all. Refuses to if no more configs are
/// left.
async fn describe(
    call: &Call,
    details: Details,
    kind: i8,
    name: StrBytes,
    keys: Option<Vec<StrBytes>>,
    left: usize,
) -> DescribeConfigsResult {
    let entries = match Resource::parse(kind, &name) {
        _ if left == 0 => {
            let why = "The response has as many configs as it may have; describe fewer resources at a time.";
            Err(TopicError::new(ResponseError::InvalidRequest, why))
        }
        Ok(parsed) => configs::describe(&call.broker, &parsed).await,
        Err(error) => Err(error),
    };
    let result = DescribeConfigsResult::default().with_resource_type(kind).with_resource_name(name);
    match entries {
        Err(error) => result.with_error_code(error.code.code()).with_error_message(Some(text(error.message))),
        Ok(entries) => {
            let keys: Option<BTreeSet<&str>> = keys.as_ref().map(|keys| keys.iter().map(|k| &**k).collect());
            let wanted = entries.into_iter().filter(|e| keys.as_ref().is_none_or(|k| k.contains(&*e.name)));
            result.with_configs(wanted.map(|e| entry(call, details, e)).collect())
        }
    }
}

fn entry(call: &Call, details: Details, entry: Entry) -> DescribeConfigsResourceResult {
    let mut result = DescribeConfigsResourceResult::default()
        .with_name(text(entry.name))
        .with_value((!entry.sensitive).then(|| text(entry.value)))
        .with_read_only(entry.read_only)
        .with_config_source(entry.source as i8)
        .with_is_sensitive(entry.sensitive);
    if details.synonyms {
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
        let documentation = details.documentation.then(|| text(entry.documentation));
        result = result.with_documentation(documentation);
    }
    result
}
