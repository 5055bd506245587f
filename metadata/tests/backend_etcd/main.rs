//! The etcd backend against real etcd processes: the conformance suite, logging in, TLS, and what
//! etcd and the network do to a client on a bad day.
//!
//! Without `etcd` on the PATH every test says SKIPPED and passes, unless
//! `STRANDLINE_REQUIRE_ETCD=1` is set.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::missing_panics_doc,
    reason = "tests may fail loudly, read their environment and start tasks"
)]

mod auth;
mod cluster;
mod conformance;
mod faults;
mod proxy;
mod server;
mod tls;

use std::time::Duration;

use strandline_metadata::backend::etcd::{Etcd, EtcdConfig};
use strandline_metadata::backend::{
    Backend, BackendError, KeyRange, KeyValue, Op, RangeRequest, ReadBackend, Txn, Watch,
};
use tokio::time::{Instant, sleep};

/// A client that gives up soon.
async fn client(endpoints: impl IntoIterator<Item = String>) -> Etcd {
    let config = EtcdConfig {
        connect_timeout: Duration::from_millis(500),
        request_timeout: Duration::from_secs(1),
        ..EtcdConfig::new(endpoints)
    };
    Etcd::new(&config).await.unwrap()
}

fn put(key: &str, value: impl Into<Vec<u8>>) -> Txn {
    Txn { then: vec![Op::put(key.to_owned(), value.into())], ..Txn::default() }
}

async fn get(store: &dyn ReadBackend, key: &str) -> Result<Option<KeyValue>, BackendError> {
    let request =
        RangeRequest { keys: KeyRange::key(key.to_owned()), revision: None, limit: 0, keys_only: false };
    Ok(store.range(request).await?.kvs.pop())
}

/// Tries until it works; a client that does not recover by itself fails here.
async fn eventually<T>(what: &str, attempt: impl AsyncFn() -> Result<T, BackendError>) -> T {
    let start = Instant::now();
    loop {
        match attempt().await {
            Ok(result) => return result,
            Err(error) if start.elapsed() > Duration::from_secs(30) => panic!("{what}: {error}"),
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

/// The next batch with events.
async fn next_events(watch: &mut dyn Watch) -> Result<Vec<i64>, BackendError> {
    loop {
        let batch = watch.next().await?;
        if !batch.events.is_empty() {
            return Ok(batch.events.iter().map(strandline_metadata::backend::Event::revision).collect());
        }
    }
}
