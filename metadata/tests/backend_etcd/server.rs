//! A real etcd for a test: its own ports, its own directory, no fsync, and gone when it is dropped.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use strandline_metadata::backend::etcd::{EtcdConfig, EtcdReader};
use tempfile::TempDir;

use super::{eventually, get};

/// How an etcd is to be started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Further arguments.
    pub(crate) arguments: Vec<String>,
    /// `https`, with the files that `arguments` name.
    pub(crate) tls: bool,
}

/// One member of a cluster, usually the only one.
#[derive(Debug)]
pub(crate) struct Server {
    child: Option<Child>,
    command: Vec<String>,
    pub(crate) port: u16,
    pub(crate) scheme: &'static str,
    _directory: TempDir,
}

/// Whether there is an etcd to test with. Says so loudly if not.
pub(crate) fn available(test: &str) -> bool {
    let found = Command::new("etcd").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return true;
    }
    let required = std::env::var("STRANDLINE_REQUIRE_ETCD").is_ok_and(|value| value == "1");
    assert!(!required, "{test}: there is no etcd on the PATH, and STRANDLINE_REQUIRE_ETCD=1 asks for one");
    println!("SKIPPED {test}: there is no etcd on the PATH");
    false
}

impl Server {
    /// Starts an etcd and waits until it answers.
    pub(crate) async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    /// Starts an etcd with options; waits until it answers if it takes plain connections.
    pub(crate) async fn start_with(options: Options) -> Self {
        let mut server = Self::members(1, &options).remove(0);
        server.spawn();
        if !options.tls {
            server.ready().await;
        }
        server
    }

    /// Prepares the members of one cluster, without starting them.
    pub(crate) fn members(count: usize, options: &Options) -> Vec<Self> {
        let scheme = if options.tls { "https" } else { "http" };
        let ports: Vec<(u16, u16)> = free_ports(2 * count).chunks(2).map(|pair| (pair[0], pair[1])).collect();
        let peers: Vec<String> =
            ports.iter().enumerate().map(|(n, (_, peer))| format!("m{n}=http://127.0.0.1:{peer}")).collect();
        let member = |(n, (port, peer)): (usize, &(u16, u16))| {
            let directory = TempDir::new().unwrap();
            let url = format!("{scheme}://127.0.0.1:{port}");
            let peer_url = format!("http://127.0.0.1:{peer}");
            let mut command: Vec<String> = ["--logger", "zap", "--log-level", "fatal", "--unsafe-no-fsync"]
                .into_iter()
                .map(str::to_owned)
                .collect();
            for (name, value) in [
                ("--name", format!("m{n}")),
                ("--data-dir", directory.path().join("data").display().to_string()),
                ("--listen-client-urls", url.clone()),
                ("--advertise-client-urls", url),
                ("--listen-peer-urls", peer_url.clone()),
                ("--initial-advertise-peer-urls", peer_url),
                ("--initial-cluster", peers.join(",")),
            ] {
                command.extend([name.to_owned(), value]);
            }
            command.extend(options.arguments.clone());
            Self { child: None, command, port: *port, scheme, _directory: directory }
        };
        ports.iter().enumerate().map(member).collect()
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// Starts the process; after [`Server::kill`], again with the data that it had.
    pub(crate) fn spawn(&mut self) {
        let mut command = Command::new("etcd");
        command.args(&self.command).stdin(Stdio::null()).stdout(Stdio::null());
        if std::env::var("STRANDLINE_ETCD_LOG").is_err() {
            command.stderr(Stdio::null());
        }
        self.child = Some(command.spawn().unwrap());
    }

    pub(crate) async fn ready(&self) {
        let config =
            EtcdConfig { request_timeout: Duration::from_millis(500), ..EtcdConfig::new([self.url()]) };
        let reader = EtcdReader::new(&config).await.unwrap();
        eventually("etcd starts", async || get(&reader, "ready").await).await;
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Stops the process without killing it: connections stay open and nobody answers.
    pub(crate) fn pause(&self) {
        self.signal("-STOP");
        // On a busy machine a thread may run on for a moment.
        while !self.is_stopped() {
            std::thread::yield_now();
        }
    }

    fn is_stopped(&self) -> bool {
        let tasks = format!("/proc/{}/task", self.child.as_ref().unwrap().id());
        let mut threads = std::fs::read_dir(tasks).unwrap().flatten();
        threads.all(|thread| {
            // A thread that has ended meanwhile does nothing any more, either.
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('T'))
        })
    }

    /// Lets a paused process go on.
    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let id = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A file of a directory that lives as long as the test.
pub(crate) fn write(directory: &TempDir, name: &str, content: &str) -> PathBuf {
    let path = directory.path().join(name);
    std::fs::write(&path, content).unwrap();
    path
}

/// Ports that were free a moment ago, all different.
fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}
