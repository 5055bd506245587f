//! WriteTxnMarkers (key 27), version 1.
//!
//! Refused with CLUSTER_AUTHORIZATION_FAILED: a transaction ends everywhere at once, so there is
//! none that hangs and no marker for anybody to write (`kafka-transactions abort`).

use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::write_txn_markers_response::{
    WritableTxnMarkerPartitionResult, WritableTxnMarkerResult, WritableTxnMarkerTopicResult,
};
use kafka_protocol::messages::{WriteTxnMarkersRequest, WriteTxnMarkersResponse};

use super::Call;
use crate::limits::UNITS_PER_ELEMENT;

pub(crate) const VERSIONS: RangeInclusive<i16> = 1..=1;

pub(super) async fn handle(call: &Call, request: WriteTxnMarkersRequest) -> WriteTxnMarkersResponse {
    let refused = ResponseError::ClusterAuthorizationFailed.code();
    let mut markers = Vec::with_capacity(request.markers.len());
    for marker in request.markers {
        let mut topics = Vec::with_capacity(marker.topics.len());
        for topic in marker.topics {
            call.spend(UNITS_PER_ELEMENT * (1 + topic.partition_indexes.len())).await;
            let partitions = topic.partition_indexes.into_iter().map(|index| {
                WritableTxnMarkerPartitionResult::default()
                    .with_partition_index(index)
                    .with_error_code(refused)
            });
            topics.push(
                WritableTxnMarkerTopicResult::default()
                    .with_name(topic.name)
                    .with_partitions(partitions.collect()),
            );
        }
        markers.push(
            WritableTxnMarkerResult::default().with_producer_id(marker.producer_id).with_topics(topics),
        );
    }
    WriteTxnMarkersResponse::default().with_markers(markers)
}
