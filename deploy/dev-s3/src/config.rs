//! The flags.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, value_parser};

/// Where objects are kept.
#[derive(Clone, Debug)]
pub enum Place {
    /// In memory, until the process ends.
    Memory,
    /// In this folder, flushed to the disk before a PUT is answered.
    Folder(PathBuf),
}

/// A certificate and its key, both PEM.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The certificate chain.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// What to serve, and where.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where S3 is served; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where faults are controlled, if anywhere.
    pub admin: Option<SocketAddr>,
    /// Where objects are kept.
    pub place: Place,
    /// The only access key.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    /// Buckets that are made at the start, unless they exist.
    pub buckets: Vec<String>,
    /// Serves HTTPS instead of HTTP.
    pub tls: Option<Tls>,
    /// Feeds the faults: same seed, same order of requests, same faults.
    pub seed: u64,
}

impl Config {
    /// A server in memory on a free port of this machine, with one bucket: what a test wants.
    pub fn in_memory(bucket: &str) -> Self {
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            listen: local,
            admin: Some(local),
            place: Place::Memory,
            access_key: "test".to_owned(),
            secret_key: "test-secret".to_owned(),
            buckets: vec![bucket.to_owned()],
            tls: None,
            seed: 1,
        }
    }

    /// Reads the flags; prints help or what is wrong and ends the process if they are not for
    /// serving.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Self {
        Self::from_matches(&mut command().get_matches_from(args))
    }

    fn from_matches(matches: &mut ArgMatches) -> Self {
        // Flags with a default, or required, are always there.
        let text =
            |matches: &mut ArgMatches, name: &str| matches.remove_one::<String>(name).unwrap_or_default();
        let tls = matches
            .remove_one("tls-cert")
            .zip(matches.remove_one("tls-key"))
            .map(|(certificate, key)| Tls { certificate, key });
        Self {
            listen: matches.remove_one("listen").unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9000))),
            admin: matches.remove_one("admin"),
            place: matches.remove_one("data").map_or(Place::Memory, Place::Folder),
            access_key: text(matches, "access-key"),
            secret_key: text(matches, "secret-key"),
            buckets: matches.remove_many("bucket").map(Iterator::collect).unwrap_or_default(),
            tls,
            seed: matches.remove_one("seed").unwrap_or(1),
        }
    }
}

fn command() -> Command {
    let flag = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("strandline-dev-s3")
        .about("A small S3 server for development and tests")
        .version(env!("CARGO_PKG_VERSION"))
        .arg(
            flag("listen", "ADDR", "Where to serve S3; port 0 takes a free one")
                .default_value("127.0.0.1:9000")
                .value_parser(value_parser!(SocketAddr)),
        )
        .arg(
            flag("admin", "ADDR", "Where to control faults: GET and PUT /faults, GET /stats")
                .value_parser(value_parser!(SocketAddr)),
        )
        .arg(flag("data", "FOLDER", "Keep objects in this folder").value_parser(value_parser!(PathBuf)))
        .arg(
            Arg::new("memory")
                .long("memory")
                .action(ArgAction::SetTrue)
                .help("Keep objects in memory, until the process ends"),
        )
        .group(ArgGroup::new("place").args(["data", "memory"]).required(true))
        .arg(flag("access-key", "KEY", "The only access key").default_value("strandline"))
        .arg(flag("secret-key", "SECRET", "Its secret").default_value("strandline-dev"))
        .arg(
            flag("bucket", "NAME", "Make this bucket unless it exists; may be repeated")
                .action(ArgAction::Append),
        )
        .arg(
            flag("tls-cert", "FILE", "Serve HTTPS with this certificate (PEM)")
                .value_parser(value_parser!(PathBuf))
                .requires("tls-key"),
        )
        .arg(
            flag("tls-key", "FILE", "The certificate's private key (PEM)")
                .value_parser(value_parser!(PathBuf))
                .requires("tls-cert"),
        )
        .arg(
            flag("seed", "N", "Feeds the faults, so that a run can be repeated")
                .default_value("1")
                .value_parser(value_parser!(u64)),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Config, clap::Error> {
        let args = ["strandline-dev-s3"].iter().chain(args);
        command().try_get_matches_from(args).map(|mut matches| Config::from_matches(&mut matches))
    }

    #[test]
    fn flags_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn all_flags_are_read() {
        let config = parse(&[
            "--listen",
            "127.0.0.1:1",
            "--admin",
            "127.0.0.1:2",
            "--data",
            "/tmp/x",
            "--access-key",
            "a",
            "--secret-key",
            "b",
            "--bucket",
            "one",
            "--bucket",
            "two",
            "--seed",
            "7",
        ])
        .unwrap();
        assert_eq!(config.listen, "127.0.0.1:1".parse().unwrap());
        assert_eq!(config.admin, Some("127.0.0.1:2".parse().unwrap()));
        assert!(matches!(config.place, Place::Folder(path) if path.ends_with("x")));
        assert_eq!((config.access_key.as_str(), config.secret_key.as_str()), ("a", "b"));
        assert_eq!(config.buckets, ["one", "two"]);
        assert_eq!(config.seed, 7);
    }

    #[test]
    fn a_place_must_be_chosen_and_only_one() {
        assert!(parse(&[]).is_err());
        assert!(parse(&["--memory", "--data", "x"]).is_err());
        assert!(matches!(parse(&["--memory"]).unwrap().place, Place::Memory));
        assert!(parse(&["--memory", "--tls-cert", "x"]).is_err());
    }
}
