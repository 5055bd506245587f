//! Broker configs by the names that Kafka has for them.
//!
//! Tools ask for these and not for ours. What has a setting here is shown with the setting's value;
//! what has none is shown as it is here, for good. Neither can be altered.

use super::{Entry, Source};
use crate::Broker;
use crate::config::SETTINGS;
use crate::topic_config::ConfigType::{self, Boolean, Int, List, Long, String as Text};

/// Kafka's name, its type, our setting.
const SAME: &[(&str, ConfigType, &str)] = &[
    ("auto.create.topics.enable", Boolean, "auto_create_topics"),
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
    ("socket.request.max.bytes", Int, "max_request_bytes"),
];

/// Kafka's name, its type, what it is here, why.
const ALWAYS: &[(&str, ConfigType, &str, &str)] = &[
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
        "Records are replicated by the object store: a partition shows one replica, on the broker that clients are led to.",
    ),
    ("delete.topic.enable", Boolean, "true", "Topics can be deleted."),
    ("group.coordinator.rebalance.protocols", List, "classic,consumer", "Both group protocols are spoken."),
    ("min.insync.replicas", Int, "1", "Every record is durable before it is acknowledged."),
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
    let store = ("log.dirs".to_owned(), broker.config.store.url.to_string(), Source::StaticBroker);
    let store = Entry::of(
        "log.dirs",
        Text,
        "The object store that records are in. Set with --store-url.",
        vec![store],
    );
    same.chain(always).chain([store]).map(read_only).collect()
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
