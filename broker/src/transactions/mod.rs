//! Transactional ids: who their producer is, what is open, and how it ends (KIP-98, KIP-360,
//! KIP-890).
//!
//! Any broker does this for any transactional id. It reads `txns/<id>` from etcd, decides
//! ([`decide`]), and commits what it has decided if the key is still as it was read; else it reads
//! and decides anew. So there is no coordinator to fail over, and FindCoordinator only spreads the
//! load. What is open is in the state machine, since batches add partitions; who has to be sure of
//! it passes the barrier.
//!
//! ```text
//! InitProducerId, AddPartitionsToTxn, TxnOffsetCommit, EndTxn, time-out
//!   └▶ read txns/<id> ─▶ decide ─▶ one etcd transaction: txns/<id>, pending/…, offsets/…, record
//! ```

mod decide;
pub(crate) mod expiry;
pub(crate) mod shown;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kafka_protocol::error::ResponseError;
use strandline_metadata::commit::{Change, CommitError};
use strandline_metadata::groups::GroupReadError;
use strandline_metadata::state::{TRANSACTIONS, TransactionalProducer};
use strandline_metadata::transactions::{self, PendingOffsets, StoredTransaction};
use strandline_metadata::values::VALUE_FORMAT;
use strandline_metadata::values::Value as _;
use strandline_metadata::values::transaction::{PendingTopic, PendingValue, TransactionValue};
use tracing::{debug, warn};
use uuid::Uuid;

pub(crate) use self::decide::ProducerEpoch;
use self::decide::{Decision, FRESH_ID};
use crate::Broker;
use crate::group::offsets::Commit;
use crate::limits::{
    PENDING_OFFSETS_BYTES, PENDING_OFFSETS_KEYS, PENDING_TRANSACTIONS, REMEMBERED_TRANSACTIONS,
    TRANSACTION_ATTEMPTS, TRANSACTION_GROUPS, TRANSACTION_PARTITIONS, TRANSACTIONAL_ID_BYTES,
};

/// A transactional id as it is stored, and whether a transaction of it is open.
struct Known {
    stored: StoredTransaction,
    is_open: bool,
    /// Whether it was remembered instead of read: a change that is decided on it fails if it is
    /// old, but it is no ground to refuse anything.
    is_remembered: bool,
}

/// What this broker has stored of transactional ids itself, so that it need not read it again.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    values: Mutex<BTreeMap<String, StoredTransaction>>,
}

impl Remembered {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, StoredTransaction>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was stored, unless it is known that somebody has changed it since.
    fn get(&self, broker: &Broker, transactional_id: &str) -> Option<StoredTransaction> {
        let stored = self.lock().get(transactional_id).cloned()?;
        let changed = broker.replica.read(|view| view.names.transaction_revision(transactional_id));
        changed.is_none_or(|revision| revision <= stored.revision).then_some(stored)
    }

    fn set(&self, transactional_id: &str, stored: Option<StoredTransaction>) {
        let mut values = self.lock();
        let Some(stored) = stored else {
            values.remove(transactional_id);
            return;
        };
        // Which of them go is of no importance: they are read again.
        if values.len() >= REMEMBERED_TRANSACTIONS {
            values.clear();
        }
        values.insert(transactional_id.to_owned(), stored);
    }
}

/// Refuses all transactions below their feature level, for good, but for a cluster that is founded
/// at it this moment.
pub(crate) fn check_level(broker: &Broker) -> Result<(), ResponseError> {
    if broker.replica.read(|view| view.state.feature_level()) >= TRANSACTIONS {
        Ok(())
    } else if broker.cluster.feature_level >= TRANSACTIONS {
        Err(ResponseError::CoordinatorLoadInProgress)
    } else {
        // No client tries again after this one.
        Err(ResponseError::TransactionalIdAuthorizationFailed)
    }
}

