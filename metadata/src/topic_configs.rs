//! Topic configs: which there are, what they take, what they default to.
//!
//! A config is either honoured or, where it has no meaning on object storage, accepted so that
//! existing tools go on working, and documented as without effect. Everything else is refused;
//! nothing is stored and ignored silently.

/// The type of a config, as DescribeConfigs numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigType {
    /// `true` or `false`.
    Boolean = 1,
    /// A text.
    String = 2,
    /// A number of 32 bits.
    Int = 3,
    /// A number of 64 bits.
    Long = 5,
    /// A number with a fraction.
    Double = 6,
    /// Texts, separated by commas.
    List = 7,
}

/// One topic config.
#[derive(Clone, Copy, Debug)]
pub struct TopicConfig {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub kind: ConfigType,
    /// Kafka's default; for those that the broker sets, the broker's value counts instead.
    pub default: &'static str,
    /// The broker config that gives the default, by Kafka's name.
    pub synonym: Option<&'static str>,
    /// What it means, in a sentence.
    pub help: &'static str,
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

/// `*`, or partitions and brokers as in `0:1,0:2`; empty for none.
fn is_throttled_list(value: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let is_pair = |text: &str| {
        text.trim()
            .split_once(':')
            .is_some_and(|(partition, broker)| is_number(partition) && is_number(broker))
    };
    matches!(value.trim(), "" | "*") || value.split(',').all(is_pair)
}

/// Every topic config that is accepted, by name.
pub const TOPIC_CONFIGS: &[TopicConfig] = &[
    honoured(
        "cleanup.policy",
        ConfigType::List,
        "delete",
        "log.cleanup.policy",
        0,
        "delete: old records go by retention. compact: of each key the last record stays, older ones are compacted away, and nothing goes by retention. Both: both.",
    ),
    honoured(
        "compression.gzip.level",
        ConfigType::Int,
        "-1",
        "compression.gzip.level",
        -1,
        "How hard gzip tries where compression.type is gzip: 1 to 9, or -1 for its default.",
    ),
    honoured(
        "compression.lz4.level",
        ConfigType::Int,
        "9",
        "compression.lz4.level",
        1,
        "How hard lz4 tries where compression.type is lz4: 1 to 17. 9 is its fast default; every other one is slower.",
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
        "compression.zstd.level",
        ConfigType::Int,
        "3",
        "compression.zstd.level",
        -131_072,
        "How hard zstd tries where compression.type is zstd: -131072 to 22.",
    ),
    honoured(
        "delete.retention.ms",
        ConfigType::Long,
        "86400000",
        "log.cleaner.delete.retention.ms",
        0,
        "How long a record without a value stays after log compaction has removed what it deletes.",
    ),
    honoured(
        "max.compaction.lag.ms",
        ConfigType::Long,
        "9223372036854775807",
        "log.cleaner.max.compaction.lag.ms",
        1,
        "How long a record stays at most without being compacted.",
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
        "min.cleanable.dirty.ratio",
        ConfigType::Double,
        "0.5",
        "log.cleaner.min.cleanable.ratio",
        0,
        "A partition is compacted when more than this part of its bytes was not yet; less than a mebibyte waits for segment.ms besides, an hour at most.",
    ),
    honoured(
        "min.compaction.lag.ms",
        ConfigType::Long,
        "0",
        "log.cleaner.min.compaction.lag.ms",
        0,
        "How long a record stays at least before it is compacted away.",
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
    honoured(
        "segment.ms",
        ConfigType::Long,
        "604800000",
        "log.roll.ms",
        1,
        "How far the records of one merged range may lie apart in time; an eighth of retention.ms if that is less.",
    ),
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
    ignored(
        "follower.replication.throttled.replicas",
        ConfigType::List,
        "",
        "records are replicated by the object store; there are no followers to slow down.",
    ),
    ignored("index.interval.bytes", ConfigType::Int, "4096", "there are no index files."),
    ignored(
        "leader.replication.throttled.replicas",
        ConfigType::List,
        "",
        "records are replicated by the object store; there are no leaders to slow down.",
    ),
    ignored("local.retention.bytes", ConfigType::Long, "-2", "all records are in the object store."),
    ignored("local.retention.ms", ConfigType::Long, "-2", "all records are in the object store."),
    ignored(
        "min.insync.replicas",
        ConfigType::Int,
        "1",
        "records are replicated by the object store; there are no replicas to wait for.",
    ),
    ignored("preallocate", ConfigType::Boolean, "false", "there are no log files."),
    ignored("remote.log.copy.disable", ConfigType::Boolean, "false", "there is no second tier to copy to."),
    ignored(
        "remote.log.delete.on.disable",
        ConfigType::Boolean,
        "false",
        "there is no second tier to delete from.",
    ),
    ignored(
        "remote.storage.enable",
        ConfigType::Boolean,
        "false",
        "there is no second tier: all records are in the object store as it is. Only false is taken.",
    ),
    ignored(
        "segment.bytes",
        ConfigType::Int,
        "1073741824",
        "there are no log segments; objects hold many partitions.",
    ),
    ignored("segment.index.bytes", ConfigType::Int, "10485760", "there are no index files."),
    ignored("segment.jitter.ms", ConfigType::Long, "0", "there are no log segments."),
    ignored("unclean.leader.election.enable", ConfigType::Boolean, "false", "there are no leaders to elect."),
];

impl TopicConfig {
    /// What DescribeConfigs says about it.
    pub fn documentation(&self) -> String {
        if self.synonym.is_some() { self.help.to_owned() } else { format!("{NO_EFFECT}{}", self.help) }
    }
}

/// The config called `name`.
pub fn find(name: &str) -> Option<&'static TopicConfig> {
    TOPIC_CONFIGS.iter().find(|c| c.name == name)
}

/// Whether `value` is what the config called `name` takes; else a sentence why not.
pub fn check(name: &str, value: &str) -> Result<(), String> {
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
        "remote.storage.enable" if value == "true" => {
            return Err(format!(
                "{name}: tiered storage is not enabled: all records are in the object store"
            ));
        }
        "leader.replication.throttled.replicas" | "follower.replication.throttled.replicas" => {
            let fits = is_throttled_list(value);
            return fits.then_some(()).ok_or_else(|| {
                format!("{name}: {value:?} is neither * nor a list of partition:broker separated by commas")
            });
        }
        _ => {}
    }
    let most_of = |most: i64| match name {
        "compression.gzip.level" => 9,
        "compression.lz4.level" => 17,
        "compression.zstd.level" => 22,
        _ => most,
    };
    let number = |most: i64| match value.parse::<i64>() {
        Ok(0) if name == "compression.gzip.level" => Err(format!("{name}: 0 is not within its range")),
        Ok(n) if n >= config.least && n <= most => Ok(()),
        Ok(n) => Err(format!("{name}: {n} is not within its range")),
        Err(_) => Err(format!("{name}: {value:?} is not a whole number")),
    };
    match config.kind {
        ConfigType::Long
            if name.starts_with("local.retention.") && value.parse::<i64>().is_ok_and(|n| n < -2) =>
        {
            Err(format!("{name}: {value} is not within its range"))
        }
        ConfigType::Boolean => one_of(&["true", "false"]),
        ConfigType::Int => number(most_of(i64::from(i32::MAX))),
        ConfigType::Long => number(i64::MAX),
        ConfigType::Double => {
            let number = value.parse::<f64>().map_err(|_| format!("{name}: {value:?} is not a number"))?;
            let fits = (0.0..=1.0).contains(&number);
            fits.then_some(()).ok_or_else(|| format!("{name}: {value} is not within 0 to 1"))
        }
        ConfigType::String | ConfigType::List => Ok(()),
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
    fn what_tools_bring_along_is_taken() {
        for (name, value) in [
            ("compression.gzip.level", "6"),
            ("compression.lz4.level", "17"),
            ("compression.zstd.level", "-131072"),
            ("local.retention.ms", "-2"),
            ("local.retention.bytes", "-2"),
            ("remote.storage.enable", "false"),
            ("remote.log.copy.disable", "true"),
            ("remote.log.delete.on.disable", "false"),
            ("leader.replication.throttled.replicas", "*"),
            ("leader.replication.throttled.replicas", "0:1,17:102"),
            ("follower.replication.throttled.replicas", ""),
        ] {
            assert_eq!(check(name, value), Ok(()), "{name} {value}");
        }
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
            ("min.cleanable.dirty.ratio", "1.5"),
            ("min.cleanable.dirty.ratio", "much"),
            ("max.compaction.lag.ms", "0"),
            ("preallocate", "maybe"),
            ("compression.gzip.level", "0"),
            ("compression.gzip.level", "10"),
            ("compression.lz4.level", "18"),
            ("compression.zstd.level", "23"),
            ("remote.storage.enable", "true"),
            ("leader.replication.throttled.replicas", "0"),
            ("follower.replication.throttled.replicas", "0:1,x:2"),
            ("no.such.config", "1"),
        ] {
            let why = check(name, value).unwrap_err();
            assert!(why.contains(name), "{why}");
        }
    }
}
