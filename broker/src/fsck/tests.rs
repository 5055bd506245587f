//! The audit finds what was done to a store on purpose, and nothing where nothing was done.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::records::Compression;
use strandline_metadata::backend::{Backend, KeyRange, Op, RangeRequest, Txn};
use strandline_metadata::commit::Change;
use strandline_metadata::keys::{Key, Keyspace};
use strandline_metadata::record::{Body, Flush, FlushBatch, FlushPartition, FlushTopic, Trim, TrimPartition};
use strandline_metadata::snapshot::Maintainer;
use strandline_metadata::values::{SnapshotValue, Value};
use strandline_storage::store::Payload;

use super::*;
use crate::Broker;
use crate::records::tests::batch;
use crate::run::Opened;
use crate::testing::{NOW_MS, TestClient, World};

struct Audited {
    world: World,
    opened: Opened,
    backend: Arc<dyn Backend>,
}

impl Audited {
    /// A cluster with some records in two partitions.
    async fn new() -> Self {
        let world = World::new();
        let opened = world.broker(1, &["--linger-ms", "1", "--put-budget-per-s", "1000"]).await;
        let mut client = TestClient::connect(&opened.broker);
        client.create_topic("t", 2, &[]).await;
        for count in 1..=5 {
            client
                .produce(
                    "t",
                    [batch(Compression::None, NOW_MS, count), batch(Compression::None, NOW_MS, count)],
                )
                .await;
        }
        let backend: Arc<dyn Backend> = Arc::new(world.backend.clone());
        Self { world, opened, backend }
    }

    async fn report(&self, reads: bool) -> Report {
        let keys: &Keyspace = self.opened.broker.replica.keys();
        run(&self.backend, &self.world.store, keys, reads).await.unwrap()
    }

    /// The object that the first records of partition 1 are in.
    fn object(&self) -> ObjectId {
        let topic = self.opened.broker.replica.state().topics().values().next().cloned().unwrap();
        topic.partitions()[1].ranges().first().unwrap().object
    }

    fn maintainer(&self) -> Maintainer {
        let Broker { replica, committer, sessions, clock, .. } = self.opened.broker.as_ref();
        let store = self.world.store.clone();
        Maintainer::new(replica.clone(), committer.clone(), sessions.clone(), store, clock.clone())
    }

    /// Moves the start of both partitions.
    async fn trim(&self, log_start: u64) {
        let broker = &self.opened.broker;
        let topics = broker.replica.state().topics().clone();
        let topic_id = topics.keys().next().unwrap().as_bytes().to_vec();
        let partitions =
            (0..2).map(|partition| TrimPartition { topic_id: topic_id.clone(), partition, log_start });
        let body = Some(Body::Trim(Trim { partitions: partitions.collect() }));
        broker.committer.change(NOW_MS, Change { body, ..Change::default() }).await.unwrap();
    }

    async fn bytes(&self) -> Vec<u8> {
        self.world.store.get(&self.object().key(), None).await.unwrap().to_vec()
    }

    async fn put(&self, bytes: Vec<u8>) {
        self.world.store.put(&self.object().key(), Bytes::from(bytes).into()).await.unwrap();
    }
}

#[track_caller]
fn assert_found(report: &Report, object: ObjectId, part: &str) {
    let [Finding::Object { object: found, what }] = &report.findings[..] else {
        panic!("one finding is expected: {report}");
    };
    assert_eq!(*found, object);
    assert!(what.contains(part), "{what}");
}

#[tokio::test]
async fn nothing_is_found_where_all_is_well() {
    let audited = Audited::new().await;
    let report = audited.report(true).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.topics, report.partitions, report.records), (1, 2, 30));
    assert_eq!((report.orphans, report.in_flight, report.dead, report.foreign), (0, 0, 0, 0));
    assert!(report.objects > 0 && report.bytes_checked > 0, "{report}");
    let quick = audited.report(false).await;
    assert!(quick.is_clean() && quick.bytes_checked == 0, "{quick}");
}