/// Refuses an id that no producer may have, and all of them below the feature level of
/// transactions.
fn check_id(broker: &Broker, transactional_id: &str) -> Result<(), ResponseError> {
    check_level(broker)?;
    if transactional_id.is_empty() || transactional_id.len() > TRANSACTIONAL_ID_BYTES {
        return Err(ResponseError::InvalidRequest);
    }
    Ok(())
}

/// What is stored of a transactional id, no older than this call.
async fn read(broker: &Broker, transactional_id: &str) -> Result<Option<StoredTransaction>, ResponseError> {
    let (backend, keys) = (broker.replica.backend().as_ref(), broker.replica.keys());
    transactions::read(backend, keys, transactional_id).await.map_err(|error| unreadable(&error))
}

fn unreadable(error: &GroupReadError) -> ResponseError {
    match error {
        GroupReadError::Backend(error) => {
            debug!(%error, "a transactional id cannot be read now");
            ResponseError::CoordinatorNotAvailable
        }
        GroupReadError::Value(error) => {
            warn!(%error, "a transactional id cannot be read");
            ResponseError::UnknownServerError
        }
    }
}

/// The same with what is open; what is remembered will do for the first attempt.
async fn known(broker: &Broker, transactional_id: &str, attempt: usize) -> Result<Known, ResponseError> {
    let remembered = broker.transactions.get(broker, transactional_id).filter(|_| attempt == 0);
    if let Some(stored) = remembered
        && let Some(is_open) = producer(broker, &stored.value, |producer| producer.open.is_some())
    {
        return Ok(Known { stored, is_open, is_remembered: true });
    }
    let stored = read(broker, transactional_id).await?.ok_or(ResponseError::InvalidProducerIdMapping)?;
    let is_open = is_open(broker, &stored.value).await?;
    Ok(Known { stored, is_open, is_remembered: false })
}

/// Whether a transaction of this producer and epoch is open. A batch may have begun it on a broker
/// that is ahead of this one.
async fn is_open(broker: &Broker, value: &TransactionValue) -> Result<bool, ResponseError> {
    let open = || producer(broker, value, |producer| producer.open.is_some()).unwrap_or(false);
    if open() {
        return Ok(true);
    }
    barrier(broker).await?;
    Ok(open())
}

/// Looks at a producer in the state machine, if it has the same id and epoch there.
fn producer<T>(
    broker: &Broker,
    value: &TransactionValue,
    look: impl FnOnce(&TransactionalProducer) -> T,
) -> Option<T> {
    broker.replica.read(|view| {
        let producer = view.state.transactional().get(&value.producer_id);
        producer.filter(|producer| producer.epoch == value.epoch).map(look)
    })
}

async fn barrier(broker: &Broker) -> Result<(), ResponseError> {
    broker.replica.barrier().await.map_err(|_| ResponseError::CoordinatorNotAvailable)
}

/// What is said of a change that was not made, or may not have been. All of it is tried again by
/// clients.
fn failed(error: &CommitError) -> ResponseError {
    debug!(%error, "a change of a transactional id failed");
    match error {
        CommitError::NotRegistered | CommitError::Closed => ResponseError::NotCoordinator,
        CommitError::Conflict => ResponseError::ConcurrentTransactions,
        CommitError::Refused(_) | CommitError::OutcomeUnknown => ResponseError::CoordinatorNotAvailable,
        CommitError::OutcomeLost => ResponseError::CoordinatorLoadInProgress,
    }
}

/// Commits what a transactional id becomes. `None` if what it was decided on is over: decide anew.
async fn make(
    broker: &Broker,
    transactional_id: &str,
    next: Option<&TransactionValue>,
    change: Change,
) -> Result<Option<()>, ResponseError> {
    broker.transactions.set(transactional_id, None);
    match broker.committer.change_at(broker.clock.now_ms(), change).await {
        Ok((_, revision)) => {
            let stored = next.map(|value| StoredTransaction { value: value.clone(), revision });
            broker.transactions.set(transactional_id, stored);
            Ok(Some(()))
        }
        Err(CommitError::Conflict) => Ok(None),
        Err(error) => Err(failed(&error)),
    }
}

