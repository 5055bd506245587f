//! Brokers' replicas and writers together over one embedded store: what happens when answers are
//! lost, when the watch is compacted away, when a snapshot is damaged, when etcd is restored from a
//! backup.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that goes wrong panics; the helpers here are part of the tests"
)]

mod common;

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use strandline_metadata::backend::embedded::Embedded;
use strandline_metadata::backend::faulty::{Fault, FaultPlan};
use strandline_metadata::backend::{
    Backend, BackendError, Compare, KeyRange, Op, RangeRequest, ReadBackend, Txn,
};
use strandline_metadata::commit::{self, Change, CommitError, Committer, Session, SessionCell};
use strandline_metadata::invariants;
use strandline_metadata::keys::{Key, Keyspace};
use strandline_metadata::record::{Body, Checkpoint, Flush, FlushBatch, FlushPartition, FlushTopic};
use strandline_metadata::replica::{LoadError, NoObserver, Replica};
use strandline_metadata::snapshot::{MaintainError, Maintainer};
use strandline_metadata::state::{BatchOutcome, Effects};
use strandline_metadata::topics;
use strandline_metadata::values::watermarks::WatermarksValue;
use strandline_metadata::values::{SnapshotValue, Value};
use strandline_metadata::watermarks::WatermarkWriter;
use strandline_storage::clock::SystemClock;
use strandline_storage::path::ObjectKey;
use strandline_storage::store::{self, Faulty, Store};
use tokio::time::timeout;
use uuid::Uuid;

use common::{Side, cluster, keys, memory};

const TOPIC: Uuid = Uuid::from_u128(42);

/// One broker's metadata side, with its loops running.
struct Node {
    side: Side,
    committer: Committer,
    objects: u64,
}

impl Deref for Node {
    type Target = Side;

    fn deref(&self) -> &Side {
        &self.side
    }
}

impl Node {
    async fn open(backend: &Embedded, store: &Arc<dyn Store>, node_id: i32) -> Self {
        let mut side = Side::open(backend, store, node_id).await;
        let (committer, commit_loop) = commit::committer(side.replica.clone(), side.sessions.clone());
        side.tasks.spawn(commit_loop.run());
        Self { side, committer, objects: 0 }
    }

    async fn create_topic(&self) {
        let topic = topics::new_topic(TOPIC, 1, std::collections::BTreeMap::new(), 0);
        self.committer.change(0, topics::create(&keys(), "t", &topic)).await.unwrap();
    }

    /// Commits one batch of `offsets` records; its outcome, or why there is none.
    async fn produce(&mut self, offsets: u32) -> Result<BatchOutcome, CommitError> {
        self.objects += 1;
        let batch = FlushBatch { offsets, bytes: 100, ..FlushBatch::default() };
        let partitions = vec![FlushPartition { partition: 0, position: 0, batches: vec![batch] }];
        let topics = vec![FlushTopic { topic_id: TOPIC.as_bytes().to_vec(), partitions }];
        let flush = Flush { object_number: self.objects, object_bytes: 200, topics, ..Flush::default() };
        let incarnation = self.registration.session.incarnation;
        let outcome = self.committer.flush(incarnation, 0, flush).await.unwrap().outcome().await;
        match outcome.error {
            None => Ok(outcome.outcomes[0]),
            Some(error) => Err(error),
        }
    }

    fn end(&self) -> i64 {
        self.replica.read(|view| view.state.partition(TOPIC, 0).map_or(-1, |p| p.end()))
    }

    fn watermarks(&self) -> WatermarkWriter {
        WatermarkWriter::new(self.replica.clone(), self.committer.clone())
    }

    fn maintainer(&self, store: &Arc<dyn Store>) -> Maintainer {
        let (replica, committer) = (self.replica.clone(), self.committer.clone());
        Maintainer::new(replica, committer, self.sessions.clone(), store.clone(), Arc::new(SystemClock))
    }
}

