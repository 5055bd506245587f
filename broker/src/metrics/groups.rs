//! What is counted of consumer groups, by their coordinators; and how far each is behind.

use std::collections::BTreeMap;

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec};

use super::Registrar;
use crate::Broker;

/// Partitions that get a lag of their own (invariant 9). When there are more, topics get one; when those are too many as
/// well, only groups do.
const MAX_LAGS: usize = 5_000;

/// The label of what is summed up.
const ALL: &str = "all";

/// The group metrics.
#[derive(Debug)]
pub(super) struct GroupMetrics {
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

    pub(super) fn rebalanced(&self, reason: &str) {
        self.rebalances.with_label_values(&[reason]).inc();
    }

    pub(super) fn members_expired(&self, count: usize) {
        self.members_expired.inc_by(count as u64);
    }

    pub(super) fn committed(&self, count: usize) {
        self.commits.inc_by(count as u64);
    }

    pub(super) fn offsets_expired(&self, count: usize) {
        self.offsets_expired.inc_by(count as u64);
    }

    pub(super) fn written(&self, offset_keys: usize) {
        self.writes.inc();
        self.keys_written.inc_by(offset_keys as u64);
    }

    /// Takes over what groups are now.
    pub(super) fn look(&self, broker: &Broker) {
        self.groups.reset();
        self.members.reset();
        self.lag.reset();
        // By partition, by topic, by group.
        let mut lags: [BTreeMap<(String, String, String), i64>; 3] = Default::default();
        for (index, (group, status)) in broker.groups.statuses().into_iter().enumerate() {
            self.groups.with_label_values(&[status.kind, status.state]).inc();
            let members = i64::try_from(status.members).unwrap_or(i64::MAX);
            if index < MAX_LAGS {
                self.members.with_label_values(&[&*group, status.kind, status.state]).set(members);
            }
            broker.replica.read(|view| {
                for ((topic, _), (topic_id, offsets)) in &status.committed {
                    for (partition, offset) in offsets {
                        let Some(state) = view.state.partition(*topic_id, *partition) else { continue };
                        let lag = (state.end() - offset.max(&state.log_start())).max(0);
                        let own = (group.clone(), topic.clone(), partition.to_string());
                        let by_topic = (group.clone(), topic.clone(), ALL.to_owned());
                        let by_group = (group.clone(), ALL.to_owned(), ALL.to_owned());
                        for (lags, key) in lags.iter_mut().zip([own, by_topic, by_group]) {
                            *lags.entry(key).or_default() += lag;
                        }
                    }
                }
            });
        }
        let fitting = lags.iter().find(|lags| lags.len() <= MAX_LAGS).or(lags.last());
        for ((group, topic, partition), lag) in fitting.into_iter().flatten().take(MAX_LAGS) {
            self.lag.with_label_values(&[group, topic, partition]).set(*lag);
        }
    }
}
