//! Sockets: accepting them, reading frames, writing answers in order.

mod connection;
mod descriptors;
pub(crate) mod frame;
pub mod http;
mod listener;
pub(crate) mod memory;
mod pace;
mod writer;

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

pub use self::listener::{Bound, ListenError, Listener};
use crate::Broker;

/// Serves one connection that did not come through a [`Listener`], until either side ends it: for a
/// simulation, or a test.
pub async fn serve<S>(broker: Arc<Broker>, io: S, peer: String)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (input, output) = tokio::io::split(io);
    connection::serve(broker, input, output, peer).await;
}
