//! ConsumerGroupDescribe: what a group looks like from outside.

use std::collections::BTreeMap;

use kafka_protocol::messages::TopicName;
use kafka_protocol::messages::consumer_group_describe_response::{
    Assignment as AssignmentResponse, DescribedGroup, Member, TopicPartitions,
};
use kafka_protocol::protocol::StrBytes;
use strandline_metadata::values::group::{Assignment, ConsumerMemberValue, PartitionSet};
use uuid::Uuid;

use super::ConsumerGroup;
use crate::group::Topics;

/// From this version on, the answer says which protocol each member speaks.
const MEMBER_TYPE: i16 = 1;

/// Names of topics by id, as found so far: the same few are asked for again and again.
struct Names<'a> {
    topics: &'a dyn Topics,
    found: BTreeMap<Uuid, Option<String>>,
}

impl Names<'_> {
    /// The partitions with the names of their topics. Topics that were deleted are left out.
    fn assignment(&mut self, assignment: &Assignment) -> AssignmentResponse {
        let mut topics = Vec::with_capacity(assignment.len());
        for (id, partitions) in assignment {
            let Some(name) = self.found.entry(*id).or_insert_with(|| self.topics.name(*id)) else { continue };
            topics.push(
                TopicPartitions::default()
                    .with_topic_id(*id)
                    .with_topic_name(TopicName(StrBytes::from_string(name.clone())))
                    .with_partitions(numbers(partitions)),
            );
        }
        AssignmentResponse::default().with_topic_partitions(topics)
    }
}

impl ConsumerGroup {
    /// The group as it is described, but for its id and what the client may do with it.
    pub(crate) fn describe(&self, version: i16, topics: &dyn Topics) -> DescribedGroup {
        let mut names = Names { topics, found: BTreeMap::new() };
        let members =
            self.value.members.iter().map(|(id, m)| describe_member(id, m, version, &mut names)).collect();
        DescribedGroup::default()
            .with_group_state(StrBytes::from_static_str(self.state()))
            .with_group_epoch(self.value.epoch)
            .with_assignment_epoch(self.value.assignment_epoch)
            .with_assignor_name(StrBytes::from_static_str(self.assignor().name()))
            .with_members(members)
    }
}

fn describe_member(id: &str, member: &ConsumerMemberValue, version: i16, names: &mut Names<'_>) -> Member {
    let text = |text: &String| StrBytes::from_string(text.clone());
    let described = Member::default()
        .with_member_id(StrBytes::from_string(id.to_owned()))
        .with_instance_id(member.instance_id.as_ref().map(text))
        .with_rack_id(member.rack_id.as_ref().map(text))
        .with_member_epoch(member.epoch)
        .with_client_id(text(&member.client_id))
        .with_client_host(text(&member.client_host))
        .with_subscribed_topic_names(member.subscribed_topics.iter().map(|t| TopicName(text(t))).collect())
        // As in Kafka, a member without a pattern has an empty one.
        .with_subscribed_topic_regex(Some(text(&member.subscribed_regex.clone().unwrap_or_default())))
        .with_assignment(names.assignment(&member.assigned))
        .with_target_assignment(names.assignment(&member.target));
    match version {
        MEMBER_TYPE.. => described.with_member_type(i8::from(member.classic.is_none())),
        _ => described,
    }
}

/// Partitions as the protocol writes them.
pub(super) fn numbers(partitions: &PartitionSet) -> Vec<i32> {
    partitions.0.iter().filter_map(|p| i32::try_from(*p).ok()).collect()
}
