//! DescribeTransactions (key 65), version 0 (KIP-664).
//!
//! From etcd and the state machine, current on any broker. A transactional id that is named twice
//! is answered once.

use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::describe_transactions_response::{TopicData, TransactionState};
use kafka_protocol::messages::{
    DescribeTransactionsRequest, DescribeTransactionsResponse, ProducerId, TopicName, TransactionalId,
};

use super::distinct::each_once;
use super::{Call, text};
use crate::limits::UNITS_PER_ELEMENT;
use crate::transactions::{self, Described};

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=0;

pub(super) async fn handle(
    call: &Call,
    request: DescribeTransactionsRequest,
) -> DescribeTransactionsResponse {
    let ids: Vec<TransactionalId> = each_once(request.transactional_ids);
    let states = call.ask_each(ids, async |id: TransactionalId| describe(call, id).await).await;
    DescribeTransactionsResponse::default().with_transaction_states(states)
}

async fn describe(call: &Call, id: TransactionalId) -> TransactionState {
    let answer = TransactionState::default()
        .with_transactional_id(id.clone())
        .with_producer_id(ProducerId(-1))
        .with_producer_epoch(-1)
        .with_transaction_start_time_ms(-1);
    let described = match transactions::describe(&call.broker, &id).await {
        Ok(described) => described,
        Err(ResponseError::InvalidProducerIdMapping) => {
            return answer.with_error_code(ResponseError::TransactionalIdNotFound.code());
        }
        Err(code) => return answer.with_error_code(code.code()),
    };
    let Described { producer, state, timeout_ms, since_ms, partitions } = described;
    let mut topics: Vec<TopicData> = Vec::new();
    for (name, partition) in partitions {
        call.spend(UNITS_PER_ELEMENT).await;
        if topics.last().is_none_or(|topic| **topic.topic != *name) {
            topics.push(TopicData::default().with_topic(TopicName(text(name))));
        }
        if let Some(topic) = topics.last_mut() {
            topic.partitions.push(i32::try_from(partition).unwrap_or(i32::MAX));
        }
    }
    answer
        .with_producer_id(ProducerId(producer.id))
        .with_producer_epoch(producer.epoch)
        .with_transaction_state(text(state))
        .with_transaction_timeout_ms(timeout_ms)
        .with_transaction_start_time_ms(since_ms.unwrap_or(-1))
        .with_topics(topics)
}
