//! DescribeLogDirs (key 35), versions 1–4.
//!
//! One "directory": the object store, named by its URL. A partition's size is the bytes of its
//! records, as they are stored. All brokers share them, so each reports the partitions for which
//! clients are led to it: sums over all brokers are right, as long as they are asked under one
//! client id. Total and usable bytes (KIP-827) are not known: −1. Topics that do not exist are left
//! out, as in Kafka.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use kafka_protocol::messages::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic,
};
use kafka_protocol::messages::{DescribeLogDirsRequest, DescribeLogDirsResponse, TopicName};
use strandline_metadata::names::TopicInfo;
use strandline_metadata::replica::View;

use super::{Call, text};
use crate::leaders::Leaders;

pub(crate) const VERSIONS: RangeInclusive<i16> = 1..=4;

const UNKNOWN: i64 = -1;

pub(super) async fn handle(call: &Call, request: DescribeLogDirsRequest) -> DescribeLogDirsResponse {
    let broker = &call.broker;
    // What was written through other brokers counts, if they can be asked.
    let _ = broker.replica.barrier().await;
    // By name and number, so that what is asked for twice is answered once.
    let asked = request.topics.map(|topics| {
        let mut asked: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
        for topic in topics {
            asked.entry(topic.topic.to_string()).or_default().extend(topic.partitions);
        }
        asked
    });
    let topics = broker.replica.read(|view| {
        let leaders = broker.leaders(&view.names, &call.client_id);
        let own =
            |topic: &TopicInfo, wanted: Option<&BTreeSet<i32>>| describe(call, view, &leaders, topic, wanted);
        match &asked {
            None => view.names.topics().values().filter_map(|t| own(t, None)).collect(),
            Some(asked) => asked
                .iter()
                .filter_map(|(name, wanted)| own(view.names.topic(name)?, Some(wanted)))
                .collect::<Vec<_>>(),
        }
    });
    let result = DescribeLogDirsResult::default()
        .with_log_dir(text(broker.config.store.url.to_string()))
        .with_topics(topics)
        .with_total_bytes(UNKNOWN)
        .with_usable_bytes(UNKNOWN);
    DescribeLogDirsResponse::default().with_results(vec![result])
}

/// A topic with those of its partitions that are wanted and led to this broker; `None` if there are
/// none.
fn describe(
    call: &Call,
    view: &View,
    leaders: &Leaders,
    topic: &TopicInfo,
    wanted: Option<&BTreeSet<i32>>,
) -> Option<DescribeLogDirsTopic> {
    let id = topic.value.topic_id;
    let is_own = |number: &u32| {
        wanted.is_none_or(|w| w.contains(&number.cast_signed()))
            && leaders.of_partition(id, *number) == call.broker.config.node_id
    };
    let partitions: Vec<_> = (0..topic.value.partitions)
        .filter(is_own)
        .filter_map(|number| {
            let bytes = view.state.partition(id, number)?.bytes();
            let partition = DescribeLogDirsPartition::default()
                .with_partition_index(number.cast_signed())
                .with_partition_size(i64::try_from(bytes).unwrap_or(i64::MAX));
            Some(partition)
        })
        .collect();
    let name = TopicName(text(topic.name.clone()));
    (!partitions.is_empty())
        .then(|| DescribeLogDirsTopic::default().with_name(name).with_partitions(partitions))
}
