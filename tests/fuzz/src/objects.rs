//! Objects that may not be what was written.

use std::sync::Arc;

use bytes::Bytes;
use strandline_broker::metrics::Metrics;
use strandline_storage::format::segment::read_index;
use strandline_storage::path::ObjectId;
use strandline_storage::reader::{ReadKind, Reader, ReaderConfig};
use strandline_storage::store::{ObjectStoreBackend, Store};

use crate::world;

/// Bit of the first byte: the index's checksum is put right.
pub(crate) const SEALED: u8 = 1;
/// Bit of the first byte: it lies where a merged object should.
pub(crate) const MERGED: u8 = 2;
/// The id of the merged object.
pub(crate) const MERGED_ID: ObjectId = ObjectId::merge(3, 1, 5);
/// Behind the checksum there is the magic.
const MAGIC_BYTES: usize = 8;
/// Of the footer: where the index begins, its length, how many entries it has, version, kind,
/// checksum, magic.
const FOOTER_BYTES: usize = 8 + 4 + 4 + 2 + 2 + 4 + MAGIC_BYTES;

pub(crate) fn run(data: &[u8]) {
    let Some((how, object)) = data.split_first() else { return };
    let mut object = object.to_vec();
    if how & SEALED != 0 {
        seal(&mut object);
    }
    let merged = how & MERGED != 0;
    world::block_on(async {
        let id = if merged { MERGED_ID } else { ObjectId::write(3, 1, 5) };
        let size = object.len() as u64;
        let store: Arc<dyn Store> = Arc::new(ObjectStoreBackend::memory());
        store.put(&id.key(), Bytes::from(object).into()).await.expect("it is put");
        let config = ReaderConfig {
            cache_bytes: 1 << 20,
            max_in_flight_bytes: 1 << 20,
            max_merge_in_flight_bytes: 1 << 20,
        };
        let metrics = Metrics::new().expect("metrics have distinct names");
        let reader = Reader::new(store.clone(), config, metrics.storage().clone());
        // As if the log said that the whole of it is one range, whatever the index says.
        let _ = reader.read_batches(ReadKind::Tail, id, size, 0..size).await;
        if merged {
            return read_merged(&reader, id, size).await;
        }
        let Ok(index) = read_index(store.as_ref(), &id.key(), size).await else { return };
        for range in &index.ranges {
            let span = range.position..range.position + range.length;
            let pieces = reader.read(id, size, span.clone()).await.expect("an index stays within its object");
            let _ = index.verify(range, &pieces);
            let _ = reader.read_batches(ReadKind::CatchUp, id, size, span).await;
        }
    });
}

/// Looks up whatever the index of a merged object says that it has.
async fn read_merged(reader: &Reader, id: ObjectId, size: u64) {
    let Ok(index) = reader.merged_index(ReadKind::CatchUp, id, size).await else { return };
    for range in index.ranges() {
        let whole = range.position..range.position + range.length;
        let pieces = reader.read(id, size, whole.clone()).await.expect("an index stays within its object");
        let _ = index.verify(range, &pieces);
        let (topic, partition) = (range.topic_id, range.partition);
        let offsets = [i64::MIN, range.first_offset, range.end_offset - 1, range.end_offset];
        let located = offsets.into_iter().flat_map(|offset| {
            [0, 1, u64::MAX].map(|max_bytes| index.locate(topic, partition, offset, max_bytes))
        });
        let times = [i64::MIN, range.max_timestamp, i64::MAX];
        let timed = times.into_iter().map(|timestamp| index.locate_time(topic, partition, timestamp));
        for span in located.chain(timed).flatten() {
            let span = span.position..span.position + span.bytes;
            assert!(!span.is_empty() && whole.start <= span.start && span.end <= whole.end);
            for raw in reader.read_for_merge(id, size, &[span]).await.into_iter().flatten() {
                let _ = raw.batches();
            }
        }
    }
}

/// Puts the checksum of the index right, if there is a footer that says where the index is.
fn seal(object: &mut [u8]) {
    let Some(footer) = object.len().checked_sub(FOOTER_BYTES) else { return };
    let position = object[footer..footer + 8].try_into().map_or(u64::MAX, u64::from_be_bytes);
    let at = object.len() - MAGIC_BYTES - 4;
    let Some(covered) = usize::try_from(position).ok().and_then(|from| object.get(from..at)) else { return };
    let sum = crc32fast::hash(covered);
    object[at..at + 4].copy_from_slice(&sum.to_be_bytes());
}
