//! Fetch (key 1), versions 4–18.
//!
//! A long poll that is woken by commits. The first batch is returned even if it exceeds the limits;
//! batches are never cut, and a fetch starts at the batch that contains the offset. Incremental
//! fetch sessions (KIP-227) from version 7 on, topic ids (KIP-516) from 13. Every offset below the
//! high watermark is stable until transactions exist, so read_committed and read_uncommitted see
//! the same.
//!
//! One fetch of a connection is handled at a time, as in Kafka. A session is only made of topics
//! that exist (see `fetch/session`).
//!
//! Differences: the leader epoch of every partition is 0 for ever, so logs never diverge; the rack
//! of the client is not needed here, since any broker serves any partition and Metadata names one
//! in the client's zone.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{FetchRequest, TopicName};
use uuid::Uuid;

use super::distinct::distinct;
use super::{Call, Reply};
use crate::Broker;
use crate::compute::Kind;
use crate::fetch::encode::{Answer, TopicAnswer, encode};
use crate::fetch::session::{Interest, PartitionKey, SessionFetch, SessionRequest, TopicKey};
use crate::fetch::{Fetched, Limits, fetch};
use crate::limits::{FETCH_MAX_WAIT, LARGE_ANSWER_ELEMENTS};

/// The isolation level of whoever waits for transactions to end.
pub(crate) const READ_COMMITTED: i8 = 1;

pub(crate) const VERSIONS: RangeInclusive<i16> = 4..=18;

pub(super) async fn handle(call: Call, request: FetchRequest) -> Option<Reply> {
    call.alone().await;
    let limits = Limits {
        min_bytes: usize::try_from(request.min_bytes).unwrap_or(0),
        max_bytes: usize::try_from(request.max_bytes).unwrap_or(0).min(call.broker.config.fetch_max_bytes),
        max_wait: Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0)).min(FETCH_MAX_WAIT),
        is_committed: request.isolation_level == READ_COMMITTED,
    };
    let session = begin(&call, request).await;
    // It may wait for a minute; what it is interested in is memory of sessions and of waiting
    // fetches.
    call.release_decoded();
    let refused = |error: ResponseError| {
        let answer = Answer { error_code: error.code(), ..Answer::default() };
        call.reply_pieces(encode(&answer, call.version))
    };
    let session = match session {
        Ok(session) => session,
        Err(error) => return refused(error),
    };
    let fetched = fetch(&call.broker, &call.client, &session.interests, limits).await;
    // Clients fetch again, with a new session.
    let Ok((fetched, memory)) = fetched else { return refused(ResponseError::RequestTimedOut) };
    let broker = call.broker.clone();
    let version = call.version;
    let is_large = fetched.len() > LARGE_ANSWER_ELEMENTS;
    let finish = move || {
        let included = broker.fetch_sessions.finish(&session, &fetched);
        let topics = group(&broker, &session, fetched, &included);
        encode(&Answer { throttle_ms: 0, error_code: 0, session_id: session.id, topics }, version)
    };
    let body = if is_large { call.broker.compute.run(Kind::Frame, finish).await } else { finish() };
    let reply = call.reply_pieces(body)?;
    Some(Reply { memory, ..reply })
}

/// Takes the request into its session, beside the connections' threads if either has very many
/// partitions.
async fn begin(call: &Call, request: FetchRequest) -> Result<SessionFetch, ResponseError> {
    let (broker, version) = (call.broker.clone(), call.version);
    let named: usize = request.topics.iter().map(|topic| topic.partitions.len()).sum();
    let is_large = named + broker.fetch_sessions.partitions(request.session_id) > LARGE_ANSWER_ELEMENTS;
    let begin = move || {
        let request = session_request(&broker, version, request);
        let wants_session = request.epoch == 0;
        let begun = broker.fetch_sessions.begin(request);
        if wants_session && begun.as_ref().is_ok_and(|fetch| fetch.id == 0) {
            broker.metrics.requests().fetch_session_refused();
        }
        begun
    };
    if is_large { call.broker.compute.run(Kind::Frame, begin).await } else { begin() }
}

/// What the request says, with each partition once: of one that is named twice, the last counts, as
/// in Kafka.
fn session_request(broker: &Broker, version: i16, request: FetchRequest) -> SessionRequest {
    let key = |name: &TopicName, id: Uuid| {
        if version >= 13 { TopicKey::Id(id) } else { TopicKey::Name((***name).into()) }
    };
    let view = broker.replica.view();
    let mut names_exist = true;
    let mut interests = Vec::new();
    for topic in request.topics {
        let key = key(&topic.topic, topic.topic_id);
        names_exist &= key.resolve(&view.names).is_ok();
        for partition in topic.partitions {
            let interest = Interest {
                offset: partition.fetch_offset,
                max_bytes: partition.partition_max_bytes,
                leader_epoch: partition.current_leader_epoch,
            };
            interests.push(((key.clone(), partition.partition), interest));
        }
    }
    let interests = distinct(interests, |known, last| *known = last);
    let mut forgotten = Vec::new();
    for topic in request.forgotten_topics_data {
        let key = key(&topic.topic, topic.topic_id);
        forgotten.extend(topic.partitions.iter().map(|&p| (key.clone(), p)));
    }
    // Before version 7 there are no sessions; −1 is how later ones say that they want none.
    let (id, epoch) = if version >= 7 { (request.session_id, request.session_epoch) } else { (0, -1) };
    SessionRequest { id, epoch, interests, forgotten, names_exist }
}

/// Sorts what belongs into the response by topic, in the order in which topics first occur.
fn group(
    broker: &Broker,
    session: &SessionFetch,
    fetched: Vec<Fetched>,
    included: &[bool],
) -> Vec<TopicAnswer> {
    let mut topics: Vec<TopicAnswer> = Vec::new();
    let mut places: BTreeMap<&TopicKey, usize> = BTreeMap::new();
    for (((key, partition), fetched), included) in keys(session).zip(fetched).zip(included) {
        if !included {
            continue;
        }
        broker.metrics.fetched(broker, key, fetched.records.count, fetched.records.bytes as u64);
        let place = *places.entry(key).or_insert_with(|| {
            let (name, topic_id) = match key {
                TopicKey::Id(id) => ("".into(), *id),
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
