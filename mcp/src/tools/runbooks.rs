//! Looking up runbooks.

use serde_json::json;

use super::answer::{Code, ToolError};
use super::page::Page;
use super::spec::{Kind, LIMIT, ToolSpec, required};
use super::{Body, Call, body};
use crate::access::Scope;
use crate::foreign::clean;

pub(super) const SEARCH_RUNBOOKS: ToolSpec = ToolSpec {
    name: "search_runbooks",
    title: "Search runbooks",
    description: "Search the runbooks (playbooks, what to do) of this system by words: lag, rebalance, S3, etcd, broker, hot partition, retention, expiry.",
    scope: Scope::Read,
    cost: 1,
    params: &[required("query", Kind::Text(200), ""), LIMIT],
    output: "{runbooks:[{runbook_id:s,title:s,version:s,source:(shipped|own),score:i}]}",
};

pub(super) const GET_RUNBOOK: ToolSpec = ToolSpec {
    name: "get_runbook",
    title: "Get a runbook",
    description: "Get a runbook as Markdown: evidence to collect, how to read it, actions with their risks, what not to do.",
    scope: Scope::Read,
    cost: 1,
    params: &[required("runbook_id", Kind::Text(100), "")],
    output: "{runbook_id:s,title:s,version:s,source:(shipped|own),markdown:s}",
};

fn source(shipped: bool) -> &'static str {
    if shipped { "shipped" } else { "own" }
}

pub(super) fn search_runbooks(call: &Call<'_>) -> Body {
    let query = call.args.text("query").unwrap_or_default();
    let mut page = Page::default();
    for (score, book) in call.observer.runbooks.search(query) {
        let row = json!({
            "runbook_id": book.id, "title": clean(&book.title), "version": clean(&book.version), "source": source(book.shipped), "score": score,
        });
        if !page.push(call.args.limit(), book.id.as_str(), row) {
            break;
        }
    }
    body(json!({"runbooks": page.items}))
}

pub(super) fn get_runbook(call: &Call<'_>) -> Result<Body, ToolError> {
    let id = call.args.text("runbook_id").unwrap_or_default();
    let book = call.observer.runbooks.get(id).ok_or_else(|| {
        let known: Vec<&str> = call.observer.runbooks.all().iter().map(|b| b.id.as_str()).collect();
        ToolError::new(Code::NotFound, format!("there is no runbook {:?}", clean(id)))
            .suggest(format!("there are: {}", known.join(", ")))
    })?;
    Ok(body(json!({
        "runbook_id": book.id, "title": clean(&book.title), "version": clean(&book.version), "source": source(book.shipped),
        "markdown": book.markdown,
    })))
}
