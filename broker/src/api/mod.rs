//! One file per Kafka API. Each opens with its contract: versions, behaviour, KIPs, known
//! differences.
//!
//! The table below is the only list of what is spoken: ApiVersions, the dispatch, what a client
//! must be allowed to do, and the tests are derived from it. A version is in it when its handler
//! was written for it, not when it parses.

pub(crate) mod access;
pub(crate) mod add_offsets_to_txn;
pub(crate) mod add_partitions_to_txn;
pub(crate) mod alter_configs;
pub(crate) mod alter_partition_reassignments;
pub(crate) mod api_versions;
pub(crate) mod consumer_group_describe;
pub(crate) mod consumer_group_heartbeat;
pub(crate) mod create_partitions;
pub(crate) mod create_topics;
pub(crate) mod delete_groups;
pub(crate) mod delete_records;
pub(crate) mod delete_topics;
pub(crate) mod describe_cluster;
pub(crate) mod describe_configs;
pub(crate) mod describe_groups;
pub(crate) mod describe_log_dirs;
pub(crate) mod describe_producers;
pub(crate) mod describe_topic_partitions;
pub(crate) mod describe_transactions;
pub(crate) mod distinct;
pub(crate) mod elect_leaders;
pub(crate) mod end_txn;
pub(crate) mod fetch;
pub(crate) mod find_coordinator;
pub(crate) mod get_telemetry_subscriptions;
pub(crate) mod heartbeat;
pub(crate) mod incremental_alter_configs;
pub(crate) mod init_producer_id;
pub(crate) mod join_group;
pub(crate) mod leave_group;
pub(crate) mod list_config_resources;
pub(crate) mod list_groups;
pub(crate) mod list_offsets;
pub(crate) mod list_partition_reassignments;
pub(crate) mod list_transactions;
pub(crate) mod metadata;
pub(crate) mod offset_commit;
pub(crate) mod offset_delete;
pub(crate) mod offset_fetch;
pub(crate) mod offset_for_leader_epoch;
pub(crate) mod produce;
pub(crate) mod push_telemetry;
mod shape;
pub(crate) mod sync_group;
pub(crate) mod txn_offset_commit;
pub(crate) mod update_features;
pub(crate) mod write_txn_markers;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::future::BoxFuture;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{ApiKey, GroupId, RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use strandline_metadata::limits::WORK_PER_TURN;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::yield_now;
use tokio::time::Instant;

use self::access::{Access, Principal, access};
use self::shape::{Shape, ShapeError};
use crate::Broker;
use crate::compute::Kind;
use crate::group::Sender;
use crate::group::error::{DescribeError, GroupError};
use crate::limits::{
    DESCRIBED_BYTES_PER_UNIT, GROUPS_ANSWER_BYTES, GROUPS_ASKED_AT_ONCE, LARGE_ANSWER_UNITS,
    LARGE_FETCH_BYTES, LARGE_REQUEST_BYTES,
};
use crate::produce::Lane;
use crate::server::frame::{Frame, FrameMemory};
use crate::server::memory::{MemoryAccount, MemoryBudget, MemoryPermit};

/// A response, ready to be written.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    /// Its bytes, length included.
    pub(crate) pieces: Vec<Bytes>,
    /// Memory that was set aside for it before it was built, if it was.
    pub(crate) memory: Option<MemoryPermit>,
    /// For how long no further request of the connection is started once this is answered
    /// (KIP-219). The response says so too.
    pub(crate) throttle: Duration,
}

impl Reply {
    /// Its length.
    pub(crate) fn bytes(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }
}

/// A request that was admitted: what is left is to wait for its response; `None` where the protocol
/// has none (`acks=0`).
pub(crate) type PendingReply = BoxFuture<'static, Option<Reply>>;

/// Who is at the other end of a connection.
#[derive(Debug)]
pub(crate) struct Client {
    /// On whose behalf its requests are.
    pub(crate) principal: Principal,
    /// Name and version of its software, once it has said so (KIP-511).
    pub(crate) software: OnceLock<(String, String)>,
    /// Its address, as Kafka writes it: `/10.0.0.1`.
    pub(crate) host: String,
    /// Its port, if it has one.
    pub(crate) port: Option<u16>,
    /// The memory of its responses that are not written yet.
    pub(crate) replies: MemoryAccount,
    /// The memory of its large requests, decoded.
    decoded: MemoryAccount,
    /// Its place for what is large: one request, or one answer, at a time.
    pub(crate) large: Arc<Semaphore>,
    /// Its place for a fetch: one at a time. Kafka answers every request before it takes the next.
    pub(crate) fetch: Arc<Semaphore>,
    /// Its place in the queue of what is to be written.
    pub(crate) produced: Lane,
    /// Whether it has sent a request that cannot be started before others are answered: then a
    /// fetch waits no longer. Until all is read that it has sent nobody can tell whether it has
    /// gone.
    crowded: watch::Sender<bool>,
}

