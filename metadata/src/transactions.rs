//! Typed changes of transactional ids: each is one transaction that moves the plain keys and tells
//! the state machine.
//!
//! Every change compares `txns/<transactional id>`, so they have one order, whoever makes them, and
//! the state machine never hears of one that was decided on what was over already.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::backend::{BackendError, Compare, KeyRange, Op, RangeRequest, ReadBackend};
use crate::commit::Change;
use crate::groups::{GroupReadError, OffsetsKey};
use crate::keys::{Key, Keyspace};
use crate::limits::OFFSETS_PER_KEY;
use crate::record::{
    Body, ExpiredTransactional, ProducerInitialized, TransactionBegun, TransactionEnded, TransactionTopic,
    TransactionalIdsExpired,
};
use crate::values::group::OffsetsValue;
use crate::values::transaction::{PendingValue, TransactionValue};
use crate::values::{VALUE_FORMAT, Value};

/// A transactional id as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTransaction {
    /// Its value.
    pub value: TransactionValue,
    /// Mod revision of its key.
    pub revision: i64,
}

/// What is stored of a transactional id, no older than this call; `None` if there is nothing.
pub async fn read(
    backend: &dyn ReadBackend,
    keys: &Keyspace,
    transactional_id: &str,
) -> Result<Option<StoredTransaction>, GroupReadError> {
    let own = KeyRange::Key(keys.encode(&Key::Transaction(transactional_id.to_owned())));
    let found = backend.range(RangeRequest { keys: own, revision: None, limit: 1, keys_only: false }).await?;
    let Some(kv) = found.kvs.first() else { return Ok(None) };
    Ok(Some(StoredTransaction { value: TransactionValue::decode(&kv.value)?, revision: kv.mod_revision }))
}

/// What a transactional id's producer was, if it had one.
fn before(stored: Option<&StoredTransaction>) -> (i64, u64) {
    stored.map_or((0, 0), |stored| (stored.revision, stored.value.producer_id.cast_unsigned() + 1))
}

fn timeout(value: &TransactionValue) -> u32 {
    u32::try_from(value.timeout_ms).unwrap_or(0)
}

/// Deletes what a transaction has for groups.
fn drop_pending(keys: &Keyspace, transactional_id: &str, stored: &TransactionValue) -> Vec<Op> {
    let delete = |group: &String| {
        let key = Key::Pending { group: group.clone(), transactional_id: transactional_id.to_owned() };
        Op::Delete(KeyRange::Key(keys.encode(&key)))
    };
    stored.groups.iter().map(delete).collect()
}

/// Gives a transactional id a producer, and aborts what the one before has open, if it is still as
/// it was read.
pub fn initialize(
    keys: &Keyspace,
    transactional_id: &str,
    stored: Option<&StoredTransaction>,
    next: &TransactionValue,
) -> Change {
    let (revision, replaces) = before(stored);
    let own = keys.encode(&Key::Transaction(transactional_id.to_owned()));
    let mut ops = stored.map_or_else(Vec::new, |stored| drop_pending(keys, transactional_id, &stored.value));
    ops.push(Op::put(own.clone(), next.encode()));
    Change {
        compares: vec![Compare::ModRevision(own, revision)],
        ops,
        body: Some(Body::ProducerInitialized(ProducerInitialized {
            transactional_id: transactional_id.to_owned(),
            producer_id: next.producer_id.cast_unsigned(),
            epoch: u32::from(next.epoch.cast_unsigned()),
            timeout_ms: timeout(next),
            replaces,
        })),
    }
}

