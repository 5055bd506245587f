//! How far partitions and groups were some minutes ago, as reads of etcd left it behind: what rates
//! of consumption, trends and estimates come from. It needs no broker.
//!
//! Samples of the last two minutes are all kept, older ones thinned to one a minute, for a quarter
//! of an hour. Each has so many entries at most; when there are more, groups that come later in the
//! order of names have no rates, and say so.

use std::collections::{BTreeMap, HashMap, VecDeque};

use uuid::Uuid;

use super::view::View;

/// How far back samples are kept, in ms.
const SPAN_MS: i64 = 900_000;
/// Younger samples are all kept, in ms.
const DENSE_MS: i64 = 120_000;
/// Older ones are this far apart, in ms.
const SPARSE_STEP_MS: i64 = 60_000;
/// Samples at most, however short the interval.
const MAX_SAMPLES: usize = 60;
/// Entries of one sample: a partition's end, or a commit.
const MAX_ENTRIES: usize = 40_000;

/// A partition of a topic.
type PartitionId = (Uuid, u32);

/// One sample.
#[derive(Clone, Debug, Default)]
struct Sample {
    at_ms: i64,
    /// Log start and end.
    ends: HashMap<PartitionId, (i64, i64)>,
    commits: BTreeMap<String, HashMap<PartitionId, i64>>,
}

/// What a partition of a group was at an earlier time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    /// When, ms since 1970.
    pub at_ms: i64,
    /// What was committed.
    pub committed: Option<i64>,
    /// The log's start.
    pub log_start: i64,
    /// The log's end.
    pub end: i64,
}

/// What a group was at earlier times, the oldest first.
#[derive(Clone, Debug)]
pub struct GroupPast<'a> {
    samples: Vec<(&'a Sample, Option<&'a HashMap<PartitionId, i64>>)>,
}

impl GroupPast<'_> {
    /// What a partition was at the oldest time at which its commit is known; if there is none, at
    /// the oldest at which the partition is.
    pub fn of(&self, topic_id: Uuid, partition: u32) -> Option<Past> {
        let key = (topic_id, partition);
        let mut without_commit = None;
        for (sample, commits) in &self.samples {
            let Some((log_start, end)) = sample.ends.get(&key).copied() else { continue };
            let committed = commits.and_then(|c| c.get(&key)).copied();
            let past = Past { at_ms: sample.at_ms, committed, log_start, end };
            if committed.is_some() {
                return Some(past);
            }
            without_commit.get_or_insert(past);
        }
        without_commit
    }
}

/// The samples.
#[derive(Debug, Default)]
pub struct Progress {
    samples: VecDeque<Sample>,
    /// Entries of the newest sample that had no room.
    pub left_out: usize,
}

impl Progress {
    /// Takes a sample of a view that has everything.
    pub fn push(&mut self, view: &View) {
        let mut sample = Sample { at_ms: view.read_at_ms, ..Sample::default() };
        let (mut entries, mut left_out) = (0, 0);
        // Groups first: an end without a commit says less than a commit.
        for (group, topics) in view.offsets.iter() {
            for (topic, parts) in topics.iter() {
                let Some(id) = view.topics.get(topic).map(|t| t.value.topic_id) else { continue };
                let commits =
                    parts.values().filter(|o| o.value.topic_id == id).flat_map(|o| &o.value.partitions);
                for (partition, commit) in commits {
                    if entries >= MAX_ENTRIES {
                        left_out += 1;
                        continue;
                    }
                    entries += 1;
                    sample.commits.entry(group.clone()).or_default().insert((id, *partition), commit.offset);
                    if let Some(marks) = view.marks(id, *partition) {
                        sample.ends.insert((id, *partition), (marks.marks.log_start, marks.marks.end));
                    }
                }
            }
        }
        for topic in view.topics.values().map(|t| &t.value) {
            for partition in 0..topic.partitions {
                let key = (topic.topic_id, partition);
                if sample.ends.contains_key(&key) {
                    continue;
                }
                let Some(marks) = view.marks(topic.topic_id, partition) else { continue };
                if entries >= MAX_ENTRIES {
                    left_out += 1;
                    continue;
                }
                entries += 1;
                sample.ends.insert(key, (marks.marks.log_start, marks.marks.end));
            }
        }
        self.left_out = left_out;
        self.samples.push_back(sample);
        self.thin(view.read_at_ms);
    }

    fn thin(&mut self, now_ms: i64) {
        let mut last_kept = i64::MIN;
        self.samples.retain(|sample| {
            let age = now_ms - sample.at_ms;
            let is_kept = age <= SPAN_MS
                && (age <= DENSE_MS || sample.at_ms.saturating_sub(last_kept) >= SPARSE_STEP_MS);
            if is_kept {
                last_kept = sample.at_ms;
            }
            is_kept
        });
        while self.samples.len() > MAX_SAMPLES {
            // The second-oldest dense ones go; what rates need is the oldest and the newest.
            let middle = self.samples.len() / 2;
            self.samples.remove(middle);
        }
    }

    /// What a group was since a time, for those who ask for several of its partitions.
    pub fn of(&self, group: &str, since_ms: i64) -> GroupPast<'_> {
        let samples = self.samples.iter().filter(|s| s.at_ms >= since_ms);
        GroupPast { samples: samples.map(|s| (s, s.commits.get(group))).collect() }
    }

    /// How many samples there are, and from when the oldest is.
    pub fn reach(&self) -> (usize, Option<i64>) {
        (self.samples.len(), self.samples.front().map(|s| s.at_ms))
    }

    /// Entries in all samples: what its memory grows with.
    pub fn entries(&self) -> usize {
        let of = |s: &Sample| s.ends.len() + s.commits.values().map(HashMap::len).sum::<usize>();
        self.samples.iter().map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_thinned_and_old_ones_go() {
        let mut progress = Progress::default();
        for at in (0..3_600_000).step_by(15_000) {
            progress.push(&View { read_at_ms: at, ..View::default() });
        }
        let (count, oldest) = progress.reach();
        assert!(count <= 25, "{count}");
        let age = 3_600_000 - 15_000 - oldest.unwrap();
        assert!((DENSE_MS..=SPAN_MS).contains(&age), "{age}");
    }

    #[test]
    fn a_group_is_compared_with_its_first_commit_not_with_the_time_before_it() {
        let (id, key) = (Uuid::from_u128(1), (Uuid::from_u128(1), 0));
        let sample = |at_ms: i64, committed: Option<i64>| Sample {
            at_ms,
            ends: HashMap::from([(key, (0, at_ms))]),
            commits: committed.map(|c| ("g".to_owned(), HashMap::from([(key, c)]))).into_iter().collect(),
        };
        let progress = Progress {
            samples: [sample(10, None), sample(20, Some(3)), sample(30, Some(4))].into(),
            ..Progress::default()
        };
        assert_eq!(progress.of("g", 0).of(id, 0).map(|p| (p.at_ms, p.committed)), Some((20, Some(3))));
        assert_eq!(progress.of("other", 0).of(id, 0).map(|p| (p.at_ms, p.committed)), Some((10, None)));
        assert_eq!(progress.of("g", 0).of(id, 1), None);
    }

    #[test]
    fn a_short_interval_does_not_keep_more() {
        let mut progress = Progress::default();
        for at in (0..200_000).step_by(200) {
            progress.push(&View { read_at_ms: at, ..View::default() });
        }
        assert!(progress.reach().0 <= MAX_SAMPLES);
    }
}
