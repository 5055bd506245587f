//! Sockets: accepting them, reading frames, writing answers in order.

mod connection;
mod frame;
pub mod http;
mod listener;

pub use self::listener::{ListenError, Listener};
