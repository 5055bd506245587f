//! The process around a program: environment, output, signals.

use std::fmt::Display;
use std::io::Write as _;
use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// A variable of the environment.
pub fn environment(key: &str) -> Option<String> {
    // The environment is read here; only the S3 client takes its `AWS_…` by itself.
    #[expect(clippy::disallowed_methods, reason = "this is config reading the environment")]
    std::env::var(key).ok()
}

/// Prints what was asked for, and ends well.
pub fn print(text: &str) -> ExitCode {
    // A closed pipe (`--help | head`) is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// Says why a program ends that should not.
pub fn complain(program: &str, error: &dyn Display) -> ExitCode {
    // Nobody is left to hear of a failure to say so.
    let _ = writeln!(std::io::stderr(), "{program}: {error}");
    ExitCode::FAILURE
}

/// The signals by which a process is told to end.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Hears of them from now on.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Returns when the process is told to end, as often as it is. Cancellation-safe.
    pub async fn told_to_end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
