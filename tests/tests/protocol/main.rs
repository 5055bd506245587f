//! What a client may send and what it is told: three brokers that nothing happens to, shared by all
//! tests here.
//!
//! Whatever is written on one broker is read from another one.

mod fetch;
mod offsets;
mod produce;
mod topics;

use std::sync::Arc;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::produce_response::PartitionProduceResponse;
use kafka_protocol::messages::{FetchRequest, ProduceRequest};
use strandline_tests::client::{Client, ClientError};
use strandline_tests::cluster::{Cluster, Plan};
use tokio::sync::OnceCell;

/// The cluster that all tests share; what it keeps is shown when one of them fails. It ends with
/// this process.
struct Shared(Arc<Cluster>);

impl std::ops::Deref for Shared {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.show_logs();
        }
    }
}

async fn shared() -> Shared {
    static CLUSTER: OnceCell<Arc<Cluster>> = OnceCell::const_new();
    let cluster = CLUSTER.get_or_init(async || Arc::new(Cluster::start(Plan::new(3)).await)).await;
    Shared(cluster.clone())
}

/// The answer to a produce request, for each partition in the order of the request.
async fn produce(client: &mut Client, request: &ProduceRequest) -> Vec<PartitionProduceResponse> {
    let response = client.call(request, 9).await.expect("a produce is answered");
    response.responses.into_iter().flat_map(|t| t.partition_responses).collect()
}

/// The answer to a fetch request, for each partition in the order of the response.
async fn fetch(client: &mut Client, request: &FetchRequest) -> Vec<PartitionData> {
    let response = client.call(request, 11).await.expect("a fetch is answered");
    assert_eq!(response.error_code, 0);
    response.responses.into_iter().flat_map(|t| t.partitions).collect()
}

/// The error of a code, if it is one.
fn error(code: i16) -> Option<ResponseError> {
    ResponseError::try_from_code(code)
}

/// The error that the broker answered with; anything else fails the test.
#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> ResponseError {
    match outcome {
        Err(ClientError::Kafka(error)) => error,
        other => panic!("an error of the broker was expected: {other:?}"),
    }
}
