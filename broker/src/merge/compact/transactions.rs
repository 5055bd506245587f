//! What log compaction knows of transactions (KIP-98): records of aborted ones count for nothing
//! and go, and of the ends only those stay that consumers still have to see.
//!
//! The end of a committed transaction tells consumers nothing. That of an aborted one does as long
//! as the state names the transaction: who meets its first offset passes over the producer's
//! records until then. Once all of it lies in what is rewritten together, the state forgets it,
//! with all of its records and its end.

use std::collections::BTreeMap;

use strandline_metadata::state::{AbortedTransaction, Marker, Partition};
use strandline_storage::format::batch::BatchHeader;

/// The transactions of a partition that have ended.
#[derive(Debug, Default)]
pub(super) struct Transactions {
    /// Aborted ones by producer and marker: from which offset on.
    aborted: BTreeMap<(i64, i64), i64>,
    /// Ends that are not in any range yet.
    markers: Vec<(i64, Marker)>,
}

impl Transactions {
    pub(super) fn of(partition: &Partition) -> Self {
        let aborted = |(&marker, aborted): (&i64, &AbortedTransaction)| {
            ((aborted.producer_id, marker), aborted.first_offset)
        };
        Self {
            aborted: partition.aborted().iter().map(aborted).collect(),
            markers: partition.markers().iter().map(|(offset, marker)| (*offset, *marker)).collect(),
        }
    }

    /// The ends that lie between ranges from one offset on and below another.
    pub(super) fn markers_between(&self, (from, below): (i64, i64)) -> Vec<(i64, Marker)> {
        self.markers.iter().filter(|(offset, _)| (from..below).contains(offset)).copied().collect()
    }

    /// The aborted transaction that a batch belongs to or ends: its first offset and its end.
    fn aborted(&self, base_offset: i64, header: &BatchHeader) -> Option<(i64, i64)> {
        if !header.is_transactional() {
            return None;
        }
        let ends = (header.producer_id, base_offset)..=(header.producer_id, i64::MAX);
        let (&(_, marker), &first) = self.aborted.range(ends).next()?;
        (first <= base_offset).then_some((first, marker))
    }

    /// Whether the records of a batch are none for whoever looks for keys.
    pub(super) fn is_hidden(&self, base_offset: i64, header: &BatchHeader) -> bool {
        header.is_control() || self.aborted(base_offset, header).is_some()
    }

    /// Whether a batch stays, as far as transactions decide it, where what lies between two offsets
    /// is rewritten together.
    pub(super) fn keeps(&self, base_offset: i64, header: &BatchHeader, (from, below): (i64, i64)) -> bool {
        match self.aborted(base_offset, header) {
            None => !header.is_control(),
            Some((first, marker)) => header.is_control() && (first < from || marker >= below),
        }
    }
}

#[cfg(test)]
mod tests {
    use strandline_storage::format::batch::control_batch;

    use super::*;

    #[test]
    fn only_ends_that_consumers_need_stay() {
        let transactions =
            Transactions { aborted: BTreeMap::from([((7, 19), 10), ((7, 40), 30)]), markers: Vec::new() };
        let end =
            |offset, is_commit| BatchHeader::parse(&control_batch(offset, (7, 0), is_commit, 0)).unwrap();
        // A batch of records, as far as it matters here.
        let records = |producer_id| BatchHeader { attributes: 0x10, producer_id, ..end(0, true) };
        let all = (0, 100);
        assert!(transactions.is_hidden(12, &records(7)) && !transactions.keeps(12, &records(7), all));
        assert!(!transactions.is_hidden(12, &records(8)), "of another producer");
        assert!(!transactions.is_hidden(25, &records(7)), "of a committed transaction");
        assert!(transactions.keeps(25, &records(7), all));
        assert!(!transactions.keeps(28, &end(28, true), all), "a commit tells nobody anything");
        assert!(!transactions.keeps(19, &end(19, false), all));
        assert!(transactions.keeps(19, &end(19, false), (11, 100)), "it begins elsewhere");
        assert!(transactions.keeps(40, &end(40, false), (0, 40)), "it ends elsewhere");
        assert!(!transactions.keeps(31, &records(7), (0, 40)));
    }
}
