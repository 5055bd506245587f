//! The only place that builds or parses an etcd key.
//!
//! Everything of a cluster is under `/strandline/<cluster>/`. Names of topics are safe as they are:
//! Kafka allows only `[a-zA-Z0-9._-]` in them, so none can leave its prefix.

use std::fmt::Write as _;

use bytes::Bytes;
use uuid::Uuid;

use crate::backend::KeyRange;

/// Digits of a sequence number in a key, so that key order is number order.
const SEQUENCE_DIGITS: usize = 20;

/// The keys of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyspace {
    root: String,
}

/// What a key of the cluster stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// `cluster`: id, format version, feature level.
    Cluster,
    /// `brokers/<node id>`: a registration; its create revision is the incarnation.
    Broker(i32),
    /// `bucket`: which bucket holds the cluster's objects.
    Bucket,
    /// `commits`: put by every transaction of the log's writers, so that its version counts them.
    Commits,
    /// `heads/<incarnation>`: the last sequence number of that incarnation.
    Head(i64),
    /// `log/<incarnation>/<sequence>`: one record of the commit log.
    Log {
        /// The incarnation that wrote it.
        incarnation: i64,
        /// Its sequence number, from 1, without gaps.
        sequence: u64,
    },
    /// `topics/<name>`: id, partition count, configs.
    Topic(String),
    /// `snapshot`: the newest snapshots, and how far the log is trimmed.
    Snapshot,
    /// `producer-ids`: the next block.
    ProducerIds,
    /// `leaders/<job>`: the broker that runs a background job; leased.
    Leader(String),
    /// `watermarks/<topic id>`, and `watermarks/<topic id>/<n>` for the partitions after the first
    /// [`WATERMARKS_PER_KEY`](crate::limits::WATERMARKS_PER_KEY): how far each partition is.
    Watermarks {
        /// The topic's id.
        topic_id: Uuid,
        /// Which run of partitions, from 0.
        part: u32,
    },
    /// `groups/<group>`: a consumer group. Ids of groups are free text, so they are escaped.
    Group(String),
    /// `offsets/<group>/<topic>`, and `offsets/<group>/<topic>/<n>` for the partitions after the
    /// first [`OFFSETS_PER_KEY`](crate::limits::OFFSETS_PER_KEY): committed offsets.
    Offsets {
        /// The group.
        group: String,
        /// The topic's name.
        topic: String,
        /// Which run of partitions, from 0.
        part: u32,
    },
    /// `txns/<transactional id>`: the producer of a transactional id. Such ids are free text,
    /// escaped as those of groups.
    Transaction(String),
    /// `pending/<group>/<transactional id>`: offsets that are committed for a group if a
    /// transaction is.
    Pending {
        /// The group.
        group: String,
        /// The transactional id.
        transactional_id: String,
    },
    /// `open-transactions`: those that have been open the longest.
    OpenTransactions,
    /// `configs/brokers/<node id>`, or `configs/brokers/default`: dynamic broker configs.
    BrokerConfig(Option<i32>),
    /// `configs/groups/<group>`: configs of one group, which need not exist. Escaped, as in
    /// [`Key::Group`].
    GroupConfig(String),
    /// `configs/client-metrics/<name>`: a subscription to metrics of clients (KIP-714). Names are
    /// free text, too.
    ClientMetrics(String),
}

impl Keyspace {
    /// The keyspace of `cluster`, or `None` if the name is not of `[a-zA-Z0-9._-]`, or is empty or
    /// over 100 characters.
    pub fn new(cluster: &str) -> Option<Self> {
        let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let named = !cluster.is_empty() && cluster.len() <= 100 && cluster != "." && cluster != "..";
        (named && cluster.chars().all(safe)).then(|| Self { root: format!("/strandline/{cluster}/") })
    }

    fn under(&self, rest: &str) -> Bytes {
        format!("{}{rest}", self.root).into()
    }

    /// Every key of the cluster.
    pub fn all(&self) -> KeyRange {
        KeyRange::prefix(self.root.clone())
    }

