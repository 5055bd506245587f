//! Features of the whole cluster (KIP-584): what clients may take for granted, and what the log may
//! hold.
//!
//! What clients may take for granted is on, and has no level to be stored: every broker of this
//! version speaks the same. What the log and its objects may hold depends on the oldest build that
//! has to read them, so its level is in the log, and an operator raises it when every broker is new
//! enough (`kafka-features.sh upgrade`).

use kafka_protocol::error::ResponseError;
use strandline_metadata::brokers::level_known_to;
use strandline_metadata::state::{FEATURE_LEVEL, State, TRANSACTIONS, TransactionVersion};
use strandline_metadata::values::BrokerValue;

/// A feature, with the levels that this broker knows and the one that is in force.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Feature {
    pub(crate) name: &'static str,
    pub(crate) least: i16,
    pub(crate) most: i16,
    pub(crate) level: i16,
}

/// The feature that stands for what the cluster's own log may hold.
pub(crate) const LOG_FEATURE: &str = "strandline.version";
/// Kafka's feature that stands for how transactions work (KIP-890): from 2 on, batches add their
/// partitions, and every end bumps the epoch.
const TRANSACTION_FEATURE: &str = "transaction.version";

/// The version of Kafka whose semantics brokers have, as Kafka writes its metadata versions.
pub(crate) const KAFKA_VERSION: &str = "4.3-IV0";
/// Kafka's number for it. Tools read out of it what a cluster can do.
const KAFKA_METADATA_LEVEL: i16 = 30;

/// What is in force in a cluster, as its log says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Levels {
    /// What the log may hold.
    pub(crate) log: u32,
    /// The version of transactions that clients may take for granted.
    pub(crate) transactions: TransactionVersion,
}

impl Levels {
    pub(crate) fn of(state: &State) -> Self {
        Self { log: log_level(state), transactions: state.transaction_version() }
    }

    /// Names what [`features`] says: clients take over a list with a higher number than the one
    /// that they know.
    pub(crate) fn epoch(self) -> i64 {
        i64::from(self.log) + i64::from(self.transactions.changes)
    }
}

/// Every feature of a cluster with these levels. Below the log's level of transactions there is no
/// `transaction.version`. `metadata.version` follows from the build and has one level.
pub(crate) fn features(levels: Levels) -> Vec<Feature> {
    let level = |level: u32| i16::try_from(level).unwrap_or(i16::MAX);
    let transactions =
        Feature { name: TRANSACTION_FEATURE, least: 0, most: 2, level: level(levels.transactions.version) };
    let mut features = vec![
        Feature { name: "group.version", least: 0, most: 1, level: 1 },
        Feature {
            name: "metadata.version",
            least: KAFKA_METADATA_LEVEL,
            most: KAFKA_METADATA_LEVEL,
            level: KAFKA_METADATA_LEVEL,
        },
        Feature { name: LOG_FEATURE, least: 1, most: level(FEATURE_LEVEL), level: level(levels.log) },
    ];
    if levels.log >= TRANSACTIONS {
        features.push(transactions);
    }
    features
}

/// The feature level of a cluster's log. The first one is not stated by a record.
pub(crate) fn log_level(state: &State) -> u32 {
    state.feature_level().max(1)
}

/// How a feature's level is to change, by Kafka's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Upgrade,
    Downgrade,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Update {
    pub(crate) name: String,
    pub(crate) level: i16,
    /// `None` if it is no direction that Kafka knows.
    pub(crate) direction: Option<Direction>,
}

/// What updates change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// To which level the log is to be raised.
    pub(crate) log: Option<u32>,
    /// The version that transactions are to have.
    pub(crate) transactions: Option<u32>,
}

/// What the updates change, if they are right; else the error, and a sentence for people.
pub(crate) fn update(levels: Levels, updates: &[Update]) -> Result<Changes, (ResponseError, String)> {
    let mut changes = Changes::default();
    for (index, update) in updates.iter().enumerate() {
        let name = &update.name;
        if updates.iter().take(index).any(|other| other.name == *name) {
            return Err((ResponseError::InvalidRequest, format!("{name} occurs twice in the request")));
        }
        let is_new = check(levels, update).map_err(|why| {
            let level = update.level;
            (
                ResponseError::InvalidUpdateVersion,
                format!("Invalid update version {level} for feature {name}. {why}"),
            )
        })?;
        if is_new {
            let level = u32::try_from(update.level).ok();
            *(if name == LOG_FEATURE { &mut changes.log } else { &mut changes.transactions }) = level;
        }
    }
    Ok(changes)
}

