//! The behaviours that every backend has.

use std::sync::Arc;

use strandline_metadata::backend::{Backend, conformance};

use super::client;
use super::server::{Server, available};

#[tokio::test]
async fn etcd_conforms() {
    if !available("etcd_conforms") {
        return;
    }
    let server = Server::start().await;
    let store: Arc<dyn Backend> = Arc::new(client([server.url()]).await);
    conformance::run_all(async || Arc::clone(&store)).await;
}
