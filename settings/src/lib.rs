//! What the programs share that are started by people: settings as data, logs, signals, an HTTP
//! server that is bounded.
//!
//! ```text
//!   Program { name, settings, … } ── read ──▶ Values ── the program's own checks ──▶ its configuration
//!   table: one row a setting          flags, environment, file
//! ```
//!
//! One table says name, unit, default and meaning of each setting; flags, environment, file,
//! `--help` and the effective configuration in the log are all derived from it. A flag wins over
//! the environment, the environment over the file, the file over the default. Keys that are not in
//! the table are refused, wherever they stand.
//!
//! What the values mean is the program's own business; here is only what means the same in all of
//! them: the cluster's name, etcd, the log.

mod http;
mod limits;
mod process;
mod program;
mod values;

pub use self::http::serve_http;
pub use self::process::{Signals, complain, environment, print};
pub use self::program::{Parsed, Program, Setting, dev, secret, setting};
pub use self::values::{LogConfig, Values, host_and_port};

/// A configuration that cannot be used; the sentence names the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    /// A sentence that names the key.
    pub fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}
