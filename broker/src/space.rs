//! How full etcd is, and what this broker does about it before etcd refuses writes.
//!
//! | in use, percent of the quota | then |
//! |---|---|
//! | 60 | history is kept short, and a snapshot trims the log soon (`jobs`) |
//! | 80 to 95 | each flush waits after the one before, up to a second: producers are slowed |
//! | 90 | there are no new groups, and those that exist commit for no more partitions, and with no longer metadata, than they have |
//!
//! What counts is what is in use. etcd's file has free pages beside that, which it uses again; but
//! it refuses writes by the size of the file, so a file near the quota is named in the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use strandline_metadata::backend::Space;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::Broker;
use crate::limits::{
    SPACE_CLOSED_PERCENT, SPACE_FULL_PERCENT, SPACE_LONGEST_PAUSE, SPACE_POLL, SPACE_SHORT_PERCENT,
    SPACE_SLOW_PERCENT,
};

/// What was found of etcd's space. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct SpaceGauge {
    shared: Arc<Shared>,
}

/// In bytes.
#[derive(Debug, Default)]
struct Shared {
    used: AtomicU64,
    file: AtomicU64,
    quota: AtomicU64,
}

impl SpaceGauge {
    pub(crate) fn note(&self, space: Space, quota_bytes: u64) {
        self.shared.used.store(space.used_bytes, Ordering::Relaxed);
        self.shared.file.store(space.file_bytes, Ordering::Relaxed);
        self.shared.quota.store(space.quota_bytes.unwrap_or(quota_bytes), Ordering::Relaxed);
    }

    /// Bytes in use, bytes of the file, and the quota; zeros while nothing is known.
    pub(crate) fn bytes(&self) -> (u64, u64, u64) {
        let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
        (read(&self.shared.used), read(&self.shared.file), read(&self.shared.quota))
    }

    fn percent_of_quota(&self, bytes: u64) -> u64 {
        let (_, _, quota) = self.bytes();
        bytes.saturating_mul(100).checked_div(quota).unwrap_or(0)
    }

    /// Percent of the quota that are in use.
    pub(crate) fn used_percent(&self) -> u64 {
        self.percent_of_quota(self.bytes().0)
    }

    /// Whether etcd should be relieved of what it need not keep.
    pub(crate) fn is_short(&self) -> bool {
        self.used_percent() >= SPACE_SHORT_PERCENT
    }

    /// Whether what groups store may not grow.
    pub(crate) fn is_closed(&self) -> bool {
        self.used_percent() >= SPACE_CLOSED_PERCENT
    }

    /// How long a flush waits after the one before.
    pub(crate) fn pause(&self) -> Duration {
        let above = self.used_percent().saturating_sub(SPACE_SLOW_PERCENT);
        let span = SPACE_FULL_PERCENT - SPACE_SLOW_PERCENT;
        let share = u32::try_from(above.min(span)).unwrap_or(0);
        // The first percent counts: who is slowed is slowed noticeably.
        SPACE_LONGEST_PAUSE * share / u32::try_from(span).unwrap_or(1)
    }
}

/// Asks etcd again and again, until it is dropped. A store without a quota is asked once.
pub(crate) async fn run(broker: Arc<Broker>) {
    let mut was_slowed = false;
    loop {
        match broker.lease_backend.space().await {
            Ok(Some(space)) => {
                broker.slowdown.space().note(space, broker.config.etcd_quota_bytes);
                was_slowed = tell(broker.slowdown.space(), was_slowed);
            }
            Ok(None) => std::future::pending().await,
            Err(error) => debug!(%error, "etcd does not say how full it is"),
        }
        sleep(SPACE_POLL).await;
    }
}

/// Says what a person should know. Whether producers are slowed.
fn tell(gauge: &SpaceGauge, was_slowed: bool) -> bool {
    let (used, file, quota) = gauge.bytes();
    let (percent, pause_ms) = (gauge.used_percent(), gauge.pause().as_millis());
    if pause_ms > 0 {
        warn!(
            used,
            quota,
            percent,
            pause_ms,
            groups_may_grow = !gauge.is_closed(),
            "etcd is nearly full: producers are slowed; look at what fills it, or raise its quota"
        );
    } else if was_slowed {
        info!(percent, "etcd has room again: producers are not slowed any more");
    } else if gauge.percent_of_quota(file) >= SPACE_FULL_PERCENT {
        warn!(used, file, quota, "etcd's file is near its quota, although much of it is free: defragment it");
    }
    pause_ms > 0
}

#[cfg(test)]
mod tests {
    use kafka_protocol::records::Compression;
    use tokio::time::Instant;

    use super::*;
    use crate::records::tests::batch;
    use crate::testing::{NOW_MS, TestClient, World};

    #[tokio::test(start_paused = true)]
    async fn flushes_wait_while_etcd_is_nearly_full() {
        let world = World::new();
        let opened = world.broker(1, &["--put-budget-per-s", "1000", "--linger-ms", "1"]).await;
        let mut client = TestClient::connect(&opened.broker);
        client.create_topic("t", 1, &[]).await;
        let mut produce = async || {
            let began = Instant::now();
            for _ in 0..3 {
                client.produce("t", [batch(Compression::None, NOW_MS, 1)]).await;
            }
            began.elapsed()
        };
        assert!(produce().await < SPACE_LONGEST_PAUSE);
        let space = |used_bytes| Space { file_bytes: used_bytes, used_bytes, quota_bytes: Some(100) };
        opened.broker.slowdown.space().note(space(97), 0);
        assert!(produce().await >= SPACE_LONGEST_PAUSE * 2, "producers are slowed, and not refused");
        opened.broker.slowdown.space().note(space(50), 0);
        assert!(produce().await < SPACE_LONGEST_PAUSE);
    }

    #[test]
    fn the_fuller_etcd_is_the_longer_a_flush_waits() {
        let gauge = SpaceGauge::default();
        assert_eq!((gauge.pause(), gauge.is_short()), (Duration::ZERO, false), "nothing is known yet");
        let with = |used_bytes, quota_bytes| {
            gauge.note(Space { file_bytes: 990, used_bytes, quota_bytes }, 1_000);
            (gauge.pause(), gauge.is_short())
        };
        assert_eq!(with(599, None), (Duration::ZERO, false));
        assert_eq!(with(600, None), (Duration::ZERO, true));
        assert_eq!(with(800, None), (Duration::ZERO, true));
        assert_eq!(with(810, None), (SPACE_LONGEST_PAUSE / 15, true));
        assert_eq!(with(950, None), (SPACE_LONGEST_PAUSE, true));
        assert_eq!(with(5_000, None), (SPACE_LONGEST_PAUSE, true));
        assert_eq!(with(950, Some(10_000)), (Duration::ZERO, false), "what etcd says itself counts");
        with(950, None);
        assert!(tell(&gauge, false));
        with(100, None);
        assert!(!tell(&gauge, true));
    }
}
