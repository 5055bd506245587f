//! The tools. One enum names them all; the catalogue, the checks and the calls go by it.

pub mod answer;
mod cluster;
mod diagnose;
mod evidence;
mod figures;
mod groups;
mod history;
mod lag;
mod member;
mod page;
mod plan;
mod runbooks;
pub mod spec;
mod topics;

use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

pub use self::answer::Rendered;
use self::answer::{Code, Meta, SourceStatus, ToolError, render};
pub(crate) use self::lag::Judged;
use self::page::{Binding, Page};
use self::spec::{Args, ToolSpec};
pub(crate) use self::topics::shown as shown_config;
use crate::Observer;
use crate::access::{Principal, Scope, sha256_hex};
use crate::audit::AuditLine;
use crate::clock::rfc3339;
use crate::foreign::clean;
use crate::server::Caller;
use crate::source::etcd::Need;
use crate::source::view::View;

/// What a tool's body is.
pub(crate) type Body = Map<String, Value>;

/// Every tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tool {
    /// `list_topics`
    ListTopics,
    /// `describe_topics`
    DescribeTopics,
    /// `get_partition_offsets`
    GetPartitionOffsets,
    /// `describe_configs`
    DescribeConfigs,
    /// `list_groups`
    ListGroups,
    /// `describe_group`
    DescribeGroup,
    /// `fetch_offsets`
    FetchOffsets,
    /// `get_group_lag`
    GetGroupLag,
    /// `list_lagging_groups`
    ListLaggingGroups,
    /// `check_replay_readiness`
    CheckReplayReadiness,
    /// `cluster_status`
    ClusterStatus,
    /// `cluster_metrics`
    ClusterMetrics,
    /// `describe_brokers`
    DescribeBrokers,
    /// `storage_status`
    StorageStatus,
    /// `observer_status`
    ObserverStatus,
    /// `explain_access`
    ExplainAccess,
    /// `list_metrics`
    ListMetrics,
    /// `query_metric`
    QueryMetric,
    /// `recent_changes`
    RecentChanges,
    /// `audit_topics`
    AuditTopics,
    /// `search_runbooks`
    SearchRunbooks,
    /// `get_runbook`
    GetRunbook,
    /// `explain_current_state`
    ExplainCurrentState,
    /// `diagnose_group_lag`
    DiagnoseGroupLag,
    /// `diagnose_broker`
    DiagnoseBroker,
    /// `diagnose_storage`
    DiagnoseStorage,
    /// `incident_snapshot`
    IncidentSnapshot,
    /// `plan_create_topic`
    PlanCreateTopic,
    /// `plan_update_topic_config`
    PlanUpdateTopicConfig,
    /// `plan_add_partitions`
    PlanAddPartitions,
    /// `plan_reset_offsets`
    PlanResetOffsets,
    /// `check_plan`
    CheckPlan,
}

impl Tool {
    /// Every tool, in the order of the catalogue.
    pub const ALL: &[Self] = &[
        Self::ClusterStatus,
        Self::ClusterMetrics,
        Self::ListTopics,
        Self::DescribeTopics,
        Self::ListGroups,
        Self::DescribeGroup,
        Self::FetchOffsets,
        Self::DescribeConfigs,
        Self::GetGroupLag,
        Self::ListLaggingGroups,
        Self::GetPartitionOffsets,
        Self::DescribeBrokers,
        Self::StorageStatus,
        Self::ListMetrics,
        Self::QueryMetric,
        Self::RecentChanges,
        Self::AuditTopics,
        Self::CheckReplayReadiness,
        Self::ExplainCurrentState,
        Self::DiagnoseGroupLag,
        Self::DiagnoseBroker,
        Self::DiagnoseStorage,
        Self::IncidentSnapshot,
        Self::SearchRunbooks,
        Self::GetRunbook,
        Self::ObserverStatus,
        Self::ExplainAccess,
        Self::PlanCreateTopic,
        Self::PlanUpdateTopicConfig,
        Self::PlanAddPartitions,
        Self::PlanResetOffsets,
        Self::CheckPlan,
    ];

