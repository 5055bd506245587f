//! DescribeCluster (key 60), versions 0–2.
//!
//! The brokers that are registered, and one named as controller: any broker does what a controller
//! does. Endpoint type 1 (brokers) only, since there is no controller quorum (KIP-919); nobody is
//! ever fenced here (KIP-1073): who is not registered is not listed.

use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::{BrokerId, DescribeClusterRequest, DescribeClusterResponse};

use super::{Call, text};

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=2;

const BROKERS: i8 = 1;

#[expect(clippy::unused_async, reason = "handlers are alike, and most of them wait for something")]
pub(super) async fn handle(call: &Call, request: DescribeClusterRequest) -> DescribeClusterResponse {
    let broker = &call.broker;
    let cluster_id = text(broker.cluster.cluster_id.clone());
    if call.version >= 1 && request.endpoint_type != BROKERS {
        return DescribeClusterResponse::default()
            .with_error_code(ResponseError::UnsupportedEndpointType.code())
            .with_error_message(Some(text(
                "there are no controller endpoints: every broker does what a controller does",
            )))
            .with_cluster_id(cluster_id);
    }
    let leaders = broker.replica.read(|view| broker.leaders(&view.names, &call.client_id));
    let brokers = leaders.brokers.iter().map(|info| {
        let value = &info.value;
        DescribeClusterBroker::default()
            .with_broker_id(BrokerId(value.node_id))
            .with_host(text(value.host.clone()))
            .with_port(i32::from(value.port))
            .with_rack((!value.zone.is_empty()).then(|| text(value.zone.clone())))
    });
    let response = DescribeClusterResponse::default()
        .with_cluster_id(cluster_id)
        .with_controller_id(BrokerId(leaders.controller()))
        .with_brokers(brokers.collect());
    if request.include_cluster_authorized_operations {
        response.with_cluster_authorized_operations(super::metadata::CLUSTER_OPERATIONS)
    } else {
        response
    }
}
