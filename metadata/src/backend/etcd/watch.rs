//! A watch on etcd.
//!
//! **Whole revisions.** etcd keeps the events of one revision together, except in a response that
//! it sends in fragments; then the newest revision's events are held back until the last fragment
//! has come.
//!
//! **What a progress report says.** A batch's `revision` is the one of its last event, and that of
//! an empty batch is the last one that was delivered. The revision in etcd's own progress responses
//! is *not* passed on: before 3.4.25 and 3.5.8 the answer to a progress request overtakes events
//! that are still queued for the watch (etcd-io/etcd#15220), so that skipping to it would lose
//! them; and the header of a response with events names the store's revision, which the watch may
//! not have reached. So a report proves that the stream is alive and says nothing new about
//! revisions. Whoever wants to know how far the store is ranges.
//!
//! **Silence.** While somebody waits, progress is asked for every two seconds, and a stream that
//! leaves a question unanswered for the request time-out is given up. The first question comes
//! after the first two seconds and not at once: between 3.4.25 and 3.4.31, and 3.5.8 and 3.5.13,
//! etcd never answers one that finds a watch not yet caught up unless an event follows
//! (etcd-io/etcd#17507); by then a watch without events has caught up.

use std::sync::Arc;

use async_trait::async_trait;
use etcd_client::proto::PbWatchResponse;
use etcd_client::{WatchResponse, WatchStream};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};
use tonic::{Code, Status};

use super::convert::{event, split, watch_options};
use super::failure::{Failure, is_about_token, of_status};
use super::lanes::{Choice, Purpose};
use super::session::Session;
use crate::backend::{BackendError, Event, KeyRange, Watch, WatchBatch};
use crate::limits::PROGRESS_INTERVAL;

pub(super) struct EtcdWatch {
    session: Arc<Session>,
    choice: Choice,
    stream: WatchStream,
    assembly: Assembly,
    questions: Interval,
    /// Since when a question has had no answer.
    asked_at: Option<Instant>,
}

/// Puts fragments together.
#[derive(Debug)]
struct Assembly {
    /// Events of the newest revision of an unfinished response.
    held_back: Vec<Event>,
    /// Everything up to and including this revision was delivered.
    delivered: i64,
}

impl EtcdWatch {
    /// Opens a watch and waits until etcd has confirmed it.
    pub(super) async fn open(
        session: &Arc<Session>,
        keys: &KeyRange,
        revision: i64,
    ) -> Result<Self, BackendError> {
        let (choice, stream) = session
            .call(Purpose::Watch, || create(session, keys, revision))
            .await
            .map_err(Failure::of_read)?;
        let mut questions = interval_at(Instant::now() + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
        questions.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let assembly = Assembly { held_back: Vec::new(), delivered: revision - 1 };
        Ok(Self { session: Arc::clone(session), choice, stream, assembly, questions, asked_at: None })
    }

    /// The next message, or why there is none. Cancellation-safe: a message is taken only in the
    /// last step.
    async fn message(&mut self) -> Result<PbWatchResponse, Failure> {
        loop {
            let given_up_at = self.asked_at.map(|asked_at| asked_at + self.session.request_timeout);
            tokio::select! {
                biased;
                message = self.stream.message() => {
                    self.asked_at = None;
                    return match message {
                        Ok(Some(WatchResponse(response))) => Ok(response),
                        Ok(None) => Err(Failure::NotExecuted("etcd has closed the watch".to_owned())),
                        Err(error) => Err(Failure::from(error)),
                    };
                }
                () = until(given_up_at) => {
                    return Err(Failure::Lost("the watch is stuck: a progress request has no answer".to_owned()));
                }
                _ = self.questions.tick(), if self.asked_at.is_none() => {
                    self.stream.request_progress().await?;
                    self.asked_at = Some(Instant::now());
                }
            }
        }
    }
}

#[async_trait]
impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<WatchBatch, BackendError> {
        loop {
            let response = match self.message().await {
                Ok(response) => response,
                Err(failure) => {
                    self.session.doubt(Purpose::Watch, self.choice);
                    return Err(failure.of_read());
                }
            };
            if response.canceled {
                return Err(why_canceled(&response).of_read());
            }
            if let Some(batch) = self.assembly.accept(response)? {
                return Ok(batch);
            }
        }
    }
}

