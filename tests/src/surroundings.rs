//! What a test client gets from outside: a network, and the time of day. They are the machine's own
//! unless a simulation has put others in their place, for the thread that it runs on.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Both directions of a connection.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> Stream for S {}

/// Another world than the machine's own.
pub trait Surroundings {
    /// Connects to `host:port`.
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Stream>>>;

    /// Milliseconds since 1970.
    fn now_ms(&self) -> i64;
}

thread_local! {
    static SURROUNDINGS: RefCell<Option<Rc<dyn Surroundings>>> = const { RefCell::new(None) };
}

/// From now on, clients of this thread live in these surroundings; in the machine's own with
/// `None`.
pub fn set(surroundings: Option<Rc<dyn Surroundings>>) {
    SURROUNDINGS.with(|current| *current.borrow_mut() = surroundings);
}

fn current() -> Option<Rc<dyn Surroundings>> {
    SURROUNDINGS.with(|current| current.borrow().clone())
}

/// Connects to `host:port`.
pub(crate) async fn connect(address: &str) -> io::Result<Box<dyn Stream>> {
    let simulated = current().map(|surroundings| surroundings.connect(address));
    if let Some(connecting) = simulated {
        return connecting.await;
    }
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    Ok(Box::new(socket))
}

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    let machine = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64);
    current().map_or_else(machine, |surroundings| surroundings.now_ms())
}
