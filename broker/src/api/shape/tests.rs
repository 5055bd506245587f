//! The shapes against the decoders themselves, in both directions: frames that are written by the
//! shapes are read by the decoders to the last byte and written again as they were, and frames that
//! are broken in any one place are refused. So a field that is missing here, or is of the wrong
//! kind, version or nullability, fails.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use kafka_protocol::messages::describe_topic_partitions_request::{Cursor, TopicRequest};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic, ReplicaState};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, Encodable, Request, StrBytes};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

use super::*;
use crate::api::{Api, SUPPORTED};
use crate::testing;

/// Bytes behind the request, if its frame is right.
fn check(api: ApiKey, version: i16, frame: &[u8]) -> Result<usize, ShapeError> {
    super::check(api, version, frame).map(|shape| shape.left)
}

/// Correlation id, client id and the rest of the header are not the subject here.
const CLIENT: &str = "tëst";

/// What was written again, and how many bytes were left over; or why a frame cannot be read.
type Rewritten = Result<(Vec<u8>, usize), String>;

/// What the crate does with one kind of request.
struct Codec {
    /// A request with every default.
    default: fn(i16) -> Bytes,
    /// Reads header and body, and writes both again; also gives how many bytes were left over.
    rewrite: fn(&[u8], i16) -> Rewritten,
}

fn default_frame<R: Request + Default>(version: i16) -> Bytes {
    testing::frame(&R::default(), version, 1).slice(4..)
}

fn rewrite<R: Request>(frame: &[u8], version: i16) -> Rewritten {
    let header_version = R::header_version(version);
    let mut body = Bytes::copy_from_slice(frame);
    let header = RequestHeader::decode(&mut body, header_version).map_err(|e| e.to_string())?;
    let request = R::decode(&mut body, version).map_err(|e| e.to_string())?;
    let left = body.len();
    let mut out = BytesMut::new();
    header.encode(&mut out, header_version).unwrap();
    // A mutation may set what the version cannot say at all; then there is nothing to compare.
    let encoded = request.encode(&mut out, version);
    Ok((if encoded.is_ok() { out.to_vec() } else { Vec::new() }, left))
}

macro_rules! codecs {
    ($($api:ident $request:ident,)*) => {
        fn codec(api: ApiKey) -> Codec {
            match api {
                $(ApiKey::$api => Codec { default: default_frame::<$request>, rewrite: rewrite::<$request> },)*
                other => panic!("{other:?} is spoken, and has no codec here"),
            }
        }
    };
}

codecs! {
    Produce ProduceRequest,
    Fetch FetchRequest,
    ListOffsets ListOffsetsRequest,
    Metadata MetadataRequest,
    ApiVersions ApiVersionsRequest,
    OffsetCommit OffsetCommitRequest,
    OffsetFetch OffsetFetchRequest,
    FindCoordinator FindCoordinatorRequest,
    JoinGroup JoinGroupRequest,
    Heartbeat HeartbeatRequest,
    LeaveGroup LeaveGroupRequest,
    SyncGroup SyncGroupRequest,
    DescribeGroups DescribeGroupsRequest,
    ListGroups ListGroupsRequest,
    DeleteGroups DeleteGroupsRequest,
    OffsetDelete OffsetDeleteRequest,
    ConsumerGroupHeartbeat ConsumerGroupHeartbeatRequest,
    ConsumerGroupDescribe ConsumerGroupDescribeRequest,
    CreateTopics CreateTopicsRequest,
    DeleteTopics DeleteTopicsRequest,
    InitProducerId InitProducerIdRequest,
    OffsetForLeaderEpoch OffsetForLeaderEpochRequest,
    DescribeConfigs DescribeConfigsRequest,
    AlterConfigs AlterConfigsRequest,
    CreatePartitions CreatePartitionsRequest,
    IncrementalAlterConfigs IncrementalAlterConfigsRequest,
    DescribeCluster DescribeClusterRequest,
    DescribeTopicPartitions DescribeTopicPartitionsRequest,
    DescribeLogDirs DescribeLogDirsRequest,
    DeleteRecords DeleteRecordsRequest,
    ElectLeaders ElectLeadersRequest,
    AlterPartitionReassignments AlterPartitionReassignmentsRequest,
    ListPartitionReassignments ListPartitionReassignmentsRequest,
    UpdateFeatures UpdateFeaturesRequest,
    DescribeProducers DescribeProducersRequest,
    AddPartitionsToTxn AddPartitionsToTxnRequest,
    AddOffsetsToTxn AddOffsetsToTxnRequest,
    EndTxn EndTxnRequest,
    WriteTxnMarkers WriteTxnMarkersRequest,
    TxnOffsetCommit TxnOffsetCommitRequest,
    DescribeTransactions DescribeTransactionsRequest,
    ListTransactions ListTransactionsRequest,
    GetTelemetrySubscriptions GetTelemetrySubscriptionsRequest,
    PushTelemetry PushTelemetryRequest,
    ListConfigResources ListConfigResourcesRequest,
}