    /// How it is published.
    pub fn spec(self) -> &'static ToolSpec {
        match self {
            Self::ListTopics => &topics::LIST_TOPICS,
            Self::DescribeTopics => &topics::DESCRIBE_TOPICS,
            Self::GetPartitionOffsets => &topics::GET_PARTITION_OFFSETS,
            Self::DescribeConfigs => &topics::DESCRIBE_CONFIGS,
            Self::ListGroups => &groups::LIST_GROUPS,
            Self::DescribeGroup => &groups::DESCRIBE_GROUP,
            Self::FetchOffsets => &groups::FETCH_OFFSETS,
            Self::GetGroupLag => &lag::GET_GROUP_LAG,
            Self::ListLaggingGroups => &lag::LIST_LAGGING_GROUPS,
            Self::CheckReplayReadiness => &lag::CHECK_REPLAY_READINESS,
            Self::ClusterStatus => &cluster::CLUSTER_STATUS,
            Self::ClusterMetrics => &cluster::CLUSTER_METRICS,
            Self::DescribeBrokers => &cluster::DESCRIBE_BROKERS,
            Self::StorageStatus => &cluster::STORAGE_STATUS,
            Self::ObserverStatus => &cluster::OBSERVER_STATUS,
            Self::ExplainAccess => &cluster::EXPLAIN_ACCESS,
            Self::ListMetrics => &history::LIST_METRICS,
            Self::QueryMetric => &history::QUERY_METRIC,
            Self::RecentChanges => &history::RECENT_CHANGES,
            Self::AuditTopics => &topics::AUDIT_TOPICS,
            Self::SearchRunbooks => &runbooks::SEARCH_RUNBOOKS,
            Self::GetRunbook => &runbooks::GET_RUNBOOK,
            Self::ExplainCurrentState => &diagnose::EXPLAIN_CURRENT_STATE,
            Self::DiagnoseGroupLag => &diagnose::DIAGNOSE_GROUP_LAG,
            Self::DiagnoseBroker => &diagnose::DIAGNOSE_BROKER,
            Self::DiagnoseStorage => &diagnose::DIAGNOSE_STORAGE,
            Self::IncidentSnapshot => &diagnose::INCIDENT_SNAPSHOT,
            Self::PlanCreateTopic => &plan::PLAN_CREATE_TOPIC,
            Self::PlanUpdateTopicConfig => &plan::PLAN_UPDATE_TOPIC_CONFIG,
            Self::PlanAddPartitions => &plan::PLAN_ADD_PARTITIONS,
            Self::PlanResetOffsets => &plan::PLAN_RESET_OFFSETS,
            Self::CheckPlan => &plan::CHECK_PLAN,
        }
    }

    async fn run(self, call: &mut Call<'_>) -> Result<Body, ToolError> {
        match self {
            Self::ListTopics => topics::list_topics(call).await,
            Self::DescribeTopics => topics::describe_topics(call).await,
            Self::GetPartitionOffsets => topics::get_partition_offsets(call).await,
            Self::DescribeConfigs => topics::describe_configs(call).await,
            Self::ListGroups => groups::list_groups(call).await,
            Self::DescribeGroup => groups::describe_group(call).await,
            Self::FetchOffsets => groups::fetch_offsets(call).await,
            Self::GetGroupLag => lag::get_group_lag(call).await,
            Self::ListLaggingGroups => lag::list_lagging_groups(call).await,
            Self::CheckReplayReadiness => lag::check_replay_readiness(call).await,
            Self::ClusterStatus => cluster::cluster_status(call).await,
            Self::ClusterMetrics => cluster::cluster_metrics(call),
            Self::DescribeBrokers => cluster::describe_brokers(call).await,
            Self::StorageStatus => cluster::storage_status(call).await,
            Self::ObserverStatus => Ok(cluster::observer_status(call)),
            Self::ExplainAccess => Ok(cluster::explain_access(call)),
            Self::ListMetrics => Ok(history::list_metrics(call)),
            Self::QueryMetric => history::query_metric(call).await,
            Self::RecentChanges => history::recent_changes(call),
            Self::AuditTopics => topics::audit_topics(call).await,
            Self::SearchRunbooks => Ok(runbooks::search_runbooks(call)),
            Self::GetRunbook => runbooks::get_runbook(call),
            Self::ExplainCurrentState => diagnose::explain_current_state(call).await,
            Self::DiagnoseGroupLag => diagnose::diagnose_group_lag(call).await,
            Self::DiagnoseBroker => diagnose::diagnose_broker(call).await,
            Self::DiagnoseStorage => diagnose::diagnose_storage(call),
            Self::IncidentSnapshot => diagnose::incident_snapshot(call).await,
            Self::PlanCreateTopic => plan::plan_create_topic(call).await,
            Self::PlanUpdateTopicConfig => plan::plan_update_topic_config(call).await,
            Self::PlanAddPartitions => plan::plan_add_partitions(call).await,
            Self::PlanResetOffsets => plan::plan_reset_offsets(call).await,
            Self::CheckPlan => plan::check_plan(call).await,
        }
    }
}