/// Begins a transaction, or adds partitions to it (version 1).
pub fn begin(
    keys: &Keyspace,
    transactional_id: &str,
    stored: &StoredTransaction,
    next: &TransactionValue,
    partitions: &BTreeMap<Uuid, Vec<u32>>,
) -> Change {
    let own = keys.encode(&Key::Transaction(transactional_id.to_owned()));
    let topic = |(id, partitions): (&Uuid, &Vec<u32>)| TransactionTopic {
        topic_id: id.as_bytes().to_vec(),
        partitions: partitions.clone(),
    };
    Change {
        compares: vec![Compare::ModRevision(own.clone(), stored.revision)],
        ops: vec![Op::put(own, next.encode())],
        body: Some(Body::TransactionBegun(TransactionBegun {
            producer_id: next.producer_id.cast_unsigned(),
            epoch: u32::from(next.epoch.cast_unsigned()),
            topics: partitions.iter().map(topic).collect(),
        })),
    }
}

/// Offsets for one group that wait for a transaction to end, and the group's key as it was checked.
#[derive(Clone, Debug)]
pub struct PendingOffsets {
    /// The group.
    pub group: String,
    /// Mod revision of the group's key; 0 if there is none.
    pub group_revision: i64,
    /// All that is pending for it in the transaction.
    pub value: PendingValue,
}

/// Notes offsets of a group that are committed if the transaction is, which it begins if need be.
pub fn add_offsets(
    keys: &Keyspace,
    transactional_id: &str,
    stored: &StoredTransaction,
    next: &TransactionValue,
    pending: &PendingOffsets,
) -> Change {
    let mut change = begin(keys, transactional_id, stored, next, &BTreeMap::new());
    let (group, transactional_id) = (pending.group.clone(), transactional_id.to_owned());
    let own = keys.encode(&Key::Group(group.clone()));
    change.compares.push(Compare::ModRevision(own, pending.group_revision));
    let key = keys.encode(&Key::Pending { group, transactional_id });
    change.ops.push(Op::put(key, pending.value.encode()));
    change
}

/// What is pending for a group in a transaction.
pub async fn read_pending(
    backend: &dyn ReadBackend,
    keys: &Keyspace,
    group: &str,
    transactional_id: &str,
) -> Result<Option<PendingValue>, GroupReadError> {
    let key = Key::Pending { group: group.to_owned(), transactional_id: transactional_id.to_owned() };
    let own = KeyRange::Key(keys.encode(&key));
    let found = backend.range(RangeRequest { keys: own, revision: None, limit: 1, keys_only: false }).await?;
    let Some(kv) = found.kvs.first() else { return Ok(None) };
    Ok(Some(PendingValue::decode(&kv.value)?))
}

/// The partitions of a group for which any of its transactions, of so many at most, has offsets, by
/// topic id.
pub async fn pending_partitions(
    backend: &dyn ReadBackend,
    keys: &Keyspace,
    group: &str,
    most: usize,
) -> Result<BTreeMap<Uuid, Vec<u32>>, GroupReadError> {
    let all = RangeRequest { keys: keys.pending_of(group), revision: None, limit: most, keys_only: false };
    let mut partitions: BTreeMap<Uuid, Vec<u32>> = BTreeMap::new();
    for kv in backend.range(all).await?.kvs {
        for topic in PendingValue::decode(&kv.value)?.topics.values() {
            partitions.entry(topic.topic_id).or_default().extend(topic.partitions.keys());
        }
    }
    Ok(partitions)
}

/// Committed offsets as a transaction leaves them: what is put, if the key is still as it was read.
#[derive(Clone, Debug)]
pub struct MovedOffsets {
    group: String,
    key: OffsetsKey,
    revision: i64,
    value: OffsetsValue,
}

