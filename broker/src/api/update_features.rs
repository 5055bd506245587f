//! UpdateFeatures (key 57), versions 0–2 (KIP-584, KIP-778).
//!
//! What clients may take for granted is in force and stays so: the level that such a feature has
//! can be asked for, and every other one is refused with INVALID_UPDATE_VERSION and a sentence. The
//! level of the log can be raised, once every registered broker is of a build that knows it, and
//! never lowered; `transaction.version` can be both. As in Kafka, one refusal refuses the whole
//! request, and from version 2 on the answer names no single features (KIP-1022).

use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::update_features_request::FeatureUpdateKey;
use kafka_protocol::messages::update_features_response::UpdatableFeatureResult;
use kafka_protocol::messages::{UpdateFeaturesRequest, UpdateFeaturesResponse};
use strandline_metadata::brokers;
use tracing::info;

use super::{Call, text};
use crate::Broker;
use crate::features::{self, Changes, Direction, Levels, Update};
use crate::topics::{TopicError, commit, commit_error};

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=2;

pub(super) async fn handle(call: &Call, request: UpdateFeaturesRequest) -> UpdateFeaturesResponse {
    let update = |key: &FeatureUpdateKey| Update {
        name: key.feature.to_string(),
        level: key.max_version_level,
        direction: direction(call.version, key),
    };
    let updates: Vec<Update> = request.feature_updates.iter().map(update).collect();
    if let Err((code, why)) = apply(&call.broker, &updates, request.validate_only).await {
        let why =
            format!("The update failed for all features since the following feature had an error: {why}");
        return UpdateFeaturesResponse::default()
            .with_error_code(code.code())
            .with_error_message(Some(text(why)));
    }
    let result = |update: Update| {
        UpdatableFeatureResult::default().with_feature(text(update.name)).with_error_message(None)
    };
    let results = if call.version <= 1 { updates.into_iter().map(result).collect() } else { Vec::new() };
    UpdateFeaturesResponse::default().with_error_message(None).with_results(results)
}

/// Raises the level of the log, or changes the version of transactions, if that is asked for.
async fn apply(
    broker: &Broker,
    updates: &[Update],
    validate_only: bool,
) -> Result<(), (ResponseError, String)> {
    // Who is registered, and at which level the log is, is known here with a delay.
    if broker.replica.barrier().await.is_err() {
        let why = "the metadata store does not answer; try again".to_owned();
        return Err((ResponseError::RequestTimedOut, why));
    }
    let (levels, too_old) = broker.replica.read(|view| {
        let levels = Levels::of(&view.state);
        let brokers: Vec<_> = view.names.brokers().values().cloned().collect();
        (levels, move |wanted| features::too_old(wanted, brokers.iter().map(|broker| &broker.value)))
    });
    let changes = features::update(levels, updates)?;
    if changes == Changes::default() {
        return Ok(());
    }
    let wanted = changes.log.unwrap_or(levels.log);
    if let Some(why) = too_old(wanted) {
        return Err((ResponseError::InvalidUpdateVersion, why));
    }
    if validate_only {
        return Ok(());
    }
    let (backend, keys) = (broker.replica.backend(), broker.replica.keys());
    let (cluster, revision) = match brokers::read_cluster(backend.as_ref(), keys).await {
        Ok(Some(stored)) => stored,
        Ok(None) => {
            return Err((ResponseError::UnknownServerError, "the cluster's own key is gone".to_owned()));
        }
        Err(error) => return Err((ResponseError::RequestTimedOut, error.to_string())),
    };
    let conflict =
        TopicError::new(ResponseError::RequestTimedOut, "somebody else changes it just now; try again");
    commit(broker, brokers::raise_level(keys, &cluster, revision, wanted, changes.transactions))
        .await
        .map_err(|error| commit_error(&error, conflict))
        .map_err(|error| (error.code, error.message))?;
    info!(level = wanted, transactions = ?changes.transactions, "feature levels are changed");
    Ok(())
}

fn direction(version: i16, key: &FeatureUpdateKey) -> Option<Direction> {
    match key.upgrade_type {
        _ if version == 0 => {
            Some(if key.allow_downgrade { Direction::Downgrade } else { Direction::Upgrade })
        }
        1 => Some(Direction::Upgrade),
        2 | 3 => Some(Direction::Downgrade),
        _ => None,
    }
}