/// Whether an update changes anything; else why it cannot be made.
fn check(levels: Levels, update: &Update) -> Result<bool, String> {
    let Some(direction) = update.direction else {
        return Err("This is neither an upgrade nor a downgrade.".to_owned());
    };
    let features = features(levels);
    let Some(feature) = features.iter().find(|f| f.name == update.name) else {
        return Err(match update.name.as_str() {
            TRANSACTION_FEATURE => {
                format!("There are transactions from {LOG_FEATURE} {TRANSACTIONS} on: raise that first.")
            }
            "kraft.version" => {
                "There is no controller quorum here: metadata are in etcd, and brokers agree on their format by themselves.".to_owned()
            }
            _ => "This broker does not support this feature.".to_owned(),
        });
    };
    let Feature { least, most, level, .. } = *feature;
    if !(least..=most).contains(&update.level) {
        return Err(format!("This broker only supports versions {least} to {most}."));
    }
    match direction {
        _ if update.level == level => Ok(false),
        _ if update.level > level => Ok(true),
        // It says what clients do from now on; what they did stays understood.
        Direction::Downgrade if update.name == TRANSACTION_FEATURE => Ok(true),
        Direction::Upgrade => Err(
            "Can't downgrade the version of this feature without setting the upgrade type to either safe or unsafe downgrade."
                .to_owned(),
        ),
        Direction::Downgrade => Err(format!(
            "Level {level} cannot be left: what has been written since it is in force stays written."
        )),
    }
}

/// Why the log cannot be raised to this level while these brokers are registered, if it cannot.
pub(crate) fn too_old<'a>(level: u32, brokers: impl Iterator<Item = &'a BrokerValue>) -> Option<String> {
    let mut old = brokers.filter(|broker| level_known_to(&broker.version) < level);
    let first = old.next()?;
    Some(format!(
        "Broker {} has version {}, which does not know level {level}; {} more brokers are too old. Upgrade them first.",
        first.node_id,
        first.version,
        old.count()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_force_stays_and_everything_else_is_refused() {
        let at = |log| Levels { log, transactions: TransactionVersion::default() };
        let nothing = Changes::default();
        let update = |name: &str, level, direction| {
            let update = Update { name: name.to_owned(), level, direction };
            super::update(at(1), &[update]).map_err(|(_, why)| why)
        };
        assert_eq!(update("group.version", 1, Some(Direction::Upgrade)), Ok(nothing));
        assert_eq!(update("group.version", 1, Some(Direction::Downgrade)), Ok(nothing));
        assert_eq!(update(LOG_FEATURE, 1, Some(Direction::Upgrade)), Ok(nothing));
        let raised = Changes { log: Some(2), ..nothing };
        assert_eq!(update(LOG_FEATURE, 2, Some(Direction::Upgrade)), Ok(raised));
        let version = |level, direction| {
            let name = TRANSACTION_FEATURE.to_owned();
            super::update(at(TRANSACTIONS), &[Update { name, level, direction: Some(direction) }])
        };
        assert_eq!(version(2, Direction::Upgrade), Ok(nothing));
        let lowered = Changes { transactions: Some(1), ..nothing };
        assert_eq!(version(1, Direction::Downgrade), Ok(lowered));
        assert!(version(1, Direction::Upgrade).is_err() && version(3, Direction::Upgrade).is_err());
        let down = [Update { name: LOG_FEATURE.to_owned(), level: 1, direction: Some(Direction::Downgrade) }];
        assert!(super::update(at(2), &down).unwrap_err().1.contains("cannot be left"));
        for (name, level, direction, why) in [
            ("group.version", 0, Some(Direction::Upgrade), "without setting the upgrade type"),
            ("group.version", 0, Some(Direction::Downgrade), "cannot be left"),
            ("group.version", 2, Some(Direction::Upgrade), "0 to 1"),
            ("group.version", -1, Some(Direction::Upgrade), "0 to 1"),
            ("group.version", 1, None, "neither"),
            (LOG_FEATURE, 0, Some(Direction::Downgrade), "1 to 5"),
            (LOG_FEATURE, 6, Some(Direction::Upgrade), "1 to 5"),
            ("transaction.version", 2, Some(Direction::Upgrade), "raise that first"),
            ("metadata.version", 20, Some(Direction::Upgrade), "30 to 30"),
            ("kraft.version", 1, Some(Direction::Upgrade), "etcd"),
            ("tea.version", 1, Some(Direction::Upgrade), "does not support"),
        ] {
            let said = update(name, level, direction).unwrap_err();
            assert!(said.contains(why) && said.contains(name), "{said}");
        }
        for feature in [1, FEATURE_LEVEL].into_iter().flat_map(|log| features(at(log))) {
            assert!((feature.least..=feature.most).contains(&feature.level));
        }
    }
}
