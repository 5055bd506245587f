//! Settings as data, in the broker's manner: one table says name, unit, default and meaning; flags, environment, file,
//! `--help` and the effective configuration in the log are all derived from it.
//!
//! A flag wins over the environment, the environment over the file, the file over the default. Keys that are not in the
//! table are refused, wherever they stand.

mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use strandline_metadata::backend::etcd::{EtcdConfig, Password};
use strandline_metadata::keys::Keyspace;

pub use self::table::{SETTINGS, Setting};

/// A configuration that cannot be used; the sentence names the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    /// A sentence that names the key.
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

/// A text that shows in no log line.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, to be compared and never to be shown.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Who is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthConfig {
    /// Everybody who reaches the loopback address.
    Open,
    /// Whoever has the one token.
    Token(Secret),
    /// The principals of a file.
    TokensFile(PathBuf),
    /// Whoever has a token of an issuer.
    Jwt(JwtConfig),
}

/// Which JSON Web Tokens are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtConfig {
    /// The issuer, as `iss` says it.
    pub issuer: String,
    /// The audience, as `aud` says it.
    pub audience: String,
    /// URL or path of the keys.
    pub jwks: String,
    /// The URL that clients know this server by.
    pub resource_url: String,
}

/// Where audit lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditTarget {
    /// Standard error.
    Stderr,
    /// Nowhere but into memory.
    Off,
    /// A file, appended to.
    File(PathBuf),
}

/// A metrics endpoint that was configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsTarget {
    /// The broker's node id, if it was given.
    pub node_id: Option<i32>,
    /// Where its metrics are.
    pub url: String,
}

/// What is scraped, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrapeConfig {
    /// The configured endpoints; if there are none, those that brokers register.
    pub targets: Vec<MetricsTarget>,
    /// Hosts of registered endpoints that may be scraped.
    pub hosts: Vec<String>,
    /// How often.
    pub interval: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// Memory for the history, in bytes.
    pub history_bytes: usize,
}

/// The validated configuration of the observer.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the cluster.
    pub cluster: String,
    /// Its keys.
    pub keys: Keyspace,
    /// Where HTTP is served.
    pub listen: SocketAddr,
    /// Who is let in.
    pub auth: AuthConfig,
    /// Names that clients may call this server by, loopback included.
    pub allowed_hosts: Vec<String>,
    /// Web pages that may call it.
    pub allowed_origins: Vec<String>,
    /// How to reach etcd.
    pub etcd: EtcdConfig,
    /// What is scraped.
    pub scrape: ScrapeConfig,
    /// Calls of one principal per minute.
    pub calls_per_minute: u32,
    /// Failed authentications of one address per minute.
    pub auth_failures_per_minute: u32,
    /// Where audit lines go.
    pub audit: AuditTarget,
    /// Runbooks of the operator's own.
    pub runbooks_dir: Option<PathBuf>,
    /// Whether plan tools are offered.
    pub plans: bool,
    /// Price of 1,000 PUT or LIST requests, in USD.
    pub put_usd_per_1000: f64,
    /// Price of 1,000 GET requests, in USD.
    pub get_usd_per_1000: f64,
    /// Filter of the log, in `tracing`'s syntax.
    pub log: String,
    /// Whether the log is JSON.
    pub log_json: bool,
    /// What is logged at start: each key with its value, secrets masked.
    pub effective: Vec<(String, String)>,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// Run with this configuration.
    Run(Box<Config>),
    /// Print this text and end.
    Print(String),
}

/// Values by key, before validation.
struct Values(BTreeMap<&'static str, String>);

impl Values {
    fn text(&self, key: &'static str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    fn optional(&self, key: &'static str) -> Option<String> {
        let text = self.text(key);
        (!text.is_empty()).then(|| text.to_owned())
    }

    fn list(&self, key: &'static str) -> Vec<String> {
        self.text(key).split(',').map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).collect()
    }

    fn get<T: FromStr>(&self, key: &'static str) -> Result<T, ConfigError> {
        let text = self.text(key);
        text.parse().map_err(|_| ConfigError(format!("{key}: {text:?} is not what this setting takes")))
    }

    fn within<T: FromStr + PartialOrd + Copy + fmt::Display>(
        &self,
        key: &'static str,
        least: T,
        most: T,
    ) -> Result<T, ConfigError> {
        let value: T = self.get(key)?;
        if value < least || value > most {
            return Err(ConfigError(format!("{key}: {value} is not between {least} and {most}")));
        }
        Ok(value)
    }
}

