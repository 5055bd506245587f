//! A producer of a transactional id, as clients are: what it sends, and what it makes of the
//! answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::{Buf, Bytes};
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, EndTxnRequest, EndTxnResponse, FetchRequest, GroupId,
    InitProducerIdRequest, OffsetFetchRequest, ProduceRequest, ProducerId, TransactionalId,
    TxnOffsetCommitRequest,
};
use kafka_protocol::records::Compression;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::sleep;

use super::{GROUP, PATIENCE, Payments, TIMEOUT};
use crate::client::{Client, ClientError, fetch_request, produce_request, text, topic};
use crate::records::{Producer, batch, batches, seal, values};
use crate::surroundings;

/// How often something is asked of one broker after the other.
const ATTEMPTS: usize = 8;
/// Between two of these.
const BACKOFF: Duration = Duration::from_millis(150);

/// How a client speaks of transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TxnVersion {
    /// KIP-98: partitions and groups are added by requests of their own.
    One,
    /// KIP-890: they are added by what is written, and every end bumps the epoch.
    Two,
}

/// How an end came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    AsAsked,
    /// Nobody has said.
    Unknown,
}

/// A producer while nobody has fenced it.
#[derive(Debug)]
pub(super) struct Session {
    transactional_id: String,
    version: TxnVersion,
    producer: (i64, i16),
    /// The next sequence number, by topic and partition.
    sequences: BTreeMap<(String, i32), i32>,
    /// What the open transaction has, for version 1.
    added: BTreeSet<(String, i32)>,
    has_group: bool,
    /// A batch of the open transaction, and where it went.
    sent: Option<(String, i32, Bytes)>,
}

fn id(id: &str) -> TransactionalId {
    TransactionalId(text(id))
}

fn check(code: i16) -> Result<(), ClientError> {
    match ResponseError::try_from_code(code) {
        None => Ok(()),
        Some(error) => Err(ClientError::Kafka(error)),
    }
}

/// Whether another broker, or the same one later, may say otherwise.
fn is_tried_again(error: &ClientError) -> bool {
    let is_coordinators = matches!(
        error,
        ClientError::Kafka(
            ResponseError::NotCoordinator
                | ResponseError::CoordinatorNotAvailable
                | ResponseError::CoordinatorLoadInProgress
                | ResponseError::ConcurrentTransactions
                | ResponseError::UnstableOffsetCommit
                | ResponseError::RebalanceInProgress
        )
    );
    is_coordinators || error.is_retriable()
}

/// Asks brokers until one knows.
macro_rules! ask {
    ($payments:expr, $rng:expr, |$client:ident| $asked:expr) => {{
        let mut last = ClientError::TimedOut;
        let mut done = None;
        for _ in 0..ATTEMPTS {
            let asked = match $payments.connect($rng).await {
                Ok(mut $client) => $asked,
                Err(error) => Err(error),
            };
            match asked {
                Ok(answer) => {
                    done = Some(answer);
                    break;
                }
                Err(error) if is_tried_again(&error) => last = error,
                Err(error) => return Err(error),
            }
            sleep(BACKOFF).await;
        }
        done.ok_or(last)
    }};
}

