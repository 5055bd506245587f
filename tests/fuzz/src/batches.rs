//! Record batches, and what is inside them: stored, packed anew, looked through for a timestamp,
//! read back; and metrics that clients push, which are packed by the same codecs.

use bytes::Bytes;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{
    GetTelemetrySubscriptionsRequest, GetTelemetrySubscriptionsResponse, ListOffsetsRequest,
    PushTelemetryRequest, ResponseHeader,
};
use kafka_protocol::protocol::Decodable;
use strandline_storage::format::batch::{VerifiedBatch, split_batches};
use strandline_tests::client::{fetch_request, produce_request, topic};
use strandline_tests::records::seal;
use uuid::Uuid;

use crate::world;

/// Bytes of a batch's header, from the first attribute on.
const HEAD_BYTES: usize = 40;
/// Bits of the first byte.
const PUSHED: u8 = 1;
const UNSEALED: u8 = 2;

pub(crate) fn run(data: &[u8]) {
    let Some((&how, rest)) = data.split_first() else { return };
    if how & PUSHED != 0 {
        return push(rest);
    }
    if how & UNSEALED != 0 {
        for batch in split_batches(Bytes::copy_from_slice(rest)).flatten() {
            let _ = VerifiedBatch::new(batch.1).map(|batch| batch.with_log_append_time(world::NOW_MS));
        }
        return;
    }
    let Some(batch) = batch(rest) else { return };
    let _ = VerifiedBatch::new(batch.clone()).map(|batch| batch.with_log_append_time(world::NOW_MS));
    world::block_on(async {
        let opened = world::broker().await;
        let mut said = Vec::new();
        for name in ["t", "z"] {
            said.extend(world::request(&produce_request(name, &[(0, batch.clone())], -1), 9));
            for timestamp in [world::NOW_MS, -3] {
                let asked =
                    ListOffsetsPartition::default().with_timestamp(timestamp).with_current_leader_epoch(-1);
                let topics =
                    vec![ListOffsetsTopic::default().with_name(topic(name)).with_partitions(vec![asked])];
                said.extend(world::request(&ListOffsetsRequest::default().with_topics(topics), 7));
            }
            said.extend(world::request(&fetch_request(name, &[(0, 0)], 0, 1 << 20), 11));
        }
        let answers = world::say(&opened, &said).await;
        assert_eq!(answers.len(), 8, "every request is answered");
    });
}

/// A batch with this header, from its attributes on, and this payload, of the right length and
/// checksum.
pub(crate) fn batch(data: &[u8]) -> Option<Bytes> {
    let (head, payload) = data.split_at_checked(HEAD_BYTES)?;
    let mut batch = vec![0; 21];
    batch.extend(head);
    batch.extend(payload);
    let length = (batch.len() - 12) as i32;
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    batch[16] = 2;
    Some(seal(&batch))
}

/// The input that makes this batch.
pub(crate) fn input(batch: &[u8]) -> Vec<u8> {
    [&[0], &batch[21..]].concat()
}

/// Pushes this as a client's metrics; its first byte is the codec.
fn push(data: &[u8]) {
    let Some((&codec, metrics)) = data.split_first() else { return };
    world::block_on(async {
        let opened = world::broker().await;
        let asked = GetTelemetrySubscriptionsRequest::default().with_client_instance_id(Uuid::from_u128(9));
        let mut answer = world::say(&opened, &world::request(&asked, 0)).await.remove(0);
        let _ = ResponseHeader::decode(&mut answer, 1).expect("a header");
        let told = GetTelemetrySubscriptionsResponse::decode(&mut answer, 0).expect("an answer");
        let pushed = PushTelemetryRequest::default()
            .with_client_instance_id(Uuid::from_u128(9))
            .with_subscription_id(told.subscription_id)
            .with_compression_type(codec.cast_signed())
            .with_metrics(Bytes::copy_from_slice(metrics));
        let answers = world::say(&opened, &world::request(&pushed, 0)).await;
        assert_eq!(answers.len(), 1, "it is answered");
    });
}
