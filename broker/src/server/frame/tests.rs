//! How frames come out of a stream, and what they may hold while they do.

use std::time::Duration;

use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::time::{advance, timeout};

use super::*;

const MIB: usize = 1 << 20;

type Half = ReadHalf<DuplexStream>;

/// Both ends of a connection; the second one is read from.
fn pair() -> (DuplexStream, Half) {
    let (client, server) = tokio::io::duplex(1 << 22);
    (client, tokio::io::split(server).0)
}

fn reader(max_bytes: usize) -> FrameReader {
    FrameReader::new(max_bytes, &RequestMemory::new(8 * MIB), "/10.0.0.1")
}

async fn read(bytes: &[u8], max_bytes: usize) -> Result<Vec<Bytes>, FrameError> {
    let (mut client, mut server) = pair();
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
    let (mut client, mut server) = pair();
    let mut reader = reader(1 << 30);
    client.write_all(&(1_i32 << 30).to_be_bytes()).await.unwrap();
    client.write_all(&[0; 10]).await.unwrap();
    assert!(timeout(Duration::from_millis(50), reader.next(&mut server)).await.is_err());
    assert!(reader.body.capacity() <= 2 * FIRST_FRAME_BYTES);
    assert_eq!(reader.held_bytes(), 0);
}

#[tokio::test]
async fn a_frame_takes_no_more_than_its_length_and_leaves_nothing_with_the_reader() {
    for length in [5_000, 66_000, 600_000] {
        let (mut client, mut server) = pair();
        client.write_all(&framed(&vec![1; length])).await.unwrap();
        let mut reader = reader(MIB);
        let frame = reader.next(&mut server).await.unwrap().unwrap();
        assert_eq!(reader.held_bytes(), length);
        assert_eq!(reader.body.capacity(), 0, "the reader keeps a part of {length} bytes alive");
        let buffer = frame.bytes.try_into_mut().expect("nobody else has it");
        assert!(buffer.capacity() <= length, "{} bytes for {length}", buffer.capacity());
        frame.memory.release();
        assert_eq!(reader.held_bytes(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn frames_that_are_together_too_large_do_not_wait_for_each_other() {
    // One of them alone is larger than the whole budget.
    for bytes in [700_000, 5_000_000] {
        let memory = RequestMemory::new(MIB);
        let mut reading = Vec::new();
        for i in 0..8 {
            let (mut client, server) = tokio::io::duplex(1 << 23);
            let mut server = tokio::io::split(server).0;
            let frame = framed(&vec![1; bytes]);
            let (first, rest) = frame.split_at(300_000);
            client.write_all(first).await.unwrap();
            let mut reader = FrameReader::new(1 << 24, &memory, &format!("/10.0.0.{}", i / 2));
            let part = timeout(Duration::from_millis(1), reader.next(&mut server)).await;
            assert!(part.is_err(), "the rest is missing");
            client.write_all(rest).await.unwrap();
            reading.push(async move { reader.next(&mut server).await.unwrap().map(|f| f.bytes.len()) });
        }
        let all = futures::future::join_all(reading);
        let read = timeout(Duration::from_secs(5), all).await.expect("nobody waits for ever");
        assert_eq!(read, vec![Some(bytes); 8]);
    }
}

/// A connection on which a part of a frame has arrived.
struct Part {
    client: DuplexStream,
    server: Half,
    reader: FrameReader,
}

async fn half(memory: &RequestMemory, address: &str, length: usize, sent: usize) -> Part {
    let (mut client, mut server) = pair();
    client.write_all(&framed(&vec![0; length])[..sent]).await.unwrap();
    let mut reader = FrameReader::new(1 << 24, memory, address);
    assert!(timeout(Duration::from_millis(1), reader.next(&mut server)).await.is_err());
    Part { client, server, reader }
}

#[tokio::test(start_paused = true)]
async fn a_small_frame_does_not_wait_for_memory_that_large_ones_hold() {
    let memory = RequestMemory::new(4 * MIB);
    let mut slow = Vec::new();
    for _ in 0..3 {
        slow.push(half(&memory, "/10.0.0.1", 2 * MIB, MIB).await);
    }
    assert!(memory.large.contended_since().is_some());
    for length in [4_000, 20_000, SMALL_FRAME_BYTES] {
        let (mut client, mut server) = pair();
        client.write_all(&framed(&vec![5; length])).await.unwrap();
        let mut reader = FrameReader::new(1 << 24, &memory, "/10.0.0.1");
        let read = timeout(Duration::from_secs(1), reader.next(&mut server)).await;
        assert_eq!(read.expect("it need not wait").unwrap().unwrap().bytes.len(), length);
    }
    // A larger one of another address has its share.
    let (mut client, mut server) = pair();
    client.write_all(&framed(&vec![5; 700_000])).await.unwrap();
    let mut reader = FrameReader::new(1 << 24, &memory, "/10.0.0.2");
    let read = timeout(Duration::from_secs(1), reader.next(&mut server)).await;
    assert_eq!(read.expect("it need not wait").unwrap().unwrap().bytes.len(), 700_000);
}

#[tokio::test(start_paused = true)]
async fn what_came_fast_buys_no_time_for_the_rest() {
    let memory = RequestMemory::new(32 * MIB);
    let half = half(&memory, "/10.0.0.1", 4 * MIB, 3 * MIB).await;
    assert!(!half.reader.is_late());
    advance(ARRIVAL_GRACE).await;
    assert!(half.reader.is_late());
}

#[tokio::test(start_paused = true)]
async fn who_holds_much_while_others_wait_must_hurry() {
    let memory = RequestMemory::new(8 * MIB);
    let holder = half(&memory, "/10.0.0.1", 4 * MIB, 3 * MIB).await;
    advance(CONTENDED_GRACE * 2).await;
    assert!(!holder.reader.is_late(), "nobody waits");
    assert!(holder.reader.deadline().unwrap() <= Instant::now() + CONTENTION_CHECK);
    let mut waiter = half(&memory, "/10.0.0.1", 4 * MIB, 3 * MIB).await;
    assert!(!holder.reader.is_late(), "it is given the time");
    advance(CONTENDED_GRACE).await;
    assert!(holder.reader.is_late());
    waiter.reader.count_time(true);
    assert!(!waiter.reader.is_late() && waiter.reader.deadline().is_none(), "waiting is not its fault");
    drop(holder);
    waiter.client.write_all(&vec![0; 4 * MIB + 4 - 3 * MIB]).await.unwrap();
    let read = timeout(Duration::from_secs(1), waiter.reader.next(&mut waiter.server)).await;
    assert_eq!(read.unwrap().unwrap().unwrap().bytes.len(), 4 * MIB);
}

#[tokio::test(start_paused = true)]
async fn reading_survives_being_cancelled() {
    let (mut client, mut server) = pair();
    let stream = framed(&[9; 5000]);
    let mut reader = reader(1 << 20);
    let mut got = None;
    for chunk in stream.chunks(7) {
        client.write_all(chunk).await.unwrap();
        if let Ok(frame) = timeout(Duration::from_millis(1), reader.next(&mut server)).await {
            got = frame.unwrap();
        }
    }
    assert_eq!(&got.unwrap().bytes[..], &[9; 5000]);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_end_of_a_connection_is_noticed_behind_bytes_that_nobody_reads() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut input, _output) = listener.accept().await.unwrap().0.into_split();
    client.write_all(&[0; 10_000]).await.unwrap();
    assert!(timeout(Duration::from_millis(50), input.hung_up()).await.is_err(), "it is still there");
    drop(client);
    timeout(Duration::from_secs(5), input.hung_up()).await.expect("it has gone");
}
