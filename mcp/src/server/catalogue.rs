//! Resources, prompts, completion and subscriptions, as the protocol wants them.

use std::collections::HashMap;
use std::time::Duration;

use rmcp::ErrorData;
use rmcp::model::{
    CompletionInfo, ErrorCode, Prompt, PromptArgument, PromptMessage, Reference, Resource, ResourceContents,
    ResourceTemplate, Role, SubscriptionFilter,
};
use rmcp::service::SubscriptionContext;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Caller;
use crate::Observer;
use crate::access::sha256_hex;
use crate::foreign::clean;
use crate::prompts::{self, PROMPTS};
use crate::resources::{self, FIXED, TEMPLATES, Target};
use crate::tools;

/// Resources that one subscription may have.
const SUBSCRIBED: usize = 16;
/// How often a subscribed resource is looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The resources that a caller may read.
pub(super) fn resources(observer: &Observer, caller: &Caller) -> Vec<Resource> {
    let offered = FIXED.iter().filter(|r| resources::is_offered(observer, &caller.principal, r));
    let json = offered.map(|r| {
        let own = Resource::new(r.uri(), r.path).with_title(r.title);
        own.with_description(r.description).with_mime_type("application/json")
    });
    let known = observer.runbooks.all();
    let books = known.iter().filter(|_| caller.principal.has(crate::access::Scope::Read));
    let markdown = books.map(|b| {
        let own = Resource::new(resources::runbook_uri(&b.id), format!("runbooks/{}", b.id))
            .with_title(clean(&b.title));
        own.with_mime_type("text/markdown")
    });
    json.chain(markdown).collect()
}

/// The families of resources.
pub(super) fn templates(caller: &Caller) -> Vec<ResourceTemplate> {
    if !caller.principal.has(crate::access::Scope::Read) {
        return Vec::new();
    }
    let templates = TEMPLATES.iter().map(|t| {
        let mime = if t.title == "Runbook" { "text/markdown" } else { "application/json" };
        ResourceTemplate::new(t.uri(), t.title)
            .with_title(t.title)
            .with_description(t.description)
            .with_mime_type(mime)
    });
    templates.collect()
}

/// Reads a resource.
pub(super) async fn read(
    observer: &Observer,
    caller: &Caller,
    client: Option<String>,
    uri: &str,
) -> Result<ResourceContents, ErrorData> {
    let absent = || {
        let message = format!("there is no resource {:?}", clean(uri));
        ErrorData::resource_not_found(message, Some(json!({"uri": clean(uri)})))
    };
    match resources::find(observer, &caller.principal, uri).ok_or_else(absent)? {
        Target::Audit => {
            let mut line =
                tools::audit_line(observer, caller, client, "resources/read", "audit/recent", None);
            let admitted = tools::admit(observer, &caller.principal, 1);
            admitted.as_ref().map_or_else(|e| e.code.as_str(), |()| "ok").clone_into(&mut line.outcome);
            let request_id = line.request_id.clone();
            let lines = observer.audit.recent();
            observer.audit.note(line);
            admitted.map_err(|e| failed(&e.to_json(&request_id)))?;
            let mut kept: Vec<Value> = Vec::new();
            let mut bytes = 0;
            for line in lines {
                let line = json!(line);
                bytes += line.to_string().len();
                if bytes > crate::limits::LIST_BYTES {
                    break;
                }
                kept.push(line);
            }
            let text = json!({"lines": kept, "dropped": observer.audit.dropped()}).to_string();
            Ok(ResourceContents::text(text, uri).with_mime_type("application/json"))
        }
        target @ Target::Tool(..) => {
            let is_markdown = target.is_markdown();
            let Target::Tool(tool, arguments) = target else { return Err(absent()) };
            let rendered =
                tools::call(observer, caller, client, "resources/read", tool, Some(arguments)).await;
            match rendered.outcome {
                "ok" if is_markdown => {
                    let text = rendered.value["markdown"].as_str().unwrap_or_default();
                    Ok(ResourceContents::text(text, uri).with_mime_type("text/markdown"))
                }
                // A topic that does not exist is described as such by the tool; as a resource it is
                // not there.
                "ok" if rendered.value["topics"][0]["error_code"] == 3
                    || rendered.value["configs"][0]["exists"] == false =>
                {
                    Err(absent())
                }
                "ok" => Ok(ResourceContents::text(rendered.text, uri).with_mime_type("application/json")),
                "not_found" => Err(absent()),
                _ => Err(failed(&rendered.value["error"])),
            }
        }
    }
}

fn failed(error: &Value) -> ErrorData {
    let message = error["message"].as_str().unwrap_or("the resource cannot be read").to_owned();
    ErrorData::new(ErrorCode::INTERNAL_ERROR, message, Some(error.clone()))
}

/// Every prompt.
pub(super) fn prompts() -> Vec<Prompt> {
    let published = PROMPTS.iter().map(|p| {
        let arguments: Vec<PromptArgument> = p
            .arguments
            .iter()
            .map(|a| PromptArgument::new(a.name).with_description(a.description).with_required(a.required))
            .collect();
        Prompt::new(p.name, Some(p.description), (!arguments.is_empty()).then_some(arguments))
            .with_title(p.title)
    });
    published.collect()
}