#[tokio::test]
async fn an_object_that_was_removed_is_found_even_without_reading() {
    let audited = Audited::new().await;
    audited.world.store.delete(&audited.object().key()).await.unwrap();
    assert_found(&audited.report(false).await, audited.object(), "gone");
    assert_found(&audited.report(true).await, audited.object(), "gone");
}

#[tokio::test]
async fn a_truncated_object_is_found_even_without_reading() {
    let audited = Audited::new().await;
    let mut bytes = audited.bytes().await;
    bytes.truncate(bytes.len() - 1);
    audited.put(bytes).await;
    assert_found(&audited.report(false).await, audited.object(), "bytes instead of");
}

#[tokio::test]
async fn every_flipped_bit_of_an_object_is_found() {
    let audited = Audited::new().await;
    let bytes = audited.bytes().await;
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        audited.put(flipped).await;
        let report = audited.report(true).await;
        assert!(!report.is_clean(), "a flipped bit of byte {at} was not found");
    }
    audited.put(bytes).await;
    assert!(audited.report(true).await.is_clean());
}

#[tokio::test]
async fn records_that_lie_in_the_bytes_of_others_are_found() {
    let audited = Audited::new().await;
    let broker = &audited.opened.broker;
    let state = broker.replica.state();
    let (topic_id, topic) = state.topics().iter().next().unwrap();
    let range = topic.partitions()[1].ranges().first().copied().unwrap();
    let object = range.object;
    // A record that says that partition 0 goes on in an object in which partition 1 is already.
    let forged =
        FlushBatch { offsets: 1, bytes: u32::try_from(range.bytes).unwrap(), ..FlushBatch::default() };
    let partitions = vec![FlushPartition { partition: 0, position: range.position, batches: vec![forged] }];
    let topics = vec![FlushTopic { topic_id: topic_id.as_bytes().to_vec(), partitions }];
    let flush = Flush {
        object_number: object.number,
        object_salt: object.salt,
        object_bytes: state.objects()[&object].bytes,
        topics,
        ..Flush::default()
    };
    let outcome = broker.committer.flush(object.incarnation, NOW_MS, flush).await.unwrap().outcome().await;
    assert!(outcome.error.is_none());
    broker.replica.barrier().await.unwrap();
    assert_found(&audited.report(true).await, object, "same bytes");
}

#[tokio::test]
async fn what_nobody_refers_to_is_counted_and_no_finding() {
    let audited = Audited::new().await;
    let put = async |incarnation: i64| {
        let id = ObjectId::write(incarnation, 999, 1);
        audited.world.store.put(&id.key(), Bytes::from_static(b"never committed").into()).await.unwrap();
    };
    put(audited.object().incarnation).await;
    put(1_000_000).await;
    let report = audited.report(true).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.in_flight, report.orphans), (1, 1));
}

#[tokio::test]
async fn what_a_topic_takes_is_told_by_what_becomes_of_it() {
    let audited = Audited::new().await;
    let before = audited.report(true).await;
    let [TopicSpace { topic, space }] = &before.topics_space[..] else { panic!("{before}") };
    assert_eq!((topic.as_str(), space.dead, space.orphaned), ("t", 0, 0));
    // Objects are a little larger than what can be read of them.
    assert!(before.space.live == space.live && before.space.dead > 0, "{before}");
    // The first two objects of both partitions, and half of the third.
    audited.trim(3).await;
    let after = audited.report(true).await;
    let now = after.topics_space[0].space;
    assert_eq!((after.dead, now.live + now.dead, now.orphaned), (2, space.live, 0), "{after}");
    assert!(now.dead > 0 && after.to_string().contains(&format!("  t: {now}")), "{after}");
    // Without reading it is known of all together.
    let quick = audited.report(false).await;
    assert_eq!((quick.space, quick.topics_space[0].space.dead), (after.space, 0), "{quick}");
}

