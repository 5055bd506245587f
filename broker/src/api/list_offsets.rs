//! ListOffsets (key 2), versions 1–10.
//!
//! Earliest (−2), latest (−1), by timestamp, the largest timestamp (−3, KIP-734, from version 7),
//! earliest local (−4, KIP-405, from 8: the log start, since nothing is tiered away from here),
//! latest tiered (−5, KIP-1005, from 9: none, as a broker without tiered storage says). The answer
//! is current on any broker: the barrier is passed first. By timestamp, the range is found in the
//! state and the record in its batch, which is opened beside the connections' threads; what is not
//! found within the request's time (version 10, at most 20 s) is answered REQUEST_TIMED_OUT. For
//! `read_committed` the last stable offset is the end. A
//! partition that is named twice gets INVALID_REQUEST, once.

use std::ops::RangeInclusive;
use std::time::Duration;

use futures::{StreamExt, stream};
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::{ListOffsetsRequest, ListOffsetsResponse, TopicName};
use strandline_metadata::state::{Range, State};
use strandline_storage::error::StoreError;
use strandline_storage::path::ObjectKind;
use strandline_storage::reader::{ReadKind, ReadPart, Stretch};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, error};
use uuid::Uuid;

use super::Call;
use super::distinct::{distinct, with_repeats};
use super::fetch::READ_COMMITTED;
use crate::compute::Kind;
use crate::fetch::narrow::{self, Narrowed};
use crate::limits::{LOOKUP_SPAN_BYTES, LOOKUPS_FOR, LOOKUPS_PER_REQUEST, UNITS_PER_ELEMENT};
use crate::placement::offsets_of;
use crate::records::{self, RecordTime};

pub(crate) const VERSIONS: RangeInclusive<i16> = 1..=10;

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;
const LATEST_TIERED: i64 = -5;

/// An offset and the timestamp of its record; −1 for what there is not.
type TimestampLookup = Result<(i64, i64), ResponseError>;

/// The same of records that had to be read.
type RecordLookup = Result<Option<(i64, i64)>, StoreError>;

/// What is asked about one partition.
struct Question {
    topic: TopicName,
    asked: ListOffsetsPartition,
    is_repeated: bool,
    /// Whether what lies behind the last stable offset does not count.
    is_committed: bool,
}

pub(super) async fn handle(call: &Call, request: ListOffsetsRequest) -> ListOffsetsResponse {
    // Without the barrier a broker that lags would tell a consumer to start too early or too late.
    let is_current = call.broker.replica.barrier().await.is_ok();
    let is_committed = request.isolation_level == READ_COMMITTED;
    let questions = questions(call, request.topics, is_committed).await;
    if questions.iter().any(|q| is_by_time(q.asked.timestamp)) {
        call.alone().await;
    }
    let patience = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0));
    let patience = if patience.is_zero() { LOOKUPS_FOR } else { patience.min(LOOKUPS_FOR) };
    let deadline = Instant::now() + patience;
    let answer = |question: Question| async move {
        let found = if is_current {
            timeout_at(deadline, look_up(call, &question))
                .await
                .unwrap_or(Err(ResponseError::RequestTimedOut))
        } else {
            Err(ResponseError::LeaderNotAvailable)
        };
        (question.topic, partition_response(call, question.asked.partition_index, found))
    };
    let mut answers = stream::iter(questions).map(answer).buffered(LOOKUPS_PER_REQUEST);
    let mut topics: Vec<ListOffsetsTopicResponse> = Vec::new();
    while let Some((name, partition)) = answers.next().await {
        call.spend(UNITS_PER_ELEMENT).await;
        match topics.last_mut() {
            Some(topic) if topic.name == name => topic.partitions.push(partition),
            _ => {
                let topic = ListOffsetsTopicResponse::default().with_name(name);
                topics.push(topic.with_partitions(vec![partition]));
            }
        }
    }
    ListOffsetsResponse::default().with_topics(topics)
}