/// Puts a producer id that nobody has had where one is wanted.
async fn with_id(broker: &Broker, next: TransactionValue) -> Result<TransactionValue, ResponseError> {
    if next.producer_id != FRESH_ID {
        return Ok(next);
    }
    let fresh = broker.producer_ids.next(broker).await;
    let producer_id = fresh.map_err(|_| ResponseError::CoordinatorNotAvailable)?;
    Ok(TransactionValue { producer_id, ..next })
}

fn of(value: &TransactionValue) -> ProducerEpoch {
    ProducerEpoch { id: value.producer_id, epoch: value.epoch }
}

/// Gives a transactional id a producer; what the one before has open is aborted at the same moment.
pub(crate) async fn initialize(
    broker: &Broker,
    transactional_id: &str,
    timeout_ms: i32,
    expected: Option<ProducerEpoch>,
) -> Result<ProducerEpoch, ResponseError> {
    check_id(broker, transactional_id)?;
    if timeout_ms < 1 || timeout_ms > broker.config.transaction_max_timeout_ms {
        return Err(ResponseError::InvalidTransactionTimeout);
    }
    for _ in 0..TRANSACTION_ATTEMPTS {
        let stored = read(broker, transactional_id).await?;
        let count = broker.replica.read(|view| view.state.transactional().len());
        if stored.is_none() && count >= broker.config.max_transactional_ids {
            return Err(ResponseError::PolicyViolation);
        }
        let value = stored.as_ref().map(|stored| &stored.value);
        let next = match decide::initialize(value, timeout_ms, expected, broker.clock.now_ms())? {
            Decision::Done(producer) => return Ok(producer),
            Decision::Become(next) => with_id(broker, *next).await?,
        };
        let keys = broker.replica.keys();
        let change = transactions::initialize(keys, transactional_id, stored.as_ref(), &next);
        if make(broker, transactional_id, Some(&next), change).await?.is_some() {
            return Ok(of(&next));
        }
    }
    Err(ResponseError::ConcurrentTransactions)
}

/// Adds partitions to a transaction, which it begins if need be (version 1).
pub(crate) async fn add_partitions(
    broker: &Broker,
    transactional_id: &str,
    producer_epoch: ProducerEpoch,
    partitions: &BTreeMap<Uuid, Vec<u32>>,
) -> Result<(), ResponseError> {
    check_id(broker, transactional_id)?;
    for attempt in 0..TRANSACTION_ATTEMPTS {
        let Known { stored, is_open, is_remembered } = known(broker, transactional_id, attempt).await?;
        match decide::check(&stored.value, producer_epoch) {
            Err(_) if is_remembered => continue,
            checked => checked?,
        }
        let (missing, there) = producer(broker, &stored.value, |producer| {
            let has = |place: &(Uuid, u32)| {
                producer.open.as_ref().is_some_and(|open| open.partitions.contains_key(place))
            };
            let named = partitions.iter().flat_map(|(id, numbers)| numbers.iter().map(|p| (*id, *p)));
            let missing = named.filter(|place| !has(place)).count();
            (missing, producer.open.as_ref().map_or(0, |open| open.partitions.len()))
        })
        .unwrap_or((usize::MAX, 0));
        if is_open && missing == 0 {
            return Ok(());
        }
        if missing.saturating_add(there) > TRANSACTION_PARTITIONS && missing != usize::MAX {
            return Err(ResponseError::PolicyViolation);
        }
        let next = decide::ongoing(&stored.value, broker.clock.now_ms());
        let keys = broker.replica.keys();
        let change = transactions::begin(keys, transactional_id, &stored, &next, partitions);
        if make(broker, transactional_id, Some(&next), change).await?.is_some() {
            return Ok(());
        }
    }
    Err(ResponseError::ConcurrentTransactions)
}