fn spoken() -> impl Iterator<Item = (ApiKey, i16)> {
    SUPPORTED.iter().flat_map(|api| api.versions.clone().map(|version| (api.key, version)))
}

/// How a length is written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Width {
    Two,
    Four,
    /// A varint of the length and one, so that zero is null.
    Compact,
    /// A varint of the length itself: of a tagged field, or of how many there are.
    Plain,
}

/// Where a written frame says something about itself.
#[derive(Clone, Debug)]
struct Claim {
    at: usize,
    width: Width,
    claimed: usize,
    /// Whether null would do as well.
    nullable: bool,
}

/// Writes frames by the shapes.
struct Writer {
    rng: StdRng,
    version: i16,
    flexible: bool,
    /// Whether tagged fields are also written in versions that do not have them.
    any_version: bool,
    out: Vec<u8>,
    claims: Vec<Claim>,
}

impl Writer {
    fn frame(api: ApiKey, version: i16, seed: u64) -> Self {
        Self::frame_with(api, version, seed, false)
    }

    fn frame_with(api: ApiKey, version: i16, seed: u64, any_version: bool) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        let (out, claims) = (Vec::new(), Vec::new());
        let mut writer = Self { rng, version, flexible: false, any_version, out, claims };
        writer.out.put_i16(api as i16);
        writer.out.put_i16(version);
        writer.out.put_i32(77);
        writer.string(true, CLIENT);
        writer.flexible = api.request_header_version(version) >= 2;
        writer.tagged(&[]);
        writer.structure(requests::shape(api).unwrap());
        writer
    }

    fn structure(&mut self, fields: &'static [Field]) {
        let version = self.version;
        for field in fields.iter().filter(|f| f.tag.is_none() && f.versions.contains(version)) {
            self.field(field);
        }
        self.tagged(fields);
    }

    fn field(&mut self, field: &'static Field) {
        // A tagged field that is null is not written by the decoders' other half.
        let null = field.nullable && field.tag.is_none() && self.rng.random_bool(0.3);
        if field.array_of.is_some() {
            let count = self.rng.random_range(0..4);
            self.length(Width::Four, field.nullable, (!null).then_some(count));
            for _ in 0..if null { 0 } else { count } {
                self.value(&field.kind, false, false);
            }
        } else {
            self.value(&field.kind, field.nullable, null);
        }
    }

    fn value(&mut self, kind: &'static Kind, nullable: bool, null: bool) {
        match kind {
            // One byte may be a truth value, which is only ever written as 0 or 1.
            Kind::Fixed(1) => {
                let bit = self.rng.random_range(0..2);
                self.out.push(bit);
            }
            Kind::Fixed(size) => {
                let bytes: Vec<u8> = (0..*size).map(|_| self.rng.random()).collect();
                self.out.extend(bytes);
            }
            Kind::String | Kind::Bytes if null => self.length(width_of(kind), nullable, None),
            Kind::String => {
                let text = ["", "t", "örders", &"long ".repeat(40)][self.rng.random_range(0..4)].to_owned();
                self.string(nullable, &text);
            }
            Kind::Bytes => {
                let bytes: Vec<u8> = (0..self.rng.random_range(0..40)).map(|_| self.rng.random()).collect();
                self.length(Width::Four, nullable, Some(bytes.len()));
                self.out.extend(bytes);
            }
            Kind::Struct(fields) => {
                if nullable {
                    self.out.put_i8(if null { -1 } else { 1 });
                }
                if !null {
                    self.structure(fields);
                }
            }
        }
    }

    fn string(&mut self, nullable: bool, text: &str) {
        self.length(Width::Two, nullable, Some(text.len()));
        self.out.extend(text.as_bytes());
    }

    fn tagged(&mut self, known: &'static [Field]) {
        if !self.flexible {
            return;
        }
        let mut fields: Vec<(usize, Option<&'static Field>)> = Vec::new();
        for field in known {
            let Some(tag) = field.tag else { continue };
            if (self.any_version || field.versions.contains(self.version)) && self.rng.random_bool(0.7) {
                fields.push((tag, Some(field)));
            }
        }
        fields.sort_by_key(|(tag, _)| *tag);
        for tag in [100, 5000, 70_000] {
            if self.rng.random_bool(0.1) {
                fields.push((tag, None));
            }
        }
        self.length(Width::Plain, false, Some(fields.len()));
        for (tag, field) in fields {
            put_varint(&mut self.out, tag as u64);
            let content = self.apart(|writer| match field {
                Some(field) => writer.field(field),
                None => writer.out.extend([9; 3]),
            });
            self.length(Width::Plain, false, Some(content.out.len()));
            self.append(content);
        }
    }

    /// What `write` writes, with its claims, in a place of its own.
    fn apart(&mut self, write: impl FnOnce(&mut Self)) -> Self {
        let rng = StdRng::seed_from_u64(self.rng.random());
        let mut apart = Self { rng, out: Vec::new(), claims: Vec::new(), ..*self };
        write(&mut apart);
        apart
    }

    fn append(&mut self, other: Self) {
        let base = self.out.len();
        self.claims.extend(other.claims.into_iter().map(|claim| Claim { at: base + claim.at, ..claim }));
        self.out.extend(other.out);
    }

    fn length(&mut self, width: Width, nullable: bool, length: Option<usize>) {
        let width = if self.flexible && width != Width::Plain { Width::Compact } else { width };
        let claimed = length.unwrap_or(0);
        self.claims.push(Claim { at: self.out.len(), width, claimed, nullable });
        let written = match (width, length) {
            (Width::Compact, None) => encoded(width, 0),
            (Width::Compact, Some(length)) => encoded(width, signed(length) + 1),
            (_, None) => encoded(width, -1),
            (_, Some(length)) => encoded(width, signed(length)),
        };
        self.out.extend(written);
    }
}

