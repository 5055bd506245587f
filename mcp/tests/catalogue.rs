//! Resources, templates, completion, prompts and subscriptions.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by ending what is wrong")]

mod common;

use std::time::Duration;

use common::{Store, TOKEN, serve};
use futures::StreamExt as _;
use serde_json::{Value, json};

async fn furnished(flags: &[&str]) -> (std::sync::Arc<Store>, common::Served) {
    let store = Store::new();
    store.furnish(&[], 0);
    store.commit("odd/group name", "a.orders", store.topic("a.orders", 2, &[]), &[(0, 11)], 0);
    let served = serve(&store, flags).await;
    (store, served)
}

#[tokio::test]
async fn every_resource_can_be_read_and_what_is_not_there_is_not_found() {
    let (_store, served) = furnished(&["--calls-per-minute", "100000"]).await;
    let listed = served.rpc("resources/list", json!({})).await;
    let mut uris: Vec<String> = listed["result"]["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["uri"].as_str().unwrap().to_owned())
        .collect();
    assert!(
        uris.contains(&"strandline://audit/recent".to_owned())
            && uris.contains(&"strandline://runbooks/lag".to_owned())
    );
    uris.extend(
        [
            "brokers/1",
            "topics/a.orders",
            "topics/a.orders/configs",
            "groups/a.shop",
            "groups/a.shop/lag",
            "groups/odd%2Fgroup%20name/lag",
        ]
        .map(|path| format!("strandline://{path}")),
    );
    for uri in &uris {
        let answer = served.rpc("resources/read", json!({"uri": uri})).await;
        let contents = &answer["result"]["contents"][0];
        assert_eq!(contents["uri"], *uri, "{answer}");
        let text = contents["text"].as_str().unwrap();
        if contents["mimeType"] == "text/markdown" {
            assert!(text.starts_with("# "));
        } else {
            serde_json::from_str::<Value>(text).unwrap();
        }
    }
    for absent in [
        "strandline://topics/nope",
        "strandline://topics/nope/configs",
        "strandline://groups/nope/lag",
        "strandline://brokers/99",
        "strandline://brokers/x",
        "strandline://nothing",
        "strandline://topics/a/b/c",
        "file:///etc/passwd",
    ] {
        let answer = served.rpc("resources/read", json!({"uri": absent})).await;
        assert_eq!(answer["error"]["code"], -32002, "{absent}: {answer}");
    }
}

#[tokio::test]
async fn arguments_are_completed_from_what_the_caller_sees() {
    let (_store, served) = furnished(&[]).await;
    let complete = async |reference: Value, name: &str, typed: &str| {
        let params = json!({"ref": reference, "argument": {"name": name, "value": typed}});
        served.rpc("completion/complete", params).await
    };
    let template = |uri: &str| json!({"type": "ref/resource", "uri": uri});
    let values = |answer: &Value| answer["result"]["completion"]["values"].clone();
    assert_eq!(
        values(&complete(template("strandline://topics/{topic}"), "topic", "a.").await),
        json!(["a.new", "a.orders"])
    );
    assert_eq!(
        values(&complete(template("strandline://groups/{group}/lag"), "group", "b").await),
        json!(["b.audit", "b.idle"])
    );
    assert_eq!(values(&complete(template("strandline://brokers/{id}"), "id", "").await), json!(["1", "2"]));
    assert_eq!(
        values(&complete(template("strandline://runbooks/{id}"), "id", "s3").await),
        json!(["s3-slow-or-failing"])
    );
    let prompt = json!({"type": "ref/prompt", "name": "triage_group_lag"});
    assert_eq!(values(&complete(prompt.clone(), "group_id", "a.s").await), json!(["a.shop"]));
    assert_eq!(complete(prompt, "nope", "").await["error"]["code"], -32602);
}

#[tokio::test]
async fn prompts_are_filled_in_with_plain_names_only() {
    let (_store, served) = furnished(&[]).await;
    let listed = served.rpc("prompts/list", json!({})).await;
    let names: Vec<&str> =
        listed["result"]["prompts"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "cluster_health_check",
            "triage_group_lag",
            "storage_incident",
            "topic_review",
            "change_review",
            "postmortem_draft"
        ]
    );
    let get = async |arguments: Value| {
        served.rpc("prompts/get", json!({"name": "triage_group_lag", "arguments": arguments})).await
    };
    let filled = get(json!({"group_id": "a.shop"})).await;
    assert!(
        filled["result"]["messages"][0]["content"]["text"].as_str().unwrap().contains("\"a.shop\""),
        "{filled}"
    );
    for bad in [json!({}), json!({"group_id": "x\nignore"}), json!({"group_id": "g", "other": "x"})] {
        assert_eq!(get(bad).await["error"]["code"], -32602);
    }
}

#[tokio::test]
async fn a_subscriber_hears_of_changes_of_what_it_may_read() {
    let (store, served) = furnished(&[]).await;
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let uri = "strandline://topics/a.orders/configs";
    let params =
        json!({"_meta": meta, "notifications": {"resourceSubscriptions": [uri, "strandline://nothing"]}});
    let body =
        json!({"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen", "params": params}).to_string();
    let response = served
        .http
        .post(format!("{}/mcp", served.url))
        .header("authorization", format!("Bearer {TOKEN}"))
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", "subscriptions/listen")
        .body(body)
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    let mut said = String::new();
    let mut stream =
        futures::stream::unfold(
            response,
            |mut r| async move { r.chunk().await.ok().flatten().map(|c| (c, r)) },
        )
        .boxed();
    let mut has_changed = false;
    let heard = tokio::time::timeout(Duration::from_secs(30), async {
        while let Some(chunk) = stream.next().await {
            said.push_str(&String::from_utf8_lossy(&chunk));
            if said.contains("subscriptions/acknowledged") && !has_changed {
                assert!(said.contains(uri) && !said.contains("strandline://nothing"), "{said}");
                // After the first look.
                tokio::time::sleep(Duration::from_millis(700)).await;
                store.topic("a.orders", 2, &[("retention.ms", "777")]);
                has_changed = true;
            }
            if said.contains("notifications/resources/updated") {
                return;
            }
        }
    });
    heard.await.unwrap_or_else(|_| panic!("nothing was heard: {said}"));
    assert!(said.contains("notifications/resources/updated"), "{said}");
}
