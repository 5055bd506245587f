//! Accepting Kafka clients.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpSocket, lookup_host};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tracing::{info, warn};

use super::{connection, descriptors};
use crate::Broker;
use crate::limits::{ACCEPT_PAUSE, BACKLOG};
use crate::tasks::TaskKind;

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else has it.
    #[error("{address} is already in use: another broker may be running; choose another address with {flag}")]
    InUse {
        /// The address.
        address: String,
        /// The flag that names it.
        flag: &'static str,
    },
    /// Anything else.
    #[error("cannot listen on {address} (see {flag}): {error}")]
    Other {
        /// The address.
        address: String,
        /// The flag that names it.
        flag: &'static str,
        /// What the system says.
        error: io::Error,
    },
}

impl ListenError {
    /// What went wrong when `address` was bound.
    pub fn new(address: &str, flag: &'static str, error: io::Error) -> Self {
        let address = address.to_owned();
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::InUse { address, flag },
            _ => Self::Other { address, flag, error },
        }
    }
}

/// A socket for Kafka clients that takes no connections yet. What clients send to a broker that is
/// still opening would lie there until it is open, and be executed when they have long tried it
/// again elsewhere and gone on: a commit of offsets would take them back. So they are refused, and
/// ask another broker.
#[derive(Debug)]
pub struct Bound {
    socket: TcpSocket,
    address: String,
}

impl Bound {
    /// Binds `address`: if it is a name, the first of what it stands for that can be bound.
    pub async fn new(address: &str) -> Result<Self, ListenError> {
        let refused = |error| ListenError::new(address, "--listen", error);
        let mut last = io::Error::other("the name stands for no address");
        for found in lookup_host(address).await.map_err(refused)? {
            match bind(found) {
                Ok(socket) => return Ok(Self { socket, address: address.to_owned() }),
                Err(error) => last = error,
            }
        }
        Err(refused(last))
    }

    /// The address that was bound.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// From now on clients can connect.
    pub fn listen(self) -> Result<Listener, ListenError> {
        let socket =
            self.socket.listen(BACKLOG).map_err(|e| ListenError::new(&self.address, "--listen", e))?;
        Ok(Listener { socket })
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Connections of an earlier process may still be on their way out.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// A socket that Kafka clients connect to.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
}

impl Listener {
    /// Accepts and serves connections until it is dropped.
    pub async fn run(self, broker: Arc<Broker>) {
        let limit = descriptors::room_for_connections(broker.config.max_connections);
        let room = Arc::new(Semaphore::new(limit));
        loop {
            let (socket, peer) = match self.socket.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "accepting a connection failed");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = room.clone().try_acquire_owned() else {
                info!(%peer, limit, "refusing a connection: there are too many");
                broker.metrics.connection_refused();
                continue;
            };
            if let Err(error) = socket.set_nodelay(true) {
                info!(%peer, %error, "a connection cannot be set up");
                continue;
            }
            let serving = broker.clone();
            let (input, output) = socket.into_split();
            broker.tasks.start(TaskKind::Connection, "connection", async move {
                connection::serve(serving, input, output, peer.to_string()).await;
                drop(place);
            });
        }
    }
}