/// A prompt, filled in.
pub(super) fn prompt(
    name: &str,
    arguments: Option<&serde_json::Map<String, Value>>,
) -> Result<(&'static str, Vec<PromptMessage>), ErrorData> {
    let invalid = |why: String| ErrorData::invalid_params(why, None);
    let spec = prompts::find(name).ok_or_else(|| invalid(format!("there is no prompt {:?}", clean(name))))?;
    let known = |name: &String| spec.arguments.iter().any(|a| a.name == name);
    if let Some(unknown) = arguments.and_then(|a| a.keys().find(|k| !known(k))) {
        return Err(invalid(format!("there is no argument {:?}", clean(unknown))));
    }
    let given = |name: &str| arguments?.get(name)?.as_str().map(str::to_owned);
    let text = spec.fill(given).map_err(invalid)?;
    Ok((spec.description, vec![PromptMessage::new_text(Role::User, text)]))
}

/// Completes an argument of a template or a prompt.
pub(super) async fn complete(
    observer: &Observer,
    caller: &Caller,
    reference: &Reference,
    argument: &str,
    typed: &str,
) -> Result<CompletionInfo, ErrorData> {
    let invalid = |why: &str| Err(ErrorData::invalid_params(why.to_owned(), None));
    let variable = match reference {
        Reference::Resource(template) => {
            let known = TEMPLATES.iter().find(|t| t.uri() == template.uri && t.variable == argument);
            let Some(known) = known else { return invalid("there is no such template or variable") };
            if known.title == "Runbook" { "runbook" } else { known.variable }
        }
        Reference::Prompt(prompt) => {
            let known =
                prompts::find(&prompt.name).and_then(|p| p.arguments.iter().find(|a| a.name == argument));
            let Some(known) = known else { return invalid("there is no such prompt or argument") };
            known.name
        }
        _ => return invalid("only templates and prompts can be completed"),
    };
    if let Err(error) = tools::admit(observer, &caller.principal, 1) {
        return Err(failed(&error.to_json("")));
    }
    let (values, total) = if variable == "runbook" {
        let known = observer.runbooks.all();
        let ids = known.iter().map(|b| b.id.clone()).filter(|id| id.starts_with(typed));
        let ids: Vec<String> = ids.take(CompletionInfo::MAX_VALUES).collect();
        let total = ids.len();
        (ids, total)
    } else {
        resources::complete(observer, &caller.principal, variable, typed).await
    };
    let has_more = total > values.len();
    let mut info = CompletionInfo::new(values).map_err(|why| ErrorData::internal_error(why, None))?;
    info.total = u32::try_from(total).ok();
    info.has_more = Some(has_more);
    Ok(info)
}

/// What of a subscription is accepted: resources that the caller may read, so many of them.
pub(super) fn accepted(
    observer: &Observer,
    caller: &Caller,
    requested: &SubscriptionFilter,
) -> SubscriptionFilter {
    let wanted = requested.resource_subscriptions.iter().flatten();
    let known = wanted.filter(|uri| resources::find(observer, &caller.principal, uri).is_some());
    SubscriptionFilter::builder().resource_subscriptions(known.take(SUBSCRIBED).cloned()).build()
}

/// Tells the client when a resource that it subscribed to is not what it was.
pub(super) async fn listen(
    observer: &Observer,
    caller: &Caller,
    context: SubscriptionContext,
) -> Result<(), ErrorData> {
    let Ok(_place) = observer.subscriptions.try_acquire() else {
        return Err(ErrorData::new(ErrorCode::INTERNAL_ERROR, "there are too many subscriptions", None));
    };
    let uris: Vec<String> = context.accepted().resource_subscriptions.clone().unwrap_or_default();
    let mut known: HashMap<String, String> = HashMap::new();
    let every = observer.config.scrape.interval.max(Duration::from_millis(500)).min(LOOK_EVERY);
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = context.cancelled() => return Ok(()),
            () = observer.stop.cancelled() => return Ok(()),
            () = tokio::time::sleep_until(next) => {}
        }
        next = Instant::now() + every;
        let has_expired = caller.principal.expires_at_ms.is_some_and(|end| end <= observer.clock.now_ms());
        if has_expired {
            return Ok(());
        }
        for uri in &uris {
            let Some(digest) = digest(observer, caller, uri).await else { continue };
            let before = known.insert(uri.clone(), digest.clone());
            if before.is_some_and(|before| before != digest)
                && context.sink().notify_resource_updated(uri).await.is_err()
            {
                return Ok(());
            }
        }
    }
}

/// A digest of what a resource says, without what differs in every answer.
async fn digest(observer: &Observer, caller: &Caller, uri: &str) -> Option<String> {
    match resources::find(observer, &caller.principal, uri)? {
        Target::Audit => Some(sha256_hex(json!(observer.audit.recent()).to_string().as_bytes())),
        Target::Tool(tool, arguments) => {
            let rendered =
                tools::answer(observer, &caller.principal, tool, Some(arguments), "", Ok(())).await;
            let mut value = rendered.value;
            strip(&mut value);
            // An answer that is an error for now says nothing new.
            (rendered.outcome == "ok").then(|| sha256_hex(value.to_string().as_bytes()))
        }
    }
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for name in ["meta", "observed_at", "scrape_age_ms", "age_ms", "latency_ms", "revision"] {
                map.remove(name);
            }
            map.values_mut().for_each(strip);
        }
        Value::Array(list) => list.iter_mut().for_each(strip),
        _ => {}
    }
}
