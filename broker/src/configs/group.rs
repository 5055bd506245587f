//! Configs of single groups, as they are described.

use std::collections::BTreeMap;

use super::{Entry, Source};
use crate::Broker;
use crate::config::SETTINGS;
use crate::group_config::DYNAMIC_CONFIGS;
use crate::topic_config::ConfigType;

/// The configs of a group on which this is set.
pub(super) fn entries(broker: &Broker, set: &BTreeMap<String, String>) -> Vec<Entry> {
    let entries = DYNAMIC_CONFIGS.iter().map(|config| {
        let mut synonyms = Vec::new();
        if let Some(value) = set.get(config.name) {
            synonyms.push((config.name.to_owned(), value.clone(), Source::Group));
        }
        let default =
            SETTINGS.iter().find(|s| s.key == config.setting).map(|s| s.default).unwrap_or_default();
        let own = broker.config.effective.iter().find(|(key, _)| key == config.setting);
        if let Some((_, value)) = own.filter(|(_, value)| value != default) {
            synonyms.push((config.synonym.to_owned(), value.clone(), Source::StaticBroker));
        }
        synonyms.push((config.synonym.to_owned(), default.to_owned(), Source::Default));
        Entry::of(config.name, ConfigType::Int, config.help, synonyms)
    });
    entries.collect()
}
