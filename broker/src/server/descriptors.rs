//! File descriptors: clients take so many that the rest of the broker never lacks one.

use crate::limits::{DESCRIPTORS_OF_OTHERS, HTTP_CONNECTIONS};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

/// How many connections of clients this process has room for, at most `wanted`. Raises its own
/// limit of descriptors as far as it may, and says so if that is not far enough.
pub(crate) fn room_for_connections(wanted: usize) -> usize {
    let limit = raise();
    let room = limit.map_or(wanted, |limit| room(limit, wanted));
    if room < wanted {
        warn!(
            limit,
            wanted, room, "file descriptors are few (ulimit -n): fewer connections are taken than configured"
        );
    }
    room
}

/// How many connections at a time the port of the metrics takes; more wait to be accepted.
pub(crate) fn room_for_http() -> usize {
    raise().map_or(HTTP_CONNECTIONS, room_in_others)
}

/// The limit of descriptors after it was raised; nothing if there is none.
fn raise() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            info!(%error, "the limit of file descriptors cannot be raised");
            current
        }
    }
}

/// What is left for clients of so many descriptors: one connection at least.
fn room(limit: u64, wanted: usize) -> usize {
    usize::try_from(limit - others(limit)).map_or(wanted, |room| room.clamp(1, wanted))
}

/// Half of a small limit is left to the others.
fn others(limit: u64) -> u64 {
    DESCRIPTORS_OF_OTHERS.min(limit.div_ceil(2))
}

/// A quarter of what is left to the others.
fn room_in_others(limit: u64) -> usize {
    usize::try_from(others(limit) / 4).map_or(HTTP_CONNECTIONS, |room| room.clamp(1, HTTP_CONNECTIONS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_need_is_left_to_them() {
        assert_eq!(room(1_048_576, 10_000), 10_000);
        assert_eq!(room(1024, 10_000), 768);
        assert_eq!(room(200, 10_000), 100);
        assert_eq!(room(1024, 5), 5);
        assert_eq!([1_048_576, 1024, 200, 1].map(room_in_others), [64, 64, 25, 1]);
        assert_eq!(room(1, 5), 1, "one connection at least, or nobody would be told anything");
    }
}
