//! The S3 client: which server, which credentials, which certificates.

use std::fs;
use std::sync::Arc;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum as ClientChecksum};
use object_store::client::HttpConnector;
use object_store::{Certificate, ClientOptions, RetryConfig};

use super::config::{Checksum, StoreConfig};
use super::s3_connector::S3Connector;
use super::s3_delete::BulkDelete;
use crate::error::StoreError;
use crate::limits::{CONNECT_TIMEOUT, POOL_IDLE_TIMEOUT};

/// The region that requests are signed for when none is given; servers other than Amazon's mostly
/// ignore it.
const DEFAULT_REGION: &str = "us-east-1";

/// What the environment may say about credentials, and nothing else: an endpoint or a bucket there
/// must not overrule the configuration.
const ENVIRONMENT_CREDENTIALS: [AmazonS3ConfigKey; 10] = [
    AmazonS3ConfigKey::AccessKeyId,
    AmazonS3ConfigKey::SecretAccessKey,
    AmazonS3ConfigKey::Token,
    AmazonS3ConfigKey::WebIdentityTokenFile,
    AmazonS3ConfigKey::RoleArn,
    AmazonS3ConfigKey::RoleSessionName,
    AmazonS3ConfigKey::ContainerCredentialsRelativeUri,
    AmazonS3ConfigKey::ContainerCredentialsFullUri,
    AmazonS3ConfigKey::ContainerAuthorizationTokenFile,
    AmazonS3ConfigKey::MetadataEndpoint,
];

/// Builds the client, and what deletes many objects with one request. It makes no request.
fn build(config: &StoreConfig, bucket: &str) -> Result<(AmazonS3, BulkDelete), StoreError> {
    // TLS needs a process-wide provider. Somebody may have installed one already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let region = config.region.as_deref().unwrap_or(DEFAULT_REGION);
    let mut builder = credentials(AmazonS3Builder::new(), config)?
        .with_bucket_name(bucket)
        .with_region(region)
        .with_allow_http(config.allow_http)
        .with_virtual_hosted_style_request(!config.path_style)
        // The payload is covered by TLS and by the checksum below; signing it would cost more than
        // all else.
        .with_unsigned_payload(true)
        // See `s3_delete.rs`.
        .with_disable_bulk_delete(true)
        .with_client_options(client_options(config)?)
        // One policy, above the trait (see `retry.rs`).
        .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() });
    if let Some(endpoint) = endpoint(config, bucket)? {
        builder = builder.with_endpoint(endpoint);
    }
    let sends_checksum = config.checksum == Checksum::Crc32c;
    let connector = S3Connector::new(region.to_owned(), sends_checksum, config.server_clock.clone());
    builder = builder.with_http_connector(connector.clone());
    builder = match config.checksum {
        Checksum::None | Checksum::Crc32c => builder,
        Checksum::Crc64Nvme => builder.with_checksum_algorithm(ClientChecksum::CRC64NVME),
        Checksum::Sha256 => builder.with_checksum_algorithm(ClientChecksum::SHA256),
    };
    let fail =
        |error: object_store::Error| StoreError::invalid(format!("the S3 client cannot be set up: {error}"));
    let client = builder.build().map_err(fail)?;
    connector.sign_with(client.credentials().clone());
    let http = connector.connect(&client_options(config)?).map_err(fail)?;
    let bulk =
        BulkDelete::new(http, &bucket_url(config, bucket, region)?, region, client.credentials().clone());
    Ok((client, bulk))
}

/// The endpoint as the client wants it: with the bucket in the host, if it is to be there.
fn endpoint(config: &StoreConfig, bucket: &str) -> Result<Option<String>, StoreError> {
    let Some(endpoint) = &config.endpoint else { return Ok(None) };
    Ok(Some(if config.path_style { endpoint.clone() } else { bucket_in_host(endpoint, bucket)? }))
}

/// Where the bucket is, as the client has it too.
fn bucket_url(config: &StoreConfig, bucket: &str, region: &str) -> Result<String, StoreError> {
    let host = match endpoint(config, bucket)? {
        Some(endpoint) => endpoint.trim_end_matches('/').to_owned(),
        None if config.path_style => format!("https://s3.{region}.amazonaws.com"),
        None => format!("https://{bucket}.s3.{region}.amazonaws.com"),
    };
    Ok(if config.path_style { format!("{host}/{bucket}") } else { format!("{host}/") })
}

fn credentials(mut builder: AmazonS3Builder, config: &StoreConfig) -> Result<AmazonS3Builder, StoreError> {
    match (&config.access_key_id, &config.secret_access_key) {
        (Some(id), Some(secret)) => {
            builder = builder.with_access_key_id(id).with_secret_access_key(secret.expose());
            if let Some(token) = &config.session_token {
                builder = builder.with_token(token.expose());
            }
            Ok(builder)
        }
        (None, None) if let Some(endpoint) = &config.metadata_endpoint => {
            Ok(builder.with_metadata_endpoint(endpoint))
        }
        (None, None) => {
            let environment = AmazonS3Builder::from_env();
            for key in ENVIRONMENT_CREDENTIALS {
                if let Some(value) = environment.get_config_value(&key) {
                    builder = builder.with_config(key, value);
                }
            }
            Ok(builder)
        }
        (Some(_), None) => Err(StoreError::invalid("an access key id is configured without its secret")),
        (None, Some(_)) => Err(StoreError::invalid("a secret access key is configured without its id")),
    }
}

