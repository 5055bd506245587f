//! Every limit of this crate, with the relations between them that must hold.

use std::time::Duration;

/// The head of an HTTP request must have arrived within this time, from when the connection is
/// ready for it: also how long an idle connection stays, which a collector uses again every minute
/// or sooner. Whoever needs the place has it before.
pub(crate) const HTTP_HEAD_TIME: Duration = Duration::from_secs(75);
/// The body of an HTTP request must have arrived within this time.
pub(crate) const HTTP_BODY_TIME: Duration = Duration::from_secs(30);
/// Disconnect whoever takes nothing of an HTTP response for this long.
pub(crate) const HTTP_STUCK_TIME: Duration = Duration::from_secs(30);
/// Requests that are under way when a server ends may take this long.
pub(crate) const HTTP_FINISH_TIME: Duration = Duration::from_secs(5);
/// Pause after accepting an HTTP connection failed.
pub(crate) const HTTP_ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A connection that has had no request for this long gives way to a new one where all places are
/// taken. Shorter, and one whose request is on its way might.
pub(crate) const HTTP_IDLE_GRACE: Duration = Duration::from_secs(1);
/// Where all places are taken, it is looked this often whether one is free.
pub(crate) const HTTP_PLACE_PAUSE: Duration = Duration::from_millis(20);

const _: () = assert!(HTTP_IDLE_GRACE.as_secs() < HTTP_HEAD_TIME.as_secs());