impl Client {
    pub(crate) fn new(peer: &str, replies: &MemoryBudget, decoded: &MemoryBudget) -> Self {
        let address = peer.parse::<SocketAddr>().ok();
        let host = address.map_or_else(|| peer.to_owned(), |a| a.ip().to_string());
        let host = format!("/{host}");
        Self {
            principal: Principal::ANONYMOUS,
            software: OnceLock::new(),
            replies: replies.account(&host),
            decoded: decoded.account(&host),
            host,
            port: address.map(|a| a.port()),
            large: Arc::new(Semaphore::new(1)),
            fetch: Arc::new(Semaphore::new(1)),
            produced: Lane::default(),
            crowded: watch::Sender::default(),
        }
    }

    /// Notes whether it has sent a request that cannot be started before others are answered.
    pub(crate) fn set_crowded(&self, is_crowded: bool) {
        self.crowded.send_if_modified(|was| std::mem::replace(was, is_crowded) != is_crowded);
    }

    /// Ends when it has sent one.
    pub(crate) async fn crowded(&self) {
        // The sender is its own, so nothing else ends it.
        let _ = self.crowded.subscribe().wait_for(|is_crowded| *is_crowded).await;
    }
}

/// One request on its way through a handler.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) broker: Arc<Broker>,
    pub(crate) client: Arc<Client>,
    pub(crate) api: ApiKey,
    pub(crate) version: i16,
    pub(crate) correlation_id: i32,
    /// The client id that the request names; empty for none.
    pub(crate) client_id: StrBytes,
    /// How many bytes the request had.
    pub(crate) frame_bytes: usize,
    /// Whether it is decoded in no time.
    is_brief: bool,
    /// Held for as long as something of the frame may be in use.
    pub(crate) frame_memory: Arc<FrameMemory>,
    /// Held for as long as a large request is in memory.
    decoded: Mutex<Option<MemoryPermit>>,
    started: Instant,
    /// Its connection's place for what is large: taken if the request is, or its answer may be.
    alone: OnceLock<OwnedSemaphorePermit>,
    /// A place among the large answers of all connections.
    answer: OnceLock<OwnedSemaphorePermit>,
    /// What was done for it, in units of a turn.
    units: AtomicUsize,
}

/// A request that cannot be answered: the connection is closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("api key {0} is not known")]
    UnknownApi(i16),
    #[error("{api:?} version {version} is not supported")]
    UnsupportedVersion { api: ApiKey, version: i16 },
    #[error("a request of api key {api} version {version} does not parse: {why}")]
    Malformed { api: i16, version: i16, why: String },
}

/// How an API is spoken: a row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    /// The API.
    pub(crate) key: ApiKey,
    /// Its versions.
    pub(crate) versions: RangeInclusive<i16>,
    /// What a principal may have to be allowed to do.
    #[cfg_attr(not(test), expect(dead_code, reason = "nothing is forbidden until there are ACLs"))]
    pub(crate) access: &'static [Access],
}

/// Declares what is spoken. Every module has `VERSIONS` and `handle(call, request) -> response`,
/// except those under `by hand`, which `take` knows.
macro_rules! apis {
    (
        by hand { $($hand:ident $hand_module:ident [$($hand_access:tt)*],)* }
        $($api:ident $module:ident $request:ident [$($access:tt)*],)*
    ) => {
        /// Every API that is spoken.
        pub(crate) const SUPPORTED: &[Api] = &[
            $(Api { key: ApiKey::$hand, versions: $hand_module::VERSIONS, access: access![$($hand_access)*] },)*
            $(Api { key: ApiKey::$api, versions: $module::VERSIONS, access: access![$($access)*] },)*
        ];

        /// Decodes the request and starts its handler.
        async fn dispatch(call: Call, body: Bytes) -> Result<PendingReply, RequestError> {
            match call.api {
                $(ApiKey::$api => {
                    let request = call.decode::<kafka_protocol::messages::$request>(body).await?;
                    Ok(Box::pin(async move {
                        let response = $module::handle(&call, request).await;
                        call.reply(response).await
                    }))
                })*
                other => Err(RequestError::UnsupportedVersion { api: other, version: call.version }),
            }
        }
    };
}

