//! The table of settings.

use strandline_settings::{Program, Setting, dev, secret, setting};

/// Every setting of the broker.
pub const SETTINGS: &[Setting] = &[
    setting("node_id", "1", "number", "Node id of this broker, unique in the cluster"),
    setting("cluster", "strandline", "name", "Name of the cluster: its prefix in etcd"),
    dev(setting("listen", "0.0.0.0:9092", "address", "Where Kafka clients connect"), "127.0.0.1:9092"),
    setting(
        "advertised",
        "",
        "host:port",
        "What clients are told to connect to [default: the listen address; 127.0.0.1 for a wildcard]",
    ),
    dev(
        setting("http_listen", "0.0.0.0:9093", "address", "Where /metrics, /healthz and /readyz are served"),
        "127.0.0.1:9093",
    ),
    setting("zone", "", "name", "Availability zone; clients that name theirs are led to brokers in it"),
    dev(
        setting(
            "metadata",
            "etcd",
            "etcd|embedded",
            "Where the order of commits is kept; embedded serves a single broker only",
        ),
        "embedded",
    ),
    dev(
        setting(
            "metadata_journal",
            "",
            "path",
            "Journal file of embedded metadata; without it they are gone when the broker ends",
        ),
        "./strandline-data/metadata.journal",
    ),
    dev(
        setting(
            "metadata_listen",
            "",
            "address",
            "Where embedded metadata answer, for reading, as etcd does (try etcdctl): a loopback address; \
             if it is taken there is a warning and no more",
        ),
        "127.0.0.1:2379",
    ),
    setting("etcd_endpoints", "http://127.0.0.1:2379", "urls", "etcd's client URLs, separated by commas"),
    setting("etcd_user", "", "name", "User for etcd, if it demands one"),
    secret("etcd_password", "Password of that user"),
    setting("etcd_ca_file", "", "path", "Certificates (PEM) that etcd's is checked against"),
    setting("etcd_cert_file", "", "path", "Client certificate (PEM) for etcd"),
    setting("etcd_key_file", "", "path", "Key (PEM) of the client certificate"),
    dev(
        setting(
            "store_url",
            "s3://strandline",
            "url",
            "Where objects are kept: s3://bucket/prefix, file:///folder or memory:",
        ),
        "file:./strandline-data/objects",
    ),
    setting("s3_endpoint", "", "url", "The S3 server, if it is not Amazon's"),
    setting("s3_region", "us-east-1", "name", "Region that requests are signed for"),
    setting(
        "s3_access_key_id",
        "",
        "text",
        "Static credentials; without them those of the environment (AWS_…), a web identity, the container or the instance are used",
    ),
    secret("s3_secret_access_key", "Secret of the static credentials"),
    secret("s3_session_token", "Session token of temporary credentials"),
    setting("s3_allow_http", "false", "true|false", "Whether plain HTTP will do"),
    setting("s3_path_style", "true", "true|false", "Bucket in the path rather than in the host name"),
    setting("s3_ca_file", "", "path", "Certificates (PEM) to trust beside the system's"),
    setting("s3_checksum", "crc32c", "none|crc32c|crc64nvme|sha256", "Checksum sent with every PUT"),
    setting(
        "store_request_timeout_ms",
        "10000",
        "ms",
        "How long one attempt of one request to the store may take",
    ),
    setting("store_retry_budget_ms", "25000", "ms", "How long all attempts of one request may take together"),
    setting("flush_bytes", "8388608", "bytes", "A buffer of this size is written as an object"),
    setting(
        "linger_ms",
        "250",
        "ms",
        "The longest that a record waits for its flush while a PUT slot is free",
    ),
    setting(
        "put_budget_per_s",
        "4",
        "PUTs per second",
        "Flushes before the linger has passed; the ceiling of the request bill",
    ),
    setting("put_budget_burst", "8", "PUTs", "How many of them are saved up while nothing is written"),
    setting("puts_in_flight", "4", "PUTs", "PUTs at a time"),
    setting(
        "buffer_bytes",
        "268435456",
        "bytes",
        "Records that are buffered or being written, over all connections",
    ),
    setting("cache_bytes", "268435456", "bytes", "Records kept in memory for reading"),
    setting("read_in_flight_bytes", "134217728", "bytes", "Reads from the store that are under way"),
    setting("max_request_bytes", "104857600", "bytes", "Largest request that a client may send"),
    setting(
        "request_memory_bytes",
        "268435456",
        "bytes",
        "Requests that are being read, over all connections",
    ),
    setting(
        "response_memory_bytes",
        "268435456",
        "bytes",
        "Responses that are ready or being written, over all connections; a fetch gets at most a quarter of what is left",
    ),
    setting("fetch_max_bytes", "57671680", "bytes", "Largest answer to a fetch"),
    setting("fetch_sessions", "1000", "number", "Incremental fetch sessions that are kept"),
    setting(
        "max_connections",
        "10000",
        "number",
        "Connections at a time; fewer if the limit of file descriptors (ulimit -n) leaves no room for them",
    ),
    setting("connection_idle_ms", "600000", "ms", "A connection without a request for so long is closed"),
    setting(
        "lease_ttl_s",
        "2",
        "s",
        "The cluster takes a broker for dead so long after its last sign of life",
    ),
    setting(
        "auto_create_topics",
        "true",
        "true|false",
        "Whether naming a topic that does not exist creates it",
    ),
    setting("num_partitions", "1", "number", "Partitions of a topic that is created without a number"),
    setting("log_retention_ms", "604800000", "ms", "Default of retention.ms; -1 for ever"),
    setting(
        "log_retention_bytes",
        "-1",
        "bytes",
        "Default of retention.bytes, per partition; -1 without limit",
    ),
    setting("log_cleanup_policy", "delete", "list", "Default of cleanup.policy"),
    setting(
        "message_max_bytes",
        "1048588",
        "bytes",
        "Default of max.message.bytes: the largest record batch",
    ),
    setting("compression_type", "producer", "codec", "Default of compression.type"),
    setting(
        "log_message_timestamp_type",
        "CreateTime",
        "CreateTime|LogAppendTime",
        "Default of message.timestamp.type",
    ),
    setting(
        "log_message_timestamp_before_max_ms",
        "9223372036854775807",
        "ms",
        "Default of message.timestamp.before.max.ms",
    ),
    setting(
        "log_message_timestamp_after_max_ms",
        "3600000",
        "ms",
        "Default of message.timestamp.after.max.ms",
    ),
    setting(
        "group_min_session_timeout_ms",
        "6000",
        "ms",
        "Shortest session time-out that a member of a classic group may ask for",
    ),
    setting(
        "group_max_session_timeout_ms",
        "1800000",
        "ms",
        "Longest session time-out that a member of a classic group may ask for",
    ),
    setting(
        "group_initial_rebalance_delay_ms",
        "3000",
        "ms",
        "How long the first rebalance of an empty classic group waits for more members",
    ),
    setting("group_max_size", "2000", "number", "Members that a group may have"),
    setting(
        "group_consumer_session_timeout_ms",
        "45000",
        "ms",
        "Session time-out of members of the new group protocol (KIP-848)",
    ),
    setting(
        "group_consumer_heartbeat_interval_ms",
        "5000",
        "ms",
        "How often members of the new group protocol are told to send heartbeats",
    ),
    setting(
        "group_consumer_migration_policy",
        "bidirectional",
        "bidirectional|upgrade|downgrade|disabled",
        "Which groups may change their protocol while they have members",
    ),
    setting("max_groups", "20000", "number", "Groups that one broker coordinates"),
    setting(
        "offsets_retention_minutes",
        "10080",
        "minutes",
        "How long committed offsets stay after the group was left; and how long an empty group stays",
    ),
    setting(
        "offsets_retention_check_interval_ms",
        "600000",
        "ms",
        "How often it is looked whether committed offsets have expired",
    ),
    setting("offset_metadata_max_bytes", "4096", "bytes", "The most that a client may store with an offset"),
    setting(
        "max_state_ranges",
        "10000000",
        "ranges",
        "Offset ranges that the state may have, about 100 bytes each, before producers are refused; retention and deleting topics lower it",
    ),
    setting("snapshot_records", "5000", "records", "Log records after which a snapshot is written"),
    setting("snapshot_log_bytes", "30000000", "bytes", "Bytes of log after which a snapshot is written"),
    setting(
        "job_interval_ms",
        "5000",
        "ms",
        "How often background jobs look whether there is something to do",
    ),
    setting("delete_delay_ms", "600000", "ms", "Grace period before an unreferenced object is deleted"),
    setting(
        "producer_id_expiration_ms",
        "86400000",
        "ms",
        "A producer that wrote nothing for so long is forgotten",
    ),
    setting("drain_ms", "5000", "ms", "How long a leaving broker serves on, while clients move to others"),
    setting("log", "info", "filter", "What is logged, in tracing's filter syntax"),
    setting("log_format", "text", "text|json", "How it is logged"),
    setting("seed", "", "number", "Seed of everything random, for repeating a run"),
];

