//! What is stored of a group: reads it, writes what changes, and holds answers back until what they
//! tell is stored. Knows nothing of the protocols.
//!
//! One operation is in flight at a time. While a write of the group itself is under way no request
//! is taken: its answer could tell what is not stored. While offsets are written or read,
//! heartbeats and the like go on. Whatever waits meanwhile shares the next write.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use strandline_metadata::backend::BackendError;
use strandline_metadata::groups::{
    self, GroupPut, GroupReadError, GroupWriteError, OffsetsKey, StoredOffsets,
};
use strandline_metadata::limits::BACKEND_TIMEOUT;
use strandline_metadata::values::VALUE_FORMAT;
use strandline_metadata::values::group::{GroupState, GroupValue};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::environment::GroupKeys;
use super::error::{CoordinatorError, GroupError};
use super::offsets::{Offsets, SharedOffsets};
use super::reply::{Reply, Response, Subject};
use super::write::{self, Written};
use crate::limits::{GROUP_PUT_BYTES_PER_S, GROUP_WAITING};

/// Why a group's task ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Another broker coordinates the group, or this one may not any more.
    Replaced,
    /// What is stored is not known.
    Lost,
    /// Nothing is stored, and nobody asks.
    Idle,
}

impl End {
    /// What everybody hears who waits.
    pub(super) fn error(self) -> CoordinatorError {
        match self {
            Self::Replaced => CoordinatorError::NotCoordinator,
            Self::Lost | Self::Idle => CoordinatorError::NoAnswer,
        }
    }
}

/// What is stored of a group, what is on its way, and what waits.
pub(super) struct GroupStore {
    keys: GroupKeys,
    /// Mod revision of the group's key; 0 if there is none.
    revision: i64,
    pub(super) offsets: Offsets,
    /// The group is not as it is stored.
    is_changed: bool,
    /// The group's own key is not written before this.
    next_put: Instant,
    /// Answers for the next write.
    waiting: Vec<Response>,
    /// Questions for the next read.
    fetches: Vec<Fetch>,
    in_flight: Option<InFlight>,
    /// Reads and writes take turns: a group that commits all the time still finds out what is
    /// committed.
    is_turn_of_reads: bool,
}

type Fetch = Reply<Arc<SharedOffsets>>;

struct InFlight {
    operation: BoxFuture<'static, Done>,
    /// Whether the group itself is written.
    writes_group: bool,
    waiting: Vec<Response>,
    fetches: Vec<Fetch>,
}

enum Done {
    Written(Written, Instant),
    Read(Result<StoredOffsets, GroupReadError>),
}

/// What came of an operation.
#[must_use]
pub(super) struct Completed {
    /// Keys of offsets that are others now; `None` for all.
    pub(super) changed: Option<Vec<OffsetsKey>>,
    /// To be delivered once the change is shown, or whoever is answered would not find what it was
    /// told.
    pub(super) responses: Vec<Response>,
    /// What is delivered with them.
    pub(super) stored: Result<(), CoordinatorError>,
    /// Whether the task must end.
    pub(super) end: Option<End>,
}

impl GroupStore {
    /// Reads a group.
    pub(super) async fn open(keys: GroupKeys) -> Result<(Self, Option<GroupValue>), CoordinatorError> {
        let (env, group) = (&keys.env, &keys.group);
        let read = async {
            let stored = groups::read(env.replica.backend().as_ref(), env.replica.keys(), group).await?;
            // What this broker has heard of the group decides whether it goes on. If its watch left
            // something out, that would seem to be another broker's work for ever; the barrier
            // finds it.
            env.replica.barrier().await.map_err(|e| BackendError::Unavailable(e.to_string()))?;
            env.caught_up(newest(&stored.offsets).max(stored.revision)).await?;
            Ok(stored)
        };
        let stored = match timeout(BACKEND_TIMEOUT, read).await.unwrap_or_else(late) {
            Ok(stored) => stored,
            Err(GroupReadError::Value(error)) => {
                warn!(group, %error, "a group cannot be read");
                return Err(CoordinatorError::Unreadable);
            }
            Err(GroupReadError::Backend(error)) => {
                debug!(group, %error, "a group cannot be read now");
                return Err(CoordinatorError::NoAnswer);
            }
        };
        let store = Self {
            keys,
            revision: stored.revision,
            offsets: Offsets::new(stored.offsets),
            is_changed: false,
            next_put: Instant::now(),
            waiting: Vec::new(),
            fetches: Vec::new(),
            in_flight: None,
            is_turn_of_reads: false,
        };
        Ok((store, stored.value))
    }

    /// Mod revision of the group's key; 0 if there is none.
    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    /// Whether the group has a key of its own.
    pub(super) fn has_group(&self) -> bool {
        self.revision > 0
    }

