//! One object: its bytes against its own index, and against what the log says is in it.

use crate::limits::FSCK_READ_BYTES;
use crate::placement::offsets_of;
use crate::records::{RecordTime, find_time};
use bytes::Bytes;
use strandline_metadata::state::Range;
use strandline_storage::format::batch::{self, BatchHeader};
use strandline_storage::format::checksum::Crc32c;
use strandline_storage::format::merged::{MergedIndex, MergedRange};
use strandline_storage::format::segment::{Index, SegmentRange, read_index};
use strandline_storage::path::{ObjectId, ObjectKey, ObjectKind};
use strandline_storage::store::Store;

/// What the log says is in an object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) topic_id: [u8; 16],
    pub(super) partition: i32,
    pub(super) range: Range,
}

/// Checks an object. The error says what is wrong with it.
pub(super) async fn check(
    store: &dyn Store,
    id: ObjectId,
    size: u64,
    mut expected: Vec<Expected>,
) -> Result<(), String> {
    let key = id.key();
    expected.sort_by_key(|e| e.range.position);
    for (one, next) in expected.iter().zip(expected.iter().skip(1)) {
        if end(&one.range) > next.range.position {
            return Err(format!("{} and {} lie in the same bytes of it", describe(one), describe(next)));
        }
    }
    if id.kind == ObjectKind::Merge {
        return check_merged(store, &key, size, &expected).await;
    }
    let (whole, index) = if size <= FSCK_READ_BYTES {
        let whole = store.get(&key, None).await.map_err(|e| e.to_string())?;
        if whole.len() as u64 != size {
            return Err(format!("it has {} bytes instead of {size}", whole.len()));
        }
        let index = Index::parse(&whole, size).map_err(|e| e.to_string())?;
        index.check_identity(&key).map_err(|e| e.to_string())?;
        (Some(whole), index)
    } else {
        (None, read_index(store, &key, size).await.map_err(|e| e.to_string())?)
    };
    for entry in &index.ranges {
        let bytes = read(store, &key, whole.as_ref(), entry).await?;
        index.verify(entry, std::slice::from_ref(&bytes)).map_err(|e| e.to_string())?;
        let of_entry = |e: &&Expected| (e.topic_id, e.partition) == (entry.topic_id, entry.partition);
        for one in expected.iter().filter(of_entry) {
            batches(one, own_bytes(one, entry, &bytes)?)?;
        }
    }
    let is_there =
        |e: &Expected| index.ranges.iter().any(|i| (i.topic_id, i.partition) == (e.topic_id, e.partition));
    match expected.iter().find(|e| !is_there(e)) {
        Some(absent) => Err(format!("{} is not in it", describe(absent))),
        None => Ok(()),
    }
}

/// Checks a merged object: what it says of each partition against the log, and its bytes against
/// what it says.
async fn check_merged(
    store: &dyn Store,
    key: &ObjectKey,
    size: u64,
    expected: &[Expected],
) -> Result<(), String> {
    let index = MergedIndex::read(store, key, size).await.map_err(|e| e.to_string())?;
    for one in expected {
        let range = &one.range;
        let is_own =
            |entry: &&MergedRange| (entry.topic_id, entry.partition) == (one.topic_id, one.partition);
        let entry = index.ranges().iter().find(is_own);
        let entry = entry.ok_or_else(|| format!("{} is not in it", describe(one)))?;
        let is_where_it_should_be = (entry.position, entry.length) == (range.position, range.bytes);
        if !is_where_it_should_be || entry.flags.compacted != range.compacted {
            return Err(format!("{} is not where the log says", describe(one)));
        }
        let bytes = store.get(key, Some(range.position..end(range))).await.map_err(|e| e.to_string())?;
        let crc = Crc32c::of(&bytes).value();
        if crc != entry.crc {
            return Err(format!("{} has CRC {crc:#010x}, the index says {:#010x}", describe(one), entry.crc));
        }
        compare_index(one, &index, entry, &batches(one, bytes)?)?;
    }
    Ok(())
}

/// Where a batch lies in its object, and its first offset and the one behind its last.
#[derive(Clone, Copy, Debug)]
struct PlacedBatch {
    position: u64,
    base_offset: i64,
    end_offset: i64,
}

/// Compares what the index of a merged object says of a range with its batches: readers begin where
/// a sparse entry says that a batch does.
fn compare_index(
    expected: &Expected,
    index: &MergedIndex,
    entry: &MergedRange,
    found: &[PlacedBatch],
) -> Result<(), String> {
    let first_offset = found.first().map(|batch| batch.base_offset);
    let end_offset = found.last().map(|batch| batch.end_offset);
    let is_right = (first_offset, end_offset) == (Some(entry.first_offset), Some(entry.end_offset));
    if !is_right || usize::try_from(entry.batches) != Ok(found.len()) {
        return Err(format!(
            "the index says that {} has {} batches from offset {} up to {}",
            describe(expected),
            entry.batches,
            entry.first_offset,
            entry.end_offset
        ));
    }
    let begins_a_batch = |position, base_offset| {
        let at = found.binary_search_by_key(&position, |batch| batch.position).ok();
        at.and_then(|at| found.get(at)).is_some_and(|batch| batch.base_offset == base_offset)
    };
    match index.sparse(entry).iter().find(|sparse| !begins_a_batch(sparse.position, sparse.base_offset)) {
        Some(wrong) => Err(format!(
            "no batch of {} begins at {} with offset {}, as its sparse index says",
            describe(expected),
            wrong.position,
            wrong.base_offset
        )),
        None => Ok(()),
    }
}

