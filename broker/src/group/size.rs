//! How long members of groups are when they are stored, at most: what would not fit into a request
//! to etcd is refused before it is decided, so that the others of its group do not notice.

use strandline_metadata::values::group::{
    Assignment, ClassicMemberValue, ConsumerMemberValue, PartitionSet, ProtocolValue,
};

use super::error::TextTooLong;
use crate::limits::{
    CLASSIC_MEMBER_OVERHEAD_BYTES, CONSUMER_MEMBER_OVERHEAD_BYTES, INSTANCE_ID_BYTES, MEMBER_ID_BYTES,
    MEMBER_TEXT_BYTES,
};

/// Refuses a text that is longer than what groups keep of it.
fn check_text(what: &'static str, text: &str, most: usize) -> Result<(), TextTooLong> {
    if text.len() > most { Err(TextTooLong { what, bytes: text.len(), most }) } else { Ok(()) }
}

/// Refuses ids of a member that are too long.
pub(crate) fn check_ids(member_id: &str, instance_id: Option<&str>) -> Result<(), TextTooLong> {
    check_text("member id", member_id, MEMBER_ID_BYTES)?;
    check_text("group instance id", instance_id.unwrap_or_default(), INSTANCE_ID_BYTES)
}

/// Refuses any other text that is kept of a member, if it is too long.
pub(crate) fn check_member_text(what: &'static str, text: &str) -> Result<(), TextTooLong> {
    check_text(what, text, MEMBER_TEXT_BYTES)
}

/// A member of a classic group, without its assignment.
pub(super) fn classic_member_bytes(id: &str, member: &ClassicMemberValue) -> usize {
    CLASSIC_MEMBER_OVERHEAD_BYTES
        + json_bytes(id)
        + texts_bytes([&member.client_id, &member.client_host].into_iter().chain(&member.instance_id))
        + protocols_bytes(&member.protocols)
}

/// A member of a group of KIP-848, with what it reads and is to read.
pub(super) fn consumer_member_bytes(id: &str, member: &ConsumerMemberValue) -> usize {
    let texts = [&member.client_id, &member.client_host].into_iter();
    let optional = [&member.instance_id, &member.rack_id, &member.subscribed_regex, &member.server_assignor];
    let reads = [&member.assigned, &member.pending_revocation, &member.target];
    CONSUMER_MEMBER_OVERHEAD_BYTES
        + json_bytes(id)
        + texts_bytes(texts.chain(optional.into_iter().flatten()))
        + member.subscribed_topics.iter().map(|topic| json_bytes(topic) + "\"\",".len()).sum::<usize>()
        + member.classic.as_ref().map_or(0, |classic| protocols_bytes(&classic.protocols))
        + reads.into_iter().map(assignment_bytes).sum::<usize>()
}

/// The protocols that a member names.
pub(super) fn protocols_bytes(protocols: &[ProtocolValue]) -> usize {
    let overhead = r#"{"name":"","metadata":""},"#.len();
    protocols.iter().map(|p| overhead + json_bytes(&p.name) + base64_bytes(p.metadata.0.len())).sum()
}

/// What a member is assigned.
fn assignment_bytes(assignment: &Assignment) -> usize {
    let overhead = r#""00000000-0000-0000-0000-000000000000":"","#.len();
    assignment.values().map(|partitions| overhead + partitions_bytes(partitions)).sum()
}

/// A set of partitions: each run is written by its ends.
fn partitions_bytes(partitions: &PartitionSet) -> usize {
    let mut rest = partitions.0.iter().copied().peekable();
    let mut bytes = 0;
    while let Some(first) = rest.next() {
        bytes += digits(first) + 1;
        let mut last = first;
        while let Some(next) = rest.next_if(|n| n.checked_sub(1) == Some(last)) {
            last = next;
        }
        if last > first {
            bytes += digits(last) + 1;
        }
    }
    bytes
}

fn digits(number: u32) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

fn texts_bytes<'a>(texts: impl Iterator<Item = &'a String>) -> usize {
    texts.map(|text| json_bytes(text)).sum()
}

/// How long a text is in JSON, at most.
pub(super) fn json_bytes(text: &str) -> usize {
    text.bytes().map(|b| if b < 0x20 || matches!(b, b'"' | b'\\' | 0x7f) { 6 } else { 1 }).sum()
}

/// So many bytes in base64.
pub(super) fn base64_bytes(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use strandline_metadata::values::group::{Blob, ClassicInConsumerValue, MemberStateValue};
    use uuid::Uuid;

    use super::*;

    /// No less than it is, and not much more: any escape counts as the longest.
    fn assert_close(estimate: usize, member: &impl serde::Serialize, id: &str) {
        let stored = serde_json::to_string(&(id, member)).unwrap().len();
        assert!(stored <= estimate && estimate < 2 * stored + 300, "{estimate} for {stored}");
    }

    fn protocols(count: usize, bytes: usize) -> Vec<ProtocolValue> {
        let metadata = Blob(Bytes::from(vec![7; bytes]));
        vec![ProtocolValue { name: "range\n".to_owned(), metadata }; count]
    }

    #[test]
    fn classic_members_are_no_longer_than_what_is_counted() {
        for (text, count, bytes) in [("", 0, 0), ("text", 1, 1), ("\"quoted\u{1}\"", 100, 0), ("ä", 3, 1_000)]
        {
            let member = ClassicMemberValue {
                instance_id: Some(text.to_owned()),
                client_id: text.to_owned(),
                client_host: text.to_owned(),
                session_timeout_ms: i32::MIN,
                rebalance_timeout_ms: i32::MIN,
                protocols: protocols(count, bytes),
                assignment: Blob::default(),
            };
            assert_close(classic_member_bytes(text, &member), &member, text);
        }
    }

    #[test]
    fn members_of_kip_848_are_no_longer_than_what_is_counted() {
        let partitions = [vec![0], vec![0, 1, 2, 9, 10, 100], (0..20_000).map(|p| 2 * p).collect()];
        for (text, partitions) in ["", "text", "\"\\"].into_iter().zip(partitions) {
            let reads: Assignment =
                (0..10).map(|t| (Uuid::from_u128(t), partitions.iter().copied().collect())).collect();
            let member = ConsumerMemberValue {
                instance_id: Some(text.to_owned()),
                rack_id: Some(text.to_owned()),
                client_id: text.to_owned(),
                client_host: text.to_owned(),
                rebalance_timeout_ms: i32::MIN,
                subscribed_topics: (0..50).map(|i| format!("{text}{i}")).collect(),
                subscribed_regex: Some(text.to_owned()),
                server_assignor: Some(text.to_owned()),
                epoch: i32::MIN,
                previous_epoch: i32::MIN,
                state: MemberStateValue::UnreleasedPartitions,
                assigned: reads.clone(),
                pending_revocation: reads.clone(),
                target: reads,
                classic: Some(ClassicInConsumerValue {
                    session_timeout_ms: i32::MIN,
                    protocols: protocols(3, 100),
                }),
            };
            assert_close(consumer_member_bytes(text, &member), &member, text);
        }
    }
}
