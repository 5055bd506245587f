//! Groups written by several coordinators over one embedded store: who wins, who finds out, what a
//! lost answer means.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that goes wrong panics; the helpers here are part of the tests"
)]

mod common;

use std::collections::BTreeMap;
use std::ops::Deref;

use strandline_metadata::backend::Backend;
use strandline_metadata::backend::embedded::Embedded;
use strandline_metadata::backend::faulty::{Fault, FaultPlan};
use strandline_metadata::commit;
use strandline_metadata::groups::{
    self, GroupPut, GroupWrite, GroupWriteError, GroupWriter, GroupWritten, OffsetsPut, StoredGroup,
};
use strandline_metadata::limits::GROUP_WRITE_KEYS;
use strandline_metadata::values::group::{
    ClassicGroupValue, ClassicStateValue, CommittedOffset, GroupState, GroupValue, OffsetsValue,
};
use strandline_metadata::values::{VALUE_FORMAT, Value};
use uuid::Uuid;

use common::{Side, keys, memory};

/// One broker's writer of groups.
struct Node {
    side: Side,
    writer: GroupWriter,
}

impl Deref for Node {
    type Target = Side;

    fn deref(&self) -> &Side {
        &self.side
    }
}

impl Node {
    async fn open(backend: &Embedded, node_id: i32) -> Self {
        let mut side = Side::open(backend, &memory(), node_id).await;
        let (committer, commit_loop) = commit::committer(side.replica.clone(), side.sessions.clone());
        side.tasks.spawn(commit_loop.run());
        Self { side, writer: GroupWriter::new(committer) }
    }

    async fn write(&self, write: &GroupWrite) -> Result<i64, GroupWriteError> {
        Ok(self.written(write).await?.revision)
    }

    async fn written(&self, write: &GroupWrite) -> Result<GroupWritten, GroupWriteError> {
        self.writer.write(self.registration.session, &keys(), write).await
    }

    async fn read(&self, group: &str) -> StoredGroup {
        groups::read(self.replica.backend().as_ref(), &keys(), group).await.unwrap()
    }
}

fn group_value(write: u64) -> GroupValue {
    GroupValue {
        format: VALUE_FORMAT,
        writer: 1,
        write,
        state_since_ms: 0,
        group: GroupState::Classic(ClassicGroupValue {
            state: ClassicStateValue::Empty,
            protocol_type: String::new(),
            generation: 1,
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
        }),
    }
}

fn put_group(group: &str, revision: i64, write: u64) -> GroupWrite {
    let put = GroupPut::Put(Box::new(group_value(write)));
    GroupWrite { group: group.to_owned(), revision, put, offsets: Vec::new() }
}

/// A commit of `offset` for partition 0 of `topic`, over what was stored at `revision`.
fn commit(group: &str, group_revision: i64, topic: &str, revision: i64, offset: i64) -> GroupWrite {
    let committed = CommittedOffset {
        offset,
        leader_epoch: -1,
        time_ms: 0,
        metadata: String::new(),
        expires_ms: None,
        after: 0,
    };
    let value = OffsetsValue {
        format: VALUE_FORMAT,
        writer: 1,
        write: offset.unsigned_abs(),
        topic_id: Uuid::nil(),
        partitions: BTreeMap::from([(0, committed)]),
    };
    let put = OffsetsPut { key: (topic.to_owned(), 0), revision, value: Some(value) };
    GroupWrite { group: group.to_owned(), revision: group_revision, put: GroupPut::Keep, offsets: vec![put] }
}

#[tokio::test]
async fn a_coordinator_that_was_replaced_changes_nothing() {
    let backend = Embedded::in_memory();
    let (old, new) = (Node::open(&backend, 1).await, Node::open(&backend, 2).await);
    let first = old.write(&put_group("g", 0, 1)).await.unwrap();
    let committed = old.write(&commit("g", first, "t", 0, 5)).await.unwrap();
    let second = new.write(&put_group("g", first, 2)).await.unwrap();
    // The group was written by another one since.
    assert_eq!(old.write(&commit("g", first, "t", committed, 6)).await, Err(GroupWriteError::Conflict));
    assert_eq!(old.write(&put_group("g", first, 3)).await, Err(GroupWriteError::Conflict));
    // The group is the same, and the offsets are not: one of two commits to one key would be lost.
    new.write(&commit("g", second, "t", committed, 7)).await.unwrap();
    assert_eq!(old.write(&commit("g", second, "t", committed, 6)).await, Err(GroupWriteError::Conflict));
    let stored = old.read("g").await;
    assert_eq!((stored.revision, stored.value), (second, Some(group_value(2))));
    assert_eq!(stored.offsets[&("t".to_owned(), 0)].1.partitions[&0].offset, 7);
}

#[tokio::test]
async fn a_write_tells_how_long_the_groups_own_value_is() {
    let node = Node::open(&Embedded::in_memory(), 1).await;
    let put = node.written(&put_group("g", 0, 1)).await.unwrap();
    assert_eq!(put.value_bytes, group_value(1).encode().len());
    let committed = node.written(&commit("g", put.revision, "t", 0, 5)).await.unwrap();
    assert_eq!(committed.value_bytes, 0, "the group itself was kept");
}

