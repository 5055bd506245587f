//! What a request names, each once. Naming something again must cost the broker nothing: what a
//! name of a few bytes asks for may be megabytes (invariant 9).
//!
//! Each API says what Kafka makes of it: one answer (Metadata, the descriptions, DeleteGroups, the
//! last one counts in Fetch), or INVALID_REQUEST once for all of them (ListOffsets, CreateTopics,
//! CreatePartitions, DeleteTopics) or for each (AlterConfigs).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// The named things in the order in which they first occur. What is said of one that is named again
/// is handed to `again` with what is there already.
pub(crate) fn distinct<K: Ord + Clone, V>(
    named: impl IntoIterator<Item = (K, V)>,
    mut again: impl FnMut(&mut V, V),
) -> Vec<(K, V)> {
    let mut places: BTreeMap<K, usize> = BTreeMap::new();
    let mut distinct: Vec<(K, V)> = Vec::new();
    for (key, value) in named {
        match places.entry(key) {
            Entry::Occupied(place) => {
                if let Some((_, known)) = distinct.get_mut(*place.get()) {
                    again(known, value);
                }
            }
            Entry::Vacant(place) => {
                distinct.push((place.key().clone(), value));
                place.insert(distinct.len() - 1);
            }
        }
    }
    distinct
}

/// The named things, each once, in the order in which they first occur.
pub(crate) fn each_once<K: Ord + Clone>(named: impl IntoIterator<Item = K>) -> Vec<K> {
    distinct(named.into_iter().map(|key| (key, ())), |(), ()| {}).into_iter().map(|(key, ())| key).collect()
}

/// The named things, each once, and whether it is named more than once.
pub(crate) fn with_repeats<K: Ord + Clone, V>(named: impl IntoIterator<Item = (K, V)>) -> Vec<(K, V, bool)> {
    let marked = named.into_iter().map(|(key, value)| (key, (value, false)));
    let distinct = distinct(marked, |(_, is_repeated), _| *is_repeated = true);
    distinct.into_iter().map(|(key, (value, is_repeated))| (key, value, is_repeated)).collect()
}

/// The things that are named more than once.
pub(crate) fn repeated<K: Ord + Clone>(named: impl IntoIterator<Item = K>) -> BTreeSet<K> {
    let marked = with_repeats(named.into_iter().map(|key| (key, ())));
    marked.into_iter().filter_map(|(key, (), is_repeated)| is_repeated.then_some(key)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_keep_the_order_of_their_first_mention() {
        assert_eq!(each_once(["b", "a", "b", "c", "a"]), ["b", "a", "c"]);
        let joined = distinct([("b", 1), ("a", 2), ("b", 4)], |known, more| *known += more);
        assert_eq!(joined, [("b", 5), ("a", 2)]);
        assert_eq!(with_repeats([("b", 1), ("a", 2), ("b", 4)]), [("b", 1, true), ("a", 2, false)]);
        assert_eq!(repeated(["b", "a", "b"]), ["b"].into());
    }
}
