//! The values of the plain keys: JSON that a person may read with `etcdctl get`.
//!
//! Each carries `format`. A value of a newer format than this build knows is an error, never a
//! guess. A field that this build does not know decides nothing that it does, and is passed over: a
//! newer build may add one at any time beside brokers of this one. A rewrite keeps those of a topic
//! and of the cluster. A field that does decide something is written only from a feature level on
//! that every broker knows, or in a newer format.

pub mod group;
pub mod transaction;
pub mod watermarks;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

/// The format that this build writes into every plain value.
pub const VALUE_FORMAT: u32 = 1;

/// A value that is not what its key promises.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the value of {what} cannot be read: {why}")]
pub struct ValueError {
    what: &'static str,
    why: String,
}

/// A JSON value of a plain key.
pub trait Value: Serialize + DeserializeOwned {
    /// What it is, for error messages.
    const WHAT: &'static str;

    /// The bytes to store.
    fn encode(&self) -> Vec<u8> {
        // Serialising these structs into memory has no way to fail: string keys only, no custom
        // serialisers.
        serde_json::to_vec(self).unwrap_or_else(|_| unreachable!("plain structs always serialise"))
    }

    /// Reads stored bytes.
    fn decode(bytes: &[u8]) -> Result<Self, ValueError> {
        let failed = |why: String| ValueError { what: Self::WHAT, why };
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| failed(e.to_string()))?;
        match value.get("format").and_then(serde_json::Value::as_u64) {
            Some(1) => serde_json::from_value(value).map_err(|e| failed(e.to_string())),
            Some(other) => Err(failed(format!("format {other} is newer than this build"))),
            None => Err(failed("it has no format".to_owned())),
        }
    }
}

/// Fields of a value that this build does not know, as they were read.
pub type UnknownFields = BTreeMap<String, serde_json::Value>;

/// The value of `cluster`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterValue {
    /// Format of this value.
    pub format: u32,
    /// Identity of the cluster; also the prefix of its objects.
    pub cluster_id: String,
    /// What `apply` may do. A broker that does not know the level does not start.
    pub feature_level: u32,
    /// What a newer build has added.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl Value for ClusterValue {
    const WHAT: &'static str = "`cluster`";
}

/// The value of `bucket`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketValue {
    /// Format of this value.
    pub format: u32,
    /// The bucket has a marker under this id.
    pub bucket_id: String,
}

impl Value for BucketValue {
    const WHAT: &'static str = "`bucket`";
}

/// The value of `brokers/<node id>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerValue {
    /// Format of this value.
    pub format: u32,
    /// The broker's node id.
    pub node_id: i32,
    /// Tells two processes of the same node id apart.
    pub process_id: Uuid,
    /// Host that clients are told to connect to.
    pub host: String,
    /// Port that clients are told to connect to.
    pub port: u16,
    /// Availability zone; empty if none was configured.
    pub zone: String,
    /// Version of the software.
    pub version: String,
    /// Where its metrics are served; empty if nowhere.
    pub metrics_url: String,
    /// Wall clock of the broker when it registered, ms since 1970.
    pub registered_at_ms: i64,
    /// Set while the broker drains: it still serves, but no client should be sent to it.
    pub draining: bool,
}

impl Value for BrokerValue {
    const WHAT: &'static str = "a broker's registration";
}

/// The value of `topics/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicValue {
    /// Format of this value.
    pub format: u32,
    /// The topic's id; a topic that is deleted and created again has another one.
    pub topic_id: Uuid,
    /// Number of partitions.
    pub partitions: u32,
    /// The configs that were set on the topic itself.
    pub configs: BTreeMap<String, String>,
    /// Wall clock of the creating broker, ms since 1970.
    pub created_at_ms: i64,
    /// How many replicas were asked for; absent below feature level 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication_factor: Option<u32>,
    /// What a newer build has added.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl TopicValue {
    /// How many replicas its partitions have.
    pub fn replicas(&self) -> u32 {
        self.replication_factor.unwrap_or(1)
    }
}

impl Value for TopicValue {
    const WHAT: &'static str = "a topic";
}

