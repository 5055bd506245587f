//! A TCP proxy whose links can be cut: it stands between a broker and etcd, S3 or its clients, or
//! between members of etcd.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
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
    /// What the server says passes, what the client says does not.
    OtherWay,
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
        matches!(self, Self::Up | Self::OtherWay | Self::Slow(_))
    }

    /// How late what the server says comes.
    fn delay(self) -> Duration {
        match self {
            Self::Slow(ms) => Duration::from_millis(ms),
            Self::Up | Self::Down | Self::Silent | Self::OneWay | Self::OtherWay => Duration::ZERO,
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

    /// Changes the link, also for the connections that there are. What was held back passes when it
    /// is up again.
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
                connections.spawn(connection(client, Vec::new(), target, link.subscribe()));
            }
        }
    }
}

/// A proxy before a member of etcd, which has a link for each of the other members: they name
/// themselves in the requests with which they open connections.
#[derive(Debug)]
pub struct PeerProxy {
    port: u16,
    links: PeerLinks,
    /// The id of each member, as it names itself.
    ids: Mutex<BTreeMap<usize, String>>,
    _tasks: JoinSet<()>,
}

/// By the id of the member that connects.
type PeerLinks = Arc<Mutex<BTreeMap<String, Arc<watch::Sender<Link>>>>>;

/// More than the head of any request between members.
const MAX_HEAD_BYTES: usize = 16 * 1024;

impl PeerProxy {
    /// Listens on a free port and passes everything to `target` on this machine.
    pub async fn start(target: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let links = PeerLinks::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept_peers(listener, target, links.clone()));
        Ok(Self { port, links, ids: Mutex::default(), _tasks: tasks })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The member of this number names itself like this.
    pub(crate) fn know(&self, member: usize, id: &str) {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).insert(member, id.to_owned());
    }

    /// Changes the link on which a member connects to this one.
    pub(crate) fn set(&self, from: usize, link: Link) {
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        link_of(&self.links, ids.get(&from).expect("members are known")).send_replace(link);
    }
}

fn link_of(links: &PeerLinks, id: &str) -> Arc<watch::Sender<Link>> {
    let mut links = links.lock().unwrap_or_else(PoisonError::into_inner);
    links.entry(id.to_owned()).or_insert_with(|| Arc::new(watch::Sender::new(Link::Up))).clone()
}

async fn accept_peers(listener: TcpListener, target: u16, links: PeerLinks) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                connections.spawn(peer(client, target, links.clone()));
            }
        }
    }
}

async fn peer(mut client: TcpStream, target: u16, links: PeerLinks) {
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") && head.len() < MAX_HEAD_BYTES {
        if !matches!(client.read_buf(&mut head).await, Ok(1..)) {
            return;
        }
    }
    let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
    // Questions for the version and the like do not say who asks.
    let from = text.split_once("x-server-from:").map_or("", |(_, rest)| rest.lines().next().unwrap_or(""));
    let link = link_of(&links, from.trim());
    connection(client, head, target, link.subscribe()).await;
}

/// Passes a connection on, of which `head` has been read already.
async fn connection(client: TcpStream, head: Vec<u8>, target: u16, mut link: watch::Receiver<Link>) {
    let mut is_down = link.clone();
    let passing = async {
        // While nothing passes, a connection is made by the client's kernel alone.
        let _ = link.wait_for(|l| l.takes()).await;
        let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        if server.write_all(&head).await.is_err() {
            return;
        }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A server that says back what it is told, and tells this test too.
    async fn echo() -> (u16, watch::Receiver<Vec<u8>>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("it is bound").port();
        let heard = watch::Sender::new(Vec::new());
        let receiver = heard.subscribe();
        tokio::spawn(async move {
            let heard = Arc::new(heard);
            while let Ok((mut socket, _)) = listener.accept().await {
                let heard = heard.clone();
                tokio::spawn(async move {
                    let mut buffer = [0; 1024];
                    while let Ok(read @ 1..) = socket.read(&mut buffer).await {
                        heard.send_modify(|all| all.extend(&buffer[..read]));
                        if socket.write_all(&buffer[..read]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        (port, receiver)
    }

    async fn hears(heard: &mut watch::Receiver<Vec<u8>>, what: &[u8]) {
        heard.wait_for(|all| all.ends_with(what)).await.expect("the server runs");
    }

    async fn is_told(client: &mut TcpStream, what: &[u8]) {
        let mut answer = vec![0; what.len()];
        client.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(answer, what);
    }

    #[tokio::test]
    async fn a_link_passes_what_it_says_and_nothing_else() {
        let (port, mut heard) = echo().await;
        let proxy = Proxy::start(port).await.expect("a proxy");
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.expect("a connection");
        client.write_all(b"up").await.expect("it is taken");
        is_told(&mut client, b"up").await;

        proxy.set(Link::OneWay);
        client.write_all(b"one").await.expect("it is taken");
        hears(&mut heard, b"one").await;
        let quiet = Duration::from_millis(100);
        let mut byte = [0];
        assert!(
            tokio::time::timeout(quiet, client.peek(&mut byte)).await.is_err(),
            "no answer comes through"
        );
        proxy.set(Link::OtherWay);
        is_told(&mut client, b"one").await;
        client.write_all(b"two").await.expect("the kernel takes it");
        tokio::time::sleep(quiet).await;
        assert!(heard.borrow().ends_with(b"one"), "nothing comes through");
        proxy.set(Link::Silent);
        tokio::time::sleep(quiet).await;
        assert!(heard.borrow().ends_with(b"one"), "nothing comes through");
        proxy.set(Link::Up);
        is_told(&mut client, b"two").await;

        proxy.set(Link::Down);
        assert!(matches!(client.read(&mut byte).await, Ok(0) | Err(_)), "the connection is gone");
        let mut refused =
            TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.expect("the kernel takes it");
        assert!(matches!(refused.read(&mut byte).await, Ok(0) | Err(_)), "and so is a new one");
    }

    #[tokio::test]
    async fn members_of_etcd_are_told_apart_by_how_they_name_themselves() {
        let (port, mut heard) = echo().await;
        let proxy = PeerProxy::start(port).await.expect("a proxy");
        proxy.know(0, "a1");
        proxy.know(1, "b2");
        proxy.set(0, Link::Down);
        let hello =
            |id: &str| format!("GET /raft/stream/message/{id} HTTP/1.1\r\nX-Server-From: {id}\r\n\r\n");
        let connect = async |id: &str| {
            let mut client =
                TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.expect("a connection");
            client.write_all(hello(id).as_bytes()).await.expect("it is taken");
            client
        };
        let mut byte = [0];
        let mut cut = connect("a1").await;
        assert!(matches!(cut.read(&mut byte).await, Ok(0) | Err(_)), "its link is down");
        let mut other = connect("b2").await;
        is_told(&mut other, hello("b2").as_bytes()).await;
        proxy.set(0, Link::Up);
        let mut cut = connect("a1").await;
        is_told(&mut cut, hello("a1").as_bytes()).await;
        hears(&mut heard, hello("a1").as_bytes()).await;
    }
}
