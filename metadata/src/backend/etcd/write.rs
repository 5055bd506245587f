//! What only a broker may do with etcd: transactions, leases, compaction.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use etcd_client::proto::{PbResponseOp, PbTxnOpResponse, PbTxnResponse};
use etcd_client::{
    CompareOp, DeleteOptions, GetOptions, LeaseKeepAliveResponse, LeaseKeepAliveStream, LeaseKeeper,
    PutOptions, TxnOp,
};

use super::convert::{key_value, split};
use super::failure::Failure;
use super::lanes::Purpose;
use super::{EtcdConfig, EtcdConfigError, EtcdReader};
use crate::backend::txn_rules::check_txn_shape;
use crate::backend::{
    Backend, BackendError, ChangedRequest, ChangedResponse, Compare, KeyRange, Op, OpResponse, RangeRequest,
    RangeResponse, ReadBackend, Space, Txn, TxnResponse, Watch,
};
use crate::limits::KEEP_ALIVE_STREAMS;

/// etcd as a broker uses it. Clones share connections.
#[derive(Clone, Debug)]
pub struct Etcd {
    reader: EtcdReader,
    keepers: Arc<Keepers>,
}

/// Open keep-alive streams by lease. A call takes one out, and puts it back if all went well.
#[derive(Default)]
struct Keepers(Mutex<BTreeMap<i64, (LeaseKeeper, LeaseKeepAliveStream)>>);

impl Etcd {
    /// Checks the configuration. Connects and logs in when the first call is made.
    pub async fn new(config: &EtcdConfig) -> Result<Self, EtcdConfigError> {
        Ok(Self { reader: EtcdReader::new(config).await?, keepers: Arc::default() })
    }

    /// The read side alone.
    pub fn reader(&self) -> &EtcdReader {
        &self.reader
    }

    /// Opening a stream keeps the lease alive for a first time; how long it now has, only a second
    /// one tells.
    async fn keeper(&self, lease: i64) -> Result<(LeaseKeeper, LeaseKeepAliveStream), Failure> {
        if let Some(keeper) = self.keepers.take(lease) {
            return Ok(keeper);
        }
        match self.reader.session.leases().keep_alive(lease).await {
            Ok(keeper) => Ok(keeper),
            Err(etcd_client::Error::LeaseKeepAliveError(why)) if why.contains("not found") => {
                Err(Failure::LeaseGone)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn keep_alive(&self, lease: i64) -> Result<i64, Failure> {
        let (mut keeper, mut stream) = self.keeper(lease).await?;
        keeper.keep_alive().await?;
        let LeaseKeepAliveResponse(response) = stream
            .message()
            .await?
            .ok_or_else(|| Failure::Lost("etcd has closed the keep-alive stream".to_owned()))?;
        if response.id != lease {
            return Err(Failure::Refused(BackendError::Broken(format!("lease {} answers", response.id))));
        }
        if response.ttl <= 0 {
            return Err(Failure::LeaseGone);
        }
        self.keepers.put(lease, (keeper, stream));
        Ok(response.ttl)
    }
}

#[async_trait]
impl ReadBackend for Etcd {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, BackendError> {
        self.reader.range(request).await
    }

    async fn changed(&self, request: ChangedRequest) -> Result<ChangedResponse, BackendError> {
        self.reader.changed(request).await
    }

    async fn watch(&self, keys: KeyRange, revision: i64) -> Result<Box<dyn Watch>, BackendError> {
        self.reader.watch(keys, revision).await
    }
}

#[async_trait]
impl Backend for Etcd {
    async fn txn(&self, txn: Txn) -> Result<TxnResponse, BackendError> {
        check_txn_shape(&txn)?;
        let session = &self.reader.session;
        let send = || {
            let mut kv = session.kv();
            let request = request_of(&txn);
            async move { Ok(kv.txn(request).await?) }
        };
        let response = session.call(Purpose::Kv, send).await;
        let etcd_client::TxnResponse(response) =
            response.map_err(|failure| failure.of_write(first_lease(&txn)))?;
        let revision = response.header.as_ref().map(|header| header.revision);
        // It was executed; only what it answered is not known.
        let unreadable =
            || BackendError::OutcomeUnknown("the answer to a transaction makes no sense".to_owned());
        response_of(response, revision.ok_or_else(unreadable)?).ok_or_else(unreadable)
    }

    async fn lease_grant(&self, ttl_s: i64) -> Result<i64, BackendError> {
        let session = &self.reader.session;
        let send = || {
            let mut leases = session.leases();
            async move { Ok(leases.grant(ttl_s, None).await?) }
        };
        let response = session.call(Purpose::Lease, send).await;
        response.map(|granted| granted.id()).map_err(|failure| failure.of_write(0))
    }

    async fn lease_keep_alive(&self, lease: i64) -> Result<i64, BackendError> {
        let result = self.reader.session.call(Purpose::Lease, || self.keep_alive(lease)).await;
        result.map_err(|failure| failure.of_write(lease))
    }

    async fn lease_revoke(&self, lease: i64) -> Result<(), BackendError> {
        drop(self.keepers.take(lease));
        let session = &self.reader.session;
        let send = || {
            let mut leases = session.leases();
            async move { Ok(leases.revoke(lease).await?) }
        };
        let response = session.call(Purpose::Lease, send).await;
        response.map(|_| ()).map_err(|failure| failure.of_write(lease))
    }

    async fn compact(&self, revision: i64) -> Result<(), BackendError> {
        let session = &self.reader.session;
        let send = || {
            let mut kv = session.kv();
            async move { Ok(kv.compact(revision, None).await?) }
        };
        match session.call(Purpose::Kv, send).await {
            Ok(_) | Err(Failure::Refused(BackendError::Compacted { .. })) => Ok(()),
            Err(failure) => Err(failure.of_write(0)),
        }
    }

    async fn space(&self) -> Result<Option<Space>, BackendError> {
        let session = &self.reader.session;
        let send = || {
            let mut maintenance = session.maintenance();
            async move { Ok(maintenance.status().await?) }
        };
        let status = session.call(Purpose::Kv, send).await.map_err(Failure::of_read)?;
        let bytes = |number: i64| u64::try_from(number).unwrap_or(0);
        Ok(Some(Space {
            file_bytes: bytes(status.db_size()),
            used_bytes: bytes(status.raft_used_db_size()),
            quota_bytes: Some(bytes(status.db_size_quota())).filter(|quota| *quota > 0),
        }))
    }
}

impl Keepers {
    fn take(&self, lease: i64) -> Option<(LeaseKeeper, LeaseKeepAliveStream)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&lease)
    }

    fn put(&self, lease: i64, keeper: (LeaseKeeper, LeaseKeepAliveStream)) {
        let mut keepers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if keepers.len() < KEEP_ALIVE_STREAMS {
            keepers.insert(lease, keeper);
        }
    }
}

impl std::fmt::Debug for Keepers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keepers").finish_non_exhaustive()
    }
}

