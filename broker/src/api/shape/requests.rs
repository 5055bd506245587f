//! The shapes of the requests that are spoken, one entry each.
//!
//! They follow Kafka's message definitions as `kafka-protocol` reads them: fields in the order in
//! which they are sent, with the versions that they exist in. That lengths are compact and structs
//! end with tagged fields from some version on is the same for all of a request, and known from its
//! header's version. Tagged fields that are not listed are allowed everywhere. The type behind an
//! array is what one element is decoded to: its size is what the element costs.

use std::mem::size_of;

use kafka_protocol::messages::ApiKey;
use kafka_protocol::messages::add_partitions_to_txn_request::{
    AddPartitionsToTxnTopic, AddPartitionsToTxnTransaction,
};
use kafka_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use kafka_protocol::messages::create_partitions_request::{
    CreatePartitionsAssignment, CreatePartitionsTopic,
};
use kafka_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use kafka_protocol::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_log_dirs_request::DescribableLogDirTopic;
use kafka_protocol::messages::describe_topic_partitions_request::TopicRequest;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic};
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::list_partition_reassignments_request::ListPartitionReassignmentsTopics;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::update_features_request::FeatureUpdateKey;
use kafka_protocol::messages::write_txn_markers_request::{WritableTxnMarker, WritableTxnMarkerTopic};
use kafka_protocol::messages::{
    alter_configs_request as alter, consumer_group_heartbeat_request, describe_producers_request,
    elect_leaders_request, incremental_alter_configs_request as incremental,
};
use kafka_protocol::protocol::StrBytes;

/// One field of a request, or of a struct in it.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    /// What it is, or what each of its elements is.
    pub(super) kind: Kind,
    /// For an array: the bytes that an element takes once decoded.
    pub(super) array_of: Option<usize>,
    pub(super) nullable: bool,
    pub(super) versions: Versions,
    /// The tag, for a field that is sent among the tagged ones.
    pub(super) tag: Option<usize>,
}

