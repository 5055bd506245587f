//! What the protocol's conformance suite expects of a server, behind the observer's own door: the
//! same router, the same checks of Host, Origin and token, the same limits, the same settings of
//! the protocol. For `tests/mcp/run.sh`; it is in no release.
//!
//! It takes the observer's flags. Its tools, resources and prompts are the suite's fixtures and say
//! nothing of a cluster.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "it is a test program")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, ClientCapabilities, CompleteRequestParams, CompleteResult,
    CompletionInfo, ErrorCode, GetPromptRequestParams, GetPromptResponse, InputRequiredResult,
    InputResponses, ListPromptsResult, ListResourceTemplatesResult, ListResourcesResult, ListToolsResult,
    PaginatedRequestParams, ReadResourceRequestParams, ReadResourceResponse, ServerCapabilities,
    ServerConfig, SubscribeRequestParams, SubscriptionFilter, Tool, UnsubscribeRequestParams,
};
use rmcp::service::{RequestContext, SubscriptionContext};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use strandline_mcp::clock::SystemClock;
use strandline_mcp::config::{self, Parsed};
use strandline_mcp::http::router_to;
use strandline_mcp::limits::CONNECTIONS;
use strandline_mcp::server::{Answers, Caller};
use strandline_mcp::{Observer, Parts};
use strandline_metadata::backend::{
    BackendError, ChangedRequest, ChangedResponse, KeyRange, RangeRequest, RangeResponse, ReadBackend, Watch,
};
use strandline_settings::serve_http;
use tokio::net::TcpListener;

/// One red pixel.
const PNG: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg==";
/// No sound at all.
const WAV: &str = "UklGRiQAAABXQVZFZm10IBAAAAABAAEARKwAAIhYAQACABAAZGF0YQAAAAA=";
/// The state that a client must give back as it got it.
const STATE: &str = "state-of-the-first-round";

/// A cluster with nothing in it: the fixtures do not look at it.
#[derive(Debug)]
struct Nothing;

#[async_trait]
impl ReadBackend for Nothing {
    async fn range(&self, _request: RangeRequest) -> Result<RangeResponse, BackendError> {
        Ok(RangeResponse { revision: 1, kvs: Vec::new(), more: false })
    }

    async fn changed(&self, _request: ChangedRequest) -> Result<ChangedResponse, BackendError> {
        Ok(ChangedResponse { revision: 1, kvs: Vec::new(), count: 0 })
    }

    async fn watch(&self, _keys: KeyRange, _revision: i64) -> Result<Box<dyn Watch>, BackendError> {
        Err(BackendError::Unavailable("there is nothing to watch".to_owned()))
    }
}

fn of<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// A result that is one: in the newest protocol it says so.
fn whole<T: DeserializeOwned>(mut value: Value) -> T {
    value["resultType"] = json!("complete");
    of(value)
}

fn text(text: &str) -> Value {
    json!({"content": [{"type": "text", "text": text}]})
}

fn elicit(message: &str, field: &str, kind: &str) -> Value {
    json!({"method": "elicitation/create", "params": {"mode": "form", "message": message, "requestedSchema": {
        "type": "object", "properties": {field: {"type": kind}}, "required": [field]}}})
}

fn sample(prompt: &str, most: u32) -> Value {
    json!({"method": "sampling/createMessage", "params": {
        "messages": [{"role": "user", "content": {"type": "text", "text": prompt}}], "maxTokens": most}})
}

fn needs(requests: Value, state: Option<&str>) -> InputRequiredResult {
    InputRequiredResult::new(Some(of(requests)), state.map(str::to_owned))
}

