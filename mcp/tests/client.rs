//! The protocol's own client in Rust against the observer: what it makes of our answers, in both
//! eras.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by ending what is wrong")]

mod common;

use common::{Served, Store, TOKEN, serve};
use rmcp::model::{
    CallToolRequestParams, ClientConfig, ProtocolVersion, ReadResourceRequestParams, ResourceContents,
};
use rmcp::service::{ClientInitializeError, RoleClient, RunningService};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{ClientLifecycleMode, ClientServiceExt as _};
use serde_json::{Value, json};

type Client = RunningService<RoleClient, ClientConfig>;

async fn connect(
    served: &Served,
    token: &str,
    lifecycle: ClientLifecycleMode,
) -> Result<Client, ClientInitializeError> {
    let config =
        StreamableHttpClientTransportConfig::with_uri(format!("{}/mcp", served.url)).auth_header(token);
    let transport = StreamableHttpClientTransport::with_client(served.http.clone(), config);
    ClientConfig::default().serve_with_lifecycle(transport, lifecycle).await
}

fn discover() -> ClientLifecycleMode {
    ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] }
}

/// Looks around as an assistant does, and says which version was spoken.
async fn look_around(client: &Client) -> ProtocolVersion {
    let info = client.peer_info().unwrap();
    let tools = client.list_all_tools().await.unwrap();
    let list_topics = tools.iter().find(|t| t.name == "list_topics").unwrap();
    assert!(list_topics.output_schema.is_some());
    assert_eq!(list_topics.annotations.as_ref().unwrap().read_only_hint, Some(true));

    let answer = client.call_tool(CallToolRequestParams::new("list_topics")).await.unwrap();
    assert_eq!(answer.is_error, Some(false));
    let topics = answer.structured_content.unwrap()["topics"].clone();
    let names: Vec<&str> = topics.as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a.new", "a.orders", "b.payments"]);

    let arguments = json!({"group_id": "no such group"}).as_object().unwrap().clone();
    let refused = CallToolRequestParams::new("get_group_lag").with_arguments(arguments);
    let refused = client.call_tool(refused).await.unwrap();
    assert_eq!(refused.is_error, Some(true));
    assert_eq!(refused.structured_content.unwrap()["error"]["code"], "not_found");

    let listed = client.list_all_resources().await.unwrap();
    assert!(listed.iter().any(|r| r.uri == "strandline://cluster/overview"));
    let uri = "strandline://topics/a.orders";
    let read = client.read_resource(ReadResourceRequestParams::new(uri)).await.unwrap();
    let ResourceContents::TextResourceContents { text, .. } = &read.contents[0] else { panic!("{read:?}") };
    let topic: Value = serde_json::from_str(text).unwrap();
    assert_eq!(topic["topics"][0]["name"], "a.orders");
    assert!(client.read_resource(ReadResourceRequestParams::new("strandline://topics/nope")).await.is_err());
    info.protocol_version.clone()
}

async fn furnished() -> Served {
    let store = Store::new();
    store.furnish(&[], 0);
    serve(&store, &[]).await
}

#[tokio::test]
async fn rmcps_client_is_served_with_initialize_and_without() {
    let served = furnished().await;
    let client = connect(&served, TOKEN, ClientLifecycleMode::Initialize).await.unwrap();
    assert_eq!(look_around(&client).await, ProtocolVersion::V_2025_11_25);
    let other = connect(&served, TOKEN, discover()).await.unwrap();
    assert_eq!(look_around(&other).await, ProtocolVersion::V_2026_07_28);
    // Both at once.
    let (legacy, modern) = tokio::join!(look_around(&client), look_around(&other));
    assert!(legacy != modern);
    client.cancel().await.unwrap();
    other.cancel().await.unwrap();
}

#[tokio::test]
async fn rmcps_client_is_not_let_in_with_another_token() {
    let served = furnished().await;
    for lifecycle in [ClientLifecycleMode::Initialize, discover()] {
        let error = connect(&served, "another-token", lifecycle).await.unwrap_err();
        assert!(
            error.is_authorization_required() || format!("{error:?}").contains("AuthRequired"),
            "{error:?}"
        );
    }
}
