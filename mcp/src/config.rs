//! The observer's settings: a table, of which [`strandline_settings`] makes flags, variables, a
//! file and `--help`, and what the values have to be.

mod table;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use strandline_metadata::backend::etcd::EtcdConfig;
use strandline_metadata::keys::Keyspace;
pub use strandline_settings::ConfigError;
use strandline_settings::{LogConfig, Values};

pub use self::table::SETTINGS;

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
    /// What is logged, and how.
    pub log: LogConfig,
    /// What is logged at start: each key with its value, secrets masked.
    pub effective: Vec<(String, String)>,
}

/// What the command line asks for.
pub type Parsed = strandline_settings::Parsed<Box<Config>>;

/// Reads flags (without the program's name), environment and file. `environment` looks a variable
/// up.
pub fn parse(
    flags: impl IntoIterator<Item = String>,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Parsed, ConfigError> {
    table::PROGRAM.read(flags, environment)?.try_map(|values| validate(&values).map(Box::new))
}

fn validate(values: &Values) -> Result<Config, ConfigError> {
    let (cluster, keys) = values.cluster()?;
    let listen: SocketAddr = values.text("listen").parse().map_err(|_| {
        ConfigError::new(format!(
            "listen: {:?} is not address:port, as in 127.0.0.1:8090",
            values.text("listen")
        ))
    })?;
    let log = values.log()?;
    let audit = match values.text("audit_log") {
        "stderr" => AuditTarget::Stderr,
        "off" => AuditTarget::Off,
        "" => return Err(ConfigError::new("audit_log: it is stderr, off or a path")),
        path => AuditTarget::File(PathBuf::from(path)),
    };
    let mut allowed_hosts = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    allowed_hosts.extend(values.list("allowed_hosts"));
    let allowed_origins = values.list("allowed_origins");
    if let Some(bad) = allowed_origins.iter().find(|o| !is_origin(o)) {
        return Err(ConfigError::new(format!("allowed_origins: {bad:?} is not https://host:port")));
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
        log,
        effective: values.effective().to_vec(),
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
                    return Err(ConfigError::new(
                        "jwt_jwks: keys must come over https, from a loopback address or from a file",
                    ));
                }
                let resource_url = values.optional("resource_url").ok_or_else(|| {
                    ConfigError::new("resource_url: with JWT, clients must be told the URL of this server")
                })?;
                Some(AuthConfig::Jwt(JwtConfig { issuer, audience, jwks, resource_url }))
            }
            _ => {
                return Err(ConfigError::new("jwt_issuer: it goes together with jwt_audience and jwt_jwks"));
            }
        };
    let token = values.optional("token").map(Secret::new).map(AuthConfig::Token);
    if let Some(AuthConfig::Token(token)) = &token
        && token.reveal().len() < MIN_TOKEN_BYTES
    {
        return Err(ConfigError::new(format!("token: it must have at least {MIN_TOKEN_BYTES} characters")));
    }
    let file = values.optional("tokens_file").map(PathBuf::from).map(AuthConfig::TokensFile);
    let open = values.get::<bool>("no_auth")?.then_some(AuthConfig::Open);
    let mut chosen: Vec<AuthConfig> = [token, file, jwt, open].into_iter().flatten().collect();
    match (chosen.pop(), chosen.is_empty()) {
        (None, _) => Err(ConfigError::new(
            "token: without a token, a tokens_file or jwt_issuer nothing is served; on a loopback address no_auth allows it",
        )),
        (Some(_), false) => {
            Err(ConfigError::new("token: only one of token, tokens_file, jwt_issuer and no_auth may be set"))
        }
        (Some(AuthConfig::Open), true) if !listen.ip().is_loopback() => Err(ConfigError::new(format!(
            "no_auth: {listen} is not a loopback address, so a token is needed"
        ))),
        (Some(only), true) => Ok(only),
    }
}

fn etcd(values: &Values) -> Result<EtcdConfig, ConfigError> {
    let etcd = values.etcd()?;
    let timeout = Duration::from_millis(values.within("etcd_timeout_ms", 50, 60_000)?);
    Ok(EtcdConfig { request_timeout: timeout, connect_timeout: timeout.min(Duration::from_secs(2)), ..etcd })
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
            return Err(ConfigError::new(format!(
                "metrics_targets: {text:?} is not [node id=]http://host:port/path"
            )));
        }
        targets.push(MetricsTarget { node_id, url });
    }
    if targets.len() > crate::limits::SCRAPE_TARGETS {
        return Err(ConfigError::new(format!("metrics_targets: at most {}", crate::limits::SCRAPE_TARGETS)));
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
            Parsed::Print(text) => Err(ConfigError::new(text)),
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
    fn its_variables_have_its_prefix_and_secrets_are_masked() {
        let flags = ["--token", "local-dev-token", "--allowed-hosts", "a, b"].map(str::to_owned);
        let environment = |key: &str| (key == "STRANDLINE_MCP_CLUSTER").then(|| "from-env".to_owned());
        let Parsed::Run(config) = parse(flags, environment).unwrap() else { panic!("it runs") };
        assert_eq!(config.cluster, "from-env");
        assert!(config.allowed_hosts.contains(&"b".to_owned()));
        let shown = format!("{:?} {:?}", config.effective, config.auth);
        assert!(!shown.contains("local-dev-token"), "{shown}");
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
