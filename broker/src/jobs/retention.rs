//! Retention by time and by size: trim records for ranges that are too old or too many.
//!
//! A range goes as a whole, once its newest record is too old. Nothing is proposed by time while
//! this broker's clock is far from others, or nothing is known of others: a clock that is ahead
//! must not delete data.

use std::collections::BTreeMap;

use strandline_metadata::commit::{Change, CommitError};
use strandline_metadata::record::{Body, Trim, TrimPartition};
use strandline_metadata::replica::View;
use strandline_metadata::state::Partition;
use strandline_storage::path::ObjectKey;
use tokio::time::Instant;
use tracing::{info, warn};
use uuid::Uuid;

use crate::Broker;
use crate::clock_skew::ClockTrust;
use crate::leaders::Leaders;
use crate::limits::{FIRST_RETENTION_LOOK, TRIMMED_PARTITIONS_PER_RECORD};
use crate::topic_config::Effective;
use crate::topics::commit;

/// When partitions are looked at (`log.retention.check.interval.ms`). One for each term of a broker
/// that runs the jobs.
#[derive(Debug, Default)]
pub(super) struct Retention {
    next: Option<Instant>,
}

impl Retention {
    /// Looks at all partitions, if it is time to.
    pub(super) async fn run_once(&mut self, broker: &Broker) -> Result<(), CommitError> {
        let (now, interval) = (Instant::now(), broker.config.retention_interval);
        let next = *self.next.get_or_insert(now + interval.min(FIRST_RETENTION_LOOK));
        if now < next {
            return Ok(());
        }
        self.next = Some(now + interval);
        trim_all(broker).await
    }
}

/// Trims whatever is due.
async fn trim_all(broker: &Broker) -> Result<(), CommitError> {
    let now_ms = match clock_trust(broker).await {
        ClockTrust::Trusted(now_ms) => Some(now_ms),
        ClockTrust::Off(ahead_ms) => {
            warn!(ahead_ms, "no retention by time: this broker's clock is far from the others'");
            None
        }
        ClockTrust::Unknown => {
            warn!("no retention by time: nothing shows whether this broker's clock is right");
            None
        }
    };
    let due: Vec<TrimPartition> = broker.replica.read(|view| {
        let (dynamic, _) = view.names.broker_configs(None);
        let of_brokers = OwnConfigs::of(broker, view);
        let mut due = Vec::new();
        for (&topic_id, topic) in view.state.topics() {
            let Some(info) = view.names.topic_by_id(topic_id) else { continue };
            for (number, partition) in (0..).zip(topic.partitions()) {
                let configs = Effective {
                    topic: &info.value.configs,
                    dynamic: of_brokers.of_partition(topic_id, number).unwrap_or(&dynamic),
                    broker: &broker.config.topics.configs,
                };
                let by_time = now_ms.zip(configs.retention_ms());
                let oldest_ms = by_time.map(|(now_ms, retention_ms)| now_ms.saturating_sub(retention_ms));
                if let Some(log_start) = new_log_start(partition, oldest_ms, configs.retention_bytes()) {
                    due.push(trim(topic_id, number, log_start));
                }
            }
        }
        due
    });
    for partitions in due.chunks(TRIMMED_PARTITIONS_PER_RECORD) {
        let trim = Trim { partitions: partitions.to_vec() };
        commit(broker, Change { body: Some(Body::Trim(trim)), ..Change::default() }).await?;
        info!(partitions = partitions.len(), "old records are gone by retention");
    }
    Ok(())
}

/// Whether this broker's clock may decide. If nothing is known of others, the store is asked for
/// something: its answer says what time it is there.
pub(crate) async fn clock_trust(broker: &Broker) -> ClockTrust {
    let judge = || broker.replica.read(|view| broker.clock_skew.judge(&view.names));
    let trust = judge();
    if trust != ClockTrust::Unknown {
        return trust;
    }
    // What it answers does not matter.
    let _ = broker.store.get(&ObjectKey::beacon(), None).await;
    judge()
}

/// Dynamic configs of brokers that have some of their own: they count for the partitions that
/// clients are led to there.
struct OwnConfigs {
    leaders: Leaders,
    by_node: BTreeMap<i32, BTreeMap<String, String>>,
}

impl OwnConfigs {
    fn of(broker: &Broker, view: &View) -> Self {
        let leaders = broker.leaders(&view.names, "");
        let nodes = leaders.brokers.iter().map(|b| b.value.node_id);
        let has_own = |node: &i32| !view.names.broker_configs(Some(*node)).0.is_empty();
        let configs = |node| (node, Broker::dynamic_configs(&view.names, node));
        let by_node = nodes.filter(has_own).map(configs).collect();
        Self { leaders, by_node }
    }

    fn of_partition(&self, topic_id: Uuid, partition: u32) -> Option<&BTreeMap<String, String>> {
        if self.by_node.is_empty() {
            return None;
        }
        self.by_node.get(&self.leaders.of_partition(topic_id, partition))
    }
}

fn trim(topic_id: Uuid, partition: u32, log_start: i64) -> TrimPartition {
    TrimPartition { topic_id: topic_id.as_bytes().to_vec(), partition, log_start: log_start.cast_unsigned() }
}

