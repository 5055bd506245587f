//! One connection: requests are taken in order, handled concurrently, and answered in order.
//!
//! ```text
//!   FrameReader ──▶ admission (one at a time) ──▶ handlers (concurrent) ──▶ ReplyWriter
//! ```
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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};

use super::frame::{Frame, FrameError, FrameReader, RequestMemory};
use super::memory::ReplyPermit;
use super::writer::ReplyWriter;
use crate::Broker;
use crate::api::{self, Client, PendingReply, Reply, RequestError};
use crate::limits::{CONNECTION_REPLY_BYTES, REQUESTS_IN_FLIGHT};

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
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Serves a connection until either side ends it.
pub(super) async fn serve<S>(broker: Arc<Broker>, io: S, peer: String, memory: RequestMemory)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    broker.metrics.connection_opened();
    let connection = Connection::new(broker.clone(), io, &peer, memory);
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
        Err(error) => info!(peer, %principal, %error, "connection closed by the broker"),
    }
}

/// A reply that is ready, with the memory that it holds until it is written.
type ReadyReply = Option<(Reply, ReplyPermit)>;

/// A request that is being admitted: until that is done no other one is started, which keeps
/// produces in order and lets a full buffer slow the client down.
type Admission = BoxFuture<'static, Result<PendingReply, RequestError>>;

struct Connection<S> {
    broker: Arc<Broker>,
    client: Arc<Client>,
    frames: FrameReader,
    input: tokio::io::ReadHalf<S>,
    writer: ReplyWriter<tokio::io::WriteHalf<S>>,
    admission: Option<Admission>,
    handlers: FuturesOrdered<BoxFuture<'static, ReadyReply>>,
    /// No request is started before this (KIP-219).
    muted_until: Option<Instant>,
    idle_since: Instant,
    /// The client has closed its side.
    is_closed: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Connection<S> {
    fn new(broker: Arc<Broker>, io: S, peer: &str, memory: RequestMemory) -> Self {
        let (input, output) = tokio::io::split(io);
        Self {
            client: Arc::new(Client::new(peer, &broker.reply_memory)),
            frames: FrameReader::new(broker.config.max_request_bytes, memory),
            broker,
            input,
            writer: ReplyWriter::new(output),
            admission: None,
            handlers: FuturesOrdered::new(),
            muted_until: None,
            idle_since: Instant::now(),
            is_closed: false,
        }
    }

    async fn run(mut self) -> Result<(), ConnectionError> {
        loop {
            // What was read before the client closed is still admitted: it may be records that want
            // no answer.
            if self.is_closed && self.admission.is_none() {
                return Ok(());
            }
            let may_start = self.may_start();
            self.frames.count_time(may_start);
            let deadline = self.deadline(may_start);
            let is_idle = self.is_idle();
            // In this order, so that a run can be repeated.
            tokio::select! {
                biased;
                written = self.writer.advance(), if !self.writer.is_idle() => {
                    written?;
                    self.idle_since = Instant::now();
                }
                Some(ready) = self.handlers.next() => self.answer(ready),
                admitted = admitted(&mut self.admission) => self.handle(admitted?),
                frame = arriving(&mut self.frames, &mut self.input, may_start), if !self.is_closed => {
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

    /// Whether another request may be started: its order, its number, the memory of answers and a
    /// throttle allow it.
    fn may_start(&self) -> bool {
        let replies = &self.client.replies;
        let has_memory =
            replies.used() < CONNECTION_REPLY_BYTES && (replies.used() == 0 || !replies.is_exhausted());
        self.admission.is_none()
            && self.handlers.len() < REQUESTS_IN_FLIGHT
            && has_memory
            && self.muted_until.is_none_or(|until| Instant::now() >= until)
    }

    fn is_idle(&self) -> bool {
        self.handlers.is_empty() && self.admission.is_none() && self.writer.is_idle()
    }

    /// When something is to be done although nothing happens.
    fn deadline(&self, may_start: bool) -> Instant {
        let idle = self.idle_since + self.broker.config.connection_idle;
        let muted = self.muted_until.filter(|_| !may_start);
        let arrival = self.frames.deadline();
        let next = [self.writer.deadline(), muted, arrival].into_iter().flatten().min();
        match next {
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
        if self.frames.deadline().is_some_and(|late| late <= deadline) {
            return Err(ConnectionError::SlowRequest);
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
        let (broker, client) = (self.broker.clone(), self.client.clone());
        self.admission = Some(Box::pin(async move {
            let pending = api::take(broker, client, frame.bytes).await;
            drop(frame.memory);
            pending
        }));
    }

    fn handle(&mut self, pending: PendingReply) {
        self.admission = None;
        let client = self.client.clone();
        self.handlers.push_back(Box::pin(async move {
            let mut reply = pending.await?;
            // From here on it is memory of answers, whether or not those before it are ready.
            let bytes = reply.bytes();
            let permit = match reply.memory.take() {
                Some(mut reserved) => {
                    reserved.resize(bytes);
                    reserved
                }
                None => client.replies.take(bytes),
            };
            Some((reply, permit))
        }));
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
async fn arriving<R: AsyncRead + Unpin>(
    frames: &mut FrameReader,
    input: &mut R,
    may_start: bool,
) -> Result<Arrival, FrameError> {
    if !may_start {
        return frames.watch(input).await.map(|()| Arrival::Closed);
    }
    if !frames.has_begun() {
        return frames.begin(input).await.map(|begun| if begun { Arrival::Begun } else { Arrival::Closed });
    }
    frames.next(input).await.map(|frame| frame.map_or(Arrival::Closed, Arrival::Request))
}

/// Waits for the request that is being admitted; for ever if there is none.
async fn admitted(admission: &mut Option<Admission>) -> Result<PendingReply, RequestError> {
    match admission {
        Some(admission) => admission.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