#[tokio::test]
async fn writes_share_a_transaction_and_a_loser_fails_alone() {
    let node = Node::open(&Embedded::in_memory(), 1).await;
    node.write(&put_group("taken", 0, 1)).await.unwrap();
    let writes: Vec<GroupWrite> = (0..30)
        .map(|i| commit(&format!("g{i}"), 0, "t", 0, i))
        .chain([put_group("taken", 0, 2), commit("taken", 0, "t", 0, 5)])
        .collect();
    let results = futures::future::join_all(writes.iter().map(|w| node.write(w))).await;
    let revisions: Vec<i64> = results[..30].iter().map(|r| *r.as_ref().unwrap()).collect();
    let distinct: std::collections::BTreeSet<i64> = revisions.iter().copied().collect();
    assert!(distinct.len() <= 3, "thirty groups took {} transactions", distinct.len());
    assert!(results[30..].iter().all(|r| *r == Err(GroupWriteError::Conflict)), "{:?}", &results[30..]);
    assert_eq!(node.read("g7").await.offsets[&("t".to_owned(), 0)].1.partitions[&0].offset, 7);
    assert!(node.read("taken").await.offsets.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_answer_is_lost_is_found_out() {
    let node = Node::open(&Embedded::in_memory(), 1).await;
    node.faults.inject(Fault::AnswerLost);
    let first = node.write(&put_group("g", 0, 1)).await.unwrap();
    assert_eq!(node.read("g").await.revision, first, "it was written once, and is known to be");
    node.faults.inject(Fault::ExecutedLater);
    let second = node.write(&commit("g", first, "t", 0, 5)).await.unwrap();
    node.faults.inject(Fault::Unavailable);
    let third = node.write(&commit("g", first, "t", second, 6)).await.unwrap();
    assert_eq!(node.read("g").await.offsets[&("t".to_owned(), 0)].0, third);

    // Deleted, and the answer lost.
    let mut delete = commit("g", first, "t", third, 6);
    (delete.offsets[0].value, delete.put) = (None, GroupPut::Delete);
    node.faults.inject(Fault::AnswerLost);
    node.write(&delete).await.unwrap();
    assert_eq!(node.read("g").await, StoredGroup::default());
}

#[tokio::test(start_paused = true)]
async fn somebody_elses_write_is_not_taken_for_a_lost_one() {
    let backend = Embedded::in_memory();
    let (old, new) = (Node::open(&backend, 1).await, Node::open(&backend, 2).await);
    let first = old.write(&put_group("g", 0, 1)).await.unwrap();
    // The first send fails its compare, and that answer is lost.
    new.write(&put_group("g", first, 2)).await.unwrap();
    old.faults.inject(Fault::AnswerLost);
    assert_eq!(old.write(&put_group("g", first, 3)).await, Err(GroupWriteError::Conflict));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_is_given_up_in_time() {
    let node = Node::open(&Embedded::in_memory(), 1).await;
    node.faults.set_plan(FaultPlan { unavailable: 1.0, ..FaultPlan::default() });
    let begun = tokio::time::Instant::now();
    let error = node.write(&put_group("g", 0, 1)).await.unwrap_err();
    assert!(matches!(error, GroupWriteError::Backend(_)), "{error:?}");
    assert!(begun.elapsed() <= strandline_metadata::limits::BACKEND_TIMEOUT);
    node.faults.heal();
    node.write(&put_group("g", 0, 1)).await.unwrap();
}

#[tokio::test]
async fn without_its_registration_a_broker_writes_nothing() {
    let backend = Embedded::in_memory();
    let node = Node::open(&backend, 1).await;
    backend.lease_revoke(node.registration.lease).await.unwrap();
    assert_eq!(node.write(&put_group("g", 0, 1)).await, Err(GroupWriteError::NotRegistered));
    assert_eq!(node.write(&commit("g", 0, "t", 0, 1)).await, Err(GroupWriteError::NotRegistered));
    assert_eq!(node.read("g").await, StoredGroup::default());
}

#[tokio::test]
async fn only_what_differs_is_read_again() {
    let node = Node::open(&Embedded::in_memory(), 1).await;
    let first = node.write(&commit("g", 0, "t", 0, 5)).await.unwrap();
    let known = node.read("g").await.offsets;
    let all = keys();
    let read = |known| groups::read_offsets(node.replica.backend().as_ref(), &all, "g", known);
    assert_eq!(read(known.clone()).await.unwrap(), known);
    node.write(&commit("g", 0, "t", first, 6)).await.unwrap();
    node.write(&commit("g", 0, "u", 0, 7)).await.unwrap();
    let newer = read(known).await.unwrap();
    let offsets: Vec<i64> = newer.values().map(|(_, value)| value.partitions[&0].offset).collect();
    assert_eq!(offsets, [6, 7]);
}

#[tokio::test]
async fn the_largest_writes_fit() {
    let node = Node::open(&Embedded::in_memory(), 1).await;
    let mut writes = Vec::new();
    for group in 0..70 {
        let mut write = commit(&format!("g{group}"), 0, "t", 0, 5);
        let one = write.offsets[0].clone();
        let put = |i| OffsetsPut { key: (format!("t{i}"), 0), ..one.clone() };
        write.offsets = (0..GROUP_WRITE_KEYS).map(put).collect();
        write.put = GroupPut::Put(Box::new(group_value(1)));
        writes.push(write);
    }
    for result in futures::future::join_all(writes.iter().map(|w| node.write(w))).await {
        result.unwrap();
    }
    assert_eq!(node.read("g69").await.offsets.len(), GROUP_WRITE_KEYS);
    let mut huge = put_group("huge", 0, 1);
    if let GroupPut::Put(value) = &mut huge.put
        && let GroupState::Classic(group) = &mut value.group
    {
        group.protocol = Some("x".repeat(2_000_000));
    }
    assert!(
        matches!(node.write(&huge).await, Err(GroupWriteError::Backend(_))),
        "it is refused, and no more"
    );
    node.write(&put_group("other", 0, 1)).await.unwrap();
}
