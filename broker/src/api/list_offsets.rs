//! ListOffsets (key 2), versions 1–10.
//!
//! Earliest (−2), latest (−1), by timestamp, the largest timestamp (−3, KIP-734, from version 7),
//! earliest local (−4, KIP-405, from 8: the log start, since nothing is tiered away from here),
//! latest tiered (−5, KIP-1005, from 9: none, as a broker without tiered storage says). The answer
//! is current on any broker: the barrier is passed first. By timestamp, the range is found in the
//! state and the record in its batch.

use std::ops::RangeInclusive;
use std::sync::Arc;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::{ListOffsetsRequest, ListOffsetsResponse};
use strandline_metadata::state::{Partition, Range};
use strandline_storage::reader::ReadKind;
use tracing::error;

use super::Call;
use crate::records::{self, RecordTime};

pub(crate) const VERSIONS: RangeInclusive<i16> = 1..=10;

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;
const LATEST_TIERED: i64 = -5;

/// An offset and the timestamp of its record; −1 for what there is not.
type TimestampLookup = Result<(i64, i64), ResponseError>;

pub(super) async fn handle(call: &Call, request: ListOffsetsRequest) -> ListOffsetsResponse {
    // Without the barrier a broker that lags would tell a consumer to start too early or too late.
    let is_current = call.broker.replica.barrier().await.is_ok();
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for asked in &topic.partitions {
            let found = if is_current {
                look_up(call, &topic.name, asked.partition_index, asked.current_leader_epoch, asked.timestamp)
                    .await
            } else {
                Err(ResponseError::LeaderNotAvailable)
            };
            let answer = ListOffsetsPartitionResponse::default().with_partition_index(asked.partition_index);
            partitions.push(match found {
                Ok((offset, timestamp)) => {
                    let answer = answer.with_offset(offset).with_timestamp(timestamp);
                    if call.version >= 4 && offset >= 0 { answer.with_leader_epoch(0) } else { answer }
                }
                Err(error) => answer.with_error_code(error.code()).with_offset(-1).with_timestamp(-1),
            });
        }
        topics.push(ListOffsetsTopicResponse::default().with_name(topic.name).with_partitions(partitions));
    }
    ListOffsetsResponse::default().with_topics(topics)
}

async fn look_up(
    call: &Call,
    topic: &str,
    partition: i32,
    leader_epoch: i32,
    timestamp: i64,
) -> TimestampLookup {
    let found: Option<Arc<Partition>> = call.broker.replica.read(|view| {
        let id = view.names.topic(topic)?.value.topic_id;
        view.state.partition(id, u32::try_from(partition).ok()?).cloned()
    });
    let partition = found.ok_or(ResponseError::UnknownTopicOrPartition)?;
    if leader_epoch > 0 {
        return Err(ResponseError::UnknownLeaderEpoch);
    }
    match timestamp {
        LATEST => Ok((partition.last_stable(), -1)),
        EARLIEST => Ok((partition.log_start(), -1)),
        EARLIEST_LOCAL if call.version >= 8 => Ok((partition.log_start(), -1)),
        LATEST_TIERED if call.version >= 9 => Ok((-1, -1)),
        MAX_TIMESTAMP if call.version >= 7 => {
            let newest = readable(&partition).map(|r| r.max_timestamp_ms).max();
            let Some(newest) = newest else { return Ok((-1, -1)) };
            first_at_or_after(call, &partition, newest).await
        }
        _ if timestamp < 0 => Err(ResponseError::UnsupportedVersion),
        _ => first_at_or_after(call, &partition, timestamp).await,
    }
}

fn readable(partition: &Partition) -> impl Iterator<Item = &Range> {
    partition.ranges().iter().filter(|r| r.end_offset > partition.log_start())
}

/// The first record at or after the log start whose timestamp is at least `timestamp`.
async fn first_at_or_after(call: &Call, partition: &Partition, timestamp: i64) -> TimestampLookup {
    for range in readable(partition).filter(|r| r.max_timestamp_ms >= timestamp) {
        if let Some(found) = first_in_range(call, partition.log_start(), range, timestamp).await? {
            return Ok(found);
        }
    }
    Ok((-1, -1))
}

async fn first_in_range(
    call: &Call,
    log_start: i64,
    range: &Range,
    timestamp: i64,
) -> Result<Option<(i64, i64)>, ResponseError> {
    let failed = |what: &dyn std::fmt::Display| {
        error!(object = %range.object, position = range.position, error = %what, "an offset cannot be looked up by time");
        ResponseError::KafkaStorageError
    };
    let broker = &call.broker;
    let bytes = broker.replica.read(|view| view.state.objects().get(&range.object).map_or(0, |o| o.bytes));
    let span = range.position..range.position + range.bytes;
    let batches = broker.reader.read_batches(ReadKind::CatchUp, range.object, bytes, span).await;
    let mut base_offset = range.base_offset;
    for batch in batches.map_err(|e| failed(&e))? {
        let header = &batch.header;
        if header.max_timestamp >= timestamp {
            let offset = |time: RecordTime| base_offset + i64::from(time.offset_delta);
            let is_wanted = |time: RecordTime| time.timestamp_ms >= timestamp && offset(time) >= log_start;
            if let Some(found) =
                records::find_time(header, &batch.contiguous(), is_wanted).map_err(|e| failed(&e))?
            {
                return Ok(Some((offset(found), found.timestamp_ms)));
            }
        }
        base_offset += i64::from(header.record_count);
    }
    Ok(None)
}