/// Reads flags (without the program's name), environment and file. `environment` looks a variable up.
pub fn parse(
    flags: impl IntoIterator<Item = String>,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Parsed, ConfigError> {
    let arguments = std::iter::once("strandline-mcp".to_owned()).chain(flags);
    let matches = match table::command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(e) if !e.use_stderr() => return Ok(Parsed::Print(e.to_string())),
        Err(e) => return Err(ConfigError(e.to_string().trim_end().to_owned())),
    };
    let file_path =
        matches.get_one::<String>("config").cloned().or_else(|| environment("STRANDLINE_MCP_CONFIG"));
    let file = match &file_path {
        None => BTreeMap::new(),
        Some(path) => table::read_file(path)?,
    };
    let mut values = BTreeMap::new();
    for setting in SETTINGS {
        let chosen = matches
            .get_one::<String>(setting.key)
            .cloned()
            .or_else(|| environment(&setting.variable()))
            .or_else(|| file.get(setting.key).cloned())
            .unwrap_or_else(|| setting.default.to_owned());
        values.insert(setting.key, chosen);
    }
    let mut config = validate(&Values(values.clone()))?;
    config.effective = SETTINGS.iter().map(|s| (s.key.to_owned(), s.shown(&values[s.key]))).collect();
    Ok(Parsed::Run(Box::new(config)))
}

fn validate(values: &Values) -> Result<Config, ConfigError> {
    let cluster = values.text("cluster").to_owned();
    let keys = Keyspace::new(&cluster).ok_or_else(|| {
        ConfigError(format!("cluster: {cluster:?} is not of 1 to 100 letters, digits, '.', '_' or '-'"))
    })?;
    let listen: SocketAddr = values.text("listen").parse().map_err(|_| {
        ConfigError(format!("listen: {:?} is not address:port, as in 127.0.0.1:8090", values.text("listen")))
    })?;
    let log_json = match values.text("log_format") {
        "text" => false,
        "json" => true,
        other => return Err(ConfigError(format!("log_format: {other:?} is neither text nor json"))),
    };
    let audit = match values.text("audit_log") {
        "stderr" => AuditTarget::Stderr,
        "off" => AuditTarget::Off,
        "" => return Err(ConfigError("audit_log: it is stderr, off or a path".to_owned())),
        path => AuditTarget::File(PathBuf::from(path)),
    };
    let mut allowed_hosts = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    allowed_hosts.extend(values.list("allowed_hosts"));
    let allowed_origins = values.list("allowed_origins");
    if let Some(bad) = allowed_origins.iter().find(|o| !is_origin(o)) {
        return Err(ConfigError(format!("allowed_origins: {bad:?} is not https://host:port")));
    }
    Ok(Config {
        auth: auth(values, listen)?,
        cluster,
        keys,
        listen,
        allowed_hosts,
        allowed_origins,
        etcd: etcd(values)?,
        scrape: scrape(values)?,
        calls_per_minute: values.within("calls_per_minute", 1, 1_000_000)?,
        auth_failures_per_minute: values.within("auth_failures_per_minute", 1, 1_000_000)?,
        audit,
        runbooks_dir: values.optional("runbooks_dir").map(PathBuf::from),
        plans: values.get("plans")?,
        put_usd_per_1000: values.within("s3_put_usd_per_1000", 0.0, 1000.0)?,
        get_usd_per_1000: values.within("s3_get_usd_per_1000", 0.0, 1000.0)?,
        log: values.text("log").to_owned(),
        log_json,
        effective: Vec::new(),
    })
}

/// The shortest token that is taken for one: a slip must not open the door.
const MIN_TOKEN_BYTES: usize = 12;

