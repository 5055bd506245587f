//! Producer ids, taken from etcd a block at a time.

use strandline_metadata::backend::{KeyRange, RangeRequest};
use strandline_metadata::commit::CommitError;
use strandline_metadata::keys::Key;
use strandline_metadata::topics::take_producer_ids;
use strandline_metadata::values::{ProducerIdsValue, Value};
use tokio::sync::Mutex;
use tracing::{debug, error};

use crate::Broker;
use crate::limits::{PRODUCER_ID_ATTEMPTS, PRODUCER_ID_BLOCK};
use crate::topics::commit;

/// Why there is no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextIdError {
    /// Try again.
    Unavailable,
    /// All 2⁶³ are used up.
    Exhausted,
}

/// The rest of this broker's block.
#[derive(Debug, Default)]
pub(crate) struct ProducerIds {
    block: Mutex<std::ops::Range<i64>>,
}

impl ProducerIds {
    /// An id that nobody else gets.
    pub(crate) async fn next(&self, broker: &Broker) -> Result<i64, NextIdError> {
        let mut block = self.block.lock().await;
        if block.is_empty() {
            *block = take_block(broker).await?;
        }
        let id = block.start;
        block.start += 1;
        Ok(id)
    }
}

async fn take_block(broker: &Broker) -> Result<std::ops::Range<i64>, NextIdError> {
    let keys = broker.replica.keys();
    for _ in 0..PRODUCER_ID_ATTEMPTS {
        let read = RangeRequest {
            keys: KeyRange::Key(keys.encode(&Key::ProducerIds)),
            revision: None,
            limit: 1,
            keys_only: false,
        };
        let stored = broker.replica.backend().range(read).await.map_err(|error| {
            debug!(%error, "producer ids cannot be read");
            NextIdError::Unavailable
        })?;
        let (first, mod_revision) = match stored.kvs.first() {
            None => (0, 0),
            Some(kv) => match ProducerIdsValue::decode(&kv.value) {
                Ok(value) => (value.next, kv.mod_revision),
                Err(error) => {
                    // The log has every block that was handed out, once it is as new as the value.
                    error!(%error, "the next producer id cannot be read; the log says what is free");
                    if broker.replica.barrier().await.is_err() {
                        return Err(NextIdError::Unavailable);
                    }
                    (broker.replica.read(|view| view.state.producer_ids_end()), kv.mod_revision)
                }
            },
        };
        let end = first.checked_add(PRODUCER_ID_BLOCK).ok_or(NextIdError::Exhausted)?;
        match commit(broker, take_producer_ids(keys, first, mod_revision, PRODUCER_ID_BLOCK)).await {
            Ok(_) => return Ok(first..end),
            // Another broker took this block; the next one may be free.
            Err(CommitError::Conflict) => {}
            Err(error) => {
                debug!(%error, "a block of producer ids cannot be taken");
                return Err(NextIdError::Unavailable);
            }
        }
    }
    Err(NextIdError::Unavailable)
}
