//! Topic configs: which there are, what they take, what they mean here.
//!
//! A config is either honoured or, where it has no meaning on object storage, accepted so that existing tools go on
//! working, and documented as without effect. Everything else is refused; nothing is stored and ignored silently.

use std::collections::BTreeMap;

use strandline_storage::format::batch::Compression;

use crate::produce::TopicRules;

/// Who sets the timestamps of a topic's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimestampType {
    /// The producer.
    CreateTime,
    /// The broker that takes the batch.
    LogAppendTime,
}

/// The type of a config, as DescribeConfigs numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConfigType {
    Boolean = 1,
    String = 2,
    Int = 3,
    Long = 5,
    Double = 6,
    List = 7,
}

/// One topic config.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TopicConfig {
    pub(crate) name: &'static str,
    pub(crate) kind: ConfigType,
    /// Kafka's default; for those that the broker sets, the broker's value counts instead.
    pub(crate) default: &'static str,
    /// The broker config that gives the default, by Kafka's name.
    pub(crate) synonym: Option<&'static str>,
    pub(crate) help: &'static str,
    least: i64,
}

const NO_EFFECT: &str = "Accepted for compatibility and without effect: ";

const fn honoured(
    name: &'static str,
    kind: ConfigType,
    default: &'static str,
    synonym: &'static str,
    least: i64,
    help: &'static str,
) -> TopicConfig {
    TopicConfig { name, kind, default, synonym: Some(synonym), help, least }
}

const fn ignored(
    name: &'static str,
    kind: ConfigType,
    default: &'static str,
    help: &'static str,
) -> TopicConfig {
    TopicConfig { name, kind, default, synonym: None, help, least: i64::MIN }
}

/// Every topic config that is accepted, by name.
pub(crate) const TOPIC_CONFIGS: &[TopicConfig] = &[
    honoured(
        "cleanup.policy",
        ConfigType::List,
        "delete",
        "log.cleanup.policy",
        0,
        "delete: old records go by retention. compact: no record goes by retention, and none is compacted away yet: the log keeps every record.",
    ),
    honoured(
        "compression.type",
        ConfigType::String,
        "producer",
        "compression.type",
        0,
        "The codec that batches are stored in; producer keeps what the producer chose.",
    ),
    honoured(
        "max.message.bytes",
        ConfigType::Int,
        "1048588",
        "message.max.bytes",
        0,
        "The largest record batch, in bytes.",
    ),
    honoured(
        "message.timestamp.after.max.ms",
        ConfigType::Long,
        "3600000",
        "log.message.timestamp.after.max.ms",
        0,
        "How far a timestamp may lie in the future.",
    ),
    honoured(
        "message.timestamp.before.max.ms",
        ConfigType::Long,
        "9223372036854775807",
        "log.message.timestamp.before.max.ms",
        0,
        "How far a timestamp may lie in the past.",
    ),
    honoured(
        "message.timestamp.type",
        ConfigType::String,
        "CreateTime",
        "log.message.timestamp.type",
        0,
        "Whether records keep the producer's timestamps or get the time at which they are appended.",
    ),
    honoured(
        "retention.bytes",
        ConfigType::Long,
        "-1",
        "log.retention.bytes",
        -1,
        "A partition larger than this loses its oldest records; -1 for no limit.",
    ),
    honoured(
        "retention.ms",
        ConfigType::Long,
        "604800000",
        "log.retention.ms",
        -1,
        "Records older than this go; -1 for never.",
    ),
    ignored("delete.retention.ms", ConfigType::Long, "86400000", "logs are not compacted yet."),
    ignored(
        "file.delete.delay.ms",
        ConfigType::Long,
        "60000",
        "there are no log files; the broker's delete_delay_ms counts.",
    ),
    ignored(
        "flush.messages",
        ConfigType::Long,
        "9223372036854775807",
        "every record is durable before it is acknowledged.",
    ),
    ignored(
        "flush.ms",
        ConfigType::Long,
        "9223372036854775807",
        "every record is durable before it is acknowledged.",
    ),
    ignored("index.interval.bytes", ConfigType::Int, "4096", "there are no index files."),
    ignored("max.compaction.lag.ms", ConfigType::Long, "9223372036854775807", "logs are not compacted yet."),
    ignored("min.cleanable.dirty.ratio", ConfigType::Double, "0.5", "logs are not compacted yet."),
    ignored("min.compaction.lag.ms", ConfigType::Long, "0", "logs are not compacted yet."),
    ignored(
        "min.insync.replicas",
        ConfigType::Int,
        "1",
        "records are replicated by the object store; there are no replicas to wait for.",
    ),
    ignored("preallocate", ConfigType::Boolean, "false", "there are no log files."),
    ignored(
        "segment.bytes",
        ConfigType::Int,
        "1073741824",
        "there are no log segments; objects hold many partitions.",
    ),
    ignored("segment.index.bytes", ConfigType::Int, "10485760", "there are no index files."),
    ignored("segment.jitter.ms", ConfigType::Long, "0", "there are no log segments."),
    ignored("segment.ms", ConfigType::Long, "604800000", "there are no log segments."),
    ignored("unclean.leader.election.enable", ConfigType::Boolean, "false", "there are no leaders to elect."),
];

