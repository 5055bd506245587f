//! One broker's metadata side over an embedded store: what tests of the log and of groups share.

use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use strandline_metadata::backend::Backend;
use strandline_metadata::backend::embedded::Embedded;
use strandline_metadata::backend::faulty::{Faults, FaultyBackend};
use strandline_metadata::brokers::{self, Registration};
use strandline_metadata::commit::SessionCell;
use strandline_metadata::keys::Keyspace;
use strandline_metadata::replica::{NoObserver, Replica};
use strandline_metadata::values::{BrokerValue, ClusterValue, VALUE_FORMAT};
use strandline_storage::store::{ObjectStoreBackend, Store};
use tokio::task::JoinSet;
use uuid::Uuid;

/// A registered broker that follows the cluster, without its writers.
pub(crate) struct Side {
    pub(crate) replica: Replica,
    pub(crate) sessions: SessionCell,
    pub(crate) registration: Registration,
    /// What goes wrong between it and the store.
    pub(crate) faults: Faults,
    /// Its loops.
    pub(crate) tasks: JoinSet<()>,
}

pub(crate) fn keys() -> Keyspace {
    Keyspace::new("test").unwrap()
}

pub(crate) fn memory() -> Arc<dyn Store> {
    Arc::new(ObjectStoreBackend::memory())
}

pub(crate) async fn cluster(backend: &dyn Backend) -> ClusterValue {
    brokers::ensure_cluster(backend, &keys(), &mut StdRng::seed_from_u64(1)).await.unwrap()
}

fn value(node_id: i32) -> BrokerValue {
    BrokerValue {
        format: VALUE_FORMAT,
        node_id,
        process_id: Uuid::from_u128(node_id.unsigned_abs().into()),
        host: "h".to_owned(),
        port: 1,
        zone: String::new(),
        version: String::new(),
        metrics_url: String::new(),
        registered_at_ms: 0,
        draining: false,
    }
}

impl Side {
    pub(crate) async fn open(backend: &Embedded, store: &Arc<dyn Store>, node_id: i32) -> Self {
        let faulty = FaultyBackend::new(Arc::new(backend.clone()), node_id.unsigned_abs().into());
        let faults = faulty.faults();
        let backend: Arc<dyn Backend> = Arc::new(faulty);
        let cluster = cluster(backend.as_ref()).await;
        let (replica, follow, barrier) =
            Replica::open(backend.clone(), keys(), store.clone(), Box::new(NoObserver)).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(follow.run().await) });
        tasks.spawn(barrier.run());
        let registration =
            brokers::register(backend.as_ref(), &keys(), &cluster.cluster_id, &value(node_id), 60)
                .await
                .unwrap();
        replica.wait_applied(registration.session.incarnation).await;
        let sessions = SessionCell::default();
        sessions.begin(registration.session);
        Self { replica, sessions, registration, faults, tasks }
    }
}
