//! ListPartitionReassignments (key 46), version 0 (KIP-455).
//!
//! Nothing is ever in progress: partitions have no replicas that could move.

use std::ops::RangeInclusive;

use kafka_protocol::messages::{ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse};

use super::Call;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=0;

#[expect(clippy::unused_async, reason = "handlers are alike, and most of them wait for something")]
pub(super) async fn handle(
    _: &Call,
    _: ListPartitionReassignmentsRequest,
) -> ListPartitionReassignmentsResponse {
    ListPartitionReassignmentsResponse::default().with_error_message(None)
}
