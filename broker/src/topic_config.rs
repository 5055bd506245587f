//! Topic configs: what they mean to the broker. Which there are, and what they take, is in the
//! metadata crate.

use std::collections::BTreeMap;

pub(crate) use strandline_metadata::topic_configs::{ConfigType, TOPIC_CONFIGS, check, find};
use strandline_storage::format::batch::Compression;

use crate::produce::TopicRules;
use crate::records::Target;

/// Who sets the timestamps of a topic's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimestampType {
    /// The producer.
    CreateTime,
    /// The broker that takes the batch.
    LogAppendTime,
}

/// The effective configs of a topic: what is set on it, else the cluster's dynamic default, else
/// the broker's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effective<'a> {
    pub(crate) topic: &'a BTreeMap<String, String>,
    pub(crate) dynamic: &'a BTreeMap<String, String>,
    pub(crate) broker: &'a BTreeMap<String, String>,
}

/// How a topic is compacted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Compaction {
    /// It is compacted when more than this part of its bytes has not been.
    pub(crate) min_dirty_ratio: f64,
    /// Records younger than this stay, in ms.
    pub(crate) min_lag_ms: i64,
    /// No record stays for longer than this without being compacted, in ms.
    pub(crate) max_lag_ms: i64,
    /// For how long tombstones stay after they were compacted, in ms.
    pub(crate) delete_retention_ms: i64,
    /// A little of it is compacted when it is as old as this, in ms.
    pub(crate) segment_ms: i64,
}

impl Effective<'_> {
    /// The value of a config, which is always one that [`check`] accepts.
    pub(crate) fn get(&self, name: &str) -> &str {
        let config = find(name);
        let by_synonym = config.and_then(|c| c.synonym).and_then(|s| self.dynamic.get(s));
        let set = self.topic.get(name).or(by_synonym).or_else(|| self.broker.get(name));
        set.map_or_else(|| config.map_or("", |c| c.default), String::as_str)
    }

    fn number(&self, name: &str) -> i64 {
        self.get(name).parse().unwrap_or_default()
    }

    /// Records older than this go, in ms; `None` for never.
    pub(crate) fn retention_ms(&self) -> Option<i64> {
        Some(self.number("retention.ms")).filter(|&ms| ms >= 0 && self.deletes())
    }

    /// How long records go into one segment, in ms: here, how far the records of one range may lie
    /// apart in time.
    pub(crate) fn segment_ms(&self) -> i64 {
        self.number("segment.ms").max(1)
    }

    /// A partition larger than this loses its oldest records; `None` for no limit.
    pub(crate) fn retention_bytes(&self) -> Option<u64> {
        u64::try_from(self.number("retention.bytes")).ok().filter(|_| self.deletes())
    }

    /// Whether old records may go.
    pub(crate) fn deletes(&self) -> bool {
        self.has_policy("delete")
    }

    /// What log compaction does with the topic; `None` if it is not compacted.
    pub(crate) fn compaction(&self) -> Option<Compaction> {
        self.has_policy("compact").then(|| Compaction {
            min_dirty_ratio: self.get("min.cleanable.dirty.ratio").parse().unwrap_or(1.0),
            min_lag_ms: self.number("min.compaction.lag.ms"),
            max_lag_ms: self.number("max.compaction.lag.ms"),
            delete_retention_ms: self.number("delete.retention.ms"),
            segment_ms: self.segment_ms(),
        })
    }

    fn has_policy(&self, policy: &str) -> bool {
        self.get("cleanup.policy").split(',').any(|p| p.trim() == policy)
    }

    /// What batches must be.
    pub(crate) fn rules(&self) -> TopicRules {
        TopicRules {
            max_message_bytes: usize::try_from(self.number("max.message.bytes")).unwrap_or_default(),
            timestamp_type: match self.get("message.timestamp.type") {
                "LogAppendTime" => TimestampType::LogAppendTime,
                _ => TimestampType::CreateTime,
            },
            before_max_ms: self.number("message.timestamp.before.max.ms"),
            after_max_ms: self.number("message.timestamp.after.max.ms"),
            limits_times: ["message.timestamp.before.max.ms", "message.timestamp.after.max.ms"]
                .into_iter()
                .any(|name| find(name).is_some_and(|c| c.default != self.get(name))),
            compacted: self.has_policy("compact"),
            compression: self.compression(),
        }
    }

    fn compression(&self) -> Option<Target> {
        let (codec, level) = match self.get("compression.type") {
            "uncompressed" => (Compression::None, None),
            "gzip" => (Compression::Gzip, Some("compression.gzip.level")),
            "snappy" => (Compression::Snappy, None),
            "lz4" => (Compression::Lz4, Some("compression.lz4.level")),
            "zstd" => (Compression::Zstd, Some("compression.zstd.level")),
            _ => return None,
        };
        let set = level.filter(|name| find(name).is_some_and(|c| c.default != self.get(name)));
        let level = set.and_then(|name| self.get(name).parse().ok());
        Some(Target { codec, level })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topic_wins_over_the_cluster_and_that_over_the_broker() {
        let one = |k: &str, v: &str| BTreeMap::from([(k.to_owned(), v.to_owned())]);
        let (topic, dynamic, broker) =
            (one("retention.ms", "1"), one("log.retention.ms", "2"), one("retention.ms", "3"));
        let none = BTreeMap::new();
        let get = |topic, dynamic, broker| Effective { topic, dynamic, broker }.retention_ms();
        assert_eq!(get(&topic, &dynamic, &broker), Some(1));
        assert_eq!(get(&none, &dynamic, &broker), Some(2));
        assert_eq!(get(&none, &none, &broker), Some(3));
        assert_eq!(get(&none, &none, &none), Some(604_800_000));
        assert_eq!(
            get(&one("cleanup.policy", "compact"), &none, &none),
            None,
            "compacted topics keep everything"
        );
    }
}
