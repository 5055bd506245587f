//! A TCP proxy before etcd that loses answers, and connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Forwards connections to a port until told otherwise.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    switches: Arc<Switches>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Switches {
    /// The next bytes from etcd are dropped, and their connection with them.
    lose_answers: AtomicBool,
    /// Bytes that clients have sent.
    sent_bytes: AtomicU64,
    /// Connections that clients have made.
    connections: AtomicU64,
    /// Connections up to this one are dead, and neither side is told.
    dead_connections: AtomicU64,
}

impl Proxy {
    pub(crate) async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let switches = Arc::new(Switches::default());
        let shared = Arc::clone(&switches);
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let number = shared.connections.fetch_add(1, Ordering::SeqCst) + 1;
                let server = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
                tokio::spawn(forward(number, client, server, Arc::clone(&shared)));
            }
        });
        Self { port, switches, task }
    }

    /// From now on requests reach etcd and their answers do not reach the client.
    pub(crate) fn lose_answers(&self, lose: bool) {
        self.switches.lose_answers.store(lose, Ordering::SeqCst);
    }

    pub(crate) fn connections(&self) -> u64 {
        self.switches.connections.load(Ordering::SeqCst)
    }

    /// All connections that there are now lose everything that is sent on them, and stay open. New
    /// ones work.
    pub(crate) fn lose_connections(&self) {
        self.switches.dead_connections.store(self.connections(), Ordering::SeqCst);
    }

    pub(crate) fn sent_bytes(&self) -> u64 {
        self.switches.sent_bytes.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(number: u64, client: TcpStream, server: TcpStream, switches: Arc<Switches>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let is_dead = || number <= switches.dead_connections.load(Ordering::SeqCst);
    let requests = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            switches.sent_bytes.fetch_add(count as u64, Ordering::SeqCst);
            if is_dead() {
                continue;
            }
            to_server.write_all(&buffer[..count]).await?;
        }
        std::io::Result::Ok(())
    };
    let answers = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
            if switches.lose_answers.load(Ordering::SeqCst) {
                break;
            }
            if is_dead() {
                continue;
            }
            to_client.write_all(&buffer[..count]).await?;
        }
        std::io::Result::Ok(())
    };
    // Whichever ends first takes the other with it: the connection is gone.
    tokio::select! {
        _ = requests => {}
        _ = answers => {}
    }
}
