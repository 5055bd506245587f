//! One object: its bytes against its own index, and against what the log says is in it.

use crate::limits::FSCK_READ_BYTES;
use crate::merge::placement::offsets_of;
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
        batches(one, bytes)?;
    }
    Ok(())
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

/// Compares the batches of a range with what was committed.
fn batches(expected: &Expected, own: Bytes) -> Result<(), String> {
    let range = &expected.range;
    let (mut next, mut count) = (range.base_offset, 0_u32);
    let mut newest_ms = i64::MIN;
    let mut is_timed = true;
    let mut all = Vec::new();
    for found in batch::split_batches(own) {
        let (_, whole) = found.map_err(|e| format!("{}: {e}", describe(expected)))?;
        let header = batch::verify(&whole).map_err(|e| format!("{}: {e}", describe(expected)))?;
        let placed = offsets_of(range, next, &header);
        (_, next) = placed.map_err(|what| format!("{} {what}", describe(expected)))?;
        count += 1;
        newest_ms = newest_ms.max(header.max_timestamp);
        is_timed &= header.max_timestamp >= 0;
        all.push((header, whole));
    }
    let ends_early = next < range.end_offset && !range.compacted;
    if ends_early || count != range.batches {
        return Err(format!(
            "{} has {count} batches up to offset {next} instead of {} up to {}",
            describe(expected),
            range.batches,
            range.end_offset
        ));
    }
    // Records without timestamps count as written when they came.
    if !is_timed && newest_ms <= range.max_timestamp_ms {
        return Ok(());
    }
    // A header may lie about the largest timestamp; the records themselves do not.
    if newest_ms != range.max_timestamp_ms && newest_of(&all) != Some(range.max_timestamp_ms) {
        return Err(format!(
            "{} has records up to time {newest_ms} instead of {}",
            describe(expected),
            range.max_timestamp_ms
        ));
    }
    Ok(())
}

/// The largest timestamp of the records in these batches, if all of them can be opened.
fn newest_of(batches: &[(BatchHeader, Bytes)]) -> Option<i64> {
    let mut newest_ms = None;
    for (header, whole) in batches {
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
