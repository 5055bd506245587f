//! The loop that follows the watch and applies each revision.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, error, info, warn};

use super::load::{self, LoadError, Loaded};
use super::{Commits, Replica, View};
use crate::backend::{BackendError, Event, Watch, WatchBatch};
use crate::commit::decode_count;
use crate::keys::Key;
use crate::limits::{APPLY_TIMEOUT, BACKEND_TIMEOUT, WATCH_REVISIONS_BEHIND, WATCH_SILENCE};
use crate::record::Record;
use crate::state::{ApplyError, Effects, Position};
use crate::values::{SnapshotValue, Value, ValueError};

/// Pause before a failed watch or load is tried again: doubles from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Follows the log; run it for as long as the replica is used.
#[derive(Debug)]
pub struct ReplicaLoop {
    replica: Replica,
    /// The view that is published after the next step.
    view: View,
    backoff: Duration,
    /// The watch was interrupted, and it is not known yet whether it came back to the same history.
    is_doubtful: bool,
}

/// Why following ended, and so how to go on.
#[derive(Debug)]
enum Interrupted {
    /// Open the watch again from the next revision.
    Rewatch(String),
    /// Throw the state away and read it anew.
    Rebuild(String),
    /// Stop the broker.
    Stop(LoadError),
}

impl From<ApplyError> for Interrupted {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Gap { .. } | ApplyError::Backwards { .. } => Self::Rebuild(error.to_string()),
            ApplyError::Record(_) | ApplyError::FeatureLevel(_) => Self::Stop(error.into()),
        }
    }
}

impl From<ValueError> for Interrupted {
    fn from(error: ValueError) -> Self {
        Self::Stop(error.into())
    }
}

impl ReplicaLoop {
    pub(super) fn new(replica: Replica, view: View) -> Self {
        Self { replica, view, backoff: BACKOFF.0, is_doubtful: false }
    }

    /// Follows until it is dropped, or until it meets something that this build must not pass over:
    /// then it ends with the reason, and the broker must stop.
    pub async fn run(mut self) -> LoadError {
        loop {
            let next = self.replica.read(|view| view.revision) + 1;
            let shared = &self.replica.shared;
            let interrupted =
                match timeout(BACKEND_TIMEOUT, shared.backend.watch(shared.keys.all(), next)).await {
                    Ok(Ok(watch)) => match self.follow(watch).await {
                        Ok(never) => match never {},
                        Err(interrupted) => interrupted,
                    },
                    Ok(Err(BackendError::Compacted { .. })) => {
                        Interrupted::Rebuild("the history is compacted".into())
                    }
                    Ok(Err(error)) => Interrupted::Rewatch(error.to_string()),
                    Err(_) => Interrupted::Rewatch("opening it took too long".into()),
                };
            match interrupted {
                Interrupted::Stop(reason) => {
                    error!(%reason, "the log cannot be followed any further");
                    return reason;
                }
                Interrupted::Rewatch(why) => {
                    debug!(why, "opening the watch again");
                    self.count(|c| c.rewatches += 1);
                    self.pause().await;
                    self.is_doubtful = true;
                    if let Some(why) = self.doubt().await
                        && let Some(reason) = self.rebuild(why).await
                    {
                        return reason;
                    }
                }
                Interrupted::Rebuild(why) => {
                    if let Some(reason) = self.rebuild(&why).await {
                        return reason;
                    }
                }
            }
        }
    }

    /// Applies what the watch delivers until something is wrong with it.
    async fn follow(&mut self, mut watch: Box<dyn Watch>) -> Result<std::convert::Infallible, Interrupted> {
        let shared = self.replica.shared.clone();
        let mut committed = shared.committed.subscribe();
        let mut heard = Instant::now();
        // When a commit that this broker knows of must have come through the watch.
        let mut due: Option<(i64, Instant)> = None;
        loop {
            let deadline = due.map_or(heard + WATCH_SILENCE, |(_, at)| at.min(heard + WATCH_SILENCE));
            // What has arrived comes before the deadline for it: a process that was stopped for a
            // while finds both.
            tokio::select! {
                biased;
                () = shared.rebuild.notified() => {
                    return Err(Interrupted::Rebuild("the log was trimmed beyond what is applied".into()));
                }
                batch = watch.next() => {
                    match batch {
                        Ok(batch) if self.is_doubtful => {
                            // The store may not have answered when the watch was opened again. One
                            // that was restored from a backup has no events for a watch that begins
                            // in its future.
                            if let Some(why) = self.doubt().await {
                                return Err(Interrupted::Rebuild(why.to_owned()));
                            }
                            self.apply(&batch)?;
                        }
                        Ok(batch) => self.apply(&batch)?,
                        Err(BackendError::Compacted { .. }) => {
                            return Err(Interrupted::Rebuild("the history was compacted under the watch".into()));
                        }
                        Err(error) => return Err(Interrupted::Rewatch(error.to_string())),
                    }
                    heard = Instant::now();
                    self.backoff = BACKOFF.0;
                }
                changed = committed.changed() => {
                    if changed.is_err() {
                        return Err(Interrupted::Rewatch("the replica is being dropped".into()));
                    }
                    let revision = *committed.borrow_and_update();
                    due.get_or_insert((revision, Instant::now() + APPLY_TIMEOUT));
                }
                () = sleep_until(deadline) => {}
            }
            let (applied, commits) = self.replica.read(|view| (view.revision, view.commits));
            let now = Instant::now();
            match due {
                Some((revision, _)) if commits.revision >= revision => {
                    // Later commits may be under way; each gets its full time.
                    let newest = *shared.committed.borrow();
                    due = (newest > commits.revision).then_some((newest, now + APPLY_TIMEOUT));
                }
                Some((revision, _)) if applied >= revision => {
                    return Err(Interrupted::Rebuild(format!("the watch left revision {revision} out")));
                }
                Some((revision, at)) if now >= at => {
                    return Err(Interrupted::Rewatch(format!(
                        "revision {revision} is committed and did not arrive"
                    )));
                }
                _ => {}
            }
            if now >= heard + WATCH_SILENCE {
                return Err(Interrupted::Rewatch("it fell silent".into()));
            }
        }
    }