impl Session {
    /// Takes over a transactional id.
    pub(super) async fn begin(
        payments: &Payments,
        rng: &mut StdRng,
        transactional_id: String,
        version: TxnVersion,
    ) -> Result<Self, ClientError> {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(id(&transactional_id)))
            .with_transaction_timeout_ms(TIMEOUT.as_millis() as i32);
        let producer = ask!(payments, rng, |client| async {
            let answer = client.call(&request, 4).await?;
            check(answer.error_code)?;
            Ok((*answer.producer_id, answer.producer_epoch))
        }
        .await)?;
        Ok(Self {
            transactional_id,
            version,
            producer,
            sequences: BTreeMap::new(),
            added: BTreeSet::new(),
            has_group: false,
            sent: None,
        })
    }

    /// Writes a batch of these values, once, however often it is sent.
    pub(super) async fn produce(
        &mut self,
        payments: &Payments,
        rng: &mut StdRng,
        name: &str,
        partition: i32,
        values: &[String],
    ) -> Result<(), ClientError> {
        let place = (name.to_owned(), partition);
        if self.version == TxnVersion::One && self.added.insert(place.clone()) {
            self.add_partition(payments, rng, name, partition).await?;
        }
        let sequence = *self.sequences.entry(place.clone()).or_default();
        let (producer_id, epoch) = self.producer;
        let batch = transactional(values, (producer_id, epoch, sequence));
        let (request, version) = self.produce_request(name, partition, &batch);
        ask!(payments, rng, |client| async {
            let answer = client.call(&request, version).await?;
            check(answer.responses[0].partition_responses[0].error_code)
        }
        .await)?;
        self.sequences.insert(place, sequence + values.len() as i32);
        self.sent = Some((name.to_owned(), partition, batch));
        Ok(())
    }

    fn produce_request(&self, name: &str, partition: i32, batch: &Bytes) -> (ProduceRequest, i16) {
        let request = produce_request(name, &[(partition, batch.clone())], -1)
            .with_transactional_id(Some(id(&self.transactional_id)))
            .with_timeout_ms(PATIENCE.as_millis() as i32);
        (request, if self.version == TxnVersion::Two { 12 } else { 11 })
    }

    async fn add_partition(
        &self,
        payments: &Payments,
        rng: &mut StdRng,
        name: &str,
        partition: i32,
    ) -> Result<(), ClientError> {
        let added =
            AddPartitionsToTxnTopic::default().with_name(topic(name)).with_partitions(vec![partition]);
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(id(&self.transactional_id))
            .with_v3_and_below_producer_id(ProducerId(self.producer.0))
            .with_v3_and_below_producer_epoch(self.producer.1)
            .with_v3_and_below_topics(vec![added]);
        ask!(payments, rng, |client| async {
            let answer = client.call(&request, 3).await?;
            check(answer.results_by_topic_v3_and_below[0].results_by_partition[0].partition_error_code)
        }
        .await)
    }

    /// Says how far the group is, if the transaction is committed.
    pub(super) async fn add_offset(
        &mut self,
        payments: &Payments,
        rng: &mut StdRng,
        name: &str,
        partition: i32,
        offset: i64,
    ) -> Result<(), ClientError> {
        let (producer_id, epoch) = self.producer;
        if self.version == TxnVersion::One && !self.has_group {
            let request = AddOffsetsToTxnRequest::default()
                .with_transactional_id(id(&self.transactional_id))
                .with_producer_id(ProducerId(producer_id))
                .with_producer_epoch(epoch)
                .with_group_id(GroupId(text(GROUP)));
            ask!(payments, rng, |client| async { check(client.call(&request, 3).await?.error_code) }.await)?;
            self.has_group = true;
        }
        let committed = TxnOffsetCommitRequestPartition::default()
            .with_partition_index(partition)
            .with_committed_offset(offset);
        let of_topic =
            TxnOffsetCommitRequestTopic::default().with_name(topic(name)).with_partitions(vec![committed]);
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(id(&self.transactional_id))
            .with_group_id(GroupId(text(GROUP)))
            .with_producer_id(ProducerId(producer_id))
            .with_producer_epoch(epoch)
            .with_topics(vec![of_topic]);
        let version = if self.version == TxnVersion::Two { 5 } else { 4 };
        ask!(payments, rng, |client| async {
            check(client.call(&request, version).await?.topics[0].partitions[0].error_code)
        }
        .await)
    }

    /// Ends the transaction. At times what is over is sent again, later and to another broker.
    pub(super) async fn end(
        &mut self,
        payments: &Payments,
        rng: &mut StdRng,
        is_commit: bool,
    ) -> Result<Ended, ClientError> {
        let (request, version) = self.end_request(is_commit);
        let ask = async |client: &mut Client| -> Result<EndTxnResponse, ClientError> {
            let answer = client.call(&request, version).await?;
            check(answer.error_code)?;
            Ok(answer)
        };
        // With version 1 one that is late may end the next transaction, as in Kafka: who has not
        // heard begins anew.
        let ended = match self.version {
            TxnVersion::One => match payments.connect(rng).await {
                Ok(mut client) => ask(&mut client).await,
                Err(error) => Err(error),
            },
            TxnVersion::Two => ask!(payments, rng, |client| ask(&mut client).await),
        };
        let Ok(answer) = ended else { return Ok(Ended::Unknown) };
        if self.version == TxnVersion::Two && rng.random_bool(0.3) {
            self.haunt(payments, rng, is_commit);
        }
        if self.version == TxnVersion::Two {
            self.producer = (*answer.producer_id, answer.producer_epoch);
            self.sequences.clear();
        }
        self.added.clear();
        self.has_group = false;
        self.sent = None;
        Ok(Ended::AsAsked)
    }

    fn end_request(&self, is_commit: bool) -> (EndTxnRequest, i16) {
        let request = EndTxnRequest::default()
            .with_transactional_id(id(&self.transactional_id))
            .with_producer_id(ProducerId(self.producer.0))
            .with_producer_epoch(self.producer.1)
            .with_committed(is_commit);
        (request, if self.version == TxnVersion::Two { 5 } else { 4 })
    }

    /// Later, somebody sends the end of this transaction and its last batch again: nothing may come
    /// of it. With version 1 it may come into the next transaction, as in Kafka.
    fn haunt(&self, payments: &Payments, rng: &mut StdRng, was_commit: bool) {
        let address = payments.addresses[rng.random_range(0..payments.addresses.len())].clone();
        let (delay, says_commit) = (Duration::from_millis(rng.random_range(1..5_000)), rng.random::<bool>());
        let (end, version) = self.end_request(says_commit);
        let batch = self.sent.clone().map(|(name, partition, batch)| {
            let (request, version) = self.produce_request(&name, partition, &batch);
            (request, version)
        });
        let (history, who) =
            (payments.history.clone(), format!("{} {:?}", self.transactional_id, self.producer));
        tokio::spawn(async move {
            sleep(delay).await;
            let Ok(mut client) = Client::connect(&address).await else { return };
            client.set_timeout(PATIENCE);
            if let Ok(answer) = client.call(&end, version).await
                && answer.error_code == 0
                && says_commit != was_commit
            {
                let what = format!("{who}: it ended with {was_commit}, and again with {says_commit}");
                history.anomaly("an end decides again", what);
            }
            if let Some((request, version)) = batch
                && let Ok(answer) = client.call(&request, version).await
                && answer.responses[0].partition_responses[0].error_code == 0
            {
                history.anomaly("zombie write", format!("{who}: a batch of a transaction that is over"));
            }
        });
    }
}