// API, module, request, and what Kafka's documentation lists as operations and resources.
apis! {
    by hand {
        Produce produce [Write TransactionalId, IdempotentWrite Cluster, Write Topic],
        Fetch fetch [Read Topic],
        ApiVersions api_versions [],
    }
    ListOffsets list_offsets ListOffsetsRequest [Describe Topic],
    Metadata metadata MetadataRequest [Describe Topic, Create Cluster, Create Topic],
    OffsetCommit offset_commit OffsetCommitRequest [Read Group, Read Topic],
    OffsetFetch offset_fetch OffsetFetchRequest [Describe Group, Describe Topic],
    FindCoordinator find_coordinator FindCoordinatorRequest [Describe Group, Describe TransactionalId],
    JoinGroup join_group JoinGroupRequest [Read Group],
    Heartbeat heartbeat HeartbeatRequest [Read Group],
    LeaveGroup leave_group LeaveGroupRequest [Read Group],
    SyncGroup sync_group SyncGroupRequest [Read Group],
    DescribeGroups describe_groups DescribeGroupsRequest [Describe Group],
    ListGroups list_groups ListGroupsRequest [Describe Cluster, Describe Group],
    CreateTopics create_topics CreateTopicsRequest [Create Cluster, Create Topic, DescribeConfigs Topic],
    DeleteTopics delete_topics DeleteTopicsRequest [Delete Topic, Describe Topic],
    DeleteRecords delete_records DeleteRecordsRequest [Delete Topic],
    InitProducerId init_producer_id InitProducerIdRequest [Write TransactionalId, IdempotentWrite Cluster],
    OffsetForLeaderEpoch offset_for_leader_epoch OffsetForLeaderEpochRequest [Describe Topic],
    DescribeConfigs describe_configs DescribeConfigsRequest
        [DescribeConfigs Cluster, DescribeConfigs Topic, DescribeConfigs Group],
    AlterConfigs alter_configs AlterConfigsRequest [AlterConfigs Cluster, AlterConfigs Topic, AlterConfigs Group],
    CreatePartitions create_partitions CreatePartitionsRequest [Alter Topic],
    DeleteGroups delete_groups DeleteGroupsRequest [Delete Group],
    IncrementalAlterConfigs incremental_alter_configs IncrementalAlterConfigsRequest
        [AlterConfigs Cluster, AlterConfigs Topic, AlterConfigs Group],
    OffsetDelete offset_delete OffsetDeleteRequest [Delete Group, Read Topic],
    ConsumerGroupHeartbeat consumer_group_heartbeat ConsumerGroupHeartbeatRequest [Read Group, Describe Topic],
    ConsumerGroupDescribe consumer_group_describe ConsumerGroupDescribeRequest [Describe Group, Describe Topic],
    DescribeCluster describe_cluster DescribeClusterRequest [Describe Cluster],
    DescribeTopicPartitions describe_topic_partitions DescribeTopicPartitionsRequest [Describe Topic],
    DescribeLogDirs describe_log_dirs DescribeLogDirsRequest [Describe Cluster],
    ElectLeaders elect_leaders ElectLeadersRequest [Alter Cluster],
    AlterPartitionReassignments alter_partition_reassignments AlterPartitionReassignmentsRequest [Alter Cluster],
    ListPartitionReassignments list_partition_reassignments ListPartitionReassignmentsRequest [Describe Cluster],
    UpdateFeatures update_features UpdateFeaturesRequest [Alter Cluster],
    DescribeProducers describe_producers DescribeProducersRequest [Read Topic],
    AddPartitionsToTxn add_partitions_to_txn AddPartitionsToTxnRequest [Write TransactionalId, Write Topic],
    AddOffsetsToTxn add_offsets_to_txn AddOffsetsToTxnRequest [Write TransactionalId, Read Group],
    EndTxn end_txn EndTxnRequest [Write TransactionalId],
    WriteTxnMarkers write_txn_markers WriteTxnMarkersRequest [Alter Cluster],
    TxnOffsetCommit txn_offset_commit TxnOffsetCommitRequest [Write TransactionalId, Read Group, Read Topic],
    DescribeTransactions describe_transactions DescribeTransactionsRequest [Describe TransactionalId, Describe Topic],
    ListTransactions list_transactions ListTransactionsRequest [Describe TransactionalId],
    GetTelemetrySubscriptions get_telemetry_subscriptions GetTelemetrySubscriptionsRequest [],
    PushTelemetry push_telemetry PushTelemetryRequest [],
    ListConfigResources list_config_resources ListConfigResourcesRequest [DescribeConfigs Cluster],
}

