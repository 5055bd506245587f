//! Registering a broker, and what the whole cluster agrees on.
//!
//! A registration is a leased key; its create revision is the broker's incarnation, and every
//! transaction of the broker compares it. So a broker whose registration went can commit nothing
//! any more (invariant 5).

use std::fmt::Write as _;

use bytes::Bytes;
use rand::{Rng, RngExt};

use crate::backend::{Backend, BackendError, Compare, KeyRange, Op, OpResponse, RangeRequest, Txn};
use crate::commit::{Change, CommitError, Committer, Session, Settled, Trace, Verdict, settle};
use crate::keys::{Key, Keyspace};
use crate::record::{Body, FeatureLevel};
use crate::state::FEATURE_LEVEL;
use crate::values::{BrokerValue, ClusterValue, UnknownFields, VALUE_FORMAT, Value, ValueError};

/// Why a broker cannot register.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The metadata store does not answer.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A stored value cannot be read.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// The cluster demands more than this build can do.
    #[error("the cluster's feature level is {0}, this build knows {FEATURE_LEVEL}: use a newer build")]
    FeatureLevel(u32),
    /// The cluster's own key is gone, or that of another cluster.
    #[error("the metadata store does not hold cluster {0} any more")]
    OtherCluster(String),
    /// Another process registered the same node id in between.
    #[error("another process registered node id {0} at the same time")]
    Raced(i32),
}

/// A registration that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Under which the broker may commit.
    pub session: Session,
    /// The lease that keeps the registration.
    pub lease: i64,
}

/// Reads `cluster`, or writes it if this is the first broker: then with a new id, 22 characters as
/// Kafka's own.
pub async fn ensure_cluster(
    backend: &dyn Backend,
    keys: &Keyspace,
    rng: &mut (dyn Rng + Send),
) -> Result<ClusterValue, RegisterError> {
    let key = keys.encode(&Key::Cluster);
    let mut cluster_id = String::new();
    for _ in 0..11 {
        // Writing into a string cannot fail.
        let _ = write!(cluster_id, "{:02x}", rng.random::<u8>());
    }
    let (feature_level, unknown) = (FEATURE_LEVEL, UnknownFields::new());
    let fresh = ClusterValue { format: VALUE_FORMAT, cluster_id, feature_level, unknown };
    let create = Txn {
        compares: vec![Compare::CreateRevision(key.clone(), 0)],
        then: vec![Op::put(key.clone(), fresh.encode())],
        otherwise: vec![Op::Range(KeyRange::Key(key.clone()))],
    };
    let response = backend.txn(create).await?;
    if response.succeeded {
        return Ok(fresh);
    }
    match response.responses.first() {
        Some(OpResponse::Range(kvs)) if !kvs.is_empty() => {
            let known = ClusterValue::decode(&kvs[0].value)?;
            if known.feature_level > FEATURE_LEVEL {
                return Err(RegisterError::FeatureLevel(known.feature_level));
            }
            Ok(known)
        }
        _ => Err(BackendError::Broken("a key exists and cannot be read".to_owned()).into()),
    }
}

/// The highest feature level that a build of this version knows. Registrations name their version,
/// so before the level is raised it is known whether everybody can follow.
pub fn level_known_to(version: &str) -> u32 {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= (0, 5) => FEATURE_LEVEL,
        (Some(0), Some(4)) => 4,
        (Some(0), Some(3)) => 3,
        (Some(0), Some(2)) => 2,
        _ => 1,
    }
}

/// Raises the feature level of a cluster, or changes the version of its transactions, whose own key
/// is `cluster` since `revision`, for whoever comes and for the state machine at once. Nobody
/// registers afterwards who does not know the level; an older broker that registers in the same
/// moment stops when it meets the record.
pub fn raise_level(
    keys: &Keyspace,
    cluster: &ClusterValue,
    revision: i64,
    level: u32,
    transaction_version: Option<u32>,
) -> Change {
    let key = keys.encode(&Key::Cluster);
    let raised = ClusterValue { feature_level: level.max(cluster.feature_level), ..cluster.clone() };
    Change {
        compares: vec![Compare::ModRevision(key.clone(), revision)],
        ops: vec![Op::put(key, raised.encode())],
        body: Some(Body::FeatureLevel(FeatureLevel {
            level,
            transaction_version: transaction_version.map_or(0, |version| version + 1),
        })),
    }
}

