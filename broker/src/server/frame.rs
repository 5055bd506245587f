//! Reading request frames: a length, then so many bytes.
//!
//! Nothing is allocated by the length alone: the buffer grows with what really arrives. What it may
//! hold is reserved before, from budgets that all connections share (invariant 9): one for small
//! requests and one for all others, so that those which take long to arrive never hold up the small
//! ones.

use std::future::Future;
use std::io;
use std::sync::{Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadHalf};
use tokio::net::tcp::OwnedReadHalf;
use tokio::time::Instant;

use super::memory::{MemoryAccount, MemoryBudget, MemoryPermit, Reservation};
use super::pace::Pace;
use crate::limits::{
    ARRIVAL_BYTES_PER_S, ARRIVAL_GRACE, CONNECTION_REQUEST_SHARE, CONTENDED_ARRIVAL_BYTES_PER_S,
    CONTENDED_GRACE, CONTENTION_CHECK, FIRST_FRAME_BYTES, FRAME_GROWTH, LEAST_FRAME_BYTES,
    PATIENT_FRAME_SHARE, SMALL_FRAME_BYTES, SMALL_FRAMES_PERCENT,
};

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("the frame says that it has {0} bytes")]
    Length(i32),
    #[error("the connection ended in the middle of a request")]
    Cut,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The memory that all requests together may take, from when they begin to arrive until they are
/// handled. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct RequestMemory {
    /// For frames up to [`SMALL_FRAME_BYTES`].
    pub(crate) small: MemoryBudget,
    /// For all others.
    pub(crate) large: MemoryBudget,
}

impl RequestMemory {
    /// Memory of so many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        let small = bytes / 100 * SMALL_FRAMES_PERCENT;
        Self { small: MemoryBudget::new(small), large: MemoryBudget::new(bytes - small) }
    }
}

/// What one connection takes of that memory.
#[derive(Debug)]
struct RequestAccount {
    small: MemoryAccount,
    large: MemoryAccount,
}

/// What a frame holds of that memory: nothing, if it is very small.
#[derive(Debug, Default)]
pub(crate) struct FrameMemory(Mutex<Option<MemoryPermit>>);

impl FrameMemory {
    /// Gives it back early: nothing of the frame is used any more but what is accounted elsewhere.
    pub(crate) fn release(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// A request, and the memory that it takes for as long as it is being handled.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) bytes: Bytes,
    pub(crate) memory: FrameMemory,
}

/// Reads one frame after the other. Cancellation-safe: what was read stays here.
#[derive(Debug)]
pub(super) struct FrameReader {
    max_bytes: usize,
    account: RequestAccount,
    length: [u8; 4],
    length_read: usize,
    wanted: usize,
    body: BytesMut,
    /// The place in the line for the frame's memory, while it waits for that.
    waiting: Option<Reservation>,
    held: Option<MemoryPermit>,
    /// How fast the request must arrive; `None` between requests.
    pace: Option<Pace>,
    /// The same while others wait for memory that it holds.
    contended_pace: Option<Pace>,
    /// Since when time does not count, since nothing is read.
    paused: Option<Instant>,
}

impl FrameReader {
    pub(super) fn new(max_bytes: usize, memory: &RequestMemory, address: &str) -> Self {
        let account =
            RequestAccount { small: memory.small.account(address), large: memory.large.account(address) };
        Self {
            max_bytes,
            account,
            length: [0; 4],
            length_read: 0,
            wanted: 0,
            body: BytesMut::new(),
            waiting: None,
            held: None,
            pace: None,
            contended_pace: None,
            paused: None,
        }
    }

    /// Bytes of requests that this connection holds, those that are being handled included.
    #[cfg(test)]
    fn held_bytes(&self) -> usize {
        self.account.small.used() + self.account.large.used()
    }

    /// Whether the requests that are being handled leave room for another one.
    pub(super) fn may_hold_more(&self) -> bool {
        [&self.account.small, &self.account.large].iter().all(|account| {
            account.used() <= account.budget().limit() / CONNECTION_REQUEST_SHARE || self.held.is_some()
        })
    }

    /// Whether the time counts in which a request arrives: it does not while this side does not
    /// read.
    pub(super) fn count_time(&mut self, may_read: bool) {
        if may_read && self.waiting.is_none() {
            self.resume();
        } else {
            self.paused.get_or_insert_with(Instant::now);
        }
    }

    fn resume(&mut self) {
        if let Some(since) = self.paused.take() {
            for pace in self.pace.iter_mut().chain(&mut self.contended_pace) {
                pace.forgive(since.elapsed());
            }
        }
    }

    /// When it is to be looked whether more of a request has arrived; `None` between requests and
    /// while time does not count.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let calm = self.pace.filter(|_| self.paused.is_none())?.deadline();
        // Others may begin to wait at any time.
        let check = || self.contended_deadline().unwrap_or_else(|| Instant::now() + CONTENTION_CHECK);
        Some(if self.is_large() { calm.min(check()) } else { calm })
    }

    /// Whether more of the request should have arrived by now.
    pub(super) fn is_late(&self) -> bool {
        let Some(pace) = self.pace.filter(|_| self.paused.is_none()) else { return false };
        let contended = self.contended_deadline().filter(|_| self.is_large());
        let deadline = contended.map_or(pace.deadline(), |contended| contended.min(pace.deadline()));
        deadline <= Instant::now()
    }

