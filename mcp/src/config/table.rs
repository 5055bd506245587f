//! The table of settings.

use std::borrow::Cow;

use strandline_settings::{Program, Setting, secret, setting};

/// Every setting of the observer.
pub const SETTINGS: &[Setting] = &[
    setting("cluster", "strandline", "name", "Name of the cluster: its prefix in etcd"),
    setting(
        "listen",
        "127.0.0.1:8090",
        "address",
        "Where MCP (/mcp), /healthz, /readyz and /metrics are served",
    ),
    secret("token", "Bearer token that every client must send; it may do everything"),
    setting(
        "tokens_file",
        "",
        "path",
        "TOML file of principals, each with the hash of its token, scopes and prefixes; read again when it changes",
    ),
    setting("jwt_issuer", "", "url", "Accept JSON Web Tokens of this issuer instead of tokens of our own"),
    setting("jwt_audience", "", "text", "The audience that such a token must name"),
    setting(
        "jwt_jwks",
        "",
        "url or path",
        "Where the issuer's keys (JWKS) are: https://…, http:// on a loopback address, or a file",
    ),
    setting(
        "resource_url",
        "",
        "url",
        "The URL that clients know this server by; published with JWT (RFC 9728)",
    ),
    setting("no_auth", "false", "true|false", "Serve without any token; only on a loopback address"),
    setting(
        "allowed_hosts",
        "",
        "names",
        "Names that clients may call this server by, beside localhost and loopback addresses, separated by commas",
    ),
    setting(
        "allowed_origins",
        "",
        "origins",
        "Web pages that may call it, as https://host:port, separated by commas; none by default",
    ),
    setting("etcd_endpoints", "http://127.0.0.1:2379", "urls", "Client URLs of etcd, separated by commas"),
    setting("etcd_user", "", "name", "User for etcd; it needs to read only"),
    secret("etcd_password", "Password for etcd"),
    setting("etcd_ca_file", "", "path", "CA certificates (PEM) for etcd's certificate"),
    setting("etcd_cert_file", "", "path", "Client certificate (PEM) for etcd"),
    setting("etcd_key_file", "", "path", "Key (PEM) of the client certificate"),
    setting("etcd_timeout_ms", "3000", "ms", "How long etcd may take to answer"),
    setting(
        "metrics_targets",
        "",
        "[node id=]urls",
        "Metrics endpoints of the brokers, as 1=http://host:9093/metrics, separated by commas; by default those that brokers register",
    ),
    setting(
        "metrics_hosts",
        "127.0.0.1,localhost",
        "patterns",
        "Hosts of registered metrics endpoints that may be scraped; * stands for anything, as in *.internal",
    ),
    setting("scrape_interval_ms", "15000", "ms", "How often the brokers' metrics and etcd are sampled"),
    setting("scrape_timeout_ms", "5000", "ms", "How long one metrics endpoint may take"),
    setting(
        "history_bytes",
        "134217728",
        "bytes",
        "Memory for the history of metrics; beyond it new series are left out",
    ),
    setting(
        "calls_per_minute",
        "600",
        "calls",
        "Calls of one principal; an expensive one counts for several",
    ),
    setting(
        "auth_failures_per_minute",
        "20",
        "failures",
        "Failed authentications of one address before it has to wait",
    ),
    setting("audit_log", "stderr", "stderr|off|path", "Where one JSON line per call goes"),
    setting(
        "runbooks_dir",
        "",
        "path",
        "Folder with Markdown runbooks of your own, beside those that are shipped",
    ),
    setting(
        "plans",
        "false",
        "true|false",
        "Offer the plan tools, which print commands for a person and apply nothing",
    ),
    setting(
        "s3_put_usd_per_1000",
        "0.005",
        "USD",
        "Price of PUT and LIST requests, for the estimated request cost",
    ),
    setting("s3_get_usd_per_1000", "0.0004", "USD", "Price of GET requests, for the same"),
    setting("log", "info,rmcp=warn", "filter", "Log filter, in the syntax of tracing"),
    setting("log_format", "text", "text|json", "Log format"),
];

/// The observer, as its command line and its environment know it.
pub(super) const PROGRAM: Program = Program {
    name: "strandline-mcp",
    version: env!("CARGO_PKG_VERSION"),
    about: "Strandline's read-only observer: MCP over HTTP for an operator's assistant",
    after_help: Cow::Borrowed(
        "Every setting may also stand in the file given with --config, or in the environment. A flag wins over the environment, the environment over the file.",
    ),
    prefix: "STRANDLINE_MCP_",
    dev: None,
    settings: SETTINGS,
};
