//! The network between clients and brokers, and the clock of the clients.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::BoxFuture;
use strandline_storage::clock::Clock;
use strandline_tests::surroundings::{Stream, Surroundings};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, split};

use crate::clock::SimClock;
use crate::link::Link;
use crate::node::Node;

/// Bytes that are under way in each direction of a connection.
const WINDOW: usize = 256 * 1024;

/// What clients see of the world.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) nodes: BTreeMap<i32, Arc<Node>>,
    pub(crate) clock: SimClock,
    pub(crate) connections: AtomicU64,
}

impl Surroundings for Network {
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        let id = address.rsplit(':').next().and_then(|id| id.parse::<i32>().ok());
        let node = id.and_then(|id| self.nodes.get(&id)).cloned();
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            let node = node.ok_or_else(refused)?;
            let link = node.to_clients.clone();
            link.cross().await;
            let (near, client_side) = tokio::io::duplex(WINDOW);
            let (server_side, far) = tokio::io::duplex(WINDOW);
            if !node.accept(far, format!("client-{number}")) {
                return Err(refused());
            }
            tokio::spawn(carry(client_side, server_side, link));
            Ok(Box::new(near) as Box<dyn Stream>)
        })
    }

    fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }
}

/// Carries bytes both ways until both sides have closed.
async fn carry(client: DuplexStream, server: DuplexStream, link: Link) {
    let (from_client, to_client) = split(client);
    let (from_server, to_server) = split(server);
    futures::join!(one_way(from_client, to_server, &link), one_way(from_server, to_client, &link));
}

async fn one_way(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, link: &Link) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer).await {
            Ok(read) if read > 0 => {
                link.cross().await;
                if to.write_all(&buffer[..read]).await.is_err() {
                    return;
                }
            }
            _ => {
                link.cross().await;
                // The other side may have gone first.
                let _ = to.shutdown().await;
                return;
            }
        }
    }
}