/// Whether a caller may know of a tool.
pub(crate) fn is_offered(observer: &Observer, principal: &Principal, tool: Tool) -> bool {
    let scope = tool.spec().scope;
    principal.has(scope) && (scope != Scope::Plan || observer.config.plans)
}

/// One call, while it is answered.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) observer: &'a Observer,
    pub(crate) principal: &'a Principal,
    pub(crate) name: &'static str,
    pub(crate) args: Args,
    pub(crate) request_id: String,
    pub(crate) now_ms: i64,
    pub(crate) meta: Meta,
}

impl Call<'_> {
    /// Reads etcd, and notes so.
    pub(crate) async fn view(&mut self, need: Need) -> Result<Arc<View>, ToolError> {
        let result = self.observer.etcd.read(need).await;
        self.now_ms = self.observer.clock.now_ms();
        let view = match result {
            Ok(view) => view,
            Err(error) => {
                self.meta.source("etcd", SourceStatus::Failed, None);
                return Err(error.into());
            }
        };
        self.meta.source("etcd", SourceStatus::Ok, Some((self.now_ms - view.read_at_ms).max(0)));
        self.meta.read_at(view.read_at_ms);
        self.meta.revision = Some(view.revision);
        self.meta.cluster_id = self.observer.etcd.cluster_id();
        if view.unreadable > 0 {
            self.meta.missing(
                "unreadable_values",
                format!(
                    "{} values in etcd are of a newer format or damaged; what they say is missing",
                    view.unreadable
                ),
            );
        }
        Ok(view)
    }

    /// Whether the caller may see this topic.
    pub(crate) fn sees_topic(&self, name: &str) -> bool {
        self.principal.topics.covers(name)
    }

    /// Whether the caller may see this group.
    pub(crate) fn sees_group(&self, id: &str) -> bool {
        self.principal.groups.covers(id)
    }

    /// Whether the caller may see addresses, hosts and member ids.
    pub(crate) fn topology(&self) -> bool {
        self.principal.has(Scope::Topology)
    }

    /// An address, host or member id, if the caller may see it.
    pub(crate) fn redacted(&self, text: &str) -> Option<String> {
        self.topology().then(|| clean(text))
    }

    fn binding<'b>(&'b self, arguments: &'b str) -> Binding<'b> {
        Binding { principal: &self.principal.name, tool: self.name, arguments }
    }

    /// The position to go on after, if the caller gave a cursor.
    pub(crate) fn position(&self) -> Result<Option<String>, ToolError> {
        let Some(cursor) = self.args.text("cursor") else { return Ok(None) };
        let arguments = self.args.canonical();
        page::position(&self.observer.seal, self.binding(&arguments), cursor, self.now_ms).map(Some)
    }

    /// The same in a list by topic and partition.
    pub(crate) fn partition_position(&self) -> Result<Option<(String, i64)>, ToolError> {
        let position = self.position()?;
        let parts = position.as_deref().and_then(|a| a.rsplit_once('/'));
        Ok(parts.map(|(topic, partition)| (topic.to_owned(), partition.parse().unwrap_or(-1))))
    }

    /// The cursor behind a page, null at the end.
    pub(crate) fn next_cursor(&mut self, page: &Page) -> Value {
        let Some(position) = &page.more_after else { return Value::Null };
        self.meta.warn("output_truncated", "there is more: call again with next_cursor");
        let arguments = self.args.canonical();
        page::cursor(&self.observer.seal, self.binding(&arguments), position, self.now_ms).into()
    }

    /// The id of the group that the caller means: as it is, or as it is shown.
    pub(crate) fn find_group<'v>(&self, view: &'v View, wanted: &str) -> Result<&'v str, ToolError> {
        let ids = view.group_ids();
        let found = ids.get(wanted).copied().or_else(|| ids.iter().copied().find(|id| clean(id) == wanted));
        found.filter(|id| self.sees_group(id)).ok_or_else(|| {
            ToolError::new(Code::NotFound, format!("there is no group {:?}", clean(wanted)))
                .suggest("list_groups has the groups that this caller may see")
        })
    }
}

