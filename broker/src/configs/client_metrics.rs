//! Configs of client-metrics resources: which metrics which clients push to us (KIP-714).

use std::collections::BTreeMap;

use super::{Entry, Source};
use crate::telemetry::DEFAULT_INTERVAL_MS;
use crate::topic_config::ConfigType;

/// Name, type, what it is for.
const CONFIGS: [(&str, ConfigType, &str); 3] = [
    (
        "interval.ms",
        ConfigType::Int,
        "How often the clients push, in ms, from 100 to 3600000. If several resources match a client, the shortest counts.",
    ),
    (
        "match",
        ConfigType::List,
        "Which clients: name=pattern, separated by commas; all have to match, and each the whole text. Names are client_instance_id, client_id, client_software_name, client_software_version, client_source_address, client_source_port. Empty for every client.",
    ),
    (
        "metrics",
        ConfigType::List,
        "Prefixes of the names of the metrics that are wanted, separated by commas; * for all, empty for none.",
    ),
];

fn default(name: &str) -> String {
    if name == "interval.ms" { DEFAULT_INTERVAL_MS.to_string() } else { String::new() }
}

pub(super) fn is_list(name: &str) -> bool {
    CONFIGS.iter().any(|(n, kind, _)| *n == name && *kind == ConfigType::List)
}

/// The configs of a resource with these values set on it.
pub(super) fn entries(set: &BTreeMap<String, String>) -> Vec<Entry> {
    let entries = CONFIGS.iter().map(|(name, kind, help)| {
        let own = set.get(*name).map(|value| ((*name).to_owned(), value.clone(), Source::ClientMetrics));
        let default = ((*name).to_owned(), default(name), Source::Default);
        Entry::of(name, *kind, help, own.into_iter().chain([default]).collect())
    });
    entries.collect()
}