/// What the offsets of a group become when those that are pending are committed. Reads them.
pub async fn move_offsets(
    backend: &dyn ReadBackend,
    keys: &Keyspace,
    group: &str,
    pending: &PendingValue,
) -> Result<Vec<MovedOffsets>, GroupReadError> {
    let mut parts: BTreeMap<OffsetsKey, OffsetsValue> = BTreeMap::new();
    for (topic, pending) in &pending.topics {
        for (&partition, committed) in &pending.partitions {
            let key = (topic.clone(), partition / OFFSETS_PER_KEY);
            let part = parts.entry(key).or_insert_with(|| OffsetsValue {
                format: VALUE_FORMAT,
                writer: 0,
                write: 0,
                topic_id: pending.topic_id,
                partitions: BTreeMap::new(),
            });
            part.partitions.insert(partition, committed.clone());
        }
    }
    let mut moved = Vec::with_capacity(parts.len());
    for (key, pending) in parts {
        let (topic, part) = key.clone();
        let own = keys.encode(&Key::Offsets { group: group.to_owned(), topic, part });
        let own = KeyRange::Key(own);
        let read = RangeRequest { keys: own, revision: None, limit: 1, keys_only: false };
        let found = backend.range(read).await?;
        let (revision, value) = match found.kvs.first() {
            None => (0, pending),
            Some(kv) => {
                let stored = OffsetsValue::decode(&kv.value)?;
                (kv.mod_revision, merged(stored, pending))
            }
        };
        moved.push(MovedOffsets { group: group.to_owned(), key, revision, value });
    }
    Ok(moved)
}

/// Puts pending offsets over stored ones, but for those that were committed later.
fn merged(stored: OffsetsValue, pending: OffsetsValue) -> OffsetsValue {
    if stored.topic_id != pending.topic_id {
        return pending;
    }
    let mut value = stored;
    for (partition, committed) in pending.partitions {
        if value.partitions.get(&partition).is_none_or(|known| known.after <= committed.after) {
            value.partitions.insert(partition, committed);
        }
    }
    value
}

/// Ends a transaction: all of it at one revision.
pub fn end(
    keys: &Keyspace,
    transactional_id: &str,
    stored: &StoredTransaction,
    next: &TransactionValue,
    is_committed: bool,
    moved: Vec<MovedOffsets>,
) -> Change {
    let own = keys.encode(&Key::Transaction(transactional_id.to_owned()));
    let mut compares = vec![Compare::ModRevision(own.clone(), stored.revision)];
    let mut ops = drop_pending(keys, transactional_id, &stored.value);
    ops.push(Op::put(own, next.encode()));
    for MovedOffsets { group, key: (topic, part), revision, value } in moved {
        let key = keys.encode(&Key::Offsets { group, topic, part });
        compares.push(Compare::ModRevision(key.clone(), revision));
        ops.push(Op::put(key, value.encode()));
    }
    let epoch = |epoch: i16| u32::from(epoch.cast_unsigned());
    Change {
        compares,
        ops,
        body: Some(Body::TransactionEnded(TransactionEnded {
            producer_id: stored.value.producer_id.cast_unsigned(),
            epoch: epoch(stored.value.epoch),
            committed: is_committed,
            next_producer_id: next.producer_id.cast_unsigned(),
            next_epoch: epoch(next.epoch),
        })),
    }
}

/// Forgets a transactional id, if it is still as it was read.
pub fn expire(keys: &Keyspace, transactional_id: &str, stored: &StoredTransaction) -> Change {
    let own = keys.encode(&Key::Transaction(transactional_id.to_owned()));
    let mut ops = drop_pending(keys, transactional_id, &stored.value);
    ops.push(Op::Delete(KeyRange::Key(own.clone())));
    let entry = ExpiredTransactional {
        producer_id: stored.value.producer_id.cast_unsigned(),
        epoch: u32::from(stored.value.epoch.cast_unsigned()),
    };
    Change {
        compares: vec![Compare::ModRevision(own, stored.revision)],
        ops,
        body: Some(Body::TransactionalIdsExpired(TransactionalIdsExpired { producers: vec![entry] })),
    }
}

/// Whether a change is no larger than the store takes.
pub fn fits(change: &Change) -> Result<(), BackendError> {
    let txn = crate::backend::Txn {
        compares: change.compares.clone(),
        then: change.ops.clone(),
        ..crate::backend::Txn::default()
    };
    let bytes = crate::backend::txn_rules::txn_bytes(&txn);
    if bytes > crate::limits::BACKEND_REQUEST_BYTES - crate::limits::RECORD_BYTES {
        return Err(BackendError::TooLarge(format!("{bytes} bytes of one transaction")));
    }
    Ok(())
}