/// The value of `configs/…`: dynamic configs of brokers, of a group, of a subscription to metrics
/// of clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigsValue {
    /// Format of this value.
    pub format: u32,
    /// What was set.
    pub configs: BTreeMap<String, String>,
}

impl Value for ConfigsValue {
    const WHAT: &'static str = "dynamic configs";
}

/// The value of `producer-ids`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerIdsValue {
    /// Format of this value.
    pub format: u32,
    /// First id of the next block.
    pub next: i64,
}

impl Value for ProducerIdsValue {
    const WHAT: &'static str = "`producer-ids`";
}

/// The value of `leaders/<job>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderValue {
    /// Format of this value.
    pub format: u32,
    /// The broker that runs the job.
    pub node_id: i32,
    /// Its incarnation.
    pub incarnation: i64,
}

impl Value for LeaderValue {
    const WHAT: &'static str = "a job's leader";
}

/// One snapshot, as `snapshot` lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRef {
    /// The state is the one after this revision.
    pub revision: i64,
    /// Key of the manifest object.
    pub object: String,
    /// Length of the manifest object, in bytes.
    pub bytes: u64,
    /// CRC-64/NVME of the manifest object, in hex.
    pub checksum: String,
    /// The state's digest at that revision, in hex; every broker must have the same.
    pub digest: String,
}

/// The value of `snapshot`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotValue {
    /// Format of this value.
    pub format: u32,
    /// At most three, the newest first.
    pub snapshots: Vec<SnapshotRef>,
    /// Log records up to this revision may be gone. At most the second-newest snapshot's revision.
    pub trimmed_to: i64,
}

impl Value for SnapshotValue {
    const WHAT: &'static str = "`snapshot`";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_reads_as_golden_json() {
        let topic = TopicValue {
            format: VALUE_FORMAT,
            topic_id: Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
            partitions: 6,
            configs: BTreeMap::from([("retention.ms".to_owned(), "1000".to_owned())]),
            created_at_ms: 17,
            unknown: UnknownFields::new(),
            replication_factor: None,
        };
        let golden = r#"{"format":1,"topic_id":"01234567-89ab-cdef-0123-456789abcdef","partitions":6,"configs":{"retention.ms":"1000"},"created_at_ms":17}"#;
        assert_eq!(String::from_utf8(topic.encode()).unwrap(), golden);
        assert_eq!(TopicValue::decode(golden.as_bytes()).unwrap(), topic);
        let topic = TopicValue { replication_factor: Some(3), ..topic };
        let golden = golden.replace("17}", "17,\"replication_factor\":3}");
        assert_eq!(String::from_utf8(topic.encode()).unwrap(), golden);
        assert_eq!(TopicValue::decode(golden.as_bytes()).unwrap(), topic);
    }

    #[test]
    fn what_a_newer_build_has_added_is_passed_over_and_kept() {
        let newer = br#"{"format":1,"topic_id":"01234567-89ab-cdef-0123-456789abcdef","partitions":6,"configs":{},"created_at_ms":17,"colour":["blue"]}"#;
        let topic = TopicValue::decode(newer).unwrap();
        assert_eq!(topic.partitions, 6);
        let rewritten = TopicValue { partitions: 7, ..topic }.encode();
        assert!(String::from_utf8(rewritten).unwrap().contains(r#""colour":["blue"]"#));
        assert!(ProducerIdsValue::decode(br#"{"format":1,"next":5,"more":1}"#).is_ok());
        let broker = br#"{"format":1,"node_id":1,"process_id":"01234567-89ab-cdef-0123-456789abcdef","host":"h","port":1,"zone":"","version":"9.0.0","metrics_url":"","registered_at_ms":0,"draining":false,"more":{}}"#;
        assert!(BrokerValue::decode(broker).is_ok());
        assert!(ConfigsValue::decode(br#"{"format":1,"configs":{},"more":1}"#).is_ok());
    }

    #[test]
    fn newer_formats_and_garbage_are_errors() {
        for bad in [&br#"{"format":2,"next":5}"#[..], br#"{"next":5}"#, br#"{"format":1}"#, b"\xff\x00", b""]
        {
            assert!(ProducerIdsValue::decode(bad).is_err(), "{bad:?}");
        }
    }
}
