//! Values by key, before a program looks at what they mean; and those that mean the same
//! everywhere.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use strandline_metadata::backend::etcd::{EtcdConfig, Password};
use strandline_metadata::keys::Keyspace;
use tracing_subscriber::EnvFilter;
use url::Url;

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

    /// An address to listen on: a host and a port, such as `example`. An IPv6 address is in
    /// brackets.
    pub fn address(&self, key: &'static str, example: &str) -> Result<String, ConfigError> {
        let text = self.text(key);
        match host_and_port(text) {
            Some(_) => Ok(text.to_owned()),
            None => Err(ConfigError::new(format!("{key}: {text:?} is not host:port, as in {example}"))),
        }
    }

    /// URLs over HTTP, separated by commas, such as `example`.
    pub fn http_urls(&self, key: &'static str, example: &str) -> Result<Vec<String>, ConfigError> {
        let urls = self.list(key);
        match urls.iter().find(|url| !is_http_url(url)) {
            None => Ok(urls),
            Some(url) => Err(ConfigError::new(format!(
                "{key}: {url:?} is no URL that begins with http:// or https://, as in {example}"
            ))),
        }
    }

    /// A file that is to be read, which must be there by now; `None` if the value is empty.
    pub fn file(&self, key: &'static str) -> Result<Option<PathBuf>, ConfigError> {
        let Some(path) = self.optional(key).map(PathBuf::from) else { return Ok(None) };
        let readable = File::open(&path).and_then(|file| file.metadata());
        match readable {
            Ok(about) if about.is_file() => Ok(Some(path)),
            Ok(_) => Err(ConfigError::new(format!("{key}: {} is not a file", path.display()))),
            Err(error) => Err(ConfigError::new(format!("{key}: {} cannot be read: {error}", path.display()))),
        }
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
        let endpoints = self.http_urls("etcd_endpoints", "http://127.0.0.1:2379")?;
        if endpoints.is_empty() {
            return Err(ConfigError::new("etcd_endpoints: at least one is needed"));
        }
        Ok(EtcdConfig {
            user: self.optional("etcd_user"),
            password: self.optional("etcd_password").map(Password::new),
            ca_file: self.file("etcd_ca_file")?,
            cert_file: self.file("etcd_cert_file")?,
            key_file: self.file("etcd_key_file")?,
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

/// Host and port of an address; an IPv6 address has brackets, which are left out.
pub fn host_and_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']').filter(|host| host.parse::<Ipv6Addr>().is_ok())?,
        None => Some(host).filter(|host| !host.contains(|c: char| c == ':' || c.is_whitespace()))?,
    };
    Some((host, port.parse().ok()?)).filter(|_| !host.is_empty())
}

fn is_http_url(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https") && url.has_host() && url.username().is_empty()
    })
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
    fn addresses_urls_and_files_are_looked_at_and_the_error_shows_a_right_one() {
        for good in ["0.0.0.0:9092", "localhost:0", "[::1]:9092", "broker-1.example:65535"] {
            assert_eq!(values(&[("a", good)]).address("a", ""), Ok(good.to_owned()));
        }
        for bad in
            ["", "localhost", ":9092", "h:", "h:x", "h:65536", "::1:9092", "[h]:1", "a b:1", "http://h:1"]
        {
            let why = why(values(&[("a", bad)]).address("a", "127.0.0.1:9092"));
            assert_eq!(why, format!("a: {bad:?} is not host:port, as in 127.0.0.1:9092"));
        }
        for good in ["http://minio:9000", "https://s3.example/prefix", "http://[::1]:9000"] {
            assert_eq!(values(&[("u", good)]).http_urls("u", ""), Ok(vec![good.to_owned()]));
        }
        for bad in
            ["minio:9000", "127.0.0.1:9000", "localhost", "http://", "ftp://h", "http://u:p@h", "http:// h"]
        {
            let why = why(values(&[("u", bad)]).http_urls("u", "http://minio:9000"));
            let expected = "is no URL that begins with http:// or https://, as in http://minio:9000";
            assert_eq!(why, format!("u: {bad:?} {expected}"));
        }
        assert_eq!(values(&[("f", "")]).file("f"), Ok(None));
        let missing = why(values(&[("f", "/no/such.pem")]).file("f"));
        assert!(missing.starts_with("f: /no/such.pem cannot be read: "), "{missing}");
        assert_eq!(why(values(&[("f", "/")]).file("f")), "f: / is not a file");
    }

    #[test]
    fn etcd_is_reached_as_the_settings_say() {
        let folder = tempfile::tempdir().unwrap();
        let pem = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, "").unwrap();
            path
        };
        let expected = ["ca.pem", "cert.pem", "key.pem"].map(pem);
        let [ca, cert, key] = expected.clone().map(|path| path.display().to_string());
        let config = values(&[
            ("etcd_endpoints", "https://a:2379, https://b:2379"),
            ("etcd_user", "u"),
            ("etcd_password", "p"),
            ("etcd_ca_file", &ca),
            ("etcd_cert_file", &cert),
            ("etcd_key_file", &key),
        ]);
        let config = config.etcd().unwrap();
        assert_eq!(config.endpoints, ["https://a:2379", "https://b:2379"]);
        assert_eq!((config.user.as_deref(), config.password.is_some()), (Some("u"), true));
        let files = [config.ca_file, config.cert_file, config.key_file].map(|f| f.unwrap());
        assert_eq!(files, expected);
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