async fn read(
    store: &dyn Store,
    key: &ObjectKey,
    whole: Option<&Bytes>,
    entry: &SegmentRange,
) -> Result<Bytes, String> {
    let span = entry.position..entry.position.saturating_add(entry.length);
    match whole {
        None => store.get(key, Some(span)).await.map_err(|e| e.to_string()),
        Some(whole) => {
            slice(whole, span.start, entry.length).ok_or_else(|| "its index points beyond its end".to_owned())
        }
    }
}

/// The bytes of a range of a write object.
fn own_bytes(expected: &Expected, entry: &SegmentRange, bytes: &Bytes) -> Result<Bytes, String> {
    let range = &expected.range;
    let start = range.position.checked_sub(entry.position);
    let own = start.and_then(|start| slice(bytes, start, range.bytes));
    own.ok_or_else(|| format!("{} is not where the log says", describe(expected)))
}

/// Compares the batches of a range with what was committed, and says where they lie.
fn batches(expected: &Expected, own: Bytes) -> Result<Vec<PlacedBatch>, String> {
    let range = &expected.range;
    let (mut next, mut position) = (range.base_offset, range.position);
    let mut newest_ms = i64::MIN;
    let mut is_timed = true;
    let (mut all, mut placed) = (Vec::new(), Vec::new());
    for found in batch::split_batches(own) {
        let (_, whole) = found.map_err(|e| format!("{}: {e}", describe(expected)))?;
        let header = batch::verify(&whole).map_err(|e| format!("{}: {e}", describe(expected)))?;
        let offsets = offsets_of(range, next, &header);
        let (base_offset, end_offset) = offsets.map_err(|what| format!("{} {what}", describe(expected)))?;
        placed.push(PlacedBatch { position, base_offset, end_offset });
        next = end_offset;
        position += whole.len() as u64;
        // The end of a transaction is no record.
        if !header.is_control() {
            newest_ms = newest_ms.max(header.max_timestamp);
            is_timed &= header.max_timestamp >= 0;
        }
        all.push((header, whole));
    }
    let ends_early = next < range.end_offset && !range.compacted;
    let count = placed.len();
    if ends_early || usize::try_from(range.batches) != Ok(count) {
        return Err(format!(
            "{} has {count} batches up to offset {next} instead of {} up to {}",
            describe(expected),
            range.batches,
            range.end_offset
        ));
    }
    // Records without timestamps count as written when they came.
    if (!is_timed || newest_ms == i64::MIN) && newest_ms <= range.max_timestamp_ms {
        return Ok(placed);
    }
    // A header may lie about the largest timestamp; the records themselves do not.
    if newest_ms != range.max_timestamp_ms && newest_of(&all) != Some(range.max_timestamp_ms) {
        return Err(format!(
            "{} has records up to time {newest_ms} instead of {}",
            describe(expected),
            range.max_timestamp_ms
        ));
    }
    Ok(placed)
}

/// The largest timestamp of the records in these batches, if all of them can be opened.
fn newest_of(batches: &[(BatchHeader, Bytes)]) -> Option<i64> {
    let mut newest_ms = None;
    for (header, whole) in batches.iter().filter(|(header, _)| !header.is_control()) {
        let mut note = |time: RecordTime| {
            newest_ms = newest_ms.max(Some(time.timestamp_ms));
            false
        };
        find_time(header, whole, &mut note).ok()?;
    }
    newest_ms
}

fn slice(bytes: &Bytes, start: u64, length: u64) -> Option<Bytes> {
    let start = usize::try_from(start).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    (end <= bytes.len()).then(|| bytes.slice(start..end))
}

fn end(range: &Range) -> u64 {
    range.position.saturating_add(range.bytes)
}

fn describe(expected: &Expected) -> String {
    let (topic, range) = (uuid::Uuid::from_bytes(expected.topic_id), &expected.range);
    format!(
        "partition {} of topic {topic}, offsets {} to {}",
        expected.partition,
        range.base_offset,
        range.end_offset - 1
    )
}

#[cfg(test)]
mod tests {
    use std::iter;

    use kafka_protocol::records::Compression;
    use strandline_storage::format::merged::{MergeBuilder, MergeFlags};
    use strandline_storage::store::{ObjectStoreBackend, Payload};

    use super::*;
    use crate::records::tests::batch;
    use crate::testing::NOW_MS;

