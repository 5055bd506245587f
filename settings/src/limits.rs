//! Every limit of this crate, with the relations between them that must hold.

use std::time::Duration;

/// The head of an HTTP request must have arrived within this time, from when the connection is
/// ready for it: also how long an idle connection stays, which a collector uses again every fifteen
/// seconds.
pub(crate) const HTTP_HEAD_TIME: Duration = Duration::from_secs(30);
/// The body of an HTTP request must have arrived within this time.
pub(crate) const HTTP_BODY_TIME: Duration = Duration::from_secs(30);
/// Disconnect whoever takes nothing of an HTTP response for this long.
pub(crate) const HTTP_STUCK_TIME: Duration = Duration::from_secs(30);
/// Requests that are under way when a server ends may take this long.
pub(crate) const HTTP_FINISH_TIME: Duration = Duration::from_secs(5);
/// Pause after accepting an HTTP connection failed.
pub(crate) const HTTP_ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// One address has this share of an HTTP server's connections at most.
pub(crate) const HTTP_ADDRESS_SHARE: usize = 4;
/// But this many at least, where there are so many: on one host there may be a collector, a health
/// check and an observer at the same time.
pub(crate) const HTTP_CONNECTIONS_PER_ADDRESS: usize = 8;

const _: () = assert!(HTTP_ADDRESS_SHARE > 1 && HTTP_CONNECTIONS_PER_ADDRESS > 1);
