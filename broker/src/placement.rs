//! Where a batch lies among the offsets of its partition.

use strandline_metadata::state::Range;
use strandline_storage::format::batch::BatchHeader;
use strandline_storage::path::ObjectKind;

/// The first offset of a batch of a range, and the one behind its last, where `next` is the first
/// that the batches before it have left. The base offset lies outside of the batch's CRC, so it
/// counts only where it is possible. The error says what is wrong with it.
pub(crate) fn offsets_of(range: &Range, next: i64, header: &BatchHeader) -> Result<(i64, i64), String> {
    let base_offset = match range.object.kind {
        // Where its producer put it means nothing.
        ObjectKind::Write => next,
        ObjectKind::Merge => header.base_offset,
    };
    if base_offset < next || base_offset > next && !range.compacted {
        return Err(format!("goes on at offset {base_offset} instead of {next}"));
    }
    let last = base_offset.checked_add(header.last_offset_delta.into()).filter(|last| *last >= base_offset);
    match last.filter(|last| *last < range.end_offset) {
        Some(last) => Ok((base_offset, last + 1)),
        None => Err(format!(
            "has a batch at offset {base_offset} with last offset delta {} and ends at {}",
            header.last_offset_delta, range.end_offset
        )),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kafka_protocol::records::Compression;
    use strandline_storage::path::ObjectId;

    use super::*;
    use crate::records::tests::batch;

    /// The offsets of a batch of three records at `base_offset` in a range of the offsets 10 to 19.
    fn placed(object: ObjectId, compacted: bool, next: i64, base_offset: i64) -> Option<(i64, i64)> {
        let range = Range {
            base_offset: 10,
            end_offset: 20,
            object,
            position: 0,
            bytes: 1,
            max_timestamp_ms: 0,
            batches: 1,
            level: 2,
            compacted,
        };
        let bytes: Bytes = batch(Compression::None, 0, 3);
        let header = BatchHeader { base_offset, ..BatchHeader::parse(&bytes).unwrap() };
        offsets_of(&range, next, &header).ok()
    }

    #[test]
    fn a_batch_lies_in_its_range_and_behind_those_before_it() {
        let (written, merged) = (ObjectId::write(1, 1, 1), ObjectId::merge(1, 1, 1));
        assert_eq!(placed(written, false, 10, 0), Some((10, 13)));
        assert_eq!(placed(written, false, 18, 0), None);
        assert_eq!(placed(merged, false, 12, 12), Some((12, 15)));
        assert_eq!(placed(merged, true, 12, 17), Some((17, 20)));
        for (compacted, base_offset) in
            [(false, 13), (true, 11), (true, 18), (true, -1), (true, i64::MAX), (true, i64::MAX - 1)]
        {
            assert_eq!(placed(merged, compacted, 12, base_offset), None, "{base_offset}");
        }
    }
}