    /// Whether nothing is stored, is to be stored, or is waited for.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_none()
            && !self.has_group()
            && !self.is_changed
            && self.offsets.is_empty()
            && self.fetches.is_empty()
    }

    /// Whether the group itself is being written: nothing may be decided meanwhile.
    pub(super) fn is_blocked(&self) -> bool {
        self.in_flight.as_ref().is_some_and(|f| f.writes_group)
    }

    /// Whether a request may be taken. Not when as many wait as may (invariant 9): others wait in
    /// the queue, and then at their sockets.
    pub(super) fn takes_requests(&self) -> bool {
        // As many may have been deferred to the write that is on its way, and as many may have
        // joined them since.
        let joined = self.in_flight.as_ref().map_or(0, |f| f.waiting.len());
        let is_full = self.waiting.len() + self.fetches.len() >= GROUP_WAITING || joined >= 2 * GROUP_WAITING;
        !self.is_blocked() && !is_full
    }

    /// When [`Self::start`] is to be called again, if it has to wait.
    pub(super) fn next_start(&self) -> Option<Instant> {
        (self.is_changed && self.in_flight.is_none()).then_some(self.next_put)
    }

    /// Whether this broker coordinates the group as far as it knows, and nobody else has written
    /// it.
    pub(super) fn is_coordinator(&self) -> bool {
        let GroupKeys { env, group, session } = &self.keys;
        env.sessions.current() == Some(*session)
            && env.replica.read(|view| {
                let known = view.names.group_revision(group);
                // While the group is being written, another revision may be its own.
                let is_untouched = self.is_blocked()
                    || known == self.revision
                    || (known < self.revision && view.revision < self.revision);
                is_untouched && env.coordinates(&view.names, group)
            })
    }

    /// The group is not as it is stored.
    pub(super) fn group_changed(&mut self) {
        self.is_changed = true;
    }

    /// Takes an answer, and delivers it once all that it tells is stored: at once if it already is.
    pub(super) fn submit(&mut self, response: Response) {
        let is_of_offsets = response.subject == Subject::Offsets;
        if self.is_changed || (is_of_offsets && self.offsets.has_unsaved()) {
            self.waiting.push(response);
            return;
        }
        match &mut self.in_flight {
            // A write that is on its way need not be the one of who asks: a deletion that is asked
            // for twice finds nothing to delete the second time.
            Some(write) if is_of_offsets && self.offsets.is_saving() => write.waiting.push(response),
            _ => response.deliver(Ok(())),
        }
    }

    /// Takes a question for what is committed. Another broker may have coordinated the group for a
    /// while, so it is answered with what the next read finds.
    pub(super) fn fetch(&mut self, reply: Fetch) {
        self.fetches.push(reply);
    }

    /// Starts the next operation, if there is something to do and none is in flight. `group` is
    /// what is to be stored, and since when it is in its state.
    pub(super) fn start(&mut self, group: impl FnOnce() -> (Option<GroupState>, i64)) {
        if self.in_flight.is_some() {
            return;
        }
        let writes =
            if self.is_changed { Instant::now() >= self.next_put } else { self.offsets.has_unsaved() };
        let reads = !self.fetches.is_empty() && (self.is_turn_of_reads || !writes);
        // While it is not known what is stored nothing is written: every answer that waits means
        // the offsets, too.
        if reads || !self.offsets.are_known() {
            self.start_read();
        } else if writes {
            self.start_write(group);
        }
    }

    fn start_write(&mut self, group: impl FnOnce() -> (Option<GroupState>, i64)) {
        let (writer, write) = (self.keys.session.incarnation, self.keys.env.next_write());
        let writes_group = std::mem::take(&mut self.is_changed);
        let put = match writes_group.then(group) {
            Some((Some(group), state_since_ms)) => GroupPut::Put(Box::new(GroupValue {
                format: VALUE_FORMAT,
                writer,
                write,
                state_since_ms,
                group,
            })),
            Some((None, _)) if self.has_group() => GroupPut::Delete,
            Some((None, _)) | None => GroupPut::Keep,
        };
        let offsets = self.offsets.begin_save(writer, write);
        let (keys, revision, began) = (self.keys.clone(), self.revision, Instant::now());
        let operation = async move { Done::Written(write::all(keys, revision, put, offsets).await, began) };
        self.is_turn_of_reads = true;
        self.in_flight = Some(InFlight {
            operation: operation.boxed(),
            writes_group,
            waiting: std::mem::take(&mut self.waiting),
            fetches: Vec::new(),
        });
    }

    fn start_read(&mut self) {
        let GroupKeys { env, group, .. } = self.keys.clone();
        let known = self.offsets.revisions();
        let operation = async move {
            let read = async {
                let (backend, keys) = (env.replica.backend().as_ref(), env.replica.keys());
                let stored = groups::read_offsets(backend, keys, &group, known).await?;
                env.caught_up(newest(&stored)).await?;
                Ok(stored)
            };
            Done::Read(timeout(BACKEND_TIMEOUT, read).await.unwrap_or_else(late))
        };
        self.is_turn_of_reads = false;
        self.in_flight = Some(InFlight {
            operation: operation.boxed(),
            writes_group: false,
            waiting: Vec::new(),
            fetches: std::mem::take(&mut self.fetches),
        });
    }

    /// Waits for the operation in flight; for ever if there is none. Cancellation-safe: the
    /// operation stays where it is.
    pub(super) async fn completed(&mut self) -> Completed {
        let Some(in_flight) = &mut self.in_flight else { return std::future::pending().await };
        let done = (&mut in_flight.operation).await;
        let writes_group = in_flight.writes_group;
        let (waiting, fetches) =
            (std::mem::take(&mut in_flight.waiting), std::mem::take(&mut in_flight.fetches));
        self.in_flight = None;
        match done {
            Done::Written(written, began) => self.written(written, began, writes_group, waiting),
            Done::Read(read) => self.read(read, fetches),
        }
    }

    fn written(
        &mut self,
        written: Written,
        began: Instant,
        writes_group: bool,
        waiting: Vec<Response>,
    ) -> Completed {
        let Written { revision, value_bytes, offsets, result } = written;
        let bytes = u32::try_from(value_bytes).unwrap_or(u32::MAX);
        self.next_put = self.next_put.max(began + Duration::from_secs(1) * bytes / GROUP_PUT_BYTES_PER_S);
        self.revision = revision;
        self.offsets.end_save(&offsets);
        let mut completed = Completed {
            changed: Some(offsets.into_iter().map(|(key, _)| key).collect()),
            responses: waiting,
            stored: result.clone().map_err(CoordinatorError::from),
            end: None,
        };
        let group = &self.keys.group;
        completed.end = match result {
            Ok(()) => None,
            Err(GroupWriteError::Conflict) => {
                info!(group, "another broker wrote the group; it is read again");
                Some(End::Replaced)
            }
            Err(GroupWriteError::NotRegistered | GroupWriteError::Closed) => Some(End::Replaced),
            Err(GroupWriteError::Backend(error)) => {
                warn!(group, %error, "a group could not be written");
                if !writes_group {
                    self.offsets.forget_unsaved();
                    completed.responses.append(&mut self.waiting);
                }
                // What changed meanwhile was promised to nobody.
                (writes_group || self.is_changed).then_some(End::Lost)
            }
        };
        completed
    }

    fn read(&mut self, read: Result<StoredOffsets, GroupReadError>, fetches: Vec<Fetch>) -> Completed {
        let mut completed = Completed { changed: None, responses: Vec::new(), stored: Ok(()), end: None };
        match read {
            Ok(stored) => {
                let is_untouched = self.offsets.replace(stored);
                completed.end = (!is_untouched).then_some(End::Replaced);
                // Whoever asks picks what it needs: that may be much, and is done elsewhere.
                let stored = self.offsets.stored();
                let found = |reply: Fetch| reply.with_offsets(Ok::<_, GroupError>(stored.clone()));
                completed.responses.extend(fetches.into_iter().map(found));
            }
            Err(error) => {
                debug!(group = self.keys.group, %error, "committed offsets cannot be read");
                for reply in fetches {
                    reply.refuse(CoordinatorError::NoAnswer);
                }
                completed.changed = Some(Vec::new());
                // Whoever waits for a write is not left waiting for a read that fails again and
                // again.
                completed.end = (!self.offsets.are_known()).then_some(End::Lost);
            }
        }
        completed
    }

    /// Answers everybody who waits with an error. A write in flight goes on: what it stores is
    /// right whoever coordinates.
    pub(super) fn refuse_all(self, error: &CoordinatorError) {
        let in_flight = self.in_flight.map(|f| (f.waiting, f.fetches)).unwrap_or_default();
        for response in in_flight.0.into_iter().chain(self.waiting) {
            response.deliver(Err(error.clone()));
        }
        for reply in in_flight.1.into_iter().chain(self.fetches) {
            reply.refuse(error.clone());
        }
    }
}

fn late<T>(_: Elapsed) -> Result<T, GroupReadError> {
    Err(BackendError::Unavailable("no answer in time".to_owned()).into())
}

/// The revision of the latest commit.
fn newest(offsets: &StoredOffsets) -> i64 {
    offsets.values().map(|(revision, _)| *revision).max().unwrap_or(0)
}