    /// The key of `key`.
    pub fn encode(&self, key: &Key) -> Bytes {
        match key {
            Key::Cluster => self.under("cluster"),
            Key::Broker(node_id) => self.under(&format!("brokers/{node_id}")),
            Key::Bucket => self.under("bucket"),
            Key::Commits => self.under("commits"),
            Key::Head(incarnation) => self.under(&format!("heads/{incarnation}")),
            Key::Log { incarnation, sequence } => {
                self.under(&format!("log/{incarnation}/{sequence:0SEQUENCE_DIGITS$}"))
            }
            Key::Topic(name) => self.under(&format!("topics/{name}")),
            Key::Snapshot => self.under("snapshot"),
            Key::ProducerIds => self.under("producer-ids"),
            Key::Leader(job) => self.under(&format!("leaders/{job}")),
            Key::Watermarks { topic_id, part: 0 } => self.under(&format!("watermarks/{topic_id}")),
            Key::Watermarks { topic_id, part } => self.under(&format!("watermarks/{topic_id}/{part}")),
            Key::Group(group) => self.under(&format!("groups/{}", escape(group))),
            Key::Offsets { group, topic, part: 0 } => {
                self.under(&format!("offsets/{}/{topic}", escape(group)))
            }
            Key::Offsets { group, topic, part } => {
                self.under(&format!("offsets/{}/{topic}/{part}", escape(group)))
            }
            Key::OpenTransactions => self.under("open-transactions"),
            Key::Transaction(id) => self.under(&format!("txns/{}", escape(id))),
            Key::Pending { group, transactional_id } => {
                self.under(&format!("pending/{}/{}", escape(group), escape(transactional_id)))
            }
            Key::BrokerConfig(Some(node_id)) => self.under(&format!("configs/brokers/{node_id}")),
            Key::BrokerConfig(None) => self.under("configs/brokers/default"),
            Key::GroupConfig(group) => self.under(&format!("configs/groups/{}", escape(group))),
            Key::ClientMetrics(name) => self.under(&format!("configs/client-metrics/{}", escape(name))),
        }
    }