/// A body from pairs.
pub(crate) fn body(value: Value) -> Body {
    match value {
        Value::Object(map) => map,
        other => Map::from_iter([("value".to_owned(), other)]),
    }
}

/// Calls a tool: limits, checks, the answer, and the audit line of all that.
pub(crate) async fn call(
    observer: &Observer,
    caller: &Caller,
    client: Option<String>,
    method: &str,
    tool: Tool,
    arguments: Option<Map<String, Value>>,
) -> Rendered {
    let begun = Instant::now();
    let spec = tool.spec();
    let mut line = audit_line(observer, caller, client, method, spec.name, arguments.as_ref());
    let admitted = admit(observer, &caller.principal, spec.cost);
    let rendered = answer(observer, &caller.principal, tool, arguments, &line.request_id, admitted).await;
    rendered.outcome.clone_into(&mut line.outcome);
    line.bytes = rendered.text.len();
    line.duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    observer.metrics.called(spec.name, rendered.outcome, begun.elapsed());
    observer.audit.note(line);
    rendered
}

/// The answer of a tool, or why the caller was not admitted.
pub(crate) async fn answer(
    observer: &Observer,
    principal: &Principal,
    tool: Tool,
    arguments: Option<Map<String, Value>>,
    request_id: &str,
    admitted: Result<(), ToolError>,
) -> Rendered {
    let spec = tool.spec();
    let mut call = Call {
        observer,
        principal,
        name: spec.name,
        args: Args::default(),
        request_id: request_id.to_owned(),
        now_ms: observer.clock.now_ms(),
        meta: Meta { cluster_id: observer.etcd.cluster_id(), ..Meta::default() },
    };
    let checked = admitted.and_then(|()| {
        Args::check(spec.params, arguments).map_err(|why| ToolError::new(Code::InvalidArgument, why))
    });
    let result = match checked {
        Ok(args) => {
            call.args = args;
            tool.run(&mut call).await
        }
        Err(error) => Err(error),
    };
    let now_ms = observer.clock.now_ms();
    let meta = call.meta.to_json(&call.request_id, &principal.name, now_ms);
    render(result, &meta, &call.request_id)
}

/// Whether the caller may go on now.
pub(crate) fn admit(observer: &Observer, principal: &Principal, cost: u32) -> Result<(), ToolError> {
    observer.calls.take(&principal.name.to_string(), cost).map_err(|wait| ToolError {
        retry_after_ms: u64::try_from(wait.as_millis()).ok(),
        ..ToolError::new(Code::RateLimited, "this caller asks too often")
    })
}

/// Notes a call of a tool that does not exist for the caller.
pub(crate) fn note_unknown(observer: &Observer, caller: &Caller, client: Option<String>, name: &str) {
    let mut line = audit_line(observer, caller, client, "tools/call", &clean(name), None);
    Code::NotFound.as_str().clone_into(&mut line.outcome);
    observer.metrics.called("unknown", Code::NotFound.as_str(), std::time::Duration::ZERO);
    observer.audit.note(line);
}

/// The audit line of a call that begins.
pub(crate) fn audit_line(
    observer: &Observer,
    caller: &Caller,
    client: Option<String>,
    method: &str,
    target: &str,
    arguments: Option<&Map<String, Value>>,
) -> AuditLine {
    let text = |name: &str| arguments?.get(name)?.as_str().map(clean);
    let first = |name: &str| arguments?.get(name)?.as_array()?.first()?.as_str().map(clean);
    AuditLine {
        time: rfc3339(observer.clock.now_ms()).unwrap_or_default(),
        request_id: observer.next_request_id(),
        principal: Some(caller.principal.name.to_string()),
        client,
        peer: Some(caller.peer.clone()),
        method: method.to_owned(),
        target: Some(target.to_owned()),
        arguments_hash: arguments
            .map(|a| sha256_hex(json!(a).to_string().as_bytes()).chars().take(16).collect()),
        topic: text("topic").or_else(|| first("topics")).or_else(|| first("names")),
        group: text("group_id"),
        ..AuditLine::default()
    }
}
