//! What groups use of the broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use strandline_metadata::backend::BackendError;
use strandline_metadata::commit::{Session, SessionCell};
use strandline_metadata::groups::GroupWriter;
use strandline_metadata::limits::APPLY_TIMEOUT;
use strandline_metadata::names::Names;
use strandline_metadata::replica::Replica;
use strandline_storage::clock::Clock;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::{Context, Topics};
use crate::clock_skew::ClockSkew;
use crate::config::GroupConfig;
use crate::group_config::{self, GroupSettings};
use crate::ids::Ids;
use crate::leaders::Leaders;
use crate::metrics::groups::GroupMetrics;
use crate::tasks::TaskSet;

/// The parts of the broker that groups use.
#[derive(Debug)]
pub(crate) struct Environment {
    pub(crate) node_id: i32,
    pub(crate) config: GroupConfig,
    pub(crate) replica: Replica,
    pub(crate) sessions: SessionCell,
    pub(crate) writer: GroupWriter,
    /// Number of the next write.
    pub(crate) writes: AtomicU64,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) clock_skew: ClockSkew,
    pub(crate) metrics: GroupMetrics,
    pub(crate) tasks: TaskSet,
    pub(crate) ids: Ids,
}

/// The keys of one group, under the registration with which they were read.
#[derive(Clone)]
pub(super) struct GroupKeys {
    pub(super) env: Arc<Environment>,
    pub(super) group: String,
    pub(super) session: Session,
}

impl Environment {
    /// A number that no other write of this process has.
    pub(super) fn next_write(&self) -> u64 {
        self.writes.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether this broker coordinates the group, as far as it knows.
    pub(super) fn coordinates(&self, names: &Names, group: &str) -> bool {
        self.is_own(&Leaders::registered(names), group)
    }

    /// The groups that there are and that this broker coordinates, as far as it knows.
    pub(super) fn own_groups(&self) -> Vec<String> {
        self.replica.read(|view| {
            let leaders = Leaders::registered(&view.names);
            view.names.groups().filter(|group| self.is_own(&leaders, group)).map(str::to_owned).collect()
        })
    }

    /// While no broker is registered, this one still serves what it has.
    fn is_own(&self, leaders: &Leaders, group: &str) -> bool {
        leaders.brokers.is_empty() || leaders.of_group(group) == self.node_id
    }

    /// What is configured for a group.
    pub(super) fn settings(&self, group: &str) -> GroupSettings {
        let (set, _) = self.replica.read(|view| view.names.group_configs(group));
        group_config::resolve(&self.config.settings, &set)
    }

    /// What an engine is told of the world now.
    pub(super) fn context<'a>(&'a self, settings: &'a GroupSettings) -> Context<'a> {
        Context { now: Instant::now(), topics: &self.replica, settings, fresh_id: self.ids.next() }
    }

    /// Waits until this broker knows the cluster as it was at `revision`: committed offsets belong
    /// to topics, which must not seem to be missing, or to be their predecessors of the same name.
    pub(super) async fn caught_up(&self, revision: i64) -> Result<(), BackendError> {
        let seen = timeout(APPLY_TIMEOUT, self.replica.wait_applied(revision)).await;
        seen.map_err(|_| BackendError::Unavailable("this broker is behind".to_owned()))
    }
}

/// The topics that the broker knows now.
impl Topics for Replica {
    fn by_name(&self, name: &str) -> Option<(Uuid, u32)> {
        self.read(|view| view.names.topic(name).map(|t| (t.value.topic_id, t.value.partitions)))
    }

    fn name(&self, id: Uuid) -> Option<String> {
        self.read(|view| view.names.topic_by_id(id).map(|t| t.name.clone()))
    }

    fn each(&self, each: &mut dyn FnMut(&str, Uuid, u32)) {
        self.read(|view| {
            for (name, topic) in view.names.topics() {
                each(name, topic.value.topic_id, topic.value.partitions);
            }
        });
    }
}
