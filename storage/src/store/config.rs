//! What an operator says about the store. Plain data: whoever reads the configuration fills it in.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::clock::ServerClock;
use crate::limits::{DEFAULT_REQUEST_TIMEOUT, DEFAULT_RETRY_BUDGET};

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself, for the one place that signs with it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Where the store is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreUrl {
    /// `s3://bucket/prefix`: any server that speaks S3.
    S3 {
        /// The bucket, which must exist.
        bucket: String,
        /// Put before every key; may be empty.
        prefix: String,
    },
    /// `file:///path`: a folder of this machine, made if absent. For one broker, or several on one
    /// machine.
    File {
        /// The folder.
        path: PathBuf,
    },
    /// `memory:`: gone when the process ends. For tests and first steps.
    Memory,
}

/// A text that names no store.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a store URL: use s3://bucket/prefix, file:///path or memory:")]
pub struct ParseUrlError(String);

impl FromStr for StoreUrl {
    type Err = ParseUrlError;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        let fail = || ParseUrlError(url.to_owned());
        if let Some(rest) = url.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let valid = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
            // A colon or an @ here is a mistaken endpoint or credential.
            if bucket.is_empty() || !bucket.bytes().all(valid) {
                return Err(fail());
            }
            return Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() });
        }
        if let Some(path) = url.strip_prefix("file://") {
            if !path.starts_with('/') {
                return Err(fail());
            }
            return Ok(Self::File { path: path.into() });
        }
        match url {
            "memory:" | "memory://" => Ok(Self::Memory),
            _ => Err(fail()),
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::File { path } => write!(f, "file://{}", path.display()),
            Self::Memory => f.write_str("memory:"),
        }
    }
}

/// The checksum that accompanies every PUT, so that the server refuses what was damaged on the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Checksum {
    /// None, for servers that refuse a checksum header that they do not know.
    None,
    /// CRC-32C: costs nothing, since it follows from the checksums of the batches; S3 itself, and
    /// MinIO since 2022, check it.
    #[default]
    Crc32c,
    /// CRC-64/NVME, which takes another pass over the bytes; S3 itself and MinIO since 2025 check
    /// it.
    Crc64Nvme,
    /// SHA-256: known to every server, and three times the cost of a PUT.
    Sha256,
}

impl FromStr for Checksum {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "none" => Ok(Self::None),
            "crc32c" => Ok(Self::Crc32c),
            "crc64nvme" => Ok(Self::Crc64Nvme),
            "sha256" => Ok(Self::Sha256),
            _ => Err(format!("{name:?} is not a checksum: use none, crc32c, crc64nvme or sha256")),
        }
    }
}

/// How to reach a store, and how patient to be with it. Everything but the URL has a default.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Where the store is.
    pub url: StoreUrl,
    /// Put before every key, after the URL's own prefix: the cluster id.
    pub prefix: String,
    /// The S3 server, `https://host:port`; Amazon's for the region if absent.
    pub endpoint: Option<String>,
    /// The region that requests are signed for; `us-east-1` if absent.
    pub region: Option<String>,
    /// Static credentials. If absent: the environment's (`AWS_…`), a web identity, the container's,
    /// the instance's.
    pub access_key_id: Option<String>,
    /// The secret of the static credentials.
    pub secret_access_key: Option<Secret>,
    /// The session token of temporary static credentials.
    pub session_token: Option<Secret>,
    /// Where the instance's credentials come from, instead of the environment and the usual
    /// address.
    pub metadata_endpoint: Option<String>,
    /// Allow plain HTTP for S3.
    pub allow_http: bool,
    /// Bucket in the path (`host/bucket/key`) instead of the host (`bucket.host/key`).
    pub path_style: bool,
    /// Additional CA certificates (PEM) for S3.
    pub ca_file: Option<PathBuf>,
    /// The checksum that accompanies every PUT.
    pub checksum: Checksum,
    /// How long one attempt of one request may take.
    pub request_timeout: Duration,
    /// Time-out of a request to the object store, retries included.
    pub retry_budget: Duration,
    /// Whether a folder's files and directories are flushed to the disk before a PUT returns.
    pub fsync: bool,
    /// Where the server's own clock is noted, as its answers show it. Only S3 has one.
    pub server_clock: ServerClock,
}

impl StoreConfig {
    /// A store with the defaults.
    pub fn new(url: StoreUrl) -> Self {
        Self {
            url,
            prefix: String::new(),
            endpoint: None,
            region: None,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            metadata_endpoint: None,
            allow_http: false,
            path_style: true,
            ca_file: None,
            checksum: Checksum::default(),
            request_timeout: DEFAULT_REQUEST_TIMEOUT,
            retry_budget: DEFAULT_RETRY_BUDGET,
            fsync: true,
            server_clock: ServerClock::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_shown() {
        let s3 = StoreUrl::S3 { bucket: "my-bucket".into(), prefix: "a/b".into() };
        assert_eq!("s3://my-bucket/a/b".parse(), Ok(s3.clone()));
        assert_eq!(s3.to_string(), "s3://my-bucket/a/b");
        assert_eq!("s3://b".parse(), Ok(StoreUrl::S3 { bucket: "b".into(), prefix: String::new() }));
        assert_eq!("file:///tmp/x".parse(), Ok(StoreUrl::File { path: "/tmp/x".into() }));
        assert_eq!("memory:".parse(), Ok(StoreUrl::Memory));
    }

    #[test]
    fn what_names_no_store_is_refused() {
        for url in
            ["", "s3:", "s3://", "s3:///prefix", "s3://host:9000/b", "file://x", "memory", "http://h/b", "/x"]
        {
            assert!(url.parse::<StoreUrl>().is_err(), "{url}");
        }
    }

    #[test]
    fn secrets_do_not_show() {
        let mut config = StoreConfig::new(StoreUrl::Memory);
        config.secret_access_key = Some(Secret::new("hunter2"));
        config.session_token = Some(Secret::new("hunter3"));
        let shown = format!("{config:?}");
        assert!(!shown.contains("hunter"), "{shown}");
        assert_eq!(config.secret_access_key.unwrap().expose(), "hunter2");
    }
}
