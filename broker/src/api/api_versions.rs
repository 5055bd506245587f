//! ApiVersions (key 18), versions 0–4.
//!
//! What is spoken, derived from the one table. A version that is not known is answered as version 0
//! with UNSUPPORTED_VERSION and the versions that are, so that clients can go down (KIP-511). The
//! client's software name and version are noted for the metrics; names that are not of Kafka's form
//! are refused. Features that may be off (level 0) are named as supported from version 4 on only,
//! as Kafka does: older clients cannot read them.

use std::ops::RangeInclusive;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::api_versions_response::{ApiVersion, FinalizedFeatureKey, SupportedFeatureKey};
use kafka_protocol::messages::{ApiKey, ApiVersionsRequest, ApiVersionsResponse};
use kafka_protocol::protocol::{Encodable, StrBytes};

use super::{Api, Call, PendingReply, Reply, SUPPORTED};
use crate::features::{self, Levels};
use crate::limits::SOFTWARE_TEXT_BYTES;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=4;

pub(crate) fn handle(call: &Call, request: &ApiVersionsRequest) -> ApiVersionsResponse {
    if call.version >= 3 {
        let (name, version) = (&request.client_software_name, &request.client_software_version);
        if !is_software_text(name) || !is_software_text(version) {
            return ApiVersionsResponse::default().with_error_code(ResponseError::InvalidRequest.code());
        }
        // Only the first word counts: a client says it once per connection.
        if call.client.software.set((name.to_string(), version.to_string())).is_ok() {
            call.broker.metrics.client_software(name, version);
        }
    }
    if call.version >= 3 { with_features(call, spoken()) } else { spoken() }
}

fn with_features(call: &Call, response: ApiVersionsResponse) -> ApiVersionsResponse {
    let levels = call.broker.replica.read(|view| Levels::of(&view.state));
    let known = features::features(levels);
    let supported = known.iter().filter(|f| call.version >= 4 || f.least > 0).map(|f| {
        SupportedFeatureKey::default()
            .with_name(StrBytes::from_static_str(f.name))
            .with_min_version(f.least)
            .with_max_version(f.most)
    });
    let finalized = known.iter().map(|f| {
        FinalizedFeatureKey::default()
            .with_name(StrBytes::from_static_str(f.name))
            .with_min_version_level(f.level)
            .with_max_version_level(f.level)
    });
    response
        .with_supported_features(supported.collect())
        .with_finalized_features_epoch(levels.epoch())
        .with_finalized_features(finalized.collect())
}

fn spoken() -> ApiVersionsResponse {
    let mut keys: Vec<ApiVersion> = SUPPORTED
        .iter()
        .map(|Api { key: api, versions, .. }| {
            ApiVersion::default()
                .with_api_key(*api as i16)
                .with_min_version(listed_from(*api, versions))
                .with_max_version(*versions.end())
        })
        .collect();
    keys.sort_by_key(|k| k.api_key);
    ApiVersionsResponse::default().with_api_keys(keys)
}

/// The lowest version that is listed. Kafka 4 lists the oldest versions of Produce as well, and
/// disconnects who sends them: librdkafka before 2.8 reads out of the list which codecs there are.
fn listed_from(api: ApiKey, versions: &RangeInclusive<i16>) -> i16 {
    if api == ApiKey::Produce { 0 } else { *versions.start() }
}

/// The answer to a version that is not spoken: in version 0, so that any client can read it. As in
/// Kafka it lists the versions of this API only, so that who asked asks again (KIP-511): one that
/// took a full list for the answer would never hear of features.
pub(super) fn unsupported(frame: &Bytes) -> PendingReply {
    let correlation_id = frame.get(4..8).map_or(0, |mut id| id.get_i32());
    let own = ApiVersion::default()
        .with_api_key(ApiKey::ApiVersions as i16)
        .with_min_version(*VERSIONS.start())
        .with_max_version(*VERSIONS.end());
    let response = ApiVersionsResponse::default()
        .with_error_code(ResponseError::UnsupportedVersion.code())
        .with_api_keys(vec![own]);
    let mut body = BytesMut::new();
    body.put_i32(0);
    body.put_i32(correlation_id);
    let encoded = response.encode(&mut body, 0).is_ok();
    let length = i32::try_from(body.len() - 4).unwrap_or(i32::MAX);
    body[..4].copy_from_slice(&length.to_be_bytes());
    let reply = encoded.then(|| Reply { pieces: vec![body.freeze()], ..Reply::default() });
    Box::pin(async move { reply })
}

/// Kafka's rule for these texts: letters, digits, `-` and `.`, beginning and ending with a letter
/// or digit. And they are short, since they are remembered for as long as the connection is there.
fn is_software_text(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric();
    !text.is_empty()
        && text.len() <= SOFTWARE_TEXT_BYTES
        && text.chars().all(|c| plain(c) || matches!(c, '-' | '.'))
        && text.starts_with(plain)
        && text.ends_with(plain)
}
