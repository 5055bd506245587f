//! Reading request frames: a length, then so many bytes.
//!
//! Nothing is allocated by the length alone: the buffer grows with what really arrives, and what it may hold is
//! taken from a budget that all connections share (invariant 9).

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// What a frame's buffer starts with; larger frames grow into larger buffers.
const FIRST_BYTES: usize = 64 * 1024;
/// A buffer that is full grows by this factor, as far as the frame goes.
const GROWTH: usize = 8;
/// Unit of the shared budget.
const UNIT: usize = 1024;
/// A request header cannot be shorter: api key, version, correlation id.
const LEAST_BYTES: usize = 8;

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
    units: u32,
}

impl RequestMemory {
    pub(super) fn new(bytes: usize) -> Self {
        let units = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX >> 3).max(1);
        Self { permits: Arc::new(Semaphore::new(units as usize)), units }
    }

    async fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, self.units);
        self.permits.clone().acquire_many_owned(units).await.ok()
    }
}

/// A request, and the memory that it takes for as long as it is being handled.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) bytes: Bytes,
    pub(super) memory: Option<OwnedSemaphorePermit>,
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
    permit: Option<OwnedSemaphorePermit>,
    begun: Option<Instant>,
}

impl FrameReader {
    pub(super) fn new(max_bytes: usize, memory: RequestMemory) -> Self {
        let body = BytesMut::new();
        Self { max_bytes, memory, length: [0; 4], length_read: 0, wanted: 0, body, permit: None, begun: None }
    }

    /// Since when a request has been arriving; `None` between requests.
    pub(super) fn begun(&self) -> Option<Instant> {
        self.begun
    }

    /// The next frame; `None` when the client has closed the connection between frames.
    pub(super) async fn next<R: AsyncRead + Unpin>(
        &mut self,
        io: &mut R,
    ) -> Result<Option<Frame>, FrameError> {
        while self.length_read < self.length.len() {
            let read = io.read(&mut self.length[self.length_read..]).await?;
            if read == 0 {
                return if self.length_read == 0 { Ok(None) } else { Err(FrameError::Cut) };
            }
            self.length_read += read;
            self.begun.get_or_insert_with(Instant::now);
            if self.length_read == self.length.len() {
                let length = i32::from_be_bytes(self.length);
                let wanted =
                    usize::try_from(length).ok().filter(|l| (LEAST_BYTES..=self.max_bytes).contains(l));
                self.wanted = wanted.ok_or(FrameError::Length(length))?;
            }
        }
        while self.body.len() < self.wanted {
            if self.body.len() == self.body.capacity() || self.body.capacity() == 0 {
                self.grow().await;
            }
            let missing = self.wanted - self.body.len();
            let read = (&mut *io).take(missing as u64).read_buf(&mut self.body).await?;
            if read == 0 {
                return Err(FrameError::Cut);
            }
        }
        self.length_read = 0;
        self.begun = None;
        Ok(Some(Frame { bytes: self.body.split().freeze(), memory: self.permit.take() }))
    }

    /// Makes room for more of the frame, once the budget allows it.
    async fn grow(&mut self) {
        let size = (self.body.len() * GROWTH).max(FIRST_BYTES).min(self.wanted);
        let held = self.permit.as_ref().map_or(0, |p| p.num_permits() * UNIT);
        if size > held {
            // The budget is never closed. A connection that waits here holds what it has already read, so the last
            // step of growth must not need more than the whole budget has: `take` sees to that.
            let more = self.memory.take(size - held).await;
            match (&mut self.permit, more) {
                (Some(permit), Some(more)) => permit.merge(more),
                (none, more) => *none = more,
            }
        }
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
        assert!(reader.body.capacity() <= 2 * FIRST_BYTES);
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
