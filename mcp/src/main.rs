//! The observer's process. It answers `/healthz`; the tools for an operator's assistant are not built yet.

use std::io::Write as _;
use std::process::ExitCode;

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let matches = clap::Command::new("strandline-mcp")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Strandline's read-only observer. For now it only says that it is alive")
        .arg(
            clap::Arg::new("listen")
                .long("listen")
                .value_name("address")
                .default_value("127.0.0.1:8090")
                .help("Where /healthz is served"),
        )
        .get_matches();
    let address = matches.get_one::<String>("listen").map_or("", String::as_str);
    let served = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .and_then(|runtime| runtime.block_on(serve(address)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to hear of a failure to say so.
            let _ = writeln!(
                std::io::stderr(),
                "strandline-mcp: cannot serve on {address} (see --listen): {error}"
            );
            ExitCode::FAILURE
        }
    }
}

async fn serve(address: &str) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let routes = Router::new().route("/healthz", get(|| async { "alive\n" }));
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    axum::serve(listener, routes).with_graceful_shutdown(stop).await
}
