//! Values by key, before a program looks at what they mean; and those that mean the same
//! everywhere.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use strandline_metadata::backend::etcd::{EtcdConfig, Password};
use strandline_metadata::keys::Keyspace;
use tracing_subscriber::EnvFilter;

use crate::ConfigError;

/// The text of each setting: what was chosen, or its default.
#[derive(Clone)]
pub struct Values {
    texts: BTreeMap<&'static str, String>,
    effective: Vec<(String, String)>,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Filter, in `tracing`'s syntax.
    pub filter: String,
    /// Whether it is JSON.
    pub json: bool,
}

impl Values {
    pub(crate) fn new(texts: BTreeMap<&'static str, String>, effective: Vec<(String, String)>) -> Self {
        Self { texts, effective }
    }

    /// What is logged at start: each key with its value, secrets masked.
    pub fn effective(&self) -> &[(String, String)] {
        &self.effective
    }

    /// A value as it is.
    pub fn text(&self, key: &'static str) -> &str {
        self.texts.get(key).map_or("", String::as_str)
    }

    /// A value that may be absent, which an empty one is.
    pub fn optional(&self, key: &'static str) -> Option<String> {
        let text = self.text(key);
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// Values that are separated by commas.
    pub fn list(&self, key: &'static str) -> Vec<String> {
        self.text(key).split(',').map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).collect()
    }

    /// A value of a type.
    pub fn get<T: FromStr>(&self, key: &'static str) -> Result<T, ConfigError> {
        let text = self.text(key);
        text.parse().map_err(|_| ConfigError::new(format!("{key}: {text:?} is not what this setting takes")))
    }

    /// A number that has bounds.
    pub fn within<T: FromStr + PartialOrd + Copy + fmt::Display>(
        &self,
        key: &'static str,
        least: T,
        most: T,
    ) -> Result<T, ConfigError> {
        let value: T = self.get(key)?;
        if value < least || value > most {
            return Err(ConfigError::new(format!("{key}: {value} is not between {least} and {most}")));
        }
        Ok(value)
    }

    /// A time in ms.
    pub fn millis(&self, key: &'static str) -> Result<Duration, ConfigError> {
        self.get(key).map(Duration::from_millis)
    }

    /// `cluster`, and the keys of that cluster.
    pub fn cluster(&self) -> Result<(String, Keyspace), ConfigError> {
        let cluster = self.text("cluster").to_owned();
        let keys = Keyspace::new(&cluster).ok_or_else(|| {
            ConfigError::new(format!(
                "cluster: {cluster:?} is not of 1 to 100 letters, digits, '.', '_' or '-'"
            ))
        })?;
        Ok((cluster, keys))
    }

    /// `etcd_endpoints`, `etcd_user`, `etcd_password`, and the files of TLS: `etcd_ca_file`,
    /// `etcd_cert_file`, `etcd_key_file`.
    pub fn etcd(&self) -> Result<EtcdConfig, ConfigError> {
        let endpoints = self.list("etcd_endpoints");
        if endpoints.is_empty() {
            return Err(ConfigError::new("etcd_endpoints: at least one is needed"));
        }
        Ok(EtcdConfig {
            user: self.optional("etcd_user"),
            password: self.optional("etcd_password").map(Password::new),
            ca_file: self.optional("etcd_ca_file").map(PathBuf::from),
            cert_file: self.optional("etcd_cert_file").map(PathBuf::from),
            key_file: self.optional("etcd_key_file").map(PathBuf::from),
            ..EtcdConfig::new(endpoints)
        })
    }

    /// `log` and `log_format`.
    pub fn log(&self) -> Result<LogConfig, ConfigError> {
        let json = match self.text("log_format") {
            "text" => false,
            "json" => true,
            other => {
                return Err(ConfigError::new(format!("log_format: {other:?} is neither text nor json")));
            }
        };
        Ok(LogConfig { filter: self.text("log").to_owned(), json })
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Values").field(&self.effective).finish()
    }
}

impl LogConfig {
    /// Lets this process log to standard error, from now on.
    pub fn start(&self) -> Result<(), String> {
        let filter = EnvFilter::try_new(&self.filter).map_err(|e| format!("log: {e}"))?;
        // What cannot be written is lost, as on a disk that is full: complaining about it on the
        // same standard error would be a panic of whoever had something to say.
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .log_internal_errors(false);
        let done = if self.json { builder.json().try_init() } else { builder.try_init() };
        done.map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&'static str, &str)]) -> Values {
        Values::new(pairs.iter().map(|(key, text)| (*key, (*text).to_owned())).collect(), Vec::new())
    }

    fn why<T: fmt::Debug>(result: Result<T, ConfigError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn what_is_wrong_is_named() {
        let values = values(&[("n", "7"), ("x", "seven"), ("ms", "20"), ("l", " a ,, b,"), ("e", "")]);
        assert_eq!(values.get::<u32>("n"), Ok(7));
        assert_eq!(why(values.get::<u32>("x")), "x: \"seven\" is not what this setting takes");
        assert_eq!(values.within("n", 1, 7), Ok(7));
        assert_eq!(why(values.within("n", 8, 9)), "n: 7 is not between 8 and 9");
        assert_eq!(why(values.within("n", 0.5, 6.5)), "n: 7 is not between 0.5 and 6.5");
        assert_eq!(values.millis("ms"), Ok(Duration::from_millis(20)));
        assert_eq!(values.list("l"), ["a", "b"]);
        assert_eq!((values.optional("e"), values.optional("n")), (None, Some("7".to_owned())));
    }

    #[test]
    fn the_clusters_name_makes_its_keys() {
        let (name, keys) = values(&[("cluster", "prod-1")]).cluster().unwrap();
        assert_eq!((name.as_str(), Some(keys)), ("prod-1", Keyspace::new("prod-1")));
        let why = why(values(&[("cluster", "a/b")]).cluster());
        assert_eq!(why, "cluster: \"a/b\" is not of 1 to 100 letters, digits, '.', '_' or '-'");
    }

    #[test]
    fn etcd_is_reached_as_the_settings_say() {
        let config = values(&[
            ("etcd_endpoints", "https://a:2379, https://b:2379"),
            ("etcd_user", "u"),
            ("etcd_password", "p"),
            ("etcd_ca_file", "ca.pem"),
            ("etcd_cert_file", "cert.pem"),
            ("etcd_key_file", "key.pem"),
        ]);
        let config = config.etcd().unwrap();
        assert_eq!(config.endpoints, ["https://a:2379", "https://b:2379"]);
        assert_eq!((config.user.as_deref(), config.password.is_some()), (Some("u"), true));
        let files = [config.ca_file, config.cert_file, config.key_file].map(|f| f.unwrap());
        assert_eq!(files, ["ca.pem", "cert.pem", "key.pem"].map(PathBuf::from));
        let why = why(values(&[("etcd_endpoints", " ,")]).etcd());
        assert_eq!(why, "etcd_endpoints: at least one is needed");
    }

    #[test]
    fn the_log_is_text_or_json() {
        for (format, json) in [("text", false), ("json", true)] {
            let log = values(&[("log", "info"), ("log_format", format)]).log();
            assert_eq!(log, Ok(LogConfig { filter: "info".to_owned(), json }));
        }
        let xml = values(&[("log_format", "xml")]).log();
        assert_eq!(why(xml), "log_format: \"xml\" is neither text nor json");
        let wrong = LogConfig { filter: "info,=,".to_owned(), json: false };
        assert!(wrong.start().unwrap_err().starts_with("log: "));
    }
}
