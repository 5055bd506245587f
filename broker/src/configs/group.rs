//! Configs of single groups (KIP-848): how often their members are heard of.
//!
//! They belong to a name: the group need not exist, nor be of the new protocol. Its coordinator looks at them with every
//! step that it takes.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::{Entry, Source};
use crate::Broker;
use crate::config::SETTINGS;
use crate::group::GroupSettings;
use crate::topic_config::ConfigType;

const SESSION_TIMEOUT_MS: &str = "consumer.session.timeout.ms";
const HEARTBEAT_INTERVAL_MS: &str = "consumer.heartbeat.interval.ms";

struct GroupConfig {
    name: &'static str,
    range_ms: RangeInclusive<i32>,
    /// The broker's setting that gives the default, and Kafka's name for it.
    setting: &'static str,
    synonym: &'static str,
    help: &'static str,
}

const CONFIGS: [GroupConfig; 2] = [
    GroupConfig {
        name: HEARTBEAT_INTERVAL_MS,
        range_ms: 100..=600_000,
        setting: "group_consumer_heartbeat_interval_ms",
        synonym: "group.consumer.heartbeat.interval.ms",
        help: "How often members of the new group protocol are told to send heartbeats, in ms, from 100 to 600000 and below the session time-out.",
    },
    GroupConfig {
        name: SESSION_TIMEOUT_MS,
        range_ms: 1_000..=1_800_000,
        setting: "group_consumer_session_timeout_ms",
        synonym: "group.consumer.session.timeout.ms",
        help: "A member of the new group protocol that is not heard of for so long is given up, in ms, from 1000 to 1800000.",
    },
];

/// Whether `value` is what the config called `name` takes; else a sentence why not.
pub(super) fn check(name: &str, value: &str) -> Result<(), String> {
    let Some(config) = CONFIGS.iter().find(|c| c.name == name) else {
        return Err(if name.starts_with("share.") {
            format!("{name}: there are no share groups here yet, so this has no meaning")
        } else if name.starts_with("streams.") {
            format!("{name}: the streams group protocol is not spoken here, so this has no meaning")
        } else {
            format!("there is no group config {name}")
        });
    };
    let (least, most) = (config.range_ms.start(), config.range_ms.end());
    let fits = value.len() <= 10 && value.parse().is_ok_and(|ms: i32| config.range_ms.contains(&ms));
    fits.then_some(()).ok_or_else(|| format!("{name}: {value:?} is not between {least} and {most}"))
}

/// Whether what is set on a group goes together, also with what the broker sets.
pub(super) fn check_together(base: &GroupSettings, set: &BTreeMap<String, String>) -> Result<(), String> {
    let (session, heartbeat) = times(base, set);
    if heartbeat < session {
        return Ok(());
    }
    Err(format!("{HEARTBEAT_INTERVAL_MS}: {heartbeat} is not below {SESSION_TIMEOUT_MS}, which is {session}"))
}

/// Session time-out and heartbeat interval.
fn times(base: &GroupSettings, set: &BTreeMap<String, String>) -> (i32, i32) {
    let get = |name: &str| set.get(name).and_then(|value| value.parse().ok());
    (
        get(SESSION_TIMEOUT_MS).unwrap_or(base.consumer_session_timeout_ms),
        get(HEARTBEAT_INTERVAL_MS).unwrap_or(base.consumer_heartbeat_interval_ms),
    )
}

/// What counts for a group on which this is set.
pub(crate) fn settings(base: &GroupSettings, set: &BTreeMap<String, String>) -> GroupSettings {
    let (session, heartbeat) = times(base, set);
    // A broker whose own settings changed since then may have made a pair that does not go together.
    let heartbeat = if heartbeat < session { heartbeat } else { (session / 3).max(1) };
    GroupSettings {
        consumer_session_timeout_ms: session,
        consumer_heartbeat_interval_ms: heartbeat,
        ..base.clone()
    }
}

/// The configs of a group on which this is set.
pub(super) fn entries(broker: &Broker, set: &BTreeMap<String, String>) -> Vec<Entry> {
    let entries = CONFIGS.iter().map(|config| {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> GroupSettings {
        GroupSettings {
            max_size: 1,
            min_session_timeout_ms: 1,
            max_session_timeout_ms: 1,
            initial_rebalance_delay_ms: 1,
            consumer_session_timeout_ms: 45_000,
            consumer_heartbeat_interval_ms: 5_000,
            may_upgrade: true,
            may_downgrade: true,
        }
    }

    fn set(values: &[(&str, &str)]) -> BTreeMap<String, String> {
        values.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn each_value_and_the_pair_are_checked() {
        assert_eq!(check(SESSION_TIMEOUT_MS, "1000"), Ok(()));
        for (name, value) in [
            (SESSION_TIMEOUT_MS, "999"),
            (HEARTBEAT_INTERVAL_MS, "soon"),
            (HEARTBEAT_INTERVAL_MS, "99"),
            ("share.session.timeout.ms", "45000"),
            ("streams.session.timeout.ms", "45000"),
            ("consumer.group.size", "3"),
        ] {
            let why = check(name, value).unwrap_err();
            assert!(why.contains(name), "{why}");
        }
        assert_eq!(check_together(&base(), &set(&[(SESSION_TIMEOUT_MS, "6000")])), Ok(()));
        assert!(check_together(&base(), &set(&[(SESSION_TIMEOUT_MS, "5000")])).is_err());
        let both = set(&[(SESSION_TIMEOUT_MS, "5000"), (HEARTBEAT_INTERVAL_MS, "1000")]);
        assert_eq!(check_together(&base(), &both), Ok(()));
    }

    #[test]
    fn what_is_set_counts_and_the_pair_always_goes_together() {
        let of = |set| {
            let settings = settings(&base(), &set);
            (settings.consumer_session_timeout_ms, settings.consumer_heartbeat_interval_ms)
        };
        assert_eq!(of(set(&[])), (45_000, 5_000));
        assert_eq!(of(set(&[(HEARTBEAT_INTERVAL_MS, "700")])), (45_000, 700));
        assert_eq!(of(set(&[(SESSION_TIMEOUT_MS, "3000")])), (3_000, 1_000));
    }
}
