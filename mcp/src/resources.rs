//! Resources: the answers of tools under fixed names. What a caller may see of a tool it may see of
//! the resource, and nothing else: a resource is a tool with its arguments filled in.

use serde_json::{Map, Value, json};

use crate::Observer;
use crate::access::{Principal, Scope};
use crate::foreign::is_clean;
use crate::source::etcd::Need;
use crate::tools::{self, Tool};

/// The scheme of every resource.
const SCHEME: &str = "strandline://";

/// A resource with a fixed name.
#[derive(Clone, Copy, Debug)]
pub struct Fixed {
    /// Its path behind the scheme.
    pub path: &'static str,
    /// Its title.
    pub title: &'static str,
    /// What it shows.
    pub description: &'static str,
    source: Source,
}

/// A family of resources.
#[derive(Clone, Copy, Debug)]
pub struct Template {
    /// What is before the name.
    head: &'static str,
    /// What is behind the name.
    tail: &'static str,
    /// What the name is called.
    pub variable: &'static str,
    /// Its title.
    pub title: &'static str,
    /// What it shows.
    pub description: &'static str,
    tool: Tool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Tool(Tool),
    Audit,
}

const fn fixed(path: &'static str, title: &'static str, description: &'static str, source: Source) -> Fixed {
    Fixed { path, title, description, source }
}

/// Every resource with a fixed name, but for runbooks.
pub const FIXED: &[Fixed] = &[
    fixed(
        "cluster/overview",
        "Cluster overview",
        "Brokers, topics, groups, S3, etcd",
        Source::Tool(Tool::ClusterStatus),
    ),
    fixed(
        "cluster/health",
        "Cluster health",
        "Findings with evidence",
        Source::Tool(Tool::ExplainCurrentState),
    ),
    fixed(
        "storage",
        "Storage",
        "The object store's latency, errors and cost",
        Source::Tool(Tool::StorageStatus),
    ),
    fixed("metrics/catalog", "Metrics", "What query_metric can show", Source::Tool(Tool::ListMetrics)),
    fixed(
        "changes/recent",
        "Recent changes",
        "What changed, the newest first",
        Source::Tool(Tool::RecentChanges),
    ),
    fixed("audit/recent", "Recent calls", "The newest audit lines", Source::Audit),
];

/// Every family of resources.
pub const TEMPLATES: &[Template] = &[
    Template {
        head: "brokers/",
        tail: "",
        variable: "id",
        title: "Broker",
        description: "A broker, examined",
        tool: Tool::DiagnoseBroker,
    },
    Template {
        head: "topics/",
        tail: "",
        variable: "topic",
        title: "Topic",
        description: "A topic and its partitions",
        tool: Tool::DescribeTopics,
    },
    Template {
        head: "topics/",
        tail: "/configs",
        variable: "topic",
        title: "Topic configs",
        description: "A topic's configuration",
        tool: Tool::DescribeConfigs,
    },
    Template {
        head: "groups/",
        tail: "",
        variable: "group",
        title: "Group",
        description: "A consumer group and its members",
        tool: Tool::DescribeGroup,
    },
    Template {
        head: "groups/",
        tail: "/lag",
        variable: "group",
        title: "Group lag",
        description: "A consumer group's lag",
        tool: Tool::GetGroupLag,
    },
    Template {
        head: "runbooks/",
        tail: "",
        variable: "id",
        title: "Runbook",
        description: "A runbook as Markdown",
        tool: Tool::GetRunbook,
    },
];

impl Template {
    /// Its URI with the variable in braces.
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}{{{}}}{}", self.head, self.variable, self.tail)
    }
}

impl Fixed {
    /// Its URI.
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}", self.path)
    }
}

/// The URI of a runbook.
pub fn runbook_uri(id: &str) -> String {
    format!("{SCHEME}runbooks/{id}")
}

/// What a URI stands for.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// The answer of a tool.
    Tool(Tool, Map<String, Value>),
    /// The newest audit lines.
    Audit,
}

