//! Diagnosis through the protocol: the shape, what it cites, what is missing, and who may see what.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by ending what is wrong")]

mod common;

use common::{Served, Store, endpoint, serve};
use serde_json::{Value, json};
use strandline_mcp::tools::{Tool, spec};
use strandline_metadata::keys::Key;

fn now_ms() -> i64 {
    use strandline_mcp::clock::Clock as _;
    strandline_mcp::clock::SystemClock.now_ms()
}

const FLAGS: [&str; 2] = ["--calls-per-minute", "100000"];

/// Calls a diagnosis and holds it to its schema and to its promises.
async fn diagnosis(served: &Served, tool: &str, arguments: Value) -> Value {
    let answer = served.call(tool, arguments).await;
    assert!(answer["error"].is_null(), "{tool}: {answer}");
    let found = Tool::ALL.iter().find(|t| t.spec().name == tool).unwrap();
    let schema = spec::full_schema(found.spec().output);
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<String> =
        validator.iter_errors(&answer).map(|e| format!("{}: {e}", e.instance_path)).collect();
    assert!(errors.is_empty(), "{tool}: {errors:?}\n{answer}");
    let present: Vec<&str> =
        answer["evidence"].as_array().unwrap().iter().map(|e| e["id"].as_str().unwrap()).collect();
    for evidence in answer["evidence"].as_array().unwrap() {
        assert!(!evidence["value"].is_null(), "{tool}: {evidence}");
    }
    for cause in answer["root_causes"].as_array().unwrap() {
        let refs = ["evidence_refs", "counter_evidence_refs"].map(|k| cause[k].as_array().unwrap().clone());
        assert!(!refs[0].is_empty());
        for id in refs.iter().flatten() {
            assert!(present.contains(&id.as_str().unwrap()), "{tool}: {id} is cited and not there");
        }
    }
    let ids: std::collections::BTreeSet<&str> = present.iter().copied().collect();
    assert_eq!(ids.len(), present.len(), "{tool}: evidence has one name each");
    for advice in answer["recommendations"].as_array().unwrap() {
        let id = advice["runbook_id"].as_str().unwrap();
        let runbook = served.call("get_runbook", json!({"runbook_id": id})).await;
        assert_eq!(runbook["id"], id);
    }
    assert!(answer.to_string().len() < 64 * 1024);
    answer
}

fn codes(answer: &Value) -> Vec<&str> {
    answer["root_causes"].as_array().unwrap().iter().map(|c| c["code"].as_str().unwrap()).collect()
}

fn evidence<'a>(answer: &'a Value, id: &str) -> &'a Value {
    answer["evidence"]
        .as_array()
        .unwrap()
        .iter()
        .find(|e| e["id"] == id)
        .map_or(&Value::Null, |e| &e["value"])
}

#[tokio::test]
async fn lag_has_the_cause_that_etcd_shows() {
    let store = Store::new();
    store.furnish(&[], now_ms());
    let (quiet, tiny) = (store.topic("a.quiet", 1, &[]), store.topic("a.tiny", 1, &[]));
    store.marks(quiet, &[(0, 900)]);
    store.marks(tiny, &[(0, 10)]);
    store.commit("a.gone", "a.quiet", quiet, &[(0, 100)], now_ms() - 5_000);
    store.commit("a.done", "a.tiny", tiny, &[(0, 10)], now_ms());
    let served = serve(&store, &FLAGS).await;
    for (group, first, severity) in [
        ("a.shop", "consumer_stalled", "warning"),
        ("a.late", "offsets_out_of_range", "critical"),
        ("a.gone", "empty_group", "warning"),
        ("b.idle", "never_committed", "warning"),
        ("a.done", "no_lag", "ok"),
    ] {
        let answer = diagnosis(&served, "diagnose_group_lag", json!({"group_id": group})).await;
        assert_eq!(codes(&answer).first(), Some(&first), "{group}: {answer}");
        assert_eq!(answer["severity"], severity, "{group}");
        assert_eq!(answer["rules_version"], strandline_mcp::diagnose::RULES_VERSION);
    }
    let late = diagnosis(&served, "diagnose_group_lag", json!({"group_id": "a.late"})).await;
    assert_eq!(evidence(&late, "group.records_lost"), 6);
    // No metrics are known: they are missing, not zero.
    let missing = late["missing_evidence"].as_array().unwrap();
    assert!(missing.iter().any(|m| m["id"] == "s3.failing_brokers"), "{late}");
    assert!(evidence(&late, "s3.error_rate").is_null() && late["meta"]["partial"] == true);
    let none = served.call("diagnose_group_lag", json!({"group_id": "nosuch"})).await;
    assert_eq!(none["error"]["code"], "not_found");
}

