//! The bytes of a fetch response, written by hand: records go out as slices of the buffers that
//! they were read into.
//!
//! A test compares every version with what the `kafka-protocol` crate makes of the same response.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use uuid::Uuid;

use super::Fetched;

/// One topic of a response, by name and id; which of them is written depends on the version.
#[derive(Clone, Debug)]
pub(crate) struct TopicAnswer {
    pub(crate) name: Arc<str>,
    pub(crate) topic_id: Uuid,
    pub(crate) partitions: Vec<(i32, Fetched)>,
}

/// A whole response.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) throttle_ms: i32,
    pub(crate) error_code: i16,
    pub(crate) session_id: i32,
    pub(crate) topics: Vec<TopicAnswer>,
}

/// First version with compact encodings and tagged fields.
const FLEXIBLE: i16 = 12;

struct Pieces {
    done: Vec<Bytes>,
    scratch: BytesMut,
    flexible: bool,
}

impl Pieces {
    fn count(&mut self, count: usize) {
        if self.flexible {
            self.varint(count + 1);
        } else {
            self.scratch.put_i32(i32::try_from(count).unwrap_or(i32::MAX));
        }
    }

    /// A list that is not there.
    fn none(&mut self) {
        if self.flexible { self.varint(0) } else { self.scratch.put_i32(-1) }
    }

    fn varint(&mut self, mut value: usize) {
        while value >= 0x80 {
            self.scratch.put_u8(u8::try_from(value & 0x7f).unwrap_or_default() | 0x80);
            value >>= 7;
        }
        self.scratch.put_u8(u8::try_from(value).unwrap_or_default());
    }

    fn string(&mut self, text: &str) {
        if self.flexible {
            self.varint(text.len() + 1);
        } else {
            self.scratch.put_i16(i16::try_from(text.len()).unwrap_or(i16::MAX));
        }
        self.scratch.put_slice(text.as_bytes());
    }

    fn no_tags(&mut self) {
        if self.flexible {
            self.scratch.put_u8(0);
        }
    }

    fn slice(&mut self, bytes: &Bytes) {
        if !self.scratch.is_empty() {
            self.done.push(self.scratch.split().freeze());
        }
        self.done.push(bytes.clone());
    }
}

/// The body of a fetch response of `version`, in pieces.
pub(crate) fn encode(answer: &Answer, version: i16) -> Vec<Bytes> {
    let mut out =
        Pieces { done: Vec::new(), scratch: BytesMut::with_capacity(256), flexible: version >= FLEXIBLE };
    out.scratch.put_i32(answer.throttle_ms);
    if version >= 7 {
        out.scratch.put_i16(answer.error_code);
        out.scratch.put_i32(answer.session_id);
    }
    out.count(answer.topics.len());
    for topic in &answer.topics {
        if version >= 13 {
            out.scratch.put_slice(topic.topic_id.as_bytes());
        } else {
            out.string(&topic.name);
        }
        out.count(topic.partitions.len());
        for (index, fetched) in &topic.partitions {
            partition(&mut out, *index, fetched, version);
        }
        out.no_tags();
    }
    out.no_tags();
    if !out.scratch.is_empty() {
        out.done.push(out.scratch.freeze());
    }
    out.done
}

fn partition(out: &mut Pieces, index: i32, fetched: &Fetched, version: i16) {
    out.scratch.put_i32(index);
    out.scratch.put_i16(fetched.error.map_or(0, |e| e.code()));
    out.scratch.put_i64(fetched.high_watermark);
    out.scratch.put_i64(fetched.last_stable);
    if version >= 5 {
        out.scratch.put_i64(fetched.log_start);
    }
    match &fetched.aborted {
        None => out.none(),
        Some(aborted) => {
            out.count(aborted.len());
            for (producer_id, first_offset) in aborted {
                out.scratch.put_i64(*producer_id);
                out.scratch.put_i64(*first_offset);
                out.no_tags();
            }
        }
    }
    if version >= 11 {
        out.scratch.put_i32(-1);
    }
    out.count(fetched.records.bytes);
    for piece in &fetched.records.pieces {
        out.slice(piece);
    }
    out.no_tags();
}

#[cfg(test)]
mod tests {
    use kafka_protocol::error::ResponseError;
    use kafka_protocol::messages::fetch_response::{
        AbortedTransaction, FetchableTopicResponse, PartitionData,
    };
    use kafka_protocol::messages::{BrokerId, FetchResponse, ProducerId, TopicName};
    use kafka_protocol::protocol::{Encodable, StrBytes};

    use super::*;
    use crate::fetch::Records;

    #[test]
    fn every_version_is_what_the_crate_writes() {
        let records = Records {
            pieces: vec![Bytes::from(vec![1; 200]), Bytes::from(vec![2; 100])],
            bytes: 300,
            count: 1,
            end_offset: 9,
            kept_alive: 300,
        };
        let aborted = Some(vec![(4, 5), (6, 7)]);
        let full = Fetched { error: None, high_watermark: 9, last_stable: 8, log_start: 1, aborted, records };
        let failed = Fetched::failed(ResponseError::OffsetOutOfRange);
        let id = Uuid::from_u128(77);
        let answer = Answer {
            throttle_ms: 3,
            error_code: 0,
            session_id: 12,
            topics: vec![TopicAnswer {
                name: "orders".into(),
                topic_id: id,
                partitions: vec![(0, full.clone()), (5, failed.clone())],
            }],
        };
        let aborted = |(producer, first): &(i64, i64)| {
            AbortedTransaction::default().with_producer_id(ProducerId(*producer)).with_first_offset(*first)
        };
        for version in crate::api::fetch::VERSIONS {
            let part = |index: i32, f: &Fetched| {
                let mut part = PartitionData::default()
                    .with_partition_index(index)
                    .with_error_code(f.error.map_or(0, |e| e.code()))
                    .with_high_watermark(f.high_watermark)
                    .with_last_stable_offset(f.last_stable)
                    .with_aborted_transactions(
                        f.aborted.as_ref().map(|all| all.iter().map(aborted).collect()),
                    )
                    .with_records(Some(f.records.pieces.concat().into()));
                if version >= 5 {
                    part = part.with_log_start_offset(f.log_start);
                }
                if version >= 11 {
                    part = part.with_preferred_read_replica(BrokerId(-1));
                }
                part
            };
            let mut topic =
                FetchableTopicResponse::default().with_partitions(vec![part(0, &full), part(5, &failed)]);
            if version >= 13 {
                topic = topic.with_topic_id(id);
            } else {
                topic = topic.with_topic(TopicName(StrBytes::from_static_str("orders")));
            }
            let mut response = FetchResponse::default().with_throttle_time_ms(3).with_responses(vec![topic]);
            if version >= 7 {
                response = response.with_session_id(12);
            }
            let mut theirs = BytesMut::new();
            response.encode(&mut theirs, version).unwrap();
            assert_eq!(encode(&answer, version).concat(), &theirs[..], "version {version}");
        }
    }
}
