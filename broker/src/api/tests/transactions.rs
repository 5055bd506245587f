//! The APIs of transactions, over connections, by both versions of them and in every version of the
//! requests.

use kafka_protocol::messages::add_partitions_to_txn_request::{
    AddPartitionsToTxnTopic, AddPartitionsToTxnTransaction,
};
use kafka_protocol::messages::fetch_response::AbortedTransaction;
use kafka_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::write_txn_markers_request::{WritableTxnMarker, WritableTxnMarkerTopic};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, DescribeTransactionsRequest, EndTxnRequest,
    EndTxnResponse, GroupId, ListTransactionsRequest, OffsetFetchRequest, ProducerId, TxnOffsetCommitRequest,
    WriteTxnMarkersRequest,
};
use kafka_protocol::records::RecordBatchDecoder;
use strandline_metadata::backend::{KeyRange, Op, RangeRequest};
use strandline_metadata::keys::Key;
use strandline_metadata::values::transaction::OpenTransactionsValue;
use strandline_metadata::values::{VALUE_FORMAT, Value as _};
use strandline_storage::format::batch::BatchHeader;
use tokio::time::{Duration, sleep};

use super::*;
use crate::records::tests::in_transaction;

const FLAGS: [&str; 8] = [
    "--put-budget-per-s",
    "1000",
    "--linger-ms",
    "1",
    "--job-interval-ms",
    "100",
    "--merge-interval-ms",
    "86400000",
];

/// A producer of a transactional id, as a client knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Producer {
    id: i64,
    epoch: i16,
}

/// A batch of three records of this producer.
fn transactional(producer: Producer, sequence: i32) -> Bytes {
    in_transaction(&batch(Compression::None, NOW_MS, 3), (producer.id, producer.epoch, sequence))
}

fn id(id: &str) -> TransactionalId {
    TransactionalId(text(id))
}

async fn initialize(client: &mut TestClient, version: i16) -> Producer {
    let request = InitProducerIdRequest::default()
        .with_transactional_id(Some(id("payments")))
        .with_transaction_timeout_ms(60_000);
    let answer = client.call(&request, version).await;
    assert_eq!(answer.error_code, 0);
    Producer { id: *answer.producer_id, epoch: answer.producer_epoch }
}

/// Writes a batch to a partition of `t`; gives the code.
async fn write(client: &mut TestClient, version: i16, topic: Uuid, partition: i32, batch: Bytes) -> i16 {
    let request =
        produce_request(version, topic, vec![(partition, batch)]).with_transactional_id(Some(id("payments")));
    client.call(&request, version).await.responses[0].partition_responses[0].error_code
}

async fn end(client: &mut TestClient, version: i16, producer: Producer, committed: bool) -> EndTxnResponse {
    let request = EndTxnRequest::default()
        .with_transactional_id(id("payments"))
        .with_producer_id(ProducerId(producer.id))
        .with_producer_epoch(producer.epoch)
        .with_committed(committed);
    client.call(&request, version).await
}

/// What a reader of partition 0 sees from an offset on.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// Offsets of records, with whether they end a transaction.
    offsets: Vec<(i64, bool)>,
    aborted: Vec<(i64, i64)>,
    last_stable: i64,
    end: i64,
}

async fn read(client: &mut TestClient, topic: Uuid, offset: i64, is_committed: bool) -> Seen {
    let request = fetch_request(13, topic, offset).with_isolation_level(i8::from(is_committed));
    let request = request.with_max_wait_ms(50).with_session_epoch(-1);
    let mut answer = client.call(&request, 13).await;
    let mut fetched = answer.responses.remove(0).partitions.remove(0);
    assert_eq!(fetched.error_code, 0);
    let mut offsets = Vec::new();
    if let Some(records) = fetched.records.as_mut() {
        let mut headers = records.clone();
        while !headers.is_empty() {
            let header = BatchHeader::parse(&headers).unwrap();
            let end = header.base_offset + i64::from(header.last_offset_delta);
            offsets.extend((header.base_offset..=end).map(|offset| (offset, header.is_control())));
            headers.advance(header.total_bytes());
        }
        // Whoever decodes it finds the CRCs right.
        RecordBatchDecoder::decode_all(records).unwrap();
    }
    assert_eq!(fetched.aborted_transactions.is_some(), is_committed);
    let aborted = fetched.aborted_transactions.unwrap_or_default();
    Seen {
        offsets,
        aborted: aborted.iter().map(|a: &AbortedTransaction| (*a.producer_id, a.first_offset)).collect(),
        last_stable: fetched.last_stable_offset,
        end: fetched.high_watermark,
    }
}