    const TOPIC: [u8; 16] = [7; 16];
    /// Batches of some 700 KB: every other one has an entry in the sparse index.
    const RECORDS: i32 = 6_000;
    const BATCHES: u32 = 5;
    /// Where the fields of the index lie behind the batches: two entries, each of an offset, a
    /// position and a time, that follow the first; and the entry of the range.
    const SECOND_OFFSET: usize = 24;
    const SECOND_POSITION: usize = 24 + 8;
    const FIRST_OFFSET: usize = 3 * 24 + 40;
    const END_OFFSET: usize = 3 * 24 + 48;
    const COUNT: usize = 3 * 24 + 64;

    fn id() -> ObjectId {
        ObjectId::merge(1, 1, 1)
    }

    /// An object with one range of batches, and what the log says of it. In a compacted one there
    /// is a gap before every batch but the first.
    fn object(compacted: bool) -> (Vec<u8>, u64, Expected) {
        object_of(compacted, &batch(Compression::None, NOW_MS, RECORDS))
    }

    fn object_of(compacted: bool, bytes: &Bytes) -> (Vec<u8>, u64, Expected) {
        let header = BatchHeader::parse(bytes).unwrap();
        let mut builder = MergeBuilder::new(id());
        builder.begin(TOPIC, 0, MergeFlags { compacted }).unwrap();
        let mut next = 0;
        for number in 0..BATCHES {
            next += i64::from(compacted && number > 0);
            builder.push_pieces(&header, iter::once(bytes), next).unwrap();
            next += i64::from(RECORDS);
        }
        let merged = builder.finish().unwrap();
        let range = Range {
            base_offset: 0,
            end_offset: next,
            object: id(),
            position: 0,
            bytes: merged.ranges[0].length,
            max_timestamp_ms: NOW_MS + i64::from(RECORDS) - 1,
            batches: BATCHES,
            level: 2,
            compacted,
        };
        let expected = Expected { topic_id: TOPIC, partition: 0, range };
        (merged.payload.into_pieces().concat(), range.bytes, expected)
    }

    async fn check_bytes(bytes: Vec<u8>, expected: Expected) -> Result<(), String> {
        let store = ObjectStoreBackend::memory();
        let size = bytes.len() as u64;
        store.put(&id().key(), Payload::from(Bytes::from(bytes))).await.unwrap();
        check(&store, id(), size, vec![expected]).await
    }

    /// Adds to a field of the index, and makes the CRC of index and footer right again.
    fn forge(bytes: &mut [u8], data_bytes: u64, field: usize, width: usize, add: i64) {
        let tail = &mut bytes[usize::try_from(data_bytes).unwrap()..];
        let field = &mut tail[field..field + width];
        let value = field.iter().fold(0_i64, |sum, byte| sum << 8 | i64::from(*byte)) + add;
        field.copy_from_slice(&value.to_be_bytes()[8 - width..]);
        let (covered, footer) = tail.split_at_mut(tail.len() - 12);
        let mut crc = flate2::Crc::new();
        crc.update(covered);
        footer[..4].copy_from_slice(&crc.sum().to_be_bytes());
    }

    #[tokio::test]
    async fn records_without_a_timestamp_may_count_as_newer_than_they_say() {
        let bytes = batch(Compression::None, -2 * i64::from(RECORDS), RECORDS);
        let (bytes, _, mut expected) = object_of(false, &bytes);
        expected.range.max_timestamp_ms = NOW_MS;
        assert_eq!(check_bytes(bytes.clone(), expected).await, Ok(()));
        expected.range.max_timestamp_ms = i64::MIN;
        assert!(check_bytes(bytes, expected).await.unwrap_err().contains("up to time"));
    }

    #[tokio::test]
    async fn the_index_of_a_merged_object_is_compared_with_its_batches() {
        for compacted in [false, true] {
            let (bytes, data_bytes, expected) = object(compacted);
            assert_eq!(check_bytes(bytes.clone(), expected).await, Ok(()));
            let mut same = bytes.clone();
            forge(&mut same, data_bytes, COUNT, 4, 0);
            assert_eq!(same, bytes, "nothing else is forged");
            let fields = [
                (SECOND_POSITION, 8, 1, "sparse index"),
                (SECOND_POSITION, 8, -70, "sparse index"),
                (SECOND_OFFSET, 8, 1, "sparse index"),
                (SECOND_OFFSET, 8, -1, "sparse index"),
                (END_OFFSET, 8, -1, "up to"),
                (END_OFFSET, 8, 1, "up to"),
                (COUNT, 4, -1, "batches"),
                (COUNT, 4, 1, "batches"),
                // It has to be that of the first sparse entry too.
                (FIRST_OFFSET, 8, 1, "sparse index"),
            ];
            for (field, width, add, part) in fields {
                let mut forged = bytes.clone();
                forge(&mut forged, data_bytes, field, width, add);
                let what = check_bytes(forged, expected).await.unwrap_err();
                assert!(what.contains(part), "{field} {add}: {what}");
            }
            let mut forged = bytes.clone();
            forge(&mut forged, data_bytes, FIRST_OFFSET, 8, 1);
            forge(&mut forged, data_bytes, 0, 8, 1);
            let what = check_bytes(forged, expected).await.unwrap_err();
            assert!(what.contains("from offset 1 up to"), "{what}");
        }
    }
}
