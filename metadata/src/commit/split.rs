//! Splitting a flush that is too large for one record. A partition's batches stay whole unless they
//! alone are too large.

use prost::Message;

use crate::record::{Flush, FlushPartition, FlushTopic};

/// The parts of `flush`, each at most about `limit` bytes as a record; all but the last say that
/// they continue.
pub(super) fn split(flush: Flush, limit: usize) -> Vec<Flush> {
    if flush.encoded_len() <= limit {
        return vec![flush];
    }
    let empty = Flush { topics: Vec::new(), continues: true, ..flush.clone() };
    let mut parts = Vec::new();
    let mut part = empty.clone();
    let mut part_bytes = 0;
    for topic in flush.topics {
        for partition in topic.partitions {
            for piece in pieces(partition, limit) {
                let bytes = piece.encoded_len() + 32;
                if part_bytes > 0 && part_bytes + bytes > limit {
                    parts.push(std::mem::replace(&mut part, empty.clone()));
                    part_bytes = 0;
                }
                part_bytes += bytes;
                match part.topics.last_mut() {
                    Some(last) if last.topic_id == topic.topic_id => last.partitions.push(piece),
                    _ => part
                        .topics
                        .push(FlushTopic { topic_id: topic.topic_id.clone(), partitions: vec![piece] }),
                }
            }
        }
    }
    part.continues = false;
    parts.push(part);
    parts
}

/// A partition's entry, cut only if it alone is above the limit.
fn pieces(partition: FlushPartition, limit: usize) -> Vec<FlushPartition> {
    if partition.encoded_len() <= limit {
        return vec![partition];
    }
    let mut pieces = Vec::new();
    let mut position = partition.position;
    let mut piece = FlushPartition { partition: partition.partition, position, batches: Vec::new() };
    let mut piece_bytes = 0;
    for batch in partition.batches {
        let bytes = batch.encoded_len() + 4;
        if piece_bytes > 0 && piece_bytes + bytes > limit / 2 {
            let next = FlushPartition { partition: partition.partition, position, batches: Vec::new() };
            pieces.push(std::mem::replace(&mut piece, next));
            piece_bytes = 0;
        }
        piece_bytes += bytes;
        position += u64::from(batch.bytes);
        piece.batches.push(batch);
    }
    pieces.push(piece);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::FlushBatch;

    fn flush(topics: u8, partitions: u32, batches: u32) -> Flush {
        let batch =
            FlushBatch { offsets: 1, bytes: 1000, producer: 9, base_sequence: 70_000, ..Default::default() };
        let partition = |p: u32| FlushPartition {
            partition: p,
            position: u64::from(p) * 1_000_000,
            batches: vec![batch; batches as usize],
        };
        let topics = (0..topics)
            .map(|t| FlushTopic {
                topic_id: vec![t; 16],
                partitions: (0..partitions).map(partition).collect(),
            })
            .collect();
        Flush { object_number: 3, object_salt: 4, object_bytes: 5, topics, continues: false }
    }

    /// Every batch with the place that it has, whatever records it is spread over.
    fn placed(parts: &[Flush]) -> Vec<(Vec<u8>, u32, u64)> {
        let mut all = Vec::new();
        for topic in parts.iter().flat_map(|f| &f.topics) {
            for partition in &topic.partitions {
                let mut position = partition.position;
                for batch in &partition.batches {
                    all.push((topic.topic_id.clone(), partition.partition, position));
                    position += u64::from(batch.bytes);
                }
            }
        }
        all
    }

    #[test]
    fn parts_are_small_and_together_they_are_the_whole() {
        for (topics, partitions, batches) in [(1, 1, 1), (3, 500, 2), (1, 1, 5000), (2, 3, 900)] {
            let whole = flush(topics, partitions, batches);
            let parts = split(whole.clone(), 10_000);
            assert_eq!(placed(&parts), placed(&[whole]));
            let (last, before) = parts.split_last().unwrap();
            assert!(!last.continues && before.iter().all(|p| p.continues));
            assert!(parts.iter().all(|p| p.encoded_len() <= 11_000 && p.object_number == 3));
        }
    }
}