/// What a value looks like.
#[derive(Debug)]
pub(super) enum Kind {
    /// So many bytes.
    Fixed(usize),
    /// A length of two bytes, and text.
    String,
    /// A length of four bytes, and anything.
    Bytes,
    Struct(&'static [Field]),
}

/// The versions that a field exists in.
#[derive(Debug)]
pub(super) struct Versions {
    first: i16,
    last: i16,
}

impl Versions {
    pub(super) fn contains(&self, version: i16) -> bool {
        (self.first..=self.last).contains(&version)
    }
}

/// What every request begins with, without the tagged fields of the second version.
pub(super) const HEADER: &[Field] =
    &[int16("api_key"), int16("api_version"), int32("correlation_id"), string("client_id").nullable()];

/// The shape of an API's requests.
pub(super) fn shape(api: ApiKey) -> Option<&'static [Field]> {
    match api {
        ApiKey::Produce => Some(PRODUCE),
        ApiKey::Fetch => Some(FETCH),
        ApiKey::ListOffsets => Some(LIST_OFFSETS),
        ApiKey::Metadata => Some(METADATA),
        ApiKey::ApiVersions => Some(API_VERSIONS),
        ApiKey::OffsetCommit => Some(OFFSET_COMMIT),
        ApiKey::OffsetFetch => Some(OFFSET_FETCH),
        ApiKey::FindCoordinator => Some(FIND_COORDINATOR),
        ApiKey::JoinGroup => Some(JOIN_GROUP),
        ApiKey::Heartbeat => Some(HEARTBEAT),
        ApiKey::LeaveGroup => Some(LEAVE_GROUP),
        ApiKey::SyncGroup => Some(SYNC_GROUP),
        ApiKey::DescribeGroups => Some(DESCRIBE_GROUPS),
        ApiKey::ListGroups => Some(LIST_GROUPS),
        ApiKey::DeleteGroups => Some(DELETE_GROUPS),
        ApiKey::OffsetDelete => Some(OFFSET_DELETE),
        ApiKey::ConsumerGroupHeartbeat => Some(CONSUMER_GROUP_HEARTBEAT),
        ApiKey::ConsumerGroupDescribe => Some(CONSUMER_GROUP_DESCRIBE),
        ApiKey::CreateTopics => Some(CREATE_TOPICS),
        ApiKey::DeleteTopics => Some(DELETE_TOPICS),
        ApiKey::InitProducerId => Some(INIT_PRODUCER_ID),
        ApiKey::OffsetForLeaderEpoch => Some(OFFSET_FOR_LEADER_EPOCH),
        ApiKey::DescribeConfigs => Some(DESCRIBE_CONFIGS),
        ApiKey::AlterConfigs => Some(ALTER_CONFIGS),
        ApiKey::CreatePartitions => Some(CREATE_PARTITIONS),
        ApiKey::IncrementalAlterConfigs => Some(INCREMENTAL_ALTER_CONFIGS),
        ApiKey::DescribeCluster => Some(DESCRIBE_CLUSTER),
        ApiKey::DescribeTopicPartitions => Some(DESCRIBE_TOPIC_PARTITIONS),
        ApiKey::DescribeLogDirs => Some(DESCRIBE_LOG_DIRS),
        ApiKey::DeleteRecords => Some(DELETE_RECORDS),
        ApiKey::ElectLeaders => Some(ELECT_LEADERS),
        ApiKey::AlterPartitionReassignments => Some(ALTER_PARTITION_REASSIGNMENTS),
        ApiKey::ListPartitionReassignments => Some(LIST_PARTITION_REASSIGNMENTS),
        ApiKey::UpdateFeatures => Some(UPDATE_FEATURES),
        ApiKey::DescribeProducers => Some(DESCRIBE_PRODUCERS),
        ApiKey::AddPartitionsToTxn => Some(ADD_PARTITIONS_TO_TXN),
        ApiKey::AddOffsetsToTxn => Some(ADD_OFFSETS_TO_TXN),
        ApiKey::EndTxn => Some(END_TXN),
        ApiKey::WriteTxnMarkers => Some(WRITE_TXN_MARKERS),
        ApiKey::TxnOffsetCommit => Some(TXN_OFFSET_COMMIT),
        ApiKey::DescribeTransactions => Some(DESCRIBE_TRANSACTIONS),
        ApiKey::ListTransactions => Some(LIST_TRANSACTIONS),
        ApiKey::GetTelemetrySubscriptions => Some(GET_TELEMETRY_SUBSCRIPTIONS),
        ApiKey::PushTelemetry => Some(PUSH_TELEMETRY),
        ApiKey::ListConfigResources => Some(LIST_CONFIG_RESOURCES),
        _ => None,
    }
}

const PRODUCE: &[Field] = &[
    string("transactional_id").nullable(),
    int16("acks"),
    int32("timeout_ms"),
    structs::<TopicProduceData>(
        "topic_data",
        &[
            string("name").until(12),
            uuid("topic_id").since(13),
            structs::<PartitionProduceData>("partition_data", &[int32("index"), bytes("records").nullable()]),
        ],
    ),
];

const FETCH: &[Field] = &[
    string("cluster_id").nullable().since(12).tagged(0),
    int32("replica_id").until(14),
    structure("replica_state", &[int32("replica_id"), int64("replica_epoch")]).since(15).tagged(1),
    int32("max_wait_ms"),
    int32("min_bytes"),
    int32("max_bytes"),
    int8("isolation_level"),
    int32("session_id").since(7),
    int32("session_epoch").since(7),
    structs::<FetchTopic>(
        "topics",
        &[
            string("topic").until(12),
            uuid("topic_id").since(13),
            structs::<FetchPartition>(
                "partitions",
                &[
                    int32("partition"),
                    int32("current_leader_epoch").since(9),
                    int64("fetch_offset"),
                    int32("last_fetched_epoch").since(12),
                    int64("log_start_offset").since(5),
                    int32("partition_max_bytes"),
                    uuid("replica_directory_id").since(17).tagged(0),
                    int64("high_watermark").since(18).tagged(1),
                ],
            ),
        ],
    ),
    structs::<ForgottenTopic>(
        "forgotten_topics_data",
        &[string("topic").until(12), uuid("topic_id").since(13), int32s("partitions")],
    )
    .since(7),
    string("rack_id").since(11),
];