#[tokio::test]
async fn what_a_listed_snapshot_needs_and_is_gone_is_found() {
    let audited = Audited::new().await;
    let object = audited.object();
    audited.maintainer().run_once().await.unwrap();
    // Retention takes everything; the snapshot is of before that.
    audited.trim(15).await;
    let report = audited.report(true).await;
    assert!(report.is_clean() && report.objects == 0 && report.dead > 0, "{report}");
    audited.world.store.delete(&object.key()).await.unwrap();
    assert_found(&audited.report(false).await, object, "the snapshot of revision");
}

#[tokio::test]
async fn a_record_that_is_missing_behind_a_snapshot_is_found() {
    let audited = Audited::new().await;
    let mut maintainer = audited.maintainer();
    maintainer.run_once().await.unwrap();
    audited.trim(1).await;
    let keys = audited.opened.broker.replica.keys();
    let log = RangeRequest { keys: keys.log(), revision: None, limit: 0, keys_only: true };
    let records = audited.backend.range(log).await.unwrap().kvs;
    let last = records.into_iter().max_by_key(|kv| kv.mod_revision).unwrap();
    maintainer.run_once().await.unwrap();
    assert!(audited.report(false).await.is_clean());
    // The newest snapshot covers it; who starts from the one before needs it.
    let delete = Op::Delete(KeyRange::Key(last.key));
    audited.backend.txn(Txn { then: vec![delete], ..Txn::default() }).await.unwrap();
    let report = audited.report(false).await;
    let [Finding::State(what)] = &report.findings[..] else { panic!("one finding is expected: {report}") };
    assert!(what.contains("the log behind it"), "{what}");
}

/// A store in which the next snapshot is written, and the oldest deleted, while an audit looks at
/// that one.
#[derive(Debug)]
struct Overtaken {
    inner: Arc<dyn Store>,
    backend: Arc<dyn Backend>,
    keys: Keyspace,
    oldest: ObjectKey,
    /// What etcd names when the oldest is asked for, if it changes at all.
    then: Option<SnapshotValue>,
}

impl Overtaken {
    async fn name(&self, value: &SnapshotValue) {
        let put = Op::put(self.keys.encode(&Key::Snapshot), value.encode());
        self.backend.txn(Txn { then: vec![put], ..Txn::default() }).await.unwrap();
    }
}

#[async_trait::async_trait]
impl Store for Overtaken {
    async fn put(&self, key: &ObjectKey, payload: Payload) -> Result<(), StoreError> {
        self.inner.put(key, payload).await
    }

    async fn get(&self, key: &ObjectKey, range: Option<std::ops::Range<u64>>) -> Result<Bytes, StoreError> {
        if *key == self.oldest {
            if let Some(value) = &self.then {
                self.name(value).await;
            }
            self.inner.delete(key).await?;
        }
        self.inner.get(key, range).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&ObjectKey>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        self.inner.list(prefix, start_after, limit).await
    }
}

#[tokio::test]
async fn a_snapshot_that_is_gone_is_found_unless_a_newer_one_has_taken_its_place() {
    for moves in [false, true] {
        let audited = Audited::new().await;
        let replica = &audited.opened.broker.replica;
        let inner = audited.world.store.clone();
        let mut snapshots = Vec::new();
        for later in [0, 1] {
            // Two snapshots of different revisions.
            let mut state = replica.state();
            state.advance(state.revision() + later);
            snapshots.insert(
                0,
                snapshot::SnapshotWriter::default()
                    .write(inner.as_ref(), &state, snapshot::SnapshotStamp::default(), None)
                    .await
                    .unwrap(),
            );
        }
        let value = SnapshotValue { format: 1, snapshots: snapshots.clone(), trimmed_to: 0 };
        let newer = SnapshotValue { snapshots: vec![snapshots[0].clone()], ..value.clone() };
        let store = Overtaken {
            inner,
            backend: audited.backend.clone(),
            keys: replica.keys().clone(),
            oldest: ObjectKey::parse(&snapshots[1].object).unwrap(),
            then: moves.then_some(newer),
        };
        store.name(&value).await;
        let (keys, store): (_, Arc<dyn Store>) = (replica.keys(), Arc::new(store));
        let report = run(&audited.backend, &store, keys, false).await.unwrap();
        assert_eq!(report.is_clean(), moves, "{report}");
    }
}