fn records(offsets: std::ops::Range<i64>) -> Vec<(i64, bool)> {
    offsets.map(|offset| (offset, false)).collect()
}

#[tokio::test]
async fn a_transaction_of_version_2_is_seen_when_it_is_committed() {
    let world = World::new();
    let (one, two) = (world.broker(1, &FLAGS).await, world.broker(2, &FLAGS).await);
    let (mut client, mut other) = (TestClient::connect(&one.broker), TestClient::connect(&two.broker));
    let topic = client.create_topic("t", 2, &[]).await;
    let producer = initialize(&mut client, 5).await;
    assert_eq!(producer.epoch, 0);
    for partition in [0, 1] {
        assert_eq!(write(&mut client, 13, topic, partition, transactional(producer, 0)).await, 0);
    }
    two.broker.replica.barrier().await.unwrap();
    let open = read(&mut other, topic, 0, true).await;
    assert_eq!(open, Seen { offsets: vec![], aborted: vec![], last_stable: 0, end: 3 });
    assert_eq!(read(&mut other, topic, 0, false).await.offsets, records(0..3));
    // Any broker ends it.
    let ended = end(&mut other, 5, producer, true).await;
    assert_eq!((ended.error_code, *ended.producer_id, ended.producer_epoch), (0, producer.id, 1));
    one.broker.replica.barrier().await.unwrap();
    for client in [&mut client, &mut other] {
        let seen = read(client, topic, 0, true).await;
        let offsets = [records(0..3), vec![(3, true)]].concat();
        assert_eq!(seen, Seen { offsets, aborted: vec![], last_stable: 4, end: 4 });
        assert_eq!(read(client, topic, 3, true).await.offsets, [(3, true)], "from its end on");
    }
    // Asked again, with the epoch of before, it says what it has said.
    let again = end(&mut client, 5, producer, true).await;
    assert_eq!((again.error_code, again.producer_epoch), (0, 1));
    let other_way = end(&mut client, 5, producer, false).await.error_code;
    assert_eq!(other_way, ResponseError::InvalidTxnState.code());
    // What was on its way comes too late.
    let late = write(&mut client, 13, topic, 0, transactional(producer, 3)).await;
    assert_eq!(late, ResponseError::InvalidProducerEpoch.code());
    let next = Producer { epoch: 1, ..producer };
    assert_eq!(write(&mut other, 12, topic, 0, transactional(next, 0)).await, 0);
    // A late end never decides the next transaction.
    assert_eq!(end(&mut client, 5, producer, true).await.error_code, ResponseError::ProducerFenced.code());
    assert_eq!(end(&mut client, 5, next, false).await.producer_epoch, 2);
    two.broker.replica.barrier().await.unwrap();
    let seen = read(&mut other, topic, 4, true).await;
    let offsets = [records(4..7), vec![(7, true)]].concat();
    assert_eq!(seen, Seen { offsets, aborted: vec![(producer.id, 4)], last_stable: 8, end: 8 });
}

