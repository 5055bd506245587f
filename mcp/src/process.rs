//! The process around an observer: arguments, logs, sockets, signals.

use std::process::ExitCode;
use std::sync::Arc;

use rand::TryRng as _;
use strandline_metadata::backend::etcd::EtcdReader;
use strandline_settings::{Signals, environment, print, serve_http};
use tokio::net::TcpListener;
use tracing::{error, info};

use crate::clock::SystemClock;
use crate::config::{self, Config, Parsed};
use crate::http;
use crate::limits::CONNECTIONS;
use crate::{Observer, Parts};

/// Runs the process; its exit code says whether it ended as asked.
pub fn main() -> ExitCode {
    let config = match config::parse(std::env::args().skip(1), environment) {
        Ok(Parsed::Run(config)) => *config,
        Ok(Parsed::Print(text)) => return print(&text),
        Err(error) => return complain(&error),
    };
    if let Err(error) = config.log.start() {
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
    strandline_settings::complain("strandline-mcp", error)
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
    let mut signals = Signals::new()?;
    let observer = Observer::open(config, Parts { reader, clock: Arc::new(SystemClock), random })?;
    let routes = http::router(&observer);
    info!(address = %listener.local_addr()?, "serving MCP at /mcp");
    let stopping = observer.clone();
    let stop = async move {
        signals.told_to_end().await;
        stopping.stop();
    };
    serve_http(listener, routes, CONNECTIONS, stop).await;
    Ok(())
}
