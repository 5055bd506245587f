//! A metadata store that is restored from a backup, beside somebody else who writes to it.

use std::sync::Arc;

use kafka_protocol::records::Compression;
use rand::SeedableRng;
use rand::rngs::StdRng;
use strandline_metadata::backend::embedded::Embedded;
use strandline_metadata::backend::{Op, Txn};
use strandline_metadata::keys::Key;
use strandline_metadata::snapshot::Maintainer;
use strandline_storage::store::ObjectStoreBackend;

use super::*;
use crate::Broker;
use crate::records::tests::batch;
use crate::run::{OpenError, Opened};
use crate::testing::{NOW_MS, TestClient, World};

/// No job runs by itself.
const FLAGS: [&str; 4] = ["--put-budget-per-s", "1000", "--job-interval-ms", "86400000"];

/// A cluster, and a backup of its metadata that is older than they are.
struct BackedUp {
    world: World,
    backup: Embedded,
    opened: Opened,
}

fn maintainer(broker: &Broker) -> Maintainer {
    let Broker { replica, committer, sessions, clock, store, .. } = broker;
    Maintainer::new(replica.clone(), committer.clone(), sessions.clone(), store.clone(), clock.clone())
}

impl BackedUp {
    /// Five records are in the backup, and three come afterwards.
    async fn new() -> Self {
        let world = World::new();
        let opened = world.broker(1, &FLAGS).await;
        let mut client = TestClient::connect(&opened.broker);
        client.create_topic("t", 1, &[]).await;
        for _ in 0..5 {
            client.produce("t", [batch(Compression::None, NOW_MS, 1)]).await;
        }
        maintainer(&opened.broker).run_once().await.unwrap();
        let backup = world.backend.backup();
        for _ in 0..3 {
            client.produce("t", [batch(Compression::None, NOW_MS, 1)]).await;
        }
        Self { world, backup, opened }
    }

    /// The world with the metadata of the backup, in which a neighbour has written since.
    async fn restored(&self) -> World {
        self.opened.broker.tasks.abort_all();
        let backend = self.backup.clone();
        for number in 0..600 {
            let put = Op::put(format!("/neighbour/{number}"), "x");
            backend.txn(Txn { then: vec![put], ..Txn::default() }).await.unwrap();
        }
        World { backend, ..self.world.clone() }
    }

    async fn objects(&self) -> usize {
        self.world.store.list("wal/", None, 1000).await.unwrap().len()
    }

    async fn light_beacon(&self) {
        let broker = &self.opened.broker;
        let commits = broker.replica.read(|view| view.commits);
        let beacon = Beacon::new(&broker.cluster.cluster_id, commits.count, commits.revision, NOW_MS);
        beacon.write(self.world.store.as_ref()).await.unwrap();
    }
}

#[track_caller]
fn assert_refused(opened: &Result<Opened, OpenError>, why: &str) {
    let Err(error @ OpenError::Load(LoadError::Restored(_))) = opened else { panic!("{opened:?}") };
    assert!(error.to_string().contains("restored from a backup"), "{error}");
    assert!(error.to_string().contains(why), "{error}");
}

#[tokio::test]
async fn a_restored_store_is_known_by_its_count_whatever_its_revision_is() {
    let backed_up = BackedUp::new().await;
    backed_up.light_beacon().await;
    let objects = backed_up.objects().await;
    let restored = backed_up.restored().await;
    assert_refused(&restored.try_broker(1, &FLAGS).await, "transactions of the log");
    assert_eq!(backed_up.objects().await, objects, "nothing is deleted");
}

#[tokio::test]
async fn a_restored_store_is_known_by_a_snapshot_that_it_never_made() {
    let backed_up = BackedUp::new().await;
    maintainer(&backed_up.opened.broker).run_once().await.unwrap();
    let restored = backed_up.restored().await;
    assert_refused(&restored.try_broker(1, &FLAGS).await, "transactions of the log");
    // A build that counted nothing has written the manifest: what tells is its checkpoint.
    let evidence = Evidence::read(restored.store.as_ref()).await.unwrap();
    let manifest = evidence.manifest.unwrap();
    assert!(manifest.stamp.commits > 0);
    let view = load_as_it_is(&restored.backend, &keys(&backed_up), restored.store.as_ref()).await.unwrap();
    assert!(view.state.checkpoints().iter().all(|c| c.revision != manifest.revision));
}