#[tokio::test]
async fn a_transaction_of_version_1_has_the_partitions_that_were_added_to_it() {
    let (_opened, mut client, topic) = ready().await;
    let producer = initialize(&mut client, 3).await;
    let add = |version, partitions: Vec<i32>| {
        let topic = AddPartitionsToTxnTopic::default().with_name(name("t")).with_partitions(partitions);
        if version < 4 {
            return AddPartitionsToTxnRequest::default()
                .with_v3_and_below_transactional_id(id("payments"))
                .with_v3_and_below_producer_id(ProducerId(producer.id))
                .with_v3_and_below_producer_epoch(producer.epoch)
                .with_v3_and_below_topics(vec![topic]);
        }
        let transaction = AddPartitionsToTxnTransaction::default()
            .with_transactional_id(id("payments"))
            .with_producer_id(ProducerId(producer.id))
            .with_producer_epoch(producer.epoch)
            .with_topics(vec![topic]);
        AddPartitionsToTxnRequest::default().with_transactions(vec![transaction])
    };
    for (version, code) in [(9, ResponseError::InvalidTxnState), (11, ResponseError::TransactionAbortable)] {
        assert_eq!(write(&mut client, version, topic, 0, transactional(producer, 0)).await, code.code());
    }
    // All of them or none.
    let some = client.call(&add(3, vec![0, 7]), 3).await;
    let codes: Vec<i16> = some.results_by_topic_v3_and_below[0]
        .results_by_partition
        .iter()
        .map(|p| p.partition_error_code)
        .collect();
    let (skipped, unknown) =
        (ResponseError::OperationNotAttempted.code(), ResponseError::UnknownTopicOrPartition.code());
    assert_eq!(codes, [skipped, unknown]);
    let mut sequence = 0;
    for version in add_partitions_to_txn::VERSIONS {
        let added = client.call(&add(version, vec![0]), version).await;
        let results = match version {
            0..4 => &added.results_by_topic_v3_and_below,
            _ => &added.results_by_transaction[0].topic_results,
        };
        assert_eq!(results[0].results_by_partition[0].partition_error_code, 0, "version {version}");
        assert_eq!(write(&mut client, 11, topic, 0, transactional(producer, sequence)).await, 0);
        sequence += 3;
        let end_version = version.min(4);
        let ended = end(&mut client, end_version, producer, version % 2 == 0).await;
        assert_eq!(ended.error_code, 0, "version {version}");
        let again = end(&mut client, end_version, producer, version % 2 == 0).await;
        assert_eq!(again.error_code, 0, "its outcome");
        // The partition is in no transaction any more.
        let alone = write(&mut client, 10, topic, 0, transactional(producer, sequence)).await;
        assert_eq!(alone, ResponseError::InvalidTxnState.code());
    }
    let seen = read(&mut client, topic, 0, true).await;
    assert_eq!((seen.offsets.len(), seen.last_stable, seen.end), (24, 24, 24));
    assert_eq!(seen.aborted, [4, 12, 20].map(|first| (producer.id, first)));
}

#[tokio::test]
async fn whoever_is_fenced_hears_it_by_a_code_that_it_knows() {
    let (_opened, mut client, topic) = ready().await;
    let old = initialize(&mut client, 5).await;
    assert_eq!(write(&mut client, 13, topic, 0, transactional(old, 0)).await, 0);
    for version in init_producer_id::VERSIONS {
        let new = initialize(&mut client, version).await;
        assert_eq!((new.id, new.epoch), (old.id, 1 + version), "version {version}");
    }
    let seen = read(&mut client, topic, 0, true).await;
    assert_eq!((seen.aborted, seen.last_stable), (vec![(old.id, 0)], 4));
    for version in end_txn::VERSIONS {
        let fenced =
            if version < 2 { ResponseError::InvalidProducerEpoch } else { ResponseError::ProducerFenced };
        assert_eq!(end(&mut client, version, old, true).await.error_code, fenced.code(), "version {version}");
    }
    let late = write(&mut client, 13, topic, 0, transactional(old, 3)).await;
    assert_eq!(late, ResponseError::InvalidProducerEpoch.code());
    // Who goes on with an old epoch, too (KIP-360).
    let ask = |producer: Producer| {
        InitProducerIdRequest::default()
            .with_transactional_id(Some(id("payments")))
            .with_transaction_timeout_ms(60_000)
            .with_producer_id(ProducerId(producer.id))
            .with_producer_epoch(producer.epoch)
    };
    for (version, code) in [(3, ResponseError::InvalidProducerEpoch), (4, ResponseError::ProducerFenced)] {
        assert_eq!(client.call(&ask(old), version).await.error_code, code.code());
    }
    let current = Producer { epoch: 6, ..old };
    for _ in 0..2 {
        let bumped = client.call(&ask(current), 5).await;
        assert_eq!((bumped.error_code, bumped.producer_epoch), (0, 7), "once, however often it asks");
    }
    let strange = Producer { id: old.id + 1, epoch: 7 };
    assert_eq!(
        end(&mut client, 5, strange, true).await.error_code,
        ResponseError::InvalidProducerIdMapping.code()
    );
    for timeout_ms in [0, -1, 900_001] {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(id("payments")))
            .with_transaction_timeout_ms(timeout_ms);
        let code = client.call(&request, 5).await.error_code;
        assert_eq!(code, ResponseError::InvalidTransactionTimeout.code());
    }
}

