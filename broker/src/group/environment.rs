//! What groups use of the broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use strandline_metadata::backend::BackendError;
use strandline_metadata::commit::{Session, SessionCell};
use strandline_metadata::groups::GroupWriter;
use strandline_metadata::limits::APPLY_TIMEOUT;
use strandline_metadata::names::Names;
use strandline_metadata::replica::Replica;
use strandline_metadata::turns::Turns;
use strandline_storage::clock::Clock;
use tokio::time::{Instant, timeout};

use super::Context;
use super::patterns::KnownTopics;
use crate::clock_skew::ClockSkew;
use crate::config::GroupConfig;
use crate::group_config::{self, GroupSettings};
use crate::ids::Ids;
use crate::leaders::Leaders;
use crate::limits::UNITS_PER_ELEMENT;
use crate::metrics::groups::GroupMetrics;
use crate::space::SpaceGauge;
use crate::tasks::TaskSet;

/// The parts of the broker that groups use.
#[derive(Debug)]
pub(crate) struct Environment {
    pub(crate) node_id: i32,
    pub(crate) config: GroupConfig,
    pub(crate) replica: Replica,
    pub(crate) topics: KnownTopics,
    pub(crate) sessions: SessionCell,
    pub(crate) writer: GroupWriter,
    /// Number of the next write.
    pub(crate) writes: AtomicU64,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) clock_skew: ClockSkew,
    pub(crate) metrics: GroupMetrics,
    pub(crate) space: SpaceGauge,
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
    pub(super) async fn own_groups(&self) -> Vec<String> {
        let (view, mut turns) = (self.replica.view(), Turns::default());
        let leaders = Leaders::registered(&view.names);
        let mut own = Vec::new();
        for group in view.names.groups() {
            turns.spend(UNITS_PER_ELEMENT).await;
            if self.is_own(&leaders, group) {
                own.push(group.to_owned());
            }
        }
        own
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
        Context { now: Instant::now(), topics: &self.topics, settings, fresh_id: self.ids.next() }
    }

    /// Waits until this broker knows the cluster as it was at `revision`: committed offsets belong
    /// to topics, which must not seem to be missing, or to be their predecessors of the same name.
    pub(super) async fn caught_up(&self, revision: i64) -> Result<(), BackendError> {
        let seen = timeout(APPLY_TIMEOUT, self.replica.wait_applied(revision)).await;
        seen.map_err(|_| BackendError::Unavailable("this broker is behind".to_owned()))
    }
}