/// Each partition that is asked about, once, by topic.
async fn questions(call: &Call, topics: Vec<ListOffsetsTopic>, is_committed: bool) -> Vec<Question> {
    let topics = topics.into_iter().map(|topic| (topic.name, topic.partitions));
    let mut questions = Vec::new();
    for (topic, partitions) in distinct(topics, |known, mut more| known.append(&mut more)) {
        call.spend(UNITS_PER_ELEMENT * partitions.len()).await;
        let named = partitions.into_iter().map(|asked| (asked.partition_index, asked));
        questions.extend(with_repeats(named).into_iter().map(|(_, asked, is_repeated)| Question {
            topic: topic.clone(),
            asked,
            is_repeated,
            is_committed,
        }));
    }
    questions
}

/// Whether a record has to be found, or one of the fixed places is asked for.
fn is_by_time(timestamp: i64) -> bool {
    timestamp >= 0 || timestamp == MAX_TIMESTAMP
}

fn partition_response(call: &Call, partition: i32, found: TimestampLookup) -> ListOffsetsPartitionResponse {
    let answer = ListOffsetsPartitionResponse::default().with_partition_index(partition);
    match found {
        Ok((offset, timestamp)) => {
            let answer = answer.with_offset(offset).with_timestamp(timestamp);
            if call.version >= 4 && offset >= 0 { answer.with_leader_epoch(0) } else { answer }
        }
        Err(error) => answer.with_error_code(error.code()).with_offset(-1).with_timestamp(-1),
    }
}

async fn look_up(call: &Call, question: &Question) -> TimestampLookup {
    let Question { topic, asked, is_repeated, is_committed } = question;
    if *is_repeated {
        return Err(ResponseError::InvalidRequest);
    }
    let found = call.broker.replica.read(|view| {
        let place = (view.names.topic(topic)?.value.topic_id, u32::try_from(asked.partition_index).ok()?);
        Some((place, view.state.clone()))
    });
    let (place, state) = found.ok_or(ResponseError::UnknownTopicOrPartition)?;
    let partition = state.partition(place.0, place.1).ok_or(ResponseError::UnknownTopicOrPartition)?;
    if asked.current_leader_epoch > 0 {
        return Err(ResponseError::UnknownLeaderEpoch);
    }
    match asked.timestamp {
        LATEST if *is_committed => Ok((partition.last_stable(), -1)),
        LATEST => Ok((partition.end(), -1)),
        EARLIEST => Ok((partition.log_start(), -1)),
        EARLIEST_LOCAL if call.version >= 8 => Ok((partition.log_start(), -1)),
        LATEST_TIERED if call.version >= 9 => Ok((-1, -1)),
        timestamp if timestamp >= 0 || timestamp == MAX_TIMESTAMP && call.version >= 7 => {
            let found = by_time(call, place, &state, timestamp).await?;
            // As in Kafka, the first one is looked for, and is none if it is not stable.
            let is_hidden = *is_committed && found.0 >= partition.last_stable();
            Ok(if is_hidden { (-1, -1) } else { found })
        }
        _ => Err(ResponseError::UnsupportedVersion),
    }
}

/// The first record at or after the log start whose timestamp is at least `timestamp`, or the
/// largest that there is.
async fn by_time(call: &Call, place: (Uuid, u32), state: &State, timestamp: i64) -> TimestampLookup {
    let mut found = first_at_or_after(call, place, state, timestamp).await;
    if let Err(StoreError::NotFound { key }) = &found {
        debug!(
            key,
            "an object went while an offset was looked up by time: where its records are now is asked"
        );
        found = first_at_or_after(call, place, &call.broker.replica.state(), timestamp).await;
    }
    found.map(|found| found.unwrap_or((-1, -1))).map_err(|error| {
        let (topic_id, partition) = place;
        error!(%topic_id, partition, %error, "an offset cannot be looked up by time");
        ResponseError::KafkaStorageError
    })
}