/// Tools without arguments and what they answer.
fn plain(name: &str) -> Option<Value> {
    let image = json!({"type": "image", "data": PNG, "mimeType": "image/png"});
    Some(match name {
        "test_simple_text" => text("This is a simple text response for testing."),
        "test_image_content" => json!({"content": [image]}),
        "test_audio_content" => json!({"content": [{"type": "audio", "data": WAV, "mimeType": "audio/wav"}]}),
        "test_embedded_resource" => json!({"content": [{"type": "resource", "resource": {
            "uri": "test://embedded-resource", "mimeType": "text/plain", "text": "This is an embedded resource content."}}]}),
        "test_multiple_content_types" => json!({"content": [
            {"type": "text", "text": "Multiple content types test:"}, image,
            {"type": "resource", "resource": {"uri": "test://mixed-content-resource", "mimeType": "application/json",
                "text": "{\"test\":\"data\",\"value\":123}"}}]}),
        "test_error_handling" => json!({"isError": true, "content": [
            {"type": "text", "text": "This tool intentionally returns an error for testing"}]}),
        "test_logging_tool"
        | "test_streaming_elicitation"
        | "test_custom_header"
        | "json_schema_2020_12_tool" => text("done"),
        _ => return None,
    })
}

/// A schema with words of JSON Schema 2020-12 that must come through as they are.
fn rich_schema() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object",
        "$defs": {"address": {"$anchor": "addressDef", "type": "object", "properties": {
            "street": {"type": "string"}, "city": {"type": "string"}}}},
        "properties": {
            "name": {"type": "string"}, "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
            "phone": {"type": "string"}, "email": {"type": "string"}},
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
        "then": {"required": ["phone"]}, "else": {"required": ["email"]},
        "additionalProperties": false
    })
}

fn tools() -> Vec<Tool> {
    let empty = json!({"type": "object", "properties": {}});
    let header = json!({"type": "object", "properties": {
        "region": {"type": "string", "x-mcp-header": "Region"}}, "required": ["region"]});
    let mut tools: Vec<Value> = [
        "test_simple_text",
        "test_image_content",
        "test_audio_content",
        "test_embedded_resource",
        "test_multiple_content_types",
        "test_error_handling",
        "test_tool_with_progress",
        "test_missing_capability",
        "test_logging_tool",
        "test_streaming_elicitation",
        "test_input_required_result_elicitation",
        "test_input_required_result_sampling",
        "test_input_required_result_list_roots",
        "test_input_required_result_request_state",
        "test_input_required_result_multiple_inputs",
        "test_input_required_result_multi_round",
        "test_input_required_result_tampered_state",
        "test_input_required_result_capabilities",
    ]
    .into_iter()
    .map(|name| json!({"name": name, "description": "A fixture", "inputSchema": empty}))
    .collect();
    tools.push(json!({"name": "test_custom_header", "description": "A fixture", "inputSchema": header}));
    tools.push(
        json!({"name": "json_schema_2020_12_tool", "description": "A fixture", "inputSchema": rich_schema()}),
    );
    tools.into_iter().map(of).collect()
}

/// What a client answered to a request of this name, if it is an answer at all.
fn given<'a>(responses: Option<&'a InputResponses>, name: &str) -> Option<&'a Value> {
    responses?.get(name).filter(|v| v.is_object())
}

fn refused(why: &str) -> ErrorData {
    ErrorData::invalid_params(why.to_owned(), None)
}

