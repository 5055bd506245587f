//! Writing answers, piece by piece, whenever the client takes some.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::memory::MemoryPermit;
use crate::limits::{PIECES_PER_WRITE, STUCK_WRITER};

/// An answer on its way out.
#[derive(Debug)]
struct Outgoing {
    pieces: VecDeque<Bytes>,
    /// Given back with the last byte.
    _memory: MemoryPermit,
}

/// Writes answers in the order in which they were pushed.
#[derive(Debug)]
pub(super) struct ReplyWriter<W> {
    output: W,
    answers: VecDeque<Outgoing>,
    needs_flush: bool,
    /// When the client last took something, or there was nothing to take.
    progress: Instant,
}

impl<W: AsyncWrite + Unpin> ReplyWriter<W> {
    pub(super) fn new(output: W) -> Self {
        Self { output, answers: VecDeque::new(), needs_flush: false, progress: Instant::now() }
    }

    /// Whether everything is written.
    pub(super) fn is_idle(&self) -> bool {
        self.answers.is_empty() && !self.needs_flush
    }

    /// When the client is given up unless it takes something before; `None` while there is nothing
    /// to take.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (!self.is_idle()).then(|| self.progress + STUCK_WRITER)
    }

    /// Queues an answer.
    pub(super) fn push(&mut self, pieces: Vec<Bytes>, memory: MemoryPermit) {
        if self.is_idle() {
            self.progress = Instant::now();
        }
        let pieces = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
        self.answers.push_back(Outgoing { pieces, _memory: memory });
    }

    /// Writes as much as the client takes now, waiting until it takes something. Gives how much
    /// that was. Cancellation-safe.
    pub(super) async fn advance(&mut self) -> io::Result<usize> {
        if self.answers.is_empty() {
            self.output.flush().await?;
            self.needs_flush = false;
            return Ok(0);
        }
        let slices: Vec<IoSlice<'_>> = self
            .answers
            .iter()
            .flat_map(|answer| &answer.pieces)
            .take(PIECES_PER_WRITE)
            .map(|piece| IoSlice::new(piece))
            .collect();
        let output = &mut self.output;
        // There may be answers without a byte.
        let taken = if slices.is_empty() {
            0
        } else {
            poll_fn(|cx| Pin::new(&mut *output).poll_write_vectored(cx, &slices)).await?
        };
        if taken == 0 && !slices.is_empty() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.needs_flush = true;
        self.progress = Instant::now();
        let mut written = taken;
        while let Some(answer) = self.answers.front_mut() {
            while let Some(piece) = answer.pieces.front_mut() {
                if piece.len() > written {
                    piece.advance(written);
                    return Ok(taken);
                }
                written -= piece.len();
                answer.pieces.pop_front();
            }
            self.answers.pop_front();
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::server::memory::MemoryBudget;

    #[tokio::test]
    async fn many_pieces_arrive_whole_and_in_order_and_give_their_memory_back() {
        let (near, mut far) = tokio::io::duplex(1000);
        let memory = MemoryBudget::new(1 << 20);
        let replies = memory.account("/10.0.0.1");
        let mut writer = ReplyWriter::new(near);
        let pieces: Vec<Bytes> =
            (0..2000_u32).map(|i| Bytes::from(vec![i.to_be_bytes()[3]; (i % 7) as usize])).collect();
        for answer in pieces.chunks(300) {
            writer.push(answer.to_vec(), replies.take(answer.iter().map(Bytes::len).sum()));
        }
        writer.push(Vec::new(), replies.take(0));
        let expected = pieces.concat();
        assert_eq!(memory.used(), expected.len());
        let reading = async {
            let mut all = vec![0; expected.len()];
            far.read_exact(&mut all).await.unwrap();
            all
        };
        let writing = async {
            while !writer.is_idle() {
                writer.advance().await.unwrap();
            }
        };
        let ((), read) = futures::join!(writing, reading);
        assert_eq!(read, expected);
        assert_eq!(memory.used(), 0);
    }
}