impl Target {
    /// Whether it is Markdown; all others are JSON.
    pub fn is_markdown(&self) -> bool {
        matches!(self, Self::Tool(Tool::GetRunbook, _))
    }
}

/// Whether a caller may know of a fixed resource.
pub fn is_offered(observer: &Observer, principal: &Principal, resource: &Fixed) -> bool {
    match resource.source {
        Source::Tool(tool) => tools::is_offered(observer, principal, tool),
        // What others asked for is theirs.
        Source::Audit => principal.has(Scope::Audit) && !principal.is_tenant(),
    }
}

/// What a URI stands for, for a caller who may know of it.
pub fn find(observer: &Observer, principal: &Principal, uri: &str) -> Option<Target> {
    let path = uri.strip_prefix(SCHEME)?;
    if let Some(resource) = FIXED.iter().find(|r| r.path == path) {
        return is_offered(observer, principal, resource).then(|| match resource.source {
            Source::Tool(tool) => Target::Tool(tool, Map::new()),
            Source::Audit => Target::Audit,
        });
    }
    // The longer tail first: `topics/a/configs` is no topic.
    let mut templates: Vec<&Template> = TEMPLATES.iter().collect();
    templates.sort_by_key(|t| std::cmp::Reverse(t.tail.len()));
    let (template, name) = templates.into_iter().find_map(|t| {
        let name = path.strip_prefix(t.head)?.strip_suffix(t.tail)?;
        (!name.is_empty() && !name.contains('/')).then_some((t, name))
    })?;
    if !tools::is_offered(observer, principal, template.tool) {
        return None;
    }
    let name = decode(name)?;
    let arguments = match template.tool {
        Tool::DiagnoseBroker => json!({"broker_id": name.parse::<u32>().ok()?}),
        Tool::DescribeTopics | Tool::DescribeConfigs => json!({"names": [name]}),
        Tool::GetRunbook => json!({"runbook_id": name}),
        _ => json!({"group_id": name}),
    };
    Some(Target::Tool(template.tool, arguments.as_object().cloned().unwrap_or_default()))
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |b: Option<u8>| char::from(b?).to_digit(16).and_then(|d| u8::try_from(d).ok());
            bytes.push(digit(rest.next())? * 16 + digit(rest.next())?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Values that a completion may have.
const COMPLETIONS: usize = 100;

/// What an argument of this name may be, as far as the caller sees it: those that begin with what
/// is typed, and how many there are. Names that are not shown as they are cannot be completed.
pub async fn complete(
    observer: &Observer,
    principal: &Principal,
    variable: &str,
    typed: &str,
) -> (Vec<String>, usize) {
    if !principal.has(Scope::Read) {
        return (Vec::new(), 0);
    }
    let need = match variable {
        "topic" => Need::TOPICS,
        "group" | "group_id" => Need::GROUPS,
        "id" | "broker_id" => Need::PLAIN,
        _ => return (Vec::new(), 0),
    };
    let Ok(view) = observer.etcd.read(need).await else { return (Vec::new(), 0) };
    let names: Vec<String> = match variable {
        "topic" => view.topics.keys().filter(|n| principal.topics.covers(n)).cloned().collect(),
        "group" | "group_id" => {
            view.group_ids().into_iter().filter(|n| principal.groups.covers(n)).map(str::to_owned).collect()
        }
        _ => view.brokers.keys().map(ToString::to_string).collect(),
    };
    let mut fitting: Vec<String> =
        names.into_iter().filter(|n| n.starts_with(typed) && is_clean(n)).collect();
    let total = fitting.len();
    fitting.truncate(COMPLETIONS);
    (fitting, total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_decoded() {
        assert_eq!(decode("a%2fb%20c").as_deref(), Some("a/b c"));
        assert_eq!(decode("%2"), None);
        assert_eq!(decode("%ff"), None, "not UTF-8");
        assert_eq!(TEMPLATES[2].uri(), "strandline://topics/{topic}/configs");
    }
}