async fn first_at_or_after(call: &Call, place: (Uuid, u32), state: &State, timestamp: i64) -> RecordLookup {
    // It may have been deleted since.
    let Some(partition) = state.partition(place.0, place.1) else { return Ok(None) };
    let timestamp = if timestamp == MAX_TIMESTAMP { partition.max_timestamp_ms() } else { Some(timestamp) };
    let Some(timestamp) = timestamp else { return Ok(None) };
    for range in partition.ranges().reaching(timestamp) {
        let bytes = state.objects().get(&range.object).map_or(0, |object| object.bytes);
        let found = first_in_range(call, place, partition.log_start(), (range, bytes), timestamp).await?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

async fn first_in_range(
    call: &Call,
    place: (Uuid, u32),
    log_start: i64,
    (range, bytes): (&Range, u64),
    timestamp: i64,
) -> RecordLookup {
    let broker = &call.broker;
    if range.object.kind == ObjectKind::Write {
        return Ok(first_in_part(call, log_start, (range, bytes), range.stretch(), timestamp).await?.found());
    }
    // Of a merged range only a part is read at a time: the one that its index names, and those
    // behind it.
    let mut offset = range.base_offset.max(log_start);
    if range.base_offset >= log_start {
        let index = broker.reader.merged_index(ReadKind::CatchUp, range.object, bytes).await;
        let partition = i32::try_from(place.1).unwrap_or(i32::MAX);
        match index?.locate_time(*place.0.as_bytes(), partition, timestamp) {
            Some(span) => offset = offset.max(span.base_offset),
            None => return Ok(None),
        }
    }
    loop {
        let (kind, wanted) = (ReadKind::CatchUp, LOOKUP_SPAN_BYTES);
        let part = narrow::part_of(broker, kind, place, (range, bytes), offset, wanted).await;
        let Some(Narrowed { part, bytes_after }) = part? else { return Ok(None) };
        match first_in_part(call, log_start, (&part, bytes), range.stretch(), timestamp).await? {
            InPart::NotBefore(next) if bytes_after > 0 && next > offset => offset = next,
            looked => return Ok(looked.found()),
        }
    }
}

/// What a look at a part of a range found.
enum InPart {
    /// A record's offset and timestamp.
    Found(i64, i64),
    /// None, up to this offset.
    NotBefore(i64),
}

impl InPart {
    fn found(self) -> Option<(i64, i64)> {
        match self {
            Self::Found(offset, timestamp) => Some((offset, timestamp)),
            Self::NotBefore(_) => None,
        }
    }
}

/// The first record of a range, or of a part of one, that is wanted.
async fn first_in_part(
    call: &Call,
    log_start: i64,
    (range, object_bytes): (&Range, u64),
    stretch: Stretch,
    timestamp: i64,
) -> Result<InPart, StoreError> {
    let broker = &call.broker;
    let span = range.position..range.position + range.bytes;
    let part = ReadPart { stretch: Some(stretch), ..ReadPart::of(range.object, object_bytes, span) };
    let mut next = range.base_offset;
    for batch in broker.reader.read_range(ReadKind::CatchUp, part).await?.batches {
        let header = batch.header;
        let (base_offset, end_offset) = offsets_of(range, next, &header).map_err(|what| {
            broker.reader.evict(range.object);
            StoreError::corrupt(&range.object.key(), format!("the range at {} {what}", range.position))
        })?;
        if header.max_timestamp >= timestamp && !header.is_control() {
            let offset = move |time: RecordTime| base_offset + i64::from(time.offset_delta);
            let is_wanted =
                move |time: RecordTime| time.timestamp_ms >= timestamp && offset(time) >= log_start;
            // A few kilobytes may become a hundred megabytes on the way.
            let look = move || records::find_time(&header, &batch.contiguous(), is_wanted);
            let found = broker.compute.run(Kind::Lookup, look).await.map_err(|error| {
                let at = range.position;
                StoreError::corrupt(
                    &range.object.key(),
                    format!("the records of a batch behind {at}: {error}"),
                )
            })?;
            if let Some(found) = found {
                return Ok(InPart::Found(offset(found), found.timestamp_ms));
            }
        }
        next = end_offset;
    }
    Ok(InPart::NotBefore(next))
}