impl TopicConfig {
    /// What DescribeConfigs says about it.
    pub(crate) fn documentation(&self) -> String {
        if self.synonym.is_some() { self.help.to_owned() } else { format!("{NO_EFFECT}{}", self.help) }
    }
}

/// The config called `name`.
pub(crate) fn find(name: &str) -> Option<&'static TopicConfig> {
    TOPIC_CONFIGS.iter().find(|c| c.name == name)
}

/// Whether `value` is what the config called `name` takes; else a sentence why not.
pub(crate) fn check(name: &str, value: &str) -> Result<(), String> {
    let config = find(name).ok_or_else(|| format!("there is no topic config {name}"))?;
    let one_of = |allowed: &[&str]| {
        let fits = allowed.contains(&value);
        fits.then_some(()).ok_or_else(|| format!("{name}: {value:?} is not one of {}", allowed.join(", ")))
    };
    match name {
        "cleanup.policy" => {
            let fits =
                !value.is_empty() && value.split(',').all(|p| matches!(p.trim(), "delete" | "compact"));
            return fits
                .then_some(())
                .ok_or_else(|| format!("{name}: {value:?} is not delete, compact or both"));
        }
        "compression.type" => return one_of(&["producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"]),
        "message.timestamp.type" => return one_of(&["CreateTime", "LogAppendTime"]),
        _ => {}
    }
    let number = |most: i64| match value.parse::<i64>() {
        Ok(n) if n >= config.least && n <= most => Ok(()),
        Ok(n) => Err(format!("{name}: {n} is not within its range")),
        Err(_) => Err(format!("{name}: {value:?} is not a whole number")),
    };
    match config.kind {
        ConfigType::Boolean => one_of(&["true", "false"]),
        ConfigType::Int => number(i64::from(i32::MAX)),
        ConfigType::Long => number(i64::MAX),
        ConfigType::Double => {
            value.parse::<f64>().map(|_| ()).map_err(|_| format!("{name}: {value:?} is not a number"))
        }
        ConfigType::String | ConfigType::List => Ok(()),
    }
}

/// The effective configs of a topic: what is set on it, else the cluster's dynamic default, else the broker's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effective<'a> {
    pub(crate) topic: &'a BTreeMap<String, String>,
    pub(crate) dynamic: &'a BTreeMap<String, String>,
    pub(crate) broker: &'a BTreeMap<String, String>,
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

    /// A partition larger than this loses its oldest records; `None` for no limit.
    pub(crate) fn retention_bytes(&self) -> Option<u64> {
        u64::try_from(self.number("retention.bytes")).ok().filter(|_| self.deletes())
    }

    fn deletes(&self) -> bool {
        self.get("cleanup.policy").split(',').any(|p| p.trim() == "delete")
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
            compression: match self.get("compression.type") {
                "uncompressed" => Some(Compression::None),
                "gzip" => Some(Compression::Gzip),
                "snappy" => Some(Compression::Snappy),
                "lz4" => Some(Compression::Lz4),
                "zstd" => Some(Compression::Zstd),
                _ => None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_accepted_and_names_are_sorted() {
        for config in TOPIC_CONFIGS {
            assert_eq!(check(config.name, config.default), Ok(()));
        }
        let honoured = TOPIC_CONFIGS.iter().take_while(|c| c.synonym.is_some());
        assert!(honoured.map(|c| c.name).is_sorted());
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (name, value) in [
            ("cleanup.policy", "shred"),
            ("cleanup.policy", ""),
            ("compression.type", "brotli"),
            ("retention.ms", "-2"),
            ("retention.ms", "a day"),
            ("max.message.bytes", "3000000000"),
            ("preallocate", "maybe"),
            ("no.such.config", "1"),
        ] {
            let why = check(name, value).unwrap_err();
            assert!(why.contains(name), "{why}");
        }
    }

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
