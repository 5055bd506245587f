//! Why the server does not start, each in one sentence for the one who started it.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// A start that failed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port is taken, or not ours to take.
    #[error("cannot listen on {address}: {}", reason(.source))]
    Listen {
        /// Where it should have listened.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The folder cannot be read or written.
    #[error("cannot use the folder {}: {source}", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process serves the same folder.
    #[error("the folder {} is served by another process", .0.display())]
    Locked(PathBuf),
    /// A name that S3 does not allow.
    #[error("{0:?} is no name for a bucket: 3 to 63 small letters, digits, dots and hyphens")]
    BucketName(String),
    /// The certificate or its key cannot be used.
    #[error("cannot serve TLS with {}: {what}", .path.display())]
    Tls {
        /// The file that is at fault.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The process cannot be told to end.
    #[error("cannot wait for signals: {0}")]
    Signal(#[source] io::Error),
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another process listens there".to_owned(),
        io::ErrorKind::PermissionDenied => "it takes more rights than this process has".to_owned(),
        _ => error.to_string(),
    }
}
