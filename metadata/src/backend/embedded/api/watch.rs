//! Watch: one stream with the watches that its client opens and closes.
//!
//! ```text
//!   requests ─▶ accept ─▶ watches ─▶ poll, in turns ─▶ outbox ─▶ answers
//!                            ▲
//!                         changed, or the time has come
//! ```
//!
//! Nothing is spawned and nothing piles up: a watch is a position in the store's history, which is
//! read when the client has taken the answer before. A client that is too slow finds the history
//! compacted, as with etcd.
//!
//! **Progress.** The answer to a progress request comes when everything up to the revision that it
//! names has been sent to every watch of the stream.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use async_trait::async_trait;
use etcd_client::EventType;
use etcd_client::proto::{
    PbEvent, PbKeyValue, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse, PbWatchService,
};
use futures::StreamExt;
use futures::stream::{BoxStream, unfold};
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep_until};
use tonic::{Request, Response, Status, Streaming};

use super::super::watch::EmbeddedWatch;
use super::{Api, header, key_range, key_value, status_of};
use crate::backend::{BackendError, Event, KeyRange, WatchBatch};
use crate::limits::{API_WATCHES_PER_STREAM, PROGRESS_INTERVAL};

/// The id of no watch.
const NO_WATCH: i64 = -1;

#[async_trait]
impl PbWatchService for Api {
    type WatchStream = BoxStream<'static, Result<PbWatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<PbWatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let watches = Watches::new(self.clone(), request.into_inner());
        let answers = unfold(Some(watches), |watches| async move {
            let mut watches = watches?;
            match watches.next().await {
                Ok(Some(answer)) => Some((Ok(answer), Some(watches))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(answers.boxed()))
    }
}

/// The watches of one stream.
struct Watches {
    api: Api,
    requests: Streaming<PbWatchRequest>,
    open: BTreeMap<i64, Watching>,
    next_id: i64,
    /// The watch that had the last turn.
    last: i64,
    progress_wanted: bool,
    /// Answers that are sent before anything else is done.
    outbox: VecDeque<PbWatchResponse>,
    changed: Receiver<()>,
}

struct Watching {
    watch: EmbeddedWatch,
    wants_progress: bool,
    without_puts: bool,
    without_deletions: bool,
}

/// A watch that a client wants.
struct WatchRequest {
    /// 0 for any.
    id: i64,
    keys: Option<KeyRange>,
    first: i64,
    with_values_before: bool,
}

impl Watches {
    fn new(api: Api, requests: Streaming<PbWatchRequest>) -> Self {
        let changed = api.shared.changed.subscribe();
        Self {
            api,
            requests,
            open: BTreeMap::new(),
            next_id: 0,
            last: NO_WATCH,
            progress_wanted: false,
            outbox: VecDeque::new(),
            changed,
        }
    }

    /// The next answer; `None` when the client wants no more.
    async fn next(&mut self) -> Result<Option<PbWatchResponse>, Status> {
        loop {
            if let Some(answer) = self.outbox.pop_front() {
                return Ok(Some(answer));
            }
            // What changes from here on wakes the wait below.
            self.changed.borrow_and_update();
            let wake_at = self.poll();
            if self.outbox.is_empty() && std::mem::take(&mut self.progress_wanted) {
                let answer = self.progress();
                self.outbox.push_back(answer);
            }
            if !self.outbox.is_empty() {
                continue;
            }
            tokio::select! {
                request = self.requests.message() => match request? {
                    Some(request) => self.accept(request).await?,
                    None => return Ok(None),
                },
                changed = self.changed.changed() => {
                    changed.map_err(|_| Status::unavailable("the store is gone"))?;
                }
                () = sleep_until(wake_at) => {}
            }
        }
    }

    /// Takes a request in.
    async fn accept(&mut self, request: PbWatchRequest) -> Result<(), Status> {
        let revision = self.api.read(|state, _| state.mvcc.revision()).await?;
        let mut answer = PbWatchResponse { header: header(revision), ..PbWatchResponse::default() };
        match request.request_union {
            Some(PbWatchRequestUnion::CreateRequest(create)) => {
                answer.created = true;
                let first = if create.start_revision == 0 { revision + 1 } else { create.start_revision };
                let wanted = WatchRequest {
                    id: create.watch_id,
                    // No key is the first of all.
                    keys: key_range(
                        if create.key.is_empty() { vec![0] } else { create.key },
                        create.range_end,
                    ),
                    first,
                    with_values_before: create.prev_kv,
                };
                match self.open(wanted) {
                    Ok((id, watch)) => {
                        let watching = Watching {
                            watch,
                            wants_progress: create.progress_notify,
                            without_puts: create.filters.contains(&0),
                            without_deletions: create.filters.contains(&1),
                        };
                        self.open.insert(id, watching);
                        answer.watch_id = id;
                    }
                    Err(why) => {
                        (answer.watch_id, answer.canceled, answer.cancel_reason) = (NO_WATCH, true, why);
                    }
                }
            }
            Some(PbWatchRequestUnion::CancelRequest(cancel)) => {
                if self.open.remove(&cancel.watch_id).is_none() {
                    // Nothing is said of a watch that there is not, as in etcd.
                    return Ok(());
                }
                (answer.watch_id, answer.canceled) = (cancel.watch_id, true);
            }
            Some(PbWatchRequestUnion::ProgressRequest(_)) => {
                self.progress_wanted = true;
                return Ok(());
            }
            None => return Ok(()),
        }
        self.outbox.push_back(answer);
        Ok(())
    }

    /// Opens a watch, or says why not.
    fn open(&mut self, wanted: WatchRequest) -> Result<(i64, EmbeddedWatch), String> {
        let Some(keys) = wanted.keys else { return Err("mvcc: watcher range is empty".to_owned()) };
        if wanted.with_values_before {
            return Err("embedded metadata do not tell the value before an event".to_owned());
        }
        let id = self.new_id(wanted.id)?;
        Ok((id, EmbeddedWatch::new(self.api.shared.clone(), keys, wanted.first)))
    }

    /// The id of a new watch: the one that is asked for, or the next free one.
    fn new_id(&mut self, wanted: i64) -> Result<i64, String> {
        if self.open.len() >= API_WATCHES_PER_STREAM {
            return Err(format!("a stream has at most {API_WATCHES_PER_STREAM} watches"));
        }
        if wanted != 0 {
            if self.open.contains_key(&wanted) {
                return Err("mvcc: duplicate watch ID provided on the WatchStream".to_owned());
            }
            return Ok(wanted);
        }
        while self.open.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Ok(self.next_id - 1)
    }

    /// Puts what one of the watches has to tell into the outbox, in turns. If none has, says when
    /// to look again although nothing changes.
    fn poll(&mut self) -> Instant {
        let mut wake_at = Instant::now() + PROGRESS_INTERVAL;
        let after = (Bound::Excluded(self.last), Bound::Unbounded);
        let ids: Vec<i64> =
            self.open.range(after).chain(self.open.range(..=self.last)).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(watching) = self.open.get_mut(&id) else { continue };
            let answer = match watching.watch.poll() {
                Ok((None, lease_deadline)) => {
                    wake_at = lease_deadline.map_or(wake_at, |deadline| deadline.min(wake_at));
                    None
                }
                Ok((Some(batch), _)) => {
                    // There may be more where that came from.
                    wake_at = Instant::now();
                    watching.answer(id, batch)
                }
                Err(error) => {
                    self.open.remove(&id);
                    Some(self.canceled(id, &error))
                }
            };
            if let Some(answer) = answer {
                self.last = id;
                self.outbox.push_back(answer);
                return wake_at;
            }
        }
        wake_at
    }

    fn canceled(&self, id: i64, error: &BackendError) -> PbWatchResponse {
        let (visible, _) = self.api.shared.with_state(|state, _| state.visible());
        let mut answer = PbWatchResponse {
            header: header(visible),
            watch_id: id,
            canceled: true,
            ..PbWatchResponse::default()
        };
        answer.cancel_reason = status_of(error).message().into();
        if let BackendError::Compacted { oldest } = error {
            answer.compact_revision = *oldest;
        }
        answer
    }

    /// How far every watch has come, when none has anything to tell.
    fn progress(&self) -> PbWatchResponse {
        let (visible, _) = self.api.shared.with_state(|state, _| state.visible());
        let reached = self.open.values().map(|w| w.watch.position()).fold(visible, i64::min);
        PbWatchResponse { header: header(reached), watch_id: NO_WATCH, ..PbWatchResponse::default() }
    }
}

impl Watching {
    /// A batch as the client wants it; `None` if it wants nothing of it.
    fn answer(&self, id: i64, batch: WatchBatch) -> Option<PbWatchResponse> {
        let is_progress = batch.events.is_empty();
        let events: Vec<PbEvent> = batch.events.into_iter().filter(|e| self.wants(e)).map(event).collect();
        let is_wanted = if is_progress { self.wants_progress } else { !events.is_empty() };
        is_wanted.then(|| PbWatchResponse {
            header: header(batch.revision),
            watch_id: id,
            events,
            ..PbWatchResponse::default()
        })
    }

    fn wants(&self, event: &Event) -> bool {
        match event {
            Event::Put(_) => !self.without_puts,
            Event::Delete { .. } => !self.without_deletions,
        }
    }
}

fn event(event: Event) -> PbEvent {
    match event {
        Event::Put(kv) => {
            PbEvent { r#type: EventType::Put.into(), kv: Some(key_value(kv)), ..PbEvent::default() }
        }
        Event::Delete { key, revision } => {
            let kv = PbKeyValue { key: key.into(), mod_revision: revision, ..PbKeyValue::default() };
            PbEvent { r#type: EventType::Delete.into(), kv: Some(kv), ..PbEvent::default() }
        }
    }
}