/// The versions of an API that are spoken.
pub(crate) fn versions(api: ApiKey) -> Option<&'static RangeInclusive<i16>> {
    SUPPORTED.iter().find(|spoken| spoken.key == api).map(|spoken| &spoken.versions)
}

/// Which API a frame is for, if there is one.
fn api_of(frame: &[u8]) -> Option<ApiKey> {
    ApiKey::try_from(i16::from_be_bytes(*frame.first_chunk()?)).ok()
}

/// Whether what was begun of a request goes on when its client has gone: records may want no
/// answer.
pub(crate) fn outlives_client(frame: &[u8]) -> bool {
    api_of(frame) == Some(ApiKey::Produce)
}

/// Whether a request is handled before the next one of its connection is started, as Kafka handles
/// all of them: those that may wait long, or are many, are not, since their replies are bounded by
/// what they ask for or have their memory reserved.
pub(crate) fn is_handled_first(frame: &[u8]) -> bool {
    !matches!(
        api_of(frame),
        Some(
            ApiKey::Produce
                | ApiKey::Fetch
                | ApiKey::JoinGroup
                | ApiKey::SyncGroup
                | ApiKey::Heartbeat
                | ApiKey::LeaveGroup
                | ApiKey::OffsetCommit
                | ApiKey::ConsumerGroupHeartbeat
                | ApiKey::InitProducerId
                | ApiKey::FindCoordinator
                | ApiKey::ApiVersions
        )
    )
}

/// Takes a request in: when this returns, a produce is in the buffer, and the next request of the
/// connection may be read. The future that it gives waits for the answer.
pub(crate) async fn take(
    broker: Arc<Broker>,
    client: Arc<Client>,
    frame: Frame,
) -> Result<PendingReply, RequestError> {
    let started = Instant::now();
    let Frame { bytes: frame, memory } = frame;
    let (key, version) = match (frame.get(..2), frame.get(2..4)) {
        (Some(mut key), Some(mut version)) => (key.get_i16(), version.get_i16()),
        _ => {
            return Err(RequestError::Malformed {
                api: -1,
                version: -1,
                why: "there is no header".to_owned(),
            });
        }
    };
    let api = ApiKey::try_from(key).map_err(|()| RequestError::UnknownApi(key))?;
    let spoken = versions(api).ok_or(RequestError::UnsupportedVersion { api, version })?;
    if !spoken.contains(&version) {
        if api == ApiKey::ApiVersions {
            return Ok(api_versions::unsupported(&frame));
        }
        return Err(RequestError::UnsupportedVersion { api, version });
    }
    // The decoders set memory aside for what the frame says about itself, so that has to be true
    // first.
    let malformed = |why: String| RequestError::Malformed { api: key, version, why };
    let shape = check(&broker, api, version, &frame).await.map_err(|e| malformed(e.to_string()))?;
    if shape.left > 0 {
        tracing::debug!(?api, version, bytes = shape.left, "bytes behind a request");
    }
    let frame_bytes = frame.len();
    let mut body = frame;
    let header = RequestHeader::decode(&mut body, api.request_header_version(version))
        .map_err(|e| malformed(e.to_string()))?;
    let call = Call {
        broker,
        client,
        api,
        version,
        correlation_id: header.correlation_id,
        // A slice of the frame would keep all of it alive for as long as the request waits.
        client_id: header.client_id.map(|id| text(id.to_string())).unwrap_or_default(),
        frame_bytes,
        is_brief: shape.is_brief,
        frame_memory: Arc::new(memory),
        decoded: Mutex::default(),
        started,
        alone: OnceLock::new(),
        answer: OnceLock::new(),
        units: AtomicUsize::new(0),
    };
    let most = if api == ApiKey::Fetch { LARGE_FETCH_BYTES } else { LARGE_REQUEST_BYTES };
    if shape.memory <= most {
        return admit(call, body).await;
    }
    call.alone().await;
    call.hold_decoded(shape.memory).await;
    // What computes for long, here or when its answer is built, holds up no small request.
    let compute = call.broker.compute.clone();
    let pending = compute.aside(admit(call, body)).await?;
    Ok(Box::pin(async move { compute.aside(pending).await }))
}