    /// What `key` stands for; `None` for a key that this version does not know.
    pub fn parse(&self, key: &[u8]) -> Option<Key> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(&self.root)?;
        match rest.split_once('/') {
            None => match rest {
                "cluster" => Some(Key::Cluster),
                "bucket" => Some(Key::Bucket),
                "commits" => Some(Key::Commits),
                "snapshot" => Some(Key::Snapshot),
                "open-transactions" => Some(Key::OpenTransactions),
                "producer-ids" => Some(Key::ProducerIds),
                _ => None,
            },
            Some(("brokers", node_id)) => node_id.parse().ok().map(Key::Broker),
            Some(("heads", incarnation)) => incarnation.parse().ok().map(Key::Head),
            Some(("log", tail)) => {
                let (incarnation, sequence) = tail.split_once('/')?;
                Some(Key::Log { incarnation: incarnation.parse().ok()?, sequence: sequence.parse().ok()? })
            }
            Some(("topics", name)) => Some(Key::Topic(name.to_owned())),
            Some(("leaders", job)) => Some(Key::Leader(job.to_owned())),
            Some(("watermarks", tail)) => {
                let (topic_id, part) = match tail.split_once('/') {
                    None => (tail, 0),
                    Some((topic_id, part)) => (topic_id, part.parse().ok()?),
                };
                Some(Key::Watermarks { topic_id: topic_id.parse().ok()?, part })
            }
            Some(("groups", group)) => unescape(group).map(Key::Group),
            Some(("offsets", tail)) => {
                let (group, rest) = tail.split_once('/')?;
                let (topic, part) = match rest.split_once('/') {
                    None => (rest, 0),
                    Some((topic, part)) => (topic, part.parse().ok()?),
                };
                Some(Key::Offsets { group: unescape(group)?, topic: topic.to_owned(), part })
            }
            Some(("txns", id)) => unescape(id).map(Key::Transaction),
            Some(("pending", tail)) => {
                let (group, id) = tail.split_once('/')?;
                Some(Key::Pending { group: unescape(group)?, transactional_id: unescape(id)? })
            }
            Some(("configs", tail)) => match tail.split_once('/')? {
                ("brokers", "default") => Some(Key::BrokerConfig(None)),
                ("brokers", node_id) => node_id.parse().ok().map(|id| Key::BrokerConfig(Some(id))),
                ("groups", group) => unescape(group).map(Key::GroupConfig),
                ("client-metrics", name) => unescape(name).map(Key::ClientMetrics),
                _ => None,
            },
            Some(_) => None,
        }
    }

    /// Every registration.
    pub fn brokers(&self) -> KeyRange {
        KeyRange::prefix(self.under("brokers/"))
    }

    /// Every topic.
    pub fn topics(&self) -> KeyRange {
        KeyRange::prefix(self.under("topics/"))
    }

    /// Every dynamic config.
    pub fn configs(&self) -> KeyRange {
        KeyRange::prefix(self.under("configs/"))
    }

    /// Every watermark.
    pub fn watermarks(&self) -> KeyRange {
        KeyRange::prefix(self.under("watermarks/"))
    }

    /// Every group.
    pub fn groups(&self) -> KeyRange {
        KeyRange::prefix(self.under("groups/"))
    }

    /// Every committed offset.
    pub fn offsets(&self) -> KeyRange {
        KeyRange::prefix(self.under("offsets/"))
    }

    /// Every committed offset of one group.
    pub fn offsets_of(&self, group: &str) -> KeyRange {
        KeyRange::prefix(self.under(&format!("offsets/{}/", escape(group))))
    }

    /// Every offset that a transaction may commit for a group.
    pub fn pending_of(&self, group: &str) -> KeyRange {
        KeyRange::prefix(self.under(&format!("pending/{}/", escape(group))))
    }

    /// Brokers, bucket, cluster, commits, configs, groups, heads, leaders: all that lies before the
    /// log.
    pub fn brokers_to_leaders(&self) -> KeyRange {
        KeyRange::Span { start: self.under("brokers/"), end: self.under("log/") }
    }

    /// All that lies behind the log, in the order of keys: offsets, pending ones and producer ids,
    /// snapshots, topics and transactions, watermarks. Each range begins where the one before it
    /// ends, so that nothing lies between two.
    pub fn behind_the_log(&self) -> [KeyRange; 4] {
        let span = |start, end| KeyRange::Span { start: self.under(start), end: self.under(end) };
        [
            span("offsets/", "snapshot"),
            span("snapshot", "topics/"),
            span("topics/", "watermarks/"),
            span("watermarks/", "watermarks0"),
        ]
    }

    /// Every record of the log.
    pub fn log(&self) -> KeyRange {
        KeyRange::prefix(self.under("log/"))
    }

    /// The records of one incarnation with sequence numbers from `first` to below `end`.
    pub fn log_span(&self, incarnation: i64, first: u64, end: u64) -> KeyRange {
        KeyRange::Span {
            start: self.encode(&Key::Log { incarnation, sequence: first }),
            end: self.encode(&Key::Log { incarnation, sequence: end }),
        }
    }
}

/// Writes free text so that it cannot leave its place in a key: what is not a letter, a digit, `.`,
/// `_` or `-` becomes `%` and two hex digits. The empty text is `%`.
fn escape(text: &str) -> String {
    if text.is_empty() {
        return "%".to_owned();
    }
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-') {
            escaped.push(char::from(byte));
        } else {
            // Writing into a string cannot fail.
            let _ = write!(escaped, "%{byte:02x}");
        }
    }
    escaped
}

