//! etcd itself, 3.4 or newer, through the `etcd-client` crate.
//!
//! ```text
//!   EtcdReader: range, watch ─┐                        ┌─ kv lane
//!                             ├─ Session ─ Client ─ Lanes─ watch lane      each: one connection, fail-over
//!   Etcd: + txn, leases ──────┘  log in, time-out,     └─ lease lane
//!         (feature `log`)        what failed, how
//! ```
//!
//! - **Once.** A request is sent to one member once. etcd-client's own retry (its token refresh) is
//!   off, tonic and hyper have none. The only second sending is of a request that etcd turned away
//!   for its token.
//! - **Outcomes.** `failure.rs` decides what was certainly not executed. A refused connection is
//!   certain; a time-out, a reset, "leader changed" and "request timed out" are not. For calls that
//!   change nothing all of these are [`BackendError::Unavailable`]; for all others they are
//!   [`BackendError::OutcomeUnknown`].
//! - **A dead etcd is noticed** by the connect time-out, the request time-out, pings while requests
//!   are open, and by a watch that asks for progress every two seconds. Connections come back by
//!   themselves.
//! - **A member without a leader** answers at once that it has none (`hasleader`), instead of
//!   making calls wait.
//!
//! A watch that begins exactly at the compacted revision may miss a deletion at that very revision
//! (etcd forgets it first): leave a margin when compacting, as the snapshot writer does.

mod config;
mod convert;
mod failure;
mod lanes;
mod session;
mod watch;
#[cfg(feature = "log")]
mod write;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use etcd_client::{GetOptions, GetResponse};

pub use self::config::{EtcdConfig, EtcdConfigError, Password};
#[cfg(feature = "log")]
pub use self::write::Etcd;

use self::convert::{changed_options, changed_response, get_options, range_response, split};
use self::failure::Failure;
use self::lanes::Purpose;
use self::session::Session;
use self::watch::EtcdWatch;
use super::request::{check_range, check_revision};
use super::{
    BackendError, ChangedRequest, ChangedResponse, KeyRange, RangeRequest, RangeResponse, ReadBackend, Watch,
};

/// etcd for those who only read. Nothing that it consists of can write. Clones share connections.
#[derive(Clone)]
pub struct EtcdReader {
    session: Arc<Session>,
}

impl EtcdReader {
    /// Checks the configuration. Connects and logs in when the first call is made.
    pub async fn new(config: &EtcdConfig) -> Result<Self, EtcdConfigError> {
        Ok(Self { session: Arc::new(Session::new(config).await?) })
    }

    async fn get(&self, key: Vec<u8>, options: GetOptions) -> Result<GetResponse, BackendError> {
        let send = || {
            let mut kv = self.session.kv();
            let (key, options) = (key.clone(), options.clone());
            async move { Ok(kv.get(key, Some(options)).await?) }
        };
        self.session.call(Purpose::Kv, send).await.map_err(Failure::of_read)
    }
}

#[async_trait]
impl ReadBackend for EtcdReader {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, BackendError> {
        check_range(&request.keys)?;
        request.revision.map_or(Ok(()), check_revision)?;
        let (key, end) = split(&request.keys);
        range_response(self.get(key, get_options(&request, end)?).await?)
    }

    async fn changed(&self, request: ChangedRequest) -> Result<ChangedResponse, BackendError> {
        check_range(&request.keys)?;
        check_revision(request.after)?;
        request.revision.map_or(Ok(()), check_revision)?;
        let (key, end) = split(&request.keys);
        changed_response(self.get(key, changed_options(&request, end)).await?)
    }

    async fn watch(&self, keys: KeyRange, revision: i64) -> Result<Box<dyn Watch>, BackendError> {
        check_range(&keys)?;
        check_revision(revision)?;
        Ok(Box::new(EtcdWatch::open(&self.session, &keys, revision).await?))
    }
}

impl fmt::Debug for EtcdReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdReader").finish_non_exhaustive()
    }
}
