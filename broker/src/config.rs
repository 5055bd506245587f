//! The broker's settings: a table, of which [`strandline_settings`] makes flags, variables, a file
//! and `--help`, and what the values have to be.

mod memory;
mod table;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use strandline_metadata::backend::etcd::EtcdConfig;
pub use strandline_settings::ConfigError;
use strandline_settings::{LogConfig, Values, host_and_port};
use strandline_storage::store::StoreConfig;

use crate::group_config::GroupSettings;
use crate::limits::{MERGED_OBJECT_BYTES, PUT_SAVINGS};

pub use self::memory::{MemoryBudgets, available};
pub use self::table::SETTINGS;

/// Where the order of commits is kept.
#[derive(Clone, Debug)]
pub enum MetadataConfig {
    /// In etcd.
    Etcd(EtcdConfig),
    /// In this process.
    Embedded(EmbeddedConfig),
}

/// How metadata are kept in this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EmbeddedConfig {
    /// The journal file; without it they are gone when the process ends.
    pub journal: Option<PathBuf>,
    /// Where they answer as etcd does, for reading: a loopback address.
    pub listen: Option<SocketAddr>,
}

/// Host and port that clients are told to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertised {
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// The write path's settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProduceConfig {
    /// A buffer of this size is flushed, in bytes.
    pub flush_bytes: usize,
    /// Longest time a record waits for its flush while a PUT slot is free.
    pub linger: Duration,
    /// PUTs per second that flushes before the linger may use.
    pub put_budget_per_s: f64,
    /// How many PUTs the budget saves up.
    pub put_budget_burst: f64,
    /// PUTs in flight.
    pub puts_in_flight: usize,
    /// Bytes that are buffered or in flight, over all connections.
    pub buffer_bytes: usize,
}

/// How small objects are merged into large ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeConfig {
    /// How long what was flushed stays as it is.
    pub interval: Duration,
    /// Bytes that are rewritten in a second, at most.
    pub bytes_per_s: u64,
    /// GETs for what is rewritten in a second, at most.
    pub gets_per_s: u64,
    /// Objects that are written in a second, at most.
    pub puts_per_s: u64,
    /// Bytes that a merge may hold in memory.
    pub memory_bytes: u64,
    /// Bytes that log compaction may hold beside the merge that it ends with.
    pub compaction_bytes: u64,
}

impl MergeConfig {
    /// Most bytes of a merged object, which is in memory beside what it is made of.
    pub fn object_bytes(&self) -> u64 {
        (self.memory_bytes / 4).min(MERGED_OBJECT_BYTES)
    }

    /// Most bytes that are read at once to be merged, unless a single range is larger. What is in
    /// flight beside them, half of it in vain at most, has the place of the object to come.
    pub fn load_bytes(&self) -> u64 {
        self.memory_bytes - self.object_bytes()
    }

    /// Bytes that the newest offsets of keys may take: 31 each.
    pub(crate) fn key_bytes(&self) -> u64 {
        self.compaction_bytes / 4 * 3
    }

    /// Bytes that marks of superseded records may take, one bit each.
    pub(crate) fn mark_bytes(&self) -> u64 {
        // They grow by doubling.
        self.compaction_bytes / 8
    }
}

/// What new topics and unset topic configs default to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicDefaults {
    /// Create a topic when a client asks for metadata of one that does not exist.
    pub auto_create: bool,
    /// Default number of partitions of a new topic.
    pub partitions: u32,
    /// The broker's value for each topic config that it may set, by the topic config's name.
    pub configs: BTreeMap<String, String>,
}

/// What is configured of consumer groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupConfig {
    /// What the protocols are told.
    pub(crate) settings: GroupSettings,
    /// Most groups coordinated by one broker.
    pub(crate) max_groups: usize,
    /// How long committed offsets stay after the group was left, in ms.
    pub(crate) offsets_retention_ms: i64,
    /// How often it is looked whether offsets have expired.
    pub(crate) offsets_check_interval: Duration,
    /// Longest metadata of a committed offset.
    pub(crate) offset_metadata_max_bytes: usize,
}