/// Which of these partitions the open transaction has (version 1, asked by brokers).
pub(crate) async fn has_partitions(
    broker: &Broker,
    transactional_id: &str,
    producer_epoch: ProducerEpoch,
) -> Result<BTreeSet<(Uuid, u32)>, ResponseError> {
    check_id(broker, transactional_id)?;
    let Known { stored, .. } = known(broker, transactional_id, 1).await?;
    decide::check(&stored.value, producer_epoch)?;
    let has = producer(broker, &stored.value, |producer| {
        producer.open.as_ref().map(|open| open.partitions.keys().copied().collect())
    });
    Ok(has.flatten().unwrap_or_default())
}

/// Announces that a transaction is to have offsets of a group (version 1).
pub(crate) async fn add_group(
    broker: &Broker,
    transactional_id: &str,
    producer: ProducerEpoch,
    group: &str,
) -> Result<(), ResponseError> {
    check_id(broker, transactional_id)?;
    for attempt in 0..TRANSACTION_ATTEMPTS {
        let Known { stored, is_open, is_remembered } = known(broker, transactional_id, attempt).await?;
        match decide::check(&stored.value, producer) {
            Err(_) if is_remembered => continue,
            checked => checked?,
        }
        if is_open && stored.value.groups.contains(group) {
            return Ok(());
        }
        let next = with_group(&stored.value, group, broker.clock.now_ms())?;
        let keys = broker.replica.keys();
        let change = transactions::begin(keys, transactional_id, &stored, &next, &BTreeMap::new());
        if make(broker, transactional_id, Some(&next), change).await?.is_some() {
            return Ok(());
        }
    }
    Err(ResponseError::ConcurrentTransactions)
}

fn with_group(value: &TransactionValue, group: &str, now_ms: i64) -> Result<TransactionValue, ResponseError> {
    let mut next = decide::ongoing(value, now_ms);
    next.groups.insert(group.to_owned());
    if next.groups.len() > TRANSACTION_GROUPS {
        return Err(ResponseError::PolicyViolation);
    }
    Ok(next)
}

/// Why offsets are not noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddOffsetsError {
    /// The group is not as it was when its member was found to be one.
    GroupChanged,
    Refused(ResponseError),
}

impl From<ResponseError> for AddOffsetsError {
    fn from(code: ResponseError) -> Self {
        Self::Refused(code)
    }
}

/// Notes offsets of a group that are committed if the transaction is. `group_revision` is that of
/// the group's key when the member was found to be one. Below version 2 the group was announced.
pub(crate) async fn add_offsets(
    broker: &Broker,
    (transactional_id, producer): (&str, ProducerEpoch),
    (group, group_revision): (&str, i64),
    commits: &[Commit],
    is_version_2: bool,
) -> Result<(), AddOffsetsError> {
    check_id(broker, transactional_id)?;
    for attempt in 0..TRANSACTION_ATTEMPTS {
        let Known { stored, is_remembered, .. } = known(broker, transactional_id, attempt).await?;
        match decide::check(&stored.value, producer) {
            Err(_) if is_remembered => continue,
            // As Kafka's group coordinators say it.
            Err(ResponseError::ProducerFenced) => return Err(ResponseError::InvalidProducerEpoch.into()),
            checked => checked?,
        }
        let is_announced = stored.value.groups.contains(group);
        if !is_version_2 && !is_announced {
            if is_remembered {
                continue;
            }
            return Err(ResponseError::InvalidTxnState.into());
        }
        let (backend, keys) = (broker.replica.backend().as_ref(), broker.replica.keys());
        let pending = if is_announced {
            transactions::read_pending(backend, keys, group, transactional_id).await
        } else {
            Ok(None)
        };
        let pending = pending.map_err(|error| unreadable(&error))?;
        let mut value = pending.unwrap_or(PendingValue { format: VALUE_FORMAT, topics: BTreeMap::new() });
        for commit in commits {
            let fresh = || PendingTopic { topic_id: commit.topic_id, partitions: BTreeMap::new() };
            let topic = value.topics.entry(commit.topic.to_string()).or_insert_with(fresh);
            if topic.topic_id != commit.topic_id {
                *topic = fresh();
            }
            topic.partitions.insert(commit.partition, commit.committed.clone());
        }
        let keys_needed: usize = value.topics.values().map(offsets_keys).sum();
        if value.encode().len() > PENDING_OFFSETS_BYTES || keys_needed > PENDING_OFFSETS_KEYS {
            return Err(ResponseError::InvalidCommitOffsetSize.into());
        }
        let next = with_group(&stored.value, group, broker.clock.now_ms())?;
        let pending = PendingOffsets { group: group.to_owned(), group_revision, value };
        let change = transactions::add_offsets(keys, transactional_id, &stored, &next, &pending);
        if make(broker, transactional_id, Some(&next), change).await?.is_some() {
            return Ok(());
        }
        if broker.replica.read(|view| view.names.group_revision(group)) != group_revision {
            return Err(AddOffsetsError::GroupChanged);
        }
    }
    Err(ResponseError::ConcurrentTransactions.into())
}

