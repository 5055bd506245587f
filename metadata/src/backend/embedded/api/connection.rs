//! Accepting connections, no more than so many at a time.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use futures::stream::unfold;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tonic::transport::server::Connected;
use tracing::warn;

use crate::limits::API_ACCEPT_PAUSE;

/// A connection, and its place among those that are served.
#[derive(Debug)]
pub(super) struct Connection {
    io: TcpStream,
    _place: OwnedSemaphorePermit,
}

/// Accepts connections. While there are `most`, others wait in the listener's queue.
pub(super) fn connections(
    listener: TcpListener,
    most: usize,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    let places = Arc::new(Semaphore::new(most));
    unfold((listener, places), |(listener, places)| async move {
        // The semaphore is never closed.
        let place = places.clone().acquire_owned().await.ok()?;
        let connection = match listener.accept().await {
            Ok((io, _)) => io.set_nodelay(true).map(|()| Connection { io, _place: place }),
            Err(error) => {
                warn!(%error, "accepting a connection to the embedded metadata failed");
                sleep(API_ACCEPT_PAUSE).await;
                Err(error)
            }
        };
        Some((connection, (listener, places)))
    })
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