    /// Whether the request takes so much that others may have to wait for it.
    fn is_large(&self) -> bool {
        let patient = self.account.large.budget().limit() / PATIENT_FRAME_SHARE;
        self.wanted > patient.max(SMALL_FRAME_BYTES)
    }

    /// When the request must have arrived further if others wait for memory.
    fn contended_deadline(&self) -> Option<Instant> {
        let pace = self.contended_pace?;
        let since = self.account.large.budget().contended_since()?;
        Some(pace.deadline().max(since + CONTENDED_GRACE))
    }

    /// Whether a request has begun to arrive.
    pub(super) fn has_begun(&self) -> bool {
        self.pace.is_some()
    }

    /// Ends when the next request begins to arrive; `false` when the client has closed the
    /// connection before that.
    pub(super) async fn begin<R: Input>(&mut self, io: &mut R) -> Result<bool, FrameError> {
        self.fill(io, 0).await
    }

    /// The next frame; `None` when the client has closed the connection between frames.
    pub(super) async fn next<R: Input>(&mut self, io: &mut R) -> Result<Option<Frame>, FrameError> {
        if !self.fill(io, usize::MAX).await? {
            return Ok(None);
        }
        self.length_read = 0;
        (self.pace, self.contended_pace) = (None, None);
        // The whole buffer: half of one that is split would keep all of it alive.
        let bytes = std::mem::take(&mut self.body).freeze();
        Ok(Some(Frame { bytes, memory: FrameMemory(Mutex::new(self.held.take())) }))
    }

    /// Ends when the client has closed the connection, which may be in the middle of a request.
    /// Reads no more than the beginning of the next request, and says so by `arrived`; what ends
    /// behind more than that is for the socket to notice.
    pub(super) async fn watch<R: Input>(
        &mut self,
        io: &mut R,
        arrived: impl FnOnce(),
    ) -> Result<(), FrameError> {
        match self.fill(io, FIRST_FRAME_BYTES).await {
            Ok(true) => {
                arrived();
                io.hung_up().await;
                Ok(())
            }
            Ok(false) | Err(FrameError::Cut) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reads until the frame is whole, or `most` bytes of it are there. `false` when the client has
    /// closed the connection between frames.
    async fn fill<R: Input>(&mut self, io: &mut R, most: usize) -> Result<bool, FrameError> {
        while self.length_read < self.length.len() {
            let read = io.read(&mut self.length[self.length_read..]).await?;
            if read == 0 {
                return if self.length_read == 0 { Ok(false) } else { Err(FrameError::Cut) };
            }
            self.length_read += read;
            self.pace.get_or_insert_with(|| Pace::new(ARRIVAL_GRACE, ARRIVAL_BYTES_PER_S));
            if self.length_read == self.length.len() {
                let length = i32::from_be_bytes(self.length);
                let wanted =
                    usize::try_from(length).ok().filter(|l| (LEAST_FRAME_BYTES..=self.max_bytes).contains(l));
                self.wanted = wanted.ok_or(FrameError::Length(length))?;
            }
        }
        while self.body.len() < self.wanted.min(most) {
            if self.body.len() == self.body.capacity() {
                self.grow(io).await?;
            }
            let missing = self.wanted.min(most) - self.body.len();
            let read = (&mut *io).take(missing as u64).read_buf(&mut self.body).await?;
            if read == 0 {
                return Err(FrameError::Cut);
            }
            for pace in self.pace.iter_mut().chain(&mut self.contended_pace) {
                pace.advance(read);
            }
        }
        Ok(true)
    }

    /// Makes room for more of the frame. All that it will need is reserved at once, as soon as it
    /// outgrows what every frame may have: frames that each hold a part and wait for more would
    /// wait for each other.
    async fn grow<R: Input>(&mut self, io: &mut R) -> Result<(), FrameError> {
        let size = (self.body.len() * FRAME_GROWTH).max(FIRST_FRAME_BYTES).min(self.wanted);
        if size > FIRST_FRAME_BYTES && self.held.is_none() {
            self.paused.get_or_insert_with(Instant::now);
            let (account, wanted) = (&self.account, self.wanted);
            let account = if wanted <= SMALL_FRAME_BYTES { &account.small } else { &account.large };
            let reservation = self.waiting.get_or_insert_with(|| account.reserve(wanted, wanted));
            tokio::select! {
                biased;
                permit = reservation => self.held = Some(permit),
                () = io.hung_up() => return Err(FrameError::Cut),
            }
            self.waiting = None;
            self.resume();
            self.contended_pace = Some(Pace::new(CONTENDED_GRACE, CONTENDED_ARRIVAL_BYTES_PER_S));
        }
        // Of exactly that size, where a buffer that grows by itself may become twice as large.
        let mut larger = BytesMut::with_capacity(size);
        larger.extend_from_slice(&self.body);
        self.body = larger;
        Ok(())
    }
}

/// The side of a connection that is read from.
pub(super) trait Input: AsyncRead + Unpin + Send {
    /// Ends when the other end has closed its side, also while there are bytes to be read before
    /// that; never, where that cannot be told.
    fn hung_up(&mut self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

impl Input for OwnedReadHalf {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    async fn hung_up(&mut self) {
        // There is no urgent data, so nothing but the end is ever ready.
        let interest = tokio::io::Interest::PRIORITY;
        while self.ready(interest).await.is_ok_and(|ready| !ready.is_read_closed()) {
            tokio::task::yield_now().await;
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Input for ReadHalf<S> {}

#[cfg(test)]
mod tests;
