//! The protocol from outside: both eras, who is let in, what is refused.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by ending what is wrong")]

mod common;

use common::{Store, TOKEN, serve};
use serde_json::{Value, json};

fn ping() -> String {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}).to_string()
}

#[tokio::test]
async fn the_versions_with_initialize_are_served_without_sessions_and_without_subscriptions() {
    let served = serve(&Store::new(), &[]).await;
    for (asked, answered) in
        [("2025-06-18", "2025-06-18"), ("2025-11-25", "2025-11-25"), ("2024-01-01", "2025-11-25")]
    {
        let params = json!({"protocolVersion": asked, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
        let answer = served.rpc("initialize", params).await;
        let result = &answer["result"];
        assert_eq!(result["protocolVersion"], answered, "{answer}");
        assert_eq!(result["serverInfo"]["name"], "strandline-mcp");
        assert!(result["instructions"].as_str().unwrap().len() <= 2048);
        assert!(result["capabilities"]["resources"]["subscribe"].is_null());
        for absent in ["logging", "tasks", "sampling"] {
            assert!(result["capabilities"][absent].is_null());
        }
    }
    let (status, _) = served
        .post(Some(TOKEN), &[], json!({"jsonrpc": "2.0", "method": "notifications/initialized"}).to_string())
        .await;
    assert_eq!(status, 202);
    let answer = served.rpc("tools/list", json!({})).await;
    assert!(!answer["result"]["tools"].as_array().unwrap().is_empty());
}

fn modern(method: &str, mut params: Value) -> String {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}).to_string()
}

#[tokio::test]
async fn the_version_without_initialize_is_served() {
    let served = serve(&Store::new(), &[]).await;
    let headers = |method| [("mcp-protocol-version", "2026-07-28"), ("mcp-method", method)];
    let (status, text) =
        served.post(Some(TOKEN), &headers("server/discover"), modern("server/discover", json!({}))).await;
    assert_eq!(status, 200, "{text}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    let versions = answer["result"]["supportedVersions"].as_array().unwrap();
    assert!(versions.contains(&json!("2026-07-28")) && versions.contains(&json!("2025-06-18")), "{answer}");
    assert_eq!(answer["result"]["cacheScope"], "private");
    let (status, text) =
        served.post(Some(TOKEN), &headers("tools/list"), modern("tools/list", json!({}))).await;
    assert_eq!(status, 200, "{text}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["result"]["cacheScope"], "private", "lists depend on the caller");
    assert!(answer["result"]["ttlMs"].as_u64().unwrap() > 0);
    // A header that contradicts the body is refused.
    let (status, _) = served.post(Some(TOKEN), &headers("tools/call"), modern("tools/list", json!({}))).await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn only_the_right_token_in_the_right_place_opens() {
    let served = serve(&Store::new(), &[]).await;
    for token in [None, Some(""), Some("wrong"), Some("local-dev-tokeN"), Some("local-dev-token2")] {
        let (status, text) = served.post(token, &[], ping()).await;
        assert_eq!(status, 401, "{token:?}: {text}");
        assert!(!text.contains(TOKEN));
    }
    let (status, _) = served.post(None, &[("authorization", "Basic bG9jYWwtZGV2LXRva2Vu")], ping()).await;
    assert_eq!(status, 401);
    let response = served
        .http
        .post(format!("{}/mcp?access_token={TOKEN}", served.url))
        .header("authorization", format!("Bearer {TOKEN}"))
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .body(ping())
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 400, "a token in the URL is refused even if it is right");
    assert_eq!(served.post(Some(TOKEN), &[], ping()).await.0, 200);
    let response = served.http.post(format!("{}/mcp", served.url)).send().await.unwrap();
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
    assert_eq!(
        served.get("/.well-known/oauth-protected-resource").await.0,
        404,
        "token mode publishes no metadata"
    );
}

#[tokio::test]
async fn an_address_that_fails_too_often_has_to_wait_even_with_the_right_token() {
    let served = serve(&Store::new(), &["--auth-failures-per-minute", "3"]).await;
    for _ in 0..3 {
        assert_eq!(served.post(Some("wrong-token-1"), &[], ping()).await.0, 401);
    }
    assert_eq!(served.post(Some("wrong-token-1"), &[], ping()).await.0, 429);
    assert_eq!(served.post(Some(TOKEN), &[], ping()).await.0, 429);
    assert_eq!(served.get("/healthz").await.0, 200, "health needs no token");
}

#[tokio::test]
async fn foreign_hosts_and_origins_are_refused_on_every_route() {
    let served = serve(&Store::new(), &["--allowed-origins", "https://console.example"]).await;
    for path in ["/mcp", "/healthz", "/readyz", "/metrics", "/nothing"] {
        for (header, value) in
            [("host", "evil.example"), ("origin", "https://evil.example"), ("origin", "null")]
        {
            let url = format!("{}{path}", served.url);
            let response = served.http.get(url).header(header, value).send().await.unwrap();
            assert_eq!(response.status(), 403, "{path} {header}: {value}");
        }
    }
    let (status, _) = served.post(Some(TOKEN), &[("origin", "https://console.example")], ping()).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn bodies_and_garbage_are_bounded() {
    let served = serve(&Store::new(), &[]).await;
    let huge =
        json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"x": "y".repeat(300 * 1024)}});
    assert_eq!(served.post(Some(TOKEN), &[], huge.to_string()).await.0, 413);
    for garbage in ["", "{", "[]", "null", "{\"jsonrpc\":\"1.0\"}"] {
        let (status, _) = served.post(Some(TOKEN), &[], garbage.to_owned()).await;
        assert!((400..500).contains(&status), "{garbage:?}: {status}");
    }
    let answer = served.rpc("tools/call", json!({"name": "drop_topic\u{7}", "arguments": {}})).await;
    assert_eq!(answer["error"]["code"], -32602);
    assert!(!answer["error"]["message"].as_str().unwrap().contains('\u{7}'));
    let answer = served.call("list_topics", json!({"nmaes": []})).await;
    assert_eq!(answer["error"]["code"], "invalid_argument");
}

