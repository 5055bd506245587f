//! What is shown of open transactions in etcd, for whoever asks what keeps readers of what is
//! committed waiting: the observer reads no log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use strandline_metadata::backend::Op;
use strandline_metadata::keys::Key;
use strandline_metadata::limits::{BACKEND_TIMEOUT, WATERMARK_INTERVAL};
use strandline_metadata::state::{OpenTransaction, State, TransactionalProducer};
use strandline_metadata::turns::Turns;
use strandline_metadata::values::transaction::{
    OpenPartitionValue, OpenTransactionValue, OpenTransactionsValue,
};
use strandline_metadata::values::{VALUE_FORMAT, Value};
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::Broker;
use crate::limits::{SHOWN_AFTER, SHOWN_PARTITIONS, SHOWN_TRANSACTIONS, UNITS_PER_ELEMENT};

/// Writes what changed, as often as watermarks are written, for as long as `leads` says so.
pub(crate) async fn run(broker: Arc<Broker>, leads: Arc<AtomicBool>) {
    let mut written = None;
    loop {
        sleep(WATERMARK_INTERVAL).await;
        let session = broker.sessions.current().filter(|_| leads.load(Ordering::Relaxed));
        let Some(session) = session else {
            // What others write meanwhile is not known.
            written = None;
            continue;
        };
        let open = shown(&broker.replica.state(), broker.clock.now_ms()).await;
        // A cluster that has never had any has no key. Whoever led before may have left what has
        // ended since.
        let has_any = broker.replica.read(|view| !view.state.transactional().is_empty());
        if written.as_ref() == Some(&open) || (written.is_none() && !has_any) {
            continue;
        }
        let key = broker.replica.keys().encode(&Key::OpenTransactions);
        let writing = broker.committer.write(session, Vec::new(), vec![Op::put(key, open.encode())]);
        match timeout(BACKEND_TIMEOUT, writing).await {
            Ok(Ok(_)) => written = Some(open),
            // It may have been written all the same.
            Ok(Err(error)) => {
                debug!(%error, "open transactions could not be written");
                written = None;
            }
            Err(_) => written = None,
        }
    }
}

/// How many there are that have been open for a while, and those that have been the longest.
async fn shown(state: &State, now_ms: i64) -> OpenTransactionsValue {
    let since = now_ms.saturating_sub(i64::try_from(SHOWN_AFTER.as_millis()).unwrap_or(i64::MAX));
    let mut turns = Turns::default();
    let mut open: Vec<(i64, i64)> = Vec::new();
    for (&id, producer) in state.transactional() {
        turns.spend(UNITS_PER_ELEMENT).await;
        let old = producer.open.as_ref().filter(|open| open.since_ms <= since);
        open.extend(old.map(|open| (open.since_ms, id)));
    }
    let count = open.len() as u64;
    open.sort_unstable();
    let oldest = open.iter().take(SHOWN_TRANSACTIONS).filter_map(|(_, id)| {
        let producer = state.transactional().get(id)?;
        Some(one(*id, producer, producer.open.as_ref()?))
    });
    OpenTransactionsValue { format: VALUE_FORMAT, open: count, oldest: oldest.collect() }
}

fn one(producer_id: i64, producer: &TransactionalProducer, open: &OpenTransaction) -> OpenTransactionValue {
    let written = open.partitions.iter().filter_map(|(&(topic_id, partition), first)| {
        first.map(|first_offset| OpenPartitionValue { topic_id, partition, first_offset })
    });
    OpenTransactionValue {
        transactional_id: producer.transactional_id.to_string(),
        producer_id,
        epoch: producer.epoch,
        since_ms: open.since_ms,
        timeout_ms: producer.timeout_ms,
        partitions: open.partitions.len() as u64,
        first: written.take(SHOWN_PARTITIONS).collect(),
    }
}
