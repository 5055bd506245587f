//! One connection: requests are taken in order, handled concurrently, and answered in order.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info};

use super::frame::{FrameError, FrameReader, RequestMemory};
use crate::Broker;
use crate::api::{self, Client, Reply, RequestError};

/// Requests of one connection that are being handled.
const IN_FLIGHT: usize = 64;
/// Pieces that one vectored write hands to the kernel.
const PIECES_PER_WRITE: usize = 256;
/// A client that does not take a single byte of its answer for so long is cut off.
const STUCK: Duration = Duration::from_mins(1);
/// A request that has begun must have arrived within this: it holds memory that others wait for.
const ARRIVAL: Duration = Duration::from_mins(2);

/// Why a connection ended, other than by the client's closing it.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("a request did not arrive in time")]
    Slow,
    #[error("the client stopped reading its answers")]
    Stuck,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What a request that was taken in turns into: the future of its answer.
type Answer = BoxFuture<'static, Reply>;

/// Serves a connection until either side ends it.
pub(super) async fn serve<S>(broker: Arc<Broker>, mut io: S, peer: String, memory: RequestMemory)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    broker.metrics.connection_opened();
    let ended = run(&broker, &mut io, &peer, memory).await;
    broker.metrics.connection_closed();
    match ended {
        Ok(()) => debug!(peer, "connection closed"),
        // A client that goes away in the middle is everyday life; one that talks nonsense is worth a line.
        Err(Ended::Io(error) | Ended::Frame(FrameError::Io(error))) => {
            debug!(peer, %error, "connection lost");
        }
        Err(Ended::Frame(FrameError::Cut)) => debug!(peer, "connection closed in the middle of a request"),
        Err(error) => info!(peer, %error, "connection closed by the broker"),
    }
}

async fn run<S>(broker: &Arc<Broker>, io: &mut S, peer: &str, memory: RequestMemory) -> Result<(), Ended>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let client = Arc::new(Client::new(peer));
    let mut frames = FrameReader::new(broker.config.max_request_bytes, memory);
    let mut answers: FuturesOrdered<Answer> = FuturesOrdered::new();
    // A request that is being taken in: until that is done no other one is read, which keeps produces in order and
    // lets a full buffer slow the client down.
    let mut taking: Option<BoxFuture<'static, Result<Answer, RequestError>>> = None;
    let mut idle_since = Instant::now();
    let mut closed = false;
    loop {
        if closed && taking.is_none() && answers.is_empty() {
            return Ok(());
        }
        let idle_until = idle_since + broker.config.connection_idle;
        let until = frames.begun().map_or(idle_until, |begun| begun + ARRIVAL);
        let reads = !closed && taking.is_none() && answers.len() < IN_FLIGHT;
        // In this order, so that a run can be repeated. Answers do not starve requests: each needs one that was read.
        tokio::select! {
            biased;
            Some(reply) = answers.next() => {
                if let Some(pieces) = reply {
                    write_all(io, pieces).await?;
                }
                idle_since = Instant::now();
            }
            taken = async { taking.as_mut().expect_some().await }, if taking.is_some() => {
                taking = None;
                answers.push_back(taken?);
            }
            frame = frames.next(io), if reads => {
                match frame? {
                    None => closed = true,
                    Some(frame) => {
                        idle_since = Instant::now();
                        let (broker, client) = (broker.clone(), client.clone());
                        taking = Some(Box::pin(async move {
                            let answer = api::take(broker, client, frame.bytes).await;
                            drop(frame.memory);
                            answer
                        }));
                    }
                }
            }
            () = sleep_until(until), if answers.is_empty() && taking.is_none() => {
                if frames.begun().is_some() {
                    return Err(Ended::Slow);
                }
                debug!(peer, "closing an idle connection");
                return Ok(());
            }
            () = broker.connections_close(), if answers.is_empty() && taking.is_none() => {
                return Ok(());
            }
        }
    }
}

/// Unwraps what a select guard has checked.
trait ExpectSome<T> {
    fn expect_some(self) -> T;
}

impl<T> ExpectSome<T> for Option<T> {
    fn expect_some(self) -> T {
        self.unwrap_or_else(|| unreachable!("the guard of the branch says that there is one"))
    }
}

/// Writes every piece. Not cancellation-safe; the caller does not cancel it.
async fn write_all<S: AsyncWrite + Unpin>(io: &mut S, pieces: Vec<Bytes>) -> Result<(), Ended> {
    let mut left: VecDeque<Bytes> = pieces.into_iter().filter(|p| !p.is_empty()).collect();
    while !left.is_empty() {
        let slices: Vec<IoSlice<'_>> = left.iter().take(PIECES_PER_WRITE).map(|p| IoSlice::new(p)).collect();
        let mut written = timeout(STUCK, io.write_vectored(&slices)).await.map_err(|_| Ended::Stuck)??;
        if written == 0 {
            return Err(io::Error::from(io::ErrorKind::WriteZero).into());
        }
        while let Some(first) = left.front_mut() {
            if first.len() > written {
                first.advance(written);
                break;
            }
            written -= first.len();
            left.pop_front();
        }
    }
    timeout(STUCK, io.flush()).await.map_err(|_| Ended::Stuck)??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn many_pieces_arrive_whole_and_in_order() {
        let (mut near, mut far) = tokio::io::duplex(1000);
        let pieces: Vec<Bytes> =
            (0..2000_u32).map(|i| Bytes::from(vec![i.to_be_bytes()[3]; (i % 7) as usize])).collect();
        let expected = pieces.concat();
        let reading = async {
            let mut all = vec![0; expected.len()];
            far.read_exact(&mut all).await.unwrap();
            all
        };
        let (written, read) = futures::join!(write_all(&mut near, pieces), reading);
        written.unwrap();
        assert_eq!(read, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_reads_is_cut_off() {
        let (mut near, _far) = tokio::io::duplex(10);
        let stuck = write_all(&mut near, vec![Bytes::from(vec![0; 100])]).await;
        assert!(matches!(stuck, Err(Ended::Stuck)));
    }
}
