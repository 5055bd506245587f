//! How to reach etcd, and what of that is refused before anything is tried.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::limits::{PING_INTERVAL, PING_TIMEOUT};

/// Where etcd is and how to log in.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// Members of one cluster, as `http://host:port` or `https://host:port`. The first is tried
    /// first.
    pub endpoints: Vec<String>,
    /// User name, if etcd's authentication is on. It goes together with `password`.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Password>,
    /// PEM file with the certificates that sign etcd's own; needed for `https`.
    pub ca_file: Option<PathBuf>,
    /// PEM file with this client's certificate, if etcd asks for one. It goes together with
    /// `key_file`.
    pub cert_file: Option<PathBuf>,
    /// PEM file with the private key of `cert_file`.
    pub key_file: Option<PathBuf>,
    /// How long one member may take to accept a connection.
    pub connect_timeout: Duration,
    /// How long etcd may take to answer; after that a transaction's outcome is unknown.
    pub request_timeout: Duration,
}

/// A password that shows in no log line and no error.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

/// A setting that cannot work. Names the setting.
#[derive(Debug, thiserror::Error)]
pub enum EtcdConfigError {
    /// There is nothing to connect to.
    #[error("etcd endpoints: at least one is required")]
    NoEndpoints,
    /// An endpoint is not a URL, or not one that this client speaks.
    #[error("etcd endpoint {endpoint:?}: {reason}")]
    BadEndpoint {
        /// The endpoint as it was given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// One setting makes no sense without another.
    #[error("etcd {given} needs {missing}")]
    Incomplete {
        /// The setting that is there.
        given: &'static str,
        /// The setting that is not.
        missing: &'static str,
    },
    /// A file of the TLS settings cannot be read.
    #[error("etcd {setting} {}: {source}", path.display())]
    Unreadable {
        /// The setting that names the file.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The TLS files were read and are of no use.
    #[error("etcd TLS settings: {0}")]
    Tls(String),
    /// The settings make no client.
    #[error("etcd settings: {0}")]
    Client(String),
}

impl EtcdConfig {
    /// Plain connections without a user.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            user: None,
            password: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
        }
    }

    /// User and password, if etcd wants them.
    pub(super) fn credentials(&self) -> Result<Option<(String, Password)>, EtcdConfigError> {
        match (&self.user, &self.password) {
            (Some(user), Some(password)) => Ok(Some((user.clone(), password.clone()))),
            (None, None) => Ok(None),
            (Some(_), None) => Err(EtcdConfigError::Incomplete { given: "user", missing: "password" }),
            (None, Some(_)) => Err(EtcdConfigError::Incomplete { given: "password", missing: "user" }),
        }
    }

    /// What a connection to each endpoint is made from. Reads the TLS files.
    pub(super) fn transport(&self) -> Result<Vec<Endpoint>, EtcdConfigError> {
        if self.endpoints.is_empty() {
            return Err(EtcdConfigError::NoEndpoints);
        }
        let tls = self.tls()?;
        self.endpoints.iter().map(|endpoint| self.endpoint(endpoint, tls.as_ref())).collect()
    }

    fn endpoint(&self, url: &str, tls: Option<&ClientTlsConfig>) -> Result<Endpoint, EtcdConfigError> {
        let bad = |reason: &str| EtcdConfigError::BadEndpoint {
            endpoint: url.to_owned(),
            reason: reason.to_owned(),
        };
        let plain = url.starts_with("http://");
        if !plain && !url.starts_with("https://") {
            return Err(bad("it must begin with http:// or https://"));
        }
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| bad(&error.to_string()))?;
        let endpoint = match tls {
            None if plain => endpoint,
            None => return Err(EtcdConfigError::Incomplete { given: "https", missing: "ca_file" }),
            Some(_) if plain => return Err(bad("TLS files are set, so it must begin with https://")),
            Some(tls) => {
                endpoint.tls_config(tls.clone()).map_err(|error| EtcdConfigError::Tls(error.to_string()))?
            }
        };
        Ok(endpoint
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(PING_INTERVAL))
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(false))
    }

    fn tls(&self) -> Result<Option<ClientTlsConfig>, EtcdConfigError> {
        let incomplete = |given, missing| Err(EtcdConfigError::Incomplete { given, missing });
        match (&self.ca_file, &self.cert_file, &self.key_file) {
            (None, None, None) => Ok(None),
            (_, Some(_), None) => incomplete("cert_file", "key_file"),
            (_, None, Some(_)) => incomplete("key_file", "cert_file"),
            (None, Some(_), Some(_)) => incomplete("cert_file", "ca_file"),
            (Some(ca), None, None) => Ok(Some(trusting("ca_file", ca)?)),
            (Some(ca), Some(cert), Some(key)) => {
                let identity = Identity::from_pem(read("cert_file", cert)?, read("key_file", key)?);
                Ok(Some(trusting("ca_file", ca)?.identity(identity)))
            }
        }
    }
}

impl Password {
    /// Wraps a password.
    pub fn new(password: impl Into<String>) -> Self {
        Self(password.into())
    }

    /// The password itself, to be sent and never to be shown.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

fn trusting(setting: &'static str, ca: &Path) -> Result<ClientTlsConfig, EtcdConfigError> {
    Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(setting, ca)?)))
}

fn read(setting: &'static str, path: &Path) -> Result<Vec<u8>, EtcdConfigError> {
    std::fs::read(path).map_err(|source| EtcdConfigError::Unreadable {
        setting,
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(config: &EtcdConfig) -> String {
        config.transport().map(|_| ()).and(config.credentials().map(|_| ())).unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_work_is_named() {
        let base = EtcdConfig::new(["http://localhost:2379"]);
        let cases = [
            (EtcdConfig::new(Vec::<String>::new()), "at least one"),
            (EtcdConfig::new(["localhost:2379"]), "localhost:2379"),
            (EtcdConfig::new(["unix:///tmp/etcd"]), "http://"),
            (EtcdConfig::new(["https://localhost:2379"]), "ca_file"),
            (EtcdConfig { user: Some("me".into()), ..base.clone() }, "password"),
            (EtcdConfig { password: Some(Password::new("me")), ..base.clone() }, "user"),
            (EtcdConfig { cert_file: Some("c".into()), ..base.clone() }, "key_file"),
            (EtcdConfig { key_file: Some("k".into()), ..base.clone() }, "cert_file"),
            (EtcdConfig { ca_file: Some("/no/such/file".into()), ..base }, "/no/such/file"),
        ];
        for (config, named) in cases {
            let error = refused(&config);
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn tls_files_and_a_plain_endpoint_contradict_each_other() {
        let ca = std::env::temp_dir().join(format!("strandline-ca-{}", std::process::id()));
        std::fs::write(&ca, "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n").unwrap();
        let config = EtcdConfig { ca_file: Some(ca.clone()), ..EtcdConfig::new(["http://localhost:2379"]) };
        let error = refused(&config);
        std::fs::remove_file(ca).unwrap();
        assert!(error.contains("https"), "{error}");
    }

    #[test]
    fn a_password_does_not_show() {
        let config = EtcdConfig {
            user: Some("root".into()),
            password: Some(Password::new("hunter2")),
            ..EtcdConfig::new(["http://localhost:2379"])
        };
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
