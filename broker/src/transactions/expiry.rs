//! What time does to transactions: those that are open for too long are aborted, and transactional
//! ids that nobody uses are forgotten.
//!
//! Time is this broker's monotonic clock: a transaction is aborted only after it was seen open for
//! its whole time-out, and what is committed compares that it is still the same one.

use std::collections::BTreeMap;
use std::time::Duration;

use kafka_protocol::error::ResponseError;
use strandline_metadata::state::{TRANSACTIONS, TransactionalProducer};
use strandline_metadata::transactions;
use strandline_metadata::turns::Turns;
use tokio::time::Instant;
use tracing::info;

use super::{ProducerEpoch, make, of, read, time_out};
use crate::Broker;
use crate::limits::{EXPIRED_TRANSACTIONAL_IDS_PER_PASS, UNITS_PER_ELEMENT};

/// A transaction, or the time between two: producer id, epoch, number, and whether it is open.
type Seen = (i64, i16, u64, bool);

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct TransactionExpiry {
    since: BTreeMap<Seen, Instant>,
}

impl TransactionExpiry {
    pub(crate) async fn run_once(&mut self, broker: &Broker) -> Result<(), ResponseError> {
        let state = broker.replica.state();
        if state.feature_level() < TRANSACTIONS {
            return Ok(());
        }
        let (now, mut turns) = (Instant::now(), Turns::default());
        let mut present = BTreeMap::new();
        let (mut late, mut idle) = (Vec::new(), Vec::new());
        for (&producer_id, producer) in state.transactional() {
            turns.spend(UNITS_PER_ELEMENT).await;
            let seen = (producer_id, producer.epoch, producer.number, producer.open.is_some());
            let since = self.since.get(&seen).copied().unwrap_or(now);
            present.insert(seen, since);
            let age = now.saturating_duration_since(since);
            let timeout = Duration::from_millis(producer.timeout_ms.into());
            if producer.open.is_some() && age >= timeout {
                late.push((producer_id, producer.clone()));
            } else if producer.open.is_none()
                && age >= broker.config.transactional_id_expiration
                && idle.len() < EXPIRED_TRANSACTIONAL_IDS_PER_PASS
            {
                idle.push((producer_id, producer.clone()));
            }
        }
        self.since = present;
        for (producer_id, producer) in late {
            let ended = match time_out(broker, &producer, producer_id).await {
                // What is stored of it cannot be read, which is said: the others end all the same.
                Err(ResponseError::UnknownServerError) => false,
                ended => ended?,
            };
            if ended {
                let TransactionalProducer { transactional_id, epoch, timeout_ms, .. } = &producer;
                info!(%transactional_id, producer_id, epoch, timeout_ms, "a transaction has timed out and is aborted");
                broker.metrics.transactions().timed_out();
            }
        }
        for (producer_id, producer) in idle {
            let transactional_id = &*producer.transactional_id;
            let stored = match read(broker, transactional_id).await {
                Err(ResponseError::UnknownServerError) => None,
                stored => stored?,
            };
            let Some(stored) = stored else { continue };
            if of(&stored.value) == (ProducerEpoch { id: producer_id, epoch: producer.epoch }) {
                let change = transactions::expire(broker.replica.keys(), transactional_id, &stored);
                if make(broker, transactional_id, None, change).await?.is_some() {
                    info!(transactional_id, producer_id, "a transactional id that nobody uses is forgotten");
                }
            }
        }
        Ok(())
    }
}
