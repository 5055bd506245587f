//! What is below the brokers is not theirs any more: etcd was restored from a backup while a
//! neighbour writes to it, the bucket is another one, two objects have changed places. Each must be
//! noticed: nothing is served or deleted, and with the right things back everything goes on.

use std::collections::BTreeSet;
use std::time::Duration;

use strandline_broker::fsck::{self, Finding};
use strandline_metadata::backend::embedded::Embedded;
use strandline_metadata::backend::{Backend, KeyRange, Op, RangeRequest, ReadBackend, Txn};
use strandline_metadata::evidence::Evidence;
use strandline_metadata::keys::Key;
use strandline_storage::path::ObjectId;
use strandline_tests::client::{Client, ClientError};
use tokio::time::{sleep, timeout};

use crate::scenario::{TOPIC, World};

/// Time in which a broker must have refused.
const REFUSAL: Duration = Duration::from_mins(3);

/// A backup of etcd, made at some moment.
pub(crate) async fn backup(world: &World) -> Option<Embedded> {
    if world.plan.strangers == 0 {
        return None;
    }
    sleep(world.rare().ms(2_000, 15_000)).await;
    world.outside.trace.note("somebody makes a backup of etcd");
    Some(world.outside.switch.now().backup())
}

/// Everything of it, one after the other.
pub(crate) async fn visit(world: &World, backup: Option<Embedded>) {
    let Some(backup) = backup else { return };
    restored(world, backup).await;
    wrong_bucket(world).await;
    exchanged(world).await;
}

/// Every broker must refuse to start, and say this.
async fn all_refuse(world: &World, why: &str) {
    world.outside.monitor.expect_refusals();
    for node in &world.nodes {
        node.start();
    }
    let refused = async {
        loop {
            let refusals = world.outside.monitor.refusals();
            if world.nodes.iter().all(|node| refusals.iter().any(|(id, _)| *id == node.id)) {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let in_time = timeout(REFUSAL, refused).await.is_ok();
    for node in &world.nodes {
        node.kill();
    }
    let refusals = world.outside.monitor.refusals();
    if !in_time || !refusals.iter().all(|(_, reason)| reason.contains(why)) {
        world.history.anomaly("stranger", format!("not all brokers refuse because of {why:?}: {refusals:?}"));
    }
    world.outside.monitor.expect_none();
}

async fn commits(backend: &dyn ReadBackend, world: &World) -> (i64, i64) {
    let keys = KeyRange::Key(world.outside.keys.encode(&Key::Commits));
    let request = RangeRequest { keys, revision: None, limit: 1, keys_only: false };
    let found = backend.range(request).await.expect("memory can be read");
    (found.revision, found.kvs.first().map_or(0, |kv| kv.version))
}

async fn objects(world: &World) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut after = None;
    loop {
        let page = world.outside.store.list("", after.as_ref(), 1000).await.expect("memory can be listed");
        let Some(last) = page.last() else { return found };
        after = Some(last.key.clone());
        found.extend(page.into_iter().map(|meta| meta.key.to_string()));
    }
}

async fn restored(world: &World, backup: Embedded) {
    let (revision, _) = commits(world.outside.backend.as_ref(), world).await;
    let (old_revision, old_commits) = commits(&backup, world).await;
    let evidence = Evidence::read(world.outside.store.as_ref()).await.expect("memory can be read");
    if evidence.commits() <= old_commits {
        world.outside.trace.note("the backup lacks nothing that the bucket knows of");
        return;
    }
    for node in &world.nodes {
        node.kill();
    }
    // A PUT or DELETE that is under way arrives.
    sleep(Duration::from_secs(10)).await;
    let before = objects(world).await;
    for number in 0..revision - old_revision + 100 {
        let put = Op::put(format!("/neighbour/{number}"), "x");
        backup.txn(Txn { then: vec![put], ..Txn::default() }).await.expect("memory takes it");
    }
    world.outside.trace.note("etcd is restored from the backup, and its revision is higher than ever");
    let right = world.outside.switch.now();
    world.outside.switch.replace(backup);
    all_refuse(world, "restored from a backup").await;
    world.outside.switch.replace(right);
    let gone: Vec<String> = before.difference(&objects(world).await).cloned().collect();
    if !gone.is_empty() {
        world.history.anomaly("stranger", format!("a restored etcd had these objects deleted: {gone:?}"));
    }
    goes_on(world, "the right etcd").await;
}

async fn wrong_bucket(world: &World) {
    for node in &world.nodes {
        node.kill();
        node.set_elsewhere(true);
    }
    world.outside.trace.note("every broker is started on another bucket");
    all_refuse(world, "not the bucket").await;
    let found = world.outside.other_store.list("", None, 10).await.expect("memory can be listed");
    if !found.is_empty() {
        world.history.anomaly("stranger", format!("something was written to the wrong bucket: {found:?}"));
    }
    for node in &world.nodes {
        node.set_elsewhere(false);
    }
    goes_on(world, "the right bucket").await;
}

async fn goes_on(world: &World, what: &str) {
    if !world.all_open().await {
        world.history.anomaly("stranger", format!("the brokers are not open again with {what}"));
    }
}

/// Two objects of one length change places.
async fn exchanged(world: &World) {
    let Some(broker) = world.nodes[0].broker() else { return };
    let state = broker.replica().state();
    let mut of_length = std::collections::BTreeMap::<u64, Vec<ObjectId>>::new();
    for (id, object) in state.objects() {
        of_length.entry(object.bytes).or_default().push(*id);
    }
    let Some([one, other]) = of_length.values().find_map(|ids| ids.first_chunk::<2>().copied()) else {
        world.outside.trace.note("no two objects have the same length");
        return;
    };
    world.outside.trace.note(&format!("objects {one} and {other} change places"));
    exchange(world, one, other).await;
    let (backend, store) = (&world.outside.backend, &world.outside.store);
    match fsck::run(backend, store, &world.outside.keys, true).await {
        Ok(report) => {
            for object in [one, other] {
                let names =
                    |f: &Finding| matches!(f, Finding::Object { object: found, .. } if *found == object);
                if !report.findings.iter().any(names) {
                    world.history.anomaly("stranger", format!("the audit does not find {object}: {report}"));
                }
            }
        }
        Err(error) => world.history.anomaly("stranger", format!("no audit: {error}")),
    }
    // A broker that starts now has nothing in memory.
    world.nodes[0].kill();
    goes_on(world, "two objects exchanged").await;
    let placed = state.topics().iter().flat_map(|(_, topic)| (0..).zip(topic.partitions()));
    let place = placed.flat_map(|(partition, p)| p.ranges().iter().map(move |range| (partition, *range)));
    let first = place.into_iter().find(|(_, range)| range.object == one || range.object == other);
    if let Some((partition, range)) = first
        && state.topics().len() == 1
    {
        let mut client = Client::connect(&world.nodes[0].address()).await.expect("an open broker is reached");
        let answer = client.fetch(TOPIC, partition, range.base_offset, 0).await;
        if !matches!(&answer, Err(ClientError::Kafka(kafka_protocol::ResponseError::KafkaStorageError))) {
            world.history.anomaly("stranger", format!("an exchanged object is served: {answer:?}"));
        }
    }
    exchange(world, one, other).await;
}

async fn exchange(world: &World, one: ObjectId, other: ObjectId) {
    let store = &world.outside.store;
    let [first, second] = [store.get(&one.key(), None).await, store.get(&other.key(), None).await]
        .map(|r| r.expect("it is there"));
    store.put(&one.key(), second.into()).await.expect("memory takes it");
    store.put(&other.key(), first.into()).await.expect("memory takes it");
}
