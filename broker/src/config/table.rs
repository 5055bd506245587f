//! The table of settings.

use std::borrow::Cow;

use strandline_settings::{Program, Setting, dev, secret, setting};

/// Every setting of the broker.
pub const SETTINGS: &[Setting] = &[
    setting("node_id", "1", "number", "Node id of this broker, unique in the cluster"),
    setting("cluster", "strandline", "name", "Name of the cluster: its prefix in etcd"),
    dev(setting("listen", "0.0.0.0:9092", "address", "Address of the Kafka listener"), "127.0.0.1:9092"),
    setting(
        "advertised",
        "",
        "host:port",
        "Address given to clients [default: the listen address; 127.0.0.1 for a wildcard]",
    ),
    dev(
        setting("http_listen", "0.0.0.0:9093", "address", "Where /metrics, /healthz and /readyz are served"),
        "127.0.0.1:9093",
    ),
    setting("zone", "", "name", "Availability zone; clients of the same zone are sent to this broker first"),
    dev(
        setting("metadata", "etcd", "etcd|embedded", "Metadata store; embedded supports a single broker"),
        "embedded",
    ),
    dev(
        setting(
            "metadata_journal",
            "",
            "path",
            "Journal file of the embedded metadata store; without it metadata is lost when the broker ends",
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
    setting("etcd_endpoints", "http://127.0.0.1:2379", "urls", "Client URLs of etcd, separated by commas"),
    setting("etcd_user", "", "name", "User name for etcd"),
    secret("etcd_password", "Password for etcd"),
    setting("etcd_ca_file", "", "path", "CA certificates (PEM) for etcd's certificate"),
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
    setting("s3_endpoint", "", "url", "S3 endpoint [default: AWS]"),
    setting("s3_region", "us-east-1", "name", "S3 region"),
    setting(
        "s3_access_key_id",
        "",
        "text",
        "Static access key id [default: credentials of the environment (AWS_…), a web identity, the container or the instance]",
    ),
    secret("s3_secret_access_key", "Secret access key"),
    secret("s3_session_token", "Session token of temporary credentials"),
    setting("s3_allow_http", "false", "true|false", "Allow plain HTTP for S3"),
    setting(
        "s3_path_style",
        "true",
        "true|false",
        "Path-style S3 URLs (bucket in the path, not in the host name)",
    ),
    setting("s3_ca_file", "", "path", "Additional CA certificates (PEM) for S3"),
    setting("s3_checksum", "crc32c", "none|crc32c|crc64nvme|sha256", "Checksum sent with every PUT"),
    setting(
        "store_request_timeout_ms",
        "10000",
        "ms",
        "Time-out of one attempt of a request to the object store",
    ),
    setting(
        "store_retry_budget_ms",
        "25000",
        "ms",
        "Time-out of a request to the object store, retries included",
    ),
    setting(
        "flush_bytes",
        "8388608",
        "bytes",
        "Flush when this many bytes are buffered; no more than a quarter of buffer_bytes where that is not set",
    ),
    setting("linger_ms", "250", "ms", "Longest time a record waits for its flush while a PUT slot is free"),
    dev(
        setting(
            "put_budget_per_s",
            "4",
            "PUTs per second",
            "PUTs that flushes before linger_ms has passed may use, on average: at 0.005 $ for a thousand, 1/s costs 13 $ a month at most",
        ),
        "100000",
    ),
    setting(
        "put_budget_burst",
        "",
        "PUTs",
        "How many PUTs put_budget_per_s saves up while there is less to write; a flush of many partitions counts for one \
         more for each 64 [default: an hour's worth]",
    ),
    setting("puts_in_flight", "4", "PUTs", "Most concurrent PUTs"),
    setting(
        "memory_bytes",
        "",
        "bytes",
        "Memory that this process may use, of which the next seven have a share each [default: the least of what the cgroup, \
         ulimit -v and the machine allow, at most 2684354560]",
    ),
    setting(
        "buffer_bytes",
        "",
        "bytes",
        "Memory for records that are buffered or being written, all connections together [default: 2/20 of memory_bytes]",
    ),
    setting("cache_bytes", "", "bytes", "Memory of the read cache [default: 2/20 of memory_bytes]"),
    setting(
        "read_in_flight_bytes",
        "",
        "bytes",
        "Memory for reads from the object store in progress [default: 1/20 of memory_bytes]",
    ),
    setting(
        "request_memory_bytes",
        "",
        "bytes",
        "Memory for requests that are being received or handled, all connections together, a quarter of it for those up to \
         64 KiB [default: 2/20 of memory_bytes]",
    ),
    setting(
        "response_memory_bytes",
        "",
        "bytes",
        "Memory for responses not yet sent, all connections together; one fetch may use a quarter of what is free \
         [default: 2/20 of memory_bytes]",
    ),
    setting(
        "merge_memory_bytes",
        "",
        "bytes",
        "Memory for merging small objects into large ones, which have a quarter of it, and at most 64 MiB; the more of it, \
         the fewer GETs [default: 3/20 of memory_bytes]",
    ),
    setting(
        "compact_memory_bytes",
        "",
        "bytes",
        "Memory for log compaction: three quarters for the newest offset of each key, 31 bytes each; more keys are \
         taken in several passes [default: 1/20 of memory_bytes]",
    ),
    setting(
        "max_request_bytes",
        "104857600",
        "bytes",
        "Largest request accepted from a client; no more than buffer_bytes where that is not set",
    ),
    setting("fetch_max_bytes", "57671680", "bytes", "Largest fetch response"),
    setting("fetch_sessions", "1000", "number", "Most incremental fetch sessions (KIP-227)"),
    setting(
        "max_connections",
        "10000",
        "number",
        "Most connections; fewer if the limit of file descriptors (ulimit -n) is too low",
    ),
    setting("connection_idle_ms", "600000", "ms", "Idle time after which a connection is closed"),
    setting("lease_ttl_s", "2", "s", "Time without a sign of life after which a broker counts as dead"),
    setting(
        "auto_create_topics",
        "true",
        "true|false",
        "Create a topic when a client asks for metadata of one that does not exist",
    ),
    setting("num_partitions", "1", "number", "Default number of partitions of a new topic"),
    setting("log_retention_ms", "604800000", "ms", "Default of retention.ms; -1 for ever"),
    setting(
        "log_retention_bytes",
        "-1",
        "bytes",
        "Default of retention.bytes, per partition; -1 without limit",
    ),
    setting(
        "log_retention_check_interval_ms",
        "300000",
        "ms",
        "Interval of the check for records that are too old or too many",
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
        "Shortest session time-out of a member of a classic group",
    ),
    setting(
        "group_max_session_timeout_ms",
        "1800000",
        "ms",
        "Longest session time-out of a member of a classic group",
    ),
    setting(
        "group_initial_rebalance_delay_ms",
        "3000",
        "ms",
        "How long the first rebalance of an empty classic group waits for more members",
    ),
    setting("group_max_size", "2000", "number", "Most members of a group"),
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
        "Heartbeat interval of members of the new group protocol (KIP-848)",
    ),
    setting(
        "group_consumer_migration_policy",
        "bidirectional",
        "bidirectional|upgrade|downgrade|disabled",
        "Whether groups with members may migrate between the classic and the new protocol",
    ),
    setting("max_groups", "20000", "number", "Most groups coordinated by one broker"),
    setting(
        "offsets_retention_minutes",
        "10080",
        "minutes",
        "Retention of committed offsets after the last member left, and of empty groups",
    ),
    setting(
        "offsets_retention_check_interval_ms",
        "600000",
        "ms",
        "Interval of the check for expired committed offsets",
    ),
    setting("offset_metadata_max_bytes", "4096", "bytes", "Longest metadata of a committed offset"),
    setting(
        "max_state_ranges",
        "10000000",
        "ranges",
        "Offset ranges in the state, about 100 bytes each, at which producers are refused; they are slowed from half of it on. Merging, retention and topic deletion free them",
    ),
    setting(
        "max_partitions",
        "200000",
        "number",
        "Most partitions of the cluster; topics and partitions beyond that are not created",
    ),
    setting(
        "max_producers",
        "500000",
        "number",
        "Most idempotent producers that the state remembers, one for each partition that a producer writes to, about 450 bytes each; then new ones are refused until others expire, which is after 15 minutes of silence while there are nearly so many",
    ),
    setting(
        "max_transactional_ids",
        "100000",
        "number",
        "Most transactional ids that have a producer, about 250 bytes each; then new ones are refused until others expire",
    ),
    setting(
        "transaction_max_timeout_ms",
        "900000",
        "ms",
        "The longest time that a producer may ask for until its open transaction is aborted",
    ),
    setting(
        "transactional_id_expiration_ms",
        "604800000",
        "ms",
        "Idle time after which a transactional id is forgotten",
    ),
    setting("snapshot_records", "5000", "records", "Write a snapshot after this many log records"),
    setting("snapshot_log_bytes", "30000000", "bytes", "Write a snapshot after this many bytes of log"),
    setting(
        "snapshot_revisions",
        "100000",
        "revisions",
        "Write a snapshot after this many revisions of etcd, whatever made them",
    ),
    setting(
        "snapshot_interval_ms",
        "3600000",
        "ms",
        "Write a snapshot after this time, if records or unreferenced objects wait for one",
    ),
    setting(
        "snapshot_retention_hours",
        "24",
        "hours",
        "How long replaced snapshots are kept, with the objects that they need: backups of etcd that are not older can be restored",
    ),
    setting(
        "etcd_quota_bytes",
        "2147483648",
        "bytes",
        "etcd's --quota-backend-bytes, where etcd does not say it itself (before 3.6): producers are slowed from 80 % on",
    ),
    setting(
        "merge_interval_ms",
        "60000",
        "ms",
        "How long records stay in the small objects that they were written to, before these are merged into larger ones",
    ),
    setting(
        "merge_bytes_per_s",
        "67108864",
        "bytes per second",
        "Most bytes that this broker merges in a second; half of it while producers fill half of buffer_bytes",
    ),
    setting(
        "merge_gets_per_s",
        "500",
        "GETs per second",
        "Most GETs for merging and log compaction; half of it while producers fill half of buffer_bytes",
    ),
    setting(
        "merge_puts_per_s",
        "50",
        "PUTs per second",
        "Most objects that merging and log compaction write; half of it while producers fill half of buffer_bytes",
    ),
    setting("job_interval_ms", "5000", "ms", "Interval of the background jobs"),
    setting("delete_delay_ms", "600000", "ms", "Grace period before an unreferenced object is deleted"),
    setting(
        "producer_id_expiration_ms",
        "86400000",
        "ms",
        "Idle time after which an idempotent producer is forgotten",
    ),
    setting("drain_ms", "5000", "ms", "Time for clients to move to other brokers when this one shuts down"),
    setting("log", "info", "filter", "Log filter, in the syntax of tracing"),
    setting("log_format", "text", "text|json", "Log format"),
    setting("seed", "", "number", "Seed of the random number generator, for reproducible runs"),
];

/// How a cluster is audited, and recovered from a backup.
pub(super) const AUDIT_HELP: &str = "`strandline fsck [--quick] [settings]` audits a cluster instead: is everything there that was acknowledged? It changes nothing in etcd or S3, and may run beside brokers; a --dev broker must be stopped. `strandline recover [--accept-loss] [settings]` says what is lost by a backup of etcd that was restored, and lets brokers go on with it.";

/// Where else settings may stand.
pub(super) const SOURCES_HELP: &str = "Every setting may also stand in the file given with --config, or in the environment. A flag wins over the environment, the environment over the file.";

/// The broker, as its command line and its environment know it.
pub(super) const PROGRAM: Program = Program {
    name: "strandline",
    version: env!("CARGO_PKG_VERSION"),
    about: "A Kafka-compatible broker whose log lives in object storage",
    after_help: Cow::Borrowed(AUDIT_HELP),
    prefix: "STRANDLINE_",
    dev: Some("Run alone, with nothing else installed: embedded metadata and objects in ./strandline-data"),
    settings: SETTINGS,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_budget_of_memory_is_shared_out_or_is_none() {
        // Whatever else is a budget of memory belongs into the sum.
        let others = [
            "memory_bytes",
            "max_request_bytes",
            "fetch_max_bytes",
            "flush_bytes",
            "snapshot_log_bytes",
            "log_retention_bytes",
            "message_max_bytes",
            "offset_metadata_max_bytes",
            "etcd_quota_bytes",
        ];
        let help = super::super::memory::help(1 << 40);
        for setting in SETTINGS.iter().filter(|s| s.unit == "bytes" && s.key.ends_with("_bytes")) {
            let is_shared_out = help.contains(&format!("{} (", setting.key));
            assert!(is_shared_out || others.contains(&setting.key), "{} is in neither list", setting.key);
        }
    }
}