/// Decodes a request and hands it to its API.
async fn admit(call: Call, body: Bytes) -> Result<PendingReply, RequestError> {
    match call.api {
        ApiKey::Produce => {
            let request = call.decode(body).await?;
            Ok(produce::take(call, request).await)
        }
        ApiKey::Fetch => {
            let request = call.decode(body.clone()).await?;
            if call.is_first() {
                return Ok(Box::pin(fetch::handle(call, request)));
            }
            // Decoded it is many times as large: it waits as it came. It has been seen to be right.
            drop(request);
            Ok(Box::pin(async move {
                call.alone().await;
                let request = call.decode(body).await.ok()?;
                fetch::handle(call, request).await
            }))
        }
        ApiKey::ApiVersions => {
            let request = call.decode(body).await?;
            let response = api_versions::handle(&call, &request);
            let reply = call.reply(response).await;
            Ok(Box::pin(async move { reply }))
        }
        _ => dispatch(call, body).await,
    }
}

/// Looks at the shape of a frame, beside the connections' threads if it is large.
async fn check(broker: &Broker, api: ApiKey, version: i16, frame: &Bytes) -> Result<Shape, ShapeError> {
    if let Some(shape) = shape::check_if_brief(api, version, frame)? {
        return Ok(shape);
    }
    let frame = frame.clone();
    broker.compute.run(Kind::Frame, move || shape::check(api, version, &frame)).await
}

