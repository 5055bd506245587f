//! The brokers' metrics: rates that are right, and endpoints that are down, slow, huge, garbage,
//! redirecting or new.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by ending what is wrong")]

mod common;

use std::sync::atomic::Ordering;

use common::{Behaviour, Store, endpoint, serve};
use serde_json::{Value, json};

fn source<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["scrapes"].as_array().unwrap().iter().find(|s| s["source"] == name).unwrap_or(&Value::Null)
}

#[tokio::test]
async fn rates_come_from_the_loop_and_survive_a_restart_of_the_broker() {
    let (one, two) = (endpoint().await, endpoint().await);
    let store = Store::new();
    store.furnish(&[one.url.clone(), two.url.clone()], 0);
    let served = serve(&store, &["--calls-per-minute", "100000"]).await;
    let both = |a: &Value| {
        a["brokers"]
            .as_array()
            .is_some_and(|b| b.iter().filter(|b| b["produce_rps"].is_number()).count() == 2)
    };
    let answer = served.until("cluster_metrics", json!({}), both).await;
    assert!(answer["produce_rps"].as_f64().unwrap() > 0.0 && answer["meta"]["partial"] == false, "{answer}");
    assert_eq!((&answer["s3_state"], &answer["connections"]), (&json!("ok"), &json!(6)));
    assert!(answer["fetch_rps"].is_null(), "what no broker says is unknown");
    assert!(answer["produce_latency_ms"]["p99"].as_f64().unwrap() <= 10.0);
    one.counter.store(0, Ordering::SeqCst);
    let reset = |a: &Value| source(a, "metrics:broker-1")["counter_resets"].as_u64() == Some(1);
    served.until("observer_status", json!({}), reset).await;
    let after = served.call("cluster_metrics", json!({})).await;
    let rate = after["produce_rps"].as_f64().unwrap();
    assert!(rate > 0.0 && rate < 10_000.0, "a restart is no fall and no leap: {rate}");
    let series = served.call("query_metric", json!({"metric": "produce_records", "window": "5m"})).await;
    assert!(series["points"].as_array().unwrap().len() <= 60 && series["last"].as_f64().unwrap() >= 0.0);
    assert!(series["points"][0]["value"].is_null(), "before the first scrape nothing is known");
}

#[tokio::test]
async fn a_call_never_causes_a_scrape() {
    let one = endpoint().await;
    let store = Store::new();
    store.furnish(std::slice::from_ref(&one.url), 0);
    let served = serve(&store, &["--scrape-interval-ms", "300000", "--calls-per-minute", "100000"]).await;
    served.until("observer_status", json!({}), |a| source(a, "metrics:broker-1")["status"] == "ok").await;
    for tool in ["cluster_status", "cluster_metrics", "storage_status", "describe_brokers"] {
        served.call(tool, json!({})).await;
    }
    assert_eq!(one.hits.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn whatever_is_wrong_with_an_endpoint_the_answer_is_partial_and_says_so() {
    for (behaviour, named) in [
        (Behaviour::Says(500, String::new()), "500"),
        (Behaviour::Says(200, "<html>not metrics</html>".to_owned()), "Prometheus"),
        (Behaviour::Says(200, "go_goroutines 7\n".to_owned()), "no metric"),
        (Behaviour::Redirects, "redirect"),
        (Behaviour::Huge, "bytes"),
        (Behaviour::Slow, "within"),
    ] {
        let (one, two) = (endpoint().await, endpoint().await);
        *one.behaviour.lock().unwrap() = behaviour.clone();
        let store = Store::new();
        store.furnish(&[one.url.clone(), two.url.clone()], 0);
        let served = serve(&store, &["--calls-per-minute", "100000"]).await;
        let failed =
            |a: &Value| source(a, "metrics:broker-1")["error"].as_str().is_some_and(|e| e.contains(named));
        let status = served.until("observer_status", json!({}), failed).await;
        assert_eq!(source(&status, "metrics:broker-1")["status"], "failed", "{behaviour:?}");
        let alive = |a: &Value| a["produce_rps"].is_number();
        let answer = served.until("cluster_metrics", json!({}), alive).await;
        assert_eq!(answer["meta"]["partial"], true, "{behaviour:?}: {answer}");
        let alone = served.call("cluster_metrics", json!({"broker_id": 1})).await;
        assert!(alone["produce_rps"].is_null() && alone["connections"].is_null(), "{behaviour:?}: {alone}");
        let health = served.call("cluster_status", json!({})).await;
        assert_eq!(health["health"], "unknown", "{health}");
    }
}

#[tokio::test]
async fn an_endpoint_that_dies_becomes_stale_and_its_figures_are_not_shown_as_now() {
    let one = endpoint().await;
    let store = Store::new();
    store.furnish(std::slice::from_ref(&one.url), 0);
    let served = serve(&store, &["--calls-per-minute", "100000"]).await;
    served.until("cluster_metrics", json!({}), |a| a["produce_rps"].is_number()).await;
    *one.behaviour.lock().unwrap() = Behaviour::Says(503, String::new());
    let stale = |a: &Value| {
        a["meta"]["sources"]
            .as_array()
            .unwrap()
            .iter()
            .any(|s| s["source"] == "metrics:broker-1" && s["status"] == "stale")
    };
    let answer = served.until("cluster_metrics", json!({}), stale).await;
    assert!(answer["produce_rps"].is_null(), "{answer}");
    assert_eq!(answer["s3_state"], "unknown");
}

#[tokio::test]
async fn a_registration_does_not_lead_the_scraper_elsewhere() {
    let one = endpoint().await;
    let store = Store::new();
    let elsewhere = one.url.replace("127.0.0.1", "127.0.0.2");
    store.furnish(std::slice::from_ref(&elsewhere), 0);
    let served = serve(&store, &["--calls-per-minute", "100000"]).await;
    let status = served
        .until("observer_status", json!({}), |a| source(a, "metrics:broker-1")["status"] == "absent")
        .await;
    assert!(source(&status, "metrics:broker-1")["error"].as_str().unwrap().contains("metrics_hosts"));
    // Configured targets are the operator's own word.
    let target = format!("1={}", one.url);
    let served = serve(&store, &["--metrics-targets", &target, "--calls-per-minute", "100000"]).await;
    served.until("observer_status", json!({}), |a| source(a, "metrics:broker-1")["status"] == "ok").await;
}

#[tokio::test]
async fn a_group_without_room_in_the_history_is_unknown_and_the_answer_says_so() {
    let store = Store::new();
    store.furnish(&[], 0);
    let topic = store.topic("a.many", 1, &[]);
    store.marks(topic, &[(0, 10)]);
    for n in 0..1_000 {
        store.commit(&format!("a.many-{n:04}"), "a.many", topic, &[(0, 1)], 0);
    }
    let served = serve(&store, &["--calls-per-minute", "100000"]).await;
    let known = |a: &Value| a.get("error").is_none() && a["last"] == 9.0;
    let first = json!({"metric": "group_lag", "group_id": "a.many-0000"});
    let first = served.until("query_metric", first, known).await;
    assert_eq!(first["meta"]["partial"], false, "{first}");
    // The furnished groups come after it in the order of ids.
    let last = served.call("query_metric", json!({"metric": "group_lag", "group_id": "b.audit"})).await;
    assert_eq!((&last["meta"]["partial"], &last["last"]), (&json!(true), &Value::Null), "{last}");
    assert_eq!(last["meta"]["warnings"][0]["code"], "groups_left_out");
    assert!(last["points"].as_array().unwrap().iter().all(|p| p["value"].is_null()));
}