const LIST_OFFSETS: &[Field] = &[
    int32("replica_id"),
    int8("isolation_level").since(2),
    structs::<ListOffsetsTopic>(
        "topics",
        &[
            string("name"),
            structs::<ListOffsetsPartition>(
                "partitions",
                &[int32("partition_index"), int32("current_leader_epoch").since(4), int64("timestamp")],
            ),
        ],
    ),
    int32("timeout_ms").since(10),
];

const METADATA: &[Field] = &[
    structs::<MetadataRequestTopic>("topics", &[uuid("topic_id").since(10), string("name").nullable()])
        .nullable(),
    boolean("allow_auto_topic_creation").since(4),
    boolean("include_cluster_authorized_operations").since(8).until(10),
    boolean("include_topic_authorized_operations").since(8),
];

const API_VERSIONS: &[Field] =
    &[string("client_software_name").since(3), string("client_software_version").since(3)];

const OFFSET_COMMIT: &[Field] = &[
    string("group_id"),
    int32("generation_id_or_member_epoch"),
    string("member_id"),
    string("group_instance_id").nullable().since(7),
    int64("retention_time_ms").until(4),
    structs::<OffsetCommitRequestTopic>(
        "topics",
        &[
            string("name"),
            structs::<OffsetCommitRequestPartition>(
                "partitions",
                &[
                    int32("partition_index"),
                    int64("committed_offset"),
                    int32("committed_leader_epoch").since(6),
                    string("committed_metadata").nullable(),
                ],
            ),
        ],
    ),
];

const OFFSET_FETCH: &[Field] = &[
    string("group_id").until(7),
    structs::<OffsetFetchRequestTopic>("topics", &[string("name"), int32s("partition_indexes")])
        .until(7)
        .nullable(),
    structs::<OffsetFetchRequestGroup>(
        "groups",
        &[
            string("group_id"),
            string("member_id").nullable().since(9),
            int32("member_epoch").since(9),
            structs::<OffsetFetchRequestTopics>("topics", &[string("name"), int32s("partition_indexes")])
                .nullable(),
        ],
    )
    .since(8),
    boolean("require_stable").since(7),
];

const FIND_COORDINATOR: &[Field] =
    &[string("key").until(3), int8("key_type").since(1), strings("coordinator_keys").since(4)];

const JOIN_GROUP: &[Field] = &[
    string("group_id"),
    int32("session_timeout_ms"),
    int32("rebalance_timeout_ms").since(1),
    string("member_id"),
    string("group_instance_id").nullable().since(5),
    string("protocol_type"),
    structs::<JoinGroupRequestProtocol>("protocols", &[string("name"), bytes("metadata")]),
    string("reason").nullable().since(8),
];

const HEARTBEAT: &[Field] = &[
    string("group_id"),
    int32("generation_id"),
    string("member_id"),
    string("group_instance_id").nullable().since(3),
];

const LEAVE_GROUP: &[Field] = &[
    string("group_id"),
    string("member_id").until(2),
    structs::<MemberIdentity>(
        "members",
        &[string("member_id"), string("group_instance_id").nullable(), string("reason").nullable().since(5)],
    )
    .since(3),
];

const SYNC_GROUP: &[Field] = &[
    string("group_id"),
    int32("generation_id"),
    string("member_id"),
    string("group_instance_id").nullable().since(3),
    string("protocol_type").nullable().since(5),
    string("protocol_name").nullable().since(5),
    structs::<SyncGroupRequestAssignment>("assignments", &[string("member_id"), bytes("assignment")]),
];

