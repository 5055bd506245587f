//! The tools. One list names them all; the catalogue, the checks and the calls go by it.

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
mod transactions;

use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

pub use self::answer::Rendered;
use self::answer::{Code, Meta, SourceStatus, ToolError, render};
pub(crate) use self::lag::Judged;
use self::page::{Binding, Page};
use self::spec::{Args, ToolSpec};
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

/// Declares the tools, in the order of the catalogue: each with how it is published and what
/// answers it. Everything else that knows all tools goes by this list.
macro_rules! tools {
    ($($tool:ident $spec:path, |$call:ident| $answer:expr;)*) => {
        /// Every tool.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Tool {
            $(#[doc = concat!("Published by `", stringify!($spec), "`.")] $tool,)*
        }

        impl Tool {
            /// Every tool, in the order of the catalogue.
            pub const ALL: &[Self] = &[$(Self::$tool),*];

            /// How it is published.
            pub fn spec(self) -> &'static ToolSpec {
                match self {
                    $(Self::$tool => &$spec,)*
                }
            }

            async fn run(self, call: &mut Call<'_>) -> Result<Body, ToolError> {
                match self {
                    $(Self::$tool => {
                        let $call = call;
                        $answer
                    })*
                }
            }
        }
    };
}

tools! {
    ClusterStatus cluster::CLUSTER_STATUS, |call| cluster::cluster_status(call).await;
    ClusterMetrics cluster::CLUSTER_METRICS, |call| cluster::cluster_metrics(call);
    ListTopics topics::LIST_TOPICS, |call| topics::list_topics(call).await;
    DescribeTopics topics::DESCRIBE_TOPICS, |call| topics::describe_topics(call).await;
    ListGroups groups::LIST_GROUPS, |call| groups::list_groups(call).await;
    DescribeGroup groups::DESCRIBE_GROUP, |call| groups::describe_group(call).await;
    FetchOffsets groups::FETCH_OFFSETS, |call| groups::fetch_offsets(call).await;
    DescribeConfigs topics::DESCRIBE_CONFIGS, |call| topics::describe_configs(call).await;
    GetGroupLag lag::GET_GROUP_LAG, |call| lag::get_group_lag(call).await;
    ListLaggingGroups lag::LIST_LAGGING_GROUPS, |call| lag::list_lagging_groups(call).await;
    GetPartitionOffsets topics::GET_PARTITION_OFFSETS, |call| topics::get_partition_offsets(call).await;
    ListTransactions transactions::LIST_TRANSACTIONS, |call| transactions::list_transactions(call).await;
    DescribeTransaction transactions::DESCRIBE_TRANSACTION, |call| transactions::describe_transaction(call).await;
    DescribeBrokers cluster::DESCRIBE_BROKERS, |call| cluster::describe_brokers(call).await;
    StorageStatus cluster::STORAGE_STATUS, |call| cluster::storage_status(call).await;
    ListMetrics history::LIST_METRICS, |call| Ok(history::list_metrics(call));
    QueryMetric history::QUERY_METRIC, |call| history::query_metric(call).await;
    RecentChanges history::RECENT_CHANGES, |call| history::recent_changes(call);
    AuditTopics topics::AUDIT_TOPICS, |call| topics::audit_topics(call).await;
    CheckReplayReadiness lag::CHECK_REPLAY_READINESS, |call| lag::check_replay_readiness(call).await;
    ExplainCurrentState diagnose::EXPLAIN_CURRENT_STATE, |call| diagnose::explain_current_state(call).await;
    DiagnoseGroupLag diagnose::DIAGNOSE_GROUP_LAG, |call| diagnose::diagnose_group_lag(call).await;
    DiagnoseBroker diagnose::DIAGNOSE_BROKER, |call| diagnose::diagnose_broker(call).await;
    DiagnoseStorage diagnose::DIAGNOSE_STORAGE, |call| diagnose::diagnose_storage(call);
    IncidentSnapshot diagnose::INCIDENT_SNAPSHOT, |call| diagnose::incident_snapshot(call).await;
    SearchRunbooks runbooks::SEARCH_RUNBOOKS, |call| Ok(runbooks::search_runbooks(call));
    GetRunbook runbooks::GET_RUNBOOK, |call| runbooks::get_runbook(call);
    ObserverStatus cluster::OBSERVER_STATUS, |call| Ok(cluster::observer_status(call));
    ExplainAccess cluster::EXPLAIN_ACCESS, |call| Ok(cluster::explain_access(call));
    PlanCreateTopic plan::PLAN_CREATE_TOPIC, |call| plan::plan_create_topic(call).await;
    PlanUpdateTopicConfig plan::PLAN_UPDATE_TOPIC_CONFIG, |call| plan::plan_update_topic_config(call).await;
    PlanAddPartitions plan::PLAN_ADD_PARTITIONS, |call| plan::plan_add_partitions(call).await;
    PlanResetOffsets plan::PLAN_RESET_OFFSETS, |call| plan::plan_reset_offsets(call).await;
    CheckPlan plan::CHECK_PLAN, |call| plan::check_plan(call).await;
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