fn offsets_request(producer: Producer, offset: i64) -> TxnOffsetCommitRequest {
    let partition =
        TxnOffsetCommitRequestPartition::default().with_partition_index(0).with_committed_offset(offset);
    let topic = TxnOffsetCommitRequestTopic::default().with_name(name("t")).with_partitions(vec![partition]);
    TxnOffsetCommitRequest::default()
        .with_transactional_id(id("payments"))
        .with_group_id(GroupId(text("g")))
        .with_producer_id(ProducerId(producer.id))
        .with_producer_epoch(producer.epoch)
        .with_topics(vec![topic])
}

async fn add_offsets(client: &mut TestClient, version: i16, producer: Producer, offset: i64) -> i16 {
    let answer = client.call(&offsets_request(producer, offset), version).await;
    answer.topics[0].partitions[0].error_code
}

/// What is committed for partition 0 of `t`, or the code.
async fn committed(client: &mut TestClient, is_stable: bool) -> Result<i64, i16> {
    let topic = OffsetFetchRequestTopics::default().with_name(name("t")).with_partition_indexes(vec![0]);
    let asked = OffsetFetchRequestGroup::default()
        .with_group_id(GroupId(text("g")))
        .with_member_epoch(-1)
        .with_topics(Some(vec![topic]));
    let request = OffsetFetchRequest::default().with_groups(vec![asked]).with_require_stable(is_stable);
    let answer = client.call(&request, 9).await.groups.remove(0).topics.remove(0).partitions.remove(0);
    if answer.error_code == 0 { Ok(answer.committed_offset) } else { Err(answer.error_code) }
}

