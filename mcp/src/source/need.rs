//! What of the cluster a call needs, and which ranges of etcd have it.
//!
//! The keys of a cluster lie in three runs: brokers, cluster, commits, configs, groups, heads,
//! leaders; the log; offsets, open and pending transactions, producer-ids, snapshot, topics,
//! transactional ids, watermarks. The log is never read, so two ranges cover everything.

use strandline_metadata::backend::KeyRange;
use strandline_metadata::keys::Keyspace;

/// How many families of keys there are.
pub(super) const FAMILIES: usize = 5;

/// A family of keys that is read whole or not at all, in the order of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// All that lies before the log.
    Plain,
    /// Committed offsets, open transactions, and what else lies between them and the snapshot.
    Commits,
    /// The snapshot.
    Snapshot,
    /// Topics, and transactional ids behind them.
    Topics,
    /// Watermarks.
    Watermarks,
}

impl Family {
    const ALL: [Self; FAMILIES] =
        [Self::Plain, Self::Commits, Self::Snapshot, Self::Topics, Self::Watermarks];

    /// Its place among all.
    pub(super) const fn index(self) -> usize {
        self as usize
    }

    /// The need of it alone.
    pub(super) const fn need(self) -> Need {
        Need(1 << self.index())
    }
}

/// A cluster's keys by family.
#[derive(Clone, Debug)]
pub(super) struct Families {
    /// The keys.
    pub(super) keys: Keyspace,
    ranges: [(Family, KeyRange); FAMILIES],
}

impl Families {
    pub(super) fn new(keys: Keyspace) -> Self {
        let [offsets, snapshot, topics, watermarks] = keys.behind_the_log();
        let ranges = [
            (Family::Plain, keys.brokers_to_leaders()),
            (Family::Commits, offsets),
            (Family::Snapshot, snapshot),
            (Family::Topics, topics),
            (Family::Watermarks, watermarks),
        ];
        Self { keys, ranges }
    }

    /// The family that a key belongs to.
    pub(super) fn of(&self, key: &[u8]) -> Option<Family> {
        self.ranges.iter().find(|(_, range)| range.contains(key)).map(|(family, _)| *family)
    }

    /// The ranges that have what is needed, two at most, and the families of each.
    pub(super) fn spans(&self, need: Need) -> Vec<(Need, KeyRange)> {
        let mut spans: Vec<(Need, KeyRange)> = Vec::new();
        for (family, range) in self.ranges.iter().filter(|(family, _)| need.has(family.need())) {
            let (one, range) = (family.need(), range.clone());
            // What lies behind the log is one range.
            match spans.pop_if(|(before, _)| *before != Need::PLAIN) {
                Some((before, span)) => spans.push((before.and(one), span.to(range))),
                None => spans.push((one, range)),
            }
        }
        spans
    }
}

/// What of the cluster a call needs: which families of keys. The less, the less etcd has to look
/// through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Need(u8);

impl Need {
    /// Brokers, cluster, configs, groups, leaders.
    pub const PLAIN: Self = Family::Plain.need();
    const COMMITS: Self = Family::Commits.need();
    /// The snapshot.
    pub const SNAPSHOT: Self = Family::Snapshot.need();
    /// Topics.
    pub const TOPICS: Self = Family::Topics.need();
    const WATERMARKS: Self = Family::Watermarks.need();

    /// Topics and how far they are.
    pub const ENDS: Self = Self::TOPICS.and(Self::WATERMARKS);
    /// Topics, and what the cluster's defaults are.
    pub const PLAIN_AND_TOPICS: Self = Self::PLAIN.and(Self::TOPICS);
    /// The same, and how far they are.
    pub const PLAIN_AND_ENDS: Self = Self::PLAIN.and(Self::ENDS);
    /// Committed offsets, and the topics that they are for.
    pub const OFFSETS: Self = Self::COMMITS.and(Self::TOPICS);
    /// Groups, those too that only committed.
    pub const GROUPS: Self = Self::PLAIN.and(Self::COMMITS);
    /// The same, and topics.
    pub const GROUPS_AND_TOPICS: Self = Self::GROUPS.and(Self::TOPICS);
    /// Everything.
    pub const ALL: Self = Self::PLAIN.and(Self::COMMITS).and(Self::ENDS);

    /// Both. What lies between two families behind the log is read with them: it is one range.
    const fn and(self, other: Self) -> Self {
        let bits = self.0 | other.0;
        let stored = bits & !Self::PLAIN.0;
        if stored == 0 {
            return Self(bits);
        }
        let below_first = (1 << stored.trailing_zeros()) - 1;
        let to_last = u8::MAX >> stored.leading_zeros();
        Self(bits | (to_last & !below_first))
    }

    pub(super) const fn has(self, family: Self) -> bool {
        self.0 & family.0 != 0
    }

    /// Whether what was read for `self` answers `other` as well.
    pub(super) const fn covers(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Its families.
    pub(super) fn families(self) -> impl Iterator<Item = Family> {
        Family::ALL.into_iter().filter(move |family| self.has(family.need()))
    }
}

#[cfg(test)]
mod tests {
    use strandline_metadata::keys::Key;

    use super::*;

    #[test]
    fn no_need_takes_more_than_two_ranges_and_each_has_what_it_says() {
        let keys = Keyspace::new("t").unwrap();
        let by_family = Families::new(keys.clone());
        let (offsets, topic) = (
            Key::Offsets { group: "g".to_owned(), topic: "t".to_owned(), part: 0 },
            Key::Topic("t".to_owned()),
        );
        let watermarks = Key::Watermarks { topic_id: uuid::Uuid::max(), part: 0 };
        let log = Key::Log { incarnation: 1, sequence: 1 };
        let families = [
            (Need::PLAIN, Key::Group("g".to_owned())),
            (Need::COMMITS, offsets),
            (Need::SNAPSHOT, Key::Snapshot),
            (Need::TOPICS, topic),
            (Need::WATERMARKS, watermarks),
        ];
        for first in &families {
            for second in &families {
                let need = first.0.and(second.0);
                let spans = by_family.spans(need);
                assert!(spans.len() <= 2, "{need:?}");
                let is_read = |key: &Key| spans.iter().any(|(_, s)| s.contains(&keys.encode(key)));
                for (family, key) in &families {
                    assert_eq!(need.covers(*family), is_read(key), "{need:?} {key:?}");
                    let key = keys.encode(key);
                    assert_eq!(by_family.of(&key).map(Family::need), Some(*family));
                    for (has, _) in spans.iter().filter(|(_, span)| span.contains(&key)) {
                        assert!(has.covers(*family), "{need:?}: {has:?}");
                    }
                }
                assert!(!is_read(&log), "{need:?}");
                assert!(spans.iter().all(|(has, _)| need.covers(*has)), "{need:?}: {spans:?}");
            }
        }
        assert_eq!(by_family.of(&keys.encode(&log)), None);
        assert!(Need::ALL.covers(Need::GROUPS_AND_TOPICS) && !Need::GROUPS.covers(Need::ALL));
    }
}