/// Reads `cluster`, and writes nothing: what it says, and since which revision. `None` if there is
/// no such cluster.
pub async fn read_cluster(
    backend: &dyn Backend,
    keys: &Keyspace,
) -> Result<Option<(ClusterValue, i64)>, RegisterError> {
    let key = KeyRange::Key(keys.encode(&Key::Cluster));
    let read = backend.range(RangeRequest { keys: key, revision: None, limit: 1, keys_only: false }).await?;
    match read.kvs.first() {
        None => Ok(None),
        Some(kv) => Ok(Some((ClusterValue::decode(&kv.value)?, kv.mod_revision))),
    }
}

/// The registration of a node id as it is now, read linearizably: its incarnation, and its value
/// unless that cannot be read.
pub async fn registered(
    backend: &dyn Backend,
    keys: &Keyspace,
    node_id: i32,
) -> Result<Option<(Result<BrokerValue, ValueError>, i64)>, RegisterError> {
    let read = RangeRequest {
        keys: KeyRange::Key(keys.encode(&Key::Broker(node_id))),
        revision: None,
        limit: 1,
        keys_only: false,
    };
    let found = backend.range(read).await?;
    Ok(found.kvs.first().map(|kv| (BrokerValue::decode(&kv.value), kv.create_revision)))
}

/// The trace of a registration: the key, which is attached to a lease that only this attempt has.
#[derive(Debug)]
struct RegistrationTrace {
    key: Bytes,
    lease: i64,
}

impl Trace for RegistrationTrace {
    fn keys(&self) -> Vec<KeyRange> {
        vec![KeyRange::Key(self.key.clone())]
    }

    fn judge(&self, found: &[OpResponse]) -> Option<Verdict> {
        let [OpResponse::Range(kvs)] = found else { return None };
        Some(match kvs.first() {
            None => Verdict::Pending,
            Some(kv) if kv.lease == self.lease => Verdict::Executed(kv.create_revision),
            Some(_) => Verdict::Impossible,
        })
    }
}

/// Registers a broker of the cluster with this id under a new lease of `ttl_s` seconds. A
/// predecessor with the same node id is deleted first, in a transaction of its own: a put over its
/// key would keep the create revision, and let the old process commit.
pub async fn register(
    backend: &dyn Backend,
    keys: &Keyspace,
    cluster_id: &str,
    value: &BrokerValue,
    ttl_s: i64,
) -> Result<Registration, RegisterError> {
    // As it is now: its level may have been raised since this broker started.
    let cluster = read_cluster(backend, keys).await?.filter(|(cluster, _)| cluster.cluster_id == cluster_id);
    let (cluster, revision) = cluster.ok_or_else(|| RegisterError::OtherCluster(cluster_id.to_owned()))?;
    if cluster.feature_level > FEATURE_LEVEL {
        return Err(RegisterError::FeatureLevel(cluster.feature_level));
    }
    let key = keys.encode(&Key::Broker(value.node_id));
    if let Some((_, incarnation)) = registered(backend, keys, value.node_id).await? {
        let delete = Txn {
            compares: vec![Compare::CreateRevision(key.clone(), incarnation)],
            then: vec![Op::Delete(KeyRange::Key(key.clone()))],
            otherwise: Vec::new(),
        };
        // Whatever became of it: if a registration is there, creating another fails.
        backend.txn(delete).await?;
    }
    let lease = backend.lease_grant(ttl_s).await?;
    let create = Txn {
        compares: vec![
            Compare::CreateRevision(key.clone(), 0),
            Compare::ModRevision(keys.encode(&Key::Cluster), revision),
        ],
        then: vec![Op::Put { key: key.clone(), value: value.encode().into(), lease }],
        otherwise: vec![Op::Range(KeyRange::Key(key.clone()))],
    };
    let incarnation = match settle(backend, &create, &RegistrationTrace { key, lease }).await {
        Settled::Answered(response) => response.revision,
        Settled::Traced(revision) => revision,
        failed => {
            // A lease that is not used ends by itself; ending it now is only tidier.
            let _ = backend.lease_revoke(lease).await;
            return Err(match failed {
                Settled::Refused(error) => error.into(),
                // Somebody else is registered, or the level has been raised in this moment.
                _ => RegisterError::Raced(value.node_id),
            });
        }
    };
    Ok(Registration { session: Session { node_id: value.node_id, incarnation }, lease })
}

/// Changes the value of a live registration, without touching its create revision (for example:
/// draining).
pub async fn update(
    committer: &Committer,
    keys: &Keyspace,
    registration: &Registration,
    value: &BrokerValue,
) -> Result<(), CommitError> {
    let key = keys.encode(&Key::Broker(value.node_id));
    let change = Change {
        compares: vec![Compare::CreateRevision(key.clone(), registration.session.incarnation)],
        ops: vec![Op::Put { key, value: value.encode().into(), lease: registration.lease }],
        body: None,
    };
    committer.change(0, change).await.map(|_| ())
}
