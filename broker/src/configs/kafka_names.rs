//! Broker configs by the names that Kafka has for them.
//!
//! Tools ask for these and not for ours. What has a setting here is shown with the setting's value;
//! what has none is shown as it is here, for good. Neither can be altered.

use super::{Entry, Source};
use crate::Broker;
use crate::config::SETTINGS;
use crate::features::KAFKA_VERSION;
use crate::topic_config::ConfigType::{self, Boolean, Int, List, Long, String as Text};

const MS_PER_HOUR: i64 = 3_600_000;

/// Kafka's name, its type, our setting.
const SAME: &[(&str, ConfigType, &str)] = &[
    ("auto.create.topics.enable", Boolean, "auto_create_topics"),
    ("broker.id", Int, "node_id"),
    ("broker.rack", Text, "zone"),
    ("connections.max.idle.ms", Long, "connection_idle_ms"),
    ("fetch.max.bytes", Int, "fetch_max_bytes"),
    ("group.consumer.heartbeat.interval.ms", Int, "group_consumer_heartbeat_interval_ms"),
    ("group.consumer.max.size", Int, "group_max_size"),
    ("group.consumer.migration.policy", Text, "group_consumer_migration_policy"),
    ("group.consumer.session.timeout.ms", Int, "group_consumer_session_timeout_ms"),
    ("group.initial.rebalance.delay.ms", Int, "group_initial_rebalance_delay_ms"),
    ("group.max.session.timeout.ms", Int, "group_max_session_timeout_ms"),
    ("group.max.size", Int, "group_max_size"),
    ("group.min.session.timeout.ms", Int, "group_min_session_timeout_ms"),
    ("log.retention.check.interval.ms", Long, "log_retention_check_interval_ms"),
    ("max.connections", Int, "max_connections"),
    ("max.incremental.fetch.session.cache.slots", Int, "fetch_sessions"),
    ("node.id", Int, "node_id"),
    ("offset.metadata.max.bytes", Int, "offset_metadata_max_bytes"),
    ("offsets.retention.check.interval.ms", Long, "offsets_retention_check_interval_ms"),
    ("offsets.retention.minutes", Int, "offsets_retention_minutes"),
    ("producer.id.expiration.ms", Int, "producer_id_expiration_ms"),
    ("transaction.max.timeout.ms", Int, "transaction_max_timeout_ms"),
    ("transactional.id.expiration.ms", Int, "transactional_id_expiration_ms"),
    ("socket.request.max.bytes", Int, "max_request_bytes"),
];

/// Kafka's name, its type, what it is here, why.
const ALWAYS: &[(&str, ConfigType, &str, &str)] = &[
    ("authorizer.class.name", Text, "", "There are no ACLs yet."),
    (
        "auto.leader.rebalance.enable",
        Boolean,
        "false",
        "There are no leaders to move: any broker serves any partition.",
    ),
    (
        "default.replication.factor",
        Int,
        "1",
        "How many replicas a topic shows for which no number was asked. Records are replicated by the object store.",
    ),
    ("delete.topic.enable", Boolean, "true", "Topics can be deleted."),
    ("group.consumer.assignors", List, "uniform,range", "The assignors of the new group protocol."),
    ("group.coordinator.rebalance.protocols", List, "classic,consumer", "Both group protocols are spoken."),
    ("inter.broker.listener.name", Text, "PLAINTEXT", "Brokers do not talk to each other."),
    (
        "inter.broker.protocol.version",
        Text,
        KAFKA_VERSION,
        "Brokers do not talk to each other; this is the version of Kafka whose semantics they have.",
    ),
    ("listener.security.protocol.map", List, "PLAINTEXT:PLAINTEXT", "There is one listener."),
    (
        "log.cleaner.backoff.ms",
        Long,
        "15000",
        "Without effect: partitions are looked at every merge_interval_ms.",
    ),
    ("log.cleaner.enable", Boolean, "true", "Topics with cleanup.policy compact are compacted."),
    ("log.cleaner.threads", Int, "1", "Each broker compacts one partition at a time."),
    ("log.flush.interval.messages", Long, "1", "Every record is durable before it is acknowledged."),
    ("min.insync.replicas", Int, "1", "Every record is durable before it is acknowledged."),
    ("process.roles", List, "broker,controller", "Any broker does what a controller does."),
    ("security.inter.broker.protocol", Text, "PLAINTEXT", "Brokers do not talk to each other."),
    ("telemetry.max.bytes", Int, "1048576", "The most that a client may push to its metrics at once."),
    ("unclean.leader.election.enable", Boolean, "false", "There are no leaders to elect."),
];

/// Every config that a broker has under Kafka's name only.
pub(super) fn entries(broker: &Broker) -> Vec<Entry> {
    let read_only = |entry: Entry| Entry { read_only: true, ..entry };
    let same = SAME.iter().filter_map(|(name, kind, key)| {
        let setting = SETTINGS.iter().find(|s| s.key == *key)?;
        let (_, value) = broker.config.effective.iter().find(|(own, _)| own == key)?;
        let source = if *value == setting.default { Source::Default } else { Source::StaticBroker };
        let help = format!("{} ({}). Set with {}.", setting.help, setting.unit, setting.flag());
        Some(Entry::of(name, *kind, &help, vec![((*name).to_owned(), value.clone(), source)]))
    });
    let always = ALWAYS.iter().map(|(name, kind, value, why)| {
        Entry::of(name, *kind, why, vec![((*name).to_owned(), (*value).to_owned(), Source::Default)])
    });
    same.chain(always).chain(derived(broker)).map(read_only).collect()
}

/// What follows from several settings, or is written otherwise there.
fn derived(broker: &Broker) -> impl Iterator<Item = Entry> {
    let set = |name: &str, kind, help, value: String| {
        Entry::of(name, kind, help, vec![(name.to_owned(), value, Source::StaticBroker)])
    };
    let (host, port) = (&broker.advertised.host, broker.advertised.port);
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let store = broker.config.store.url.to_string();
    let retention_ms = broker.config.topics.configs.get("retention.ms").and_then(|ms| ms.parse::<i64>().ok());
    let hours = retention_ms.filter(|&ms| ms >= 0).map_or(-1, |ms| ms / MS_PER_HOUR);
    let where_records_are = "The object store that records are in. Set with --store-url.";
    [
        set(
            "advertised.listeners",
            List,
            "What clients are told to connect to. Set with --advertised.",
            format!("PLAINTEXT://{host}:{port}"),
        ),
        set(
            "listeners",
            List,
            "The address of the Kafka listener. Set with --listen.",
            format!("PLAINTEXT://{}", broker.config.listen),
        ),
        set("log.dir", Text, where_records_are, store.clone()),
        set("log.dirs", Text, where_records_are, store),
        set(
            "log.retention.hours",
            Int,
            "The whole hours of log.retention.ms, which counts; -1 for ever. Set with --log-retention-ms.",
            hours.to_string(),
        ),
    ]
    .into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_there_once_and_stands_for_a_setting() {
        for (name, _, key) in SAME {
            assert!(SETTINGS.iter().any(|s| s.key == *key && !s.secret), "{name}");
        }
        let mut names: Vec<&str> = SAME.iter().map(|s| s.0).chain(ALWAYS.iter().map(|a| a.0)).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
