//! ListConfigResources (key 74), versions 0–1 (KIP-714, KIP-1142).
//!
//! Version 0 lists the client-metrics resources. From version 1 on resources are listed by type:
//! topics, brokers, groups that have configs of their own, client metrics; all of these if no type
//! is named. Loggers have no configs here: their type is refused with UNSUPPORTED_VERSION, as every
//! type that a broker does not know.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::list_config_resources_response::ConfigResource;
use kafka_protocol::messages::{ListConfigResourcesRequest, ListConfigResourcesResponse};
use strandline_metadata::names::Names;

use super::{Call, text};
use crate::configs::{BROKER, CLIENT_METRICS, GROUP, TOPIC};
use crate::limits::UNITS_PER_ELEMENT;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=1;

const TYPES: [i8; 4] = [TOPIC, BROKER, CLIENT_METRICS, GROUP];

pub(super) async fn handle(call: &Call, request: ListConfigResourcesRequest) -> ListConfigResourcesResponse {
    let wanted: BTreeSet<i8> = match &request.resource_types[..] {
        _ if call.version == 0 => [CLIENT_METRICS].into(),
        [] => TYPES.into(),
        named => named.iter().copied().collect(),
    };
    if wanted.iter().any(|kind| !TYPES.contains(kind)) {
        return ListConfigResourcesResponse::default()
            .with_error_code(ResponseError::UnsupportedVersion.code());
    }
    let view = call.broker.replica.view();
    let mut resources = Vec::new();
    for kind in wanted {
        for name in names(&view.names, kind) {
            call.spend(UNITS_PER_ELEMENT).await;
            let resource = ConfigResource::default().with_resource_name(text(name));
            resources.push(if call.version >= 1 { resource.with_resource_type(kind) } else { resource });
        }
    }
    ListConfigResourcesResponse::default().with_config_resources(resources)
}

fn names(names: &Names, kind: i8) -> Box<dyn Iterator<Item = String> + Send + '_> {
    match kind {
        TOPIC => Box::new(names.topics().keys().cloned()),
        BROKER => Box::new(names.brokers().keys().map(ToString::to_string)),
        GROUP => Box::new(names.configured_groups().cloned()),
        _ => Box::new(names.client_metrics().keys().cloned()),
    }
}