fn client_options(config: &StoreConfig) -> Result<ClientOptions, StoreError> {
    let mut options = ClientOptions::new()
        .with_allow_http(config.allow_http)
        .with_connect_timeout(CONNECT_TIMEOUT.min(config.request_timeout))
        .with_pool_idle_timeout(POOL_IDLE_TIMEOUT)
        // The time limit of an attempt is a decorator; this one only frees the connection a little
        // later.
        .with_timeout(config.request_timeout * 2);
    if let Some(path) = &config.ca_file {
        let fail = |error: &dyn std::fmt::Display| {
            StoreError::invalid(format!("the CA file {} cannot be used: {error}", path.display()))
        };
        let pem = fs::read(path).map_err(|error| fail(&error))?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| fail(&error))?;
        if certificates.is_empty() {
            return Err(fail(&"it holds no certificate"));
        }
        for certificate in certificates {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(options)
}

/// `https://host:port` with the bucket as the first label of the host.
fn bucket_in_host(endpoint: &str, bucket: &str) -> Result<String, StoreError> {
    match endpoint.split_once("://") {
        Some((scheme, host)) if !host.is_empty() => Ok(format!("{scheme}://{bucket}.{host}")),
        _ => Err(StoreError::invalid(format!("the endpoint {endpoint:?} has no scheme and host"))),
    }
}

/// The client as a shared trait object, and what deletes many objects with one request.
pub(super) fn open(
    config: &StoreConfig,
    bucket: &str,
) -> Result<(Arc<AmazonS3>, Arc<BulkDelete>), StoreError> {
    if config.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"))
        && !config.allow_http
    {
        return Err(StoreError::invalid(
            "the endpoint is plain http, which the configuration does not allow",
        ));
    }
    let (client, bulk) = build(config, bucket)?;
    Ok((Arc::new(client), Arc::new(bulk)))
}

#[cfg(test)]
mod tests {
    use super::super::config::{Secret, StoreUrl};
    use super::*;

    fn config() -> StoreConfig {
        let mut config = StoreConfig::new(StoreUrl::S3 { bucket: "b".into(), prefix: String::new() });
        config.access_key_id = Some("id".into());
        config.secret_access_key = Some(Secret::new("secret"));
        config
    }

    #[test]
    fn half_a_credential_is_refused() {
        for half in [
            StoreConfig { secret_access_key: None, ..config() },
            StoreConfig { access_key_id: None, ..config() },
        ] {
            assert!(matches!(open(&half, "b"), Err(StoreError::Invalid { .. })));
        }
    }

    #[test]
    fn plain_http_must_be_allowed() {
        let endpoint = Some("http://127.0.0.1:1".to_owned());
        let refused = open(&StoreConfig { endpoint: endpoint.clone(), ..config() }, "b");
        assert!(matches!(refused, Err(StoreError::Invalid { what }) if what.contains("plain http")));
        open(&StoreConfig { endpoint, allow_http: true, ..config() }, "b").unwrap();
    }

    #[test]
    fn the_bucket_moves_into_the_host() {
        assert_eq!(bucket_in_host("https://s3.example:9000", "b").unwrap(), "https://b.s3.example:9000");
        assert!(bucket_in_host("s3.example", "b").is_err());
    }

    #[test]
    fn the_bucket_is_where_the_client_has_it() {
        let with = |endpoint: Option<&str>, path_style| {
            let config = StoreConfig { endpoint: endpoint.map(str::to_owned), path_style, ..config() };
            bucket_url(&config, "b", "r").unwrap()
        };
        assert_eq!(with(Some("http://h:1/"), true), "http://h:1/b");
        assert_eq!(with(Some("https://h:1"), false), "https://b.h:1/");
        assert_eq!(with(None, true), "https://s3.r.amazonaws.com/b");
        assert_eq!(with(None, false), "https://b.s3.r.amazonaws.com/");
    }

    #[test]
    fn a_ca_file_must_be_there_and_hold_a_certificate() {
        let path = std::env::temp_dir().join(format!("strandline-ca-{}", std::process::id()));
        fs::write(&path, "no certificate").unwrap();
        for file in [path.clone(), "/nonexistent/ca.pem".into()] {
            let refused = open(&StoreConfig { ca_file: Some(file), ..config() }, "b");
            assert!(matches!(refused, Err(StoreError::Invalid { what }) if what.contains("CA file")));
        }
        fs::remove_file(path).unwrap();
    }
}
