//! Records that cost more than they are.

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{ListOffsetsRequest, ProduceRequest};
use kafka_protocol::records::Compression;
use strandline_tests::client::{frame, produce_request, topic};
use strandline_tests::records::batch;
use strandline_tests::surroundings::now_ms;

use super::{BOMB, LARGE, QUIET, Target, WIDE, WIDE_PARTITIONS};

/// More partitions in one request than one object describes.
const PARTITIONS: i32 = 262_145;
/// The broker's largest request, nearly.
const FRAME_BYTES: usize = 90 << 20;
/// Made-up producers in one request.
const PRODUCERS: i32 = 5_000;
/// How often the small batch that inflates is named in one request.
const LOOK_UPS: usize = 5_000;

/// One batch for each of more partitions than there are, and than an object has places for.
pub(super) async fn many_partitions(target: Target, _: usize) {
    let record = batch(&["x"], now_ms(), None, Compression::None);
    let batches: Vec<(i32, Bytes)> = (0..PARTITIONS).map(|p| (p % WIDE_PARTITIONS, record.clone())).collect();
    let request = frame(&produce_request(WIDE, &batches, -1), 9, 1, "hostile");
    target
        .again(async |client| {
            client.send_raw(&request).await?;
            client.receive_raw().await.map(drop)
        })
        .await;
}

/// A large frame of which one small batch is good: whoever keeps that must not keep the frame.
pub(super) async fn pinned_frames(target: Target, _: usize) {
    let good = batch(&[vec![b'g'; 17 << 10]], now_ms(), None, Compression::None);
    let bad = BytesMut::zeroed(FRAME_BYTES).freeze();
    let request = frame(&produce_request(LARGE, &[(0, good), (1, bad)], -1), 9, 1, "hostile");
    target
        .again(async |client| {
            client.send_raw(&request).await?;
            client.receive_raw().await.map(drop)
        })
        .await;
}

/// Records of producers whose ids nobody was given.
pub(super) async fn made_up_producers(target: Target, number: usize) {
    let mut next = (1_i64 << 40) * (number as i64 + 1);
    target
        .again(async |client| {
            loop {
                let data = (0..PRODUCERS).map(|partition| {
                    next += 1;
                    let record = batch(&["m"], now_ms(), Some((next, 0, 0)), Compression::None);
                    PartitionProduceData::default().with_index(partition).with_records(Some(record))
                });
                let topics = vec![
                    TopicProduceData::default().with_name(topic(WIDE)).with_partition_data(data.collect()),
                ];
                let request =
                    ProduceRequest::default().with_acks(-1).with_timeout_ms(5_000).with_topic_data(topics);
                client.call(&request, 9).await?;
            }
        })
        .await;
}

/// Batches that must be opened and packed anew, each of which inflates.
pub(super) async fn recompression(target: Target, number: usize) {
    let name = format!("gzip-{number}");
    let record = batch(&[vec![0_u8; 8 << 20]], now_ms(), None, Compression::Zstd);
    target
        .again(async |client| {
            client.create_topic(&name, 1, &[("compression.type", "gzip")]).await?;
            let batches: Vec<(i32, Bytes)> = (0..100).map(|_| (0, record.clone())).collect();
            for batch in batches {
                client.send(&produce_request(&name, &[batch], -1), 9).await?;
            }
            for _ in 0..100 {
                client.receive_raw().await?;
            }
            Ok(())
        })
        .await;
}

/// Looks a time up in a batch that inflates, thousands of times in a request, and is gone.
pub(super) async fn bombs(target: Target, number: usize) {
    let wanted = ListOffsetsPartition::default().with_current_leader_epoch(-1).with_timestamp(now_ms() - 1);
    let topics = vec![
        ListOffsetsTopic::default().with_name(topic(BOMB)).with_partitions(vec![wanted; LOOK_UPS]),
        ListOffsetsTopic::default()
            .with_name(topic(QUIET))
            .with_partitions(vec![ListOffsetsPartition::default(); LOOK_UPS]),
    ];
    let request = frame(&ListOffsetsRequest::default().with_topics(topics), 7, 1, "hostile");
    target
        .again(async |client| {
            client.send_raw(&request).await?;
            if number.is_multiple_of(2) {
                // The others leave at once.
                client.receive_raw().await?;
            }
            Ok(())
        })
        .await;
}