    /// Applies one batch of complete revisions and wakes who waits for it.
    fn apply(&mut self, batch: &WatchBatch) -> Result<(), Interrupted> {
        let shared = self.replica.shared.clone();
        let started = Instant::now();
        let mut records = Vec::new();
        let mut commits = Vec::new();
        let mut bytes = 0;
        for event in &batch.events {
            let Event::Put(kv) = event else { continue };
            match shared.keys.parse(&kv.key) {
                Some(Key::Log { incarnation, sequence }) => {
                    let (record, body) = Record::from_bytes(&kv.value).map_err(ApplyError::from)?;
                    bytes += kv.value.len() as u64;
                    let at = Position { revision: kv.mod_revision, sequence, incarnation };
                    records.push((at, record, body));
                }
                Some(Key::Commits) => commits.push((Commits::of(kv), decode_count(&kv.value))),
                _ => {}
            }
        }
        // The watch gives the events of one revision in no order that means anything.
        records.sort_unstable_by_key(|(at, ..)| *at);
        commits.sort_unstable_by_key(|(commit, _)| commit.revision);
        let counted = commits;
        let commits = complete(self.view.commits, &counted, records.iter().map(|(at, ..)| at.revision))?;
        let mut applied: Vec<(Position, i64, Effects)> = Vec::with_capacity(records.len());
        // What fails on the way is never published: the view is thrown away with all that was
        // applied.
        for (at, record, body) in &records {
            let effects = self.view.state.apply(*at, record, body)?;
            if effects.checkpoint.is_some() {
                let mut capture = self.replica.lock_checkpoint();
                let own = counted.iter().find(|(commit, _)| commit.revision == at.revision);
                if let Some((commit, _)) = own
                    && std::mem::take(&mut capture.armed)
                {
                    capture.state = Some((self.view.state.clone(), *commit));
                }
            }
            applied.push((*at, record.time_ms, effects));
        }
        for event in &batch.events {
            apply_plain(&mut self.view, &self.replica, event)?;
        }
        self.view.commits = commits;
        // Progress reports are no evidence that everything before them was delivered: only events
        // move the revision.
        if let Some(newest) = batch.events.iter().map(Event::revision).max() {
            self.view.revision = self.view.revision.max(newest);
            self.view.state.advance(newest);
            shared.view.store(Arc::new(self.view.clone()));
        }
        let mut counters = shared.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters.records += records.len() as u64;
        counters.records_since_snapshot += records.len() as u64;
        counters.log_bytes_since_snapshot += bytes;
        counters.apply_nanos += u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        drop(counters);
        self.announce(applied);
        Ok(())
    }

    fn announce(&self, applied: Vec<(Position, i64, Effects)>) {
        let shared = &self.replica.shared;
        for (at, time_ms, effects) in applied {
            shared.observer.applied(at, time_ms, &effects);
            shared.waiters.wake(&effects.moved);
            let mut outcomes = shared.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
            if !effects.repeated
                && let Some(waiting) = outcomes.remove(&(at.incarnation, at.sequence))
            {
                // Whoever stopped waiting does not need the outcome.
                let _ = waiting.send(effects);
            }
        }
        let revision = self.replica.read(|view| view.revision);
        shared.applied.send_replace(revision);
    }

