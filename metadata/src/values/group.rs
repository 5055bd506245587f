//! The values of `groups/…` and `offsets/…`: what must survive the coordinator of a consumer group.
//!
//! What is not here dies with the coordinator and is made anew by the next one: session and
//! rebalance timers, members that were told their id and have not joined with it, requests that
//! wait.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use super::Value;

use crate::limits::STORED_PARTITION;

/// The value of `groups/<group>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupValue {
    /// Format of this value.
    pub format: u32,
    /// Incarnation of the coordinator that wrote it.
    pub writer: i64,
    /// Number of the write among the writer's own, so that no two writes are alike: whether a write
    /// whose answer was lost has happened is seen by the value.
    pub write: u64,
    /// When the group came into its state, ms since 1970.
    pub state_since_ms: i64,
    /// The group itself, by its protocol.
    pub group: GroupState,
}

impl Value for GroupValue {
    const WHAT: &'static str = "a group";
}

/// A group, by the protocol that its members speak.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupState {
    /// The classic protocol: a member assigns.
    Classic(ClassicGroupValue),
    /// The protocol of KIP-848: the coordinator assigns.
    Consumer(ConsumerGroupValue),
}

/// Where a classic group stands. A rebalance that gathers its members is not stored: until it is
/// through, the group is what it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassicStateValue {
    /// It has no members.
    Empty,
    /// A generation began; its leader has not sent the assignment yet.
    CompletingRebalance,
    /// Every member has its assignment.
    Stable,
}

/// A group of the classic protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassicGroupValue {
    /// Where it stands.
    pub state: ClassicStateValue,
    /// What kind of group it is: `consumer`, `connect`, or what its members call it; empty before
    /// the first member.
    pub protocol_type: String,
    /// Number of the generation; 0 before the first.
    pub generation: i32,
    /// The assignor that the members agreed on.
    pub protocol: Option<String>,
    /// Id of the member that assigns.
    pub leader: Option<String>,
    /// The members, by id.
    pub members: BTreeMap<String, ClassicMemberValue>,
}

/// A member of a classic group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassicMemberValue {
    /// Its `group.instance.id`, if it is a static member (KIP-345).
    pub instance_id: Option<String>,
    /// The client id that it named.
    pub client_id: String,
    /// The address that it connected from.
    pub client_host: String,
    /// It is gone if it is silent for so long, in ms.
    pub session_timeout_ms: i32,
    /// How long a rebalance waits for it, in ms.
    pub rebalance_timeout_ms: i32,
    /// The assignors that it knows, the favourite first, with what it says to each.
    pub protocols: Vec<ProtocolValue>,
    /// What the leader assigned to it; empty before.
    pub assignment: Blob,
}

/// An assignor that a member knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtocolValue {
    /// Its name.
    pub name: String,
    /// What the member says to it: for consumers, its subscription.
    pub metadata: Blob,
}

/// A group of the protocol of KIP-848.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerGroupValue {
    /// Group epoch: moves when members, subscriptions or the topics subscribed to change.
    pub epoch: i32,
    /// The group epoch that the target assignment was made for.
    pub assignment_epoch: i32,
    /// The topics subscribed to as the group epoch saw them: id and number of partitions.
    pub topics: BTreeMap<Uuid, u32>,
    /// The members, by id.
    pub members: BTreeMap<String, ConsumerMemberValue>,
}

/// Where a member stands on its way to its target assignment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberStateValue {
    /// It has all of its target assignment.
    #[default]
    Stable,
    /// It must give partitions up before it gets on.
    UnrevokedPartitions,
    /// It waits for partitions that others have not given up yet.
    UnreleasedPartitions,
}

