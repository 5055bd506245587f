//! Plans through the protocol: off by default, for the scope `plan`, never more than words, and
//! checked against the live state.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by ending what is wrong")]

mod common;

use common::{Served, Store, serve};
use serde_json::{Value, json};
use strandline_mcp::access::Scope;
use strandline_mcp::tools::{Tool, spec};
use strandline_metadata::keys::Key;

fn now_ms() -> i64 {
    use strandline_mcp::clock::Clock as _;
    strandline_mcp::clock::SystemClock.now_ms()
}

const ON: [&str; 4] = ["--plans", "true", "--calls-per-minute", "100000"];

async fn call(served: &Served, tool: &str, arguments: Value) -> Value {
    let answer = served.call(tool, arguments).await;
    assert!(answer["error"].is_null(), "{tool}: {answer}");
    let found = Tool::ALL.iter().find(|t| t.spec().name == tool).unwrap();
    let schema = spec::full_schema(found.spec().output);
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<String> =
        validator.iter_errors(&answer).map(|e| format!("{}: {e}", e.instance_path)).collect();
    assert!(errors.is_empty(), "{tool}: {errors:?}\n{answer}");
    answer
}

async fn check(served: &Served, plan: &Value) -> Value {
    call(served, "check_plan", json!({"plan_id": plan["plan_id"]})).await
}

#[tokio::test]
async fn plans_are_off_by_default_and_need_their_scope() {
    let store = Store::new();
    store.furnish(&[], now_ms());
    let names = |listed: &Value| -> Vec<String> {
        let tools = listed["result"]["tools"].as_array().unwrap();
        tools.iter().map(|t| t["name"].as_str().unwrap().to_owned()).collect()
    };
    let plans: Vec<&str> =
        Tool::ALL.iter().map(|t| t.spec()).filter(|s| s.scope == Scope::Plan).map(|s| s.name).collect();
    assert_eq!(plans.len(), 5);
    let off = serve(&store, &[]).await;
    let listed = names(&off.rpc("tools/list", json!({})).await);
    assert!(plans.iter().all(|p| !listed.iter().any(|n| n == p)));
    let body = json!({"name": "plan_add_partitions", "arguments": {"topic": "a.orders", "partitions": 4}});
    assert_eq!(off.rpc("tools/call", body).await["error"]["code"], -32602, "what is off does not exist");
    let on = serve(&store, &ON).await;
    let listed = on.rpc("tools/list", json!({})).await;
    assert!(plans.iter().all(|p| names(&listed).iter().any(|n| n == p)));
    // The bound of the catalogue counts with plans too.
    let bytes = listed["result"]["tools"].to_string().len();
    assert!(bytes * 2 / 7 <= 12_000, "the catalogue with plans has {bytes} bytes");
}

#[tokio::test]
async fn a_plan_is_checked_against_what_is_live() {
    let store = Store::new();
    store.furnish(&[], now_ms());
    let served = serve(&store, &ON).await;
    let plan = call(&served, "plan_add_partitions", json!({"topic": "a.orders", "partitions": 4})).await;
    assert!(
        plan["commands"][0]
            .as_str()
            .unwrap()
            .starts_with("kafka-topics.sh --bootstrap-server 10.9.8.7:9092 --alter")
    );
    assert!(plan["impact"].to_string().contains("a.shop"), "{plan}");
    let checked = check(&served, &plan).await;
    assert_eq!((&checked["state"], &checked["safe_to_run"]), (&json!("unchanged"), &json!(true)));
    assert_eq!(checked["live_hash"], plan["precondition_hash"]);
    store.topic("a.orders", 2, &[("retention.ms", "1")]);
    let checked = check(&served, &plan).await;
    assert_eq!(checked["state"], "changed");
    assert_eq!(
        checked["differences"],
        json!([{"what": "config retention.ms", "planned": "60000", "live": "1"}])
    );
    store.topic("a.orders", 4, &[("retention.ms", "60000")]);
    assert_eq!(check(&served, &plan).await["state"], "applied");

    let plan = call(
        &served,
        "plan_update_topic_config",
        json!({"topic": "a.orders", "set": {"retention.bytes": "1000"}, "unset": ["retention.ms"]}),
    )
    .await;
    assert!(plan["impact"].to_string().contains("never come back"), "{plan}");
    store.topic("a.orders", 4, &[("retention.bytes", "1000")]);
    assert_eq!(check(&served, &plan).await["state"], "applied");

    let plan = call(
        &served,
        "plan_create_topic",
        json!({"topic": "a.fresh", "partitions": 3, "configs": {"retention.ms": "7200000"}}),
    )
    .await;
    assert_eq!(check(&served, &plan).await["state"], "unchanged");
    store.topic("a.fresh", 3, &[("retention.ms", "7200000")]);
    assert_eq!(check(&served, &plan).await["state"], "applied");
    let again = call(&served, "plan_create_topic", json!({"topic": "a.fresh", "partitions": 3})).await;
    assert_eq!(
        (&again["runnable"], &again["plan_id"], &again["commands"]),
        (&json!(false), &Value::Null, &json!([]))
    );
}

