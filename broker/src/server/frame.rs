//! Reading request frames: a length, then so many bytes.
//!
//! Nothing is allocated by the length alone: the buffer grows with what really arrives, and what it
//! may hold is taken from a budget that all connections share (invariant 9).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::limits::{
    ARRIVAL_BYTES_PER_S, ARRIVAL_GRACE, FIRST_FRAME_BYTES, FRAME_GROWTH, LEAST_FRAME_BYTES,
    REQUEST_MEMORY_UNIT,
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

/// The memory that all requests together may take while they are read.
#[derive(Clone, Debug)]
pub(super) struct RequestMemory {
    permits: Arc<Semaphore>,
    /// Held by the one frame that may grow although nothing is left. Frames that each hold a part
    /// of the budget and wait for more would otherwise wait for each other.
    overdraft: Arc<Semaphore>,
}

/// What a frame holds of that memory.
#[derive(Debug, Default)]
pub(super) struct FrameMemory {
    permit: Option<OwnedSemaphorePermit>,
    overdraft: Option<OwnedSemaphorePermit>,
}

impl RequestMemory {
    pub(super) fn new(bytes: usize) -> Self {
        let units = u32::try_from(bytes / REQUEST_MEMORY_UNIT).unwrap_or(u32::MAX >> 3).max(1);
        Self { permits: Arc::new(Semaphore::new(units as usize)), overdraft: Arc::new(Semaphore::new(1)) }
    }

    /// Waits until `held` covers `bytes`. Cancellation-safe.
    async fn cover(&self, held: &mut FrameMemory, bytes: usize) {
        let units = held.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = bytes.div_ceil(REQUEST_MEMORY_UNIT).saturating_sub(units);
        if missing == 0 || held.overdraft.is_some() {
            return;
        }
        let missing = u32::try_from(missing).unwrap_or(u32::MAX >> 3);
        tokio::select! {
            biased;
            // The semaphores are never closed.
            more = self.permits.clone().acquire_many_owned(missing) => match (&mut held.permit, more.ok()) {
                (Some(permit), Some(more)) => permit.merge(more),
                (none, more) => *none = more,
            },
            overdraft = self.overdraft.clone().acquire_owned() => held.overdraft = overdraft.ok(),
        }
    }
}

/// A request, and the memory that it takes for as long as it is being handled.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) bytes: Bytes,
    pub(super) memory: FrameMemory,
}

/// Reads one frame after the other. Cancellation-safe: what was read stays here.
#[derive(Debug)]
pub(super) struct FrameReader {
    max_bytes: usize,
    memory: RequestMemory,
    length: [u8; 4],
    length_read: usize,
    wanted: usize,
    body: BytesMut,
    held: FrameMemory,
    /// Since when a request has been arriving; `None` between requests. Moved on by the time that
    /// does not count.
    begun: Option<Instant>,
    /// Since when time does not count, since nothing is read.
    paused: Option<Instant>,
}

impl FrameReader {
    pub(super) fn new(max_bytes: usize, memory: RequestMemory) -> Self {
        let (body, held) = (BytesMut::new(), FrameMemory::default());
        Self {
            max_bytes,
            memory,
            length: [0; 4],
            length_read: 0,
            wanted: 0,
            body,
            held,
            begun: None,
            paused: None,
        }
    }

    /// Whether the time counts in which a request arrives: it does not while this side does not
    /// read.
    pub(super) fn count_time(&mut self, counts: bool) {
        match (counts, self.paused) {
            (false, None) => self.paused = Some(Instant::now()),
            (true, Some(since)) => {
                self.paused = None;
                self.begun = self.begun.map(|begun| begun + since.elapsed());
            }
            _ => {}
        }
    }