#[tokio::test]
async fn a_group_that_waits_for_a_transaction_has_it_named_and_one_that_has_more_to_read_has_not() {
    let store = Store::new();
    store.furnish(&[], now_ms());
    let (held, far) = (store.topic("a.held", 1, &[]), store.topic("a.far", 1, &[]));
    store.stable_marks(held, &[(0, 100, 5_000)]);
    store.stable_marks(far, &[(0, 2_000, 5_000)]);
    for (group, topic, topic_id) in [("a.waits", "a.held", held), ("a.behind", "a.far", far)] {
        store.group(group, topic);
        store.commit(group, topic, topic_id, &[(0, 100)], now_ms() - 90_000);
    }
    let since = |s: i64| now_ms() - s * 1_000;
    store.open_transactions(&[("a.slow\u{202e}", since(75), &[(held, 0, 100), (far, 0, 2_000)])]);
    let served = serve(&store, &FLAGS).await;
    let waits = diagnosis(&served, "diagnose_group_lag", json!({"group_id": "a.waits"})).await;
    assert_eq!(codes(&waits), ["open_transaction"], "{waits}");
    assert_eq!((&waits["severity"], &waits["confidence"]), (&json!("warning"), &json!("high")));
    let summary = waits["summary"].as_str().unwrap();
    assert!(summary.contains("\"a.slow\"") && summary.contains("4900 of the 4900"), "{summary}");
    assert_eq!(waits["recommendations"][0]["runbook_id"], "open-transaction");
    let named = &evidence(&waits, "group.open_transactions")[0];
    assert_eq!((&named["timeout_ms"], &named["is_overdue"]), (&json!(900_000), &json!(false)));
    // Of its partitions only those that the group waits for.
    let partition = json!({"topic": "a.held", "partition": 0, "first_offset": 100, "held_back": 4_900});
    assert_eq!((&named["partitions"], &named["partition_count"]), (&json!([partition]), &json!(1)));
    let lag = served.call("get_group_lag", json!({"group_id": "a.waits"})).await;
    assert_eq!(lag["partitions"][0]["status"], "held_back", "{lag}");
    let behind = diagnosis(&served, "diagnose_group_lag", json!({"group_id": "a.behind"})).await;
    assert_eq!(codes(&behind), ["consumer_stalled", "open_transaction"], "{behind}");
    assert_eq!(behind["root_causes"][1]["counter_evidence_refs"], json!(["group.readable_lag"]));
    // One that is younger than what is listed is not named, and neither is anybody else.
    store.open_transactions(&[]);
    let unnamed = diagnosis(&served, "diagnose_group_lag", json!({"group_id": "a.waits"})).await;
    assert!(!codes(&unnamed).contains(&"open_transaction"), "{unnamed}");
    // One that nobody aborts in time is wrong with the cluster.
    store.open_transactions(&[("a.hangs", since(1_000), &[(held, 0, 100)])]);
    let now = diagnosis(&served, "explain_current_state", json!({})).await;
    let hangs = |c: &&Value| c["evidence_refs"][0] == "transactions.overdue";
    let cause = now["root_causes"].as_array().unwrap().iter().find(hangs).unwrap();
    assert!(cause["reasoning"].as_str().unwrap().contains("\"a.hangs\""), "{cause}");
    // One that is open for long, and still in time, is worth a word.
    store.open_transactions(&[("a.long", since(400), &[(held, 0, 100)])]);
    let now = diagnosis(&served, "explain_current_state", json!({})).await;
    assert_eq!(evidence(&now, "transactions.long_open")[0]["transactional_id"], "a.long", "{now}");
    assert!(codes(&now).contains(&"open_transaction"), "{now}");
}