/// The validated configuration of a broker.
#[derive(Clone, Debug)]
pub struct Config {
    /// The broker's node id.
    pub node_id: i32,
    /// Name of the cluster: its prefix in etcd.
    pub cluster: String,
    /// Address that Kafka clients connect to.
    pub listen: String,
    /// What they are told; the listen address if absent.
    pub advertised: Option<Advertised>,
    /// Address of metrics and health.
    pub http_listen: String,
    /// Availability zone.
    pub zone: String,
    /// Where the order of commits is kept.
    pub metadata: MetadataConfig,
    /// Where objects are kept.
    pub store: StoreConfig,
    /// The write path.
    pub produce: ProduceConfig,
    /// Merging.
    pub merge: MergeConfig,
    /// The memory that is shared out.
    pub memory: MemoryBudgets,
    /// Bytes of the cache.
    pub cache_bytes: u64,
    /// Bytes of GETs in flight.
    pub read_in_flight_bytes: u64,
    /// Largest request, in bytes.
    pub max_request_bytes: usize,
    /// Bytes of requests that are being read, over all connections.
    pub request_memory_bytes: usize,
    /// Bytes of responses that are ready or being written, over all connections.
    pub response_memory_bytes: usize,
    /// Largest fetch response, in bytes.
    pub fetch_max_bytes: usize,
    /// Fetch sessions that are kept.
    pub fetch_sessions: usize,
    /// Connections at a time.
    pub max_connections: usize,
    /// Idle time after which a connection is closed.
    pub connection_idle: Duration,
    /// The registration ends so long after the broker's last sign of life.
    pub lease_ttl_s: i64,
    /// Topic defaults.
    pub topics: TopicDefaults,
    /// Consumer groups.
    pub groups: GroupConfig,
    /// Offset ranges that the state may have before producers are refused.
    pub max_state_ranges: u64,
    /// Partitions that the cluster may have before no more are created.
    pub max_partitions: u64,
    /// Idempotent producers that the state may remember before new ones are refused.
    pub max_producers: u64,
    /// Transactional ids that may have a producer before new ones are refused.
    pub max_transactional_ids: usize,
    /// The longest time-out of a transaction that a producer may ask for, in ms.
    pub transaction_max_timeout_ms: i32,
    /// Idle time after which a transactional id is forgotten.
    pub transactional_id_expiration: Duration,
    /// Write a snapshot after this many log records.
    pub snapshot_records: u64,
    /// Write a snapshot after this many bytes of log.
    pub snapshot_log_bytes: u64,
    /// Write a snapshot after this many revisions of etcd.
    pub snapshot_revisions: i64,
    /// Write a snapshot after this time, if anything waits for one.
    pub snapshot_interval: Duration,
    /// How long snapshots stay that are not among the newest.
    pub snapshot_retention: Duration,
    /// etcd's quota, where it does not say so itself, in bytes.
    pub etcd_quota_bytes: u64,
    /// Interval of the background jobs.
    pub job_interval: Duration,
    /// Interval of retention's look at all partitions.
    pub retention_interval: Duration,
    /// How long a dead object stays after it is certain that nobody plans with it.
    pub delete_delay: Duration,
    /// Idle time after which an idempotent producer is forgotten.
    pub producer_id_expiration: Duration,
    /// How long a leaving broker serves on before it closes connections.
    pub drain: Duration,
    /// What is logged, and how.
    pub log: LogConfig,
    /// Seed of everything random; from the operating system if absent.
    pub seed: Option<u64>,
    /// What is logged at start: each key with its value, secrets masked.
    pub effective: Vec<(String, String)>,
}

/// What the command line asks for.
pub type Parsed = strandline_settings::Parsed<Box<Config>>;

