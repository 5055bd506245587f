//! One connection: requests are taken in order, handled concurrently, and answered in order.
//!
//! ```text
//!   FrameReader ──▶ admission (one at a time) ──▶ handlers (concurrent) ──▶ ReplyWriter
//! ```
//!
//! Only requests whose replies are small, or have their memory reserved, are handled beside the
//! next ones: produces, fetches and most of those of groups. All others are handled within their
//! admission, one after the other as in Kafka, so a connection has at most one reply under way
//! whose size nobody knows.
//!
//! All of it is one task that waits for none of the four while another has something to do: a
//! client that reads slowly does not keep its requests from being handled, so what they hold is
//! given back; and one that has gone is noticed while its requests wait.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use tokio::io::AsyncWrite;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};

use super::frame::{Frame, FrameError, FrameReader, Input};
use super::memory::MemoryPermit;
use super::pace::Pace;
use super::writer::ReplyWriter;
use crate::Broker;
use crate::api::{self, Client, PendingReply, Reply, RequestError};
use crate::limits::{
    CONNECTION_REPLY_BYTES, CONTENDED_GRACE, CONTENTION_CHECK, DEPARTURE_BYTES_PER_S, LEAST_FETCH_BYTES,
    LEAST_REPLY_BYTES, REQUESTS_IN_FLIGHT,
};

/// Why a connection ended, other than by the client's closing it.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("a request did not arrive in time")]
    SlowRequest,
    #[error("the client stopped reading its responses")]
    StuckClient,
    #[error("others wait for the memory of its responses, which are read too slowly or wait behind another")]
    HeldReplies,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Serves a connection until either side ends it.
pub(super) async fn serve<R, W>(broker: Arc<Broker>, input: R, output: W, peer: String)
where
    R: Input,
    W: AsyncWrite + Unpin + Send,
{
    broker.metrics.connection_opened();
    let connection = Connection::new(broker.clone(), input, output, &peer);
    let client = connection.client.clone();
    let ended = connection.run().await;
    broker.metrics.connection_closed();
    let principal = &client.principal;
    match ended {
        Ok(()) => debug!(peer, "connection closed"),
        // A client that goes away in the middle is everyday life; one that talks nonsense is worth
        // a line.
        Err(ConnectionError::Io(error) | ConnectionError::Frame(FrameError::Io(error))) => {
            debug!(peer, %error, "connection lost");
        }
        Err(ConnectionError::Frame(FrameError::Cut)) => {
            debug!(peer, "connection closed in the middle of a request");
        }
        Err(error) => {
            let reason = match error {
                ConnectionError::SlowRequest => "slow_request",
                ConnectionError::StuckClient => "stuck",
                ConnectionError::HeldReplies => "held_replies",
                _ => "invalid",
            };
            broker.metrics.bounds().connection_cut(reason);
            info!(peer, %principal, %error, "connection closed by the broker");
        }
    }
}

/// A reply that is ready, with the memory that it holds until it is written.
type ReadyReply = Option<(Reply, MemoryPermit)>;

/// What was admitted: a request that goes on beside the next ones, or the reply to one that was
/// handled first.
enum AdmissionOutcome {
    Beside(PendingReply),
    Done(ReadyReply),
}

/// A request that is being admitted: until that is done no other one is started, which keeps
/// produces in order and lets a full buffer slow the client down.
struct Admission {
    taking: BoxFuture<'static, Result<AdmissionOutcome, RequestError>>,
    /// It may be records that want no answer, so the end of the connection does not end it.
    outlives_client: bool,
}

struct Connection<R, W> {
    broker: Arc<Broker>,
    client: Arc<Client>,
    frames: FrameReader,
    input: R,
    writer: ReplyWriter<W>,
    admission: Option<Admission>,
    handlers: FuturesOrdered<BoxFuture<'static, ReadyReply>>,
    /// How fast replies must leave while others wait for their memory; `None` while there are none.
    departure: Option<Pace>,
    /// No request is started before this (KIP-219).
    muted_until: Option<Instant>,
    idle_since: Instant,
    /// The client has closed its side.
    is_closed: bool,
}