fn request_of(txn: &Txn) -> etcd_client::Txn {
    let compares: Vec<_> = txn.compares.iter().map(compare_of).collect();
    let then: Vec<_> = txn.then.iter().map(op_of).collect();
    let otherwise: Vec<_> = txn.otherwise.iter().map(op_of).collect();
    etcd_client::Txn::new().when(compares).and_then(then).or_else(otherwise)
}

fn compare_of(compare: &Compare) -> etcd_client::Compare {
    match compare {
        Compare::CreateRevision(key, revision) => {
            etcd_client::Compare::create_revision(key.to_vec(), CompareOp::Equal, *revision)
        }
        Compare::ModRevision(key, revision) => {
            etcd_client::Compare::mod_revision(key.to_vec(), CompareOp::Equal, *revision)
        }
        Compare::Value(key, value) => {
            etcd_client::Compare::value(key.to_vec(), CompareOp::Equal, value.to_vec())
        }
    }
}

fn op_of(op: &Op) -> TxnOp {
    match op {
        Op::Put { key, value, lease } => {
            TxnOp::put(key.to_vec(), value.to_vec(), Some(PutOptions::new().with_lease(*lease)))
        }
        Op::Delete(keys) => {
            let (key, end) = split(keys);
            TxnOp::delete(key, end.map(|end| DeleteOptions::new().with_range(end)))
        }
        Op::Range(keys) => {
            let (key, end) = split(keys);
            TxnOp::get(key, end.map(|end| GetOptions::new().with_range(end)))
        }
        Op::Txn(nested) => TxnOp::txn(request_of(nested)),
    }
}

/// `None` if a step has no answer. Nested transactions happen at the revision of the whole.
fn response_of(response: PbTxnResponse, revision: i64) -> Option<TxnResponse> {
    let step = |op: PbResponseOp| {
        Some(match op.response? {
            PbTxnOpResponse::ResponsePut(_) => OpResponse::Put,
            PbTxnOpResponse::ResponseDeleteRange(deleted) => OpResponse::Deleted(deleted.deleted),
            PbTxnOpResponse::ResponseRange(range) => {
                OpResponse::Range(range.kvs.into_iter().map(key_value).collect())
            }
            PbTxnOpResponse::ResponseTxn(nested) => OpResponse::Txn(response_of(nested, revision)?),
        })
    };
    let responses = response.responses.into_iter().map(step).collect::<Option<Vec<_>>>()?;
    Some(TxnResponse { revision, succeeded: response.succeeded, responses })
}

/// The lease to name when etcd says that one is gone but not which. Nobody here uses two in one
/// transaction.
fn first_lease(txn: &Txn) -> i64 {
    let lease = |op: &Op| match op {
        Op::Put { lease, .. } => *lease,
        Op::Delete(_) | Op::Range(_) => 0,
        Op::Txn(nested) => first_lease(nested),
    };
    txn.then.iter().chain(&txn.otherwise).map(lease).find(|lease| *lease != 0).unwrap_or(0)
}
