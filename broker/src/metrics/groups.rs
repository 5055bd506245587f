//! What is counted of consumer groups, by their coordinators; and how far each is behind.

use std::collections::BTreeMap;

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec};
use strandline_metadata::replica::Replica;

use super::registrar::Registrar;
use crate::group::status::GroupStatus;
use crate::limits::GROUP_LAG_SERIES;

/// The label of what is summed up.
const ALL: &str = "all";

/// The group metrics.
#[derive(Clone, Debug)]
pub(crate) struct GroupMetrics {
    groups: IntGaugeVec,
    members: IntGaugeVec,
    lag: IntGaugeVec,
    rebalances: IntCounterVec,
    members_expired: IntCounter,
    commits: IntCounter,
    offsets_expired: IntCounter,
    writes: IntCounter,
    keys_written: IntCounter,
}

impl GroupMetrics {
    pub(super) fn new(r: &Registrar<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            groups: r.gauges(
                "groups",
                "Consumer groups that this broker coordinates, by type and state",
                &["type", "state"],
            )?,
            members: r.gauges(
                "group_members",
                "Members of each group, with its type and state",
                &["group", "type", "state"],
            )?,
            lag: r.gauges(
                "group_lag",
                "Records between a group's committed offset and the end of the partition; summed up as `all` when there are many",
                &["group", "topic", "partition"],
            )?,
            rebalances: r.counters("group_rebalances_total", "Rebalances, by their reason", &["reason"])?,
            members_expired: r.counter(
                "group_members_expired_total",
                "Members that were given up because they were not heard of in time",
            )?,
            commits: r.counter("group_offset_commits_total", "Offsets that were committed")?,
            offsets_expired: r.counter("group_offsets_expired_total", "Committed offsets that expired")?,
            writes: r.counter("group_writes_total", "Writes of groups and offsets to the metadata store")?,
            keys_written: r.counter("group_offset_keys_written_total", "Keys of offsets in those writes")?,
        })
    }

    pub(crate) fn rebalanced(&self, reason: &str) {
        self.rebalances.with_label_values(&[reason]).inc();
    }

    pub(crate) fn members_expired(&self, count: usize) {
        self.members_expired.inc_by(count as u64);
    }

    pub(crate) fn committed(&self, count: usize) {
        self.commits.inc_by(count as u64);
    }

    pub(crate) fn offsets_expired(&self, count: usize) {
        self.offsets_expired.inc_by(count as u64);
    }

    pub(crate) fn written(&self, offset_keys: usize) {
        self.writes.inc();
        self.keys_written.inc_by(offset_keys as u64);
    }

    /// Takes over what groups are now. `each` calls a function for every group, with its id.
    pub(super) fn look(&self, replica: &Replica, each: impl Fn(&mut dyn FnMut(&str, &GroupStatus))) {
        self.groups.reset();
        self.members.reset();
        self.lag.reset();
        let mut index = 0;
        each(&mut |group, status| {
            self.groups.with_label_values(&[status.kind, status.state]).inc();
            let members = i64::try_from(status.members).unwrap_or(i64::MAX);
            if index < GROUP_LAG_SERIES {
                self.members.with_label_values(&[group, status.kind, status.state]).set(members);
            }
            index += 1;
        });
        let level = Level::fitting(&each);
        let mut lags: BTreeMap<(String, String, String), i64> = BTreeMap::new();
        each(&mut |group, status| {
            each_lag(replica, status, |topic, partition, lag| {
                let (topic, partition) = match level {
                    Level::Partition => (topic, partition.to_string()),
                    Level::Topic => (topic, ALL.to_owned()),
                    Level::Group => (ALL, ALL.to_owned()),
                };
                *lags.entry((group.to_owned(), topic.to_owned(), partition)).or_default() += lag;
            });
        });
        // Groups may have come since they were counted.
        for ((group, topic, partition), lag) in lags.into_iter().take(GROUP_LAG_SERIES) {
            self.lag.with_label_values(&[group, topic, partition]).set(lag);
        }
    }
}

/// What gets a lag of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Partition,
    Topic,
    Group,
}

impl Level {
    /// The finest one at which there are not too many.
    fn fitting(each: &impl Fn(&mut dyn FnMut(&str, &GroupStatus))) -> Self {
        let (mut partitions, mut topics) = (0, 0);
        each(&mut |_, status| {
            let mut last = None;
            for (topic, _) in status.committed.keys() {
                topics += usize::from(last.replace(topic) != Some(topic));
            }
            partitions += status.committed.values().map(|(_, offsets)| offsets.len()).sum::<usize>();
        });
        match (partitions, topics) {
            (..=GROUP_LAG_SERIES, _) => Self::Partition,
            (_, ..=GROUP_LAG_SERIES) => Self::Topic,
            _ => Self::Group,
        }
    }
}

/// Calls `each` for the partitions that a group has committed for: topic, partition, and how many
/// records it is behind.
fn each_lag(replica: &Replica, status: &GroupStatus, mut each: impl FnMut(&str, u32, i64)) {
    replica.read(|view| {
        for ((topic, _), (topic_id, offsets)) in &status.committed {
            for (partition, offset) in offsets {
                let Some(state) = view.state.partition(*topic_id, *partition) else { continue };
                let lag = (state.end() - offset.max(&state.log_start())).max(0);
                each(topic, *partition, lag);
            }
        }
    });
}