impl<R: Input, W: AsyncWrite + Unpin + Send> Connection<R, W> {
    fn new(broker: Arc<Broker>, input: R, output: W, peer: &str) -> Self {
        let client = Client::new(peer, &broker.reply_memory, &broker.decoded_memory);
        Self {
            frames: FrameReader::new(broker.config.max_request_bytes, &broker.request_memory, &client.host),
            client: Arc::new(client),
            broker,
            input,
            writer: ReplyWriter::new(output),
            admission: None,
            handlers: FuturesOrdered::new(),
            departure: None,
            muted_until: None,
            idle_since: Instant::now(),
            is_closed: false,
        }
    }

    async fn run(mut self) -> Result<(), ConnectionError> {
        loop {
            // What was read before the client closed is still admitted, if it may be records that
            // want no answer.
            if self.is_closed && !self.admission.as_ref().is_some_and(|a| a.outlives_client) {
                return Ok(());
            }
            let may_start = self.may_start();
            self.frames.count_time(may_start);
            self.pace_departure();
            let deadline = self.deadline(may_start);
            let is_idle = self.is_idle();
            // In this order, so that a run can be repeated.
            tokio::select! {
                biased;
                written = self.writer.advance(), if !self.writer.is_idle() => {
                    if let Some(pace) = &mut self.departure {
                        pace.advance(written?);
                    }
                    self.idle_since = Instant::now();
                }
                Some(ready) = self.handlers.next() => self.answer(ready),
                admitted = admitted(&mut self.admission) => self.handle(admitted?),
                frame = arriving(&mut self.frames, &mut self.input, may_start, &self.client), if !self.is_closed => {
                    match frame? {
                        Arrival::Begun => {}
                        Arrival::Request(frame) => self.admit(frame),
                        Arrival::Closed => self.is_closed = true,
                    }
                }
                () = sleep_until(deadline) => {
                    if self.is_over(deadline)? {
                        return Ok(());
                    }
                }
                () = self.broker.connections_close(), if is_idle => return Ok(()),
            }
        }
    }

    /// Whether another request may be started: its order, its number, the memory that this
    /// connection holds and a throttle allow it.
    fn may_start(&self) -> bool {
        let replies = &self.client.replies;
        let has_memory =
            replies.used() < CONNECTION_REPLY_BYTES && (replies.used() == 0 || !replies.is_exhausted());
        self.admission.is_none()
            && self.handlers.len() < REQUESTS_IN_FLIGHT
            && self.frames.may_hold_more()
            && has_memory
            && self.muted_until.is_none_or(|until| Instant::now() >= until)
    }

    fn is_idle(&self) -> bool {
        self.handlers.is_empty() && self.admission.is_none() && self.writer.is_idle()
    }

    /// Replies have all the time that they need while nobody waits for their memory.
    fn pace_departure(&mut self) {
        if self.client.replies.used() <= LEAST_FETCH_BYTES {
            self.departure = None;
        } else {
            self.departure.get_or_insert_with(|| Pace::new(CONTENDED_GRACE, DEPARTURE_BYTES_PER_S));
        }
    }

    /// When the replies must have gone on; later, if nobody waits for their memory then.
    fn departure_deadline(&self) -> Option<Instant> {
        let pace = self.departure?.deadline();
        let since = self.client.replies.budget().contended_since();
        Some(since.map_or(Instant::now() + CONTENTION_CHECK, |since| pace.max(since + CONTENDED_GRACE)))
    }

    /// When something is to be done although nothing happens.
    fn deadline(&self, may_start: bool) -> Instant {
        let idle = self.idle_since + self.broker.config.connection_idle;
        let muted = self.muted_until.filter(|_| !may_start);
        let arrival = self.frames.deadline();
        let departure = self.departure_deadline();
        match [self.writer.deadline(), muted, arrival, departure].into_iter().flatten().min() {
            Some(next) => next,
            None if self.is_idle() => idle,
            None => Instant::now() + Duration::from_hours(1),
        }
    }