/// Whether a URL names a loopback address, by number: a name may become another address.
fn is_on_loopback(url: &str) -> bool {
    let url = reqwest::Url::parse(url).ok();
    let host = url.as_ref().and_then(|u| u.host_str()).unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn auth(values: &Values, listen: SocketAddr) -> Result<AuthConfig, ConfigError> {
    let jwt =
        match (values.optional("jwt_issuer"), values.optional("jwt_audience"), values.optional("jwt_jwks")) {
            (None, None, None) => None,
            (Some(issuer), Some(audience), Some(jwks)) => {
                if jwks.starts_with("http://") && !is_on_loopback(&jwks) {
                    return Err(ConfigError(
                        "jwt_jwks: keys must come over https, from a loopback address or from a file"
                            .to_owned(),
                    ));
                }
                let resource_url = values.optional("resource_url").ok_or_else(|| {
                    ConfigError(
                        "resource_url: with JWT, clients must be told the URL of this server".to_owned(),
                    )
                })?;
                Some(AuthConfig::Jwt(JwtConfig { issuer, audience, jwks, resource_url }))
            }
            _ => {
                return Err(ConfigError(
                    "jwt_issuer: it goes together with jwt_audience and jwt_jwks".to_owned(),
                ));
            }
        };
    let token = values.optional("token").map(Secret::new).map(AuthConfig::Token);
    if let Some(AuthConfig::Token(token)) = &token
        && token.reveal().len() < MIN_TOKEN_BYTES
    {
        return Err(ConfigError(format!("token: it must have at least {MIN_TOKEN_BYTES} characters")));
    }
    let file = values.optional("tokens_file").map(PathBuf::from).map(AuthConfig::TokensFile);
    let open = values.get::<bool>("no_auth")?.then_some(AuthConfig::Open);
    let mut chosen: Vec<AuthConfig> = [token, file, jwt, open].into_iter().flatten().collect();
    match (chosen.pop(), chosen.is_empty()) {
        (None, _) => Err(ConfigError(
            "token: without a token, a tokens_file or jwt_issuer nothing is served; on a loopback address no_auth allows it"
                .to_owned(),
        )),
        (Some(_), false) => Err(ConfigError(
            "token: only one of token, tokens_file, jwt_issuer and no_auth may be set".to_owned(),
        )),
        (Some(AuthConfig::Open), true) if !listen.ip().is_loopback() => {
            Err(ConfigError(format!("no_auth: {listen} is not a loopback address, so a token is needed")))
        }
        (Some(only), true) => Ok(only),
    }
}

fn etcd(values: &Values) -> Result<EtcdConfig, ConfigError> {
    let endpoints = values.list("etcd_endpoints");
    if endpoints.is_empty() {
        return Err(ConfigError("etcd_endpoints: at least one is needed".to_owned()));
    }
    let timeout = Duration::from_millis(values.within("etcd_timeout_ms", 50, 60_000)?);
    Ok(EtcdConfig {
        user: values.optional("etcd_user"),
        password: values.optional("etcd_password").map(Password::new),
        ca_file: values.optional("etcd_ca_file").map(PathBuf::from),
        cert_file: values.optional("etcd_cert_file").map(PathBuf::from),
        key_file: values.optional("etcd_key_file").map(PathBuf::from),
        request_timeout: timeout,
        connect_timeout: timeout.min(Duration::from_secs(2)),
        ..EtcdConfig::new(endpoints)
    })
}

fn scrape(values: &Values) -> Result<ScrapeConfig, ConfigError> {
    let mut targets = Vec::new();
    for text in values.list("metrics_targets") {
        let named = text.split_once('=').and_then(|(id, url)| Some((id.trim().parse().ok()?, url.trim())));
        let (node_id, url) = match named {
            Some((id, url)) => (Some(id), url.to_owned()),
            None => (None, text.clone()),
        };
        let is_http = url.starts_with("http://") || url.starts_with("https://");
        if !is_http || reqwest::Url::parse(&url).is_err() {
            return Err(ConfigError(format!(
                "metrics_targets: {text:?} is not [node id=]http://host:port/path"
            )));
        }
        targets.push(MetricsTarget { node_id, url });
    }
    if targets.len() > crate::limits::SCRAPE_TARGETS {
        return Err(ConfigError(format!("metrics_targets: at most {}", crate::limits::SCRAPE_TARGETS)));
    }
    Ok(ScrapeConfig {
        targets,
        hosts: values.list("metrics_hosts"),
        interval: Duration::from_millis(values.within("scrape_interval_ms", 200, 300_000)?),
        timeout: Duration::from_millis(values.within("scrape_timeout_ms", 50, 60_000)?),
        history_bytes: values.within("history_bytes", 1 << 20, 1 << 34)?,
    })
}

fn is_origin(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(flags: &[&str]) -> Result<Config, ConfigError> {
        match parse(flags.iter().map(|f| (*f).to_owned()), |_| None)? {
            Parsed::Run(config) => Ok(*config),
            Parsed::Print(text) => Err(ConfigError(text)),
        }
    }

    #[test]
    fn it_refuses_to_start_without_a_token() {
        let why = run(&[]).unwrap_err().to_string();
        assert!(why.contains("token"), "{why}");
        let why = run(&["--no-auth", "true", "--listen", "0.0.0.0:8090"]).unwrap_err().to_string();
        assert!(why.contains("loopback"), "{why}");
        assert_eq!(run(&["--no-auth", "true"]).unwrap().auth, AuthConfig::Open);
        let why = run(&["--no-auth", "true", "--token", "long-enough-token"]).unwrap_err().to_string();
        assert!(why.contains("only one"), "{why}");
        assert!(run(&["--token", "short"]).is_err());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (flags, named) in [
            (&["--cluster", "a/b"][..], "cluster"),
            (&["--listen", "nowhere"], "listen"),
            (&["--metrics-targets", "broker-1"], "metrics_targets"),
            (&["--allowed-origins", "example.com"], "allowed_origins"),
            (&["--etcd-endpoints", ""], "etcd_endpoints"),
            (&["--log-format", "xml"], "log_format"),
            (&["--jwt-issuer", "https://i"], "jwt_issuer"),
            (&["--calls-per-minute", "0"], "calls_per_minute"),
            (&["--no-such-thing", "1"], "no-such-thing"),
        ] {
            let flags: Vec<&str> = ["--token", "local-dev-token"].iter().chain(flags).copied().collect();
            let why = run(&flags).unwrap_err().to_string();
            assert!(why.contains(named), "{why}");
        }
    }

    #[test]
    fn the_issuers_keys_do_not_come_over_a_network_unencrypted() {
        let with = |jwks: &str| {
            run(&[
                "--jwt-issuer",
                "https://i",
                "--jwt-audience",
                "a",
                "--resource-url",
                "https://o/mcp",
                "--jwt-jwks",
                jwks,
            ])
        };
        for good in ["https://i/keys", "http://127.0.0.1:1/keys", "http://[::1]:1/keys", "keys.json"] {
            assert!(with(good).is_ok(), "{good}");
        }
        for bad in
            ["http://i/keys", "http://localhost/keys", "http://127.0.0.1.i/keys", "http://127.0.0.1@i/"]
        {
            let why = with(bad).unwrap_err().to_string();
            assert!(why.contains("jwt_jwks"), "{bad}: {why}");
        }
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mcp.toml");
        std::fs::write(
            &path,
            "cluster = \"from-file\"\ncalls_per_minute = 7\nallowed_hosts = [\"a\", \"b\"]\n",
        )
        .unwrap();
        let flags = ["--config", path.to_str().unwrap(), "--token", "local-dev-token"].map(str::to_owned);
        let environment = |key: &str| (key == "STRANDLINE_MCP_CLUSTER").then(|| "from-env".to_owned());
        let Parsed::Run(config) = parse(flags.clone(), environment).unwrap() else { panic!("it runs") };
        assert_eq!((config.cluster.as_str(), config.calls_per_minute), ("from-env", 7));
        assert!(config.allowed_hosts.contains(&"b".to_owned()));
        let shown = format!("{:?} {:?}", config.effective, config.auth);
        assert!(!shown.contains("local-dev-token"), "{shown}");
        std::fs::write(&path, "clutser = \"x\"\n").unwrap();
        let why = parse(flags, |_| None).unwrap_err().to_string();
        assert!(why.contains("clutser"), "{why}");
    }

    #[test]
    fn metrics_targets_may_name_their_broker() {
        let config = run(&[
            "--token",
            "local-dev-token",
            "--metrics-targets",
            "1=http://b1:9093/metrics, http://b2:9093/metrics",
        ])
        .unwrap();
        assert_eq!(config.scrape.targets[0].node_id, Some(1));
        assert_eq!(config.scrape.targets[1].node_id, None);
        assert_eq!(config.scrape.targets[1].url, "http://b2:9093/metrics");
    }
}
