//! What every backend must do, as tests that any of them can be put through.
//!
//! [`run_all`] panics with the name of the first behaviour that a store does not have. A behaviour
//! uses keys of its own, so that a store may be used again; but some compact history or count
//! revisions, so nothing else may write to the store meanwhile.
#![expect(clippy::unwrap_used, clippy::panic, reason = "this is a test suite: a failed check is a panic")]

mod leases;
mod limits;
mod ranges;
mod txns;
mod watches;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::time::timeout;
use tracing::info;

use super::{
    Backend, BackendError, Event, KeyRange, KeyValue, Op, RangeRequest, Txn, TxnResponse, Watch, WatchBatch,
};

/// How long a watch or a lease may take to bring what it must, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A store under test, and the keys that one behaviour may use in it.
struct Subject {
    store: Arc<dyn Backend>,
    prefix: String,
}

type Behaviour = fn(Subject) -> BoxFuture<'static, ()>;

macro_rules! behaviours {
    ($($module:ident::$name:ident),* $(,)?) => {
        [$((stringify!($name), (|subject| Box::pin($module::$name(subject))) as Behaviour)),*]
    };
}

/// Every behaviour with its name, in the order in which they are tried.
fn all() -> impl Iterator<Item = (&'static str, Behaviour)> {
    behaviours![
        ranges::a_put_is_read_back,
        ranges::any_bytes_are_keys_and_values,
        ranges::a_range_is_ordered_and_half_open,
        ranges::a_limit_cuts_and_says_so,
        ranges::the_past_can_be_read,
        ranges::the_future_cannot_be_read,
        ranges::compacted_history_is_gone_and_the_rest_stays,
        ranges::what_was_put_since_is_told_and_all_are_counted,
        ranges::what_was_deleted_shows_in_the_count,
        ranges::what_changed_is_read_as_of_a_revision_and_needs_no_history,
        ranges::malformed_ranges_are_refused,
        txns::a_key_that_comes_back_starts_over,
        txns::only_changes_make_revisions,
        txns::compares_choose_the_branch,
        txns::all_steps_happen_at_one_revision,
        txns::a_range_in_a_transaction_sees_its_changes,
        txns::nested_compares_see_the_store_before,
        txns::nested_losers_fail_alone,
        txns::one_of_many_creators_wins,
        txns::no_update_is_lost,
        limits::a_key_changes_once_in_a_transaction,
        limits::operations_are_limited,
        limits::nested_operations_are_limited,
        limits::the_size_of_a_request_is_limited,
        leases::a_revoked_lease_takes_its_keys_along,
        leases::a_key_can_leave_its_lease,
        leases::a_lease_that_is_gone_is_said_to_be_gone,
        leases::a_lease_runs_out,
        leases::a_lease_that_is_kept_alive_stays,
        watches::a_watch_brings_the_past_and_then_the_present,
        watches::a_watch_of_one_key_brings_no_other,
        watches::a_watch_may_begin_in_the_future,
        watches::a_revision_comes_in_one_piece,
        watches::a_long_history_comes_whole_and_in_order,
        watches::large_revisions_come_whole,
        watches::a_cancelled_wait_loses_nothing,
        watches::many_watches_see_the_same,
        watches::a_silent_watch_reports_progress,
        watches::a_watch_of_compacted_history_says_so,
        watches::malformed_watches_are_refused,
    ]
    .into_iter()
}

/// Puts a store through every behaviour, one after the other. `make` is asked for a store before
/// each; it may give the same one again.
pub async fn run_all<F>(make: impl Fn() -> F)
where
    F: Future<Output = Arc<dyn Backend>>,
{
    for (name, behaviour) in all() {
        let store = make().await;
        let start =
            RangeRequest { keys: KeyRange::key("/conformance"), revision: None, limit: 1, keys_only: false };
        let revision = store.range(start).await.unwrap().revision;
        info!(name, revision, "try a behaviour");
        let prefix = format!("/conformance/{name}/{revision}/");
        behaviour(Subject { store, prefix }).await;
    }
}

impl Subject {
    fn key(&self, name: &str) -> Bytes {
        format!("{}{name}", self.prefix).into()
    }

    fn all(&self) -> KeyRange {
        KeyRange::prefix(self.prefix.clone())
    }

    fn put_op(&self, name: &str, value: impl Into<Bytes>) -> Op {
        Op::Put { key: self.key(name), value: value.into(), lease: 0 }
    }

    async fn txn(&self, txn: Txn) -> TxnResponse {
        self.store.txn(txn).await.unwrap()
    }

    /// Executes steps without a condition.
    async fn run(&self, then: Vec<Op>) -> TxnResponse {
        self.txn(Txn { then, ..Txn::default() }).await
    }

    async fn put(&self, name: &str, value: &str) -> i64 {
        self.run(vec![self.put_op(name, value.to_owned())]).await.revision
    }

    async fn put_leased(&self, name: &str, lease: i64) -> Result<i64, BackendError> {
        let op = Op::Put { key: self.key(name), value: "leased".into(), lease };
        Ok(self.store.txn(Txn { then: vec![op], ..Txn::default() }).await?.revision)
    }

    async fn delete(&self, name: &str) -> i64 {
        self.run(vec![Op::Delete(KeyRange::key(self.key(name)))]).await.revision
    }

    async fn range(&self, keys: KeyRange, revision: Option<i64>) -> Result<Vec<KeyValue>, BackendError> {
        Ok(self.store.range(RangeRequest { keys, revision, limit: 0, keys_only: false }).await?.kvs)
    }

    async fn get(&self, name: &str) -> Option<KeyValue> {
        self.range(KeyRange::key(self.key(name)), None).await.unwrap().pop()
    }

    async fn value(&self, name: &str) -> Option<Bytes> {
        Some(self.get(name).await?.value)
    }

    /// The store's newest revision.
    async fn revision(&self) -> i64 {
        let request =
            RangeRequest { keys: KeyRange::key(self.key("-")), revision: None, limit: 0, keys_only: false };
        self.store.range(request).await.unwrap().revision
    }

    async fn watch(&self, revision: i64) -> Box<dyn Watch> {
        self.store.watch(self.all(), revision).await.unwrap()
    }
}

/// The next batch, progress reports included.
async fn next(watch: &mut Box<dyn Watch>) -> WatchBatch {
    let batch = timeout(PATIENCE, watch.next()).await;
    batch.unwrap_or_else(|_| panic!("a watch is silent for {PATIENCE:?}")).unwrap()
}

/// Batches until the events of `revision` have come.
async fn batches_through(watch: &mut Box<dyn Watch>, revision: i64) -> Vec<WatchBatch> {
    let mut batches: Vec<WatchBatch> = Vec::new();
    while batches.last().is_none_or(|batch| batch.revision < revision) {
        let batch = next(watch).await;
        if !batch.events.is_empty() {
            batches.push(batch);
        }
    }
    batches
}

/// Events until those of `revision` have come.
async fn events_through(watch: &mut Box<dyn Watch>, revision: i64) -> Vec<Event> {
    batches_through(watch, revision).await.into_iter().flat_map(|batch| batch.events).collect()
}
