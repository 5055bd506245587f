//! A TCP proxy whose links can be cut: it stands between a broker and etcd, or a broker and S3.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What happens to bytes and connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Everything passes.
    Up,
    /// Connections are reset, and new ones closed as soon as they are made.
    Down,
    /// Connections stay, and nothing passes: a network that drops every packet.
    Silent,
    /// What the client says passes, what the server says does not.
    OneWay,
    /// Everything passes; what the server says comes so many milliseconds late.
    Slow(u64),
}

impl Link {
    /// Whether what the client says passes.
    fn takes(self) -> bool {
        matches!(self, Self::Up | Self::OneWay | Self::Slow(_))
    }

    /// Whether what the server says passes.
    fn answers(self) -> bool {
        matches!(self, Self::Up | Self::Slow(_))
    }

    /// How late what the server says comes.
    fn delay(self) -> Duration {
        match self {
            Self::Slow(ms) => Duration::from_millis(ms),
            Self::Up | Self::Down | Self::Silent | Self::OneWay => Duration::ZERO,
        }
    }
}

/// A proxy, which ends when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    link: Arc<watch::Sender<Link>>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Listens on a free port and passes everything to `target` on this machine.
    pub async fn start(target: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let link = Arc::new(watch::Sender::new(Link::Up));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, target, link.clone()));
        Ok(Self { port, link, _tasks: tasks })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes the link, also for the connections that there are. What was held back passes when it is up again.
    pub fn set(&self, link: Link) {
        self.link.send_replace(link);
    }
}

async fn accept(listener: TcpListener, target: u16, link: Arc<watch::Sender<Link>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                connections.spawn(connection(client, target, link.subscribe()));
            }
        }
    }
}

async fn connection(client: TcpStream, target: u16, mut link: watch::Receiver<Link>) {
    let mut is_down = link.clone();
    let passing = async {
        // While nothing passes, a connection is made by the client's kernel alone.
        let _ = link.wait_for(|l| l.takes()).await;
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        tokio::join!(
            copy(from_client, to_server, link.clone(), Link::takes, |_| Duration::ZERO),
            copy(from_server, to_client, link.clone(), Link::answers, Link::delay),
        );
    };
    tokio::select! {
        () = passing => {}
        // Dropping both ends closes them.
        _ = is_down.wait_for(|l| *l == Link::Down) => {}
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut link: watch::Receiver<Link>,
    passes: fn(Link) -> bool,
    delay: fn(Link) -> Duration,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(read) = from.read(&mut buffer).await else { return };
        if link.wait_for(|l| passes(*l)).await.is_err() {
            return;
        }
        if read == 0 {
            let _ = to.shutdown().await;
            return;
        }
        let delay = delay(*link.borrow());
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