    /// Why a watch from the next revision on cannot go on with what is known, if the store says so.
    /// The doubt stays as long as the store does not answer.
    async fn doubt(&mut self) -> Option<&'static str> {
        let shared = &self.replica.shared;
        let newest = timeout(
            APPLY_TIMEOUT,
            shared.backend.range(crate::backend::RangeRequest {
                keys: crate::backend::KeyRange::Key(shared.keys.encode(&Key::Commits)),
                revision: None,
                limit: 1,
                keys_only: false,
            }),
        );
        let (known, commits) = self.replica.read(|view| (view.revision, view.commits.count));
        let Ok(Ok(answer)) = newest.await else { return None };
        self.is_doubtful = false;
        let newest = answer.kvs.first().map(Commits::of).unwrap_or_default();
        if answer.revision < known || newest.count < commits {
            // `load` refuses it.
            return Some("the metadata store is behind what was applied");
        }
        (answer.revision > known + WATCH_REVISIONS_BEHIND)
            .then_some("the watch would begin too far in the past")
    }

    /// Reads the state anew and puts it in the place of the old one. Gives the reason if that can
    /// never work.
    async fn rebuild(&mut self, why: &str) -> Option<LoadError> {
        warn!(why, "throwing the state away and reading it anew");
        loop {
            let shared = self.replica.shared.clone();
            let known = self.replica.read(|view| (view.revision, view.commits.count));
            match load::load(shared.backend.as_ref(), &shared.keys, shared.store.as_ref(), known).await {
                Ok(Loaded { view, replayed, oddity }) => {
                    info!(revision = view.revision, "the state is rebuilt");
                    self.replace(view);
                    self.replica.note_loaded(replayed, oddity);
                    return None;
                }
                Err(reason) if reason.is_retryable() => {
                    warn!(%reason, "reading the state failed; trying again");
                    self.pause().await;
                }
                Err(reason) => {
                    error!(%reason, "the state cannot be read");
                    return Some(reason);
                }
            }
        }
    }

    fn replace(&mut self, view: View) {
        let shared = &self.replica.shared;
        let revision = view.revision;
        let heads = view.state.incarnations().clone();
        let registered: BTreeSet<i64> = view.names.brokers().values().map(|b| b.incarnation).collect();
        shared.view.store(Arc::new(view.clone()));
        self.view = view;
        self.count(|c| c.rebuilds += 1);
        // Whoever waits for a record that the rebuilt state covers will never see its outcome:
        // dropping the sender says so. What is beyond the heads will still come. An incarnation
        // that the state does not know has written nothing yet, if it is registered; otherwise it
        // was forgotten, with all that it wrote.
        let will_come = |incarnation: &i64, sequence: u64| match heads.get(incarnation) {
            Some(known) => known.head < sequence,
            None => registered.contains(incarnation),
        };
        let mut outcomes = shared.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        outcomes.retain(|(incarnation, sequence), _| will_come(incarnation, *sequence));
        drop(outcomes);
        shared.applied.send_replace(revision);
        shared.waiters.wake_all();
    }

    fn count(&self, change: impl FnOnce(&mut super::ReplicaCounters)) {
        change(&mut self.replica.shared.counters.lock().unwrap_or_else(PoisonError::into_inner));
    }

    async fn pause(&mut self) {
        sleep(self.backoff).await;
        self.backoff = (self.backoff * 2).min(BACKOFF.1);
    }
}

/// The count after `commits`, each with the number of its records, if nothing is missing between
/// `known` and the last of them. `records` are the revisions of all records that came with them.
/// All are in the order of their revisions.
fn complete(
    known: Commits,
    commits: &[(Commits, Option<usize>)],
    records: impl Iterator<Item = i64>,
) -> Result<Commits, Interrupted> {
    let mut records = records.peekable();
    let mut last = known;
    for &(commit, count) in commits {
        if commit.count != last.count + 1 {
            return Err(Interrupted::Rebuild(format!(
                "commit {} of the log follows commit {}: the watch left something out",
                commit.count, last.count
            )));
        }
        let mut arrived = 0;
        while records.next_if_eq(&commit.revision).is_some() {
            arrived += 1;
        }
        if count != Some(arrived) {
            return Err(Interrupted::Rebuild(format!(
                "revision {} came with {arrived} records, and says that it has {count:?}",
                commit.revision
            )));
        }
        last = commit;
    }
    match records.next() {
        None => Ok(last),
        Some(revision) => {
            Err(Interrupted::Rebuild(format!("a record of revision {revision} is not counted")))
        }
    }
}

fn apply_plain(view: &mut View, replica: &Replica, event: &Event) -> Result<(), Interrupted> {
    let keys = &replica.shared.keys;
    if let Event::Put(kv) = event
        && keys.parse(&kv.key) == Some(Key::Snapshot)
    {
        let pointer = SnapshotValue::decode(&kv.value)?;
        // Divergence is detected here: whoever wrote the snapshot must have had the digest that
        // this broker noted.
        if let Some(newest) = pointer.snapshots.first()
            && let Some(own) = view.state.checkpoints().iter().find(|c| c.revision == newest.revision)
            && format!("{:016x}", own.digest) != newest.digest
        {
            return Err(Interrupted::Rebuild(format!(
                "the snapshot of revision {} has digest {}, this broker derived {:016x}",
                newest.revision, newest.digest, own.digest
            )));
        }
        view.snapshots = Some(Arc::new(pointer));
        view.snapshots_revision = kv.mod_revision;
        replica.note_snapshot();
    }
    view.names.apply(keys, event);
    if let Event::Put(kv) = event
        && let Some(Key::Broker(node_id)) = keys.parse(&kv.key)
        && let Some(broker) = view.names.brokers().get(&node_id)
    {
        let time_ms = broker.value.registered_at_ms;
        replica.shared.observer.registered(node_id, broker.incarnation, time_ms);
    }
    Ok(())
}