#[tokio::test(start_paused = true)]
async fn two_brokers_derive_the_same_offsets_and_the_barrier_is_current() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let mut one = Node::open(&backend, &store, 1).await;
    let mut two = Node::open(&backend, &store, 2).await;
    one.create_topic().await;
    two.replica.barrier().await.unwrap();
    for i in 0..20 {
        let (writer, reader) = if i % 2 == 0 { (&mut one, &mut two) } else { (&mut two, &mut one) };
        assert_eq!(writer.produce(3).await, Ok(BatchOutcome::Appended { base_offset: i * 3 }));
        reader.replica.barrier().await.unwrap();
        assert_eq!(reader.end(), (i + 1) * 3, "the barrier shows what was acknowledged elsewhere");
    }
    assert_eq!(one.replica.state(), two.replica.state());
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_resolved_and_nothing_is_applied_twice() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let mut node = Node::open(&backend, &store, 1).await;
    node.create_topic().await;
    for fault in [Fault::AnswerLost, Fault::Unavailable, Fault::ExecutedLater] {
        let before = node.end();
        node.faults.inject(fault);
        let outcome =
            timeout(Duration::from_mins(1), node.produce(2)).await.expect("every waiter gets an answer");
        assert_eq!(outcome, Ok(BatchOutcome::Appended { base_offset: before }), "{fault:?}");
        assert_eq!(node.end(), before + 2, "{fault:?}");
        node.replica.read(|view| invariants::check(&view.state)).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_was_refused_for_want_of_space_and_executed_all_the_same_is_acknowledged() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let mut node = Node::open(&backend, &store, 1).await;
    node.create_topic().await;
    node.faults.inject(Fault::NoSpaceBehind);
    assert_eq!(node.produce(2).await, Ok(BatchOutcome::Appended { base_offset: 0 }));
    // One that was not executed is refused, and leaves its numbers to the next.
    node.faults.inject(Fault::NoSpace);
    let refused = node.produce(2).await.unwrap_err();
    assert_eq!(refused, CommitError::Refused(BackendError::NoSpace));
    assert!(refused.is_certainly_not_committed());
    assert_eq!(node.produce(2).await, Ok(BatchOutcome::Appended { base_offset: 2 }));
    // So with a change that has no record: it leaves a trace as well.
    let key = keys().encode(&Key::Leader("job".to_owned()));
    let change = || Change { ops: vec![Op::put(key.clone(), "x")], ..Change::default() };
    node.faults.inject(Fault::NoSpace);
    let refused = node.committer.change(0, change()).await.unwrap_err();
    assert_eq!(refused, CommitError::Refused(BackendError::NoSpace));
    node.faults.inject(Fault::NoSpaceBehind);
    node.committer.change(0, change()).await.unwrap();
    assert_eq!(node.produce(2).await, Ok(BatchOutcome::Appended { base_offset: 4 }), "the session goes on");
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_was_taken_commits_nothing() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let mut old = Node::open(&backend, &store, 1).await;
    old.create_topic().await;
    old.produce(1).await.unwrap();
    // Another process of the same node id: delete, then create.
    let mut new = Node::open(&backend, &store, 1).await;
    assert_ne!(new.registration.session.incarnation, old.registration.session.incarnation);
    assert_eq!(old.produce(1).await, Err(CommitError::NotRegistered));
    assert_eq!(old.sessions.current(), None, "the old process knows that its session is over");
    assert_eq!(new.produce(1).await, Ok(BatchOutcome::Appended { base_offset: 1 }));
    new.replica.barrier().await.unwrap();
    assert_eq!(new.end(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_may_have_been_executed_before_the_registration_went_is_not_called_refused() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let mut node = Node::open(&backend, &store, 1).await;
    node.create_topic().await;
    node.produce(1).await.unwrap();
    // It is executed, its answer is lost, and nothing gets through for a while.
    let before = node.end();
    let (faults, lease, incarnation) =
        (node.faults.clone(), node.registration.lease, node.registration.session.incarnation);
    let under_way = Duration::from_millis(50);
    faults.set_plan(FaultPlan { call_delay: under_way..=under_way, ..FaultPlan::default() });
    faults.inject(Fault::AnswerLost);
    let meanwhile = async {
        while faults.count(Fault::AnswerLost) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        faults.set_plan(FaultPlan { unavailable: 1.0, ..FaultPlan::default() });
        // Then the registration is gone, and the incarnation is forgotten by another broker.
        backend.lease_revoke(lease).await.unwrap();
        let head = KeyRange::Key(keys().encode(&Key::Head(incarnation)));
        backend.txn(Txn { then: vec![Op::Delete(head)], ..Txn::default() }).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        faults.heal();
    };
    let (outcome, ()) = futures::join!(node.produce(2), meanwhile);
    let error = outcome.unwrap_err();
    assert!(!error.is_certainly_not_committed(), "{error:?}");
    node.replica.barrier().await.unwrap();
    assert_eq!(node.end(), before + 2, "it was executed");
}

#[tokio::test(start_paused = true)]
async fn a_head_that_somebody_else_moved_ends_the_session() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let mut node = Node::open(&backend, &store, 1).await;
    node.create_topic().await;
    // Two writers of the same incarnation: what no process may ever be. The second finds the head
    // moved.
    let sessions = SessionCell::default();
    let Session { node_id, incarnation } = node.registration.session;
    sessions.begin(Session { node_id, incarnation });
    let (twin, twin_loop) = commit::committer(node.replica.clone(), sessions.clone());
    node.side.tasks.spawn(twin_loop.run());
    let change = Change { body: Some(Body::Checkpoint(Checkpoint {})), ..Change::default() };
    // Nobody knows what the other one has done under these numbers.
    let error = twin.change(0, change).await.unwrap_err();
    assert!(!error.is_certainly_not_committed(), "{error}");
    assert_eq!(sessions.current(), None);
}

#[tokio::test(start_paused = true)]
async fn a_change_without_a_record_whose_answer_is_lost_is_found_out() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let node = Node::open(&backend, &store, 1).await;
    let key = keys().encode(&Key::Leader("job".to_owned()));
    let create = || Change {
        compares: vec![Compare::CreateRevision(key.clone(), 0)],
        ops: vec![Op::put(key.clone(), "x")],
        body: None,
    };
    for fault in [Fault::AnswerLost, Fault::ExecutedLater, Fault::Unavailable] {
        node.faults.inject(fault);
        assert_eq!(node.committer.change(0, create()).await, Ok(Effects::default()), "{fault:?}");
        // It is there already, and that answer is lost.
        node.faults.inject(fault);
        assert_eq!(node.committer.change(0, create()).await, Err(CommitError::Conflict), "{fault:?}");
        let delete = Change { ops: vec![Op::Delete(KeyRange::Key(key.clone()))], ..Change::default() };
        node.committer.change(0, delete).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_ready_at_the_same_time_shares_a_transaction() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let mut node = Node::open(&backend, &store, 1).await;
    node.create_topic().await;
    let [free, taken] = ["free", "taken"].map(|job| keys().encode(&Key::Leader(job.to_owned())));
    backend.txn(Txn { then: vec![Op::put(taken.clone(), "x")], ..Txn::default() }).await.unwrap();
    // The committer is kept busy until all of it waits.
    let slow = Duration::from_millis(50);
    node.faults.set_plan(FaultPlan { call_delay: slow..=slow, ..FaultPlan::default() });
    let (committer, session) = (node.committer.clone(), node.registration.session);
    let absent = |key: &Bytes| vec![Compare::CreateRevision(key.clone(), 0)];
    let busy = committer.change(0, Change::default());
    let waiting = async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let [free_put, taken_put] = [&free, &taken].map(|key| vec![Op::put(key.clone(), "y")]);
        futures::join!(
            node.produce(3),
            committer.write(session, absent(&free), free_put),
            committer.write(session, absent(&taken), taken_put),
        )
    };
    let (first, (produced, written, lost)) = futures::join!(busy, waiting);
    first.unwrap();
    assert_eq!(produced, Ok(BatchOutcome::Appended { base_offset: 0 }));
    assert_eq!(lost, Err(CommitError::Conflict), "it fails alone");
    let record = keys().encode(&Key::Log { incarnation: session.incarnation, sequence: 2 });
    let read = RangeRequest { keys: KeyRange::Key(record), revision: None, limit: 1, keys_only: false };
    let record = backend.range(read).await.unwrap().kvs.remove(0);
    assert_eq!(written, Ok(record.mod_revision), "one revision has both");
}