/// Reads flags (without the program's name), environment and file. `environment` looks a variable
/// up. The machine has plenty of memory, so that nothing depends on it.
pub fn parse(
    flags: impl IntoIterator<Item = String>,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Parsed, ConfigError> {
    parse_on(memory::DEFAULT_MEMORY_BYTES, flags, environment)
}

/// The same on a machine that lets this process use so many bytes of memory.
pub fn parse_on(
    available_bytes: u64,
    flags: impl IntoIterator<Item = String>,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Parsed, ConfigError> {
    let after_help = [table::AUDIT_HELP, &memory::help(available_bytes), table::SOURCES_HELP].join("\n\n");
    let program = strandline_settings::Program { after_help: Cow::Owned(after_help), ..table::PROGRAM };
    program.read(flags, environment)?.try_map(|values| validate(&values, available_bytes).map(Box::new))
}

fn validate(values: &Values, available_bytes: u64) -> Result<Config, ConfigError> {
    let memory = MemoryBudgets::of(values, available_bytes)?;
    let budget = |key| usize::try_from(memory.bytes(key)).unwrap_or(usize::MAX);
    let (cluster, _) = values.cluster()?;
    let log = values.log()?;
    let put_budget_per_s = values.within("put_budget_per_s", 0.0, 100_000.0)?;
    let mut produce = ProduceConfig {
        flush_bytes: values.within("flush_bytes", 1024, 64 << 20)?,
        linger: values.millis("linger_ms")?,
        put_budget_per_s,
        put_budget_burst: match values.optional("put_budget_burst") {
            Some(_) => values.within("put_budget_burst", 1.0, 1e9)?,
            None => (put_budget_per_s * PUT_SAVINGS.as_secs_f64()).max(1.0),
        },
        puts_in_flight: values.within("puts_in_flight", 1, 64)?,
        buffer_bytes: budget("buffer_bytes"),
    };
    let mut max_request_bytes = values.within("max_request_bytes", 1024, 1 << 30)?;
    if values.optional("buffer_bytes").is_none() {
        max_request_bytes = max_request_bytes.min(produce.buffer_bytes);
        produce.flush_bytes = produce.flush_bytes.min(produce.buffer_bytes / 4);
    }
    if produce.buffer_bytes < max_request_bytes {
        return Err(ConfigError::new(
            "buffer_bytes: must not be below max_request_bytes, or the largest request would never fit",
        ));
    }
    if produce.buffer_bytes < 2 * produce.flush_bytes {
        return Err(ConfigError::new(
            "buffer_bytes: must be at least twice flush_bytes, or nothing is gathered while a PUT is under way",
        ));
    }
    Ok(Config {
        node_id: values.within("node_id", 0, i32::MAX)?,
        cluster,
        listen: values.address("listen", "0.0.0.0:9092")?,
        advertised: values.optional("advertised").map(|text| advertised(&text)).transpose()?,
        http_listen: values.address("http_listen", "0.0.0.0:9093")?,
        zone: values.text("zone").to_owned(),
        metadata: metadata(values)?,
        store: store(values)?,
        produce,
        merge: MergeConfig {
            interval: Duration::from_millis(values.within("merge_interval_ms", 10, 86_400_000)?),
            bytes_per_s: values.within("merge_bytes_per_s", 1 << 10, 1 << 40)?,
            gets_per_s: values.within("merge_gets_per_s", 1, 1_000_000)?,
            puts_per_s: values.within("merge_puts_per_s", 1, 1_000_000)?,
            memory_bytes: memory.bytes("merge_memory_bytes"),
            compaction_bytes: memory.bytes("compact_memory_bytes"),
        },
        memory,
        cache_bytes: memory.bytes("cache_bytes"),
        read_in_flight_bytes: memory.bytes("read_in_flight_bytes"),
        max_request_bytes,
        request_memory_bytes: budget("request_memory_bytes"),
        response_memory_bytes: budget("response_memory_bytes"),
        fetch_max_bytes: values.within("fetch_max_bytes", 1024, 1 << 30)?,
        fetch_sessions: values.get("fetch_sessions")?,
        max_connections: values.within("max_connections", 1, 10_000_000)?,
        connection_idle: values.millis("connection_idle_ms")?,
        lease_ttl_s: values.within("lease_ttl_s", 2, 600)?,
        topics: topic_defaults(values)?,
        groups: groups(values)?,
        max_state_ranges: values.within("max_state_ranges", 1, u64::MAX)?,
        max_partitions: values.within("max_partitions", 1, 10_000_000)?,
        max_producers: values.within("max_producers", 1, 100_000_000)?,
        max_transactional_ids: values.within("max_transactional_ids", 1, 10_000_000)?,
        transaction_max_timeout_ms: values.within("transaction_max_timeout_ms", 1, i32::MAX)?,
        transactional_id_expiration: values.millis("transactional_id_expiration_ms")?,
        snapshot_records: values.within("snapshot_records", 1, 1_000_000)?,
        snapshot_log_bytes: values.within("snapshot_log_bytes", 1024, 1 << 32)?,
        snapshot_revisions: values.within("snapshot_revisions", 100, i64::MAX)?,
        snapshot_interval: Duration::from_millis(values.within("snapshot_interval_ms", 100, u64::MAX)?),
        snapshot_retention: Duration::from_secs(
            values.within("snapshot_retention_hours", 0, 87_600_u64)? * 3600,
        ),
        etcd_quota_bytes: values.within("etcd_quota_bytes", 1 << 20, u64::MAX)?,
        job_interval: Duration::from_millis(values.within("job_interval_ms", 10, 86_400_000)?),
        retention_interval: Duration::from_millis(values.within(
            "log_retention_check_interval_ms",
            1,
            i64::MAX.unsigned_abs(),
        )?),
        delete_delay: values.millis("delete_delay_ms")?,
        producer_id_expiration: values.millis("producer_id_expiration_ms")?,
        drain: values.millis("drain_ms")?,
        log,
        seed: values.optional("seed").map(|_| values.get("seed")).transpose()?,
        effective: effective(values, &memory, max_request_bytes, produce.flush_bytes),
    })
}

/// What the settings come to: what was derived stands in the place of what was not set.
fn effective(
    values: &Values,
    memory: &MemoryBudgets,
    max_request_bytes: usize,
    flush_bytes: usize,
) -> Vec<(String, String)> {
    let mut effective = values.effective().to_vec();
    let derived = [
        ("memory_bytes", memory.memory_bytes),
        ("max_request_bytes", max_request_bytes as u64),
        ("flush_bytes", flush_bytes as u64),
    ];
    for (key, bytes) in derived.into_iter().chain(memory.iter()) {
        if let Some((_, value)) = effective.iter_mut().find(|(own, _)| own == key) {
            *value = bytes.to_string();
        }
    }
    effective
}

fn advertised(text: &str) -> Result<Advertised, ConfigError> {
    let wrong =
        || ConfigError::new(format!("advertised: {text:?} is not host:port, as in broker-1.example:9092"));
    let (host, port) = host_and_port(text).filter(|(_, port)| *port > 0).ok_or_else(wrong)?;
    Ok(Advertised { host: host.to_owned(), port })
}

fn metadata(values: &Values) -> Result<MetadataConfig, ConfigError> {
    match values.text("metadata") {
        "embedded" => Ok(MetadataConfig::Embedded(EmbeddedConfig {
            journal: values.optional("metadata_journal").map(PathBuf::from),
            listen: values.optional("metadata_listen").map(|text| loopback(&text)).transpose()?,
        })),
        "etcd" => Ok(MetadataConfig::Etcd(values.etcd()?)),
        other => Err(ConfigError::new(format!("metadata: {other:?} is neither etcd nor embedded"))),
    }
}

/// Whoever reaches it reads everything, without a password: so nobody from elsewhere may.
fn loopback(text: &str) -> Result<SocketAddr, ConfigError> {
    let address = text.parse().ok().filter(|address: &SocketAddr| address.ip().is_loopback());
    address.ok_or_else(|| {
        ConfigError::new(format!(
            "metadata_listen: {text:?} is no loopback address with a port, such as 127.0.0.1:2379"
        ))
    })
}

fn store(values: &Values) -> Result<StoreConfig, ConfigError> {
    let mut url = values.text("store_url").to_owned();
    if let Some(relative) = url.strip_prefix("file:").filter(|rest| !rest.starts_with("//")) {
        let absolute =
            std::path::absolute(relative).map_err(|e| ConfigError::new(format!("store_url: {e}")))?;
        url = format!("file://{}", absolute.display());
    }
    let url = url.parse().map_err(|e| ConfigError::new(format!("store_url: {e}")))?;
    let mut config = StoreConfig::new(url);
    config.endpoint = endpoint(values)?;
    config.region = values.optional("s3_region");
    config.access_key_id = values.optional("s3_access_key_id");
    config.secret_access_key =
        values.optional("s3_secret_access_key").map(strandline_storage::store::Secret::new);
    config.session_token = values.optional("s3_session_token").map(strandline_storage::store::Secret::new);
    config.allow_http = values.get("s3_allow_http")?;
    config.path_style = values.get("s3_path_style")?;
    config.ca_file = values.file("s3_ca_file")?;
    config.checksum =
        values.text("s3_checksum").parse().map_err(|e| ConfigError::new(format!("s3_checksum: {e}")))?;
    config.request_timeout = values.millis("store_request_timeout_ms")?;
    config.retry_budget = values.millis("store_retry_budget_ms")?;
    Ok(config)
}

fn endpoint(values: &Values) -> Result<Option<String>, ConfigError> {
    let mut urls = values.http_urls("s3_endpoint", "https://minio.example:9000")?;
    let endpoint = urls.pop();
    if !urls.is_empty() {
        return Err(ConfigError::new("s3_endpoint: takes one URL, such as https://minio.example:9000"));
    }
    if endpoint.as_ref().is_some_and(|url| url.starts_with("http:"))
        && !values.get::<bool>("s3_allow_http")?
    {
        let why = "s3_endpoint: http:// needs s3_allow_http to be true; else it begins with https://";
        return Err(ConfigError::new(why));
    }
    Ok(endpoint)
}

fn groups(values: &Values) -> Result<GroupConfig, ConfigError> {
    let policy = values.text("group_consumer_migration_policy");
    if !["bidirectional", "upgrade", "downgrade", "disabled"].contains(&policy) {
        return Err(ConfigError::new(format!(
            "group_consumer_migration_policy: {policy:?} is not one of bidirectional, upgrade, downgrade, disabled"
        )));
    }
    let settings = GroupSettings {
        max_size: values.within("group_max_size", 1, 10_000)?,
        min_session_timeout_ms: values.within("group_min_session_timeout_ms", 1, i32::MAX)?,
        max_session_timeout_ms: values.within("group_max_session_timeout_ms", 1, i32::MAX)?,
        initial_rebalance_delay_ms: values.within("group_initial_rebalance_delay_ms", 0, 600_000)?,
        consumer_session_timeout_ms: values.within("group_consumer_session_timeout_ms", 1, i32::MAX)?,
        consumer_heartbeat_interval_ms: values.within("group_consumer_heartbeat_interval_ms", 1, i32::MAX)?,
        may_upgrade: matches!(policy, "bidirectional" | "upgrade"),
        may_downgrade: matches!(policy, "bidirectional" | "downgrade"),
    };
    if settings.min_session_timeout_ms > settings.max_session_timeout_ms {
        return Err(ConfigError::new(
            "group_min_session_timeout_ms: must not be above group_max_session_timeout_ms",
        ));
    }
    if settings.consumer_heartbeat_interval_ms >= settings.consumer_session_timeout_ms {
        return Err(ConfigError::new(
            "group_consumer_heartbeat_interval_ms: must be below group_consumer_session_timeout_ms",
        ));
    }
    let minutes: i64 = values.within("offsets_retention_minutes", 1, i64::from(i32::MAX))?;
    Ok(GroupConfig {
        settings,
        max_groups: values.within("max_groups", 1, 1_000_000)?,
        offsets_retention_ms: minutes * 60_000,
        offsets_check_interval: Duration::from_millis(values.within(
            "offsets_retention_check_interval_ms",
            10,
            86_400_000,
        )?),
        offset_metadata_max_bytes: values.within("offset_metadata_max_bytes", 0, 32_767)?,
    })
}

fn topic_defaults(values: &Values) -> Result<TopicDefaults, ConfigError> {
    let named = [
        ("log_retention_ms", "retention.ms"),
        ("log_retention_bytes", "retention.bytes"),
        ("log_cleanup_policy", "cleanup.policy"),
        ("message_max_bytes", "max.message.bytes"),
        ("compression_type", "compression.type"),
        ("log_message_timestamp_type", "message.timestamp.type"),
        ("log_message_timestamp_before_max_ms", "message.timestamp.before.max.ms"),
        ("log_message_timestamp_after_max_ms", "message.timestamp.after.max.ms"),
    ];
    let mut configs = BTreeMap::new();
    for (key, config) in named {
        let value = values.text(key);
        crate::topic_config::check(config, value).map_err(|why| ConfigError::new(format!("{key}: {why}")))?;
        configs.insert(config.to_owned(), value.to_owned());
    }
    Ok(TopicDefaults {
        auto_create: values.get("auto_create_topics")?,
        partitions: values.within(
            "num_partitions",
            1,
            strandline_metadata::limits::MAX_PARTITIONS_PER_TOPIC,
        )?,
        configs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(flags: &[&str], environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let environment: BTreeMap<String, String> =
            environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        match parse(flags.iter().map(|f| (*f).to_owned()), |key| environment.get(key).cloned())? {
            Parsed::Run(config) => Ok(*config),
            Parsed::Print(text) => panic!("{text}"),
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (flags, key) in [
            (&["--node-id", "x"][..], "node_id"),
            (&["--node-id", "-1"], "node_id"),
            (&["--cluster", "a/b"], "cluster"),
            (&["--advertised", "nohost"], "advertised"),
            (&["--listen", "9092"], "listen"),
            (&["--http-listen", "0.0.0.0"], "http_listen"),
            (&["--etcd-endpoints", "etcd:2379"], "etcd_endpoints"),
            (&["--etcd-ca-file", "/no/such/file"], "etcd_ca_file"),
            (&["--s3-ca-file", "/no/such/file"], "s3_ca_file"),
            (&["--s3-endpoint", "minio:9000"], "s3_endpoint"),
            (&["--s3-endpoint", "127.0.0.1:9000"], "s3_endpoint"),
            (&["--s3-endpoint", "localhost"], "s3_endpoint"),
            (&["--s3-endpoint", "http://"], "s3_endpoint"),
            (&["--s3-endpoint", "http://minio:9000"], "s3_allow_http"),
            (&["--s3-endpoint", "https://a,https://b"], "s3_endpoint"),
            (&["--metadata", "zookeeper"], "metadata"),
            (&["--dev", "--metadata-listen", "0.0.0.0:2379"], "metadata_listen"),
            (&["--dev", "--metadata-listen", "2379"], "metadata_listen"),
            (&["--store-url", "ftp://x"], "store_url"),
            (&["--log-cleanup-policy", "shred"], "log_cleanup_policy"),
            (&["--buffer-bytes", "2000000"], "buffer_bytes"),
            (&["--no-such-flag"], "--no-such-flag"),
        ] {
            let error = run(flags, &[]).unwrap_err().to_string();
            assert!(error.contains(key), "{flags:?}: {error}");
        }
    }

    #[test]
    fn memory_is_shared_out_unless_it_is_set() {
        const MIB: u64 = 1 << 20;
        let on = |available, flags: &[&str]| {
            let flags = flags.iter().map(|flag| (*flag).to_owned());
            match parse_on(available, flags, |_| None).unwrap() {
                Parsed::Run(config) => *config,
                Parsed::Print(text) => panic!("{text}"),
            }
        };
        let plenty = on(1 << 40, &[]);
        assert_eq!((plenty.memory.memory_bytes, plenty.memory.sum()), (2560 * MIB, 1664 * MIB));
        assert_eq!((plenty.cache_bytes, plenty.read_in_flight_bytes), (256 * MIB, 128 * MIB));
        let described = table::SETTINGS.iter().find(|setting| setting.key == "memory_bytes").unwrap();
        assert!(described.help.contains(&plenty.memory.memory_bytes.to_string()), "{}", described.help);
        let small = on(400 * MIB, &[]);
        assert_eq!((small.memory.sum(), small.produce.buffer_bytes as u64), (260 * MIB, 40 * MIB));
        assert_eq!(small.max_request_bytes as u64, 40 * MIB, "the largest request fits");
        let shown = small.effective.iter().find(|(key, _)| key == "cache_bytes").unwrap();
        assert_eq!(shown.1, (40 * MIB).to_string());
        let set = on(400 * MIB, &["--memory-bytes", "20000000000", "--cache-bytes", "7"]);
        assert_eq!((set.cache_bytes, set.request_memory_bytes), (7, 2_000_000_000));
        let Ok(Parsed::Print(help)) = parse_on(400 * MIB, ["--help".to_owned()], |_| None) else {
            panic!("no help");
        };
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(help.contains("here 400 MiB, of which these have 260 MiB"), "{help}");
    }

    #[test]
    fn secrets_are_masked_and_dev_needs_nothing() {
        let config =
            run(&["--dev", "--s3-secret-access-key", "hunter2"], &[("STRANDLINE_ETCD_PASSWORD", "hunter3")])
                .unwrap();
        let MetadataConfig::Embedded(embedded) = &config.metadata else { panic!("{:?}", config.metadata) };
        assert!(embedded.journal.is_some());
        assert_eq!(embedded.listen, Some(([127, 0, 0, 1], 2379).into()));
        let shown = format!("{config:?}");
        assert!(!shown.contains("hunter"), "{shown}");
    }

    #[test]
    fn help_explains_each_setting() {
        let Ok(Parsed::Print(help)) = parse(["--help".to_owned()], |_| None) else { panic!("no help") };
        for setting in SETTINGS {
            assert!(help.contains(&setting.flag()), "{}", setting.key);
        }
    }
}