impl Assembly {
    /// Takes a response; gives a batch unless the response is a fragment that completes no
    /// revision.
    fn accept(&mut self, response: PbWatchResponse) -> Result<Option<WatchBatch>, BackendError> {
        let fragment = response.fragment;
        let mut events = std::mem::take(&mut self.held_back);
        events.reserve(response.events.len());
        for received in response.events {
            let received = event(received)?;
            let newest = events.last().map_or(self.delivered + 1, Event::revision);
            if received.revision() < newest {
                return Err(BackendError::Broken(format!(
                    "an event of revision {} after one of revision {newest}",
                    received.revision()
                )));
            }
            events.push(received);
        }
        if fragment {
            let newest = events.last().map_or(0, Event::revision);
            let complete = events.partition_point(|event| event.revision() < newest);
            self.held_back = events.split_off(complete);
            if events.is_empty() {
                return Ok(None);
            }
        }
        self.delivered = events.last().map_or(self.delivered, Event::revision);
        Ok(Some(WatchBatch { events, revision: self.delivered }))
    }
}

impl std::fmt::Debug for EtcdWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdWatch").field("assembly", &self.assembly).finish_non_exhaustive()
    }
}

async fn create(session: &Session, keys: &KeyRange, revision: i64) -> Result<(Choice, WatchStream), Failure> {
    let choice = session.choice(Purpose::Watch);
    let (key, end) = split(keys);
    let mut stream = session.watches().watch(key, Some(watch_options(end, revision))).await?;
    match stream.message().await? {
        Some(WatchResponse(response)) if response.canceled => Err(why_canceled(&response)),
        Some(WatchResponse(response)) if response.created => Ok((choice, stream)),
        Some(_) => {
            Err(Failure::Refused(BackendError::Broken("a watch began without being created".to_owned())))
        }
        None => Err(Failure::NotExecuted("etcd has closed the watch".to_owned())),
    }
}

fn why_canceled(response: &PbWatchResponse) -> Failure {
    if response.compact_revision > 0 {
        return Failure::Refused(BackendError::Compacted { oldest: response.compact_revision });
    }
    let reason = &response.cancel_reason;
    // etcd before 3.5.9 says so of an old token as well; the caller finds out which it is by
    // logging in again.
    if reason.contains("permission denied") || is_about_token(reason) {
        return Failure::Token(reason.clone());
    }
    of_status(&Status::new(Code::Unavailable, reason))
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use etcd_client::proto::{PbEvent, PbKeyValue};

    use super::*;

    fn response(revisions: &[i64], fragment: bool) -> PbWatchResponse {
        let put = |revision: &i64| PbEvent {
            kv: Some(PbKeyValue { key: b"k".to_vec(), mod_revision: *revision, ..PbKeyValue::default() }),
            ..PbEvent::default()
        };
        PbWatchResponse {
            events: revisions.iter().map(put).collect(),
            fragment,
            ..PbWatchResponse::default()
        }
    }

    fn revisions(batch: Option<WatchBatch>) -> Option<(Vec<i64>, i64)> {
        batch.map(|batch| (batch.events.iter().map(Event::revision).collect(), batch.revision))
    }

    #[test]
    fn fragments_become_whole_revisions() {
        let mut assembly = Assembly { held_back: Vec::new(), delivered: 4 };
        let mut accept =
            |events: &[i64], fragment| revisions(assembly.accept(response(events, fragment)).unwrap());
        assert_eq!(accept(&[5, 5], true), None);
        assert_eq!(accept(&[5, 6, 7], true), Some((vec![5, 5, 5, 6], 6)));
        assert_eq!(accept(&[7], true), None);
        assert_eq!(accept(&[7, 8], false), Some((vec![7, 7, 7, 8], 8)));
        assert_eq!(accept(&[], false), Some((vec![], 8)), "a progress report tells what was delivered");
    }

    #[test]
    fn history_does_not_go_back() {
        let mut assembly = Assembly { held_back: Vec::new(), delivered: 4 };
        assert!(assembly.accept(response(&[4], false)).is_err());
        let mut assembly = Assembly { held_back: Vec::new(), delivered: 4 };
        assert!(assembly.accept(response(&[6, 5], false)).is_err());
    }

    #[test]
    fn a_canceled_watch_says_why() {
        let canceled = |compact_revision, cancel_reason: &str| PbWatchResponse {
            canceled: true,
            compact_revision,
            cancel_reason: cancel_reason.to_owned(),
            ..PbWatchResponse::default()
        };
        let why = |compacted, reason| why_canceled(&canceled(compacted, reason)).of_read();
        assert_eq!(why(9, ""), BackendError::Compacted { oldest: 9 });
        assert!(matches!(why(0, "etcdserver: permission denied"), BackendError::Denied(_)));
        assert!(matches!(why(0, "etcdserver: no leader"), BackendError::Unavailable(_)));
    }
}