/// The broker, as its command line and its environment know it.
pub(super) const PROGRAM: Program = Program {
    name: "strandline",
    version: env!("CARGO_PKG_VERSION"),
    about: "A Kafka-compatible broker whose log lives in object storage",
    after_help: "`strandline fsck [--quick] [settings]` audits a cluster instead: is everything there that was acknowledged? It changes nothing in etcd or S3, and may run beside brokers; a --dev broker must be stopped.\n\nMemory: buffer_bytes, cache_bytes, read_in_flight_bytes, request_memory_bytes and response_memory_bytes allow 1152 MiB together by default. Beside that the state takes about 100 bytes for each offset range, max_state_ranges at most, and each connection a few kilobytes.\n\nEvery setting may also stand in the file given with --config, or in the environment. A flag wins over the environment, the environment over the file.",
    prefix: "STRANDLINE_",
    dev: Some("Run alone, with nothing else installed: embedded metadata and objects in ./strandline-data"),
    settings: SETTINGS,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_says_what_memory_the_settings_allow_together() {
        let budgets = [
            "buffer_bytes",
            "cache_bytes",
            "read_in_flight_bytes",
            "request_memory_bytes",
            "response_memory_bytes",
        ];
        let default =
            |key: &str| SETTINGS.iter().find(|s| s.key == key).unwrap().default.parse::<u64>().unwrap();
        let sum = budgets.iter().map(|key| default(key)).sum::<u64>() >> 20;
        assert!(PROGRAM.after_help.contains(&format!("{} allow {sum} MiB", budgets[4])), "{sum} MiB");
        // Whatever else is a budget of memory belongs into that sentence.
        let others = [
            "max_request_bytes",
            "fetch_max_bytes",
            "flush_bytes",
            "snapshot_log_bytes",
            "log_retention_bytes",
            "message_max_bytes",
            "offset_metadata_max_bytes",
        ];
        for setting in SETTINGS.iter().filter(|s| s.unit == "bytes" && s.key.ends_with("_bytes")) {
            let is_known = budgets.contains(&setting.key) || others.contains(&setting.key);
            assert!(is_known, "{} is in neither list", setting.key);
        }
    }
}
