//! The process around an observer: arguments, logs, sockets, signals.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use rand::TryRng as _;
use strandline_metadata::backend::etcd::EtcdReader;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

use crate::clock::SystemClock;
use crate::config::{self, Config, Parsed};
use crate::http::{self, Limited, Peer};
use crate::{Observer, Parts};

/// Runs the process; its exit code says whether it ended as asked.
pub fn main() -> ExitCode {
    // The environment is read here and nowhere else.
    #[expect(clippy::disallowed_methods, reason = "this is config reading the environment")]
    let environment = |key: &str| std::env::var(key).ok();
    let config = match config::parse(std::env::args().skip(1), environment) {
        Ok(Parsed::Run(config)) => *config,
        Ok(Parsed::Print(text)) => {
            // A closed pipe (`--help | head`) is no failure.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(error) => return complain(&error),
    };
    if let Err(error) = log_to_stderr(&config) {
        return complain(&error);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error),
    };
    runtime.block_on(async {
        match serve(config).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                error!(%error, "the observer ends");
                complain(&error)
            }
        }
    })
}

fn complain(error: &dyn std::fmt::Display) -> ExitCode {
    // Nobody is left to hear of a failure to say so.
    let _ = writeln!(std::io::stderr(), "strandline-mcp: {error}");
    ExitCode::FAILURE
}

fn log_to_stderr(config: &Config) -> Result<(), String> {
    let filter = EnvFilter::try_new(&config.log).map_err(|e| format!("log: {e}"))?;
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    let done = if config.log_json { builder.json().try_init() } else { builder.try_init() };
    done.map_err(|e| e.to_string())
}

async fn serve(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    let settings = config.effective.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ");
    info!(version = env!("CARGO_PKG_VERSION"), settings, "starting");
    // It is the only provider that is linked; a second call would say that it is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let address = config.listen;
    let listener =
        TcpListener::bind(address).await.map_err(|e| format!("cannot listen on {address}: {e}"))?;
    let mut random = [0; 32];
    rand::rngs::SysRng.try_fill_bytes(&mut random)?;
    let reader = Arc::new(EtcdReader::new(&config.etcd).await?);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let observer = Observer::open(config, Parts { reader, clock: Arc::new(SystemClock), random })?;
    let routes = http::router(&observer).into_make_service_with_connect_info::<Peer>();
    info!(address = %listener.local_addr()?, "serving MCP at /mcp");
    let stopping = observer.clone();
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopping.stop();
    };
    axum::serve(Limited::new(listener), routes).with_graceful_shutdown(stop).await?;
    Ok(())
}