#[tokio::test(start_paused = true)]
async fn changes_with_records_share_a_transaction_and_who_has_lost_fails_alone() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let node = Node::open(&backend, &store, 1).await;
    node.create_topic().await;
    let create = |name: &str| {
        let topic = topics::new_topic(
            Uuid::from_u128(name.as_bytes()[0].into()),
            1,
            std::collections::BTreeMap::new(),
            0,
        );
        topics::create(&keys(), name, &topic)
    };
    let before = node.replica.newest_revision().await.unwrap();
    let names = ["a", "b", "c", "d"];
    let made = names.map(|name| node.committer.change_at(0, create(name)));
    let made = futures::future::join_all(made).await;
    let revisions: Vec<i64> = made.into_iter().map(|made| made.unwrap().1).collect();
    assert_eq!(revisions, [before + 1; 4], "all of them at one revision");
    // `t` exists: the others do not fail for it.
    let names = ["e", "t", "f"];
    let made = names.map(|name| node.committer.change(0, create(name)));
    let made = futures::future::join_all(made).await;
    assert!(made[0].is_ok() && made[2].is_ok(), "{made:?}");
    assert_eq!(made[1], Err(CommitError::Conflict));
    // Two that change the same key have different transactions.
    let made = [create("g"), create("g")].map(|change| node.committer.change(0, change));
    let made = futures::future::join_all(made).await;
    assert_eq!((made[0].is_ok(), &made[1]), (true, &Err(CommitError::Conflict)));
    let topics = node.replica.read(|view| view.names.topics().len());
    assert_eq!(topics, 8);
    // Nor do they share one if the second is made only if the first is not.
    let own = keys().encode(&Key::Topic("j".to_owned()));
    let mut unless = create("k");
    unless.compares.push(Compare::ModRevision(own, 0));
    let made = [create("j"), unless].map(|change| node.committer.change(0, change));
    let made = futures::future::join_all(made).await;
    assert_eq!((made[0].is_ok(), &made[1]), (true, &Err(CommitError::Conflict)));
    // A snapshot of a checkpoint's revision has all that is in it.
    let checkpoint = Change { body: Some(Body::Checkpoint(Checkpoint {})), ..Change::default() };
    let made = [create("h"), checkpoint, create("i")].map(|change| node.committer.change_at(0, change));
    let made = futures::future::join_all(made).await;
    let revisions: Vec<i64> = made.into_iter().map(|made| made.unwrap().1).collect();
    assert_eq!([revisions[1] - revisions[0], revisions[2] - revisions[1]], [1, 1]);
    node.replica.read(|view| invariants::check(&view.state)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_changes_does_not_put_off_what_may_wait() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let node = Node::open(&backend, &store, 1).await;
    let (committer, session) = (node.committer.clone(), node.registration.session);
    let checkpoint = || Change { body: Some(Body::Checkpoint(Checkpoint {})), ..Change::default() };
    let streams = futures::future::join_all((0..4).map(|_| async {
        loop {
            committer.change(0, checkpoint()).await.unwrap();
        }
    }));
    let key = keys().encode(&Key::Leader("job".to_owned()));
    let written = node.committer.write(session, Vec::new(), vec![Op::put(key, "x")]);
    tokio::select! {
        _ = streams => unreachable!("they go on for ever"),
        written = timeout(Duration::from_mins(1), written) => assert!(written.unwrap().unwrap() > 0),
    }
}

