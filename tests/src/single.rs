//! A single broker as a developer starts it, with nothing beside it.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use crate::http;
use crate::process::{Nest, Process, built, eventually, free_port};

/// How long a broker may take to be ready on a busy machine.
const READY: Duration = Duration::from_mins(1);

/// Starts `strandline --dev` on ports of its own, and waits until it serves. Gives the address for
/// Kafka clients.
pub async fn start_dev(nest: &Nest, name: &str, metadata_port: u16) -> (Process, String) {
    start(nest, name, metadata_port, &built("strandline"), &[]).await
}

/// The same, with a standard error on which nothing can be written: a disk that is full.
pub async fn start_dev_on_a_full_disk(nest: &Nest, name: &str, metadata_port: u16) -> (Process, String) {
    let words = ["-c", "exec \"$0\" \"$@\" --log debug 2>/dev/full"].map(OsString::from);
    let words = [&words[..], &[built("strandline").into()]].concat();
    start(nest, name, metadata_port, Path::new("/bin/sh"), &words).await
}

async fn start(
    nest: &Nest,
    name: &str,
    metadata_port: u16,
    program: &Path,
    words: &[OsString],
) -> (Process, String) {
    let (port, http_port) = (free_port(), free_port());
    let folder = nest.folder().join(name);
    let args = [
        "--dev".to_owned(),
        format!("--listen=127.0.0.1:{port}"),
        format!("--http-listen=127.0.0.1:{http_port}"),
        format!("--metadata-listen=127.0.0.1:{metadata_port}"),
        format!("--metadata-journal={}", folder.join("metadata.journal").display()),
        format!("--store-url=file://{}", folder.join("objects").display()),
    ];
    let args = [words, &args.map(OsString::from)].concat();
    let process = nest.start(name, program, &args).expect("it starts");
    eventually("the broker is ready", READY, async || {
        matches!(http::get(http_port, "/readyz").await, Ok((200, _))).then_some(())
    })
    .await;
    (process, format!("127.0.0.1:{port}"))
}