#[tokio::test]
async fn healthz_says_only_that_it_is_alive_and_readyz_whether_etcd_answers() {
    let store = Store::new();
    let served = serve(&store, &[]).await;
    assert_eq!(served.get("/healthz").await, (200, "alive\n".to_owned()));
    served.call("list_topics", json!({})).await;
    assert_eq!(served.get("/readyz").await.0, 200);
    store.faults.lock().unwrap().down = true;
    served.call("list_topics", json!({})).await;
    assert_eq!(served.get("/readyz").await.0, 503);
    let (_, text) = served.get("/metrics").await;
    assert!(
        text.contains("strandline_mcp_calls_total{outcome=\"source_unavailable\",tool=\"list_topics\"} 1"),
        "{text}"
    );
}

#[tokio::test]
async fn a_principal_that_asks_too_often_is_told_when_to_come_back() {
    let served = serve(&Store::new(), &["--calls-per-minute", "3"]).await;
    for _ in 0..3 {
        assert!(served.call("observer_status", json!({})).await["error"].is_null());
    }
    let answer = served.call("observer_status", json!({})).await;
    assert_eq!(answer["error"]["code"], "rate_limited");
    assert!(answer["error"]["retry_after_ms"].as_u64().unwrap() > 0 && answer["error"]["retryable"] == true);
}

#[tokio::test]
async fn every_call_leaves_a_line_denied_ones_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let store = Store::new();
    store.furnish(&[], 0);
    let served = serve(&store, &["--audit-log", path.to_str().unwrap()]).await;
    served.call("get_group_lag", json!({"group_id": "a.shop"})).await;
    served.post(Some("wrong-token-1"), &[], ping()).await;
    served.rpc("tools/call", json!({"name": "no_such_tool", "arguments": {}})).await;
    let mut lines: Vec<Value> = Vec::new();
    for _ in 0..200 {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        lines = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        if lines.len() >= 3 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let find =
        |outcome: &str| lines.iter().find(|l| l["outcome"] == outcome).unwrap_or_else(|| panic!("{lines:?}"));
    let ok = find("ok");
    assert_eq!(
        (&ok["target"], &ok["group"], &ok["principal"]),
        (&json!("get_group_lag"), &json!("a.shop"), &json!("token"))
    );
    assert_eq!(ok["arguments_hash"].as_str().unwrap().len(), 16);
    assert!(ok["bytes"].as_u64().unwrap() > 100);
    assert!(find("permission_denied")["principal"].is_null());
    assert_eq!(find("not_found")["target"], "no_such_tool");
    assert!(lines.iter().all(|l| !l.to_string().contains("wrong-token-1")));
}
