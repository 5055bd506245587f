//! Connections that are half of something.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::{GroupId, JoinGroupRequest};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use strandline_tests::client::{Client, ClientError, frame, text};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::{AGAIN, Target};

/// The most that a frame may be.
const FRAME_BYTES: usize = 100 << 20;
/// What is sent of it.
const SENT_BYTES: usize = 98 << 20;
/// A moment after which a request waits in the broker.
const MOMENT: Duration = Duration::from_millis(100);
/// Connections that wait at once.
const WAITING: usize = 400;

/// Most of a large frame, and then nothing.
pub(super) async fn half_frames(target: Target, _: usize) {
    target
        .again(async |client| {
            send_half(client).await?;
            client.until_closed().await.map(drop)
        })
        .await;
}

/// The same behind a JoinGroup that waits for a member who never comes back.
pub(super) async fn half_behind_join(target: Target, number: usize) {
    let group = format!("held-{number}");
    target
        .again(async |client| {
            join(client, &group).await?;
            sleep(MOMENT).await;
            send_half(client).await?;
            client.until_closed().await.map(drop)
        })
        .await;
}

async fn send_half(client: &mut Client) -> Result<(), ClientError> {
    let mut head = BytesMut::new();
    head.put_i32(FRAME_BYTES as i32);
    head.put_slice(&[0, 0, 0, 9, 0, 0, 0, 1, 0xff, 0xff, 0]);
    client.send_raw(&head).await?;
    let piece = vec![b'z'; 1 << 20];
    for _ in 0..SENT_BYTES / piece.len() {
        client.send_raw(&piece).await?;
    }
    Ok(())
}

/// Asks to join, and does not wait for the answer, which comes when everybody has joined.
async fn join(client: &mut Client, group: &str) -> Result<(), ClientError> {
    let protocol =
        JoinGroupRequestProtocol::default().with_name(text("range")).with_metadata(Bytes::from_static(b"m"));
    let request = JoinGroupRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_session_timeout_ms(60_000)
        .with_rebalance_timeout_ms(i32::MAX)
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol]);
    client.send(&request, 3).await.map(drop)
}

/// Clients that ask to join and are gone while the answer waits.
pub(super) async fn closed_joins(target: Target, number: usize) {
    let mut round = 0;
    loop {
        round += 1;
        let group = format!("closed-{number}-{round}");
        let mut waiting = Vec::new();
        for _ in 0..WAITING {
            let Ok(mut client) = target.connect().await else { break };
            if join(&mut client, &group).await.is_err() {
                break;
            }
            waiting.push(client);
        }
        sleep(MOMENT).await;
    }
}

/// Connections that say nothing, or hello in another protocol, and go.
pub(super) async fn come_and_go(target: Target, _: usize) {
    let hellos: [&[u8]; 4] =
        [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", &[0; 4]];
    for hello in hellos.iter().cycle() {
        if let Ok(mut socket) = TcpStream::connect(&target.address).await {
            // It may be closed already.
            let _ = socket.write_all(hello).await;
        }
        sleep(Duration::from_millis(2)).await;
    }
}

/// Frames of noise, and requests with a few bytes changed.
pub(super) async fn garbage(target: Target, number: usize) {
    let mut rng = StdRng::seed_from_u64(number as u64);
    let template =
        frame(&strandline_tests::client::fetch_request("quiet", &[(0, 0)], 100, 1 << 20), 11, 1, "hostile");
    target
        .again(async |client| {
            for _ in 0..50 {
                let mut bytes = template.to_vec();
                if rng.random_bool(0.5) {
                    let length = rng.random_range(8..4_096_usize);
                    bytes = vec![0; 4 + length];
                    rng.fill_bytes(&mut bytes[4..]);
                    bytes[..4].copy_from_slice(&(length as u32).to_be_bytes());
                    // A known API, so that the body is looked at.
                    bytes[4..8].copy_from_slice(&[0, rng.random_range(0..93), 0, rng.random_range(0..14)]);
                } else {
                    for _ in 0..rng.random_range(1..6) {
                        let at = rng.random_range(4..bytes.len());
                        bytes[at] = rng.random();
                    }
                }
                client.send_raw(&bytes).await?;
            }
            client.set_timeout(Duration::from_secs(1));
            client.receive_raw().await.map(drop)
        })
        .await;
}

/// A request for a page, a byte at a time.
pub(super) async fn dripping_http(target: Target, _: usize) {
    loop {
        if let Ok(mut socket) = TcpStream::connect(&target.http_address).await {
            let _ = socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ").await;
            while socket.write_all(b"s").await.is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
        }
        sleep(AGAIN).await;
    }
}