/// A batch of a transaction.
fn transactional(values: &[String], producer: Producer) -> Bytes {
    let mut bytes = batch(values, surroundings::now_ms(), Some(producer), Compression::None).to_vec();
    bytes[22] |= 0x10;
    seal(&bytes)
}

/// How far the group is in a partition; −1 if it has not begun.
pub(super) async fn committed_offset(
    payments: &Payments,
    rng: &mut StdRng,
    partition: i32,
) -> Result<i64, ClientError> {
    let asked = OffsetFetchRequestTopics::default()
        .with_name(topic(&payments.input))
        .with_partition_indexes(vec![partition]);
    let asked = OffsetFetchRequestGroup::default()
        .with_group_id(GroupId(text(GROUP)))
        .with_member_epoch(-1)
        .with_topics(Some(vec![asked]));
    let request = OffsetFetchRequest::default().with_groups(vec![asked]).with_require_stable(true);
    ask!(payments, rng, |client| async {
        let answer = client.call(&request, 8).await?.groups.remove(0);
        check(answer.error_code)?;
        let found = &answer.topics[0].partitions[0];
        check(found.error_code)?;
        Ok(found.committed_offset)
    }
    .await)
}

/// What a reader of what is committed was given.
#[derive(Debug)]
pub(super) struct Read {
    /// Offsets and values.
    pub(super) records: Vec<(i64, String)>,
    /// Where it goes on.
    pub(super) next: i64,
    pub(super) last_stable: i64,
    pub(super) end: i64,
    /// What was wrong with it.
    pub(super) wrong: Option<String>,
}

/// Reads what is committed, as consumers do: what the answer says was aborted is passed over.
pub(super) async fn read_committed(
    client: &mut Client,
    name: &str,
    partition: i32,
    offset: i64,
) -> Result<Read, ClientError> {
    let request: FetchRequest =
        fetch_request(name, &[(partition, offset)], 300, 1 << 20).with_isolation_level(1);
    let answer = client.call(&request, 12).await?;
    check(answer.error_code)?;
    let fetched = &answer.responses[0].partitions[0];
    check(fetched.error_code)?;
    let mut aborted: Vec<(i64, i64)> = fetched
        .aborted_transactions
        .iter()
        .flatten()
        .map(|aborted| (aborted.first_offset, *aborted.producer_id))
        .collect();
    aborted.sort_unstable_by(|a, b| b.cmp(a));
    let mut read = Read {
        records: Vec::new(),
        next: offset,
        last_stable: fetched.last_stable_offset,
        end: fetched.high_watermark,
        wrong: None,
    };
    let mut passed_over = BTreeSet::new();
    for (base_offset, batch) in batches(fetched.records.clone().unwrap_or_default()).unwrap_or_default() {
        let header = Header::of(&batch);
        let last = base_offset + i64::from(header.last_offset_delta);
        while let Some((first, producer_id)) = aborted.pop_if(|(first, _)| *first <= last) {
            debug_assert!(first <= last);
            passed_over.insert(producer_id);
        }
        if last >= read.last_stable {
            read.wrong = Some(format!("offset {last} is given, {} is the last stable one", read.last_stable));
        }
        if header.is_control {
            if !header.is_commit {
                passed_over.remove(&header.producer_id);
            }
        } else if !(header.is_transactional && passed_over.contains(&header.producer_id)) {
            let values = values(batch).into_iter().filter(|(at, _)| *at >= offset);
            let text = |bytes: Bytes| String::from_utf8_lossy(&bytes).into_owned();
            read.records.extend(values.map(|(at, value)| (at, text(value))));
        }
        read.next = read.next.max(last + 1);
    }
    Ok(read)
}

/// What consumers look at of a batch.
struct Header {
    last_offset_delta: i32,
    producer_id: i64,
    is_transactional: bool,
    is_control: bool,
    is_commit: bool,
}

impl Header {
    fn of(batch: &Bytes) -> Self {
        let attributes = (&batch[21..]).get_i16();
        let is_control = attributes & 0x20 != 0;
        Self {
            last_offset_delta: (&batch[23..]).get_i32(),
            producer_id: (&batch[43..]).get_i64(),
            is_transactional: attributes & 0x10 != 0,
            is_control,
            // The key of the only record: a version, and what it is.
            is_commit: is_control && (&batch[68..]).get_i16() == 1,
        }
    }
}