const DESCRIBE_GROUPS: &[Field] = &[strings("groups"), boolean("include_authorized_operations").since(3)];

const LIST_GROUPS: &[Field] = &[strings("states_filter").since(4), strings("types_filter").since(5)];

const DELETE_GROUPS: &[Field] = &[strings("groups_names")];

const OFFSET_DELETE: &[Field] = &[
    string("group_id"),
    structs::<OffsetDeleteRequestTopic>(
        "topics",
        &[string("name"), structs::<OffsetDeleteRequestPartition>("partitions", &[int32("partition_index")])],
    ),
];

const CONSUMER_GROUP_HEARTBEAT: &[Field] = &[
    string("group_id"),
    string("member_id"),
    int32("member_epoch"),
    string("instance_id").nullable(),
    string("rack_id").nullable(),
    int32("rebalance_timeout_ms"),
    strings("subscribed_topic_names").nullable(),
    string("subscribed_topic_regex").nullable().since(1),
    string("server_assignor").nullable(),
    structs::<consumer_group_heartbeat_request::TopicPartitions>(
        "topic_partitions",
        &[uuid("topic_id"), int32s("partitions")],
    )
    .nullable(),
];

const CONSUMER_GROUP_DESCRIBE: &[Field] = &[strings("group_ids"), boolean("include_authorized_operations")];

const CREATE_TOPICS: &[Field] = &[
    structs::<CreatableTopic>(
        "topics",
        &[
            string("name"),
            int32("num_partitions"),
            int16("replication_factor"),
            structs::<CreatableReplicaAssignment>(
                "assignments",
                &[int32("partition_index"), int32s("broker_ids")],
            ),
            structs::<CreatableTopicConfig>("configs", &[string("name"), string("value").nullable()]),
        ],
    ),
    int32("timeout_ms"),
    boolean("validate_only"),
];

const DELETE_TOPICS: &[Field] = &[
    structs::<DeleteTopicState>("topics", &[string("name").nullable(), uuid("topic_id")]).since(6),
    strings("topic_names").until(5),
    int32("timeout_ms"),
];

const INIT_PRODUCER_ID: &[Field] = &[
    string("transactional_id").nullable(),
    int32("transaction_timeout_ms"),
    int64("producer_id").since(3),
    int16("producer_epoch").since(3),
];

const TRANSACTION_TOPICS: &[Field] = &[string("name"), int32s("partitions")];

const ADD_PARTITIONS_TO_TXN: &[Field] = &[
    structs::<AddPartitionsToTxnTransaction>(
        "transactions",
        &[
            string("transactional_id"),
            int64("producer_id"),
            int16("producer_epoch"),
            boolean("verify_only"),
            structs::<AddPartitionsToTxnTopic>("topics", TRANSACTION_TOPICS),
        ],
    )
    .since(4),
    string("v3_and_below_transactional_id").until(3),
    int64("v3_and_below_producer_id").until(3),
    int16("v3_and_below_producer_epoch").until(3),
    structs::<AddPartitionsToTxnTopic>("v3_and_below_topics", TRANSACTION_TOPICS).until(3),
];

const ADD_OFFSETS_TO_TXN: &[Field] =
    &[string("transactional_id"), int64("producer_id"), int16("producer_epoch"), string("group_id")];

const END_TXN: &[Field] =
    &[string("transactional_id"), int64("producer_id"), int16("producer_epoch"), boolean("committed")];

const WRITE_TXN_MARKERS: &[Field] = &[structs::<WritableTxnMarker>(
    "markers",
    &[
        int64("producer_id"),
        int16("producer_epoch"),
        boolean("transaction_result"),
        structs::<WritableTxnMarkerTopic>("topics", &[string("name"), int32s("partition_indexes")]),
        int32("coordinator_epoch"),
    ],
)];

