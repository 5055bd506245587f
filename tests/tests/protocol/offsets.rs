//! ListOffsets and OffsetForLeaderEpoch: current on any broker, as soon as another one has
//! acknowledged.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::OffsetForLeaderEpochRequest;
use kafka_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use kafka_protocol::records::Compression;
use strandline_tests::client::topic;
use strandline_tests::records::batch;
use strandline_tests::surroundings::now_ms;
use strandline_tests::workload::create_topic;

use crate::{error, refused, shared};

#[tokio::test]
async fn every_broker_knows_an_acknowledged_record_at_once() {
    let cluster = shared().await;
    create_topic(&cluster.addresses(), "barrier", 1).await;
    let mut clients = [cluster.client(0).await, cluster.client(1).await, cluster.client(2).await];
    let begin = now_ms() - 1_000_000;
    for i in 0..60_i64 {
        let time = begin + i * 1000;
        let texts = ["x", "y"];
        let record = batch(&texts, time, None, Compression::Gzip);
        let writer = i as usize % 3;
        let offset = clients[writer].produce("barrier", 0, record).await.expect("it is written");
        assert_eq!(offset, i * 2);
        for turn in 1..3 {
            let reader = &mut clients[(writer + turn) % 3];
            assert_eq!(reader.list_offset("barrier", 0, -1).await.expect("an offset"), i * 2 + 2);
            assert_eq!(reader.list_offset("barrier", 0, -2).await.expect("an offset"), 0);
            assert_eq!(reader.list_offset("barrier", 0, time).await.expect("an offset"), i * 2);
            assert_eq!(reader.list_offset("barrier", 0, time - 999).await.expect("an offset"), i * 2);
            assert_eq!(reader.list_offset("barrier", 0, -3).await.expect("an offset"), i * 2);
            assert_eq!(reader.list_offset("barrier", 0, time + 1).await.expect("an offset"), -1);
            assert_eq!(reader.list_offset("barrier", 0, begin).await.expect("an offset"), 0);
        }
    }
}

#[tokio::test]
async fn times_are_found_whatever_their_order() {
    let cluster = shared().await;
    create_topic(&cluster.addresses(), "times", 1).await;
    let mut writer = cluster.client(0).await;
    let begin = now_ms() - 1_000_000;
    for time in [5_000, 9_000, 2_000, 7_000] {
        let record = batch(&["t"], begin + time, None, Compression::None);
        writer.produce("times", 0, record).await.expect("it is written");
    }
    let mut reader = cluster.client(2).await;
    // The first record, by offset, that is at least as new.
    for (time, expected) in [(0, 0), (5_000, 0), (5_001, 1), (9_000, 1), (9_001, -1), (2_000, 0)] {
        let found = reader.list_offset("times", 0, begin + time).await.expect("an offset");
        assert_eq!(found, expected, "at {time}");
    }
    assert_eq!(reader.list_offset("times", 0, -3).await.expect("an offset"), 1, "the largest");
    assert_eq!(refused(reader.list_offset("times", 9, -1).await), ResponseError::UnknownTopicOrPartition);
    assert_eq!(refused(reader.list_offset("no-times", 0, -1).await), ResponseError::UnknownTopicOrPartition);
}

#[tokio::test]
async fn the_epoch_ends_where_the_log_ends() {
    let cluster = shared().await;
    create_topic(&cluster.addresses(), "epochs", 1).await;
    let record = batch(&["e"], now_ms(), None, Compression::None);
    cluster.client(0).await.produce("epochs", 0, record).await.expect("it is written");
    let mut reader = cluster.client(1).await;
    for (partition, epoch, code, end) in
        [(0, 0, None, 1), (3, 0, Some(ResponseError::UnknownTopicOrPartition), -1)]
    {
        let asked = OffsetForLeaderPartition::default()
            .with_partition(partition)
            .with_current_leader_epoch(-1)
            .with_leader_epoch(epoch);
        let topics =
            vec![OffsetForLeaderTopic::default().with_topic(topic("epochs")).with_partitions(vec![asked])];
        let request = OffsetForLeaderEpochRequest::default().with_replica_id((-1).into()).with_topics(topics);
        let response = reader.call(&request, 4).await.expect("an answer");
        let part = &response.topics[0].partitions[0];
        assert_eq!((error(part.error_code), part.end_offset), (code, end));
    }
}