#[tokio::test(start_paused = true)]
async fn a_conflict_is_told_and_the_next_change_goes_through() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let node = Node::open(&backend, &store, 1).await;
    node.create_topic().await;
    let again = topics::new_topic(Uuid::from_u128(43), 1, std::collections::BTreeMap::new(), 0);
    let outcome = node.committer.change(0, topics::create(&keys(), "t", &again)).await;
    assert_eq!(outcome, Err(CommitError::Conflict));
    let info = node.replica.read(|view| view.names.topic("t").cloned()).unwrap();
    node.committer.change(0, topics::grow(&keys(), &info, 4)).await.unwrap();
    assert_eq!(node.replica.read(|view| view.state.topics()[&TOPIC].partitions().len()), 4);
}

#[tokio::test(start_paused = true)]
async fn snapshots_trim_the_log_and_a_broker_starts_from_them() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let mut node = Node::open(&backend, &store, 1).await;
    node.create_topic().await;
    let mut maintainer = node.maintainer(&store);
    for _ in 0..5 {
        for _ in 0..10 {
            node.produce(1).await.unwrap();
        }
        maintainer.run_once().await.unwrap();
    }
    let left = backend
        .range(RangeRequest { keys: keys().log(), revision: None, limit: 0, keys_only: false })
        .await
        .unwrap()
        .kvs
        .len();
    assert!(left < 30, "{left} records are left of more than 50");
    let listed = node.replica.read(|view| view.snapshots.clone()).unwrap();
    assert_eq!(listed.snapshots.len(), 3);
    assert_eq!(listed.trimmed_to, listed.snapshots[1].revision);
    let objects = store.list(ObjectKey::SNAPSHOT_PREFIX, None, 100).await.unwrap();
    assert_eq!(objects.len(), 3, "objects of snapshots that are not listed any more are deleted");
    let fresh = Node::open(&backend, &store, 2).await;
    node.replica.barrier().await.unwrap();
    assert_eq!(fresh.end(), 50);
    assert_eq!(fresh.replica.state(), node.replica.state());
}

