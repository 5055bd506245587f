//! The part of etcd's v3 API that reads, answered by an embedded store on a socket: `etcdctl` and
//! the read side of this crate see what a single-process broker keeps as if it were in an etcd.
//!
//! ```text
//!   TcpListener ─▶ Connection (at most API_CONNECTIONS) ─▶ tonic ─▶ Api ─▶ Shared: one lock, as every handle has
//!                                                               ├ kv.rs      Range
//!                                                               ├ watch.rs   Watch
//!                                                               └ about.rs   leases, members, status, alarms
//! ```
//!
//! **Nothing can be changed**: whatever would is refused with PERMISSION_DENIED and a sentence.
//! What only the API's less usual calls read (snapshots of the file, hashes, streamed ranges, the
//! value before an event) is refused with UNIMPLEMENTED, and there is nobody to log in as. What is
//! answered is durable, as with every other handle of the store.
//!
//! **Bounds**: connections, streams of a connection, watches of a stream, bytes of a request and of
//! an answer, answers at a time (see the constants). A range whose answer would be larger is
//! refused with a text in which clients of etcd recognise that they have to ask for less.
//!
//! There is no authentication and no encryption: whoever owns the listener must see to it that only
//! this machine reaches it.

mod about;
mod answers;
mod connection;
mod kv;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use etcd_client::proto::{
    PbClusterServer, PbKeyValue, PbKvServer, PbLeaseServer, PbMaintenanceServer, PbResponseHeader,
    PbWatchServer,
};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Server;

use self::answers::Answers;
use self::connection::connections;
use super::Embedded;
use super::shared::{Shared, State};
use crate::backend::{BackendError, KeyRange, KeyValue};
use crate::limits::{API_ANSWERS, API_CONNECTIONS, API_REQUEST_BYTES, API_STREAMS_PER_CONNECTION};

/// How often a silent connection is asked whether it is there, and how long it may take to answer.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));

/// The version of etcd's API that is answered, for clients that look.
const VERSION: &str = concat!("3.4.0+strandline.", env!("CARGO_PKG_VERSION"));

/// Ids of the only member there is, and of its cluster.
const MEMBER_ID: u64 = 1;
const CLUSTER_ID: u64 = 1;

/// The only member's name.
const MEMBER_NAME: &str = "embedded";

/// Every key is smaller: those of this crate are text.
const END_OF_KEYS: &[u8] = &[0xFF];

/// Why the API is not served any more.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket does not tell its address.
    #[error("the listener has no address: {0}")]
    Listener(#[from] std::io::Error),
    /// The server ended.
    #[error("the server ended: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// Answers on a socket, for as long as this is polled. It is the caller's to bind it where only
/// those reach it who may read everything.
pub async fn serve(store: Embedded, listener: TcpListener) -> Result<(), ServeError> {
    let address = listener.local_addr()?;
    let api = Api { shared: store.shared, client_url: format!("http://{address}").into() };
    Server::builder()
        .max_concurrent_streams(API_STREAMS_PER_CONNECTION)
        .http2_keepalive_interval(Some(PING.0))
        .http2_keepalive_timeout(Some(PING.1))
        .layer(Answers::new(API_ANSWERS))
        .add_service(PbKvServer::new(api.clone()).max_decoding_message_size(API_REQUEST_BYTES))
        .add_service(PbWatchServer::new(api.clone()).max_decoding_message_size(API_REQUEST_BYTES))
        .add_service(PbLeaseServer::new(api.clone()).max_decoding_message_size(API_REQUEST_BYTES))
        .add_service(PbClusterServer::new(api.clone()).max_decoding_message_size(API_REQUEST_BYTES))
        .add_service(PbMaintenanceServer::new(api).max_decoding_message_size(API_REQUEST_BYTES))
        .serve_with_incoming(connections(listener, API_CONNECTIONS))
        .await?;
    Ok(())
}

/// What answers.
#[derive(Clone, Debug)]
struct Api {
    shared: Arc<Shared>,
    /// Where clients reach it.
    client_url: Arc<str>,
}

impl Api {
    /// Looks at the state, and returns when what was seen is durable.
    async fn read<T>(&self, look: impl FnOnce(&State, Instant) -> T) -> Result<T, Status> {
        self.shared.check().map_err(|error| status_of(&error))?;
        let (seen, position) = self.shared.with_state(|state, now| look(state, now));
        self.shared.settled(position).await.map_err(Status::unavailable)?;
        Ok(seen)
    }

    /// The header of an answer that needs nothing of the state but its revision.
    async fn header(&self) -> Result<Option<PbResponseHeader>, Status> {
        Ok(header(self.read(|state, _| state.mvcc.revision()).await?))
    }
}

/// What every answer begins with.
#[expect(clippy::unnecessary_wraps, reason = "every answer has it as an option")]
fn header(revision: i64) -> Option<PbResponseHeader> {
    Some(PbResponseHeader { cluster_id: CLUSTER_ID, member_id: MEMBER_ID, revision, raft_term: 1 })
}

/// The keys that a request means: one, those from `key` up to `end`, or with an end of `\0` all
/// from `key` on. `None` if there are none between the two.
fn key_range(key: Vec<u8>, end: Vec<u8>) -> Option<KeyRange> {
    let end = match &end[..] {
        [] => return Some(KeyRange::key(key)),
        [0] => END_OF_KEYS.to_vec(),
        _ => end,
    };
    (key < end).then(|| KeyRange::Span { start: key.into(), end: end.into() })
}

fn key_value(kv: KeyValue) -> PbKeyValue {
    PbKeyValue {
        key: kv.key.into(),
        value: kv.value.into(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

/// What is said to whoever wants to change something.
fn denied() -> Status {
    Status::permission_denied(
        "these are the embedded metadata of a single broker: they may be read here, and only the broker changes them",
    )
}

/// What is said to whoever asks for what is not answered.
fn unanswered(what: &str) -> Status {
    Status::unimplemented(format!("embedded metadata do not answer this part of etcd's API: {what}"))
}

/// A failure, in the words by which clients of etcd know it.
fn status_of(error: &BackendError) -> Status {
    match error {
        BackendError::Compacted { .. } => compacted(),
        BackendError::Unavailable(_) | BackendError::OutcomeUnknown(_) => {
            Status::unavailable(error.to_string())
        }
        BackendError::TooLarge(_) => Status::resource_exhausted(error.to_string()),
        BackendError::Denied(_) => Status::permission_denied(error.to_string()),
        BackendError::LeaseGone(_) => Status::not_found("etcdserver: requested lease not found"),
        BackendError::NoSpace | BackendError::Broken(_) => Status::internal(error.to_string()),
    }
}

fn compacted() -> Status {
    Status::out_of_range("etcdserver: mvcc: required revision has been compacted")
}