#[tokio::test]
async fn what_is_wrong_now_names_the_cluster_before_groups_and_blindness_is_unknown() {
    let endpoints = [endpoint().await, endpoint().await];
    let urls: Vec<String> = endpoints.iter().map(|e| e.url.clone()).collect();
    let store = Store::new();
    store.furnish(&urls, now_ms());
    let served = serve(&store, &FLAGS).await;
    served.until("cluster_metrics", json!({}), |a| a["produce_rps"].is_number()).await;
    served.until("recent_changes", json!({}), |a| a["known_since"].is_string()).await;
    let answer = diagnosis(&served, "explain_current_state", json!({})).await;
    // The groups of this cluster are in trouble and nothing else is.
    assert!(
        codes(&answer).contains(&"offsets_out_of_range") && codes(&answer).contains(&"consumer_stalled"),
        "{answer}"
    );
    assert!(answer["root_causes"][0]["reasoning"].as_str().unwrap().starts_with("group \"a."), "{answer}");
    assert_eq!(answer["confidence"], "high");
    let storage = diagnosis(&served, "diagnose_storage", json!({})).await;
    assert_eq!((&storage["severity"], codes(&storage).len()), (&json!("ok"), 0), "{storage}");
    let broker = diagnosis(&served, "diagnose_broker", json!({"broker_id": 1})).await;
    assert_eq!(broker["severity"], "ok", "{broker}");
    // The watch is open shortly after the first read.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    store.delete(&Key::Broker(2));
    let lost = |a: &Value| codes(a).first() == Some(&"broker_down");
    let answer = served.until("explain_current_state", json!({}), lost).await;
    assert!(answer["summary"].as_str().unwrap().starts_with("broker_down"), "{answer}");
    let broker = diagnosis(&served, "diagnose_broker", json!({"broker_id": 2})).await;
    assert_eq!(codes(&broker).first(), Some(&"broker_down"), "{broker}");
    let snapshot = diagnosis(&served, "incident_snapshot", json!({"window": "15m"})).await;
    let changes = evidence(&snapshot, "changes.recent").as_array().unwrap();
    assert!(changes.iter().any(|c| c["kind"] == "broker" && c["action"] == "deleted"), "{snapshot}");
    let none = served.call("diagnose_broker", json!({"broker_id": 77})).await;
    assert_eq!(none["error"]["code"], "not_found");
    store.faults.lock().unwrap().down = true;
    let answer = diagnosis(&served, "explain_current_state", json!({})).await;
    assert_eq!(codes(&answer).first(), Some(&"etcd_unreachable"), "{answer}");
    assert_eq!(answer["severity"], "critical");
    // Metrics that go on speak against it.
    let broker = diagnosis(&served, "diagnose_broker", json!({"broker_id": 1})).await;
    assert_eq!(broker["severity"], "unknown", "{broker}");
}

#[tokio::test]
async fn failing_storage_is_named_from_what_brokers_count() {
    let one = endpoint().await;
    let store = Store::new();
    store.furnish(std::slice::from_ref(&one.url), now_ms());
    let served = serve(&store, &FLAGS).await;
    let text = |denied: u64, failed: Option<u64>| {
        let base = common::metrics_text(1_000 + denied).replace("healthy 1", "healthy 0");
        let failed = failed.map(|n| format!("strandline_flush_failures_total{{step=\"put\"}} {n}\n"));
        let failed = failed.unwrap_or_default();
        let denied = format!(
            "strandline_object_store_requests_total{{operation=\"put\",outcome=\"denied\"}} {denied}\n"
        );
        common::Behaviour::Says(200, format!("{base}{denied}{failed}"))
    };
    *one.behaviour.lock().unwrap() = text(0, None);
    let scraped = |a: &Value| a["state"] == "failing";
    served.until("storage_status", json!({}), scraped).await;
    *one.behaviour.lock().unwrap() = text(50, Some(4));
    let denied = |a: &Value| codes(a).first() == Some(&"storage_denied");
    served.until("diagnose_storage", json!({}), denied).await;
    let answer = diagnosis(&served, "diagnose_storage", json!({})).await;
    assert!(codes(&answer).contains(&"storage_failing"), "{answer}");
    // A counter that the broker did not say before began at zero.
    assert_eq!(evidence(&answer, "s3.put_failures"), 4.0, "{answer}");
}

#[tokio::test]
async fn a_tenant_is_told_of_its_own_groups_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.toml");
    let hash = ring::digest::digest(&ring::digest::SHA256, b"token-of-team-b");
    let hex: String =
        hash.as_ref().iter().flat_map(|b| format!("{b:02x}").chars().collect::<Vec<_>>()).collect();
    std::fs::write(
        &path,
        format!("[[principal]]\nname = \"team-b\"\ntoken_sha256 = \"{hex}\"\nscopes = [\"read\"]\ntopic_prefixes = [\"b.\"]\ngroup_prefixes = [\"b.\"]\n"),
    )
    .unwrap();
    let store = Store::new();
    store.furnish(&[], now_ms());
    let (orders, payments) = (store.topic("a.orders", 2, &[]), store.topic("b.payments", 1, &[]));
    let since_ms = now_ms() - 1_000_000;
    store.open_transactions(&[
        ("x.both", since_ms, &[(orders, 0, 20_090), (payments, 0, 45)]),
        ("x.foreign", since_ms, &[(orders, 0, 20_095)]),
    ]);
    let served = serve(&store, &["--tokens-file", path.to_str().unwrap(), FLAGS[0], FLAGS[1]]).await;
    for tool in ["explain_current_state", "incident_snapshot"] {
        let answer = served.call_as("token-of-team-b", tool, json!({})).await;
        let text = answer.to_string();
        assert!(
            text.contains("b.") && !text.contains("a.shop") && !text.contains("a.late"),
            "{tool}: {text}"
        );
        assert!(!text.contains("a.orders") && !text.contains("10.9.8.7"), "{tool}: {text}");
        assert!(text.contains("x.both") && !text.contains("x.foreign"), "{tool}: {text}");
    }
    let foreign =
        served.call_as("token-of-team-b", "diagnose_group_lag", json!({"group_id": "a.shop"})).await;
    assert_eq!(foreign["error"]["code"], "not_found");
}
