//! Features of the whole cluster (KIP-584): what clients may take for granted.
//!
//! What is listed here is on. There is no level to be stored: every broker of this version speaks the same, and what
//! `apply` may do has a level of its own that no client sets.

use kafka_protocol::error::ResponseError;

/// A feature, with the levels that this broker knows and the one that is in force.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Feature {
    pub(crate) name: &'static str,
    pub(crate) least: i16,
    pub(crate) most: i16,
    pub(crate) level: i16,
}

/// Every feature. Without transactions there is no `transaction.version`.
pub(crate) const FEATURES: &[Feature] = &[Feature { name: "group.version", least: 0, most: 1, level: 1 }];

/// Names this list: clients take over a list with a higher number than the one that they know. Raised with the list.
pub(crate) const EPOCH: i64 = 1;

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

/// Whether all features are then as they are now; else the error, and a sentence for people.
pub(crate) fn update(updates: &[Update]) -> Result<(), (ResponseError, String)> {
    for (index, update) in updates.iter().enumerate() {
        let name = &update.name;
        if updates.iter().take(index).any(|other| other.name == *name) {
            return Err((ResponseError::InvalidRequest, format!("{name} occurs twice in the request")));
        }
        check(update).map_err(|why| {
            let level = update.level;
            (
                ResponseError::InvalidUpdateVersion,
                format!("Invalid update version {level} for feature {name}. {why}"),
            )
        })?;
    }
    Ok(())
}

fn check(update: &Update) -> Result<(), String> {
    let Some(direction) = update.direction else {
        return Err("This is neither an upgrade nor a downgrade.".to_owned());
    };
    let Some(feature) = FEATURES.iter().find(|f| f.name == update.name) else {
        return Err(match update.name.as_str() {
            "transaction.version" => "Transactions are not supported yet.".to_owned(),
            "metadata.version" | "kraft.version" => {
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
        _ if update.level == level => Ok(()),
        Direction::Upgrade => Err(
            "Can't downgrade the version of this feature without setting the upgrade type to either safe or unsafe downgrade."
                .to_owned(),
        ),
        Direction::Downgrade => Err(format!(
            "Level {level} cannot be left: every broker speaks it, and there is no switch to turn it off."
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_force_stays_and_everything_else_is_refused() {
        let update = |name: &str, level, direction| {
            super::update(&[Update { name: name.to_owned(), level, direction }]).map_err(|(_, why)| why)
        };
        assert_eq!(update("group.version", 1, Some(Direction::Upgrade)), Ok(()));
        assert_eq!(update("group.version", 1, Some(Direction::Downgrade)), Ok(()));
        for (name, level, direction, why) in [
            ("group.version", 0, Some(Direction::Upgrade), "without setting the upgrade type"),
            ("group.version", 0, Some(Direction::Downgrade), "cannot be left"),
            ("group.version", 2, Some(Direction::Upgrade), "0 to 1"),
            ("group.version", -1, Some(Direction::Upgrade), "0 to 1"),
            ("group.version", 1, None, "neither"),
            ("transaction.version", 2, Some(Direction::Upgrade), "not supported yet"),
            ("metadata.version", 20, Some(Direction::Upgrade), "etcd"),
            ("tea.version", 1, Some(Direction::Upgrade), "does not support"),
        ] {
            let said = update(name, level, direction).unwrap_err();
            assert!(said.contains(why) && said.contains(name), "{said}");
        }
        for feature in FEATURES {
            assert!((feature.least..=feature.most).contains(&feature.level));
        }
    }
}
