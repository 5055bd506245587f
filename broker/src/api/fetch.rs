//! Fetch (key 1), versions 4–18.
//!
//! A long poll that is woken by commits. The first batch is returned even if it exceeds the limits;
//! batches are never cut, and a fetch starts at the batch that contains the offset. Incremental
//! fetch sessions (KIP-227) from version 7 on, topic ids (KIP-516) from 13. Every offset below the
//! high watermark is stable until transactions exist, so read_committed and read_uncommitted see
//! the same.
//!
//! Differences: the leader epoch of every partition is 0 for ever, so logs never diverge; the rack
//! of the client is not needed here, since any broker serves any partition and Metadata names one
//! in the client's zone.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::FetchRequest;
use uuid::Uuid;

use super::{Call, Reply};
use crate::fetch::encode::{Answer, TopicAnswer, encode};
use crate::fetch::session::{Interest, PartitionKey, SessionFetch, SessionRequest, TopicKey};
use crate::fetch::{Fetched, Limits, PartitionRead, fetch};
use crate::limits::FETCH_MAX_WAIT;

pub(crate) const VERSIONS: RangeInclusive<i16> = 4..=18;

pub(super) async fn handle(call: Call, request: FetchRequest) -> Option<Reply> {
    let limits = Limits {
        min_bytes: usize::try_from(request.min_bytes).unwrap_or(0),
        max_bytes: usize::try_from(request.max_bytes).unwrap_or(0).min(call.broker.config.fetch_max_bytes),
        max_wait: Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0)).min(FETCH_MAX_WAIT),
    };
    let session = match call.broker.fetch_sessions.begin(session_request(&call, request)) {
        Ok(session) => session,
        Err(error) => {
            let answer = Answer { error_code: error.code(), ..Answer::default() };
            return call.reply_pieces(encode(&answer, call.version));
        }
    };
    let (fetched, memory) =
        fetch(&call.broker, &call.client.replies, || wanted(&call, &session), limits).await;
    let included = call.broker.fetch_sessions.finish(&session, &fetched);
    let answer = Answer {
        throttle_ms: 0,
        error_code: 0,
        session_id: session.id,
        topics: group(&call, &session, fetched, &included),
    };
    let reply = call.reply_pieces(encode(&answer, call.version))?;
    Some(Reply { memory, ..reply })
}

fn session_request(call: &Call, request: FetchRequest) -> SessionRequest {
    let by_id = call.version >= 13;
    let mut interests = Vec::new();
    for topic in request.topics {
        let key = if by_id { TopicKey::Id(topic.topic_id) } else { TopicKey::Name(topic.topic.to_string()) };
        for partition in topic.partitions {
            let interest = Interest {
                offset: partition.fetch_offset,
                max_bytes: partition.partition_max_bytes,
                leader_epoch: partition.current_leader_epoch,
            };
            interests.push(((key.clone(), partition.partition), interest));
        }
    }
    let mut forgotten = Vec::new();
    for topic in request.forgotten_topics_data {
        let key = if by_id { TopicKey::Id(topic.topic_id) } else { TopicKey::Name(topic.topic.to_string()) };
        forgotten.extend(topic.partitions.iter().map(|&p| (key.clone(), p)));
    }
    // Before version 7 there are no sessions; −1 is how later ones say that they want none.
    let (id, epoch) = if call.version >= 7 { (request.session_id, request.session_epoch) } else { (0, -1) };
    SessionRequest { id, epoch, interests, forgotten }
}

/// What the session wants, with topics looked up as they are now.
fn wanted(call: &Call, session: &SessionFetch) -> Vec<PartitionRead> {
    call.broker.replica.read(|view| {
        let resolve = |key: &TopicKey| match key {
            TopicKey::Id(id) if view.names.topic_by_id(*id).is_some() => Ok(*id),
            TopicKey::Id(_) => Err(ResponseError::UnknownTopicId),
            TopicKey::Name(name) => {
                view.names.topic(name).map(|t| t.value.topic_id).ok_or(ResponseError::UnknownTopicOrPartition)
            }
        };
        let wanted = session.interests.iter().map(|((key, partition), interest)| PartitionRead {
            topic: resolve(key),
            partition: *partition,
            offset: interest.offset,
            max_bytes: usize::try_from(interest.max_bytes).unwrap_or(0),
            leader_epoch: interest.leader_epoch,
        });
        wanted.collect()
    })
}

/// Sorts what belongs into the response by topic, in the order in which topics first occur.
fn group(call: &Call, session: &SessionFetch, fetched: Vec<Fetched>, included: &[bool]) -> Vec<TopicAnswer> {
    let mut topics: Vec<TopicAnswer> = Vec::new();
    let mut places: BTreeMap<&TopicKey, usize> = BTreeMap::new();
    for (((key, partition), fetched), included) in keys(session).zip(fetched).zip(included) {
        if !included {
            continue;
        }
        call.broker.metrics.fetched(&call.broker, key, fetched.records.count, fetched.records.bytes as u64);
        let place = *places.entry(key).or_insert_with(|| {
            let (name, topic_id) = match key {
                TopicKey::Id(id) => (String::new(), *id),
                TopicKey::Name(name) => (name.clone(), Uuid::nil()),
            };
            topics.push(TopicAnswer { name, topic_id, partitions: Vec::new() });
            topics.len() - 1
        });
        topics[place].partitions.push((*partition, fetched));
    }
    topics
}

fn keys(session: &SessionFetch) -> impl Iterator<Item = &PartitionKey> {
    session.interests.iter().map(|(key, _)| key)
}