fn keys(backed_up: &BackedUp) -> strandline_metadata::keys::Keyspace {
    backed_up.opened.broker.replica.keys().clone()
}

#[tokio::test]
async fn a_broker_that_runs_deletes_nothing_once_its_store_was_restored() {
    let backed_up = BackedUp::new().await;
    // The broker that looks was started from the backup before anything told that it is one.
    let restored = backed_up.restored().await;
    let mut opened = restored.broker(1, &FLAGS).await;
    assert!(opened.broker.replica.check_bucket().await.unwrap().is_none());
    backed_up.light_beacon().await;
    opened.broker.replica.check_beacon().await.unwrap_err();
    let reason = tokio::time::timeout(std::time::Duration::from_secs(30), opened.fatal.recv()).await;
    let reason = reason.unwrap().unwrap().to_string();
    assert!(reason.contains("restored from a backup"), "{reason}");
}

#[tokio::test]
async fn an_operator_who_accepts_what_is_lost_goes_on_from_the_backup() {
    let backed_up = BackedUp::new().await;
    maintainer(&backed_up.opened.broker).run_once().await.unwrap();
    backed_up.light_beacon().await;
    let restored = backed_up.restored().await;
    assert_refused(&restored.try_broker(1, &FLAGS).await, "");
    let (keys, cluster_id) = (keys(&backed_up), backed_up.opened.broker.cluster.cluster_id.clone());
    let recovery = Recovery {
        bucket: Bucket {
            backend: &restored.backend,
            keys: &keys,
            store: restored.store.as_ref(),
            cluster_id: &cluster_id,
        },
    };
    let loss = recovery.assess().await.unwrap();
    assert!(!loss.is_none() && loss.known_commits > loss.commits, "{loss:?}");
    assert_eq!((loss.objects, loss.snapshot_objects.len(), loss.beacon_at_ms), (3, 1, NOW_MS));
    assert!(loss.to_string().contains("at least") && loss.to_string().contains("3 objects"), "{loss}");
    let mut rng = StdRng::seed_from_u64(1);
    let put = Op::put(keys.encode(&Key::Broker(9)), "one that goes on");
    restored.backend.txn(Txn { then: vec![put], ..Txn::default() }).await.unwrap();
    let refused = recovery.accept(&loss, NOW_MS, &mut rng).await.unwrap_err();
    assert!(matches!(&refused, RecoverError::BrokersRun(ids) if ids.contains(&9)), "{refused}");
    let gone = Op::Delete(keys.brokers());
    restored.backend.txn(Txn { then: vec![gone], ..Txn::default() }).await.unwrap();
    recovery.accept(&loss, NOW_MS, &mut rng).await.unwrap();
    assert!(recovery.assess().await.unwrap().is_none());

    let opened = restored.broker(1, &FLAGS).await;
    let end =
        opened.broker.replica.read(|view| view.state.topics().values().next().unwrap().partitions()[0].end());
    assert_eq!(end, 5, "the records of the backup, and no other");
    assert_eq!(opened.broker.replica.odd_since(), None);
}

#[tokio::test(start_paused = true)]
async fn brokers_of_a_cluster_refuse_another_bucket() {
    let world = World::new();
    let opened = world.broker(1, &FLAGS).await;
    let elsewhere = World { store: Arc::new(ObjectStoreBackend::memory()), ..world.clone() };
    let refused = elsewhere.try_broker(2, &FLAGS).await;
    let Err(error @ OpenError::Bucket(_)) = &refused else { panic!("{refused:?}") };
    assert!(error.to_string().contains("store_url"), "{error}");
    assert!(elsewhere.store.list("", None, 10).await.unwrap().is_empty(), "nothing is written to it");
    let backend: Arc<dyn Backend> = Arc::new(world.backend.clone());
    let keys = opened.broker.replica.keys();
    let audit = crate::fsck::run(&backend, &elsewhere.store, keys, false).await;
    assert!(matches!(audit, Err(crate::fsck::FsckError::Bucket(_))), "{audit:?}");
    assert!(crate::fsck::run(&backend, &world.store, keys, false).await.unwrap().is_clean());
}
