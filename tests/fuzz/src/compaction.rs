//! What log compaction makes of a batch: it takes records out and gives tombstones a time, and what
//! comes of it is a batch with the same offsets, or there is no batch.

use bytes::Bytes;
use strandline_broker::merge::rewritten;
use strandline_storage::format::batch::{BatchHeader, VerifiedBatch};

use crate::{batches, world};

/// Bits of the first byte.
const TIMED: u8 = 1;

pub(crate) fn run(data: &[u8]) {
    let Some((&how, rest)) = data.split_first() else { return };
    let Some((kept, rest)) = rest.split_first_chunk::<8>() else { return };
    let Some(batch) = batches::batch(rest) else { return };
    let kept = u64::from_be_bytes(*kept);
    let is_kept = |offset_delta: i32| (kept >> (offset_delta & 63)) & 1 == 1;
    let horizon_ms = (how & TIMED != 0).then_some(world::NOW_MS);
    let Ok(Some(left)) = rewritten(&batch, horizon_ms, is_kept) else { return };
    let offsets = |batch: &Bytes| {
        let header = BatchHeader::parse(batch).expect("a batch");
        (header.base_offset, header.last_offset_delta, header.producer_id, header.record_count)
    };
    let (before, after) = (offsets(&batch), offsets(&left));
    assert_eq!((before.0, before.1, before.2), (after.0, after.1, after.2), "it keeps its offsets");
    assert!((1..=before.3).contains(&after.3), "{} of {} records", after.3, before.3);
    // A header may say of itself what no broker takes; then it stays so.
    if VerifiedBatch::new(batch).is_ok() {
        VerifiedBatch::new(left.clone()).expect("what is left of a good batch is one");
    }
    let again = rewritten(&left, None, |_| true).expect("what was packed is unpacked");
    assert_eq!(again, Some(left), "it has what was kept, and nothing else");
}

/// The input that keeps every second record of this batch.
pub(crate) fn input(how: u8, batch: &[u8]) -> Vec<u8> {
    [&[how], &0x5555_5555_5555_5555_u64.to_be_bytes()[..], &batch[21..]].concat()
}