/// A member of a group of KIP-848.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerMemberValue {
    /// Its `group.instance.id`, if it is a static member.
    pub instance_id: Option<String>,
    /// Its rack.
    pub rack_id: Option<String>,
    /// The client id that it named.
    pub client_id: String,
    /// The address that it connected from.
    pub client_host: String,
    /// How long it may take to give partitions up, in ms.
    pub rebalance_timeout_ms: i32,
    /// The topics that it subscribes to, by name.
    pub subscribed_topics: BTreeSet<String>,
    /// The pattern of topic names that it subscribes to.
    pub subscribed_regex: Option<String>,
    /// The assignor that it wants.
    pub server_assignor: Option<String>,
    /// Member epoch; −2 for a static member that is away.
    pub epoch: i32,
    /// The member epoch before.
    pub previous_epoch: i32,
    /// Where it stands.
    pub state: MemberStateValue,
    /// What it may consume now.
    pub assigned: Assignment,
    /// What it was told to give up and has not given up yet.
    pub pending_revocation: Assignment,
    /// What it is to have.
    pub target: Assignment,
    /// Set for a member that speaks the classic protocol.
    pub classic: Option<ClassicInConsumerValue>,
}

/// What is known of a member that speaks the classic protocol in a group of KIP-848.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassicInConsumerValue {
    /// It is gone if it is silent for so long, in ms.
    pub session_timeout_ms: i32,
    /// The assignors that it knows, the favourite first, with its subscription.
    pub protocols: Vec<ProtocolValue>,
}

/// Partitions by topic id.
pub type Assignment = BTreeMap<Uuid, PartitionSet>;

/// Partitions of one topic, written as `0-3,7`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionSet(pub BTreeSet<u32>);

impl FromIterator<u32> for PartitionSet {
    fn from_iter<I: IntoIterator<Item = u32>>(partitions: I) -> Self {
        Self(partitions.into_iter().collect())
    }
}

impl Serialize for PartitionSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::new();
        let mut rest = self.0.iter().copied().peekable();
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if(|n| *n == last + 1) {
                last = next;
            }
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(&first.to_string());
            if last > first {
                text.push('-');
                text.push_str(&last.to_string());
            }
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for PartitionSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || D::Error::custom(format!("{text:?} is no set of partitions"));
        let mut partitions = BTreeSet::new();
        for part in text.split(',').filter(|p| !p.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: u32 = first.parse().map_err(|_| wrong())?;
            let last: u32 = last.parse().map_err(|_| wrong())?;
            if last > STORED_PARTITION {
                return Err(wrong());
            }
            partitions.extend(first..=last);
        }
        Ok(Self(partitions))
    }
}

/// Bytes that only clients understand, in base64.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blob(pub Bytes);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(&text).map(|bytes| Self(bytes.into())).map_err(D::Error::custom)
    }
}

/// The value of `offsets/<group>/<topic>`, and of `offsets/<group>/<topic>/<n>` for the partitions
/// from n times [`OFFSETS_PER_KEY`](crate::limits::OFFSETS_PER_KEY) on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetsValue {
    /// Format of this value.
    pub format: u32,
    /// Incarnation of the coordinator that wrote it.
    pub writer: i64,
    /// Number of the write among the writer's own.
    pub write: u64,
    /// The topic that was committed for. Under another topic of the same name, nothing is
    /// committed.
    pub topic_id: Uuid,
    /// By partition.
    pub partitions: BTreeMap<u32, CommittedOffset>,
}

impl Value for OffsetsValue {
    const WHAT: &'static str = "committed offsets";
}

/// What a group committed for one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommittedOffset {
    /// The next offset that the group will read.
    pub offset: i64,
    /// Leader epoch of the record before it; −1 if the client did not say.
    #[serde(default = "no_epoch", skip_serializing_if = "is_no_epoch")]
    pub leader_epoch: i32,
    /// Wall clock of the coordinator at the commit, ms since 1970.
    pub time_ms: i64,
    /// What the client stored with it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub metadata: String,
    /// When it expires, ms since 1970, if the client asked for a time of its own (versions up to 4
    /// of OffsetCommit).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<i64>,
    /// A revision before the one that wrote it, from feature level 5 on: what a transaction commits
    /// takes the place of older commits only.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub after: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