#[tokio::test]
async fn offsets_are_committed_with_their_transaction_or_not_at_all() {
    let (_opened, mut client, topic) = ready().await;
    let unstable = Err(ResponseError::UnstableOffsetCommit.code());
    let mut producer = initialize(&mut client, 5).await;
    for (number, is_commit) in [(1, true), (2, false), (3, true)] {
        let before = committed(&mut client, false).await;
        assert_eq!(write(&mut client, 13, topic, 0, transactional(producer, 0)).await, 0);
        assert_eq!(add_offsets(&mut client, 5, producer, 10 * number).await, 0);
        assert_eq!(committed(&mut client, true).await, unstable);
        assert_eq!(committed(&mut client, false).await, before, "as it was");
        let ended = end(&mut client, 5, producer, is_commit).await;
        assert_eq!(ended.error_code, 0);
        producer.epoch = ended.producer_epoch;
        let after = if is_commit { Ok(10 * number) } else { before };
        assert_eq!(committed(&mut client, true).await, after);
    }
    // A transaction that has nothing but offsets.
    assert_eq!(add_offsets(&mut client, 5, producer, 77).await, 0);
    assert_eq!(end(&mut client, 5, producer, true).await.error_code, 0);
    assert_eq!(committed(&mut client, true).await, Ok(77));
    // Before version 5 the group is announced, in a transaction of version 1.
    producer.epoch += 1;
    for version in txn_offset_commit::VERSIONS.take(5) {
        let unannounced = add_offsets(&mut client, version, producer, 100).await;
        assert_eq!(unannounced, ResponseError::InvalidTxnState.code(), "version {version}");
        let announce = AddOffsetsToTxnRequest::default()
            .with_transactional_id(id("payments"))
            .with_producer_id(ProducerId(producer.id))
            .with_producer_epoch(producer.epoch)
            .with_group_id(GroupId(text("g")));
        assert_eq!(client.call(&announce, version.min(4)).await.error_code, 0);
        assert_eq!(add_offsets(&mut client, version, producer, 100 + i64::from(version)).await, 0);
        assert_eq!(end(&mut client, 4, producer, true).await.error_code, 0);
        assert_eq!(committed(&mut client, true).await, Ok(100 + i64::from(version)));
    }
    let old = Producer { epoch: producer.epoch - 1, ..producer };
    assert_eq!(add_offsets(&mut client, 5, old, 1).await, ResponseError::InvalidProducerEpoch.code());
    let strange = Producer { id: producer.id + 1, ..producer };
    assert_eq!(add_offsets(&mut client, 5, strange, 1).await, ResponseError::InvalidProducerIdMapping.code());
    // Who names a generation must be a member in it.
    let stale = offsets_request(producer, 1).with_generation_id(3).with_member_id(text("nobody"));
    let code = client.call(&stale, 5).await.topics[0].partitions[0].error_code;
    assert_eq!(code, ResponseError::IllegalGeneration.code());
}