fn unescape(escaped: &str) -> Option<String> {
    if escaped == "%" {
        return Some(String::new());
    }
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |b: Option<u8>| char::from(b?).to_digit(16).and_then(|d| u8::try_from(d).ok());
            bytes.push(digit(rest.next())? * 16 + digit(rest.next())?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_round_trip() {
        let keys = Keyspace::new("prod-1").unwrap();
        for key in [
            Key::Cluster,
            Key::Broker(3),
            Key::Bucket,
            Key::Commits,
            Key::Head(77),
            Key::Log { incarnation: 77, sequence: 9 },
            Key::Topic("a.b_c-d".into()),
            Key::Snapshot,
            Key::ProducerIds,
            Key::Leader("jobs".into()),
            Key::BrokerConfig(None),
            Key::BrokerConfig(Some(2)),
            Key::GroupConfig("a/b default".into()),
            Key::ClientMetrics("../brokers/default".into()),
            Key::Watermarks { topic_id: Uuid::from_u128(7), part: 0 },
            Key::Watermarks { topic_id: Uuid::from_u128(7), part: 3 },
            Key::Group("plain-group.1".into()),
            Key::Group("a/b c%\u{e4}\n".into()),
            Key::Group(String::new()),
            Key::Offsets { group: "g/../x".into(), topic: "t".into(), part: 0 },
            Key::Offsets { group: String::new(), topic: "t".into(), part: 7 },
        ] {
            assert_eq!(keys.parse(&keys.encode(&key)), Some(key));
        }
        assert_eq!(
            &keys.encode(&Key::Log { incarnation: 12, sequence: 34 })[..],
            b"/strandline/prod-1/log/12/00000000000000000034"
        );
        assert_eq!(&keys.encode(&Key::Group("a/b%".into()))[..], b"/strandline/prod-1/groups/a%2fb%25");
        assert_eq!(keys.parse(b"/strandline/prod-1/groups/%2"), None);
        assert_eq!(keys.parse(b"/strandline/prod-1/from-the-future/1"), None);
        assert_eq!(keys.parse(b"/strandline/prod-2/cluster"), None);
    }

    #[test]
    fn two_ranges_have_every_key_but_the_log() {
        let keys = Keyspace::new("prod-1").unwrap();
        let [offsets, _, topics, watermarks] = keys.behind_the_log();
        let (before, behind) = (keys.brokers_to_leaders(), offsets.to(watermarks.clone()));
        let (group, topic, name) = ("%ff".to_owned(), "zzz".to_owned(), "x".to_owned());
        for (key, place) in [
            (Key::Broker(0), "before"),
            (Key::Bucket, "before"),
            (Key::Cluster, "before"),
            (Key::Commits, "before"),
            (Key::BrokerConfig(None), "before"),
            (Key::GroupConfig(group.clone()), "before"),
            (Key::ClientMetrics(name.clone()), "before"),
            (Key::Group(group.clone()), "before"),
            (Key::Head(9), "before"),
            (Key::Leader(name), "before"),
            (Key::Log { incarnation: 1, sequence: 1 }, "nowhere"),
            (Key::Offsets { group, topic: topic.clone(), part: 1 }, "behind"),
            (Key::ProducerIds, "behind"),
            (Key::Snapshot, "behind"),
            (Key::Topic(topic), "behind"),
            (Key::Watermarks { topic_id: Uuid::max(), part: 9 }, "behind"),
        ] {
            let bytes = keys.encode(&key);
            let found = match (before.contains(&bytes), behind.contains(&bytes)) {
                (true, false) => "before",
                (false, true) => "behind",
                _ => "nowhere",
            };
            assert_eq!(found, place, "{key:?}");
        }
        let few = topics.to(watermarks);
        assert!(few.contains(&keys.encode(&Key::Topic("a".into()))));
        assert!(!few.contains(&keys.encode(&Key::Snapshot)));
    }

    #[test]
    fn a_cluster_name_cannot_leave_its_prefix() {
        for bad in ["", ".", "..", "a/b", "a b", &"x".repeat(101)] {
            assert_eq!(Keyspace::new(bad), None, "{bad}");
        }
    }
}