/// Tools that ask the client for something in their answer.
fn in_rounds(
    name: &str,
    responses: Option<&InputResponses>,
    state: Option<&str>,
    client: Option<&ClientCapabilities>,
) -> Result<CallToolResponse, ErrorData> {
    let name_of = elicit("What is your name?", "name", "string");
    let roots = json!({"method": "roots/list", "params": {}});
    let confirm = elicit("Please confirm", "ok", "boolean");
    let given = |key: &str| given(responses, key);
    let done = |said: String| Ok(CallToolResponse::Complete(whole(text(&said))));
    let ask = |requests: Value, state: Option<&str>| Ok(needs(requests, state).into());
    match name.trim_start_matches("test_input_required_result_") {
        "elicitation" => match given("user_name").and_then(|v| v["content"]["name"].as_str()) {
            Some(name) => done(format!("Hello, {name}!")),
            None => ask(json!({"user_name": name_of}), None),
        },
        "sampling" => match given("capital_question") {
            Some(answer) => {
                done(format!("LLM response: {}", answer["content"]["text"].as_str().unwrap_or_default()))
            }
            None => ask(json!({"capital_question": sample("What is the capital of France?", 100)}), None),
        },
        "list_roots" => match given("client_roots") {
            Some(answer) => done(format!("Roots: {}", answer["roots"])),
            None => ask(json!({"client_roots": roots}), None),
        },
        "request_state" | "tampered_state" => match (given("confirm"), state) {
            (Some(_), Some(STATE)) => done("state-ok".to_owned()),
            (_, Some(other)) if other != STATE => Err(refused("the state is not the one that was given out")),
            _ => ask(json!({"confirm": confirm}), Some(STATE)),
        },
        "multiple_inputs" => match (given("user_name"), given("greeting"), given("client_roots")) {
            (Some(_), Some(_), Some(_)) if state == Some(STATE) => done("all answered".to_owned()),
            _ => ask(
                json!({"user_name": name_of, "greeting": sample("Generate a greeting", 50), "client_roots": roots}),
                Some(STATE),
            ),
        },
        "multi_round" => match (given("step1"), given("step2"), state) {
            (_, Some(_), Some("round-2")) => done("both answered".to_owned()),
            (Some(_), None, Some("round-1")) => {
                let step = elicit("Step 2: What is your favorite color?", "color", "string");
                ask(json!({"step2": step}), Some("round-2"))
            }
            _ => {
                ask(json!({"step1": elicit("Step 1: What is your name?", "name", "string")}), Some("round-1"))
            }
        },
        "capabilities" => {
            let mut requests = json!({});
            if client.is_some_and(|c| c.elicitation.is_some()) {
                requests["user_name"] = name_of;
            }
            if client.is_some_and(|c| c.sampling.is_some()) {
                requests["greeting"] = sample("Generate a greeting", 50);
            }
            ask(requests, None)
        }
        _ => Err(refused("there is no such tool")),
    }
}

/// Answers with the fixtures.
#[derive(Clone, Debug)]
struct Fixtures;

impl Answers for Fixtures {
    type Handler = Self;

    fn handler(&self, _observer: &Arc<Observer>, _caller: Caller) -> Self {
        Self
    }
}