fn listed(node: &Node) -> Arc<SnapshotValue> {
    node.replica.read(|view| view.snapshots.clone()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_of_an_older_state_does_not_push_out_newer_ones() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let slow = Node::open(&backend, &store, 1).await;
    let mut quick = Node::open(&backend, &store, 2).await;
    slow.create_topic().await;
    let mut stopped = slow.maintainer(&store);
    let mut pass = Box::pin(stopped.run_once());
    // It goes on until its checkpoint is there, and then not for a while, as a process that is
    // stopped.
    while slow.replica.read(|view| view.state.checkpoints().is_empty()) {
        assert!(futures::poll!(&mut pass).is_pending());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut other = quick.maintainer(&store);
    for _ in 0..3 {
        quick.produce(1).await.unwrap();
        other.run_once().await.unwrap();
    }
    slow.replica.barrier().await.unwrap();
    assert!(matches!(pass.await, Err(MaintainError::Overtaken)));
    let snapshots = listed(&slow).snapshots.clone();
    assert!(snapshots.is_sorted_by(|newer, older| newer.revision > older.revision), "{snapshots:?}");
    assert_eq!(Node::open(&backend, &store, 3).await.end(), 3);
}

/// A broker with three records, each followed by a snapshot.
async fn with_three_snapshots(backend: &Embedded, store: &Arc<dyn Store>) -> Node {
    let mut node = Node::open(backend, store, 1).await;
    node.create_topic().await;
    let mut maintainer = node.maintainer(store);
    for _ in 0..3 {
        node.produce(1).await.unwrap();
        maintainer.run_once().await.unwrap();
    }
    node
}

#[tokio::test(start_paused = true)]
async fn a_damaged_snapshot_falls_back_to_the_one_before_and_never_to_nothing() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let mut node = with_three_snapshots(&backend, &store).await;
    node.produce(1).await.unwrap();
    let listed = listed(&node);
    let damage = async |object: &str| {
        let key = ObjectKey::parse(object).unwrap();
        let mut bytes = store.get(&key, None).await.unwrap().to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        store.put(&key, Bytes::from(bytes).into()).await.unwrap();
    };
    damage(&listed.snapshots[0].object).await;
    assert_eq!(Node::open(&backend, &store, 2).await.end(), 4, "the snapshot before, and the log since");
    store.delete(&ObjectKey::parse(&listed.snapshots[1].object).unwrap()).await.unwrap();
    let open = || Replica::open(Arc::new(backend.clone()), keys(), store.clone(), Box::new(NoObserver));
    assert!(matches!(open().await, Err(LoadError::LogTooShort { .. })), "the log is gone before the second");
    damage(&listed.snapshots[2].object).await;
    assert!(matches!(open().await, Err(LoadError::Snapshots(_))));
}

#[tokio::test(start_paused = true)]
async fn snapshots_that_the_store_denies_for_a_moment_are_waited_for() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let node = with_three_snapshots(&backend, &store).await;
    let denying = Faulty::new(store.clone(), 1);
    let faults = denying.handle();
    faults.set(store::FaultPlan { missing: 1.0, ..store::FaultPlan::default() });
    let healing = async {
        tokio::time::sleep(Duration::from_secs(15)).await;
        faults.clear();
    };
    let began = tokio::time::Instant::now();
    let opening = Replica::open(Arc::new(backend), keys(), Arc::new(denying), Box::new(NoObserver));
    let (opened, ()) = tokio::join!(opening, healing);
    let (reader, ..) = opened.expect("the store has it after all");
    assert!(began.elapsed() >= Duration::from_secs(15), "nothing could be read before");
    assert_eq!(reader.read(|view| view.state.digest()), node.replica.read(|view| view.state.digest()));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_was_compacted_away_ends_in_a_rebuild() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let mut node = Node::open(&backend, &store, 1).await;
    node.create_topic().await;
    let lagging = Node::open(&backend, &store, 2).await;
    lagging.faults.inject(Fault::WatchStuck);
    for _ in 0..20 {
        node.produce(1).await.unwrap();
    }
    let newest = node.replica.read(|view| view.revision);
    backend.compact(newest).await.unwrap();
    timeout(Duration::from_mins(2), async {
        while lagging.end() != 20 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("the replica comes back by itself");
    assert_eq!(lagging.replica.state(), node.replica.state());
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_skips_events_is_noticed() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let mut node = Node::open(&backend, &store, 1).await;
    node.create_topic().await;
    let other = Node::open(&backend, &store, 2).await;
    node.produce(1).await.unwrap();
    other.replica.barrier().await.unwrap();
    other.faults.inject(Fault::WatchGap);
    for _ in 0..5 {
        node.produce(1).await.unwrap();
    }
    timeout(Duration::from_mins(2), async {
        while other.end() != 6 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("the gap in the sequence numbers is noticed and the state rebuilt");
    assert_eq!(other.replica.state(), node.replica.state());
    assert!(other.replica.counters().rebuilds >= 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_applied_behind_a_gap_whoever_wrote_what_is_missing() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let mut one = Node::open(&backend, &store, 1).await;
    one.create_topic().await;
    let mut two = Node::open(&backend, &store, 2).await;
    let reader = Node::open(&backend, &store, 3).await;
    two.produce(1).await.unwrap();
    reader.replica.barrier().await.unwrap();
    // What broker 1 writes is left out; broker 2 then writes, and nothing is missing among what
    // broker 2 wrote.
    reader.faults.inject(Fault::WatchGap);
    one.produce(10).await.unwrap();
    two.produce(1).await.unwrap();
    while reader.end() != 12 {
        assert_eq!(reader.end(), 1, "the second record of broker 2 is never seen at offset 1");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(reader.replica.counters().rebuilds, 1);
}

#[tokio::test(start_paused = true)]
async fn a_barrier_notices_that_the_newest_event_is_missing() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let mut node = Node::open(&backend, &store, 1).await;
    node.create_topic().await;
    let reader = Node::open(&backend, &store, 2).await;
    reader.replica.barrier().await.unwrap();
    reader.faults.inject(Fault::WatchGap);
    node.produce(3).await.unwrap();
    // Nothing else is written that would show it.
    reader.replica.barrier().await.unwrap();
    assert_eq!(reader.end(), 3);
    // The same, with something behind it that is not of the log.
    reader.faults.inject(Fault::WatchGap);
    node.produce(4).await.unwrap();
    let other = Op::put(keys().encode(&Key::Leader("some-job".to_owned())), "{}");
    backend.txn(Txn { then: vec![other], ..Txn::default() }).await.unwrap();
    reader.replica.barrier().await.unwrap();
    assert_eq!(reader.end(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_restored_metadata_store_is_not_trusted() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let mut node = Node::open(&backend, &store, 1).await;
    node.create_topic().await;
    for _ in 0..50 {
        node.produce(1).await.unwrap();
    }
    let mut maintainer = node.maintainer(&store);
    maintainer.run_once().await.unwrap();
    let known_to_the_backup = listed(&node);
    node.produce(1).await.unwrap();
    maintainer.run_once().await.unwrap();
    // A store that is younger than the snapshot: as after restoring a backup.
    let restored = Embedded::in_memory();
    cluster(&restored).await;
    let open = || Replica::open(Arc::new(restored.clone()), keys(), store.clone(), Box::new(NoObserver));
    let Err(error @ LoadError::Restored { .. }) = open().await else { panic!("it must refuse") };
    assert!(error.to_string().contains("restored from a backup") && !error.is_retryable());
    // The snapshots that it knows of may be gone since: that is not what is wrong.
    let gone = ObjectKey::parse(&known_to_the_backup.snapshots[0].object).unwrap();
    store.delete(&gone).await.unwrap();
    let put = Op::put(keys().encode(&Key::Snapshot), known_to_the_backup.encode());
    restored.txn(Txn { then: vec![put], ..Txn::default() }).await.unwrap();
    assert!(matches!(open().await, Err(LoadError::Restored { .. })));
}

#[tokio::test(start_paused = true)]
async fn incarnations_that_are_gone_are_forgotten_once_their_log_is() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let mut node = Node::open(&backend, &store, 1).await;
    node.create_topic().await;
    let mut other = Node::open(&backend, &store, 2).await;
    other.produce(1).await.unwrap();
    let gone = other.registration.session.incarnation;
    backend.lease_revoke(other.registration.lease).await.unwrap();
    let mut maintainer = node.maintainer(&store);
    for _ in 0..4 {
        node.produce(1).await.unwrap();
        maintainer.run_once().await.unwrap();
    }
    assert!(!node.replica.state().incarnations().contains_key(&gone));
    let head = KeyRange::Key(keys().encode(&Key::Head(gone)));
    assert!(
        backend
            .range(RangeRequest { keys: head, revision: None, limit: 0, keys_only: false })
            .await
            .unwrap()
            .kvs
            .is_empty()
    );
    assert_eq!(other.produce(1).await, Err(CommitError::NotRegistered), "and it can commit nothing any more");
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_record_of_an_incarnation_that_was_forgotten_is_told() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let mut node = Node::open(&backend, &store, 1).await;
    node.create_topic().await;
    let mut late = Node::open(&backend, &store, 2).await;
    let (gone, lease) = (late.registration.session.incarnation, late.registration.lease);
    let faults = late.faults.clone();
    // Its record is committed, and does not come back to it.
    faults.set_plan(FaultPlan { watch_stuck: 1.0, ..FaultPlan::default() });
    let meanwhile = async {
        while node.replica.state().head(gone) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        backend.lease_revoke(lease).await.unwrap();
        let mut maintainer = node.maintainer(&store);
        for _ in 0..4 {
            node.produce(1).await.unwrap();
            maintainer.run_once().await.unwrap();
        }
        assert!(!node.replica.state().incarnations().contains_key(&gone));
        backend.compact(node.replica.state().revision()).await.unwrap();
        faults.heal();
    };
    let (outcome, ()) = futures::join!(timeout(Duration::from_mins(5), late.produce(1)), meanwhile);
    let outcome = outcome.expect("it must not wait for ever");
    assert_eq!(outcome, Err(CommitError::OutcomeLost));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_record_stops_the_broker() {
    let (backend, store) = (Embedded::in_memory(), memory());
    let (replica, follow, _barrier) =
        Replica::open(Arc::new(backend.clone()), keys(), store.clone(), Box::new(NoObserver)).await.unwrap();
    let key = keys().encode(&Key::Log { incarnation: 7, sequence: 1 });
    // Format 1, and a kind of record that does not exist yet.
    let newer = vec![0x08, 0x01, 0x9a, 0x06, 0x00];
    let counted = Op::put(keys().encode(&Key::Commits), "1");
    backend.txn(Txn { then: vec![Op::put(key, newer), counted], ..Txn::default() }).await.unwrap();
    let ended = timeout(Duration::from_mins(1), follow.run()).await.expect("it must not be passed over");
    assert!(matches!(ended, LoadError::Apply(_)), "{ended}");
    assert_eq!(replica.read(|view| view.state.topics().len()), 0);
}

#[tokio::test]
async fn watermarks_follow_the_state_and_never_go_back() {
    let backend = Embedded::in_memory();
    let store = memory();
    let mut node = Node::open(&backend, &store, 1).await;
    node.create_topic().await;
    node.produce(5).await.unwrap();
    let stored = async |keys: &Keyspace| {
        let request = RangeRequest { keys: keys.watermarks(), revision: None, limit: 0, keys_only: false };
        let kvs = backend.range(request).await.unwrap().kvs;
        kvs.iter().map(|kv| WatermarksValue::decode(&kv.value).unwrap()).collect::<Vec<_>>()
    };
    let mut writer = node.watermarks();
    let session = node.registration.session;
    let revision = node.replica.state().revision();
    assert_eq!(writer.run_once(session).await.unwrap().written, 1);
    let first = stored(&keys()).await.remove(0);
    assert_eq!((first.partitions[0].end, first.partitions[0].bytes), (5, 100));
    assert_eq!(first.revision, revision);
    assert_eq!(writer.run_once(session).await.unwrap().written, 0, "nothing has changed");
    node.produce(2).await.unwrap();
    // Another broker writes as well: this one finds out, and reads again before it goes on.
    let other = Node::open(&backend, &store, 2).await;
    let mut second = other.watermarks();
    assert_eq!(second.run_once(other.registration.session).await.unwrap().written, 1);
    assert_eq!(writer.run_once(session).await.unwrap().written, 0);
    assert_eq!(writer.run_once(session).await.unwrap().written, 0);
    assert_eq!(stored(&keys()).await[0].partitions[0].end, 7);
    // What a state of an older revision says is not written over it.
    let newer = WatermarksValue { revision: i64::MAX, ..first };
    let key = keys().encode(&Key::Watermarks { topic_id: TOPIC, part: 0 });
    let put = Txn { then: vec![Op::put(key, newer.encode())], ..Txn::default() };
    backend.txn(put).await.unwrap();
    node.produce(1).await.unwrap();
    let mut writer = node.watermarks();
    assert_eq!(writer.run_once(session).await.unwrap().written, 0);
    assert_eq!(stored(&keys()).await[0].revision, i64::MAX);
    // Without the registration nothing is written.
    backend.lease_revoke(node.registration.lease).await.unwrap();
    assert_eq!(writer.run_once(session).await.unwrap().written, 0);
}

#[tokio::test]
async fn watermarks_of_many_partitions_take_turns_within_the_budget_and_go_with_their_topic() {
    let backend = Embedded::in_memory();
    let node = Node::open(&backend, &memory(), 1).await;
    let topic = topics::new_topic(TOPIC, 50_000, std::collections::BTreeMap::new(), 0);
    node.committer.change(0, topics::create(&keys(), "large", &topic)).await.unwrap();
    let mut writer = node.watermarks();
    let session = node.registration.session;
    let mut written = 0;
    let mut passes = 0;
    loop {
        let pass = writer.run_once(session).await.unwrap();
        written += pass.written;
        passes += 1;
        if pass.waiting == 0 {
            break;
        }
    }
    assert_eq!(written, 50_000_usize.div_ceil(4_096));
    assert!(passes > 1, "one pass has a budget");
    let info = node.replica.read(|view| view.names.topic("large").cloned()).unwrap();
    node.committer.change(0, topics::delete(&keys(), &info)).await.unwrap();
    let pass = writer.run_once(session).await.unwrap();
    assert_eq!((pass.deleted, pass.written), (written, 0));
}