#[tokio::test]
async fn a_reset_is_for_a_group_without_members() {
    let store = Store::new();
    store.furnish(&[], now_ms());
    let served = serve(&store, &ON).await;
    let active = call(
        &served,
        "plan_reset_offsets",
        json!({"group_id": "a.shop", "topic": "a.orders", "to": "latest"}),
    )
    .await;
    assert_eq!(
        (&active["runnable"], &active["policy_violations"][0]["code"]),
        (&json!(false), &json!("group_active"))
    );
    let plan = call(
        &served,
        "plan_reset_offsets",
        json!({"group_id": "a.late", "topic": "a.orders", "to": "offset", "offset": 20, "partitions": [0]}),
    )
    .await;
    assert_eq!(plan["diff"], json!([{"what": "offset 0", "before": 4, "after": 20}]));
    assert!(
        plan["commands"][1]
            .as_str()
            .unwrap()
            .ends_with("--topic a.orders:0 --reset-offsets --to-offset 20 --execute")
    );
    assert_eq!(check(&served, &plan).await["state"], "unchanged");
    let orders = store.topic("a.orders", 2, &[("retention.ms", "60000")]);
    store.commit("a.late", "a.orders", orders, &[(0, 20)], now_ms());
    assert_eq!(check(&served, &plan).await["state"], "applied");
    store.commit("a.late", "a.orders", orders, &[(0, 21)], now_ms());
    assert_eq!(check(&served, &plan).await["state"], "changed");
    store.delete(&Key::Topic("a.orders".to_owned()));
    assert_eq!(check(&served, &plan).await["state"], "changed");
    for (arguments, code) in [
        (json!({"group_id": "a.late", "topic": "b.payments", "to": "offset"}), "invalid_argument"),
        (
            json!({"group_id": "a.late", "topic": "b.payments", "to": "latest", "offset": 3}),
            "invalid_argument",
        ),
        (
            json!({"group_id": "a.late", "topic": "b.payments", "to": "latest", "partitions": [9]}),
            "not_found",
        ),
        (json!({"group_id": "a.late", "topic": "b.payments", "to": "yesterday"}), "invalid_argument"),
        (json!({"group_id": "nosuch", "topic": "b.payments", "to": "latest"}), "not_found"),
    ] {
        assert_eq!(
            served.call("plan_reset_offsets", arguments.clone()).await["error"]["code"],
            code,
            "{arguments}"
        );
    }
    assert_eq!(
        served.call("check_plan", json!({"plan_id": "plan-none"})).await["error"]["code"],
        "not_found"
    );
}

#[tokio::test]
async fn a_tenant_plans_for_its_own_and_learns_nothing_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.toml");
    let hash = ring::digest::digest(&ring::digest::SHA256, b"token-of-team-b");
    let hex: String =
        hash.as_ref().iter().flat_map(|b| format!("{b:02x}").chars().collect::<Vec<_>>()).collect();
    let other = ring::digest::digest(&ring::digest::SHA256, b"token-of-planner");
    let other: String =
        other.as_ref().iter().flat_map(|b| format!("{b:02x}").chars().collect::<Vec<_>>()).collect();
    let entry = |name: &str, hex: &str, more: &str| {
        format!(
            "[[principal]]\nname = \"{name}\"\ntoken_sha256 = \"{hex}\"\nscopes = [\"read\", \"plan\"]\n{more}\n"
        )
    };
    let text = entry("team-b", &hex, "topic_prefixes = [\"b.\"]\ngroup_prefixes = [\"b.\"]")
        + &entry("planner", &other, "");
    std::fs::write(&path, text).unwrap();
    let store = Store::new();
    store.furnish(&[], now_ms());
    let served = serve(&store, &["--tokens-file", path.to_str().unwrap(), ON[0], ON[1], ON[2], ON[3]]).await;
    let team = "token-of-team-b";
    // Whether it exists or not: the same answer.
    for name in ["a.orders", "a.nosuch"] {
        let refused =
            served.call_as(team, "plan_create_topic", json!({"topic": name, "partitions": 1})).await;
        assert_eq!(refused["error"]["code"], "permission_denied");
        assert!(!refused.to_string().contains(name));
        let missing =
            served.call_as(team, "plan_add_partitions", json!({"topic": name, "partitions": 9})).await;
        assert_eq!(missing["error"]["code"], "not_found");
    }
    let plan =
        served.call_as(team, "plan_add_partitions", json!({"topic": "b.payments", "partitions": 9})).await;
    assert!(
        plan["commands"][0].as_str().unwrap().contains("\"$BOOTSTRAP\""),
        "no addresses without topology: {plan}"
    );
    assert!(!plan.to_string().contains("10.9.8.7") && !plan.to_string().contains("a.shop"));
    // A plan of one is nobody else's.
    let stolen = served.call_as("token-of-planner", "check_plan", json!({"plan_id": plan["plan_id"]})).await;
    assert_eq!(stolen["error"]["code"], "not_found");
    let evil = served
        .call_as("token-of-planner", "plan_create_topic", json!({"topic": "x\u{202e}y", "partitions": 1}))
        .await;
    assert_eq!(evil["error"]["code"], "invalid_argument");
    let evil = served
        .call_as("token-of-planner", "plan_create_topic", json!({"topic": "x;reboot", "partitions": 1}))
        .await;
    assert_eq!((&evil["runnable"], &evil["commands"]), (&json!(false), &json!([])));
}

#[test]
fn a_topic_has_as_many_partitions_as_brokers_allow() {
    let path = format!("{}/../metadata/src/limits.rs", env!("CARGO_MANIFEST_DIR"));
    let line = std::fs::read_to_string(path).unwrap();
    let line = line.lines().find(|l| l.contains("MAX_PARTITIONS_PER_TOPIC: u32")).unwrap().replace('_', "");
    assert!(line.contains(&strandline_mcp::limits::MAX_PARTITIONS_PER_TOPIC.to_string()), "{line}");
}
