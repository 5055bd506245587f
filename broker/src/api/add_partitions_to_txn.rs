//! AddPartitionsToTxn (key 24), versions 0–5.
//!
//! Adds partitions to a transaction, and begins it if need be. Clients of transactions of version 2
//! do without: their batches add them (KIP-890). All partitions are added, or none: those that are
//! not to blame are OPERATION_NOT_ATTEMPTED then. From version 4 on several transactions, and the
//! question whether a transaction has partitions, which Kafka's brokers ask each other. On any
//! broker.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::{AddPartitionsToTxnRequest, AddPartitionsToTxnResponse, TransactionalId};
use uuid::Uuid;

use super::{Call, fenced};
use crate::limits::UNITS_PER_ELEMENT;
use crate::topics;
use crate::transactions::{self, ProducerEpoch};

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=5;

/// From this version on there are several transactions in a request.
const BATCHED: i16 = 4;

pub(super) async fn handle(call: &Call, request: AddPartitionsToTxnRequest) -> AddPartitionsToTxnResponse {
    let answer = AddPartitionsToTxnResponse::default();
    if call.version < BATCHED {
        let producer = ProducerEpoch {
            id: *request.v3_and_below_producer_id,
            epoch: request.v3_and_below_producer_epoch,
        };
        let id = &request.v3_and_below_transactional_id;
        let results = add(call, id, producer, request.v3_and_below_topics, false).await;
        return answer.with_results_by_topic_v3_and_below(results);
    }
    let mut results = Vec::with_capacity(request.transactions.len());
    for transaction in request.transactions {
        let producer = ProducerEpoch { id: *transaction.producer_id, epoch: transaction.producer_epoch };
        let (id, only_asks) = (transaction.transactional_id, transaction.verify_only);
        let topics = add(call, &id, producer, transaction.topics, only_asks).await;
        results
            .push(AddPartitionsToTxnResult::default().with_transactional_id(id).with_topic_results(topics));
    }
    answer.with_results_by_transaction(results)
}

async fn add(
    call: &Call,
    transactional_id: &TransactionalId,
    producer: ProducerEpoch,
    asked: Vec<AddPartitionsToTxnTopic>,
    only_asks: bool,
) -> Vec<AddPartitionsToTxnTopicResult> {
    let broker = &call.broker;
    let is_known = |name: &str| broker.replica.read(|view| view.names.topic(name).is_some());
    if asked.iter().any(|topic| !is_known(&topic.name)) {
        let names: Vec<String> = asked.iter().map(|topic| topic.name.to_string()).collect();
        topics::learn(broker, &names, false).await;
    }
    let mut found: BTreeMap<Uuid, Vec<u32>> = BTreeMap::new();
    let mut places = Vec::with_capacity(asked.len());
    let mut is_all = true;
    for topic in &asked {
        let known = broker
            .replica
            .read(|view| view.names.topic(&topic.name).map(|t| (t.value.topic_id, t.value.partitions)));
        let mut of_topic = Vec::with_capacity(topic.partitions.len());
        for index in &topic.partitions {
            call.spend(UNITS_PER_ELEMENT).await;
            let place = known.and_then(|(id, count)| {
                u32::try_from(*index).ok().filter(|number| *number < count).map(|number| (id, number))
            });
            is_all &= place.is_some();
            if let Some((id, number)) = place {
                found.entry(id).or_default().push(number);
            }
            of_topic.push((*index, place));
        }
        places.push(of_topic);
    }
    for numbers in found.values_mut() {
        numbers.sort_unstable();
        numbers.dedup();
    }
    let outcome = match (is_all, only_asks) {
        (false, _) => Err(ResponseError::OperationNotAttempted),
        (true, true) => transactions::has_partitions(broker, transactional_id, producer).await.map(Some),
        (true, false) => {
            transactions::add_partitions(broker, transactional_id, producer, &found).await.map(|()| None)
        }
    };
    let code_of = |place: &Option<(Uuid, u32)>| match (place, &outcome) {
        (None, _) => ResponseError::UnknownTopicOrPartition.code(),
        (Some(place), Ok(Some(has))) if !has.contains(place) => ResponseError::InvalidTxnState.code(),
        (Some(_), Ok(_)) => 0,
        (Some(_), Err(ResponseError::ProducerFenced)) => fenced(call.version, 2).code(),
        (Some(_), Err(code)) => code.code(),
    };
    let answers = asked.into_iter().zip(places).map(|(topic, places)| {
        let partitions = places.into_iter().map(|(index, place)| {
            AddPartitionsToTxnPartitionResult::default()
                .with_partition_index(index)
                .with_partition_error_code(code_of(&place))
        });
        AddPartitionsToTxnTopicResult::default()
            .with_name(topic.name)
            .with_results_by_partition(partitions.collect())
    });
    answers.collect()
}