const TXN_OFFSET_COMMIT: &[Field] = &[
    string("transactional_id"),
    string("group_id"),
    int64("producer_id"),
    int16("producer_epoch"),
    int32("generation_id").since(3),
    string("member_id").since(3),
    string("group_instance_id").nullable().since(3),
    structs::<TxnOffsetCommitRequestTopic>(
        "topics",
        &[
            string("name"),
            structs::<TxnOffsetCommitRequestPartition>(
                "partitions",
                &[
                    int32("partition_index"),
                    int64("committed_offset"),
                    int32("committed_leader_epoch").since(2),
                    string("committed_metadata").nullable(),
                ],
            ),
        ],
    ),
];

const DESCRIBE_TRANSACTIONS: &[Field] = &[strings("transactional_ids")];

const LIST_TRANSACTIONS: &[Field] = &[
    strings("state_filters"),
    int64("producer_id_filters").array_of(size_of::<i64>()),
    int64("duration_filter").since(1),
    string("transactional_id_pattern").nullable().since(2),
];

const OFFSET_FOR_LEADER_EPOCH: &[Field] = &[
    int32("replica_id").since(3),
    structs::<OffsetForLeaderTopic>(
        "topics",
        &[
            string("topic"),
            structs::<OffsetForLeaderPartition>(
                "partitions",
                &[int32("partition"), int32("current_leader_epoch"), int32("leader_epoch")],
            ),
        ],
    ),
];

const DESCRIBE_CONFIGS: &[Field] = &[
    structs::<DescribeConfigsResource>(
        "resources",
        &[int8("resource_type"), string("resource_name"), strings("configuration_keys").nullable()],
    ),
    boolean("include_synonyms"),
    boolean("include_documentation").since(3),
];

const ALTER_CONFIGS: &[Field] = &[
    structs::<alter::AlterConfigsResource>(
        "resources",
        &[
            int8("resource_type"),
            string("resource_name"),
            structs::<alter::AlterableConfig>("configs", &[string("name"), string("value").nullable()]),
        ],
    ),
    boolean("validate_only"),
];

const CREATE_PARTITIONS: &[Field] = &[
    structs::<CreatePartitionsTopic>(
        "topics",
        &[
            string("name"),
            int32("count"),
            structs::<CreatePartitionsAssignment>("assignments", &[int32s("broker_ids")]).nullable(),
        ],
    ),
    int32("timeout_ms"),
    boolean("validate_only"),
];

const INCREMENTAL_ALTER_CONFIGS: &[Field] = &[
    structs::<incremental::AlterConfigsResource>(
        "resources",
        &[
            int8("resource_type"),
            string("resource_name"),
            structs::<incremental::AlterableConfig>(
                "configs",
                &[string("name"), int8("config_operation"), string("value").nullable()],
            ),
        ],
    ),
    boolean("validate_only"),
];

const DESCRIBE_CLUSTER: &[Field] = &[
    boolean("include_cluster_authorized_operations"),
    int8("endpoint_type").since(1),
    boolean("include_fenced_brokers").since(2),
];

const DESCRIBE_TOPIC_PARTITIONS: &[Field] = &[
    structs::<TopicRequest>("topics", &[string("name")]),
    int32("response_partition_limit"),
    structure("cursor", &[string("topic_name"), int32("partition_index")]).nullable(),
];

const DESCRIBE_LOG_DIRS: &[Field] =
    &[structs::<DescribableLogDirTopic>("topics", &[string("topic"), int32s("partitions")]).nullable()];

const DELETE_RECORDS: &[Field] = &[
    structs::<DeleteRecordsTopic>(
        "topics",
        &[
            string("name"),
            structs::<DeleteRecordsPartition>("partitions", &[int32("partition_index"), int64("offset")]),
        ],
    ),
    int32("timeout_ms"),
];

const ELECT_LEADERS: &[Field] = &[
    int8("election_type").since(1),
    structs::<elect_leaders_request::TopicPartitions>(
        "topic_partitions",
        &[string("topic"), int32s("partitions")],
    )
    .nullable(),
    int32("timeout_ms"),
];