impl ServerHandler for Fixtures {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_tools()
            .enable_resources()
            .enable_resources_subscribe()
            .enable_prompts()
            .enable_completions()
            .build();
        ServerConfig::new(capabilities)
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(tools()))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        tools().into_iter().find(|t| t.name == name)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let client = context.meta.client_capabilities();
        if let Some(answer) = plain(&request.name) {
            return Ok(CallToolResponse::Complete(whole(answer)));
        }
        match &*request.name {
            "test_missing_capability" if client.as_ref().is_none_or(|c| c.sampling.is_none()) => {
                let data = json!({"requiredCapabilities": {"sampling": {}}});
                Err(ErrorData::new(ErrorCode(-32021), "it needs sampling", Some(data)))
            }
            "test_missing_capability" => Ok(CallToolResponse::Complete(whole(text("done")))),
            "test_tool_with_progress" => {
                if let Some(token) = context.meta.get_progress_token() {
                    for progress in [0, 50, 100] {
                        let params = json!({"progressToken": token, "progress": progress, "total": 100});
                        // Whoever does not listen misses nothing else.
                        let _ = context.peer.notify_progress(of(params)).await;
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
                Ok(CallToolResponse::Complete(whole(text("done"))))
            }
            name => in_rounds(
                name,
                request.input_responses.as_ref(),
                request.request_state.as_deref(),
                client.as_ref(),
            ),
        }
    }

    async fn list_resources(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(whole(json!({"resources": [
            {"uri": "test://static-text", "name": "static-text", "description": "A fixture", "mimeType": "text/plain"},
            {"uri": "test://static-binary", "name": "static-binary", "description": "A fixture", "mimeType": "image/png"},
            {"uri": "test://watched-resource", "name": "watched", "description": "A fixture", "mimeType": "text/plain"}]})))
    }

    async fn list_resource_templates(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(whole(
            json!({"resourceTemplates": [{"uriTemplate": "test://template/{id}/data", "name": "template",
            "description": "A fixture", "mimeType": "application/json"}]}),
        ))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let uri = &request.uri;
        let id = uri.strip_prefix("test://template/").and_then(|rest| rest.strip_suffix("/data"));
        let content = match (uri.as_str(), id) {
            ("test://static-text", _) => json!({"uri": uri, "mimeType": "text/plain",
                "text": "This is the content of the static text resource."}),
            ("test://watched-resource", _) => {
                json!({"uri": uri, "mimeType": "text/plain", "text": "watched"})
            }
            ("test://static-binary", _) => json!({"uri": uri, "mimeType": "image/png", "blob": PNG}),
            (_, Some(id)) => json!({"uri": uri, "mimeType": "application/json",
                "text": json!({"id": id, "templateTest": true, "data": format!("Data for ID: {id}")}).to_string()}),
            _ => {
                return Err(ErrorData::resource_not_found(
                    "there is no such resource",
                    Some(json!({"uri": uri})),
                ));
            }
        };
        Ok(ReadResourceResponse::Complete(whole(json!({"contents": [content]}))))
    }

    async fn subscribe(
        &self,
        _request: SubscribeRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn unsubscribe(
        &self,
        _request: UnsubscribeRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn list_prompts(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        let argument = |name: &str| json!({"name": name, "description": "A fixture", "required": true});
        Ok(whole(json!({"prompts": [
            {"name": "test_simple_prompt", "description": "A fixture"},
            {"name": "test_prompt_with_arguments", "description": "A fixture", "arguments": [argument("arg1"), argument("arg2")]},
            {"name": "test_prompt_with_embedded_resource", "description": "A fixture", "arguments": [argument("resourceUri")]},
            {"name": "test_prompt_with_image", "description": "A fixture"},
            {"name": "test_input_required_result_prompt", "description": "A fixture"}]})))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        let argument = |name: &str| {
            let value = request.arguments.as_ref().and_then(|a| a.get(name));
            value.and_then(Value::as_str).unwrap_or_default()
        };
        let user = |content: Value| json!({"role": "user", "content": content});
        let says = |text: &str| user(json!({"type": "text", "text": text}));
        let messages = match request.name.as_str() {
            "test_simple_prompt" => json!([says("This is a simple prompt for testing.")]),
            "test_prompt_with_arguments" => {
                let (one, two) = (argument("arg1"), argument("arg2"));
                json!([says(&format!("Prompt with arguments: arg1='{one}', arg2='{two}'"))])
            }
            "test_prompt_with_embedded_resource" => json!([
                user(
                    json!({"type": "resource", "resource": {"uri": argument("resourceUri"), "mimeType": "text/plain",
                    "text": "Embedded resource content for testing."}})
                ),
                says("Please process the embedded resource above.")
            ]),
            "test_prompt_with_image" => json!([
                user(json!({"type": "image", "data": PNG, "mimeType": "image/png"})),
                says("Please analyze the image above.")
            ]),
            "test_input_required_result_prompt" => {
                let Some(answer) = given(request.input_responses.as_ref(), "user_context") else {
                    let asked = elicit("What context should the prompt use?", "context", "string");
                    return Ok(needs(json!({"user_context": asked}), None).into());
                };
                json!([says(&format!("Context: {}", answer["content"]["context"]))])
            }
            _ => return Err(refused("there is no such prompt")),
        };
        Ok(GetPromptResponse::Complete(whole(json!({"messages": messages}))))
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let known = ["paris", "park", "party", "test"].map(str::to_owned).to_vec();
        let fitting = known.into_iter().filter(|v| v.starts_with(&request.argument.value)).collect();
        Ok(CompleteResult::new(CompletionInfo::new(fitting).unwrap()))
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        let uris = requested.resource_subscriptions.iter().flatten().cloned();
        Some(SubscriptionFilter::builder().resource_subscriptions(uris).build())
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        context.cancelled().await;
        Ok(())
    }
}

#[tokio::main]
async fn main() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let Parsed::Run(config) = config::parse(std::env::args().skip(1), |_| None).unwrap() else {
        panic!("it takes the observer's flags");
    };
    let address = config.listen;
    let parts = Parts { reader: Arc::new(Nothing), clock: Arc::new(SystemClock), random: [7; 32] };
    let observer = Observer::open(*config, parts).unwrap();
    let routes = router_to(&observer, Fixtures);
    let listener = TcpListener::bind(address).await.unwrap();
    serve_http(listener, routes, CONNECTIONS, std::future::pending()).await;
}
