//! Forgetting idempotent producers that have written nothing for the expiry time, or for a quarter
//! of an hour while the cluster remembers nearly as many as it may (`max_producers`).
//!
//! Time is this broker's monotonic clock: a producer is proposed for expiry only after it was seen
//! unchanged for that long, and the record names what it expects to find, so a batch that came in
//! between saves it.

use std::collections::BTreeMap;
use std::time::Duration;

use strandline_metadata::commit::{Change, CommitError};
use strandline_metadata::record::{Body, ExpiredProducer, ProducersExpired};
use strandline_metadata::state::FORGOTTEN_PRODUCERS;
use strandline_metadata::turns::Turns;
use tokio::time::Instant;
use tracing::info;
use uuid::Uuid;

use crate::Broker;
use crate::limits::{
    EXPIRED_PRODUCERS_PER_RECORD, PRESSED_PRODUCER_EXPIRATION, UNITS_PER_ELEMENT, WATCHED_PRODUCERS,
};
use crate::topics::commit;

/// A producer in a partition, and the base offset of its newest batch.
type Seen = (Uuid, u32, i64);

/// What was seen so far.
#[derive(Debug, Default)]
pub(super) struct ProducerExpiry {
    unchanged_since: BTreeMap<Seen, (i64, Instant)>,
    /// The end of the blocks that had been handed out, and when that was noted.
    ids_noted: Option<(i64, Instant)>,
    looked_at: Option<Instant>,
}

impl ProducerExpiry {
    pub(super) async fn run_once(&mut self, broker: &Broker) -> Result<(), CommitError> {
        let (now, expiration) = (Instant::now(), expiration(broker));
        // Looking costs time in proportion to the state: a hundredth of the expiry is precise
        // enough.
        if self.looked_at.is_some_and(|at| now.saturating_duration_since(at) < expiration / 100) {
            return Ok(());
        }
        self.looked_at = Some(now);
        let (ids_end, level) =
            broker.replica.read(|view| (view.state.producer_ids_end(), view.state.feature_level()));
        let mut ids_below = 0;
        match self.ids_noted {
            // Partitions note themselves whom they forget.
            _ if level >= FORGOTTEN_PRODUCERS => {}
            Some((end, at)) if now.saturating_duration_since(at) >= expiration => {
                ids_below = end;
                self.ids_noted = Some((ids_end, now));
            }
            None => self.ids_noted = Some((ids_end, now)),
            Some(_) => {}
        }
        self.note(broker, now).await;
        let expired: Vec<ExpiredProducer> = self
            .unchanged_since
            .iter()
            .filter(|(_, (_, since))| now.saturating_duration_since(*since) >= expiration)
            .map(|(&(topic_id, partition, producer_id), &(last, _))| ExpiredProducer {
                topic_id: topic_id.as_bytes().to_vec(),
                partition,
                producer_id: producer_id.cast_unsigned(),
                last_base_offset: last.cast_unsigned(),
            })
            .collect();
        let mut records: Vec<Vec<ExpiredProducer>> =
            expired.chunks(EXPIRED_PRODUCERS_PER_RECORD).map(<[_]>::to_vec).collect();
        if ids_below > 0 && records.is_empty() {
            records.push(Vec::new());
        }
        for producers in records {
            let count = producers.len();
            let body = ProducersExpired { producers, ids_below: ids_below.cast_unsigned() };
            commit(broker, Change { body: Some(Body::ProducersExpired(body)), ..Change::default() }).await?;
            info!(producers = count, "idle producers are forgotten");
        }
        Ok(())
    }

    async fn note(&mut self, broker: &Broker, now: Instant) {
        let (state, mut turns) = (broker.replica.state(), Turns::default());
        let mut present = BTreeMap::new();
        for (&topic_id, topic) in state.topics() {
            for (number, partition) in (0..).zip(topic.partitions()) {
                turns.spend(1).await;
                for (&producer_id, producer) in partition.producers() {
                    turns.spend(UNITS_PER_ELEMENT).await;
                    let last = producer.batches.last().map_or(0, |b| b.base_offset);
                    let seen = (topic_id, number, producer_id);
                    if present.len() < WATCHED_PRODUCERS {
                        let before = self.unchanged_since.get(&seen).filter(|(before, _)| *before == last);
                        present.insert(seen, (last, before.map_or(now, |(_, since)| *since)));
                    }
                }
            }
        }
        self.unchanged_since = present;
    }
}

/// After how much silence producers are forgotten: sooner while the state has room for few more, so
/// that those which nobody uses do not keep others from writing.
fn expiration(broker: &Broker) -> Duration {
    let (configured, most) = (broker.config.producer_id_expiration, broker.config.max_producers);
    let is_pressed = broker.replica.read(|view| view.state.producer_count()) >= most - most / 10;
    if is_pressed { configured.min(PRESSED_PRODUCER_EXPIRATION) } else { configured }
}