const ALTER_PARTITION_REASSIGNMENTS: &[Field] = &[
    int32("timeout_ms"),
    boolean("allow_replication_factor_change").since(1),
    structs::<ReassignableTopic>(
        "topics",
        &[
            string("name"),
            structs::<ReassignablePartition>(
                "partitions",
                &[int32("partition_index"), int32s("replicas").nullable()],
            ),
        ],
    ),
];

const LIST_PARTITION_REASSIGNMENTS: &[Field] = &[
    int32("timeout_ms"),
    structs::<ListPartitionReassignmentsTopics>("topics", &[string("name"), int32s("partition_indexes")])
        .nullable(),
];

const UPDATE_FEATURES: &[Field] = &[
    int32("timeout_ms"),
    structs::<FeatureUpdateKey>(
        "feature_updates",
        &[
            string("feature"),
            int16("max_version_level"),
            boolean("allow_downgrade").until(0),
            int8("upgrade_type").since(1),
        ],
    ),
    boolean("validate_only").since(1),
];

const DESCRIBE_PRODUCERS: &[Field] = &[structs::<describe_producers_request::TopicRequest>(
    "topics",
    &[string("name"), int32s("partition_indexes")],
)];

const GET_TELEMETRY_SUBSCRIPTIONS: &[Field] = &[uuid("client_instance_id")];

const PUSH_TELEMETRY: &[Field] = &[
    uuid("client_instance_id"),
    int32("subscription_id"),
    boolean("terminating"),
    int8("compression_type"),
    bytes("metrics"),
];

const LIST_CONFIG_RESOURCES: &[Field] = &[int8("resource_types").array_of(size_of::<i8>()).since(1)];

const fn field(name: &'static str, kind: Kind) -> Field {
    let versions = Versions { first: 0, last: i16::MAX };
    Field { name, kind, array_of: None, nullable: false, versions, tag: None }
}

const fn boolean(name: &'static str) -> Field {
    field(name, Kind::Fixed(1))
}

const fn int8(name: &'static str) -> Field {
    field(name, Kind::Fixed(1))
}

const fn int16(name: &'static str) -> Field {
    field(name, Kind::Fixed(2))
}

const fn int32(name: &'static str) -> Field {
    field(name, Kind::Fixed(4))
}

const fn int64(name: &'static str) -> Field {
    field(name, Kind::Fixed(8))
}

const fn uuid(name: &'static str) -> Field {
    field(name, Kind::Fixed(16))
}

const fn string(name: &'static str) -> Field {
    field(name, Kind::String)
}

const fn bytes(name: &'static str) -> Field {
    field(name, Kind::Bytes)
}

const fn structure(name: &'static str, fields: &'static [Field]) -> Field {
    field(name, Kind::Struct(fields))
}

/// An array of structs, each of which is decoded to a `T`.
const fn structs<T>(name: &'static str, fields: &'static [Field]) -> Field {
    structure(name, fields).array_of(size_of::<T>())
}

const fn int32s(name: &'static str) -> Field {
    int32(name).array_of(size_of::<i32>())
}

const fn strings(name: &'static str) -> Field {
    string(name).array_of(size_of::<StrBytes>())
}

impl Field {
    const fn array_of(self, element_bytes: usize) -> Self {
        Self { array_of: Some(element_bytes), ..self }
    }

    const fn nullable(self) -> Self {
        Self { nullable: true, ..self }
    }

    /// It exists from this version on.
    const fn since(self, first: i16) -> Self {
        Self { versions: Versions { first, ..self.versions }, ..self }
    }

    /// It exists up to this version.
    const fn until(self, last: i16) -> Self {
        Self { versions: Versions { last, ..self.versions }, ..self }
    }

    const fn tagged(self, tag: usize) -> Self {
        Self { tag: Some(tag), ..self }
    }
}