    /// When more of a request that has begun must have arrived; `None` between requests and while
    /// time does not count.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let begun = self.begun.filter(|_| self.paused.is_none())?;
        let arrived = u64::try_from(self.body.len()).unwrap_or(u64::MAX);
        let earned = arrived.saturating_mul(1_000) / ARRIVAL_BYTES_PER_S as u64;
        Some(begun + ARRIVAL_GRACE + Duration::from_millis(earned))
    }

    /// Whether a request has begun to arrive.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.is_some()
    }

    /// Ends when the next request begins to arrive; `false` when the client has closed the
    /// connection before that.
    pub(super) async fn begin<R: AsyncRead + Unpin>(&mut self, io: &mut R) -> Result<bool, FrameError> {
        self.fill(io, 0).await
    }

    /// The next frame; `None` when the client has closed the connection between frames.
    pub(super) async fn next<R: AsyncRead + Unpin>(
        &mut self,
        io: &mut R,
    ) -> Result<Option<Frame>, FrameError> {
        if !self.fill(io, usize::MAX).await? {
            return Ok(None);
        }
        self.length_read = 0;
        self.begun = None;
        Ok(Some(Frame { bytes: self.body.split().freeze(), memory: std::mem::take(&mut self.held) }))
    }

    /// Ends when the client has closed the connection, which may be in the middle of a request.
    /// Reads no more than the beginning of the next request, so it does not notice while there is
    /// more than that to be read.
    pub(super) async fn watch<R: AsyncRead + Unpin>(&mut self, io: &mut R) -> Result<(), FrameError> {
        match self.fill(io, FIRST_FRAME_BYTES).await {
            Ok(true) => std::future::pending().await,
            Ok(false) | Err(FrameError::Cut) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reads until the frame is whole, or `most` bytes of it are there. `false` when the client has
    /// closed the connection between frames.
    async fn fill<R: AsyncRead + Unpin>(&mut self, io: &mut R, most: usize) -> Result<bool, FrameError> {
        while self.length_read < self.length.len() {
            let read = io.read(&mut self.length[self.length_read..]).await?;
            if read == 0 {
                return if self.length_read == 0 { Ok(false) } else { Err(FrameError::Cut) };
            }
            self.length_read += read;
            self.begun.get_or_insert_with(Instant::now);
            if self.length_read == self.length.len() {
                let length = i32::from_be_bytes(self.length);
                let wanted =
                    usize::try_from(length).ok().filter(|l| (LEAST_FRAME_BYTES..=self.max_bytes).contains(l));
                self.wanted = wanted.ok_or(FrameError::Length(length))?;
            }
        }
        while self.body.len() < self.wanted.min(most) {
            if self.body.len() == self.body.capacity() || self.body.capacity() == 0 {
                self.grow().await;
            }
            let missing = self.wanted.min(most) - self.body.len();
            let read = (&mut *io).take(missing as u64).read_buf(&mut self.body).await?;
            if read == 0 {
                return Err(FrameError::Cut);
            }
        }
        Ok(true)
    }

    /// Makes room for more of the frame, once the budget allows it.
    async fn grow(&mut self) {
        let size = (self.body.len() * FRAME_GROWTH).max(FIRST_FRAME_BYTES).min(self.wanted);
        self.memory.cover(&mut self.held, size.saturating_sub(FIRST_FRAME_BYTES)).await;
        self.body.reserve(size - self.body.len());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;

    use super::*;

    fn reader(max_bytes: usize) -> FrameReader {
        FrameReader::new(max_bytes, RequestMemory::new(1 << 20))
    }

    async fn read(bytes: &[u8], max_bytes: usize) -> Result<Vec<Bytes>, FrameError> {
        let (mut client, mut server) = tokio::io::duplex(1 << 22);
        client.write_all(bytes).await.unwrap();
        drop(client);
        let mut reader = reader(max_bytes);
        let mut frames = Vec::new();
        while let Some(frame) = reader.next(&mut server).await? {
            frames.push(frame.bytes);
        }
        Ok(frames)
    }

    fn framed(body: &[u8]) -> Vec<u8> {
        [&i32::try_from(body.len()).unwrap().to_be_bytes()[..], body].concat()
    }

    #[tokio::test]
    async fn frames_come_out_as_they_went_in() {
        let bodies = [vec![1; 8], vec![2; 100_000], vec![3; 700_000], vec![4; 9]];
        let stream: Vec<u8> = bodies.iter().flat_map(|b| framed(b)).collect();
        assert_eq!(read(&stream, 1 << 20).await.unwrap(), bodies);
    }

    #[tokio::test]
    async fn bad_lengths_and_cut_frames_are_errors() {
        for length in [-1_i32, 0, 7, 1001, i32::MAX, i32::MIN] {
            let mut stream = length.to_be_bytes().to_vec();
            stream.extend([0; 50]);
            assert!(matches!(read(&stream, 1000).await, Err(FrameError::Length(l)) if l == length));
        }
        let whole = framed(&[7; 50]);
        for cut in 1..whole.len() {
            assert!(matches!(read(&whole[..cut], 1000).await, Err(FrameError::Cut)), "{cut}");
        }
    }

    #[tokio::test]
    async fn a_promise_of_many_bytes_takes_little_memory() {
        let (mut client, mut server) = tokio::io::duplex(1 << 16);
        let mut reader = reader(1 << 30);
        client.write_all(&(1_i32 << 30).to_be_bytes()).await.unwrap();
        client.write_all(&[0; 10]).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), reader.next(&mut server)).await.is_err());
        assert!(reader.body.capacity() <= 2 * FIRST_FRAME_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn frames_that_hold_a_part_and_wait_for_more_do_not_wait_for_each_other() {
        // One of them alone is larger than the whole budget.
        for bytes in [700_000, 5_000_000] {
            let memory = RequestMemory::new(1 << 20);
            let mut reading = Vec::new();
            for _ in 0..8 {
                let (mut client, mut server) = tokio::io::duplex(1 << 23);
                let frame = framed(&vec![1; bytes]);
                let (first, rest) = frame.split_at(300_000);
                client.write_all(first).await.unwrap();
                let mut reader = FrameReader::new(1 << 24, memory.clone());
                let part = tokio::time::timeout(Duration::from_millis(1), reader.next(&mut server)).await;
                assert!(part.is_err(), "the rest is missing");
                client.write_all(rest).await.unwrap();
                reading.push(async move { reader.next(&mut server).await.unwrap().map(|f| f.bytes.len()) });
            }
            let all = futures::future::join_all(reading);
            let read =
                tokio::time::timeout(Duration::from_secs(5), all).await.expect("nobody waits for ever");
            assert_eq!(read, vec![Some(bytes); 8]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_frame_does_not_wait_for_memory_that_others_hold() {
        let memory = RequestMemory::new(1);
        let mut slow = Vec::new();
        for _ in 0..3 {
            let (mut client, mut server) = tokio::io::duplex(1 << 20);
            client.write_all(&framed(&vec![0; 500_000])[..100_000]).await.unwrap();
            let mut reader = FrameReader::new(1 << 24, memory.clone());
            assert!(tokio::time::timeout(Duration::from_millis(1), reader.next(&mut server)).await.is_err());
            slow.push((client, server, reader));
        }
        let (mut client, mut server) = tokio::io::duplex(1 << 20);
        client.write_all(&framed(&[5; 4000])).await.unwrap();
        let mut reader = FrameReader::new(1 << 24, memory);
        let read = tokio::time::timeout(Duration::from_secs(1), reader.next(&mut server)).await;
        assert_eq!(read.expect("it need not wait").unwrap().unwrap().bytes.len(), 4000);
    }

    #[tokio::test(start_paused = true)]
    async fn reading_survives_being_cancelled() {
        let (mut client, mut server) = tokio::io::duplex(1 << 20);
        let stream = framed(&[9; 5000]);
        let mut reader = reader(1 << 20);
        let mut got = None;
        for chunk in stream.chunks(7) {
            client.write_all(chunk).await.unwrap();
            if let Ok(frame) = tokio::time::timeout(Duration::from_millis(1), reader.next(&mut server)).await
            {
                got = frame.unwrap();
            }
        }
        assert_eq!(&got.unwrap().bytes[..], &[9; 5000]);
    }
}
