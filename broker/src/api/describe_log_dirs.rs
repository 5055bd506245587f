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
use crate::limits::{LARGE_ANSWER_ELEMENTS, UNITS_PER_ELEMENT};

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
    let view = broker.replica.view();
    if view.state.partition_count() > LARGE_ANSWER_ELEMENTS as u64 {
        call.large_answer().await;
    }
    let leaders = broker.leaders(&view.names, &call.client_id);
    let mut topics = Vec::new();
    match &asked {
        None => {
            for topic in view.names.topics().values() {
                topics.extend(describe(call, &view, &leaders, topic, None).await);
            }
        }
        Some(asked) => {
            for (name, wanted) in asked {
                let Some(topic) = view.names.topic(name) else { continue };
                topics.extend(describe(call, &view, &leaders, topic, Some(wanted)).await);
            }
        }
    }
    let result = DescribeLogDirsResult::default()
        .with_log_dir(text(broker.config.store.url.to_string()))
        .with_topics(topics)
        .with_total_bytes(UNKNOWN)
        .with_usable_bytes(UNKNOWN);
    DescribeLogDirsResponse::default().with_results(vec![result])
}

/// A topic with those of its partitions that are wanted and led to this broker; `None` if there are
/// none.
async fn describe(
    call: &Call,
    view: &View,
    leaders: &Leaders,
    topic: &TopicInfo,
    wanted: Option<&BTreeSet<i32>>,
) -> Option<DescribeLogDirsTopic> {
    let id = topic.value.topic_id;
    let is_own = |number: u32| {
        wanted.is_none_or(|w| w.contains(&number.cast_signed()))
            && leaders.of_partition(id, number) == call.broker.config.node_id
    };
    let mut partitions = Vec::new();
    for number in 0..topic.value.partitions {
        call.spend(UNITS_PER_ELEMENT).await;
        if let Some(partition) = view.state.partition(id, number).filter(|_| is_own(number)) {
            let partition = DescribeLogDirsPartition::default()
                .with_partition_index(number.cast_signed())
                .with_partition_size(i64::try_from(partition.bytes()).unwrap_or(i64::MAX));
            partitions.push(partition);
        }
    }
    let name = TopicName(text(topic.name.clone()));
    (!partitions.is_empty())
        .then(|| DescribeLogDirsTopic::default().with_name(name).with_partitions(partitions))
}
