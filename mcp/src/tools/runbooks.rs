//! Runbooks: which there are for a question, and the text of one.

use serde_json::{Value, json};

use super::answer::{Code, ToolError};
use super::page::Page;
use super::spec::{Kind, LIMIT, ToolSpec, optional, required};
use super::{Body, Call, body};
use crate::access::Scope;
use crate::foreign::clean;

pub(super) const SEARCH_RUNBOOKS: ToolSpec = ToolSpec {
    name: "search_runbooks",
    title: "Search runbooks",
    description: "Search the runbooks (what to do, troubleshooting guides) by words or by the code of a cause: lag, rebalance storm, S3, etcd, lost broker, hot partition, retention, expiry.",
    scope: Scope::Read,
    cost: 1,
    params: &[
        optional("query", Kind::Text(256), "words; all if absent"),
        optional("cause", Kind::Text(64), "code of a root cause"),
        LIMIT,
    ],
    output: "{runbooks:[{id:s,title:s,version:i,source:(shipped|operator),causes:[s],summary:s}],total:i}",
};

pub(super) const GET_RUNBOOK: ToolSpec = ToolSpec {
    name: "get_runbook",
    title: "Get a runbook",
    description: "Get the text of a runbook: evidence to collect, how to read it, actions with their risks, what not to do.",
    scope: Scope::Read,
    cost: 1,
    params: &[required("runbook_id", Kind::Text(64), "")],
    output: "{id:s,title:s,version:i,source:(shipped|operator),causes:[s],sections:[s],markdown:s}",
};

pub(super) fn search_runbooks(call: &mut Call<'_>) -> Body {
    let (query, cause) = (call.args.text("query").unwrap_or_default(), call.args.text("cause"));
    let found = call.observer.runbooks.search(query, cause);
    note_problems(call);
    let (limit, total) = (call.args.limit(), found.len());
    let mut page = Page::default();
    for (_, runbook) in &found {
        let row = json!({
            "id": runbook.id, "title": runbook.title, "version": runbook.version, "source": runbook.source,
            "causes": runbook.causes, "summary": runbook.summary(),
        });
        if !page.push(limit, runbook.id.as_str(), row) {
            call.meta.warn("output_truncated", "there are more runbooks: raise limit or ask for more words");
            break;
        }
    }
    body(json!({"runbooks": page.items, "total": total}))
}

pub(super) fn get_runbook(call: &mut Call<'_>) -> Result<Body, ToolError> {
    let id = call.args.text("runbook_id").unwrap_or_default();
    let Some(runbook) = call.observer.runbooks.find(id) else {
        let message = format!("there is no runbook {:?}", clean(id));
        return Err(ToolError::new(Code::NotFound, message).suggest("search_runbooks has them all"));
    };
    note_problems(call);
    let value: Value = json!({
        "id": runbook.id, "title": runbook.title, "version": runbook.version, "source": runbook.source,
        "causes": runbook.causes, "sections": runbook.sections(), "markdown": runbook.text,
    });
    Ok(body(value))
}

fn note_problems(call: &mut Call<'_>) {
    let problems = call.observer.runbooks.problems();
    if !problems.is_empty() {
        let shown = problems.iter().take(3).map(String::as_str).collect::<Vec<_>>().join("; ");
        call.meta.missing("runbooks_unusable", format!("{} of the operator's own: {shown}", problems.len()));
    }
}