impl Call {
    async fn decode<T: Decodable + Send + 'static>(&self, mut body: Bytes) -> Result<T, RequestError> {
        let version = self.version;
        let mut decode = move || T::decode(&mut body, version);
        let decoded =
            if self.is_brief { decode() } else { self.broker.compute.run(Kind::Frame, decode).await };
        decoded.map_err(|e| RequestError::Malformed { api: self.api as i16, version, why: e.to_string() })
    }

    /// Waits until a request of so many bytes may be decoded, beside what others hold: the budget
    /// of frames lets in requests that become many times as much.
    async fn hold_decoded(&self, bytes: usize) {
        let permit = self.client.decoded.reserve(bytes, bytes).await;
        *self.decoded.lock().unwrap_or_else(PoisonError::into_inner) = Some(permit);
    }

    /// The request has become something else, which is bounded elsewhere: it is not in memory any
    /// more, although its answer is still waited for.
    pub(crate) fn release_decoded(&self) {
        self.decoded.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Notes units of work, each about a tenth of a microsecond: elements that were looked at, or
    /// put into the response. Gives way to other connections after each turn's worth.
    /// Cancellation-safe.
    pub(crate) async fn spend(&self, units: usize) {
        let before = self.units.fetch_add(units, Ordering::Relaxed);
        if before / WORK_PER_TURN < (before + units) / WORK_PER_TURN {
            yield_now().await;
        }
    }

    /// Waits until no other request of this connection is large, or asks for what is. Holds until
    /// the request is answered.
    pub(crate) async fn alone(&self) {
        if self.alone.get().is_some() {
            return;
        }
        // No semaphore of these is ever closed.
        if let Ok(place) = self.place().clone().acquire_owned().await {
            let _ = self.alone.set(place);
        }
    }

    /// Whether no such request is before this one; then this one has the place.
    fn is_first(&self) -> bool {
        self.alone.get().is_some()
            || self.place().clone().try_acquire_owned().is_ok_and(|place| self.alone.set(place).is_ok())
    }

    /// The place of its kind. A fetch may wait for records, so fetches wait for each other only.
    fn place(&self) -> &Arc<Semaphore> {
        if self.api == ApiKey::Fetch { &self.client.fetch } else { &self.client.large }
    }

    /// Waits until a large answer may be built, of which there are few at a time: what is asked for
    /// with a few bytes may take megabytes. Holds until the answer is encoded.
    pub(crate) async fn large_answer(&self) {
        self.alone().await;
        if self.answer.get().is_none()
            && let Some(place) = self.broker.compute.answer().await
        {
            let _ = self.answer.set(place);
        }
    }

    /// Asks groups, a few at a time, and gives their answers in the order of `groups`.
    pub(crate) async fn ask_each<K, T, F>(&self, groups: Vec<K>, ask: impl FnMut(K) -> F) -> Vec<T>
    where
        F: Future<Output = T>,
    {
        if groups.len() > 1 {
            self.alone().await;
        }
        futures::stream::iter(groups).map(ask).buffered(GROUPS_ASKED_AT_ONCE).collect().await
    }

    /// Asks groups to describe themselves, as [`Call::ask_each`] does. Those that do not fit into
    /// [`GROUPS_ANSWER_BYTES`] any more are refused, but for the first one.
    pub(crate) async fn describe_each<T, F>(
        &self,
        groups: Vec<GroupId>,
        describe: impl Fn(GroupId) -> F,
        refuse: impl Fn(GroupId, &GroupError) -> T,
    ) -> Vec<T>
    where
        T: Encodable,
        F: Future<Output = T>,
    {
        self.alone().await;
        // Until the answer is encoded.
        if let Some(place) = self.broker.compute.description().await {
            let _ = self.answer.set(place);
        }
        let mut answers = Vec::with_capacity(groups.len());
        let mut total = 0;
        let described = futures::stream::iter(groups.clone()).map(describe).buffered(GROUPS_ASKED_AT_ONCE);
        let mut described = pin!(described.zip(futures::stream::iter(groups)));
        while let Some((answer, id)) = described.next().await {
            // What this version cannot say is noticed when the whole is encoded.
            let bytes = answer.compute_size(self.version).unwrap_or_default();
            self.spend(bytes / DESCRIBED_BYTES_PER_UNIT).await;
            if total > 0 && total + bytes > GROUPS_ANSWER_BYTES {
                answers.push(refuse(id, &DescribeError::AnswerFull.into()));
                continue;
            }
            total += bytes;
            answers.push(answer);
        }
        answers
    }

    /// Frames a response: beside the connections' threads if much was done for it.
    pub(crate) async fn reply<T: Encodable + Send + 'static>(&self, response: T) -> Option<Reply> {
        let version = self.version;
        let encode = move || {
            // Of the right size at once: a buffer that grows would have up to twice that.
            let mut body = BytesMut::with_capacity(response.compute_size(version).unwrap_or_default());
            response.encode(&mut body, version).map(|()| body.freeze())
        };
        let encoded = if self.units.load(Ordering::Relaxed) > LARGE_ANSWER_UNITS {
            self.broker.compute.run(Kind::Frame, encode).await
        } else {
            encode()
        };
        match encoded {
            Ok(body) => self.reply_pieces(vec![body]),
            Err(error) => {
                // The handler built something that this version cannot say: a bug, seen by the test
                // that walks versions.
                tracing::error!(api = ?self.api, version, %error, "an answer cannot be encoded");
                None
            }
        }
    }

    /// Frames a response whose body is already encoded.
    pub(crate) fn reply_pieces(&self, body: Vec<Bytes>) -> Option<Reply> {
        self.broker.metrics.request_done(self.api, self.started.elapsed());
        let mut head = BytesMut::with_capacity(16);
        head.put_i32(0);
        let header = ResponseHeader::default().with_correlation_id(self.correlation_id);
        if let Err(error) = header.encode(&mut head, self.api.response_header_version(self.version)) {
            tracing::error!(%error, "a response header cannot be encoded");
            return None;
        }
        let length = head.len() - 4 + body.iter().map(Bytes::len).sum::<usize>();
        let length = i32::try_from(length).unwrap_or(i32::MAX);
        head[..4].copy_from_slice(&length.to_be_bytes());
        let mut pieces = Vec::with_capacity(body.len() + 1);
        pieces.push(head.freeze());
        pieces.extend(body);
        Some(Reply { pieces, ..Reply::default() })
    }
}

impl Call {
    /// Who sends it, for a group's member list.
    pub(crate) fn sender(&self) -> Sender {
        Sender { client_id: self.client_id.to_string(), host: self.client.host.clone() }
    }
}

/// What a client of this version hears if its producer is fenced: those before `since` know another
/// code for it.
fn fenced(version: i16, since: i16) -> ResponseError {
    if version < since { ResponseError::InvalidProducerEpoch } else { ResponseError::ProducerFenced }
}

/// A text for a response.
pub(crate) fn text(text: impl Into<String>) -> StrBytes {
    StrBytes::from_string(text.into())
}

#[cfg(test)]
mod tests;