fn width_of(kind: &Kind) -> Width {
    if matches!(kind, Kind::String) { Width::Two } else { Width::Four }
}

/// The bytes of a length, as it stands there.
fn encoded(width: Width, value: i64) -> Vec<u8> {
    let mut out = Vec::new();
    match width {
        Width::Two => out.put_i16(i16::try_from(value).unwrap()),
        Width::Four => out.put_i32(i32::try_from(value).unwrap()),
        Width::Compact | Width::Plain => put_varint(&mut out, u64::try_from(value).unwrap()),
    }
    out
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn signed(length: usize) -> i64 {
    i64::try_from(length).unwrap()
}

/// How many bytes a length takes where it stands.
fn written_width(frame: &[u8], claim: &Claim) -> usize {
    match claim.width {
        Width::Two => 2,
        Width::Four => 4,
        Width::Compact | Width::Plain => {
            frame[claim.at..].iter().take_while(|byte| **byte >= 0x80).count() + 1
        }
    }
}

fn replaced(frame: &[u8], claim: &Claim, with: &[u8]) -> Vec<u8> {
    let after = claim.at + written_width(frame, claim);
    [&frame[..claim.at], with, &frame[after..]].concat()
}

#[test]
fn everything_that_is_spoken_has_a_shape() {
    for Api { key: api, .. } in SUPPORTED {
        assert!(requests::shape(*api).is_some(), "{api:?} is spoken, and its shape is not described");
    }
    assert_eq!(check(ApiKey::Envelope, 0, &[0; 100]), Err(ShapeError::NotDescribed));
}

/// The least bytes that a struct takes, if no text in it is empty; checks the arrays in it on the
/// way.
fn least(fields: &[Field], version: i16, flexible: bool) -> usize {
    let mut bytes = usize::from(flexible);
    for field in fields.iter().filter(|f| f.tag.is_none() && f.versions.contains(version)) {
        let value = match field.kind {
            Kind::Fixed(size) => size,
            Kind::String => 1 + if flexible { 1 } else { 2 },
            Kind::Bytes => {
                if flexible {
                    1
                } else {
                    4
                }
            }
            Kind::Struct(fields) => least(fields, version, flexible),
        };
        let Some(element_bytes) = field.array_of else {
            bytes += if matches!(field.kind, Kind::Struct(_)) && field.nullable { 1 } else { value };
            continue;
        };
        bytes += if flexible { 1 } else { 4 };
        // Less than the text's letter, it would still be a byte, and the walk ends where the frame
        // does.
        let is_fixed = matches!(field.kind, Kind::Fixed(_));
        assert!(is_fixed || value > 1, "{} in version {version}", field.name);
        assert!(
            element_bytes <= value * DECODED_PER_FRAME_BYTE,
            "an honest element of {} in version {version} has {value} bytes and decodes to {element_bytes}",
            field.name
        );
    }
    bytes
}

#[test]
fn an_honest_element_is_within_the_limit_of_memory() {
    for (api, version) in spoken() {
        least(requests::shape(api).unwrap(), version, api.request_header_version(version) >= 2);
    }
}

#[test]
fn defaults_pass_in_every_version() {
    for (api, version) in spoken() {
        let frame = (codec(api).default)(version);
        assert_eq!(check(api, version, &frame), Ok(0), "{api:?} version {version}");
    }
}

#[test]
fn what_the_shapes_write_the_decoders_read_and_write_again() {
    for (api, version) in spoken() {
        for seed in 0..60 {
            let frame = Writer::frame(api, version, seed).out;
            assert_eq!(check(api, version, &frame), Ok(0), "{api:?} version {version} seed {seed}");
            let again = (codec(api).rewrite)(&frame, version);
            assert_eq!(again, Ok((frame, 0)), "{api:?} version {version} seed {seed}");
        }
    }
}

fn name(text: &'static str) -> TopicName {
    TopicName(StrBytes::from_static_str(text))
}

fn passes<R: Request>(request: &R, versions: std::ops::RangeInclusive<i16>) {
    for version in versions {
        let frame = testing::frame(request, version, 1).slice(4..);
        let api = ApiKey::try_from(R::KEY).unwrap();
        assert_eq!(check(api, version, &frame), Ok(0), "{api:?} version {version}");
        for cut in 0..frame.len() {
            assert!(check(api, version, &frame[..cut]).is_err(), "{api:?} version {version} cut to {cut}");
        }
    }
}

#[test]
fn requests_that_are_full_pass() {
    let text = |text: &'static str| StrBytes::from_static_str(text);
    let tagged = |n: i32| [(n, Bytes::from_static(b"later")), (n + 3, Bytes::new())].into_iter().collect();
    let records = |n| Some(Bytes::from(vec![0xff; n]));
    let partitions = vec![
        PartitionProduceData::default().with_index(3).with_records(records(70_000)),
        PartitionProduceData::default().with_index(4).with_records(None),
        PartitionProduceData::default().with_index(5).with_records(records(0)),
    ];
    let topic = TopicProduceData::default().with_partition_data(partitions);
    let id = Some(TransactionalId(text("tx")));
    let request = ProduceRequest::default().with_transactional_id(id).with_acks(-1);
    let named = vec![topic.clone().with_name(name("t")), TopicProduceData::default()];
    passes(&request.clone().with_topic_data(named), 3..=12);
    let by_id = topic.with_topic_id(Uuid::from_u128(5)).with_unknown_tagged_fields(tagged(7));
    passes(&request.with_topic_data(vec![by_id]).with_unknown_tagged_fields(tagged(0)), 13..=13);

    let partition = FetchPartition::default().with_partition(1).with_fetch_offset(i64::MAX);
    let topic = FetchTopic::default().with_partitions(vec![partition.clone(), partition.clone()]);
    let named = vec![topic.clone().with_topic(name("t")), topic.clone().with_topic(name("u"))];
    passes(&FetchRequest::default().with_topics(named), 4..=12);
    let directory = partition.clone().with_replica_directory_id(Uuid::from_u128(6));
    let all = directory.clone().with_high_watermark(5).with_unknown_tagged_fields(tagged(2));
    let forgotten = ForgottenTopic::default().with_topic_id(Uuid::from_u128(7)).with_partitions(vec![1, 2]);
    let state = ReplicaState::default().with_replica_id(BrokerId(4)).with_replica_epoch(9);
    let request = FetchRequest::default()
        .with_cluster_id(Some(text("a cluster")))
        .with_replica_state(state.with_unknown_tagged_fields(tagged(0)))
        .with_topics(vec![topic.clone().with_topic_id(Uuid::from_u128(5))])
        .with_forgotten_topics_data(vec![forgotten.clone(), forgotten])
        .with_rack_id(text("zone-1"))
        .with_unknown_tagged_fields(tagged(2));
    passes(&request, 15..=18);
    let with = |partition| vec![FetchTopic::default().with_partitions(vec![partition])];
    passes(&request.clone().with_topics(with(directory)), 17..=18);
    passes(&request.with_topics(with(all)), 18..=18);

    let asked = |topic| MetadataRequestTopic::default().with_name(topic);
    passes(&MetadataRequest::default().with_topics(None), 1..=13);
    passes(&MetadataRequest::default().with_topics(Some(vec![asked(Some(name("t"))); 300])), 0..=13);
    let by_id = asked(None).with_topic_id(Uuid::from_u128(5)).with_unknown_tagged_fields(tagged(0));
    passes(&MetadataRequest::default().with_topics(Some(vec![by_id; 9])), 10..=13);

    let brokers = vec![BrokerId(1), BrokerId(2)];
    let assignment = CreatableReplicaAssignment::default().with_partition_index(1).with_broker_ids(brokers);
    let config = CreatableTopicConfig::default().with_name(text("retention.ms")).with_value(None);
    let topic = CreatableTopic::default()
        .with_name(name("t"))
        .with_assignments(vec![assignment.clone(), assignment])
        .with_configs(vec![config.clone(), config.with_value(Some(text("5")))]);
    passes(&CreateTopicsRequest::default().with_topics(vec![topic.clone(), topic]), 2..=7);

    let cursor = Cursor::default().with_topic_name(name("t")).with_unknown_tagged_fields(tagged(0));
    let topics = vec![TopicRequest::default().with_name(name("t")).with_unknown_tagged_fields(tagged(1)); 3];
    let request = DescribeTopicPartitionsRequest::default().with_topics(topics);
    passes(&request.clone().with_cursor(Some(cursor)), 0..=0);
    passes(&request.with_cursor(None), 0..=0);
}

#[test]
fn a_frame_that_is_cut_is_refused_and_one_that_is_too_long_is_not() {
    for (api, version) in spoken() {
        for seed in 0..6 {
            let frame = Writer::frame(api, version, seed).out;
            for cut in 0..frame.len() {
                assert!(check(api, version, &frame[..cut]).is_err(), "{api:?} {version} cut to {cut}");
            }
            let longer = [&frame[..], &[0]].concat();
            assert_eq!(check(api, version, &longer), Ok(1), "{api:?} {version}");
        }
    }
}

#[test]
fn every_length_and_every_count_that_lies_is_refused() {
    for (api, version) in spoken() {
        for seed in 0..12 {
            let Writer { out: frame, claims, .. } = Writer::frame(api, version, seed);
            for claim in &claims {
                let left = signed(frame.len() - claim.at - written_width(&frame, claim));
                let lies = match claim.width {
                    Width::Two => vec![-2, i64::from(i16::MIN), i64::from(i16::MAX), left + 1],
                    Width::Four => vec![-2, i64::from(i32::MIN), i64::from(i32::MAX), left + 1],
                    Width::Compact => vec![i64::from(u32::MAX), i64::from(i32::MAX), left + 2],
                    Width::Plain => vec![i64::from(u32::MAX), i64::from(i32::MAX), left + 1],
                };
                for lie in lies {
                    let lying = replaced(&frame, claim, &encoded(claim.width, lie));
                    assert!(check(api, version, &lying).is_err(), "{api:?} {version} {claim:?} as {lie}");
                }
                if matches!(claim.width, Width::Compact | Width::Plain) {
                    for wide in [[0xff, 0xff, 0xff, 0xff, 0x1f], [0x80, 0x80, 0x80, 0x80, 0x80]] {
                        let refused = check(api, version, &replaced(&frame, claim, &wide));
                        assert!(matches!(refused, Err(ShapeError::VarInt(_))), "{api:?} {version} {claim:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_null_where_it_must_not_be_is_refused_by_the_decoders_too() {
    for (api, version) in spoken() {
        for seed in 0..12 {
            let Writer { out: frame, claims, .. } = Writer::frame(api, version, seed);
            // Nothing is there to be left over, where the length was zero.
            for claim in claims.iter().filter(|c| c.claimed == 0 && c.width != Width::Plain) {
                let null = encoded(claim.width, if claim.width == Width::Compact { 0 } else { -1 });
                let null = replaced(&frame, claim, &null);
                let (checked, read) = (check(api, version, &null), (codec(api).rewrite)(&null, version));
                assert_eq!(checked.is_ok(), claim.nullable, "{api:?} {version} {claim:?}: {checked:?}");
                assert_eq!(read.is_ok(), claim.nullable, "{api:?} {version} {claim:?}: {read:?}");
            }
        }
    }
}

/// A fetch whose tagged fields are these bytes, their count included.
fn fetch_with_tags(version: i16, tags: &[u8]) -> Vec<u8> {
    let frame = default_frame::<FetchRequest>(version);
    assert_eq!(frame.last(), Some(&0));
    [&frame[..frame.len() - 1], tags].concat()
}

#[test]
fn a_known_tagged_field_has_its_version() {
    let rewrite = codec(ApiKey::Fetch).rewrite;
    let state = [&[1, 1, 13][..], &[0; 12], &[0]].concat();
    assert_eq!(check(ApiKey::Fetch, 15, &fetch_with_tags(15, &state)), Ok(0));
    let early = fetch_with_tags(14, &state);
    assert_eq!(check(ApiKey::Fetch, 14, &early), Err(ShapeError::Tag("replica_state")));
    assert!(rewrite(&early, 14).is_err());
}

#[test]
fn a_known_tagged_field_that_lies_about_its_size_is_refused() {
    // The decoders do not look at the size: what it covers too much they would read as the next
    // thing.
    let state = ReplicaState::default().with_replica_id(BrokerId(4)).with_replica_epoch(9);
    let partition = FetchPartition::default();
    let with = |partition| vec![FetchTopic::default().with_partitions(vec![partition])];
    let fetch = FetchRequest::default();
    let id = Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
    for (request, version, field, content) in [
        (
            fetch.clone().with_cluster_id(Some(StrBytes::from_static_str("here"))),
            12,
            "cluster_id",
            &b"\x05here"[..],
        ),
        (
            fetch.clone().with_replica_state(state),
            15,
            "replica_state",
            &[0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 9, 0],
        ),
        (
            fetch.clone().with_topics(with(partition.clone().with_replica_directory_id(id))),
            17,
            "replica_directory_id",
            id.as_bytes(),
        ),
        (
            fetch.with_topics(with(partition.with_high_watermark(5))),
            18,
            "high_watermark",
            &[0, 0, 0, 0, 0, 0, 0, 5],
        ),
    ] {
        let frame = testing::frame(&request, version, 1).slice(4..);
        assert_eq!(check(ApiKey::Fetch, version, &frame), Ok(0), "{field}");
        let at = frame.windows(content.len()).rposition(|bytes| bytes == content).unwrap() - 1;
        assert_eq!(usize::from(frame[at]), content.len(), "{field}");
        for claimed in [content.len() - 1, content.len() + 1] {
            let mut lying = [&frame[..], &[0]].concat();
            lying[at] = u8::try_from(claimed).unwrap();
            let refused = Err(ShapeError::TagSize { field, claimed, actual: content.len() });
            assert_eq!(check(ApiKey::Fetch, version, &lying), refused);
        }
    }
}

#[test]
fn a_tagged_field_of_another_version_is_refused_by_the_decoders_too() {
    for (api, version) in spoken() {
        for seed in 0..20 {
            let frame = Writer::frame_with(api, version, seed, true).out;
            let (checked, read) = (check(api, version, &frame), (codec(api).rewrite)(&frame, version));
            assert_eq!(checked.is_ok(), read.is_ok(), "{api:?} {version}: {checked:?}, {read:?}");
        }
    }
}

#[test]
fn a_struct_is_there_or_not() {
    let request = DescribeTopicPartitionsRequest::default().with_cursor(None);
    let frame = testing::frame(&request, 0, 1).slice(4..);
    let at = frame.len() - 2;
    assert_eq!(frame[at], 0xff);
    for presence in [0, 2, 0x7f, 0x80] {
        let mut odd = frame.to_vec();
        odd[at] = presence;
        let refused = check(ApiKey::DescribeTopicPartitions, 0, &odd);
        assert!(matches!(refused, Err(ShapeError::Presence { field: "cursor", .. })), "{presence}");
    }
}

#[test]
fn a_short_frame_does_not_become_much_memory() {
    let asked = |groups: usize, tags: &[u8]| {
        // No letter in its id, and all of its offsets.
        let group = [&[1, 0][..], tags].concat();
        let frame = default_frame::<OffsetFetchRequest>(8);
        // One byte counts the groups; whether to wait and tagged fields follow.
        let (head, tail) = frame.split_at(frame.len() - 3);
        [head, &encoded(Width::Compact, signed(groups) + 1), &group.repeat(groups), &tail[1..]].concat()
    };
    let checked = |frame: &[u8]| check(ApiKey::OffsetFetch, 8, frame);
    assert_eq!(checked(&asked(100, &[0])), Ok(0));
    // Ids without a letter are the only way to name a group in three bytes.
    let many = asked(100_000, &[0]);
    let limit = many.len() * DECODED_PER_FRAME_BYTE + DECODED_FREE_BYTES;
    assert_eq!(checked(&many), Err(ShapeError::Memory(limit)));
    assert_eq!(checked(&asked(8, &[2, 50, 0, 51, 0])), Ok(0));
    assert!(matches!(checked(&asked(1000, &[2, 50, 0, 51, 0])), Err(ShapeError::Memory(_))));

    let topics = |count, letters: usize| {
        let topic = MetadataRequestTopic::default();
        let topic = topic.with_name(Some(TopicName(StrBytes::from_string("x".repeat(letters)))));
        let request = MetadataRequest::default().with_topics(Some(vec![topic; count]));
        check(ApiKey::Metadata, 9, &testing::frame(&request, 9, 1)[4..])
    };
    assert_eq!(topics(1_000, 1), Ok(0), "the shortest that is honest");
    assert_eq!(topics(200_000, 12), Ok(0));
    assert_eq!(topics(1_000_000, 12), Err(ShapeError::Memory(DECODED_MAX_BYTES)));
}

#[test]
fn records_are_no_work_and_names_are() {
    let produce = |partitions: i32, bytes: usize| {
        let data = PartitionProduceData::default().with_records(Some(Bytes::from(vec![7; bytes])));
        let partitions = (0..partitions).map(|p| data.clone().with_index(p)).collect();
        let topic = TopicProduceData::default().with_partition_data(partitions);
        testing::frame(&ProduceRequest::default().with_topic_data(vec![topic]), 9, 1).slice(4..)
    };
    for (partitions, bytes, is_brief) in [(10, 10 << 20, true), (60, 16 << 10, true), (10_000, 10, false)] {
        let frame = produce(partitions, bytes);
        let checked = super::check(ApiKey::Produce, 9, &frame).unwrap();
        assert_eq!(checked.is_brief, is_brief, "{partitions} of {bytes} bytes");
        let at_once = check_if_brief(ApiKey::Produce, 9, &frame).unwrap();
        assert_eq!(at_once, is_brief.then_some(checked));
        // What is wrong with it is found either way.
        assert!(is_brief == check_if_brief(ApiKey::Produce, 9, &frame[..frame.len() - 1]).is_err());
    }
    let topics = |count, letters: usize| {
        let name = TopicName(StrBytes::from_string("x".repeat(letters)));
        let topic = MetadataRequestTopic::default().with_name(Some(name));
        let request = MetadataRequest::default().with_topics(Some(vec![topic; count]));
        check_if_brief(ApiKey::Metadata, 9, &testing::frame(&request, 9, 1)[4..]).unwrap()
    };
    assert!(topics(100, 200).is_some());
    assert_eq!(topics(10, 100_000), None, "text is read through");
    assert_eq!(topics(100_000, 1), None);
}

/// Breaks a frame in one to three places.
fn mutated(frame: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut out = frame.to_vec();
    for _ in 0..rng.random_range(1..4) {
        // What is before the client id is not the body's.
        let at = rng.random_range(8..out.len().max(9)).min(out.len());
        match rng.random_range(0..5) {
            0 if at < out.len() => out[at] = rng.random(),
            1 if at < out.len() => out[at] ^= 1 << rng.random_range(0..8),
            2 if at < out.len() => drop(out.remove(at)),
            3 => out.insert(at, [0, 1, 0x7f, 0x80, 0xff][rng.random_range(0..5)]),
            _ => {
                let end = (at + rng.random_range(0..12)).min(out.len());
                let copy = out[at..end].to_vec();
                let to = rng.random_range(8..=out.len().max(8)).min(out.len());
                out.splice(to..to, copy);
            }
        }
    }
    out
}

#[test]
fn mutations_that_pass_are_read_as_far_as_they_were_walked() {
    let mut rng = StdRng::seed_from_u64(20_260_101);
    let (mut passed, mut refused) = (0, 0);
    for (api, version) in spoken() {
        let rewrite = codec(api).rewrite;
        for seed in 0..250 {
            let frame = mutated(&Writer::frame(api, version, seed).out, &mut rng);
            let Ok(left) = check(api, version, &frame) else {
                refused += 1;
                continue;
            };
            passed += 1;
            match rewrite(&frame, version) {
                Ok((_, after)) => assert_eq!(left, after, "{api:?} version {version}: {frame:?}"),
                Err(why) => assert!(why.contains("utf-8"), "{api:?} version {version}: {why}: {frame:?}"),
            }
        }
    }
    assert!(passed > 2_000 && refused > 2_000, "{passed} passed, {refused} were refused");
}

#[tokio::test]
async fn a_connection_that_lies_is_closed_and_the_broker_goes_on() {
    let opened = testing::World::new().broker(1, &[]).await;
    let honest = testing::frame(&MetadataRequest::default().with_topics(Some(Vec::new())), 4, 1);
    // The count of the topics, before the one truth value.
    let at = honest.len() - 5;
    for count in [i32::MAX, i32::MIN, -2, 2] {
        let lying = [&honest[..at], &count.to_be_bytes(), &honest[at + 4..]].concat();
        let mut client = testing::TestClient::connect(&opened.broker);
        client.send_raw(&lying).await;
        assert!(client.receive_raw().await.is_none(), "{count}");
    }
    let mut client = testing::TestClient::connect(&opened.broker);
    assert_eq!(client.call(&MetadataRequest::default(), 4).await.brokers.len(), 1);
}

#[test]
fn noise_never_panics() {
    let mut rng = StdRng::seed_from_u64(7);
    for (api, version) in spoken() {
        for length in 0..200 {
            let noise: Vec<u8> = (0..length).map(|_| rng.random()).collect();
            if check(api, version, &noise).is_ok() {
                let _ = (codec(api).rewrite)(&noise, version);
            }
        }
    }
}