#[tokio::test]
async fn what_is_committed_later_outside_of_a_transaction_stays() {
    let (_opened, mut client, _) = ready().await;
    let producer = initialize(&mut client, 5).await;
    let commit = |offset| {
        use kafka_protocol::messages::OffsetCommitRequest;
        use kafka_protocol::messages::offset_commit_request::{
            OffsetCommitRequestPartition, OffsetCommitRequestTopic,
        };
        let partition =
            OffsetCommitRequestPartition::default().with_partition_index(0).with_committed_offset(offset);
        let topic = OffsetCommitRequestTopic::default().with_name(name("t")).with_partitions(vec![partition]);
        OffsetCommitRequest::default()
            .with_group_id(GroupId(text("g")))
            .with_generation_id_or_member_epoch(-1)
            .with_topics(vec![topic])
    };
    client.call(&commit(1), 9).await;
    assert_eq!(add_offsets(&mut client, 5, producer, 2).await, 0);
    let next = end(&mut client, 5, producer, true).await.producer_epoch;
    assert_eq!(committed(&mut client, true).await, Ok(2), "it came later");
    let producer = Producer { epoch: next, ..producer };
    assert_eq!(add_offsets(&mut client, 5, producer, 3).await, 0);
    client.call(&commit(4), 9).await;
    assert_eq!(end(&mut client, 5, producer, true).await.error_code, 0);
    assert_eq!(committed(&mut client, true).await, Ok(4), "it came before");
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_is_open_for_too_long_is_aborted() {
    let flags = [&FLAGS[..], &["--transactional-id-expiration-ms", "10000"]].concat();
    let opened = World::new().broker(1, &flags).await;
    let mut client = TestClient::connect(&opened.broker);
    let topic = client.create_topic("t", 1, &[]).await;
    let request = InitProducerIdRequest::default()
        .with_transactional_id(Some(id("payments")))
        .with_transaction_timeout_ms(5_000);
    let answer = client.call(&request, 5).await;
    let producer = Producer { id: *answer.producer_id, epoch: answer.producer_epoch };
    assert_eq!(write(&mut client, 13, topic, 0, transactional(producer, 0)).await, 0);
    assert_eq!(add_offsets(&mut client, 5, producer, 9).await, 0);
    sleep(Duration::from_secs(4)).await;
    assert_eq!(read(&mut client, topic, 0, true).await.last_stable, 0);
    sleep(Duration::from_secs(2)).await;
    let seen = read(&mut client, topic, 0, true).await;
    assert_eq!((seen.last_stable, seen.aborted), (4, vec![(producer.id, 0)]));
    assert_eq!(committed(&mut client, true).await, Ok(-1));
    let late = write(&mut client, 13, topic, 0, transactional(producer, 3)).await;
    assert_eq!(late, ResponseError::InvalidProducerEpoch.code());
    // Its producer cannot commit any more, and goes on with an abort.
    assert_eq!(end(&mut client, 5, producer, true).await.error_code, ResponseError::InvalidTxnState.code());
    let aborted = end(&mut client, 5, producer, false).await;
    assert_eq!((aborted.error_code, aborted.producer_epoch), (0, 1));
    // Ids that nobody uses are forgotten.
    sleep(Duration::from_secs(11)).await;
    assert!(opened.broker.replica.read(|view| view.state.transactional().is_empty()));
    let gone = end(&mut client, 5, Producer { epoch: 1, ..producer }, true).await.error_code;
    assert_eq!(gone, ResponseError::InvalidProducerIdMapping.code());
}

/// Puts something under a key, whatever that breaks.
async fn put(broker: &Broker, key: &Key, value: impl Into<Bytes>) {
    let session = broker.sessions.current().expect("it is registered");
    let op = Op::put(broker.replica.keys().encode(key), value.into());
    broker.committer.write(session, Vec::new(), vec![op]).await.expect("it is written");
}

#[tokio::test(start_paused = true)]
async fn an_id_that_cannot_be_read_keeps_no_other_from_its_time_out() {
    let opened = World::new().broker(1, &FLAGS).await;
    let mut client = TestClient::connect(&opened.broker);
    let mut topics = Vec::new();
    for transactional_id in ["damaged", "payments"] {
        let topic = client.create_topic(transactional_id, 1, &[]).await;
        topics.push(topic);
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(id(transactional_id)))
            .with_transaction_timeout_ms(5_000);
        let answer = client.call(&request, 5).await;
        let producer = Producer { id: *answer.producer_id, epoch: answer.producer_epoch };
        let request = produce_request(13, topic, vec![(0, transactional(producer, 0))])
            .with_transactional_id(Some(id(transactional_id)));
        let answer = client.call(&request, 13).await;
        assert_eq!(answer.responses[0].partition_responses[0].error_code, 0);
    }
    put(&opened.broker, &Key::Transaction("damaged".to_owned()), "{").await;
    sleep(Duration::from_secs(7)).await;
    assert_eq!(read(&mut client, topics[0], 0, true).await.last_stable, 0, "nobody knows what it is");
    assert_eq!(read(&mut client, topics[1], 0, true).await.last_stable, 4);
}

#[tokio::test(start_paused = true)]
async fn what_another_broker_has_shown_is_replaced_once_it_has_ended() {
    let opened = World::new().broker(1, &FLAGS).await;
    let old = OpenTransactionsValue { format: VALUE_FORMAT, open: 1, oldest: Vec::new() };
    put(&opened.broker, &Key::OpenTransactions, old.encode()).await;
    let mut client = TestClient::connect(&opened.broker);
    initialize(&mut client, 5).await;
    sleep(Duration::from_secs(5)).await;
    let keys = KeyRange::Key(opened.broker.replica.keys().encode(&Key::OpenTransactions));
    let request = RangeRequest { keys, revision: None, limit: 1, keys_only: false };
    let found = opened.broker.replica.backend().range(request).await.expect("it is there");
    let shown = OpenTransactionsValue::decode(&found.kvs[0].value).expect("it is readable");
    assert_eq!(shown.open, 0);
}

