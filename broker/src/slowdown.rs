//! What producers notice before they are refused: of a state near its limit, and of etcd near its
//! quota.
//!
//! The number of offset ranges falls as they are merged. When merging does not keep up, each flush
//! waits after the one before: not at all below half of the limit, then longer and longer. While
//! etcd is nearly full it waits too (`SpaceGauge::pause`). Clients are told the pause as their
//! throttle time.

use std::time::Duration;

use strandline_metadata::replica::Replica;

use crate::config::Config;
use crate::limits::GROWTH_LINGERS;
use crate::space::SpaceGauge;

/// Looks at what producers are slowed for. Clones look at the same.
#[derive(Clone, Debug)]
pub struct Slowdown {
    replica: Replica,
    space: SpaceGauge,
    /// Ranges at which producers are refused.
    limit: u64,
    /// How long a flush waits just below the limit.
    longest_pause: Duration,
}

impl Slowdown {
    /// Producers are refused at `max_state_ranges`, and a flush waits for some lingers just below.
    pub fn new(replica: Replica, space: SpaceGauge, config: &Config) -> Self {
        let longest_pause = config.produce.linger * GROWTH_LINGERS;
        Self { replica, space, limit: config.max_state_ranges, longest_pause }
    }

    /// How full etcd is.
    pub(crate) fn space(&self) -> &SpaceGauge {
        &self.space
    }

    /// How long a flush waits after the one before.
    pub(crate) fn pause(&self) -> Duration {
        let ranges = self.replica.read(|view| view.state.entry_count());
        pause(ranges, self.limit, self.longest_pause).max(self.space.pause())
    }
}

/// Whether producers wait for longer than they ask for, with so many ranges of so many at most.
pub(crate) fn is_slowing(ranges: u64, limit: u64) -> bool {
    pause(ranges, limit, Duration::from_secs(1)) > Duration::ZERO
}

fn pause(ranges: u64, limit: u64, longest: Duration) -> Duration {
    let half = limit / 2;
    let per_mille = ranges.saturating_sub(half).saturating_mul(1_000) / (limit - half).max(1);
    longest * u32::try_from(per_mille.min(1_000)).unwrap_or(1_000) / 1_000
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
    use kafka_protocol::messages::{DeleteTopicsRequest, TopicName};
    use kafka_protocol::records::Compression;
    use tokio::time::Instant;

    use super::*;
    use crate::api::text;
    use crate::records::tests::batch;
    use crate::testing::{NOW_MS, TestClient, World, metric};

    #[test]
    fn the_nearer_the_limit_the_longer_a_flush_waits() {
        let longest = Duration::from_secs(2);
        let at = |ranges| pause(ranges, 1_000, longest);
        assert_eq!(at(0), Duration::ZERO);
        assert_eq!(at(500), Duration::ZERO);
        assert_eq!(at(750), longest / 2);
        assert_eq!(at(1_000), longest);
        assert_eq!(at(u64::MAX), longest);
        assert_eq!(pause(1, 1, longest), longest);
    }

    #[tokio::test(start_paused = true)]
    async fn producers_are_slowed_before_they_are_refused() {
        let flags =
            ["--put-budget-per-s", "1000", "--max-state-ranges", "10", "--merge-interval-ms", "86400000"];
        let opened = World::new().broker(1, &flags).await;
        let mut client = TestClient::connect(&opened.broker);
        client.create_topic("t", 1, &[]).await;
        let slowed = || metric::<u32>(&opened, "strandline_state_slowed");
        let (mut took, mut told) = (Vec::new(), Vec::new());
        for _ in 0..9 {
            let began = Instant::now();
            told.push(client.produce("t", [batch(Compression::None, NOW_MS, 1)]).await);
            took.push(began.elapsed());
        }
        assert_eq!(told[..5], [0; 5]);
        let pause = opened.broker.slowdown.pause();
        assert!(told[8] > 0 && told[8] == i32::try_from(pause.as_millis()).unwrap(), "{told:?}");
        let longest = opened.broker.config.produce.linger * 10;
        assert!(took.iter().take(5).all(|t| *t < longest / 5), "{took:?}");
        assert!(took.last().unwrap() >= &(longest / 2), "{took:?}");
        let [writes, ..] = opened.broker.readiness.look(&opened.broker);
        assert!(writes.obstacle.is_none());
        assert!(writes.slowed.is_some_and(|(why, since_ms)| why.contains("merging") && since_ms == NOW_MS));
        // It is over when the ranges are gone, also if nobody writes any more.
        assert_eq!(slowed(), 1);
        let gone = DeleteTopicState::default().with_name(Some(TopicName(text("t"))));
        let answer = client.call(&DeleteTopicsRequest::default().with_topics(vec![gone]), 6).await;
        assert_eq!(answer.responses[0].error_code, 0);
        assert_eq!(slowed(), 0);
    }
}
