//! What can be configured of consumer groups: the broker's settings, the configs of single groups
//! (KIP-848), and the rules for group ids.
//!
//! Configs of a group belong to a name: the group need not exist, nor be of the new protocol. Its
//! coordinator resolves them when it reads the group, and with every sweep over its groups.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use strandline_metadata::limits::MAX_GROUP_ID_BYTES;

/// What the group protocols are told of the configuration. Times in ms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupSettings {
    /// Most members of a group.
    pub(crate) max_size: usize,
    /// Shortest session time-out that a classic member may ask for.
    pub(crate) min_session_timeout_ms: i32,
    /// Longest session time-out that a classic member may ask for.
    pub(crate) max_session_timeout_ms: i32,
    /// How long the first rebalance of an empty classic group waits for more members.
    pub(crate) initial_rebalance_delay_ms: i32,
    /// Session time-out of members of the new protocol.
    pub(crate) consumer_session_timeout_ms: i32,
    /// How often they are told to send heartbeats.
    pub(crate) consumer_heartbeat_interval_ms: i32,
    /// Whether a classic group may become one of the new protocol while it has members.
    pub(crate) may_upgrade: bool,
    /// Whether a group of the new protocol may become a classic one while it has members.
    pub(crate) may_downgrade: bool,
}

/// Why a group id is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GroupIdError {
    /// Only a group that commits and reads offsets, and has no members, may have the empty id, as
    /// in Kafka.
    #[error("a group id must not be empty here")]
    Empty,
    /// Longer than a key of the metadata store allows.
    #[error("a group id has at most {MAX_GROUP_ID_BYTES} bytes")]
    TooLong,
}

/// Kafka's rules for group ids.
pub(crate) fn check_group_id(group: &str, may_be_empty: bool) -> Result<(), GroupIdError> {
    match group.len() {
        0 if !may_be_empty => Err(GroupIdError::Empty),
        0..=MAX_GROUP_ID_BYTES => Ok(()),
        _ => Err(GroupIdError::TooLong),
    }
}

const SESSION_TIMEOUT_MS: &str = "consumer.session.timeout.ms";
const HEARTBEAT_INTERVAL_MS: &str = "consumer.heartbeat.interval.ms";

/// A config that a single group may have.
#[derive(Debug)]
pub(crate) struct DynamicGroupConfig {
    pub(crate) name: &'static str,
    range_ms: RangeInclusive<i32>,
    /// The broker's setting that gives the default.
    pub(crate) setting: &'static str,
    /// Kafka's name for that setting.
    pub(crate) synonym: &'static str,
    pub(crate) help: &'static str,
}

/// Every config that a single group may have.
pub(crate) const DYNAMIC_CONFIGS: [DynamicGroupConfig; 2] = [
    DynamicGroupConfig {
        name: HEARTBEAT_INTERVAL_MS,
        range_ms: 100..=600_000,
        setting: "group_consumer_heartbeat_interval_ms",
        synonym: "group.consumer.heartbeat.interval.ms",
        help: "Heartbeat interval of members of the new group protocol (KIP-848), in ms, from 100 to 600000 and below the session time-out.",
    },
    DynamicGroupConfig {
        name: SESSION_TIMEOUT_MS,
        range_ms: 1_000..=1_800_000,
        setting: "group_consumer_session_timeout_ms",
        synonym: "group.consumer.session.timeout.ms",
        help: "A member of the new group protocol that is not heard of for so long is given up, in ms, from 1000 to 1800000.",
    },
];

/// Whether `value` is what the config called `name` takes; else a sentence why not.
pub(crate) fn check(name: &str, value: &str) -> Result<(), String> {
    let Some(config) = DYNAMIC_CONFIGS.iter().find(|c| c.name == name) else {
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

/// Whether the configs set on a group are consistent with each other and with the broker's
/// settings; else a sentence why not.
pub(crate) fn check_together(base: &GroupSettings, set: &BTreeMap<String, String>) -> Result<(), String> {
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

/// The settings of a group: the broker's, with what is set on the group itself.
pub(crate) fn resolve(base: &GroupSettings, set: &BTreeMap<String, String>) -> GroupSettings {
    let (session, heartbeat) = times(base, set);
    // A broker whose own settings changed since then may have made a pair that does not go
    // together.
    let heartbeat = if heartbeat < session { heartbeat } else { (session / 3).max(1) };
    GroupSettings {
        consumer_session_timeout_ms: session,
        consumer_heartbeat_interval_ms: heartbeat,
        ..base.clone()
    }
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
            let settings = resolve(&base(), &set);
            (settings.consumer_session_timeout_ms, settings.consumer_heartbeat_interval_ms)
        };
        assert_eq!(of(set(&[])), (45_000, 5_000));
        assert_eq!(of(set(&[(HEARTBEAT_INTERVAL_MS, "700")])), (45_000, 700));
        assert_eq!(of(set(&[(SESSION_TIMEOUT_MS, "3000")])), (3_000, 1_000));
    }
}