#[tokio::test]
async fn transactions_are_listed_and_described() {
    let (_opened, mut client, topic) = ready().await;
    let producer = initialize(&mut client, 5).await;
    let describe = |ids: &[&str]| {
        DescribeTransactionsRequest::default().with_transactional_ids(ids.iter().map(|i| id(i)).collect())
    };
    let described = client.call(&describe(&["payments", "nobody", "payments"]), 0).await.transaction_states;
    assert_eq!(described.len(), 2);
    assert_eq!(described[1].error_code, ResponseError::TransactionalIdNotFound.code());
    assert_eq!((&*described[0].transaction_state, described[0].transaction_timeout_ms), ("Empty", 60_000));
    assert_eq!(write(&mut client, 13, topic, 1, transactional(producer, 0)).await, 0);
    let described = client.call(&describe(&["payments"]), 0).await.transaction_states.remove(0);
    assert_eq!((&*described.transaction_state, described.transaction_start_time_ms), ("Ongoing", NOW_MS));
    assert_eq!((&**described.topics[0].topic, &described.topics[0].partitions[..]), ("t", &[1][..]));
    for version in list_transactions::VERSIONS {
        let all = ListTransactionsRequest::default();
        let all = if version >= 1 { all.with_duration_filter(-1) } else { all };
        for (request, found) in [
            (all.clone(), 1),
            (all.clone().with_state_filters(vec![text("Ongoing")]), 1),
            (all.clone().with_state_filters(vec![text("Empty"), text("Tea")]), 0),
            (all.clone().with_producer_id_filters(vec![ProducerId(producer.id)]), 1),
            (all.clone().with_producer_id_filters(vec![ProducerId(producer.id + 1)]), 0),
        ] {
            let listed = client.call(&request, version).await;
            assert_eq!((listed.error_code, listed.transaction_states.len()), (0, found), "{request:?}");
            assert_eq!(listed.unknown_state_filters.len(), usize::from(request.state_filters.len() > 1));
        }
        if version >= 1 {
            let old = all.clone().with_duration_filter(1_000);
            assert_eq!(client.call(&old, version).await.transaction_states.len(), 0);
        }
        if version >= 2 {
            for (pattern, found) in [("pay.*", 1), ("pay", 0), ("", 1)] {
                let request = all.clone().with_transactional_id_pattern(Some(text(pattern)));
                assert_eq!(client.call(&request, version).await.transaction_states.len(), found, "{pattern}");
            }
            let wrong = all.clone().with_transactional_id_pattern(Some(text("(")));
            let code = client.call(&wrong, version).await.error_code;
            assert_eq!(code, ResponseError::InvalidRegularExpression.code());
        }
    }
    assert_eq!(end(&mut client, 5, producer, true).await.error_code, 0);
    let described = client.call(&describe(&["payments"]), 0).await.transaction_states.remove(0);
    assert_eq!((&*described.transaction_state, described.topics.len()), ("CompleteCommit", 0));
    // Nothing hangs, so nobody writes markers.
    let partition = WritableTxnMarkerTopic::default().with_name(name("t")).with_partition_indexes(vec![0]);
    let marker =
        WritableTxnMarker::default().with_producer_id(ProducerId(producer.id)).with_topics(vec![partition]);
    let answer = client.call(&WriteTxnMarkersRequest::default().with_markers(vec![marker]), 1).await;
    let code = answer.markers[0].topics[0].partitions[0].error_code;
    assert_eq!(code, ResponseError::ClusterAuthorizationFailed.code());
}

#[tokio::test]
async fn ids_that_are_too_many_or_too_long_are_refused() {
    let flags = ["--max-transactional-ids", "2", "--put-budget-per-s", "1000"];
    let opened = World::new().broker(1, &flags).await;
    let mut client = TestClient::connect(&opened.broker);
    let mut ask = async |name: &str| {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(id(name)))
            .with_transaction_timeout_ms(1_000);
        client.call(&request, 5).await.error_code
    };
    assert_eq!([ask("a").await, ask("b").await, ask("a").await], [0; 3]);
    assert_eq!(ask("c").await, ResponseError::PolicyViolation.code());
    assert_eq!(ask(&"x".repeat(1_025)).await, ResponseError::InvalidRequest.code());
}