/// Where the log should start, if that is further up than now.
fn new_log_start(partition: &Partition, oldest_ms: Option<i64>, max_bytes: Option<u64>) -> Option<i64> {
    let mut log_start = None;
    let mut left = partition.bytes();
    for range in partition.ranges().iter() {
        let too_old = oldest_ms.is_some_and(|oldest| range.max_timestamp_ms < oldest);
        // As in Kafka, a range goes by size only if what is left is still at least the limit.
        let too_many = max_bytes.is_some_and(|max| left - range.bytes >= max);
        if !too_old && !too_many {
            break;
        }
        left -= range.bytes;
        log_start = Some(range.end_offset);
    }
    log_start.filter(|&offset| offset > partition.log_start())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use bytes::Bytes;
    use kafka_protocol::records::Compression;

    use super::*;
    use crate::records::tests::batch;
    use crate::testing::{NOW_MS, StoppedClock, TestClient, World};

    const MINUTE_MS: i64 = 60_000;

    /// No job runs by itself.
    const FLAGS: [&str; 4] = ["--put-budget-per-s", "1000", "--job-interval-ms", "86400000"];

    #[tokio::test]
    async fn a_broker_that_has_only_loaded_the_others_records_trims_nothing_by_its_own_clock() {
        let world = World::new();
        let right = world.broker(1, &FLAGS).await;
        let mut client = TestClient::connect(&right.broker);
        let topic = client.create_topic("t", 1, &[("retention.ms", "1800000")]).await;
        client.produce("t", [record(NOW_MS)]).await;
        client.produce("t", [record(NOW_MS)]).await;
        // It starts with a clock that is ahead, and nobody writes any more.
        let ahead = Arc::new(StoppedClock((NOW_MS + 60 * MINUTE_MS).into()));
        let elsewhere = World { clock: ahead, ..world.clone() };
        let wrong = elsewhere.broker(2, &FLAGS).await;
        assert_eq!(clock_trust(&wrong.broker).await, ClockTrust::Unknown);
        assert_eq!(log_start_after(&wrong.broker, topic).await, 0);
        // What the other one says when it leaves is evidence.
        right.drain().await.unwrap();
        let trust = clock_trust(&wrong.broker).await;
        assert!(matches!(trust, ClockTrust::Off(ahead_ms) if ahead_ms > 50 * MINUTE_MS), "{trust:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn partitions_are_looked_at_by_their_own_interval() {
        let world = World::new();
        let flags = ["--put-budget-per-s", "1000", "--job-interval-ms", "1000"];
        let opened = world.broker(1, &flags).await;
        let mut client = TestClient::connect(&opened.broker);
        let topic = client.create_topic("t", 1, &[("retention.ms", "1800000")]).await;
        client.produce("t", [record(NOW_MS - 60 * MINUTE_MS)]).await;
        let log_start =
            || opened.broker.replica.read(|view| view.state.partition(topic, 0).unwrap().log_start());
        tokio::time::sleep(FIRST_RETENTION_LOOK / 2).await;
        assert_eq!(log_start(), 0, "a consumer beside the producer has time to read");
        tokio::time::sleep(FIRST_RETENTION_LOOK).await;
        assert_eq!(log_start(), 1);
        client.produce("t", [record(NOW_MS - 60 * MINUTE_MS)]).await;
        tokio::time::sleep(std::time::Duration::from_mins(4)).await;
        assert_eq!(log_start(), 1);
        tokio::time::sleep(std::time::Duration::from_mins(2)).await;
        assert_eq!(log_start(), 2);
    }

    fn record(time_ms: i64) -> Bytes {
        batch(Compression::None, time_ms, 1)
    }

    /// Where the partition starts after a pass of the job on this broker, which knows all that was
    /// written.
    async fn log_start_after(broker: &Broker, topic: Uuid) -> i64 {
        broker.replica.barrier().await.unwrap();
        trim_all(broker).await.unwrap();
        broker.replica.barrier().await.unwrap();
        broker.replica.read(|view| view.state.topics().get(&topic).unwrap().partitions()[0].log_start())
    }

    #[tokio::test]
    async fn a_clock_that_is_an_hour_off_the_others_trims_nothing() {
        for off in [60 * MINUTE_MS, -60 * MINUTE_MS] {
            let world = World::new();
            let elsewhere = World { clock: Arc::new(StoppedClock((NOW_MS + off).into())), ..world.clone() };
            let (right, wrong) = (world.broker(1, &FLAGS).await, elsewhere.broker(2, &FLAGS).await);
            let mut client = TestClient::connect(&right.broker);
            let topic = client.create_topic("t", 1, &[("retention.ms", "1800000")]).await;
            // Old by either clock.
            client.produce("t", [record(NOW_MS - 120 * MINUTE_MS)]).await;
            // Old by the clock that is ahead.
            client.produce("t", [record(NOW_MS)]).await;
            assert_eq!(log_start_after(&wrong.broker, topic).await, 0, "{off} ms");
            // It is right again, and hears from another.
            let later = NOW_MS + 10 * MINUTE_MS;
            world.clock.0.store(later, Ordering::Relaxed);
            elsewhere.clock.0.store(later, Ordering::Relaxed);
            client.produce("t", [record(later)]).await;
            assert_eq!(log_start_after(&wrong.broker, topic).await, 1, "{off} ms");
        }
    }
}