fn no_epoch() -> i32 {
    -1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_no_epoch(epoch: &i32) -> bool {
    *epoch < 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::VALUE_FORMAT;

    #[test]
    fn a_classic_group_reads_as_golden_json() {
        let member = ClassicMemberValue {
            instance_id: None,
            client_id: "app".to_owned(),
            client_host: "/10.0.0.1".to_owned(),
            session_timeout_ms: 45_000,
            rebalance_timeout_ms: 300_000,
            protocols: vec![ProtocolValue {
                name: "range".to_owned(),
                metadata: Blob(Bytes::from_static(&[0, 1])),
            }],
            assignment: Blob(Bytes::from_static(&[2])),
        };
        let value = GroupValue {
            format: VALUE_FORMAT,
            writer: 7,
            write: 3,
            state_since_ms: 17,
            group: GroupState::Classic(ClassicGroupValue {
                state: ClassicStateValue::Stable,
                protocol_type: "consumer".to_owned(),
                generation: 2,
                protocol: Some("range".to_owned()),
                leader: Some("app-1".to_owned()),
                members: BTreeMap::from([("app-1".to_owned(), member)]),
            }),
        };
        let golden = r#"{"format":1,"writer":7,"write":3,"state_since_ms":17,"group":{"classic":{"state":"stable","protocol_type":"consumer","generation":2,"protocol":"range","leader":"app-1","members":{"app-1":{"instance_id":null,"client_id":"app","client_host":"/10.0.0.1","session_timeout_ms":45000,"rebalance_timeout_ms":300000,"protocols":[{"name":"range","metadata":"AAE="}],"assignment":"Ag=="}}}}}"#;
        assert_eq!(String::from_utf8(value.encode()).unwrap(), golden);
        assert_eq!(GroupValue::decode(golden.as_bytes()).unwrap(), value);
    }

    #[test]
    fn a_consumer_group_round_trips_with_partitions_as_ranges() {
        let topic = Uuid::from_u128(5);
        let member = ConsumerMemberValue {
            epoch: 4,
            assigned: BTreeMap::from([(topic, [0, 1, 2, 7, 9, 10].into_iter().collect())]),
            ..ConsumerMemberValue::default()
        };
        let value = GroupValue {
            format: VALUE_FORMAT,
            writer: 7,
            write: 3,
            state_since_ms: 17,
            group: GroupState::Consumer(ConsumerGroupValue {
                epoch: 4,
                members: BTreeMap::from([("m".to_owned(), member)]),
                ..ConsumerGroupValue::default()
            }),
        };
        let json = String::from_utf8(value.encode()).unwrap();
        assert!(json.contains(r#""00000000-0000-0000-0000-000000000005":"0-2,7,9-10""#), "{json}");
        assert_eq!(GroupValue::decode(json.as_bytes()).unwrap(), value);
    }

    #[test]
    fn offsets_read_as_golden_json_and_leave_out_what_is_not_there() {
        let plain = CommittedOffset {
            after: 0,
            offset: 5,
            leader_epoch: -1,
            time_ms: 9,
            metadata: String::new(),
            expires_ms: None,
        };
        let full = CommittedOffset {
            leader_epoch: 0,
            metadata: "x".to_owned(),
            expires_ms: Some(8),
            ..plain.clone()
        };
        let value = OffsetsValue {
            format: VALUE_FORMAT,
            writer: 7,
            write: 3,
            topic_id: Uuid::nil(),
            partitions: BTreeMap::from([(0, plain), (1, full)]),
        };
        let golden = r#"{"format":1,"writer":7,"write":3,"topic_id":"00000000-0000-0000-0000-000000000000","partitions":{"0":{"offset":5,"time_ms":9},"1":{"offset":5,"leader_epoch":0,"time_ms":9,"metadata":"x","expires_ms":8}}}"#;
        assert_eq!(String::from_utf8(value.encode()).unwrap(), golden);
        assert_eq!(OffsetsValue::decode(golden.as_bytes()).unwrap(), value);
    }

    #[test]
    fn a_lying_set_of_partitions_is_refused() {
        for bad in ["\"0-4294967295\"", "\"x\"", "\"3-\"", "3", "\"-1\""] {
            assert!(serde_json::from_str::<PartitionSet>(bad).is_err(), "{bad}");
        }
        assert_eq!(serde_json::from_str::<PartitionSet>("\"\"").unwrap(), PartitionSet::default());
    }
}