/// How many keys the offsets of a topic are in.
fn offsets_keys(topic: &PendingTopic) -> usize {
    let part = |partition: &u32| partition / strandline_metadata::limits::OFFSETS_PER_KEY;
    topic.partitions.keys().map(part).collect::<BTreeSet<u32>>().len()
}

/// Ends a transaction, with all that is pending in it, at one revision. Gives the producer's id and
/// epoch for the next one.
pub(crate) async fn end(
    broker: &Broker,
    transactional_id: &str,
    producer: ProducerEpoch,
    is_commit: bool,
    bumps_epoch: bool,
) -> Result<ProducerEpoch, ResponseError> {
    check_id(broker, transactional_id)?;
    // With version 1 the next transaction has the same epoch: who is late does not end that.
    let mut number = None;
    for attempt in 0..TRANSACTION_ATTEMPTS {
        let Known { stored, is_open, is_remembered } = known(broker, transactional_id, attempt).await?;
        let now_ms = broker.clock.now_ms();
        let decision = decide::end(&stored.value, is_open, producer, is_commit, bumps_epoch, now_ms);
        if is_remembered && !matches!(decision, Ok(Decision::Become(_))) {
            continue;
        }
        let next = match decision? {
            Decision::Done(producer) => return Ok(producer),
            Decision::Become(next) => with_id(broker, *next).await?,
        };
        let current = self::producer(broker, &stored.value, |producer| producer.number);
        if number.is_some() && number != Some(current) {
            return Err(ResponseError::ConcurrentTransactions);
        }
        number = Some(current);
        if end_as(broker, transactional_id, &stored, &next, is_commit).await?.is_some() {
            broker.metrics.transactions().ended(is_commit);
            return Ok(of(&next));
        }
    }
    Err(ResponseError::ConcurrentTransactions)
}

/// Aborts a transaction that has been open for too long, if it is still this one.
async fn time_out(
    broker: &Broker,
    producer: &TransactionalProducer,
    producer_id: i64,
) -> Result<bool, ResponseError> {
    let transactional_id = &*producer.transactional_id;
    let Some(stored) = read(broker, transactional_id).await? else { return Ok(false) };
    if of(&stored.value) != (ProducerEpoch { id: producer_id, epoch: producer.epoch }) {
        return Ok(false);
    }
    barrier(broker).await?;
    let is_same =
        self::producer(broker, &stored.value, |now| now.open.is_some() && now.number == producer.number);
    if is_same != Some(true) {
        return Ok(false);
    }
    let next = with_id(broker, decide::time_out(&stored.value, broker.clock.now_ms())).await?;
    Ok(end_as(broker, transactional_id, &stored, &next, false).await?.is_some())
}