    /// Whether a deadline that has passed ends the connection.
    fn is_over(&mut self, deadline: Instant) -> Result<bool, ConnectionError> {
        if self.writer.deadline().is_some_and(|stuck| stuck <= deadline) {
            return Err(ConnectionError::StuckClient);
        }
        if self.frames.is_late() {
            return Err(ConnectionError::SlowRequest);
        }
        if self.departure_deadline().is_some_and(|late| late <= deadline) {
            return Err(ConnectionError::HeldReplies);
        }
        if self.muted_until.is_some_and(|until| until <= deadline) {
            self.muted_until = None;
        }
        // More of a request may have arrived since, so its deadline has moved.
        let is_idle = self.is_idle() && !self.frames.has_begun();
        Ok(is_idle && self.idle_since + self.broker.config.connection_idle <= deadline)
    }

    fn admit(&mut self, frame: Frame) {
        self.idle_since = Instant::now();
        self.client.set_crowded(false);
        let (broker, client) = (self.broker.clone(), self.client.clone());
        let outlives_client = api::outlives_client(&frame.bytes);
        let is_handled_first = api::is_handled_first(&frame.bytes);
        let taking = async move {
            if !is_handled_first {
                return Ok(AdmissionOutcome::Beside(api::take(broker, client, frame).await?));
            }
            // How large the reply becomes is known when it is there. Until then it counts a little,
            // and is not begun while there is not even that.
            let memory = client.replies.reserve(LEAST_REPLY_BYTES, LEAST_REPLY_BYTES).await;
            let pending = api::take(broker, client.clone(), frame).await?;
            Ok(AdmissionOutcome::Done(completed(&client, pending, Some(memory)).await))
        };
        self.admission = Some(Admission { taking: Box::pin(taking), outlives_client });
    }

    fn handle(&mut self, admitted: AdmissionOutcome) {
        self.admission = None;
        let client = self.client.clone();
        self.handlers.push_back(match admitted {
            AdmissionOutcome::Done(reply) => Box::pin(std::future::ready(reply)),
            AdmissionOutcome::Beside(pending) => {
                Box::pin(async move { completed(&client, pending, None).await })
            }
        });
    }

    fn answer(&mut self, ready: ReadyReply) {
        self.idle_since = Instant::now();
        let Some((reply, permit)) = ready else { return };
        if !reply.throttle.is_zero() {
            // The client is told how long, and would be right to go on afterwards (KIP-219).
            let until = Instant::now() + reply.throttle;
            self.muted_until = Some(self.muted_until.map_or(until, |before| before.max(until)));
        }
        self.writer.push(reply.pieces, permit);
    }
}

/// What comes from the client.
enum Arrival {
    /// A request begins to arrive: from now on there is a deadline for it.
    Begun,
    Request(Frame),
    Closed,
}

/// Waits for the next request or, if none may be started now, only for the end of the connection.
async fn arriving<R: Input>(
    frames: &mut FrameReader,
    input: &mut R,
    may_start: bool,
    client: &Client,
) -> Result<Arrival, FrameError> {
    if !may_start {
        let crowd = || client.set_crowded(true);
        return frames.watch(input, crowd).await.map(|()| Arrival::Closed);
    }
    if !frames.has_begun() {
        return frames.begin(input).await.map(|begun| if begun { Arrival::Begun } else { Arrival::Closed });
    }
    frames.next(input).await.map(|frame| frame.map_or(Arrival::Closed, Arrival::Request))
}

/// Waits for a reply. From when it is there it is memory of replies, whether or not those before it
/// are ready.
async fn completed(client: &Client, pending: PendingReply, memory: Option<MemoryPermit>) -> ReadyReply {
    let mut reply = pending.await?;
    // What was set aside for it covers what it keeps alive, which may be more than it is.
    let permit = reply.memory.take().unwrap_or_else(|| {
        let mut permit = memory.unwrap_or_else(|| client.replies.take(0));
        permit.resize(reply.bytes());
        permit
    });
    Some((reply, permit))
}

/// Waits for the request that is being admitted; for ever if there is none.
async fn admitted(admission: &mut Option<Admission>) -> Result<AdmissionOutcome, RequestError> {
    match admission {
        Some(admission) => (&mut admission.taking).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
