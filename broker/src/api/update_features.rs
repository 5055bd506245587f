//! UpdateFeatures (key 57), versions 0–2 (KIP-584, KIP-778).
//!
//! What ApiVersions names is in force and stays so: the level that a feature has can be asked for, and every other one
//! is refused with INVALID_UPDATE_VERSION and a sentence. As in Kafka, one refusal refuses the whole request, and from
//! version 2 on the answer names no single features (KIP-1022). There is nothing to store, so validate-only makes no
//! difference.

use std::ops::RangeInclusive;

use kafka_protocol::messages::update_features_request::FeatureUpdateKey;
use kafka_protocol::messages::update_features_response::UpdatableFeatureResult;
use kafka_protocol::messages::{UpdateFeaturesRequest, UpdateFeaturesResponse};

use super::{Call, text};
use crate::features::{self, Direction, Update};

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=2;

#[expect(clippy::unused_async, reason = "handlers are alike, and most of them wait for something")]
pub(super) async fn handle(call: &Call, request: UpdateFeaturesRequest) -> UpdateFeaturesResponse {
    let update = |key: &FeatureUpdateKey| Update {
        name: key.feature.to_string(),
        level: key.max_version_level,
        direction: direction(call.version, key),
    };
    let updates: Vec<Update> = request.feature_updates.iter().map(update).collect();
    match features::update(&updates) {
        Ok(()) => {
            let result = |update: Update| {
                UpdatableFeatureResult::default().with_feature(text(update.name)).with_error_message(None)
            };
            let results =
                if call.version <= 1 { updates.into_iter().map(result).collect() } else { Vec::new() };
            UpdateFeaturesResponse::default().with_error_message(None).with_results(results)
        }
        Err((code, why)) => {
            let why =
                format!("The update failed for all features since the following feature had an error: {why}");
            UpdateFeaturesResponse::default().with_error_code(code.code()).with_error_message(Some(text(why)))
        }
    }
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