/// Commits the end of a transaction. `None` if what it was decided on is over.
async fn end_as(
    broker: &Broker,
    transactional_id: &str,
    stored: &StoredTransaction,
    next: &TransactionValue,
    is_commit: bool,
) -> Result<Option<()>, ResponseError> {
    let (backend, keys) = (broker.replica.backend().as_ref(), broker.replica.keys());
    let mut moved = Vec::new();
    for group in stored.value.groups.iter().filter(|_| is_commit) {
        let pending = transactions::read_pending(backend, keys, group, transactional_id).await;
        let Some(pending) = pending.map_err(|error| unreadable(&error))? else { continue };
        let offsets = transactions::move_offsets(backend, keys, group, &pending).await;
        moved.append(&mut offsets.map_err(|error| unreadable(&error))?);
    }
    let change = transactions::end(keys, transactional_id, stored, next, is_commit, moved);
    make(broker, transactional_id, Some(next), change).await
}

/// What a transactional id is, for people.
#[derive(Clone, Debug)]
pub(crate) struct Described {
    pub(crate) producer: ProducerEpoch,
    pub(crate) state: &'static str,
    pub(crate) timeout_ms: i32,
    /// When the open transaction began, ms since 1970.
    pub(crate) since_ms: Option<i64>,
    /// Partitions of the open transaction, by the names of their topics.
    pub(crate) partitions: BTreeSet<(String, u32)>,
}

/// Kafka's name of where a producer stands.
pub(crate) fn state_of(producer: &TransactionalProducer) -> &'static str {
    match (&producer.open, producer.outcome) {
        (Some(_), _) => "Ongoing",
        (None, None) => "Empty",
        (None, Some(true)) => "CompleteCommit",
        (None, Some(false)) => "CompleteAbort",
    }
}

/// Describes a transactional id; INVALID_PRODUCER_ID_MAPPING if nobody has it.
pub(crate) async fn describe(broker: &Broker, transactional_id: &str) -> Result<Described, ResponseError> {
    check_id(broker, transactional_id)?;
    let stored = read(broker, transactional_id).await?.ok_or(ResponseError::InvalidProducerIdMapping)?;
    barrier(broker).await?;
    let view = broker.replica.view();
    let producer = view.state.transactional().get(&stored.value.producer_id);
    let producer = producer.ok_or(ResponseError::CoordinatorLoadInProgress)?;
    let name_of = |(id, number): (Uuid, u32)| Some((view.names.topic_by_id(id)?.name.clone(), number));
    let open = producer.open.as_ref();
    Ok(Described {
        producer: ProducerEpoch { id: stored.value.producer_id, epoch: producer.epoch },
        state: state_of(producer),
        timeout_ms: i32::try_from(producer.timeout_ms).unwrap_or(i32::MAX),
        since_ms: open.map(|open| open.since_ms),
        partitions: open.into_iter().flat_map(|o| o.partitions.keys()).filter_map(|p| name_of(*p)).collect(),
    })
}

/// The partitions of a group that open transactions have offsets for, by topic id.
pub(crate) async fn pending(broker: &Broker, group: &str) -> Result<BTreeMap<Uuid, Vec<u32>>, ResponseError> {
    if broker.replica.read(|view| view.state.transactional().is_empty()) {
        // This broker may not have heard of the first one.
        barrier(broker).await?;
        if broker.replica.read(|view| view.state.transactional().is_empty()) {
            return Ok(BTreeMap::new());
        }
    }
    let (backend, keys) = (broker.replica.backend().as_ref(), broker.replica.keys());
    let pending = transactions::pending_partitions(backend, keys, group, PENDING_TRANSACTIONS).await;
    pending.map_err(|error| unreadable(&error))
}
