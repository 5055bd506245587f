//! ListTransactions (key 66), versions 0–2 (KIP-664, KIP-994, KIP-1152).
//!
//! The transactional ids that this broker is the coordinator of by FindCoordinator: clients ask
//! every broker. From the state machine, after the barrier. By state, by producer id, by how long
//! the transaction has been open, and by a pattern of the id.

use std::ops::RangeInclusive;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::list_transactions_response::TransactionState;
use kafka_protocol::messages::{
    ListTransactionsRequest, ListTransactionsResponse, ProducerId, TransactionalId,
};
use strandline_metadata::state::TransactionalProducer;

use super::{Call, text};
use crate::leaders::Leaders;
use crate::limits::{LARGE_ANSWER_ELEMENTS, PATTERN_BYTES, UNITS_PER_ELEMENT};
use crate::transactions::state_of;

pub(crate) const VERSIONS: RangeInclusive<i16> = 0..=2;

/// The states of Kafka's coordinators. Here none is ever between two.
const STATES: [&str; 9] = [
    "Empty",
    "Ongoing",
    "PrepareCommit",
    "PrepareAbort",
    "CompleteCommit",
    "CompleteAbort",
    "PrepareEpochFence",
    "Dead",
    "Unknown",
];

pub(super) async fn handle(call: &Call, request: ListTransactionsRequest) -> ListTransactionsResponse {
    let broker = &call.broker;
    if broker.sessions.current().is_none() || broker.replica.barrier().await.is_err() {
        let code = ResponseError::CoordinatorNotAvailable.code();
        return ListTransactionsResponse::default().with_error_code(code);
    }
    let answer = ListTransactionsResponse::default();
    let pattern = request.transactional_id_pattern.filter(|pattern| !pattern.is_empty());
    let Ok(pattern) = pattern.map(|pattern| compiled(&pattern)).transpose() else {
        return answer.with_error_code(ResponseError::InvalidRegularExpression.code());
    };
    let (known, unknown): (Vec<_>, Vec<_>) =
        request.state_filters.into_iter().partition(|state| STATES.contains(&&**state));
    let is_filtered = !known.is_empty() || !unknown.is_empty();
    let view = broker.replica.view();
    if view.state.transactional().len() > LARGE_ANSWER_ELEMENTS {
        call.large_answer().await;
    }
    let leaders = Leaders::registered(&view.names);
    let now_ms = broker.clock.now_ms();
    let mut listed = Vec::new();
    for (&producer_id, producer) in view.state.transactional() {
        call.spend(UNITS_PER_ELEMENT).await;
        let TransactionalProducer { transactional_id, .. } = producer;
        let state = state_of(producer);
        let age_ms = producer.open.as_ref().map(|open| now_ms.saturating_sub(open.since_ms));
        let is_wanted = leaders.of_group(transactional_id) == broker.config.node_id
            && (!is_filtered || known.iter().any(|wanted| **wanted == *state))
            && (request.producer_id_filters.is_empty()
                || request.producer_id_filters.contains(&ProducerId(producer_id)))
            && (request.duration_filter < 0 || age_ms.is_some_and(|age| age > request.duration_filter))
            && pattern.as_ref().is_none_or(|pattern| pattern.is_match(transactional_id));
        if is_wanted {
            listed.push(
                TransactionState::default()
                    .with_transactional_id(TransactionalId(text(&**transactional_id)))
                    .with_producer_id(ProducerId(producer_id))
                    .with_transaction_state(text(state)),
            );
        }
    }
    answer.with_unknown_state_filters(unknown).with_transaction_states(listed)
}

/// A pattern that has to match all of an id.
fn compiled(pattern: &str) -> Result<regex::Regex, ()> {
    let whole = format!("^(?:{pattern})$");
    regex::RegexBuilder::new(&whole).size_limit(PATTERN_BYTES).build().map_err(drop)
}
