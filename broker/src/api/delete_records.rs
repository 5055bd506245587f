//! DeleteRecords (key 21), versions 0–2 (KIP-107).
//!
//! Moves the log start of partitions up; −1 means the high watermark. As in Kafka an offset beyond
//! the high watermark is OFFSET_OUT_OF_RANGE, one at or below the log start changes nothing and is
//! no error, and a topic that is only compacted refuses with POLICY_VIOLATION. What is answered is
//! where the log starts then, on every broker. A partition that is named twice gets the offset that
//! is named last.

use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use kafka_protocol::messages::{DeleteRecordsRequest, DeleteRecordsResponse, TopicName};
use strandline_metadata::commit::{Change, CommitError};
use strandline_metadata::record::{Body, Trim, TrimPartition};
use tracing::debug;
use uuid::Uuid;

use super::Call;
use super::distinct::distinct;
use crate::Broker;
use crate::limits::{TRIMMED_PARTITIONS_PER_RECORD, UNITS_PER_ELEMENT};
use crate::topic_config::Effective;
use crate::topics::commit;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=2;

/// What stands for the high watermark.
const HIGH_WATERMARK: i64 = -1;

/// One partition of a request.
struct Asked {
    topic: TopicName,
    partition: i32,
    /// What is to be done, once it is known; then where the log starts.
    outcome: Result<Target, ResponseError>,
}

/// A partition, and the first offset that is to stay.
#[derive(Clone, Copy)]
struct Target {
    topic_id: Uuid,
    partition: u32,
    log_start: i64,
}

pub(super) async fn handle(call: &Call, request: DeleteRecordsRequest) -> DeleteRecordsResponse {
    let broker = &call.broker;
    // The high watermark has to be the one of all brokers, and what others have created exists.
    let is_current = broker.replica.barrier().await.is_ok();
    let topics = request.topics.into_iter().map(|topic| (topic.name, topic.partitions));
    let mut asked = Vec::new();
    for (name, partitions) in distinct(topics, |known, mut more| known.append(&mut more)) {
        call.spend(UNITS_PER_ELEMENT * partitions.len()).await;
        let named = partitions.into_iter().map(|p| (p.partition_index, p.offset));
        for (partition, offset) in distinct(named, |known, last| *known = last) {
            let outcome = if is_current { target(broker, &name, partition, offset) } else { Err(not_now()) };
            asked.push(Asked { topic: name.clone(), partition, outcome });
        }
    }
    trim(broker, &mut asked).await;
    let mut topics: Vec<DeleteRecordsTopicResult> = Vec::new();
    for one in asked {
        call.spend(UNITS_PER_ELEMENT).await;
        let result = DeleteRecordsPartitionResult::default().with_partition_index(one.partition);
        let log_start = one.outcome.and_then(|target| log_start(broker, &target));
        let result = match log_start {
            Ok(log_start) => result.with_low_watermark(log_start),
            Err(error) => result.with_low_watermark(-1).with_error_code(error.code()),
        };
        match topics.last_mut() {
            Some(topic) if topic.name == one.topic => topic.partitions.push(result),
            _ => {
                let topic = DeleteRecordsTopicResult::default().with_name(one.topic);
                topics.push(topic.with_partitions(vec![result]));
            }
        }
    }
    DeleteRecordsResponse::default().with_topics(topics)
}

/// An error that clients try again.
fn not_now() -> ResponseError {
    ResponseError::NotLeaderOrFollower
}

/// What is asked of a partition, if it can be done.
fn target(broker: &Broker, topic: &TopicName, partition: i32, offset: i64) -> Result<Target, ResponseError> {
    let unknown = ResponseError::UnknownTopicOrPartition;
    broker.replica.read(|view| {
        let info = view.names.topic(topic).ok_or(unknown)?;
        let topic_id = info.value.topic_id;
        let number = u32::try_from(partition).map_err(|_| unknown)?;
        let known = view.state.partition(topic_id, number).ok_or(unknown)?;
        let (dynamic, _) = view.names.broker_configs(None);
        let configs = Effective {
            topic: &info.value.configs,
            dynamic: &dynamic,
            broker: &broker.config.topics.configs,
        };
        if !configs.deletes() {
            return Err(ResponseError::PolicyViolation);
        }
        let high_watermark = known.end();
        let log_start = if offset == HIGH_WATERMARK { high_watermark } else { offset };
        if !(0..=high_watermark).contains(&log_start) {
            return Err(ResponseError::OffsetOutOfRange);
        }
        Ok(Target { topic_id, partition: number, log_start })
    })
}

/// Where a partition's log starts.
fn log_start(broker: &Broker, target: &Target) -> Result<i64, ResponseError> {
    broker.replica.read(|view| {
        let partition = view.state.partition(target.topic_id, target.partition);
        partition.map(|partition| partition.log_start()).ok_or(ResponseError::UnknownTopicOrPartition)
    })
}

/// Moves the log starts that are to move.
async fn trim(broker: &Broker, asked: &mut [Asked]) {
    let moves = |one: &Asked| {
        let target = one.outcome.ok()?;
        (log_start(broker, &target).ok()? < target.log_start).then_some(target)
    };
    let mut due: Vec<(usize, Target)> =
        asked.iter().enumerate().filter_map(|(place, one)| Some((place, moves(one)?))).collect();
    while !due.is_empty() {
        let rest = due.split_off(due.len().min(TRIMMED_PARTITIONS_PER_RECORD));
        let entry = |(_, target): &(usize, Target)| TrimPartition {
            topic_id: target.topic_id.as_bytes().to_vec(),
            partition: target.partition,
            log_start: target.log_start.cast_unsigned(),
        };
        let body = Body::Trim(Trim { partitions: due.iter().map(entry).collect() });
        if let Err(error) = commit(broker, Change { body: Some(body), ..Change::default() }).await {
            debug!(%error, "records are not deleted, or it is not known");
            let code = refusal(&error);
            for (place, _) in &due {
                if let Some(one) = asked.get_mut(*place) {
                    one.outcome = Err(code);
                }
            }
        }
        due = rest;
    }
}

/// What a client hears: it may try again, since moving a log start twice is moving it once.
fn refusal(error: &CommitError) -> ResponseError {
    match error {
        CommitError::Closed | CommitError::NotRegistered | CommitError::Conflict => not_now(),
        CommitError::Refused(_) => ResponseError::KafkaStorageError,
        CommitError::OutcomeUnknown | CommitError::OutcomeLost => ResponseError::RequestTimedOut,
    }
}
